"""How many workers fit which nodes, with no cluster."""

import pytest

from eva_dist.cluster.placement import Request, check_fits, worker_resources, workers_that_fit
from eva_dist.errors import PlacementError

EIGHT = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("num_workers", "shard_size", "nodes", "room"),
    [
        (4, 1, [EIGHT], 4),
        (16, 8, [EIGHT, EIGHT], 16),
        (16, 8, [EIGHT], 8),
        (16, 8, [EIGHT, {"CPU": 64.0, "GPU": 7.0}], 8),
        (6, 3, [{"CPU": 9.0, "GPU": 4.0}] * 2, 6),  # one GPU a node stays idle
        (12, 3, [{"CPU": 9.0, "GPU": 4.0}] * 2, 6),
        (2, 1, [{"CPU": 64.0}], 0),
        (2, 1, [{"GPU": 8.0}], 0),  # and no CPU
        (2, 1, [], 0),
    ],
)
def test_shard_groups_lie_inside_a_node(num_workers, shard_size, nodes, room):
    assert workers_that_fit(Request(num_workers, shard_size, {"CPU": 1.0, "GPU": 1.0}), nodes) == room


def test_fractions_and_custom_accelerators_count_too():
    assert workers_that_fit(Request(30, 1, {"CPU": 0.1}), [{"CPU": 3.0}]) == 30
    assert workers_that_fit(Request(4, 2, {"TPU": 4.0}), [{"TPU": 8.0, "CPU": 1.0}]) == 2
    assert workers_that_fit(Request(4, 2, {"CPU": 0.0}), [{"CPU": 1.0}]) == 4


def test_an_infeasible_request_says_what_was_asked_and_what_there_is():
    request = Request(16, 8, {"CPU": 1.0, "GPU": 1.0})
    check_fits(request, [EIGHT, EIGHT])
    with pytest.raises(PlacementError) as caught:
        check_fits(request, [EIGHT, {"CPU": 4.0}])
    assert str(caught.value) == (
        "cluster.num_workers=16 workers (cluster.shard_size=8 of them on one node) of CPU=1 GPU=1 each do not fit: the "
        "cluster has room for 8. Its nodes have: CPU=64 GPU=8; CPU=4; lower cluster.num_workers, cluster.shard_size or "
        "cluster.resources, or add nodes"
    )


@pytest.mark.parametrize(
    ("wanted", "nodes", "found"),
    [
        ({}, [{"CPU": 4.0}], {"CPU": 1.0}),
        ({}, [EIGHT, EIGHT], {"CPU": 1.0, "GPU": 1.0}),
        ({"CPU": 2.0}, [EIGHT], {"CPU": 2.0}),
    ],
)
def test_a_worker_asks_for_a_gpu_where_there_are_any(wanted, nodes, found):
    assert worker_resources(wanted, 8, nodes) == found


def test_fewer_gpus_than_workers_are_no_reason_to_fall_back_in_silence():
    with pytest.raises(PlacementError, match=r"cluster\.num_workers=9 is more than the 8 GPUs.*\+cluster\.resources"):
        worker_resources({}, 9, [EIGHT])
