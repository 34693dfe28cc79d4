"""Two processes and gloo: both get the whole result, and each SVD runs on one of them.

All scenarios run in one pair of processes, which leaves its results in a folder.
"""

import time
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from eva_dist.calibration.group_svds import Updates
from tests.distributed.gang_of_processes import PRELOAD

from .conftest import ATTENTION, assert_same, build, eva, lora, ranks, token_minibatches

pytestmark = pytest.mark.distributed

LIMIT_S = 60
GROUPS = set(range(8))
SOLVERS = ("subspace", "incremental", "covariance")
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def minibatches():
    return token_minibatches(batch=16, padding=True, labels=True)


def part(data, sizes, which):
    return [{key: rows.split(sizes)[which] for key, rows in m.items()} for m in data]


def hollow(data):
    """The second minibatch holds no token that counts."""
    data[1]["labels"] = torch.full_like(data[1]["labels"], -100)
    return data


def scenarios(rank):
    """Name to a call of the function, with this process's share of the data."""
    data = minibatches()
    half = part(data, [8, 8], rank)

    def from_llama(loader, **options):
        return eva(build("llama"), loader, lora(ALL), **options)

    def restless():
        """Every active group changes its owner at every step."""
        swap = lambda costs, owners, world_size: {group: 1 - owners[group] for group in costs}  # noqa: E731
        with mock.patch("eva_dist.calibration.pass_state.balance", swap):
            return from_llama(half)

    return {
        **{f"halves, {solver}": lambda solver=solver: from_llama(half, solver=solver) for solver in SOLVERS},
        "restless": restless,
        "uneven shares": lambda: from_llama(part(data, [13, 3], rank)),
        "a process without tokens": lambda: from_llama(hollow(part(data, [8, 8], 1)) if rank else half),
        "not gathered": lambda: from_llama(half, gather_distributed_inputs=False),
        "whitened": lambda: eva(build("llama"), half, lora(ALL, whiten=True)),
        "DistributedDataParallel": lambda: eva(DistributedDataParallel(build("llama")), half, lora(ALL)),
        "one-shot": lambda: eva(
            build("llama"), iter(half[: 3 + rank]), lora(ALL, tau=1.0), on_max_steps="accept", max_steps=9
        ),
    }


def work(rank, folder):
    torch.set_num_threads(1)
    updated: set[int] = set()
    run_updates = Updates.run
    Updates.run = lambda self, updates: (updated.update(u.group for u in updates), run_updates(self, updates))[1]
    limit = timedelta(seconds=LIMIT_S)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=limit)
    try:
        for number, (name, run) in enumerate(scenarios(rank).items()):
            updated.clear()
            saved = {"name": name, "result": run(), "updated": sorted(updated)}
            torch.save(saved, folder / f"{number}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Scenario to what the two processes came to, by `global_rank`."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.set_forkserver_preload(PRELOAD)
    context = mp.start_processes(work, (folder,), nprocs=2, join=False, start_method="forkserver")
    deadline = time.monotonic() + 2 * LIMIT_S
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the processes hang"
    finally:
        for process in context.processes:
            process.kill()
    names = list(scenarios(0))
    return {name: [torch.load(folder / f"{i}-{rank}.pt") for rank in (0, 1)] for i, name in enumerate(names)}


def both(outcomes, name):
    """The result, bit for bit the same in both processes."""
    mine, theirs = outcomes[name]
    assert mine["name"] == theirs["name"] == name
    assert list(mine["result"]) == list(theirs["result"])
    assert all(torch.equal(mine["result"][layer], theirs["result"][layer]) for layer in mine["result"])
    return mine["result"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_halves_give_what_one_process_gives(outcomes, solver):
    alone = eva(build("llama"), minibatches(), lora(ALL), solver=solver)
    assert_same(both(outcomes, f"halves, {solver}"), alone)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_svd_runs_on_one_process(outcomes, solver):
    mine, theirs = (set(outcome["updated"]) for outcome in outcomes[f"halves, {solver}"])
    assert mine | theirs == GROUPS
    assert not mine & theirs
    assert min(len(mine), len(theirs)) >= 2


def test_svds_that_change_their_owner_at_every_step(outcomes):
    assert_same(both(outcomes, "restless"), eva(build("llama"), minibatches(), lora(ALL)))
    assert all(set(outcome["updated"]) == GROUPS for outcome in outcomes["restless"])


def test_uneven_shares(outcomes):
    assert_same(both(outcomes, "uneven shares"), eva(build("llama"), minibatches(), lora(ALL)))


def test_a_process_whose_minibatch_holds_no_token(outcomes):
    data = minibatches()
    data[1]["labels"][8:] = -100
    assert_same(both(outcomes, "a process without tokens"), eva(build("llama"), data, lora(ALL)))


def test_whiten(outcomes):
    assert_same(both(outcomes, "whitened"), eva(build("llama"), minibatches(), lora(ALL, whiten=True)))


def test_not_gathered_each_process_is_on_its_own(outcomes):
    results = []
    for rank, outcome in enumerate(outcomes["not gathered"]):
        assert set(outcome["updated"]) == GROUPS
        alone = eva(build("llama"), part(minibatches(), [8, 8], rank), lora(ALL))
        assert_same(outcome["result"], alone)
        results.append(outcome["result"])
    assert any(not torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_distributed_data_parallel_prefixes_names(outcomes):
    alone = eva(build("llama"), minibatches(), lora(ALL))
    result = both(outcomes, "DistributedDataParallel")
    assert list(result) == [f"module.{name}" for name in alone]
    assert_same(result, {f"module.{name}": rows for name, rows in alone.items()})


def test_the_shorter_one_shot_loader_ends_the_pass_for_both(outcomes):
    """One process has three minibatches, the other four: the fourth step has one process's rows."""
    result = both(outcomes, "one-shot")
    assert sum(ranks(result).values()) == 14 * 4
    data = minibatches()
    data = [*data[:3], *part(data[3:4], [8, 8], 1)]
    assert_same(result, eva(build("llama"), iter(data), lora(ALL, tau=1.0), on_max_steps="accept"))
