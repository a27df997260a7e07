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
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import polars as pl

from claudescale import loops
from claudescale.api import answers, catalog
from claudescale.api.answers import Answer, Verdict, read_object, verdict
from claudescale.api.client import BatchWire, Parts, listed
from claudescale.api.limits import read_headers
from claudescale.ledger.records import OPEN, Batch
from claudescale.running import batch_rules
from claudescale.running.batch_results import attempts, missing_lines, proves
from claudescale.running.health import Streak
from claudescale.running.meter import CANCELED

if TYPE_CHECKING:
    from claudescale.running.job import Job

_LOG = logging.getLogger("claudescale.running")

# submitting
MOST_ROUNDS = 3
"""Batches that one row goes into, if it expires or fails in each."""
MOST_FAILURES = 8
"""Posts in a row that surely made no batch, before the run ends; once one was made, some hours of them."""
_QUEUE_SECONDS, _LONGEST_HOLD = 60.0, 300.0
_MOST_REFUSALS = 3  # with none of ours there, before the queue is taken to be smaller than it is said to be
_REQUESTS_PER_MINUTE = 50
"""Calls to the batch endpoints where their limit is not known: that of the lowest tier."""

# looking
MOST_READS = 3
"""Times that results are read to their end which lack lines."""
MOST_MISSING, MOST_MISSING_SHARE = 20, 0.05
"""Where more lines are missing than both of these it is no slip, and their rows are not sent again."""
MISSED_LOOKS, MISSED_SECONDS = 8, 120.0
"""So often in a row, and for so long, must a batch not be shown, or a key that was good be refused."""
UNSEEN_SECONDS = 6 * 3_600.0
"""How long the API may not be reached while batches are out: they lose nothing by waiting."""
_PAGE = 100
_STOPS = pl.col("error").is_in(list(answers.STOPPING_ERRORS))
_REFUSALS = pl.col("error").is_in(["invalid_request_error", "request_too_large"]) & ~pl.col("final")
_UNCLEAR = pl.col("error").is_in(["invalid_response", "result_missing"])


@dataclass(slots=True)
class Followed:
    """A batch that this run follows, and what it has learned of it."""

    batch: Batch
    lost_until: float = math.inf  # when one whose answer was lost surely was not made
    foreign: set[str] = field(default_factory=set)  # batches that were looked at and are not this one
    missed: Streak = field(default_factory=Streak)  # looks in vain
    stuck: Verdict | None = None  # why this run cannot bring it in; it goes on holding its rows
    is_canceled: bool = False  # by this run, or maybe by an earlier one
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # not to be sent again: error, message

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
        compiled = job.plan.compiled
        self.stopped_by: Verdict | None = None
        self.adopted: set[str] = set()
        self.submitted, self.freed, self.woken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._job, self._ledger, self._clock, self._purse = job, job.ledger, job.clock, job.purse
        per_minute = compiled.limits.batch_requests_per_minute or _REQUESTS_PER_MINUTE
        self._wire = BatchWire(job.wire, per_minute)
        self._requests = job.with_worst(job.work.requests, "batch")
        self._followed: list[Followed] = []  # in the order they were met; other threads read it
        self._leaves = self._switched = self._submits = False
        # what is to be submitted
        self._left = self._others = self._requests.clear()  # the others' rows are held by other runs
        self._prime = job.plan.cache and compiled.prompt.is_cacheable  # one row alone writes the cache first
        self._queue_requests = compiled.limits.batch_queue_requests or catalog.BATCH.max_requests
        self._rounds: Counter[str] = Counter()
        self._failures, self._refusals, self._hold_until = Streak(), 0, 0.0
        self._accepted = False
        self._ends_all = False  # live calls would meet what stopped this, too
        self._changed_at = job.clock.seconds()

    # the handle

    @property
    def is_refused(self) -> bool:
        """Whether there is a reason to stop. The live calls of a hybrid meet most of them themselves."""
        return self.stopped_by is not None and (self._ends_all or self._job.plan.mode != "hybrid")

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
            while not (self._leaves or self._job.asked == "leave"):
                await self._submit()
                self.submitted.set()
                self._hand_over()
                cancels = self._job.asked == "stop" or self._switched
                if cancels:
                    await self._cancel()
                await self._look()
                if cancels and not self.known:
                    self.freed.set()
                if self._is_done():
                    break
                await self._wait()
        finally:
            self.submitted.set()
            self.freed.set()

    def _hand_over(self) -> None:
        """Leave the rest to live calls where the time is up, or no batch can be made."""
        ill = self.stopped_by is not None and not self.is_refused
        if self._submits and (ill or self._clock.seconds() >= self._job.switch_at()):
            self._switched, self._submits = True, False
            self._left = self._others = self._left.clear()

    def _is_done(self) -> bool:
        if self._job.asked == "stop":
            return not self.known
        sends = self.stopped_by is None and (self._left.height or self._others.height)
        return not (self.waited or sends)

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

    def _stop(self, error: str | None, message: str | None = None, *, all_calls: bool = False) -> None:
        """Submit nothing more; with `all_calls` for a reason that live calls would meet, too."""
        self.stopped_by = self.stopped_by or Verdict(outcome="stop", error=error, message=message)
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
            again = batch._replace(state="in_progress")  # it is looked at anew: its results may be gone
            self._followed.append(Followed(again, lost_until, is_canceled=True))
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

    # submit

    async def _check(self) -> None:
        """Have the API answer rows with one token: what is wrong with all would be told hours later.

        At most three, from all over the frame, as a row may be to blame itself.
        """
        rows, job, reasons = self._left, self._job, set()
        if rows.is_empty() or job.simulated or job.known_good or job.refusal() is not None:
            return  # nothing will be sent, or all is well
        for place in sorted({0, rows.height // 2, rows.height - 1}):
            found = await self._dry_run(rows[place])
            if job.asked or self._leaves or not batch_rules.is_wrong(found):
                return
            reasons.add((found.error, found.message))
        if len(reasons) == 1:
            self._stop(found.error, found.message)

    async def _dry_run(self, row: pl.DataFrame) -> Verdict:
        """Return what the API says of a row, where the budget has room for a reply of one token."""
        job, (request,) = self._job, self._job.work.bodies(row["row"])
        message, longest = batch_rules.dry_run(request)
        worst = job.with_worst(row, "live", longest)["worst_dollars"].item()
        if not self._purse.affords(worst):
            return Verdict(outcome="again")
        sent = self._clock.seconds()
        answer = await job.wire.send(message)
        found, seconds = verdict(answer), self._clock.seconds() - sent
        if found.outcome == "answered":
            attempt = job.attempt(row["key"].item(), answer, found, sent=sent, seconds=seconds)
            words = answers.WORDS[answers.DRY_RUN]
            job.record(attempt._replace(error=answers.DRY_RUN, message=words, reply=None), final=False)
            self._purse.pay(attempt.dollars)
        elif found.unseen:
            self._purse.pay(worst)
        return found

    async def _submit(self) -> None:
        """Submit as much as queue, budget and time allow."""
        while self._submits and not (self._job.asked or self._leaves or self.stopped_by):
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
                self._stop("model_retired", words, all_calls=True)
            elif mine.height:
                await self._post(mine)

    def _next(self) -> pl.DataFrame:
        """Return the rows of the next batch; none where they have to wait."""
        out = self.waited
        room = self._queue_requests - sum(each.batch.requests for each in out)
        most = min(catalog.BATCH.max_requests, room)
        if self._prime and all(each.is_waited for each in self._followed):
            most = 0 if out else 1
        count = batch_rules.fitting(self._left, requests=most, dollars=self._purse.left)
        if not count and self._left.height and not out:
            self._stop("budget")
        return self._left.head(count)

    async def _post(self, rows: pl.DataFrame) -> None:
        """Post one batch, once: the intent before, the id after."""
        job, nonce = self._job, secrets.token_hex(batch_rules.NONCE_BYTES)
        batch = Batch(
            nonce=nonce,
            api=job.api.name,
            model=job.plan.compiled.model.id,
            requests=rows.height,
            intended_at=self._clock.seconds(),
        )
        await loops.in_thread(self._ledger.intend, batch, rows["key"].to_list())
        posted = Followed(batch)
        self._followed.append(posted)
        self._purse.batches[nonce] = float(rows["worst_dollars"].sum())
        body = Parts(partial(batch_rules.body, rows, job.work, nonce))
        answer = await self._created(body, batch_rules.body_bytes(rows))
        made, self._changed_at = batch_rules.made(answer), self._clock.seconds()
        _LOG.debug("batch of %d rows: made %s, status %s", rows.height, made, answer.status)
        if made:
            await self._note(posted, batch_rules.seen(batch, read_object(answer.content)))
            self._failures, self._refusals = Streak(), 0
        elif body.flaw is not None:  # half a body makes no batch
            await self._close(posted, "absent")
            raise body.flaw
        elif made is None:  # it may be there: it is looked for
            posted.lost_until = self._changed_at + batch_rules.LOST_SECONDS
        else:
            wait_seconds = read_headers(answer.headers).retry_after_seconds
            await self._not_made(posted, verdict(answer), wait_seconds=wait_seconds)

    async def _created(self, body: Parts, size_bytes: int) -> Answer:
        """Return what came back, or that nothing did in time: the intent is on the disk, it will be found."""
        seconds = self._clock.real(max(self._job.switch_at() - self._clock.seconds(), 0.0))
        try:
            async with asyncio.timeout(seconds):
                return await self._wire.create(body, size_bytes)
        except TimeoutError:
            return Answer(None, {}, b"", "timeout_error")

    async def _not_made(
        self, each: Followed, found: Verdict, state: str = "absent", wait_seconds: float | None = None
    ) -> None:
        """Close a batch that is not there. Its rows go again after a while, or the run ends."""
        self._give_back(await self._close(each, state))
        now = self._clock.seconds()
        if found.outcome == "refused":  # a queue that is full may be full for long
            self._hold_until = now + (wait_seconds or _QUEUE_SECONDS)
            self._refusals += not self.waited
            if self._refusals == _MOST_REFUSALS:
                self._queue_requests, self._refusals = max(each.batch.requests // 2, 1), 0
        elif self._submits and self._hold_until <= now:  # several count once
            self._failures.add(now)
            self._hold_until = now + (wait_seconds or min(2.0**self._failures.count, _LONGEST_HOLD))
            made, hopeless = any(batch.created_at for batch in self.seen), batch_rules.is_hopeless(found)
            patience = UNSEEN_SECONDS if made and not hopeless else 0.0
            at_once = hopeless and not (made and found.error in answers.DOUBTED)
            if at_once or self._failures.lasts(now, seconds=patience, count=MOST_FAILURES):
                self._stop(found.error, found.message)

    # look at what is out

    async def _look(self) -> None:
        """See how every batch is, collect what has ended, and send again what was not answered."""
        for each in self.waited:
            if each.batch.batch_id is None:
                await self._search(each)
            elif each.batch.state != "ended":
                await self._look_at(each, await self._wire.free("retrieve", each.batch_id))
            if each.is_waited and each.batch.state == "ended":
                await self._collect(each)
        if self._others.height:  # what another run has answered meanwhile, or holds no more
            self._others = await self._job.unanswered(self._others)
            await self.adopt()
            self._give_back(self._others["key"].to_list())
            self._others = self._others.clear()
        elif not self._submits:
            await self.adopt()  # the run that held what live calls wait for may have ended

    async def _cancel(self) -> None:
        """Ask for the end of every batch that is known to be there."""
        for each in self.known:
            if each.batch.state == "in_progress":
                each.is_canceled, self._changed_at = True, self._clock.seconds()
                await self._look_at(each, await self._wire.free("cancel", each.batch_id))

    async def _search(self, lost: Followed) -> None:
        """Look for a batch whose answer was lost: the nonce in its results proves it."""
        kept = await loops.in_thread(self._ledger.batches)
        lost.foreign.update(batch.batch_id for batch in kept if batch.batch_id)
        is_unclear = False
        after: dict[str, str] = {}
        while True:  # the newest come first
            answer = await self._wire.free("list", limit=_PAGE, **after)
            if not await self._hears(lost, answer):
                return
            page = listed(answer)
            span = batch_rules.window(lost.batch, lost.lost_until, answer, self._clock.seconds())
            for shown in page:
                if not batch_rules.may_be(lost.batch, shown, span) or shown["id"] in lost.foreign:
                    continue
                ended = shown["processing_status"] == "ended"
                block = await self._wire.first_lines(shown["id"]) if ended else None
                ours = proves(block, lost.batch.nonce) if block else None
                if ours:
                    await self._note(lost, batch_rules.seen(lost.batch, shown))
                    return
                if ours is None and (batch_rules.has_results(shown) or not ended):
                    is_unclear = True
                else:
                    lost.foreign.add(shown["id"])
            oldest = batch_rules.seconds_of(page[-1].get("created_at")) if page else None
            if oldest is None or oldest < span[0] or len(page) < _PAGE:
                break
            after = {"after_id": str(page[-1].get("id"))}
        lost.missed = Streak()
        if not is_unclear and self._clock.seconds() >= lost.lost_until:
            words = "a batch was not made"
            await self._not_made(lost, Verdict(outcome="again", error="api_error", message=words))

    async def _look_at(self, each: Followed, answer: Answer) -> None:
        """Take in an answer that shows one batch."""
        shown = read_object(answer.content)
        if not await self._hears(each, answer, is_readable=batch_rules.is_batch(shown)):
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
            self._stop("results_gone", words, all_calls=True)

    async def _hears(self, each: Followed, answer: Answer, *, is_readable: bool = True) -> bool:
        """Whether an answer is a plain yes; any other is believed only after several.

        One 404 may be another replica's, of a batch just made. When it is to be believed the batch stays in
        the ledger, for another key may see it. A simulator's ended with it, and its rows cost nothing.
        """
        if answer.status == HTTPStatus.OK and is_readable:
            self._accepted = True
            return True
        now, gone, found = self._clock.seconds(), batch_rules.is_gone(answer), verdict(answer)
        each.missed.add(now)
        stops = found.outcome == "stop"  # of a key that was good it is not believed at once
        patience = MISSED_SECONDS if gone or stops else UNSEEN_SECONDS
        at_once = stops and not (gone or self._accepted)
        if not (at_once or each.missed.lasts(now, seconds=patience, count=MISSED_LOOKS)):
            return False
        if gone and self._job.api.simulated:
            await self._not_made(each, found, "gone")
        elif gone and each.batch.batch_id:
            words = f"batch {each.batch_id} is not shown to this key: it is another workspace's, or deleted"
            self._give_up(each, "batch_not_found", words)
        else:
            each.stuck = Verdict(outcome="stop", error=found.error, message=found.message)
        return False

    def _give_up(self, each: Followed, error: str, words: str) -> None:
        """Follow a batch no more. It goes on holding its rows, which may be paid for."""
        freed = f"After cs.Ledger(...).forget({each.batch_id!r}) they are sent, and paid for, again"
        words = f"{words}. Its rows stay held, as they may be paid for. {freed}"
        each.stuck = Verdict(outcome="stop", error=error, message=words)

    # collect one that has ended

    async def _collect(self, each: Followed) -> None:
        """Bring the results of a batch to the disk, those that are not there yet, and close it."""
        batch, recorded = each.batch, await loops.in_thread(self._ledger.recorded, each.batch)

        async def take(block: bytes) -> None:
            frame = await loops.in_thread(self._read, block, batch, recorded)
            await self._keep(each, frame)
            recorded.append(frame["key"])

        answer = await self._wire.results(each.batch_id, take)
        if not await self._hears(each, answer):
            return
        held = pl.Series(await loops.in_thread(self._ledger.held, batch.nonce), dtype=pl.String)
        missing = held.filter(~held.is_in(recorded.implode())).to_list()
        if missing:
            each.missed.add(self._clock.seconds())
            if each.missed.count < MOST_READS:
                return
            many = len(missing) > max(MOST_MISSING, MOST_MISSING_SHARE * batch.requests)
            if many or recorded.is_empty():
                words = f"{len(missing):,} of {batch.requests:,} results cannot be read"
                self._give_up(each, "results_incomplete", f"of batch {each.batch_id} {words}")
                return
            await take(missing_lines(missing, batch.nonce))
        unanswered = [key for key in await self._close(each, "collected") if key not in each.refused]
        self._rounds.update(unanswered)
        self._give_back([key for key in unanswered if self._rounds[key] < MOST_ROUNDS])
        more = self._left.height or self.waited
        for (error, message), rows in Counter(each.refused.values()).most_common(1):
            # Refused alike, it is the request, or the account, and not a row.
            enough = batch.requests >= batch_rules.ALIKE_ROWS or not more
            if enough and rows >= batch_rules.NEARLY_ALL * batch.requests:
                count = f"{rows:,} of {batch.requests:,} rows of batch {each.batch_id}"
                self._stop(error, f"{count} were refused alike: {message}")

    async def _keep(self, each: Followed, frame: pl.DataFrame) -> None:
        """Bring results to the disk, and note what they say of more than their rows."""
        await self._job.record_many(frame)
        stays = _REFUSALS if each.is_canceled else _REFUSALS | (pl.col("error") == CANCELED)
        refused = frame.filter(stays).select("key", "error", "message").rows()
        each.refused |= {key: (error, message) for key, error, message in refused}
        unclear = frame.filter(_UNCLEAR)["key"].to_list()  # they may be billed
        self._purse.pay(self._worst_dollars(pl.col("key").is_in(unclear)))
        for error, message in frame.filter(_STOPS).select("error", "message").rows()[:1]:
            self._stop(error, message, all_calls=True)

    def _read(self, block: bytes, batch: Batch, recorded: pl.Series) -> pl.DataFrame:
        job = self._job
        trusted = batch_rules.trusts(batch, known_good=job.known_good)
        frame = attempts(block, batch, job.batch_price, trusted=trusted, **job.common)
        new = ~pl.col("key").is_in(recorded.implode())
        return frame.unique("key", keep="first", maintain_order=True).filter(new)

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
