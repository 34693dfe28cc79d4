"""What MkDocs calls while it builds the site: pages that are made of the code, and files that lie elsewhere.

Made when the site is built, they cannot go stale, and nobody can edit them in the wrong place.
"""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "docs"),
]  # jobs/ and the generators beside this file belong to no installed package

from commands_page import commands_page  # noqa: E402
from rooms_page import fill_in  # noqa: E402
from settings_page import settings_page  # noqa: E402

MADE = {"reference/settings.md": settings_page, "reference/command-line.md": commands_page}
"""Pages and what writes them."""

ELSEWHERE = {
    "how-to/docker.md": "docker/README.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
}
"""Pages whose text lies beside what it speaks of."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/pages`."""
    for page, write in MADE.items():
        files.append(File.generated(config, page, content=write()))
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put what is made of the code into the page on architecture."""
    return fill_in(markdown) if page.file.src_uri == "architecture.md" else markdown
