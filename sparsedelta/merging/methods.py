"""The merge methods by name: what each computes, what can be set, and how many tasks it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Final, Protocol

import numpy as np

from sparsedelta.errors import UsageError
from sparsedelta.merging import averages, task_vectors
from sparsedelta.merging.aligned import Aligned, Marks
from sparsedelta.merging.outcome import Outcome, TensorMethod
from sparsedelta.merging.settings import Settings, TaskSettings, finite_number
from sparsedelta.merging.summing import agreed, insist_numbers, summed
from sparsedelta.rounding import FLOATS
from sparsedelta.words import TensorSpec, Words

_TASK: Final = frozenset(field.name for field in fields(TaskSettings))
"""Parameters that each task may have of its own."""

_SPELLED: Final = {"lambda": "lambda_"}
"""Parameters whose names are keywords of Python."""


class Function(Protocol):
    """Puts tasks together in one tensor."""

    def __call__(self, aligned: Aligned, settings: Settings, base_square: float, /) -> Outcome:
        """See :class:`sparsedelta.merging.outcome.TensorMethod`."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    Attributes:
        name: Its name.
        function: What it computes.
        parameters: Names of what can be set, beside the weights.
        defaults: What is set otherwise than :class:`Settings` has it.
        at_least: Fewest tasks.
        at_most: Most tasks.
        is_whole: Whether it has to see a tensor's entries at once.
        needs_norm: Whether it needs the norm of the base.
        is_ordered: Whether the order of the tasks matters.
        is_random: Whether the seed matters.
        any_dtype: Whether it copies words where it can, and has rules of its own for what is not
            computed with; others compute every element that a task changes.
    """

    name: str
    function: Function
    parameters: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] | None = None
    at_least: int = 0
    at_most: int | None = None
    is_whole: bool = True
    needs_norm: bool = False
    is_ordered: bool = False
    is_random: bool = False
    any_dtype: bool = False

    def check(self, tasks: int) -> None:
        """Insist on a number of tasks that the method can take.

        Raises:
            UsageError: It cannot.
        """
        if tasks < self.at_least or (self.at_most is not None and tasks > self.at_most):
            upto = "" if self.at_most == self.at_least else " or more"
            if self.at_most not in (None, self.at_least):
                upto = f" to {self.at_most}"
            raise UsageError(
                f"{self.name} of {tasks} tasks, expected {self.at_least}{upto}",
                hint="tasks of weight 0 do not count",
            )

    def bind(self, settings: Settings) -> Callable[[TensorSpec], TensorMethod]:
        """The method with the same settings for all tensors."""
        bound = BoundMethod(self, settings)
        return lambda _: bound


@dataclass(frozen=True, slots=True)
class BoundMethod:
    """A method and its settings for a tensor; implements :class:`TensorMethod`."""

    method: Method
    settings: Settings

    @property
    def is_whole(self) -> bool:
        """Whether it has to see a tensor's entries at once."""
        return self.method.is_whole

    @property
    def needs_norm(self) -> bool:
        """Whether it needs the norm of the base."""
        return self.method.needs_norm

    @property
    def moves_all(self) -> bool:
        """Whether it changes tensors, too, that no task changes: a sum that is no mean."""
        return self.method.name == "linear" and not averages.is_mean(self.settings)

    def __call__(self, aligned: Aligned, base_square: float) -> Outcome:
        """Put tasks together.

        Raises:
            StructureError: What is not computed with, and tasks that do not agree.
            NotFiniteError: A number that is met or made is not finite.
        """
        if not self.method.any_dtype and aligned.spec.dtype not in FLOATS:
            return Outcome(agreed(aligned))
        if not aligned.tasks:
            return Outcome(aligned.base)
        if not self.method.any_dtype:
            insist_numbers(aligned)
        # What is not finite is an error that names it, in the end.
        with np.errstate(all="ignore"):
            return self.method.function(aligned, self.settings, base_square)


def _sum(aligned: Aligned, settings: Settings, _: float) -> Outcome:
    """Task arithmetic, by the rule of :mod:`summing`; ``lambda`` multiplies the weights."""
    if settings.normalize:
        whole = sum(settings.weights)
        divisor = 1.0 if abs(whole) < _NO_SUM else whole
        settings = replace(settings, normalize=False, lambda_=settings.lambda_ / divisor)
    weights = [weight * settings.lambda_ for weight in settings.weights]
    if any(weight == 0 for weight in weights):  # a task that has no part in this tensor
        used = [n for n, weight in enumerate(weights) if weight != 0]
        if not used:
            return Outcome(aligned.base)
        aligned = replace(aligned, words=aligned.words[used], present=aligned.present[used])
        weights = [weights[n] for n in used]
        touched: Marks = np.logical_or.reduce(aligned.present, axis=0)
        words = aligned.base.copy()
        words[touched] = _words(aligned.only(touched), weights, settings)
        return Outcome(words)
    return Outcome(_words(aligned, weights, settings))


def _words(aligned: Aligned, weights: Sequence[float], settings: Settings) -> Words:
    return summed(aligned, weights, computed=settings.computed, note=settings.note)


_NO_SUM: Final = 1e-8

_SCALES: Final = frozenset({"normalize", "lambda_"})
_THIN: Final = _SCALES | {"density", "rescale", "density_of"}
_CONSENSUS: Final = {"normalize": True}
_RESCALED: Final = {"rescale": True}

_LISTED: Final = (
    Method("sum", _sum, _SCALES, is_whole=False, any_dtype=True),
    Method("task_arithmetic", _sum, _SCALES, is_whole=False, any_dtype=True),
    Method(
        "linear",
        averages.linear,
        frozenset({"normalize", "base_weight"}),
        {"normalize": True},
        is_whole=False,
        is_ordered=True,
    ),
    Method("ties", task_vectors.ties, _THIN, _CONSENSUS),
    Method("dare_linear", task_vectors.dare_linear, _THIN, _RESCALED, is_random=True),
    Method("dare_ties", task_vectors.dare_ties, _THIN, _RESCALED, is_random=True),
    Method(
        "della",
        task_vectors.della,
        _THIN | {"epsilon"},
        _CONSENSUS | _RESCALED,
        is_random=True,
    ),
    Method(
        "della_linear", task_vectors.della_linear, _THIN | {"epsilon"}, _RESCALED, is_random=True
    ),
    Method("breadcrumbs", task_vectors.breadcrumbs, _THIN | {"gamma"}),
    Method("breadcrumbs_ties", task_vectors.breadcrumbs_ties, _THIN | {"gamma"}),
    Method("sce", averages.sce, frozenset({"select_topk"})),
    Method("model_stock", averages.model_stock, frozenset({"filter_wise"}), at_least=2),
    Method(
        "slerp",
        averages.slerp,
        frozenset({"t"}),
        at_least=1,
        at_most=2,
        needs_norm=True,
        is_ordered=True,
    ),
    Method(
        "nuslerp",
        averages.nuslerp,
        frozenset({"nuslerp_flatten", "nuslerp_row_wise"}),
        at_least=2,
        at_most=2,
        is_ordered=True,
    ),
    Method("last", averages.last, is_whole=False, is_ordered=True, any_dtype=True),
    Method("first", averages.first, is_whole=False, is_ordered=True, any_dtype=True),
    Method("max_magnitude", averages.max_magnitude, is_whole=False, any_dtype=True),
)

METHODS: Final[Mapping[str, Method]] = {method.name: method for method in _LISTED}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        UsageError: There is none.
    """
    if name not in METHODS:
        raise UsageError(
            f"method {name!r} is unknown, expected one of {', '.join(METHODS)}",
            hint=nearest(name, METHODS) or "docs/composing.md tells what each of them does",
        )
    return METHODS[name]


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str | None:
    """What a person may have meant, as a hint."""
    found = get_close_matches(name, list(known), 1)
    return f"did you mean {found[0]!r}?" if found else None


def settings_of(
    method: Method, parameters: Mapping[str, object], weights: Sequence[float], seed: int
) -> Settings:
    """The settings that parameters say.

    Args:
        method: The method.
        parameters: Value by name; of what tasks have of their own one for all, or a list.
        weights: A weight per task.
        seed: What random numbers are drawn from.

    Raises:
        UsageError: A parameter that the method has not, or a value that makes no sense.
    """
    tasks = [TaskSettings(weight=weight) for weight in weights]
    shared: dict[str, Any] = {**(method.defaults or {})}
    for given, value in parameters.items():
        name = check_parameter(method, given)
        if name not in _TASK:
            shared[name] = checked(name, value)
            continue
        values = list(value) if isinstance(value, Sequence) else [value] * len(tasks)
        if len(values) != len(tasks):
            raise UsageError(f"{given}: {len(values)} values for {len(tasks)} tasks")
        tasks = [
            replace(task, **{name: checked(name, each)})
            for task, each in zip(tasks, values, strict=True)
        ]
    settings = Settings(tuple(tasks), ("",) * len(tasks), seed=seed, **shared)
    check_settings(method, settings)
    return settings


def check_parameter(method: Method, given: str) -> str:
    """The name by which a parameter of a method is known here.

    Raises:
        UsageError: The method has none of this name.
    """
    name = _SPELLED.get(given, given)
    if name not in method.parameters:
        known = sorted(parameter.rstrip("_") for parameter in method.parameters)
        raise UsageError(
            f"{method.name} has no parameter {given!r}, "
            f"{'it has ' + ', '.join(known) if known else 'nor any other'}",
            hint=nearest(given, known),
        )
    return name


_SWITCHES: Final = frozenset(
    {"normalize", "rescale", "filter_wise", "nuslerp_flatten", "nuslerp_row_wise"}
)
_SHARES: Final = frozenset({"density", "gamma", "select_topk"})


def checked(name: str, value: object) -> Any:  # noqa: ANN401 (as the parameter has it)
    """A value of a parameter.

    Raises:
        UsageError: It makes no sense.
    """
    shown = name.rstrip("_")
    if name == "density_of":
        if value not in ("elements", "entries"):
            raise UsageError(f"density_of is {value!r}, expected 'elements' or 'entries'")
        return str(value)
    if name in _SWITCHES:
        if value not in (True, False):
            raise UsageError(f"{shown} is {value!r}, expected true or false")
        return bool(value)
    number = finite_number(value)
    if number is None:
        raise UsageError(f"{shown} is {value!r:.60}, expected a finite number")
    if name in _SHARES and not 0 <= number <= 1:
        raise UsageError(f"{shown} is {value!r}, expected a share from 0 to 1")
    return number


def check_settings(method: Method, settings: Settings) -> None:
    """Insist on values that fit each other.

    Raises:
        UsageError: They do not.
    """
    if math.isinf(sum(map(abs, (*settings.weights, settings.base_weight)))):
        raise UsageError(f"{method.name}: the weights add up to more than float64 holds")
    if "epsilon" not in method.parameters:
        return
    for task in settings.tasks:
        low, high = task.density - task.epsilon, task.density + task.epsilon
        if 0 < task.density < 1 and not (low > 0 and high < 1):
            raise UsageError(
                f"{method.name}: density {task.density} -/+ epsilon {task.epsilon} is "
                f"[{low:.4g}, {high:.4g}], expected to be within (0, 1)"
            )
