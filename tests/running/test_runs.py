"""Runs end to end, with the real SDK against the simulator over HTTP: results, frames, and ``async for``."""

import asyncio
import datetime as dt
import decimal

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.ledger.records import ATTEMPTS
from claudescale.running.meter import THROUGHPUT
from claudescale.running.runs import BATCHES

REPEATED = pl.DataFrame({"text": [*(f"text {number % 30}" for number in range(40)), None]})


def test_each_row_has_the_reply_to_its_own_text():
    """Rows keep their order despite repeats; emoji, quotes, braces and 100 KB arrive unchanged.

    The user's columns come back unchanged, for any type and name.
    """
    texts = ["🎈👩‍👩‍👧 é", '"}]}},{"custom_id":"x"\\ ', "tab\tnew\nline\x01\x7f", "{n} {{x}}", ""]
    texts.append("\u2028" + "x" * 100_000)
    frame = pl.DataFrame({"text": [*texts, *texts, *map(str, range(30))]}).with_columns(
        kind=pl.lit("a", dtype=pl.Enum(["a", "b"])),
        price=pl.lit(decimal.Decimal("1.50")),
        at=pl.lit(dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)).cast(pl.Datetime("ms", "Europe/Berlin")),
        raw=pl.lit(b"\x00\xff"),
        point=pl.struct(x=1, y=None),
        tags=[],
        **{name: pl.lit(name) for name in ("key", "content", "row", "found", "body", "broken", "rows")},
    )
    frame = frame.with_row_index("n").sample(fraction=1.0, shuffle=True, seed=3)
    with simulator(replies=lambda body: "Re: " + body["messages"][0]["content"]) as api:
        run = finished(a_plan(frame, "<{text}>", max_tokens=60_000), api.client())
    assert_frame_equal(run.results.drop("reply", "error", "simulated"), frame)
    assert run.results["reply"].to_list() == [f"Re: <{text}>" for text in frame["text"]]
    assert run.results["error"].null_count() == frame.height


def test_nulls_are_not_sent_and_rows_alike_are_sent_once(api):
    """A row without a text has neither reply nor error; a repeated text is paid for once."""
    frame = pl.DataFrame({"text": ["same", None] * 20 + ["other"]})
    run = finished(a_plan(frame), api.client())
    assert api.stats["calls"] == api.stats["billed_rows"] == 2
    assert run.results["reply"].is_null().equals(frame["text"].is_null().rename("reply"))
    assert run.results["reply"].n_unique() == 3
    assert run.results["error"].null_count() == 41
    assert "21 of 41 rows answered, 20 with a null not sent; 2 calls" in repr(run)
    assert run.summary.row(0, named=True).items() >= {"rows": 41, "answered": 21, "missing": 0}.items()


@pytest.mark.parametrize(("lazy", "texts"), [(True, []), (False, [None, None]), (False, ["one"])])
def test_small_frames(api, lazy, texts):
    """A frame of no row, of none to send, or of one row works like any other."""
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    run = finished(a_plan(frame.lazy() if lazy else frame), api.client())
    assert run.results.schema == {"text": pl.String, "reply": pl.String, "error": pl.String} | {
        "simulated": pl.Boolean
    }
    assert run.results["reply"].count() == api.stats["calls"] == texts.count("one")
    assert (run.results.height, run.state) == (len(texts), "finished")


@pytest.mark.parametrize(
    ("fault", "error"),
    [(400, "invalid_request_error"), ("refusal", "refusal"), ("empty_content", "empty_reply")],
)
def test_a_row_that_fails_says_why_and_fails_alone(fault, error):
    """A rejected request and a useless paid reply are data of their row and not sent again."""
    with simulator(faults={fault: 0.4}) as api:
        run = finished(a_plan(reviews(30)), api.client())
        assert api.stats["calls"] == 30
    failed = (run.results["error"] == error).sum()
    assert run.summary.row(0, named=True).items() >= {"failed": failed, "missing": 0}.items()
    assert run.results.filter(pl.col("error").is_null())["reply"].null_count() == 0
    assert (run.waste["dollars"].sum() > 0) is (fault != 400)


def test_counts_bill_and_attempts_are_the_servers():
    """Rows, calls, tokens and dollars agree with the API's account, with failures, repeats and a cache."""
    frame = pl.concat([reviews(40), reviews(10), pl.DataFrame({"text": [None]}, {"text": pl.String})])
    faults = {400: 0.1, "refusal": 0.1, 529: 0.1, 429: 0.05, "drop": 0.1, "html_body": 0.05}
    with simulator(faults=faults, speed=60) as api:
        run = finished(a_plan(frame, system="Answer in one word. " * 600, cache=True), api.client())
        stats = api.stats
    row, results, attempts = run.summary.row(0, named=True), run.results, run.attempts
    assert row["rows"] == 51
    assert row["answered"] == (results["error"].is_null() & results["text"].is_not_null()).sum()
    assert row["failed"] == results["error"].is_not_null().sum()
    assert row["requests"] == attempts.height > 40
    assert row["output_tokens"] == stats["output_tokens"]
    assert row["input_tokens"] == attempts.select(pl.sum_horizontal(pl.col("^.*input_tokens$")).sum()).item()
    for dollars in (row["dollars"], run.bill["dollars"].sum(), attempts["dollars"].sum()):
        assert dollars == pytest.approx(stats["dollars"], rel=1e-9)
    assert (attempts["cache_write_5m_input_tokens"] > 0).sum() == 1
    assert run.counts.plain_dollars == pytest.approx(run.savings["dollars_without"][0])


@pytest.mark.slow
def test_every_frame_can_be_read_before_during_and_after():
    """Each frame of a run has its schema and all rows from the first moment to the last."""
    states, seen = [], []
    schemas = {"throughput": THROUGHPUT, "attempts": ATTEMPTS, "batches": BATCHES}

    async def main(api):
        plan = a_plan(reviews(24).lazy(), returns={"n": pl.Int64}, concurrency=8)
        run = plan.start(api.client(), ledger=None, progress=False)
        while "finished" not in states:
            states.append(run.state)
            seen.append(run.results)
            assert {name: getattr(run, name).schema for name in schemas} == schemas
            assert all(getattr(run, name).columns for name in ("summary", "savings", "bill", "waste"))
            assert "Run " in run._repr_html_()
            await asyncio.sleep(0.1)

    with simulator(speed=2, latency=0.5) as api:
        asyncio.run(main(api))
    assert set(states) == {"starting", "running", "finished"}
    # The API, and so the mark of a simulator's results, is known from the first call.
    assert {(*results.columns[:4], results.height) for results in seen} == {
        ("text", "n", "reply", "error", 24)
    }
    answered = [results["reply"].count() for results in seen]
    assert answered == sorted(answered)
    assert (answered[0], answered[-1]) == (0, 24)
    assert (seen[0]["error"] == "not_sent").all()


def test_a_simulated_reply_is_never_taken_for_a_real_one(api):
    """Attempts, results, texts and cards are marked, and its key differs from the API's."""
    plan = a_plan(reviews(3))
    run = finished(plan, api.client())
    assert run.attempts["simulated"].all()
    assert run.results["simulated"].all()
    assert run.results["reply"].str.starts_with("[simulated]").all()
    for card in (repr(run), run._repr_html_()):
        assert "SIMULATED " in card
    assert not set(plan.requests["custom_id"]) & set(run.attempts["key"])


# async for


def started(api, path, frame=REPEATED, **options):
    """Return the run of a started plan."""
    return a_plan(frame, "Say {text}", **options).start(api.client(), ledger=path, progress=False)


async def rows_of(run, rows):
    """Return every row that a run yields, also appended to `rows` as it arrives."""
    async for row in run:
        rows.append(row)
    return rows


@pytest.mark.parametrize("options", [{"mode": "live"}, {"mode": "batch"}, {"mode": "hybrid", "deadline": 60}])
def test_rows_come_once_each_as_in_results(options, path):
    """Each has its index and all columns of `results`, even in a run without new calls.

    Leaving a loop early does not stop the run.
    """

    async def after_a_break():
        async for _ in run:
            break
        return await rows_of(run, [])

    with simulator(speed=600) as api:
        for is_resumed in (False, True):
            run = started(api, path, **options)
            rows = sorted(asyncio.run(after_a_break()), key=lambda row: row["index"])
            assert rows == run.results.with_row_index("index").to_dicts()
            assert run.counts.answered == 40
            assert (run.counts.requests == 0) is is_resumed


def test_rows_come_in_the_order_of_arrival(path):
    """Slow rows come after quick ones; a row with nothing to send comes last."""

    def latency(body, _tokens):
        return 10.0 if "slow" in body["messages"][0]["content"] else 0.1

    with simulator(speed=20, latency=latency) as api:
        run = started(api, path, pl.DataFrame({"text": ["slow", None, "quick"]}))
        assert [row["index"] for row in asyncio.run(rows_of(run, []))] == [2, 0, 1]


def test_rows_of_a_run_that_fails_are_given_before_it_is_raised(path):
    """Unanswered rows have their error, then RunStopped says why; a column named `index` is refused."""
    rows = []
    with simulator(speed=600, faults={401: 1.0}) as api:
        with pytest.raises(cs.RunStopped):
            asyncio.run(rows_of(started(api, path), rows))
        with pytest.raises(cs.PlanError, match="rename yours"):
            asyncio.run(rows_of(started(api, path, REPEATED.with_row_index()), []))
    assert [row["index"] for row in rows] == list(range(41))
    assert {row["error"] for row in rows} == {"not_sent", None}
