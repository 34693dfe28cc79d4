"""The words of `eva-dist derive` mean what they mean to Hydra: the same fingerprint, to the digit."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import eva_dist.artifact.write
from eva_dist.cli.main import main
from eva_dist.cli.overrides import eva_overrides
from eva_dist.run.prepare import prepare
from jobs.hydra_main import for_hydra, register_schema, to_config
from tests.own_run import own_run

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def configure(tiny_model, words_file, tmp_path):
    """Return the settings that these words give a job."""

    def from_words(*words):
        register_schema()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = compose(
                "precompute",
                [
                    *(f"model.name_or_path={tiny_model}", f"data.path={words_file}", f"store.url={tmp_path / 'store'}"),
                    *("data.max_length=64", "data.step_size=6", "eva.r=4", "eva.tau=0.9", "cluster.num_workers=1"),
                    *("eva.target_modules=[q_proj,v_proj,down_proj]", *words),
                ],
            )
        return to_config(settings)

    return from_words


@pytest.mark.parametrize(
    "words",
    [
        ["eva.whiten=true"],
        ["eva.lora_alpha=32", "eva.adjust_scaling_factors=false"],
        ["eva.rho=2"],
        ["eva.rank_pattern={}", "eva.max_steps=150", "eva.whiten=true"],
    ],
    ids=" ".join,
)
def test_an_exact_derivation_has_the_fingerprint_of_the_job(configure, monkeypatch, capfd, tmp_path, words):
    monkeypatch.setattr(eva_dist.artifact.write, "write_plots", lambda *given: None)
    source = own_run(configure())
    main_of(["derive", source.url, *words, "--store", str(tmp_path / "derived")])
    outcome = json.loads(capfd.readouterr().out.splitlines()[-1])
    run = prepare(configure(*words))
    assert (outcome["fingerprint"], outcome["repo_id"]) == (run.fingerprint, run.repo_id)


SAME = [
    (["eva.rank_pattern={q_proj:2, v_proj: 3}"], {"rank_pattern": {"q_proj": 2, "v_proj": 3}}),
    ([r"eva.rank_pattern={^model\.layers\.0\.:2}"], {"rank_pattern": {r"^model\.layers\.0\.": 2}}),
    ([r'+eva.rank_pattern={"^model\.(a|b){1,2}:x": 2}'], {"rank_pattern": {r"^model\.(a|b){1,2}:x": 2}}),
    ([r"++eva.rank_pattern={'q_proj': 2}"], {"rank_pattern": {"q_proj": 2}}),
    ([r"+eva.rank_pattern.^model\.layers\.0\..*=2", "eva.rank_pattern.q_proj=3"],
     {"rank_pattern": {r"^model\.layers\.0\..*": 2, "q_proj": 3}}),
    (["+eva.rank_pattern.model.layers.0.mlp.up_proj=2"], {"rank_pattern": {"model.layers.0.mlp.up_proj": 2}}),
    (["eva.rank_pattern={}"], {"rank_pattern": {}}),
    ([r"eva.target_modules=^model\..*\.(q_proj|v_proj)$"], {"target_modules": r"^model\..*\.(q_proj|v_proj)$"}),
    ([r"eva.target_modules='.*\.q_proj'"], {"target_modules": r".*\.q_proj"}),
    (["eva.target_modules=[q_proj,\"v_proj\"]"], {"target_modules": ["q_proj", "v_proj"]}),
    (["eva.exclude_modules=[^a,b]"], {"exclude_modules": ["^a", "b"]}),
    (["eva.target_modules=null"], {"target_modules": None}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "meant"), SAME, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_names_and_patterns_are_written_alike_for_both(configure, words, meant):
    assert eva_overrides(words) == meant
    config = configure(*for_hydra(words))
    assert {name: getattr(config.eva, name) for name in meant} == meant


def test_what_sweeps_and_what_is_wrong_is_left_to_hydra():
    words = ["eva.rank_pattern={a:1},{b:2}", "eva.rank_pattern={a", "eva.rho=1,2", "-m", "~eva.rank_pattern"]
    assert for_hydra(words) == words


def main_of(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
