"""`push`: a delta, what is said of it and its model card, as one commit on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from sparsedelta.checkpoint import CheckpointReader
from sparsedelta.console import format_bytes
from sparsedelta.delta import Delta
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import HubError, UsageError, WrongBaseError
from sparsedelta.hub.at_hand import DELTA_FILE
from sparsedelta.hub.base_check import BaseCheck, check_base
from sparsedelta.hub.card import license_of
from sparsedelta.hub.checking import DeltaCheck, given_base, not_checked
from sparsedelta.hub.client import Account
from sparsedelta.hub.commits import Committed, RepositoryState, commit_changes, look
from sparsedelta.hub.errors import asked
from sparsedelta.hub.named_base import named_base
from sparsedelta.hub.plan import Plan, Pushed, added_files
from sparsedelta.hub.references import Reference, is_hub, parse_reference, repository
from sparsedelta.locations import LocationLike, Url, as_location
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.standpoint import refuse_part
from sparsedelta.operations.write_delta import write_delta
from sparsedelta.progress import Progress, silent

Check = Literal["quick", "full", "none"]

_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did.

    Attributes:
        repo: ``namespace/name``.
        url: Where it can be looked at.
        commit: The commit that holds it; None in a dry run that would make one.
        committed: Whether there was something to commit.
        pull_request: Address of the pull request, or None.
        files: Files that were written.
        deleted: Files of the delta before it that are not part of this one.
        size: Bytes of the delta.
        license: The license that the card names, or None.
        base: What was found out about the base; None if no model is known.
        notes: What the user should know.
        unread: Tensors of which the entries were not checked, as they are read with the base, and
            that was not at hand; nor was the content digest then. A note says what checks them.
    """

    repo: str
    url: str
    commit: str | None
    committed: bool
    pull_request: str | None
    files: tuple[str, ...]
    deleted: tuple[str, ...]
    size: int
    license: str | None
    base: BaseCheck | None
    notes: tuple[str, ...]
    unread: int


def push(
    delta: LocationLike | DeltaReader,
    repo: str | Reference,
    *,
    base: str | Path | None = None,
    chain: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    tag: str | None = None,
    license: str | None = None,  # noqa: A002 (what the Hub calls it)
    check: Check = "quick",
    token: str | bool | None = None,
    endpoint: str | None = None,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> PushReport:
    """Push a delta to the Hub: its files, ``sparsedelta.json`` and the model card, in one commit.

    The delta is validated first, and its base compared with the model on the Hub that it names.
    Entries that are read with the base (of a compact delta) are validated if that is at hand: a
    local path, in the client's cache, or of 8 MB at most. A repository that is not there is made.
    Of a model card that is there all is kept but a marked block. Where nothing is new, no commit is
    made.

    Args:
        delta: The delta: a local file or the root of a set, or a reader of one.
        repo: ``namespace/name``, or with ``@branch``.
        base: The model that it starts from, ``namespace/name[@revision]``; None: what the delta
            says. Or where that lies here: the delta is validated with it, and says which it is.
        chain: Add it to a chain, as the link after the last one.
        private: Whether a repository that is made is private; None: as the account has it.
        revision: Branch to commit to; it is made if it is not there. None: the main branch.
        create_pr: Open a pull request instead of committing to the branch.
        message: First line of the commit's message.
        tag: Give the commit this tag, too.
        license: License that the card names; None: its own, or that of the base.
        check: How the base is compared: see :func:`~sparsedelta.hub.base_check.check_base`.
            ``"full"`` reads all of it; ``"none"`` looks up its commit only.
        token: A token; None for ``HF_TOKEN`` or the one of ``hf auth login``.
        endpoint: The Hub; None for ``HF_ENDPOINT``.
        threads: Worker threads of the validation; None for the cores of this process.
        dry_run: Check everything, and say what would be done.
        progress: Told how many bytes of the delta were validated, and of how many.

    Raises:
        FormatError: The delta breaks a rule.
        WrongBaseError: The model on the Hub is not its base.
        UsageError: Options that make no sense; a link that does not follow the last one.
        HubError: The Hub refuses, or cannot be reached.
    """
    target = _target(repo, revision, create_pr=create_pr)
    if check not in ("quick", "full", "none"):
        raise UsageError(f"check is {check!r}, expected 'quick', 'full' or 'none'")
    account = Account(token, endpoint)
    with ExitStack() as stack:
        reader = open_delta(delta)
        if reader is not delta:
            stack.enter_context(reader)
        refuse_part(reader)
        operations = added_files(reader)
        here, named = given_base(base)
        validity = DeltaCheck("it is not pushed", None, threads, progress)
        # Entries that are read with the base are read once: when it is known where that is.
        is_later = reader.needs_base and here is None
        unread = 0 if is_later else validity.refuse_invalid(reader.path, here)
        state = look(account, target)
        if chain and state.listed is not None:
            found, notes = (
                None,
                list[str](),
            )  # its base is the target of the last link, or it is refused
        else:
            found, notes = _checked_base(reader, named, account, check)
        if is_later:
            unread = validity.refuse_invalid(reader.path, _at_hand(found, account))
        if unread:
            where = "BASE" if found is None else f"{found.repo}@{found.commit}"
            command = f"sparsedelta validate {reader.path} --base {where}"
            notes.append(not_checked(unread, command, "push"))
        pushed = Pushed.of(reader, operations, found)
    base_card = {} if found is None else _base_card(account, found)
    _check_tag(account, state, tag)
    plan = Plan(pushed, target.repo, license, base_card, is_chain=chain)
    changes = plan.changes(state)
    is_new = not state.is_unchanged(changes)
    made: Committed | None = None
    if is_new and not dry_run:
        how = {"message": message, "private": private, "create_pr": create_pr}
        state, changes, made = _commit(account, state, plan, how)
    commit = state.commit if made is None else made.commit
    if tag is not None and not dry_run and commit is not None and not create_pr:
        _tag(account, target, tag, commit)
    license_named = license_of(state.card, license, base_card)
    if license_named is None:
        notes.append("the card names no license: give one with --license")
    return PushReport(
        repo=target.repo,
        url=f"{account.hub}/{target.repo}",
        commit=None if dry_run and is_new else commit,
        committed=is_new,
        pull_request=None if made is None else made.pull_request,
        files=tuple(state.different(changes)),
        deleted=tuple(path for path, change in changes.items() if change is None),
        size=pushed.listed.size,
        license=license_named,
        base=found,
        notes=tuple(notes),
        unread=unread,
    )


def push_changes(
    delta: Delta,
    repo: str | Reference,
    base: LocationLike | CheckpointReader,
    **options: Any,  # noqa: ANN401
) -> PushReport:
    """Write a delta in memory for its base, and push it; see :meth:`Delta.push_to_hub`.

    Raises:
        WrongBaseError: ``base`` is not its base.
    """
    location = None if not isinstance(base, str | Path | Url) else as_location(base)
    named = options.pop("base_repo", None)
    if named is None and isinstance(location, Url) and is_hub(location):
        named = str(parse_reference(location))
    with TemporaryDirectory(prefix="sparsedelta-") as folder:
        path = Path(folder) / DELTA_FILE
        written = write_delta(
            base if location is None else location,
            delta.tensors.values(),
            path,
            metadata=delta.metadata,
        )
        if (written.base, written.target) != (delta.base, delta.target):
            raise WrongBaseError(
                f"{location or 'the checkpoint'} is not the base of the delta (SD501): it leads "
                f"from {written.base[:16]}… to {written.target[:16]}…, expected "
                f"{delta.base[:16]}… to {delta.target[:16]}…"
            )
        return push(path, repo, base=named, **options)


def _commit(
    account: Account, state: RepositoryState, plan: Plan, how: Mapping[str, Any]
) -> tuple[RepositoryState, dict[str, Any], Committed | None]:
    """Commit; if another commit came first, look again, and go on if that makes sense.

    Returns:
        What was there before, what was changed of it, and the commit; None if it was found there
        after the answer had been lost.
    """
    for attempt in range(_ATTEMPTS):
        changes = plan.changes(state)
        message = how["message"] or plan.message(state)
        try:
            return (
                state,
                changes,
                commit_changes(account, state, changes, **{**how, "message": message}),
            )
        except HubError as error:
            if error.reason not in ("stale", "connection", "server", "rate-limit"):
                raise
            again = look(account, state.reference)
            if again.is_unchanged(changes) and not how["create_pr"]:
                return replace(state, commit=again.commit), changes, None
            if how["create_pr"] or attempt + 1 == _ATTEMPTS or not plan.goes_on(state, again):
                raise
            state = again
    raise AssertionError  # the last attempt returns or raises


def _target(repo: str | Reference, revision: str | None, *, create_pr: bool) -> Reference:
    target = repository(repo)
    if revision is not None and target.revision not in (None, revision):
        raise UsageError(
            f"{target} names a revision, and so does --revision {revision}", hint="name it once"
        )
    target = replace(target, revision=revision or target.revision)
    if target.is_pinned:
        raise UsageError(
            f"{target.revision} is a commit, expected a branch to push to",
            hint="name a branch with --revision, or none for main",
        )
    if create_pr and target.revision not in (None, "main"):
        raise UsageError(
            "a pull request is made against the main branch",
            hint="leave out --revision, or --create-pr",
        )
    return target


def _at_hand(base: BaseCheck | None, account: Account) -> Url | None:
    """The base on the Hub, if its words are in the cache, or few."""
    if base is None or not base.at_hand:
        return None
    return Reference(base.repo, base.commit).url({**account.options, "stream": True})


def _checked_base(
    reader: DeltaReader, base: str | None, account: Account, check: Check
) -> tuple[BaseCheck | None, list[str]]:
    told = named_base(reader)
    if base is not None:
        reference = repository(base, what="base")
    elif told is not None and told.repo is not None:
        reference = repository(told.repo, what="base")
        reference = replace(reference, revision=told.commit)
    else:
        return None, ["the delta does not say what model it starts from: --base NAMESPACE/NAME"]
    url = reference.url(account.options)
    found = check_base(reader, url, full=check == "full", nothing=check == "none")
    notes = {
        "nothing": [f"the base {found.repo} was not compared with what the delta claims"],
        "sample": [
            f"of the base {found.repo}, {format_bytes(found.nbytes)} were compared, and all names, "
            "dtypes and shapes; --full-check-base compares all of it"
        ],
    }
    return found, list(notes.get(found.how, ()))


def _base_card(account: Account, base: BaseCheck) -> dict[str, Any]:
    reference = Reference(base.repo, base.commit)
    subject = account.subject(f"read the card of {base.repo}", reference)

    def ask() -> dict[str, Any]:
        card = account.api().model_info(base.repo, revision=base.commit).card_data
        return {} if card is None else dict(card.to_dict())

    return asked(subject, ask, token=account.token)


def _check_tag(account: Account, state: RepositoryState, tag: str | None) -> None:
    if tag is None or state.commit is None:
        return
    subject = account.subject(f"look up the tag {tag}", state.reference)
    refs = asked(
        subject, lambda: account.api().list_repo_refs(state.reference.repo), token=account.token
    )
    if any(each.name == tag and each.target_commit != state.commit for each in refs.tags):
        raise UsageError(
            f"{state.reference.repo} has a tag {tag!r} already, at another commit",
            hint="choose another name: a tag that was published stays",
        )


def _tag(account: Account, target: Reference, tag: str, commit: str) -> None:
    subject = account.subject(f"make the tag {tag}", target)
    asked(
        subject,
        lambda: account.api().create_tag(target.repo, tag=tag, revision=commit, exist_ok=True),
        token=account.token,
    )
