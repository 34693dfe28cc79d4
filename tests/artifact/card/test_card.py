"""The card: its code runs as it stands, its words and numbers are those of the run."""

import ast
import re
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel

import eva_dist
from eva_dist.artifact.card.card import write_card
from eva_dist.artifact.card.front_matter import front_matter
from eva_dist.artifact.card.loading_code import adapter_code
from eva_dist.artifact.facts import layer_facts
from eva_dist.artifact.load import load_eva_state_dict
from eva_dist.config import Budget

# peft 0.21 reads what transformers 5.23 deprecates, for every adapter alike.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def card(built) -> str:
    return (built.folder / "README.md").read_text()


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)


def run(code: str) -> PeftModel:
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    return names["model"]


@pytest.fixture(autouse=True)
def public_loader(monkeypatch):
    monkeypatch.setattr(eva_dist, "load_eva_state_dict", load_eva_state_dict, raising=False)


@pytest.mark.parametrize("whiten", [False, True])
def test_both_code_blocks_load_the_same_artifact(build, whiten):
    built = build(whiten=whiten)
    ready, initialised = map(run, code_blocks(card(built)))
    ours, theirs = ready.state_dict(), initialised.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    tensors = load_eva_state_dict(built.folder)
    for name, a_RD in tensors.items():
        key = f"{name}.lora_A.default.weight"
        assert torch.equal(ours[key], a_RD) if len(a_RD) else key not in ours
    scaling = {n: m.scaling for n, m in ready.named_modules() if hasattr(m, "lora_A")}
    assert scaling == {n: m.scaling for n, m in initialised.named_modules() if hasattr(m, "lora_A")}
    for model in (ready, initialised):
        trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        assert len(trainable) == 2 * 13 and all("lora_" in name for name in trainable)


def test_front_matter_has_no_folder_of_this_machine(built):
    front = yaml.safe_load(card(built).split("---")[1])
    assert front == {"library_name": "peft", "tags": ["eva", "lora", "eva_dist"]}


@pytest.mark.parametrize(
    ("model", "data", "names"),
    [
        ("org/Base-1.5", "team/texts", ("org/Base-1.5", ["team/texts"])),
        ("gpt2", "wikitext", ("gpt2", ["wikitext"])),
        ("org/base", "wikitext + /srv/data.jsonl + team/texts", ("org/base", ["wikitext", "team/texts"])),
        ("/srv/models/base", "/srv/data.jsonl", (None, None)),
        ("./base", "data/*.txt", (None, None)),
        ("../org/base", "texts.jsonl", (None, None)),
        ("a/b/c", "a|b.txt", (None, None)),
    ],
)
def test_front_matter_names_what_is_on_the_hub_and_nothing_else(built, model, data, names):
    config = built.provenance.config | {"data": {"path": data}}
    provenance = replace(built.provenance, model={"id": model, "weights": "commit:abc"}, config=config)
    front = ModelCard(front_matter(provenance) + "\n# card\n").data
    assert (front.base_model, front.datasets) == names
    assert front.library_name == "peft" and front.tags == ["eva", "lora", "eva_dist"]
    assert front.get("base_model_relation") == ("adapter" if names[0] else None)
    assert front.language is None and front.license is None
    local = replace(provenance, model={"id": "org/base", "weights": "sha256:abc"})
    assert "base_model" not in front_matter(local)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("file:///srv/eva%20store/snapshots/ab", "'/srv/eva store/snapshots/ab'"),
        ("/srv/eva", "'/srv/eva'"),
        ("hf://org/name@v1", "'org/name', revision='v1'"),
        ("hf://org/name", "'org/name'"),
        ("hf://org/name@my%20run", "'org/name', revision='my run'"),
        ("s3://bucket/team/name@v1", "eva_dist.fetch('s3://bucket/team/name@v1')"),
        ("http://gateway:8000/team/name", "eva_dist.fetch('http://gateway:8000/team/name')"),
    ],
)
def test_code_says_where_the_adapter_is_in_the_words_that_peft_takes(built, url, place):
    code = adapter_code(replace(built.provenance, url=url))
    assert f"PeftModel.from_pretrained(base, {place}, is_trainable=True)" in code
    assert ("import eva_dist" in code) == ("eva_dist." in place)


@pytest.fixture
def poisoned(built):
    """What a manifest from elsewhere may say of the run."""
    evil = {
        "attn=__import__('os').system('echo PWNED') or 'x', b": 1,
        "a\n```\n# Injected\n```python\nq": "```\n# Injected\n```",
        "class": 2,
        "num_hidden_layers": 3,
        "trust_remote_code": True,
    }
    model = built.provenance.config["model"] | {"config_overrides": evil, "trust_remote_code": True}
    config = built.provenance.config | {"model": model}
    about = built.provenance.model | {"id": "org/base`\n```python\nevil()\n```", "k\n```\n# Injected": 1}
    return replace(built.provenance, config=config, model=about)


def test_no_key_of_the_settings_becomes_code(poisoned):
    """A manifest may come from anywhere; the card that `derive` and `push` make of it is run by people."""
    call = next(one.value for one in ast.parse(adapter_code(poisoned)).body if isinstance(one, ast.Assign))
    assert ast.unparse(call.func) == "AutoModelForCausalLM.from_pretrained"
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}  # literals and nothing else
    assert given.pop(None).keys() == poisoned.config["model"]["config_overrides"].keys() - {*given, "trust_remote_code"}
    assert given == {"num_hidden_layers": 3}


def test_the_card_turns_on_no_code_of_the_model_but_says_that_the_run_did(built, poisoned):
    code = adapter_code(poisoned)
    assert "trust_remote_code" in code
    assert "trust_remote_code" not in "\n".join(line.partition("#")[0] for line in code.splitlines())
    assert "trust_remote_code" not in adapter_code(built.provenance)


def test_nothing_that_a_manifest_says_leaves_its_line(built, poisoned, tmp_path):
    write_card(tmp_path, layer_facts(built.result), built.result, built.eva, poisoned)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("```")] == ["```python", "```"] * 2
    assert not [line for line in lines if line.startswith("# Injected")]


def test_says_what_breaks_in_silence(built):
    text = " ".join(card(built).split())
    assert '`init_lora_weights="eva"` **without** the call of `initialize_lora_eva_weights`' in text
    assert f"`max_lora_rank` >= {max(built.result.state.ranks.values())}," in text
    assert "sqrt(r_new / r)" in text


def test_done_has_no_warning_and_not_converged_lists_its_layers(built, unconverged):
    assert "**Done**: all 14 layers" in card(built) and "WARNING" not in card(built)
    text = card(unconverged)
    assert "[!WARNING]" in text and "**Not converged**: 12 of 14 layers" in text
    rank = unconverged.result.state.group_rank(2)
    for name in ("gate_proj", "up_proj"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `model.layers.0.mlp.{name}`"))
        assert row.split("|")[3:5] == [f" 1 of {rank} ", " 0.2500 "]
    assert not re.search(r"^\| `model\.layers\.1", text, flags=re.MULTILINE)


def test_rank_table_is_by_module_kind(built):
    ranks = built.result.state.ranks
    o_proj = sorted(rank for name, rank in ranks.items() if name.endswith("o_proj"))
    assert f"| `o_proj` | 2 | 0 | {sum(o_proj) / 2:g} | {o_proj[1]} | 1 | {sum(o_proj) * 64} |" in card(built)


@pytest.mark.parametrize("budget", Budget)
def test_says_which_budget_was_handed_out_and_what_came_of_it(build, budget):
    built = build(budget=budget)
    text, manifest = " ".join(card(built).split()), built.manifest
    of_ranks = "a budget of 60 ranks (r = 4 a layer, but for its `rank_pattern`) went where it explains the most"
    of_parameters = (
        f"a budget of {manifest['parameter_budget']:,} LoRA parameters, those of r = 4 a layer, but for its "
        "`rank_pattern`, went where each parameter explains the most variance (`eva.budget=params`)."
    )
    assert (of_ranks in text, of_parameters in text) == (budget is Budget.ranks, budget is Budget.params)
    mean = sum(built.result.state.ranks.values()) / 14
    assert (
        f"The mean rank is {mean:.2f}. A and B together have {manifest['trainable_parameters']:,} trainable "
        f"parameters; with every layer at its r they would have {manifest['parameter_budget']:,}."
    ) in text
    assert f"| `eva.budget` | `{budget.value}` |" in card(built)


def test_tables_survive_any_value(built):
    """A pipe in a setting (the glob `a|b.txt`) must not open a column."""
    for line in card(built).splitlines():
        if line.startswith("| `data.path`"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3
            break
    else:
        pytest.fail("no row for data.path")


def test_figures_named_by_the_card_exist(built):
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card(built))
    assert len(figures) == 3
    assert all((built.folder / name).is_file() for name in figures)
