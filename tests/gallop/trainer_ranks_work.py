"""What one rank does in the tests of a Trainer under DDP."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from dense_selection import dense_choice
from tiny_models import weights_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from trainer_cases import (
    CONFIG,
    DENSITY,
    RAGGED,
    logged,
    make_trainer,
    ragged,
    same_weights,
    samples,
    saving,
    write_base,
)
from transformers import Trainer, TrainerCallback

import gallop
from gallop import GallopConfig, Mask, attach
from gallop.collectives import Peers
from gallop.errors import ConfigError, OutsideMaskError
from sparsedelta import apply
from sparsedelta.errors import OutputError, RankError

STEPS = 5
ROUNDS = 6  # in each of which every rank draws a batch


def parallel(base: Path, out: Path, **changes: Any) -> Any:  # noqa: ANN401
    """A Trainer of two processes, the last batch of an epoch being smaller on one of them."""
    return make_trainer(base, out, **(ragged() | {"ddp_find_unused_parameters": False} | changes))


class NothingDense(TrainerCallback):  # type: ignore[misc]
    """Looks for dense gradients between any two passes and steps."""

    looked = 0

    def on_substep_end(self, _args: object, _state: object, *_: object, **held: Any) -> None:  # noqa: ANN401, D102
        self.looked += 1
        assert all(p.grad is None for p in held["model"].parameters())

    on_pre_optimizer_step = on_step_end = on_substep_end


class Masked(Trainer):  # type: ignore[misc]
    """The plain Trainer, wrapped in DDP, with dense AdamW on masked gradients."""

    mask: dict[str, Tensor]

    def create_optimizer(self, _model: object = None) -> Any:  # noqa: ANN401, D102
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.args.learning_rate, weight_decay=0.0, foreach=False
        )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        assert type(model) is DistributedDataParallel
        held = {n: (p, self.mask[n]) for n, p in self.model.named_parameters()}
        norms = [p.grad[mask].norm() for p, mask in held.values() if mask.any()]
        norm: Tensor = torch.stack(norms).norm()
        factor = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        for parameter, mask in held.values():
            parameter.grad.mul_(mask * factor)
        return norm


def dense(mask: Mask, model: nn.Module) -> dict[str, Tensor]:
    """The mask as one boolean per weight."""
    found = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    for name, index in mask.items():
        found[name].view(-1)[torch.tensor(index)] = True
    return found


def alike(model: nn.Module) -> bool:
    """Whether all ranks hold the same bits."""
    words = [w.view(torch.int32).to(torch.int64).sum().item() for w in weights_of(model).values()]
    return len(set(Peers().gather(tuple(words)))) == 1


def training(base: Path, folder: Path) -> None:
    """It is the plain Trainer under DDP with masked dense gradients, bit for bit."""
    reduced: list[int] = []
    reduce = dist.all_reduce

    def watched(tensor: Tensor, *args: object, **kwargs: object) -> object:
        reduced.append(tensor.numel() if tensor.dtype == torch.float32 else 0)
        return reduce(tensor, *args, **kwargs)  # type: ignore[arg-type]

    looking = NothingDense()
    changes = {"max_steps": STEPS, "max_grad_norm": 0.3, "gradient_accumulation_steps": 2}
    ours = parallel(base, folder / "ours", callbacks=[looking], **changes)
    attachment = attach(ours, CONFIG, selection_samples=20)  # of both: three rounds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", watched)
        ours.train()
    assert attachment.mask is not None
    assert attachment.report is not None
    assert attachment.report.samples == 24
    largest = max(p.numel() for p in ours.model.parameters())
    held = [count for count in reduced if count]
    # In the selection the sums of all tensors, once; then k values a step, and nothing else.
    dense_ones = held[: len(attachment.report.tensors)]
    assert max(dense_ones) == largest
    assert sum(held[len(dense_ones) :]) == STEPS * attachment.mask.nnz
    assert looking.looked > 2 * STEPS
    assert type(ours.model_wrapped) is not DistributedDataParallel
    assert alike(ours.model)

    theirs = parallel(base, folder / "theirs", kind=Masked, **changes)
    theirs.mask = dense(attachment.mask, theirs.model)
    theirs.train()
    assert same_weights(weights_of(ours.model), weights_of(theirs.model))
    for key in ("grad_norm", "loss", "learning_rate"):
        assert logged(ours, key) == logged(theirs, key), key
    assert min(logged(ours, "grad_norm")) > 0.3  # clipping binds

    for engine in ("hook", "autograd"):
        other = parallel(base, folder / "other", optim="adamw_torch", **changes)
        attach(other, mask=attachment.mask, engine=engine)
        other.train()
        assert same_weights(weights_of(other.model), weights_of(ours.model)), engine
        assert logged(other, "grad_norm") == logged(ours, "grad_norm")
        assert alike(other.model)
    other = parallel(base, folder / "other", optim="adamw_torch", **changes)
    attach(other, mask=attachment.mask, engine="autograd", gradient="sampled")
    other.train()
    assert logged(other, "grad_norm") == pytest.approx(logged(ours, "grad_norm"), rel=1e-4)
    assert alike(other.model)
    if dist.get_rank() == 0:
        attachment.mask.save(folder / "mask.st")
        found = {"norms": logged(ours, "grad_norm"), "losses": logged(ours, "loss")}
        (folder / "found.json").write_text(json.dumps(found))


class Recorder(torch.optim.SGD):
    """Keeps the gradients that it is asked to step with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.names = [name for name, _ in model.named_parameters()]
        self.found: list[dict[str, Tensor]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Step nowhere."""
        del closure
        held = zip(self.names, self.param_groups[0]["params"], strict=True)
        self.found.append({name: p.grad.clone() for name, p in held})


def recorded(base: Path, out: Path, **changes: Any) -> list[dict[str, Tensor]]:  # noqa: ANN401
    """The gradients of the steps of a plain Trainer under DDP, over one epoch."""
    trainer = parallel(base, out, max_grad_norm=0.0, num_train_epochs=1, max_steps=-1, **changes)
    trainer.optimizer = recorder = Recorder(trainer.model)
    trainer.train()
    return recorder.found


def selection(base: Path, folder: Path) -> None:
    """Its gradient is what the plain Trainer under DDP steps with, for all that it may divide by.

    Ranks hold different numbers of tokens, and in the last round of samples.
    """
    masks = []
    for average in (True, False):
        options = {"average_tokens_across_devices": average}
        steps = recorded(base, folder / "steps", **options)
        (large,) = recorded(base, folder / "large", gradient_accumulation_steps=ROUNDS, **options)
        assert len(steps) == ROUNDS
        sizes = [8.0] * (ROUNDS - 1) + [6.0]
        mean = {
            name: sum(s * step[name] for s, step in zip(sizes, steps, strict=True)) / sum(sizes)
            for name in large
        }
        for kind, gradient in (("sample", mean), ("token", large)):
            trainer = parallel(base, folder / "chosen", max_steps=1, **options)
            config = GallopConfig(DENSITY, gradient_mean=kind)  # type: ignore[arg-type]
            attachment = attach(trainer, config, selection_samples=RAGGED)
            before = weights_of(trainer.model)
            trainer.train()
            assert attachment.mask is not None
            assert attachment.report is not None
            assert attachment.report.samples == RAGGED
            names = list(attachment.report.tensors)
            weights = [before[name].flatten() for name in names]
            scores = [
                gradient[name].flatten().abs() / (w.abs() + config.eps)  # type: ignore[union-attr]
                for name, w in zip(names, weights, strict=True)
            ]
            expected = dense_choice(
                scores, attachment.report.requested, barred=[w == 0 for w in weights]
            )
            found = dense(attachment.mask, trainer.model)
            odd = [
                int((found[name].flatten() != chosen).sum())
                for name, chosen in zip(names, expected, strict=True)
            ]
            assert sum(odd) == 0, (average, kind, odd)
            masks.append(attachment.mask)
    assert len({mask.digest for mask in masks}) == 4  # so that none is right by chance


class EvaluatesTo:
    """Metrics that get better, then worse: the best is at the second evaluation."""

    def __init__(self) -> None:
        self.scores = iter([1.0, 3.0, 2.0])

    def __call__(self, _prediction: object) -> dict[str, float]:  # noqa: D102
        return {"score": next(self.scores)}


def checkpoints(base: Path, folder: Path) -> None:
    """What is resumed ends with the bits of what was not; the best model is what is exported."""
    rank = dist.get_rank()
    changes = saving() | {
        "max_steps": 6,
        "save_steps": 2,
        "eval_dataset": samples(16),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "load_best_model_at_end": True,
    }
    if rank == 0:
        write_base(folder / "base", dropout=0.2)
    dist.barrier()
    base = folder / "base"
    engines = {"hook": gallop.SparseAdamW, "autograd": torch.optim.AdamW}
    for engine, kind in engines.items():
        own = folder / engine
        own.mkdir(exist_ok=True)
        run = changes | {"optim": "adamw_torch"}
        whole = parallel(base, own / "out", compute_metrics=EvaluatesTo(), **run)
        first = attach(whole, CONFIG, selection_samples=8, out=own / "d", engine=engine)  # type: ignore[arg-type]
        whole.train()
        assert type(first.optimizer) is kind
        assert first.exported is not None  # on all ranks
        assert first.exported.diff.manifest.metadata["gallop.training.best_step"] == "4"
        assert first.exported.diff.manifest.metadata["gallop.training.processes"] == "2"
        assert alike(whole.model)
        late = EvaluatesTo()
        next(late.scores)
        again = parallel(base, own / "again", compute_metrics=late, **run)
        second = attach(again, CONFIG, out=own / "again.d", engine=engine)  # type: ignore[arg-type]
        again.train(resume_from_checkpoint=str(own / "out" / "checkpoint-2"))
        assert second.mask == first.mask
        assert same_weights(weights_of(whole.model), weights_of(again.model))
        assert logged(whole, "grad_norm") == logged(again, "grad_norm")
        assert (own / "d").read_bytes() == (own / "again.d").read_bytes()
        with pytest.raises(OutputError, match="exists"):
            again.train()
    if rank == 0:
        tuned = folder / "tuned"
        apply(base, folder / "hook" / "d", tuned)
        found = make_trainer(tuned, folder / "unused").model
        best = make_trainer(folder / "hook" / "out" / "checkpoint-4", folder / "unused")
        assert same_weights(weights_of(found), weights_of(best.model))


def differences(base: Path, folder: Path) -> None:
    """Ranks that begin with other weights begin with those of the first, as under DDP."""
    weights = []
    for changed in (False, True):
        trainer = parallel(base, folder / "out", max_steps=2)
        if changed and dist.get_rank() == 1:
            with torch.no_grad():
                trainer.model.model.norm.weight.add_(1)
        attach(trainer, CONFIG, selection_samples=8)
        trainer.train()
        assert alike(trainer.model)
        weights.append(weights_of(trainer.model))
    assert same_weights(*weights)


def refusals(base: Path, folder: Path) -> None:
    """What cannot be exported is an error everywhere; what was not sharded is told."""
    trainer = parallel(base, folder / "out", max_steps=1)
    if dist.get_rank() == 0:
        with torch.no_grad():
            trainer.model.model.norm.weight[3] += 1
    attach(trainer, CONFIG, out=folder / "never")
    with pytest.raises((OutsideMaskError, RankError), match=r"model\.norm\.weight"):
        trainer.train()
    assert not (folder / "never").exists()
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("gallop").addHandler(handler)
    trainer = parallel(base, folder / "out", max_steps=1, fsdp=True)
    attachment = attach(trainer, CONFIG, selection_samples=8)
    trainer.train()
    assert alike(trainer.model)
    assert attachment.report is not None
    assert attachment.report.samples == 8
    assert any("fsdp was asked for" in each and "data parallel" in each for each in told)
    with pytest.raises(ConfigError, match="autograd"):
        attach(parallel(base, folder / "out", fsdp=True), CONFIG, engine="autograd")


def instructions(base: Path, folder: Path) -> None:
    """The two lines in a script of trl, started as one of two."""
    from datasets import Dataset  # noqa: PLC0415  (slow)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    source = base.parent / "words"
    records = [
        {"prompt": f"the film was {word}", "completion": f" {label}"}
        for word, label in (("good", "positive"), ("bad and long", "negative"))
    ]
    settings: dict[str, Any] = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
    }
    settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(source, dtype="auto"),
        args=SFTConfig(str(folder / "out"), ddp_find_unused_parameters=False, **settings),
        train_dataset=Dataset.from_list(records * 8),
        processing_class=AutoTokenizer.from_pretrained(source),
    )
    attachment = attach(trainer, CONFIG, selection_samples=8, out=folder / "sft.d")
    trainer.train()
    assert alike(trainer.model)
    assert attachment.exported is not None
    assert attachment.exported.moved > 0
    if dist.get_rank() == 0:
        torch.save(weights_of(trainer.model), folder / "sft.pt")


def main(folder: Path) -> None:
    """The tasks that are named; all, if none is."""
    torch.set_num_threads(1)
    PartialState(cpu=True, backend="gloo")
    tasks: list[Callable[[Path, Path], None]] = [
        *(training, selection, checkpoints, differences, refusals, instructions),
    ]
    names = sys.argv[2:]
    for task in tasks:
        if not names or task.__name__ in names:
            own = folder / task.__name__
            own.mkdir(exist_ok=True)
            task(folder / "base", own)
            dist.barrier()
    print("well", flush=True)  # noqa: T201  (what the test looks for)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
