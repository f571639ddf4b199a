"""Trains like the tests, but is killed in the middle: ``python killed_training.py FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer_cases import CONFIG, KILLED, WAYS, KillAt, make_trainer, saving

from gallop import attach


def main(folder: Path) -> None:
    """Start each run in a process of its own, and die there."""
    for name, way in WAYS.items():
        child = os.fork()
        if child == 0:
            trainer = make_trainer(
                folder / name / "base", folder / name / "killed", callbacks=[KillAt(5)], **saving()
            )
            attach(trainer, CONFIG, selection_samples=8, **way)
            trainer.train()
            os._exit(0)  # never reached
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != KILLED:
            sys.exit(f"{name}: expected to be killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
