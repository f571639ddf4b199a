"""The second reader, in JavaScript, agrees with all vectors and with the worked examples."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SPEC = Path(__file__).resolve().parents[2] / "spec"
READER = SPEC / "reference" / "js"
NODE, NPM = shutil.which("node"), shutil.which("npm")
OLDEST = (20, 19)
# What npm says if there is no way to the registry, as opposed to packages that are not those of the
# lock file.
UNREACHABLE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ENOTCACHED"
    r"|ERR_SOCKET_TIMEOUT|network"
)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever its exit status."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", timeout=300, check=False
    )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the reader with its two packages, outside of the checkout."""
    if NODE is None or NPM is None:
        pytest.skip("node or npm is not installed")
    version = run([NODE, "--version"], READER).stdout.strip()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST and not os.environ.get("CI"):
        pytest.skip(f"node {version} is older than the reader needs")
    folder = tmp_path_factory.mktemp("javascript") / "js"
    shutil.copytree(READER, folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = run([NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
    if installed.returncode != 0:
        if UNREACHABLE.search(installed.stderr) and not os.environ.get("CI"):
            pytest.skip("npm cannot reach the registry")
        pytest.fail(f"npm ci failed:\n{installed.stderr}")
    return folder


def test_all_vectors_agree(reader: Path) -> None:
    assert NODE is not None
    checked = run([NODE, "check.js", str(SPEC)], reader)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    index = json.loads((SPEC / "vectors" / "index.json").read_text("utf-8"))
    vectors = sum(name.endswith(".expected.json") for name in index)
    summary = checked.stdout.splitlines()[-1]
    assert f"{len(index)} of {len(index)} files" in summary
    assert f"{vectors} of {vectors} vectors" in summary


def test_command_prints_a_delta_and_refuses_others(reader: Path, tmp_path: Path) -> None:
    assert NODE is not None
    vectors = SPEC / "vectors" / "valid"
    expected = json.loads((vectors / "two-parts.expected.json").read_text("utf-8"))
    printed = run([NODE, "decode.js", str(vectors / "two-parts.safetensors")], reader)
    assert printed.returncode == 0, printed.stderr
    found = json.loads(printed.stdout)
    assert {key: found[key] for key in expected if key in found} == {
        key: value for key, value in expected.items() if not key.endswith("_tensors")
    }
    (tmp_path / "short.safetensors").write_bytes(b"1234567")
    refused = run([NODE, "decode.js", str(tmp_path / "short.safetensors")], reader)
    assert refused.returncode == 3
    assert refused.stdout == ""
    assert refused.stderr.startswith("SD101: ")
