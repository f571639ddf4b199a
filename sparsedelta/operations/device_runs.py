"""Runs of live tensors on an accelerator: their words, their digests, and blocks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Final, NamedTuple

import numpy as np
import torch

from sparsedelta.codecs import StreamError
from sparsedelta.container import BlockRequest
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.device_digests import digest_segments, padded
from sparsedelta.device_ranked import RankedOnHost, take_apart
from sparsedelta.digests import Digest
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.live_entries import LiveEntries
from sparsedelta.live_tensors import LiveTensor
from sparsedelta.records import PartRecord, TensorRecord
from sparsedelta.state_dict import flat_run
from sparsedelta.words import TensorSpec

_KINDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Words as torch adds them: what overflows wraps around."""


class PlainEntries(NamedTuple):
    """Entries that the host has decoded, relative to the first word of their block."""

    indices: torch.Tensor
    words: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that are sent to the device."""
        return self.indices.nbytes + self.words.nbytes


@dataclass(slots=True)
class DeviceTensor:
    """A tensor on a device, and what is known of it so far.

    Attributes:
        name: Its name in the checkpoint.
        live: The tensor.
        kept: What other deltas have changed in it.
        record: What the delta says of it; None if it stays.
        part: Number of the part to decode, and the part.
        is_left: Whether it is left to the host.
        segments: Digests of its segments, as far as it has been gone through.
        found: What changes in each run: where, base words, new words.
    """

    name: str
    live: LiveTensor
    kept: Sequence[LiveEntries]
    record: TensorRecord | None
    part: tuple[int, PartRecord] | None = None
    is_left: bool = False
    segments: list[Digest] = field(default_factory=list)
    found: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    @property
    def spec(self) -> TensorSpec:
        """The whole tensor, by its name in the checkpoint."""
        spec = self.live.spec
        return TensorSpec(self.name, spec.dtype, spec.shape)

    @property
    def kind(self) -> torch.dtype:
        """Its words as signed numbers."""
        return _KINDS[self.spec.word_bytes]


class DeviceRun(NamedTuple):
    """A run of whole segments and whole blocks of a tensor.

    Attributes:
        tensor: The tensor.
        start: First word.
        stop: Word behind the last.
        blocks: First word, and number of words, of its blocks that have entries, and what they
            hold; in the order of the run.
    """

    tensor: DeviceTensor
    start: int
    stop: int
    blocks: Sequence[tuple[int, int, RankedOnHost | PlainEntries]] = ()

    @property
    def lengths(self) -> list[int]:
        """Bytes of its segments."""
        size = self.tensor.spec.word_bytes
        stops = [*range(self.start + SEGMENT_WORDS, self.stop, SEGMENT_WORDS), self.stop]
        return [(b - a) * size for a, b in zip([self.start, *stops], stops, strict=False)]

    @property
    def words_bytes(self) -> int:
        """Bytes of its words: only behind the last segment of a tensor there is room."""
        return sum(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that its segments take on the device."""
        return sum(map(padded, self.lengths))

    @property
    def sent(self) -> int:
        """Bytes of its entries, which are on the host until they are sent."""
        return sum(held.nbytes for _, _, held in self.blocks)

    def stored(self, reader: DeltaReader) -> tuple[list[Digest], list[Digest]]:
        """What the delta says of its segments before and after."""
        table = reader.tables.tensors[self.tensor.name]
        own = slice(self.start // SEGMENT_WORDS, -(-self.stop // SEGMENT_WORDS))
        return list(table.base_segments[own]), list(table.target_segments[own])


class DeviceBatch:
    """Runs of one device, and where in memory their words are: each segment in whole chunks."""

    def __init__(self, runs: Sequence[DeviceRun]) -> None:
        self.runs = runs
        self.device = runs[0].tensor.live.local.device
        self._starts = list(accumulate((run.nbytes for run in runs), initial=0))

    def base_words(self) -> torch.Tensor:
        """Memory with the words of the runs, those that deltas have changed taken back."""
        data = torch.zeros(self._starts[-1], dtype=torch.uint8, device=self.device)
        for run, words in zip(self.runs, self.words(data), strict=True):
            local = flat_run(run.tensor.live.local, run.start, run.stop)
            words.copy_(local.view(run.tensor.kind))
            for entries in run.tensor.kept:
                entries.overlay_on_device(words, run.start)
        return data

    def words(self, data: torch.Tensor) -> Iterator[torch.Tensor]:
        """The words of each run, as signed numbers, where they lie in memory."""
        for run, start in zip(self.runs, self._starts, strict=False):
            yield data[start : start + run.words_bytes].view(run.tensor.kind)

    def digests(self, data: torch.Tensor) -> Iterator[list[Digest]]:
        """Digests of the segments of each run."""
        lengths = [run.lengths for run in self.runs]
        found = iter(digest_segments(data, [each for own in lengths for each in own]))
        for own in lengths:
            yield list(islice(found, len(own)))


def stored_blocks(
    reader: DeltaReader, run: DeviceRun
) -> Iterator[tuple[int, int, RankedOnHost | PlainEntries]]:
    """The blocks of a run that have entries.

    Raises:
        FormatError: A rule is broken that is checked without the base.
    """
    record, part = run.tensor.record, run.tensor.part
    if record is None or part is None:
        return
    number, described = part
    counts = reader.tables.tensors[record.name].blocks(number).counts
    size = 1 << described.block_log2
    for first in range(run.start, run.stop, size):
        block = first // size
        if not counts[block]:
            continue
        words = min(size, run.stop - first)
        if not described.encoding.needs_base:
            indices, values = reader.read_block(record, number, block)
            signed = torch.from_numpy(values.copy()).view(run.tensor.kind)
            yield first, words, PlainEntries(torch.from_numpy(indices.astype(np.int32)), signed)
            continue
        file, request = reader.home(record), BlockRequest(record, number, block)
        coded = file.coded_block(request)
        try:
            held = take_apart(coded)
        except StreamError as error:
            raise file.in_block(request, error) from None
        yield first, words, held
