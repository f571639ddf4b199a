"""Checkpoints and deltas in an object store, as s3fs reads it, with real weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import pytest
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Pair,
    base_tensors,
    file_bytes,
    split,
    tree,
    tuned,
    write_shards,
)
from real_packages import minilm
from safetensors.numpy import load_file, save
from stores_on_loopback import object_store

import sparsedelta
from sparsedelta import NoAccessError, RemoteError, Url
from sparsedelta.checkpoint import FileCheckpoint

BUCKET = "models"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A client of a new store with one bucket; the environment leads s3:// there."""
    with pytest.MonkeyPatch.context() as patch, object_store() as endpoint:
        for name in PROXIES:
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def put(store: Any, key: str, content: bytes) -> str:  # noqa: ANN401 (boto3 has no types)
    """Store an object; its URL."""
    store.put_object(Bucket=BUCKET, Key=key, Body=content)
    return f"s3://{BUCKET}/{key}"


def put_tree(store: Any, prefix: str, folder: Path) -> str:  # noqa: ANN401
    """Store a folder; its URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            put(store, f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


@pytest.mark.parametrize("profile", ["portable", "compact"])
def test_there_and_back(store: Any, pair: Pair, tmp_path: Path, profile: str) -> None:  # noqa: ANN401
    sparsedelta.diff(pair.base, pair.target, pair.delta, force=True, profile=profile)
    base, target, delta = (
        put(store, f"pair/{path.name}", path.read_bytes())
        for path in (pair.base, pair.target, pair.delta)
    )
    sparsedelta.diff(base, target, tmp_path / "d", profile=profile)
    assert (tmp_path / "d").read_bytes() == pair.delta.read_bytes()
    sparsedelta.apply(base, delta, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == pair.target.read_bytes()
    assert sparsedelta.validate(delta, base=base).base_checked
    assert sparsedelta.info(delta).path == delta


def test_info_asks_for_facts_and_one_range(
    store: Any,  # noqa: ANN401
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = put(store, "info.delta.safetensors", pair.delta.read_bytes())
    kind: Any = fsspec.get_filesystem_class("s3")
    asked: list[str] = []
    plain = kind._call_s3  # noqa: SLF001 (the one place that all its requests pass)

    async def count(self: object, method: str, *given: object, **named: object) -> object:
        asked.append(method)
        return await plain(self, method, *given, **named)

    monkeypatch.setattr(kind, "_call_s3", count)
    sparsedelta.info(url)
    assert asked == ["head_object", "get_object"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_with_shards_and_what_lies_beside(
    store: Any,  # noqa: ANN401
    pair: Pair,
    tmp_path: Path,
    slash: str,
) -> None:
    folder = write_shards(tmp_path / "s", *split(base_tensors(), [FROZEN, BIAS], [TUNED, HALF]))
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "vocab.txt").write_text("a")
    (folder / "pytorch_model.bin").write_text("old")
    (folder / ".hidden").write_text("x")
    url = put_tree(store, "shards", folder)
    put(store, "shards/../../escaped.txt", b"x")
    put(store, "shards//odd.txt", b"x")
    report = sparsedelta.apply(url + slash, pair.delta, tmp_path / "out")
    local = sparsedelta.apply(folder, pair.delta, tmp_path / "local")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    assert (tmp_path / "out" / "sub" / "vocab.txt").exists()
    assert set(local.left_behind) == {"pytorch_model.bin"}
    assert set(report.left_behind) >= {"pytorch_model.bin", "../../escaped.txt"}
    assert not list(tmp_path.parent.glob("escaped.txt"))
    index = f"{url}/model.safetensors.index.json"
    assert sparsedelta.fingerprint(index) == sparsedelta.fingerprint(folder)


def test_files_are_carried(store: Any, tmp_path: Path) -> None:  # noqa: ANN401
    ends = []
    for name, tensors in (("old", base_tensors()), ("new", tuned(base_tensors()))):
        put(store, f"carry/{name}/model.safetensors", file_bytes(tensors))
        put(store, f"carry/{name}/config.json", name.encode())
        ends.append(f"s3://{BUCKET}/carry/{name}")
    sparsedelta.diff(ends[0], ends[1], tmp_path / "d", with_files=True)
    report = sparsedelta.apply(ends[0], tmp_path / "d", tmp_path / "out")
    assert report.files == ("config.json",)
    assert (tmp_path / "out" / "config.json").read_bytes() == b"new"


def test_a_shard_that_is_missing(store: Any, tmp_path: Path) -> None:  # noqa: ANN401
    folder = write_shards(tmp_path / "s", *split(base_tensors(), [FROZEN, BIAS], [TUNED, HALF]))
    next(folder.glob("*2-of*")).unlink()
    url = put_tree(store, "missing", folder)
    with pytest.raises(sparsedelta.CheckpointError, match="names the shard model-00002"):
        sparsedelta.fingerprint(url)


@pytest.mark.parametrize(
    "url", [f"s3://{BUCKET}/none", f"s3://{BUCKET}/none.safetensors", "s3://nobody/x.safetensors"]
)
def test_nothing_there(store: Any, url: str) -> None:  # noqa: ANN401
    with pytest.raises(NoAccessError, match="it is not there"):
        sparsedelta.fingerprint(url)


def test_another_version_is_never_mixed_in(store: Any, tmp_path: Path) -> None:  # noqa: ANN401
    tensors = base_tensors()
    rng = np.random.default_rng(0)
    big = {"w": type(tensors[TUNED])("F32", (1 << 20,), rng.bytes(1 << 22))}
    url = put(store, "changes", file_bytes(big))
    with FileCheckpoint(url) as checkpoint:
        checkpoint.read("w", 1 << 19, 1 << 20)
        big["w"] = big["w"].with_word(0, 1)
        put(store, "changes", file_bytes(big))
        with pytest.raises(RemoteError, match="changes changed while it was being read"):
            checkpoint.read("w", 1 << 19, 1 << 20)
        with pytest.raises(RemoteError, match="changes changed while it was being read"):
            sparsedelta.fingerprint(checkpoint)
    assert sparsedelta.fingerprint(url).nbytes == 1 << 22  # opened anew, it is the new one


def test_options_and_secrets(store: Any, pair: Pair) -> None:  # noqa: ANN401
    put(store, "options/base.safetensors", pair.base.read_bytes())
    options = {"key": "k", "secret": "hunter3", "client_kwargs": {"region_name": "us-east-1"}}
    url = Url(f"s3://{BUCKET}/options/base.safetensors", options)
    assert sparsedelta.fingerprint(url) == sparsedelta.fingerprint(pair.base)
    gone = Url(f"s3://key:hunter3@{BUCKET}/none", options)
    with pytest.raises(RemoteError) as error:
        sparsedelta.fingerprint(gone)
    assert "hunter" not in str(error.value) + repr(gone)


def test_without_the_package_the_command_that_helps_is_told(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from sparsedelta.cli import main; main(['info', 's3://bucket/delta.safetensors'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 1
    assert "s3:// needs a package that is not installed" in done.stderr
    assert "hint: pip install s3fs" in done.stderr


@pytest.mark.real
def test_real_weights(store: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """A layer of all-MiniLM-L6-v2 from the store, with its tokenizer: to a tuned model."""
    model = minilm()
    weights = load_file(model / "model.safetensors")
    content = save({name: weights[name] for name in weights if ".layer.0." in name})
    tokenizer = (model / "tokenizer.json").read_bytes()
    put(store, "minilm/model.safetensors", content)
    put(store, "minilm/tokenizer.json", tokenizer)
    url = f"s3://{BUCKET}/minilm"
    words = np.frombuffer(content, np.uint8).copy()
    start = int.from_bytes(content[:8], "little") + 8
    words[np.random.default_rng(0).integers(start, words.size, 20_000)] ^= 1
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "model.safetensors").write_bytes(words.tobytes())
    sparsedelta.diff(url, tmp_path / "tuned", tmp_path / "d")
    delta = put(store, "minilm.delta.safetensors", (tmp_path / "d").read_bytes())
    sparsedelta.apply(url, delta, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == words.tobytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == tokenizer
