"""One delta file: header and manifest at once, the rest on demand (spec section 3)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from sparsedelta.batches import together
from sparsedelta.closing import Closing
from sparsedelta.codecs import Block, CodedBlock, Encoding, StreamError
from sparsedelta.codecs.frames import FrameError, decode_frame
from sparsedelta.digests import plain_digest
from sparsedelta.errors import DAMAGED, CheckpointError, FormatError, StructureError
from sparsedelta.header import DATA, MANIFEST, TABLES, header_length, parse_header
from sparsedelta.hub.at_hand import delta_location
from sparsedelta.hub.references import is_hub
from sparsedelta.limits import MAX_JSON_INTEGER, MAX_MANIFEST_BYTES
from sparsedelta.locations import Location, LocationLike, as_location
from sparsedelta.manifest import parse_manifest
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.sources import Source, open_source
from sparsedelta.strict_json import parse_canonical
from sparsedelta.table_rules import block_problems
from sparsedelta.tables import (
    CHECKSUM_BYTES,
    PartTable,
    Tables,
    check_length,
    parse_tables,
    row,
)
from sparsedelta.words import Bytes, Indices, Words

_DIGITS: Final = len(str(MAX_JSON_INTEGER))
"""Digits of the largest number of the format; int() of thousands of them would be slow."""


class BlockRequest(NamedTuple):
    """A block of a delta that is to be decoded.

    Attributes:
        record: The tensor.
        number: Number of the part, a coded one.
        block: Number of the block.
        base: The base words of the block, verified; for encodings that need them.
    """

    record: TensorRecord
    number: int
    block: int
    base: Words | None = None


class DeltaFile(Closing):
    """A delta file by itself: all of a delta, or a file of a set.

    Opening reads and checks the header and the manifest (rules SD1xx and SD2xx), nothing else.

    Args:
        source: The file, open; closed with this, also if it is no delta.

    Attributes:
        path: Where it lies.
        header: Its header.
        manifest: Its manifest.

    Raises:
        FormatError: A rule is broken; ``rule`` says which.
        CheckpointError: The file cannot be read.
    """

    def __init__(self, source: Source) -> None:
        self.path = source.location
        self._file = source
        try:
            with located(self.path):
                size = self._file.size
                length = header_length(self._file.read(0, min(size, 8)), size)
                self.header = parse_header(self._file.read(8, length), size)
                self.manifest = parse_manifest(self._read_manifest(), self.header.metadata)
        except BaseException:
            self.close()
            raise

    def _read_tensor(self, name: str) -> bytes:
        start, end = self.header.ranges[name]
        return self._file.read(start, end - start)

    def _read_manifest(self) -> object:
        metadata = self.header.metadata
        digits = metadata["sd.manifest_size"]
        length = int(digits) if len(digits) <= _DIGITS else MAX_MANIFEST_BYTES + 1
        start, end = self.header.ranges[MANIFEST]
        if length > MAX_MANIFEST_BYTES or end - start > MAX_MANIFEST_BYTES:
            raise FormatError(
                "SD202",
                f"a manifest of {digits:.20} bytes, at most {MAX_MANIFEST_BYTES} are allowed",
            )
        frame = self._read_tensor(MANIFEST)
        if plain_digest(frame).hex() != metadata["sd.manifest"]:
            raise FormatError(
                "SD201", "sd.manifest does not have the digest that the header states"
            )
        try:
            text = decode_frame(frame, length).tobytes()
        except FrameError as error:
            raise FormatError("SD202", f"sd.manifest: {error}") from None
        try:
            return parse_canonical(text)
        except ValueError as error:
            raise FormatError("SD203", f"sd.manifest: {error}") from None

    @cached_property
    def tables(self) -> Tables:
        """Digests and block tables, not yet checked but for their length and digest.

        Raises:
            FormatError: SD301 or SD302.
        """
        with located(self.path):
            start, end = self.header.ranges[TABLES]
            check_length(self.manifest, end - start)
            return parse_tables(self._read_tensor(TABLES), self.manifest)

    def block_problems(self) -> Iterator[FormatError]:
        """Every broken rule of SD303 to SD305.

        Raises:
            FormatError: SD301 or SD302.
        """
        start, end = self.header.ranges[DATA]
        for problem in block_problems(self.tables, self.manifest, end - start):
            problem.locate(self.path)
            yield problem

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @cached_property
    def decoded_bytes(self) -> int:
        """Length of all streams and blobs, decoded; tables that passed SD3xx are truthful."""
        total = sum(blob.size for blob in self.manifest.attachments.blobs)
        for record in self.manifest.tensors:
            for number, _ in record.coded:
                total += int(self.tables.tensors[record.name].blocks(number).decoded.sum())
        return total

    def coded_block(self, request: BlockRequest, *, any_order: bool = False) -> CodedBlock:
        """The streams of a block, after their checks; the tables must have been checked.

        Args:
            request: The block.
            any_order: Whether the entries may come in any order, if that is faster.

        Raises:
            FormatError: SD401 or SD402.
        """
        record, number, block, base = request
        described = coded_part(record, number)
        table = self.tables.tensors[record.name].blocks(number)
        first = block << described.block_log2
        shape = Block(
            min(1 << described.block_log2, record.domain(number) - first),
            record.word_bytes(number),
            base=base,
            dtype=record.changed(number).dtype,
            start=first,
            any_order=any_order,
        )
        try:
            return CodedBlock(self._read_streams(table, block), int(table.counts[block]), shape)
        except StreamError as error:
            raise self.in_block(request, error) from None

    def check_block(self, record: TensorRecord, number: int, block: int) -> None:
        """Check all of a block that can be checked without the base words that decode it.

        Raises:
            FormatError: A rule of a block is broken.
        """
        request = BlockRequest(record, number, block)
        coded = self.coded_block(request)
        try:
            coded_part(record, number).encoding.check(coded)
        except StreamError as error:
            raise self.in_block(request, error) from None

    def read_stored(
        self, record: TensorRecord, number: int, block: int
    ) -> tuple[bytes, list[bytes]]:
        """A block as it is stored: its row of the block table, and its frames."""
        table = self.tables.tensors[record.name].blocks(number)
        frames = [bytes(frame) for frame in self._read_frames(table, block)]
        cells = zip(frames, table.decoded[block].tolist(), strict=True)
        return row(int(table.counts[block]), list(cells)), frames

    def in_block(self, request: BlockRequest, error: StreamError) -> FormatError:
        """The error of streams that break a rule, which says what block they are of."""
        record, number, block, _ = request
        return FormatError(
            error.rule,
            f"{self.path}: tensor {record.name!r}, {record.parts[number].op}, block {block}: "
            f"{error}",
            hint=DAMAGED,
        )

    def _read_streams(self, table: PartTable, block: int) -> list[Bytes]:
        frames = self._read_frames(table, block)
        try:
            return [
                decode_frame(frame, length)
                for frame, length in zip(frames, table.decoded[block].tolist(), strict=True)
            ]
        except FrameError as error:
            raise StreamError("SD402", str(error)) from None

    def _read_frames(self, table: PartTable, block: int) -> list[memoryview]:
        start, end = int(table.offsets[block]), int(table.offsets[block + 1])
        data = memoryview(self._file.read(self.header.ranges[DATA][0] + start, end - start))
        frames = []
        position = 0
        for stream, length in enumerate(table.encoded[block].tolist()):
            frame = data[position : position + length]
            position += length
            if plain_digest(frame)[:CHECKSUM_BYTES] != table.checksums[block, stream].tobytes():
                raise StreamError("SD401", f"stream {stream} has not the checksum of its table")
            frames.append(frame)
        return frames

    @cached_property
    def _blob_distances(self) -> list[int]:
        """For each blob, from its first byte to the end of the data."""
        lengths = [blob.nbytes for blob in reversed(self.manifest.attachments.blobs)]
        return list(accumulate(lengths))[::-1]

    def read_blob(self, number: int) -> bytes:
        """The content of a blob.

        Raises:
            FormatError: Its frame has another digest, or is broken (SD414).
        """
        start, end = self.header.ranges[DATA]
        first = end - self._blob_distances[number]
        blob = self.manifest.attachments.blobs[number]
        if first < start:  # the tables have been checked: SD305 has seen to this
            raise FormatError("SD305", f"{self.path}: blob {number} begins before the data")
        frame = self._file.read(first, blob.nbytes)
        where = f"{self.path}: blob {number}"
        if plain_digest(frame).hex() != blob.digest:
            raise FormatError("SD414", f"{where} has not the digest of the manifest", hint=DAMAGED)
        try:
            return decode_frame(frame, blob.size).tobytes()
        except FrameError as error:
            raise FormatError("SD414", f"{where}: {error}", hint=DAMAGED) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def coded_part(record: TensorRecord, number: int) -> PartRecord:
    """A part that carries something; TypeError if it is another."""
    described = record.parts[number]
    if not isinstance(described, PartRecord):
        raise TypeError(f"part {number} of {record.name!r} carries nothing")
    return described


def read_blocks(
    wanted: Sequence[tuple[DeltaFile, BlockRequest]], *, any_order: bool = False
) -> list[tuple[Indices, Words]]:
    """Decode blocks after all their checks, together as far as they are encoded alike.

    Args:
        wanted: The blocks and the files that they lie in, whose tables must have been checked.
        any_order: Whether the entries of a block may come in any order, if that is faster.

    Returns:
        Of each block indices relative to its first word, and values.

    Raises:
        FormatError: A rule of a block (SD401 to SD408, SD411 to SD413, SD417, SD418) is broken; of
            several blocks that break one it is the first that is told.
        StructureError: The encoding needs the base words, and none were given.
    """

    def decode(
        some: Sequence[tuple[DeltaFile, BlockRequest]],
    ) -> list[tuple[Indices, Words]]:
        alike: dict[Encoding, list[int]] = {}
        coded = []
        for number, (file, request) in enumerate(some):
            described = coded_part(request.record, request.number)
            if described.encoding.needs_base and request.base is None:
                raise needs_base(file.path, request.record, described)
            coded.append(file.coded_block(request, any_order=any_order))
            alike.setdefault(described.encoding, []).append(number)
        found: dict[int, tuple[Indices, Words]] = {}
        for encoding, numbers in alike.items():
            # Of several blocks this may name another than the one that is broken: then they are
            # decoded one by one, and it is not heard.
            file, request = some[numbers[0]]
            try:
                decoded = encoding.decode_all([coded[number] for number in numbers])
            except StreamError as error:
                raise file.in_block(request, error) from None
            found.update(zip(numbers, decoded, strict=True))
        return [found[number] for number in range(len(some))]

    return together(decode, wanted)


def needs_base(path: Location, record: TensorRecord, part: PartRecord) -> StructureError:
    """What is told of entries that only their base decodes, where there is none at hand."""
    return StructureError(
        f"{path}: tensor {record.name!r} is encoded with {part.encoding.describe()}, which is "
        "decoded with the base at hand",
        hint=f"sparsedelta recode {path} --base BASE --profile portable -o OUT makes it readable "
        "without",
    )


def open_file(path: LocationLike, *, ahead: bool = True) -> DeltaFile:
    """Open a delta file, local or by URL; raises as :class:`DeltaFile`.

    Args:
        path: The file; of a repository on the Hub its delta.
        ahead: Whether more of it will be read than some parts.
    """
    location = as_location(path)
    if is_hub(location):
        location = delta_location(location)
    # os.path does not raise on names that are too long.
    if isinstance(location, Path) and os.path.isdir(location):  # noqa: PTH112
        raise CheckpointError(
            f"{location} is a directory, expected a delta file",
            hint="a delta is one file, made by: sparsedelta diff BASE TARGET -o DELTA",
        )
    return DeltaFile(open_source(location, ahead=ahead))


@contextlib.contextmanager
def located(path: Location) -> Iterator[None]:
    """Name the file in an error of a check that was not told it."""
    try:
        yield
    except FormatError as error:
        error.locate(path)
        raise
