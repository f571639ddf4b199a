"""Writing a trained model as a delta to its base: a join on names, not a conversion.

Weights are taken from the live model, never from the optimizer's masters: what is exported is what
was evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from gallop.collectives import find_peers
from gallop.compiled import named_parameters, plain_name
from gallop.errors import ExportError, OutsideMaskError
from gallop.live_model import live_model
from gallop.mask import IndexArray, Mask
from gallop.mask_slices import whole_digest
from gallop.recipe import recipe_metadata
from gallop.shards import shard_of
from sparsedelta.checkpoint import CheckpointReader, open_checkpoint, segments
from sparsedelta.local_shards import shards_of
from sparsedelta.locations import LocationLike, Url, as_location, output_path
from sparsedelta.operations.diff import DiffReport, diff
from sparsedelta.outputs import check_output
from sparsedelta.words import Bytes, TensorSpec

__all__ = ["ExportReport", "JoinedCheckpoint", "check_base", "check_weights", "export"]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: The delta.
        nnz: Entries of the mask.
        moved: Entries whose stored bits differ from the base, a tied tensor that the base stores
            twice counted twice; the others rounded back to where they were.
        not_held: Tensors of the base that the model does not hold, such as buffers of older
            releases; the delta leaves them alone.
        not_stored: Parameters of the model that the base does not store under any of their names,
            such as a head that was added; they are no part of the delta.
        diff: Manifest and size of the delta.
    """

    path: Path
    nnz: int
    moved: int
    not_held: tuple[str, ...]
    not_stored: tuple[str, ...]
    diff: DiffReport


class JoinedCheckpoint:
    """The base checkpoint with the tensors of a live model in their places.

    It has the names, dtypes and shapes of the base, and so can be the target of a diff.

    Args:
        base: Reader of the base; stays open, and the caller's to close.
        model: The live model, on any device.

    Attributes:
        location: What to call it in messages.
        specs: Every tensor of the base by name.
        paths: What the base is read from.
        held: The live tensor of each name that the model holds.
        not_held: Names that it does not hold.
        shards: What this process holds of the live tensors: all, unless they are sharded.

    Raises:
        ExportError: A tensor has another dtype or shape in the model than in the base.
        CheckpointError: A tensor of the model is one that safetensors cannot hold.
    """

    def __init__(self, base: CheckpointReader, model: nn.Module) -> None:
        self.location = "the live model"
        self.specs: Mapping[str, TensorSpec] = base.specs
        self.paths = base.paths
        self._base = base
        # keep_vars keeps identity, by which tied names are recognised. Non-persistent buffers are
        # not in the state: they are derived from the configuration, and no business of a delta.
        live = {plain_name(k): v for k, v in model.state_dict(keep_vars=True).items()}
        self.held: dict[str, Tensor] = {name: live[name] for name in base.specs if name in live}
        self.not_held = tuple(name for name in base.specs if name not in live)
        self.shards = shards_of(self.held, self.location)
        self._live: CheckpointReader = self.shards.reader
        for name, found in self.shards.specs.items():
            _require_same_kind(base.specs[name], found, base.location)

    def connect(self, live: CheckpointReader) -> None:
        """Read live tensors from all processes that hold shards of them."""
        self._live = live

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Return the bytes of the words ``[start, stop)`` of a tensor, in a fresh array."""
        source = self._live if name in self.held else self._base
        return source.read(name, start, stop)

    def close(self) -> None:
        """Do nothing: model and base belong to the caller."""


def export(
    model: nn.Module,
    mask: Mask,
    *,
    base: LocationLike | CheckpointReader,
    out: LocationLike,
    metadata: Mapping[str, str] | None = None,
    base_repo: str | None = None,
    base_revision: str | None = None,
    force: bool = False,
) -> ExportReport:
    """Write the delta from the base checkpoint to the trained model.

    Applied to the base it gives the live weights bit for bit, for every tensor that the base
    stores. Before anything is written, each of these is compared with the base: only entries of
    the mask may differ. Parameters that the base does not store are reported, and are no part of
    the delta.

    A sharded model is exported by all of its processes together, and no tensor is gathered: the
    delta is a set of one part file per process, with the content digest of a single one.

    Args:
        model: The trained model, in the dtype of the checkpoint.
        mask: What was trained; a tied parameter may go by any of its names.
        base: File, folder or open reader of the checkpoint that training started from.
        out: File to write.
        metadata: Further strings for the delta's metadata, over those of
            :func:`gallop.recipe.recipe_metadata`.
        base_repo: Hint where the base can be had, ``namespace/name`` on the Hub.
        base_revision: Hint at its commit.
        force: Whether an existing ``out`` is replaced.

    Returns:
        What was written.

    Raises:
        CheckpointError: The base cannot be read.
        ExportError: Model and base differ in a dtype or shape, or the base does not hold a
            parameter of the mask.
        OutsideMaskError: A weight outside the mask differs from the base.
        MaskError: The mask does not fit the model.
        OutputError: ``out`` exists and ``force`` is not set, or it cannot be written.
        RankError: Another process failed; nothing is left behind.
    """
    path = output_path(out)
    source = as_location(base) if isinstance(base, str | Path | Url) else None
    peers = find_peers(model, data_parallel=False)
    with ExitStack() as stack:
        held = stack.enter_context(live_model(peers))
        check_output(path, force=force, inputs=(source,) if isinstance(source, Path) else ())
        reader = stack.enter_context(_opened(base))
        joined, indices = _join(model, mask, reader)
        moved = sum(_count_moved(joined, reader, name, indices.get(name)) for name in joined.held)
        recipe, nnz = {**recipe_metadata(mask), **(metadata or {})}, mask.nnz
        if peers is not None:
            joined.connect(held.reader(joined.shards))
            moved = held.total(moved)
            digest, nnz = whole_digest(mask, peers)
            recipe |= {"gallop.mask.digest": digest, "gallop.mask.nnz": json.dumps(nnz)}
        written = diff(
            reader,
            joined,
            path,
            metadata=recipe,
            base_repo=base_repo,
            base_revision=base_revision,
            force=force,
            ranks=held.ranks,
        )
    not_stored = _not_stored(joined, model)
    return ExportReport(path, nnz, moved, joined.not_held, not_stored, written)


def check_base(model: nn.Module, mask: Mask, base: LocationLike | CheckpointReader) -> None:
    """Check, before training, that what will be trained can be exported.

    Args:
        model: The model, as loaded.
        mask: What will be trained.
        base: The checkpoint that it was loaded from.

    Raises:
        GallopError: As :func:`export` would after training.
    """
    with _opened(base) as reader:
        _join(model, mask, reader)


def check_weights(model: nn.Module, mask: Mask, base: LocationLike | CheckpointReader) -> int:
    """Check :func:`check_base`, and that the model differs from the base in the mask only.

    It reads the base once.

    Args:
        model: The model; before training, an empty mask asks for the very weights of the base.
        mask: What may differ.
        base: The checkpoint that the model was loaded from.

    Returns:
        How many entries differ.

    Raises:
        GallopError: As :func:`export` would after training.
    """
    with _opened(base) as reader:
        joined, indices = _join(model, mask, reader)
        return sum(_count_moved(joined, reader, name, indices.get(name)) for name in joined.held)


@contextmanager
def _opened(base: LocationLike | CheckpointReader) -> Iterator[CheckpointReader]:
    reader = open_checkpoint(base)
    try:
        yield reader
    finally:
        if reader is not base:
            reader.close()


def _join(
    model: nn.Module, mask: Mask, base: CheckpointReader
) -> tuple[JoinedCheckpoint, dict[str, IndexArray]]:
    # The reader of the target, and the mask under every name by which the base stores it.
    joined = JoinedCheckpoint(base, model)
    stored: dict[int, list[str]] = {}
    for name, tensor in joined.held.items():
        stored.setdefault(id(tensor), []).append(name)
    indices: dict[str, IndexArray] = {}
    for name, parameter in mask.resolve(model).items():
        names = stored.get(id(parameter), [])
        if not names:
            raise ExportError(
                f"{base.location}: expected tensor {name}, which the mask trains, found none of "
                f"that name or tied to it among {len(base.specs)} tensors",
                hint="if the model renames tensors on loading, save it with save_pretrained() "
                "before training and use that as the base",
            )
        indices |= dict.fromkeys(names, mask[name])
    return joined, indices


def _not_stored(joined: JoinedCheckpoint, model: nn.Module) -> tuple[str, ...]:
    stored = {id(tensor) for tensor in joined.held.values()}
    return tuple(name for name, p in named_parameters(model) if id(p) not in stored)


def _require_same_kind(expected: TensorSpec, found: TensorSpec, where: str) -> None:
    if expected.dtype != found.dtype:
        raise ExportError(
            f"{where}: tensor {expected.name}: expected the checkpoint's dtype {expected.dtype}, "
            f"found {found.dtype} in the model",
            hint="load the model in the dtype of its checkpoint: "
            'from_pretrained(..., dtype="auto"), or gallop train --dtype auto',
        )
    if expected.shape != found.shape:
        raise ExportError(
            f"{where}: tensor {expected.name}: expected the checkpoint's shape {expected.shape}, "
            f"found {found.shape} in the model",
            hint="this is not the checkpoint that the model was loaded from, or it was resized",
        )


def _count_moved(
    joined: JoinedCheckpoint, base: CheckpointReader, name: str, index: IndexArray | None
) -> int:
    # Of a sharded tensor this process compares what it holds; of replicas, one process does.
    spec, box = base.specs[name], joined.shards.boxes.get(name)
    shard = shard_of(name, joined.held[name])
    if box is None or not (shard is None or shard.counted):
        return 0
    moved = 0
    for start, stop in segments(spec):
        first, end = box.run(start, stop)
        if first == end:
            continue
        old = base.read(name, start, stop).view(spec.word_dtype)
        new = joined.shards.reader.read(name, first, end).view(spec.word_dtype)
        if new.size < old.size:
            held, new = new, old.copy()
            box.place(held, first, new, start)
        differs = np.flatnonzero(old != new) + start
        if not differs.size:
            continue
        moved += differs.size
        allowed = np.empty(0, np.int64) if index is None else index
        here = allowed[slice(*np.searchsorted(allowed, (start, stop)))]
        outside = differs[~np.isin(differs, here, assume_unique=True)]
        if outside.size:
            raise OutsideMaskError(
                f"tensor {name}: expected changes at the {allowed.size} entries of the mask only, "
                f"found one at flat index {outside[0]}",
                hint="train with gallop.SparseAdamW alone, and from this very base: another "
                "optimizer, a resized model or running statistics change more",
            )
    return moved
