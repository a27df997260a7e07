"""The same plan on a Dask cluster of two workers: killed, frozen, interrupted, left by its driver."""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale import cluster
from claudescale.api import catalog
from claudescale.ledger.ledger import Ledger
from claudescale.running.gathering import workers_of

pytest.importorskip("distributed", reason="pip install 'claudescale[dask]'")
from claudescale import daskbook, daskworker

LIMITS = cs.Limits(
    requests_per_minute=12_000, input_tokens_per_minute=100_000_000, output_tokens_per_minute=100_000_000
)
ROWS = 600
CHILD = Path(__file__).with_name("cluster_child.py")


@pytest.fixture(scope="module")
def dask():
    """Start two workers; one that stands still is given up sooner than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cluster._SETTINGS, "distributed.scheduler.worker-ttl", "6 s")
        client = cluster.local(2)
    yield client
    client.close()


@pytest.fixture
def api():
    """Serve calls of a third of a second, two hundred a second."""
    with simulator(tier=LIMITS.per_minute, speed=1, latency=0.35) as served:
        yield served


def the_plan(frame, **options):
    """Return a plan that is not over in a second."""
    return a_plan(frame, tier=LIMITS, **options)


def on_cluster(plan, api, dask, ledger=None):
    """Return the finished run."""
    return cs.wait(plan.run(api.client(), ledger=ledger, progress=False, on=dask))


def once(condition, act, seconds=60.0):
    """Act from another thread when a condition comes true; the thread's `.found` is what `act` gives."""

    def watch():
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.005)
        thread.found = act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def check(run, rows, api, twice=0):
    """Check that each row has its answer and that no more than `twice` were paid for again."""
    assert run.message is None
    assert run.state == "finished"
    assert run.results["text"].to_list() == reviews(rows)["text"].to_list()
    assert run.results["reply"].null_count() == 0
    assert run.results["error"].null_count() == rows
    stats = api.stats
    assert stats["distinct_rows_billed"] == rows
    assert stats["billed_rows"] - rows <= twice
    assert stats["refused"] == {}


def workers(dask):
    """Return the process ids of the workers."""
    return sorted(dask.run(os.getpid).values())


def signalled(dask, api, name):
    """Send one worker a signal; return its process id and how many calls were in flight."""
    pid = workers(dask)[0]
    under_way = api.stats["in_flight"]
    os.kill(pid, name)
    return pid, max(under_way, api.stats["in_flight"])


def test_the_result_is_that_of_one_process(dask, api, path):
    """Two workers give the same frame, bill and ledger as this process, and leave nothing else behind."""
    plan = the_plan(pl.concat([reviews(300), reviews(20), pl.DataFrame({"text": [None]})]))
    run = on_cluster(plan, api, dask, path)
    calls = api.stats["calls"]
    assert calls == api.stats["distinct_rows_billed"] == 300
    alone = finished(plan, api.client())
    assert run.results.equals(alone.results)
    assert_frame_equal(run.bill, alone.bill)
    assert run.limits.source == alone.limits.source
    assert run.attempts["key"].n_unique() == run.attempts.height == 300
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
    again = finished(plan, api.client(), ledger=path)
    assert again.summary["requests"].item() == 0


def test_a_worker_that_is_killed(dask, api, path):
    """After kill -9 nothing is lost, and no more is paid for twice than was in flight."""
    killed = once(lambda: api.stats["calls"] > 100, lambda: signalled(dask, api, signal.SIGKILL))
    run = on_cluster(the_plan(reviews(ROWS)), api, dask, path)
    killed.join()
    check(run, ROWS, api, twice=killed.found[1])
    assert run.attempts["dollars"].sum() <= api.stats["dollars"] + 1e-9
    assert not workers_of(path).exists()


def test_a_worker_that_stands_still(dask, api, path):
    """The rows of a frozen worker go to the other one; thawed, it sends nothing more."""
    frozen = once(lambda: api.stats["calls"] > 100, lambda: signalled(dask, api, signal.SIGSTOP))
    run = on_cluster(the_plan(reviews(ROWS)), api, dask, path)
    frozen.join()
    calls = api.stats["calls"]
    with contextlib.suppress(ProcessLookupError):  # its nanny may have ended it
        os.kill(frozen.found[0], signal.SIGCONT)
    check(run, ROWS, api, twice=frozen.found[1])
    dask.wait_for_workers(2)
    assert api.stats["calls"] == calls


def child(api, ledger, rows, where):
    """Start a driver in a process group of its own."""
    command = [sys.executable, CHILD, api.url, ledger, str(rows), where]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_an_interrupt_reaches_driver_and_workers_at_once(api, path):
    """Ctrl-C in a terminal goes to every process: what is in flight comes in, and nothing is paid twice."""
    driver = child(api, path, ROWS, "2")
    once(lambda: api.stats["calls"] > 100, lambda: os.killpg(driver.pid, signal.SIGINT)).join()
    out, err = driver.communicate(timeout=60)
    assert "interrupted, stopped" in out, err
    assert "Traceback" not in err
    answered = api.stats["distinct_rows_billed"]
    assert 100 <= answered < ROWS
    with Ledger(path) as ledger:
        assert ledger.attempts()["key"].n_unique() == answered == api.stats["billed_rows"]
    check(finished(the_plan(reviews(ROWS)), api.client(), ledger=path), ROWS, api)


def test_a_driver_that_is_killed_while_its_workers_live(dask, api, path):
    """Workers that lose their driver finish what is in flight; the next run takes that over."""
    driver = child(api, path, ROWS, dask.scheduler.address)
    once(lambda: api.stats["calls"] > 100, driver.kill).join()
    driver.communicate()
    assert api.stats["distinct_rows_billed"] < ROWS
    check(on_cluster(the_plan(reviews(ROWS)), api, dask, path), ROWS, api)
    assert not workers_of(path).exists()


def test_stop_and_go_on(dask, api, path):
    """A stopped run keeps what was in flight, can be watched meanwhile, and the next one sends the rest."""
    plan = the_plan(reviews(ROWS), concurrency=40)
    run = plan.start(api.client(), ledger=path, progress=False, on=dask)
    most = 0
    while run.counts.answered < 100:
        most = max(most, run.pulse.in_flight)
        time.sleep(0.02)
    run.stop()
    run.result()
    assert run.state == "stopped"
    assert most > 0
    assert run.counts.answered == api.stats["billed_rows"] < ROWS
    check(on_cluster(plan, api, dask, path), ROWS, api)


def test_a_budget_is_a_hard_stop(dask, api):
    """The worst case of every part that is out is set aside: the bill stays below the budget."""
    plan = the_plan(reviews(ROWS))
    plan = plan.calibrate(finished(plan.head(20), api.client()))
    spent, budget = api.stats["dollars"], 1.02 * plan.options["dollars"][0]
    run = on_cluster(plan.replace(budget=budget), api, dask)
    assert (run.state, run.stopped_by) == ("stopped", "budget")
    assert 0 < run.counts.answered < ROWS
    assert run.attempts["dollars"].sum() == pytest.approx(api.stats["dollars"] - spent)
    assert api.stats["dollars"] - spent <= budget


def test_failures_are_met_by_the_workers(dask):
    """Overloads, lost connections and refused rows end as they do in one process."""
    plan, faults = the_plan(reviews(200)), {"529": 0.05, "drop": 0.02, "400": 0.02}
    runs = []
    for on in (dask, None):
        with simulator(speed=1, latency=0.1, faults=faults) as api:
            runs.append(on_cluster(plan, api, on))
    assert runs[0].results.equals(runs[1].results)
    assert {"overloaded_error", "connection_error", "invalid_request_error"} <= set(runs[0].attempts["error"])


def test_one_row_writes_the_cache_and_the_others_read_it(dask):
    """With a cached prompt one row goes first, whatever the number of workers."""
    with simulator(speed=1, latency=0.1) as api:
        on_cluster(the_plan(reviews(60), system="You are kind. " * 400, cache=True), api, dask)
        stats = api.stats
    assert stats["cache_write_5m_input_tokens"] > 0
    assert stats["cache_read_input_tokens"] == 59 * stats["cache_write_5m_input_tokens"]


def test_the_accounts_error_ends_the_run(dask):
    """What no row can help, such as a spend limit, ends the run with the API's words."""
    with (
        simulator(speed=1, latency=0.1, faults={"spend_cap": 0.001}) as api,
        pytest.raises(cs.RunStopped) as stopped,
    ):
        on_cluster(the_plan(reviews(500)), api, dask)
    assert stopped.value.run.stopped_by == "enforced_spend_limit_reached"
    assert stopped.value.run.counts.answered > 0


def test_a_worker_that_cannot_work_says_why(dask, api, tmp_path):
    """A folder that the workers do not see ends the run with what to type, before anything is sent."""

    def elsewhere():
        msg = "no secret store here"
        raise OSError(msg)

    with pytest.raises(cs.RunStopped, match="no secret store here"):
        on_cluster(
            the_plan(reviews(5)), api, cluster.Dask(client=dask, connect=elsewhere, folder=tmp_path / "w")
        )
    assert api.stats["calls"] == 0


def terms(**changes):
    """Return the terms of some run."""
    given = {
        "run": "r",
        "book": "b",
        "api": "a",
        "simulated": True,
        "base_url": "http://127.0.0.1:1",
        "lease": {},
    }
    given |= {
        "folder": "/nowhere",
        "facts": catalog.model("claude-haiku-5-5"),
        "max_tokens": 64,
        "cache": False,
    }
    return daskworker.Terms(**(given | {"concurrency": None, "head": "HEAD", "tail": "TAIL"} | changes))


def test_what_dask_may_log_shows_no_row():
    """Dask logs the repr of what a failed task was given: it shows no text, and no key is in it at all."""
    part = daskworker.Part(number="1", keys=["k"], texts=["secret text"], input_tokens=[1.0], budget=None)
    assert "secret" not in repr(part)
    assert "HEAD" not in repr(terms())
    assert b"api_key" not in pickle.dumps((terms(), part))


def test_a_worker_without_a_key_says_what_to_set(monkeypatch):
    """The key is the worker's own: where there is none, it says which variable."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(cs.PlanError, match="ANTHROPIC_API_KEY"):
        daskworker._client(terms(simulated=False))


def test_a_scheduler_that_stands_still_is_not_waited_for(monkeypatch):
    """Its connections stay open; after a long silence it counts as out of reach."""
    monkeypatch.setattr(daskbook, "SILENCE_SECONDS", 0.05)

    async def asked():
        await daskbook.on_loop(asyncio.get_running_loop(), asyncio.sleep(30))

    with pytest.raises(ConnectionError, match="Timeout"):
        asyncio.run(asked())


def test_what_a_run_cannot_go_on():
    """Anything but a Dask client or a Redis address is refused before anything is sent, with what to type."""
    with simulator() as api, pytest.raises(cs.PlanError, match=r"takes no int.*cluster.local\(2\)"):
        the_plan(reviews(1)).start(api.client(), ledger=None, on=3)
