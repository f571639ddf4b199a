"""What one step costs at 8 B, 70 B and 1 T parameters: bytes, seconds of a core and on a wire.

An estimate in three stages, which ``docs/scale.md`` explains:

- *bits per entry* are measured on one simulated tensor of 2^28 words at each density, beside the
  entropy of its support and of its moves;
- *seconds of a core per word* are measured at each density on a pair of 0.5 GiB, on one thread,
  less the start-up, which a tiny pair shows;
- *the formula* is checked against a real step of 2 GiB.

Writes ``results/scale.json`` and the tables of ``docs/scale.md``.

    python benchmarks/scale.py
    python benchmarks/scale.py --render     # only the tables, from the stored figures
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import machine
import numpy as np
import report
import tools
from checkpoints import GIB, Pair, base_words, ensure_pair, moved, step_sizes
from peers import Peer, all_peers
from rounds import Contender, interleave, settle_disk, tell
from stored import header_of

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"
MODELS: Final = {"8 B": 8e9, "70 B": 70e9, "1 T": 1e12}
DENSITIES: Final = (0.001, 0.01, 0.05)
GBITS: Final = (1, 10, 100)
SHOWN: Final = ("sparsedelta", "u16 gaps+xor+zstd", "int32+bf16", "dense xor+zstd")
CHECK_DENSITY: Final = 0.01
_RUN_WORDS: Final = 1 << 22

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a format costs at one density.

    Attributes:
        bits: Bits per changed word, all bytes counted.
        encode: Seconds of a core per word of the checkpoint, to make the delta.
        decode: The same, to apply it.
    """

    bits: float
    encode: float
    decode: float


def entropy(shares: Mapping[Any, float]) -> float:
    """Bits per symbol."""
    return -sum(p * math.log2(p) for p in shares.values() if p)


def limit(density: float) -> float:
    """Bits per entry that no coder beats without the base: where it is, and how it moves."""
    sizes, counts = np.unique(step_sizes(), return_counts=True)
    moves = {s: c / counts.sum() for s, c in zip(sizes.tolist(), counts.tolist(), strict=True)}
    places = entropy({True: density, False: 1 - density}) / density
    return places + entropy(moves) + 1


def simulate(folder: Path, words: int, density: float) -> tuple[Pair, int]:
    """A pair of one tensor of so many words, and how many of them differ.

    Its files are written over by the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, target = folder / "base.safetensors", folder / "target.safetensors"
    changed = 0
    with base.open("wb") as old, target.open("wb") as new:
        for stream in (old, new):
            stream.write(header_of([("w", "BF16", (words,))], {}))
        for start in range(0, words, _RUN_WORDS):
            tell(f"simulating {words} words, {density:.1%}: {start / words:.0%}")
            run = base_words("matrix", 0, start, min(start + _RUN_WORDS, words))
            after = moved(run, density, np.random.default_rng((start, words)))
            changed += int(np.count_nonzero(run != after))
            old.write(run.data)
            new.write(after.data)
    return Pair(base, target, 2 * words, density), changed


def shown_peers(pair: Pair) -> list[Peer]:
    """The peers of the tables, on one thread."""
    found = {peer.name: peer for peer in all_peers(pair, threads=1)[0]}
    return [found[name] for name in SHOWN]


def measure_bits(folder: Path, words: int) -> list[Figures]:
    """Bits per entry of every format at every density."""
    rows = []
    for density in DENSITIES:
        pair, changed = simulate(folder / "simulated", words, density)
        delta = folder / "simulated" / "delta"
        found = {}
        for peer in shown_peers(pair):
            tell(f"bits at {density:.1%}: {peer.name}")
            tools.remove(delta)
            interleave([Contender(peer.name, peer.encode(delta))], rounds=1)
            found[peer.name] = 8 * delta.stat().st_size / changed
        rows.append({"density": density, "limit": limit(density), "bits": found})
        tools.remove(delta, pair.base, pair.target)
    return rows


def measure_step(pair: Pair, folder: Path, *, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a core to make and to apply a delta, and its bytes, for every format.

    The least of the rounds: whoever shares the core makes every second longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tools.read_through(pair.base, pair.target)
    out = folder / "out.safetensors"
    deltas = {name: folder / f"{n}.delta" for n, name in enumerate(SHOWN)}
    peers = shown_peers(pair)
    listed = []
    for peer in peers:
        delta = deltas[peer.name]
        listed += [
            Contender(f"encode {peer.name}", peer.encode(delta), partial(tools.remove, delta)),
            Contender(f"decode {peer.name}", peer.decode(delta, out), partial(tools.remove, out)),
        ]
    timings = interleave(listed, rounds=rounds, settle=settle_disk, environment=tools.environment())
    found = {
        name: {
            "encode": min(timings[f"encode {name}"].cpu),
            "decode": min(timings[f"decode {name}"].cpu),
            "bytes": float(deltas[name].stat().st_size),
        }
        for name in SHOWN
    }
    tools.remove(out, *deltas.values())
    return found


def measure(folder: Path, *, quick: bool, rounds: int) -> Figures:
    """All figures that the estimate rests on, and its check."""
    words = 1 << (20 if quick else 28)
    middle, large = (1 / 32, 1 / 16) if quick else (0.5, 2.0)
    work = folder / "scale"
    made = [ensure_pair(folder, nbytes=int(middle * GIB), density=d) for d in DENSITIES]
    tiny = ensure_pair(folder, nbytes=GIB // 1024)
    start = measure_step(tiny, work, rounds=rounds)
    steps = []
    for pair in made:
        found = measure_step(pair, work, rounds=rounds)
        more = (pair.nbytes - tiny.nbytes) / 2
        per_word = {
            name: {a: (found[name][a] - start[name][a]) / more for a in ("encode", "decode")}
            for name in SHOWN
        }
        steps.append({"density": pair.density, "core_seconds_per_word": per_word})
    figures: Figures = {
        "simulated_words": words,
        "simulated": measure_bits(folder, words),
        "step_bytes": made[0].nbytes,
        "digest": measure_digest(tiny, made[0], rounds=rounds),
        "start": start,
        "steps": steps,
    }
    pair = ensure_pair(folder, nbytes=int(large * GIB), density=CHECK_DENSITY)
    real = measure_step(pair, work, rounds=rounds)
    figures["check"] = check(figures, pair.nbytes // 2, real)
    figures["estimates"] = estimates(figures)
    return figures


def measure_digest(tiny: Pair, large: Pair, *, rounds: int) -> float:
    """Seconds of a core per word that one BLAKE3 pass takes."""
    listed = [
        Contender(str(pair.nbytes), tools.digests(pair.base, threads=1)) for pair in (tiny, large)
    ]
    timings = interleave(listed, rounds=rounds, settle=settle_disk)
    few, many = (min(timings[str(pair.nbytes)].cpu) for pair in (tiny, large))
    return (many - few) / ((large.nbytes - tiny.nbytes) / 2)


def costs(figures: Figures, name: str, density: float) -> Cost:
    """What the measurements say of a format at one density."""
    bits = next(r["bits"][name] for r in figures["simulated"] if r["density"] == density)
    steps = next(r for r in figures["steps"] if r["density"] == density)
    return Cost(bits, **steps["core_seconds_per_word"][name])


def check(figures: Figures, words: int, real: dict[str, dict[str, float]]) -> Figures:
    """What the formula says of a real step, beside what was measured."""
    rows = []
    for name in SHOWN:
        cost = costs(figures, name, CHECK_DENSITY)
        start = figures["start"][name]
        said = {
            "bytes": words * CHECK_DENSITY * cost.bits / 8,
            "encode": start["encode"] + words * cost.encode,
            "decode": start["decode"] + words * cost.decode,
        }
        errors = {key: said[key] / real[name][key] - 1 for key in said}
        rows.append({"name": name, "said": said, "measured": real[name], "error": errors})
    return {"checkpoint_bytes": 2 * words, "density": CHECK_DENSITY, "rows": rows}


def estimates(figures: Figures) -> list[Figures]:
    """The formula for every model: a full copy first, then every format at every density."""
    rows: list[Figures] = []
    for model, words in MODELS.items():
        full = {"model": model, "density": None, "name": "full bf16 copy", "bytes": 2 * words}
        rows.append(full | {"encode": None, "decode": None})
        for density in DENSITIES:
            for name in SHOWN:
                cost = costs(figures, name, density)
                rows.append(
                    {
                        "model": model,
                        "density": density,
                        "name": name,
                        "bytes": words * density * cost.bits / 8,
                        "encode": words * cost.encode,
                        "decode": words * cost.decode,
                    }
                )
    for row in rows:
        row["wire"] = {str(rate): row["bytes"] * 8 / (rate * 1e9) for rate in GBITS}
    return rows


def amount(value: float | None) -> str:
    """Seconds for people: three digits or fewer."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 (digits shown)


def decimal_bytes(count: float) -> str:
    """Bytes in decimal units, as networks count."""
    for unit, power in (("TB", 1e12), ("GB", 1e9)):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"


def _markdown(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def render(figures: Figures) -> str:
    """The part of the document between the markers."""
    names = list(SHOWN)
    hardware = figures["machine"]
    lines = [
        f"Measured on {hardware['cores']} cores of {hardware['cpu']} "
        f"({', '.join(hardware['features'])}), Python {hardware['python']}, "
        f"numpy {hardware['packages']['numpy']}. All figures: `benchmarks/results/scale.json`.",
        "",
        f"**Bits per entry**, simulated tensor of {figures['simulated_words']:,} words:",
        "",
        *_markdown(
            ["changed", "limit", *names],
            [
                [f"{row['density']:.1%}", f"{row['limit']:.2f}"]
                + [f"{row['bits'][name]:.2f}" for name in names]
                for row in figures["simulated"]
            ],
        ),
        "",
        "**Seconds of one core per 10^9 words**, to make / to apply a delta; a BLAKE3 pass over as "
        f"many takes {amount(1e9 * figures['digest'])}:",
        "",
        *_markdown(
            ["changed", *names],
            [
                [f"{row['density']:.1%}"]
                + [
                    " / ".join(amount(1e9 * c[name][a]) for a in ("encode", "decode"))
                    for name in names
                ]
                for row in figures["steps"]
                for c in [row["core_seconds_per_word"]]
            ],
        ),
        "",
        f"**Check**: a real step of {decimal_bytes(figures['check']['checkpoint_bytes'])}, "
        f"{figures['check']['density']:.0%} changed; what the formula says, what was measured, "
        "error:",
        "",
        *_markdown(["", "bytes", "make, core s", "apply, core s"], _check_rows(figures["check"])),
    ]
    for model in MODELS:
        wires = [f"{rate} Gbit/s" for rate in GBITS]
        lines += ["", f"**{model} parameters**, bf16; seconds:", ""]
        lines += _markdown(
            ["", "changed", "bytes", "make, core s", "apply, core s", *wires],
            [
                [
                    row["name"],
                    "-" if row["density"] is None else f"{row['density']:.1%}",
                    decimal_bytes(row["bytes"]),
                    amount(row["encode"]),
                    amount(row["decode"]),
                    *(amount(row["wire"][str(rate)]) for rate in GBITS),
                ]
                for row in figures["estimates"]
                if row["model"] == model
            ],
        )
    return "\n".join(lines)


def _check_rows(found: Figures) -> list[list[str]]:
    return [
        [row["name"]]
        + [
            f"{show(row['said'][key])}, {show(row['measured'][key])}, {row['error'][key]:+.1%}"
            for key, show in (("bytes", decimal_bytes), ("encode", amount), ("decode", amount))
        ]
        for row in found["rows"]
    ]


def with_tables(document: str, figures: Figures) -> str:
    """The document with the tables of these figures between its markers."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{render(figures)}\n{END}{after}"


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds [%(default)s]")
    parser.add_argument(
        "--render", action="store_true", help="only the tables, from stored figures"
    )
    arguments = parser.parse_args()
    quick, work = arguments.quick, arguments.work
    if not arguments.render:
        machine.pin(2)
        folder = work / "bench"
        figures = measure(folder, quick=quick, rounds=1 if quick else arguments.rounds)
        report.write_results("scale", figures, work=work, quick=quick, folders=[folder])
    figures = report.read_results("scale", work=work, quick=quick)
    if not quick:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(with_tables(text, figures), encoding="utf-8")
    print(render(figures))


if __name__ == "__main__":
    main()
