"""The folder of a run: what it takes to go on after an interrupt, as if there had been none."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from gallop.errors import ConfigError, RunError
from gallop.mask import Mask
from gallop.setting import Setting
from gallop.settings import SETTINGS, defaults
from gallop.state_file import read_state, write_state
from sparsedelta.outputs import output_errors, staged

__all__ = ["RunFolder", "TrainState"]

_log = logging.getLogger("gallop")

_FORMAT: Final = "gallop run 1"
_DOCUMENT: Final = "run.json"
_MASK: Final = "mask.safetensors"
_SAVE: Final = re.compile(r"step-\d+\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainState:
    """Where a training is between two steps; the position in the data follows from ``step``.

    Attributes:
        step: Steps taken.
        optimizer: State of the optimizer.
        schedule: State of the learning-rate scheduler.
        random: State of torch's generators: that of the CPU, then those of the model's GPUs.
        losses: As in ``TrainResult``, so far.
        grad_norms: As in ``TrainResult``, so far.
        tokens: Tokens seen so far.
        seconds: Wall-clock time of the steps so far.
    """

    step: int
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    random: tuple[torch.Tensor, ...]
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    tokens: int
    seconds: float


class RunFolder:
    """A folder with the settings of a run, its mask, and the state after its last saved step.

    Every file in it is written under another name and then renamed, and an older save is removed
    only when the next one has its name: whenever the process is killed, what is there can be used.

    Args:
        path: The folder; it need not exist before :meth:`begin`.

    Attributes:
        path: The folder.
    """

    __slots__ = ("_document", "path")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._document: dict[str, Any] | None = None

    @property
    def command(self) -> str:
        """The command that goes on with the run."""
        return f"gallop train --resume {shlex.quote(str(self.path))}"

    @property
    def holds_run(self) -> bool:
        """Whether there is a run in the folder, or nothing at all."""
        return (self.path / _DOCUMENT).is_file() or (
            self.path.is_dir() and not any(self.path.iterdir())
        )

    @property
    def last_step(self) -> int | None:
        """Number of the last saved step; None if there is no save."""
        saves = self._saves()
        return _step_of(saves[-1]) if saves else None

    def begin(self, settings: Mapping[str, Any], mask: Mask, inputs: Mapping[str, str]) -> None:
        """Record what is trained, before the first save.

        Args:
            settings: Every setting by name, as resolved.
            mask: What is trained.
            inputs: Digests of what the run depends on, by what messages call it.

        Raises:
            OutputError: The folder cannot be written.
        """
        document = {
            "format": _FORMAT,
            "settings": {each.name: settings[each.name] for each in SETTINGS},
            "inputs": dict(inputs),
            "mask": mask.digest,
            "torch": version("torch"),
            "threads": torch.get_num_threads(),
        }
        with output_errors(self.path):
            self.path.mkdir(exist_ok=True)
        for save in self._saves():
            save.unlink()  # of an earlier run, which the caller was told to replace
        mask.save(self.path / _MASK)
        with staged(self.path / _DOCUMENT, force=True) as work:
            work.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def save(self, state: TrainState) -> None:
        """Save a state; older ones go.

        Args:
            state: After a step. :meth:`begin` has been called, by this process or an earlier one.

        Raises:
            OutputError: The disk is full or not writable; the last save stays.
        """
        older = self._saves()
        path = self.path / f"step-{state.step:08d}.safetensors"
        write_state(path, {each.name: getattr(state, each.name) for each in _FIELDS})
        for save in older:
            if save != path:
                save.unlink(missing_ok=True)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings to go on with.

        Args:
            given: Settings that the user gives again. Those that say what is trained must be as
                they were; outputs and places may change.

        Returns:
            Every setting by name.

        Raises:
            RunError: The folder holds no run.
            ConfigError: A setting differs that must not; the message names it.
        """
        document = self._read()
        saved = {
            each.name: self._converted(each, document["settings"][each.name])
            for each in SETTINGS
            if each.name in document["settings"]
        }
        values = {**defaults(), **saved}
        for each in SETTINGS:
            if each.identity and each.name in given and given[each.name] != values[each.name]:
                raise ConfigError(
                    f"{each.section}.{each.key}: expected {values[each.name]!r}, with which the "
                    f"run in {self.path} began, found {given[each.name]!r}",
                    hint="leave it out to go on, or begin another run without --resume",
                )
        return {**values, **given}

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """Refuse to go on from other data or weights.

        Args:
            inputs: As in :meth:`begin`.

        Raises:
            RunError: One has changed; the message names it.
        """
        document = self._read()
        for what, expected in document["inputs"].items():
            found = inputs.get(what)
            if found != expected:
                raise RunError(
                    f"{what}: expected that with which the run in {self.path} began "
                    f"({expected[:16]}), found another ({str(found)[:16]})",
                    hint="bring it back, or begin another run without --resume",
                )
        for what, now in (("torch", version("torch")), ("threads", torch.get_num_threads())):
            if document[what] != now:
                _log.warning(
                    "the run began with %s %s and goes on with %s: the result may differ in the "
                    "last bits from that of an uninterrupted run",
                    *(what, document[what], now),
                )

    def mask(self) -> Mask:
        """Read the mask.

        Returns:
            It, with its report.

        Raises:
            MaskError: The file is missing or damaged.
            RunError: It is another mask than the run began with.
        """
        mask = Mask.load(self.path / _MASK)
        if mask.digest != self._read()["mask"]:
            raise RunError(
                f"{self.path / _MASK}: expected the mask with which the run began, found another"
            )
        return mask

    def load(self) -> TrainState | None:
        """Read the last save.

        Returns:
            The state; None if the run was stopped before its first save.

        Raises:
            RunError: It is damaged.
        """
        saves = self._saves()
        if not saves:
            return None
        values = read_state(saves[-1])
        try:
            return TrainState(**values)
        except TypeError as error:
            raise RunError(f"{saves[-1]}: expected a saved state, found {error}") from error

    def remove(self) -> None:
        """Remove the folder: the run is over."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _converted(self, setting: Setting, value: object) -> object:
        try:
            return setting.convert(value)
        except ConfigError as error:
            raise RunError(f"{self.path / _DOCUMENT}: settings: {error}") from error

    def _saves(self) -> list[Path]:
        found = self.path.glob("step-*.safetensors")
        return sorted(save for save in found if _SAVE.fullmatch(save.name))

    def _read(self) -> dict[str, Any]:
        if self._document is None:
            path = self.path / _DOCUMENT
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except OSError as error:
                raise RunError(
                    f"{self.path}: expected the folder of a run, found no {_DOCUMENT} in it",
                    hint="gallop train --save-every STEPS --run DIR makes one",
                ) from error
            except ValueError as error:
                raise RunError(f"{path}: expected a JSON document, found {error}") from error
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                raise RunError(f"{path}: expected format {_FORMAT!r}, found another")
            for key, kind in _KEYS.items():
                if not isinstance(document.get(key), kind):
                    raise RunError(
                        f"{path}: expected {key} of type {kind.__name__}, "
                        f"found {document.get(key)!r}: the file is damaged",
                        hint="begin another run without --resume",
                    )
            if not all(isinstance(each, str) for each in document["inputs"].values()):
                raise RunError(f"{path}: expected inputs with digests, found {document['inputs']}")
            self._document = document
        return self._document


_KEYS: Final = {
    "settings": dict, "inputs": dict, "mask": str, "torch": str, "threads": int
}  # fmt: skip
_FIELDS: Final = dataclasses.fields(TrainState)


def _step_of(save: Path) -> int:
    return int(save.stem.removeprefix("step-"))
