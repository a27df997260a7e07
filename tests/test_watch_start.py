"""What a watcher needs that stops all threads is done before a run sends anything."""

import time

import pytest
import vl_convert
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale import loops
from claudescale.widgets import watchcharts


@pytest.fixture
def calls_made(monkeypatch):
    """Return how many calls the simulator had seen at the begin and at the end of each preparation."""
    seen = []

    def prepare():
        seen.append(seen.api.stats["calls"])
        time.sleep(0.1)
        seen.append(seen.api.stats["calls"])

    class Seen(list):
        api = None

    seen = Seen()
    monkeypatch.setattr(watchcharts, "prepare", prepare)
    return seen


def notebook(monkeypatch):
    """Take this process for a kernel."""
    monkeypatch.setattr(loops, "in_notebook", lambda: True)


def test_in_a_notebook_a_run_sends_nothing_before_the_watcher_is_ready(monkeypatch, calls_made):
    """The run waits for imports, scripts and a first PNG, and no call is out while they are made."""
    notebook(monkeypatch)
    with simulator() as api:
        calls_made.api = api
        run = a_plan(reviews(20)).start(api.client(), ledger=None, progress=False)
        cs.wait(run)
    assert calls_made == [0, 0]
    assert run.counts.answered == 20


@pytest.mark.parametrize("where", ["script", "awaited", "batch"])
def test_where_nothing_live_can_be_watched_nothing_is_prepared(monkeypatch, calls_made, where):
    """A script, a run that is awaited at once and a batch do not wait for charts."""
    if where != "script":
        notebook(monkeypatch)
    with simulator(speed=6_000 if where == "batch" else 10) as api:
        calls_made.api = api
        plan = a_plan(reviews(3), mode="batch" if where == "batch" else "live")
        if where == "awaited":
            finished(plan, api.client())
        else:
            cs.wait(plan.start(api.client(), ledger=None, progress=False))
    assert calls_made == []


def test_a_live_picture_after_the_preparation_bundles_and_draws_nothing(monkeypatch):
    """What vl-convert does once, without letting other threads run, is not done again for a watcher."""
    watchcharts.prepare()
    for name in ("javascript_bundle", "vegalite_to_png"):
        monkeypatch.delattr(vl_convert, name)
    watchcharts.live().close()
