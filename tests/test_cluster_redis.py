"""Processes that share nothing but a limit in a Redis server."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs

redis = pytest.importorskip("redis", reason="pip install 'claudescale[redis]'")
SERVER = shutil.which("redis-server")
if SERVER is None:
    pytest.skip("there is no redis-server: apt-get install redis-server", allow_module_level=True)

CHILD = Path(__file__).with_name("redis_child.py")
LIMITS = cs.Limits(
    requests_per_minute=3_000, input_tokens_per_minute=100_000_000, output_tokens_per_minute=100_000_000
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a Redis server on a free port of this machine; it writes nothing to the disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        until = time.monotonic() + 30
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < until
                time.sleep(0.02)
    yield url
    process.terminate()
    process.wait()


def test_a_run_is_the_same_with_its_limit_elsewhere(server, path):
    """With the limit in Redis a run gives the same results, and leaves no borrower behind."""
    with simulator(speed=4) as api:
        plan = a_plan(reviews(120))
        run = cs.wait(plan.run(api.client(), ledger=path, progress=False, on=server))
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"] == 120
        assert run.results.equals(finished(plan, api.client()).results)
        assert run.limits.source == "the headers of the API's answers"
        with redis.Redis.from_url(server) as client:
            (key,) = [key for key in client.keys("claudescale:*") if api.url.encode() in key]
            state = json.loads(client.get(key))
    assert state["borrowers"] == {}
    assert state["pacer"]["plain"][0] == 0  # in flight


def test_runs_end_with_their_last_row(server):
    """Run after run, each with a lease of its own, however soon after its last message it ends."""
    with simulator(speed=4) as api:
        for count in range(1, 11):
            run = cs.wait(a_plan(reviews(count)).run(api.client(), ledger=None, progress=False, on=server))
            assert (run.state, run.counts.answered) == ("finished", count)


def test_two_processes_stay_within_one_limit(server):
    """Two processes that each know the whole limit share it: they are hardly ever refused."""
    with simulator(tier=LIMITS.per_minute, speed=1, latency=0.2, bucket_seconds=1) as api:
        children = [
            subprocess.Popen(
                [sys.executable, CHILD, api.url, str(first), "200", server],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for first in (0, 200)
        ]
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        answered = [child.communicate(timeout=100)[0] for child in children]
        assert answered == ["200\n", "200\n"]
        assert sum(api.stats["refused"].values()) <= 8
        assert api.stats["billed_rows"] == 400


def test_a_redis_that_is_not_there(monkeypatch):
    """Without the server nothing is sent, and the run says what does not answer, but not its password."""
    monkeypatch.setattr("claudescale.leases.PATIENCE_SECONDS", 0.5)
    with simulator() as api:
        with pytest.raises(ConnectionError, match="Redis") as raised:
            cs.wait(
                a_plan(reviews(3)).run(
                    api.client(), ledger=None, progress=False, on="redis://:hush@127.0.0.1:1/0"
                )
            )
        assert "hush" not in str(raised.value)
        assert api.stats["calls"] == 0
