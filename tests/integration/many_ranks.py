"""Several processes that run one thing together, as torchrun starts them, but without it."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

from checkpoint_files import Run, environment, without_progress
from forked_scripts import Forked

TIMEOUT: Final = 100
"""Seconds; less than those after which a rank that is silent is taken for lost."""

WORK: Final = Path(__file__).parent / "rank_work.py"


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_ranks(size: int, task: str, *arguments: str | Path) -> list[Run]:
    """Run a task of ``rank_work.py`` in ``size`` processes until all have ended."""
    return run_script(size, WORK, task, *arguments)


def run_script(
    size: int, script: Path, *arguments: str | Path, patience: float = TIMEOUT
) -> list[Run]:
    """Run a script in ``size`` processes until all have ended, or ``patience`` seconds are over."""
    port = free_port()
    processes = []
    for rank in range(size):
        env = {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        given = environment({key: str(value) for key, value in env.items()})
        processes.append(Forked(script, *arguments, env=given))
    runs, hung = [], False
    for process in processes:
        try:
            out, err = process.communicate(timeout=1 if hung else patience)
        except subprocess.TimeoutExpired:
            hung = True
            process.send_signal(signal.SIGABRT)  # it says on stderr where it was
            out, err = process.communicate()
        assert process.returncode is not None
        runs.append(Run(process.returncode, out, without_progress(err)))
    return runs


def all_well(runs: list[Run]) -> None:
    """All ranks ended well."""
    told = "\n".join(f"rank {n}: {run.code}\n{run.out}{run.err}" for n, run in enumerate(runs))
    assert all(run.code == 0 for run in runs), told
