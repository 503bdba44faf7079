"""Errors of flows. Each message says what is wrong, what was got, what is wanted, and what to do.

FlowError(ValueError)
├── RunConfigError   a run file with an unknown key or an impossible value
├── ArtifactError    an artifact that is damaged or missing
├── DiskError        not enough room for what a step would write
└── ServerError      the orchestrator cannot be reached or does not start
"""

__all__ = ["ArtifactError", "DiskError", "FlowError", "RunConfigError", "ServerError"]


class FlowError(ValueError):
    """The root: whatever flows refuses is one of these."""


class RunConfigError(FlowError):
    """A run file with an unknown key or an impossible value."""


class ArtifactError(FlowError):
    """An artifact that is damaged or missing."""


class DiskError(FlowError):
    """Not enough room for what a step would write."""


class ServerError(FlowError):
    """The orchestrator cannot be reached or does not start."""
