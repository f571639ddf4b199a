"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gallop

PUBLIC = [
    "GallopConfig",
    "Mask",
    "SelectionReport",
    "SparseAdamW",
    "SparseValues",
    "export",
    "gather_mask",
    "load_state",
    "save_state",
    "select",
    "selector",
]


def test_the_surface_is_pinned() -> None:
    assert sorted(gallop.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(gallop, name).__name__ == name
        assert getattr(gallop, name).__doc__
    assert set(PUBLIC) <= set(dir(gallop))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gallop.nothing


def imported_after(code: str) -> set[str]:
    code += "; import sys; print(*[m for m in ('torch', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(found.stdout.split())


def test_imports_are_lazy() -> None:
    assert imported_after("import gallop, gallop.cli") == set()
    assert imported_after("import gallop; gallop.select, gallop.SparseAdamW, gallop.export") == {
        "torch"
    }


def test_every_error_is_one_of_the_projects() -> None:
    from gallop import errors  # noqa: PLC0415
    from sparsedelta.errors import SparseDeltaError  # noqa: PLC0415

    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, SparseDeltaError) for kind in kinds)
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert {kind.__name__: kind.exit_code for kind in kinds if kind.exit_code != 1} == {
        "ConfigError": 2,
        "NotFoundError": 4,
        "OutsideMaskError": 3,
    }
