"""Curves as SVG: what is drawn where, on both kinds of axes."""

import re

import pytest

from eva_dist.render.curves import Curve, CurvePlot, draw_curves


def draw(curves, **options):
    plot = CurvePlot("a plot", "x", "y", tuple(curves), lambda value: f"{value:g}", **options)
    return draw_curves(plot)


def points_of(drawn):
    (path,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    return [tuple(map(float, pair.split(","))) for pair in path.split()]


def test_a_logarithm_puts_equal_ratios_at_equal_distances():
    at = points_of(draw([Curve("a", ((1, 1.0), (2, 0.1), (3, 0.01)), 0)], logarithmic=True))
    assert at[1][1] - at[0][1] == pytest.approx(at[2][1] - at[1][1], abs=0.02)
    assert at[1][0] - at[0][0] == pytest.approx(at[2][0] - at[1][0], abs=0.02)


def test_what_has_no_logarithm_is_left_out():
    assert len(points_of(draw([Curve("a", ((1, 1.0), (2, 0.0), (3, 0.01)), 0)], logarithmic=True))) == 2
    assert "polyline" not in draw([Curve("a", ((1, 0.0),), 0)], logarithmic=True)


def test_long_curves_keep_their_ends_and_few_points():
    curve = Curve("a", tuple((float(x), float(x)) for x in range(10_001)), 0)
    at = points_of(draw([curve], y_ends=(0.0, 10_000.0)))
    assert len(at) <= 402 and at[0][0] == 58.0 and at[-1][0] == 408.0 and at[-1][1] == 10.0


def test_a_band_ends_where_the_axis_does():
    drawn = draw(
        [Curve("a", ((1, 0.1), (2, 0.1)), 0, 0, ((1e-9, 1.0), (0.0, 1.0)))], logarithmic=True, y_ends=(0.01, 1.0)
    )
    (polygon,) = re.findall(r'<polygon points="([^"]+)"', drawn)
    assert max(float(pair.split(",")[1]) for pair in polygon.split()) == 208.0  # the x axis


def test_one_point_is_a_mark_and_none_are_axes_alone():
    assert "<circle" in draw([Curve("a", ((1, 50.0),), 0)], y_ends=(0.0, 100.0))
    assert "polyline" not in draw([])
