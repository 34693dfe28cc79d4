"""The rendezvous: always left behind, and never waited for longer than the timeout."""

import socket
import time
from urllib.parse import urlparse

import pytest
import torch
import torch.distributed as dist
from gang_of_processes import run

from eva_dist.distributed.process_group import (
    backend_for,
    free_address,
    interface_address,
    largest,
    process_group,
    shard_mesh,
)
from eva_dist.errors import ConfigError

CPU = torch.device("cpu")


def test_a_free_address_can_be_listened_on_and_is_another_each_time():
    addresses = [urlparse(free_address("127.0.0.1")) for _ in range(5)]
    assert all(address.scheme == "tcp" for address in addresses)
    assert len({address.port for address in addresses}) > 1
    for address in addresses:
        with socket.socket() as listener:
            listener.bind((address.hostname, address.port))


def test_an_interface_has_an_address_and_an_unknown_one_is_refused_with_those_there_are():
    assert interface_address("lo") == "127.0.0.1"
    with pytest.raises(
        ConfigError, match=r"cluster\.network_interface=eth99 must be an interface .* this one has .*lo"
    ):
        interface_address("eth99")


def test_the_backend_follows_the_device():
    assert backend_for(CPU) == "gloo"
    assert backend_for(torch.device("cuda", 1)) == "nccl"


@pytest.mark.distributed
def test_the_group_is_left_when_the_context_closes_however_it_closes():
    with process_group(free_address("127.0.0.1"), 0, 1, CPU, timeout_s=10):
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
    assert not dist.is_initialized()
    with pytest.raises(KeyError), process_group(free_address("127.0.0.1"), 0, 1, CPU, timeout_s=10):
        raise KeyError("of the user's")
    assert not dist.is_initialized()


@pytest.mark.distributed
@pytest.mark.parametrize("global_rank", [0, 1])
def test_a_member_that_never_arrives_is_an_error_within_the_timeout(global_rank):
    """`global_rank` 0 waits for the other; the other finds nobody at the address."""
    started = time.monotonic()
    with pytest.raises(RuntimeError), process_group(free_address("127.0.0.1"), global_rank, 2, CPU, timeout_s=1.0):
        raise AssertionError("unreachable: the gang is not complete")
    assert time.monotonic() - started < 10
    assert not dist.is_initialized()


def stay_away_from_the_collective(global_rank: int, world_size: int) -> float:
    started = time.monotonic()
    if global_rank == 1:
        time.sleep(4.0)
    else:
        with pytest.raises(RuntimeError, match="(?i)time"):
            dist.all_reduce(torch.ones(1))
    return time.monotonic() - started


@pytest.mark.distributed
def test_a_member_that_stays_away_from_a_collective_is_an_error_within_the_timeout(tmp_path):
    waited, _ = run(2, stay_away_from_the_collective, tmp_path, timeout_s=2.0)
    assert 1.0 < waited < 4.0


def places(global_rank: int, world_size: int) -> tuple[tuple[int, ...], int]:
    mesh = shard_mesh(2, torch.device("cpu"), 20.0)
    return (*mesh.get_coordinate(), *mesh.shape), largest(10 * global_rank, mesh, torch.device("cpu"))


@pytest.mark.distributed
def test_shard_groups_are_made_of_neighbours_and_do_not_wait_for_each_other(tmp_path):
    """`global_rank` = replica * shard_size + place; the largest value is that of the group, not of the gang."""
    assert run(4, places, tmp_path) == [
        ((0, 0, 2, 2), 10),
        ((0, 1, 2, 2), 10),
        ((1, 0, 2, 2), 30),
        ((1, 1, 2, 2), 30),
    ]
