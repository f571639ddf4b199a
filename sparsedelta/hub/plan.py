"""What a push makes of a repository: its files, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sparsedelta.container import DeltaFile
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import OutputError, UsageError
from sparsedelta.hub.at_hand import DELTA_FILE
from sparsedelta.hub.base_check import BaseCheck
from sparsedelta.hub.card import CARD, CardFacts, renewed_card
from sparsedelta.hub.chains import added_link
from sparsedelta.hub.commits import RepositoryState
from sparsedelta.hub.manifest_file import (
    MANIFEST_FILE,
    ListedBase,
    ListedDelta,
    ListedFile,
    ManifestFile,
)
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import Url
from sparsedelta.operations.info import DeltaInfo, info


@dataclass(frozen=True, slots=True)
class Pushed:
    """A delta that is to be pushed.

    Attributes:
        info: What it says of itself.
        untouched: Names of the tensors that it leaves alone.
        listed: What ``sparsedelta.json`` says of it, by itself.
        base: What that says of its base.
        operations: What adds its files, by their names.
    """

    info: DeltaInfo
    untouched: tuple[str, ...]
    listed: ListedDelta
    base: ListedBase
    operations: Mapping[str, Any]

    @classmethod
    def of(
        cls, reader: DeltaReader, operations: Mapping[str, Any], base: BaseCheck | None
    ) -> Pushed:
        """A delta and what was found out about its base."""
        return cls(
            info(reader),
            tuple(reader.manifest.untouched),
            _listed_delta(reader, operations),
            _listed_base(reader, base),
            operations,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a push makes of a repository, whatever is in it when it comes to that.

    Attributes:
        pushed: The delta.
        repo: ``namespace/name``.
        license: The license that was asked for, or None.
        base_card: The metadata of the base's card.
        is_chain: Whether the delta is to be a link of a chain.
    """

    pushed: Pushed
    repo: str
    license: str | None
    base_card: Mapping[str, Any]
    is_chain: bool

    def _listed(self, state: RepositoryState) -> tuple[ManifestFile, Mapping[str, Any]]:
        pushed, old = self.pushed, state.listed
        if self.is_chain:
            return added_link(state, pushed.listed, pushed.base, pushed.operations)
        if old is not None and old.is_chain:
            raise UsageError(
                f"{self.repo} holds a chain of {len(old.deltas)} deltas: one delta does not "
                "replace it",
                hint="--chain adds it as the next link; or push it to another repository",
            )
        return ManifestFile(pushed.base, (pushed.listed,)), pushed.operations

    def changes(self, state: RepositoryState) -> dict[str, Any]:
        """For each path what adds it, or None where it goes.

        Raises:
            UsageError: The repository holds what this delta does not belong to.
        """
        listed, operations = self._listed(state)
        old = state.listed
        if old == listed and not operations:
            return {}  # a link of the chain already
        facts = CardFacts(
            self.repo, listed, self.pushed.info, self.pushed.untouched, self.license, self.base_card
        )
        hub = import_module("huggingface_hub")
        changes: dict[str, Any] = dict(operations)
        card = renewed_card(state.card, facts).encode("utf-8", "surrogateescape")
        for path, content in ((MANIFEST_FILE, listed.to_bytes()), (CARD, card)):
            changes[path] = hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
        kept = {file.path for file in listed.files}
        for file in old.files if old is not None else ():
            if file.path not in kept and file.path in state.files:
                changes[file.path] = None
        return changes

    def message(self, state: RepositoryState) -> str:
        """First line of the commit's message."""
        listed = self._listed(state)[0]
        what = f"link {len(listed.deltas)}" if listed.is_chain else "delta"
        delta = self.pushed.listed
        return f"Push {what}: {delta.nnz:,} words in {delta.tensors} tensors"

    def goes_on(self, before: RepositoryState, now: RepositoryState) -> bool:
        """Whether the change is still valid though another commit came first."""
        if before.listed == now.listed:
            return True  # somebody has edited the card, or other files
        tip = None if now.listed is None else now.listed.target
        return self.is_chain and tip == self.pushed.listed.base


def _local(file: DeltaFile) -> Path:
    path = HubStore(file.path).cached() if isinstance(file.path, Url) else file.path
    if path is None:
        raise OutputError(
            f"cannot push {file.path}: it is not here", hint="copy it here first, and push the copy"
        )
    return path


def _files(reader: DeltaReader) -> Sequence[DeltaFile]:
    return (reader.root, *reader.files) if reader.is_set else (reader.root,)


def added_files(reader: DeltaReader) -> dict[str, Any]:
    """What adds each file, by its name in a repository; making it digests the file."""
    hub = import_module("huggingface_hub")
    found: dict[str, Any] = {}
    for file in _files(reader):
        path = _local(file)
        name = DELTA_FILE if file is reader.root else file.path.name
        found[name] = hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
    return found


def _listed_delta(reader: DeltaReader, operations: Mapping[str, Any]) -> ListedDelta:
    manifest = reader.manifest
    files = tuple(
        ListedFile(name, each.upload_info.size, each.upload_info.sha256.hex())
        for name, each in operations.items()
    )
    return ListedDelta(
        path=DELTA_FILE,
        base=manifest.base,
        target=manifest.target,
        content=manifest.content,
        format_version=manifest.version,
        profile=manifest.profile,
        nnz=manifest.nnz,
        tensors=len(manifest.tensors),
        invertible=manifest.invertible,
        method=_method(manifest.metadata),
        files=files,
    )


def _method(metadata: Mapping[str, str]) -> str | None:
    for prefix in ("gallop", "compose"):
        if any(key.startswith(f"{prefix}.") for key in metadata):
            return prefix
    return metadata.get("method")


def _listed_base(reader: DeltaReader, found: BaseCheck | None) -> ListedBase:
    fingerprint = reader.manifest.base
    if found is None:
        return ListedBase(None, None, fingerprint)
    return ListedBase(found.repo, found.commit, fingerprint, found.files)
