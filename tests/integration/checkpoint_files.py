"""Checkpoints on disk, written byte by byte without the code under test; runs of commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
from forked_commands import MODULE, run_code
from numpy.typing import NDArray

from sparsedelta.cli import main

TIMEOUT: Final = 120
"""Seconds after which a command that hangs is killed; no test waits for it otherwise."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that the command line answers."""

COMMANDS: Final = ("diff", "apply", "revert", "validate", "info", "fingerprint")


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> NDArray[np.uint16]:
        """A copy of the data as 16-bit words."""
        return np.frombuffer(self.data, np.uint16).copy()

    def with_word(self, index: int, mask: int) -> Stored:
        """The tensor with the bits of ``mask`` flipped in one 16-bit word."""
        words = self.words
        words[index] ^= mask
        return Stored(self.dtype, self.shape, words.tobytes())


Tensors = dict[str, Stored]

FROZEN: Final = "a.frozen.weight"
TUNED: Final = "b.tuned.weight"
HALF: Final = "c.tuned.weight"
BIAS: Final = "d.frozen.bias"


def base_tensors(seed: int = 0) -> Tensors:
    """Two tensors that stay and two that are tuned; bf16 and float32, one of odd length."""
    rng = np.random.default_rng(seed)
    shapes = {
        FROZEN: ("BF16", (40, 30)),
        TUNED: ("F32", (50, 20)),
        HALF: ("BF16", (64, 65)),
        BIAS: ("F16", (7,)),
    }
    size = {"BF16": 2, "F16": 2, "F32": 4}
    return {
        name: Stored(dtype, shape, rng.bytes(int(np.prod(shape)) * size[dtype]))
        for name, (dtype, shape) in shapes.items()
    }


def tuned(tensors: Tensors, names: Sequence[str] = (TUNED, HALF), seed: int = 1) -> Tensors:
    """The same with a step of one in every tenth 16-bit word of some tensors."""
    rng = np.random.default_rng(seed)
    result = dict(tensors)
    for name in names:
        words = tensors[name].words
        words[rng.random(words.size) < 0.1] += 1
        result[name] = Stored(tensors[name].dtype, tensors[name].shape, words.tobytes())
    return result


def file_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with the tensors in the order given."""
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        document[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(t.data for t in tensors.values())


def write_file(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """Write one file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_bytes(tensors, metadata))
    return path


def shard_names(count: int) -> list[str]:
    """The names that the Hub's tools give to shards."""
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def write_shards(folder: Path, *shards: Tensors, weight_map: dict[str, Any] | None = None) -> Path:
    """Write shards and their index into a folder; return the folder."""
    names = shard_names(len(shards))
    for name, tensors in zip(names, shards, strict=True):
        write_file(folder / name, tensors, {"format": "pt"})
    if weight_map is None:
        weight_map = {key: name for name, t in zip(names, shards, strict=True) for key in t}
    size = sum(len(tensor.data) for tensors in shards for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def split(tensors: Tensors, *groups: Sequence[str]) -> list[Tensors]:
    """The tensors in groups of names, each in the order given."""
    return [{name: tensors[name] for name in group} for group in groups]


def load(*paths: Path) -> Tensors:
    """What files hold, as the official library reads them."""
    return {
        name: Stored(item["dtype"], tuple(item["shape"]), bytes(item["data"]))
        for path in paths
        for name, item in safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    }


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder, hidden or not: contents of files, targets of links."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "directory"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "special"
    return found


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; fails if there is anything else."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


def without_progress(text: str) -> str:
    """Messages without lines of progress: these come on a machine that is slow at the moment."""
    return re.sub(r"^\w+: .* of .*/s, \d+ s left\n", "", text, flags=re.MULTILINE)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what changes colours or encodings."""
    drop = ("NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING", "TERM", "COLUMNS")
    kept = {key: value for key, value in os.environ.items() if key not in drop}
    return {**kept, **(extra or {})}


def cli(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Run:
    """Run ``python -m sparsedelta`` in a process of its own.

    With variables of its own it is a new Python, which may read them when it starts; else a fork.
    """
    if env is None:
        done = run_code(MODULE, *arguments, env=environment(), cwd=cwd, timeout=TIMEOUT)
        return Run(done.returncode, done.stdout, without_progress(done.stderr))
    done = subprocess.run(
        [sys.executable, "-m", "sparsedelta", *map(str, arguments)],
        env=environment(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=TIMEOUT,
        check=False,
    )
    return Run(done.returncode, done.stdout, without_progress(done.stderr))


def call(*arguments: str | Path, cwd: Path | None = None) -> Run:
    """The same without a process of its own, for long tables of cases.

    An exception that is not told as an error fails the test by itself.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2))
    code: object = None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(code, int), f"ended with {code!r}"
    for stream in (out, err):
        stream.seek(0)
    return Run(code, out.read(), without_progress(err.read()))


def succeeded(run: Run) -> Run:
    """The run, which ended well."""
    assert run.code == 0, run.err
    assert "Traceback" not in run.err
    return run


def failed(run: Run, code: int) -> str:
    """Message of a run that failed: one error on stderr and at most one hint, nothing on stdout."""
    assert "Traceback" not in run.err, run.err
    assert run.code == code, (run.code, run.err, run.out)
    assert run.out == ""
    lines = run.err.splitlines()
    assert lines[0].startswith("error: "), run.err
    assert [line for line in lines[1:] if line.startswith("error: ")] == []
    assert len([line for line in lines if line.startswith("hint: ")]) <= 1
    return run.err


def hint_of(message: str) -> str:
    """The hint of an error message; fails if there is none, or if it is not its last line."""
    last = message.splitlines()[-1]
    assert last.startswith("hint: "), f"no hint: {message}"
    return last


@dataclass(frozen=True)
class Pair:
    """A base, a target and the delta between them, in a folder with nothing else."""

    folder: Path
    base: Path
    target: Path
    delta: Path

    @property
    def out(self) -> Path:
        """Where nothing is yet."""
        return self.folder / "out.safetensors"
