"""Fuzz the manifest: for any text, the package and the reference name the same rule of SD2xx.

The header says whatever the manifest says, as far as that is text and numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import harness

with harness.instrumented():
    from sparsedelta.errors import FormatError
    from sparsedelta.manifest import parse_manifest
    from sparsedelta.strict_json import parse_canonical

from beside import read_blobs, read_files, read_layout, read_set
from manifest import read_manifest
from operations import read_records
from sections import digest
from sources import names, source
from terms import RuleError

FACTS = ("base", "target", "content", "nnz", "invertible", "profile", "version")


def header_of(text: bytes) -> dict[str, str]:
    """The metadata of a header that agrees with a manifest."""
    meta = {f"sd.{key}": "" for key in FACTS}
    meta |= {"sd.manifest": digest(text), "sd.manifest_size": str(len(text))}
    try:
        manifest = json.loads(text)
        place = manifest["set"] or {}
        values = {f"sd.{key}": manifest[key] for key in FACTS}
        values |= {"sd.set_id": place["id"], "sd.part": place["part"]} if place else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return meta
    for key, value in values.items():
        if isinstance(value, str | int):
            meta[key] = value if isinstance(value, str) else json.dumps(value)
    return meta


def of_package(text: bytes, header: dict[str, str]) -> str:
    """The rule that the package names, or ""."""
    try:
        document = parse_canonical(text)
    except ValueError:
        return "SD203"
    try:
        parse_manifest(document, header)
    except FormatError as error:
        return error.rule
    return ""


def of_reference(text: bytes, header: dict[str, str]) -> str:
    """The rule that the reference names, or ""."""
    try:
        manifest = read_manifest(header, text)
        read_records(manifest)
        for check in (read_blobs, read_layout, read_files, read_set):
            check(manifest)
    except RuleError as error:
        return error.code
    return ""


def one_input(data: bytes) -> None:
    """The law, for one input."""
    header = header_of(data)
    package, reference = of_package(data, header), of_reference(data, header)
    assert package == reference, f"the package says {package!r}, the reference {reference!r}"


def seeds() -> Iterator[bytes]:
    """The manifests of the vectors."""
    for name in names():
        yield from (each.text for each in source(name).sections.values())


if __name__ == "__main__":
    harness.main(one_input, seeds)
