"""GaLLoP inside the trainers that people use: transformers' ``Trainer``, trl's ``SFTTrainer``.

::

    trainer = SFTTrainer(model, args=SFTConfig(...), train_dataset=...)
    gallop.attach(trainer, gallop.GallopConfig(density=0.01), out="task.sparsedelta")
    trainer.train()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from gallop.attachment import Attachment
from gallop.config import GallopConfig
from gallop.errors import ConfigError
from gallop.mask import Mask
from gallop.memory import MemoryMode
from gallop.optim import WeightDecayMode
from gallop.sampled_product import GradientMode
from gallop.train_config import check_gradient
from gallop.trainer_engines import EngineName
from gallop.trainer_rules import check_trainer
from gallop.trainer_start import Request
from sparsedelta.locations import LocationLike

__all__ = ["Attachment", "attach"]


def attach(
    trainer: Any,  # noqa: ANN401  (transformers comes without types)
    config: GallopConfig | None = None,
    *,
    mask: Mask | str | Path | None = None,
    engine: EngineName = "hook",
    gradient: GradientMode = "dense",
    selection_samples: int = 256,
    memory: MemoryMode = "auto",
    weight_decay_mode: WeightDecayMode = "weight",
    base: LocationLike | None = None,
    out: LocationLike | None = None,
    push_to_hub: str | None = None,
    force: bool = False,
) -> Attachment:
    """Make a trainer train the entries of a mask, and nothing else.

    Call it once, after creating the trainer and before ``train()``. Learning rate, schedule,
    betas, epsilon, weight decay and clipping are those of the trainer's arguments; weight decay
    applies to chosen entries only, and by the trainer's rule not to biases and norms.

    The mask is chosen when ``train()`` begins, on the batches that training begins with; the
    random state is put back, so that order of data and dropout are what they would be with that
    mask given. Every checkpoint folder of the trainer then holds the mask, and
    ``train(resume_from_checkpoint=...)`` goes on with it, bit for bit as if never interrupted.
    When training ends, after the best model was loaded if that was asked for, the delta from
    ``base`` to the weights is written to ``out``. The optimizer is closed when ``train()``
    returns or fails: calling it again trains the same mask, with new moments.

    It may be one of many processes, as torchrun and ``accelerate launch`` start them: data
    parallel, where the ``k`` chosen values are averaged and no dense gradient, or sharded with
    FSDP2 (``fsdp=True``), where each holds its slice. Weights and mask are those that one process
    would have found with the batches of all of them.

    Args:
        trainer: A ``transformers.Trainer`` or ``trl.SFTTrainer``. Trainers that generate their
            data while they train need ``mask``.
        config: How to choose the mask. Give either this or ``mask``.
        mask: A mask, or the file of one, to train instead of choosing one.
        engine: ``"hook"`` trains with :class:`gallop.SparseAdamW`; ``"autograd"`` with
            :class:`gallop.SparseValues` under the optimizer that ``optim`` of the arguments names.
        gradient: ``"dense"``, or with engine ``"autograd"`` ``"sampled"``: of the gradient of a
            Linear's weight the chosen entries are computed alone, which is faster on CPUs.
        selection_samples: How many samples the selection sees, in all processes together, rounded
            up to whole batches.
        memory: Where the selection sums up gradients, as in :func:`gallop.select`; the estimates
            and the choice are logged (logger ``gallop``, level INFO).
        weight_decay_mode: As in :class:`gallop.SparseAdamW`.
        base: The checkpoint that the model was loaded from; by default the local folder, or the
            model of the Hub, that ``from_pretrained`` was given. If there is an ``out``, the model
            is compared with it, bit for bit, before anything else is done.
        out: File to write the delta to; None writes none.
        push_to_hub: Repository on the Hub, ``namespace/name``, to push it to when it is written.
        force: Whether an existing ``out`` is replaced.

    Returns:
        What goes on inside the trainer.

    Raises:
        ConfigError: Both or neither of ``config`` and ``mask`` are given, or trainer and arguments
            do not fit; :mod:`gallop.trainer_rules` lists what cannot work.
        ExportError: There is an ``out``, but no base.
        OutputError: ``out`` exists and ``force`` is not set.
        HubError: The Hub cannot be reached, or knows no such account.
    """
    if (config is None) == (mask is None):
        raise ConfigError(
            f"attach: expected either a configuration or a mask, found "
            f"{'neither' if mask is None else 'both'}",
            hint="attach(trainer, gallop.GallopConfig(density=0.01))",
        )
    if push_to_hub is not None and out is None:
        raise ConfigError(
            "push_to_hub: expected an out as well, found none",
            hint="out=FILE: the delta is written there first, so that it is not lost",
        )
    if selection_samples < 1:
        raise ConfigError(f"selection_samples: expected at least 1, found {selection_samples}")
    if engine not in get_args(EngineName):
        raise ConfigError(f"engine: expected hook or autograd, found {engine!r}")
    if engine == "autograd" and weight_decay_mode != "weight":
        raise ConfigError(
            f"weight_decay_mode: expected weight with engine autograd, whose optimizer decays "
            f"values as torch does, found {weight_decay_mode!r}",
            hint="use engine hook",
        )
    check_gradient(gradient, engine)
    check_trainer(trainer, engine)
    request = Request(
        config=config,
        engine=engine,
        gradient=gradient,
        samples=selection_samples,
        memory=memory,
        weight_decay_mode=weight_decay_mode,
    )
    held = Mask.load(mask) if isinstance(mask, str | Path) else mask
    attachment = Attachment(trainer, request, mask=held, base=base)
    if out is not None:
        attachment.write_at_end(out, force=force, push_to_hub=push_to_hub)
    attachment.bind()  # last, so that a refused trainer is as it was
    return attachment
