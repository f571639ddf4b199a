"""``diff``: the delta from one checkpoint to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Literal

from sparsedelta.checkpoint import (
    CheckpointReader,
    FileCheckpoint,
    check_unchanged,
    open_checkpoint,
)
from sparsedelta.choice import parse_choice
from sparsedelta.digest_cache import KnownDigests
from sparsedelta.digests import tensor_digest
from sparsedelta.encode import EncodedTensor
from sparsedelta.errors import UsageError
from sparsedelta.hub.named_base import pin_together
from sparsedelta.hub.references import is_hub
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import LocationLike, Url, output_path
from sparsedelta.manifest import PORTABLE, PROFILES, Manifest
from sparsedelta.operations.advice import Advice, Adviser, advise, sampled
from sparsedelta.operations.attach import find_carried, record_layout
from sparsedelta.operations.info import record_kinds
from sparsedelta.operations.pairing import Pair, pair_tensors
from sparsedelta.operations.parts import divide_records, part_count
from sparsedelta.operations.scanning import Recipe, ScannedTensor, scan_tensors
from sparsedelta.outputs import check_output
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks, first, watched
from sparsedelta.writer import DeltaWriter

LayoutMode = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class PartSizes:
    """What each encoding of a part would have cost.

    Attributes:
        tensor: Name of the record.
        op: Operation of the part.
        chosen: The encoding that was written.
        nbytes: Bytes of frames and block table by encoding, as far as they were tried.
    """

    tensor: str
    op: str
    chosen: str
    nbytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DiffReport:
    """What a diff found and wrote.

    Attributes:
        manifest: Manifest of the delta.
        size: Bytes of the delta, also of one that a dry run did not keep.
        checkpoint_bytes: Bytes of all tensors of the target.
        sizes: What each encoding of each part would have cost; only if it was asked for.
        notes: What the user should know: files that could not be recorded or carried.
        advice: Another profile that would have paid by more than a quarter, or None.
    """

    manifest: Manifest
    size: int
    checkpoint_bytes: int
    sizes: tuple[PartSizes, ...] = ()
    notes: tuple[str, ...] = ()
    advice: Advice | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """Number of touched tensors of each kind, such as changed, renamed, resized, new."""
        return record_kinds(self.manifest.tensors)


def diff(
    base: LocationLike | CheckpointReader,
    target: LocationLike | CheckpointReader,
    out: LocationLike,
    *,
    profile: str = PORTABLE,
    one_way: bool = False,
    forget: bool = False,
    lean: bool = False,
    layout: LayoutMode = "auto",
    sha256: bool = False,
    with_files: bool = False,
    renames: Mapping[str, str] | None = None,
    unrelated: bool = False,
    codec: str | None = None,
    explain: bool = False,
    max_shard_size: int | None = None,
    shards: int | None = None,
    metadata: Mapping[str, str] | None = None,
    base_repo: str | None = None,
    base_revision: str | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    cache: bool = True,
    ranks: Ranks = ALONE,
) -> DiffReport:
    """Write the delta that leads from ``base`` to ``target``, bit for bit.

    Args:
        base: Checkpoint to start from: a file, a directory, an index, or a reader.
        target: Checkpoint to lead to. Tensors may come, go, change their dtype or shape, or have
            another name: renames and copies are found by content.
        out: The delta file.
        profile: ``portable``, or ``compact``: about half the size, and only who has the base can
            read it; see docs/profiles.md.
        one_way: Store new words instead of differences, and none of what goes: not invertible.
        forget: Do not store the words of tensors and rows that go: not invertible if some do.
        lean: Leave out the digests of the tensors that stay; the delta then tells less without its
            base.
        layout: Whether the headers and names of the checkpoints' files are recorded, so that apply
            and revert give back the files: ``auto`` if it costs under 1 % or the files differ.
        sha256: Record the SHA-256 of the files too: one more pass over both checkpoints.
        with_files: Carry the small files beside the weights that differ.
        renames: Name in the target to name in the base, of tensors that content cannot tell.
        unrelated: Allow checkpoints that share few tensors.
        codec: Force codecs, such as ``gap8`` or ``bitmask+planes``; None for the smallest.
        explain: Try every codec and report what each would have cost.
        max_shard_size: Write a set of part files of about this many bytes; None for one file.
        shards: Write a set of this many part files, each with the changes of about the same number
            of bytes of the checkpoints; one without any is left out. By default the number of
            ranks.
        metadata: Provenance, string to string; not part of the delta's identity.
        base_repo: Hint where the base can be had; None: where it was read, if that is the Hub.
        base_revision: Hint at its commit.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes were compared, and of how many: by this rank.
        cache: Whether tensors are skipped of which digests are remembered beside both files, and
            equal; and new digests recorded: see :mod:`sparsedelta.digest_cache`.
        ranks: The processes that do this together, each the part files that are its own. All of
            them call this alike; rank 0 writes the root.

    Raises:
        UsageError: Unknown profile or codec, a rename that makes no sense.
        OutputError: The output exists, or cannot be written.
        CheckpointError: A checkpoint cannot be read.
        StructureError: The checkpoints share few tensors, and ``unrelated`` is false.
        RankError: Another rank failed; nothing is left behind.
    """
    if profile not in PROFILES:
        raise UsageError(
            f"unknown profile {profile!r}, expected {' or '.join(PROFILES)}",
            hint="use --profile portable",
        )
    shards = part_count(shards, max_shard_size, ranks)
    recipe = Recipe(
        one_way,
        forget or one_way,
        parse_choice(codec) if codec is not None else None,
        explain,
        profile,
    )
    out = output_path(out)
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        old = open_checkpoint(pin_together(base, ranks))
        if old is not base:
            stack.callback(old.close)
        new = open_checkpoint(pin_together(target, ranks))
        if new is not target:
            stack.callback(new.close)
        base_repo, base_revision = _origin(old, base_repo, base_revision)
        pool = stack.enter_context(OrderedMap(threads))
        known = KnownDigests(old, use=cache), KnownDigests(new, use=cache)

        def prepare() -> list[Pair]:
            check_output(out, force=force, inputs=(*old.paths, *new.paths))
            return pair_tensors(old, new, pool=pool, renames=renames, unrelated=unrelated)

        pairs = first(ranks, prepare)
        plan = None if shards is None else plan_parts(pairs, shards)
        writer = stack.enter_context(
            DeltaWriter(
                out,
                metadata=metadata,
                base_repo=base_repo,
                base_revision=base_revision,
                profile=profile,
                lean=lean,
                max_shard_size=max_shard_size,
                plan=plan,
                ranks=ranks,
                force=force,
                inputs=(*old.paths, *new.paths),
            )
        )
        mine = [
            pair for pair in pairs if plan is None or plan[pair.name] % ranks.size == ranks.rank
        ]
        same = {pair.name for pair in mine if _is_known_to_stay(pair, *known)}
        for name in same:
            writer.add_untouched(name, known[1].tensors[name])
        mine = [pair for pair in mine if pair.name not in same]
        recipe = replace(recipe, sampled=sampled(mine, profile))
        adviser = Adviser()
        sizes: list[PartSizes] = []
        told = watched(ranks, progress)
        scanned = scan_tensors(old, new, mine, recipe=recipe, pool=pool, progress=told)
        with closing(scanned) as tensors:
            for tensor in tensors:
                adviser.add(tensor)
                sizes += _write(tensor, writer, recipe)
        writer.collect()

        def attach() -> tuple[str, ...]:
            recorded, notes = record_layout(old, new, writer, mode=layout, sha256=sha256)
            carried, more = (
                find_carried(old, new, writer, forget=recipe.forget) if with_files else ((), ())
            )
            writer.attach(recorded, carried)
            return (*notes, *more)

        notes = first(ranks, attach)
        check_unchanged(old, new)
        if ranks.rank == 0:
            for each, is_target in zip(known, (False, True), strict=True):
                each.remember(writer.leaves(target=is_target))
        manifest = writer.finish(dry_run=dry_run)
        total = sum(spec.nbytes for spec in new.specs.values())
        gathered = [each for found in ranks.gather(sizes) for each in found]
        every = ranks.share(sorted(gathered, key=lambda each: each.tensor))
        found = ranks.gather(adviser.totals())
        advice = ranks.share(advise(found, manifest.tensors, writer.size))
        return DiffReport(manifest, writer.size, total, tuple(every), notes, advice)


def _origin(
    base: CheckpointReader, repo: str | None, revision: str | None
) -> tuple[str | None, str | None]:
    """Where a base can be had: as it is told, else the repository on the Hub it was read from."""
    if repo is not None or not isinstance(base, FileCheckpoint) or not isinstance(base.path, Url):
        return repo, revision
    if not is_hub(base.path):
        return repo, revision
    store = HubStore(base.path)
    return store.reference.repo, store.commit


def plan_parts(pairs: Sequence[Pair], shards: int) -> dict[str, int]:
    """The part file of each pair's record, from 0, by the record's name.

    Known before anything is compared: it depends on names, dtypes and shapes alone.

    Args:
        pairs: The pairs, ascending by name.
        shards: Number of part files.
    """
    sizes = {
        pair.name: sum(spec.nbytes for spec in (pair.base, pair.target) if spec is not None)
        for pair in pairs
    }
    return divide_records(sizes, shards)


def _is_known_to_stay(pair: Pair, old: KnownDigests, new: KnownDigests) -> bool:
    digest = old.tensors.get(pair.name)
    return (
        pair.base == pair.target
        and pair.copied is None
        and digest is not None
        and digest == new.tensors.get(pair.name)
    )


def _write(tensor: ScannedTensor, writer: DeltaWriter, recipe: Recipe) -> list[PartSizes]:
    if tensor.encoded is None:
        spec = tensor.pair.target
        assert spec is not None  # noqa: S101 (what stays is in the target)
        writer.add_untouched(spec.name, tensor_digest(spec, tensor.base_segments))
        return []
    writer.add(tensor.encoded)
    return _sizes(tensor.encoded) if recipe.explain else []


def _sizes(tensor: EncodedTensor) -> list[PartSizes]:
    return [
        PartSizes(
            tensor.record.name,
            part.op,
            part.encoding.describe(),
            tensor.parts[n].sizes,
        )
        for n, part in tensor.record.coded
    ]
