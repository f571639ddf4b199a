"""Reading deltas, whether they lie in one file or in a set (spec sections 3.8 and 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sparsedelta.budgets import check_memory, check_work
from sparsedelta.closing import Closing
from sparsedelta.container import BlockRequest, DeltaFile, coded_part, open_file, read_blocks
from sparsedelta.delta import SPARSE_OPS, Delta, Part, TensorDelta, content_digest
from sparsedelta.digests import Digest
from sparsedelta.errors import DAMAGED, FormatError, UsageError
from sparsedelta.header import Header
from sparsedelta.hub.references import is_hub
from sparsedelta.limits import MEMORY_BUDGET_BYTES, WORK_BUDGET_BYTES
from sparsedelta.locations import FsspecFile, LocationLike, as_location
from sparsedelta.manifest import Manifest
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.sets import check_merged, open_parts
from sparsedelta.slices import TensorSlice, check_disjoint
from sparsedelta.table_rules import digest_problems
from sparsedelta.tables import Tables, TensorTable, touched_leaves
from sparsedelta.words import Indices, ReadWords, TensorSpec, Words


class DeltaReader(Closing):
    """A delta, lazily: a :class:`~sparsedelta.delta.Delta` whose entries are read on demand.

    Opening reads and checks headers and manifests (rules SD1xx, SD2xx and SD6xx), nothing else.

    Args:
        path: The delta, local or by URL: a file, the root of a set, or one part file by itself; or
            a repository on the Hub that holds one; or a file that fsspec has opened.
        ahead: Whether more of it will be read than some parts: where it is remote, blocks that
            follow one another are then read in one go. None: yes, but not of one on the Hub.

    Attributes:
        path: Where the delta file lies: a path, or a URL.
        header: Its header.
        manifest: Its manifest; of a set the root's, with the records of all part files.
        files: The files that hold records, each with a manifest of its own.

    Raises:
        FormatError: A rule is broken; ``rule`` says which.
        CheckpointError: The file cannot be read.
    """

    def __init__(self, path: LocationLike | FsspecFile, *, ahead: bool | None = None) -> None:
        with ExitStack() as stack:
            location = as_location(path)
            ahead = not is_hub(location) if ahead is None else ahead
            root = open_file(location, ahead=ahead)
            stack.callback(root.close)
            self.path = root.path
            self.header: Header = root.header
            self.manifest: Manifest = root.manifest
            self.root = root
            self.files: Sequence[DeltaFile] = (root,)
            if self.is_set:
                self.files = open_parts(root, ahead=ahead)
                for file in self.files:
                    stack.callback(file.close)
                merged = [record for file in self.files for record in file.manifest.tensors]
                check_merged(root, merged)
                merged.sort(key=lambda record: record.name)
                self.manifest = replace(root.manifest, tensors=tuple(merged))
            self._stack = stack.pop_all()
        self._homes = {r.name: file for file in self.files for r in file.manifest.tensors}

    @property
    def is_set(self) -> bool:
        """Whether this is the root of a set."""
        place = self.manifest.place
        return place is not None and place.is_root

    @property
    def is_part(self) -> bool:
        """Whether this is one part file of a set by itself."""
        return self.manifest.place is not None and not self.is_set

    @property
    def paths(self) -> tuple[Path, ...]:
        """All local files that are read."""
        found = dict.fromkeys((self.path, *(file.path for file in self.files)))
        return tuple(path for path in found if isinstance(path, Path))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files) + (self.root.size if self.is_set else 0)

    @cached_property
    def records(self) -> dict[str, TensorRecord]:
        """Records of the touched tensors, by name."""
        return {record.name: record for record in self.manifest.tensors}

    @cached_property
    def tables(self) -> Tables:
        """Digests and block tables; read and checked (rules SD3xx) at first use.

        Raises:
            FormatError: The first broken rule.
        """
        for problem in self.table_problems():
            raise problem
        return self._unchecked_tables

    @cached_property
    def _unchecked_tables(self) -> Tables:
        tensors: dict[str, TensorTable] = {}
        for file in self.files:
            tensors.update(file.tables.tensors)
        return Tables(self.root.tables.untouched, tensors)

    def table_problems(self) -> Iterator[FormatError]:
        """Every broken rule of SD303 to SD308; raises FormatError for SD301 and SD302."""
        for file in (self.root, *self.files) if self.is_set else self.files:
            yield from file.block_problems()
        for problem in digest_problems(self._unchecked_tables, self.manifest, is_part=self.is_part):
            problem.locate(self.path)
            yield problem

    def leaves(self, *, target: bool) -> dict[str, Digest]:
        """Tensor digests of an end by name; of a lean delta those of touched tensors only."""
        tables = self.tables
        return {**tables.untouched, **touched_leaves(tables, self.manifest, target=target)}

    @property
    def needs_base(self) -> bool:
        """Whether some of its entries can only be read with the base at hand."""
        return any(record.needs_base for record in self.manifest.tensors)

    def read_block(
        self,
        record: TensorRecord,
        number: int,
        block: int,
        *,
        base: Words | None = None,
        any_order: bool = False,
    ) -> tuple[Indices, Words]:
        """Decode one block of a part; see :meth:`read_blocks`."""
        request = BlockRequest(record, number, block, base)
        (found,) = self.read_blocks([request], any_order=any_order)
        return found

    def read_blocks(
        self, requests: Sequence[BlockRequest], *, any_order: bool = False
    ) -> list[tuple[Indices, Words]]:
        """Decode some blocks together; see :func:`sparsedelta.container.read_blocks`."""
        wanted = [(self.home(request.record), request) for request in requests]
        return read_blocks(wanted, any_order=any_order)

    def home(self, record: TensorRecord) -> DeltaFile:
        """The file that holds a record, after the checks of the tables."""
        self.tables  # noqa: B018 (lengths and counts must have been checked)
        return self._homes[record.name]

    def read_blob(self, number: int) -> bytes:
        """The content of a blob; see :meth:`DeltaFile.read_blob`."""
        self.tables  # noqa: B018
        return self.root.read_blob(number)

    def blocks(
        self,
        record: TensorRecord,
        number: int,
        start: int = 0,
        stop: int | None = None,
        base: ReadWords | None = None,
    ) -> Iterator[tuple[Indices, Words]]:
        """Blocks of a coded part that meet ``[start, stop)`` of its domain, whole.

        Args:
            record: The tensor.
            number: Number of the part.
            start: First word.
            stop: Word behind the last; by default that of the domain.
            base: Reads words that the part is applied to, verified; for encodings that need them.

        Yields:
            Indices within the domain, and values.
        """
        part = record.parts[number]
        if not isinstance(part, PartRecord):
            return
        size = 1 << part.block_log2
        stop = record.domain(number) if stop is None else stop
        domain = record.domain(number)
        for block in range(start // size, -(-stop // size) if start < stop else 0):
            first, last = block * size, min(block * size + size, domain)
            known = base(first, last) if base is not None and part.encoding.needs_base else None
            indices, words = self.read_block(record, number, block, base=known)
            yield indices + block * size, words

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
        check_memory(self.path, [record], budget)
        tensor = self._read_record(record)
        self._check_entries(tensor)
        return tensor

    def _check_entries(self, tensor: TensorDelta) -> None:
        made = tensor.parts[tensor.split :]
        indices = [part.indices for part in made if part.indices is not None]
        check_disjoint(self.path, tensor.name, indices)

    def _read_record(self, record: TensorRecord) -> TensorDelta:
        parts = tuple(self._read_part(record, number) for number in range(len(record.parts)))
        return TensorDelta(record.base, record.target, parts)

    def _read_part(self, record: TensorRecord, number: int) -> Part:
        part = record.parts[number]
        if not isinstance(part, PartRecord):
            return Part(part.op, None, None, part.reference)
        found = list(self.blocks(record, number))
        words = np.concatenate(
            [np.empty(0, f"<u{record.word_bytes(number)}"), *(words for _, words in found)]
        )
        if part.op not in SPARSE_OPS:
            return Part(part.op, None, words)
        indices = np.concatenate([np.empty(0, np.int64), *(indices for indices, _ in found)])
        return Part(part.op, indices, words, None, part.dtype, part.scale)

    def read(self, *, budget: int = MEMORY_BUDGET_BYTES) -> Delta:
        """The whole delta in memory, after every check of the specification but those of blobs.

        Args:
            budget: Bytes that its entries may take.

        Raises:
            FormatError: A rule is broken, or the budget is exceeded (SD504).
        """
        self.check_budget()  # reads the tables, and so checks them even if nothing is touched
        check_memory(self.path, self.manifest.tensors, budget)
        tensors: dict[str, TensorDelta] = {}
        contents: dict[str, bytes] = {}
        for file in self.files:
            records = file.manifest.tensors
            own = {record.name: self._read_record(record) for record in records}
            for tensor in own.values():
                self._check_entries(tensor)
            contents |= Delta(self.manifest.base, self.manifest.target, own, {}).contents
            self.check_content(file, contents)
            tensors |= own
        self.check_content(self.root, contents)
        return Delta(
            base=self.manifest.base,
            target=self.manifest.target,
            tensors={name: tensors[name] for name in self.records},
            metadata=self.manifest.metadata,
        )

    def rows(self, name: str, start: int, stop: int, base: ReadWords | None = None) -> TensorSlice:
        """What leads to rows of the target tensor: only the blocks that meet them are decoded.

        Args:
            name: A touched tensor of the target.
            start: First row: index of the first dimension.
            stop: Row behind the last.
            base: Reads words that the tensor's parts are applied to, verified; for a delta that
                is compact.

        Raises:
            UsageError: The target has no touched tensor of this name; the rows are out of range,
                or no whole number of words.
            FormatError: A rule of SD3xx or SD4xx is broken.
        """
        spec = self._target(name)
        rows = spec.shape[0] if spec.shape else 1
        if not 0 <= start <= stop <= rows:
            raise UsageError(f"rows {start} to {stop} of tensor {name!r}, which has {rows}")
        if rows and spec.words % rows:
            raise UsageError(f"the rows of tensor {name!r}, {spec}, are no whole words")
        width = spec.words // rows if rows else 0
        return self.slice(name, start * width, stop * width, base)

    def slice(self, name: str, start: int, stop: int, base: ReadWords | None = None) -> TensorSlice:
        """What leads to the words ``[start, stop)`` of the target tensor; see :meth:`rows`."""
        spec = self._target(name)
        if not 0 <= start <= stop <= spec.words:
            raise UsageError(f"words {start} to {stop} of tensor {name!r}, which has {spec.words}")
        record = self.records[name]
        given = record.given
        entries: list[Part] = []
        carried = np.empty(0, spec.word_dtype)
        for number in range(record.split, len(record.parts)):
            part = record.parts[number]
            if part.op in SPARSE_OPS:
                entries.append(self.entries_within(record, number, start, stop, base))
            elif isinstance(part, PartRecord) and stop > given:
                carried = self.read_carried(record, number, max(0, start - given), stop - given)
        if len(entries) > 1:
            check_disjoint(self.path, name, [e.indices for e in entries if e.indices is not None])
        return TensorSlice(spec, start, stop, given, tuple(entries), carried)

    def _target(self, name: str) -> TensorSpec:
        record = self.records.get(name)
        if record is None or record.target is None:
            what = "does not touch" if record is None else "drops"
            raise UsageError(
                f"{self.path} {what} a tensor {name!r}",
                hint="tensors that stay are read from the base: sparsedelta.read_rows(BASE, …)"
                if record is None
                else "sparsedelta info DELTA --tensors lists what becomes of each tensor",
            )
        return record.target

    def entries_within(
        self,
        record: TensorRecord,
        number: int,
        start: int,
        stop: int,
        base: ReadWords | None = None,
    ) -> Part:
        """The entries of a sparse part with indices in ``[start, stop)``."""
        part = record.parts[number]
        indices, words = [np.empty(0, np.int64)], [np.empty(0, f"<u{record.word_bytes(number)}")]
        stop = min(stop, record.domain(number))
        for found, values in self.blocks(record, number, start, stop, base):
            first, last = np.searchsorted(found, [start, stop])
            indices.append(found[first:last])
            words.append(values[first:last])
        coded = part if isinstance(part, PartRecord) else None
        return Part(
            part.op,
            np.concatenate(indices),
            np.concatenate(words),
            dtype=coded.dtype if coded else None,
            scale=coded.scale if coded else 1.0,
        )

    def read_carried(self, record: TensorRecord, number: int, start: int, stop: int) -> Words:
        """Words ``[start, stop)`` of the domain of a dense part that carries them."""
        pieces = [np.empty(0, record.changed(number).word_dtype)]
        part = coded_part(record, number)
        first = (start >> part.block_log2) << part.block_log2
        for _, words in self.blocks(record, number, start, stop):
            pieces.append(words[max(0, start - first) : stop - first])
            first += words.size
        return np.concatenate(pieces)

    def check_content(self, file: DeltaFile, contents: Mapping[str, bytes]) -> None:
        """Rule SD410: the content digest of a file follows from the entries.

        Args:
            file: The root, which speaks for all records, or a file that holds records.
            contents: What :func:`~sparsedelta.delta.tensor_content` gave, by name of the record.

        Raises:
            FormatError: It is another.
        """
        records = self.manifest.tensors if file is self.root else file.manifest.tensors
        own = {record.name: contents[record.name] for record in records}
        found = content_digest(self.manifest.base, self.manifest.target, own)
        if found != file.manifest.content:
            raise FormatError(
                "SD410",
                f"{file.path}: the content digest is {file.manifest.content}, {found} follows "
                "from the entries",
                hint=DAMAGED,
            )

    def check_budget(self, budget: int = WORK_BUDGET_BYTES) -> None:
        """Refuse to decode more than ``budget`` bytes without a base at hand.

        Raises:
            FormatError: Streams and blobs of the delta are longer than that (SD504).
        """
        self.tables  # noqa: B018
        needed = sum(file.decoded_bytes for file in {self.root, *self.files})
        check_work(self.path, needed, budget)

    def push_to_hub(self, repo: str, **options: Any) -> Any:  # noqa: ANN401 (those of push)
        """Push the delta to the Hub; see :func:`sparsedelta.push`."""
        # By name: what pushes stands on everything else, and this is only a door to it.
        return import_module("sparsedelta.hub.push").push(self, repo, **options)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
