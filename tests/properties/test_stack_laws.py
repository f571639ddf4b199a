"""Laws of a live stack: whatever the order of calls, it holds what composing gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from safetensors.torch import load_file, save_file
from torch import nn

import sparsedelta
from sparsedelta import NotFiniteError, Stack, UsageError

Tensors = dict[str, torch.Tensor]
DELTAS = 4
WEIGHTS = (1.0, 1.0, 0.5, -1.25, 0.0, 3.0)


def model_of() -> nn.Module:
    """Several dtypes, a tied weight, a buffer, strides that are not those of a matrix by rows."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "a": nn.Linear(13, 11).bfloat16(),
            "b": nn.Linear(7, 5).half(),
            "c": nn.Linear(6, 9),
            "d": nn.Linear(4, 4).double(),
            "tied": nn.Linear(13, 11, bias=False).bfloat16(),
        }
    )
    model["tied"].weight = model["a"].weight
    model["c"].weight = nn.Parameter(torch.randn(6, 9).t())
    model["b"].register_buffer("steps", torch.tensor([1, 2, 3]))
    assert not model["c"].weight.is_contiguous()
    return model


def stored(model: nn.Module) -> Tensors:
    """What its checkpoint holds: tied tensors once."""
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "tied.weight"
    }


def write_deltas(folder: Path, base: Tensors) -> list[Path]:
    """Deltas of the base that overlap; the last has a word that no sum can have."""
    save_file(base, folder / "base.safetensors")
    paths = []
    for number in range(DELTAS):
        moving = torch.Generator().manual_seed(number)
        target = {name: tensor.clone() for name, tensor in base.items()}
        for name, tensor in target.items():
            if not tensor.is_floating_point() or (number == 1 and name.startswith("c")):
                continue
            moved = torch.rand(tensor.shape, generator=moving) < 0.4
            other = torch.randn(tensor.shape, generator=moving, dtype=torch.float64)
            tensor[moved] = other.to(tensor.dtype)[moved]
        if number == DELTAS - 1:
            target["d.bias"][1] = torch.inf
        save_file(target, folder / f"{number}.safetensors")
        paths.append(folder / f"{number}.delta")
        sparsedelta.diff(
            folder / "base.safetensors",
            folder / f"{number}.safetensors",
            paths[-1],
            one_way=number == 2,
        )
    return paths


def same(one: Tensors, other: Tensors) -> bool:
    """Whether all words are equal."""
    return one.keys() == other.keys() and all(
        torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8)
        )
        for name, tensor in one.items()
    )


class StackMachine(RuleBasedStateMachine):
    """A stack, and what it should be: names, weights, what is enabled."""

    folder: Path
    base: Tensors
    deltas: list[Path]
    known: dict[tuple[tuple[int, float], ...], Tensors | None]
    on_device = False

    def __init__(self) -> None:
        super().__init__()
        self.model = model_of()
        self.stack = Stack(self.model, on_device=self.on_device)
        self.weights: dict[str, float] = {}
        self.enabled: dict[str, bool] = {}
        self.number: dict[str, int] = {}

    @initialize()
    def start(self) -> None:
        """The base, before anything is on it."""
        assert same(stored(self.model), self.base)

    def composed(self, weights: dict[str, float], enabled: dict[str, bool]) -> Tensors | None:
        """What compose and apply make of the active set; None if they refuse it."""
        active = sorted((self.number[n], w) for n, w in weights.items() if enabled[n] and w)
        key = tuple(active)
        if key not in self.known:
            made: Tensors | None = self.base
            if active:
                delta, out = self.folder / "composed", self.folder / "out"
                try:
                    sparsedelta.compose(
                        self.folder / "base.safetensors",
                        [self.deltas[n] for n, _ in active],
                        delta,
                        weights=[w for _, w in active],
                        force=True,
                    )
                    sparsedelta.apply(self.folder / "base.safetensors", delta, out, force=True)
                    made = load_file(out)
                except NotFiniteError:
                    made = None
            self.known[key] = made
        return self.known[key]

    def attempt(self, call: object, weights: dict[str, float], enabled: dict[str, bool]) -> None:
        """Do what leads to a set; it is refused where composing is, and nothing changes then."""
        assert callable(call)
        if self.composed(weights, enabled) is None:
            with pytest.raises(NotFiniteError):
                call()
        else:
            call()
            self.weights, self.enabled = weights, enabled

    @rule(
        number=st.integers(0, DELTAS - 1),
        weight=st.sampled_from(WEIGHTS),
        enabled=st.booleans(),
        full=st.booleans(),
    )
    def add(self, number: int, weight: float, *, enabled: bool, full: bool) -> None:
        """By a name that is free, or not."""
        name = f"d{number}"
        if name in self.weights:
            with pytest.raises(UsageError, match=name):
                self.stack.add(name, self.deltas[number])
            return
        self.number[name] = number
        self.attempt(
            lambda: self.stack.add(
                name,
                self.deltas[number],
                weight,
                enabled=enabled,
                verify="full" if full else "touched",
            ),
            {**self.weights, name: weight},
            {**self.enabled, name: enabled},
        )

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def set_weights(self, data: st.DataObject) -> None:
        """Of some."""
        names = st.sampled_from(sorted(self.weights))
        changed = data.draw(st.dictionaries(names, st.sampled_from(WEIGHTS), min_size=1))
        self.attempt(
            lambda: self.stack.set_weights(changed), {**self.weights, **changed}, self.enabled
        )

    @precondition(lambda self: self.weights)
    @rule(data=st.data(), enabled=st.booleans())
    def switch(self, data: st.DataObject, *, enabled: bool) -> None:
        """Some on or off."""
        names = data.draw(st.sets(st.sampled_from(sorted(self.weights)), min_size=1))
        call = self.stack.enable if enabled else self.stack.disable
        self.attempt(
            lambda: call(*names), self.weights, {**self.enabled, **dict.fromkeys(names, enabled)}
        )

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Some."""
        gone = data.draw(st.sets(st.sampled_from(sorted(self.weights)), min_size=1))
        self.attempt(
            lambda: self.stack.remove(*gone),
            {n: w for n, w in self.weights.items() if n not in gone},
            {n: on for n, on in self.enabled.items() if n not in gone},
        )

    @precondition(lambda self: self.weights)
    @rule(data=st.data(), fails=st.booleans())
    def use(self, data: st.DataObject, *, fails: bool) -> None:
        """A set for a while; what was comes back, whatever happens within."""
        names = data.draw(st.lists(st.sampled_from(sorted(self.weights)), unique=True))
        within = {name: name in names for name in self.weights}
        expected = self.composed(self.weights, within)

        def block() -> None:
            with self.stack.using(*names):
                assert expected is not None
                assert same(stored(self.model), expected)
                if fails:
                    raise KeyError

        if expected is None:
            with pytest.raises(NotFiniteError):
                block()
        elif fails:
            with pytest.raises(KeyError):
                block()
        else:
            block()

    @invariant()
    def holds_the_composition(self) -> None:
        """Word for word; and the stack says so."""
        expected = self.composed(self.weights, self.enabled)
        assert expected is not None
        assert same(stored(self.model), expected)
        assert self.model["tied"].weight is self.model["a"].weight  # type: ignore[index]
        assert self.stack.weights == self.weights
        assert self.stack.active == {n: w for n, w in self.weights.items() if self.enabled[n] and w}

    def teardown(self) -> None:
        """With the last delta the last trace goes."""
        self.stack.close()
        assert same(stored(self.model), self.base)
        assert self.stack.nbytes == 0


def run_machine(
    machine: type[StackMachine], folder: Path, deltas: list[Path], *, examples: int, steps: int
) -> None:
    """Try sequences of calls, with deltas of the model's base in a folder."""
    machine.folder, machine.base, machine.deltas = folder, stored(model_of()), deltas
    machine.known = {}
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_of_calls_holds_what_composing_gives() -> None:
    """Random sequences, against a model of the stack and compose + apply."""
    with tempfile.TemporaryDirectory() as place:
        deltas = write_deltas(Path(place), stored(model_of()))
        run_machine(StackMachine, Path(place), deltas, examples=25, steps=12)
