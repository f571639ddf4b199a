"""The score formulas that come with gallop, each with its source.

``g`` is the gradient at the pre-trained weights ``w``. All of them go through the same exact top-k.
An entry whose score is 0 is never chosen where the largest come first; the two that take the
smallest weights first take zeros before all others, unless ``exclude_zeros`` is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gallop.counter_hash import entry_hash
from gallop.selectors import SELECTORS, Chunk, selector

if TYPE_CHECKING:  # settings are made, and help is printed, without torch
    from torch import Tensor

__all__ = [
    "SELECTORS",
    "fisher",
    "gallop",
    "gem",
    "magnitude_high",
    "magnitude_low",
    "random",
    "saft",
    "sara",
    "score",
    "sift",
    "snip",
]

_LARGEST_BITS = 0x7F7FFFFF
"""The bit pattern of the largest finite float32."""


def score(gradient: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the score of GaLLoP, ``|gradient| / (|weight| + eps)``.

    Args:
        gradient: Mean gradient, float32, any shape.
        weight: Pre-trained weights of the same shape, any floating dtype.
        eps: Added to the magnitude of the weights, as float32.

    Returns:
        float32 scores of the same shape, at least 0; infinite or NaN where the division
        overflows or is 0 / 0.
    """
    return gradient.float().abs().div_(weight.float().abs().add_(eps))


@selector("gallop", exclude_zeros=True)
def gallop(chunk: Chunk) -> Tensor:
    """``|mean g| / (|w| + eps)``, global: GaLLoP (arXiv 2510.19778, section 3)."""
    return score(chunk.gradient, chunk.weight, chunk.eps)


@selector("saft")
def saft(chunk: Chunk) -> Tensor:
    """``|mean g|``, global: SAFT (Nguyen and others, arXiv 2407.03036)."""
    return chunk.gradient.abs_()


@selector("sift", gradient="first_batch", scope="per_tensor")
def sift(chunk: Chunk) -> Tensor:
    """``|g|`` of the first batch, in each tensor: SIFT (Song and others, arXiv 2312.11875)."""
    return chunk.gradient.abs_()


@selector("fisher", gradient="mean_square")
def fisher(chunk: Chunk) -> Tensor:
    """Mean of ``g ** 2``, global: the empirical Fisher diagonal of FISH (arXiv 2111.09839).

    The squares are those of the gradients of *batches*. FISH means those of samples, which is
    what batches of one sample give; the square of a larger batch's mean lets gradients of
    opposite sign cancel first, and ``select`` warns of it.
    """
    return chunk.gradient


@selector("magnitude-low", gradient="none", order="smallest")
def magnitude_low(chunk: Chunk) -> Tensor:
    """``|w|``, the smallest first, global: PaFi (Liao and others, arXiv 2305.16742)."""
    return chunk.weight.abs_()


@selector("magnitude-high", gradient="none", scope="per_tensor", exclude_zeros=True)
def magnitude_high(chunk: Chunk) -> Tensor:
    """``|w|``, the largest, ranked in each tensor: Super-Tuning (arXiv 2607.09287).

    A zero weight scores 0, and is not chosen whatever ``exclude_zeros`` says.
    """
    return chunk.weight.abs_()


@selector("gem", scope="per_tensor", exclude_zeros=True, allocation="entropy")
def gem(chunk: Chunk) -> Tensor:
    """``|mean g| / |w|``, per tensor, budgets by entropy: GEM (arXiv 2508.16191).

    There is no eps, as in the paper: without ``exclude_zeros`` a zero weight that has a gradient
    has no finite score, which is an error.
    """
    return chunk.gradient.abs_().div_(chunk.weight.abs_())


@selector("sara", gradient="none", order="smallest")
def sara(chunk: Chunk) -> Tensor:
    """``|w|`` below a threshold, global: SaRA (Hu and others, arXiv 2409.06633).

    ``weight_threshold`` is the paper's: with a density of 1 it alone decides, and the density is
    an outcome. Without it the threshold is what the density leads to. ``gallop.reselection`` has
    the paper's progressive step.
    """
    return chunk.weight.abs_()


@selector("random", gradient="none")
def random(chunk: Chunk) -> Tensor:
    """Entries at random, each as likely: the baseline that every other selector has to beat.

    The score is a hash of (seed, name, flat index), read as the bit pattern of a float32: its
    size means nothing, and it does not depend on the order or the sharding of tensors.
    """
    hashed = entry_hash(chunk.indices, seed=chunk.seed, name=chunk.name)
    bits = hashed % _LARGEST_BITS + 1  # 0 is never chosen, and would be left out
    return bits.int().view(chunk.weight.dtype)


@selector("snip", exclude_zeros=True)
def snip(chunk: Chunk) -> Tensor:
    """``|mean g * w|``, global: SNIP's connection sensitivity (arXiv 1810.02340), largest first.

    A zero weight scores 0, and is not chosen whatever ``exclude_zeros`` says.
    """
    return chunk.gradient.mul_(chunk.weight).abs_()
