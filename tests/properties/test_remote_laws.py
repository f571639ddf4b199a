"""Laws of remote files: a URL is as good as the file behind it, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import fsspec
from hypothesis import given
from hypothesis import strategies as st
from strategies import profiles, structured_pairs
from test_structure_laws import Form, Pair, forms, store
from thorough import examples

import sparsedelta
from sparsedelta import remote

FOLDER = "/remote-laws"


def upload(name: Path) -> str:
    """Put what a local path names into memory; the URL of the same file, folder or index."""
    fs = fsspec.filesystem("memory")
    folder = name if name.is_dir() else name.parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name.is_dir() or name.name.endswith(".json") or path == name):
            fs.pipe_file(f"{FOLDER}/{folder.name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory:/{FOLDER}/{folder.name}" + ("" if name.is_dir() else f"/{name.name}")


def tree(path: Path) -> dict[str, bytes]:
    """Everything below a path."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@examples(40)
@given(
    pair=structured_pairs(),
    old=forms,
    new=forms,
    shard=st.none() | st.integers(1, 2000),
    run_log2=st.integers(4, 21),
    profile=profiles,
)
def test_remote_is_as_good_as_local(
    pair: Pair, old: Form, new: Form, *, shard: int | None, run_log2: int, profile: str
) -> None:
    """Fingerprint, diff, apply, revert, validate and rows are the same from a URL."""
    fs = fsspec.filesystem("memory")
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(remote, "_RUN_BYTES", 1 << run_log2),
        patch.object(remote, "_HEAD_BYTES", 1 << (run_log2 // 2)),
    ):
        folder = Path(name)
        base = store(folder / "base", pair[0], old)
        target = store(folder / "target", pair[1], new)
        try:
            there = (upload(base), upload(target))
            for path, url in zip((base, target), there, strict=True):
                assert sparsedelta.fingerprint(url) == sparsedelta.fingerprint(path)
            for out, ends in (("near", (base, target)), ("far", there)):
                (folder / out).mkdir()
                sparsedelta.diff(
                    ends[0],
                    ends[1],
                    folder / out / "d",
                    unrelated=True,
                    max_shard_size=shard,
                    profile=profile,
                )
            if shard is None:  # the files of a set have a random number in common
                assert tree(folder / "far") == tree(folder / "near")
            delta = upload(folder / "far" / "d") if shard is None else upload(folder / "far") + "/d"
            assert sparsedelta.validate(delta, base=there[0]).ok
            sparsedelta.apply(base, folder / "near" / "d", folder / "out")
            sparsedelta.apply(there[0], delta, folder / "far-out")
            assert tree(folder / "far-out") == tree(folder / "out")
            known = (base, there[0]) if profile == "compact" else (None, None)
            sparsedelta.revert(target, folder / "near" / "d", folder / "back", base=known[0])
            sparsedelta.revert(there[1], delta, folder / "far-back", base=known[1])
            assert tree(folder / "far-back") == tree(folder / "back")
            for tensor, (spec, _) in list(pair[1].items())[:2]:
                rows = spec.shape[0] if spec.shape else 1
                if rows and spec.words % rows == 0:
                    found = sparsedelta.read_rows(there[0], delta, tensor, rows // 2, rows)
                    expected = sparsedelta.read_rows(
                        base, folder / "near" / "d", tensor, rows // 2, rows
                    )
                    assert found.tobytes() == expected.tobytes()
        finally:
            if fs.exists(FOLDER):
                fs.rm(FOLDER, recursive=True)
