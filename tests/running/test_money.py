"""Money in a run: nothing is paid twice, nothing paid is lost, and the budget is never exceeded."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import polars as pl
import pytest
from engine import GOOD, UNREACHABLE, through_desk, through_script, worst_dollars
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.api.answers import Answer
from claudescale.ledger.store import Store
from claudescale.running.job import Job


@pytest.mark.parametrize("answers", [0.99, 2.5, 60])
def test_the_budget_is_a_hard_stop(answers):
    """The bill, seen or not, never exceeds it: each call's worst case is reserved before it is sent."""
    budget = answers * worst_dollars()
    faults = {"drop_after": 0.1, "not_json": 0.1, "truncated_body": 0.1, 500: 0.1}
    engine = through_desk(1_000, {"budget_dollars": budget}, seed=1, faults=faults)
    assert engine.stats["dollars"] <= budget
    assert engine.stopped_by == "budget"
    assert engine.stats["billed_rows"] >= answers - 1
    assert bool(engine.attempts) is (answers > 1)


def test_what_a_lost_call_takes_from_the_budget():
    """A call that never arrived takes nothing; a hung one, or one without usage, its worst case."""
    worst = worst_dollars()
    later = through_script(
        lambda call: UNREACHABLE if call.tries < 6 else GOOD, 1, budget_dollars=1.5 * worst
    )
    assert len(later.finals) == 1
    bare = Answer(200, {}, b'{"content": [{"type": "text", "text": "ok"}], "usage": null}')
    unpriced = through_script(lambda _: bare, 10, budget_dollars=3.5 * worst, concurrency=1)
    assert [attempt.reply for attempt in unpriced.attempts] == ["ok"] * 3
    assert unpriced.stopped_by == "budget"
    hung = through_script(
        lambda _: GOOD, 100, seconds=lambda call: 1e6 if call.number == 50 else 1.0, budget_dollars=1.0
    )
    assert hung.job.purse.gone == pytest.approx(hung.dollars + worst, rel=0.01)


@pytest.mark.parametrize(
    ("mode", "cache", "kind"),
    [
        ("live", False, "input"),
        ("live", True, "cache_write_5m_input"),
        ("batch", True, "cache_write_1h_input"),
    ],
)
def test_the_worst_case_of_a_row_is_the_dearest_it_can_become(mode, cache, kind):
    """A token for each byte, and a thousand of the API's; the prompt is cached, and answered in the US."""
    text = "它坏了。🎈" * 100
    plan = a_plan(pl.DataFrame({"text": [text]}), mode=mode, system="Be brief.", cache=cache)
    job = Job(plan, SimpleNamespace(middleware=()), None)
    worst, most = job.with_worst(job.work.requests, mode).select("worst_dollars", "most_tokens").row(0)
    assert len(text.encode()) <= most < len(text.encode()) + 500
    price = prices.price(MODEL, mode=mode, inference_geo="us")
    assert worst == pytest.approx(price.dollars(**{f"{kind}_tokens": most + 1_000, "output_tokens": 64}))


def test_what_cannot_begin_sends_nothing(api, tmp_path):
    """A frame's own error says where to look, a wrong ledger has its reason, and the run has its rows."""
    lazy = pl.LazyFrame({"text": ["a"]}).with_columns(pl.col("text").cast(pl.Int64).cast(pl.String))
    run = a_plan(lazy).start(api.client(), ledger=None, progress=False)
    with pytest.raises(cs.PlanError, match=r"frame\.collect\(\)"):
        cs.wait(run)
    assert "failed" in repr(run)
    (tmp_path / "notes.txt").write_text("my notes")
    with pytest.raises(cs.RunStopped, match="not a ledger") as stopped:
        finished(a_plan(reviews(3)), api.client(), ledger=tmp_path / "notes.txt")
    assert stopped.value.run.results["error"].to_list() == ["not_sent"] * 3
    assert api.stats["calls"] == 0


def test_the_default_ledger_is_a_file_here_and_none_says_so(api, tmp_path, monkeypatch):
    """By default every reply is on disk; with ledger=None the card says that none is."""
    monkeypatch.chdir(tmp_path)
    assert "replies are only in memory" in repr(finished(a_plan(reviews(2)), api.client()))
    assert list(tmp_path.iterdir()) == []
    run = cs.wait(a_plan(reviews(2)).run(api.client(), progress=False))
    assert (tmp_path / "claudescale.ledger").exists()
    assert "Ledger: claudescale.ledger." in repr(run)


@pytest.mark.slow
def test_a_ledger_that_can_be_written_no_more_keeps_replies_in_results(path, monkeypatch):
    """A full disk, a read-only file or a stuck lock stops the run, and the results have what was billed."""
    real, full = Store.record, cs.errors.LedgerFull("The disk is full: make room.")

    def record(store, attempt, **named):
        real(store, attempt, **named)
        if run.counts.answered > 50:
            raise full

    monkeypatch.setattr(Store, "record", record)
    with simulator() as api:
        run = a_plan(reviews(2_000), concurrency=16).start(api.client(), ledger=path, progress=False)
        with pytest.raises(cs.RunStopped, match="make room"):
            cs.wait(run)
        assert (run.state, run.stopped_by) == ("failed", "ledger")
        assert 50 < run.results["reply"].count() == api.stats["billed_rows"] < 2_000


def test_a_resume_pays_only_for_what_is_missing(api, path):
    """Only new rows are sent, nothing paid for; budget and deadline apply to those alone."""
    finished(a_plan(reviews(90)), api.client(), ledger=path)
    plan = a_plan(reviews(100), budget=0.0004)
    with pytest.raises(cs.errors.ImpossibleBudget):
        finished(plan, api.client())
    run = finished(plan, api.client(), ledger=path)
    assert run.summary.row(0, named=True).items() >= {"reused": 90, "requests": 10, "answered": 100}.items()
    again = finished(a_plan(reviews(100)), api.client(), ledger=path)
    assert api.stats["calls"] == 100
    assert again.results.equals(run.results)
    assert again.summary["dollars"].item() == 0


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(path):
    """Two runs on one ledger bill each row once, whoever reads meanwhile, and both end with every reply."""

    async def both(api):
        plan = a_plan(reviews(300), concurrency=16)
        runs = [plan.start(api.client(), ledger=path, progress=False) for _ in range(2)]
        with closing(cs.watch(runs[0])), closing(cs.Ledger(path)) as ledger:
            while any(run.state in {"starting", "running"} for run in runs):
                spent = cs.spend(path.parent)["requests"].sum()
                assert spent <= ledger.attempts().height <= 300
                await asyncio.sleep(0.05)
        return [await run for run in runs]

    with simulator() as api:
        runs = asyncio.run(both(api))
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"] == 300
    for run in runs:
        assert run.results["reply"].null_count() == 0
        assert run.summary["requests"].item() > 0


@pytest.mark.slow
def test_a_kill_loses_nothing(tmp_path):
    """No row is lost; only calls in flight and at most a group not yet on disk are billed twice."""
    script = """
import sys, anthropic, claudescale as cs
from running import a_plan, reviews
client = anthropic.AsyncAnthropic(api_key="simulated", base_url=sys.argv[1], max_retries=0)
cs.wait(a_plan(reviews(200), concurrency=10).run(client, ledger="l", progress=False))
"""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with simulator(speed=20) as api:
        with subprocess.Popen([sys.executable, "-c", script, api.url], cwd=tmp_path, env=given) as child:
            while api.stats["calls"] < 70:
                assert child.poll() is None
                time.sleep(0.01)
            child.kill()
        run = finished(a_plan(reviews(200)), api.client(), ledger=tmp_path / "l")
        assert api.stats["distinct_rows_billed"] == 200
        assert api.stats["billed_rows"] <= 200 + 10 + 50  # in flight, or of the last moment
    assert run.results["reply"].null_count() == 0
    assert run.summary["reused"].item() > 0
