"""Scripts in processes of their own that need not import torch first.

Importing torch takes seconds, and many tests start several processes that do. Here one process for
each worker of pytest imports it once, and both packages (the fork server of ``multiprocessing``),
and every script is a fork of that process, with its own arguments, environment, streams and
working directory.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final

from quick_disk import without_waiting

PRELOADED: Final = [
    "accelerate",
    "pytest",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
]


def _own_modules() -> list[str]:
    """All modules of both packages: a fork that imports them itself takes a second for it."""
    root = str(Path(__file__).parents[2])
    found = [
        module.name
        for package in ("sparsedelta", "gallop")
        for module in pkgutil.walk_packages([f"{root}/{package}"], f"{package}.")
    ]
    return [name for name in found if not name.endswith("__main__")]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *_own_modules()])
    return context


class Forked:
    """A script that runs, as far as :class:`subprocess.Popen` is needed here.

    Args:
        script: The script, or the name of a module, as of ``python -m``.
        arguments: What it is given.
        env: Its environment; None: that of this process.
    """

    def __init__(
        self, script: Path | str, *arguments: object, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("out", "err")]
        given = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
        self._process = _context().Process(
            target=_run,
            args=(script, [*map(str, arguments)], given, str(Path.cwd()), self._streams),
            daemon=True,  # none outlives the tests
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns what it has printed on stdout and stderr."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("script", timeout or 0)
        out, err = (path.read_text("utf-8") if path.exists() else "" for path in self._streams)
        self._folder.cleanup()
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()


def _run(
    script: Path | str, arguments: list[str], env: dict[str, str], cwd: str, streams: list[Path]
) -> None:
    """What a fork does."""
    for number, path in enumerate(streams, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    without_waiting()
    faulthandler.enable()
    if isinstance(script, Path):
        sys.argv = [str(script), *arguments]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    else:
        sys.argv = [script, *arguments]
        sys.modules.pop(script, None)  # it is run, as __main__, and was only loaded here
        runpy.run_module(script, run_name="__main__", alter_sys=True)
