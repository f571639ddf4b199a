"""The structure that docs/architecture.md draws, read from the code itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import gallop
import sparsedelta

ROOT = Path(__file__).parents[2]
PACKAGES = ("sparsedelta", "gallop")


@cache
def modules() -> tuple[Path, ...]:
    """Every module of both packages."""
    return (*sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")),)


@cache
def dotted(path: Path) -> str:
    """Dotted name of a module; a package is its ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def layers() -> tuple[str, ...]:
    """The modules in the order of the picture in docs/architecture.md: each imports only upward."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.split("<!-- layers -->")[1]
    return (*re.findall(r"^\| `([a-z0-9_.]+)` \|", picture, flags=re.MULTILINE),)


def imports(path: Path) -> set[str]:
    """Modules of ours that a module imports, wherever in the file, typing-only imports included."""
    found: set[str] = set()
    names = {dotted(module) for module in modules()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in names else node.module)
    return {name for name in found if name.split(".")[0] in PACKAGES}


FACADES = {"sparsedelta", "gallop"}
"""They name what users import, lazily, and stand outside the layers."""


def test_the_picture_names_every_module() -> None:
    expected = {dotted(path) for path in modules()} - FACADES
    assert set(layers()) == expected
    assert len(layers()) == len(set(layers()))


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_only_go_up(path: Path) -> None:
    """A module imports only from lines above it in the picture."""
    order = {name: line for line, name in enumerate(layers())}
    name = dotted(path)
    if name in FACADES:
        return
    for imported in imports(path):
        if imported in FACADES:
            ends = ("cli", "__main__", "commands", "recipe")
            allowed = name.endswith(ends) or ".commands." in name
            assert allowed, f"{name} imports the facade {imported}"
        else:
            assert order[imported] < order[name], f"{name} imports {imported}, which is below it"


def test_no_module_is_a_drawer() -> None:
    """A module owns one thing, and stays small."""
    for path in modules():
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= 400, f"{path} has {length} lines"


SPARSEDELTA_NAMES = {
    "ApplyReport",
    "BaseCheck",
    "BusyError",
    "CheckpointError",
    "CheckpointInfo",
    "ComposeReport",
    "ComposedReport",
    "Delta",
    "DeltaGivenError",
    "DeltaInfo",
    "DeltaReader",
    "DiffReport",
    "Edge",
    "ExportReport",
    "FormatError",
    "FoundDelta",
    "HistoryGraph",
    "HubError",
    "Identity",
    "IdentityError",
    "NoAccessError",
    "NotFiniteError",
    "NotInvertibleError",
    "OutputError",
    "Part",
    "Problem",
    "PullReport",
    "PushReport",
    "RankError",
    "RecodeReport",
    "RemoteError",
    "RepositoryHistory",
    "Snapshot",
    "SparseDeltaError",
    "Stack",
    "SquashReport",
    "Standing",
    "StructureError",
    "TensorDelta",
    "TensorSlice",
    "TensorSpec",
    "UnfinishedError",
    "UnsupportedError",
    "Url",
    "UsageError",
    "ValidationReport",
    "VerificationError",
    "WrongBaseError",
    "__version__",
    "apply",
    "apply_stack",
    "checkpoint_info",
    "compose",
    "diff",
    "diff_state_dict",
    "export_raw",
    "fingerprint",
    "from_pretrained",
    "history",
    "info",
    "load_state_dict",
    "merge",
    "pull",
    "push",
    "invert",
    "log",
    "read_rows",
    "recode",
    "revert",
    "search",
    "squash",
    "validate",
    "which",
    "write_delta",
}

GALLOP_NAMES = {
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
    "attach",
}


def test_public_names_of_sparsedelta() -> None:
    """A name added here is a promise; a name removed breaks somebody."""
    assert set(sparsedelta.__all__) == SPARSEDELTA_NAMES
    for name in sparsedelta.__all__:
        assert getattr(sparsedelta, name) is not None


def test_public_names_of_gallop() -> None:
    """A name added here is a promise; a name removed breaks somebody."""
    assert set(gallop.__all__) == GALLOP_NAMES
    for name in gallop.__all__:
        assert getattr(gallop, name) is not None


def test_functions_are_not_hidden_by_modules_of_their_name() -> None:
    """Importing a submodule sets an attribute of its package: it must not be a function's name."""
    for package in PACKAGES:
        stems = {path.stem for path in (ROOT / package).glob("*.py")}
        assert not stems.intersection(sys.modules[package].__all__)


HEAVY = ("torch", "transformers", "huggingface_hub", "fsspec", "rich", "hypothesis")


@pytest.mark.parametrize(
    "code",
    [
        "import sparsedelta",
        "import gallop",
        "import sparsedelta; [getattr(sparsedelta, name) for name in sparsedelta.__all__]",
        "from sparsedelta.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from sparsedelta.cli import main\ntry: main(['info', 'missing'])\nexcept SystemExit: pass",
    ],
)
def test_start_up_loads_nothing_heavy(code: str) -> None:
    """``import sparsedelta`` and ``sparsedelta --help`` work, fast, without torch and its kin."""
    check = f"{code}\nimport sys\nprint('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_versions_agree() -> None:
    """The distribution, the package and the change log name one version."""
    version = re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert version
    assert version[1] == sparsedelta.__version__
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
