"""Sampled gradients: the chosen entries of dW alone, exact where dense ones are, and no dW."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import Loss, assert_same_weights, experts, llama_batches, square_loss, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from reachable import Allocations, held_bytes
from tiny_llama import tiny_llama
from tiny_models import clone, same_bits, tiny_model, token_batches, token_loss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gallop import GallopConfig, Mask, SparseValues, select
from gallop.computing import computing
from gallop.errors import ConfigError
from gallop.gradients import model_loss
from gallop.sampled_product import (
    TOKENS,
    GradientMode,
    gathered_product,
    sampled_product,
    transient_bytes,
)
from gallop.train_config import TrainConfig

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
PRODUCTS: tuple[Product, ...] = (sampled_product, gathered_product)
WAYS: tuple[GradientMode, ...] = ("dense", "sampled")


def matrices(
    rows: int, columns: int, tokens: int, *, seed: int = 0, whole: bool = False
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, rows), (tokens, columns))
    if whole:
        left, right = (torch.randint(-3, 4, shape, generator=generator) for shape in shapes)
        return left.float(), right.float()
    left, right = (torch.randn(shape, generator=generator) for shape in shapes)
    return left, right


def chosen(size: int, density: float, seed: int, dtype: torch.dtype = torch.int32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator).lt(density).nonzero().view(-1).to(dtype)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2 * TOKENS + 9)),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    dtypes=st.tuples(
        *[st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])] * 2
    ),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 99),
)
def test_small_integers_give_the_bits_of_the_dense_product(
    shape: tuple[int, int, int],
    density: float,
    dtypes: tuple[torch.dtype, torch.dtype],
    index_dtype: torch.dtype,
    seed: int,
) -> None:
    """Law: where sums are exact, an entry is that of left.T @ right, bit for bit, in both forms.

    A sum that is zero is +0 here; of the dense product, of one token for instance, it may be -0.
    """
    left, right = matrices(*shape, seed=seed, whole=True)
    index = chosen(shape[0] * shape[1], density, seed, index_dtype)
    dense = left.t().mm(right).view(-1)[index] + 0.0
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    for product in PRODUCTS:
        found = product(left.to(dtypes[0]), right.to(dtypes[1]), index)
        assert found.dtype == wide
        assert same_bits(found, dense.to(wide)), product


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3 * TOKENS)),
    seed=st.integers(0, 99),
    threads=st.sampled_from([2, 3, 7]),
)
def test_an_entry_depends_on_nothing_but_its_columns(
    shape: tuple[int, int, int], seed: int, threads: int
) -> None:
    """Law: the same bits on any number of threads, and whatever else is chosen."""
    left, right = matrices(*shape, seed=seed)
    index = chosen(shape[0] * shape[1], 0.5, seed)
    some = chosen(index.numel(), 0.5, seed + 1).long()
    before = torch.get_num_threads()
    for product in PRODUCTS:
        torch.set_num_threads(1)
        alone = product(left, right, index)
        torch.set_num_threads(threads)
        try:
            assert same_bits(product(left, right, index), alone)
            assert same_bits(product(left, right, index[some]), alone[some])
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("tokens", [7, 64, 1000, 8000])
@pytest.mark.parametrize("product", PRODUCTS)
def test_rounding_is_no_worse_than_that_of_the_dense_product(product: Product, tokens: int) -> None:
    """Law: the error against float64 is at most twice that of the dense one's."""
    left, right = matrices(90, 70, tokens)
    index = chosen(90 * 70, 0.3, 1)
    exact = left.double().t().mm(right.double()).view(-1)[index]
    dense = left.t().mm(right).view(-1)[index]
    found = product(left, right, index)
    for norm in (2, float("inf")):
        error, usual = (torch.linalg.vector_norm(each - exact, norm) for each in (found, dense))
        assert error <= 2 * usual
    assert not torch.equal(found, found.round())


def test_bfloat16_is_not_rounded_back() -> None:
    """A dense gradient in bfloat16 loses what a sampled one keeps."""
    left, right = (each.bfloat16() for each in matrices(30, 20, 900, whole=True))
    index = torch.arange(600, dtype=torch.int32)
    exact = left.double().t().mm(right.double()).view(-1)
    assert same_bits(sampled_product(left, right, index), exact.float() + 0.0)
    assert not torch.equal(left.t().mm(right).view(-1).double(), exact)


def test_no_dense_gradient_exists() -> None:
    """Law: what an operation holds is its result and what transient_bytes says, far below dW."""
    rows, columns, tokens = 900, 700, 3 * TOKENS
    left, right = matrices(rows, columns, tokens)
    index = chosen(rows * columns, 0.01, 3)
    sampled_product(left, right, index)
    with profile(profile_memory=True) as recorded:
        sampled_product(left, right, index)
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    most = transient_bytes(rows, columns, index.numel(), tokens=tokens)
    assert most / 2 < peak <= most + 4 * index.numel() + 4096
    assert peak < 4 * rows * columns

    model = nn.Linear(columns, rows, bias=False)
    mask = Mask({"weight": index.numpy()}, {"weight": (rows, columns)})
    sizes = {}
    for way in WAYS:
        with SparseValues(model, mask, gradient=way):
            out = model(right[:5]).sum()
            with Allocations() as allocations:
                out.backward()
            sizes[way] = max(allocations.sizes)
    assert sizes == {"dense": rows * columns, "sampled": index.numel()}


def test_followers_see_one_operation() -> None:
    """Without data, and by the counter of operations."""
    left, right = matrices(30, 20, 50)
    index = torch.arange(40, dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        sampled_product(left, right, index)
    assert counter.get_total_flops() == 2 * 50 * 40
    with FakeTensorMode() as mode:
        found = sampled_product(*(mode.from_tensor(each) for each in (left, right, index)))
    assert (found.shape, found.dtype) == ((40,), torch.float32)


def integer_model() -> nn.Sequential:
    """Two layers without anything in between, of which every number is a small integer."""
    model = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 7, bias=False))
    for number, parameter in enumerate(model.parameters()):
        left, _ = matrices(parameter.shape[-1], 1, parameter.numel(), seed=number, whole=True)
        parameter.detach().copy_(left.flatten()[: parameter.numel()].view(parameter.shape))
    return model


@pytest.mark.parametrize("shape", [(5, 12), (3, 5, 12)])
def test_gradients_of_small_integers_are_those_of_dense(shape: tuple[int, ...]) -> None:
    """Law: sums over two micro-batches too, with a bias and without, inputs of 2 and 3 sides."""
    model = integer_model()
    mask = Mask(
        {"0.weight": [0, 5, 12, 107], "0.bias": [3], "1.weight": [1, 2, 60]},
        {"0.weight": (9, 12), "0.bias": (9,), "1.weight": (7, 9)},
    )
    found = {}
    for way in WAYS:
        with SparseValues(model, mask, gradient=way) as values:
            inputs = []
            for seed in range(2):
                _, flat = matrices(1, 12, 15, seed=seed, whole=True)
                x = flat.flatten()[: int(np.prod(shape))].view(shape)
                inputs.append(x.requires_grad_())
                weights = torch.arange(7.0)
                (model(inputs[-1]) * weights).sum().backward()
            assert all(each.dtype == torch.float32 for each in values.parameters())
            found[way] = [each.grad for each in (*values.parameters(), *inputs)]
            assert values.sampled == ({"0.weight", "1.weight"} if way == "sampled" else frozenset())
    for dense, alone in zip(found["dense"], found["sampled"], strict=True):
        assert dense is not None
        assert alone is not None
        assert same_bits(dense + 0.0, alone + 0.0)  # inputs' gradients may have -0 in both
        assert dense.count_nonzero()


def checkpointed(*, reentrant: bool) -> Loss:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        for _ in range(2):
            x = checkpoint(model, x, use_reentrant=reentrant)
        return x.square().mean()

    return loss


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], list[Any]], Loss, set[str]]] = {
    "tiny": (tiny_model, token_batches, token_loss, {"up.weight", "down.weight"}),
    "llama": (tiny_llama, llama_batches, model_loss, set()),
    "untied": (lambda: tiny_llama(tied=False), llama_batches, model_loss, {"lm_head.weight"}),
    "experts": (experts, vectors, square_loss, {"inner.weight"}),
    "reentrant": (experts, vectors, checkpointed(reentrant=True), {"inner.weight"}),
    "checkpoint": (experts, vectors, checkpointed(reentrant=False), {"inner.weight"}),
}


def dense_product(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    return left.t().mm(right).view(-1)[index]


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_as_dense_gradients_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: with the dense product in its place, every weight has the bits of dense gradients.

    Tied weights, layers with a forward of their own, experts and norms are trained densely, as
    ever; a layer that is used twice, or in a checkpoint, adds up. With its own product the weights
    are those up to rounding.
    """
    build, make, loss, sampled = MODELS[name]
    base = build()
    batches = make(4)
    mask = select(base, batches[:2], GallopConfig(0.1), loss)

    def train(way: GradientMode) -> nn.Module:
        model: nn.Module = clone(base)
        with SparseValues(model, mask, gradient=way) as values:
            optimizer = values.optimizer(torch.optim.SGD, lr=0.05)
            for start in range(0, 4, 2):
                for batch in batches[start : start + 2]:
                    loss(model, batch).backward()  # type: ignore[no-untyped-call]
                    assert all(p.grad is None for p in model.parameters())
                optimizer.step()
                optimizer.zero_grad()
            if way == "sampled":
                assert sampled <= values.sampled
                assert not {n for n in values.sampled if "embed" in n or "scaled" in n}
        return model

    dense, alone = train("dense"), train("sampled")
    torch.testing.assert_close(alone.state_dict(), dense.state_dict())
    with pytest.raises(AssertionError):
        assert_same_weights(alone, base)
    monkeypatch.setattr("gallop.linear.sampled_product", dense_product)
    assert_same_weights(train("sampled"), dense)


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("dtype", "around"),
    [
        (torch.bfloat16, nothing),
        (torch.float32, autocast),
        (torch.bfloat16, lambda: computing("float32", nn.Linear(1, 1, dtype=torch.bfloat16))),
    ],
)
def test_the_ways_of_computing_narrow_weights(dtype: torch.dtype, around: Any) -> None:  # noqa: ANN401
    """Law: of integers that all of these hold exactly, the gradient is exact in each."""
    model = integer_model()[1].to(dtype)
    _, x = matrices(1, 9, 40, whole=True)
    upstream, _ = matrices(7, 1, 40, seed=5, whole=True)
    mask = Mask({"weight": list(range(63))}, {"weight": (7, 9)})
    with SparseValues(model, mask, gradient="sampled") as values:
        with around():
            out = model(x.to(dtype))
            (out * upstream.to(out.dtype)).sum().backward()
        (each,) = values.parameters()
        assert each.grad is not None
        assert same_bits(each.grad, upstream.t().mm(x).view(-1) + 0.0)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.02])
def test_it_holds_at_most_25_bytes_per_entry(density: float) -> None:
    """Law: nothing is kept for it: index, base, value, gradient and two moments, as ever."""
    model = nn.Sequential(nn.Linear(600, 700, bias=False), nn.Linear(700, 600, bias=False))
    generator = np.random.default_rng(0)
    count = round(density * 420_000)
    mask = Mask(
        {f"{i}.weight": np.sort(generator.choice(420_000, count, replace=False)) for i in range(2)},
        {"0.weight": (700, 600), "1.weight": (600, 700)},
    )
    with SparseValues(model, mask, gradient="sampled") as values:
        optimizer = values.optimizer(torch.optim.AdamW, lr=1e-3)
        for _ in range(2):
            model(torch.ones(2, 600)).square().sum().backward()
            optimizer.step()
        model(torch.ones(2, 600)).square().sum().backward()
        held = held_bytes(model, values, optimizer, [vars(module) for module in model])
        steps = 4 * 2  # one count of steps for each of the two tensors
        assert held == 24 * mask.nnz + steps


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_blocks_train(backend: str) -> None:
    model, twin = experts().inner, experts().inner
    mask = Mask({"weight": [0, 7, 8, 30]}, {"weight": (6, 6)})
    gradients = []
    for each in (model, twin):
        if each is model:
            each.compile(backend=backend)
        with SparseValues(each, mask, gradient="sampled") as values:
            square_loss(each, vectors(1)[0]).backward()  # type: ignore[no-untyped-call]
            gradients += [parameter.grad for parameter in values.parameters()]
    assert gradients[0] is not None
    assert gradients[0].count_nonzero() == 4
    torch.testing.assert_close(*gradients)  # compiled code need not have the bits of eager code


def test_what_is_not_sampled_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Conv1d(6, 6, 3))
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (6, 6), "1.weight": (6, 6, 3)}
    linear, both = [1, 2], list(range(50))
    for conv, level in (([], None), ([1], "INFO"), (both, "WARNING")):
        mask = Mask(
            {"0.weight": linear, "1.weight": conv} if conv else {"0.weight": linear}, shapes
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, "gallop"):
            SparseValues(model, mask, gradient="sampled").close()
        (record,) = caplog.records
        assert record.levelname == (level or "INFO")
        assert ("such as 1.weight" in record.getMessage()) == (level is not None)
    with pytest.raises(ConfigError, match="gradient: expected dense or sampled, found 'some'"):
        SparseValues(model, mask, gradient="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected dense with engine hook") as caught:
        TrainConfig(steps=1, gradient="sampled")
    assert "autograd" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="gradient: expected dense or sampled"):
        TrainConfig(steps=1, engine="autograd", gradient="x")  # type: ignore[arg-type]
