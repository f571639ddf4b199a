"""A tiny generator of numbers, the same in every language and version."""

from __future__ import annotations


class Dice:
    """A tiny generator (64-bit LCG), the same in every language and version."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        """The next number below a limit of at most 2^31."""
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % limit

    def some(self, n: int, count: int) -> list[int]:
        """Ascending, distinct indices below n."""
        chosen: set[int] = set()
        while len(chosen) < count:
            chosen.add(self.below(n))
        return sorted(chosen)

    def small(self, n: int, count: int, width: int, top: int = 9) -> dict[int, int]:
        """Entries with signed values up to top, never 0."""
        return {
            i: (1 + self.below(top)) * (1 - 2 * self.below(2)) % 256**width
            for i in self.some(n, count)
        }
