"""Memory and time of a training step: our engines against full AdamW and the adapters of PEFT.

SmolLM2-135M in float32, 4 times 64 tokens, 1 % of all linear layers. The peak of memory is that of
a process of its own for each way (resident, less pages of mapped files), loading included. Seconds
per step are measured in one process, in which all ways take turns step by step; ratios are taken
within a turn before the median. Full AdamW does not train the embeddings, and is measured in both
of its fast forms; LoRA and DoRA have the rank with as many entries as the mask.

    python benchmarks/trainer.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import machine
import report
import torch
import trainers
from rounds import Timing, peak_memory, ratio, tell

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from weights import write_smollm2

CORES: Final = 2
DENSITIES: Final = (0.001, 0.01, 0.02)
MEMORY: Final = ("hook", "autograd", "sampled", "fused", "shira", "lora", "dora")
SPEED: Final = ("hook", "autograd", "sampled", "foreach", "fused", "shira", "lora", "dora")
OURS: Final = "hook"
ALL_OURS: Final = ("hook", "autograd", "sampled")
VOCABULARY: Final = 49_152

BYTES_PER_ENTRY: Final = 25
BYTES_OF_SLOPE: Final = 28
UNDER_SHIRA: Final = 0.85
FASTER_THAN_SHIRA: Final = 1.05


def measure_memory(
    names: Sequence[str], checkpoint: Path, *, rows: int, tokens: int
) -> dict[str, int]:
    """Peak memory of each way in a process of its own, in bytes."""
    found = {}
    for name in names:
        tell(f"memory: {name}")
        command: list[str | Path] = [
            *(sys.executable, __file__, "--one", name, "--checkpoint", checkpoint),
            *("--rows", str(rows), "--tokens", str(tokens)),
        ]
        found[name] = peak_memory(command)
    tell("")
    return found


def take_steps(name: str, checkpoint: Path, *, rows: int, tokens: int, steps: int = 2) -> None:
    """Take two steps, the second with all state in place: what the watched process does."""
    model = trainers.load(checkpoint)
    batch = trainers.random_batch(rows=rows, tokens=tokens, vocabulary=VOCABULARY)
    way = trainers.WAYS[name](model, batch)
    for _ in range(steps):
        way.step()


def measure_speed(
    names: Sequence[str], checkpoint: Path, *, rows: int, tokens: int, rounds: int
) -> tuple[dict[str, trainers.Way], dict[str, Timing]]:
    """Seconds per step of each way, taken in turns; the first turn is not counted."""
    batch = trainers.random_batch(rows=rows, tokens=tokens, vocabulary=VOCABULARY)
    ways = trainers.build(names, checkpoint, batch)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, way in ways.items():
            tell(f"round {number}/{rounds}: {name}")
            wall, cpu = time.perf_counter(), time.process_time()
            way.step()
            if number:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    tell("")
    return ways, {
        name: Timing(tuple(w for w, _ in pairs), tuple(c for _, c in pairs))
        for name, pairs in taken.items()
    }


def measure_state(checkpoint: Path) -> dict[str, float]:
    """Bytes per chosen entry that the hook engine holds, weights aside, by density."""
    import gallop  # noqa: PLC0415 (not before the process is pinned)

    model = trainers.load(checkpoint)
    found = {}
    for density in DENSITIES:
        mask = trainers.random_mask(model, density)
        with gallop.SparseAdamW(model, mask) as optimizer:
            found[f"{density:g}"] = optimizer.nbytes / mask.nnz
    return found


def measure(
    checkpoint: Path, *, rows: int, tokens: int, rounds: int, quick: bool
) -> dict[str, Any]:
    """All figures."""
    have_peft = find_spec("peft") is not None
    without = {"shira", "lora", "dora"} if not have_peft else set()
    speed = [name for name in SPEED if name not in without]
    memory = [name for name in MEMORY if name not in without]
    if quick:
        memory = [name for name in memory if name in {"hook", "lora"}]
    ways, timings = measure_speed(speed, checkpoint, rows=rows, tokens=tokens, rounds=rounds)
    fastest = min(("foreach", "fused"), key=lambda name: timings[name].median)
    references = {"full": fastest, **({"shira": "shira", "lora": "lora"} if have_peft else {})}
    documents = {
        name: {
            "name": way.name,
            "trained": way.trained,
            **timings[name].document(),
            "ratios": {
                key: ratio(timings[name], timings[other]).document()
                for key, other in references.items()
            },
        }
        for name, way in ways.items()
    }
    entries = {name: way.trained for name, way in ways.items()}
    del ways
    peaks = measure_memory([*memory, "hook10"], checkpoint, rows=rows, tokens=tokens)
    tenfold = peaks.pop("hook10")
    for name, peak in peaks.items():
        documents[name]["peak_memory"] = peak
    return {
        "rows": rows,
        "tokens": tokens,
        "rounds": rounds,
        "torch": torch.__version__,
        "fastest_full": fastest,
        "ways": documents,
        "bytes_per_entry": measure_state(checkpoint),
        "slope_bytes_per_entry": (tenfold - peaks[OURS]) / (9 * entries[OURS]),
        "left_out": [] if have_peft else ["peft is not installed: no LoRA, DoRA, SHiRA"],
    }


def targets(figures: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """What was asked for, what was found, and whether that is met; only what was measured."""
    ways, ours = figures["ways"], figures["ways"][OURS]
    slope = figures["slope_bytes_per_entry"]
    most = max(figures["bytes_per_entry"].values())
    full = 1 / ours["ratios"]["full"]["median"]
    found = {
        f"at most {BYTES_PER_ENTRY} bytes per entry": (f"{most:.2f}", most <= BYTES_PER_ENTRY),
        f"slope of at most {BYTES_OF_SLOPE} bytes": (f"{slope:.2f}", slope <= BYTES_OF_SLOPE),
        "at least as fast as full AdamW": (f"{full:.3f} x", full >= 1),
    }
    if "shira" in ours["ratios"]:
        # The memory is asked of the default, this of whatever we have that is fastest.
        named = {key: ways[key] for key in ALL_OURS if key in ways}
        fastest = min(named.values(), key=lambda way: way["ratios"]["shira"]["median"])
        shira = 1 / fastest["ratios"]["shira"]["median"]
        found[f"{FASTER_THAN_SHIRA} x SHiRA's speed"] = (
            f"{shira:.3f} x ({fastest['name']})",
            shira >= FASTER_THAN_SHIRA,
        )
    for name, limit in (("lora", 1.0), ("shira", UNDER_SHIRA)):
        if name in ways and "peak_memory" in ways[name]:
            share = ours["peak_memory"] / ways[name]["peak_memory"]
            found[f"memory at most {limit:g} x {ways[name]['name']}'s"] = (
                f"{share:.3f} x",
                share <= limit,
            )
    return found


def print_figures(figures: Mapping[str, Any]) -> None:
    """The tables."""
    rows = []
    ours = figures["ways"][OURS]
    for way in figures["ways"].values():
        peak = way.get("peak_memory")
        rows.append(
            [
                way["name"],
                f"{way['trained']:,}",
                "-" if peak is None else report.size(peak),
                "-" if peak is None else f"{peak / ours['peak_memory']:.2f}",
                f"{way['seconds']:.3f}",
                f"{way['cpu_seconds']:.3f}",
                *(f"{each['median']:.3f}" for each in way["ratios"].values()),
            ]
        )
    report.print_table(
        f"SmolLM2-135M, float32, {figures['rows']} x {figures['tokens']} tokens, {CORES} threads, "
        f"{figures['rounds']} rounds",
        [
            *("", "trained", "peak", "x ours", "s/step", "cpu s"),
            *(f"x {key}" for key in ours["ratios"]),
        ],
        rows,
    )
    held = ", ".join(f"{key}: {each:.2f}" for key, each in figures["bytes_per_entry"].items())
    print(f"bytes per chosen entry, weights aside, by density: {held}")
    report.print_table(
        "targets",
        ["", "found", "met"],
        [[name, what, "yes" if met else "NO"] for name, (what, met) in targets(figures).items()],
    )
    for note in figures["left_out"]:
        print(f"left out: {note}")


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds [%(default)s]")
    parser.add_argument("--rows", type=int, default=4, help="sequences per step [%(default)s]")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each [%(default)s]")
    parser.add_argument("--one", choices=sorted(trainers.WAYS), help="only take steps of this way")
    parser.add_argument("--checkpoint", type=Path, help="where --one finds the model")
    arguments = parser.parse_args()
    torch.set_num_threads(machine.pin(CORES))
    rows, tokens, rounds = arguments.rows, arguments.tokens, arguments.rounds
    if arguments.quick:
        rows, tokens, rounds = 1, 16, 1
    if arguments.one:
        take_steps(arguments.one, arguments.checkpoint, rows=rows, tokens=tokens)
        return
    checkpoint = arguments.work / "base"
    write_smollm2(checkpoint)
    figures = measure(checkpoint, rows=rows, tokens=tokens, rounds=rounds, quick=arguments.quick)
    figures["targets"] = {name: met for name, (_, met) in targets(figures).items()}
    report.write_results("trainer", figures, work=arguments.work, quick=arguments.quick)
    print_figures(figures)


if __name__ == "__main__":
    main()
