"""`pull`: a delta of the Hub, at one commit, verified before it has its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsedelta.checkpoint import FileCheckpoint, local_paths
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import CheckpointError, UsageError, WrongBaseError
from sparsedelta.hub.at_hand import delta_locations
from sparsedelta.hub.chains import link_number
from sparsedelta.hub.checking import DeltaCheck
from sparsedelta.hub.client import Account
from sparsedelta.hub.copies import write_delta_files, write_folder
from sparsedelta.hub.fetched import fetch, set_names
from sparsedelta.hub.manifest_file import ManifestFile, read_manifest_file
from sparsedelta.hub.named_base import at_commit
from sparsedelta.hub.references import Reference, parse_reference, repository
from sparsedelta.hub.store import HubStore, pinned
from sparsedelta.hub.verified import NOWHERE, BaseAtHand, Verified, base_at_hand, placed, verify
from sparsedelta.locations import Location, LocationLike, Url, output_path
from sparsedelta.operations.apply import apply
from sparsedelta.operations.following import ApplyReport
from sparsedelta.operations.identity import fingerprint
from sparsedelta.operations.squash import squash
from sparsedelta.outputs import check_output
from sparsedelta.progress import Progress, silent


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
        notes: What the user should know.
        unread: Tensors of which the entries were not checked, as they are read with the base, and
            that was not at hand; nor was the content digest then. A note says what checks them.
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
    notes: tuple[str, ...] = ()
    unread: int = 0


def pull(
    repo: str | Reference | Url,
    out: LocationLike | None = None,
    *,
    revision: str | None = None,
    local_dir: LocationLike | None = None,
    to: str | int | None = None,
    onto: LocationLike | None = None,
    base: LocationLike | None = None,
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

    Entries that are read with the base (of a compact delta) are validated if that is named, or in
    the client's cache at the commit that the delta names. Otherwise the report says so.

    Args:
        repo: ``namespace/name``, or with ``@revision``.
        out: The file to write, part files of a set beside it; None: the delta stays in the cache.
        revision: Branch, tag or commit.
        local_dir: Folder to write the files to, by the names that they have in the repository.
        to: Of a chain: how far, as the number of a link or the fingerprint of its target; None: to
            the end. The links up to there are squashed into one delta.
        onto: A checkpoint on the chain: only the links that lead on from there are got. They are
            applied to it, and ``out`` is the checkpoint that they make.
        base: Where the delta, or the chain, starts: it is proven that this leads to its target. A
            model on the Hub is got for that. Needed to squash compact links, unless it is cached.
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
        WrongBaseError: ``base`` is not its base.
        CheckpointError: ``base`` cannot be read.
        StructureError: Links are compact, to be squashed, and their base is not at hand.
        OutputError: The output exists, or cannot be written.
        UsageError: Options that make no sense.
    """
    reference = repository(repo, what="delta")
    known = Account.of(repo.options) if isinstance(repo, Url) else Account()
    if revision is not None and reference.revision not in (None, revision):
        raise UsageError(
            f"{reference} names a revision, and so does --revision {revision}", hint="name it once"
        )
    _refuse_options(out, local_dir, to, onto, base)
    reference = Reference(reference.repo, revision or reference.revision)
    account = Account(
        known.token if token is None else token,
        endpoint or known.endpoint,
        cache_dir or known.cache_dir,
    )
    store = pinned(reference, account)
    options = _Options(
        account,
        DeltaCheck(
            f"it is not taken from {reference}",
            "it was pushed so: tell its author",
            threads,
            progress,
        ),
        None if base is None else placed(base, account),
        force=force,
    )
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
        start = None if onto is None else placed(onto, account)
        way = _Way(store, listed, path, start, len(roots) if to is None else to)
        return _pull_chain(way, options, dry_run=dry_run)
    if len(roots) > 1 and path is not None:
        raise UsageError(
            f"{reference} holds {len(roots)} deltas, and no sparsedelta.json that puts them in "
            "order",
            hint=f"name one: hf://{reference}/{roots[0]}; or --local-dir DIR",
        )
    if dry_run:
        names = [name for root in roots for name in set_names(store, root)]
        return _report(store, listed, names, roots, None)
    sets = fetch(store, listed, roots)
    verified = verify(sets, base_at_hand(store.url(roots[0]), options.base, account), options.check)
    where, inputs = sets[roots[-1]][roots[-1]], local_paths(options.base)
    if local_dir is not None:
        folder = write_folder(sets, output_path(local_dir), force=force, inputs=inputs)
        where = folder / roots[-1]
    elif path is not None:
        write_delta_files(sets[roots[0]], roots[0], path, force=force, inputs=inputs)
        where = path
    names = [name for each in sets.values() for name in each]
    return _report(store, listed, names, roots, where, verified=verified)


def _refuse_options(
    out: LocationLike | None,
    local_dir: LocationLike | None,
    to: str | int | None,
    onto: LocationLike | None,
    base: LocationLike | None,
) -> None:
    if out is not None and local_dir is not None:
        raise UsageError("an output is named twice", hint="either -o FILE, or --local-dir DIR")
    if local_dir is not None and not (onto is None and to is None):
        raise UsageError(
            "--to and --onto make one file of a chain, --local-dir gets its links as they are",
            hint="name the output: -o OUT",
        )
    if onto is not None and base is not None:
        raise UsageError(
            "the links are applied to one checkpoint, and every word is verified so: --onto and "
            "--base are two",
            hint="leave out --base",
        )


@dataclass(frozen=True, slots=True)
class _Options:
    account: Account
    check: DeltaCheck
    base: Location | None
    force: bool


def _urls(store: HubStore) -> list[Url]:
    return [each for each in delta_locations(store.url()) if isinstance(each, Url)]


@dataclass(frozen=True, slots=True)
class _Way:
    """Part of a chain that is to be got: onto what, how far, and where it goes."""

    store: HubStore
    listed: ManifestFile
    path: Path | None
    onto: Location | None
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
    sets = fetch(store, listed, roots)
    is_one = start is None and len(roots) == 1
    at_hand = base_at_hand(store.url(roots[0]), options.base, options.account)
    verified = verify(sets, at_hand if is_one or at_hand.is_told else NOWHERE, options.check)
    deltas = [sets[root][root] for root in roots]
    applied = None
    threads, progress = options.check.threads, options.check.progress
    if start is not None:
        applied = apply(
            start, deltas, path, threads=threads, force=options.force, progress=progress
        )
    elif is_one:
        inputs = local_paths(options.base)
        write_delta_files(sets[roots[0]], roots[0], path, force=options.force, inputs=inputs)
    else:
        _squash(deltas, path, at_hand, options)
    # What is read with the base has been read with it, where links were applied or squashed.
    verified = verified if is_one else Verified()
    return _report(
        store, listed, names, roots, path, links=links, applied=applied, verified=verified
    )


def _squash(deltas: Sequence[Path], path: Path, base: BaseAtHand, options: _Options) -> None:
    try:
        squash(
            deltas,
            path,
            base=base.location,
            threads=options.check.threads,
            force=options.force,
        )
    except (WrongBaseError, CheckpointError) as error:
        if base.is_told or base.location is None:
            raise
        raise type(error)(
            f"what the cache holds of {base.name} cannot serve as the base: {error.message}",
            hint="name the base: --base BASE",
        ) from error


def _standing(
    listed: ManifestFile, onto: Location, options: _Options, last: int
) -> tuple[int, Location]:
    """How many links of a chain a checkpoint has behind it already."""
    location = at_commit(onto, listed.base.repo, listed.base.commit)
    check = options.check
    with FileCheckpoint(location) as checkpoint:
        here = fingerprint(checkpoint, threads=check.threads, progress=check.progress).fingerprint
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
    verified: Verified | None = None,
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
        notes=() if verified is None or path is None else verified.notes(store, path),
        unread=0 if verified is None else verified.unread,
    )
