"""Sparse training equals naive dense training, bit for bit, and touches nothing else."""

from __future__ import annotations

from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from dense_reference import dense_mask, dense_train
from tiny_models import (
    clone,
    same_bits,
    tiny_model,
    token_batches,
    token_loss,
    weights_of,
)
from torch import Tensor, nn

from gallop import GallopConfig, Mask, SparseAdamW, select

DTYPES = (torch.float32, torch.bfloat16)
CLIPS = (None, 0.05)  # the second one binds in every step


def assert_same_mask(mask: Mask, dense: dict[str, Tensor]) -> None:
    expected = {name: np.flatnonzero(flags.numpy()) for name, flags in dense.items()}
    expected = {name: found for name, found in expected.items() if found.size}
    assert list(mask) == list(expected)
    for name, found in expected.items():
        np.testing.assert_array_equal(mask[name], found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exclude_zeros", [True, False])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_mask_equals_the_sorted_dense_scores(
    dtype: torch.dtype, density: float, *, exclude_zeros: bool
) -> None:
    """Law: the mask is the k first entries of a stable descending sort of all scores."""
    model, batches = tiny_model(dtype), token_batches(3)
    config = GallopConfig(density=density, exclude_zeros=exclude_zeros)
    mask = select(model, batches, config, token_loss)
    k = config.budget(sum(p.numel() for p in model.parameters()))
    dense = dense_mask(model, batches, token_loss, k=k, exclude_zeros=exclude_zeros)
    assert_same_mask(mask, dense)
    assert mask.report is not None
    assert mask.nnz == mask.report.k == sum(int(flags.sum()) for flags in dense.values())


@pytest.mark.parametrize(
    ("dtype", "accumulate", "clip", "decay"),
    list(product(DTYPES, (1, 4), CLIPS, (None, "weight", "delta"))),
)
def test_weights_equal_masked_dense_adamw(
    dtype: torch.dtype,
    accumulate: int,
    clip: float | None,
    decay: Literal["weight", "delta"] | None,
) -> None:
    """Law: five steps leave every weight, chosen or not, with the bits of the dense reference."""
    model, batches = tiny_model(dtype), token_batches(5 * accumulate)
    reference = clone(model)
    base = weights_of(model)
    mask = select(model, batches[:3], GallopConfig(density=0.03), token_loss)
    dense = dense_mask(reference, batches[:3], token_loss, k=mask.nnz)
    weight_decay = 0.3 if decay else 0.0
    norms = dense_train(
        reference,
        dense,
        batches,
        token_loss,
        accumulate=accumulate,
        lr=3e-3,
        weight_decay=weight_decay,
        decay_to_base=decay == "delta",
        max_grad_norm=clip,
    )
    optimizer = SparseAdamW(
        model,
        mask,
        lr=3e-3,
        weight_decay=weight_decay,
        weight_decay_mode=decay or "weight",
        max_grad_norm=clip,
    )
    found_norms = []
    for start in range(0, len(batches), accumulate):
        for batch in batches[start : start + accumulate]:
            token_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            assert all(p.grad is None for p in model.parameters())
        optimizer.step()
        found_norms.append(optimizer.last_grad_norm)
    optimizer.close()
    assert found_norms == norms
    assert clip is None or min(norms) > clip
    expected = weights_of(reference)
    for name, value in weights_of(model).items():
        assert same_bits(value, expected[name]), name
    moved = sum(int((v != base[n]).sum()) for n, v in model.named_parameters())
    assert moved > 0.5 * mask.nnz
    assert_only_mask_moved(model, mask, base)


def assert_only_mask_moved(model: nn.Module, mask: Mask, base: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone().flatten()
        if name in mask:
            index = torch.from_numpy(np.array(mask[name]))
            value[index] = base[name].flatten()[index]
        assert same_bits(value.view(parameter.shape), base[name]), name


@pytest.mark.parametrize("sizes", [(1, 4, 2, 8), (8, 1, 1, 2)])
def test_unequal_batches_weigh_by_their_samples(sizes: tuple[int, ...]) -> None:
    """Law: per-sample weights are the batch sizes (powers of two, where scaling is exact)."""
    model = tiny_model()
    batches = [token_batches(1, size=size, seed=size + i)[0] for i, size in enumerate(sizes)]
    mask = select(model, batches, GallopConfig(density=0.05), token_loss)
    dense = dense_mask(model, batches, token_loss, k=mask.nnz, weights=sizes)
    assert_same_mask(mask, dense)
    unweighted = dense_mask(model, batches, token_loss, k=mask.nnz)
    assert any(bool((dense[name] != unweighted[name]).any()) for name in dense)
