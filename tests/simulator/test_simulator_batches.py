"""The simulator's batches over their whole life: creation, faults, time, caching, queue."""

import json

import pytest
from bodies import batch_of, cached, request, rows_of
from desks import NOW, batches_of, desk, kinds, made, message_of, worked

from claudescale.simulator.batches import requests_of
from claudescale.simulator.wire import Problem

ROW, DAY = b'{"custom_id":"a","params":{}}', 86_400


NO_BATCH = [
    ([b"1"], 400, "requests.0: Input should be a valid dictionary"),
    ([b'{"custom_id":"a","params":{},"model":"m"}'], 400, "requests.0.model: Extra inputs"),
    ([ROW] * 40, 413, "maximum allowed number of bytes"),
    ([b"1"] * 100_001, 413, "at most 100000 requests"),
]


@pytest.mark.parametrize(("rows", "status", "says"), NO_BATCH)
def test_a_body_that_makes_no_batch_says_why(monkeypatch, rows, status, says):
    """An invalid body is refused with the location of the fault."""
    if says.startswith("maximum"):
        monkeypatch.setattr("claudescale.simulator.batches.MAX_BYTES", 1_000)
    with pytest.raises(Problem, match=says) as error:
        requests_of(b'{"requests":[%s]}' % b",".join(rows))
    assert error.value.status == status


def test_the_queue_and_the_calls_have_limits_of_their_own():
    """A batch over the queue's limit is a 429 until enough rows are done; so is a call beyond the rate."""
    batches = batches_of(desk("start", batch_queue_requests=100, batch_requests_per_minute=2), seconds=1000)
    made(batches, batch_of(80))
    with pytest.raises(Problem, match="processing queue") as error:
        made(batches, batch_of(30), NOW + 1)
    assert error.value.status == 429
    made(batches, batch_of(30), NOW + 500)
    batches.called(NOW)
    batches.called(NOW)
    with pytest.raises(Problem, match="2 batch requests per minute") as error:
        batches.called(NOW)
    assert (error.value.kind, error.value.headers) == ("batch_requests_per_minute", {"retry-after": "30"})
    batches.called(NOW + 30)


def test_a_batch_shows_no_counts_until_it_has_ended_and_bills_half():
    """All rows count as processing until the end; results are unordered; replies are those of live calls."""
    at, live = desk(), desk()
    assert 60 < made(batches_of(seconds=None), batch_of(50)).seconds < 600
    batches = batches_of(at, seconds=lambda rows: 12 * rows)
    batch = made(batches, batch_of(50))
    assert 10 < len(list(batches.work(NOW + 300))) < 40
    counts = batch.shown(NOW + 599)["request_counts"]
    assert (counts["processing"], counts["succeeded"]) == (50, 0)
    with pytest.raises(Problem, match="no results yet"):
        batches.results(NOW + 599, batch)
    list(batches.work(NOW + 600))
    assert batch.shown(NOW + 600)["request_counts"]["succeeded"] == 50
    lines = [json.loads(line) for line in batches.results(NOW + 601, batch)[0]]
    numbers = [int(line["custom_id"].removeprefix("row-")) for line in lines]
    assert numbers != sorted(numbers) == [*range(50)]
    for number, line in zip(numbers, lines, strict=True):
        alone = message_of(request(f"row {number}"), live)
        assert line["result"]["message"]["content"] == alone["content"]
    figures = at.account.figures()
    assert figures["dollars"] == pytest.approx(live.account.figures()["dollars"] / 2)
    assert figures["billed_rows_by_mode"] == {"live": 0, "batch": 50}


def test_work_can_be_left_at_any_row_and_canceled():
    """Left after single rows and then canceled, it is canceling, then ended, and each row has one result."""
    at = desk()
    batches = batches_of(at, seconds=1000)
    batch = made(batches, batch_of(100))
    for moment in range(0, 500, 5):
        next(batches.work(NOW + moment), None)
    assert 0 < at.account.figures()["billed_rows"] == 100 - len(batch.agenda)
    assert batches.cancel(NOW + 500, batch)["processing_status"] == "canceling"
    list(batches.work(NOW + 520))
    counts = batch.shown(NOW + 520)["request_counts"]
    assert 30 < counts["succeeded"] == at.account.figures()["billed_rows"] < 75
    assert counts["succeeded"] + counts["canceled"] == len(batch.lines) == 100
    with pytest.raises(Problem, match="already ended"):
        batches.cancel(NOW + 521, batch)


def test_what_is_not_done_in_a_day_expires_and_results_go_after_29():
    """Rows beyond 24 hours are expired and unbilled; the results are archived in the end."""
    at = desk()
    batches = batches_of(at, seconds=2 * DAY)
    batch = made(batches, batch_of(100))
    list(batches.work(NOW + DAY))
    counts = batch.shown(NOW + DAY)["request_counts"]
    assert 30 < counts["expired"] < 70
    assert at.account.figures()["billed_rows"] == counts["succeeded"] == 100 - counts["expired"]
    shown = batch.shown(NOW + 29 * DAY)
    assert (shown["archived_at"] is None, shown["results_url"]) == (False, None)
    with pytest.raises(Problem, match="archived"):
        batches.results(NOW + 29 * DAY, batch)


OUTCOMES = {"batch_errored": "api_error", "batch_overloaded": "overloaded_error", "batch_expired": "expired"}
OUTCOMES["batch_invalid"] = "invalid_request_error"


@pytest.mark.parametrize(("kind", "outcome"), OUTCOMES.items())
def test_rows_of_a_batch_can_fail_and_the_next_batch_draws_anew(kind, outcome):
    """About the chosen share of rows fails unbilled; most succeed when sent again, whatever their id."""
    at, body = desk(faults={kind: 0.3}), batch_of(100)
    batches = batches_of(at)
    first = kinds(worked(batches, body))
    struck = [row for row in body["requests"] if first[row["custom_id"]] == outcome]
    assert 15 < len(struck) < 45
    assert set(first.values()) == {"succeeded", outcome}
    assert at.account.figures()["billed_rows"] == 100 - len(struck)
    again = worked(batches, rows_of(*(row["params"] for row in struck)), NOW + 600)
    assert 0 < [*kinds(again).values()].count(outcome) < len(struck) * 0.6


@pytest.mark.parametrize(("ttl", "least", "most"), [("5m", 0.1, 0.8), ("1h", 0.45, 1.0)])
def test_the_prompt_cache_is_best_effort_in_batches(ttl, least, most):
    """30 to 98 of 100 rows find the prefix, more with an hour than with 5 minutes; batches differ."""
    rows, shares = rows_of(*(cached(f"row {n}", ttl=ttl) for n in range(60))), []
    for seed in range(8):
        usages = [result["message"]["usage"] for result in worked(batches_of(desk(seed=seed)), rows).values()]
        shares.append(sum(usage["cache_read_input_tokens"] > 512 for usage in usages) / 60)
    assert least < min(shares) < max(shares) - 0.35 < most - 0.35
