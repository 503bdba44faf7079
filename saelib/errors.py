"""Errors of saelib. Each message says what is wrong, what was got, what is wanted, and what to do.

SAELibError(ValueError)
├── ConfigError        a setting that cannot work
├── ShapeError         tensors that do not fit each other
├── CorpusError        text that is missing, empty or unreadable
├── ModelError         a language model that cannot be loaded
│   └── SiteNotFound   a module path that the model does not have
├── ActivationError    NaN or Inf where a number is needed
├── DeviceError        a device that is lost, or too small for a single sequence
├── BatchTooLarge      more sequences at once than a device has memory for
└── CheckpointError    a file of weights that is damaged or incomplete
"""

__all__ = [
    "ActivationError",
    "BatchTooLarge",
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "DeviceError",
    "ModelError",
    "SAELibError",
    "ShapeError",
    "SiteNotFound",
]


class SAELibError(ValueError):
    """The root: whatever saelib refuses is one of these."""


class ConfigError(SAELibError):
    """A setting that cannot work."""


class ShapeError(SAELibError):
    """Tensors that do not fit each other."""


class CorpusError(SAELibError):
    """Text that is missing, empty or unreadable."""


class ModelError(SAELibError):
    """A language model that cannot be loaded."""


class SiteNotFound(ModelError):
    """A module path that the model does not have."""


class ActivationError(SAELibError):
    """NaN or Inf where a number is needed."""


class DeviceError(SAELibError):
    """A device that is lost, or too small for a single sequence."""


class BatchTooLarge(SAELibError):
    """More sequences at once than a device has memory for."""


class CheckpointError(SAELibError):
    """A file of weights that is damaged or incomplete."""
