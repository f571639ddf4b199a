"""Comparing a pair of tensors, run by run, and encoding what one becomes of the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsedelta.changes import Changes
from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import Planes, RawWords
from sparsedelta.delta import DIFFERENCE, DROP, NEW, REPLACE, RESIZE, bare_content
from sparsedelta.digests import Digest, segment_digest
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part, encode_words
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.operations.pairing import Pair
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.records import BarePart
from sparsedelta.words import TensorSpec, Words, as_words, difference


@dataclass(frozen=True, slots=True)
class Recipe:
    """How changes are written.

    Attributes:
        one_way: Store new words instead of differences.
        forget: Do not store the words of what goes.
        choice: The codecs to use; None for the smallest.
        explain: Try every codec, also those that can hardly win.
    """

    one_way: bool = False
    forget: bool = False
    choice: CodecChoice | None = None
    explain: bool = False

    @property
    def dense_choice(self) -> CodecChoice | None:
        """The choice as far as it concerns words that are carried whole."""
        value = None if self.choice is None else self.choice.value
        return self.choice if isinstance(value, (Planes, RawWords)) else None

    @property
    def op(self) -> str:
        """The operation of changed words."""
        return REPLACE if self.one_way else DIFFERENCE


@dataclass(frozen=True, slots=True)
class _Scan:
    """One run of a pair: digests of what is there, and what changed."""

    base: Digest | None
    target: Digest | None
    copied: Digest | None
    start: int
    marks: NDArray[np.bool_] | None
    values: Words | None


@dataclass(slots=True)
class ScannedTensor:
    """A pair whose runs have all been compared.

    Attributes:
        pair: The pair.
        base_segments: Segment digests of the base tensor.
        target_segments: Segment digests of the target tensor.
        copied_segments: Segment digests of the tensor that a copy is made of, or lives on in.
        changes: The changed words, or None.
    """

    pair: Pair
    base_segments: list[Digest] = field(default_factory=list)
    target_segments: list[Digest] = field(default_factory=list)
    copied_segments: list[Digest] = field(default_factory=list)
    changes: Changes | None = None

    @property
    def is_untouched(self) -> bool:
        """Whether nothing is to be recorded: same name, dtype, shape and words."""
        return self.pair.base == self.pair.target and self.changes is None

    def add(self, scanned: _Scan) -> None:
        """Take the next run in."""
        for digest, segments in (
            (scanned.base, self.base_segments),
            (scanned.target, self.target_segments),
            (scanned.copied, self.copied_segments),
        ):
            if digest is not None:
                segments.append(digest)
        if scanned.marks is not None and scanned.values is not None:
            if self.changes is None:
                self.changes = Changes(_domain(self.pair))
            self.changes.append(scanned.start, scanned.marks, scanned.values)

    def encode(
        self, base: CheckpointReader, target: CheckpointReader, recipe: Recipe, pool: OrderedMap
    ) -> EncodedTensor:
        """The record of the pair, ready to be written."""
        parts = list(self._parts(base, target, recipe, pool))
        return EncodedTensor(
            self.pair.base,
            self.pair.target,
            tuple(parts),
            tuple(self.base_segments),
            tuple(self.target_segments),
        )

    def _parts(
        self, base: CheckpointReader, target: CheckpointReader, recipe: Recipe, pool: OrderedMap
    ) -> Iterator[EncodedPart]:
        old, new, copied = self.pair.base, self.pair.target, self.pair.copied
        is_change = self.pair.is_change
        if old is not None and not is_change:
            if copied is not None and new is None:
                yield self._bare(DROP, copied)
            elif recipe.forget:
                yield self._bare(DROP, None)
            else:
                yield _carried(DROP, base, old, (0, old.words), recipe=recipe, pool=pool)
        if new is not None and not is_change:
            if copied is None:
                yield _carried(NEW, target, new, (0, new.words), recipe=recipe, pool=pool)
            else:
                yield self._bare(NEW, copied)
        if is_change and old is not None and new is not None and old.shape != new.shape:
            longer, reader = (new, target) if new.words >= old.words else (old, base)
            if recipe.forget and old.words > new.words:
                yield self._bare(RESIZE, None)
            else:
                run = (min(old.words, new.words), longer.words)
                yield _carried(RESIZE, reader, longer, run, recipe=recipe, pool=pool)
        if self.changes is not None:
            yield encode_part(
                self.changes,
                recipe.op,
                pool=pool,
                choice=recipe.choice,
                explain=recipe.explain,
            )

    def _bare(self, op: str, reference: str | None) -> EncodedPart:
        digests = b"".join(self.copied_segments) if reference is not None else b""
        return EncodedPart(BarePart(op, reference), digests, [], bare_content(op, reference), {})


def _carried(
    op: str,
    reader: CheckpointReader,
    spec: TensorSpec,
    run: tuple[int, int],
    *,
    recipe: Recipe,
    pool: OrderedMap,
) -> EncodedPart:
    first, last = run

    def read(start: int, stop: int) -> Words:
        return as_words(reader.read(spec.name, first + start, first + stop), spec.word_bytes)

    return encode_words(
        last - first,
        spec.word_bytes,
        op,
        read,
        pool=pool,
        choice=recipe.dense_choice,
        name=spec.name,
    )


def _domain(pair: Pair) -> TensorSpec:
    """The tensor, or the surviving rows of it, that changed words belong to."""
    specs = [spec for spec in (pair.base, pair.target) if spec is not None]
    return min(specs, key=lambda spec: spec.words)


def scan_tensors(
    base: CheckpointReader,
    target: CheckpointReader,
    pairs: list[Pair],
    *,
    recipe: Recipe,
    pool: OrderedMap,
    progress: Progress,
) -> Generator[ScannedTensor, None, None]:
    """Compare pairs of tensors; each is read once, a few runs at a time.

    Yields:
        The pairs in their order, compared.
    """
    total = sum(map(_pair_bytes, pairs))
    done = 0

    def scan(item: tuple[Pair, int]) -> _Scan:
        return _scan(base, target, *item, recipe)

    items = ((pair, start) for pair in pairs for start in _runs(pair))
    with pool.mapped(scan, items) as scans:
        for pair in pairs:
            tensor = ScannedTensor(pair)
            for start in _runs(pair):
                tensor.add(next(scans))
                done += _run_bytes(pair, start)
                progress(done, total)
            yield tensor


def _runs(pair: Pair) -> range:
    words = max(spec.words for spec in (pair.base, pair.target) if spec is not None)
    return range(0, words, SEGMENT_WORDS)


def _pair_bytes(pair: Pair) -> int:
    return sum(_run_bytes(pair, start) for start in _runs(pair))


def _run_bytes(pair: Pair, start: int) -> int:
    return sum(
        max(0, min(start + SEGMENT_WORDS, spec.words) - start) * spec.word_bytes
        for spec in (pair.base, pair.target)
        if spec is not None
    )


def _scan(
    base: CheckpointReader, target: CheckpointReader, pair: Pair, start: int, recipe: Recipe
) -> _Scan:
    old = _read(base, pair.base, start)
    new = _read(target, pair.target, start)
    before = None if old is None else segment_digest(old.view(np.uint8).data)
    after = None if new is None else segment_digest(new.view(np.uint8).data)
    copied = None
    if pair.copied is not None:
        # A copy stands in for the end that is missing: the base of a new tensor, or the target of
        # a dropped one, whose words are known to be the same.
        spec = pair.target or pair.base
        assert spec is not None  # noqa: S101 (a pair has at least one end)
        if pair.target is not None:
            old = _read(base, TensorSpec(pair.copied, spec.dtype, spec.shape), start)
            copied = None if old is None else segment_digest(old.view(np.uint8).data)
        else:
            copied = before
    if old is None or new is None or not (pair.is_change or pair.copied is not None):
        return _Scan(before, after, copied, start, None, None)
    if (copied or before) == after:  # a collision is out of reach: the words are equal
        return _Scan(before, after, copied, start, None, None)
    both = min(old.size, new.size)
    old, new = old[:both], new[:both]
    marks = old != new
    if not marks.any():
        return _Scan(before, after, copied, start, None, None)
    values = new[marks]
    if recipe.op == DIFFERENCE:
        values = difference(values, old[marks])
    return _Scan(before, after, copied, start, marks, values)


def _read(reader: CheckpointReader, spec: TensorSpec | None, start: int) -> Words | None:
    if spec is None or start >= spec.words:
        return None
    stop = min(start + SEGMENT_WORDS, spec.words)
    return as_words(reader.read(spec.name, start, stop), spec.word_bytes)
