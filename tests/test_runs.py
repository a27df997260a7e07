"""Runs end to end, with the real SDK against the simulator over HTTP: what comes back, and for which rows."""

import asyncio
import datetime as dt
import decimal
import enum
import gc
import logging
import weakref

import polars as pl
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.ledger.records import ATTEMPTS
from claudescale.running.rates import THROUGHPUT
from claudescale.running.runs import BATCHES, SUMMARY


@pytest.fixture(scope="module")
def api():
    """One simulator for tests that do not count its calls."""
    with simulator(replies=lambda body: "Re: " + body["messages"][0]["content"]) as one:
        yield one


@pytest.fixture
def counted():
    """Return a fresh simulator, whose counts are this test's alone."""
    with simulator() as one:
        yield one


def test_results_are_the_frame_with_reply_and_error(api):
    """The user's columns come back as they were, same rows, same order, each with its own reply."""
    frame = reviews(50).with_row_index("n").sample(fraction=1.0, shuffle=True, seed=3)
    run = finished(a_plan(frame, "{text}"), api.client())
    assert_frame_equal(run.results.drop("reply", "error", "simulated"), frame)
    assert run.results["reply"].to_list() == ["Re: " + text for text in frame["text"]]
    assert run.results["error"].null_count() == 50
    assert run.state == "finished"


def test_a_run_that_is_over_goes_with_its_last_name(api):
    """Nothing keeps frame, texts and replies until the garbage collector comes round."""
    run = finished(a_plan(reviews(5)), api.client())
    gone = weakref.ref(run), weakref.ref(run.job)
    gc.collect()
    gc.disable()
    try:
        del run
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


@settings(max_examples=12)
@given(st.lists(st.sampled_from(["a", "b", "c", None, "", "ü", "🎈"]), max_size=12))
def test_every_row_gets_the_reply_to_its_own_text(texts):
    """Whatever repeats or is null: n rows in, n rows out; without a text, neither reply nor error."""
    with simulator(replies=lambda body: "Re: " + body["messages"][0]["content"]) as api:
        frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
        run = finished(a_plan(frame, "<{text}>"), api.client())
        assert run.results["reply"].to_list() == [None if text is None else f"Re: <{text}>" for text in texts]
        assert run.results["error"].to_list() == [None] * len(texts)
        assert api.stats["calls"] == len({text for text in texts if text is not None})
        assert run.summary["answered"].item() == sum(text is not None for text in texts)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
def test_small_frames(counted, rows, lazy):
    """No row and one row are frames like any other."""
    frame = reviews(rows)
    run = finished(a_plan(frame.lazy() if lazy else frame), counted.client())
    assert run.results.height == rows
    assert run.results.schema == {
        "text": pl.String,
        "reply": pl.String,
        "error": pl.String,
        "simulated": pl.Boolean,
    }
    assert counted.stats["calls"] == rows
    assert run.summary["rows"].item() == rows


def test_all_rows_null(counted):
    """A frame with nothing to send ends at once, at no cost."""
    run = finished(a_plan(pl.DataFrame({"text": [None, None]}, schema={"text": pl.String})), counted.client())
    assert run.state == "finished"
    assert counted.stats["calls"] == 0
    assert run.results["error"].to_list() == [None, None]


def test_duplicates_are_sent_once(counted):
    """A text that stands in many rows is paid for once and answers all of them."""
    frame = pl.DataFrame({"text": ["same"] * 40 + ["other"]})
    run = finished(a_plan(frame), counted.client())
    assert counted.stats["calls"] == counted.stats["billed_rows"] == 2
    assert run.results["reply"].null_count() == 0
    assert run.results["reply"].n_unique() == 2
    assert run.summary["answered"].item() == 41


def test_every_dtype_of_the_frame_is_untouched(api):
    """Columns that are no text come back with type and value unchanged, used in the prompt or not."""
    frame = pl.DataFrame(
        {
            "n": pl.Series([1, 2], dtype=pl.UInt8),
            "x": [1.5, float("nan")],
            "yes": [True, None],
            "day": [dt.date(2026, 1, 2), None],
            "at": pl.Series(
                [dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)] * 2, dtype=pl.Datetime("ms", "Europe/Berlin")
            ),
            "tags": [["a", "b"], []],
            "point": [{"x": 1, "y": None}, {"x": None, "y": "z"}],
            "kind": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
            "category": pl.Series(["u", "u"], dtype=pl.Categorical),
            "price": pl.Series([decimal.Decimal("1.50")] * 2, dtype=pl.Decimal(10, 2)),
            "raw": [b"\x00\xff", None],
            "span": [dt.timedelta(seconds=3), None],
            "none": [None, None],
        }
    )
    run = finished(a_plan(frame, "{n} {x} {tags} {point} {kind} {price}"), api.client())
    assert_frame_equal(run.results.drop("reply", "error", "simulated"), frame)
    assert run.results["reply"].to_list()[0].startswith("Re: 1 1.5 ")


def test_hard_texts_arrive_as_they_are(api):
    """Emoji, quotes, control characters, braces and 100 KB of text reach the API unchanged."""
    texts = [
        "🎈👩‍👩‍👧 é",
        'quote " back \\ slash',
        "tab\tnew\nline\x01\x7f",
        "{text} {{x}}",
        "\u2028" + "x" * 100_000,
    ]
    run = finished(a_plan(pl.DataFrame({"text": texts}), "{text}", max_tokens=60_000), api.client())
    assert run.results["reply"].to_list() == ["Re: " + text for text in texts]


def test_a_prompt_may_be_an_expression(api):
    """A Polars expression that gives a String per row is a prompt; its nulls are not sent."""
    frame = pl.DataFrame({"a": ["x", None], "b": [1, 2]})
    prompt = pl.format("{} is {}", pl.col("a"), pl.col("b") * 2)
    run = finished(a_plan(frame, prompt), api.client())
    assert run.results["reply"].to_list() == ["Re: x is 2", None]


def test_frame_columns_called_like_our_own(api):
    """Columns named key, content, row, found or body are the user's business."""
    frame = pl.DataFrame(
        {name: [name] for name in ("key", "content", "row", "found", "body", "broken", "rows")}
    )
    run = finished(a_plan(frame, "{key} {row}"), api.client())
    assert_frame_equal(run.results.drop("reply", "error", "simulated"), frame)
    assert run.results["reply"].item() == "Re: key row"


class Mood(enum.StrEnum):
    """Of a review."""

    GOOD = "good"
    BAD = "bad"


class Review(pydantic.BaseModel):
    """What is asked of a review."""

    mood: Mood
    stars: int
    words: list[str]


@pytest.mark.parametrize(
    ("returns", "schema"),
    [
        (pl.Enum(["yes", "no"]), {"reply": pl.Enum(["yes", "no"])}),
        (pl.Boolean(), {"reply": pl.Boolean()}),
        ({"stars": pl.Int8, "why": pl.String}, {"stars": pl.Int8, "why": pl.String, "reply": pl.String}),
        (pl.Schema({"tags": pl.List(pl.String)}), {"tags": pl.List(pl.String), "reply": pl.String}),
        (
            Review,
            {
                "mood": pl.Enum(["good", "bad"]),
                "stars": pl.Int64,
                "words": pl.List(pl.String),
                "reply": pl.String,
            },
        ),
    ],
)
@pytest.mark.parametrize("rows", [0, 3])
def test_typed_columns(counted, returns, schema, rows):
    """Structured outputs become columns of exactly the types asked for, with no row as with three."""
    run = finished(a_plan(reviews(rows), returns=returns, max_tokens=500), counted.client())
    assert run.results.schema == {"text": pl.String, **schema, "error": pl.String, "simulated": pl.Boolean}
    assert run.results["error"].null_count() == run.results.height == rows
    assert run.results.select(*schema).null_count().sum_horizontal().item() == 0


def test_a_reply_that_breaks_the_schema_is_that_rows_error(api):
    """Typed values are null, the raw reply stays, and the error says so; other rows are untouched."""
    with simulator(replies=lambda body: {"n": 1} if "Review 1:" in str(body) else "nonsense") as liar:
        run = finished(a_plan(reviews(3), returns={"n": pl.Int64}), liar.client())
    assert run.results["n"].to_list() == [None, 1, None]
    assert run.results["error"].to_list() == ["invalid_reply", None, "invalid_reply"]
    assert run.results["reply"].to_list()[0] == "nonsense"


def test_a_refused_request_is_that_rows_error():
    """A 400 on one row is data of that row: its error is the API's type, the others have replies."""
    with simulator(faults={400: 0.3}) as api:
        run = finished(a_plan(reviews(60)), api.client())
    failed = run.results.filter(pl.col("error") == "invalid_request_error")
    assert 5 < failed.height < 40
    assert failed["reply"].null_count() == failed.height
    assert run.results.filter(pl.col("error").is_null())["reply"].null_count() == 0
    assert run.summary.row(0, named=True).items() >= {"failed": failed.height, "missing": 0}.items()


@pytest.mark.parametrize(
    ("fault", "error"), [("refusal", "refusal"), ("cut", "max_tokens"), ("empty_content", "empty_reply")]
)
def test_a_paid_reply_of_no_use_says_why(fault, error):
    """A refusal, a cut-off or an empty reply is paid for, kept, named, and not sent again."""
    with simulator(faults={fault: 0.5}) as api:
        run = finished(a_plan(reviews(30)), api.client())
        assert api.stats["calls"] == 30
    assert set(run.results["error"]) == {None, error}
    assert run.summary["failed"].item() == (run.results["error"] == error).sum()
    assert run.waste["dollars"].sum() > 0


def test_trouble_on_the_way_is_no_failure():
    """Lost connections, overload and broken answers are tried again until every row has its reply."""
    with simulator(faults={"drop": 0.1, 529: 0.1, 500: 0.05, 429: 0.05, "html_body": 0.05}, speed=60) as api:
        run = finished(a_plan(reviews(60)), api.client())
    assert run.results["error"].null_count() == 60
    assert run.summary["requests"].item() > 60


def test_system_prompt_is_cached_and_warmed_once(counted):
    """With cache=True one call writes the prefix, all others read it."""
    plan = a_plan(reviews(20), system="Answer in one word. " * 600, cache=True)
    run = finished(plan, counted.client())
    written = run.attempts.filter(pl.col("cache_write_5m_input_tokens") > 0)
    read = run.attempts.filter(pl.col("cache_read_input_tokens") > 0)
    assert (written.height, read.height) == (1, 19)
    assert run.savings.filter(pl.col("strategy") == "cache")["dollars_saved"].item() > 0


def test_dollars_equal_the_servers(counted):
    """What a run says it paid is what the API's own account says, and so are calls and tokens."""
    run = finished(a_plan(reviews(40)), counted.client())
    stats, row = counted.stats, run.summary.row(0, named=True)
    assert row["dollars"] == pytest.approx(stats["dollars"], rel=1e-9)
    assert row["requests"] == stats["calls"]
    assert row["output_tokens"] == stats["output_tokens"]
    assert run.bill["dollars"].sum() == pytest.approx(stats["dollars"], rel=1e-9)


def test_counting_on_the_way_gives_what_the_attempts_give():
    """The tally, kept call by call, equals sums over all attempts, failures and repeats included."""
    frame = pl.concat([reviews(40), reviews(10), pl.DataFrame({"text": [None]}, schema={"text": pl.String})])
    with simulator(faults={400: 0.1, 529: 0.2, "refusal": 0.1}, speed=60) as api:
        run = finished(a_plan(frame), api.client())
    row, results = run.summary.row(0, named=True), run.results
    assert row["rows"] == 51
    assert row["answered"] == (results["error"].is_null() & results["text"].is_not_null()).sum()
    assert row["failed"] == results["error"].is_not_null().sum()
    assert row["requests"] == run.attempts.height
    assert row["dollars"] == pytest.approx(run.attempts["dollars"].sum())
    assert (
        row["input_tokens"] == run.attempts.select(pl.sum_horizontal(pl.col("^.*input_tokens$")).sum()).item()
    )


def _all_of(run):
    return {
        "results": run.results, "summary": run.summary, "throughput": run.throughput,
        "attempts": run.attempts,
        "batches": run.batches, "savings": run.savings, "bill": run.bill, "waste": run.waste,
        "replies": run.job.replies(), "card": repr(run), "html": run._repr_html_(),
    }  # fmt: skip


def test_every_frame_can_be_read_before_during_and_after():
    """Each frame of a run has its schema and all rows from the first moment to the last."""

    async def main():
        with simulator(speed=2, latency=1.0) as api:
            plan = a_plan(reviews(40).lazy(), returns={"n": pl.Int64}, concurrency=8)
            run = plan.start(api.client(), ledger=None, progress=False)
            seen = [(run.state, _all_of(run))]
            while run.state in {"starting", "running"}:
                await asyncio.sleep(0.2)
                seen.append((run.state, _all_of(run)))
            await run
        return seen

    seen = asyncio.run(main())
    assert {state for state, _ in seen} == {"starting", "running", "finished"}
    for name in ("results", "summary", "throughput", "attempts", "batches", "savings", "bill"):
        # Which API answers, and so the mark of a simulator's results, is known from the first call on.
        schemas = {str(frames[name].drop("simulated", strict=False).schema) for _, frames in seen}
        assert len(schemas) == 1, name
    schemas = {"summary": SUMMARY, "throughput": THROUGHPUT, "attempts": ATTEMPTS, "batches": BATCHES}
    assert {name: seen[0][1][name].schema for name in schemas} == schemas
    assert {frames["results"].height for _, frames in seen} == {40}
    answered = [frames["results"]["reply"].count() for _, frames in seen]
    assert answered[0] == 0
    assert answered == sorted(answered)
    assert answered[-1] == 40
    assert any(0 < count < 40 for count in answered)
    assert (seen[0][1]["results"]["error"] == "not_sent").all()


@pytest.mark.parametrize("name", ["throughput", "tokens", "latency", "spending", "savings", "batches"])
def test_pictures_before_and_after(counted, name):
    """Each picture can be drawn when nothing has come yet, and when all has."""

    async def main():
        run = a_plan(reviews(5)).start(counted.client(), ledger=None, progress=False)
        first = getattr(run.plot, name)()._repr_mimebundle_()
        await run
        return first, getattr(run.plot, name)()._repr_mimebundle_()

    for bundle in asyncio.run(main()):
        assert {"image/png", "text/plain"} <= set(bundle if isinstance(bundle, dict) else bundle[0])


def test_simulated_replies_are_marked(counted):
    """Every attempt says it is simulated, free text says so itself, and the run's card begins with it."""
    run = finished(a_plan(reviews(3)), counted.client())
    assert run.job.simulated
    assert run.attempts["simulated"].all()
    assert run.results["reply"].str.starts_with("[simulated]").all()
    assert repr(run).startswith("SIMULATED ")
    assert "SIMULATED " in run._repr_html_()
    real = a_plan(reviews(3)).requests["custom_id"]
    assert not set(real) & set(run.attempts["key"])


def test_no_secret_in_what_is_shown(counted, caplog):
    """Neither the key nor a row's text, nor the prompt, is in a card, an error or a log."""
    caplog.set_level(logging.INFO)
    secret = "sk-wrong-0123456789abcdef"
    frame = pl.DataFrame({"text": ["my diagnosis is private"]})
    plan = a_plan(frame, "Confidential instruction: {text}", system="Hidden system")
    with pytest.raises(cs.RunStopped) as stopped:
        finished(plan, counted.client(api_key=secret))
    good = finished(plan, counted.client())
    shown = [
        str(stopped.value),
        repr(stopped.value),
        repr(plan),
        plan._repr_html_(),
        caplog.text,
        str(good.job.ledger),
    ]
    for run in (stopped.value.run, good):
        shown += [repr(run), run._repr_html_(), str(run.summary)]
    for text in shown:
        for hidden in (secret, "diagnosis", "Confidential", "Hidden system"):
            assert hidden not in text


def test_what_the_api_says_is_escaped():
    """Text of the API in a card is text, never markup."""
    with simulator(faults={403: 1.0}) as api, pytest.raises(cs.RunStopped) as stopped:
        finished(a_plan(reviews(1), model=MODEL), api.client())
    run = stopped.value.run
    run.message = "<script>alert(1)</script>"
    assert "<script>" not in run._repr_html_()
    assert "&lt;script&gt;" in run._repr_html_()
