"""Rows to replies over Message Batches: what to submit, when to look, what to collect, when to stop.

The order that makes it once: rows are claimed, the intent is on the disk, the batch is posted and never
posted again, its id is on the disk, its results are on the disk, the batch is closed. Wherever that stops,
the ledger knows the batch, and the next run takes it over. Sizes, waits and meanings are decided in
`batch_rules`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale import loops
from claudescale.api import catalog
from claudescale.api.answers import (
    DOUBTED,
    DRY_RUN,
    STOPPING_ERRORS,
    WORDS,
    Answer,
    Verdict,
    read_object,
    verdict,
)
from claudescale.api.client import BatchWire, Parts, listed
from claudescale.api.limits import read_headers
from claudescale.ledger.records import Batch
from claudescale.running import batch_rules
from claudescale.running.batch_results import attempts, missing_lines, proves

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from claudescale.running.job import Job

_LOG = logging.getLogger("claudescale.running")

# submitting
RETIRED = "model_retired"
"""The `error` of a run whose model can be called no more."""
MOST_ROUNDS = 3
"""Batches that one row goes into, if it expires or fails in each."""
MOST_FAILURES = 8
"""Posts in a row that surely made no batch, before the run ends."""
_FAILURES_LATER = 100
"""The same once a batch was made: with the waits between them, some hours."""
_LONGEST_HOLD = 300.0
_MOST_REFUSALS = 3
_GRACE_SECONDS = 10.0  # real ones
_REQUESTS_PER_MINUTE = 50
"""Calls to the batch endpoints where their limit is not known: that of the lowest tier."""

# looking
MOST_READS = 3
"""Times that results are read to their end which lack lines."""
MOST_MISSING = 20
MOST_MISSING_SHARE = 0.05
"""Where more lines are missing than both of these it is no slip, and their rows are not sent again."""
MISSED_LOOKS = 5
MISSED_SECONDS = 120.0
"""So often in a row, and for so long, must a batch not be shown, or a key that was good be refused."""
SILENT_SECONDS = 6 * 3_600.0
"""How long the API may not be reached while batches are out: they lose nothing by waiting."""
FEW_LOOKS = 8
"""In vain in a row, however long ago the last good one is: a computer that wakes has no network at first."""
_PAGE = 100
_SEVERAL = 2
_STOPS = pl.col("error").is_in(list(STOPPING_ERRORS))
_REFUSALS = pl.col("error").is_in(["invalid_request_error", "request_too_large"]) & ~pl.col("final")
_UNCLEAR = pl.col("error").is_in(["invalid_response", "result_missing"])


class Refusals(NamedTuple):
    """How many rows of a batch were refused alike, for a reason that another try would meet again.

    Only those that count as no last word, as hardly a row of their batch was answered.
    """

    batch: Batch
    rows: int
    error: str | None
    message: str | None


class Batches:
    """Answers rows over Message Batches; `answer` does it, once.

    Spends: half of what the rows cost live.

    Parameters
    ----------
    job : Job
        Whose rows these are.

    Attributes
    ----------
    open : dict
        By nonce, the batches that this run follows and that are not closed yet.
    stuck : dict
        By nonce, why this run cannot bring in some of those; they go on holding their rows.
    closed : list of Batch
        The others, in the order they were closed.
    adopted : set of str
        Keys of rows that a batch of an earlier run held.
    submitted, switched, freed : asyncio.Event
        All is submitted that the queue has room for; nothing more will be, as the time is up; and what
        was out is canceled and collected too.
    """

    def __init__(self, job: Job) -> None:
        plan = job.plan
        self.open: dict[str, Batch] = {}
        self.stuck: dict[str, Verdict] = {}
        self.closed: list[Batch] = []
        self.adopted: set[str] = set()
        self.submitted, self.switched, self.freed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._job = job
        self._ledger = job.ledger
        self._clock = job.clock
        self._purse = job.purse
        self._wire = BatchWire(
            job.wire, job.clock, plan.compiled.limits.batch_requests_per_minute or _REQUESTS_PER_MINUTE
        )
        self._requests = job.batch_requests()
        self._hands_over = plan.mode == "hybrid"  # where no batch can be made, live calls do the rest
        self._prime = plan.cache and plan.compiled.prompt.is_cacheable  # one row alone writes the cache first
        # what is to be submitted
        self._left = self._others = self._requests.clear()
        self._submits = self._stopping = self._leaving = False
        self._queue_requests = plan.compiled.limits.batch_queue_requests or catalog.BATCH.max_requests
        self._most_requests = catalog.BATCH.max_requests
        self._most_bytes = batch_rules.FULL_BYTES
        self._rounds: Counter[str] = Counter()
        self._hold_until = self._others_at = self._ahead_seconds = 0.0
        self._failures = self._refusals = 0
        self._alike: list[Refusals] = []  # of the last batches, in which nearly all rows were refused
        self._no_more: Verdict | None = None  # why nothing more is submitted
        self._woken = asyncio.Event()
        # what is out
        self._nothing_learned: Verdict | None = None  # why nothing more can be learned of what is out
        self._is_silent = False
        self._changed_at = self._reached_at = job.clock.seconds()
        self._looks_in_vain = 0
        self._lost: dict[str, float] = {}  # until when a batch without an answer may still appear
        self._foreign: dict[str, set[str]] = {}  # by nonce, batches that were looked at and are not this one
        self._missed: dict[str, tuple[float, int]] = {}  # by nonce, since when and how often it was not shown
        self._accepted = self._readable = self._made_none = False
        self._doubts, self._doubted_at = 0, 0.0
        self._reads: Counter[str] = Counter()
        self._refused: dict[str, dict[str, tuple[str, str]]] = {}  # by nonce and key, error and message
        self._canceled: set[str] = set()  # batches whose cancellation is not somebody else's doing now

    # the handle

    @property
    def stopped_by(self) -> Verdict | None:
        """Why nothing more was submitted."""
        return self._no_more or self._nothing_learned

    @property
    def is_refused(self) -> bool:
        """Whether there is a reason to stop, which live calls would meet as well."""
        found = self._no_more
        if found is None or self._nothing_learned is not None:
            return self._nothing_learned is not None
        if not self._hands_over or found.error in {"budget", RETIRED}:
            return True
        # A key and a model that answer live are good: then it is the batches that the API does not have.
        only_here = found.error in DOUBTED and self._job.known_good
        return found.error in STOPPING_ERRORS and not only_here

    @property
    def waited(self) -> list[Batch]:
        """Batches that are still to come in."""
        return [batch for nonce, batch in self.open.items() if nonce not in self.stuck]

    @property
    def known(self) -> list[Batch]:
        """Those of them that surely are at the API."""
        return [batch for batch in self.waited if batch.batch_id is not None]

    @property
    def why_stuck(self) -> Verdict | None:
        """What to say of batches that could not be brought in."""
        if not self.stuck:
            return None
        first, *more = self.stuck.values()
        if not more:
            return first
        words = f"this is so of {len(self.stuck)} batches, one of them: {first.message}"
        return Verdict(outcome="stop", error=first.error, message=words)

    def expected(self) -> batch_rules.Expected | None:
        """Return when the last batch ends, as far as that can be told."""
        return batch_rules.expected_end([*self.closed, *self.waited], self._clock.seconds())

    def stop(self) -> None:
        """Submit nothing more and cancel what is out; what was answered comes in. From the loop's thread.

        Spends: what the API has answered by then.
        """
        self._stopping = True
        self._woken.set()

    def leave(self) -> None:
        """Submit nothing more and let what is out go on without this run. From the loop's thread.

        Spends: nothing more; what is out is paid for when it is answered.
        """
        self._leaving = True
        self._woken.set()

    async def answer(self, keys: pl.Series, *, until: Callable[[], float] = lambda: math.inf) -> None:
        """Return when every row has its answer or was given up, or this was stopped.

        Batches of earlier runs that hold one of the run's rows are taken over first.

        Spends: half of what the rows cost live.

        Parameters
        ----------
        keys : pl.Series
            Of the requests to send.
        until : callable, optional
            Gives the API second at which to stop; asked again each time the batches are looked at.
        """
        self._submits = True
        self._left = self._requests.filter(pl.col("key").is_in(keys.implode()))
        await self.adopt()
        await self._check()
        await self._go(until)

    async def follow(self) -> None:
        """Collect batches of earlier runs that hold a row of this one; submit none. Spends: nothing more."""
        await self._go(lambda: math.inf)

    async def _go(self, until: Callable[[], float]) -> None:
        try:
            while not self._leaving:
                await self._submit(until)
                self.submitted.set()
                self._hand_over(until)
                if self._is_canceling:
                    await self._cancel()
                await self._look()
                if self._is_canceling and not self.known:
                    self.freed.set()
                if self._is_done():
                    break
                await self._wait(until())
        finally:
            for event in (self.submitted, self.switched, self.freed):
                event.set()

    def _hand_over(self, until: Callable[[], float]) -> None:
        """Leave the rest to live calls where the time is up, or no batch can be made."""
        ill = self._hands_over and self._no_more is not None and not self.is_refused
        if self._submits and (ill or self._clock.seconds() >= until()):
            self.switched.set()
            self._submits = False
            self._left, self._others = self._left.clear(), self._others.clear()

    @property
    def _is_canceling(self) -> bool:
        return self._stopping or self.switched.is_set()

    def _is_done(self) -> bool:
        if self._stopping:
            return not self.known
        if self._is_silent:
            return True
        waiting = 0 if self.stopped_by else self._left.height + self._others.height
        return not self.waited and not waiting

    async def _wait(self, until: float) -> None:
        """Wait until it is time to look again, or something was asked of this."""
        now = self._clock.seconds()
        due = [now + batch_rules.poll_seconds(now - self._changed_at)] if self.waited else []
        if self._left.height and (self._hold_until > now or not self.waited):
            due.append(max(self._hold_until, now))
        if self._others.height:
            due.append(now + batch_rules.poll_seconds(now - self._others_at))
        due += [until] if self._submits else []
        seconds = min(due, default=now) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(self._clock.real(max(seconds, 0.0))):
                await self._woken.wait()
        self._woken.clear()

    # rows that are in a batch, or another run's

    async def adopt(self) -> None:
        """Take over batches that nobody follows; what they hold is not this run's to send now.

        Spends: nothing.
        """
        now = self._clock.seconds()
        for batch in await loops.in_thread(self._ledger.adopt, self._requests["key"]):
            self.open[batch.nonce] = batch
            self._canceled.add(batch.nonce)
            if batch.batch_id is None:
                sent_by = batch.intended_at + batch_rules.LONGEST_UPLOAD_SECONDS
                self._lost[batch.nonce] = min(now, sent_by) + batch_rules.LOST_SECONDS
            held = await loops.in_thread(self._ledger.held, batch.nonce)
            is_held = pl.col("key").is_in(held)
            self.adopted.update(held)
            worst = float(self._requests.filter(is_held)["worst_dollars"].sum())
            self._purse.batches[batch.nonce] = worst
            self._left, self._others = self._left.filter(~is_held), self._others.filter(~is_held)
            _LOG.debug("batch %s of an earlier run: taken over", batch.batch_id)

    def _give_back(self, keys: list[str]) -> None:
        """Send rows again; where nothing is submitted they are free, and live calls may claim them."""
        if self._submits and keys:
            self._left = pl.concat([self._requests.filter(pl.col("key").is_in(keys)), self._left])

    async def _look_at_others(self) -> None:
        """Take what another run has answered meanwhile, and try again for what it does not hold any more."""
        self._others = await self._job.unanswered(self._others)
        await self.adopt()
        self._give_back(self._others["key"].to_list())
        self._others = self._others.clear()

    # submit

    async def _check(self) -> None:
        """Have the API look at some rows: what is wrong with all would be told hours later.

        At most three, from all over the frame, as a row may be to blame itself.
        """
        if self._job.refusal() is not None or self._job.known_good:  # nothing will be sent, or all is well
            return
        found: list[Verdict] = []
        last = self._left.height - 1
        for place in sorted({0, (last + 1) // 2, last}) if self._left.height else ():
            answer = await self._looked_at(self._left[place])
            self._ahead_seconds = batch_rules.ahead_seconds(answer, self._clock.seconds())
            found.append(verdict(answer))
            wrong = batch_rules.is_wrong(answer, self._job.plan.compiled.model.id)
            if self._stopping or self._leaving or not wrong:
                return
        if len({(reason.error, reason.message) for reason in found}) == 1:
            self._no_more = found[-1]

    async def _looked_at(self, row: pl.DataFrame) -> Answer:
        """Return what the API says of a row: to a short message, or to a count where the budget has no room.

        A simulator counts as well: its account is what the plan says, and its batches are not long.
        """
        job, (request,) = self._job, self._job.work.texts.bodies(row["row"])
        message, longest = batch_rules.dry_run(request)
        worst = job.worst_dollars(len(message), longest)
        if job.api.simulated or not worst <= self._purse.left:
            return await self._wire.check(request)
        sent = self._clock.seconds()
        answer = await self._wire.message(message)
        found = verdict(answer)
        if found.outcome == "answered":
            seconds = self._clock.seconds() - sent
            attempt = job.attempt(row["key"].item(), answer, found, sent=sent, seconds=seconds)
            job.record(attempt._replace(error=DRY_RUN, message=WORDS[DRY_RUN], reply=None), final=False)
            self._purse.pay(attempt.dollars)
        elif found.unseen:
            self._purse.pay(worst)
        return answer

    async def _submit(self, until: Callable[[], float]) -> None:
        """Submit as much as queue, budget and time allow."""
        while self._submits and not (self._stopping or self._leaving or self.stopped_by):
            now = self._clock.seconds()
            rows = self._next() if self._hold_until <= now < until() else self._left.clear()
            if rows.is_empty():
                break
            self._left = self._left.slice(rows.height)
            mine = await loops.in_thread(self._job.claimed, rows)
            if mine.height < rows.height:
                others = rows.join(mine, on="key", how="anti", maintain_order="left")
                self._others = pl.concat([self._others, others])
                self._others_at = max(self._others_at, self._changed_at)
            if mine.height and (words := self._job.refusal()) is not None:
                self._no_more = Verdict(outcome="stop", error=RETIRED, message=words)
            elif mine.height:
                await self._post(mine, until)

    def _next(self) -> pl.DataFrame:
        """Return the rows of the next batch; none where they have to wait."""
        out = self.waited
        most = min(self._most_requests, self._queue_requests - sum(batch.requests for batch in out))
        if self._prime and not self.closed:
            most = 0 if out else 1
        dollars = self._purse.left
        count = batch_rules.fitting(self._left, requests=most, size_bytes=self._most_bytes, dollars=dollars)
        if not count and self._left.height and not out:
            self._no_more = Verdict(outcome="stop", error="budget")
        return self._left.head(count)

    async def _post(self, rows: pl.DataFrame, until: Callable[[], float]) -> None:
        """Post one batch, once: the intent before, the id after."""
        nonce = secrets.token_hex(batch_rules.NONCE_BYTES)
        batch = Batch(
            nonce=nonce,
            api=self._job.api.name,
            model=self._job.plan.compiled.model.id,
            requests=rows.height,
            intended_at=self._clock.seconds() + self._ahead_seconds,
        )
        keys = rows["key"].to_list()
        await loops.in_thread(self._ledger.intend, batch, keys)
        self.open[nonce] = batch
        self._purse.batches[nonce] = float(rows["worst_dollars"].sum())
        size_bytes = batch_rules.body_bytes(rows)
        body = Parts(partial(batch_rules.body, rows, self._job.work.texts, nonce))
        answer = await self._created(self._wire.create(body, size_bytes), until)
        made = batch_rules.made(answer)
        self._changed_at = self._clock.seconds()
        _LOG.debug(
            "batch of %d rows, %d bytes: %s, %s", len(keys), size_bytes, made.outcome, made.found.error
        )
        if made.outcome == "created":
            await self._note(batch_rules.seen(batch, made.shown))
            self._failures = self._refusals = 0
            return
        if made.outcome == "unknown":  # it may be there: it is looked for
            answered = answer.status is not None
            patience = batch_rules.FAILED_SECONDS if answered else batch_rules.LOST_SECONDS
            self._lost[nonce] = self._clock.seconds() + patience
            return
        await self._close(batch, "absent")
        self._give_back(keys)
        if made.outcome == "too_large" and rows.height > 1:
            self._most_bytes = size_bytes // 2
        else:
            self._failed(made.found, read_headers(answer.headers).retry_after_seconds)

    async def _created(self, create: Coroutine[Any, Any, Answer], until: Callable[[], float]) -> Answer:
        """Return what came back, or that nothing did in time: the intent is on the disk, it will be found."""
        seconds = self._clock.real(max(until() - self._clock.seconds(), 0.0))
        answer = await loops.in_time(create, seconds, self._woken, _GRACE_SECONDS)
        return answer or Answer(None, {}, b"", "timeout_error")

    def _failed(self, found: Verdict, retry_after_seconds: float | None = None) -> None:
        """Wait before the next post, or give up; a queue that is full may be full for long."""
        now = self._clock.seconds()
        refused = found.outcome == "refused"
        self._refusals, self._failures = self._refusals + refused, self._failures + (not refused)
        if refused and not self.waited and self._refusals % _MOST_REFUSALS == 0:
            self._most_requests = max(self._most_requests // 2, 1)  # the queue is smaller than was thought
        made = self.known or any(batch.state == "collected" for batch in self.closed)
        patience = _FAILURES_LATER if made else MOST_FAILURES
        hopeless = batch_rules.is_hopeless(found)
        if hopeless and made and found.error in DOUBTED:  # a key and a model that were good
            hopeless = self._failures >= MISSED_LOOKS
        if hopeless or self._failures >= patience:
            self._no_more = found
        growing = max(batch_rules.poll_seconds(now - self._changed_at), 2.0**self._failures)
        self._hold_until = now + (retry_after_seconds or min(growing, _LONGEST_HOLD))

    # look at what is out

    async def _look(self) -> None:
        """See how every batch is, collect what has ended, and send again what was not answered."""
        self._made_none = False
        refusals: list[Refusals] = []
        for batch in list(self.open.values()):
            if batch.batch_id is None:
                await self._search(batch)
        await self._poll([batch for batch in self.known if batch.state != "ended"])
        for batch in self.known:
            if batch.state == "ended":
                await self._collect(batch, refusals)
        self._weigh(refusals)
        if self._made_none and self._submits:
            self._failed(Verdict(outcome="again", error="api_error", message="a batch was not made"))
        if self._others.height:
            await self._look_at_others()
        elif not self._submits:
            await self.adopt()  # the run that held what live calls wait for may have ended

    async def _cancel(self) -> None:
        """Ask for the end of every batch that is known to be there."""
        for batch in self.known:
            if batch.state == "in_progress":
                if batch.nonce not in self._canceled:
                    self._changed_at = self._clock.seconds()
                    self._canceled.add(batch.nonce)
                await self._look_at(batch, await self._wire.cancel(str(batch.batch_id)))

    async def _search(self, batch: Batch) -> None:
        """Look for a batch whose answer was lost: the nonce in its results proves it."""
        candidates = await self._candidates(batch)
        if candidates is None:
            return
        waiting = False
        for shown in candidates:
            ended = shown["processing_status"] == "ended"
            block = await self._wire.first_lines(shown["id"]) if ended else None
            ours = proves(block, batch.nonce) if block else None
            if ours:
                del self._lost[batch.nonce]
                await self._note(batch_rules.seen(batch, shown))
                return
            if ours is False or (ended and not batch_rules.has_results(shown)):
                self._foreign.setdefault(batch.nonce, set()).add(shown["id"])
            else:
                waiting = True
        if not waiting and self._clock.seconds() >= self._lost[batch.nonce]:
            await self._unsent(batch, "absent")

    async def _unsent(self, batch: Batch, state: str) -> None:
        """Close a batch that was never made, or ended with its simulator: its rows go again."""
        self._give_back(await self._close(batch, state))
        self._made_none = True

    async def _candidates(self, batch: Batch) -> list[dict[str, Any]] | None:
        """Return the listed batches that may be this one; None where the list cannot be read now."""
        others = await loops.in_thread(self._ledger.batches)
        known = {other.batch_id for other in others} | self._foreign.get(batch.nonce, set())
        found: list[dict[str, Any]] = []
        after = None
        while True:
            answer = await self._wire.page(_PAGE, after)
            self._hear(answer)
            if answer.status != HTTPStatus.OK:
                return None
            page, offset = listed(answer), batch_rules.clock_offset(answer, self._clock.seconds())
            until = self._lost[batch.nonce]
            may_be = [shown for shown in page if batch_rules.may_be(batch, shown, until, offset)]
            found += [shown for shown in may_be if shown["id"] not in known]
            if batch_rules.looked_far_enough(batch, page, offset) or len(page) < _PAGE:
                return found
            after = str(page[-1].get("id"))

    async def _poll(self, batches: list[Batch]) -> None:
        left = {str(batch.batch_id): batch for batch in batches}
        if len(left) >= _SEVERAL:
            answer = await self._wire.page(min(_PAGE, 2 * len(left)))
            for shown in listed(answer) if answer.status == HTTPStatus.OK else []:
                if batch_rules.is_batch(shown) and shown["id"] in left:
                    await self._see(left.pop(shown["id"]), shown)
        for batch_id, batch in left.items():
            await self._look_at(batch, await self._wire.retrieve(batch_id))

    async def _look_at(self, batch: Batch, answer: Answer) -> None:
        """Take in an answer that shows one batch."""
        self._hear(answer)
        shown = read_object(answer.content)
        if answer.status == HTTPStatus.OK and batch_rules.is_batch(shown):
            await self._see(batch, shown)
        else:
            await self._miss(batch, answer)

    async def _see(self, batch: Batch, shown: dict[str, Any]) -> None:
        self._missed.pop(batch.nonce, None)
        now = batch_rules.seen(batch, shown)
        if now != batch:
            await self._note(now)
        if now.state == "ended" and not batch_rules.has_results(shown):
            await self._lose(now)

    def _hear(self, answer: Answer) -> None:
        """Notice an API that has nothing to say any more, or not to this key."""
        now = self._clock.seconds()
        self._looks_in_vain += 1
        if answer.status is not None and answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._reached_at, self._looks_in_vain = now, 0
        if answer.status == HTTPStatus.OK:
            self._accepted, self._doubts = True, 0
        if answer.status == HTTPStatus.OK or batch_rules.is_gone(answer):
            return
        found = verdict(answer)
        silent = now - self._reached_at > SILENT_SECONDS and self._looks_in_vain > FEW_LOOKS
        if silent or (found.outcome == "stop" and self._is_believed(now)):
            self._is_silent = True
            self._nothing_learned = self._nothing_learned or found

    def _is_believed(self, now: float) -> bool:
        """Count an answer that the account is in trouble, and return whether to believe it of a good key."""
        self._doubted_at = self._doubted_at if self._doubts else now
        self._doubts += 1
        lasting = self._doubts >= MISSED_LOOKS and now - self._doubted_at >= MISSED_SECONDS
        return lasting or not self._accepted

    async def _miss(self, batch: Batch, answer: Answer) -> None:
        """Count an answer that does not show a batch. One 404 may be another replica's, of a batch just made.

        When it is to be believed the batch stays in the ledger, for another key may see it. A simulator's
        ended with it, and its rows cost nothing.
        """
        now, gone = self._clock.seconds(), batch_rules.is_gone(answer)
        since, looks = self._missed.get(batch.nonce, (now, 0))
        self._missed[batch.nonce] = since, looks + 1
        patience = MISSED_SECONDS if gone else SILENT_SECONDS
        if looks + 1 < MISSED_LOOKS or now - since < patience:
            return
        if gone and self._job.api.simulated:
            await self._unsent(batch, "gone")
            return
        if gone:
            words = f"batch {batch.batch_id} is not shown to this key: another workspace's, or deleted"
            words = f"{words}. {_held(batch)}"
            self.stuck[batch.nonce] = Verdict(outcome="stop", error="batch_not_found", message=words)
        else:
            found = verdict(answer)
            words = f"batch {batch.batch_id} could not be seen for hours: {found.message}"
            self.stuck[batch.nonce] = Verdict(outcome="stop", error=found.error, message=words)

    # collect one that has ended

    async def _collect(self, batch: Batch, refusals: list[Refusals]) -> None:
        """Bring the results of a batch to the disk, those that are not there yet, and close it."""
        recorded = await loops.in_thread(self._ledger.recorded, batch)
        canceled: list[str] = []

        async def take(block: bytes) -> None:
            nonlocal recorded
            frame = await loops.in_thread(self._read, block, batch, recorded)
            await self._keep(batch, frame)
            recorded = recorded.append(frame["key"])
            self._readable |= frame.height > 0
            canceled.extend(frame.filter(pl.col("error") == "canceled")["key"])

        answer = await self._wire.results(str(batch.batch_id), take)
        self._hear(answer)
        if answer.status != HTTPStatus.OK:
            await self._miss(batch, answer)
            return
        self._missed.pop(batch.nonce, None)
        held = pl.Series(await loops.in_thread(self._ledger.held, batch.nonce), dtype=pl.String)
        missing = held.filter(~held.is_in(recorded.implode())).to_list()
        if missing:
            if not self._gives_up(batch, len(missing)):
                return
            await take(missing_lines(missing, batch.nonce))
        if canceled and batch.nonce not in self._canceled:
            words = f"{len(canceled):,} rows of batch {batch.batch_id} were canceled, and not by this run"
            self._learn_nothing("canceled", words)
        left = await self._close(batch, "collected")
        refused = self._refused.pop(batch.nonce, {})
        unanswered = [key for key in left if key not in refused]
        self._rounds.update(unanswered)
        self._give_back([key for key in unanswered if self._rounds[key] < MOST_ROUNDS])
        (why, rows), *_ = [*Counter(refused.values()).most_common(1), ((None, None), 0)]
        refusals.append(Refusals(self.closed[-1], rows, *why))

    async def _keep(self, batch: Batch, frame: pl.DataFrame) -> None:
        """Bring results to the disk, and note what they say of more than their rows."""
        await self._job.record_many(frame)
        refused = frame.filter(_REFUSALS).select("key", "error", "message").rows()
        self._refused.setdefault(batch.nonce, {}).update(
            {key: (error, words) for key, error, words in refused}
        )
        unclear = self._requests.join(frame.filter(_UNCLEAR), on="key", how="semi")  # it may be billed
        self._purse.pay(float(unclear["worst_dollars"].sum()))
        for error, message in frame.filter(_STOPS).select("error", "message").rows()[:1]:
            self._learn_nothing(error, message)

    def _learn_nothing(self, error: str, message: str | None) -> None:
        """Submit nothing more, for a reason that more batches would meet too."""
        found = Verdict(outcome="stop", error=error, message=message)
        self._nothing_learned = self._nothing_learned or found

    def _read(self, block: bytes, batch: Batch, recorded: pl.Series) -> pl.DataFrame:
        begun = batch.created_at or batch.intended_at
        frame = attempts(
            block,
            nonce=batch.nonce,
            batch_id=str(batch.batch_id),
            # A batch is billed as on the day it was made.
            price=self._job.batch_price.at(datetime.fromtimestamp(begun, UTC)),
            sent_at=begun,
            seconds=(batch.ended_at or begun) - begun,
            trusted=batch_rules.trusts(batch, known_good=self._job.known_good),
            **self._job.common,
        )
        new = ~pl.col("key").is_in(recorded.implode())
        return frame.unique("key", keep="first", maintain_order=True).filter(new)

    def _gives_up(self, batch: Batch, missing: int) -> bool:
        """Whether results that lack lines were read often enough, so that their rows go to another batch."""
        self._reads[batch.nonce] += 1
        if self._reads[batch.nonce] < MOST_READS:
            return False
        if self._readable and missing <= max(MOST_MISSING, MOST_MISSING_SHARE * batch.requests):
            return True
        words = f"of batch {batch.batch_id} {missing:,} of {batch.requests:,} results cannot be read"
        words = f"{words}. {_held(batch)}"
        self.stuck[batch.nonce] = Verdict(outcome="stop", error="results_incomplete", message=words)
        return False

    def _weigh(self, refusals: list[Refusals]) -> None:
        """Stop where whole batches are refused alike: it is the request, or the account, and not a row."""
        for found in refusals:
            alike = len({(kind.error, kind.message) for kind in [*self._alike[:1], found]}) == 1
            if found.rows < batch_rules.NEARLY_ALL * found.batch.requests:
                self._alike = [] if found.batch.succeeded else self._alike
            else:
                self._alike = [*self._alike, found] if alike else [found]
        if not self._alike:
            return
        rows = sum(kind.rows for kind in self._alike)
        answered = any(batch.succeeded for batch in self.closed)
        several = rows >= batch_rules.ALIKE_ROWS and (len(self._alike) > 1 or not answered)
        nothing_else = not (answered or self._job.known_good or self._left.height or self.waited)
        if several or nothing_else:
            found = self._alike[-1]
            count = f"{found.rows:,} of {found.batch.requests:,} rows"
            message = f"{count} of batch {found.batch.batch_id} were refused alike: {found.message}"
            self._no_more = Verdict(outcome="stop", error=found.error, message=message)

    async def _lose(self, batch: Batch) -> None:
        """Close a batch whose results cannot be read any more, and stop: its rows would be paid for again."""
        await self._close(batch, "gone")
        words = (
            f"the results of batch {batch.batch_id} are over {catalog.BATCH.results_days} days old and gone. "
            "What it answered was paid for. Nothing was sent again; the same cell again sends its rows anew"
        )
        self._learn_nothing("results_gone", words)

    async def _close(self, batch: Batch, state: str) -> list[str]:
        """Close a batch, and return which of its rows have no final answer."""
        left = await loops.in_thread(self._ledger.held, batch.nonce)
        done = batch._replace(state=state)
        await loops.in_thread(self._ledger.note, done)
        self.open.pop(batch.nonce, None)
        self._lost.pop(batch.nonce, None)
        self._purse.batches.pop(batch.nonce, None)
        self.closed.append(done)
        self._changed_at = self._clock.seconds()
        _LOG.debug("batch %s: %s, %d rows without an answer", batch.batch_id, state, len(left))
        return left

    async def _note(self, batch: Batch) -> None:
        await loops.in_thread(self._ledger.note, batch)
        self.open[batch.nonce] = batch
        _LOG.debug("batch %s: %s", batch.batch_id, batch.state)


def _held(batch: Batch) -> str:
    """Return what becomes of the rows of a batch that cannot be brought in."""
    freed = f"cs.Ledger(...).forget({batch.batch_id!r})"
    return f"Its rows stay held, as they may be paid for. After {freed} they are sent, and paid for, again"
