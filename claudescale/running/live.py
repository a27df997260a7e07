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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from claudescale.api.answers import Answer, Verdict, verdict
from claudescale.api.client import reply_seconds, streams
from claudescale.api.limits import read_headers
from claudescale.pacing.pacer import Outcome, kind_of
from claudescale.running.batch_rules import Streak

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from claudescale.ledger.records import Attempt
    from claudescale.pacing.pacer import Pacer, Permit
    from claudescale.running.job import Job, Row

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


class Live:
    """Answers rows over the Messages API: as many at once as the pacer lets go, pulled from one iterator.

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
        self._full_reply_seconds = reply_seconds(job.plan.max_tokens) + _SPARE_SECONDS
        self._streams = streams(job.plan.max_tokens)  # then the transport alone decides
        self._calls: dict[asyncio.Timeout, tuple[float, float]] = {}  # the loop's time of each, its patience
        # rows
        self._stopping = self._exhausted = False
        self._under_way = self._resting = 0
        self._entering: Row | None = None  # it has not had its turn yet, so no other is pulled
        self._changed = asyncio.Event()
        self._idle: set[asyncio.Task[Any]] = set()  # tasks that wait, and have no call in flight
        self._waiting_for_life: dict[asyncio.Event, None] = {}
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Send nothing more; what is in flight is awaited, for it is paid for.

        Spends: nothing.
        """
        self._stopping = True
        for task in self._idle:
            task.cancel()

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row has its answer, or the run was stopped (`stopped_by` says why).

        An error of `record` or `rows` is raised when what was in flight is in. A cancellation does not
        wait for it.

        Spends: tokens.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pull(rows, tasks))
            if self._exhausted and self._doubted and self.health.ends_alike:
                last = self._doubted[-1]
                self._end(Verdict(outcome="failed", error=last.error, message=last.message))
        finally:
            self._stopping = True
            self._settle_doubted()
        if self._failure is not None:
            raise self._failure

    # rows

    async def _pull(self, rows: AsyncIterator[Row], tasks: asyncio.TaskGroup) -> None:
        """Start a task for each row as soon as the one before has had its turn."""
        with self._guarded():
            while not self._stopping:
                with self._waiting():
                    while self._is_full:
                        self._changed.clear()
                        await self._changed.wait()
                    row = await anext(rows, None)
                if row is None:
                    self._exhausted = True
                    return
                self._under_way += 1
                self._entering = row
                task = tasks.create_task(self._answer_row(row))
                task.add_done_callback(partial(self._left, row))

    @property
    def _is_full(self) -> bool:
        """Whether no other row may begin; of those between two tries as many may rest as may be in flight."""
        if self._warm and not self.health.answered:
            return self._under_way > 0
        return self._entering is not None or self._resting >= self.pacer.window

    def _entered(self, row: Row) -> None:
        """Let another row be pulled."""
        if self._entering is row:
            self._entering = None
        self._changed.set()

    def _left(self, row: Row, _task: asyncio.Task[None]) -> None:
        self._under_way -= 1
        self._entered(row)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Have an error stop the run; it is raised when what is in flight is in."""
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

    async def _answer_row(self, row: Row) -> None:
        """Try a row until it is answered, fails for good, or the run stops."""
        tries = blamed = refusals = hung = 0
        lost_seconds = 0.0
        answered = self.health.answered
        with self._guarded():
            while await self._affords(row.worst_dollars):
                with self._purse.reserved(row.worst_dollars):
                    with self._waiting():
                        permit = await self.pacer.acquire(row.input_tokens)
                    self._entered(row)
                    found, seconds, wait_seconds = await self._attempt(row, permit, 2.0**hung)
                if self._stopping or found.outcome in {"answered", "failed", "stop"}:
                    return
                if found.outcome == "refused":
                    refusals += wait_seconds >= LEAST_WAIT_SECONDS
                    if refusals >= MOST_REFUSALS:
                        return
                    continue  # the pacer knows how long to wait
                hung += found.error == "timeout_error"
                tries += 1
                blamed += self.health.answered > answered  # others were answered meanwhile: it may be the row
                answered = self.health.answered
                lost_seconds += min(seconds, MOST_LOST_SECONDS / 3)  # or it was this process that slept
                given_up = blamed >= MOST_TRIES or tries >= MOST_TRIES_IN_SILENCE
                if given_up or lost_seconds >= MOST_LOST_SECONDS:
                    return
                await self._back_off(tries, wait_seconds)

    async def _affords(self, worst: float) -> bool:
        """Wait for what is in flight where not enough is left; False where nothing is."""
        while not self._purse.affords(worst):
            if not self._purse.calls:
                self._end(Verdict(outcome="stop", error="budget"))
                return False
            self._purse.changed.clear()
            with self._waiting():
                await self._purse.changed.wait()
        return not self._stopping

    async def _attempt(self, row: Row, permit: Permit, patience: float) -> tuple[Verdict, float, float]:
        """Send once, settle with the pacer, record.

        Returns what came of it, how long it took, and how long the API says to wait.
        """
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
        used = float(attempt.uncached_tokens), float(attempt.output_tokens)
        if found.unseen:
            used = row.input_tokens, self.pacer.expected_output_tokens
        # The first one wrote the prefix that the others read.
        typical = not self._warm or self.health.answered > 0
        self.pacer.settle(permit, Outcome(kind_of(found, answer.status), readings, *used, typical=typical))
        self._purse.pay(row.worst_dollars if found.unseen else attempt.dollars)
        wait_seconds = readings.retry_after_seconds or 0.0
        waiting = found.outcome == "refused" and wait_seconds >= LEAST_WAIT_SECONDS
        if self.health.sees(found, now, status=answer.status, waiting=waiting):
            self._end(found)
        if found.outcome == "failed" and found.final:
            self._doubted.append(attempt)  # until it is known whether the row is to blame
        else:
            self._job.record(attempt, final=found.final and found.outcome == "answered")
        if found.outcome == "answered":
            self._learn_times(attempt.seconds)
            self._settle_doubted(before=sent)
            for called in list(itertools.islice(self._waiting_for_life, 2)):  # a sign of life for two
                del self._waiting_for_life[called]
                called.set()
        else:
            _LOG.debug("%s: %s, status %s, %.1f s", found.outcome, found.error, answer.status, now - sent)
        return found, attempt.seconds, wait_seconds

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
        """Wait twice as long after each failure, with jitter."""
        # A row that waits because nothing at all is answered need not wait any longer than that: each answer
        # calls two of them, so after an outage the calls come back as fast as the API bears them.
        seconds = min(0.5 * 2.0 ** (tries - 1), LONGEST_BACKOFF_SECONDS) * self._random.uniform(0.5, 1.0)
        called = asyncio.Event()
        if self.health.silence.count > FEW_FAILURES:
            self._waiting_for_life[called] = None
        self._resting += 1
        try:
            with self._waiting():
                await self._clock.sleep(at_least_seconds)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._clock.real(seconds - at_least_seconds)):
                        await called.wait()
        finally:
            self._resting -= 1
            self._waiting_for_life.pop(called, None)
            self._changed.set()


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
