"""References to the Hub, and `sparsedelta.json`: what they mean, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from sparsedelta.errors import CheckpointError, UsageError
from sparsedelta.hub.chains import link_number
from sparsedelta.hub.client import Account
from sparsedelta.hub.errors import without_tokens
from sparsedelta.hub.manifest_file import (
    ListedBase,
    ListedDelta,
    ListedFile,
    ManifestFile,
    parse_manifest_file,
)
from sparsedelta.hub.references import Reference, is_hub, parse_reference, repository
from sparsedelta.locations import Url, as_location

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("org/model", "org/model", None, ""),
        ("org/model@v1", "org/model", "v1", ""),
        ("org/model@feat/x", "org/model", "feat/x", ""),
        (f"org/model@{COMMIT}", "org/model", COMMIT, ""),
        ("hf://org/model", "org/model", None, ""),
        ("hf://models/org/model", "org/model", None, ""),
        ("hf://org/model/", "org/model", None, ""),
        ("hf://org/model/sub/x.safetensors", "org/model", None, "sub/x.safetensors"),
        ("hf://org/model@v1/x", "org/model", "v1", "x"),
        ("hf://org/model@feat%2Fx/y/z", "org/model", "feat/x", "y/z"),
        ("hf://org/model@refs/pr/12/x", "org/model", "refs/pr/12", "x"),
        ("hf://org/model@refs/pr/12", "org/model", "refs/pr/12", ""),
        ("hf://org/model@refs%2Fpr%2F1/x", "org/model", "refs/pr/1", "x"),
        ("hf://org/model/a@b", "org/model", None, "a@b"),
    ],
)
def test_what_a_reference_means(text: str, repo: str, revision: str | None, path: str) -> None:
    url = as_location(text)
    assert isinstance(url, Url)
    assert is_hub(url)
    found = parse_reference(url)
    assert (found.repo, found.revision, found.path) == (repo, revision, path)
    assert parse_reference(found.url()) == found
    assert found.is_pinned is (revision == COMMIT)


@pytest.mark.parametrize(
    "text",
    [
        "hf://org",
        "hf://org/",
        "hf://org/a--b",
        "hf://org/a..b",
        "hf://org/x.git",
        f"hf://org/{'x' * 96}",
        "hf://org/model@",
        "hf://org/model@..%2F..%2Fetc",
        "hf://org/model@a%2F..%2Fb",
        "hf://org/model@%2Fetc",
        "hf://org/model@a%5Cb",
        "hf://o rg/model",
    ],
)
def test_what_names_no_repository(text: str) -> None:
    with pytest.raises(UsageError, match="names no repository"):
        parse_reference(Url(text))


@pytest.mark.parametrize("text", ["s3://org/model", "hf://datasets/org/x", "hf://buckets/org/x"])
def test_what_is_not_on_the_hub(text: str) -> None:
    assert not is_hub(Url(text))
    with pytest.raises(UsageError, match="expected a repository"):
        repository(text)


def test_where_a_repository_is_asked_for_a_file_is_none() -> None:
    assert repository("org/model@a/b") == Reference("org/model", "a/b")
    with pytest.raises(UsageError, match="a file or folder"):
        repository("hf://org/model/x")


@pytest.mark.parametrize("token", ["", "hf_a b", "hf_a\n", "hf_ä", "hf_\x7f"])
def test_what_is_no_token_is_not_told(token: str) -> None:
    with pytest.raises(UsageError) as error:
        Account(token)
    assert not token.strip() or token not in str(error.value)


def test_tokens_in_the_text_of_others() -> None:
    text = without_tokens(
        "GET https://u:p@h/x?sig=1: {'authorization': 'Bearer hf_abcDEF123'} hf_xY9"
    )
    assert "abcDEF" not in text
    assert "xY9" not in text
    assert "sig" not in text


DIGEST = "0123456789abcdef" * 4
FILE = ListedFile("delta.safetensors", 7, DIGEST)
DELTA = ListedDelta(
    "delta.safetensors", DIGEST, DIGEST[::-1], DIGEST, "1.0", "portable", 3, 2, True, None, (FILE,)
)
LISTED = ManifestFile(ListedBase("org/model", COMMIT, DIGEST, (FILE,)), (DELTA,))


def test_the_manifest_comes_back() -> None:
    assert parse_manifest_file(LISTED.to_bytes(), "x") == LISTED
    assert json.loads(LISTED.to_bytes())["version"] == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["deltas"], []),
        (["deltas"], {}),
        (["base", "commit"], "main"),
        (["base", "repo"], "a/b\x1b[31m"),
        (["base", "repo"], "../b"),
        (["base", "fingerprint"], None),
        (["deltas", 0, "path"], "../x.safetensors"),
        (["deltas", 0, "path"], "a/b/x.safetensors"),
        (["deltas", 0, "files", 0, "path"], "/etc/passwd"),
        (["deltas", 0, "files", 0, "path"], "x.bin"),
        (["deltas", 0, "files", 0, "size"], -1),
        (["deltas", 0, "files", 0, "size"], True),
        (["deltas", 0, "files", 0, "sha256"], "00"),
        (["deltas", 0, "nnz"], 1.5),
        (["version"], "1"),
        (["version"], 2),
    ],
)
def test_a_manifest_of_a_stranger(path: list[str | int], value: object) -> None:
    document = json.loads(LISTED.to_bytes())
    *way, last = path
    place = document
    for key in way:
        place = place[key]
    place[last] = value
    with pytest.raises(CheckpointError, match="where it lies is"):
        parse_manifest_file(json.dumps(document).encode(), "where it lies")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100])
def test_no_manifest_at_all(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_manifest_file(content, "x")


def test_how_far_a_chain_is_to_be_followed() -> None:
    nodes = [f"{number:x}" * 64 for number in range(10, 14)]
    links = tuple(replace(DELTA, base=one, target=other) for one, other in pairwise(nodes))
    chain = ManifestFile(LISTED.base, links, is_chain=True)
    assert [link_number(chain, number) for number in (0, "1", 3)] == [0, 1, 3]
    assert [link_number(chain, node[:6]) for node in nodes] == [0, 1, 2, 3]
    assert link_number(chain, nodes[2].upper()) == 2
    for wrong in ("4", 99, "aaa", "eeeeee", ""):
        with pytest.raises(UsageError):
            link_number(chain, wrong)
