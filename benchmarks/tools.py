"""Commands that are measured: ours as a user runs them, and what stands beside them."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from blake3 import blake3
from rounds import Command

import sparsedelta

HERE: Final = Path(__file__).parent

_DIGEST: Final = (
    "import sys\nfrom blake3 import blake3\n"
    "for path in sys.argv[2:]:\n"
    "    print(blake3(max_threads=int(sys.argv[1])).update_mmap(path).hexdigest())"
)


def ours(*arguments: str | Path, threads: int | None = None) -> Command:
    """A command of ours: the script beside this Python, which is what a user calls.

    Digests that an earlier run kept are not used, where the command has a say in it.
    """
    name = str(arguments[0])
    extra = [] if threads is None else ["--threads", str(threads)]
    extra += ["--no-cache"] if has_option(name, "--no-cache") else []
    extra += ["--quiet"] if has_option(name, "--quiet") else []
    return [*_program(), *arguments, *extra]


@cache
def _program() -> Command:
    """What starts us, compiled as installing a package compiles it: a checkout may not be."""
    compileall.compile_dir(Path(sparsedelta.__file__).parent, quiet=1)
    script = Path(sys.executable).with_name("sparsedelta")
    return [script] if script.exists() else [sys.executable, "-m", "sparsedelta"]


@cache
def has_option(command: str, option: str) -> bool:
    """Whether a command of ours has an option: some come with a later version."""
    asked = [*_program(), command, "--help"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return option in said.replace(",", " ").replace("/", " ").split()


def digests(*files: Path, threads: int | None = None) -> Command:
    """BLAKE3 of whole files through the package, as ``b3sum`` does it: mapped, on all cores.

    Args:
        files: What to read.
        threads: How many threads; None for all cores.
    """
    count = blake3.AUTO if threads is None else threads
    return [sys.executable, "-c", _DIGEST, str(count), *files]


def in_turn(*commands: Command) -> Command:
    """One command after the other, in one shell."""
    return _shell(" && ", "", commands)


def at_once(*commands: Command) -> Command:
    """All commands at the same time; done when the last is."""
    return _shell(" & ", " & wait", commands)


def _shell(between: str, after: str, commands: Sequence[Command]) -> Command:
    """Commands as arguments of a shell, where they need no quotes."""
    first, calls = 1, []
    for command in commands:
        calls.append(f'"${{@:{first}:{len(command)}}}"')
        first += len(command)
    words = (word for command in commands for word in command)
    return ["bash", "-c", between.join(calls) + after, "bash", *words]


def format_command(action: str, name: str, *files: Path, threads: int) -> Command:
    """Encode or decode with a format of ``formats.py``."""
    script = HERE / "formats.py"
    return [sys.executable, script, action, name, *files, "--threads", str(threads)]


def environment() -> dict[str, str]:
    """The environment of measured commands: no colours, no network."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def digest(path: Path) -> str:
    """BLAKE3 of a file: whether two results are the same."""
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def remove(*paths: Path) -> None:
    """Remove files and folders that may be there, and what a command left beside them."""
    for path in paths:
        beside = [*path.parent.glob(f"{path.name}*"), *path.parent.glob(f".{path.name}*")]
        for found in beside:
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def read_through(*paths: Path) -> None:
    """Bring files into the page cache."""
    for path in paths:
        digest(path)
