"""Collect what enters chosen layers during forwards, for tests to compare."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from eva_dist.modeling.taps import SelectRows, own_rows, tap_inputs


@contextmanager
def collect_rows(model: nn.Module, names: Iterable[str], select: SelectRows) -> Iterator[dict[str, list[Tensor]]]:
    """Yield a dict that fills up as forwards run: module name to the token rows of each call.

    Rows are `[T, in_features]` on the module's device, in the model's dtype, and never a
    view of what the model goes on to use.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with tap_inputs(model, rows, lambda name, args: rows[name].append(own_rows(select(args, name), args))):
        yield rows
