"""The catalogue in Debian's Chromium: with and without JavaScript, by keyboard, on a phone, light and dark."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from eva_dist.gateway.app import make_app
from eva_dist.store.store import Store
from tests.gateway.page_artifacts import publish
from tests.gateway.page_server import served_pages

pytestmark = pytest.mark.browser

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
ARTIFACT = "/artifact/team/tiny/rho2.0-tau0.99"
COMPARISON = "/compare?a=team/tiny@rho2.0-tau0.99&b=team/tiny@rho1.5-tau0.99"
STRANGE = "/artifact/lab/other/one"


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("no chromium on this machine: apt-get install chromium, or leave these out with -m 'not browser'")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A store in a folder, with 60 artifacts: two pages of them."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    files = publish(store, extra=b"these are weights")["files"]
    publish(store, revision="rho1.5-tau0.99", rho=1.5, rank_shift=2)
    publish(store, "lab/other", "one", model="org/big", turning=2, layers_converged="seven")
    for at in range(57):
        publish(store, "many/runs", f"seed{at}", tau=0.95, blocks=1, tables=False, tokens=1000 + at)
    with served_pages(make_app(store)) as served:
        yield served.url, files


@contextmanager
def opened(browser, url, **options) -> Iterator[Page]:
    """A page of its own, on which nothing may go wrong: no error is logged, no other host is asked."""
    context = browser.new_context(base_url=url, **{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(8000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(url) else None)
    yield page
    context.close()
    assert wrong == []


@pytest.fixture
def page(browser, site):
    with opened(browser, site[0], permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page


def rows(page: Page):
    return page.locator("#results tbody tr")


def test_searching_filters_as_one_types_and_keeps_the_focus(page):
    page.goto("/")
    expect(rows(page)).to_have_count(50)
    page.get_by_role("searchbox").press_sequentially("tiny")
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.get_by_role("searchbox")).to_have_value("tiny")
    expect(page.get_by_role("status").first).to_have_text("2 of 60 artifacts")
    assert page.url.endswith("/?q=tiny")
    page.get_by_label("rho", exact=True).focus()
    page.keyboard.press("ArrowDown")  # from any to 1.5
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_label("rho", exact=True)).to_be_focused()
    assert page.url.endswith("/?q=tiny&rho=1.5")
    page.reload()  # a bookmark
    expect(rows(page)).to_have_count(1)
    page.get_by_role("link", name="Drop rho: 1.5").click()
    expect(rows(page)).to_have_count(2)
    page.get_by_role("link", name="Clear all").click()
    expect(rows(page)).to_have_count(50)


def test_sorting_and_paging(page):
    page.goto("/")
    page.get_by_role("columnheader", name="tokens").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="tokens")).to_have_attribute("aria-sort", "descending")
    expect(rows(page).first).to_contain_text("31k")
    expect(rows(page).nth(3)).to_contain_text("seed56")
    page.get_by_role("link", name="Next").click()
    expect(rows(page)).to_have_count(10)
    expect(page.get_by_role("status").first).to_have_text("60 artifacts, page 2 of 2")


def test_opening_copying_sorting_and_downloading(page, site):
    url, files = site
    page.goto("/?q=tiny&rho=2")
    page.get_by_role("link", name="team/tiny").click()
    expect(page).to_have_title("team/tiny@rho2.0-tau0.99 · eva_dist")
    page.get_by_role("button", name="Copy: As an initialisation").click()
    expect(page.get_by_text("Copied", exact=True).first).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == (
        f'import eva_dist\n\neva_state_dict = eva_dist.load_eva_state_dict(\n    "{url}/team/tiny@rho2.0-tau0.99"\n)'
    )
    page.get_by_text("All 9 layers, one by one").click()
    table = page.locator("#layers-table table")
    table.get_by_role("button", name="rank", exact=True).click()
    assert table.locator("tbody tr td:nth-child(2)").all_inner_texts() == list("777888999")
    table.get_by_role("button", name="layer", exact=True).click()
    expect(table.locator("tbody tr").first).to_contain_text("layers.0.mlp.down_proj")
    with page.expect_download() as download:
        page.get_by_role("link", name="adapter_model.safetensors").click()
    content = download.value.path().read_bytes()
    assert download.value.suggested_filename == "adapter_model.safetensors"
    assert hashlib.sha256(content).hexdigest() == files["adapter_model.safetensors"]["sha256"]


def test_two_ticks_compare(page):
    page.goto("/?q=tiny")
    go = page.get_by_role("button", name="Compare the two that are ticked")
    expect(go).to_be_disabled()
    for box in page.get_by_role("checkbox").all():
        box.check()
    go.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("team/tiny: rho")
    expect(page.get_by_role("img", name="Difference of ranks")).to_be_visible()
    page.get_by_role("link", name="Swap A and B").click()
    expect(page.get_by_role("heading", level=2).first).to_contain_text("A: team/tiny")


def test_ticks_stay_while_one_searches_pages_and_sorts(page):
    page.goto("/")
    page.get_by_role("searchbox").fill("seed3")
    page.get_by_role("checkbox", name="Compare many/runs@seed3", exact=True).check()
    page.get_by_role("searchbox").fill("lab")
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_text("To compare: many/runs@seed3")).to_be_visible()
    page.get_by_role("link", name="Drop “lab”").click()  # a page anew, then another order and its second page
    page.get_by_role("columnheader", name="tokens").get_by_role("link").click()
    page.get_by_role("link", name="Next").click()
    expect(rows(page)).to_have_count(10)
    box = page.get_by_role("checkbox", name="Compare many/runs@seed3", exact=True)
    expect(box).to_be_checked()
    page.get_by_role("checkbox", name="Compare many/runs@seed5", exact=True).check()
    page.reload()
    expect(rows(page)).to_have_count(10)
    expect(box).to_be_checked()
    page.get_by_role("link", name="Previous").click()
    expect(page.get_by_text("To compare:")).to_have_count(2)
    expect(page.get_by_role("checkbox", name="Compare lab/other@one")).to_be_disabled()  # two are enough
    page.get_by_role("link", name="Do not compare many/runs@seed5").click()
    page.get_by_role("checkbox", name="Compare lab/other@one").check()
    page.get_by_role("button", name="Compare the two that are ticked").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("lab/other@one and many/runs@seed3")


def test_ticks_stay_without_javascript(browser, site):
    with opened(browser, site[0], java_script_enabled=False) as page:
        page.goto("/?q=seed3&sort=tokens")
        page.get_by_role("checkbox", name="Compare many/runs@seed3", exact=True).check()
        page.get_by_role("button", name="Keep the ticks, and search on").click()
        assert "q=seed3" in page.url and "sort=tokens" in page.url
        page.get_by_role("searchbox").fill("lab")
        page.get_by_role("button", name="Show").click()
        page.get_by_role("checkbox", name="Compare lab/other@one").check()
        page.get_by_role("button", name="Compare the two that are ticked").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("lab/other@one and many/runs@seed3")


def test_by_keyboard_alone(page):
    page.goto("/?q=tiny&rho=2")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    assert page.get_by_role("link", name="Skip to the content").bounding_box()["y"] >= 0  # it is seen now
    page.keyboard.press("Enter")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(document.activeElement.textContent || document.activeElement.id).trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen[-1]
        if seen[-1].startswith("team/tiny"):
            break
    order = [text for text in seen if text in ("q", "Show", "Clear all") or text.startswith("team")]
    assert order == ["q", "Show", "Clear all", "team/tiny@rho2.0-tau0.99"]
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("team/tiny@rho2.0-tau0.99")
    reached = set()
    for _ in range(80):  # through the whole page, and out of it: no trap
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().slice(0, 30)"))
        if page.evaluate("document.activeElement === document.body"):
            break
    assert {"Copy", "All 9 layers, one by one", "manifest.json", "Compare"} <= reached


def test_all_of_it_works_without_javascript(browser, site):
    with opened(browser, site[0], java_script_enabled=False) as page:
        page.goto("/")
        page.get_by_role("searchbox").fill("tiny")
        page.get_by_role("button", name="Show").click()
        expect(rows(page)).to_have_count(2)
        for box in page.get_by_role("checkbox").all():
            box.check()
        page.get_by_role("button", name="Compare the two that are ticked").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("team/tiny: rho")
        page.goto(ARTIFACT)
        page.get_by_text("All 9 layers, one by one").click()
        expect(page.locator("#layers-table tbody tr")).to_have_count(9)
        page.get_by_label("Compare team/tiny@rho2.0-tau0.99 with").select_option("lab/other@one")
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("team/tiny@rho2.0-tau0.99 and lab/other@one")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, site, scheme):
    with opened(browser, site[0], color_scheme=scheme, reduced_motion="reduce") as page:
        for path in ("/?q=lab", STRANGE, COMPARISON):
            page.goto(path)
            assert page.evaluate(FAINT) == [], path
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


@pytest.mark.parametrize("path", ["/", ARTIFACT, STRANGE, COMPARISON, "/compare?a=team/tiny@rho2.0-tau0.99"])
def test_a_phone_need_not_scroll_sideways(browser, site, path):
    with opened(browser, site[0], viewport={"width": 390, "height": 844}, has_touch=True) as page:
        page.goto(path)
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if path == "/":
            assert page.get_by_role("row").count() == 50  # cards are still a table to a screen reader


@pytest.mark.parametrize("width", [320, 360, 390, 430])
def test_cards_on_a_phone(browser, site, width):
    """No stop of the Tab key that is not seen, no label that breaks."""
    with opened(browser, site[0], viewport={"width": width, "height": 800}) as page:
        page.goto("/?q=tiny&sort=name")
        page.get_by_role("link", name="Clear all").focus()
        stops = []
        for _ in range(3):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent"))
        tiny = "team/tiny@rho1.5-tau0.99"
        assert stops == ["Artifacts", f"Compare {tiny}", tiny]
        assert page.evaluate(BROKEN_LABELS) == []


@pytest.mark.parametrize("path", ["/", "/?q=zzz", ARTIFACT, STRANGE, COMPARISON, "/compare", "/sweep"])
def test_a_screen_reader_finds_its_way(page, path):
    if path == "/sweep":
        page.goto(ARTIFACT)
        page.get_by_role("link", name="artifacts came of the same pass").click()
    else:
        page.goto(path)
    assert page.evaluate(UNNAMED) == []
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() >= 1, role
    assert page.get_by_role("heading", level=1).count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), levels
    assert page.locator("html[lang=en]").count() == 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


BROKEN_LABELS = """() => {
  const wrong = [], pen = document.createElement('canvas').getContext('2d');
  for (const cell of document.querySelectorAll('.cards td[data-label]')) {
    const style = getComputedStyle(cell, '::before');
    if (style.display === 'none') continue;
    pen.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    const needed = Math.max(...cell.dataset.label.split(' ').map(word => pen.measureText(word).width));
    if (needed > cell.clientWidth) wrong.push(`${cell.dataset.label}: ${needed} > ${cell.clientWidth}`);
  }
  return wrong;
}"""
"""Labels of which a word is wider than its cell."""

UNNAMED = """() => {
  const name = element => (element.getAttribute('aria-label') || element.textContent.trim() || element.alt ||
    [...(element.labels ?? [])].map(label => label.textContent).join('').trim());
  const wrong = [];
  for (const control of document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary'))
    if (!name(control)) wrong.push(control.outerHTML);
  for (const drawing of document.querySelectorAll('svg:not([aria-hidden=true])'))
    if (drawing.getAttribute('role') !== 'img' || !drawing.getAttribute('aria-label')) wrong.push('svg');
  for (const image of document.querySelectorAll('img')) if (!image.hasAttribute('alt')) wrong.push(image.outerHTML);
  for (const table of document.querySelectorAll('table')) {
    if (!table.caption?.textContent) wrong.push('no caption');
    for (const head of table.tHead.rows[0].cells)
      if (head.tagName !== 'TH' || head.scope !== 'col') wrong.push(head.outerHTML);
    for (const row of table.tBodies[0].rows) if (!row.querySelector('th[scope=row]')) wrong.push(row.outerHTML);
  }
  return wrong;
}"""
"""What has no name, and tables without a caption or headers."""

FAINT = """() => {
  const light = text => {
    const parts = text.match(/[\\d.]+/g).map(c => c / 255);
    const [r, g, b] = parts.map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const back = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = [];
  for (const element of document.querySelectorAll('main *, header *, footer *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || element.matches('title') || element.closest('.cells, option, .unseen, button:disabled')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(element.closest('svg') ? style.fill : style.color), light(back(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${element.tagName} ${element.textContent.slice(0, 40)}`);
  }
  return faint;
}"""
"""Text whose contrast with what is behind it is below WCAG's 4.5."""
