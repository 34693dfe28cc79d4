"""Text for a terminal: safe, in units, and in tables that drop what does not fit."""

import json
from datetime import UTC, datetime, timedelta
from operator import itemgetter

import pytest

from eva_dist.cli.terminal import (
    Column,
    age_text,
    cell,
    duration,
    fitting_table,
    print_json,
    print_parts,
    printable_lines,
    results_console,
    size_text,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age", "text"),
    [({"seconds": 5}, "5s"), ({"seconds": 119}, "119s"), ({"minutes": 2}, "2m"), ({"hours": 47}, "47h")]
    + [({"days": 2}, "2d"), ({"days": 800}, "2y"), ({"seconds": -9}, "0s")],
)
def test_ages(age, text):
    assert age_text(NOW - timedelta(**age), NOW) == text


@pytest.mark.parametrize(
    ("words", "seconds"), [("90s", 90), ("1.5h", 5400), ("7d", 604800), ("0s", 0), ("h", None), ("", None), ("5", None)]
)
def test_durations(words, seconds):
    assert duration(words) == (None if seconds is None else timedelta(seconds=seconds))


def test_sizes():
    assert [size_text(size) for size in (0, 812, 6597, 20_529_781, None)] == ["0B", "812B", "6.6kB", "20.5MB", "–"]


def test_nothing_steers_the_terminal():
    assert printable_lines("a\x1b[2Jb\nc\rd\x9b\u202e") == "a?[2Jb\nc?d??"
    assert str(cell("a\nb\x1b[31m[bold]x[/bold]")) == "a?b?[31m[bold]x[/bold]"


def test_json_is_ascii_and_has_no_nan(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "\x1b\u202e", 4: None})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": "\x1b\u202e", "4": None}
    assert out.isascii() and "\x1b" not in out


def test_a_narrow_table_drops_columns_in_order(monkeypatch, capsys):
    columns = (
        Column("name", itemgetter(0)),
        Column("less", itemgetter(1), drop=1),
        Column("least", itemgetter(2), right=True, drop=2),
    )
    rows = [("a" * 10, "b" * 5, "[red]7")]
    heads = []
    for width in (30, 20, 12, 4):
        monkeypatch.setenv("COLUMNS", str(width))
        console = results_console()
        print_parts(console, fitting_table(columns, rows, console.width))
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width and all(line == line.rstrip() for line in lines)
        heads.append(lines[0].split())
    assert heads[:3] == [["name", "less", "least"], ["name", "less"], ["name"]]
