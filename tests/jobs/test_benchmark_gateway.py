"""The gateway's benchmark, in small: real processes, right bytes, figures that can be read."""

import json
from argparse import Namespace

import pytest

from jobs import benchmark_gateway
from jobs.benchmark_gateway import Round, main, parse, report


def test_it_prints_a_ratio_and_the_memory_of_both_servers(capsys):
    main(["--clients", "4", "--megabytes", "1", "--rounds", "1"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["right"] and result["ratio"] > 0
    assert {"static", "gateway"} == set(result["peak_bytes"]) and result["peak_bytes"]["gateway"] > 1 << 20
    assert "gateway / static" in printed.err and "WRONG" not in printed.err


@pytest.mark.parametrize("wrong", [set(), {"gateway"}])
def test_wrong_bytes_are_told_and_the_ratio_still_is(capsys, wrong):
    """A warm-up that was wrong was a round more of one server, and ended in a ValueError."""
    rounds = {"static": [Round(1.0, 100.0, 1.0, True)] * 3, "gateway": [Round(2.0, 50.0, 2.0, not wrong)] * 3}
    given = Namespace(clients=4, megabytes=1, processes=1)
    report(given, rounds, {"static": 1 << 20, "gateway": 1 << 20}, wrong)
    out, err = capsys.readouterr()
    assert [line.split()[-1] for line in err.splitlines()[2:4]] == ["right", "WRONG" if wrong else "right"]
    told = json.loads(out)
    assert (told["ratio"], told["ratios"], told["right"]) == (0.5, [0.5] * 3, not wrong)


def test_its_words_give_its_own_defaults():
    given = parse([])
    for option in ("clients", "megabytes", "rounds"):
        assert f"[--{option} {getattr(given, option)}]" in (benchmark_gateway.__doc__ or "")
