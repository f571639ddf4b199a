"""Chains in a repository: links that are added, and which of them lead from here to there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sparsedelta.errors import UsageError
from sparsedelta.hub.at_hand import CHAIN_FOLDER, DELTA_FILE, link_name
from sparsedelta.hub.commits import RepositoryState
from sparsedelta.hub.manifest_file import ListedBase, ListedDelta, ListedFile, ManifestFile

_SHOWN = 16
_LEAST_PREFIX = 6


def added_link(
    state: RepositoryState,
    delta: ListedDelta,
    base: ListedBase,
    operations: Mapping[str, Any],
) -> tuple[ManifestFile, dict[str, Any]]:
    """A chain with a delta behind its last link, and what adds the files of that.

    Args:
        state: The repository, with a chain or nothing.
        delta: The delta, by itself.
        base: Where its base can be had.
        operations: What adds its files, by their names.

    Returns:
        What ``sparsedelta.json`` is going to say; and what adds files, by their paths. Nothing if
        the delta is a link already.

    Raises:
        UsageError: The repository holds something else; the delta does not follow its last link.
    """
    old = state.listed
    repo = state.reference.repo
    if old is not None and not old.is_chain:
        raise UsageError(
            f"{repo} holds a single delta, no chain",
            hint="push the first delta of a chain with --chain, to a repository of its own",
        )
    links = () if old is None else old.deltas
    if old is not None and any(link.content == delta.content for link in links):
        return old, {}
    if links and links[-1].target != delta.base:
        raise UsageError(
            f"the delta starts from {delta.base[:_SHOWN]}…, the chain in {repo} ends at "
            f"{links[-1].target[:_SHOWN]}…: it is not the next link",
            hint=f"make it from there: sparsedelta pull {repo} --to {len(links)} --onto BASE -o "
            "TIP; sparsedelta diff TIP TARGET -o DELTA",
        )
    root = link_name(len(links) + 1)
    taken = {file.path for link in links for file in link.files}
    paths = {name: root if name == DELTA_FILE else f"{CHAIN_FOLDER}/{name}" for name in operations}
    for path in paths.values():
        if path in taken:
            raise UsageError(
                f"{repo} has a file {path} already, of another link",
                hint="write the set anew under another name, or as one file: "
                "sparsedelta squash SET -o NAME",
            )
    added = {}
    for name, path in paths.items():
        operation = copy.copy(operations[name])
        operation.path_in_repo = path
        added[path] = operation
    files = tuple(ListedFile(paths[f.path], f.size, f.sha256) for f in delta.files)
    link = replace(delta, path=root, files=files)
    first = base if old is None else old.base
    return ManifestFile(first, (*links, link), is_chain=True), added


def link_number(listed: ManifestFile, to: str | int) -> int:
    """How many links lead to a checkpoint of a chain.

    Args:
        listed: The chain.
        to: Number of a link, 0 for the base; or the fingerprint of the checkpoint, or its first
            hex digits.

    Raises:
        UsageError: There is none, or several.
    """
    nodes = [listed.deltas[0].base, *(link.target for link in listed.deltas)]
    text = str(to)
    if text.isdecimal() and len(text) < _LEAST_PREFIX:
        if int(text) < len(nodes):
            return int(text)
        raise UsageError(
            f"the chain has {len(listed.deltas)} links, there is no link {text}",
            hint="sparsedelta history NAMESPACE/NAME lists them",
        )
    found = [number for number, node in enumerate(nodes) if node.startswith(text.lower())]
    if len(text) < _LEAST_PREFIX or not found:
        raise UsageError(
            f"no checkpoint of the chain has a fingerprint that begins with {text!r:.80}",
            hint=f"give a link's number, or {_LEAST_PREFIX} hex digits and more: sparsedelta "
            "history NAMESPACE/NAME lists them",
        )
    if len(found) > 1 and len({nodes[number] for number in found}) > 1:
        raise UsageError(f"several fingerprints begin with {text!r:.80}", hint="give more digits")
    return found[-1]
