"""A stack on a model that lies on an accelerator: what it holds, and what comes to the host.

The accelerator is pretended (:mod:`pretended_device`): there is none where tests run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final

import pytest
import torch
from pretended_device import DEVICE, Device, There
from real_packages import minilm
from safetensors.torch import load_file, save_file
from torch import nn

import sparsedelta
from sparsedelta import FormatError, Stack, VerificationError, WrongBaseError
from sparsedelta.device_digests import padded
from sparsedelta.device_ranked import RankedOnHost, decode_on_device
from sparsedelta.digests import Digest, segment_digest
from sparsedelta.live_tensors import LiveTensors
from sparsedelta.operations import live_device

Tensors = dict[str, torch.Tensor]

SIZES: Final = {
    "a": (300, 70),
    "b": (5000,),
    "c": (40, 9, 2),
    "d": (1, 1),
    "e": (2000,),
    "still": (90,),
}
DTYPES: Final = {
    "a": torch.bfloat16,
    "b": torch.float16,
    "c": torch.bfloat16,
    "d": torch.bfloat16,
    "e": torch.float32,
    "still": torch.bfloat16,
}
TOUCHED: Final = len(SIZES) - 1
WORDS: Final = {2: torch.int16, 4: torch.int32}


def base_of() -> Tensors:
    """Weights."""
    chance = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(size, generator=chance) * 0.02).to(DTYPES[name])
        for name, size in SIZES.items()
    }


def moved(base: Tensors, seed: int) -> Tensors:
    """Some words of each tensor but one a step or two further."""
    chance = torch.Generator().manual_seed(seed)
    target = {}
    for name, each in base.items():
        words = each.clone().view(WORDS[each.element_size()])
        marks = torch.rand(each.shape, generator=chance) < 0.1
        marks.view(-1)[0] = True
        words[marks] += torch.randint(1, 3, each.shape, generator=chance).to(words.dtype)[marks]
        target[name] = words.view(each.dtype)
    return {**target, "still": base["still"]}


class Material:
    """A base, two targets, and compact deltas that lead to them.

    Attributes:
        base: Words of the base.
        targets: Those of the targets.
        deltas: The deltas.
    """

    def __init__(self, folder: Path) -> None:
        self.base = base_of()
        self.targets = [moved(self.base, seed) for seed in (1, 2)]
        self.deltas = []
        save_file(self.base, folder / "base")
        for number, target in enumerate(self.targets):
            save_file(target, folder / "target")
            out = folder / f"delta{number}"
            sparsedelta.diff(folder / "base", folder / "target", out, profile="compact")
            self.deltas.append(out)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("device"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A pretended accelerator, which is taken for one."""
    monkeypatch.setattr(There, "is_meta", False, raising=False)
    monkeypatch.setattr(LiveTensors, "_refuse_quantised", lambda *_: None)
    with Device() as made:
        yield made


@pytest.fixture
def quick(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The same with a circuit for digests: they take ten thousand operations otherwise."""

    def digests(data: There, lengths: Sequence[int]) -> list[Digest]:
        starts = accumulate(map(padded, lengths), initial=0)
        runs = [data.words[at : at + n].numpy() for at, n in zip(starts, lengths, strict=False)]
        device.to_host.append((torch.uint8, 32 * len(lengths)))
        return [segment_digest(run.data) for run in runs]

    monkeypatch.setattr("sparsedelta.operations.device_runs.digest_segments", digests)
    return device


def model_of(tensors: Tensors) -> nn.Module:
    """A model with these tensors on the device."""
    model = nn.Module()
    for name, each in tensors.items():
        model.register_buffer(name, each.to(DEVICE))
    return model


def held(model: nn.Module) -> Tensors:
    """What a model holds; nothing is written down of this."""
    return {name: each.words for name, each in model.named_buffers() if isinstance(each, There)}


def same(one: Tensors, other: Tensors) -> bool:
    """Whether all words are equal."""
    return one.keys() == other.keys() and all(
        torch.equal(each.view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8))
        for name, each in one.items()
    )


ALLOWED: Final = {
    *("index_select", "nonzero", "arange", "cat", "slice", "view", "detach", "_to_copy", "clone"),
    *("add", "add_", "sub", "sub_", "div", "eq", "ne", "lt", "le", "gt", "ge", "where", "clamp"),
    *("bitwise_and", "bitwise_and_", "bitwise_or_", "bitwise_xor", "bitwise_xor_"),
    *("__and__", "__lshift__", "__rshift__", "__irshift__", "expand", "select", "unsqueeze", "t"),
    *("full", "full_like", "zeros", "zeros_like", "empty", "copy_", "split_with_sizes", "stack"),
    *("index_copy_", "index_fill_", "scatter_"),
}
"""What runs on the device: element by element, ``index_select``, ``nonzero``; views and copies;
writing to places that are named once."""


def test_digests_alone_come_to_the_host(material: Material, device: Device) -> None:
    """And to the device go entries. What runs there are integers, bytes and marks."""
    model = model_of(material.base)
    device.to_device = 0
    device.ran.clear()
    stack = Stack(model, threads=1, on_device=True)
    stack.add("x", material.deltas[0])
    assert same(held(model), material.targets[0])
    # A segment of each tensor before, and after.
    assert device.to_host == [(torch.uint8, 32 * TOUCHED)] * 2
    entries = sum(stack.nnz.values())
    # Ranks of 4 bytes and values of 2 or 4, and constants of the digests.
    assert 6 * entries <= device.to_device < 7 * entries + 20_000
    assert {name for name, _ in device.ran} <= ALLOWED
    for name, dtypes in device.ran:
        if name not in ("detach", "view", "slice"):  # of the parameters as they are
            assert not any(each.is_floating_point for each in dtypes), name
            assert not {torch.uint16, torch.uint32, torch.uint64}.intersection(dtypes), name


def test_no_weights_come_to_the_host(material: Material, quick: Device) -> None:
    """Tasks are put on, switched, and taken off."""
    model = model_of(material.base)
    digests = (torch.uint8, 32 * len(SIZES))
    with Stack(model, threads=1, on_device=True) as stack:
        for name, delta, target in zip("xy", material.deltas, material.targets, strict=True):
            quick.to_host.clear()
            stack.add(name, delta, verify="full")
            assert same(held(model), target)
            stack.disable(name)
            assert same(held(model), material.base)
            stack.enable(name)
            assert same(held(model), target)
            stack.remove(name)
            assert quick.to_host == [digests] * 2
    assert same(held(model), material.base)


def test_where_deltas_meet_entries_come_to_the_host(material: Material, quick: Device) -> None:
    """To be added up there: indices of both, base words and words, once; the sum is as ever."""
    model, there = model_of(material.base), nn.ParameterDict(material.base)
    quick.to_host.clear()
    stacks = [Stack(each, threads=1, on_device=each is model) for each in (model, there)]
    for stack in stacks:
        for name, delta in zip("xy", material.deltas, strict=True):
            stack.add(name, delta)
        stack.set_weights({"x": 0.5})
    nnz, nbytes = sum(stacks[0].nnz.values()), 0
    for dtype, size in quick.to_host:
        nbytes += 0 if dtype == torch.uint8 else size
    assert 8 * nnz <= nbytes < 8 * nnz + 4 * 2 * 2000
    assert stacks[0].nnz == stacks[1].nnz
    assert same(held(model), {name: each.data for name, each in there.items()})
    for stack in stacks:
        stack.close()
    assert same(held(model), material.base)


def test_what_is_switched_off_waits_on_the_host(material: Material, quick: Device) -> None:
    """And takes no memory of the device."""
    model = model_of(material.base)
    with Stack(model, threads=1, on_device=True) as stack:
        stack.add("x", material.deltas[0], enabled=False)
        once = stack.nbytes
        assert same(held(model), material.base)
        stack.enable("x")
        assert same(held(model), material.targets[0])
        stack.disable("x")
        assert stack.nbytes == 2 * once
        stack.add("y", material.deltas[0], 0)
        assert stack.nbytes == 3 * once
    assert quick.ran


def test_another_base_is_refused_as_on_the_host(
    material: Material, quick: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same words, and nothing is written or decoded on it: wherever one bit differs."""
    decoded_on: list[torch.Tensor] = []

    def decode(stored: RankedOnHost, base: There) -> object:
        decoded_on.append(base.words.clone())
        return decode_on_device(stored, base)

    monkeypatch.setattr("sparsedelta.operations.live_device.decode_on_device", decode)
    known = [
        each.view(-1).view(torch.int16)
        for each in material.base.values()
        if each.element_size() == 2
    ]
    for name in SIZES:
        wrong = {**material.base, name: material.base[name].clone()}
        wrong[name].view(-1).view(WORDS[wrong[name].element_size()])[-1] ^= 4
        told = []
        for model in (nn.ParameterDict(wrong), model_of(wrong)):
            is_there = not isinstance(model, nn.ParameterDict)
            with (
                Stack(model, threads=1, on_device=is_there) as stack,
                pytest.raises(WrongBaseError) as caught,
            ):
                stack.add("x", material.deltas[0], verify="full")
            told.append(str(caught.value))
        assert told[0] == told[1]
        assert repr(name) in told[0]
        assert same(held(model), wrong)
    assert decoded_on
    for words in decoded_on:
        assert any(torch.equal(words, each) for each in known)


def test_words_are_verified_anew_for_each_delta(material: Material, quick: Device) -> None:
    """Though they were those of the base before: somebody may have written to them since."""
    model = model_of(material.base)
    with Stack(model, threads=1, on_device=True) as stack:
        stack.add("x", material.deltas[0])
        words = held(model)["b"].view(torch.int16)
        changed = material.targets[0]["b"].view(torch.int16) != material.base["b"].view(torch.int16)
        free = int((~changed).nonzero()[0])
        words[free] ^= 1
        with pytest.raises(WrongBaseError, match="'b' differs there"):
            stack.add("y", material.deltas[1])
        words[free] ^= 1
        stack.add("y", material.deltas[1])
    assert same(held(model), material.base)
    assert quick.ran


def test_a_delta_that_lies_is_refused_as_on_the_host(
    material: Material, quick: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made of the words has another digest: SD502, told by the host."""
    from sparsedelta.operations.tasks import DeltaTask  # noqa: PLC0415

    entries = DeltaTask.entries

    def lying(task: DeltaTask, *arguments: object) -> object:
        at, words = entries(task, *arguments)  # type: ignore[arg-type]
        return at, words ^ 1

    def lying_there(*arguments: object) -> object:
        at, words = decode_on_device(*arguments)  # type: ignore[arg-type]
        return at, words ^ 1

    monkeypatch.setattr(DeltaTask, "entries", lying)
    monkeypatch.setattr("sparsedelta.operations.live_device.decode_on_device", lying_there)
    model = model_of(material.base)
    with (
        Stack(model, threads=1, on_device=True) as stack,
        pytest.raises(VerificationError, match="SD502"),
    ):
        stack.add("x", material.deltas[0])
    assert same(held(model), material.base)
    assert quick.to_host


def test_damage_is_told_as_on_the_host(material: Material, quick: Device, tmp_path: Path) -> None:
    """A stream that has changed on its way: the same rule, tensor and block."""
    data = bytearray(material.deltas[0].read_bytes())
    data[-1000] ^= 1
    broken = tmp_path / "broken"
    broken.write_bytes(data)
    told = []
    for model in (nn.ParameterDict(material.base), model_of(material.base)):
        is_there = not isinstance(model, nn.ParameterDict)
        with (
            Stack(model, threads=1, on_device=is_there) as stack,
            pytest.raises(FormatError) as caught,
        ):
            stack.add("x", broken)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "SD401" in told[0]
    assert same(held(model), material.base)
    assert quick.to_host


@pytest.mark.parametrize("lacking", [torch.OutOfMemoryError, NotImplementedError, RuntimeError])
def test_where_a_device_cannot_the_host_does(
    material: Material,
    quick: Device,
    monkeypatch: pytest.MonkeyPatch,
    lacking: type[Exception],
) -> None:
    """No room, or no such operation: slower, and the same."""

    def unable(*_: object) -> object:
        raise lacking

    monkeypatch.setattr("sparsedelta.operations.device_runs.digest_segments", unable)
    model = model_of(material.base)
    weights = sum(each.numel() * each.element_size() for each in material.base.values())
    with Stack(model, threads=1, on_device=True) as stack:
        quick.to_host.clear()
        stack.add("x", material.deltas[0], verify="full")
        assert same(held(model), material.targets[0])
        assert sum(size for _, size in quick.to_host) == weights


def test_batches_are_as_large_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of what is free, within bounds."""
    card = torch.device("cuda", 3)
    for free, expected in ((0, 1 << 26), (1 << 32, 1 << 29), (1 << 40, 1 << 30)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 1 << 41))
        assert live_device._batch_bytes(card) == expected  # noqa: SLF001
    assert live_device._batch_bytes(DEVICE) == 1 << 30  # noqa: SLF001


def copied(model: nn.Module) -> Tensors:
    """What a model holds now."""
    return {name: each.clone() for name, each in model.named_buffers()}


@pytest.mark.real
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_real_weights(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways hold the same words, whatever is put on, weighed and taken off."""
    base = {
        name: each.to(dtype).clone()
        for name, each in load_file(minilm() / "model.safetensors").items()
        if each.is_floating_point() and ("layer.0." in name or "embeddings.p" in name)
    }
    save_file(base, tmp_path / "base")
    deltas = []
    for seed in (1, 2):
        chance = torch.Generator().manual_seed(seed)
        target = {}
        for name, each in base.items():
            # The smaller a weight, the more often a step shows in it.
            share = 2e-4 / each.float().abs().clamp(min=1e-3)
            words = each.clone().view(torch.int16)
            marks = torch.rand(each.shape, generator=chance) < share
            words[marks] += torch.randint(1, 4, each.shape, generator=chance).short()[marks]
            target[name] = words.view(dtype)
        save_file(target, tmp_path / "target")
        deltas.append(tmp_path / f"delta{seed}")
        sparsedelta.diff(tmp_path / "base", tmp_path / "target", deltas[-1], profile="compact")
    held_so: list[list[Tensors]] = []
    for on_device in (False, True):
        model = nn.Module()
        names = {name: name.replace(".", "_") for name in base}
        for name, own in names.items():
            model.register_buffer(own, base[name].clone())
        states: list[Tensors] = []
        with Stack(model, names=names, on_device=on_device) as stack:
            stack.add("x", deltas[0], verify="full")
            states.append(copied(model))
            stack.add("y", deltas[1])
            states.append(copied(model))
            stack.set_weights({"y": 0.5})
            states.append(copied(model))
            stack.remove("x")
            states.append(copied(model))
        states.append(copied(model))
        held_so.append(states)
    for one, other in zip(*held_so, strict=True):
        assert same(one, other)
    assert same(held_so[1][-1], {names[name]: each for name, each in base.items()})
    assert not same(held_so[1][0], held_so[1][-1])
