"""Comparing a pair of tensors, run by run, and encoding what one becomes of the other."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

import numpy as np

from sparsedelta.batches import BATCH_BYTES
from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.checkpoint import CheckpointReader, FileCheckpoint
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import Planes, Ranked, RawWords
from sparsedelta.compact import encode_difference, encode_ranked, ranked_bytes
from sparsedelta.compare import differing_words
from sparsedelta.delta import DIFFERENCE, DROP, NEW, REPLACE, RESIZE, bare_content
from sparsedelta.digests import Digest, segment_digest
from sparsedelta.encode import EncodedPart, EncodedTensor, encode_part, encode_words
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.manifest import PORTABLE
from sparsedelta.operations.pairing import Pair
from sparsedelta.parallel import OrderedMap, Scratch
from sparsedelta.progress import Progress
from sparsedelta.records import BarePart
from sparsedelta.rereading import Rereading
from sparsedelta.words import ReadWords, TensorSpec, Words, as_words

_Work: TypeAlias = tuple[Pair, int | None]
"""A pair to be compared whole, or the first word of one of its runs."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How changes are written.

    Attributes:
        one_way: Store new words instead of differences.
        forget: Do not store the words of what goes.
        choice: The codecs to use; None for the smallest.
        explain: Try every codec, also those that can hardly win.
        profile: ``portable``, or ``compact``: differences may need the base to be decoded.
        sampled: Names of the pairs of which it is estimated what ``ranked`` would take.
    """

    one_way: bool = False
    forget: bool = False
    choice: CodecChoice | None = None
    explain: bool = False
    profile: str = PORTABLE
    sampled: frozenset[str] = frozenset()

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
    changed: Run | None = None


@dataclass(slots=True)
class ScannedTensor:
    """A pair whose runs have all been compared.

    Attributes:
        pair: The pair.
        base_segments: Segment digests of the base tensor.
        target_segments: Segment digests of the target tensor.
        copied_segments: Segment digests of the tensor that a copy is made of, or lives on in.
        changes: The changed words, or None.
        encoded: What is to be written of it; None if it is untouched.
        estimate: About how many bytes ``ranked`` would take for its changes, if that was asked for.
    """

    pair: Pair
    base_segments: list[Digest] = field(default_factory=list)
    target_segments: list[Digest] = field(default_factory=list)
    copied_segments: list[Digest] = field(default_factory=list)
    changes: Changes | None = None
    encoded: EncodedTensor | None = None
    estimate: int | None = None

    def add(self, scanned: _Scan) -> None:
        """Take the next run in."""
        for digest, segments in (
            (scanned.base, self.base_segments),
            (scanned.target, self.target_segments),
            (scanned.copied, self.copied_segments),
        ):
            if digest is not None:
                segments.append(digest)
        if scanned.changed is not None:
            if self.changes is None:
                self.changes = Changes(_domain(self.pair))
            self.changes.append(scanned.changed)

    def encode(
        self, base: CheckpointReader, target: CheckpointReader, recipe: Recipe, pool: OrderedMap
    ) -> None:
        """Make what is to be written of the pair; its changes are not needed any more then."""
        if self.pair.base == self.pair.target and self.changes is None:
            return
        parts = list(self._parts(base, target, recipe, pool))
        self.changes = None
        self.encoded = EncodedTensor(
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
                was = Rereading(base, old, self.base_segments)
                yield _carried(DROP, was, old, (0, old.words), recipe=recipe, pool=pool)
        if new is not None and not is_change:
            if copied is None:
                now = Rereading(target, new, self.target_segments)
                yield _carried(NEW, now, new, (0, new.words), recipe=recipe, pool=pool)
            else:
                yield self._bare(NEW, copied)
        if is_change and old is not None and new is not None and old.shape != new.shape:
            if recipe.forget and old.words > new.words:
                yield self._bare(RESIZE, None)
            else:
                grows = new.words >= old.words
                shorter, longer = (old, new) if grows else (new, old)
                reader, segments = (
                    (target, self.target_segments) if grows else (base, self.base_segments)
                )
                read = Rereading(reader, longer, segments)
                run = (shorter.words, longer.words)
                yield _carried(RESIZE, read, longer, run, recipe=recipe, pool=pool)
        if self.changes is not None:
            if self.pair.name in recipe.sampled and recipe.op == DIFFERENCE:
                self.estimate = ranked_bytes(self.changes, self._sample(base), pool)
            yield _encoded(self.changes, recipe, pool, self._origin(base))

    def _origin(self, base: CheckpointReader) -> Rereading:
        """Reads the words that changes are made to."""
        if self.pair.base is not None:
            return Rereading(base, self.pair.base, self.base_segments)
        new, copied = self.pair.target, self.pair.copied
        assert copied is not None and new is not None  # noqa: S101, PT018 (it is a copy)
        return Rereading(base, TensorSpec(copied, new.dtype, new.shape), self.copied_segments)

    def _sample(self, base: CheckpointReader) -> ReadWords:
        """Reads words that changes are made to, for an estimate: of any block, as it is by now."""
        old = self.pair.copied if self.pair.base is None else self.pair.base.name
        assert old is not None  # noqa: S101 (changes are made to something)

        def read(start: int, stop: int) -> Words:
            spec = base.specs[old]
            return as_words(base.read(old, start, stop), spec.word_bytes)

        return read

    def _bare(self, op: str, reference: str | None) -> EncodedPart:
        digests = b"".join(self.copied_segments) if reference is not None else b""
        return EncodedPart(BarePart(op, reference), digests, [], bare_content(op, reference), {})


def _encoded(changes: Changes, recipe: Recipe, pool: OrderedMap, base: ReadWords) -> EncodedPart:
    if recipe.profile == PORTABLE or recipe.op != DIFFERENCE:
        return encode_part(
            changes, recipe.op, pool=pool, choice=recipe.choice, explain=recipe.explain
        )
    choice = recipe.choice
    if choice is None:
        return encode_difference(changes, base, pool=pool, explain=recipe.explain)
    if isinstance(choice.index, Ranked):
        return encode_ranked(changes, base, pool=pool)
    return encode_part(changes, recipe.op, pool=pool, choice=choice, explain=recipe.explain)


def _carried(
    op: str,
    read: ReadWords,
    spec: TensorSpec,
    run: tuple[int, int],
    *,
    recipe: Recipe,
    pool: OrderedMap,
) -> EncodedPart:
    first, last = run
    return encode_words(
        last - first,
        spec.word_bytes,
        op,
        lambda start, stop: read(first + start, first + stop),
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
    pairs: Sequence[Pair],
    *,
    recipe: Recipe,
    pool: OrderedMap,
    progress: Progress,
) -> Generator[ScannedTensor, None, None]:
    """Compare pairs of tensors and encode what changed; each is read once, a few runs at a time.

    Of large tensors the runs, then the blocks are spread over the threads; small ones are compared
    and encoded whole by one thread, many of them at a time.

    Yields:
        The pairs in their order, compared and encoded.
    """
    total = sum(map(_pair_bytes, pairs))
    done = 0
    alone = OrderedMap(1)
    scanner = _Scanner(base, target, recipe)

    def work(batch: Sequence[_Work]) -> list[ScannedTensor | _Scan]:
        return [do(*each) for each in batch]

    def do(pair: Pair, start: int | None) -> ScannedTensor | _Scan:
        if start is not None:
            return scanner.scan(pair, start)
        tensor = ScannedTensor(pair)
        for each in _runs(pair):
            tensor.add(scanner.scan(pair, each))
        tensor.encode(base, target, recipe, alone)
        return tensor

    with pool.mapped(work, _batches(pairs)) as batches:
        results = chain.from_iterable(batches)
        for pair in pairs:
            tensor = next(results) if _is_small(pair) else ScannedTensor(pair)
            assert isinstance(tensor, ScannedTensor)  # noqa: S101 (results come in order)
            for start in _runs(pair):
                if not _is_small(pair):
                    scanned = next(results)
                    assert isinstance(scanned, _Scan)  # noqa: S101 (as above)
                    tensor.add(scanned)
                done += _run_bytes(pair, start)
                progress(done, total)
            if not _is_small(pair):
                tensor.encode(base, target, recipe, pool)
            yield tensor


def _is_small(pair: Pair) -> bool:
    return len(_runs(pair)) <= 1


def _batches(pairs: Iterable[Pair]) -> Iterator[Sequence[_Work]]:
    """Small pairs whole, several at a time; large ones run by run."""
    batch: list[_Work] = []
    size = 0
    for pair in pairs:
        if _is_small(pair):
            batch.append((pair, None))
            size += _pair_bytes(pair)
        if batch and (size >= BATCH_BYTES or not _is_small(pair)):
            yield batch
            batch, size = [], 0
        if not _is_small(pair):
            yield from ([(pair, start)] for start in _runs(pair))
    if batch:
        yield batch


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


@dataclass(frozen=True, slots=True)
class _Scanner:
    """Compares runs of pairs, in any thread."""

    base: CheckpointReader
    target: CheckpointReader
    recipe: Recipe
    scratch: Scratch = field(default_factory=Scratch)

    def scan(self, pair: Pair, start: int) -> _Scan:
        old = self._read(self.base, pair.base, start, "base")
        new = self._read(self.target, pair.target, start, "target")
        before = None if old is None else segment_digest(old.view(np.uint8).data)
        after = None if new is None else segment_digest(new.view(np.uint8).data)
        copied = None
        if pair.copied is not None:
            # A copy stands in for the end that is missing: the base of a new tensor, or the target
            # of a dropped one, whose words are known to be the same.
            spec = pair.target or pair.base
            assert spec is not None  # noqa: S101 (a pair has at least one end)
            if pair.target is not None:
                same = TensorSpec(pair.copied, spec.dtype, spec.shape)
                old = self._read(self.base, same, start, "base")
                copied = None if old is None else segment_digest(old.view(np.uint8).data)
            else:
                copied = before
        if old is None or new is None or not (pair.is_change or pair.copied is not None):
            return _Scan(before, after, copied)
        if (copied or before) == after:  # a collision is out of reach: the words are equal
            return _Scan(before, after, copied)
        both = min(old.size, new.size)
        is_difference = self.recipe.op == DIFFERENCE
        found = differing_words(old[:both], new[:both], as_difference=is_difference)
        if not found.offsets.size:
            return _Scan(before, after, copied)
        return _Scan(before, after, copied, make_run(start, both, *found))

    def _read(
        self, reader: CheckpointReader, spec: TensorSpec | None, start: int, purpose: str
    ) -> Words | None:
        if spec is None or start >= spec.words:
            return None
        stop = min(start + SEGMENT_WORDS, spec.words)
        if not isinstance(reader, FileCheckpoint):
            return as_words(reader.read(spec.name, start, stop), spec.word_bytes)
        out = self.scratch.take(purpose, (stop - start) * spec.word_bytes)
        return as_words(reader.read(spec.name, start, stop, out), spec.word_bytes)
