"""Records of a manifest: which tensor leads to which, by which parts (spec sections 3.3 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from sparsedelta.codecs import Encoding
from sparsedelta.delta import ADD, DENSE_OPS, NEW, REPLACE, RESIZE, SPARSE_OPS, parts_away
from sparsedelta.strict_json import Json
from sparsedelta.words import TensorSpec


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A coded part as the manifest describes it.

    Attributes:
        nnz: Number of entries, or of words carried.
        block_log2: Base-2 logarithm of the words of a block.
        encoding: Op and codecs.
        nbytes: Length of all its frames in ``sd.data``.
        dtype: Dtype of the values of an ``add``, else None.
        scale: Scale of an ``add``.
    """

    nnz: int
    block_log2: int
    encoding: Encoding
    nbytes: int
    dtype: str | None = None
    scale: float = 1.0

    @property
    def op(self) -> str:
        """The operation."""
        return self.encoding.op

    @property
    def reference(self) -> str | None:
        """Coded parts refer to no other tensor."""
        return None

    def block_count(self, words: int) -> int:
        """Blocks of a domain of ``words`` words."""
        return -(-words >> self.block_log2)

    def row_bytes(self, word_bytes: int) -> int:
        """Length of a row of the block table."""
        return 4 + 16 * self.encoding.stream_count(word_bytes)

    def to_json(self) -> Json:
        """The part's object in the manifest."""
        document = {
            "op": self.op,
            "nnz": self.nnz,
            "block": self.block_log2,
            "bytes": self.nbytes,
            **self.encoding.to_json(),
        }
        if self.op == ADD:
            document |= {"dtype": self.dtype, "scale": struct.pack(">d", self.scale).hex()}
        return document


@dataclass(frozen=True, slots=True)
class BarePart:
    """A part that carries no words.

    Attributes:
        op: ``new`` (with a reference), ``drop`` or ``resize``.
        reference: ``from`` of a ``new``, ``to`` of a ``drop``, or None.
    """

    op: str
    reference: str | None = None

    @property
    def nbytes(self) -> int:
        """It has no frames."""
        return 0

    def to_json(self) -> Json:
        """The part's object in the manifest."""
        if self.reference is None:
            return {"op": self.op}
        return {"op": self.op, "from" if self.op == NEW else "to": self.reference}


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A touched tensor as the manifest describes it: an arrow from base to target.

    Attributes:
        base: The tensor in the base, under its name there, or None.
        target: The tensor in the target, under its name there, or None.
        parts: Its parts.
        split: Number of parts that lead away from the base tensor; the others make the target.
        spec: The tensor in the target, or in the base if the target has none.
        name: Name of the record, which is that tensor's.

    Raises:
        ValueError: There is no tensor.
    """

    base: TensorSpec | None
    target: TensorSpec | None
    parts: tuple[PartRecord | BarePart, ...]
    split: int = field(init=False, repr=False, compare=False)
    spec: TensorSpec = field(init=False, repr=False, compare=False)
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spec = self.target or self.base
        if spec is None:
            raise ValueError("a record of no tensor")
        split = parts_away([part.op for part in self.parts])
        # Set once: they are asked for with every block.
        for name, value in (("split", split), ("spec", spec), ("name", spec.name)):
            object.__setattr__(self, name, value)

    @property
    def renamed(self) -> bool:
        """Whether the tensor has another name in the base."""
        return (
            self.base is not None
            and self.target is not None
            and (self.base.name != self.target.name)
        )

    @property
    def is_plain(self) -> bool:
        """Whether words of a tensor that stays are changed, and nothing else."""
        return self.base is not None and self.base == self.target and not self.split

    @property
    def coded(self) -> Iterator[tuple[int, PartRecord]]:
        """Number and record of each coded part."""
        return ((n, part) for n, part in enumerate(self.parts) if isinstance(part, PartRecord))

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(part.nnz for _, part in self.coded if part.op in SPARSE_OPS)

    @property
    def carried(self) -> int:
        """Number of words that dense ops carry."""
        return sum(part.nnz for _, part in self.coded if part.op in DENSE_OPS)

    @property
    def nbytes(self) -> int:
        """Length of all its frames in ``sd.data``."""
        return sum(part.nbytes for part in self.parts)

    @property
    def invertible(self) -> bool:
        """Whether every part stores what its inverse needs (rule SD212)."""
        return not self.needs_base and all(
            part.op not in (REPLACE, ADD)
            and (part.op == NEW or isinstance(part, PartRecord) or part.reference is not None)
            for part in self.parts
        )

    @property
    def needs_base(self) -> bool:
        """Whether there are parts that only the words they are applied to decode."""
        return any(isinstance(p, PartRecord) and p.encoding.needs_base for p in self.parts)

    @property
    def given(self) -> int:
        """Words of the target tensor that come from a source tensor: the others are carried."""
        if self.target is None:
            return 0
        if self.base is not None and not self.split:
            return min(self.base.words, self.target.words)
        return 0 if self.parts[self.split].reference is None else self.target.words

    def changed(self, number: int) -> TensorSpec:
        """The tensor that a part concerns: dtype and, but for ``resize``, shape are its."""
        is_away = number < self.split
        spec = self.base if is_away else self.target
        assert spec is not None  # noqa: S101 (as above)
        return spec

    def domain(self, number: int) -> int:
        """Number of words that a part covers (spec section 5)."""
        part, words = self.parts[number], self.changed(number).words
        if self.base is None or self.target is None or self.split:
            return words
        if part.op == RESIZE:
            return abs(self.base.words - self.target.words)
        return min(self.base.words, self.target.words)

    def word_bytes(self, number: int) -> int:
        """Bytes of a value word of a part."""
        part = self.parts[number]
        if isinstance(part, PartRecord) and part.dtype is not None:
            return TensorSpec("", part.dtype, ()).word_bytes
        return self.changed(number).word_bytes

    def to_json(self) -> Json:
        """The record's object in the manifest."""
        return {
            "name": self.name,
            "from": self.base.name if self.renamed and self.base is not None else None,
            "base": _end_to_json(self.base),
            "target": _end_to_json(self.target),
            "parts": [part.to_json() for part in self.parts],
        }


def _end_to_json(spec: TensorSpec | None) -> Json:
    return None if spec is None else {"dtype": spec.dtype, "shape": list(spec.shape)}
