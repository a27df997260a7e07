"""Settings for every test and notebook: no key, no network beyond this machine, no deadline per example."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from claudescale.api import client
from claudescale.ledger.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
    del os.environ[name]  # the kernels of notebooks inherit this: nothing here can spend money

# Speed is left to benchmarks. CI runs the same examples each time; `random` finds new ones.
settings.register_profile("claudescale", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "claudescale"))

_LOOPBACK = {None, "", "localhost", "127.0.0.1", "::1"}


def _offline(host: Any) -> None:
    if (host.decode() if isinstance(host, bytes) else host) not in _LOOPBACK:
        msg = f"a test wanted to reach {host!r}; tests are offline"
        raise AssertionError(msg)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Any:
    """Prevent this process from connecting to another machine or resolving its name."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6}:
            _offline(address[0])
        connect(self, address)

    def look_up_here(host: Any, *others: Any, **named: Any) -> Any:
        _offline(host)
        return look_up(host, *others, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", look_up_here)
        yield


@pytest.fixture(autouse=True)
def _nothing_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disconnect the client that another test connected."""
    monkeypatch.setattr(client, "_connected", [])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a test's ledger."""
    return tmp_path / "a.ledger"


@pytest.fixture(params=["file", "memory"])
def anywhere(request: pytest.FixtureRequest, path: Path) -> Iterator[Store]:
    """Open one ledger in a file and one in memory."""
    with closing(Store(path if request.param == "file" else None)) as store:
        yield store
