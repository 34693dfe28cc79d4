"""The bar: on standard error, on a terminal, and nowhere else."""

import io
import sys

import pytest

from eva_dist.store.transfer_progress import counting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "shown"),
    [(Terminal(), None, True), (Terminal(), False, False), (io.StringIO(), None, False), (io.StringIO(), True, False)],
)
def test_a_bar_only_on_a_terminal(stream, progress, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with counting("hf://org/[name]", 100, progress) as tell:
        tell(60)
        tell(40)
    assert ("hf://org/[name]" in stream.getvalue()) is shown
    assert capsys.readouterr().out == ""


def test_a_function_is_told_instead(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    told: list[int] = []
    with counting("x", 100, told.append) as tell:
        tell(60)
    assert told == [60] and stream.getvalue() == ""
