"""Applying deltas to a model in memory: no checkpoint is written for an evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from gallop.errors import ExportError
from gallop.exporting import JoinedCheckpoint
from sparsedelta.checkpoint import CheckpointReader, open_checkpoint
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.locations import LocationLike
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.rows import read_rows
from sparsedelta.words import Words

__all__ = ["apply_to_model"]


def apply_to_model(
    model: nn.Module, deltas: Iterable[LocationLike], *, base: LocationLike | CheckpointReader
) -> None:
    """Change the weights of a loaded model to those that deltas lead to, one after the other.

    What a delta touches is verified before and after, bit for bit; memory is that of the largest
    tensor. A tensor that the base stores under several tied names is changed once. If a later
    delta is refused, the earlier ones stay applied.

    Args:
        model: The model, loaded from ``base`` in the dtype of the checkpoint.
        deltas: Deltas; the base of each is the result of those before it.
        base: The checkpoint that the model was loaded from: names, dtypes, shapes, and tensors that
            the model does not hold.

    Raises:
        WrongBaseError: A delta belongs to another base.
        VerificationError: A delta does not lead to what it promises.
        ExportError: A delta adds, drops or reshapes tensors, or changes one that the model does not
            hold; or the model is in another dtype than the checkpoint.
        FormatError: A delta is malformed.
    """
    reader = open_checkpoint(base)
    try:
        joined = JoinedCheckpoint(reader, model)
        for location in deltas:
            delta = open_delta(location)
            try:
                _apply(joined, delta)
            finally:
                delta.close()
    finally:
        if reader is not base:
            reader.close()


def _apply(joined: JoinedCheckpoint, delta: DeltaReader) -> None:
    names: dict[int, list[str]] = {}
    for name, record in delta.records.items():
        if record.base is None or record.base != record.target:
            raise ExportError(
                f"{delta.path}: tensor {name}: expected a change of its entries, found "
                f"{record.base} become {record.target}",
                hint=_WHOLE,
            )
        if name not in joined.held:
            raise ExportError(
                f"{delta.path}: tensor {name}: expected one that the loaded model holds, found "
                "none of that name",
                hint=_WHOLE,
            )
        names.setdefault(id(joined.held[name]), []).append(name)
    for tied in names.values():
        tensor = joined.held[tied[0]]
        rows = tensor.shape[0] if tensor.ndim else 1
        # All are read before one is written: they are the same memory.
        words = [read_rows(joined, delta, name, 0, rows) for name in tied]
        if any(not np.array_equal(each, words[0]) for each in words[1:]):
            raise ExportError(
                f"{delta.path}: tensors {' and '.join(tied)}: expected equal changes, as the model "
                "ties them, found different ones",
                hint=_WHOLE,
            )
        _write(tensor, words[0])


_WHOLE = "sparsedelta apply writes the whole checkpoint; evaluate that"


def _write(tensor: Tensor, words: Words) -> None:
    data = torch.from_numpy(words.view(np.uint8)).view(tensor.dtype)
    with torch.no_grad():
        tensor.copy_(data.view(tensor.shape))
