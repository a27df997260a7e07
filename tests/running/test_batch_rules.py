"""Decisions about batches: pure functions, by tables of cases."""

import json
import math
from datetime import UTC, datetime
from email.utils import format_datetime

import polars as pl
import pytest

from claudescale.api.answers import Answer
from claudescale.ledger.records import Batch
from claudescale.running import batch_rules

BATCH = Batch(nonce="0123456789ab", api="api", model="any", requests=5, intended_at=1_000.0)
SHOWN = {"id": "msgbatch_1", "processing_status": "in_progress"}


# the contents of one


@pytest.mark.parametrize(
    ("requests", "size_bytes", "dollars", "count"),
    [
        (99, 1e9, math.inf, 10),
        (4, 1e9, math.inf, 4),
        (-2, 1e9, math.inf, 0),
        (99, 3 * (1_000 + batch_rules._ROW_BYTES), math.inf, 3),
        (99, 500, math.inf, 1),  # larger than a batch: it goes alone, for the API to refuse
        (99, 1e9, 0.059, 5),
    ],
)
def test_a_batch_is_as_large_as_allowed_and_no_larger(monkeypatch, requests, size_bytes, dollars, count):
    """Of ten rows those go first that stay within the limits of count, bytes and dollars."""
    monkeypatch.setattr(batch_rules, "FULL_BYTES", size_bytes)
    rows = pl.DataFrame({"bytes": [1_000] * 10, "worst_dollars": [0.01] * 10})
    assert batch_rules.fitting(rows, requests=requests, dollars=dollars) == count


def test_the_first_message_leaves_thinking_its_budget():
    """With a thinking budget the shortest reply is one token longer than it, as the API demands."""
    thinking = {"type": "enabled", "budget_tokens": 2_048}
    given = {"model": "m", "max_tokens": 4_096, "thinking": thinking}
    body, longest = batch_rules.dry_run(json.dumps(given).encode())
    assert (json.loads(body), longest) == ({**given, "max_tokens": 2_049}, 2_049)
    assert batch_rules.dry_run(b'{"max_tokens": 9}') == (b'{"max_tokens": 1}', 1)


# the meaning of an answer


def _error(kind):
    return json.dumps({"type": "error", "error": {"type": kind, "message": "no"}}).encode()


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        (Answer(200, {}, json.dumps(SHOWN).encode()), True),
        (Answer(200, {}, b"upstream said: ok"), None),
        (Answer(None, {}, b"", "connection_error"), None),
        (Answer(None, {}, b"", "connection_error", sent=False), False),
        (Answer(500, {}, _error("api_error")), None),
        (Answer(429, {}, _error("rate_limit_error")), False),
        (Answer(400, {}, _error("invalid_request_error")), False),
    ],
)
def test_what_became_of_a_batch(answer, made):
    """Only a plain yes is a batch and only a plain no is none; anything else has to be looked up."""
    assert batch_rules.made(answer) is made


HOUR, NOW = 3_600.0, 1_790_000_000.0


@pytest.mark.parametrize(
    ("created", "requests", "ahead", "may_be"),
    [
        (0, 5, None, True),
        (HOUR, 5, None, False),
        (0, 6, None, False),
        (5 * HOUR, 5, 5 * HOUR, True),  # this clock is late
        (-5 * HOUR, 5, -5 * HOUR, True),  # or early
        (0, 5, -5 * HOUR, True),  # or was set since
        (0, 5, 5 * HOUR, True),
    ],
)
def test_which_batch_may_be_the_lost_one(created, requests, ahead, may_be):
    """It has as many requests and was created at the time by the API's clock, however wrong this one is."""
    moment = datetime.fromtimestamp(NOW + created, UTC)
    shown = SHOWN | {"created_at": moment.isoformat(), "request_counts": {"processing": requests}}
    date = {"date": format_datetime(datetime.fromtimestamp(NOW + ahead, UTC))} if ahead else {}
    batch = BATCH._replace(intended_at=NOW)
    window = batch_rules.window(batch, NOW + batch_rules.LOST_SECONDS, Answer(200, date, b""), NOW)
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


def _made(created_at):
    return BATCH._replace(state="in_progress", created_at=created_at)


ENDED, ABSENT = _made(10_000.0)._replace(state="collected", ended_at=10_600.0), BATCH._replace(state="absent")


@pytest.mark.parametrize(
    ("batches", "now", "expected"),
    [
        ([ENDED, ABSENT], 100.0, None),
        ([_made(10_000.0), _made(10_050.0)], 10_100.0, (2, 0, 10, 3_550.0, 86_350.0)),
        ([ENDED, ABSENT, _made(10_600.0)], 10_700.0, (1, 1, 5, 3_500.0, 86_300.0)),
        ([_made(10_000.0)], 15_000.0, (1, 0, 5, None, 81_400.0)),
    ],
)
def test_when_the_last_batch_ends(batches, now, expected):
    """Usually within an hour of the last one, later without a usual time, and within 24 hours at most."""
    assert batch_rules.expected_end(batches, now) == expected
