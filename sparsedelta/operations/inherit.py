"""What a delta that is made of others records beside the tensors: the files of its ends.

It says what following the others would give: the files that the first records for where it starts,
and the last for where it leads to; or those of another one between which and there no name, dtype
or shape changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsedelta.attachments import CarriedEnd, CarriedFile, Layout, LayoutEnd
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.digests import plain_digest
from sparsedelta.operations.result_files import check_carried
from sparsedelta.operations.route import Route
from sparsedelta.writer import DeltaWriter


def inherit(
    route: Route, writer: DeltaWriter, *, forget: bool
) -> tuple[Layout | None, tuple[CarriedFile, ...], tuple[str, ...]]:
    """Layout and carried files of a delta that leads along a route.

    Args:
        route: The deltas it is made of.
        writer: Where headers and files go, as blobs.
        forget: Leave out the contents that revert would need.

    Returns:
        The layout, or None; the carried files; and what the user should know.

    Raises:
        FormatError: A blob is damaged.
    """
    ends = {
        "base": _layout_end(route.readers, "target" if route.reverse else "base", writer),
        "target": _layout_end(route.readers[::-1], "base" if route.reverse else "target", writer),
    }
    layout = ends if any(ends.values()) else None
    carried, notes = _carried(route, writer, forget=forget)
    return layout, carried, notes


def _layout_end(readers: Sequence[DeltaReader], key: str, writer: DeltaWriter) -> LayoutEnd | None:
    """The files of an end of a chain, its deltas in order from that end."""
    are_changed = False
    for reader in readers:
        end = (reader.manifest.attachments.layout or {}).get(key)
        if end is not None:
            return _copied(reader, end, writer, with_sha256=not are_changed)
        if any(record.base != record.target or record.split for record in reader.manifest.tensors):
            return None
        are_changed = are_changed or bool(reader.records)
    return None


def _copied(
    reader: DeltaReader, end: LayoutEnd, writer: DeltaWriter, *, with_sha256: bool
) -> LayoutEnd:
    files = tuple(
        replace(
            file,
            header=writer.blob(reader.read_blob(file.header)),
            sha256=file.sha256 if with_sha256 else None,
        )
        for file in end.files
    )
    index = end.index
    if index is not None:
        index = index[0], writer.blob(reader.read_blob(index[1]))
    return LayoutEnd(files, index)


def _carried(
    route: Route, writer: DeltaWriter, *, forget: bool
) -> tuple[tuple[CarriedFile, ...], tuple[str, ...]]:
    told: dict[str, list[tuple[DeltaReader, CarriedFile]]] = {}
    for reader in route.readers:
        for file in reader.manifest.attachments.files:
            told.setdefault(file.name, []).append((reader, file))
    carried, notes = [], []
    for name, found in sorted(told.items()):
        (first, before), (last, after) = found[0], found[-1]
        base, target = (before.target, after.base) if route.reverse else (before.base, after.target)
        if (None if base is None else base.digest) == (None if target is None else target.digest):
            continue
        if target is not None and target.blob is None:
            notes.append(f"{name} is not carried: its content is not stored (--forget)")
            continue
        kept = base if base is None or not forget else replace(base, blob=None)
        carried.append(
            CarriedFile(name, _end(first, kept, name, writer), _end(last, target, name, writer))
        )
    return tuple(carried), tuple(notes)


def _end(
    reader: DeltaReader, end: CarriedEnd | None, name: str, writer: DeltaWriter
) -> CarriedEnd | None:
    if end is None or end.blob is None:
        return end
    content = reader.read_blob(end.blob)
    check_carried(reader, name, plain_digest(content).hex(), end.digest)
    return replace(end, blob=writer.blob(content))
