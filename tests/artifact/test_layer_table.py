"""Ranks by layer, kind and block against layers whose numbers are known."""

import numpy as np
import pytest

from eva_dist.artifact.layer_table import described_layers, layer_rows, module_kinds, rank_grid
from eva_dist.artifact.tables import KEPT, LAST_STEP, RATIO, Spectrum
from eva_dist.errors import IntegrityError


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


def spectrum_with(ranks):
    """Three components of each layer, of which as many are kept as its rank says."""
    names = list(ranks)
    columns = {
        RATIO: np.tile([0.5, 0.25, 0.125], len(names)),
        KEPT: np.concatenate([np.arange(3) < rank for rank in ranks.values()]).astype(float),
        LAST_STEP: np.full(3 * len(names), 6.0),
    }
    return Spectrum(names, np.repeat(np.arange(len(names)), 3), columns)


SPECTRUM = spectrum_with(RANKS)


def test_layers_are_in_model_order_with_or_without_it_in_the_manifest():
    model_order = list(RANKS)
    assert [layer.name for layer in described_layers(manifest(RANKS, model_order))] == model_order
    blocks = [layer.place.block for layer in described_layers(manifest(RANKS))]
    assert blocks == sorted(blocks) and blocks[-1] == 11


def test_kinds_sum_their_layers():
    layers = described_layers(manifest(RANKS, list(RANKS)), SPECTRUM)
    assert {layer.steps_to_converge for layer in layers} == {7}
    q, up = module_kinds(layers, SPECTRUM)
    assert (q.name, q.ranks, q.median_rank, q.parameters) == ("q", tuple(range(12)), 5.5, 66 * 30)
    assert up.ranks[0] == 2
    assert q.explained == pytest.approx((0 + 0.5 + 0.75 + 9 * 0.875) / 12)
    assert q.spectrum == (0.5, 0.25, 0.125)
    assert module_kinds(described_layers(manifest(RANKS)))[0].spectrum == ()


def test_the_grid_has_a_row_a_kind_and_a_column_a_block():
    ranks = {"h.0.q": 3, "h.2.q": 5, "h.2.up.0": 1, "h.2.up.1": 2, "head": 7}
    names, grid = rank_grid(described_layers(manifest(ranks, list(ranks))))
    assert grid == [[3, None, 5], [None, None, 1.5]]
    assert names == ["q", "up.*"] or names[0] == "q"


def test_a_block_of_a_number_that_no_model_has_is_not_drawn():
    assert rank_grid(described_layers(manifest({"h.999999999.q": 1}))) == ([], [])


def test_one_reader_shows_what_the_other_refuses():
    odd = manifest({"h.10.q": 4, "h.2.q": 2}) | {"decisive": {"layers": [["h.10.q"], [3], "h.2.q", []]}}
    odd["layers"]["h.2.q"] |= {"rank": 4.0, "max_rank": -1, "stop_reason": 3}
    odd["layers"] |= {"h.1.q": "seven"}
    rows = layer_rows(odd)
    assert [row.name for row in rows] == ["h.10.q", "h.1.q", "h.2.q"]  # as `decisive` has them, then by number
    assert (rows[0].rank, rows[2].rank, rows[2].max_rank, rows[2].stop_reason) == (4, None, None, None)
    assert (rows[0].parameters, rows[1].parameters) == (120, None)
    with pytest.raises(IntegrityError, match=r"layer 'h.1.q' is not described \(its rank is missing"):
        described_layers(odd)
    assert layer_rows({"layers": [1]}) == layer_rows({}) == ()
    with pytest.raises(IntegrityError, match="does not describe layers"):
        described_layers({"layers": [1]})
