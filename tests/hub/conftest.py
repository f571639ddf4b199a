"""Fixtures of the tests that need a Hub: one server process, which forgets all between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hubserver.client import Client
from hubserver.process import HubServer


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
def client(hub_process: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The real client in another process, without a token of its own and without Xet.

    Its cache lives as long as it does: give what it calls a ``cache_dir``.
    """
    folder = tmp_path_factory.mktemp("client")
    environment = hub_process.environment(folder / "home", None)
    with Client(environment, folder / "errors.txt") as process:
        yield process
