"""``async for row in run``: every row of the frame once, in the order of their answers."""

import asyncio

import polars as pl
import pytest
from running import a_plan, simulator

import claudescale as cs

FRAME = pl.DataFrame({"text": [*(f"text {number % 30}" for number in range(40)), None]})
"""Repeated texts and a null."""


def started(api, path, frame=FRAME, **options):
    """Return the run of a started plan."""
    return a_plan(frame, "Say {text}", **options).start(api.client(), ledger=path, progress=False)


async def all_of(run, rows):
    """Return every row that a run yields, also appended to `rows` as it arrives."""
    async for row in run:
        rows.append(row)
    return rows


async def after_a_break(run):
    """Return every row that a run yields after a loop over it was left."""
    async for _ in run:
        break
    return await all_of(run, [])


@pytest.mark.parametrize("options", [{"mode": "live"}, {"mode": "batch"}, {"mode": "hybrid", "deadline": 60}])
def test_rows_come_once_each_as_in_results(options, path):
    """Each has its index and all columns of `results`, even in a run without new calls.

    Leaving a loop early does not stop the run.
    """
    with simulator(speed=600) as api:
        for is_resumed in (False, True):
            run = started(api, path, **options)
            rows = sorted(asyncio.run(after_a_break(run)), key=lambda row: row["index"])
            assert rows == run.results.with_row_index("index").to_dicts()
            assert run.counts.answered == 40
            assert (run.counts.requests == 0) is is_resumed


def test_rows_come_in_the_order_of_arrival(path):
    """Slow rows come after quick ones; a row with nothing to send comes last."""
    seconds = {"slow": 10.0, "quick": 0.1}

    def latency(body, _tokens):
        return seconds[body["messages"][0]["content"].split()[-1]]

    with simulator(speed=20, latency=latency) as api:
        run = started(api, path, pl.DataFrame({"text": ["slow", None, "quick"]}))
        rows = asyncio.run(all_of(run, []))
    assert [row["index"] for row in rows] == [2, 0, 1]


def test_rows_of_a_run_that_fails_are_given_before_it_is_raised(path):
    """Unanswered rows have their error, then RunStopped says why; a column named `index` is refused."""
    rows = []
    with simulator(speed=600, faults={401: 1.0}) as api:
        with pytest.raises(cs.RunStopped):
            asyncio.run(all_of(started(api, path), rows))
        with pytest.raises(cs.PlanError, match="rename yours"):
            asyncio.run(all_of(started(api, path, FRAME.with_row_index()), []))
    assert [row["index"] for row in rows] == list(range(41))
    assert {row["error"] for row in rows} == {"not_sent", None}
