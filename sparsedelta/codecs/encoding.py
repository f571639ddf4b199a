"""An encoding: an index codec, a value codec, and what they may be used for (spec section 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.codecs.base import (
    AnyCodec,
    AnyIndexCodec,
    AnyValueCodec,
    Block,
    Bounds,
    CodedBlock,
    Counts,
    IndexCodec,
    JointCodec,
    StreamError,
    UnfitError,
    ValueCodec,
)
from sparsedelta.codecs.dense import Dense
from sparsedelta.codecs.packed import Packed
from sparsedelta.codecs.planes import Planes
from sparsedelta.codecs.range import Range
from sparsedelta.codecs.ranked import Ranked
from sparsedelta.codecs.raw import RawWords
from sparsedelta.codecs.registry import (
    INDEX_CODECS,
    VALUE_CODECS,
    codec_from_json,
    codec_to_json,
)

if TYPE_CHECKING:
    from sparsedelta.strict_json import Json
    from sparsedelta.words import Bytes, Indices, Words

ENTRY_OPS: Final = ("difference", "replace", "add")
"""Ops whose parts hold entries: an index and a value each."""

DENSE_OPS: Final = ("new", "drop", "resize")
"""Ops whose coded parts carry every word of their domain."""


_known: dict[tuple[object, ...], Encoding] = {}
"""Encodings by what a manifest says of them; only valid ones, of which there are some dozens."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the entries of a part are written.

    ``dense`` and ``range`` hold a value for every word of a run, the whole block or a piece of it:
    in a ``difference`` words of the run that are no entries have the value 0, in any other op every
    word of the run is an entry. The other index codecs hold a value per entry; ``ranked`` writes
    index and value together.

    Attributes:
        op: One of ``ENTRY_OPS`` and ``DENSE_OPS``.
        index: Codec of the indices.
        value: Codec of the values.

    Raises:
        ValueError: The specification does not allow this combination.
    """

    op: str
    index: AnyIndexCodec
    value: AnyValueCodec

    def __post_init__(self) -> None:
        if self.op not in (*ENTRY_OPS, *DENSE_OPS):
            raise ValueError(f"unknown op {self.op!r}, expected one of {ENTRY_OPS + DENSE_OPS}")
        if self.op in DENSE_OPS and not isinstance(self.index, Dense):
            raise ValueError(f"index codec {self.index.id!r}, {self.op!r} allows 'dense' only")
        if isinstance(self.index, Ranked) != isinstance(self.value, Ranked):
            raise ValueError("'ranked' is an index codec and a value codec: it goes with itself")
        if self.op != "difference" and not isinstance(self.value, (Planes, RawWords)):
            raise ValueError(
                f"value codec {self.value.id!r}, {self.op!r} allows 'planes' and 'raw' only"
            )
        if isinstance(self.index, (Dense, Range)) and isinstance(self.value, Packed):
            raise ValueError(f"'packed' cannot hold the zeros of {self.index.id!r}")

    @classmethod
    def from_json(cls, op: str, index: Json, value: Json) -> Encoding:
        """The encoding that a manifest names; raises ValueError."""
        # A hundred thousand parts know a dozen encodings. True is no 1 here: types are in the key.
        key = (op, *((name, type(v), v) for codec in (index, value) for name, v in codec.items()))
        try:
            known = _known.get(key)
        except TypeError:  # a parameter that is an array or an object: codec_from_json says so
            known = None
        if known is None:
            known = cls(
                op, codec_from_json(index, INDEX_CODECS), codec_from_json(value, VALUE_CODECS)
            )
            _known[key] = known
        return known

    def to_json(self) -> dict[str, Json]:
        """The ``index`` and ``value`` of a part's record."""
        return {"index": codec_to_json(self.index), "value": codec_to_json(self.value)}

    def describe(self) -> str:
        """The codecs in words, such as ``gap8 + packed(width=1)``."""
        # Codecs are frozen and hash, which a protocol cannot say.
        if self.joint is not None:
            return self.joint.id
        return f"{_describe(self.index)} + {_describe(self.value)}"  # type: ignore[arg-type]

    @property
    def joint(self) -> JointCodec | None:
        """The codec that writes indices and values together, if that is how it is."""
        return self.index if isinstance(self.index, Ranked) else None

    @property
    def pair(self) -> tuple[IndexCodec, ValueCodec]:
        """The two codecs of an encoding that is not joint."""
        return self.index, self.value  # type: ignore[return-value]  # see __post_init__

    def holds(self, dtype: str) -> bool:
        """Whether it may be used for tensors of a dtype (rule SD210)."""
        return self.joint is None or self.joint.holds(dtype)

    @property
    def needs_base(self) -> bool:
        """Whether blocks can only be decoded with the base words at hand."""
        return self.index.needs_base or self.value.needs_base

    def stream_count(self, word_bytes: int) -> int:
        """Streams per block: those of the index codec, then those of the value codec."""
        return sum(codec.stream_count(word_bytes) for codec in self._codecs)

    @property
    def _codecs(self) -> tuple[AnyCodec, ...]:
        """The codecs that have streams of their own."""
        return self.pair if self.joint is None else (self.joint,)

    def stored(self, word_bytes: int) -> list[bool]:
        """Whether the frames of a stream must be stored, per stream."""
        return [
            codec.stored for codec in self._codecs for _ in range(codec.stream_count(word_bytes))
        ]

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> list[Bounds]:
        """Decoded lengths allowed for blocks, per stream; 0 where a block has no entries.

        Args:
            counts: int64 ``[blocks]``, entries of each block.
            words: int64 ``[blocks]``, words of each block.
            word_bytes: Bytes of a word.
        """
        if self.joint is not None:
            bounds = self.joint.bounds(counts, words, word_bytes)
        else:
            index, value = self.pair
            least = words if isinstance(index, Dense) else counts
            most = words if isinstance(index, (Dense, Range)) else counts
            bounds = [
                *index.bounds(counts, words, word_bytes),
                *(
                    Bounds(low.low, high.high, low.step)
                    for low, high in zip(
                        value.bounds(least, words, word_bytes),
                        value.bounds(most, words, word_bytes),
                        strict=True,
                    )
                ),
            ]
        return [
            Bounds(np.where(counts, low, 0), np.where(counts, high, 0), step)
            for low, high, step in bounds
        ]

    def length_faults(
        self,
        counts: Counts,
        words: Counts,
        encoded: NDArray[np.int64],
        decoded: NDArray[np.int64],
        word_bytes: int,
    ) -> Iterator[str]:
        """What breaks rule SD304 in a block table, at most one fault of a kind and stream.

        Args:
            counts: int64 ``[blocks]``, entries of each block.
            words: int64 ``[blocks]``, words of each block.
            encoded: int64 ``[blocks, streams]``, lengths of the frames.
            decoded: int64 ``[blocks, streams]``, lengths of the streams.
            word_bytes: Bytes of a word.
        """
        too_long = (encoded > decoded) | ((encoded != decoded) & self.stored(word_bytes))
        for block, stream in np.argwhere(too_long)[:1]:
            yield (
                f"block {block}, stream {stream}: {encoded[block, stream]} bytes for a stream of "
                f"{decoded[block, stream]}"
            )
        bounds = self.bounds(counts, words, word_bytes)
        if isinstance(self.index, Range):
            # The first value stream tells how many values there are, which all others must have.
            split = self.index.stream_count(word_bytes)
            told = decoded[:, split] // self._value_bytes(word_bytes)
            values = np.where(counts, np.clip(told, counts, words), 0)
            bounds[split + 1 :] = self.value.bounds(values, words, word_bytes)[1:]
        for stream, (low, high, step) in enumerate(bounds):
            lengths = decoded[:, stream]
            bad = (lengths < low) | (lengths > high) | (lengths % step != 0)
            for block in np.flatnonzero(bad)[:1]:
                yield (
                    f"block {block}, stream {stream}: decoded length {lengths[block]}, expected "
                    f"{low[block]} to {high[block]}, a multiple of {step}"
                )

    def _value_bytes(self, word_bytes: int) -> int:
        """Bytes that each value has in the first stream of its codec, where that is fixed."""
        one = np.ones(1, np.int64)
        return int(self.value.bounds(one, one, word_bytes)[0].high[0])

    def encode(self, indices: Indices, values: Words, block: Block) -> list[Bytes]:
        """Streams of a block's entries.

        Args:
            indices: int64 ``[count]``, ascending, relative to the block's first word.
            values: Words ``[count]``.
            block: The block; with ``base`` where ``needs_base``.

        Raises:
            UnfitError: ``dense`` or ``range`` would have to hold a word that is no entry, in an op
                that knows no padding.
        """
        if not indices.size:
            return [np.empty(0, np.uint8)] * self.stream_count(block.word_bytes)
        if self.joint is not None:
            return self.joint.encode(indices, values, block)
        index, value = self.pair
        if isinstance(index, (Dense, Range)):
            first, length = index.span(indices, block)
            if length != indices.size:
                if self.op != "difference":
                    raise UnfitError(
                        f"a block has {indices.size} entries in {length} words, and every word "
                        f"needs one"
                    )
                run = np.zeros(length, values.dtype)
                run[indices - first] = values
                values = run
        return [*index.encode(indices, block), *value.encode(values, block)]

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> tuple[Indices, Words]:
        """Entries of a block, from streams whose lengths have no :meth:`length_faults`.

        Raises:
            StreamError: The streams break a rule of their codec's page, SD405 or SD408.
        """
        if not count:
            return _no_entries(block)
        if self.joint is not None:
            (found,) = self.joint.decode_all([CodedBlock(streams, count, block)])
            return found
        index, value = self.pair
        split = index.stream_count(block.word_bytes)
        values = streams[split:]
        if isinstance(index, (Dense, Range)):
            first, length = index.run(streams[:split], count, block)
            return self._decode_run(first, length, values, count, block)
        indices = index.decode(streams[:split], count, block)
        words = value.decode(values, count, block)
        if self.op == "difference" and not words.all():
            raise StreamError("SD408", "a difference of 0")
        return indices, words

    def decode_all(self, coded: Sequence[CodedBlock]) -> list[tuple[Indices, Words]]:
        """Entries of several blocks, as by :meth:`decode` of each; together that may be faster.

        Raises:
            StreamError: The streams of a block break a rule; of it and no other, decode tells.
        """
        if self.joint is None:
            return [self.decode(each.streams, each.count, each.block) for each in coded]
        found = iter(self.joint.decode_all([each for each in coded if each.count]))
        return [
            next(found) if each.count else self.decode(each.streams, each.count, each.block)
            for each in coded
        ]

    def cuts(self, coded: CodedBlock) -> list[int]:
        """Where Zstandard blocks of the first stream end in any case, in bytes, ascending.

        Args:
            coded: A block that :meth:`encode` has made.
        """
        return self.joint.cuts(coded) if coded.count and self.joint is not None else []

    def check(self, coded: CodedBlock) -> None:
        """Check what can be checked of a block that only its base words decode.

        Raises:
            StreamError: The streams break a rule of their codec's page.
        """
        if coded.count and self.joint is not None:
            self.joint.check(coded)

    def _decode_run(
        self, first: int, length: int, values: Sequence[Bytes], count: int, block: Block
    ) -> tuple[Indices, Words]:
        index, value = self.pair
        rule = index.rule
        if self.op != "difference" and length != count:
            raise StreamError(rule, f"{length} values for {count} entries")
        told = np.array([length])
        for stream, (low, high, _) in zip(
            values, value.bounds(told, told, block.word_bytes), strict=True
        ):
            if not low[0] <= stream.size <= high[0]:
                raise StreamError(rule, f"the value streams do not hold {length} values")
        if self.op != "difference":
            return np.arange(first, first + length), value.decode(values, length, block)
        marks = value.nonzero(values, length)
        run: Indices = np.flatnonzero(marks)
        if run.size != count:
            raise StreamError("SD405", f"{count} values other than 0 expected, {run.size} found")
        if isinstance(index, Range) and not (marks[0] and marks[-1]):
            raise StreamError("SD405", "the run does not begin and end with an entry")
        words = value.decode(values, length, block)
        return run + first, words if count == length else words[run]


def _no_entries(block: Block) -> tuple[Indices, Words]:
    none: Indices = np.empty(0, np.int64)
    return none, np.empty(0, f"<u{block.word_bytes}")


@lru_cache(maxsize=256)
def _describe(codec: AnyCodec) -> str:
    rest = [f"{key}={value}" for key, value in codec_to_json(codec).items() if key != "id"]
    return f"{codec.id}({', '.join(rest)})" if rest else codec.id
