"""The rows of the page's tables: what settings change, what is shared."""

from eva_dist.render.words import amount, overlap, seconds, share, steps
from eva_dist.report.compare_points import Comparison, Effect
from eva_dist.report.settings import shared, short, text, whole_text


def effect_rows(found: Comparison) -> list[tuple[str, list[str]]]:
    """Return a row a varied setting: from its first value to its last, all else being equal."""
    names = short(found.varied)
    return [(names[effect.key], _effect_cells(effect)) for effect in found.effects]


def _effect_cells(effect: Effect) -> list[str]:
    before, after = effect.before, effect.after
    return [
        f"{text(effect.low)} → {text(effect.high)}",
        str(effect.pairs),
        _change_in_words(steps(before.steps), steps(after.steps)),
        _change_in_words(seconds(before.pass_seconds), seconds(after.pass_seconds)),
        _change_in_words(amount(before.trainable_parameters), amount(after.trainable_parameters)),
        _change_in_words(share(before.explained_variance, 2), share(after.explained_variance, 2)),
        overlap(effect.overlap),
        share(effect.equal_ranks, 0),
    ]


_TELLING = (
    *("model: id", "model: revision", "model: weights", "model.dtype", "model.config_overrides.num_hidden_layers"),
    *("data.path", "data: digest", "data: samples", "data.max_length", "data.step_size", "data.seed"),
    *("solver.name", "eva.r", "eva.rho", "eva.tau", "eva.whiten", "eva.target_modules", "eva.max_steps"),
)
"""Facts (of the manifests) and settings that a reader looks for first."""


def shared_facts(found: Comparison) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return what all points have in common: model, data and solver, then every other fact and setting."""
    facts = _stated_alike(found) | {key: whole_text(value) for key, value in shared(found.points).items()}
    telling = [(key, facts.pop(key)) for key in _TELLING if key in facts]
    return telling, list(facts.items())


def _stated_alike(found: Comparison) -> dict[str, str]:
    """Return the facts of the runs that all artifacts state alike."""
    facts = {}
    manifests = [point.artifact.manifest for point in found.points if point.artifact is not None]
    for group in ("model", "tokenizer", "data", "versions"):
        stated = [manifest.get(group) for manifest in manifests]
        of_first = stated[0] if stated and isinstance(stated[0], dict) else {}
        for key, value in of_first.items():
            if value is not None and all(isinstance(one, dict) and one.get(key) == value for one in stated):
                facts[f"{group}: {key}"] = whole_text(value)
    return facts


def _change_in_words(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
