"""Stores of remote files: fsspec's, the Hub, and which of their failures are worth a retry."""

from __future__ import annotations

import errno
import itertools
import random
import time
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import import_module
from typing import Any, Final, TypeVar

from sparsedelta.errors import NoAccessError, RemoteError, SparseDeltaError, UsageError
from sparsedelta.hub.client import Account
from sparsedelta.hub.errors import explained
from sparsedelta.hub.references import is_hub, parse_reference
from sparsedelta.hub.store import HubStore
from sparsedelta.locations import Url

_Result = TypeVar("_Result")

_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.25
"""Seconds before the second attempt, on average; each further pause is twice as long."""

_CONNECT_SECONDS: Final = 30
_SILENT_SECONDS: Final = 30
"""How long a web server may say nothing before a request counts as failed."""

_PACKAGES: Final = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface-hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}

_FINAL_STATUS: Final = range(400, 500)
_ABSENT_STATUS: Final = frozenset({404, 410})
_DENIED_STATUS: Final = frozenset({401, 403, 407})
_CHANGED_STATUS: Final = 412
_BUSY_STATUS: Final = frozenset({408, 425, 429})
_FINAL_ERRNO: Final = frozenset(
    {errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EPERM, errno.ENOTSUP}
)
_FINAL_NAMES: Final = frozenset(
    {
        "OfflineModeIsEnabled",  # the user has forbidden the Hub's client the network
        "ParamValidationError",  # botocore's
        "NoRegionError",
    }
)
_FINAL_TYPES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    TypeError,
    ValueError,
)


class Fault(Enum):
    """What a failure of a store means."""

    TRANSIENT = "may pass: a connection lost, a server overloaded"
    ABSENT = "there is no such file"
    DENIED = "there is no access"
    CHANGED = "the file is another than it was"
    FINAL = "will be the same next time"


def connect(url: Url) -> tuple[Any, str]:
    """The file system that a URL leads to, and the path in it.

    Returns:
        An ``fsspec.AbstractFileSystem``, which fsspec keeps for the next URL, or a
        :class:`~sparsedelta.hub.store.HubStore`; and a path.

    Raises:
        UsageError: The protocol is not known.
        RemoteError: The package for it is not installed; its options are wrong.
    """
    if is_hub(url):
        store = HubStore(url)
        return store, store.path
    import fsspec.core  # noqa: PLC0415 (slow, and of no use to local files)

    try:
        fs, path = fsspec.core.url_to_fs(url.text, **_options(url))
    except ImportError as error:
        package = _PACKAGES.get(url.protocol)
        raise RemoteError(
            f"cannot read {url}: {url.protocol}:// needs a package that is not installed",
            hint=f"pip install {package}" if package else url.redact(str(error)),
        ) from None
    except ValueError as error:
        if url.protocol in fsspec.available_protocols():
            raise _failure(url, error, Fault.FINAL) from None
        raise UsageError(
            f"cannot read {url}: {url.protocol}:// is no protocol that fsspec knows",
            hint="a local file of such a name is ./NAME",
        ) from None
    except Exception as error:  # noqa: BLE001 (every package raises what it likes)
        raise _failure(url, error, Fault.FINAL) from None
    return fs, str(path)


def _options(url: Url) -> dict[str, Any]:
    options = dict(url.options)
    if url.is_web:
        configured = import_module("fsspec.config").conf.get(url.protocol, {})
        if "client_kwargs" not in options and "client_kwargs" not in configured:
            # Its own limit is on the whole of a request, which says nothing of a slow network.
            timeout = import_module("aiohttp").ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
            )
            options["client_kwargs"] = {"timeout": timeout}
    return options


def attempt(url: Url, action: Callable[[], _Result]) -> _Result:
    """The result of a request, which is made again while its failure may pass.

    Args:
        url: What it reads, for messages.
        action: The request.

    Raises:
        NoAccessError: There is no such file, or no access to it.
        RemoteError: It is not to be had, or was changed.
    """
    pause = _FIRST_PAUSE
    for number in itertools.count(1):
        try:
            return action()
        except SparseDeltaError:
            raise
        except Exception as error:  # noqa: BLE001 (what a store raises is up to its library)
            failure = error
        fault, cause = diagnose(failure)
        if fault is not Fault.TRANSIENT or number == _ATTEMPTS:
            break
        # Jitter: many readers that failed together must not come back together.
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        pause *= 2
    # Out of the handler, so that an error that tells secrets is not kept as the context.
    raise _hub_failure(url, failure) if is_hub(url) else _failure(url, cause, fault)


def diagnose(error: BaseException) -> tuple[Fault, BaseException]:
    """What a failure means, and the error that tells it: the innermost cause that tells anything.

    File systems wrap what happened, and some call everything a file that is not there.
    """
    for cause in reversed(list(_causes(error))):
        fault = _own_fault(cause)
        if fault is not None:
            return fault, cause
    return Fault.FINAL, error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _own_fault(error: BaseException) -> Fault | None:
    fault = _fault_of_status(_status(error))
    if fault is None:
        if type(error).__name__ == "FileExpired":
            fault = Fault.CHANGED
        elif isinstance(error, FileNotFoundError):
            fault = Fault.ABSENT
        elif isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            fault = Fault.DENIED
        elif _is_final(error):
            fault = Fault.FINAL
        elif not isinstance(error, _FINAL_TYPES):
            fault = Fault.TRANSIENT
    return fault


def _is_final(error: BaseException) -> bool:
    if type(error).__name__ in _FINAL_NAMES:
        return True
    return isinstance(error, OSError) and error.errno in _FINAL_ERRNO


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, botocore, httpx or requests tells of."""
    status = getattr(error, "status", None)
    response = getattr(error, "response", None)
    if status is None and isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif status is None:
        status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _fault_of_status(status: int | None) -> Fault | None:
    if status is None:
        return None
    if status in _ABSENT_STATUS:
        return Fault.ABSENT
    if status in _DENIED_STATUS:
        return Fault.DENIED
    if status == _CHANGED_STATUS:
        return Fault.CHANGED
    is_final = status in _FINAL_STATUS and status not in _BUSY_STATUS
    return Fault.FINAL if is_final else Fault.TRANSIENT


def _failure(url: Url, error: BaseException, fault: Fault) -> RemoteError:
    reason = url.redact(str(error)) or type(error).__name__
    if fault is Fault.CHANGED:
        return changed(url)
    if fault is Fault.ABSENT:
        return NoAccessError(f"cannot read {url}: it is not there", hint="check the URL")
    if fault is Fault.DENIED:
        return NoAccessError(
            f"cannot read {url}: no access ({reason:.200})",
            hint="give credentials as fsspec takes them: by the environment, by its configuration, "
            "or with sparsedelta.Url(URL, options)",
        )
    times = f"after {_ATTEMPTS} attempts: " if fault is Fault.TRANSIENT else ""
    return RemoteError(
        f"cannot read {url}: {times}{reason:.400}",
        hint="is the network up, and the store? try again later" if times else None,
    )


def _hub_failure(url: Url, error: BaseException) -> RemoteError:
    reference = parse_reference(url)
    subject = Account.of(url.options).subject(f"read {reference.path}", reference)
    return explained(error, subject, token=url.options.get("token"))


def changed(url: Url) -> RemoteError:
    """The error of a remote file that is another than when it was opened."""
    return RemoteError(
        f"{url} changed while it was being read", hint="wait until it is written, and run it again"
    )
