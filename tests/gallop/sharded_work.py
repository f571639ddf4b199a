"""What one rank does in the tests of sharded models: run as a script, with a folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from sharded_models import Linear, scaled_loss, shard, whole_weights
from tiny_models import backward, same_bits, tiny_model, token_batches, token_loss
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import gallop
import sparsedelta
from gallop import GallopConfig, Mask, SparseAdamW
from gallop.collectives import Peers
from gallop.errors import MaskError, OptimizerError, OutsideMaskError, SelectionError
from gallop.gradients import mean_gradient
from gallop.mask_slices import whole_digest
from gallop.memory import MemoryMode
from gallop.targets import eligible_targets
from sparsedelta.errors import OutputError, RankError

_Value = TypeVar("_Value")


def one_process(task: Callable[[], _Value]) -> _Value:
    """Run something as if there were no other process: as the reference of the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gallop.collectives.world_size", lambda: 1)
        return task()


def scales(size: int) -> list[torch.Tensor]:
    """One batch per rank and step; their mean over 2 or 4 ranks is exact."""
    return [torch.tensor([float(n % 3 + 1)]) for n in range(3 * size)]


def meshes_of(size: int) -> list[DeviceMesh]:
    """One row of ranks, and replicas of shards."""
    row = init_device_mesh("cpu", (size,))
    if size < 4:
        return [row]
    return [row, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))]


def selection(folder: Path) -> None:
    """With exact gradients the mask is that of one process, ties and all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    batches = scales(size)
    whole, peers = Linear(), Peers()
    meshes = meshes_of(size)
    configs = [GallopConfig(density) for density in (0.03, 0.2, 0.37, 0.9)]
    configs += [
        GallopConfig(0.3, threshold_scope="per_tensor"),
        GallopConfig(0.3, exclude_zeros=True),
        GallopConfig(0.3, selector="random", seed=3),
        GallopConfig(0.25, selector="magnitude-low"),
        GallopConfig(0.3, threshold_scope="sampled_global", sample_size=60),
    ]
    for number, config in enumerate(configs):
        expected = one_process(partial(gallop.select, whole, batches, config, scaled_loss))
        for mesh in meshes[: 1 + (number < 5)]:
            model = shard(Linear(), mesh=mesh)
            mode: MemoryMode = "grouped" if number == 1 else "auto"
            mask = gallop.select(model, batches[rank::size], config, scaled_loss, memory=mode)
            assert whole_digest(mask, peers) == (expected.digest, expected.nnz), config
            found = gallop.gather_mask(model, mask)
            assert (found is None) == bool(rank)
            if found is not None:
                assert found == expected
            assert mask.report is not None
            assert expected.report is not None
            ours, theirs = mask.report.to_dict(), expected.report.to_dict()
            odd = {key for key, value in ours.items() if value != theirs[key]}
            assert odd <= {"memory"}, (config, {key: (ours[key], theirs[key]) for key in odd})


def trained(
    model: nn.Module,
    mask: Mask,
    steps: list[torch.Tensor],
) -> SparseAdamW:
    """Take steps of the optimizer, the gradient of each being exact, and leave it open."""
    optimizer = SparseAdamW(model, mask, lr=0.03, weight_decay=0.1)
    for scale in steps:
        backward(scaled_loss(model, scale))
        optimizer.step()
    return optimizer


def same_weights(model: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    """Compare bit patterns with whole weights; collective."""
    found = whole_weights(model)
    return found.keys() == expected.keys() and all(
        same_bits(found[name], expected[name]) for name in found
    )


def optimizer(folder: Path) -> None:
    """Given equal gradients, the weights are those of one process, bit for bit."""
    rank, size = dist.get_rank(), dist.get_world_size()
    meshes = meshes_of(size)
    config = GallopConfig(0.3)
    mask = one_process(lambda: gallop.select(Linear(), scales(1), config, scaled_loss))
    # Every rank has another batch; the mean of their gradients is that of the middle one.
    means = [torch.tensor([float(n)]) for n in (4, -3, 2, 5, -1, 3)]
    mine = [mean + (rank - (size - 1) / 2) for mean in means]
    for dtype in (torch.float32, torch.bfloat16):
        whole = Linear().to(dtype)
        with one_process(partial(trained, whole, mask, means[:4])) as reference:
            halfway = whole_weights(whole)
            for scale in means[4:]:
                backward(scaled_loss(whole, scale))
                reference.step()
        for mesh in meshes:
            model = shard(Linear().to(dtype), mesh=mesh)
            with trained(model, mask, mine[:4]) as ours:
                assert all(p.grad is None for p in model.parameters())
                assert same_weights(model, halfway)
                held = sum(each.state["master"].numel() for each in ours.entries)
                assert held <= 0.75 * mask.nnz
                # Saving in the middle, in every way that there is, changes nothing.
                get_optimizer_state_dict(model, ours)
                get_model_state_dict(model)
                ours.step()
                name = f"{size}-{str(dtype)[6:]}"
                gallop.save_state(ours, folder / name, force=True)
                for scale in mine[4:]:
                    backward(scaled_loss(model, scale))
                    ours.step()
                assert same_weights(model, whole_weights(whole))
        # A slice is as good as the whole, and any number of ranks goes on with what another saved.
        for path in sorted(folder.glob(f"*-{str(dtype)[6:]}")):
            model = shard(Linear().to(dtype))
            slices = gallop.select(model, scales(size)[rank::size], config, scaled_loss)
            with SparseAdamW(model, slices, lr=1.0, weight_decay=0.3) as ours:
                gallop.load_state(ours, path)
                assert same_weights(model, halfway)
                for scale in mine[4:]:
                    backward(scaled_loss(model, scale))
                    ours.step()
            assert same_weights(model, whole_weights(whole)), path


def accumulation(folder: Path) -> None:
    """Reducing at every micro-batch, or at the last: the same sums, where they are exact."""
    del folder
    rank, size = dist.get_rank(), dist.get_world_size()
    mask = one_process(lambda: gallop.select(Linear(), scales(1), GallopConfig(0.4), scaled_loss))
    whole = Linear()
    with one_process(lambda: SparseAdamW(whole, mask, max_grad_norm=0.5)) as reference:
        for mean in (6.0, 2.0):
            backward(scaled_loss(whole, torch.tensor([mean])))
            reference.step()
    expected = whole_weights(whole)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for at_once in (False, True):
        for options in ({}, {"mp_policy": policy}):
            model = shard(Linear(), **options)
            with SparseAdamW(model, mask, max_grad_norm=0.5) as ours:
                for mean in (6.0, 2.0):
                    for half in (0, 1):
                        if at_once:
                            model.set_requires_gradient_sync(bool(half))
                        offset = rank - (size - 1) / 2
                        backward(scaled_loss(model, torch.tensor([mean / 2 + offset])))
                    foreseen = float(ours.gradient_norm())
                    ours.step()
                    assert foreseen == ours.last_grad_norm
                assert ours.last_grad_norm == pytest.approx(reference.last_grad_norm, rel=1e-6)
                norms = Peers().gather(ours.last_grad_norm)
                assert len(set(norms)) == 1
            for name, tensor in whole_weights(model).items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def real_gradients(folder: Path) -> None:
    """On real gradients, what differs from one process lies within rounding of the threshold."""
    del folder
    rank, size = dist.get_rank(), dist.get_world_size()
    batches = token_batches(2 * size)
    whole = tiny_model()
    config = GallopConfig(0.1)
    expected = one_process(lambda: gallop.select(whole, batches, config, token_loss))
    model = tiny_model()
    for block in (model.mix, model.up, model.down):
        fully_shard(block)
    fully_shard(model)
    mask = gallop.select(model, batches[rank::size], config, token_loss)
    found = gallop.gather_mask(model, mask)
    if found is None:
        return
    targets = eligible_targets(whole, config)
    mean = mean_gradient(whole, targets, batches=batches, config=config, loss_fn=token_loss)
    assert expected.report is not None
    threshold = expected.report.threshold
    assert threshold is not None
    differing = 0
    for name in {*expected, *found}:
        none = np.empty(0, np.int64)
        odd = np.setxor1d(expected.get(name, none), found.get(name, none))
        weight = dict(whole.named_parameters())[name].detach().view(-1)[odd]
        scores = mean.tensors[name][odd].abs() / (weight.abs() + config.eps)
        assert ((scores / threshold - 1).abs() < 1e-4).all(), (name, scores, threshold)
        differing += len(odd)
    assert found.nnz == expected.nnz
    assert differing <= 4, f"{differing} of {expected.nnz} entries"
    print(f"{differing} of {expected.nnz} entries differ on real gradients")  # noqa: T201


def export(folder: Path) -> None:
    """The delta of a sharded model is that of one process, and no tensor was gathered."""
    rank, size = dist.get_rank(), dist.get_world_size()
    base, config = folder / f"base{size}.safetensors", GallopConfig(0.3)
    whole = Linear().to(torch.bfloat16)
    if rank == 0:
        save_file(whole.state_dict(), base)
    dist.barrier()
    expected = None
    mask = one_process(lambda: gallop.select(whole, scales(1), config, scaled_loss))
    with one_process(lambda: trained(whole, mask, scales(1))):
        pass
    if rank == 0:
        single = folder / f"single{size}"
        expected = one_process(lambda: gallop.export(whole, mask, base=base, out=single))
    for mesh in meshes_of(size):
        model = shard(Linear().to(torch.bfloat16), mesh=mesh)
        slices = gallop.select(model, [torch.full((1,), 2.0)] * 3, config, scaled_loss)
        with trained(model, slices, scales(1)):
            pass
        out = folder / f"sharded{size}"
        with pytest.MonkeyPatch.context() as patch:
            for name in ("full_tensor", "redistribute"):
                patch.setattr(DTensor, name, fail)
            report = gallop.export(model, slices, base=base, out=out, force=True)
        assert (report.nnz, report.moved > 0) == (mask.nnz, True)
        if expected is not None:
            assert report.moved == expected.moved
            assert report.diff.manifest.content == expected.diff.manifest.content
            assert report.diff.manifest.target == expected.diff.manifest.target
            written = sparsedelta.info(out).metadata
            assert written["gallop.mask.digest"] == mask.digest
            assert written["gallop.mask.nnz"] == str(mask.nnz)
    # A weight outside the mask, in the shard of one rank: all ranks refuse.
    with torch.no_grad():
        local = model.terms["rows"].weight.to_local()
        if rank == 0:
            outside = np.setdiff1d(np.arange(local.numel()), slices["terms.rows.weight"])
            local.view(-1)[int(outside[0])] += 1
    with pytest.raises(
        (OutsideMaskError, RankError), match=r"terms\.rows\.weight: expected changes at"
    ):
        gallop.export(model, slices, base=base, out=folder / "never")
    assert not list(folder.glob("never*"))


def refusals(folder: Path) -> None:
    """What would silently go wrong is an error, on every rank alike."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mask = one_process(lambda: gallop.select(Linear(), scales(1), GallopConfig(0.4), scaled_loss))
    # Made before the model is sharded.
    model: Any = Linear()
    early = SparseAdamW(model, mask, data_parallel=True)
    shard(model)
    backward(scaled_loss(model, torch.ones(1)))
    with pytest.raises(OptimizerError, match="create the optimizer after"):
        early.step()
    # One rank has a batch less, or fails.
    model = shard(Linear())
    batches = scales(size)[rank::size]
    with pytest.raises(SelectionError, match=r"as many batches on every rank, found none on \[1\]"):
        gallop.select(model, batches[: 2 if rank == 1 else 3], GallopConfig(0.4), scaled_loss)
    bad = [torch.full((1,), torch.nan)] if rank == 1 else [torch.ones(1)]
    expected = SelectionError if rank == 1 else RankError
    with pytest.raises(expected, match="expected a finite loss, found nan"):
        gallop.select(model, bad, GallopConfig(0.4), scaled_loss)
    # Slices of another sharding.
    model = shard(Linear())
    name = next(iter(mask))
    odd = Mask({name: mask[name][rank:]}, mask.shapes)
    with pytest.raises(MaskError, match="expected the whole mask on every rank"):
        SparseAdamW(model, odd)
    # States of other masks, half copied or half written.
    state = folder / f"refused{size}"
    with SparseAdamW(model, mask) as ours:
        gallop.save_state(ours, state)
        with pytest.raises((OutputError, RankError), match="exists"):
            gallop.save_state(ours, state)
        with pytest.raises((OptimizerError, RankError), match="expected a folder with the state"):
            gallop.load_state(ours, folder / "nothing")
        dist.barrier()
        if rank == 0:
            (state / f"state-00002-of-0000{size}.safetensors").unlink()
        dist.barrier()
        with pytest.raises(OptimizerError, match="state-00002-of"):
            gallop.load_state(ours, state)
        with pytest.MonkeyPatch.context() as patch:
            if rank == size - 1:
                patch.setattr("gallop.sharded_state.save_file", fail)
            with pytest.raises((ValueError, RankError), match="no space"):
                gallop.save_state(ours, folder / "half")
        assert not (folder / "half").exists()
    other = Mask({name: mask[name][:3]}, mask.shapes)
    if rank == 0:
        shutil.rmtree(state)
    dist.barrier()
    with SparseAdamW(model, other) as ours:
        gallop.save_state(ours, state)
    with (
        SparseAdamW(model, mask) as ours,
        pytest.raises(OptimizerError, match="expected the state of the mask"),
    ):
        gallop.load_state(ours, state)


def fail(*_: object) -> None:
    """A disk that is full."""
    raise ValueError("no space")


def main(folder: Path) -> None:
    """All of it, in one start of the processes."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    tasks = sys.argv[2:] or [
        "selection",
        "optimizer",
        "accumulation",
        "real_gradients",
        "export",
        "refusals",
    ]
    for task in (globals()[name] for name in tasks):
        task(folder)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
