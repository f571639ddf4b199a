"""Recipes of merges: YAML files as mergekit has them, read strictly (``recipe.schema.json``).

Every key that is not known is an error that names its line and the key that may have been meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from sparsedelta.errors import UsageError
from sparsedelta.merging.gradients import Setting, Settings, Value
from sparsedelta.merging.methods import METHODS, Method, nearest

UNSUPPORTED: Final = {
    "slices": "layers are not put together anew: list whole models under 'models'",
    "modules": "list whole models under 'models'",
    "tokenizer": "tokenizers are not put together: the base's is kept",
    "chat_template": "edit it in the output: the base's is kept",
}
"""Keys of mergekit that this release has nothing for, and what to do."""

DTYPES: Final = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

_TOP: Final = (
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "seed",
)
_MODEL: Final = ("model", "parameters")
_CONDITION: Final = ("value", "filter")

_MAX_DEPTH: Final = 16

_TAG: Final = "tag:yaml.org,2002:"

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")

_NUMBER: Final = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""Also what is a text in YAML 1.1, such as 1e-3, and a number to everybody else."""

_SWITCHES: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}

IGNORED: Final = frozenset({"int8_mask"})
"""Parameters that change nothing here."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of a recipe.

    Attributes:
        name: What it is called: a path, a URL.
        line: Where it stands.
        settings: What is set for it alone.
    """

    name: str
    line: int
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge, as a person wrote it.

    Attributes:
        path: Where it stands, for messages.
        method: The method.
        base: The base, or None: methods of means take the first model.
        models: The models.
        settings: What is set for all of them.
        out_dtype: Dtype that the output shall have, or None.
        seed: What random methods draw from, or None.
    """

    path: str
    method: Method
    base: ModelEntry | None
    models: tuple[ModelEntry, ...]
    settings: Settings
    out_dtype: str | None = None
    seed: int | None = None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a file.

    Raises:
        UsageError: It cannot be read, or says what makes no sense; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, path: str = "recipe") -> Recipe:
    """A recipe from its text; see :func:`read_recipe`."""
    yaml = _yaml()
    try:
        _refuse_deep(yaml, text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as no character's number
        raise UsageError(f"{path} is no YAML: {str(error).replace(chr(10), ' ')}") from None
    return _Parser(path, yaml).recipe(node)


def _refuse_deep(yaml: ModuleType, text: str, path: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            line = event.start_mark.line + 1
            raise UsageError(f"{path}, line {line}: nested {depth} deep, at most {_MAX_DEPTH}")


def _yaml() -> ModuleType:
    try:
        import yaml  # noqa: PLC0415 (most users never need it)
    except ImportError:
        raise UsageError(
            "recipes are YAML, which needs another package", hint="pip install 'sparsedelta[merge]'"
        ) from None
    return yaml


class _Parser:
    """Turns nodes of YAML, which know their lines, into a recipe."""

    def __init__(self, path: str, yaml: ModuleType) -> None:
        self._path = path
        self._yaml = yaml

    def recipe(self, node: Any) -> Recipe:  # noqa: ANN401 (nodes of another library)
        if node is None:
            raise UsageError(f"{self._path} is empty", hint="docs/composing.md has an example")
        top = self._mapping(node, _TOP, UNSUPPORTED)
        for key in ("merge_method", "models"):
            if key not in top:
                self._fail(node, f"{key!r} is missing")
        name = self._text(top["merge_method"])
        if name not in METHODS:
            self._fail(
                top["merge_method"],
                f"merge_method {name!r} is unknown, expected one of {', '.join(METHODS)}",
                nearest(name, METHODS),
            )
        method = METHODS[name]
        source = top.get("tokenizer_source")
        if source is not None and self._text(source) != "base":
            self._fail(source, f"tokenizer_source: only 'base' is kept, not {self._text(source)!r}")
        dtypes = {key: self._dtype(top[key]) for key in ("dtype", "out_dtype") if key in top}
        base = top.get("base_model")
        return Recipe(
            self._path,
            method,
            None if base is None else self._entry(base),
            tuple(self._model(each, method) for each in self._sequence(top["models"], "models")),
            self._settings(top["parameters"], method) if "parameters" in top else {},
            dtypes.get("out_dtype", dtypes.get("dtype")),
            None if "seed" not in top else self._seed(top["seed"]),
        )

    def _model(self, node: Any, method: Method) -> ModelEntry:  # noqa: ANN401
        entry = self._mapping(node, _MODEL)
        if "model" not in entry:
            self._fail(node, "'model' is missing")
        settings = self._settings(entry["parameters"], method) if "parameters" in entry else {}
        model = self._entry(entry["model"])
        return ModelEntry(model.name, model.line, settings)

    def _entry(self, node: Any) -> ModelEntry:  # noqa: ANN401
        return ModelEntry(self._text(node), node.start_mark.line + 1)

    def _settings(self, node: Any, method: Method) -> dict[str, tuple[Setting, ...]]:  # noqa: ANN401
        known = sorted({p.rstrip("_") for p in method.parameters} | {"weight"} | IGNORED)
        found = self._mapping(node, known)
        return {name: tuple(self._setting(each)) for name, each in found.items()}

    def _setting(self, node: Any) -> Iterator[Setting]:  # noqa: ANN401
        yaml = self._yaml
        if isinstance(node, yaml.ScalarNode):
            yield Setting((self._scalar(node),))
        elif isinstance(node, yaml.MappingNode):
            condition = self._mapping(node, _CONDITION)
            if "value" not in condition:
                self._fail(node, "'value' is missing")
            text = self._text(condition["filter"]) if "filter" in condition else None
            # Not one within another: an alias may lead back to where it stands.
            values = condition["value"]
            if isinstance(values, yaml.MappingNode) or any(
                not isinstance(each, yaml.ScalarNode)
                for each in (values.value if isinstance(values, yaml.SequenceNode) else ())
            ):
                self._fail(values, "'value' is expected to be a value, or a list of values")
            for inner in self._setting(condition["value"]):
                yield Setting(inner.values, text)
        elif all(isinstance(each, yaml.ScalarNode) for each in node.value):
            if not node.value:
                self._fail(node, "a list without values")
            yield Setting(tuple(map(self._scalar, node.value)))
        else:
            for each in node.value:
                if not isinstance(each, yaml.MappingNode):
                    self._fail(each, "expected a mapping with 'value' and 'filter'")
                yield from self._setting(each)

    def _mapping(
        self,
        node: Any,  # noqa: ANN401
        known: Sequence[str],
        unsupported: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        if not isinstance(node, self._yaml.MappingNode):
            self._fail(node, f"expected a mapping with {', '.join(known)}")
        found: dict[str, Any] = {}
        for key_node, value in node.value:
            key = self._text(key_node)
            if key in (unsupported or {}):
                self._fail(key_node, f"{key!r} is not supported", (unsupported or {})[key])
            if key not in known:
                expected = f"unknown key {key!r}, expected one of {', '.join(known)}"
                self._fail(key_node, expected, nearest(key, known))
            if key in found:
                self._fail(key_node, f"{key!r} stands here twice")
            found[key] = value
        return found

    def _sequence(self, node: Any, what: str) -> Sequence[Any]:  # noqa: ANN401
        if not isinstance(node, self._yaml.SequenceNode) or not node.value:
            self._fail(node, f"{what}: expected a list")
        values: Sequence[Any] = node.value
        return values

    def _text(self, node: Any) -> str:  # noqa: ANN401
        if not isinstance(node, self._yaml.ScalarNode) or node.tag.endswith(":null"):
            self._fail(node, "expected a text")
        self._check_tag(node)
        return str(node.value)

    def _scalar(self, node: Any) -> Value:  # noqa: ANN401
        self._check_tag(node)
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "bool" and text.lower() in _SWITCHES:
            return _SWITCHES[text.lower()]
        pattern = _INTEGER if kind == "int" else _NUMBER
        if kind in ("int", "float", "str") and pattern.fullmatch(text):
            if not math.isfinite(float(text)):
                self._fail(node, f"{_short(text)} is larger than any number of 64 bits")
            return int(text) if kind == "int" else float(text)
        if kind != "str":
            meant = "; numbers are decimal" if kind in ("int", "float") else ""
            self._fail(node, f"expected a number, true or false, found {_short(text)}{meant}")
        return str(text)

    def _check_tag(self, node: Any) -> None:  # noqa: ANN401
        if not node.tag.startswith(_TAG):
            self._fail(node, f"the tag {_short(node.tag)} is not known", "leave it out")

    def _dtype(self, node: Any) -> str:  # noqa: ANN401
        text = self._text(node)
        if text not in DTYPES:
            known = ", ".join(DTYPES)
            self._fail(node, f"dtype {text!r}, expected one of {known}", nearest(text, DTYPES))
        return DTYPES[text]

    def _seed(self, node: Any) -> int:  # noqa: ANN401
        value = self._scalar(node)
        if isinstance(value, bool) or not isinstance(value, int):
            self._fail(node, f"seed is {value!r}, expected an integer")
        return value

    def _fail(self, node: Any, message: str, hint: str | None = None) -> NoReturn:  # noqa: ANN401
        raise UsageError(f"{self._path}, line {node.start_mark.line + 1}: {message}", hint=hint)


def _short(text: str) -> str:
    """A text as a message shows it: not all of it, if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


_SHOWN: Final = 60
