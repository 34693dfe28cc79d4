"""Jobs on a real cluster: `ray start`, a token, `ray job submit`, `eva-dist submit`; nothing is left of it."""

import json
import shutil
import signal
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import eva_dist
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
EVA_DIST = (sys.executable, "-m", "eva_dist.cli.main")


@pytest.fixture
def settings(tiny_model, words_file, tmp_path):
    return [
        *(f"model.name_or_path={tiny_model}", f"data.path={words_file}", f"store.url={tmp_path / 'store'}"),
        *("data.max_length=64", "data.step_size=6", "data.batch_size=2", "eva.r=4", "eva.tau=0.9"),
        *("eva.target_modules=all-linear", "artifact.repo_id=tests/tiny", "cluster.threads_per_worker=1"),
    ]


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
    return found


def test_little_is_uploaded(tmp_path):
    """What Ray makes of a clone in use, with weights, a store and an environment lying in it."""
    from ray._private.runtime_env.packaging import create_package

    clone, package = tmp_path / "clone", tmp_path / "package.zip"
    shutil.copytree(
        ROOT, clone, ignore=lambda folder, names: {".git", ".venv", ".cache"} if folder == str(ROOT) else ()
    )
    for stray in (".venv/x.py", ".cache/w", ".git/objects/o", "eva-store/a/b", "outputs/o", "llama/model.safetensors"):
        (clone / stray).parent.mkdir(parents=True, exist_ok=True)
        (clone / stray).write_bytes(b"0" * 2**20)
    create_package(str(clone), package, include_gitignore=True)
    with zipfile.ZipFile(package) as found:
        names = set(found.namelist())
    code = {"eva_dist", "jobs", "conf"}
    assert {name.partition("/")[0] for name in names} == code | {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    }
    expected = {p.relative_to(ROOT).as_posix() for f in code for p in (ROOT / f).rglob("*") if p.suffix != ".pyc"}
    assert {name for name in names if "/" in name} == {name for name in expected if (ROOT / name).is_file()}
    assert package.stat().st_size < 1.2 * sum((ROOT / name).stat().st_size for name in names if not name.endswith("/"))


@pytest.mark.slow
def test_a_job_from_submission_to_its_end(settings):
    with RayCluster() as cluster:
        cluster.start_head(num_cpus=1)
        address = ("--address", cluster.address)

        def listed():
            return [json.loads(line) for line in cluster.run(*EVA_DIST, "jobs", *address, "--json").stdout.splitlines()]

        refuse_strangers(cluster, address)
        fingerprint = run_twice_at_once(cluster, address, settings)
        assert [(job["status"], job["exit_code"], job["fingerprint"]) for job in listed()] == [
            ("SUCCEEDED", 0, fingerprint)
        ]
        with ThreadPoolExecutor() as threads:  # these wait for each other's imports otherwise
            answered = threads.submit(answer_from_the_store_by_rays_own_command, cluster, address, settings)
            refused = threads.submit(pass_on_an_exit_code, cluster, address, settings)
            stop_a_long_one(cluster, address, settings)
        assert (answered.result(), refused.result()) == (("cached", fingerprint), 2)
        assert sorted(job["status"] for job in listed()) == ["FAILED", "STOPPED", "SUCCEEDED"]
        check = (sys.executable, "docker/healthcheck.py")
        agent = {"EVA_DIST_AGENT_PORT": str(cluster.agent_ports[0]), "RAY_AUTH_TOKEN_PATH": "/no/token/needed"}
        assert cluster.run(*check, environment=agent).returncode == 0
        cluster.stop()
        wait_for(lambda: not cluster.processes(), seconds=20)
        assert "no healthy Ray node behind port" in cluster.run(*check, environment=agent).stdout


def refuse_strangers(cluster, address):
    """A wrong token and none at all are refused, and the message says what to set."""
    for wrong in ({"RAY_AUTH_TOKEN": "wrong", "RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "disabled"}):
        done = cluster.run(*EVA_DIST, "jobs", *address, environment=wrong)
        assert done.returncode == 1 and done.stdout == ""
        assert f"error: {cluster.address} asks for a token" in done.stderr
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr and "Traceback" not in done.stderr


def run_twice_at_once(cluster, address, settings):
    """The same job submitted twice at the same moment runs once, and both see all of it."""
    both = [cluster.begin(*EVA_DIST, "submit", *address, "--", *settings) for _ in range(2)]
    ends = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    (first, first_log), (second, second_log) = ends
    assert first == second and len(first.splitlines()) == 1
    outcome = json.loads(first)
    assert outcome["status"] == "done"
    assert all("layers converged 14/14" in log for log in (first_log, second_log))
    logs = first_log + second_log
    assert logs.count("submitted eva-") == logs.count("runs already; following it") == 1
    assert len(eva_dist.load_eva_state_dict(outcome["url"])) == 14
    return outcome["fingerprint"]


def answer_from_the_store_by_rays_own_command(cluster, address, settings):
    """`ray job submit` from the clone: progress in the log, JSON its last line; here it is answered from the store."""
    done = cluster.run(
        *("ray", "job", "submit", *address, "--working-dir", ".", "--", "python", "jobs/precompute.py", *settings)
    )
    assert done.returncode == 0, done.stderr
    outcomes = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(outcomes) == 1
    outcome = json.loads(outcomes[0])
    return outcome["status"], outcome["fingerprint"]


def pass_on_an_exit_code(cluster, address, settings):
    """What only the cluster can see is refused there, with exit code 2; standard output stays empty."""
    done = cluster.run(*EVA_DIST, "submit", *address, "--", *settings, "data.path=/no/such/words.jsonl")
    assert done.stdout == ""
    assert "data.path=/no/such/words.jsonl is not on this machine" in done.stderr
    assert "failed with exit code 2" in done.stderr
    return done.returncode


def stop_a_long_one(cluster, address, settings):
    """Ctrl-C leaves it running; stopped means ended: no job and no worker is left, but a checkpoint."""
    endless = [*settings, "eva.tau=1.0", "eva.max_steps=1000000"]
    done = cluster.run(*EVA_DIST, "submit", *address, "--no-wait", "--", *endless)
    job = done.stdout.strip()
    assert done.returncode == 0 and job.startswith("eva-"), done.stderr
    following = cluster.begin(*EVA_DIST, "logs", job, "--follow", *address)
    wait_for(lambda: "step " in following.stdout.readline())
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=30)
    assert following.returncode == 130 and f"{job} goes on" in said and "Traceback" not in said
    stopped = cluster.run(*EVA_DIST, "stop", job, *address)
    assert stopped.returncode == 0 and f"{job} has ended: STOPPED" in stopped.stderr
    assert not [line for line in cluster.processes().values() if "jobs/precompute.py" in line]
    log = cluster.run(*EVA_DIST, "logs", job, *address).stdout
    assert "error: asked to end (SIGTERM): checkpoint after step" in log
    wait_for(lambda: not [line for line in cluster.processes().values() if "RayWorker" in line])


@pytest.mark.slow
def test_two_nodes_compute_what_one_machine_does(settings, tmp_path):
    with RayCluster() as cluster:
        cluster.start_head(num_cpus=1)
        cluster.start_node(num_cpus=1)
        # One CPU a node and one a worker: there is no room for both on one node.
        submitted = cluster.run(
            *(*EVA_DIST, "submit", "--address", cluster.address, "--", *settings),
            *("cluster.num_workers=2", "+cluster.resources.CPU=1"),
        )
        assert submitted.returncode == 0, submitted.stderr
        outcome = json.loads(submitted.stdout)
        assert [workers_that_ran_on(cluster.node_folder(index)) for index in (0, 1)] == [1, 1]
    local = [setting for setting in settings if not setting.startswith("store.url")]
    alone = cluster.run(
        *(sys.executable, "jobs/precompute.py", *local, f"store.url={tmp_path / 'local'}", "cluster.num_workers=2"),
        *(f"hydra.run.dir={tmp_path}",),
        environment={"RAY_AUTH_MODE": "disabled"},
    )
    assert alone.returncode == 0, alone.stderr
    expected = json.loads(alone.stdout)
    same = ("fingerprint", "steps", "tokens", "status", "layers_converged")
    assert {key: outcome[key] for key in same} == {key: expected[key] for key in same}
    ours, theirs = (eva_dist.load_eva_state_dict(o["url"]) for o in (outcome, expected))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def workers_that_ran_on(folder: Path) -> int:
    """Return how many workers of a gang logged in a node's folder: Ray marks an actor's log with its class."""
    logs = folder.glob("session_2*/logs/worker-*.err")
    return sum(":actor_name:RayWorker" in log.read_text(errors="replace") for log in logs)
