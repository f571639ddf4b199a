"""Our delta and those of others, on the same pair in the same run: size, time, memory.

Peers are the formats of ``formats.py``, and general tools that find differences of files: ``zstd
--patch-from`` and ``xdelta3``, where they are installed. All write their results through to the
disk. Ours proves the base and the result; no peer proves anything, but the result of each is
compared with the target here.

    python benchmarks/peers.py
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import machine
import report
import tools
from checkpoints import GIB, Pair, ensure_pair
from formats import FORMATS, ZIPNN, available
from rounds import Command, Contender, Timing, interleave, peak_memory, settle_disk, tell

CORES: Final = 2
SLOW_ROUNDS: Final = 2


@dataclass(frozen=True)
class Peer:
    """A way of making and using deltas.

    Attributes:
        name: What tables call it.
        users: Who does it so.
        encode: Command that writes the delta to a path.
        decode: Command that reads it and writes the target to a path.
        slow: Whether it is measured in few rounds.
    """

    name: str
    users: str
    encode: Callable[[Path], Command]
    decode: Callable[[Path, Path], Command]
    slow: bool = False


def all_peers(pair: Pair, *, threads: int) -> tuple[list[Peer], list[str]]:
    """What can be measured here, ours first; and why others are left out."""
    base, target = pair.base, pair.target

    def format_peer(name: str) -> Peer:
        use = partial(tools.format_command, threads=threads)
        return Peer(
            name,
            FORMATS[name].users,
            lambda delta: use("encode", name, base, target, delta),
            lambda delta, out: use("decode", name, base, delta, out),
            slow=FORMATS[name] is ZIPNN,
        )

    peers = [
        Peer(
            "sparsedelta",
            "this project",
            lambda delta: tools.ours("diff", base, target, "-o", delta, threads=threads),
            lambda delta, out: tools.ours("apply", base, delta, "-o", out, threads=threads),
        ),
        *(format_peer(form.name) for form in available()),
    ]
    notes = [] if ZIPNN in available() else ["zipnn is not installed: pip install zipnn"]
    if shutil.which("zstd") is None:
        notes.append("the command zstd is not installed")
    elif base.stat().st_size >= 2 * GIB:
        notes.append("zstd --patch-from takes no file of 2 GiB or more")
    else:
        peers.append(_patch_from(base, target, threads))
    if shutil.which("xdelta3") is None:
        notes.append("the command xdelta3 is not installed")
    else:
        peers.append(_xdelta(base, target))
    return peers, notes


def _patch_from(base: Path, target: Path, threads: int) -> Peer:
    window = f"--long={max(27, base.stat().st_size.bit_length())}"
    start = ["zstd", "-q", "-f", window, f"--patch-from={base}"]
    return Peer(
        "zstd --patch-from",
        "general",
        lambda delta: tools.in_turn(
            [*start, "-1", f"-T{threads}", target, "-o", delta], ["sync", delta]
        ),
        lambda delta, out: tools.in_turn([*start, "-d", delta, "-o", out], ["sync", out]),
        slow=True,
    )


def _xdelta(base: Path, target: Path) -> Peer:
    start: list[str | Path] = ["xdelta3", "-f", "-s", base]
    return Peer(
        "xdelta3",
        "general",
        lambda delta: tools.in_turn([*start, "-e", "-1", target, delta], ["sync", delta]),
        lambda delta, out: tools.in_turn([*start, "-d", delta, out], ["sync", out]),
        slow=True,
    )


def measure(pair: Pair, folder: Path, *, rounds: int, memory: bool) -> dict[str, Any]:
    """Figures of all peers.

    Args:
        pair: Base and target, one file each.
        folder: Where deltas and results go.
        rounds: How often each runs.
        memory: Whether peak memory is measured too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peers, notes = all_peers(pair, threads=CORES)
    tools.read_through(pair.base, pair.target)
    deltas = {peer.name: folder / f"{n}.delta" for n, peer in enumerate(peers)}
    out = folder / "result.safetensors"
    wanted = tools.digest(pair.target)
    rows = []
    contenders = []
    for peer in peers:
        limit = SLOW_ROUNDS if peer.slow else None
        delta = deltas[peer.name]
        contenders += [
            Contender(
                f"encode {peer.name}", peer.encode(delta), partial(tools.remove, delta), limit
            ),
            Contender(
                f"decode {peer.name}", peer.decode(delta, out), partial(tools.remove, out), limit
            ),
        ]
    copy = Contender(
        "cp", tools.in_turn(["cp", pair.base, out], ["sync", out]), partial(tools.remove, out)
    )
    timings = interleave(
        [copy, *contenders], rounds=rounds, settle=settle_disk, environment=tools.environment()
    )
    for peer in peers:
        delta = deltas[peer.name]
        row = _row(peer, delta, timings)
        tell(f"checking {peer.name}")
        # Decoded once more: the contenders after it wrote over its result.
        tools.remove(out)
        row["decode_memory"] = peak_memory(peer.decode(delta, out))
        row["exact"] = tools.digest(out) == wanted
        tools.remove(delta)
        row["encode_memory"] = peak_memory(peer.encode(delta)) if memory else None
        rows.append(row)
    tools.remove(out, *deltas.values())
    return {
        "checkpoint_bytes": pair.nbytes,
        "density": pair.density,
        "threads": CORES,
        "copy": timings["cp"].document(),
        "peers": rows,
        "left_out": notes,
    }


def _row(peer: Peer, delta: Path, timings: dict[str, Timing]) -> dict[str, Any]:
    return {
        "name": peer.name,
        "users": peer.users,
        "bytes": delta.stat().st_size,
        "encode": timings[f"encode {peer.name}"].document(),
        "decode": timings[f"decode {peer.name}"].document(),
    }


def print_peers(figures: dict[str, Any]) -> None:
    """The table."""
    nbytes, density = figures["checkpoint_bytes"], figures["density"]
    entries = nbytes / 2 * density
    rows = [
        [
            f"{row['name']} ({row['users']})",
            report.size(row["bytes"]),
            f"{8 * row['bytes'] / entries:.1f}",
            f"{row['encode']['seconds']:.2f}",
            f"{row['decode']['seconds']:.2f}",
            "-" if row["encode_memory"] is None else report.size(row["encode_memory"]),
            report.size(row["decode_memory"]),
            "yes" if row["exact"] else "NO",
        ]
        for row in figures["peers"]
    ]
    report.print_table(
        f"{report.size(nbytes)} of bf16, {density:.1%} changed, {figures['threads']} threads; "
        f"cp and sync: {figures['copy']['seconds']:.2f} s",
        ["", "delta", "bits/entry", "encode s", "decode s", "memory", "memory", "exact"],
        rows,
    )
    for note in figures["left_out"]:
        print(f"left out: {note}")


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--gib", type=float, default=0.5, help="size of the pair [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds [%(default)s]")
    arguments = parser.parse_args()
    machine.pin(CORES)
    gib, rounds = (1 / 16, 1) if arguments.quick else (arguments.gib, arguments.rounds)
    folder = arguments.work / "bench"
    pair = ensure_pair(folder, nbytes=int(gib * GIB))
    figures = measure(pair, folder / "peers", rounds=rounds, memory=True)
    report.write_results(
        "peers", figures, work=arguments.work, quick=arguments.quick, folders=[folder]
    )
    print_peers(figures)


if __name__ == "__main__":
    main()
