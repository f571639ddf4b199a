"""Lets the tests import the reference and the generator, which are no part of the package."""

import sys
from pathlib import Path

SPEC = Path(__file__).resolve().parents[2] / "spec"
FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
sys.path[:0] = [str(SPEC / "reference"), str(SPEC / "vectors"), str(FUZZ)]
