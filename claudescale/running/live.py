"""Rows to replies over the Messages API, with all retries in this one place.

`Live` keeps as many requests in flight as the pacer allows. `answers` decides what one answer means, `health`
what all of them mean for the run, and `Tries` how often a row is tried.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import answers
from claudescale.api.answers import Answer, Verdict
from claudescale.api.client import reply_seconds, streams
from claudescale.api.limits import read_headers
from claudescale.pacing.pacer import Outcome, kind_of
from claudescale.running.health import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from claudescale.ledger.records import Attempt
    from claudescale.pacing.pacer import Pacer, Permit
    from claudescale.running.job import Job, Row

_LOG = logging.getLogger("claudescale.running")
MOST_TRIES = 8
"""Most failed tries of one row while others are answered, not counting rate limits."""
MOST_TRIES_IN_SILENCE = 16
"""Most failed tries of one row while nothing is answered, as the row is then unlikely to be the cause."""
MOST_LOST_SECONDS = 1_800.0
"""Most time that one row may lose in failed calls; a call that hangs takes up to ten minutes of it."""
MOST_REFUSALS = 100
"""Most rate limits that one row may meet; beyond that, waiting does not help."""
LEAST_WAIT_SECONDS = 1.0
"""Shortest wait that a rate limit can meaningfully ask for; less is not a wait."""
LONGEST_BACKOFF_SECONDS = 60.0
FEW_ANSWERS = 20  # chosen
"""From this many answers on, it is known how long an answer takes."""
LEAST_TIMEOUT_SECONDS = 60.0
_FAR_ABOVE = 10.0  # chosen; `test_live` waits for an answer of 8 times the usual
"""A call that takes this many times as long as the slowest answer so far is given up."""
_SPARE_SECONDS = 30.0
_LEAST_REAL_SECONDS = 10.0
"""Shortest timeout of a call to a fast simulator, as this machine needs time as well."""

_NO_MORE = {"answered", "failed", "stop"}
"""Outcomes after which a row is not tried again."""


@dataclass(slots=True)
class Tries:
    """The failed tries of a row, and whether it is given up."""

    answered: int  # rows that the run had answered when this one was last tried
    failed: int = 0
    blamed: int = 0  # failed tries while others were answered, so that the row may be the cause
    hung: int = 0
    lost_seconds: float = 0.0
    refused: int = 0  # rate limits with a meaningful wait
    wait_seconds: float = 0.0  # that the API asked for last

    def count(self, verdict: Verdict, seconds: float, wait_seconds: float, answered: int) -> None:
        """Count a call that was not answered; `answered` rows of the run were by then."""
        self.wait_seconds = wait_seconds
        if verdict.outcome == "refused":
            self.refused += int(wait_seconds >= LEAST_WAIT_SECONDS)
            return
        self.failed += 1
        self.blamed += int(answered > self.answered)
        self.answered = answered
        self.hung += int(verdict.error == "timeout_error")
        self.lost_seconds += min(seconds, MOST_LOST_SECONDS / 3)  # longer: this process slept

    @property
    def are_enough(self) -> bool:
        """Whether the row is given up."""
        return (
            self.blamed >= MOST_TRIES
            or self.failed >= MOST_TRIES_IN_SILENCE
            or self.lost_seconds >= MOST_LOST_SECONDS
            or self.refused >= MOST_REFUSALS
        )

    @property
    def patience(self) -> float:
        """Factor on the timeout of the next call; it doubles after each call that hung."""
        return 2.0**self.hung


class Call(NamedTuple):
    """A call in flight, and how long it may take."""

    timeout: asyncio.Timeout
    began: float  # by the loop's clock
    patience: float


class Live:
    """Answers rows over the Messages API, pulled from one iterator, as many at once as the pacer allows.

    Spends: tokens.

    Parameters
    ----------
    job : Job
        The run whose rows these are.
    pacer : Pacer
        Decides when the next call may be sent.
    warm : bool
        Send rows one at a time until one is answered, so that the others are prompt cache hits.

    Attributes
    ----------
    stopped_by : Verdict or None
        Why nothing more was sent.
    """

    def __init__(self, job: Job, pacer: Pacer, *, warm: bool = False) -> None:
        self.pacer = pacer
        self.stopped_by: Verdict | None = None
        self.health = Health(known_good=job.meter.reused > 0)
        self._job = job
        self._clock = job.clock
        self._purse = job.purse
        self._warm = warm
        self._random = random.Random(0)  # noqa: S311 - jitter, not a secret
        self._doubted: list[Attempt] = []  # rows that failed, until it is known whether they are to blame
        # how long answers take
        self._slowest_seconds = 0.0
        self._full_reply_seconds = reply_seconds(job.plan.max_tokens) + _SPARE_SECONDS
        self._streams = streams(job.plan.max_tokens)  # then only the transport times out
        self._calls: set[Call] = set()
        # rows
        self._stopping = False
        self._idle: set[asyncio.Task[Any]] = set()  # waiting tasks without a call in flight
        self._resting = 0  # rows between two tries
        self._rested = asyncio.Event()  # one of them continues
        self._waiting_for_life: dict[asyncio.Event, None] = {}  # resting rows, in order
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Send nothing more; calls in flight are awaited, as they are paid for.

        Spends: nothing.
        """
        self._stopping = True
        for task in self._idle:
            task.cancel()

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row is answered, or the run is stopped (`stopped_by` has the reason).

        An error of `record` or `rows` is raised once all calls in flight have ended. A cancellation does not
        wait for them.

        Spends: tokens.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pull(rows, tasks))
            if not self._stopping and self._doubted and self.health.ends_alike:
                last = self._doubted[-1]
                alike = Verdict(outcome="failed", error=last.error, message=last.message)
                self._end(self.health.ended(alike))
        finally:
            self._stopping = True
            self._settle_doubted()
        if self._failure is not None:
            raise self._failure

    def _end(self, verdict: Verdict) -> None:
        """Stop for the reason that a verdict gives."""
        self.stopped_by = self.stopped_by or verdict
        self.stop()

    # rows

    async def _pull(self, rows: AsyncIterator[Row], tasks: asyncio.TaskGroup) -> None:
        """Start the rows one by one, each once the pacer has let the previous one go."""
        with self._guarded(), self._waiting():
            while not self._stopping:
                while self._resting >= self.pacer.window:  # as many may rest as may be in flight
                    self._rested.clear()
                    await self._rested.wait()
                row = await anext(rows, None)
                if row is None:
                    return
                await self._begin(row, tasks)

    async def _begin(self, row: Row, tasks: asyncio.TaskGroup) -> None:
        """Start a row, and return when it is sent; await its end while the prompt cache is cold."""
        entered = asyncio.Event()
        task = tasks.create_task(self._answer_row(row, entered))
        if self._warm and not self.health.answered:
            await asyncio.wait([task])
        else:
            await entered.wait()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let an error stop the run; `answer` raises it once all calls in flight have ended."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - see above
            self._failure = self._failure or error
            self.stop()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Let `stop` cancel this task here, where it has no call in flight."""
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            yield
        finally:
            self._idle.discard(task)

    # one row

    async def _answer_row(self, row: Row, entered: asyncio.Event) -> None:
        """Try a row until it is answered, fails for good, is given up, or the run stops."""
        tries = Tries(self.health.answered)
        with self._guarded():
            while await self._affords(row.worst_dollars):
                with self._purse.reserved(row.worst_dollars):
                    with self._waiting():
                        permit = await self.pacer.acquire(row.input_tokens)
                    entered.set()
                    verdict = await self._attempt(row, permit, tries)
                if self._stopping or verdict.outcome in _NO_MORE or tries.are_enough:
                    return
                if verdict.outcome != "refused":  # the pacer knows how long a rate limit lasts
                    await self._back_off(tries)

    async def _affords(self, worst: float) -> bool:
        """Whether the budget allows a call; while it is short, wait for calls in flight to release theirs."""
        while not self._purse.affords(worst):
            if not self._purse.calls:
                self._end(Verdict(outcome="stop", error="budget"))
                return False
            self._purse.changed.clear()
            with self._waiting():
                await self._purse.changed.wait()
        return not self._stopping

    async def _attempt(self, row: Row, permit: Permit, tries: Tries) -> Verdict:
        """Send once, settle with the pacer and the purse, record, and return the verdict on the row."""
        sent = self._clock.seconds()
        try:
            answer = await self._answer_in_time(row, sent, tries.patience)
        except BaseException:
            self.pacer.settle(permit, Outcome("failed"))
            raise
        now = self._clock.seconds()
        verdict, readings = answers.verdict(answer), read_headers(answer.headers)
        attempt = self._job.attempt(row.key, answer, verdict, sent=sent, seconds=now - sent)
        used = float(attempt.uncached_tokens), float(attempt.output_tokens)
        if verdict.unseen:
            used = row.input_tokens, self.pacer.expected_output_tokens
        # The first call writes the prefix that the others read from the prompt cache.
        typical = not self._warm or self.health.answered > 0
        self.pacer.settle(permit, Outcome(kind_of(verdict, answer.status), readings, *used, typical=typical))
        self._purse.pay(row.worst_dollars if verdict.unseen else attempt.dollars)
        wait_seconds = readings.retry_after_seconds or 0.0
        waits = verdict.outcome == "refused" and wait_seconds >= LEAST_WAIT_SECONDS
        verdict = self.health.judged(verdict, answer.status, now, waits=waits)
        if verdict.outcome == "failed" and verdict.final:
            self._doubted.append(attempt)
        else:
            self._job.record(attempt, final=verdict.outcome == "answered")
        if verdict.outcome == "answered":
            self._learn(attempt)
            return verdict
        _LOG.debug("%s: %s, status %s, %.1f s", verdict.outcome, verdict.error, answer.status, now - sent)
        if verdict.outcome == "stop":
            self._end(verdict)
        tries.count(verdict, attempt.seconds, wait_seconds, self.health.answered)
        return verdict

    def _settle_doubted(self, before: float = math.inf) -> None:
        """Record rows that failed before this moment, as final if the rows themselves are to blame."""
        doubted, self._doubted = self._doubted, []
        for attempt in doubted:
            if attempt.sent_at + attempt.seconds <= before:
                self._job.record(attempt, final=self.health.blames_rows)
            else:
                self._doubted.append(attempt)

    def _learn(self, attempt: Attempt) -> None:
        """Settle doubted rows, adjust timeouts, and wake resting rows after an answer."""
        if self._doubted:
            self._settle_doubted(before=attempt.sent_at)
        slower = attempt.seconds > self._slowest_seconds
        self._slowest_seconds = max(self._slowest_seconds, attempt.seconds)
        if slower or self.health.answered == FEW_ANSWERS:
            for call in self._calls:  # the timeouts of earlier calls depend on it as well
                self._set_timeout(call)
        for called in list(itertools.islice(self._waiting_for_life, 2)):  # one answer wakes two rows
            del self._waiting_for_life[called]
            called.set()

    # how long a call may take

    async def _answer_in_time(self, row: Row, sent: float, patience: float) -> Answer:
        """Return the API's answer, or a timeout once the call takes far longer than others did."""
        call = Call(asyncio.timeout(None), asyncio.get_running_loop().time(), patience)
        try:
            async with call.timeout:
                self._calls.add(call)
                self._set_timeout(call)
                return await self._job.wire.send(row.body)
        except TimeoutError:
            if not call.timeout.expired():
                raise
            waited = self._clock.seconds() - sent
            slowest = f"the slowest so far took {self._slowest_seconds:,.1f} s"
            return Answer(None, {}, b"", "timeout_error", reason=f"none in {waited:,.0f} s, and {slowest}")
        finally:
            self._calls.discard(call)

    def _set_timeout(self, call: Call) -> None:
        """Set the timeout of a call: at least a minute, and at least what its longest reply takes."""
        if self._streams or self.health.answered < FEW_ANSWERS or call.timeout.expired():
            return
        usual = max(_FAR_ABOVE * self._slowest_seconds, self._full_reply_seconds, LEAST_TIMEOUT_SECONDS)
        seconds = max(self._clock.real(usual * call.patience), _LEAST_REAL_SECONDS)
        call.timeout.reschedule(call.began + seconds)

    # between two tries

    async def _back_off(self, tries: Tries) -> None:
        """Back off exponentially, with jitter, and at least as long as the API asked for."""
        # During an outage the rows that rest are woken early: each answer wakes two of them, so that calls
        # resume as fast as the API can bear.
        longest = min(0.5 * 2.0 ** (tries.failed - 1), LONGEST_BACKOFF_SECONDS)
        seconds = longest * self._random.uniform(0.5, 1.0)
        called = asyncio.Event()
        if self.health.is_silent:
            self._waiting_for_life[called] = None
        self._resting += 1
        try:
            with self._waiting():
                await self._clock.sleep(tries.wait_seconds)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._clock.real(seconds - tries.wait_seconds)):
                        await called.wait()
        finally:
            self._resting -= 1
            self._rested.set()
            self._waiting_for_life.pop(called, None)
