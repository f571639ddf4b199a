"""Whether a model on the Hub is the base of a delta: as far as can be shown without getting it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sparsedelta.checkpoint import FileCheckpoint, segment_digests, segments
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import checkpoint_fingerprint, segment_digest, tensor_digest
from sparsedelta.errors import WrongBaseError
from sparsedelta.hub.manifest_file import ListedFile
from sparsedelta.hub.references import parse_reference
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import Url
from sparsedelta.words import TensorSpec

How = Literal["sha256", "words", "sample", "nothing"]
"""What a check rests on: SHA-256 of the files, which the delta records; all words; some of them."""

ALL_BYTES: Final = 1 << 23
"""Tensors of so many bytes in all are read whole: from the Hub, if they are not in the cache."""

SAMPLE_BYTES: Final = 1 << 24
"""What is read of larger ones, at most; but for one segment, and a quarter of them."""

_LARGEST_SHARE: Final = 4
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class BaseCheck:
    """What was found out about the base of a delta.

    Attributes:
        repo: ``namespace/name``.
        commit: The commit that was looked at.
        how: What the check rests on; ``nothing`` if it was not asked for.
        nbytes: Bytes of words that were compared.
        files: The weight files at that commit.
        at_hand: Whether its words are in the client's cache, or few, and may be looked at.
    """

    repo: str
    commit: str
    how: How
    nbytes: int
    files: tuple[ListedFile, ...]
    at_hand: bool


def check_base(
    reader: DeltaReader, base: Url, *, full: bool = False, nothing: bool = False
) -> BaseCheck:
    """Compare a model on the Hub with the base that a delta claims.

    Always, by the headers: names, dtypes and shapes of all tensors. Then, the first that is to be
    had: (1) the SHA-256 of its files, if the delta records them; (2) all of its words, if they are
    in the client's cache, are few, or ``full`` asks for it; (3) whole segments, chosen by the
    content of the delta: of each tensor in turn, as far as the budget goes.

    Args:
        reader: The delta.
        base: The model.
        full: Compare all words, whatever it takes.
        nothing: Look up the commit and its files only.

    Raises:
        WrongBaseError: It is another model.
        CheckpointError: It is no checkpoint.
        HubError: It cannot be had.
    """
    store = HubStore(base)
    with FileCheckpoint(base.with_options(stream=True)) as checkpoint:
        paths = [
            parse_reference(file.source.location).path
            for file in checkpoint.files
            if isinstance(file.source.location, Url)
        ]
        files = tuple(
            ListedFile(path, found.size, found.sha256)
            for path in paths
            if (found := store.files[path]).sha256 is not None
        )

        total = sum(spec.nbytes for spec in checkpoint.specs.values())
        is_here = all(store.cached(path) is not None for path in paths)

        def checked(how: How, nbytes: int = 0) -> BaseCheck:
            at_hand = (is_here or total <= ALL_BYTES) and not nothing
            return BaseCheck(store.reference.repo, store.commit, how, nbytes, files, at_hand)

        if nothing:
            return checked("nothing")
        _check_structure(reader, checkpoint)
        if not full and _same_files(reader, files, len(paths)):
            return checked("sha256")
        if full or is_here or total <= ALL_BYTES:
            _check_words(reader, checkpoint)
            return checked("words", total)
        return checked("sample", _check_sample(reader, checkpoint, total))


def _wrong(reader: DeltaReader, checkpoint: FileCheckpoint, problem: str) -> WrongBaseError:
    return WrongBaseError(
        f"{checkpoint.location} is not the base of {reader.path} (SD501): {problem}",
        hint="name the right model, or its right commit: --base NAMESPACE/NAME@COMMIT; "
        "--no-check-base pushes the delta without a check",
    )


def _check_structure(reader: DeltaReader, checkpoint: FileCheckpoint) -> None:
    manifest, specs = reader.manifest, checkpoint.specs
    touched = {r.base.name: r.base for r in manifest.tensors if r.base is not None}
    missing = sorted((touched.keys() | set(manifest.untouched)) - specs.keys())
    more = [] if manifest.lean else sorted(specs.keys() - touched.keys() - set(manifest.untouched))
    other = sorted(name for name, spec in touched.items() if specs.get(name, spec) != spec)
    for what, names in (("lacks", missing), ("has also", more)):
        if names:
            shown = ", ".join(map(repr, names[:_NAMED])) + (", …" if names[_NAMED:] else "")
            raise _wrong(reader, checkpoint, f"it {what} {len(names)} tensors: {shown}")
    if other:
        found, expected = specs[other[0]], touched[other[0]]
        raise _wrong(
            reader, checkpoint, f"tensor {other[0]!r} is {found} there, expected {expected}"
        )


def _same_files(reader: DeltaReader, files: tuple[ListedFile, ...], count: int) -> bool:
    layout = reader.manifest.attachments.layout
    recorded = None if layout is None else layout["base"]
    if recorded is None or len(files) != count:
        return False
    # Other bytes may hold the same tensors: only equal ones tell something.
    told = sorted(file.sha256 or "" for file in recorded.files)
    return all(told) and told == sorted(file.sha256 for file in files)


def _check_words(reader: DeltaReader, checkpoint: FileCheckpoint) -> None:
    leaves = {
        name: tensor_digest(spec, segment_digests(checkpoint, name))
        for name, spec in checkpoint.specs.items()
    }
    found = checkpoint_fingerprint(leaves).hex()
    if found != reader.manifest.base:
        raise _wrong(
            reader,
            checkpoint,
            f"its fingerprint is {found[:16]}…, expected {reader.manifest.base[:16]}…",
        )


def _check_sample(reader: DeltaReader, checkpoint: FileCheckpoint, total: int) -> int:
    budget = min(SAMPLE_BYTES, total // _LARGEST_SHARE)
    done = 0
    for name, number in _order(reader, checkpoint):
        spec = checkpoint.specs[name]
        runs = list(segments(spec))
        is_whole = number is None
        nbytes = spec.nbytes if number is None else _length(spec, runs[number])
        if done and done + nbytes > budget:
            continue
        if number is None:
            expected = reader.tables.untouched[name]
            found = tensor_digest(spec, segment_digests(checkpoint, name))
        else:
            expected = _base_segments(reader)[name][number]
            found = segment_digest(checkpoint.read(name, *runs[number]).data)
        done += nbytes
        if found != expected:
            where = "" if is_whole or len(runs) == 1 else f", words {runs[number or 0][0]:,} on,"
            raise _wrong(
                reader,
                checkpoint,
                f"tensor {name!r}{where} has the digest {found.hex()[:16]}…, expected "
                f"{expected.hex()[:16]}…",
            )
    return done


def _length(spec: TensorSpec, run: tuple[int, int]) -> int:
    return (run[1] - run[0]) * spec.word_bytes


def _base_segments(reader: DeltaReader) -> dict[str, tuple[bytes, ...]]:
    return {
        record.base.name: reader.tables.tensors[record.name].base_segments
        for record in reader.manifest.tensors
        if record.base is not None
    }


def _order(reader: DeltaReader, checkpoint: FileCheckpoint) -> Iterator[tuple[str, int | None]]:
    """Segments to compare: one of each tensor in turn; of one that stays all of it or nothing."""
    chance = random.Random(reader.manifest.content)  # noqa: S311 (the same every time, not secret)
    touched = _base_segments(reader)
    names = sorted(checkpoint.specs.keys() & (touched.keys() | reader.tables.untouched.keys()))
    chance.shuffle(names)
    # Those that the delta changes come first: where a tuned model is taken for its base, or one
    # release for another, they differ.
    names.sort(key=lambda name: name not in touched)
    later: list[tuple[str, int]] = []
    for name in names:
        numbers = list(range(len(touched.get(name, ()))))
        chance.shuffle(numbers)
        yield from ((name, number) for number in numbers[:1])
        later += [(name, number) for number in numbers[1:]]
        if name not in touched:
            yield name, None
    yield from later
