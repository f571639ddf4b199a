"""A delta to write: how many part files it has, and which records go into which, known before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsedelta.errors import UsageError
from sparsedelta.limits import MAX_SET_PARTS
from sparsedelta.partition import divide
from sparsedelta.ranks import Ranks


@dataclass(frozen=True, slots=True)
class DeltaOutput:
    """A delta to write: the attributes are the arguments of operations that make one of deltas."""

    out: Path
    lean: bool = False
    max_shard_size: int | None = None
    shards: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    dry_run: bool = False
    inputs: tuple[Path, ...] = ()
    """Files that are read, and never overwritten."""


def part_count(shards: int | None, max_shard_size: int | None, ranks: Ranks) -> int | None:
    """How many part files are planned; None: as many as a size asks for, or one file.

    Args:
        shards: What was asked for; by default the number of ranks.
        max_shard_size: The size that was asked for.
        ranks: Who shares the work.

    Raises:
        UsageError: A number out of range, or both.
    """
    if max_shard_size is not None:
        if max_shard_size < 1:
            raise UsageError(f"a shard size of {max_shard_size} bytes, expected at least 1")
        if shards is not None or ranks.size > 1:
            raise UsageError(
                "the number of part files cannot follow from their size where it is given, or where"
                f" ranks share the work: {ranks.size}",
                hint="use --shards (shards in Python) instead of --max-shard-size",
            )
    if shards is None:
        return ranks.size if ranks.size > 1 else None
    if not 1 <= shards <= MAX_SET_PARTS:
        raise UsageError(f"{shards} shards, expected 1 to {MAX_SET_PARTS}")
    return shards


def divide_records(sizes: Mapping[str, int], shards: int) -> dict[str, int]:
    """The part file of each record, from 0, by its name: each has about the same work.

    Args:
        sizes: What each record costs, by name, ascending.
        shards: Number of part files.
    """
    return dict(zip(sizes, divide(list(sizes.values()), shards), strict=True))
