"""Every error this project raises on purpose, grouped by what the caller would do next.

::

    SparseDeltaError
    ├── UsageError            ask differently                               exit 2
    ├── BusyError             let requests and switches take turns          exit 1
    ├── OutputError           make room, or choose another output           exit 1
    ├── CheckpointError       repair or replace the checkpoint              exit 1
    │   ├── DeltaGivenError   a delta was given in the place of a checkpoint
    │   ├── RemoteError       try again, or repair what the URL leads to    exit 1
    │   │   ├── NoAccessError check the URL and the credentials             exit 4
    │   │   └── HubError      what the Hub refuses or cannot give           exit 4
    │   └── UnfinishedError   end or undo the run in place that was interrupted
    ├── StructureError        the two checkpoints cannot be related         exit 1
    ├── FormatError           get the delta again: it breaks a rule         exit 3
    │   └── UnsupportedError  get a newer release: it needs a later version exit 3
    ├── NotFiniteError        the delta adds numbers this base cannot take  exit 3
    ├── NotInvertibleError    make the delta again without --one-way        exit 1
    ├── RankError             look at another rank's output, run it again   its exit code
    └── IdentityError         get the right base or delta                   exit 3
        ├── WrongBaseError    this checkpoint is not the delta's base
        └── VerificationError the result is not what the delta promises

A message says what, where (file, tensor), expected and found; ``hint`` names the command that
helps. ``code`` is stable and made for programs: it never changes its meaning.
"""

from __future__ import annotations

from typing import ClassVar, Final


def printable(line: str) -> str:
    """A line in which nothing commands a terminal: names and metadata may come from anyone."""
    if line.isprintable():
        return line
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
    )


class SparseDeltaError(Exception):
    """Base of every error of this project.

    Attributes:
        code: Stable identifier of the kind of error.
        exit_code: What the command line exits with.
        message: What happened, where, what was expected and what was found.
        hint: What to do about it, or None.
    """

    code: ClassVar[str] = "error"
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes whatever their constructors ask for.
        return _restore, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


def _restore(
    kind: type[SparseDeltaError], args: tuple[object, ...], state: dict[str, object]
) -> SparseDeltaError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(SparseDeltaError):
    """The request makes no sense: options that exclude each other, a value out of range."""

    code = "usage"
    exit_code = 2


class BusyError(SparseDeltaError):
    """The weights of a live model are in use, or are being changed, by another thread."""

    code = "busy"


class OutputError(SparseDeltaError):
    """The output cannot be written: it exists, the disk is full, the folder is read-only."""

    code = "output"


class CheckpointError(SparseDeltaError):
    """A checkpoint cannot be read: no such file, a malformed safetensors header, a short file."""

    code = "checkpoint"


class DeltaGivenError(CheckpointError):
    """A delta was given where a checkpoint is expected."""

    code = "delta-given"


class UnfinishedError(CheckpointError):
    """A run in place was interrupted: its journal must be settled before the files are used."""

    code = "unfinished"


class RemoteError(CheckpointError):
    """A checkpoint or delta cannot be read from its URL: no network, no package, it changed."""

    code = "remote"


class NoAccessError(RemoteError):
    """A URL leads to nothing, or to what may not be read."""

    code = "no-access"
    exit_code = 4


class HubError(RemoteError):
    """The Hub refuses a request, does not have what is asked for, or cannot be reached.

    The error of its client stays as ``__cause__``.

    Attributes:
        reason: Why, as a word: ``repository``, ``gated``, ``forbidden``, ``token``, ``disabled``,
            ``revision``, ``entry``, ``offline``, ``connection``, ``rate-limit``, ``server``,
            ``xet``, ``stale``, ``conflict``, ``corrupt`` or ``request``.
    """

    code = "hub"
    exit_code = 4

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class StructureError(SparseDeltaError):
    """Two checkpoints differ in names, dtypes or shapes in a way a delta cannot express."""

    code = "structure"


UPGRADE: Final = "install a newer release: pip install --upgrade sparsedelta"
DAMAGED: Final = "the file is damaged, or was written by a faulty tool: get it again"

_LAST_FOREIGN_RULE: Final = "SD104"
_FOREIGN: Final = (
    "is this a checkpoint, or another kind of file? A delta is made by: "
    "sparsedelta diff BASE TARGET -o DELTA"
)


class FormatError(SparseDeltaError):
    """A delta breaks a numbered rule of the specification.

    Attributes:
        rule: The code of the rule, such as ``SD403``.
        others: What else was found broken beside it.
    """

    code = "format"
    exit_code = 3

    def __init__(self, rule: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{rule}: {message}", hint=hint)
        self.rule = rule
        self.others: tuple[FormatError, ...] = ()

    @property
    def is_foreign(self) -> bool:
        """Whether the file is most likely of another kind, not a delta that is damaged."""
        return self.rule <= _LAST_FOREIGN_RULE

    def locate(self, path: object) -> None:
        """Name the file, for checks that see only bytes, and say what helps."""
        self.message = f"{self.rule}: {path}: {self.message.removeprefix(f'{self.rule}: ')}"
        self.args = (self.message,)
        if self.hint is None:
            self.hint = _FOREIGN if self.is_foreign else DAMAGED
        for other in self.others:
            other.locate(path)


class UnsupportedError(FormatError):
    """A delta needs a version, feature or codec that this release does not know."""

    code = "unsupported"


class IdentityError(SparseDeltaError):
    """A fingerprint is not the expected one.

    Attributes:
        rule: The code of the rule of the specification.
    """

    code = "identity"
    exit_code = 3
    rule: ClassVar[str] = "SD501"


class WrongBaseError(IdentityError):
    """The checkpoint is not the one that the delta starts from (rule SD501)."""

    code = "wrong-base"


class VerificationError(IdentityError):
    """The result does not have the digests that the delta promises (rule SD502)."""

    code = "verification"
    rule = "SD502"


class NotFiniteError(SparseDeltaError):
    """An ``add`` meets, or would give, a number that is not finite (rule SD505)."""

    code = "not-finite"
    exit_code = 3
    rule: ClassVar[str] = "SD505"


class NotInvertibleError(SparseDeltaError):
    """The delta holds no old words, so it cannot be reverted (rule SD503)."""

    code = "not-invertible"
    rule: ClassVar[str] = "SD503"


class RankError(SparseDeltaError):
    """Another process of an operation failed, was killed, or did not come.

    Attributes:
        exit_code: What that process exits with, as far as it is known, else 1.
    """

    code = "rank"

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
