"""Named things that users may add to: looked up by name, with the nearest one suggested."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from gallop.errors import ConfigError

__all__ = ["Registry", "unknown_name"]

Item = TypeVar("Item")


def unknown_name(field: str, name: object, known: Mapping[str, object]) -> ConfigError:
    """Make the error for a name that nothing goes by.

    Args:
        field: The setting.
        name: What was asked for.
        known: What there is.

    Returns:
        The error, with the nearest name as a hint.
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    return ConfigError(
        f"{field}: expected one of {', '.join(known)}, found {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else None,
    )


class Registry(Mapping[str, Item], Generic[Item]):
    """What there is of a kind, by name, in the order of registration.

    Args:
        field: The setting that names one of them, for messages.
        function_of: The function that an item consists of, for telling a repeated definition, as
            when the cell of a notebook runs twice, from another thing of the same name.
    """

    def __init__(self, field: str, function_of: Callable[[Item], Callable[..., object]]) -> None:
        self._field = field
        self._function_of = function_of
        self._items: dict[str, Item] = {}

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def find(self, name: str) -> Item:
        """Look a name up.

        Args:
            name: The name.

        Returns:
            What goes by it.

        Raises:
            ConfigError: Nothing does; the hint tells the nearest name.
        """
        if name not in self._items:
            raise unknown_name(self._field, name, self)
        return self._items[name]

    def add(self, name: str, item: Item) -> None:
        """Register something.

        Args:
            name: Its name.
            item: What it is.

        Raises:
            ConfigError: The name is empty, or belongs to something else.
        """
        if not isinstance(name, str) or not name or name.startswith("@"):
            raise ConfigError(f"{self._field}: expected a name, found {name!r}")
        earlier = self._items.get(name)
        if earlier is not None:
            old, new = self._function_of(earlier), self._function_of(item)
            if (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
                raise ConfigError(
                    f"{self._field}: expected a new name, found {name!r}, which is registered by "
                    f"{old.__module__}.{old.__qualname__}",
                    hint="choose another name",
                )
        self._items[name] = item
