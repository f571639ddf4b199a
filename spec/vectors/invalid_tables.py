"""Invalid vectors: the tables, rules SD301 to SD307."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vector_encoder import P, T, build
from vector_samples import Invalid, at_block, put, simple, stream, tensor


def invalid_tables() -> Iterator[Invalid]:
    """Rules SD301 to SD307."""
    base = simple()

    def bad(name: str, why: str, tensors: list[T] | None = None, **how: Any) -> Invalid:  # noqa: ANN401
        return name, why, build(tensors or base, **how)

    yield bad("sd301-long", "a byte too many", tables=lambda t: t + b"\0")
    yield bad("sd301-short", "a byte too few", tables=lambda t: t[:-1])
    yield bad("sd301-no-tables", "no byte at all", tables=lambda _: b"")
    vast = [T("w", "U8", [2**48], b"abcd", [P("difference", {1: 1})])]
    yield bad("sd301-vast", "2^48 words, and tables for 4", vast)
    yield bad("sd302-digest", "another digest", manifest=put("0" * 64, "tables"))
    yield bad("sd302-bit", "a bit of the tables", body=_flip_table_bit)

    over = dict.fromkeys(range(256), 1) | {300: 1}
    tensors = [tensor("w", "BF16", 400, P("difference", over))]
    hook = lambda r, _n, _p, b: [[257, 0][b], *r[1:]]  # noqa: E731 - a row of each block
    yield bad("sd303-words", "257 entries in 256 words", tensors, row=hook)
    yield bad("sd303-sum", "one entry fewer than nnz", row=at_block(1, lambda r: [1, *r[1:]]))
    huge = at_block(0, lambda r: [2**32 - 1, *r[1:]])
    yield bad("sd303-huge", "2^32 - 1 entries", row=huge)

    longer = at_block(0, lambda f: [f[0] + b"\0", *f[1:]])
    yield bad("sd304-encoded", "an encoded length above the decoded", frames=longer)
    for name, why, tensors, hook in (
        ("gap8-short", "GAPS shorter than the count", simple(), stream(0, lambda s: s[1:])),
        ("gap8-long", "GAPS too long", simple(), stream(0, lambda s: b"\xff\xff" + s)),
        ("bitmask", "BITS of 31 bytes", simple("bitmask"), stream(0, lambda s: s[:-1])),
        ("bitmask-long", "BITS of 33 bytes", simple("bitmask"), stream(0, lambda s: s + b"\0")),
        ("sign-short", "SIGN too short", simple(value="packed"), stream(1, lambda _: b"")),
        ("mag-long", "MAG too long", simple(value="packed"), stream(2, lambda s: s + b"\0")),
        ("sym-short", "SYM too short", simple(), stream(1, lambda s: s[1:])),
        ("plane-long", "a plane too long", simple(value="planes"), stream(2, lambda s: s + b"\0")),
        ("sign", "SIGN too long", simple(value="packed"), stream(1, lambda s: s + b"\0")),
        ("mag", "MAG too short", simple(value="packed"), stream(2, lambda s: s[:-1])),
        ("mag-0", "MAG of width 0", simple(value="packed", width=0), stream(2, lambda _: b"\0")),
        ("exc-odd", "EXC of half a word", simple(value="packed"), stream(3, lambda s: s + b"\0")),
        ("exc-long", "EXC above m words", simple(value="packed"), stream(3, lambda _: bytes(10))),
        ("sym", "SYM too long", simple(), stream(1, lambda s: s + b"\1")),
        ("zigzag-exc-odd", "EXC of half a word", simple(), stream(2, lambda s: s + b"\0")),
        ("zigzag-exc-long", "EXC above m words", simple(), stream(2, lambda _: bytes(10))),
        ("plane", "a plane too short", simple(value="planes"), stream(2, lambda s: s[1:])),
        ("dense", "values for the entries only", simple("dense"), stream(0, lambda s: s[:4])),
    ):
        yield bad(f"sd304-{name}", why, tensors, streams=hook)
    gap = [tensor("w", "BF16", 400, P("difference", {0: 1}))]
    yield bad(
        "sd304-empty-block", "bytes of an empty block", gap, streams=stream(1, lambda _: b"\1", 1)
    )

    yield bad("sd305-bytes", "bytes is one too many", facts=_more_bytes)
    yield bad("sd305-data", "a byte that no part holds", data=lambda d: d + b"\0")
    two = [T(n, "U8", [4], b"abcd", [P("difference", {1: 1})]) for n in "ab"]
    yield bad("sd305-shift", "a byte counted for another part", two, facts=_shift_bytes)

    for key in ("base", "target"):
        yield bad(f"sd306-{key}", f"another {key}", claim={key: "0" * 64})
    flip = lambda t: bytes([t[0] ^ 1]) + t[1:]  # noqa: E731 - the digest of the untouched tensor
    yield bad("sd306-untouched", "another digest of an untouched tensor", tables=flip)
    yield bad("sd307-same", "a touched tensor that stays the same", wrong_target=True)


def _flip_table_bit(body: bytes) -> bytes:
    start = json.JSONDecoder().raw_decode(body.decode("latin-1"))[1]  # behind the manifest
    return body[:start] + bytes([body[start] ^ 1]) + body[start + 1 :]


def _more_bytes(manifest: dict[str, Any]) -> dict[str, Any]:
    manifest["tensors"][0]["parts"][0]["bytes"] += 1
    return manifest


def _shift_bytes(manifest: dict[str, Any]) -> dict[str, Any]:
    for record, step in zip(manifest["tensors"], (1, -1), strict=True):
        record["parts"][0]["bytes"] += step
    return manifest
