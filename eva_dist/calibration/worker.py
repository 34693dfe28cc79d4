"""One worker's run, from its assignment to the components that it owns: the steps in order, no ray.

A driver calls the methods of all workers alike; what it asks of the first shard group alone
(`probe`) it hands to all of them (`begin`), so that nothing is found out twice, and nobody
comes to another conclusion.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eva_dist.calibration.controller import Method, PointState, StepDecision, StepReport, first_state
from eva_dist.calibration.engine import PassContext, run_step
from eva_dist.calibration.group_svds import (
    GroupSvd,
    Svds,
    collect_components,
    collect_covariance,
    give,
    make_trackers,
    receive,
    restore,
    rows_at_once,
)
from eva_dist.calibration.layer_inputs import Alone, Probe, RowFeed, make_taps, probe_inputs
from eva_dist.calibration.lockstep import keep_in_step
from eva_dist.config import Budget, Config, Exchange, SweepMode, Task
from eva_dist.data import Batching, TokenStream, WorkerStream, open_rows
from eva_dist.distributed.exchange import AllGatherExchange, LocalExchange, RowExchange, ToOwnerExchange
from eva_dist.distributed.process_group import process_group, shard_mesh
from eva_dist.errors import DataError
from eva_dist.modeling.forward import TokenForward, Trunk, find_layout
from eva_dist.modeling.load import load_model, load_tokenizer
from eva_dist.modeling.packing import Layout, attention_by_segment
from eva_dist.modeling.shard import Sharding
from eva_dist.numerics.components import Components
from eva_dist.plan import Layer, PassPlan, Plan, among, make_plan, share

_PROBE_STEPS = 8


@dataclass(frozen=True)
class PointAssignment:
    """One point of a pass: its layers with their ranks, in model order, and when it ends.

    `key` names what decides its numbers; a checkpoint knows it by that.
    """

    key: str
    layers: tuple[Layer, ...]
    budget: Budget
    method: Method
    max_steps: int
    accept: bool

    def plan(self, same_input: Sequence[Sequence[str]], world_size: int) -> Plan:
        """Return what this point plans on its own; input groups of the stream lose the layers that it leaves out."""
        return make_plan(self.layers, among(self.layers, same_input), world_size, budget=self.budget)


@dataclass(frozen=True)
class Assignment:
    """What every worker of a pass is told: all of it plain data.

    `config` is that of any point, for all share what workers heed of it. `layers` are those of the stream, in
    model order: at least those of every point. `prefix` is what layer names in the base model have before their
    names in the loaded model.
    """

    config: Config
    task: Task
    prefix: str
    layers: tuple[Layer, ...]
    points: tuple[PointAssignment, ...]
    data_digest: str
    tools_digest: str | None = None

    def plan(self, same_input: Sequence[Sequence[str]], world_size: int) -> PassPlan:
        """Return what the pass will do, from the input groups of a first forward."""
        plans = [point.plan(same_input, world_size) for point in self.points]
        keys = [point.key for point in self.points]
        stream = make_plan(self.layers, same_input, world_size).groups
        return share(plans, world_size, stream, keys, self.config.sweep.mode is SweepMode.shared_tracker)

    def begin(self, plan: PassPlan) -> list[PointState]:
        """Return the points before their first step."""
        return [
            first_state(own, point.method, point.max_steps, point.accept)
            for own, point in zip(plan.points, self.points, strict=True)
        ]

    @property
    def names(self) -> dict[str, str]:
        """Layer names of the plan to those in the loaded model."""
        return {layer.name: layer.name.removeprefix(self.prefix) for layer in self.layers}


class Worker:
    """Methods are called one at a time, in the order in which they stand here."""

    def __init__(self, assignment: Assignment, global_rank: int, world_size: int, device: torch.device) -> None:
        self._assignment = assignment
        self._global_rank = global_rank
        self._world_size = world_size
        self._device = device
        self._open = ExitStack()
        self.svds: Svds = {}

    def join(self, address: str) -> None:
        """Join the process group."""
        self.on_phase("join")
        timeout_s = self._assignment.config.cluster.timeout_s
        self._open.enter_context(process_group(address, self._global_rank, self._world_size, self._device, timeout_s))

    def load(self) -> None:
        """Load model, tokenizer and data.

        Raises:
            DataError: this node reads other data than the driver.
        """
        self.on_phase("load")
        assignment, config = self._assignment, self._assignment.config
        rows = open_rows(config.data)
        # workers that read other data would report statistics of a mixture, and nothing would show it
        same_tools = assignment.tools_digest in (None, rows.tools_digest)  # None: the template is handed none
        if rows.digest != assignment.data_digest or not same_tools:
            raise DataError(
                f"data.path={config.data.path} reads differently on the node of global_rank {self._global_rank} "
                "than on the driver's; put the same files on every node, or use a shared folder"
            )
        tokenizer = load_tokenizer(config.model)
        label_mask_value = config.eva.label_mask_value if config.eva.use_label_mask else None
        stream = TokenStream(rows, tokenizer, config.data, label_mask_value)
        batching = Batching.choose(config.data, self._device.type, self._world_size)
        self.source = WorkerStream(stream, batching, self._global_rank, self._world_size)
        sharding = self._make_sharding()
        self.model: nn.Module = load_model(config.model, assignment.task, assignment.prefix, self._device, sharding)
        self.forward = TokenForward(
            Trunk(self.model), self._device, config.eva.use_label_mask, config.eva.label_mask_value
        )
        # asked before anything is tapped: it forwards, and all of the shard group must forward with it
        self._lockstep = keep_in_step(self.forward, assignment.names.values(), sharding.mesh) if sharding else None

    def probe(self) -> tuple[Probe, Layout]:
        """Find out how minibatches can be laid out and, by a first forward, which layers share their input.

        A sharded model is forwarded by its whole shard group: all of it calls this, and finds the same.
        """
        self.on_phase("probe")
        in_base = {name: layer for layer, name in self._assignment.names.items()}
        alone = replace(self.source, global_rank=0, world_size=1, batching=replace(self.source.batching, steps=1))
        minibatches: Iterator[dict[str, Tensor]] = (
            m for step in range(_PROBE_STEPS) for m in alone.window(step).minibatches
        )
        layout = Layout.padded
        if first := next(minibatches, None):
            longest = self.source.longest_row
            all_agree = self._lockstep.all_agree if self._lockstep else bool
            layout = find_layout(self.model, list(in_base), self.forward, first, longest, all_agree)
            minibatches = itertools.chain([first], minibatches)
        forward = replace(self.forward, layout=layout)
        with attention_by_segment(self.model, layout is Layout.segments):
            return probe_inputs(self.model, list(in_base), forward, minibatches).renamed(in_base), layout

    def begin(self, plan: PassPlan, probe: Probe, layout: Layout) -> None:
        """Take the plan and what the probe found."""
        self._open.enter_context(attention_by_segment(self.model, layout is Layout.segments))
        exchange, forward = self._make_exchange(), replace(self.forward, layout=layout)
        feed = RowFeed(
            model=self.model,
            forward=forward,
            source=self.source,
            taps=make_taps(plan.groups, probe, self._assignment.names),
            device=self._device,
            consumed_at_once=exchange.is_local and rows_at_once(self._device) == 0,
            lockstep=replace(self._lockstep, forward=forward) if self._lockstep else Alone(),
        )
        trackers = make_trackers(self._assignment.config.solver, plan)
        self.context = PassContext(plan, feed, exchange, trackers, self.on_phase)

    def step(self, decision: StepDecision) -> StepReport:
        """Run one step."""
        report = run_step(self.context, decision, self.svds)
        self.on_phase("idle")
        return replace(report, unlabelled=self.source.unlabelled(decision.step))

    def give(self, groups: tuple[int, ...]) -> Svds:
        """Part with the SVDs of these groups, those that are kept here."""
        return give(self.svds, groups)

    def receive(self, svds: Mapping[int, Mapping[int, GroupSvd]]) -> None:
        """Keep these SVDs from now on."""
        receive(self.svds, svds, self._device)

    def restore(self, group: int, tensors: Mapping[str, Tensor], points: Mapping[int, int]) -> None:
        """Keep a group's SVDs from now on, as a checkpoint holds them; `points` maps those of then to those of now."""
        self.svds[group] = restore(self.context.trackers[group], self._device, tensors, points)

    def components(self, point: int = 0) -> dict[int, Components]:
        """Return a point's components of the groups that this worker owns."""
        return collect_components(self.context.plan, self.svds, point)

    def covariance(self, point: int, own_group: int) -> dict[str, Tensor]:
        """Return what was summed up of one of a point's own groups, which this worker owns: `solver=covariance`."""
        return collect_covariance(self.context.plan, self.svds, point, own_group)

    def leave(self) -> None:
        """Leave the process group in good order."""
        self._open.close()

    def on_phase(self, phase: str) -> None:
        """Be told what is about to be done: join, load, probe; forward, exchange, svd; idle."""

    def _make_sharding(self) -> Sharding | None:
        """Return over whom the model is sharded; None if each worker holds all of it."""
        cluster = self._assignment.config.cluster
        if cluster.shard_size == 1:
            return None
        return Sharding(shard_mesh(cluster.shard_size, self._device, cluster.timeout_s), self._device, cluster.offload)

    def _make_exchange(self) -> RowExchange:
        if self._world_size == 1:
            return LocalExchange()
        return (
            AllGatherExchange()
            if self._assignment.config.cluster.exchange is Exchange.all_gather
            else ToOwnerExchange()
        )
