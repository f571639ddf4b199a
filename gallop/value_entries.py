"""The values of one tensor's chosen entries: gathered, assigned, saved, resumed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gallop.errors import OptimizerError
from gallop.mask import CompactArray
from gallop.pieces import add_entries, assign_entries, pieces, take_entries
from gallop.targets import Target

__all__ = ["ValueEntries", "added_entries", "check_values", "written_entries"]


class ValueEntries:
    """The ``k`` chosen entries of one parameter, or of a layer that has none.

    Attributes:
        name: Name of the parameter.
        parameter: What is written to; None beside a quantised layer.
        index: k flat indices, on the device of the values.
        base: k values before training, in the dtype of the weights; none beside a quantised layer.
        values: k float32 values, a parameter.
    """

    __slots__ = ("base", "index", "name", "parameter", "values")

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter | None,
        *,
        index: Tensor,
        base: Tensor,
        values: nn.Parameter,
    ) -> None:
        self.name = name
        self.parameter = parameter
        self.index = index
        self.base = base
        self.values = values

    @property
    def receive(self) -> Callable[[Tensor], None]:
        """What adds the chosen entries of a dense gradient to the gradient of the values.

        It does not keep them alive: it is held by the model's own parameter.
        """
        held, index, name = weakref.ref(self.values), self.index, self.name

        def receive(gradient: Tensor) -> None:
            values = held()
            if values is None or not values.requires_grad:
                return
            if gradient.device != index.device:
                raise OptimizerError(
                    f"parameter {name}: expected its gradient on {index.device}, where its values "
                    f"were made, found {gradient.device}",
                    hint="move the model first, then create SparseValues",
                )
            if values.grad is None:
                values.grad = torch.empty_like(values, requires_grad=False)
                take_entries(gradient, index, out=values.grad)
            else:
                add_entries(gradient, index, out=values.grad)

        return receive

    def write(self) -> None:
        """Assign the values, rounded to the parameter's dtype, to the chosen weights."""
        if self.parameter is not None:
            weight = self.parameter.detach().view(-1)
            assign_entries(weight, self.index, self.values.detach())

    def weight(self) -> Tensor:
        """Return the flat weights; beside a quantised layer the values, which are all there is."""
        return (self.values if self.parameter is None else self.parameter).detach().view(-1)

    def where(self) -> Tensor:
        """Return the index of the chosen entries in :meth:`weight`."""
        if self.parameter is not None:
            return self.index
        return torch.arange(self.index.numel(), device=self.index.device, dtype=self.index.dtype)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds."""
        return {"index": self.index, "base": self.base, "value": self.values.detach()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy a checked state into the tensors that there are.

        Args:
            state: As :meth:`state` returned it.
        """
        self.base.copy_(state["base"])
        self.values.copy_(state["value"])


def written_entries(target: Target, index: CompactArray) -> ValueEntries:
    """Make values of the chosen entries of a parameter, at its present weights.

    Args:
        target: The parameter.
        index: Sorted flat indices; their memory is shared on CPU.
    """
    weight = target.parameter.detach()
    own = torch.from_numpy(index).to(weight.device)
    base = torch.empty(own.numel(), dtype=weight.dtype, device=weight.device)
    take_entries(weight, own, out=base)
    values = nn.Parameter(base.to(torch.float32, copy=True))
    return ValueEntries(target.name, target.parameter, index=own, base=base, values=values)


def added_entries(name: str, module: nn.Module, index: CompactArray) -> ValueEntries:
    """Make values that are added to what a quantised layer gives: zeros, where it is.

    Args:
        name: Name of its weight.
        module: The layer.
        index: Sorted flat indices into the dequantised weight.
    """
    held = [*module.parameters(), *module.buffers()]
    device = held[0].device if held else torch.device("cpu")
    own = torch.from_numpy(index).to(device)
    values = nn.Parameter(torch.zeros(own.numel(), device=device))
    return ValueEntries(
        name, None, index=own, base=torch.zeros_like(values.detach()), values=values
    )


def check_values(
    entries: Sequence[ValueEntries], state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Check saved values against the entries that they are meant for.

    Args:
        entries: Those of the mask.
        state: What was saved.

    Raises:
        OptimizerError: The state is of another mask, or malformed.
    """
    expected = {each.name for each in entries}
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise OptimizerError(
            f"values: expected the {len(expected)} tensors of this mask, found {len(state)}; the "
            f"first that differs is {odd[0]}",
            hint="load the mask that these values were trained with",
        )
    for each in entries:
        saved, own = state[each.name], each.state()
        for key, mine in own.items():
            found = saved.get(key)
            if found is None or found.dtype != mine.dtype or found.shape != mine.shape:
                what = "none" if found is None else f"{found.dtype} of {tuple(found.shape)}"
                raise OptimizerError(
                    f"values of {each.name}: expected {key} of {mine.dtype} and shape "
                    f"{tuple(mine.shape)}, found {what}",
                    hint="load the mask that these values were trained with",
                )
        if any(
            not torch.equal(saved["index"][part].to(each.index.device), each.index[part])
            for part in pieces(each.index.numel())
        ):
            raise OptimizerError(
                f"values of {each.name}: expected the entries of this mask, found others",
                hint="load the mask that these values were trained with",
            )
