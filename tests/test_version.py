"""The version, installed and not."""

import subprocess
import sys
import tomllib
from pathlib import Path

import eva_dist

ROOT = Path(__file__).parents[1]


def test_it_is_that_of_the_project():
    assert eva_dist.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_a_clone_that_is_not_installed_can_be_imported():
    """As on a node of a cluster that has the dependencies, and gets the code with the job."""
    code = (
        "import importlib.metadata as m\n"
        "def version(name): raise m.PackageNotFoundError(name)\n"
        "m.version = version\n"
        "import eva_dist; print(eva_dist.__version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "0+clone\n", run.stderr
