"""Writing delta files (spec section 3): tensors as they come, header and manifest at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import numpy as np

from sparsedelta.codecs.frames import encode_frame
from sparsedelta.delta import content_digest, tensor_content
from sparsedelta.digests import (
    Digest,
    checkpoint_fingerprint,
    plain_digest,
    tensor_digest,
)
from sparsedelta.encode import EncodedPart
from sparsedelta.errors import StructureError, UsageError
from sparsedelta.files import output_errors, staged, write_all
from sparsedelta.header import DATA, MANIFEST, TABLES, build_header
from sparsedelta.limits import MAX_MANIFEST_BYTES
from sparsedelta.manifest import PORTABLE, Manifest, TensorRecord, name_problem
from sparsedelta.strict_json import canonical
from sparsedelta.words import TensorSpec

_COPY_BYTES: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A touched tensor, ready to be written.

    Attributes:
        spec: The tensor.
        parts: Its parts.
        base_segments: Segment digests of the base tensor.
        target_segments: Segment digests of the target tensor.
    """

    spec: TensorSpec
    parts: tuple[EncodedPart, ...]
    base_segments: tuple[Digest, ...]
    target_segments: tuple[Digest, ...]


class DeltaWriter:
    """Writes a delta under a temporary name; a context manager.

    Frames are spooled to an unnamed file in the output's folder, since header, manifest and tables
    come before them and are known last. Leaving the context without :meth:`finish` leaves nothing.

    Args:
        path: The output.
        metadata: Provenance, string to string.
        base_repo: Hint where the base can be had, never trusted.
        base_revision: Hint at its commit.
        force: Whether an existing output is replaced.

    Raises:
        UsageError: A string of the metadata or of the hints is no valid text.

    Attributes:
        size: Bytes of the file, once :meth:`finish` has been called.
    """

    def __init__(
        self,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        base_repo: str | None = None,
        base_revision: str | None = None,
        force: bool = False,
    ) -> None:
        self._path = path
        self._force = force
        self._metadata = dict(metadata or {})
        hints = {"sd.base_repo": base_repo, "sd.base_revision": base_revision}
        self._hints = {key: value for key, value in hints.items() if value is not None}
        for key, value in (*self._metadata.items(), *self._hints.items()):
            if not _is_text(key) or not _is_text(value):
                raise UsageError(
                    f"metadata {key!r:.80}: expected text that UTF-8 can hold, found {value!r:.80}",
                    hint="metadata maps strings to strings: convert numbers with str()",
                )
        self._untouched: dict[str, Digest] = {}
        self._touched: dict[str, EncodedTensor] = {}
        self._spool: IO[bytes] | None = None
        self._spooled = 0
        self.size = 0

    def __enter__(self) -> Self:
        with output_errors(self._path):
            self._spool = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spool is not None:
            self._spool.close()

    def add_untouched(self, name: str, digest: Digest) -> None:
        """Record a tensor that stays as it is."""
        self._check_name(name)
        self._untouched[name] = digest

    def add(self, tensor: EncodedTensor) -> None:
        """Record a touched tensor; tensors come in ascending order of their names.

        Raises:
            OutputError: Its frames cannot be written.
        """
        name = tensor.spec.name
        self._check_name(name)
        if self._touched and next(reversed(self._touched)) >= name:
            raise ValueError(f"tensor {name!r} comes too late")
        if self._spool is None:
            raise ValueError("the writer is not open")
        with output_errors(self._path):
            for frame in (frame for part in tensor.parts for frame in part.frames):
                write_all(self._spool.fileno(), frame, self._spooled)
                self._spooled += len(frame)
        emptied = tuple(
            EncodedPart(part.record, part.rows, [], part.content) for part in tensor.parts
        )
        self._touched[name] = EncodedTensor(
            tensor.spec, emptied, tensor.base_segments, tensor.target_segments
        )

    def _check_name(self, name: str) -> None:
        problem = name_problem(name)
        if problem:
            raise StructureError(f"tensor name {name!r:.100} {problem}: a delta cannot hold it")

    def finish(self, *, dry_run: bool = False) -> Manifest:
        """Write the file and give it its name.

        Args:
            dry_run: Only say what would have been written.

        Raises:
            OutputError: It cannot be written; nothing is left behind.
        """
        if self._spool is None:
            raise ValueError("the writer is not open")
        tables = self._tables()
        manifest = self._manifest(tables)
        text = canonical(manifest.to_json())
        if len(text) > MAX_MANIFEST_BYTES:
            raise StructureError(
                f"{self._path}: a manifest of {len(text)} bytes, {MAX_MANIFEST_BYTES} are allowed"
            )
        frame = encode_frame(np.frombuffer(text, np.uint8))
        metadata = {
            "format": "sparsedelta",
            "sd.manifest": plain_digest(frame).hex(),
            "sd.manifest_size": str(len(text)),
            **manifest.header_facts(),
            **self._hints,
        }
        lengths = {MANIFEST: len(frame), TABLES: len(tables), DATA: self._spooled}
        try:
            header = build_header(metadata, lengths)
        except ValueError as error:
            raise UsageError(f"{self._path}: the hints at the base are too long: {error}") from None
        self.size = len(header) + sum(lengths.values())
        if dry_run:
            return manifest
        with staged(self._path, force=self._force) as work, work.open("wb") as output:
            output.write(header)
            output.write(frame)
            output.write(tables)
            self._spool.seek(0)
            shutil.copyfileobj(self._spool, output, _COPY_BYTES)
            output.flush()
            os.fsync(output.fileno())
        return manifest

    def _tables(self) -> bytes:
        chunks = [self._untouched[name] for name in sorted(self._untouched)]
        for tensor in self._touched.values():
            chunks += [*tensor.base_segments, *tensor.target_segments]
            chunks += [part.rows for part in tensor.parts]
        return b"".join(chunks)

    def _manifest(self, tables: bytes) -> Manifest:
        leaves: dict[str, dict[str, Digest]] = {}
        for end in ("base", "target"):
            leaves[end] = dict(self._untouched)
            for name, tensor in self._touched.items():
                segments = tensor.base_segments if end == "base" else tensor.target_segments
                leaves[end][name] = tensor_digest(tensor.spec, segments)
        base = checkpoint_fingerprint(leaves["base"]).hex()
        target = checkpoint_fingerprint(leaves["target"]).hex()
        contents = {
            name: tensor_content(tensor.spec, [part.content for part in tensor.parts])
            for name, tensor in self._touched.items()
        }
        return Manifest(
            base=base,
            target=target,
            content=content_digest(base, target, contents),
            profile=PORTABLE,
            metadata=self._metadata,
            tables=plain_digest(tables).hex(),
            tensors=tuple(
                TensorRecord(tensor.spec, tuple(part.record for part in tensor.parts))
                for tensor in self._touched.values()
            ),
            untouched=tuple(sorted(self._untouched)),
        )


def _is_text(text: object) -> bool:
    return isinstance(text, str) and not any("\ud800" <= char <= "\udfff" for char in text)
