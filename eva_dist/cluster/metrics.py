"""What Ray's metrics show of a run: the dashboard's Prometheus endpoint has them as `ray_eva_dist_*`."""

from ray.util.metrics import Counter, Gauge, Histogram

from eva_dist.calibration.controller import PointState

_STEP_SECONDS = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class PassMetrics:
    """Call it with the state after each step, on the driver.

    Every metric carries the run's `fingerprint` (its first 16 digits) and `repo_id`.
    """

    def __init__(self, fingerprint: str, repo_id: str) -> None:
        tags = {"fingerprint": fingerprint[:16], "repo_id": repo_id}
        keys = tuple(tags)
        self._speed = Gauge("eva_dist_tokens_per_second", "Token rows a second, of the last step.", keys)
        self._converged = Gauge("eva_dist_layers_converged", "Layers that have converged.", keys)
        self._layers = Gauge("eva_dist_layers", "Target layers.", keys)
        self._steps = Gauge("eva_dist_steps", "SVD updates done.", keys)
        self._tokens = Counter("eva_dist_tokens_total", "Token rows that entered an SVD update.", keys)
        self._seconds = Histogram("eva_dist_step_seconds", "Seconds of a step.", _STEP_SECONDS, keys)
        for metric in (self._speed, self._converged, self._layers, self._steps, self._tokens, self._seconds):
            metric.set_default_tags(tags)
        self._before: tuple[int, float] | None = None

    def __call__(self, state: PointState) -> None:
        """Show the state; the first step after a resume or a recovery gives no speed."""
        before, self._before = self._before, (state.tokens, state.elapsed)
        if state.steps == 1:
            before = (0, 0.0)
        self._converged.set(state.layers_converged)
        self._layers.set(len(state.plan.layers))
        self._steps.set(state.steps)
        if before is None or state.tokens <= before[0] or state.elapsed <= before[1]:
            return
        tokens, seconds = state.tokens - before[0], state.elapsed - before[1]
        self._speed.set(tokens / seconds)
        self._tokens.inc(tokens)
        self._seconds.observe(seconds)
