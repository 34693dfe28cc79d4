"""Rendering a row: what is masked is all but the assistant's words, whatever the template does around them."""

import pytest

from eva_dist.config import DataConfig
from eva_dist.data import Sample, sample_from_row
from eva_dist.errors import DataError

CONFIG = DataConfig(path="unused")


def chat(*turns: str) -> dict:
    """user, assistant, user, ..."""
    return {"text": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]}


def unmasked(sample: Sample) -> list[str]:
    """The runs of characters between masked spans."""
    ends = [0, *(end for _, end in sample.masked_spans)]
    starts = [*(start for start, _ in sample.masked_spans), len(sample.text)]
    return [sample.text[a:b] for a, b in zip(ends, starts, strict=True) if a < b]


def test_plain_text_has_no_labels(tokenizer):
    assert sample_from_row({"text": " as it is\n"}, CONFIG, tokenizer) == Sample(" as it is\n", (), False, True)


def test_prompt_and_text_are_joined_verbatim(tokenizer):
    config = DataConfig(path="unused", prompt_field="q")
    sample = sample_from_row({"q": "what? ", "text": " this\n"}, config, tokenizer)
    assert sample == Sample("what?  this\n", ((0, 6),), True, True)


@pytest.mark.parametrize("prompt", ["", None])
def test_empty_prompt_masks_nothing_but_has_labels(tokenizer, prompt):
    config = DataConfig(path="unused", prompt_field="q")
    assert sample_from_row({"q": prompt, "text": "x"}, config, tokenizer) == Sample("x", (), True, True)


def test_chat_unmasks_the_assistants_content_alone(tokenizer):
    sample = sample_from_row(chat("what is it", "the cat", "and now", "a dog"), CONFIG, tokenizer)
    assert sample.text == (
        "<|start|>user\nwhat is it<|end|>\n<|start|>assistant\nthe cat<|end|>\n"
        "<|start|>user\nand now<|end|>\n<|start|>assistant\na dog<|end|>\n"
    )
    assert unmasked(sample) == ["the cat", "a dog"]
    assert sample.has_labels and not sample.add_special_tokens


@pytest.mark.parametrize("words", ["assistant", "a", "user", "end", "<|start|>assistant\n", "\n", "what is it"])
def test_content_that_also_stands_in_the_template(tokenizer, words):
    sample = sample_from_row(chat("what is it", words, "what is it", "last"), CONFIG, tokenizer)
    expected = [words, "last"] if words.strip() else ["last"]
    assert unmasked(sample) == expected


def test_assistant_first_and_no_assistant(tokenizer):
    first = {"text": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hi"}]}
    assert unmasked(sample_from_row(first, CONFIG, tokenizer)) == ["hello"]
    none = sample_from_row(chat("only a user"), CONFIG, tokenizer)
    assert unmasked(none) == [] and none.masked_spans == ((0, len(none.text)),)


def test_null_content_and_null_keys_do_not_reach_the_template(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}{% if 'tools' in m %}T{% endif %}]{% endfor %}"
    row = {"text": [{"role": "user", "content": "q", "tools": None}, {"role": "assistant", "content": None}]}
    assert sample_from_row(row, CONFIG, tokenizer).text == "[q][]"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # trims what it is given
        ("{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}", ["one", "two"]),
        # ends the text after the last turn only
        ("{% for m in messages %}({{ m.content }}){% if loop.last %}EOS{% endif %}{% endfor %}", [" one ", " two "]),
        # writes JSON
        ("{% for m in messages %}{{ m | tojson }},{% endfor %}", [" one ", " two "]),
        # refuses a chat that does not begin with a user, or a lone system message
        (
            "{% if messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}"
            "{% for m in messages %}<{{ m.content }}>{% endfor %}",
            [" one ", " two "],
        ),
    ],
)
def test_templates_of_all_kinds(tokenizer, template, expected):
    tokenizer.chat_template = template
    assert unmasked(sample_from_row(chat("q", " one ", "r", " two "), CONFIG, tokenizer)) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}:{% for m in messages %}<{{ m.content }}>{% endfor %}",
        "{% for m in messages | reverse %}<{{ m.content }}>{% endfor %}",
    ],
)
def test_prefixes_need_not_nest_where_the_whole_chat_shows_the_turns(tokenizer, template):
    tokenizer.chat_template = template
    sample = sample_from_row(chat("question", "first answer", "again", "second answer"), CONFIG, tokenizer)
    assert sorted(unmasked(sample)) == ["first answer", "second answer"]


_STRIPS = "{% set content = m.content if loop.last else m.content.split('</think>')[-1] %}"
# As Qwen3 does it: thoughts are cut out, and written anew (or empty) in the last turn alone.
_REWRITES = (
    "{% set thoughts = '' %}{% if '</think>' in m.content %}"
    "{% set thoughts = m.content.split('</think>')[0].split('<think>')[-1].strip() %}{% endif %}"
    "{% set content = m.content.split('</think>')[-1].strip() %}"
    "{% if loop.last %}{% set content = '<think>\n' + thoughts + '\n</think>\n\n' + content %}{% endif %}"
)


@pytest.mark.parametrize(
    ("cut", "first", "last"),
    [
        (_STRIPS, "four", "<think>\nnow\n</think>\n\nfive"),
        (_REWRITES, "four", "now\n</think>\n\nfive"),
    ],
)
def test_thoughts_that_are_dropped_from_earlier_turns(tokenizer, cut, first, last):
    tokenizer.chat_template = "{% for m in messages %}" + cut + "[{{ m.role }}]{{ content }}|{% endfor %}"
    spoken = chat("2 + 2", "<think>\nadd\n</think>\n\nfour", "2 + 3", "<think>\nnow\n</think>\n\nfive")
    sample = sample_from_row(spoken, CONFIG, tokenizer)
    assert [said.strip() for said in unmasked(sample)] == [first, last] and "add" not in sample.text
    plain = sample_from_row(chat("2 + 2", "four", "2 + 3", "five"), CONFIG, tokenizer)
    assert unmasked(plain) == ["four", "five"]


def test_an_earlier_turn_of_thoughts_alone_is_masked_away(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}" + _STRIPS + "[{{ m.role }}]{{ content }}|{% endfor %}"
    sample = sample_from_row(chat("q", "<think>hm</think>", "r", "five"), CONFIG, tokenizer)
    assert unmasked(sample) == ["five"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.content if loop.last else m.content[:2] }}>{% endfor %}",
        "{% for m in messages %}<{{ m.content | upper }}>{% endfor %}",
    ],
)
def test_prefixes_that_do_not_nest_are_refused(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="^data.text_field=text: the prefixes of a chat do not nest .* use a template"):
        sample_from_row(chat("question", "first answer", "again", "second answer"), CONFIG, tokenizer)


def test_no_chat_template_has_a_remedy(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="^data.text_field=text holds chat messages.* no chat template.*; use the"):
        sample_from_row(chat("q", "a"), CONFIG, tokenizer)


def test_what_the_template_refuses_is_told(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses messages with the roles user, assistant: roles must alternate; "):
        sample_from_row(chat("q", "a"), CONFIG, tokenizer)


def test_a_template_that_writes_the_date_gives_the_same_text_every_day(tokenizer):
    tokenizer.chat_template = "\n{{ strftime_now('%d %b %Y') }}{% for m in messages %}<{{ m.content }}>{% endfor %}"
    sample = sample_from_row(chat("q", "a"), CONFIG, tokenizer)
    assert sample.text == "\n26 Jul 2024<q><a>"
    assert unmasked(sample) == ["a"]
