"""Locations: what is a path, what is a URL, and that no secret of a URL is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedelta.errors import OutputError, UsageError
from sparsedelta.locations import Url, as_location, output_path, redacted


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("a", "a"),
        ("./a/b", "a/b"),
        ("a/b/c", "a/b/c"),
        ("a/b.safetensors", "a/b.safetensors"),
        ("a/b.SPARSEDELTA", "a/b.SPARSEDELTA"),
        ("-a/b", "-a/b"),
        ("a/b@", "a/b@"),
        ("a/b@x:y", "a/b@x:y"),
        ("s3", "s3"),
        ("C:/x", "C:/x"),
        ("./s3://x", "./s3://x"),
        ("file:///data/x y", "/data/x y"),
        ("FILE:///data/x", "/data/x"),
        ("file://below/here", "below/here"),
        ("local:///data/x", "/data/x"),
    ],
)
def test_paths(given: str, path: str) -> None:
    assert as_location(given) == Path(path)
    assert output_path(given) == Path(path)


@pytest.mark.parametrize("given", ["s3://b/k", "HTTPS://host/x", "memory://x", "a+b.c-d://x"])
def test_urls(given: str) -> None:
    assert as_location(given) == Url(given)
    assert str(as_location(given)) == given


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("org/model", "hf://org/model"),
        ("org/model.v1_2-x", "hf://org/model.v1_2-x"),
        ("org/model@main", "hf://org/model@main"),
        ("org/model@feat/x", "hf://org/model@feat%2Fx"),
        ("org/model@refs/pr/1", "hf://org/model@refs%2Fpr%2F1"),
    ],
)
def test_repositories(given: str, url: str) -> None:
    assert as_location(given) == Url(url)
    assert output_path(given) == Path(given)  # nothing is written there


def test_a_local_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    assert as_location("org/model") == Url("hf://org/model")
    (tmp_path / "org" / "model").mkdir()
    assert as_location("org/model") == Path("org/model")
    (tmp_path / "org" / "gone").symlink_to("nowhere")
    assert as_location("org/gone") == Path("org/gone")
    assert as_location("hf://org/model") == Url("hf://org/model")
    assert as_location(Path("org/other")) == Path("org/other")


def test_what_fsspec_has_opened_is_where_it_lies(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    local = tmp_path / "x"
    local.write_bytes(b"1")
    opened = fsspec.open(str(local))
    assert as_location(opened) == local
    with opened as file:
        assert as_location(file) == local
    system = fsspec.filesystem("memory")
    system.pipe("/folder/x", b"1")
    with system.open("/folder/x") as file:
        found = as_location(file)
    assert isinstance(found, Url)
    assert (found.protocol, found.name) == ("memory", "x")


def test_what_is_found_out_is_shared_below() -> None:
    url = as_location("org/model@main")
    assert isinstance(url, Url)
    (url / "x").known["commit"] = "c"
    assert url.parent.known["commit"] == url.with_options(stream=True).known["commit"] == "c"
    assert "commit" not in as_location("org/model@main").known  # type: ignore[union-attr]


def test_a_location_stays_itself() -> None:
    for location in (Path("x"), Url("s3://b/k", {"anon": True})):
        assert as_location(location) is location
    assert as_location(Url("file:///data/x")) == Path("/data/x")


def test_a_chain_is_refused() -> None:
    with pytest.raises(UsageError, match=r"s3://\*\*\*@b/x::zip://y is a chain"):
        as_location("s3://user:secret@b/x::zip://y")


def test_a_url_is_no_output() -> None:
    with pytest.raises(OutputError, match=r"the output s3://b/k is a URL"):
        output_path("s3://b/k")


@pytest.mark.parametrize(
    ("text", "name", "parent", "child"),
    [
        ("s3://b/d/x", "x", "s3://b/d", "s3://b/d/x/y z"),
        ("s3://b/d/", "d", "s3://b", "s3://b/d/y z"),
        ("s3://b/odd?key", "odd?key", "s3://b", "s3://b/odd?key/y z"),
        ("memory://d/x", "x", "memory://d", "memory://d/x/y z"),
        ("https://h/d/x?sig=1", "x", "https://h/d?sig=1", "https://h/d/x/y%20z?sig=1"),
        ("https://h/d/a%20b", "a b", "https://h/d", "https://h/d/a%20b/y%20z"),
        ("hf://org/model@main/x", "x", "hf://org/model@main", "hf://org/model@main/x/y z"),
    ],
)
def test_families(text: str, name: str, parent: str, child: str) -> None:
    options = {"anon": True}
    url = Url(text, options)
    assert url.name == name
    assert url.parent == Url(parent)
    assert url / Path("y z") == Url(child)
    assert url.parent.options is (url / "y z").options is options


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pa@ss@host/x?X-Sig=abc&y", "https://***@host/x?***"),
        ("https://token@host", "https://***@host"),
        ("s3://key:secret@b/k", "s3://***@b/k"),
        ("s3://b/k?versionId=7", "s3://b/k?***"),
        ("hf://org/model@rev/x", "hf://org/model@rev/x"),
        ("hf://gpt2@main/x", "hf://gpt2@main/x"),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert str(Url(text)) == shown
    assert repr(Url(text, {"secret": "hunter2"})) == f"Url({shown!r})"
    assert f"{Url(text)}" == shown
    assert redacted(f"cannot GET url='{text}', sorry") == f"cannot GET url='{shown}', sorry"
