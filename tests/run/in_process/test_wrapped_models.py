"""Models that something is wrapped around: `torch.compile` in all its ways, and a second adapter."""

import pytest
import torch
from peft import initialize_lora_eva_weights
from peft.tuners.lora.eva import get_eva_state_dict as peft_function

from eva_dist.errors import ConfigError

from .conftest import assert_no_hooks, build, eva, lora, token_minibatches, wrapped

SETTINGS = {"targets": ["q_proj", "v_proj"], "r": 2, "rho": 1.0, "tau": 0.5}


def compiled(module):
    """Compiled in earnest, but for the machine code, which takes half a minute."""
    return torch.compile(module, backend="eager")


def adapted(model):
    return wrapped(model, lora(**SETTINGS))


def in_place(model):
    model.compile(backend="eager")
    return model


def one_block(model):
    model.model.layers[0] = compiled(model.model.layers[0])
    return model


def one_method(model):
    model.model.forward = compiled(model.model.forward)
    return model


WAYS = {
    "base": compiled,
    "adapter outside": lambda model: adapted(compiled(model)),
    "adapter inside": lambda model: compiled(adapted(model)),
    "in place": in_place,
    "in place, adapted": lambda model: in_place(adapted(model)),
    "one block": one_block,
    "one block, adapted": lambda model: adapted(one_block(model)),
    "one method": one_method,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's own compiler
@pytest.mark.parametrize(
    ("way", "used"),
    [
        ("adapter inside", True),  # the others compile as long, one after another
        *(pytest.param(way, False, marks=pytest.mark.slow) for way in WAYS),
        pytest.param("base", True, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_gives_what_it_gives_uncompiled_by_peft_s_names(way, used):
    data = token_minibatches(padding=True)
    plain = eva(build("llama"), data, lora(**SETTINGS))
    model = WAYS[way](build("llama"))
    if used:
        model(**data[0])  # its graph is there already
    config = None if hasattr(model, "peft_config") else lora(**SETTINGS)
    found = eva(model, data, config)
    theirs = peft_function(WAYS[way](build("llama")), data, config, show_progress_bar=False)
    assert sorted(found) == sorted(theirs)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), plain.values(), strict=True))
    assert_no_hooks(model)
    model(**data[0])


@pytest.mark.parametrize("way", ["adapter outside", "adapter inside", "one block, adapted"])
def test_all_of_it_loads_into_the_compiled_model(way):
    data = token_minibatches()
    model = WAYS[way](build("llama"))
    found = eva(model, data)
    initialize_lora_eva_weights(model, eva_state_dict=dict(found))  # warns of layers that it does not find
    for name, rows in found.items():
        assert torch.equal(model.get_submodule(name).lora_A["default"].weight, rows)


def two_adapters(first, second):
    model = wrapped(build("llama"), lora(**SETTINGS | {"targets": first}))
    model.add_adapter("second", lora(**SETTINGS | {"targets": second, "r": 3}))
    return model


@pytest.mark.parametrize("second", [["down_proj"], ["v_proj", "down_proj"]])
def test_only_layers_that_carry_the_adapter_are_initialised_on_a_budget_of_their_own(second):
    data = token_minibatches()
    model = two_adapters(["q_proj", "v_proj"], second)
    alone = eva(build("llama"), data, lora(**SETTINGS | {"targets": second, "r": 3}))
    found = eva(model, data, adapter_name="second")
    assert {name.removeprefix("base_model.model."): len(rows) for name, rows in found.items()} == {
        name: len(rows) for name, rows in alone.items()
    }
    first = eva(model, data)
    assert {name.rpartition(".")[2] for name in first} == {"q_proj", "v_proj"}
    assert sum(len(rows) for rows in first.values()) == 2 * 4
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="were not found in the eva state_dict"):  # PEFT asks for those of the first
        initialize_lora_eva_weights(model, eva_state_dict=dict(found), adapter_name="second")
    for name, rows in found.items():
        assert torch.equal(model.get_submodule(name).lora_A["second"].weight, rows)


def test_with_a_config_of_one_s_own_the_only_adapter_is_meant_and_of_several_none():
    data = token_minibatches()
    model = wrapped(build("llama"), lora(**SETTINGS), adapter_name="mine")
    assert len(eva(model, data, lora(**SETTINGS))) == 4
    with pytest.raises(
        ConfigError, match=r"adapter_name='third' must be an adapter of the model: \['default', 'second'\]"
    ):
        eva(two_adapters(["q_proj"], ["v_proj"]), data, lora(**SETTINGS), adapter_name="third")
