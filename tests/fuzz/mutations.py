"""Mutations of deltas: lies at every level, with the digests above them made right.

A mutation that breaks a digest is found by that digest, whatever else it breaks. So most of what
stands here repairs everything above the change, and :func:`repaired` repairs what a reader found
broken, so that the next reading goes deeper.
"""

from __future__ import annotations

import contextlib
import copy
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import zstandard
from blake3 import blake3
from sections import Files, Sections, canonical, digest, rebuilt, shrunk, unframed
from sources import Cell, Source, names, source

BROKEN: Final = (
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
    *(struct.error, zstandard.ZstdError),
)
"""What taking a broken file apart may raise: it is not repaired then."""

_EDGES: Final = (0, 1, 127, 128, 254, 255)
_WORDS: Final = (0, 1, 255, 2**16, 2**24, 2**27, 2**31, 2**32 - 1)
_NUMBERS: Final = (0, 1, 8, 24, 25, 2**16, 2**22, 2**27 + 1, 2**32, 2**40, 2**48 + 1, 2**53 - 1)
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, 8, 24, 25, 2**53 - 1, -1, 1.5, "", "a", "x@1.1", [], {}),
    *("difference", "replace", "add", "new", "drop", "resize", "BF16", "F32", "U8", "F4", "C64"),
    *("\u0085", "\ud800", "é", "con.json", "../x", "a.safetensors", "f" * 64, "0" * 16, "1.0"),
    *({"id": key} for key in ("gap8", "gap8-split", "bitmask", "range", "dense", "raw", "ranked")),
    *({"id": "packed", "width": width} for width in (0, 3, 8, True)),
    *({"id": "planes"}, {"id": "zigzag"}, {"id": "raw", "width": 1}, {"op": "drop"}),
    *({"dtype": "U8", "shape": [4]}, {"dtype": "BF16", "shape": []}, ["x@1.1"]),
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, set, cut, insert, move or overwrite a few bytes."""
    if not data:
        return bytes([rng.randrange(256)])
    changed = bytearray(data)
    at = rng.randrange(len(changed))
    kind = rng.randrange(8)
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[at : at + rng.randint(1, 4)]
    elif kind == 2:
        changed[at:at] = rng.randbytes(rng.randint(1, 4))
    elif kind == 3:
        changed[at : at + 4] = struct.pack("<I", rng.choice(_WORDS))
    elif kind == 4:
        other = rng.randrange(len(changed))
        length = rng.randint(1, 8)
        changed[at : at + length] = changed[other : other + length]
    elif kind == 5:
        del changed[at:]
    else:
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice((*_EDGES, rng.randrange(256)))
    return bytes(changed)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 (any JSON)
    """Every value of a document, by what holds it and its key there."""
    if isinstance(node, dict | list):  # an earlier mutation may have left something else
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield node, key
            yield from _places(value)


def mutate_json(rng: random.Random, document: Any) -> None:  # noqa: ANN401 (any JSON)
    """Change, remove, add, move or repeat one value somewhere in a document."""
    places = list(_places(document))
    if not places:
        return
    node, key = rng.choice(places)
    value = node[key]
    kind = rng.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = copy.deepcopy(rng.choice(_VALUES))
    elif kind == 2:
        other, name = rng.choice(places)
        node[key] = copy.deepcopy(other[name])
    elif kind == 3 and isinstance(node, dict):
        node[rng.choice(("from", "to", "dtype", "scale", "unknown", "nnz", "width"))] = (
            copy.deepcopy(rng.choice(_VALUES))
        )
    elif isinstance(value, list) and kind < 9:
        _mutate_list(rng, value)
    else:
        node[key] = _changed(rng, value)


def _mutate_list(rng: random.Random, value: list[Any]) -> None:
    kind = rng.randrange(4)
    if kind == 0 or not value:
        value.append(copy.deepcopy(rng.choice((*value, *_VALUES))))
    elif kind == 1:
        value.insert(rng.randrange(len(value)), copy.deepcopy(rng.choice(value)))
    elif kind == 2:
        rng.shuffle(value)
    else:
        del value[rng.randrange(len(value))]


def _changed(rng: random.Random, value: Any) -> Any:  # noqa: ANN401 (any JSON)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, max(0, value - 1), 2 * value, rng.choice(_NUMBERS)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value[::-1], value.upper(), "0" * len(value)))
    return copy.deepcopy(rng.choice(_VALUES))


# --- What is mutated ---


@dataclass
class Draft:
    """A delta that is being changed: its files, taken apart.

    Attributes:
        source: Where it comes from.
        sections: The files.
        files: The files as they are built; set by mutations of built files.
    """

    source: Source
    sections: dict[str, Sections]
    files: Files | None = None

    def build(self) -> Files:
        """The files."""
        return rebuilt(self.sections, self.source.root) if self.files is None else self.files


Mutation = Callable[[random.Random, Draft, Source], None]
"""Changes a draft; the other source is where grafts come from."""


def _pick(rng: random.Random, draft: Draft) -> str:
    return rng.choice(list(draft.sections))


def any_bytes(rng: random.Random, draft: Draft, other: Source) -> None:
    """Bytes of a file as it is, with no digest made right."""
    files = dict(draft.build())
    name = rng.choice(list(files))
    files[name] = mutate_bytes(rng, files[name])
    draft.files = files


def early_bytes(rng: random.Random, draft: Draft, other: Source) -> None:
    """Bytes of the header's text, which every reader looks at first."""
    files = dict(draft.build())
    name = rng.choice(list(files))
    file = files[name]
    length = int.from_bytes(file[:8], "little")
    text = mutate_bytes(rng, file[8 : 8 + length])
    text += b" " * (-len(text) % 8)
    if rng.random() < 0.1:
        length = rng.choice((*_NUMBERS, length + 8, length - 8, length + 1))
    else:
        length = len(text)
    files[name] = struct.pack("<Q", length % 2**64) + text + file[8 + length :]
    draft.files = files


def splice(rng: random.Random, draft: Draft, other: Source) -> None:
    """The beginning of one file and the end of another."""
    files = dict(draft.build())
    name = rng.choice(list(files))
    tail = other.files[other.root]
    if rng.random() < 0.5:
        cut = rng.randrange(len(files[name]) + 1)
        files[name] = files[name][:cut] + tail[rng.randrange(len(tail) + 1) :]
    else:
        cut = rng.randrange(min(len(files[name]), len(tail)) + 1)
        files[name] = files[name][:cut] + tail[cut:]
    draft.files = files


def header_json(rng: random.Random, draft: Draft, other: Source) -> None:
    """The header's metadata, and keys beside it."""
    name = _pick(rng, draft)
    header = copy.deepcopy(draft.sections[name].header)
    meta = header["__metadata__"]
    kind = rng.randrange(6)
    if kind == 0:
        mutate_json(rng, header)
    elif kind == 1:
        header[rng.choice(("x", "sd.more", "sd.data2"))] = rng.choice(_VALUES)
    elif kind == 2:
        key = rng.choice(list(meta))
        meta[key] = rng.choice(("1.1", "2.0", "01", "", "9" * 5000, "x" * 33, "true", "F" * 64))
    elif kind == 3:
        meta[rng.choice(("sd.set_id", "sd.part", "sd.other"))] = rng.choice(("0", "f" * 64, "01"))
    else:
        mutate_json(rng, meta)
    spaces = rng.choice((None, None, None, 0, 8, 16))
    draft.sections[name] = replace(draft.sections[name], header=header, spaces=spaces)


def header_tensors(rng: random.Random, draft: Draft, other: Source) -> None:
    """The entries of the three tensors, in a header that is canonical otherwise."""
    name = _pick(rng, draft)
    files = dict(draft.build())
    file = files[name]
    (length,) = struct.unpack_from("<Q", file)
    header = copy.deepcopy(Sections.of(file).header)
    keys = ("sd.manifest", "sd.tables", "sd.data")
    if rng.random() < 0.3:
        one, two = rng.sample(keys, 2)
        header[one], header[two] = header[two], header[one]
    else:
        mutate_json(rng, header[rng.choice(keys)])
    text = canonical(header)
    text += b" " * (-len(text) % 8)
    files[name] = struct.pack("<Q", len(text)) + text + file[8 + length :]
    draft.files = files


def manifest_json(rng: random.Random, draft: Draft, other: Source) -> None:
    """The manifest, with or without a header that agrees."""
    name = _pick(rng, draft)
    manifest = draft.sections[name].copied()
    kind = rng.randrange(8)
    records = manifest["tensors"]
    if kind < 3 and records:
        mutate_json(rng, rng.choice(records))
    elif kind == 3 and records and any(record["parts"] for record in records):
        record = rng.choice([record for record in records if record["parts"]])
        mutate_json(rng, rng.choice(record["parts"]))
    elif kind == 4:
        node = rng.choice(
            [manifest[key] or manifest for key in ("blobs", "layout", "files", "set")]
        )
        mutate_json(rng, node)
    else:
        mutate_json(rng, manifest)
    changed = draft.sections[name].edited(manifest)
    draft.sections[name] = changed.agreeing() if rng.random() < 0.7 else changed


def manifest_facts(rng: random.Random, draft: Draft, other: Source) -> None:
    """One of the few values of the manifest that many rules look at."""
    name = _pick(rng, draft)
    each = draft.sections[name]
    manifest = each.copied()
    key = rng.choice(
        (
            *("nnz", "invertible", "lean", "content", "base", "target", "profile"),
            *("version", "must_understand", "set", "layout", "untouched"),
        )
    )
    if key in ("content", "base", "target") and rng.random() < 0.5:
        manifest[key] = digest(rng.randbytes(1))
    elif key == "must_understand":
        manifest[key] = rng.choice(
            ([], ["ranked@1.1"], ["ranked@1.2"], ["x@1.1"], ["", "y"], ["ranked@1.1", "x@1.1"])
        )
    elif key == "set" and manifest["set"] is not None and rng.random() < 0.8:
        mutate_json(rng, manifest["set"])
    elif key == "untouched" and manifest[key]:
        _mutate_list(rng, manifest[key])
    else:
        manifest[key] = _changed(rng, manifest[key])
    draft.sections[name] = each.edited(manifest).agreeing()


def manifest_text(rng: random.Random, draft: Draft, other: Source) -> None:
    """The text of the manifest, which need not stay JSON."""
    name = _pick(rng, draft)
    each = draft.sections[name]
    text = each.text
    kind = rng.randrange(5)
    if kind == 0:
        text = text.replace(b":", b": ", 1)
    elif kind == 1:
        text = rng.choice((b"[" * 9 + b"]" * 9, b"[" * 5000, b"null", b"{}", b"[]", text + text))
    else:
        text = mutate_bytes(rng, text)
    draft.sections[name] = replace(each, text=text)


def manifest_frame(rng: random.Random, draft: Draft, other: Source) -> None:
    """The frame of the manifest, with its digest right."""
    name = _pick(rng, draft)
    each = draft.sections[name]
    frame = shrunk(each.text) if rng.random() < 0.7 else each.text
    kind = rng.randrange(4)
    if kind == 0:
        frame += rng.choice((b"\0", frame, each.text, b"\x50\x2a\x4d\x18\0\0\0\0"))
    else:
        frame = mutate_bytes(rng, frame)
    draft.sections[name] = replace(each, frame=frame)


def table_bytes(rng: random.Random, draft: Draft, other: Source) -> None:
    """The tables, with their digest right or not."""
    name = _pick(rng, draft)
    each = draft.sections[name]
    tables = mutate_bytes(rng, each.tables)
    if rng.random() < 0.1:
        draft.sections[name] = replace(each, tables=tables)
    else:
        draft.sections[name] = each.edited(each.copied(), tables=tables)


def table_cell(rng: random.Random, draft: Draft, other: Source) -> None:
    """A count, a length or a checksum."""
    cell = rng.choice(draft.source.cells)
    each = draft.sections[cell.file]
    tables = bytearray(each.tables)
    at = cell.cell + rng.choice((-4, 0, 4, 8))
    (old,) = struct.unpack_from("<I", tables, at)
    new = rng.choice((old + 1, old - 1, 2 * old, 0, *_WORDS, rng.randrange(300)))
    struct.pack_into("<I", tables, at, new % 2**32)
    draft.sections[cell.file] = each.edited(each.copied(), tables=bytes(tables))


def _set_frame(draft: Draft, cell: Cell, frame: bytes, decoded: int) -> None:
    """Give a stream another frame, and make checksum, lengths and sums right."""
    each = draft.sections[cell.file]
    data = each.data[: cell.start] + frame + each.data[cell.start + cell.encoded :]
    row = struct.pack("<II", len(frame), decoded) + blake3(frame).digest()[:8]
    tables = each.tables[: cell.cell] + row + each.tables[cell.cell + 16 :]
    manifest = each.copied()
    part = manifest["tensors"][cell.record]["parts"][cell.part]
    part["bytes"] += len(frame) - cell.encoded
    draft.sections[cell.file] = each.edited(manifest, tables=tables, data=data)


def _frame_of(draft: Draft, cell: Cell) -> bytes:
    return draft.sections[cell.file].data[cell.start : cell.start + cell.encoded]


def stream_frame(rng: random.Random, draft: Draft, other: Source) -> None:
    """A frame, or the length that it is said to have."""
    cell = rng.choice(draft.source.cells)
    frame, decoded = _frame_of(draft, cell), cell.decoded
    if rng.random() < 0.3:
        decoded = max(0, decoded + rng.choice((-1, 1, 2, 8)))
    elif rng.random() < 0.5:
        frame = mutate_bytes(rng, shrunk(unframed(frame, decoded)))
    else:
        frame = mutate_bytes(rng, frame)
    _set_frame(draft, cell, frame, decoded)


def stream_content(rng: random.Random, draft: Draft, other: Source) -> None:
    """What a stream holds, most often without a change of its length."""
    cells = [cell for cell in draft.source.cells if cell.decoded]
    if not cells:
        return
    cell = rng.choice(cells)
    stream = unframed(_frame_of(draft, cell), cell.decoded)
    kind = rng.randrange(8)
    if kind == 0:
        stream = mutate_bytes(rng, stream)
    elif kind == 1:  # as a stream of the same kind, perhaps
        like = rng.choice(cells)
        stream = unframed(
            draft.source.sections[like.file].data[like.start :][: like.encoded], like.decoded
        )
    else:
        changed = bytearray(stream)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(changed))
            changed[at] = rng.choice(
                (*_EDGES, rng.randrange(256), changed[at] ^ 1 << rng.randrange(8))
            )
        stream = bytes(changed)
    stored = cell.encoded == cell.decoded
    frame = stream if stored and rng.random() < 0.9 else shrunk(stream)
    _set_frame(draft, cell, frame, len(stream))


def twins(rng: random.Random, draft: Draft, other: Source) -> None:
    """The indices of one part of a tensor, or what stands for them, for those of another."""
    pair = rng.choice(draft.source.twins)
    one, two = rng.sample(pair, 2)
    stream = unframed(_frame_of(draft, one), one.decoded)
    _set_frame(draft, two, shrunk(stream), len(stream))


def set_json(rng: random.Random, draft: Draft, other: Source) -> None:
    """The place in its set that a file states."""
    name = _pick(rng, draft)
    each = draft.sections[name]
    manifest = each.copied()
    kind = rng.randrange(4)
    if kind == 0 and manifest["set"]["parts"]:
        rng.shuffle(manifest["set"]["parts"])
    elif kind == 1 and manifest["set"]["parts"]:
        entry = rng.choice(manifest["set"]["parts"])
        entry["name"] = rng.choice((entry["name"].upper(), "con", "../x", "a" * 256, "x."))
    elif kind == 2:
        manifest[rng.choice(("nnz", "invertible"))] = rng.choice((0, 1, 7, True, False))
    else:
        mutate_json(rng, manifest["set"])
    draft.sections[name] = each.edited(manifest).agreeing()


def blob_frame(rng: random.Random, draft: Draft, other: Source) -> None:
    """A blob: its frame, its content, its digest and its size, made right or not."""
    blob = rng.choice(draft.source.blobs)
    root = draft.source.root
    each = draft.sections[root]
    manifest = each.copied()
    entry = manifest["blobs"][blob.blob]
    old = entry["digest"]
    frame = each.data[blob.start : blob.stop]
    content = unframed(frame, entry["size"])
    was = digest(content)
    kind = rng.randrange(6)
    if kind == 0:
        frame = mutate_bytes(rng, frame)
    elif kind == 1:  # a header that is still one, but for its numbers
        content = content.replace(*rng.choice(((b"0", b"1"), (b"2", b"3"), (b"1", b"2"))), 1)
        frame = content
    elif kind == 2 and len(content) > 8:
        text = mutate_bytes(rng, content[8:])
        content = struct.pack("<Q", len(text)) + text
        frame = shrunk(content)
    else:
        content = mutate_bytes(rng, content)
        frame = rng.choice((content, shrunk(content)))
    if rng.random() < 0.9:
        entry |= {"bytes": len(frame), "digest": digest(frame)}
    if kind:
        entry["size"] = len(content)
    for file in manifest["files"]:
        for end in (file["base"], file["target"]):
            if end is not None and end["blob"] == blob.blob and rng.random() < 0.9:
                end["size"] = len(content)
                end["digest"] = digest(content) if rng.random() < 0.5 else was
    data = each.data[: blob.start] + frame + each.data[blob.stop :]
    if rng.random() < 0.05:
        entry["digest"] = old
    draft.sections[root] = each.edited(manifest, data=data)


def beside_json(rng: random.Random, draft: Draft, other: Source) -> None:
    """Blobs, layout and carried files in the manifest."""
    each = draft.sections[draft.source.root]
    manifest = each.copied()
    places = [manifest[key] for key in ("blobs", "layout", "files") if manifest[key]]
    if not places:
        return
    mutate_json(rng, rng.choice(places))
    draft.sections[draft.source.root] = each.edited(manifest)


def section(rng: random.Random, draft: Draft, other: Source) -> None:
    """Manifest, tables or data of another delta."""
    name = _pick(rng, draft)
    each, donor = draft.sections[name], other.sections[rng.choice(list(other.sections))]
    kind = rng.randrange(4)
    if kind == 0:
        draft.sections[name] = replace(each, text=donor.text, header=donor.header)
    elif kind == 1:
        draft.sections[name] = each.edited(each.copied(), tables=donor.tables)
    elif kind == 2:
        draft.sections[name] = replace(each, data=donor.data)
    else:
        draft.sections[name] = donor


def record(rng: random.Random, draft: Draft, other: Source) -> None:
    """A record that is left out, repeated, renamed, or comes from another delta: with all of it."""
    name = _pick(rng, draft)
    each = draft.sections[name]
    manifest = each.copied()
    own = [span for span in draft.source.spans if span.file == name]
    kind = rng.randrange(4)
    tables, data = each.tables, each.data
    if kind == 0 and own:
        span = rng.choice(own)
        tables = tables[: span.tables[0]] + tables[span.tables[1] :]
        data = data[: span.data[0]] + data[span.data[1] :]
        del manifest["tensors"][span.record]
    elif kind == 1 and own:
        span = rng.choice(own)
        entry = manifest["tensors"][span.record]
        key = rng.choice(("name", "from"))
        every = [r["name"] for r in manifest["tensors"]] + manifest["untouched"]
        entry[key] = rng.choice(((entry[key] or entry["name"]) + "x", rng.choice(every), "~"))
    elif other.spans:
        span = rng.choice(other.spans)
        donor = other.sections[span.file]
        entry = copy.deepcopy(donor.manifest["tensors"][span.record])
        if rng.random() < 0.3:
            entry["name"] = "~" + entry["name"]
        keys = [r["name"] for r in manifest["tensors"]]
        place = sum(key < entry["name"] for key in keys)
        after = [span for span in own if span.record >= place]
        at = after[0].tables[0] if after else (own[-1].tables[1] if own else len(tables))
        start = after[0].data[0] if after else (own[-1].data[1] if own else 0)
        tables = tables[:at] + donor.tables[slice(*span.tables)] + tables[at:]
        data = data[:start] + donor.data[slice(*span.data)] + data[start:]
        manifest["tensors"].insert(place, entry)
    draft.sections[name] = counted(each.edited(manifest, tables=tables, data=data))


def counted(each: Sections) -> Sections:
    """The same with ``nnz`` and ``invertible`` as they follow from the records, as far as known."""
    manifest = each.copied()
    try:
        parts = [part for r in manifest["tensors"] for part in r["parts"]]
        nnz = sum(p.get("nnz", 0) for p in parts if p["op"] in ("difference", "replace", "add"))
        lost = any(
            p["op"] in ("replace", "add")
            or p.get("index") == {"id": "ranked"}
            or ("nnz" not in p and (p["op"] == "resize" or (p["op"] == "drop" and "to" not in p)))
            for p in parts
        )
    except (TypeError, KeyError, AttributeError):  # it is broken: whoever reads it finds that
        return each
    if not isinstance(manifest["set"], dict) or manifest["set"].get("part"):
        manifest |= {"nnz": nnz, "invertible": not lost}
    return each.edited(manifest).agreeing()


def parts_of_set(rng: random.Random, draft: Draft, other: Source) -> None:
    """Part files that are exchanged, missing, cut, doubled, or of another set."""
    files = dict(draft.build())
    root, *parts = files
    if not parts:
        return
    kind = rng.randrange(7)
    name = rng.choice(parts)
    if kind == 0 and len(parts) > 1:
        one, two = rng.sample(parts, 2)
        files[one], files[two] = files[two], files[one]
    elif kind == 1:
        del files[name]
    elif kind == 2:
        files[name] = rng.choice(list(other.files.values()))
    elif kind == 3:
        files[name] = files[root]
    elif kind == 4:
        files[name] = mutate_bytes(rng, files[name])
    elif kind == 5:
        files[root] = other.files[other.root]
    else:
        files[name] = files[rng.choice(parts)]
    if rng.random() < 0.5 and kind != 1:  # the root then lists what is there
        try:
            draft.sections = {key: Sections.of(file) for key, file in files.items()}
            files = rebuilt(draft.sections, root)
        except BROKEN:
            pass
    draft.files = files


@cache
def _having(what: str) -> tuple[str, ...]:
    """The vectors that have something to be mutated."""
    return tuple(name for name in names() if getattr(source(name), what))


MUTATIONS: Final[tuple[tuple[Mutation, int, str], ...]] = (
    (any_bytes, 5, "files"),
    (early_bytes, 5, "files"),
    (splice, 3, "files"),
    (header_json, 6, "files"),
    (header_tensors, 3, "files"),
    (manifest_json, 18, "files"),
    (manifest_facts, 8, "files"),
    (manifest_text, 3, "files"),
    (manifest_frame, 3, "files"),
    (table_bytes, 6, "files"),
    (table_cell, 8, "cells"),
    (stream_frame, 5, "cells"),
    (stream_content, 16, "cells"),
    (twins, 2, "twins"),
    (blob_frame, 6, "blobs"),
    (beside_json, 6, "blobs"),
    (section, 3, "files"),
    (record, 8, "files"),
    (parts_of_set, 5, "parts"),
    (set_json, 3, "parts"),
)
"""Mutations, how often each is chosen, and what a vector must have to be chosen for it."""


def mutate(rng: random.Random) -> Draft:
    """One mutation of a valid delta, now and then with a second one."""
    ((kind, _, what),) = rng.choices(MUTATIONS, [weight for _, weight, _ in MUTATIONS])
    origin, other = source(rng.choice(_having(what))), source(rng.choice(names()))
    if what == "parts" and rng.random() < 0.7:
        other = source(rng.choice(_having("parts")))
    draft = Draft(origin, dict(origin.sections))
    kind(rng, draft, other)
    if draft.files is None and rng.random() < 0.1:
        with contextlib.suppress(*BROKEN):  # the first may have left nothing to change
            manifest_facts(rng, draft, other)
    return draft


def mutate_sections(rng: random.Random, draft: Draft) -> None:
    """A further mutation of a delta of which nothing is known any more but its sections."""
    kinds = (any_bytes, header_json, manifest_json, manifest_facts, table_bytes, section)
    rng.choice(kinds)(rng, draft, source(rng.choice(names())))
