"""What a setting of the commands is: its key, its flag, and the values that it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gallop.errors import ConfigError

__all__ = ["Setting"]

Kind = Literal["integer", "number", "numbers", "switch", "text", "texts", "choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: a key of a section of a configuration file, and a flag or an argument.

    Attributes:
        name: By which the commands know it; unique.
        section: Section of the configuration file.
        key: Key in that section.
        kind: What values it takes. ``numbers`` are two, ``texts`` any number.
        help: One line for people.
        default: Value if neither file nor flag gives one.
        shown: What help says the default is, where the value does not say it.
        flag: The flag, by default made of the name; a switch has its opposite too, after a slash;
            empty for a positional argument.
        choices: What a ``choice`` may be.
        minimum: Smallest integer or number.
        maximum: Largest number.
        metavar: What help calls the value.
        commands: Which commands have the flag.
        fields: The dataclass fields that it sets, as ``Class.field``.
        identity: Whether it says what is trained: it must not change when a run goes on.
    """

    name: str
    section: str
    key: str
    kind: Kind
    help: str
    default: Any = None
    shown: str = ""
    flag: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    commands: tuple[str, ...] = ("select", "train", "estimate")
    fields: tuple[str, ...] = ()
    identity: bool = field(default=True)

    @property
    def positional(self) -> bool:
        """Whether the command line takes it as an argument, not as a flag."""
        return self.flag == "argument"

    @property
    def flags(self) -> str:
        """The flag as click declares it."""
        return self.flag or "--" + self.name.replace("_", "-")

    def convert(self, value: Any) -> Any:  # noqa: ANN401  (what a file holds is not known)
        """Check a value that a configuration file gives, and bring it to the type of the default.

        Args:
            value: As YAML reads it. Text that spells a number is one: YAML 1.1 takes ``2e-4``
                for text.

        Returns:
            The value.

        Raises:
            ConfigError: It is of another kind, or out of range.
        """
        if value is None and (self.default is None or self.name == "max_grad_norm"):
            return 0.0 if self.name == "max_grad_norm" else None
        expected, found = _CONVERTERS[self.kind](self, value)
        if found is None:
            raise ConfigError(f"{self.key}: expected {expected}, found {value!r}")
        return found


def _integer(setting: Setting, value: Any) -> tuple[str, int | None]:  # noqa: ANN401
    at_least = "" if setting.minimum is None else f" of at least {setting.minimum:.0f}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = whole and (setting.minimum is None or value >= setting.minimum)
    return f"a whole number{at_least}", value if fits else None


def _number(setting: Setting, value: Any) -> tuple[str, float | None]:  # noqa: ANN401
    low = -math.inf if setting.minimum is None else setting.minimum
    high = math.inf if setting.maximum is None else setting.maximum
    bounds = "" if (low, high) == (-math.inf, math.inf) else f" in [{low:g}, {high:g}]"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    return f"a number{bounds}", number if low <= number <= high else None


def _numbers(setting: Setting, value: Any) -> tuple[str, tuple[float, ...] | None]:  # noqa: ANN401
    given = value if isinstance(value, list | tuple) else ()
    found = [_number(setting, each)[1] for each in given]
    pair = tuple(each for each in found if each is not None)
    return "a list of two numbers", pair if len(pair) == len(given) == 2 else None  # noqa: PLR2004


def _switch(_: Setting, value: Any) -> tuple[str, bool | None]:  # noqa: ANN401
    return "true or false", value if isinstance(value, bool) else None


def _text(_: Setting, value: Any) -> tuple[str, str | None]:  # noqa: ANN401
    return "text", value if isinstance(value, str) else None


def _texts(_: Setting, value: Any) -> tuple[str, tuple[str, ...] | None]:  # noqa: ANN401
    listed = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return "a list of texts", tuple(value) if listed else None


def _choice(setting: Setting, value: Any) -> tuple[str, str | None]:  # noqa: ANN401
    known = isinstance(value, str) and value in setting.choices
    return f"one of {', '.join(setting.choices)}", value if known else None


_CONVERTERS: Final = {
    "integer": _integer,
    "number": _number,
    "numbers": _numbers,
    "switch": _switch,
    "text": _text,
    "texts": _texts,
    "choice": _choice,
}
