"""What `prepare` says of rows that add nothing, of chats that cannot be rendered, and of columns that are left out."""

import json
import logging

import pytest

from eva_dist.config import DataConfig
from eva_dist.data import Batching, TokenStream, WorkerStream, check_rows, open_rows
from eva_dist.data.chat_template import template_variables
from eva_dist.errors import DataError

LONG = " the cat sat on the mat" * 20
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"default": 1}}}}}]
OTHER_TOOLS = [{"type": "function", "function": {"name": "say", "parameters": {"properties": {"b": {"default": "x"}}}}}]
WITH_TOOLS = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}:{{ t | tojson }};{% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m.content }}>{% endfor %}"
)


def chat(*turns: str, roles=("user", "assistant")) -> list[dict[str, str]]:
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def checked(config: DataConfig, tokenizer, label_mask_value: int | None = -100) -> TokenStream:
    stream = TokenStream(open_rows(config), tokenizer, config, label_mask_value)
    check_rows(stream)
    return stream


def refusal(config: DataConfig, tokenizer) -> str:
    with pytest.raises(DataError) as caught:
        checked(config, tokenizer)
    return str(caught.value)


def test_rows_whose_answer_lies_behind_max_length_are_counted(write_jsonl, tokenizer, caplog):
    path = write_jsonl([{"q": LONG, "text": "four"}] * 30 + [{"q": "2 + 2", "text": "four"}] * 10)
    config = DataConfig(path=path, prompt_field="q", max_length=24, step_size=40)
    stream = checked(config, tokenizer)
    assert caplog.messages == [
        "30 of the 40 rows keep no token that counts: in 30 all that counts lies behind data.max_length=24 (raise it, "
        "or shorten the prompts)"
    ]
    worker = WorkerStream(stream, Batching())
    worker.window(0)
    assert worker.unlabelled(0) == 30


def test_every_worker_counts_its_own_share(write_jsonl, tokenizer):
    path = write_jsonl([{"q": LONG if i % 3 else "2 + 2", "text": "four"} for i in range(12)])
    config = DataConfig(path=path, prompt_field="q", max_length=24, step_size=12)
    workers = [WorkerStream(checked(config, tokenizer), Batching(steps=2), rank, 3) for rank in range(3)]
    for worker in workers:
        worker.window(1)
    assert [sum(worker.unlabelled(step) for worker in workers) for step in (0, 1)] == [8, 8]


def test_no_row_left_names_max_length(write_jsonl, tokenizer):
    path = write_jsonl([{"q": LONG, "text": "four"}] * 300)
    message = refusal(DataConfig(path=path, prompt_field="q", max_length=24), tokenizer)
    assert message.startswith("data.max_length=24 must leave room for what follows the prompts: none of the 300 rows")
    chats = write_jsonl([{"text": chat(LONG, "four")}] * 3, "chats.jsonl")
    assert refusal(DataConfig(path=chats, max_length=24), tokenizer).startswith("data.max_length=24 must leave room")


def test_a_single_row_among_many_is_found(write_jsonl, tokenizer, caplog):
    path = write_jsonl([{"q": LONG, "text": "four"}] * 300 + [{"q": "2 + 2", "text": "four"}])
    checked(DataConfig(path=path, prompt_field="q", max_length=24, shuffle=False), tokenizer)
    assert "300 of the 301 rows" in caplog.text


def test_plain_text_and_data_without_loss_say_nothing(write_jsonl, tokenizer, caplog):
    checked(DataConfig(path=write_jsonl([{"text": "a"}])), tokenizer)
    checked(DataConfig(path=write_jsonl([{"text": chat("q", "a")}], "chats.jsonl")), tokenizer)
    # nothing is masked: there is nothing to lose
    lost = DataConfig(path=write_jsonl([{"q": LONG, "text": "a"}], "lost.jsonl"), prompt_field="q", max_length=24)
    stream = checked(lost, tokenizer, label_mask_value=None)
    assert "labels" not in stream.window(0, Batching()).minibatches[0]
    assert caplog.messages == []


@pytest.mark.parametrize("streaming", [False, True])
def test_roles_that_no_template_knows_are_named_and_can_be_mapped(write_jsonl, tokenizer, streaming):
    turns = ("2 + 2", "four", "2 + 3", "five")
    settings = {"step_size": 1, "streaming": streaming, "num_samples": 1}
    config = DataConfig(path=write_jsonl([{"text": chat(*turns, roles=("human", "gpt"))}]), **settings)
    message = refusal(config, tokenizer)
    assert (
        "holds no turn of role assistant; roles are human, gpt; name the one that answers with data.role_map" in message
    )
    names = {"human": "user", "gpt": "assistant"}
    mapped = checked(DataConfig(path=config.path, role_map=names, **settings), tokenizer)
    usual = checked(DataConfig(path=write_jsonl([{"text": chat(*turns)}], "usual.jsonl"), **settings), tokenizer)
    # the same rows by other names of their roles are the same data
    assert mapped.rows.digest == usual.rows.digest != open_rows(config).digest
    assert mapped.sample(0) == usual.sample(0)
    checked(config, tokenizer, label_mask_value=None)  # every token counts: roles do not matter


def test_roles_can_change_places(write_jsonl, tokenizer):
    path = write_jsonl([{"text": chat("q", "a")}])
    config = DataConfig(path=path, role_map={"user": "assistant", "assistant": "user"}, streaming=True, num_samples=1)
    assert [message["role"] for message in open_rows(config)[0]["text"]] == ["assistant", "user"]


def test_chats_in_which_no_assistant_speaks_are_counted(write_jsonl, tokenizer, caplog):
    checked(DataConfig(path=write_jsonl([{"text": chat("q")}, {"text": chat("q", "a")}])), tokenizer)
    assert caplog.messages == ["1 of the 2 rows keep no token that counts: in 1 no assistant says anything"]
    blank = DataConfig(path=write_jsonl([{"text": chat("q", " ")}] * 2, "blank.jsonl"))
    assert "none of the 2 rows" in refusal(blank, tokenizer)


def test_a_chat_that_cannot_be_rendered_is_found_before_the_pass_wherever_it_is(write_jsonl, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if loop.last or not m.content.startswith('!') else '' }}|{% endfor %}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    rows = [{"text": chat("q", "a", "r", "b")}] * 400
    rows[340] = {"text": [{"role": "system", "content": "s"}, *chat("q", "a")]}
    message = refusal(DataConfig(path=write_jsonl(rows)), tokenizer)
    assert "no system" in message and message.endswith(f"it is row 340 of data.path={write_jsonl(rows)}")


def test_a_turn_that_cannot_be_found_names_its_row(write_jsonl, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ 'hm' in m.content }}<{{ m.content }}>{% endfor %}"
    rows = [{"text": None}, *[{"text": chat("q", "a")}] * 300]
    rows[299] = {"text": chat("q", "<think>hm</think>a")}
    message = refusal(DataConfig(path=write_jsonl(rows)), tokenizer)
    assert "prefixes of a chat do not nest" in message and "it is row 299 of" in message


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
def test_tools_are_handed_to_the_template(write_jsonl, tokenizer, caplog, as_json, streaming):
    tokenizer.chat_template = WITH_TOOLS
    rows = [
        {"text": chat("q", "a"), "tools": json.dumps(tools) if as_json and tools else tools}
        for tools in (TOOLS, OTHER_TOOLS, None, [])
    ]
    settings = {"shuffle": False, "streaming": streaming, "num_samples": 9 if streaming else None}
    stream = checked(DataConfig(path=write_jsonl(rows), **settings), tokenizer)
    texts = [stream.sample(i).text for i in range(4)]
    assert texts[0].startswith("add:") and texts[0].endswith(";<q><a>") and '"default": 1' in texts[0]
    assert "say" not in texts[0] and texts[1].startswith("say:") and '"default": "x"' in texts[1]
    assert texts[2:] == ["<q><a>", "<q><a>"] and caplog.messages == []
    without = open_rows(DataConfig(path=write_jsonl([{"text": row["text"]} for row in rows], "none.jsonl")))
    assert stream.rows.tools_digest is not None and without.tools_digest is None
    assert stream.rows.digest == without.digest
    other = open_rows(DataConfig(path=write_jsonl(rows[::-1], "other.jsonl")))
    assert other.tools_digest != stream.rows.tools_digest and other.digest == stream.rows.digest


def test_tools_under_another_name_and_in_one_file_only(tmp_path, write_jsonl, tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    write_jsonl([{"text": chat("q", "a")}], "1.jsonl")
    write_jsonl([{"text": chat("r", "b"), "functions": TOOLS}], "2.jsonl")
    config = DataConfig(path=str(tmp_path / "*.jsonl"), tools_field="functions", shuffle=False)
    texts = [checked(config, tokenizer).sample(i).text for i in range(2)]
    assert texts[0] == "<q><a>" and texts[1].startswith("add:")


def test_what_a_template_does_not_get_is_named(write_jsonl, tokenizer, caplog):
    row = {"text": chat("q", "a"), "tools": TOOLS, "documents": ["d"], "mood": "good", "id": 3}
    path = write_jsonl([row])
    checked(DataConfig(path=path), tokenizer)
    assert caplog.messages == [
        f"column tools of data.path={path} is left out: the tokenizer's chat template takes no tools",
        f"columns of data.path={path} that are not handed to the chat template, though it may have a use for them: "
        "documents",
    ]
    caplog.clear()
    tokenizer.chat_template = WITH_TOOLS + "{{ mood }}"
    checked(DataConfig(path=path), tokenizer)
    assert [message.split(": ")[-1] for message in caplog.messages] == ["documents, mood"]


def test_tools_that_were_asked_for_and_cannot_be_had(write_jsonl, tokenizer):
    path = write_jsonl([{"text": chat("q", "a"), "functions": TOOLS}])
    message = refusal(DataConfig(path=path, tools_field="functions"), tokenizer)
    assert message.startswith("data.tools_field=functions must come with a chat template that takes tools")
    message = refusal(DataConfig(path=path, tools_field="nope"), tokenizer)
    assert message.startswith("data.tools_field=nope must be a column of") and "which has: text, functions" in message
    text = write_jsonl([{"text": "plain", "functions": TOOLS}], "text.jsonl")
    message = refusal(DataConfig(path=text, tools_field="functions"), tokenizer)
    assert message.startswith("data.tools_field=functions must come with chat messages")


@pytest.mark.parametrize("tools", ["not json", '{"a": 1}', [1], 3])
def test_tools_that_are_none(write_jsonl, tokenizer, tools):
    message = refusal(DataConfig(path=write_jsonl([{"text": chat("q", "a"), "tools": tools}])), tokenizer)
    assert message.startswith("data.tools_field=tools must hold a list of tools") and "row 0 holds" in message


@pytest.mark.parametrize("tools", [3, "x", {"a": 1}])
def test_text_beside_a_column_called_tools_is_text_as_before(tmp_path, write_jsonl, tokenizer, tools):
    write_jsonl([{"text": "a", "tools": tools}], "1.jsonl")
    write_jsonl([{"text": "b", "tools": [tools]}], "2.jsonl")
    rows = open_rows(DataConfig(path=str(tmp_path / "*.jsonl")))
    assert [rows[0], rows[1]] == [{"text": "a"}, {"text": "b"}] and rows.tools_digest is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ messages }}", {"tools", "messages"}),
        ("{% set tools = 1 %}{{ tools }}{% for m in messages %}{{ m.tools }}{% break %}{% endfor %}", {"messages"}),
        ("{# tools #}no tools{% generation %}{{ messages }}{% endgeneration %}", {"messages"}),
        ("{% if %}", set()),
    ],
)
def test_which_variables_a_template_reads(template, expected):
    assert template_variables(template) == expected


@pytest.fixture(autouse=True)
def warnings_of_ours(caplog):
    caplog.set_level(logging.WARNING, logger="eva_dist")
