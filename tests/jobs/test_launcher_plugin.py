"""The launcher is found in a clone, where a job server unpacks it and after an install; and it is light."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "hydra_plugins.eva_dist_shared_pass"
FIND = f"""
import sys
sys.path.insert(0, sys.argv[1])
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
found = [one for one in Plugins.instance().discover(Launcher) if one.__module__ == {PLUGIN!r}]
assert [one.__name__ for one in found] == ["SharedPassLauncher"], found
assert "shared_pass.yaml" in ConfigStore.instance().repo["hydra"]["launcher"]
heavy = {{"torch", "ray", "numpy", "peft", "transformers", "eva_dist", "jobs"}} & set(sys.modules)
print(sys.modules[{PLUGIN!r}].__file__, *heavy)
"""


def find(folder: Path, cwd: Path) -> str:
    """Where a fresh process with that folder on its path finds the launcher; and what heavy that loaded."""
    done = subprocess.run([sys.executable, "-c", FIND, str(folder)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_discovery_loads_nothing_but_hydra(tmp_path):
    folder = ROOT / "jobs/plugins"
    assert find(folder, tmp_path) == str(folder / "hydra_plugins/eva_dist_shared_pass.py")


def test_its_folder_exposes_nothing_else():
    """It is put on `sys.path`, and a namespace package has no `__init__.py`."""
    folder = ROOT / "jobs/plugins"
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*.py")] == ["hydra_plugins/eva_dist_shared_pass.py"]


@pytest.mark.parametrize(
    "command",
    [pytest.param(["-m", "jobs.precompute"], marks=pytest.mark.slow), ["-P", "jobs/precompute.py"]],
    ids=" ".join,
)
def test_every_start_from_a_clone_finds_it(command, tmp_path):
    """A copy of the three folders is what `eva-dist submit` sends (tests/jobs/test_ray_jobs.py), and no checkout."""
    for folder in ("eva_dist", "jobs", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [
            *(sys.executable, *command, "-m", "hydra/launcher=shared_pass", "hydra.sweep.dir=sweep"),
            *("eva.rho=0.5,0.7", "model.name_or_path=here", "data.path=here"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Launching 2 jobs as one batch" in done.stderr
    assert "error: eva.rho=0.5 must be" in done.stderr and "error: eva.rho=0.7 must be" in done.stderr
    assert done.stdout == ""


def test_an_installed_wheel_holds_it_beside_the_package(tmp_path):
    pytest.importorskip("hatchling", reason="builds the wheel; part of the extra `test`")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        file.extractall(tmp_path / "site")
    assert {name.partition("/")[0] for name in names} == {"eva_dist", "hydra_plugins"}
    assert [name for name in names if name.startswith("hydra_plugins/")] == ["hydra_plugins/eva_dist_shared_pass.py"]
    # What is no Python is there too: templates, style sheets and scripts of the pages.
    package = ROOT / "eva_dist"
    others = [file for file in package.rglob("*.*") if file.suffix in (".html", ".svg", ".css", ".js")]
    assert len(others) > 10 and {f"eva_dist/{file.relative_to(package)}" for file in others} <= set(names)
    expected = tmp_path / "site/hydra_plugins/eva_dist_shared_pass.py"
    assert find(tmp_path / "site", tmp_path) == str(expected)
