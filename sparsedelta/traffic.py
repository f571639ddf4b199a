"""Who may use the weights of a live model: any number of forwards, or one that changes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparsedelta.errors import BusyError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


class Traffic:
    """Forwards and switches of one model exclude each other; so do switches of several threads.

    Args:
        patience: Seconds that one waits for the other before it is refused.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._forwards: dict[int, int] = {}
        self._switching: int | None = None
        self._turn = threading.RLock()
        self.torn = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """While the weights are used: nobody changes them.

        Raises:
            BusyError: They are being changed, and still are when the patience ends.
        """
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Begin to use the weights; forwards of one thread may be nested."""
        me = threading.get_ident()
        with self._changed:
            if me in self._forwards:
                self._forwards[me] += 1
                return
            if self._switching == me or not self._changed.wait_for(
                lambda: self._switching is None, self._patience
            ):
                raise BusyError(
                    "a forward was started while the active set of the model is being switched",
                    hint="let requests and switches take turns, or wait: Stack(model, patience=…)",
                )
            if self.torn:
                raise BusyError(
                    "a switch of the model failed half-way, and so did the way back: its weights "
                    "are of no set",
                    hint="any switch of the stack that succeeds puts them right",
                )
            self._forwards[me] = 1

    def leave(self) -> None:
        """Be done with the weights; does nothing for a forward that was refused."""
        me = threading.get_ident()
        with self._changed:
            depth = self._forwards.pop(me, 0)
            if depth > 1:
                self._forwards[me] = depth - 1
            self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While a thread decides what is active: others do not.

        Raises:
            BusyError: Another thread is at it, and still is when the patience ends.
        """
        if not self._turn.acquire(timeout=self._patience):
            raise BusyError(
                "another thread is switching the active set, or is within using(…)",
                hint="group requests by their set, and serve each set from one thread at a time",
            )
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def switch(self) -> Iterator[None]:
        """While the weights are changed: nobody uses them; may be nested in one thread.

        Raises:
            BusyError: A forward runs, and still does when the patience ends.
        """
        me = threading.get_ident()
        if self._switching == me:
            yield
            return
        with self._changed:
            if me in self._forwards:
                raise BusyError(
                    "the active set cannot be switched from within a forward of the model",
                    hint="switch before it or after it, outside serving()",
                )
            if not self._changed.wait_for(
                lambda: self._switching is None and not self._forwards, self._patience
            ):
                raise BusyError(
                    f"the active set cannot be switched: {len(self._forwards)} forwards of the "
                    "model are running in other threads",
                    hint="let requests and switches take turns, or wait: Stack(model, patience=…)",
                )
            self._switching = me
        try:
            yield
        finally:
            with self._changed:
                self._switching = None
                self._changed.notify_all()


def watch(model: nn.Module, traffic: Traffic) -> list[RemovableHandle]:
    """Let every forward of a model pass through ``traffic``; returns what ends that."""
    import torch  # noqa: PLC0415 (the package works without torch)

    begun = threading.local()

    def enter(*_: Any) -> None:  # noqa: ANN401 (of a hook)
        traffic.enter()
        begun.depth = getattr(begun, "depth", 0) + 1

    def leave(*_: Any) -> None:  # noqa: ANN401
        # It is called, too, where a hook of others failed, or a forward was refused.
        if getattr(begun, "depth", 0):
            begun.depth -= 1
            traffic.leave()

    # Compiled code does not look into them: it leaves its graph, and comes back.
    outside: Any = torch.compiler.disable
    return [
        model.register_forward_pre_hook(outside(enter), prepend=True),
        model.register_forward_hook(outside(leave), always_call=True),
    ]
