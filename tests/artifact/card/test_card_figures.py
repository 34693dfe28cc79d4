"""The figures show the numbers they are given, for 14 layers and for 210."""

import sys

import numpy as np
import pytest
from matplotlib.image import imread

from eva_dist.artifact.card.figures import convergence_curves, draw_ranks, draw_spectra, write_plots
from eva_dist.artifact.facts import layer_facts
from eva_dist.artifact.layer_names import places
from eva_dist.config import Budget, EvaConfig
from eva_dist.plan import make_plan

FIGURES = ["ranks.png", "convergence.png", "spectra.png"]


def share_of_ink(path) -> float:
    pixels = imread(path)[..., :3]
    return float((pixels < 0.95).any(axis=-1).mean())


@pytest.fixture
def many(many_layers, run_pass):
    """A pass over 210 layers in 120 input groups, of which one never settles."""
    same_input = []
    for i in range(30):
        at = f"model.layers.{i}."
        same_input += [[f"{at}self_attn.{k}_proj" for k in "qkv"], [f"{at}self_attn.o_proj"]]
        same_input += [[f"{at}mlp.gate_proj", f"{at}mlp.up_proj"], [f"{at}mlp.down_proj"]]
    plan = make_plan(list(many_layers.values()), same_input)
    return run_pass(plan, EvaConfig(r=16, tau=0.9), [0.5] * 30 + [0.95], turning=("model.layers.7.mlp.down_proj",))


def test_figures_are_drawn(built):
    for name in FIGURES:
        assert (built.folder / name).stat().st_size > 10_000
        assert 0.02 < share_of_ink(built.folder / name) < 0.9, name


def test_figures_of_210_layers_are_drawn(many, tmp_path):
    write_plots(tmp_path, layer_facts(many), many.state, 16, 0.9)
    for name in FIGURES:
        height, width = imread(tmp_path / name).shape[:2]
        assert 300 < height < 1200 and 600 < width < 2000, name
        assert 0.02 < share_of_ink(tmp_path / name) < 0.9, name


def test_heat_map_holds_the_ranks(built):
    ranks = built.result.state.ranks
    axes = draw_ranks(ranks, places(list(ranks)), 4).axes[0]
    shown = np.asarray(axes.images[0].get_array())
    kinds = [tick.get_text() for tick in axes.get_yticklabels()]
    assert kinds == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name, rank in ranks.items():
        assert shown[kinds.index(name.rpartition(".")[2]), int(name.split(".")[2])] == rank


def test_heat_map_says_what_r_gave():
    titles = [draw_ranks({"h.0.a": 2}, places(["h.0.a"]), 4, budget).axes[0].get_title() for budget in Budget]
    assert [title.partition("(")[2] for title in titles] == ["1 layers, r = 4)", "1 layers, parameters of r = 4)"]


def test_heat_map_leaves_holes_where_a_block_lacks_a_layer():
    ranks = {"h.0.a": 2, "h.1.b": 4, "head": 6}
    shown = draw_ranks(ranks, places(list(ranks)), 4).axes[0].images[0].get_array()
    assert shown.tolist() == [[2, None, None], [None, 4, None], [None, None, 6]]


def test_convergence_curve_is_exact(many):
    state = many.state
    layers, components = convergence_curves(state)
    assert len(layers) == len(components) == state.steps == 32
    assert layers[0] == pytest.approx(100 / 210)  # the one of rank 0 needs nothing
    assert components[0] == 0
    assert layers[-1] == pytest.approx(100 * state.layers_converged / 210)
    assert 0 < layers[-1] < 100 and 0 < components[-1] < 100
    assert layers == sorted(layers)


def test_curve_of_a_whole_pass_ends_at_all(built):
    layers, components = convergence_curves(built.result.state)
    assert layers == pytest.approx([100 / 14, 100 / 14, 100])  # the rank-0 layer needs nothing
    assert components[-1] == 100


def test_spectra_have_a_panel_for_each_shared_input(many):
    figure = draw_spectra(layer_facts(many), places(list(many.state.ranks)))
    panels = {axes.get_title().replace("\n", " "): axes for axes in figure.axes if axes.get_title()}
    assert panels.keys() == {"q_proj / k_proj / v_proj", "o_proj", "gate_proj / up_proj", "down_proj"}
    axes = panels["o_proj"]
    thin, thick = (collection.get_segments() for collection in axes.collections)
    assert axes.get_yscale() == "log" and len(thin) == len(thick) == 30
    np.testing.assert_array_equal(thin[0][:, 1], many.components[1].explained_variance_ratio_K)
    assert [len(line) for line in thick] == [many.state.group_rank(group) for group in range(1, 120, 4)]


def test_plots_leave_pyplot_alone(built, tmp_path):
    """Pyplot picks a display and keeps every figure alive; whoever embeds us may use it otherwise."""
    sys.modules.pop("matplotlib.pyplot", None)
    write_plots(tmp_path, layer_facts(built.result), built.result.state, 4, 0.9)
    assert "matplotlib.pyplot" not in sys.modules
