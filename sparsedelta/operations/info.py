"""``info``: what a delta says of itself, from headers and manifests alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sparsedelta.delta import DROP, NEW, RESIZE, SPARSE_OPS
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.locations import LocationLike
from sparsedelta.manifest import COMPACT
from sparsedelta.open_delta import open_delta
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.words import TensorSpec


@dataclass(frozen=True, slots=True)
class EndInfo:
    """A tensor at one end: its name there, its dtype as safetensors writes it, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, spec: TensorSpec | None) -> EndInfo | None:
        """The end of a record, or None where the tensor is absent."""
        return None if spec is None else cls(spec.name, spec.dtype, spec.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A touched tensor.

    Attributes:
        name: Its name in the target, or in the base if it is dropped.
        kind: ``changed``, ``renamed``, ``resized``, ``new``, ``copied``, ``dropped`` or
            ``replaced`` (dropped, and another of its name made).
        base: The tensor in the base, or None.
        target: The tensor in the target, or None.
        words: Words that its entries lie among; 0 if it has none.
        nnz: Entries.
        carried: Words that are carried whole: of new and dropped tensors and rows.
        nbytes: Bytes of its streams in the file.
        encodings: Op, codecs and block size of each part.
    """

    name: str
    kind: str
    base: EndInfo | None
    target: EndInfo | None
    words: int
    nnz: int
    carried: int
    nbytes: int
    encodings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeltaInfo:
    """A delta, summed up.

    Attributes:
        path: The file.
        size: Bytes of all its files.
        version: Format version.
        profile: ``portable`` or ``compact``.
        base: Fingerprint of the base.
        target: Fingerprint of the target.
        content: Content digest.
        invertible: Whether it can be reverted.
        lost: What makes it impossible to revert: tensors whose old words are not stored.
        needs_base: Number of touched tensors whose entries can only be read with the base at hand.
        fallen_back: In the profile ``compact``, names of the touched tensors with entries that are
            stored as in ``portable``: their dtype is no 16-bit float, or nothing would be gained.
        lean: Whether the tensors that stay are left out.
        nnz: Entries.
        carried: Words that are carried whole.
        touched: Number of touched tensors.
        untouched: Number of tensors that stay, as far as the delta lists them.
        touched_words: Words of the tensors that have entries.
        touched_bytes: Bytes of the touched tensors, of the larger end.
        kinds: Number of touched tensors of each kind.
        files: Names of the carried files.
        layout: Checkpoint files of each end, as far as they are recorded.
        parts: Names of the part files, if the delta is a set.
        part: Number of the part file, if this is one; else None.
        metadata: Provenance, string to string.
        hints: Where the base can be had: ``base_repo``, ``base_revision``.
        tensors: The touched tensors.
    """

    path: str
    size: int
    version: str
    profile: str
    base: str
    target: str
    content: str
    invertible: bool
    lost: tuple[str, ...]
    needs_base: int
    fallen_back: tuple[str, ...]
    lean: bool
    nnz: int
    carried: int
    touched: int
    untouched: int
    touched_words: int
    touched_bytes: int
    kinds: Mapping[str, int]
    files: tuple[str, ...]
    layout: Mapping[str, tuple[str, ...]]
    parts: tuple[str, ...]
    part: int | None
    metadata: Mapping[str, str]
    hints: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]

    @property
    def bits_per_entry(self) -> float | None:
        """Bits of the whole delta per entry; None without an entry, or with words carried whole."""
        return 8 * self.size / self.nnz if self.nnz and not self.carried else None

    @property
    def density(self) -> float | None:
        """Share of the words of the tensors with entries that change; None if there is none."""
        return self.nnz / self.touched_words if self.touched_words else None


def info(delta: LocationLike | DeltaReader) -> DeltaInfo:
    """What a delta says of itself. Reads and checks headers and manifests, nothing else.

    Args:
        delta: The delta file.

    Raises:
        FormatError: A rule of SD1xx, SD2xx or SD6xx is broken.
        CheckpointError: The file cannot be read.
    """
    reader = open_delta(delta, whole=False)
    try:
        return _describe(reader)
    finally:
        if reader is not delta:
            reader.close()


def _describe(reader: DeltaReader) -> DeltaInfo:
    manifest = reader.manifest
    tensors = tuple(map(_tensor, manifest.tensors))
    prefix = "sd.base_"
    hints = {
        key.removeprefix("sd."): value
        for key, value in reader.header.metadata.items()
        if key.startswith(prefix)
    }
    layout = {
        end: tuple(file.name for file in found.files)
        for end, found in (manifest.attachments.layout or {}).items()
        if found is not None
    }
    place = manifest.place
    return DeltaInfo(
        path=str(reader.path),
        size=reader.size,
        version=manifest.version,
        profile=manifest.profile,
        base=manifest.base,
        target=manifest.target,
        content=manifest.content,
        invertible=manifest.invertible,
        lost=tuple(record.name for record in manifest.tensors if not record.invertible),
        needs_base=sum(record.needs_base for record in manifest.tensors),
        fallen_back=tuple(
            record.name
            for record in manifest.tensors
            if manifest.profile == COMPACT and record.nnz and not record.needs_base
        ),
        lean=manifest.lean,
        nnz=manifest.nnz,
        carried=sum(tensor.carried for tensor in tensors),
        touched=len(tensors),
        untouched=len(manifest.untouched),
        touched_words=sum(tensor.words for tensor in tensors),
        touched_bytes=sum(map(_larger_bytes, manifest.tensors)),
        kinds=record_kinds(manifest.tensors),
        files=tuple(file.name for file in manifest.attachments.files),
        layout=layout,
        parts=tuple(part.name for part in place.parts) if place else (),
        part=place.part if place and not place.is_root else None,
        metadata=manifest.metadata,
        hints=hints,
        tensors=tensors,
    )


def _larger_bytes(record: TensorRecord) -> int:
    return max(spec.nbytes for spec in (record.base, record.target) if spec is not None)


def _tensor(record: TensorRecord) -> TensorInfo:
    sparse = [number for number, part in record.coded if part.op in SPARSE_OPS]
    return TensorInfo(
        name=record.name,
        kind=record_kind(record),
        base=EndInfo.of(record.base),
        target=EndInfo.of(record.target),
        words=max((record.domain(number) for number in sparse), default=0),
        nnz=record.nnz,
        carried=record.carried,
        nbytes=record.nbytes,
        encodings=tuple(_parts(record)),
    )


def record_kinds(records: Iterable[TensorRecord]) -> dict[str, int]:
    """Number of records of each kind."""
    return dict(sorted(Counter(map(record_kind, records)).items()))


def record_kind(record: TensorRecord) -> str:
    """What becomes of a tensor, in a word; see :class:`TensorInfo`."""
    ops = [part.op for part in record.parts]
    if DROP in ops:
        return "dropped" if record.target is None else "replaced"
    if NEW in ops:
        return "new" if isinstance(record.parts[0], PartRecord) else "copied"
    if RESIZE in ops:
        return "resized"
    return "renamed" if record.renamed else "changed"


def _parts(record: TensorRecord) -> Iterator[str]:
    if record.renamed and record.base is not None:
        yield f"from {record.base.name}"
    for part in record.parts:
        if isinstance(part, PartRecord):
            yield f"{part.op}: {part.encoding.describe()}, blocks of 2^{part.block_log2}"
        elif part.reference is not None:
            yield f"{part.op} {'from' if part.op == NEW else 'to'} {part.reference}"
        else:
            yield f"{part.op}, words not stored"
