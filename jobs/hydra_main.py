"""What every job needs around Hydra: schemas, exit codes, one JSON line on standard output.

Exit codes: 0 done, 2 bad settings (before any actor starts), 75 asked to end (SIGTERM) with its checkpoint
kept (`EX_TEMPFAIL`: the same command goes on), 1 anything else. A sweep has the code of its first point that
failed, but 75 if it was asked to end.

Importing this module puts the folder of our Hydra plugins on `sys.path`, however the job was started.
"""

import dataclasses
import difflib
import functools
import gc
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eva_dist.cli.overrides import eva_overrides
from eva_dist.config import Config, config_groups
from eva_dist.errors import ConfigError, EvaDistError, PreemptedError
from jobs.schema import freeze, schema

PREEMPTED = 75

sys.path.insert(0, str(Path(__file__).resolve().parent / "plugins"))  # a clone's plugin goes before an installed one


class BadSettings(Exception):
    """What `prepare` refused: a person can mend it, and no actor has started."""


def register_schema(name: str = "schema", **own: type) -> None:
    """Let Hydra check every key and type, of a job's `own` groups too; `name` heads its config's defaults list."""
    ConfigStore.instance().store(name=name, node=schema(**own))


def to_config(settings: DictConfig) -> Config:
    """Return the validated settings of a composed Hydra config.

    Raises:
        ConfigError: one line for each setting that is out of range.
    """
    return freeze(OmegaConf.to_object(settings))


def for_hydra(words: Sequence[str]) -> list[str]:
    """Return the words of a command line, those of EVA's names and patterns as Hydra can read them.

    Regexes are what they are for `eva-dist derive`: Hydra's own grammar has no `^`, no bracket and no quote in a
    pattern, and adds no key to `eva.rank_pattern` without a `+`. What we cannot read either (a sweep over several
    values, a mistake) stays as it is: Hydra runs it, or says what is wrong.
    """
    found: list[str] = []
    patterns: dict[str, int] = {}
    for word in words:
        given = _as_derive_reads_it(word)
        if given.get("rank_pattern"):
            patterns |= given["rank_pattern"]
        elif given.keys() & {"target_modules", "exclude_modules"} and not _hydra_reads(word):
            found += [f"eva.{name}={_quote_names(value)}" for name, value in given.items()]
        else:
            found.append(word)
    if patterns:
        found.append(f"eva.rank_pattern=${{eva_patterns:{json.dumps(patterns).encode().hex()}}}")
    return found


def _as_derive_reads_it(word: str) -> dict[str, Any]:
    if not word.lstrip("+").startswith(("eva.rank_pattern", "eva.target_modules", "eva.exclude_modules")):
        return {}
    try:
        return eva_overrides([word])
    except ConfigError:
        return {}


def _hydra_reads(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _quote_names(value: str | list[str]) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_quote_names, value))}]"
    quote = '"' if "'" in value else "'"
    return f"{quote}{value}{quote}"


def _decoded_patterns(text: str) -> dict[str, int]:
    """Return the patterns that `for_hydra` has put into an interpolation, in hexadecimal digits."""
    patterns: dict[str, int] = json.loads(bytes.fromhex(str(text)).decode())
    return patterns


OmegaConf.register_new_resolver("eva_patterns", _decoded_patterns, replace=True)


def exit_code(job: Callable[[], None]) -> int:
    """Run a Hydra main to its exit code; whatever ends it is said on standard error in one message."""
    sys.argv[1:] = for_hydra(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting, so the code is ours
    _failures.clear()
    _after_failure.clear()
    try:
        job()
    except SystemExit as stop:  # --help and its kin
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _say_error("interrupted; nothing half-done has been published", 1)
    except Exception as error:  # Hydra's own complaint; or a point's, which Hydra raises when all have had their turn
        first = _note_failure(error)
        for work in _after_failure:
            work()
    else:
        first = _failures[0].code if _failures else 0
    gc.freeze()  # the interpreter looks through all modules for garbage before it ends, for more than a second
    return PREEMPTED if any(failure.code == PREEMPTED for failure in _failures) else first


def point(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Say what fails a task when it happens; Hydra then takes note of it, and runs the other points of a sweep."""

    @functools.wraps(task)
    def guarded(settings: DictConfig) -> Any:
        try:
            return task(settings)
        except Exception as error:
            _note_failure(error)
            raise

    return guarded


def after_failure(work: Callable[[], None]) -> None:
    """Have work done if an exception ends the Hydra main: Hydra calls no `on_multirun_end` then."""
    _after_failure.append(work)


@dataclass(frozen=True)
class _Failure:
    """What ended a point, and the exit code for it."""

    error: Exception
    code: int


_failures: list[_Failure] = []
"""Of the points that failed, in order."""

_after_failure: list[Callable[[], None]] = []


def _note_failure(error: Exception) -> int:
    """Say what ended a point, once however many it ended; return the exit code."""
    code = next((failure.code for failure in _failures if failure.error is error), None)
    if code is None:
        code = _say_why(error)
        _failures.append(_Failure(error, code))
    return code


def _say_why(error: Exception) -> int:
    if isinstance(error, (BadSettings, HydraException, OmegaConfBaseException)):
        return _say_error(explain(error), 2)
    if isinstance(error, EvaDistError):
        return _say_error(explain(error), PREEMPTED if isinstance(error, PreemptedError) else 1)
    traceback.print_exception(error)
    return 1


@contextmanager
def before_actors() -> Iterator[None]:
    """Whatever is refused in here is a matter of settings: exit code 2."""
    try:
        yield
    except PreemptedError:
        raise
    except EvaDistError as error:
        raise BadSettings(str(error)) from error


@contextmanager
def only_json_on_stdout() -> Iterator[Callable[[Any], None]]:
    """Send all that anybody prints to standard error; yield what prints one JSON line on standard output.

    File descriptors are swapped, not `sys.stdout`: Ray's log forwarding and C libraries write there too.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)

    def emit(outcome: Any) -> None:
        os.write(stdout, (json.dumps(dataclasses.asdict(outcome)) + "\n").encode())

    try:
        yield emit
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def explain(error: BaseException) -> str:
    """Return an error as one message; Hydra's and OmegaConf's with key, value and what is allowed."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return str(error)
    text = " ".join(line.strip() for e in _error_chain(error) for line in str(e).splitlines() if not _is_noise(line))
    unknown = re.search(r"(?:override|Key) '([\w.@/]+)'", text)
    if unknown and "not in" in text:
        key = unknown.group(1)
        if key in _setting_keys():
            return f"{_as_typed(key)} adds keys to {key}; write '+{_as_typed(key)}'"
        close = difflib.get_close_matches(key, sorted(_setting_keys()), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{_as_typed(key)} is no setting; {hint}see --help for all of them"
    return f"{text}; see --help for all settings"


def _error_chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while isinstance(seen, (HydraException, OmegaConfBaseException)):
        yield seen
        seen = seen.__cause__


def _is_noise(line: str) -> bool:
    return line.strip().startswith(("full_key:", "reference_type=", "object_type=", "To append to your config"))


def _as_typed(key: str) -> str:
    """Return the override as it was typed, if it was."""
    return next((word for word in sys.argv[1:] if word.lstrip("+~").split("=")[0] == key), key)


def _setting_keys() -> set[str]:
    alone = {f.name for f in dataclasses.fields(Config)} - config_groups().keys()
    return alone | {f"{name}.{f.name}" for name, group in config_groups().items() for f in dataclasses.fields(group)}


def _say_error(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
