"""Every setting of the commands, in one table: flags and configuration files are made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gallop.setting import Setting

__all__ = ["SECTIONS", "SETTINGS", "defaults", "keyword_arguments", "settings_of"]

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
        name="compute", section="model", key="compute", kind="choice", default="weights",
        commands=("select", "train"), choices=("weights", "float32", "auto"),
        fields=("TrainConfig.compute",),
        help="Compute in the dtype of the weights, or in float32; auto is float32 for bfloat16 "
        "weights on a CPU that emulates bfloat16.",
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
        name="selector", section="selection", key="selector", kind="text", default="gallop",
        metavar="NAME", fields=("GallopConfig.selector",),
        help="Score: gallop, saft, sift, fisher, magnitude-low, magnitude-high, gem, sara, "
        "random, snip, or a registered one.",
    ),
    Setting(
        name="eps", section="selection", key="eps", kind="number", default=1e-8,
        fields=("GallopConfig.eps",), help="Eps of the score.",
    ),
    Setting(
        name="threshold_scope", section="selection", key="threshold_scope", kind="choice",
        choices=("global", "per_tensor", "sampled_global"), shown="the selector's",
        fields=("GallopConfig.threshold_scope",),
        help="One threshold for the model, one for each tensor, or one for the model from a "
        "sample.",
    ),
    Setting(
        name="allocation", section="selection", key="allocation", kind="text", metavar="NAME",
        shown="the selector's", fields=("GallopConfig.allocation",),
        help="How tensors share the density: uniform, proportional, entropy, or a registered one.",
    ),
    Setting(
        name="sample_size", section="selection", key="sample_size", kind="integer",
        default=1 << 20, minimum=1, fields=("GallopConfig.sample_size",),
        help="Scores that sampled_global looks at.",
    ),
    Setting(
        name="weight_threshold", section="selection", key="weight_threshold", kind="number",
        minimum=0, shown="none", fields=("GallopConfig.weight_threshold",),
        help="Choose only weights of a magnitude below this.",
    ),
    Setting(
        name="gradient_mean", section="selection", key="gradient_mean", kind="choice",
        default="sample", choices=("sample", "token"), fields=("GallopConfig.gradient_mean",),
        help="Weigh selection batches by samples or by supervised tokens.",
    ),
    Setting(
        name="exclude_zeros", section="selection", key="exclude_zeros", kind="switch",
        flag="--exclude-zeros/--include-zeros", shown="the selector's",
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
        name="memory", section="selection", key="memory", kind="choice", default="auto",
        choices=("auto", "resident", "offload", "grouped"), identity=False,
        help="Where gradients are summed up: beside the weights, on the host, or in passes over "
        "groups of tensors. The mask is the same.",
    ),
    Setting(
        name="memory_budget", section="selection", key="memory_budget", kind="integer",
        minimum=1, metavar="BYTES", shown="half of the free memory", identity=False,
        help="What the selection may take for its sums.",
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
        name="engine", section="training", key="engine", kind="choice", default="hook",
        choices=("hook", "autograd"), commands=_PLANNED, fields=("TrainConfig.engine",),
        help="Gather gradients in hooks, or inside the backward pass of linear layers.",
    ),
    Setting(
        name="gradient", section="training", key="gradient", kind="choice", default="dense",
        choices=("dense", "sampled"), commands=_PLANNED, fields=("TrainConfig.gradient",),
        help="With --engine autograd: gather from whole gradients of linear layers, or compute the "
        "chosen entries alone, which is faster on CPUs.",
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
        help="Encoding of the delta: compact is smaller, and only read with the base.",
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
        name="push_to_hub", section="output", key="push_to_hub", kind="text", metavar="NS/NAME",
        commands=("train",), identity=False, shown="nowhere",
        help="Push the delta to this repository on the Hub when it is written.",
    ),
    Setting(
        name="private", section="output", key="private", kind="switch",
        flag="--private/--public", commands=("train",), identity=False, shown="the account's",
        help="Whether a repository that is made for it is private.",
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
