"""Every exchange passes the same contract, on one, two and three workers."""

from dataclasses import dataclass
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gang_of_processes import run
from torch import Tensor

from eva_dist.distributed.exchange import AllGatherExchange, LocalExchange, ToOwnerExchange

pytestmark = pytest.mark.distributed

CHUNK_BYTES = 100
KINDS = {
    "local": LocalExchange,
    "all_gather": AllGatherExchange,
    "to_owner": ToOwnerExchange,
    "to_owner in chunks": partial(ToOwnerExchange, chunk_bytes=CHUNK_BYTES),
}
GANGS = [("local", 1), *((name, world_size) for name in KINDS if name != "local" for world_size in (1, 2, 3))]


@dataclass(frozen=True)
class Scenario:
    """Group index to how many rows each worker has (cycled), number of columns, and dtype."""

    groups: dict[int, tuple[tuple[int, ...], int, torch.dtype]]
    turned: bool = False

    def rows(self, global_rank: int) -> dict[int, Tensor]:
        """This worker's rows; no two workers, groups or rows have the same ones."""
        made = {}
        for group, (lengths, columns, dtype) in self.groups.items():
            generator = torch.Generator().manual_seed(100 * group + global_rank)
            x_TD = torch.randn(lengths[global_rank % len(lengths)], columns, generator=generator).to(dtype)
            made[group] = x_TD.mT.contiguous().mT if self.turned else x_TD
        return made

    def owners(self, world_size: int) -> dict[int, int]:
        return {group: group % world_size for group in self.groups}


F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
SCENARIOS = {
    "uneven rows": Scenario({0: ((5, 2, 9), 4, F32), 1: ((1, 6, 3), 7, F32), 2: ((4,), 4, F32)}),
    "even rows": Scenario({0: ((3,), 4, F32)}),
    "one worker has no rows": Scenario({0: ((4, 0, 2), 4, F32), 1: ((0, 3, 3), 5, F32), 2: ((2, 2, 0), 4, F32)}),
    "no worker has rows": Scenario({0: ((0,), 4, F32), 1: ((2, 1), 4, F32)}),
    "bfloat16": Scenario({0: ((5, 2, 9), 4, BF16), 1: ((1, 0, 3), 3, BF16)}),
    "float16 and float64": Scenario({0: ((5, 2), 4, torch.float16), 1: ((3,), 3, F64)}),
    "an active few of many groups": Scenario({11: ((2, 3), 4, F32), 4: ((3, 1), 4, F32), 7: ((1, 1), 4, F32)}),
    "rows that do not lie in a row": Scenario({0: ((5, 2, 9), 4, F32)}, turned=True),
    "bytes of one dtype where another's do not align": Scenario(
        {0: ((3, 1, 5), 3, BF16), 6: ((1, 2), 2, F64), 12: ((1, 3), 1, BF16), 18: ((2,), 5, F32)}
    ),
    "one worker owns every group": Scenario({group: ((2, 3, 1), 4, F32) for group in (0, 6, 12)}),
    "many small groups": Scenario({group: ((2, 1, 3), 4, F32) for group in range(12)}),
    "no worker has rows for any group": Scenario({0: ((0,), 4, F32), 1: ((0,), 3, BF16)}),
    "no active group": Scenario({}),
}


@dataclass(frozen=True)
class Answer:
    """What a worker got, whether its inputs stayed, and what it sent: bytes in and out by all-to-all."""

    brought: dict[int, Tensor]
    untouched: bool
    sent_bytes: int
    all_to_alls: list[tuple[int, int]]
    all_gathers: int


def bring_all(global_rank: int, world_size: int) -> dict[str, dict[str, Answer]]:
    """Every scenario through every exchange, one after the other."""
    kinds = KINDS if world_size == 1 else {name: kind for name, kind in KINDS.items() if name != "local"}
    exchanges = {name: kind() for name, kind in kinds.items()}
    assert all(exchange.sent_bytes == 0 for exchange in exchanges.values())
    return {
        name: {scenario: answer(exchange, SCENARIOS[scenario], global_rank, world_size) for scenario in SCENARIOS}
        for name, exchange in exchanges.items()
    }


def answer(exchange, scenario: Scenario, global_rank: int, world_size: int) -> Answer:
    rows, before = scenario.rows(global_rank), exchange.sent_bytes
    with (
        mock.patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as all_to_all,
        mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as all_gather,
    ):
        brought = exchange.bring(rows, scenario.owners(world_size))
    untouched = all(torch.equal(x, scenario.rows(global_rank)[group]) for group, x in rows.items())
    sizes = [(sent.nbytes, received.nbytes) for received, sent in (call.args[:2] for call in all_to_all.mock_calls)]
    return Answer(brought, untouched, exchange.sent_bytes - before, sizes, all_gather.call_count)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each worker answered, by world size."""
    return {world_size: run(world_size, bring_all, tmp_path_factory.mktemp("gang")) for world_size in (1, 2, 3)}


@pytest.fixture(params=GANGS, ids=lambda gang: f"{gang[0]}-{gang[1]}")
def gang(request, answers):
    kind, world_size = request.param
    return kind, world_size, [of_worker[kind] for of_worker in answers[world_size]]


@pytest.mark.parametrize("name", SCENARIOS)
def test_owners_get_the_rows_of_all_workers_in_order_of_global_rank(gang, name):
    _, world_size, answers = gang
    scenario = SCENARIOS[name]
    everyones = [scenario.rows(rank) for rank in range(world_size)]
    for rank in range(world_size):
        brought = answers[rank][name].brought
        mine = [group for group, owner in scenario.owners(world_size).items() if owner == rank]
        assert list(brought) == mine and answers[rank][name].untouched
        for group in mine:
            expected_TD = torch.cat([rows[group] for rows in everyones])
            assert brought[group].dtype == expected_TD.dtype == scenario.groups[group][2]
            assert torch.equal(brought[group], expected_TD)


def test_every_group_arrives_exactly_once(gang):
    _, world_size, answers = gang
    for name, scenario in SCENARIOS.items():
        arrived = [group for rank in range(world_size) for group in answers[rank][name].brought]
        assert sorted(arrived) == sorted(scenario.groups)


@pytest.mark.parametrize("name", SCENARIOS)
def test_sent_bytes_are_those_of_the_rows_that_leave_a_worker(gang, name):
    """To the owner: rows that others own, once. All-gather: every row and its padding, to every other worker."""
    kind, world_size, answers = gang
    scenario = SCENARIOS[name]
    everyones, owners = [scenario.rows(rank) for rank in range(world_size)], scenario.owners(world_size)
    for rank, rows in enumerate(everyones):
        leaving = sum(x.nbytes for group, x in rows.items() if owners[group] != rank)
        padded = sum(max(other[group].nbytes for other in everyones) for group in rows)
        expected = {"local": 0, "all_gather": padded * (world_size - 1)}.get(kind, leaving)
        assert answers[rank][name].sent_bytes == expected
        assert sum(sent for sent, _ in answers[rank][name].all_to_alls) == (0 if kind == "all_gather" else expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_to_owner_sends_less_than_all_gather(answers, world_size):
    for name, scenario in SCENARIOS.items():
        sent = {
            kind: sum(of_worker[kind][name].sent_bytes for of_worker in answers[world_size])
            for kind in ("all_gather", "to_owner")
        }
        has_rows = any(max(lengths) for lengths, _, _ in scenario.groups.values())
        assert sent["to_owner"] < sent["all_gather"] if has_rows else sent["to_owner"] == sent["all_gather"] == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_collectives_of_a_step(gang, name):
    """All workers enter the same ones; to_owner needs two, whatever the number of groups, when they fit one chunk."""
    kind, _, answers = gang
    groups = len(SCENARIOS[name].groups)
    counted = {(of_worker[name].all_gathers, len(of_worker[name].all_to_alls)) for of_worker in answers}
    assert len(counted) == 1
    expected = {"local": (0, 0), "all_gather": (1 + groups, 0), "to_owner": (1, 1)}
    if groups == 0:
        assert counted == {(0, 0)}
    elif kind in expected:
        assert counted == {expected[kind]}
    else:
        assert all(gathers == 1 and 1 <= chunks <= groups for gathers, chunks in counted)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_chunk_holds_as_many_groups_as_its_bound_allows(answers, world_size):
    sizes = [of_worker["to_owner in chunks"]["many small groups"].all_to_alls for of_worker in answers[world_size]]
    buffers = torch.tensor(sizes).mT.flatten(0, 1)  # bytes of every worker's send and receive buffers, by chunk
    assert 1 < buffers.shape[1] < 12 and buffers.max() <= CHUNK_BYTES
    assert ((buffers[:, :-1] + buffers[:, 1:]).amax(0) > CHUNK_BYTES).all()  # no two neighbours would fit one chunk


def test_the_same_samples_give_the_same_rows_on_any_number_of_workers(tmp_path):
    """A step's rows split over workers come back as one worker has them."""
    (one,), two = run(1, split_over, tmp_path), run(2, split_over, tmp_path)
    for kind in ("all_gather", "to_owner"):
        assert torch.equal(one[kind][0], two[0][kind][0]) and two[1][kind] == {}


def split_over(global_rank: int, world_size: int) -> dict[str, dict[int, Tensor]]:
    all_TD = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    mine_TD = all_TD.tensor_split(world_size)[global_rank]
    return {kind: KINDS[kind]().bring({0: mine_TD}, {0: 0}) for kind in ("all_gather", "to_owner")}
