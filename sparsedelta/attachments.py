"""What travels beside the tensors: blobs, file layouts and carried files (spec 3.6 and 3.7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sparsedelta.errors import FormatError
from sparsedelta.file_names import (
    CHECKPOINT_SUFFIX,
    INDEX_SUFFIX,
    file_name_problem,
    is_weights_name,
    same_ignoring_case,
)
from sparsedelta.limits import MAX_BLOB_BYTES, MAX_BLOBS, MAX_BLOBS_BYTES
from sparsedelta.strict_json import Json

ENDS: Final = ("base", "target")


@dataclass(frozen=True, slots=True)
class Blob:
    """A byte string that travels beside the tensors.

    Attributes:
        nbytes: Length of its frame.
        size: Decoded length.
        digest: B3 of the frame, hex.
    """

    nbytes: int
    size: int
    digest: str

    def to_json(self) -> Json:
        """The blob's object in the manifest."""
        return {"bytes": self.nbytes, "size": self.size, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class LayoutFile:
    """A checkpoint file: name, blob of its bytes before the first tensor, SHA-256 of the whole."""

    name: str
    header: int
    sha256: str | None

    def to_json(self) -> Json:
        """The file's object in the manifest."""
        return {"name": self.name, "header": self.header, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class LayoutEnd:
    """The files of one end.

    Attributes:
        files: Its checkpoint files, ascending by name.
        index: Name and blob of its index, or None.
    """

    files: tuple[LayoutFile, ...]
    index: tuple[str, int] | None

    def to_json(self) -> Json:
        """The end's object in the manifest."""
        index = None if self.index is None else {"name": self.index[0], "blob": self.index[1]}
        return {"files": [file.to_json() for file in self.files], "index": index}


Layout = Mapping[str, LayoutEnd | None]
"""``base`` and ``target``, each recorded or not."""


@dataclass(frozen=True, slots=True)
class CarriedEnd:
    """A carried file at one end: blob of its content if carried, B3 of the content, bytes."""

    blob: int | None
    digest: str
    size: int

    def to_json(self) -> Json:
        """The end's object in the manifest."""
        return {"blob": self.blob, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """A small file that differs between the ends; None where it is absent."""

    name: str
    base: CarriedEnd | None
    target: CarriedEnd | None

    def to_json(self) -> Json:
        """The file's object in the manifest."""
        ends = {end: getattr(self, end) for end in ENDS}
        return {"name": self.name, **{end: v and v.to_json() for end, v in ends.items()}}


@dataclass(frozen=True, slots=True)
class Attachments:
    """All that travels beside the tensors.

    Attributes:
        blobs: Byte strings, referred to by position.
        layout: Files of the ends, or None.
        files: Carried files, ascending by name.
    """

    blobs: tuple[Blob, ...] = ()
    layout: Layout | None = None
    files: tuple[CarriedFile, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The keys of the manifest."""
        layout = self.layout and {
            end: found and found.to_json() for end, found in self.layout.items()
        }
        return {
            "blobs": [blob.to_json() for blob in self.blobs],
            "layout": layout,
            "files": [file.to_json() for file in self.files],
        }


def parse_attachments(document: Json) -> Attachments:
    """Blobs, layout and files of a manifest that has passed SD204; checks nothing."""
    layout = document["layout"]
    return Attachments(
        tuple(Blob(b["bytes"], b["size"], b["digest"]) for b in document["blobs"]),
        layout and {end: _end(layout[end]) for end in ENDS},
        tuple(
            CarriedFile(file["name"], *(_carried(file[end]) for end in ENDS))
            for file in document["files"]
        ),
    )


def _end(document: Json) -> LayoutEnd | None:
    if document is None:
        return None
    index = document["index"]
    return LayoutEnd(
        tuple(LayoutFile(f["name"], f["header"], f["sha256"]) for f in document["files"]),
        index and (index["name"], index["blob"]),
    )


def _carried(document: Json) -> CarriedEnd | None:
    return document and CarriedEnd(document["blob"], document["digest"], document["size"])


def attachment_problems(attachments: Attachments) -> Iterator[FormatError]:
    """Broken rules of SD213 to SD215."""
    for rule, problems in (
        ("SD213", _blob_problems(attachments.blobs)),
        ("SD214", _layout_problems(attachments)),
        ("SD215", _file_problems(attachments)),
    ):
        for message in problems:
            yield FormatError(rule, message)


def _blob_problems(blobs: Sequence[Blob]) -> Iterator[str]:
    if len(blobs) > MAX_BLOBS:
        yield f"{len(blobs)} blobs, at most {MAX_BLOBS} are allowed"
    for number, blob in enumerate(blobs):
        if blob.size > MAX_BLOB_BYTES or blob.nbytes > blob.size:
            yield (
                f"blob {number}: {blob.nbytes} bytes for {blob.size}, expected at most as many and "
                f"at most {MAX_BLOB_BYTES}"
            )
    total = sum(blob.size for blob in blobs)
    if total > MAX_BLOBS_BYTES:
        yield f"blobs of {total} bytes, at most {MAX_BLOBS_BYTES} are allowed"


def _layout_problems(attachments: Attachments) -> Iterator[str]:
    for key, end in (attachments.layout or {}).items():
        if end is not None:
            for problem in _end_problems(end, attachments.blobs):
                yield f"layout of the {key}: {problem}"


def _end_problems(end: LayoutEnd, blobs: Sequence[Blob]) -> Iterator[str]:
    if not end.files:
        yield "no files"
    wanted = [(file.name, CHECKPOINT_SUFFIX, file.header) for file in end.files]
    if end.index is not None:
        wanted.append((end.index[0], INDEX_SUFFIX, end.index[1]))
    for name, suffix, blob in wanted:
        problem = file_name_problem(name)
        if problem is None and not name.endswith(suffix):
            problem = f"does not end with {suffix}"
        if problem is None and blob >= len(blobs):
            problem = f"refers to blob {blob} of {len(blobs)}"
        if problem:
            yield f"the file name {name!r:.300} {problem}"
    for before, after in pairwise(end.files):
        if before.name >= after.name:
            yield f"{after.name!r} must not follow {before.name!r}"
    twice = same_ignoring_case(name for name, _, _ in wanted)
    if twice is not None:
        yield f"{twice!r} stands there twice, if case is ignored"
    # One blob may stand for many files: what a small delta can make of it is bounded here.
    yield from _too_large("headers and index", (b for _, _, b in wanted), blobs)


def _too_large(what: str, used: Iterable[int], blobs: Sequence[Blob]) -> Iterator[str]:
    total = sum(blobs[blob].size for blob in used if blob < len(blobs))
    if total > MAX_BLOBS_BYTES:
        yield f"{what} of {total} bytes, at most {MAX_BLOBS_BYTES} are allowed"


def _file_problems(attachments: Attachments) -> Iterator[str]:
    files = attachments.files
    for file in files:
        problem = file_name_problem(file.name)
        if problem is None and is_weights_name(file.name):
            problem = "is that of weights or their index"
        if problem is None:
            problem = _content_problem(file, attachments.blobs)
        if problem:
            yield f"the carried file {file.name!r:.300} {problem}"
    for before, after in pairwise(files):
        if before.name >= after.name:
            yield f"the carried file {after.name!r} must not follow {before.name!r}"
    twice = same_ignoring_case(file.name for file in files)
    if twice is not None:
        yield f"the carried file {twice!r} stands there twice, if case is ignored"
    for key in ENDS:
        ends = (getattr(file, key) for file in files)
        used = (end.blob for end in ends if end is not None and end.blob is not None)
        yield from _too_large(f"carried files of the {key}", used, attachments.blobs)


def _content_problem(file: CarriedFile, blobs: Sequence[Blob]) -> str | None:
    if file.target is not None and file.target.blob is None:
        return "has no content for the target"
    ends = [end for end in (file.base, file.target) if end is not None]
    for end in ends:
        if end.blob is not None and end.blob >= len(blobs):
            return f"refers to blob {end.blob} of {len(blobs)}"
        if end.blob is not None and blobs[end.blob].size != end.size:
            return f"has {end.size} bytes, its blob {blobs[end.blob].size}"
    if file.base == file.target or len({end.digest for end in ends}) != len(ends):
        return "is the same at both ends"
    return None
