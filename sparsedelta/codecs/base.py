"""What a codec is: a pure map between the entries of one block and byte streams (spec section 6).

A codec is a frozen dataclass of its parameters. It never sees a file, a frame or a checksum; it
raises :class:`StreamError` for streams that break a rule of its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsedelta.words import Bytes, Indices, Words

Counts: TypeAlias = NDArray[np.int64]
"""A number per block."""


class Bounds(NamedTuple):
    """Decoded lengths that a stream may have, in bytes.

    Attributes:
        low: Least length, per block.
        high: Greatest length, per block.
        step: Every length is a multiple of it.
    """

    low: Counts
    high: Counts
    step: int = 1


class UnfitError(ValueError):
    """A codec cannot hold the entries of a block."""


class StreamError(Exception):
    """Streams of a block break a rule of the codec's page.

    Attributes:
        rule: Code of the rule, such as ``SD403``.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class Block(NamedTuple):
    """What a codec is told about the block it works on.

    Attributes:
        words: Number of words of the block, 1 to 2^24.
        word_bytes: Bytes of a word: 1, 2, 4 or 8.
        base: The base words of the block, for codecs whose ``needs_base`` is true, else None.
        dtype: Dtype of the tensor, for codecs that look into its words.
        start: Index of the block's first word in the part's domain.
        row: Words of a row of the tensor, for a writer that may make use of it; 0 if it has none.
        any_order: Whether a reader takes entries in any order, if that is faster.
    """

    words: int
    word_bytes: int
    base: Words | None = None
    dtype: str = ""
    start: int = 0
    row: int = 0
    any_order: bool = False


@dataclass(frozen=True, slots=True)
class CodedBlock:
    """A block as it is stored.

    Attributes:
        streams: Its streams, decoded from their frames; their lengths have been checked (SD304).
        count: Its number of entries.
        block: The block; with ``base`` if its codecs need it.
    """

    streams: Sequence[Bytes]
    count: int
    block: Block


class IndexCodec(Protocol):
    """Maps the indices of a block, relative to its first word, to streams.

    Attributes:
        id: Its name in manifests.
        needs_base: Whether blocks are given to it with their base words.
        stored: Whether the frames of its streams must be stored, not compressed.
        rule: Code of the rule that its streams may break.
    """

    id: ClassVar[str]
    needs_base: ClassVar[bool]
    stored: ClassVar[bool]
    rule: ClassVar[str]

    def stream_count(self, word_bytes: int) -> int:
        """Number of streams per block."""

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:
        """Decoded lengths allowed for blocks of ``words`` words with ``counts`` > 0 entries."""

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:
        """Streams of ascending indices below ``block.words``."""

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """The ``count`` indices, ascending and below ``block.words``.

        Raises:
            StreamError: The streams break a rule.
        """


class ValueCodec(Protocol):
    """Maps values, words of a block, to streams. Attributes are those of an index codec."""

    id: ClassVar[str]
    needs_base: ClassVar[bool]
    stored: ClassVar[bool]
    rule: ClassVar[str]

    def stream_count(self, word_bytes: int) -> int:
        """Number of streams per block."""

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:
        """Decoded lengths allowed for ``counts`` > 0 values, per stream and block."""

    def encode(self, values: Words, block: Block) -> list[Bytes]:
        """Streams of the values."""

    def nonzero(self, streams: Sequence[Bytes], count: int) -> NDArray[np.bool_]:
        """Whether each of the ``count`` values is other than 0, before they are decoded."""

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Words:
        """The ``count`` values.

        Raises:
            StreamError: The streams break a rule.
        """


class JointCodec(Protocol):
    """Maps the entries of a block to streams, index and value together.

    A part names it as both of its codecs. Attributes are those of an index codec.
    """

    id: ClassVar[str]
    needs_base: ClassVar[bool]
    stored: ClassVar[bool]
    rule: ClassVar[str]

    def holds(self, dtype: str) -> bool:
        """Whether it may be used for tensors of a dtype (rule SD210)."""

    def stream_count(self, word_bytes: int) -> int:
        """Number of streams per block."""

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:
        """Decoded lengths allowed for blocks of ``words`` words with ``counts`` > 0 entries."""

    def encode(self, indices: Indices, values: Words, block: Block) -> list[Bytes]:
        """Streams of at least one entry, in ascending order."""

    def cuts(self, coded: CodedBlock) -> list[int]:
        """Ends of parts of the stream that are better compressed by themselves, ascending."""

    def check(self, coded: CodedBlock) -> None:
        """Check all of a block that needs no base words; it has at least one entry.

        Raises:
            StreamError: The streams break a rule.
        """

    def decode_all(self, coded: Sequence[CodedBlock]) -> list[tuple[Indices, Words]]:
        """The entries of some blocks, at least one of each: ascending unless it allows any.

        Raises:
            StreamError: The streams of a block break a rule.
        """


AnyIndexCodec: TypeAlias = IndexCodec | JointCodec
AnyValueCodec: TypeAlias = ValueCodec | JointCodec
AnyCodec: TypeAlias = IndexCodec | ValueCodec | JointCodec
