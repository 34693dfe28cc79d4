"""How commands open the store that `--store` names, and name it again in what they tell a person to type."""

import os
import shlex
from typing import TYPE_CHECKING

from eva_dist.cli.completion import STORE_VARIABLE
from eva_dist.cli.options import STORE
from eva_dist.errors import StoreError

if TYPE_CHECKING:
    from eva_dist.store.store import Store


def open_store(url: str) -> "Store":
    """Return the store; `StoreError` if the URL can be none. obstore is imported here and not before."""
    from eva_dist.store.store import Store

    return Store(url)


def open_existing_store(url: str) -> "Store":
    """Return the store, refusing a folder that is not there: its name may be mistyped.

    Raises:
        StoreError: the URL can be no store, or its folder is not there.
    """
    store = open_store(url)
    if store.root is not None and not store.root.is_dir():
        raise StoreError(
            f"store.url={url}: there is no folder {store.root}; name the one that holds the store (--store, or "
            "EVA_DIST_STORE), or publish an artifact there first"
        )
    return store


def command_on_store(command: str, store: str) -> str:
    """Return a command of ours on the same store, as it is to be typed."""
    is_default = store in (os.environ.get(STORE_VARIABLE), STORE)
    return f"eva-dist {command}" + ("" if is_default else f" --store {shlex.quote(store)}")
