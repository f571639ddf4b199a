"""What a training takes, before anything is run: bytes by accounting, time by counting FLOPs."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gallop.config import GallopConfig
from gallop.errors import ModelError
from gallop.linear import gathering_linears, install
from gallop.mask import Mask
from gallop.sampled_product import transient_bytes
from gallop.speeds import even_indices
from gallop.state import gather_entries
from gallop.taps import GradientTap
from gallop.targets import Target
from gallop.values import SparseValues

__all__ = [
    "MicroBatchCost",
    "ProbeResult",
    "delta_bytes",
    "entry_bytes",
    "micro_batch_cost",
    "model_bytes",
    "requested_entries",
    "run_probe",
]

_VALUE_BITS: Mapping[int, float] = {2: 9.0, 4: 25.0}
"""Bits that the value of a changed entry is taken to need in a delta, by the bytes of its dtype.

With masks of 1 % in bfloat16 whole deltas took 17 to 18.5 bits an entry, 8.1 of them for where it
is; in 32 bits most of the mantissa is taken for noise, which has not been measured."""


@dataclass(frozen=True, slots=True)
class MicroBatchCost:
    """One forward and backward pass.

    Attributes:
        nbytes: Largest sum of the bytes of all tensors that are alive at once, weights aside: what
            backward needs, its transients, and one gradient at a time.
        flops: Floating-point operations of matrix products and convolutions.
        sampled_flops: Of these, those of sampled gradients, which are slower ones.
    """

    nbytes: int
    flops: int
    sampled_flops: int = 0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One micro-batch that was run.

    Attributes:
        seconds: Wall-clock time of a second pass; the first one allocates.
        nbytes: As :class:`MicroBatchCost` has them, of the tensors that there were.
    """

    seconds: float
    nbytes: int


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages while they are alive, those of a model aside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = [*model.parameters(), *model.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in held}  # noqa: SLF001  (its identity)
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count what it makes."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata  # noqa: SLF001
                if key not in self._known:
                    self._known.add(key)
                    self._live += storage.nbytes()
                    self.peak = max(self.peak, self._live)
                    weakref.finalize(storage, self._gone, key, storage.nbytes())
        return result

    def forget(self) -> None:
        """Take what there is for granted, as the model is."""
        self._live = self.peak = 0

    def _gone(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self._live -= nbytes


def micro_batch_cost(
    model: nn.Module,
    targets: Sequence[Target],
    *,
    mode: FakeTensorMode,
    batch_size: int,
    length: int,
    sampled: float | None = None,
) -> MicroBatchCost:
    """Follow a forward and backward pass without computing it: nothing is allocated.

    Args:
        model: From :func:`gallop.loading.load_architecture`.
        targets: What requires a gradient; the rest is frozen here.
        mode: The mode of its tensors.
        batch_size: Sequences.
        length: Tokens of each.
        sampled: With sampled gradients, the share of the entries that are chosen.

    Returns:
        Bytes and operations.

    Raises:
        ModelError: The model cannot be followed: its computation depends on values.
    """
    inside = {} if sampled is None else gathering_linears(model, targets)
    _keep_no_gradients(model, [target for target in targets if target.name not in inside])
    model.train()
    tokens = batch_size * length
    held: list[nn.Parameter] = []
    undo = []
    try:
        with mode, _LiveBytes(model) as live, FlopCounterMode(display=False) as counter:
            for module in inside.values():
                count = _chosen(module, sampled)
                held.append(nn.Parameter(torch.empty(count)))
                held[-1].register_post_accumulate_grad_hook(_free)  # type: ignore[no-untyped-call]
                index = torch.empty(count, dtype=torch.int32)
                undo.append(install(module, held[-1], index, gradient="sampled"))
            live.forget()
            ids = torch.zeros((batch_size, length), dtype=torch.int64)
            model(input_ids=ids, labels=ids).loss.backward()
    except Exception as error:
        first = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(
            f"{type(model).__name__}: expected a model that can be followed without its weights, "
            f"found {first}",
            hint="gallop estimate --probe runs one micro-batch instead",
        ) from error
    finally:
        for restore in undo:
            restore()
    return MicroBatchCost(
        live.peak + _transient(inside, sampled, tokens),
        int(counter.get_total_flops()),
        2 * tokens * sum(each.numel() for each in held),
    )


def run_probe(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Mapping[str, Tensor],
    *,
    sampled: float | None = None,
) -> ProbeResult:
    """Run a micro-batch forward and backward, twice, dropping the gradients.

    Args:
        model: A loaded causal language model; left as it was found.
        targets: What requires a gradient.
        batch: As from :func:`gallop.data.make_batch`.
        sampled: With sampled gradients, the share of the entries that are chosen.

    Returns:
        Time and bytes.
    """
    if sampled is not None:
        inside = gathering_linears(model, targets)
        mask = _even_mask(targets, sampled)
        with SparseValues(model, mask, gradient="sampled") as values:
            for each in values.parameters():
                each.register_post_accumulate_grad_hook(_free)  # type: ignore[no-untyped-call]
            found = _probe(model, batch)
        more = _transient(inside, sampled, batch["input_ids"].numel())
        return ProbeResult(found.seconds, found.nbytes + more)
    with GradientTap(model, dict.fromkeys(targets, _drop)):
        return _probe(model, batch)


def _probe(model: nn.Module, batch: Mapping[str, Tensor]) -> ProbeResult:
    with _LiveBytes(model) as live:
        model(**batch).loss.backward()
    began = time.perf_counter()
    model(**batch).loss.backward()
    return ProbeResult(time.perf_counter() - began, live.peak)


def model_bytes(model: nn.Module) -> int:
    """Sum the bytes of parameters and buffers, tied ones once."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def entry_bytes(dtype: torch.dtype) -> int:
    """Count what the optimizer holds for one chosen entry, from the tensors it would make.

    Args:
        dtype: Of the weights.

    Returns:
        Bytes: index, base value, master, two moments and the sum of gradients.
    """
    count = 64
    parameter = nn.Parameter(torch.zeros(count, dtype=dtype))
    entries = gather_entries(Target("entries", parameter), np.arange(count, dtype=np.int32))
    tensors = [each for each in entries.state.values() if isinstance(each, Tensor)]
    return sum(each.nbytes for each in (*tensors, entries.gradient)) // count


def requested_entries(sizes: Sequence[int], config: GallopConfig) -> int:
    """Count what a density asks for.

    Args:
        sizes: Entries of each eligible tensor.
        config: How a mask would be chosen.

    Returns:
        Size of the mask, if enough entries have a positive score.
    """
    if config.threshold_scope == "per_tensor" and config.allocation is None:
        return sum(map(config.budget, sizes))
    return config.budget(sum(sizes))


def delta_bytes(chosen: int, eligible: int, dtype: torch.dtype) -> int:
    """Estimate the size of the delta, if every chosen entry changes.

    The positions of ``k`` of ``n`` entries take ``n H(k / n)`` bits, their entropy; at 1 % these
    are 8.1 bits an entry, and about 17 with the value in bfloat16.

    Args:
        chosen: Entries in the mask.
        eligible: Entries that it was chosen from.
        dtype: Of the weights.

    Returns:
        Bytes.
    """
    share = chosen / eligible
    entropy = -(math.log2(share) + (1 / share - 1) * math.log2(1 - share)) if share < 1 else 0.0
    return math.ceil(chosen * (entropy + _VALUE_BITS[dtype.itemsize]) / 8)


def _even_mask(targets: Sequence[Target], share: float) -> Mask:
    return Mask(
        {t.name: even_indices(t.size, max(1, round(share * t.size))) for t in targets},
        {t.name: tuple(t.parameter.shape) for t in targets},
    )


def _chosen(module: nn.Linear, share: float | None) -> int:
    return max(1, round((share or 0.0) * module.weight.numel()))


def _transient(inside: Mapping[str, nn.Linear], share: float | None, tokens: int) -> int:
    # What the one operation holds inside, which nobody sees from outside.
    return max(
        (
            transient_bytes(
                each.out_features, each.in_features, _chosen(each, share), tokens=tokens
            )
            for each in inside.values()
        ),
        default=0,
    )


def _drop(gradient: Tensor) -> None:
    """Take a gradient and forget it."""


def _keep_no_gradients(model: nn.Module, targets: Sequence[Target]) -> None:
    wanted = {id(target.parameter) for target in targets}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
        if id(parameter) in wanted:
            parameter.register_post_accumulate_grad_hook(_free)  # type: ignore[no-untyped-call]


def _free(parameter: Tensor) -> None:
    parameter.grad = None
