"""Saving what an optimizer holds so that any number of processes can go on with it.

A folder has one safetensors file per process, with what that process counts of each tensor: flat
indices in the whole parameter, base values, masters and moments. ``state.json`` has the rest. Who
loads it takes, of all files, the entries that lie in its own shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gallop.collectives import Peers
from gallop.errors import ConfigError, OptimizerError
from gallop.mask import Mask
from gallop.mask_slices import whole_digest
from gallop.optim import SparseAdamW, check_hyperparameters
from gallop.state import Entries
from sparsedelta.errors import OutputError
from sparsedelta.outputs import check_output, output_errors, staged

__all__ = ["load_state", "save_state"]

_VERSION: Final = 1
_INDEX: Final = "state.json"
_VALUES: Final = ("base", "master", "exp_avg", "exp_avg_sq")
_DTYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_SETTINGS: Final = ("lr", "betas", "eps", "weight_decay", "weight_decay_mode", "max_grad_norm")


def save_state(optimizer: SparseAdamW, folder: str | Path, *, force: bool = False) -> None:
    """Save the training state, weights aside; collective where there are several processes.

    Masters are part of it, so that chosen weights are, too: with the base checkpoint and the mask
    it is all that training needs to go on, on any number of processes. Gradients that were
    gathered since the last step are not saved.

    Args:
        optimizer: What to save; it goes on as if nothing had happened.
        folder: Made here; on a file system that all processes share.
        force: Whether an existing state is replaced.

    Raises:
        OutputError: The folder exists and ``force`` is not set, or it cannot be written. Nothing
            is left behind.
        RankError: Another process failed.
    """
    peers, path = optimizer.peers, Path(folder)
    rank, size = (0, 1) if peers is None else (peers.rank, peers.size)
    digest, nnz = _mask_of(optimizer)
    counts = _counted(optimizer)
    with ExitStack() as stack:
        work: Path | None = None
        with _alike(peers):
            if rank == 0:
                check_output(path, force=force, directory=True)
                work = stack.enter_context(staged(path, force=force, directory=True))
        work = work if peers is None else peers.share(work)
        assert work is not None  # noqa: S101  (rank 0 has made it)
        with _alike(peers), output_errors(path):
            try:
                save_file(_own(optimizer), work / _file_name(rank, size))
            except SafetensorError as error:
                raise OutputError(f"cannot write {path}: {error}") from error
            if rank == 0:
                document = _document(optimizer, counts) | {
                    "mask": {"digest": digest, "nnz": nnz},
                    "files": [_file_name(each, size) for each in range(size)],
                }
                (work / _INDEX).write_text(json.dumps(document, indent=1), encoding="utf-8")
        with _alike(peers):
            stack.close()  # the folder takes its name, which no rank goes on without


def load_state(optimizer: SparseAdamW, folder: str | Path) -> None:
    """Take over a state that :func:`save_state` wrote, whoever wrote it; collective.

    Chosen weights are then written from the masters, bit for bit. All else of the model is
    untouched, and has to be the base already.

    Args:
        optimizer: An optimizer for the same mask and parameter groups, on any number of processes.
        folder: The state.

    Raises:
        OptimizerError: There is no valid state, or it is of another mask, model or grouping;
            nothing has been changed then, on any process.
        RankError: That is so on another process.
    """
    peers, path = optimizer.peers, Path(folder)
    digest, _ = _mask_of(optimizer)
    with _alike(peers):
        document = _read_document(path)
        if document["mask"]["digest"] != digest:
            raise OptimizerError(
                f"{path}: expected the state of the mask {digest[:12]}, found that of "
                f"{document['mask']['digest'][:12]} with {document['mask']['nnz']} entries",
                hint="load the mask that this state was trained with",
            )
        groups = _checked_groups(optimizer, document, path)
        places = {each.name: _Places(each) for each in optimizer.entries}
        for file in _files(path, document):
            for name, place in places.items():
                place.find(file, document["tensors"][name], path)
        for place in places.values():
            place.require_all(path)
    for file in _files(path, document):
        for place in places.values():
            place.copy(file)
    for each in optimizer.entries:
        each.state["step"] = int(document["tensors"][each.name]["step"])
        each.forget_gradient()
        with torch.no_grad():
            each.write_back()
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)


def _alike(peers: Peers | None) -> AbstractContextManager[None]:
    return nullcontext() if peers is None else peers.together()


def _file_name(rank: int, size: int) -> str:
    return f"state-{rank + 1:05d}-of-{size:05d}.safetensors"


def _flat(each: Entries) -> NDArray[np.int64]:
    positions: NDArray[Any] = each.state["index"].cpu().numpy()
    shard = each.target.shard
    return positions.astype(np.int64) if shard is None else shard.flat(positions)


def _is_counted(each: Entries, peers: Peers | None) -> bool:
    shard = each.target.shard
    return (peers is None or peers.rank == 0) if shard is None else shard.counted


def _mask_of(optimizer: SparseAdamW) -> tuple[str, int]:
    indices = {each.name: _flat(each) for each in optimizer.entries}
    shapes = {each.name: tuple(each.parameter.shape) for each in optimizer.entries}
    mask = Mask(indices, shapes)
    if optimizer.peers is None:
        return mask.digest, mask.nnz
    return whole_digest(mask, optimizer.peers)


def _counted(optimizer: SparseAdamW) -> list[int]:
    counts = np.array(
        [
            each.state["index"].numel() if _is_counted(each, optimizer.peers) else 0
            for each in optimizer.entries
        ],
        dtype=np.int64,
    )
    found: list[int] = (
        counts if optimizer.peers is None else optimizer.peers.total(counts)
    ).tolist()
    return found


def _own(optimizer: SparseAdamW) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for each in optimizer.entries:
        if _is_counted(each, optimizer.peers):
            tensors[f"{each.name}/index"] = torch.from_numpy(_flat(each))
            tensors |= {f"{each.name}/{key}": each.state[key].cpu() for key in _VALUES}
    return tensors


def _document(optimizer: SparseAdamW, counts: list[int]) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "tensors": {
            each.name: {
                "shape": list(each.parameter.shape),
                "step": each.state["step"],
                "nnz": count,
            }
            for each, count in zip(optimizer.entries, counts, strict=True)
        },
        "groups": [
            {"names": list(group["param_names"])}
            | {key: value for key, value in group.items() if not key.startswith("param")}
            for group in optimizer.param_groups
        ],
    }


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        version = document["version"]
        if version == _VERSION:
            _ = document["mask"]["digest"], document["mask"]["nnz"], [*document["files"]]
            _ = [(each["shape"], int(each["step"])) for each in document["tensors"].values()]
            _ = [each["names"] for each in document["groups"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptimizerError(
            f"{path}: expected a folder with the state of an optimizer, found {error}",
            hint="gallop.save_state(optimizer, folder) writes one",
        ) from error
    if version != _VERSION:
        raise OptimizerError(f"{path}: expected version {_VERSION} of a state, found {version!r}")
    return dict(document)


def _checked_groups(
    optimizer: SparseAdamW, document: Mapping[str, Any], path: Path
) -> list[dict[str, Any]]:
    saved = [dict(group) for group in document["groups"]]
    names = [group.pop("names") for group in saved]
    own = [list(group["param_names"]) for group in optimizer.param_groups]
    if names != own:
        raise OptimizerError(
            f"{path}: expected {len(own)} parameter groups of {[len(each) for each in own]} "
            f"tensors, found {[len(each) for each in names]}, or others of the same sizes",
            hint="create the optimizer with the param_groups that this state was trained with",
        )
    for group in saved:
        try:
            group["betas"] = tuple(group["betas"])
            check_hyperparameters(**{key: group[key] for key in _SETTINGS})
        except (KeyError, TypeError, ConfigError) as error:
            raise OptimizerError(f"{path}: expected valid settings, found {error!r}") from error
    return saved


def _files(path: Path, document: Mapping[str, Any]) -> Iterator[Any]:
    for name in document["files"]:
        try:
            with safe_open(path / name, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise OptimizerError(
                f"{path / name}: expected a safetensors file, found {error}",
                hint="copy the whole folder, all files of it",
            ) from error


class _Places:
    """Where the entries of a tensor that this process holds lie in the files of a state."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._flat = _flat(entries)
        self._found = np.zeros(self._flat.size, dtype=bool)

    def find(self, file: Any, row: Mapping[str, Any], path: Path) -> None:  # noqa: ANN401
        """Note what a file holds of them, and check how it does."""
        name, own = self._entries.name, self._entries.state
        if row["shape"] != list(self._entries.parameter.shape):
            raise OptimizerError(
                f"{path}: state of {name}: expected shape {list(self._entries.parameter.shape)}, "
                f"found {row['shape']}"
            )
        index, _, held = self._match(file)
        self._found |= held
        if not held.any():
            return
        for key in _VALUES:
            value = file.get_slice(f"{name}/{key}")
            found = value.get_dtype(), value.get_shape()
            expected = _DTYPES[own[key].dtype], [index.size]
            if found != expected:
                raise OptimizerError(
                    f"{path}: state of {name}: expected {key} of {expected}, found {found}",
                    hint="load the model in the dtype that it was trained in",
                )

    def require_all(self, path: Path) -> None:
        """Check that every entry is in some file."""
        missing = int(self._found.size - self._found.sum())
        if missing:
            raise OptimizerError(
                f"{path}: state of {self._entries.name}: expected {self._found.size} entries, "
                f"found all but {missing} of them",
                hint="copy the whole folder, all files of it",
            )

    def copy(self, file: Any) -> None:  # noqa: ANN401
        """Take what a file holds of them."""
        _, at, held = self._match(file)
        if not held.any():
            return
        source, target = torch.from_numpy(at[held]), torch.from_numpy(np.flatnonzero(held))
        for key in _VALUES:
            own = self._entries.state[key]
            values = file.get_tensor(f"{self._entries.name}/{key}")[source]
            own[target.to(own.device)] = values.to(own.device)

    def _match(self, file: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:  # noqa: ANN401
        key = f"{self._entries.name}/index"
        none = np.empty(0, dtype=np.int64)
        index = file.get_tensor(key).numpy() if key in file.keys() else none  # noqa: SIM118
        at = np.searchsorted(index, self._flat)
        held = at < index.size
        held[held] = index[at[held]] == self._flat[held]
        return index, at, held
