"""Decisions about batches: pure functions, by tables of cases and by properties."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime

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


# the contents of one


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(100, 5_000), st.floats(0, 0.01)), max_size=30),
    st.integers(-2, 40),
    st.integers(6_000, 60_000),
    st.floats(0, 0.1) | st.just(float("inf")),
)
def test_a_batch_is_as_large_as_allowed_and_no_larger(rows, requests, size_bytes, dollars):
    """Count, bytes and dollars stay within all limits, and one more row would exceed one of them."""
    frame = pl.DataFrame(rows, schema={"bytes": pl.Int64, "worst_dollars": pl.Float64}, orient="row")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_rules, "FULL_BYTES", size_bytes)
        count = batch_rules.fitting(frame, requests=requests, dollars=dollars)

    def fits(number, slack):
        part = frame.head(number)
        size = int((part["bytes"] + batch_rules._ROW_BYTES).sum())
        return (
            number <= max(requests, 0)
            and size <= size_bytes
            and part["worst_dollars"].sum() <= dollars + slack
        )

    assert 0 <= count <= frame.height
    assert fits(count, 1e-12)
    assert count == frame.height or not fits(count + 1, -1e-12)


@settings(max_examples=30)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=30, unique=True),
    st.integers(50, 3_000),
)
def test_the_body_is_json_of_the_size_foretold(texts, part_bytes):
    """For any texts and parts it is valid JSON with each row once, in order, and as long as predicted."""
    assume(texts)
    plan = cs.plan(pl.DataFrame({"text": texts}), "<{text}>", model=MODEL, max_tokens=20, mode="batch")
    work = plan.compiled.work("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_rules, "_PART_BYTES", part_bytes)
        whole = b"".join(batch_rules.body(work.requests, work, NONCE))
    assert len(whole) == batch_rules.body_bytes(work.requests)
    requests = json.loads(whole)["requests"]
    assert [each["custom_id"] for each in requests] == [f"{key}-{NONCE}" for key in work.requests["key"]]
    assert [each["params"] for each in requests] == [json.loads(body) for body in plan.requests["params"]]
    assert max(len(each["custom_id"]) for each in requests) <= 64  # accepted by the API


def test_the_first_message_leaves_thinking_its_budget():
    """With a thinking budget the shortest reply is one token longer than it, as the API demands."""
    thinking = {"type": "enabled", "budget_tokens": 2_048}
    given = {"model": "m", "max_tokens": 4_096, "thinking": thinking}
    body, longest = batch_rules.dry_run(json.dumps(given).encode())
    assert (json.loads(body), longest) == ({**given, "max_tokens": 2_049}, 2_049)
    assert batch_rules.dry_run(b'{"max_tokens": 9}') == (b'{"max_tokens": 1}', 1)


# the meaning of an answer


def _error(kind, words="no"):
    return json.dumps({"type": "error", "error": {"type": kind, "message": words}}).encode()


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        (Answer(200, {}, json.dumps(SHOWN).encode()), True),
        (Answer(200, {}, b"upstream said: ok"), None),
        (Answer(None, {}, b"", "connection_error"), None),
        (Answer(None, {}, b"", "connection_error", sent=False), False),
        (Answer(500, {}, _error("api_error")), None),
        (Answer(529, {}, _error("overloaded_error")), None),
        (Answer(429, {}, _error("rate_limit_error")), False),
        (Answer(413, {}, b"<html>too large</html>"), False),
        (Answer(400, {}, _error("invalid_request_error")), False),
    ],
)
def test_what_became_of_a_batch(answer, made):
    """Only a plain yes is a batch and only a plain no is none; anything else has to be looked up."""
    assert batch_rules.made(answer) is made


def test_a_batch_as_the_api_shows_it():
    """Unreadable fields stay as they were, and an unknown state counts as in progress."""
    counts = {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 1, "expired": 1}
    ended = {"processing_status": "ended", "request_counts": counts, "ended_at": "1970-01-01T01:30:00+01:00"}
    over = batch_rules.updated(BATCH, SHOWN | ended)
    assert (over.state, over.ended_at, over.succeeded, over.expired) == ("ended", 1_800.0, 2, 1)
    odd = {"processing_status": "new", "request_counts": {"succeeded": "many"}, "created_at": "yesterday"}
    assert batch_rules.updated(over, SHOWN | odd) == over._replace(state="in_progress")


HOUR, NOW = 3_600.0, 1_790_000_000.0


@pytest.mark.parametrize(
    ("created", "requests", "ahead", "may_be"),
    [
        (0, 5, 0.0, True),
        (-60, 5, 0.0, True),
        (HOUR, 5, 0.0, False),
        (0, 6, 0.0, False),
        (5 * HOUR, 5, 5 * HOUR, True),  # this clock is late
        (-5 * HOUR, 5, -5 * HOUR, True),
        (0, 5, -5 * HOUR, True),  # and that was known when it was sent
        (8 * HOUR, 5, 5 * HOUR, False),
    ],
)
def test_which_batch_may_be_the_lost_one(created, requests, ahead, may_be):
    """It has as many requests and was created at the time by the API's clock, however wrong this one is."""
    moment = datetime.fromtimestamp(NOW + created, UTC)
    shown = SHOWN | {"created_at": moment.isoformat(), "request_counts": {"processing": requests}}
    told = Answer(200, {"date": format_datetime(datetime.fromtimestamp(NOW + ahead, UTC))}, b"")
    batch = BATCH._replace(intended_at=NOW)
    window = batch_rules.window(batch, NOW + batch_rules.LOST_SECONDS, told, NOW)
    assert batch_rules.may_be(batch, shown, window) is may_be


# when to poll


def test_looks_become_rarer():
    """From a batch's creation to its expiry there are fewer than 400 polls, the first ones soon."""
    at, waits = 0.0, []
    while at < 86_400:
        waits.append(batch_rules.poll_seconds(at))
        at += waits[-1]
    assert len(waits) < 400
    assert waits[0] <= 10
    assert waits == sorted(waits)


def _made(created_at, ended_at=None, state="in_progress"):
    return BATCH._replace(state=state, created_at=created_at, ended_at=ended_at)


@pytest.mark.parametrize(
    ("batches", "now", "expected"),
    [
        ([], 100.0, None),
        ([_made(10_000.0, 10_060.0, "collected"), BATCH._replace(state="absent")], 100.0, None),
        ([_made(10_000.0), _made(10_050.0)], 10_100.0, (2, 0, 10, 3_550.0, 86_350.0)),
        ([_made(10_000.0, 10_600.0, "collected"), _made(10_600.0)], 10_700.0, (1, 1, 5, 3_500.0, 86_300.0)),
        ([_made(10_000.0)], 15_000.0, (1, 0, 5, None, 81_400.0)),
        ([BATCH], 1_000.0, (1, 0, 5, 3_600.0, 86_400.0)),
    ],
)
def test_when_the_last_batch_ends(batches, now, expected):
    """Usually within an hour of the last one, later without a usual time, and within 24 hours at most."""
    assert batch_rules.expected_end(batches, now) == expected
