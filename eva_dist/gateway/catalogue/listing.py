"""`/`: what the store has, to search, filter and sort."""

from collections import Counter
from collections.abc import Mapping, Sequence

from eva_dist.artifact.reading import short_name, shown
from eva_dist.gateway.catalogue.cache import Listed
from eva_dist.gateway.catalogue.filters import FACETS, NEWEST, NOTHING, ORDERS, Found, Query, facet_label, setting
from eva_dist.gateway.catalogue.layout import (
    artifact_url,
    counted,
    day,
    document,
    hidden,
    note,
    path,
    pick_box,
    section,
    status,
)
from eva_dist.render.markup import element, said
from eva_dist.render.words import NONE, amount

_COLUMNS = ("name", "base_model", "data", "r", "rho", "tau", "status", "parameters", "steps", "tokens", "date")
_WORDS = ("name", "base_model", "data", "status")
_MOST_OPTIONS = 500
_MOST_SWEEPS = 20


def catalogue_page(found: Found, sweeps: Mapping[str, Sequence[Listed]]) -> str:
    """Return the page; `sweeps` are the artifacts of each pass that gave several, by its key."""
    if not found.total:
        return document("Artifacts", empty_store())
    results = element("div", _chosen(found), _results(found), id="results")
    compare = element("form", id="compare", action="/compare", method="get")
    count = element("p", said(_count(found)), id="count", role="status")
    lead = element(
        "p", "Initialisations for LoRA, ready to load with PEFT: no data, no forward pass, no SVD.", class_="note"
    )
    return document("Artifacts", _form(found), count, compare, results, _sweeps(sweeps), lead=lead)


def _sweeps(sweeps: Mapping[str, Sequence[Listed]]) -> str:
    """Return links to the pages of passes, the largest first."""
    if not sweeps:
        return ""
    links = []
    for key, points in sorted(sweeps.items(), key=lambda item: -len(item[1]))[:_MOST_SWEEPS]:
        facts = points[0].facts
        text = f"{len(points)} artifacts of {facts.model_name or 'a model'} on {facts.data_name or 'its data'}"
        links.append(element("li", element("a", said(text), href=f"/sweep/{path(key)}")))
    return section("Sweeps", note("Artifacts that come of one pass, on a page together."), element("ul", *links))


def empty_store() -> str:
    """Return what to do about a store with nothing in it."""
    code = (
        "python jobs/precompute.py model=... data=... eva.r=16 eva.rho=2.0 eva.tau=0.99 \\\n"
        "    store.url=<this store's URL> artifact.repo_id=team/name"
    )
    return element(
        "div",
        element("p", "There is nothing to see here yet: this store has no artifact, or none that you may see."),
        element("p", "A run publishes one:"),
        element("pre", element("code", said(code), class_="load", data_name="command that publishes an artifact")),
        element("p", "An artifact that lies in a folder, or in another store, is copied here with:"),
        element("pre", element("code", said("eva-dist push <folder> team/name@revision --store <this store's URL>"),
                               class_="load", data_name="command that copies an artifact")),
        class_="empty",
    )  # fmt: skip


def _count(found: Found) -> str:
    matching, total = len(found.matching), found.total
    noun = "artifact" if total == 1 else "artifacts"
    told = f"{matching:,} of {total:,} {noun}" if found.query.is_narrow else f"{total:,} {noun}"
    return f"{told}, page {found.query.page} of {found.pages}" if found.pages > 1 else told


def _form(found: Found) -> str:
    query = found.query
    search = element("label", "Search", for_="q") + (
        f'<input type="search" id="q" name="q" value="{said(query.q)}" autocomplete="off" spellcheck="false" '
        'placeholder="name, model, fingerprint, rho=2, …" maxlength="300">'
    )
    facets = [_facet(found, key) for key in FACETS]
    options = []
    for key in ORDERS:
        for order, way in ((key, "first to last"), (f"-{key}", "last to first")):
            options.append(_option(order, _order_label(key, order, way), order == query.sort))
    sort = element("label", "Sort by", for_="sort") + element("select", *options, id="sort", name="sort")
    fields = [element("div", search, class_="field wide"), *facets, element("div", sort, class_="field third")]
    fields.append(element("div", element("button", "Show", type="submit"), class_="field go"))
    fields.append(element("span", *(hidden("pick", name) for name in query.ticked), id="picks", hidden=True))
    return element("form", *fields, action="/", method="get", role="search", id="filters", aria_label="Artifacts")


def _order_label(key: str, order: str, way: str) -> str:
    if key == "date":
        return "newest first" if order == NEWEST else "oldest first"
    if key in _WORDS:
        return f"{ORDERS[key][0]}, {'Z to A' if order.startswith('-') else 'A to Z'}"
    return f"{ORDERS[key][0]}, {'largest first' if order.startswith('-') else 'smallest first'}"


def _facet(found: Found, key: str) -> str:
    name, picked = FACETS[key][0], found.query.picked.get(key)
    values = found.facets[key]
    labels = Counter(short_name(value) for value, _ in values)
    options = [_option("", "any", not picked)]
    for value, count in values[:_MOST_OPTIONS]:
        text = short_name(value) if labels[short_name(value)] == 1 else value
        options.append(_option(value, f"{shown(facet_label(key, text), 60)} ({count:,})", value == picked))
    select = element("select", *options, id=f"f-{key}", name=key)
    wide = {"base_model": " half", "data": " half", "status": " third"}.get(key, "")
    return element("div", element("label", said(name), for_=f"f-{key}"), select, class_=f"field{wide}")


def _option(value: str, text: str, selected: bool) -> str:
    return element("option", said(text), value=value, selected=selected)


def _chosen(found: Found) -> str:
    """Return what is selected, each with a link that drops it."""
    query = found.query
    if not query.is_narrow:
        return ""
    items = [(f"“{query.q}”", query.url(q=""))] if query.q else []
    for key, value in query.picked.items():
        name = FACETS[key][0]
        text = f"no {name.lower()}" if value == NOTHING else f"{name}: {facet_label(key, short_name(value))}"
        items.append((text, query.without(key)))
    links = [element("li", said(text), element("a", "×", href=url, aria_label=f"Drop {text}")) for text, url in items]
    clear = element("li", element("a", "Clear all", href=query.url(q="", picked={})), class_="all")
    return element("ul", *links, clear, class_="chosen", aria_label="Selected")


def _results(found: Found) -> str:
    if not found.matching:
        clear = element("a", "Clear the search and all filters", href=found.query.url(q="", picked={}))
        told = "No artifact matches. Drop a filter, or search for a part of a name, a model or a fingerprint."
        none = element("div", element("p", told), element("p", clear), class_="empty")
        return none + (_ticked_elsewhere(found) + _foot(found) if found.query.ticked else "")
    return _table(found) + _ticked_elsewhere(found) + _foot(found)


def _ticked_elsewhere(found: Found) -> str:
    """Return the ticks that no row of this page shows, each with a link that drops it: the form sends them too."""
    query, here = found.query, {one.name for one in found.shown}
    items = [
        element(
            "li",
            said(f"To compare: {name}"),
            element("a", "×", href=query.unticked(name), aria_label=f"Do not compare {name}", data_drop=name),
            hidden("pick", name, "compare"),
        )
        for name in query.ticked
        if name not in here
    ]
    return element("ul", *items, class_="chosen", aria_label="Ticked, and not on this page") if items else ""


def _table(found: Found) -> str:
    heads = [
        element("th", element("span", "Compare", class_="unseen"), scope="col", role="columnheader", class_="pick")
    ]
    heads += [_head(found, key) for key in _COLUMNS]
    rows = [_row(one, one.name in found.query.ticked) for one in found.shown]
    caption = element("caption", "Artifacts; tick two to compare them", class_="unseen")
    head = element("thead", element("tr", *heads, role="row"), role="rowgroup")
    inner = element("table", caption, head, element("tbody", *rows, role="rowgroup"), role="table", class_="cards")
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label="Artifacts")


def _head(found: Found, key: str) -> str:
    name, sort = ORDERS[key][0], found.query.sort
    falls = key not in _WORDS
    is_sorted = sort.removeprefix("-") == key
    down = not sort.startswith("-") if is_sorted else falls
    way = None if not is_sorted else "descending" if sort.startswith("-") else "ascending"
    link = element("a", said(name), href=found.query.url(sort=f"-{key}" if down else key))
    return element(
        "th", link, scope="col", role="columnheader", aria_sort=way, class_="text" if key in _WORDS else None
    )


def _row(one: Listed, ticked: bool) -> str:
    facts = one.facts
    link = element(
        "a", said(one.revision.repo_id), element("span", said(f"@{one.revision.revision}")), href=artifact_url(one)
    )
    odd = (
        element("span", "incomplete", class_="status bad", title="its manifest lacks something")
        if facts.problems
        else ""
    )
    cells = [
        _cell("base model", _named(facts.model_name, facts.base_model), "text"),
        _cell("data", _named(facts.data_name, facts.data), "text"),
        _cell("r", setting(facts.r)),
        _cell("rho", setting(facts.rho)),
        _cell("tau", setting(facts.tau)),
        _cell("status", f"{status(facts)} {odd}".strip(), "text"),
        _cell("parameters", NONE if facts.parameters is None else amount(facts.parameters)),
        _cell("steps", counted(facts.steps)),
        _cell("tokens", NONE if facts.tokens is None else amount(facts.tokens)),
        _cell("published", day(one.revision.moved)),
    ]
    name = element("th", link, scope="row", role="rowheader", class_="text name")
    return element("tr", element("td", pick_box(one, ticked), role="cell", class_="pick"), name, *cells, role="row")


def _cell(label: str, content: str, class_: str | None = None) -> str:
    return element("td", content, role="cell", class_=class_, data_label=label)


def _named(short: str | None, whole: str | None) -> str:
    if short is None or whole is None:
        return NONE
    owner, slash, name = short.rpartition("/")
    shown_owner = element("span", said(owner + slash)) + " " if slash else ""
    return element("span", shown_owner, said(name), class_="named", title=whole)


def _foot(found: Found) -> str:
    button = element("button", "Compare the two that are ticked", type="submit", form="compare", id="compare-go")
    return element("div", button, _keep(found.query), _pages(found), class_="foot")


def _keep(query: Query) -> str:
    """Return what takes ticks along where no script does: a button that asks for this search with them."""
    asked = {"q": query.q, **query.picked, "sort": query.sort if query.sort != NEWEST else ""}
    fields = [hidden(key, value, "compare") for key, value in asked.items() if value]
    words = "Keep the ticks, and search on"
    button = element("button", words, type="submit", form="compare", formaction="/")
    return element("noscript", *fields, button)


def _pages(found: Found) -> str:
    if found.pages == 1:
        return ""
    query, last = found.query, found.pages
    near = sorted({1, last, *range(max(query.page - 2, 1), min(query.page + 2, last) + 1)})
    items = [_page_link("Previous", query.url(page=query.page - 1) if query.page > 1 else None)]
    for before, page in zip([0, *near], near, strict=False):
        items += [element("li", "…")] if page > before + 1 else []
        here = page == query.page
        link = element(
            "a", f"{page}", href=query.url(page=page), aria_label=f"Page {page}", aria_current="page" if here else None
        )
        items.append(element("li", link))
    items.append(_page_link("Next", query.url(page=query.page + 1) if query.page < last else None))
    return element("nav", element("ul", *items, class_="pages"), aria_label="Pages")


def _page_link(text: str, url: str | None) -> str:
    return element("li", element("a", text, href=url)) if url else ""
