"""``Stack``: named deltas on a live model, put on, weighed and taken off in place, exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sparsedelta.closing import Closing
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import UsageError, WrongBaseError
from sparsedelta.launch import threads_here
from sparsedelta.live_tensors import LiveTensors, gathers
from sparsedelta.locations import LocationLike, Url
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.live_base import Candidate, Found, Verify
from sparsedelta.operations.live_ranks import agree, verified_together
from sparsedelta.operations.switching import (
    BASE,
    Held,
    Setting,
    Standing,
    UndoneError,
    active,
    all_of,
    entries_of,
    finite_weight,
    plan,
    repair,
    touched,
    write,
)
from sparsedelta.parallel import OrderedMap
from sparsedelta.ranks import ALONE, Ranks
from sparsedelta.traffic import Traffic, watch

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import nn


class Stack(Closing):
    """Named deltas on a live model, in place, where its weights are.

    The model always holds exactly what composing the active set gives: the words that
    :func:`sparsedelta.compose` with ``sum`` and :func:`sparsedelta.apply` would write, whatever the
    order of calls; with no delta active, those of the base, bit for bit. To that end the base words
    under the entries are kept, and no others: memory is in proportion to the entries of the deltas.
    Weights outside them may be trained meanwhile; those under them may not.

    A switch that fails leaves the model and the stack as they were. Where even that fails, or an
    interrupt comes at the worst moment, no forward runs until the next switch has put all right:
    ``enable()`` does, without a name, and so does ``close()``. Forwards of the model and switches
    exclude each other (docs/serving.md): of the two, the one that comes second waits for
    ``patience`` seconds, and is refused then.

    A sharded model (FSDP2) is switched by all its ranks together, with the same calls in the same
    order: each keeps and writes the entries of its own shards.

    Args:
        model: The model: plain, compiled, in ``DistributedDataParallel``, split over devices, or
            sharded. It holds the base of the deltas that will be added.
        names: The model's name of a tensor by the checkpoint's, where they are not the same.
        patience: Seconds that a forward waits for a switch, a switch for forwards, and a thread for
            another one that switches.
        guard: Whether forwards are watched at all. Without, serving code is left to itself.
        group: The processes that hold a sharded model; None for all.
        threads: Threads that verify; None for the cores of this process.
        on_device: Whether tensors are verified, and deltas decoded, on the devices where they are:
            words do not come to the host. Sharded models are looked at there in any case.

    Raises:
        StructureError: The model is of a kind that cannot be changed in place.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        names: Mapping[str, str] = MappingProxyType({}),
        patience: float = 0.0,
        guard: bool = True,
        group: dist.ProcessGroup | None = None,
        threads: int | None = None,
        on_device: bool = False,
    ) -> None:
        import torch  # noqa: PLC0415 (the package works without torch)

        is_number = isinstance(patience, int | float) and not isinstance(patience, bool)
        if not is_number or not patience >= 0:
            raise UsageError(f"patience is {patience!r}, expected a number of seconds")
        if not isinstance(model, torch.nn.Module):
            raise UsageError(f"the model is {type(model).__name__}, expected a torch.nn.Module")
        self.model = model
        self._names = names
        self._group = group
        self._threads, self._on_device = threads, on_device
        self._standing = Standing({}, {}, BASE)
        self._maybe: tuple[Held, ...] = ()
        self._traffic = Traffic(min(patience, threading.TIMEOUT_MAX))
        self._is_sharded = LiveTensors(model, names).is_sharded
        self._hooks = watch(model, self._traffic) if guard else []
        self._is_closed = False

    def add(
        self,
        name: str,
        delta: LocationLike | DeltaReader,
        weight: float = 1.0,
        *,
        enabled: bool = True,
        verify: Verify = "touched",
    ) -> None:
        """Put a delta on the model, by a name of your own.

        Args:
            name: What to call it.
            delta: The delta, local or by URL. It is not needed any more afterwards.
            weight: What its changes are multiplied with; with 0 it has no part.
            enabled: Whether it is active from now on.
            verify: ``"touched"``: the tensors that the delta changes are, under what other deltas
                have changed, those of its base; ``"full"``: so are all others.

        Raises:
            UsageError: The name is taken, the weight is not finite.
            WrongBaseError: The model, or another delta of the stack, is on another base.
            StructureError: The model has no such tensor, another dtype, a quantised one; the delta
                does more than change words; or it excludes others that are active.
            NotFiniteError: A number that is met or made is not finite.
            FormatError: The delta breaks a rule.
            BusyError: See the class.
            RankError: Another rank failed.
        """
        setting = Setting(finite_weight(name, weight), enabled)
        if not isinstance(delta, str | Path | Url | DeltaReader):
            raise UsageError(
                f"{name!r}: the delta is {type(delta).__name__}, expected its path, URL or reader",
                hint="several deltas are added one by one, each by a name of its own",
            )
        with self._turn() as ranks:
            if name in self._held:
                raise UsageError(
                    f"the stack has a delta {name!r} already: {self._held[name].path}",
                    hint="take it off first, or choose another name",
                )
            with ExitStack() as stack:
                reader = open_delta(delta)
                if reader is not delta:
                    stack.enter_context(reader)
                self._check_base(reader)
                pool = stack.enter_context(OrderedMap(threads_here(ranks, self._threads)))
                held = self._read(reader, verify, ranks, pool)
            if not (enabled and weight):
                held.rest()
            self._switch(ranks, {**self._held, name: held}, {**self._settings, name: setting})

    def _check_base(self, reader: DeltaReader) -> None:
        for name, held in self._held.items():
            if held.base != reader.manifest.base:
                raise WrongBaseError(
                    f"{reader.path} starts at another base than {name!r} of the stack: "
                    f"{reader.manifest.base[:16]}…, expected {held.base[:16]}…",
                    hint="only deltas of one base are put together; a chain becomes one with "
                    "sparsedelta squash",
                )

    def _read(self, reader: DeltaReader, verify: Verify, ranks: Ranks, pool: OrderedMap) -> Held:
        kept = entries_of(self._maybe if self._traffic.torn else self._held.values())
        own = Candidate(reader, self._live(), kept, verify=verify, on_device=self._on_device)
        found: Found
        found = own.whole(pool) if ranks is ALONE else verified_together(own, ranks, pool)  # type: ignore[arg-type]
        specs = {each.name: each.spec for each in own.tensors.values()}
        manifest = reader.manifest
        return Held(str(reader.path), manifest.content, manifest.base, specs, found)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Give deltas other weights; those that are not named keep theirs.

        Raises:
            UsageError: No delta of that name, a weight that is not finite; and as :meth:`add`.
        """
        if not isinstance(weights, Mapping):
            kind = type(weights).__name__
            raise UsageError(f"weights is {kind}, expected a mapping of names to numbers")
        with self._turn() as ranks:
            changed = {
                self._known(name): replace(self._settings[name], weight=finite_weight(name, weight))
                for name, weight in weights.items()
            }
            self._switch(ranks, self._held, {**self._settings, **changed})

    def enable(self, *names: str) -> None:
        """Let deltas have part, besides those that do; raises as :meth:`set_weights`."""
        self._enable(names, is_enabled=True)

    def disable(self, *names: str) -> None:
        """Let deltas have no part, and keep them; raises as :meth:`set_weights`."""
        self._enable(names, is_enabled=False)

    def _enable(self, names: tuple[str, ...], *, is_enabled: bool) -> None:
        with self._turn() as ranks:
            changed = {
                self._known(n): replace(self._settings[n], is_enabled=is_enabled) for n in names
            }
            self._switch(ranks, self._held, {**self._settings, **changed})

    def remove(self, *names: str) -> None:
        """Take deltas off; after the last the model is its base, bit for bit.

        Raises:
            UsageError: No delta of that name.
            NotFiniteError: Those that are left add up to a number that is not finite.
            BusyError: See the class.
        """
        with self._turn() as ranks:
            gone = set(map(self._known, names))
            self._switch(
                ranks,
                {name: held for name, held in self._held.items() if name not in gone},
                {name: own for name, own in self._settings.items() if name not in gone},
            )

    @contextmanager
    def using(self, *names: str, weights: Mapping[str, float] | None = None) -> Iterator[None]:
        """While the block runs, these deltas are active, and no others.

        Other threads cannot switch meanwhile. Afterwards the set is what it was, but for deltas
        that were taken off within.

        Args:
            names: The deltas; none: the base.
            weights: Other weights for some of them, within the block.

        Raises:
            UsageError: No delta of that name, or a weight of one that is not used.
        """
        self._insist_open()
        own = weights or {}
        with self._traffic.turn():
            for name in own:
                if name not in names:
                    raise UsageError(f"{name!r} has a weight, but is not among those to be used")
            before = self._settings
            chosen = set(map(self._known, names))
            self._set(
                {
                    name: Setting(finite_weight(name, own.get(name, old.weight)), name in chosen)
                    for name, old in before.items()
                }
            )
            try:
                yield
            finally:
                added = {n: own for n, own in self._settings.items() if n not in before}
                kept = {name: old for name, old in before.items() if name in self._held}
                if not self._is_closed:
                    self._set({**kept, **added})

    def _set(self, settings: Mapping[str, Setting]) -> None:
        with self._turn() as ranks:
            self._switch(ranks, self._held, settings)

    def serving(self) -> AbstractContextManager[None]:
        """While the block runs the active set stays: for requests of many forwards.

        Raises:
            BusyError: A switch is under way.
        """
        self._insist_open()
        return self._traffic.forward()

    @property
    def active(self) -> dict[str, float]:
        """Weight of each delta that has part, by name: enabled, and not of weight 0."""
        return self._standing.active

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every delta by name, in the order in which they were added."""
        return {name: own.weight for name, own in self._settings.items()}

    @property
    def nnz(self) -> dict[str, int]:
        """Entries of every delta by name; of a sharded model those of this rank."""
        return {name: held.nnz for name, held in self._held.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that entries and base words take, on the host and on devices."""
        return sum(held.nbytes for held in self._held.values())

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        shown = (
            f"{name}:{own.weight:g}{'' if own.is_enabled else ' (off)'}"
            for name, own in self._settings.items()
        )
        return f"Stack({', '.join(shown)})"

    def close(self) -> None:
        """Take everything off and let go of the model: it is its base again.

        Afterwards every call that would change it, or serve it, raises ``UsageError``; only
        ``close`` itself may be called again, and does nothing.
        """
        if self._held or self._traffic.torn:
            self.remove(*self._held)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._is_closed = True

    def _insist_open(self) -> None:
        if self._is_closed:
            raise UsageError("the stack is closed", hint="make a new one: Stack(model)")

    @property
    def _held(self) -> Mapping[str, Held]:
        return self._standing.held

    @property
    def _settings(self) -> Mapping[str, Setting]:
        return self._standing.settings

    def _known(self, name: str) -> str:
        if name not in self._held:
            near = get_close_matches(name, list(self._held), 1)
            known = ", ".join(map(repr, self._held)) or "none"
            raise UsageError(
                f"the stack has no delta {name!r}, it has {known}",
                hint=f"did you mean {near[0]!r}?" if near else "put it on first: stack.add(…)",
            )
        return name

    @contextmanager
    def _turn(self) -> Iterator[Ranks]:
        """While this thread alone decides; with the other ranks of a sharded model."""
        self._insist_open()
        with self._traffic.turn():
            if not self._is_sharded:
                yield ALONE
                return
            # Imported here: plain tensors need no process group.
            from sparsedelta.torch_ranks import TorchRanks  # noqa: PLC0415

            # No forward may gather shards, not even while they are only read.
            with TorchRanks(self._group) as ranks, ranks.together(), self._traffic.switch():
                yield ranks

    def _live(self) -> LiveTensors:
        if self._is_sharded:
            for module in self.model.modules():
                # What FSDP2 has gathered for a forward is a copy: the shards are what counts.
                if gathers(module):
                    module.reshard()  # type: ignore[operator]
        return LiveTensors(self.model, self._names)

    def _switch(
        self, ranks: Ranks, held: Mapping[str, Held], settings: Mapping[str, Setting]
    ) -> None:
        """Write what a set makes of the model, and take it over; or leave all as it was.

        It counts as torn until all is known again: whatever ends this in between, no forward runs
        until the next switch, which writes over the entries of all deltas that may be there.
        """
        before = self._standing.state
        after = plan(active(settings), held, before)
        agree(ranks)
        with self._traffic.switch():
            live = self._live()
            if self._traffic.torn:
                self._maybe = (*self._maybe, *held.values())
                repair(all_of(live, self._maybe), after)
            else:
                tensors = touched(live, before, after)
                self._maybe, self._traffic.torn = (*self._held.values(), *held.values()), True
                try:
                    write(tensors, before, after)
                except UndoneError as undone:
                    self._traffic.torn, self._maybe = False, ()
                    raise undone.cause from undone.cause.__cause__
            try:
                agree(ranks)
            except BaseException:
                with suppress(UndoneError):
                    write(touched(live, before, after), after, before)
                    self._traffic.torn, self._maybe = False, ()
                raise
            self._standing = Standing(dict(held), dict(settings), after)
            self._traffic.torn, self._maybe = False, ()
