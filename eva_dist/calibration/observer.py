"""Who watches a pass: one object, told of steps and of ends, in place of a callback for each."""

from eva_dist.calibration.controller import PointEnd
from eva_dist.calibration.pass_state import PassState


class PassObserver:
    """Told how a pass goes, in the driver's main thread; each method does nothing until a subclass says otherwise."""

    def on_step(self, state: PassState) -> None:
        """Take note of the state after a step."""

    def on_point_end(self, key: str, end: PointEnd) -> None:
        """Take the end of the point that a checkpoint knows by `key`, while the others go on."""
