"""What `gallop eval` and `gallop estimate` do, apart from parsing: documents that are printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gallop.config import GallopConfig

__all__ = ["run_estimate", "run_eval"]


def run_eval(options: Mapping[str, Any]) -> dict[str, Any]:
    raise NotImplementedError


def run_estimate(
    config: GallopConfig, options: Mapping[str, Any], *, probe: bool
) -> dict[str, Any]:
    raise NotImplementedError
