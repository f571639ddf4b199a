"""``log`` and ``which``: the history that deltas tell, and where on it a checkpoint stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import UsageError
from sparsedelta.locations import LocationLike
from sparsedelta.operations.history import (
    DeltaLike,
    Duplicate,
    History,
    StartNeededError,
    open_all,
)
from sparsedelta.operations.identity import fingerprint
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Edge:
    """A delta of a history.

    Attributes:
        path: Its file.
        base: Fingerprint of where it starts.
        target: Fingerprint of where it leads to.
        content: Content digest.
        nnz: Entries.
        tensors: Touched tensors.
        size: Bytes of all its files.
        invertible: Whether it can be reverted.
    """

    path: str
    base: str
    target: str
    content: str
    nnz: int
    tensors: int
    size: int
    invertible: bool

    @classmethod
    def of(cls, reader: DeltaReader) -> Edge:
        """What is told of a delta."""
        manifest = reader.manifest
        return cls(
            str(reader.path),
            manifest.base,
            manifest.target,
            manifest.content,
            manifest.nnz,
            len(manifest.tensors),
            reader.size,
            manifest.invertible,
        )


@dataclass(frozen=True, slots=True)
class HistoryGraph:
    """What deltas tell of the checkpoints between which they lead.

    Attributes:
        nodes: Fingerprints of the checkpoints; each comes behind one that leads to it, as far as
            there are no circles.
        edges: The deltas, in the order in which they are drawn.
        roots: Checkpoints that no other leads to: bases.
        tips: Checkpoints that lead to no other.
        forks: Checkpoints from which more than one delta leads away.
        is_chain: Whether all deltas follow each other in one way.
        duplicates: Deltas that were left out since another has the same content digest.
    """

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    roots: tuple[str, ...]
    tips: tuple[str, ...]
    forks: tuple[str, ...]
    is_chain: bool
    duplicates: tuple[Duplicate, ...]

    def leaving(self, node: str) -> list[Edge]:
        """The deltas that lead away from a checkpoint, in the order in which they are drawn."""
        return [edge for edge in self.edges if edge.base == node != edge.target]

    def starts(self) -> Iterator[str]:
        """The checkpoints from which all others are reached: bases, and one of every circle."""
        reached: set[str] = set()
        for node in (*self.roots, *self.nodes):
            if node not in reached:
                yield node
                todo = [node]
                while todo:
                    at = todo.pop()
                    reached.add(at)
                    todo += [e.target for e in self.leaving(at) if e.target not in reached]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where on a history a checkpoint stands.

    Attributes:
        checkpoint: Where it lies.
        fingerprint: What it is.
        is_known: Whether it is on the history at all.
        is_base: Whether no delta leads to it.
        is_tip: Whether no delta leads on from it.
        arrived: Deltas that lead to it.
        leaving: Deltas that lead on from it.
        from_base: The deltas from the base to it, if there is one way only; else None.
    """

    checkpoint: str
    fingerprint: str
    is_known: bool
    is_base: bool
    is_tip: bool
    arrived: tuple[str, ...]
    leaving: tuple[str, ...]
    from_base: tuple[str, ...] | None


def log(deltas: Sequence[DeltaLike]) -> HistoryGraph:
    """The history that deltas tell: which checkpoint leads to which, by fingerprints.

    Reads headers and manifests, nothing else.

    Args:
        deltas: The deltas, in any order.

    Raises:
        FormatError: A delta breaks a rule.
        StructureError: One is a part file of a set.
        CheckpointError: A file cannot be read.
    """
    with ExitStack() as stack:
        return _graph(History(open_all(deltas, stack, whole=False)))


def _graph(history: History) -> HistoryGraph:
    nodes: list[str] = []
    edges: list[DeltaReader] = []
    for root in (*history.roots, *history.nodes):
        todo = [root]
        while todo:
            node = todo.pop()
            if node in nodes:
                continue
            nodes.append(node)
            loop = history.loop(node)
            edges += [loop] if loop is not None else []
            onward = history.leaving(node)
            edges += onward
            todo += [history.end(reader) for reader in reversed(onward)]
    forks = tuple(node for node in nodes if len(history.leaving(node)) > 1)
    arrivals = [history.end(r) for r in history.readers if history.end(r) != history.start(r)]
    is_tree = len(set(arrivals)) == len(arrivals) and len(history.roots) == 1
    return HistoryGraph(
        tuple(nodes),
        tuple(map(Edge.of, edges)),
        history.roots,
        history.tips,
        forks,
        is_tree and not forks and len(nodes) == len(arrivals) + 1,
        history.duplicates,
    )


def which(
    checkpoint: LocationLike,
    deltas: Sequence[DeltaLike],
    *,
    threads: int | None = None,
    progress: Progress = silent,
    cache: bool = True,
    ranks: Ranks = ALONE,
) -> Standing:
    """Where on the history that deltas tell a checkpoint stands.

    Args:
        checkpoint: A file, a directory or an index.
        deltas: The deltas, in any order.
        threads: Worker threads; None for the cores of this process.
        progress: Told how many bytes were digested, and of how many: by this rank.
        cache: Whether digests that are remembered beside files are believed, and new ones recorded.
        ranks: The processes that do this together, each with tensors of its own.

    Raises:
        CheckpointError: A file cannot be read.
        FormatError: A delta breaks a rule.
        RankError: Another rank failed.
    """
    with ExitStack() as stack:
        history = History(open_all(deltas, stack))
        found = fingerprint(
            checkpoint, threads=threads, progress=progress, cache=cache, ranks=ranks
        )
        node = found.fingerprint
        arrived = tuple(
            str(r.path) for r in history.readers if history.end(r) == node != history.start(r)
        )
        leaving = tuple(str(reader.path) for reader in history.leaving(node))
        is_known = node in history.nodes
        return Standing(
            checkpoint=str(checkpoint),
            fingerprint=node,
            is_known=is_known,
            is_base=is_known and not arrived,
            is_tip=is_known and not leaving,
            arrived=arrived,
            leaving=leaving,
            from_base=_way_to(history, node) if is_known else None,
        )


def _way_to(history: History, node: str) -> tuple[str, ...] | None:
    try:
        way = history.way(node)
    except (UsageError, StartNeededError):
        return None
    return tuple(str(reader.path) for reader in way)
