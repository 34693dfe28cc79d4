"""Manifests that are strange or hostile, readers who may not see all, and stores that are large."""

import html
import json
import math
import re
from datetime import UTC, datetime

import pytest
from aiohttp import web

from eva_dist.artifact.summary import read_summary
from eva_dist.gateway.access import SEES
from eva_dist.gateway.catalogue import add_pages
from eva_dist.gateway.catalogue.cache import ListedArtifact, haystack
from eva_dist.gateway.catalogue.detail import read_detail
from eva_dist.gateway.catalogue.filters import Query, find
from eva_dist.gateway.catalogue.listing import catalogue_page
from eva_dist.gateway.index import Index
from eva_dist.store.snapshot import Revision, read_snapshot
from eva_dist.store.store import Store
from tests.gateway.page_artifacts import ATTACK, manifest_of, publish
from tests.gateway.page_server import Page, served_pages

DEEP = json.loads("[" * 900 + "]" * 900)


def app_of(store, sees=lambda request, namespace: True):
    """The pages alone, with a say on who sees what."""

    @web.middleware
    async def check(request, handler):
        request[SEES] = lambda namespace: sees(request, namespace)
        return await handler(request)

    app = web.Application(middlewares=[check])
    add_pages(app, Index(store), store)
    return app


STRANGE = {
    "no-layers": {"layers": None},
    "layers-a-list": {"layers": [1, 2]},
    "layer-a-text": {"layers": {"model.layers.0.q": "seven", "x": {"rank": "8"}, "y": {"rank": -1}}},
    "numbers-as-text": {"steps": "many", "tokens": -1, "seconds": math.nan, "layers_converged": 1e400},
    "huge": {"steps": 10**400, "tokens": 10**30, "trainable_parameters": 10**40},
    "nothing": dict.fromkeys(manifest_of()),
    "another-format": {"format_version": 99},
    "another-method": {"method": "corda"},
    "config-a-number": {"config": 3, "decisive": [1], "model": "m", "data": 7, "versions": []},
    "dates": {"created": "yesterday", "derived_from": "not a fingerprint", "merged_from": [{"fingerprint": 3}, None]},
    "surrogates": {"model": {"id": "a\ud800b\u202e"}, "status": "\x00\udfff", "method": "\u0000"},
    "deep": {"decisive": {"a": DEEP}, "versions": {"b": DEEP}, "config": {"eva": DEEP}},
    "merged": {
        "merged_from": [{"fingerprint": "ab" * 32, "weight": 0.5}, {"fingerprint": "cd" * 32}],
        "data": "/a/x.jsonl + /b/y.jsonl",
    },
}


@pytest.fixture(scope="module")
def strange():
    store = Store("memory://strange")
    publish(store)
    for name, changes in STRANGE.items():
        publish(store, "odd/one", name, tables=False, **changes)
    with served_pages(app_of(store)) as server:
        yield server


def test_strange_manifests_are_listed_with_what_is_known(strange):
    page = strange.page("/")
    assert len(page.links()) == len(STRANGE) + 1
    assert page.text.count("incomplete") == len(STRANGE) - 1  # the merged one lacks nothing but its tables
    assert len(strange.page("/?q=corda").links()) == 1
    assert len(strange.page("/?r=none").links()) >= 1


@pytest.mark.parametrize("name", STRANGE)
def test_the_page_of_a_strange_manifest_says_what_is_missing(strange, name):
    page = strange.page(f"/artifact/odd/one/{name}")
    assert "The manifest is not as eva_dist writes it." in page.text
    expected = {
        "no-layers": "layers is missing",
        "layers-a-list": "layers is [1, 2], which is not a mapping",
        "layer-a-text": "3 layers have no rank",
        "numbers-as-text": "steps is 'many', which is not a whole number",
        "nothing": "model.id is missing",
        "another-format": "format_version is 99; these pages know 1 and 2",
        "another-method": "method is 'corda', not 'eva'",
        "dates": "created is 'yesterday', which is not a time",
    }
    assert expected.get(name, "spectrum.parquet: not among the artifact's files") in page.text
    assert "adapter_model.safetensors" in page.text  # its files can be had in any case
    strange.page(f"/compare?a=team/tiny@rho2.0-tau0.99&b=odd/one@{name}")


def test_what_went_into_a_merged_artifact_is_told(strange):
    page = strange.page("/artifact/odd/one/merged")
    assert "from x.jsonl + y.jsonl:" in page.text
    assert f"Merged from {'ab' * 8} (weight 0.5)." in page.text and f"Merged from {'cd' * 8}" in page.text


def test_a_poisoned_manifest_is_only_text():
    """Markup in every name, key and value that a manifest can hold: none of it becomes an element."""
    poison = json.loads(json.dumps(manifest_of(model=ATTACK, data=ATTACK)))
    poison["layers"] = {f"model.layers.0.{ATTACK}": next(iter(poison["layers"].values())), ATTACK: {"rank": 3}}
    poison |= {"status": ATTACK, "method": ATTACK, "stop": ATTACK, "budget": ATTACK, "tokenizer": {ATTACK: ATTACK}}
    poison |= {"versions": {ATTACK: ATTACK}, "created": ATTACK, "derived_from": {"fingerprint": ATTACK}}
    poison["config"]["model"]["config_overrides"] = {ATTACK: 1, "trust_remote_code": True, "x": ATTACK}
    poison["model"] |= {"task_type": ATTACK, "revision": '");import os;os.system("x'}
    store = Store("memory://poison")
    publish(store)
    publish(store, "bad/one", "a", **poison)
    with served_pages(app_of(store)) as served:
        sweep = served.page("/artifact/bad/one/a").links("/sweep/")
        paths = ["/", "/artifact/bad/one/a", "/compare?a=team/tiny@rho2.0-tau0.99&b=bad/one@a", *sweep]
        for path in [*paths, f"/?q={'%3Cscript%3E'}&base_model=%22%3E%3Cscript%3E"]:
            source = served.get(path).text
            page = Page(source)
            assert all(script.get("src", "").startswith("/static/") for script in page.all("script")), path
            assert not page.all("img", src="x") and "onerror" not in {key for _, a in page.elements for key in a}
        page = served.page("/artifact/bad/one/a")
        assert "&lt;script&gt;" in page.source and "trust_remote_code" not in _code(page.source)
        compile(_code(page.source), "page", "exec")


def _code(source):
    return html.unescape(re.search(r'<code class="load" data-name="Ready[^>]*>(.*?)</code>', source, re.S)[1])


def test_only_namespaces_that_a_reader_sees_are_shown():
    store = Store("memory://seen")
    secret = publish(store, "secret/one", "a", tau=0.77123, model="org/hidden")
    source = {"fingerprint": secret["fingerprint"], "exact": True}
    publish(store, "team/tiny", "b", derived_from=source)
    with served_pages(app_of(store, lambda request, name: name != "secret" or "Cookie" in request.headers)) as served:
        for path in ("/", "/?q=secret", "/artifact/team/tiny/b", "/compare?a=team/tiny@b"):
            text = served.get(path).text
            assert "secret/one" not in text and "org/hidden" not in text and "0.77123" not in text, path
        hidden = (
            "/artifact/secret/one/a",
            "/compare?a=secret/one@a",
            "/compare?a=team/tiny@b&b=secret/one@a",
            "/secret/one",
        )
        missing = served.get("/artifact/nobody/one/a").text.replace("nobody", "secret")
        for path in hidden:
            assert served.get(path).status == 404
        assert served.get(hidden[0]).text == missing  # as if it were not there
        assert served.get(hidden[0], Cookie="a=b").status == 200
        assert len(Page(served.get("/", Cookie="a=b").text).links()) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1 no", b"PAR1" + bytes(64) + b"PAR1"], ids=["empty", "short", "zeros"])
def test_a_table_that_is_none_is_a_problem_told(content):
    store = Store("memory://tables")
    manifest = publish(store, revision=f"t{len(content)}")
    snapshot = store.snapshot(manifest["fingerprint"])

    class Other:
        def read(self, entry):
            return content

    detail = read_detail(Other(), snapshot)
    assert len(detail.problems) == 2 and not detail.spectra and len(detail.ranks) == 9


def test_hosts_that_a_client_makes_up_do_not_reach_the_code(strange):
    page = strange.get("/artifact/team/tiny/rho2.0-tau0.99", Host='x";rm -rf /;"')
    assert page.status in (200, 400) and "rm -rf" not in page.text


def listed_of(count, blocks=1):
    """So many artifacts, as the index gives them."""
    found = []
    for at in range(count):
        manifest = manifest_of(
            r=2 + at % 7, rho=1 + at % 3, tau=0.9 + at % 5 / 100, blocks=blocks, model=f"org/m{at % 40}"
        )
        manifest["files"] = {}
        snapshot = read_snapshot(json.dumps(manifest).encode())
        revision = Revision(f"team{at % 9}/repo{at % 100}", f"r{at}", f"{at:064x}", datetime(2026, 1, 1, tzinfo=UTC))
        facts = read_summary(snapshot, revision.fingerprint)
        found.append(ListedArtifact(revision, snapshot, facts, haystack(revision, facts)))
    return found


def test_a_catalogue_of_2000_is_paged_and_small():
    listed = listed_of(2000)
    found = find(listed, Query.of({"q": "org", "page": "3", "sort": "rho"}))
    source = catalogue_page(found, {})
    page = Page(source)
    assert len(source) < 500_000 and len(page.links()) == 50 and found.pages == 40
    assert "2,000 of 2,000 artifacts, page 3 of 40" in page.text
    assert page.all("a", **{"aria-current": "page", "aria-label": "Page 3"})
    assert "/?q=org&sort=rho&page=4" in page.links("/?")
    seen = [one.name for at in range(1, 41) for one in find(listed, Query.of({"page": str(at)})).shown]
    assert sorted(seen) == sorted(one.name for one in listed)


def test_the_page_of_1000_layers_is_small():
    store = Store("memory://large")
    publish(store, "team/large", "a", blocks=334)
    with served_pages(app_of(store)) as served:
        page = served.page("/artifact/team/large/a")
        assert len(page.source) < 500_000 and "All 1,002 layers, one by one" in page.text
        assert page.text.count("model.layers.333.mlp.down_proj") == 1
