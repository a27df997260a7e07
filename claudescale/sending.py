"""Sending: the way of a run from a frame to a full ledger, in the order it happens.

It opens the ledger, learns which API answers, reads the frame, checks deadline and budget against what
is missing, then lets `Live` answer that. A run shows it; nothing here is shown.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import bills, feasibility, loops
from claudescale.clock import Clock
from claudescale.errors import LedgerError
from claudescale.ledger import Ledger
from claudescale.live import Live, Row
from claudescale.pacing import Pacer
from claudescale.tallies import Tally
from claudescale.wire import Wire
from claudescale.work import Work, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.ledger import Attempt
    from claudescale.plans import Plan
    from claudescale.wire import Api

_CLAIM_ROWS = 256
_OTHERS_SECONDS = 1.0
_OVERHEAD_TOKENS = 1_000
"""What the API may add to a request: the instructions that make structured outputs work."""


class Sending:
    """One run's work. Its attributes may be read from any thread while it goes on.

    Attributes
    ----------
    state : str
        ``"starting"``, ``"running"``, ``"finished"``, ``"stopped"`` or ``"failed"``.
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
    live : Live or None
        The calls, once they are made.
    tally : Tally
        What was done so far.
    """

    def __init__(self, plan: Plan, client: AsyncAnthropic, path: Path | None) -> None:
        self.state = "starting"
        self.stopped_by: str | None = None
        self.message: str | None = None
        self.ledger: Ledger | None = None
        self.api: Api | None = None
        self.work: Work | None = None
        self.estimate: dict[str, Any] | None = None
        self.live: Live | None = None
        self.tally = Tally(plan.frame.height if isinstance(plan.frame, pl.DataFrame) else 0)
        self._plan = plan
        self._client = client
        self._path = path
        self._clock = Clock()
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._stop_asked = False
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
        """Send nothing more, from whatever thread this is called; what is in flight comes in."""
        self._stop_asked = True
        if self.live is not None and self.state == "running":
            self.live.stop_soon()

    async def go(self, begin: Callable[[], None]) -> None:
        """Answer every row that has no answer yet; `begin` is called before the first call.

        Raises
        ------
        PlanError
            Nothing was sent.
        LedgerError
            The record cannot be kept; what was paid for is in memory.
        """
        state = "failed"
        wire = Wire(self._client, self._plan.max_tokens)
        try:
            self.ledger = await loops.in_thread(Ledger, self._path)
            self.api = await wire.api()
            self._clock = self.api.clock
            missing = await loops.in_thread(self._prepare)
            await self._answer(wire, missing, begin)
            state = self._end_state()
        except LedgerError as error:
            self._fail(error)
        except asyncio.CancelledError:
            state = "stopped"
            raise
        finally:
            if self._started_at is not None:
                self._ended_at = self._clock.seconds()
            await wire.close()
            state = self._close(state)
            self.tally.end()
            self.state = state
        if self._ledger_error is not None:
            raise self._ledger_error

    def _prepare(self) -> pl.DataFrame:
        """Read the frame, find what is missing, and whether that is possible."""
        assert self.api is not None
        assert self.ledger is not None
        work = prepare(self._plan, self.api.name)
        found = self.ledger.replies(work.requests["key"]).select("key", "error")
        missing = work.requests.join(found, on="key", how="anti", maintain_order="left")
        tokens, all_tokens = (float(rows["estimated_tokens"].sum()) for rows in (missing, work.requests))
        part = tokens / all_tokens if all_tokens else 0.0
        self.estimate = feasibility.check(replace(self._plan, frame=work.frame), part=part)
        self.tally.begin(work.keys)
        self.tally.found(found)
        self.work = work
        return missing

    async def _answer(self, wire: Wire, missing: pl.DataFrame, begin: Callable[[], None]) -> None:
        self.live = self._live(wire, missing)
        self._started_at = self._clock.seconds()
        self.state = "running"
        begin()
        if self._stop_asked:  # before there was anything to stop
            return
        rows = self._rows(missing)
        try:
            await self.live.answer(rows)
        finally:
            await rows.aclose()

    def _live(self, wire: Wire, missing: pl.DataFrame) -> Live:
        plan, ledger = self._plan, self.ledger
        assert ledger is not None
        assert self.api is not None
        price = bills.price(plan.facts.id, mode="live")

        def worst_dollars(row: Row) -> float:
            # No token is shorter than a byte.
            tokens = len(row.body) + _OVERHEAD_TOKENS
            paid_as = "cache_write_5m_input_tokens" if plan.cache else "input_tokens"
            return price.dollars(output_tokens=plan.max_tokens, **{paid_as: tokens})

        return Live(
            send=wire.send,
            pacer=Pacer(
                plan.limits,
                clock=self.api.clock,
                share=plan.share,
                concurrency=plan.concurrency,
                output_tokens=min(plan.expected.output_tokens, float(plan.max_tokens)),
            ),
            clock=self.api.clock,
            record=self._record,
            price=price,
            describe={"run": ledger.run, "model": plan.facts.id, "simulated": self.api.simulated},
            worst_dollars=worst_dollars,
            budget_dollars=plan.budget,
            warm=plan.cache and missing.height > 1,
        )

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
        return self._stop_asked or ended or self._ledger_error is not None

    async def _rows(self, missing: pl.DataFrame) -> AsyncGenerator[Row, None]:
        """Give each request that is this run's to send; wait for those another kernel is sending."""
        assert self.ledger is not None
        waiting = missing
        while waiting.height:
            held = []
            for block in waiting.iter_slices(_CLAIM_ROWS):
                try:
                    won = set(await loops.in_thread(self.ledger.claim, block["key"].to_list()))
                except LedgerError as error:
                    self._fail(error)
                    return
                mine = pl.col("key").is_in(list(won))
                for row in self._rendered(block.filter(mine)):
                    yield row
                held.append(block.filter(~mine))
            waiting = await self._unanswered(pl.concat(held))

    async def _unanswered(self, held: pl.DataFrame) -> pl.DataFrame:
        """Return which rows another run holds and has not answered, after a while if there are any."""
        if held.is_empty():
            return held
        assert self.ledger is not None
        found = (await loops.in_thread(self.ledger.replies, held["key"])).select("key", "error")
        self.tally.found(found)
        left = held.join(found, on="key", how="anti", maintain_order="left")
        slept = 0.0
        while left.height and slept < _OTHERS_SECONDS:
            if self._over:
                return left.clear()
            await asyncio.sleep(loops.SLICE_SECONDS)
            slept += loops.SLICE_SECONDS
        return left

    def _rendered(self, block: pl.DataFrame) -> Iterator[Row]:
        assert self.work is not None
        prompt, facts = self._plan.compiled, self._plan.facts
        cached = prompt.shared_characters / facts.characters_per_token if self._plan.cache else 0.0
        texts = self.work.texts.of(block["row"])
        for key, text, tokens in zip(block["key"], texts, block["estimated_tokens"], strict=True):
            yield Row(key, f"{prompt.head}{text}{prompt.tail}".encode(), max(tokens - cached, 1.0))

    def _end_state(self) -> str:
        found = self.live.stopped_by if self.live else None
        if found is not None:
            self.stopped_by, self.message = found.error, found.message
            return "stopped" if found.error == "budget" else "failed"
        return "stopped" if self._stop_asked else "finished"

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
