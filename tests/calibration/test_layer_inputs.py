"""The feed: the rows of a step, the same however they are forwarded, and nothing forwarded that no tap needs."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from eva_dist.calibration.layer_inputs import RowFeed, make_taps, probe_inputs
from eva_dist.config import DataConfig
from eva_dist.data import Batching, TokenStream, Window, WorkerStream, open_rows
from eva_dist.errors import LayerError
from eva_dist.modeling.forward import TokenForward, Trunk
from eva_dist.modeling.packing import Layout, attention_by_segment
from eva_dist.plan import make_layer, make_plan
from tests.tiny_run import VOCABULARY
from tests.toy import LAYERS, Block, D, Plainly, Steps, hooks, minibatch, toy_feed

CPU = torch.device("cpu")
ALL = (0, 1, 2)


def rows_of(feed, step, active=ALL):
    """Copies of what the feed hands over for a step, by group, in the order in which it came."""
    found = {}

    def take(group, x_TD):
        assert group not in found
        found[group] = x_TD.clone()

    ends = feed.rows(step, active, take)
    assert hooks(feed.model) == 0 and set(found) == set(active)
    return found, ends


def window(first, *minibatches):
    """Minibatches of `(step, place, rows)`; steps from `first` to the last one."""
    steps = range(first, 1 + max([step for some in minibatches for step, _, _ in some], default=first))
    places = tuple(tuple((step, place) for step, place, _ in some) for some in minibatches)
    return Window(steps, tuple(tuple(x for _, _, x in some) for some in minibatches), places, (0,) * len(steps))


SAMPLES = {(step, place): minibatch(10 * step + place, rows=3 + place) for step in range(3) for place in range(3)}


def expected_rows(step, active=ALL):
    """What each group's rows are, by a forward that is watched by other means."""
    model, x_TD = Block(), torch.cat([x for (at, _), x in SAMPLES.items() if at == step])
    with torch.no_grad():
        rows = {0: x_TD, 1: torch.relu(model.q(x_TD) + model.k(x_TD)), 2: x_TD}
    return {group: rows[group] for group in active}


def check_rows(found, expected):
    assert list(sorted(found)) == list(expected)
    for group, x_TD in expected.items():
        torch.testing.assert_close(found[group], x_TD, rtol=1e-6, atol=1e-6)


def test_a_window_of_many_steps_hands_each_its_rows_in_sample_order():
    """Three steps in two minibatches, samples in no order: two forwards serve them all."""
    order = [(1, 2), (0, 1), (2, 0), (1, 0), (0, 0), (2, 2), (0, 2), (1, 1), (2, 1)]
    cuts = [[(*at, SAMPLES[at]) for at in some] for some in (order[:5], order[5:])]
    forward, source = Plainly(Block()), Steps({0: window(0, *cuts)})
    feed = toy_feed(source, forward)
    for step in range(3):
        check_rows(rows_of(feed, step)[0], expected_rows(step))
    assert forward.forwarded == 2 and source.asked == [0]


def one_window(steps=(0, 1, 2)):
    return window(steps[0], [(step, place, SAMPLES[step, place]) for step in steps for place in range(3)])


def test_a_group_that_thaws_in_the_middle_of_a_window_gets_its_rows():
    """What was not tapped is forwarded again, for that group alone; what is held is not."""
    forward = Plainly(Block())
    feed = toy_feed(Steps({0: one_window()}), forward)
    check_rows(rows_of(feed, 0, (0, 2))[0], expected_rows(0, (0, 2)))
    entered = []
    forward.model.k.register_forward_pre_hook(lambda *_: entered.append("k"))  # before o, which thaws
    forward.model.o.register_forward_hook(lambda *_: entered.append("o"))
    found = {}
    feed.rows(1, (0, 1), lambda group, x_TD: found.__setitem__(group, x_TD))
    check_rows(found, expected_rows(1, (0, 1)))
    assert forward.forwarded == 2 and entered == ["k"]
    found.clear()
    feed.rows(2, ALL, lambda group, x_TD: found.__setitem__(group, x_TD))
    check_rows(found, expected_rows(2))  # held of both forwards
    assert forward.forwarded == 2


def test_a_step_may_be_asked_for_again_and_out_of_order():
    feed = toy_feed(Steps({0: one_window()}))
    for step in (0, 2, 0, 0, 1):
        check_rows(rows_of(feed, step)[0], expected_rows(step))


def test_windows_follow_one_another():
    source = Steps({0: one_window((0, 1)), 2: one_window((2,))})
    feed = toy_feed(source)
    for step in range(3):
        check_rows(rows_of(feed, step)[0], expected_rows(step))
    assert source.asked == [0, 2]


def test_epochs_and_the_end_of_the_data_are_told():
    some = replace(one_window((0, 1)), epochs=(0, 3))
    end = Window(range(2, 3), (), None, (4,), exhausted=True)
    feed = toy_feed(Steps({0: some, 2: end}))
    assert [rows_of(feed, step)[1] for step in (0, 1, 2)] == [(0, False), (3, False), (4, True)]


def feed_of(model, probed_with, source, **options):
    """A feed of the groups that a first minibatch shows, and those groups."""
    probe = probe_inputs(model, LAYERS, Plainly(model), [probed_with])
    plan = make_plan([make_layer(name, D, D, 2, 2.0) for name in LAYERS], probe.groups)
    taps = make_taps(plan.groups, probe, {name: name for name in LAYERS})
    return RowFeed(model, Plainly(model), source, taps, CPU, **options), [group.members for group in plan.groups]


def block(kind, dtype=torch.float32):
    """Its expert sees some rows only."""
    model = kind().to(dtype)
    model.threshold = 0.5
    return model


@pytest.mark.parametrize("empty", [Window(range(0, 1), (), None, (0,)), Window(range(0, 2), (), (), (0, 0))])
def test_a_worker_without_samples_has_no_rows(empty):
    feed, groups = feed_of(block(Block, torch.bfloat16), minibatch(0).bfloat16(), Steps({0: empty}))
    assert groups == [("q", "k"), ("o",), ("expert",)]
    found, _ = rows_of(feed, 0)
    assert all(x_TD.shape == (0, D) and x_TD.dtype is torch.bfloat16 for x_TD in found.values())
    assert feed.forward.forwarded == 0


class Choosy(Block):
    """The expert is entered only when some row is routed to it."""

    def forward(self, x_TD):
        routed_TD = x_TD[x_TD[:, 0] > self.threshold]
        if len(routed_TD):
            self.expert(routed_TD)
        return self.o(torch.relu(self.q(x_TD) + self.k(x_TD)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [True, False])
def test_an_expert_that_no_token_reaches_has_no_rows_and_holds_nobody_up(dtype, at_once):
    loud, quiet = minibatch(0).to(dtype), minibatch(1).to(dtype) - 100
    steps = Steps.one_by_one({0: [quiet], 1: [loud], 2: [quiet, loud, quiet]})
    feed, _ = feed_of(block(Choosy, dtype), loud, steps, consumed_at_once=at_once)
    assert feed.taps[2].calls == 1
    routed_TD = loud[loud[:, 0] > 0.5]
    for step, rows_TD in enumerate([loud[:0], routed_TD, routed_TD]):
        found, _ = rows_of(feed, step)
        assert found[2].dtype is dtype and torch.equal(found[2], rows_TD)
        assert torch.equal(found[0], torch.cat(steps.windows[step].minibatches))


class Chain(nn.Module):
    """Four layers, one after the other; `again` of them is entered twice."""

    def __init__(self, again=None, in_place=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(D, D) for _ in range(4)])
        self.again, self.in_place, self.hooked = again, in_place, []

    def forward(self, x_TD):
        x_TD = x_TD + 0.0
        for i, layer in enumerate(self.layers):
            self.hooked = [j for j, other in enumerate(self.layers) if other._forward_pre_hooks]
            y_TD = layer(x_TD)
            if i == self.again:
                y_TD = layer(y_TD.tanh())
            if self.in_place:
                x_TD.zero_()
            x_TD = y_TD
        return x_TD


def chain_feed(model, steps, may_cut=True, probed=None, **options):
    """A feed of the chain, whose group i is layer i; probed on `probed` if that is another model."""
    names = [f"layers.{i}" for i in range(4)]
    seen = probed or model
    probe = probe_inputs(seen, names, Plainly(seen, may_cut), [minibatch(0)])
    plan = make_plan([make_layer(name, D, D, 2, 2.0) for name in names], probe.groups)
    source = steps if isinstance(steps, Steps) else Steps.one_by_one(steps)
    taps = make_taps(plan.groups, probe, {name: name for name in names})
    return RowFeed(model, Plainly(model, may_cut), source, taps, CPU, **options)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("active", "ran"), [((0,), 0), ((0, 2), 2), ((2, 1), 2), ((3,), 3)])
def test_nothing_runs_after_the_last_active_tap_and_nothing_else_is_hooked(active, ran, at_once):
    model, executed = Chain(), []
    feed = chain_feed(model, {0: [minibatch(0), minibatch(1)]}, consumed_at_once=at_once)
    for i, layer in enumerate(model.layers):
        layer.forward = lambda x_TD, i=i, whole=layer.forward: (executed.append(i), whole(x_TD))[1]
    feed.rows(0, active, lambda group, x_TD: None)
    assert executed == [*range(ran)] * 2 and model.hooked == sorted(active)
    assert hooks(model) == 0


def test_what_may_not_be_cut_runs_to_its_end():
    model = Chain()
    feed = chain_feed(model, {0: [minibatch(0)]}, may_cut=False)
    assert feed.taps[0].calls == 0
    found, entered = {}, []
    model.layers[3].register_forward_hook(lambda *_: entered.append(3))
    feed.rows(0, (0,), lambda group, x_TD: found.__setitem__(group, x_TD))
    assert entered == [3] and torch.equal(found[0], minibatch(0))


def sorted_rows(x_TD):
    return x_TD[x_TD[:, 0].argsort()]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_layer_that_is_entered_twice_has_the_rows_of_both_entries(at_once):
    """However its samples are forwarded: alone, a whole step, several minibatches, several steps."""
    model = Chain(again=1)
    samples = {(step, place): minibatch(10 * step + place, 4) for step in range(2) for place in range(2)}
    cuts = {
        "a step": {
            s: Window(range(s, s + 1), (torch.cat([samples[s, 0], samples[s, 1]]),), None, (0,)) for s in (0, 1)
        },
        "samples": {s: window(s, *([(s, place, samples[s, place])] for place in (1, 0))) for s in (0, 1)},
        "two steps": {0: window(0, [(*at, x) for at, x in samples.items()])},
    }
    with torch.no_grad():
        first = {s: model.layers[0](torch.cat([samples[s, 0], samples[s, 1]])) for s in (0, 1)}
        expected = {s: torch.cat([x_TD, model.layers[1](x_TD).tanh()]) for s, x_TD in first.items()}
    for name, windows in cuts.items():
        feed = chain_feed(model, Steps(windows), consumed_at_once=at_once)
        assert [tap.calls for tap in feed.taps.values()] == [1, 2, 1, 1]
        for step in (0, 1):
            found, _ = rows_of(feed, step, (0, 1, 3))
            assert found[1].shape == expected[step].shape, name
            torch.testing.assert_close(sorted_rows(found[1]), sorted_rows(expected[step]), rtol=1e-5, atol=1e-6)
            assert len(found[0]) == len(found[3]) == 8


def test_a_layer_that_is_entered_more_often_than_at_first_is_refused():
    """Its rows may have been handed over already."""
    model = Chain(again=1)
    feed = chain_feed(model, {0: [minibatch(0)]}, probed=Chain())
    with pytest.raises(LayerError, match=r"layer layers\.1 was entered more often than the 1 times .*exclude_modules"):
        feed.rows(0, (0, 1, 3), lambda group, x_TD: None)
    assert hooks(model) == 0


@pytest.mark.parametrize("in_place", [True, False])
def test_views_that_are_consumed_at_once_hold_what_copies_hold(in_place):
    """Even where the model goes on to overwrite them; only a lone minibatch of one step is not copied."""
    viewed, shared = watched_rows(in_place, at_once=True)
    copied, never = watched_rows(in_place, at_once=False)
    assert shared == {0: {True}, 1: {False}} and never == {0: {False}, 1: {False}}
    assert len(viewed) == 8 and all(torch.equal(viewed[key], copied[key]) for key in viewed)


def watched_rows(in_place, at_once):
    """Rows by step and group of a chain, and whether they were the memory of a layer's own input."""
    model, inputs, found, shared = Chain(in_place=in_place), [], {}, {0: set(), 1: set()}
    feed = chain_feed(model, {0: [minibatch(0)], 1: [minibatch(1), minibatch(2)]}, consumed_at_once=at_once)
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))

    def take(step, group, x_TD):
        found[step, group] = x_TD.clone()
        shared[step].add(x_TD.data_ptr() in {kept.data_ptr() for kept in inputs})

    for step in shared:
        feed.rows(step, (0, 1, 2, 3), partial(take, step))
    return found, shared


def test_hooks_are_gone_when_the_model_or_the_taker_raises():
    model = Chain()
    feed = chain_feed(model, {0: [minibatch(0)], 1: [torch.randn(2, 5)]}, consumed_at_once=True)

    def refuse(group, x_TD):
        raise KeyError(group)

    with pytest.raises(KeyError):
        feed.rows(0, (0, 3), refuse)
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="shape"):
        feed.rows(1, (0, 3), lambda *_: None)
    assert hooks(model) == 0


PROBE_NAMES = [
    f"layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
]
BATCHINGS = {
    "a step a forward": Batching(),
    "four samples a forward": Batching(samples=4),
    "few tokens a forward": Batching(tokens=50),
    "three steps a forward": Batching(steps=3),
    "five steps, cut": Batching(steps=5, samples=7),
}


@pytest.fixture(scope="module")
def labelled_file(tmp_path_factory):
    """Prompts and answers of unlike lengths; the longest prompt fills its sample, so that no token of it counts."""
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    generator = torch.Generator().manual_seed(3)

    def words(count):
        return " ".join(VOCABULARY[i] for i in torch.randint(3, len(VOCABULARY), (count,), generator=generator))

    rows = [{"q": words(1 + 7 * (i % 4)) + " ", "text": words(1 + 5 * (i % 3))} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("use_label_mask", [True, False])
@pytest.mark.parametrize("layout", [Layout.segments, Layout.padded])
def test_every_batching_gives_a_step_the_same_rows(tiny_model, labelled_file, layout, use_label_mask):
    """On a Llama, against one forward a sample; with labels, tokens of the prompt do not count."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_model).eval()
    config = DataConfig(path=str(labelled_file), prompt_field="q", max_length=22, step_size=4)
    stream = TokenStream(open_rows(config), AutoTokenizer.from_pretrained(tiny_model), config, -100)
    forward = TokenForward(Trunk(model), CPU, use_label_mask, -100, layout)
    steps, active = range(0, 5), tuple(range(len(PROBE_NAMES)))

    def all_rows(batching):
        source = WorkerStream(stream, batching)
        probe = probe_inputs(model, PROBE_NAMES, forward, stream.window(0, Batching()).minibatches)
        plan = make_plan([make_layer(name, i, 8, 2, 2.0) for name, i in sizes], probe.groups)
        taps = make_taps(plan.groups, probe, {name: name for name in PROBE_NAMES})
        feed = RowFeed(model, forward, source, taps, CPU, consumed_at_once=True)
        return [rows_of(feed, step, active)[0] for step in steps]

    sizes = [(name, model.get_submodule(name).in_features) for name in PROBE_NAMES]
    with attention_by_segment(model, layout is Layout.segments):
        one_by_one = all_rows(Batching(samples=1))
        lengths = [len(found[0]) for found in one_by_one]
        assert min(lengths) > 0 and len(set(lengths)) > 1
        for name, batching in BATCHINGS.items():
            for found, expected in zip(all_rows(batching), one_by_one, strict=True):
                for group in active:
                    assert found[group].shape == expected[group].shape, name
                    difference = (found[group] - expected[group]).norm()
                    assert difference <= 1e-5 * expected[group].norm(), (name, group)


class Group:
    """A shard group whose busiest worker has `most` minibatches a window."""

    def __init__(self, most):
        self.most, self.idled, self.reached = most, 0, []

    def forwards(self, mine):
        return max(mine, self.most)

    def idle(self):
        self.idled += 1

    def through(self, taps):
        self.reached.append(set(taps))
        return nullcontext()


@pytest.mark.parametrize(("most", "idle"), [(0, 0), (2, 0), (3, 1), (5, 3)])
def test_a_worker_forwards_as_often_as_the_busiest_of_its_shard_group(most, idle):
    """Rows of idle forwards are nobody's; the group is asked once a window, with the taps that are active."""
    cuts = [[(0, place, SAMPLES[0, place])] for place in range(2)]
    forward, group = Plainly(Block()), Group(most)
    feed = toy_feed(Steps({0: window(0, *cuts)}), forward)
    feed.lockstep = group
    found, _ = rows_of(feed, 0, (0, 1))
    assert (forward.forwarded, group.idled) == (2, idle)
    assert group.reached == [{feed.taps[0].name, feed.taps[1].name}]
    assert found[0].shape[0] == sum(len(SAMPLES[0, place]) for place in range(2))


def test_a_worker_without_minibatches_still_forwards_with_its_shard_group():
    feed = toy_feed(Steps({0: window(0)}), Plainly(Block()))
    feed.lockstep = group = Group(2)
    found, _ = rows_of(feed, 0)
    assert group.idled == 2 and all(x_TD.shape == (0, D) for x_TD in found.values())
