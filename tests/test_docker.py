"""docker/: what can be checked of images and manifests where no engine runs."""

import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from pathspec import PathSpec
from typer.main import get_command

from eva_dist.cli.main import app
from eva_dist.config import config_groups

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"eva-dist:{PROJECT['version']}"


def instructions():
    """Return the Dockerfile's (instruction, arguments), lines joined and comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(kind):
    return [arguments for name, arguments in instructions() if name == kind]


def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def ray_job():
    documents = {d["kind"]: d for d in yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text())}
    return documents["RayJob"]["spec"]


def pods():
    """Return name and pod spec of every group of the manifest."""
    cluster = ray_job()["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def ray_start_options():
    from ray.scripts.scripts import start

    return {option for parameter in start.params for option in parameter.opts}


class TestImage:
    def test_every_source_exists_and_is_let_through(self):
        ignored = PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text().splitlines())
        sources = [word for arguments in of("COPY") for word in arguments.split()[:-1] if not word.startswith("--")]
        assert {"eva_dist", "jobs", "conf", ".rayignore"} <= set(sources)
        for source in sources:
            path = ROOT / source
            files = [path] if path.is_file() else sorted(path.rglob("*.*"))
            assert files, source
            kept = [file for file in files if not ignored.match_file(file.relative_to(ROOT).as_posix())]
            assert [file for file in files if file.suffix in (".py", ".yaml")] == [
                file for file in kept if file.suffix in (".py", ".yaml")
            ]
        assert not any("__pycache__" in file.parts for file in kept)

    @pytest.mark.parametrize("name", ["docker/ray-token", "docker/.env", ".venv/bin/python", ".cache/w", ".git/config"])
    def test_secrets_and_weights_stay_outside(self, name):
        assert PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text().splitlines()).match_file(name)

    def test_versions_are_pinned(self):
        base = next(arguments for arguments in of("ARG") if arguments.startswith("BASE="))
        assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", base)
        installs = [part for line in of("RUN") for part in line.split("&&") if "pip install" in part]
        assert len(installs) == 3
        assert all("--constraint constraints.txt" in part or "--no-deps" in part for part in installs)
        pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
        wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["jobs"]]
        assert {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted} <= pins.keys()

    def test_no_registry_host_is_named(self):
        for file in [*DOCKER.iterdir(), ROOT / ".dockerignore"]:
            text = file.read_text()
            assert not re.search(r"https?://(?!127\.0\.0\.1|head:|localhost|HEAD:)[\w-]+\.[\w.-]+", text), file
            images = re.findall(r"^\s*image: *(\S+)", text, re.MULTILINE)
            assert all(image in (IMAGE, f"${{EVA_DIST_IMAGE:-{IMAGE}}}") for image in images), (file, images)

    def test_it_runs_as_somebody_who_is_not_root(self):
        assert of("USER") == ["1000:1000"]
        order = [name for name, _ in instructions()]
        assert order.index("USER") > max(i for i, name in enumerate(order) if name in ("RUN", "COPY"))
        assert "--uid 1000" in " ".join(of("RUN"))

    def test_the_largest_layers_do_not_depend_on_the_code(self):
        flat = [f"{name} {arguments}" for name, arguments in instructions()]
        torch, dependencies, code = (
            next(i for i, line in enumerate(flat) if what in line)
            for what in ("torch", "--requirement", "COPY eva_dist")
        )
        assert torch < dependencies < code

    def test_the_health_check_is_in_the_image(self):
        (check,) = of("HEALTHCHECK")
        command = json.loads(check[check.index("[") :])
        assert command == ["python", "/opt/eva-dist/docker/healthcheck.py"]
        assert "docker/healthcheck.py docker/" in of("COPY")
        assert of("WORKDIR")[0] == "/opt/eva-dist"

    def test_the_command_exists(self):
        (command,) = of("CMD")
        assert json.loads(command) == ["eva-dist", "--help"]
        assert "eva-dist" in PROJECT["scripts"]


class TestCompose:
    def test_ray_start_knows_every_option(self):
        for name in ("head", "worker"):
            program, verb, *options = compose()["services"][name]["command"]
            assert (program, verb) == ("ray", "start")
            assert {option.partition("=")[0] for option in options} <= ray_start_options()

    def test_ports_are_consistent(self):
        services = compose()["services"]
        head, worker = (dict(o.partition("=")[::2] for o in services[n]["command"][2:]) for n in ("head", "worker"))
        assert worker["--address"] == f"head:{head['--port']}" and services["head"]["hostname"] == "head"
        assert services["client"]["environment"]["RAY_API_SERVER_ADDRESS"] == f"http://head:{head['--dashboard-port']}"
        exposed = of("EXPOSE")[0].split()
        assert exposed == [head["--port"], head["--dashboard-port"], head["--dashboard-agent-listen-port"]]
        assert worker["--dashboard-agent-listen-port"] == head["--dashboard-agent-listen-port"]
        assert f'"{exposed[2]}"' in (DOCKER / "healthcheck.py").read_text()
        published = [port for service in services.values() for port in service.get("ports", [])]
        assert all(port.startswith("127.0.0.1:") for port in published)

    def test_shared_memory_holds_the_object_store(self):
        for name in ("head", "worker"):
            service = compose()["services"][name]
            assert service["shm_size"] == "1gb"
            asked = next(o for o in service["command"] if o.startswith("--object-store-memory="))
            assert int(asked.partition("=")[2]) < 10**9

    def test_everybody_has_the_token_and_the_store_of_the_readme(self):
        found = compose()
        for name, service in found["services"].items():
            assert service["environment"]["RAY_AUTH_MODE"] == "token", name
            assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token", name
            assert service["secrets"] == ["ray_token"] and "ray_token" in found["secrets"]
            assert any(volume.startswith("store:/srv/eva") for volume in service["volumes"]), name
        assert "/docker/ray-token" in (ROOT / ".gitignore").read_text().splitlines()

    def test_the_commands_exist_with_their_options(self):
        commands = {command.callback.__name__ for command in app.registered_commands}
        services = compose()["services"]
        assert services["client"]["entrypoint"] == ["eva-dist"] and services["client"]["command"][0] in commands
        gateway = services["gateway"]
        assert gateway["profiles"] == ["gateway"] and gateway["command"][:2] == ["eva-dist", "serve"]
        known = {option for parameter in get_command(app).commands["serve"].params for option in parameter.opts}
        assert {word for word in gateway["command"] if word.startswith("--")} <= known
        tokens = gateway["command"][gateway["command"].index("--token-file") + 1]
        assert any(volume.endswith(f":{tokens}:ro") for volume in gateway["volumes"])
        assert any("optional-dependencies" in line and "more['serve']" in line for line in of("RUN"))

    def test_the_gpu_file_changes_services_that_there_are(self):
        changes = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
        assert changes.keys() <= compose()["services"].keys()


class TestRayJob:
    def test_the_entry_point_is_a_job_with_settings_that_exist(self):
        python, script, *overrides = shlex.split(ray_job()["entrypoint"])
        assert python == "python" and (ROOT / Path(script).relative_to("/opt/eva-dist")).is_file()
        groups = config_groups()
        for override in overrides:
            key = override.partition("=")[0].lstrip("+")
            group, _, name = key.partition(".")
            assert group == "hydra" or name.partition(".")[0] in groups[group].__dataclass_fields__, key
        assert "store.url=file:///srv/eva" in overrides

    def test_it_is_of_the_ray_that_is_pinned(self):
        cluster = ray_job()["rayClusterSpec"]
        assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
        assert cluster["rayVersion"] == version("ray")

    def test_ray_start_knows_every_parameter(self):
        cluster = ray_job()["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert {f"--{name}" for name in group["rayStartParams"]} <= ray_start_options()
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())

    @pytest.mark.parametrize("name", ["head", "cpu", "gpu"])
    def test_pods_mount_the_store_run_without_root_and_end_in_time(self, name):
        pod = pods()[name]
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/srv/eva", "/data", "/dev/shm"} == mounts.keys()
        assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
        assert pod["terminationGracePeriodSeconds"] > 60  # the job's own time to stop
        claims = {
            d["metadata"]["name"]
            for d in yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text())
            if d["kind"] == "PersistentVolumeClaim"
        }
        used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        assert used == claims

    def test_there_are_as_many_gpus_as_the_job_asks_for(self):
        overrides = dict(o.lstrip("+").split("=", 1) for o in shlex.split(ray_job()["entrypoint"])[2:])
        gpu = next(g for g in ray_job()["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu")
        a_pod = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        asked = int(overrides["cluster.num_workers"]) * int(overrides["cluster.resources.GPU"])
        assert asked <= gpu["replicas"] * a_pod <= gpu["maxReplicas"] * a_pod
        assert ray_job()["rayClusterSpec"]["authOptions"] == {"mode": "token"}
