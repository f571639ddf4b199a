"""Deltas as a graph: which checkpoint leads to which, by fingerprints alone.

A checkpoint is a node, a delta an edge from its base to its target. Nothing is ever guessed: what
is not one chain is refused, with what would make it one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import FormatError, UsageError
from sparsedelta.hub.at_hand import delta_locations
from sparsedelta.hub.references import is_hub
from sparsedelta.locations import LocationLike, as_location
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.standpoint import refuse_part

DeltaLike: TypeAlias = LocationLike | DeltaReader

SHOWN: Final = 16
"""Hex digits of a fingerprint that messages show."""

_LEAST_PREFIX: Final = 6
_NAMED: Final = 4


class StartNeededError(Exception):
    """Which way leads somewhere depends on where it starts."""


def short(fingerprint: str) -> str:
    """A fingerprint as messages show it."""
    return f"{fingerprint[:SHOWN]}…"


def open_all(
    deltas: Iterable[DeltaLike], stack: ExitStack, *, whole: bool = True
) -> list[DeltaReader]:
    """Readers of deltas, closed with the stack if they were not open.

    Args:
        deltas: The deltas; a repository on the Hub may hold a chain of them.
        stack: Closes them.
        whole: See :func:`~sparsedelta.open_delta.open_delta`.

    Raises:
        FormatError: A rule is broken.
        StructureError: One is a part file of a set.
        CheckpointError: A file cannot be read.
        UsageError: One behind the first is another kind of file.
    """
    readers: list[DeltaReader] = []
    for delta in _each(deltas):
        try:
            reader = open_delta(delta, whole=whole)
        except FormatError as error:
            if readers and error.is_foreign:
                raise UsageError(
                    f"behind the first argument all are deltas, but {delta} is none: "
                    f"{error.message}",
                    hint="one checkpoint, then the deltas: sparsedelta apply BASE D1 D2 … -o OUT",
                ) from None
            raise
        if reader is not delta:
            stack.enter_context(reader)
        refuse_part(reader)
        readers.append(reader)
    return readers


def _each(deltas: Iterable[DeltaLike]) -> Iterator[DeltaLike]:
    for delta in deltas:
        location = None if isinstance(delta, DeltaReader) else as_location(delta)
        if not is_hub(location):
            yield delta
            continue
        assert location is not None  # noqa: S101 (what lies on the Hub is a location)
        yield from delta_locations(location)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A delta that was given twice, by its content digest: perhaps in another encoding.

    Attributes:
        path: The one that is left out.
        of: The one that is used.
    """

    path: str
    of: str


class History:
    """Deltas, and the checkpoints between which they lead.

    Args:
        readers: The deltas, in any order. Of several with the same content digest the first is
            taken.
        reverse: Whether they are followed from target to base: all that is called start and end
            here is exchanged then.

    Attributes:
        readers: The deltas, each content once.
        duplicates: What was left out.
    """

    def __init__(self, readers: Iterable[DeltaReader], *, reverse: bool = False) -> None:
        kept: dict[str, DeltaReader] = {}
        duplicates = []
        for reader in readers:
            first = kept.setdefault(reader.manifest.content, reader)
            if first is not reader:
                duplicates.append(Duplicate(str(reader.path), str(first.path)))
        self.readers = tuple(kept.values())
        self.duplicates = tuple(duplicates)
        self.reverse = reverse
        # Of deltas that change nothing there is at most one at a checkpoint: they have no records.
        self._loops = {self.start(r): r for r in self.readers if self.start(r) == self.end(r)}
        self._leaving: dict[str, list[DeltaReader]] = {}
        self._arriving: dict[str, list[DeltaReader]] = {}
        for reader in self.readers:
            if self.start(reader) != self.end(reader):
                self._leaving.setdefault(self.start(reader), []).append(reader)
                self._arriving.setdefault(self.end(reader), []).append(reader)

    def start(self, reader: DeltaReader) -> str:
        """Fingerprint of where a delta starts."""
        return reader.manifest.target if self.reverse else reader.manifest.base

    def end(self, reader: DeltaReader) -> str:
        """Fingerprint of where a delta leads to."""
        return reader.manifest.base if self.reverse else reader.manifest.target

    @property
    def nodes(self) -> tuple[str, ...]:
        """Fingerprints of all checkpoints, in the order in which the deltas name them."""
        ends = (end for r in self.readers for end in (self.start(r), self.end(r)))
        return tuple(dict.fromkeys(ends))

    def leaving(self, node: str) -> tuple[DeltaReader, ...]:
        """The deltas that start from a checkpoint, in the order of their content digests."""
        found = self._leaving.get(node, [])
        return tuple(sorted(found, key=lambda reader: reader.manifest.content))

    def loop(self, node: str) -> DeltaReader | None:
        """The delta that leads from a checkpoint to itself, if there is one."""
        return self._loops.get(node)

    @property
    def roots(self) -> tuple[str, ...]:
        """Checkpoints that no other leads to."""
        return tuple(node for node in self.nodes if node not in self._arriving)

    @property
    def tips(self) -> tuple[str, ...]:
        """Checkpoints that lead to no other."""
        return tuple(node for node in self.nodes if node not in self._leaving)

    def find(self, fingerprint: str) -> str:
        """The checkpoint of a fingerprint or of its first hex digits.

        Raises:
            UsageError: There is none, or more than one.
        """
        wanted = fingerprint.lower()
        found = [node for node in self.nodes if node.startswith(wanted)]
        if len(wanted) < _LEAST_PREFIX or len(found) != 1:
            raise UsageError(
                f"{fingerprint!r:.80} is the fingerprint of {len(found)} checkpoints of these "
                f"deltas, expected one (at least {_LEAST_PREFIX} hex digits)",
                hint=f"they lead between {_listed(map(short, self.nodes))}",
            )
        return found[0]

    def chain(self) -> tuple[DeltaReader, ...]:
        """The deltas as one chain, in the order in which they follow each other.

        Raises:
            UsageError: They are none: there is a gap, a fork or a circle.
        """
        if not self._leaving:
            return self._with_loops((), self._one_loop())
        for found in self._leaving.values():
            if len(found) > 1:
                raise self._forked(found)
        for node, found in self._arriving.items():
            if len(found) > 1:
                raise UsageError(
                    f"{_paths(found)} lead to the same checkpoint {short(node)} from different ones"
                    ": they are no chain",
                    hint="name those of one way only",
                )
        if len(self.roots) > 1:
            raise self._gap()
        if not self.roots or self._is_circle_elsewhere():
            raise UsageError(
                f"{_paths(self.readers)} lead in a circle: they are no chain",
                hint="say where to: --to FINGERPRINT; sparsedelta log DELTAS draws them",
            )
        return self.path(self.roots[0], self.tips[0])

    def way(self, to: str | None, start: str | None = None) -> tuple[DeltaReader, ...]:
        """The deltas that are followed one after the other: the chain, or the way to a checkpoint.

        Args:
            to: Where to, a node; None: there is one chain, and it is followed to its end.
            start: Where from, if it is known.

        Raises:
            UsageError: There is no way, or more than one.
            StartNeededError: Which one depends on where it starts.
        """
        if to is None:
            return self.chain()
        if start is not None and start in self.nodes:
            return self.path(start, to)
        node, seen = to, {to}
        while node in self._arriving:
            before = {self.start(reader) for reader in self._arriving[node]}
            node = before.pop()
            if before or node in seen:
                raise StartNeededError
            seen.add(node)
        return self.path(node, to)

    def path(self, start: str, end: str) -> tuple[DeltaReader, ...]:
        """The only way from one checkpoint to another.

        Raises:
            UsageError: There is none, or more than one.
        """
        if start == end:
            return self._with_loops((), start)
        way: list[DeltaReader] = []
        node, seen = start, {start}
        while node != end:
            reaching = self._reaching(end, seen)
            onward = [r for r in self.leaving(node) if self.end(r) in reaching]
            if not onward:
                raise UsageError(
                    f"no delta leads on from {short(node)} to {short(end)}",
                    hint="sparsedelta log DELTAS draws where they lead"
                    + ("" if self.reverse else "; sparsedelta revert leads back"),
                )
            if len(onward) > 1:
                raise UsageError(
                    f"{_paths(onward)} both lead from {short(node)} towards {short(end)}",
                    hint="name one of them only",
                )
            way.append(onward[0])
            node = self.end(onward[0])
            seen.add(node)
        return self._with_loops(way, start)

    def _reaching(self, end: str, without: set[str]) -> set[str]:
        """Checkpoints from which a way leads to ``end``, around some others."""
        found, todo = {end}, [end]
        while todo:
            for reader in self._arriving.get(todo.pop(), []):
                if self.start(reader) not in found | without:
                    found.add(self.start(reader))
                    todo.append(self.start(reader))
        return found

    def _with_loops(self, way: Sequence[DeltaReader], start: str) -> tuple[DeltaReader, ...]:
        """The way, and what changes nothing at a checkpoint on it."""
        nodes = [start, *map(self.end, way)]
        found = []
        for node, reader in zip(nodes, [*way, None], strict=True):
            loop = self.loop(node)
            found += [each for each in (loop, reader) if each is not None]
        return tuple(found)

    def _one_loop(self) -> str:
        if len(self._loops) > 1:
            raise self._gap()
        if not self._loops:
            raise UsageError("no deltas were named")
        return next(iter(self._loops))

    def _is_circle_elsewhere(self) -> bool:
        way = self.path(self.roots[0], self.tips[0]) if self.tips else ()
        return len(way) != len(self.readers)

    def _gap(self) -> UsageError:
        """The error of deltas that do not touch each other: both sides of a gap are named."""
        starts = sorted(self.roots, key=self.nodes.index)
        after = next(reader for reader in self.readers if self.start(reader) == starts[-1])
        before = self._last_from(starts[0])
        ends = ("base", "target") if self.reverse else ("target", "base")
        return UsageError(
            f"there is a gap: the {ends[0]} of {before.path} is {self.end(before)}, the {ends[1]} "
            f"of {after.path} is {self.start(after)}",
            hint="name the deltas between them, or make one: sparsedelta diff; "
            "sparsedelta log DELTAS draws how they hang together",
        )

    def _last_from(self, node: str) -> DeltaReader:
        found = self._loops.get(node)
        while self._leaving.get(node):
            found = self._leaving[node][0]
            node = self.end(found)
        assert found is not None  # noqa: S101 (a root has a delta)
        return found

    def _forked(self, found: Sequence[DeltaReader]) -> UsageError:
        start = short(self.start(found[0]))
        if len({self.end(reader) for reader in found}) < len(found):
            return UsageError(
                f"{_paths(found)} lead from the same checkpoint {start} to the same one, by other "
                "content: one of them is enough",
                hint="name one of them only: sparsedelta info says what each is",
            )
        to = _listed(map(short, self.tips))
        if not self.reverse and len(self._leaving) == 1:
            return UsageError(
                f"{_paths(found)} all start at the same checkpoint {start}: they are no chain, and "
                "nothing is guessed into a sum",
                hint="to add them up: sparsedelta compose --base BASE D1 D2 … -o DELTA, or "
                f"sparsedelta apply --stack BASE D1 D2 …; to follow one of them: --to with one of "
                f"{to}",
            )
        verb = "lead to" if self.reverse else "start at"
        return UsageError(
            f"there is a fork: {_paths(found)} {verb} the same checkpoint {start}",
            hint=f"say where to: --to with one of {to}; sparsedelta log DELTAS draws them",
        )


def are_in_order(readers: Sequence[DeltaReader]) -> bool:
    """Whether each delta of a row leads to where the next one starts."""
    return bool(readers) and all(a.manifest.target == b.manifest.base for a, b in pairwise(readers))


def _paths(readers: Iterable[DeltaReader]) -> str:
    return _listed(str(reader.path) for reader in readers)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def contiguous(way: Sequence[DeltaReader]) -> Iterator[Sequence[DeltaReader]]:
    """Every run of deltas of a way, the whole last: what may have been followed of it."""
    for length in range(1, len(way) + 1):
        for first in range(len(way) - length + 1):
            yield way[first : first + length]
