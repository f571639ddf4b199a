"""Logs of a training: one JSON object a step, and TensorBoard through transformers' callback."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from gallop.errors import ConfigError
from sparsedelta.errors import OutputError
from sparsedelta.outputs import output_errors

__all__ = ["JsonLinesLog", "StepLog", "StepRecord", "TensorBoardLog", "open_logs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one step did.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss per supervised token.
        grad_norm: 2-norm of the chosen entries' gradient before clipping.
        lr: Learning rate of the step.
        tokens: Tokens that the model saw in it, padding excluded.
        seconds: Wall-clock time of the step.
        memory: Largest memory so far in bytes: of the process, or on a GPU what torch allocated.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    memory: int


class StepLog(Protocol):
    """Takes a record of every step."""

    def write(self, record: StepRecord) -> None:
        """Log a step.

        Args:
            record: What it did.
        """

    def close(self) -> None:
        """Finish the log."""


class JsonLinesLog:
    """A file with one JSON object a step, each complete on the disk's cache when it is written.

    Args:
        path: The file. Lines of steps behind ``after`` are dropped from it, and so is a last line
            that is not whole: a run that goes on from an earlier save takes those steps again.
        after: The step that the run goes on from; 0 begins the file anew.

    Raises:
        OutputError: The file cannot be written, or a line of it is no record of a step.
    """

    def __init__(self, path: str | Path, *, after: int = 0) -> None:
        path = Path(path)
        with output_errors(path):
            lines = _whole_lines(path) if after else []
            kept = [line for line in lines if _step_of(line, path) <= after]
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8")
        self._path = path

    def write(self, record: StepRecord) -> None:
        """Append a line."""
        with output_errors(self._path):
            self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Bring the file to the disk."""
        with output_errors(self._path):
            os.fsync(self._file.fileno())
        self._file.close()


class TensorBoardLog:
    """Event files for TensorBoard, written by transformers' ``TensorBoardCallback``.

    The callback is driven as ``Trainer`` drives it, so names and folders are those that users of
    ``Trainer`` know: ``train/loss``, ``train/grad_norm``, ``train/learning_rate``.

    Args:
        folder: The folder of the event files.
        after: The step that the run goes on from: later ones, of before, are purged.

    Raises:
        ConfigError: TensorBoard or transformers is not installed.
    """

    def __init__(self, folder: str | Path, *, after: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra)
            from transformers.integrations import TensorBoardCallback  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"tensorboard: expected it installed, found {error}", hint="pip install tensorboard"
            ) from error
        writer: Any = SummaryWriter(log_dir=str(folder), purge_step=after + 1 if after else None)
        self._callback = TensorBoardCallback(writer)

    def write(self, record: StepRecord) -> None:
        """Add one point to every curve."""
        state = SimpleNamespace(is_world_process_zero=True, global_step=record.step)
        logs = dataclasses.asdict(record)
        logs["learning_rate"] = logs.pop("lr")
        del logs["step"]
        self._callback.on_log(None, state, None, logs=logs)

    def close(self) -> None:
        """Close the event file."""
        self._callback.on_train_end(None, None, None)


@contextmanager
def open_logs(
    files: Sequence[str], *, tensorboard: str | None = None, after: int = 0
) -> Iterator[list[StepLog]]:
    """Open the logs that were asked for, and close them at the end, however it comes.

    Args:
        files: Paths of JSON lines.
        tensorboard: Folder of event files, or None.
        after: The step that the run goes on from.

    Yields:
        The logs.

    Raises:
        OutputError: One cannot be written.
        ConfigError: TensorBoard is not installed.
    """
    logs: list[StepLog] = []
    with ExitStack() as stack:
        for path in files:
            logs.append(JsonLinesLog(path, after=after))
            stack.callback(logs[-1].close)
        if tensorboard:
            logs.append(TensorBoardLog(tensorboard, after=after))
            stack.callback(logs[-1].close)
        yield logs


def _whole_lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if line.endswith("\n")]


def _step_of(line: str, path: Path) -> int:
    # Dropping a line that is not ours would destroy what somebody else wrote.
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        step = None
    if not isinstance(step, int):
        raise OutputError(
            f"log {path}: expected one JSON object with a step a line, found {line.strip()[:60]!r}",
            hint="name another file with --log",
        )
    return step
