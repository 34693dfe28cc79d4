"""What a catalogue's URL asks for, and what of the store answers it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from urllib.parse import urlencode

from eva_dist.artifact.reading import shown
from eva_dist.artifact.summary import Summary
from eva_dist.gateway.catalogue.cache import ListedArtifact

PER_PAGE = 50
MOST_TICKED = 2
_MOST_CHARACTERS = 300
NOTHING = "none"
"""The value of a facet for artifacts that do not say theirs."""


def _setting_of(name: str) -> Callable[[Summary], str]:
    return lambda facts: facts.settings.get(name, NOTHING)


FACETS: Mapping[str, tuple[str, Callable[[Summary], str]]] = {
    "base_model": ("Base model", lambda facts: facts.base_model or NOTHING),
    "data": ("Data", lambda facts: facts.data or NOTHING),
    **{name: (name, _setting_of(name)) for name in ("r", "rho", "tau")},
    "status": ("Status", lambda facts: facts.status),
}
"""Parameter to what it is called and its value in an artifact."""

_FACTS = ("r", "rho", "tau", "status", "parameters", "steps", "tokens")
ORDERS: Mapping[str, tuple[str, Callable[[ListedArtifact], object]]] = {
    "name": ("artifact", lambda one: (one.revision.repo_id.lower(), one.revision.revision)),
    "base_model": ("base model", lambda one: one.facts.model_name and one.facts.model_name.lower()),
    "data": ("data", lambda one: one.facts.data_name and one.facts.data_name.lower()),
    **{key: (key, attrgetter(f"facts.{key}")) for key in _FACTS},
    "date": ("published", lambda one: one.revision.moved),
}
"""Order to what it is called and its key; artifacts without it come last either way."""

NEWEST = "-date"


@dataclass(frozen=True)
class Query:
    """A catalogue's URL: `picked` facets (never empty), words to search for, order (`-` before it: downwards), page.

    `ticked` are names of artifacts that are to be compared; they stay while one searches on.
    """

    q: str = ""
    picked: Mapping[str, str] = field(default_factory=dict)
    sort: str = NEWEST
    page: int = 1
    ticked: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, str], ticked: Sequence[str] = ()) -> "Query":
        """Read a URL's parameters, of which `pick` may be there twice; what makes no sense is left out."""
        picked = {key: value[:_MOST_CHARACTERS] for key in FACETS if (value := parameters.get(key, ""))}
        sort, page = parameters.get("sort", ""), parameters.get("page", "")
        return cls(
            q=shown(parameters.get("q", ""), _MOST_CHARACTERS),
            picked=picked,
            sort=sort if sort.removeprefix("-") in ORDERS else NEWEST,
            page=max(int(page), 1) if page.isascii() and page.isdecimal() and len(page) < 7 else 1,
            ticked=tuple(dict.fromkeys(ticked))[:MOST_TICKED],
        )

    @property
    def is_narrow(self) -> bool:
        """Whether it asks for some artifacts rather than all."""
        return bool(self.q or self.picked)

    def url(self, **changes: object) -> str:
        """Return the page's URL with changes; a new search begins at its first page."""
        asked = replace(self, **{"page": 1, **changes})  # type: ignore[arg-type]
        given = [("q", asked.q), *asked.picked.items()]
        given += [("sort", asked.sort)] if asked.sort != NEWEST else []
        given += [("page", str(asked.page))] if asked.page > 1 else []
        given += [("pick", name) for name in asked.ticked]
        written = urlencode([(key, value) for key, value in given if value], errors="replace")
        return f"/?{written}" if written else "/"

    def without(self, facet: str) -> str:
        """Return the URL without a facet."""
        return self.url(picked={key: value for key, value in self.picked.items() if key != facet})

    def unticked(self, name: str) -> str:
        """Return the URL without a tick."""
        return self.url(page=self.page, ticked=tuple(other for other in self.ticked if other != name))


@dataclass(frozen=True)
class SearchResult:
    """What answers a query: all that match, in order; those of its page; by facet, how many each value would give."""

    query: Query
    total: int
    matching: Sequence[ListedArtifact]
    shown: Sequence[ListedArtifact]
    pages: int
    facets: Mapping[str, Sequence[tuple[str, int]]]


def find(listed: Sequence[ListedArtifact], query: Query) -> SearchResult:
    """Return what answers the query; a facet's counts are those with all other filters, so that one may switch."""
    words = query.q.lower().split()
    names = {one.name for one in listed} if query.ticked else set()
    counts: dict[str, Counter[str]] = {key: Counter() for key in FACETS}
    matching = []
    for one in listed:
        values = {key: value(one.facts) for key, (_, value) in FACETS.items()}
        wrong = [key for key, value in query.picked.items() if values[key] != value]
        found = len(wrong) < 2 and all(word in one.haystack for word in words)
        for key, value in values.items():
            if found and wrong in ([], [key]):
                counts[key][value] += 1
            else:
                counts[key].setdefault(value, 0)
        if found and not wrong:
            matching.append(one)
    pages = max(-(-len(matching) // PER_PAGE), 1)
    page = min(query.page, pages)
    ordered = _sort_artifacts(matching, query.sort)
    facets = {key: _order_values(counts[key], query.picked.get(key)) for key in FACETS}
    asked = replace(query, page=page, ticked=tuple(name for name in query.ticked if name in names))
    return SearchResult(asked, len(listed), ordered, ordered[(page - 1) * PER_PAGE :][:PER_PAGE], pages, facets)


def facet_label(key: str, value: str) -> str:
    """Return a facet's value as people read it: the status without its underscore."""
    return value.replace("_", " ") if key == "status" else value


def _sort_artifacts(matching: Sequence[ListedArtifact], sort: str) -> list[ListedArtifact]:
    key, down = ORDERS[sort.removeprefix("-")][1], sort.startswith("-")
    known = [one for one in matching if key(one) is not None]
    unknown = [one for one in matching if key(one) is None]
    return sorted(known, key=key, reverse=down) + unknown  # type: ignore[arg-type]


def _order_values(counts: Counter[str], picked: str | None) -> list[tuple[str, int]]:
    """Return values and counts: numbers by size, texts by the alphabet; what was picked is there in any case."""
    values = {**counts, picked: counts[picked]} if picked else dict(counts)

    def key(value: str) -> tuple[bool, float, str]:
        try:
            return value == NOTHING, float(value), ""
        except ValueError:
            return value == NOTHING, 0.0, value.lower()

    return [(value, values[value]) for value in sorted(values, key=key)]
