"""``async for row in run``: every row of the frame once, in the order in which they are answered."""

import asyncio

import polars as pl
import pytest
from running import a_plan, simulator

import claudescale as cs

FRAME = pl.DataFrame({"text": [*(f"text {number % 30}" for number in range(40)), None]})
"""Repeated texts and a null."""


def started(api, path, frame=FRAME, **options):
    """Return the run of a plan that was started."""
    return a_plan(frame, "Say {text}", **options).start(api.client(), ledger=path, progress=False)


def all_of(run, rows=None):
    """Return every row that a run gives, in `rows` as well as far as it comes."""
    rows = [] if rows is None else rows

    async def collect():
        async for row in run:
            rows.append(row)
        return rows

    return asyncio.run(collect())


@pytest.mark.parametrize("options", [{"mode": "live"}, {"mode": "batch"}, {"mode": "hybrid", "deadline": 60}])
def test_rows_come_once_each_as_in_results(options, path):
    """Each row has its index and all columns of `results`; a second run gives all without a call."""
    with simulator(speed=600) as api:
        for calls in (30, 0):
            run = started(api, path, **options)
            rows = sorted(all_of(run), key=lambda row: row["index"])
            assert rows == run.results.with_row_index("index").to_dicts()
            assert (run.counts.requests >= calls) if calls else (run.counts.requests == 0)


def test_rows_come_in_the_order_of_arrival(path):
    """Slow rows come after quick ones; a row with nothing to send comes last."""
    seconds = {"slow": 10.0, "quick": 0.1}

    def latency(body, _tokens):
        return seconds[body["messages"][0]["content"].split()[-1]]

    with simulator(speed=20, latency=latency) as api:
        rows = all_of(started(api, path, pl.DataFrame({"text": ["slow", None, "quick"]})))
    assert [row["index"] for row in rows] == [2, 0, 1]


def test_leaving_the_loop_leaves_the_run_going(path):
    """After a break the run goes on to its end."""

    async def few(run):
        async for _ in run:
            break
        return await run

    with simulator(speed=600) as api:
        run = asyncio.run(few(started(api, path)))
        assert (run.state, run.counts.answered) == ("finished", 40)


def test_rows_of_a_run_that_fails_are_given_before_it_is_raised(path):
    """What was not answered has its error, then RunStopped says why; a column `index` is refused."""
    rows = []
    with simulator(speed=600, faults={401: 1.0}) as api:
        with pytest.raises(cs.RunStopped):
            all_of(started(api, path), rows)
        with pytest.raises(cs.PlanError, match="rename yours"):
            all_of(started(api, path, FRAME.with_row_index()))
    assert [row["index"] for row in rows] == list(range(41))
    assert {row["error"] for row in rows} == {"not_sent", None}
