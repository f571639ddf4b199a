"""Code that runs in processes of its own, which need not import numpy and this package first.

A start of Python with them takes most of a second, and the tests start hundreds of processes. Here
one process for each worker of pytest imports them once, and every run is a fork of it: with its own
arguments, environment, streams and working directory, with the signals of a new process, and with
the exit of a Python that comes to its end. Nothing of torch is in it: see ``forked_scripts``.
"""

from __future__ import annotations

import array
import atexit
import functools
import importlib
import io
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from quick_disk import without_waiting

MODULE: Final = "import runpy; runpy.run_module('sparsedelta', run_name='__main__', alter_sys=True)"
"""What ``python -m sparsedelta`` runs."""

_PRELOADED: Final = ("commands", "operations")
"""Packages of this one of which every module is loaded: commands import theirs when they run."""

_READY: Final = b"ready\n"


class ForkedCode:
    """Code that runs, as far as :class:`subprocess.Popen` is needed here.

    Args:
        code: What ``python -c`` is given.
        arguments: What stands after it.
        env: Its environment.
        cwd: Its working directory; None: that of this process.
    """

    def __init__(
        self, code: str, *arguments: object, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self.returncode: int | None = None
        # Text of arguments may hold lone surrogates: JSON escapes them.
        document = json.dumps([code, [*map(str, arguments)], dict(env), str(cwd or Path.cwd())])
        pipes = [os.pipe(), os.pipe()]
        self._printed = {reading: bytearray() for reading, _ in pipes}
        self._open = list(self._printed)
        self._talk = socket.socket(socket.AF_UNIX)
        self._talk.connect(_server())
        socket.send_fds(self._talk, [b"r"], [writing for _, writing in pipes])
        for _, writing in pipes:
            os.close(writing)
        data = document.encode()
        self._talk.sendall(len(data).to_bytes(8, "little") + data)
        self._answers = self._talk.makefile("rb")
        self.pid = int(self._answers.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self._close()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._talk], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self) -> int:
        """Wait for its end, without reading what it prints; returns its exit code."""
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns what it has printed on stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: It did not end, and was killed.
        """
        last = None if timeout is None else time.monotonic() + timeout
        try:
            while self._read(last):
                pass
            self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._close()
        out, err = (_text(data) for data in self._printed.values())
        return out, err

    def first_line(self, timeout: float) -> str:
        """Wait for a line on stderr; returns it, or all there is if it ends without one."""
        _, err = self._printed.values()
        last = time.monotonic() + timeout
        while b"\n" not in err and self._read(last):
            pass
        return _text(err).split("\n", 1)[0]

    def _read(self, last: float | None) -> bool:
        """Read something that was printed; False if nothing comes any more."""
        if not self._open:
            return False
        left = None if last is None else max(0.0, last - time.monotonic())
        ready = select.select(self._open, [], [], left)[0]
        if not ready:
            raise subprocess.TimeoutExpired("forked code", left or 0)
        for descriptor in ready:
            if data := os.read(descriptor, 1 << 16):
                self._printed[descriptor] += data
            else:
                self._open.remove(descriptor)
                os.close(descriptor)
        return True

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _close(self) -> None:
        self._answers.close()
        self._talk.close()
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def run_code(
    code: str,
    *arguments: object,
    env: Mapping[str, str],
    cwd: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code to its end, like ``subprocess.run`` with ``capture_output``."""
    process = ForkedCode(code, *arguments, env=env, cwd=cwd)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess([code], process.wait(), out, err)


@functools.cache
def _server() -> str:
    """The address of the process that forks, which is started at the first use."""
    address = str(Path(tempfile.mkdtemp()) / "socket")
    process = subprocess.Popen(
        [sys.executable, __file__, address],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == _READY
    atexit.register(process.communicate, timeout=30)
    return address


# --- the process that forks ---


def _received(talk: socket.socket) -> tuple[list[int], list[Any]]:
    """Descriptors and document of a request."""
    _, ancillary, _, _ = talk.recvmsg(1, socket.CMSG_SPACE(8))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    with talk.makefile("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        document: list[Any] = json.loads(file.read(size))
    return list(descriptors), document


def _become(descriptors: list[int], arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Let this process look like one that was started."""
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate([null, *descriptors]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    outer, error = sys.stdout, sys.stderr
    sys.stdin = open(0, encoding=outer.encoding, closefd=False)  # noqa: SIM115
    streams = []
    for number, stream in enumerate((outer, error), start=1):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        streams.append(
            io.TextIOWrapper(
                raw,
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=number == 2 or os.isatty(number),
            )
        )
    sys.stdout, sys.stderr = streams
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]


def _serve(address: str) -> str:
    """Fork for each request; returns in the forks, with what they have to run."""
    import sparsedelta.cli  # noqa: PLC0415  (not in the process that starts this one)

    for package in _PRELOADED:
        path = str(Path(sparsedelta.__file__).parent / package)
        for found in pkgutil.iter_modules([path], f"sparsedelta.{package}."):
            importlib.import_module(found.name)
    without_waiting()
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    os.write(1, _READY)
    waiting = set[int]()
    while True:
        waiting -= {pid for pid in waiting if os.waitpid(pid, os.WNOHANG)[0]}
        if 0 in select.select([0, server.fileno()], [], [])[0]:
            shutil.rmtree(Path(address).parent)
            os._exit(0)  # whoever started this is gone
        talk, _ = server.accept()
        if waiter := os.fork():
            waiting.add(waiter)
            talk.close()
            continue
        # One that waits for the end of the other, and tells of it.
        server.close()
        descriptors, (code, arguments, env, cwd) = _received(talk)
        child = os.fork()
        if not child:
            talk.close()
            _become(descriptors, arguments, env, cwd)
            return str(code)
        for descriptor in descriptors:
            os.close(descriptor)
        talk.sendall(f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        talk.sendall(f"{status}\n".encode())
        os._exit(0)


if __name__ == "__main__":
    # Run here, not in a function: what it raises ends the interpreter as it ends any other.
    exec(compile(_serve(sys.argv[1]), "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
