"""Chosen entries of the product of two matrices, without the product (SDDMM).

The gradient of a Linear's weight is ``gradient.T @ input``, a third of all products of a training
step; of its entries only those of the mask are wanted, one in a hundred. A sampled dense-dense
product computes these alone, each as the dot product of two columns.

Each entry is summed up by one thread, over pieces of ``TOKENS`` tokens in their order: the result
does not depend on how many threads there are, nor on what else is in the mask. Where all sums are
exact, as with small integers, it equals the dense product bit for bit, the sign of a zero aside
(here always +); elsewhere both are rounded, in different orders. What is narrower than float32 is
widened first, and the sums are not rounded back: a dense gradient in bfloat16 is.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gallop.pieces import pieces

__all__ = ["TOKENS", "GradientMode", "gathered_product", "sampled_product", "transient_bytes"]

GradientMode = Literal["dense", "sampled"]
"""How the gradient of a Linear's weight comes about: as a whole, or at the chosen entries alone."""

TOKENS: Final = 256
"""Rows of both matrices that are transposed at a time: their columns stay in the cache."""

_GATHERED: Final = 1 << 14
"""Entries whose columns are gathered at a time where torch has no kernel."""


def sampled_product(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Return chosen entries of ``left.T @ right``.

    On CPU by ``torch.sparse.sampled_addmm``, elsewhere as :func:`gathered_product`. Compiled code
    and tensors without data see one operation, ``gallop::sampled_product``.

    Args:
        left: ``(tokens, rows)``, of any floating dtype.
        right: ``(tokens, columns)``, of any floating dtype.
        index: k flat indices into ``(rows, columns)``, int32 or int64; sorted, without repetition.

    Returns:
        k entries: float64 if either matrix is, else float32.
    """
    product: Tensor = torch.ops.gallop.sampled_product(left, right, index)
    return product


def transient_bytes(rows: int, columns: int, entries: int, *, tokens: int) -> int:
    """Count what :func:`sampled_product` holds for a while, its result aside, in float32 on CPU.

    Args:
        rows: Columns of the left matrix.
        columns: Columns of the right matrix.
        entries: Chosen entries.
        tokens: Rows of both.

    Returns:
        Bytes: two transposed pieces, and where each entry lies.
    """
    return 4 * (min(tokens, TOKENS) * (rows + columns) + 2 * entries + 7 * rows)


def _sampled_product(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    if left.device.type != "cpu":
        return gathered_product(left, right, index)
    rows, columns = left.shape[1], right.shape[1]
    values = torch.zeros(index.numel(), dtype=_sum_dtype(left, right))
    # The mask keeps flat indices, in 4 bytes an entry; rows and columns are told from them anew,
    # one layer at a time, as keeping them would cost as much again.
    starts = torch.arange(rows, dtype=index.dtype) * columns
    firsts = torch.searchsorted(index, starts, out_int32=index.dtype == torch.int32)
    bounds = torch.cat([firsts, firsts.new_tensor([index.numel()])])
    own = torch.repeat_interleave(starts, bounds.diff(), output_size=index.numel())
    _expect_beta_warning()
    chosen = torch.sparse_csr_tensor(
        bounds, index - own, values, size=(rows, columns), check_invariants=False
    )
    for start in range(0, left.shape[0], TOKENS):
        part = slice(start, start + TOKENS)
        # The kernel takes dot products of rows: in this layout it copies neither matrix once more.
        torch.sparse.sampled_addmm(
            chosen,
            _transposed(left[part], values.dtype),
            _transposed(right[part], values.dtype).t(),
            out=chosen,
        )
    return values


def gathered_product(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Do what :func:`sampled_product` does in operations that every device has.

    Args:
        left: As in :func:`sampled_product`.
        right: As in :func:`sampled_product`.
        index: As in :func:`sampled_product`.

    Returns:
        As :func:`sampled_product`; the order of the sums may be another.
    """
    columns = right.shape[1]
    values = left.new_zeros(index.numel(), dtype=_sum_dtype(left, right))
    for start in range(0, left.shape[0], TOKENS):
        part = slice(start, start + TOKENS)
        first, second = (_transposed(each[part], values.dtype) for each in (left, right))
        for run in pieces(index.numel(), _GATHERED):
            row = torch.div(index[run], columns, rounding_mode="floor")
            column = torch.remainder(index[run], columns)
            dots = first.index_select(0, row).mul_(second.index_select(0, column))
            values[run].add_(dots.sum(1))
    return values


def _transposed(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    return matrix.to(dtype).t().contiguous()


def _sum_dtype(left: Tensor, right: Tensor) -> torch.dtype:
    wide = torch.float64 in {left.dtype, right.dtype}
    return torch.float64 if wide else torch.float32


@cache
def _expect_beta_warning() -> None:
    # Torch says once per process that its CSR tensors are in beta; none of them leaves this module.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)


def _shape_only(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    return left.new_empty(index.shape, dtype=_sum_dtype(left, right))


_library: Any = torch.library.Library("gallop", "DEF")  # type: ignore[no-untyped-call]
_library.define("sampled_product(Tensor left, Tensor right, Tensor index) -> Tensor")
_library.impl("sampled_product", _sampled_product, "CompositeExplicitAutograd")
torch.library.register_fake("gallop::sampled_product", _shape_only, lib=_library)


@register_flop_formula(torch.ops.gallop.sampled_product)
def _flops(
    left: tuple[int, int],
    _right: tuple[int, int],
    index: tuple[int],
    *_: object,
    **_named: object,
) -> int:
    return 2 * left[0] * index[0]
