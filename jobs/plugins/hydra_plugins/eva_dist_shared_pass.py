"""Hydra launcher `shared_pass`: it tells a task of the whole sweep at once, so that points can share their work.

    python jobs/precompute.py -m hydra/launcher=shared_pass eva.rho=1,1.25,1.5 eva.tau=0.9,0.99

Every point still has its turn in Hydra's own `run_job`: its folder, `.hydra/`, log and callbacks are those of the
basic launcher. What is added is the hand-over before the first turn. A task takes part by carrying an attribute
`batch`, called as `batch(settings, folders)` with, by job number (`hydra.job.num`):

    settings    the point's settings without Hydra's own, all interpolations resolved; or the exception that
                says why it has none (an override that cannot be composed), to be raised at that point's turn
    folders     the point's output folder, absolute; it exists

It returns a context manager, which is open for as long as the points have their turns.

Hydra imports this file whenever it looks for plugins, so it imports Hydra alone. The folder above `hydra_plugins`
holds nothing else: it can be put on `sys.path` without exposing anything but the plugin.
"""

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

_log = logging.getLogger(__name__)

Batch = Callable[[Mapping[int, DictConfig | Exception], Mapping[int, Path]], AbstractContextManager[Any]]


@dataclass
class SharedPassConf:
    """What `hydra/launcher=shared_pass` stands for."""

    _target_: str = "hydra_plugins.eva_dist_shared_pass.SharedPassLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="shared_pass", node=SharedPassConf, provider="eva_dist")


@dataclass(frozen=True)
class _Turn:
    """One point: Hydra's whole config for it, and what its task is told beforehand."""

    number: int
    overrides: Sequence[str]
    config: DictConfig
    settings: DictConfig | Exception
    folder: Path


class SharedPassLauncher(Launcher):
    """Runs the points of a sweep in this process, one after another, after telling the task of all of them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a launch needs.

        Raises:
            HydraException: the task cannot share work between points.
        """
        batch = getattr(task_function, "batch", None)
        if not callable(batch):
            raise HydraException(
                f"hydra/launcher=shared_pass: the points of {task_function.__module__}.{task_function.__name__} share "
                "no work (it carries no `batch`); leave hydra/launcher out, then each point runs by itself"
            )
        self._batch: Batch = batch
        self._context = hydra_context
        self._task = task_function
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Return how each point ended, in order; one that fails costs no other."""
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        turns = [self._compose_turn(number, words) for number, words in enumerate(job_overrides, initial_job_idx)]
        _log.info("Launching %d jobs as one batch", len(turns))
        settings = {turn.number: turn.settings for turn in turns}
        with self._batch(settings, {turn.number: turn.folder for turn in turns}):
            return [self._run_turn(turn) for turn in turns]

    def _compose_turn(self, number: int, overrides: Sequence[str]) -> _Turn:
        try:
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            refused = None
        except (HydraException, OmegaConfBaseException) as error:
            config, refused = self._stand_in(overrides), error
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # `${hydra:...}` in settings means this point
        try:
            folder = _make_folder(config)
            _write_settings(config, overrides, folder)
            return _Turn(number, overrides, config, refused or _resolve_settings(config), folder)
        finally:
            HydraConfig.instance().cfg = before

    def _stand_in(self, overrides: Sequence[str]) -> DictConfig:
        """Return the sweep's own config for a point that has none, so that it has a folder, a log and its turn."""
        config = copy.deepcopy(self._config)
        with read_write(config), open_dict(config):
            config.hydra.overrides.task = list(overrides)
        return config

    def _run_turn(self, turn: _Turn) -> JobReturn:
        _log.info("\t#%d : %s", turn.number, " ".join(filter_overrides(turn.overrides)))
        ended = run_job(
            hydra_context=self._context,
            task_function=self._task,
            config=turn.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        return ended


def _make_folder(config: DictConfig) -> Path:
    """Make the folder that `run_job` will use, and name it where `run_job` does."""
    hydra = config.hydra
    folder = Path(os.path.abspath(os.path.join(str(hydra.sweep.dir), str(hydra.sweep.subdir))))
    with read_write(hydra.runtime), open_dict(hydra.runtime):
        hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_settings(config: DictConfig, overrides: Sequence[str], folder: Path) -> None:
    """Write down what the point is, as `run_job` does at its turn: a sweep may be cut off before."""
    if config.hydra.output_subdir is None:
        return
    place = folder / str(config.hydra.output_subdir)
    place.mkdir(exist_ok=True)
    (place / "config.yaml").write_text(OmegaConf.to_yaml(_without_hydra(config)), encoding="utf-8")
    task = OmegaConf.to_yaml(OmegaConf.create(list(filter_overrides(overrides))))
    (place / "overrides.yaml").write_text(task, encoding="utf-8")


def _resolve_settings(config: DictConfig) -> DictConfig | Exception:
    """Return what the task gets from `run_job`, resolved; or why it cannot be."""
    settings = _without_hydra(config)
    try:
        with read_write(settings):
            OmegaConf.resolve(settings)
    except OmegaConfBaseException as error:
        return error
    return settings


def _without_hydra(config: DictConfig) -> DictConfig:
    settings = copy.deepcopy(config)
    with read_write(settings), open_dict(settings):
        del settings["hydra"]
    return settings
