"""Drawings of text: what is higher looks higher, what is there is seen, all fits."""

import pytest

from eva_dist.cli.text_charts import ASCII_INK, INK, heat_lines, spectrum_bars


def test_a_cell_is_its_share_of_the_highest():
    *rows, axis = heat_lines([[0.0, 1, 2, 4, 8, None]], ["q"], 80, 8)
    assert rows == ["q ··▁▁▂▂▄▄██"]
    assert axis == "  0 1 2 3 4 5"


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("blocks", [1, 7, 30, 61, 126])
def test_it_fits_and_the_axis_stands_where_the_columns_do(width, blocks):
    lines = heat_lines([[float(block) for block in range(blocks)]], ["down_proj"], width, blocks)
    assert max(map(len, lines)) <= width + 3
    assert len(lines[0]) <= width
    numbers = lines[-1].split()
    assert numbers[0] == "0" and lines[-1].index("0") == len("down_proj ")
    if blocks == 30 and width == 80:
        assert lines[-1].index("20") == len("down_proj ") + 40


def test_columns_that_do_not_fit_are_put_together():
    *rows, _ = heat_lines([[0, 8] * 10], ["q"], 12, 8)
    assert rows == ["q " + "▄" * 10]


def test_spectra_are_logarithmic_and_nothing_above_zero_is_unseen():
    assert spectrum_bars([1.0, 0.1, 0.01, 0.0], 0.01, 1.0, 8) == "█▅▁·"
    assert len(spectrum_bars([0.5] * 64, 0.1, 1.0, 16)) == 16
    assert {INK.bar(1e-9), INK.bar(2.0)} == {"▁", "█"}
    assert ASCII_INK.bar(1e-9).isascii() and ASCII_INK.bar(1.0) == "@"
