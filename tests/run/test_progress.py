"""The progress line: live on a terminal, now and then elsewhere, and what it expects."""

import dataclasses
import io
import json
import math

import pytest
import torch

from eva_dist.calibration import progress
from eva_dist.calibration.controller import GroupReport, StepReport, advance, first_state
from eva_dist.calibration.pass_state import one_point
from eva_dist.calibration.progress import Progress, describe, expected_seconds
from eva_dist.methods.eva import Eva
from eva_dist.plan import make_layer, make_plan
from eva_dist.run.run_folder import RunFolder

LAYERS = 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told otherwise."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def state():
    layers = [make_layer(f"layer{i}", 8, 8, 1, 1.0) for i in range(LAYERS)]
    return first_state(make_plan(layers, [[each.name] for each in layers]), Eva(0.9), max_steps=50)


def step(state, converged: int, seconds: float = 1.0, tokens: int = 500):
    """One step after which the first `converged` layers have converged."""
    cosines = [torch.tensor([1.0 if i < converged else 0.0]) for i in range(LAYERS)]
    reports = tuple(GroupReport(i, tokens, torch.tensor([0.5]), cosines[i]) for i in range(LAYERS))
    return advance(state, [StepReport(reports, tokens, 0, {})], seconds)


def test_plain_lines_come_at_most_every_five_seconds_and_at_the_end(clock, state):
    stream = io.StringIO()
    show = Progress(stream)
    for seconds, converged in [(1, 0), (1, 1), (2.9, 2), (0.2, 3), (4.9, 3), (0.05, 3), (0.05, LAYERS)]:
        clock(seconds)
        state = step(state, converged)
        show(one_point(state))
    show.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["step 1/50", "step 5/50", "step 7/50"]
    assert lines[0] == "step 1/50 | layers converged 0/4 | 500 tokens/s | elapsed 0:01 | expected 0:49 more"
    assert lines[-1] == "step 7/50 | layers converged 4/4 | 500 tokens/s | elapsed 0:10"
    assert "\r" not in stream.getvalue() and stream.getvalue().endswith("\n")


def test_a_terminal_has_one_live_line(clock, state):
    stream = Terminal()
    show = Progress(stream)
    for converged in (0, 2, LAYERS):
        state = step(state, converged)
        show(one_point(state))
    assert "\n" not in stream.getvalue()
    shown = stream.getvalue().split("\r\x1b[K")
    assert shown[0] == "" and [text.split(" | ")[1] for text in shown[1:]] == [
        "layers converged 0/4",
        "layers converged 2/4",
        "layers converged 4/4",
    ]
    show.close()
    assert stream.getvalue().endswith("elapsed 0:00\n")


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_closing_before_the_first_step_writes_nothing(kind):
    stream = kind()
    Progress(stream).close()
    assert stream.getvalue() == ""


def test_standard_error_by_default(clock, state, capsys):
    Progress()(one_point(step(state, 1)))
    assert capsys.readouterr().out == ""


def test_standard_error_is_where_lines_go(clock, state, capsys):
    show = Progress()
    show(one_point(step(state, 1)))
    assert capsys.readouterr().err.startswith("step 1/50")


def test_speed_is_of_the_steps_alone_and_clocks_have_hours(state):
    state = dataclasses.replace(step(state, 1), tokens=1_234_567, elapsed=10.0)
    assert describe(one_point(state), 3725.4, 59.6) == (
        "step 1/50 | layers converged 1/4 | 123,457 tokens/s | elapsed 1:02:05 | expected 1:00 more"
    )


def test_no_time_has_passed(clock, state):
    state = step(state, 1, seconds=0.0)
    assert describe(one_point(state), 0.0, None) == "step 1/50 | layers converged 1/4 | 0 tokens/s | elapsed 0:00"
    assert expected_seconds(state, [(0.0, 3)]) == 0.0
    stream = io.StringIO()
    Progress(stream)(one_point(state))
    assert stream.getvalue().endswith("expected 0:00 more\n")


def at(state, steps: int):
    return dataclasses.replace(state, steps=steps)


def test_while_nothing_converges_all_steps_are_expected(state):
    assert expected_seconds(at(state, 3), [(2.0, 4), (4.0, 4), (6.0, 4)]) == pytest.approx(47 * 2.0)


def test_the_decay_of_the_second_half_is_carried_on_until_half_a_layer_is_left(state):
    """64 layers fall to 32, 16, 8 by halves every 10 s: from 8 to a half are four halvings."""
    falling = [(10.0 * i, round(64 / 2**i)) for i in range(1, 4)]
    assert expected_seconds(at(state, 3), falling) == pytest.approx(40.0)


def test_of_the_past_only_the_second_half_counts(state):
    slow_then_fast = [(10.0, 64), (20.0, 64), (30.0, 64), (40.0, 32)]
    elapsed_since, decay = 20.0, math.log(64 / 32)
    assert expected_seconds(at(state, 4), slow_then_fast) == pytest.approx(elapsed_since * math.log(2 * 32) / decay)


def test_never_more_than_the_steps_that_are_left(state):
    slow = [(10.0, 1000), (20.0, 999)]
    assert expected_seconds(at(state, 48), slow) == pytest.approx(2 * 10.0)
    assert expected_seconds(at(state, 50), slow) == 0.0


def test_nothing_left_is_nothing_expected(state):
    assert expected_seconds(at(state, 2), [(10.0, 4), (20.0, 0)]) == 0.0


def test_a_pass_that_goes_on_from_a_checkpoint_expects_what_its_own_steps_took(state):
    assert expected_seconds(at(state, 42), [(400.0, 4), (402.0, 4)]) == pytest.approx(8 * 2.0)


def test_a_run_folder_gets_a_line_a_step_and_the_result(tmp_path, state):
    folder = RunFolder(tmp_path)
    for steps in (1, 2):
        folder.add_step(at(state, steps))
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"layers_converged", "layers_total", "tokens", "elapsed", "seconds", "time"} <= lines[0].keys()
    folder.finish(Result("done", 2))
    assert json.loads((tmp_path / "result.json").read_text()) == {"status": "done", "steps": 2}


def test_a_disk_that_takes_no_line_costs_the_line_and_says_so_once(tmp_path, state, caplog):
    folder = RunFolder(tmp_path / "gone")
    folder.add_step(state)
    folder.add_step(state)
    folder.finish(Result("done", 2))
    assert caplog.text.count("cannot be written") == 1


@dataclasses.dataclass
class Result:
    status: str
    steps: int
