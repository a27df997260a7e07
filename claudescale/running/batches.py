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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

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
from claudescale.ledger.records import OPEN, Batch
from claudescale.running import batch_rules
from claudescale.running.batch_results import attempts, missing_lines, proves
from claudescale.running.batch_rules import Streak

if TYPE_CHECKING:
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
_STOPS = pl.col("error").is_in(list(STOPPING_ERRORS))
_REFUSALS = pl.col("error").is_in(["invalid_request_error", "request_too_large"]) & ~pl.col("final")
_UNCLEAR = pl.col("error").is_in(["invalid_response", "result_missing"])


@dataclass(slots=True)
class Followed:
    """A batch that this run follows, and what it has learned of it."""

    batch: Batch
    lost_until: float = math.inf  # when one whose answer was lost surely was not made
    foreign: set[str] = field(default_factory=set)  # batches that were looked at and are not this one
    missed: Streak = field(default_factory=Streak)  # looks that did not show it
    stuck: Verdict | None = None  # why this run cannot bring it in; it goes on holding its rows
    is_canceled: bool = False  # by this run, or maybe by an earlier one
    reads: int = 0  # of results that lack lines
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # by key, error and message

    @property
    def batch_id(self) -> str:
        """Its name at the API."""
        return str(self.batch.batch_id)

    @property
    def is_waited(self) -> bool:
        """Whether it is still to come in."""
        return self.batch.state in OPEN and self.stuck is None


class Batches:
    """Answers rows over Message Batches; `answer` does it, once.

    Spends: half of what the rows cost live.

    Attributes
    ----------
    stopped_by : Verdict or None
        Why nothing more was submitted.
    adopted : set of str
        Keys of rows that a batch of an earlier run held.
    submitted, freed, woken : asyncio.Event
        All is submitted that the queue has room for; nothing more will be, as the time is up, and what
        was out is canceled and collected; something was asked of the job.
    """

    def __init__(self, job: Job) -> None:
        plan = job.plan
        self.stopped_by: Verdict | None = None
        self.adopted: set[str] = set()
        self.submitted, self.freed = asyncio.Event(), asyncio.Event()
        self._job, self._ledger, self._clock, self._purse = job, job.ledger, job.clock, job.purse
        most = plan.compiled.limits.batch_requests_per_minute or _REQUESTS_PER_MINUTE
        self._wire = BatchWire(job.wire, most)
        self._requests = job.with_worst(job.work.requests, "batch")
        self._followed: list[Followed] = []  # in the order they were met; other threads read it
        self._leaves = self._switched = self._submits = False
        self.woken = asyncio.Event()
        # what is to be submitted
        self._left = self._others = self._requests.clear()  # the others' rows are held by other runs
        self._hands_over = plan.mode == "hybrid"  # where no batch can be made, live calls do the rest
        self._prime = plan.cache and plan.compiled.prompt.is_cacheable  # one row alone writes the cache first
        self._queue_requests = plan.compiled.limits.batch_queue_requests or catalog.BATCH.max_requests
        self._most_requests, self._most_bytes = catalog.BATCH.max_requests, batch_rules.FULL_BYTES
        self._rounds: Counter[str] = Counter()
        self._hold_until = self._ahead_seconds = 0.0
        self._failures = self._refusals = 0
        self._alike: tuple[object, int] = None, 0  # why whole batches were refused, and how many rows
        # what was heard
        self._ends_all = False  # live calls would meet what stopped this, too
        self._is_deaf = False  # nothing more can be learned of what is out
        self._accepted = self._readable = False
        self._silence, self._doubts = Streak(), Streak()
        self._changed_at = job.clock.seconds()

    # the handle

    @property
    def is_refused(self) -> bool:
        """Whether there is a reason to stop, which live calls would meet as well."""
        found = self.stopped_by
        if found is None or self._ends_all:
            return self._ends_all
        if not self._hands_over or found.error in {"budget", RETIRED}:
            return True
        # A key and a model that answer live are good: then it is the batches that the API does not have.
        only_here = found.error in DOUBTED and self._job.known_good
        return found.error in STOPPING_ERRORS and not only_here

    @property
    def seen(self) -> list[Batch]:
        """All batches that this run follows or followed."""
        return [each.batch for each in self._followed]

    @property
    def waited(self) -> list[Followed]:
        """Batches that are still to come in."""
        return [each for each in self._followed if each.is_waited]

    @property
    def known(self) -> list[Followed]:
        """Those of them that surely are at the API."""
        return [each for each in self.waited if each.batch.batch_id is not None]

    @property
    def stuck(self) -> dict[str, Verdict]:
        """By nonce, why batches cannot be brought in by this run; they go on holding their rows."""
        return {each.batch.nonce: each.stuck for each in self._followed if each.stuck is not None}

    @property
    def why_stuck(self) -> Verdict | None:
        """What to say of batches that could not be brought in."""
        if not (stuck := self.stuck):
            return None
        first, *more = stuck.values()
        words = f"this is so of {len(stuck)} batches, one of them: {first.message}"
        return _because(first.error, words) if more else first

    def expected(self) -> batch_rules.Expected | None:
        """Return when the last batch ends, as far as that can be told."""
        shown = [each.batch for each in self._followed if each.stuck is None]
        return batch_rules.expected_end(shown, self._clock.seconds())

    def leave(self) -> None:
        """Submit nothing more and let what is out go on without this run. From the loop's thread.

        Spends: nothing more; what is out is paid for when it is answered.
        """
        self._leaves = True
        self.woken.set()

    @property
    def _leaving(self) -> bool:
        return self._leaves or self._job.leaving

    async def answer(self, keys: pl.Series) -> None:
        """Return when every row has its answer or was given up, or this was stopped.

        Batches of earlier runs that hold one of the run's rows are taken over first.

        Spends: half of what the rows cost live.
        """
        self._submits = True
        self._left = self._requests.filter(pl.col("key").is_in(keys.implode()))
        await self.adopt()
        await self._check()
        await self.follow()

    async def follow(self) -> None:
        """Collect batches that hold a row of this run. Without `answer` it submits none. Spends: nothing."""
        try:
            while not self._leaving:
                await self._submit()
                self.submitted.set()
                self._hand_over()
                if self._is_canceling:
                    await self._cancel()
                await self._look()
                if self._is_canceling and not self.known:
                    self.freed.set()
                if self._is_done():
                    break
                await self._wait()
        finally:
            self.submitted.set()
            self.freed.set()

    def _hand_over(self) -> None:
        """Leave the rest to live calls where the time is up, or no batch can be made."""
        ill = self._hands_over and self.stopped_by is not None and not self.is_refused
        if self._submits and (ill or self._clock.seconds() >= self._job.switch_at()):
            self._switched, self._submits = True, False
            self._left = self._others = self._left.clear()

    @property
    def _is_canceling(self) -> bool:
        return self._job.stopping or self._switched

    def _is_done(self) -> bool:
        if self._job.stopping:
            return not self.known
        sends = self.stopped_by is None and (self._left.height or self._others.height)
        return self._is_deaf or not (self.waited or sends)

    async def _wait(self) -> None:
        """Wait until it is time to look again, or something was asked of this."""
        now = self._clock.seconds()
        due = [self._job.switch_at()] if self._submits else []
        if self.waited or self._others.height:
            due.append(now + batch_rules.poll_seconds(now - self._changed_at))
        if self._left.height and (self._hold_until > now or not self.waited):
            due.append(self._hold_until)
        seconds = min(due, default=now) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(self._clock.real(max(seconds, 0.0))):
                await self.woken.wait()
        self.woken.clear()

    def _stop(self, found: Verdict, *, all_calls: bool = False) -> None:
        """Submit nothing more; with `all_calls` for a reason that live calls would meet, too."""
        self.stopped_by = self.stopped_by or found
        self._ends_all |= all_calls

    # rows that are in a batch, or another run's

    async def adopt(self) -> None:
        """Take over batches that nobody follows; what they hold is not this run's to send now.

        Spends: nothing.
        """
        now = self._clock.seconds()
        for batch in await loops.in_thread(self._ledger.adopt, self._requests["key"]):
            sent_by = batch.intended_at + batch_rules.LONGEST_UPLOAD_SECONDS
            lost_until = min(now, sent_by) + batch_rules.LOST_SECONDS
            self._followed.append(Followed(batch, lost_until, is_canceled=True))
            held = await loops.in_thread(self._ledger.held, batch.nonce)
            is_held = pl.col("key").is_in(held)
            self.adopted.update(held)
            self._purse.batches[batch.nonce] = self._worst_dollars(is_held)
            self._left, self._others = self._left.filter(~is_held), self._others.filter(~is_held)
            _LOG.debug("batch %s of an earlier run: adopted", batch.batch_id)

    def _worst_dollars(self, which: pl.Expr) -> float:
        return float(self._requests.filter(which)["worst_dollars"].sum())

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
        rows, reasons = self._left, set()
        if self._job.refusal() is not None or self._job.known_good or rows.is_empty():
            return  # nothing will be sent, or all is well
        for place in sorted({0, rows.height // 2, rows.height - 1}):
            answer = await self._looked_at(rows[place])
            self._ahead_seconds, _ = batch_rules.clock_offset(answer, self._clock.seconds())
            wrong = batch_rules.is_wrong(answer, self._job.plan.compiled.model.id)
            if self._job.stopping or self._leaving or not wrong:
                return
            found = verdict(answer)
            reasons.add((found.error, found.message))
        if len(reasons) == 1:
            self._stop(found)

    async def _looked_at(self, row: pl.DataFrame) -> Answer:
        """Return what the API says of a row: to a short message, or to a count where the budget has no room.

        A simulator counts as well: its account is what the plan says, and its batches are not long.
        """
        job, (request,) = self._job, self._job.work.texts.bodies(row["row"])
        message, longest = batch_rules.dry_run(request)
        worst = job.with_worst(row, "live", longest)["worst_dollars"].item()
        if job.api.simulated or not worst <= self._purse.left:
            return await job.wire.count_tokens(request)
        sent = self._clock.seconds()
        answer = await job.wire.send(message)
        found = verdict(answer)
        if found.outcome == "answered":
            seconds = self._clock.seconds() - sent
            attempt = job.attempt(row["key"].item(), answer, found, sent=sent, seconds=seconds)
            job.record(attempt._replace(error=DRY_RUN, message=WORDS[DRY_RUN], reply=None), final=False)
            self._purse.pay(attempt.dollars)
        elif found.unseen:
            self._purse.pay(worst)
        return answer

    async def _submit(self) -> None:
        """Submit as much as queue, budget and time allow."""
        while self._submits and not (self._job.stopping or self._leaving or self.stopped_by):
            now = self._clock.seconds()
            rows = self._next() if self._hold_until <= now < self._job.switch_at() else self._left.clear()
            if rows.is_empty():
                break
            self._left = self._left.slice(rows.height)
            mine = await loops.in_thread(self._job.claimed, rows)
            if mine.height < rows.height:
                others = rows.join(mine, on="key", how="anti", maintain_order="left")
                self._others, self._changed_at = pl.concat([self._others, others]), now
            if mine.height and (words := self._job.refusal()) is not None:
                self._stop(_because(RETIRED, words))
            elif mine.height:
                await self._post(mine)

    def _next(self) -> pl.DataFrame:
        """Return the rows of the next batch; none where they have to wait."""
        out = self.waited
        most = min(self._most_requests, self._queue_requests - sum(each.batch.requests for each in out))
        if self._prime and all(each.is_waited for each in self._followed):
            most = 0 if out else 1
        count = batch_rules.fitting(
            self._left, requests=most, size_bytes=self._most_bytes, dollars=self._purse.left
        )
        if not count and self._left.height and not out:
            self._stop(_because("budget"))
        return self._left.head(count)

    async def _post(self, rows: pl.DataFrame) -> None:
        """Post one batch, once: the intent before, the id after."""
        nonce, keys = secrets.token_hex(batch_rules.NONCE_BYTES), rows["key"].to_list()
        batch = Batch(
            nonce=nonce,
            api=self._job.api.name,
            model=self._job.plan.compiled.model.id,
            requests=rows.height,
            intended_at=self._clock.seconds() + self._ahead_seconds,
        )
        await loops.in_thread(self._ledger.intend, batch, keys)
        posted = Followed(batch)
        self._followed.append(posted)
        self._purse.batches[nonce] = float(rows["worst_dollars"].sum())
        body = Parts(partial(batch_rules.body, rows, self._job.work.texts, nonce))
        answer = await self._created(body, batch_rules.body_bytes(rows))
        outcome, now = batch_rules.made(answer), self._clock.seconds()
        self._changed_at = now
        _LOG.debug("batch of %d rows: %s, status %s", len(keys), outcome, answer.status)
        if outcome == "created":
            await self._note(posted, batch_rules.seen(batch, read_object(answer.content)))
            self._failures = self._refusals = 0
            return
        if body.flaw is not None:  # half a body makes no batch
            await self._close(posted, "absent")
            raise body.flaw
        if outcome == "unknown":  # it may be there: it is looked for
            patience = batch_rules.FAILED_SECONDS if answer.status else batch_rules.LOST_SECONDS
            posted.lost_until = now + patience
            return
        await self._close(posted, "absent")
        self._give_back(keys)
        if outcome == "too_large" and rows.height > 1:
            self._most_bytes = batch_rules.body_bytes(rows) // 2
        else:
            self._failed(verdict(answer), read_headers(answer.headers).retry_after_seconds)

    async def _created(self, body: Parts, size_bytes: int) -> Answer:
        """Return what came back, or that nothing did in time: the intent is on the disk, it will be found."""
        create = self._wire.create(body, size_bytes)
        seconds = self._clock.real(max(self._job.switch_at() - self._clock.seconds(), 0.0))
        answer = await loops.in_time(create, seconds, self.woken, _GRACE_SECONDS)
        return answer or Answer(None, {}, b"", "timeout_error")

    def _failed(self, found: Verdict, retry_after_seconds: float | None = None) -> None:
        """Wait before the next post, or give up; a queue that is full may be full for long."""
        now = self._clock.seconds()
        refused = found.outcome == "refused"
        self._refusals, self._failures = self._refusals + refused, self._failures + (not refused)
        if refused and not self.waited and self._refusals % _MOST_REFUSALS == 0:
            self._most_requests = max(self._most_requests // 2, 1)  # the queue is smaller than was thought
        made = self.known or any(batch.state == "collected" for batch in self.seen)
        most = _FAILURES_LATER if made else MOST_FAILURES
        if batch_rules.is_hopeless(found):  # at once, but for a key and a model that were good
            most = MISSED_LOOKS if made and found.error in DOUBTED else 0
        if self._failures >= most:
            self._stop(found)
        growing = max(batch_rules.poll_seconds(now - self._changed_at), 2.0**self._failures)
        self._hold_until = now + (retry_after_seconds or min(growing, _LONGEST_HOLD))

    # look at what is out

    async def _look(self) -> None:
        """See how every batch is, collect what has ended, and send again what was not answered."""
        for each in self.waited:
            if each.batch.batch_id is None:
                await self._search(each)
        for each in self.known:
            if each.batch.state != "ended":
                await self._look_at(each, await self._wire.free("retrieve", each.batch_id))
            if each.is_waited and each.batch.state == "ended":
                await self._collect(each)
        if self._others.height:
            await self._look_at_others()
        elif not self._submits:
            await self.adopt()  # the run that held what live calls wait for may have ended

    async def _cancel(self) -> None:
        """Ask for the end of every batch that is known to be there."""
        for each in self.known:
            if each.batch.state == "in_progress":
                if not each.is_canceled:
                    each.is_canceled, self._changed_at = True, self._clock.seconds()
                await self._look_at(each, await self._wire.free("cancel", each.batch_id))

    async def _search(self, lost: Followed) -> None:
        """Look for a batch whose answer was lost: the nonce in its results proves it."""
        candidates = await self._candidates(lost)
        if candidates is None:
            return
        unclear = False
        for shown in candidates:
            ended = shown["processing_status"] == "ended"
            block = await self._wire.first_lines(shown["id"]) if ended else None
            ours = proves(block, lost.batch.nonce) if block else None
            if ours:
                await self._note(lost, batch_rules.seen(lost.batch, shown))
                return
            if ours is None and (batch_rules.has_results(shown) or not ended):
                unclear = True
            else:
                lost.foreign.add(shown["id"])
        if not unclear and self._clock.seconds() >= lost.lost_until:
            await self._unsent(lost, "absent")

    async def _unsent(self, each: Followed, state: str) -> None:
        """Close a batch that was never made, or ended with its simulator: its rows go again."""
        self._give_back(await self._close(each, state))
        if self._submits and self._hold_until <= self._clock.seconds():  # several count once
            self._failed(Verdict(outcome="again", error="api_error", message="a batch was not made"))

    async def _candidates(self, lost: Followed) -> list[dict[str, Any]] | None:
        """Return the listed batches that may be this one; None where the list cannot be read now."""
        kept = await loops.in_thread(self._ledger.batches)
        others = {other.batch_id for other in kept} | lost.foreign
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:
            answer = await self._wire.free("list", limit=_PAGE, **after)
            self._hear(answer)
            if answer.status != HTTPStatus.OK:
                return None
            page, offset = listed(answer), batch_rules.clock_offset(answer, self._clock.seconds())
            window = batch_rules.window(lost.batch, lost.lost_until, offset)
            may_be = [shown for shown in page if batch_rules.may_be(lost.batch, shown, window)]
            found += [shown for shown in may_be if shown["id"] not in others]
            # The newest come first.
            oldest = batch_rules.seconds_of(page[-1].get("created_at")) if page else None
            if oldest is None or oldest < window[0] or len(page) < _PAGE:
                return found
            after = {"after_id": str(page[-1].get("id"))}

    async def _look_at(self, each: Followed, answer: Answer) -> None:
        """Take in an answer that shows one batch."""
        self._hear(answer)
        shown = read_object(answer.content)
        if answer.status != HTTPStatus.OK or not batch_rules.is_batch(shown):
            await self._miss(each, answer)
            return
        each.missed = Streak()
        batch = batch_rules.seen(each.batch, shown)
        if batch != each.batch:
            await self._note(each, batch)
        if batch.state == "ended" and not batch_rules.has_results(shown):
            await self._close(each, "gone")  # and stop: its rows would be paid for again
            words = (
                f"the results of batch {each.batch_id} are over {catalog.BATCH.results_days} days old and "
                "gone. What it answered was paid for. Nothing was sent again; the same cell again sends its "
                "rows anew"
            )
            self._stop(_because("results_gone", words), all_calls=True)

    def _hear(self, answer: Answer) -> None:
        """Notice an API that has nothing to say any more, or not to this key."""
        now = self._clock.seconds()
        if answer.status is None or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._silence.add(now)
        else:
            self._silence = Streak()
        if answer.status == HTTPStatus.OK:
            self._accepted, self._doubts = True, Streak()
        if answer.status == HTTPStatus.OK or batch_rules.is_gone(answer):
            return
        found = verdict(answer)
        ends = self._silence.lasts(now, seconds=SILENT_SECONDS, count=FEW_LOOKS)
        if found.outcome == "stop":  # of a key that was good it is not believed at once
            self._doubts.add(now)
            lasts = self._doubts.lasts(now, seconds=MISSED_SECONDS, count=MISSED_LOOKS)
            ends = ends or lasts or not self._accepted
        if ends:
            self._is_deaf = True
            self._stop(found, all_calls=True)

    async def _miss(self, each: Followed, answer: Answer) -> None:
        """Count an answer that does not show a batch. One 404 may be another replica's, of a batch just made.

        When it is to be believed the batch stays in the ledger, for another key may see it. A simulator's
        ended with it, and its rows cost nothing.
        """
        now, gone = self._clock.seconds(), batch_rules.is_gone(answer)
        each.missed.add(now)
        if not each.missed.lasts(now, seconds=MISSED_SECONDS if gone else SILENT_SECONDS, count=MISSED_LOOKS):
            return
        if gone and self._job.api.simulated:
            await self._unsent(each, "gone")
        elif gone:
            words = f"batch {each.batch_id} is not shown to this key: it is another workspace's, or deleted"
            each.stuck = _because("batch_not_found", f"{words}. {_held(each)}")
        else:
            found = verdict(answer)
            words = f"batch {each.batch_id} could not be seen for hours: {found.message}"
            each.stuck = _because(found.error, words)

    # collect one that has ended

    async def _collect(self, each: Followed) -> None:
        """Bring the results of a batch to the disk, those that are not there yet, and close it."""
        recorded = await loops.in_thread(self._ledger.recorded, each.batch)
        canceled = 0

        async def take(block: bytes) -> None:
            nonlocal recorded, canceled
            frame = await loops.in_thread(self._read, block, each.batch, recorded)
            await self._keep(each, frame)
            recorded = recorded.append(frame["key"])
            canceled += frame.filter(error="canceled").height

        answer = await self._wire.results(each.batch_id, take)
        self._hear(answer)
        if answer.status != HTTPStatus.OK:
            await self._miss(each, answer)
            return
        each.missed = Streak()
        held = pl.Series(await loops.in_thread(self._ledger.held, each.batch.nonce), dtype=pl.String)
        missing = held.filter(~held.is_in(recorded.implode())).to_list()
        if missing:
            if not self._gives_up(each, len(missing)):
                return
            await take(missing_lines(missing, each.batch.nonce))
        if canceled and not each.is_canceled:
            words = f"{canceled:,} rows of batch {each.batch_id} were canceled, but not by this run"
            self._stop(_because("canceled", words), all_calls=True)
        left = await self._close(each, "collected")
        unanswered = [key for key in left if key not in each.refused]
        self._rounds.update(unanswered)
        self._give_back([key for key in unanswered if self._rounds[key] < MOST_ROUNDS])
        self._weigh(each)

    async def _keep(self, each: Followed, frame: pl.DataFrame) -> None:
        """Bring results to the disk, and note what they say of more than their rows."""
        await self._job.record_many(frame)
        self._readable |= frame.height > 0
        refused = frame.filter(_REFUSALS).select("key", "error", "message").rows()
        each.refused |= {key: (error, words) for key, error, words in refused}
        unclear = frame.filter(_UNCLEAR)["key"].to_list()  # they may be billed
        self._purse.pay(self._worst_dollars(pl.col("key").is_in(unclear)))
        for error, message in frame.filter(_STOPS).select("error", "message").rows()[:1]:
            self._stop(_because(error, message), all_calls=True)

    def _read(self, block: bytes, batch: Batch, recorded: pl.Series) -> pl.DataFrame:
        begun = batch.created_at or batch.intended_at
        frame = attempts(
            block,
            nonce=batch.nonce,
            # A batch is billed as on the day it was made.
            price=self._job.batch_price.at(datetime.fromtimestamp(begun, UTC)),
            trusted=batch_rules.trusts(batch, known_good=self._job.known_good),
            batch_id=batch.batch_id,
            sent_at=begun,
            seconds=(batch.ended_at or begun) - begun,
            **self._job.common,
        )
        new = ~pl.col("key").is_in(recorded.implode())
        return frame.unique("key", keep="first", maintain_order=True).filter(new)

    def _gives_up(self, each: Followed, missing: int) -> bool:
        """Whether results that lack lines were read often enough, so that their rows go to another batch."""
        each.reads += 1
        if each.reads < MOST_READS:
            return False
        requests = each.batch.requests
        if self._readable and missing <= max(MOST_MISSING, MOST_MISSING_SHARE * requests):
            return True
        words = f"of batch {each.batch_id} {missing:,} of {requests:,} results cannot be read"
        each.stuck = _because("results_incomplete", f"{words}. {_held(each)}")
        return False

    def _weigh(self, each: Followed) -> None:
        """Stop where whole batches are refused alike: it is the request, or the account, and not a row."""
        batch = each.batch
        ((error, message), rows), *_ = [*Counter(each.refused.values()).most_common(1), (("", ""), 0)]
        if rows < batch_rules.NEARLY_ALL * batch.requests:
            self._alike = (None, 0) if batch.succeeded else self._alike
            return
        before = self._alike[1] if self._alike[0] == (error, message) else 0
        self._alike = (error, message), before + rows
        answered = any(other.succeeded for other in self.seen)
        several = before + rows >= batch_rules.ALIKE_ROWS and (before or not answered)
        nothing_else = not (answered or self._job.known_good or self._left.height or self.waited)
        if several or nothing_else:
            count = f"{rows:,} of {batch.requests:,} rows of batch {each.batch_id}"
            self._stop(_because(error, f"{count} were refused alike: {message}"))

    async def _close(self, each: Followed, state: str) -> list[str]:
        """Close a batch, and return which of its rows have no final answer."""
        left = await loops.in_thread(self._ledger.held, each.batch.nonce)
        await self._note(each, each.batch._replace(state=state))
        self._purse.batches.pop(each.batch.nonce, None)
        self._changed_at = self._clock.seconds()
        return left

    async def _note(self, each: Followed, batch: Batch) -> None:
        """Write down what is known of a batch now."""
        await loops.in_thread(self._ledger.note, batch)
        each.batch = batch
        _LOG.debug("batch %s: %s", batch.batch_id, batch.state)


def _because(error: str | None, message: str | None = None) -> Verdict:
    """Return a reason to stop."""
    return Verdict(outcome="stop", error=error, message=message)


def _held(each: Followed) -> str:
    """Return what becomes of the rows of a batch that cannot be brought in."""
    freed = f"cs.Ledger(...).forget({each.batch_id!r})"
    return f"Its rows stay held, as they may be paid for. After {freed} they are sent, and paid for, again"
