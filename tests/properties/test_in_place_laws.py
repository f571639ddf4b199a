"""Laws of runs in place: the files of an output, and the files that were there, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st
from strategies import (
    VALUE_KINDS,
    Tensors,
    checkpoint_bytes,
    densities,
    profiles,
    random_values,
    seeds,
    specs,
    structured_pairs,
)
from test_structure_laws import CODECS, Form, diff, files_of, forms, stored
from thorough import examples

import sparsedelta
from sparsedelta import OutputError, TensorDelta
from sparsedelta.delta import ADD, Part
from sparsedelta.inodes import Inode
from sparsedelta.journal import Head, Journal, JournalWriter
from sparsedelta.journal_frames import Run, run_frame
from sparsedelta.limits import SEGMENT_WORDS
from sparsedelta.locked_files import LockedFiles
from sparsedelta.operations import proving, settle
from sparsedelta.operations.steps import Verify
from sparsedelta.parallel import OrderedMap
from sparsedelta.words import TensorSpec, word_dtype

FATES: Final = ("stays", "changes", "is renamed", "is cast", "is another")
TWIN_DTYPES: Final = {
    "F16": "U16",
    "I16": "U16",
    "U16": "F16",
    "F32": "I32",
    "U8": "I8",
    "I8": "U8",
}
"""Dtypes of one width, with names of one length: nothing moves."""


@st.composite
def pairs_in_place(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """Two checkpoints whose tensors lie at the same places, under whatever names and dtypes."""
    base: Tensors = {}
    target: Tensors = {}
    for number in range(draw(st.integers(1, 5))):
        spec = draw(specs(f"{number}"))
        rng = np.random.default_rng(draw(seeds))
        old = rng.integers(0, 256, spec.nbytes, np.uint8)
        new = old.copy()
        fate = draw(st.sampled_from(FATES))
        if fate not in ("stays", "is another"):
            words = new.view(spec.word_dtype)
            marks = rng.random(words.size) < draw(densities)
            kind = draw(st.sampled_from(VALUE_KINDS))
            words[marks] += random_values(rng, int(marks.sum()), spec.word_bytes, kind)
        name, dtype = spec.name, spec.dtype
        if fate == "is renamed":
            name = "abcdefgh"[number]
        elif fate == "is cast":
            dtype = TWIN_DTYPES.get(dtype, dtype)
        elif fate == "is another":
            name = "ABCDEFGH"[number]
            new = rng.integers(0, 256, spec.nbytes, np.uint8)
        base[spec.name] = (spec, old.tobytes())
        target[name] = (TensorSpec(name, dtype, spec.shape), new.tobytes())
    return base, target


VERIFY: Final[tuple[Verify, ...]] = ("full", "touched")

small_steps = st.sampled_from([(64, 16, 1), (4096, 64, 2), (1 << 20, 4096, 16)])
"""Bytes at a time, bytes of a page, unchanged pages that are written: borders everywhere."""


@given(
    pair=st.one_of(pairs_in_place(), pairs_in_place(), structured_pairs()),
    form=forms,
    steps=small_steps,
    threads=st.sampled_from([1, 3]),
    verify=st.sampled_from(VERIFY),
    options=st.fixed_dictionaries(
        {},
        optional={
            "lean": st.just(True),
            "layout": st.sampled_from(["always", "never"]),
            "sha256": st.just(True),
            "one_way": st.just(True),
            "codec": st.sampled_from(CODECS),
            "profile": profiles,
        },
    ),
)
@examples(80)
def test_in_place_is_what_an_output_is(
    *,
    pair: tuple[Tensors, Tensors],
    form: Form,
    steps: tuple[int, int, int],
    threads: int,
    verify: Verify,
    options: dict[str, Any],
) -> None:
    """Apply gives the files of ``-o`` or refuses; revert gives back those that were there."""
    if options.get("one_way") or options.get("layout") == "never":
        options.pop("codec", None)
        options.pop("sha256", None)
    chunk, page, gap = steps
    with (
        stored(pair, form, form) as (folder, base, target),
        mock.patch.object(settle, "_CHUNK", chunk),
        mock.patch.object(settle, "_PAGE", page),
        mock.patch.object(settle, "_GAP_PAGES", gap),
        mock.patch.object(proving, "_CHUNK", chunk),
    ):
        manifest = diff(base, target, folder / "d", **options)
        if not manifest.tensors:
            verify = "full"
        before = files_of(base)
        sparsedelta.apply(base, folder / "d", folder / "out")
        report = None
        with suppress(OutputError):
            report = sparsedelta.apply(
                base, folder / "d", in_place=True, verify=verify, threads=threads
            )
        if report is None:
            event("refused")
            assert files_of(base) == before
            return
        event("entries" if report.nnz else "no entries")
        assert files_of(base) == files_of(folder / "out")
        assert sparsedelta.fingerprint(base).fingerprint == manifest.target
        if manifest.invertible:
            sparsedelta.revert(base, folder / "d", in_place=True, verify=verify, threads=threads)
            assert files_of(base) == before
        assert not [path for path in folder.rglob(".*") if path.is_file()]


@given(
    width=st.sampled_from([1, 2, 4, 8]),
    words=st.integers(1, 20_000),
    offset=st.integers(0, 70),
    density=densities,
    seed=seeds,
    steps=small_steps,
)
@examples(60)
def test_a_journal_leads_both_ways(
    *,
    width: int,
    words: int,
    offset: int,
    density: float,
    seed: int,
    steps: tuple[int, int, int],
) -> None:
    """From any mixture of old and new bytes, to the new or to the old, and not a byte beside."""
    rng = np.random.default_rng(seed)
    dtype = word_dtype(width)
    at = np.flatnonzero(rng.random(words) < density)
    old = np.frombuffer(rng.bytes(offset + words * width + 33), np.uint8)
    new = old.copy()
    part = new[offset : offset + words * width].view(dtype)
    part[at] += random_values(rng, at.size, width, "any")
    mixed = np.where(rng.random(old.size) < rng.random(), old, new)
    # Cut in two somewhere: runs that share a page are written by threads of their own.
    cut = int(rng.integers(words + 1))
    chunk, page, gap = steps
    with tempfile.TemporaryDirectory() as name, OrderedMap(2) as pool:
        folder = Path(name)
        (folder / "m").write_bytes(mixed.tobytes())
        writer = JournalWriter(
            folder / "j",
            Head((("m", old.size, Inode(0, 0)),), (), "d", "c", reverse=False, with_files=True),
        )
        before = old[offset : offset + words * width].view(dtype)
        for first, stop in ((0, cut), (cut, words)):
            near = at[(at >= first) & (at < stop)]
            run = Run(
                0, offset + first * width, stop - first, near - first, before[near], part[near]
            )
            writer.append(run_frame(run))
        writer.commit()
        with (
            mock.patch.object(settle, "_CHUNK", chunk),
            mock.patch.object(settle, "_PAGE", page),
            mock.patch.object(settle, "_GAP_PAGES", gap),
            Journal(folder / "j") as journal,
            LockedFiles(folder, ["m"]) as files,
        ):
            for back in (seed % 2 == 0, True, False):
                settle.carry_out(journal, files, pool, back=back, rewrite=seed % 3 == 0)
                assert (folder / "m").read_bytes() == (old if back else new).tobytes()


def test_a_tensor_of_several_segments(tmp_path: Path) -> None:
    """Entries on both sides of a border between segments, and segments without any."""
    rng = np.random.default_rng(0)
    spec = TensorSpec("w", "U8", (3 * SEGMENT_WORDS + 5,))
    old = rng.integers(0, 256, spec.words, np.uint8)
    new = old.copy()
    new[[SEGMENT_WORDS - 1, SEGMENT_WORDS, 3 * SEGMENT_WORDS + 4]] += 1
    base, target = tmp_path / "base", tmp_path / "target"
    base.write_bytes(checkpoint_bytes({"w": (spec, old.tobytes())}))
    target.write_bytes(checkpoint_bytes({"w": (spec, new.tobytes())}))
    sparsedelta.diff(base, target, tmp_path / "d")
    before = base.read_bytes()
    for verify in VERIFY:
        sparsedelta.apply(base, tmp_path / "d", in_place=True, verify=verify)
        assert base.read_bytes() == target.read_bytes()
        sparsedelta.revert(base, tmp_path / "d", in_place=True, verify=verify)
        assert base.read_bytes() == before


def test_numbers_are_added_in_place(tmp_path: Path) -> None:
    spec = TensorSpec("w", "F32", (1000,))
    old = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    base = tmp_path / "base"
    base.write_bytes(checkpoint_bytes({"w": (spec, old.tobytes())}))
    part = Part(ADD, np.arange(3, 999, 7), np.full(143, 0x3F80, np.uint16), None, "BF16", 0.25)
    sparsedelta.write_delta(base, [TensorDelta(spec, spec, (part,))], tmp_path / "d")
    shutil.copy(base, tmp_path / "copy")
    sparsedelta.apply(base, tmp_path / "d", tmp_path / "out")
    sparsedelta.apply(base, tmp_path / "d", in_place=True)
    assert base.read_bytes() == (tmp_path / "out").read_bytes() != (tmp_path / "copy").read_bytes()
