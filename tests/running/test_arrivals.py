"""``async for row in run``: every row of the frame once, in the order in which they are answered."""

import asyncio

import polars as pl
import pytest

import claudescale as cs

FRAME = pl.DataFrame({"text": [*(f"text {number % 30}" for number in range(40)), None]})


def started(sim, path, frame=FRAME, **options):
    """Start a plan over a frame that has repeated texts and a null."""
    plan = cs.plan(frame, "Say {text}", model="claude-haiku-5-5", max_tokens=50, **options)
    return plan.start(sim.client(), ledger=path, progress=False)


async def all_of(run, rows=None):
    """Return every row that a run gives, in `rows` as well as far as it comes."""
    rows = [] if rows is None else rows
    async for row in run:
        rows.append(row)
    return rows


@pytest.mark.parametrize("options", [{"mode": "live"}, {"mode": "batch"}, {"mode": "hybrid", "deadline": 60}])
def test_rows_come_once_each_as_in_results(options, path):
    """Each row has its index and all columns of `results`; a second run gives all without a call."""
    with cs.Simulator(speed=600) as sim:
        for calls in (30, 0):
            run = started(sim, path, **options)
            rows = asyncio.run(all_of(run))
            assert (
                sorted(rows, key=lambda row: row["index"]) == run.results.with_row_index("index").to_dicts()
            )
            assert run.counts.requests >= calls
        assert run.counts.requests == 0


def test_results_can_be_the_next_input(path):
    """The results of a run are the frame of another; both ways of reading it name the columns alike."""
    with cs.Simulator(speed=600) as sim:
        first = cs.wait(started(sim, path))
        plan = first.plan.replace(frame=first.results, prompt="Is that so? {reply}", samples=2)
        assert "'reply' to 'reply_1', 'error' to 'error_1', 'simulated' to 'simulated_1'." in repr(plan)
        run = plan.start(sim.client(), ledger=path, progress=False)
        rows = asyncio.run(all_of(run))
        assert sorted(rows, key=lambda row: row["index"]) == run.results.with_row_index("index").to_dicts()
    assert run.results.drop("simulated").schema == plan.compiled.prompt.results_schema(plan.frame)
    earlier = run.results["reply_1", "error_1", "simulated_1"].gather_every(2)
    assert earlier.rows() == first.results["reply", "error", "simulated"].rows()


def test_rows_come_in_the_order_of_arrival(path):
    """Slow rows come after quick ones; a row with nothing to send comes last."""
    replies = {"slow": 10.0, "quick": 0.1}

    def latency(body, _tokens):
        return replies[body["messages"][0]["content"].split()[-1]]

    with cs.Simulator(speed=20, latency=latency) as sim:
        run = started(sim, path, pl.DataFrame({"text": ["slow", None, "quick"]}))
        rows = asyncio.run(all_of(run))
    assert [row["index"] for row in rows] == [2, 0, 1]


def test_leaving_the_loop_leaves_the_run_going(path):
    """After a break the run goes on to its end."""

    async def few(run):
        async for _ in run:
            break
        return await run

    with cs.Simulator(speed=600) as sim:
        run = asyncio.run(few(started(sim, path)))
        assert (run.state, run.counts.answered) == ("finished", 40)


def test_rows_of_a_run_that_fails_are_given_before_it_is_raised(path):
    """What was not answered has its error, then RunStopped says why; a column `index` is refused."""
    rows = []
    with cs.Simulator(speed=600, faults={401: 1.0}) as sim:
        with pytest.raises(cs.RunStopped):
            asyncio.run(all_of(started(sim, path), rows))
        with pytest.raises(cs.PlanError, match="rename yours"):
            asyncio.run(all_of(started(sim, path, FRAME.with_row_index())))
    assert [row["index"] for row in rows] == list(range(41))
    assert {row["error"] for row in rows} == {"not_sent", None}
