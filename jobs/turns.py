"""A task's part in a sweep: it is told of all points beforehand, each then has its turn, a failed one leaves a note.

The launcher `shared_pass` (jobs/plugins/hydra_plugins) tells a task of its points through the attribute `batch`, which
`shares` gives it.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from jobs.hydra_main import BadSettings, explain

_log = logging.getLogger(__name__)

Task = Callable[[DictConfig], Any]
Open = Callable[[Mapping[int, DictConfig], Mapping[int, Path]], AbstractContextManager[Any]]


def output_folder() -> Path:
    """Return the folder of the point whose turn it is."""
    return Path(HydraConfig.get().runtime.output_dir)


def shares(begin: Open) -> Callable[[Task], Task]:
    """Let `hydra/launcher=shared_pass` tell a task of all its points: `begin` gets settings and folders by number."""

    def mark(task: Task) -> Task:
        refused: dict[int, Exception] = {}

        @contextmanager
        def batch(settings: Mapping[int, DictConfig | Exception], folders: Mapping[int, Path]) -> Iterator[None]:
            good = {number: one for number, one in settings.items() if not isinstance(one, Exception)}
            refused.update((number, one) for number, one in settings.items() if isinstance(one, Exception))
            try:
                with begin(good, {number: folders[number] for number in good}):
                    yield
            finally:
                refused.clear()

        @functools.wraps(task)
        def turn(settings: DictConfig) -> Any:
            if refused and (error := refused.get(HydraConfig.get().job.num)) is not None:
                raise error
            return task(settings)

        turn.batch = batch  # type: ignore[attr-defined]
        return turn

    return mark


@contextmanager
def apart(settings: Mapping[int, DictConfig], folders: Mapping[int, Path]) -> Iterator[None]:
    """For `shares`: the task is so quick that each point does its own work."""
    yield


def leaves_errors(task: Task) -> Task:
    """Make a task that fails leave `error.json` (type, message) in its folder, where a good one has `result.json`.

    Of a sweep that is done again in the same folder, what the other way to end had left is taken away.
    """

    @functools.wraps(task)
    def recorded(settings: DictConfig) -> Any:
        folder = output_folder()
        try:
            value = task(settings)
        except Exception as error:
            _write_error(folder, error)
            raise
        _write_error(folder, None)
        return value

    return recorded


def _write_error(folder: Path, error: Exception | None) -> None:
    """Write why a point failed, or take away what says so; a disk that takes no line costs the line."""
    try:
        if error is None:
            (folder / "error.json").unlink(missing_ok=True)
            return
        (folder / "result.json").unlink(missing_ok=True)
        refused = (error.__cause__ or error) if isinstance(error, BadSettings) else error
        line = {"type": type(refused).__name__, "message": explain(error)}
        (folder / "error.json").write_text(json.dumps(line) + "\n", encoding="utf-8")
    except OSError as refusal:
        _log.warning("%s cannot be written (%s); the run goes on without", folder / "error.json", refusal)
