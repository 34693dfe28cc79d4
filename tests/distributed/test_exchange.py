"""Every exchange passes the same contract, on one, two and three workers."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from gang_of_processes import run
from torch import Tensor

from eva_dist.distributed.exchange import AllGatherExchange, LocalExchange

pytestmark = pytest.mark.distributed

GANGS = [(LocalExchange, 1), (AllGatherExchange, 1), (AllGatherExchange, 2), (AllGatherExchange, 3)]


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
    "no active group": Scenario({}),
}


def bring_all(kind, global_rank: int, world_size: int) -> dict[str, tuple[dict[int, Tensor], bool]]:
    """Every scenario through one exchange, one after the other: what came, whether inputs stayed."""
    exchange, answers = kind(), {}
    for name, scenario in SCENARIOS.items():
        rows = scenario.rows(global_rank)
        brought = exchange.bring(rows, scenario.owners(world_size))
        untouched = all(torch.equal(x, scenario.rows(global_rank)[group]) for group, x in rows.items())
        answers[name] = brought, untouched
    return answers


@pytest.fixture(scope="module", params=GANGS, ids=lambda gang: f"{gang[0].__name__}-{gang[1]}")
def gang(request, tmp_path_factory):
    kind, world_size = request.param
    if kind is LocalExchange:
        return kind, world_size, [bring_all(kind, 0, 1)]
    return kind, world_size, run(world_size, partial(bring_all, kind), tmp_path_factory.mktemp("gang"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_owners_get_the_rows_of_all_workers_in_order_of_global_rank(gang, name):
    _, world_size, answers = gang
    scenario = SCENARIOS[name]
    everyones = [scenario.rows(rank) for rank in range(world_size)]
    for rank in range(world_size):
        brought, untouched = answers[rank][name]
        mine = [group for group, owner in scenario.owners(world_size).items() if owner == rank]
        assert list(brought) == mine and untouched
        for group in mine:
            expected_TD = torch.cat([rows[group] for rows in everyones])
            assert brought[group].dtype == expected_TD.dtype == scenario.groups[group][2]
            assert torch.equal(brought[group], expected_TD)


def test_every_group_arrives_exactly_once(gang):
    _, world_size, answers = gang
    for name, scenario in SCENARIOS.items():
        arrived = [group for rank in range(world_size) for group in answers[rank][name][0]]
        assert sorted(arrived) == sorted(scenario.groups)


def test_the_same_samples_give_the_same_rows_on_any_number_of_workers(tmp_path):
    """A step's rows split over workers come back as one worker has them."""
    (one,), two = run(1, split_over, tmp_path), run(2, split_over, tmp_path)
    assert torch.equal(one[0], two[0][0]) and two[1] == {}


def split_over(global_rank: int, world_size: int) -> dict[int, Tensor]:
    all_TD = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    mine_TD = all_TD.tensor_split(world_size)[global_rank]
    return AllGatherExchange().bring({0: mine_TD}, {0: 0})
