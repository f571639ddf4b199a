"""The client of the Hub, in our name: which Hub, as whom, with which cache; pinned revisions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from sparsedelta.errors import HubError, UsageError
from sparsedelta.hub.errors import Subject, asked
from sparsedelta.hub.references import COMMIT, Reference

LIBRARY: Final = "sparsedelta"


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """Which Hub is asked, as whom, and where its files are kept. Nothing of it is ever shown.

    Attributes:
        token: A token; None for the one of the environment or of ``hf auth login``; False for none.
        endpoint: The Hub; None for ``HF_ENDPOINT``.
        cache_dir: The cache; None for the client's, ``HF_HUB_CACHE``.
    """

    token: str | bool | None = None
    endpoint: str | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        token = self.token
        if isinstance(token, str) and (not token or not token.isascii() or " " in token):
            raise UsageError("the token is no token: it is empty, or holds other characters")
        if isinstance(token, str) and not token.isprintable():
            raise UsageError("the token is no token: it holds a line break or the like")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Account:
        """The account that storage options of a location tell."""
        return cls(
            *(options.get(key) for key in ("token", "endpoint", "cache_dir")),
        )

    @property
    def options(self) -> dict[str, Any]:
        """Storage options of a location that is read so: what :meth:`of` takes."""
        each = {"token": self.token, "endpoint": self.endpoint, "cache_dir": self.cache_dir}
        return {key: value for key, value in each.items() if value is not None}

    @property
    def hub(self) -> str:
        """The address of the Hub."""
        return str(self.endpoint or _constants().ENDPOINT).rstrip("/")

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        return Path(self.cache_dir or _constants().HF_HUB_CACHE).expanduser()

    def api(self) -> Any:  # noqa: ANN401 (its types differ between versions)
        """The client's ``HfApi``."""
        return import_module("huggingface_hub").HfApi(
            endpoint=self.endpoint,
            token=self.token,
            library_name=LIBRARY,
            library_version=_version(),
        )

    def headers(self) -> dict[str, str]:
        """What every request of ours carries."""
        found: dict[str, str] = import_module("huggingface_hub.utils").build_hf_headers(
            token=self.token, library_name=LIBRARY, library_version=_version()
        )
        return found

    def subject(self, what: str, reference: Reference, *, is_short: bool = False) -> Subject:
        """What a request is about."""
        return Subject(what, reference, self.hub, is_short)


def _version() -> str | None:
    try:
        return version(LIBRARY)
    except PackageNotFoundError:
        return None


def _constants() -> Any:  # noqa: ANN401 (a module)
    return import_module("huggingface_hub.constants")


def is_offline() -> bool:
    """Whether the user has forbidden the client the network."""
    constants = _constants()
    check = getattr(constants, "is_offline_mode", None)
    return bool(check() if check is not None else constants.HF_HUB_OFFLINE)


def pin(account: Account, reference: Reference, *, is_short: bool = False) -> str:
    """The commit that a revision means now.

    It is asked for, and remembered in the client's cache for when the Hub cannot be reached.

    Returns:
        40 hex digits.

    Raises:
        HubError: There is no such repository or revision, no access, or no way to find out.
    """
    if reference.is_pinned:
        assert reference.revision is not None  # noqa: S101 (that is what pinned means)
        return reference.revision
    subject = account.subject(f"look up {reference}", reference, is_short=is_short)
    remembered = _ref_path(account, reference)

    def ask() -> str:
        found = account.api().repo_info(reference.repo, revision=reference.revision)
        return str(found.sha)

    try:
        commit = asked(subject, ask, token=account.token)
    except HubError as error:
        if error.reason not in ("offline", "connection", "server"):
            raise
        try:
            commit = remembered.read_text(encoding="utf-8").strip()
        except OSError:
            raise error from error.__cause__
        if not COMMIT.fullmatch(commit):
            raise
        return commit
    if not COMMIT.fullmatch(commit):
        raise HubError(
            f"{account.hub} tells no commit of {reference}, but {commit!r:.80}",
            reason="server",
            hint="is HF_ENDPOINT a Hub?",
        )
    _remember(remembered, commit)
    return commit


def cache_folder(account: Account, reference: Reference) -> Path:
    """The folder of a repository in the client's cache."""
    return account.cache / f"models--{reference.repo.replace('/', '--')}"


def _ref_path(account: Account, reference: Reference) -> Path:
    return cache_folder(account, reference) / "refs" / (reference.revision or "main")


def _remember(path: Path, commit: str) -> None:
    # As the client does it; a cache that cannot be written to costs nothing but a request.
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == commit:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        spare = path.with_name(f".{path.name}.{os.getpid()}")
        spare.write_text(commit, encoding="utf-8")
        spare.replace(path)
    except OSError:
        return
