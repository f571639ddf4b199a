"""Words that are read once more, and have to be those that were read before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.digests import Digest, segment_digest
from sparsedelta.errors import CheckpointError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.words import TensorSpec, Words, as_words

_KEPT: Final = 4
"""Segments: threads that work side by side on blocks of one read it once."""


class Rereading:
    """Reads words of a tensor, the same ones however often; callable in any thread.

    Whoever digests a tensor and works on other bytes of it describes a tensor that never was: a
    file may change in between without a trace in its times, and a live model has none.

    Args:
        reader: The checkpoint.
        spec: The tensor.
        segments: Its segment digests, if it has been read; otherwise the first reading of each
            segment is the one that counts.
    """

    def __init__(
        self, reader: CheckpointReader, spec: TensorSpec, segments: Sequence[Digest] = ()
    ) -> None:
        self._reader = reader
        self._spec = spec
        self._digests = dict(enumerate(segments))
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Slot] = OrderedDict()

    def __call__(self, start: int, stop: int) -> Words:
        """The words ``[start, stop)``, not to be written to.

        Raises:
            CheckpointError: They are not those of the first reading.
        """
        first, last = start // SEGMENT_WORDS, -(-stop // SEGMENT_WORDS)
        pieces = []
        for number in range(first, last):
            at = number * SEGMENT_WORDS
            pieces.append(self._segment(number)[max(0, start - at) : stop - at])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty(0, self._spec.word_dtype), *pieces])

    def digests(self) -> tuple[Digest, ...]:
        """Digests of all segments; those that have not been read yet are read.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        for number in range(-(-self._spec.words // SEGMENT_WORDS)):
            if number not in self._digests:
                self._read(number)
        return tuple(digest for _, digest in sorted(self._digests.items()))

    def release(self) -> None:
        """Let go of the words that are kept for the next reading."""
        with self._lock:
            self._kept.clear()

    def _segment(self, number: int) -> Words:
        with self._lock:
            slot = self._kept.setdefault(number, _Slot())
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        with slot.lock:
            if slot.words is None:
                slot.words = self._read(number)
            return slot.words

    def _read(self, number: int) -> Words:
        spec, start = self._spec, number * SEGMENT_WORDS
        data = self._reader.read(spec.name, start, min(start + SEGMENT_WORDS, spec.words))
        digest = segment_digest(data.data)
        if self._digests.setdefault(number, digest) != digest:
            raise CheckpointError(
                f"{self._reader.location} changed while it was being read: tensor {spec.name!r}, "
                f"words {start:,} on, is not what it was at first",
                hint="wait until it is written, and run it again",
            )
        words = as_words(data, spec.word_bytes)
        words.flags.writeable = False
        return words


class _Slot:
    """A segment, or room for it: whoever comes first reads it, others wait."""

    __slots__ = ("lock", "words")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.words: Words | None = None
