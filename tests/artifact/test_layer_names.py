"""Block and kind of a layer, from the names that real architectures have."""

import pytest

from eva_dist.artifact.layer_names import Place, block_grid, kinds_in_order, places, ranks_by_kind


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.layers.3.self_attn.q_proj"], [(3, "q_proj")]),
        (["transformer.h.0.attn.c_attn", "transformer.h.11.mlp.c_fc"], [(0, "c_attn"), (11, "c_fc")]),
        (
            ["encoder.layer.2.attention.output.dense", "encoder.layer.2.output.dense", "pooler.dense"],
            [(2, "attention.output.dense"), (2, "output.dense"), (None, "pooler.dense")],
        ),
        (
            ["encoder.block.1.layer.0.SelfAttention.q", "decoder.block.4.layer.0.SelfAttention.q"],
            [(1, "encoder q"), (4, "decoder q")],
        ),
        (
            ["model.layers.5.mlp.experts.7.up_proj", "model.layers.5.mlp.experts.8.up_proj"],
            [(5, "up_proj"), (5, "up_proj")],
        ),
        (["layers.5.mlp.experts.7.up", "layers.5.mlp.up"], [(5, "mlp.experts.*.up"), (5, "mlp.up")]),
        (["0", "2"], [(0, "(block)"), (2, "(block)")]),
        (["lm_head"], [(None, "lm_head")]),
    ],
)
def test_places(names, expected):
    assert list(places(names).values()) == [Place(block, kind) for block, kind in expected]


def test_stacks_where_one_path_begins_like_the_other():
    names = ["model.layers.0.q", "model.vision.layers.0.q"]
    assert len({place.kind for place in places(names).values()}) == 2


def test_ranks_by_kind_keeps_the_order_of_the_layers():
    names = ["h.0.z", "h.0.a", "h.1.z", "h.1.a"]
    by_name = places(names)
    assert kinds_in_order(by_name) == ["z", "a"]
    assert list(ranks_by_kind(by_name, dict(zip(names, [3, 1, 2, 0], strict=True))).items()) == [
        ("z", [2, 3]),
        ("a", [0, 1]),
    ]


def test_a_grid_has_a_row_a_kind_and_a_column_a_block_that_is_there():
    values = {"h.0.q": 3, "h.2.q": 5, "h.2.experts.0.up": 1, "h.2.experts.1.up": 2, "head": 7}
    inside = block_grid(places(list(values)))
    assert (inside.kinds, inside.blocks) == (("q", "up"), (0, 2))
    assert inside.means(values) == [[3, 5], [None, 1.5]]
    assert inside.means({"h.2.experts.1.up": 2}) == [[None, None], [None, 2]]  # only layers that have a value count
    whole = block_grid(places(list(values)), outside=True)
    assert (whole.kinds, whole.blocks) == (("q", "up", "head"), (0, 2, None))
    assert whole.means(values)[2] == [None, None, 7]


def test_a_number_of_thousands_of_digits_is_no_block():
    assert places([f"h.{'9' * 5000}.q"])[f"h.{'9' * 5000}.q"].block is None
