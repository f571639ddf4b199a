"""How deltas are to be followed: to an output or in place, how far, by whom."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import UsageError
from sparsedelta.journal import Head
from sparsedelta.operations.history import DeltaLike, History, contiguous, open_all
from sparsedelta.operations.route import Route
from sparsedelta.operations.steps import Verify
from sparsedelta.progress import Progress
from sparsedelta.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Request:
    """How a delta is to be followed; the attributes are the arguments of :func:`apply`."""

    reverse: bool
    threads: int | None
    progress: Progress
    out: Path | None = None
    in_place: bool = False
    verify: Verify = "full"
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    with_files: bool = True
    cache: bool = True
    ranks: Ranks = ALONE
    to: str | None = None
    stream: bool = False
    undo: Path | None = None

    def __post_init__(self) -> None:
        if self.verify not in ("full", "touched"):
            raise UsageError(f"verify is {self.verify!r}, expected 'full' or 'touched'")
        if self.in_place and (self.out is not None or self.force):
            raise UsageError(
                "in place there is no output to name or to replace",
                hint="either --in-place, or -o OUT",
            )
        if self.ranks.size > 1 and (self.in_place or self.resume):
            raise UsageError(
                f"{self.ranks.size} ranks cannot share a run in place, nor one that is resumed",
                hint="run one process: without torchrun",
            )

    def is_continued(self, head: Head, deltas: Sequence[DeltaLike]) -> bool:
        """Whether a run that was interrupted is to be ended: the same one, if so.

        Raises:
            UsageError: It is another one.
        """
        if not (self.resume and self.in_place):
            return False
        with ExitStack() as stack:
            history = History(open_all(deltas, stack), reverse=self.reverse)
            # Where on a chain the run began only the journal knows any more.
            runs = contiguous(self.way(history, head.start))
            contents = [Route(run, reverse=self.reverse).content for run in runs]
        expected = contents[-1] if contents else "none"
        if head.content not in contents or (head.reverse, head.with_files) != (
            self.reverse,
            self.with_files,
        ):
            raise UsageError(
                f"the run that was interrupted is another one: sparsedelta {head.verb} with "
                f"{', '.join(head.deltas)}, content digest {head.content}, expected {expected}",
                hint="without --resume it is undone first",
            )
        return True

    def way(self, history: History, start: str | None = None) -> Sequence[DeltaReader]:
        """The deltas to follow; see :meth:`History.way` for what it raises."""
        return history.way(None if self.to is None else history.find(self.to), start)
