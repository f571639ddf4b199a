"""What changed, in memory: parts, deltas, and their exact algebra (spec sections 5 and 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from sparsedelta.digests import Digest, encode_structure, encode_text, hasher
from sparsedelta.errors import NotInvertibleError
from sparsedelta.words import Indices, TensorSpec, Words, negate

DIFFERENCE: Final = "difference"
REPLACE: Final = "replace"

OPS: Final = (DIFFERENCE, REPLACE)
"""The operations, in the order in which a tensor's parts come."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Entries of one tensor under one operation.

    Attributes:
        op: ``difference`` or ``replace``.
        indices: int64 ``[nnz]``, strictly ascending flat indices of words.
        words: Words ``[nnz]``: differences mod 2^w, never 0, or new words.
    """

    op: str
    indices: Indices
    words: Words

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"unknown op {self.op!r}, expected one of {OPS}")
        if self.indices.shape != self.words.shape or self.indices.ndim != 1:
            raise ValueError(
                f"indices {self.indices.shape} and words {self.words.shape} do not match"
            )

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return int(self.indices.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Part):
            return NotImplemented
        return (
            self.op == other.op
            and np.array_equal(self.indices, other.indices)
            and self.words.dtype == other.words.dtype
            and np.array_equal(self.words, other.words)
        )

    __hash__ = None  # type: ignore[assignment]

    def invert(self) -> Part:
        """The part that undoes this one.

        Raises:
            NotInvertibleError: A ``replace`` does not know the old words.
        """
        if self.op != DIFFERENCE:
            raise NotInvertibleError(f"a part of op {self.op!r} holds no old words")
        return replace(self, words=negate(self.words))

    def apply(self, words: Words) -> None:
        """Change ``words``, all of the tensor's, in place."""
        if self.op == DIFFERENCE:
            words[self.indices] += self.words
        else:
            words[self.indices] = self.words


@dataclass(frozen=True, slots=True)
class TensorDelta:
    """All that changes in one tensor.

    Attributes:
        spec: Name, dtype and shape of the tensor, the same in base and target.
        parts: At most one part per op, ``difference`` first; disjoint indices.
    """

    spec: TensorSpec
    parts: tuple[Part, ...]

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(part.nnz for part in self.parts)

    def invert(self) -> TensorDelta:
        """The delta of this tensor that leads back."""
        return replace(self, parts=tuple(part.invert() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta in memory: an arrow from one fingerprint to another.

    Attributes:
        base: Fingerprint of the checkpoint it starts from, 64 hex digits.
        target: Fingerprint of the checkpoint it leads to.
        tensors: Touched tensors by name.
        metadata: Provenance, string to string; not part of the delta's identity.
    """

    base: str
    target: str
    tensors: Mapping[str, TensorDelta]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(tensor.nnz for tensor in self.tensors.values())

    @property
    def invertible(self) -> bool:
        """Whether :meth:`invert` can work: no part is a ``replace``."""
        return all(p.op == DIFFERENCE for t in self.tensors.values() for p in t.parts)

    @property
    def content(self) -> str:
        """Content digest, 64 hex digits: the identity of the delta, whatever its encoding."""
        digests = [
            tensor_content(
                tensor.spec,
                [
                    PartContent(p.op, p.nnz, *_entry_digests(p.indices, p.words))
                    for p in tensor.parts
                ],
            )
            for tensor in self.tensors.values()
        ]
        return content_digest(self.base, self.target, dict(zip(self.tensors, digests, strict=True)))

    def invert(self) -> Delta:
        """The delta from target to base.

        Raises:
            NotInvertibleError: A tensor was written one-way; names it.
        """
        inverted = {}
        for name, tensor in self.tensors.items():
            try:
                inverted[name] = tensor.invert()
            except NotInvertibleError as error:
                raise NotInvertibleError(f"tensor {name!r}: {error.message}") from None
        return replace(self, base=self.target, target=self.base, tensors=inverted)


@dataclass(frozen=True, slots=True)
class PartContent:
    """What of a part enters the content digest: op, nnz, digests of indices and of words."""

    op: str
    nnz: int
    indices: Digest
    words: Digest


class EntryHasher:
    """Digests of a part's entries, fed block by block in order."""

    def __init__(self) -> None:
        self._indices = hasher("sparsedelta 1 indices")
        self._words = hasher("sparsedelta 1 words")

    def update(self, indices: Indices, words: Words) -> None:
        """Add entries: flat indices of the tensor, and words."""
        self._indices.update(indices.astype("<u8").view(np.uint8).data)
        self._words.update(np.ascontiguousarray(words).view(np.uint8).data)

    def digests(self) -> tuple[Digest, Digest]:
        """Digest of the indices, digest of the words."""
        return self._indices.digest(), self._words.digest()


def _entry_digests(indices: Indices, words: Words) -> tuple[Digest, Digest]:
    state = EntryHasher()
    state.update(indices, words)
    return state.digests()


def tensor_content(spec: TensorSpec, parts: Iterable[PartContent]) -> bytes:
    """The bytes by which one tensor enters the content digest, after its name."""
    listed = list(parts)
    chunks = [encode_structure(spec.dtype, spec.shape), struct.pack("<I", len(listed))]
    chunks += [
        encode_text(part.op) + struct.pack("<Q", part.nnz) + part.indices + part.words
        for part in listed
    ]
    return b"".join(chunks)


def content_digest(base: str, target: str, tensors: Mapping[str, bytes]) -> str:
    """Content digest of a delta (spec section 8).

    Args:
        base: Fingerprint of the base, 64 hex digits.
        target: Fingerprint of the target.
        tensors: What :func:`tensor_content` gives, by name, in any order.
    """
    state = hasher("sparsedelta 1 content")
    state.update(bytes.fromhex(base) + bytes.fromhex(target))
    state.update(struct.pack("<Q", len(tensors)))
    for name in sorted(tensors):
        state.update(encode_text(name) + tensors[name])
    return state.digest().hex()
