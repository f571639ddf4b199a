"""Every setting of the commands, in one table: flags and configuration files are made from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gallop.errors import ConfigError

__all__ = ["SECTIONS", "SETTINGS", "Setting", "defaults", "keyword_arguments", "settings_of"]

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

_EVERY = ("select", "train", "eval", "estimate")
_PLANNED = ("train", "estimate")

SETTINGS: Final = (
    Setting(
        name="model", section="model", key="path", kind="text", flag="argument", commands=_EVERY,
        help="Model folder, or repository on the Hub.", identity=False,
    ),
    Setting(
        name="dtype", section="model", key="dtype", kind="choice", default="auto", commands=_EVERY,
        choices=("auto", "float32", "bfloat16", "float16"),
        help="Load the weights so; auto is the dtype of the checkpoint, which a delta needs.",
    ),
    Setting(
        name="data", section="data", key="path", kind="text", flag="argument",
        help="Training data.", identity=False,
    ),
    Setting(
        name="max_length", section="data", key="max_length", kind="integer", default=512,
        minimum=2, commands=_EVERY, fields=("TrainConfig.max_length",),
        help="Cut samples to so many tokens.",
    ),
    Setting(
        name="density", section="selection", key="density", kind="number", default=0.01,
        fields=("GallopConfig.density",), help="Share of the parameters, in (0, 1].",
    ),
    Setting(
        name="eps", section="selection", key="eps", kind="number", default=1e-8,
        fields=("GallopConfig.eps",), help="Eps of the score.",
    ),
    Setting(
        name="threshold_scope", section="selection", key="threshold_scope", kind="choice",
        default="global", choices=("global", "per_tensor"),
        fields=("GallopConfig.threshold_scope",),
        help="One threshold for the model, or one for each tensor.",
    ),
    Setting(
        name="gradient_mean", section="selection", key="gradient_mean", kind="choice",
        default="sample", choices=("sample", "token"), fields=("GallopConfig.gradient_mean",),
        help="Weigh selection batches by samples or by supervised tokens.",
    ),
    Setting(
        name="exclude_zeros", section="selection", key="exclude_zeros", kind="switch",
        default=True, flag="--exclude-zeros/--include-zeros",
        fields=("GallopConfig.exclude_zeros",),
        help="Whether weights that are exactly zero may not be chosen.",
    ),
    Setting(
        name="include", section="selection", key="include", kind="texts", default=("*",),
        metavar="GLOB", fields=("GallopConfig.include",), shown="all",
        help="Consider only parameters of these names; may be repeated.",
    ),
    Setting(
        name="exclude", section="selection", key="exclude", kind="texts", default=(),
        metavar="GLOB", fields=("GallopConfig.exclude",), shown="none",
        help="Keep parameters out by name; may be repeated.",
    ),
    Setting(
        name="selection_samples", section="selection", key="samples", kind="integer", default=256,
        minimum=1, fields=("TrainConfig.selection_samples",),
        help="Samples that the selection sees.",
    ),
    Setting(
        name="mask", section="selection", key="mask", kind="text", metavar="MASK",
        commands=("train",), help="Train this saved mask instead of choosing one.",
    ),
    Setting(
        name="steps", section="training", key="steps", kind="integer", minimum=1,
        shown="one pass over the data", commands=_PLANNED, fields=("TrainConfig.steps",),
        help="Optimizer steps.",
    ),
    Setting(
        name="lr", section="training", key="lr", kind="number", default=2e-4,
        commands=("train",), fields=("TrainConfig.lr",), help="Peak learning rate.",
    ),
    Setting(
        name="batch_size", section="training", key="batch_size", kind="integer", default=8,
        minimum=1, fields=("TrainConfig.batch_size",),
        help="Samples per backward pass, of the selection too.",
    ),
    Setting(
        name="accumulate", section="training", key="accumulate", kind="integer", default=1,
        minimum=1, commands=_PLANNED, fields=("TrainConfig.accumulate",),
        help="Backward passes per step.",
    ),
    Setting(
        name="warmup", section="training", key="warmup", kind="number", default=0.1, minimum=0,
        maximum=1, commands=("train",), fields=("TrainConfig.warmup",),
        help="Share of the steps with a rising learning rate; then it falls linearly.",
    ),
    Setting(
        name="betas", section="training", key="betas", kind="numbers", default=(0.9, 0.999),
        commands=("train",), fields=("TrainConfig.betas",),
        help="Decay rates of AdamW's two moments.",
    ),
    Setting(
        name="adam_eps", section="training", key="eps", kind="number", default=1e-8,
        commands=("train",), fields=("TrainConfig.eps",), help="Eps of AdamW.",
    ),
    Setting(
        name="weight_decay", section="training", key="weight_decay", kind="number", default=0.0,
        commands=("train",), fields=("TrainConfig.weight_decay",), help="On the mask only.",
    ),
    Setting(
        name="weight_decay_mode", section="training", key="weight_decay_mode", kind="choice",
        default="weight", choices=("weight", "delta"), commands=("train",),
        fields=("TrainConfig.weight_decay_mode",), help="Decay to zero, or to the base.",
    ),
    Setting(
        name="max_grad_norm", section="training", key="max_grad_norm", kind="number", default=1.0,
        minimum=0, commands=("train",), fields=("TrainConfig.max_grad_norm",),
        help="Clip the gradient of the mask to this norm; 0 does not clip.",
    ),
    Setting(
        name="seed", section="training", key="seed", kind="integer", default=0,
        fields=("TrainConfig.seed", "GallopConfig.seed"), help="Order, dropout.",
    ),
    Setting(
        name="out", section="output", key="path", kind="text", flag="-o/--out",
        commands=("select", "train"), metavar="FILE", identity=False,
        help="File to write: the mask of select, the delta of train.",
    ),
    Setting(
        name="save_model", section="output", key="save_model", kind="text", metavar="DIR",
        commands=("train",), identity=False, help="Save the trained checkpoint as well.",
    ),
    Setting(
        name="profile", section="output", key="profile", kind="choice", default="portable",
        choices=("portable", "compact"), commands=("train",), identity=False,
        help="Encoding of the delta.",
    ),
    Setting(
        name="run", section="output", key="run", kind="text", metavar="DIR", commands=("train",),
        identity=False, shown="OUT.run, which goes when the delta is there",
        help="Folder of what --resume needs.",
    ),
    Setting(
        name="save_every", section="output", key="save_every", kind="integer", minimum=1,
        commands=("train",), metavar="STEPS", identity=False, shown="when interrupted only",
        help="Save in the folder of the run every so many steps.",
    ),
    Setting(
        name="log", section="output", key="log", kind="texts", default=(), metavar="FILE",
        commands=("train",), identity=False, shown="none",
        help="Append one JSON object a step to this file; may be repeated.",
    ),
    Setting(
        name="tensorboard", section="output", key="tensorboard", kind="text", metavar="DIR",
        commands=("train",), identity=False, help="Write a TensorBoard log there.",
    ),
    Setting(
        name="eval_data", section="evaluation", key="path", kind="text", flag="argument",
        commands=("eval",), help="Evaluation data.", identity=False,
    ),
    Setting(
        name="metric", section="evaluation", key="metric", kind="choice", default="perplexity",
        choices=("perplexity", "choice", "exact-match"), commands=("eval",), identity=False,
        help="What to measure.",
    ),
    Setting(
        name="deltas", section="evaluation", key="deltas", kind="texts", default=(),
        flag="--delta", metavar="DELTA", commands=("eval",), identity=False, shown="none",
        help="Apply this delta to the loaded weights; may be repeated, each to the last result.",
    ),
    Setting(
        name="eval_batch_size", section="evaluation", key="batch_size", kind="integer", default=8,
        minimum=1, flag="--batch-size", commands=("eval",), identity=False,
        help="Sequences per forward pass.",
    ),
    Setting(
        name="max_new_tokens", section="evaluation", key="max_new_tokens", kind="integer",
        minimum=1, commands=("eval",), identity=False, shown="those of the longest completion",
        help="Tokens to generate at most, for exact-match.",
    ),
)  # fmt: skip

SECTIONS: Final = tuple(dict.fromkeys(setting.section for setting in SETTINGS))


def settings_of(command: str) -> tuple[Setting, ...]:
    """List the settings that a command has flags or arguments for.

    Args:
        command: Its name.

    Returns:
        Settings in the order of the table.
    """
    return tuple(setting for setting in SETTINGS if command in setting.commands)


def defaults() -> dict[str, Any]:
    """Return the default of every setting by name."""
    return {setting.name: setting.default for setting in SETTINGS}


def keyword_arguments(
    kind: str, values: Mapping[str, Any], settings: Iterable[Setting] = SETTINGS
) -> dict[str, Any]:
    """Collect what a dataclass is made of.

    Args:
        kind: Name of the dataclass.
        values: Every setting by name.
        settings: Where to look.

    Returns:
        Values by field.
    """
    return {
        each.removeprefix(f"{kind}."): values[setting.name]
        for setting in settings
        for each in setting.fields
        if each.startswith(f"{kind}.")
    }
