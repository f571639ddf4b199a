"""What mergekit makes of small tensors: run with the Python of an environment that has mergekit.

    python tests/oracles/mergekit_oracle.py OUT.npz [SEED]

Tensors are bf16, computed in float32 and written as bf16, as recipes with ``dtype: float32`` and
``out_dtype: bfloat16`` are. Beside each result stand the masks that mergekit kept entries by: ties
in a cut, and random numbers, are its own affair. ``tests/data/mergekit.npz`` was written by this,
with mergekit 0.1.5, torch 2.13.0 and seed 7.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from mergekit import sparsify
from mergekit.merge_methods import merge_tensors, sce

SHAPES = {"matrix": (48, 112), "vector": (331,), "cube": (6, 20, 24)}
DENSITIES = (0.29, 0.01, 0.05)

RECIPES: list[dict[str, Any]] = [
    {"method": "task_arithmetic", "weight": [1.0, 0.5, -0.4]},
    {"method": "task_arithmetic", "weight": [0.6, 0.3, 0.3], "normalize": True},
    {"method": "task_arithmetic", "weight": [0.6, 0.7, 0.9], "lambda": 0.7},
    {"method": "ties", "weight": [1.0, 1.0, 1.0], "density": [0.1, 0.004, 0.03]},
    {"method": "ties", "weight": [0.5, 0.3, -0.7], "density": [0.2, 0.5, 0.02]},
    {"method": "ties", "weight": [0.5, 0.3, 0.7], "density": [1.0, 1.0, 1.0], "normalize": False},
    {"method": "ties", "weight": [1, 1, 1], "density": [0.1, 0.01, 0.02], "rescale": True},
    {"method": "dare_linear", "weight": [0.5, 0.3, 0.7], "density": [0.5, 0.4, 0.9]},
    {"method": "dare_linear", "weight": [0.5, 0.3, 0.7], "density": [0.5] * 3, "rescale": False},
    {"method": "dare_ties", "weight": [0.5, 0.8, 0.7], "density": [0.5, 0.4, 0.9]},
    {"method": "dare_ties", "weight": [1, 1, 1], "density": [0.3] * 3, "normalize": True},
    {
        "method": "della",
        "weight": [0.5, 0.3, 0.7],
        "density": [0.5, 0.4, 0.8],
        "epsilon": [0.1] * 3,
    },
    {"method": "della", "weight": [1, 1, -1], "density": [0.5] * 3, "lambda": 1.2},
    {"method": "della_linear", "weight": [0.5, 0.3, 0.7], "density": [0.5, 0.4, 0.8]},
    {
        "method": "breadcrumbs",
        "weight": [0.5, 0.3, 0.7],
        "density": [0.2, 0.9, 0.9],
        "gamma": [0.01, 0.002, 0.03],
    },
    {"method": "breadcrumbs", "weight": [1, 1, 1], "density": [0.9] * 3},
    {"method": "breadcrumbs_ties", "weight": [0.5, 0.3, 0.7], "density": [0.2, 0.9, 0.9]},
    {"method": "sce"},
    {"method": "sce", "select_topk": 0.4},
    {"method": "model_stock"},
    {"method": "model_stock", "filter_wise": True},
    {"method": "linear", "weight": [0.0, 0.5, 0.3, 0.2]},
    {"method": "linear", "weight": [0.2, 1.0, 1.0, 1.0]},
    {"method": "linear", "weight": [0.0, 0.6, 0.3, 0.3], "normalize": False},
    {"method": "slerp", "t": 0.3, "tasks": [0]},
    {"method": "slerp", "t": 0.5, "tasks": [0], "far": True},
    {"method": "nuslerp", "weight": [0.7, 0.5], "tasks": [0, 2]},
    {"method": "nuslerp", "weight": [0.7, 0.5], "tasks": [0, 2], "nuslerp_flatten": False},
    {
        "method": "nuslerp",
        "weight": [0.2, 0.5],
        "tasks": [0, 2],
        "nuslerp_flatten": False,
        "nuslerp_row_wise": True,
    },
]


def tensors(seed: int, *, far: bool = False) -> dict[str, list[torch.Tensor]]:
    """For each shape a base and three tasks, which change some of its elements a little."""
    made = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        rng = np.random.default_rng(seed + number)
        base = torch.tensor(rng.standard_normal(shape) * 0.05).to(torch.bfloat16)
        tasks = []
        for density in DENSITIES:
            scale = 0.08 if far else 0.002
            steps = torch.tensor(rng.standard_normal(shape) * scale)
            marks = torch.tensor(rng.random(shape) < density)
            changed = (base.double() + steps).to(torch.bfloat16)
            tasks.append(torch.where(marks, changed, base))
        made[name] = [base, *tasks]
    return made


def words(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A bf16 tensor as words."""
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


def main(out: str, seed: int) -> None:  # noqa: C901 (one thing after the other)
    """Write inputs, masks and results."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    kept: list[torch.Tensor] = []
    rescale = sparsify.rescaled_masked_tensor

    def noted(tensor: torch.Tensor, mask: torch.Tensor, *rest: Any) -> torch.Tensor:  # noqa: ANN401
        kept.append(mask != 0)
        result: torch.Tensor = rescale(tensor, mask, *rest)
        return result

    sparsify.rescaled_masked_tensor = noted
    select = sce.sce_mask

    def selected(*given: Any) -> torch.Tensor:  # noqa: ANN401
        mask: torch.Tensor = select(*given)
        kept.append(mask != 0)
        return mask

    sce.sce_mask = selected
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for far in (False, True):
        for name, group in tensors(seed, far=far).items():
            for task, tensor in enumerate(group):
                arrays[f"{'far' if far else 'near'}/{name}/{task}"] = words(tensor)
    for number, recipe in enumerate(RECIPES):
        settings = dict(recipe)
        method = settings.pop("method")
        chosen = settings.pop("tasks", [0, 1, 2])
        far = settings.pop("far", False)
        for key in ("weight", "density", "gamma", "epsilon"):
            if key in settings and len(settings[key]) == len(chosen):
                settings[key] = {task: settings[key][n] for n, task in enumerate(chosen)}
            elif key in settings:
                settings[key] = dict(zip(["base", *chosen], settings[key], strict=True))
        for name, group in tensors(seed, far=far).items():
            kept.clear()
            used = [group[0], *(group[1 + task] for task in chosen)]
            result = merge_tensors(
                used,
                method,
                parameters=settings,
                ids=["base", *chosen],
                base_index=0 if method != "linear" else None,
                dtype=torch.float32,
                out_dtype=torch.bfloat16,
            )
            # As differences to the base: they compress.
            arrays[f"{number}/{name}/result"] = words(result) ^ words(group[0])
            for task, mask in enumerate(kept):
                arrays[f"{number}/{name}/kept{task}"] = np.packbits(mask.reshape(-1).numpy())
    arrays["recipes"] = np.frombuffer(json.dumps(RECIPES).encode(), np.uint8)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 7)
