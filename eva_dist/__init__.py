"""Offline, distributed EVA initialisations for LoRA (arXiv 2410.07170).

    get_eva_state_dict    PEFT's function on our engine, in process
    load_eva_state_dict   a published artifact, ready for `peft.initialize_lora_eva_weights`
    fetch                 a published artifact as a local folder, ready for `PeftModel.from_pretrained`

Importing this package imports neither torch nor ray; names are loaded when first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_dist.artifact.load import load_eva_state_dict
    from eva_dist.run.in_process import get_eva_state_dict
    from eva_dist.store.open_artifact import fetch

try:
    __version__ = version("eva-dist")
except PackageNotFoundError:  # a clone that came with a job, on a node that has its dependencies alone
    __version__ = "0+clone"
__all__ = ["__version__", "fetch", "get_eva_state_dict", "load_eva_state_dict"]

_HOMES = {
    "fetch": "eva_dist.store.open_artifact",
    "get_eva_state_dict": "eva_dist.run.in_process",
    "load_eva_state_dict": "eva_dist.artifact.load",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
