"""The same plan on a Dask cluster: results, money and limits of one process; killed, interrupted, stopped."""

import os
import signal
import subprocess
import sys
import time

import anthropic
import httpx2
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.running.job import Row

distributed = pytest.importorskip("distributed", reason="pip install 'claudescale[dask]'")
from claudescale import cluster  # noqa: E402 - Dask is optional

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dask():
    """Start two workers of one thread each in this process."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.Client(set_as_default=False, protocol="tcp", host="127.0.0.1", **options) as client:
        yield client


def on_cluster(plan, api, dask, ledger=None):
    """Return the finished run."""
    return cs.wait(plan.run(api.client(), ledger=ledger, progress=False, on=dask))


def test_the_result_is_that_of_one_process(dask, path):
    """Two workers give the frame, bill and ledger of one process, and rows in the ledger are not sent.

    The prompt looks at other rows.
    """
    prompt = pl.col("text").shift(1) + ' "quoted"\n' + pl.col("text")
    plan = a_plan(pl.concat([reviews(300), reviews(20), pl.DataFrame({"text": [None]})]), prompt)
    with simulator() as api:
        alone = finished(plan, api.client())
        billed = api.stats["distinct_rows_billed"]
        run = on_cluster(plan, api, dask, path)
        assert run.counts.requests == api.stats["calls"] - billed == billed
        again = finished(plan, api.client(), ledger=path)
    assert again.counts.requests == 0
    assert run.results.equals(alone.results)
    assert run.limits.source == alone.limits.source
    assert_frame_equal(run.bill, alone.bill)


def test_a_retry_keeps_its_keys(dask, path):
    """Failed rows are sent again, and the single ledger knows that they were answered.

    All workers together have no more calls in flight than the plan allows.
    """
    with simulator(faults={"cut": 0.2}) as api:
        run = on_cluster(a_plan(reviews(60), concurrency=3), api, dask, path)
        assert run.results["error"].drop_nulls().unique().to_list() == ["max_tokens"]
        assert api.stats["peak_in_flight"] <= 3
    with simulator() as api:
        again = run.plan.retry(run, max_tokens=100)
        assert on_cluster(again, api, dask, path).results["error"].null_count() == 60
        assert finished(again, api.client(), ledger=path).counts.requests == 0


def test_fixed_shares_stay_below_the_limit(dask, monkeypatch):
    """At no time have all workers together sent more than the limit and one second's burst of it."""
    monkeypatch.setattr(cluster, "MOST_ROWS", 20)  # a part: each lane sends two
    limits = cs.Limits(requests_per_minute=1_200, input_tokens_per_minute=1e8, output_tokens_per_minute=1e8)
    with simulator(tier=limits.per_minute, speed=2) as api:
        run = on_cluster(a_plan(reviews(80), tier=limits), api, dask)
    seconds = run.attempts["sent_at"].sort().dt.epoch("us") / 1e6
    unused = seconds * 20 - pl.int_range(80, eager=True)  # requests that could have gone and did not
    assert (unused.cum_max() - unused).max() + 1 <= 20 + 0.01
    assert (run.counts.answered, run.counts.refused) == (80, 0)


def test_a_lane_waits_until_its_share_is_full_again(dask, monkeypatch):
    """A part that used more than flowed in meanwhile is its lane's last until that is made up for."""
    answer = cluster._answer

    async def owing(part, stop):
        return (await answer(part, stop))._replace(owed_seconds=1e9)

    monkeypatch.setattr(cluster, "_answer", owing)
    monkeypatch.setattr(cluster, "MOST_ROWS", 20)
    with simulator() as api:
        run = a_plan(reviews(100)).start(api.client(), ledger=None, progress=False, on=dask)
        while run.counts.answered < 40:
            time.sleep(0.01)
        run.stop()
        assert cs.wait(run).counts.answered == api.stats["calls"] == 40


DRIVER = """
import os, sys, claudescale as cs
from distributed import Client
from running import a_plan, reviews
client = cs.connect(base_url=sys.argv[1], api_key="simulated")
tier = cs.Limits(requests_per_minute=12_000, input_tokens_per_minute=1e8, output_tokens_per_minute=1e8)
with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as dask:
    print(min(dask.run(os.getpid).values()), flush=True)
    run = a_plan(reviews(400), tier=tier).start(client, ledger=sys.argv[2], progress=False, on=dask)
    try:
        cs.wait(run)
    except KeyboardInterrupt:
        print("interrupted,", run.state, flush=True)
"""


def test_a_worker_is_killed_and_the_driver_interrupted(path, monkeypatch):
    """Kill -9, and Ctrl-C sent to every process, lose nothing; at most one part is paid for again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with simulator(tier=(12_000, 1e8, 1e8), speed=1, latency=0.35) as api:
        command = [sys.executable, "-c", DRIVER, api.url, path]
        with subprocess.Popen(command, start_new_session=True, **pipes) as driver:
            worker = int(driver.stdout.readline())
            for calls, kill, victim, signal_ in (
                (60, os.kill, worker, signal.SIGKILL),
                (120, os.killpg, driver.pid, signal.SIGINT),
            ):
                while api.stats["calls"] < calls:
                    time.sleep(0.005)
                kill(victim, signal_)
            out, err = driver.communicate(timeout=120)
        assert "interrupted, stopped" in out, err
        assert driver.returncode == 0
        assert 0 < api.stats["distinct_rows_billed"] < 400
        run = finished(a_plan(reviews(400)), api.client(), ledger=path)
        assert run.results["error"].null_count() == 400
        assert api.stats["distinct_rows_billed"] == 400
        assert api.stats["billed_rows"] - 400 <= 200
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_budget_is_a_hard_stop(dask, monkeypatch):
    """Each lane spends at most its share of the budget, including the worst case of calls in flight."""
    monkeypatch.setattr(cluster, "MOST_ROWS", 40)  # a part: each lane sends several
    with simulator() as api:
        plan = a_plan(reviews(300))
        plan = plan.calibrate(finished(plan.head(20), api.client()))
        spent, budget = api.stats["dollars"], 1.02 * plan.options["dollars"][0]
        run = on_cluster(plan.replace(budget=budget), api, dask)
        assert (run.state, run.stopped_by) == ("stopped", "budget")
        assert 0 < run.counts.answered < 300
        assert run.counts.dollars == pytest.approx(api.stats["dollars"] - spent)
        assert api.stats["dollars"] - spent <= budget


def test_the_accounts_error_ends_the_run(dask):
    """An error that affects every row, such as a spend limit, ends the run with the API's message."""
    with simulator(faults={"spend_cap": 0.001}) as api, pytest.raises(cs.RunStopped) as stopped:
        on_cluster(a_plan(reviews(200)), api, dask)
    assert stopped.value.run.stopped_by == "enforced_spend_limit_reached"
    assert stopped.value.run.counts.answered > 0


def test_a_worker_signs_in_as_the_driver_and_no_log_shows_it(dask, monkeypatch):
    """Workers get the driver's key, not their own; nothing that Dask may log shows a key or a row.

    If Dask tries a part again because its worker died, it is not sent, and counts as paid at its worst case.
    """
    client = anthropic.AsyncAnthropic(default_headers={"x-api-key": "the-drivers"})
    _, settings = cluster.engine(dask, client, a_plan(reviews(1))).args
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the-workers-own")
    worker = cluster._client(settings)
    assert (worker.api_key, worker.default_headers["x-api-key"]) == (None, "the-drivers")
    rows = [Row("k", b"a text", 10.0, 0.5), Row("l", b"a text", 10.0, 0.25)]
    part = cluster.Part("run", "name", settings, a_plan(reviews(1)), WIDE_LIMITS, 1.0, warm=False, rows=rows)
    assert repr(part) == "<Part name, 2 rows>"
    distributed.Event("name", dask).set()
    outcome = dask.submit(cluster.run_part, part, key="part", pure=False).result()
    assert (outcome.attempts, outcome.dollars, outcome.trouble.error) == ([], 0.75, "worker_died")


@pytest.mark.parametrize(
    ("on", "mode", "given", "words"),
    [
        (3, "live", {}, r"distributed.Client\(n_workers=2\).* int"),
        (None, "batch", {}, "needs no cluster"),
        (None, "live", {"http_client": httpx2.AsyncClient()}, "without an http_client"),
    ],
)
def test_what_cannot_run_there(dask, on, mode, given, words):
    """A non-Dask client, a batch, and a client that cannot be recreated are refused with an explanation."""
    client = anthropic.AsyncAnthropic(api_key="any", **given)
    with pytest.raises(cs.PlanError, match=words):
        a_plan(reviews(1), mode=mode).start(client, ledger=None, on=on or dask)
