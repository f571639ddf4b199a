"""Tasks that are put together: what lies beside the weights, how results lie, which method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from checkpoint_files import call, failed, hint_of, succeeded, write_file
from test_merge import layered, tuned

import sparsedelta
from sparsedelta import UsageError
from sparsedelta.merging.methods import METHODS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with files beside it, and two checkpoints and deltas with others."""
    folder = tmp_path_factory.mktemp("tasks")
    start = layered()
    for number, name in enumerate(("base", "one", "two")):
        place = folder / name
        place.mkdir()
        write_file(place / "model.safetensors", tuned(start, number) if number else start)
        (place / "config.json").write_text('{"a": 1}' if name != "one" else '{"a": 2}')
        (place / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
        (place / "vocab.txt").write_text("the same everywhere")
    for name in ("one", "two"):
        sparsedelta.diff(folder / "base", folder / name, folder / f"{name}.delta", with_files=True)
    return folder


def beside(folder: Path) -> dict[str, str]:
    """The files beside the weights."""
    return {
        path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"
    }


def recipe(folder: Path, out: Path, *models: str) -> Path:
    """A recipe of the sum of some models."""
    document = {
        "merge_method": "sum",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / name)} for name in models],
    }
    path = out / "recipe.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_files_of_a_composition_are_those_of_the_base(made: Path, tmp_path: Path) -> None:
    """Whatever deltas carry and checkpoints have beside them; what is left out is named."""
    deltas = [made / "one.delta", made / "two.delta"]
    carried = {
        str(made / "one.delta"): ("config.json", "tokenizer.json"),
        str(made / "two.delta"): ("tokenizer.json",),
    }
    composed = sparsedelta.compose(made / "base", deltas, tmp_path / "delta")
    assert composed.files_left_out == carried
    assert sparsedelta.info(tmp_path / "delta").files == ()
    sparsedelta.apply(made / "base", tmp_path / "delta", tmp_path / "applied")
    stacked = sparsedelta.apply_stack(made / "base", deltas, tmp_path / "stacked")
    assert stacked.files_left_out == carried
    merged = sparsedelta.merge(recipe(made, tmp_path, "one", "two.delta"), tmp_path / "merged")
    assert merged.files_left_out == {
        str(made / "one"): ("config.json", "tokenizer.json"),
        str(made / "two.delta"): ("tokenizer.json",),
    }
    for name in ("applied", "stacked", "merged"):
        assert beside(tmp_path / name) == beside(made / "base")
    for report in (composed, stacked):
        (note, other) = sorted(report.notes)
        assert "one.delta has others, which are left out: config.json, tokenizer.json" in note
        assert other.endswith("two.delta has others, which are left out: tokenizer.json")


def test_what_is_left_out_is_told_by_the_commands(made: Path, tmp_path: Path) -> None:
    """As a note, and in the JSON document; nothing is said where there is nothing."""
    deltas = [made / "one.delta", made / "two.delta"]
    told = {str(deltas[0]): ["config.json", "tokenizer.json"], str(deltas[1]): ["tokenizer.json"]}
    commands: list[tuple[str | Path, ...]] = [
        ("compose", "--base", made / "base", *deltas),
        ("apply", "--stack", made / "base", *deltas),
        ("merge", recipe(made, tmp_path, "one.delta", "two.delta")),
    ]
    for number, words in enumerate(commands):
        run = succeeded(call(*words, "-o", tmp_path / f"out{number}", "--json"))
        assert run.document["files_left_out"] == told
        assert run.err.count("which are left out") == len(told)
    shutil.copytree(made / "base", tmp_path / "same")
    write_file(tmp_path / "same" / "model.safetensors", tuned(layered(), 5))
    bare = tmp_path / "bare.safetensors"
    write_file(bare, tuned(layered(), 6))
    report = sparsedelta.merge(
        recipe(made, tmp_path, str(tmp_path / "same"), str(bare)), tmp_path / "quiet"
    )
    assert report.files_left_out == {}
    assert report.notes == ()


@pytest.mark.parametrize("method", METHODS)
def test_stacked_by_a_method_is_composed_by_it_and_applied(
    made: Path, tmp_path: Path, method: str
) -> None:
    """The same words on the command line: ``apply --stack --method`` and ``compose``, ``apply``."""
    rule = METHODS[method]
    options = ["--method", method, "--seed", "3"]
    if "density" in rule.parameters:
        options += ["--set", "density=0.6,0.4", "--set", "density_of=entries"]
    if "t" in rule.parameters:
        options += ["--set", "t=0.25"]
    deltas = [f"{made / 'one.delta'}:1", f"{made / 'two.delta'}:0.5"]
    delta, applied, stacked = (tmp_path / name for name in ("delta", "applied", "stacked"))
    succeeded(call("compose", "--base", made / "base", *deltas, *options, "-o", delta, "-q"))
    succeeded(call("apply", made / "base", delta, "-o", applied, "-q"))
    run = call("apply", "--stack", made / "base", *deltas, *options, "-o", stacked, "--json")
    assert succeeded(run).document["method"] == method
    assert sorted(path.name for path in stacked.iterdir()) == sorted(
        path.name for path in applied.iterdir()
    )
    for path in applied.iterdir():
        assert path.read_bytes() == (stacked / path.name).read_bytes()


@pytest.mark.parametrize(
    "option", [("--method", "ties"), ("--set", "density=1"), ("--seed", "0"), ("--fp8-arithmetic",)]
)
def test_methods_are_for_stacks(made: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    """A chain is followed, not put together."""
    message = failed(
        call("apply", made / "base", made / "one.delta", *option, "-o", tmp_path / "out"), 2
    )
    assert f"{option[0]} says how deltas of one base are put together" in message
    assert "--stack" in hint_of(message)


def test_a_merged_delta_lies_as_it_is_asked_to(made: Path, tmp_path: Path) -> None:
    """Lean, in parts, with provenance; a checkpoint lies as the base does, and takes none of it."""
    words = ("merge", recipe(made, tmp_path, "one", "two.delta"))
    whole, lean, parts, sized = (tmp_path / name for name in ("whole", "lean", "parts", "sized"))
    succeeded(call(*words, "--as-delta", "-o", whole, "-q"))
    succeeded(call(*words, "--as-delta", "-o", lean, "--lean", "--meta", "by=me", "-q"))
    succeeded(call(*words, "--as-delta", "-o", parts, "--shards", "3", "-q"))
    succeeded(call(*words, "--as-delta", "-o", sized, "--max-shard-size", "500", "-q"))
    found = sparsedelta.info(whole)
    for path in (lean, parts, sized):
        assert sparsedelta.info(path).content == found.content
    assert sparsedelta.info(lean).lean
    assert sparsedelta.info(lean).metadata["by"] == "me"
    assert len(sparsedelta.info(parts).parts) == 3
    assert len(sparsedelta.info(sized).parts) > 1
    for option in (("--lean",), ("--shards", "2"), ("--max-shard-size", "1MB"), ("--meta", "a=b")):
        message = failed(call(*words, *option, "-o", tmp_path / "no"), 2)
        assert "--as-delta" in hint_of(message)
    assert not (tmp_path / "no").exists()
    with pytest.raises(UsageError, match="cannot follow from their size"):
        sparsedelta.merge(
            words[1], tmp_path / "no", as_delta=True, shards=2, max_shard_size=1 << 20
        )


def test_the_tokenizer_of_a_merge_is_that_of_the_base(made: Path, tmp_path: Path) -> None:
    """``tokenizer_source: base`` says so; any other is refused by its line."""
    path = recipe(made, tmp_path, "one", "two")
    text = path.read_text()
    path.write_text(f"{text}tokenizer_source: base\n")
    sparsedelta.merge(path, tmp_path / "out")
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert tokenizer == {"of": "base"}
    path.write_text(f"{text}tokenizer_source: union\n")
    with pytest.raises(UsageError, match="only 'base' is kept, not 'union'"):
        sparsedelta.merge(path, tmp_path / "no")
