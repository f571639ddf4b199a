"""Tensors of a live model on an accelerator: verified, and a delta decoded on them, where they lie.

A delta is decoded on verified words only, and what it makes of them is verified, too. On the host
that takes a copy of every word of the tensors that the delta touches. Here their segments are
digested on the device (:mod:`sparsedelta.device_digests`): with the digests at hand, the host knows
whether the words are those of the base, and of the target afterwards, without having seen them.
Nothing is taken on trust: neither that an earlier delta was verified on the same words, nor that
nobody has written to them since.

To the device go indices and values of the entries, or ranks and values of a compact delta
(:mod:`sparsedelta.device_ranked`). To the host come 32 bytes for each segment before and after, the
number of words in each class of a block, how many words change, and whether rules are broken. What
changes stays on the device, as entries of the stack.

A device only ever says yes. Where it does not, because something is wrong, or there is no room, or
it knows an operation not, the tensor is left to the host, and what that finds is what is told: by
the same code, in the same words, as for a model on the host. Left to it, too, are tensors of which
the delta has several parts, or an ``add``, which is arithmetic; BOOL and complex ones; and sharded
models, whose ranks send one another words of the host.

The operations are those that CUDA has for these dtypes. No part of this has been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

import torch

from sparsedelta.batches import batched
from sparsedelta.boxes import Box
from sparsedelta.codecs import StreamError
from sparsedelta.delta import ADD, DIFFERENCE
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.device_ranked import RankedOnHost, decode_on_device
from sparsedelta.digests import tensor_digest
from sparsedelta.errors import FormatError
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.live_entries import LiveEntries
from sparsedelta.live_tensors import LiveTensor, settled
from sparsedelta.operations.device_runs import DeviceBatch, DeviceRun, DeviceTensor, stored_blocks
from sparsedelta.parallel import OrderedMap

BATCH_BYTES: Final = 1 << 30
"""Bytes of words that are worked on together, at most: a device takes as long for few as for many.
There is a copy of them before and one after the delta, and some working memory."""

_LEAST_BYTES: Final = 1 << 26
_SHARE: Final = 8
"""Of what is free on the device a batch is one in so many parts, or the least."""


def verified_there(
    reader: DeltaReader,
    tensors: Mapping[str, LiveTensor],
    kept: Mapping[str, Sequence[LiveEntries]],
    pool: OrderedMap,
) -> dict[str, LiveEntries]:
    """Verify tensors on the devices where they are, before and after a delta.

    Args:
        reader: The delta.
        tensors: Live tensors by the checkpoint's names.
        kept: What other deltas have changed in each, by the same names.
        pool: Threads, in which blocks are decoded as far as the host does that.

    Returns:
        What the delta changes in each tensor that was proven to be that of the base, and to become
        that of the target, by name; nothing changes in one that stays. The others are left.
    """
    found: dict[str, LiveEntries] = {}

    def place(name: str) -> tuple[str, bool]:
        return str(tensors[name].local.device), name not in reader.records

    # Tensors that stay come last: they are digested once, in batches of their own.
    by_device = sorted(tensors, key=place)
    for _, names in groupby(by_device, key=lambda name: place(name)[0]):
        own = [_tensor(reader, name, tensors[name], kept[name]) for name in names]
        try:
            with torch.no_grad():
                _go_through(reader, own, pool)
                found.update(
                    {each.name: _entries(each) for each in own if _is_proven(reader, each)}
                )
        except RuntimeError:
            # Whatever it was, nothing has been written to the tensors: the host has its turn. A
            # device that is broken will say so to it.
            continue
        settled(each.live.local for each in own)
    return found


def _tensor(
    reader: DeltaReader, name: str, live: LiveTensor, kept: Sequence[LiveEntries]
) -> DeviceTensor:
    record = reader.records.get(name)
    made = DeviceTensor(name, live, kept, record)
    dtype = live.spec.dtype
    is_whole = live.box == Box.whole(live.spec.shape)
    made.is_left = not is_whole or not live.spec.words or dtype in ("BOOL", "C64")
    if record is not None:
        coded = list(record.coded)
        made.is_left = made.is_left or len(coded) != 1 or coded[0][1].op == ADD
        made.part = coded[0] if coded else None
    return made


def _go_through(reader: DeltaReader, tensors: Sequence[DeviceTensor], pool: OrderedMap) -> None:
    """Verify the runs of tensors of one device; those that are not proven are left."""

    def prepared(run: DeviceRun) -> DeviceRun | None:
        try:
            return run._replace(blocks=list(stored_blocks(reader, run)))
        except FormatError:
            return None

    # Blocks are read only in the threads; whether a tensor is left is decided here.
    runs = list(_runs(tensors))
    enough = _batch_bytes(tensors[0].live.local.device)
    with pool.mapped(prepared, runs) as made:
        for batch in batched(zip(runs, made, strict=True), _size, enough):
            for run, own in batch:
                run.tensor.is_left = run.tensor.is_left or own is None
            going = [own for _, own in batch if own is not None and not own.tensor.is_left]
            if going:
                _verify(reader, going)


def _size(pair: tuple[DeviceRun, DeviceRun | None]) -> int:
    run, prepared = pair
    return run.nbytes + (prepared.sent if prepared is not None else 0)


def _batch_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return BATCH_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(max(free // _SHARE, _LEAST_BYTES), BATCH_BYTES)


def _runs(tensors: Sequence[DeviceTensor]) -> Iterator[DeviceRun]:
    for tensor in tensors:
        if tensor.is_left:
            continue
        block = 1 << tensor.part[1].block_log2 if tensor.part else 1
        size, words = max(SEGMENT_WORDS, block), tensor.spec.words
        for start in range(0, words, size):
            yield DeviceRun(tensor, start, min(start + size, words))


def _verify(reader: DeltaReader, runs: Sequence[DeviceRun]) -> None:
    """Verify runs of one device before and after the delta, and take what changes."""
    batch = DeviceBatch(runs)
    before = batch.base_words()
    changing = []
    for run, found in zip(runs, batch.digests(before), strict=True):
        if run.tensor.record is None:
            run.tensor.segments += found
            continue
        base, target = run.stored(reader)
        is_fit = found == base and (bool(run.blocks) or base == target)
        run.tensor.is_left = run.tensor.is_left or not is_fit
        changing.append(run)
    if not any(run.blocks for run in changing):
        return
    # Nothing is decoded on words that have not been verified: see the first lines of the loop.
    after = before.clone()
    pairs = list(zip(runs, batch.words(before), batch.words(after), strict=True))
    for run, old, new in pairs:
        if run.blocks and not run.tensor.is_left:
            try:
                _apply(run, old, new)
            except StreamError:
                run.tensor.is_left = True
    for (run, old, new), found in zip(pairs, batch.digests(after), strict=True):
        if not run.blocks or run.tensor.is_left:
            continue
        if found != run.stored(reader)[1]:
            run.tensor.is_left = True
            continue
        at = (new != old).nonzero().view(-1)
        own = (at + run.start, old.index_select(0, at), new.index_select(0, at))
        run.tensor.found.append(own)


def _apply(run: DeviceRun, base: torch.Tensor, words: torch.Tensor) -> None:
    """Make the words of the target out of verified ones of the base, in place.

    Raises:
        StreamError: SD418.
    """
    assert run.tensor.part is not None  # noqa: S101 (there are blocks)
    is_difference = run.tensor.part[1].op == DIFFERENCE
    for first, count, held in run.blocks:
        own = slice(first - run.start, first - run.start + count)
        if isinstance(held, RankedOnHost):
            at, values = decode_on_device(held, base[own])
        else:
            at, values = held.indices.to(base.device).long(), held.words.to(base.device)
        made = base[own].index_select(0, at) + values if is_difference else values
        words[own].scatter_(0, at, made)


def _is_proven(reader: DeltaReader, tensor: DeviceTensor) -> bool:
    if tensor.is_left or tensor.record is not None:
        return not tensor.is_left
    return tensor_digest(tensor.spec, tensor.segments) == reader.tables.untouched[tensor.name]


def _entries(tensor: DeviceTensor) -> LiveEntries:
    """What changes in a tensor, on its device."""
    device = tensor.live.local.device
    none = torch.empty(0, dtype=tensor.kind, device=device)
    start = (torch.empty(0, dtype=torch.int64, device=device), none, none)
    where, base, words = (torch.cat(each) for each in zip(start, *tensor.found, strict=True))
    return LiveEntries.on_device(tensor.live.box, where, base, words)
