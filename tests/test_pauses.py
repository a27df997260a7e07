"""Laptops that sleep, processes that stand still, clocks that are set: nothing is lost, or paid for twice."""

import asyncio
import sys
import time

import pytest
import virtual
from breaking import Break, Breaker, http
from crash_child import the_plan
from engine import Engine, ScriptSend, rows
from running import until
from test_matrix import broken, check, run_of, simulator

from claudescale.api.answers import Answer, Verdict
from claudescale.clock import Clock, elapsed
from claudescale.running.health import SILENT_SECONDS, Health

HOURS = 8 * 3_600.0
MESSAGE = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"yes"}],'
    b'"stop_reason":"end_turn","usage":{"input_tokens":20,"output_tokens":2}}'
)
LOST = Answer(None, {}, b"", "connection_error")


class Sleep:
    """Makes every clock of this process leap, as it does where the computer has slept."""

    def __init__(self, patch):
        self.seconds = 0.0
        real = time.clock_gettime
        patch.setattr(time, "clock_gettime", lambda which: real(which) + self.seconds)


@pytest.mark.skipif(
    sys.platform not in {"linux", "darwin"}, reason="its monotonic clock counts sleep by itself"
)
def test_api_time_goes_on_while_the_computer_sleeps(monkeypatch):
    """The clock is one that counts sleep, which Python's monotonic clock does not."""
    clock, sleep = Clock(), Sleep(monkeypatch)
    before = clock.seconds()
    sleep.seconds = HOURS
    assert clock.seconds() - before == pytest.approx(HOURS, abs=60)
    if sys.platform == "linux":
        assert elapsed() - HOURS == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME) - HOURS, abs=60)


@pytest.mark.parametrize("jump", [-HOURS, HOURS])
def test_the_time_of_day_may_jump(monkeypatch, jump):
    """Who sets the computer's clock does not change how much time has passed."""
    clock, real = Clock(), time.time
    before = clock.seconds()
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert clock.seconds() - before == pytest.approx(0, abs=60)


@pytest.mark.parametrize("failures_before", [0, 3])
@pytest.mark.parametrize("pause", [3.0, 90.0, 2_000.0, HOURS])
def test_a_live_run_sleeps_in_the_middle(pause, failures_before):
    """Calls that were under way are lost, some more until there is a network again; no row is given up."""

    async def go():
        loop = asyncio.get_running_loop()
        slept = []

        def script(content, tries):
            number = len(send.calls)
            if number < 20 and tries == 1 and number <= failures_before:
                return LOST
            if number >= 60 and not slept:
                slept.append(len(send.calls))
                loop._virtual.now += pause
            lost = slept and number <= slept[0] + 30 and tries <= 2
            return LOST if lost else Answer(200, {}, MESSAGE)

        send = ScriptSend(script)
        engine = Engine(send, virtual.clock())
        await engine.answer(rows(300))
        return engine

    engine = virtual.run(go())
    assert engine.live.stopped_by is None
    assert len(engine.finals) == len(set(engine.finals)) == 300


def test_a_pause_while_an_api_fails_is_no_silence():
    """Failures before and after a night's sleep are not taken for a night of failures."""
    failed = Verdict(outcome="overloaded", error="connection_error")
    watch = Health()
    assert not any(watch.sees(failed, now, status=503, waiting=False) for now in range(20))
    assert not any(watch.sees(failed, HOURS + now, status=None, waiting=False) for now in range(20))
    night = [watch.sees(failed, HOURS + now, status=503, waiting=False) for now in range(0, 2_000, 30)]
    assert night.index(True) * 30 == pytest.approx(SILENT_SECONDS, abs=60)


def unmarked(answer):
    """Return an answer of a simulator as the API's own."""
    return answer.replace(b"claudescale-simulator: 1\r\n", b"").replace(b"Claudescale-Simulator: 1\r\n", b"")


@pytest.mark.parametrize(("first", "second"), [(5.0, 0.0), (-5.0, 0.0), (0.0, 5.0), (0.0, -5.0), (5.0, 5.0)])
def test_the_clock_is_set_between_two_runs(tmp_path, monkeypatch, first, second):
    """A batch whose answer was lost under a wrong time of day is found under the right one: paid for once."""
    monkeypatch.setattr("claudescale.running.batch_rules.LOST_SECONDS", 4.0)
    monkeypatch.setattr("claudescale.running.batch_rules._SHORTEST_SECONDS", 0.2)
    real, shift = time.time, [0.0]

    def strikes(called, number):
        if called == "other":  # who answers does not say that it is a simulator
            return Break("after", http(404))
        lost = called == "create" and number == 1
        return Break("back", b"") if lost else Break("back", unmarked)

    async def left(run):
        await until(lambda: any(name == "create" for name, _ in breaker.struck))
        run.leave()
        await run

    async def go():
        monkeypatch.setattr(time, "time", lambda: real() + shift[0])
        for hours in (first, second):
            shift[0] = hours * 3_600
            client = api.client(base_url=breaker.url)
            run = the_plan(12).start(client, ledger=tmp_path / "l", progress=False)
            async with asyncio.timeout(60):
                await (left(run) if hours is first and not runs else run)
            runs.append(run)

    runs = []
    with simulator(batch_seconds=1.0, speed=1.0) as api, Breaker(api.url, strikes) as breaker:
        asyncio.run(go())
        assert not runs[-1].job.simulated
        assert runs[-1].results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == 13  # the rows, and the short message before the batch


@pytest.mark.parametrize("name", ["create", "retrieve", "results"])
def test_a_batch_run_sleeps_in_the_middle(tmp_path, monkeypatch, name):
    """The lid is closed at a call whose answer is lost, and there is no network at first: paid for once."""
    sleep = Sleep(monkeypatch)

    def strikes(called, number):
        if called == name and number == 1:
            sleep.seconds += HOURS / 1_000  # the simulator's time goes a thousand times as fast
        lost = called in {name, "retrieve", "list", "results"} and breaker.calls.get(name, 0) >= 1
        broken_off[0] += lost
        return Break("back") if lost and broken_off[0] <= 4 else None

    broken_off = [0]
    plan = the_plan(12)
    with broken(strikes) as (api, breaker, bills):
        run = run_of(plan, api, breaker, tmp_path / "l")
        assert run.state == "finished", (run.stopped_by, run.message)
        assert run.minutes > HOURS / 60
        assert broken_off[0] >= 4
        check(plan, api, tmp_path / "l", bills, [run], lost=0)
