"""Bit-exact, invertible sparse deltas between model checkpoints.

    import sparsedelta

    sparsedelta.diff("base", "tuned", "tuned.delta.safetensors")
    sparsedelta.apply("base", "tuned.delta.safetensors", "out")      # equals "tuned", bit for bit
    sparsedelta.revert("out", "tuned.delta.safetensors", "back")     # equals "base", bit for bit

Names are imported when they are first used: ``import sparsedelta`` loads none of torch,
transformers and huggingface_hub, and takes a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sparsedelta.delta import Delta, Part, TensorDelta
    from sparsedelta.delta_reader import DeltaReader
    from sparsedelta.errors import (
        BusyError,
        CheckpointError,
        DeltaGivenError,
        FormatError,
        HubError,
        IdentityError,
        NoAccessError,
        NotFiniteError,
        NotInvertibleError,
        OutputError,
        RankError,
        RemoteError,
        SparseDeltaError,
        StructureError,
        UnfinishedError,
        UnsupportedError,
        UsageError,
        VerificationError,
        WrongBaseError,
    )
    from sparsedelta.hub.base_check import BaseCheck
    from sparsedelta.hub.pull import PullReport, pull
    from sparsedelta.hub.push import PushReport, push
    from sparsedelta.hub.search import FoundDelta, RepositoryHistory, history, search
    from sparsedelta.locations import Url
    from sparsedelta.operations.apply import apply, revert
    from sparsedelta.operations.checkpoint_info import CheckpointInfo, checkpoint_info
    from sparsedelta.operations.compose import ComposeReport, compose
    from sparsedelta.operations.composed_checkpoint import ComposedReport
    from sparsedelta.operations.diff import DiffReport, diff
    from sparsedelta.operations.export_raw import ExportReport, export_raw
    from sparsedelta.operations.following import ApplyReport
    from sparsedelta.operations.identity import Identity, fingerprint
    from sparsedelta.operations.info import DeltaInfo, info
    from sparsedelta.operations.live_diff import diff_state_dict
    from sparsedelta.operations.load import load_state_dict
    from sparsedelta.operations.log import Edge, HistoryGraph, Standing, log, which
    from sparsedelta.operations.merge import merge
    from sparsedelta.operations.pretrained import from_pretrained
    from sparsedelta.operations.recode import RecodeReport, recode
    from sparsedelta.operations.rows import read_rows
    from sparsedelta.operations.squash import SquashReport, invert, squash
    from sparsedelta.operations.stack import Stack
    from sparsedelta.operations.stacking import apply_stack
    from sparsedelta.operations.validate import Problem, ValidationReport, validate
    from sparsedelta.operations.write_delta import write_delta
    from sparsedelta.slices import TensorSlice
    from sparsedelta.snapshot import Snapshot
    from sparsedelta.words import TensorSpec

__version__: Final = "0.2.0"

_MODULES: Final = {
    "operations.apply": ("apply", "revert"),
    "operations.following": ("ApplyReport",),
    "operations.composed_checkpoint": ("ComposedReport",),
    "operations.merge": ("merge",),
    "operations.stacking": ("apply_stack",),
    "delta": ("Delta", "Part", "TensorDelta"),
    "delta_reader": ("DeltaReader",),
    "operations.checkpoint_info": ("CheckpointInfo", "checkpoint_info"),
    "operations.compose": ("ComposeReport", "compose"),
    "operations.diff": ("DiffReport", "diff"),
    "operations.export_raw": ("ExportReport", "export_raw"),
    "errors": (
        "BusyError",
        "CheckpointError",
        "DeltaGivenError",
        "FormatError",
        "HubError",
        "IdentityError",
        "NoAccessError",
        "NotFiniteError",
        "NotInvertibleError",
        "OutputError",
        "RankError",
        "RemoteError",
        "SparseDeltaError",
        "StructureError",
        "UnfinishedError",
        "UnsupportedError",
        "UsageError",
        "VerificationError",
        "WrongBaseError",
    ),
    "hub.base_check": ("BaseCheck",),
    "hub.pull": ("PullReport", "pull"),
    "hub.push": ("PushReport", "push"),
    "hub.search": ("FoundDelta", "RepositoryHistory", "history", "search"),
    "locations": ("Url",),
    "operations.identity": ("Identity", "fingerprint"),
    "operations.info": ("DeltaInfo", "info"),
    "operations.live_diff": ("diff_state_dict",),
    "operations.load": ("load_state_dict",),
    "operations.log": ("Edge", "HistoryGraph", "Standing", "log", "which"),
    "operations.pretrained": ("from_pretrained",),
    "operations.recode": ("RecodeReport", "recode"),
    "operations.rows": ("read_rows",),
    "operations.squash": ("SquashReport", "invert", "squash"),
    "operations.stack": ("Stack",),
    "operations.validate": ("Problem", "ValidationReport", "validate"),
    "operations.write_delta": ("write_delta",),
    "slices": ("TensorSlice",),
    "snapshot": ("Snapshot",),
    "words": ("TensorSpec",),
}
_HOMES: Final = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ApplyReport",
    "BaseCheck",
    "BusyError",
    "CheckpointError",
    "CheckpointInfo",
    "ComposeReport",
    "ComposedReport",
    "Delta",
    "DeltaGivenError",
    "DeltaInfo",
    "DeltaReader",
    "DiffReport",
    "Edge",
    "ExportReport",
    "FormatError",
    "FoundDelta",
    "HistoryGraph",
    "HubError",
    "Identity",
    "IdentityError",
    "NoAccessError",
    "NotFiniteError",
    "NotInvertibleError",
    "OutputError",
    "Part",
    "Problem",
    "PullReport",
    "PushReport",
    "RankError",
    "RecodeReport",
    "RemoteError",
    "RepositoryHistory",
    "Snapshot",
    "SparseDeltaError",
    "SquashReport",
    "Stack",
    "Standing",
    "StructureError",
    "TensorDelta",
    "TensorSlice",
    "TensorSpec",
    "UnfinishedError",
    "UnsupportedError",
    "Url",
    "UsageError",
    "ValidationReport",
    "VerificationError",
    "WrongBaseError",
    "__version__",
    "apply",
    "apply_stack",
    "checkpoint_info",
    "compose",
    "diff",
    "diff_state_dict",
    "export_raw",
    "fingerprint",
    "from_pretrained",
    "history",
    "info",
    "invert",
    "load_state_dict",
    "log",
    "merge",
    "pull",
    "push",
    "read_rows",
    "recode",
    "revert",
    "search",
    "squash",
    "validate",
    "which",
    "write_delta",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
