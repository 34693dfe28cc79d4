"""Everything that `eva_dist` raises on purpose.

    EvaDistError
    ├── ConfigError (ValueError)            a setting is out of range: exit code 2, before any actor starts
    │   ├── DataError                       the data that the settings name cannot be used
    │   └── DerivationError                 a stored artifact does not hold what these settings need
    ├── LayerError (ValueError)             the plan does not fit the model
    ├── StreamError (ValueError)            the minibatches cannot feed the statistics
    │   ├── EmptyStreamError                no minibatch, or no token that counts
    │   └── TooFewTokensError               no step ever has as many token rows as components
    ├── NonFiniteActivationsError (ValueError)  NaN or infinity among a layer's inputs
    ├── NotConvergedError                   `eva.max_steps` reached with layers still turning
    ├── GangError (RuntimeError)            the set of actors failed as one
    │   ├── PlacementError                  the cluster has no room for it
    │   │   └── ClusterBusyError            it has, but others hold it
    │   ├── WorkerFailedError               a worker raised
    │   ├── WorkerLostError                 a worker's process or node died
    │   └── GangTimeoutError                a worker did not answer in time
    ├── PreemptedError                      the run was asked to end (SIGTERM); its checkpoint is kept
    ├── JobServerError (RuntimeError)       a cluster's job server cannot be reached, or refuses
    └── StoreError (RuntimeError)           an artifact could not be written or read
        ├── ArtifactNotFoundError           nothing is published under that name
        └── IntegrityError                  a file differs from its manifest

Errors that a person can mend also derive from `ValueError`, so code written for
PEFT's `get_eva_state_dict` keeps catching them.
"""


class EvaDistError(Exception):
    """Base of every error raised on purpose; catch it to catch them all."""


class ConfigError(EvaDistError, ValueError):
    """A setting is wrong; the message names key, value, allowed range and remedy."""


class DataError(ConfigError):
    """The data that the settings name is missing, empty, or has no usable text."""


class DerivationError(ConfigError):
    """No artifact of these settings can be derived from a stored one; the message says what is missing."""


class LayerError(EvaDistError, ValueError):
    """The requested layers, ranks or callbacks do not fit the model."""


class StreamError(EvaDistError, ValueError):
    """The minibatches cannot feed the statistics."""


class EmptyStreamError(StreamError):
    """There is no minibatch, or a whole epoch holds no token that counts."""


class TooFewTokensError(StreamError):
    """A whole epoch went by and no step had as many token rows as components."""


class NonFiniteActivationsError(EvaDistError, ValueError):
    """A layer's inputs hold NaN or infinity; the message names layer and step."""


class NotConvergedError(EvaDistError):
    """`eva.max_steps` was reached while some layers had not converged."""


class GangError(EvaDistError, RuntimeError):
    """The gang failed or could not be started; no actor of the run is left."""


class PlacementError(GangError):
    """The cluster cannot hold the gang; the message says what was asked and what the cluster has."""


class ClusterBusyError(PlacementError):
    """The cluster could hold the gang, but others held its resources for `cluster.timeout_s`."""


class WorkerFailedError(GangError):
    """A worker raised; the message carries its own traceback."""


class WorkerLostError(GangError):
    """A worker's process died, or its node was lost."""


class GangTimeoutError(GangError):
    """A worker did not answer within `cluster.timeout_s`, or showed no sign of life for `cluster.heartbeat_s`."""


class PreemptedError(EvaDistError):
    """The run was asked to end (SIGTERM); the same command goes on from its last checkpoint."""


class JobServerError(EvaDistError, RuntimeError):
    """A cluster's job server cannot be reached, refuses us, or does not know the job."""


class StoreError(EvaDistError, RuntimeError):
    """An artifact could not be written or read; nothing half-written is left."""


class ArtifactNotFoundError(StoreError):
    """No artifact is published under that name."""


class IntegrityError(StoreError):
    """A file of an artifact is missing or differs from its manifest's sha256."""
