"""Somebody else's dataloader as a stream of steps: one minibatch is one step."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from eva_dist.data.stream import Window
from eva_dist.errors import EmptyStreamError

_NOTHING = object()


class LoaderStream:
    """One minibatch of a loader after the other, from the start again when it is used up.

    Takes loaders without `len` and one-shot iterators: those are exhausted once they end.
    `place` is applied to each minibatch (move it to the model's device).

    Raises:
        EmptyStreamError: the loader gives nothing at all.
    """

    def __init__(self, dataloader: Iterable[Any], place: Callable[[Any], Any]) -> None:
        self._dataloader = dataloader
        self._place = place
        self._iterator = iter(dataloader)
        self._epoch = 0
        self._waiting: deque[Any] = deque()
        if next(self.peek(1), _NOTHING) is _NOTHING:
            raise EmptyStreamError("dataloader is empty; it must give at least one minibatch")

    def peek(self, most: int) -> Iterator[Any]:
        """Yield up to `most` minibatches ahead; the steps to come will get them too."""
        for i in range(most):
            if i == len(self._waiting):
                minibatch = next(self._iterator, _NOTHING)
                if minibatch is _NOTHING:
                    return
                self._waiting.append(minibatch)
            yield self._place(self._waiting[i])

    def window(self, step: int) -> Window:
        """Return the next minibatch as step `step`, or none and `exhausted`."""
        minibatch = self._waiting.popleft() if self._waiting else next(self._iterator, _NOTHING)
        if minibatch is _NOTHING:
            self._epoch += 1
            self._iterator = iter(self._dataloader)
            minibatch = next(self._iterator, _NOTHING)
        minibatches = () if minibatch is _NOTHING else (self._place(minibatch),)
        return Window(range(step, step + 1), minibatches, None, (self._epoch,), exhausted=not minibatches)
