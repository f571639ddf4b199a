"""What kind of parameter a parameter is, told by the module that holds it."""

from __future__ import annotations

from torch import nn

__all__ = ["KINDS", "parameter_kinds"]

KINDS = (
    "embedding",
    "head",
    "expert",
    "norm",
    "linear",
    "convolution",
    "bias",
    "other",
)
"""Every kind, in the order of precedence: of a tied parameter's kinds the first one counts."""

_HEAD_NAMES = frozenset({"lm_head", "embed_out", "head"})
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,  # noqa: SLF001  (the one base of batch and instance norms)
)
_CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001  (the one base of all convolutions)


def parameter_kinds(model: nn.Module) -> dict[int, str]:
    """Class every parameter of a model once.

    - ``embedding``: of ``nn.Embedding``, ``nn.EmbeddingBag``, or a module whose class is named so;
      a head tied to it is the same parameter, and an embedding.
    - ``head``: of the module that ``model.get_output_embeddings()`` gives, or of an ``nn.Linear``
      called ``lm_head``, ``embed_out`` or ``head``; its bias, too.
    - ``expert``: in a module that is called ``experts``, or whose class is, be it 3-D tensors with
      all experts in one or a list of modules; and any other 3-D parameter but a convolution's. A
      shared expert is an ordinary MLP that every token goes through, and is not one of them.
    - ``norm``: of torch's normalisation layers, or of a class with ``Norm`` in its name.
    - ``linear``: the weight of ``nn.Linear`` or of transformers' ``Conv1D``.
    - ``convolution``: the weight of a convolution.
    - ``bias``: the bias of any of the last two.
    - ``other``: everything else, such as the router of a mixture of experts.

    Args:
        model: Any module.

    Returns:
        One of :data:`KINDS` by ``id(parameter)``.
    """
    output = _output_embeddings(model)
    kinds: dict[int, str] = {}
    experts: set[str] = set()  # paths of modules that are experts, or inside
    for path, module in model.named_modules():
        parent, _, called = path.rpartition(".")
        inside_experts = (
            parent in experts or called == "experts" or type(module).__name__.endswith("Experts")
        )
        if inside_experts:
            experts.add(path)
        for name, parameter in module._parameters.items():  # noqa: SLF001  (tied ones each time)
            if parameter is None:
                continue
            kind = _kind(
                module,
                path,
                name=name,
                parameter=parameter,
                is_output=module is output,
                inside_experts=inside_experts,
            )
            found = kinds.get(id(parameter), kind)
            kinds[id(parameter)] = min(found, kind, key=KINDS.index)
    return kinds


def _kind(
    module: nn.Module,
    path: str,
    *,
    name: str,
    parameter: nn.Parameter,
    is_output: bool,
    inside_experts: bool,
) -> str:
    called = type(module).__name__
    convolution = isinstance(module, _CONVOLUTIONS)
    linear = isinstance(module, nn.Linear)
    kind = "other"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Embedding" in called:
        kind = "embedding"
    elif is_output or (linear and path.rpartition(".")[2] in _HEAD_NAMES):
        kind = "head"
    elif inside_experts or (parameter.ndim == 3 and not convolution):  # noqa: PLR2004
        kind = "expert"
    elif isinstance(module, _NORMS) or "Norm" in called:
        kind = "norm"
    elif convolution or linear or called == "Conv1D":
        weight = "convolution" if convolution else "linear"
        kind = "bias" if name == "bias" else weight
    return kind


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    found = find() if callable(find) else None
    return found if isinstance(found, nn.Module) else None
