"""Time and memory of our commands against copying and digesting, in one run, beside the targets.

The reference is what anyone would do without us: copy the new checkpoint and digest the copy. Our
commands write their results through to the disk (``fsync``), ``cp`` does not: the reference is
measured both ways, and the target is held against each. ``b3`` is a BLAKE3 pass over a whole file
by the ``blake3`` package, mapped, on all cores; ``b3 -1`` the same on one. What two cores are worth
here is the ratio of two such passes one after the other and at once. All runs are on two cores, the
page cache is warm, and dirty pages are written back before each clock starts.

    python benchmarks/speed.py                      # on the disk and on /dev/shm
    python benchmarks/speed.py --folder /dev/shm/x  # only there
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import machine
import report
import tools
from checkpoints import GIB, Pair, ensure_pair
from rounds import Command, Contender, interleave, peak_memory, ratio, settle_disk, tell

CORES: Final = 2
MIB: Final = 1 << 20
MEMORY_TARGET: Final = 256 * MIB
SHARED: Final = Path("/dev/shm")  # noqa: S108 (a file system in memory, wanted here)
MEMORY_GIB: Final = (0.5, 2, 8)


@dataclass(frozen=True)
class Target:
    """What is asked of a ratio.

    Attributes:
        what: The contender.
        reference: What it is divided by.
        most: The ratio may be at most this; or at least, where ``least`` is set.
        least: See there.
    """

    what: str
    reference: str
    most: float | None = None
    least: float | None = None

    def met(self, value: float) -> bool | None:
        """Whether a ratio is as asked; None where nothing is asked."""
        if self.most is not None:
            return value <= self.most
        return value >= self.least if self.least is not None else None


IN_PLACE: Final = ("apply --in-place --verify touched", "apply --in-place --verify full")
TOUCHED: Final = "apply --verify touched"
COPIES: Final = ("cp, b3", "cp, sync, b3", "cp, b3 -1", "cp, sync, b3 -1")

TARGETS: Final = (
    *(Target("apply", copy, most=1.0) for copy in COPIES),
    *(Target(TOUCHED, copy) for copy in COPIES[:2]),
    *(Target("revert", copy) for copy in COPIES[:2]),
    *(Target(IN_PLACE[0], copy, most=0.5) for copy in COPIES),
    *(Target(IN_PLACE[1], copy) for copy in COPIES[:2]),
    Target("diff", "b3 twice", most=2.0),
    Target("diff", "b3 -1 twice", most=2.0),
    Target("fingerprint", "b3 once"),
    Target("b3 -1 twice", "b3 -1 twice, at once"),
    *(Target(f"{name}, 1 thread", name, least=1.6) for name in ("apply", "diff", "fingerprint")),
)


@dataclass(frozen=True)
class Place:
    """Where a pair lies, and where results go."""

    pair: Pair
    folder: Path

    @property
    def delta(self) -> Path:
        """A delta from base to target."""
        return self.folder / "delta"

    @property
    def out(self) -> Path:
        """What a contender writes."""
        return self.folder / "out.safetensors"

    @property
    def copy(self) -> Path:
        """A copy of the base, to be changed in place."""
        return self.folder / "copy.safetensors"


def contenders(place: Place) -> list[Contender]:
    """All that is timed, of what our version can do."""
    base, target, out, delta = place.pair.base, place.pair.target, place.out, place.delta
    clear = partial(tools.remove, out)
    both = {"": None, " -1": 1}
    found = []
    for name, threads in both.items():
        pass_over = partial(tools.digests, threads=threads)
        copy: Command = ["cp", base, out]
        found += [
            Contender(f"cp, b3{name}", tools.in_turn(copy, pass_over(out)), clear),
            Contender(
                f"cp, sync, b3{name}", tools.in_turn(copy, ["sync", out], pass_over(out)), clear
            ),
            Contender(f"b3{name} twice", pass_over(base, target)),
        ]
    found.append(Contender("b3 once", tools.digests(base)))
    halves = [tools.digests(file, threads=1) for file in (base, target)]
    found.append(Contender("b3 -1 twice, at once", tools.at_once(*halves)))
    for name, threads in (("", CORES), (", 1 thread", 1)):
        use = partial(tools.ours, threads=threads)
        found += [
            Contender(f"apply{name}", use("apply", base, delta, "-o", out), clear),
            Contender(f"diff{name}", use("diff", base, target, "-o", out), clear),
            Contender(f"fingerprint{name}", use("fingerprint", base)),
        ]
    use = partial(tools.ours, threads=CORES)
    found.append(Contender("revert", use("revert", target, delta, "-o", out), clear))
    if tools.has_option("apply", "--verify"):
        touched = use("apply", base, delta, "-o", out, *TOUCHED.split()[1:])
        found.append(Contender(TOUCHED, touched, clear))
    if tools.has_option("apply", "--in-place"):
        fresh = partial(_fresh_copy, place)
        found += [
            Contender(name, use("apply", place.copy, delta, *name.split()[1:]), fresh)
            for name in IN_PLACE
        ]
    return found


def _fresh_copy(place: Place) -> None:
    tools.remove(place.copy)
    shutil.copyfile(place.pair.base, place.copy)


def measure_times(place: Place, *, rounds: int) -> dict[str, Any]:
    """Seconds of every contender, and the ratios that have targets."""
    listed = contenders(place)
    tools.read_through(place.pair.base, place.pair.target)
    timings = interleave(listed, rounds=rounds, settle=settle_disk, environment=tools.environment())
    rows = []
    for target in TARGETS:
        if target.what not in timings:
            continue
        found = ratio(timings[target.what], timings[target.reference])
        rows.append(
            {
                "what": target.what,
                "reference": target.reference,
                **found.document(),
                "most": target.most,
                "least": target.least,
                "met": target.met(found.median),
            }
        )
    return {
        "file_system": machine.file_system(place.folder),
        "checkpoint_bytes": place.pair.nbytes,
        "density": place.pair.density,
        "rounds": rounds,
        "times": {name: timing.document() for name, timing in timings.items()},
        "ratios": rows,
    }


def ready(folder: Path, nbytes: int) -> Place:
    """A pair, its delta, and proof that our commands find the right results.

    Raises:
        RuntimeError: They do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pair = ensure_pair(folder, nbytes=nbytes)
    place = Place(pair, folder / "speed")
    place.folder.mkdir(exist_ok=True)
    tools.remove(place.delta, place.out, place.copy)
    _do(tools.ours("diff", pair.base, pair.target, "-o", place.delta, threads=CORES))
    checks: list[tuple[Command, Path, Path, Callable[[], None]]] = [
        (
            tools.ours("apply", pair.base, place.delta, "-o", place.out, threads=CORES),
            *(place.out, pair.target),
            partial(tools.remove, place.out),
        ),
        (
            tools.ours("revert", pair.target, place.delta, "-o", place.out, threads=CORES),
            *(place.out, pair.base),
            partial(tools.remove, place.out),
        ),
    ]
    if tools.has_option("apply", "--in-place"):
        command = tools.ours("apply", place.copy, place.delta, "--in-place", threads=CORES)
        checks.append((command, place.copy, pair.target, partial(_fresh_copy, place)))
    for command, made, wanted, prepare in checks:
        prepare()
        _do(command)
        if tools.digest(made) != tools.digest(wanted):
            raise RuntimeError(f"{command[1]} gives other bytes than it should")
    tools.remove(place.out, place.copy)
    return place


def _do(command: Command) -> None:
    interleave([Contender("", command)], rounds=1, environment=tools.environment())


def measure_memory(folder: Path, sizes: tuple[float, ...], *, keep: bool) -> list[dict[str, Any]]:
    """Peak memory of our commands at several sizes.

    Args:
        folder: On a disk: files on a tmpfs count as memory of who maps them.
        sizes: Of checkpoints, in GiB.
        keep: Whether pairs stay for another run.
    """
    rows = []
    for gib in sizes:
        place = ready(folder, int(gib * GIB))
        pair, out = place.pair, place.out
        use = partial(tools.ours, threads=CORES)
        commands = {
            "apply": use("apply", pair.base, place.delta, "-o", out),
            "revert": use("revert", pair.target, place.delta, "-o", out),
            "diff": use("diff", pair.base, pair.target, "-o", out),
            "fingerprint": use("fingerprint", pair.base),
        }
        if tools.has_option("apply", "--in-place"):
            commands["apply --in-place"] = use("apply", place.copy, place.delta, "--in-place")
        peaks = {}
        for name, command in commands.items():
            tell(f"memory at {gib:g} GiB: {name}")
            tools.remove(out)
            if "--in-place" in command:
                _fresh_copy(place)
            peaks[name] = peak_memory(command, environment=tools.environment())
        tools.remove(out, place.copy, place.delta)
        rows.append({"checkpoint_bytes": pair.nbytes, "peak_bytes": peaks})
        if not keep:
            shutil.rmtree(pair.base.parent.parent)
    tell("")
    return rows


def measure_start(folder: Path, *, rounds: int) -> dict[str, Any]:
    """Start-up: ``info`` of a small delta, against what its libraries need."""
    pair = ensure_pair(folder, nbytes=GIB // 1024)
    delta = folder / "small.delta"
    tools.remove(delta)
    _do(tools.ours("diff", pair.base, pair.target, "-o", delta))
    libraries = "python -c 'import numpy, click'"
    timings = interleave(
        [
            Contender(libraries, [sys.executable, "-c", "import numpy, click"]),
            Contender("info", tools.ours("info", delta)),
        ],
        rounds=rounds,
        environment=tools.environment(),
    )
    target = Target("info", libraries, most=1.5)
    found = ratio(timings["info"], timings[libraries])
    tools.remove(delta)
    return {
        "times": {name: timing.document() for name, timing in timings.items()},
        "what": "info",
        "reference": libraries,
        **found.document(),
        "most": target.most,
        "met": target.met(found.median),
    }


def print_times(figures: dict[str, Any]) -> None:
    """Two tables of one folder."""
    title = f"{report.size(figures['checkpoint_bytes'])} on {figures['file_system']}"
    rows = [
        [name, *(f"{t[key]:.2f}" for key in ("seconds", "low", "high", "cpu_seconds"))]
        for name, t in figures["times"].items()
    ]
    report.print_table(title, ["", "seconds", "low", "high", "cpu s"], rows)
    print_ratios(title, figures["ratios"])


def print_ratios(title: str, rows: list[dict[str, Any]]) -> None:
    """Ratios beside what is asked."""
    words = {True: "met", False: "NOT MET", None: ""}
    shown = [
        [
            f"{row['what']} / {row['reference']}",
            *(f"{row[key]:.2f}" for key in ("median", "low", "high", "best", "cpu")),
            (f"≤ {row['most']}" if row.get("most") else "")
            + (f"≥ {row['least']}" if row.get("least") else ""),
            words[row["met"]],
        ]
        for row in rows
    ]
    report.print_table(
        title, ["ratio", "median", "low", "high", "best", "cpu", "target", ""], shown
    )


def print_memory(rows: list[dict[str, Any]]) -> None:
    """Peak memory beside what is asked."""
    columns = list(rows[0]["peak_bytes"])
    shown = [
        [report.size(row["checkpoint_bytes"])]
        + [f"{report.size(row['peak_bytes'][c])}" for c in columns]
        + ["met" if max(row["peak_bytes"].values()) <= MEMORY_TARGET else "NOT MET"]
        for row in rows
    ]
    title = f"peak memory, mapped files left out; target at most {report.size(MEMORY_TARGET)}"
    report.print_table(title, ["checkpoint", *columns, ""], shown)


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--folder", type=Path, action="append", help="time here; repeatable [WORK/bench, /dev/shm]"
    )
    parser.add_argument("--gib", type=float, default=2.0, help="size of the pair [%(default)s]")
    parser.add_argument("--rounds", type=int, default=7, help="rounds [%(default)s]")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    arguments = parser.parse_args()
    machine.pin(CORES)
    quick = arguments.quick
    gib, rounds = (1 / 16, 2) if quick else (arguments.gib, arguments.rounds)
    disk = arguments.work / "bench"
    folders = arguments.folder or [disk, *([SHARED / "sparsedelta-bench"] * SHARED.is_dir())]
    figures: dict[str, Any] = {"threads": CORES, "folders": []}
    for folder in folders:
        place = ready(folder, int(gib * GIB))
        figures["folders"].append(measure_times(place, rounds=rounds))
        print_times(figures["folders"][-1])
        tools.remove(place.delta, place.out, place.copy)
        if SHARED in folder.resolve().parents:  # it is memory: nothing of ours stays
            shutil.rmtree(place.pair.base.parent.parent)
            place.folder.rmdir()
            if not any(folder.iterdir()):
                folder.rmdir()
    figures["start"] = measure_start(disk, rounds=5 if quick else 40)
    print_ratios("start-up", [figures["start"]])
    if not arguments.no_memory:
        figures["memory"] = measure_memory(disk, (1 / 16,) if quick else MEMORY_GIB, keep=quick)
        print_memory(figures["memory"])
    if not tools.has_option("apply", "--in-place"):
        print("left out: apply --in-place, which this version does not have")
    path = report.write_results("speed", figures, work=arguments.work, quick=quick, folders=folders)
    print(path)


if __name__ == "__main__":
    main()
