"""Every fault at every point of a call, live, by batch and hybrid: rows in, rows out, each paid for once.

A part of the matrix, spread over it, is run by default; ``CLAUDESCALE_MATRIX=full`` runs all of it.
"""

import asyncio
import gzip
import os
import random
import zlib
from contextlib import closing, contextmanager

import polars as pl
import pytest
from breaking import Break, Breaker, cut, error, http
from crash_child import LIMITS, the_plan

import claudescale as cs
from claudescale.errors import ADVICE
from claudescale.ledger.store import Store

FULL = os.environ.get("CLAUDESCALE_MATRIX") == "full"
PATIENCE = 60.0
PAGE = b"<html><head><title>Gateway</title></head><body><h1>Something in between</h1></body></html>"
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 408: "timeout_error", 409: "conflict_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 503: "api_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip
BROKEN = {  # the connection, at each point of a call
    "closed before the request": Break("before"),
    "reset before the request": Break("before", end="reset"),
    "closed within the request": Break("within"),
    "reset within the request": Break("within", end="reset"),
    "closed after the request": Break("after"),
    "reset after the request": Break("after", end="reset"),
    "not HTTP": Break("after", b"\x00\xff\xfe nothing that HTTP knows\r\n\r\n"),
    "half a status line, unseen": Break("after", b"HTTP/1.1 50"),
    "no answer": Break("back"),
    "reset instead of an answer": Break("back", end="reset"),
    "half a status line": Break("back", cut("line")),
    "half the headers": Break("back", cut("headers")),
    "no body": Break("back", cut("body")),
    "half the body": Break("back", cut("middle")),
    "reset in the body": Break("back", cut("middle"), end="reset"),
    "another's answer": Break("back", lambda _: http(200, b'{"hello": "world"}')),
}
HUNG = {
    "hangs before the request is read": Break("before", end="hang"),
    "hangs without an answer": Break("after", end="hang"),
    "hangs when it has done its work": Break("back", end="hang"),
    "hangs in the body": Break("back", cut("middle"), end="hang"),
}
ODD = {  # what calls itself an answer
    "200, empty": http(200), "200, null": http(200, b"null"), "200, a list": http(200, b"[]"),
    "200, an empty object": http(200, b"{}"), "200, a page": http(200, PAGE, "text/html"),
    "200, an error": http(200, error("api_error")), "200, half of JSON": http(200, b'{"id": "msg_1", "cont'),
    "200, deep": http(200, b"[" * 100_000), "200, not UTF-8": http(200, b'{"id": "\xff\xfe"}'),
    "200, not gzip": http(200, b"plainly no gzip", content_encoding="gzip"),
    "200, half of gzip": http(200, gzip.compress(PAGE * 50)[:60], content_encoding="gzip"),
    "200, a bad deflate": http(200, zlib.compress(PAGE)[2:9], content_encoding="deflate"),
    "204": http(204), "206": http(206, b"{}"), "304": http(304),
    "301, to nowhere": http(301), "302, to itself": http(302, location="/v1/messages"),
    "302, to a page": http(302, location="/login"), "418": http(418, b"tea"), "422, a page": http(422, PAGE),
    "500, empty": http(500), "500, null": http(500, b"null"), "502, a page": http(502, PAGE, "text/html"),
    "503, a page": http(503, PAGE, "text/html", retry_after="1"),
    "503, a page in Latin-1": http(503, "Dienst überlastet".encode("latin-1"), "text/html; charset=utf-8"),
    "504, a page": http(504, PAGE, "text/html"), "520, a page": http(520, PAGE, "text/html"),
    "599": http(599, b"?"), "401, a page": http(401, PAGE, "text/html"),
    "403, a page": http(403, PAGE, "text/html"), "404, a page": http(404, PAGE, "text/html"),
    "407, a page": http(407, PAGE, "text/html"), "413, a page": http(413, PAGE, "text/html"),
    "429, a page": http(429, PAGE, "text/html"), "429, empty": http(429),
    "429, retry-after of nonsense": http(429, error("rate_limit_error"), retry_after="soon"),
    "429, retry-after below zero": http(429, error("rate_limit_error"), retry_after="-7"),
    "429, ramp": http(
        429, error("rate_limit_error", error_code="ramp_limit_exceeded"), retry_after="1"
    ),
    "529, told not to retry": http(529, error("overloaded_error"), x_should_retry="false"),
    "400, told to retry": http(400, error("invalid_request_error"), x_should_retry="true"),
}  # fmt: skip
SAID = {f"{status}, {kind}": http(status, error(kind)) for status, kind in KINDS.items()}
FAULTS = {
    **BROKEN,
    **{name: Break("after", answer) for name, answer in (SAID | ODD).items()},
}
LAST_WORDS = {"invalid_request_error", "request_too_large"}
"""Errors of a row that sending it again cannot mend."""
GONE = {"404, not_found_error", "302, to itself", "302, to a page"}
"""What is taken for the API's word that there is no such batch."""


def simulator(**options):
    """Return a simulator on which a batch and the patience for a lost one are fractions of a second."""
    given = {"speed": 1_000, "batch_seconds": 60.0, "latency": 0.2, **options}
    return cs.Simulator(
        tuple(LIMITS.values()), batch_queue_requests=100_000, batch_requests_per_minute=100_000, **given
    )


@contextmanager
def broken(strikes, **options):
    """Give a simulator, a breaker before it, and what the simulator billed, by key."""
    with simulator(**options) as api:
        bills = {}
        real = api.desk.account.bill

        def bill(now, model, mode, key, shares, reply):
            dollars = real(now, model, mode, key, shares, reply)
            bills.setdefault(key, []).append(dollars)
            return dollars

        api.desk.account.bill = bill
        with Breaker(api.url, strikes) as breaker:
            yield api, breaker, bills


async def _run(plan, client, ledger, *, stop=False):
    async with asyncio.timeout(PATIENCE):
        try:
            run = plan.start(client, ledger=ledger, progress=False)
            if stop:
                await run.submitted()
                run.stop()
            return await run
        except cs.RunStopped as stopped:
            told(stopped)
            return stopped.run


def run_of(plan, api, breaker, ledger, **options):
    """Return the run of a plan behind a breaker, which ends in time, well or with a reason that helps."""
    client = api.client(base_url=breaker.url)
    return asyncio.run(_run(plan, client, ledger, **options))


def told(stopped):
    """Check that what ended a run has a kind, advice of its own, and words."""
    run = stopped.run
    assert run.stopped_by
    assert run.stopped_by in ADVICE, f"no advice for {run.stopped_by}: {stopped}"
    assert run.message, f"no words: {stopped}"
    assert str(run.counts.answered) in str(stopped)


def check(plan, api, ledger, bills, runs, *, lost, gone=False):
    """Check the invariants once a last run, with nothing broken, has ended.

    At most `lost` answers never came. A batch that a simulator does not show has `gone` with it: its rows are
    sent anew, and cost nothing.
    """
    last = asyncio.run(_run(plan, api.client(), ledger))
    runs = [*runs, last]
    assert last.state == "finished", (last.stopped_by, last.message)
    assert last.results["text"].to_list() == plan.frame["text"].to_list()
    errors = last.results["error"].drop_nulls()
    assert last.results["reply"].null_count() == errors.len()
    assert set(errors) <= LAST_WORDS
    again = [dollars for each in bills.values() for dollars in each[1:]]
    assert len(bills) == plan.frame.height - errors.len() > 0
    assert len(again) <= lost or gone
    with closing(Store(ledger)) as kept:
        attempts = kept.attempts()
        states = {batch.state for batch in kept.batches()}
        assert states <= {"collected", "absent", *(["gone"] if gone else [])}
    assert attempts.filter(pl.col("output_tokens") > 0)["key"].n_unique() == len(bills)
    stats = api.stats
    assert attempts["dollars"].sum() == pytest.approx(stats["dollars"] - sum(again), abs=1e-9)
    assert sum(run.summary["dollars"].item() for run in runs) == pytest.approx(attempts["dollars"].sum())
    for name, most in LIMITS.items():
        assert stats[f"peak_{name}"] <= most
    failed = attempts.filter(pl.col("error").is_not_null())
    helps = (pl.col("error").str.len_chars() > 2) & (pl.col("message").str.len_chars() > 4)
    assert failed.filter(~helps.fill_null(value=False)).select("error", "message").unique().rows() == []


def chosen(cells):
    """Return the cells of a matrix: all of them, or every eleventh, spread over rows and columns."""
    found = list(cells)
    return found if FULL else found[::11]


@pytest.mark.parametrize("fault", chosen(FAULTS))
def test_live(tmp_path, fault):
    """Whatever befalls some calls of a live run, the same cell again answers the rest, nothing twice."""
    draws = random.Random(fault)

    def strikes(name, number):
        return FAULTS[fault] if name == "message" and number > 3 and draws.random() < 0.2 else None

    plan = the_plan(40, mode="live", concurrency=8)
    with broken(strikes) as (api, breaker, bills):
        run = run_of(plan, api, breaker, tmp_path / "l")
        lost = sum(each.is_seen for _, each in breaker.struck)
        assert breaker.struck
        check(plan, api, tmp_path / "l", bills, [run], lost=lost)


CELLS = [(name, fault) for fault in FAULTS for name in ("check", "create", "list", "retrieve", "results")]


@pytest.mark.parametrize(("name", "fault"), chosen(CELLS))
def test_batch(tmp_path, name, fault):
    """Whatever befalls the first two calls of a kind, no row of a batch is lost or paid for twice."""

    def strikes(called, number):
        if name == "list" and called == "create" and number == 1:
            return BROKEN["no answer"]  # so that the batch has to be looked for
        return FAULTS[fault] if called == name and number <= 2 else None

    plan = the_plan(12)
    with broken(strikes) as (api, breaker, bills):
        run = run_of(plan, api, breaker, tmp_path / "l")
        assert {each for each, _ in breaker.struck} >= {name}
        gone = name in {"retrieve", "results"} and fault in GONE
        check(plan, api, tmp_path / "l", bills, [run], lost=0, gone=gone)


@pytest.mark.parametrize("fault", chosen(FAULTS))
def test_cancel(tmp_path, fault):
    """Whatever befalls the cancellation, what was answered by then is kept, and no row is paid for twice."""

    def strikes(called, number):
        return FAULTS[fault] if called == "cancel" and number <= 2 else None

    plan = the_plan(12)
    with broken(strikes, batch_seconds=600.0) as (api, breaker, bills):
        run = run_of(plan, api, breaker, tmp_path / "l", stop=True)
        assert breaker.struck
        check(plan, api, tmp_path / "l", bills, [run], lost=0, gone=fault in GONE)


@pytest.mark.parametrize("mode", ["live", "batch", "hybrid"])
@pytest.mark.parametrize("name", chosen(HUNG) if FULL else ["hangs when it has done its work"])
def test_hanging(tmp_path, monkeypatch, mode, name):
    """A call that never ends is given up in time, at each endpoint; its row or batch is not lost."""
    monkeypatch.setattr("claudescale.api.client.CALL_SECONDS", 0.5)
    monkeypatch.setattr("claudescale.api.client._CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("claudescale.api.client._SHORTEST_TIMEOUT_SECONDS", 0.5)

    def strikes(called, number):
        return HUNG[name] if called != "other" and number == 1 else None

    plan = the_plan(8, mode=mode, **({"deadline": 600} if mode == "hybrid" else {}))
    with broken(strikes) as (api, breaker, bills):
        run = run_of(plan, api, breaker, tmp_path / "l")
        assert breaker.struck
        check(plan, api, tmp_path / "l", bills, [run], lost=1)


PASSING = sorted(
    (set(BROKEN) - {"another's answer"})
    | {name for name in FAULTS if name.startswith(("408", "409", "429", "5"))} - {"529, told not to retry"}
)


@pytest.mark.parametrize("seed", range(12 if FULL else 2))
@pytest.mark.parametrize("mode", ["live", "batch", "hybrid"])
def test_all_at_once(tmp_path, mode, seed):
    """With one call in six struck by any trouble that passes, at any endpoint, a run ends with all rows."""
    draws = random.Random(f"{mode} {seed}")

    def strikes(called, number):
        if called == "other" or draws.random() > 1 / 6:
            return None
        return FAULTS[draws.choice(PASSING)]

    more = {"hybrid": {"deadline": draws.choice([30, 600])}, "live": {"concurrency": 16}}
    plan = the_plan(60, mode=mode, queue=25, **more.get(mode, {}))
    with broken(strikes, seed=seed, batch_seconds=lambda _: draws.choice([60.0, 1_500.0])) as given:
        api, breaker, bills = given
        run = run_of(plan, api, breaker, tmp_path / "l")
        lost = sum(each.is_seen for name, each in breaker.struck if name == "message")
        check(plan, api, tmp_path / "l", bills, [run], lost=lost)
        assert run.state == "finished"


STOPS = {401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error"}


@pytest.mark.parametrize("status", STOPS if FULL else [401, 404])
@pytest.mark.parametrize(("mode", "name"), [("live", "message"), ("batch", "check"), ("batch", "create")])
def test_the_account_is_told(tmp_path, mode, name, status):
    """What concerns the account ends a run with its own kind, its words and advice; nothing is billed."""

    def strikes(called, number):
        words = "claude-haiku-5-5 is not there for you."
        return Break("after", http(status, error(STOPS[status], words))) if called == name else None

    plan = the_plan(12, mode=mode)
    with broken(strikes) as (api, breaker, bills):
        run = run_of(plan, api, breaker, tmp_path / "l")
        assert (run.state, run.stopped_by) == ("failed", STOPS[status])
        assert run.message == "claude-haiku-5-5 is not there for you."
        assert bills == {}
        check(plan, api, tmp_path / "l", bills, [run], lost=0)
