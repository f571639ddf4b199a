"""What one rank does in the tests of data parallelism: with accelerate."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from tiny_models import (
    TokenBatch,
    backward,
    same_bits,
    tiny_model,
    token_batches,
    token_loss,
    weights_of,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import gallop
from gallop import GallopConfig, Mask, SparseAdamW
from gallop.collectives import Peers
from gallop.errors import ConfigError, MaskError, OptimizerError, ParameterError
from gallop.mask import IndexArray
from sparsedelta.errors import RankError

CONFIG = GallopConfig(0.1)
STEPS = 3


def one_process() -> pytest.MonkeyPatch:
    """Let this process believe that it is the only one, for a reference."""
    patch = pytest.MonkeyPatch()
    patch.setattr("gallop.collectives.world_size", lambda: 1)
    return patch


def training(accelerator: Accelerator, folder: Path) -> None:
    """The loop of the documentation: the weights are those of one process on all batches."""
    rank, size = dist.get_rank(), dist.get_world_size()
    batches = token_batches(STEPS * size)
    data = TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
    loader = accelerator.prepare(DataLoader(data, batch_size=2))  # batch n goes to rank n % 2
    model = tiny_model()
    mask = gallop.select(model, batches[rank:size:size], CONFIG, token_loss, data_parallel=True)
    reduced: list[int] = []
    reduce = dist.all_reduce

    def watched(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        reduced.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)  # type: ignore[arg-type]

    with (
        pytest.MonkeyPatch.context() as patch,
        SparseAdamW(model, mask, lr=0.01, max_grad_norm=1.0, data_parallel=True) as optimizer,
    ):
        patch.setattr(dist, "all_reduce", watched)
        for batch in loader:
            backward(token_loss(model, batch))
            assert all(parameter.grad is None for parameter in model.parameters())
            optimizer.step()
        travelled = sum(reduced)
        gallop.save_state(optimizer, folder / "state")
    # k values travel, and a flag per tensor: never a dense gradient.
    assert travelled == STEPS * (mask.nnz + len(mask))
    weights = weights_of(model)
    assert len(set(Peers().gather(tuple(w.sum().item() for w in weights.values())))) == 1

    patch = one_process()
    whole = tiny_model()
    expected = gallop.select(whole, batches[:size], CONFIG, token_loss)
    assert mask == expected
    assert mask.report is not None
    assert mask.report.samples == 2 * size
    with SparseAdamW(whole, expected, lr=0.01, max_grad_norm=1.0) as reference:
        for step in range(STEPS):
            for batch in batches[step * size : (step + 1) * size]:
                backward(token_loss(whole, batch) / size)
            reference.step()
        assert all(same_bits(value, weights[name]) for name, value in weights_of(whole).items())
        # What many ranks saved, one goes on with.
        again = tiny_model()
    with SparseAdamW(again, expected) as resumed:
        gallop.load_state(resumed, folder / "state")
        assert resumed.param_groups[0]["lr"] == 0.01
    assert all(same_bits(value, weights[name]) for name, value in weights_of(again).items())
    patch.undo()


def uneven(accelerator: Accelerator, folder: Path) -> None:
    """A tensor that one rank alone reached, and batches of unequal weight."""
    del accelerator, folder
    rank = dist.get_rank()
    model = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)])
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1.0)  # type: ignore[operator]
    before = weights_of(model)
    mask = Mask({"0.weight": [1, 4], "1.weight": [2]}, {"0.weight": (2, 3), "1.weight": (2, 3)})
    with SparseAdamW(model, mask, lr=0.1, data_parallel=True) as optimizer:
        backward(model[rank](torch.ones(1, 3)).sum())
        foreseen = float(optimizer.gradient_norm())
        optimizer.step()
        assert foreseen == optimizer.last_grad_norm
        # Each was reached by one of two: half of its gradient of 1.
        assert optimizer.last_grad_norm == pytest.approx((3 * 0.25) ** 0.5)
    assert all(not same_bits(value, before[name]) for name, value in weights_of(model).items())
    slopes = torch.tensor([[1.0, -3.0, 2.0]])

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (module[0].weight[:1] * slopes).sum() * batch.mean()  # type: ignore[index, no-any-return]

    batches = [torch.full((1 + 2 * rank,), 2.0 - 4 * rank)]
    found = gallop.select(model, batches, GallopConfig(0.25), loss, data_parallel=True)
    assert found.report is not None
    # One sample of slope 2, three of slope -2: the mean is -1.
    assert found.report.samples == 4
    assert found["0.weight"].tolist() == [0, 1, 2]


def refusals(accelerator: Accelerator, folder: Path) -> None:
    """What would be silently wrong is an error that says what to do."""
    del accelerator, folder
    rank = dist.get_rank()
    model = tiny_model()
    batches = token_batches(1)
    with pytest.raises(
        ConfigError, match=r"(?s)data_parallel: expected an answer.*data_parallel=True"
    ):
        gallop.select(model, batches, CONFIG, token_loss)
    mask = gallop.select(model, batches, CONFIG, token_loss, data_parallel=False)
    with pytest.raises(ConfigError, match=r"(?s)data_parallel: expected an answer"):
        SparseAdamW(model, mask)
    with pytest.raises(ParameterError, match=r"(?s)DistributedDataParallel.*model.module"):
        SparseAdamW(DistributedDataParallel(tiny_model()), mask, data_parallel=True)
    # Wrapped where nobody sees it: the reducer puts dense gradients back.
    with SparseAdamW(model, mask, data_parallel=True) as optimizer:
        wrapped = DistributedDataParallel(model)
        backward(token_loss(wrapped, batches[0]))
        with pytest.raises(
            OptimizerError, match=r"(?s)dense one.*DistributedDataParallel does that"
        ):
            optimizer.step()
    other = tiny_model(seed=rank)
    with pytest.raises(ParameterError, match="expected the same weights on all ranks"):
        SparseAdamW(other, mask, data_parallel=True)
    mine: dict[str, IndexArray] = {name: array[rank:] for name, array in mask.items()}
    with pytest.raises(MaskError, match="expected the same mask on all ranks"):
        SparseAdamW(tiny_model(), Mask(mine, mask.shapes), data_parallel=True)
    with SparseAdamW(tiny_model(), mask, data_parallel=False) as alone:
        assert alone.peers is None


def killed() -> None:
    """A rank that is killed ends the one that waits for it."""
    model = tiny_model()
    batch: TokenBatch = token_batches(1)[0]
    mask = gallop.select(model, [batch], CONFIG, token_loss, data_parallel=True)
    optimizer = SparseAdamW(model, mask, data_parallel=True)
    backward(token_loss(model, batch))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankError, match="one of the ranks 0, 1 ended or did not come"):
        optimizer.step()
    print("told", flush=True)  # noqa: T201  (what the test looks for)


def main(folder: Path) -> None:
    """All of it, in one start of the processes."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert dist.get_world_size() == 2
    for task in (training, uneven, refusals):
        task(accelerator, folder)
        dist.barrier()
    print("well", flush=True)  # noqa: T201
    killed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
