"""What a run comes to, in one line of JSON; a report reads it back."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a run prints as its last line on standard output (design: command contract).

    `status` is `done`, `not_converged` or `cached`.
    """

    url: str
    repo_id: str
    revision: str
    fingerprint: str
    status: str
    steps: int
    tokens: int
    seconds: float
    pass_seconds: float
    layers_converged: int
    layers_total: int
