"""The settings reference: every key of every job, from the dataclasses that check it.

Types and defaults are the fields' own, words are the docstrings' `Attributes`, and the allowed range is what the
settings themselves say when they are given a value that is out of it.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import jobs.benchmark
import jobs.benchmark_sweep
import jobs.plan
from eva_dist.config import Config, config_groups
from eva_dist.preflight.accelerator import Accelerator

CONF = Path(__file__).resolve().parent.parent / "conf"

_INTRODUCTION = """\
# Settings

*This page is made of the code when the site is built.*

Every job takes its settings as `group.key=value` on the command line, checks them all before anything starts, and
reports every complaint at once with the key, the value, the allowed range and a remedy (exit code 2).
`--help` lists the settings with their values, `--cfg job` prints those of a command without running it. Write a list as
`'eva.target_modules=[q_proj,v_proj]'`, quoted because of the shell; null for nothing; and put a `+` before a key that
you add to a mapping, as in `+model.config_overrides.num_hidden_layers=6`.

`jobs/precompute.py` takes the groups [model](#model), [data](#data), [eva](#eva), [solver](#solver),
[cluster](#cluster), [store](#store), [artifact](#artifact), [sweep](#sweep) and [resume](#resume).
`jobs/plan.py` adds [plan](#plan) and [accelerator](#accelerator), the benchmarks add [benchmark](#benchmark).
Some groups have [presets](#presets), chosen with `group=preset`.
"""

_WRONG: dict[Any, tuple[Any, ...]] = {
    int: (-1, 0, 2),
    float: (-1.0, 0.5, 2.0, math.nan),
    str: ("", "?://", "."),
    bool: (True,),
    dict[str, int]: ({"NAME": 0},),
    dict[str, str]: ({"NAME": ""},),
    dict[str, float]: ({"NAME": -1.0}, {"NAME": 1e-9}, {"GPU": 0.5}, {"memory": 1.0}),
    list: ([],),
}
"""Values of each type that a setting may refuse: its complaint says what it allows."""


def settings_page() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION, *(group_section(name, group) for name, group in config_groups().items())]
    parts.append(_resume_section())
    others = (("plan", jobs.plan.PlanSettings), ("accelerator", Accelerator), ("benchmark", jobs.benchmark.Benchmark))
    parts += [group_section(name, group) for name, group in others]
    sweep_title = "benchmark, of `jobs/benchmark_sweep.py` {#benchmark-sweep}"
    parts.append(group_section("benchmark", jobs.benchmark_sweep.SweepBenchmark, sweep_title))
    return "\n".join([*parts, _presets_section()])


def group_section(name: str, group: type, title: str = "") -> str:
    """Return the section of one group: what it is, and a table of its keys."""
    summary, words = read_docstring(group)
    allowed = ranges(name, group)
    lines = [
        f"## {title or name}",
        "",
        summary,
        "",
        "| key | type | default | what it is | allowed |",
        "|---|---|---|---|---|",
    ]
    for field, hint in _fields(group):
        key = f"{name}.{field.name}"
        lines.append(
            f"| `{key}`{{ #{key} }} | {type_words(hint)} | `{_value_text(_default(field))}` "
            f"| {_cell(words.get(field.name, ''))} | {_cell('; '.join(allowed.get(key, [])))} |"
        )
    return "\n".join([*lines, "", *_choices(hint for _, hint in _fields(group))])


def read_docstring(group: type) -> tuple[str, dict[str, str]]:
    """Return what a docstring says before its `Attributes`, and of each attribute."""
    summary, _, attributes = inspect.cleandoc(group.__doc__ or "").partition("\nAttributes:\n")
    words: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.splitlines():
        if start := re.match(r" {4}([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line):
            names = start[1].split(", ")
            words |= dict.fromkeys(names, start[2])
        elif line.strip():
            words |= {name: f"{words[name]} {line.strip()}" for name in names}
    return summary.strip(), words


def ranges(name: str, group: type) -> dict[str, list[str]]:
    """Return what each key of a group allows, in the words of its own complaints about wrong values."""
    found: dict[str, list[str]] = {}
    for field, hint in _fields(group):
        for value in _wrong_values(hint):
            for key, allowed in _complaints(name, group, field.name, value):
                if allowed not in found.setdefault(key, []):
                    found[key].append(allowed)
    return found


def _complaints(name: str, group: type, field: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the keys, and what they must be, that a group complains about when one field has a value."""
    try:
        given = group(**{field: value})
    except TypeError:  # no default: the field does not stand alone
        return
    for problem in getattr(given, "problems", lambda: ())():
        said = re.match(rf"({name}\.\w+)(?:\.(\w+))?=.*? (must .*?|has no meaning .*?)(?:[;:] |$)", problem)
        if said is None:
            continue
        inner = f"`{said[2]}` " if said[2] and said[2] != "NAME" else ""
        yield said[1], inner + said[3].removeprefix("must be ")


def _wrong_values(hint: Any) -> tuple[Any, ...]:
    for kind in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        for known in (kind, getattr(kind, "__origin__", None)):
            if known in _WRONG:
                return _WRONG[known]
    return _WRONG[list] if hint is Any else ()


def type_words(hint: Any) -> str:
    """Return a type as a person would say it."""
    if hint is Any:
        return "name, list of names or null"
    if isinstance(hint, UnionType):
        return " or ".join(type_words(kind) for kind in get_args(hint))
    if hint is NoneType:
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{choice.value}`" for choice in hint)
    if getattr(hint, "__origin__", None) is dict:
        of = get_args(hint)[1]
        return f"mapping of names to {'anything' if of is Any else type_words(of)}"
    if getattr(hint, "__origin__", None) is list:
        return f"list of {type_words(get_args(hint)[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(hint, "anything")


def _choices(hints: Iterator[Any]) -> Iterator[str]:
    """Yield what the enumerations of a group say of themselves."""
    for hint in hints:
        if isinstance(hint, type) and issubclass(hint, Enum) and hint.__doc__:
            yield f"{type_words(hint)}: {inspect.cleandoc(hint.__doc__)}\n"


def _resume_section() -> str:
    hint = get_type_hints(Config)["resume"]
    words = read_docstring(Config)[1]["resume"]
    about = f"`resume`, one of {type_words(hint)}; default `{Config.resume.value}`: {words}"
    return f"## resume\n\n{about}\n\n{hint.__doc__}\n"


def _presets_section() -> str:
    """Return the presets of conf/: what each file says of itself, and what it sets."""
    lines = [
        "## Presets",
        "",
        "`group=preset` sets several keys at once; single keys on the command line come after.",
        "",
    ]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        lines += [f"### {folder.name}", ""]
        for file in sorted(folder.glob("*.yaml")):
            lines += [
                f"`{folder.name}={file.stem}`",
                "",
                "```yaml",
                file.read_text(encoding="utf-8").rstrip(),
                "```",
                "",
            ]
    return "\n".join(lines)


def _fields(group: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(group)
    return [(field, hints[field.name]) for field in dataclasses.fields(group)]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _value_text(value: Any) -> str:
    """Return a default as it would be written on the command line."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_value_text(item) for item in value)}]"
    return "null" if value is None else str(value) or "''"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
