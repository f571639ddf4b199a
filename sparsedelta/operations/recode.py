"""``recode``: the same delta in the other profile, with its base at hand; nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final

from sparsedelta.attachments import CarriedEnd, CarriedFile, Layout, LayoutEnd
from sparsedelta.checkpoint import CheckpointReader, check_unchanged, open_checkpoint
from sparsedelta.closing import Closing
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.encode import EncodedPart
from sparsedelta.errors import DAMAGED, FormatError, UsageError
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.manifest import COMPACT, PROFILES, Manifest
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.origins import Origins
from sparsedelta.operations.parts import divide_records
from sparsedelta.operations.recoding import BaseWords, RecordRecoder
from sparsedelta.operations.standpoint import refuse_part
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.records import TensorRecord
from sparsedelta.writer import DeltaWriter

_NOTHING: Final[Mapping[int, EncodedPart]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RecodeReport:
    """What recode wrote.

    Attributes:
        manifest: Manifest of the delta.
        size: Bytes of the delta, also of one that a dry run did not keep.
        before: Bytes of the delta that was read.
        fallen_back: Touched tensors that the profile ``compact`` holds as ``portable`` does, since
            that takes no more bytes, or since their dtype has no exponents of 16-bit floats.
    """

    manifest: Manifest
    size: int
    before: int
    fallen_back: tuple[str, ...] = ()


def recode(
    delta: LocationLike | DeltaReader,
    base: LocationLike | CheckpointReader,
    out: LocationLike,
    *,
    profile: str,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> RecodeReport:
    """Write a delta in another profile: the same content digest, other bytes.

    Of a delta that this library wrote with its default settings and the same zstd, going to the
    other profile and back gives the same file.

    Args:
        delta: The delta: a file, or the root of a set; the result has as many files.
        base: Its base. The segments are verified that are needed.
        out: The delta to write.
        profile: ``portable`` or ``compact``.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes of tensors were worked through, and of how many.

    Raises:
        UsageError: An unknown profile.
        WrongBaseError: ``base`` differs where the delta needs it.
        FormatError: The delta breaks a rule.
        CheckpointError: ``base`` cannot be read.
        OutputError: The output exists, or cannot be written.
    """
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}, expected {' or '.join(PROFILES)}")
    path = output_path(out)
    with ExitStack() as stack:
        reader = open_delta(delta)
        if reader is not delta:
            stack.callback(reader.close)
        refuse_part(reader)
        checkpoint = open_checkpoint(at_named_commit(base, [reader]))
        if checkpoint is not base:
            stack.callback(checkpoint.close)
        inputs = (*reader.paths, *checkpoint.paths)
        check_output(path, force=force, inputs=inputs)
        pool = stack.enter_context(OrderedMap(threads))
        origins = Origins(checkpoint, reader)
        written = stack.enter_context(
            RecodedDelta(
                reader, origins, path, profile=profile, pool=pool, inputs=inputs, force=force
            )
        )
        total, done = sum(written.sizes.values()), 0
        for name, record in reader.records.items():
            written.add(record)
            done += written.sizes[name]
            progress(done, total)
        check_unchanged(checkpoint)
        return written.finish(dry_run=dry_run)


class RecodedDelta(Closing):
    """A delta that is being written in another profile, record by record.

    Leaving the context without :meth:`finish` leaves nothing.

    Args:
        reader: The delta.
        origins: The words that its parts are applied to.
        out: The delta to write.
        profile: Its profile.
        pool: Where blocks are decoded and encoded, many at a time.
        inputs: Files that are not overwritten.
        force: Replace an existing output.
    """

    def __init__(
        self,
        reader: DeltaReader,
        origins: BaseWords,
        out: Path,
        *,
        profile: str,
        pool: OrderedMap,
        inputs: Sequence[Path] = (),
        force: bool = False,
    ) -> None:
        manifest, hints = reader.manifest, reader.header.metadata
        self.sizes = {
            name: max(end.nbytes for end in (record.base, record.target) if end is not None)
            for name, record in reader.records.items()
        }
        self._reader = reader
        self._recode = RecordRecoder(reader, origins, pool, profile)
        self._fallen_back: list[str] = []
        self._profile = profile
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(
            DeltaWriter(
                out,
                metadata=manifest.metadata,
                base_repo=hints.get("sd.base_repo"),
                base_revision=hints.get("sd.base_revision"),
                profile=profile,
                lean=manifest.lean,
                plan=_plan(reader, self.sizes),
                force=force,
                ends=(manifest.base, manifest.target) if manifest.lean else None,
                inputs=inputs,
            )
        )
        for name, digest in reader.tables.untouched.items():
            self._writer.add_untouched(name, digest)

    def part(self, record: TensorRecord, number: int) -> EncodedPart:
        """A part of a record, to be given to :meth:`add`; raises as that."""
        return self._recode.part(record, number)

    def add(self, record: TensorRecord, made: Mapping[int, EncodedPart] = _NOTHING) -> None:
        """Write a record; they come in any order.

        Args:
            record: The record.
            made: Those of its parts that have been made already, by their numbers.

        Raises:
            WrongBaseError: The words at hand are not those of the base.
            FormatError: The delta breaks a rule.
        """
        tensor = self._recode(record, made)
        self._writer.add(tensor)
        if self._profile == COMPACT and not tensor.record.needs_base:
            self._fallen_back.append(record.name)

    def finish(self, *, dry_run: bool = False) -> RecodeReport:
        """Write all else, once every record has been added.

        Raises:
            FormatError: The content digest does not follow from the entries (SD410).
            OutputError: The output exists, or cannot be written.
        """
        layout, files = _attachments(self._reader, self._writer)
        self._writer.attach(layout, files)
        written = self._writer.finish(
            dry_run=dry_run, check=lambda made: _check_content(self._reader, made)
        )
        return RecodeReport(written, self._writer.size, self._reader.size, tuple(self._fallen_back))

    def close(self) -> None:
        """Leave nothing behind of what was not finished."""
        self._stack.close()


def _check_content(reader: DeltaReader, made: Manifest) -> None:
    if made.content != reader.manifest.content:
        raise FormatError(
            "SD410",
            f"{reader.path}: the content digest is {reader.manifest.content}, {made.content} "
            "follows from the entries",
            hint=DAMAGED,
        )


def _plan(reader: DeltaReader, sizes: Mapping[str, int]) -> dict[str, int] | None:
    """The part file of each record: that of the delta, if the records of each follow each other."""
    if not reader.is_set:
        return None
    homes = {r.name: n for n, file in enumerate(reader.files) for r in file.manifest.tensors}
    plan = {name: homes[name] for name in sizes}
    if all(before <= after for before, after in pairwise(plan.values())):
        return plan
    return divide_records(sizes, len(reader.files))


def _attachments(
    reader: DeltaReader, writer: DeltaWriter
) -> tuple[Layout | None, tuple[CarriedFile, ...]]:
    found = reader.manifest.attachments
    blobs = [writer.blob(reader.read_blob(number)) for number in range(len(found.blobs))]

    def end(each: LayoutEnd | None) -> LayoutEnd | None:
        if each is None:
            return None
        files = tuple(replace(file, header=blobs[file.header]) for file in each.files)
        return LayoutEnd(files, each.index and (each.index[0], blobs[each.index[1]]))

    def carried(each: CarriedEnd | None) -> CarriedEnd | None:
        if each is None or each.blob is None:
            return each
        return replace(each, blob=blobs[each.blob])

    layout = found.layout and {key: end(each) for key, each in found.layout.items()}
    files = tuple(CarriedFile(f.name, carried(f.base), carried(f.target)) for f in found.files)
    return layout, files
