"""Leaving out early what is not chosen: fewer passes, and the same choice for any sample."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_gallop_ranking import FEW, Ranks, joined, named
from test_gallop_topk import TENSORS, source_of
from torch import Tensor

import gallop.sifting
from gallop.errors import SelectionError
from gallop.ranking import Ranking, TensorRankings
from gallop.sifting import Thinned
from gallop.topk import ScoreSource, top_k

SAMPLES = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3e38]) | st.floats(0, 9, width=32)))


@pytest.fixture(autouse=True, scope="module")
def _everything_is_worth_it() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallop.sifting, "_WORTH", 1)
        yield


def samples_of(tensors: list[list[list[float]]], drawn: list[list[float]]) -> dict[str, Thinned]:
    """Samples of any kind, whatever the tensors are."""
    padded = [*drawn, *([] for _ in tensors)]
    return {
        str(n): Thinned(len(joined([chunks])[0]), source_of([padded[n]]))
        for n, chunks in enumerate(tensors)
    }


@FEW
@given(TENSORS, SAMPLES, st.floats(0, 1), st.lists(st.integers(0, 5), max_size=3))
def test_no_sample_changes_a_choice(
    tensors: list[list[list[float]]], drawn: list[list[float]], share: float, cuts: list[int]
) -> None:
    """Law: in any groups, with any sample, good or bad, the choice is that of one top-k."""
    k = round(share * sum(len(c) for chunks in tensors for c in chunks))
    whole = top_k([source for _, source in named(tensors)], k)
    thinned = samples_of(tensors, drawn)
    ranking = Ranking(k)
    shown: list[float] = []
    ends = sorted(min(cut, len(tensors)) for cut in cuts)
    groups = list(pairwise([0, *ends, len(tensors)]))
    for number, (start, end) in enumerate(groups, start=1):
        ranking.add(
            named(tensors)[start:end],
            last=number == len(groups),
            thinned=thinned,
            observe=lambda chunk: shown.extend(chunk.tolist()),
        )
    found = ranking.result()
    assert [each.tolist() for each in found.indices.values()] == [
        each.tolist() for each in whole.indices
    ]
    assert (found.count, found.threshold) == (whole.count, whole.threshold)
    assert (found.ties, found.ties_taken) == (whole.ties, whole.ties_taken)
    values = [value for each in joined(tensors) for value in each]
    assert shown == torch.tensor(values).tolist()  # once


@FEW
@given(TENSORS, SAMPLES, st.floats(0, 1))
def test_tensors_with_budgets_of_their_own(
    tensors: list[list[list[float]]], drawn: list[list[float]], share: float
) -> None:
    budgets = {n: round(share * len(joined([chunks])[0])) for n, chunks in enumerate(tensors)}
    found = []
    for thinned in ({}, samples_of(tensors, drawn)):
        rankings = TensorRankings({str(n): k for n, k in budgets.items()})
        rankings.add(named(tensors), last=True, thinned=thinned)
        found.append(rankings.result())
    assert [each.tolist() for each in found[0].indices.values()] == [
        each.tolist() for each in found[1].indices.values()
    ]
    assert (found[0].thresholds, found[0].ties) == (found[1].thresholds, found[1].ties)


@FEW
@given(TENSORS.map(joined), SAMPLES, st.floats(0, 0.5))
def test_ranks_agree_on_what_to_leave_out(
    tensors: list[list[float]], drawn: list[list[float]], share: float
) -> None:
    """Law: two ranks with different samples choose what one process does."""
    k = round(share * sum(map(len, tensors)))
    whole = top_k([source_of([each]) for each in tensors], k)
    ranks = Ranks(2)
    found: list[list[list[int]]] = [[], []]

    def work(rank: int) -> None:
        held = [np.arange(rank, len(each), 2) for each in tensors]
        sources = named([[np.array(t)[h].tolist()] for t, h in zip(tensors, held, strict=True)])
        thinned = (
            {
                str(n): Thinned(len(t), source_of(drawn[(n + rank) % len(drawn) :][:1] or [[]]))
                for n, t in enumerate(tensors)
            }
            if drawn
            else {}
        )
        places = {str(n): each.__getitem__ for n, each in enumerate(held)}
        ranking = Ranking(k, exchange=ranks.exchange(rank), places=places)
        ranking.add(sources, last=True, thinned=thinned)
        chosen = ranking.result().indices.values()
        found[rank] = [h[c].tolist() for h, c in zip(held, chosen, strict=True)]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [sorted(i for each in found for i in each[n]) for n in range(len(tensors))]
    assert together == [each.tolist() for each in whole.indices]


def counted(scores: Tensor) -> tuple[ScoreSource, list[int]]:
    """A source, and how often it was asked for."""
    passes: list[int] = []

    def source() -> list[Tensor]:
        passes.append(1)
        return [scores]

    return source, passes


def test_one_pass_where_the_sample_is_good() -> None:
    scores = torch.rand(1 << 16, generator=torch.Generator().manual_seed(0))
    k = 700
    good, bad = scores[::7], torch.full((1 << 13,), 2.0)

    def failing() -> list[Tensor]:
        raise SelectionError("of the wrong index")

    for sample, passes in ((lambda: [good], 1), (lambda: [bad], 4), (failing, 3)):
        source, asked = counted(scores)
        ranking = Ranking(k)
        ranking.add([("a", source)], last=True, thinned={"a": Thinned(scores.numel(), sample)})
        assert len(asked) == passes
        assert (
            ranking.result().indices["a"].tolist()
            == top_k([lambda: [scores]], k).indices[0].tolist()
        )


def test_equal_scores_are_not_all_kept() -> None:
    """As many entries at the pivot as there are: they are ranked without keeping them."""
    source, asked = counted(torch.ones(1 << 12))
    ranking = Ranking(5)
    sample = Thinned(1 << 12, lambda: [torch.ones(64)])
    ranking.add([("a", source)], last=True, thinned={"a": sample})
    assert ranking.result().indices["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(asked) > 2
