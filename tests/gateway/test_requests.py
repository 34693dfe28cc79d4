"""What a request asks for: ranges, conditions, and paths that keep their parts."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from eva_dist.gateway.requests import PATH, byte_range, fails_if_match, has_current, refuse_odd_paths
from eva_dist.gateway.responses import Refused


def asking(path: str = "/", **headers: str) -> web.Request:
    return make_mocked_request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-1000", (10, 100)),
        ("bytes=-30", (70, 100)),
        ("bytes=-300", (0, 100)),
        ("BYTES = 99 - 99", (99, 100)),
        ("bytes=100-", None),
        ("bytes=-0", None),
    ],
)
def test_what_a_range_means(header, expected):
    found = byte_range({"Range": header}, "tag", 100)
    assert (found and (found.start, found.end)) == expected and (found is None or found.partial)


@pytest.mark.parametrize("header", ["", "bytes=-", "bytes=20-10", "bytes=1-2,5-6", "lines=1-2", "bytes=x-"])
def test_what_is_no_single_range_means_the_whole(header):
    assert byte_range({"Range": header}, "tag", 100) == byte_range({}, "tag", 100)


def test_a_range_on_a_condition():
    assert byte_range({"Range": "bytes=5-", "If-Range": '"tag"'}, "tag", 100).partial
    for other in ('"other"', 'W/"tag"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert not byte_range({"Range": "bytes=5-", "If-Range": other}, "tag", 100).partial


def test_known_tags():
    assert has_current(asking(If_None_Match='"a", W/"tag"'), "tag") and has_current(asking(If_None_Match="*"), "tag")
    assert not has_current(asking(If_None_Match='"tags"'), "tag") and not has_current(asking(), "tag")


def test_tags_that_must_match():
    for same in ("", "*", '"tag"', '"a", "tag"'):
        assert not fails_if_match(asking(If_Match=same), "tag"), same
    for other in ('"a"', 'W/"tag"', "tag", '"a", W/"tag"'):
        assert fails_if_match(asking(If_Match=other), "tag"), other


def parts_of(path: str) -> tuple[str, ...]:
    """What the middleware notes of a path."""

    async def note(request: web.Request) -> web.Response:
        return web.Response(text="\n".join(request[PATH].parts))

    return tuple(asyncio.run(refuse_odd_paths(asking(path), note)).text.split("\n"))


def test_a_part_of_a_path_stays_a_part():
    assert parts_of("/api/models/a/b/revision/refs%2Fpr%2f1/") == ("api", "models", "a", "b", "revision", "refs/pr/1")
    assert parts_of("/a/b%20c%C3%A9+%2B%25252F") == ("a", "b cé++%252F")


@pytest.mark.parametrize("odd", ["..", "%2e%2E", "x%2f..%2fy", ".", "a//b", "%2Fa", "a%5Cb", "%00", "%ff", "a%2F"])
def test_paths_that_could_mean_another_place_are_refused(odd):
    for path in (f"/{odd}/x", f"/api/models/{odd}/x"):
        with pytest.raises(Refused) as refused:
            parts_of(path)
        assert refused.value.status == 400
