"""GaLLoP inside the trainers that people use: transformers' ``Trainer``, trl's ``SFTTrainer``.

::

    trainer = SFTTrainer(model, args=SFTConfig(...), train_dataset=...)
    gallop.attach(trainer, gallop.GallopConfig(density=0.01), out="task.sparsedelta")
    trainer.train()
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from gallop.config import GallopConfig
from gallop.errors import ConfigError, ExportError
from gallop.exporting import ExportReport, check_base, check_weights, export
from gallop.mask import Mask
from gallop.memory import MemoryMode
from gallop.optim import WeightDecayMode
from gallop.recipe import recipe_metadata
from gallop.report import SelectionReport
from gallop.trainer_arguments import clipping_limit, decay_groups, training_settings
from gallop.trainer_checkpoints import (
    MASK_FILE,
    checkpoint_mask,
    is_checkpoint_folder,
    resumed_folder,
)
from gallop.trainer_data import select_with_trainer
from gallop.trainer_engines import AutogradEngine, Engine, EngineName, HookEngine
from gallop.trainer_rules import check_arguments, check_trainer
from gallop.visibility import Visibility
from sparsedelta.locations import LocationLike, output_path
from sparsedelta.outputs import check_output

__all__ = ["Attachment", "attach"]


def attach(
    trainer: Any,  # noqa: ANN401  (transformers comes without types)
    config: GallopConfig | None = None,
    *,
    mask: Mask | str | Path | None = None,
    engine: EngineName = "hook",
    selection_samples: int = 256,
    memory: MemoryMode = "auto",
    weight_decay_mode: WeightDecayMode = "weight",
    base: LocationLike | None = None,
    out: LocationLike | None = None,
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

    Args:
        trainer: A ``transformers.Trainer`` or ``trl.SFTTrainer``. Trainers that generate their
            data while they train need ``mask``.
        config: How to choose the mask. Give either this or ``mask``.
        mask: A mask, or the file of one, to train instead of choosing one.
        engine: ``"hook"`` trains with :class:`gallop.SparseAdamW`; ``"autograd"`` with
            :class:`gallop.SparseValues` under the optimizer that ``optim`` of the arguments names.
        selection_samples: How many samples the selection sees, rounded up to whole batches.
        memory: Where the selection sums up gradients, as in :func:`gallop.select`; the estimates
            and the choice are logged (logger ``gallop``, level INFO).
        weight_decay_mode: As in :class:`gallop.SparseAdamW`.
        base: The checkpoint that the model was loaded from; by default the local folder that
            ``from_pretrained`` was given. If there is an ``out``, the model is compared with it,
            bit for bit, before anything else is done.
        out: File to write the delta to; None writes none.
        force: Whether an existing ``out`` is replaced.

    Returns:
        What goes on inside the trainer.

    Raises:
        ConfigError: Both or neither of ``config`` and ``mask`` are given, or trainer and arguments
            do not fit; :mod:`gallop.trainer_rules` lists what cannot work.
        ExportError: There is an ``out``, but no base.
        OutputError: ``out`` exists and ``force`` is not set.
    """
    if (config is None) == (mask is None):
        raise ConfigError(
            f"attach: expected either a configuration or a mask, found "
            f"{'neither' if mask is None else 'both'}",
            hint="attach(trainer, gallop.GallopConfig(density=0.01))",
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
    check_trainer(trainer, engine)
    attachment = Attachment(
        trainer,
        config,
        mask=Mask.load(mask) if isinstance(mask, str | Path) else mask,
        engine=engine,
        selection_samples=selection_samples,
        memory=memory,
        weight_decay_mode=weight_decay_mode,
        base=base,
    )
    if out is not None:
        attachment.write_at_end(out, force=force)
    attachment._bind()  # noqa: SLF001  (last, so that a refused trainer is as it was)
    return attachment


class Attachment:
    """What gallop does inside one trainer; made by :func:`attach`.

    Attributes:
        mask: What is trained; None until it has been chosen.
        exported: What was written at the end of the last ``train()``; None if nothing was.
    """

    def __init__(
        self,
        trainer: Any,  # noqa: ANN401
        config: GallopConfig | None,
        *,
        mask: Mask | None,
        engine: EngineName,
        selection_samples: int,
        memory: MemoryMode,
        weight_decay_mode: WeightDecayMode,
        base: LocationLike | None,
    ) -> None:
        self.mask = mask
        self.exported: ExportReport | None = None
        self._trainer = trainer
        self._config = config
        self._engine_name = engine
        self._engine: Engine | None = None
        self._bases: dict[str, Mapping[str, Tensor]] = {}  # by the digest of a mask
        self._resumed: Path | None = None
        self._samples = selection_samples
        self._memory = memory
        self._weight_decay_mode = weight_decay_mode
        self._base = base
        self._out: Path | None = None
        self._force = False

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the running or last ``train()``; None before the first."""
        return None if self._engine is None else self._engine.optimizer

    @property
    def report(self) -> SelectionReport | None:
        """What the selection found; None before it, and for a mask made by hand."""
        return None if self.mask is None else self.mask.report

    def write_at_end(self, out: LocationLike, *, force: bool = False) -> None:
        """Write the delta when training ends.

        Args:
            out: File to write.
            force: Whether an existing one is replaced.

        Raises:
            ExportError: No base is known.
            OutputError: ``out`` exists and ``force`` is not set.
        """
        base = self._found_base(None)
        inputs = (Path(base),) if isinstance(base, str | Path) and Path(base).exists() else ()
        check_output(output_path(out), force=force, inputs=inputs)
        self._out, self._force = output_path(out), force

    def export(
        self,
        out: LocationLike,
        *,
        base: LocationLike | None = None,
        profile: str = "portable",
        force: bool = False,
    ) -> ExportReport:
        """Write the delta from the base to the weights as they are now.

        Args:
            out: File to write.
            base: The checkpoint that training started from, if another than :func:`attach` knows.
            profile: Profile of the delta, as :func:`gallop.export` has it.
            force: Whether an existing ``out`` is replaced.

        Returns:
            What was written.

        Raises:
            ConfigError: No mask has been chosen yet.
            GallopError: As :func:`gallop.export`.
        """
        if self.mask is None:
            raise ConfigError(
                "export: expected a mask, found none: it is chosen when train() begins"
            )
        return export(
            self._trainer.model,
            self.mask,
            base=self._found_base(base),
            out=out,
            metadata=recipe_metadata(
                self.mask,
                {
                    **training_settings(self._trainer),
                    "engine": self._engine_name,
                    "weight_decay_mode": self._weight_decay_mode,
                },
                visibility=self._visibility(),
            ),
            profile=profile,
            force=force,
        )

    def _visibility(self) -> Visibility | None:
        # Masters are those of the last step; weights may be those of the best one.
        args, state = self._trainer.args, self._trainer.state
        best = state.best_global_step if args.load_best_model_at_end else None
        if self._engine is None or best not in (None, state.global_step):
            return None
        return self._engine.visibility()

    def _bind(self) -> None:
        trainer = self._trainer
        # transformers calls the first, without arguments, for what then makes the optimizer.
        trainer.optimizer_cls_and_kwargs = (lambda: self._make_optimizer, {})
        # The parameters have no gradients when the trainer would clip them, and its norm would
        # be 0: the engine has them.
        trainer._clip_grad_norm = self._clip  # noqa: SLF001
        trainer._get_grad_norm = self._norm  # noqa: SLF001
        trainer.save_model = self._saving(trainer.save_model)
        trainer.train = self._training(trainer.train)
        trainer.add_callback(_Callback(self))

    def _training(self, train: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(train)

        @functools.wraps(train)
        def train_sparsely(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            asked = signature.bind(*args, **kwargs).arguments
            check_arguments(self._trainer, self._engine_name)
            if asked.get("trial") is not None:
                raise ConfigError(
                    "trial: expected a single training, found a hyper-parameter search, whose "
                    "runs would go on from each other's weights",
                    hint="make model, trainer and attachment anew for each trial",
                )
            if self._out is not None:
                check_output(self._out, force=self._force, inputs=())
            folder = resumed_folder(
                asked.get("resume_from_checkpoint"), self._trainer.args.output_dir
            )
            self._resumed = folder if folder is not None and folder.is_dir() else None
            if self._resumed is not None:
                self.mask = checkpoint_mask(self._resumed, config=self._config, mask=self.mask)
            try:
                return train(*args, **kwargs)
            finally:
                self._close()

        return train_sparsely

    def _saving(self, save_model: Callable[..., Any]) -> Callable[..., Any]:
        # Not in on_save, which comes last: whoever is killed in between could not resume.
        @functools.wraps(save_model)
        def save_with_mask(output_dir: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            result = save_model(output_dir, *args, **kwargs)
            writes = output_dir is not None and self._trainer.args.should_save
            if writes and is_checkpoint_folder(output_dir) and self.mask is not None:
                self.mask.save(Path(output_dir) / MASK_FILE)
                if self._engine is not None:
                    self._engine.save(Path(output_dir))
            return result

        return save_with_mask

    def _make_optimizer(self, model: nn.Module) -> Optimizer:
        trainer = self._trainer
        if self._out is not None:
            check_weights(model, self.mask or Mask({}, {}), self._found_base(None))
        if self.mask is None:
            assert self._config is not None  # noqa: S101  (attach has seen to it)
            self.mask = select_with_trainer(
                trainer, model, self._config, samples=self._samples, memory=self._memory
            )
            if self._out is not None:
                check_base(model, self.mask, self._found_base(None))
        groups = decay_groups(trainer, model, self.mask)
        if self._engine_name == "hook":
            self._engine = HookEngine(
                model,
                self.mask,
                trainer.args,
                groups=groups,
                weight_decay_mode=self._weight_decay_mode,
            )
        else:
            made = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
            self._engine = AutogradEngine(model, self.mask, made, groups=groups)
        # Another train() finds trained weights: the base stays that of the first.
        bases = self._engine.bases()
        for name, value in self._bases.setdefault(self.mask.digest, bases).items():
            bases[name].copy_(value)
        return self._engine.optimizer

    def _clip(self, model: nn.Module) -> Tensor:
        del model
        assert self._engine is not None  # noqa: S101  (training has begun)
        return self._engine.gradient_norm(clipping_limit(self._trainer.args))

    def _norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        del model
        assert self._engine is not None  # noqa: S101
        return self._engine.gradient_norm() if grad_norm is None else grad_norm

    def _begin(self) -> None:
        if self._trainer.optimizer is None or self._engine is None:
            raise ConfigError(
                f"{type(self._trainer).__name__}.create_optimizer: expected it to ask "
                "optimizer_cls_and_kwargs for the optimizer, found that it made its own",
                hint="let gallop make the optimizer: do not override create_optimizer",
            )
        # Also drops what a pass that ran out of memory (auto_find_batch_size) has left behind.
        self._engine.begin(clipping_limit(self._trainer.args), self._resumed)

    def _stepped(self) -> None:
        if self._engine is not None:
            self._engine.after_step()

    def _end(self) -> None:
        if self._out is not None:
            self.exported = self.export(self._out, force=self._force)

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._trainer.optimizer = None  # so that another train() asks for a new one

    def _found_base(self, given: LocationLike | None) -> LocationLike:
        if given is not None:
            return given
        if self._base is not None:
            return self._base
        name = getattr(getattr(self._trainer.model, "config", None), "_name_or_path", "")
        if name and os.path.exists(name):  # noqa: PTH110  (a name of the Hub is no path)
            return Path(name)
        raise ExportError(
            f"base: expected the checkpoint that the model was loaded from, found no local folder "
            f"in its configuration but {name!r}",
            hint="attach(..., base=FOLDER); huggingface_hub.snapshot_download gives the folder of "
            "a model of the Hub",
        )


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Tells an attachment that training begins or ends."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        self._attachment._begin()  # noqa: SLF001

    def on_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        self._attachment._stepped()  # noqa: SLF001

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        self._attachment._end()  # noqa: SLF001
