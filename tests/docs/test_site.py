"""The README is two screens; the site is built strictly and needs nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.docs.blocks import PAGES, ROOT


class Fetched(HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.urls += filter(None, [given.get("src")])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.urls.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = ["build", "--strict", "--quiet", "--config-file", "docs/mkdocs.yml", "--site-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *build],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_readme_is_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_that_a_repository_shows_lead_somewhere(page):
    """Links to pages that are made when the site is built are the strict build's to check."""
    made = ("reference/settings.md", "reference/command-line.md", "docker.md")
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")) and not target.endswith(made) and target != "settings.md":
            assert (page.parent / target).exists(), target


def test_a_page_fetches_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.urls
        assert [url for url in parser.urls if re.match(r"(https?:)?//", url)] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_made_pages_and_pages_of_other_folders_are_on_the_site(site):
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert 'id="eva.rho"' in settings and "&gt;= 1.0" in settings
    assert "--older-than" in (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "show_progress_bar" in (site / "reference" / "python.html").read_text(encoding="utf-8")
    architecture = (site / "architecture.html").read_text(encoding="utf-8")
    assert "engine.py" in architecture and "filled in when" not in architecture
    assert "Kubernetes" in (site / "how-to" / "docker.html").read_text(encoding="utf-8")
