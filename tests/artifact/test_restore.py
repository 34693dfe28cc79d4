"""An artifact read back builds the same artifact again; one that is not whole is refused."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from eva_dist.artifact.restore import restore_artifact
from eva_dist.artifact.write import build_artifact
from eva_dist.calibration.controller import Stop
from eva_dist.errors import ArtifactNotFoundError, DerivationError, IntegrityError
from eva_dist.store.snapshot import folder_snapshot
from tests.quick_figures import drawn_figures


@pytest.mark.parametrize("which", ["built", "unconverged"])
def test_what_is_read_back_builds_the_same_bytes(which, request, tmp_path):
    built = request.getfixturevalue(which)
    stored = restore_artifact(built.folder)
    with drawn_figures():
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


def replaced(folder, name, content):
    """Put other bytes in a file's place, and make the manifest agree."""
    (folder / name).write_bytes(content)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files=listed | {name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}})


MERGED = {"fingerprint": "ab", "covariance_sha256": "cd", "repo_id": "a/b", "revision": "c", "steps": 1, "tokens": 2}
MERGED |= {"weight": 1.0, "data": {"path": "x"}, "merged_from": None}


def test_what_merge_writes_of_its_sources_is_taken(copied):
    rewrite(copied, merged_from=[MERGED, MERGED | {"merged_from": [MERGED]}])
    assert len(restore_artifact(copied).provenance.merged_from) == 2


POISON = {
    **{f"no {key}": {key: None} for key in ("layers", "decisive", "config", "steps", "seconds_by_phase")},
    **{f"{key} is a list": {key: []} for key in ("input_groups", "layers", "config", "model", "versions", "decisive")},
    **{f"{key} is a text": {key: "abc"} for key in ("merged_from", "derived_from", "seconds", "steps", "rank_pattern")},
    "merged from a number": {"merged_from": 5},
    "merged from nothing": {"merged_from": [{}]},
    "merged from texts": {"merged_from": ["abc"]},
    "merged from what is none": {"merged_from": [MERGED | {"merged_from": "abc"}]},
    "merged at no weight": {"merged_from": [MERGED | {"weight": "1"}]},
    "merged of no data": {"merged_from": [MERGED | {"data": {}}]},
    "too many steps": {"steps": -1},
}


@pytest.mark.parametrize("poison", POISON)
def test_a_manifest_that_is_not_what_it_seems_is_refused(copied, poison):
    rewrite(copied, **POISON[poison])
    with pytest.raises(IntegrityError, match="does not fit its files"):
        restore_artifact(copied)


@pytest.mark.parametrize(
    ("group", "poison"),
    [
        ("eva", {"r": "4,\n    **evil()"}),
        ("eva", {"r": 0}),
        ("eva", {"whiten": "False"}),
        ("eva", {"lora_alpha": float("nan")}),
        ("eva", {"other": 1}),
        ("model", {"config_overrides": ["evil"]}),
        ("model", {"config_overrides": {"evil": float("inf")}}),
    ],
)
def test_settings_that_are_none_are_refused(copied, built, group, poison):
    config = built.manifest["config"]
    rewrite(copied, config=config | {group: config[group] | poison})
    with pytest.raises(IntegrityError, match="does not fit its files"):
        restore_artifact(copied)


@pytest.mark.parametrize("name", ["spectrum.parquet", "convergence.parquet", "components.safetensors"])
@pytest.mark.parametrize("content", [b"PAR1xxxxPAR1", b"", b"none"])
def test_a_file_that_is_none_is_refused(copied, name, content):
    replaced(copied, name, content)
    with pytest.raises(IntegrityError, match="does not fit its files"):
        restore_artifact(copied)


@pytest.mark.parametrize("name", ["spectrum.parquet", "convergence.parquet"])
def test_more_rows_than_the_manifest_can_mean_are_not_unpacked(copied, name):
    table = pq.read_table(copied / name)
    bomb = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([table] * 20), bomb)
    replaced(copied, name, bomb.getvalue().to_pybytes())
    with pytest.raises(IntegrityError, match="rows, must be at most"):
        restore_artifact(copied)


def test_the_manifest_is_read_once(copied):
    """Between two readings it could change: what was checked and what is used would be two things."""
    snapshot, path = folder_snapshot(copied), copied / "manifest.json"
    path.write_text(path.read_text().replace("team/tiny", "team/evil"))
    assert restore_artifact(copied, snapshot).provenance.repo_id == "team/tiny"
    assert restore_artifact(copied).provenance.repo_id == "team/evil"


def test_nothing_there(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match="no artifact at"):
        restore_artifact(tmp_path)
