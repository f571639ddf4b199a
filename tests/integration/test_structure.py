"""Structural changes as they happen to real models, on the real weights of all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from real_packages import minilm
from safetensors.torch import load_file, save_file

import sparsedelta
from sparsedelta import DiffReport, NotInvertibleError

pytestmark = pytest.mark.real

Weights = Mapping[str, torch.Tensor]

EMBED = "embeddings.word_embeddings.weight"
LAYER = "encoder.layer.0."
FFN = (f"{LAYER}intermediate.dense.weight", f"{LAYER}output.dense.weight")
HIDDEN = 384
ROWS = 4000
"""Rows of the embeddings that are used: they are most of the model, and all alike."""


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Two layers and a part of the embeddings, in bf16."""
    found = load_file(minilm() / "model.safetensors")
    kept = ("embeddings.", LAYER, "encoder.layer.1.")
    chosen = {
        n: t.bfloat16() for n, t in found.items() if n.startswith(kept) and t.is_floating_point()
    }
    return {n: (t[:ROWS].clone() if n == EMBED else t) for n, t in chosen.items()}


def trained(tensor: torch.Tensor, share: float, seed: int = 0) -> torch.Tensor:
    """The tensor with a share of its words a step up or down, as small learning rates leave it."""
    generator = torch.Generator().manual_seed(seed)
    words = tensor.clone().view(torch.int16)
    marks = torch.rand(words.shape, generator=generator) < share
    steps = torch.randint(0, 2, words.shape, generator=generator, dtype=torch.int16) * 2 - 1
    return torch.where(marks, words + steps, words).view(torch.bfloat16)


def all_trained(weights: Weights, share: float) -> dict[str, torch.Tensor]:
    """Every tensor trained."""
    return {n: trained(t, share, seed) for seed, (n, t) in enumerate(weights.items())}


@dataclass(frozen=True)
class Outcome:
    """A delta that was proven in both directions.

    Attributes:
        path: The delta.
        report: What the diff reported.
        kinds: Number of records of each kind.
    """

    path: Path
    report: DiffReport
    kinds: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of the delta."""
        return self.report.size


def proven(folder: Path, old: Weights, new: Weights) -> Outcome:
    """The delta of two checkpoints, after it has led there and back byte for byte."""
    folder.mkdir(exist_ok=True)
    base, target, delta = folder / "base", folder / "target", folder / "d"
    for path, tensors in ((base, old), (target, new)):
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "pt"})
    report = sparsedelta.diff(base, target, delta)
    sparsedelta.apply(base, delta, folder / "there")
    assert (folder / "there").read_bytes() == target.read_bytes()
    sparsedelta.revert(target, delta, folder / "back")
    assert (folder / "back").read_bytes() == base.read_bytes()
    return Outcome(delta, report, sparsedelta.info(delta).kinds)


def kind_of(outcome: Outcome, name: str) -> str:
    """What became of a tensor."""
    (kind,) = [t.kind for t in sparsedelta.info(outcome.path).tensors if t.name == name]
    return kind


def bytes_of(*tensors: torch.Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_vocabulary_that_grows_costs_its_new_rows(tmp_path: Path, weights: Weights) -> None:
    """Three new tokens, and all old rows trained on with them."""
    plain = {**weights, EMBED: trained(weights[EMBED], 0.02)}
    fresh = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    grown = {**plain, EMBED: torch.cat([plain[EMBED], fresh])}
    without = proven(tmp_path / "without", weights, plain)
    outcome = proven(tmp_path / "grown", weights, grown)
    assert outcome.kinds == {"resized": 1}
    assert outcome.report.manifest.nnz == without.report.manifest.nnz
    assert outcome.size < without.size + bytes_of(fresh) + 1500, (
        "the rest is the headers of the files"
    )


def test_a_head_that_is_cut_can_grow_again(tmp_path: Path, weights: Weights) -> None:
    cut = {**weights, EMBED: trained(weights[EMBED], 0.02)[: ROWS // 2].clone()}
    outcome = proven(tmp_path / "cut", weights, cut)
    assert outcome.kinds == {"resized": 1}
    half = bytes_of(cut[EMBED])
    assert half / 2 < outcome.size < half * 1.2, "the rows that were cut are carried"
    base, target = (tmp_path / "cut" / name for name in ("base", "target"))
    forgetful = sparsedelta.diff(base, target, tmp_path / "f", forget=True)
    assert forgetful.size * 5 < outcome.size
    with pytest.raises(NotInvertibleError, match=EMBED):
        sparsedelta.revert(target, tmp_path / "f", tmp_path / "back")


def test_a_head_that_is_untied_is_a_copy(tmp_path: Path, weights: Weights) -> None:
    """Tied weights are stored once; trained apart, there are two of them."""
    untied = {
        **weights,
        EMBED: trained(weights[EMBED], 0.02, 1),
        "lm_head.weight": trained(weights[EMBED], 0.03, 2),
    }
    outcome = proven(tmp_path / "untied", weights, untied)
    assert kind_of(outcome, "lm_head.weight") == "copied"
    assert kind_of(outcome, EMBED) == "changed"
    assert outcome.size * 10 < bytes_of(weights[EMBED])


def test_a_head_that_is_tied_again_is_no_data(tmp_path: Path, weights: Weights) -> None:
    outcome = proven(
        tmp_path / "tied", {**weights, "lm_head.weight": weights[EMBED].clone()}, weights
    )
    assert outcome.kinds == {"dropped": 1}
    assert outcome.size < 10_000


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_names_with_a_prefix_cost_nothing_even_after_training(
    tmp_path: Path, weights: Weights, share: float
) -> None:
    """A text model becomes part of a larger one and is trained: what changed is what counts."""
    new = all_trained(weights, share)
    plain = proven(tmp_path / "plain", weights, new)
    prefixed = {f"language_model.model.{name}": tensor for name, tensor in new.items()}
    outcome = proven(tmp_path / "prefixed", weights, prefixed)
    assert outcome.kinds == {"renamed": len(weights)}
    assert outcome.report.manifest.nnz == plain.report.manifest.nnz
    assert outcome.size < plain.size * 1.1


def test_names_that_only_move_cost_no_entries(tmp_path: Path, weights: Weights) -> None:
    """Layers are renumbered: every name is still there, or nearly, but means another tensor."""
    moved = {name.replace("encoder.layer", "model.layers"): t for name, t in weights.items()}
    outcome = proven(tmp_path / "moved", weights, moved)
    assert set(outcome.kinds) == {"renamed"}
    assert outcome.report.manifest.nnz == 0
    # Names, digests, and the headers of both files.
    assert outcome.size < 400 * len(weights)


def test_a_tensor_that_is_cast_is_replaced(tmp_path: Path, weights: Weights) -> None:
    """Its old words and its new ones are carried; half of the new bits are zeros."""
    name = FFN[0]
    outcome = proven(tmp_path / "cast", weights, {**weights, name: weights[name].float()})
    assert outcome.kinds == {"replaced": 1}
    assert outcome.size < bytes_of(weights[name]) * 2.1


def test_an_adapter_beside_the_weights_costs_itself(tmp_path: Path, weights: Weights) -> None:
    generator = torch.Generator().manual_seed(0)
    adapter = {}
    for name in FFN:
        rows, columns = weights[name].shape
        adapter[f"{name}.lora_A"] = torch.randn(8, columns, generator=generator).bfloat16()
        adapter[f"{name}.lora_B"] = torch.zeros(rows, 8, dtype=torch.bfloat16)
    outcome = proven(tmp_path / "adapter", weights, {**weights, **adapter})
    assert outcome.kinds == {"new": 4}
    assert outcome.report.manifest.nnz == 0
    assert outcome.size < bytes_of(*adapter.values()) + 12_000


def test_upcycled_experts_are_changed_copies(tmp_path: Path, weights: Weights) -> None:
    """One FFN becomes eight experts, each trained a little; the router is new."""
    experts = {
        f"{LAYER}experts.{number}.{name.removeprefix(LAYER)}": trained(weights[name], 0.03, number)
        for number in range(8)
        for name in FFN
    }
    router = {f"{LAYER}router.weight": torch.zeros(8, HIDDEN, dtype=torch.bfloat16)}
    rest = {name: tensor for name, tensor in weights.items() if name not in FFN}
    outcome = proven(tmp_path / "moe", weights, {**rest, **experts, **router})
    assert outcome.kinds == {"copied": 14, "new": 1, "renamed": 2}
    assert outcome.size * 15 < bytes_of(*experts.values())
    sparsedelta.diff(
        tmp_path / "moe" / "base",
        tmp_path / "moe" / "target",
        tmp_path / "s",
        max_shard_size=100_000,
    )
    assert sparsedelta.info(tmp_path / "s").content == outcome.report.manifest.content
    assert sparsedelta.validate(tmp_path / "s", base=tmp_path / "moe" / "base").ok


def test_a_model_of_another_origin_is_refused(tmp_path: Path, weights: Weights) -> None:
    """The same architecture from other random numbers under other names shares nothing."""
    generator = torch.Generator().manual_seed(0)
    other = {
        f"other.{name}": torch.randn(tensor.shape, generator=generator).bfloat16()
        for name, tensor in weights.items()
    }
    save_file(dict(weights), tmp_path / "a")
    save_file(other, tmp_path / "b")
    with pytest.raises(sparsedelta.StructureError, match=f"share 0 tensors.* {len(weights)} in"):
        sparsedelta.diff(tmp_path / "a", tmp_path / "b", tmp_path / "d")
