"""Faults at every point of a call: rows in, rows out, each paid for once, and a helpful reason."""

import asyncio
import gzip
import random
import time
from contextlib import contextmanager

import pytest
from batch_runs import ended, quick, the_plan
from breaking import Breaker, Reset, error

import claudescale as cs
from claudescale.api import limits
from claudescale.api.answers import verdict
from claudescale.api.client import Wire
from claudescale.clock import Clock
from claudescale.errors import ADVICE

PAGE = b"<html><head><title>Gateway</title></head><body><h1>Something in between</h1></body></html>"
HTML, SOON = {"content-type": "text/html"}, {"retry-after": "1"}


def half(answer):
    """Return an answer that breaks off in the middle of its body."""
    return answer[: (answer.index(b"\r\n\r\n") + 4 + len(answer)) // 2]


PASSING = {
    "reset": lambda _: Reset(),
    "closed": lambda _: b"",
    "no answer": lambda call: call.raw()[:0],
    "half a status line": lambda call: call.raw()[:10],
    "half the body": lambda call: half(call.raw()),
    "reset in the body": lambda call: Reset(half(call.raw())),
    "200, a page": lambda _: (200, HTML, PAGE),
    "200, half of gzip": lambda _: (200, {"content-encoding": "gzip"}, gzip.compress(PAGE * 50)[:60]),
    "429, ramp": lambda _: (429, SOON, error("rate_limit_error", error_code="ramp_limit_exceeded")),
    "503, a page": lambda _: (503, HTML | SOON, PAGE),
}
FAULTS = PASSING | {
    "302, to a page": lambda _: (302, {"location": "/login"}, b""),
    "401, a page": lambda _: (401, HTML, PAGE),
    "413": lambda _: (413, {}, error("request_too_large")),
}
LAST_WORDS = {"request_too_large"}
"""Errors of a row that sending it again cannot mend."""


@contextmanager
def broken(change):
    """Yield a simulator and the proxy in front of it that changes its calls."""
    with quick() as api, Breaker(api.url, change) as breaker:
        yield api, breaker


def check(run, api, breaker, ledger):
    """Check the invariants at the end, and again after the same cell runs without faults."""
    assert run.state != "failed" or (run.stopped_by in ADVICE and run.message)
    last = ended(run.plan, api, ledger)
    assert (last.state, last.message) == ("finished", None)
    assert last.results["text"].equals(run.plan.frame["text"])
    errors = last.results["error"].drop_nulls()
    assert last.results["reply"].null_count() == errors.len()
    assert set(errors) <= LAST_WORDS
    stats = api.stats
    assert stats["distinct_rows_billed"] == run.plan.frame.height - errors.len() > 0
    twice = stats["billed_rows"] - stats["distinct_rows_billed"]
    assert twice <= sum(call.name == "message" and call.was_asked for call in breaker.struck)
    with cs.Ledger(ledger) as kept:
        attempts = kept.attempts()
    paid = attempts["dollars"].sum()
    assert paid == pytest.approx(stats["dollars"], abs=1e-9) or (twice and paid < stats["dollars"])
    assert run.counts.dollars + last.counts.dollars == pytest.approx(paid)
    assert all(len(words) > 4 for words in attempts.drop_nulls("error")["message"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reset", "half the body", "302, to a page", "401, a page", "413"])
def test_whatever_befalls_live_calls_no_row_is_lost_or_paid_twice(tmp_path, name):
    """Faults of the connection, the answer's form and the status lose no row and charge none twice."""
    draws = random.Random(name)

    def change(call):
        struck = call.name == "message" and call.number > 3 and draws.random() < 0.2
        return FAULTS[name](call) if struck else None

    with broken(change) as (api, breaker):
        run = ended(the_plan(40, mode="live"), api, tmp_path / "l", base_url=breaker.url)
        assert breaker.struck
        check(run, api, breaker, tmp_path / "l")


@pytest.mark.slow
@pytest.mark.parametrize("plan", [{"mode": "live"}, {"mode": "batch"}, {"mode": "hybrid", "deadline": 600}])
def test_faults_that_pass_at_once(tmp_path, plan):
    """With one call in six failing, at any endpoint, a run still ends with all rows."""
    draws, faults = random.Random(plan["mode"]), sorted(PASSING)

    def change(call):
        hit = call.name != "other" and draws.random() < 1 / 6
        return PASSING[draws.choice(faults)](call) if hit else None

    with broken(change) as (api, breaker):
        run = ended(the_plan(60, **plan), api, tmp_path / "l", base_url=breaker.url)
        assert run.state == "finished"
        check(run, api, breaker, tmp_path / "l")


# time


def test_the_time_of_day_may_jump(monkeypatch):
    """Setting the computer's clock does not change elapsed time; putting the computer to sleep does."""
    clock, real, woken = Clock(), time.time, time.clock_gettime
    before = clock.seconds()
    monkeypatch.setattr(time, "time", lambda: real() - 28_800.0)
    assert clock.seconds() - before == pytest.approx(0, abs=60)
    monkeypatch.setattr(time, "clock_gettime", lambda which: woken(which) + 28_800.0)
    assert clock.seconds() - before == pytest.approx(28_800.0, abs=60)


ODD = [
    b"",
    b"HTTP/1.1 -1 x\r\n\r\nhello",
    b"HTTP/1.1 200\r\ncontent-length: many\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n: no name\r\nretry-after: \xff\r\nset-cookie: a=\x00\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 302 Found\r\nlocation: ftp://[bad\r\n\r\n",
    bytes(range(256)),
]


def test_any_bytes_are_an_answer():
    """For any bytes from a server, sending a row ends with a meaningful answer; see `test_answers`."""
    sent = []

    async def go():
        async with Wire(api.client(base_url=breaker.url)) as wire:
            for content in ODD:
                sent.append(content)
                answer = await wire.send(b"{}")
                meaning = verdict(answer)
                assert meaning.outcome == "answered" or (meaning.error and meaning.message)
                limits.read_headers(answer.headers)

    with broken(lambda call: sent[-1] if call.name == "message" else None) as (api, breaker):
        asyncio.run(go())
