"""What makes two submissions the same job, found out before anything is submitted.

The artifact's fingerprint, where this machine sees the model and the data; else the settings and the code
that would read them. Beside it where the artifact goes, for a job with another store is another job.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from eva_dist.config import Config, StoreConfig, SweepMode
from eva_dist.errors import ConfigError, EvaDistError, LayerError
from eva_dist.hashing import fingerprint as digest

_EXECUTION = ("cluster", "resume")
"""Groups of settings that say how a job is run, not what it computes."""


@dataclass(frozen=True)
class Identity:
    """`key` (sha256, hex) is equal for equal jobs; `fingerprint` is None, and `note` says why, where it is unknown."""

    key: str
    fingerprint: str | None
    note: str | None


def identify(config: Config, clone: Path) -> Identity:
    """Return the identity of a job; the store is not touched, nothing is downloaded but a hub model's config.

    Args:
        config: valid settings.
        clone: the folder with `eva_dist/`, `jobs/` and `conf/` that will run.

    Raises:
        EvaDistError: what the job would refuse for certain, for all that decides it is on this machine.
    """
    refuse_lost_store(config)
    goes_to = {
        "store": config.store.url,
        "artifact": config.to_dict()["artifact"],
        "on_max_steps": config.eva.on_max_steps.value,
        # without a word where it is not asked for: keys are what they were before it could be
        **({"keep_covariance": True} if config.solver.keep_covariance else {}),
    }
    fingerprint, note = _fingerprint_in(config)
    if config.sweep.mode is SweepMode.shared_tracker:
        fingerprint, note = None, "sweep.mode=shared_tracker: it hangs on the other points of the sweep"
    if fingerprint is not None:
        return Identity(digest({"fingerprint": fingerprint, **goes_to}), fingerprint, None)
    settings = {name: group for name, group in config.to_dict().items() if name not in _EXECUTION}
    return Identity(digest({"settings": settings, "code": code_digest(clone)}), None, note)


def refuse_lost_store(config: Config) -> None:
    """Refuse a store inside the job's working folder, which Ray removes after the job.

    Raises:
        ConfigError: `store.url` is a relative path, or in memory.
    """
    url = config.store.url
    if url.startswith("memory:"):
        raise ConfigError(f"store.url={url} must outlive the job; use a shared folder or a bucket")
    if "://" not in url and not os.path.isabs(os.path.expanduser(url)):
        raise ConfigError(
            f"store.url={url} must be absolute for a job on a cluster: a relative one lies in the job's working "
            "folder, which is removed after it; use a folder that outlives the job, e.g. store.url=file:///srv/eva"
        )


def code_digest(clone: Path) -> str:
    """Return the sha256 (hex) of the code and settings of a clone: what `.rayignore` lets through of them."""
    files = sorted(
        path.relative_to(clone)
        for folder in ("eva_dist", "jobs", "conf")
        for path in (clone / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    )
    found = hashlib.sha256()
    for file in files:
        content = (clone / file).read_bytes()
        found.update(f"{file.as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def _fingerprint_in(config: Config) -> tuple[str | None, str | None]:
    """Return the artifact's fingerprint and None, or None and why it is unknown here."""
    model, data = config.model.name_or_path, config.data.path
    if not config.data.is_here:
        return None, f"data.path={data} is not on this machine"
    model_here = Path(model).is_dir()
    if not model_here and (os.path.isabs(model) or model.startswith((".", "~"))):
        return None, f"model.name_or_path={model} is not on this machine"
    from eva_dist.run.prepare import prepare  # torch, and seconds: only for what is here

    with tempfile.TemporaryDirectory() as store:
        try:
            return prepare(replace(config, store=StoreConfig(url=store))).fingerprint, None
        except LayerError:
            raise
        except EvaDistError as error:
            if model_here:
                raise
            return None, str(error)
