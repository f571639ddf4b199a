"""Codecs by id, and codecs as the JSON objects of a manifest."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import lru_cache
from typing import Final, TypeVar

from sparsedelta.codecs.base import AnyCodec, AnyIndexCodec, AnyValueCodec
from sparsedelta.codecs.bitmask import Bitmask
from sparsedelta.codecs.dense import Dense
from sparsedelta.codecs.gap8 import Gap8
from sparsedelta.codecs.gap8_split import GapSplit
from sparsedelta.codecs.packed import Packed
from sparsedelta.codecs.planes import Planes
from sparsedelta.codecs.range import Range
from sparsedelta.codecs.ranked import Ranked
from sparsedelta.codecs.raw import RawIndices, RawWords
from sparsedelta.codecs.zigzag import Zigzag
from sparsedelta.strict_json import Json

INDEX_CODECS: Final[dict[str, type[AnyIndexCodec]]] = {
    "gap8": Gap8,
    "gap8-split": GapSplit,
    "bitmask": Bitmask,
    "range": Range,
    "dense": Dense,
    "raw": RawIndices,
    "ranked": Ranked,
}

VALUE_CODECS: Final[dict[str, type[AnyValueCodec]]] = {
    "packed": Packed,
    "zigzag": Zigzag,
    "planes": Planes,
    "raw": RawWords,
    "ranked": Ranked,
}

_Codec = TypeVar("_Codec")


def codec_to_json(codec: AnyCodec) -> dict[str, Json]:
    """The id and the parameters of a codec."""
    return dict(_items(codec))  # type: ignore[arg-type]  # frozen, and so hashable


@lru_cache(maxsize=256)
def _items(codec: AnyCodec) -> tuple[tuple[str, Json], ...]:
    return ("id", codec.id), *asdict(codec).items()  # type: ignore[call-overload]


def codec_from_json(document: Json, codecs: dict[str, type[_Codec]]) -> _Codec:
    """The codec that a manifest names.

    Raises:
        ValueError: Unknown id, a missing or unknown parameter, or one out of range.
    """
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise ValueError(f"{document!r} names no codec")
    parameters = {key: value for key, value in document.items() if key != "id"}
    codec = codecs.get(document["id"])
    if codec is None:
        raise ValueError(f"unknown codec {document['id']!r}, expected one of {sorted(codecs)}")
    known = {field.name for field in fields(codec)}  # type: ignore[arg-type]
    if parameters.keys() != known:
        raise ValueError(
            f"codec {document['id']!r} has {sorted(parameters)}, expected {sorted(known)}"
        )
    if any(type(value) is not int for value in parameters.values()):
        raise ValueError(f"a parameter of codec {document['id']!r} is no integer")
    return codec(**parameters)
