"""Which submissions are the same job."""

import shutil
from pathlib import Path

import pytest

from eva_dist.config import ClusterConfig, OnMaxSteps, Resume
from eva_dist.errors import ConfigError, DataError, LayerError
from eva_dist.run.identity import code_digest, identify
from eva_dist.run.prepare import prepare

CLONE = Path(__file__).parents[2]
FAR = {"model": {"name_or_path": "/cluster/llama"}}


@pytest.fixture
def key(configure):
    return lambda **changes: identify(configure(**changes), CLONE).key


def test_the_fingerprint_is_the_artifact_s_and_the_store_stays_untouched(configure, tmp_path):
    identity = identify(configure(), CLONE)
    assert not (tmp_path / "store").exists()
    assert identity.fingerprint == prepare(configure()).fingerprint
    assert identity.note is None


@pytest.mark.parametrize("where", [{}, FAR], ids=["here", "paths of the cluster"])
def test_the_same_job_however_it_is_run(key, where):
    base = key(**where)
    assert key(**where, cluster={"num_workers": 4, "timeout_s": 9.0}) == base
    assert key(**where, eva={"tau": 0.91}) != base
    assert key(**where, store={"url": "/elsewhere"}) != base
    assert key(**where, artifact={"revision": "v2"}) != base
    assert key(**where, artifact={"overwrite": True}) != base
    assert key(**where, eva={"on_max_steps": OnMaxSteps.accept}) != base


def test_resume_is_how_not_what(configure):
    from dataclasses import replace

    config = configure(**FAR)
    again = replace(config, resume=Resume.never, cluster=ClusterConfig(num_workers=3))
    assert identify(config, CLONE) == identify(again, CLONE)


def test_what_is_not_on_this_machine_is_said(configure):
    model = identify(configure(**FAR), CLONE)
    assert model.fingerprint is None and model.note == "model.name_or_path=/cluster/llama is not on this machine"
    data = identify(configure(data={"path": "/cluster/*.jsonl"}), CLONE)
    assert data.fingerprint is None and data.note == "data.path=/cluster/*.jsonl is not on this machine"


def test_a_hub_id_that_cannot_be_read_here_may_be_on_the_cluster(configure, monkeypatch):
    monkeypatch.setattr("eva_dist.run.prepare.prepare", lambda config: (_ for _ in ()).throw(ConfigError("offline")))
    identity = identify(configure(model={"name_or_path": "org/model"}), CLONE)
    assert (identity.fingerprint, identity.note) == (None, "offline")


@pytest.mark.parametrize(
    ("changes", "kind"), [({"eva": {"r": 33}}, LayerError), ({"data": {"text_field": "body"}}, DataError)]
)
def test_what_the_job_would_refuse_for_certain_is_refused(configure, changes, kind):
    with pytest.raises(kind):
        identify(configure(**changes), CLONE)


@pytest.mark.parametrize("url", ["eva-store", "./store", "../store"])
def test_a_store_in_the_job_s_working_folder_would_be_lost(configure, url):
    with pytest.raises(ConfigError, match=rf"store\.url={url} must be absolute .* e\.g\. store\.url=file:///srv/eva"):
        identify(configure(store={"url": url}), CLONE)


def test_other_code_is_another_job_where_no_fingerprint_says_otherwise(configure, tmp_path):
    copy = tmp_path / "clone"
    for folder in ("eva_dist", "jobs", "conf"):
        shutil.copytree(CLONE / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "eva_dist" / "notes.txt").write_text("no code")
    assert code_digest(copy) == code_digest(CLONE)
    with (copy / "conf" / "precompute.yaml").open("a") as file:
        file.write("# changed\n")
    assert code_digest(copy) != code_digest(CLONE)
    assert identify(configure(**FAR), copy).key != identify(configure(**FAR), CLONE).key
    assert identify(configure(), copy).key == identify(configure(), CLONE).key
