"""Step number -> token minibatches, a pure function of (rows, config, step, worker).

Shapes: B samples of a minibatch, T tokens of its longest sample. All tensors are int64 [B, T].

Sample n of the stream belongs to step n // step_size and to epoch n // N (N rows); an epoch's order
is a permutation seeded by (data.seed, epoch). The workers of a step take contiguous blocks
of its samples in the order of `global_rank`, so joining their rows gives the order of samples
whatever the number of workers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eva_dist.config import DataConfig
from eva_dist.data.rows import Rows
from eva_dist.data.samples import Sample, sample_from_row
from eva_dist.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StepData:
    """One worker's minibatches of one step; none when the worker's block is empty.

    A minibatch holds `input_ids`, `attention_mask` and, when the data has labels, `labels`.
    `epoch` counts how often the data has been used up when the step ends. `exhausted` is never
    True of a `TokenStream`, which goes on for ever; other streams say it at their end.
    """

    minibatches: tuple[dict[str, Tensor], ...]
    epoch: int
    exhausted: bool = False


@dataclass(frozen=True)
class _Tokens:
    """One sample's tokens: `ids` and, when the data has labels, which of them are masked."""

    ids: list[int]
    masked: np.ndarray | None


class TokenStream:
    """Tokenises the rows of a step on demand; holds no position.

    Raises:
        DataError: `data.max_length` leaves no room for text, labels are wanted of a slow tokenizer, or the
            chat template cannot render the first row.
    """

    def __init__(
        self, rows: Rows, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, label_mask_value: int
    ) -> None:
        # All rows are of one kind (`open_rows` saw to it): what cannot work fails here, before a model is loaded.
        first = sample_from_row(rows[0], config, tokenizer)
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
        self._rows = rows
        self._tokenizer = tokenizer
        self._config = config
        self._label_mask_value = label_mask_value
        # Padding is masked away, so any id does for a tokenizer without a pad token.
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._order: tuple[int, np.ndarray] | None = None

    def step(self, step: int, global_rank: int = 0, world_size: int = 1) -> StepData:
        """Return what worker `global_rank` of `world_size` forwards in step `step`."""
        assert step >= 0 and 0 <= global_rank < world_size
        size, batch_size = self._config.step_size, self._config.batch_size
        first, end = (step * size + size * rank // world_size for rank in (global_rank, global_rank + 1))
        samples = [
            sample_from_row(self._rows[self._row_index(n)], self._config, self._tokenizer) for n in range(first, end)
        ]
        tokens = self._tokenise(samples) if samples else []
        cuts = (tokens[at : at + batch_size] for at in range(0, len(tokens), batch_size))
        spoken = ([one for one in cut if one.ids] for cut in cuts)
        minibatches = tuple(self._collate(cut) for cut in spoken if cut)
        return StepData(minibatches, epoch=(step + 1) * size // len(self._rows))

    def _row_index(self, sample: int) -> int:
        epoch, position = divmod(sample, len(self._rows))
        if not self._config.shuffle:
            return position
        if self._order is None or self._order[0] != epoch:
            # RandomState's stream is frozen by NEP 19; a Generator's may change with a numpy release.
            random = np.random.RandomState([self._config.seed, epoch])
            self._order = epoch, random.permutation(len(self._rows))
        return int(self._order[1][position])

    def _tokenise(self, samples: list[Sample]) -> list[_Tokens]:
        has_labels = samples[0].has_labels
        encoded = self._tokenizer(
            [sample.text for sample in samples],
            add_special_tokens=samples[0].add_special_tokens,
            truncation=True,
            max_length=self._config.max_length,
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

    def _collate(self, tokens: list[_Tokens]) -> dict[str, Tensor]:
        shape = len(tokens), max(len(one.ids) for one in tokens)
        input_ids_BT = torch.full(shape, self._pad_id, dtype=torch.int64)
        attention_mask_BT = torch.zeros(shape, dtype=torch.int64)
        labels_BT = torch.full(shape, self._label_mask_value, dtype=torch.int64)
        for at, one in enumerate(tokens):
            ids_T = torch.tensor(one.ids, dtype=torch.int64)
            input_ids_BT[at, : len(ids_T)] = ids_T
            attention_mask_BT[at, : len(ids_T)] = 1
            if one.masked is not None:
                labels_BT[at, : len(ids_T)] = ids_T.masked_fill(torch.from_numpy(one.masked), self._label_mask_value)
        minibatch = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
        return minibatch if tokens[0].masked is None else {**minibatch, "labels": labels_BT}


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
