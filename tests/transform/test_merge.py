"""`merge` against one run over all rows: what adds up, what is refused, and what the artifact says of itself."""

import itertools
import weakref

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import eva_dist
from eva_dist.artifact.covariance import CovarianceFile, open_covariance
from eva_dist.artifact.restore import restore_artifact
from eva_dist.config import Budget
from eva_dist.errors import ConfigError, DerivationError
from eva_dist.transform.derive import derive_and_publish
from tests.summed_runs import ROWS, TAPS, after, assert_same, folder_of, manifest_of, publish_run, rows_of

pytestmark = pytest.mark.usefixtures("no_figures")
SAME_BYTES = [
    "eva_state_dict.safetensors",
    "adapter_model.safetensors",
    "components.safetensors",
    "covariance.safetensors",
    "spectrum.parquet",
    "convergence.parquet",
]


class TestOneRun:
    """The sum is one run over all rows."""

    @pytest.mark.parametrize("names", [("one", "two"), ("two", "three"), ("one", "two", "three")], ids="+".join)
    def test_merged_is_one_run_over_all_rows(self, add, store, names):
        theirs = publish_run(store, "all-" + "-".join(names), after(*(ROWS[name] for name in names)))
        ours = add(*names)
        assert_same(folder_of(ours), theirs.folder)
        manifest = manifest_of(ours)
        for tap in TAPS:
            assert manifest["input_groups"][tap]["rows"] == theirs.manifest["input_groups"][tap]["rows"]
        for key in ("rank_budget", "parameter_budget", "trainable_parameters", "largest_rank"):
            assert manifest[key] == theirs.manifest[key], key

    def test_a_weight_of_two_is_the_data_twice(self, add, store):
        theirs = publish_run(store, "one-twice", after(ROWS["one"], ROWS["one"], ROWS["two"]))
        ours = add("one", "two", weights=[2, 1])
        assert_same(folder_of(ours), theirs.folder)
        assert ours.tokens == manifest_of(ours)["tokens"] == 4 * 30 + 7 * 50  # those that were forwarded

    def test_only_the_relation_of_weights_counts_for_the_vectors(self, add):
        ours, theirs = add("one", "two", weights=[0.3, 0.6]), add("one", "two", weights=[1, 2])
        a, b = (load_file(folder_of(each) / "eva_state_dict.safetensors") for each in (ours, theirs))
        for name, rows_RD in a.items():
            torch.testing.assert_close(rows_RD, b[name])
        sums = load_file(folder_of(ours) / "covariance.safetensors")
        assert float(sums["h.0.c.rows"]) == pytest.approx(0.3 * 120 + 0.6 * 350)

    def test_the_same_bytes_in_any_order(self, add):
        first, decisive = None, None
        for at, names in enumerate(itertools.permutations(ROWS)):
            weights = [{"one": 1.0, "two": 0.5, "three": 3.0}[name] for name in names]
            outcome = add(*names, weights=weights, into=f"store-{at}")
            found = {name: (folder_of(outcome) / name).read_bytes() for name in SAME_BYTES}
            first, decisive = first or found, decisive or manifest_of(outcome)["decisive"]
            assert found == first and manifest_of(outcome)["decisive"] == decisive, names

    def test_merging_is_associative(self, add):
        part = add("one", "three")
        nested, flat = add(folder_of(part), "two"), add("one", "two", "three")
        assert nested.fingerprint != flat.fingerprint
        assert_same(folder_of(nested), folder_of(flat), 1e-12)
        assert (nested.steps, nested.tokens) == (flat.steps, flat.tokens) == (16, 4 * 30 + 7 * 50 + 5 * 30)

    def test_the_answer_comes_from_the_store_when_it_is_there(self, add):
        first, again = add("one", "two"), add("two", "one", revision="again")
        assert (first.status, again.status) == ("not_converged", "cached")
        assert again.fingerprint == first.fingerprint and again.revision == "again"
        assert first.revision == f"merged-{first.fingerprint[:8]}" and first.repo_id == "team/tiny"

    def test_a_group_that_no_source_saw_gets_rank_0(self, store, add):
        urls = [publish_run(store, f"few-{seed}", rows_of(seed, 3, "h.0.a", "h.0.d")).url for seed in (8, 9)]
        manifest = manifest_of(outcome := add(*urls))
        assert manifest["layers"]["h.0.c"]["rank"] == 0
        assert manifest["layers"]["h.0.c"]["stop_reason"] == "max_steps"
        assert load_file(folder_of(outcome) / "components.safetensors")["h.0.c"].shape == (0, 24)
        assert sum(layer["rank"] for layer in manifest["layers"].values()) == 4 * 3

    def test_one_group_at_a_time_is_in_memory(self, add, monkeypatch):
        alive, most = [], 0
        read = CovarianceFile.state

        def counted(self, group):
            nonlocal most
            found = read(self, group)
            alive.append(weakref.ref(found.scatter_DD))
            most = max(most, sum(ref() is not None for ref in alive))
            return found

        monkeypatch.setattr(CovarianceFile, "state", counted)
        add("one", "two", "three")
        assert len(alive) == 8 and most <= 2


class TestSettings:
    """Settings of EVA are those of the sources, or given anew: the sums hold all components."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"rho": 1.0},
            {"r": 5, "rho": 2.4},  # more components than a source followed
            {"rank_pattern": {"a": 5}},
            {"budget": Budget.params},
        ],
        ids=str,
    )
    def test_given_anew_they_are_those_of_one_run(self, add, store, changes):
        theirs = publish_run(store, "all-" + "-".join(changes), after(ROWS["one"], ROWS["two"]), **changes)
        ours = add("one", "two", **changes)
        assert_same(folder_of(ours), theirs.folder)
        manifest = manifest_of(ours)
        assert manifest["r"] == theirs.manifest["r"] and manifest["budget"] == theirs.manifest["budget"]

    def test_where_sources_differ_they_must_be_given(self, runs, store, add):
        other = publish_run(store, "whitened", ROWS["two"], whiten=True, r=4)
        with pytest.raises(DerivationError) as error:
            add("one", other.url)
        lines = str(error.value).splitlines()
        assert lines == [
            f"eva.r: 3 in {runs['one'].url}, 4 in {other.url}; say which with eva.r=...",
            f"eva.whiten: False in {runs['one'].url}, True in {other.url}; say which with eva.whiten=...",
        ]
        given = add("one", other.url, r=3, whiten=False)
        assert_same(folder_of(given), folder_of(add("one", "two")))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"target_modules": ["a"]}, "eva.target_modules=[a] cannot be set by a merge: the layers are those of"),
            ({"max_steps": 3}, "eva.max_steps=3 cannot be set by a merge: no step is made here; leave it out"),
            ({"use_label_mask": False}, "eva.use_label_mask=False cannot be set by a merge: it decides which tokens"),
            ({"tau": 1.5}, "eva.tau=1.5 must be in 0..1"),
            ({"rho": 0.5}, "eva.rho=0.5 must be >= 1"),
            ({"r": 13}, "eva.r=13 must be <= in_features=12 of layer h.0.d"),
            ({"rank_pattern": {"nothing": 3}}, "nothing"),
        ],
    )
    def test_what_cannot_be_given(self, add, changes, message):
        with pytest.raises(ConfigError) as error:
            add("one", "two", **changes)
        assert message in str(error.value)

    def test_more_components_than_rows_are_refused(self, store, add):
        urls = [publish_run(store, f"short-{seed}", rows_of(seed, 1, tokens=6)).url for seed in (5, 6)]
        with pytest.raises(DerivationError, match=r"h\.0\.a: 14 components cannot be had of 12 rows; lower eva\.r"):
            add(*urls, rho=14 / 3)


class TestWhatItSays:
    """Manifest, card, and what may be done with a merged artifact."""

    @pytest.fixture
    def settled(self, store):
        """Two sources at tau=0.9 of which one had not converged in c."""
        rows = {tap: [rows_of(1, 1)[tap][0]] * 3 for tap in TAPS}  # the same rows again: nothing turns
        other = {tap: [x_TD + 1 for x_TD in rows[tap]] for tap in TAPS}
        other["h.0.c"] = rows_of(7, 3, tokens=8)["h.0.c"]
        return [publish_run(store, f"settled-{at}", each, tau=0.9) for at, each in enumerate((rows, other))]

    def test_a_layer_has_converged_if_it_had_in_every_source(self, settled, add):
        assert [each.manifest["layers_converged"] for each in settled] == [4, 3]
        outcome = add(*(each.url for each in settled))
        assert (outcome.status, outcome.layers_converged, outcome.layers_total) == ("not_converged", 3, 4)
        layers = manifest_of(outcome)["layers"]
        assert {name: layer["stop_reason"] for name, layer in layers.items()} == {
            "h.0.a": "converged",
            "h.0.b": "converged",
            "h.0.c": "max_steps",
            "h.0.d": "converged",
        }
        assert layers["h.0.c"]["lowest_cosine"] is None
        spectrum = pq.read_table(folder_of(outcome) / "spectrum.parquet").to_pydict()
        assert set(spectrum["cosine"]) == set(spectrum["step_converged"]) == {None}
        assert pq.read_table(folder_of(outcome) / "convergence.parquet").num_rows == 0
        card = (folder_of(outcome) / "README.md").read_text()
        assert "**Not shown to have converged**: 1 of 4 layers" in card and "They are `h.0.c`." in card

    def test_a_tighter_tau_must_have_been_reached_too(self, settled, add):
        urls = [each.url for each in settled]
        lowest = {
            tap: min(
                float(state.groups[index].cosines_K[: state.group_rank(index)].min())
                for state in (restore_artifact(each.folder).result.state for each in settled)
            )
            for index, tap in enumerate(TAPS)
        }
        assert lowest["h.0.c"] < 0.9 < min(lowest["h.0.a"], lowest["h.0.d"])
        assert add(*urls, tau=lowest["h.0.c"] - 1e-6).status == "done"
        groups = manifest_of(add(*urls))["input_groups"]
        assert {tap: groups[tap]["converged_to"] for tap in TAPS} == lowest
        assert add(*urls, tau=1.0).layers_converged <= 1  # cosines of rows that come again may round to 1

    def test_it_reads_back_as_it_was_built(self, settled, add):
        outcome = add(*(each.url for each in settled))
        stored = restore_artifact(folder_of(outcome))
        assert stored.result.state.layers_converged == 3 and not stored.provenance.is_own_run
        assert stored.result.state.stop.value == "max_steps"
        assert stored.eva.max_steps == stored.result.state.steps == 6

    def test_provenance(self, runs, add):
        outcome = add("two", "one", weights=[0.5, 2])
        manifest, by_name = manifest_of(outcome), {runs[name].fingerprint: name for name in ROWS}
        assert [entry["fingerprint"] for entry in manifest["merged_from"]] == sorted(
            [runs["one"].fingerprint, runs["two"].fingerprint]
        )
        for entry in manifest["merged_from"]:
            name = by_name[entry["fingerprint"]]
            theirs = runs[name].manifest
            assert entry["weight"] == {"one": 2.0, "two": 0.5}[name]
            assert entry["covariance_sha256"] == theirs["files"]["covariance.safetensors"]["sha256"]
            assert entry["data"] == {"path": f"{name}.txt", **theirs["data"]}
            assert (entry["steps"], entry["tokens"]) == (theirs["steps"], theirs["tokens"])
            assert entry["merged_from"] is None and entry["revision"] == name
        assert manifest["decisive"].keys() == {"method", "merged_from", "eva", "layers"}
        assert manifest["data"]["samples"] == 110 and manifest["seconds"] == 0.5 * 11
        assert set(manifest["config"]["data"]["path"].split(" + ")) == {"one.txt", "two.txt"}
        assert manifest["config"]["eva"]["max_steps"] == 11
        card = (folder_of(outcome) / "README.md").read_text()
        assert "## Merged" in card and "from 2 artifacts" in card and "convergence.png" not in card
        assert f"| `{runs['two'].fingerprint}` | 0.5 | 7 | 350 | `two.txt` |" in card
        assert "covariance.safetensors" in card

    def test_loaders_take_it(self, add):
        outcome = add("one", "two")
        found = eva_dist.load_eva_state_dict(outcome.url, prefix="")
        assert sum(len(rows) for rows in found.values()) == 4 * 3

    @pytest.mark.parametrize(
        "changes", [{"whiten": True}, {"rho": 1.5}, {"tau": 0.8}, {"r": 2, "lora_alpha": 4.0}], ids=str
    )
    def test_derived_of_it_is_what_merging_with_these_settings_gives(self, add, tmp_path, changes):
        derived = derive_and_publish(add("one", "two").url, changes, str(tmp_path / "derived"))
        merged = add("one", "two", into="other", **changes)
        assert derived.fingerprint == merged.fingerprint
        for name in SAME_BYTES:
            assert (folder_of(derived) / name).read_bytes() == (folder_of(merged) / name).read_bytes(), name
        assert derived.revision.endswith("-merged")
        assert manifest_of(derived)["merged_from"] == manifest_of(merged)["merged_from"]

    def test_derived_of_fewer_layers_keeps_no_sums_of_others(self, add, tmp_path):
        derived = derive_and_publish(add("one", "two").url, {"target_modules": ["b", "d"]}, str(tmp_path / "derived"))
        assert "covariance.safetensors" not in manifest_of(derived)["files"]
        assert manifest_of(derived)["input_groups"].keys() == {"h.0.b", "h.0.d"}


def test_derived_artifacts_keep_the_sums_and_add_up(runs, add, tmp_path):
    derived = derive_and_publish(runs["one"].url, {"whiten": True}, str(tmp_path / "derived"))
    name = "covariance.safetensors"
    assert (folder_of(derived) / name).read_bytes() == (runs["one"].folder / name).read_bytes()
    assert_same(folder_of(add(folder_of(derived), "two", whiten=False)), folder_of(add("one", "two")))


def test_the_file_is_one_that_others_can_read(runs, store):
    """Sorted, without holes, one metadata key: safetensors' own reader takes it."""
    from safetensors import safe_open

    path = runs["two"].folder / "covariance.safetensors"
    with safe_open(path, "pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}
        names = ("rows", "mean", "total_variance", "scatter")
        assert set(tensors.keys()) == {f"{tap}.{name}" for tap in TAPS for name in names}
    found = load_file(path)
    x_TD = torch.cat(ROWS["two"]["h.0.c"]).double()
    assert float(found["h.0.c.rows"]) == len(x_TD)
    torch.testing.assert_close(found["h.0.c.mean"], x_TD.mean(dim=0))
    centred_TD = x_TD - x_TD.mean(dim=0)
    scatter_DD = centred_TD.mT @ centred_TD
    at = torch.tril_indices(24, 24)
    torch.testing.assert_close(found["h.0.c.scatter"], scatter_DD[at[0], at[1]])
    torch.testing.assert_close(found["h.0.c.total_variance"], scatter_DD.trace())
    group = restore_artifact(runs["two"].folder).result.state.plan.groups[1]
    with open_covariance(path) as file:
        assert group in file
        torch.testing.assert_close(file.state(group).scatter_DD, scatter_DD)
