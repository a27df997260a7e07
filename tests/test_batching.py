"""Decisions about batches: pure functions, by tables of cases and by properties."""

import json

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from running import MODEL

import claudescale as cs
from claudescale.api.answers import Answer
from claudescale.ledger.records import Batch
from claudescale.running import batch_rules

NONCE = "0123456789ab"
ROWS = st.lists(st.tuples(st.integers(100, 5_000), st.floats(0, 0.01)), max_size=30)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=30, unique=True)
BATCH = Batch(nonce=NONCE, api="api", model=MODEL, requests=5, intended_at=1_000.0)
SHOWN = {
    "id": "msgbatch_1",
    "processing_status": "in_progress",
    "request_counts": {"processing": 5, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
    "created_at": "1970-01-01T00:20:00+00:00",
    "expires_at": "1970-01-02T00:20:00Z",
    "ended_at": None,
    "archived_at": None,
    "results_url": None,
}


def _frame(rows):
    return pl.DataFrame(rows, schema={"bytes": pl.Int64, "worst_dollars": pl.Float64}, orient="row")


# what goes into one


@given(ROWS, st.integers(-2, 40), st.integers(6_000, 60_000), st.floats(0, 0.1) | st.none())
def test_a_batch_is_as_large_as_allowed_and_no_larger(rows, requests, size_bytes, dollars):
    """Count, bytes and dollars of what fits are within all limits, and one row more would pass one."""
    frame = _frame(rows)
    count = batch_rules.fitting(frame, requests=requests, size_bytes=size_bytes, dollars=dollars)

    def fits(number):
        part = frame.head(number)
        enough = dollars is None or part["worst_dollars"].sum() <= dollars + 1e-12
        size = int((part["bytes"] + batch_rules._ROW_BYTES).sum())
        return number <= max(requests, 0) and size <= size_bytes and enough

    assert 0 <= count <= frame.height
    assert fits(count)
    exact = dollars is None or abs(frame.head(count + 1)["worst_dollars"].sum() - dollars) > 1e-12
    assert count == frame.height or not exact or not fits(count + 1)


@settings(max_examples=40)
@given(TEXTS, st.integers(50, 3_000))
def test_the_body_is_json_of_the_size_foretold(texts, part_bytes):
    """Whatever the texts and the parts it comes in: valid JSON, each row once, by order, as long as told."""
    assume(texts)
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    plan = cs.plan(frame, "<{text}>", model=MODEL, max_tokens=20, mode="batch")
    work = plan.compiled.work("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_rules, "_PART_BYTES", part_bytes)
        whole = b"".join(batch_rules.body(work.requests, work.texts, NONCE))
    assert len(whole) == batch_rules.body_bytes(work.requests)
    requests = json.loads(whole)["requests"]
    assert [each["custom_id"] for each in requests] == [f"{key}-{NONCE}" for key in work.requests["key"]]
    contents = [each["params"]["messages"][0]["content"] for each in requests]
    assert contents == [f"<{text}>" for text in texts]
    bodies = [json.loads(body) for body in plan.requests["params"]]
    assert [each["params"] for each in requests] == bodies


def test_a_custom_id_is_one_that_the_api_takes():
    """A key of 32 characters, a hyphen and the nonce are within the API's 64 characters."""
    assert 32 + 1 + 2 * batch_rules.NONCE_BYTES <= 64


# what an answer means


def _error(kind, message="no"):
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(200, {}, json.dumps(SHOWN).encode()), "created"),
        (Answer(201, {}, json.dumps(SHOWN).encode()), "created"),
        (Answer(200, {}, b"upstream said: ok"), "unknown"),
        (Answer(200, {}, b"{}"), "unknown"),
        (Answer(200, {}, json.dumps(SHOWN | {"id": None}).encode()), "unknown"),
        (Answer(200, {}, b""), "unknown"),
        (Answer(None, {}, b"", "connection_error"), "unknown"),
        (Answer(None, {}, b"", "timeout_error"), "unknown"),
        (Answer(None, {}, b"", "connection_error", sent=False), "absent"),
        (Answer(None, {}, b"", "timeout_error", sent=False), "absent"),
        (Answer(None, {}, b"", "authentication_error", sent=False), "stop"),
        (Answer(500, {}, _error("api_error")), "unknown"),
        (Answer(502, {}, b"<html>bad gateway</html>"), "unknown"),
        (Answer(503, {}, b""), "unknown"),
        (Answer(504, {}, _error("timeout_error")), "unknown"),
        (Answer(529, {}, _error("overloaded_error")), "unknown"),
        (Answer(408, {}, _error("timeout_error")), "unknown"),
        (Answer(429, {}, _error("rate_limit_error")), "refused"),
        (Answer(413, {}, _error("request_too_large")), "too_large"),
        (Answer(413, {}, b"<html>too large</html>"), "too_large"),
        (Answer(400, {}, _error("invalid_request_error")), "stop"),
        (Answer(401, {}, _error("authentication_error")), "stop"),
        (Answer(403, {}, _error("permission_error")), "stop"),
        (Answer(404, {}, _error("not_found_error")), "stop"),
    ],
)
def test_what_became_of_a_batch(answer, outcome):
    """Only a plain yes is a batch and only a plain no is none; all else has to be looked for."""
    assert batch_rules.made(answer).outcome == outcome


@given(st.none() | st.integers(100, 599), st.binary(max_size=40), st.booleans())
def test_no_answer_at_all_breaks_the_decision(status, content, sent):
    """Whatever comes back, there is a decision; without a status, what was sent may be there."""
    made = batch_rules.made(Answer(status, {}, content, None if status else "connection_error", sent=sent))
    assert made.outcome in {"created", "absent", "refused", "too_large", "stop", "unknown"}
    if status is None:
        assert made.outcome == ("unknown" if sent else "absent")
    elif status >= 500:
        assert made.outcome == "unknown"


@pytest.mark.parametrize(
    ("status", "kind", "gone"),
    [
        (404, "not_found_error", True),
        (404, "something_else", False),
        (403, "permission_error", False),
        (410, "not_found_error", False),
        (200, "not_found_error", False),
    ],
)
def test_only_the_apis_own_words_say_that_a_batch_is_gone(status, kind, gone):
    """A 404 of a proxy is no reason to give up what was paid for."""
    assert batch_rules.is_gone(Answer(status, {}, _error(kind))) is gone
    assert not batch_rules.is_gone(Answer(404, {}, b"<html>nothing here</html>"))


@pytest.mark.parametrize(
    ("url", "archived_at", "there"),
    [
        ("https://x/results", None, True),
        (None, None, False),
        ("", None, False),
        ("https://x/results", "2026-01-01T00:00:00Z", False),
    ],
)
def test_whether_there_are_results(url, archived_at, there):
    """An archived batch, and one without an address of its results, has none."""
    assert batch_rules.has_results({"results_url": url, "archived_at": archived_at}) is there


def test_a_batch_as_the_api_shows_it():
    """Id, state, times and counts are taken over; the rest of the batch stays."""
    counts = {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 1, "expired": 1}
    ended = {"processing_status": "ended", "request_counts": counts, "ended_at": "1970-01-01T00:30:00Z"}
    under_way, over = batch_rules.seen(BATCH, SHOWN), batch_rules.seen(BATCH, SHOWN | ended)
    assert under_way == BATCH._replace(
        state="in_progress", batch_id="msgbatch_1", created_at=1_200.0, expires_at=87_600.0
    )
    assert over == under_way._replace(
        state="ended", ended_at=1_800.0, succeeded=2, errored=1, canceled=1, expired=1
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"processing_status": "a new one"},
        {"request_counts": None},
        {"request_counts": {"succeeded": "many"}},
        {"created_at": "yesterday"},
        {"expires_at": None},
    ],
)
def test_a_batch_shown_in_an_odd_way(changes):
    """An unknown state is one of a batch under way; what cannot be read changes nothing."""
    shown = batch_rules.seen(BATCH._replace(created_at=7.0, succeeded=3), SHOWN | changes)
    assert shown.state == "in_progress"
    assert shown.batch_id == "msgbatch_1"
    assert isinstance(shown.succeeded, int)
    assert shown.created_at == (7.0 if "created_at" in changes else 1_200.0)


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10.500000+00:00", 10.5),
        ("1970-01-01T01:00:10+01:00", 10.0),
        (None, None),
        ("soon", None),
        (3, None),
    ],
)
def test_moments(moment, seconds):
    """RFC 3339 in any zone is unix seconds; anything else is unknown."""
    assert batch_rules.seconds_of(moment) == seconds


# when to look again


def test_few_looks_in_a_day():
    """From a batch's creation to its expiry there are below 400 looks, the first ones soon."""
    at, looks = 0.0, 0
    while at < 86_400:
        at += batch_rules.poll_seconds(at)
        looks += 1
    assert looks < 400
    assert batch_rules.poll_seconds(0) <= 10


@given(st.floats(-1e4, 1e7), st.floats(0, 1e6))
def test_looks_become_rarer(age, later):
    """The wait is within its bounds and never shorter for an older batch."""
    wait = batch_rules.poll_seconds(age)
    assert batch_rules._SHORTEST_SECONDS <= wait <= batch_rules._LONGEST_SECONDS
    assert batch_rules.poll_seconds(age + later) >= wait


def _made(created_at, ended_at=None, state="in_progress"):
    return BATCH._replace(state=state, created_at=created_at, ended_at=ended_at)


OVER = (_made(10_000.0, 10_060.0, "collected"), BATCH._replace(state="absent"), BATCH._replace(state="gone"))


@pytest.mark.parametrize("batches", [[], *([each] for each in OVER), OVER])
def test_nothing_is_expected_where_nothing_is_out(batches):
    """Without an open batch there is no expectation."""
    assert batch_rules.expected_end(batches, 100.0) is None


@pytest.mark.parametrize(
    ("batches", "now", "expected"),
    [
        ([_made(10_000.0)], 10_100.0, (1, 0, 1 * BATCH.requests, 3_500.0, 86_300.0)),
        ([_made(10_000.0), _made(10_050.0)], 10_100.0, (2, 0, 2 * BATCH.requests, 3_550.0, 86_350.0)),
        (
            [_made(10_000.0, 10_600.0, "collected"), _made(10_600.0)],
            10_700.0,
            (1, 1, 1 * BATCH.requests, 500.0, 86_300.0),
        ),
        ([_made(10_000.0)], 15_000.0, (1, 0, 1 * BATCH.requests, None, 81_400.0)),
        ([_made(10_000.0)], 100_000.0, (1, 0, 1 * BATCH.requests, None, 0.0)),
        ([BATCH], 1_000.0, (1, 0, 1 * BATCH.requests, 3_600.0, 86_400.0)),
    ],
)
def test_when_the_last_batch_ends(batches, now, expected):
    """As long as the others took, else an hour; nothing usual is told once that is over; at most 24 hours."""
    assert batch_rules.expected_end(batches, now) == expected
