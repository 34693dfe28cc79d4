"""Every command on README and pages: it exists, every option is known, every key is a setting. Nothing is run."""

import re
import shlex
import tomllib
from functools import cache
from importlib import import_module

import pytest
import typer
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from eva_dist.cli.main import app
from eva_dist.config import config_groups
from jobs.hydra_main import to_config
from tests.docs.blocks import ROOT, blocks, commands, inline_code, words_of

ELSEWHERE = {"chmod", "cp", "docker", "export", "hf", "kubectl", "mkdir", "python3", "sed", "sudo"}
"""Programs that are not ours; `ray job submit` is, as far as its job goes."""
VALID_FLAGS = {"-m", "--multirun", "--help", "--cfg", "job"}
GROUPS = {*config_groups(), "resume"}
KEY = re.compile(r"[+~]{0,2}([a-z_]+)([./][\w./]+)?=\S*")
SHOWN = [block for block in blocks() if block.language in ("shell", "console")]
SPANS = sorted(set(inline_code()))


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def check(words: list[str], whole: bool = True) -> None:
    """Check a command; `whole` ones must have all that they need, others may be an excerpt."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "eva-dist":
        check_command(rest, whole)
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= make_targets()
    elif program in ("python", "ray") or program.endswith("/bin/python"):
        check_job(rest, whole)
    elif program == "pip":
        assert {name for word in rest for name in re.findall(r"\[([\w,]+)\]", word)} <= extras()
    elif program.startswith(".venv/bin/"):
        assert program.rpartition("/")[2] in ("pre-commit", "pytest", "mkdocs")
    elif program == "docker" and "submit" in rest:
        check_command(rest[rest.index("submit") :], whole)
    else:
        assert program in ELSEWHERE, f"{program}: which program is that?"


def check_command(arguments: list[str], whole: bool) -> None:
    """Check that a command of `eva-dist` takes these arguments, and the settings among them."""
    command = typer.main.get_command(app)
    name = "eva-dist"
    if arguments and arguments[0].startswith("-"):
        assert arguments[0] in {option for p in command.params for option in p.opts} | {"--help"}
        return
    while hasattr(command, "commands"):
        assert arguments and arguments[0] in command.commands, f"{name} has no command {arguments[:1]}"
        name, command, arguments = arguments[0], command.commands[arguments[0]], arguments[1:]
    if "--help" in arguments:
        return
    if whole or len(arguments) > 0:
        command.make_context(name, list(arguments), resilient_parsing=not whole)
    known = {option for p in command.params for option in [*p.opts, *p.secondary_opts]}
    for word in arguments[: arguments.index("--")] if "--" in arguments else arguments:
        assert not word.startswith("-") or word.partition("=")[0] in known, f"{name} has no option {word}"
    settings = [word for word in arguments if KEY.fullmatch(word)]
    if name in ("submit", "plan"):
        compose_settings("plan" if name == "plan" else "precompute", settings, whole)
    elif settings:
        compose_settings("precompute", settings, whole=False)


def check_job(words: list[str], whole: bool) -> None:
    """Check `python jobs/NAME.py key=value ...`, alone or behind `ray job submit ... --`."""
    if words[:2] == ["job", "submit"]:
        words = words[words.index("--") + 2 :]
    job = words[0].removeprefix("-m ")
    source = (ROOT / job).read_text()
    if config := re.search(r'config_name="(\w+)"', source):
        compose_settings(config[1], words[1:], whole and "--help" not in words)


def compose_settings(config: str, words: list[str], whole: bool) -> None:
    """Check settings as the job would: each combination of a sweep must have known keys, and values in range."""
    overrides = [word for word in words if word not in VALID_FLAGS]
    for chosen in combinations(overrides):
        settings = composed(config, tuple(chosen))
        if whole and config == "precompute":
            to_config(settings)


@cache
def composed(config: str, overrides: tuple[str, ...]) -> DictConfig:
    """Return what Hydra makes of settings; it raises for keys that it does not know."""
    import_module(f"jobs.{config}")  # registers the job's schema
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(config, list(overrides))


def combinations(overrides: list[str]) -> list[list[str]]:
    """Return the overrides with every sweep at its first and at its last value."""
    first, last = [], []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        first.append(f"{override.key_or_group}={values[0]}" if values else text)
        last.append(f"{override.key_or_group}={values[-1]}" if values else text)
    return [first, last] if first != last else [first]


def is_excerpt(span: str) -> bool:
    """Tell whether inline code is settings alone, with values that are meant: `eva.rho=1.5 eva.tau=0.9`."""
    words = span.split()
    ours = [KEY.fullmatch(word) for word in words if word not in VALID_FLAGS]
    return bool(ours) and all(
        m and m[1] in {*GROUPS, "hydra", "accelerator", "plan"} and not m[0].endswith(("=", "...")) for m in ours
    )


def test_pages_have_commands_and_settings():
    assert len(SHOWN) > 30 and sum(is_excerpt(shlex.join(shlex.split(span))) for _, span in SPANS if "'" in span) >= 1
    assert sum(is_excerpt(span) for _, span in SPANS) > 30
    assert {"README.md", "docs/pages/how-to/cluster.md", "docker/README.md"} <= {block.page for block in SHOWN}


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_every_command_of_a_block_exists_and_its_settings_are_in_range(block):
    found = list(commands(block))
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize("block", [b for b in blocks() if b.language not in ("shell", "console", "python")], ids=str)
def test_no_command_hides_in_a_block_that_is_not_checked(block):
    assert block.language in ("text", "json", "yaml")
    assert not re.search(r"^\$ |^(make|pip|eva-dist|python) ", block.text, re.MULTILINE) or "[OPTIONS]" in block.text


@pytest.mark.parametrize(("page", "span"), SPANS)
def test_inline_commands_and_settings_are_ours(page, span):
    if span.startswith(("eva-dist ", "make ", "python jobs/")):
        for words in words_of(span.replace(" ...", "")):
            check(words, whole=False)
    elif not re.search(r"[<>()]", span) and is_excerpt(unquoted := " ".join(shlex.split(span))):
        words = unquoted.split()
        plan = any(word.startswith(("plan.", "accelerator")) for word in words)
        compose_settings("plan" if plan else "precompute", words, whole=False)


@pytest.mark.parametrize(
    "wrong",
    [
        "eva-dist lst",
        "eva-dist ls --stor x",
        "eva-dist derive team/a@b eva.rhoo=1",
        "eva-dist submit -- model.name=a",
        "python jobs/precompute.py model.name_or_path=a data.path=b eva.rho=0.5",
        "python jobs/precompute.py model.name_or_path=a data.pat=b",
        "python jobs/nothing.py",
        "make tests",
        "pip install '.[job]'",
        "eva-disk ls",
    ],
)
def test_the_check_sees_what_is_wrong(wrong):
    with pytest.raises(BaseException):  # noqa: B017, PT011
        for words in words_of(wrong):
            check(words)
