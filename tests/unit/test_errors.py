"""Errors: codes and exit codes are promises to programs; messages are for people."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

import sparsedelta
from sparsedelta import errors
from sparsedelta.errors import (
    DAMAGED,
    BusyError,
    CheckpointError,
    DeltaGivenError,
    FormatError,
    HubError,
    IdentityError,
    NoAccessError,
    NotFiniteError,
    NotInvertibleError,
    OutputError,
    RankError,
    RemoteError,
    SparseDeltaError,
    StructureError,
    UnfinishedError,
    UnsupportedError,
    UsageError,
    VerificationError,
    WrongBaseError,
)

PROMISED: dict[type[SparseDeltaError], tuple[str, int]] = {
    UsageError: ("usage", 2),
    BusyError: ("busy", 1),
    OutputError: ("output", 1),
    CheckpointError: ("checkpoint", 1),
    DeltaGivenError: ("delta-given", 1),
    UnfinishedError: ("unfinished", 1),
    RemoteError: ("remote", 1),
    NoAccessError: ("no-access", 4),
    HubError: ("hub", 4),
    StructureError: ("structure", 1),
    FormatError: ("format", 3),
    UnsupportedError: ("unsupported", 3),
    WrongBaseError: ("wrong-base", 3),
    VerificationError: ("verification", 3),
    NotFiniteError: ("not-finite", 3),
    NotInvertibleError: ("not-invertible", 1),
    RankError: ("rank", 1),
}
each_class = pytest.mark.parametrize("kind", PROMISED)


def classes() -> list[type[SparseDeltaError]]:
    """Every error class of the module."""
    return [
        item
        for _, item in inspect.getmembers(errors, inspect.isclass)
        if issubclass(item, SparseDeltaError)
    ]


def make(kind: type[SparseDeltaError], message: str, hint: str | None = None) -> SparseDeltaError:
    """An error of a kind."""
    if issubclass(kind, FormatError):
        return kind("SD403", message, hint=hint)
    if issubclass(kind, HubError):
        return kind(message, reason="repository", hint=hint)
    return kind(message, hint=hint)


def test_every_concrete_class_is_promised() -> None:
    assert set(classes()) - {SparseDeltaError, IdentityError} == set(PROMISED)


@each_class
def test_code_and_exit_code_are_as_promised(kind: type[SparseDeltaError]) -> None:
    error = make(kind, "x")
    assert (error.code, error.exit_code) == PROMISED[kind]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in classes()]
    assert len(codes) == len(set(codes))


def test_codes_are_words_for_programs() -> None:
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code) for kind in classes())


def test_every_class_says_what_it_means() -> None:
    assert all(kind.__doc__ for kind in classes())


def test_the_drawing_of_the_module_names_every_class() -> None:
    assert errors.__doc__
    for kind in classes():
        assert kind.__name__ in errors.__doc__, kind


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        (UnsupportedError, FormatError),
        (WrongBaseError, IdentityError),
        (VerificationError, IdentityError),
    ],
)
def test_kinds_of_kinds(kind: type[Exception], parent: type[Exception]) -> None:
    assert issubclass(kind, parent)


def test_no_error_of_ours_is_mistaken_for_one_of_python() -> None:
    """``except ValueError`` or ``except OSError`` around our calls catches bugs, not answers."""
    for kind in classes():
        assert kind.__mro__[-4:] == (SparseDeltaError, Exception, BaseException, object)


def test_every_class_is_public() -> None:
    for kind in classes():
        assert getattr(sparsedelta, kind.__name__) is kind
        assert kind.__name__ in sparsedelta.__all__


@each_class
def test_a_message_without_hint(kind: type[SparseDeltaError]) -> None:
    error = make(kind, "what happened")
    assert error.hint is None
    assert str(error) == error.message
    assert error.message.endswith("what happened")


@each_class
def test_a_hint_is_the_last_line(kind: type[SparseDeltaError]) -> None:
    error = make(kind, "what happened", "do this")
    assert str(error) == f"{error.message}\nhint: do this"


@each_class
def test_errors_pass_between_processes(kind: type[SparseDeltaError]) -> None:
    """A pool of processes pickles what its workers raise."""
    error = make(kind, "what happened", "do this")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
    assert type(copy) is kind
    assert (copy.message, copy.hint, str(copy)) == (error.message, error.hint, str(error))


def test_a_format_error_begins_with_its_rule() -> None:
    error = FormatError("SD403", "an index is out of its block")
    assert error.rule == "SD403"
    assert error.message == "SD403: an index is out of its block"


def test_a_format_error_is_told_its_file() -> None:
    error = FormatError("SD403", "an index is out of its block")
    error.locate("dir/x.delta")
    assert error.message == "SD403: dir/x.delta: an index is out of its block"
    assert error.hint == DAMAGED


def test_a_located_format_error_keeps_rule_and_hint() -> None:
    error = FormatError("SD403", "an index is out of its block", hint="get it again")
    error.locate("x")
    assert error.rule == "SD403"
    assert str(error) == "SD403: x: an index is out of its block\nhint: get it again"


@pytest.mark.parametrize(
    ("kind", "rule"), [(WrongBaseError, "SD501"), (VerificationError, "SD502")]
)
def test_identity_errors_know_their_rule(kind: type[IdentityError], rule: str) -> None:
    assert kind("x").rule == rule
