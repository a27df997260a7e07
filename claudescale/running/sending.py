"""Sending: the way of a run from a frame to a full ledger, in the order it happens.

It opens the ledger, learns which API answers, reads the frame, checks deadline and budget against what
is missing, then lets `Live` answer that. A run shows it; nothing here is shown.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops
from claudescale.api import catalog
from claudescale.api.client import Wire
from claudescale.clock import Clock
from claudescale.errors import LedgerError, PlanError, UnknownModel
from claudescale.ledger.batchfile import OPEN
from claudescale.ledger.ledger import Ledger
from claudescale.planning import choices, estimates
from claudescale.running import engines, gathering
from claudescale.running.meter import Meter
from claudescale.running.supply import Supply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.api.answers import Answer
    from claudescale.api.client import Api
    from claudescale.ledger.ledger import Attempt
    from claudescale.pacing.pacer import Pacer
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Work
    from claudescale.running.batches import Batches
    from claudescale.running.live import Live


class Sending:
    """One run's work. Its attributes may be read from any thread while it goes on.

    Attributes
    ----------
    state : str
        ``"starting"``, ``"running"``, ``"finished"``, ``"stopped"``, ``"left"`` or ``"failed"``.
    stopped_by, message : str or None
        What ended it before its end: an API error type, ``"budget"`` or ``"ledger"``; and its words.
    ledger : Ledger or None
        Open from the start on, closed (still readable) at the end.
    api : Api or None
        Which API answers.
    work : Work or None
        The rows, once they are read.
    estimate : dict or None
        The plan's live option, once it is computed.
    live, pacer : Live or None, Pacer or None
        The calls, while they are made, and what paces them, once there are any.
    batches, batches_out : Batches or None, int
        The batches, once there are any, and how many of earlier runs were out at the beginning.
    rest : pl.DataFrame
        Of `work.REQUESTS`: what was missing, in the order of sending.
    tally : Meter
        What was done so far.
    """

    def __init__(self, plan: Plan, client: AsyncAnthropic, path: Path | None, engine: Any = None) -> None:
        self.state = "starting"
        self.stopped_by: str | None = None
        self.message: str | None = None
        self.ledger: Ledger | None = None
        self.api: Api | None = None
        self.work: Work | None = None
        self.estimate: dict[str, Any] | None = None
        self.live: Live | None = None
        self.pacer: Pacer | None = None
        self.batches: Batches | None = None
        self.batches_out = 0
        rows = plan.frame.height if isinstance(plan.frame, pl.DataFrame) else 0
        self.tally = Meter(rows, twice=False, model=plan.facts)
        self._plan, self._client, self._path = plan, client, path
        self._live_engine: Callable[..., Live] = engine or engines.live_engine
        self._clock = Clock()
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._stop_asked = self._leave_asked = False
        self._following: asyncio.Future[None] | None = None
        self._supply: Supply | None = None
        self.rest = pl.DataFrame()
        self._batch_dollars = 0.0
        self._only_collects = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ledger_error: LedgerError | None = None

    @property
    def minutes(self) -> float:
        """API minutes since the first call could go."""
        if self._started_at is None:
            return 0.0
        return ((self._ended_at or self._clock.seconds()) - self._started_at) / 60

    @property
    def started_at(self) -> float:
        """API unix seconds at which the first call could go."""
        return self._started_at or self._clock.seconds()

    def stop(self) -> None:
        """Send nothing more and cancel batches, from whatever thread; what is answered comes in."""
        self._stop_asked = True
        self._call_soon(self._end_soon)

    def leave(self) -> None:
        """Send nothing more, from whatever thread; what is in flight comes in, batches go on without this."""
        self._leave_asked = True
        self._call_soon(self._end_soon)

    @property
    def asked(self) -> str:
        """``"stop"`` or ``"leave"`` where that was asked for."""
        return "stop" if self._stop_asked else "leave" if self._leave_asked else ""

    def _call_soon(self, work: Callable[[], None]) -> None:
        if self._loop is not None and self.state == "running":
            with suppress(RuntimeError):  # the loop is closed: the run has ended already
                self._loop.call_soon_threadsafe(work)

    def _end_soon(self) -> None:
        """Pass on what was asked for."""
        if self.live is not None and self._over:
            self.live.stop()
        if self.batches is not None and self._stop_asked:
            self.batches.stop()
        if self.batches is not None and (self._leave_asked or self._ledger_error):
            self.batches.leave()

    async def go(self, begin: Callable[[], None]) -> None:
        """Answer every row that has no answer yet; `begin` is called before the first call.

        A PlanError says that nothing was sent, a LedgerError that the record cannot be kept.
        """
        state = "failed"
        self._loop = asyncio.get_running_loop()
        try:
            self._wire = Wire(self._client, self._plan.max_tokens)
        except PlanError:
            self.state = "failed"
            raise
        try:
            self.ledger = await loops.in_thread(Ledger, self._path)
            await gathering.collect(self.ledger, lambda: bool(self.asked))
            self.api = await self._wire.api()
            self._clock = self.api.clock
            missing = await loops.in_thread(self._prepare)
            await self._answer(missing, begin)
            state = self._end_state()
        except LedgerError as error:
            self._fail(error)
        except asyncio.CancelledError:
            state = "stopped"
            raise
        finally:
            if self._started_at is not None:
                self._ended_at = self._clock.seconds()
            await self._wire.close()
            state = self._close(state)
            self.live = self._supply = None  # they know this: it goes with its last name
            if state != "left":  # then nothing was given up
                self.tally.end(self.stopped_by)
            self.state = state
        if self._ledger_error is not None:
            raise self._ledger_error

    def _prepare(self) -> pl.DataFrame:
        """Read the frame, find what is missing, and whether that is possible."""
        assert self.api is not None
        assert self.ledger is not None
        kept = self._plan.kept
        if kept is not None:
            kept.check(simulated=self.api.simulated)
        work = choices.prepare(self._plan, self.api.name)
        found = self.ledger.replies(work.requests["key"]).select("key", "error")
        missing = work.requests.join(found, on="key", how="anti", maintain_order="left")
        self._check_model(missing)
        tokens, all_tokens = (float(rows["estimated_tokens"].sum()) for rows in (missing, work.requests))
        part = tokens / all_tokens if all_tokens else 0.0
        self.estimate = choices.check(self._plan, part=part)
        self.batches_out = sum(batch.state in OPEN for batch in self.ledger.batches(mine=False))
        self.tally.begin(work.keys)
        self.tally.found(found)
        if kept is not None:
            self.tally.found(kept.attempts.select("key", "error"))
        self.work = work
        return missing

    def _check_model(self, missing: pl.DataFrame) -> None:
        """Raise where rows would be sent to a model that is retired and no batch of it is left to collect."""
        assert self.ledger is not None
        words = catalog.refusal(self._plan.facts, self._clock.now())
        if words is None or missing.is_empty():
            return
        out = [batch.nonce for batch in self.ledger.batches(mine=False) if batch.state in OPEN]
        held = [key for nonce in out for key in self.ledger.held(nonce)]
        if missing.filter(pl.col("key").is_in(held)).is_empty():
            raise UnknownModel(words)
        self._only_collects = True

    async def _answer(self, missing: pl.DataFrame, begin: Callable[[], None]) -> None:
        """Send what is missing in the plan's mode."""
        assert self.work is not None
        assert self.ledger is not None
        ways = {"live": self._send_live, "batch": self._send_batches, "hybrid": self._send_hybrid}
        self.rest = missing
        self._supply = Supply(
            self._plan,
            self.work,
            self.ledger,
            unanswered=self._unanswered,
            over=lambda: self._over,
            follow=self._follow,
            own=self._held_twice,
            fail=self._fail,
        )
        mode = "batch" if self._only_collects else self._plan.mode
        if mode == "live":
            self.live = self._engine(missing.height)
        self._started_at = self.tally.started_at = self._clock.seconds()
        self.state = "running"
        begin()
        if self.asked:  # before there was anything to stop
            return
        try:
            await ways[mode](missing)
        finally:
            if self.batches is not None and self._following is not None:
                self.batches.leave()
                await self._following

    async def _send_live(self, rows: pl.DataFrame) -> None:
        assert self.live is not None
        assert self._supply is not None
        supplied = self._supply.rows(rows)
        try:
            await self.live.answer(supplied)
        finally:
            await supplied.aclose()

    async def _send_batches(self, rows: pl.DataFrame) -> None:
        self.batches = self._batch_engine()
        self._end_soon()  # what was asked for before there was anything to ask
        await self.batches.answer(rows["key"])

    async def _send_hybrid(self, rows: pl.DataFrame) -> None:
        """Send a row live, which tells the limits; the rest by batch; live again what must be in time."""
        self.batches = self._batch_engine()
        self._end_soon()
        await self.batches.adopt()
        await self._scout(rows.filter(~pl.col("key").is_in(self.batches.adopted)))
        if self._over:
            return
        self._following = asyncio.ensure_future(self.batches.answer(rows["key"], until=self._latest_switch))
        await loops.either(self._following, self.batches.freed)
        assert self.ledger is not None
        rest = rows.filter(~await loops.in_thread(self.ledger.answered, rows["key"]))
        if self._over or rest.is_empty():
            return
        self.live = self._engine(rest.height, self.live.pacer if self.live else None)
        await self._send_live(rest)
        if not self._over:
            await loops.either(self._following, self.batches.freed)

    async def _scout(self, free: pl.DataFrame) -> None:
        """Send one row that nobody holds."""
        if free.is_empty() or self._over:
            return
        assert self._supply is not None
        self.live = self._engine(1)
        await self.live.answer(self._supply.first(free))

    def _latest_switch(self) -> float:
        """Return the API second from which on the rest would not be done live in time."""
        assert self._started_at is not None
        assert self.work is not None
        plan = self._plan
        answered = self.tally.requests - self.tally.refused
        output = self.tally.output_tokens / answered if answered else plan.expected.output_tokens
        seconds = engines.rest_seconds(plan, self.live, self.rest, min(output, float(plan.max_tokens)))
        deadline = plan.deadline or 0.0
        return self._started_at + (deadline - estimates.CANCEL_MINUTES) * 60 - seconds

    async def _unanswered(self, held: pl.DataFrame) -> pl.DataFrame:
        """Count which of the rows that others hold they have answered, and return the rest.

        Without those that nobody can wait for, as their batch cannot be brought in.
        """
        assert self.ledger is not None
        for nonce in list(self.batches.out.stuck) if self.batches else ():
            stuck = await loops.in_thread(self.ledger.held, nonce)
            held = held.filter(~pl.col("key").is_in(stuck))
        replies = await loops.in_thread(self.ledger.replies, held["key"])
        self.tally.found(replies.filter(pl.col("run") != self.ledger.run).select("key", "error"))
        return held.join(replies, on="key", how="anti", maintain_order="left")

    def _held_twice(self, keys: pl.Series) -> list[str]:
        """Return which of the keys may be sent although a batch of this run may answer them."""
        del keys
        return []

    async def _follow(self) -> None:
        """See to it that batches of earlier runs which hold rows of this one are collected."""
        if self._following is not None:
            if not self._following.done():
                return
            self._following.result()
        if self.batches is None:
            self.batches = self._batch_engine()
        self._following = asyncio.ensure_future(self.batches.follow())
        await asyncio.sleep(0)

    def _engine(self, requests: int, pacer: Pacer | None = None) -> Live:
        assert self.api is not None
        assert self.ledger is not None
        earlier = self.tally.dollars - self._batch_dollars
        live = self._live_engine(
            self._plan,
            api=self.api,
            wire=self._wire,
            ledger=self.ledger,
            record=self._record,
            dollars_elsewhere=lambda: (
                earlier + self._batch_dollars + (self.batches.reserved_dollars if self.batches else 0.0)
            ),
            requests=requests,
            known_good=self.tally.reused > 0,
            pacer=pacer,
        )
        self.pacer = live.pacer
        return live

    def _batch_engine(self) -> Batches:
        assert self.api is not None
        assert self.ledger is not None
        assert self.work is not None
        return engines.batch_engine(
            self._plan,
            api=self.api,
            wire=self._wire,
            ledger=self.ledger,
            work=self.work,
            record=self._record_many,
            unanswered=self._unanswered,
            dollars_left=lambda: engines.left_of(self._plan.budget, self.tally.dollars),
            # What a retry takes over may be answers to other requests than it sends.
            known_good=lambda: self._plan.kept is None and self.tally.answered > 0,
        )

    @property
    def submitted(self) -> bool:
        """Whether what can be submitted at once is."""
        if self.state != "running":
            return self.state != "starting"
        return self._plan.mode == "live" or (self.batches is not None and self.batches.submitted.is_set())

    async def delete_batches(self) -> list[Answer]:
        """Return the answers to deleting the batches that are collected; on the caller's loop."""
        done = self.ledger.batches() if self.ledger else []
        return await engines.delete_batches(self._client, done)

    async def _record_many(self, attempts: pl.DataFrame) -> None:
        """Keep the results of a batch. Where they cannot be written the run ends; the API keeps them too."""
        assert self.ledger is not None
        await loops.in_thread(self.ledger.extend, attempts)
        self._batch_dollars += float(attempts["dollars"].sum())
        await loops.in_thread(self._count, attempts)

    def _count(self, attempts: pl.DataFrame) -> None:
        """Count the results of a batch. One of an earlier run may have rows of another frame, too."""
        assert self.work is not None
        its = attempts
        if self.batches is not None and self.batches.adopted:
            its = attempts.join(self.work.requests, on="key", how="semi", maintain_order="left")
        self.tally.extend(attempts, its)
        if self._plan.mode == "hybrid":  # only then it matters how long the rest takes live
            self.rest = self.rest.join(its.filter("final"), on="key", how="anti", maintain_order="left")

    def _record(self, attempt: Attempt, final: bool) -> None:  # noqa: FBT001 - as Live calls it
        """Keep an attempt. A ledger that cannot be written ends the run; what is in flight still comes in."""
        assert self.ledger is not None
        self.tally.add(attempt, final=final)
        try:
            self.ledger.record(attempt, final=final)
        except LedgerError as error:
            self._fail(error)

    def _fail(self, error: LedgerError) -> None:
        self._ledger_error = self._ledger_error or error
        if self.live is not None:
            self.live.stop()

    @property
    def _over(self) -> bool:
        """Whether nothing more will be sent."""
        ended = self.live is not None and self.live.stopped_by is not None
        refused = self.batches is not None and self.batches.is_refused
        return bool(self.asked) or ended or refused or self._ledger_error is not None

    def _end_state(self) -> str:
        found = self.live.stopped_by if self.live else None
        if found is None and self.batches is not None and self.batches.is_refused:
            found = self.batches.stopped_by
        if found is None and self.batches is not None:
            found = self.batches.out.why_stuck
        if found is not None:
            self.stopped_by, self.message = found.error, found.message
            return "stopped" if found.error == "budget" else "failed"
        if self.batches is not None and self.batches.out.open:
            return "left"
        return "stopped" if self.asked and self.tally.missing else "finished"

    def _close(self, state: str) -> str:
        """Write what is left; on this thread, as no other may be there when the process ends."""
        try:
            if self.ledger is not None:
                self.ledger.close()
        except LedgerError as error:
            self._fail(error)
        if self._ledger_error is not None:
            self.stopped_by, self.message = "ledger", str(self._ledger_error)
            return "failed"
        return state
