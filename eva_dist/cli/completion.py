"""Completion of artifacts' names, from the store that `--store` or EVA_DIST_STORE names.

It is silent, and gives up after a second: whoever presses Tab waits for nothing and reads no error. bash splits what
is typed at `@`, `:` and `=`, and completes the last piece alone; here the pieces are put together again.
"""

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping

import typer

from eva_dist.config import StoreConfig

STORE_VARIABLE = "EVA_DIST_STORE"
_ASKED = "_EVA_DIST_COMPLETE"
_PATIENCE_S = 1.0
_BREAKS = frozenset("@:=")


def complete_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names in the store, `namespace/name@revision`, that begin like this; none if that takes long."""
    if "://" in incomplete or incomplete.startswith((".", "/", "~")):
        return []  # the shell completes files by itself
    url = str(context.params.get("store") or os.environ.get(STORE_VARIABLE) or StoreConfig().url)
    return _within_patience(lambda: [name for name in _names_in_store(url) if name.startswith(incomplete)])


@contextlib.contextmanager
def whole_words(environment: MutableMapping[str, str] | None = None) -> Iterator[None]:
    """While bash asks for a completion, complete whole words; print of each only the part that bash replaces."""
    environment = os.environ if environment is None else environment
    if environment.get(_ASKED) != "complete_bash":
        yield
        return
    kept = _join_words(environment)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        print(*(line.removeprefix(kept) for line in said.getvalue().splitlines()), sep="\n")


def _join_words(environment: MutableMapping[str, str]) -> str:
    """Rewrite COMP_WORDS and COMP_CWORD; return the beginning of the word in question that bash keeps as it is."""
    given, at = environment.get("COMP_WORDS", ""), environment.get("COMP_CWORD", "")
    if "\n" not in given or not at.isdecimal():  # typer's script sends a line a word
        return ""
    words = given.split("\n")
    joined: list[str] = []
    place, kept, goes_on = 0, "", False
    for i, word in enumerate(words):
        breaks = bool(word) and _BREAKS.issuperset(word)
        before = joined.pop() if joined and (breaks or (goes_on and word)) else ""
        joined.append(before + word)
        goes_on = breaks
        if i == int(at):
            place, kept = len(joined) - 1, before + word if breaks else before
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(joined), str(place)
    return kept.removesuffix("@")  # readline has the @ in what it replaces: one of bash's rl_special_prefixes


def _names_in_store(url: str) -> list[str]:
    from eva_dist.store.store import Store

    return [one.name for one in Store(url).revisions()]


def _within_patience(find: Callable[[], list[str]]) -> list[str]:
    """Return what `find` finds within a second, the time that a person waits at a prompt; nothing if it fails."""
    found: list[str] = []

    def look() -> None:
        with contextlib.suppress(Exception):  # whatever it is, a prompt is no place to say it
            found.extend(sorted(name for name in find() if name.isprintable()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return [] if thread.is_alive() else found
