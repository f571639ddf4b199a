"""``squash`` and ``invert``: a delta made of deltas, exactly, without any checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from sparsedelta.checkpoint import CheckpointReader, local_paths
from sparsedelta.choice import parse_choice
from sparsedelta.delta import ADD
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import Digest, checkpoint_fingerprint
from sparsedelta.encode import EncodedTensor
from sparsedelta.errors import DAMAGED, FormatError, StructureError, UsageError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.manifest import Manifest
from sparsedelta.operations.as_portable import portable
from sparsedelta.operations.history import DeltaLike, History, are_in_order, open_all
from sparsedelta.operations.inherit import inherit
from sparsedelta.operations.inversion import RecordInverter
from sparsedelta.operations.parts import DeltaOutput, divide_records, part_count
from sparsedelta.operations.route import Route
from sparsedelta.operations.squash_parts import PartMaker
from sparsedelta.operations.squashing import plan_squash
from sparsedelta.operations.standpoint import refuse_one_way
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks, first, watched
from sparsedelta.writer import DeltaWriter


@dataclass(frozen=True, slots=True)
class SquashReport:
    """What squash or invert wrote.

    Attributes:
        manifest: Manifest of the delta.
        size: Bytes of the delta, also of one that a dry run did not keep.
        deltas: The deltas that it is made of, in the order in which they follow each other.
        duplicates: Deltas that were left out since another has the same content digest.
        notes: What the user should know: files that could not be carried.
    """

    manifest: Manifest
    size: int
    deltas: tuple[str, ...]
    duplicates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def squash(
    deltas: Sequence[DeltaLike],
    out: LocationLike,
    *,
    base: LocationLike | CheckpointReader | None = None,
    forget: bool = False,
    lean: bool = False,
    codec: str | None = None,
    max_shard_size: int | None = None,
    shards: int | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> SquashReport:
    """Write the delta that does at once what a chain of deltas does one after the other.

    Exact, element by element, and without a checkpoint: differences are added up, a word that was
    replaced stays what the last delta made of it. What came and went again leaves no trace.

    Args:
        deltas: The chain, in any order: each leads to where another starts. Of several with the
            same content digest one is taken. A chain that comes back to where it was has to be
            given in its order.
        out: The delta file.
        base: Where the chain starts; needed only if one of the deltas is compact, and then
            verified where it is needed. The result is portable.
        forget: Do not store the words of tensors and rows that go: not invertible if some do.
            Needed where a delta of the chain replaced words that a later one drops.
        lean: Leave out the digests of the tensors that stay. They are left out in any case if no
            delta of the chain has them.
        codec: Force codecs, such as ``gap8`` or ``bitmask+planes``; None for the smallest.
        max_shard_size: Write a set of part files of about this many bytes; None for one file.
        shards: Write a set of this many part files. By default the number of ranks.
        metadata: Provenance, string to string; not part of the delta's identity.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes of tensors were worked through, and of how many: by this rank.
        ranks: The processes that do this together, each the part files that are its own. All of
            them call this alike; rank 0 writes the root.

    Raises:
        UsageError: The deltas are no chain: there is a gap, a fork or a circle.
        StructureError: What happens to a tensor cannot be said without the base; a compact delta,
            and no base; an ``add``; words are lost that should be stored, and ``forget`` is false.
        WrongBaseError: ``base`` is not where the chain starts.
        FormatError: A delta breaks a rule.
        OutputError: The output exists, or cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    output = DeltaOutput(
        output_path(out),
        lean=lean,
        max_shard_size=max_shard_size,
        shards=shards,
        metadata=metadata or {},
        force=force,
        dry_run=dry_run,
    )
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        readers = open_all(deltas, stack)
        if not readers:
            raise UsageError("no delta is named: there is nothing to squash")
        history = History(() if are_in_order(readers) else readers)
        way = history.chain() if history.readers else tuple(readers)
        for reader in way:
            _refuse_add(reader)
        output = _checked(output, way, base, ranks)
        way = tuple(
            stack.enter_context(
                portable(way, base, output.out.parent, threads=threads, verb="squash")
            )
        )
        route = Route(way, reverse=False)

        def prepare(pool: OrderedMap) -> _Work:
            plan = plan_squash(route, Route(way[::-1], reverse=True))
            maker = PartMaker(pool, forget, parse_choice(codec) if codec is not None else None)
            alone = replace(maker, pool=OrderedMap(1))
            sizes = {
                name: max(arrow.words * arrow.word_bytes for arrow in plan.sources(name))
                for name in plan.names
            }
            return _Work(
                sizes,
                lambda name, is_small: (alone if is_small else maker).record(plan, name),
                {**route.stay, **plan.untouched},
            )

        report = _write(
            route, output, prepare, forget=forget, threads=threads, progress=progress, ranks=ranks
        )
        duplicates = tuple(duplicate.path for duplicate in history.duplicates)
        return replace(report, duplicates=duplicates)


def invert(
    delta: DeltaLike,
    out: LocationLike,
    *,
    base: LocationLike | CheckpointReader | None = None,
    codec: str | None = None,
    max_shard_size: int | None = None,
    shards: int | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> SquashReport:
    """Write the delta that leads from the target of ``delta`` to its base, exactly.

    Arguments and errors are those of :func:`squash`; the inverse of the inverse has the content
    digest of ``delta``. One that is lean stays so.

    Raises:
        NotInvertibleError: The delta does not hold the old words.
    """
    output = DeltaOutput(
        output_path(out),
        max_shard_size=max_shard_size,
        shards=shards,
        metadata=metadata or {},
        force=force,
        dry_run=dry_run,
    )
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        (given,) = open_all([delta], stack)
        if base is None:
            refuse_one_way(given, "has no inverse")
        output = _checked(output, [given], base, ranks)
        (reader,) = stack.enter_context(
            portable([given], base, output.out.parent, threads=threads, verb="invert")
        )
        refuse_one_way(reader, "has no inverse")
        route = Route([reader], reverse=True)

        def prepare(pool: OrderedMap) -> _Work:
            inverter = RecordInverter(
                reader, pool, parse_choice(codec) if codec is not None else None
            )
            alone = replace(inverter, pool=OrderedMap(1))
            records = {(record.base or record.spec).name: record for record in route.records}
            sizes = {
                name: max(end.nbytes for end in (record.base, record.target) if end is not None)
                for name, record in sorted(records.items())
            }
            return _Work(
                sizes,
                lambda name, is_small: (alone if is_small else inverter)(records[name]),
                route.stay,
            )

        return _write(
            route, output, prepare, forget=False, threads=threads, progress=progress, ranks=ranks
        )


def _checked(
    output: DeltaOutput,
    readers: Sequence[DeltaReader],
    base: LocationLike | CheckpointReader | None,
    ranks: Ranks,
) -> DeltaOutput:
    """The output, if it may be written; with the files that it must not overwrite."""

    def check() -> tuple[Path, ...]:
        paths = [path for reader in readers for path in reader.paths]
        inputs = (*paths, *local_paths(base))
        check_output(output.out, force=output.force, inputs=inputs)
        return inputs

    return replace(output, inputs=first(ranks, check))


@dataclass(frozen=True, slots=True)
class _Work:
    """The records to be made.

    Attributes:
        sizes: Bytes of the larger tensor of each, by name, ascending.
        make: Makes one: its name, and whether one thread is to do it.
        stay: Digests of the tensors that stay.
    """

    sizes: Mapping[str, int]
    make: Callable[[str, bool], EncodedTensor]
    stay: Mapping[str, Digest]


def _write(
    route: Route,
    output: DeltaOutput,
    prepare: Callable[[OrderedMap], _Work],
    *,
    forget: bool,
    threads: int | None,
    progress: Progress,
    ranks: Ranks,
) -> SquashReport:
    shards = part_count(output.shards, output.max_shard_size, ranks)
    with ExitStack() as stack:
        pool = stack.enter_context(OrderedMap(threads))
        work = prepare(pool)
        plan = None if shards is None else divide_records(work.sizes, shards)
        hints = route.readers[0].header.metadata
        writer = stack.enter_context(
            DeltaWriter(
                output.out,
                metadata=output.metadata,
                base_repo=None if route.reverse else hints.get("sd.base_repo"),
                base_revision=None if route.reverse else hints.get("sd.base_revision"),
                lean=output.lean or route.lean,
                max_shard_size=output.max_shard_size,
                plan=plan,
                ranks=ranks,
                force=output.force,
                ends=(route.start, route.end) if route.lean else None,
                inputs=output.inputs,
            )
        )
        for name, digest in work.stay.items():
            writer.add_untouched(name, digest)
        mine = [
            name for name in work.sizes if plan is None or plan[name] % ranks.size == ranks.rank
        ]
        told = watched(ranks, progress)
        total, done = sum(work.sizes[name] for name in mine), 0
        for name, tensor in _made(work, mine, pool):
            writer.add(tensor)
            done += work.sizes[name]
            told(done, total)
        writer.collect()

        def attach() -> tuple[str, ...]:
            layout, carried, notes = inherit(route, writer, forget=forget)
            writer.attach(layout, carried)
            _check_ends(route, writer)
            return notes

        notes = first(ranks, attach)
        manifest = writer.finish(dry_run=output.dry_run)
    paths = tuple(str(reader.path) for reader in route.readers)
    return SquashReport(manifest, writer.size, paths, notes=notes)


def _made(
    work: _Work, names: Sequence[str], pool: OrderedMap
) -> Iterator[tuple[str, EncodedTensor]]:
    """The records of some names; small ones each by one thread, many of them at a time."""

    def is_small(name: str) -> bool:
        return work.sizes[name] <= SEGMENT_WORDS

    for small, group in groupby(names, key=is_small):
        if small:
            listed = list(group)
            with pool.mapped(lambda name: work.make(name, True), listed) as tensors:
                yield from zip(listed, tensors, strict=True)
        else:
            for name in group:
                yield name, work.make(name, False)


def _check_ends(route: Route, writer: DeltaWriter) -> None:
    """Insist that the records lead from where the chain starts to where it ends."""
    if route.lean:
        return  # nobody knows all tensors
    for key, is_target, expected in (("base", False, route.start), ("target", True, route.end)):
        found = checkpoint_fingerprint(writer.leaves(target=is_target)).hex()
        if found != expected:
            raise FormatError(
                "SD306",
                f"{route.name}: the {key} fingerprint is {expected}, {found} follows from the "
                "tables",
                hint=DAMAGED,
            )


def _refuse_add(reader: DeltaReader) -> None:
    for record in reader.manifest.tensors:
        if any(part.op == ADD for part in record.parts):
            raise StructureError(
                f"{reader.path}: tensor {record.name!r} has an add, which is rounded when it is "
                "applied: it cannot be squashed",
                hint="apply it, and make the delta of the results: sparsedelta apply BASE DELTA "
                "-o TARGET; sparsedelta diff BASE TARGET -o DELTA",
            )
