"""A small Hub in a thread: the routes that `huggingface_hub` 2.4 writes and reads with, and what tests make it do."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.small_artifact import contents_of

Files = dict[str, bytes]
LFS = (".safetensors", ".png", ".parquet")


@dataclass
class Repo:
    """Branches by name to a commit, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False

    def commit(self, branch: str, files: Files, message: str) -> str:
        """Make a commit of these files the branch's last one."""
        described = json.dumps([len(self.messages), branch, {k: v.hex() for k, v in sorted(files.items())}])
        commit = hashlib.sha1(described.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = dict(files), commit
        self.messages.append(message)
        return commit

    def history(self, commit: str) -> list[str]:
        """Return the commits up to this one, last first, as if there were one line of them."""
        known = list(self.commits)
        return known[known.index(commit) :: -1]

    def files(self, branch: str = "main") -> Files:
        return self.commits[self.branches[branch]]


@dataclass(frozen=True)
class Asked:
    """One request; `sent` is the number of bytes of the answer's body."""

    method: str
    path: str
    host: str
    token: str | None
    sent: int


class FakeHub:
    """What the server holds; tests look at it, and change it, as they like.

    Attributes:
        url: the endpoint.
        repos: by `org/name`.
        tokens: token to the namespaces that it may write; everybody reads what is not private.
        asked: every request, in order.
        fail: called with method and path before an answer: a status to fail with, or None.
        cut: path's ending to the number of body bytes after which the connection is closed, once.
        ranges: whether parts of files are sent.
        cdn: whether LFS files are redirected to another origin, as the Hub does.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens: dict[str, set[str]] = {}
        self.asked: list[Asked] = []
        self.fail: Callable[[str, str], int | None] = lambda method, path: None
        self.cut: dict[str, int] = {}
        self.ranges = True
        self.cdn = False
        self.url = ""

    def put(self, folder: Path, repo_id: str = "org/name", branch: str = "main") -> str:
        """Make the files of a folder a commit; return it."""
        return self.repos.setdefault(repo_id, Repo()).commit(branch, contents_of(folder), "pushed")

    def bytes_of(self, ending: str) -> int:
        """Return how many bytes travelled for paths that end so."""
        return sum(one.sent for one in self.asked if one.path.endswith(ending))


@contextmanager
def running() -> Iterator[FakeHub]:
    """Serve an empty Hub on a free port; nobody is logged in meanwhile."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("HF_TOKEN", "EVA_DIST_TOKEN"):
                patch.delenv(name, raising=False)
            patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = parse_qs(url.query)
        header = self.headers.get("Authorization")
        self.token = header.removeprefix("Bearer ") if header else None
        try:
            if (status := self.hub.fail(method, url.path)) is not None:
                raise _Refused(status, message="told to fail")
            self._route(method, url.path.strip("/").split("/"))
        except _Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send(error.status, json.dumps({"error": error.message}).encode(), headers)

    def _route(self, method: str, parts: list[str]) -> None:
        if method in ("GET", "HEAD"):
            self._read(parts)
        else:
            self._write(parts)

    def _read(self, parts: list[str]) -> None:
        match parts:
            case ["api", "models"]:
                author = self.query.get("author", [""])[0]
                self._json([{"id": name} for name in self.hub.repos if name.startswith(f"{author}/")])
            case ["api", "models", org, name, "refs"]:
                branches = self._repo(org, name).branches
                refs = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in branches.items()]
                self._json({"branches": refs, "tags": [], "converts": []})
            case ["api", "models", org, name, "commits", revision]:
                commits = self._repo(org, name).history(self._commit(org, name, unquote(revision)))
                said = {"title": "a commit", "message": "", "date": "2026-01-02T03:04:05.000Z", "authors": []}
                self._json([said | {"id": commit} for commit in commits])
            case ["api", "models", org, name, *rest]:
                commit = self._commit(org, name, unquote(rest[1]) if rest else "main")
                files = self._repo(org, name).commits[commit]
                self._json({"id": f"{org}/{name}", "sha": commit, "siblings": [{"rfilename": path} for path in files]})
            case ["cdn", sha256]:
                self._file(self.hub.lfs[sha256], {})
            case [org, name, "resolve", revision, *path]:
                self._resolve(org, name, unquote(revision), unquote("/".join(path)))
            case _:
                raise _Refused(404, message=f"no route {self.path}")

    def _write(self, parts: list[str]) -> None:
        match parts:
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(self.body))
            case ["api", "models", org, name, "branch", branch]:
                self._branch(org, name, unquote(branch), json.loads(self.body))
            case ["api", "models", org, name, "preupload", revision]:
                self._preupload(org, name, unquote(revision), json.loads(self.body))
            case [org, _, "info", "lfs", "objects", "batch"]:
                self._writer(org)
                self._json({"objects": [self._upload(one) for one in json.loads(self.body)["objects"]]})
            case ["lfs", sha256]:
                if hashlib.sha256(self.body).hexdigest() != sha256:
                    raise _Refused(400)
                self.hub.lfs[sha256] = self.body
                self._send(200, b"", {})
            case ["api", "models", org, name, "commit", revision]:
                self._add_commit(org, name, unquote(revision))
            case _:
                raise _Refused(404, message=f"no route {self.path}")

    # --- reading ---

    def _repo(self, org: str, name: str) -> Repo:
        repo = self.hub.repos.get(f"{org}/{name}")
        if repo is None or (repo.private and org not in self.hub.tokens.get(self.token or "", set())):
            raise _Refused(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, org: str, name: str, revision: str) -> str:
        repo = self._repo(org, name)
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _resolve(self, org: str, name: str, revision: str, path: str) -> None:
        commit = self._commit(org, name, revision)
        content = self._repo(org, name).commits[commit].get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist")
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256}"'}
        if self.hub.cdn and path.endswith(LFS):
            self.hub.lfs[sha256] = content
            other = self.hub.url.replace("127.0.0.1", "localhost")
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256}"'}
            self._send(302, b"", headers | linked | {"Location": f"{other}/cdn/{sha256}"})
        else:
            self._file(content, headers)

    def _file(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range")
        if wanted is None or not self.hub.ranges:
            self._send(200, content, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._send(206 if start < end else 416, content[start:end], headers)

    # --- writing ---

    def _writer(self, org: str) -> None:
        if self.token is None:
            raise _Refused(401, message="Invalid username or password.")
        if org not in self.hub.tokens.get(self.token, set()):
            raise _Refused(403, message=f"You don't have the rights to write to {org}")

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        self._writer(asked["organization"])
        if repo_id in self.hub.repos:
            self._send(409, json.dumps({"url": f"{self.hub.url}/{repo_id}"}).encode(), {})
            return
        repo = self.hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._json({"url": f"{self.hub.url}/{repo_id}", "id": repo_id, "name": repo_id})

    def _branch(self, org: str, name: str, branch: str, asked: dict[str, Any]) -> None:
        self._writer(org)
        repo = self._repo(org, name)
        if branch in repo.branches:
            raise _Refused(409, message="Reference already exists")
        repo.branches[branch] = self._commit(org, name, asked.get("startingPoint", "main"))
        self._json({})

    def _preupload(self, org: str, name: str, revision: str, asked: dict[str, Any]) -> None:
        self._writer(org)
        there = self._repo(org, name).commits[self._commit(org, name, revision)]
        files = []
        for one in asked["files"]:
            path, lfs, content = one["path"], one["path"].endswith(LFS), there.get(one["path"])
            oid = None if content is None else hashlib.sha256(content).hexdigest() if lfs else _git_oid(content)
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        action = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
        return one if one["oid"] in self.hub.lfs else one | {"actions": action}

    def _add_commit(self, org: str, name: str, branch: str) -> None:
        self._writer(org)
        repo = self._repo(org, name)
        if branch not in repo.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files, message = dict(repo.files(branch)), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
                        raise _Refused(412, message="A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.lfs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.commit(branch, files, message)
        self._json({"commitUrl": f"{self.hub.url}/{org}/{name}/commit/{commit}", "commitOid": commit})

    # --- sending ---

    def _json(self, said: Any) -> None:
        self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        path = urlsplit(self.path).path
        body = b"" if self.command == "HEAD" else content
        cut = next((ending for ending in self.hub.cut if path.endswith(ending)), None) if status < 300 else None
        if cut is not None:
            body = body[: self.hub.cut.pop(cut)]
            self.close_connection = True
        # before the answer: a client may look as soon as it has it
        self.hub.asked.append(Asked(self.command, path, self.headers["Host"], self.token, len(body)))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
