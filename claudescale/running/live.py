"""Rows to replies over the Messages API, retried in this one place.

`Live` keeps as many requests under way as the pacer lets go. What one answer means is decided in `answers`,
what all of them say of the run in `Health`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from claudescale.api.answers import Answer, Verdict, verdict
from claudescale.api.client import streams
from claudescale.api.limits import read_headers
from claudescale.pacing.pacer import Outcome, kind_of
from claudescale.running.batch_rules import Streak

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from claudescale.api.limits import Readings
    from claudescale.ledger.records import Attempt
    from claudescale.pacing.pacer import Pacer, Permit
    from claudescale.running.job import Job, Row

T = TypeVar("T")

_LOG = logging.getLogger("claudescale.running")
MOST_TRIES = 8
"""Of one row while others are answered, refusals for the limits not counted."""
MOST_TRIES_IN_SILENCE = 16
"""Of one row while nothing at all is answered: then it is hardly the row."""
MOST_LOST_SECONDS = 1_800.0
"""Of one row in calls that failed: a call that hangs costs up to ten minutes of it."""
MOST_REFUSALS = 100
"""Of one row by the limits: past it something is wrong that waiting does not mend."""
LEAST_WAIT_SECONDS = 1.0
"""What a refusal says to wait at least, if it says anything: less is no wait."""
LONGEST_BACKOFF_SECONDS = 60.0
FEW_ANSWERS = 20
"""So many tell how long an answer takes."""
LEAST_TIMEOUT_SECONDS = 60.0
_FAR_ABOVE = 10.0
"""So many times as long as the slowest answer so far is no answer any more."""
_SPARE_SECONDS = 30.0
_LEAST_REAL_SECONDS = 10.0
"""Of a call to a fast simulator: this machine takes its time as well."""

# what ends a run
HOPELESS_ROWS = 40
"""Rows that fail with the same words before any is answered: the request is wrong, not the row."""
HOPELESS_ROWS_LATER = 320
"""The same in a row, once some are answered: every eighth of them is from elsewhere in the frame."""
_ALIKE_AT_THE_END = 100
HOPELESS_ANSWERS = 20
"""Answers in a row that are no Message and may be billed."""
_DOUBTED = frozenset({401, 403, 404})
"""Of a key, a right, a model; but a load balancer may say so by mistake of one that has answered."""
DOUBTS = 5
"""So many 401s, 403s or 404s in a row, `DOUBT_SECONDS` long, end a run in which others were answered."""
DOUBT_SECONDS = 5.0
SILENT_SECONDS = 600.0
"""How long an API that was reached may give nothing but failures."""
UNREACHABLE_SECONDS = 20.0
"""How long an API may not be reached at all."""
FEW_FAILURES = 8
"""In a row: however long they took, they may be chance where few calls go at once."""
ASLEEP_SECONDS = 7_200.0
"""Between two failures: no call and no wait takes so long, so it was this process that stood still."""
_IDS = re.compile(r"\b(?:req_\w+|[0-9a-f]{8}-[0-9a-f-]{27})\b")  # they differ in words that are the same


class Tried(NamedTuple):
    """One try of a row: what came of it, how long it took, and how long the API says to wait."""

    found: Verdict
    seconds: float
    retry_after_seconds: float


class Live:
    """Answers rows over the Messages API: bounded workers that pull from one iterator.

    Spends: tokens.

    Parameters
    ----------
    job : Job
        Whose rows these are.
    pacer : Pacer
        Who may go now.
    warm : bool
        Send one row alone until one is answered, so that the others find its prefix in the cache.
    seed : int
        Of the jitter between tries.

    Attributes
    ----------
    stopped_by : Verdict or None
        Why nothing more was sent.
    """

    def __init__(self, job: Job, pacer: Pacer, *, warm: bool = False, seed: int = 0) -> None:
        self.pacer = pacer
        self.stopped_by: Verdict | None = None
        self.health = Health(known_good=job.meter.reused > 0)
        self._job = job
        self._clock = job.clock
        self._purse = job.purse
        self._warm = warm
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        self._loop = asyncio.get_running_loop()
        self._doubted: list[Attempt] = []  # of rows that failed, until it is known whether they are to blame
        # how long answers take
        self._slowest_seconds = 0.0
        # As the SDK expects of a reply. Source: anthropic 2.14.0 _base_client.py.
        self._full_reply_seconds = job.plan.max_tokens * 3600 / 128_000 + _SPARE_SECONDS
        self._streams = streams(job.plan.max_tokens)  # then the transport alone decides
        self._calls: dict[asyncio.Timeout, tuple[float, float]] = {}  # the loop's time of each, its patience
        # workers
        self._rows: AsyncIterator[Row]
        self._stopping = self._exhausted = False
        self._pull = asyncio.Lock()
        self._waits: set[asyncio.Timeout] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._resting = 0
        self._waiting_for_life: dict[asyncio.Event, None] = {}
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Send nothing more; what is in flight is awaited, for it is paid for.

        Spends: nothing.
        """
        if self._stopping:
            return
        self._stopping = True
        for wait in self._waits:
            wait.reschedule(self._loop.time())

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row has its answer, or the run was stopped (`stopped_by` says why).

        An error of `record` or `rows` is raised when what was in flight is in. A cancellation does not
        wait for it.

        Spends: tokens.
        """
        self._rows = rows
        self._spawn()
        try:
            if self._workers:
                await self._ended.wait()
            if self._exhausted and self._doubted and self.health.ends_alike:
                last = self._doubted[-1]
                self._end(Verdict(outcome="failed", error=last.error, message=last.message))
        finally:
            self.stop()
            workers = tuple(self._workers)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._settle_doubted()
        if self._failure is not None:
            raise self._failure

    # workers

    @property
    def _active(self) -> int:
        """Workers that have, or wait for, a call; of those between two tries as many again may rest."""
        return len(self._workers) - min(self._resting, self.pacer.window)

    def _spawn(self) -> None:
        """One more worker, while one more call could be under way."""
        warming = self._warm and not self.health.answered and self._workers
        done = self._stopping or self._exhausted
        if self._active < self.pacer.window and not warming and not done:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._finished)

    def _finished(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and (failure := worker.exception()) is not None:
            self._failure = self._failure or failure
            self.stop()
        if not self._workers:
            self._ended.set()

    async def _work(self) -> None:
        while not self._stopping and (row := await self._unless_stopped(self._next())) is not None:
            await self._answer_row(row)
            if self._active > self.pacer.window:  # others took this one's place while it rested
                return

    async def _unless_stopped(self, waiting: Awaitable[T]) -> T | None:
        """Return what it gives, or None as soon as the run is stopped."""
        wait = asyncio.timeout(0 if self._stopping else None)
        self._waits.add(wait)
        try:
            async with wait:
                return await waiting
        except TimeoutError:
            if not wait.expired():
                raise
            return None
        finally:
            self._waits.discard(wait)

    async def _next(self) -> Row | None:
        async with self._pull:
            row = None if self._exhausted else await anext(self._rows, None)
            self._exhausted = row is None
            return row

    # one row

    async def _answer_row(self, row: Row) -> None:
        """Try a row until it is answered, fails for good, or the run stops."""
        tries = blamed = refusals = hung = 0
        lost_seconds = 0.0
        answered = self.health.answered
        while (tried := await self._try(row, 2.0**hung)) is not None:
            found = tried.found
            if found.outcome in {"answered", "failed", "stop"}:
                return
            if found.outcome == "refused":
                refusals += tried.retry_after_seconds >= LEAST_WAIT_SECONDS
                if refusals >= MOST_REFUSALS:
                    return
                continue  # the pacer knows how long to wait
            hung += found.error == "timeout_error"
            tries += 1
            blamed += self.health.answered > answered  # others were answered meanwhile: it may be the row
            answered = self.health.answered
            lost_seconds += min(tried.seconds, MOST_LOST_SECONDS / 3)  # or it was this process that slept
            if blamed >= MOST_TRIES or tries >= MOST_TRIES_IN_SILENCE or lost_seconds >= MOST_LOST_SECONDS:
                return
            await self._back_off(tries, tried.retry_after_seconds)

    async def _try(self, row: Row, patience: float) -> Tried | None:
        """Send a row once, when money and limits allow it; None where the run stops before that."""
        if not await self._afford(row.worst_dollars):
            return None
        with self._purse.reserved(row.worst_dollars):
            permit = await self._unless_stopped(self.pacer.acquire(row.input_tokens))
            if permit is not None and self._stopping:
                self.pacer.settle(permit, Outcome("failed"))
                permit = None
            if permit is None:
                return None
            self._spawn()
            return await self._attempt(row, permit, patience)

    async def _afford(self, worst: float) -> bool:
        """Wait for what is in flight where not enough is left; False where nothing is, or the run stops."""
        while not self._stopping and not self._purse.affords(worst):
            if not self._purse.calls:
                self.stopped_by = self.stopped_by or Verdict(outcome="stop", error="budget")
                self.stop()
                return False
            self._purse.changed.clear()
            await self._unless_stopped(self._purse.changed.wait())
        return not self._stopping

    async def _attempt(self, row: Row, permit: Permit, patience: float) -> Tried:
        """Send once, settle with the pacer, record."""
        sent = self._clock.seconds()
        try:
            answer = await self._answer_in_time(row, sent, patience)
        except BaseException:
            self.pacer.settle(permit, Outcome("failed"))
            raise
        now = self._clock.seconds()
        found = self.health.judged(verdict(answer), answer.status, sent, now)
        readings = read_headers(answer.headers)
        attempt = self._job.attempt(row.key, answer, found, sent=sent, seconds=now - sent)
        self.pacer.settle(permit, self._outcome(row, found, attempt, readings))
        self._purse.pay(row.worst_dollars if found.unseen else attempt.dollars)
        wait_seconds = readings.retry_after_seconds or 0.0
        waiting = found.outcome == "refused" and wait_seconds >= LEAST_WAIT_SECONDS
        if self.health.sees(found, now, status=answer.status, waiting=waiting):
            self._end(found)
        if found.outcome == "answered":
            self._call_back()
            self._learn_times(attempt.seconds)
        if found.outcome == "failed" and found.final:
            self._doubted.append(attempt)  # until it is known whether the row is to blame
        else:
            self._job.record(attempt, final=found.final and found.outcome == "answered")
        if found.outcome == "answered":
            self._settle_doubted(before=sent)
        else:
            _LOG.debug("%s: %s, status %s, %.1f s", found.outcome, found.error, answer.status, now - sent)
        return Tried(found, attempt.seconds, wait_seconds)

    def _outcome(self, row: Row, found: Verdict, attempt: Attempt, readings: Readings) -> Outcome:
        """Return what the pacer has to know of a call."""
        if (kind := kind_of(found, attempt.status)) != "answered":
            return Outcome(kind, readings)
        used = float(attempt.uncached_tokens), float(attempt.output_tokens)
        if found.unseen:
            used = row.input_tokens, self.pacer.expected_output_tokens
        # The first one wrote the prefix that the others read.
        return Outcome(kind, readings, *used, typical=not self._warm or self.health.answered > 0)

    def _settle_doubted(self, before: float = math.inf) -> None:
        """Record rows that failed before a call was sent: for good, if that was answered, or others were."""
        doubted, self._doubted = self._doubted, []
        for attempt in doubted:
            if attempt.sent_at + attempt.seconds <= before:
                self._job.record(attempt, final=self.health.blames_rows)
            else:
                self._doubted.append(attempt)

    async def _answer_in_time(self, row: Row, sent: float, patience: float) -> Answer:
        """Return what comes back, or a lost answer once it takes far longer than others did."""
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._calls[wait] = self._loop.time(), patience
                self._limit(wait)
                return await self._job.wire.send(row.body)
        except TimeoutError:
            if not wait.expired():
                raise
            waited = self._clock.seconds() - sent
            slowest = f"the slowest so far took {self._slowest_seconds:,.1f} s"
            return Answer(None, {}, b"", "timeout_error", reason=f"none in {waited:,.0f} s, and {slowest}")
        finally:
            self._calls.pop(wait, None)

    def _learn_times(self, seconds: float) -> None:
        """Note how slow answers are; calls under way have as long as what is known by now says."""
        slower = seconds > self._slowest_seconds
        self._slowest_seconds = max(self._slowest_seconds, seconds)
        if slower or self.health.answered == FEW_ANSWERS:
            for wait in self._calls:
                self._limit(wait)

    def _limit(self, wait: asyncio.Timeout) -> None:
        """Set how long a call may take: never below a minute, nor less than its longest reply would."""
        if self._streams or self.health.answered < FEW_ANSWERS or wait.expired():
            return
        began, patience = self._calls[wait]
        usual = max(_FAR_ABOVE * self._slowest_seconds, self._full_reply_seconds, LEAST_TIMEOUT_SECONDS)
        wait.reschedule(began + max(self._clock.real(usual * patience), _LEAST_REAL_SECONDS))

    def _end(self, found: Verdict) -> None:
        """Stop for the reason that a verdict gives; of rows that failed alike, say how many."""
        if found.outcome == "failed" and (self.health.is_hopeless or self.health.ends_alike):
            words = f"{self.health.repeats:,} consecutive rows, from all over the frame, got the same answer"
            found = replace(found, message=f"{words}: {found.message}")
        self.stopped_by = self.stopped_by or found
        self.stop()

    async def _back_off(self, tries: int, at_least_seconds: float) -> None:
        """Wait twice as long after each failure, with jitter, or until the run stops."""
        # A row that waits because nothing at all is answered need not wait any longer than that: each answer
        # calls two of them, so after an outage the calls come back as fast as the API bears them.
        seconds = min(0.5 * 2.0 ** (tries - 1), LONGEST_BACKOFF_SECONDS) * self._random.uniform(0.5, 1.0)
        called = asyncio.Event()
        if self.health.silence.count > FEW_FAILURES:
            self._waiting_for_life[called] = None
        self._resting += 1
        self._spawn()
        try:
            await self._unless_stopped(self._rest(seconds, at_least_seconds, called))
        finally:
            self._resting -= 1
            self._waiting_for_life.pop(called, None)

    async def _rest(self, seconds: float, at_least_seconds: float, called: asyncio.Event) -> None:
        await self._clock.sleep(at_least_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._clock.real(seconds - at_least_seconds)):
                await called.wait()

    def _call_back(self) -> None:
        """Let two of those go that wait for a sign of life."""
        for called in list(itertools.islice(self._waiting_for_life, 2)):
            del self._waiting_for_life[called]
            called.set()


@dataclass(slots=True)
class Health:
    """What the answers so far say of the run and not of single rows."""

    known_good: bool = False
    answered: int = 0
    reached: bool = False
    silence: Streak = field(default_factory=Streak)
    failed_at: float = 0.0
    words: str | None = None
    repeats: int = 0
    doubts: Streak = field(default_factory=Streak)
    doubted_at: float = -math.inf

    def judged(self, found: Verdict, status: int | None, sent: float, now: float) -> Verdict:
        """Return a verdict in the light of what was answered: one 401 does not make a good key wrong."""
        said = found.outcome == "stop" or (found.outcome == "failed" and not found.final)
        if status not in _DOUBTED or not said or not self.answered:
            return found
        if sent >= self.doubted_at:  # else it went before anybody had a doubt
            self.doubts.add(now)
            self.doubted_at = now
        lasting = self.doubts.lasts(now, seconds=DOUBT_SECONDS, count=DOUBTS)
        return found if lasting else replace(found, outcome="again")

    def sees(self, found: Verdict, now: float, *, status: int | None, waiting: bool) -> bool:
        """Take one verdict, and return whether the run should end.

        `waiting` is a refusal with a wait that means something: no answer, but no silence either.
        """
        self.reached |= status is not None
        if found.outcome == "answered":
            self.answered += 1
            self.silence, self.doubts, self.words, self.repeats = Streak(), Streak(), None, 0
            return False
        if found.outcome == "stop":
            return True
        if waiting:
            self.silence = Streak()
            return False
        return self._is_hopeless(found, status) or self._is_silent(found, now)

    def _is_hopeless(self, found: Verdict, status: int | None) -> bool:
        """Whether the API says the same of every row."""
        if found.outcome != "failed" and not (found.unseen and status is not None):
            return False
        words = _IDS.sub("", f"{found.error}: {found.message}")
        self.repeats = self.repeats + 1 if words == self.words else 1
        self.words = words
        return self.is_hopeless or (found.unseen and self.repeats >= HOPELESS_ANSWERS)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many rows failed alike that it is the request, or the account, and not they."""
        return self.repeats >= (HOPELESS_ROWS_LATER if self.answered or self.known_good else HOPELESS_ROWS)

    @property
    def ends_alike(self) -> bool:
        """Whether the last rows of a run failed alike, so many that it should be said."""
        known = self.answered or self.known_good
        return self.repeats >= (_ALIKE_AT_THE_END if known else HOPELESS_ANSWERS)

    @property
    def blames_rows(self) -> bool:
        """Whether a row that failed is to blame for it: others are answered, and not all fail alike."""
        return (self.known_good or self.answered > 0) and self.repeats < HOPELESS_ROWS

    def _is_silent(self, found: Verdict, now: float) -> bool:
        """Whether there have been nothing but failures for too long."""
        if found.outcome == "failed" or now - self.failed_at > ASLEEP_SECONDS:
            self.silence = Streak()
        if found.outcome == "failed":
            return False
        self.failed_at = now
        self.silence.add(now)
        patience = SILENT_SECONDS if self.reached else UNREACHABLE_SECONDS
        return self.silence.lasts(now, seconds=patience, count=FEW_FAILURES + 1)
