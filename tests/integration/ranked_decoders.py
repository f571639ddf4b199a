"""Decoders of `ranked` that count what they decode, or get it wrong."""

from __future__ import annotations

from typing import Any

import pytest

from sparsedelta.codecs import Ranked

DECODER = "sparsedelta.codecs.ranked.Ranked.decode_all"
"""What every block of `ranked` goes through."""


def counting(monkeypatch: pytest.MonkeyPatch, *, added: int = 0) -> list[int]:
    """Entries of every block that is decoded from now on.

    Args:
        monkeypatch: Undoes it.
        added: What is added to every value; any other number than 0 makes the decoder wrong.
    """
    counts: list[int] = []
    decode_all = Ranked.decode_all

    def counted(*arguments: Any) -> Any:  # noqa: ANN401 (as that of the codec)
        found = decode_all(*arguments)
        counts.extend(len(indices) for indices, _ in found)
        return [(indices, words + added) for indices, words in found]

    monkeypatch.setattr(DECODER, counted)
    return counts
