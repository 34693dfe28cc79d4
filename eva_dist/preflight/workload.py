"""What a step is on a given cluster: how it is forwarded, who owns what, what is computed and sent.

Everything follows from a forward on the meta device (`modeling/trace.py`), the plan, and the
trackers' own costs; samples are taken to be equally long. Only seconds need an accelerator's figures.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from eva_dist.calibration.group_svds import make_tracker, rows_at_once
from eva_dist.config import ClusterConfig, Config, DataConfig, Dtype, Exchange
from eva_dist.data import Batching
from eva_dist.modeling.load import Architecture, loaded_on_meta
from eva_dist.modeling.peft_rules import lora_config, resolve_targets
from eva_dist.modeling.trace import Traced, trace_forward
from eva_dist.numerics.tracker import UpdateCost
from eva_dist.plan import InputGroup, make_plan
from eva_dist.preflight.accelerator import Accelerator, Rates


@dataclass(frozen=True)
class StepFacts:
    """How a step is forwarded; `tokens` is the most that it may have, `forwards` counts those of one worker."""

    workers: int
    shard_size: int
    samples: int
    tokens: int
    tokens_of_worker: int
    forwards: float
    layout: str


@dataclass(frozen=True)
class WorkFacts:
    """Of all workers together: operations and bytes; `forward_operations` include attention's."""

    forward_operations: int
    attention_operations: int
    svd_operations: int
    exchanged_bytes: int
    gathered_bytes: int


@dataclass(frozen=True)
class SecondsFacts:
    """Of the slowest worker; `step` counts what gathering takes beyond the forward that it runs beside."""

    forward: float
    gather: float
    exchange: float
    svd: float
    step: float
    max_steps: float


class Subject:
    """A model and settings, apart from the cluster; forwards are traced once for each size."""

    def __init__(
        self, config: Config, architecture: Architecture, accelerator: Accelerator, step_tokens: float | None
    ) -> None:
        self.config, self.accelerator, self._architecture = config, accelerator, architecture
        self.layers = resolve_targets(architecture.skeleton, lora_config(config.eva, architecture.task.value)).layers
        self.prefix = architecture.prefix([layer.name for layer in self.layers])
        self.length = math.ceil(step_tokens / config.data.step_size) if step_tokens else config.data.max_length
        self.model = loaded_on_meta(architecture, config.model.dtype, self.prefix)
        self.dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        self._traces: dict[int, Traced | None] = {}

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of what is loaded."""
        return tensor_bytes(self.model)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of the largest block: what is gathered at once when the model is sharded."""
        blocks = [tensor_bytes(b) for m in self.model.modules() if isinstance(m, nn.ModuleList) for b in m]
        return max(blocks, default=self.weight_bytes)

    @cached_property
    def embedding_bytes(self) -> int:
        """Bytes of the input embedding, the other large part."""
        find = getattr(self.model, "get_input_embeddings", lambda: None)
        embedding = find()
        return tensor_bytes(embedding) if isinstance(embedding, nn.Module) else 0

    def traced(self, samples: int) -> Traced | None:
        """Return the trace of a forward of so many samples."""
        if samples not in self._traces:
            names = [layer.name.removeprefix(self.prefix) for layer in self.layers]
            found = trace_forward(self.model, names, samples, self.length)
            if found is None and self.dtype is torch.float32:
                # some kernels exist in bfloat16 only where there are no numbers
                half = loaded_on_meta(self._architecture, Dtype.bfloat16, self.prefix)
                found = _doubled_layers(trace_forward(half, names, samples, self.length))
            self._traces[samples] = found
        return self._traces[samples]


class Case:
    """A subject on a cluster, forwarded as `data.batch_size` says: what a step takes there."""

    def __init__(self, subject: Subject, cluster: ClusterConfig, data: DataConfig) -> None:
        self.subject, self.cluster, self.data = subject, cluster, data
        self.workers = workers = cluster.num_workers
        size = data.step_size
        self.shares = [size * (i + 1) // workers - size * i // workers for i in range(workers)]
        batching = Batching.choose(data, subject.accelerator.device, workers)
        window = max(self.shares) * batching.steps
        most = max(1, batching.tokens // subject.length)
        self.per_forward = min(window, batching.samples or window, most)
        self.steps_at_once = batching.steps
        self.forwards = math.ceil(window / self.per_forward) / batching.steps
        self.tokens = size * subject.length
        self.traced = subject.traced(self.per_forward)
        same_input = [[layer.name] for layer in subject.layers]
        if self.traced is not None:
            same_input = [[subject.prefix + name for name in names] for names in self.traced.groups]
        self.plan = make_plan(subject.layers, same_input, workers, budget=subject.config.eva.budget)

    @cached_property
    def step(self) -> StepFacts:
        """How a step is forwarded."""
        return StepFacts(
            workers=self.workers,
            shard_size=self.cluster.shard_size,
            samples=self.data.step_size,
            tokens=self.tokens,
            tokens_of_worker=max(self.shares) * self.subject.length,
            forwards=self.forwards,
            layout=self.traced.layout if self.traced else "unknown",
        )

    def row_bytes(self, groups: Sequence[InputGroup]) -> int:
        """Return the bytes of one token's rows of these groups."""
        return sum(group.in_features * self.number_bytes(group) for group in groups)

    def number_bytes(self, group: InputGroup) -> int:
        """Return the bytes of one number of a group's rows."""
        if self.traced is None:
            return self.subject.dtype.itemsize
        return self.traced.number_bytes[group.tap.removeprefix(self.subject.prefix)]

    def together(self, group: InputGroup) -> int:
        """Return how many groups like this one its owner updates at once."""
        alike = sum(other.in_features == group.in_features for other in self.plan.owned_by(group.owner))
        at_once = rows_at_once(torch.device(self.subject.accelerator.device))
        return min(alike, max(1, -(-at_once // (self.tokens * self.row_bytes([group])))))

    def update_cost(self, group: InputGroup, together: int = 1) -> UpdateCost:
        """Return what updates of groups like this one cost."""
        tracker = make_tracker(self.subject.config.solver, group.n_components)
        device = self.subject.accelerator.device
        return tracker.cost(self.tokens, group.in_features, self.number_bytes(group), together, device)

    @cached_property
    def most_loaded(self) -> int:
        """The worker whose trackers are largest."""
        held = Counter({rank: 0 for rank in range(self.workers)})
        for group in self.plan.groups:
            held[group.owner] += self.update_cost(group).state_bytes
        return max(held, key=lambda rank: (held[rank], -rank))

    @cached_property
    def work(self) -> WorkFacts:
        """Work and traffic of all workers."""
        samples, size = self.per_forward, self.data.step_size
        parameters = sum(p.numel() for p in self.subject.model.parameters())
        forward = self.traced.operations if self.traced else 2 * parameters * samples * self.subject.length
        attention = self.traced.attention_operations if self.traced else 0
        costs = [self.update_cost(group) for group in self.plan.groups]
        return WorkFacts(
            forward_operations=forward * size // samples,
            attention_operations=attention * size // samples,
            svd_operations=sum(cost.float32_operations + cost.float64_operations for cost in costs),
            exchanged_bytes=sum(self.sent(rank) for rank in range(self.workers)),
            gathered_bytes=self.gathered_by_one * self.workers,
        )

    @property
    def gathered_by_one(self) -> int:
        """Bytes of weights that a worker receives from its shard group."""
        size = self.cluster.shard_size
        return int(self.forwards * self.subject.weight_bytes * (size - 1) / size)

    def sent(self, rank: int) -> int:
        """Return the bytes of rows that a worker sends; all_gather pads to the longest worker's."""
        if self.workers == 1:
            return 0
        if self.cluster.exchange is Exchange.all_gather:
            return max(self.shares) * self.subject.length * self.row_bytes(self.plan.groups) * (self.workers - 1)
        others = [group for group in self.plan.groups if group.owner != rank]
        return self.shares[rank] * self.subject.length * self.row_bytes(others)

    def received(self, rank: int) -> int:
        """Return the bytes of rows that a worker receives."""
        if self.workers == 1 or self.cluster.exchange is Exchange.all_gather:
            return self.sent(rank)
        samples = sum(self.shares) - self.shares[rank]
        return samples * self.subject.length * self.row_bytes(self.plan.owned_by(rank))

    def seconds(self, max_steps: int) -> SecondsFacts:
        """Return seconds of the slowest worker, by the accelerator's figures."""
        rates = Rates.of(self.subject.accelerator, self.subject.dtype)
        share = max(self.shares) / self.data.step_size
        operations = int(self.work.forward_operations * share)
        traced = self.traced
        moved = (traced.product_bytes, traced.other_bytes) if traced else (self.subject.weight_bytes, 0)
        forward = rates.forward_seconds(operations, *(int(self.forwards * each) for each in moved))
        # replicas are spread over the nodes; only the workers of one shard group share one for certain
        link = rates.node if self.workers == self.cluster.shard_size else rates.network
        exchange = max(max(self.sent(rank), self.received(rank)) for rank in range(self.workers)) / link
        gather = self.gathered_by_one / rates.node
        if self.cluster.offload:
            gather = max(gather, self.forwards * self.subject.weight_bytes / self.cluster.shard_size / rates.host)
        svd = max(
            sum(
                rates.update_seconds(self.update_cost(group, together)) / together
                for group in self.plan.owned_by(rank)
                for together in [self.together(group)]
            )
            for rank in range(self.workers)
        )
        step = max(forward, gather) + exchange + svd
        return SecondsFacts(forward, gather, exchange, svd, step, step * max_steps)


def tensor_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers, those that are shared counted once."""
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def _doubled_layers(traced: Traced | None) -> Traced | None:
    """Return a trace in half precision as if in float32."""
    if traced is None:
        return None
    return replace(
        traced,
        peak_bytes=2 * traced.peak_bytes,
        live_bytes={name: 2 * live for name, live in traced.live_bytes.items()},
        number_bytes={name: 2 * size for name, size in traced.number_bytes.items()},
        product_bytes=2 * traced.product_bytes,
        other_bytes=2 * traced.other_bytes,
    )
