"""What the arguments of a trainer mean for the entries of a mask: clipping, decay, the recipe."""

from __future__ import annotations

from typing import Any

from torch import nn

from gallop.collectives import Peers
from gallop.compiled import named_parameters, plain_name
from gallop.mask import Mask

__all__ = ["clipping_limit", "decay_groups", "training_settings"]


def clipping_limit(args: Any) -> float | None:  # noqa: ANN401  (transformers comes without types)
    """Return the norm to clip to; for transformers 0 means no clipping.

    Args:
        args: ``TrainingArguments``.

    Returns:
        A positive norm, or None.
    """
    return args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None


def decay_groups(
    trainer: Any,  # noqa: ANN401
    model: nn.Module,
    mask: Mask,
    peers: Peers | None,
) -> list[dict[str, Any]]:
    """Divide the parameters of a mask by whether they decay, by the trainer's own rule.

    Args:
        trainer: Its ``get_decay_parameter_names`` leaves out biases and norms.
        model: Its model.
        mask: What is trained, or what this process holds of it.
        peers: The processes that train together; None if there are no others.

    Returns:
        Parameter groups that hold every parameter of the mask, the same ones on every process.
    """
    decayed = {plain_name(name) for name in trainer.get_decay_parameter_names(model)}
    trained = set(mask.resolve(model))
    if peers is not None:
        trained = trained.union(*peers.gather(trained))
    names = {name: p for name, p in named_parameters(model, tied=True) if name in trained}
    split = (
        (trainer.args.weight_decay, [p for name, p in names.items() if name in decayed]),
        (0.0, [p for name, p in names.items() if name not in decayed]),
    )
    return [{"params": held, "weight_decay": decay} for decay, held in split if held]


def training_settings(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    """Collect the settings that made the weights what they are. No path and no time is in it.

    Args:
        trainer: A ``transformers.Trainer`` that has trained.

    Returns:
        JSON-ready values for :func:`gallop.recipe.recipe_metadata`.
    """
    args, state = trainer.args, trainer.state
    return {
        "trainer": type(trainer).__name__,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "steps": state.global_step,
        "best_step": state.best_global_step if args.load_best_model_at_end else None,
        "lr": args.learning_rate,
        "lr_scheduler": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warmup_steps": args.get_warmup_steps(state.max_steps),
        "batch_size": trainer._train_batch_size,  # noqa: SLF001  (what auto_find_batch_size found)
        "processes": args.world_size,
        "accumulate": args.gradient_accumulation_steps,
        "betas": [args.adam_beta1, args.adam_beta2],
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
        "max_grad_norm": clipping_limit(args),
        "autocast": "bfloat16" if args.bf16 else None,
        "seed": args.seed,
        "data_seed": args.data_seed,
    }
