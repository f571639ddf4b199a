"""SaRA's progressive step: after training a while, going on with what is still below the threshold.

SaRA (Hu and others, arXiv 2409.06633, "progressive parameter adjustment") trains the weights below
a threshold, and half way through chooses again: those that have grown past it are kept as they are
and no longer trained, the rest is trained on, with new moments. No weight comes in that was not in
the first mask, because the others have not moved.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gallop.errors import ConfigError, SelectionError
from gallop.formulas import SELECTORS
from gallop.mask import Mask

__all__ = ["reselect"]


def reselect(model: nn.Module, mask: Mask, *, weight_threshold: float | None = None) -> Mask:
    """Choose, of the entries of a mask, those whose weights are still below the threshold.

    ::

        mask = gallop.select(model, None, gallop.GallopConfig(0.1, selector="sara"))
        ...  # train with SparseAdamW(model, mask, ...), then close() it
        rest = gallop.reselection.reselect(model, mask)
        ...  # train on with a new SparseAdamW(model, rest, ...)
        gallop.export(model, mask, ...)  # the first mask: it covers every weight that moved

    Args:
        model: The model, trained for a while.
        mask: What was trained.
        weight_threshold: Entries with a magnitude below it are chosen. By default that of the
            mask's configuration; where the threshold followed from a density, the largest
            magnitude that the mask was chosen with, which itself still counts as below.

    Returns:
        The smaller mask, with the configuration of the first and without a report.

    Raises:
        ConfigError: No threshold is known.
        SelectionError: No entry is left below it.
        MaskError: The mask belongs to another model.
    """
    limit = _limit(mask, weight_threshold)
    parameters = mask.resolve(model)
    indices = {}
    for name, found in mask.items():
        flat = parameters[name].detach().view(-1)
        values = flat[torch.from_numpy(found.copy()).to(flat.device)].float().abs()
        indices[name] = found[(values < limit).cpu().numpy()]
    rest = Mask(indices, mask.shapes, config=mask.config)
    if not rest.nnz:
        raise SelectionError(
            f"reselection: expected weights below {limit:g}, found none among the {mask.nnz} "
            "entries of the mask",
            hint="every chosen weight has grown past the threshold: training is done",
        )
    return rest


def _limit(mask: Mask, weight_threshold: float | None) -> float:
    if weight_threshold is not None:
        return weight_threshold
    config, report = mask.config, mask.report
    if config is not None and config.weight_threshold is not None:
        return config.weight_threshold
    by_magnitude = config is not None and config.selector in {"sara", "magnitude-low"}
    if not by_magnitude or report is None or report.threshold is None:
        raise ConfigError(
            "weight_threshold: expected a number, found none in the mask",
            hint=f"of {', '.join(SELECTORS)}, sara and magnitude-low in global scope have one",
        )
    return float(np.nextafter(np.float32(report.threshold), np.float32(np.inf)))
