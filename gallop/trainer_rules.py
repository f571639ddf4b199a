"""What a trainer of transformers may not be, or be asked for, if gallop is to train inside it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from torch import nn

from gallop.errors import ConfigError, ParameterError
from gallop.trainer_engines import EngineName

__all__ = ["check_arguments", "check_trainer"]

_log = logging.getLogger("gallop")

_NEEDED = ("create_optimizer", "get_batch_samples", "_clip_grad_norm", "_get_grad_norm")
_OWN = ("adamw_torch", "adamw_torch_fused")
_WHY_NOT = {
    "layerwise": "layer-wise optimizers step inside the backward pass and free the gradients",
    "galore": "GaLore projects dense gradients, which are never kept here",
    "apollo": "APOLLO projects dense gradients, which are never kept here",
    "lomo": "LOMO steps inside the backward pass and would change every weight",
    "muon": "Muon orthogonalises matrices, and the chosen entries of a tensor are a vector",
    "schedule_free": "its weights while evaluating are others than it steps",
}


def check_trainer(trainer: Any, engine: EngineName) -> None:  # noqa: ANN401  (comes without types)
    """Check a trainer that gallop is about to be attached to.

    Args:
        trainer: A ``transformers.Trainer``, or one derived from it.
        engine: What is going to train.

    Raises:
        ConfigError: It already has an optimizer or makes its model itself, or its arguments ask
            for something that cannot work; see :func:`check_arguments`.
        ParameterError: Its model has adapters.
    """
    missing = [name for name in _NEEDED if not hasattr(trainer, name)]
    if missing:
        raise ConfigError(
            f"{type(trainer).__name__}: expected a transformers.Trainer with {missing[0]}, found "
            "none",
            hint="pip install --upgrade transformers",
        )
    for attribute, what in (
        ("optimizer_cls_and_kwargs", "of an earlier attach(), or given to the trainer"),
        ("optimizer", "given to the trainer, or made by a train() before attach()"),
        ("lr_scheduler", "given to the trainer, and so bound to another optimizer"),
    ):
        if getattr(trainer, attribute, None) is not None:
            raise ConfigError(
                f"trainer.{attribute}: expected None, since gallop makes the optimizer, found one "
                f"that was {what}",
                hint="create the trainer without optimizers, and attach once, before train(); "
                "learning rate and schedule come from its arguments",
            )
    if getattr(trainer, "model_init", None) is not None:
        raise ConfigError(
            "trainer.model_init: expected a trainer with a model, found one that makes another in "
            "each train()",
            hint="pass model= instead of model_init=",
        )
    check_arguments(trainer, engine)
    _require_no_adapters(trainer.model)
    if trainer.args.torch_compile:
        _log.warning(
            "torch_compile=True compiles the whole model, which keeps the dense gradients of all "
            "weights alive together in the backward pass: memory is that of full fine-tuning, "
            "state aside; compile layer by layer instead (layer.compile())"
        )


def check_arguments(trainer: Any, engine: EngineName) -> None:  # noqa: ANN401
    """Check the arguments of a trainer; they may change until ``train()``.

    Args:
        trainer: A ``transformers.Trainer``.
        engine: What is going to train.

    Raises:
        ConfigError: float16 with a scaler, DeepSpeed, DataParallel, tensor or context parallelism,
            a kind of FSDP that cannot work, an optimizer that the engine cannot do with, or
            ``max_steps=0``; the message names the argument.
    """
    args = trainer.args
    if args.fp16:
        raise ConfigError(
            "fp16=True: expected no GradScaler, since the gradients of the chosen entries are "
            "taken before it could unscale them, found float16 mixed precision",
            hint="train with bf16=True, or in float32",
        )
    if args.deepspeed is not None or getattr(trainer, "is_deepspeed_enabled", False):
        raise ConfigError(
            "deepspeed: expected a plain model, found an engine that owns optimizer and gradients",
            hint="leave deepspeed out: the optimizer's state is small without it",
        )
    _check_processes(trainer, engine)
    if args.n_gpu > 1:
        raise ConfigError(
            f"n_gpu: expected one device, found {args.n_gpu}, over which the trainer would use "
            "DataParallel",
            hint="start one process per device, with torchrun or accelerate launch, or set "
            "CUDA_VISIBLE_DEVICES to one",
        )
    _check_optimizer_name(args, engine)
    if args.max_steps == 0:
        raise ConfigError(
            "max_steps=0: expected a positive number, or -1, found 0, which transformers takes for "
            "no limit",
            hint="to choose a mask and not to train, call gallop.select",
        )


def _check_processes(trainer: Any, engine: EngineName) -> None:  # noqa: ANN401
    args = trainer.args
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise ConfigError(
            "model: expected one that every process holds as a whole until the trainer shards it, "
            "found one that was sharded while it was loaded",
            hint="from_pretrained without distributed_config or tp_plan, and fsdp=True in the "
            "training arguments",
        )
    cuts = {"tp_size": "get_tp_size", "cp_size": "get_cp_size", "sp_size": "get_sp_size"}
    for name, method in cuts.items():
        size = getattr(trainer, method, lambda: 1)()
        if size > 1:
            raise ConfigError(
                f"parallelism_config.{name}: expected 1, found {size}: its processes share batches "
                "or layers, and their gradients are no mean",
                hint="use data parallelism, or fsdp=True",
            )
    if not (args.fsdp or trainer.is_fsdp_enabled):
        return
    if engine == "autograd":
        raise ConfigError(
            "fsdp: expected a model that every process holds as a whole, since engine autograd "
            "gathers in the backward of its layers, found one that is to be sharded",
            hint="use engine hook",
        )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    version = getattr(plugin, "fsdp_version", 2)
    if version != 2 or getattr(trainer, "is_fsdp_xla_enabled", False):  # noqa: PLR2004
        raise ConfigError(
            f"fsdp_config: expected FSDP2, whose shards are parameters, found "
            f"{'FSDP of XLA' if version == 2 else f'version {version}'}",  # noqa: PLR2004
            hint="fsdp_config={'version': 2}",
        )
    if args.bf16 and trainer.is_fsdp_enabled:
        odd = next((n for n, p in trainer.model.named_parameters() if p.dtype != torch.float32), "")
        if odd:
            raise ConfigError(
                f"bf16=True with fsdp: expected float32 weights, found {odd} of another dtype, "
                "which accelerate would turn into float32: they would no longer be those of the "
                "checkpoint",
                hint="leave bf16 out: bfloat16 weights compute in bfloat16, and masters are "
                "float32 here",
            )


def _check_optimizer_name(args: Any, engine: EngineName) -> None:  # noqa: ANN401
    name = str(getattr(args.optim, "value", args.optim))
    why = next((why for part, why in _WHY_NOT.items() if part in name), None)
    if engine == "autograd" and why is not None:
        raise ConfigError(
            f"optim={name!r}: expected an optimizer that works entry by entry on its parameters; "
            f"{why}",
            hint="adamw_torch, adamw_torch_fused, sgd, adafactor and 8-bit ones work",
        )
    if engine == "hook" and name not in _OWN:
        raise ConfigError(
            f"optim={name!r}: expected one of {', '.join(_OWN)}, whose place gallop's own AdamW "
            f"takes, found another{'; ' + why if why else ''}",
            hint="leave optim out of the training arguments"
            + ("" if why else ", or attach(..., engine='autograd')"),
        )


def _require_no_adapters(model: nn.Module) -> None:
    peft = sys.modules.get("peft")  # a model with adapters has imported it
    wrapped = peft is not None and isinstance(model, peft.PeftModel)
    if wrapped or getattr(model, "_hf_peft_config_loaded", False):
        raise ParameterError(
            f"{type(model).__name__}: expected a model without adapters, found one of PEFT, whose "
            "base weights are frozen",
            hint="leave peft_config out, or merge_and_unload() the adapters first",
        )
