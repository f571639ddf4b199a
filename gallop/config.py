"""What a selection is made of: one frozen, validated value that travels with its mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from gallop.allocation import ALLOCATIONS
from gallop.errors import ConfigError
from gallop.formulas import SELECTORS
from gallop.registry import unknown_name

__all__ = ["KIND_TOKENS", "GallopConfig", "GradientMean", "ThresholdScope"]

ThresholdScope = Literal["global", "per_tensor", "sampled_global"]
GradientMean = Literal["sample", "token"]

KIND_TOKENS = {
    "@embeddings": "embedding",
    "@head": "head",
    "@experts": "expert",
    "@norms": "norm",
    "@linear": "linear",
    "@convolutions": "convolution",
    "@biases": "bias",
    "@other": "other",
}
"""Patterns that stand for a kind of parameter; see ``gallop.kinds``."""


@dataclass(frozen=True, slots=True)
class GallopConfig:
    """How a mask is chosen: by default ``score = |mean gradient| / (|weight| + eps)``.

    The formula is that of GaLLoP (arXiv 2510.19778, section 3). The paper writes one scalar
    threshold over one score vector, which is the ``"global"`` scope here. Settings that are left
    None are resolved here, and are never None afterwards, save ``weight_threshold`` and
    ``allocation``.

    Attributes:
        density: Share of the eligible parameters to choose, in ``(0, 1]``. Zeros count as
            eligible even where ``exclude_zeros`` keeps them from being chosen, so that the size
            of a mask does not depend on that setting; see :meth:`budget`.
        selector: Name of the score: one of ``gallop.formulas``, or one that was registered with
            :func:`gallop.selector`.
        eps: Added to ``|weight|`` by ``gallop``; at least 0. Scores are float32 whatever the
            dtype of the weights, because 1e-8 vanishes in float16 and beside most bfloat16 values.
        threshold_scope: ``"global"`` compares all scores of the model with one threshold;
            ``"per_tensor"`` gives each tensor a budget of its own, see ``allocation``;
            ``"sampled_global"`` estimates the global threshold from a sample of the scores, so
            that the density comes out a little off, by an amount that the report bounds. The
            selector's own if None.
        allocation: How a ``"per_tensor"`` scope divides the budget: ``"uniform"``,
            ``"proportional"``, ``"entropy"``, or one that was registered with
            :func:`gallop.allocation.allocation`. The selector's own if None; where that has
            none, every tensor gets :meth:`budget` of its size.
        exclude_zeros: Whether weights that are exactly zero may not be chosen; the selector's own
            if None. With eps 1e-8 the score of a zero weight under ``gallop`` is 1e8 times its
            gradient, so pruned, padded or quantised-to-zero entries would crowd out all others.
        weight_threshold: Only weights of a magnitude below it may be chosen; no limit if None.
            SaRA's threshold.
        sample_size: How many scores a ``"sampled_global"`` scope looks at.
        gradient_mean: ``"sample"`` weighs the gradient of a batch by its number of samples,
            ``"token"`` by its number of supervised tokens; see ``gallop.gradients``.
        seed: Seeds dropout during selection, the ``random`` selector and the sample of a
            ``"sampled_global"`` scope. The caller's own random state is not touched.
        include: Patterns of the parameters that are eligible: globs (``fnmatch``) of names, or
            kinds: ``@embeddings``, ``@head``, ``@experts``, ``@norms``, ``@linear``,
            ``@convolutions``, ``@biases``, ``@other`` (see ``gallop.kinds``). By default every
            parameter that requires a gradient is, embeddings, output layer and norms included.
        exclude: Patterns of those that are not; they win over ``include``.

    Raises:
        ConfigError: A value is out of range, or a name is unknown.
    """

    density: float
    _: KW_ONLY
    selector: str = "gallop"
    eps: float = 1e-8
    threshold_scope: ThresholdScope | None = None
    allocation: str | None = None
    exclude_zeros: bool | None = None
    weight_threshold: float | None = None
    sample_size: int = 1 << 20
    gradient_mean: GradientMean = "sample"
    seed: int = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _is_number(self.density) or not 0 < self.density <= 1:
            raise ConfigError(f"density: expected a number in (0, 1], found {self.density!r}")
        if not _is_number(self.eps) or not 0 <= self.eps < math.inf:
            raise ConfigError(f"eps: expected a finite number >= 0, found {self.eps!r}")
        self._resolve()
        _require_choice("threshold_scope", self.threshold_scope, get_args(ThresholdScope))
        _require_choice("gradient_mean", self.gradient_mean, get_args(GradientMean))
        if not isinstance(self.exclude_zeros, bool):
            raise ConfigError(f"exclude_zeros: expected a bool, found {self.exclude_zeros!r}")
        limit = self.weight_threshold
        if limit is not None and not (_is_number(limit) and 0 < limit < math.inf):
            raise ConfigError(f"weight_threshold: expected a number > 0, found {limit!r}")
        for field, value, least in (("seed", self.seed, 0), ("sample_size", self.sample_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{field}: expected an integer >= {least}, found {value!r}")
        if self.seed >= 1 << 63:
            raise ConfigError(f"seed: expected an integer below 2**63, found {self.seed}")
        self._check_patterns()
        self._check_allocation()

    def _check_patterns(self) -> None:
        for field, patterns in (("include", self.include), ("exclude", self.exclude)):
            # A bare string is an iterable of one-letter patterns, which would match by accident.
            if (
                isinstance(patterns, str)
                or not isinstance(patterns, Iterable)
                or not all(isinstance(each, str) for each in patterns)
            ):
                raise ConfigError(f"{field}: expected a sequence of patterns, found {patterns!r}")
            for pattern in patterns:
                if pattern.startswith("@") and pattern not in KIND_TOKENS:
                    raise unknown_name(field, pattern, KIND_TOKENS)
            object.__setattr__(self, field, tuple(patterns))

    def _check_allocation(self) -> None:
        if self.allocation is not None and self.threshold_scope != "per_tensor":
            raise ConfigError(
                f"allocation: expected none in {self.threshold_scope} scope, "
                f"found {self.allocation!r}",
                hint="budgets per tensor need threshold_scope='per_tensor'",
            )

    def _resolve(self) -> None:
        # Names are looked up only where they decide something. A configuration that says
        # everything describes a mask that may have been chosen where others were registered, and
        # can be read here; select() looks up what it needs.
        if not isinstance(self.selector, str):
            raise unknown_name("selector", self.selector, SELECTORS)
        if self.threshold_scope is not None and self.exclude_zeros is not None:
            return
        chosen = SELECTORS.find(self.selector)
        if self.allocation is not None:
            ALLOCATIONS.find(self.allocation)
        scope = self.threshold_scope or chosen.scope
        object.__setattr__(self, "threshold_scope", scope)
        if self.exclude_zeros is None:
            object.__setattr__(self, "exclude_zeros", chosen.exclude_zeros)
        if self.allocation is None and scope == "per_tensor":
            object.__setattr__(self, "allocation", chosen.allocation)

    def require_known(self) -> None:
        """Look the names up, as :func:`gallop.select` will: before anything is loaded.

        Raises:
            ConfigError: Nothing goes by the selector's or the allocation's name here.
        """
        SELECTORS.find(self.selector)
        if self.allocation is not None:
            ALLOCATIONS.find(self.allocation)

    def budget(self, eligible: int) -> int:
        """Count the entries to choose from ``eligible`` parameters.

        It is ``floor(density * eligible)``, at least 1, of the density as written in decimal:
        29 % of 100 is 29, although the float 0.29 lies below 29/100. In ``"per_tensor"`` scope
        without an ``allocation`` this is applied to each tensor, so that every tensor gets at
        least one entry.

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
