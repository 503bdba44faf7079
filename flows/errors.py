"""Errors of flows. Each message says what is wrong, what was got, what is wanted, and what to do.

FlowError(ValueError)
├── RunConfigError   a run file with an unknown key or an impossible value
│   └── RecipeError  the same of a recipe, or of a site it names; also a ConfigError of saelib
├── ArtifactError    an artifact that is damaged or missing
├── DiskError        not enough room for what a step would write
├── WorkerError      a process that was lost while it worked on a shard, again and again
├── MatchError       two SAEs of which nothing can be compared
├── ServerError      the orchestrator cannot be reached or does not start
└── ExchangeError    an SAE that cannot be fetched, exported or pushed
"""

from saelib.errors import ConfigError

__all__ = [
    "ArtifactError",
    "DiskError",
    "ExchangeError",
    "FlowError",
    "MatchError",
    "RecipeError",
    "RunConfigError",
    "ServerError",
    "WorkerError",
]


class FlowError(ValueError):
    """The root: whatever flows refuses is one of these."""


class RunConfigError(FlowError):
    """A run file with an unknown key or an impossible value."""


class RecipeError(RunConfigError, ConfigError):
    """A recipe that cannot be trained, or a site that the language model does not have."""


class ArtifactError(FlowError):
    """An artifact that is damaged or missing."""


class DiskError(FlowError):
    """Not enough room for what a step would write."""


class WorkerError(FlowError):
    """A process was lost while it worked on a shard, again and again; or its own error could not be handed on."""


class MatchError(FlowError):
    """Nothing of two SAEs can be compared."""


class ServerError(FlowError):
    """The orchestrator cannot be reached or does not start."""


class ExchangeError(FlowError):
    """An SAE that cannot be fetched, exported or pushed."""
