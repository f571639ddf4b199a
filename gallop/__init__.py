"""GaLLoP: fine-tune the few parameters with the largest gradient for their size.

::

    mask = gallop.select(model, batches, gallop.GallopConfig(density=0.01))
    optimizer = gallop.SparseAdamW(model, mask, lr=2e-4)
    ...  # an ordinary training loop
    optimizer.close()
    gallop.export(model, mask, base="base/", out="task.sparsedelta")

``gallop.train.finetune`` is such a loop for causal language models, and the ``gallop`` command runs
it; ``gallop.errors`` draws the tree of errors. Names are imported when they are first used, so that
``import gallop`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gallop.config import GallopConfig
    from gallop.exporting import export
    from gallop.mask import Mask
    from gallop.mask_slices import gather_mask
    from gallop.optim import SparseAdamW
    from gallop.report import SelectionReport
    from gallop.selection import select
    from gallop.selectors import selector
    from gallop.sharded_state import load_state, save_state
    from gallop.values import SparseValues

__all__ = [
    "GallopConfig",
    "Mask",
    "SelectionReport",
    "SparseAdamW",
    "SparseValues",
    "export",
    "gather_mask",
    "load_state",
    "save_state",
    "select",
    "selector",
]

_HOMES = {
    "GallopConfig": "gallop.config",
    "Mask": "gallop.mask",
    "SelectionReport": "gallop.report",
    "SparseAdamW": "gallop.optim",
    "SparseValues": "gallop.values",
    "export": "gallop.exporting",
    "gather_mask": "gallop.mask_slices",
    "load_state": "gallop.sharded_state",
    "save_state": "gallop.sharded_state",
    "select": "gallop.selection",
    "selector": "gallop.selectors",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
