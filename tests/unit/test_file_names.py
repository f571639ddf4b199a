"""The rule of file names (spec section 3.6): what passes is a plain name on every system."""

from __future__ import annotations

import ntpath
import posixpath
import string
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsedelta.file_names import file_name_problem, is_weights_name, same_ignoring_case

FIRST: Final = frozenset(string.ascii_letters + string.digits + "_")
CHARACTERS: Final = FIRST | frozenset(".+-")
DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))]
)


def is_valid(name: str) -> bool:
    """The rule as the specification says it, without a regular expression."""
    return (
        1 <= len(name) <= 255
        and set(name) <= CHARACTERS
        and name[0] in FIRST
        and name[-1] != "."
        and name.partition(".")[0].lower() not in DEVICES
    )


@given(name=st.one_of(st.text(max_size=20), st.text(sorted(CHARACTERS), max_size=12)))
@example("")
@example("a\n")
def test_names_pass_exactly_by_the_rule(name: str) -> None:
    assert (file_name_problem(name) is None) == is_valid(name)


@given(name=st.text(sorted(CHARACTERS), min_size=1, max_size=12))
def test_what_passes_is_never_a_path(name: str) -> None:
    """On no system does it name another folder, a drive, a hidden file or a stream."""
    if file_name_problem(name) is not None:
        return
    for kind in (posixpath, ntpath):
        assert kind.basename(name) == name
        assert kind.normpath(name) == name
        assert not kind.isabs(name)
        assert kind.splitdrive(name)[0] == ""
    assert name not in (".", "..")
    assert ":" not in name


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "_private",
        "0",
        "A+b-C_9.x",
        "a..b",
        "console",
        "com",
        "com10",
        "lpt",
        "nul_",
        "x.con",
        "conf.json",
        "a" * 255,
    ],
)
def test_usual_names_pass(name: str) -> None:
    assert file_name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "holds more than letters"),
        (".", "begins with"),
        ("..", "begins with"),
        (".hidden", "begins with"),
        ("-rf", "begins with"),
        ("+x", "begins with"),
        ("a/b", "holds more"),
        ("../a", "holds more"),
        ("/etc/passwd", "holds more"),
        ("a\\b", "holds more"),
        ("C:a", "holds more"),
        ("a b", "holds more"),
        ("a\0", "holds more"),
        ("a\n", "holds more"),
        ("\na", "holds more"),
        ("é.json", "holds more"),
        ("\u017f", "holds more"),  # a letter whose upper case is S
        ("\u212a", "holds more"),  # the sign of Kelvin, whose lower case is k
        ("\u0663", "holds more"),  # a digit, but not one of ours
        ("a~1", "holds more"),
        ("%2e%2e", "holds more"),
        ("a*", "holds more"),
        ("a.", "ends with a dot"),
        ("a..", "ends with a dot"),
        ("a" * 256, "longer than 255"),
        ("con", "device"),
        ("CON", "device"),
        ("Con.json", "device"),
        ("aux.safetensors", "device"),
        ("NUL.tar.gz", "device"),
        ("prn", "device"),
        ("com0", "device"),
        ("COM9.x", "device"),
        ("lpt1", "device"),
    ],
)
def test_names_that_could_mean_something_else_are_refused_and_the_reason_told(
    name: str, reason: str
) -> None:
    assert reason in (file_name_problem(name) or "")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "MODEL.SAFETENSORS",
        "a.SafeTensors",
        "model.safetensors.index.json",
        "x.safetensors.INDEX.json",
        ".safetensors",
    ],
)
def test_weights_are_known_in_any_case(name: str) -> None:
    """On a file system that ignores case they would take the place of the weights."""
    assert is_weights_name(name)


@pytest.mark.parametrize("name", ["config.json", "safetensors", "model.safetensors.json", "a.bin"])
def test_other_files_are_no_weights(name: str) -> None:
    assert not is_weights_name(name)


def test_a_name_that_occurs_twice_where_case_is_ignored_is_found() -> None:
    assert same_ignoring_case([]) is None
    assert same_ignoring_case(["a", "b", "A.x"]) is None
    assert same_ignoring_case(["a", "b", "A", "B"]) == "A"
    assert same_ignoring_case(["Config.json", "config.JSON"]) == "config.JSON"
