"""Faults that a test asks for: which request fails, and how.

A fault is a JSON object. Which request: ``match`` (a regular expression found in
``METHOD /path?query``; all requests without it), ``nth`` (the first one that fails, counted among
those that match, from 1), ``times`` (how many from there on; null: all). How, by ``kind``:

- ``status``: answered with ``status`` (429, 500, 503 …) and not carried out; ``retry_after`` and
  ``ratelimit`` are seconds in the headers of these names; with ``echo`` the message repeats the
  ``Authorization`` header of the request.
- ``drop``: the connection ends before anything is done.
- ``lost``: carried out, but the connection ends without an answer.
- ``cut``: carried out; the connection ends after ``after`` bytes of the body.
- ``cut_upload``: the connection ends after ``after`` bytes of the request's body were read.
- ``corrupt``: one bit of the body's byte ``at`` (from its end where negative) is another.
- ``corrupt_upload``: the same of the request's body, as it is taken in.
- ``slow``: ``seconds`` pass before it is carried out.
"""

from __future__ import annotations

import random
import re
import threading
from dataclasses import asdict, dataclass, field, fields

KINDS = ("status", "drop", "lost", "cut", "cut_upload", "corrupt", "corrupt_upload", "slow")


@dataclass(slots=True)
class Fault:
    """One fault, and how many requests it has seen."""

    kind: str
    match: str = ""
    nth: int = 1
    times: int | None = 1
    status: int = 503
    retry_after: int | None = None
    ratelimit: int | None = None
    after: int = 0
    at: int = 0
    seconds: float = 0.0
    echo: bool = False
    seen: int = field(default=0, init=False)
    used: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault: kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        re.compile(self.match)

    def takes(self, line: str) -> bool:
        """Whether this fault happens to a request, which it counts."""
        if not re.search(self.match, line):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.used >= self.times):
            return False
        self.used += 1
        return True


def parse(document: dict[str, object]) -> Fault:
    """A fault from its JSON object.

    Raises:
        ValueError: A key or the kind is unknown.
    """
    known = {entry.name for entry in fields(Fault) if entry.init}
    if unknown := set(document) - known:
        raise ValueError(f"fault: unknown keys {sorted(unknown)}, expected some of {sorted(known)}")
    return Fault(**document)  # type: ignore[arg-type]


def seeded(seed: int, *, requests: int, kinds: tuple[str, ...], match: str = "") -> Fault:
    """A fault at a random one of the first ``requests`` requests, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311
    return Fault(
        kind=chance.choice(kinds),
        match=match,
        nth=chance.randint(1, requests),
        status=chance.choice((429, 500, 502, 503)),
        retry_after=0,
        after=chance.choice((0, 1, 100, 4096, chance.randrange(1 << 20))),
        at=chance.randrange(1 << 24),
        seconds=0.2,
    )


class Faults:
    """All faults that wait for their request. Safe to use from every thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[Fault] = []

    def set(self, faults: list[Fault]) -> None:
        """Replace what waits."""
        with self.lock:
            self.waiting = faults

    def pick(self, line: str) -> Fault | None:
        """The fault that happens to a request, if any: the first that takes it."""
        with self.lock:
            taken = [fault for fault in self.waiting if fault.takes(line)]
        return taken[0] if taken else None

    def told(self) -> list[dict[str, object]]:
        """All faults, and how often each has happened."""
        with self.lock:
            return [asdict(fault) for fault in self.waiting]
