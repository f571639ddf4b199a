"""Computing in float32 with weights of bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_gallop_train import some_samples
from tiny_llama import tiny_llama
from tiny_models import same_bits, weights_of
from torch import Tensor, nn
from torch.nn import functional

import gallop.computing
from gallop.cli import main
from gallop.computing import computing, emulates_bfloat16, resolve_compute
from gallop.config import GallopConfig
from gallop.data import make_batch
from gallop.train import choose_mask, finetune
from gallop.train_config import Engine, TrainConfig
from sparsedelta import apply

BF16 = torch.bfloat16


def gradients(model: nn.Module) -> dict[str, Tensor]:
    batch = make_batch(some_samples(3), 0)
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_it_is_float32_rounded_at_the_end() -> None:
    """Loss and gradients equal those of the same weights in float32, and weights stay bfloat16."""
    # Not tied: each of its two gradients is rounded, before they are added up.
    model = tiny_llama(dtype=BF16, tied=False)
    wide = tiny_llama(dtype=BF16, tied=False).float()
    batch = make_batch(some_samples(3), 0)
    with computing("float32", model):
        logits = model(**batch).logits
        found = gradients(model)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, wide(**batch).logits)
    for name, expected in gradients(wide).items():
        assert same_bits(found[name], expected.to(BF16)), name
    plain = model(**batch).logits
    assert plain.dtype == BF16  # it ends with the context
    assert not torch.equal(plain.float(), logits)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_keep_no_wide_weights(bias: bool) -> None:  # noqa: FBT001
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=bias, dtype=BF16)
    wide = nn.Linear(5, 3, bias=bias)
    wide.load_state_dict(layer.state_dict())
    given = torch.randn(2, 4, 5)
    held: list[torch.dtype] = []

    def seen(each: Tensor) -> Tensor:
        held.extend([each.dtype] if each.shape == (3, 5) else [])
        return each

    results = []
    for each in (layer, wide):
        start = given.clone().requires_grad_()
        with computing("float32" if each is layer else "weights", each):
            with torch.autograd.graph.saved_tensors_hooks(seen, lambda each: each):
                out = functional.silu(each(start))
            (out * out).sum().backward()  # type: ignore[no-untyped-call]
        results.append((out, start.grad, *(p.grad.to(BF16) for p in each.parameters())))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert held[0] == BF16


def test_auto_is_about_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide = tiny_llama(dtype=BF16), tiny_llama()
    for machine, capability, emulated in (
        ("x86_64", "AVX2", True),
        ("x86_64", "AVX512", False),
        ("aarch64", "DEFAULT", False),
    ):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        assert emulates_bfloat16() == emulated
        assert resolve_compute("auto", narrow) == ("float32" if emulated else "weights")
        assert resolve_compute("auto", wide) == "weights"
        assert resolve_compute("weights", narrow) == "weights"


@pytest.mark.parametrize("engine", ["hook", "autograd"])
def test_it_trains_the_same_entries_of_the_same_weights(engine: Engine) -> None:
    """Both engines; the weights that are not chosen keep their bits."""
    samples = some_samples(8)
    config = GallopConfig(0.05)
    changed = []
    for compute in ("weights", "float32"):
        model = tiny_llama(dtype=BF16)
        before = weights_of(model)
        training = TrainConfig(steps=3, lr=1e-2, batch_size=2, engine=engine, compute=compute)
        mask = choose_mask(model, samples, selection=config, training=training)
        result = finetune(model, samples, training=training, mask=mask)
        after = weights_of(model)
        assert all(value.dtype == BF16 for value in after.values())
        for name, _ in model.named_parameters():
            value = after[name]
            moved = (value != before[name]).flatten().nonzero().flatten().tolist()
            assert set(moved) <= set(mask.get(name, ()))
        changed.append((mask, result.losses, after))
    assert changed[0][1] != changed[1][1]
    assert changed[0][1] == pytest.approx(changed[1][1], rel=0.02)


def test_the_command_tells_and_exports_exactly(
    tmp_path: Path,
    data_file: Path,
    tokenizer: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gallop.computing, "emulates_bfloat16", lambda: True)
    base, out, saved = tmp_path / "base", tmp_path / "d", tmp_path / "saved"
    tiny_llama(dtype=BF16).save_pretrained(base)
    tokenizer.save_pretrained(base)  # type: ignore[attr-defined]
    command = ["train", base, data_file, "-o", out, "--density", 0.1, "--steps", 2, "--json"]
    for compute, told in (("auto", "computing in float32"), ("weights", "--compute float32 is")):
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, command), "--compute", compute, "--save-model", str(saved), "--force"])
        shown = capsys.readouterr()
        assert not stopped.value.code, shown.err
        assert told in shown.err
        assert json.loads(shown.out)["moved"] > 0
        apply(base, out, tmp_path / compute)
        for file in ("model.safetensors",):
            assert (tmp_path / compute / file).read_bytes() == (saved / file).read_bytes()
