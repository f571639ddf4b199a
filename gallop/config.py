"""What a selection is made of: one frozen, validated value that travels with its mask."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from gallop.errors import ConfigError

__all__ = ["GallopConfig", "GradientMean", "ThresholdScope"]

ThresholdScope = Literal["global", "per_tensor"]
GradientMean = Literal["sample", "token"]


@dataclass(frozen=True, slots=True)
class GallopConfig:
    """How a mask is chosen: ``score = |mean gradient| / (|weight| + eps)``, largest first.

    The formula is that of GaLLoP (arXiv 2510.19778, section 3). The paper writes one scalar
    threshold over one score vector, which is the ``"global"`` scope here.

    Attributes:
        density: Share of the eligible parameters to choose, in ``(0, 1]``. Zeros count as
            eligible even where ``exclude_zeros`` keeps them from being chosen, so that the size
            of a mask does not depend on that setting; see :meth:`budget`.
        eps: Added to ``|weight|``; at least 0. Scores are float32 whatever the dtype of the
            weights, because 1e-8 vanishes in float16 and beside most bfloat16 values.
        threshold_scope: ``"global"`` compares all scores of the model with one threshold;
            ``"per_tensor"`` gives each tensor its own share of ``density``.
        exclude_zeros: Whether weights that are exactly zero may not be chosen. With eps 1e-8 the
            score of a zero weight is 1e8 times its gradient, so pruned, padded or
            quantised-to-zero entries would crowd out all others.
        gradient_mean: ``"sample"`` weighs the gradient of a batch by its number of samples,
            ``"token"`` by its number of supervised tokens; see ``gallop.gradients``.
        seed: Seeds dropout during selection. The caller's own random state is not touched.
        include: Glob patterns (``fnmatch``) of the parameter names that are eligible.
        exclude: Glob patterns of the names that are not; they win over ``include``.

    Raises:
        ConfigError: A value is out of range.
    """

    density: float
    _: KW_ONLY
    eps: float = 1e-8
    threshold_scope: ThresholdScope = "global"
    exclude_zeros: bool = True
    gradient_mean: GradientMean = "sample"
    seed: int = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _is_number(self.density) or not 0 < self.density <= 1:
            raise ConfigError(f"density: expected a number in (0, 1], found {self.density!r}")
        if not _is_number(self.eps) or not 0 <= self.eps < math.inf:
            raise ConfigError(f"eps: expected a finite number >= 0, found {self.eps!r}")
        _require_choice("threshold_scope", self.threshold_scope, get_args(ThresholdScope))
        _require_choice("gradient_mean", self.gradient_mean, get_args(GradientMean))
        if not isinstance(self.exclude_zeros, bool):
            raise ConfigError(f"exclude_zeros: expected a bool, found {self.exclude_zeros!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"seed: expected an integer >= 0, found {self.seed!r}")
        for field, patterns in (("include", self.include), ("exclude", self.exclude)):
            # A bare string is an iterable of one-letter patterns, which would match by accident.
            if isinstance(patterns, str) or not all(isinstance(each, str) for each in patterns):
                raise ConfigError(f"{field}: expected a sequence of patterns, found {patterns!r}")
            object.__setattr__(self, field, tuple(patterns))

    def budget(self, eligible: int) -> int:
        """Count the entries to choose from ``eligible`` parameters.

        It is ``floor(density * eligible)``, at least 1, of the density as written in decimal:
        29 % of 100 is 29, although the float 0.29 lies below 29/100. In ``"per_tensor"`` scope
        this is applied to each tensor, so that every tensor gets at least one entry.

        Args:
            eligible: Number of eligible parameters, zeros included.

        Returns:
            Number of entries, 0 only if there are none.
        """
        if eligible == 0:
            return 0
        return max(1, math.floor(Fraction(repr(float(self.density))) * eligible))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self) | {
            "include": list(self.include),
            "exclude": list(self.exclude),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GallopConfig:
        """Read what :meth:`to_dict` wrote.

        Args:
            values: Settings by name.

        Returns:
            The configuration.

        Raises:
            ConfigError: A setting is unknown, missing or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "density" not in values:
            raise ConfigError(
                f"selection settings: expected density and any of {sorted(known)}, "
                f"found {sorted(values)}"
            )
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{field}: expected one of {', '.join(choices)}, found {value!r}")
