"""Laws of deltas between checkpoints of different structure, bit for bit (spec sections 3 to 8)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Tensors, checkpoint_bytes, profiles, structured_pairs
from thorough import examples

import sparsedelta
from sparsedelta import Delta, DeltaReader, NotInvertibleError, StructureError
from sparsedelta.delta import SPARSE_OPS
from sparsedelta.manifest import Manifest
from sparsedelta.records import TensorRecord

Pair = tuple[Tensors, Tensors]

FORMS: Final = ("file", "folder", "shards", "index")
"""How a checkpoint may lie on disk."""

INDEX: Final = "model.safetensors.index.json"

CODECS: Final = (
    "gap8",
    "gap8-split",
    "bitmask",
    "raw",
    "raw+raw",
    "gap8+zigzag",
    "bitmask+packed2",
)
"""Codecs that hold any entries of a difference."""


@dataclass(frozen=True)
class Form:
    """How a checkpoint is written: one of FORMS, number of shards, metadata of its files."""

    kind: str
    shards: int
    metadata: str | None


FILE_FORM: Final = Form("file", 1, None)

forms = st.builds(
    Form, st.sampled_from(FORMS), st.integers(1, 3), st.sampled_from([None, "pt", "é"])
)


def file_bytes(tensors: Tensors, metadata: str | None) -> bytes:
    """A checkpoint file with metadata in its header."""
    plain = checkpoint_bytes(tensors)
    if metadata is None:
        return plain
    length = int.from_bytes(plain[:8], "little")
    header = {"__metadata__": {"format": metadata}, **json.loads(plain[8 : 8 + length])}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + plain[8 + length :]


def store(path: Path, tensors: Tensors, form: Form) -> Path:
    """Write a checkpoint; return what names it. One without tensors has no shards."""
    if form.kind == "file":
        path.write_bytes(file_bytes(tensors, form.metadata))
        return path
    path.mkdir()
    if form.kind == "folder" or not tensors:
        (path / "model.safetensors").write_bytes(file_bytes(tensors, form.metadata))
        return path
    weight_map: dict[str, str] = {}
    for number in range(form.shards):
        members = dict(list(tensors.items())[number :: form.shards])
        if members:
            name = f"model-{number + 1:05}.safetensors"
            (path / name).write_bytes(file_bytes(members, form.metadata))
            weight_map |= dict.fromkeys(members, name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))
    return path / INDEX if form.kind == "index" else path


def files_of(path: Path) -> dict[str, bytes]:
    """Files of a checkpoint by name; a single one has the name that its user gives it."""
    folder = path.parent if path.name == INDEX else path
    if not folder.is_dir():
        return {"": folder.read_bytes()}
    found = {item.name: item.read_bytes() for item in folder.iterdir()}
    return {"": found["model.safetensors"]} if set(found) == {"model.safetensors"} else found


@contextmanager
def stored(
    pair: Pair, base: Form = FILE_FORM, target: Form = FILE_FORM
) -> Iterator[tuple[Path, Path, Path]]:
    """A folder for results, base and target."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends = (folder / "in" / "base", folder / "in" / "target")
        (folder / "in").mkdir()
        paths = [
            store(path, tensors, form)
            for path, tensors, form in zip(ends, pair, (base, target), strict=True)
        ]
        (folder / "out").mkdir()
        yield folder / "out", paths[0], paths[1]


def diff(base: Path, target: Path, out: Path, **options: Any) -> Manifest:  # noqa: ANN401 (passed on)
    """A diff that accepts any two checkpoints."""
    return sparsedelta.diff(base, target, out, unrelated=True, **options).manifest


def needs_base(manifest: Manifest) -> bool:
    """Whether a delta can only be read with its base at hand."""
    return any(record.needs_base for record in manifest.tensors)


def read(path: Path) -> Delta:
    """A delta in memory, after every check."""
    with DeltaReader(path) as reader:
        return reader.read()


@given(
    pair=structured_pairs(),
    base_form=forms,
    target_form=forms,
    options=st.fixed_dictionaries(
        {},
        optional={
            "lean": st.just(True),
            "layout": st.just("always"),
            "sha256": st.just(True),
            "max_shard_size": st.sampled_from([1, 300, 100_000]),
            "codec": st.sampled_from(CODECS),
            "explain": st.just(True),
            "profile": profiles,
        },
    ),
)
@examples(90)
def test_files_come_back_byte_for_byte(
    pair: Pair, base_form: Form, target_form: Form, options: Mapping[str, Any]
) -> None:
    """Section 3.6: apply gives the files of the target, revert those of the base."""
    with stored(pair, base_form, target_form) as (folder, base, target):
        manifest = diff(base, target, folder / "d", **options)
        assert manifest.invertible == (not needs_base(manifest))
        applied = sparsedelta.apply(base, folder / "d", folder / "there")
        assert files_of(folder / "there") == files_of(target)
        assert applied.fingerprint == sparsedelta.fingerprint(target).fingerprint
        there = base if needs_base(manifest) else None
        reverted = sparsedelta.revert(target, folder / "d", folder / "back", base=there)
        assert files_of(folder / "back") == files_of(base)
        assert reverted.fingerprint == sparsedelta.fingerprint(base).fingerprint
        assert sparsedelta.validate(folder / "d", base=base).problems == ()
        assert {item.name for item in folder.iterdir() if item.name[0] == "."} == set()


@given(
    pair=structured_pairs(),
    base_form=forms,
    target_form=forms,
    lean=st.booleans(),
    profile=profiles,
)
@examples(45)
def test_without_a_layout_the_tensors_come_back(
    pair: Pair, base_form: Form, target_form: Form, *, lean: bool, profile: str
) -> None:
    """Section 7: the files are then those of the source, as far as the tensors are the same."""
    with stored(pair, base_form, target_form) as (folder, base, target):
        manifest = diff(base, target, folder / "d", layout="never", lean=lean, profile=profile)
        assert manifest.attachments.layout is None
        sparsedelta.apply(base, folder / "d", folder / "there", undo=folder / "undo")
        undo = folder / "undo" if (folder / "undo").exists() else folder / "d"
        follow = sparsedelta.apply if undo.name == "undo" else sparsedelta.revert
        follow(target, undo, folder / "back")
        there, back = (sparsedelta.fingerprint(folder / name) for name in ("there", "back"))
        assert (there.fingerprint, back.fingerprint) == (manifest.target, manifest.base)
        assert there.tensors == sparsedelta.fingerprint(target).tensors
        assert back.tensors == sparsedelta.fingerprint(base).tensors


@given(pair=structured_pairs(), one_way=st.booleans(), lean=st.booleans())
@examples(45)
def test_what_is_not_stored_cannot_be_reverted(pair: Pair, *, one_way: bool, lean: bool) -> None:
    """Section 5: a delta that forgets or replaces leads there, and says whether it leads back."""
    with stored(pair) as (folder, base, target):
        whole = diff(base, target, folder / "whole", lean=lean)
        manifest = diff(base, target, folder / "d", lean=lean, one_way=one_way, forget=not one_way)
        sparsedelta.apply(base, folder / "d", folder / "there")
        assert files_of(folder / "there") == files_of(target)
        assert (manifest.base, manifest.target) == (whole.base, whole.target)
        assert sparsedelta.validate(folder / "d", base=base).problems == ()
        if manifest.invertible:
            # Nothing was there to forget.
            assert manifest.content == whole.content
            sparsedelta.revert(target, folder / "d", folder / "back")
            assert files_of(folder / "back") == files_of(base)
        else:
            assert manifest.content != whole.content
            with pytest.raises(NotInvertibleError, match="SD503"):
                sparsedelta.revert(target, folder / "d", folder / "back")
            with pytest.raises(NotInvertibleError):
                read(folder / "d").invert()


@given(pair=structured_pairs(), size=st.sampled_from([1, 200, 2000]), lean=st.booleans())
@examples(40)
def test_a_set_is_the_same_delta_as_one_file(pair: Pair, size: int, *, lean: bool) -> None:
    """Sections 3.8 and 8: the division into files is no part of a delta."""
    with stored(pair) as (folder, base, target):
        single = diff(base, target, folder / "single", lean=lean)
        many = diff(base, target, folder / "many", lean=lean, max_shard_size=size)
        assert many.content == single.content
        assert read(folder / "many") == read(folder / "single")
        for path in folder.glob("many-*"):
            with DeltaReader(path) as part:
                assert 0 < len(part.manifest.tensors) <= len(single.tensors)
                part.read()
            assert sparsedelta.validate(path).problems == ()


@given(pair=structured_pairs(), one=forms, other=forms)
@examples(40)
def test_the_delta_of_equals_touches_nothing(pair: Pair, one: Form, other: Form) -> None:
    """diff(a, a) is empty, however the two lie on disk, and still leads from file to file."""
    with stored((pair[1], pair[1]), one, other) as (folder, base, target):
        manifest = diff(base, target, folder / "d")
        assert (manifest.nnz, manifest.tensors) == (0, ())
        assert manifest.base == manifest.target
        report = sparsedelta.apply(base, folder / "d", folder / "there")
        assert (report.tensors, report.nnz) == (0, 0)
        assert files_of(folder / "there") == files_of(target)


@given(pair=structured_pairs())
@examples(45)
def test_the_inverse_in_memory_leads_back(pair: Pair) -> None:
    """Section 5: inverting twice changes nothing, and the inverse is a delta of its own."""
    with stored(pair) as (folder, base, target):
        diff(base, target, folder / "d")
        delta = read(folder / "d")
        inverse = delta.invert()
        assert inverse.invert() == delta
        assert inverse.invert().content == delta.content
        written = sparsedelta.write_delta(target, inverse.tensors.values(), folder / "i")
        assert written.content == inverse.content
        sparsedelta.apply(target, folder / "i", folder / "back")
        assert str(sparsedelta.fingerprint(folder / "back")) == delta.base


@given(pair=structured_pairs(trained=False))
@examples(45)
def test_the_inverse_is_the_delta_of_the_exchanged_ends(pair: Pair) -> None:
    """Where names and contents leave no choice, both directions find the same."""
    with stored(pair) as (folder, base, target):
        there = diff(base, target, folder / "there")
        back = diff(target, base, folder / "back")
        # Likeness is a guess, and the best guess need not be mutual.
        assume(not any(map(is_guessed, (*there.tensors, *back.tensors))))
        assert read(folder / "there").invert() == read(folder / "back")
        assert read(folder / "there").invert().content == back.content


def is_guessed(record: TensorRecord) -> bool:
    """Whether a record pairs tensors of other names that are not equal."""
    is_other = record.renamed or record.base is None or record.target is None
    return bool(is_other and any(part.op in SPARSE_OPS for part in record.parts))


@given(
    pair=structured_pairs(),
    threads=st.integers(2, 6),
    size=st.sampled_from([None, 500]),
    profile=profiles,
)
@examples(40)
def test_any_number_of_threads_writes_the_same_bytes(
    pair: Pair, threads: int, size: int | None, profile: str
) -> None:
    """Same inputs, same bytes: of deltas and of what they make."""
    with stored(pair) as (folder, base, target):
        for name, count in (("one", 1), ("many", threads)):
            (folder / name).mkdir()
            diff(
                base,
                target,
                folder / name / "d",
                threads=count,
                max_shard_size=size,
                profile=profile,
            )
            sparsedelta.apply(base, folder / name / "d", folder / name / "out", threads=count)
        assert files_of(folder / "one") == files_of(folder / "many")


@given(pair=structured_pairs(), codec=st.sampled_from(CODECS), one_way=st.booleans())
@examples(45)
def test_codecs_are_no_part_of_a_delta(pair: Pair, codec: str, *, one_way: bool) -> None:
    """Section 8: every codec that can hold the entries gives the same content digest."""
    with stored(pair) as (folder, base, target):
        free = diff(base, target, folder / "free", one_way=one_way)
        if one_way:
            codec = codec.partition("+")[0]
        forced = diff(base, target, folder / "forced", codec=codec, one_way=one_way)
        assert forced.content == free.content
        assert read(folder / "forced") == read(folder / "free")
        index = codec.partition("+")[0]
        for record in forced.tensors:
            for _, part in record.coded:
                assert part.encoding.index.id == (index if part.op in SPARSE_OPS else "dense")


@given(
    pair=structured_pairs(), lean=st.booleans(), size=st.sampled_from([None, 1, 700]), form=forms
)
@examples(60)
def test_a_delta_goes_to_the_other_profile_and_back(
    pair: Pair, form: Form, *, lean: bool, size: int | None
) -> None:
    """The same content digest, the bytes that diff writes, and what is done with it is the same."""
    with stored(pair, form, form) as (folder, base, target):
        names = ("portable", "compact")
        made = {}
        for name in names:
            (folder / name).mkdir()
            made[name] = diff(
                base, target, folder / name / "d", profile=name, lean=lean, max_shard_size=size
            )
        assert made["portable"].content == made["compact"].content
        for old, new in (names, names[::-1]):
            (folder / f"to-{new}").mkdir()
            again = folder / f"to-{new}" / "d"
            report = sparsedelta.recode(folder / old / "d", base, again, profile=new)
            assert report.manifest.content == made[old].content
            if size is None:  # a set may be divided at other places
                assert again.read_bytes() == (folder / new / "d").read_bytes()
            (folder / f"back-to-{old}").mkdir()
            sparsedelta.recode(again, base, folder / f"back-to-{old}" / "d", profile=old)
            assert files_of(folder / f"back-to-{old}") == files_of(folder / old)
            assert sparsedelta.validate(again, base=base).problems == ()
            assert sparsedelta.validate(again).problems == ()
        compact = folder / "compact" / "d"
        inverse = sparsedelta.invert(compact, folder / "i", base=base).manifest
        assert inverse.content == read(folder / "portable" / "d").invert().content
        one = sparsedelta.squash([compact], folder / "s", base=base).manifest
        assert one.content == made["portable"].content
        if needs_base(made["compact"]):
            with DeltaReader(compact) as reader, pytest.raises(StructureError) as caught:
                reader.read()
            assert "sparsedelta recode" in str(caught.value.hint)
            with pytest.raises(NotInvertibleError) as refused:
                sparsedelta.revert(target, compact, folder / "back")
            assert "sparsedelta recode" in str(refused.value.hint)


@given(pair=structured_pairs(), profile=profiles)
@examples(30)
def test_write_delta_writes_what_diff_writes(pair: Pair, profile: str) -> None:
    """Changes that are known need no second checkpoint, in either profile."""
    with stored(pair) as (folder, base, target):
        diff(base, target, folder / "d", layout="never")
        delta = read(folder / "d")
        written = sparsedelta.write_delta(
            base, delta.tensors.values(), folder / "w", profile=profile
        )
        assert written.content == delta.content
        sparsedelta.recode(folder / "d", base, folder / "r", profile=profile)
        assert (folder / "w").read_bytes() == (folder / "r").read_bytes()
