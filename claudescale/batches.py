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

from claudescale import batching, catalog, loops
from claudescale.batchfile import Batch
from claudescale.limits import read_headers
from claudescale.outstanding import Outstanding
from claudescale.verdicts import Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from claudescale.batchwire import BatchWire
    from claudescale.bills import Price
    from claudescale.clock import Clock
    from claudescale.ledger import Ledger
    from claudescale.work import Texts

MOST_ROUNDS = 3
"""Batches that one row goes into, if it expires or fails in each."""
MOST_FAILURES = 8
"""Posts in a row that surely made no batch, before the run ends."""
_PIPELINE = 4
"""Into how many batches the queue is cut where the rows do not fit into it at once."""
_OTHERS_SECONDS = 5.0
_SMALLEST_BYTES = catalog.MESSAGE.max_bytes + 1_000  # so that any request fits


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
    found : callable
        Takes `key` and `error` of final attempts that another run has made.
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
    prime : bool
        Send one row alone first, so that the others find its prefix in the cache.
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
        found: Callable[[pl.DataFrame], None],
        price: Price,
        describe: Mapping[str, Any],
        api: str,
        queue_requests: int,
        dollars_left: Callable[[], float] = lambda: math.inf,
        prime: bool = False,
    ) -> None:
        self.out = Outstanding(
            wire=wire, ledger=ledger, clock=clock, record=record, price=price, describe=describe
        )
        self.canceling = asyncio.Event()
        self.submitted = asyncio.Event()
        self._wire = wire
        self._ledger = ledger
        self._clock = clock
        self._texts = texts
        self.requests = requests
        self._found = found
        self._model = str(describe["model"])
        self._api = api
        self._queue_requests = queue_requests
        self._dollars_left = dollars_left
        self._prime = prime
        self._left = self._others = requests.clear()
        self._most_requests = catalog.BATCH.max_requests
        self._most_bytes = batching.FULL_BYTES
        self._rounds: dict[str, int] = {}
        self._worst_dollars: dict[str, float] = {}
        self._hold_until = 0.0
        self._failures = 0
        self._stopped_by: Verdict | None = None
        self._leaving = False
        self._woken = asyncio.Event()

    # the handle

    @property
    def stopped_by(self) -> Verdict | None:
        """Why nothing more was submitted."""
        return self._stopped_by or self.out.stopped_by

    def stop(self) -> None:
        """Submit nothing more and cancel what is out; what was answered comes in. From the loop's thread.

        Spends: what the API has answered by then.
        """
        self.canceling.set()
        self._woken.set()

    def leave(self) -> None:
        """Submit nothing more and let what is out go on without this run. From the loop's thread.

        Spends: nothing more; what is out is paid for when it is answered.
        """
        self._leaving = True
        self._woken.set()

    def expected(self) -> batching.Expected | None:
        """Return when the last batch ends, as far as that can be told.

        Spends: nothing.
        """
        return batching.expected_end([*self.out.closed, *self.out.open.values()], self._clock.seconds())

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
        self._left = self.requests.filter(pl.col("key").is_in(keys.implode()))
        if self._left.height > self._queue_requests:
            self._most_requests = min(self._most_requests, max(self._queue_requests // _PIPELINE, 1))
        try:
            await self._adopt()
            await self._check()
            while not self._leaving:
                await self._submit()
                self.submitted.set()
                if self._clock.seconds() >= until():
                    self.canceling.set()
                if self.canceling.is_set():
                    await self.out.cancel()
                await self._look()
                if self._is_done():
                    break
                await self._wait(until())
        finally:
            self.submitted.set()

    @property
    def _over(self) -> bool:
        return self.canceling.is_set() or self._leaving

    def _is_done(self) -> bool:
        if self.canceling.is_set():
            return not self.out.known
        if self.out.is_silent:
            return True
        waiting = 0 if self.stopped_by else self._left.height + self._others.height
        return not self.out.open and not waiting

    async def _wait(self, until: float) -> None:
        """Wait until it is time to look again, or something was asked of this."""
        now = self._clock.seconds()
        due = [now + batching.poll_seconds(now - self.out.changed_at)] if self.out.open else []
        if self._left.height and (self._hold_until > now or not self.out.open):
            due.append(max(self._hold_until, now))
        due += [now + _OTHERS_SECONDS] if self._others.height else []
        due += [] if self.canceling.is_set() else [until]
        seconds = min(due, default=now) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(self._clock.real(max(seconds, 0.0))):
                await self._woken.wait()
        self._woken.clear()

    # rows that are in a batch, or another run's

    async def _adopt(self) -> None:
        """Take over batches that nobody follows; what they hold is not this run's to send now."""
        for batch in await self.out.adopt(self.requests["key"]):
            held = await loops.in_thread(self._ledger.held, batch.nonce)
            its = pl.col("key").is_in(held)
            self._worst_dollars[batch.nonce] = float(self.requests.filter(its)["worst_dollars"].sum())
            self._left, self._others = self._left.filter(~its), self._others.filter(~its)

    async def _look(self) -> None:
        looked = await self.out.look()
        for key in looked.unanswered:
            self._rounds[key] = self._rounds.get(key, 0) + 1
        again = [key for key in looked.unanswered if self._rounds[key] < MOST_ROUNDS]
        self._give_back(self.requests.filter(pl.col("key").is_in(again + looked.unsent)))
        if looked.unsent:
            self._failed(Verdict(outcome="again", error="api_error", message="a batch was not made"))
        if self._others.height:
            await self._look_at_others()

    def _give_back(self, rows: pl.DataFrame) -> None:
        self._left = pl.concat([rows, self._left])

    async def _look_at_others(self) -> None:
        """Take what another run has answered meanwhile, and try again for what it does not hold any more."""
        answered = await loops.in_thread(self._ledger.replies, self._others["key"])
        self._found(answered.filter(pl.col("run") != self._ledger.run).select("key", "error"))
        await self._adopt()
        self._give_back(self._others.join(answered, on="key", how="anti", maintain_order="left"))
        self._others = self._others.clear()

    # submit

    async def _check(self) -> None:
        """Have the API look at one row, free: what is wrong with all of them would be told hours later."""
        if self._left.is_empty() or self._over:
            return
        prompt, text = self._texts.prompt, self._texts.of(self._left["row"].head(1)).item()
        answer = await self._wire.check(f"{prompt.head}{text}{prompt.tail}".encode())
        found = verdict(answer)
        if found.outcome == "stop" or (found.outcome == "failed" and found.final):
            self._stopped_by = found

    async def _submit(self) -> None:
        """Submit as much as queue and budget allow."""
        while not (self._over or self.stopped_by or self._clock.seconds() < self._hold_until):
            rows = self._next()
            if rows.is_empty():
                break
            self._left = self._left.slice(rows.height)
            won = await loops.in_thread(self._ledger.claim, rows["key"].to_list())
            mine = pl.col("key").is_in(won)
            self._others = pl.concat([self._others, rows.filter(~mine)])
            if won:
                await self._post(rows.filter(mine))

    def _next(self) -> pl.DataFrame:
        """Return the rows of the next batch; none where they have to wait."""
        out = self.out.open
        most = min(self._most_requests, self._queue_requests - sum(batch.requests for batch in out.values()))
        if self._prime and not self.out.closed:
            most = 0 if out else 1
        dollars = self._dollars_left() - sum(self._worst_dollars[nonce] for nonce in out)
        count = batching.fitting(self._left, requests=most, size_bytes=self._most_bytes, dollars=dollars)
        if not count and self._left.height and not out:
            self._stopped_by = Verdict(outcome="stop", error="budget")
        return self._left.head(count)

    async def _post(self, rows: pl.DataFrame) -> None:
        """Post one batch, once: the intent before, the id after."""
        nonce = secrets.token_hex(batching.NONCE_BYTES)
        batch = Batch(
            nonce=nonce,
            api=self._api,
            model=self._model,
            requests=rows.height,
            intended_at=self._clock.seconds(),
        )
        await self.out.intend(batch, rows["key"].to_list())
        self._worst_dollars[nonce] = float(rows["worst_dollars"].sum())
        answer = await self._wire.create(self.parts(rows, self._texts, nonce), batching.body_bytes(rows))
        made = await self.out.posted(batch, answer)
        if made.outcome == "created":
            self._failures = 0
        elif made.outcome != "unknown":
            self._give_back(rows)
            if made.outcome == "too_large" and rows.height > 1 and self._failures < MOST_FAILURES:
                self._failures += 1
                self._most_bytes = max(batching.body_bytes(rows) // 2, _SMALLEST_BYTES)
            else:
                self._failed(made.found, read_headers(answer.headers).retry_after_seconds)

    @staticmethod
    async def parts(rows: pl.DataFrame, texts: Texts, nonce: str) -> AsyncIterator[bytes]:
        """Yield the body of a batch as it is rendered, in a thread: the loop goes on.

        Spends: nothing.
        """
        rendered = batching.body(rows, texts, nonce)
        while (part := await loops.in_thread(next, rendered, None)) is not None:
            yield part

    def _failed(self, found: Verdict, retry_after_seconds: float | None = None) -> None:
        """Wait before the next post; a queue that is full may be full for long, the rest is bounded."""
        self._failures += found.outcome != "refused"
        if (
            found.outcome == "stop"
            or self._failures >= MOST_FAILURES
            or (found.outcome == "failed" and found.final)
        ):
            self._stopped_by = found
        wait = batching.poll_seconds(self._clock.seconds() - self.out.changed_at)
        self._hold_until = self._clock.seconds() + (retry_after_seconds or max(wait, 2.0**self._failures))
