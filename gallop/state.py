"""The training state of one tensor's chosen entries: gathered, written back, saved, resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gallop.errors import OptimizerError
from gallop.mask import CompactArray
from gallop.pieces import add_entries, assign_entries, pieces, take_entries
from gallop.targets import Target

__all__ = ["Entries", "check_state", "gather_entries"]


class Entries:
    """The ``k`` chosen entries of one parameter.

    Attributes:
        name: Name of the parameter.
        parameter: The parameter, of any supported dtype.
        state: What a checkpoint holds, in this order: ``step`` (int), ``index`` (int32 where it
            fits, else int64), ``base`` (k values in the dtype of the weights), and the float32
            vectors ``master``, ``exp_avg`` and ``exp_avg_sq``.
        gradient: float32 sum of the gradients gathered since the last step; stale unless
            ``gathered``.
        gathered: Whether a gradient came since the last step.
        averaged: Whether ``gradient`` is the average of all processes; see
            ``gallop.parallelism``.
        target: The parameter, and which of its entries this process holds: indices are those of
            what is held.
    """

    __slots__ = ("averaged", "gathered", "gradient", "name", "parameter", "state", "target")

    def __init__(self, target: Target, state: dict[str, Any]) -> None:
        self.target = target
        self.name = target.name
        self.parameter: nn.Parameter = target.parameter
        self.state = state
        self.gradient: Tensor = torch.empty_like(state["master"])
        self.gathered = self.averaged = False

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held, weights aside."""
        held = [self.gradient, *self.state.values()]
        return sum(each.nbytes for each in held if isinstance(each, Tensor))

    def receive(self, gradient: Tensor) -> None:
        """Add the chosen entries of a dense gradient to ``gradient``.

        Args:
            gradient: Of the shape of what is held of the parameter, in any layout of memory and
                floating dtype.

        Raises:
            OptimizerError: The model was moved to another device after the optimizer was made.
        """
        index = self.state["index"]
        if gradient.device != index.device:
            raise OptimizerError(
                f"parameter {self.name}: expected its gradient on {index.device}, where the "
                f"optimizer was created, found {gradient.device}",
                hint="move the model first, then create the optimizer",
            )
        (add_entries if self.gathered else take_entries)(gradient, index, out=self.gradient)
        self.gathered, self.averaged = True, False

    def forget_gradient(self) -> None:
        """Start a new sum."""
        self.gathered = self.averaged = False

    def write_back(self) -> None:
        """Assign the masters, rounded to the parameter's dtype, to the chosen weights."""
        assign_entries(self.target.weight, self.state["index"], self.state["master"])

    def load(self, state: Mapping[str, Any]) -> None:
        """Copy a checked state into the tensors that there are.

        Args:
            state: What :func:`check_state` returned.
        """
        for key, own in self.state.items():
            # The index is known to be the same, and its memory is the mask's.
            if isinstance(own, Tensor) and key != "index":
                own.copy_(state[key].detach())
        self.state["step"] = int(state["step"])


def gather_entries(target: Target, index: CompactArray) -> Entries:
    """Start the training state of a parameter at its present values.

    Args:
        target: The parameter.
        index: Sorted positions of the chosen entries among those held here; their memory is
            shared on CPU.

    Returns:
        Entries with masters equal to the weights and moments of zero.
    """
    weight = target.weight
    # Gather and scatter take int32 as they do int64.
    own = torch.from_numpy(index).to(weight.device)
    base = torch.empty(own.numel(), dtype=weight.dtype, device=weight.device)
    take_entries(weight, own, out=base)
    master = base.to(torch.float32, copy=True)
    state = {
        "step": 0,
        "index": own,
        "base": base,
        "master": master,
        "exp_avg": torch.zeros_like(master),
        "exp_avg_sq": torch.zeros_like(master),
    }
    return Entries(target, state)


def check_state(
    entries: Sequence[Entries],
    groups: Sequence[Sequence[str]],
    state_dict: Mapping[str, Any],
) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]]]:
    """Check a saved optimizer state against the entries it is meant for.

    Args:
        entries: The optimizer's own, in order.
        groups: Names in each of its parameter groups.
        state_dict: As torch's ``Optimizer.state_dict`` lays it out.

    Returns:
        The state of each of ``entries``, and the settings of each parameter group without its
        parameters.

    Raises:
        OptimizerError: The state is of another mask or model, or malformed.
    """
    try:
        saved = [dict(group) for group in state_dict["param_groups"]]
        names = [list(group["param_names"]) for group in saved]
        keys = [list(group.pop("params")) for group in saved]
        held = {
            name: state_dict["state"][key]
            for each, own in zip(names, keys, strict=True)
            for name, key in zip(each, own, strict=True)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptimizerError(
            "optimizer state: expected at least one parameter group with param_names and a state "
            f"for each parameter, found {error!r}",
            hint="only a state of SparseAdamW can be loaded into SparseAdamW",
        ) from error
    expected = [each.name for each in entries]
    if set(held) != set(expected):
        odd = sorted(set(held) ^ set(expected))
        raise OptimizerError(
            f"optimizer state: expected the {len(expected)} parameters of this mask, found "
            f"{len(held)}; the first that differs is {odd[0]}",
            hint="load the mask that this state was trained with",
        )
    if names != [list(each) for each in groups]:
        raise OptimizerError(
            f"optimizer state: expected {len(groups)} parameter groups of "
            f"{[len(each) for each in groups]} tensors, found {[len(each) for each in names]}, or "
            "others of the same sizes",
            hint="create the optimizer with the param_groups that this state was trained with",
        )
    states = [held[name] for name in expected]
    for each, state in zip(entries, states, strict=True):
        _check_entries(each, state)
    settings = {"lr", "betas", "eps", "weight_decay", "weight_decay_mode", "max_grad_norm"}
    for group in saved:
        missing = sorted(settings - set(group))
        if missing:
            raise OptimizerError(f"optimizer state: expected settings {missing}, found none")
    return states, saved


def _check_entries(each: Entries, state: Mapping[str, Any]) -> None:
    where = f"optimizer state of {each.name}"
    if set(state) != set(each.state):
        raise OptimizerError(f"{where}: expected {sorted(each.state)}, found {sorted(state)}")
    for key, own in each.state.items():
        value = state[key]
        if key == "step":
            if not isinstance(value, int | Tensor) or value < 0 or int(value) != value:
                raise OptimizerError(f"{where}: expected a step count, found {value!r}")
            continue
        if not isinstance(value, Tensor) or value.dtype != own.dtype:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise OptimizerError(f"{where}: expected {key} of {own.dtype}, found {found}")
        if key == "index" and not _equal(value, own):
            raise OptimizerError(
                f"{where}: expected the {own.numel()} entries of this mask, found "
                f"{value.numel()} entries of another",
                hint="load the mask that this state was trained with",
            )
        if value.shape != own.shape:
            raise OptimizerError(
                f"{where}: expected {key} of shape {tuple(own.shape)}, found {tuple(value.shape)}"
            )


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and all(
        torch.equal(left[part].to(right.device), right[part]) for part in pieces(right.numel())
    )
