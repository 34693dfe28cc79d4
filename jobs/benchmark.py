"""Compare us with PEFT and with the floor: same model, same samples, same settings, in one run.

    python jobs/benchmark.py                                # 6 blocks of SmolLM2-135M, a quarter of an hour
    python jobs/benchmark.py benchmark.quick=true           # the figures that matter most, 3 minutes
    python jobs/benchmark.py '~model.config_overrides.num_hidden_layers' benchmark.seeds=[0]  # all blocks
    python jobs/benchmark.py model.name_or_path=... data.path=... eva.r=8       # yours

The floor is bare forwards of the same tokens up to the last layer that is still active, and
nothing else, run between our steps. Whole runs are repeated over data orders
(`benchmark.seeds`), because the step at which the last layer converges is a matter of luck.
Tables go to standard error and `benchmark.md`, the picture to `benchmark.png`, all figures
to `benchmark.json` in the output folder; the last line on standard output is one JSON object.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))  # `python jobs/benchmark.py` from a clone

from eva_dist.config import Config, Dtype, Exchange, at_least  # noqa: E402
from eva_dist.errors import ConfigError  # noqa: E402
from eva_dist.run.prepare import Prepared, prepare  # noqa: E402
from jobs import contenders, measures  # noqa: E402
from jobs.benchmark_report import Figures, draw, headline, to_markdown  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point, register_schema  # noqa: E402
from jobs.schema import freeze  # noqa: E402
from jobs.stages import Stage, run_stages  # noqa: E402


@dataclass
class Benchmark:
    """What to measure.

    Attributes:
        seeds: data orders of the whole runs.
        dtypes: of our forward; the first one is what `speedup_vs_peft` speaks of. PEFT runs in float32.
        workers: gang sizes of the scaling rows; empty for none.
        scaling_steps: steps of each scaling row.
        solver_updates, solver_groups: updates and layer inputs of the solver table; 0 for none.
        accuracy: hold whole runs against the exact components (a float64 covariance of all tokens).
        precision_steps: steps after which forwards in bfloat16 and float16 are held against float32; 0 for none.
        growth: measure how time and memory grow.
        threads: of every process; null for all cores.
        quick: only what the headline's ratios need: half of the blocks, the first data order and dtype, fewer solver
            updates.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    dtypes: list[Dtype] = field(default_factory=lambda: [Dtype.float32, Dtype.bfloat16])
    workers: list[int] = field(default_factory=lambda: [1, 2, 4])
    scaling_steps: int = 20
    solver_updates: int = 40
    solver_groups: int = 24
    accuracy: bool = True
    precision_steps: int = 20
    growth: bool = False
    threads: int | None = None
    quick: bool = False

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        for key in ("seeds", "dtypes"):
            if not getattr(self, key):
                yield f"benchmark.{key}=[] must name at least one; leave it out for the default"
        if self.workers and (self.workers[0] != 1 or min(self.workers) < 1):
            yield f"benchmark.workers={self.workers} must begin with 1, what the others are compared with; or be []"
        for key in ("solver_updates", "precision_steps"):
            yield from at_least(f"benchmark.{key}", getattr(self, key), 0, "use 0 to leave it out")
        for key in ("scaling_steps", "solver_groups"):
            yield from at_least(f"benchmark.{key}", getattr(self, key), 1, "leave it out for the default")

    def shortened(self) -> "Benchmark":
        """Return what is measured when it is to be quick."""
        return replace(
            self,
            seeds=self.seeds[:1],
            dtypes=self.dtypes[:1],
            workers=[],
            solver_updates=min(self.solver_updates, 10),
            solver_groups=min(self.solver_groups, 8),
            accuracy=False,
            precision_steps=0,
            growth=False,
        )


register_schema("benchmark_schema", benchmark=Benchmark)


@hydra.main(version_base="1.3", config_path=str(_ROOT / "conf"), config_name="benchmark")
@point
def main(settings: DictConfig) -> None:
    """Measure, print, draw."""
    filled: Any = OmegaConf.to_object(settings)
    wanted: Benchmark = filled.benchmark
    folder = Path(HydraConfig.get().runtime.output_dir)
    with only_json_on_stdout() as emit:
        with before_actors():
            if problems := list(wanted.problems()):
                raise ConfigError("\n".join(problems))
            config = freeze(filled)
            prepare(config)
        figures = measure(config, wanted)
        (folder / "benchmark.json").write_text(json.dumps(dataclasses.asdict(figures), indent=1, default=str))
        (folder / "benchmark.md").write_text(to_markdown(figures))
        draw(figures, folder / "benchmark.png")
        print(to_markdown(figures), file=sys.stderr)
        emit(headline(figures))


def measure(config: Config, wanted: Benchmark) -> Figures:
    """Run everything that is wanted, each in a process of its own, one after the other."""
    if wanted.quick:
        config, wanted = _with_half_the_blocks(config), wanted.shortened()
    measurement = _Measurement(config, wanted)
    run_stages(measurement.stages())
    return measurement.figures()


def _with_half_the_blocks(config: Config) -> Config:
    overrides = dict(config.model.config_overrides)
    if blocks := overrides.get("num_hidden_layers"):
        overrides["num_hidden_layers"] = max(1, blocks // 2)
    return replace(config, model=replace(config.model, config_overrides=overrides))


class _Measurement:
    """The stages of a benchmark, and what they have found so far."""

    def __init__(self, config: Config, wanted: Benchmark) -> None:
        self._config, self._wanted = config, wanted
        self._threads = wanted.threads or os.cpu_count() or 1
        self._runs: dict[int, list[contenders.Contender]] = {}
        self._accuracy: list[Mapping[str, Mapping[str, float]]] = []
        self._found: dict[str, Any] = {}
        self._scaling: list[measures.ScalingRow] = []

    @cached_property
    def _prepared_run(self) -> Prepared:
        return prepare(self._config)

    def stages(self) -> list[Stage]:
        """Return what is to be done, in order."""
        wanted, threads = self._wanted, self._threads
        stages = [stage for seed in wanted.seeds for stage in self._of_data_order(seed)]
        stages.append(self._finding_stage("memory", 13, measures.memory, threads, 12))
        if updates := wanted.solver_updates:
            cost, groups = 8 + updates * wanted.solver_groups / 20, wanted.solver_groups
            stages.append(self._finding_stage("solvers", cost, measures.solvers, threads, updates, groups))
        if steps := wanted.precision_steps:
            dtypes, cost = [Dtype.bfloat16, Dtype.float16], 10 + steps * 1.5
            stages.append(self._finding_stage("precision", cost, measures.precision, threads, dtypes, steps))
        for workers in wanted.workers:
            for exchange in [Exchange.to_owner] if workers == 1 else [Exchange.to_owner, Exchange.all_gather]:
                name = f"scaling: workers={workers}, {exchange.value}"
                cost = 15 + 3 * workers + wanted.scaling_steps / 2
                stages.append(Stage(name, cost, partial(self._measure_scaling, workers, exchange)))
        if wanted.growth:
            stages.append(Stage("growth", 90, self._measure_growth))
        return stages

    def figures(self) -> Figures:
        """Return all that was measured."""
        return Figures(
            machine=describe_machine(self._threads),
            settings=describe_settings(self._config),
            seeds=self._wanted.seeds,
            runs=[[replace(one, state_dict={}) for one in runs] for runs in self._runs.values()],
            accuracy=self._accuracy,
            memory=self._found["memory"],
            solvers=self._found.get("solvers", []),
            precision=self._found.get("precision", []),
            scaling=self._scaling,
            growth=self._found.get("growth", []),
            updates=self._found.get("updates", []),
        )

    def _of_data_order(self, seed: int) -> Iterator[Stage]:
        """Yield the whole runs over one order of the data."""
        said = f"data order {seed}"
        yield Stage(f"{said}: PEFT", 70, partial(self._run_contender, seed, contenders.peer))
        for dtype in self._wanted.dtypes:
            work = partial(self._run_contender, seed, contenders.ours, dtype)
            yield Stage(f"{said}: eva_dist {dtype.value}, and the floor", 40, work)
        if self._wanted.accuracy:
            yield Stage(f"{said}: exact components", 30, partial(self._compare_with_truth, seed))

    def _of_seed(self, seed: int) -> Prepared:
        return prepare(replace(self._config, data=replace(self._config.data, seed=seed)))

    def _run_contender(self, seed: int, contender: Callable[..., Any], *arguments: Any) -> None:
        one = apart(contender, self._of_seed(seed), self._threads, *arguments)
        self._runs.setdefault(seed, []).append(one)

    def _compare_with_truth(self, seed: int) -> None:
        """Hold what was found over one order of the data against the exact components."""
        steps = max(one.steps for one in self._runs[seed])
        by_name = {one.name: one.state_dict for one in self._runs[seed]}
        self._accuracy.append(apart(contenders.truth, self._of_seed(seed), self._threads, steps, by_name))

    def _finding_stage(self, name: str, seconds: float, work: Callable[..., Any], *arguments: Any) -> Stage:
        def find() -> None:
            self._found[name] = apart(work, self._prepared_run, *arguments)

        return Stage(name, seconds, find)

    def _measure_scaling(self, workers: int, exchange: Exchange) -> None:
        self._scaling.append(apart(measures.scaling, self._prepared_run, workers, exchange, self._wanted.scaling_steps))

    def _measure_growth(self) -> None:
        self._found["growth"] = apart(measures.growth, self._config, self._threads, 10)
        self._found["updates"] = apart(measures.updates, self._threads, 20)


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(work, *arguments).result()


def describe_machine(threads: int) -> str:
    """Return processor or accelerator, threads and torch, in words."""
    import torch

    name = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else name
    return f"{device}, {threads} threads, torch {torch.__version__}"


def describe_settings(config: Config) -> str:
    """Return what is measured, in words."""
    data, eva = config.data, config.eva
    changed = "".join(f", {key}={value}" for key, value in config.model.config_overrides.items())
    model = Path(config.model.name_or_path).name + changed
    return (
        f"{model}, {eva.target_modules}, r={eva.r}, rho={eva.rho}, tau={eva.tau}, {data.step_size} samples a step, "
        f"at most {data.max_length} tokens each"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
