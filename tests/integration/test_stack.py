"""A live stack on models of many kinds, and all that it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from many_ranks import all_well, run_script
from safetensors.torch import save_file
from torch import nn

import sparsedelta
from sparsedelta import (
    BusyError,
    Stack,
    StructureError,
    UsageError,
    VerificationError,
    WrongBaseError,
)
from sparsedelta.live_entries import Patch

Tensors = dict[str, torch.Tensor]


def model_of(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    """Two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).to(dtype)


def tensors(model: nn.Module) -> Tensors:
    """A copy of its tensors."""
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def same(one: Tensors, other: Tensors) -> bool:
    """Whether all words are equal."""
    return one.keys() == other.keys() and all(
        torch.equal(each.view(torch.uint8), other[name].view(torch.uint8))
        for name, each in one.items()
    )


def moved(base: Tensors, seed: int) -> Tensors:
    """Some words of each tensor, others."""
    chance = torch.Generator().manual_seed(seed)
    target = {}
    for name, each in base.items():
        mask = torch.rand(each.shape, generator=chance) < 0.1
        target[name] = torch.where(mask, each * 1.5 + 1, each)
    return target


def delta_of(
    folder: Path, base: Tensors, target: Tensors, name: str = "delta", **options: bool
) -> Path:
    """The delta between two states."""
    save_file(base, folder / f"{name}.base")
    save_file(target, folder / f"{name}.target")
    out = folder / name
    sparsedelta.diff(folder / f"{name}.base", folder / f"{name}.target", out, **options)  # type: ignore[arg-type]
    return out


def test_tied_weights_are_one(tmp_path: Path) -> None:
    """Stored twice and changed alike, they change once; changed apart, they are refused."""
    model = nn.ModuleDict({"inp": nn.Embedding(30, 8), "out": nn.Linear(8, 30, bias=False)})
    model["out"].weight = model["inp"].weight
    base = tensors(model)
    base["out.weight"] = base["inp.weight"].clone()
    target = moved(base, 1)
    target["out.weight"] = target["inp.weight"].clone()
    both = delta_of(tmp_path, base, target, "both")
    half = delta_of(tmp_path, base, {**target, "out.weight": base["out.weight"]}, "half")
    apart = delta_of(
        tmp_path, base, {**target, "out.weight": moved(base, 2)["out.weight"]}, "apart"
    )
    with Stack(model) as stack:
        stack.add("both", both, verify="full")
        assert same(tensors(model), target)
        stack.remove("both")
        with pytest.raises(StructureError, match=r"'out\.weight' stays.*tied"):
            stack.add("half", half)
        with pytest.raises(StructureError, match=r"'inp\.weight' and 'out\.weight' are one tensor"):
            stack.add("apart", apart)
        assert same(tensors(model), base)


def test_memory_that_is_shared_otherwise_is_refused(tmp_path: Path) -> None:
    """A view of a part of another parameter; views of one buffer that lie apart are fine."""
    model = nn.ParameterDict({"all": nn.Parameter(torch.randn(8, 4)), "far": torch.randn(3)})
    base = tensors(model)
    delta = delta_of(tmp_path, base, {**base, "all": moved(base, 1)["all"]})
    model["part"] = nn.Parameter(model["all"].detach()[2:4])
    with pytest.raises(StructureError, match="'all' and 'part' of the model share memory"):
        Stack(model).add("delta", delta)
    flat = torch.cat([base["all"].view(-1), base["far"]])
    apart = nn.ParameterDict({"all": flat[:32].view(8, 4), "far": flat[32:]})
    Stack(apart).add("delta", delta)
    assert torch.equal(apart["far"], base["far"])
    assert not torch.equal(apart["all"], base["all"])


def compiled_of(model: nn.Module, *, fullgraph: bool = False) -> nn.Module:
    """A module as it is compiled, without a compiler."""
    made = torch.compile(model, backend="eager", fullgraph=fullgraph)
    assert isinstance(made, nn.Module)
    return made


def test_compiled_and_wrapped_models_have_the_names_of_their_checkpoint(tmp_path: Path) -> None:
    """And compiled code sees the new words without being compiled again."""
    model = model_of(torch.float32)
    base = tensors(model)
    target = moved(base, 1)
    delta = delta_of(tmp_path, base, target)
    inputs = torch.randn(3, 16)
    expected = torch.func.functional_call(model, target, inputs)
    model[0] = compiled_of(model[0])
    compiled = compiled_of(model)
    before = compiled(inputs)
    stack = Stack(compiled)
    stack.add("delta", delta, verify="full")
    assert torch.equal(compiled(inputs), expected)
    stack.disable("delta")
    assert torch.equal(compiled(inputs), before)
    stack.close()
    inside = compiled_of(model_of(torch.float32), fullgraph=True)
    with Stack(inside) as other:
        other.add("delta", delta)
        assert torch.equal(inside(inputs), expected)


class Prefixed(nn.Module):
    """A head around a base model, as transformers names them."""

    base_model_prefix = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = model_of()
        self.own = nn.Linear(8, 2)


def test_other_names(tmp_path: Path) -> None:
    """A prefix that the checkpoint lacks, and names that are told."""
    base = tensors(model_of())
    target = moved(base, 1)
    delta = delta_of(tmp_path, base, target)
    model = Prefixed()
    Stack(model).add("delta", delta)
    assert same(tensors(model.encoder), target)
    renamed = nn.ModuleDict({"first": model_of()[0], "second": model_of()[2]})
    with pytest.raises(StructureError, match=r"no tensor '0\.bias'"):
        Stack(renamed).add("delta", delta)
    names = {
        f"{n}.{kind}": f"{own}.{kind}"
        for n, own in ((0, "first"), (2, "second"))
        for kind in ("weight", "bias")
    }
    Stack(renamed, names=names).add("delta", delta)
    assert torch.equal(renamed.state_dict()["second.weight"], target["2.weight"])


def test_what_is_no_base_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Another base, the target itself, another dtype, no words, tensors that come and go."""
    base = tensors(model_of())
    target = moved(base, 1)
    delta = delta_of(tmp_path, base, target)
    other = model_of()
    with torch.no_grad():
        dict(other.named_parameters())["2.weight"][3, 3] += 1
    was = tensors(other)
    with pytest.raises(WrongBaseError, match=r"'2.weight' differs there"):
        Stack(other).add("delta", delta)
    assert same(tensors(other), was)
    there = model_of()
    there.load_state_dict(target)
    with pytest.raises(WrongBaseError, match="already what the delta leads to"):
        Stack(there).add("delta", delta)
    with pytest.raises(StructureError, match=r"is F32 \[24\] in the model, expected BF16"):
        Stack(model_of(torch.float32)).add("delta", delta)
    with pytest.raises(StructureError, match="meta device"):
        Stack(model_of().to("meta")).add("delta", delta)
    grown = delta_of(tmp_path, base, {**base, "new": torch.ones(2)}, "grown")
    with pytest.raises(StructureError, match="'new' comes, goes"):
        Stack(model_of()).add("grown", grown)
    # What a delta does not touch is looked at only if that is asked for.
    half = delta_of(tmp_path, base, {**base, "0.bias": target["0.bias"]}, "half")
    with pytest.raises(WrongBaseError, match=r"'2.weight' differs"):
        Stack(other).add("half", half, verify="full")
    Stack(other).add("half", half)
    lean = delta_of(tmp_path, base, target, "lean", lean=True)
    with pytest.raises(UsageError, match="lean"):
        Stack(model_of()).add("lean", lean, verify="full")


def test_deltas_of_different_bases_are_refused(tmp_path: Path) -> None:
    """Though the model would pass for both."""
    base = tensors(model_of())
    first = {**base, "0.bias": moved(base, 1)["0.bias"]}
    one = delta_of(tmp_path, base, first, "one")
    rest = {name: each for name, each in base.items() if name != "0.bias"}
    other = delta_of(
        tmp_path,
        {**base, "x": torch.ones(1)},
        {**base, **moved(rest, 2), "x": torch.ones(1)},
        "other",
    )
    stack = Stack(model_of())
    stack.add("one", one)
    with pytest.raises(WrongBaseError, match="another base than 'one'"):
        stack.add("other", other)
    assert stack.active == {"one": 1}


class Linear4bit(nn.Module):
    """A layer that keeps its weight packed, as quantisers do."""

    def __init__(self, *, has_weight: bool) -> None:
        super().__init__()
        if has_weight:
            self.weight = nn.Parameter(torch.zeros(24 * 16 // 2, 1, dtype=torch.uint8), False)
        else:
            self.qweight = nn.Parameter(torch.zeros(4, dtype=torch.int32), False)
        self.bias = nn.Parameter(model_of().state_dict()["0.bias"].clone())


@pytest.mark.parametrize("has_weight", [True, False])
def test_quantised_layers_are_refused_by_name(tmp_path: Path, *, has_weight: bool) -> None:
    """Whether the weight has another form or another name."""
    base = tensors(model_of())
    delta = delta_of(tmp_path, base, moved(base, 1))
    model = model_of()
    model[0] = Linear4bit(has_weight=has_weight)
    with pytest.raises(StructureError, match=r"'0\.weight' is quantised in the model.*Linear4bit"):
        Stack(model).add("delta", delta)


def failing(calls: set[int]) -> Callable[[Patch, torch.Tensor], None]:
    """Writes that fail at some of their calls, and half-way there."""
    put, count = Patch.put, 0

    def wrapped(patch: Patch, tensor: torch.Tensor) -> None:
        nonlocal count
        count += 1
        put(patch, tensor)
        if count in calls:
            raise KeyboardInterrupt

    return wrapped


@pytest.mark.parametrize("call", range(1, 9))
def test_a_switch_that_fails_half_way_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Wherever it fails; the stack says what the model holds."""
    model = model_of()
    base = tensors(model)
    one = delta_of(tmp_path, base, moved(base, 1), "one")
    two = delta_of(tmp_path, base, moved(base, 2), "two")
    stack = Stack(model)
    stack.add("one", one)
    stack.add("two", two, enabled=False)
    with monkeypatch.context() as patch:
        patch.setattr(Patch, "put", failing({call}))
        with pytest.raises(KeyboardInterrupt), stack.using("two"):
            pytest.fail("it was not refused")
    assert stack.active == {"one": 1}
    assert same(tensors(model), moved(base, 1))
    # If the way back fails, too, nothing runs until a switch has put things right.
    nth = (call - 1) % len(base) + 1
    with monkeypatch.context() as patch:
        patch.setattr(Patch, "put", failing({nth, nth + 1}))
        with pytest.raises(KeyboardInterrupt):
            stack.set_weights({"one": 0.5})
    with pytest.raises(BusyError, match="failed half-way"):
        model(torch.zeros(1, 16, dtype=torch.bfloat16))
    assert stack.weights["one"] == 1
    stack.remove("two")
    assert same(tensors(model), moved(base, 1))
    model(torch.zeros(1, 16, dtype=torch.bfloat16))


def test_a_model_that_is_another_now_is_refused(tmp_path: Path) -> None:
    """Words of the old dtype or shape are not written; in the old dtype all is as before."""
    model = model_of()
    base = tensors(model)
    stack = Stack(model)
    stack.add("delta", delta_of(tmp_path, base, moved(base, 1)))
    model.half()
    halves = tensors(model)
    changed = r"is F16.* now, was BF16.* was added"
    with pytest.raises(StructureError, match=changed):
        stack.set_weights({"delta": 0.5})
    with pytest.raises(StructureError, match=changed):
        stack.remove("delta")
    assert same(tensors(model), halves)
    assert stack.active == {"delta": 1}
    model.bfloat16()
    old, model[0] = model[0], nn.Linear(16, 3).to(torch.bfloat16)
    with pytest.raises(StructureError, match=r"BF16 \[3.*\] now, was BF16 \[24"):
        stack.disable("delta")
    model[0] = old
    stack.disable("delta")


def test_a_forward_that_never_began_ends_nothing() -> None:
    """Another hook fails before it: what is being served stays so."""
    model = model_of()
    stack = Stack(model)

    def fail(*_: object) -> None:
        raise ValueError("no")

    with stack.serving():
        hook = model.register_forward_pre_hook(fail, prepend=True)
        with pytest.raises(ValueError, match="no"):
            model(torch.zeros(1, 16, dtype=torch.bfloat16))
        hook.remove()
        with pytest.raises(BusyError, match="from within a forward"):
            stack.remove()
    stack.remove()


def test_a_stack_that_is_closed_says_so(tmp_path: Path) -> None:
    """It may be closed again; nothing else goes."""
    model = model_of()
    base = tensors(model)
    delta = delta_of(tmp_path, base, moved(base, 1))
    stack = Stack(model)
    stack.add("delta", delta)
    with stack.using("delta"):
        stack.close()
    stack.close()
    assert same(tensors(model), base)
    calls: list[Callable[[], object]] = [
        lambda: stack.add("delta", delta),
        lambda: stack.set_weights({}),
        stack.enable,
        stack.remove,
        stack.serving,
        lambda: stack.using().__enter__(),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="the stack is closed"):
            call()


def test_arguments_of_another_kind_are_refused() -> None:
    """Each by its name; a patience without end is as long as threads can wait."""
    model: Any = model_of()
    nothing: Any = None
    wrong: Any = ["delta"]
    stack = Stack(model, patience=float("inf"))
    calls: list[tuple[str, Callable[[], object]]] = [
        ("patience is '1'", lambda: Stack(model, patience="1")),  # type: ignore[arg-type]
        ("patience is nan", lambda: Stack(model, patience=float("nan"))),
        ("expected a torch.nn.Module", lambda: Stack(nothing)),
        ("expected a mapping", lambda: stack.set_weights(wrong)),
        ("the delta is list", lambda: stack.add("a", wrong)),
        ("expected a finite number", lambda: stack.add("a", "delta", 10**400)),
    ]
    for message, call in calls:
        with pytest.raises(UsageError, match=message):
            call()
    stack.remove()
    Stack(model, patience=1e12).remove()


def test_a_delta_that_lies_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes of the base is verified before it is written."""
    model = model_of()
    base = tensors(model)
    delta = delta_of(tmp_path, base, moved(base, 1))
    from sparsedelta.operations.tasks import DeltaTask  # noqa: PLC0415

    entries = DeltaTask.entries

    def lying(task: DeltaTask, *arguments: object) -> object:
        at, words = entries(task, *arguments)  # type: ignore[arg-type]
        return at, words + 1

    monkeypatch.setattr(DeltaTask, "entries", lying)
    with pytest.raises(VerificationError, match="SD502"):
        Stack(model).add("delta", delta)
    assert same(tensors(model), base)


def test_forwards_and_switches_exclude_each_other(tmp_path: Path) -> None:
    """Whoever comes second is refused, with an error that says so, or waits."""
    model = model_of()
    base = tensors(model)
    delta = delta_of(tmp_path, base, moved(base, 1))
    inputs = torch.zeros(1, 16, dtype=torch.bfloat16)
    stack = Stack(model)
    stack.add("delta", delta, enabled=False)
    running, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        running.set()
        go_on.wait(30)

    hook = model[0].register_forward_hook(wait)
    thread = threading.Thread(target=model, args=(inputs,))
    thread.start()
    assert running.wait(30)
    with pytest.raises(BusyError, match="1 forwards of the model are running"):
        stack.enable("delta")
    assert same(tensors(model), base)
    go_on.set()
    thread.join()
    hook.remove()

    def switch(*_: object) -> None:
        with pytest.raises(BusyError, match="from within a forward"):
            stack.enable("delta")

    hook = model[0].register_forward_hook(switch)
    model(inputs)
    hook.remove()

    failures: list[BusyError] = []

    def other() -> None:
        try:
            stack.enable("delta")
        except BusyError as error:
            failures.append(error)

    with stack.using("delta"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "within using" in failures[0].message
    with stack.serving():
        model(inputs)
        with pytest.raises(BusyError, match="from within a forward"):
            stack.enable("delta")
    # A forward that fails is over, too.
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3))
    stack.enable("delta")
    assert same(tensors(model), moved(base, 1))


def test_a_forward_during_a_switch_is_refused_or_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With patience it is served by the new set."""
    model = model_of()
    base = tensors(model)
    delta = delta_of(tmp_path, base, moved(base, 1))
    inputs = torch.ones(1, 16, dtype=torch.bfloat16)
    expected = torch.func.functional_call(model, moved(base, 1), inputs)
    for patience in (0.0, 30.0):
        stack = Stack(model, patience=patience)
        stack.add("delta", delta, enabled=False)
        writing, go_on = threading.Event(), threading.Event()
        put = Patch.put

        def slow(patch: Patch, tensor: torch.Tensor) -> None:
            writing.set()  # noqa: B023 (it is called within this turn)
            go_on.wait(30)  # noqa: B023
            put(patch, tensor)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(Patch, "put", slow)
            thread = threading.Thread(target=stack.enable, args=("delta",))
            thread.start()
            assert writing.wait(30)
            if patience:
                threading.Timer(0.1, go_on.set).start()
                assert torch.equal(model(inputs), expected)
            else:
                with pytest.raises(BusyError, match="while the active set of the model is being"):
                    model(inputs)
                go_on.set()
            thread.join()
        stack.close()
        assert same(tensors(model), base)


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    """Say which name, and change nothing."""
    model = model_of()
    base = tensors(model)
    stack = Stack(model)
    stack.add("math", delta_of(tmp_path, base, moved(base, 1)), 0.5)
    with pytest.raises(UsageError, match="no delta 'maths'") as caught:
        stack.enable("maths")
    assert caught.value.hint == "did you mean 'math'?"
    for weight in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(UsageError, match="weight of 'math'"):
            stack.set_weights({"math": weight})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="'math' has a weight"), stack.using(weights={"math": 1}):
        pass
    with pytest.raises(UsageError, match="patience"):
        Stack(model, patience=-1)
    empty = delta_of(tmp_path, base, base, "empty")
    with pytest.raises(UsageError, match="touches no tensor"):
        stack.add("empty", empty)
    stack.add("empty", empty, verify="full")
    assert repr(stack) == "Stack(math:0.5, empty:1)"
    assert "math" in stack
    assert len(stack) == 2
    with stack.using("math", weights={"math": 1}):
        assert same(tensors(model), moved(base, 1))
    assert stack.active == {"math": 0.5, "empty": 1}


def test_tensors_of_inference_mode(tmp_path: Path) -> None:
    """Weights that were made in it, and switches within it."""
    with torch.inference_mode():
        made = model_of()
    for model in (made, model_of()):
        base = tensors(model_of())
        delta = delta_of(tmp_path, base, moved(base, 1))
        stack = Stack(model)
        with torch.inference_mode():
            stack.add("delta", delta)
            stack.disable("delta")
        stack.enable("delta")
        with torch.no_grad():
            assert same(tensors(model), moved(base, 1))
        for name in ("delta", "delta.base", "delta.target"):
            (tmp_path / name).unlink()


def test_offloaded_and_split_models(tmp_path: Path) -> None:
    """What accelerate has put elsewhere has no words here; what it has hooked is switched."""
    accelerate = pytest.importorskip("accelerate")
    base = tensors(model_of())
    delta = delta_of(tmp_path, base, moved(base, 1))
    split = accelerate.dispatch_model(
        model_of(), {"0": "cpu", "1": "cpu", "2": "cpu"}, force_hooks=True
    )
    Stack(split).add("delta", delta)
    assert same(tensors(split), moved(base, 1))
    away = accelerate.disk_offload(model_of(), tmp_path / "away", execution_device="cpu")
    with pytest.raises(StructureError, match=r"'0\.bias' of the model has no words"):
        Stack(away).add("delta", delta)


def test_each_rank_switches_its_shards(tmp_path: Path) -> None:
    """FSDP2 on two ranks: the words of compose + apply, one mind about failures, exact undo."""
    all_well(run_script(2, Path(__file__).parent / "stack_work.py", tmp_path))
