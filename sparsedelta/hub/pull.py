"""`pull`: a delta of the Hub, at one commit, verified before it has its name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.container import open_file
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import FormatError, HubError, OutputError, UsageError
from sparsedelta.hub.at_hand import DELTA_FILE, delta_locations
from sparsedelta.hub.chains import link_number
from sparsedelta.hub.client import Account
from sparsedelta.hub.manifest_file import (
    MANIFEST_FILE,
    ListedDelta,
    ListedFile,
    ManifestFile,
    read_manifest_file,
)
from sparsedelta.hub.named_base import at_commit
from sparsedelta.hub.references import Reference, parse_reference, repository
from sparsedelta.hub.store import HubStore, pinned
from sparsedelta.locations import LocationLike, Url, as_location, output_path
from sparsedelta.operations.apply import apply
from sparsedelta.operations.following import ApplyReport
from sparsedelta.operations.identity import fingerprint
from sparsedelta.operations.squash import squash
from sparsedelta.operations.validate import validate
from sparsedelta.outputs import check_output, staged
from sparsedelta.progress import Progress, silent

_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull got.

    Attributes:
        repo: ``namespace/name``.
        commit: The commit that it was taken from, 40 hex digits.
        path: The delta: where it was written, or where it lies in the client's cache; or the
            checkpoint that was made. None in a dry run.
        files: The files that were verified, by their paths in the repository.
        size: Their bytes.
        base: Fingerprint of where the delta starts.
        target: Fingerprint of where it leads to.
        base_repo: The model that it starts from, if it is known.
        base_commit: The commit of that, if it is known.
        links: Numbers of the links of a chain that were needed.
        applied: What was made of a checkpoint, if that was asked for.
    """

    repo: str
    commit: str
    path: str | None
    files: tuple[str, ...]
    size: int
    base: str
    target: str
    base_repo: str | None
    base_commit: str | None
    links: tuple[int, ...] = ()
    applied: ApplyReport | None = None


def pull(
    repo: str | Reference | Url,
    out: LocationLike | None = None,
    *,
    revision: str | None = None,
    local_dir: LocationLike | None = None,
    to: str | int | None = None,
    onto: LocationLike | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> PullReport:
    """Get a delta from the Hub, verified: its size, its SHA-256, and every rule of the format.

    The revision is resolved once. What has been got before is taken from the client's cache; a file
    there that is found damaged is got again.

    Args:
        repo: ``namespace/name``, or with ``@revision``.
        out: The file to write, part files of a set beside it; None: the delta stays in the cache.
        revision: Branch, tag or commit.
        local_dir: Folder to write the files to, by the names that they have in the repository.
        to: Of a chain: how far, as the number of a link or the fingerprint of its target; None: to
            the end. The links up to there are squashed into one delta.
        onto: A checkpoint on the chain: only the links that lead on from there are got. They are
            applied to it, and ``out`` is the checkpoint that they make.
        token: A token; None for ``HF_TOKEN`` or the one of ``hf auth login``.
        endpoint: The Hub; None for ``HF_ENDPOINT``.
        cache_dir: The cache; None for the client's.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Say what would be got.
        progress: Told how many bytes of the delta were validated, and of how many.

    Raises:
        HubError: It is not there, there is no access, or the Hub cannot be reached; or what comes
            is not what the Hub says it is.
        FormatError: It breaks a rule of the format.
        OutputError: The output exists, or cannot be written.
        UsageError: Options that make no sense.
    """
    reference = repository(repo, what="delta")
    known = Account.of(repo.options) if isinstance(repo, Url) else Account()
    if revision is not None and reference.revision not in (None, revision):
        raise UsageError(
            f"{reference} names a revision, and so does --revision {revision}", hint="name it once"
        )
    if out is not None and local_dir is not None:
        raise UsageError("an output is named twice", hint="either -o FILE, or --local-dir DIR")
    reference = Reference(reference.repo, revision or reference.revision)
    if local_dir is not None and not (onto is None and to is None):
        raise UsageError(
            "--to and --onto make one file of a chain, --local-dir gets its links as they are",
            hint="name the output: -o OUT",
        )
    account = Account(
        known.token if token is None else token,
        endpoint or known.endpoint,
        cache_dir or known.cache_dir,
    )
    store = pinned(reference, account)
    options = _Options(threads, force, progress)
    listed = read_manifest_file(store)
    roots = [parse_reference(each).path for each in _urls(store)]
    path = None if out is None else output_path(out)
    is_chain = listed is not None and listed.is_chain
    if not is_chain and not (onto is None and to is None):
        raise UsageError(
            f"{reference} holds no chain",
            hint=f"apply its delta: sparsedelta apply {onto or 'BASE'} {reference} -o OUT",
        )
    if (
        listed is not None
        and is_chain
        and local_dir is None
        and not (path is None and onto is None and to is None)
    ):
        way = _Way(store, listed, path, onto, len(roots) if to is None else to)
        return _pull_chain(way, options, dry_run=dry_run)
    if len(roots) > 1 and path is not None:
        raise UsageError(
            f"{reference} holds {len(roots)} deltas, and no sparsedelta.json that puts them in "
            "order",
            hint=f"name one: hf://{reference}/{roots[0]}; or --local-dir DIR",
        )
    if dry_run:
        names = [name for root in roots for name in _set_names(store, root)]
        return _report(store, listed, names, roots, None)
    found = _verified(store, listed, roots, options)
    names = [name for each in found.values() for name in each]
    if local_dir is not None:
        where = _write_folder(found, output_path(local_dir), force=force)
        return _report(store, listed, names, roots, where / roots[-1])
    if path is not None:
        _write(found[roots[0]], roots[0], path, force=force)
        return _report(store, listed, names, roots, path)
    return _report(store, listed, names, roots, found[roots[-1]][roots[-1]])


@dataclass(frozen=True, slots=True)
class _Options:
    threads: int | None
    force: bool
    progress: Progress


def _urls(store: HubStore) -> list[Url]:
    return [each for each in delta_locations(store.url()) if isinstance(each, Url)]


def _set_names(store: HubStore, root: str) -> list[str]:
    """The files of a delta as its root names them; ``sparsedelta.json`` may list anything."""
    with open_file(store.url(root), ahead=False) as file:  # from the cache, if it is there
        place = file.manifest.place
        folder = PurePosixPath(root).parent
        parts = place.parts if place is not None and place.is_root else ()
        return [root, *(str(folder / part.name) for part in parts)]


def _verified(
    store: HubStore, listed: ManifestFile | None, roots: Sequence[str], options: _Options
) -> dict[str, dict[str, Path]]:
    """Files of each delta in the client's cache, after every check, by its root and their paths."""
    told = {file.path: file for file in listed.files} if listed is not None else {}
    links = {delta.path: delta for delta in listed.deltas} if listed is not None else {}
    sets: dict[str, dict[str, Path]] = {}
    for root in roots:
        found = sets[root] = {root: _fetched(store, root, told.get(root))}
        for name in _set_names(store, root):
            if name not in found:
                found[name] = _fetched(store, name, told.get(name))
        report = validate(found[root], threads=options.threads, progress=options.progress)
        if not report.ok:
            problem = report.problems[0]
            raise FormatError(
                problem.rule,
                f"{store.reference}: {problem.message.removeprefix(f'{problem.rule}: ')}",
                hint="it was pushed so: tell its author",
            )
        if root in links:
            _check_ends(store, found[root], links[root])
    return sets


def _check_ends(store: HubStore, path: Path, link: ListedDelta) -> None:
    with DeltaReader(path, ahead=False) as reader:
        ends = reader.manifest.base, reader.manifest.target
    if ends != (link.base, link.target):
        raise HubError(
            f"{link.path} of {store.reference} leads from {ends[0][:16]}… to {ends[1][:16]}…, "
            f"{MANIFEST_FILE} says from {link.base[:16]}… to {link.target[:16]}…",
            reason="corrupt",
            hint="it was replaced by itself: push the delta again",
        )


def _fetched(store: HubStore, name: str, told: ListedFile | None) -> Path:
    entry = store.files.get(name)
    if entry is None:
        raise HubError(
            f"{store.reference} lacks {name}, which belongs to its delta",
            reason="entry",
            hint="push the delta again, or name another revision",
        )
    path = store.fetch(name, is_doubted=True)
    if told is not None and (told.size, told.sha256) != (entry.size, entry.sha256 or _sha256(path)):
        raise HubError(
            f"{name} of {store.reference} is not the file that {MANIFEST_FILE} lists: its SHA-256 "
            f"is {entry.sha256 or _sha256(path)}, expected {told.sha256}",
            reason="corrupt",
            hint="it was replaced by itself: push the delta again",
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(found: dict[str, Path], root: str, path: Path, *, force: bool) -> None:
    """Copy a delta out of the cache; its part files first, which are called as the root says."""
    _check_names(found, root, path, force=force)
    with staged(path, force=force) as work:
        for name, source in found.items():
            _copy(source, work if name == root else work.parent / PurePosixPath(name).name)


def _check_names(found: dict[str, Path], root: str, path: Path, *, force: bool) -> None:
    check_output(path, force=force, inputs=found.values())
    for name in found:
        part = path.parent / PurePosixPath(name).name
        if name != root and part.name.lower() == path.name.lower():
            raise OutputError(
                f"the output {path} has the name of a part file of the set",
                hint=f"name it otherwise: -o {path.with_name(DELTA_FILE)}",
            )
        if name != root:
            check_output(part, force=force, inputs=found.values())


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        digest = hashlib.sha256()
        while data := read.read(_COPY_BYTES):
            digest.update(data)
            written.write(data)
    if digest.hexdigest() != _sha256(target):
        raise OutputError(f"{target.name} was written, and reads otherwise: is the disk sound?")


def _write_folder(sets: dict[str, dict[str, Path]], folder: Path, *, force: bool) -> Path:
    for root in sets:
        (folder / root).parent.mkdir(parents=True, exist_ok=True)
    for root, found in sets.items():  # all of them before any is written
        _check_names(found, root, folder / root, force=force)
    for root, found in sets.items():
        _write(found, root, folder / root, force=force)
    return folder


@dataclass(frozen=True, slots=True)
class _Way:
    """Part of a chain that is to be got: onto what, how far, and where it goes."""

    store: HubStore
    listed: ManifestFile
    path: Path | None
    onto: LocationLike | None
    to: str | int


def _pull_chain(way: _Way, options: _Options, *, dry_run: bool) -> PullReport:
    """Get the links that are missing, and apply or squash them."""
    store, listed, path = way.store, way.listed, way.path
    if path is None and not dry_run:
        raise UsageError("an output is missing", hint="name it: -o OUT")
    last = link_number(listed, way.to)
    first, start = 0, way.onto
    if start is not None:
        first, start = _standing(listed, start, options, last)
    links = range(first + 1, last + 1)
    chosen = [listed.deltas[number - 1] for number in links]
    if not chosen:
        raise UsageError(
            f"nothing is missing: {way.onto or 'the base'} is where link {last} leads to"
        )
    names = [file.path for link in chosen for file in link.files]
    roots = [link.path for link in chosen]
    if dry_run or path is None:
        return _report(store, listed, names, roots, None, links=links)
    check_output(path, force=options.force, directory=start is not None)
    found = _verified(store, listed, roots, options)
    deltas = [found[root][root] for root in roots]
    applied = None
    if start is not None:
        applied = apply(
            start,
            deltas,
            path,
            threads=options.threads,
            force=options.force,
            progress=options.progress,
        )
    elif len(deltas) == 1:
        _write(found[roots[0]], roots[0], path, force=options.force)
    else:
        squash(deltas, path, threads=options.threads, force=options.force)
    return _report(store, listed, names, roots, path, links=links, applied=applied)


def _standing(
    listed: ManifestFile, onto: LocationLike, options: _Options, last: int
) -> tuple[int, LocationLike]:
    """How many links of a chain a checkpoint has behind it already."""
    location = at_commit(as_location(onto), listed.base.repo, listed.base.commit)
    with FileCheckpoint(location) as checkpoint:
        here = fingerprint(
            checkpoint, threads=options.threads, progress=options.progress
        ).fingerprint
    nodes = [listed.deltas[0].base, *(link.target for link in listed.deltas)]
    if here not in nodes[: last + 1]:
        raise UsageError(
            f"{location} has the fingerprint {here[:16]}…: it is not on the chain"
            + (f" up to link {last}" if here in nodes else ""),
            hint="sparsedelta history NAMESPACE/NAME lists the fingerprints of its links",
        )
    return nodes.index(here), location


def _report(
    store: HubStore,
    listed: ManifestFile | None,
    names: Sequence[str],
    roots: Sequence[str],
    path: Path | None,
    *,
    links: Sequence[int] = (),
    applied: ApplyReport | None = None,
) -> PullReport:
    base = target = ""
    told = {} if listed is None else {delta.path: delta for delta in listed.deltas}
    if roots and all(root in told for root in roots):
        base, target = told[roots[0]].base, told[roots[-1]].target
    elif roots:
        with DeltaReader(store.url(roots[0]), ahead=False) as reader:
            base, target = reader.manifest.base, reader.manifest.target
    return PullReport(
        repo=store.reference.repo,
        commit=store.commit,
        path=None if path is None else str(path),
        files=tuple(names),
        size=sum(store.files[name].size for name in names if name in store.files),
        base=base,
        target=target,
        base_repo=None if listed is None else listed.base.repo,
        base_commit=None if listed is None else listed.base.commit,
        links=tuple(links),
        applied=applied,
    )
