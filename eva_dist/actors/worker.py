"""One Ray actor: a shell around the engine that joins the process group and loads the model."""

import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import ray
import torch
from torch import nn

from eva_dist.config import Config, Task
from eva_dist.controller import StepDecision, StepReport
from eva_dist.data import TokenStream, open_rows
from eva_dist.distributed.exchange import AllGatherExchange, LocalExchange
from eva_dist.distributed.process_group import free_address, process_group
from eva_dist.engine import GroupSvd, Worker, collect_components, find_input_groups, make_trackers, run_step
from eva_dist.errors import DataError
from eva_dist.modeling.forward import TokenForward
from eva_dist.modeling.load import load_model, load_tokenizer
from eva_dist.numerics.components import Components
from eva_dist.plan import Layer, Plan

_PROBE_STEPS = 8


@dataclass(frozen=True)
class Assignment:
    """What every worker of a run is told: all of it plain data.

    `prefix` is what layer names in the base model have before their names in the loaded model.
    """

    config: Config
    task: Task
    prefix: str
    layers: tuple[Layer, ...]
    data_digest: str
    threads: int

    @property
    def names(self) -> dict[str, str]:
        """Layer names of the plan to those in the loaded model."""
        return {layer.name: layer.name.removeprefix(self.prefix) for layer in self.layers}


class GangWorker:
    """Methods are called by the driver, one at a time, on all members alike; see `Gang` for the order."""

    def __init__(self, assignment: Assignment, global_rank: int, world_size: int) -> None:
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format=f"[global_rank {global_rank}] %(levelname)s %(message)s"
        )
        torch.set_num_threads(assignment.threads)
        self._assignment = assignment
        self._global_rank = global_rank
        self._world_size = world_size
        self._device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
        self._open = ExitStack()
        self._svds: dict[int, GroupSvd] = {}

    def address(self) -> str:
        """Return where the gang meets; asked of `global_rank` 0."""
        return free_address(ray.util.get_node_ip_address())

    def join(self, address: str) -> None:
        """Join the process group."""
        timeout_s = self._assignment.config.cluster.timeout_s
        self._open.enter_context(process_group(address, self._global_rank, self._world_size, self._device, timeout_s))

    def load(self) -> None:
        """Load model, tokenizer and data.

        Raises:
            DataError: this node reads other data than the driver.
        """
        assignment, config = self._assignment, self._assignment.config
        rows = open_rows(config.data)
        if rows.digest != assignment.data_digest:
            raise DataError(
                f"data.path={config.data.path} reads differently on the node of global_rank {self._global_rank} "
                "than on the driver's; put the same files on every node, or use a shared folder"
            )
        tokenizer = load_tokenizer(config.model)
        self._stream = TokenStream(rows, tokenizer, config.data, config.eva.label_mask_value)
        self._model: nn.Module = load_model(config.model, assignment.task, assignment.prefix, self._device)
        self._forward = TokenForward(self._device, config.eva.use_label_mask, config.eva.label_mask_value)

    def find_input_groups(self) -> list[list[str]]:
        """Forward a minibatch (more if some layer sees no token) and return which layers share their input."""
        in_base = {name: layer for layer, name in self._assignment.names.items()}
        minibatches = (m for step in range(_PROBE_STEPS) for m in self._stream.step(step).minibatches)
        groups = find_input_groups(self._model, list(in_base), self._forward, minibatches)
        return [[in_base[name] for name in group] for group in groups]

    def begin(self, plan: Plan) -> None:
        """Take the plan and make the trackers."""
        parameter = next(p for p in self._model.parameters() if p.is_floating_point())
        self._worker = Worker(
            model=self._model,
            plan=plan,
            forward=self._forward,
            exchange=LocalExchange() if self._world_size == 1 else AllGatherExchange(),
            trackers=make_trackers(self._assignment.config.solver, plan.owned_by(self._global_rank)),
            names=self._assignment.names,
            dtype=parameter.dtype,
            device=self._device,
        )

    def step(self, decision: StepDecision) -> StepReport:
        """Run one step."""
        data = self._stream.step(decision.step, self._global_rank, self._world_size)
        report, self._svds = run_step(self._worker, decision, data, self._svds)
        return report

    def components(self) -> dict[int, Components]:
        """Return the components of the groups that this worker owns."""
        return collect_components(self._svds)

    def leave(self) -> None:
        """Leave the process group in good order."""
        self._open.close()
