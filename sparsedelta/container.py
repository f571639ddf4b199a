"""Reading delta files: header and manifest at once, the rest on demand (spec section 3)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from sparsedelta.codecs import Block, StreamError
from sparsedelta.codecs.frames import FrameError, decode_frame
from sparsedelta.delta import (
    Delta,
    Part,
    TensorDelta,
)
from sparsedelta.digests import Digest, plain_digest
from sparsedelta.errors import DAMAGED, CheckpointError, FormatError, StructureError
from sparsedelta.files import InputFile
from sparsedelta.header import DATA, MANIFEST, TABLES, header_length, parse_header
from sparsedelta.limits import (
    MAX_JSON_INTEGER,
    MAX_MANIFEST_BYTES,
    MEMORY_BUDGET_BYTES,
    WORK_BUDGET_BYTES,
)
from sparsedelta.manifest import PartRecord, TensorRecord, parse_manifest
from sparsedelta.strict_json import parse_canonical
from sparsedelta.tables import (
    CHECKSUM_BYTES,
    PartTable,
    Tables,
    check_length,
    leaf_digests,
    parse_tables,
    table_problems,
)
from sparsedelta.words import Bytes, Indices, Words

_DIGITS: Final = len(str(MAX_JSON_INTEGER))
"""Digits of the largest number of the format; int() of thousands of them would be slow."""


class DeltaReader:
    """A delta file, lazily: a :class:`~sparsedelta.delta.Delta` whose entries are read on demand.

    Opening reads and checks the header and the manifest (rules SD1xx and SD2xx), nothing else.

    Args:
        path: The delta file.

    Attributes:
        path: The delta file.
        header: Its header.
        manifest: Its manifest.

    Raises:
        FormatError: A rule is broken; ``rule`` says which.
        CheckpointError: The file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if os.path.isdir(self.path):  # noqa: PTH112 (does not raise on names that are too long)
            raise CheckpointError(
                f"{path} is a directory, expected a delta file",
                hint="a delta is one file, made by: sparsedelta diff BASE TARGET -o DELTA",
            )
        self._file = InputFile(self.path)
        try:
            with _located(self.path):
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
        """Digests and block tables; read and checked (rules SD3xx) at first use.

        Raises:
            FormatError: The first broken rule.
        """
        tables = self._unchecked_tables
        for problem in self.table_problems():
            raise problem
        return tables

    @cached_property
    def _unchecked_tables(self) -> Tables:
        with _located(self.path):
            start, end = self.header.ranges[TABLES]
            check_length(self.manifest, end - start)
            return parse_tables(self._read_tensor(TABLES), self.manifest)

    def table_problems(self) -> Iterator[FormatError]:
        """Every broken rule of SD303 to SD307; raises FormatError for SD301 and SD302."""
        start, end = self.header.ranges[DATA]
        for problem in table_problems(self._unchecked_tables, self.manifest, end - start):
            problem.locate(self.path)
            yield problem

    @cached_property
    def base_leaves(self) -> dict[str, Digest]:
        """Tensor digests of the base, by name."""
        return leaf_digests(self.tables, self.manifest, target=False)

    @cached_property
    def target_leaves(self) -> dict[str, Digest]:
        """Tensor digests of the target, by name."""
        return leaf_digests(self.tables, self.manifest, target=True)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @cached_property
    def records(self) -> dict[str, TensorRecord]:
        """Records of the touched tensors, by name."""
        return {record.spec.name: record for record in self.manifest.tensors}

    def read_block(
        self, record: TensorRecord, part: int, block: int, *, base: Words | None = None
    ) -> tuple[Indices, Words]:
        """Decode one block, after all its checks.

        Args:
            record: The tensor.
            part: Number of the part.
            block: Number of the block.
            base: The base words of the block, verified; for encodings that need them.

        Returns:
            Indices relative to the block's first word, and values.

        Raises:
            FormatError: A rule of SD401 to SD408 is broken.
            StructureError: The encoding needs the base words, and none were given.
        """
        described = record.parts[part]
        if described.encoding.needs_base and base is None:
            raise StructureError(
                f"{self.path}: tensor {record.spec.name!r} is encoded with "
                f"{described.encoding.describe()}, which is decoded with the base at hand",
                hint=f"sparsedelta apply BASE {self.path} -o OUT",
            )
        table = self.tables.tensors[record.spec.name].parts[part]
        count = int(table.counts[block])
        first = block << described.block_log2
        size = min(1 << described.block_log2, record.spec.words - first)
        try:
            streams = self._read_streams(table, block)
            shape = Block(size, record.spec.word_bytes, base)
            return described.encoding.decode(streams, count, shape)
        except StreamError as error:
            raise FormatError(
                error.rule,
                f"{self.path}: tensor {record.spec.name!r}, {described.op}, block {block}: {error}",
                hint=DAMAGED,
            ) from None

    def _read_streams(self, table: PartTable, block: int) -> list[Bytes]:
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
        try:
            return [
                decode_frame(frame, length)
                for frame, length in zip(frames, table.decoded[block].tolist(), strict=True)
            ]
        except FrameError as error:
            raise StreamError("SD402", str(error)) from None

    def blocks(self, record: TensorRecord, part: int) -> Iterator[tuple[Indices, Words]]:
        """All blocks of a part, with flat indices of the tensor."""
        described = record.parts[part]
        for block in range(described.block_count(record.spec.words)):
            indices, words = self.read_block(record, part, block)
            yield indices + (block << described.block_log2), words

    def read_tensor(self, name: str, *, budget: int = MEMORY_BUDGET_BYTES) -> TensorDelta:
        """All that changes in one tensor, in memory.

        Args:
            name: Name of a touched tensor.
            budget: Bytes that its entries may take.

        Raises:
            KeyError: The delta does not touch a tensor of this name.
            FormatError: A rule of SD4xx is broken, or the budget is exceeded (SD504).
        """
        record = self.records[name]
        self._check_memory([record], budget)
        parts = tuple(
            self._read_part(record, number, part) for number, part in enumerate(record.parts)
        )
        check_disjoint(self.path, name, [part.indices for part in parts])
        return TensorDelta(record.spec, parts)

    def _read_part(self, record: TensorRecord, number: int, part: PartRecord) -> Part:
        indices = np.empty(part.nnz, np.int64)
        words = np.empty(part.nnz, record.spec.word_dtype)
        position = 0
        for block_indices, block_words in self.blocks(record, number):
            end = position + block_indices.size
            indices[position:end] = block_indices
            words[position:end] = block_words
            position = end
        return Part(part.op, indices, words)

    def _check_memory(self, records: Iterable[TensorRecord], budget: int) -> None:
        needed = sum(record.nnz * (8 + record.spec.word_bytes) for record in records)
        if needed > budget:
            raise FormatError(
                "SD504",
                f"{self.path}: the entries take {needed} bytes of memory, the budget is {budget}",
                hint="blocks() reads a part at a time; read(budget=…) allows more",
            )

    def read(self, *, budget: int = MEMORY_BUDGET_BYTES) -> Delta:
        """The whole delta in memory, after every check of the specification.

        Args:
            budget: Bytes that its entries may take.

        Raises:
            FormatError: A rule is broken, or the budget is exceeded (SD504).
        """
        self.check_budget()  # reads the tables, and so checks them even if nothing is touched
        self._check_memory(self.manifest.tensors, budget)
        delta = Delta(
            base=self.manifest.base,
            target=self.manifest.target,
            tensors={name: self.read_tensor(name, budget=budget) for name in self.records},
            metadata=self.manifest.metadata,
        )
        self.check_content(delta.content)
        return delta

    def check_disjoint(self, record: TensorRecord) -> None:
        """Rule SD409 for a whole tensor, a block at a time.

        Raises:
            FormatError: Two parts hold an index, or a block breaks a rule.
        """
        if len(record.parts) == 1:
            return
        # Blocks are aligned powers of two: the largest holds whole blocks of every part.
        largest = max(1 << part.block_log2 for part in record.parts)
        for start in range(0, record.spec.words, largest):
            stop = min(start + largest, record.spec.words)
            indices = []
            for number, part in enumerate(record.parts):
                size = 1 << part.block_log2
                blocks = range(start // size, -(-stop // size))
                found = [self.read_block(record, number, b)[0] + b * size for b in blocks]
                indices.append(np.concatenate(found))
            check_disjoint(self.path, record.spec.name, indices)

    def check_content(self, found: str) -> None:
        """Rule SD410: the content digest is the one that follows from the entries.

        Args:
            found: The digest that was computed from the decoded entries.

        Raises:
            FormatError: It is another one.
        """
        if found != self.manifest.content:
            raise FormatError(
                "SD410",
                f"{self.path}: the content digest is {self.manifest.content}, {found} follows from "
                "the entries",
                hint=DAMAGED,
            )

    def check_budget(self, budget: int = WORK_BUDGET_BYTES) -> None:
        """Refuse to decode more than ``budget`` bytes without a base at hand (SD504).

        Raises:
            FormatError: The streams of the delta are longer than that.
        """
        total = sum(
            int(part.decoded.sum())
            for table in self.tables.tensors.values()
            for part in table.parts
        )
        if total > budget:
            raise FormatError(
                "SD504",
                f"{self.path}: decoding needs {total} bytes, the budget without a base is {budget}",
                hint=f"sparsedelta validate {self.path} --base BASE",
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_disjoint(path: Path, name: str, indices: Sequence[Indices]) -> None:
    """Rule SD409: the parts of a tensor do not share an index."""
    merged = np.sort(np.concatenate(indices)) if len(indices) > 1 else np.empty(0, np.int64)
    both = merged[1:][merged[1:] == merged[:-1]]
    if both.size:
        raise FormatError(
            "SD409", f"{path}: tensor {name!r}: two parts hold index {both[0]}", hint=DAMAGED
        )


@contextlib.contextmanager
def _located(path: Path) -> Iterator[None]:
    """Name the file in an error of a check that was not told it."""
    try:
        yield
    except FormatError as error:
        error.locate(path)
        raise


def open_delta(delta: str | Path | DeltaReader) -> DeltaReader:
    """A reader of ``delta``, or ``delta`` itself if it is one.

    Raises:
        FormatError: A rule is broken.
        CheckpointError: The file cannot be read.
    """
    if isinstance(delta, DeltaReader):
        return delta
    return DeltaReader(delta)
