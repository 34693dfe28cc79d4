"""What follows a failure, case by case, with no cluster."""

import pytest

from eva_dist.cluster.recovery import Action, Failure, FailureKind, Recovery, recover, report


def failure(kind=FailureKind.lost, step=3, cause="", num_workers=4, message="global_rank 1 died"):
    return Failure(kind, step, num_workers, message, cause)


def decide(*failures, room=4, wanted=4, shard_size=1, max_failures=3):
    return recover(failures, room, wanted, shard_size, max_failures)


def test_where_there_is_room_the_gang_is_built_again_as_it_was():
    assert decide(failure()) == Recovery(Action.retry, 4, "failure 1 of at most 3")


@pytest.mark.parametrize(
    ("room", "shard_size", "workers"), [(3, 1, 3), (1, 1, 1), (3, 2, 2), (2, 2, 2), (7, 4, 4), (9, 4, 8)]
)
def test_where_there_is_less_room_the_gang_shrinks_to_whole_shard_groups(room, shard_size, workers):
    found = decide(failure(), room=room, wanted=12, shard_size=shard_size)
    assert (found.action, found.num_workers) == (Action.shrink, workers)
    assert found.reason == f"the cluster has room for {workers} of 12 workers"


@pytest.mark.parametrize(
    ("room", "shard_size", "reason"),
    [(0, 1, "no room left for a worker"), (1, 2, "no room left for the 2 workers that hold the model together")],
)
def test_without_room_for_one_shard_group_it_stops(room, shard_size, reason):
    found = decide(failure(), room=room, shard_size=shard_size)
    assert found.action is Action.stop and reason in found.reason


def test_a_gang_grows_back_when_nodes_come_back():
    assert decide(failure(num_workers=2), room=4).num_workers == 4


@pytest.mark.parametrize(("count", "max_failures", "action"), [(1, 0, Action.stop), (3, 3, Action.retry)])
def test_the_number_of_failures_is_bounded(count, max_failures, action):
    assert decide(*[failure(step=i) for i in range(count)], max_failures=max_failures).action is action


def test_more_failures_than_allowed_are_counted_in_the_reason():
    found = decide(*[failure(step=i) for i in range(4)])
    assert found == Recovery(Action.stop, 0, "this is failure 4 and cluster.max_failures=3")


def test_the_same_exception_at_the_same_step_twice_is_not_tried_again():
    raised = failure(FailureKind.raised, step=7, cause="ValueError: bad")
    found = decide(raised, raised)
    assert found.action is Action.stop and "same error twice at step 7" in found.reason


@pytest.mark.parametrize(
    "before",
    [
        failure(FailureKind.raised, step=6, cause="ValueError: bad"),
        failure(FailureKind.raised, step=7, cause="ValueError: other"),
        failure(FailureKind.lost, step=7, cause="ValueError: bad"),
    ],
)
def test_another_step_another_cause_or_another_kind_is_tried_again(before):
    assert decide(before, failure(FailureKind.raised, step=7, cause="ValueError: bad")).action is Action.retry


@pytest.mark.parametrize("kind", [FailureKind.lost, FailureKind.silent, FailureKind.unplaced])
def test_machines_may_fail_twice_at_one_step(kind):
    assert decide(failure(kind), failure(kind)).action is Action.retry


def test_what_others_hold_is_not_waited_for_again():
    found = decide(failure(FailureKind.crowded_out))
    assert found == Recovery(Action.stop, 0, "others hold what the cluster has")


def test_a_node_that_the_cluster_misses_late_is_one_failure_and_not_two():
    lost, missed = failure(FailureKind.lost), failure(FailureKind.unplaced)
    assert decide(lost, missed, room=3, max_failures=1) == Recovery(
        Action.shrink, 3, "the cluster has room for 3 of 4 workers"
    )
    assert decide(missed, lost, max_failures=1).action is Action.stop


def test_the_report_lists_every_failure_and_ends_with_the_last_error():
    failures = [failure(step=3), failure(FailureKind.silent, step=5, message="global_rank 0 gave no sign\nits log")]
    text = report(failures, decide(*failures, max_failures=1))
    assert text.splitlines() == [
        "gave up: this is failure 2 and cluster.max_failures=1",
        "  1. lost after step 3 on 4 workers: global_rank 1 died",
        "  2. silent after step 5 on 4 workers: global_rank 0 gave no sign",
        "the same command goes on from the last checkpoint, if there is one; last error:",
        "global_rank 0 gave no sign",
        "its log",
    ]


def test_a_line_of_the_report_names_what_was_raised():
    raised = failure(
        FailureKind.raised, message="global_rank 0 failed in step; its own report:\nTraceback\nValueError: bad"
    )
    assert str(raised) == "raised after step 3 on 4 workers: global_rank 0 failed in step: ValueError: bad"
