"""`eva-dist` as a whole: light, helpful, and its exit codes."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import eva_dist.cli.clone
from eva_dist.cli.clone import find_clone
from eva_dist.cli.main import app, main
from eva_dist.errors import ConfigError

ROOT = Path(__file__).parents[2]


def code_of(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code or 0


def test_help_imports_neither_torch_nor_ray():
    code = (
        "import sys; from eva_dist.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(run.stdout.rpartition("loaded:")[2].split())
    assert "eva_dist" in loaded and "typer" in loaded
    assert not loaded & {"torch", "ray", "hydra", "transformers", "peft", "numpy", "yaml"}
    assert all(command in run.stdout for command in ("submit", "jobs", "logs", "stop", "plan", "derive"))


def test_the_console_script_is_the_command():
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["eva-dist"]
    module, _, name = target.partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_the_package_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "eva_dist.cli", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and "submit" in run.stdout


def test_each_command_is_in_the_file_of_its_name():
    commands = {command.callback.__name__: command.callback.__module__ for command in app.registered_commands}
    assert commands == {name: f"eva_dist.cli.{name}" for name in commands} and len(commands) == 19


def test_a_shell_completes_commands():
    environment = os.environ | {
        "_EVA_DIST_COMPLETE": "complete_bash",
        "COMP_WORDS": "eva-dist st",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv[0] = 'eva-dist'; from eva_dist.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.stdout.split() == ["stop", "store"]


@pytest.mark.parametrize("wrong", [["sumbit"], ["stop"], ["jobs", "--jason"], ["stop", "x", "--timeout-s", "soon"]])
def test_wrong_usage_is_exit_code_2(wrong, capsys):
    assert code_of(*wrong) == 2
    out, err = capsys.readouterr()
    assert "Usage" in out + err


def test_brackets_in_help_are_shown(capsys):
    code_of("push", "--help")
    assert capsys.readouterr().out.count("team/name[@revision]") >= 2


def test_a_typo_in_a_command_gets_a_suggestion(capsys):
    code_of("sumbit")
    assert "submit" in capsys.readouterr().err


class TestClone:
    def test_the_current_folder_if_it_is_one_else_the_one_in_use(self, tmp_path, monkeypatch):
        (tmp_path / "jobs").mkdir()
        monkeypatch.chdir(tmp_path)
        assert find_clone(None, "precompute.py") == ROOT
        (tmp_path / "jobs/precompute.py").touch()
        assert find_clone(None, "precompute.py") == tmp_path
        assert find_clone(Path("."), "precompute.py") == tmp_path

    def test_none_is_an_error_that_says_where_it_looked(self, tmp_path, monkeypatch):
        with pytest.raises(ConfigError, match=rf"--working-dir: {tmp_path} does not hold jobs/plan\.py; name a clone"):
            find_clone(tmp_path, "plan.py")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(eva_dist, "__file__", str(tmp_path / "site-packages/eva_dist/__init__.py"))
        with pytest.raises(ConfigError, match=r"neither the current folder nor the installed package holds jobs/plan"):
            find_clone(None, "plan.py")

    def test_plan_passes_everything_on(self, tmp_path, monkeypatch, capfd):
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs/plan.py").write_text("import os, sys; print(*sys.argv[1:], os.getcwd()); sys.exit(3)")
        code = code_of("plan", "--working-dir", str(tmp_path), "model=llama", "-m", "eva.r=1,2", "--cfg", "job")
        assert code == 3
        assert capfd.readouterr().out.split() == ["model=llama", "-m", "eva.r=1,2", "--cfg", "job", os.getcwd()]

    def test_plan_without_a_clone_is_bad_usage(self, tmp_path, capsys):
        assert code_of("plan", "--working-dir", str(tmp_path), "model=llama") == 2
        assert "error: --working-dir" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "--json", "--store", "memory://nothing"]])
def test_a_pipe_that_is_closed_is_no_word(arguments):
    """As of `eva-dist ... | head`: what is left is thrown away, not complained about."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "eva_dist.cli.main", *arguments]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        ran = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT, env=buffered
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")
