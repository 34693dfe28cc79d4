"""The catalogue's pages over HTTP: what is listed, found, told, linked, and sent."""

import html
import re

import pytest

from eva_dist.artifact.facts import FORMAT_VERSION
from eva_dist.artifact.summary import KNOWN_FORMATS
from eva_dist.gateway.access import Access, new_token
from eva_dist.gateway.app import make_app
from eva_dist.store.store import Store
from tests.gateway.page_artifacts import publish
from tests.gateway.page_server import Page, served_pages

A = "/artifact/team/tiny/rho2.0-tau0.99"


@pytest.fixture(scope="module")
def manifests():
    return {}


@pytest.fixture(scope="module")
def served(manifests):
    """Five artifacts: three of one pass, one derived, one of another model that did not converge."""
    store = Store("memory://pages")
    manifests["source"] = publish(store)
    publish(store, revision="rho1.5-tau0.99", rho=1.5, rank_shift=2)
    publish(store, revision="rho2.0-tau0.9", tau=0.9)
    source = {"fingerprint": manifests["source"]["fingerprint"], "exact": False, "eva": {}}
    decisive = {"method": "eva", "derived_from": source["fingerprint"], "eva": {"r": 4}, "layers": []}
    publish(store, "lab/near", "r4", r=4, derived_from=source, decisive=decisive)
    publish(store, "lab/other", "one", model="/srv/models/big", data="/data/c4.jsonl", turning=2)
    with served_pages(make_app(store)) as server:
        yield server


def test_the_catalogue_lists_every_artifact_with_its_settings(served):
    page = served.page("/")
    assert len(page.links()) == 5
    assert "5 artifacts" in page.text and "not converged 7/9" in page.text
    row = page.text[page.text.index("lab/other") :]
    assert re.search(r"@one big c4\.jsonl 8 2 0\.99 not converged 7/9", row)  # names without their folders
    assert page.all("th", scope="row") and len(page.all("h1")) == 1


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("q=smol", 4),
        ("q=TEAM+rho%3D1.5", 1),
        ("tau=0.9", 1),
        ("tau=0.99&rho=2", 3),
        ("r=4", 1),
        ("status=not_converged", 1),
        ("base_model=%2Fsrv%2Fmodels%2Fbig", 1),
        ("data=docs.jsonl&r=8", 3),
        ("base_model=nobody", 0),
        ("q=zzz", 0),
        ("page=9999999999&sort=nonsense&r=", 5),
    ],
)
def test_filters_are_urls(served, asked, found):
    page = served.page(f"/?{asked}")
    assert len(page.links()) == found
    if found < 5:
        assert f"{found} of 5 artifacts" in page.text and "Clear all" in page.text
    if not found:
        assert "No artifact matches" in page.text


def test_a_fingerprint_is_found(served, manifests):
    page = served.page(f"/?q={manifests['source']['fingerprint'][:12]}")
    assert page.links() == [A]


def test_counts_say_what_each_value_would_give(served):
    page = served.page("/?tau=0.99")
    options = re.findall(r'<option value="([^"]*)"( selected)?>([^<]*)</option>', page.source)
    assert ("0.9", "", "0.9 (1)") in options  # as if tau were not picked: one may switch to it
    assert ("0.99", " selected", "0.99 (4)") in options
    assert ("1.5", "", "1.5 (1)") in options and ("4", "", "4 (1)") in options


@pytest.mark.parametrize(
    ("sort", "first"), [("rho", "rho1.5-tau0.99"), ("-name", "rho2.0-tau0.99"), ("tau", "rho2.0-tau0.9"), ("r", "r4")]
)
def test_the_order_is_in_the_url(served, sort, first):
    page = served.page(f"/?sort={sort}")
    assert page.links()[0].endswith(f"/{first}")
    way = "descending" if sort.startswith("-") else "ascending"
    assert len(page.all("th", **{"aria-sort": way})) == 1


def test_ticks_stay_in_the_url(served):
    """What is ticked is a box of its row, or a chip where no row of this search shows it; both forms send it."""
    page = served.page("/?q=other&pick=team/tiny@rho2.0-tau0.99&pick=lab/other@one")
    assert [box["value"] for box in page.all("input", type="checkbox", checked=None)] == ["lab/other@one"]
    names = [(i["value"], i.get("form")) for i in page.all("input", type="hidden", name="pick")]
    tiny = "team/tiny@rho2.0-tau0.99"
    assert names == [(tiny, None), ("lab/other@one", None), (tiny, "compare")]
    assert "To compare: team/tiny@rho2.0-tau0.99" in page.text
    kept = "pick=team%2Ftiny%40rho2.0-tau0.99&pick=lab%2Fother%40one"
    links = [a["href"] for a in page.all("a") if a.get("href", "").startswith("/?")]
    assert len(links) > 10 and [link for link in links if kept not in link] == ["/?q=other&pick=lab%2Fother%40one"]
    none = served.page("/?q=zzz&pick=lab/other@one&pick=no/body@x&pick=%3Cb%3E")
    assert "To compare: lab/other@one" in none.text and "no/body" not in none.source  # what is not here is not ticked
    assert len(served.page("/?pick=a@b").all("input", type="hidden", name="pick")) == 0


def test_an_artifact_says_what_it_is_and_how_to_load_it(served, manifests):
    page = served.page(A)
    assert "An EVA start of LoRA for org/smol, from docs.jsonl: r = 8, rho = 2, tau = 0.99." in page.text
    assert "All 9 layers converged, 8 steps, 31,021 tokens; made on 2 January 2026." in page.text
    assert f'os.environ["HF_ENDPOINT"] = "{served.url}"' in page.text
    assert 'PeftModel.from_pretrained( base, "team/tiny", revision="rho2.0-tau0.99", is_trainable=True )' in page.text
    assert f'eva_dist.load_eva_state_dict( "{served.url}/team/tiny@rho2.0-tau0.99" )' in page.text
    assert f"HF_ENDPOINT={served.url} hf download team/tiny --revision rho2.0-tau0.99" in page.text
    assert f"eva-dist pull {served.url}/team/tiny@rho2.0-tau0.99" in page.text
    for file, described in manifests["source"]["files"].items():
        assert file in page.text and described["sha256"] in page.text


def test_code_that_is_shown_is_python(served):
    source = served.page(A).source
    codes = re.findall(r'<code class="load"[^>]*>(.*?)</code>', source, re.S)
    python = [html.unescape(code) for code in codes if "import " in code]
    assert len(python) == 2
    for code in python:
        compile(code, "page", "exec")


def test_code_from_a_server_that_asks_for_a_token_gives_one(tmp_path):
    """Copied as it stood, it ended in a 401."""
    secret, token = new_token("reader", ["team"])
    (tmp_path / "tokens").write_text(token.line())
    store = Store("memory://tokens")
    publish(store)
    with served_pages(make_app(store, access=Access(tmp_path / "tokens"))) as server:
        page = Page(server.get(A, Authorization=f"Bearer {secret}").text)
    assert f"HF_TOKEN=... HF_ENDPOINT={server.url} hf download team/tiny" in page.text
    assert f"EVA_DIST_TOKEN=... eva-dist pull {server.url}/team/tiny" in page.text
    assert "This server asks for a token" in page.text and secret not in page.source
    codes = re.findall(r'class="load"[^>]*>(.*?)</code>', page.source, re.S)
    of_peft, of_ours, *_ = map(html.unescape, codes)
    for code, variable, before in ((of_peft, "HF_TOKEN", "from peft"), (of_ours, "EVA_DIST_TOKEN", "import eva_dist")):
        compile(code, "page", "exec")
        assert code.index(f'os.environ["{variable}"] = "..."') < code.index(before)


def test_code_from_an_open_server_speaks_of_no_token(served):
    assert "TOKEN" not in served.page(A).text


def test_downloads_are_what_the_manifest_lists(served, manifests):
    import hashlib

    page = served.page(A)
    links = [a["href"] for a in page.all("a") if "download" in a]
    assert len(links) == len(manifests["source"]["files"]) + 1  # and the manifest itself
    link = next(link for link in links if link.endswith("adapter_model.safetensors"))
    content = served.get(link).body
    assert hashlib.sha256(content).hexdigest() == manifests["source"]["files"]["adapter_model.safetensors"]["sha256"]


def test_figures_have_names_and_numbers(served):
    page = served.page(A)
    names = [svg["aria-label"] for svg in page.all("svg", role="img")]
    assert names[0] == "Rank of each layer by module kind and block"
    assert "Explained variance by component, q_proj / k_proj" in names and "Layers converged by step" in names
    grid = page.all("svg", role="img")[0]["data-grid"]
    assert grid == "7,8,9;8,9,7;9,7,8"
    assert "Half of the layers had converged after 6 steps; nine in ten had converged after 7 steps" in page.text
    assert re.search(r"q_proj 3 24 7 8 9 0 27,648 79\.6%", page.text)  # layers, ranks, parameters, explained


def test_what_has_not_converged_says_so_and_which_layers(served):
    page = served.page("/artifact/lab/other/one")
    assert "This initialisation has not converged." in page.text
    assert "2 of 9 layers still turned" in page.text and "model.layers.0.self_attn.q_proj" in page.text
    assert "has not converged" not in served.page(A).text


def test_family_and_pass_are_linked(served):
    page = served.page("/artifact/lab/near/r4")
    assert A in page.links() and "near to a run of these settings" in page.text
    source = served.page(A)
    assert "/artifact/lab/near/r4" in source.links() and "Made of this one:" in source.text
    (sweep,) = source.links("/sweep/")
    assert "4 artifacts came of the same pass" in source.text
    assert served.page("/").links("/sweep/") == [sweep]
    points = served.page(sweep)
    assert points.all("h1") and "Sweep over r, rho and tau: 4 artifacts" in points.text
    assert len(points.links()) == 4 and "lab/other" not in points.text
    assert "Ranks of q_proj by point and block" in [svg["aria-label"] for svg in points.all("svg", role="img")]


def test_two_artifacts_side_by_side_with_what_differs_first(served):
    page = served.page("/compare?a=team/tiny@rho2.0-tau0.99&b=team/tiny@rho1.5-tau0.99")
    assert "eva.rho 2.0 1.5" in page.text
    assert page.text.index("eva.rho") < page.text.index("that are the same") < page.text.index("eva.tau")
    names = [svg["aria-label"] for svg in page.all("svg", role="img")]
    assert names[:3] == [
        "Ranks of A, team/tiny@rho2.0-tau0.99",
        "Ranks of B, team/tiny@rho1.5-tau0.99",
        "Difference of ranks by module kind and block",
    ]
    assert page.all("svg", role="img")[2]["data-grid"] == "2,2,2;0,0,0;0,0,0"
    assert "3 of 9 layers that both have differ in rank" in page.text
    assert re.search(r"q_proj 3 24 30 \+6 79\.6% 79\.7%", page.text)


def test_the_second_artifact_is_chosen(served):
    page = served.page("/compare?a=team/tiny@rho2.0-tau0.99")
    values = [option["value"] for option in page.all("option")]
    assert values[:2] == ["team/tiny@rho1.5-tau0.99", "team/tiny@rho2.0-tau0.9"] and len(values) == 4
    ticked = served.get("/compare?pick=lab/near@r4&pick=lab/other@one")
    assert ticked.status == 302 and ticked.headers["Location"] == "/compare?a=lab/near@r4&b=lab/other@one"
    assert "same artifact twice" in served.page("/compare?a=lab/near@r4&b=lab/near@r4").text
    assert "Tick two" in served.page("/compare").text


@pytest.mark.parametrize("path", ["/team/tiny/tree/rho2.0-tau0.99", "/team/tiny/tree/main", "/team/tiny"])
def test_hub_urls_lead_to_the_page(served, path):
    answer = served.get(path)
    assert answer.status == 302
    place = answer.headers["Location"]
    assert place == A if "rho" in path else place.startswith("/artifact/team/tiny/")


@pytest.mark.parametrize(
    "path", ["/artifact/team/tiny/none", "/artifact/no/body/x", "/sweep/0123", "/compare?a=x/y@z", "/static/no.js"]
)
def test_what_is_not_there_is_404(served, path):
    answer = served.get(path)
    assert answer.status == 404 and "To the catalogue" in answer.text


def test_a_person_gets_pages_where_clients_get_json(served):
    for path, status in (("/nope", 404), ("/a/b/c/d/e", 404), ("/team/tiny/tree/none", 404)):
        shown, told = served.get(path, Accept="text/html,*/*"), served.get(path, Accept="application/json")
        assert shown.status == told.status == status and "To the catalogue" in Page(shown.text).text
        assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
    assert served.get("/api/nope", Accept="text/html").headers["Content-Type"].startswith("application/json")


def test_without_a_token_a_browser_asks_for_one_and_says_so(tmp_path):
    secret, token = new_token("ann", ["team"])
    (tmp_path / "tokens").write_text(token.line())
    with served_pages(make_app(Store("memory://pages-tokens"), access=Access(tmp_path / "tokens"))) as server:
        answer = server.get("/", Accept="text/html")
        assert answer.status == 401 and answer.headers["WWW-Authenticate"].startswith("Basic")
        assert "A token is needed" in Page(answer.text).text and secret not in answer.text


def test_the_hubs_api_is_left_alone(served):
    assert served.get("/api/models").headers["Content-Type"].startswith("application/json")
    assert served.get("/api/models/team/tiny").status == 200


def test_nothing_but_our_own_files_may_run(served):
    answer = served.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
    for path in ("/", A, "/compare?a=lab/near@r4&b=lab/other@one"):
        source = served.get(path).text
        assert "<style" not in source and not re.search(r"""\s(style|on\w+)=["']""", source)
        assert all('src="/static/' in script for script in re.findall(r"<script[^>]*>", source))


def test_static_files_are_kept_for_ever_and_pages_are_asked_for_again(served):
    page = served.get("/")
    (style,) = re.findall(r'<link rel="stylesheet" href="([^"]+)"', page.text)
    answer = served.get(style)
    assert answer.status == 200 and "immutable" in answer.headers["Cache-Control"]
    assert answer.headers["Content-Type"].startswith("text/css")
    assert "must-revalidate" in page.headers["Cache-Control"]
    again = served.get("/", If_None_Match=page.headers["ETag"])
    assert again.status == 304 and not again.body
    packed = served.get("/", Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip" and packed.text == page.text


def test_an_empty_store_tells_how_to_publish():
    with served_pages(make_app(Store("memory://empty-pages"))) as served:
        page = served.page("/")
        assert "this store has no artifact" in page.text and "jobs/precompute.py" in page.text


def test_the_pages_know_the_format_that_is_written():
    assert FORMAT_VERSION in KNOWN_FORMATS
