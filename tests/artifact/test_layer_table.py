"""Ranks by layer, kind and block against layers whose numbers are known."""

import pytest

from eva_dist.artifact.layer_table import kinds_of, layers_of, rank_grid


def manifest(ranks, order=None):
    described = {
        name: {
            "rank": rank,
            "r": 4,
            "max_rank": 8,
            "in_features": 10,
            "out_features": 20,
            "updates": 3,
            "stop_reason": "converged",
        }
        for name, rank in sorted(ranks.items())
    }
    return {"layers": described, "decisive": {"layers": [[name, 4, 8] for name in order or ()]}}


RANKS = {f"h.{block}.{kind}": block + offset for block in range(12) for kind, offset in (("q", 0), ("up", 2))}
RATIOS = {name: [0.5, 0.25, 0.125] for name in RANKS}


def test_layers_are_in_model_order_with_or_without_it_in_the_manifest():
    model_order = list(RANKS)
    assert [layer.name for layer in layers_of(manifest(RANKS, model_order))] == model_order
    blocks = [layer.place.block for layer in layers_of(manifest(RANKS))]
    assert blocks == sorted(blocks) and blocks[-1] == 11


def test_kinds_sum_their_layers():
    layers = layers_of(manifest(RANKS, list(RANKS)), RATIOS)
    q, up = kinds_of(layers, RATIOS)
    assert (q.name, q.ranks, q.median_rank, q.parameters) == ("q", tuple(range(12)), 5.5, 66 * 30)
    assert up.ranks[0] == 2
    assert q.explained == pytest.approx((0 + 0.5 + 0.75 + 9 * 0.875) / 12)
    assert q.spectrum == (0.5, 0.25, 0.125)
    assert kinds_of(layers_of(manifest(RANKS)))[0].spectrum == ()


def test_the_grid_has_a_row_a_kind_and_a_column_a_block():
    ranks = {"h.0.q": 3, "h.2.q": 5, "h.2.up.0": 1, "h.2.up.1": 2, "head": 7}
    names, grid = rank_grid(layers_of(manifest(ranks, list(ranks))))
    assert grid == [[3, None, 5], [None, None, 1.5]]
    assert names == ["q", "up.*"] or names[0] == "q"


def test_a_block_of_a_number_that_no_model_has_is_not_drawn():
    assert rank_grid(layers_of(manifest({"h.999999999.q": 1}))) == ([], [])
