"""The words of `eva-dist derive` mean what they mean to Hydra: the same fingerprint, to the digit."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import eva_dist.artifact.write
from eva_dist.cli.main import main
from eva_dist.run.prepare import prepare
from jobs.hydra_main import register_schema, to_config
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


def main_of(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
