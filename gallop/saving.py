"""When a training is saved: every so many steps, and when it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gallop.mask import Mask
from gallop.run_folder import RunFolder, TrainState

__all__ = ["Saving"]


class Saving:
    """Saves into the folder of a run, on schedule or on request.

    Nothing is written before there is something to save: without ``every`` that is the request.

    Args:
        run: The folder.
        settings: Every setting by name, as :meth:`RunFolder.begin` records them.
        inputs: Digests of what the run depends on.
        every: Steps between saves; None saves on request only.
        stop: Tells whether the training shall stop.
        goes_on: Whether the run was begun earlier, by another process.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        every: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        goes_on: bool = False,
    ) -> None:
        self._run = run
        self._settings = settings
        self._inputs = inputs
        self._every = every
        self._stop = stop
        self._begun = goes_on
        self._mask: Mask | None = None

    def begin(self, mask: Mask, state: Callable[[], TrainState]) -> None:
        """Hear what is trained, before the first step; with ``every``, save it.

        Args:
            mask: The mask, which has cost a selection.
            state: Makes the state to save.
        """
        self._mask = mask
        if self._every:
            self._save(state())

    def after_step(self, step: int, state: Callable[[], TrainState]) -> None:
        """Save if it is time, or if the training shall stop.

        Args:
            step: Steps taken.
            state: Makes the state to save.

        Raises:
            KeyboardInterrupt: It shall stop; its note says how to go on.
            OutputError: It cannot be saved.
        """
        stop = self._stop()
        if stop or (self._every and step % self._every == 0):
            self._save(state())
        if stop:
            raise KeyboardInterrupt

    def _save(self, state: TrainState) -> None:
        if not self._begun and self._mask is not None:
            self._run.begin(self._settings, self._mask, self._inputs)
            self._begun = True
        self._run.save(state)
