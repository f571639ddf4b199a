"""Tensors of a live model by the names of its checkpoint, and which of them are one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from sparsedelta.boxes import Box
from sparsedelta.errors import CheckpointError, StructureError
from sparsedelta.local_shards import local_tensors
from sparsedelta.state_dict import StateDictReader
from sparsedelta.words import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

_WRAPPED: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Names under which torch.compile and activation checkpointing keep what they wrap."""

_PARALLEL: Final = frozenset({"DataParallel", "DistributedDataParallel"})

_QUANTISED_NAMES: Final = ("quant", "4bit", "8bit", "int8", "int4", "nf4", "gptq", "awq", "hqq")
_QUANTISED_PARTS: Final = ("qweight", "weight_packed", "_packed_params", "weight_scale", "scales")

_RELOAD: Final = "load the model in the dtype of its checkpoint, not quantised"

Memory: TypeAlias = tuple[object, ...]
"""What two names of one tensor have in common: device, address, length and strides."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveTensor:
    """A tensor of a live model, or the part of it that is here.

    Attributes:
        name: Its name: of tied ones the first that the model has.
        spec: The whole tensor.
        box: Which part of it is here.
        local: That part, detached.
    """

    name: str
    spec: TensorSpec
    box: Box
    local: torch.Tensor


def settled(tensors: Iterable[torch.Tensor]) -> None:
    """Wait until the devices of tensors are done: what is next may run on other streams."""
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    if devices:
        import torch  # noqa: PLC0415 (the package works without torch)

        for device in devices:
            torch.cuda.synchronize(device)


class LiveTensors:
    """The tensors of a model as they are now.

    Args:
        model: Any module: plain, compiled, split over devices, or sharded by FSDP2.
        names: Name in the model by name in the checkpoint, where they are not the same.

    Attributes:
        is_sharded: Whether there are DTensors among them.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, str] = MappingProxyType({})) -> None:
        self._model = model
        self._names = names
        self._prefix = str(getattr(model, "base_model_prefix", "") or "")
        self._modules: dict[str, nn.Module] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._first: dict[Memory, str] = {}
        self._memory: dict[str, Memory] = {}
        for path, module in _walk(model):
            self._modules.setdefault(path, module)
            for own, tensor in _own_tensors(module):
                name = f"{path}.{own}" if path else own
                if name in self._tensors:
                    continue
                self._tensors[name] = tensor
                self._memory[name] = memory = _memory(name, tensor)
                self._first.setdefault(memory, name)
        self.is_sharded = any(
            hasattr(each, "device_mesh") for each in self._tensors.values()
        ) or any(map(gathers, self._modules.values()))

    def resolve(self, name: str) -> str | None:
        """The model's name of a tensor of the checkpoint, of tied ones the first; or None."""
        wanted = self._names.get(name, name)
        for found in (wanted, f"{self._prefix}.{wanted}", wanted.removeprefix(f"{self._prefix}.")):
            if found in self._tensors:
                return self._first[self._memory[found]]
        return None

    def get(self, spec: TensorSpec) -> LiveTensor:
        """The live tensor that a tensor of the checkpoint is.

        Raises:
            StructureError: There is none, it has another dtype or shape, it is quantised, or its
                words are not here.
        """
        name = self.resolve(spec.name)
        if name is None:
            raise self._missing(spec.name)
        tensor = self._tensors[name]
        self._refuse_quantised(spec, name, tensor)
        if tensor.is_meta:
            raise StructureError(
                f"tensor {spec.name!r} of the model has no words: it is on the meta device",
                hint="a model that is offloaded, or not loaded, cannot be changed in place; see "
                "sparsedelta.from_pretrained",
            )
        found = self._live(spec.name, name, tensor)
        if (found.spec.dtype, found.spec.shape) != (spec.dtype, spec.shape):
            raise StructureError(
                f"tensor {spec.name!r} is {found.spec} in the model, expected {spec}",
                hint=_RELOAD if found.spec.shape == spec.shape else None,
            )
        return found

    def live(self, name: str) -> LiveTensor:
        """The tensor with this name in the model, as :meth:`resolve` gives it.

        Raises:
            StructureError: There is none any more.
        """
        if name not in self._tensors:
            raise self._missing(name)
        return self._live(name, name, self._tensors[name])

    def check_separate(self, names: Iterable[str]) -> None:
        """Insist that no other tensor lies in the memory of some that are to be changed.

        Raises:
            StructureError: One does, without being the same tensor by another name.
        """
        wanted = set(names)
        spans = sorted(
            (*span, name)
            for memory, name in self._first.items()
            if (span := _span(memory, self._tensors[name])) is not None
        )
        reach: tuple[str, int, str] | None = None
        for device, start, end, name in spans:
            if reach is not None and reach[0] == device and start < reach[1]:
                if name in wanted or reach[2] in wanted:
                    raise StructureError(
                        f"tensors {reach[2]!r} and {name!r} of the model share memory, and are not "
                        "one tensor: one cannot be changed without the other",
                        hint="give each of them memory of its own: "
                        "module.weight = nn.Parameter(module.weight.clone())",
                    )
                if end <= reach[1]:
                    continue
            reach = (device, end, name)

    def _live(self, shown: str, name: str, tensor: torch.Tensor) -> LiveTensor:
        held, boxes = local_tensors({name: tensor})
        try:
            dtype = StateDictReader(held).specs[name].dtype
        except CheckpointError as error:
            raise StructureError(f"tensor {shown!r} of the model: {error.message}") from None
        box = boxes[name]
        return LiveTensor(name, TensorSpec(name, dtype, box.shape), box, held[name])

    def _refuse_quantised(self, spec: TensorSpec, name: str, tensor: torch.Tensor) -> None:
        import torch  # noqa: PLC0415 (the package works without torch)

        kind = type(tensor)
        plain = (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", torch.Tensor))
        strange = kind not in plain and not hasattr(tensor, "device_mesh")
        narrow = tensor.element_size() == 1 and spec.word_bytes > 1
        if not (strange or narrow or tensor.is_quantized):
            return
        owner = self._modules.get(name.rpartition(".")[0])
        raise StructureError(
            f"tensor {spec.name!r} is quantised in the model: {kind.__name__} of {tensor.dtype} in "
            f"{type(owner).__name__}, expected {spec}",
            hint=_RELOAD,
        )

    def _missing(self, name: str) -> StructureError:
        wanted = self._names.get(name, name)
        path, _, _ = wanted.rpartition(".")
        for place in (path, f"{self._prefix}.{path}", path.removeprefix(f"{self._prefix}.")):
            module = self._modules.get(place)
            if module is not None and _is_quantised(module):
                return StructureError(
                    f"tensor {name!r} is quantised in the model, in {type(module).__name__}",
                    hint=_RELOAD,
                )
        near = get_close_matches(wanted, list(self._tensors), 1)
        return StructureError(
            f"the model has no tensor {name!r}",
            hint=f"name its own if it has another: names={{{name!r}: {near[0]!r}}}"
            if near
            else "a model that transformers builds of other tensors than its checkpoint has is "
            "loaded with sparsedelta.from_pretrained",
        )


def gathers(module: nn.Module) -> bool:
    """Whether FSDP2 gathers the weights of a module from their shards for a forward."""
    return type(module).__name__.startswith("FSDP") and hasattr(module, "reshard")


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under the path that its checkpoint knows, wrappers left out."""
    if any(kind.__name__ in _PARALLEL for kind in type(model).__mro__):
        model = model.get_submodule("module")
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module).__name__ == "FullyShardedDataParallel":
            raise StructureError(
                f"module {path!r} is wrapped by FSDP1, which keeps its weights in flat parameters",
                hint="shard the model with torch.distributed.fsdp.fully_shard",
            )
        yield ".".join(part for part in path.split(".") if part not in _WRAPPED), module


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    passing = module._non_persistent_buffers_set  # noqa: SLF001 (there is no other way to tell)
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):  # noqa: SLF001
        if tensor is not None and name not in passing:
            yield name, tensor


def _is_quantised(module: nn.Module) -> bool:
    kind = f"{type(module).__module__}.{type(module).__name__}".lower()
    return any(name in kind for name in _QUANTISED_NAMES) or any(
        hasattr(module, part) for part in _QUANTISED_PARTS
    )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """What is here of a tensor."""
    local: torch.Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return local


def _memory(name: str, tensor: torch.Tensor) -> Memory:
    local = _local(tensor)
    if local.is_meta or not local.numel():
        return ("none", id(tensor))
    try:
        address = local.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        return ("none", name)
    shape = None if local.is_contiguous() else (tuple(local.shape), local.stride())
    return (str(local.device), address, local.numel() * local.element_size(), shape)


def _span(memory: Memory, tensor: torch.Tensor) -> tuple[str, int, int] | None:
    """Device, first byte and end of the bytes that a tensor lies between."""
    if memory[0] == "none":
        return None
    local = _local(tensor)
    steps = zip(local.shape, local.stride(), strict=True)
    reach = 1 + sum((size - 1) * abs(stride) for size, stride in steps)
    start = local.data_ptr()
    return str(local.device), start, start + reach * local.element_size()
