"""Codecs: pure maps between the entries of a block and byte streams."""

from sparsedelta.codecs.base import (
    AnyCodec,
    AnyIndexCodec,
    AnyValueCodec,
    Block,
    CodedBlock,
    IndexCodec,
    StreamError,
    UnfitError,
    ValueCodec,
)
from sparsedelta.codecs.bitmask import Bitmask
from sparsedelta.codecs.dense import Dense
from sparsedelta.codecs.encoding import DENSE_OPS, ENTRY_OPS, Encoding
from sparsedelta.codecs.gap8 import Gap8
from sparsedelta.codecs.gap8_split import GapSplit
from sparsedelta.codecs.packed import Packed
from sparsedelta.codecs.planes import Planes
from sparsedelta.codecs.range import Range
from sparsedelta.codecs.ranked import Ranked
from sparsedelta.codecs.raw import RawIndices, RawWords
from sparsedelta.codecs.registry import INDEX_CODECS, VALUE_CODECS
from sparsedelta.codecs.zigzag import Zigzag

__all__ = [
    "DENSE_OPS",
    "ENTRY_OPS",
    "INDEX_CODECS",
    "VALUE_CODECS",
    "AnyCodec",
    "AnyIndexCodec",
    "AnyValueCodec",
    "Bitmask",
    "Block",
    "CodedBlock",
    "Dense",
    "Encoding",
    "Gap8",
    "GapSplit",
    "IndexCodec",
    "Packed",
    "Planes",
    "Range",
    "Ranked",
    "RawIndices",
    "RawWords",
    "StreamError",
    "UnfitError",
    "ValueCodec",
    "Zigzag",
]
