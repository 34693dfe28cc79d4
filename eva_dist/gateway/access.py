"""Who may see which namespaces: tokens, their file, and the check that every request passes.

The file has one token a line, `name sha256:<64 hex digits> team,other` (or `*` for all namespaces); `#` begins a
comment. Tokens are random (256 bits), so a plain hash at rest gives nothing away. A changed file is read again; a line
that is no token then is left out, and the others count. While there is no file, the tokens stay as they were.

Without a file everybody who reaches the gateway sees everything, so it listens on loopback only, and answers only to
names of this machine: a page in a browser that has its own name point here would else read the store.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from eva_dist.errors import ConfigError
from eva_dist.gateway.responses import Refused

log = logging.getLogger(__name__)

Sees = Callable[[str], bool]
SEES: web.RequestKey[Sees] = web.RequestKey("sees", object)  # type: ignore[arg-type]
"""Under which the check leaves its answer in a request."""
TOKEN_NAME = web.RequestKey("token_name", str)
OPEN_PATHS = frozenset({"/healthz"})

_LINE = "name sha256:<64 hex digits> namespace[,namespace...] (or * for all)"
_NAME = re.compile(r"[\w.@-]{1,100}\Z")
_NAMESPACE = re.compile(r"[\w-][\w.-]*\Z")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_LOOK_AGAIN_S = 1.0
_LONGEST_CREDENTIALS = 1000


@dataclass(frozen=True)
class Token:
    """A token as it is kept: who has it, its sha256 (hex), and what it opens; None: all namespaces."""

    name: str
    sha256: str
    namespaces: frozenset[str] | None

    def opens(self, namespace: str) -> bool:
        """Tell whether a request with this token sees a namespace."""
        return self.namespaces is None or namespace in self.namespaces

    def line(self) -> str:
        """Return the line of the token file."""
        return (
            f"{self.name} sha256:{self.sha256} {'*' if self.namespaces is None else ','.join(sorted(self.namespaces))}"
        )


def new_token(name: str, namespaces: Collection[str]) -> tuple[str, Token]:
    """Return a new secret and what is kept of it.

    Raises:
        ConfigError: the name or a namespace cannot stand in a token file, or there is no namespace.
    """
    secret = f"eva_{secrets.token_urlsafe(32)}"
    token = Token(name, _hash_secret(secret), None if "*" in namespaces else frozenset(namespaces))
    return secret, read_tokens(token.line(), "--namespace")[0]


def read_tokens(text: str, where: str) -> tuple[Token, ...]:
    """Read the content of a token file.

    Raises:
        ConfigError: a line is no token; the message names the line, never what is in it: it may be a secret.
    """
    tokens, broken = _parse_tokens(text)
    if broken:
        raise ConfigError(
            f"{where}: line {broken[0]} must be `{_LINE}`; make one with `eva-dist token NAME --namespace ...`"
        )
    return tokens


def _parse_tokens(text: str) -> tuple[tuple[Token, ...], list[int]]:
    """Return the tokens of a file, and the numbers of the lines that are none."""
    tokens, broken = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        digest = _DIGEST.match(words[1]) if len(words) == 3 else None
        names = words[2].split(",") if len(words) == 3 else []
        if digest is None or not _NAME.match(words[0]) or not (names == ["*"] or all(map(_NAMESPACE.match, names))):
            broken.append(number)
        else:
            tokens.append(Token(words[0], digest[1], None if names == ["*"] else frozenset(names)))
    return tuple(tokens), broken


class Access:
    """The tokens of a file, read again when it changes; `file=None`: no token is needed."""

    def __init__(self, file: Path | None = None) -> None:
        """Read the file; `ConfigError` if it is not there or not a token file."""
        self.file = file
        self.tokens: tuple[Token, ...] = ()
        self._stamp: tuple[int, ...] | None = None
        self._looked = 0.0
        if file is not None:
            try:
                self._stamp = _file_stamp(file)
                self.tokens = read_tokens(file.read_text(encoding="utf-8"), str(file))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"--token-file {file} cannot be read ({error}); make one with `eva-dist token NAME --namespace "
                    f"TEAM --token-file {file}`"
                ) from error

    @property
    def is_open(self) -> bool:
        """Whether everybody sees everything."""
        return self.file is None

    @property
    def namespaces(self) -> frozenset[str]:
        """The namespaces that tokens are for."""
        return frozenset().union(*(token.namespaces or () for token in self.tokens))

    def token_of(self, secret: str) -> Token | None:
        """Return the token that a secret is; every one is compared, in constant time, whichever matches."""
        given = _hash_secret(secret)
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.sha256, given):
                found = token
        return found

    def look_again(self) -> None:
        """Read the file if it has changed. A line that is no token is logged, and the others count.

        A broken line must not keep a token valid that another line, or its absence, revokes. If there is no file, the
        tokens stay: somebody is about to replace it.
        """
        now = time.monotonic()
        if self.file is None or now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        try:
            stamp = _file_stamp(self.file)
            if stamp == self._stamp:
                return
            text = self.file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            if self._stamp is not None:
                log.error("the tokens stay as they were: %s", error)
            self._stamp = None
            return
        self._stamp = stamp
        self.tokens, broken = _parse_tokens(text)
        for number in broken:
            log.error("%s: line %d is left out: it must be `%s`", self.file, number, _LINE)
        log.info("%s has changed: %d tokens are valid", self.file, len(self.tokens))


def visible(request: web.Request) -> Sees:
    """Return whether the request may see a namespace (`team` of `team/name`), as a function of its name."""
    return request[SEES]


def check_of(access: Access) -> Middleware:
    """Return the middleware that lets in who may come in, and notes what they see."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if access.is_open:
            _refuse_foreign_host(request)
            request[SEES] = lambda namespace: True
        elif request.path in OPEN_PATHS:
            request[SEES] = lambda namespace: False
        else:
            access.look_again()
            secret = secret_of(request.headers.get("Authorization", ""))
            token = access.token_of(secret or "")
            if secret is None or token is None:
                raise _token_refusal(given=secret is not None)
            request[SEES], request[TOKEN_NAME] = token.opens, token.name
        return await handler(request)

    return cast(Middleware, check)


def secret_of(authorization: str) -> str | None:
    """Return the secret of an Authorization header: a bearer token, or the password of HTTP Basic; None if none."""
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if len(value) > _LONGEST_CREDENTIALS:
        return ""
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def is_loopback(host: str) -> bool:
    """Tell whether a host's name or address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")


def append_token(file: Path, token: Token) -> None:
    """Add a token to a file, which only its owner can read.

    Raises:
        ConfigError: the file holds something else, has a token of that name, or cannot be written.
    """
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if any(known.name == token.name for known in read_tokens(text, str(file))):
            raise ConfigError(f"{file} has a token named {token.name!r} already; take another name, or remove its line")
        new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text + ("\n" if text and not text.endswith("\n") else "") + token.line() + "\n")
        os.replace(new, file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--token-file {file} cannot be written ({error}); choose a file in a folder of yours"
        ) from error


def _token_refusal(given: bool) -> Refused:
    # The words for a wrong one are the Hub's own: by them clients tell it from a repo that is not there.
    message = "Invalid credentials in Authorization header" if given else "a token is needed: set HF_TOKEN, or log in"
    return Refused(401, message, headers={"WWW-Authenticate": 'Basic realm="eva-dist", charset="UTF-8"'})


def _refuse_foreign_host(request: web.Request) -> None:
    host = request.headers.get("Host", "")
    name = host.rpartition(":")[0] if re.search(r":\d*\Z", host) else host
    if not is_loopback(name.strip("[]")):
        raise Refused(
            403, "without --token-file this gateway answers as localhost or 127.0.0.1 only; use such an address"
        )


def _hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _file_stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
