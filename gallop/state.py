"""The training state of one tensor's chosen entries: gathered, written back, saved, resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gallop.errors import OptimizerError
from gallop.mask import IndexArray
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
    """

    __slots__ = ("gathered", "gradient", "name", "parameter", "state")

    def __init__(self, target: Target, state: dict[str, Any]) -> None:
        self.name = target.name
        self.parameter: nn.Parameter = target.parameter
        self.state = state
        self.gradient: Tensor = torch.empty_like(state["master"])
        self.gathered = False

    def receive(self, gradient: Tensor) -> None:
        """Add the chosen entries of a dense gradient to ``gradient``.

        Args:
            gradient: Of the parameter's shape, in any layout of memory and floating dtype.

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
        values = gradient.reshape(-1).index_select(0, index)
        if self.gathered:
            self.gradient.add_(values.float())
        else:
            self.gradient.copy_(values)
        self.gathered = True

    def forget_gradient(self) -> None:
        """Start a new sum."""
        self.gathered = False

    def write_back(self) -> None:
        """Assign the masters, rounded to the parameter's dtype, to the chosen weights."""
        weight = self.parameter.detach().view(-1)
        weight.scatter_(0, self.state["index"], self.state["master"].to(weight.dtype))

    def load(self, state: Mapping[str, Any]) -> None:
        """Copy a checked state, keeping dtypes and moving to the parameter's device.

        Args:
            state: What :func:`check_state` returned.
        """
        device = self.parameter.device
        self.state = {
            key: value.detach().to(device=device, copy=True) if key != "step" else int(value)
            for key, value in state.items()
        }


def gather_entries(target: Target, index: IndexArray) -> Entries:
    """Start the training state of a parameter at its present values.

    Args:
        target: The parameter.
        index: Sorted flat indices of the chosen entries.

    Returns:
        Entries with masters equal to the weights and moments of zero.
    """
    weight = target.parameter.detach()
    # Half the memory; gather and scatter take int32 as they do int64.
    dtype = torch.int32 if weight.numel() < 2**31 else torch.int64
    own = torch.tensor(index, dtype=dtype, device=weight.device)
    base = weight.reshape(-1).index_select(0, own)
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
    entries: Sequence[Entries], state_dict: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Check a saved optimizer state against the entries it is meant for.

    Args:
        entries: The optimizer's own, in order.
        state_dict: As torch's ``Optimizer.state_dict`` lays it out.

    Returns:
        The state of each of ``entries``, and the settings of the parameter group without its
        parameters.

    Raises:
        OptimizerError: The state is of another mask or model, or malformed.
    """
    try:
        (group,) = state_dict["param_groups"]
        names = list(group["param_names"])
        states = [state_dict["state"][key] for key in group["params"]]
    except (KeyError, TypeError, ValueError) as error:
        raise OptimizerError(
            "optimizer state: expected one parameter group with param_names and a state for each "
            f"parameter, found {error!r}",
            hint="only a state of SparseAdamW can be loaded into SparseAdamW",
        ) from error
    expected = [each.name for each in entries]
    if names != expected or len(states) != len(expected):
        odd = sorted(set(names) ^ set(expected)) or names
        raise OptimizerError(
            f"optimizer state: expected the {len(expected)} parameters of this mask, found "
            f"{len(names)}; the first that differs is {odd[0]}",
            hint="load the mask that this state was trained with",
        )
    for each, state in zip(entries, states, strict=True):
        _check_entries(each, state)
    settings = {"lr", "betas", "eps", "weight_decay", "weight_decay_mode", "max_grad_norm"}
    missing = sorted(settings - set(group))
    if missing:
        raise OptimizerError(f"optimizer state: expected settings {missing}, found none")
    return states, {key: value for key, value in group.items() if key != "params"}


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
        if key == "index" and not torch.equal(value.to(own.device), own):
            raise OptimizerError(
                f"{where}: expected the {own.numel()} entries of this mask, found "
                f"{value.numel()} entries of another",
                hint="load the mask that this state was trained with",
            )
        if value.shape != own.shape:
            raise OptimizerError(
                f"{where}: expected {key} of shape {tuple(own.shape)}, found {tuple(value.shape)}"
            )
