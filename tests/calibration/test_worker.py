"""Whole passes by sessions, no ray: how samples are forwarded and rows exchanged changes time, never the result."""

from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from eva_dist.calibration.controller import Stop
from eva_dist.calibration.engine import finish, run_pass
from eva_dist.calibration.pass_state import first_pass
from eva_dist.calibration.worker import Assignment, Worker
from eva_dist.config import Exchange, OnMaxSteps
from eva_dist.modeling.packing import Layout
from eva_dist.numerics.components import Components
from tests.distributed.gang_of_processes import run
from tests.gang_processes import assignment_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What a pass came to, on one worker."""

    steps: int
    tokens: int
    stop: Stop | None
    ranks: dict[str, int]
    group_ranks: dict[int, int]
    components: dict[int, Components]
    owners: tuple[dict[int, int], ...]
    sent_bytes: int
    held: tuple[int, ...]
    layout: Layout
    forwards: int


def drive(assignment: Assignment, global_rank: int = 0, world_size: int = 1, lopsided: bool = False) -> Outcome:
    """A whole pass; every worker folds the same reports, as the drop-in does. Lopsided: the first one owns all."""

    def everyones(mine):
        theirs = [mine] * world_size
        if world_size > 1:
            dist.all_gather_object(theirs, mine)
        return theirs

    session = Worker(assignment, global_rank, world_size, CPU)
    session.load()
    probe, layout = everyones(session.probe() if global_rank < assignment.config.cluster.shard_size else None)[0]
    plan = assignment.plan(probe.groups, world_size)
    if lopsided:
        groups = tuple(replace(group, owner=0) for group in plan.groups)
        plan = replace(plan, groups=groups)
    session.begin(plan, probe, layout)
    owners, forwards = [{group.index: group.owner for group in plan.groups}], []
    session.model.register_forward_pre_hook(lambda *_: forwards.append(1))

    def step(decision):
        moved = tuple(group for group, owner in decision.owners.items() if owners[-1][group] != owner)
        given = {group: svd for part in everyones(session.give(moved)) for group, svd in part.items()}
        session.receive({group: svd for group, svd in given.items() if decision.owners[group] == global_rank})
        owners.append(dict(decision.owners))
        return everyones(session.step(decision))

    state = run_pass(first_pass(plan, assignment.begin(plan)), step).only()
    mine = session.components()
    found = {group: one for part in everyones(mine) for group, one in part.items()}
    result = finish(state, found)
    session.leave()
    assert session.model.config._attn_implementation == "sdpa"
    return Outcome(
        steps=state.steps,
        tokens=state.tokens,
        stop=state.stop,
        ranks=dict(state.ranks),
        group_ranks={group.index: state.group_rank(group.index) for group in plan.groups},
        components=dict(result.components),
        owners=tuple(owners),
        sent_bytes=state.sent_bytes,
        held=tuple(mine),
        layout=layout,
        forwards=len(forwards),
    )


def check_same(found: Outcome, expected: Outcome) -> None:
    assert (found.steps, found.stop, found.ranks) == (expected.steps, expected.stop, expected.ranks)
    assert found.tokens == expected.tokens
    for group, components in expected.components.items():
        rank = expected.group_ranks[group]
        cosines_K = torch.cosine_similarity(found.components[group].v_KD[:rank], components.v_KD[:rank])
        assert (cosines_K.abs() >= 0.9999).all()


@pytest.fixture
def assignment(prepared):
    """Return an assignment of the tiny run whose data and cluster are changed."""
    run = prepared(data={"step_size": 6, "batch_size": None})

    def change(batch_size=None, exchange=Exchange.to_owner, **cluster):
        config = run.config
        data, cluster = (
            replace(config.data, batch_size=batch_size),
            replace(config.cluster, exchange=exchange, **cluster),
        )
        return replace(assignment_of(run), config=replace(config, data=data, cluster=cluster))

    return change


@pytest.fixture
def alone(assignment):
    return drive(assignment())


def test_how_many_samples_are_forwarded_at_once_changes_nothing(assignment, alone):
    """One, half a step, a step, two steps and what the device likes."""
    assert alone.stop is Stop.converged and 3 < alone.steps < 200 and alone.layout is Layout.segments
    assert alone.forwards == alone.steps and alone.sent_bytes == 0
    for batch_size, forwards in ((1, 6 * alone.steps), (3, 2 * alone.steps), (6, alone.steps), (12, None)):
        found = drive(assignment(batch_size))
        check_same(found, alone)
        if forwards is not None:
            assert found.forwards == forwards
        else:
            assert alone.steps / 2 <= found.forwards < alone.steps  # groups that thaw are forwarded again


def every_way(ways: dict[str, Assignment], global_rank: int, world_size: int) -> dict[str, Outcome]:
    """Passes of two workers, one after the other in one pair of processes."""
    outcomes = {name: drive(assignment, global_rank, world_size) for name, assignment in ways.items()}
    with mock.patch("eva_dist.calibration.pass_state.balance", passed_on):
        outcomes["owners that change at every step"] = drive(ways["to_owner"], global_rank, world_size)
    outcomes["evened out"] = drive(ways["to_owner, two steps"], global_rank, world_size, lopsided=True)
    return outcomes


def passed_on(costs, owners, world_size):
    """Every group goes to the next worker."""
    return {group: (owners[group] + 1) % world_size for group in costs}


@pytest.mark.distributed
def test_exchange_batches_and_moves_of_two_workers_change_nothing(assignment, alone, tmp_path):
    ways = {
        "to_owner": assignment(),
        "all_gather": assignment(exchange=Exchange.all_gather),
        "to_owner, one sample": assignment(1),
        "to_owner, two steps": assignment(6),
        "all_gather, two steps": assignment(6, Exchange.all_gather),
    }
    first, second = run(2, partial(every_way, ways), tmp_path)
    assert len(first) == len(ways) + 2
    for name, found in first.items():
        check_same(found, alone)
        check_same(second[name], alone)
        assert found.owners == second[name].owners and found.sent_bytes == second[name].sent_bytes > 0
        assert sorted(found.held + second[name].held) == sorted(alone.components)  # each SVD in one place
        assert all(found.owners[-1][group] == 0 for group in found.held)
    assert first["to_owner"].sent_bytes < first["all_gather"].sent_bytes
    assert first["to_owner, two steps"].forwards < first["to_owner"].forwards
    moving = first["owners that change at every step"].owners
    assert all(a != b for a, b in zip(moving[1:], moving[2:], strict=False))
    evened = first["evened out"].owners
    assert set(evened[1].values()) == {0} and set(evened[2].values()) == {0, 1}


def sharded_ways(ways: dict[str, Assignment], global_rank: int, world_size: int) -> dict[str, Outcome]:
    """Passes of one sharded gang, one after the other."""
    return {name: drive(assignment, global_rank, world_size) for name, assignment in ways.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_sharded_model_changes_nothing(assignment, alone, tmp_path, world_size):
    """Six samples a step: on four workers two of them have two, two have one, and forward as often all the same."""
    ways = {
        "to_owner": assignment(shard_size=2, num_workers=world_size),
        "all_gather": assignment(exchange=Exchange.all_gather, shard_size=2, num_workers=world_size),
        "one sample": assignment(1, shard_size=2, num_workers=world_size),
        "two steps": assignment(12, shard_size=2, num_workers=world_size),
        "offload": assignment(shard_size=2, num_workers=world_size, offload=True),
    }
    members = run(world_size, partial(sharded_ways, ways), tmp_path)
    for outcomes in members:
        for found in outcomes.values():
            check_same(found, alone)
            assert found.layout is Layout.segments
    for group in range(0, world_size, 2):
        first, second = members[group : group + 2]
        assert {n: o.forwards for n, o in first.items()} == {n: o.forwards for n, o in second.items()}
    assert len({member["one sample"].tokens for member in members}) == 1


@pytest.mark.distributed
def test_a_worker_without_samples_forwards_with_its_shard_group(prepared, tmp_path):
    """One sample a step: the first of two workers has none, and its half of the weights is needed all the same."""
    run_ = prepared(
        data={"step_size": 1, "batch_size": None},
        eva={"r": 2, "rho": 1.0, "tau": 1.0, "max_steps": 3, "on_max_steps": OnMaxSteps.accept},
    )
    config = run_.config
    both = replace(config, cluster=replace(config.cluster, num_workers=2, shard_size=2))
    alone = drive(assignment_of(run_))
    first, second = run(2, partial(sharded_ways, {"": replace(assignment_of(run_), config=both)}), tmp_path)
    for found in (first[""], second[""]):
        check_same(found, alone)
        assert found.forwards == alone.forwards == 3
