"""Every error this project raises on purpose.

ManifoldError
├── InputError         what the user named cannot be used: a path, an encoder, an option
├── ShapeError         tensors whose shapes do not fit
├── NonFiniteError     NaN or infinity in data
├── NotPSDError        a covariance with negative variance
├── NotFittedError     asked before the statistics exist
├── FormatError        a file that is damaged, cut off or of another schema
├── MismatchError      two sound parts that do not belong together (encoder, width, model)
├── TooManyRejectsError  more unusable images than the caller allows
├── StorageError       the disk is full, or a folder cannot be written
├── MissingExtraError  an optional package is not installed
└── WorkerDiedError    a decoding process was killed (defined in `index.images`)

Messages say what must hold, what came, and what to do. The command line turns these, and only these, into one
sentence; anything else is a bug and keeps its traceback.
"""

__all__ = [
    "FormatError",
    "InputError",
    "ManifoldError",
    "ManifoldWarning",
    "MismatchError",
    "MissingExtraError",
    "NonFiniteError",
    "NotFittedError",
    "NotPSDError",
    "ShapeError",
    "StorageError",
    "TooManyRejectsError",
    "first_line",
]


class ManifoldError(Exception):
    """Base of all errors that this project raises on purpose."""


class InputError(ManifoldError, ValueError):
    """A path, name or option given by the user cannot be used."""


class ShapeError(ManifoldError, ValueError):
    """Tensors whose shapes do not fit each other."""


class NonFiniteError(ManifoldError, ValueError):
    """NaN or infinity where only finite numbers make sense; the message names the row."""


class NotPSDError(ManifoldError, ValueError):
    """A covariance with negative variance."""


class NotFittedError(ManifoldError, RuntimeError):
    """Statistics were asked for before they were estimated."""


class FormatError(ManifoldError, ValueError):
    """A file is damaged, cut off or of another schema; the message names the file."""


class MismatchError(ManifoldError, ValueError):
    """Two sound parts that do not belong together."""


class TooManyRejectsError(ManifoldError, RuntimeError):
    """More unusable images than `max_rejects` allows."""


class StorageError(ManifoldError, OSError):
    """The disk is full, or a file or folder cannot be written."""


class MissingExtraError(ManifoldError, ImportError):
    """An optional package is not installed; the message names the extra."""


class ManifoldWarning(UserWarning):
    """A repair or a doubt that the user should know of, with its amount."""


def first_line(error: Exception) -> str:
    """The first line of what another library's error says, for a sentence of ours; its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
