"""``apply`` and ``revert``: from one end of a delta to the other, verified bit for bit.

One pass over the checkpoint: each run of words is read, digested, changed, digested again and
written. Every segment is compared with the delta's digests before a block is decoded on top of it,
and every resulting segment before the output takes its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.container import DeltaReader, check_disjoint, open_delta
from sparsedelta.delta import Part
from sparsedelta.digests import Digest, segment_digest, tensor_digest
from sparsedelta.errors import NotInvertibleError, VerificationError, WrongBaseError
from sparsedelta.files import check_output, staged
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.manifest import TensorRecord
from sparsedelta.operations.identity import tensor_digests
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.words import Bytes, TensorSpec, Words, as_words

_NAMED_TENSORS: Final = 3
"""How many differing tensors an error names."""


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What apply or revert did.

    Attributes:
        fingerprint: Fingerprint of the output, verified.
        changed: Whether a word was changed; False if the input already was the wanted checkpoint.
        tensors: Number of tensors that were changed.
        nnz: Number of entries that were applied.
        nbytes: Bytes of all tensors of the output.
        left_behind: Files beside the weights that were not copied: other weights, or too large.
    """

    fingerprint: str
    changed: bool
    tensors: int
    nnz: int
    nbytes: int
    left_behind: Sequence[str]


def apply(
    base: str | Path,
    delta: str | Path | DeltaReader,
    out: str | Path,
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> ApplyReport:
    """Write the target of ``delta``: ``base`` with its changes, bit for bit.

    The output has the files, headers and tensor order of ``base``, and the small files beside its
    weights. A checkpoint that already is the target is copied.

    Args:
        base: The checkpoint the delta starts from: a file, a directory or an index.
        delta: The delta.
        out: The new checkpoint: a file if ``base`` is one, else a directory.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do and verify everything, write nothing.
        progress: Told how many bytes were done, and of how many.

    Raises:
        WrongBaseError: ``base`` is neither the base nor the target of the delta.
        VerificationError: The result is not the target: the delta lies about it.
        FormatError: The delta breaks a rule.
        CheckpointError: ``base`` cannot be read.
        OutputError: The output exists, or cannot be written.
    """
    return _transform(
        base,
        delta,
        out,
        reverse=False,
        threads=threads,
        force=force,
        dry_run=dry_run,
        progress=progress,
    )


def revert(
    target: str | Path,
    delta: str | Path | DeltaReader,
    out: str | Path,
    *,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> ApplyReport:
    """Write the base of ``delta``: ``target`` with its changes undone, bit for bit.

    Arguments and errors are those of :func:`apply`, with the ends exchanged.

    Raises:
        NotInvertibleError: The delta was written one-way.
    """
    return _transform(
        target,
        delta,
        out,
        reverse=True,
        threads=threads,
        force=force,
        dry_run=dry_run,
        progress=progress,
    )


def prove(
    base: str | Path,
    delta: str | Path | DeltaReader,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> ApplyReport:
    """Prove that applying ``delta`` to ``base`` gives its target, without writing anything.

    Arguments and errors are those of :func:`apply`.
    """
    return _transform(
        base,
        delta,
        None,
        reverse=False,
        threads=threads,
        force=False,
        dry_run=True,
        progress=progress,
    )


def _transform(
    source: str | Path,
    delta: str | Path | DeltaReader,
    out: str | Path | None,
    *,
    reverse: bool,
    threads: int | None,
    force: bool,
    dry_run: bool,
    progress: Progress,
) -> ApplyReport:
    with ExitStack() as stack:
        # The checkpoint first: exchanged arguments are then told as such.
        checkpoint = stack.enter_context(FileCheckpoint(source))
        reader = open_delta(delta)
        if reader is not delta:
            stack.enter_context(reader)
        if reverse and not reader.manifest.invertible:
            raise NotInvertibleError(
                f"{reader.path} was written one-way: it holds no old words",
                hint="make it again without --one-way: sparsedelta diff BASE TARGET -o DELTA",
            )
        if out is not None:
            out = Path(out)
            check_output(out, force=force, inputs=(checkpoint.path, reader.path))
            out = None if dry_run else out
        _check_structure(checkpoint, reader, reverse=reverse)
        pool = stack.enter_context(OrderedMap(threads))
        step = _Step.of(reader, reverse=reverse)
        changed = bool(reader.records)
        run = _Run(checkpoint, out, pool, progress)
        try:
            left_behind = run(step)
        except _DiffersError:
            # Before it is called wrong: is it already where the delta leads?
            found = tensor_digests(checkpoint, pool=pool)
            if found != step.result_leaves:
                raise _wrong_base(checkpoint, reader, found, step) from None
            changed = False
            left_behind = run(_Step.copy(reader, step))
        manifest = reader.manifest
        return ApplyReport(
            fingerprint=manifest.base if reverse else manifest.target,
            changed=changed,
            tensors=len(manifest.tensors) if changed else 0,
            nnz=manifest.nnz if changed else 0,
            nbytes=sum(spec.nbytes for spec in checkpoint.specs.values()),
            left_behind=left_behind,
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """One step along a delta: which tensors change, what is expected before, what after."""

    reader: DeltaReader
    records: Mapping[str, TensorRecord]
    source_leaves: Mapping[str, Digest]
    result_leaves: Mapping[str, Digest]
    reverse: bool

    @classmethod
    def of(cls, reader: DeltaReader, *, reverse: bool) -> _Step:
        ends = (reader.base_leaves, reader.target_leaves)
        source, result = reversed(ends) if reverse else ends
        return cls(reader, reader.records, source, result, reverse)

    @classmethod
    def copy(cls, reader: DeltaReader, step: _Step) -> _Step:
        """The step from the result of ``step`` to itself."""
        return cls(reader, {}, step.result_leaves, step.result_leaves, step.reverse)

    def segments(self, name: str) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        """Segment digests of a touched tensor: of the source, of the result."""
        table = self.reader.tables.tensors[name]
        ends = (table.base_segments, table.target_segments)
        return (ends[1], ends[0]) if self.reverse else ends

    def span_words(self, spec: TensorSpec) -> int:
        """Words that are worked on at a time: whole segments and whole blocks."""
        record = self.records.get(spec.name)
        blocks = (1 << part.block_log2 for part in record.parts) if record else ()
        return max(SEGMENT_WORDS, *blocks, 0)

    def change(self, spec: TensorSpec, start: int, data: Bytes) -> None:
        """Apply the blocks of ``[start, …)`` to ``data``, between the checks of both ends."""
        name, record = spec.name, self.records[spec.name]
        before, after = self.segments(name)
        first = start // SEGMENT_WORDS
        size = SEGMENT_WORDS * spec.word_bytes
        pieces = [data[at : at + size] for at in range(0, data.size, size)]
        if [segment_digest(piece.data) for piece in pieces] != list(
            before[first : first + len(pieces)]
        ):
            raise _DiffersError
        words = as_words(data, spec.word_bytes)
        parts = [
            part
            for number in range(len(record.parts))
            for part in self._parts(record, number, start, words)
        ]
        if len(record.parts) > 1:
            check_disjoint(self.reader.path, name, [part.indices for part in parts])
        for part in parts:
            part.apply(words)
        for offset, piece in enumerate(pieces):
            if segment_digest(piece.data) != after[first + offset]:
                raise VerificationError(
                    f"{self.reader.path}: tensor {name!r}: the result has not the digest that the "
                    f"delta promises for segment {first + offset} (SD502)",
                    hint="the delta is damaged or was written by a faulty tool: get it again, then "
                    f"sparsedelta validate {self.reader.path}",
                )

    def _parts(self, record: TensorRecord, number: int, start: int, words: Words) -> Iterator[Part]:
        described = record.parts[number]
        size = 1 << described.block_log2
        for block in range(start // size, -(-(start + words.size) // size)):
            first = block * size - start
            # On the way back the words at hand are the target's: they cannot stand in for the base.
            base = None if self.reverse else words[first : first + size]
            indices, values = self.reader.read_block(record, number, block, base=base)
            part = Part(described.op, indices + first, values)
            yield part.invert() if self.reverse else part


class _DiffersError(Exception):
    """A tensor of the checkpoint is not the one that the delta starts from."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Takes a checkpoint through a step, into an output that appears whole or not at all.

    Without an output everything is done and verified, and nothing written.
    """

    checkpoint: FileCheckpoint
    out: Path | None
    pool: OrderedMap
    progress: Progress

    def __call__(self, step: _Step) -> list[str]:
        if self.out is None:
            self._pass(step, None)
            return []
        with (
            staged(self.out, directory=self.checkpoint.is_directory) as work,
            CheckpointWriter(self.checkpoint, work) as writer,
        ):
            self._pass(step, writer)
            return writer.finish()

    def _pass(self, step: _Step, writer: CheckpointWriter | None) -> None:
        specs = [stored.spec for file in self.checkpoint.files for stored in file.layout.tensors]
        total = sum(spec.nbytes for spec in specs)
        done = 0

        def work(item: tuple[TensorSpec, int, int]) -> Digest | None:
            spec, start, stop = item
            data = self.checkpoint.read(spec.name, start, stop)
            digest = None
            if spec.name in step.records:
                step.change(spec, start, data)
            else:
                digest = segment_digest(data.data)
            if writer is not None:
                writer.write(spec.name, start, data)
            return digest

        results = self.pool.map(work, (item for spec in specs for item in _spans(step, spec)))
        for spec in specs:
            digests = []
            for _, start, stop in _spans(step, spec):
                digests.append(next(results))
                done += (stop - start) * spec.word_bytes
                self.progress(done, total)
            if spec.name not in step.records:
                found = tensor_digest(spec, [digest for digest in digests if digest is not None])
                if found != step.source_leaves[spec.name]:
                    raise _DiffersError


def _spans(step: _Step, spec: TensorSpec) -> Iterator[tuple[TensorSpec, int, int]]:
    size = step.span_words(spec)
    for start in range(0, spec.words, size):
        yield spec, start, min(start + size, spec.words)


def _check_structure(checkpoint: FileCheckpoint, reader: DeltaReader, *, reverse: bool) -> None:
    end = "target" if reverse else "base"
    leaves = {record.spec.name for record in reader.manifest.tensors}
    leaves.update(reader.manifest.untouched)
    missing = sorted(leaves - checkpoint.specs.keys())
    added = sorted(checkpoint.specs.keys() - leaves)
    hint = _identity_hint(checkpoint, reader)
    if missing or added:
        raise WrongBaseError(
            f"{checkpoint.location} is not the {end} of {reader.path} (SD501): "
            f"{_listed('missing', missing)}{'; ' if missing and added else ''}"
            f"{_listed('not in the delta', added)}",
            hint=hint,
        )
    for record in reader.manifest.tensors:
        found = checkpoint.specs[record.spec.name]
        if found != record.spec:
            raise WrongBaseError(
                f"{checkpoint.location} is not the {end} of {reader.path} (SD501): tensor "
                f"{record.spec.name!r} is {found}, expected {record.spec}",
                hint=hint,
            )


def _wrong_base(
    checkpoint: FileCheckpoint,
    reader: DeltaReader,
    found: Mapping[str, Digest],
    step: _Step,
) -> WrongBaseError:
    end = "target" if step.reverse else "base"
    expected = reader.manifest.target if step.reverse else reader.manifest.base
    differing = [name for name in found if found[name] != step.source_leaves[name]]
    return WrongBaseError(
        f"{checkpoint.location} is not the {end} of {reader.path} (SD501): expected fingerprint "
        f"{expected[:16]}…; {len(differing)} of {len(found)} tensors differ, the first is "
        f"{differing[0]!r}: expected digest {step.source_leaves[differing[0]].hex()[:16]}…, found "
        f"{found[differing[0]].hex()[:16]}…",
        hint=_identity_hint(checkpoint, reader),
    )


def _identity_hint(checkpoint: FileCheckpoint, reader: DeltaReader) -> str:
    metadata = reader.header.metadata
    repo = metadata.get("sd.base_repo")
    origin = f" (made from {repo}@{metadata.get('sd.base_revision', 'main')})" if repo else ""
    return (
        f"compare: sparsedelta info {reader.path}{origin}, and sparsedelta fingerprint "
        f"{checkpoint.location}"
    )


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(repr(name) for name in names[:_NAMED_TENSORS])
    return f"{len(names)} tensors {kind}: {shown}{', …' if len(names) > _NAMED_TENSORS else ''}"
