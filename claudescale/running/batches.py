"""Rows to replies over Message Batches: what to submit, when to look, when to stop.

The order that makes it once: rows are claimed, the intent is on the disk, the batch is posted and never
posted again, its id is on the disk, its results are on the disk, the batch is closed. Wherever that stops,
the ledger knows the batch, and the next run takes it over. Sizes and waits are decided in `batching`;
`outstanding` looks after what was submitted.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops
from claudescale.api import catalog
from claudescale.api.answers import DOUBTED, STOPPING_ERRORS, Answer, Verdict, read_object, verdict
from claudescale.api.batchwire import Parts
from claudescale.api.limits import read_headers
from claudescale.ledger.batchfile import Batch
from claudescale.running import batch_rules
from claudescale.running.batch_results import answered
from claudescale.running.outstanding import MISSED_LOOKS, Outstanding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from claudescale.api.batchwire import BatchWire
    from claudescale.api.prices import Price
    from claudescale.clock import Clock
    from claudescale.ledger.ledger import Ledger
    from claudescale.prompts.requests import Texts
    from claudescale.running.outstanding import Refusals

RETIRED = "model_retired"
"""The `error` of a run whose model can be called no more."""
MOST_ROUNDS = 3
"""Batches that one row goes into, if it expires or fails in each."""
MOST_FAILURES = 8
"""Posts in a row that surely made no batch, before the run ends."""
_PIPELINE = 4
"""Into how many batches the queue is cut where the rows do not fit into it at once."""
_FAILURES_LATER = 100
"""The same once a batch was made: with the waits between them, some hours."""
_LONGEST_HOLD = 300.0
_MOST_REFUSALS = 3
_GRACE_SECONDS = 10.0  # real ones


class Batches:
    """Answers rows over Message Batches; `answer` does it, once.

    Spends: half of what the rows cost live.

    Parameters
    ----------
    wire : BatchWire
        The endpoints.
    ledger : Ledger
        Where the batches and their results are kept.
    clock : Clock
        API time.
    texts : Texts
        What each request says.
    requests : pl.DataFrame
        `work.REQUESTS` with `worst_dollars`: all that this run may have answered.
    record : callable
        Takes attempts and `final`; returns when they are on the disk.
    unanswered : callable
        Takes rows that others hold, counts those that were answered meanwhile, and gives the rest.
    price : Price
        Of the model in a batch.
    describe : dict
        The columns of an attempt that are the same for all: run, model, simulated.
    api : str
        Which API this is.
    queue_requests : int
        How many may wait at the API.
    dollars_left : callable, optional
        What is left of the budget; the worst case of every batch is set aside.
    hands_over : bool
        Where no batch can be made for a reason that live calls may not share, let them do the rest.
    prime : bool
        Send one row alone first, so that the others find its prefix in the cache.
    refusal : callable
        Gives the words where the model can be called no more: then what is out is collected, and no more.
    known_good : callable
        Whether a row of the plan has an answer: then nothing is wrong with all of them.
    live_price : Price, optional
        Of the model live. With it one short message is sent before the first batch, as only that has the API
        look at all of a request.
    message_dollars : callable
        Takes the bytes of a message and the tokens of its longest reply, gives the most it can cost.

    Attributes
    ----------
    out : Outstanding
        What was submitted.
    requests : pl.DataFrame
        As given.
    adopted : set of str
        Keys of rows that a batch of an earlier run held.
    submitted, switched, freed : asyncio.Event
        All is submitted that the queue has room for; nothing more will be, as the time is up; and what
        was out is canceled and collected too.
    """

    def __init__(
        self,
        *,
        wire: BatchWire,
        ledger: Ledger,
        clock: Clock,
        texts: Texts,
        requests: pl.DataFrame,
        record: Callable[[pl.DataFrame], Awaitable[None]],
        unanswered: Callable[[pl.DataFrame], Awaitable[pl.DataFrame]],
        price: Price,
        describe: Mapping[str, Any],
        api: str,
        queue_requests: int,
        dollars_left: Callable[[], float] = lambda: math.inf,
        hands_over: bool = False,
        prime: bool = False,
        refusal: Callable[[], str | None] = lambda: None,
        known_good: Callable[[], bool] = lambda: False,
        live_price: Price | None = None,
        message_dollars: Callable[[int, int], float] = lambda *_: 0.0,
    ) -> None:
        self.out = Outstanding(
            wire=wire,
            ledger=ledger,
            clock=clock,
            record=record,
            price=price,
            describe=describe,
            known_good=known_good,
        )
        self.requests = requests
        self.adopted: set[str] = set()
        self.switched = asyncio.Event()
        self.freed = asyncio.Event()
        self.submitted = asyncio.Event()
        self._wire = wire
        self._ledger = ledger
        self._clock = clock
        self._texts = texts
        self._unanswered = unanswered
        self._model = str(describe["model"])
        self._api = api
        self._queue_requests = queue_requests
        self._dollars_left = dollars_left
        self._prime = prime
        self._refusal = refusal
        self._known_good = known_good
        self._live_price = live_price
        self._message_dollars = message_dollars
        self._record = record
        self._describe = dict(describe)
        self._maybe_dollars = 0.0  # what may have been billed without a word of it
        self._alike: list[Refusals] = []  # of the last batches, in which nearly all rows were refused
        self._left = self._others = requests.clear()
        self._most_requests = catalog.BATCH.max_requests
        self._most_bytes = batch_rules.FULL_BYTES
        self._rounds: dict[str, int] = {}
        self._worst_dollars: dict[str, float] = {}
        self._hold_until = 0.0
        self._failures = self._refusals = 0
        self._stopped_by: Verdict | None = None
        self._hands_over = hands_over
        self._submits = self._stopping = self._leaving = False
        self._others_at = self._ahead_seconds = 0.0
        self._woken = asyncio.Event()

    # the handle

    @property
    def stopped_by(self) -> Verdict | None:
        """Why nothing more was submitted."""
        return self._stopped_by or self.out.stopped_by

    @property
    def is_refused(self) -> bool:
        """Whether there is a reason to stop, which live calls would meet as well."""
        found = self._stopped_by
        shared = found is not None and (found.error in STOPPING_ERRORS or found.error in {"budget", RETIRED})
        return self.out.stopped_by is not None or (found is not None and (shared or not self._hands_over))

    @property
    def reserved_dollars(self) -> float:
        """The worst case of what is out, and of what may have been billed unseen."""
        out = sum(self._worst_dollars.get(nonce, 0.0) for nonce in self.out.open)
        return out + self._maybe_dollars

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

    def expected(self) -> batch_rules.Expected | None:
        """Return when the last batch ends, as far as that can be told.

        Spends: nothing.
        """
        return batch_rules.expected_end([*self.out.closed, *self.out.waited], self._clock.seconds())

    async def answer(self, keys: pl.Series, *, until: Callable[[], float] = lambda: math.inf) -> None:
        """Return when every row has its answer or was given up, or this was stopped.

        Batches of earlier runs that hold one of the run's rows are taken over first.

        Spends: half of what the rows cost live.

        Parameters
        ----------
        keys : pl.Series
            Of those of `requests` to send.
        until : callable, optional
            Gives the API second at which to stop; asked again each time the batches are looked at.
        """
        self._submits = True
        self._left = self.requests.filter(pl.col("key").is_in(keys.implode()))
        await self.adopt()
        await self._check()
        await self._go(until)

    async def follow(self) -> None:
        """Collect batches of earlier runs that hold one of `requests`; submit none.

        Spends: nothing more.
        """
        await self._go(lambda: math.inf)

    async def _go(self, until: Callable[[], float]) -> None:
        try:
            while not self._leaving:
                await self._submit(until)
                self.submitted.set()
                self._hand_over(until)
                if self._is_canceling:
                    await self.out.cancel()
                await self._look()
                if self._is_canceling and not self.out.known:
                    self.freed.set()
                if self._is_done():
                    break
                await self._wait(until())
        finally:
            for event in (self.submitted, self.switched, self.freed):
                event.set()

    def _hand_over(self, until: Callable[[], float]) -> None:
        """Leave the rest to live calls where the time is up, or no batch can be made."""
        ill = self._hands_over and self._stopped_by is not None and not self.is_refused
        if self._submits and (ill or self._clock.seconds() >= until()):
            self.switched.set()
            self._submits = False
            self._left, self._others = self._left.clear(), self._others.clear()

    @property
    def _is_canceling(self) -> bool:
        return self._stopping or self.switched.is_set()

    def _is_done(self) -> bool:
        if self._stopping:
            return not self.out.known
        if self.out.is_silent:
            return True
        waiting = 0 if self.stopped_by else self._left.height + self._others.height
        return not self.out.waited and not waiting

    async def _wait(self, until: float) -> None:
        """Wait until it is time to look again, or something was asked of this."""
        now = self._clock.seconds()
        due = [now + batch_rules.poll_seconds(now - self.out.changed_at)] if self.out.waited else []
        if self._left.height and (self._hold_until > now or not self.out.waited):
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
        for batch in await self.out.adopt(self.requests["key"]):
            held = await loops.in_thread(self._ledger.held, batch.nonce)
            its = pl.col("key").is_in(held)
            self.adopted.update(held)
            self._worst_dollars[batch.nonce] = float(self.requests.filter(its)["worst_dollars"].sum())
            self._left, self._others = self._left.filter(~its), self._others.filter(~its)

    async def _look(self) -> None:
        looked = await self.out.look()
        for key in looked.unanswered:
            self._rounds[key] = self._rounds.get(key, 0) + 1
        again = [key for key in looked.unanswered if self._rounds[key] < MOST_ROUNDS]
        unclear = self.requests.filter(pl.col("key").is_in(looked.unclear))
        self._maybe_dollars += float(unclear["worst_dollars"].sum())
        if again or looked.unsent:
            self._give_back(self.requests.filter(pl.col("key").is_in(again + looked.unsent)))
        if looked.unsent and self._submits:
            self._failed(Verdict(outcome="again", error="api_error", message="a batch was not made"))
        self._weigh(looked.refusals)
        if self._others.height:
            await self._look_at_others()
        elif not self._submits:
            await self.adopt()  # the run that held what live calls wait for may have ended

    def _weigh(self, refusals: list[Refusals]) -> None:
        """Stop where whole batches are refused alike: it is the request, or the account, and not a row."""
        for each in refusals:
            known = [*self._alike[:1], each]
            alike = len({(kind.error, kind.message) for kind in known}) == 1
            if each.rows < batch_rules.NEARLY_ALL * each.batch.requests:
                self._alike = [] if each.batch.succeeded else self._alike
            else:
                self._alike = [*self._alike, each] if alike else [each]
        if not self._alike:
            return
        rows = sum(each.rows for each in self._alike)
        answered = any(batch.succeeded for batch in self.out.closed)
        several = rows >= batch_rules.ALIKE_ROWS and (len(self._alike) > 1 or not answered)
        nothing_else = not (answered or self._known_good() or self._left.height or self.out.waited)
        if several or nothing_else:
            found = self._alike[-1]
            count = f"{found.rows:,} of {found.batch.requests:,} rows"
            message = f"{count} of batch {found.batch.batch_id} were refused alike: {found.message}"
            self._stopped_by = Verdict(outcome="stop", error=found.error, message=message)

    def _give_back(self, rows: pl.DataFrame) -> None:
        """Send rows again; where nothing is submitted they are free, and live calls may claim them."""
        if self._submits:
            self._left = pl.concat([rows, self._left])

    async def _look_at_others(self) -> None:
        """Take what another run has answered meanwhile, and try again for what it does not hold any more."""
        self._others = await self._unanswered(self._others)
        await self.adopt()
        self._give_back(self._others)
        self._others = self._others.clear()

    # submit

    async def _check(self) -> None:
        """Have the API look at some rows: what is wrong with all would be told hours later.

        At most three, from all over the frame, as a row may be to blame itself.
        """
        rows = self._left["row"]
        if self._refusal() is not None or self._known_good():  # nothing will be sent, or all is well
            return
        found: list[Verdict] = []
        for row in rows.gather(sorted({0, rows.len() // 2, rows.len() - 1})) if rows.len() else ():
            (request,) = self._texts.bodies(pl.Series([row], dtype=pl.UInt32))
            answer = await self._looked_at(request, row)
            self._ahead_seconds = batch_rules.ahead_seconds(answer, self._clock.seconds())
            found.append(verdict(answer))
            if self._stopping or self._leaving or not batch_rules.is_wrong(answer, self._model):
                return
        if len({(each.error, each.message) for each in found}) == 1:
            self._stopped_by = found[-1]

    async def _looked_at(self, request: bytes, row: int) -> Answer:
        """Return what the API says of a row: to a short message, or to a count where the budget has no room.

        A simulator counts as well: its account is what the plan says, and its batches are not long.
        """
        message, longest = batch_rules.dry_run(request)
        worst = self._message_dollars(len(message), longest)
        if self._live_price is None or not worst <= self._dollars_left() - self.reserved_dollars:
            return await self._wire.check(request)
        sent_at = self._clock.seconds()
        answer = await self._wire.message(message)
        found = verdict(answer)
        self._maybe_dollars += worst if found.unseen else 0.0
        if found.outcome == "answered":
            (key,) = self.requests.filter(pl.col("row") == row)["key"]
            attempt = answered(
                key,
                read_object(answer.content),
                price=self._live_price.at(self._clock.now()),
                request_id=answer.headers.get("request-id"),
                sent_at=sent_at,
                seconds=self._clock.seconds() - sent_at,
                **self._describe,
            )
            await self._record(attempt)
        return answer

    async def _submit(self, until: Callable[[], float]) -> None:
        """Submit as much as queue, budget and time allow."""
        while self._submits and not (self._stopping or self._leaving or self.stopped_by):
            now = self._clock.seconds()
            rows = self._next() if self._hold_until <= now < until() else self._left.clear()
            if rows.is_empty():
                break
            self._left = self._left.slice(rows.height)
            mine, others = await loops.in_thread(self._claimed, rows)
            if others.height:
                self._others = pl.concat([self._others, others])
                self._others_at = max(self._others_at, self.out.changed_at)
            if mine.height and (words := self._refusal()) is not None:
                self._stopped_by = Verdict(outcome="stop", error=RETIRED, message=words)
            elif mine.height:
                await self._post(mine, until)

    def _claimed(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the rows that are this run's to send, and the others."""
        mine = pl.col("key").is_in(self._ledger.claim(rows["key"].to_list()))
        return rows.filter(mine), rows.filter(~mine)

    def _next(self) -> pl.DataFrame:
        """Return the rows of the next batch; none where they have to wait."""
        out = self.out.waited
        most = min(self._most_requests, self._queue_requests - sum(batch.requests for batch in out))
        if self._prime and not self.out.closed:
            most = 0 if out else 1
        dollars = self._dollars_left() - self.reserved_dollars
        count = batch_rules.fitting(self._left, requests=most, size_bytes=self._most_bytes, dollars=dollars)
        if not count and self._left.height and not out:
            self._stopped_by = Verdict(outcome="stop", error="budget")
        return self._left.head(count)

    async def _post(self, rows: pl.DataFrame, until: Callable[[], float]) -> None:
        """Post one batch, once: the intent before, the id after."""
        nonce = secrets.token_hex(batch_rules.NONCE_BYTES)
        batch = Batch(
            nonce=nonce,
            api=self._api,
            model=self._model,
            requests=rows.height,
            intended_at=self._clock.seconds() + self._ahead_seconds,
        )
        await self.out.intend(batch, rows["key"].to_list())
        self._worst_dollars[nonce] = float(rows["worst_dollars"].sum())
        size_bytes = batch_rules.body_bytes(rows)
        answer = await self._created(self._wire.create(Parts(rows, self._texts, nonce), size_bytes), until)
        made = await self.out.posted(batch, answer)
        if made.outcome == "created":
            self._failures = self._refusals = 0
        elif made.outcome == "too_large" and rows.height > 1:
            self._give_back(rows)
            self._most_bytes = size_bytes // 2
        elif made.outcome != "unknown":
            self._give_back(rows)
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
        if refused and not self.out.waited and self._refusals % _MOST_REFUSALS == 0:
            self._most_requests = max(self._most_requests // 2, 1)  # the queue is smaller than was thought
        made = self.out.known or any(batch.state == "collected" for batch in self.out.closed)
        patience = _FAILURES_LATER if made else MOST_FAILURES
        hopeless = batch_rules.is_hopeless(found)
        if hopeless and made and found.error in DOUBTED:  # a key and a model that were good
            hopeless = self._failures >= MISSED_LOOKS
        if hopeless or self._failures >= patience:
            self._stopped_by = found
        wait = min(
            max(batch_rules.poll_seconds(now - self.out.changed_at), 2.0**self._failures), _LONGEST_HOLD
        )
        self._hold_until = now + (retry_after_seconds or wait)
