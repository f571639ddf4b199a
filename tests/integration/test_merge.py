"""``sparsedelta merge``: recipes over deltas and checkpoints, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoint_files import Stored, Tensors, call, failed, hint_of, load, succeeded, write_file
from jsonschema import Draft202012Validator

import sparsedelta
from sparsedelta import CheckpointError, ComposeReport, UsageError
from sparsedelta.merging import recipes
from sparsedelta.merging.methods import METHODS
from sparsedelta.merging.recipes import parse_recipe

SCHEMA = json.loads(Path(recipes.__file__).with_name("recipe.schema.json").read_text())


def layered(seed: int = 0) -> Tensors:
    """A model of three layers, and an embedding, in bf16."""
    rng = np.random.default_rng(seed)

    def tensor(*shape: int) -> Stored:
        numbers = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        words = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return Stored("BF16", shape, words.tobytes())

    names = [f"model.layers.{n}.{part}.weight" for n in range(3) for part in ("mlp", "attn")]
    return {"model.embed.weight": tensor(50, 16), **{name: tensor(16, 24) for name in names}}


def tuned(base: Tensors, seed: int, density: float = 0.2) -> Tensors:
    """The same with a few words changed."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, stored in base.items():
        words = stored.words
        marks = rng.random(words.size) < density
        words[marks] += rng.integers(1, 12, int(marks.sum())).astype(np.uint16)
        made[name] = Stored(stored.dtype, stored.shape, words.tobytes())
    return made


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a base, three checkpoints and their deltas."""
    base = layered()
    write_file(tmp_path / "base.safetensors", base)
    for number in (1, 2, 3):
        write_file(tmp_path / f"t{number}.safetensors", tuned(base, number))
        sparsedelta.diff(
            tmp_path / "base.safetensors",
            tmp_path / f"t{number}.safetensors",
            tmp_path / f"d{number}.safetensors",
        )
    return tmp_path


def recipe(folder: Path, method: str, names: list[str], **more: Any) -> Path:  # noqa: ANN401
    """A recipe file for models, each with a weight."""
    document = {
        "merge_method": method,
        "base_model": "base.safetensors",
        "models": [
            {"model": f"{name}.safetensors", "parameters": {"weight": 1 / (n + 1)}}
            for n, name in enumerate(names)
        ],
        **more,
    }
    Draft202012Validator(SCHEMA).validate(document)
    path = folder / f"{method}.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("method", sorted(METHODS))
def test_deltas_checkpoints_and_compose_give_the_same(models: Path, method: str) -> None:
    """A model may be a delta or a checkpoint; the result is what compose gives."""
    rule = METHODS[method]
    count = rule.at_most or 3
    more: dict[str, Any] = {}
    if "density" in rule.parameters:
        more = {"parameters": {"density": 0.5, "density_of": "entries"}}
    deltas = recipe(models, method, [f"d{n + 1}" for n in range(count)], **more)
    one, two = models / "one", models / "two"
    report = sparsedelta.merge(deltas, one)
    composed = sparsedelta.compose(
        models / "base.safetensors",
        [models / f"d{n + 1}.safetensors" for n in range(count)],
        models / "composed",
        weights=[1 / (n + 1) for n in range(count)],
        method=method,
        parameters=more.get("parameters"),
    )
    assert not isinstance(report, ComposeReport)
    assert report.fingerprint == composed.manifest.target
    if not rule.is_random:  # chance is tied to the content of deltas, or to the place of models
        mixed = recipe(models, method, ["t1", *(f"d{n + 1}" for n in range(1, count))], **more)
        sparsedelta.merge(mixed, two)
        assert one.read_bytes() == two.read_bytes()


def test_as_delta_leads_from_the_base_to_the_merge(models: Path) -> None:
    """What --as-delta writes, applied, is what merge writes."""
    path = recipe(models, "ties", ["t1", "d2", "t3"], parameters={"density": 0.1})
    succeeded(call("merge", path, "-o", models / "out"))
    run = succeeded(call("merge", path, "-o", models / "delta", "--as-delta", "--json"))
    assert run.document["is_delta"]
    assert len(run.document["overlap"]["counts"]) == 3
    sparsedelta.apply(models / "base.safetensors", models / "delta", models / "applied")
    assert (models / "applied").read_bytes() == (models / "out").read_bytes()


def test_gradients_and_filters(models: Path) -> None:
    """Weights go from layer to layer, and filters pick tensors by their names."""
    text = """
merge_method: task_arithmetic
base_model: base.safetensors
models:
  - model: d1.safetensors
    parameters:
      weight:
        - filter: attn
          value: [0, 1]
        - value: 0
"""
    path = models / "recipe.yml"
    path.write_text(text)
    sparsedelta.merge(path, models / "out")
    base, task, out = (
        load(models / name) for name in ("base.safetensors", "t1.safetensors", "out")
    )
    for name, stored in out.items():
        expected = base[name]
        if name == "model.layers.2.attn.weight":
            expected = task[name]
        if name != "model.layers.1.attn.weight":
            assert stored == expected, name
    middle = (each["model.layers.1.attn.weight"].words for each in (base, out, task))
    numbers = [(words.astype(np.uint32) << 16).view(np.float32) for words in middle]
    assert np.allclose(numbers[1], (numbers[0] + numbers[2]) / 2, rtol=2**-8)


def test_linear_takes_the_first_model_for_the_base(models: Path) -> None:
    """As mergekit users write it; and a sum that is no mean changes every element."""
    document = {
        "merge_method": "linear",
        "models": [
            {"model": "base.safetensors", "parameters": {"weight": 0.5}},
            {"model": "t1.safetensors", "parameters": {"weight": 1.5}},
        ],
        "parameters": {"normalize": False},
    }
    path = models / "recipe.yml"
    path.write_text(yaml.safe_dump(document))
    sparsedelta.merge(path, models / "out")
    base, task, out = (
        load(models / name) for name in ("base.safetensors", "t1.safetensors", "out")
    )
    for name, stored in out.items():
        one, two, three = (
            (each[name].words.astype(np.uint32) << 16).view(np.float32)
            for each in (base, task, out)
        )
        assert np.allclose(three, 0.5 * one + 1.5 * two, rtol=2**-7), stored.shape


def test_slerp_between_two_models(models: Path) -> None:
    """The base is the end at 0, as with mergekit."""
    for t, expected in ((0, "base.safetensors"), (1, "t1.safetensors")):
        document = {
            "merge_method": "slerp",
            "base_model": "base.safetensors",
            "models": [{"model": "base.safetensors"}, {"model": "t1.safetensors"}],
            "parameters": {"t": t},
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }
        path = models / "recipe.yml"
        path.write_text(yaml.safe_dump(document))
        sparsedelta.merge(path, models / "out", force=True)
        assert load(models / "out") == load(models / expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_seeds_make_random_methods_reproducible(models: Path, threads: int) -> None:
    """The same bytes for any number of threads; others for another seed."""
    path = recipe(models, "dare_ties", ["d1", "d2"], parameters={"density": 0.3}, seed=5)
    one, two, other = models / "one", models / "two", models / "other"
    sparsedelta.merge(path, one, threads=1)
    sparsedelta.merge(path, two, threads=threads)
    sparsedelta.merge(path, other, seed=6)
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


GOOD = """merge_method: ties
base_model: base.safetensors
models:
  - model: d1.safetensors
    parameters:
      weight: 0.5
"""

WRONG = [
    ("merge_method", "merge_metod", r"line 1: unknown key 'merge_metod'", "'merge_method'"),
    ("ties", "tise", r"line 1: merge_method 'tise' is unknown", "'ties'"),
    ("weight", "wieght", r"line 6: unknown key 'wieght'", "'weight'"),
    ("      weight", "      gamma", r"line 6: unknown key 'gamma'", ""),
    ("models:", "slices: []\nmodels:", r"line 3: 'slices' is not supported", "whole models"),
    ("models:", "dtype: bfloat17\nmodels:", r"line 3: dtype 'bfloat17'", "'bfloat16'"),
    ("0.5\n", "{valu: 1}\n", r"line 6: unknown key 'valu'", "'value'"),
    ("  - model: d1.safetensors\n    par", "  - par", r"line 4: 'model' is missing", ""),
    ("0.5\n", "0.5\n      weight: 1\n", r"line 7: 'weight' stands here twice", ""),
    ("0.5\n", "[1, 2\n", r"is no YAML", ""),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), WRONG)
def test_what_is_not_understood_is_refused(old: str, new: str, message: str, hint: str) -> None:
    """By line, with the nearest name; what the schema refuses is refused, too."""
    with pytest.raises(UsageError, match=message) as caught:
        parse_recipe(GOOD.replace(old, new, 1))
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "found ''"),
        ("2026-13-45", "found '2026-13-45'"),
        ("!!int abc", "found 'abc'; numbers are decimal"),
        ("!!bool abc", "found 'abc'"),
        ("!own 1", "the tag '!own' is not known"),
        ("1:30", "found '1:30'"),
        ("010", "found '010'"),
        (".nan", "found '.nan'"),
        ("1" + 400 * "0", "larger than any number"),
        ("&a {value: *a}", "'value' is expected to be"),
        ("&a [*a]", "expected a mapping"),
        (3000 * "[", "nested 17 deep"),
    ],
)
def test_values_that_are_none_are_refused(value: str, message: str) -> None:
    """By their line; seeds and very long names, too."""
    with pytest.raises(UsageError, match="line 6") as caught:
        parse_recipe(GOOD.replace("0.5", value))
    assert message in caught.value.message
    assert len(caught.value.message) < 200


def test_seeds_and_names_that_are_too_long(models: Path) -> None:
    """Both by their line."""
    with pytest.raises(UsageError, match=r"line 7: '11.* is larger"):
        parse_recipe(GOOD + f"seed: {'1' * 5001}\n")
    (models / "long.yml").write_text(GOOD.replace("base.safetensors", 300 * "a"))
    with pytest.raises(CheckpointError, match="line 2: there is no checkpoint"):
        sparsedelta.merge(models / "long.yml", models / "out")


def test_a_model_that_is_not_there(models: Path) -> None:
    """Named with its line; what is no local path is looked up on the Hub, if that may be asked."""
    path = models / "recipe.yml"
    path.write_text(GOOD.replace("d1.safetensors", "mistralai/Mistral-7B"))
    message = failed(call("merge", path, "-o", models / "out"), 4)
    assert "line 4: there is no checkpoint or delta mistralai/Mistral-7B" in message
    assert "hf download" in hint_of(message)


def test_the_base_is_the_base_however_it_is_spelled(models: Path) -> None:
    """By a link, or by the folder that it lies in; and it may be named once."""
    folder = models / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(models / "base.safetensors")
    (models / "link").symlink_to(folder)
    outs: list[Path] = []
    for spelled in ("base.safetensors", "./link/../folder", "link/model.safetensors"):
        path = recipe(models, "model_stock", ["t1", "t2"])
        document = yaml.safe_load(path.read_text())
        document["models"].insert(0, {"model": spelled})
        path.write_text(yaml.safe_dump(document))
        outs.append(models / f"out{len(outs)}")
        sparsedelta.merge(path, outs[-1])
    assert len({out.read_bytes() for out in outs}) == 1
    path.write_text(
        GOOD.replace("models:", "models:\n  - model: base.safetensors\n  - model: folder")
    )
    with pytest.raises(UsageError, match=r"line 5: folder is the base.* in line 4"):
        sparsedelta.merge(path, models / "out")


def test_an_output_of_another_dtype_is_refused(models: Path) -> None:
    """Tensors keep their dtypes."""
    path = recipe(models, "ties", ["d1"], dtype="float32")
    message = failed(call("merge", path, "-o", models / "out"), 2)
    assert "shall be float32" in message
    assert "out_dtype: bfloat16" in hint_of(message)


def test_the_schema_knows_what_the_parser_knows() -> None:
    """Methods and parameters; every wrong recipe but those of YAML itself is refused by it, too."""
    assert SCHEMA["properties"]["merge_method"]["enum"] == list(METHODS)
    known = {p.rstrip("_") for m in METHODS.values() for p in m.parameters}
    assert set(SCHEMA["$defs"]["parameters"]["properties"]) == known | {"weight"} | recipes.IGNORED
    validator = Draft202012Validator(SCHEMA)
    validator.validate(yaml.safe_load(GOOD))
    for old, new, *_ in WRONG:
        text = GOOD.replace(old, new, 1)
        if "gamma" in new or "twice" in _[0] or "YAML" in _[0]:
            continue  # depends on the method, or is no matter of a schema
        assert not validator.is_valid(yaml.safe_load(text)), text
