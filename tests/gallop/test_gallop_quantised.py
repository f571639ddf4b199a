"""Quantised layers: refused by the hook engine, trained beside by the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_models import vectors
from tiny_models import clone, same_bits
from torch import Tensor, nn
from torch.nn import functional

from gallop import Mask, SparseAdamW, SparseValues
from gallop.errors import MaskError, ParameterError
from gallop.sampled_product import GradientMode


class FourBitLinear(nn.Module):
    """A Linear of 16 levels per weight, dequantised in forward: no gradient for the weight."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self.scale = float(source.weight.detach().abs().max()) / 7
        levels = (source.weight.detach() / self.scale).round().clamp(-8, 7) + 8
        packed = levels.to(torch.uint8).view(-1)
        self.weight = nn.Parameter(packed[::2] * 16 + packed[1::2], requires_grad=False)

    def dequantised(self) -> Tensor:
        """The weight as a float32 matrix."""
        levels = torch.stack([self.weight // 16, self.weight % 16], dim=1).view(-1)
        dense = (levels.float() - 8) * self.scale
        return dense.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  (nn.Module's)
        return functional.linear(x, self.dequantised().to(x.dtype))


def quantised_pair() -> tuple[Any, Any]:
    """A model with a four-bit layer, and the same with the dequantised weights."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model: Any = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6, bias=False))
    plain = clone(model)
    quantised = FourBitLinear(model[2])
    model[2] = quantised
    with torch.no_grad():
        plain[2].weight.copy_(quantised.dequantised())
    return model, plain


QUANTISED_MASK = Mask(
    {"0.weight": [1, 7, 30], "2.weight": [0, 9, 10, 47]}, {"0.weight": (8, 6), "2.weight": (6, 8)}
)


def test_a_quantised_layer_is_refused_by_the_hook_engine() -> None:
    model, _ = quantised_pair()
    with pytest.raises(ParameterError, match=r"2\.weight: expected floating-point") as caught:
        SparseAdamW(model, QUANTISED_MASK)
    assert "uint8 weights in a FourBitLinear" in str(caught.value)
    assert "SparseValues" in str(caught.value.hint)
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("block", [1 << 20, 16])
def test_values_beside_a_quantised_layer_train_as_if_it_were_dense(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gallop.added._BLOCK", block)
    model, plain = quantised_pair()
    packed = model[2].weight.detach().clone()
    batches = [each[0] for each in vectors(4)]
    tuned = {}
    for which, each in (("quantised", model), ("plain", plain)):
        with SparseValues(each, QUANTISED_MASK) as values:
            optimizer = values.optimizer(torch.optim.SGD, lr=0.1)
            for batch in batches:
                each(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            tuned[which] = each(batches[0]).detach()
            state = values.state_dict()["2.weight"]
            seen = values.visibility()
            held = dict(values.named_parameters())["2.weight"].detach()
        if which == "quantised":
            assert seen.total.moved == seen.total.visible == QUANTISED_MASK.nnz
            added = held
            assert set(state) == {"index", "base", "value"}
            base_output = each(batches[0]).detach()
    assert same_bits(model[2].weight.detach(), packed)
    torch.testing.assert_close(tuned["quantised"], tuned["plain"])
    _, fresh = quantised_pair()
    index = torch.from_numpy(np.array(QUANTISED_MASK["2.weight"]))
    before = fresh[2].weight.detach().view(-1)[index]
    torch.testing.assert_close(before + added, plain[2].weight.detach().view(-1)[index])
    assert not torch.allclose(base_output, tuned["quantised"])


def test_a_copy_of_a_quantised_layer_adds_nothing() -> None:
    model, _ = quantised_pair()
    x = torch.ones(2, 8)
    with SparseValues(model, QUANTISED_MASK) as values:
        for each in values.parameters():
            each.detach().fill_(1.0)
        twin = clone(model)[2]
        twin.scale *= 2
        assert same_bits(twin(x), functional.linear(x, twin.dequantised()))
        assert not torch.equal(model[2](x), functional.linear(x, model[2].dequantised()))


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.parametrize("block", [1 << 20, 16])
def test_what_is_added_has_the_gradients_of_a_dense_matrix(
    block: int, gradient: GradientMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: output, input gradient and value gradient are those of x @ (W + D).T."""
    monkeypatch.setattr("gallop.added._BLOCK", block)
    model, plain = quantised_pair()
    layer, weight = model[2], plain[2].weight
    mask = Mask({"2.weight": [0, 9, 10, 47]}, {"2.weight": (6, 8)})
    index = torch.from_numpy(np.array(mask["2.weight"]))
    with SparseValues(model, mask, gradient=gradient) as values:
        assert values.sampled == ({"2.weight"} if gradient == "sampled" else frozenset())
        (parameter,) = values.parameters()
        with torch.no_grad():
            parameter.copy_(torch.tensor([3.0, -2.0, 1.0, 5.0]))
            weight.view(-1)[index] += parameter
        x, twin = (torch.linspace(-1, 1, 40).view(5, 8).requires_grad_() for _ in range(2))
        out, expected = layer(x), plain[2](twin)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, twin.grad)
        torch.testing.assert_close(parameter.grad, weight.grad.view(-1)[index])


def test_a_quantised_mask_of_another_shape_is_refused_and_leaves_the_model_alone() -> None:
    model, _ = quantised_pair()
    mask = Mask({"0.weight": [1], "2.weight": [0]}, {"0.weight": (8, 6), "2.weight": (24,)})
    with pytest.raises(MaskError, match=r"expected the dequantised shape \(6, 8\)"):
        SparseValues(model, mask)
    assert "forward" not in vars(model[0])
    assert model[0].weight.requires_grad
