"""The stream: pure in (config, step), the same samples on any number of workers, epochs, padding, labels."""

from dataclasses import replace

import pytest
import torch

from eva_dist.config import DataConfig
from eva_dist.data import StepData, TokenStream, open_rows
from eva_dist.errors import DataError

MASK = -100


@pytest.fixture
def config(write_jsonl) -> DataConfig:
    """Ten rows of unlike lengths, each beginning with its own number."""
    rows = [{"text": f"{i} " + "the cat sat " * (i % 4)} for i in range(10)]
    return DataConfig(path=write_jsonl(rows), step_size=4, batch_size=3, seed=1)


def stream(config: DataConfig, tokenizer) -> TokenStream:
    return TokenStream(open_rows(config), tokenizer, config, MASK)


def rows_of(data: StepData, key: str = "input_ids") -> list[list[int]]:
    """The samples' real tokens, padding cut by the attention mask."""
    return [
        values[keep.bool()].tolist()
        for minibatch in data.minibatches
        for values, keep in zip(minibatch[key], minibatch["attention_mask"], strict=True)
    ]


def numbers(data: StepData, tokenizer) -> list[int]:
    return [int(tokenizer.decode(ids, skip_special_tokens=True).split()[0]) for ids in rows_of(data)]


def same(one: StepData, other: StepData) -> bool:
    return (one.epoch, one.exhausted, len(one.minibatches)) == (
        other.epoch,
        other.exhausted,
        len(other.minibatches),
    ) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one.minibatches, other.minibatches, strict=True)
    )


def test_a_step_is_a_pure_function_of_its_number(config, tokenizer):
    forward = stream(config, tokenizer)
    steps = [forward.step(k) for k in range(7)]
    assert all(same(steps[k], forward.step(k)) for k in (6, 0, 3, 3, 5))
    assert same(steps[5], stream(config, tokenizer).step(5))
    assert not same(steps[0], steps[1])


@pytest.mark.parametrize("step_size", [1, 2, 3, 4, 7, 23])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_together_have_the_samples_of_one(config, tokenizer, step_size, world_size):
    config = replace(config, step_size=step_size)
    for step in (0, 1, 4):
        alone = stream(config, tokenizer).step(step)
        parts = [stream(config, tokenizer).step(step, rank, world_size) for rank in range(world_size)]
        assert [ids for part in parts for ids in rows_of(part)] == rows_of(alone)
        assert {part.epoch for part in parts} == {alone.epoch}
        counts = [len(rows_of(part)) for part in parts]
        assert sum(counts) == step_size and max(counts) - min(counts) <= 1
        if step_size < world_size:
            assert any(part.minibatches == () for part in parts)


def test_minibatches_are_cut_at_batch_size(config, tokenizer):
    sizes = [len(m["input_ids"]) for m in stream(replace(config, step_size=8), tokenizer).step(0).minibatches]
    assert sizes == [3, 3, 2]


def test_each_epoch_is_a_permutation_of_its_own(config, tokenizer):
    steps = stream(config, tokenizer)
    drawn = [n for k in range(15) for n in numbers(steps.step(k), tokenizer)]
    epochs = [drawn[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6 and list(range(10)) not in epochs
    other = [n for k in range(5) for n in numbers(stream(replace(config, seed=2), tokenizer).step(k), tokenizer)]
    assert other != drawn[:20]


def test_without_shuffle_the_order_is_the_rows(config, tokenizer):
    steps = stream(replace(config, shuffle=False), tokenizer)
    assert [n for k in range(5) for n in numbers(steps.step(k), tokenizer)] == [*range(10), *range(10)]


def test_epoch_counts_how_often_the_data_was_used_up(config, tokenizer):
    steps = stream(config, tokenizer)
    assert [steps.step(k).epoch for k in range(5)] == [0, 0, 1, 1, 2]
    assert [stream(replace(config, step_size=25), tokenizer).step(k).epoch for k in range(3)] == [2, 5, 7]
    assert not any(steps.step(k).exhausted for k in range(5))


def test_right_padding_without_a_pad_token(config, tokenizer):
    (minibatch,) = stream(replace(config, shuffle=False, step_size=3), tokenizer).step(0).minibatches
    expected = [tokenizer(f"{i} " + "the cat sat " * i)["input_ids"] for i in range(3)]
    longest = max(map(len, expected))
    assert set(minibatch) == {"input_ids", "attention_mask"}
    assert all(t.dtype == torch.int64 and t.shape == (3, longest) for t in minibatch.values())
    assert minibatch["input_ids"].tolist() == [ids + [0] * (longest - len(ids)) for ids in expected]
    assert minibatch["attention_mask"].tolist() == [[1] * len(i) + [0] * (longest - len(i)) for i in expected]


def test_the_tokenizers_pad_token_and_truncation_settings(config, tokenizer):
    tokenizer.pad_token = "<|end|>"
    tokenizer._tokenizer.enable_padding(length=99)
    tokenizer._tokenizer.enable_truncation(max_length=1)
    (minibatch,) = stream(replace(config, shuffle=False, step_size=2), tokenizer).step(0).minibatches
    assert minibatch["input_ids"].shape[1] == minibatch["attention_mask"].sum(1).max() < 99
    assert minibatch["input_ids"][0, -1] == tokenizer.pad_token_id != 0


def test_truncation_to_max_length(config, tokenizer):
    whole = rows_of(stream(replace(config, step_size=10), tokenizer).step(0))
    cut = rows_of(stream(replace(config, step_size=10, max_length=4), tokenizer).step(0))
    assert max(map(len, whole)) > 4
    assert cut == [ids[:4] for ids in whole]
    assert all(ids[0] == tokenizer.bos_token_id for ids in cut)


def test_max_length_must_leave_room_for_text(config, tokenizer):
    with pytest.raises(DataError, match="^data.max_length=1 must be > 1, the special tokens"):
        stream(replace(config, max_length=1), tokenizer)


def test_samples_without_tokens_are_left_out(write_jsonl):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.normalizer = normalizers.Replace("-", "")
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    path = write_jsonl([{"text": t} for t in ["a", "--", "b a", "--", "---", "b"]])
    config = DataConfig(path=path, shuffle=False, step_size=6, batch_size=2)
    minibatches = stream(config, tokenizer).step(0).minibatches
    assert [m["input_ids"].tolist() for m in minibatches] == [[[0]], [[1, 0]], [[1]]]
    assert stream(replace(config, step_size=1), tokenizer).step(1).minibatches == ()
    only_blank = stream(replace(config, step_size=2, batch_size=1), tokenizer).step(1)
    assert [m["input_ids"].tolist() for m in only_blank.minibatches] == [[[1, 0]]]


def labelled(data: StepData, tokenizer) -> list[str]:
    """Decode each sample's unmasked labels, having checked them against the ids and the padding."""
    found = []
    for minibatch in data.minibatches:
        labels, ids = minibatch["labels"], minibatch["input_ids"]
        assert labels.dtype == torch.int64 and labels.shape == ids.shape
        assert bool(((labels == MASK) | (labels == ids)).all())
        assert bool((labels[minibatch["attention_mask"] == 0] == MASK).all())
        found += [tokenizer.decode(row[row != MASK]) for row in labels]
    return found


def test_prompt_tokens_are_masked(write_jsonl, tokenizer):
    answers = ["the cat", " a dog ran", "\n    four\n", "über 日本"]
    path = write_jsonl([{"q": "what is the answer?" + " the" * i, "text": a} for i, a in enumerate(answers)])
    config = DataConfig(path=path, prompt_field="q", shuffle=False, step_size=4, batch_size=4)
    data = stream(config, tokenizer).step(0)
    assert labelled(data, tokenizer) == answers
    whole = tokenizer.decode(rows_of(data)[1], skip_special_tokens=True)
    assert whole == "what is the answer? the" + answers[1]
    # Cut within the prompt: not one label is left.
    assert labelled(stream(replace(config, max_length=4), tokenizer).step(0), tokenizer) == [""] * 4


def test_a_token_across_the_edge_belongs_to_the_answer(write_jsonl, tokenizer):
    config = DataConfig(path=write_jsonl([{"q": "sat on ", "text": "the mat"}]), prompt_field="q", step_size=1)
    assert " the" in [tokenizer.decode([i]) for i in tokenizer("sat on the mat")["input_ids"]]
    assert labelled(stream(config, tokenizer).step(0), tokenizer) == [" the mat"]


def test_chat_labels_are_the_assistants_words(write_jsonl, tokenizer):
    turns = [["the cat", "def f():\n        return  1\n"], ["assistant"], ["user says  日本 🎉"]]
    rows = [
        {"text": [{"role": r, "content": c} for a in answers for r, c in (("user", "assistant"), ("assistant", a))]}
        for answers in turns
    ]
    config = DataConfig(path=write_jsonl(rows), shuffle=False, step_size=3, batch_size=2)
    data = stream(config, tokenizer).step(0)
    assert labelled(data, tokenizer) == ["".join(answers) for answers in turns]
    # The template writes the special tokens; the tokenizer must not add its own.
    assert all(tokenizer.bos_token_id not in ids for ids in rows_of(data))
    assert data.minibatches[0]["input_ids"][0, 0] == tokenizer.convert_tokens_to_ids("<|start|>")


def test_labels_are_purely_partitioned_too(write_jsonl, tokenizer):
    path = write_jsonl([{"q": f"what {i}" * i, "text": f"answer {i}"} for i in range(7)])
    config = DataConfig(path=path, prompt_field="q", step_size=5, batch_size=2)
    alone = stream(config, tokenizer).step(1)
    parts = [stream(config, tokenizer).step(1, rank, 3) for rank in range(3)]
    assert [row for part in parts for row in rows_of(part, "labels")] == rows_of(alone, "labels")


class Slow:
    """As much of a slow tokenizer as the stream asks for."""

    is_fast = False
    pad_token_id = None
    chat_template = None

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 0

    def __call__(self, texts, return_offsets_mapping, **options):
        assert not return_offsets_mapping, "slow tokenizers raise NotImplementedError here"
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def test_a_slow_tokenizer_does_for_plain_text_only(write_jsonl):
    path = write_jsonl([{"q": "Q", "text": "ab"}])
    config = DataConfig(path=path, step_size=1)
    assert rows_of(stream(config, Slow()).step(0)) == [[97, 98]]
    with pytest.raises(DataError, match="^data.text_field=text needs labels .* Slow is a slow tokenizer"):
        stream(replace(config, prompt_field="q"), Slow())


def test_what_no_chat_can_be_made_of_fails_before_the_first_step(write_jsonl, tokenizer):
    tokenizer.chat_template = None
    config = DataConfig(path=write_jsonl([{"text": [{"role": "user", "content": "q"}]}]))
    with pytest.raises(DataError, match="no chat template"):
        stream(config, tokenizer)
