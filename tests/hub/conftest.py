"""Fixtures of the tests that need a Hub: one server process, which forgets all between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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
