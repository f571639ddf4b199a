"""Vectors with `ranked`, put on a live model both ways: on the host, and as on an accelerator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_package import APPLY, VALID, bytes_of, expected_of, file_of
from torch import nn

from sparsedelta import DeltaReader, SparseDeltaError, Stack
from sparsedelta.state_dict import torch_dtype

Words = dict[str, bytes]


def base_of(name: str) -> Any:  # noqa: ANN401 (any JSON value)
    """The tensors that a vector is put on; none of one that is undone."""
    expected = expected_of(name)
    if name in VALID:
        return expected["base_tensors"]
    return expected["tensors"] if expected["kind"] == "apply" else []


def is_fit(name: str) -> bool:
    """Whether a vector has a ranked part, and tells the words that it is decoded with."""
    with DeltaReader(file_of(name)) as reader:
        return reader.needs_base and bool(base_of(name))


NAMES = [name for name in (*VALID, *APPLY) if is_fit(name)]


def model_of(tensors: list[dict[str, Any]]) -> tuple[nn.Module, dict[str, str]]:
    """A model that holds the base of a vector, and its names for the tensors."""
    model, names = nn.Module(), {}
    for number, told in enumerate(tensors):
        names[told["name"]] = own = f"t{number}"
        data = torch.from_numpy(np.frombuffer(bytes_of(told["bytes"]), np.uint8).copy())
        dtype = torch_dtype(told["dtype"])
        assert dtype is not None
        model.register_buffer(own, data.view(dtype).view(told["shape"]))
    return model, names


def words_of(model: nn.Module) -> Words:
    """What a model holds."""
    return {
        name: each.view(-1).view(torch.uint8).numpy().tobytes()
        for name, each in model.named_buffers()
    }


def put_on(name: str, *, on_device: bool = False) -> tuple[str | None, Words, Words]:
    """What is told of a vector that is put on, and what a model holds with it and afterwards."""
    model, names = model_of(base_of(name))
    stack, told = Stack(model, names=names, threads=1, on_device=on_device), None
    try:
        stack.add("vector", file_of(name))
    except SparseDeltaError as error:
        told = f"{type(error).__name__}: {error}"
    within = words_of(model)
    stack.close()
    return told, within, words_of(model)


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_hold_and_say_the_same(name: str) -> None:
    told, within, after = put_on(name)
    assert put_on(name, on_device=True) == (told, within, after)
    assert (told is None) == (within != after)


def test_there_are_vectors_of_all_kinds() -> None:
    """Those that a live model can hold, and those that break a rule once the base is at hand."""
    outcomes = [put_on(name)[0] for name in NAMES]
    assert outcomes.count(None) > 3
    for rule in ("SD418", "SD501", "SD502"):
        assert any(rule in told for told in outcomes if told is not None), rule
