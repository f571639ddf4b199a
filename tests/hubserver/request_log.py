"""The log of requests: what came, what went, and how many bytes of it."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Record:
    """One request, while it is answered and afterwards."""

    number: int
    origin: str
    """``hub`` or ``cdn``."""
    method: str
    path: str
    query: str
    range: str | None
    authenticated: bool
    """Whether an ``Authorization`` header came with it, good or bad."""
    agent: str
    status: int = 0
    """0: the connection ended without an answer."""
    received: int = 0
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the answer's body."""
    fault: str | None = None


class RequestLog:
    """All requests in the order in which they came. Safe to use from every thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.records: list[Record] = []
        self.open = 0

    def begin(self, record: Record) -> None:
        """A request has come."""
        with self.changed:
            self.open += 1
            record.number = len(self.records) + 1
            self.records.append(record)

    def end(self) -> None:
        """A request is done with."""
        with self.changed:
            self.open -= 1
            self.changed.notify_all()

    def told(self, patience: float = 5.0) -> list[dict[str, object]]:
        """All records; waits until the requests at hand are answered."""
        with self.changed:
            self.changed.wait_for(lambda: self.open == 0, patience)
            return [asdict(record) for record in self.records]

    def clear(self) -> None:
        """Forget all records."""
        with self.changed:
            self.records = []
