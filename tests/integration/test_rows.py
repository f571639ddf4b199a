"""Rows and slices of a delta: the same as cutting them out of the whole, and no more is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import Stored, Tensors, write_file

import sparsedelta
from sparsedelta import DeltaReader, FormatError, UsageError, VerificationError, WrongBaseError
from sparsedelta.files import InputFile
from sparsedelta.records import PartRecord
from sparsedelta.words import Words

WIDTH = 64
"""Words of a row of the large tensor."""

BIG, GROWN, SHORT, NEW, COPY, MOVED, STAYS, GONE = (
    "a.big",
    "b.grown",
    "c.short",
    "d.new",
    "e.copy",
    "f.moved",
    "g.stays",
    "h.gone",
)
SCALAR, PACKED, EMPTY = "i.scalar", "j.packed", "k.empty"


def random(dtype: str, shape: tuple[int, ...], size: int, seed: int) -> Stored:
    """A tensor of random bytes; ``size`` of them."""
    return Stored(dtype, shape, np.random.default_rng(seed).bytes(size))


def with_changes(tensor: Stored, step: int, dtype: str = "<u2") -> Stored:
    """The tensor with every ``step``-th word one higher."""
    words = np.frombuffer(tensor.data, dtype).copy()
    words[::step] += 1
    return Stored(tensor.dtype, tensor.shape, words.tobytes())


def mostly_changed(tensor: Stored) -> Stored:
    """The tensor with most words changed: too many for one block."""
    rng = np.random.default_rng(99)
    words = tensor.words
    words[rng.random(words.size) < 0.7] += np.uint16(rng.integers(1, 100))
    return Stored(tensor.dtype, tensor.shape, words.tobytes())


def ends() -> tuple[Tensors, Tensors]:
    """A base and a target in which tensors of every kind of record meet."""
    base = {
        BIG: random("BF16", (4096, WIDTH), 4096 * WIDTH * 2, 0),
        GROWN: random("F32", (30, 7), 30 * 7 * 4, 1),
        SHORT: random("F32", (30, 7), 30 * 7 * 4, 2),
        "x.moved": random("F16", (50, 4), 50 * 4 * 2, 3),
        STAYS: random("BF16", (20, 5), 20 * 5 * 2, 4),
        GONE: random("BF16", (9,), 18, 5),
        SCALAR: random("F64", (), 8, 6),
        PACKED: random("F4", (6, 4), 12, 7),
        EMPTY: random("F32", (0, 3), 0, 0),
    }
    more = random("F32", (5, 7), 5 * 7 * 4, 8)
    grown, short = with_changes(base[GROWN], 9, "<u4"), with_changes(base[SHORT], 11, "<u4")
    target = {
        BIG: mostly_changed(base[BIG]),
        GROWN: Stored("F32", (35, 7), grown.data + more.data),
        SHORT: Stored("F32", (10, 7), short.data[: 10 * 7 * 4]),
        NEW: random("U8", (8, 3), 24, 9),
        COPY: with_changes(base["x.moved"], 40),
        MOVED: with_changes(base["x.moved"], 33),
        STAYS: base[STAYS],
        SCALAR: with_changes(base[SCALAR], 1, "<u8"),
        PACKED: with_changes(base[PACKED], 5, "<u1"),
        EMPTY: Stored("F32", (2, 3), bytes(24)),
    }
    return base, target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, ``target``, and deltas: whole, one-way, lean, and as a set."""
    path = tmp_path_factory.mktemp("rows")
    for name, tensors in zip(("base", "target"), ends(), strict=True):
        write_file(path / name, tensors)
    renames = {MOVED: "x.moved"}
    base, target = path / "base", path / "target"
    sparsedelta.diff(base, target, path / "delta", renames=renames)
    sparsedelta.diff(base, target, path / "one-way", renames=renames, one_way=True)
    sparsedelta.diff(base, target, path / "lean", renames=renames, lean=True)
    sparsedelta.diff(base, target, path / "set", renames=renames, max_shard_size=5000)
    return path


DELTAS = ("delta", "one-way", "lean", "set")
each_delta = pytest.mark.parametrize("delta", DELTAS)


def words_of(tensor: Stored) -> Words:
    """The words of a tensor."""
    width = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}.get(tensor.dtype, 1)
    return np.frombuffer(tensor.data, f"<u{width}")


def cuts(rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows: none, one, some, all."""
    for start, stop in ((0, 0), (0, 1), (0, rows), (rows // 2, rows), (rows - 1, rows), (3, 9)):
        if 0 <= start <= stop <= rows:
            yield start, stop
    yield rows, rows


# --- what is read is right ---


@each_delta
def test_rows_of_every_kind_of_record_are_those_of_the_target(folder: Path, delta: str) -> None:
    _, target = ends()
    with DeltaReader(folder / delta) as reader:
        for name, tensor in target.items():
            rows = tensor.shape[0] if tensor.shape else 1
            whole = words_of(tensor)
            width = whole.size // rows
            for start, stop in cuts(rows):
                found = sparsedelta.read_rows(folder / "base", reader, name, start, stop)
                expected = whole[start * width : stop * width]
                assert found.dtype == expected.dtype
                assert np.array_equal(found, expected), (name, start, stop)


@each_delta
def test_a_slice_of_the_delta_leads_to_the_words_of_the_target(folder: Path, delta: str) -> None:
    base, target = ends()
    sources = {**{name: name for name in base}, COPY: "x.moved", MOVED: "x.moved"}
    rng = np.random.default_rng(0)
    with DeltaReader(folder / delta) as reader:
        for name in set(reader.records) & set(target):
            whole = words_of(target[name])
            source = words_of(base[sources[name]]) if name in sources else whole[:0]
            for _ in range(8):
                start, stop = np.sort(rng.integers(0, whole.size + 1, 2)).tolist()
                piece = reader.slice(name, start, stop)
                given = source[start : max(start, min(stop, piece.given))]
                assert np.array_equal(piece.apply(given), whole[start:stop]), (name, start, stop)


@each_delta
def test_slices_hold_the_entries_of_the_whole_between_their_ends(folder: Path, delta: str) -> None:
    with DeltaReader(folder / delta) as reader:
        (whole,) = reader.read_tensor(BIG).parts
        assert whole.indices is not None
        assert whole.words is not None
        for start, stop in ((0, 0), (0, 7), (5000, 140_001), (99, 99), (0, 4096 * WIDTH)):
            (part,) = reader.slice(BIG, start, stop).entries
            assert part.indices is not None
            assert part.words is not None
            inside = (whole.indices >= start) & (whole.indices < stop)
            assert np.array_equal(part.indices, whole.indices[inside])
            assert np.array_equal(part.words, whole.words[inside])
            assert part.op == whole.op


def test_a_slice_insists_on_as_many_source_words_as_it_needs(folder: Path) -> None:
    with DeltaReader(folder / "delta") as reader:
        piece = reader.rows(GROWN, 28, 33)
        assert (piece.start, piece.stop, piece.given) == (196, 231, 210)
        assert piece.carried.size == 21
        with pytest.raises(ValueError, match="15 source words, expected 14"):
            piece.apply(np.zeros(15, "<u4"))


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("start", "stop"), [(-1, 2), (3, 2), (0, 4097), (4097, 4097), (-5, -1), (2**40, 2**40 + 1)]
)
def test_rows_out_of_range_are_refused_and_the_range_is_told(
    folder: Path, start: int, stop: int
) -> None:
    with DeltaReader(folder / "delta") as reader:
        with pytest.raises(UsageError, match=rf"rows {start} to {stop} of tensor 'a.big'.*4096"):
            reader.rows(BIG, start, stop)
        with pytest.raises(UsageError, match=rf"rows {start} to {stop} of tensor 'a.big'.*4096"):
            sparsedelta.read_rows(folder / "base", reader, BIG, start, stop)
        with pytest.raises(UsageError, match="words"):
            reader.slice(BIG, start * WIDTH, stop * WIDTH)


@pytest.mark.parametrize("name", ["no.such", GONE, "x.moved"])
@each_delta
def test_a_tensor_that_the_target_lacks_has_no_rows(folder: Path, delta: str, name: str) -> None:
    """A name that only the base has, or nobody: also where a lean delta lists no names."""
    with DeltaReader(folder / delta) as reader:
        with pytest.raises(UsageError, match=f"the target of .* has no tensor '{name}'"):
            sparsedelta.read_rows(folder / "base", reader, name, 0, 1)
        with pytest.raises(UsageError, match=name):
            reader.rows(name, 0, 1)


def test_rows_that_are_no_whole_words_are_refused(tmp_path: Path) -> None:
    """Two F4 elements are a byte: rows of an odd number of them begin within one."""
    tensors = {"p": random("F4", (4, 3), 6, 0)}
    write_file(tmp_path / "a", tensors)
    write_file(tmp_path / "b", {"p": with_changes(tensors["p"], 2, "<u1")})
    sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
    with DeltaReader(tmp_path / "d") as reader:
        with pytest.raises(UsageError, match="no whole words"):
            reader.rows("p", 1, 2)
        with pytest.raises(UsageError, match="rows 1 to 2 of tensor 'p', F4"):
            sparsedelta.read_rows(tmp_path / "a", reader, "p", 1, 2)
        assert reader.slice("p", 0, 6).nnz == 3


# --- what is verified ---


def damaged(folder: Path, name: str) -> Path:
    """The base with one bit of one tensor flipped, in a file of its own."""
    base, _ = ends()
    data = bytearray(base[name].data)
    data[-1] ^= 1
    path = folder / f"damaged-{name}"
    return write_file(path, {**base, name: Stored(base[name].dtype, base[name].shape, bytes(data))})


@pytest.mark.parametrize("name", [BIG, GROWN, SHORT, SCALAR, PACKED, STAYS])
def test_a_wrong_base_is_told_before_a_block_is_decoded(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(DeltaReader, "read_blocks", lambda *_, **__: decoded.append("block"))
    with pytest.raises(
        WrongBaseError, match=rf"not the base .* \(SD501\): tensor '{name}' differs"
    ):
        sparsedelta.read_rows(damaged(folder, name), folder / "delta", name, 0, 1)
    assert decoded == []


@pytest.mark.parametrize("name", [COPY, MOVED])
def test_the_source_of_a_copy_and_of_a_rename_is_verified(folder: Path, name: str) -> None:
    with pytest.raises(WrongBaseError, match=r"tensor 'x\.moved' differs"):
        sparsedelta.read_rows(damaged(folder, "x.moved"), folder / "delta", name, 0, 1)


@pytest.mark.parametrize("name", [BIG, STAYS])
def test_a_base_without_the_tensor_is_the_wrong_one(folder: Path, name: str) -> None:
    base, _ = ends()
    del base[name]
    write_file(folder / "without", base)
    with pytest.raises(WrongBaseError, match=f"SD501.*'{name}'"):
        sparsedelta.read_rows(folder / "without", folder / "delta", name, 0, 1)


def test_a_base_of_another_shape_is_the_wrong_one(folder: Path) -> None:
    base, _ = ends()
    base[GROWN] = Stored("F32", (7, 30), base[GROWN].data)
    write_file(folder / "turned", base)
    with pytest.raises(WrongBaseError, match=r"is F32 \[7, 30\], expected F32 \[30, 7\]"):
        sparsedelta.read_rows(folder / "turned", folder / "delta", GROWN, 0, 1)


def test_new_rows_need_no_base(folder: Path) -> None:
    """What is carried does not depend on what the base holds."""
    found = sparsedelta.read_rows(damaged(folder, BIG), folder / "delta", NEW, 0, 8)
    assert found.tobytes() == ends()[1][NEW].data


def test_a_delta_that_lies_about_its_result_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks decode well, but not to what the digests promise."""
    honest = DeltaReader.read_blocks

    def lie(self: DeltaReader, *arguments: object, **more: object) -> list[tuple[object, Words]]:
        found = honest(self, *arguments, **more)  # type: ignore[arg-type]
        return [(indices, words + words.dtype.type(1)) for indices, words in found]

    monkeypatch.setattr(DeltaReader, "read_blocks", lie)
    with pytest.raises(VerificationError, match=r"tensor 'a\.big'.*SD502") as caught:
        sparsedelta.read_rows(folder / "base", folder / "delta", BIG, 0, 1)
    assert "sparsedelta validate" in (caught.value.hint or "")


def test_a_damaged_block_is_told_only_by_who_reads_it(folder: Path) -> None:
    with DeltaReader(folder / "delta") as reader:
        record = reader.records[BIG]
        table = reader.tables.tensors[BIG].blocks(0)
        last = int(table.offsets[-1]) - 1
        position = reader.header.ranges["sd.data"][0] + last
        rows = 1 << record.parts[0].block_log2  # type: ignore[union-attr]
    data = bytearray((folder / "delta").read_bytes())
    data[position] ^= 1
    (folder / "broken").write_bytes(data)
    with DeltaReader(folder / "broken") as reader:
        assert reader.rows(BIG, 0, rows // WIDTH).nnz > 0
        with pytest.raises(FormatError, match="SD401"):
            reader.rows(BIG, 4095, 4096)


# --- how much is read ---


Counted = Callable[[], int]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Bytes that were read of deltas since the last call."""
    read = 0
    plain = InputFile.read_into

    def count(self: InputFile, buffer: memoryview, offset: int) -> None:
        nonlocal read
        if self.location.name != "base":
            read += len(buffer)
        plain(self, buffer, offset)

    def result() -> int:
        nonlocal read
        found, read = read, 0
        return found

    monkeypatch.setattr(InputFile, "read_into", count)
    return result


def head(path: Path, counted: Counted) -> tuple[int, int]:
    """Bytes of header and manifest, and of tables, of a delta of one file."""
    with DeltaReader(path) as reader:
        ranges = reader.header.ranges
    counted()
    return ranges["sd.manifest"][1], ranges["sd.tables"][1] - ranges["sd.tables"][0]


def test_opening_and_info_read_header_and_manifest(folder: Path, counted: Counted) -> None:
    start, _ = head(folder / "delta", counted)
    sparsedelta.info(folder / "delta")
    assert counted() == start
    with DeltaReader(folder / "delta"):
        assert counted() == start


def test_info_of_a_set_reads_headers_and_manifests(folder: Path, counted: Counted) -> None:
    heads = [head(path, counted)[0] for path in folder.glob("set-*")]
    with DeltaReader(folder / "set") as reader:
        start = reader.header.ranges["sd.manifest"][1]
    counted()
    sparsedelta.info(folder / "set")
    assert counted() == start + sum(heads)


@pytest.mark.parametrize("rows", [(0, 1), (1000, 1001), (1000, 1026), (4095, 4096)])
def test_rows_read_the_frames_of_their_blocks_and_no_others(
    folder: Path, counted: Counted, rows: tuple[int, int]
) -> None:
    start, tables = head(folder / "delta", counted)
    with DeltaReader(folder / "delta") as reader:
        assert counted() == start
        reader.tables  # noqa: B018 (read at first use)
        assert counted() == tables
        part = reader.records[BIG].parts[0]
        assert isinstance(part, PartRecord)
        size = 1 << part.block_log2
        offsets = reader.tables.tensors[BIG].blocks(0).offsets
        assert len(offsets) > 4, "few blocks would prove nothing"
        first, last = rows[0] * WIDTH // size, -(-rows[1] * WIDTH // size)
        reader.rows(BIG, *rows)
        assert counted() == offsets[last] - offsets[first] < offsets[-1] / 2
        sparsedelta.read_rows(folder / "base", reader, STAYS, 0, 20)
        assert counted() == 0, "a tensor that stays has no frames"


def test_no_rows_read_no_frames(folder: Path, counted: Counted) -> None:
    with DeltaReader(folder / "delta") as reader:
        reader.tables  # noqa: B018 (read at first use)
        counted()
        assert reader.rows(BIG, 77, 77).nnz == 0
        assert reader.rows(NEW, 8, 8).carried.size == 0
        assert counted() == 0


def test_rows_that_survive_a_resize_do_not_read_those_that_came(
    folder: Path, counted: Counted
) -> None:
    with DeltaReader(folder / "delta") as reader:
        record = reader.records[GROWN]
        ops = {part.op: part.nbytes for part in record.parts}
        reader.tables  # noqa: B018 (read at first use)
        counted()
        reader.rows(GROWN, 0, 30)
        assert counted() == ops["difference"]
        reader.rows(GROWN, 30, 35)
        assert counted() == ops["resize"]
