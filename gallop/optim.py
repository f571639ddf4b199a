"""AdamW over the entries of a mask: float32 masters and moments for those, nothing for the rest."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gallop.adamw import adamw_update
from gallop.collectives import DataParallel, find_peers
from gallop.compiled import warn_if_compiled_whole
from gallop.errors import OptimizerError
from gallop.frozen_bases import require_written
from gallop.groups import GroupSpec, group_names
from gallop.hyperparameters import WeightDecayMode, check_hyperparameters, check_settings
from gallop.kinds import parameter_kinds
from gallop.mask import Mask
from gallop.parallelism import Parallelism, require_same_start, require_taken, share_out
from gallop.state import Entries, check_state, gather_entries
from gallop.taps import GradientTap, require_untapped
from gallop.targets import require_unwrapped
from gallop.visibility import TrainedEntries, Visibility, measure_visibility
from sparsedelta.closing import Closing

__all__ = ["SparseAdamW", "WeightDecayMode", "check_hyperparameters"]


class SparseAdamW(Optimizer, Closing):
    """AdamW that trains the entries of a mask and leaves every other bit of the model alone.

    Per chosen entry it holds a float32 master, two moments and a gradient accumulator, besides
    index and base value; nothing dense but the weights and one transient gradient. Gradients are
    gathered when backward produces them and ``.grad`` is freed on the spot, so gradients
    accumulate in float32 over the backward passes between two steps, whatever the dtype of the
    weights. Weights are written by assignment from the masters. The update is torch's
    single-tensor AdamW, operation by operation: on CPU the result equals, bit for bit, that of
    AdamW on dense float32 masters whose gradient is masked before clipping.

    While it is open, parameters without chosen entries have ``requires_grad`` False;
    :meth:`close` undoes that. Only one such optimizer can be open on a model. ``.grad`` is None
    throughout, so ``torch.nn.utils.clip_grad_norm_`` has nothing to clip: use ``max_grad_norm``.
    ``torch.amp.GradScaler`` is refused for the same reason; float16 weights train without it, at
    the risk of gradients that underflow. Reentrant activation checkpointing needs an input that
    requires a gradient: if the embedding has no chosen entries, call the model's
    ``enable_input_require_grads()``, or checkpoint with ``use_reentrant=False``.

    Args:
        model: The model that the mask was chosen for. The optimizer takes its weights as they are
            now for the base.
        mask: What to train.
        lr: Learning rate; schedulers change it in ``param_groups``.
        betas: Decay rates of the two moments, in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay per unit of learning rate, on chosen entries only.
        weight_decay_mode: ``"weight"`` decays chosen weights to zero, as AdamW does; ``"delta"``
            decays them to their base value.
        max_grad_norm: Clip the gradient of the chosen entries to this 2-norm: the norm of the
            per-tensor norms, in tensor order, as ``clip_grad_norm_`` does. None does not clip.
            All groups are clipped together.
        param_groups: Tensors with settings of their own: mappings of ``params`` (glob patterns of
            names, or parameters of the model) and any of ``lr``, ``betas``, ``eps``,
            ``weight_decay`` and ``weight_decay_mode``. A tensor goes to the first that matches it
            (:func:`gallop.groups.group_names`); the rest has the settings above.
        data_parallel: Whether processes that each hold the whole model average the gradients of
            the chosen entries in :meth:`step`: all of them (True), those of a process group, or
            none (False). None is an error where there are several. Sharded parameters
            (``fully_shard``) come with averaged gradients, and need no answer.

    Attributes:
        entries: What this process trains of each tensor of the mask, in the order of the model.
        peers: The processes that hold the model with this one; None if there are none.
        last_grad_norm: 2-norm of the last step's gradient before clipping; None before a step.

    Raises:
        ConfigError: A hyper-parameter is out of range, or a parameter group matches nothing.
        MaskError: The mask does not fit the model.
        OptimizerError: The mask is empty, or a parameter of it does not require a gradient.
        ParameterError: A parameter is of an unsupported kind (quantised, for one), or another
            SparseAdamW is open.
    """

    # GradScaler then leaves unscaling to step(), which can refuse with a reason; otherwise it
    # stops at an assertion about missing inf checks.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        weight_decay_mode: WeightDecayMode = "weight",
        max_grad_norm: float | None = None,
        param_groups: Sequence[GroupSpec] = (),
        data_parallel: DataParallel = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "weight_decay_mode": weight_decay_mode,
            "max_grad_norm": max_grad_norm,
        }
        check_hyperparameters(**defaults)  # type: ignore[arg-type]
        require_unwrapped(model)
        warn_if_compiled_whole(model)
        require_written(model, mask)
        kinds = parameter_kinds(model)
        peers = find_peers(model, data_parallel)
        chosen = share_out(model, mask, peers)
        targets = [target for target, _ in chosen]
        if not targets:
            raise OptimizerError("mask: expected at least one chosen entry, found none")
        require_untapped(model)  # before what an open one has frozen is taken for the caller's
        for target in targets:
            if not target.parameter.requires_grad:
                raise OptimizerError(
                    f"parameter {target.name}: expected requires_grad True for a parameter of "
                    "the mask, found False",
                    hint="call requires_grad_(True) on it before creating the optimizer",
                )
        held = {target.name: target.parameter for target in targets}
        own_settings = set(defaults) - {"max_grad_norm"}
        groups = group_names(model, held, param_groups, settings=own_settings)
        for _, settings in groups:
            check_hyperparameters(**(defaults | settings))  # type: ignore[arg-type]
        if peers is not None and data_parallel not in (None, False):
            require_same_start(model, mask, peers)
        entries = [gather_entries(target, positions) for target, positions in chosen]
        for parameter in model.parameters():
            parameter.grad = None  # a gradient from before is no part of the first step
        self._tap = GradientTap(
            model,
            {target: each.receive for target, each in zip(targets, entries, strict=True)},
        )
        self.entries = entries
        self._model = weakref.ref(model)
        self._parallel = peers and Parallelism(peers, entries, data_parallel=data_parallel)
        self.peers = peers
        self._kinds = {target.name: kinds[id(target.parameter)] for target in targets}
        self._closed = False
        self.last_grad_norm: float | None = None
        self._sealed = False
        super().__init__(
            [
                {"params": [held[name] for name in names], "param_names": names, **settings}
                for names, settings in groups
            ],
            defaults,
        )
        self._sealed = True
        for each in entries:
            self.state[each.parameter] = each.state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply the gradients gathered since the last step, then forget them.

        A tensor that no backward pass reached since then is skipped, moments and decay included,
        as torch's optimizers skip a parameter without a gradient; if that is all of them, nothing
        happens.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            The closure's loss, if there is one.

        Raises:
            OptimizerError: A gradient is not finite (no weight has been changed then), a
                GradScaler drives the step, or the optimizer is closed.
        """
        if hasattr(self, "grad_scale"):
            raise OptimizerError(
                "GradScaler: expected unscaled gradients, found a scaler driving the step",
                hint="train in bfloat16, without a scaler, or use gallop.SparseValues, whose "
                "float32 gradients a scaler can see",
            )
        self._require_open("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._apply()
        return loss

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the norm that the next step would clip: of what was gathered since the last one.

        Collective where several processes train together, and then to be called right before the
        step: data parallel gradients are averaged here.

        Returns:
            2-norm over the chosen entries, a float32 scalar; 0 if nothing was gathered.
        """
        ready = self._gathered()
        return self._norm(ready, self._norms(ready)) if ready else torch.zeros(())

    def _apply(self) -> None:
        require_taken(self._model(), self.entries)
        ready = self._gathered()
        if not ready:
            return
        limit = self.param_groups[0]["max_grad_norm"]
        norm = self._checked_norm(ready)
        if limit is not None:
            # Always multiplied, by 1.0 where the norm is within bounds: that is exact, and does
            # without a branch on a device value.
            factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
            for each in ready:
                each.gradient.mul_(factor.to(each.gradient.device))
        groups = {name: group for group in self.param_groups for name in group["param_names"]}
        for each in ready:
            adamw_update(each, groups[each.name])
            each.write_back()
            each.forget_gradient()
        self.last_grad_norm = float(norm)

    def _gathered(self) -> list[Entries]:
        if self._parallel:
            self._parallel.average()
        return [each for each in self.entries if each.gathered]

    def _norm(self, ready: list[Entries], norms: list[Tensor]) -> Tensor:
        whole = self._parallel.norm(ready, norms) if self._parallel else None
        return torch.linalg.vector_norm(torch.stack(norms)) if whole is None else whole

    def _norms(self, ready: list[Entries]) -> list[Tensor]:
        return [
            torch.linalg.vector_norm(each.gradient).to(ready[0].gradient.device) for each in ready
        ]

    def _checked_norm(self, ready: list[Entries]) -> Tensor:
        norms = self._norms(ready)
        norm = self._norm(ready, norms)
        if not bool(torch.isfinite(norm)):
            found = next(
                (
                    (each.name, float(own))
                    for each, own in zip(ready, norms, strict=True)
                    if not bool(torch.isfinite(own))
                ),
                ("all parameters", float(norm)),
            )
            self.zero_grad()
            raise OptimizerError(
                f"parameter {found[0]}: expected a finite gradient norm, found {found[1]}; no "
                "weight was changed",
                hint="look at the batch: half precision may overflow, or all labels be ignored",
            )
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002  (torch's signature)
        """Forget the gradients gathered since the last step.

        Args:
            set_to_none: Passed on to torch, for gradients that a closed optimizer left alone.
        """
        for each in self.entries:
            each.forget_gradient()
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: what is trained is what the mask holds.

        Args:
            param_group: As in torch; only the constructor's own calls are accepted.

        Raises:
            OptimizerError: The optimizer already has its groups.
        """
        if self._sealed:
            raise OptimizerError(
                "add_param_group: expected the groups made from the mask, found a second one "
                "besides them",
                hint="build a mask that holds all parameters to train, and name groups of it in "
                "param_groups",
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that :meth:`state_dict` returned, bit for bit.

        torch's own method would cast float32 masters and integer indices to the dtype of the
        weights; this one copies as is. Chosen weights are then written from the masters, so that
        model and optimizer agree even if the model was loaded from elsewhere.

        Args:
            state_dict: State of an optimizer for the same mask.

        Raises:
            OptimizerError: The state is of another mask or model, or malformed, or the optimizer is
                closed; nothing has been changed then.
        """
        self._require_open("load_state_dict")
        names = [group["param_names"] for group in self.param_groups]
        states, saved = check_state(self.entries, names, state_dict)
        for settings in saved:
            check_settings(settings)
        for each, state in zip(self.entries, states, strict=True):
            each.load(state)
            each.forget_gradient()
            with torch.no_grad():
                each.write_back()
        for group, settings in zip(self.param_groups, saved, strict=True):
            group.update(settings)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are held besides the weights: 24 per entry in float32.

        The index shares its memory with the mask on CPU.
        """
        return sum(each.nbytes for each in self.entries)

    def visibility(self) -> Visibility:
        """Count the entries whose master moved, and those of them whose weight shows it.

        Returns:
            The counts, in all, per dtype and per kind of parameter; of a closed optimizer, too. Of
            a sharded model they are those of all processes, and the call is collective.
        """
        held = self._parallel.counted(self.entries) if self._parallel else self.entries
        here = measure_visibility(
            TrainedEntries(
                self._kinds[each.name],
                each.target.weight,
                each.state["index"],
                each.state["base"],
                each.state["master"],
            )
            for each in held
        )
        return self._parallel.visibility(here) if self._parallel else here

    def _require_open(self, call: str) -> None:
        if self._closed:
            raise OptimizerError(
                f"{call}: expected an open optimizer, found one that was closed",
                hint="create another SparseAdamW to train on",
            )

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise OptimizerError(
            "SparseAdamW: expected one optimizer per model, found a copy being made",
            hint="save and load its state_dict()",
        )

    def __reduce__(self) -> NoReturn:
        raise OptimizerError(
            "SparseAdamW: expected its state to be saved, found the optimizer itself",
            hint="save and load its state_dict()",
        )

    def close(self) -> None:
        """Stop gathering: remove the hooks and restore ``requires_grad``. A second call is free."""
        self.zero_grad()
        self._tap.close()
        self._closed = True
