"""Whether a delta may be pushed: it is valid, as far as what is at hand can show."""

from __future__ import annotations

from pathlib import Path

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import FormatError, UsageError, WrongBaseError
from sparsedelta.hub.base_check import BaseCheck
from sparsedelta.hub.references import repository
from sparsedelta.locations import LocationLike, as_location
from sparsedelta.operations.validate import validate
from sparsedelta.progress import Progress


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


def refuse_invalid(
    reader: DeltaReader, base: LocationLike | None, threads: int | None, progress: Progress
) -> int:
    """Insist that a delta is valid.

    Args:
        reader: The delta.
        base: Its base, if that is at hand.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes were validated, and of how many.

    Returns:
        Of how many tensors the entries were not read, as only the base decodes them.

    Raises:
        FormatError: It breaks a rule.
        WrongBaseError: ``base`` is not its base.
    """
    report = validate(reader.path, base=base, threads=threads, progress=progress)
    if report.ok:
        return report.unread
    first = report.problems[0]
    more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
    message = f"{first.message.removeprefix(f'{first.rule}: ')}{more}: it is not pushed"
    command = f"sparsedelta validate {reader.path}" + ("" if base is None else f" --base {base}")
    if first.rule == WrongBaseError.rule:
        raise WrongBaseError(message, hint=f"name its base; {command} tells the same")
    raise FormatError(first.rule, message, hint=f"{command} lists what is wrong")


def not_checked(reader: DeltaReader, unread: int, base: BaseCheck | None) -> str:
    """What is told of entries that were not read."""
    where = "BASE" if base is None else f"{base.repo}@{base.commit}"
    return (
        f"the entries of {unread} tensors and the content digest were not checked: they are read "
        f"with the base, which is not here; sparsedelta validate {reader.path} --base {where} "
        "checks them, and so does a push with --base PATH"
    )
