"""``from_pretrained``: a model of transformers with deltas on it, as if it had been saved."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import CheckpointError, SparseDeltaError, UsageError
from sparsedelta.hub.named_base import at_named_commit
from sparsedelta.hub.references import is_hub
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import LocationLike, Url, as_location
from sparsedelta.operations.load import as_tensor, opened
from sparsedelta.operations.made_tensors import MadeTensors, Recipe, Verify
from sparsedelta.state_dict import torch_dtype

if TYPE_CHECKING:
    import torch

_CONFIG: Final = "config.json"
_SETTINGS: Final = (_CONFIG, "generation_config.json")

_OURS: Final = {
    "state_dict": "it is what the deltas make of the base",
    "gguf_file": "deltas are of safetensors",
    "subfolder": "name the folder itself as the base",
    "revision": "name it with the base: NAMESPACE/NAME@REVISION",
    "trust_remote_code": "load with sparsedelta.load_state_dict, and give it to your class",
}


def from_pretrained(
    auto_class: Any,  # noqa: ANN401 (any class of transformers)
    base: LocationLike,
    deltas: Sequence[LocationLike | DeltaReader],
    *,
    weights: Sequence[float] | None = None,
    method: str = "sum",
    parameters: Mapping[str, object] | None = None,
    seed: int = 0,
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,  # noqa: ANN401 (whatever transformers takes)
    verify: Verify = "full",
    threads: int | None = None,
    **kwargs: Any,  # noqa: ANN401 (of transformers)
) -> Any:  # noqa: ANN401
    """Load a model of transformers with deltas on it.

    It is the model that ``auto_class.from_pretrained`` gives of what ``apply`` would write, loaded
    in the same way: built without memory, each tensor made when its turn comes and sent to its
    device, tied weights tied. Nothing is written, but what ``device_map`` sends to a disk.

    Args:
        auto_class: ``AutoModelForCausalLM`` or its like, or a class of models.
        base: The folder of the base: its weights and its configuration; or a repository on the Hub,
            ``ns/name`` or ``ns/name@revision``, at the commit that the deltas name if no other is.
        deltas: See :func:`sparsedelta.load_state_dict`, as for the next four.
        weights: A weight per delta of one base.
        method: How those are put together.
        parameters: Parameters of the method.
        seed: What random methods draw from.
        dtype: Dtype of the model; ``"auto"``: that of its configuration. Deltas are applied before
            anything is converted.
        device_map: Which part goes where.
        verify: ``"full"`` or ``"touched"``.
        threads: Worker threads; None for the cores of this process.
        **kwargs: As those of ``auto_class.from_pretrained``.

    Returns:
        The model, in eval mode, with the generation settings of its folder; with
        ``output_loading_info=True`` what transformers has to say, too.

    Raises:
        UsageError: An argument that makes no sense here, or of which there is no class.
        CheckpointError: The base is no folder with a configuration, transformers is not installed;
            and all that :func:`sparsedelta.load_state_dict` raises.
    """
    for name, why in _OURS.items():
        if kwargs.get(name):
            raise UsageError(f"{name} cannot be given here", hint=why)
    folder = _folder(base, deltas)
    recipe = Recipe(deltas, weights, method, parameters or {}, seed, verify)
    with opened(folder, recipe, threads) as made, _settings(folder, made) as settings:
        placing = {"dtype": dtype, "device_map": device_map}
        model = _load(auto_class, settings, made, placing, kwargs)
        first = model[0] if isinstance(model, tuple) else model
        first.name_or_path = first.config.name_or_path = str(folder)
        return model


def _folder(base: LocationLike, deltas: Sequence[LocationLike | DeltaReader]) -> Path:
    """The folder of the base: of a repository on the Hub, its snapshot in the client's cache."""
    location = as_location(at_named_commit(base, deltas))
    if isinstance(location, Url) and is_hub(location):
        store = HubStore(location)
        FileCheckpoint(location).close()  # brings weights, configuration and the rest
        folder = store.snapshot / store.path
    elif isinstance(location, Path):
        folder = location
    else:
        raise CheckpointError(f"{location} is no folder here", hint="copy it here first")
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"{location} is no folder with a {_CONFIG}",
            hint="name a folder that save_pretrained has written, or a model of the Hub",
        )
    return folder


def _load(
    auto_class: Any,  # noqa: ANN401
    settings: Path,
    made: MadeTensors,
    placing: Mapping[str, Any],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401
    try:
        from transformers import AutoConfig, GenerationConfig  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise CheckpointError(
            f"transformers: expected it installed, found {error}",
            hint='pip install "sparsedelta[train]"',
        ) from error
    config = kwargs.pop("config", None)
    if config is None:
        config, kwargs = AutoConfig.from_pretrained(settings, return_unused_kwargs=True, **kwargs)
    model_class, config = _model_class(auto_class, config)
    if model_class.can_generate() and kwargs.get("generation_config") is None:
        name, is_model = ("generation_config.json", False)
        if not (settings / name).is_file():
            name, is_model = _CONFIG, True
        kwargs["generation_config"] = GenerationConfig.from_pretrained(
            settings, config_file_name=name, _from_model_config=is_model
        )
    failures: list[SparseDeltaError] = []
    try:
        loaded = model_class.from_pretrained(
            None,
            config=config,
            state_dict={name: _Waiting(made, name, failures) for name in made.specs},
            **placing,
            **kwargs,
        )
    except Exception:
        if failures:  # transformers tells of them in its own words, or goes on without
            raise failures[0] from None
        raise
    if failures:
        raise failures[0]
    made.finish()
    return loaded


def _model_class(auto_class: Any, config: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """The class of a model, and its part of the configuration, as transformers' own choose them."""
    if not hasattr(auto_class, "_model_mapping"):
        if not hasattr(auto_class, "from_pretrained"):
            raise UsageError(
                f"auto_class is {auto_class!r}, expected a class of transformers",
                hint="from transformers import AutoModelForCausalLM",
            )
        return auto_class, config
    from transformers.models.auto.auto_factory import _get_model_class  # noqa: PLC0415

    mapping = auto_class._model_mapping  # noqa: SLF001 (there is no public way to ask for it)
    if type(config) not in mapping:
        raise UsageError(
            f"{auto_class.__name__} has no class for {type(config).__name__}",
            hint="name another auto class, or the class of the model",
        )
    model_class = _get_model_class(config, mapping)
    text = type(config).sub_configs.get("text_config")
    if text is not None and getattr(model_class, "config_class", None) is text:
        config = config.get_text_config()
    return model_class, config


@contextmanager
def _settings(folder: Path, made: MadeTensors) -> Iterator[Path]:
    """The configuration of the result: the base's, but for what the deltas carry."""
    carried = made.carried(_SETTINGS)
    if not carried:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sparsedelta-") as place:
        for name in _SETTINGS:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(place) / name)
        for name, content in carried.items():
            (Path(place) / name).unlink(missing_ok=True)
            if content is not None:
                (Path(place) / name).write_bytes(content)
        yield Path(place)


class _Waiting:
    """A tensor that is made when it is asked for: what transformers takes for a lazy one.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
    """

    def __init__(self, made: MadeTensors, name: str, failures: list[SparseDeltaError]) -> None:
        self._made = made
        self._name = name
        self._failures = failures
        spec = made.specs[name]
        dtype = torch_dtype(spec.dtype)
        if dtype is None:
            raise CheckpointError(f"tensor {name!r} is {spec.dtype}: torch has no such dtype")
        self.shape, self.dtype = spec.shape, dtype

    def __getitem__(self, index: Any) -> torch.Tensor:  # noqa: ANN401 (whatever indexes a tensor)
        if self._failures:
            raise self._failures[0]
        try:
            data = self._made.whole(self._name)
        except SparseDeltaError as error:
            self._failures.append(error)
            raise
        tensor = as_tensor(self._made.specs[self._name], data)
        return tensor if index is Ellipsis else tensor[index]

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Its dtype, as safetensors writes it."""
        return self._made.specs[self._name].dtype

    def is_floating_point(self) -> bool:
        """Whether its dtype is one of floating-point numbers."""
        return self.dtype.is_floating_point
