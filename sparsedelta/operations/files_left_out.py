"""Small files that tasks bring along, and that a composition leaves out: the base's stand."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sparsedelta.checkpoint import CheckpointReader, FileCheckpoint
from sparsedelta.companions import find_companions
from sparsedelta.errors import CheckpointError
from sparsedelta.operations.tasks import CheckpointTask, DeltaTask, Task


def files_left_out(base: CheckpointReader, tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """The files that each task would bring: nobody knows how to add up two configurations.

    Args:
        base: The base.
        tasks: The tasks.

    Returns:
        Names of files, ascending, by the name of the task: those that a delta carries, those that
        lie beside a checkpoint and are not the base's. Tasks without any are not in it.

    Raises:
        CheckpointError: A folder cannot be read.
    """
    found = {task.name: tuple(_brought(base, task)) for task in tasks}
    return {name: files for name, files in found.items() if files}


def notes_of(left_out: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What is to be said of them."""
    return tuple(
        f"the files beside the weights are the base's; {name} has others, which are left out: "
        f"{', '.join(files)}"
        for name, files in left_out.items()
    )


def _brought(base: CheckpointReader, task: Task) -> Iterator[str]:
    if isinstance(task, DeltaTask):
        yield from sorted(file.name for file in task.reader.manifest.attachments.files)
    elif isinstance(task, CheckpointTask) and isinstance(task.checkpoint, FileCheckpoint):
        own = task.checkpoint
        for name in find_companions(own).copied:
            # How weights lie in shards is no setting, and the output lies as the base does.
            is_index = own.index is not None and str(name) == own.index.name
            if not is_index and not _is_same(base, own, name):
                yield name.as_posix()


def _is_same(base: CheckpointReader, own: FileCheckpoint, name: Path) -> bool:
    """Whether the base has the same file; of what lies elsewhere only the name is known."""
    if not isinstance(base, FileCheckpoint) or not base.is_directory:
        return False
    if not isinstance(base.root, Path) or not isinstance(own.root, Path):
        return False
    try:
        return filecmp.cmp(base.root / name, own.root / name, shallow=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None
