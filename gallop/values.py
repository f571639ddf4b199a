"""The chosen entries of a frozen model as ordinary parameters, for any optimizer of torch."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from gallop import added, linear
from gallop.compiled import warn_if_compiled_whole
from gallop.errors import ConfigError, MaskError, OptimizerError
from gallop.frozen_bases import frozen_linears
from gallop.groups import GroupSpec, group_names
from gallop.kinds import parameter_kinds
from gallop.mask import Mask
from gallop.sampled_product import GradientMode
from gallop.taps import GradientTap
from gallop.targets import Target, require_whole
from gallop.value_entries import ValueEntries, added_entries, check_values, written_entries
from gallop.visibility import TrainedEntries, Visibility, measure_visibility
from sparsedelta.closing import Closing

__all__ = ["SparseValues"]

_log = logging.getLogger("gallop")
_Chosen = TypeVar("_Chosen", bound=Optimizer)


class SparseValues(Closing):
    """Trains the entries of a mask with any optimizer: the model is frozen, its entries are not.

    Each tensor of the mask has one float32 ``nn.Parameter`` of as many entries as were chosen::

        values = gallop.SparseValues(model, mask)
        optimizer = values.optimizer(torch.optim.AdamW, lr=2e-4, fused=True)
        for batch in batches:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(values.parameters(), 1.0)
            optimizer.step()  # the weights are written right after it
            optimizer.zero_grad()
        values.close()

    Gradients of the weights of ``nn.Linear`` are gathered and dropped inside its backward pass;
    those of all other parameters, and of tied ones, as soon as autograd has them. They add up in
    ``.grad`` of the values, in float32. After the step of any ``torch.optim.Optimizer`` that holds
    values, these are assigned to the weights, rounded to their dtype; another kind of optimizer
    calls for :meth:`write`. With ``torch.optim.AdamW(foreach=False)`` in float32 on CPU the weights
    equal those of :class:`gallop.SparseAdamW` bit for bit.

    With ``gradient="sampled"`` the chosen entries of a Linear's gradient are computed alone
    (``gallop.sampled_product``), and the matrix never exists: on CPU several times as fast at the
    usual densities, and equal up to the rounding of float32 sums. Of all other parameters the
    gradient is whole, as ever; :attr:`sampled` names the tensors that it is not.

    A quantised Linear (of bitsandbytes, torchao and the like) cannot be written to: the values of a
    mask over its ``layer.weight``, in the dequantised shape, start at zero and are added to what
    the layer gives (``gallop.added``), as long as this object is open. Weight decay then pulls to
    the base; elsewhere it pulls weights to zero, as torch's does.

    The model must not be wrapped in DistributedDataParallel, which does not know the values.
    Reentrant activation checkpointing needs an input that requires a gradient: call the model's
    ``enable_input_require_grads()``, or checkpoint with ``use_reentrant=False``.

    Args:
        model: The model that the mask was chosen for, holding the base's weights.
        mask: What to train.
        gradient: ``"dense"`` gathers from the whole gradient of a Linear's weight, ``"sampled"``
            computes no more of it than the chosen entries.

    Attributes:
        sampled: Names of the tensors of which only the chosen entries of a gradient are computed.

    Raises:
        ConfigError: ``gradient`` is neither.
        MaskError: The mask does not fit the model.
        OptimizerError: The mask is empty.
        ParameterError: A parameter is of an unsupported kind, or already being trained.
    """

    def __init__(self, model: nn.Module, mask: Mask, *, gradient: GradientMode = "dense") -> None:
        if gradient not in get_args(GradientMode):
            raise ConfigError(f"gradient: expected dense or sampled, found {gradient!r}")
        warn_if_compiled_whole(model)
        frozen = frozen_linears(model, mask)
        shapes = {name: _frozen_shape(name, module, mask) for name, module in frozen.items()}
        plain = Mask({name: mask.compact(name) for name in mask if name not in frozen}, mask.shapes)
        if not len(mask):
            raise OptimizerError("mask: expected at least one chosen entry, found none")
        targets = [Target(name, p) for name, p in plain.resolve(model).items()]
        require_whole(targets)
        self._model = model
        self._entries = [written_entries(target, plain.compact(target.name)) for target in targets]
        kinds = parameter_kinds(model)
        self._kinds = {target.name: kinds[id(target.parameter)] for target in targets}
        inside = linear.gathering_linears(model, targets)
        self._tap = GradientTap(
            model,
            {
                target: each.receive
                for target, each in zip(targets, self._entries, strict=True)
                if target.name not in inside
            },
            owned=[target for target in targets if target.name in inside],
        )
        undo: list[Callable[[], object]] = [
            linear.install(inside[each.name], each.values, each.index, gradient=gradient)
            for each in self._entries
            if each.name in inside
        ]
        for name, module in frozen.items():
            each = added_entries(name, module, mask.compact(name))
            undo.append(
                added.install(module, each.values, each.index, shapes[name], gradient=gradient)
            )
            self._entries.append(each)
            self._kinds[name] = "linear"
        self.sampled = frozenset([*inside, *frozen] if gradient == "sampled" else ())
        if gradient == "sampled":
            _tell_what_is_sampled(self._entries, self.sampled)
        self._by_id = {id(each.values): each for each in self._entries}
        self._finalizer = weakref.finalize(self, _release, undo, self._tap)
        self._finalizer.atexit = False
        # These outlive close(): a step that would train nothing is refused, not taken.
        weakref.finalize(self, _stop_listening, _listen(self)).atexit = False
        for each in self._entries:
            # An optimizer that is all that is left of this keeps it in force.
            each.values._gallop_owner = self  # type: ignore[attr-defined]  # noqa: SLF001

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """List the values by the names of the parameters that they are entries of.

        Yields:
            Name, and k float32 values, in the order of the model, quantised layers last.
        """
        for each in self._entries:
            yield each.name, each.values

    def parameters(self) -> Iterator[nn.Parameter]:
        """List the values, in the order of :meth:`named_parameters`."""
        return (values for _, values in self.named_parameters())

    def groups(self, param_groups: Sequence[GroupSpec] = ()) -> list[dict[str, Any]]:
        """Distribute the values over parameter groups for an optimizer of one's own.

        Args:
            param_groups: As in :class:`gallop.SparseAdamW`, with any settings.

        Returns:
            Groups as every ``torch.optim.Optimizer`` takes them, with names.

        Raises:
            ConfigError: A group matches nothing.
        """
        held = dict(self.named_parameters())
        weights = {each.name: each.parameter for each in self._entries}
        known = {name: held[name] if p is None else p for name, p in weights.items()}
        return [
            {"params": [held[name] for name in names], "param_names": names, **settings}
            for names, settings in group_names(self._model, known, param_groups)
        ]

    def optimizer(
        self,
        kind: Callable[..., _Chosen],
        *,
        param_groups: Sequence[GroupSpec] = (),
        **settings: Any,  # noqa: ANN401  (the optimizer's)
    ) -> _Chosen:
        """Make an optimizer of the values.

        Args:
            kind: Such as ``torch.optim.AdamW``.
            param_groups: As in :meth:`groups`.
            settings: Its keyword arguments.

        Returns:
            The optimizer; whatever makes it, weights are written after each of its steps.

        Raises:
            ConfigError: A group matches nothing.
            OptimizerError: The optimizer works on matrices, as Muon does.
        """
        _refuse_matrix_optimizers(getattr(kind, "__name__", ""))
        return kind(self.groups(param_groups), **settings)

    @torch.no_grad()
    def write(self) -> None:
        """Assign the values to the weights: after a step of what is no ``torch.optim.Optimizer``.

        Values beside a quantised layer are in force without.
        """
        for each in self._entries:
            each.write()

    def zero_grad(self) -> None:
        """Drop the gradients of all values."""
        for values in self.parameters():
            values.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return index, base and value of each tensor by name; the optimizer has its own state.

        Returns:
            References, not copies: int32 or int64 ``index``, ``base`` in the dtype of the weights
            (empty beside a quantised layer), float32 ``value``.
        """
        return {each.name: each.state() for each in self._entries}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over values bit for bit, and write them into the weights.

        Args:
            state: What :meth:`state_dict` returned for the same mask.

        Raises:
            OptimizerError: The state is of another mask, or malformed, or this is closed; nothing
                has changed then.
        """
        self._require_open("load_state_dict")
        check_values(self._entries, state)
        for each in self._entries:
            each.load(state[each.name])
            each.write()

    def visibility(self) -> Visibility:
        """Count the entries that moved, and those of them whose weights show it.

        Returns:
            The counts; what is added to quantised layers is float32 and always visible.
        """
        return measure_visibility(
            TrainedEntries(
                self._kinds[each.name], each.weight(), each.where(), each.base, each.values
            )
            for each in self._entries
        )

    def close(self) -> None:
        """Give the model its own forward, ``requires_grad`` and ``.grad`` back.

        Optimizers of the values refuse to step from then on.
        The weights stay as trained; what was added to quantised layers is gone from the model. A
        second call is free.
        """
        self._finalizer()

    def _require_open(self, call: str) -> None:
        if not self._finalizer.alive:
            raise OptimizerError(
                f"{call}: expected open SparseValues, found some that were closed",
                hint="create another SparseValues to train on",
            )

    def _before(self, optimizer: Optimizer) -> None:
        if any(self._held(optimizer)):
            self._require_open("step")
            _refuse_matrix_optimizers(type(optimizer).__name__)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        for each in self._held(optimizer):
            each.write()

    def _held(self, optimizer: Optimizer) -> Iterator[ValueEntries]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                each = self._by_id.get(id(parameter))
                if each is not None and each.values is parameter:
                    yield each


def _tell_what_is_sampled(entries: Sequence[ValueEntries], sampled: frozenset[str]) -> None:
    counts = {each.name: each.index.numel() for each in entries}
    share = sum(counts[name] for name in sampled) / sum(counts.values())
    others = [name for name in counts if name not in sampled]
    most = max(others, key=counts.__getitem__, default="")
    _log.log(
        logging.WARNING if share < 0.5 else logging.INFO,  # noqa: PLR2004  (most of it is dense)
        "sampled gradients: %d of %d tensors, %.1f %% of the chosen entries%s",
        *(len(sampled), len(counts), 100 * share),
        f"; all others have dense ones, such as {most}: it is no weight of an nn.Linear of its own"
        if others
        else "",
    )


def _frozen_shape(name: str, module: nn.Module, mask: Mask) -> tuple[int, int]:
    sides: tuple[Any, Any] = (module.out_features, module.in_features)
    if tuple(mask.shapes[name]) != sides:
        raise MaskError(
            f"mask of {name}: expected the dequantised shape {sides}, found {mask.shapes[name]}",
            hint="a mask of a quantised layer has the shape (out_features, in_features)",
        )
    return sides


def _refuse_matrix_optimizers(name: str) -> None:
    if "muon" in name.lower():
        raise OptimizerError(
            f"{name}: expected an optimizer that works entry by entry, found one that "
            "orthogonalises matrices; the chosen entries of a tensor are a vector",
            hint="torch.optim.AdamW, SGD, Adafactor and 8-bit optimizers work",
        )


def _listen(values: SparseValues) -> list[RemovableHandle]:
    held = weakref.ref(values)

    def before(optimizer: Optimizer, *_: object) -> None:
        owner = held()
        if owner is not None:
            owner._before(optimizer)  # noqa: SLF001

    def after(optimizer: Optimizer, *_: object) -> None:
        owner = held()
        if owner is not None:
            owner._after(optimizer)  # noqa: SLF001

    return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]


def _stop_listening(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _release(undo: Sequence[Callable[[], object]], tap: GradientTap) -> None:
    for each in undo:
        each()
    tap.close()
