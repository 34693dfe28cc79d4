"""Commands for jobs, on a job server in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import eva_dist.cli.clone
import eva_dist.cli.job_access
from eva_dist.cli.clone import insert_settings, job_key
from eva_dist.cli.main import main
from eva_dist.cluster.submission import JobState
from eva_dist.errors import ConfigError, JobServerError
from tests.fake_job_server import FakeJobServer

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 4
FIRST, SECOND = "eva-0123456789abcdef-1", "eva-0123456789abcdef-2"
OUTCOME = json.dumps({"url": "file:///s/a", "fingerprint": "f" * 64, "status": "done"})


@pytest.fixture
def server(monkeypatch):
    fake = FakeJobServer()
    fake.run = lambda job: (JobState.succeeded, 0, ["Running\nstep 1/2 |", " go\n", OUTCOME + "\n", "bye\n"])
    monkeypatch.setattr(eva_dist.cli.job_access, "connect", lambda address: fake)
    monkeypatch.setattr(eva_dist.cli.clone, "job_key", lambda clone, overrides: (KEY, ("f" * 64,), ()))
    monkeypatch.setattr(eva_dist.cli.job_access, "_POLL_S", 0.0)
    return fake


@pytest.fixture
def run(capsys):
    def start(*arguments):
        code = 0
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return start


class TestSubmit:
    def test_standard_output_is_the_json_line_and_the_rest_goes_to_standard_error(self, server, run):
        code, out, err = run("submit", "--working-dir", str(ROOT), "--", "eva.r=4", "data.path=a b")
        assert (code, out) == (0, OUTCOME + "\n")
        assert err.splitlines() == [
            f"submitted {FIRST} to http://fake:8265",
            *("Running", "step 1/2 | go", "bye"),
        ]
        sent = server.submissions[FIRST]
        assert sent.entrypoint == "python jobs/precompute.py eva.r=4 'data.path=a b'"
        assert sent.runtime_env == {"working_dir": str(ROOT), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}

    def test_the_same_again_follows_the_one_that_runs(self, server, run):
        server.put(FIRST, JobState.running)
        code, out, err = run("submit", "eva.r=4")
        assert (code, out) == (0, OUTCOME + "\n")
        assert f"{FIRST} is this job and runs already; following it" in err
        assert server.submissions == {}

    @pytest.mark.parametrize(("exit_code", "expected"), [(2, 2), (1, 1), (-15, 143), (None, 1)])
    def test_the_job_s_exit_code_is_ours(self, server, run, exit_code, expected):
        server.run = lambda job: (JobState.failed, exit_code, ["error: eva.r=0 must be >= 1\n"])
        code, out, err = run("submit", "eva.r=4")
        assert (code, out) == (expected, "")
        assert "error: eva.r=0 must be >= 1" in err
        assert f"{FIRST} failed" in err

    def test_why_it_never_began_is_said(self, server, run):
        server.put(FIRST, JobState.failed, message="runtime_env setup failed: no such package")
        server.logs[FIRST] = []
        code, _, err = run("logs", FIRST, "--follow")
        assert code == 1
        assert f"{FIRST} failed: runtime_env setup failed: no such package" in err

    def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(self, server, run):
        def interrupted(job):
            raise KeyboardInterrupt

        server.run = interrupted
        code, out, err = run("submit", "eva.r=4")
        assert (code, out) == (130, "")
        assert server.known[FIRST].state is JobState.pending
        assert f"eva-dist logs {FIRST} --follow" in err and f"eva-dist stop {FIRST}" in err

    def test_ctrl_c_before_that(self, server, run, monkeypatch):
        def interrupted(clone, overrides):
            raise KeyboardInterrupt

        monkeypatch.setattr(eva_dist.cli.clone, "job_key", interrupted)
        code, _, err = run("submit", "eva.r=4")
        assert code == 130 and "eva-dist jobs" in err
        assert server.known == {}

    def test_no_wait_prints_the_id_and_leaves(self, server, run):
        code, out, err = run("submit", "--no-wait", "eva.r=4")
        assert (code, out) == (0, FIRST + "\n")
        assert server.known[FIRST].state is JobState.pending
        assert f"eva-dist stop {FIRST}" in err

    def test_an_unknown_fingerprint_is_said(self, server, run, monkeypatch):
        note = "data.path=/cluster/a is not on this machine"
        monkeypatch.setattr(eva_dist.cli.clone, "job_key", lambda clone, overrides: (KEY, (), (note,)))
        _, _, err = run("submit", "eva.r=4")
        assert f"{note}; settings and code stand for it" in err
        assert server.known[FIRST].metadata == {"eva_dist.key": KEY}

    def test_environment_by_name_and_by_file(self, server, run, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_TOKEN", "secret")
        file = tmp_path / "env.yaml"
        file.write_text("pip: [einops]\nenv_vars: {RAY_JOB_STOP_WAIT_TIME_S: '5', A: b}\n")
        code, out, err = run("submit", "--runtime-env", str(file), "--env", "HF_TOKEN", "eva.r=4")
        assert code == 0 and "secret" not in out + err
        sent = server.submissions[FIRST].runtime_env
        assert sent["pip"] == ["einops"]
        assert sent["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "5", "A": "b", "HF_TOKEN": "secret"}
        assert "secret" not in json.dumps(server.submissions[FIRST].metadata)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("[1]", r"must be a mapping, e.g."),
            ("env_vars: [A]", r"must be a mapping, e.g."),
            ("working_dir: .", r"sets working_dir; take it out and give --working-dir"),
            ("a: [", r"cannot be read"),
            (None, r"cannot be read"),
        ],
    )
    def test_a_bad_runtime_env(self, server, run, tmp_path, text, complaint):
        file = tmp_path / "env.yaml"
        if text is not None:
            file.write_text(text)
        code, _, err = run("submit", "--runtime-env", str(file), "eva.r=4")
        assert code == 2 and f"error: --runtime-env {file}" in err and complaint in err
        assert server.known == {}

    def test_a_variable_that_is_not_set(self, server, run, monkeypatch):
        monkeypatch.delenv("NOT_SET_HERE", raising=False)
        code, _, err = run("submit", "--env", "NOT_SET_HERE", "eva.r=4")
        assert code == 2 and "--env NOT_SET_HERE: not set here" in err

    def test_bad_settings_are_refused_before_the_cluster_is_asked(self, server, run, monkeypatch):
        def refuse(clone, overrides):
            raise typer.Exit(2)

        monkeypatch.setattr(eva_dist.cli.clone, "job_key", refuse)
        monkeypatch.setattr(eva_dist.cli.job_access, "connect", lambda address: pytest.fail("asked the cluster"))
        assert run("submit", "eva.r=0")[0] == 2

    def test_no_server_is_exit_code_1(self, server, run, monkeypatch):
        def nobody(address):
            raise JobServerError(f"no job server answers at {address}; give --address")

        monkeypatch.setattr(eva_dist.cli.job_access, "connect", nobody)
        code, _, err = run("submit", "--address", "http://x:1", "eva.r=4")
        assert (code, err) == (1, "error: no job server answers at http://x:1; give --address\n")


class TestKey:
    """The clone's jobs/fingerprint.py, as `submit` runs it."""

    def overrides(self, tiny_model, words_file, *more):
        return [f"model.name_or_path={tiny_model}", f"data.path={words_file}", "store.url=/srv/eva", "eva.r=4", *more]

    def test_a_run_and_a_sweep(self, tiny_model, words_file):
        key, fingerprints, notes = job_key(ROOT, self.overrides(tiny_model, words_file))
        assert len(key) == len(fingerprints[0]) == 64 and notes == ()
        swept = job_key(ROOT, ["-m", *self.overrides(tiny_model, words_file, "eva.rho=1.0,2.0")])
        assert swept[0] != key and len(swept[1]) == 2 and fingerprints[0] in swept[1]
        assert not (ROOT / "outputs/fingerprint").exists() and not (ROOT / "multirun/fingerprint").exists()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("eva.rhoo=2", "error: eva.rhoo=2 is no setting; did you mean eva.rho?"),
            ("eva.rho=0.5", "error: eva.rho=0.5 must be >= 1.0"),
            ("store.url=here", "error: store.url=here must be absolute"),
        ],
    )
    def test_bad_settings_are_exit_code_2(self, capfd, wrong, message):
        with pytest.raises(typer.Exit) as stop:
            job_key(ROOT, ["model.name_or_path=/far/llama", "data.path=/far/a.jsonl", "store.url=/srv/eva", wrong])
        assert stop.value.exit_code == 2
        out, err = capfd.readouterr()
        assert out == "" and message in err and "Traceback" not in err

    @pytest.mark.parametrize(
        "overrides", [["-m", "a=1", "b=2"], ["a=1", "b=2", "-m"], ["--cfg", "job"], ["~a=1", "b=2"]]
    )
    def test_our_settings_are_beside_the_others(self, overrides):
        words = insert_settings(overrides, ["x=1", "y=2"])
        where = [i for i, word in enumerate(words) if "=" in word]
        assert where == list(range(where[0], where[0] + len(where)))
        assert [word for word in words if word not in ("x=1", "y=2")] == overrides

    def test_asking_for_help_is_no_run(self, capfd):
        with pytest.raises(ConfigError, match=r"OVERRIDES='--cfg job' is no run, so nothing was submitted"):
            job_key(ROOT, ["--cfg", "job"])
        assert "rho: 2.0" in capfd.readouterr().out


class TestJobs:
    def test_ours_are_listed_with_what_they_are(self, server, run):
        ours = {"eva_dist.key": KEY, "eva_dist.fingerprint": "f" * 64}
        server.put(SECOND, JobState.running, metadata=ours, started=1_800_000_100.0)
        server.put(FIRST, JobState.failed, metadata=ours, started=1_800_000_000.0, ended=1_800_000_060.0, exit_code=2)
        server.put("raysubmit_other", JobState.running)
        code, out, _ = run("jobs", "--json")
        assert code == 0
        first, second = map(json.loads, out.splitlines())
        assert first == {
            **{"submission_id": FIRST, "status": "FAILED", "exit_code": 2, "fingerprint": "f" * 64, "key": KEY},
            **{"started": "2027-01-15T08:00:00+00:00", "ended": "2027-01-15T08:01:00+00:00"},
            "entrypoint": "python jobs/precompute.py",
        }
        assert (second["submission_id"], second["ended"], second["exit_code"]) == (SECOND, None, None)
        _, table, _ = run("jobs")
        header, *rows = table.splitlines()
        assert header.split() == ["job", "status", "fingerprint", "started", "ended", "entry", "point"]
        assert [row.split()[0] for row in rows] == [FIRST, SECOND]
        assert "FAILED (2)" in rows[0] and "f" * 12 in rows[0]

    def test_nothing_yet(self, server, run):
        assert run("jobs", "--json")[:2] == (0, "")


class TestStop:
    def test_waits_until_it_has_really_ended(self, server, run, monkeypatch):
        server.put(FIRST, JobState.running)
        really = server.stop
        asked = []
        monkeypatch.setattr(server, "stop", asked.append)
        looks = iter(range(5))
        before = server.job

        def job(submission_id):
            if next(looks) == 3:
                really(submission_id)
            return before(submission_id)

        monkeypatch.setattr(server, "job", job)
        code, out, err = run("stop", FIRST)
        assert (code, out, asked) == (0, "", [FIRST])
        assert next(looks) == 4  # it was looked at until then
        assert f"{FIRST} has ended: STOPPED" in err

    def test_one_that_does_not_end_in_time(self, server, run, monkeypatch):
        server.put(FIRST, JobState.running)
        monkeypatch.setattr(server, "stop", lambda submission_id: None)
        code, _, err = run("stop", FIRST, "--timeout-s", "0")
        assert code == 1 and f"{FIRST} is still RUNNING after 0 s" in err

    def test_one_that_had_ended(self, server, run):
        server.put(FIRST, JobState.succeeded)
        code, _, err = run("stop", FIRST)
        assert code == 0 and "had ended already: SUCCEEDED" in err

    @pytest.mark.parametrize("command", ["stop", "logs"])
    def test_an_unknown_one(self, server, run, command):
        code, _, err = run(command, "nothing")
        assert code == 2 and "JOB=nothing is no job of http://fake:8265; `eva-dist jobs` lists them" in err


class TestLogs:
    def test_all_of_it_on_standard_output(self, server, run):
        server.put(FIRST, JobState.succeeded, exit_code=0)
        server.logs[FIRST] = ["a\n", OUTCOME + "\n", "b\n"]
        assert run("logs", FIRST) == (0, f"a\n{OUTCOME}\nb\n", "")
        assert run("logs", FIRST, "--follow") == (0, f"a\n{OUTCOME}\nb\n", "")


def test_without_ray_the_remedy_is_said():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from eva_dist.cli.main import main; main(['jobs', '--address', 'http://localhost:1'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 1
    assert "needs ray" in run.stderr and "pip install 'eva-dist[jobs]'" in run.stderr
    assert "Traceback" not in run.stderr
