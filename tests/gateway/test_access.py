"""Tokens: who sees what, how they are kept and compared, and how they change."""

import base64
import hmac
import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from typer.testing import CliRunner

from eva_dist.cli.main import app
from eva_dist.errors import ConfigError
from eva_dist.gateway import access
from eva_dist.gateway.access import Access, append_token, is_loopback, new_token, read_tokens
from eva_dist.gateway.server import check_host
from tests.gateway.serving import ask, gateway, put

TEAM, ALL, OTHER = (new_token(*of) for of in (("ann", ["team"]), ("root", ["*"]), ("bob", ["others", "more"])))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# who may read\n\n" + "".join(f"{kept.line()}  # a comment\n" for _, kept in (TEAM, ALL, OTHER)))
    return path


@pytest.fixture
def endpoint(store, file):
    put(store, "team/name", "v1", {"a.txt": b"a"})
    put(store, "others/thing", "v1", {"b.txt": b"b"})
    with gateway(store, access=Access(file)) as url:
        yield url


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_without_or_with_a_wrong_token_nothing_is_shown(endpoint):
    for headers in (
        {},
        bearer("wrong"),
        bearer(""),
        bearer(TEAM[1].sha256),  # what is at rest opens nothing
        {"Authorization": "Basic %%%"},
        {"Authorization": "Digest x"},
        bearer("x" * 5000),
    ):
        for path in ("/api/models", "/api/models/team/name", "/team/name/resolve/v1/a.txt", "/", "/none", "/../etc"):
            got = ask(endpoint, path, **headers)
            assert got.status == 401 and got.headers["WWW-Authenticate"].startswith("Basic"), path
            assert b"team" not in got.body
    assert ask(endpoint, "/healthz").status == 200


def test_a_namespace_out_of_scope_is_as_if_it_were_not_there(endpoint):
    def answers(path: str) -> list[tuple[int, str | None, bytes]]:
        found = []
        for repo in ("others/thing", "others/none", "no/one"):
            got = ask(endpoint, path.format(repo), **bearer(TEAM[0]))
            found.append((got.status, got.code, got.body.replace(repo.encode(), b"")))
        return found

    for path in ("/api/models/{}", "/{}/resolve/v1/b.txt", "/{}/resolve/nope/b.txt", "/api/models/{}/tree/v1"):
        there, missing, nobodys = answers(path)
        assert there == missing == nobodys and there[:2] == (404, "RepoNotFound")
    assert [one["id"] for one in ask(endpoint, "/api/models?full=true", **bearer(TEAM[0])).json()] == ["team/name"]
    assert len(ask(endpoint, "/api/models", **bearer(ALL[0])).json()) == 2
    assert ask(endpoint, "/others/thing/resolve/v1/b.txt", **bearer(OTHER[0])).body == b"b"


def test_clients_and_browsers(endpoint, tmp_path):
    path = hf_hub_download("team/name", "a.txt", endpoint=endpoint, cache_dir=tmp_path, token=TEAM[0])
    assert Path(path).read_bytes() == b"a"
    api = HfApi(endpoint=endpoint, token=TEAM[0])
    assert api.whoami()["name"] == "ann" and api.model_info("team/name").private is True
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("others/thing", "b.txt", endpoint=endpoint, cache_dir=tmp_path, token=TEAM[0])
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as wrong:
        hf_hub_download("team/name", "a.txt", endpoint=endpoint, cache_dir=tmp_path / "w", token="hf_wrong")
    assert wrong.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="a token is needed: set HF_TOKEN"):
        hf_hub_download("team/name", "a.txt", endpoint=endpoint, cache_dir=tmp_path / "w", token=False)
    basic = base64.b64encode(f"anyone:{TEAM[0]}".encode()).decode()
    assert ask(endpoint, "/team/name/resolve/v1/a.txt", Authorization=f"Basic {basic}").body == b"a"


def test_tokens_rotate_while_the_gateway_runs(endpoint, file, monkeypatch, caplog):
    monkeypatch.setattr(access, "_LOOK_AGAIN_S", 0.0)
    secret, kept = new_token("eve", ["team"])
    append_token(file, kept)
    assert ask(endpoint, "/api/models", **bearer(secret)).status == 200
    file.unlink()
    assert ask(endpoint, "/api/models", **bearer(secret)).status == 200
    assert "the tokens stay as they were" in caplog.text
    file.write_text(TEAM[1].line())
    assert ask(endpoint, "/api/models", **bearer(secret)).status == 401
    assert ask(endpoint, "/api/models", **bearer(TEAM[0])).status == 200
    assert secret not in caplog.text and TEAM[0] not in caplog.text


def test_a_broken_line_keeps_no_revoked_token(endpoint, file, monkeypatch, caplog):
    monkeypatch.setattr(access, "_LOOK_AGAIN_S", 0.0)
    assert ask(endpoint, "/api/models", **bearer(ALL[0])).status == 200
    file.write_bytes(f"{TEAM[1].line()}\neva_a-secret-by-mistake \xff\n{OTHER[1].line()}\n".encode("latin-1"))
    assert ask(endpoint, "/api/models", **bearer(ALL[0])).status == 401  # its line has gone
    for secret, _ in (TEAM, OTHER):
        assert ask(endpoint, "/api/models", **bearer(secret)).status == 200
    assert "line 2 is left out" in caplog.text and "by-mistake" not in caplog.text


def test_every_entry_is_compared_whatever_matches(file, monkeypatch):
    known, compared, compare_digest = Access(file), [], hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    for secret, found in ((TEAM[0], "ann"), (OTHER[0], "bob"), ("wrong", None), ("", None)):
        compared.clear()
        token = known.token_of(secret)
        assert (token and token.name) == found
        assert [one for one, _ in compared] == [kept.sha256 for _, kept in (TEAM, ALL, OTHER)]
        assert all(len(other) == 64 for _, other in compared)


@pytest.mark.parametrize(
    "line",
    [
        "ann sha256:12 team",
        "ann " + "a" * 64 + " team",
        f"ann sha256:{'a' * 64}",
        f"ann sha256:{'A' * 64} team",
        f"ann sha256:{'a' * 64} team other",
        f"ann sha256:{'a' * 64} team,",
        f"ann sha256:{'a' * 64} ../x",
        f"ann sha256:{'a' * 64} *,team",
        "eva_a-secret-by-mistake",
    ],
)
def test_a_broken_line_is_named_and_not_repeated(line, tmp_path):
    with pytest.raises(ConfigError, match="line 2 must be") as error:
        read_tokens(f"# head\n{line}\n", "FILE")
    assert "secret" not in str(error.value)
    (tmp_path / "tokens").write_text(line)
    with pytest.raises(ConfigError):
        Access(tmp_path / "tokens")


def test_a_token_file_that_is_not_there_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="--token-file .* cannot be read"):
        Access(tmp_path / "none")


def test_the_token_command(tmp_path):
    run = CliRunner().invoke(app, ["token", "ann", "--namespace", "team", "--namespace", "other"])
    secret = run.stdout.split("to eva-dist): ")[1].split()[0]
    line = run.stdout.split("token file: ")[1].strip()
    assert run.exit_code == 0 and secret not in line
    (tmp_path / "t").write_text(line)
    token = Access(tmp_path / "t").token_of(secret)
    assert token is not None and token.namespaces == {"team", "other"} and len(secret) > 40

    file = tmp_path / "own" / "tokens"
    file.parent.mkdir()
    for name in ("ann", "bob"):
        run = CliRunner().invoke(app, ["token", name, "--namespace", "*", "--token-file", str(file)])
        assert run.exit_code == 0 and "sha256" not in run.stdout
    assert [token.name for token in Access(file).tokens] == ["ann", "bob"]
    assert file.stat().st_mode & 0o777 == 0o600 and os.listdir(file.parent) == ["tokens"]
    with pytest.raises(ConfigError, match="has a token named 'ann' already"):
        append_token(file, new_token("ann", ["team"])[1])
    with pytest.raises(ConfigError):
        new_token("two words", ["team"])


def test_without_tokens_only_this_machine_is_served(store):
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_host(host, needs_tokens=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""):
        with pytest.raises(ConfigError, match="must be a loopback address"):
            check_host(host, needs_tokens=False)
        check_host(host, needs_tokens=True)
    assert not is_loopback("localhost.example.org") and is_loopback("LOCALHOST")


def test_without_tokens_no_other_name_of_this_machine_is_answered(store):
    """A page in a browser could have its own name point to 127.0.0.1."""
    put(store, "team/name", "v1", {"a.txt": b"a"})
    with gateway(store) as url:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:80"):
            assert ask(url, "/api/models", Host=host).status == 403, host
        for host in ("localhost:9000", "127.0.0.1", "[::1]:8000"):
            assert ask(url, "/api/models", Host=host).status == 200


def test_stores_keep_their_namespaces_in_every_route(endpoint):
    other = bearer(TEAM[0])
    assert ask(endpoint, "/api/models?author=others", **other).json() == []
    assert ask(endpoint, "/api/models?search=thing", **other).json() == []
    body = b"paths=b.txt"
    kind = "application/x-www-form-urlencoded"
    got = ask(endpoint, "/api/models/others/thing/paths-info/v1", "POST", body, Content_Type=kind, **other)
    assert (got.status, got.code) == (404, "RepoNotFound")
    for route in ("refs", "commits/v1", "auth-check", "revision/v1", "nonsense"):
        assert ask(endpoint, f"/api/models/others/thing/{route}", **other).code == "RepoNotFound", route
