"""Model cards: what they tell, what of an existing one stays, and that nobody's text is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from hub_material import Material
from test_hub_references import COMMIT, DELTA, DIGEST, FILE

import sparsedelta
from sparsedelta.errors import CheckpointError
from sparsedelta.hub.card import BEGIN, END, CardFacts, license_of, renewed_card
from sparsedelta.hub.heat_map import colour, heat_map, place_of
from sparsedelta.hub.manifest_file import ListedBase, ManifestFile


@pytest.fixture
def facts(material: Material) -> CardFacts:
    """Facts of a real delta."""
    listed = ManifestFile(ListedBase("org/base", COMMIT, DIGEST, (FILE,)), (DELTA,))
    base_card = {"license": "llama3", "license_link": "https://x/y", "pipeline_tag": "text-x"}
    return CardFacts(
        "alice/d", listed, sparsedelta.info(material.delta), ("norm",), None, base_card
    )


@pytest.mark.parametrize("prose", ["\r\nWindows\r\n", "\nno end", "\ntwo  \n\n\n", "\n\udcff\n"])
def test_prose_stays_byte_for_byte(facts: CardFacts, prose: str) -> None:
    old = f"\ufeff---\r\nlicense: gpl\r\n---\n{prose}"
    card = renewed_card(old, facts)
    assert card.split("---\n", 2)[2].startswith(prose)
    assert metadata(card)["license"] == "gpl"
    assert renewed_card(card, facts) == card


def test_a_block_without_its_end_takes_no_prose_along(facts: CardFacts) -> None:
    cut = renewed_card(None, facts).replace(END, "Written by hand.")
    once = renewed_card(cut, facts)
    assert once.startswith(cut)
    assert renewed_card(once, facts) == once
    more = f"{once}{BEGIN}\n{END}\n"
    assert "Written by hand." in renewed_card(more, facts)


OLD = ("", "# Prose\n\nalone", "no title", "---\nlicense: gpl\n---\n\nText")
BROKEN = (
    "---\ndate: 2026-13-45\n---\n",
    f"---\na: {'[' * 5000}\n---\n",
    "---\nlicense: [\n---\n",
    "---\n- a\n---\n",
    "---\nlicense: mit\n",
)


def metadata(card: str) -> dict[str, Any]:
    """The metadata of a card."""
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_a_new_card(facts: CardFacts) -> None:
    card = renewed_card(None, facts)
    assert metadata(card) == {
        "library_name": "sparsedelta",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "license": "llama3",
        "license_link": "https://x/y",
        "pipeline_tag": "text-x",
        "tags": ["sparsedelta", "sparse-delta"],
    }
    for told in ("# d\n", COMMIT, DIGEST, "sparsedelta apply org/base alice/d", "@misc{", "<svg "):
        assert told in card
    assert "\n\n" not in card[card.index("<svg") : card.index("</svg>")]
    assert renewed_card(card, facts) == card  # so that a push of what is there changes nothing


def test_what_people_write_stays(facts: CardFacts) -> None:
    card = renewed_card(None, facts)
    front, rest = card.split("---\n")[1:]
    mine = rest.replace("# d\n", "# My delta\n\nFor *you*. --- \n") + "\n## Thanks\nto all\r\n"
    old = f"---\n# a comment\n{front}extra: [1, 2]\n---\n{mine}"
    assert renewed_card(old, facts) == old
    listed = replace(facts.listed, base=ListedBase("o/b", None, DIGEST))
    other = replace(facts, license="mit", listed=listed)
    found = renewed_card(old, other)
    assert found.split(BEGIN)[0].split("---\n", 2)[2] == mine.split(BEGIN)[0]
    assert found.split(END)[1] == mine.split(END)[1]
    assert "org/base" not in found
    told = metadata(found)
    assert (told["extra"], told["license"], told["base_model"]) == ([1, 2], "mit", "o/b")
    assert "license_link" not in told  # it was that of the other license


@pytest.mark.parametrize("old", OLD)
def test_a_card_without_our_block(facts: CardFacts, old: str) -> None:
    card = renewed_card(old, facts)
    assert card.count(BEGIN) == card.count(END) == 1
    assert old.rpartition("---\n")[2].strip() in card
    assert renewed_card(card, facts) == card
    assert metadata(card)["license"] == ("gpl" if "gpl" in old else "llama3")
    assert license_of(card, None, {}) == metadata(card)["license"]


@pytest.mark.parametrize("old", BROKEN)
def test_a_card_that_cannot_be_read(facts: CardFacts, old: str) -> None:
    with pytest.raises(CheckpointError, match=r"the model card of alice/d cannot be renewed"):
        renewed_card(old, facts)


def test_metadata_of_the_delta(facts: CardFacts) -> None:
    told = {"datasets": "org/data, x, ../no, <b>", "metrics": "accuracy", "gallop.lr": "1|2`<i>\n#"}
    card = renewed_card(None, replace(facts, info=replace(facts.info, metadata=told)))
    assert metadata(card)["datasets"] == ["org/data", "x"]
    assert metadata(card)["metrics"] == ["accuracy"]
    row = next(line for line in card.splitlines() if "gallop.lr" in line)
    assert row == "| gallop.lr | 1&#124;2&#96;&lt;i&gt;�&#35; |"
    assert not set("<`\n") & set(row.split("|", 2)[2].replace("&lt;", ""))
    assert row.count("|") == 3


NASTY = ["a.0.</svg><script>alert(1)</script>", 'a.1."onload="x', "b\x00\x1b[31m`x`", "&amp;.2.w"]


def test_the_map_is_xml_whatever_tensors_are_called(facts: CardFacts) -> None:
    tensors = [replace(facts.info.tensors[0], name=name) for name in NASTY]
    svg = heat_map(tensors, [*NASTY, "norm"])
    root = ET.fromstring(svg)  # noqa: S314 (it is our own)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "rect", "text"}
    attributes = {key for element in root.iter() for key in element.attrib}
    assert "onload" not in attributes
    assert "\n" not in svg


def test_what_the_map_shows(facts: CardFacts) -> None:
    svg = heat_map(facts.info.tensors, ["norm", "layers.1.norm.weight"])
    titles = re.findall(r"<title>([^<]*)</title></rect>", svg)
    assert any(title.startswith("layer 1, norm: unchanged") for title in titles)
    touched = next(t for t in facts.info.tensors if t.name == "layers.0.weight")
    assert any(f"{touched.nnz:,} of {touched.words:,}" in title for title in titles)
    assert svg == heat_map(facts.info.tensors, ["norm", "layers.1.norm.weight"])


def test_colours_are_logarithmic_and_none_is_told_apart() -> None:
    shades = [colour(10.0**power) for power in range(-6, 1)]
    assert len(set(shades)) == 7
    brightness = [sum(bytes.fromhex(shade[1:])) for shade in shades]
    assert brightness == sorted(brightness, reverse=True)
    assert colour(0) not in shades
    assert colour(1e-9) == shades[0]
    steps = [one - other for one, other in pairwise(brightness)]
    assert max(steps) - min(steps) <= 3


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.mlp.up_proj.weight", (12, "mlp.up_proj")),
        ("h.0.attn.bias", (0, "attn.bias")),
        ("0.weight", (0, "weight")),
        ("lm_head.weight", (None, "lm_head")),
        ("conv2d.weight", (None, "conv2d")),
    ],
)
def test_layers_and_modules(name: str, place: tuple[int | None, str]) -> None:
    assert place_of(name) == place


def test_the_card_of_a_chain(facts: CardFacts, tmp_path: Path) -> None:
    del tmp_path
    link = replace(DELTA, path="chain/000001.safetensors")
    listed = ManifestFile(facts.listed.base, (link, link), is_chain=True)
    card = renewed_card(None, replace(facts, listed=listed))
    assert "a chain of 2 sparse deltas" in card
    assert "| 2 | `" in card
    assert "sparsedelta pull alice/d --to 2 --onto org/base" in card
