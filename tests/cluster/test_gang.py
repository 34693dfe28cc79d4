"""A gang of real actors: the same result on any number, and gone as one whatever fails."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from eva_dist.errors import (
    DataError,
    GangTimeoutError,
    NonFiniteActivationsError,
    PlacementError,
    TooFewTokensError,
    WorkerFailedError,
    WorkerLostError,
)
from tests.gang_processes import assignment_of, run_alone, worker_pids

pytestmark = pytest.mark.usefixtures("gangs")


def ignore(state):
    """Take no notice of progress."""


def check_gang_is_gone():
    deadline = time.monotonic() + 10
    while worker_pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert worker_pids() == []


def pass_on(costs, owners, world_size):
    """Every active group goes to the next worker."""
    return {group: (owners[group] + 1) % world_size for group in costs}


def test_one_worker_equals_two(prepared, monkeypatch):
    """Five samples a step, two at a time: three and two of them on two workers; the same ranks and components.

    The two hand their SVDs to each other at every step.
    """
    alone = run_alone(assignment_of(prepared(cluster={"num_workers": 1}, data={"step_size": 5})), ignore)
    monkeypatch.setattr("eva_dist.calibration.pass_state.balance", pass_on)
    owners = []
    run = prepared(cluster={"num_workers": 2}, data={"step_size": 5})
    shared = run_alone(assignment_of(run), lambda state: owners.append(dict(state.owners)))
    assert alone.state.steps == shared.state.steps
    assert alone.state.tokens == shared.state.tokens
    assert alone.state.ranks == shared.state.ranks
    assert set(alone.components) == set(shared.components) == {group.index for group in alone.state.plan.groups}
    for group, components in alone.components.items():
        rank = alone.state.group_rank(group)
        cosines = torch.cosine_similarity(components.v_KD[:rank], shared.components[group].v_KD[:rank])
        assert (cosines >= 0.9999).all()
    assert {group.owner for group in shared.state.plan.groups} == {0, 1}
    assert owners[0] == {group.index: 1 - group.owner for group in shared.state.plan.groups} != owners[1]
    assert shared.state.sent_bytes > 0 == alone.state.sent_bytes
    assert {len(group.members) for group in alone.state.plan.groups} == {1, 2, 3}  # o and down; gate/up; q/k/v
    check_gang_is_gone()


def test_more_workers_than_samples(prepared):
    """A worker that gets no sample of a step still takes part in its collectives."""
    run = prepared(data={"step_size": 1}, eva={"r": 2, "max_steps": 4, "tau": 1.0})
    result = run_alone(assignment_of(run), ignore)
    assert result.state.steps == 4
    assert all(group.updates == 4 for group in result.state.groups)


def test_a_worker_that_raises_ends_the_run_with_its_traceback(prepared, tiny_model, tmp_path):
    weights = tmp_path / "model"
    weights.mkdir()
    for file in tiny_model.iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    run = prepared(model={"name_or_path": str(weights)})
    (weights / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(WorkerFailedError, match=r"(?s)global_rank \d failed in load.*load_model"):
        run_alone(assignment_of(run), ignore)
    check_gang_is_gone()


def test_a_node_with_other_data_is_refused(prepared):
    with pytest.raises(DataError, match="reads differently on the node of global_rank"):
        run_alone(assignment_of(prepared(), data_digest="0" * 64), ignore)
    check_gang_is_gone()


def test_a_killed_worker_ends_the_run(prepared):
    run = prepared(eva={"tau": 1.0, "max_steps": 10_000})

    def kill_one(state):
        if state.steps == 3:
            os.kill(worker_pids()[0], signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(WorkerLostError, match=r"global_rank \d died in step"):
        run_alone(assignment_of(run), kill_one)
    assert time.monotonic() - started < 45  # well below timeout_s: nobody waited for it
    check_gang_is_gone()


def test_a_worker_that_hangs_is_a_timeout(prepared):
    run = prepared(eva={"tau": 1.0, "max_steps": 10_000}, cluster={"timeout_s": 15.0})
    stopped = []

    def stop_one(state):
        if state.steps == 3:
            stopped.append(worker_pids()[1])
            os.kill(stopped[0], signal.SIGSTOP)

    with pytest.raises(GangTimeoutError, match=r"did not answer step in cluster\.timeout_s=15; global_rank"):
        run_alone(assignment_of(run), stop_one)
    assert len(stopped) == 1  # the gang got that far: it is no slow start that timed out
    check_gang_is_gone()


def test_an_interrupt_leaves_no_actor(prepared):
    def interrupt(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_alone(assignment_of(prepared()), interrupt)
    check_gang_is_gone()


def test_not_a_number_names_layer_and_step(prepared, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteActivationsError, match=r"layer model\.layers\.1\.self_attn\.o_proj .* step 0"):
        run_alone(assignment_of(prepared(model={"name_or_path": str(broken)})), ignore)
    check_gang_is_gone()


def test_steps_too_short_for_ever_end_after_one_epoch(prepared):
    run = prepared(data={"step_size": 1, "max_length": 3, "num_samples": 20}, eva={"max_steps": 10_000})
    with pytest.raises(TooFewTokensError, match=r"none of 20 steps had the 8 token rows that 8 components need"):
        run_alone(assignment_of(run), ignore)
    check_gang_is_gone()


def test_a_request_that_the_cluster_cannot_meet(prepared):
    run = prepared(cluster={"resources": {"CPU": 1.0, "GPU": 1.0}})
    started = time.monotonic()
    with pytest.raises(PlacementError, match=r"2 workers of CPU=1 GPU=1 each do not fit.* room for 0.*have: CPU=4; "):
        run_alone(assignment_of(run), ignore)
    assert time.monotonic() - started < 5
