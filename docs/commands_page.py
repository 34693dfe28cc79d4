"""The command line reference: every command of `eva-dist` with its arguments and options, from typer itself."""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer

from eva_dist.cli.main import app

_INTRODUCTION = """\
# Command line

*This page is made of the code when the site is built.*

`eva-dist COMMAND --help` says the same in a terminal, and `eva-dist --install-completion` lets the shell complete
commands, options and the names of artifacts. Results go to standard output, everything else to standard error.
Exit codes: 0 done, 2 bad settings or usage, 130 interrupted, 1 anything else; a job that is followed passes its own on.

`eva-dist` computes nothing itself: runs are `python jobs/precompute.py`, whose keys are on the page
[settings](settings.md).
"""


def commands_page() -> str:
    """Return the page as Markdown."""
    root: Any = typer.main.get_command(app)
    panels: dict[str, list[str]] = {}
    for name, command in root.commands.items():
        panels.setdefault(command.rich_help_panel or "Commands", []).append(name)
    parts = [_INTRODUCTION]
    for panel, names in panels.items():
        parts.append(f"## {panel}\n")
        for name in names:
            parts += command_sections(f"eva-dist {name}", root.commands[name])
    return "\n".join(parts)


def command_sections(words: str, command: Any) -> Iterator[str]:
    """Yield the section of a command, or those of a group's commands."""
    if not hasattr(command, "commands"):
        yield command_section(words, command)
        return
    yield f"### `{words}`\n\n{_prose(command.help)}\n"
    for name, inner in command.commands.items():
        yield command_section(f"{words} {name}", inner, level=4)


def command_section(words: str, command: Any, level: int = 3) -> str:
    """Return a command's usage, what it does, and tables of its arguments and options."""
    arguments = [p for p in command.params if type(p).__name__.endswith("Argument")]
    options = [p for p in command.params if p not in arguments and not p.hidden]
    usage = [words, *(["[OPTIONS]"] if options else []), *(_argument_usage(argument) for argument in arguments)]
    lines = [f"{'#' * level} `{words}`", "", f"```text\n{' '.join(usage)}\n```", "", _prose(command.help), ""]
    if arguments:
        lines += ["| argument | what it is |", "|---|---|"]
        lines += [f"| `{_argument_name(a)}` | {_cell(a.help)} |" for a in arguments]
        lines.append("")
    if options:
        lines += ["| option | value | default | what it does |", "|---|---|---|---|"]
        lines += [
            f"| {_option_names(o)} | {_value(o)} | {_default(o)} | {_cell(o.help)}{_variable(o)} |" for o in options
        ]
        lines.append("")
    return "\n".join(lines)


def _argument_name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _argument_usage(argument: Any) -> str:
    name = _argument_name(argument)
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _option_names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _value(option: Any) -> str:
    if option.is_flag:
        return ""
    kind = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    words = f"`{option.metavar}`" if option.metavar else {int: "whole number", float: "number"}.get(kind, "text")
    if option.min is not None and option.max is not None:
        words += f", {option.min} to {option.max}"
    elif option.min is not None:
        words += f", at least {option.min:g}"
    return words + (", several times" if option.multiple else "")


def _default(option: Any) -> str:
    if option.is_flag or option.default is None or not option.show_default:
        return ""
    return f"`{option.default.value if isinstance(option.default, Enum) else option.default}`"


def _variable(option: Any) -> str:
    return f" Else the variable `{option.envvar}`." if option.envvar else ""


def _prose(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\\[", "[")


def _cell(text: str | None) -> str:
    words = re.sub(r"\s+", " ", _prose(text)).replace("|", "\\|")
    return words.replace("<", "&lt;")
