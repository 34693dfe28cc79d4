"""How many tokens a model's table of positions has room for: one more, and a forward ends in an IndexError."""

import re
from collections.abc import Iterator

from torch import nn

from eva_dist.errors import ConfigError
from eva_dist.modeling.load import Architecture

_TABLE = re.compile(
    r"(?:text_)?(?:pos|positions?|positional)_(?:emb|embeds?|embeddings?)(?:_table|_layer)?|embed_positions|wpe"
)
"""What modules and tensors are called that are looked up by a token's place in its sample."""

_NOT_OF_TEXT = re.compile(r"(?:^|[._])(?:vision|visual|vit|image|img|video|audio|speech)")


def check_length(architecture: Architecture, max_length: int) -> None:
    """Raise `ConfigError` if samples would be longer than a table of positions reaches."""
    rooms = list(_find_rooms(architecture.skeleton))
    if not rooms:
        return
    table, room = min(rooms, key=lambda found: found[1])
    name = f"the positions that the model's {table} has room for"
    of_config = getattr(architecture.config, "max_position_embeddings", None)
    if of_config is not None and of_config <= room:  # some tables have rows before the first position, and don't say so
        name, room = "the model's max_position_embeddings", of_config
    if max_length > room:
        raise ConfigError(f"data.max_length={max_length} must be <= {room}, {name}; use data.max_length={room}")


def _find_rooms(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield each table of positions of tokens, and for how many there is room in it."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        table = owner if last == "weight" else name  # an embedding's weight, or a tensor that is indexed as it is
        module = model.get_submodule(owner)
        if tensor.dim() != 2 or isinstance(module, nn.Linear) or _NOT_OF_TEXT.search(table):
            continue
        if _TABLE.fullmatch(table.rpartition(".")[2]):
            # Rows before the first position have no room: OPT's has an offset, RoBERTa's follows its padding.
            offset, padding = getattr(module, "offset", None), getattr(module, "padding_idx", None)
            before = offset if isinstance(offset, int) else 0 if padding is None else padding + 1
            yield table, len(tensor) - before
