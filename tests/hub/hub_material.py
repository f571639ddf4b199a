"""Checkpoints and deltas for tests of the Hub, and how a client process runs a command of ours."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.numpy import save_file

import sparsedelta
from sparsedelta.cli import main

BASE, REPO = "org/base", "alice/delta"

DELTA_FILES = {".gitattributes", "README.md", "delta.safetensors", "sparsedelta.json"}
"""What a repository holds that one delta was pushed to."""


def command(arguments: list[str], token: str | None = None) -> dict[str, Any]:
    """Run a command of ours: its exit code, and what it wrote.

    A token is in the environment while it runs; without one it is left as it is.
    """
    out, errors, code = io.StringIO(), io.StringIO(), 0
    if token is not None:
        os.environ["HF_TOKEN"] = token
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            if token is not None:
                del os.environ["HF_TOKEN"]
    return {"code": code, "out": out.getvalue(), "err": errors.getvalue()}


def validations(arguments: list[str], token: str) -> list[str | None]:
    """Run a push or pull: the base of each validation in it."""
    found: list[str | None] = []

    def told(delta: Any, *, base: Any = None, **options: Any) -> Any:  # noqa: ANN401
        found.append(base and str(base))
        return sparsedelta.validate(delta, base=base, **options)

    with patch("sparsedelta.hub.checking.validate", told):
        assert command(arguments, token)["code"] == 0
    return found


def function(
    name: str,
    environment_token: str | None = None,
    **arguments: Any,  # noqa: ANN401
) -> dict[str, Any] | None:
    """Call a function of the package for the error that it raises."""
    if environment_token is not None:
        os.environ["HF_TOKEN"] = environment_token
    try:
        getattr(sparsedelta, name)(**arguments)
    except sparsedelta.SparseDeltaError as error:
        return {
            "type": type(error).__name__,
            "reason": getattr(error, "reason", None),
            "cause": error.__cause__ and [kind.__name__ for kind in type(error.__cause__).__mro__],
            "everything": "\n".join(all_that_is_told(error)),
        }
    finally:
        if environment_token is not None:
            del os.environ["HF_TOKEN"]
    return None


def all_that_is_told(error: BaseException) -> Iterator[str]:
    """All texts of an exception, of those behind it, and of what they carry."""
    yield "".join(traceback.format_exception(error))
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield f"{each!r} {each.args!r} {vars(each)!r}"
        waiting += [each.__cause__, each.__context__]


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Material:
    """Checkpoints, and deltas between them.

    Attributes:
        base: A folder with a checkpoint.
        target: A checkpoint made of it.
        further: A checkpoint made of that.
        delta: From base to target.
        other: From base to further.
        link: From target to further.
        parts: From base to target, as the root of a set.
    """

    base: Path
    target: Path
    further: Path
    delta: Path
    other: Path
    link: Path
    parts: Path


def make_material(folder: Path) -> Material:
    """Checkpoints of 400 kB, a few per cent of whose words differ."""
    rng = np.random.default_rng(7)
    names = ["embed", "layers.0.weight", "layers.1.weight", "norm"]
    base = {name: rng.normal(size=(160, 160)).astype(np.float32) for name in names}
    tuned = {name: tensor.copy() for name, tensor in base.items()}
    more = {name: tensor.copy() for name, tensor in base.items()}
    for name in names[:3]:
        entries = rng.integers(0, 160 * 160, 700)
        tuned[name].reshape(-1)[entries] += 0.5
        more[name].reshape(-1)[entries] += 1.5
    (folder / "base").mkdir()
    save_file(base, folder / "base" / "model.safetensors")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n# The base\n")
    target, further = folder / "target.safetensors", folder / "further.safetensors"
    save_file(tuned, target)
    save_file(more, further)
    start = folder / "base" / "model.safetensors"
    (folder / "set").mkdir()
    made = Material(
        folder / "base",
        target,
        further,
        folder / "d.safetensors",
        folder / "other.safetensors",
        folder / "link.safetensors",
        folder / "set" / "parts.safetensors",
    )
    sparsedelta.diff(start, target, made.delta)
    sparsedelta.diff(start, further, made.other)
    sparsedelta.diff(target, further, made.link)
    sparsedelta.diff(start, target, made.parts, shards=3)
    return made
