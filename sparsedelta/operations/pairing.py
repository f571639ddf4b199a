"""Which tensor of a base leads to which tensor of a target: by name, by content, by likeness.

A tensor that only has another name is found by its digest; one that was trained as well, by a
sample of its words: fine-tuning leaves most words of bf16 weights as they are, while those of two
unrelated tensors are hardly ever equal. A wrong guess costs bytes, never a bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsedelta.checkpoint import CheckpointReader, segment_digests
from sparsedelta.digests import Digest, tensor_digest
from sparsedelta.errors import StructureError, UsageError
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import TensorSpec, Words, as_words

_SAMPLES: Final = 64
_SAMPLE_WORDS: Final = 8
_ALIKE: Final = 0.5
"""Share of equal words from which a tensor is taken for a changed copy."""

_SHARED: Final = 0.5
"""Share of the smaller checkpoint's tensors that two checkpoints must have in common."""

_NAME_IT: Final = "name what becomes of that one as well: --rename OLD=NEW"


@dataclass(frozen=True, slots=True)
class Pair:
    """What becomes of a tensor.

    Attributes:
        base: The tensor in the base that goes or changes, or None.
        target: The tensor in the target, or None.
        copied: Name of the tensor that the words are compared with, if it is not ``base``: the base
            tensor that a new one is a copy of, or the target tensor that a dropped one lives on in.
    """

    base: TensorSpec | None
    target: TensorSpec | None
    copied: str | None = None

    @property
    def name(self) -> str:
        """Name of the record."""
        spec = self.target or self.base
        assert spec is not None  # noqa: S101 (a pair has at least one end)
        return spec.name

    @property
    def is_change(self) -> bool:
        """Whether the tensor stays, with the same dtype and rows of the same shape."""
        return (
            self.base is not None
            and self.target is not None
            and self.base.dtype == self.target.dtype
            and (
                self.base.shape == self.target.shape
                or (
                    len(self.base.shape) == len(self.target.shape) > 0
                    and self.base.shape[1:] == self.target.shape[1:]
                )
            )
        )


def pair_tensors(
    base: CheckpointReader,
    target: CheckpointReader,
    *,
    pool: OrderedMap,
    renames: Mapping[str, str] | None = None,
    unrelated: bool = False,
) -> list[Pair]:
    """Pair the tensors of two checkpoints, ascending by the name of their record.

    Args:
        base: The base.
        target: The target.
        pool: Where tensors are read.
        renames: Name in the target to name in the base, of tensors known to be the same.
        unrelated: Whether checkpoints that share few tensors are paired all the same.

    Raises:
        StructureError: They share few tensors, and ``unrelated`` is false.
        UsageError: A rename names no tensor, or one that cannot be its counterpart.
    """
    matched = _named(base, target, renames or {})
    gone = base.specs.keys() - matched.values()
    fresh = target.specs.keys() - matched.keys()
    copies: dict[str, str] = {}
    if fresh and base.specs:
        finder = _Finder(base, target, pool)
        for find in (finder.equal, finder.alike):
            for name, source in find(sorted(fresh - matched.keys()), sorted(gone), once=True):
                matched[name] = source
                gone.discard(source)
        for find in (finder.equal, finder.alike):
            left = sorted(fresh - matched.keys() - copies.keys())
            copies.update(find(left, sorted(base.specs), once=False))
    # A record has its name to itself at both ends: what only has the name of another must move too.
    clashing = sorted(gone & target.specs.keys())
    if clashing:
        raise UsageError(
            f"a tensor is said to be renamed to {clashing[0]!r}, but the base has one of that name "
            "too, and it is not said what becomes of it",
            hint=_NAME_IT,
        )
    _check_shared(base, target, len(matched) + len(copies), unrelated=unrelated)
    pairs = [Pair(base.specs[old], target.specs[new]) for new, old in matched.items()]
    pairs += [Pair(None, target.specs[n], copies.get(n)) for n in fresh - matched.keys()]
    reverse = _Finder(target, base, pool)
    lives_on = dict(reverse.equal(sorted(gone), sorted(target.specs), once=False))
    pairs += [Pair(base.specs[name], None, lives_on.get(name)) for name in gone]
    return sorted(pairs, key=lambda pair: pair.name)


def _named(
    base: CheckpointReader, target: CheckpointReader, renames: Mapping[str, str]
) -> dict[str, str]:
    """Base name by target name: those that were told, then those of the same name."""
    for new, old in renames.items():
        for name, reader in ((old, base), (new, target)):
            if name not in reader.specs:
                raise UsageError(f"rename {old!r} to {new!r}: {reader.location} has no {name!r}")
        if not Pair(base.specs[old], target.specs[new]).is_change or old == new:
            raise UsageError(
                f"rename {old!r} to {new!r}: {base.specs[old]} cannot become {target.specs[new]}"
            )
    if len(set(renames.values())) != len(renames):
        raise UsageError("two tensors are said to be renamed from the same one")
    matched = dict(renames)
    taken = set(renames.values())
    for name in base.specs.keys() & target.specs.keys():
        if name not in matched and name not in taken:
            matched[name] = name
    clashing = sorted((taken & target.specs.keys()) - matched.keys())
    if clashing:
        raise UsageError(
            f"{clashing[0]!r} is said to be renamed, but the target has a tensor of that name too",
            hint=_NAME_IT,
        )
    return matched


def _check_shared(
    base: CheckpointReader, target: CheckpointReader, shared: int, *, unrelated: bool
) -> None:
    least = min(len(base.specs), len(target.specs))
    if unrelated or shared >= _SHARED * least:
        return
    raise StructureError(
        f"{base.location} and {target.location} share {shared} tensors, by name or content, of "
        f"{len(base.specs)} in the base and {len(target.specs)} in the target: a delta would hold "
        "nearly all of the target",
        hint="if that is meant, allow it with --unrelated (unrelated=True in Python); if tensors "
        "were renamed, name them: --rename OLD=NEW",
    )


class _Finder:
    """Finds counterparts among ``candidates`` for tensors of ``wanted``, by content."""

    def __init__(
        self, candidates: CheckpointReader, wanted: CheckpointReader, pool: OrderedMap
    ) -> None:
        self._candidates = candidates
        self._wanted = wanted
        self._pool = pool
        self._digests: dict[tuple[bool, str], Digest] = {}
        self._samples: dict[tuple[bool, str], Words] = {}

    def equal(
        self, names: Iterable[str], among: Iterable[str], *, once: bool
    ) -> Iterator[tuple[str, str]]:
        """Tensors of the same dtype, shape and words, each candidate once or as often as needed."""
        groups = self._by_spec(among)
        wanted = [name for name in names if _kind(self._wanted.specs[name]) in groups]
        kinds = {_kind(self._wanted.specs[name]) for name in wanted}
        listed = [name for kind in kinds for name in groups[kind]]
        by_digest: dict[Digest, list[str]] = {}
        for name, digest in zip(listed, self._digests_of(listed, is_wanted=False), strict=True):
            by_digest.setdefault(digest, []).append(name)
        for names_of in by_digest.values():
            names_of.sort()
        for name, digest in zip(wanted, self._digests_of(wanted, is_wanted=True), strict=True):
            found = by_digest.get(digest)
            if found:
                yield name, found.pop(0) if once else found[0]

    def alike(
        self, names: Iterable[str], among: Iterable[str], *, once: bool
    ) -> Iterator[tuple[str, str]]:
        """Tensors of the same dtype and shape of which a sample has at least half equal words."""
        groups = self._by_spec(among)
        tables: dict[object, tuple[Words, NDArray[np.bool_]]] = {}
        for name in names:
            kind = _kind(self._wanted.specs[name])
            candidates = groups.get(kind)
            if not candidates or not self._wanted.specs[name].words:
                continue
            if kind not in tables:
                samples = np.stack([self._sample(c, is_wanted=False) for c in candidates])
                tables[kind] = samples, np.ones(len(candidates), np.bool_)
            samples, free = tables[kind]
            equal = np.count_nonzero(samples == self._sample(name, is_wanted=True), axis=1) * free
            best = int(equal.argmax())
            if equal[best] >= _ALIKE * samples.shape[1]:
                free[best] = not once
                yield name, candidates[best]

    def _by_spec(self, names: Iterable[str]) -> dict[object, list[str]]:
        groups: dict[object, list[str]] = {}
        for name in names:
            groups.setdefault(_kind(self._candidates.specs[name]), []).append(name)
        return groups

    def _reader(self, *, is_wanted: bool) -> CheckpointReader:
        return self._wanted if is_wanted else self._candidates

    def _digests_of(self, names: list[str], *, is_wanted: bool) -> list[Digest]:
        reader = self._reader(is_wanted=is_wanted)

        def digest(name: str) -> Digest:
            known = self._digests.get((is_wanted, name))
            if known is not None:
                return known
            return tensor_digest(reader.specs[name], segment_digests(reader, name))

        with self._pool.mapped(digest, names) as digests:
            found = list(digests)
        self._digests.update({(is_wanted, n): d for n, d in zip(names, found, strict=True)})
        return found

    def _sample(self, name: str, *, is_wanted: bool) -> Words:
        key = (is_wanted, name)
        if key not in self._samples:
            reader = self._reader(is_wanted=is_wanted)
            spec = reader.specs[name]
            last = max(0, spec.words - _SAMPLE_WORDS)
            starts = np.unique(np.linspace(0, last, _SAMPLES).astype(np.int64)).tolist()
            runs = (reader.read(name, s, min(s + _SAMPLE_WORDS, spec.words)) for s in starts)
            self._samples[key] = np.concatenate([as_words(run, spec.word_bytes) for run in runs])
        return self._samples[key]


def _kind(spec: TensorSpec) -> object:
    return spec.dtype, spec.shape
