"""Answers that are no file: refusals as the Hub's clients understand them, and JSON.

`X-Error-Code` decides which exception a client raises, `X-Error-Message` what it shows. Clients repeat a request that
got a 5xx or 429 several times, so those are for what passes; what is wrong and stays wrong is a 4xx.
"""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from eva_dist.gateway.index import Entry

REPO_NOT_FOUND = "RepoNotFound"
REVISION_NOT_FOUND = "RevisionNotFound"
ENTRY_NOT_FOUND = "EntryNotFound"
COMMIT_HEADER = "X-Repo-Commit"

_LONGEST_MESSAGE = 500


class Refused(Exception):
    """A request that is not answered as asked: status, message, and the code that clients look at."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        """Return the response; aiohttp leaves the body out for HEAD."""
        message = str(self)
        headers = {**self.headers, "X-Error-Message": _header_text(message), "Cache-Control": "no-store"}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return web.json_response({"error": message}, status=self.status, headers=headers, dumps=_dump_json)


def json_answer(content: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return JSON that is asked for anew each time."""
    return web.json_response(content, headers={"Cache-Control": "no-cache", **(headers or {})}, dumps=_dump_json)


def no_repo(repo_id: str) -> Refused:
    """Return the same words whether there is no such repo, or none that the request may see."""
    return Refused(404, f"there is no {repo_id} here; check the name and the token", REPO_NOT_FOUND)


def no_revision(repo_id: str, revision: str, names: list[str]) -> Refused:
    """Return a refusal that names the revisions that there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return Refused(
        404, f"{repo_id} has no revision {revision}; it has {', '.join(names[:10])}{more}", REVISION_NOT_FOUND
    )


def no_entry(entry: Entry, path: str) -> Refused:
    """Return a refusal that carries the commit: clients remember what a commit lacks."""
    where = f"{entry.revision.repo_id}@{entry.revision.revision}"
    return Refused(404, f"{where} has no {path}", ENTRY_NOT_FOUND, {COMMIT_HEADER: entry.snapshot.commit})


def _dump_json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=True, default=str)


def _header_text(message: str) -> str:
    """Return a message as a header may carry it: one line of printable ASCII."""
    line = "".join(c if c.isascii() and c.isprintable() else "?" for c in " ".join(message.split()))
    return line[:_LONGEST_MESSAGE]
