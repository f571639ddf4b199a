"""A mask: which entries of which parameters are trained, and how they were chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from gallop.compiled import named_parameters
from gallop.config import GallopConfig
from gallop.errors import ConfigError, MaskError
from gallop.files import read_tensors, replace_file
from gallop.report import SelectionReport

__all__ = ["CompactArray", "IndexArray", "Mask"]

IndexArray: TypeAlias = NDArray[np.int64]
CompactArray: TypeAlias = NDArray[np.int32] | NDArray[np.int64]

_METADATA_KEY = "gallop.mask"  # one key: the order of several would not be fixed in the file
_VERSION = 1


class Mask(Mapping[str, IndexArray]):
    """Sorted flat indices per parameter; only parameters with at least one chosen entry.

    The flat index is that of the C-ordered tensor, as in ``tensor.reshape(-1)``. A mask made by
    :func:`gallop.select` carries its configuration and report; one made by hand needs neither.

    Args:
        indices: Per parameter name the flat indices chosen: strictly increasing integers. Empty
            ones are dropped.
        shapes: Per name the shape of the parameter; names without indices are dropped.
        config: How the mask was chosen.
        report: What the selection found.

    Attributes:
        config: How it was chosen, None if made by hand.
        report: What the selection found, None if made by hand.

    Raises:
        MaskError: Indices are not strictly increasing, out of range, or have no shape.
    """

    __slots__ = ("_indices", "_shapes", "config", "report")

    def __init__(
        self,
        indices: Mapping[str, ArrayLike],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        config: GallopConfig | None = None,
        report: SelectionReport | None = None,
    ) -> None:
        checked: dict[str, CompactArray] = {}
        for name, given in indices.items():
            if name not in shapes:
                raise MaskError(f"mask of {name}: expected the parameter's shape, found none")
            array = _checked(name, given, tuple(shapes[name]))
            if array.size:
                checked[name] = array
        self._indices = checked
        self._shapes = {name: tuple(int(side) for side in shapes[name]) for name in checked}
        self.config = config
        self.report = report

    def __getitem__(self, name: str) -> IndexArray:
        array: IndexArray = self._indices[name].astype(np.int64)
        array.flags.writeable = False
        return array

    def compact(self, name: str) -> CompactArray:
        """Return the indices as they are held: int32 for fewer than 2**31 entries, else int64.

        A trainer shares this memory instead of holding it twice; nobody may write to it.

        Args:
            name: A parameter of the mask.

        Returns:
            Sorted flat indices, not copied.
        """
        return self._indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __eq__(self, other: object) -> bool:
        """Compare the entries and shapes, not how they were chosen."""
        if not isinstance(other, Mask):
            return NotImplemented
        return self._shapes == other._shapes and all(
            np.array_equal(self.compact(name), other.compact(name)) for name in self
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Mask(nnz={self.nnz}, tensors={len(self)}, digest={self.digest[:12]!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy goes through the constructor, so that its arrays are read-only too.
        return _rebuild, (self._indices, self._shapes, self.config, self.report)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each parameter in the mask."""
        return MappingProxyType(self._shapes)

    @property
    def nnz(self) -> int:
        """Number of entries chosen."""
        return sum(len(array) for array in self._indices.values())

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of names, shapes and indices: equal for equal masks."""
        state = hashlib.sha256()
        for name in sorted(self._indices):
            array = self._indices[name]
            header = json.dumps([name, self.shapes[name], len(array)])
            state.update(header.encode())
            state.update(array.astype("<i8").tobytes())
        return state.hexdigest()

    def validate(self, model: nn.Module) -> None:
        """Check that every parameter of the mask is in the model, in the same shape, once.

        Args:
            model: The model to train.

        Raises:
            MaskError: A name is missing, a shape differs, or two names are one tied parameter.
        """
        self.resolve(model)

    def resolve(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Find the parameters of the mask in a model.

        Args:
            model: The model to train; a tied parameter may go by any of its names.

        Returns:
            The parameter of each name, in the order of ``model.named_parameters()``.

        Raises:
            MaskError: As in :meth:`validate`.
        """
        held = dict(named_parameters(model, tied=True))
        owners: dict[int, str] = {}
        for name, shape in self.shapes.items():
            parameter = held.get(name)
            if parameter is None:
                raise MaskError(
                    f"mask of {name}: expected a parameter of that name in "
                    f"{type(model).__name__}, found none among its {len(held)} parameters",
                    hint="a mask belongs to one architecture: select again for this model",
                )
            if tuple(parameter.shape) != shape:
                raise MaskError(
                    f"mask of {name}: expected shape {shape}, found {tuple(parameter.shape)} in "
                    f"{type(model).__name__}",
                    hint="a mask belongs to one architecture: select again for this model",
                )
            first = owners.setdefault(id(parameter), name)
            if first != name:
                raise MaskError(
                    f"mask of {name}: expected each parameter once, but it is tied to {first}, "
                    "which the mask holds too"
                )
        return {name: parameter for name, parameter in held.items() if name in self._indices}

    def save(self, path: str | Path) -> None:
        """Write the mask as a safetensors file.

        One integer tensor per parameter (int32 where the parameter has fewer than 2**31 entries,
        else int64); ``__metadata__`` holds one JSON document under ``gallop.mask`` with the
        shapes, the configuration and the report. The same mask gives the same bytes. The file is
        written under a temporary name in the same folder, then renamed over ``path``.

        Args:
            path: File to write or replace.

        Raises:
            OutputError: The file cannot be written.
        """
        document = {
            "version": _VERSION,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "recipe": self.config.to_dict() if self.config else None,
            "report": self.report.to_dict() if self.report else None,
        }
        replace_file(path, dict(self._indices), metadata={_METADATA_KEY: json.dumps(document)})

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """Read a mask that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The mask, its indices int64, with configuration and report.

        Raises:
            MaskError: The file holds no valid mask.
        """
        tensors, metadata = read_tensors(path)
        document = _document(path, metadata)
        try:
            shapes = {name: tuple(shape) for name, shape in document["shapes"].items()}
            recipe, report = document["recipe"], document["report"]
            # Safetensors lists tensors by its own order; the shapes keep the model's.
            return cls(
                {name: tensors[name] for name in shapes},
                shapes,
                config=None if recipe is None else GallopConfig.from_dict(recipe),
                report=None if report is None else SelectionReport.from_dict(report),
            )
        except (KeyError, TypeError, AttributeError, ConfigError, MaskError) as error:
            raise MaskError(f"{path}: expected a valid mask, found {error}") from error


def _rebuild(
    indices: dict[str, CompactArray],
    shapes: dict[str, tuple[int, ...]],
    config: GallopConfig | None,
    report: SelectionReport | None,
) -> Mask:
    return Mask(indices, shapes, config=config, report=report)


def _document(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        document = json.loads(metadata[_METADATA_KEY])
        version = document["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise MaskError(
            f"{path}: expected a mask with {_METADATA_KEY} in its metadata, found "
            f"{sorted(metadata)}",
            hint="gallop select MODEL DATA -o MASK writes one",
        ) from error
    if version != _VERSION:
        raise MaskError(f"{path}: expected mask version {_VERSION}, found {version!r}")
    return dict(document)


def _checked(name: str, given: ArrayLike, shape: tuple[int, ...]) -> CompactArray:
    array = np.asarray(given)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise MaskError(
            f"mask of {name}: expected a vector of integers, found dtype {array.dtype} and shape "
            f"{array.shape}"
        )
    increasing = bool((array[1:] > array[:-1]).all())
    if array[0] < 0 or array[-1] >= _entries(shape) or not increasing:
        raise MaskError(
            f"mask of {name}: expected strictly increasing indices in [0, {_entries(shape)}), "
            f"found {array.min()} to {array.max()}"
            + ("" if increasing else ", not strictly increasing")
        )
    # A copy: the mask must not change with its source. Half the memory where that can hold them.
    if _entries(shape) < 2**31:
        return array.astype(np.int32)
    return array.astype(np.int64)


def _entries(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
