"""Model cards: their metadata, the tags that the Hub makes of it, and what it refuses."""

from __future__ import annotations

import re

import yaml

from hubserver.blobs import BlobStore
from hubserver.repos import Commit

FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)

RELATIONS = ("adapter", "finetune", "merge", "quantized")

LICENSES = frozenset(
    """afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
    ofl-1.1 open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
    zlib""".split()  # noqa: SIM905
)
"""The ids that the Hub takes as ``license``."""


def parsed(text: str) -> dict[str, object] | None:
    """The metadata at the top of a card; None: there is none.

    Raises:
        ValueError: It is no YAML mapping.
    """
    found = FRONT.match(text)
    if found is None:
        return None
    try:
        document = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        raise ValueError(f"invalid YAML: {error}") from error
    if document is None:
        return None
    if not isinstance(document, dict):
        raise ValueError("metadata must be a mapping")
    return {str(key): value for key, value in document.items()}


def metadata(blobs: BlobStore, commit: Commit) -> dict[str, object]:
    """The metadata of the card of a commit; what cannot be read counts as none."""
    card = commit.files.get("README.md")
    if card is None:
        return {}
    try:
        return parsed(blobs.path(card.sha256).read_text(encoding="utf-8", errors="replace")) or {}
    except ValueError:
        return {}


def names(value: object) -> list[str]:
    """One string or a list of them."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str)]


def tags(card: dict[str, object], commit: Commit) -> list[str]:
    """The tags that a repository is found by."""
    found = []
    if isinstance(card.get("library_name"), str):
        found.append(str(card["library_name"]))
    if any(path.endswith(".safetensors") for path in commit.files):
        found.append("safetensors")
    found += names(card.get("tags"))
    found += names(card.get("language"))
    found += [f"dataset:{name}" for name in names(card.get("datasets"))]
    bases = names(card.get("base_model"))
    relation = card.get("base_model_relation")
    if relation not in RELATIONS:
        relation = "merge" if len(bases) > 1 else "finetune"
    for base in bases:
        found += [f"base_model:{base}", f"base_model:{relation}:{base}"]
    found += [f"license:{name}" for name in names(card.get("license"))]
    found.append("region:us")
    return list(dict.fromkeys(found))


def problems(text: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Errors and warnings of a card, as ``validate-yaml`` tells them."""
    try:
        card = parsed(text)
    except ValueError as error:
        return [{"message": str(error)}], []
    if card is None:
        return [], [{"message": "empty or missing yaml metadata in repo card"}]
    errors = [
        f'"{key}" must be a string'
        for key in ("library_name", "pipeline_tag")
        if not isinstance(card.get(key, ""), str)
    ]
    for key in ("tags", "datasets", "base_model", "language", "license"):
        value = card.get(key, [])
        entries = value if isinstance(value, list) else [value]
        if len(names(value)) != len(entries):
            errors.append(f'"{key}" must be a string or an array of strings')
    errors += [
        f'"base_model" with value "{name}" is not valid. Use a model id from the Hub.'
        for name in names(card.get("base_model"))
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    ]
    errors += [
        f'"license" must be one of [{", ".join(sorted(LICENSES))}], found "{name}"'
        for name in names(card.get("license"))
        if name not in LICENSES
    ]
    if card.get("base_model_relation", "adapter") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    return [{"message": message} for message in errors], []
