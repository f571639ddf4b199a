"""The benchmarks: their data is what it claims, their formats are exact, their figures are kept."""

from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import charts  # noqa: E402 (a folder of scripts, not a package)
import checkpoints  # noqa: E402
import formats  # noqa: E402
import report  # noqa: E402
import rounds  # noqa: E402
import scale  # noqa: E402
import speed  # noqa: E402
import stored  # noqa: E402
import tools  # noqa: E402

MIB = 1 << 20


@pytest.mark.real
def test_a_pair_is_the_same_every_time_and_moves_as_many_words_as_asked(tmp_path: Path) -> None:
    first = checkpoints.ensure_pair(tmp_path / "a", nbytes=4 * MIB, density=0.05)
    second = checkpoints.ensure_pair(tmp_path / "b", nbytes=4 * MIB, density=0.05)
    shards = checkpoints.ensure_pair(
        tmp_path / "a", nbytes=4 * MIB, density=0.05, shard_bytes=2 * MIB
    )
    assert first.base.read_bytes() == second.base.read_bytes()
    assert first.target.read_bytes() == second.target.read_bytes()
    old, new = stored.StoredFile(first.base), stored.StoredFile(first.target)
    changed = sum(int((old.words(n) != new.words(n)).sum()) for n in old.tensors)
    words = sum(old.words(n).size for n in old.tensors)
    assert 2 * words == first.nbytes
    assert abs(changed / words - 0.05) < 0.001
    # Sharded or not, the tensors are the same.
    files = sorted(shards.target.glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        part = stored.StoredFile(file)
        for name in part.tensors:
            assert np.array_equal(part.words(name), new.words(name))


def test_from_half_a_gib_on_the_largest_tensor_is_the_same() -> None:
    largest = set()
    for gib in (0.5, 2, 8):
        sizes = [2 * math.prod(shape) for _, shape in checkpoints.plan(int(gib * checkpoints.GIB))]
        assert gib * checkpoints.GIB <= sum(sizes) < (gib + 0.125) * checkpoints.GIB
        largest.add(max(sizes))
    assert largest == {128 * MIB}


@given(
    st.lists(st.integers(0, 0x7F7F), min_size=1), st.sampled_from([0, 0x8000]), st.integers(0, 99)
)
def test_moves_keep_the_sign_and_stay_small(magnitudes: list[int], sign: int, seed: int) -> None:
    """A word that moves keeps its sign bit, and its magnitude moves by one of the known steps."""
    words = np.array(magnitudes, np.uint16) | np.uint16(sign)
    moved = checkpoints.moved(words, 1, np.random.default_rng(seed))
    assert np.array_equal(moved & 0x8000, words & 0x8000)
    distance = np.abs((moved & 0x7FFF).astype(int) - (words & 0x7FFF).astype(int))
    assert np.isin(distance, checkpoints.step_sizes()).all()


@pytest.mark.parametrize("name", [form.name for form in formats.available()])
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1, 2, 300, 70_000, 200_000]),
    density=st.sampled_from([0.0, 1e-5, 0.01, 0.5, 1.0]),
)
def test_formats_of_peers_are_exact(name: str, seed: int, size: int, density: float) -> None:
    """decode(old, encode(old, new)) = new, whatever changed."""
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 1 << 16, size, np.uint16)
    new = checkpoints.moved(old, density, rng)
    somewhere = rng.integers(size)
    new[somewhere] = old[somewhere] ^ np.uint16(1)
    form = formats.FORMATS[name]
    assert np.array_equal(form.decode(old, form.encode(old, new)), new)


@pytest.mark.real
def test_a_peers_file_gives_the_target_back(tmp_path: Path) -> None:
    pair = checkpoints.ensure_pair(tmp_path, nbytes=4 * MIB)
    delta, out = tmp_path / "delta", tmp_path / "out"
    form = formats.FORMATS["u16 gaps+xor+zstd"]
    formats.encode_file(form, pair.base, pair.target, delta, threads=2)
    formats.decode_file(form, pair.base, delta, out, threads=2)
    assert out.read_bytes() == pair.target.read_bytes()
    assert delta.stat().st_size < pair.nbytes / 50


def test_rounds_take_turns_and_prepare_before_each() -> None:
    seen: list[str] = []
    found = rounds.interleave(
        [
            rounds.Contender("a", ["true"], lambda: seen.append("a")),
            rounds.Contender("b", ["true"], lambda: seen.append("b"), rounds=1),
        ],
        rounds=2,
        settle=lambda: seen.append("settled"),
    )
    assert seen == ["a", "settled", "b", "settled", "a", "settled"]
    assert [len(found[name].wall) for name in "ab"] == [2, 1]


def test_a_ratio_is_taken_within_a_round() -> None:
    slow = rounds.Timing((2.0, 40.0, 9.0), (1.0, 5.0, 9.0))
    fast = rounds.Timing((1.0, 10.0, 3.0), (2.0, 2.0, 2.0))
    # The medians themselves are 9 and 3, the shortest 2 and 1.
    found = rounds.ratio(slow, fast)
    assert found == rounds.Ratio(median=3.0, low=2.0, high=4.0, best=2.0, cpu=2.5)


def test_a_command_that_fails_stops_the_benchmark() -> None:
    failing = [sys.executable, "-c", "raise SystemExit('no luck')"]
    with pytest.raises(RuntimeError, match="no luck"):
        rounds.run(failing)
    with pytest.raises(RuntimeError, match="no luck"):
        rounds.peak_memory(failing)


def test_commands_in_one_shell_stop_at_the_first_failure_and_keep_odd_names(tmp_path: Path) -> None:
    odd = tmp_path / "a b'c"
    rounds.run(tools.in_turn(["touch", odd], ["cp", odd, tmp_path / "copy"]))
    assert (tmp_path / "copy").exists()
    with pytest.raises(RuntimeError):
        rounds.run(tools.in_turn(["false"], ["touch", tmp_path / "never"]))
    assert not (tmp_path / "never").exists()
    rounds.run(tools.at_once(["touch", tmp_path / "one"], ["touch", tmp_path / "two"]))
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peak_memory_counts_what_is_held_and_not_mapped_files(tmp_path: Path) -> None:
    mapped = tmp_path / "mapped"
    mapped.write_bytes(bytes(64 * MIB))
    hold = "import mmap, time; held = bytearray(b'1') * {}; {}; time.sleep(0.2)"
    read = f"f = open({str(mapped)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); sum(m[::4096])"

    def peak(nbytes: int, also: str) -> int:
        return rounds.peak_memory([sys.executable, "-c", hold.format(nbytes, also)])

    least = peak(0, "pass")
    assert abs(peak(48 * MIB, "pass") - least - 48 * MIB) < 4 * MIB
    assert peak(0, read) - least < 8 * MIB


def test_every_target_compares_contenders_that_exist(tmp_path: Path) -> None:
    pair = checkpoints.Pair(tmp_path / "base", tmp_path / "target", 1, 0.01)
    names = {contender.name for contender in speed.contenders(speed.Place(pair, tmp_path))}
    for target in speed.TARGETS:
        assert target.reference in names
        assert target.what in names
    most = speed.Target("apply", "cp, b3", most=1.0)
    least = speed.Target("apply, 1 thread", "apply", least=1.6)
    met = [most.met(1.0), most.met(1.01), least.met(1.6), least.met(1.59)]
    assert met == [True, False, True, False]
    assert speed.Target("revert", "cp, b3").met(9.0) is None


def test_the_scale_document_shows_the_stored_figures() -> None:
    figures = report.read_results("scale")
    assert not figures["quick"]
    text = scale.DOCUMENT.read_text(encoding="utf-8")
    assert scale.with_tables(text, figures) == text


def test_the_estimates_follow_from_the_stored_measurements() -> None:
    figures = report.read_results("scale")
    assert scale.estimates(figures) == figures["estimates"]
    measured = {row["name"]: row["measured"] for row in figures["check"]["rows"]}
    words = figures["check"]["checkpoint_bytes"] // 2
    assert scale.check(figures, words, measured) == figures["check"]


def test_the_formula_of_the_estimate_by_hand() -> None:
    """A word costs two seconds to make and three to apply; an entry takes 16 bits."""
    steps = {"sparsedelta": {"encode": 2.0, "decode": 3.0}}
    steps |= dict.fromkeys(scale.SHOWN, steps["sparsedelta"])
    figures = {
        "simulated": [
            {"density": d, "bits": dict.fromkeys(scale.SHOWN, 16.0)} for d in scale.DENSITIES
        ],
        "steps": [{"density": d, "core_seconds_per_word": steps} for d in scale.DENSITIES],
    }
    rows = {(r["model"], r["density"], r["name"]): r for r in scale.estimates(figures)}
    row = rows["8 B", 0.01, "sparsedelta"]
    assert row["bytes"] == pytest.approx(8e9 / 100 * 2)
    assert (row["encode"], row["decode"]) == (16e9, 24e9)
    assert row["wire"]["10"] == pytest.approx(0.128)
    assert rows["70 B", None, "full bf16 copy"]["bytes"] == 140e9


def test_the_limit_is_that_of_a_coin_and_of_the_moves() -> None:
    # At one half, a place costs two bits a change; a sign costs one, and sizes what is left.
    sizes = checkpoints.step_sizes()
    _, counts = np.unique(sizes, return_counts=True)
    bits = -sum(c / sizes.size * np.log2(c / sizes.size) for c in counts)
    assert scale.limit(0.5) == pytest.approx(2 + 1 + bits)


def test_charts_are_xml_with_the_same_lines_in_both_versions() -> None:
    x = charts.Axis("size, GiB", charts.log_ticks([0.3, 7]), log=True)
    y = charts.Axis("a < b", charts.linear_ticks(7))
    lines = {"ours": [(0.5, 1.0), (2.0, 7.0)], "theirs": [(0.5, 2.0), (2.0, 0.0)]}
    panel = charts.Panel("A & B", x, y, lines, bound=(5, "limit"))
    drawn = {mode: charts.draw([panel, panel], theme) for mode, theme in charts.THEMES.items()}
    for text in drawn.values():
        # Written here a moment ago, so no stranger's XML.
        root = ET.fromstring(text)  # noqa: S314
        words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"A & B", "a < b", "size, GiB", "limit", "ours", "theirs"} <= words
    plain = {re.sub(r"#[0-9a-f]{6}", "colour", text) for text in drawn.values()}
    assert len(plain) == 1


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=9).map(sorted), st.floats(1e-3, 1e5))
def test_axes_hold_all_their_values(values: list[float], most: float) -> None:
    """Every value lies between the first and the last tick, and ticks ascend."""
    log = charts.Axis("", charts.log_ticks(values), log=True)
    linear = charts.Axis("", charts.linear_ticks(most))
    for axis, placed in ((log, values), (linear, [0.0, most])):
        assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in placed)
        places = [axis.place(tick) for tick, _ in axis.ticks]
        assert places == sorted(set(places))
        assert 2 <= len(axis.ticks) <= 10
