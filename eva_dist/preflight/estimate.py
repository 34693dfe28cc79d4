"""What a run will take, from the model's config alone: no weights, no data, no actors, no accelerator.

    settings + config.json -> skeleton on the meta device -> traced forward -> memory, traffic, work, seconds

Groups, operations and activations come from a forward on the meta device (`modeling/trace.py`),
trackers from their own `cost`, owners from `make_plan`; only seconds rest on figures of the
accelerator. Samples are taken to have `data.max_length` tokens each, the most they may have.

All bytes are bytes, all operations multiplications and additions, of one step unless it says otherwise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from eva_dist.config import Config, Dtype, SolverConfig, SolverName
from eva_dist.modeling.load import Architecture
from eva_dist.numerics.covariance import packed_numbers
from eva_dist.plan import Plan
from eva_dist.preflight.accelerator import Accelerator
from eva_dist.preflight.footprint import MemoryFacts, memory_of
from eva_dist.preflight.workload import Case, SecondsFacts, StepFacts, Subject, WorkFacts

_USABLE = 0.9
"""Of an accelerator's memory; the rest goes to its context, to libraries and to fragments."""


@dataclass(frozen=True)
class ModelFacts:
    """The model and what is asked of it.

    `parameters` are those of the base model, `loaded_parameters` and `loaded_bytes` those of what is
    loaded (the trunk, if all targets lie in it). `budget` says which of the two budgets is handed out.
    `traced` says whether groups and work come from a forward.
    """

    name: str
    parameters: int
    loaded_parameters: int
    loaded_bytes: int
    dtype: str
    layers: int
    input_groups: int
    rank_budget: int
    parameter_budget: int
    budget: str
    traced: bool


@dataclass(frozen=True)
class ArtifactFacts:
    """Sizes of files: ranks as if each layer kept its `r`; `components` are all that are followed.

    `covariance` is there with `solver.keep_covariance`. `other` are tables, plots, card and headers, about.
    With `eva.budget=params` the adapter's is right for the ranks handed out too, but for what no component fits in.
    """

    state_dict: int
    adapter: int
    components: int
    covariance: int
    other: int

    @property
    def total(self) -> int:
        """Bytes of the folder."""
        return self.state_dict + self.adapter + self.components + self.covariance + self.other


@dataclass(frozen=True)
class Fit:
    """The smallest `cluster.shard_size` that fits the accelerator, with what it needs; None if none does.

    `fits` is of the settings as they are, `peak` of what `says` names.
    """

    usable_bytes: int
    fits: bool
    shard_size: int | None
    num_workers: int | None
    batch_size: int | None
    offload: bool
    peak: int | None
    says: str


@dataclass(frozen=True)
class Preflight:
    """What a run will take."""

    model: ModelFacts
    step: StepFacts
    memory: MemoryFacts
    work: WorkFacts
    seconds: SecondsFacts
    artifact: ArtifactFacts
    fit: Fit
    accelerator: Accelerator
    max_steps: int
    notes: tuple[str, ...]


def estimate(
    config: Config, architecture: Architecture, accelerator: Accelerator, step_tokens: float | None = None
) -> Preflight:
    """Estimate what a run takes on workers with one such accelerator each.

    Args:
        config: the settings; `data.path` is not looked at.
        architecture: from `read_architecture`.
        accelerator: complete figures.
        step_tokens: tokens of a step; None: `data.step_size` samples of `data.max_length`.

    Raises:
        LayerError: the targets do not fit the model.
    """
    subject = Subject(config, architecture, accelerator, step_tokens)
    case = Case(subject, config.cluster, config.data)
    model = ModelFacts(
        name=config.model.name_or_path,
        parameters=sum(p.numel() for p in architecture.skeleton.parameters()),
        loaded_parameters=sum(p.numel() for p in subject.model.parameters()),
        loaded_bytes=subject.weight_bytes,
        dtype=str(subject.dtype).removeprefix("torch."),
        layers=len(subject.layers),
        input_groups=len(case.plan.groups),
        rank_budget=case.plan.rank_budget,
        parameter_budget=case.plan.parameter_budget,
        budget=case.plan.budget.value,
        traced=case.traced is not None,
    )
    return Preflight(
        model=model,
        step=case.step,
        memory=memory_of(case, case.most_loaded),
        work=case.work,
        seconds=case.seconds(config.eva.max_steps),
        artifact=artifact_facts(case.plan, {layer.name: layer.r for layer in subject.layers}, config.solver),
        fit=smallest_fit(case),
        accelerator=accelerator,
        max_steps=config.eva.max_steps,
        notes=tuple(_fit_notes(config, architecture, case)),
    )


def smallest_fit(case: Case) -> Fit:
    """Find the smallest shard size, a power of two within a node, whose peak fits the accelerator.

    Workers are added as far as the shard size needs them. Where the settings do not fit, a worker
    forwards one step at a time, then one sample at a time; where no shard size fits even so, shards
    are kept in the memory of the CPU.
    """
    subject = case.subject
    assert subject.accelerator.memory_gib
    usable = int(subject.accelerator.memory_gib * 2**30 * _USABLE)
    fits = _peak_bytes(case) <= usable
    sizes = [2**i for i in range(subject.accelerator.per_node.bit_length())]
    for offload in (False, True):
        for size in sizes[1:] if offload else sizes:
            workers = -(-case.cluster.num_workers // size) * size
            cluster = replace(case.cluster, num_workers=workers, shard_size=size, offload=offload)
            share = -(-case.data.step_size // workers)
            for batch_size in dict.fromkeys((case.data.batch_size, share, 1)):
                peak = _peak_bytes(Case(subject, cluster, replace(case.data, batch_size=batch_size)))
                if peak <= usable:
                    says = f"cluster.shard_size={size} cluster.num_workers={workers}"
                    says += f" data.batch_size={batch_size}" if batch_size != case.data.batch_size else ""
                    says += " cluster.offload=true" if offload else ""
                    return Fit(usable, fits, size, workers, batch_size, offload, peak, says)
    says = (
        f"does not fit even with cluster.shard_size={sizes[-1]}, cluster.offload=true and data.batch_size=1; make "
        "samples shorter (data.max_length), a step smaller (data.step_size), or add workers"
    )
    return Fit(usable, fits, None, None, None, False, None, says)


def _peak_bytes(case: Case) -> int:
    return memory_of(case, case.most_loaded).peak


def artifact_facts(plan: Plan, ranks: Mapping[str, int], solver: SolverConfig) -> ArtifactFacts:
    """Return sizes of an artifact whose layers have these ranks; tensors are exact."""
    layers = plan.layers
    followed = sum(group.n_components * group.in_features for group in plan.groups)
    itemsize = 4 if solver.name is SolverName.subspace else 8
    covariance = 8 * sum(packed_numbers(group.in_features) for group in plan.groups) if solver.keep_covariance else 0
    vectors = sum(ranks[layer.name] * layer.in_features for layer in layers)
    zeros = sum(ranks[layer.name] * layer.out_features for layer in layers)
    names = sum(len(layer.name) for layer in layers)
    components = sum(layer.max_rank for layer in layers)
    # measured: plots and card; headers, manifest and configs by layer; spectrum.parquet by component
    other = 282_000 + 11 * names + 800 * len(layers) + 17 * components
    return ArtifactFacts(4 * vectors, 4 * (vectors + zeros), itemsize * followed, covariance, other)


def _fit_notes(config: Config, architecture: Architecture, case: Case) -> Iterator[str]:
    """Yield what a reader should know of these figures."""
    if case.traced is None:
        yield (
            "This model cannot be followed without weights: every layer counts as an input group of its own, "
            "work as 2 x parameters x tokens (all experts), activations by a rule of thumb; upper bounds, mostly."
        )
    kind = getattr(architecture.config, "dtype", None)
    if config.model.dtype is Dtype.auto and kind is None:
        yield "The config names no dtype: float32 is assumed, but the weights decide; set model.dtype."
    per_node = case.subject.accelerator.per_node
    if case.cluster.shard_size > per_node:
        asked = f"cluster.shard_size={case.cluster.shard_size}"
        yield (
            f"{asked} is more than the {per_node} of a node, and a shard group must lie inside one: a run would be "
            "refused; lower it, or set accelerator.per_node."
        )
    memory = memory_of(case, case.most_loaded)
    if case.steps_at_once > 1 and 4 * memory.rows > memory.peak:
        yield (
            f"A forward serves {case.steps_at_once} steps, whose rows are held: data.batch_size={max(case.shares)} "
            "holds those of one step."
        )
    yield (
        "The number of steps is not known beforehand: SmolLM2-135M needed 62 to 157 at tau=0.99; layers that have "
        "converged cost nothing any more, so steps become cheaper."
    )
