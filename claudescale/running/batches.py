"""Rows to replies over Message Batches: what to submit, when to poll, what to collect, when to stop.

A fixed order ensures that each row is paid for once: claim the rows, write the intent to disk, post the
batch and never post it again, write its id, write its results, close the batch. If the process stops at any
step, the ledger knows the batch and the next run adopts it. `batch_rules` decides on sizes, waits and the
meaning of answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops
from claudescale.api import answers, catalog
from claudescale.api.answers import STOPPING_ERRORS, Answer, Verdict, read_object, verdict
from claudescale.api.client import BatchWire, RenderedBody, listed
from claudescale.api.limits import read_headers
from claudescale.ledger.records import OPEN, Batch
from claudescale.running import batch_rules
from claudescale.running.health import Streak
from claudescale.running.meter import CANCELED

if TYPE_CHECKING:
    from claudescale.running.job import Job

_LOG = logging.getLogger("claudescale.running")

# submitting
MOST_ROUNDS = 3
"""Most batches that one row is sent in, if it expires or fails in each."""
MOST_FAILURES = 8
"""Consecutive failed posts that end the run; once one has succeeded, they must last `UNSEEN_SECONDS`."""
_QUEUE_SECONDS, _LONGEST_HOLD_SECONDS = 60.0, 300.0
_REQUESTS_PER_MINUTE = 50
"""Rate limit of the batch endpoints if it is not known: that of the lowest tier."""

# polling
MOST_READS = 3
"""Complete reads of the results before lines that are still missing are given up."""
MOST_MISSING, MOST_MISSING_SHARE = 20, 0.05
"""If more lines are missing than both of these allow, it is a fault, and their rows are not sent again."""
MISSED_LOOKS, MISSED_SECONDS = 8, 120.0
"""Consecutive polls, and seconds, before a missing batch or the refusal of a good key is believed."""
UNSEEN_SECONDS = 6 * 3_600.0
"""How long the API may be unreachable while batches are pending: they lose nothing by waiting."""
_PAGE = 100
_REFUSED = {"invalid_request_error", "request_too_large"}
_MAYBE_BILLED = {"invalid_response", "result_missing"}


@dataclass(slots=True)
class Followed:
    """A batch that this run follows, and what the run knows about it."""

    record: Batch  # as in the ledger
    lost_until: float = math.inf  # if its answer was lost: when it can no longer be created
    foreign: set[str] = field(default_factory=set)  # ids of batches known to be others
    missed: Streak = field(default_factory=Streak)  # polls that did not show it
    stuck: Verdict | None = None  # why this run cannot collect it; it keeps holding its rows
    is_canceled: bool = False  # by this run, or possibly by an earlier one
    errors: dict[str, tuple[str, str]] = field(default_factory=dict)  # error and message of open rows

    @property
    def is_pending(self) -> bool:
        """Whether its results are still to be collected."""
        return self.record.state in OPEN and self.stuck is None


class Batches:
    """Answers rows over Message Batches; `answer` is called once.

    Spends: half of what the rows cost live.

    Attributes
    ----------
    followed : list of Followed
        All batches that this run follows or followed, in order of discovery. Other threads read it.
    stopped_by : Verdict or None
        Why nothing more is submitted. Not set while live calls can take over, as they meet the same error.
    adopted : set of str
        Keys of rows held by batches of earlier runs.
    submitted, freed, woken : asyncio.Event
        Set, respectively, when the queue has no room for more; when live calls may send the rest, as nothing
        more will be submitted and pending batches are collected; when the job is asked to stop or leave.
    """

    def __init__(self, job: Job) -> None:
        limits = job.plan.compiled.limits
        self.followed: list[Followed] = []
        self.stopped_by: Verdict | None = None
        self.adopted: set[str] = set()
        self.submitted, self.freed, self.woken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._job, self._ledger, self._clock, self._purse = job, job.ledger, job.clock, job.purse
        self._wire = BatchWire(job.wire, limits.batch_requests_per_minute or _REQUESTS_PER_MINUTE)
        self._requests = job.with_worst(job.work.requests, "batch")
        self._submits = self._hands_over = self._leaves = False
        self._is_accepted = False  # the API has accepted the key for batches
        self._changed_at = job.clock.seconds()
        # rows to submit
        self._left = self._others = self._requests.clear()  # `_others` are held by other runs
        self._rounds: Counter[str] = Counter()
        self._most_requests = limits.batch_queue_requests or catalog.BATCH.max_requests
        self._queue_requests = self._most_requests  # fewer while the API refuses that many
        self._failures, self._hold_until = Streak(), 0.0

    # the handle

    @property
    def pending(self) -> list[Followed]:
        """Batches whose results are still to be collected."""
        return [batch for batch in self.followed if batch.is_pending]

    @property
    def _made(self) -> list[Followed]:
        """Pending batches that are known to exist at the API."""
        return [batch for batch in self.pending if batch.record.batch_id is not None]

    @property
    def stuck(self) -> dict[str, Verdict]:
        """Why this run cannot collect some batches, by nonce; they keep holding their rows."""
        return {batch.record.nonce: batch.stuck for batch in self.followed if batch.stuck is not None}

    def expected(self) -> batch_rules.Expected | None:
        """Return an estimate of when the last batch ends; None if none is pending."""
        shown = [batch.record for batch in self.followed if batch.stuck is None]
        return batch_rules.expected_end(shown, self._clock.seconds())

    def leave(self) -> None:
        """Submit nothing more and let pending batches continue without this run. Call on the loop's thread.

        Spends: nothing more; pending batches are paid for when they are answered.
        """
        self._leaves, self._submits = True, False
        self.woken.set()

    async def answer(self) -> None:
        """Return when every missing row is answered or given up, or when the run is stopped.

        Batches of earlier runs that hold rows of this run are adopted first.

        Spends: half of what the rows cost live.
        """
        try:
            self._submits = True
            self._left = self._job.with_worst(self._job.missing, "batch")
            await self.adopt()
            await self._check()
            await self.follow()
        finally:
            self.freed.set()

    async def follow(self) -> None:
        """Collect batches that hold rows of this run; only `answer` has it submit any. Spends: nothing."""
        while not (self._leaves or self._job.asked == "leave"):
            await self._submit()
            self.submitted.set()
            if self._clock.seconds() >= self._job.switch_at():
                self._hand_over()
            cancels = self._job.asked == "stop" or self._hands_over
            if cancels:
                await self._cancel()
            await self._look()
            if cancels and not self._made:
                self.freed.set()
            if self._is_done():
                break
            await self._wait()

    def _is_done(self) -> bool:
        if self._job.asked == "stop":
            return not self._made
        is_all_sent = self._left.is_empty() and self._others.is_empty()
        return not self.pending and (is_all_sent or not self._submits)

    async def _wait(self) -> None:
        """Wait until the next poll is due or `woken` is set."""
        now = self._clock.seconds()
        seconds = batch_rules.poll_seconds(now - self._changed_at)
        if self._submits:
            seconds = min(seconds, max(self._job.switch_at() - now, 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._clock.real(seconds)):
                await self.woken.wait()
        self.woken.clear()

    def _stop(self, error: str | None, message: str | None = None) -> None:
        """Submit nothing more. In hybrid mode live calls take over, and meet the error themselves."""
        if math.isfinite(self._job.switch_at()):
            self._hand_over()
        else:
            self.stopped_by = self.stopped_by or Verdict(outcome="stop", error=error, message=message)
            self._submits = False

    def _hand_over(self) -> None:
        """Submit nothing more, and cancel pending batches, so that live calls can send the rest."""
        self._hands_over, self._submits = True, False
        self._left = self._others = self._left.clear()

    # rows held by a batch or another run

    async def adopt(self) -> None:
        """Adopt batches that no living run follows; rows that they hold are not sent now.

        Spends: nothing.
        """
        now = self._clock.seconds()
        for record in await loops.in_thread(self._ledger.adopt, self._requests["key"]):
            sent_by = record.intended_at + batch_rules.LONGEST_UPLOAD_SECONDS
            lost_until = min(now, sent_by) + batch_rules.LOST_SECONDS
            again = record._replace(state="in_progress")  # poll it again, as its results may be gone
            self.followed.append(Followed(again, lost_until, is_canceled=True))
            held = await loops.in_thread(self._ledger.held, record.nonce)
            is_held = pl.col("key").is_in(held)
            self.adopted.update(held)
            self._purse.batches[record.nonce] = self._worst_dollars(held)
            self._left, self._others = self._left.filter(~is_held), self._others.filter(~is_held)
            _LOG.debug("batch %s of an earlier run: adopted", record.batch_id)

    def _worst_dollars(self, keys: list[str]) -> float:
        return float(self._requests.filter(pl.col("key").is_in(keys))["worst_dollars"].sum())

    def _give_back(self, keys: list[str]) -> None:
        """Queue rows to be sent again; if nothing more is submitted, live calls may claim them."""
        if self._submits and keys:
            self._left = pl.concat([self._requests.filter(pl.col("key").is_in(keys)), self._left])

    # submit

    async def _check(self) -> None:
        """Have up to three rows answered with one token, as a batch reports a wrong request hours later."""
        rows, job, reasons = self._left, self._job, set()
        if rows.is_empty() or job.simulated or job.known_good or job.refusal() is not None:
            return  # nothing will be sent, or the request is known to work
        # From all over the frame, as a single row may itself be to blame.
        for place in sorted({0, rows.height // 2, rows.height - 1}):
            meaning = await self._dry_run(rows[place])
            if job.asked or not batch_rules.is_hopeless(meaning):
                return
            reasons.add((meaning.error, meaning.message))
        if len(reasons) == 1:
            self._stop(meaning.error, meaning.message)

    async def _dry_run(self, row: pl.DataFrame) -> Verdict:
        """Return the API's verdict on a row, if the budget has room for a reply of one token."""
        job, (request,) = self._job, self._job.work.bodies(row["row"])
        message, longest = batch_rules.dry_run(request)
        worst = job.with_worst(row, "live", longest)["worst_dollars"].item()
        if not self._purse.affords(worst):
            return Verdict(outcome="again")
        sent = self._clock.seconds()
        answer = await job.wire.send(message)
        meaning, seconds = verdict(answer), self._clock.seconds() - sent
        if meaning.outcome == "answered":
            attempt = job.attempt(row["key"].item(), answer, meaning, sent=sent, seconds=seconds)
            words = catalog.WORDS["answer"][answers.DRY_RUN]
            job.record(attempt._replace(error=answers.DRY_RUN, message=words, reply=None), final=False)
            self._purse.pay(attempt.dollars)
        elif meaning.unseen:
            self._purse.pay(worst)
        return meaning

    async def _submit(self) -> None:
        """Submit as much as the queue, the budget and the time allow."""
        while self._may_post() and not (rows := self._next()).is_empty():
            self._left = self._left.slice(rows.height)
            mine = await loops.in_thread(self._job.claimed, rows)
            if mine.height < rows.height:
                others = rows.join(mine, on="key", how="anti", maintain_order="left")
                self._others = pl.concat([self._others, others])
            if mine.height and (words := self._job.refusal()) is not None:
                self._stop("model_retired", words)
            elif mine.height:
                await self._post(mine)

    def _may_post(self) -> bool:
        """Whether another batch may be posted now."""
        is_time = self._hold_until <= self._clock.seconds() < self._job.switch_at()
        return self._submits and is_time and not self._job.asked

    def _next(self) -> pl.DataFrame:
        """Return the rows of the next batch; none if they have to wait."""
        pending = self.pending
        room = self._queue_requests - sum(batch.record.requests for batch in pending)
        most = min(catalog.BATCH.max_requests, room)
        plan = self._job.plan
        if plan.cache and plan.compiled.prompt.is_cacheable and len(pending) == len(self.followed):
            most = 0 if pending else 1  # one row alone writes the cache first
        count = batch_rules.fitting(self._left, requests=most, dollars=self._purse.left)
        if not count and self._left.height and not pending:
            self._stop("budget")
        return self._left.head(count)

    async def _post(self, rows: pl.DataFrame) -> None:
        """Post one batch, exactly once; record the intent before and the id after."""
        job, nonce = self._job, secrets.token_hex(batch_rules.NONCE_BYTES)
        record = Batch(
            nonce=nonce,
            api=job.api.name,
            model=job.plan.compiled.model.id,
            requests=rows.height,
            intended_at=self._clock.seconds(),
        )
        await loops.in_thread(self._ledger.intend, record, rows["key"].to_list())
        batch = Followed(record)
        self.followed.append(batch)
        self._purse.batches[nonce] = float(rows["worst_dollars"].sum())
        body = RenderedBody(partial(batch_rules.body, rows, job.work, nonce))
        answer = await self._created(body, batch_rules.body_bytes(rows))
        made, self._changed_at = batch_rules.made(answer), self._clock.seconds()
        _LOG.debug("batch of %d rows: made %s, status %s", rows.height, made, answer.status)
        if made:
            await self._note(batch, batch_rules.updated(record, read_object(answer.content)))
            self._is_accepted, self._failures = True, Streak()
            self._queue_requests = min(2 * self._queue_requests, self._most_requests)
        elif body.flaw is not None:  # an incomplete body creates no batch
            await self._close(batch, "absent")
            raise body.flaw
        elif made is None:  # it may exist, so it is searched for
            batch.lost_until = self._changed_at + batch_rules.LOST_SECONDS
        else:
            wait_seconds = read_headers(answer.headers).retry_after_seconds
            await self._not_made(batch, verdict(answer), wait_seconds)

    async def _created(self, body: RenderedBody, size_bytes: int) -> Answer:
        """Return the API's answer, or a timeout; the intent is on disk, so a later search finds the batch."""
        seconds = self._clock.real(max(self._job.switch_at() - self._clock.seconds(), 0.0))
        try:
            async with asyncio.timeout(seconds):
                return await self._wire.create(body, size_bytes)
        except TimeoutError:
            return Answer(None, {}, b"", "timeout_error")

    async def _not_made(self, batch: Followed, why: Verdict, wait_seconds: float | None = None) -> None:
        """Release the rows of a batch that was not created, then back off or stop."""
        await self._release(batch, "absent")
        now = self._clock.seconds()
        if why.outcome == "refused":  # a full queue may stay full for long
            self._hold_until = now + (wait_seconds or _QUEUE_SECONDS)
            if not self.pending:  # others fill it, or it is smaller than documented
                self._queue_requests = max(batch.record.requests // 2, 1)
        elif self._hold_until <= now:  # failures during one wait count once
            self._failures.add(now)
            backoff = min(2.0**self._failures.count, _LONGEST_HOLD_SECONDS)
            self._hold_until = now + (wait_seconds or backoff)
            is_hopeless = batch_rules.is_hopeless(why)
            at_once = is_hopeless and not (self._is_accepted and why.error in answers.DOUBTED)
            patience = UNSEEN_SECONDS if self._is_accepted and not is_hopeless else 0.0
            if at_once or self._failures.lasts(now, seconds=patience, count=MOST_FAILURES):
                self._stop(why.error, why.message)

    # poll pending batches

    async def _look(self) -> None:
        """Poll every pending batch, collect those that have ended, and queue unanswered rows again."""
        for batch in self.pending:
            if batch.record.batch_id is None:
                await self._search(batch)
            elif batch.record.state != "ended":
                await self._look_at(batch, await self._wire.retrieve(batch.record.batch_id))
            if batch.is_pending and batch.record.state == "ended":
                await self._collect(batch)
        if self._others.height:  # another run may have answered or released them
            self._others = await self._job.unanswered(self._others)
            await self.adopt()
            self._give_back(self._others["key"].to_list())
            self._others = self._others.clear()
        elif not self._submits:
            await self.adopt()  # the run whose rows live calls wait for may have ended

    async def _cancel(self) -> None:
        """Cancel every batch that is known to exist."""
        for batch in self._made:
            if batch.record.state == "in_progress":
                batch.is_canceled, self._changed_at = True, self._clock.seconds()
                await self._look_at(batch, await self._wire.cancel(str(batch.record.batch_id)))

    async def _look_at(self, batch: Followed, answer: Answer) -> None:
        """Update a batch from an answer that describes it."""
        shown = read_object(answer.content)
        if not await self._is_success(batch, answer, is_readable=batch_rules.is_batch(shown)):
            return
        batch.missed = Streak()
        record = batch_rules.updated(batch.record, shown)
        if record != batch.record:
            await self._note(batch, record)
        if record.state == "ended" and not batch_rules.has_results(shown):
            days = catalog.BATCH.results_days
            words = f"the results of batch {batch.record.batch_id} are over {days} days old and gone"
            self._give_up(batch, "results_gone", words)

    async def _is_success(self, batch: Followed, answer: Answer, *, is_readable: bool = True) -> bool:
        """Whether an answer is a success; failures are believed only after several in a row."""
        # A single 404 may come from a replica that does not know a new batch yet. Once it is believed, the
        # batch stays in the ledger, as another key may see it. A simulator's batch ended with the simulator,
        # and its rows cost nothing.
        if answer.status == HTTPStatus.OK and is_readable:
            self._is_accepted = True
            return True
        now, why, is_gone = self._clock.seconds(), verdict(answer), batch_rules.is_gone(answer)
        batch.missed.add(now)
        stops = why.outcome == "stop"
        at_once = stops and not (is_gone or self._is_accepted)  # a good key may be refused by chance
        patience = MISSED_SECONDS if stops else UNSEEN_SECONDS
        if not (at_once or batch.missed.lasts(now, seconds=patience, count=MISSED_LOOKS)):
            return False
        if is_gone and self._job.api.simulated:
            await self._release(batch, "gone")
        elif is_gone and (batch_id := batch.record.batch_id):
            words = f"batch {batch_id} is not shown to this key: it is another workspace's, or deleted"
            self._give_up(batch, "batch_not_found", words)
        else:
            batch.stuck = Verdict(outcome="stop", error=why.error, message=why.message)
        return False

    # a batch whose answer was lost

    async def _search(self, lost: Followed) -> None:
        """Search for a batch whose answer was lost; release its rows once it cannot have been created."""
        records = await loops.in_thread(self._ledger.batches)
        lost.foreign.update(record.batch_id for record in records if record.batch_id)
        candidates = await self._candidates(lost)
        if candidates is None:
            return
        lost.missed = Streak()
        for shown in candidates:
            is_ours = await self._is_ours(shown, lost.record.nonce)
            if is_ours:
                await self._note(lost, batch_rules.updated(lost.record, shown))
                return
            if is_ours is False:
                lost.foreign.add(shown["id"])
        all_foreign = all(shown["id"] in lost.foreign for shown in candidates)
        if all_foreign and self._clock.seconds() >= lost.lost_until:
            words = "a batch was not made"
            await self._not_made(lost, Verdict(outcome="again", error="api_error", message=words))

    async def _candidates(self, lost: Followed) -> list[dict[str, Any]] | None:
        """Return the API's batches that may be the lost one; None if they cannot be listed now."""
        candidates: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:  # the newest come first
            answer = await self._wire.page(limit=_PAGE, **after)
            page = listed(answer)
            if not await self._is_success(lost, answer, is_readable=page is not None):
                return None
            assert page is not None
            window = batch_rules.window(lost.record, lost.lost_until, answer, self._clock.seconds())
            candidates += [
                shown
                for shown in page
                if batch_rules.may_be(lost.record, shown, window) and shown["id"] not in lost.foreign
            ]
            oldest = batch_rules.seconds_of(page[-1].get("created_at")) if page else None
            if oldest is None or oldest < window[0] or len(page) < _PAGE:
                return candidates
            after = {"after_id": str(page[-1].get("id"))}

    async def _is_ours(self, shown: dict[str, Any], nonce: str) -> bool | None:
        """Whether the results of a batch carry the nonce, which proves it; None while that is unknown."""
        if shown["processing_status"] != "ended":
            return None
        block = await self._wire.first_lines(shown["id"])
        is_ours = batch_rules.proves(block, nonce) if block else None
        return False if is_ours is None and not batch_rules.has_results(shown) else is_ours

    # collect an ended batch

    async def _collect(self, batch: Followed) -> None:
        """Write the results of a batch that are not yet on disk, and close it."""
        recorded = await loops.in_thread(self._ledger.recorded, batch.record)
        take = partial(self._take, batch, recorded)
        answer = await self._wire.results(str(batch.record.batch_id), take)
        if not await self._is_success(batch, answer):
            return
        held = pl.Series(await loops.in_thread(self._ledger.held, batch.record.nonce), dtype=pl.String)
        missing = held.filter(~held.is_in(recorded.implode())).to_list()
        if missing:
            batch.missed.add(self._clock.seconds())
            if batch.missed.count < MOST_READS:
                return
            requests = batch.record.requests
            if recorded.is_empty() or len(missing) > max(MOST_MISSING, MOST_MISSING_SHARE * requests):
                words = f"{len(missing):,} of {requests:,} results cannot be read"
                self._give_up(batch, "results_incomplete", f"of batch {batch.record.batch_id} {words}")
                return
            await take(batch_rules.missing_lines(missing, batch.record.nonce))
        await self._settle(batch)

    async def _take(self, batch: Followed, recorded: pl.Series, block: bytes) -> None:
        """Write result lines that are not yet on disk."""
        job = self._job
        trusted = batch_rules.trusts(batch.record, known_good=job.known_good)
        read = partial(
            batch_rules.attempts, block, batch.record, job.batch_price, trusted=trusted, **job.common
        )
        results = await loops.in_thread(read)
        new = ~pl.col("key").is_in(recorded.implode())
        results = results.unique("key", keep="first", maintain_order=True).filter(new)
        await job.record_many(results)
        recorded.append(results["key"])
        errors = results.filter(~pl.col("final")).select("key", "error", "message")
        batch.errors |= {key: (error, message) for key, error, message in errors.iter_rows()}

    async def _settle(self, batch: Followed) -> None:
        """Close a batch whose results are on disk, and decide which of its open rows are sent again."""
        errors = batch.errors
        self._purse.pay(self._worst_dollars([key for key in errors if errors[key][0] in _MAYBE_BILLED]))
        for error, message in errors.values():
            if error in STOPPING_ERRORS:
                self._stop(error, message)
                break
        kept_back = _REFUSED if batch.is_canceled else _REFUSED | {CANCELED}
        refused = {key: errors[key] for key in errors if errors[key][0] in kept_back}
        again = [key for key in await self._close(batch, "collected") if key not in refused]
        self._rounds.update(again)
        self._give_back([key for key in again if self._rounds[key] < MOST_ROUNDS])
        is_last = self._left.is_empty() and not self.pending
        words = batch_rules.refused_alike(batch.record, refused.values(), is_last=is_last)
        if words is not None:
            self._stop(*words)

    # the ends of a batch

    def _give_up(self, batch: Followed, error: str, words: str) -> None:
        """Stop following a batch. It keeps holding its rows, which may have been paid for."""
        freed = f"After cs.Ledger(...).forget({batch.record.batch_id!r}) they are sent, and paid for, again"
        words = f"{words}. Its rows stay held, as they may be paid for. {freed}"
        batch.stuck = Verdict(outcome="stop", error=error, message=words)

    async def _release(self, batch: Followed, state: str) -> None:
        """Close a batch that does not exist, and queue its rows again."""
        self._give_back(await self._close(batch, state))

    async def _close(self, batch: Followed, state: str) -> list[str]:
        """Close a batch, and return the keys of its rows that have no final answer."""
        left = await loops.in_thread(self._ledger.held, batch.record.nonce)
        await self._note(batch, batch.record._replace(state=state))
        self._purse.batches.pop(batch.record.nonce, None)
        self._changed_at = self._clock.seconds()
        return left

    async def _note(self, batch: Followed, record: Batch) -> None:
        """Record the current state of a batch."""
        await loops.in_thread(self._ledger.note, record)
        batch.record = record
        _LOG.debug("batch %s: %s", record.batch_id, record.state)
