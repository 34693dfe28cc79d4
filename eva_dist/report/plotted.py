"""Which charts a sweep gets: what goes on an axis, what a line joins, what colour and shape tell apart."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from eva_dist.render.charts import SHAPES, Chart, Mark, Series, Ticks, draw_chart, swatch
from eva_dist.render.colours import KINDS
from eva_dist.render.words import amount, digits_for, seconds, share, steps
from eva_dist.report.compare_points import Comparison, PointFigures
from eva_dist.report.settings import is_number, label, same, short, text, values_in_order

TAU = "eva.tau"
_BUDGETS = ("eva.rho", "eva.r")


@dataclass(frozen=True)
class Encoding:
    """`along` is what a line goes along, `colour` and `shape` what sets lines apart; None where nothing is left."""

    along: str | None
    colour: str | None
    shape: str | None


@dataclass(frozen=True)
class Figure:
    """Charts with their caption; `legend` has settings, and swatch and text of each of their values."""

    drawings: list[Markup]
    caption: str
    legend: list[tuple[str, list[tuple[Markup, str]]]]


def budget_figure(found: Comparison) -> Figure:
    """Return explained variance against trainable parameters."""
    numeric = _numeric_settings(found)
    along = next((key for key in _BUDGETS if key in numeric), next((key for key in numeric if key != TAU), None))
    encoding = _choose_encoding(found, along)
    chart = Chart(
        name="Total explained variance of each point against its trainable parameters",
        x_label="trainable parameters",
        y_label="explained variance",
        x_text=_write_apart(amount, range(2, 8)),
        y_text=_write_apart(share, range(5)),
        series=_series_of(
            found, encoding, lambda place: found.known(place).trainable_parameters, lambda f: f.explained_variance
        ),
    )
    return Figure([draw_chart(chart)], _caption_of(found, encoding), _legend_of(found, encoding))


def setting_figure(found: Comparison) -> Figure:
    """Return steps, seconds and explained variance, against tau where it varies, else another number, else points."""
    along = _setting_axis(found)
    encoding = _choose_encoding(found, along)
    values = _values_of(found, along)
    texts = [same(value) for value in values]
    at = {
        place: order if along is None else texts.index(same(found.points[place].settings.get(along)))
        for order, place in enumerate(found.compared)
    }
    named = tuple(map(text, values)) or tuple(str(found.points[place].number) for place in found.compared)
    panels: list[tuple[str, Callable[[PointFigures], float], Ticks]] = [
        ("steps", lambda f: f.steps, _write_each(steps)),
        ("seconds of the pass", lambda f: f.pass_seconds, _write_each(seconds)),
        ("explained variance", lambda f: f.explained_variance, _write_apart(share, range(5))),
    ]
    axis = axis_of_settings(found)
    drawings = []
    for y_label, figure_of, y_text in panels:
        series = _series_of(found, encoding, at.__getitem__, figure_of)
        name = f"{y_label} of each point against {axis}"
        drawings.append(draw_chart(Chart(name, axis, y_label, _write_each(text), y_text, series, x_values=named)))
    return Figure(drawings, _caption_of(found, encoding), _legend_of(found, encoding))


def axis_of_settings(found: Comparison) -> str:
    """Return the name of the x axis of `setting_figure`."""
    along = _setting_axis(found)
    return "point" if along is None else short(found.varied)[along]


def _setting_axis(found: Comparison) -> str | None:
    numeric = _numeric_settings(found)
    return TAU if TAU in numeric else next(iter(numeric), None)


def point_words(found: Comparison, place: int) -> str:
    """Return a line about a compared point, for who points at its mark."""
    figures, point = found.known(place), found.points[place]
    called = label(point, found.varied)
    return (
        f"{'' if called == f'point {point.number}' else f'point {point.number}: '}{called}; "
        f"{figures.trainable_parameters:,} parameters, {share(figures.explained_variance, 2)} explained, "
        f"{figures.steps} steps, {seconds(figures.pass_seconds)}"
    )


def _numeric_settings(found: Comparison) -> list[str]:
    """Return the varied settings that every compared point has as a number: those with most values first."""
    points = [found.points[place] for place in found.compared]
    keys = [key for key in found.varied if all(is_number(point.settings.get(key)) for point in points)]
    several = [key for key in keys if len(values_in_order(points, key)) > 1]
    return sorted(several, key=lambda key: -len(values_in_order(points, key)))


def _values_of(found: Comparison, key: str | None) -> list[Any]:
    return [] if key is None else values_in_order([found.points[place] for place in found.compared], key)


def _choose_encoding(found: Comparison, along: str | None) -> Encoding:
    """Give colour to the setting of most values beside `along`, then shape."""
    others = [key for key in found.varied if key != along and len(_values_of(found, key)) > 1]
    others.sort(key=lambda key: (key != TAU, -len(_values_of(found, key))))
    colour, form, *_ = [*others, None, None]
    return Encoding(along, colour, form)


def _series_of(
    found: Comparison,
    encoding: Encoding,
    x: Callable[[int], float],
    y: Callable[[PointFigures], float],
) -> tuple[Series, ...]:
    along, lines = encoding.along, defaultdict[str, list[int]](list)
    for place in found.compared:
        settings = found.points[place].settings
        others = {key: settings.get(key) for key in found.varied if key != along}
        lines[same(others) if along else str(place)].append(place)
    texts = {key: [same(value) for value in _values_of(found, key)] for key in (encoding.colour, encoding.shape) if key}
    drawn = []
    for places in lines.values():
        ordered = sorted(places, key=lambda place: found.points[place].settings[along] if along else place)
        marks = tuple(
            Mark(x(place), y(found.known(place)), found.points[place].number, point_words(found, place))
            for place in ordered
        )
        settings = found.points[ordered[0]].settings
        colour, form = (
            texts[key].index(same(settings[key])) if key is not None and key in settings else 0
            for key in (encoding.colour, encoding.shape)
        )
        drawn.append(Series(marks, colour, form))
    return tuple(drawn)


def _legend_of(found: Comparison, encoding: Encoding) -> list[tuple[str, list[tuple[Markup, str]]]]:
    names = short(found.varied)
    legend = []
    for key, is_colour in ((encoding.colour, True), (encoding.shape, False)):
        if key is not None:
            values = [text(value) for value in _values_of(found, key)]
            swatches = [swatch(at, 0) if is_colour else swatch(None, at) for at in range(len(values))]
            legend.append((names[key], list(zip(swatches, values, strict=True))))
    return legend


def _caption_of(found: Comparison, encoding: Encoding) -> str:
    names = short(found.varied)
    sentences = ["A mark is a point, with its number."]
    if encoding.along is not None:
        sentences.append(f"A line goes along {names[encoding.along]}, all else being equal.")
    ways = [f"{how} is {names[key]}" for how, key in (("colour", encoding.colour), ("shape", encoding.shape)) if key]
    if ways:
        together = " and ".join(ways)
        sentences.append(f"{together[0].upper()}{together[1:]}.")
    for key, most in ((encoding.colour, KINDS), (encoding.shape, SHAPES)):
        if key is not None and len(_values_of(found, key)) > most:
            sentences.append(f"{names[key]} has more than {most} values, so they come round again.")
    return " ".join(sentences)


def _write_apart(write: Callable[[float, int], str], digits: Sequence[int]) -> Ticks:
    """Return what writes values with as few of these digits as round none of them."""
    return lambda values: [write(value, digits_for(values, write, digits)) for value in values]


def _write_each(write: Callable[[float], str]) -> Ticks:
    return lambda values: [write(value) for value in values]
