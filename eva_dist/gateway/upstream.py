"""What the store does not have, from another Hub: base models resolve with the same `HF_ENDPOINT`.

`redirect` sends the client there. Its own token goes along, as its `huggingface_hub` decides, which is why a gateway
with tokens of its own does not redirect (`cli.serve`): they would be shown to the upstream. And clients follow a
redirect of a file's HEAD to huggingface.co only; for another upstream they need `proxy`.

`proxy` fetches, and sends on as it comes. Of the request go only a few headers, never its Authorization or cookies; of
the answer come only those that a download needs: no cookies, and nothing of Xet, which would have the client turn to
servers that it may not reach. Redirects, the Hub's to its CDN above all, are followed here; what they say of the file
(`X-Repo-Commit`, `X-Linked-*`) is kept, and the upstream's own token goes to the upstream alone. Whoever may use the
gateway reads what that token opens: give it one that opens no more than that. Nothing else is sent as credentials:
proxies are the environment's, `~/.netrc` is not looked at.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from eva_dist.errors import ConfigError
from eva_dist.gateway.downloads import SAFE_HEADERS, disposition, send_stream
from eva_dist.gateway.limits import DownloadSlots
from eva_dist.gateway.requests import PATH, base_url
from eva_dist.gateway.responses import Refused

log = logging.getLogger(__name__)

Mode = Literal["redirect", "proxy"]
"""How what the store does not have reaches the client."""

_SENT = ("Accept", "Range", "If-Range", "If-None-Match", "If-Match", "If-Modified-Since", "Content-Type", "User-Agent")
_OF_THE_FILE = ("X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size", "X-Error-Code", "X-Error-Message")
_BROUGHT = (
    *_OF_THE_FILE,
    *("Content-Type", "Content-Length", "Content-Range", "Content-Encoding", "Content-Disposition", "Accept-Ranges"),
    *("ETag", "Last-Modified", "Retry-After", "X-HF-Warning", "RateLimit", "RateLimit-Policy", "X-Request-Id"),
)
_HOPS, _MOST_HOPS = "X-Eva-Dist-Hops", 5
"""Gateways may stand behind one another, but not in a circle."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_CHUNK_BYTES = 256 << 10
_LARGEST_LISTING = 32 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30, sock_connect=10, sock_read=60)


@dataclass
class _Fetched:
    """The answer at the end of the redirects, and what those on the way said of the file."""

    response: aiohttp.ClientResponse
    said: CIMultiDict[str] = field(default_factory=CIMultiDict)
    elsewhere: bool = False  # a redirect to another host, not followed: the file's HEAD ends there


class Upstream:
    """Another Hub endpoint."""

    def __init__(self, url: str, mode: Mode = "proxy", token: str | None = None) -> None:
        """Check the URL; `ConfigError` if it is none."""
        self.url = URL(url.rstrip("/")) if url.isprintable() else URL("")
        if self.url.scheme not in ("http", "https") or not self.url.host or self.url.query_string or self.url.user:
            raise ConfigError(
                f"--upstream {url} must be http(s)://host[:port][/prefix], as https://huggingface.co; a token goes "
                "into an environment variable that --upstream-token-env names"
            )
        self.mode = mode
        self._token = token
        self._slots = DownloadSlots()
        self._session: aiohttp.ClientSession | None = None

    async def opened(self, app: web.Application) -> AsyncIterator[None]:
        """Keep connections for as long as the application runs (a cleanup context of aiohttp)."""
        self._session = aiohttp.ClientSession(
            timeout=_TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),  # a limit over all would have slow clients shut out the others
            trust_env=False,  # it would add what ~/.netrc has for the host, to every user's requests
            read_bufsize=_CHUNK_BYTES,
        )
        yield
        await self._session.close()

    def redirect(self, request: web.Request) -> web.Response:
        """Send the client to the same place there."""
        return web.Response(
            status=307, headers={"Location": str(self._target_url(request)), "Cache-Control": "no-store"}
        )

    async def answer(self, request: web.Request, body: bytes | None = None) -> web.StreamResponse:
        """Answer with what the upstream has.

        Raises:
            Refused: 502: it cannot be reached, or its answer makes no sense; 503: too much at once for one client.
        """
        if self.mode == "redirect":
            return self.redirect(request)
        if _hops_before(request) >= _MOST_HOPS:
            raise Refused(508, "--upstream leads back to this gateway; set it to another endpoint")
        async with self._slots.slot_for(request):
            return await self._answer_by_proxy(request, body)

    async def _answer_by_proxy(self, request: web.Request, body: bytes | None) -> web.StreamResponse:
        try:
            fetched = await self._fetch_following(request, self._target_url(request), body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._note_unreachable(error) from error
        try:
            return await self._pass_on(request, fetched)
        finally:
            fetched.response.close()

    async def _fetch_following(self, request: web.Request, target: URL, body: bytes | None) -> _Fetched:
        assert self._session is not None, "the application runs"
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        headers[_HOPS] = str(_hops_before(request) + 1)
        headers["Accept-Encoding"] = "identity"  # lengths and ranges are those of the file
        method, said = request.method, CIMultiDict[str]()
        for _ in range(_MOST_REDIRECTS):
            ours = target.origin() == self.url.origin()
            own = {"Authorization": f"Bearer {self._token}"} if ours and self._token else {}
            response = await self._session.request(
                method,
                target,
                headers={**headers, **own},
                data=body,
                allow_redirects=False,
                proxy=_proxy_to(target),
            )
            if ours:
                said.update({name: response.headers[name] for name in _OF_THE_FILE if name in response.headers})
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return _Fetched(response, said)
            target = target.join(URL(response.headers["Location"], encoded=True))
            if method == "HEAD" and target.origin() != self.url.origin() and "X-Linked-Size" in said:
                return _Fetched(response, said, elsewhere=True)
            if target.scheme not in ("https", self.url.scheme):
                response.close()
                raise ValueError(f"it redirects to {target.scheme}")
            if response.status == 303 or (response.status in (301, 302) and method == "POST"):
                method, body = "GET", None
            response.close()
        raise ValueError(f"it redirects more than {_MOST_REDIRECTS} times")

    async def _pass_on(self, request: web.Request, fetched: _Fetched) -> web.StreamResponse:
        given, path = fetched.response, request[PATH]
        headers = CIMultiDict({name: given.headers[name] for name in _BROUGHT if name in given.headers})
        headers.update(fetched.said)
        headers.update(SAFE_HEADERS)
        if fetched.elsewhere:
            headers["Content-Length"], headers["Accept-Ranges"] = fetched.said["X-Linked-Size"], "bytes"
            headers["ETag"] = fetched.said.get("X-Linked-Etag", "")
            return web.Response(headers=headers)
        if "json" not in headers.get("Content-Type", ""):
            headers["Content-Disposition"] = disposition(path.parts[-1])
        if "Link" in given.headers and path.parts[0] == "api":
            headers["Link"] = given.headers["Link"].replace(str(self.url), base_url(request))
        if request.method == "HEAD":
            return web.Response(status=given.status, headers=headers)
        if {"tree", "paths-info"} & set(path.parts[2:5]) and path.parts[0] == "api" and given.status == 200:
            headers.popall("Content-Length", None)
            return web.Response(body=await self._without_xet(given), headers=headers)
        response = web.StreamResponse(status=given.status, headers=headers)
        await send_stream(request, response, self._read_chunks(given))
        return response

    async def _without_xet(self, given: aiohttp.ClientResponse) -> bytes:
        """Return a listing without the hashes that would have a client fetch from elsewhere."""
        content = bytearray()
        try:
            async for chunk in self._read_chunks(given):
                content += chunk
                if len(content) > _LARGEST_LISTING:
                    raise ValueError(f"a listing of more than {_LARGEST_LISTING} bytes")
            listed: Any = json.loads(content)
        except (ValueError, OSError) as error:
            raise self._note_unreachable(error) from error
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, dict):
                item.pop("xetHash", None)
        return json.dumps(listed).encode()

    async def _read_chunks(self, given: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in given.content.iter_chunked(_CHUNK_BYTES):
                yield chunk
        except (aiohttp.ClientError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise OSError(f"the upstream broke off: {error}") from error

    def _target_url(self, request: web.Request) -> URL:
        query = request.rel_url.raw_query_string
        return URL(f"{self.url}{request[PATH].encoded}{'?' + query if query else ''}", encoded=True)

    def _note_unreachable(self, error: Exception) -> Refused:
        log.warning("the upstream %s failed: %s: %s", self.url, type(error).__name__, error)
        return Refused(
            502, f"this is not in the store, and the upstream {self.url} did not answer as it should; try again later"
        )


def _proxy_to(target: URL) -> str | None:
    """Return the proxy that the environment names (`http_proxy`, `https_proxy`, but for `no_proxy`); None: none."""
    if target.host is None or proxy_bypass(target.host):
        return None
    proxy = getproxies().get(target.scheme, "")
    return proxy if proxy.startswith(("http://", "https://")) else None


def _hops_before(request: web.Request) -> int:
    given = request.headers.get(_HOPS, "0")
    return int(given) if len(given) < 3 and given.isascii() and given.isdigit() else _MOST_HOPS


def upstream_of(url: str | None, mode: Mode, token: str | None, needs_tokens: bool) -> Upstream | None:
    """Return the upstream that options ask for.

    Raises:
        ConfigError: the URL is none; or a redirect from a gateway with tokens: clients would show them to the upstream.
    """
    if url is None:
        return None
    if mode == "redirect" and needs_tokens:
        raise ConfigError(
            "--upstream-mode redirect must not be used with --token-file: clients send their token along when they are "
            "redirected, and so show it to the upstream; use --upstream-mode proxy"
        )
    return Upstream(url, mode, token)
