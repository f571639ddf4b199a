"""What one rank does in the tests of a Trainer under FSDP2: run as a script, with a folder.

Accelerate shards on GPUs and the like only. Here, and nowhere else, it is made to do so on CPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate.state
import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from sharded_models import whole_weights
from torch.distributed.tensor import DTensor
from trainer_cases import CONFIG, logged, make_trainer, ragged, same_weights, samples, saving
from trainer_ranks_work import EvaluatesTo, NothingDense
from transformers import AutoModelForCausalLM

import sparsedelta
from gallop import Mask, SparseAdamW, attach
from gallop.collectives import Peers
from gallop.errors import ConfigError
from gallop.mask_slices import whole_digest
from gallop.trainer_checkpoints import MASK_FILE


def shard_on_cpu(patch: pytest.MonkeyPatch) -> None:
    """Let accelerate take two processes on CPUs for what FSDP shards over."""
    begin = accelerate.state.AcceleratorState.__init__

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:  # noqa: ANN401
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # noqa: SLF001

    patch.setattr(accelerate.state.AcceleratorState, "__init__", begin_sharded)


def run(base: Path, out: Path, *, state: str | None = None, **changes: Any) -> Any:  # noqa: ANN401
    """A Trainer of two processes; sharded if a type of state dict is given."""
    arguments = ragged() | saving() | {"max_steps": 6, "save_steps": 2} | changes
    if state is not None:
        arguments |= {"fsdp": True, "fsdp_config": {"state_dict_type": state}}
    return make_trainer(base, out, **arguments)


def training(base: Path, folder: Path) -> None:
    """With two processes, sums of gradients have the same bits sharded and not: so has the rest.

    That is so without accumulation, where FSDP adds up in another order, and without clipping,
    since the norm of shards is rounded in another way. Saving in the middle changes nothing, and
    what is resumed ends as what was not.
    """
    simple: dict[str, Any] = {"max_grad_norm": 0.0, "gradient_accumulation_steps": 1}
    copies = run(base, folder / "copies", save_strategy="no", **simple)
    reference = attach(copies, CONFIG, selection_samples=8, out=folder / "copies.d")
    copies.train()
    assert reference.mask is not None
    expected, norms = whole_weights(copies.model), logged(copies, "grad_norm")
    found = sparsedelta.info(folder / "copies.d")

    for state, changes in (("FULL_STATE_DICT", simple), ("SHARDED_STATE_DICT", {})):
        options: dict[str, Any] = {"state": state, **changes}
        for strategy in ("no", "steps"):
            out, delta = folder / f"{state}-{strategy}", folder / f"{state}-{strategy}.d"
            looking = NothingDense()
            trainer = run(base, out, save_strategy=strategy, callbacks=[looking], **options)
            attachment = attach(trainer, CONFIG, selection_samples=8, out=delta)
            trainer.train()
            assert looking.looked > 6
            assert all(isinstance(p, DTensor) for p in trainer.model.parameters())
            assert attachment.mask is not None
            whole = whole_digest(attachment.mask, Peers())
            assert whole == (reference.mask.digest, reference.mask.nnz)
            assert attachment.mask.nnz < reference.mask.nnz  # a slice
            optimizer = attachment.optimizer
            assert isinstance(optimizer, SparseAdamW)
            held = sum(each.state["master"].numel() for each in optimizer.entries)
            assert held == attachment.mask.nnz
            if not changes and strategy == "no":
                expected = whole_weights(trainer.model)
            elif changes:
                assert logged(trainer, "grad_norm") == pytest.approx(norms, rel=1e-6)
            assert same_weights(whole_weights(trainer.model), expected), (state, strategy)
            assert attachment.exported is not None
            written = sparsedelta.info(delta)
            assert not changes or written.target == found.target
            same = {"gallop.mask.digest", "gallop.mask.nnz", "gallop.visibility.entries"}
            assert {k: written.metadata[k] for k in same} == {k: found.metadata[k] for k in same}
        saved = Mask.load(out / "checkpoint-2" / MASK_FILE)
        assert saved == reference.mask
        again = run(base, folder / "again", save_strategy="no", **options)
        second = attach(again, CONFIG)
        again.train(resume_from_checkpoint=str(out / "checkpoint-2"))
        assert second.mask == reference.mask
        assert same_weights(whole_weights(again.model), expected), state
        # Sharded already, and what is known is a slice, or the whole.
        again.train(resume_from_checkpoint=str(out / "checkpoint-4"))
        assert same_weights(whole_weights(again.model), expected), state


def best(base: Path, folder: Path) -> None:
    """The best model is loaded into the shards, and exported from there."""
    trainer = run(
        base,
        folder / "out",
        state="FULL_STATE_DICT",
        eval_dataset=samples(16),
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="score",
        greater_is_better=True,
        load_best_model_at_end=True,
        compute_metrics=EvaluatesTo(),
    )
    attach(trainer, CONFIG, selection_samples=8, out=folder / "d")
    trainer.train()
    if dist.get_rank() == 0:
        sparsedelta.apply(base, folder / "d", folder / "tuned")
        load = AutoModelForCausalLM.from_pretrained
        tuned = load(folder / "tuned", dtype="auto")
        saved = load(folder / "out" / "checkpoint-4", dtype="auto")
        assert same_weights(whole_weights(tuned), whole_weights(saved))


def refusals(base: Path, folder: Path) -> None:
    """What would be silently wrong is an error."""
    trainer = run(base, folder / "out", state="FULL_STATE_DICT")
    with pytest.raises(ConfigError, match="autograd"):
        attach(trainer, CONFIG, engine="autograd")
    attach(trainer, CONFIG, selection_samples=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.accelerator.fsdp2_prepare_model", lambda _a, model: model)
        with pytest.raises(ConfigError, match="expected parameters sharded by FSDP2"):
            trainer.train()
    trainer = run(base, folder / "out", state="FULL_STATE_DICT")
    trainer.accelerator.state.fsdp_plugin.fsdp_version = 1
    with pytest.raises(ConfigError, match="found version 1"):
        attach(trainer, CONFIG)
    trainer = run(base, folder / "out", state="FULL_STATE_DICT", bf16=True)
    trainer.model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="bf16=True with fsdp"):
        attach(trainer, CONFIG)


def main(folder: Path) -> None:
    """The tasks that are named; all, if none is."""
    torch.set_num_threads(1)
    PartialState(cpu=True, backend="gloo")
    tasks: list[Callable[[Path, Path], None]] = [training, best, refusals]
    with pytest.MonkeyPatch.context() as patch:
        shard_on_cpu(patch)
        for task in tasks:
            if not sys.argv[2:] or task.__name__ in sys.argv[2:]:
                own = folder / task.__name__
                own.mkdir(exist_ok=True)
                task(folder / "base", own)
                dist.barrier()
    print("well", flush=True)  # noqa: T201  (what the test looks for)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
