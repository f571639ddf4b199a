"""How much memory is free: on the host, within the limit of its control group, on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["device_free", "host_free"]

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # version 1 of control groups has no word for it, only very large numbers


def host_free(root: Path = _ROOT) -> tuple[int | None, str]:
    """Tell how much memory the host can give to this process.

    It is the smaller of ``MemAvailable`` and of what the process's control group, and those it is
    in, have left: limit, less usage, plus the page cache that the kernel would drop first.

    Args:
        root: Where ``proc`` and ``sys`` are found.

    Returns:
        Bytes, None where it cannot be told, and where the number comes from.
    """
    found = [*_available(root), *_groups(root)]
    return min(found, default=(None, "unknown"))


def device_free(device: torch.device) -> tuple[int | None, str]:
    """Tell how much memory a device can give to this process.

    Args:
        device: The device of the weights.

    Returns:
        Bytes, None where it cannot be told, and where the number comes from. What torch has
        reserved and does not use counts as free.
    """
    if device.type == "cpu":
        return host_free()
    if device.type != "cuda":
        return None, "unknown"
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached, "torch.cuda.mem_get_info"


def _available(root: Path) -> list[tuple[int, str]]:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return [(int(value.split()[0]) * 1024, "MemAvailable")]
    return []


def _groups(root: Path) -> list[tuple[int, str]]:
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            folder, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            cache = "inactive_file"
        elif "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cache = "total_inactive_file"
        else:
            continue
        # A container often sees its own group as the root, whatever path it is told.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts) + 1):
            at = folder.joinpath(*parts[:depth])
            limit, usage = (_integer(_read(at / name)) for name in names)
            if limit is not None and usage is not None and limit < _UNLIMITED:
                free = max(0, limit - usage + _statistic(at / "memory.stat", cache))
                found.append((free, "control group"))
    return found


def _statistic(path: Path, wanted: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == wanted:
            return _integer(value) or 0
    return 0


def _integer(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
