"""Writing what tasks make together as a delta: one pass over the tensors that they change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from sparsedelta.changes import Changes, Run, make_run
from sparsedelta.checkpoint import check_unchanged, segment_digests
from sparsedelta.compare import differing_words
from sparsedelta.delta import DIFFERENCE
from sparsedelta.digests import Digest, checkpoint_fingerprint, segment_digest, tensor_digest
from sparsedelta.encode import EncodedTensor, encode_part
from sparsedelta.errors import WrongBaseError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.manifest import Manifest
from sparsedelta.merging.overlap import Overlap
from sparsedelta.operations.composition import Composition, MergedRun
from sparsedelta.operations.diff import plan_parts
from sparsedelta.operations.moves import Move, MovedTensors
from sparsedelta.operations.pairing import Pair
from sparsedelta.operations.parts import DeltaOutput, part_count
from sparsedelta.operations.scanning import Recipe, scan_tensors
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import Ranks, first, watched
from sparsedelta.writer import DeltaWriter


class _Segment(NamedTuple):
    base: Digest
    target: Digest
    changed: Run | None


class _Made(NamedTuple):
    """What a tensor becomes: something to be written, or the digest with which it stays."""

    encoded: EncodedTensor | None
    digest: Digest


def write_composed(
    composition: Composition,
    output: DeltaOutput,
    *,
    pool: OrderedMap,
    progress: Progress,
    ranks: Ranks,
) -> tuple[Manifest, int, dict[str, Overlap]]:
    """Write the delta from the base to what tasks make of it.

    Returns:
        The manifest, the bytes of all files, and what the tasks have in common, by tensor.

    Raises:
        WrongBaseError: The base is not the tasks'.
        StructureError: The tasks exclude each other.
        NotFiniteError: A number that is met or made is not finite.
        OutputError: The delta cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    pairs = composition.pairs
    shards = part_count(output.shards, output.max_shard_size, ranks)
    plan = None if shards is None else plan_parts([pair for pair, _ in pairs], shards)
    mine = [
        (pair, move)
        for pair, move in pairs
        if plan is None or plan[pair.name] % ranks.size == ranks.rank
    ]
    with DeltaWriter(
        output.out,
        metadata={**output.metadata, **composition.provenance},
        lean=output.lean,
        max_shard_size=output.max_shard_size,
        plan=plan,
        ranks=ranks,
        force=output.force,
        inputs=composition.paths,
    ) as writer:
        told = watched(ranks, progress)
        whole = sum(_nbytes(pair) for pair, _ in mine)
        done = 0
        for pair, made in _made(composition, mine, pool):
            if made.encoded is not None:
                writer.add(made.encoded)
            else:
                writer.add_untouched(pair.name, made.digest)
            done += _nbytes(pair)
            told(done, whole)
        writer.collect()
        check_unchanged(composition.base)
        first(ranks, lambda: _check_base(composition, writer))
        manifest = writer.finish(dry_run=output.dry_run)
    seen = ranks.share(
        dict(item for each in ranks.gather(composition.overlaps) for item in each.items())
    )
    return manifest, writer.size, dict(sorted(seen.items()))


def _nbytes(pair: Pair) -> int:
    return sum(spec.nbytes for spec in (pair.base, pair.target) if spec is not None)


def _made(
    composition: Composition, items: Sequence[tuple[Pair, Move | None]], pool: OrderedMap
) -> Iterator[tuple[Pair, _Made]]:
    """What becomes of each tensor; small ones are made by one thread each, many at a time."""
    alone = OrderedMap(1)

    def small(item: tuple[Pair, Move | None]) -> tuple[Pair, _Made]:
        return item[0], _make(composition, *item, alone)

    for is_small, group in groupby(items, key=_is_small):
        if is_small:
            with pool.mapped(small, group) as made:
                yield from made
        else:
            for item in group:
                yield item[0], _make(composition, *item, pool)


def _is_small(item: tuple[Pair, Move | None]) -> bool:
    return all(s is None or s.words <= SEGMENT_WORDS for s in (item[0].base, item[0].target))


def _make(composition: Composition, pair: Pair, move: Move | None, pool: OrderedMap) -> _Made:
    if move is not None:
        return _moved(composition, pair, move, pool)
    spec = pair.base
    assert spec is not None  # noqa: S101 (what does not move is in the base)
    if not composition.changes(spec):
        known = composition.leaves.get(spec.name)
        if known is None:
            known = tensor_digest(spec, segment_digests(composition.base, spec.name))
        return _Made(None, known)
    changes = Changes(spec)
    base: list[Digest] = []
    target: list[Digest] = []
    for run in composition.merged(spec, pool, _scan):
        for segment in run:
            base.append(segment.base)
            target.append(segment.target)
            if segment.changed is not None:
                changes.append(segment.changed)
    if not changes.nnz:
        return _Made(None, tensor_digest(spec, base))
    part = encode_part(changes, DIFFERENCE, pool=pool)
    encoded = EncodedTensor(spec, spec, (part,), tuple(base), tuple(target))
    return _Made(encoded, b"")


def _scan(run: MergedRun) -> list[_Segment]:
    found = []
    for number, digest in enumerate(run.segments):
        first = number * SEGMENT_WORDS
        old, new = (words[first : first + SEGMENT_WORDS] for words in (run.old, run.new))
        after = digest
        changed = None
        if run.new is not run.old:
            differing = differing_words(old, new, as_difference=True)
            if differing.offsets.size:
                after = segment_digest(new.view(np.uint8).data)
                changed = make_run(run.start + first, old.size, *differing)
        found.append(_Segment(digest, after, changed))
    return found


def _moved(composition: Composition, pair: Pair, move: Move, pool: OrderedMap) -> _Made:
    target = MovedTensors(composition.base, [move])
    scanned = scan_tensors(
        composition.base, target, [pair], recipe=Recipe(), pool=pool, progress=silent
    )
    (tensor,) = scanned
    move.check(None if pair.base is None else tensor.base_segments, tensor.target_segments)
    if tensor.encoded is None:
        assert pair.target is not None  # noqa: S101 (it stays)
        return _Made(None, tensor_digest(pair.target, tensor.target_segments))
    return _Made(tensor.encoded, b"")


def _check_base(composition: Composition, writer: DeltaWriter) -> None:
    """What no table tells of the base has been read: does all of it make the right one?"""
    expected = composition.fingerprint
    found = checkpoint_fingerprint(writer.leaves(target=False)).hex()
    if expected not in (None, found):
        raise WrongBaseError(
            f"{composition.base.location} is not the base of the deltas (SD501): its fingerprint "
            f"is {found}, expected {expected}"
        )
