"""Settings are checked where they are made."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallop import GallopConfig
from gallop.errors import ConfigError
from gallop.train import TrainConfig, lr_factor


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"density": 0}, "density"),
        ({"density": 1.01}, "density"),
        ({"density": float("nan")}, "density"),
        ({"density": "0.1"}, "density"),
        ({"density": True}, "density"),
        ({"density": 0.1, "eps": -1e-8}, "eps"),
        ({"density": 0.1, "eps": float("inf")}, "eps"),
        ({"density": 0.1, "threshold_scope": "layer"}, "threshold_scope"),
        ({"density": 0.1, "gradient_mean": "batch"}, "gradient_mean"),
        ({"density": 0.1, "exclude_zeros": 1}, "exclude_zeros"),
        ({"density": 0.1, "seed": -1}, "seed"),
        ({"density": 0.1, "seed": 1 << 63}, "seed"),
        ({"density": 0.1, "include": "*"}, "include"),
        ({"density": 0.1, "include": None}, "include"),
        ({"density": 0.1, "exclude": (3,)}, "exclude"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=f"^{names}: expected") as caught:
        GallopConfig(**settings)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2


def test_budget_takes_the_density_as_written() -> None:
    assert GallopConfig(0.29).budget(100) == 29  # the float 0.29 * 100 is 28.999999999999996
    assert GallopConfig(0.01).budget(134_515_008) == 1_345_150
    assert GallopConfig(1).budget(7) == 7
    assert GallopConfig(1e-9).budget(7) == 1
    assert GallopConfig(0.5).budget(0) == 0


@given(st.integers(1, 10**6), st.integers(1, 10**12))
def test_budget_is_the_floor(millionths: int, eligible: int) -> None:
    """Law: k is floor(density * eligible) in exact arithmetic, at least 1."""
    found = GallopConfig(millionths / 10**6).budget(eligible)
    assert found == max(1, int(Fraction(millionths, 10**6) * eligible))


def test_dict_round_trip() -> None:
    config = GallopConfig(0.02, eps=0.0, threshold_scope="per_tensor", include=("a.*",), seed=3)
    assert GallopConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="colour"):
        GallopConfig.from_dict({"density": 0.1, "colour": "red"})


def test_learning_rate_rises_then_falls_and_is_never_zero() -> None:
    training = TrainConfig(steps=10, warmup=0.3)
    factors = [lr_factor(step, training) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[-1] == pytest.approx(1 / 7)
    assert lr_factor(10, training) == 0.0
    assert lr_factor(0, TrainConfig(steps=1, warmup=0.0)) == 1.0


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_of_training_has_63_bits(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed: expected"):
        TrainConfig(steps=1, seed=seed)


@pytest.mark.parametrize("field", ["steps", "batch_size", "accumulate", "selection_samples"])
def test_training_needs_something_to_do(field: str) -> None:
    settings: dict[str, Any] = {"steps": 1, field: 0}
    with pytest.raises(ConfigError, match=field):
        TrainConfig(**settings)
