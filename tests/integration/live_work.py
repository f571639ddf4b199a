"""What one rank does in the tests of live, sharded models: run as a script, with a folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

import sparsedelta
from sparsedelta import CheckpointError, RankError, Snapshot, StructureError, local_shards
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.shard_exchange import ShardExchange
from sparsedelta.sharded_reader import ShardedReader

Tensors = dict[str, torch.Tensor]
Places = dict[str, tuple[DeviceMesh, Sequence[Placement]]]


def whole(step: int) -> Tensors:
    """Tensors of many kinds, the same on all ranks; each step moves some words of most of them."""
    first = torch.Generator().manual_seed(0)
    bf16, f32 = torch.bfloat16, torch.float32
    kinds = {
        "rows": ((50, 70), bf16),
        "few_rows": ((3, 5), f32),  # fewer than four ranks
        "columns": ((33, 17, 9), bf16),
        "last": ((12, 6, 10), f32),
        "large": ((1100, 4000), bf16),  # more than a segment
        "large_rows": ((4000, 1100), bf16),
        "replicated": ((8, 16), f32),
        "hybrid": ((11, 6), f32),
        "grid": ((11, 13), bf16),
        "twice": ((9, 4), bf16),
        "plain": ((1000,), f32),
        "none": ((0, 4), f32),
        "bytes": ((64, 3), torch.float8_e4m3fn),
        "still": ((40, 40), bf16),
    }
    tensors = {
        name: torch.randn(shape, generator=first).to(dtype)
        for name, (shape, dtype) in kinds.items()
    }
    tensors |= {"scalar": torch.tensor(1.5), "local": torch.randn(6, 8, generator=first)}
    if step:
        moving = torch.Generator().manual_seed(step)
        for name, tensor in tensors.items():
            if name != "still":
                moved = torch.rand(tensor.shape, generator=moving) < 0.02
                tensors[name] = torch.where(moved, -tensor.float(), tensor.float()).to(tensor.dtype)
    tensors["tied"] = tensors["rows"]
    return tensors


def places(size: int) -> Places:
    """How the tensors lie on one-dimensional and two-dimensional meshes."""
    line = init_device_mesh("cpu", (size,))
    grid = init_device_mesh("cpu", (2, size // 2))
    return {
        "rows": (line, [Shard(0)]),
        "few_rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "last": (line, [Shard(-1)]),
        "large": (line, [Shard(1)]),
        "large_rows": (line, [Shard(0)]),
        "replicated": (line, [Replicate()]),
        "hybrid": (grid, [Replicate(), Shard(0)]),
        "grid": (grid, [Shard(0), Shard(1)]),
        "twice": (grid, [Shard(0), Shard(0)]),
        "none": (line, [Shard(0)]),
        "bytes": (line, [Shard(0)]),
        "still": (line, [Shard(0)]),
        "scalar": (line, [Replicate()]),
        "local": (line, [Shard(0)]),
    }


def sharded(tensors: Tensors, where: Places) -> Tensors:
    """The tensors as DTensors, of tied ones the same; one has a local shard of other strides."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name == "tied":
            found[name] = found["rows"]
        elif name in where:
            mesh, placements = where[name]
            found[name] = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
        else:
            found[name] = tensor
    mesh, placements = where["local"]
    local = found["local"].to_local()  # type: ignore[attr-defined]
    strided = torch.empty(local.shape[::-1]).t().copy_(local)
    assert local.shape[0] < 2 or not strided.is_contiguous()
    shape = tensors["local"].shape
    found["local"] = DTensor.from_local(
        strided, mesh, placements, run_check=False, shape=shape, stride=tensors["local"].stride()
    )
    return found


class Spy:
    """What travels and what is put together at a time, in bytes of one rank."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.exchanges: list[ShardExchange] = []
        self.words = 0
        make, read = ShardExchange.__init__, ShardedReader.read

        def made(exchange: ShardExchange, *arguments: object) -> None:
            make(exchange, *arguments)  # type: ignore[arg-type]
            self.exchanges.append(exchange)

        def watched(reader: ShardedReader, name: str, start: int, stop: int) -> object:
            self.words = max(self.words, stop - start)
            return read(reader, name, start, stop)

        patch.setattr(ShardExchange, "__init__", made)
        patch.setattr(ShardedReader, "read", watched)
        # A shard that became whole on a rank would have to go through these.
        for name in ("full_tensor", "redistribute"):
            patch.setattr(DTensor, name, refuse)


def refuse(*_: object, **__: object) -> None:
    """Nothing may call this."""
    raise AssertionError("a tensor was gathered")


def kinds(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every placement, from plain states and from snapshots in memory and on disk."""
    rank, size = dist.get_rank(), dist.get_world_size()
    where = places(size)
    states = [whole(step) for step in range(3)]
    live = [sharded(state, where) for state in states]
    if rank == 0:
        for step, state in enumerate(states):
            separate = {name: tensor.clone() for name, tensor in state.items()}
            save_file(separate, folder / f"{step}.safetensors")
    spy = Spy(patch)
    many = folder / "many"
    report = sparsedelta.diff_state_dict(live[0], live[1], many / "d01")
    assert report.manifest.nnz
    assert report.checkpoint_bytes == sum(tensor.nbytes for tensor in states[1].values())
    # In one message there is at most a segment, new and as much of it old as differs.
    exchange = spy.exchanges[-1]
    assert 0 < exchange.largest <= 2 * SEGMENT_WORDS * 2
    assert exchange.received < 1.3 * report.checkpoint_bytes
    assert spy.words <= SEGMENT_WORDS
    with Snapshot(live[0]) as memory, Snapshot(live[0], directory=folder / "words") as disk:
        sparsedelta.diff_state_dict(memory, live[1], many / "m01", shards=5, threads=3)
        memory.update(live[1])
        disk.update(live[1])
        sparsedelta.diff_state_dict(disk, live[2], many / "d12", one_way=True, lean=True)
        sparsedelta.diff_state_dict(memory, live[2], many / "m12", threads=1)
        assert not sparsedelta.diff_state_dict(memory, disk, many / "same").manifest.nnz
    # Ends of other placements, and names that one end lacks.
    other: Tensors = dict(live[1])
    mesh, _ = where["rows"]
    other["columns"] = distribute_tensor(states[1]["columns"], mesh, [Shard(0)])
    other["renamed"] = other.pop("large")
    del other["grid"]
    sparsedelta.diff_state_dict(live[0], other, many / "other", force=True)
    # Plain tensors are compared by whoever calls, unless a group is named.
    if rank == 0:
        sparsedelta.diff_state_dict(states[0], states[1], many / "plain")
    sparsedelta.diff_state_dict(states[0], states[1], many / "group", group=dist.group.WORLD)


def refusals(folder: Path) -> None:
    """What cannot be compared ends all ranks alike; what one cannot, it says to the others."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    out = folder / "many" / "never"
    good = {f"v{n}": distribute_tensor(torch.zeros(8, 4), mesh, [Shard(0)]) for n in range(size)}
    partial = {"w": DTensor.from_local(torch.zeros(8, 4), mesh, [Partial()])}
    with pytest.raises(CheckpointError, match=r"'w' is placed as Partial.*dimension 0"):
        sparsedelta.diff_state_dict(good, partial, out)
    expected: type[Exception] = StructureError if rank == 0 else RankError
    lacking = {"w": torch.zeros(8 + rank, 4), "v": good["v0"]}
    with pytest.raises(expected, match=r"'w' is F32.*on rank 1"):
        sparsedelta.diff_state_dict(lacking, lacking, out)

    def fail(done: int, total: int) -> None:
        if rank == size - 1:
            raise ValueError("boom")

    expected = ValueError if rank == size - 1 else RankError
    with pytest.raises(expected, match="boom"):
        sparsedelta.diff_state_dict(good, good, out, progress=fail)

    # A shard that cannot be read, by the rank that has it: whoever asks for it must not wait.
    def broken(*arguments: object) -> object:
        shards = local_shards.shards_of(*arguments)  # type: ignore[arg-type]
        if rank == size - 1:
            shards.reader.read = refuse  # type: ignore[assignment, method-assign]
        return shards

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsedelta.operations.live_diff.shards_of", broken)
        with pytest.raises((CheckpointError, RankError, AssertionError), match=r"rank|gathered"):
            sparsedelta.diff_state_dict(good, good, out)
    # A failure does not spoil the next diff.
    assert not sparsedelta.diff_state_dict(good, good, folder / "many" / "after").manifest.nnz


def fsdp(folder: Path) -> None:
    """Real weights under FSDP2: two optimizer steps, each with its delta, as a loop of RL does."""
    size = dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384), nn.LayerNorm(384))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.bfloat16()
    mesh = init_device_mesh("cpu", (size,))
    if size > 2:  # replicas of shards
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with Snapshot(model.state_dict()) as snapshot:
        for step in range(2):
            model(torch.randn(4, 384, dtype=torch.bfloat16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            sparsedelta.diff_state_dict(snapshot, model.state_dict(), folder / "many" / f"s{step}")
            snapshot.update(model.state_dict())
    full = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    if dist.get_rank() == 0:
        save_file(full, folder / "trained.safetensors")


def killed(folder: Path) -> None:
    """One rank is killed while the others wait for words of it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = {
        f"v{n}": distribute_tensor(torch.zeros(9, 4), mesh, [Shard(0)], src_data_rank=None)
        for n in range(20)
    }

    def kill(*_: object) -> None:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sparsedelta.diff_state_dict(model, model, folder / "d", progress=kill)
    except RankError as error:
        print(error)  # noqa: T201 (what the test looks for)


def main(folder: Path) -> None:
    """All of it, in one start of the processes."""
    dist.init_process_group("gloo")
    if len(sys.argv) > 2:
        killed(folder)
        return
    tasks: list[Callable[[], None]] = [lambda: refusals(folder), lambda: fsdp(folder)]
    for task in tasks:
        task()
        dist.barrier()
    with pytest.MonkeyPatch.context() as patch:
        kinds(folder, patch)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
