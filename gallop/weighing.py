"""How much a batch counts in a mean gradient: its samples, or its supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gallop.errors import SelectionError

__all__ = ["IGNORED_LABEL", "BatchSize", "measure_batch", "supervised_tokens"]

IGNORED_LABEL = -100
"""The label that transformers' and torch's cross entropy leave out of the loss."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a batch holds.

    Attributes:
        samples: Leading dimension of the batch; None if it cannot be told.
        tokens: Number of labels that enter the loss; None if the batch has no labels.
    """

    samples: int | None
    tokens: int | None


def measure_batch(batch: object) -> BatchSize:
    """Read the size of a batch off its tensors.

    Samples are the leading dimension of ``labels``, else of ``input_ids``, else of the first
    tensor or numpy array found in the batch, mappings and sequences searched in order. Tokens are
    the labels that the loss of a causal language model sees; see :func:`supervised_tokens`.

    Args:
        batch: A mapping of tensors, a sequence of them, or one tensor.

    Returns:
        Its size, with None for what it does not tell.

    Raises:
        SelectionError: The batch is empty along its leading dimension.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    lead = next(_rows([labels, ids, batch]), None)
    samples = None if lead is None else int(lead.shape[0])
    if samples == 0:
        raise SelectionError("selection batch: expected at least one sample, found none")
    return BatchSize(samples, supervised_tokens(labels) if isinstance(labels, Tensor) else None)


def supervised_tokens(labels: Tensor) -> int | None:
    """Count the labels that enter a causal language-model loss.

    The model predicts position ``t + 1`` from position ``t``, so the first label of every row
    has no prediction and is not counted. One-dimensional labels (one per sample) are not shifted.

    Args:
        labels: Integer labels of shape (batch, length) or (batch,), -100 where ignored.

    Returns:
        The count; None if the labels are not integers.
    """
    if labels.is_floating_point() or labels.is_complex():
        return None
    predicted = labels[..., 1:] if labels.ndim > 1 else labels
    return int((predicted != IGNORED_LABEL).sum())


def _rows(value: object) -> Iterator[Tensor | NDArray[Any]]:
    # Arrays with a leading dimension, outermost first and in order.
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim > 0:
            yield value
    elif isinstance(value, Mapping):
        yield from _rows(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            yield from _rows(each)
