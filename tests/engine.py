"""A live engine in virtual time: the real pacer, with the simulator's desk or a script as its network."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import desks
import polars as pl
import virtual

import claudescale as cs
from claudescale.api.answers import Answer
from claudescale.api.client import Api, Wire
from claudescale.api.limits import Limits
from claudescale.pacing.pacer import Pacer
from claudescale.running.job import Job, Row
from claudescale.running.live import Live
from claudescale.simulator import Admission

MODEL = "claude-haiku-5-5"
MAX_TOKENS = 100
BEGUN = 1_790_000_000.0
LIMITS = Limits.of("start", MODEL)
USAGE = {"input_tokens": 20, "output_tokens": 2}
GOOD = Answer(200, {}, json.dumps({"content": [{"type": "text", "text": "ok"}], "usage": USAGE}).encode())
NO_MESSAGE = Answer(200, {}, b"<html></html>")
UNREACHABLE = Answer(None, {}, b"", "connection_error", sent=False)
LOST = Answer(None, {}, b"", "connection_error")
TIMED_OUT = Answer(None, {}, b"", "timeout_error")


def answer(status, kind="api_error", words="no", *, headers=None, **details):
    """Return an error of the API."""
    error = {"type": kind, "message": words, "details": details}
    return Answer(status, headers or {}, json.dumps({"type": "error", "error": error}).encode())


def body(number, text="The parcel came late and the box was broken.", **changes):
    """Return the bytes of one small request."""
    content = f"Row {number}. {text}"
    fields = {"model": MODEL, "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": content}]}
    return json.dumps(fields | changes).encode()


def rows(count, first=0, **changes):
    """Return that many different rows."""
    bodies = [body(number, **changes) for number in range(first, first + count)]
    worst = worst_dollars(bodies[-1])
    return [Row(f"{n:032x}", content, len(content) / 3, worst) for n, content in enumerate(bodies, first)]


def worst_dollars(content=None):
    """Return the most an answer to a row can cost."""
    requests = pl.DataFrame({"most_tokens": [len(content or body(0))]})
    return a_job(None, None, None).with_worst(requests, "live")["worst_dollars"].item()


def a_job(send, clock, record, *, max_tokens=MAX_TOKENS, budget_dollars=None, reused=0):
    """Return a job that sends calls by `send` and records them by `record`, without rows or a ledger."""
    frame = pl.DataFrame({"text": [""]})
    plan = cs.plan(frame, "{text}", model=MODEL, max_tokens=max_tokens, budget=budget_dollars)
    job = Job(plan, SimpleNamespace(middleware=()), None)
    job.clock, job.wire, job.record = clock, SimpleNamespace(send=send), record
    job.api = Api(name="test", simulated=True, clock=clock)
    job.ledger = SimpleNamespace(run="run")
    job.meter.reused = reused
    return job


def taken_for_real(monkeypatch):
    """Make the sending code take a simulator for the API."""
    real = Wire.api

    async def api(self):
        return replace(await real(self), simulated=False)

    monkeypatch.setattr(Wire, "api", api)


class DeskSend:
    """Sends to a desk: virtual seconds pass as they would at the API."""

    def __init__(self, clock, **options):
        self.clock = clock
        self.desk = desks.desk(options.pop("tier", "start"), now=clock.seconds(), **options)

    async def __call__(self, content):
        """Return the desk's answer to one body."""
        found = desks.admitted(self.desk, content, self.clock.seconds())
        if isinstance(found, Admission):
            await self.clock.sleep(found.done_at - self.clock.seconds())
            found = self.desk.finish(self.clock.seconds(), found)
        if found.fault == "hang":
            await self.clock.sleep(600.0)
            return TIMED_OUT
        if found.fault is not None:
            return LOST
        return Answer(found.status, found.headers, found.body)


class Call(NamedTuple):
    """One call: body, number of this call, number of this try of its row, and virtual seconds so far."""

    body: bytes
    number: int
    tries: int
    seconds: float
    live: Live


class ScriptSend:
    """Answers each `Call` by a function of it, after some seconds or a function of it."""

    def __init__(self, script, seconds=1.0):
        self.script, self.seconds = script, seconds
        self.tries = Counter()

    async def __call__(self, content):
        """Return the script's answer."""
        self.tries[content] += 1
        now = asyncio.get_running_loop().time()
        call = Call(content, self.tries.total(), self.tries[content], now, self.live)
        found = self.script(call)
        await asyncio.sleep(self.seconds(call) if callable(self.seconds) else self.seconds)
        return found


class Engine:
    """A `Live` whose records are a list; `rows_given` counts the rows pulled so far."""

    def __init__(self, send, clock, *, concurrency=None, warm=False, **options):
        self.send, self.clock = send, clock
        self.attempts, self.finals = [], []
        self.rows_given = 0
        self.pacer = Pacer(LIMITS, clock=clock, concurrency=concurrency, output_tokens=MAX_TOKENS)
        self.job = a_job(send, clock, self._record, **options)
        self.live = send.live = Live(self.job, self.pacer, warm=warm)

    def _record(self, attempt, *, final):
        self.attempts.append(attempt)
        if final:
            self.finals.append(attempt.key)

    async def _pulled(self, some):
        for row in some:
            self.rows_given += 1
            yield row

    async def answer(self, some):
        """Answer the rows; afterwards the pacer has nothing in flight and no task is left."""
        before = asyncio.all_tasks()
        try:
            await self.live.answer(self._pulled(some))
        finally:
            assert (self.pacer.in_flight, self.job.purse.calls) == (0, 0)
            assert asyncio.all_tasks() <= before
        self.seconds = self.clock.seconds() - BEGUN
        return self

    @property
    def dollars(self):
        """Sum of the attempts' dollars."""
        return sum(attempt.dollars for attempt in self.attempts)

    @property
    def errors(self):
        """Number of attempts by error."""
        return Counter(attempt.error for attempt in self.attempts)

    @property
    def stopped_by(self):
        """The error that ended the run, or None."""
        return self.live.stopped_by and self.live.stopped_by.error

    @property
    def sent(self):
        """Virtual seconds at which calls were sent."""
        return sorted(attempt.sent_at - BEGUN for attempt in self.attempts)


def _through(send, count, some=None, **options):
    async def go():
        clock = virtual.clock()
        return await Engine(send(clock), clock, **options).answer(rows(count) if some is None else some)

    return virtual.run(go())


def through_desk(count, options=None, *, some=None, **desk):
    """Return the engine after it answered that many rows at a desk, with the desk's account as `.stats`."""
    engine = _through(lambda clock: DeskSend(clock, **desk), count, some, **(options or {}))
    engine.stats = engine.send.desk.account.figures()
    return engine


def through_script(script, count=10, *, seconds=1.0, **options):
    """Return the engine after it answered that many rows, or `some`, by a script."""
    return _through(lambda _: ScriptSend(script, seconds), count, **options)
