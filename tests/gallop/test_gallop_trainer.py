"""``attach`` inside transformers' Trainer: what it trains, what it logs, what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dense_reference import dense_train
from tiny_models import weights_of
from torch import Tensor, nn
from trainer_cases import (
    CONFIG,
    DENSITY,
    logged,
    make_trainer,
    noisy_collator,
    same_weights,
    samples,
    write_base,
)
from transformers import Trainer, TrainerCallback

import gallop
from gallop import GallopConfig, Mask, SparseAdamW, attach
from gallop.errors import ConfigError, DataError, ExportError, OutsideMaskError, ParameterError
from gallop.trainer_engines import EngineName
from sparsedelta import apply
from sparsedelta.errors import OutputError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def loss_of(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor | None]) -> Tensor:
    inputs, items = batch
    loss: Tensor = model(**inputs, num_items_in_batch=items).loss
    return loss


def supervised(batches: list[dict[str, Tensor]]) -> Tensor:
    return sum((each["labels"][:, 1:] != -100).sum() for each in batches)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("max_grad_norm", "accumulate", "weight_decay"), [(0.0, 1, 0.0), (0.2, 1, 0.0), (0.2, 3, 0.1)]
)
def test_it_is_masked_dense_adamw_bit_for_bit(
    base: Path, tmp_path: Path, max_grad_norm: float, accumulate: int, weight_decay: float
) -> None:
    """Weights and logged norms equal those of dense AdamW with masked gradients, clipped or not."""
    changes: dict[str, Any] = {
        "max_grad_norm": max_grad_norm,
        "gradient_accumulation_steps": accumulate,
        "weight_decay": weight_decay,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
    }
    trainer = make_trainer(base, tmp_path, **changes)
    attachment = attach(trainer, CONFIG, selection_samples=8)
    trainer.train()
    assert attachment.mask is not None

    other = make_trainer(base, tmp_path, **changes)
    batches = list(other.get_train_dataloader())[: 4 * accumulate]
    groups = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    counted = [(dict(each), supervised(group)) for group in groups for each in group]
    mask = {
        name: torch.zeros_like(p, dtype=torch.bool) for name, p in trainer.model.named_parameters()
    }
    for name, index in attachment.mask.items():
        mask[name].view(-1)[torch.tensor(index)] = True
    norms = dense_train(
        other.model,
        mask,
        counted,
        loss_of,
        accumulate=accumulate,
        lr=1e-2,
        weight_decay=weight_decay,
        decay_to_base=False,
        max_grad_norm=max_grad_norm or None,
    )
    assert same_weights(weights_of(trainer.model), weights_of(other.model))
    assert logged(trainer, "grad_norm") == norms
    assert min(norms) > 0.2  # so that clipping binds where it is on


@pytest.mark.parametrize("mean", ["sample", "token"])
def test_the_mask_is_that_of_the_first_batches(base: Path, tmp_path: Path, mean: str) -> None:
    """Loss, order and count of the samples are the trainer's; ``token`` weighs by its items."""
    config = GallopConfig(DENSITY, gradient_mean=mean)  # type: ignore[arg-type]
    trainer = make_trainer(base, tmp_path, max_steps=1)
    attachment = attach(trainer, config, selection_samples=10)
    trainer.train()

    other = make_trainer(base, tmp_path)
    batches = [dict(each) for each in other.get_train_dataloader()][:3]  # 12 samples: whole batches
    expected = gallop.select(
        other.model.eval(), batches, config, lambda m, b: loss_of(m, (b, supervised([b])))
    )
    assert attachment.mask == expected
    assert attachment.report is not None
    assert attachment.report.samples == 12
    assert expected.report is not None
    assert attachment.report.loss == expected.report.loss


def test_the_two_means_are_not_the_same(base: Path, tmp_path: Path) -> None:
    masks = []
    for mean in ("sample", "token"):
        trainer = make_trainer(base, tmp_path, max_steps=1)
        attach_config = GallopConfig(DENSITY, gradient_mean=mean)
        attachment = attach(trainer, attach_config, selection_samples=10)
        trainer.train()
        masks.append(attachment.mask)
    assert masks[0] != masks[1]


def test_selecting_leaves_no_trace(tmp_path: Path) -> None:
    """Dropout and a collator that draws from every generator do as if the mask had been given."""
    base = write_base(tmp_path / "base", dropout=0.4)
    changes: dict[str, Any] = {"data_collator": noisy_collator}
    first = make_trainer(base, tmp_path / "out", **changes)
    chosen = attach(first, CONFIG, selection_samples=12)
    first.train()
    assert chosen.mask is not None
    second = make_trainer(base, tmp_path / "out", **changes)
    attach(second, mask=chosen.mask)
    second.train()
    assert logged(first, "loss") == logged(second, "loss")
    assert same_weights(weights_of(first.model), weights_of(second.model))
    third = make_trainer(base, tmp_path / "out", **changes, seed=43)
    attach(third, mask=chosen.mask)
    third.train()  # the randomness is real
    assert logged(first, "loss") != logged(third, "loss")


def test_a_loader_that_is_used_again_is_not_advanced(base: Path, tmp_path: Path) -> None:
    """A trainer may keep one loader, with a generator of its own."""

    class Keeps(Trainer):  # type: ignore[misc]
        loader: Any = None

        def get_train_dataloader(self) -> Any:  # noqa: ANN401
            if self.loader is None:
                generator = torch.Generator().manual_seed(5)
                data = self.train_dataset
                self.loader = torch.utils.data.DataLoader(
                    data, 4, shuffle=True, generator=generator
                )
            return self.loader

    losses = []
    for given in (None, "mask.st"):
        trainer = make_trainer(base, tmp_path, kind=Keeps)
        attachment = attach(trainer, None if given else CONFIG, mask=given and tmp_path / given)
        trainer.train()
        assert attachment.mask is not None
        attachment.mask.save(tmp_path / "mask.st")
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_checkpointing_changes_neither_mask_nor_weights(base: Path, tmp_path: Path) -> None:
    """Both kinds, also where the embedding has no chosen entries and needs no gradient."""
    config = GallopConfig(DENSITY, exclude=("*embed_tokens*",))
    found = []
    kinds: list[dict[str, Any]] = [
        {},
        {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": False},
        },
        {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": True},
        },
    ]
    for changes in kinds:
        trainer = make_trainer(base, tmp_path, **changes)
        attachment = attach(trainer, config, selection_samples=8)
        trainer.train()
        found.append((attachment.mask, weights_of(trainer.model)))
    for mask, weights in found[1:]:
        assert mask == found[0][0]
        assert same_weights(weights, found[0][1])


def test_the_delta_at_the_end(base: Path, tmp_path: Path) -> None:
    """Applied to the base it gives the trained weights, and it says how it came about."""
    out = tmp_path / "d.sparsedelta"
    trainer = make_trainer(base, tmp_path / "out")
    attachment = attach(trainer, CONFIG, selection_samples=8, out=out)
    trainer.train()
    assert attachment.exported is not None
    assert attachment.mask is not None
    assert attachment.exported.moved == attachment.mask.nnz
    metadata = attachment.exported.diff.manifest.metadata
    assert metadata["gallop.training.trainer"] == "Trainer"
    assert metadata["gallop.training.steps"] == "6"
    assert metadata["gallop.training.lr"] == "0.01"
    assert metadata["gallop.selection.samples"] == "8"
    apply(base, out, tmp_path / "tuned")
    tuned = make_trainer(tmp_path / "tuned", tmp_path / "out").model
    assert same_weights(weights_of(tuned), weights_of(trainer.model))
    again = attachment.export(tmp_path / "again", base=str(base))
    assert again.path.read_bytes() == out.read_bytes()


class EvaluatesTo:
    """Metrics that get better, then worse: the best is at the second evaluation."""

    def __init__(self) -> None:
        self.scores = iter([1.0, 3.0, 2.0])

    def __call__(self, _prediction: object) -> dict[str, float]:  # noqa: D102
        return {"score": next(self.scores)}


def test_the_best_model_is_what_is_exported(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    trainer = make_trainer(
        base,
        tmp_path / "out",
        eval_dataset=samples(8),
        compute_metrics=EvaluatesTo(),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    attachment = attach(trainer, CONFIG, selection_samples=8, out=out)
    trainer.train()
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["checkpoint-4"]
    apply(base, out, tmp_path / "tuned")
    best = make_trainer(tmp_path / "out" / "checkpoint-4", tmp_path / "unused").model
    tuned = make_trainer(tmp_path / "tuned", tmp_path / "unused").model
    assert same_weights(weights_of(tuned), weights_of(best))
    assert attachment.exported is not None
    metadata = attachment.exported.diff.manifest.metadata
    assert metadata["gallop.training.best_step"] == "4"
    assert not any("visibility" in key for key in metadata)  # masters are of the last step
    # Evaluating in between changed nothing either.
    plain = make_trainer(base, tmp_path / "unused", max_steps=6)
    attach(plain, mask=attachment.mask)
    plain.train()
    assert logged(plain, "loss") == logged(trainer, "loss")


def test_after_training_the_model_is_free_again(base: Path, tmp_path: Path) -> None:
    """Hooks are gone, and another train() trains the same mask without selecting again."""
    trainer = make_trainer(base, tmp_path, max_steps=2)
    attachment = attach(trainer, CONFIG, selection_samples=8)
    before = weights_of(trainer.model)
    trainer.train()
    mask, optimizer = attachment.mask, attachment.optimizer
    assert mask is not None
    assert all(p.requires_grad for p in trainer.model.parameters())
    assert trainer.optimizer is None
    SparseAdamW(trainer.model, mask).close()  # no hook is left: it would refuse a second one
    middle = weights_of(trainer.model)
    trainer.train()
    assert attachment.mask is mask
    assert attachment.optimizer is not optimizer
    assert not same_weights(middle, weights_of(trainer.model))
    for name, parameter in trainer.model.named_parameters():
        moved = (parameter != before[name]).flatten().nonzero().flatten().tolist()
        assert set(moved) <= set(mask.get(name, ()))


@pytest.mark.parametrize("engine", ["hook", "autograd"])
def test_another_training_has_the_base_of_the_first(
    base: Path, tmp_path: Path, engine: EngineName
) -> None:
    """Decay to the base and the count of moved entries are about the weights from before both."""
    trainer = make_trainer(base, tmp_path, max_steps=1)
    attachment = attach(trainer, CONFIG, selection_samples=8, engine=engine)
    before = weights_of(trainer.model)
    for _ in range(2):
        trainer.train()
        assert attachment._engine is not None  # noqa: SLF001
        assert attachment.mask is not None
        for name, found in attachment._engine.bases().items():  # noqa: SLF001
            index = torch.from_numpy(attachment.mask[name].astype("int64"))
            assert torch.equal(found, before[name].flatten()[index])


class FailsAt(TrainerCallback):  # type: ignore[misc]
    """Raises once, at a step."""

    def __init__(self, error: Exception, step: int = 2) -> None:
        self.error: Exception | None = error
        self.step = step

    def on_substep_end(self, _args: object, state: Any, *_: object, **_kw: object) -> None:  # noqa: ANN401, D102
        if self.error is not None and state.global_step == self.step:
            error, self.error = self.error, None
            raise error


def test_a_failure_closes_the_optimizer(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        base, tmp_path, callbacks=[FailsAt(KeyError("stop"))], gradient_accumulation_steps=2
    )
    attach(trainer, CONFIG, selection_samples=8)
    with pytest.raises(KeyError, match="stop"):
        trainer.train()
    assert all(p.requires_grad for p in trainer.model.parameters())
    assert trainer.optimizer is None


def test_gradients_of_a_pass_without_memory_are_dropped(base: Path, tmp_path: Path) -> None:
    """``auto_find_batch_size`` starts over with half the batch, and with nothing left behind."""
    trainer = make_trainer(
        base,
        tmp_path,
        callbacks=[FailsAt(torch.OutOfMemoryError("CUDA out of memory."), step=0)],
        gradient_accumulation_steps=2,
        auto_find_batch_size=True,
    )
    attachment = attach(trainer, CONFIG, selection_samples=8)
    trainer.train()
    small = make_trainer(
        base,
        tmp_path,
        per_device_train_batch_size=trainer._train_batch_size,  # noqa: SLF001
        gradient_accumulation_steps=2,
    )
    assert trainer._train_batch_size < 4  # noqa: SLF001
    attach(small, mask=attachment.mask)
    small.train()
    assert logged(small, "grad_norm") == logged(trainer, "grad_norm")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim": "adafactor"}, "optim"),
        ({"optim": "galore_adamw_layerwise"}, "inside the backward"),
        ({"optim": "lomo"}, "LOMO"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_arguments_that_cannot_work(
    base: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    trainer = make_trainer(base, tmp_path, **changes)
    with pytest.raises(ConfigError, match=named) as caught:
        attach(trainer, CONFIG)
    assert caught.value.hint
    assert "train" not in vars(trainer)  # a refused trainer is as it was


@pytest.mark.parametrize(
    ("name", "value"), [("fp16", True), ("deepspeed", "x.json"), ("_n_gpu", 2)]
)
def test_arguments_changed_after_attaching_are_looked_at(
    base: Path, tmp_path: Path, name: str, value: object
) -> None:
    trainer = make_trainer(base, tmp_path)
    attach(trainer, CONFIG)
    setattr(trainer.args, name, value)
    with pytest.raises(ConfigError, match=name.strip("_")):
        trainer.train()


def test_trainers_that_cannot_work(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  (slow)

    with pytest.raises(ConfigError, match="upgrade transformers"):
        attach(object(), CONFIG)
    trainer = make_trainer(base, tmp_path)
    trainer.train()
    with pytest.raises(ConfigError, match=r"trainer\.optimizer"):
        attach(trainer, CONFIG)
    trainer = make_trainer(base, tmp_path)
    attach(trainer, CONFIG)
    with pytest.raises(ConfigError, match="optimizer_cls_and_kwargs"):
        attach(trainer, CONFIG)
    trainer = make_trainer(base, tmp_path)
    trainer.model_init = lambda: None
    with pytest.raises(ConfigError, match="model_init"):
        attach(trainer, CONFIG)
    trainer = make_trainer(base, tmp_path)
    trainer.model = get_peft_model(trainer.model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ParameterError, match="adapters"):
        attach(trainer, CONFIG)

    class Stubborn(Trainer):  # type: ignore[misc]
        def create_optimizer(self, _model: object = None) -> Any:  # noqa: ANN401
            self.optimizer = torch.optim.SGD(self.model.parameters())
            return self.optimizer

    trainer = make_trainer(base, tmp_path, kind=Stubborn)
    attach(trainer, CONFIG)
    with pytest.raises(ConfigError, match="create_optimizer"):
        trainer.train()


def test_what_attach_is_asked_for(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path / "out")
    with pytest.raises(ConfigError, match="neither"):
        attach(trainer)
    with pytest.raises(ConfigError, match="both"):
        attach(trainer, CONFIG, mask=Mask({}, {}))
    with pytest.raises(ConfigError, match="selection_samples"):
        attach(trainer, CONFIG, selection_samples=0)
    (tmp_path / "there").write_text("")
    with pytest.raises(OutputError, match="exists"):
        attach(trainer, CONFIG, out=tmp_path / "there")
    trainer.model.config._name_or_path = "some-model"  # noqa: SLF001  (no folder, no repository)
    with pytest.raises(ExportError, match="some-model"):
        attach(trainer, CONFIG, out=tmp_path / "d")
    attachment = attach(trainer, CONFIG)
    with pytest.raises(ConfigError, match="mask"):
        attachment.export(tmp_path / "d")


def test_another_base_is_noticed_before_training(base: Path, tmp_path: Path) -> None:
    """Not after hours of it."""
    trainer = make_trainer(base, tmp_path / "out")
    with torch.no_grad():
        trainer.model.model.norm.weight[3] += 1
    attachment = attach(trainer, CONFIG, out=tmp_path / "d")
    with pytest.raises(OutsideMaskError, match=r"model\.norm\.weight"):
        trainer.train()
    assert attachment.mask is None


def test_data_that_can_be_read_once_is_refused(base: Path, tmp_path: Path) -> None:
    class Once(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.left = iter(samples())

        def __iter__(self) -> Once:
            return self

        def __next__(self) -> dict[str, Tensor]:
            return next(self.left)

    trainer = make_trainer(base, tmp_path, train_dataset=Once())
    attach(trainer, CONFIG)
    with pytest.raises(DataError, match="more than once"):
        trainer.train()


def test_compiling_the_whole_model_is_warned_about(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(base, tmp_path)
    trainer.args.torch_compile = True
    attach(trainer, CONFIG)
    assert "layer by layer" in caplog.text
