"""What one rank does in the tests of sharded models: run as a script, with a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sharded_models import Linear, scaled_loss, shard, whole_weights
from tiny_models import same_bits, tiny_model, token_batches, token_loss
from torch.distributed.device_mesh import init_device_mesh

import gallop
from gallop import GallopConfig, Mask, SparseAdamW
from gallop.collectives import Peers
from gallop.errors import OptimizerError
from gallop.mask_slices import gather_mask, whole_digest
from sparsedelta.errors import RankError


def one_process(task):  # type: ignore[no-untyped-def]
    """Run something as if there were no other process: as the reference of the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gallop.collectives.world_size", lambda: 1)
        return task()


def scales(size: int) -> list[torch.Tensor]:
    """One batch per rank and step; their mean over 2 or 4 ranks is exact."""
    return [torch.tensor([float(n % 3 + 1)]) for n in range(3 * size)]


def selection(folder: Path) -> None:
    """With exact gradients the mask is that of one process, ties and all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    batches = scales(size)
    whole, peers = Linear(), Peers()
    meshes = [init_device_mesh("cpu", (size,))]
    if size == 4:
        meshes.append(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    configs = [GallopConfig(density) for density in (0.03, 0.2, 0.37, 0.9)]
    configs += [
        GallopConfig(0.3, threshold_scope="per_tensor"),
        GallopConfig(0.3, exclude_zeros=True),
        GallopConfig(0.3, selector="random", seed=3),
        GallopConfig(0.25, selector="magnitude-low"),
        GallopConfig(0.3, threshold_scope="sampled_global", sample_size=60),
    ]
    for number, config in enumerate(configs):
        expected = one_process(lambda c=config: gallop.select(whole, batches, c, scaled_loss))
        for mesh in meshes[: 1 + (number < 5)]:
            model = shard(Linear(), mesh=mesh)
            mode = "grouped" if number == 1 else "auto"
            mask = gallop.select(model, batches[rank::size], config, scaled_loss, memory=mode)
            assert whole_digest(mask, peers) == (expected.digest, expected.nnz), config
            found = gather_mask(model, mask, peers)
            assert (found is None) == bool(rank)
            if found is not None:
                assert found == expected
            assert mask.report is not None
            assert expected.report is not None
            ours, theirs = mask.report.to_dict(), expected.report.to_dict()
            for key in ("seconds", "memory"):
                del ours[key], theirs[key]
            assert ours == theirs, (
                config,
                {k: (v, theirs[k]) for k, v in ours.items() if v != theirs[k]},
            )


def main(folder: Path) -> None:
    """All of it, in one start of the processes."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for task in (selection,):
        task(folder)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
