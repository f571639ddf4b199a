"""``info``: what a delta says of itself, from its header and manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.container import DeltaReader, open_delta
from sparsedelta.limits import FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A touched tensor.

    Attributes:
        name: Its name.
        dtype: Its dtype, as safetensors writes it.
        shape: Its shape.
        words: Its number of words.
        nnz: Entries.
        nbytes: Bytes of its streams in the file.
        encodings: Op, codecs and block size of each part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    words: int
    nnz: int
    nbytes: int
    encodings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeltaInfo:
    """A delta, summed up.

    Attributes:
        path: The file.
        size: Its bytes.
        version: Format version.
        profile: ``portable``.
        base: Fingerprint of the base.
        target: Fingerprint of the target.
        content: Content digest.
        invertible: Whether it can be reverted.
        nnz: Entries.
        touched: Number of touched tensors.
        untouched: Number of tensors that stay.
        touched_words: Words of the touched tensors.
        touched_bytes: Bytes of the touched tensors.
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
    nnz: int
    touched: int
    untouched: int
    touched_words: int
    touched_bytes: int
    metadata: Mapping[str, str]
    hints: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]

    @property
    def bits_per_entry(self) -> float | None:
        """Bits of the whole file per entry; None if there is no entry."""
        return 8 * self.size / self.nnz if self.nnz else None

    @property
    def density(self) -> float | None:
        """Share of the words of the touched tensors that change; None if there is none."""
        return self.nnz / self.touched_words if self.touched_words else None


def info(delta: str | Path | DeltaReader) -> DeltaInfo:
    """What a delta says of itself. Reads and checks its header and manifest, nothing else.

    Args:
        delta: The delta file.

    Raises:
        FormatError: A rule of SD1xx or SD2xx is broken.
        CheckpointError: The file cannot be read.
    """
    reader = open_delta(delta)
    try:
        manifest = reader.manifest
        tensors = tuple(
            TensorInfo(
                name=record.spec.name,
                dtype=record.spec.dtype,
                shape=record.spec.shape,
                words=record.spec.words,
                nnz=record.nnz,
                nbytes=record.nbytes,
                encodings=tuple(
                    f"{part.op}: {part.encoding.describe()}, blocks of 2^{part.block_log2}"
                    for part in record.parts
                ),
            )
            for record in manifest.tensors
        )
        prefix = "sd.base_"
        hints = {
            key.removeprefix("sd."): value
            for key, value in reader.header.metadata.items()
            if key.startswith(prefix)
        }
        return DeltaInfo(
            path=str(reader.path),
            size=reader.size,
            version=FORMAT_VERSION,
            profile=manifest.profile,
            base=manifest.base,
            target=manifest.target,
            content=manifest.content,
            invertible=manifest.invertible,
            nnz=manifest.nnz,
            touched=len(tensors),
            untouched=len(manifest.untouched),
            touched_words=sum(tensor.words for tensor in tensors),
            touched_bytes=sum(record.spec.nbytes for record in manifest.tensors),
            metadata=manifest.metadata,
            hints=hints,
            tensors=tensors,
        )
    finally:
        if reader is not delta:
            reader.close()
