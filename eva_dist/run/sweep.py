"""Many points from one stream of forwards: which can share it, one pass for those, each published as it ends."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from eva_dist.artifact.card.figures import prepare_to_draw
from eva_dist.calibration.controller import PointEnd, PointState
from eva_dist.calibration.observer import PassObserver
from eva_dist.calibration.pass_state import PassState
from eva_dist.cluster.attempts import run_on_gang
from eva_dist.cluster.checkpoint import CheckpointFolder
from eva_dist.cluster.place import open_place
from eva_dist.cluster.stop_request import StopRequest
from eva_dist.cluster.workers import Place
from eva_dist.config import ArtifactConfig, EvaConfig, Resume, SweepMode
from eva_dist.errors import ConfigError, EvaDistError, PreemptedError
from eva_dist.hashing import fingerprint
from eva_dist.run.observer import Answer, SweepObserver
from eva_dist.run.outcome import Outcome
from eva_dist.run.prepare import Prepared, assignment
from eva_dist.run.publish import answer, is_stored, outcome, publish
from eva_dist.store.durable_files import remove_older
from eva_dist.store.store import Published

_FORGOTTEN_S = 30 * 24 * 3600
"""Checkpoints that have lain so long are of runs that nobody goes on with."""


def compute_points(
    runs: Sequence[Prepared],
    started: float,
    observer: SweepObserver | None = None,
    stop: StopRequest | None = None,
) -> list[Answer]:
    """Answer every point from the store, or compute those that are left in as few passes as can be, and publish.

    Args:
        runs: the points, from `prepare`.
        started: `time.perf_counter()` when the whole sweep began.
        observer: told of steps and answers.
        stop: when made, a checkpoint is kept and the sweep ends.

    Returns:
        For each point its outcome, or the error that ended it; a point that fails costs no other.

    Raises:
        PreemptedError: `stop` was made.
    """
    sweep = _Sweep(runs, started, observer or SweepObserver(), stop or StopRequest())
    sweep.run()
    return [sweep.answers[point] for point in range(len(runs))]


def precompute(
    run: Prepared, started: float, observer: SweepObserver | None = None, stop: StopRequest | None = None
) -> Outcome:
    """Answer one run from the store, or compute it on a gang and publish: a sweep of a single point.

    Of several drivers in one cluster that ask for this run alone, one computes and the others wait for what it
    publishes. A sweep that has it among its points does not know of them: both compute, the first one publishes.

    Args:
        run: from `prepare`.
        started: `time.perf_counter()` when the whole run began.
        observer: told of steps and of the answer, as point 0.
        stop: when made, the run keeps a checkpoint and ends.

    Raises:
        NotConvergedError: `eva.max_steps` reached, and `eva.on_max_steps=error`.
        PreemptedError: `stop` was made.
        GangError, StoreError and what the pass refuses; nothing half-done is left.
    """
    (answer,) = compute_points([run], started, observer, stop)
    if isinstance(answer, Outcome):
        return answer
    raise answer


def passes(runs: Sequence[Prepared]) -> list[tuple[int, ...]]:
    """Group runs that can share their forwards; in each group the layers of the first one contain all others'.

    They have the same model, data, seeds, solver, cluster and store; what EVA is asked for may differ. How
    minibatches are laid out is found out once, for all layers of the pass.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for point, run in enumerate(runs):
        alike[_stream_key(run)].append(point)
    groups: list[tuple[int, ...]] = []
    for members in alike.values():
        nested: list[tuple[set[str], list[int]]] = []
        for point in sorted(members, key=lambda point: -len(runs[point].targets.layers)):  # stable: order is kept
            names = {layer.name for layer in runs[point].targets.layers}
            home = next((points for held, points in nested if names <= held), None)
            if home is None:
                nested.append((names, [point]))
            else:
                home.append(point)
        groups += [tuple(points) for _, points in nested]
    return groups


def same_names(runs: Sequence[Prepared]) -> dict[int, ConfigError]:
    """Return the points that ask for one name, and why they may not: the last would take it from the others."""
    names: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for point, run in enumerate(runs):
        if run.config.artifact.revision is not None:
            names[run.store.url, run.repo_id, run.config.artifact.revision].append(point)
    refused: dict[int, ConfigError] = {}
    for (_, _, revision), points in names.items():
        if len({runs[point].fingerprint for point in points}) > 1:
            wrong = f"artifact.revision={revision} is asked for by {len(points)} points of the sweep; "
            error = ConfigError(wrong + "leave it null, or make it part of what is swept")
            refused |= dict.fromkeys(points, error)
    return refused


class _Sweep:
    """The points of a sweep and their answers so far."""

    def __init__(self, runs: Sequence[Prepared], started: float, observer: SweepObserver, stop: StopRequest) -> None:
        self._runs = list(runs)
        self._started, self._stop, self.observer = started, stop, observer
        self.answers: dict[int, Answer] = {}

    def run(self) -> None:
        """Answer every point."""
        for point, error in same_names(self._runs).items():
            self.take(point, error)
        left = self._without_answer(range(len(self._runs)))
        groups = [tuple(left[at] for at in group) for group in passes([self._runs[point] for point in left])]
        for group in groups:
            self._name_companions(group)
        self._tell_names_apart()
        # names first: which point gets which default revision must not hang on what the store holds
        for group in groups:
            self._answer_from_store(group)
            if all(isinstance(self.answers.get(point), Outcome) for point in group):
                # checkpoints are of a driver that died between publishing and clearing
                self._checkpoint_folder(group, _pass_name([self._runs[point] for point in group])).clear()
        # one connection serves all groups that ask for the same cluster
        by_cluster: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for group in groups:
            if self._without_answer(group):
                by_cluster[repr(self._runs[group[0]].config.cluster)].append(group)
        for some in by_cluster.values():
            self._compute_groups(some)

    def _compute_groups(self, groups: Sequence[tuple[int, ...]]) -> None:
        """Compute groups on one cluster."""
        with self._failing_points(chain(*groups)), open_place(self._runs[groups[0][0]].config.cluster) as place:
            for group in groups:
                self._compute_group(group, place)

    def _compute_group(self, group: tuple[int, ...], place: Place) -> None:
        name = _pass_name([self._runs[point] for point in group])
        with self._failing_points(group), place.exclusive_run(name, self._stop):
            self._answer_from_store(group)  # another driver may have been here meanwhile
            if left := self._without_answer(group):
                self._run_pass(left, self._runs[group[0]], name, place)

    @contextmanager
    def _failing_points(self, points: Iterable[int]) -> Iterator[None]:
        """Let an error of what is done meanwhile end those of these points that have no answer yet, and no others."""
        try:
            yield
        except PreemptedError:
            raise
        except EvaDistError as error:
            for point in self._without_answer(points):
                self.take(point, error)

    def _run_pass(self, points: Sequence[int], stream: Prepared, name: str, place: Place) -> None:
        """Compute points that share the forwards of `stream`, and publish each while the others go on."""
        first = self._runs[points[0]]
        remove_older(first.store.checkpoints, _FORGOTTEN_S)
        checkpoints = self._checkpoint_folder(points, name)
        if first.config.resume is Resume.never:
            checkpoints.clear()
        of_key: dict[str, list[int]] = defaultdict(list)
        for point in points:
            of_key[self._runs[point].pass_key].append(point)
        computed = [self._runs[same[0]] for same in of_key.values()]
        metrics = {run.pass_key: place.metrics(run.fingerprint, run.repo_id) for run in computed}
        # without checkpoints, what a point came to is only in memory: then it is published come what may
        publishing = _Publishing(self, resumable=first.config.cluster.checkpoint_every > 0)
        with _scratch_folder(first) as scratch, publishing:
            run_on_gang(
                assignment(*computed, stream=stream),
                _PassWatch(self, of_key, metrics, publishing),
                place,
                checkpoints,
                self._stop,
                scratch,
            )
        if all(isinstance(self.answers[point], Outcome) for point in points):
            checkpoints.clear()  # else they stay: on_max_steps=accept goes on from them

    def publish(self, point: int, end: PointEnd) -> Answer:
        """Publish what a point has come to, and return its answer."""
        run = self._runs[point]
        if isinstance(end, EvaDistError):
            return end
        try:
            published = publish(run, end)
        except Exception as error:  # whatever it is, it is this point's alone
            return error
        return self._outcome_of(run, published, published.manifest["status"])

    def _outcome_of(self, run: Prepared, published: Published, status: str) -> Outcome:
        return outcome(published, run.repo_id, run.revision, status, time.perf_counter() - self._started)

    def take(self, point: int, answered: Answer) -> None:
        """Keep the answer of a point, and tell it."""
        self.answers[point] = answered
        self.observer.on_answer(point, answered)

    def _answer_from_store(self, points: Sequence[int]) -> None:
        """Answer from the store what it can answer."""
        if (
            len(points) > 1
            and self._shares_tracker(points)
            and not all(is_stored(self._runs[point]) for point in points)
        ):
            return  # the numbers of each hang on all of them: one that is missing needs them all
        for point in self._without_answer(points):
            run = self._runs[point]
            try:
                if (found := answer(run)) is not None:
                    self.take(point, self._outcome_of(run, found, "cached"))
            except EvaDistError as error:
                self.take(point, error)

    def _checkpoint_folder(self, points: Sequence[int], name: str) -> CheckpointFolder:
        run = self._runs[points[0]]
        return CheckpointFolder(run.store.checkpoints, name, run.config.cluster.keep_checkpoints)

    def _without_answer(self, points: Iterable[int]) -> list[int]:
        return [point for point in points if point not in self.answers]

    def _shares_tracker(self, points: Sequence[int]) -> bool:
        return self._runs[points[0]].config.sweep.mode is SweepMode.shared_tracker

    def _name_companions(self, group: Sequence[int]) -> None:
        """Make it part of a point's fingerprint with whom it shares its trackers: they decide its numbers."""
        companions = sorted({self._runs[point].pass_key for point in group})
        if not self._shares_tracker(group) or len(companions) == 1:
            return
        for point in group:
            run = self._runs[point]
            self._runs[point] = replace(run, decisive=run.decisive | {"shared_tracker": companions})

    def _tell_names_apart(self) -> None:
        """Let the first point that has a default name keep it, whichever ends first; others add their fingerprint."""
        holders: dict[tuple[str, str, str], str] = {}
        for point, run in enumerate(self._runs):
            name = (run.store.url, run.repo_id, run.revision)
            if run.config.artifact.revision is None and holders.setdefault(name, run.fingerprint) != run.fingerprint:
                self._runs[point] = replace(run, name_taken=True)


class _Publishing:
    """Publishes in a thread of its own, one after another; answers are taken in the main thread."""

    def __init__(self, sweep: _Sweep, resumable: bool) -> None:
        self._sweep = sweep
        self._resumable = resumable
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._under_way: dict[int, Future[Answer]] = {}
        self._pool.submit(prepare_to_draw)  # while workers load the model

    def __enter__(self) -> "_Publishing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # whoever asked the run to end does not wait for what a checkpoint holds as well
        self._pool.shutdown(wait=True, cancel_futures=self._resumable and isinstance(error, PreemptedError))
        self.drain()

    def add(self, point: int, end: PointEnd) -> None:
        """Publish a point when those before it are done."""
        self._under_way[point] = self._pool.submit(self._sweep.publish, point, end)

    def remove(self, end: PointEnd) -> None:
        """Remove the file that a result names, when all points that share it are published."""
        if not isinstance(end, EvaDistError) and end.covariance is not None:
            self._pool.submit(end.covariance.unlink)

    def drain(self) -> None:
        """Take the answers that are there."""
        for point, future in list(self._under_way.items()):
            if future.done():
                del self._under_way[point]
                if not future.cancelled():
                    self._sweep.take(point, future.result())


class _PassWatch(PassObserver):
    """Tells the points of a sweep what becomes of the pass that computes them; several may have one result."""

    def __init__(
        self,
        sweep: _Sweep,
        of_key: Mapping[str, Sequence[int]],
        metrics: Mapping[str, Callable[[PointState], None]],
        publishing: _Publishing,
    ) -> None:
        self._sweep, self._of_key, self._metrics, self._publishing = sweep, of_key, metrics, publishing

    def on_step(self, state: PassState) -> None:
        """Pass a step on to the points that took part in it, and take the answers that are there."""
        observer = self._sweep.observer
        observer.on_pass_step(state)
        for key, point, error in zip(state.plan.keys, state.points, state.errors, strict=True):
            if point.steps == state.steps and error is None:
                self._metrics[key](point)
                for each in self._of_key[key]:
                    observer.on_point_step(each, point)
        self._publishing.drain()

    def on_point_end(self, key: str, end: PointEnd) -> None:
        """Publish every point that has this result, and let go of its file when all have."""
        for point in self._of_key[key]:
            self._publishing.add(point, end)
        self._publishing.remove(end)


@contextmanager
def _scratch_folder(run: Prepared) -> Iterator[Path | None]:
    """Make a folder for what is summed up, as long as the points are being published; None if it is not kept."""
    if not run.config.solver.keep_covariance:
        yield None
        return
    with TemporaryDirectory(prefix="eva-dist-") as folder:
        yield Path(folder)


def _stream_key(run: Prepared) -> str:
    """Return what runs must have in common to share their forwards and SVDs."""
    config = run.config
    eva = EvaConfig(
        use_label_mask=config.eva.use_label_mask,
        label_mask_value=config.eva.label_mask_value,
        on_max_steps=config.eva.on_max_steps,
    )
    shared = replace(config, eva=eva, artifact=ArtifactConfig())
    return json.dumps([shared.to_dict(), run.prefix, run.task.value], sort_keys=True, default=repr)


def _pass_name(runs: Sequence[Prepared]) -> str:
    """Return what names a pass to others who want the same, and its checkpoints."""
    fingerprints = sorted({run.fingerprint for run in runs})
    return fingerprints[0] if len(fingerprints) == 1 else fingerprint({"points": fingerprints})
