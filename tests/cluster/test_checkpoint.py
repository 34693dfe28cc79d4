"""Checkpoints: a pass goes on from one to the same bits, whatever happened to the newer ones."""

import logging
import os
from dataclasses import replace

import pytest
import torch

from eva_dist.calibration.controller import first_state
from eva_dist.calibration.engine import PassContext, run_pass, run_step
from eva_dist.calibration.group_svds import collect_components, make_trackers, restore, to_checkpoint
from eva_dist.calibration.pass_state import first_pass
from eva_dist.cluster.checkpoint import CheckpointFolder
from eva_dist.config import SolverConfig, SolverName
from eva_dist.distributed.exchange import LocalExchange
from eva_dist.methods.eva import Eva
from eva_dist.plan import share
from tests.toy import Steps, minibatch, toy_feed, toy_plan

FINGERPRINT = "0123456789abcdef"
TAU = 0.9999
STEPS = {at: [minibatch(at)] for at in range(30)}


class Interrupted(Exception):
    pass


def make_worker(solver=SolverName.subspace):
    plan = share([toy_plan()])
    feed = toy_feed(Steps.one_by_one(STEPS), groups=plan.groups, consumed_at_once=True)
    return PassContext(plan, feed, LocalExchange(), make_trackers(SolverConfig(solver), plan))


def begin(plan, tau=TAU):
    return first_pass(plan, [first_state(point, Eva(tau), 14) for point in plan.points])


def state_of(checkpoint, plan=None):
    plan = plan or share([toy_plan()])
    return checkpoint.state(plan, begin(plan).points)


def folder(tmp_path, keep=2):
    return CheckpointFolder(tmp_path / ".checkpoints", FINGERPRINT, keep)


def drive(worker, svds, state, checkpoints=None, end_at=None, fetched=None):
    """Run a pass on one worker, with a checkpoint after each step."""

    def fetch(group):
        if fetched is not None:
            fetched.append(group)
        return to_checkpoint(svds[group])

    def on_step(state):
        if checkpoints:
            checkpoints.write(state, fetch)
        if state.steps == end_at:
            raise Interrupted

    return run_pass(state, lambda decision: [run_step(worker, decision, svds)], on_step)


def go_on(worker, checkpoint, **options):
    points = checkpoint.points(worker.plan)
    svds = {
        group.index: restore(worker.trackers[group.index], torch.device("cpu"), tensors, points)
        for group in worker.plan.groups
        if (tensors := checkpoint.tensors(group)) is not None
    }
    return drive(worker, svds, state_of(checkpoint, worker.plan), **options), svds


def at_step(state, steps):
    return replace(state, points=tuple(replace(point, steps=steps) for point in state.points))


def interrupted(tmp_path, end_at=7, solver=SolverName.subspace, keep=2):
    worker, checkpoints = make_worker(solver), folder(tmp_path, keep)
    with pytest.raises(Interrupted):
        drive(worker, {}, begin(worker.plan), checkpoints, end_at)
    return checkpoints


@pytest.mark.parametrize("solver", list(SolverName))
def test_a_pass_goes_on_to_the_same_bits(tmp_path, solver):
    worker, svds = make_worker(solver), {}
    whole = drive(worker, svds, begin(worker.plan)).only()
    interrupted(tmp_path, solver=solver)
    found = folder(tmp_path).latest()
    assert found.steps == 7 < whole.steps
    resumed, again = go_on(make_worker(solver), found)
    resumed = resumed.only()
    assert (resumed.steps, resumed.tokens, resumed.ranks) == (whole.steps, whole.tokens, whole.ranks)
    assert [replace(row, seconds=0) for row in resumed.history] == [replace(row, seconds=0) for row in whole.history]
    expected, components = (collect_components(worker.plan, found) for found in (svds, again))
    for group in expected:
        assert torch.equal(components[group].v_KD, expected[group].v_KD)
        assert torch.equal(components[group].singular_values_K, expected[group].singular_values_K)
        assert torch.equal(resumed.groups[group].cosines_K, whole.groups[group].cosines_K)
    assert resumed.elapsed > state_of(found).only().elapsed > 0


def test_there_are_never_more_than_were_asked_for_and_none_in_the_end(tmp_path):
    checkpoints = interrupted(tmp_path, keep=3)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000005", "step-00000006", "step-00000007"]
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []
    assert checkpoints.latest() is None


@pytest.mark.parametrize("name", ["manifest.json", "pass.json", "summaries.safetensors", "group-00001.safetensors"])
@pytest.mark.parametrize("damage", ["cut in half", "a bit flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, name, damage):
    interrupted(tmp_path)
    path = folder(tmp_path).folder / "step-00000007" / name
    data = path.read_bytes()
    if damage == "cut in half":
        os.truncate(path, len(data) // 2)
    elif damage == "a bit flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert folder(tmp_path).latest().steps == 6
    assert "step-00000007 is damaged" in caplog.text


def test_when_all_are_damaged_there_is_none(tmp_path):
    for one in interrupted(tmp_path).folder.iterdir():
        os.truncate(one / "manifest.json", 10)
    assert folder(tmp_path).latest() is None


def test_a_group_that_did_not_change_is_copied_and_not_fetched(tmp_path):
    worker, checkpoints, svds, fetched = make_worker(), folder(tmp_path), {}, []
    state = drive(worker, svds, begin(worker.plan, 0.5), checkpoints, fetched=fetched)
    assert len(fetched) == sum(group.updates for group in state.only().groups) < 3 * state.steps
    newest = folder(tmp_path).latest()
    assert newest.steps == state.steps
    for group in worker.plan.groups:
        tensors = to_checkpoint(svds[group.index])
        assert all(torch.equal(tensors[name], value) for name, value in newest.tensors(group).items())


def test_damage_to_one_does_not_reach_the_copy_of_an_unchanged_group(tmp_path):
    """Were it a link, one damaged file would be two damaged checkpoints; a damaged source is fetched anew."""
    checkpoints = interrupted(tmp_path)
    before = checkpoints.latest()
    state = state_of(before)
    path = before.folder / "group-00000.safetensors"
    intact, fetched = before.tensors(toy_plan().groups[0]), []
    os.truncate(path, 100)

    def fetch(group):
        fetched.append(group)
        return intact

    checkpoints.write(at_step(state, 8), fetch)
    assert fetched == [0]
    assert folder(tmp_path).latest().steps == 8


def test_a_full_disk_leaves_the_older_ones_and_nothing_half_written(tmp_path, monkeypatch):
    checkpoints = interrupted(tmp_path)
    state = state_of(checkpoints.latest())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eva_dist.cluster.checkpoint.save_file", full)
    (point,) = at_step(state, 8).points
    updated = replace(point, groups=tuple(replace(g, updates=g.updates + 1) for g in point.groups))
    changed = replace(state, points=(updated,))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write(changed, lambda group: {})
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000006", "step-00000007"]


def test_state_of_other_input_groups_does_not_fit(tmp_path):
    found = interrupted(tmp_path).latest()
    plan = toy_plan()
    assert found.fits(share([plan]))
    assert not found.fits(share([replace(plan, groups=plan.groups[:2])]))
    assert not found.fits(share([plan], keys=["another"]))


def test_what_was_just_written_stays_whatever_lies_of_later_steps(tmp_path):
    """Of later steps are those that were passed over: damaged, or of other input groups."""
    checkpoints = interrupted(tmp_path, keep=1)
    before = checkpoints.latest()
    os.truncate(before.folder / "manifest.json", 10)
    again = folder(tmp_path, keep=1)
    assert again.latest() is None
    state = state_of(before)
    again.write(at_step(state, 3), lambda group: before.tensors(toy_plan().groups[group]))
    assert [p.name for p in again.folder.iterdir()] == ["step-00000003"]
    assert folder(tmp_path).latest().steps == 3
