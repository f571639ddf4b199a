"""Which files a result has: those that the delta records, or those of the checkpoint, edited."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparsedelta.attachments import CarriedFile, LayoutEnd
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.companions import Companions, is_weights_file
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import plain_digest
from sparsedelta.errors import DAMAGED, CheckpointError, FormatError, VerificationError
from sparsedelta.safetensors_header import FileLayout, build_layout, parse_layout
from sparsedelta.strict_json import parse
from sparsedelta.words import TensorSpec

Results = Mapping[str, tuple[TensorSpec, str | None]]
"""Every tensor of a result by name, and the name of that which it takes the place of, or None."""


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The files of a result.

    Attributes:
        files: Name and layout of each checkpoint file.
        is_directory: Whether they lie in a directory, or are one file with the output's name.
        contents: Small files to write beside them, by name: index and carried files.
        dropped: Names of files beside the source's weights that the result does not have.
        sha256: SHA-256 of checkpoint files, as far as the delta records them.
        carried: Names of the carried files among ``contents``.
        unwritten: Names of carried files that the result should have and does not, and why.
    """

    files: tuple[tuple[str, FileLayout], ...]
    is_directory: bool
    contents: Mapping[str, bytes] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    sha256: Mapping[str, str] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    unwritten: Mapping[str, str] = field(default_factory=dict)

    def companions(self, found: Companions) -> Iterable[Path]:
        """Those of the files beside the source's weights that are copied."""
        gone = self.dropped.union(self.contents)
        # A file that is written takes the place of a folder of that name, too.
        return (path for path in found.copied if path.parts[0] not in gone)

    def check_sha256(self, writer: CheckpointWriter) -> None:
        """Compare the files that were written with what the delta records.

        Raises:
            VerificationError: A file is another (SD502).
        """
        for name, expected in self.sha256.items():
            found = writer.sha256(name)
            if found != expected:
                raise VerificationError(
                    f"{name} has the SHA-256 {found}, the delta promises {expected} (SD502)",
                    hint="the delta was written by a faulty tool",
                )


def same_files(checkpoint: FileCheckpoint) -> ResultFiles:
    """The files of a copy of a checkpoint."""
    files = tuple((file.name, file.layout) for file in checkpoint.files)
    return ResultFiles(files, checkpoint.is_directory)


def result_files(
    checkpoint: FileCheckpoint,
    reader: DeltaReader,
    results: Results,
    *,
    reverse: bool,
    with_files: bool,
) -> ResultFiles:
    """The files of what a delta leads to.

    Args:
        checkpoint: What it starts from.
        reader: The delta.
        results: Every tensor of the result.
        reverse: Whether the delta is followed back.
        with_files: Whether carried files are written.

    Raises:
        FormatError: The recorded layout does not fit the tensors (SD415), or a blob is damaged.
    """
    attachments = reader.manifest.attachments
    end = (attachments.layout or {}).get("base" if reverse else "target")
    if end is not None:
        files = _recorded(reader, end, results)
        is_directory = files.is_directory or checkpoint.is_directory
        index = checkpoint.index
        gone = {index.name} if index is not None and index.name not in files.contents else set()
        files = replace(files, is_directory=is_directory, dropped=frozenset(gone))
    else:
        files = edited_files(checkpoint, results)
    if not with_files:
        return files
    if not files.is_directory:
        why = "the output is a single file"
        end_key = "base" if reverse else "target"
        missing = (file.name for file in attachments.files if getattr(file, end_key) is not None)
        return replace(files, unwritten=dict.fromkeys(missing, why))
    return _with_carried(files, reader, attachments.files, reverse=reverse)


def _recorded(reader: DeltaReader, end: LayoutEnd, results: Results) -> ResultFiles:
    files = list(read_layouts(reader, end))
    specs = {stored.spec.name: stored.spec for _, layout in files for stored in layout.tensors}
    for name in sorted(specs.keys() | results.keys()):
        expected = results[name][0] if name in results else None
        if specs.get(name) != expected:
            raise misfit(reader, f"tensor {name!r:.100}: {specs.get(name)}, expected {expected}")
    contents = {} if end.index is None else {end.index[0]: reader.read_blob(end.index[1])}
    return ResultFiles(
        tuple(files),
        len(files) > 1 or end.index is not None,
        contents,
        sha256={file.name: file.sha256 for file in end.files if file.sha256 is not None},
    )


def read_layouts(reader: DeltaReader, end: LayoutEnd) -> Iterator[tuple[str, FileLayout]]:
    """Name and layout of each recorded checkpoint file of an end, one after the other.

    Raises:
        FormatError: SD414 or SD415; also for a tensor that is in two files.
    """
    seen: set[str] = set()
    empty: dict[int, FileLayout] = {}  # headers without tensors: they may be those of many files
    for file in end.files:
        layout = empty.get(file.header)
        if layout is None:
            try:
                layout = parse_layout(reader.read_blob(file.header), file.name)
            except CheckpointError as error:
                raise misfit(reader, error.message) from None
        if not layout.tensors:
            empty[file.header] = layout
        for stored in layout.tensors:
            if stored.spec.name in seen:
                raise misfit(reader, f"{stored.spec.name!r:.100} is in two files")
            seen.add(stored.spec.name)
        yield file.name, layout


def misfit(reader: DeltaReader, message: str) -> FormatError:
    """The error of a layout that does not fit its tensors (SD415)."""
    return FormatError("SD415", f"{reader.path}: the layout: {message}", hint=DAMAGED)


def edited_files(checkpoint: FileCheckpoint, results: Results) -> ResultFiles:
    """The files of a checkpoint, as far as the tensors are the same; new ones in the last."""
    by_source = {source: spec for spec, source in results.values() if source is not None}
    kept = [
        [by_source[s.spec.name] for s in file.layout.tensors if s.spec.name in by_source]
        for file in checkpoint.files
    ]
    fresh = [spec for spec, source in results.values() if source is None]
    kept[-1] += sorted(fresh, key=lambda spec: spec.name)
    files = tuple(
        (file.name, _edited_layout(file.layout, specs))
        for file, specs in zip(checkpoint.files, kept, strict=True)
        if specs or len(checkpoint.files) == 1
    )
    if not results and checkpoint.index is not None:
        # An index cannot list nothing: a checkpoint without tensors is one empty file.
        last = checkpoint.files[-1]
        files = ((last.name, _edited_layout(last.layout, [])),)
        return ResultFiles(
            files, checkpoint.is_directory, dropped=frozenset({checkpoint.index.name})
        )
    is_same = all(
        layout is file.layout for (_, layout), file in zip(files, checkpoint.files, strict=False)
    ) and len(files) == len(checkpoint.files)
    if checkpoint.index is None or is_same:
        return ResultFiles(files, checkpoint.is_directory)
    content = _edited_index(checkpoint.index_content, files)
    return ResultFiles(files, checkpoint.is_directory, {checkpoint.index.name: content})


def _edited_layout(layout: FileLayout, specs: list[TensorSpec]) -> FileLayout:
    if [stored.spec for stored in layout.tensors] == specs:
        return layout
    return build_layout(specs, layout.metadata)


def _edited_index(content: bytes, files: Iterable[tuple[str, FileLayout]]) -> bytes:
    document = parse(content)
    places = {s.spec.name: (name, s.spec) for name, layout in files for s in layout.tensors}
    document["weight_map"] = {name: places[name][0] for name in sorted(places)}
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and "total_size" in metadata:
        metadata["total_size"] = sum(spec.nbytes for _, spec in places.values())
    return (json.dumps(document, indent=2) + "\n").encode()


def _with_carried(
    files: ResultFiles, reader: DeltaReader, carried: Iterable[CarriedFile], *, reverse: bool
) -> ResultFiles:
    contents = dict(files.contents)
    written, dropped = [], set(files.dropped)
    unwritten: dict[str, str] = {}
    blobs: dict[int, tuple[bytes, str]] = {}  # one may be the content of many files
    for file in carried:
        end = file.base if reverse else file.target
        if end is None:
            dropped.add(file.name)
        elif is_weights_file(Path(file.name)):
            unwritten[file.name] = "it may hold other weights, or code"
        elif end.blob is None:
            # That of the other end would contradict the weights.
            dropped.add(file.name)
            unwritten[file.name] = "the delta does not hold its content (--forget)"
        else:
            if end.blob not in blobs:
                content = reader.read_blob(end.blob)
                blobs[end.blob] = content, plain_digest(content).hex()
            content, digest = blobs[end.blob]
            check_carried(reader, file.name, digest, end.digest)
            contents[file.name] = content
            written.append(file.name)
    return replace(
        files,
        contents=contents,
        dropped=frozenset(dropped),
        carried=tuple(written),
        unwritten=unwritten,
    )


def check_carried(reader: DeltaReader, name: str, found: str, expected: str) -> None:
    """Rule SD416: a carried file has its digest.

    Raises:
        FormatError: It has another.
    """
    if found != expected:
        raise FormatError(
            "SD416", f"{reader.path}: the carried file {name} has another digest", hint=DAMAGED
        )
