"""Codecs that a person asks for: their names, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sparsedelta.codecs import (
    INDEX_CODECS,
    AnyIndexCodec,
    AnyValueCodec,
    Packed,
    Planes,
    Ranked,
    RawWords,
    Zigzag,
)
from sparsedelta.codecs.packed import WIDTHS
from sparsedelta.errors import UsageError

VALUE_NAMES: Final[Mapping[str, AnyValueCodec]] = {
    **{f"packed{width}": Packed(width) for width in WIDTHS},
    "zigzag": Zigzag(),
    "planes": Planes(),
    "raw": RawWords(),
    "ranked": Ranked(),
}
"""Value codecs by the names that a person types, in the order in which equals are chosen."""


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """Codecs that are asked for.

    Attributes:
        index: The index codec. It has no bearing on the dense ops, which know only ``dense``.
        value: The value codec, or None for the smallest.
    """

    index: AnyIndexCodec
    value: AnyValueCodec | None = None


def parse_choice(text: str) -> CodecChoice:
    """The codecs of a text such as ``gap8``, ``bitmask+planes``, ``gap8+packed2`` or ``raw+raw``.

    Raises:
        UsageError: A codec that there is not; the message lists those there are.
    """
    index, plus, value = text.partition("+")
    for kind, name, known in (
        ("index", index, INDEX_CODECS),
        ("value", value if plus else None, VALUE_NAMES),
    ):
        if name is not None and name not in known:
            raise UsageError(
                f"unknown {kind} codec {name!r} in {text!r}, expected one of "
                f"{', '.join(sorted(known))}",
                hint="an index codec alone or with a value codec: gap8, gap8+packed2, raw+raw",
            )
    chosen = INDEX_CODECS[index]()
    if isinstance(chosen, Ranked) and not plus:
        return CodecChoice(chosen, Ranked())
    return CodecChoice(chosen, VALUE_NAMES[value] if plus else None)
