"""What other projects store for the same change, written anew from what they say of their formats.

Each is a pair of pure functions over the 16-bit words of one tensor. The container is the same for
all: a safetensors file with the streams of tensor ``NAME`` as ``NAME.0``, ``NAME.1``; tensors that
stay are left out. None verifies anything: what these times leave out is what ours contain.

    python benchmarks/formats.py encode "dense xor+zstd" BASE TARGET DELTA
    python benchmarks/formats.py decode "dense xor+zstd" BASE DELTA RESULT
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray
from stored import Bytes, Stored, StoredFile, Words, header_of

Streams: TypeAlias = list[Bytes]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Format:
    """A way of storing what changed in a tensor.

    Attributes:
        name: What tables call it.
        users: Who stores it so, or nearly so.
        encode: Words before and after → streams. The words differ somewhere.
        decode: Words before and streams → words after.
        own_threads: Whether these have threads of their own, and get in each other's way.
    """

    name: str
    users: str
    encode: Callable[[Words, Words], Streams]
    decode: Callable[[Words, Streams], Words]
    own_threads: bool = False


def _raw(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _pack(array: NDArray[Any]) -> Bytes:
    """One Zstandard frame, level 1."""
    packed = zstandard.ZstdCompressor(level=1).compress(_raw(array).data)
    return np.frombuffer(packed, np.uint8)


def _unpack(frame: Bytes) -> Bytes:
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame.data), np.uint8)


def _gaps(old: Words, new: Words) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Words between changes, in 16 bits if they all fit, else in 32; and the places of these."""
    places = np.flatnonzero(old != new)
    gaps = np.diff(places, prepend=-1) - 1
    return gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32), places


def _places(gaps: Bytes, count: int) -> NDArray[np.int64]:
    wide = gaps.view(np.uint16 if gaps.size == 2 * count else np.uint32)
    return np.cumsum(wide.astype(np.int64) + 1) - 1


def _encode_coo(old: Words, new: Words) -> Streams:
    places = np.flatnonzero(old != new)
    return [_raw(places.astype(np.int32)), _raw(new[places])]


def _decode_coo(old: Words, streams: Streams) -> Words:
    new = old.copy()
    new[streams[0].view(np.int32)] = streams[1].view(np.uint16)
    return new


def _encode_gaps(old: Words, new: Words) -> Streams:
    gaps, places = _gaps(old, new)
    return [_pack(gaps), _pack(new[places])]


def _decode_gaps(old: Words, streams: Streams) -> Words:
    words = _unpack(streams[1]).view(np.uint16)
    new = old.copy()
    new[_places(_unpack(streams[0]), words.size)] = words
    return new


def _encode_gaps_xor(old: Words, new: Words) -> Streams:
    gaps, places = _gaps(old, new)
    return [_pack(gaps), _pack(old[places] ^ new[places])]


def _decode_gaps_xor(old: Words, streams: Streams) -> Words:
    words = _unpack(streams[1]).view(np.uint16)
    new = old.copy()
    new[_places(_unpack(streams[0]), words.size)] ^= words
    return new


def _encode_xor(old: Words, new: Words) -> Streams:
    return [_pack(old ^ new)]


def _decode_xor(old: Words, streams: Streams) -> Words:
    return old ^ _unpack(streams[0]).view(np.uint16)


def _encode_planes(old: Words, new: Words) -> Streams:
    halves = _raw(old ^ new).reshape(-1, 2)
    return [_pack(halves[:, 0]), _pack(halves[:, 1])]


def _decode_planes(old: Words, streams: Streams) -> Words:
    halves = np.empty((old.size, 2), np.uint8)
    halves[:, 0], halves[:, 1] = _unpack(streams[0]), _unpack(streams[1])
    return old ^ halves.reshape(-1).view(np.uint16)


def _zipnn() -> Any:  # noqa: ANN401 (an optional package without types)
    from zipnn import ZipNN  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    return ZipNN(
        input_format="byte",
        bytearray_dtype="bfloat16",
        delta_compressed_type="byte",
        threads=len(os.sched_getaffinity(0)),
    )


def _encode_zipnn(old: Words, new: Words) -> Streams:
    # It may write into its input, so it gets copies.
    packed = _zipnn().compress(bytearray(_raw(new)), delta_second_data=bytearray(_raw(old)))
    return [np.frombuffer(packed, np.uint8)]


def _decode_zipnn(old: Words, streams: Streams) -> Words:
    found = _zipnn().decompress(bytearray(streams[0]), delta_second_data=bytearray(_raw(old)))
    return np.frombuffer(found, np.uint16)


ZIPNN: Final = Format("zipnn delta", "ZipNN", _encode_zipnn, _decode_zipnn, own_threads=True)

FORMATS: Final = {
    f.name: f
    for f in (
        Format("int32+bf16", "TRL, prime-rl", _encode_coo, _decode_coo),
        Format("u16 gaps+bf16+zstd", "slime v1, verl", _encode_gaps, _decode_gaps),
        Format("u16 gaps+xor+zstd", "NeMo-RL", _encode_gaps_xor, _decode_gaps_xor),
        Format("dense xor+zstd", "slime, SkyRL", _encode_xor, _decode_xor),
        Format("dense xor planes+zstd", "BitX", _encode_planes, _decode_planes),
        ZIPNN,
    )
}


def available() -> list[Format]:
    """The formats that can be measured here: ZipNN is a package that may be missing."""
    return [f for f in FORMATS.values() if f is not ZIPNN or find_spec("zipnn")]


def _mapped(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterator[_Result]:
    """Results in order, with a bounded number of items in flight."""
    window: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            window.append(pool.submit(function, item))
            if len(window) > threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def encode_file(form: Format, base: Path, target: Path, out: Path, *, threads: int) -> None:
    """Write the delta between two files with the same tensors, all of them of 16-bit words."""
    old, new = StoredFile(base), StoredFile(target)

    def encode(name: str) -> Streams:
        before, after = old.words(name), new.words(name)
        return form.encode(before, after) if (before != after).any() else []

    found = zip(new.tensors, _mapped(encode, new.tensors, threads), strict=True)
    listed = [(f"{name}.{n}", s) for name, streams in found for n, s in enumerate(streams)]
    with out.open("wb") as stream:
        layout = [(name, "U8", (part.size,)) for name, part in listed]
        stream.write(header_of(layout, {"format": form.name}))
        for _, part in listed:
            stream.write(part.data)
        stream.flush()
        os.fsync(stream.fileno())


def decode_file(form: Format, base: Path, delta: Path, out: Path, *, threads: int) -> None:
    """Write the target that a delta leads to."""
    old, packed = StoredFile(base), StoredFile(delta)
    with out.open("wb") as stream:
        stream.write(old.header)
        stream.flush()

        def decode(stored: Stored) -> None:
            streams: Streams = []
            while (part := f"{stored.name}.{len(streams)}") in packed.tensors:
                streams.append(packed.bytes_of(part))
            words = old.words(stored.name)
            new = form.decode(words, streams) if streams else words
            left = _raw(new).data
            at = stored.start
            while left:
                done = os.pwrite(stream.fileno(), left, at)
                left, at = left[done:], at + done

        deque(_mapped(decode, old.tensors.values(), threads), maxlen=0)
        os.fsync(stream.fileno())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("encode", "decode"))
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("files", type=Path, nargs=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    function = encode_file if arguments.action == "encode" else decode_file
    form = FORMATS[arguments.format]
    function(form, *arguments.files, threads=1 if form.own_threads else arguments.threads)


if __name__ == "__main__":
    main()
