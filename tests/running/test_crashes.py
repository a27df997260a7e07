"""A process that is killed at any point of a batch's life, then the same plan again: each row paid once."""

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import crash_child
import pytest
from batch_runs import paid_once, quick, the_plan
from crash_child import POINTS
from running import finished

from claudescale.ledger.store import Store
from claudescale.simulator import Fault

KILLED = -9
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def children():
    """Give what runs plans in processes of their own, and returns how they ended."""
    given = [sys.executable, "-P", crash_child.__file__]
    path = {"PYTHONPATH": ":".join([str(Path(crash_child.__file__).parent), *sys.path])}
    with subprocess.Popen(
        given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=path
    ) as server:

        def run(*orders):
            print(json.dumps(orders), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


@pytest.fixture
def crash(children, tmp_path):
    """Give what runs a plan in a process that is killed at a point."""

    def run(api, point, **options):
        order = {"url": api.url, "ledger": str(tmp_path / "l"), "point": point, **options}
        (status,) = children(order)
        assert status == KILLED or (point == "any" and status == 0)  # few steps may be left

    return run


def check(api, ledger, rows, **plan):
    """Run the plan again: each row is answered, and paid for once by the server's account and the file's."""
    run = finished(the_plan(rows, **plan), api.client(), ledger=ledger)
    paid_once(api, run, resumed=True)
    with contextlib.closing(Store(ledger)) as kept:
        final = kept.attempts(columns=["key", "reply", "final"]).filter("final")
        assert final["key"].n_unique() == final.height == rows
        assert set(run.results["reply"]) == set(final["reply"])
        assert kept.attempts()["dollars"].sum() == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert {batch.state for batch in kept.batches()} <= {"collected", "absent"}
        assert not any(kept.held(batch.nonce) for batch in kept.batches())


@pytest.mark.parametrize("point", [*POINTS, "in the body"])
def test_one_batch(tmp_path, crash, point):
    """Wherever the process is killed in the life of its only batch, the next run pays for no row again."""
    with quick() as api:
        crash(api, point, rows=20)
        check(api, tmp_path / "l", 20)
        assert api.stats["batches_created"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_at_any_step(tmp_path, crash, seed):
    """Runs that take over are killed as well, with lost answers besides: each row is paid once."""
    drawn = random.Random(seed)
    faults = {"create_lost": Fault(tries=[2]), "create_failed": Fault(tries=[3])}
    with quick(queue=40, seed=seed, faults=faults) as api:
        for _ in range(4):
            crash(api, "any", rows=60, queue=20, times=drawn.randint(1, 9))
        check(api, tmp_path / "l", 60, queue=20)


def test_two_processes_at_once(tmp_path, children):
    """Two processes that run the same plan on one ledger share the rows: each is paid for once."""
    with quick(queue=30) as api:
        order = {"url": api.url, "ledger": str(tmp_path / "l"), "point": "nowhere", "rows": 60, "queue": 15}
        assert children(order, order) == [0, 0]
        check(api, tmp_path / "l", 60, queue=15)
