"""Layers that receive the same input share one SVD, and no others do."""

from collections import Counter

import pytest
import torch
from torch import nn

from .conftest import HIDDEN, assert_same, build, cosines, eva, eva_vectors, lora, token_minibatches, vectors

THREE_STEPS = {"max_steps": 3, "on_max_steps": "accept"}


class TwoLayers(nn.Module):
    """Both layers get `x`, in the way that `hand_over` says."""

    def __init__(self, hand_over):
        super().__init__()
        self.a, self.b = nn.Linear(HIDDEN, 8), nn.Linear(HIDDEN, 8)
        self.hand_over = hand_over

    def forward(self, x):
        first, second = self.hand_over(x)
        y = self.a(first())
        return y + self.b(second())


def one_tensor(x):
    return lambda: x, lambda: x


def two_tensors(x):
    return x.clone, x.clone


def another_value(x):
    return lambda: x, lambda: x + torch.eye(HIDDEN)[0] * (torch.arange(len(x)) == 0)[:, None]


def changed_in_place(x):
    """The second layer gets the same tensor, overwritten after the first one has read it."""
    x = x.clone()
    return lambda: x, lambda: x.mul_(torch.linspace(-1, 1, HIDDEN)).add_(3.0)


def exact_components(rows, k):
    """Leading right-singular vectors of the centred rows, float64."""
    rows = rows.double()
    return torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:k]


def test_one_update_a_group_and_step(updates):
    """A llama block has four inputs: q/k/v, o, gate/up and down."""
    result = eva(build("llama"), token_minibatches(), lora("all-linear", tau=1.0), **THREE_STEPS)
    assert len(result) == 14
    assert Counter(updates) == dict.fromkeys(range(8), 3)


def test_members_of_a_group_have_the_same_components():
    block = "model.layers.0."
    result = eva(build("llama"), token_minibatches(), lora("all-linear"))
    for first, *others in (["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]):
        parent = "self_attn." if first == "q_proj" else "mlp."
        a = result[block + parent + first]
        for other in others:
            b = result[block + parent + other]
            assert len(b) <= len(a)
            assert torch.equal(a[: len(b)], b)


@pytest.mark.parametrize(
    ("hand_over", "groups"), [(one_tensor, 1), (two_tensors, 1), (another_value, 2), (changed_in_place, 2)]
)
def test_equal_values_make_a_group_whatever_tensor_holds_them(hand_over, groups, updates):
    eva_vectors(TwoLayers(hand_over), vectors(), lora(["a", "b"], tau=1.0), **THREE_STEPS)
    assert Counter(updates) == dict.fromkeys(range(groups), 3)


@pytest.mark.parametrize("leading", [(), (4,)])
def test_an_input_overwritten_after_the_tap_is_right(leading):
    """Against an exact SVD of what each layer really read; rows of `[B, T, D]` inputs are views of them."""
    data = [{"x": m["x"].reshape(*leading, -1, HIDDEN)} for m in vectors()]
    once = {"max_steps": len(data), "on_max_steps": "accept", "solver": "covariance"}
    result = eva_vectors(TwoLayers(changed_in_place), data, lora(["a", "b"], rho=1.0, tau=1.0), **once)
    rows = torch.cat([m["x"].reshape(-1, HIDDEN) for m in data])
    read = {"a": rows, "b": rows * torch.linspace(-1, 1, HIDDEN) + 3.0}
    for name in ("a", "b"):
        assert len(result[name]) == 4
        assert (cosines(result[name], exact_components(read[name], 4)) > 1 - 1e-6).all()


@pytest.mark.parametrize("masked", [1, 3])
def test_fully_masked_first_minibatches_do_not_break_grouping(masked, updates):
    nothing = token_minibatches(count=masked, labels=True, seed=9)
    for minibatch in nothing:
        minibatch["labels"].fill_(-100)
    data = token_minibatches(labels=True)
    options = {"max_steps": masked + 3, "on_max_steps": "accept"}
    result = eva(build("llama"), nothing + data, lora("all-linear", tau=1.0), **options)
    assert Counter(updates) == dict.fromkeys(range(8), 3)  # steps without a token update nothing
    plain = eva(build("llama"), data, lora("all-linear", tau=1.0), **THREE_STEPS)
    assert_same(result, plain, least=1 - 1e-9)


def test_a_converged_group_is_left_alone(updates):
    """`out` is constant noise that settles late; the first layers settle soon and are updated no more."""
    eva_vectors(build("mlp"), vectors(), lora(["left", "right", "out"], rho=1.0, tau=0.999))
    early, late = sorted(Counter(updates).values())
    assert 2 <= early < late


def test_result_equals_an_exact_svd_of_the_tokens_that_count():
    """An oracle that shares no code: inputs caught by a hook of its own, float64 SVD, budget by a plain sort."""
    data = token_minibatches(padding=True, labels=True)
    model, config = build("llama").eval(), lora("all-linear", r=3, tau=1.0)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    caught = {name: [] for name in names}
    keep = None
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, args, out, n=name: caught[n].append(args[0][keep]))
        for name in names
    ]
    for minibatch in data:
        keep = minibatch["labels"] != -100
        with torch.no_grad():
            model(minibatch["input_ids"], attention_mask=minibatch["attention_mask"])
    for handle in handles:
        handle.remove()
    shares, expected = [], {}
    for position, name in enumerate(names):
        rows = torch.cat(caught[name]).double()
        _, s, vh = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        shares += [(-round(float(share), 9), position, name) for share in (s**2 / (s**2).sum())[:6]]
        expected[name] = vh
    winners = Counter(name for _, _, name in sorted(shares)[: 3 * len(names)])
    assert len(set(winners.values())) > 1
    for solver in ("covariance", "subspace", "incremental"):
        result = eva(model, data, config, solver=solver, max_steps=len(data), on_max_steps="accept")
        assert {name: len(rows) for name, rows in result.items()} == {name: winners[name] for name in names}
        for name, rows in result.items():
            least = 1 - 1e-6 if solver == "covariance" else 0.99
            assert (cosines(rows, expected[name][: len(rows)]) > least).all(), (solver, name)
