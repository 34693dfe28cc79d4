"""What a pass will do, fixed before its first step: layers, input groups, budget, owners.

PEFT's rules hold (peft 0.21, `tuners/lora/eva.py`): a layer's `r` is `eva.r` unless
`rank_pattern` names it; the budget is the sum of `r` over every target, members of an
input group included; the members of an input group share the largest of their
maximum ranks, for one SVD serves them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eva_dist.config import Budget
from eva_dist.errors import LayerError

_RHO_CEILING = 1000.0
"""Above it PEFT caps the maximum rank by the model's largest dimension; here `in_features` caps it always."""


@dataclass(frozen=True)
class Layer:
    """One target module. `name` is qualified in the model it was resolved on; `max_rank = round(r * rho)`.

    `transposed` says that the weight is stored `[in_features, out_features]` (`Conv1D`).
    """

    name: str
    in_features: int
    out_features: int
    r: int
    max_rank: int
    transposed: bool = False

    @property
    def parameters_per_rank(self) -> int:
        """LoRA parameters that one rank takes: a row of A and a column of B."""
        return self.in_features + self.out_features


@dataclass(frozen=True)
class InputGroup:
    """Layers that receive the same input: one SVD of `n_components` serves them all.

    `members` is in model order; the first one carries the tap. `owner` is the
    `global_rank` of the worker that keeps the SVD state.
    """

    index: int
    members: tuple[str, ...]
    in_features: int
    n_components: int
    owner: int

    @property
    def tap(self) -> str:
        """Name of the layer whose input is tapped."""
        return self.members[0]

    @property
    def cost(self) -> int:
        """What the group's SVD update costs, next to that of other groups."""
        return self.in_features * self.n_components


@dataclass(frozen=True)
class Plan:
    """Layers in model order, their input groups, and what to hand out: `rank_budget`, or `parameter_budget`.

    `budget` says which of the two holds; both are those of the uniform adapter, each layer at its `r`.
    """

    layers: tuple[Layer, ...]
    groups: tuple[InputGroup, ...]
    rank_budget: int
    budget: Budget = Budget.ranks

    @property
    def parameter_budget(self) -> int:
        """LoRA parameters of the uniform adapter: the sum over layers of `r * (in_features + out_features)`.

        They can always be spent: the most that a layer may take (`max_ranks`) is `r` at least, so all that the layers
        may take costs the budget at least. Where it costs no more (`rho` = 1, and one `r` within each input group),
        everything is taken: that is the uniform adapter. With `rho` near 1 cheap layers are soon full, and what they
        cannot take goes to dearer ones.
        """
        return self.parameters({layer.name: layer.r for layer in self.layers})

    def parameters(self, ranks: Mapping[str, int]) -> int:
        """Return the LoRA parameters, of A and B together, of an adapter whose layers have these ranks."""
        return sum(ranks[layer.name] * layer.parameters_per_rank for layer in self.layers)

    def owned_by(self, global_rank: int) -> tuple[InputGroup, ...]:
        """Return the input groups whose SVD state `global_rank` keeps."""
        return tuple(group for group in self.groups if group.owner == global_rank)

    def max_ranks(self) -> dict[str, int]:
        """Return the most components each layer can get, by layer name in model order."""
        by_name = {name: group.n_components for group in self.groups for name in group.members}
        return {layer.name: by_name[layer.name] for layer in self.layers}


@dataclass(frozen=True)
class PassPlan:
    """Points that one stream of forwards serves; a run of its own is a pass of one point.

    Attributes:
        groups: the stream's input groups, each with the most components that any point has of it, and its owner.
        points: what each point would plan on its own.
        own_group: for each point, the stream's index of an input group to the point's own index of it.
        keys: of each point, what a checkpoint knows it by.
        shared_tracker: whether one tracker of so many components serves all points of an input group.
    """

    groups: tuple[InputGroup, ...]
    points: tuple[Plan, ...]
    own_group: tuple[Mapping[int, int], ...]
    keys: tuple[str, ...]
    shared_tracker: bool = False

    def n_components(self, point: int, group: int) -> int:
        """Return how many components a point has of an input group of the stream."""
        return self.points[point].groups[self.own_group[point][group]].n_components

    def tracked_components(self, point: int, group: int) -> int:
        """Return how many components the tracker has that serves a point."""
        return self.groups[group].n_components if self.shared_tracker else self.n_components(point, group)

    def cost(self, group: int, points: Sequence[int]) -> int:
        """Return what an update of a group for these points costs, next to that of other groups."""
        tracked = {self.tracked_components(point, group) for point in points}
        return self.groups[group].in_features * sum(tracked)


def make_layer(name: str, in_features: int, out_features: int, r: int, rho: float, transposed: bool = False) -> Layer:
    """Return the layer with its maximum rank, `round(r * rho)` but at most `in_features`.

    Raises:
        LayerError: if `r` exceeds the layer's `in_features`.
    """
    if r > in_features:
        raise LayerError(
            f"eva.r={r} must be <= in_features={in_features} of layer {name}; "
            "use a smaller eva.r, or set eva.rank_pattern for this layer"
        )
    max_rank = in_features if rho > _RHO_CEILING else min(round(r * rho), in_features)
    return Layer(name, in_features, out_features, r, max_rank, transposed)


def make_plan(
    layers: Sequence[Layer],
    same_input: Sequence[Sequence[str]],
    world_size: int = 1,
    *,
    budget: Budget = Budget.ranks,
) -> Plan:
    """Build the plan.

    Args:
        layers: the target layers, in model order.
        same_input: names of layers that receive the same input, each name once.
        world_size: number of workers; input groups are packed onto them by cost.
        budget: what is handed out, `eva.budget`.
    """
    by_name = {layer.name: layer for layer in layers}
    order = {layer.name: i for i, layer in enumerate(layers)}
    members = sorted((tuple(sorted(names, key=order.__getitem__)) for names in same_input), key=lambda m: order[m[0]])
    assert sorted(name for names in members for name in names) == sorted(by_name), "input groups must partition layers"
    unowned = [
        InputGroup(i, names, by_name[names[0]].in_features, max(by_name[name].max_rank for name in names), owner=0)
        for i, names in enumerate(members)
    ]
    owners = _pack_greedily([group.cost for group in unowned], world_size)
    groups = tuple(replace(group, owner=owner) for group, owner in zip(unowned, owners, strict=True))
    return Plan(tuple(layers), groups, sum(layer.r for layer in layers), budget)


def among(layers: Sequence[Layer], same_input: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return input groups as these layers have them: without the names of others, and without empty groups."""
    names = {layer.name for layer in layers}
    kept = [[name for name in group if name in names] for group in same_input]
    return [group for group in kept if group]


def share(
    points: Sequence[Plan],
    world_size: int = 1,
    stream: Sequence[InputGroup] | None = None,
    keys: Sequence[str] | None = None,
    shared_tracker: bool = False,
) -> PassPlan:
    """Let these points share a stream of forwards.

    Args:
        points: each made from the input groups of the same first forward.
        world_size: number of workers; input groups are packed onto them by cost.
        stream: input groups with the layers of all points; None: those of the point that has most layers.
        keys: of each point; None numbers them.
        shared_tracker: one tracker an input group, of the largest component count.
    """
    widest = stream or max(points, key=lambda plan: len(plan.layers)).groups
    index = {name: group.index for group in widest for name in group.members}
    own = tuple({index[group.tap]: group.index for group in plan.groups} for plan in points)
    n_components = [
        max(
            plan.groups[mine[group.index]].n_components if group.index in mine else 1  # no point's own
            for plan, mine in zip(points, own, strict=True)
        )
        for group in widest
    ]
    owners = _pack_greedily([g.in_features * k for g, k in zip(widest, n_components, strict=True)], world_size)
    groups = tuple(
        replace(group, n_components=k, owner=owner)
        for group, k, owner in zip(widest, n_components, owners, strict=True)
    )
    named = tuple(keys if keys is not None else map(str, range(len(points))))
    return PassPlan(groups, tuple(points), own, named, shared_tracker)


def balance(
    costs: Mapping[int, int], owners: Mapping[int, int], world_size: int, tolerance: float = 1.25
) -> dict[int, int]:
    """Return the owners of these groups, moved as little as keeps the load of the workers even.

    Load is even when the most loaded worker carries at most `tolerance` times what it would carry if the
    groups were packed anew. Until then the group whose move evens them best goes from the most to the least
    loaded worker; where no move helps, the new packing is returned. The order of `costs` does not matter.

    Args:
        costs: group index to its cost, of the groups that are still active.
        owners: group index to the `global_rank` of its present owner, of these groups at least.
        world_size: number of workers; all of `owners` are in `0..world_size - 1`.
        tolerance: at least 1.0.
    """
    assert tolerance >= 1.0, tolerance
    groups = sorted(costs)
    packed = dict(zip(groups, _pack_greedily([costs[group] for group in groups], world_size), strict=True))
    limit = tolerance * max(_worker_loads(costs, packed, world_size))
    moved = {group: owners[group] for group in groups}
    while max(loads := _worker_loads(costs, moved, world_size)) > limit:
        group = _best_move(costs, moved, loads)
        if group is None:
            return packed
        moved[group] = loads.index(min(loads))
    return moved


def _worker_loads(costs: Mapping[int, int], owners: Mapping[int, int], world_size: int) -> list[int]:
    """Return the cost that each worker carries, by `global_rank`."""
    loads = [0] * world_size
    for group, cost in costs.items():
        loads[owners[group]] += cost
    return loads


def _best_move(costs: Mapping[int, int], owners: Mapping[int, int], loads: Sequence[int]) -> int | None:
    """Return which group of the most loaded worker to give to the least loaded one, so that both carry less than most.

    It is the one that leaves the two most even; ties go to the lowest index. `None` if there is none.
    """
    gap = max(loads) - min(loads)
    most = loads.index(max(loads))
    movable = [group for group, owner in owners.items() if owner == most and 0 < costs[group] < gap]
    return min(movable, key=lambda group: (abs(gap - 2 * costs[group]), group), default=None)


def _pack_greedily(costs: Sequence[int], bins: int) -> list[int]:
    """Assign each item to the least loaded bin, dearest first (greedy LPT); ties go to the lowest index."""
    load = [0] * bins
    owner = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner[item] = min(range(bins), key=lambda b: (load[b], b))
        load[owner[item]] += costs[item]
    return owner
