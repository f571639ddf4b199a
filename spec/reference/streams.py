"""The entries of a part, block by block: from frames to words (SD401 to SD413, SD417, SD418)."""

from __future__ import annotations

import io

import numpy as np
from block_codecs import INDEX_STREAMS, Bare, Coded, present, read_index, read_values
from encoding import unframe
from operations import Plan
from ranked import Block, entries_of, read_ranked
from terms import DENSE_OPS, Array, Part, Record, b3, need

Waiting = tuple[Coded, list[tuple[int, Block]]]  # the blocks with entries, and their numbers


def read_block(part: Coded, streams: list[Array], n: int, count: int) -> tuple[Array, Array]:
    """The indices in a block of n words, and their words."""
    cut = INDEX_STREAMS[part.index]
    indices, m = read_index(part, streams[:cut], n, count)
    if part.index == "range":
        length = streams[cut].size // (part.W if part.value == "raw" else 1)
        need("SD412", length == m, f"a run of {m} words with {length} values")
    if part.index not in ("dense", "range"):
        words = read_values(part, streams[cut:], m)
        need("SD408", part.op != "difference" or words.all(), "a difference of 0")
        return indices, words
    entries = np.ones(m, np.bool_)
    if part.op == "difference":
        entries = present(part, streams[cut:])
        tight = part.index == "dense" or (entries[0] and entries[-1])
        need("SD405", tight, "a run begins or ends with padding")
    need("SD405", entries.sum() == count, "a block holds another number of entries")
    return indices[entries], read_values(part, streams[cut:], m)[entries]


def read_part(part: Coded, data: io.BytesIO) -> Part:
    """Check SD401 to SD408, SD411 to SD413 and SD417, block by block."""
    indices, words = [np.empty(0, np.uint64)], [np.empty(0, f"<u{part.W}")]
    waiting: Waiting = (part, [])
    for k, (row, size) in enumerate(zip(part.rows, part.sizes(), strict=True)):
        count, n, frames = int(row["count"]), int(size), []
        for stream in row["streams"]:
            frames.append(data.read(int(stream["encoded"])))
            need("SD401", b3(frames[-1])[:8] == stream["checksum"].tobytes(), "a checksum")
        lengths = row["streams"]["decoded"].tolist()
        plain = [unframe("SD402", f, length) for f, length in zip(frames, lengths, strict=True)]
        if count and part.index == "ranked":
            block = read_ranked(plain[0], n, k << part.block, count, part.tensor)
            waiting[1].append((k, block))
        elif count:
            streams = [np.frombuffer(stream, np.uint8) for stream in plain]
            places, values = read_block(part, streams, n, count)
            indices.append(places + np.uint64(k << part.block))
            words.append(values)
    if part.index == "ranked":
        return Part(part.op, indices[0], None, waiting=waiting)
    if part.op in DENSE_OPS:  # every word of the domain: the indices say nothing
        indices = indices[:1]
    every = np.concatenate(indices), np.concatenate(words)
    return Part(part.op, *every, "", part.dtype, part.scale)


def read_streams(plans: list[Plan], data: io.BytesIO) -> list[Record]:
    """Check SD401 to SD413 for all parts, then SD409; return the records."""
    nothing = np.empty(0, np.uint64)
    records = []
    for plan in plans:
        parts = [
            Part(part.op, nothing, None, part.of)
            if isinstance(part, Bare)
            else read_part(part, data)
            for part in plan.parts
        ]
        records.append(Record(plan.name, plan.source, plan.base, plan.target, tuple(parts)))
    for record in records:
        if not any(part.waiting for part in record.parts):
            check_disjoint(record)
    return records


def check_disjoint(record: Record) -> None:
    """Check SD409."""
    ops = [part.op for part in record.parts]
    start = ops.index("drop") if "drop" in ops else 0  # a difference before it is of the base
    indices = (part.indices for part in record.parts[start:])
    every = np.concatenate([np.empty(0, np.uint64), *indices])
    need("SD409", len(np.unique(every)) == len(every), f"the parts of {record.name} overlap")


def with_base(part: Part, old: Array) -> Part:
    """Check SD418 for a part that waits for the words that it is applied to."""
    coded, blocks = part.waiting
    indices, words = [np.empty(0, np.uint64)], [np.empty(0, "<u2")]
    for k, block in blocks:
        start = k << coded.block
        within = old[start : min(coded.n, start + (1 << coded.block))]
        places, steps = entries_of(block, within, coded.tensor)
        indices.append(places + np.uint64(start))
        words.append(steps)
    return Part(part.op, np.concatenate(indices), np.concatenate(words))
