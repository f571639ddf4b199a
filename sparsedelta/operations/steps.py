"""One pass over a checkpoint along a delta or a chain: the engine of ``apply`` and ``revert``.

Each run of words is read, digested, changed, digested again and written. Every segment is compared
with the delta's digests before a block is decoded on top of it, and every resulting segment before
the output takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from sparsedelta.batches import together
from sparsedelta.changes import Run
from sparsedelta.checkpoint import FileCheckpoint, check_unchanged
from sparsedelta.checkpoint_writer import CheckpointWriter
from sparsedelta.companions import find_companions
from sparsedelta.digests import Digest, checkpoint_fingerprint, segment_digest, tensor_digest
from sparsedelta.errors import DAMAGED, FormatError
from sparsedelta.operations.arrows import Arrow, DiffersError, ReadRun, follow, stays
from sparsedelta.operations.batched_runs import SourceRun, batches, rooms
from sparsedelta.operations.result_files import ResultFiles
from sparsedelta.operations.route import Route
from sparsedelta.operations.way_back import WayBack
from sparsedelta.outputs import output_errors, staged
from sparsedelta.parallel import OrderedMap, Scratch
from sparsedelta.progress import Progress
from sparsedelta.ranks import ALONE, Ranks, first, own, watched
from sparsedelta.words import Bytes

Verify: TypeAlias = Literal["full", "touched"]
"""What is verified: every tensor and the fingerprint, or the tensors that a delta names."""


@dataclass(frozen=True, slots=True)
class Step:
    """The step along a route: what is made of each tensor, what is expected before.

    Attributes:
        route: The deltas.
        arrows: What to do, in the order of the checkpoint's files.
        expected: Tensor digests of the source, as far as the delta knows them.
        fingerprint: Fingerprint of the source, 64 hex digits.
        result_fingerprint: Fingerprint of the result.
    """

    route: Route
    arrows: tuple[Arrow, ...]
    expected: Mapping[str, Digest]
    fingerprint: str
    result_fingerprint: str

    @classmethod
    def of(cls, route: Route, checkpoint: FileCheckpoint) -> Step:
        """The step along a route; the checkpoint has the tensors that it starts from."""
        by_source: dict[str, list[Arrow]] = {}
        others: list[Arrow] = []
        for arrow in route.arrows:
            if arrow.source is not None and arrow.is_leaf:
                by_source.setdefault(arrow.source.name, []).append(arrow)
            else:
                others.append(arrow)
        arrows = [
            arrow
            for file in checkpoint.files
            for stored in file.layout.tensors
            for arrow in by_source.get(stored.spec.name) or [stays(stored.spec)]
        ]
        leaves = route.leaves(at_end=False)
        return cls(route, (*arrows, *others), leaves, route.start, route.end)

    @classmethod
    def copy(cls, route: Route, checkpoint: FileCheckpoint) -> Step:
        """The step from where the route leads to itself."""
        specs = (stored.spec for file in checkpoint.files for stored in file.layout.tensors)
        # The fingerprint tells all; what the tables of a lean delta say of tensors may be a lie.
        return cls(route, tuple(map(stays, specs)), {}, route.end, route.end)

    def by_name(self) -> Step:
        """The same, in the order of names."""
        ends = [(arrow.source or arrow.result, arrow) for arrow in self.arrows]
        named = sorted(((spec.name, n) for n, (spec, _) in enumerate(ends) if spec is not None))
        return replace(self, arrows=tuple(self.arrows[n] for _, n in named))

    def check_result(self, found: Mapping[str, Digest]) -> None:
        """Compare the fingerprint of the result: a lean delta cannot tell it by itself.

        Args:
            found: Tensor digests of the source, by name.

        Raises:
            FormatError: It is another (SD306).
        """
        leaves = {
            arrow.result.name: found[arrow.result.name]
            if arrow.stays
            else tensor_digest(arrow.result, arrow.after)
            for arrow in self.arrows
            if arrow.result is not None
        }
        if checkpoint_fingerprint(leaves).hex() != self.result_fingerprint:
            raise FormatError(
                "SD306",
                f"{self.route.name}: the tables and the checkpoint do not lead to the fingerprint "
                f"{self.result_fingerprint}",
                hint=DAMAGED,
            )


@dataclass(frozen=True, slots=True)
class Pass:
    """Takes a checkpoint through a step, into an output that appears whole or not at all.

    Without an output everything is done and verified, and nothing written. Of several ranks each
    has arrows of its own, rank 0 the output and the last word. Verified are all tensors, or only
    those that the step touches. The way back is written on the way, if that is asked for.
    """

    checkpoint: FileCheckpoint
    out: Path | None
    pool: OrderedMap
    progress: Progress
    force: bool
    ranks: Ranks = ALONE
    verify: Verify = "full"
    way_back: WayBack | None = None

    def __call__(self, step: Step, files: ResultFiles) -> Sequence[str]:
        """Take the step.

        Args:
            step: The step.
            files: The files to write.

        Returns:
            Names of the files beside the weights that are not copied.

        Raises:
            DiffersError: A tensor is not what the step starts from; nothing was left behind.
            VerificationError: The result is not what the delta promises; nothing was left behind.
        """
        companions = find_companions(self.checkpoint)
        if self.out is None:
            self.through(step, None)
            return companions.left_behind
        with ExitStack() as stack:
            writer = self._writer(self.out, files, stack)
            self.through(step if self.way_back is None else step.by_name(), writer)
            if self.way_back is not None:
                self.way_back.finish()
            if self.ranks.rank == 0:
                if self.verify == "full":
                    files.check_sha256(writer)
                writer.copy_companions(self.checkpoint.root, files.companions(companions))
                writer.write_files(files.contents)
        self.ranks.share(None)  # the output has its name
        return companions.left_behind

    def _writer(self, out: Path, files: ResultFiles, stack: ExitStack) -> CheckpointWriter:
        is_directory = files.is_directory
        if self.ranks.rank == 0:
            work = stack.enter_context(staged(out, directory=is_directory, force=self.force))
            writer = CheckpointWriter(files.files, work, is_directory=is_directory)
            stack.callback(writer.close)
            self.ranks.share(work.absolute())
            return writer
        stack.enter_context(output_errors(out))
        work = self.ranks.share(None)
        writer = CheckpointWriter(files.files, work, is_directory=is_directory, create=False)
        stack.callback(writer.close)
        return writer

    def through(
        self,
        step: Step,
        writer: CheckpointWriter | None,
        *,
        arrows: Sequence[Arrow] | None = None,
        known: Mapping[str, Digest] = MappingProxyType({}),
        made: Callable[[Arrow], None] = lambda _: None,
    ) -> None:
        """Read, verify, change and write the words of a checkpoint.

        Args:
            step: The step.
            writer: Where to write; None: nowhere.
            arrows: Those of the step that are to be followed; None: all.
            known: Tensor digests of what stays by arrows that are not followed.
            made: Told of each arrow when its result is written.

        Raises:
            DiffersError: A tensor is not what the step starts from.
            VerificationError: The result is not what the delta promises.
        """
        arrows = step.arrows if arrows is None else arrows
        sizes = [arrow.words * arrow.word_bytes for arrow in arrows]
        mine = [arrows[n] for n in own(self.ranks, sizes)]
        found: dict[str, Digest] | None
        try:
            found = {**known, **self._follow(step, mine, writer, made)}
        except DiffersError:
            found = None
        if self.verify == "touched":
            check_unchanged(self.checkpoint)  # nothing else tells, of what was only copied
        if writer is not None and self.ranks.rank:
            writer.sync()  # rank 0 can only see to what it wrote itself
        gathered = self.ranks.gather(found)
        if first(self.ranks, lambda: self._differs(step, gathered)):
            raise DiffersError

    def _differs(self, step: Step, gathered: Sequence[Mapping[str, Digest] | None]) -> bool:
        """Whether the source is not what the step starts from, by what all ranks found.

        Raises:
            FormatError: It is, and the result is not what the delta promises (SD306).
        """
        leaves = dict(step.expected)
        for found in gathered:
            if found is None:
                return True
            leaves |= found
        if self.verify == "touched":
            return False
        if checkpoint_fingerprint(leaves).hex() != step.fingerprint:
            return True
        step.check_result(leaves)
        return False

    def _follow(
        self,
        step: Step,
        arrows: Sequence[Arrow],
        writer: CheckpointWriter | None,
        made: Callable[[Arrow], None],
    ) -> dict[str, Digest]:
        """Follow arrows.

        Returns:
            Tensor digests of the sources of those that stay, if they are verified.

        Raises:
            DiffersError: A source is not what the step starts from.
        """
        total = sum(arrow.words * arrow.word_bytes for arrow in arrows)
        progress = watched(self.ranks, self.progress)
        done = 0

        scratch = Scratch()

        def work(batch: Sequence[SourceRun]) -> list[tuple[Digest | None, Run | None]]:
            return together(lambda runs: self._take(writer, scratch, runs), batch)

        found: dict[str, Digest] = {}
        with self.pool.mapped(work, batches(arrows)) as taken:
            results = chain.from_iterable(taken)
            for arrow in arrows:
                digests, changed = [], []
                for start, stop in arrow.spans():
                    digest, run = next(results)
                    digests.append(digest)
                    changed += [] if run is None else [run]
                    done += (stop - start) * arrow.word_bytes
                    progress(done, total)
                if arrow.source is not None and self._is_digested(arrow):
                    name = arrow.source.name
                    found[name] = tensor_digest(arrow.source, [d for d in digests if d is not None])
                    if found[name] != step.expected.get(name, found[name]):
                        raise DiffersError
                if self.way_back is not None and not arrow.stays:
                    self.way_back.add(arrow, changed)
                made(arrow)
        return found

    def _is_digested(self, arrow: Arrow) -> bool:
        """Whether the source is one of which only the digest of the whole tensor is known."""
        return arrow.stays and self.verify == "full"

    def _take(
        self, writer: CheckpointWriter | None, scratch: Scratch, batch: Sequence[SourceRun]
    ) -> list[tuple[Digest | None, Run | None]]:
        """Take runs through a step.

        Returns:
            Of each run the digest of its source, if it is not known beforehand; what leads back, if
            that is asked for.
        """
        digests: list[Digest | None] = [None] * len(batch)
        changed: list[Run | None] = [None] * len(batch)
        numbers = [n for n, run in enumerate(batch) if not self._is_copied(writer, *run)]
        runs, written = self._read(writer, scratch, [batch[n] for n in numbers])
        for n, run in zip(numbers, runs, strict=True):
            if self._is_digested(run.arrow) and run.data.size:
                digests[n] = segment_digest(run.data.data)
        before = self._before(scratch, runs)
        made = follow(runs)
        for (arrow, start, _, _), data, is_written in zip(runs, made, written, strict=True):
            if writer is not None and arrow.result is not None and not is_written:
                writer.write(arrow.result.name, start, data)
        if self.way_back is not None:
            for at, old in before.items():
                arrow, start, _, _ = runs[at]
                changed[numbers[at]] = self.way_back.changed(arrow, start, old, made[at])
        return list(zip(digests, changed, strict=True))

    def _before(self, scratch: Scratch, runs: Sequence[ReadRun]) -> dict[int, Bytes]:
        """What those runs hold that change, by their numbers, if what leads back is asked for."""
        if self.way_back is None:
            return {}
        changing = {
            number: run.data
            for number, run in enumerate(runs)
            if not run.arrow.is_unchanged(run.start, run.stop)
        }
        kept = rooms(scratch, "before", [data.size for data in changing.values()])
        for room, data in zip(kept, changing.values(), strict=True):
            room[:] = data  # which is changed in place
        return dict(zip(changing, kept, strict=True))

    def _read(
        self, writer: CheckpointWriter | None, scratch: Scratch, batch: Sequence[SourceRun]
    ) -> tuple[list[ReadRun], list[bool]]:
        """Runs of sources, and whether each has been written: by the kernel, as it stays.

        What is verified then are the bytes of the output, whatever becomes of the source.
        """
        words = [
            max(0, min(stop, arrow.source.words) - start) if arrow.source is not None else 0
            for arrow, start, stop in batch
        ]
        sizes = [count * run[0].word_bytes for count, run in zip(words, batch, strict=True)]
        runs, written = [], []
        for (arrow, start, stop), room, count in zip(
            batch, rooms(scratch, "run", sizes), words, strict=True
        ):
            is_written = False
            if count:
                is_written = arrow.is_unchanged(start, stop) and self._copied(
                    writer, arrow, start, start + count
                )
                self._fill(room, writer if is_written else None, arrow, start)
            runs.append(ReadRun(arrow, start, stop, room))
            written.append(is_written)
        return runs, written

    def _fill(self, data: Bytes, writer: CheckpointWriter | None, arrow: Arrow, start: int) -> None:
        """Read a run of the source, or what has been written of the result."""
        source, result = arrow.source, arrow.result
        if writer is not None and result is not None:
            writer.read(result.name, start, data)
        elif source is not None:
            stop = start + data.size // source.word_bytes
            self.checkpoint.read(source.name, start, stop, data)

    def _is_copied(
        self, writer: CheckpointWriter | None, arrow: Arrow, start: int, stop: int
    ) -> bool:
        """Whether nothing is left to do for a run: it stays, is not verified, and was copied."""
        if not arrow.stays or self.verify == "full":
            return False
        return writer is None or self._copied(writer, arrow, start, stop)

    def _copied(self, writer: CheckpointWriter | None, arrow: Arrow, start: int, stop: int) -> bool:
        """Whether the kernel has copied a run of the source into the result."""
        source, result = arrow.source, arrow.result
        if writer is None or source is None or result is None:
            return False
        return writer.copy(self.checkpoint, source.name, result.name, start, stop)
