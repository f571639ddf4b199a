"""What one rank does in the tests of a stack on a sharded model: run as a script, with a folder."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import sparsedelta
from sparsedelta import RankError, SparseDeltaError, Stack, WrongBaseError
from sparsedelta.live_entries import Patch

Tensors = dict[str, torch.Tensor]


def model_of() -> nn.Sequential:
    """Rows that two ranks do not divide evenly; one tensor with fewer rows than ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 25), nn.ReLU(), nn.Linear(25, 9), nn.Linear(9, 1))
    return model.bfloat16()


def whole(model: nn.Module) -> Tensors:
    """All of its tensors, gathered."""
    found = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found[name] = full.detach().clone()
    return found


def same(one: Tensors, other: Tensors) -> bool:
    """Whether all words are equal."""
    return one.keys() == other.keys() and all(
        torch.equal(tensor.view(torch.int16), other[name].view(torch.int16))
        for name, tensor in one.items()
    )


def write(folder: Path, base: Tensors) -> None:
    """Two deltas, and what they make together."""
    save_file(base, folder / "base")
    for number in range(2):
        chance = torch.Generator().manual_seed(number)
        target = {}
        for name, each in base.items():
            mask = torch.rand(each.shape, generator=chance) < 0.3
            target[name] = torch.where(mask, each * 1.5 + 1, each)
        save_file(target, folder / f"t{number}")
        sparsedelta.diff(folder / "base", folder / f"t{number}", folder / f"d{number}")
    deltas = [folder / "d0", folder / "d1"]
    sparsedelta.apply_stack(folder / "base", deltas, folder / "both", weights=[1, 0.5])


def main() -> None:
    """One rank."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    plain = model_of()
    base = {name: each.detach().clone() for name, each in plain.state_dict().items()}
    if rank == 0:
        write(folder, base)
    dist.barrier()
    gathered(folder, base)
    placed(folder, base)
    compact(folder, rank)
    dist.destroy_process_group()


def gathered(folder: Path, base: Tensors) -> None:
    """A model of FSDP2."""
    rank = dist.get_rank()
    both, first = load_file(folder / "both"), load_file(folder / "t0")
    inputs = torch.ones(2, 16, dtype=torch.bfloat16)
    expected = torch.func.functional_call(model_of(), both, inputs)

    model = model_of()
    fully_shard(model[0])
    fully_shard(model)
    stack = Stack(model)
    stack.add("one", folder / "d0", verify="full")
    assert same(whole(model), first)
    model(inputs)  # the root stays gathered afterwards
    stack.add("two", folder / "d1", 0.5)
    held = sum(stack.nnz.values())
    assert 0 < held < sum(sparsedelta.info(folder / f"d{n}").nnz for n in range(2))
    assert same(whole(model), both)
    assert torch.equal(model(inputs), expected)
    with stack.using("one"):
        assert same(whole(model), first)
    assert same(whole(model), both)

    # A rank that cannot write, and all of them have what was there.
    put = Patch.put

    def failing(patch: Patch, tensor: torch.Tensor) -> None:
        put(patch, tensor)
        setattr(Patch, "put", put)  # noqa: B010 (a method)
        raise MemoryError("boom")

    if rank == 1:
        setattr(Patch, "put", failing)  # noqa: B010 (a method)
    with pytest.raises(MemoryError if rank == 1 else RankError, match="boom"):
        stack.disable("one")
    assert same(whole(model), both)
    assert stack.active == {"one": 1, "two": 0.5}

    # A base that differs on one rank alone.
    stack.remove("one", "two")
    assert same(whole(model), base)
    with torch.no_grad():
        weight = model.state_dict()["2.weight"]
        assert isinstance(weight, DTensor)
        local = weight.to_local()
        if rank == 1:
            local[0, 0] += 1
    with pytest.raises(SparseDeltaError, match=r"'2\.weight' differs") as caught:
        stack.add("one", folder / "d0")
    assert isinstance(caught.value, WrongBaseError | RankError)
    stack.close()


def placed(folder: Path, base: Tensors) -> None:
    """Shards of columns, beside plain tensors, in a model that nobody wrapped."""
    both = load_file(folder / "both")
    mesh = init_device_mesh("cpu", (2,))
    columns = model_of()
    for module, name in ((columns[0], "weight"), (columns[2], "weight"), (columns[2], "bias")):
        tensor = getattr(module, name).detach()
        shard = distribute_tensor(tensor, mesh, [Shard(tensor.dim() - 1)], src_data_rank=None)
        setattr(module, name, nn.Parameter(shard))
    with Stack(columns) as other:
        other.add("one", folder / "d0")
        other.add("two", folder / "d1", 0.5)
        assert same(whole(columns), both)
    assert same(whole(columns), base)


def compact(folder: Path, rank: int) -> None:
    """Deltas that are decoded with base words around a shard, of more than one segment."""
    chance = torch.Generator().manual_seed(7)
    base = {
        "long.weight": torch.randn(1037, 4099, generator=chance).bfloat16() / 8,
        "short.weight": torch.randn(61, 1037, generator=chance).bfloat16() / 8,
    }
    target = {n: t + (torch.rand(t.shape, generator=chance) < 0.05) / 64 for n, t in base.items()}
    target = {name: each.bfloat16() for name, each in target.items()}
    delta, portable = folder / "ranked", folder / "listed"
    if rank == 0:
        save_file(base, folder / "wide")
        save_file(target, folder / "moved")
        for out, profile in ((delta, "compact"), (portable, "portable")):
            sparsedelta.diff(folder / "wide", folder / "moved", out, profile=profile)
        assert sparsedelta.info(delta).needs_base == len(base)
        sparsedelta.apply_stack(folder / "wide", [delta], folder / "half", weights=[0.5])
    dist.barrier()
    half = load_file(folder / "half")
    mesh = init_device_mesh("cpu", (2,))
    for placement in (None, Shard(0), Shard(1)):
        layers = {"long": (4099, 1037), "short": (1037, 61)}
        model = nn.Sequential(
            OrderedDict((name, nn.Linear(*size, bias=False)) for name, size in layers.items())
        ).bfloat16()
        model.load_state_dict(base)
        if placement is None:
            fully_shard(model)
        else:
            weight = distribute_tensor(base["long.weight"], mesh, [placement], src_data_rank=None)
            model.get_submodule("long").weight = nn.Parameter(
                weight
            )  # the other one is whole on both
        stack = Stack(model)
        stack.add("first", portable, enabled=False)
        counted = stack.nnz["first"]
        stack.add("ranked", delta)
        assert stack.nnz["ranked"] == counted > 0
        assert same(whole(model), target)
        stack.remove("first")
        stack.set_weights({"ranked": 0.5})
        assert same(whole(model), half)
        stack.add("again", delta, 0)  # with what the first one changed taken back
        stack.close()
        assert same(whole(model), base)
        spoilt(model, delta, rank)


def spoilt(model: nn.Module, delta: Path, rank: int) -> None:
    """One word that one rank holds differs, in a segment that both decode with, or one of them."""
    for row in (0, -1):
        tensor = model.state_dict()["long.weight"]
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        before = local.clone()
        if rank == -row:
            with torch.no_grad():
                local[row, -1] += 1
        found = whole(model)
        stack = Stack(model)
        with pytest.raises(SparseDeltaError, match=r"'long\.weight' differs") as caught:
            stack.add("ranked", delta, verify="full")
        assert isinstance(caught.value, WrongBaseError | RankError)
        assert same(whole(model), found)
        assert not stack.nnz
        with torch.no_grad():
            local.copy_(before)
        dist.barrier()


if __name__ == "__main__":
    main()
