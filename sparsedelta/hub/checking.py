"""Whether a delta that goes to the Hub or comes from it is valid, as far as can be shown here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import FormatError, SparseDeltaError, UsageError, WrongBaseError
from sparsedelta.hub.references import repository
from sparsedelta.locations import LocationLike, as_location
from sparsedelta.operations.apply import prove
from sparsedelta.operations.as_portable import portable
from sparsedelta.operations.validate import ValidationReport, validate
from sparsedelta.progress import Progress

NOT_HERE: Final = "which is not here"


def given_base(base: str | Path | None) -> tuple[Path | None, str | None]:
    """A base that lies here, or the name of a model, of what a user gives as a base."""
    if base is None or isinstance(base, Path):
        return base, None
    location = as_location(base)
    if isinstance(location, Path) and location.exists():
        try:
            repository(base, what="base")
        except UsageError:
            return location, None
        if location.is_file():  # a folder of a repository's name is not meant: ./ns/name is
            return location, None
    return None, base


@dataclass(frozen=True, slots=True)
class DeltaCheck:
    """How deltas are validated.

    Attributes:
        refused: What becomes of one that is not valid, for messages.
        hint: The remedy; None: the command that lists all problems.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes were validated, and of how many.
    """

    refused: str
    hint: str | None
    threads: int | None
    progress: Progress

    def refuse_invalid(self, delta: LocationLike, base: LocationLike | None) -> int:
        """Insist that a delta is valid.

        Args:
            delta: The delta.
            base: Its base, if that is at hand.

        Returns:
            Of how many tensors the entries were not read, as only the base decodes them.

        Raises:
            FormatError: It breaks a rule.
            WrongBaseError: ``base`` is not its base.
        """
        report = self._report(delta, base)
        self._refuse(report, base)
        return report.unread

    def refuse_with(self, delta: LocationLike, found: Path) -> tuple[int, bool]:
        """Insist that a delta is valid; with what may be its base, if it is.

        Args:
            delta: The delta.
            found: A checkpoint that nobody has vouched for.

        Returns:
            As :meth:`refuse_invalid`; and whether that is the base.

        Raises:
            FormatError: The delta breaks a rule.
        """
        try:
            report = self._report(delta, found)
        except SparseDeltaError:  # of the checkpoint, or it comes again
            return self.refuse_invalid(delta, None), False
        if report.problems and report.problems[0].rule == WrongBaseError.rule:
            return report.unread, False
        self._refuse(report, found)
        return report.unread, True

    def _report(self, delta: LocationLike, base: LocationLike | None) -> ValidationReport:
        return validate(delta, base=base, threads=self.threads, progress=self.progress)

    def _refuse(self, report: ValidationReport, base: LocationLike | None) -> None:
        if report.ok:
            return
        first = report.problems[0]
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        message = f"{first.message.removeprefix(f'{first.rule}: ')}{more}: {self.refused}"
        with_base = "" if base is None else f" --base {as_location(base)}"
        command = f"sparsedelta validate {report.path}{with_base}"
        if first.rule == WrongBaseError.rule:
            raise WrongBaseError(message, hint=f"name its base; {command} tells the same")
        raise FormatError(first.rule, message, hint=self.hint or f"{command} lists what is wrong")

    def refuse_links(self, links: Sequence[LocationLike], base: LocationLike) -> None:
        """Insist that the entries of a chain are valid, each link by itself being so.

        Args:
            links: The links, in order.
            base: Where the first one starts.

        Raises:
            FormatError: One breaks a rule.
            WrongBaseError: ``base`` is not where they start.
        """
        with ExitStack() as stack:
            readers = [stack.enter_context(DeltaReader(link)) for link in links]
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sparsedelta-")))
            # As portable deltas, which nobody gets, each has to have its content digest.
            stack.enter_context(
                portable(readers, base, folder, threads=self.threads, verb="validate")
            )

    def prove_chain(self, links: Sequence[LocationLike], base: LocationLike) -> None:
        """Insist that a chain leads from ``base`` to its target.

        Raises:
            WrongBaseError: ``base`` is not on it.
            VerificationError: A link lies about where it leads to.
        """
        prove(base, list(links), threads=self.threads, progress=self.progress)


def not_checked(unread: int, command: str, verb: str, why: str = NOT_HERE) -> str:
    """What is told of entries that were not read.

    Args:
        unread: Of how many tensors.
        command: What checks them.
        verb: What the user does: ``push`` or ``pull``.
        why: Why not.
    """
    return (
        f"the entries of {unread} tensors and the content digest were not checked: they are read "
        f"with the base, {why}; {command} checks them, and so does a {verb} with --base PATH"
    )
