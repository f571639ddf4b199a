"""Reading ahead: the same bytes in any order, in few requests if they follow one another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thorough import examples

from sparsedelta.errors import CheckpointError, RemoteError
from sparsedelta.locations import Url
from sparsedelta.read_ahead import ReadAhead
from sparsedelta.remote import RemoteFile

SIZE = 5 << 20
CONTENT = np.random.default_rng(0).bytes(SIZE)
HEAD = 1 << 16


class CountedFile(RemoteFile):
    """Remembers what is asked for behind the beginning of the file."""

    def __init__(self, location: Url) -> None:
        self.asked: list[tuple[int, int]] = []
        super().__init__(location)
        self.asked.clear()

    def _fetch(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return super()._fetch(start, stop)


@pytest.fixture(scope="module")
def url() -> Iterator[Url]:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/read-ahead/x", CONTENT)
    yield Url("memory://read-ahead/x")
    fs.rm("/read-ahead", recursive=True)


@examples(60)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.integers(0, 1 << 21)), max_size=12
    )
)
def test_any_reads_give_the_bytes_of_the_file(url: Url, reads: list[tuple[bool, int, int]]) -> None:
    """What is read is what is there, whatever was read before."""
    file = ReadAhead(RemoteFile(url))
    position = 0
    for goes_on, start, length in reads:
        begin = position if goes_on else start
        length = min(length, SIZE - begin)  # noqa: PLW2901
        assert file.read(begin, length) == CONTENT[begin : begin + length]
        position = begin + length
    file.close()


def test_what_follows_comes_in_few_requests_and_once(url: Url) -> None:
    file = CountedFile(url)
    ahead = ReadAhead(file)
    step = 10_007
    for start in range(0, SIZE, step):
        length = min(step, SIZE - start)
        assert ahead.read(start, length) == CONTENT[start : start + length]
    asked = sorted(file.asked)
    assert len(asked) < 16
    assert asked[0][0] == HEAD
    assert asked[-1][1] == SIZE
    assert all(before[1] == after[0] for before, after in itertools.pairwise(asked))


def test_a_read_by_itself_asks_for_nothing_else(url: Url) -> None:
    file = CountedFile(url)
    ahead = ReadAhead(file)
    for start in (3 << 20, 1 << 20, 4 << 20, 2 << 20):
        ahead.read(start, 1000)
    assert file.asked == [(s, s + 1000) for s in (3 << 20, 1 << 20, 4 << 20, 2 << 20)]


def test_from_many_threads(url: Url) -> None:
    file = CountedFile(url)
    ahead = ReadAhead(file)
    starts = range(HEAD, SIZE, 4096)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: ahead.read(start, min(4096, SIZE - start)), starts))
    assert b"".join(found) == CONTENT[HEAD:]
    assert len(file.asked) < len(starts) // 4


def test_a_failure_is_told_and_forgotten(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CountedFile(url)
    ahead = ReadAhead(file)
    failing = RemoteError("no network")

    def fail(_start: int, _stop: int) -> bytes:
        raise failing

    with monkeypatch.context() as patch:
        patch.setattr(file, "_fetch", fail)
        with pytest.raises(RemoteError, match="no network"):
            ahead.read(1 << 20, 100)
    assert ahead.read(1 << 20, 100) == CONTENT[1 << 20 : (1 << 20) + 100]


def test_behind_the_end(url: Url) -> None:
    with pytest.raises(CheckpointError, match=f"ends at byte {SIZE}, 1 bytes early"):
        ReadAhead(RemoteFile(url)).read(SIZE - 9, 10)
