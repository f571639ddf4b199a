"""The files of a delta: one, or a root and the part files beside it (3.8, SD601 to SD603)."""

from __future__ import annotations

from pathlib import Path

from beside import read_blobs, read_files, read_layout, read_set
from header import read_header
from manifest import MAX_NAMES, read_manifest
from operations import Plan, entries_of, inverted, read_compact, read_records
from tables import File
from terms import need

SHARED = ("base", "target", "version", "profile", "lean")


def read_file(path: Path) -> File:
    """Check the rules SD1xx and SD2xx of one file."""
    meta, (frame, tables, data) = read_header(path.read_bytes())
    manifest = read_manifest(meta, frame)
    plans = read_records(manifest)
    read_blobs(manifest)
    read_layout(manifest)
    read_files(manifest)
    read_set(manifest)
    read_compact(manifest, plans)
    return File(meta, manifest, plans, tables, data)


def read_delta(path: Path) -> list[File]:
    """Check the rules SD1xx, SD2xx and SD6xx of a file, and of its part files if it is a root."""
    root = read_file(path)
    place, files = root.manifest["set"], [root]
    if place is None or place["part"] > 0:
        return files
    for k, entry in enumerate(place["parts"], 1):
        beside = path.parent / entry["name"]
        need(
            "SD601",
            beside.is_file() and beside.stat().st_size == entry["size"],
            f"no {entry['name']}",
        )
        file = read_file(beside)
        own = file.manifest["set"] or {"id": None, "part": None}
        ok = file.meta["sd.manifest"] == entry["manifest"]
        ok &= (own["id"], own["part"]) == (place["id"], k)
        ok &= all(file.manifest[key] == root.manifest[key] for key in SHARED)
        need("SD602", ok, f"{entry['name']} is not part {k} of this delta")
        files.append(file)
    check_merged(root, merged(files))
    return files


def merged(files: list[File]) -> list[Plan]:
    """The records of all files, by name."""
    return sorted((plan for file in files for plan in file.plans), key=lambda plan: plan.name)


def check_merged(root: File, plans: list[Plan]) -> None:
    """Check SD603."""
    untouched = root.manifest["untouched"]
    need("SD603", len(plans) + len(untouched) <= MAX_NAMES, "too many names")
    for names in ([plan.name for plan in plans], [plan.base_name for plan in plans]):
        every = names + untouched
        need("SD603", len(set(every)) == len(every), "a name of two tensors of one end")
    need("SD603", entries_of(plans) == root.manifest["nnz"], "the sum of all nnz")
    ok = inverted(plans) is root.manifest["invertible"]
    need("SD603", ok, "invertible, against the parts")
