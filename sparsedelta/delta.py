"""What changed, in memory: parts, deltas, and their exact inverses (spec sections 5 and 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Final

import numpy as np

from sparsedelta.digests import Digest, encode_end, encode_text, hasher
from sparsedelta.errors import NotInvertibleError
from sparsedelta.words import Indices, TensorSpec, Words, negate

DIFFERENCE: Final = "difference"
REPLACE: Final = "replace"
ADD: Final = "add"
NEW: Final = "new"
DROP: Final = "drop"
RESIZE: Final = "resize"

OPS: Final = (DIFFERENCE, REPLACE, ADD, NEW, DROP, RESIZE)
SPARSE_OPS: Final = (DIFFERENCE, REPLACE, ADD)
"""Operations of entries: an index and a value each."""

DENSE_OPS: Final = (NEW, DROP, RESIZE)
"""Operations that carry every word of their domain, or none."""

_NOT_CARRIED: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One operation of a record.

    Attributes:
        op: One of :data:`OPS`.
        indices: int64 ``[nnz]``, strictly ascending, of a sparse op; else None.
        words: Words ``[nnz]``: differences mod 2^w, never 0; new words; the words that a dense op
            carries; None for a part that carries none.
        reference: ``from`` of a ``new``, ``to`` of a ``drop``; else None.
        dtype: Dtype of the values of an ``add``; else None.
        scale: What an ``add`` multiplies its values with.
    """

    op: str
    indices: Indices | None
    words: Words | None
    reference: str | None = None
    dtype: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"unknown op {self.op!r}, expected one of {OPS}")
        if (self.op in SPARSE_OPS) != (self.indices is not None):
            raise ValueError(f"a part of op {self.op!r}: indices belong to {SPARSE_OPS}")
        if self.indices is not None and (
            self.words is None or self.indices.shape != self.words.shape or self.indices.ndim != 1
        ):
            found = None if self.words is None else self.words.shape
            raise ValueError(f"indices {self.indices.shape} and words {found} do not match")

    @property
    def entries(self) -> tuple[Indices, Words]:
        """Indices and words of a sparse op.

        Raises:
            ValueError: The op is dense: it has no indices.
        """
        if self.indices is None or self.words is None:
            raise ValueError(f"a part of op {self.op!r} has no entries")
        return self.indices, self.words

    @property
    def nnz(self) -> int:
        """Number of entries; 0 for a dense op."""
        return 0 if self.indices is None else int(self.indices.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Part):
            return NotImplemented
        return (
            (self.op, self.reference, self.dtype) == (other.op, other.reference, other.dtype)
            and struct.pack("<d", self.scale) == struct.pack("<d", other.scale)
            and _same(self.indices, other.indices)
            and _same(self.words, other.words)
        )

    __hash__ = None  # type: ignore[assignment]

    def invert(self) -> Part:
        """The entries that undo these.

        Raises:
            NotInvertibleError: The op does not know the old words.
        """
        if self.op != DIFFERENCE or self.words is None:
            raise NotInvertibleError(f"a part of op {self.op!r} holds no old words")
        return replace(self, words=negate(self.words))


def _same(one: Words | Indices | None, other: Words | Indices | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


@dataclass(frozen=True, slots=True)
class TensorDelta:
    """All that changes in one tensor: an arrow between at most one tensor of each end.

    Attributes:
        base: The tensor in the base, under its name there, or None.
        target: The tensor in the target, under its name there, or None.
        parts: Operations, in one of the sequences of spec section 5.
    """

    base: TensorSpec | None
    target: TensorSpec | None
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.base is None and self.target is None:
            raise ValueError("a tensor that is in neither end")

    @property
    def spec(self) -> TensorSpec:
        """The tensor in the target, or in the base if the target has none."""
        spec = self.target or self.base
        assert spec is not None  # noqa: S101 (for the type checker: __post_init__ has seen to it)
        return spec

    @property
    def name(self) -> str:
        """Name of the record."""
        return self.spec.name

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return sum(part.nnz for part in self.parts)

    @property
    def split(self) -> int:
        """Number of parts that lead away from the base tensor; the others make the target."""
        return parts_away([part.op for part in self.parts])

    @property
    def invertible(self) -> bool:
        """Whether :meth:`invert` can work."""
        return all(map(has_inverse, self.parts))

    def invert(self) -> TensorDelta:
        """The delta of this tensor that leads back.

        Raises:
            NotInvertibleError: A part stores no old words.
        """
        for part in self.parts:
            if not has_inverse(part):
                raise NotInvertibleError(
                    f"tensor {self.name!r}: a part of op {part.op!r} holds no old words"
                )
        if all(part.op not in (DROP, NEW) for part in self.parts):
            return TensorDelta(self.target, self.base, tuple(map(_undo, self.parts)))
        # What is dropped comes back as new, and the other way round: the two sides change places.
        split = self.split
        *changes, drop = self.parts[:split] or (None,)
        back = () if drop is None else (_undo(drop), *(_undo(p) for p in changes if p is not None))
        new, *following = self.parts[split:] or (None,)
        away = () if new is None else (*map(_undo, following), _undo(new))
        return TensorDelta(self.target, self.base, (*away, *back))


def parts_away(ops: Sequence[str]) -> int:
    """How many of a record's parts, by their ops, lead away from the base: up to ``drop``."""
    return ops.index(DROP) + 1 if DROP in ops else 0


def has_inverse(part: Part) -> bool:
    """Whether a part can be undone from what it stores (spec section 5)."""
    if part.op in (REPLACE, ADD):
        return False
    if part.op == NEW:
        return True
    return part.words is not None or part.reference is not None


def _undo(part: Part) -> Part:
    if part.op == DIFFERENCE:
        return part.invert()
    swapped = {NEW: DROP, DROP: NEW, RESIZE: RESIZE}
    return replace(part, op=swapped[part.op])


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
        """Whether :meth:`invert` can work."""
        return all(tensor.invertible for tensor in self.tensors.values())

    def push_to_hub(self, repo: str, base: Any, **options: Any) -> Any:  # noqa: ANN401
        """Write the delta for its base, and push it to the Hub.

        Args:
            repo: ``namespace/name``.
            base: The base checkpoint, as for :func:`sparsedelta.write_delta`: a delta file holds
                digests of it.
            **options: Those of :func:`sparsedelta.push`; ``base_repo``, a model on the Hub, is its
                ``base``.
        """
        # By name: what pushes stands on everything else, and this is only a door to it.
        push = import_module("sparsedelta.hub.push").push_changes
        return push(self, repo, base, **options)

    @property
    def content(self) -> str:
        """Content digest, 64 hex digits: the identity of the delta, whatever its encoding."""
        return content_digest(self.base, self.target, self.contents)

    @property
    def contents(self) -> dict[str, bytes]:
        """What :func:`tensor_content` gives, by name."""
        return {
            name: tensor_content(tensor.base, tensor.target, map(_part_content, tensor.parts))
            for name, tensor in self.tensors.items()
        }

    def invert(self) -> Delta:
        """The delta from target to base.

        Raises:
            NotInvertibleError: A part stores no old words; names the tensor.
        """
        inverted = [tensor.invert() for tensor in self.tensors.values()]
        inverted.sort(key=lambda tensor: tensor.name)
        tensors = {tensor.name: tensor for tensor in inverted}
        return replace(self, base=self.target, target=self.base, tensors=tensors)


@dataclass(frozen=True, slots=True)
class PartContent:
    """What of a part enters the content digest.

    Attributes:
        op: The operation.
        nnz: Entries or words carried, or None if the part carries none.
        indices: Digest of the indices.
        words: Digest of the words.
        reference: ``from`` or ``to``.
        dtype: Dtype of the values of an ``add``.
        scale: Scale of an ``add``.
    """

    op: str
    nnz: int | None
    indices: Digest
    words: Digest
    reference: str | None = None
    dtype: str | None = None
    scale: float = 1.0


def bare_content(op: str, reference: str | None) -> PartContent:
    """What of a part that carries no words enters the content digest."""
    return PartContent(op, None, *EntryHasher().digests(), reference)


class EntryHasher:
    """Digests of a part's entries, fed block by block in order."""

    def __init__(self) -> None:
        self._indices = hasher("sparsedelta 1 indices")
        self._words = hasher("sparsedelta 1 words")

    def update(self, indices: Indices, words: Words) -> None:
        """Add entries: indices within the part's domain (none of a dense op), and words."""
        self._indices.update(indices.astype("<u8").view(np.uint8).data)
        self._words.update(np.ascontiguousarray(words).view(np.uint8).data)

    def digests(self) -> tuple[Digest, Digest]:
        """Digest of the indices, digest of the words."""
        return self._indices.digest(), self._words.digest()


def _part_content(part: Part) -> PartContent:
    if part.words is None:
        return bare_content(part.op, part.reference)
    state = EntryHasher()
    state.update(np.empty(0, np.int64) if part.indices is None else part.indices, part.words)
    nnz = int(part.words.size)
    return PartContent(part.op, nnz, *state.digests(), part.reference, part.dtype, part.scale)


def tensor_content(
    base: TensorSpec | None, target: TensorSpec | None, parts: Iterable[PartContent]
) -> bytes:
    """The bytes by which one record enters the content digest, after its name."""
    renamed = base is not None and target is not None and base.name != target.name
    listed: Sequence[PartContent] = list(parts)
    chunks = [
        encode_text(base.name if renamed and base is not None else ""),
        encode_end(base),
        encode_end(target),
        struct.pack("<I", len(listed)),
    ]
    for part in listed:
        is_add = part.op == ADD
        chunks += [
            encode_text(part.op),
            encode_text(part.reference or ""),
            encode_text(part.dtype or ""),
            struct.pack("<d", part.scale) if is_add else bytes(8),
            struct.pack("<Q", _NOT_CARRIED if part.nnz is None else part.nnz),
            part.indices,
            part.words,
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
