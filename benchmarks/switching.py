"""Seconds to switch a live model between two tasks: deltas, adapters, loading anew.

Two random deltas of 1 % of SmolLM2-135M's words, in bf16, against two LoRA adapters of about as
many parameters (rank 4 on all linear layers) in PEFT. Contenders take turns on one process; what is
told is the median over the rounds:

- ``Stack``: from one delta to the other, in place, and to both at once;
- ``set_adapter``: the adapters stay beside the weights, and every forward computes them, too;
- ``merge_adapter``: unmerge one, merge the other: nothing is computed at a forward;
- ``from_pretrained``: the checkpoint of the other task; and the base with its delta on it.

After all of it the words are compared with the base: a stack gives all of them back, bit for bit;
an adapter that was merged into bf16 does not.

    python benchmarks/switching.py
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import report
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparsedelta

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import weights

DENSITY: Final = 0.01
RANK: Final = 4
ROUNDS: Final = 3
TOKENS: Final = 16
LAYERS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Tensors = dict[str, torch.Tensor]


def ensure_deltas(folder: Path) -> tuple[Path, list[Path], list[Path]]:
    """The base, two checkpoints that differ from it in 1 % of their words, and their deltas."""
    base = folder / "smollm2"
    weights.write_smollm2(base)
    tensors = load_file(base / "model.safetensors")
    tasks, deltas = [], []
    for number in range(2):
        task, delta = folder / f"task{number}", folder / f"task{number}.delta.safetensors"
        tasks.append(task)
        deltas.append(delta)
        if delta.exists():
            continue
        chance = torch.Generator().manual_seed(number)
        task.mkdir(exist_ok=True)
        changed = {}
        for name, tensor in tensors.items():
            mask = torch.rand(tensor.shape, generator=chance) < DENSITY
            step = torch.randn(tensor.shape, generator=chance).to(tensor.dtype) * 0.01
            changed[name] = torch.where(mask, tensor + step, tensor)
        save_file(changed, task / "model.safetensors", metadata={"format": "pt"})
        for settings in ("config.json", "generation_config.json"):
            (task / settings).write_bytes((base / settings).read_bytes())
        sparsedelta.diff(base, task, delta, force=True)
    return base, tasks, deltas


def load(folder: Path) -> nn.Module:
    """The model, as transformers loads it."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 (slow: not for --help)

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model


def with_adapters(base: Path) -> Any:  # noqa: ANN401 (of PEFT)
    """The model with two adapters that do something."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS), lora_dropout=0.0)
    model = get_peft_model(load(base), config, adapter_name="a")
    model.add_adapter("b", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def words_kept(model: nn.Module, base: Tensors) -> float:
    """Share of the base's words that a model still holds, by the names that PEFT gives."""
    kept = total = 0
    found = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in base.items():
        same = found[name].view(torch.int16) == tensor.view(torch.int16)
        kept += int(same.sum())
        total += same.numel()
    return kept / total


def main() -> None:
    """Command line."""
    options = report.parser(__doc__).parse_args()
    work = options.work / "switching"
    work.mkdir(parents=True, exist_ok=True)
    base, tasks, deltas = ensure_deltas(work)
    tensors = load_file(base / "model.safetensors")
    model = load(base)
    stack = sparsedelta.Stack(model)
    adding = [
        seconds(lambda: stack.add("a", deltas[0])),
        seconds(lambda: stack.add("b", deltas[1], enabled=False)),
    ]
    lora = with_adapters(base)
    inputs = torch.arange(TOKENS)[None]
    adapters = [
        sum(p.numel() for name, p in lora.named_parameters() if f".{own}." in name) for own in "ab"
    ]

    def merge(own: str) -> None:
        lora.unmerge_adapter()
        lora.set_adapter(own)
        lora.merge_adapter()

    contenders: dict[str, Callable[[int], object]] = {
        "Stack: one delta to the other": lambda n: stack.set_weights({"a": n, "b": 1 - n}),
        "Stack: one delta to both": lambda _: stack.set_weights({"a": 1, "b": 1}),
        "PEFT: unmerge, set_adapter, merge": lambda n: merge("ab"[n]),
        "transformers: the other checkpoint": lambda n: load(tasks[n]),
        "sparsedelta.from_pretrained: base and delta": lambda n: load_with(base, deltas[n]),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for turn in range(2 if options.quick else ROUNDS):
            for name, call in contenders.items():
                n = turn % 2
                stack.set_weights({"a": 1 - n, "b": n})  # where a switch starts from: off the clock
                taken[name].append(seconds(lambda: call(turn % 2)))  # noqa: B023 (called at once)
        lora.unmerge_adapter()
        kept = {"PEFT": words_kept(lora, tensors)}
        taken["PEFT: set_adapter"] = [seconds(lambda: lora.set_adapter("b")) for _ in range(ROUNDS)]
        forwards = {
            name: statistics.median(seconds(lambda: own(inputs)) for _ in range(ROUNDS))  # noqa: B023
            for name, own in (("Stack", model), ("PEFT: set_adapter", lora))
        }
    nbytes = stack.nbytes
    stack.remove("a", "b")
    kept["Stack"] = words_kept(model, tensors)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    figures = {
        "entries": [sparsedelta.info(delta).nnz for delta in deltas],
        "adapter_parameters": adapters,
        "seconds": {name: {"median": medians[name], "all": times} for name, times in taken.items()},
        "adding_seconds": adding,
        "forward_seconds": forwards,
        "stack_bytes": nbytes,
        "base_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "base_words_kept": kept,
    }
    report.write_results("switching", figures, work=options.work, quick=options.quick)
    one = medians["Stack: one delta to the other"]
    report.print_table(
        "Switching between two tasks on SmolLM2-135M",
        ("", "ms", "against Stack"),
        [
            (n, f"{1e3 * t:,.1f}", f"{t / one:,.2f}")
            for n, t in sorted(medians.items(), key=_by_time)
        ],
    )
    report.print_table(
        f"A forward of {TOKENS} tokens, and what is left of the base",
        ("", "ms", "base words that came back"),
        [
            (n, f"{1e3 * t:,.1f}", f"{100 * kept[n.split(':')[0]]:.3f} %")
            for n, t in forwards.items()
        ],
    )


def _by_time(item: tuple[str, float]) -> float:
    return item[1]


def load_with(base: Path, delta: Path) -> nn.Module:
    """The model with a delta on it, as it is loaded."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model: nn.Module = sparsedelta.from_pretrained(
        AutoModelForCausalLM, base, [delta], dtype=torch.bfloat16
    )
    return model


if __name__ == "__main__":
    main()
