"""Step number -> token minibatches, a pure function of (rows, config, step, worker).

Shapes: B samples of a minibatch, T tokens of its longest sample. All tensors are int64 [B, T].

Sample n of the stream belongs to step n // step_size and to epoch n // N (N rows); an epoch's order
is a permutation seeded by (data.seed, epoch). The workers of a step take contiguous blocks
of its samples in the order of `global_rank`, so joining their rows gives the order of samples
whatever the number of workers. How many samples are forwarded at once is execution, not
meaning: a window may hold several steps, and a step several minibatches (of like lengths,
so that little is padded); `Window.places` leads every row back to its step and place.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eva_dist.config import DataConfig
from eva_dist.data.rows import Rows
from eva_dist.data.samples import Sample, sample_from_row
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_MOST_TOKENS = {"cuda": 16384}
_MOST_TOKENS_ON_CPU = 8192
"""Tokens a forward at most, unless `data.batch_size` says how many samples."""
_MOST_PADDED = 2
"""Times that limit, padding included: what a model that cannot do without padding may get."""
_TOKENS_THAT_FILL = {"cuda": 4096}
"""A forward that may be shorter than this serves several steps; on a CPU longer rows are no faster."""


@dataclass(frozen=True)
class Batching:
    """What is forwarded at once: `steps` whole steps, cut at `samples` (None: no limit) and at `tokens`."""

    steps: int = 1
    samples: int | None = None
    tokens: int = _MOST_TOKENS_ON_CPU

    @classmethod
    def choose(cls, config: DataConfig, device_type: str, world_size: int = 1) -> "Batching":
        """Follow `data.batch_size`, or choose what suits the device."""
        share = -(-config.step_size // world_size)
        if config.batch_size is not None:
            return cls(max(1, config.batch_size // share), config.batch_size, config.batch_size * config.max_length)
        steps = max(1, _TOKENS_THAT_FILL.get(device_type, 0) // (share * config.max_length))
        return cls(steps, None, _MOST_TOKENS.get(device_type, _MOST_TOKENS_ON_CPU))


@dataclass(frozen=True)
class Window:
    """One worker's minibatches of the steps `steps`; none when its blocks are empty.

    A minibatch holds `input_ids`, `attention_mask` and, when the data has labels, `labels`.
    `places` gives for each minibatch and sample its step and its place in it (None: one
    minibatch, one step, in order). `epochs` counts for each step how often the data has been
    used up when it ends. `exhausted` is never True of a `TokenStream`, which goes on for ever;
    other streams say it at their end.
    """

    steps: range
    minibatches: tuple[Any, ...]
    places: tuple[tuple[tuple[int, int], ...], ...] | None
    epochs: tuple[int, ...]
    exhausted: bool = False


@dataclass(frozen=True)
class _Tokens:
    """One sample's tokens: `ids` and, when the data has labels, which of them are masked."""

    ids: list[int]
    masked: np.ndarray | None

    @property
    def counting(self) -> int:
        """How many tokens count."""
        return len(self.ids) if self.masked is None else int((~self.masked).sum())


class TokenStream:
    """Tokenises the rows of a step on demand; holds no position.

    Without a `label_mask_value` every token counts, and nothing is masked.

    Attributes:
        unlabelled: for each step since `window` was last asked for it, how many of the worker's samples have tokens,
            but none that counts.

    Raises:
        DataError: `data.max_length` leaves no room for text, labels are wanted of a slow tokenizer, or the
            chat template cannot render the first row.
    """

    def __init__(
        self, rows: Rows, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, label_mask_value: int | None
    ) -> None:
        self.rows = rows
        self.tokenizer = tokenizer
        self.config = config
        self.unlabelled: dict[int, int] = {}
        self._label_mask_value = label_mask_value
        # All rows are of one kind (`open_rows` saw to it): what cannot work fails here, before a model is loaded.
        first = self.sample(0)
        if first.has_labels and not tokenizer.is_fast:
            raise DataError(
                f"data.text_field={config.text_field} needs labels (chat messages, or data.prompt_field is set), but "
                f"{type(tokenizer).__name__} is a slow tokenizer, without the offsets that find them; it must be a "
                "fast one; use a model with tokenizer.json, or plain text"
            )
        special = tokenizer.num_special_tokens_to_add(pair=False) if first.add_special_tokens else 0
        if config.max_length <= special:
            raise DataError(
                f"data.max_length={config.max_length} must be > {special}, the special tokens that the tokenizer "
                "adds to each sample; use the length you will train with"
            )
        # Padding is masked away, so any id does for a tokenizer without a pad token.
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._order: tuple[int, np.ndarray] | None = None

    def window(self, step: int, batching: Batching, global_rank: int = 0, world_size: int = 1) -> Window:
        """Return what worker `global_rank` of `world_size` forwards for `step` and the steps that go with it."""
        assert step >= 0 and 0 <= global_rank < world_size
        steps = range(step, step + batching.steps)
        spoken = []
        for at in steps:
            samples = self._tokenise_block(at, global_rank, world_size)
            spoken += [((at, place), tokens) for place, tokens in enumerate(samples) if tokens.ids]
            self.unlabelled[at] = sum(not tokens.counting for tokens in samples)
        cuts = _cut_minibatches(spoken, batching)
        plain = len(steps) == 1 and len(cuts) <= 1
        return Window(
            steps=steps,
            minibatches=tuple(self._pad_minibatch([tokens for _, tokens in cut]) for cut in cuts),
            places=None if plain else tuple(tuple(place for place, _ in cut) for cut in cuts),
            epochs=tuple((at + 1) * self.config.step_size // len(self.rows) for at in steps),
        )

    def _tokenise_block(self, step: int, global_rank: int, world_size: int) -> list[_Tokens]:
        """Return this worker's block of a step's samples, tokenised."""
        size = self.config.step_size
        first, end = (step * size + size * rank // world_size for rank in (global_rank, global_rank + 1))
        samples = [self.sample(self.row_index(n)) for n in range(first, end)]
        return self._tokenise_samples(samples) if samples else []

    def sample(self, row: int) -> Sample:
        """Return a row as a sample.

        Raises:
            DataError: the chat template cannot render it, or its turns cannot be found; names the row.
        """
        wants_labels = self._label_mask_value is not None
        try:
            return sample_from_row(self.rows[row], self.config, self.tokenizer, wants_labels)
        except DataError as error:
            raise DataError(f"{error}; it is row {self.rows.numbers[row]} of data.path={self.config.path}") from error

    def counting_tokens(self, samples: list[Sample]) -> list[int]:
        """Return how many tokens of each of some samples count, cut at `data.max_length`."""
        return [tokens.counting for tokens in self._tokenise_samples(samples)]

    def row_index(self, sample: int) -> int:
        """Return which row a sample of the stream is."""
        epoch, position = divmod(sample, len(self.rows))
        if not self.config.shuffle:
            return position
        if self._order is None or self._order[0] != epoch:
            # RandomState's stream is frozen by NEP 19; a Generator's may change with a numpy release.
            random = np.random.RandomState([self.config.seed, epoch])
            self._order = epoch, random.permutation(len(self.rows))
        return int(self._order[1][position])

    def _tokenise_samples(self, samples: list[Sample]) -> list[_Tokens]:
        has_labels = samples[0].has_labels
        encoded = self.tokenizer(
            [sample.text for sample in samples],
            add_special_tokens=samples[0].add_special_tokens,
            truncation=True,
            max_length=self.config.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=has_labels,
        )
        if not has_labels:
            return [_Tokens(ids, None) for ids in encoded["input_ids"]]
        return [
            _Tokens(ids, _masked_tokens(sample, offsets))
            for sample, ids, offsets in zip(samples, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _pad_minibatch(self, tokens: list[_Tokens]) -> dict[str, Tensor]:
        """Pad samples to one length; a worker's block may hold only some of a step."""
        shape = len(tokens), max(len(one.ids) for one in tokens)
        input_ids_BT = torch.full(shape, self._pad_id, dtype=torch.int64)
        attention_mask_BT = torch.zeros(shape, dtype=torch.int64)
        masked = self._label_mask_value if self._label_mask_value is not None else 0  # 0: there are no labels
        labels_BT = torch.full(shape, masked, dtype=torch.int64)
        for at, one in enumerate(tokens):
            ids_T = torch.tensor(one.ids, dtype=torch.int64)
            input_ids_BT[at, : len(ids_T)] = ids_T
            attention_mask_BT[at, : len(ids_T)] = 1
            if one.masked is not None:
                labels_BT[at, : len(ids_T)] = ids_T.masked_fill(torch.from_numpy(one.masked), masked)
        minibatch = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
        return minibatch if tokens[0].masked is None else {**minibatch, "labels": labels_BT}


_Placed = tuple[tuple[int, int], _Tokens]


def _cut_minibatches(samples: list[_Placed], batching: Batching) -> list[list[_Placed]]:
    """Cut samples into minibatches; where there are several, each gets samples of like lengths."""

    def fits(cut: list[_Placed]) -> bool:
        lengths = [len(one.ids) for _, one in cut]
        padded = len(cut) * max(lengths)  # some models cannot do without padding
        few = batching.samples is None or len(cut) <= batching.samples
        return few and sum(lengths) <= batching.tokens and padded <= _MOST_PADDED * batching.tokens

    if not samples or fits(samples):
        return [samples] if samples else []
    cuts: list[list[_Placed]] = []
    for sample in sorted(samples, key=lambda sample: -len(sample[1].ids)):
        if cuts and fits([*cuts[-1], sample]):
            cuts[-1].append(sample)
        else:
            cuts.append([sample])
    return cuts


def _masked_tokens(sample: Sample, offsets: list[tuple[int, int]]) -> np.ndarray:
    """Tell for each token whether every character of it lies in a masked span; True for special tokens.

    A token across a span's edge is not masked: a merged first token of an answer is the answer's.
    """
    counts = np.ones(len(sample.text), dtype=np.int64)
    for start, end in sample.masked_spans:
        counts[start:end] = 0
    unmasked_before = np.concatenate([[0], np.cumsum(counts)])
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    # Tokenizers that trim offsets give a token of spaces alone an empty span, at its end. Special tokens have (0, 0).
    starts = np.where((starts == ends) & (ends > 0), ends - 1, starts)
    return unmasked_before[ends] == unmasked_before[starts]


@dataclass(frozen=True)
class WorkerStream:
    """One worker's side of a stream: windows by a step of theirs."""

    stream: TokenStream
    batching: Batching
    global_rank: int = 0
    world_size: int = 1

    @property
    def longest_row(self) -> int:
        """Most tokens that the samples of one forward can have."""
        config = self.stream.config
        share = -(-config.step_size // self.world_size) * self.batching.steps
        samples = min(share, self.batching.samples or share)
        return max(config.max_length, min(self.batching.tokens, samples * config.max_length))

    def unlabelled(self, step: int) -> int:
        """Return how many of this worker's samples of a step, once it has its window, have no token that counts."""
        return self.stream.unlabelled.get(step, 0)

    def window(self, step: int) -> Window:
        """Return this worker's window that holds `step`.

        Windows begin at multiples of their steps wherever a pass begins, so that one that goes on
        from a checkpoint forwards what it would have forwarded without it.
        """
        first = step - step % self.batching.steps
        return self.stream.window(first, self.batching, self.global_rank, self.world_size)
