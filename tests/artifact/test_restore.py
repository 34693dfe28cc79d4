"""An artifact read back builds the same artifact again; one that is not whole is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from eva_dist.artifact.build import build_artifact
from eva_dist.artifact.restore import restore_artifact
from eva_dist.controller import Stop
from eva_dist.errors import ArtifactNotFoundError, DerivationError, IntegrityError


@pytest.mark.parametrize("which", ["built", "unconverged"])
def test_what_is_read_back_builds_the_same_bytes(which, request, tmp_path):
    built = request.getfixturevalue(which)
    stored = restore_artifact(built.folder)
    manifest = build_artifact(tmp_path, stored.result, stored.eva, stored.provenance)
    cards = {"files": {}, "manifest_sha256": ""}  # the order of settings in the card is not kept
    assert manifest | cards == built.manifest | cards
    for name in built.manifest["files"].keys() - {"README.md"}:
        assert (tmp_path / name).read_bytes() == (built.folder / name).read_bytes(), name
    # a manifest does not keep the order of settings
    ours, theirs = ((folder / "README.md").read_text().splitlines() for folder in (tmp_path, built.folder))
    assert sorted(ours) == sorted(theirs)


def test_what_is_read_back_is_what_was_written(unconverged):
    stored = restore_artifact(unconverged.folder)
    assert (stored.eva, stored.provenance) == (unconverged.eva, unconverged.provenance)
    ours, theirs = stored.result.state, unconverged.result.state
    assert ours.plan == theirs.plan and ours.ranks == theirs.ranks and ours.history == theirs.history
    assert ours.stop is Stop.max_steps and ours.active == theirs.active
    for before, after in zip(theirs.groups, ours.groups, strict=True):
        assert torch.equal(before.ratios_K, after.ratios_K)
        assert (before.cosines_K is None) == (after.cosines_K is None) == (before.updates < 2)
        assert before.cosines_K is None or torch.equal(before.cosines_K, after.cosines_K)
        assert (before.rows, before.updates, before.step) == (after.rows, after.updates, after.step)


def test_patterns_keep_their_order(build):
    """The first one that fits counts, and a manifest sorts its keys."""
    ordered = build(rank_pattern={"layers.1.mlp.down_proj": 3, "down_proj": 6})
    stored = restore_artifact(ordered.folder)
    assert list(stored.eva.rank_pattern.items()) == [("layers.1.mlp.down_proj", 3), ("down_proj", 6)]
    assert stored.result.state.plan == ordered.result.state.plan
    assert list(stored.provenance.config["eva"]["rank_pattern"]) == ["layers.1.mlp.down_proj", "down_proj"]


def test_components_are_kept_unwhitened_beyond_the_ranks(build):
    whitened = build(whiten=True)
    kept = load_file(whitened.folder / "components.safetensors")
    groups = whitened.result.state.plan.groups
    assert kept.keys() == {group.tap for group in groups}
    for group in groups:
        assert torch.equal(kept[group.tap], whitened.result.components[group.index].v_KD)
        assert len(kept[group.tap]) == group.n_components > whitened.result.state.group_rank(group.index) - 1


@pytest.fixture
def copied(built, tmp_path):
    return shutil.copytree(built.folder, tmp_path / "copy")


def rewrite(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["components.safetensors", "spectrum.parquet", "convergence.parquet"])
def test_one_changed_byte_is_found(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{name} has sha256 .* but its manifest says"):
        restore_artifact(copied)


@pytest.mark.parametrize("name", ["components.safetensors", "README.md"])
def test_a_missing_file_is_incomplete(copied, name):
    (copied / name).unlink()
    with pytest.raises(IntegrityError, match=f"is incomplete: {name} missing or cut; "):
        restore_artifact(copied)


def test_settings_that_the_fingerprint_does_not_cover_are_found(copied, built):
    decisive = built.manifest["decisive"]
    rewrite(copied, decisive=decisive | {"eva": decisive["eva"] | {"tau": 0.5}})
    with pytest.raises(IntegrityError, match="fingerprint is not that of `decisive`"):
        restore_artifact(copied)


def test_input_groups_that_contradict_the_layers_are_found(copied, built):
    groups = built.manifest["input_groups"]
    tap = next(iter(groups))
    rewrite(copied, input_groups=groups | {tap: groups[tap] | {"n_components": 3}})
    with pytest.raises(IntegrityError, match=rf"n_components of {tap}"):
        restore_artifact(copied)
    rewrite(copied, input_groups={name: group for name, group in groups.items() if name != tap})
    with pytest.raises(IntegrityError, match="input groups must partition layers"):
        restore_artifact(copied)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format_version": 1}, r"format_version=1, must be 2: it keeps no components.*artifact\.overwrite=true"),
        ({"format_version": None}, r"format_version=None, must be 2: another version of eva_dist wrote it"),
        ({"format_version": 3}, r"format_version=3, must be 2: another version of eva_dist wrote it; use that one"),
        ({"method": "corda"}, r"holds method=corda, must be eva"),
    ],
)
def test_other_formats_are_refused_with_a_remedy(copied, changes, complaint):
    rewrite(copied, **changes)
    with pytest.raises(DerivationError, match=complaint):
        restore_artifact(copied)


def test_nothing_there(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match="no artifact at"):
        restore_artifact(tmp_path)
