"""Which failures of a store are tried again, and what becomes of the others."""

from __future__ import annotations

import errno
import sys
import time
import traceback
from collections.abc import Callable
from http.client import IncompleteRead

import pytest

from sparsedelta.errors import NoAccessError, RemoteError, UsageError
from sparsedelta.locations import Url
from sparsedelta.stores import Fault, attempt, connect, diagnose

URL = Url("s3://key:secret@bucket/key?sig=abc")


class StatusError(Exception):
    """As aiohttp's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status} of {URL.text}")
        self.status = status


class BotoError(Exception):
    """As botocore's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """As botocore's."""


class ParamValidationError(Exception):
    """As botocore's."""


class FileExpired(OSError):  # noqa: N818 (as s3fs's)
    """As s3fs's."""


def caused(error: Exception, cause: Exception) -> Exception:
    """An error that was raised from another."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ConnectionResetError(), Fault.TRANSIENT),
        (TimeoutError(), Fault.TRANSIENT),
        (IncompleteRead(b""), Fault.TRANSIENT),
        (OSError(errno.EIO, "?"), Fault.TRANSIENT),
        (StatusError(500), Fault.TRANSIENT),
        (StatusError(503), Fault.TRANSIENT),
        (StatusError(429), Fault.TRANSIENT),
        (StatusError(408), Fault.TRANSIENT),
        (BotoError(503), Fault.TRANSIENT),
        (caused(FileNotFoundError("u"), StatusError(503)), Fault.TRANSIENT),
        (caused(FileNotFoundError("u"), ConnectionRefusedError()), Fault.TRANSIENT),
        (caused(OSError(errno.EBUSY, "slow down"), BotoError(503)), Fault.TRANSIENT),
        (FileNotFoundError("u"), Fault.ABSENT),
        (caused(FileNotFoundError("u"), KeyError("u")), Fault.ABSENT),
        (StatusError(404), Fault.ABSENT),
        (StatusError(410), Fault.ABSENT),
        (caused(FileNotFoundError("u"), BotoError(404)), Fault.ABSENT),
        (PermissionError(), Fault.DENIED),
        (StatusError(401), Fault.DENIED),
        (caused(FileNotFoundError("u"), StatusError(403)), Fault.DENIED),
        (NoCredentialsError(), Fault.DENIED),
        (StatusError(412), Fault.CHANGED),
        (FileExpired(errno.EBUSY, "?"), Fault.CHANGED),
        (caused(OSError(errno.EINVAL, "?"), BotoError(412)), Fault.CHANGED),
        (StatusError(400), Fault.FINAL),
        (StatusError(416), Fault.FINAL),
        (OSError(errno.EINVAL, "?"), Fault.FINAL),
        (ValueError("no ranges"), Fault.FINAL),
        (TypeError(), Fault.FINAL),
        (ParamValidationError(), Fault.FINAL),
    ],
)
def test_faults(error: Exception, fault: Fault) -> None:
    assert diagnose(error)[0] is fault


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def failing(times: int, error: Exception) -> Callable[[], str]:
    """A request that fails so often, then gives its number."""
    calls = 0

    def request() -> str:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return str(calls)

    return request


def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses(pauses: list[float]) -> None:
    assert attempt(URL, failing(4, ConnectionResetError())) == "5"
    assert len(pauses) == 4
    for number, pause in enumerate(pauses):
        assert 0.5 <= pause / (0.25 * 2**number) <= 1.5
    assert len(set(pauses)) == 4


def test_it_is_not_tried_for_ever(pauses: list[float]) -> None:
    with pytest.raises(RemoteError, match="after 5 attempts: status 503") as error:
        attempt(URL, failing(5, StatusError(503)))
    assert not isinstance(error.value, NoAccessError)
    assert len(pauses) == 4


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_will_not_pass_is_tried_once(status: int, pauses: list[float]) -> None:
    with pytest.raises(NoAccessError) as error:
        attempt(URL, failing(1, StatusError(status)))
    assert error.value.exit_code == 4
    assert error.value.hint
    assert not pauses


@pytest.mark.parametrize("status", [400, 403, 404, 412, 503])
def test_no_secret_is_told(status: int) -> None:
    with pytest.raises(RemoteError) as error:
        attempt(URL, failing(5, StatusError(status)))
    assert "secret" not in str(error.value)
    assert "abc" not in str(error.value)
    assert "s3://***@bucket/key?***" in str(error.value)
    # nor in a traceback, by the error that it came of
    assert "key:secret" not in "".join(traceback.format_exception(error.value))


def test_errors_of_ours_pass_through(pauses: list[float]) -> None:
    ours = UsageError("x")
    with pytest.raises(UsageError) as error:
        attempt(URL, failing(1, ours))
    assert error.value is ours
    assert not pauses


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(RemoteError, match="gs:// needs a package that is not installed") as error:
        connect(Url("gs://bucket/x"))
    assert error.value.hint == "pip install gcsfs"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="nonsense:// is no protocol"):
        connect(Url("nonsense://x"))


def test_options_that_the_store_does_not_know() -> None:
    with pytest.raises(RemoteError, match="cannot read github://x"):
        connect(Url("github://x"))
