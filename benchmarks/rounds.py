"""Timing that noise cannot bend: contenders take turns, and are compared within each turn.

A machine is never quiet. In each round every contender runs once, so that a busy minute hits all of
them, and a ratio is taken within a round before the median over the rounds. Commands run as a user
runs them, in a process of their own. What must not be timed (putting files back, waiting for the
disk) happens before the clock starts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

POLL_SECONDS: Final = 0.002
"""How often memory is looked at."""

Command = Sequence[str | Path]


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Contender:
    """A command that is measured.

    Attributes:
        name: What tables call it.
        command: Program and arguments.
        prepare: Called before every run, off the clock.
        rounds: At most how often it runs, for the slow ones; None: in every round.
    """

    name: str
    command: Command
    prepare: Callable[[], None] = nothing
    rounds: int | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, round by round.

    Attributes:
        wall: Seconds from start to end.
        cpu: Seconds of all cores, user and system.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds from start to end."""
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        """Median of the seconds of all cores."""
        return statistics.median(self.cpu)

    def document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "seconds": self.median,
            "low": min(self.wall),
            "high": max(self.wall),
            "cpu_seconds": self.cpu_median,
            "wall": list(self.wall),
            "cpu": list(self.cpu),
        }


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another.

    Attributes:
        median: Median of the rounds.
        low: Least of the rounds.
        high: Most of the rounds.
        best: Of the shortest times of each: what it would be on a quiet machine, or nearly so.
        cpu: Of the medians of the seconds of all cores: noise hardly reaches it.
    """

    median: float
    low: float
    high: float
    best: float
    cpu: float

    def document(self) -> dict[str, float]:
        """As a JSON object."""
        return asdict(self)


def ratio(timing: Timing, reference: Timing) -> Ratio:
    """Compare round by round; where one ran in fewer rounds, the common ones count."""
    each = [a / b for a, b in zip(timing.wall, reference.wall, strict=False)]
    return Ratio(
        median=statistics.median(each),
        low=min(each),
        high=max(each),
        best=min(timing.wall) / min(reference.wall),
        # A clock that ticks in hundredths may have seen nothing of a short command.
        cpu=timing.cpu_median / max(reference.cpu_median, 1e-9),
    )


def run(command: Command, *, environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Run a command to its end.

    Returns:
        Seconds from start to end, and seconds of all cores.

    Raises:
        RuntimeError: It failed; the message has the end of what it said.
    """
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], stdout=said, stderr=said, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        # wait4 took the status that Popen would wait for.
        process.returncode = os.waitstatus_to_exitcode(status)
        _require(process.returncode, command, said)
    return seconds, usage.ru_utime + usage.ru_stime


def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    settle: Callable[[], None] = nothing,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Timing]:
    """Measure all contenders, round by round.

    Args:
        contenders: Commands, with names that differ.
        rounds: How often each runs, but for those that say less.
        settle: Called before every run, off the clock, after ``prepare``: waits for the disk.
        environment: Environment of the commands; None for this process's.

    Returns:
        Name → timing.

    Raises:
        RuntimeError: A command failed.
    """
    taken: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contenders}
    if len(taken) != len(contenders):
        raise ValueError("two contenders have the same name")
    for number in range(rounds):
        for contender in contenders:
            if contender.rounds is not None and number >= contender.rounds:
                continue
            tell(f"round {number + 1}/{rounds}: {contender.name}")
            contender.prepare()
            settle()
            taken[contender.name].append(run(contender.command, environment=environment))
    tell("")
    return {
        name: Timing(tuple(w for w, _ in pairs), tuple(c for _, c in pairs))
        for name, pairs in taken.items()
    }


def peak_memory(command: Command, *, environment: Mapping[str, str] | None = None) -> int:
    """Most memory of a command, in bytes: resident, less pages of mapped files.

    A mapped file fills memory only as long as nobody needs it, so ``VmHWM`` would say how much of
    the page cache was free. Anonymous and shared memory are summed over the command and what it
    starts, every few milliseconds; a peak between two looks is missed. Files on a tmpfs count as
    shared memory while they are mapped: measure on a disk.

    Raises:
        RuntimeError: The command failed.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=said, stderr=said, env=environment
        )
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, sum(_own_memory(pid) for pid in _family(process.pid)))
                done.wait(POLL_SECONDS)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            process.wait()
        finally:
            done.set()
            watcher.join()
        _require(process.returncode, command, said)
    return peak


def settle_disk() -> None:
    """Write back all dirty pages, so that no contender pays for those of another."""
    os.sync()


def tell(line: str) -> None:
    """Say on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _own_memory(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has just ended
        return 0
    found = 0
    for line in status.splitlines():
        if line.startswith(("RssAnon:", "RssShmem:")):
            found += int(line.split()[1]) * 1024
    return found


def _family(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                found += _family(int(child))
    except OSError:  # it has just ended
        return found
    return found


def _require(code: int | None, command: Command, said: Any) -> None:  # noqa: ANN401 (a temporary file has no type)
    if code:
        said.seek(0)
        tail = said.read()[-2000:].decode(errors="replace")
        raise RuntimeError(f"exit {code}: {' '.join(map(str, command))}\n{tail}")
