"""The stream: pure in (config, step), the same samples on any number of workers, epochs, padding, labels."""

from dataclasses import replace

import pytest
import torch

from eva_dist.config import DataConfig
from eva_dist.data import Batching, TokenStream, Window, WorkerStream, open_rows
from eva_dist.errors import DataError

MASK = -100


@pytest.fixture
def config(write_jsonl) -> DataConfig:
    """Ten rows of unlike lengths, each beginning with its own number."""
    rows = [{"text": f"{i} " + "the cat sat " * (i % 4)} for i in range(10)]
    return DataConfig(path=write_jsonl(rows), step_size=4, seed=1)


def stream(config: DataConfig, tokenizer) -> TokenStream:
    return TokenStream(open_rows(config), tokenizer, config, MASK)


def step_of(config: DataConfig, tokenizer, step: int = 0, samples: int | None = None) -> Window:
    return stream(config, tokenizer).window(step, Batching(samples=samples))


def placed(window: Window, key: str = "input_ids") -> list[tuple[tuple[int, int], list[int]]]:
    """Step and place of each sample and its real tokens, padding cut by the attention mask, in that order."""
    found = []
    for m, minibatch in enumerate(window.minibatches):
        where = window.places[m] if window.places is not None else [(window.steps.start, i) for i in range(99)]
        cut = [row[keep.bool()].tolist() for row, keep in zip(minibatch[key], minibatch["attention_mask"], strict=True)]
        assert window.places is None or len(where) == len(cut)
        found += zip(where, cut, strict=False)
    return sorted(found, key=lambda pair: pair[0])


def rows_of(window: Window, key: str = "input_ids") -> list[list[int]]:
    return [ids for _, ids in placed(window, key)]


def numbers(window: Window, tokenizer) -> list[int]:
    return [int(tokenizer.decode(ids, skip_special_tokens=True).split()[0]) for ids in rows_of(window)]


def same(one: Window, other: Window) -> bool:
    """Bit for bit."""
    outside = [(w.steps, w.places, w.epochs, w.exhausted, len(w.minibatches)) for w in (one, other)]
    return outside[0] == outside[1] and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one.minibatches, other.minibatches, strict=True)
    )


def test_a_step_is_a_pure_function_of_its_number(config, tokenizer):
    forward = stream(config, tokenizer)
    steps = [forward.window(k, Batching()) for k in range(7)]
    assert all(same(steps[k], forward.window(k, Batching())) for k in (6, 0, 3, 3, 5))
    assert same(steps[5], step_of(config, tokenizer, 5))
    assert not same(steps[0], steps[1])


@pytest.mark.parametrize("step_size", [1, 2, 3, 4, 7, 23])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_together_have_the_samples_of_one(config, tokenizer, step_size, world_size):
    config = replace(config, step_size=step_size)
    tokens = stream(config, tokenizer)
    for step in (0, 1, 4):
        alone = tokens.window(step, Batching(samples=3))
        parts = [tokens.window(step, Batching(samples=3), rank, world_size) for rank in range(world_size)]
        assert [ids for part in parts for ids in rows_of(part)] == rows_of(alone)
        assert {part.epochs for part in parts} == {alone.epochs}
        counts = [len(rows_of(part)) for part in parts]
        assert sum(counts) == step_size and max(counts) - min(counts) <= 1
        if step_size < world_size:
            assert any(part.minibatches == () for part in parts)


def test_a_worker_stream_is_the_stream_of_one_worker(config, tokenizer):
    tokens, batching = stream(config, tokenizer), Batching(steps=2, samples=3)
    assert same(WorkerStream(tokens, batching, 1, 2).window(4), tokens.window(4, batching, 1, 2))


def test_windows_begin_at_the_same_steps_wherever_a_pass_begins(config, tokenizer):
    tokens = stream(config, tokenizer)
    three = WorkerStream(tokens, Batching(steps=3))
    assert [three.window(step).steps for step in (0, 1, 2, 3, 7)] == [
        range(0, 3),
        range(0, 3),
        range(0, 3),
        range(3, 6),
        range(6, 9),
    ]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(
    "batching", [Batching(3), Batching(2, samples=1), Batching(3, samples=5), Batching(5, None, 9)]
)
def test_a_window_holds_the_samples_of_its_steps_each_led_back_to_its_place(config, tokenizer, batching, world_size):
    tokens = stream(config, tokenizer)
    for rank in range(world_size):
        window = tokens.window(4, batching, rank, world_size)
        alone = [tokens.window(step, Batching(), rank, world_size) for step in window.steps]
        assert window.steps == range(4, 4 + batching.steps)
        assert window.epochs == tuple(epoch for one in alone for epoch in one.epochs)
        assert placed(window) == [pair for one in alone for pair in placed(one)]


def test_minibatches_are_cut_at_samples_and_at_tokens_and_hold_samples_of_like_lengths(config, tokenizer):
    config = replace(config, step_size=8)
    sizes = [len(m["input_ids"]) for m in step_of(config, tokenizer, samples=3).minibatches]
    assert sizes == [3, 3, 2]
    whole = rows_of(step_of(config, tokenizer))
    for most in (max(map(len, whole)), sum(map(len, whole)) - 1, 1):
        window = stream(config, tokenizer).window(0, Batching(tokens=most))
        lengths = [m["attention_mask"].sum(1).tolist() for m in window.minibatches]
        assert len(lengths) > 1 and rows_of(window) == whole
        assert all(sum(some) <= most or len(some) == 1 for some in lengths)  # what is too long goes alone
        assert (flat := [n for some in lengths for n in some]) == sorted(flat, reverse=True)
    fits = stream(config, tokenizer).window(0, Batching(tokens=sum(map(len, whole))))
    assert len(fits.minibatches) == 1 and fits.places is None  # in their order, without a sort


@pytest.mark.parametrize(
    ("batch_size", "step_size", "world_size", "device", "expected"),
    [
        (None, 6, 1, "cpu", Batching(1, None, 8192)),
        (None, 1, 1, "cpu", Batching(1, None, 8192)),
        (None, 6, 1, "cuda", Batching(4096 // (6 * 64), None, 16384)),
        (None, 6, 4, "cuda", Batching(4096 // (2 * 64), None, 16384)),
        (None, 1000, 1, "cuda", Batching(1, None, 16384)),
        (1, 6, 1, "cpu", Batching(1, 1, 64)),
        (6, 6, 1, "cpu", Batching(1, 6, 6 * 64)),
        (13, 6, 1, "cpu", Batching(2, 13, 13 * 64)),
        (6, 6, 4, "cuda", Batching(3, 6, 6 * 64)),
    ],
)
def test_batching_follows_the_batch_size_or_the_device(batch_size, step_size, world_size, device, expected):
    config = DataConfig(path="x", batch_size=batch_size, step_size=step_size, max_length=64)
    assert Batching.choose(config, device, world_size) == expected


def test_each_epoch_is_a_permutation_of_its_own(config, tokenizer):
    steps = stream(config, tokenizer)
    drawn = [n for k in range(15) for n in numbers(steps.window(k, Batching()), tokenizer)]
    epochs = [drawn[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6 and list(range(10)) not in epochs
    other = [n for k in range(5) for n in numbers(step_of(replace(config, seed=2), tokenizer, k), tokenizer)]
    assert other != drawn[:20]


def test_without_shuffle_the_order_is_the_rows(config, tokenizer):
    config = replace(config, shuffle=False)
    assert [n for k in range(5) for n in numbers(step_of(config, tokenizer, k), tokenizer)] == [*range(10), *range(10)]


def test_epochs_count_how_often_the_data_was_used_up(config, tokenizer):
    steps = stream(config, tokenizer)
    assert [steps.window(k, Batching()).epochs for k in range(5)] == [(0,), (0,), (1,), (1,), (2,)]
    assert steps.window(0, Batching(steps=5)).epochs == (0, 0, 1, 1, 2)
    assert [step_of(replace(config, step_size=25), tokenizer, k).epochs for k in range(3)] == [(2,), (5,), (7,)]
    assert not any(steps.window(k, Batching()).exhausted for k in range(5))


def test_right_padding_without_a_pad_token(config, tokenizer):
    (minibatch,) = step_of(replace(config, shuffle=False, step_size=3), tokenizer).minibatches
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
    (minibatch,) = step_of(replace(config, shuffle=False, step_size=2), tokenizer).minibatches
    assert minibatch["input_ids"].shape[1] == minibatch["attention_mask"].sum(1).max() < 99
    assert minibatch["input_ids"][0, -1] == tokenizer.pad_token_id != 0


def test_truncation_to_max_length(config, tokenizer):
    whole = rows_of(step_of(replace(config, step_size=10), tokenizer))
    cut = rows_of(step_of(replace(config, step_size=10, max_length=4), tokenizer))
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
    config = DataConfig(path=path, shuffle=False, step_size=6)
    window = step_of(config, tokenizer, samples=2)
    assert placed(window) == [((0, 0), [0]), ((0, 2), [1, 0]), ((0, 5), [1])]
    assert [m["attention_mask"].tolist() for m in window.minibatches] == [[[1, 1], [1, 0]], [[1]]]
    assert step_of(replace(config, step_size=1), tokenizer, 1).minibatches == ()
    half_blank = step_of(replace(config, step_size=2), tokenizer, 1)
    assert [m["input_ids"].tolist() for m in half_blank.minibatches] == [[[1, 0]]]


def labelled(data: Window, tokenizer) -> list[str]:
    """Decode each sample's unmasked labels, having checked them against the ids and the padding."""
    for minibatch in data.minibatches:
        labels, ids = minibatch["labels"], minibatch["input_ids"]
        assert labels.dtype == torch.int64 and labels.shape == ids.shape
        assert bool(((labels == MASK) | (labels == ids)).all())
        assert bool((labels[minibatch["attention_mask"] == 0] == MASK).all())
    return [tokenizer.decode([i for i in row if i != MASK]) for row in rows_of(data, "labels")]


def test_prompt_tokens_are_masked(write_jsonl, tokenizer):
    answers = ["the cat", " a dog ran", "\n    four\n", "über 日本"]
    path = write_jsonl([{"q": "what is the answer?" + " the" * i, "text": a} for i, a in enumerate(answers)])
    config = DataConfig(path=path, prompt_field="q", shuffle=False, step_size=4)
    data = step_of(config, tokenizer)
    assert labelled(data, tokenizer) == answers
    whole = tokenizer.decode(rows_of(data)[1], skip_special_tokens=True)
    assert whole == "what is the answer? the" + answers[1]
    # Cut within the prompt: not one label is left.
    assert labelled(step_of(replace(config, max_length=4), tokenizer), tokenizer) == [""] * 4


def test_a_token_across_the_edge_belongs_to_the_answer(write_jsonl, tokenizer):
    config = DataConfig(path=write_jsonl([{"q": "sat on ", "text": "the mat"}]), prompt_field="q", step_size=1)
    assert " the" in [tokenizer.decode([i]) for i in tokenizer("sat on the mat")["input_ids"]]
    assert labelled(step_of(config, tokenizer), tokenizer) == [" the mat"]


def test_chat_labels_are_the_assistants_words(write_jsonl, tokenizer):
    turns = [["the cat", "def f():\n        return  1\n"], ["assistant"], ["user says  日本 🎉"]]
    rows = [
        {"text": [{"role": r, "content": c} for a in answers for r, c in (("user", "assistant"), ("assistant", a))]}
        for answers in turns
    ]
    config = DataConfig(path=write_jsonl(rows), shuffle=False, step_size=3)
    data = step_of(config, tokenizer, samples=2)
    assert labelled(data, tokenizer) == ["".join(answers) for answers in turns]
    # The template writes the special tokens; the tokenizer must not add its own.
    assert all(tokenizer.bos_token_id not in ids for ids in rows_of(data))
    assert data.minibatches[0]["input_ids"][0, 0] == tokenizer.convert_tokens_to_ids("<|start|>")


def test_labels_are_purely_partitioned_too(write_jsonl, tokenizer):
    path = write_jsonl([{"q": f"what {i}" * i, "text": f"answer {i}"} for i in range(7)])
    config = DataConfig(path=path, prompt_field="q", step_size=5)
    alone = step_of(config, tokenizer, 1)
    parts = [stream(config, tokenizer).window(1, Batching(samples=2), rank, 3) for rank in range(3)]
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
    assert rows_of(step_of(config, Slow())) == [[97, 98]]
    with pytest.raises(DataError, match="^data.text_field=text needs labels .* Slow is a slow tokenizer"):
        stream(replace(config, prompt_field="q"), Slow())


def test_what_no_chat_can_be_made_of_fails_before_the_first_step(write_jsonl, tokenizer):
    tokenizer.chat_template = None
    config = DataConfig(path=write_jsonl([{"text": [{"role": "user", "content": "q"}]}]))
    with pytest.raises(DataError, match="no chat template"):
        stream(config, tokenizer)
