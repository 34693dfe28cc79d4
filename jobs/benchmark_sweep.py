"""Measure what a sweep costs: all points from one pass, against one run of the dearest and against PEFT's runs.

    python jobs/benchmark_sweep.py                     # what `make bench-sweep` does; some minutes, on an idle machine
    python jobs/benchmark_sweep.py benchmark.quick=true     # four points, and PEFT for the dearest of them; 3 minutes
    python jobs/benchmark_sweep.py benchmark.rhos=[1,2] benchmark.taus=[0.9,0.99] eva.r=8

Each figure is the wall time of a whole command in a process of its own, one after the other: start, load, pass,
artifacts, and for the sweep its report. PEFT's function runs for three of the points and is extrapolated to all.
Every point is also run by itself, and held against what the sweep published.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from safetensors.numpy import load_file

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))  # `python jobs/benchmark_sweep.py` from a clone

from eva_dist.artifact.file_names import STATE_DICT_FILE  # noqa: E402
from eva_dist.artifact.load import source_folder  # noqa: E402
from eva_dist.config import Config  # noqa: E402
from eva_dist.errors import ConfigError  # noqa: E402
from eva_dist.run.prepare import prepare  # noqa: E402
from jobs import contenders  # noqa: E402
from jobs.benchmark import apart, describe_machine, describe_settings  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point, register_schema  # noqa: E402
from jobs.schema import freeze  # noqa: E402
from jobs.stages import Stage, run_stages  # noqa: E402
from jobs.turns import output_folder  # noqa: E402


@dataclass
class SweepBenchmark:
    """The points, and what is measured beside the sweep: PEFT, each point by itself, one tracker for all."""

    rhos: list[float] = field(default_factory=lambda: [1.0, 1.25, 1.5, 2.0])
    taus: list[float] = field(default_factory=lambda: [0.9, 0.95, 0.99])
    peft: bool = True
    apart: bool = True
    shared_tracker: bool = True
    threads: int | None = None
    quick: bool = False

    def shortened(self) -> "SweepBenchmark":
        """Return what is measured when it is to be quick: four points at most, and PEFT."""
        rhos, taus = (sorted({values[0], values[-1]}) for values in (self.rhos, self.taus))
        return replace(self, rhos=rhos, taus=taus, apart=False, shared_tracker=False)


@dataclass(frozen=True)
class Difference:
    """How far artifacts of the same points are from each other, over all points and layers.

    `cosines` are the least and the median |cos| of components at the same place.
    """

    same_bytes: int
    points: int
    layers: int
    other_rank: int
    least_cosine: float
    median_cosine: float


@dataclass(frozen=True)
class SweepFigures:
    """Wall seconds of whole commands."""

    machine: str
    settings: str
    points: int
    steps: int
    alone_seconds: list[float]
    sweep_seconds: float
    apart_seconds: float | None
    peft_seconds: list[float]
    own: Difference | None
    shared_seconds: float | None
    shared: Difference | None

    @property
    def against_dearest(self) -> float:
        """The sweep's time over that of the dearest point's own run."""
        return self.sweep_seconds / statistics.mean(self.alone_seconds)

    @property
    def against_peft(self) -> float | None:
        """PEFT's time for as many points, extrapolated, over the sweep's."""
        return statistics.mean(self.peft_seconds) * self.points / self.sweep_seconds if self.peft_seconds else None


register_schema("benchmark_sweep_schema", benchmark=SweepBenchmark)


@hydra.main(version_base="1.3", config_path=str(_ROOT / "conf"), config_name="benchmark_sweep")
@point
def main(settings: DictConfig) -> None:
    """Measure and print."""
    filled: Any = OmegaConf.to_object(settings)
    wanted: SweepBenchmark = filled.benchmark
    folder = output_folder()
    with only_json_on_stdout() as emit:
        with before_actors():
            if not (wanted.rhos and wanted.taus):
                raise ConfigError("benchmark.rhos and benchmark.taus must name at least one value each")
            config = freeze(filled)
            prepare(config)
        figures = measure(config, wanted, folder)
        (folder / "benchmark_sweep.json").write_text(json.dumps(dataclasses.asdict(figures), indent=1))
        print(to_markdown(figures), file=sys.stderr)
        emit(figures)


def measure(config: Config, wanted: SweepBenchmark, folder: Path) -> SweepFigures:
    """Run everything that is wanted, one after the other."""
    measurement = _Measurement(config, wanted.shortened() if wanted.quick else wanted, folder)
    run_stages(measurement.stages())
    return measurement.figures()


@dataclass(frozen=True)
class _Ran:
    """A command that has ended: its wall seconds, and what it printed, a line a point."""

    seconds: float
    outcomes: list[dict[str, Any]]


class _Measurement:
    """The stages of the benchmark, and what they have found so far."""

    def __init__(self, config: Config, wanted: SweepBenchmark, folder: Path) -> None:
        self._config, self._wanted = config, wanted
        self._threads = wanted.threads or os.cpu_count() or 1
        self._points = list(product(wanted.rhos, wanted.taus))
        self._folder = folder
        self._ran: dict[str, _Ran] = {}
        self._peft_seconds: list[float] = []

    def stages(self) -> list[Stage]:
        """Return what is to be done, in order."""
        words = [f"eva.rho={','.join(map(str, self._wanted.rhos))}", f"eva.tau={','.join(map(str, self._wanted.taus))}"]
        one_pass = ["-m", "hydra/launcher=shared_pass", *words]
        (rho, tau), each = max(self._points), len(self._points)
        dearest = [f"eva.rho={rho}", f"eva.tau={tau}"]
        stages = [
            self._command_stage("alone", 27, dearest),
            self._command_stage("sweep", 28 + each, one_pass),
            self._command_stage("alone again", 27, dearest),
        ]
        if self._wanted.apart:
            stages.append(self._command_stage("each by itself", 20 * each, ["-m", *words]))
        if self._wanted.shared_tracker:
            stages.append(self._command_stage("one tracker", 28 + each, [*one_pass, "sweep.mode=shared_tracker"]))
        return stages + [
            Stage(f"PEFT, rho={rho} tau={tau}", 25 + 45 * tau**10, partial(self._run_peft, rho, tau))
            for rho, tau in self._points_of_peft()
        ]

    def figures(self) -> SweepFigures:
        """Return all that was measured."""
        sweep, own, shared = (self._ran.get(name) for name in ("sweep", "each by itself", "one tracker"))
        assert sweep is not None, "it is always run"
        return SweepFigures(
            machine=describe_machine(self._threads),
            settings=describe_settings(self._config),
            points=len(self._points),
            steps=max(outcome["steps"] for outcome in sweep.outcomes),
            alone_seconds=[self._ran["alone"].seconds, self._ran["alone again"].seconds],
            sweep_seconds=sweep.seconds,
            apart_seconds=own.seconds if own else None,
            peft_seconds=self._peft_seconds,
            own=difference(sweep.outcomes, own.outcomes) if own else None,
            shared_seconds=shared.seconds if shared else None,
            shared=difference(sweep.outcomes, shared.outcomes) if shared else None,
        )

    def _points_of_peft(self) -> list[tuple[float, float]]:
        """Return the points for which PEFT runs: the cheapest, one between, the dearest; the last alone if quick."""
        points = self._points
        if not self._wanted.peft:
            return []
        return [max(points)] if self._wanted.quick else [min(points), points[len(points) // 2], max(points)]

    def _run_peft(self, rho: float, tau: float) -> None:
        run = prepare(replace(self._config, eva=replace(self._config.eva, rho=rho, tau=tau)))
        started = time.perf_counter()
        apart(contenders.peer, run, self._threads)
        self._peft_seconds.append(time.perf_counter() - started)

    def _command_stage(self, name: str, seconds: float, more: Sequence[str]) -> Stage:
        return Stage(f"{name}: {' '.join(more)}", seconds, partial(self._run_command, name, more))

    def _run_command(self, name: str, more: Sequence[str]) -> None:
        """Run `jobs/precompute.py` with these settings and `more`, into a store of its own."""
        place = self._folder / name.replace(" ", "-")
        words = [*words_of(self._config), f"store.url={place / 'store'}"]
        folders = [f"hydra.run.dir={place / 'run'}", f"hydra.sweep.dir={place / 'sweep'}"]
        ordered = [*(word for word in more if word == "-m"), *words, *folders, *(word for word in more if word != "-m")]
        job = [sys.executable, str(_ROOT / "jobs" / "precompute.py"), *ordered]
        started = time.perf_counter()
        ended = subprocess.run(job, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if ended.returncode:
            raise RuntimeError(f"{name} ended with exit code {ended.returncode}:\n{ended.stderr[-4000:]}")
        self._ran[name] = _Ran(seconds, [json.loads(line) for line in ended.stdout.splitlines()])


def words_of(config: Config) -> list[str]:
    """Return the settings as Hydra overrides; where things go is not among them."""
    words = []
    for group, values in config.to_dict().items():
        for key, value in values.items() if group in ("model", "data", "eva", "solver", "cluster") else []:
            if isinstance(value, Mapping):
                words += [f"++{group}.{key}.{inner}={json.dumps(item)}" for inner, item in value.items()]
            else:
                words.append(f"++{group}.{key}={json.dumps(value)}")
    return words


def difference(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Difference:
    """Compare the state dicts of the same points, in the same order."""
    import numpy as np

    same, other_rank, layers, cosines = 0, 0, 0, []
    for one, two in zip(a, b, strict=True):
        files = [source_folder(outcome["url"]) / STATE_DICT_FILE for outcome in (one, two)]
        same += files[0].read_bytes() == files[1].read_bytes()
        first, second = (load_file(file) for file in files)
        for name, rows_KD in first.items():
            layers += 1
            other_rank += len(rows_KD) != len(second[name])
            k = min(len(rows_KD), len(second[name]))
            pair = [rows[:k] / np.linalg.norm(rows[:k], axis=1, keepdims=True) for rows in (rows_KD, second[name])]
            cosines += np.abs((pair[0] * pair[1]).sum(axis=1)).tolist()
    return Difference(same, len(a), layers, other_rank, min(cosines), statistics.median(cosines))


def to_markdown(figures: SweepFigures) -> str:
    """Return the figures as a table."""
    alone = statistics.mean(figures.alone_seconds)
    ratio = f"{figures.against_dearest:.2f} times the dearest"
    rows = [
        ("dearest point by itself, before and after", " and ".join(f"{s:.1f} s" for s in figures.alone_seconds), ""),
        (f"{figures.points} points from one pass", f"{figures.sweep_seconds:.1f} s", ratio),
    ]
    if figures.apart_seconds is not None:
        rows.append(("each by itself", f"{figures.apart_seconds:.1f} s", f"{figures.apart_seconds / alone:.1f} times"))
    if figures.shared_seconds is not None:
        rows.append(("sweep.mode=shared_tracker", f"{figures.shared_seconds:.1f} s", _how_far(figures.shared)))
    if figures.against_peft is not None:
        some = ", ".join(f"{seconds:.0f}" for seconds in figures.peft_seconds)
        count = len(figures.peft_seconds)
        slower = f"{figures.against_peft:.1f} times slower for all, extrapolated"
        rows.append((f"PEFT, {count} of the points ({some} s)", "", slower))
    lines = [f"{figures.settings}\n{figures.machine}; {figures.steps} steps\n", "| | seconds | |", "|---|---|---|"]
    lines += [f"| {what} | {seconds} | {ratio} |" for what, seconds, ratio in rows]
    if figures.own is not None:
        lines.append(f"\nOf its own runs: {_how_far(figures.own)}.")
    return "\n".join(lines) + "\n"


def _how_far(found: Difference | None) -> str:
    assert found is not None
    return (
        f"{found.same_bytes} of {found.points} state dicts the same to the bit; another rank in {found.other_rank} of "
        f"{found.layers} layers; least |cos| {found.least_cosine:.6f}, median {found.median_cosine:.6f}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
