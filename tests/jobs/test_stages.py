"""A benchmark says before each stage how long the rest will take."""

import io
import re

import pytest

from jobs import stages
from jobs.benchmark import Benchmark, _with_half_the_blocks
from jobs.benchmark_sweep import SweepBenchmark
from jobs.stages import Stage, expected_seconds, run_stages


def test_the_first_stages_tell_how_fast_this_machine_is(monkeypatch):
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += 60

    run_stages([Stage("one", 20, work), Stage("two", 30, work), Stage("three", 10, work)], stream)
    assert stream.getvalue().splitlines() == [
        "[benchmark] 1/3 one | elapsed 0:00 | expected 1:00 more",
        "[benchmark] 2/3 two | elapsed 1:00 | expected 2:00 more",  # three times as slow, so 3 x (30 + 10) s
        "[benchmark] 3/3 three | elapsed 2:00 | expected 0:24 more",
    ]


def test_before_anything_is_done_the_stages_own_measure_counts():
    assert expected_seconds(0.0, 0.0, 40.0) == 40.0


def test_a_stage_that_fails_ends_the_benchmark():
    def fail():
        raise RuntimeError("it snapped")

    with pytest.raises(RuntimeError, match="it snapped"):
        run_stages([Stage("one", 1, fail), Stage("two", 1, lambda: pytest.fail("not reached"))], io.StringIO())


def test_quick_keeps_what_the_ratios_need(configure):
    quick = Benchmark(quick=True).shortened()
    assert (quick.seeds, [dtype.value for dtype in quick.dtypes], quick.workers) == ([0], ["float32"], [])
    assert 0 < quick.solver_updates <= 10 and not (quick.accuracy or quick.precision_steps or quick.growth)
    config = configure(model={"config_overrides": {"num_hidden_layers": 6, "vocab_size": 9}})
    assert _with_half_the_blocks(config).model.config_overrides == {"num_hidden_layers": 3, "vocab_size": 9}
    assert _with_half_the_blocks(configure()) == configure()
    assert Benchmark(solver_updates=0).shortened().solver_updates == 0
    sweep = SweepBenchmark(quick=True).shortened()
    assert (sweep.rhos, sweep.taus, sweep.apart, sweep.shared_tracker) == ([1.0, 2.0], [0.9, 0.99], False, False)
    assert SweepBenchmark(rhos=[2.0], taus=[0.9]).shortened().rhos == [2.0]


def test_the_documents_promise_the_setting():
    from jobs import benchmark, benchmark_sweep

    for module in (benchmark, benchmark_sweep):
        assert re.search(r"benchmark\.quick=true .*3 minutes", module.__doc__)
