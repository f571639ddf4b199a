"""Codecs: pure maps between the entries of a block and byte streams."""

from sparsedelta.codecs.base import Block, IndexCodec, StreamError, ValueCodec
from sparsedelta.codecs.bitmask import Bitmask
from sparsedelta.codecs.dense import Dense
from sparsedelta.codecs.encoding import Encoding
from sparsedelta.codecs.gap8 import Gap8
from sparsedelta.codecs.packed import Packed
from sparsedelta.codecs.planes import Planes
from sparsedelta.codecs.registry import INDEX_CODECS, VALUE_CODECS
from sparsedelta.codecs.zigzag import Zigzag

__all__ = [
    "INDEX_CODECS",
    "VALUE_CODECS",
    "Bitmask",
    "Block",
    "Dense",
    "Encoding",
    "Gap8",
    "IndexCodec",
    "Packed",
    "Planes",
    "StreamError",
    "ValueCodec",
    "Zigzag",
]
