"""Taps: rows as they enter a layer, hooks that never stay behind, layers grouped by what they receive."""

import pytest
import torch
from torch import nn

from eva_dist.modeling.taps import ForwardCut, collect_groups, concatenate, own_rows, tap_inputs
from tests.collecting import collect_rows


def first(arguments, name):
    return arguments[0]


class Block(nn.Module):
    """q and k share an input; o gets another; the expert sees only what is routed to it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o, self.expert = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x_TD, routed=0):
        y_TD = self.o(self.q(x_TD) + self.k(x_TD))
        return y_TD, self.expert(x_TD[:routed])


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def model():
    return Block()


def test_rows_are_collected_call_by_call_in_order(model):
    a_TD, b_TD = torch.randn(4, 3), torch.randn(2, 3)
    with torch.no_grad(), collect_rows(model, ["q", "o"], first) as rows:
        model(a_TD)
        model(b_TD)
        assert hooks(model) == 2
    assert hooks(model) == 0
    assert list(rows) == ["q", "o"] and len(rows["q"]) == len(rows["o"]) == 2
    assert torch.equal(rows["q"][0], a_TD) and torch.equal(rows["q"][1], b_TD)
    with torch.no_grad():
        assert torch.equal(rows["o"][0], model.q(a_TD) + model.k(a_TD))
        model(a_TD)
    assert len(rows["q"]) == 2


def test_hooks_are_gone_after_an_exception(model):
    with pytest.raises(RuntimeError, match="shapes"), collect_rows(model, ["q", "k"], first):
        assert hooks(model) == 2
        model(torch.randn(4, 5))
    assert hooks(model) == 0

    def refuse(arguments, name):
        raise KeyError(name)

    with pytest.raises(KeyError, match="k"), collect_rows(model, ["k"], refuse):
        model(torch.randn(4, 3))
    with pytest.raises(KeyError, match="o"), collect_groups(model, ["o"]) as groups:
        groups.select = refuse
        model(torch.randn(4, 3))
    assert hooks(model) == 0


def test_an_unknown_layer_leaves_no_hooks_behind(model):
    with pytest.raises(AttributeError), collect_rows(model, ["q", "nope"], first):
        raise AssertionError("unreachable")
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "select",
    [first, lambda arguments, name: arguments[0][1:], lambda arguments, name: arguments[0].view(-1, 3)],
)
def test_what_the_model_changes_in_place_afterwards_does_not_change_the_rows(select):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(3, 3)

        def forward(self, x_TD):
            y_TD = self.dense(x_TD)
            x_TD.zero_()
            return y_TD

    model, x_TD = InPlace(), torch.randn(4, 3)
    expected_TD = select((x_TD.clone(),), "dense").clone()
    with torch.no_grad(), collect_rows(model, ["dense"], select) as rows:
        model(x_TD)
    assert torch.equal(rows["dense"][0], expected_TD) and not x_TD.any()


def test_rows_picked_by_index_are_not_copied_again(model):
    x_TD, kept = torch.randn(4, 3), torch.tensor([True, False, True, True])
    picked = []

    def select(arguments, name):
        picked.append(arguments[0][kept])
        return picked[-1]

    with torch.no_grad(), collect_rows(model, ["q"], select) as rows:
        model(x_TD)
    assert rows["q"][0].data_ptr() == picked[0].data_ptr()


def test_rows_carry_no_graph(model):
    with collect_rows(model, ["o"], first) as rows:
        model(torch.randn(4, 3))
    assert not rows["o"][0].requires_grad


def test_the_tap_sees_every_entry_by_name(model):
    seen = []
    with tap_inputs(model, ["k", "q"], lambda name, arguments: seen.append((name, len(arguments)))):
        model(torch.randn(4, 3))
    assert seen == [("q", 1), ("k", 1)]


def test_a_cut_leaves_the_forward_and_no_hook_and_is_no_error_of_the_models(model):
    """A model that handles its own exceptions must not catch it."""

    class Careful(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x_TD):
            try:
                return self.inner(x_TD)
            except Exception:
                return None

    def cut(name, arguments):
        raise ForwardCut

    careful, entered = Careful(model), []
    model.o.register_forward_hook(lambda *_: entered.append("o"))
    with pytest.raises(ForwardCut), tap_inputs(careful, ["inner.q"], cut):
        careful(torch.randn(4, 3))
    assert entered == [] and hooks(model) == 1
    assert not issubclass(ForwardCut, Exception)


def test_own_copies_only_what_is_a_view_of_the_input():
    x_TD = torch.randn(4, 3, requires_grad=True)
    for view_TD in (x_TD, x_TD[1:], x_TD.view(2, 6), x_TD[:0]):
        mine = own_rows(view_TD, (None, x_TD))
        assert torch.equal(mine, view_TD) and not mine.requires_grad
        assert mine.untyped_storage().data_ptr() != x_TD.untyped_storage().data_ptr() or not len(mine)
    picked_TD = x_TD[torch.tensor([0, 2])]
    assert own_rows(picked_TD, x_TD).data_ptr() == picked_TD.data_ptr()


def groups_of(model, *minibatches, names=("q", "k", "o", "expert"), select=first):
    with torch.no_grad(), collect_groups(model, names) as groups:
        groups.select = select
        for x_TD, routed in minibatches:
            model(x_TD, routed)
    return groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layers_that_received_equal_rows_share_a_group(model, dtype):
    groups = groups_of(model.to(dtype), (torch.randn(4, 3, dtype=dtype), 2))
    assert groups.names() == [["q", "k"], ["o"], ["expert"]] and groups.complete
    assert groups.calls == dict.fromkeys(("q", "k", "o", "expert"), 1)
    assert groups.dtypes == dict.fromkeys(("q", "k", "o", "expert"), dtype)


def test_calls_are_counted_layer_by_layer(model):
    """Those that are never entered too; their dtype is that of their weights."""
    with torch.no_grad(), collect_groups(model.double(), ["q", "expert", "o"]) as groups:
        groups.select = first
        x_TD = torch.randn(4, 3).double()
        model.q(x_TD)
        model.q(x_TD)
        model.o(x_TD)
    assert groups.calls == {"q": 2, "expert": 0, "o": 1} and not groups.complete
    assert groups.dtypes == {"q": torch.float64, "expert": torch.float64, "o": torch.float64}


def test_layers_that_saw_no_token_share_their_input_with_nobody(model):
    groups = groups_of(model, (torch.randn(4, 3), 0))
    assert groups.names() == [["q", "k"], ["o"], ["expert"]] and not groups.complete
    nothing = groups_of(model, (torch.randn(4, 3), 2), select=lambda arguments, name: arguments[0][:0])
    assert nothing.names() == [["q"], ["k"], ["o"], ["expert"]] and not nothing.complete


def test_later_minibatches_complete_the_picture(model):
    """Expert and q receive the same first minibatch, but not the same second one."""
    both_TD = torch.randn(4, 3)
    assert groups_of(model, (both_TD, 4)).names() == [["q", "k", "expert"], ["o"]]
    assert groups_of(model, (both_TD, 4), (both_TD, 1)).names() == [["q", "k"], ["o"], ["expert"]]
    assert groups_of(model, (both_TD, 0), (both_TD, 4)).complete


def test_equal_bytes_in_another_shape_or_dtype_are_another_input(model):
    shapes = {"q": (2, 6), "k": (4, 3), "o": (4, 3), "expert": (4, 3)}
    groups = groups_of(
        model, (torch.randn(4, 3), 4), select=lambda arguments, name: torch.zeros(shapes[name], dtype=torch.float32)
    )
    assert groups.names() == [["q"], ["k", "o", "expert"]]
    kinds = {"q": torch.float16, "k": torch.bfloat16, "o": torch.float16, "expert": torch.bfloat16}
    groups = groups_of(
        model, (torch.randn(4, 3), 4), select=lambda arguments, name: torch.zeros(4, 3, dtype=kinds[name])
    )
    assert groups.names() == [["q", "o"], ["k", "expert"]]


def test_concatenation_keeps_order_and_knows_emptiness():
    a_TD, b_TD, cpu = torch.ones(2, 3), torch.zeros(1, 3), torch.device("cpu")
    assert torch.equal(concatenate([a_TD, b_TD], 3, torch.float32, cpu), torch.cat([a_TD, b_TD]))
    assert concatenate([a_TD], 3, torch.float32, cpu) is a_TD
    empty = concatenate([], 3, torch.bfloat16, cpu)
    assert empty.shape == (0, 3) and empty.dtype == torch.bfloat16
