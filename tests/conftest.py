"""Settings for every test and notebook: no key, no network beyond this machine, no deadline per example."""

import os
import socket
import sys
from contextlib import closing

import pytest
from hypothesis import settings
from running import simulator

from claudescale.api import client
from claudescale.ledger.store import Store

for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
    del os.environ[name]  # the kernels of notebooks inherit this: nothing here can spend money

# Speed is left to benchmarks. CI runs the same examples each time; `random` finds new ones.
settings.register_profile("claudescale", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "claudescale"))

_LOOPBACK = {None, "", "localhost", "127.0.0.1", "::1"}


def _stay_offline(event, facts):
    """Prevent this process from connecting to another machine or resolving its name."""
    if event == "socket.getaddrinfo":
        host = facts[0]
    elif event == "socket.connect" and facts[0].family in {socket.AF_INET, socket.AF_INET6}:
        host = facts[1][0]
    else:
        return
    if (host.decode() if isinstance(host, bytes) else host) not in _LOOPBACK:
        msg = f"a test wanted to reach {host!r}; tests are offline"
        raise AssertionError(msg)


sys.addaudithook(_stay_offline)


@pytest.fixture(autouse=True)
def _nothing_connected(monkeypatch):
    """Disconnect the client that another test connected."""
    monkeypatch.setattr(client, "_connected", [])


@pytest.fixture
def path(tmp_path):
    """Return the path of a test's ledger."""
    return tmp_path / "a.ledger"


@pytest.fixture
def api():
    """Return a fresh simulator, whose counts are this test's alone."""
    with simulator(speed=100) as one:
        yield one


@pytest.fixture(params=["file", "memory"])
def anywhere(request, path):
    """Return the open ledger of a file, and one in memory."""
    with closing(Store(path if request.param == "file" else None)) as store:
        yield store
