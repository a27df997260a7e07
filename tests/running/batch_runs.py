"""Helpers shared by the tests of batches: plans, and a simulator with batches of a fraction of a second."""

from dataclasses import replace

import pytest
from running import WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs


def quick(*, queue=100_000, **options):
    """Return a simulator whose batches take a fraction of a second."""
    given = {"speed": 1_000, "batch_seconds": 60.0, "batch_requests_per_minute": 10**6, **options}
    return simulator(batch_queue_requests=queue, **given)


def the_plan(rows, *, queue=None, mode="batch", **options):
    """Return a plan by batches whose calls need not wait."""
    tier = replace(WIDE_LIMITS, batch_queue_requests=queue, batch_requests_per_minute=6_000)
    return a_plan(reviews(rows), tier=tier, mode=mode, **options)


def ended(plan, api, ledger=None, **client):
    """Return the run of a plan that has ended or was stopped."""
    try:
        return finished(plan, api.client(**client), ledger=ledger)
    except cs.RunStopped as stopped:
        return stopped.run


def paid_once(api, run, *, resumed=False):
    """Check that all rows have a reply, each was billed once, and the dollars are the server's."""
    stats, rows = api.stats, run.plan.frame.height
    assert (run.state, run.message) == ("finished", None)
    assert run.results["text"].equals(run.plan.frame["text"])
    assert run.results["reply"].null_count() == 0
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == rows
    if not resumed:
        dollars = pytest.approx(stats["dollars"], abs=1e-9)
        assert run.summary["dollars"].item() == dollars
        assert run.bill["dollars"].sum() == dollars
