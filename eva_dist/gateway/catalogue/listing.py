"""`/`: what the store has, to search, filter and sort."""

from collections import Counter
from collections.abc import Mapping, Sequence

from eva_dist.artifact.reading import short_name, shown
from eva_dist.gateway.catalogue.cache import ListedArtifact
from eva_dist.gateway.catalogue.filters import FACETS, NEWEST, NOTHING, ORDERS, Query, SearchResult, facet_label
from eva_dist.gateway.catalogue.layout import render_page

_COLUMNS = ("name", "base_model", "data", "r", "rho", "tau", "status", "parameters", "steps", "tokens", "date")
_TEXTS = ("name", "base_model", "data", "status")
_WIDTHS = {"base_model": " half", "data": " half", "status": " third"}
_MOST_OPTIONS = 500
_MOST_SWEEPS = 20


def catalogue_page(found: SearchResult, sweeps: Mapping[str, Sequence[ListedArtifact]]) -> str:
    """Return the page; `sweeps` are the artifacts of each pass that gave several, by its key."""
    if not found.total:
        return render_page("empty.html", "Artifacts")
    query, here = found.query, {one.name for one in found.shown}
    asked = {"q": query.q, **query.picked, "sort": query.sort if query.sort != NEWEST else ""}
    return render_page(
        "listing.html",
        "Artifacts",
        found=found,
        query=query,
        count=_count_sentence(found),
        facets=[(key, FACETS[key][0], _WIDTHS.get(key, ""), _facet_options(found, key)) for key in FACETS],
        orders=[(order, _order_label(key, order)) for key in ORDERS for order in (key, f"-{key}")],
        chosen=_chosen_filters(query),
        heads=[_column_head(found, key) for key in _COLUMNS],
        ticked_elsewhere=[name for name in query.ticked if name not in here],
        asked=[(key, value) for key, value in asked.items() if value],
        page_numbers=_page_numbers(query.page, found.pages),
        sweeps=sorted(sweeps.items(), key=lambda item: -len(item[1]))[:_MOST_SWEEPS],
    )


def _count_sentence(found: SearchResult) -> str:
    matching, total = len(found.matching), found.total
    noun = "artifact" if total == 1 else "artifacts"
    sentence = f"{matching:,} of {total:,} {noun}" if found.query.is_narrow else f"{total:,} {noun}"
    return f"{sentence}, page {found.query.page} of {found.pages}" if found.pages > 1 else sentence


def _order_label(key: str, order: str) -> str:
    if key == "date":
        return "newest first" if order == NEWEST else "oldest first"
    falls = order.startswith("-")
    if key in _TEXTS:
        return f"{ORDERS[key][0]}, {'Z to A' if falls else 'A to Z'}"
    return f"{ORDERS[key][0]}, {'largest first' if falls else 'smallest first'}"


def _facet_options(found: SearchResult, key: str) -> list[tuple[str, str]]:
    """Return the values of a facet's drop-down list, and what they are called."""
    values = found.facets[key]
    # Two models of one name are told apart by their whole names.
    labels = Counter(short_name(value) for value, _ in values)
    options = [("", "any")]
    for value, count in values[:_MOST_OPTIONS]:
        text = short_name(value) if labels[short_name(value)] == 1 else value
        options.append((value, f"{shown(facet_label(key, text), 60)} ({count:,})"))
    return options


def _chosen_filters(query: Query) -> list[tuple[str, str]]:
    """Return what is selected, each with the URL that drops it."""
    chosen = [(f"“{query.q}”", query.url(q=""))] if query.q else []
    for key, value in query.picked.items():
        name = FACETS[key][0]
        text = f"no {name.lower()}" if value == NOTHING else f"{name}: {facet_label(key, short_name(value))}"
        chosen.append((text, query.without(key)))
    return chosen


def _column_head(found: SearchResult, key: str) -> tuple[str, str, bool, str | None]:
    """Return a column's name, the URL that sorts by it, whether it is text, and how it is sorted (ARIA's word)."""
    sort = found.query.sort
    is_sorted, falls = sort.removeprefix("-") == key, sort.startswith("-")
    # A click turns the order round; a new column begins with its largest numbers, or at A.
    down = not falls if is_sorted else key not in _TEXTS
    way = None if not is_sorted else "descending" if falls else "ascending"
    return ORDERS[key][0], found.query.url(sort=f"-{key}" if down else key), key in _TEXTS, way


def _page_numbers(page: int, last: int) -> list[int | None]:
    """Return the first, the last and those near this page; None where some are left out."""
    numbers = sorted({1, last, *range(max(page - 2, 1), min(page + 2, last) + 1)})
    listed: list[int | None] = []
    for before, number in zip([0, *numbers], numbers, strict=False):
        listed += [None, number] if number > before + 1 else [number]
    return listed
