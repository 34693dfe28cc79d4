"""The page's headline: what a sweep has found, a sentence each, as text."""

from eva_dist.render.words import amount, counted, listed, overlap, share, steps, times
from eva_dist.report.compare_points import Comparison, Effect, most_different
from eva_dist.report.point import FAILED, NOT_BEGUN, UNFINISHED
from eva_dist.report.settings import label, short, text


def title(found: Comparison) -> str:
    """Return what was swept, e.g. `Sweep over rho and tau: 12 points`."""
    over = listed([short(found.varied)[key] for key in found.varied])
    count = len(found.points)
    if over:
        return f"Sweep over {over}: {counted(count, 'point')}"
    return "Sweep of one point" if count == 1 else f"Sweep of {count} points with the same settings"


def trouble(found: Comparison) -> str | None:
    """Return how many points have no artifact, and why; None if all have one."""
    without = [point for point in found.points if point.artifact is None]
    if not without:
        return None
    kinds = {FAILED: "failed", UNFINISHED: "unfinished", NOT_BEGUN: "not begun"}
    count = {status: sum(point.status == status for point in without) for status in {p.status for p in without}}
    said = listed([f"{number} {kinds.get(status, 'artifact ' + status)}" for status, number in sorted(count.items())])
    return f"{len(without)} of {counted(len(found.points), 'point')} cannot be compared: {said}."


def findings(found: Comparison) -> list[str]:
    """Return the sentences, the most telling first; empty if there is nothing to compare."""
    sentences = [
        *_most_different_in_words(found),
        *(_effect_in_words(found, effect) for effect in found.effects),
        *_best_in_words(found),
    ]
    turning = [f for f in map(found.known, found.compared) if f.layers_converged < f.layers]
    if turning:
        most = max(figures.layers - figures.layers_converged for figures in turning)
        sentences.append(
            f"{counted(len(turning), 'point')} did not converge: up to {counted(most, 'layer')} still turned."
        )
    return sentences


def name(found: Comparison, place: int) -> str:
    """Return a point's number and what sets it apart."""
    point = found.points[place]
    called = label(point, found.varied)
    return called if called == f"point {point.number}" else f"point {point.number} ({called})"


def _most_different_in_words(found: Comparison) -> list[str]:
    pair = most_different(found)
    if pair is None:
        return []
    overlapping, equal = found.between(*pair)
    assert overlapping is not None
    if overlapping > 1 - 1e-6:
        return ["All points span the same subspaces."]
    return [
        f"{name(found, pair[0])} and {name(found, pair[1])} differ most: their subspaces overlap by "
        f"{overlap(overlapping)}, and {share(equal, 0)} of their layers have equal ranks.".replace("point", "Point", 1)
    ]


def _effect_in_words(found: Comparison, effect: Effect) -> str:
    """Return what going from the first to the last value of a setting costs and brings."""
    key = short(found.varied)[effect.key]
    before, after = effect.before, effect.after
    more = after.explained_variance - before.explained_variance
    gain = (
        f"leaves the explained variance at {share(before.explained_variance)}"
        if abs(more) < 5e-5
        else f"{'raises' if more > 0 else 'lowers'} the explained variance from {share(before.explained_variance, 2)} "
        f"to {share(after.explained_variance, 2)}"
    )
    cost = (
        f"takes as many steps ({steps(after.steps)})"
        if abs(after.steps - before.steps) < 0.05
        else f"takes {times(after.steps / before.steps)} the steps ({steps(before.steps)} to {steps(after.steps)})"
    )
    if abs(after.trainable_parameters - before.trainable_parameters) < 0.0005 * before.trainable_parameters:
        size = "at the same number of parameters"
    else:
        size = f"with {amount(before.trainable_parameters)} to {amount(after.trainable_parameters)} parameters"
    agreed = "" if effect.overlap is None else f"; the two overlap by {overlap(effect.overlap)}"
    mean = "" if effect.pairs == 1 else f" (means of {effect.pairs} pairs)"
    return f"{key} from {text(effect.low)} to {text(effect.high)} {cost} and {gain}, {size}{agreed}{mean}."


def _best_in_words(found: Comparison) -> list[str]:
    converged = [p for p in found.compared if found.known(p).layers_converged == found.known(p).layers]
    explained = [found.known(place).explained_variance for place in converged]
    if len(explained) < 2 or max(explained) - min(explained) < 5e-5:
        return []
    place = converged[explained.index(max(explained))]
    figures = found.known(place)
    sentence = (
        f"{name(found, place)} explains the most: {share(figures.explained_variance, 2)} of the variance with "
        f"{amount(figures.trainable_parameters)} parameters (of those that converged the least: "
        f"{share(min(explained), 2)})."
    )
    return [sentence.replace("point", "Point", 1)]
