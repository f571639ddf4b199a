"""``export --raw``, read back by safetensors and torch, which know nothing of deltas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import (
    HALF,
    TUNED,
    Pair,
    Stored,
    base_tensors,
    call,
    failed,
    hint_of,
    load,
    succeeded,
    tree,
    tuned,
    write_file,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sparsedelta
from sparsedelta import (
    ExportReport,
    FormatError,
    OutputError,
    StructureError,
    TensorDelta,
    WrongBaseError,
)
from sparsedelta.delta import ADD, REPLACE, Part

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.complex64,
)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: floats would call NaN unequal, and -0 equal to 0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def with_base(base: Path, raw: Path) -> dict[str, torch.Tensor]:
    """What an engine does: copy the new elements to where they belong, in its own weights."""
    weights, changes = load_file(base), load_file(raw)
    for key in [key for key in changes if key.endswith(".indices")]:
        name = key.removesuffix(".indices")
        indices, values = changes[key], changes[f"{name}.values"]
        assert values.dtype == weights[name].dtype
        if values.element_size() == 1:
            # index_copy_ of torch knows no floats of 8 bits; their bits are as good.
            weights[name].view(torch.uint8).view(-1).index_copy_(
                0, indices.long(), values.view(torch.uint8)
            )
        else:
            weights[name].view(-1).index_copy_(0, indices.long(), values)
    return weights


def metadata(raw: Path) -> dict[str, str]:
    """The metadata of an export."""
    with safe_open(raw, "np") as file:
        found: dict[str, str] = file.metadata()
    return found


@pytest.mark.parametrize("one_way", [False, True], ids=["differences", "new words"])
def test_new_elements_copied_into_the_base_give_the_target(
    tmp_path: Path, *, one_way: bool
) -> None:
    """Every dtype that torch has, with NaN, infinities and zeros of both signs among the words."""
    generator = torch.Generator().manual_seed(0)
    base, target = {}, {}
    for number, dtype in enumerate((*FLOATS, *OTHERS)):
        size = torch.empty(0, dtype=dtype).element_size()
        data = torch.randint(0, 256, (30 * 20 * size,), generator=generator, dtype=torch.uint8)
        if dtype == torch.bool:
            data &= 1
        new = data.clone()
        new.view(-1, size)[torch.randperm(600, generator=generator)[:90], size - 1] ^= 1
        name = f"t{number}"
        base[name] = data.view(dtype).view(30, 20)
        target[name] = new.view(dtype).view(30, 20)
    for dtype in FLOATS:
        special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, 1.0, -0.0], dtype=dtype)
        base[f"special.{dtype}"] = special
        target[f"special.{dtype}"] = special[torch.tensor([1, 0, 3, 2, 4, 0])].clone()
    save_file(base, tmp_path / "base")
    save_file(target, tmp_path / "target")
    sparsedelta.diff(tmp_path / "base", tmp_path / "target", tmp_path / "d", one_way=one_way)
    report = sparsedelta.export_raw(tmp_path / "d", tmp_path / "raw", base=tmp_path / "base")
    assert (report.values, report.whole, report.dropped) == ("elements", 0, ())
    found = with_base(tmp_path / "base", tmp_path / "raw")
    assert found.keys() == target.keys()
    for name, tensor in target.items():
        assert torch.equal(bits(found[name]), bits(tensor)), name


def test_indices_are_flat_ascending_and_small(pair: Pair) -> None:
    sparsedelta.export_raw(pair.delta, pair.out, base=pair.base)
    raw = load_file(pair.out)
    assert set(raw) == {f"{n}.{kind}" for n in (TUNED, HALF) for kind in ("indices", "values")}
    old, new = load(pair.base), load(pair.target)
    for name in (TUNED, HALF):
        indices = raw[f"{name}.indices"]
        assert indices.dtype == torch.int32
        width = "<u4" if name == TUNED else "<u2"
        words = [np.frombuffer(t[name].data, width) for t in (old, new)]
        assert indices.tolist() == np.flatnonzero(words[0] != words[1]).tolist()


def test_without_the_base_values_are_differences_of_words(pair: Pair) -> None:
    """Unsigned: (new - old) mod 2^w, which any language can add."""
    report = sparsedelta.export_raw(pair.delta, pair.out)
    assert report.values == metadata(pair.out)["values"] == "differences"
    raw, old, new = load(pair.out), load(pair.base), load(pair.target)
    for name, dtype, width in ((TUNED, "U32", "<u4"), (HALF, "U16", "<u2")):
        assert raw[f"{name}.values"].dtype == dtype
        words = np.frombuffer(old[name].data, width).copy()
        at = np.frombuffer(raw[f"{name}.indices"].data, "<i4")
        words[at] += np.frombuffer(raw[f"{name}.values"].data, width)
        assert words.tobytes() == new[name].data


def test_new_words_need_no_base(pair: Pair) -> None:
    sparsedelta.diff(pair.base, pair.target, pair.folder / "one-way", one_way=True)
    alone = sparsedelta.export_raw(pair.folder / "one-way", pair.folder / "alone")
    sparsedelta.export_raw(pair.folder / "one-way", pair.folder / "with", base=pair.base)
    assert alone.values == "elements"
    assert (pair.folder / "alone").read_bytes() == (pair.folder / "with").read_bytes()


def test_the_metadata_says_what_it_is(pair: Pair) -> None:
    sparsedelta.export_raw(pair.delta, pair.out, base=pair.base)
    found = sparsedelta.info(pair.delta)
    assert metadata(pair.out) == {
        "format": "sparsedelta-raw",
        "base": found.base,
        "target": found.target,
        "content": found.content,
        "values": "elements",
        "dropped": "[]",
        "renamed": "{}",
    }


# --- structure ---


@pytest.fixture
def structured(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, target and delta: one tensor of each fate."""
    rng = np.random.default_rng(3)

    def some(*shape: int) -> Stored:
        return Stored("BF16", shape, rng.bytes(2 * int(np.prod(shape))))

    base = {name: some(20, 5) for name in ("changed", "gone", "grown", "old", "retyped", "stays")}
    target = tuned(base, ["changed", "grown", "old"])
    target["grown"] = Stored("BF16", (22, 5), target["grown"].data + rng.bytes(20))
    target["renamed"] = target.pop("old")
    target["copy"] = base["stays"]
    target["retyped"] = Stored("F16", (20, 5), target["retyped"].data)
    target["new"] = some(3)
    del target["gone"]
    paths = tmp_path / "base", tmp_path / "target", tmp_path / "delta"
    write_file(paths[0], base)
    write_file(paths[1], target)
    sparsedelta.diff(*paths)
    return paths


def test_with_the_base_all_that_is_new_is_there(structured: tuple[Path, Path, Path]) -> None:
    base, target, delta = structured
    out = delta.parent / "raw"
    report = sparsedelta.export_raw(delta, out, base=base)
    raw, old, new = load(out), load(base), load(target)
    whole = {"copy", "grown", "new", "retyped"}
    entries = {f"{n}.{kind}" for n in ("changed", "renamed") for kind in ("indices", "values")}
    assert set(raw) == whole | entries
    assert {name: raw[name] for name in whole} == {name: new[name] for name in whole}
    for name, source in (("changed", "changed"), ("renamed", "old")):
        words = old[source].words
        at = np.frombuffer(raw[f"{name}.indices"].data, "<i4")
        assert raw[f"{name}.values"].dtype == "BF16"
        words[at] = raw[f"{name}.values"].words
        assert words.tobytes() == new[name].data
    assert json.loads(metadata(out)["dropped"]) == list(report.dropped) == ["gone"]
    assert json.loads(metadata(out)["renamed"]) == report.renamed == {"renamed": "old"}
    assert (report.changed, report.whole) == (2, 4)


def test_a_rename_without_changes_is_told_in_the_metadata_only(tmp_path: Path) -> None:
    base = base_tensors()
    target = {f"model.{name}": tensor for name, tensor in base.items()}
    write_file(tmp_path / "a", base)
    write_file(tmp_path / "b", target)
    sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
    for given in (None, tmp_path / "a"):
        sparsedelta.export_raw(tmp_path / "d", tmp_path / "raw", base=given, force=True)
        assert load(tmp_path / "raw") == {}
        renamed = json.loads(metadata(tmp_path / "raw")["renamed"])
        assert renamed == {f"model.{name}": name for name in base}


def test_new_tensors_and_drops_need_no_base(tmp_path: Path) -> None:
    """An adapter beside the weights is exported as it is."""
    base = base_tensors()
    adapter = {"lora_A": Stored("F32", (2, 8), bytes(range(64)))}
    write_file(tmp_path / "a", base)
    write_file(tmp_path / "b", {**{n: t for n, t in base.items() if n != HALF}, **adapter})
    sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
    report = sparsedelta.export_raw(tmp_path / "d", tmp_path / "raw")
    assert load(tmp_path / "raw") == adapter
    assert (report.values, report.whole, report.dropped) == ("elements", 1, (HALF,))


def test_a_delta_that_touches_nothing_gives_an_empty_file(pair: Pair) -> None:
    sparsedelta.diff(pair.base, pair.base, pair.folder / "none")
    report = sparsedelta.export_raw(pair.folder / "none", pair.out)
    assert load_file(pair.out) == {}
    assert (report.changed, report.whole, report.nnz) == (0, 0, 0)


def test_a_set_exports_as_one_file_does(structured: tuple[Path, Path, Path]) -> None:
    base, target, delta = structured
    sparsedelta.diff(base, target, delta.parent / "set", max_shard_size=1)
    sparsedelta.export_raw(delta, delta.parent / "one", base=base)
    sparsedelta.export_raw(delta.parent / "set", delta.parent / "many", base=base)
    assert (delta.parent / "one").read_bytes() == (delta.parent / "many").read_bytes()


def test_packed_dtypes_are_exported_as_bytes(tmp_path: Path) -> None:
    """An index counts words: two elements of F4 share one, so that no F4 value could be told."""
    data = bytearray(range(12))
    write_file(tmp_path / "a", {"p": Stored("F4", (6, 4), bytes(data))})
    data[7] ^= 0xF0
    write_file(tmp_path / "b", {"p": Stored("F4", (6, 4), bytes(data))})
    sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
    sparsedelta.export_raw(tmp_path / "d", tmp_path / "raw", base=tmp_path / "a")
    raw = load(tmp_path / "raw")
    assert raw["p.values"] == Stored("U8", (1,), bytes([7 ^ 0xF0]))
    assert raw["p.indices"].data == (7).to_bytes(4, "little")


def test_additions_are_exported_as_new_elements(pair: Pair) -> None:
    values = np.array([0x3F80, 0x4000], "<u2")  # 1.0 and 2.0
    base = write_file(pair.folder / "ones", {"w": Stored("BF16", (4,), b"\x80\x3f" * 4)})
    spec = sparsedelta.TensorSpec("w", "BF16", (4,))
    part = Part(ADD, np.array([1, 3]), values, None, "BF16", 0.5)
    sparsedelta.write_delta(base, [TensorDelta(spec, spec, (part,))], pair.folder / "add")
    sparsedelta.export_raw(pair.folder / "add", pair.out, base=base)
    assert load_file(pair.out)["w.values"].tolist() == [1.5, 2.0]
    message = failed(call("export", "--raw", pair.folder / "add", "-o", pair.folder / "x"), 1)
    assert "'w'" in message
    assert "--base BASE" in hint_of(message)


# --- refusals ---


@pytest.mark.parametrize("fate", ["grown", "copy"])
def test_words_that_only_the_base_has_are_asked_for(tmp_path: Path, fate: str) -> None:
    base = base_tensors()
    target = dict(base)
    if fate == "grown":
        target[HALF] = Stored("BF16", (65, 65), base[HALF].data + bytes(130))
    else:
        target["copy"] = base[HALF]
    write_file(tmp_path / "a", base)
    write_file(tmp_path / "b", target)
    sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
    before = tree(tmp_path)
    message = failed(call("export", "--raw", tmp_path / "d", "-o", tmp_path / "raw"), 1)
    name = HALF if fate == "grown" else "copy"
    assert f"the new words of tensor '{name}' cannot be told without its base" in message
    assert f"sparsedelta export --raw {tmp_path / 'd'} --base BASE -o OUT" in hint_of(message)
    assert tree(tmp_path) == before


def test_differences_and_new_words_in_one_file_need_the_base(pair: Pair) -> None:
    """A value would mean one thing in one tensor and another in the next."""
    spec = sparsedelta.TensorSpec(HALF, "BF16", (64, 65))
    other = sparsedelta.TensorSpec(TUNED, "F32", (50, 20))
    parts = (
        Part("difference", np.array([1]), np.array([5], "<u2")),
        Part(REPLACE, np.array([1]), np.array([5], "<u4")),
    )
    changes = [TensorDelta(s, s, (p,)) for s, p in zip((spec, other), parts, strict=True)]
    sparsedelta.write_delta(pair.base, changes, pair.folder / "mixed")
    with pytest.raises(StructureError, match="cannot be told without its base"):
        sparsedelta.export_raw(pair.folder / "mixed", pair.out)
    report = sparsedelta.export_raw(pair.folder / "mixed", pair.out, base=pair.base)
    assert (report.values, report.nnz) == ("elements", 2)


def test_names_that_would_clash_are_refused(tmp_path: Path) -> None:
    base = base_tensors()
    write_file(tmp_path / "a", base)
    clash = {f"{HALF}.indices": Stored("U8", (1,), b"x")}
    write_file(tmp_path / "b", {**tuned(base), **clash})
    sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
    with pytest.raises(StructureError, match=rf"two tensors .* would be '{HALF}\.indices'"):
        sparsedelta.export_raw(tmp_path / "d", tmp_path / "raw")


def test_a_wrong_base_is_told_and_nothing_left(pair: Pair) -> None:
    before = tree(pair.folder)
    with pytest.raises(WrongBaseError, match=rf"SD501.*'{TUNED}' differs"):
        sparsedelta.export_raw(pair.delta, pair.out, base=pair.target)
    assert tree(pair.folder) == before


def test_a_damaged_delta_is_told_and_nothing_left(pair: Pair) -> None:
    data = bytearray(pair.delta.read_bytes())
    data[-1] ^= 1
    pair.delta.write_bytes(data)
    before = tree(pair.folder)
    for base in (None, pair.base):
        with pytest.raises(FormatError, match="SD4"):
            sparsedelta.export_raw(pair.delta, pair.out, base=base)
    assert tree(pair.folder) == before


def test_an_output_is_not_replaced_unasked_and_never_an_input(pair: Pair) -> None:
    pair.out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        sparsedelta.export_raw(pair.delta, pair.out)
    for path in (pair.delta, pair.base):
        with pytest.raises(OutputError, match="would overwrite the input"):
            sparsedelta.export_raw(pair.delta, path, base=pair.base, force=True)
    report = sparsedelta.export_raw(pair.delta, pair.out, force=True)
    assert isinstance(report, ExportReport)
    assert report.size == pair.out.stat().st_size


# --- the command ---


def test_the_command_says_what_it_wrote(pair: Pair) -> None:
    run = succeeded(call("export", "--raw", pair.delta, "--base", pair.base, "-o", pair.out))
    assert run.out.startswith(f"wrote {pair.out}: ")
    assert "entries (new elements) of 2 tensors" in run.out
    document = succeeded(
        call("export", "--raw", pair.delta, "-o", pair.out, "--force", "--json")
    ).document
    assert document["values"] == "differences"
    assert document["output"] == str(pair.out)
    assert document["nnz"] == sparsedelta.info(pair.delta).nnz
    assert document["size"] == pair.out.stat().st_size


def test_the_command_asks_for_the_form(pair: Pair) -> None:
    run = call("export", pair.delta, "-o", pair.out)
    assert run.code == 2
    assert "--raw" in run.err
