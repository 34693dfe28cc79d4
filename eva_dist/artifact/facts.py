"""What an artifact is built from: the facts of each layer, and the facts of the run."""

from dataclasses import dataclass
from typing import Any

from eva_dist.calibration.controller import GroupState, PointResult
from eva_dist.numerics.components import Components
from eva_dist.plan import InputGroup, Layer

FORMAT_VERSION = 2
"""1 had no components, and its manifest no `decisive`: what derives and restores needs 2."""


@dataclass(frozen=True)
class Provenance:
    """Plain JSON-able facts of the run, gathered by the driver.

    Attributes:
        fingerprint: sha256 (hex) of what decides the numbers (`plan.fingerprint` of `decisive`).
        decisive: what decides the numbers, and nothing else.
        config: `Config.to_dict()`.
        model: `id`, `revision`, `task_type` (PEFT's name or None), hashes, dtype, architecture.
        tokenizer: hashes of the tokenizer.
        data: digest and size of the data.
        versions: library name to version.
        world_size: number of workers.
        url: folder URL under which the artifact is published.
        repo_id: `namespace/name`.
        revision: of the artifact, not of the model.
        created: ISO time.
        derived_from: of an artifact that another one's vectors went into (`derive.py`): `fingerprint` of that
            other, its decisive `eva` settings, `exact` (whether a run would give the same numbers), and the version of
            `eva_dist`; all the rest, but for url, names and time, is of the pass that found the vectors.
        merged_from: of an artifact whose statistics are the sum of others' (`merge.py`), each of these others:
            `fingerprint`, `weight` and what it was computed from; `model` and `tokenizer` are those of all of them.
    """

    fingerprint: str
    decisive: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    world_size: int
    url: str
    repo_id: str
    revision: str
    created: str
    derived_from: dict[str, Any] | None = None
    merged_from: list[dict[str, Any]] | None = None

    @property
    def is_own_run(self) -> bool:
        """Whether a run of these settings would give these numbers: it is one, or an exact derivation."""
        if self.merged_from is not None:
            return False
        return self.derived_from is None or bool(self.derived_from["exact"])


@dataclass(frozen=True)
class LayerFacts:
    """One layer at the end of a pass.

    `components` are its input group's, at least `rank` of them. `group_rank` is the largest
    rank among the group's members: convergence is judged over that many components.
    """

    layer: Layer
    group: InputGroup
    known: GroupState
    components: Components
    rank: int
    group_rank: int
    converged: bool

    @property
    def name(self) -> str:
        """Name of the layer in the base model."""
        return self.layer.name

    def shortfall(self, tau: float) -> tuple[int, float | None]:
        """Return how many of the group's first `group_rank` components are below `tau`, and their lowest cosine.

        None as cosine says that there were fewer than two updates, so no cosine at all.
        """
        cosines_K = self.known.cosines_K
        if cosines_K is None:
            return self.group_rank, None
        handed_out = cosines_K[: self.group_rank]
        return int((handed_out < tau).sum()), float(handed_out.min()) if self.group_rank else None


def layer_facts(result: PointResult) -> tuple[LayerFacts, ...]:
    """Return the facts of every layer, in model order."""
    state = result.state
    group_of = {name: group for group in state.plan.groups for name in group.members}
    active = set(state.active)
    facts = []
    for layer in state.plan.layers:
        group = group_of[layer.name]
        components = result.components[group.index]
        rank = state.ranks[layer.name]
        assert rank <= components.v_KD.shape[0], "the allocation hands out no more components than there are"
        facts.append(
            LayerFacts(
                layer=layer,
                group=group,
                known=state.groups[group.index],
                components=components,
                rank=rank,
                group_rank=state.group_rank(group.index),
                converged=group.index not in active,
            )
        )
    return tuple(facts)
