"""Who may use the weights of a live model: any number of forwards, or one that changes them."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from sparsedelta.errors import BusyError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


class Traffic:
    """Forwards and switches of one model exclude each other; so do switches of several threads.

    An interrupt, wherever it comes, leaves nobody in the way: who is at it is noted by a plain
    assignment within the block that takes the note back.

    Args:
        patience: Seconds that one waits for the other before it is refused.

    Attributes:
        torn: Whether nobody knows what the weights are; set by who changes them.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        # A lock of C within: an interrupt cannot come between taking it and the block.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._forwards: dict[int, list[object]] = {}
        self._switching: int | None = None
        self._turn: int | None = None
        self.torn = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """While the weights are used: nobody changes them.

        Raises:
            BusyError: They are being changed, and still are when the patience ends.
        """
        token = object()
        try:
            self.enter(token)
            yield
        finally:
            self.leave(token)

    def enter(self, token: object) -> None:
        """Begin to use the weights; forwards of one thread may be nested.

        Args:
            token: What this use is known by. A frame: it ends with the frame, whatever ends that.
        """
        me = threading.get_ident()
        with self._lock:
            if me in self._forwards:
                self._forwards[me].append(token)
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
                    hint="any switch that succeeds puts them right: stack.enable() the set that "
                    "was active, stack.close() the base",
                )
            self._forwards[me] = [token]

    def leave(self, token: object) -> None:
        """Be done with the weights, and with what was begun within; nothing if it was refused."""
        me = threading.get_ident()
        with self._lock:
            tokens = self._forwards.get(me, [])
            while any(other is token for other in tokens) and tokens.pop() is not token:
                pass
            if not tokens:
                self._forwards.pop(me, None)
            self._changed.notify_all()

    def _is_used(self) -> bool:
        """Whether forwards run; those that an interrupt has ended, which runs no hook, do not."""
        if self._forwards:
            stacks = sys._current_frames()  # noqa: SLF001 (its documented name)
            for thread, tokens in list(self._forwards.items()):
                running = set(map(id, _outwards(stacks.get(thread))))
                while (
                    tokens and isinstance(tokens[-1], FrameType) and id(tokens[-1]) not in running
                ):
                    tokens.pop()
                if not tokens:
                    del self._forwards[thread]
        return bool(self._forwards)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While a thread decides what is active: others do not.

        Raises:
            BusyError: Another thread is at it, and still is when the patience ends.
        """
        me = threading.get_ident()
        if self._turn == me:
            yield
            return
        try:
            with self._lock:
                if not self._changed.wait_for(lambda: self._turn is None, self._patience):
                    raise BusyError(
                        "another thread is switching the active set, or is within using(…)",
                        hint="group requests by their set, and serve each set from one thread at a "
                        "time",
                    )
                self._turn = me
            yield
        finally:
            if self._turn == me:
                self._turn = None
            self._wake()

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
        try:
            with self._lock:
                if self._is_used() and me in self._forwards:
                    raise BusyError(
                        "the active set cannot be switched from within a forward of the model",
                        hint="switch before it or after it, outside serving()",
                    )
                if not self._changed.wait_for(
                    lambda: self._switching is None and not self._is_used(), self._patience
                ):
                    raise BusyError(
                        f"the active set cannot be switched: {len(self._forwards)} forwards of the "
                        "model are running in other threads",
                        hint="let requests and switches take turns, or wait: "
                        "Stack(model, patience=…)",
                    )
                self._switching = me
            yield
        finally:
            if self._switching == me:
                self._switching = None
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()


def watch(model: nn.Module, traffic: Traffic) -> list[RemovableHandle]:
    """Let every forward of a model pass through ``traffic``; returns what ends that."""
    import torch  # noqa: PLC0415 (the package works without torch)

    call = torch.nn.Module._call_impl.__code__  # noqa: SLF001 (what runs the hooks)

    def frame() -> FrameType | None:
        return next((f for f in _outwards(inspect.currentframe()) if f.f_code is call), None)

    def enter(*_: Any) -> None:  # noqa: ANN401 (of a hook)
        traffic.enter(frame())

    def leave(*_: Any) -> None:  # noqa: ANN401
        # It is called, too, where a hook of others failed, or a forward was refused.
        traffic.leave(frame())

    # Compiled code does not look into them: it leaves its graph, and comes back.
    outside: Any = torch.compiler.disable
    return [
        model.register_forward_pre_hook(outside(enter), prepend=True),
        model.register_forward_hook(outside(leave), always_call=True),
    ]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, and those that it was called from."""
    while frame is not None:
        yield frame
        frame = frame.f_back
