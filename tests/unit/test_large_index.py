"""Indices above 2^31, by 64-bit arithmetic, without a tensor of that size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import sparsedelta
from sparsedelta.changes import Changes
from sparsedelta.digests import segment_count
from sparsedelta.encode import EncodedTensor, encode_part
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import TensorSpec
from sparsedelta.writer import DeltaWriter


def test_a_tensor_above_2_to_the_31_words(tmp_path: Path) -> None:
    """Flat indices, block starts and segment counts are 64-bit everywhere."""
    spec = TensorSpec("experts", "U8", (2**31 + 2**20 + 3,))
    indices = np.array([0, 2**24, 2**31 - 1, 2**31, 2**31 + 5, spec.words - 1])
    values = np.array([1, 2, 3, 4, 5, 255], np.uint8)
    changes = Changes.from_entries(spec, indices, values)
    assert changes.nnz == indices.size
    digests = (bytes(32),) * segment_count(spec.words)
    other = (*digests[:-1], bytes([1] * 32))
    path = tmp_path / "d"
    with OrderedMap(2) as pool, DeltaWriter(path) as writer:
        part = encode_part(changes, "difference", pool=pool)
        writer.add(EncodedTensor(spec, spec, (part,), digests, other))
        writer.finish()
    with sparsedelta.DeltaReader(path) as reader:
        (found,) = reader.read_tensor("experts").parts
    assert found.entries[0].dtype == np.int64
    assert found.entries[0].tolist() == indices.tolist()
    assert found.entries[1].tolist() == values.tolist()
    assert path.stat().st_size < 64 * 1024
