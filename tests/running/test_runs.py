"""Runs end to end, with the real SDK against the simulator over HTTP: results, and their rows."""

import asyncio
import datetime as dt
import decimal

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import a_plan, finished, reviews, simulator

from claudescale.ledger.records import ATTEMPTS
from claudescale.running.meter import THROUGHPUT
from claudescale.running.runs import BATCHES

OURS = ("reply", "error", "simulated")


@pytest.fixture(scope="module")
def api():
    """Return one simulator for tests that do not count its calls."""
    with simulator(replies=lambda body: "Re: " + body["messages"][0]["content"]) as one:
        yield one


@pytest.fixture
def counted():
    """Return a fresh simulator, whose counts are this test's alone."""
    with simulator() as one:
        yield one


# rows in, rows out


def test_each_row_has_the_reply_to_its_own_text(api):
    """Rows keep their order despite repeats; emoji, quotes, braces and 100 KB arrive unchanged.

    The user's columns come back unchanged, for any type and name.
    """
    texts = [
        "🎈👩‍👩‍👧 é", 'quote " back \\ slash', "tab\tnew\nline\x01\x7f", "{n} {{x}}", "",
        "\u2028" + "x" * 100_000,
    ]  # fmt: skip
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
    run = finished(a_plan(frame, "<{text}>", max_tokens=60_000), api.client())
    assert_frame_equal(run.results.drop(OURS), frame)
    assert run.results["reply"].to_list() == [f"Re: <{text}>" for text in frame["text"]]
    assert run.results["error"].null_count() == frame.height
    assert run.state == "finished"


def test_nulls_are_not_sent_and_rows_alike_are_sent_once(counted):
    """A row without a text has neither reply nor error; a repeated text is paid for once."""
    frame = pl.DataFrame({"text": ["same", None] * 20 + ["other"]})
    run = finished(a_plan(frame), counted.client())
    assert counted.stats["calls"] == counted.stats["billed_rows"] == 2
    assert run.results["reply"].is_null().equals(frame["text"].is_null().rename("reply"))
    assert run.results["reply"].n_unique() == 3
    assert run.results["error"].null_count() == 41
    assert "21 of 41 rows answered, 20 with a null not sent; 2 calls" in repr(run)
    assert run.summary.row(0, named=True).items() >= {"rows": 41, "answered": 21, "missing": 0}.items()


@pytest.mark.parametrize(("lazy", "texts"), [(True, []), (False, [None, None]), (False, ["one"])])
def test_small_frames(counted, lazy, texts):
    """A frame of no row, of none to send, or of one row works like any other."""
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    run = finished(a_plan(frame.lazy() if lazy else frame), counted.client())
    assert run.results.schema == {"text": pl.String, "reply": pl.String, "error": pl.String} | {
        "simulated": pl.Boolean
    }
    assert run.results["reply"].count() == counted.stats["calls"] == texts.count("one")
    assert (run.results.height, run.state) == (len(texts), "finished")


# failing rows


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (400, "invalid_request_error"),
        ("refusal", "refusal"),
        ("cut", "max_tokens"),
        ("empty_content", "empty_reply"),
    ],
)
def test_a_row_that_fails_says_why_and_fails_alone(fault, error):
    """A rejected request and a useless paid reply are data of their row and not sent again."""
    with simulator(faults={fault: 0.4}) as api:
        run = finished(a_plan(reviews(30)), api.client())
        assert api.stats["calls"] == 30
    failed = (run.results["error"] == error).sum()
    assert set(run.results["error"]) == {None, error}
    assert run.summary.row(0, named=True).items() >= {"failed": failed, "missing": 0}.items()
    assert run.results.filter(pl.col("error").is_null())["reply"].null_count() == 0
    assert (run.waste["dollars"].sum() > 0) is (fault != 400)


# the run's account of itself


def test_counts_bill_and_attempts_are_the_servers():
    """Rows, calls, tokens and dollars agree with the API's account, failures and repeats included."""
    frame = pl.concat([reviews(40), reviews(10), pl.DataFrame({"text": [None]}, schema={"text": pl.String})])
    faults = {400: 0.1, "refusal": 0.1, 529: 0.1, 429: 0.05, "drop": 0.1, "html_body": 0.05}
    with simulator(faults=faults, speed=60) as api:
        run = finished(a_plan(frame), api.client())
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
    assert run.counts.plain_dollars == pytest.approx(run.savings["dollars_without"][0])


def test_the_system_prompt_is_cached_and_written_once(counted):
    """With cache=True one call writes the prefix, all others read it, and the savings say so."""
    run = finished(a_plan(reviews(10), system="Answer in one word. " * 600, cache=True), counted.client())
    assert (run.attempts["cache_write_5m_input_tokens"] > 0).sum() == 1
    assert (run.attempts["cache_read_input_tokens"] > 0).sum() == 9
    assert run.savings.filter(pl.col("strategy") == "cache")["dollars_saved"].item() > 0
    assert run.counts.plain_dollars == pytest.approx(run.savings["dollars_without"][0])


def all_of(run):
    """Return the state of a run and every frame of it, after displaying its cards."""
    names = ("results", "summary", "throughput", "attempts", "batches", "savings", "bill", "waste")
    assert repr(run)
    assert run._repr_html_()
    return run.state, {name: getattr(run, name) for name in names}


@pytest.mark.slow
def test_every_frame_can_be_read_before_during_and_after():
    """Each frame of a run has its schema and all rows from the first moment to the last."""

    async def main():
        with simulator(speed=2, latency=0.5) as api:
            plan = a_plan(reviews(24).lazy(), returns={"n": pl.Int64}, concurrency=8)
            run = plan.start(api.client(), ledger=None, progress=False)
            seen = [all_of(run)]
            while seen[-1][0] != "finished":
                await asyncio.sleep(0.1)
                seen.append(all_of(run))
        return seen

    states, seen = zip(*asyncio.run(main()), strict=True)
    assert set(states) == {"starting", "running", "finished"}
    schemas = {"throughput": THROUGHPUT, "attempts": ATTEMPTS, "batches": BATCHES}
    for frames in seen:
        assert {name: frames[name].schema for name in schemas} == schemas
        # The API, and so the mark of a simulator's results, is known from the first call.
        assert frames["results"].columns[:4] == ["text", "n", "reply", "error"]
        assert frames["results"].height == 24
    answered = [frames["results"]["reply"].count() for frames in seen]
    assert answered == sorted(answered)
    assert (answered[0], answered[-1]) == (0, 24)
    assert (seen[0]["results"]["error"] == "not_sent").all()


def test_a_simulated_reply_is_never_taken_for_a_real_one(counted):
    """Attempts, results, texts and cards are marked, and its key differs from the API's."""
    plan = a_plan(reviews(3))
    run = finished(plan, counted.client())
    assert run.attempts["simulated"].all()
    assert run.results["simulated"].all()
    assert run.results["reply"].str.starts_with("[simulated]").all()
    for card in (repr(run), run._repr_html_()):
        assert "SIMULATED " in card
    assert not set(plan.requests["custom_id"]) & set(run.attempts["key"])
