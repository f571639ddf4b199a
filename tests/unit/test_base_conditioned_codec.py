"""The registry takes codecs that are given the base words: here a toy one, registered by a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsedelta
from sparsedelta.changes import Changes
from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.choice import CodecChoice
from sparsedelta.codecs import INDEX_CODECS, Bitmask, Block, StreamError, Zigzag
from sparsedelta.codecs.base import Bounds, Counts
from sparsedelta.digests import segment_digest
from sparsedelta.encode import EncodedTensor, encode_part
from sparsedelta.errors import StructureError, WrongBaseError
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import Bytes, Indices, Words, as_words
from sparsedelta.writer import DeltaWriter


@dataclass(frozen=True, slots=True)
class SortedBitmask:
    """A bitmask over the words in ascending order of their base: the idea of a ranked codec."""

    id: ClassVar[str] = "toy"
    needs_base: ClassVar[bool] = True
    stored: ClassVar[bool] = False
    rule: ClassVar[str] = "SD404"

    def stream_count(self, word_bytes: int) -> int:
        """One stream of bits."""
        return Bitmask().stream_count(word_bytes)

    def bounds(self, counts: Counts, words: Counts, word_bytes: int) -> Sequence[Bounds]:
        """One bit per word."""
        return Bitmask().bounds(counts, words, word_bytes)

    def encode(self, indices: Indices, block: Block) -> list[Bytes]:
        """Bits of the ranks."""
        assert block.base is not None
        ranks = np.argsort(np.argsort(block.base, kind="stable"), kind="stable")
        return Bitmask().encode(np.sort(ranks[indices]), block)

    def decode(self, streams: Sequence[Bytes], count: int, block: Block) -> Indices:
        """Back from ranks to indices."""
        if block.base is None:
            raise StreamError(self.rule, "no base")
        order = np.argsort(block.base, kind="stable")
        return np.sort(order[Bitmask().decode(streams, count, block)])


def test_a_codec_may_ask_for_the_base_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given them, verified, when it encodes and decodes; without them the error says so."""
    monkeypatch.setitem(INDEX_CODECS, "toy", SortedBitmask)
    rng = np.random.default_rng(0)
    old = rng.integers(0, 1 << 16, 3000, np.uint16)
    new = old.copy()
    new[rng.random(3000) < 0.2] += 1
    base, target, delta = (tmp_path / name for name in ("base", "target", "delta"))
    save_file({"w": old}, base)
    save_file({"w": new}, target)
    with FileCheckpoint(base) as reader, OrderedMap(2) as pool, DeltaWriter(delta) as writer:
        spec = reader.specs["w"]
        indices = np.flatnonzero(old != new)

        def read_base(start: int, stop: int) -> Words:
            return as_words(reader.read("w", start, stop), spec.word_bytes)

        part = encode_part(
            Changes.from_entries(spec, indices, (new - old)[indices]),
            "difference",
            pool=pool,
            choice=CodecChoice(SortedBitmask(), Zigzag()),
            block_log2=9,
            base=read_base,
        )
        digests = [segment_digest(words.view(np.uint8).data) for words in (old, new)]
        writer.add(EncodedTensor(spec, spec, (part,), (digests[0],), (digests[1],)))
        writer.finish()
    sparsedelta.apply(base, delta, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == target.read_bytes()
    with sparsedelta.DeltaReader(delta) as opened, pytest.raises(StructureError, match="base at"):
        opened.read()
    with pytest.raises(StructureError, match="base at hand"):
        sparsedelta.revert(target, delta, tmp_path / "back")
    save_file({"w": old + np.uint16(1)}, tmp_path / "wrong")
    with pytest.raises(WrongBaseError):  # before a block is decoded on it
        sparsedelta.apply(tmp_path / "wrong", delta, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    assert not (tmp_path / "back").exists()
