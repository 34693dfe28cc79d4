"""The token rows of a step, group by group: forwards as few minibatches as the active groups need.

A *window* is what is forwarded together: the minibatches of one step, or of several where
one forward serves several steps. Rows of later steps are held until they are asked for.
A group's rows are handed over as soon as they are complete, in the middle of the forward:
where one forward makes up a step, a lone worker keeps no more than one layer's. Where a step
takes several forwards, or a forward serves several steps, the rows of all active groups are
kept until they are complete or asked for. Once every group has its rows the forward is cut
short. Workers that hold a model together forward equally often (`Lockstep`), and end together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eva_dist.data.stream import Window
from eva_dist.errors import LayerError
from eva_dist.modeling.taps import ForwardCut, SelectRows, collect_groups, concatenate, own_rows, tap_inputs
from eva_dist.plan import InputGroup

Take = Callable[[int, Tensor], None]

_ALL = 2**62
"""End of a span that takes every row of a minibatch."""


class WindowSource(Protocol):
    """Gives the window that holds a step."""

    def window(self, step: int) -> Window:
        """Return this worker's window that holds `step`; it may begin before it."""


class Forward(Protocol):
    """How a model meets its minibatches; the two faces (job, drop-in) differ only here."""

    @property
    def may_cut(self) -> bool:
        """Whether a forward may be left by an exception as soon as nothing more is needed."""

    def prepare(self, minibatch: Any) -> Any:
        """Return the minibatch as the other methods want it (on its device, laid out); done once."""

    def run(self, prepared: Any) -> None:
        """Forward one minibatch, with nothing computed that no tap needs."""

    def select(self, prepared: Any) -> SelectRows:
        """Return the function that picks this minibatch's token rows from a layer's input."""

    def counts(self, prepared: Any) -> Sequence[int]:
        """Return how many rows of each sample are picked; asked only of windows that have `places`."""


class Lockstep(Protocol):
    """Keeps workers that hold a model together in step: each forward gathers weights from all of them."""

    def forwards(self, mine: int) -> int:
        """Return how often this worker forwards for its `mine` minibatches of a window: at least as often."""

    def idle(self) -> None:
        """Take part in a forward without a minibatch."""

    def through(self, taps: Iterable[str]) -> AbstractContextManager[None]:
        """While open, forwards need reach these modules only."""


class Alone:
    """Lockstep of a worker that holds the whole model: it waits for nobody."""

    def forwards(self, mine: int) -> int:
        """Return `mine`."""
        return mine

    def idle(self) -> None:
        """Never called."""
        raise AssertionError("nobody waits for a forward of this worker")

    def through(self, taps: Iterable[str]) -> AbstractContextManager[None]:
        """Change nothing: the taps themselves cut the forward."""
        return nullcontext()


@dataclass(frozen=True)
class Probe:
    """What a first forward shows: layers by the input that they share, and how often a forward enters each.

    Attributes:
        groups: names of layers that receive the same input.
        calls: layer name to calls a forward; 0 where that is not known.
        dtypes: layer name to the dtype of its input.
    """

    groups: tuple[tuple[str, ...], ...]
    calls: Mapping[str, int]
    dtypes: Mapping[str, torch.dtype]

    def renamed(self, names: Mapping[str, str]) -> "Probe":
        """Return the same with every layer under another name."""
        return Probe(
            tuple(tuple(names[name] for name in group) for group in self.groups),
            {names[name]: count for name, count in self.calls.items()},
            {names[name]: dtype for name, dtype in self.dtypes.items()},
        )


def probe_inputs(model: nn.Module, layers: Sequence[str], forward: Forward, minibatches: Iterable[Any]) -> Probe:
    """Partition `layers` (names in `model`) by the input they receive.

    Forwards one minibatch, and the next ones only while some layer has seen no token
    (everything masked, an expert that nothing was routed to).
    """
    forwards = 0
    with torch.no_grad(), collect_groups(model, layers) as groups:
        for minibatch in minibatches:
            prepared = forward.prepare(minibatch)
            groups.select = forward.select(prepared)
            forward.run(prepared)
            forwards += 1
            if groups.complete:
                break
    calls = {name: count if forwards == 1 and forward.may_cut else 0 for name, count in groups.calls.items()}
    return Probe(tuple(tuple(group) for group in groups.names()), calls, groups.dtypes)


@dataclass(frozen=True)
class Tap:
    """Where an input group's rows come from: a module of the model, entered `calls` times a forward (0: not known)."""

    name: str
    in_features: int
    calls: int
    dtype: torch.dtype


def make_taps(groups: Sequence[InputGroup], probe: Probe, names: Mapping[str, str]) -> dict[int, Tap]:
    """Return the tap of each input group; `names` maps layer names of the plan to those in the model."""
    return {
        group.index: Tap(names[group.tap], group.in_features, probe.calls[group.tap], probe.dtypes[group.tap])
        for group in groups
    }


@dataclass
class RowFeed:
    """Forwards windows of a source and hands over rows.

    `consumed_at_once` says that whoever takes rows is done with them when the call returns;
    only then may they be views of what the model works with.
    """

    model: nn.Module
    forward: Forward
    source: WindowSource
    taps: Mapping[int, Tap]
    device: torch.device
    consumed_at_once: bool = False
    lockstep: Lockstep = field(default_factory=Alone)
    _window: Window | None = None
    _held: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def rows(self, step: int, active: Sequence[int], take: Take) -> tuple[int, bool]:
        """Hand over this worker's rows of a step for each active group, `take(group, x_TD)`, none included.

        Returns:
            How often the data has been used up when the step ends, and whether it is at an end.
        """
        if self._window is None or step not in self._window.steps:
            self._window, self._held = self.source.window(step), {}
        window = self._window
        held = self._held.pop(step, {})
        # A group that thawed since the window was forwarded was not tapped then.
        missing = [group for group in active if group not in held]
        if missing:
            self._forward_window(window, step, missing, take)
        for group in active:
            if group in held:
                take(group, held.pop(group))
        return window.epochs[step - window.steps.start], window.exhausted

    def _forward_window(self, window: Window, step: int, groups: Sequence[int], take: Take) -> None:
        """Forward a window and hand over the rows of `step`; hold those of the steps after it."""
        prepared = [self.forward.prepare(minibatch) for minibatch in window.minibatches]
        # a window may hold several steps, and a minibatch samples of each: which rows belong to which step
        spans = _locate_steps(window, [self.forward.counts(p) for p in prepared] if window.places is not None else None)
        # rows may be views of the model's own memory only if nobody holds them beyond the hook that sees them
        whole = len(prepared) == 1 and len(window.steps) == 1

        def deliver(group: int, calls: Sequence[Sequence[Tensor]]) -> None:
            # one forward has brought the rows of all later steps of the window, too; those before are done with
            for at in window.steps[window.steps.index(step) :]:
                rows_TD = self._join(group, [call[start:end] for m, start, end in spans[at] for call in calls[m]])
                if at == step:
                    take(group, rows_TD)
                else:
                    self._held.setdefault(at, {})[group] = rows_TD

        collected = _Collected({g: self.taps[g] for g in groups}, deliver, len(prepared), self.forward.may_cut)
        collected.views = whole and self.consumed_at_once
        by_name = {self.taps[group].name: group for group in groups}
        # with a sharded model every worker of the group gathers weights in each forward, so all forward equally often
        with torch.no_grad(), self.lockstep.through(by_name):
            forwards = self.lockstep.forwards(len(prepared))
            for minibatch in prepared:
                collected.select = self.forward.select(minibatch)
                collected.next_minibatch()
                try:
                    with tap_inputs(self.model, by_name, lambda name, args: collected.add(by_name[name], name, args)):
                        self.forward.run(minibatch)
                # the last tap has its rows: nothing that runs after it is needed
                except ForwardCut:
                    pass
            for _ in range(len(prepared), forwards):
                self.lockstep.idle()
        # some taps were entered less often than in the first forward, e.g. experts that no token was routed to
        collected.finish()

    def _join(self, group: int, parts: Sequence[Tensor]) -> Tensor:
        """Return rows in order: a view if there is one part, an empty tensor if there is none."""
        tap = self.taps[group]
        return concatenate(parts, tap.in_features, tap.dtype, self.device)


class _Collected:
    """The rows of a window under way, by group, minibatch and call."""

    select: SelectRows
    views = False

    def __init__(
        self,
        taps: Mapping[int, Tap],
        deliver: Callable[[int, Sequence[Sequence[Tensor]]], None],
        minibatches: int,
        may_cut: bool,
    ) -> None:
        self._taps, self._deliver, self._minibatches, self._may_cut = taps, deliver, minibatches, may_cut
        self._rows: dict[int, list[list[Tensor]]] = {group: [] for group in taps}
        self._lacking: set[int] = set()

    def next_minibatch(self) -> None:
        """Begin the next minibatch."""
        for calls in self._rows.values():
            calls.append([])
        self._lacking = set(self._taps)

    def add(self, group: int, name: str, arguments: Any) -> None:
        """Add what entered a tap; deliver the group if this completes it; cut the forward if it was the last."""
        # calls counts entries of the first forward; 0 says that it varies, and only the end of the forward settles it
        known = self._taps[group].calls
        if known and group not in self._lacking:
            raise LayerError(
                f"layer {name} was entered more often than the {known} times of the first forward; leave it out with "
                "exclude_modules, or use eva_dist.get_eva_state_dict with your own forward_fn"
            )
        rows = self.select(arguments, name)
        single = self.views and known == 1
        self._rows[group][-1].append(rows.detach() if single else own_rows(rows, arguments))
        if known and len(self._rows[group][-1]) == known:
            self._lacking.discard(group)
            if len(self._rows[group]) == self._minibatches:
                self._deliver(group, self._rows.pop(group))
            if self._may_cut and not self._lacking:
                raise ForwardCut

    def finish(self) -> None:
        """Deliver the groups whose calls were not known, or fewer than known: an expert that no token reached."""
        for group in list(self._rows):
            self._deliver(group, self._rows.pop(group))


def _locate_steps(window: Window, counts: Sequence[Sequence[int]] | None) -> dict[int, list[tuple[int, int, int]]]:
    """Return for each step, in sample order, where its rows lie: (minibatch, first row, end)."""
    if window.places is None:
        (step,) = window.steps
        return {step: [(m, 0, _ALL) for m in range(len(window.minibatches))]}
    assert counts is not None
    found: dict[int, list[tuple[int, int, int, int]]] = {step: [] for step in window.steps}
    for m, places in enumerate(window.places):
        start = 0
        for (step, place), count in zip(places, counts[m], strict=True):
            found[step].append((place, m, start, start + count))
            start += count
    return {step: _join([span[1:] for span in sorted(spans)]) for step, spans in found.items()}


def _join(spans: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Join spans that lie side by side."""
    joined: list[tuple[int, int, int]] = []
    for m, start, end in spans:
        if joined and joined[-1][0] == m and joined[-1][2] == start:
            joined[-1] = (m, joined[-1][1], end)
        else:
            joined.append((m, start, end))
    return joined
