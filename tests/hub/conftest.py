"""Fixtures of the tests that need a Hub: one server process, which forgets all between tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_material import Material, make_material
from hubserver.client import Client
from hubserver.process import HubServer

sys.path.append(str(Path(__file__).resolve().parents[1] / "fuzz"))  # sections: deltas taken apart


@pytest.fixture(scope="session")
def hub_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A server that every test of this process shares; use `hub`."""
    with HubServer(tmp_path_factory.mktemp("hubserver")) as server:
        yield server


@pytest.fixture
def hub(hub_process: HubServer) -> HubServer:
    """A Hub without repositories, Xet, a CDN or faults; `HubServer.reset` switches them on."""
    hub_process.reset()
    return hub_process


@pytest.fixture(scope="session")
def client_process(
    hub_process: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A client that every test of this process shares; use `client`."""
    folder = tmp_path_factory.mktemp("client")
    environment = hub_process.environment(folder / "home", None)
    with Client(environment, folder / "errors.txt") as process:
        yield process


@pytest.fixture
def client(client_process: Client) -> Client:
    """The real client in another process: no token of its own, no Xet, and an empty cache."""
    shutil.rmtree(client_process.home, ignore_errors=True)
    return client_process


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A base, a target, and deltas between them."""
    return make_material(tmp_path_factory.mktemp("material"))
