"""Configuration files: YAML with one section per concern, and nothing that is not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from gallop.errors import ConfigError
from gallop.settings import SECTIONS, SETTINGS

__all__ = ["read_config", "write_config"]


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a configuration file.

    ::

        model: {path: base/}
        data: {path: train.jsonl}
        selection: {density: 0.01}
        training: {steps: 200, lr: 2e-4}
        output: {path: task.delta.safetensors}

    Every key is in the table of ``gallop.settings``; all are optional. Paths in it are relative to
    the working directory, as those of flags are.

    Args:
        path: The file, in UTF-8.

    Returns:
        Values by the name of their setting, of those settings only that the file gives.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or given twice, or a value is of the
            wrong kind; the message names the line.
    """
    yaml = _yaml()
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a configuration file, found {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}: expected YAML, found {problem}") from error
    found: dict[str, Any] = {}
    for _, section, node in _items(yaml, root, path, SECTIONS, what="a section"):
        known = {each.key: each for each in SETTINGS if each.section == section}
        what = f"a key of {section}"
        for place, key, value in _items(yaml, node, path, tuple(known), what=what):
            try:
                found[known[key].name] = known[key].convert(_constructed(yaml, value))
            except ConfigError as error:
                raise ConfigError(f"{place}: {section}.{error.message}") from error
    return found


def write_config(values: Mapping[str, Any]) -> str:
    """Return the YAML that :func:`read_config` reads the same values from.

    Args:
        values: Values by the name of their setting; settings that are missing are left out.

    Returns:
        The document, sections and keys in the order of the table.
    """
    document: dict[str, dict[str, Any]] = {}
    for setting in SETTINGS:
        if setting.name in values:
            value = values[setting.name]
            plain = list(value) if isinstance(value, tuple) else value
            document.setdefault(setting.section, {})[setting.key] = plain
    text: str = _yaml().safe_dump(document, sort_keys=False, allow_unicode=True)
    return text


def _yaml() -> ModuleType:
    try:
        import yaml  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigError(
            f"pyyaml: expected it installed, to read or write a configuration, found {error}",
            hint='pip install "sparsedelta[train]"',
        ) from error
    return yaml


def _items(
    yaml: ModuleType,
    node: Any,  # noqa: ANN401  (yaml's nodes, which are imported late)
    path: str | Path,
    known: tuple[str, ...],
    *,
    what: str,
) -> Iterator[tuple[str, str, Any]]:
    # Place, key and value node of a mapping; an empty one has none.
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: expected keys and values, found a {node.id}"
        )
    seen: set[str] = set()
    for key, value in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        name = str(key.value)
        if name in seen:
            raise ConfigError(f"{place}: expected {name} once, found it twice")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{place}: expected {what}, found {name!r}",
                hint=f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}",
            )
        seen.add(name)
        yield place, name, value


def _constructed(yaml: ModuleType, node: Any) -> Any:  # noqa: ANN401
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"value: expected plain YAML, found {error}") from error
    finally:
        loader.dispose()
