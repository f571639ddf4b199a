"""Movie reviews with sentiment, from the source archive of vaderSentiment (MIT).

The archive holds 10,605 sentences from movie reviews, each rated by ten people from -4 to 4.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

_INNER: Final = "additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER: Final = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_CLEAR: Final = 0.5
_LONGEST: Final = 200

POSITIVE: Final = " positive"
NEGATIVE: Final = " negative"


class Review(NamedTuple):
    """A sentence, and its sentiment as the completion of :func:`prompt`."""

    text: str
    label: str


def prompt(text: str) -> str:
    """The question that the model completes with one token."""
    return f"{text}\nSentiment:"


def read_reviews(archive: Path) -> list[Review]:
    """The clearly positive and clearly negative sentences, in the order of the archive."""
    with zipfile.ZipFile(archive) as outer:
        name = next(name for name in outer.namelist() if name.endswith(_INNER))
        packed = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as inner:
        member = inner.extractfile(_MEMBER)
        if member is None:
            raise FileNotFoundError(_MEMBER)
        lines = member.read().decode("utf-8", errors="replace").splitlines()
    reviews = []
    for line in lines:
        _, rating, text = line.split("\t", 2)
        score = float(rating)
        if abs(score) >= _CLEAR and len(text) <= _LONGEST:
            reviews.append(Review(text.strip(), POSITIVE if score > 0 else NEGATIVE))
    return reviews


def split_reviews(reviews: list[Review], *, test: int) -> tuple[list[Review], list[Review]]:
    """Shuffle with a fixed seed and hold out ``test``; returns training and test reviews."""
    shuffled = random.Random(0).sample(reviews, len(reviews))  # noqa: S311 (no cryptography)
    held_out = shuffled[:test]
    texts = {review.text for review in held_out}
    return [review for review in shuffled[test:] if review.text not in texts], held_out


def write_training_file(reviews: list[Review], out: Path) -> None:
    """Write what ``gallop train`` reads: a prompt and a completion per line."""
    with out.open("w", encoding="utf-8") as file:
        for review in reviews:
            line = {"prompt": prompt(review.text), "completion": review.label}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
