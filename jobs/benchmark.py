"""Compare us with PEFT and with the floor: same model, same samples, same settings, in one run.

    python jobs/benchmark.py                                # 6 blocks of SmolLM2-135M, some minutes
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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))  # `python jobs/benchmark.py` from a clone

from eva_dist.config import Config, Dtype, Exchange  # noqa: E402
from eva_dist.errors import ConfigError  # noqa: E402
from eva_dist.run.prepare import Prepared, prepare  # noqa: E402
from jobs import contenders, measures  # noqa: E402
from jobs.benchmark_report import Figures, draw, headline, to_markdown  # noqa: E402
from jobs.hydra_main import before_actors, exit_code, only_json_on_stdout, point  # noqa: E402
from jobs.schema import freeze, schema  # noqa: E402


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

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        for key in ("seeds", "dtypes"):
            if not getattr(self, key):
                yield f"benchmark.{key}=[] must name at least one; leave it out for the default"
        if self.workers and (self.workers[0] != 1 or min(self.workers) < 1):
            yield f"benchmark.workers={self.workers} must begin with 1, what the others are compared with; or be []"
        for key in ("solver_updates", "precision_steps"):
            if getattr(self, key) < 0:
                yield f"benchmark.{key}={getattr(self, key)} must be >= 0; use 0 to leave it out"
        for key in ("scaling_steps", "solver_groups"):
            if getattr(self, key) < 1:
                yield f"benchmark.{key}={getattr(self, key)} must be >= 1; leave it out for the default"


ConfigStore.instance().store(
    name="benchmark_schema",
    node=dataclasses.make_dataclass(
        "BenchmarkSchema", [("benchmark", Benchmark, field(default_factory=Benchmark))], bases=(schema(),)
    ),
)


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
    threads = wanted.threads or os.cpu_count() or 1
    runs, accuracy = [], []
    for seed in wanted.seeds:
        run = prepare(replace(config, data=replace(config.data, seed=seed)))
        _say(f"data order {seed}: PEFT")
        found = [apart(contenders.peer, run, threads)]
        for dtype in wanted.dtypes:
            _say(f"data order {seed}: eva_dist {dtype.value}, and the floor")
            found.append(apart(contenders.ours, run, threads, dtype))
        if wanted.accuracy:
            _say(f"data order {seed}: exact components")
            steps = max(one.steps for one in found)
            by_name = {one.name: one.state_dict for one in found}
            accuracy.append(apart(contenders.truth, run, threads, steps, by_name))
        runs.append([replace(one, state_dict={}) for one in found])
    run = prepare(config)
    _say("memory")
    memory = apart(measures.memory, run, threads, 12)
    solvers = []
    if wanted.solver_updates:
        _say("solvers")
        solvers = apart(measures.solvers, run, threads, wanted.solver_updates, wanted.solver_groups)
    return Figures(
        machine=describe_machine(threads),
        settings=describe_settings(config),
        seeds=wanted.seeds,
        runs=runs,
        accuracy=accuracy,
        memory=memory,
        solvers=solvers,
        precision=_precision(run, wanted, threads),
        scaling=_scaling(run, wanted),
        growth=apart(measures.growth, config, threads, 10) if wanted.growth else [],
        updates=apart(measures.updates, threads, 20) if wanted.growth else [],
    )


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(work, *arguments).result()


def _precision(run: Prepared, wanted: Benchmark, threads: int) -> list[measures.PrecisionRow]:
    if not wanted.precision_steps:
        return []
    _say("precision of the forward")
    return apart(measures.precision, run, threads, [Dtype.bfloat16, Dtype.float16], wanted.precision_steps)


def _scaling(run: Prepared, wanted: Benchmark) -> list[measures.ScalingRow]:
    rows = []
    for workers in wanted.workers:
        for exchange in [Exchange.to_owner] if workers == 1 else [Exchange.to_owner, Exchange.all_gather]:
            _say(f"{workers} workers, {exchange.value}")
            rows.append(apart(measures.scaling, run, workers, exchange, wanted.scaling_steps))
    return rows


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


def _say(text: str) -> None:
    print(f"[benchmark] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
