"""What `merge` refuses: artifacts that do not add up, and sums that are not what their manifest says."""

import hashlib
import json
import shutil

import pytest

from eva_dist.errors import DerivationError, IntegrityError, StoreError
from eva_dist.transform.derive import derive_and_publish
from tests.summed_runs import MODEL, ROWS, SIZES, assert_same, folder_of, publish_run, rows_of

pytestmark = pytest.mark.usefixtures("no_figures")


def last_bit_flipped(content: bytes) -> bytes:
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


class TestRefused:
    """Artifacts that do not add up."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model": MODEL | {"weights": {"w": "2e"}}}, "the base model's weights: {w: 1f} in "),
            ({"model": MODEL | {"dtype": "bfloat16"}}, "the base model's dtype: float32 in "),
            ({"tokenizer": "cd"}, "the tokenizer's sha256: ab in "),
            ({"label_mask_value": -1}, "eva.label_mask_value: -100 in "),
            ({"use_label_mask": False}, "eva.label_mask_value: -100 in "),
        ],
        ids=["weights", "dtype", "tokenizer", "mask", "unmasked"],
    )
    def test_of_another_model_or_other_tokens(self, store, add, settings, message):
        name = "other-" + "".join(c for c in str(settings) if c.isalnum())[-30:]
        with pytest.raises(DerivationError) as error:
            add("one", publish_run(store, name, ROWS["two"], **settings).url)
        (line,) = str(error.value).splitlines()
        assert line.startswith(message) and line.endswith("with the same layers and tokens that count, add up")

    def test_of_the_same_model_found_elsewhere_they_add_up(self, store, add):
        elsewhere = publish_run(store, "elsewhere", ROWS["two"], model=MODEL | {"id": "/srv/gpt", "revision": "main"})
        assert_same(folder_of(add("one", elsewhere.url)), folder_of(add("one", "two")))

    def test_with_other_layers(self, store, add, monkeypatch):
        monkeypatch.setitem(SIZES, "h.0.c", 20)
        other = publish_run(store, "narrow", rows_of(4, 3))
        with pytest.raises(DerivationError, match=r"^layers: \(h\.0\.c, 24, .*, \(h\.0\.c, 20, 8, False\) in"):
            add("one", other.url)

    def test_that_share_inputs_otherwise(self, store, add, monkeypatch):
        split = [["h.0.a"], ["h.0.b"], ["h.0.c"], ["h.0.d"]]
        monkeypatch.setattr("tests.summed_runs.INPUTS", split)
        rows = rows_of(4, 3)
        other = publish_run(store, "split", rows | {"h.0.b": rows["h.0.a"]})
        with pytest.raises(DerivationError, match="^layers that share an input: 3 of them in .*, 4 of them in"):
            add("one", other.url)

    def test_the_same_one_twice(self, runs, store, add, tmp_path):
        twin = shutil.copytree(runs["one"].folder, tmp_path / "twin")
        derived = derive_and_publish(runs["one"].url, {"lora_alpha": 5.0}, str(tmp_path / "derived"))
        inside = folder_of(add("one", "three"))
        for again in ("one", twin, folder_of(derived), inside):
            with pytest.raises(DerivationError, match="holds the same sums as .* --weight") as error:
                add("two", "one", again, lora_alpha=16.0)
            assert len(str(error.value).splitlines()) == 1, again
        with pytest.raises(DerivationError, match="holds the same sums"):
            add(inside, folder_of(add("three", "two")))

    def test_the_same_run_computed_twice(self, runs, store, add, tmp_path):
        """Another machine adds up in another order: the sums differ in their last bits, and count no more for it."""
        again = shutil.copytree(runs["one"].folder, tmp_path / "again")
        path = again / "covariance.safetensors"
        path.write_bytes(content := last_bit_flipped(path.read_bytes()))
        manifest = json.loads((again / "manifest.json").read_text())
        manifest["files"][path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        (again / "manifest.json").write_text(json.dumps(manifest))
        inside = folder_of(add("one", "three"))
        said = f"the same sums as .* .fingerprint {runs['one'].fingerprint[:9]}"
        for pair in ((again, "one"), ("one", again), (again, inside), (inside, again)):
            with pytest.raises(DerivationError, match=said):
                add("two", *pair)

    def test_the_same_data_in_two_of_them_is_said(self, store, add, caplog):
        tighter = publish_run(store, "tighter", rows_of(1, 3), data="one", tau=0.99)
        add("one", tighter.url, tau=1.0)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "are of the same data (one): its rows count once for each" in said

    def test_without_sums_it_says_how_to_get_them(self, store, add):
        bare = publish_run(store, "bare", ROWS["two"], keep=False, rank_pattern={"a": 4, "c": 2})
        with pytest.raises(DerivationError) as error:
            add("one", bare.url)
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"{bare.url} (fingerprint {bare.fingerprint}) keeps no covariance.safetensors")
        command = line.partition("compute it again: ")[2]
        assert command == (
            "python jobs/precompute.py model.name_or_path=gpt data.path=bare.txt eva.max_steps=7 "
            "eva.on_max_steps=accept eva.r=3 'eva.rank_pattern={a: 4,c: 2}' 'eva.target_modules=[a,b,c,d]' "
            "eva.tau=1.0 solver=covariance solver.keep_covariance=true"
        )

    @pytest.mark.parametrize(
        ("names", "weights", "message"),
        [
            (["one"], [2], "1 sources and 1 weights: merge takes two sources or more"),
            (["one", "two"], [2], "2 sources and 1 weights"),
            (["one", "two"], [1, 0.0], "--weight 0.0 must be > 0"),
            (["one", "two"], [1, float("nan")], "--weight nan must be > 0"),
        ],
    )
    def test_numbers_that_do_not_fit(self, add, names, weights, message):
        with pytest.raises(DerivationError) as error:
            add(*names, weights=weights)
        assert message in str(error.value)

    def test_names_that_differ_must_be_given(self, runs, add, tmp_path):
        renamed = shutil.copytree(runs["two"].folder, tmp_path / "renamed")
        manifest = json.loads((renamed / "manifest.json").read_text())
        (renamed / "manifest.json").write_text(json.dumps(manifest | {"repo_id": "team/other"}))
        with pytest.raises(DerivationError, match=r"different names \(team/other, team/tiny\); .*--repo-id"):
            add("one", renamed)
        assert add("one", renamed, repo_id="team/sum").repo_id == "team/sum"


class TestDamaged:
    """Sums that are not what their manifest says, or that no run could have written."""

    @pytest.fixture
    def broken(self, runs, tmp_path):
        return shutil.copytree(runs["one"].folder, tmp_path / "broken")

    def rewrite(self, folder, change):
        """Replace the file, and make the manifest agree."""

        path = folder / "covariance.safetensors"
        path.write_bytes(content := change(bytearray(path.read_bytes())))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def test_a_flipped_bit(self, broken, add):
        path = broken / "covariance.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 4
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match="has sha256"):
            add("two", broken)

    def test_a_file_that_is_cut(self, broken, add):
        path = broken / "covariance.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(IntegrityError, match="missing or cut"):
            add("two", broken)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: content[:-8], "cannot be read"),
            (lambda content: b"no tensors at all", "cannot be read"),
            (lambda content: content.replace(b"h.0.c.mean", b"h.0.c.neam"), "lacks h.0.c"),
            (lambda content: content.replace(b"h.0.c.", b"h.0.x."), "has no sum for h.0.c, which was updated 4 times"),
            (lambda content: content.replace(b'"F64"', b'"I64"'), "must be finite float64 numbers"),
            (lambda content: content[:-8] + b"\xff" * 8, "must be finite float64 numbers"),
        ],
        ids=["cut", "none", "lacks", "has no", "dtype", "nan"],
    )
    def test_a_file_that_lies(self, broken, add, change, message):
        self.rewrite(broken, lambda content: bytes(change(content)))
        with pytest.raises(IntegrityError, match=message):
            add("two", broken)

    def test_no_room_for_the_sum_is_an_error_of_the_store(self, add, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("eva_dist.transform.merge.write_covariance", full)
        with pytest.raises(StoreError, match="No space left on device.*TMPDIR"):
            add("one", "two")
