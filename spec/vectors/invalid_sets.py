"""Invalid vectors: sets whose files do not belong together, SD601 to SD603, and rules in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vector_encoder import Hook, build, identity
from vector_records import P, R, X, bare, edited, whole
from vector_samples import Invalid, put, stream, tensor
from vector_sets import SET_ID, build_set, part_name

A = X("U8", [3], b"abc")
SECOND = part_name(2)


def two() -> list[list[R]]:
    """The records of two part files."""
    return [
        [edited(name, "U8", [3], b"abc", [P("difference", {k: 1})])] for k, name in enumerate("vw")
    ]


def _resized(step: int) -> Hook:
    return lambda place: put(place["parts"][0]["size"] + step, "parts", 0, "size")(place)


def _exchanged(place: dict[str, Any]) -> dict[str, Any]:
    return place | {"parts": [place["parts"][k] | {"name": part_name(2 - k)} for k in (0, 1)]}


def invalid_sets() -> Iterator[Invalid]:
    """Rules SD601 to SD603."""
    rest = [R("z", A, A)]

    def bad(name: str, why: str, groups: list[list[R]] | None = None, **how: Any) -> Invalid:  # noqa: ANN401
        return name, why, build_set(groups or two(), rest, name=name, **how)

    whole_set = build_set(two(), rest, name="sd601-missing")
    del whole_set[SECOND]
    yield "sd601-missing", "a part file is missing", whole_set
    whole_set = build_set(two(), rest, name="sd601-other-name")
    whole_set["part-3.safetensors"] = whole_set.pop(SECOND)
    yield "sd601-other-name", "a part file under another name", whole_set
    whole_set = build_set(two(), rest, name="sd601-folder")
    whole_set[f"{SECOND}/inside"] = whole_set.pop(SECOND)
    yield "sd601-folder", "a folder in the place of a part file", whole_set
    for change, number in (("shorter", -1), ("longer", 1)):
        yield bad(f"sd601-{change}", "another size", place=_resized(number))

    yield bad(
        "sd602-manifest", "another manifest digest", place=put("0" * 64, "parts", 1, "manifest")
    )
    for name, why, changes in (
        ("id", "another id", {"place": {"id": "b" * 64, "part": 2, "parts": []}}),
        ("number", "another number", {"place": {"id": SET_ID, "part": 3, "parts": []}}),
        ("lean", "lean, and the root is not", {"lean": True}),
        ("version", "another minor version", {"version": "1.1"}),
        ("profile", "another profile", {"profile": "other"}),
    ):
        yield bad(f"sd602-{name}", why, parts={2: changes})
    base, target, _ = identity([r for group in two() for r in group] + rest)
    for key, claim in (
        ("base", {"base": "0" * 64, "target": target}),
        ("target", {"base": base, "target": "0" * 64}),
    ):
        yield bad(f"sd602-{key}", f"another {key}", parts={2: {"claim": claim}})
    yield bad("sd602-exchanged", "part files under each other's name", place=_exchanged)
    listed = [{"name": "x", "size": 0, "manifest": "0" * 64}]
    root = {"place": {"id": SET_ID, "part": 0, "parts": listed}}
    yield bad("sd602-root-as-part", "a root as a part file", parts={2: root})
    alone = [[tensor("w", "U8", 3, P("difference", {1: 1}))]]
    file = build_set(alone, [], name="sd602-no-set", parts={1: {"place": None}})
    yield "sd602-no-set", "a file of no set", file

    twice = [[tensor("w", "U8", 3, P("difference", {k: 1}))] for k in (0, 1)]
    yield bad("sd603-name", "a name in two part files", twice)
    sources = [[R(name, A, A, source="a")] for name in "bc"]
    yield bad("sd603-from", "a base name in two part files", sources)
    sources = [[R("b", A, A, source="a")], [R("a", None, A, [whole("new")])]]
    yield bad("sd603-from-new", "a base name in two part files, of which one is new", sources)
    yield bad(
        "sd603-untouched",
        "a name touched and untouched",
        [[edited("z", "U8", [3], b"abc", [P("difference", {0: 1})])]],
    )
    yield bad("sd603-from-untouched", "from an untouched name", [[R("y", A, A, source="z")]])
    yield bad("sd603-nnz", "another sum", facts=put(3, "nnz"))
    yield bad(
        "sd603-invertible-false", "false, and all can be inverted", facts=put(False, "invertible")
    )
    lost = [*two(), [R("x", A, None, [bare("drop")])]]
    yield bad(
        "sd603-invertible-true",
        "true, and words are forgotten",
        lost,
        facts=put(True, "invertible"),
    )


def invalid_in_sets() -> Iterator[Invalid]:
    """Other rules, of the merged set or of one of its part files."""
    rest = [R("z", A, A)]

    def bad(name: str, why: str, groups: list[list[R]] | None = None, **how: Any) -> Invalid:  # noqa: ANN401
        return name, why, build_set(groups or two(), rest, name=name, **how)

    claim = {"base": "0" * 64, "target": "1" * 64}
    parts = {number: {"claim": claim} for number in (1, 2)}
    yield bad("sd306-set", "fingerprints of another delta", claim=claim, parts=parts)
    copy = [
        [R("m", None, A, [bare("new", "a", A)])],
        [edited("a", "U8", [3], b"xyz", [P("difference", {0: 1})])],
    ]
    yield bad("sd308-set", "another tensor than in the other part file", copy)
    copy = [[R("m", None, A, [bare("new", "q", A)])], two()[0]]
    yield bad("sd308-set-missing", "from a name that no part file has", copy)
    same = [two()[0], [R("w", A, A, [P("replace", {0: 97}, value="planes")])]]
    yield bad("sd307-set", "a touched tensor that stays the same, in a part file", same)
    yield bad(
        "sd106-set-part", "another form, in a part file", parts={2: {"meta": put("x", "sd.nnz")}}
    )
    yield bad("sd211-set-part", "another sum, in a part file", parts={2: {"facts": put(2, "nnz")}})
    hook = put("0" * 64, "content")
    yield bad(
        "sd410-set-part", "another content digest, of a part file", parts={1: {"facts": hook}}
    )
    yield bad("sd410-set-root", "another content digest, of the root", facts=hook)
    broken = {1: {"streams": stream(1, lambda _: b"\0")}}
    yield bad("sd408-set-part", "a difference of 0, in a part file", parts=broken)
    how: dict[str, Any] = {
        "files": [{"name": "x", "base": None, "target": {"blob": 0, "digest": "0" * 64, "size": 1}}]
    }
    yield bad("sd416-set-root", "another content of a carried file", blobs=[b"x"], **how)
    place = {"id": SET_ID, "part": 1, "parts": []}
    a = [
        R("a", A, A, source="b"),
        R("c", None, X("U8", [3], b"xyz"), [bare("new", "b", X("U8", [3], b"xyz"))]),
    ]
    yield "sd308-part-alone", "another tensor than in the part file itself", build(a, place=place)
    a = [R("n", None, A, [whole("new")]), R("w", None, A, [bare("new", "n", A)])]
    yield "sd308-part-alone-absent", "from a tensor that only comes", build(a, place=place)
    drop = [R("a", A, None, [whole("drop")])]
    yield "sd410-part-alone", "another content digest", build(drop, place=place, facts=hook)
