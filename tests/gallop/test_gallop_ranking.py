"""Rankings in groups, over ranks and from samples, against one sort of everything."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_gallop_topk import TENSORS, source_of

from gallop.ranking import Ranking
from gallop.sampling import CONFIDENCE, Sample, density_bounds, draw_sample
from gallop.shards import Shard
from gallop.topk import Exchange, Place, ScoreSource, top_k
from sparsedelta.boxes import Box

FEW = settings(max_examples=25, deadline=None)  # histograms of 2**16 bins take their time


def joined(tensors: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    return [[value for chunk in chunks for value in chunk] for chunks in tensors]


def named(tensors: Sequence[Any]) -> list[tuple[str, ScoreSource]]:
    return [(str(n), source_of(chunks)) for n, chunks in enumerate(tensors)]


@FEW
@given(TENSORS, st.floats(0, 1), st.lists(st.integers(0, 5), max_size=4))
def test_groups_do_not_matter(
    tensors: list[list[list[float]]], share: float, cuts: list[int]
) -> None:
    """Law: tensors in groups, forgotten one after the other, give the choice of one top-k."""
    k = round(share * sum(len(c) for chunks in tensors for c in chunks))
    whole = top_k([source for _, source in named(tensors)], k)
    ranking = Ranking(k)
    ends = sorted(min(cut, len(tensors)) for cut in cuts)
    for start, end in pairwise([0, *ends]):
        ranking.add(named(tensors)[start:end], last=False)
    ranking.add(named(tensors)[max(ends, default=0) :], last=True)
    found = ranking.result()
    assert found.count == whole.count
    assert [each.tolist() for each in found.indices.values()] == [
        each.tolist() for each in whole.indices
    ]
    assert found.threshold == whole.threshold
    assert (found.ties, found.ties_taken) == (whole.ties, whole.ties_taken)


@FEW
@given(TENSORS, st.integers(0, 30), st.integers(0, 30))
def test_a_ranking_can_be_cut(tensors: list[list[list[float]]], k: int, fewer: int) -> None:
    ranking = Ranking(k)
    for each in named(tensors):
        ranking.add([each], last=False)
    found = ranking.cut(min(k, fewer))
    whole = top_k([source for _, source in named(tensors)], min(k, fewer))
    assert [each.tolist() for each in found.indices.values()] == [
        each.tolist() for each in whole.indices
    ]


def test_what_is_kept_is_bounded_by_k() -> None:
    """Law: between groups a ranking holds k entries, however many have gone by."""
    ranking = Ranking(10)
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        scores = torch.rand(1000, generator=generator)
        ranking.add([(str(number), lambda scores=scores: [scores])], last=False)  # type: ignore[misc]
        kept = [each for each in ranking._kept.values() if each.keys is not None]  # noqa: SLF001
        assert sum(len(each.positions) for each in kept) == 10
        assert sum(each.keys.numel() for each in kept if each.keys is not None) == 10


class Ranks:
    """Threads that stand for ranks, each with a contiguous run of every tensor."""

    def __init__(self, number: int) -> None:
        self._barrier = threading.Barrier(number, timeout=20)
        self._given: list[Any] = [None] * number

    def exchange(self, rank: int) -> Exchange:
        """Return what one of them exchanges with the others."""

        def gather(values: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401
            self._given[rank] = np.array(values)
            self._barrier.wait()
            found = np.stack(self._given)
            self._barrier.wait()
            return found

        return Exchange(
            total=lambda counts: gather(counts).sum(0),
            largest=lambda values: gather(values).max(0),
        )


TIED = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=9), min_size=2, max_size=3
)


@FEW
@given(
    tensors=st.one_of(TENSORS.map(joined), TIED),
    share=st.floats(0, 1),
    number=st.integers(2, 3),
    grouped=st.booleans(),
    strided=st.booleans(),
)
def test_ranks_do_not_matter(
    tensors: list[list[float]], share: float, number: int, *, grouped: bool, strided: bool
) -> None:
    """Law: shards on several ranks, of rows or of columns, give what one process chooses."""
    k = round(share * sum(map(len, tensors)))
    whole = top_k([source_of([each]) for each in tensors], k)
    ranks = Ranks(number)
    found: list[list[list[int]]] = [[] for _ in range(number)]

    def held_by(rank: int, size: int) -> NDArray[np.int64]:
        if strided:
            return np.arange(rank, size, number)
        return np.arange(size * rank // number, size * (rank + 1) // number)

    def work(rank: int) -> None:
        held = [held_by(rank, len(each)) for each in tensors]
        places: dict[str, Place] = {str(n): each.__getitem__ for n, each in enumerate(held)}
        ranking = Ranking(k, exchange=ranks.exchange(rank), places=places)
        sources = named([[np.array(t)[h].tolist()] for t, h in zip(tensors, held, strict=True)])
        groups = [[each] for each in sources] if grouped else [sources]
        for each in groups:
            ranking.add(each, last=each is groups[-1])
        result = ranking.result()
        assert result.count == whole.count
        assert (result.ties, result.ties_taken) == (whole.ties, whole.ties_taken)
        found[rank] = [
            each[chosen].tolist()
            for each, chosen in zip(held, result.indices.values(), strict=True)
        ]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [sorted(i for each in found for i in each[n]) for n in range(len(tensors))]
    assert together == [each.tolist() for each in whole.indices]


def test_ties_that_were_kept_are_cut_in_the_order_of_the_whole() -> None:
    """Two ranks hold the columns of a tensor that came first; a later one takes some places."""
    ranks = Ranks(2)
    found: list[list[int]] = [[], []]

    def work(rank: int) -> None:
        # Of [1 0 1 0 0 1 0 1], even and odd; positions among the kept are not those of the shard.
        held = np.arange(rank, 8, 2)
        keys = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]][rank]
        ranking = Ranking(4, exchange=ranks.exchange(rank), places={"a": held.__getitem__})
        ranking.add([("a", source_of([keys]))], last=False)
        ranking.add([("b", source_of([[2.0, 2.0]] if rank else []))], last=True)
        found[rank] = held[ranking.result().indices["a"]].tolist()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 2], []]


@FEW
@given(TENSORS, st.floats(0, 1))
def test_a_sample_of_everything_is_exact(tensors: list[list[list[float]]], share: float) -> None:
    """Law: where every entry is looked at, the sampled threshold is the exact one."""
    sizes = [sum(map(len, chunks)) for chunks in tensors]
    k = max(1, round(share * sum(sizes)))
    drawn = draw_sample(
        [(str(n), size, None) for n, size in enumerate(sizes)], size=10**6, k=k, seed=0
    )
    assert density_bounds(drawn)[0] == density_bounds(drawn)[1] if drawn.size else True
    ranking = Ranking(k, sample=drawn)
    for number, each in enumerate(named(tensors)):
        ranking.add([each], last=number == len(tensors) - 1)
    whole = top_k([source for _, source in named(tensors)], k)
    assert [each.tolist() for each in ranking.result().indices.values()] == [
        each.tolist() for each in whole.indices
    ]


def test_sampled_choice_is_what_lies_above_a_quantile_of_the_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(size, generator=generator) for size in (100, 30_000, 70_000)]
    tensors[0] = 0.96 + tensors[0] / 25  # all of it is chosen, though few of it are sampled
    drawn = draw_sample(
        [(str(n), len(t), None) for n, t in enumerate(tensors)], size=2_000, k=5_000, seed=4
    )
    assert drawn.positions is not None
    sampled = torch.cat([t[drawn.positions[str(n)]] for n, t in enumerate(tensors)])
    assert (len(sampled), drawn.rank) == (2_000, 100)
    threshold = sampled.sort(descending=True).values[99]
    for groups in ([[0, 1, 2]], [[0], [1], [2]], [[0, 1], [2]]):
        ranking = Ranking(5_000, sample=drawn)
        for group in groups:
            sources = [(str(n), lambda n=n: [tensors[n]]) for n in group]
            ranking.add(sources, last=group is groups[-1])
        found = ranking.result()
        assert found.threshold == float(threshold)
        for name, indices in found.indices.items():
            expected = torch.nonzero(tensors[int(name)] >= threshold).view(-1)
            assert indices.tolist() == expected.tolist()


def test_the_sample_does_not_depend_on_the_sharding() -> None:
    def drawn(of_a: tuple[int, int], of_b: tuple[int, int]) -> Sample:
        runs = (("a", 50, of_a), ("b", 70, of_b))
        shards = [
            (name, size, Shard(Box((size,), *((each,) for each in run))))
            for name, size, run in runs
        ]
        return draw_sample(shards, size=40, k=6, seed=1)

    whole = drawn((0, 50), (0, 70))
    left, right = drawn((0, 20), (0, 70)), drawn((20, 30), (0, 0))
    assert whole.positions
    assert left.positions
    assert right.positions
    joined = [*left.positions["a"], *(right.positions["a"] + 20)]
    assert joined == whole.positions["a"].tolist()
    assert len(right.positions["b"]) == 0
    assert len(whole.positions["a"]) + len(whole.positions["b"]) == 40


def test_density_bounds_hold_as_often_as_they_say() -> None:
    """The bounds fail on at most 1 % of samples; the exact tail of a uniform is 1 - threshold."""
    generator = np.random.default_rng(0)
    size, rank, trials = 500, 25, 2_000
    low, high = density_bounds(Sample(size, rank, 10**6, {}))
    assert low < rank / size < high
    tails = 1 - np.sort(generator.random((trials, size)), axis=1)[:, -rank]
    outside = ((tails < low) | (tails > high)).mean()
    assert outside <= 1 - CONFIDENCE
    # Far tighter than Dvoretzky, Kiefer and Wolfowitz at this density.
    assert high - low < 2 * math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * size))


def test_infinite_keys_are_the_largest() -> None:
    choice = top_k([source_of([[math.inf, 1.0, math.inf]])], 2)
    assert choice.indices[0].tolist() == [0, 2]
    assert choice.threshold == math.inf


def test_scores_come_with_the_choice_if_asked_for() -> None:
    choice = top_k([source_of([[3.0, 1.0], [2.0]]), source_of([])], 2, with_scores=True)
    assert choice.scores is not None
    assert [each.tolist() for each in choice.scores] == [[3.0, 2.0], []]


@pytest.mark.parametrize("k", [0, 1])
def test_nothing_to_choose_from(k: int) -> None:
    ranking = Ranking(k)
    ranking.add([], last=True)
    assert ranking.result().count == 0
