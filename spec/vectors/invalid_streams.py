"""Invalid vectors: the streams and their entries, rules SD401 to SD410."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from stream_encoder import MAGIC, byte_planes, zstd
from vector_encoder import Hook, build
from vector_records import P, R, X, bare, edited, whole
from vector_samples import (
    SKIPPABLE,
    WIDTHS,
    Invalid,
    at_block,
    flat,
    put,
    simple,
    stream,
    tensor,
)


def bad(name: str, why: str, tensors: list[R], **how: Any) -> Invalid:  # noqa: ANN401
    """An invalid vector."""
    return name, why, build(tensors, **how)


def becomes(new: bytes) -> Callable[[bytes], bytes]:
    """A change of a stream to these bytes."""
    return lambda _: new


def only(*items: int, width: int) -> Callable[[bytes], bytes]:
    """A change of a stream to byte planes of these items."""
    return lambda _: b"".join(byte_planes(list(items), width))


def _with_second(frame: bytes, frames: list[bytes], *_: object) -> list[bytes]:
    return [frames[0], frame]


def invalid_frames() -> Iterator[Invalid]:
    """Rules SD401 and SD402."""

    def wrong_sum(k: int, block: int) -> Hook:
        return at_block(block, lambda r: [*r[: k + 1], [*r[k + 1][:2], bytes(8)], *r[k + 2 :]])

    yield bad("sd401-first", "a checksum", simple(), row=wrong_sum(0, 0))
    yield bad("sd401-last", "a checksum of the last block", simple(), row=wrong_sum(1, 1))
    yield bad("sd401-empty-stream", "zeros for an empty stream", simple(), row=wrong_sum(2, 0))
    sparse = [tensor("w", "BF16", 600, P("difference", {0: 1, 599: 1}))]
    yield bad("sd401-empty-block", "zeros for an empty block", sparse, row=wrong_sum(0, 1))

    good = zstd((b"\7", 300), declared=300)
    for name, why, frame in (
        ("no-zstd", "not Zstandard", b"\7" * 40),
        ("empty", "no byte for 300", b""),
        ("magic-only", "nothing but the magic number", MAGIC),
        ("declares-more", "declares 2^40 bytes", zstd((b"\7", 300), declared=2**40)),
        ("declares-less", "declares 299 bytes", zstd((b"\7", 300), declared=299)),
        ("holds-less", "declares 300 bytes, holds 299", zstd((b"\7", 299), declared=300)),
        ("holds-more", "declares 300 bytes, holds 301", zstd((b"\7", 301), declared=300)),
        ("holds-nothing", "declares 300 bytes, holds none", zstd((b"", 0), declared=300)),
        ("unsized", "declares no size", zstd((b"\7", 300), declared=None, window=10)),
        ("trailing-byte", "a byte after the frame", good + b"\0"),
        ("second-empty-frame", "an empty frame after it", good + zstd((b"", 0), declared=0)),
        ("two-halves", "two frames of 150 bytes", zstd((b"\7", 150), declared=150) * 2),
        ("skippable-before", "a skippable frame first", SKIPPABLE + bytes(4) + good),
        ("skippable-after", "a skippable frame after it", good + SKIPPABLE + bytes(4)),
        ("skippable-only", "a skippable frame", SKIPPABLE + struct.pack("<I", 300) + b"\7" * 250),
        ("truncated", "the last byte is missing", good[:-1]),
        ("dictionary", "a dictionary id", zstd((b"\7", 300), declared=300, dictionary=1)),
        ("window", "a window of 2^28", zstd((b"\7", 300), declared=300, window=28)),
        (
            "checksum",
            "a wrong checksum in the frame",
            zstd((b"\7", 300), declared=300, checksum=bytes(4)),
        ),
        ("reserved-bit", "the reserved bit", good[:4] + bytes([good[4] | 8]) + good[5:]),
        ("legacy", "a frame of Zstandard 0.7", b"\x27\xb5\x2f\xfd" + good[4:]),
    ):
        frames = partial(_with_second, frame)
        yield bad(f"sd402-{name}", why, [flat()], frames=frames)


def invalid_index() -> Iterator[Invalid]:
    """Rules SD403 to SD405."""
    for name, why, new in (
        ("fewer", "one gap fewer than the count", lambda _: b"\xff\2"),
        ("more", "one gap more than the count", lambda s: s + b"\0"),
        ("open", "the last byte is 255", lambda s: s + b"\xff"),
        ("outside", "the last index is behind the block", lambda _: b"\0\xff\x90"),
        ("far-outside", "gaps of 509 and 144", lambda _: b"\xff\xfe\x90"),
    ):
        loose = [tensor("w", "BF16", 400, P("difference", {0: 1, 3: 1}, block=9))]
        yield bad(f"sd403-{name}", why, loose, streams=stream(0, new))
    inside = stream(0, lambda s: s[:-1] + bytes([s[-1] + 1]))
    yield bad("sd403-next-block", "an index of the next block", simple(), streams=inside)
    last = stream(0, lambda s: s[:-1] + bytes([s[-1] + 1]), 1)
    yield bad("sd403-outside-short-block", "behind the last, short block", simple(), streams=last)

    bits = [tensor("w", "BF16", 13, P("difference", {0: 1, 12: 1}, "bitmask"))]
    for name, why, new in (
        ("fewer", "one bit fewer than the count", lambda s: bytes([0, s[1]])),
        ("more", "one bit more than the count", lambda s: bytes([3, s[1]])),
        ("spare", "a spare bit in the place of an entry", lambda s: bytes([s[0], 0x20])),
        ("last-spare", "a spare bit too many", lambda s: bytes([s[0], s[1] | 0x80])),
    ):
        yield bad(f"sd404-{name}", why, bits, streams=stream(0, new))


def _low(*planes: int, k: int | None = None) -> Callable[[bytes], bytes]:
    return lambda _: bytes([len(planes) if k is None else k, *planes])


def invalid_new_index() -> Iterator[Invalid]:
    """Rules SD411 to SD413."""
    part = P("difference", {0: 1, 9: 1, 300: 1}, "gap8-split", block=9, ks=(2,))
    split = [tensor("w", "BF16", 400, part)]  # gaps 0, 8, 290; quotients 0, 2, 72
    for name, why, k, new in (
        ("fewer", "one quotient fewer than the count", 0, lambda _: b"\xff\2\3"),
        ("more", "one quotient more than the count", 0, lambda s: s + b"\0"),
        ("open", "the last byte is 255", 0, lambda s: s + b"\xff"),
        ("outside", "the last index is behind the block", 0, lambda _: b"\0\2\x64"),
        ("far-outside", "far behind the block", 0, lambda _: b"\xfe\xfe\xfe"),
        ("k", "k is 25", 1, _low(0, 0, k=25)),
        ("k-255", "k is 255", 1, _low(0, 0, k=255)),
        ("plane-missing", "one plane for k = 2", 1, _low(0, k=2)),
        ("plane-more", "three planes for k = 2", 1, _low(0, 0, 0, k=2)),
        ("no-plane", "no plane for k = 2", 1, _low(k=2)),
        ("spare", "a spare bit", 1, _low(0, 0x08)),
        ("last-spare", "the last spare bit", 1, _low(0x80, 0x04)),
        ("outside-low", "outside by its low bits", 1, _low(0, 0, *[0] * 5, 4)),
    ):
        yield bad(f"sd411-{name}", why, split, streams=stream(k, new))
    vast = at_block(0, lambda s: [b"\xff\xfe\xfe\xfe", _low(*[0] * 24)(b""), *s[2:]])
    yield bad("sd411-2-to-33", "an index of more than 2^32", split, streams=vast)

    for name, why, first, length in (
        ("outside", "a run behind the block", 391, 10),
        ("far-outside", "first is 2^32 - 1", 2**32 - 1, 10),
        ("length", "another length than that of the values", 0, 11),
        ("short", "a shorter length than that of the values", 0, 9),
        ("huge", "2^32 - 1 words", 0, 2**32 - 1),
    ):
        part = P("difference", {0: 1, 9: 1}, "range", block=9)
        hook = stream(0, becomes(struct.pack("<II", first, length)))
        yield bad(f"sd412-{name}", why, [tensor("w", "BF16", 400, part)], streams=hook)
    part = P("difference", {0: 1, 1: 1}, "range", block=9)
    hook = at_block(0, lambda s: [struct.pack("<II", 0, 1), *s[1:]])
    yield bad(
        "sd412-below-count", "one word and two entries", [tensor("w", "U8", 9, part)], streams=hook
    )
    for op in ("replace", "add"):
        part = P(op, {0: 0x3F80, 2: 0x3F80}, "range", "planes")
        part.dtype, part.scale = ("BF16", "3ff0000000000000") if op == "add" else ("", "")
        t = edited("w", "BF16", [4], b"\0\x3f" * 4, [part])
        yield bad(f"sd412-{op}", "a run of three words with two entries", [t])

    for name, why, places in (
        ("order", "9 before 5", (0, 9, 5)),
        ("twice", "an index twice", (0, 5, 5)),
        ("outside", "behind the block", (0, 5, 400)),
        ("far-outside", "2^32 - 1", (0, 5, 2**32 - 1)),
        ("last-first", "the last first", (9, 0, 5)),
    ):
        part = P("difference", {0: 1, 5: 1, 9: 1}, "raw", block=9)
        hook = stream(0, becomes(struct.pack("<3I", *places)))
        yield bad(f"sd413-{name}", why, [tensor("w", "BF16", 400, part)], streams=hook)


def invalid_dense() -> Iterator[Invalid]:
    """Rule SD405."""
    zero, one_more = (lambda s: b"\0" + s[1:]), (lambda s: s[:1] + b"\2" + s[2:])
    for value in ("zigzag", "planes"):
        yield bad(
            f"sd405-{value}-fewer", "a value less", simple("dense", value), streams=stream(0, zero)
        )
        yield bad(
            f"sd405-{value}-more",
            "a value more",
            simple("dense", value),
            streams=stream(0, one_more),
        )
    part = P("replace", dict.fromkeys(range(5), 1), "dense", "planes")
    yield bad("sd405-replace", "5 of 6 words", [tensor("w", "U8", 6, part)])
    for value, padded in (("zigzag", b"\2\0\2\0"), ("planes", b"\1\0\1\0")):
        run = [tensor("w", "U8", 9, P("difference", {0: 1, 2: 1, 3: 1}, "range", value))]
        yield bad(
            f"sd405-range-{value}-last",
            "ends with padding",
            run,
            streams=stream(1, becomes(padded)),
        )
    run = [tensor("w", "U8", 9, P("difference", {0: 1, 2: 1, 3: 1}, "range", "raw"))]
    for name, why, new in (
        ("fewer", "a value less", b"\1\0\0\1"),
        ("more", "a value more", b"\1\1\1\1"),
        ("first", "begins with padding", b"\0\1\1\1"),
        ("last", "ends with padding", b"\1\1\1\0"),
    ):
        yield bad(f"sd405-range-{name}", why, run, streams=stream(1, becomes(new)))
    dense = [tensor("w", "U8", 4, P("difference", {0: 1, 2: 1, 3: 1}, "dense", "raw"))]
    yield bad("sd405-raw", "a value less", dense, streams=stream(0, lambda _: b"\1\0\0\1"))
    part = P("add", {0: 0, 1: 0x3F80}, "dense", "planes", dtype="BF16", scale="3ff0000000000000")
    yield bad("sd405-add", "2 of 3 words", [edited("w", "BF16", [3], b"\0\x3f" * 3, [part])])


def invalid_value() -> Iterator[Invalid]:
    """Rules SD406 and SD407."""

    def packed(p: int, dtype: str = "BF16") -> list[R]:
        return [tensor("w", dtype, 30, P("difference", {0: 1, 9: 1, 29: 2}, "gap8", "packed", p))]

    for name, why, tensors, k, new in (
        ("spare-sign", "a spare bit of SIGN", packed(4), 1, lambda s: bytes([s[0] | 8])),
        ("spare-mag", "a spare bit of MAG", packed(4), 2, lambda s: bytes([s[0], s[1] | 0x80])),
        ("spare-mag-1", "a spare bit of MAG", packed(1), 2, lambda s: bytes([s[0] | 0x80])),
        ("few-exceptions", "an exception is missing", packed(1), 3, lambda _: b""),
        ("many-exceptions", "an exception too many", packed(1), 3, only(0, 0, width=2)),
        ("needless-exception", "an exception for no symbol", packed(4), 3, only(0, width=2)),
        ("exception", "a is 2^15", packed(1), 3, only(2**15 - 1, width=2)),
        ("exception-wraps", "a is 2^16", packed(1), 3, only(2**16 - 1, width=2)),
        ("minus-zero", "-2^15 with sign 0", packed(1), 3, only(2**15 - 2, width=2)),
        ("minus-zero-64", "-2^63 with sign 0", packed(1, "F64"), 3, only(2**63 - 2, width=8)),
        ("wraps-64", "a is 2^64", packed(1, "F64"), 3, only(2**64 - 1, width=8)),
        ("symbol", "the symbol 200 for 8 bits", packed(8, "U8"), 2, lambda s: b"\xc8" + s[1:]),
        (
            "symbol-sign",
            "the symbol 127 for 8 bits, sign 0",
            packed(8, "U8"),
            2,
            lambda s: b"\x7f" + s[1:],
        ),
    ):
        yield bad(f"sd406-{name}", why, tensors, streams=stream(k, new))
    hook = at_block(0, lambda s: [s[0], s[1], b"\xff" + s[2][1:], b"\0"])
    yield bad("sd406-symbol-255", "the symbol 255 for 8 bits", packed(8, "U8"), streams=hook)

    def zigzag(dtype: str) -> list[R]:
        high = 256 ** WIDTHS[dtype] // 2
        return [tensor("w", dtype, 30, P("difference", {0: 1, 9: high, 29: 2}))]

    for name, why, tensors, new in (
        ("few", "an exception is missing", zigzag("BF16"), lambda _: b""),
        ("many", "an exception too many", zigzag("BF16"), only(0, 0, width=2)),
        ("large", "an item of 2^16 - 255", zigzag("BF16"), only(2**16 - 255, width=2)),
        ("large-8", "an item of 1 for 8 bits", zigzag("U8"), only(1, width=1)),
        ("large-32", "an item of 2^32 - 1", zigzag("F32"), only(2**32 - 1, width=4)),
        ("large-64", "an item of 2^64 - 255", zigzag("F64"), only(2**64 - 255, width=8)),
    ):
        yield bad(f"sd407-{name}", why, tensors, streams=stream(2, new))
    run = [tensor("w", "BF16", 30, P("difference", {9: 2**15}, "range"))]
    yield bad("sd407-range", "an exception is missing", run, streams=stream(2, lambda _: b""))
    dense = [tensor("w", "BF16", 30, P("difference", {9: 2**15}, "dense"))]
    yield bad("sd407-dense", "an exception is missing", dense, streams=stream(1, lambda _: b""))


def invalid_entries() -> Iterator[Invalid]:
    """Rules SD408 to SD410."""
    for index in ("gap8", "gap8-split", "bitmask", "raw"):
        for value in ("zigzag", "planes", "raw"):
            tensors = [tensor("w", "BF16", 9, P("difference", {0: 0, 8: 1}, index, value))]
            yield bad(f"sd408-{index}-{value}", "a difference of 0", tensors)
    parts = [P("difference", {0: 1, 5: 1}), P("replace", {5: 7, 9: 7}, value="planes")]
    yield bad("sd409-overlap", "word 5 in both parts", [tensor("w", "U8", 30, *parts)])
    parts = [P("difference", {299: 1}), P("replace", {299: 7}, value="planes", block=9)]
    yield bad("sd409-blocks", "one word, by other blocks", [tensor("w", "U8", 300, *parts)])
    base, grown = X("U8", [2], b"ab"), X("U8", [3], b"abc")
    parts = [whole("resize"), P("difference", {0: 1}), P("replace", {0: 9}, value="planes")]
    yield bad("sd409-resize", "word 0 in both parts", [R("w", base, grown, parts)])
    copy = [bare("new", "v", base), P("difference", {1: 1}), P("replace", {1: 9}, value="planes")]
    records = [R("v", base, base), R("w", None, X("U8", [2], b"ax"), copy)]
    yield bad("sd409-new-from", "word 1 in both parts", records)
    young = [R("w", None, grown, [whole("new")])]
    other = stream(0, lambda s: bytes([s[0] ^ 1]) + s[1:])
    yield bad("sd410-new", "another word than digested", young, streams=other)
    yield bad(
        "sd410-rename",
        "another digest",
        [R("w", base, base, source="v")],
        facts=put("0" * 64, "content"),
    )
    yield bad("sd410-content", "another digest", simple(), facts=put("0" * 64, "content"))
    other = stream(1, lambda s: bytes([s[0] ^ 4]) + s[1:])
    yield bad("sd410-entries", "another value than digested", simple(), streams=other)
    moved = stream(0, lambda s: bytes([s[0] + 1, s[1] - 1]) + s[2:])
    yield bad("sd410-indices", "another index than digested", simple(), streams=moved)
