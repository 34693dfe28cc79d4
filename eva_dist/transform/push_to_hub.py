"""Push an artifact to the Hub: one commit, so that a reader sees all of it or nothing."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import huggingface_hub.errors as hub_errors
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from eva_dist.artifact.card.front_matter import is_hub_id
from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError, StoreError
from eva_dist.store.hub_repository import NETWORK_ERRORS, HubRepository, first_line
from eva_dist.store.hub_token import how_to_give, token_for
from eva_dist.store.name_rules import MAIN
from eva_dist.store.open_artifact import fetch
from eva_dist.store.snapshot import Snapshot, read_snapshot
from eva_dist.transform.hub_copy import write_hub_copy


def push_to_hub(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    commit_message: str | None = None,
    create: bool = True,
    store_url: str | None = None,
) -> str:
    """Put an artifact on the Hub, verified first, and return the URL where a person sees it.

    The card is written anew for where it will be read (`transform/hub_copy.py`); the tensors go as they are. A push of
    what is there already makes no commit. What an artifact that was there before had, and this one has not, is
    removed by the same commit; other files stay.

    Args:
        source: any word for an artifact (`store/artifact_ref.py`).
        repo_id: `org/name`.
        revision: the branch, made if it is not there; None: `main`.
        base_model: name of the base model on the Hub, where the run had a copy of it in a folder.
        private: of a repository that is made; None: the organisation's default.
        token: None: that of the place (`store/hub_token.py`): for the Hub `HF_TOKEN`, else the stored login.
        endpoint: None: the environment's Hub.
        commit_message: None: names the artifact.
        create: make repository and branch if they are not there.
        store_url: the store of a `source` that is a name alone.

    Raises:
        ConfigError: a name that is none.
        ArtifactNotFoundError: no such artifact here; or without `create`, no such repository or branch there.
        IntegrityError: the artifact is not what its manifest says.
        StoreError: no token, no rights, no network, or the branch moved meanwhile; the branch is as it was.
    """
    place = endpoint or constants.ENDPOINT
    branch = revision or MAIN
    at = "" if branch == MAIN else f"@{quote(branch, safe='/')}"
    asked = f"hf://{repo_id}{at}" if endpoint is None else f"{endpoint.rstrip('/')}/{repo_id}{at}"
    own = token or token_for(place)
    _check_arguments(asked, repo_id, base_model, place, own)
    folder = fetch(source, store_url=store_url)
    api = HfApi(endpoint=place, token=own, library_name="eva_dist")
    with tempfile.TemporaryDirectory(prefix="eva_dist-push-") as changed:
        snapshot = write_hub_copy(folder, Path(changed), asked, repo_id, branch, base_model)
        with _errors_explained(asked, place), _without_bars():
            if create:
                _make_branch(api, repo_id, branch, private)
            head = api.model_info(repo_id, revision=branch)
            gone = _files_gone(HubRepository(place, repo_id, asked, own), head, snapshot)
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(path, new if (new := Path(changed, path)).exists() else folder / path)
                for path in snapshot.files
            ]
            message = commit_message or f"EVA initialisation {snapshot.fingerprint[:12]}"
            api.create_commit(
                repo_id,
                [*operations, *(CommitOperationDelete(path) for path in gone)],
                commit_message=message,
                revision=branch,
                parent_commit=head.sha,
            )
    return f"{place}/{repo_id}" + ("" if branch == MAIN else f"/tree/{quote(branch, safe='')}")


def _check_arguments(asked: str, repo_id: str, base_model: str | None, place: str, token: str | bool | None) -> None:
    if "/" not in repo_id or not is_hub_id(repo_id):
        raise ConfigError(f"repo_id={repo_id} must be org/name on the Hub; e.g. my-team/llama-eva")
    if base_model is not None and not is_hub_id(base_model):
        raise ConfigError(f"base_model={base_model} must be a name on the Hub; e.g. org/model")
    if not (get_token() if token is None else token):
        login = ", or log in with `hf auth login`" if token is None else ""
        raise StoreError(f"{asked}: no token to push with; {how_to_give(place)}{login}")


def _make_branch(api: HfApi, repo_id: str, branch: str, private: bool | None) -> None:
    """Make repository and branch; a new branch starts at the first commit, so that it never shows another artifact."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    if branch == MAIN or branch.startswith("refs/") or api.revision_exists(repo_id, branch):
        return
    first = api.list_repo_commits(repo_id)[-1].commit_id
    api.create_branch(repo_id, branch=branch, revision=first, exist_ok=True)


def _files_gone(repository: HubRepository, head: Any, snapshot: Snapshot) -> list[str]:
    """Return the files of the artifact that is there now that the new one does not have."""
    there = {sibling.rfilename for sibling in head.siblings or ()}
    try:
        before = read_snapshot(repository.manifest(head.sha))
    except (ArtifactNotFoundError, IntegrityError):
        return []
    return sorted((before.files.keys() & there) - snapshot.files.keys())


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep bars away from what is no terminal, and a warning that tables are data: ours belong to the model."""
    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*data file", category=UserWarning)
            yield
    finally:
        if hide:
            enable_progress_bars()


@contextmanager
def _errors_explained(asked: str, place: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into errors of ours."""
    try:
        yield
    except hub_errors.OfflineModeIsEnabled as error:
        raise StoreError(f"{asked}: HF_HUB_OFFLINE is set; unset it to push") from error
    except hub_errors.RevisionNotFoundError as error:
        raise ArtifactNotFoundError(f"{asked}: the repository has no such branch; push with create=True") from error
    except hub_errors.HfHubHTTPError as error:
        raise _refusal_error(asked, place, error) from error
    except NETWORK_ERRORS as error:
        raise StoreError(f"{asked}: {place} cannot be reached ({first_line(error)}); check the network") from error
    except (hub_errors.HFValidationError, ValueError, RuntimeError) as error:
        if isinstance(error, (ConfigError, StoreError)):
            raise
        cause = error.__cause__
        if isinstance(cause, hub_errors.HfHubHTTPError):
            raise _refusal_error(asked, place, cause) from error
        raise StoreError(f"{asked}: {first_line(error)}; nothing was committed") from error


def _refusal_error(asked: str, place: str, error: hub_errors.HfHubHTTPError) -> StoreError:
    status = error.response.status_code
    said = error.server_message or first_line(error)
    if status == 401 and not isinstance(error, hub_errors.RepositoryNotFoundError):
        remedy = f"for one that may write, {how_to_give(place)}"
        return StoreError(f"{asked}: {place} does not know the token ({said}); {remedy}")
    if status == 403:
        return StoreError(f"{asked}: the token may not write there ({said}); use a token with the right to write")
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return ArtifactNotFoundError(f"{asked}: there is no such repository, or the token may not see it")
    if status in (409, 412):
        return StoreError(f"{asked}: someone else pushed there meanwhile ({said}); push again")
    return StoreError(f"{asked}: {place} answered {status}: {said}; nothing was committed")
