"""The settings of a run: one frozen dataclass a Hydra group, validated once.

`Config` is what the package works with; `jobs/schema.py` makes Hydra's schemas of it, and the documentation site its
settings page: of types and defaults, of each docstring's `Attributes`, and of what `problems` says of wrong values.

Every complaint names key, value, allowed range and remedy; all of them are reported
at once in one `ConfigError`.
"""

import dataclasses
import glob
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, get_type_hints

from eva_dist.errors import ConfigError

BUCKETS = ("s3://", "s3a://", "gs://", "az://", "azure://", "adl://", "abfs://", "abfss://")
"""How URLs of object stores begin."""


def is_store_url(text: str) -> bool:
    """Tell whether a URL is one that a store can have, but for a folder's."""
    return text.startswith(("memory://", *BUCKETS))


_SAID_WHEN_SET = {"said_when_set": True}
"""Of settings that came later: where they are not set, artifacts and checkpoints say what they said before."""


class Dtype(Enum):
    """In what the model is loaded and its forward runs; statistics are float32 and better."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Task(Enum):
    """PEFT's task types, by PEFT's names; `auto` reads the architecture from the model's config."""

    auto = "auto"
    CAUSAL_LM = "CAUSAL_LM"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"
    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"


class SampleBy(Enum):
    """What one sample of a plain text file is."""

    line = "line"
    paragraph = "paragraph"
    document = "document"


class SolverName(Enum):
    """Which SVD tracker updates the components."""

    subspace = "subspace"
    incremental = "incremental"
    covariance = "covariance"


class Exchange(Enum):
    """How token rows reach the owner of their input group: each once, or by way of every worker (the reference)."""

    to_owner = "to_owner"
    all_gather = "all_gather"


class Budget(Enum):
    """What the layers share: the sum of their ranks, as in PEFT, or the LoRA parameters of A and B."""

    ranks = "ranks"
    params = "params"


class OnMaxSteps(Enum):
    """What happens at `eva.max_steps` when layers have not converged."""

    error = "error"
    accept = "accept"


class Resume(Enum):
    """What a run does with checkpoints of the same fingerprint: go on from the last good one, or begin anew."""

    auto = "auto"
    never = "never"


class SweepMode(Enum):
    """What the points of a shared pass have in common.

    `exact`: the forwards; each point gets the numbers of its own run, on a CPU to the bit, on an accelerator, which
    updates many SVDs in one kernel, to its rounding. `shared_tracker`: also one tracker an input group, of the largest
    component count among the points; cheaper, and other numbers.
    """

    exact = "exact"
    shared_tracker = "shared_tracker"


@dataclass(frozen=True)
class ModelConfig:
    """What to load.

    Attributes:
        name_or_path: a model folder, or a model's id on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub.
        gguf_file: name of a GGUF file in that folder or repository, to load the weights from.
        dtype: number format of the weights and the forward; `auto` takes what the model's config says.
        task: PEFT's task type, which decides the class of the model and so the names of its layers.
        config_overrides: keys of the model's own config, e.g. `num_hidden_layers: 6` for its first blocks alone.
        trust_remote_code: run the Python code that comes with the model. Off unless you have read it.
    """

    name_or_path: str = ""
    revision: str | None = None
    gguf_file: str | None = None
    dtype: Dtype = Dtype.auto
    task: Task = Task.auto
    config_overrides: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        if not self.name_or_path:
            yield "model.name_or_path='' must be a model folder or a hub id; set it, or choose a group: model=..."


@dataclass(frozen=True)
class DataConfig:
    """What to stream. A step is `step_size` samples over all workers: one SVD update.

    Attributes:
        path: a file, a glob, a folder, or a data set's id on the Hub: text, json lines, parquet or arrow.
        name: the data set's configuration on the Hub.
        revision: branch, tag or commit on the Hub.
        split: which split of the data set.
        text_field: the column with the text, or with a list of chat messages.
        prompt_field: a column that is put before the text. Its tokens carry `eva.label_mask_value`, so that only the
            answers count.
        sample_by: what one sample of a plain text file is.
        max_length: the most tokens of a sample; what is longer is cut.
        batch_size: how many samples a worker forwards at once, of one step or of several. It changes speed and
            memory, never the result; null lets the device decide.
        step_size: how many samples make one SVD update, whatever the number of workers.
        num_samples: take only so many; null takes all.
        streaming: read a huge data set as it arrives instead of downloading it whole; needs `num_samples`.
        shuffle: take the samples in a random order.
        seed: which random order.
        role_map: gives roles of chats other names, e.g. `{human: user, gpt: assistant}`.
        tools_field: the column whose tools go to the chat template; null takes `tools`, where there is such a column.
    """

    path: str = ""
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    text_field: str = "text"
    prompt_field: str | None = None
    sample_by: SampleBy = SampleBy.paragraph
    max_length: int = 512
    batch_size: int | None = None
    step_size: int = 16
    num_samples: int | None = None
    streaming: bool = False
    shuffle: bool = True
    seed: int = 0
    tools_field: str | None = field(default=None, metadata=_SAID_WHEN_SET)
    role_map: dict[str, str] = field(default_factory=dict, metadata=_SAID_WHEN_SET)

    @property
    def is_here(self) -> bool:
        """Whether `path` names something on this machine; if not, it is a hub id, another machine's, or wrong."""
        path = os.path.expanduser(self.path)
        return os.path.exists(path) or bool(glob.glob(path, recursive=True))

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        if not self.path:
            yield "data.path='' must be a file, a glob or a hub id; set it, or choose a group: data=..."
        yield from at_least("data.max_length", self.max_length, 1, "use the length you will train with")
        yield from at_least("data.batch_size", self.batch_size, 1, "it is how many samples a worker forwards at once")
        yield from at_least("data.step_size", self.step_size, 1, "it is how many samples make one SVD update")
        yield from at_least("data.num_samples", self.num_samples, 1, "use null for all samples")
        if self.streaming and self.num_samples is None:
            yield "data.num_samples=null must be set when data.streaming=true; say how many samples to take"
        if not 0 <= self.seed < 2**32:
            yield f"data.seed={self.seed} must be in 0..2**32-1; use 0"
        if self.tools_field is not None and self.tools_field in ("", self.text_field, self.prompt_field):
            yield f"data.tools_field={self.tools_field!r} must be a column of its own; use null where there is none"
        for role, name in self.role_map.items():
            if not (isinstance(name, str) and role and name):
                yield (
                    f"data.role_map.{role}={name!r} must be the name of a role; "
                    "e.g. '+data.role_map={human: user, gpt: assistant}'"
                )


@dataclass(frozen=True)
class EvaConfig:
    """EVA's own settings, by PEFT's names (`LoraConfig` and `EvaConfig`), and `budget`.

    The uniform adapter (each layer its `r`) sets the budget: `ranks` hands out as many ranks, by explained variance;
    `params` as many LoRA parameters, by explained variance per parameter (`numerics/allocation.py`).

    Attributes:
        r: the rank of the uniform adapter, whose total is the budget.
        rho: how far ranks may move: no layer gets more than `round(r * rho)`; 1 leaves every layer its `r`.
        budget: what the layers share: the sum of their ranks, or the number of LoRA parameters.
        tau: when a component counts as settled: the cosine between its directions before and after an update.
        whiten: divide each component by the square root of its singular value.
        lora_alpha: LoRA's scale, written into the adapter's config.
        target_modules: which layers, as in PEFT: names or their last parts, a regular expression, `all-linear`, or
            null for the architecture's default.
        exclude_modules: layers to leave out, written the same way.
        rank_pattern: other values of `r` for some layers, by name or regular expression.
        use_label_mask: leave out tokens whose label is `label_mask_value`.
        label_mask_value: the label of tokens that do not count.
        adjust_scaling_factors: change alpha with the rank, so that a layer's scale stays what it was.
        max_steps: the most SVD updates.
        on_max_steps: what to do when some layers still turn by then.
    """

    r: int = 16
    rho: float = 2.0
    budget: Budget = Budget.ranks
    tau: float = 0.99
    whiten: bool = False
    lora_alpha: float = 16
    target_modules: Any = None
    exclude_modules: Any = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    use_label_mask: bool = True
    label_mask_value: int = -100
    adjust_scaling_factors: bool = True
    max_steps: int = 200
    on_max_steps: OnMaxSteps = OnMaxSteps.error

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from at_least("eva.r", self.r, 1, "it is the rank of the uniform adapter, 16 is usual")
        yield from at_least("eva.rho", self.rho, 1.0, "use 1.0 for no redistribution")
        if not isinstance(self.budget, Budget):
            yield f"eva.budget={self.budget!r} must be a Budget; use Budget.ranks or Budget.params"
        if not 0.0 <= self.tau <= 1.0:
            yield f"eva.tau={self.tau} must be in 0..1; it is a cosine, 0.99 is the paper's"
        yield from at_least("eva.max_steps", self.max_steps, 1, "it bounds the SVD updates, 200 is usual")
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            yield f"eva.lora_alpha={self.lora_alpha} must be > 0; r or 2 * r is usual"
        for pattern, r in self.rank_pattern.items():
            yield from at_least(f"eva.rank_pattern.{pattern}", r, 1, "leave the layer out with eva.exclude_modules")
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if not _is_name_pattern(value):
                yield f"eva.{key}={value!r} must be null, a list of names or a regex; e.g. 'eva.{key}=[q_proj,v_proj]'"


@dataclass(frozen=True)
class SolverConfig:
    """The SVD tracker and its options; `None` leaves an option at the tracker's default.

    Attributes:
        name: which tracker; choose it by its group, e.g. `solver=covariance`.
        oversampling: how many components to follow beyond those that are wanted.
        power_steps: how often an update multiplies by the data: more is more exact, and slower.
        seed: of the random start.
        keep_covariance: keep the sums in the artifact, for `eva-dist merge`: 4 D^2 bytes an input group, 403 MB for
            SmolLM2-135M, 33 GB for a Llama of 8B. The artifact's numbers and fingerprint stay the same.
    """

    name: SolverName = SolverName.subspace
    oversampling: int | None = None
    power_steps: int | None = None
    seed: int = 42
    keep_covariance: bool = False

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        if not 0 <= self.seed < 2**63:
            yield f"solver.seed={self.seed} must be in 0..2**63-1; use 42"
        if self.keep_covariance and self.name is not SolverName.covariance:
            yield f"solver.keep_covariance=true must come with solver=covariance: {self.name.value} has none to keep"
        for key in ("oversampling", "power_steps"):
            value = getattr(self, key)
            if value is not None and self.name is SolverName.covariance:
                yield f"solver.{key}={value} has no meaning with solver={self.name.value}; remove it"
            least = 1 if (self.name, key) == (SolverName.subspace, "power_steps") else 0
            yield from at_least(f"solver.{key}", value, least, "use null for the tracker's default")


@dataclass(frozen=True)
class ClusterConfig:
    """The gang: `num_workers` actors, in groups of `shard_size` that hold the model together.

    After each of at most `max_failures` failures the gang is built again: with as many workers if the cluster has room
    for them within `wait_s`, else with fewer. It goes on from the last checkpoint.

    Attributes:
        num_workers: how many workers take part.
        shard_size: how many of them hold one copy of the model together.
        offload: keep the shards in the CPU's memory, and bring them to the accelerator when they are needed.
        exchange: how token rows reach the worker that keeps their SVD.
        address: address of a Ray cluster, or `auto` for the one that this node belongs to; null stays on this machine:
            one worker runs in a process beside the driver, for more of them Ray is started.
        network_interface: the interface for the workers' own traffic (gloo, NCCL); null lets them choose.
        timeout_s: a worker that does not answer a call within this time counts as lost.
        heartbeat_s: so does one that shows no sign of life for this time.
        max_failures: how often a run may fail before it gives up.
        wait_s: how long to wait for room after a failure before going on with fewer workers.
        checkpoint_every: steps from one checkpoint to the next; 0 writes none.
        keep_checkpoints: how many of the latest checkpoints to keep.
        threads_per_worker: threads of each worker; null shares the cores out.
        resources: what one worker asks of Ray, e.g. `GPU: 1`.
    """

    num_workers: int = 1
    shard_size: int = 1
    offload: bool = False
    exchange: Exchange = Exchange.to_owner
    address: str | None = None
    network_interface: str | None = None
    timeout_s: float = 1800.0
    heartbeat_s: float = 60.0
    max_failures: int = 3
    wait_s: float = 60.0
    checkpoint_every: int = 25
    keep_checkpoints: int = 2
    threads_per_worker: int | None = None
    resources: dict[str, float] = field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from at_least("cluster.num_workers", self.num_workers, 1, "use 1 for a single process")
        yield from at_least("cluster.shard_size", self.shard_size, 1, "use 1 to keep the whole model on each worker")
        if self.shard_size >= 1 and self.num_workers % self.shard_size:
            whole = -(-self.num_workers // self.shard_size) * self.shard_size
            yield (
                f"cluster.num_workers={self.num_workers} must be a multiple of cluster.shard_size={self.shard_size}: "
                f"that many workers hold the model together; e.g. cluster.num_workers={whole}"
            )
        if self.offload and self.shard_size == 1:
            yield "cluster.offload=true must come with cluster.shard_size >= 2; it is shards that are offloaded"
        for key, value, usual in (("timeout_s", self.timeout_s, 1800), ("heartbeat_s", self.heartbeat_s, 60)):
            if not (math.isfinite(value) and value > 0):
                yield f"cluster.{key}={value} must be > 0 seconds; {usual} is usual"
        yield from at_least("cluster.max_failures", self.max_failures, 0, "use 0 to stop at the first failure")
        yield from at_least("cluster.wait_s", self.wait_s, 0.0, "use 0 to go on at once with what is left")
        yield from at_least("cluster.checkpoint_every", self.checkpoint_every, 0, "use 0 for no checkpoints")
        yield from at_least("cluster.keep_checkpoints", self.keep_checkpoints, 1, "2 is usual")
        yield from at_least("cluster.threads_per_worker", self.threads_per_worker, 1, "use null to share the cores")
        for key, amount in self.resources.items():
            yield from at_least(f"cluster.resources.{key}", amount, 0, "leave it out to ask for none")
            if 0 < amount < 1e-4:
                yield f"cluster.resources.{key}={amount} must be 0 or >= 0.0001; Ray counts no finer"
            if key in ("memory", "object_store_memory"):
                yield f"cluster.resources.{key}={amount} must be left out; ask for CPUs or GPUs in proportion instead"
            if key == "GPU" and amount != int(amount):
                yield f"cluster.resources.GPU={amount} must be a whole number: NCCL takes one process a GPU; use 1"


@dataclass(frozen=True)
class StoreConfig:
    """Where artifacts are published.

    Attributes:
        url: a folder, `file:///folder`, or a bucket: `s3://bucket/prefix`, `gs://`, `az://`, `abfs://`.
    """

    url: str = "eva-store"

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        if not self.url:
            yield "store.url='' must be a folder or a URL; e.g. store.url=file:///srv/eva"
        elif "://" in self.url and not (self.url.startswith("file:///") or is_store_url(self.url)):
            yield f"store.url={self.url} must be a folder, file:///, s3://, gs://, az:// or abfs://; use one of them"


@dataclass(frozen=True)
class ArtifactConfig:
    """Under what name the artifact is published.

    Attributes:
        repo_id: `namespace/name`; null makes it `local/<model>`.
        revision: name of the revision; null makes it of rho, tau, whiten and budget, e.g. `rho2.0-tau0.99`.
        overwrite: compute again although the store has an artifact of this fingerprint.
    """

    repo_id: str | None = None
    revision: str | None = None
    overwrite: bool = False

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        if self.repo_id is not None:
            parts = self.repo_id.split("/")
            if len(parts) != 2 or not all(is_plain_name(part) for part in parts):
                yield (
                    f"artifact.repo_id={self.repo_id} must be namespace/name in letters, digits, '-', '_', '.'; "
                    "e.g. team/my-model"
                )
        if self.revision is not None and not is_plain_name(self.revision):
            yield f"artifact.revision={self.revision} must be letters, digits, '-', '_', '.'; e.g. rho2.0-tau0.99"


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep shares its work (`hydra/launcher=shared_pass`); a single run does not heed it.

    Attributes:
        mode: what the points of the sweep share.
    """

    mode: SweepMode = SweepMode.exact

    def problems(self) -> Iterator[str]:
        """Yield nothing: every combination is possible."""
        yield from ()


@dataclass(frozen=True)
class Config:
    """All settings of one run, by group; `resume` stands alone.

    Attributes:
        resume: what to do with checkpoints of the same run.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eva: EvaConfig = field(default_factory=EvaConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    artifact: ArtifactConfig = field(default_factory=ArtifactConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    resume: Resume = Resume.auto

    def __post_init__(self) -> None:
        """Raise `ConfigError` with every complaint of every group."""
        groups = [getattr(self, name) for name in config_groups()]
        problems = [problem for group in groups for problem in group.problems()]
        if problems:
            raise ConfigError("\n".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (enums by name) that JSON can hold."""
        return {f.name: _plain_value(getattr(self, f.name)) for f in dataclasses.fields(self)}


def config_groups() -> dict[str, type]:
    """Return the groups of settings by name, in order."""
    return {name: group for name, group in get_type_hints(Config).items() if not issubclass(group, Enum)}


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain_value(getattr(value, f.name)) for f in dataclasses.fields(value) if _is_said(value, f)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def _is_said(settings: Any, setting: dataclasses.Field[Any]) -> bool:
    """Tell whether a setting is written down: nearly all are, some only if they are set."""
    return bool(getattr(settings, setting.name)) or "said_when_set" not in setting.metadata


def at_least(key: str, value: float | None, least: float, remedy: str) -> Iterator[str]:
    """Yield what is wrong with a setting that must not be less than `least`; None, where it may be so, is right."""
    if value is not None and not (math.isfinite(value) and value >= least):
        yield f"{key}={value} must be >= {least}; {remedy}"


def is_plain_name(name: str) -> bool:
    """Tell whether a name, or a part of one, is spelled as artifacts' names are."""
    return bool(name) and not name.startswith(".") and all(c.isalnum() or c in "-_." for c in name)


def _is_name_pattern(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(isinstance(item, str) and item for item in value)
    return value is None or (isinstance(value, str) and bool(value))
