"""Proving a change in place before it is made: every run verified, its changed words journalled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from sparsedelta.batches import together
from sparsedelta.changes import Run as Changed
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta import DIFFERENCE, REPLACE, Part
from sparsedelta.digests import (
    Digest,
    checkpoint_fingerprint,
    segment_hasher,
    tensor_digest,
)
from sparsedelta.journal_frames import Buffers, Run, run_frame
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.locked_files import LockedFiles
from sparsedelta.operations.arrows import Arrow, DiffersError, ReadRun, follow
from sparsedelta.operations.batched_runs import SourceRun, batches
from sparsedelta.operations.hops import HopRun, entries_of
from sparsedelta.operations.steps import Step, Verify
from sparsedelta.operations.way_back import WayBack
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress
from sparsedelta.records import PartRecord
from sparsedelta.slices import apply_parts
from sparsedelta.words import Bytes, Indices, Words, as_words

Place: TypeAlias = tuple[int, int]
"""Number of a file, and the byte at which a tensor begins there."""

_CHUNK: Final = 1 << 20
"""Bytes that are read, digested, changed and digested again at a time: they stay in the cache."""

_PLAIN_OPS: Final = (DIFFERENCE, REPLACE)
"""Ops that never fail, whatever the words: they may run before all of a segment is digested."""


class _Found(NamedTuple):
    """What became of a run.

    Attributes:
        frames: What to journal.
        digests: Those of a source that is not known by its segments.
        changed: What leads back, if that is asked for.
    """

    frames: list[Buffers]
    digests: Sequence[Digest] = ()
    changed: Sequence[Changed] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """Goes through a checkpoint along a step, and tells what is to be changed where.

    Attributes:
        checkpoint: The checkpoint.
        files: Its files, locked.
        sources: Where its tensors lie, by name.
        results: Where those of the result lie, by name.
        pool: Threads to use.
        verify: What is verified.
        way_back: What writes the way back, or None.
    """

    checkpoint: FileCheckpoint
    files: LockedFiles
    sources: Mapping[str, Place]
    results: Mapping[str, Place]
    pool: OrderedMap
    verify: Verify
    way_back: WayBack | None = None

    def __call__(self, step: Step, journal: Callable[[Buffers], None], progress: Progress) -> None:
        """Verify the checkpoint and what the step makes of it.

        Args:
            step: The step.
            journal: Takes the frame of every run that changes.
            progress: Told how many bytes were gone through, and of how many.

        Raises:
            DiffersError: A tensor is not what the step starts from.
            VerificationError: The result is not what the delta promises.
            CheckpointError: A file became shorter.
            FormatError: The delta breaks a rule.
        """
        is_full = self.verify == "full"
        arrows = [arrow for arrow in step.arrows if is_full or not arrow.stays]
        total = sum(arrow.words * arrow.word_bytes for arrow in arrows)
        done = 0

        def work(batch: Sequence[SourceRun]) -> list[_Found]:
            return together(self._take, batch)

        found = dict(step.expected)
        with self.pool.mapped(work, batches(arrows)) as taken:
            results = chain.from_iterable(taken)
            for arrow in arrows:
                digests: list[Digest] = []
                changed: list[Changed] = []
                for start, stop in arrow.spans():
                    run = next(results)
                    digests += run.digests
                    changed += run.changed
                    for frame in run.frames:
                        journal(frame)
                    done += (stop - start) * arrow.word_bytes
                    progress(done, total)
                if arrow.source is not None and arrow.stays:
                    name = arrow.source.name
                    found[name] = tensor_digest(arrow.source, digests)
                    if found[name] != step.expected.get(name, found[name]):
                        raise DiffersError
                if self.way_back is not None and not arrow.stays:
                    self.way_back.add(arrow, changed)
        if is_full:
            if checkpoint_fingerprint(found).hex() != step.fingerprint:
                raise DiffersError
            step.check_result(found)

    def _take(self, batch: Sequence[SourceRun]) -> list[_Found]:
        """What becomes of some runs."""
        found: dict[int, _Found] = {}
        for number, (arrow, start, stop) in enumerate(batch):
            done = None
            if arrow.stays:
                done = _Found([], self._digests(arrow, start, stop))
            elif self._is_plain(arrow):
                done = self._scattered(arrow, start, stop)
            if done is not None:
                found[number] = done
        others = [number for number in range(len(batch)) if number not in found]
        rest = self._compared([batch[number] for number in others])
        found.update(zip(others, rest, strict=True))
        return [found[number] for number in range(len(batch))]

    def _digests(self, arrow: Arrow, start: int, stop: int) -> list[Digest]:
        assert arrow.source is not None  # noqa: S101 (it stays)
        file, offset = self.sources[arrow.source.name]
        width = arrow.word_bytes
        state = segment_hasher()  # spans of what stays are segments
        buffer = np.empty(min(_CHUNK, (stop - start) * width), np.uint8)
        for at in range(start * width, stop * width, _CHUNK):
            data = buffer[: min(_CHUNK, stop * width - at)]
            self.files.read_into(file, data.data, offset + at)
            state.update(data.data)
        return [state.digest()]

    def _is_plain(self, arrow: Arrow) -> bool:
        """Whether entries are all that changes, and can be had without the words they change."""
        source, result = arrow.source, arrow.result
        if source is None or result is None or arrow.before is None or len(arrow.hops) > 1:
            return False
        return (
            source.words == result.words
            and all(hop.carried is None for hop in arrow.hops)
            and self.sources[source.name] == self.results[result.name]
            and all(_is_simple(part) for hop in arrow.hops for _, part in hop.parts)
        )

    def _compared(self, batch: Sequence[SourceRun]) -> list[_Found]:
        """Make runs of the results, and compare them with what lies in their places."""
        runs = []
        for arrow, start, stop in batch:
            data = np.empty(0, np.uint8)
            if arrow.source is not None and start < arrow.source.words:
                data = self.checkpoint.read(arrow.source.name, start, min(stop, arrow.source.words))
            runs.append(ReadRun(arrow, start, stop, data))
        before = [run.data.copy() for run in runs] if self.way_back is not None else []
        made = follow(runs)
        found = []
        for number, ((arrow, start, _, _), new) in enumerate(zip(runs, made, strict=True)):
            changed = []
            if self.way_back is not None and arrow.result is not None:
                changed = [self.way_back.changed(arrow, start, before[number], new)]
            found.append(_Found(list(self._frames(arrow, start, new)), changed=changed))
        return found

    def _frames(self, arrow: Arrow, start: int, made: Bytes) -> Iterator[Buffers]:
        """Compare a run of a result with what lies in its place."""
        if arrow.result is None:
            return
        width = arrow.word_bytes
        file, offset = self.results[arrow.result.name]
        for at in range(0, made.size, SEGMENT_WORDS * width):
            new = made[at : at + SEGMENT_WORDS * width]
            old = np.empty_like(new)
            place = offset + start * width + at
            self.files.read_into(file, old.data, place)
            yield from compared(file, place, as_words(old, width), as_words(new, width))

    def _scattered(self, arrow: Arrow, start: int, stop: int) -> _Found | None:
        """Follow the entries of a run; None if a digest is not the expected one."""
        assert arrow.before is not None and arrow.source is not None  # noqa: S101, PT018
        parts = [
            part.invert() if hop.reverse else part
            for hop in arrow.hops
            for part in chain.from_iterable(entries_of([HopRun(hop, start, stop)]))
        ]
        frames = []
        changed = []
        for first in range(start, stop, SEGMENT_WORDS):
            last = min(first + SEGMENT_WORDS, stop)
            number = first // SEGMENT_WORDS
            run, *digests = self._segment(arrow, first, last, parts)
            if digests != [arrow.before[number], arrow.after[number]]:
                return None
            if run is not None:
                frames.append(run_frame(run))
                if self.way_back is not None:
                    at = np.arange(run.words) if run.positions is None else run.positions
                    changed.append(self.way_back.entries(first, run.words, at, run.old, run.new))
        return _Found(frames, changed=changed)

    def _segment(
        self, arrow: Arrow, first: int, last: int, parts: list[Part]
    ) -> tuple[Run | None, Digest, Digest]:
        assert arrow.source is not None and arrow.result is not None  # noqa: S101, PT018
        file, offset = self.sources[arrow.source.name]
        width = arrow.word_bytes
        size = _CHUNK // width
        before = segment_hasher()
        # A segment without entries stays as it is, and so does its digest.
        changes = any(_within(part, first, last).nnz for part in parts)
        after = segment_hasher()
        buffer = np.empty(min(size, last - first), arrow.result.word_dtype)
        runs: list[tuple[Indices, Words, Words]] = []
        for start in range(first, last, size):
            words = buffer[: min(size, last - start)]
            data = words.view(np.uint8).data
            self.files.read_into(file, data, offset + start * width)
            before.update(data)
            if not changes:
                continue
            near = [_within(part, start, start + words.size) for part in parts]
            at = _positions(near) - start
            old = words[at]
            apply_parts(arrow.result, words, start, near)
            runs.append((at + (start - first), old, words[at]))
            after.update(data)
        if not changes:
            return None, before.digest(), before.digest()
        at, old, new = (np.concatenate(each) for each in zip(*runs, strict=True))
        positions = None if at.size == last - first else at
        run = Run(file, offset + first * width, last - first, positions, old, new)
        return run, before.digest(), after.digest()


def compared(file: int, offset: int, old: Words, new: Words) -> Iterator[Buffers]:
    """The frame of a run of at most 2^22 words that differs somewhere; nothing if it does not."""
    at = np.flatnonzero(old != new)
    if at.size:
        positions = None if at.size == old.size else at
        yield run_frame(Run(file, offset, old.size, positions, old[at], new[at]))


def _is_simple(part: PartRecord) -> bool:
    return part.op in _PLAIN_OPS and not part.encoding.needs_base


def _within(part: Part, start: int, stop: int) -> Part:
    assert part.indices is not None and part.words is not None  # noqa: S101, PT018 (sparse)
    low, high = np.searchsorted(part.indices, [start, stop])
    return Part(part.op, part.indices[low:high], part.words[low:high])


def _positions(parts: list[Part]) -> Indices:
    found = [part.indices for part in parts if part.indices is not None]
    if len(found) == 1:
        return found[0]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))
