"""Faults at every point of a call: rows in, rows out, each paid for once, and a reason that helps."""

import asyncio
import gzip
import random
import time
from contextlib import contextmanager

import pytest
from breaking import Break, Breaker, error, http
from running import a_plan, reviews, simulator

import claudescale as cs
from claudescale.api import limits
from claudescale.api.answers import verdict
from claudescale.api.client import Wire
from claudescale.clock import Clock
from claudescale.errors import ADVICE

PAGE = b"<html><head><title>Gateway</title></head><body><h1>Something in between</h1></body></html>"
RAMP = error("rate_limit_error", error_code="ramp_limit_exceeded")


def half(answer):
    """Return an answer that breaks off in the middle of its body."""
    return answer[: (answer.index(b"\r\n\r\n") + 4 + len(answer)) // 2]


PASSING = {
    "reset within the request": Break("within", end="reset"),
    "closed after the request": Break("after"),
    "no answer": Break("back"),
    "half a status line": Break("back", lambda answer: answer[:10]),
    "half the body": Break("back", half),
    "reset in the body": Break("back", half, end="reset"),
    "200, a page": Break("after", http(200, PAGE, "text/html")),
    "200, half of gzip": Break("after", http(200, gzip.compress(PAGE * 50)[:60], content_encoding="gzip")),
    "429, ramp": Break("after", http(429, RAMP, retry_after="1")),
    "503, a page": Break("after", http(503, PAGE, "text/html", retry_after="1")),
}
FAULTS = PASSING | {
    "another's answer": Break("back", lambda _: http(200, b'{"hello": "world"}')),
    "302, to a page": Break("after", http(302, location="/login")),
    "401, a page": Break("after", http(401, PAGE, "text/html")),
    "404": Break("after", http(404, error("not_found_error"))),
    "413": Break("after", http(413, error("request_too_large"))),
}
CELLS = {
    "live": [
        ("message", name)
        for name in ("reset within the request", "half the body", "302, to a page", "401, a page", "413")
    ],
    "batch": [
        ("create", "half a status line"),
        ("list", "200, a page"),
        ("retrieve", "404"),
        ("retrieve", "another's answer"),
        ("results", "reset in the body"),
        ("cancel", "no answer"),
    ],
}
LAST_WORDS = {"invalid_request_error", "request_too_large"}
"""Errors of a row that sending it again cannot mend."""


def plan_of(mode, rows):
    """Return a plan in a mode."""
    return a_plan(reviews(rows), mode=mode, **({"deadline": 600} if mode == "hybrid" else {}))


@contextmanager
def broken(strikes, **options):
    """Give a simulator on which a batch lasts a fraction of a second, and a breaker before it."""
    given = {"speed": 1_000, "batch_seconds": 60.0, **options}
    with simulator(**given) as api, Breaker(api.url, strikes) as breaker:
        yield api, breaker


def run_of(plan, client, ledger, *, stop=False):
    """Return the run of a plan, which ends well or with a kind, words and advice that help."""

    async def go():
        try:
            run = plan.start(client, ledger=ledger, progress=False)
            if stop:
                await run.submitted()
                run.stop()
            return await run
        except cs.RunStopped as stopped:
            return stopped.run

    run = asyncio.run(go())
    assert run.state != "failed" or (run.stopped_by in ADVICE and run.message)
    return run


def check(run, api, breaker, ledger, *, gone=False):
    """Check what must hold once the same cell ran again with nothing broken.

    A batch that a simulator does not show has `gone` with it: its rows are sent anew, and cost nothing.
    """
    plan, last = run.plan, run_of(run.plan, api.client(), ledger)
    assert last.state == "finished", (last.stopped_by, last.message)
    assert last.results["text"].equals(plan.frame["text"])
    errors = last.results["error"].drop_nulls()
    assert last.results["reply"].null_count() == errors.len()
    assert set(errors) <= LAST_WORDS
    stats = api.stats
    again = stats["billed_rows"] - stats["distinct_rows_billed"]
    assert stats["distinct_rows_billed"] == plan.frame.height - errors.len() > 0
    lost = sum(struck.where == "back" for name, struck in breaker.struck if name == "message")
    assert again <= lost or gone
    with cs.Ledger(ledger) as kept:
        attempts = kept.attempts()
    paid = attempts["dollars"].sum()
    assert paid == pytest.approx(stats["dollars"], abs=1e-9) or (again and paid < stats["dollars"])
    assert sum(each.counts.dollars for each in (run, last)) == pytest.approx(paid)
    failed = attempts.drop_nulls("error")
    assert all(len(words or "") > 4 for words in failed["message"])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "name", "fault"), [(mode, *cell) for mode in CELLS for cell in CELLS[mode]])
def test_whatever_befalls_calls_no_row_is_lost_or_paid_twice(tmp_path, mode, name, fault):
    """The connection, what calls itself an answer, a status: at each endpoint, and at the cancellation."""
    draws = random.Random(fault)

    def strikes(called, number):
        if name == "list" and called == "create" and number == 1:
            return FAULTS["no answer"]  # so that the batch has to be looked for
        chosen = (number > 3 and draws.random() < 0.2) if mode == "live" else number <= 2
        return FAULTS[fault] if called == name and chosen else None

    plan = plan_of(mode, 40 if mode == "live" else 12)
    with broken(strikes, batch_seconds=600.0 if name == "cancel" else 60.0) as (api, breaker):
        run = run_of(plan, api.client(base_url=breaker.url), tmp_path / "l", stop=name == "cancel")
        assert name in {called for called, _ in breaker.struck}
        check(run, api, breaker, tmp_path / "l", gone=fault == "404")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_calls_that_never_end_are_given_up(tmp_path, mode):
    """The first call to each endpoint does its work and hangs: no row or batch is lost for it."""

    def strikes(called, number):
        return Break("back", end="hang") if called != "other" and number == 1 else None

    with broken(strikes) as (api, breaker):
        client = api.client(base_url=breaker.url, timeout=1.0)
        run = run_of(plan_of(mode, 8), client, tmp_path / "l")
        assert len(breaker.struck) > 3 * (mode == "hybrid")
        check(run, api, breaker, tmp_path / "l")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch", "hybrid"])
def test_all_faults_that_pass_at_once(tmp_path, mode):
    """With one call in six struck, at any endpoint, a run ends with all rows by itself."""
    draws = random.Random(mode)
    faults = sorted(PASSING)

    def strikes(called, _number):
        hit = called != "other" and draws.random() < 1 / 6
        return PASSING[draws.choice(faults)] if hit else None

    with broken(strikes) as (api, breaker):
        run = run_of(plan_of(mode, 60), api.client(base_url=breaker.url), tmp_path / "l")
        assert run.state == "finished"
        check(run, api, breaker, tmp_path / "l")


# time


def test_the_time_of_day_may_jump(monkeypatch):
    """Who sets the computer's clock does not change how much time has passed; a computer's sleep does."""
    clock, real, woken = Clock(), time.time, time.clock_gettime
    before = clock.seconds()
    monkeypatch.setattr(time, "time", lambda: real() - 28_800.0)
    assert clock.seconds() - before == pytest.approx(0, abs=60)
    monkeypatch.setattr(time, "clock_gettime", lambda which: woken(which) + 28_800.0)
    assert clock.seconds() - before == pytest.approx(28_800.0, abs=60)


ODD = [
    b"",
    b"HTTP/1.1 999 ?\r\n\r\n",
    b"HTTP/1.1 -1 x\r\n\r\nhello",
    b"HTTP/1.1 200\r\ncontent-length: many\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n: no name\r\nretry-after: \xff\r\nset-cookie: a=\x00\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
    b'HTTP/1.1 200 OK\r\n\r\n{"content": [], "usage": {"input_tokens": 1e999, "output_tokens": []}}',
    b"HTTP/1.1 302 Found\r\nlocation: ftp://[bad\r\n\r\n",
    bytes(range(256)),
]


def test_any_bytes_are_an_answer():
    """Whatever a server sends, sending a row ends with an answer that has a meaning; see `test_answers`."""
    sent = [b""]

    async def go():
        wire = Wire(api.client(base_url=breaker.url))
        await wire.api()
        for content in ODD:
            sent.append(content)
            found = await wire.send(b"{}")
            limits.read_headers(found.headers)
            meant = verdict(found)
            assert meant.outcome == "answered" or (meant.error and meant.message), content
        await wire.close()

    def strikes(called, _number):
        return Break("after", lambda _: sent[-1]) if called != "other" else None

    with broken(strikes) as (api, breaker):
        asyncio.run(go())
