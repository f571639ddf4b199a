"""What a figure was measured on: without it, no two figures can be compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    *("sparsedelta", "numpy", "zstandard", "blake3", "safetensors", "click", "rich", "zipnn"),
    *("torch", "transformers", "peft"),
)
_FEATURES: Final = ("avx2", "avx512f", "asimd", "sve")


def pin(cores: int) -> int:
    """Keep this process and all that it starts on so many cores; returns how many there are."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[:cores]
        os.sched_setaffinity(0, mine)
        return len(mine)
    return os.cpu_count() or 1


def file_system(folder: Path) -> str:
    """Type of the file system that holds a folder, such as ``ext4``."""
    folder = folder.resolve()
    best, kind = -1, "unknown"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, where, found, *_ = line.split(" ")
        inside = folder == Path(where) or Path(where) in folder.parents
        if inside and len(where) > best:
            best, kind = len(where), found
    return kind


def describe(folders: Sequence[Path] = ()) -> dict[str, Any]:
    """CPU, memory, kernel, file systems and versions, as a JSON object.

    Args:
        folders: Where the data of the measurement lies; only their file systems are told.
    """
    cpu = _cpu_info()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "features": [word for word in _FEATURES if word in cpu.get("flags", "").split()],
        "cores": cores,
        "memory_bytes": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "file_systems": [file_system(folder) for folder in folders],
        "python": platform.python_version(),
        "packages": _versions(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
