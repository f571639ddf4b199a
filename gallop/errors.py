"""Every error that GaLLoP raises on purpose; each is also a ``SparseDeltaError``.

::

    SparseDeltaError
    └── GallopError
        ├── ConfigError      change a setting (also a ValueError)             exit 2
        ├── ParameterError   a parameter cannot be trained sparsely           exit 1
        ├── SelectionError   gradients or scores give no mask                 exit 1
        ├── MaskError        a mask is malformed or belongs to another model  exit 1
        ├── OptimizerError   the optimizer or its saved state does not fit    exit 1
        ├── DataError        training data cannot be read or used             exit 1
        ├── ModelError       a model or tokenizer cannot be loaded            exit 1
        ├── RunError         a run cannot go on from where it was saved       exit 1
        ├── NotFoundError    no such model on disk or Hub, or no access      exit 4
        ├── OutsideMaskError a weight outside the mask was changed            exit 3
        └── ExportError      the model cannot be related to its base          exit 1
"""

from __future__ import annotations

from sparsedelta.errors import SparseDeltaError

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "GallopError",
    "MaskError",
    "ModelError",
    "NotFoundError",
    "OptimizerError",
    "OutsideMaskError",
    "ParameterError",
    "RunError",
    "SelectionError",
]


class GallopError(SparseDeltaError):
    """Base of the errors of sparse fine-tuning."""

    code = "gallop"


class ConfigError(GallopError, ValueError):
    """A setting is out of range or of the wrong type."""

    code = "config"
    exit_code = 2


class ParameterError(GallopError):
    """A parameter cannot be trained sparsely: its dtype, layout, device or aliasing."""

    code = "parameter"


class SelectionError(GallopError):
    """No mask can be made: a non-finite gradient or score, no batch, nothing to choose from."""

    code = "selection"


class MaskError(GallopError):
    """A mask is malformed, or belongs to another model."""

    code = "mask"


class OptimizerError(GallopError):
    """The sparse optimizer cannot go on, or a saved state is not its own."""

    code = "optimizer"


class DataError(GallopError):
    """Training data cannot be read, parsed or used."""

    code = "data"


class ModelError(GallopError):
    """A model or its tokenizer cannot be loaded."""

    code = "model"


class RunError(GallopError):
    """A run cannot go on: its folder is damaged, or what it began with has changed."""

    code = "run"


class NotFoundError(GallopError):
    """There is no model at the given place, on disk or on the Hub, or no access to it."""

    code = "not-found"
    exit_code = 4


class ExportError(GallopError):
    """The trained model cannot be related to the base checkpoint."""

    code = "export"


class OutsideMaskError(GallopError):
    """A weight outside the mask differs from the base: the training was not what it claims."""

    code = "outside-mask"
    exit_code = 3
