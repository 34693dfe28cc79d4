"""What text alone can reach of a model that also takes images or sound: refused here is what no token would enter."""

import inspect
from collections.abc import Iterable, Sequence

from torch import nn

from eva_dist.errors import LayerError
from eva_dist.modeling.forward import find_trunk
from eva_dist.modeling.heads import is_multimodal
from eva_dist.modeling.load import Architecture

_FROM_TEXT = frozenset({"self", "input_ids", "attention_mask"})


def check_text_reaches(architecture: Architecture, layers: Sequence[str]) -> None:
    """Raise `LayerError` if text cannot run the model without other inputs, or some of `layers` see no token of it."""
    model = architecture.skeleton
    if not is_multimodal(architecture.auto_class):
        return
    signature = inspect.signature(find_trunk(model, layers).module.forward).parameters.values()
    needed = [p.name for p in signature if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if name not in _FROM_TEXT]:
        raise LayerError(
            f"{type(model).__name__} cannot be run on text alone: it takes {', '.join(missing)}; "
            "call eva_dist.get_eva_state_dict with your own dataloader"
        )
    unseen = _outside_decoder(model, layers)
    if unseen:
        # the parts of the model that hold these layers, two levels down: `model.visual`, `model.vision_tower`
        towers = "|".join(f"{tower}.*" for tower in dict.fromkeys(".".join(name.split(".")[:2]) for name in unseen))
        raise LayerError(
            f"eva.target_modules names {len(unseen)} layers that text does not reach, e.g. {unseen[0]}; "
            f"leave them out with 'eva.exclude_modules={towers}', or call eva_dist.get_eva_state_dict with images"
        )


def _outside_decoder(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Return the layers that are neither in the language model nor its output."""
    decoder = model.get_decoder()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    reached = {id(module) for module in decoder.modules()} | {id(head)}
    return [name for name in layers if id(model.get_submodule(name)) not in reached]
