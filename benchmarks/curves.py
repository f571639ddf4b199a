"""Time and memory against the size of a checkpoint, and against the share of words that change.

Writes ``results/curves.json`` and, from it, the charts of the README: ``docs/img/size-*.svg`` and
``docs/img/density-*.svg``. Ours verifies base and result, the peers verify nothing; beside them
stands a copy of the base, written through, and a BLAKE3 pass over it. On two cores, two threads
each, page cache warm where it is large enough.

    python benchmarks/curves.py
    python benchmarks/curves.py --draw      # only the charts, from the stored figures
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import charts
import machine
import report
import tools
from charts import Axis, Panel
from checkpoints import GIB, Pair, ensure_pair
from peers import Peer, all_peers
from rounds import Contender, interleave, peak_memory, settle_disk, tell

CORES: Final = 2
SIZES: Final[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DENSITIES: Final[tuple[float, ...]] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2)
DENSITY_GIB: Final = 0.5
SHOWN: Final = ("sparsedelta", "int32+bf16", "u16 gaps+xor+zstd", "dense xor+zstd")
COPY: Final = "cp, sync, b3"
MEMORY_BOUND: Final = 256
ACTIONS: Final = ("encode", "decode")
IMAGES: Final = Path(__file__).parents[1] / "docs" / "img"
MIB: Final = 1 << 20

Row: TypeAlias = dict[str, Any]
Lines: TypeAlias = dict[str, list[tuple[float, float]]]


def measure(pair: Pair, folder: Path, *, rounds: int) -> list[Row]:
    """Times, memory and size of all that is shown, on one pair."""
    folder.mkdir(parents=True, exist_ok=True)
    peers = [peer for peer in all_peers(pair, threads=CORES)[0] if peer.name in SHOWN]
    tools.read_through(pair.base, pair.target)
    out = folder / "result.safetensors"
    deltas = {peer.name: folder / f"{n}.delta" for n, peer in enumerate(peers)}
    listed = []
    for peer in peers:
        delta = deltas[peer.name]
        listed += [
            Contender(f"encode {peer.name}", peer.encode(delta), partial(tools.remove, delta)),
            Contender(f"decode {peer.name}", peer.decode(delta, out), partial(tools.remove, out)),
        ]
    copy = tools.in_turn(["cp", pair.base, out], ["sync", out], tools.digests(out))
    listed.append(Contender(COPY, copy, partial(tools.remove, out)))
    timings = interleave(listed, rounds=rounds, settle=settle_disk, environment=tools.environment())
    rows = [
        {
            "name": peer.name,
            "checkpoint_bytes": pair.nbytes,
            "density": pair.density,
            "delta_bytes": deltas[peer.name].stat().st_size,
            "encode": timings[f"encode {peer.name}"].document(),
            "decode": timings[f"decode {peer.name}"].document(),
            **_memory(peer, deltas[peer.name], out),
        }
        for peer in peers
    ]
    tools.remove(out, *deltas.values())
    copied = timings[COPY].document()
    rows.append({"name": COPY, "checkpoint_bytes": pair.nbytes, "density": pair.density})
    rows[-1]["decode"] = copied
    return rows


def _memory(peer: Peer, delta: Path, out: Path) -> dict[str, int]:
    tell(f"memory of {peer.name}")
    tools.remove(out)
    decode = peak_memory(peer.decode(delta, out), environment=tools.environment())
    tools.remove(out, delta)
    encode = peak_memory(peer.encode(delta), environment=tools.environment())
    return {"encode_memory": encode, "decode_memory": decode}


def draw(figures: dict[str, Any], folder: Path) -> None:
    """Both charts, light and dark."""
    by_size, by_density = figures["by_size"], figures["by_density"]
    sizes = sorted({_gib(row) for row in by_size})
    x = Axis("checkpoint, GiB of bf16, 1 % changed", [(s, _short(s)) for s in sizes], log=True)
    times = _lines(by_size, _gib, lambda r: r["decode"]["seconds"], (*SHOWN, COPY))
    memory = _lines(by_size, _gib, lambda r: max(r[f"{a}_memory"] for a in ACTIONS) / MIB)
    most = max(MEMORY_BOUND, _most(memory))
    charts.write(
        folder,
        "size",
        [
            Panel("Time to apply a delta", x, _log("seconds, two cores", times), times),
            Panel(
                "Peak memory, to make or to apply it",
                x,
                Axis("MiB, mapped files left out", charts.linear_ticks(most * 1.1)),
                memory,
                bound=(MEMORY_BOUND, f"{MEMORY_BOUND} MiB"),
            ),
        ],
    )
    densities = sorted({100 * row["density"] for row in by_density})
    x = Axis("words that change, %", [(d, f"{d:g}") for d in densities], log=True)
    bits = _lines(by_density, lambda r: 100 * r["density"], _bits)
    times = _lines(by_density, lambda r: 100 * r["density"], lambda r: r["encode"]["seconds"])
    charts.write(
        folder,
        "density",
        [
            Panel("Size of a delta", x, _log("bits per changed word", bits), bits),
            Panel(
                f"Time to make a delta, {_short(_gib(by_density[0]))} GiB",
                x,
                Axis("seconds, two cores", charts.linear_ticks(1.05 * _most(times))),
                times,
            ),
        ],
    )


def _lines(
    rows: list[Row],
    x: Callable[[Row], float],
    y: Callable[[Row], float],
    names: Sequence[str] = SHOWN,
) -> Lines:
    return {name: [(x(r), y(r)) for r in rows if r["name"] == name] for name in names}


def _most(lines: Lines) -> float:
    return max(y for points in lines.values() for _, y in points)


def _log(label: str, lines: Lines) -> Axis:
    return Axis(label, charts.log_ticks([y for p in lines.values() for _, y in p]), log=True)


def _gib(row: Row) -> float:
    return float(row["checkpoint_bytes"] / GIB)


def _bits(row: Row) -> float:
    return float(8 * row["delta_bytes"] / (row["checkpoint_bytes"] / 2 * row["density"]))


def _short(gib: float) -> str:
    return f"{round(gib, 2) if gib < 1 else round(gib, 1):g}"


def print_rows(title: str, rows: list[Row]) -> None:
    """The figures behind a chart."""
    shown = [
        [
            row["name"],
            report.size(row["checkpoint_bytes"]),
            f"{row['density']:.1%}",
            f"{_bits(row):.1f}",
            f"{row['encode']['seconds']:.2f}",
            f"{row['decode']['seconds']:.2f}",
            report.size(row["encode_memory"]),
            report.size(row["decode_memory"]),
        ]
        for row in rows
        if row["name"] != COPY
    ]
    columns = ["", "checkpoint", "changed", "bits/entry", "encode s", "decode s"]
    report.print_table(title, [*columns, "memory", "memory"], shown)


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds [%(default)s]")
    parser.add_argument("--largest", type=float, default=SIZES[-1], help="GiB [%(default)s]")
    parser.add_argument("--draw", action="store_true", help="only draw, from stored figures")
    arguments = parser.parse_args()
    quick, work = arguments.quick, arguments.work
    images = work / "quick" / "img" if quick else IMAGES
    if arguments.draw:
        draw(report.read_results("curves", work=work, quick=quick), images)
        return
    machine.pin(CORES)
    folder = work / "bench"
    sizes = (1 / 32, 1 / 16) if quick else tuple(s for s in SIZES if s <= arguments.largest)
    densities = (0.01, 0.1) if quick else DENSITIES
    gib = 1 / 32 if quick else DENSITY_GIB
    rounds = 1 if quick else arguments.rounds
    figures: dict[str, Any] = {"threads": CORES, "by_size": [], "by_density": []}
    for density in densities:
        pair = ensure_pair(folder, nbytes=int(gib * GIB), density=density)
        figures["by_density"] += measure(pair, folder / "curves", rounds=rounds)
    for size in sizes:
        pair = ensure_pair(folder, nbytes=int(size * GIB))
        figures["by_size"] += measure(pair, folder / "curves", rounds=rounds)
        if size > 2:  # noqa: PLR2004 (GiB: the largest pairs would fill the disk)
            shutil.rmtree(pair.base.parent.parent)
    report.write_results("curves", figures, work=work, quick=quick, folders=[folder])
    print_rows("by size", figures["by_size"])
    print_rows("by density", figures["by_density"])
    draw(figures, images)
    print(images)


if __name__ == "__main__":
    main()
