"""Which files a result has: those that the delta records, or those of the checkpoint, edited."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparsedelta.attachments import CarriedEnd, CarriedFile, LayoutEnd
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.companions import Companions
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import plain_digest
from sparsedelta.errors import DAMAGED, CheckpointError, FormatError, VerificationError
from sparsedelta.file_names import is_weights_file
from sparsedelta.operations.route import Route, results_of
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


@dataclass(frozen=True, slots=True)
class _Weights:
    """The checkpoint files at a point of a route, without their tensors.

    Attributes:
        files: Name and layout of each.
        is_directory: Whether they lie in a directory.
        index: Name and content of the index, or None.
        sha256: SHA-256 of files, as far as the delta before records them.
    """

    files: tuple[tuple[str, FileLayout], ...]
    is_directory: bool
    index: tuple[str, bytes] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def result_files(checkpoint: FileCheckpoint, route: Route, *, with_files: bool) -> ResultFiles:
    """The files of what a route leads to: those that following its deltas one by one would give.

    Args:
        checkpoint: What it starts from.
        route: The deltas.
        with_files: Whether carried files are written.

    Raises:
        FormatError: A recorded layout does not fit the tensors (SD415), or a blob is damaged.
    """
    weights = _weights(checkpoint)
    specs = dict(checkpoint.specs)
    for reader in route.readers:
        results = results_of(reader, specs, reverse=route.reverse)
        specs = {name: spec for name, (spec, _) in results.items()}
        end = (reader.manifest.attachments.layout or {}).get("base" if route.reverse else "target")
        if end is not None:
            weights = _recorded(reader, end, results, weights)
        elif reader.records:
            weights = _edited(weights, results)
    files = _as_files(weights, checkpoint)
    if not with_files:
        return files
    if not files.is_directory:
        why = "the output is a single file"
        missing = (file.name for file, end in _carried(route) if end is not None)
        return replace(files, unwritten=dict.fromkeys(missing, why))
    return _with_carried(files, route)


def edited_files(checkpoint: FileCheckpoint, results: Results) -> ResultFiles:
    """The files of a checkpoint, as far as its tensors stay; those that come new in the last."""
    return _as_files(_edited(_weights(checkpoint), results), checkpoint)


def _weights(checkpoint: FileCheckpoint) -> _Weights:
    index = checkpoint.index
    return _Weights(
        tuple((file.name, file.layout) for file in checkpoint.files),
        checkpoint.is_directory,
        None if index is None else (index.name, checkpoint.index_content),
    )


def _as_files(weights: _Weights, checkpoint: FileCheckpoint) -> ResultFiles:
    index, content = checkpoint.index, checkpoint.index_content
    contents, dropped = {}, set()
    if weights.index is not None and weights.index[1] is not content:
        contents[weights.index[0]] = weights.index[1]
    if index is not None and (weights.index is None or weights.index[0] != index.name):
        dropped.add(index.name)
    return ResultFiles(
        weights.files, weights.is_directory, contents, frozenset(dropped), weights.sha256
    )


def _recorded(reader: DeltaReader, end: LayoutEnd, results: Results, before: _Weights) -> _Weights:
    files = list(read_layouts(reader, end))
    specs = {stored.spec.name: stored.spec for _, layout in files for stored in layout.tensors}
    for name in sorted(specs.keys() | results.keys()):
        expected = results[name][0] if name in results else None
        if specs.get(name) != expected:
            raise misfit(reader, f"tensor {name!r:.100}: {specs.get(name)}, expected {expected}")
    return _Weights(
        tuple(files),
        before.is_directory or len(files) > 1 or end.index is not None,
        None if end.index is None else (end.index[0], reader.read_blob(end.index[1])),
        {file.name: file.sha256 for file in end.files if file.sha256 is not None},
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


def _edited(before: _Weights, results: Results) -> _Weights:
    by_source = {source: spec for spec, source in results.values() if source is not None}
    kept = [
        [by_source[s.spec.name] for s in layout.tensors if s.spec.name in by_source]
        for _, layout in before.files
    ]
    fresh = [spec for spec, source in results.values() if source is None]
    kept[-1] += sorted(fresh, key=lambda spec: spec.name)
    files = tuple(
        (name, _edited_layout(layout, specs))
        for (name, layout), specs in zip(before.files, kept, strict=True)
        if specs or len(before.files) == 1
    )
    if not results and before.index is not None:
        # An index cannot list nothing: a checkpoint without tensors is one empty file.
        name, layout = before.files[-1]
        return _Weights(((name, _edited_layout(layout, [])),), before.is_directory)
    is_same = [layout for _, layout in files] == [layout for _, layout in before.files]
    index = before.index
    if index is not None and not is_same:
        index = index[0], _edited_index(index[1], files)
    return _Weights(files, before.is_directory, index)


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


def _carried(route: Route) -> Iterator[tuple[CarriedFile, CarriedEnd | None]]:
    """Every carried file as the last delta that tells of it has it, and what it leads to."""
    for files in _listed(route).values():
        file = files[-1][1]
        yield file, file.base if route.reverse else file.target


def _listed(route: Route) -> dict[str, list[tuple[DeltaReader, CarriedFile]]]:
    found: dict[str, list[tuple[DeltaReader, CarriedFile]]] = {}
    for reader in route.readers:
        for file in reader.manifest.attachments.files:
            found.setdefault(file.name, []).append((reader, file))
    return dict(sorted(found.items()))


def replaced_file(route: Route, name: str) -> tuple[bool, CarriedEnd | None]:
    """Whether a route tells of a file, and what it takes it to be where the route starts."""
    files = _listed(route).get(name)
    if files is None:
        return False, None
    file = files[0][1]
    return True, file.target if route.reverse else file.base


def _with_carried(files: ResultFiles, route: Route) -> ResultFiles:
    contents = dict(files.contents)
    written, dropped = [], set(files.dropped)
    unwritten: dict[str, str] = {}
    blobs: dict[tuple[int, int], tuple[bytes, str]] = {}  # one may be the content of many files
    for listed in _listed(route).values():
        reader, file = listed[-1]
        end = file.base if route.reverse else file.target
        if end is None:
            dropped.add(file.name)
        elif is_weights_file(Path(file.name)):
            unwritten[file.name] = "it may hold other weights, or code"
        elif end.blob is None:
            # That of the other end would contradict the weights.
            dropped.add(file.name)
            unwritten[file.name] = "the delta does not hold its content (--forget)"
        else:
            key = (id(reader), end.blob)
            if key not in blobs:
                content = reader.read_blob(end.blob)
                blobs[key] = content, plain_digest(content).hex()
            content, digest = blobs[key]
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
