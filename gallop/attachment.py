"""What gallop does inside one trainer: from its first batch to the delta at the end."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from gallop.collectives import Peers
from gallop.errors import ConfigError, ExportError
from gallop.exporting import ExportReport, export
from gallop.hub import check_push, push_delta
from gallop.mask import Mask
from gallop.mask_slices import gather_mask, whole_digest
from gallop.optim import SparseAdamW
from gallop.recipe import recipe_metadata
from gallop.report import SelectionReport
from gallop.trainer_arguments import clipping_limit, training_settings
from gallop.trainer_checkpoints import (
    MASK_FILE,
    checkpoint_mask,
    is_checkpoint_folder,
    resumed_folder,
)
from gallop.trainer_engines import Engine
from gallop.trainer_processes import check_sharding, holds_shards, keep_unwrapped, trainer_peers
from gallop.trainer_rules import check_arguments
from gallop.trainer_sharding import (
    load_checkpoint,
    placeholder,
    replace_optimizer,
    save_checkpoint,
)
from gallop.trainer_start import Request, start
from gallop.visibility import Visibility
from sparsedelta.hub.references import is_hub
from sparsedelta.locations import LocationLike, as_location, output_path
from sparsedelta.outputs import check_output

__all__ = ["Attachment"]


class Attachment:
    """What gallop does inside one trainer; made by :func:`gallop.attach`.

    Attributes:
        mask: What is trained; None until it has been chosen.
            Of a sharded model, what this process holds of it, or the whole.
        exported: What was written at the end of the last ``train()``; None if nothing was.
        pushed: Address of the repository on the Hub that it was pushed to; None if it was not.
    """

    def __init__(
        self,
        trainer: Any,  # noqa: ANN401
        request: Request,
        *,
        mask: Mask | None,
        base: LocationLike | None,
    ) -> None:
        self.mask = mask
        self.exported: ExportReport | None = None
        self.pushed: str | None = None
        self._trainer = trainer
        self._request = request
        self._engine: Engine | None = None
        self._starts_with_shards = False  # once the trainer has prepared the model
        self._bases: dict[str, Mapping[str, Tensor]] = {}  # by the digest of a mask
        self._resumed: Path | None = None
        self._base = base
        self._out: Path | None = None
        self._force = False
        self._hub: str | None = None

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the running or last ``train()``; None before the first."""
        return None if self._engine is None else self._engine.optimizer

    @property
    def report(self) -> SelectionReport | None:
        """What the selection found; None before it, and for a mask made by hand."""
        return None if self.mask is None else self.mask.report

    def write_at_end(
        self, out: LocationLike, *, force: bool = False, push_to_hub: str | None = None
    ) -> None:
        """Write the delta when training ends.

        Args:
            out: File to write.
            force: Whether an existing one is replaced.
            push_to_hub: Repository on the Hub to push it to then.

        Raises:
            ExportError: No base is known.
            HubError: The Hub cannot be reached, or knows no such account.
            OutputError: ``out`` exists and ``force`` is not set.
        """
        base = self._found_base(None)
        inputs = (Path(base),) if isinstance(base, str | Path) and Path(base).exists() else ()
        check_output(output_path(out), force=force, inputs=inputs)
        if push_to_hub is not None and self._trainer.is_world_process_zero():
            check_push(push_to_hub)
        self._out, self._force, self._hub = output_path(out), force, push_to_hub

    def export(
        self,
        out: LocationLike,
        *,
        base: LocationLike | None = None,
        profile: str = "portable",
        force: bool = False,
    ) -> ExportReport:
        """Write the delta from the base to the weights as they are now.

        Of several processes all call it, and all of them get the report.

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
        found = self._found_base(base)
        peers = self._peers()
        if peers is None or holds_shards(self._trainer.model):
            return self._write(out, found, profile=profile, force=force)
        written = None  # all hold the same: one writes
        with peers.together():
            if peers.rank == 0:
                written = self._write(out, found, profile=profile, force=force)
        return peers.share(written)

    def _write(
        self, out: LocationLike, base: LocationLike, *, profile: str, force: bool
    ) -> ExportReport:
        assert self.mask is not None  # noqa: S101  (export has seen to it)
        settings = {
            **training_settings(self._trainer),
            "engine": self._request.engine,
            "gradient": self._request.gradient,
            "weight_decay_mode": self._request.weight_decay_mode,
        }
        return export(
            self._trainer.model,
            self.mask,
            base=base,
            out=out,
            metadata=recipe_metadata(self.mask, settings, visibility=self._visibility()),
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

    def bind(self) -> None:
        """Take the places in the trainer from which gallop works. Called once."""
        trainer = self._trainer
        # transformers calls the first, without arguments, for what then makes the optimizer.
        trainer.optimizer_cls_and_kwargs = (lambda: self._make_optimizer, {})
        # The parameters have no gradients when the trainer would clip them, and its norm would
        # be 0: the engine has them.
        trainer._clip_grad_norm = self._clip  # noqa: SLF001
        trainer._get_grad_norm = self._norm  # noqa: SLF001
        trainer.save_model = self._saving(trainer.save_model)
        trainer.train = self._training(trainer.train)
        if trainer.args.world_size > 1:
            keep_unwrapped(trainer.accelerator)
        if trainer.is_fsdp_enabled:
            trainer.create_scheduler = self._scheduling(trainer.create_scheduler)
            trainer._save_optimizer_and_scheduler = self._save_sharded  # noqa: SLF001
            trainer._load_optimizer_and_scheduler = self._load_sharded  # noqa: SLF001
        trainer.add_callback(_Callback(self))

    def _training(self, train: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(train)

        @functools.wraps(train)
        def train_sparsely(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            asked = signature.bind(*args, **kwargs).arguments
            check_arguments(self._trainer, self._request.engine)
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
                self.mask = checkpoint_mask(
                    self._resumed,
                    config=self._request.config,
                    digest=self._digest(),
                    sharded=self._trainer.is_fsdp_enabled,
                )
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
            if output_dir is not None and is_checkpoint_folder(output_dir):
                self._save_mask(Path(output_dir))
            return result

        return save_with_mask

    def _save_mask(self, folder: Path) -> None:
        if self.mask is None:
            return
        sharded = holds_shards(self._trainer.model)
        whole = gather_mask(self._trainer.model, self.mask) if sharded else self.mask
        if whole is not None and self._trainer.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)  # shards are saved later
            whole.save(folder / MASK_FILE)
            if self._engine is not None:
                self._engine.save(folder)

    def _scheduling(self, create: Callable[..., Any]) -> Callable[..., Any]:
        # The first thing that the trainer calls after the model has been sharded.
        @functools.wraps(create)
        def create_scheduler(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._starts_with_shards:
                self._starts_with_shards = False
                model = self._trainer.accelerator._models[-1]  # noqa: SLF001
                check_sharding(self._trainer, model)
                replace_optimizer(self._trainer, self._start(model))
            return create(*args, **kwargs)

        return create_scheduler

    def _save_sharded(self, output_dir: str) -> None:
        save_checkpoint(self._trainer, self._sharded_optimizer(), Path(output_dir))

    def _load_sharded(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_checkpoint(self._trainer, self._sharded_optimizer(), Path(checkpoint))

    def _sharded_optimizer(self) -> SparseAdamW:
        assert isinstance(self.optimizer, SparseAdamW)  # noqa: S101  (other engines are refused)
        return self.optimizer

    def _peers(self) -> Peers | None:
        return trainer_peers(self._trainer, self._trainer.model)

    def _digest(self) -> str | None:
        if self.mask is None:
            return None
        peers = self._peers() if holds_shards(self._trainer.model) else None
        return self.mask.digest if peers is None else whole_digest(self.mask, peers)[0]

    def _make_optimizer(self, model: nn.Module) -> Optimizer:
        if self._trainer.is_fsdp_enabled:
            self._starts_with_shards = True
            return placeholder(model)
        check_sharding(self._trainer, model)
        return self._start(model)

    def _start(self, model: nn.Module) -> Optimizer:
        self.mask, self._engine = start(
            self._trainer,
            model,
            self._request,
            mask=self.mask,
            base=None if self._out is None else self._found_base(None),
        )
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
            if self._hub is not None:
                self.pushed = self._push(self._out, self._hub)

    def _push(self, out: Path, repo: str) -> str:
        peers = self._peers()
        if peers is None:
            return push_delta(out, repo)
        address = None
        with peers.together():
            if peers.rank == 0:
                address = push_delta(out, repo)
        return str(peers.share(address))

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
        commit = getattr(self._trainer.model.config, "_commit_hash", None) if name else None
        location = as_location(f"{name}@{commit}" if commit else name)
        if is_hub(location):
            self._base = location  # what is found out about it is kept with it
            return location
        raise ExportError(
            f"base: expected the checkpoint that the model was loaded from, found neither a local "
            f"folder nor a model of the Hub in its configuration, but {name!r}",
            hint="attach(..., base=FOLDER), or base='NAMESPACE/NAME@REVISION'",
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
