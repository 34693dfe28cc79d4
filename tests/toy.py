"""A model of four layers, a forward that counts, and windows by hand: what feed and engine need of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eva_dist.calibration.layer_inputs import RowFeed, make_taps, probe_inputs
from eva_dist.data import Window
from eva_dist.plan import InputGroup, Plan, make_layer, make_plan

D, R = 12, 2
LAYERS = ("q", "k", "o", "expert")


class Block(nn.Module):
    """q and k share an input, o has another, the expert sees the rows above a threshold in feature 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o, self.expert = (nn.Linear(D, D) for _ in range(4))
        self.threshold = -10.0

    def forward(self, x_TD):
        self.expert(x_TD[x_TD[:, 0] > self.threshold])
        return self.o(torch.relu(self.q(x_TD) + self.k(x_TD)))


@dataclass
class Plainly:
    """A minibatch is `[T, D]`, or samples of as many rows as `lengths` says; every row counts."""

    model: nn.Module
    may_cut: bool = True
    forwarded: int = 0

    def prepare(self, minibatch):
        return minibatch

    def run(self, prepared):
        self.forwarded += 1
        self.model(prepared if isinstance(prepared, Tensor) else torch.cat(prepared))

    def select(self, prepared):
        return lambda arguments, name: arguments[0]

    def counts(self, prepared):
        return [len(sample) for sample in prepared]


@dataclass
class Steps:
    """A source: windows by their first step, as they were put in; counts how often it was asked."""

    windows: Mapping[int, Window] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def window(self, step: int) -> Window:
        self.asked.append(step)
        return self.windows[step]

    @classmethod
    def one_by_one(cls, steps: Mapping[int, Sequence[Any]]) -> "Steps":
        """Each step a window of its own; all rows of its minibatches in order."""
        return cls({at: Window(range(at, at + 1), tuple(some), None, (0,)) for at, some in steps.items()})


def minibatch(step: int, rows: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, D, generator=generator) * torch.arange(1, D + 1) ** -1.0 + 0.5


def toy_plan() -> Plan:
    return make_plan([make_layer(name, D, D, R, 2.0) for name in LAYERS], [["q", "k"], ["o"], ["expert"]])


def toy_feed(source: Any, forward: Plainly | None = None, groups: Sequence[InputGroup] = (), **options: Any) -> RowFeed:
    """A feed of the toy's groups, probed by a minibatch that reaches every layer."""
    forward = forward or Plainly(Block())
    probe = probe_inputs(forward.model, LAYERS, Plainly(forward.model, forward.may_cut), [minibatch(99)])
    taps = make_taps(groups or toy_plan().groups, probe, {name: name for name in LAYERS})
    return RowFeed(forward.model, forward, source, taps, torch.device("cpu"), **options)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
