"""`derive` against runs of the same settings, on the tiny model; and what it refuses."""

import functools
import json
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import eva_dist
import eva_dist.artifact.write
from eva_dist.artifact.load import source_folder
from eva_dist.artifact.restore import restore_artifact
from eva_dist.config import Budget, OnMaxSteps, SolverName
from eva_dist.errors import ArtifactNotFoundError, ConfigError, DerivationError, IntegrityError, StoreError
from eva_dist.hashing import fingerprint
from eva_dist.run.prepare import prepare
from eva_dist.run.sweep import precompute
from eva_dist.transform.derive import derive, derive_and_publish
from tests.observers import Watching
from tests.own_run import own_run
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("no_figures")
EXACT = ["eva_state_dict.safetensors", "adapter_model.safetensors", "components.safetensors", "spectrum.parquet"]


@pytest.fixture(scope="module")
def configure_here(tiny_model, words_file, tmp_path_factory):
    """Return settings of a tiny run in a store of its own, or in `store`."""

    def configure(store=None, **changes):
        store = store or tmp_path_factory.mktemp("own") / "store"
        config = tiny_config(tiny_model, words_file, store, **changes)
        return replace(config, eva=replace(config.eva, lora_alpha=float(config.eva.lora_alpha)))

    return configure


@pytest.fixture(scope="module")
def source_of(configure_here):
    """Return the artifact of r=4, rho=2, tau=0.9 of a solver; tests only read it."""
    return functools.cache(lambda solver: own_run(configure_here(solver={"name": solver})))


@pytest.fixture(scope="module")
def source(source_of):
    return source_of(SolverName.subspace)


@pytest.fixture(scope="module")
def listed(configure_here):
    """The same, with its targets as a list, so that a part of them can be named."""
    names = [f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")]
    return own_run(configure_here(eva={"target_modules": names}))


@pytest.fixture(scope="module")
def turning(configure_here):
    """One that had not converged to tau=0.9999 after 20 steps, and was accepted."""
    return own_run(configure_here(eva={"tau": 0.9999, "max_steps": 20, "on_max_steps": OnMaxSteps.accept}))


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "derived")


@pytest.fixture
def make(source, store):
    return lambda **changes: derive_and_publish(source.url, changes, store)


def folder_of(outcome) -> Path:
    return Path(outcome.url.removeprefix("file://"))


def manifest_of(outcome):
    return json.loads((folder_of(outcome) / "manifest.json").read_text())


def published(store):
    return sorted(str(path.relative_to(store)) for path in Path(store).glob("**/*") if not path.is_dir())


class TestExact:
    """Settings that do not touch the pass."""

    @pytest.mark.parametrize(
        ("solver", "changes"),
        [
            (SolverName.subspace, {"whiten": True}),
            (SolverName.subspace, {"lora_alpha": 5.0, "adjust_scaling_factors": False}),
            (SolverName.subspace, {"rho": 2.05, "max_steps": 150}),  # round(4 * 2.05) is 8 as well
            (SolverName.incremental, {"whiten": True, "lora_alpha": 5.0}),
            (SolverName.covariance, {"whiten": True, "lora_alpha": 5.0}),
        ],
    )
    def test_the_artifact_is_that_of_a_run(self, configure_here, source_of, store, solver, changes):
        settings = {"solver": {"name": solver}}
        theirs = own_run(configure_here(**settings, eva=changes))
        ours = derive_and_publish(source_of(solver).url, changes, store)
        assert ours.fingerprint == theirs.fingerprint and ours.status == "done"
        assert ours.revision == Path(theirs.url).name
        folder = folder_of(ours)
        for name in EXACT:
            assert (folder / name).read_bytes() == (theirs.folder / name).read_bytes(), name
        config, their_config = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, theirs.folder))
        assert {k: sorted(v) if k == "target_modules" else v for k, v in config.items()} == {
            k: sorted(v) if k == "target_modules" else v for k, v in their_config.items()
        }
        history, their_history = (pq.read_table(f / "convergence.parquet") for f in (folder, theirs.folder))
        assert history.drop_columns("seconds") == their_history.drop_columns("seconds")
        manifest = manifest_of(ours)
        for key in ("decisive", "layers", "input_groups", "steps", "tokens", "stop", "status", "rank_budget"):
            assert manifest[key] == theirs.manifest[key], key
        assert manifest["config"]["eva"] == theirs.manifest["config"]["eva"]

    def test_a_run_of_these_settings_is_answered_from_it(self, configure_here, source, store):
        derived = derive_and_publish(source.url, {"whiten": True}, store, "team/w", "first")
        run = prepare(configure_here(store, eva={"whiten": True}))
        answer = precompute(run, time.perf_counter(), Watching(lambda state: pytest.fail("computed")))
        assert (answer.status, answer.fingerprint) == ("cached", derived.fingerprint)

    def test_an_artifact_that_is_there_answers(self, configure_here, source, make, store):
        theirs = own_run(configure_here(store, eva={"whiten": True}))
        ours = make(whiten=True)
        assert (ours.status, ours.fingerprint, ours.url) == ("cached", theirs.fingerprint, theirs.url)
        assert manifest_of(ours)["derived_from"] is None  # it is the run's own still

    def test_it_says_what_it_is(self, make, source):
        outcome = make(whiten=True)
        said = manifest_of(outcome)["derived_from"]
        assert said == {
            "fingerprint": source.fingerprint,
            "eva": source.manifest["decisive"]["eva"],
            "exact": True,
            "eva_dist": eva_dist.__version__,
        }
        card = (folder_of(outcome) / "README.md").read_text()
        assert f"from the artifact `{source.fingerprint}`" in card and "to the bit" in card
        assert "Derived, not computed" not in card and "| `eva.whiten` | `true` |" in card

    def test_back_and_forth_is_the_source(self, make, source, store):
        whitened = make(whiten=True)
        back = derive_and_publish(whitened.url, {"whiten": False}, store)
        assert back.fingerprint == source.fingerprint
        for name in EXACT:
            assert (folder_of(back) / name).read_bytes() == (source.folder / name).read_bytes()


class TestNear:
    """Settings that another pass would have answered with other numbers."""

    CHANGES = [
        {"rho": 1.25},
        {"rho": 1.0},
        {"r": 3},
        {"tau": 0.8},
        {"budget": Budget.params},
        {"rank_pattern": {"q_proj": 2, r".*layers\.1\.mlp\..*": 3}},
        {"target_modules": ["v_proj", "o_proj", "up_proj"]},  # without the layers that were tapped
        {"r": 2, "rho": 1.5, "whiten": True},
    ]

    @pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes))
    def test_it_is_near_to_a_run_and_never_answers_one(self, configure_here, listed, store, changes):
        ours = derive_and_publish(listed.url, changes, store)
        theirs = own_run(
            configure_here(store, eva={"target_modules": listed.manifest["config"]["eva"]["target_modules"]} | changes)
        )
        assert theirs.fingerprint != ours.fingerprint != listed.fingerprint
        assert ours.revision.endswith("-derived") and "derived" not in Path(theirs.url).name
        assert theirs.manifest["derived_from"] is None
        manifest = manifest_of(ours)
        assert manifest["rank_budget"] == theirs.manifest["rank_budget"]
        assert [row[1:] for row in manifest["decisive"]["layers"]] == [
            row[1:] for row in theirs.manifest["decisive"]["layers"]
        ]
        mine, run = (eva_dist.load_eva_state_dict(url, prefix="") for url in (ours.url, theirs.url))
        assert mine.keys() == run.keys()
        if "budget" in changes:
            assert manifest["trainable_parameters"] <= manifest["parameter_budget"]
        else:
            assert sum(map(len, mine.values())) == sum(map(len, run.values())) == manifest["rank_budget"]
        apart = {name: abs(len(mine[name]) - len(run[name])) for name in run}
        cosines = torch.cat([_cosines(mine[name], run[name]) for name in run])
        print(
            changes,
            f"ranks that differ: {sum(map(bool, apart.values()))} of {len(apart)}, by {max(apart.values())};",
            f"|cos| median {cosines.median():.4f}, least {cosines.min():.4f}",
        )
        assert max(apart.values()) <= 1 and cosines.median() > 0.99

    def test_vectors_are_the_source_s_and_ranks_are_handed_out_anew(self, make, source):
        outcome = make(rho=1.25)
        kept = load_file(folder_of(outcome) / "components.safetensors")
        for tap, v_KD in load_file(source.folder / "components.safetensors").items():
            assert torch.equal(kept[tap], v_KD[:5])
        spectrum = pq.read_table(folder_of(outcome) / "spectrum.parquet").to_pylist()
        assert len(spectrum) == 14 * 5
        strongest = sorted((row["explained_variance_ratio"] for row in spectrum), reverse=True)[: 14 * 4]
        assert {row["explained_variance_ratio"] for row in spectrum if row["kept"]} == set(strongest)
        manifest = manifest_of(outcome)
        assert {layer["max_rank"] for layer in manifest["layers"].values()} == {5}
        assert manifest["status"] == "done" and manifest["steps"] == source.manifest["steps"]

    def test_it_says_what_it_is(self, make, source):
        outcome = make(rho=1.25, tau=0.85)
        manifest = manifest_of(outcome)
        assert manifest["derived_from"]["fingerprint"] == source.fingerprint and not manifest["derived_from"]["exact"]
        decisive = manifest["decisive"]
        assert decisive["derived_from"] == source.fingerprint and decisive["eva"]["rho"] == 1.25
        assert fingerprint(decisive) == outcome.fingerprint == manifest["fingerprint"]
        card = " ".join((folder_of(outcome) / "README.md").read_text().split())
        assert "**Derived, not computed**" in card and "(r = 4, rho = 2.0, tau = 0.9)" in card
        assert f"from the artifact `{source.fingerprint}`" in card and "converged to tau = 0.85" in card

    def test_the_figure_counts_with_the_tau_of_the_pass(self, make, source, monkeypatch):
        drawn = []
        monkeypatch.setattr(eva_dist.artifact.write, "write_plots", lambda *given: drawn.append(given[-1]))
        make(tau=0.8)
        assert drawn == [0.9]

    def test_the_order_of_derivations_does_not_matter(self, make, store):
        at_once = make(rho=1.25, whiten=True)
        narrow = make(rho=1.25)
        by_parameters = make(budget=Budget.params, rho=1.25)
        assert by_parameters.revision == "rho1.25-tau0.9-params-derived"
        back = derive_and_publish(by_parameters.url, {"budget": Budget.ranks}, store)
        assert back.fingerprint == narrow.fingerprint
        then = derive_and_publish(narrow.url, {"whiten": True}, store)
        assert then.fingerprint == at_once.fingerprint and then.status == "cached"
        pattern = {"q_proj": 2, ".*": 3}  # the first that fits counts, but sorted it would be the second
        patterned = make(rank_pattern=pattern)
        smaller = derive_and_publish(patterned.url, {"rho": 1.5}, store)
        assert smaller.fingerprint == make(rank_pattern=pattern, rho=1.5).fingerprint
        assert manifest_of(smaller)["layers"]["model.layers.0.self_attn.q_proj"]["r"] == 2
        wide = derive_and_publish(make(rho=1.5).url, {"rho": 1.25}, store)
        assert wide.fingerprint == narrow.fingerprint

    def test_stored_cosines_may_show_a_stricter_tau(self, make, source):
        rows = pq.read_table(source.folder / "spectrum.parquet").to_pylist()
        shown = min(row["cosine"] for row in rows if row["kept"])
        assert shown > 0.9
        assert make(tau=shown).status == "done"
        with pytest.raises(DerivationError, match=r"eva\.tau=0\.9\d+ is not shown by the source"):
            make(tau=shown + 1e-6)


def _cosines(a_RD, b_RD):
    common = min(len(a_RD), len(b_RD))
    return torch.cosine_similarity(a_RD[:common], b_RD[:common]).abs()


class TestNotConverged:
    def test_a_looser_tau_that_was_seen_is_done(self, turning, store):
        rows = pq.read_table(turning.folder / "spectrum.parquet").to_pylist()
        shown = min(row["cosine"] for row in rows if row["kept"])
        assert turning.manifest["status"] == "not_converged"
        outcome = derive_and_publish(turning.url, {"tau": shown, "on_max_steps": OnMaxSteps.error}, store)
        assert (outcome.status, outcome.layers_converged) == ("done", 14)
        assert manifest_of(outcome)["stop"] == "converged"

    def test_layers_that_are_below_are_listed(self, turning, store):
        with pytest.raises(DerivationError) as error:
            derive_and_publish(turning.url, {"whiten": True, "on_max_steps": OnMaxSteps.error}, store)
        first, *layers = str(error.value).splitlines()
        assert "eva.tau=0.9999 is not shown by the source" in first and "of 14 layers" in first
        assert "use eva.tau <= 0." in first and "eva.on_max_steps=accept" in first and "run jobs/precompute.py" in first
        assert all("components below, lowest cosine 0." in line for line in layers[:10])
        turned = turning.manifest["layers_total"] - turning.manifest["layers_converged"]
        assert f"these settings give {turned} of 14 layers" in first and 0 < len(layers) == min(turned, 11)
        looser = float(first.partition("eva.tau <= ")[2].partition(",")[0])
        changes = {"tau": looser, "on_max_steps": OnMaxSteps.error}
        assert derive_and_publish(turning.url, changes, store).status == "done"

    def test_accepted_it_says_so(self, turning, store):
        outcome = derive_and_publish(turning.url, {"whiten": True}, store)  # the source's setting is accept
        assert outcome.status == "not_converged" and outcome.layers_converged < 14
        assert "[!WARNING]" in (folder_of(outcome) / "README.md").read_text()

    def test_more_steps_are_another_pass(self, turning, store):
        with pytest.raises(
            DerivationError, match=r"eva\.max_steps=9 .*had not converged after 20 steps; leave it at 20"
        ):
            derive_and_publish(turning.url, {"max_steps": 9}, store)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"rho": 3.0}, r"eva\.rho=3\.0 cannot be derived: 8 of 8 input groups .*\(r=4, rho=2\.0\)"),
            ({"rho": 3.0}, r"layers\.0\.self_attn\.q_proj: 12 components, 8 are stored"),
            ({"r": 5}, r"eva\.r=5 cannot be derived: 8 of 8"),
            ({"rank_pattern": {"o_proj": 6}}, r"eva\.rank_pattern=\{o_proj: 6\} cannot be derived: 2 of 8"),
            ({"rank_pattern": {"z_proj": 2}}, r"eva\.rank_pattern\.z_proj names none of the 14 target layers"),
            ({"rank_pattern": {"(": 2}}, r"missing \)"),
            ({"tau": 1.0}, r"eva\.tau=1\.0 is not shown by the source.*use eva\.tau <= 0\.9"),
            ({"use_label_mask": False}, r"eva\.use_label_mask=False cannot be derived: it decides which tokens count"),
            ({"label_mask_value": 0}, r"eva\.label_mask_value=0 cannot be derived"),
            ({"exclude_modules": ["q_proj"]}, r"eva\.exclude_modules=\[q_proj\] cannot be derived"),
            ({"target_modules": ["q_proj"]}, r"eva\.target_modules=\[q_proj\] .* among the source's, all-linear"),
            ({"max_steps": 1}, r"eva\.max_steps=1 cannot be derived: the source's pass converged in \d+ steps"),
            ({"rho": 0.5}, r"eva\.rho=0\.5 must be >= 1\.0"),
            ({"r": 40, "rho": 1.0}, r"eva\.r=40 must be <= in_features=32 of layer"),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_is_missing_is_said_and_nothing_is_published(self, source, store, changes, complaint):
        with pytest.raises(DerivationError) as error:
            derive_and_publish(source.url, changes, store)
        assert re.search(complaint, str(error.value), flags=re.DOTALL), error.value
        assert not Path(store).exists()

    def test_all_that_is_wrong_is_said_at_once(self, make):
        with pytest.raises(DerivationError) as error:
            make(use_label_mask=False, exclude_modules=["a"], max_steps=1, whiten=True)
        assert len(str(error.value).splitlines()) == 3

    def test_a_point_that_shared_its_tracker_is_exact_only_after_the_pass(self, source):
        """Its fingerprint names the passes that it shared with, its own among them."""
        stored = restore_artifact(source.folder)
        decisive = stored.provenance.decisive | {"shared_tracker": ["a" * 64, "b" * 64]}
        shared = replace(
            stored, provenance=replace(stored.provenance, decisive=decisive, fingerprint=fingerprint(decisive))
        )
        whitened = derive(shared, {"whiten": True}).provenance
        assert whitened.derived_from["exact"] and whitened.decisive["shared_tracker"] == decisive["shared_tracker"]
        same_ranks = derive(shared, {"rho": 2.05}).provenance
        assert not same_ranks.derived_from["exact"] and same_ranks.decisive["derived_from"] == fingerprint(decisive)

    def test_what_the_source_has_already_is_no_change(self, source):
        stored = restore_artifact(source.folder)
        same = derive(stored, {"use_label_mask": True, "r": 4, "exclude_modules": None})
        assert same.provenance == stored.provenance

    def test_a_damaged_source_leaves_nothing(self, source, store, tmp_path):
        copy = shutil.copytree(source.folder, tmp_path / "copy")
        content = bytearray((copy / "components.safetensors").read_bytes())
        content[-1] ^= 1
        (copy / "components.safetensors").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"components\.safetensors has sha256"):
            derive_and_publish(str(copy), {"whiten": True}, store)
        assert not Path(store).exists()

    def test_a_full_disk_leaves_nothing(self, make, store, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(eva_dist.artifact.write, "write_card", full)
        with pytest.raises(StoreError, match="No space left on device"):
            make(whiten=True)
        assert published(store) == []

    @pytest.mark.parametrize(("repo_id", "revision"), [("no-namespace", None), (None, "../up"), ("snapshots/a", None)])
    def test_names_that_leave_the_store(self, source, store, repo_id, revision):
        with pytest.raises(StoreError, match=r"artifact\.(repo_id|revision)="):
            derive_and_publish(source.url, {"whiten": True}, store, repo_id, revision)
        assert not Path(store).exists()


class TestSource:
    def test_a_folder_a_url_and_a_name_in_the_store(self, source, tmp_path, monkeypatch):
        here = str(source.folder.parents[2])
        assert source_folder(source.url, here) == source.folder
        assert source_folder("tests/tiny@rho2.0-tau0.9", here) == source.folder.resolve()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "team@work").mkdir()
        assert source_folder("team@work", here) == Path("team@work")

    def test_none_there(self, tmp_path, store):
        for name, why in [("team/none@rho2.0", "has no team/none"), (str(tmp_path), "no artifact at")]:
            with pytest.raises(ArtifactNotFoundError, match=why):
                derive_and_publish(name, {"whiten": True}, store)
        with pytest.raises(ConfigError, match="source=https://host/a: '/a' is no org/name"):
            derive_and_publish("https://host/a", {"whiten": True}, store)
        assert not Path(store).exists()

    def test_the_repository_is_the_source_s_unless_named(self, source, make, store):
        assert make(whiten=True).repo_id == "tests/tiny"
        named = derive_and_publish(source.url, {"whiten": True}, store, "team/other", "w")
        assert (named.status, named.url) == ("cached", (Path(store) / "team/other/w").as_uri())
        assert asdict(named).keys() == asdict(make(whiten=True)).keys()
