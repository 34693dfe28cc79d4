"""A repository on a Hub, the Hub itself or a gateway of ours, spoken to through `huggingface_hub`.

Two requests are enough: which commit a revision is, and the bytes of files at that commit. Each host gets its own
token (`hub_token.py`), which is dropped where that host redirects to another one.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

import huggingface_hub.errors as hub_errors
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from eva_dist.errors import ArtifactNotFoundError, ConfigError, IntegrityError, StoreError
from eva_dist.store.artifact_reader import NoRangesError
from eva_dist.store.hub_token import how_to_give, token_for
from eva_dist.store.name_rules import MAIN
from eva_dist.store.snapshot import LARGEST_MANIFEST, MANIFEST_FILE

log = logging.getLogger(__name__)

NETWORK_ERRORS: tuple[type[Exception], ...] = (hub_errors.HTTPError,)
"""Raised by the HTTP client below `huggingface_hub`; which library that is depends on its version."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_ANSWER = 16 << 20
_TRIES = 5
_FIRST_WAIT_S = 0.5
_MOST_NAMED = 10


class HubRepository:
    """One model repository of one Hub."""

    def __init__(self, endpoint: str, repo_id: str, asked: str, token: str | bool | None = None) -> None:
        """Send nothing yet.

        Args:
            endpoint: the Hub's URL; empty: the one of the environment.
            repo_id: `org/name`.
            asked: what messages call it.
            token: None: the token of that host.
        """
        self.endpoint = endpoint or constants.ENDPOINT
        self.repo_id = repo_id
        self.asked = asked
        self._token = token_for(self.endpoint) if token is None else token

    def commit(self, revision: str | None) -> str:
        """Ask which commit a revision is now."""
        if constants.is_offline_mode():
            raise self._offline_error()
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        try:
            with self.translate_errors(revision):
                said = self._read_json(f"api/models/{self.repo_id}{at}")
        except _BrokenError as error:
            raise StoreError(str(error)) from error
        commit = said.get("sha") if isinstance(said, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise StoreError(
                f"source={self.asked}: {self.endpoint} does not answer as a Hub does: it names the commit "
                f"{commit!r:.80}, must be 40 hex digits; check the URL"
            )
        return commit

    def manifest(self, commit: str) -> bytes:
        """Return the bytes of `manifest.json`."""
        content = bytearray()
        try:
            for chunk in self.stream(commit, MANIFEST_FILE, 0, None):
                content += chunk
                if len(content) > LARGEST_MANIFEST:
                    raise IntegrityError(f"source={self.asked}: its {MANIFEST_FILE} is too large to be one")
        except _NoFileError as error:
            raise ArtifactNotFoundError(
                f"source={self.asked}: {self.repo_id} is no artifact of eva_dist, for it has no {MANIFEST_FILE}; load "
                "other adapters with PeftModel.from_pretrained"
            ) from error
        return bytes(content)

    def stream(self, commit: str, path: str, start: int, end: int | None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a file; after a connection breaks, go on from the byte where it broke.

        Raises:
            IntegrityError: there is no such file, or it is shorter.
            NoRangesError: the server sends a whole file for a part of it.
        """
        url = hf_hub_url(self.repo_id, path, revision=commit, endpoint=self.endpoint)
        at, tries = start, 0
        while end is None or at < end:
            before = at
            try:
                with self.translate_errors(commit, path):
                    for chunk in self._request_bytes(url, at, end, partial=start > 0 or at > start):
                        at += len(chunk)
                        yield chunk
                    if end is None or at >= end:
                        return
                    raise IntegrityError(f"source={self.asked}: {path} ends at byte {at}, must have {end}")
            except _BrokenError as error:
                # Only tries that brought nothing count, so a bad line ends a long download no sooner than a short one.
                tries = 1 if at > before else tries + 1
                if tries >= _TRIES or end is None:
                    raise StoreError(str(error)) from error
                log.warning("%s; going on from byte %d", error, at)
                time.sleep(_FIRST_WAIT_S * 2 ** (tries - 1))

    def _request_bytes(self, url: str, at: int, end: int | None, partial: bool) -> Iterator[bytes]:
        # identity: of a compressed answer, byte positions would mean nothing
        headers = {"Accept-Encoding": "identity"}
        if end is not None:
            headers["Range"] = f"bytes={at}-{end - 1}"
        with self._open_response(url, headers) as response:
            if response.status_code != 206 and partial:
                raise NoRangesError(f"source={self.asked}: {self.endpoint} does not send parts of files")
            yield from response.iter_bytes()

    @contextmanager
    def _open_response(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """Give the response of a server that has answered well; its body is still to be read."""
        with http_stream_backoff(
            "GET",
            url,
            headers=build_hf_headers(token=self._token, library_name="eva_dist") | headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),
            retry_on_status_codes=(408, 429, 503),
        ) as response:
            hf_raise_for_status(response)
            yield response

    @contextmanager
    def translate_errors(self, revision: str | None, path: str = "a file") -> Iterator[None]:
        """Turn the errors of `huggingface_hub` into ours, with the remedy."""
        try:
            yield
        except hub_errors.GatedRepoError as error:
            raise StoreError(
                f"source={self.asked}: {self.repo_id} is gated; accept its terms, then {how_to_give(self.endpoint)}"
            ) from error
        except hub_errors.RepositoryNotFoundError as error:
            raise self._unknown_repository_error() from error
        except hub_errors.RevisionNotFoundError as error:
            raise self._unknown_revision_error(revision) from error
        except hub_errors.EntryNotFoundError as error:
            raise _NoFileError(
                f"source={self.asked}: {path} is missing though the manifest lists it; push it again"
            ) from error
        except hub_errors.HFValidationError as error:
            raise ConfigError(f"source={self.asked}: {first_line(error)}") from error
        except hub_errors.OfflineModeIsEnabled as error:
            raise self._offline_error() from error
        except hub_errors.HfHubHTTPError as error:
            raise self._refusal_error(error) from error
        except NETWORK_ERRORS as error:
            raise _BrokenError(
                f"source={self.asked}: {self.endpoint} cannot be reached ({first_line(error)}); check the URL and the "
                "network, or set HF_HUB_OFFLINE=1 to use what is cached"
            ) from error

    def _offline_error(self) -> StoreError:
        return StoreError(
            f"source={self.asked} is not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch it before"
        )

    def _refusal_error(self, error: hub_errors.HfHubHTTPError) -> StoreError:
        status = error.response.status_code
        said = error.server_message or first_line(error)
        if status in (401, 403):
            return StoreError(
                f"source={self.asked}: {self.endpoint} refuses ({status}: {said}); to give a token that may "
                f"read {self.repo_id}, {how_to_give(self.endpoint)}"
            )
        return StoreError(f"source={self.asked}: {self.endpoint} answered {status}: {said}; try again later")

    def _unknown_repository_error(self) -> ArtifactNotFoundError:
        namespace = self.repo_id.partition("/")[0]
        names = _values_of_key(self._ask_for_hints(f"api/models?author={quote(namespace, safe='')}&limit=100"), "id")
        near = get_close_matches(self.repo_id, names, 3, 0.5) or names[:_MOST_NAMED]
        return ArtifactNotFoundError(
            f"source={self.asked}: {self.endpoint} has no {self.repo_id}, or you may not see it; check the name, or "
            f"{how_to_give(self.endpoint)}" + (f". It has {', '.join(near)}" if near else "")
        )

    def _unknown_revision_error(self, revision: str | None) -> ArtifactNotFoundError:
        said = self._ask_for_hints(f"api/models/{self.repo_id}/refs")
        refs = said if isinstance(said, dict) else {}
        names = [name for kind in ("branches", "tags") for name in _values_of_key(refs.get(kind), "name")]
        near = get_close_matches(revision or MAIN, names, _MOST_NAMED, 0.0)
        return ArtifactNotFoundError(
            f"source={self.asked}: {self.repo_id} has no revision {revision or MAIN}"
            + (f"; it has {', '.join(near)}" if near else "; check its name")
        )

    def _ask_for_hints(self, route: str) -> object:
        """Return what the server says at a route, for hints in an error message; None if it says nothing of use.

        One request, no further pages: the error that is being explained must not be replaced by another one.
        """
        with suppress(Exception):
            return self._read_json(route)
        return None

    def _read_json(self, route: str) -> object:
        """Return the JSON that the server answers at a route; None if it is not JSON, or longer than any Hub's."""
        content = bytearray()
        with self._open_response(f"{self.endpoint}/{route}", {}) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _LARGEST_ANSWER:
                    return None
        with suppress(ValueError, RecursionError):
            said: object = json.loads(content)
            return said
        return None


class _NoFileError(IntegrityError):
    """The server does not have a file."""


class _BrokenError(StoreError):
    """The network failed; what came so far is right."""


def _values_of_key(listed: object, key: str) -> list[str]:
    """Return the values under a key in a list of JSON objects; nothing if it is not such a list."""
    return [str(one[key]) for one in listed if isinstance(one, dict) and key in one] if isinstance(listed, list) else []


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
