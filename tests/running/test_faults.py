"""Faults at every point of a call: rows in, rows out, each paid for once, and a helpful reason."""

import random
import time

import pytest
from canned import Breaker, Reset, error
from running import ended, quick, the_plan

import claudescale as cs
from claudescale.clock import Clock

PAGE = b"<html><head><title>Gateway</title></head><body><h1>Something in between</h1></body></html>"
HTML, SOON = {"content-type": "text/html"}, {"retry-after": "1"}


def half(answer):
    """Return an answer that breaks off in the middle of its body."""
    return answer[: (answer.index(b"\r\n\r\n") + 4 + len(answer)) // 2]


PASSING = {
    "reset": lambda _: Reset(),
    "no answer": lambda call: call.raw()[:0],
    "half the body": lambda call: half(call.raw()),
    "reset in the body": lambda call: Reset(half(call.raw())),
    "200, a page": lambda _: (200, HTML, PAGE),
    "429, ramp": lambda _: (429, SOON, error("rate_limit_error", error_code="ramp_limit_exceeded")),
    "200, no gzip": lambda _: (200, {"content-encoding": "gzip"}, PAGE),
}
LASTING = {
    "authentication_error": lambda _: (401, HTML, PAGE),
    "request_too_large": lambda _: (413, {}, error("request_too_large")),
}
"""Faults by the error that ends a run or a row."""
PLANS = [{"mode": "live"}, {"mode": "batch"}, {"mode": "hybrid", "deadline": 600}]
CASES = [*(("passing", plan) for plan in PLANS), *((name, PLANS[0]) for name in LASTING)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plan"), CASES)
def test_whatever_befalls_calls_no_row_is_lost_or_paid_twice(tmp_path, name, plan):
    """With one call in six failing, a run ends with all rows or a reason; the same cell sends the rest."""
    draws, faults = random.Random(name), [LASTING[name]] if name in LASTING else [*PASSING.values()]

    def change(call):
        is_hit = call.name != "other" and draws.random() < 1 / 6
        return draws.choice(faults)(call) if is_hit else None

    with quick() as api, Breaker(api.url, change) as breaker:
        run = ended(the_plan(60, **plan), api, tmp_path / "l", base_url=breaker.url)
        assert breaker.struck
        assert run.state == "finished" or (run.stopped_by == name and run.message)
        last = ended(run.plan, api, tmp_path / "l")
    assert (last.state, last.message) == ("finished", None)
    assert last.results["text"].equals(run.plan.frame["text"])
    errors = last.results["error"].drop_nulls()
    assert last.results["reply"].null_count() == errors.len()
    assert set(errors) <= {"request_too_large"}  # sending it again cannot mend that
    stats = api.stats
    assert stats["distinct_rows_billed"] == 60 - errors.len() > 0
    twice = stats["billed_rows"] - stats["distinct_rows_billed"]
    assert twice <= sum(call.name == "message" and call.was_asked for call in breaker.struck)
    with cs.Ledger(tmp_path / "l") as kept:
        attempts = kept.attempts()
    paid = attempts["dollars"].sum()
    assert paid == pytest.approx(stats["dollars"], abs=1e-9) or (twice and paid < stats["dollars"])
    assert run.counts.dollars + last.counts.dollars == pytest.approx(paid)
    assert all(len(words) > 4 for words in attempts.drop_nulls("error")["message"])


def test_the_time_of_day_may_jump(monkeypatch):
    """Setting the computer's clock does not change elapsed time; putting the computer to sleep does."""
    clock, real, woken = Clock(), time.time, time.clock_gettime
    before = clock.seconds()
    monkeypatch.setattr(time, "time", lambda: real() - 28_800.0)
    assert clock.seconds() - before == pytest.approx(0, abs=60)
    monkeypatch.setattr(time, "clock_gettime", lambda which: woken(which) + 28_800.0)
    assert clock.seconds() - before == pytest.approx(28_800.0, abs=60)
