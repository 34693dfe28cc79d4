"""The page: self-contained, well-formed, escaped, and it says what was found."""

import re
from html.parser import HTMLParser

import pytest

from eva_dist.render.colours import AMOUNT
from eva_dist.render.heat_map import Heat, draw_heat
from eva_dist.render.words import amount, digits_for, share
from eva_dist.report.compare_points import most_different
from eva_dist.report.sweep import write_sweep

VOID = {"meta", "br", "img", "input", "link"}
ATTACK = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Every element with its attributes and text; closing tags must match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag, **attributes):
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def page_of(sweep) -> Page:
    return Page(write_sweep(sweep.folder).page.read_text(encoding="utf-8"))


@pytest.fixture
def swept(sweep, a_pass):
    for tau, cosines in ((0.8, (0.5, 0.85, 0.95)), (0.9, (0.5, 0.85, 0.95)), (0.99, (0.5, 0.85, 0.95, 0.995))):
        for rho in (1.0, 2.0):
            sweep.done(a_pass(angle=tau - 0.8, cosines=cosines, rho=rho, tau=tau), rho=rho, tau=tau)
    return sweep


def test_nothing_is_loaded_and_only_our_script_may_run(swept):
    page = page_of(swept)
    assert not page.all("link") and not page.all("img") and not page.all("iframe")
    assert len(page.all("script")) == 1 and "src" not in page.all("script")[0]
    outside = [found["href"] for found in page.all("a") if not found["href"].startswith("file:///")]
    assert sorted(outside) == ["sweep.json", "sweep.parquet"]
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"] and "script-src 'sha256-" in policy["content"]
    raw = (swept.folder / "index.html").read_text()
    assert "@import" not in raw and not re.search(r"url\((?!#)", raw)


def test_a_reader_without_eyes_or_mouse_gets_it_all(swept):
    page = page_of(swept)
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert page.all("html", lang="en") and page.all("meta", name="viewport")
    drawings = [found for found in page.all("svg") if "aria-hidden" not in found]
    assert drawings and all(found["role"] == "img" and found["aria-label"] for found in drawings)
    assert all(found.get("scope") in ("col", "row") for found in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("figcaption")) == len(page.all("figure"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_the_headline_says_what_differs_and_what_tau_buys(swept):
    report = write_sweep(swept.folder)
    page = Page(report.page.read_text())
    assert "Sweep over rho and tau: 6 points" in page.text
    found = report.comparison
    effect = next(effect for effect in found.effects if effect.key == "eva.tau")
    assert (effect.before.steps, effect.after.steps, effect.pairs) == (3, 5, 3 - 1)
    assert "tau from 0.8 to 0.99 takes 1.67 times the steps (3 to 5)" in page.text
    assert f"the two overlap by {effect.overlap:.4f} (means of 2 pairs)" in page.text
    pair = most_different(found)
    called = [f"oint {at} (rho={1.0 + at % 2} tau={(0.8, 0.9, 0.99)[at // 2]})" for at in pair]
    assert f"P{called[0]} and p{called[1]} differ most: their subspaces overlap by {found.between(*pair)[0]:.4f}," in (
        page.text
    )


def test_every_point_is_marked_and_can_be_loaded(swept):
    report = write_sweep(swept.folder)
    page = Page(report.page.read_text())
    for point, figures in zip(report.comparison.points, report.comparison.figures, strict=True):
        assert f"eva_dist.load_eva_state_dict('{point.result.url}')" in page.text
        assert page.all("a", href=point.result.url)
        assert f"{figures.trainable_parameters:,}" in page.text
        assert f"{100 * figures.explained_variance:.2f}%" in page.text
    assert len(page.all("g", **{"class": "point"})) == 6 * 4  # one chart of the budget, three against tau


def test_heat_maps_hold_the_numbers(swept):
    report = write_sweep(swept.folder)
    page = Page(report.page.read_text())
    grids = {found["aria-label"]: found["data-grid"] for found in page.all("svg", **{"class": "heat"})}
    ranks = [{layer.name: layer.rank for layer in point.artifact.layers} for point in report.comparison.points]
    for kind in ("q_proj", "k_proj", "down_proj"):
        rows = [row.split(",") for row in grids[f"Ranks of {kind} by point and block"].split(";")]
        parent = "mlp" if kind == "down_proj" else "self_attn"
        assert [[int(cell) for cell in row] for row in rows] == [
            [of_one[f"model.layers.{block}.{parent}.{kind}"] for block in range(2)] for of_one in ranks
        ]
    rows = grids["Overlap of subspaces, of every pair of points"].split(";")
    for a, row in enumerate(rows):
        assert [float(cell) for cell in row.split(",")] == pytest.approx(
            [report.comparison.between(a, b)[0] for b in range(6)], abs=5e-5
        )


def test_what_comes_from_outside_is_text(sweep, a_pass):
    sweep.facts = {"id": f"org/{ATTACK}", "task_type": None}
    sweep.done(a_pass(), exclude_modules=f"a{ATTACK}")
    sweep.failed(f"Error{ATTACK}", f"message {ATTACK}\n'\"&", f"eva.exclude_modules={ATTACK}", exclude_modules=ATTACK)
    page = page_of(sweep)
    assert len(page.all("script")) == 1
    for outside in (f"org/{ATTACK}", f"a{ATTACK}"[:20], f"Error{ATTACK}", f"message {ATTACK} '\"&"):
        assert outside in page.text
    assert ATTACK not in (sweep.folder / "index.html").read_text()


def test_a_missing_layer_is_not_a_rank_of_0(sweep, a_pass):
    sweep.done(a_pass())
    sweep.done(a_pass(kinds=["mlp.down_proj"]), target_modules=["down_proj"])
    page = page_of(sweep)
    (q,) = page.all("svg", **{"aria-label": "Ranks of q_proj by point and block"})
    assert re.fullmatch(r"\d+,\d+;,", q["data-grid"])
    assert "target_modules" in page.text


def test_points_that_failed_are_said_first_and_with_their_whole_message(swept):
    swept.failed("NotConvergedError", "first line\n  model.layers.7: 3 of 4 below", "eva.rho=9.0", rho=9.0, tau=0.8)
    page = page_of(swept)
    assert "1 of 7 points cannot be compared: 1 failed." in page.text
    assert page.text.index("cannot be compared") < page.text.index("differ most")
    assert "Point 6 (rho=9.0 tau=0.8): failed NotConvergedError first line model.layers.7: 3 of 4 below" in page.text


@pytest.mark.parametrize("case", ["one", "alike", "failed", "unknown"])
def test_sweeps_with_little_in_them(case, sweep, a_pass):
    if case in ("one", "alike"):
        sweep.done(a_pass())
    if case == "alike":
        sweep.done(a_pass())
    if case == "failed":
        sweep.failed("GangError", "no room")
    if case == "unknown":
        sweep.begun(config=False)
    page = page_of(sweep)
    expected = {
        "one": "One point: there is nothing to compare it with.",
        "alike": "All points span the same subspaces.",
        "failed": "1 of 1 point cannot be compared: 1 failed.",
        "unknown": "Nothing is known of their settings.",
    }
    assert expected[case] in page.text
    assert ("Agreement between points" in page.text) == (case == "alike")


@pytest.mark.parametrize(
    ("values", "write", "written"),
    [
        ((0.345, 0.35, 0.355), share, ["34.5%", "35.0%", "35.5%"]),
        ((0.2, 0.3), share, ["20%", "30%"]),
        ((11_512, 11_514), amount, ["11.512k", "11.514k"]),
        ((450_000, 1_000_000), amount, ["450k", "1M"]),
        ((0, 50), amount, ["0", "50"]),
    ],
)
def test_ticks_are_not_rounded(values, write, written):
    digits = digits_for(values, write, range(8) if write is share else range(2, 8))
    assert [write(value, digits) for value in values] == written


def test_the_dearest_heat_map_is_small():
    """30 points by 210 layers, no two neighbours alike: the page must stay below 1 MB."""
    points, layers = 30, 210
    grid = [[float((7 * row + 11 * column) % 33) for column in range(layers)] for row in range(points)]
    names = [f"point {row}: rho=1.25 tau=0.95 whiten=false" for row in range(points)]
    columns = [f"q_proj, block {column}" for column in range(layers)]
    heat = Heat("ranks", grid, names, columns, names, columns, 0.0, 32.0, 0, 8.0)
    drawn = draw_heat(heat)
    assert len(drawn) < 200_000
    cells = sum(float(run) for run in re.findall(r"h([\d.]+)", drawn)) / ((320 - 26) / layers)
    assert cells == pytest.approx(points * layers, rel=0.01)  # each cell is drawn once


def test_colours_are_matplotlibs_cividis():
    from matplotlib import colormaps

    for at in (0.0, 0.13, 0.5, 0.77, 1.0):
        ours = [int(AMOUNT.colour(at)[i : i + 2], 16) for i in (1, 3, 5)]
        theirs = [round(255 * value) for value in colormaps["cividis"](at)[:3]]
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 3
