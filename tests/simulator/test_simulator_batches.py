"""The simulator's batches over their whole life: creation, faults, time, caching, queue."""

import json

import pytest
from desks import (
    EPHEMERAL,
    LONG,
    NOW,
    VERSION,
    batch_of,
    batches_of,
    desk,
    kinds,
    message_of,
    request,
    worked,
)

from claudescale.simulator import Batches, Fault
from claudescale.simulator.batches import requests_of
from claudescale.simulator.wire import Problem

ROW = b'{"custom_id":"a","params":{}}'

# ----------------------------------------------------------------------------------------- creation


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"{}", 400, "at least 1 item"),
        (b"", 400, "not valid JSON"),
        (b"[1]", 400, "valid dictionary"),
        (b'{"requests":[%s,]}' % ROW, 400, "not valid JSON"),
        (b'{"requests":[%s]' % ROW, 400, "not valid JSON"),
        (b'{"requests":[\xff]}', 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b'{"requests":{"a":1}}', 400, "at least 1 item"),
        (b'{"requests":[1]}', 400, "requests.0: Input should be a valid dictionary"),
        (b'{"requests":[{"custom_id":"a"}]}', 400, "requests.0.params: Field required"),
        (b'{"requests":[{"custom_id":"a b","params":{}}]}', 400, "requests.0.custom_id: String should match"),
        (b'{"requests":[{"custom_id":"a\\n","params":{}}]}', 400, "requests.0.custom_id"),
        (b'{"requests":[{"custom_id":"a","params":{},"model":"m"}]}', 400, "requests.0.model: Extra inputs"),
        (b'{"requests":[%s],"betas":[]}' % ROW, 400, "betas: Extra inputs"),
        (b'{"requests":[%s,%s]}' % (ROW, ROW), 400, "requests.1.custom_id: duplicate"),
        (b'{"requests":[' + b",".join([ROW] * 40) + b"]}", 413, "maximum allowed number of bytes"),
        (b'{"requests":[' + b",".join([b"1"] * 100_001) + b"]}", 413, "at most 100000 requests"),
    ],
)
def test_a_body_that_makes_no_batch_says_why(monkeypatch, raw, status, says):
    """What is wrong with a body is told with its place."""
    if says.startswith("maximum"):
        monkeypatch.setattr("claudescale.simulator.batches.MAX_BYTES", 1_000)
    with pytest.raises(Problem, match=says) as error:
        requests_of(raw)
    assert error.value.status == status


def test_the_rows_of_a_body_come_out_as_they_went_in():
    """Any JSON in the params, in any script, escaped or not; other fields of the body may stand before."""
    rows = [{"custom_id": f"r{n}", "params": {"ß漢🙂": [None, True, 1, {"a": '"\\\n'}]}} for n in range(3)]
    for ascii_only in (True, False):
        raw = json.dumps({"workspace_id": "w", "requests": rows}, ensure_ascii=ascii_only, indent=2).encode()
        assert [json.loads(row) for row in requests_of(raw)] == rows


def test_the_queue_holds_only_so_many_and_empties_as_rows_are_done():
    """A batch over the queue's limit is a 429; half way through, half of it has left."""
    batches = batches_of(desk("start", batch_queue_requests=100), seconds=1000)
    batches.create(NOW, batch_of(80), VERSION)
    with pytest.raises(Problem, match="processing queue") as error:
        batches.create(NOW + 1, batch_of(30), VERSION)
    assert error.value.status == 429
    batches.create(NOW + 500, batch_of(30), VERSION)


@pytest.mark.parametrize("seconds", [None, lambda rows: 3 * rows])
def test_a_batch_takes_plausible_seconds_or_ones_own(seconds):
    """Drawn by seed and size, or given by a function of its size."""
    batches = Batches(desk(), NOW, seconds=seconds)
    batch = batches.find(batches.create(NOW, batch_of(50), VERSION)["id"])
    assert batch.seconds == 150 if seconds else 60 < batch.seconds < 600


# ----------------------------------------------------------------------------------------- its life


def test_a_batch_shows_no_counts_until_it_has_ended_and_bills_half():
    """All rows count as processing until the end; results are unordered; replies are those of live calls."""
    at = desk()
    batches = batches_of(at)
    made = batches.create(NOW, batch_of(50), VERSION)
    batch = batches.find(made["id"])
    assert 10 < len(list(batches.work(batch, NOW + 300))) < 40
    shown = batch.shown(NOW + 599)
    assert shown["request_counts"] == dict.fromkeys(shown["request_counts"], 0) | {"processing": 50}
    assert (shown["results_url"], shown["ended_at"]) == (None, None)
    with pytest.raises(Problem, match="no results yet"):
        batches.results(NOW + 599, batch)
    list(batches.work(batch, NOW + 600))
    shown = batch.shown(NOW + 600, "http://host")
    assert (shown["processing_status"], shown["request_counts"]["succeeded"]) == ("ended", 50)
    assert shown["results_url"] == f"http://host/v1/messages/batches/{made['id']}/results"
    lines = [json.loads(line) for line in batches.results(NOW + 601, batch)]
    names = [line["custom_id"] for line in lines]
    assert {*names} == {f"row-{n}" for n in range(50)}
    assert names != sorted(names, key=lambda name: int(name.removeprefix("row-")))
    live = desk()
    for line in lines:
        text = line["custom_id"].replace("-", " ")
        assert line["result"]["message"]["content"] == message_of(request(text), live)["content"]
    assert at.account.figures()["dollars"] == pytest.approx(live.account.figures()["dollars"] / 2)
    assert at.account.figures()["billed_rows_by_mode"] == {"live": 0, "batch": 50}


def test_wrong_rows_of_a_batch_fail_alone_and_only_at_the_end():
    """Params are checked asynchronously: create succeeds, the bad rows are errored and not billed."""
    at, body = desk(), batch_of(5)
    body["requests"][1]["params"]["temperature"] = 1.0
    body["requests"][3]["params"]["model"] = "claude-none"
    found = kinds(worked(batches_of(at), body))
    assert found == {
        **dict.fromkeys(("row-0", "row-2", "row-4"), "succeeded"),
        "row-1": "invalid_request_error",
        "row-3": "not_found_error",
    }
    assert at.account.figures()["billed_rows"] == 3


def test_work_can_be_left_at_any_row_and_canceled():
    """Left after single rows, then canceled: it is canceling, then ended, and each row has one result."""
    at = desk()
    batches = batches_of(at, seconds=1000)
    batch = batches.find(batches.create(NOW, batch_of(100), VERSION)["id"])
    for moment in range(0, 500, 5):
        next(batches.work(batch, NOW + moment), None)
    done = at.account.figures()["billed_rows"]
    assert 0 < done == batch.rows.count(b"")  # requests that are done are forgotten
    batches.cancel(NOW + 500, batch)
    assert batch.shown(NOW + 501)["processing_status"] == "canceling"
    assert batch.next_at <= NOW + 520
    list(batches.work(batch, NOW + 520))
    counts = batch.shown(NOW + 520)["request_counts"]
    assert counts == {**counts, "processing": 0, "errored": 0, "expired": 0}
    assert 30 < counts["succeeded"] == at.account.figures()["billed_rows"] < 75
    assert counts["succeeded"] + counts["canceled"] == len(batch.lines) == 100
    assert (batch.rows, batch.agenda) == ([], [])
    with pytest.raises(Problem, match="already ended"):
        batches.cancel(NOW + 521, batch)


def test_what_is_not_done_in_a_day_expires_and_results_go_after_29():
    """Rows beyond 24 hours are expired and unbilled; the results are archived in the end."""
    at, day = desk(), 86_400
    batches = batches_of(at, seconds=2 * day)
    batch = batches.find(batches.create(NOW, batch_of(100), VERSION)["id"])
    list(batches.work(batch, NOW + day))
    counts = batch.shown(NOW + day)["request_counts"]
    assert 30 < counts["expired"] < 70
    assert at.account.figures()["billed_rows"] == counts["succeeded"] == 100 - counts["expired"]
    assert batch.shown(NOW + 29 * day)["archived_at"] is not None
    assert batch.shown(NOW + 29 * day)["results_url"] is None
    with pytest.raises(Problem, match="archived"):
        batches.results(NOW + 29 * day, batch)


# ------------------------------------------------------------------------------------------- faults


def test_a_stuck_batch_is_canceled_or_expires_whole():
    """None of its rows is done: it ends 24 hours on, all expired, or sooner where it is canceled."""
    at = desk(faults={"batch_stuck": Fault(tries=[1, 2])})
    batches = batches_of(at)
    first, second, third = (batches.find(batches.create(NOW, batch_of(5), VERSION)["id"]) for _ in range(3))
    batches.cancel(NOW + 600, second)
    for batch in (first, second, third):
        list(batches.work(batch, NOW + 700))
    assert (third.counts["succeeded"], second.counts["canceled"]) == (5, 5)
    assert first.shown(NOW + 86_399)["processing_status"] == "in_progress"
    list(batches.work(first, NOW + 86_400))
    assert first.counts["expired"] == 5
    assert at.account.figures()["billed_rows"] == 5


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("batch_errored", "api_error"),
        ("batch_overloaded", "overloaded_error"),
        ("batch_invalid", "invalid_request_error"),
        ("batch_expired", "expired"),
    ],
)
def test_rows_of_a_batch_can_fail_and_the_next_batch_draws_anew(kind, outcome):
    """About the chosen share of rows fails unbilled; sent again they mostly do not, whatever their id."""
    at = desk(faults={kind: 0.3})
    batches = batches_of(at)
    first = kinds(worked(batches, batch_of(200)))
    struck = {name for name, found in first.items() if found == outcome}
    assert 35 < len(struck) < 85
    assert set(first.values()) == {"succeeded", outcome}
    assert at.account.figures()["billed_rows"] == 200 - len(struck)
    rows = [row for row in batch_of(200)["requests"] if row["custom_id"] in struck]
    rows = [{**row, "custom_id": f"x{row['custom_id']}"} for row in rows]
    again = list(kinds(worked(batches, {"requests": rows}, NOW + 600)).values())
    assert 0 < again.count(outcome) < len(struck) * 0.6


def test_a_batch_over_the_spend_cap_is_refused():
    """Once the dollars are spent no batch is made: the documented words, without the Messages API's code."""
    at = desk(faults={"spend_cap": 0.0})
    with pytest.raises(Problem, match=r"^You have reached your API usage limits") as error:
        batches_of(at).create(NOW, batch_of(2), VERSION)
    assert (error.value.status, error.value.details) == (429, None)
    assert at.account.figures()["batches_created"] == 0


def test_the_endpoints_of_batches_have_a_rate_of_their_own():
    """Beyond the rate every one of them is a 429 with a time to come back."""
    batches = batches_of(desk("start", batch_requests_per_minute=2))
    batches.limited(NOW)
    batches.limited(NOW)
    with pytest.raises(Problem, match="2 batch requests per minute") as error:
        batches.limited(NOW)
    assert (error.value.kind, error.value.headers) == ("batch_requests_per_minute", {"retry-after": "30"})
    batches.limited(NOW + 30)


def test_lists_go_forward_and_back_by_id():
    """Newest first; after_id goes on to older ones, before_id back to newer ones; limits are checked."""
    batches = batches_of()
    ids = [batches.create(NOW, batch_of(1), VERSION)["id"] for _ in range(5)][::-1]

    def listed(**query):
        page = batches.page(NOW, {name: [str(value)] for name, value in query.items()}, "")
        return [shown["id"] for shown in page["data"]], page["has_more"]

    assert listed() == listed(limit=1000) == (ids, False)
    assert listed(limit=2) == (ids[:2], True)
    assert listed(limit=2, after_id=ids[1]) == (ids[2:4], True)
    assert listed(limit=2, before_id=ids[2]) == (ids[:2], False)
    assert listed(limit=1, before_id=ids[2]) == (ids[1:2], True)
    for limit in (0, 1001, "x"):
        with pytest.raises(Problem, match="from 1 to 1000"):
            listed(limit=limit)


# ------------------------------------------------------------------------------------------ caching


def read_share(batches, rows, ttl, now=NOW):
    """Return which part of the rows of a new batch read the cache."""
    block = {"type": "text", "text": LONG, "cache_control": {**EPHEMERAL, "ttl": ttl}}
    results = worked(batches, batch_of(rows, system=[block]), now)
    usages = [result["message"]["usage"] for result in results.values()]
    read = [usage["cache_read_input_tokens"] > 512 for usage in usages]
    assert read == [usage["cache_creation_input_tokens"] <= 512 for usage in usages]
    return sum(read) / rows


@pytest.mark.parametrize(("ttl", "least", "most"), [("5m", 0.25, 0.70), ("1h", 0.57, 1.0)])
def test_the_prompt_cache_is_best_effort_in_batches(ttl, least, most):
    """From batch to batch 30 to 98 of 100 rows find the prefix, more of them with an hour than 5 minutes."""
    found = [read_share(batches_of(desk(seed=seed)), 150, ttl) for seed in range(12)]
    assert least < min(found) < max(found) < most
    assert max(found) - min(found) > 0.15


def test_a_batch_of_one_primes_the_next():
    """After a one-request batch with an hour's cache the next batch reads from its first row on."""
    batches = batches_of()
    assert read_share(batches, 1, "1h") == 0
    block = {"type": "text", "text": LONG, "cache_control": {**EPHEMERAL, "ttl": "1h"}}
    batch = batches.find(batches.create(NOW + 700, batch_of(50, system=[block]), VERSION)["id"])
    first = [next(batches.work(batch, NOW + 1300)) for _ in range(12)]
    usages = [json.loads(line)["result"]["message"]["usage"] for line in batch.lines]
    assert len(usages) == len(first)
    assert sum(usage["cache_read_input_tokens"] > 512 for usage in usages) >= 4
