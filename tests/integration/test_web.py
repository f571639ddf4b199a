"""Checkpoints and deltas on a web server that loses connections, lies, and changes its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    BIAS,
    FROZEN,
    HALF,
    TUNED,
    Pair,
    Stored,
    base_tensors,
    call,
    failed,
    file_bytes,
    split,
    succeeded,
    tree,
    tuned,
    write_shards,
)
from stores_on_loopback import (
    Fault,
    WebServer,
    cut_short,
    hang_up,
    status,
    too_little,
    web_server,
)

import sparsedelta
from sparsedelta import NoAccessError, RemoteError, Url, UsageError, stores
from sparsedelta.checkpoint import FileCheckpoint

MIB = 1 << 20
HEAD = 1 << 16


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


@pytest.fixture
def web(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """The server, empty and without faults; retries do not wait."""
    server.files.clear()
    server.faults.clear()
    server.forget()
    server.has_ranges = server.has_tags = True
    monkeypatch.setattr(stores, "_FIRST_PAUSE", 0.0)
    return server


@pytest.fixture
def there(web: WebServer, pair: Pair) -> list[str]:
    """URLs of base, target and delta."""
    return [web.put(p.name, p.read_bytes()) for p in (pair.base, pair.target, pair.delta)]


def large(seed: int) -> dict[str, Stored]:
    """Tensors of some MiB: more than a segment, more than a request, and small ones between."""
    rng = np.random.default_rng(seed)
    return {
        "a": Stored("BF16", (5 * MIB,), rng.bytes(10 * MIB)),
        "b": Stored("BF16", (7,), rng.bytes(14)),
        "c": Stored("BF16", (MIB + 3,), rng.bytes(2 * MIB + 6)),
    }


# --- the same as local files ---


def test_there_and_back(there: list[str], pair: Pair, tmp_path: Path) -> None:
    base, target, delta = there
    sparsedelta.diff(base, target, tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == pair.delta.read_bytes()
    sparsedelta.apply(base, delta, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == pair.target.read_bytes()
    sparsedelta.revert(target, delta, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == pair.base.read_bytes()
    report = sparsedelta.validate(delta, base=base)
    assert report.ok
    assert report.base_checked
    sparsedelta.export_raw(delta, tmp_path / "raw", base=base)
    sparsedelta.export_raw(pair.delta, tmp_path / "local", base=pair.base)
    assert (tmp_path / "raw").read_bytes() == (tmp_path / "local").read_bytes()


def test_shards_by_their_index(web: WebServer, pair: Pair, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", *split(base_tensors(), [FROZEN, BIAS], [TUNED, HALF]))
    for path in shards.iterdir():
        web.put(f"model/{path.name}", path.read_bytes())
    index = f"{web.url}/model/model.safetensors.index.json"
    report = sparsedelta.apply(index, pair.delta, tmp_path / "out")
    sparsedelta.apply(shards, pair.delta, tmp_path / "local")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    assert report.left_behind == (f"what lies beside {index}",)
    with pytest.raises(UsageError, match="does not tell what lies beside it"):
        sparsedelta.diff(index, index, tmp_path / "d", with_files=True)
    del web.files["model/model-00002-of-00002.safetensors"]
    with pytest.raises(NoAccessError, match=r"model-00002-of-00002.safetensors: it is not there"):
        sparsedelta.fingerprint(index)


def test_a_folder_needs_a_name(web: WebServer) -> None:
    with pytest.raises(sparsedelta.CheckpointError, match="does not tell its files") as error:
        sparsedelta.fingerprint(f"{web.url}/model/?sig=1")
    assert error.value.hint == (
        f"name the file, such as {web.url}/model/model.safetensors?***, or the index of the shards"
    )


def test_a_set(web: WebServer, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    root = tmp_path / "set" / "d.safetensors"
    sparsedelta.diff(pair.base, pair.target, root, max_shard_size=1)
    for path in root.parent.iterdir():
        web.put(f"set/{path.name}", path.read_bytes())
    url = f"{web.url}/set/d.safetensors"
    sparsedelta.apply(pair.base, url, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == pair.target.read_bytes()
    part = next(name for name in web.files if name != "set/d.safetensors")
    whole = web.files.pop(part)
    with pytest.raises(sparsedelta.FormatError, match="SD601"):
        sparsedelta.info(url)
    web.put(part, whole + b"x")
    with pytest.raises(sparsedelta.FormatError, match="SD601"):
        sparsedelta.info(url)


def test_by_the_command_line(there: list[str], web: WebServer, pair: Pair, tmp_path: Path) -> None:
    base, target, delta = there
    run = succeeded(call("info", delta, "--json"))
    assert run.document["path"] == delta
    succeeded(call("apply", base, delta, "-o", tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == pair.target.read_bytes()
    succeeded(call("validate", delta, "--base", base))
    succeeded(call("diff", base, target, "-o", tmp_path / "d"))
    succeeded(call("fingerprint", base))
    assert "it is not there" in failed(call("fingerprint", f"{web.url}/none"), 4)
    assert "is a URL: outputs are local files" in failed(
        call("apply", base, delta, "-o", "s3://bucket/out"), 1
    )
    assert not (tmp_path / "s3:").exists()


# --- how much travels ---


def test_info_asks_for_facts_and_one_range(there: list[str], web: WebServer) -> None:
    sparsedelta.info(there[2])
    assert [method for method, _ in web.asked] == ["HEAD", "GET"]
    assert web.sent <= HEAD


def test_a_diff_reads_each_byte_once(web: WebServer, tmp_path: Path) -> None:
    old, new = file_bytes(large(0)), file_bytes(large(0) | {"b": large(1)["b"]})
    base, target = web.put("base", old), web.put("target", new)
    sparsedelta.diff(base, target, tmp_path / "d", threads=4)
    assert web.sent == len(old) + len(new)
    ranges = [asked for method, asked in web.asked if method == "GET"]
    assert len(ranges) < 30  # of some MiB each


@pytest.mark.parametrize("threads", [1, 4])
def test_apply_reads_each_byte_once(web: WebServer, tmp_path: Path, threads: int) -> None:
    old, new = file_bytes(large(0)), file_bytes(tuned(large(0), ["a"]))
    base = web.put("base", old)
    target = tmp_path / "target"
    target.write_bytes(new)
    sparsedelta.diff(base, target, tmp_path / "d")
    delta = web.put("d", (tmp_path / "d").read_bytes())
    web.forget()
    sparsedelta.apply(base, delta, tmp_path / "out", threads=threads)
    assert (tmp_path / "out").read_bytes() == new
    size = len(web.files["d"])
    assert len(old) <= web.sent <= len(old) + size + size // 8
    assert len(web.asked) < 40


def test_rows_need_their_segment_and_their_blocks(web: WebServer, tmp_path: Path) -> None:
    old, new = file_bytes(large(0)), file_bytes(tuned(large(0), ["a", "c"]))
    base, target = web.put("base", old), tmp_path / "target"
    target.write_bytes(new)
    sparsedelta.diff(base, target, tmp_path / "d")
    delta = web.put("d", (tmp_path / "d").read_bytes())
    with FileCheckpoint(target) as checkpoint:
        expected = checkpoint.read("c", 100, 200).tobytes()
    web.forget()
    found = sparsedelta.read_rows(base, delta, "c", 100, 200)
    assert found.tobytes() == expected
    whole = 2 * MIB + 6
    assert web.sent < whole + 2 * HEAD + len(web.files["d"]) // 2
    assert web.sent < len(old) // 3


# --- faults ---


PASSING: list[list[Fault]] = [
    [status(500)],
    [status(503), status(429)],
    [hang_up, hang_up],
    [cut_short],
    [too_little],
    [cut_short, hang_up, status(502), too_little],
]


@pytest.mark.parametrize("faults", PASSING)
def test_what_passes_is_not_noticed(web: WebServer, faults: list[Fault]) -> None:
    content = file_bytes(large(0))
    url = web.put("base", content)
    expected = sparsedelta.fingerprint(url)
    web.faults[:] = [*faults]
    assert sparsedelta.fingerprint(url) == expected
    assert not web.faults


@pytest.mark.parametrize("fault", [status(500), hang_up, cut_short, too_little])
def test_what_does_not_pass_is_an_error(
    web: WebServer, pair: Pair, tmp_path: Path, fault: Fault
) -> None:
    url = web.put("base", pair.base.read_bytes())
    web.faults[:] = [fault] * 100
    with pytest.raises(RemoteError, match="after 5 attempts") as error:
        sparsedelta.apply(url, pair.delta, tmp_path / "out")
    assert not isinstance(error.value, NoAccessError)
    assert 90 <= len(web.faults) <= 95  # a lost connection is tried again by the client, too
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_middle_leaves_nothing(web: WebServer, pair: Pair, tmp_path: Path) -> None:
    url = web.put("base", file_bytes(large(0)))
    with FileCheckpoint(url) as checkpoint:
        web.faults[:] = [hang_up] * 1000
        with pytest.raises(RemoteError, match="after 5 attempts"):
            sparsedelta.diff(checkpoint, pair.base, tmp_path / "d", unrelated=True)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_no_access(web: WebServer, pair: Pair, code: int) -> None:
    url = web.put("base", pair.base.read_bytes())
    web.faults[:] = [status(code)] * 100
    with pytest.raises(NoAccessError):
        sparsedelta.fingerprint(url)
    assert len(web.faults) == 99


def test_a_server_without_ranges(web: WebServer, tmp_path: Path, pair: Pair) -> None:
    url = web.put("base", file_bytes(large(0)))
    web.has_ranges = False
    with pytest.raises(RemoteError, match="does not give parts of files"):
        sparsedelta.fingerprint(url)
    small = web.put("small", pair.base.read_bytes())  # comes whole at opening
    assert sparsedelta.fingerprint(small) == sparsedelta.fingerprint(pair.base)


@pytest.mark.parametrize("has_tags", [True, False])
def test_another_version_is_never_mixed_in(
    web: WebServer, tmp_path: Path, *, has_tags: bool
) -> None:
    web.has_tags = has_tags
    url = web.put("base", file_bytes(large(0)))
    other = file_bytes(large(1)) if has_tags else file_bytes(large(1) | {"b": large(2)["a"]})
    with FileCheckpoint(url) as checkpoint:
        web.put("base", other)
        with pytest.raises(RemoteError, match=r"base changed while it was being read"):
            sparsedelta.fingerprint(checkpoint)
        with pytest.raises(RemoteError, match=r"base changed while it was being read"):
            sparsedelta.diff(checkpoint, checkpoint, tmp_path / "d")
    assert not (tmp_path / "d").exists()


# --- secrets ---


def test_no_secret_is_printed_or_stored(web: WebServer, pair: Pair, tmp_path: Path) -> None:
    for path in (pair.base, pair.target, pair.delta):
        web.put(path.name, path.read_bytes())
    secret = web.url.replace("//", "//user:hunter2@")
    base, target, delta = (
        f"{secret}/{path.name}?sig=hunter3" for path in (pair.base, pair.target, pair.delta)
    )
    shown = web.url.replace("//", "//***@")
    runs = [
        succeeded(call("diff", base, target, "-o", tmp_path / "d", "--layout", "always")),
        succeeded(call("info", delta)),
        succeeded(call("validate", delta, "--base", base)),
        succeeded(call("apply", target, delta, "-o", tmp_path / "copy")),
        succeeded(call("fingerprint", base, "--json")),
        succeeded(call("info", base)),
    ]
    assert f"{shown}/{pair.delta.name}?***" in runs[1].out
    for arguments in (
        ("fingerprint", f"{secret}/none?sig=hunter3"),
        ("fingerprint", delta),
        ("apply", delta, base, "-o", tmp_path / "out"),
        ("apply", base, delta, "-o", f"{secret}/out"),
        ("revert", base, pair.base, "-o", tmp_path / "out"),
    ):
        run = call(*arguments)
        assert run.code
        runs.append(run)
    web.faults[:] = [status(403)]
    runs.append(call("fingerprint", base))
    web.faults[:] = [status(400)] * 9
    runs.append(call("fingerprint", base))
    web.faults.clear()
    for run in runs:
        assert "hunter" not in run.out + run.err
    assert b"hunter" not in (tmp_path / "d").read_bytes()
    with sparsedelta.DeltaReader(delta) as reader:
        assert "hunter" not in repr(reader.path) + json.dumps(str(reader.path))


def test_options_of_the_store(web: WebServer, pair: Pair) -> None:
    url = web.put("base", pair.base.read_bytes())
    found = sparsedelta.fingerprint(Url(url, {"headers": {"X-Asked": "1"}}))
    assert found == sparsedelta.fingerprint(pair.base)
