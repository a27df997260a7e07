"""Run: what happened, readable while it happens, and the orchestration of live calls.

A run owns no replies: the ledger has them. It owns the rows' keys, which join replies to the frame.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale import bills, display, loops
from claudescale.clock import Clock
from claudescale.errors import ClaudescaleError, LedgerError, PlanError, RunStopped
from claudescale.ledger import Ledger
from claudescale.live import Live, Row, Wire
from claudescale.pacing import Pacer
from claudescale.plots import Plots
from claudescale.progress import Progress
from claudescale.rates import rates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from types import EllipsisType

    from anthropic import AsyncAnthropic

    from claudescale.limits import Limits
    from claudescale.live import Api
    from claudescale.plans import Plan

DEFAULT_LEDGER = "claudescale.ledger"

SUMMARY = pl.Schema(
    {
        "state": pl.String(),
        "rows": pl.Int64(),
        "answered": pl.Int64(),
        "failed": pl.Int64(),
        "missing": pl.Int64(),
        "reused": pl.Int64(),
        "requests": pl.Int64(),
        "refused": pl.Int64(),
        "minutes": pl.Float64(),
        "requests_per_minute": pl.Float64(),
        "input_tokens": pl.Int64(),
        "output_tokens": pl.Int64(),
        "dollars": pl.Float64(),
        "simulated": pl.Boolean(),
    }
)
"""Columns of `Run.summary`, one row. The first four count rows of the frame, `requests` calls of this run."""

BATCHES = pl.Schema({"batch_id": pl.String(), "requests": pl.Int64(), "status": pl.String()})
"""Columns of `Run.batches`."""

_CLAIM_ROWS = 256
_OTHERS_SECONDS = 1.0
_DRAIN_SECONDS = 60.0
_WORST_INPUT = 2.0
"""Real input tokens are never this many times the estimate."""


class Work(NamedTuple):
    """What a run needs to know of its rows, all as Polars columns.

    Attributes
    ----------
    frame : pl.DataFrame
        The user's rows.
    keys : pl.Series
        Key of each row, null where it is not sent.
    distinct : pl.DataFrame
        `key`, `content` (JSON) and `estimated_tokens` of each distinct request, in the frame's order.
    """

    frame: pl.DataFrame
    keys: pl.Series
    distinct: pl.DataFrame


class Run:
    """A run under way or ended. ``await`` it for its end; every frame can be read before that.

    Attributes
    ----------
    plan : Plan
        What is run.
    state : str
        ``"starting"``, ``"running"``, ``"finished"``, ``"stopped"`` or ``"failed"``.
    """

    def __init__(
        self,
        plan: Plan,
        client: AsyncAnthropic | None,
        *,
        ledger: str | Path | EllipsisType | None,
        progress: bool,
    ) -> None:
        from claudescale.connecting import connect  # noqa: PLC0415 - only here

        self.plan = plan
        self.state = "starting"
        self.stopped_by: str | None = None
        self._client = client if client is not None else connect()
        path = DEFAULT_LEDGER if ledger is ... else ledger
        self._ledger = Ledger(path)
        self._clock = Clock()
        self._api: Api | None = None
        self._work: Work | None = None
        self._reused = 0
        self._live: Live | None = None
        self._stop_asked = threading.Event()
        self._started_at = self._clock.seconds()
        self._ended_at: float | None = None
        self._progress = Progress(self, shown=progress)
        self._future: concurrent.futures.Future[None] = loops.start(self._run)

    # the whole way, in the order it happens

    async def _run(self) -> None:
        wire = Wire(self._client, self.plan.max_tokens)
        try:
            self._api = await wire.api()
            self._clock = self._api.clock
            self._started_at = self._clock.seconds()
            self._work = await asyncio.to_thread(self._prepare, self._api.name)
            await self._answer(wire, self._work)
            self.state = "stopped" if self._stop_asked.is_set() or self.stopped_by else "finished"
        except LedgerError as error:
            self.state = "failed"
            raise RunStopped(f"{error}", self) from error
        except BaseException:
            self.state = "stopped" if self._stop_asked.is_set() else "failed"
            raise
        finally:
            self._ended_at = self._clock.seconds()
            await wire.close()
            await asyncio.to_thread(self._close)
        self._raise_if_failed()

    def _close(self) -> None:
        self._progress.close()
        try:
            self._ledger.close()
        except LedgerError as error:
            self.state = "failed"
            raise RunStopped(f"{error}", self) from error

    def _prepare(self, api: str) -> Work:
        """Read the frame once; keys and distinct requests of its rows."""
        plan, prompt = self.plan, self.plan.compiled
        try:
            frame = plan.frame.lazy().collect()
        except pl.exceptions.PolarsError as error:
            msg = f"The frame cannot be read: {type(error).__name__}. Try frame.collect() to see where."
            raise PlanError(msg) from error
        contents = prompt.contents(frame)["content"]
        keys = prompt.content_keys(contents, api)
        tokens = (
            pl.col("content").str.len_chars() + prompt.shared_characters
        ) / plan.facts.characters_per_token
        distinct = (
            pl.DataFrame([keys, contents])
            .drop_nulls()
            .unique("key", keep="first", maintain_order=True)
            .with_columns(estimated_tokens=tokens)
        )
        return Work(frame, keys, distinct)

    async def _answer(self, wire: Wire, work: Work) -> None:
        answered = await asyncio.to_thread(self._ledger.answered, work.distinct["key"])
        missing = work.distinct.filter(~answered)
        self._reused = work.distinct.height - missing.height
        self._live = self._engine(wire, missing)
        if self._stop_asked.is_set():
            return
        self.state = "running"
        await self._progress.start()
        rows = self._rows(missing)
        try:
            await self._live.answer(rows)
        finally:
            await rows.aclose()

    def _engine(self, wire: Wire, missing: pl.DataFrame) -> Live:
        plan, api = self.plan, self._api
        assert api is not None
        price = bills.price(plan.facts.id, mode="live")
        worst_output = plan.max_tokens

        def worst_dollars(row: Row) -> float:
            return price.dollars(
                cache_write_1h_input_tokens=row.input_tokens * _WORST_INPUT, output_tokens=worst_output
            )

        return Live(
            send=wire.send,
            pacer=Pacer(
                plan.limits,
                clock=api.clock,
                share=plan.share,
                concurrency=plan.concurrency,
                output_tokens=min(plan.expected.output_tokens, float(plan.max_tokens)),
            ),
            clock=api.clock,
            record=lambda attempt, final: self._ledger.record(attempt, final=final),
            price=price,
            describe={"run": self._ledger.run, "model": plan.facts.id, "simulated": api.simulated},
            worst_dollars=worst_dollars,
            budget_dollars=plan.budget,
            warm=plan.cache and missing.height > 1,
        )

    async def _rows(self, missing: pl.DataFrame) -> AsyncIterator[Row]:
        """Give each request that is this run's to send; wait for those another kernel is sending."""
        waiting = missing
        while waiting.height:
            held = []
            for block in waiting.iter_slices(_CLAIM_ROWS):
                won = set(await asyncio.to_thread(self._ledger.claim, block["key"].to_list()))
                for key, content, tokens in block.iter_rows():
                    if key in won:
                        yield self._row(key, content, tokens)
                held.append(block.filter(~pl.col("key").is_in(list(won))))
            waiting = await self._not_answered(pl.concat(held))

    async def _not_answered(self, held: pl.DataFrame) -> pl.DataFrame:
        if held.is_empty():
            return held
        answered = await asyncio.to_thread(self._ledger.answered, held["key"])
        left = held.filter(~answered)
        if left.height:
            await asyncio.sleep(_OTHERS_SECONDS)
        return left

    def _row(self, key: str, content: str, tokens: float) -> Row:
        prompt = self.plan.compiled
        cached = prompt.shared_characters / self.plan.facts.characters_per_token if self.plan.cache else 0.0
        return Row(key, f"{prompt.head}{content}{prompt.tail}".encode(), max(tokens - cached, 1.0))

    def _raise_if_failed(self) -> None:
        found = self._live.stopped_by if self._live else None
        if found is None:
            return
        self.stopped_by = found.error
        self.state = "stopped"
        if found.error != "budget":
            self.state = "failed"
            raise RunStopped(_stopped(found.error, found.message, self), self)

    # the handle

    def stop(self) -> None:
        """Send nothing more. What is in flight is awaited, for it is paid for; everything is kept.

        Spends: what is in flight.
        """
        self._stop_asked.set()
        if self._live is not None and not self._future.done():
            self._live.stop_soon()

    def __await__(self) -> Generator[Any, None, Run]:
        return self._wait().__await__()

    async def _wait(self) -> Run:
        try:
            while not self._future.done():
                await asyncio.sleep(loops.SLICE_SECONDS)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.to_thread(self._drain))
            if loops.in_notebook():
                raise loops.Interrupted(
                    f"■ Interrupted. Everything paid for is kept. {self._line()}"
                ) from None
            raise
        return self._outcome()

    def _drain(self) -> None:
        self.stop()
        concurrent.futures.wait([self._future], timeout=_DRAIN_SECONDS)

    def _outcome(self) -> Run:
        with suppress(concurrent.futures.CancelledError):
            self._future.result()
        return self

    def result(self) -> Run:
        """Return this run when it has ended, blocking this thread: a door for scripts.

        Spends: nothing by itself.
        """
        try:
            concurrent.futures.wait([self._future])
        except KeyboardInterrupt:
            self._drain()
            raise
        return self._outcome()

    # what happened

    @property
    def simulated(self) -> bool:
        """Whether the replies are a simulator's."""
        return self._api is not None and self._api.simulated

    @property
    def limits(self) -> Limits:
        """The limits in force: the table's, or what the API's answers told."""
        return self._live.pacer.limits if self._live else self.plan.limits

    @property
    def results(self) -> pl.DataFrame:
        """The frame, same rows in the same order, with the typed columns, `reply` and `error`.

        `reply` is null where there is none; `error` is null where all went well, ``"not_sent"`` where
        the row has not been sent (yet), the API's error type where it failed.

        Spends: nothing.
        """
        work = self._prepared()
        replies = self._with_failures(work)
        joined = work.keys.to_frame().join(replies, on="key", how="left", maintain_order="left")
        error = (
            pl.when(pl.col("key").is_null())
            .then(None)
            .when(pl.col("found").is_null())
            .then(pl.lit("not_sent"))
            .otherwise("error")
        )
        joined = joined.with_columns(error.alias("error"))
        returns = self.plan.compiled.returns
        if returns is None:
            return work.frame.hstack(joined.select("reply", "error"))
        typed, broken = returns.decode(joined["reply"])
        errors = pl.DataFrame([joined["error"], broken.alias("broken")]).select(
            error=pl.coalesce("error", "broken")
        )["error"]
        reply = [] if returns.single else [joined["reply"]]
        return work.frame.hstack([*typed.get_columns(), *reply, errors])

    def _with_failures(self, work: Work) -> pl.DataFrame:
        """Return key, reply and error of every row that has either, the last failure of one without a reply."""
        final = self.replies.select("key", "reply", "error")
        failed = self.attempts.filter(~pl.col("key").is_in(final["key"].implode()))
        last = failed.unique("key", keep="last", maintain_order=True).select("key", "reply", "error")
        return pl.concat([final, last]).with_columns(found=True)

    @property
    def replies(self) -> pl.DataFrame:
        """The final attempt of every distinct request that has one, of this run or an earlier one."""
        return self._ledger.replies(self._prepared().distinct["key"])

    @property
    def attempts(self) -> pl.DataFrame:
        """Every call of this run: answers, failures, refusals. Schema `claudescale.ledger.ATTEMPTS`."""
        return self._ledger.attempts(run=self._ledger.run)

    @property
    def batches(self) -> pl.DataFrame:
        """The batches of this run; none on a live run."""
        return pl.DataFrame(schema=BATCHES)

    @property
    def sizes(self) -> pl.DataFrame:
        """`key` and `estimated_tokens` of every distinct request, for `Plan.calibrate`."""
        return self._prepared().distinct.select("key", "estimated_tokens")

    @property
    def throughput(self) -> pl.DataFrame:
        """Rates per minute in slices of API time, as `claudescale.rates.THROUGHPUT`. Requests count when sent, tokens when answered."""
        return rates(self.attempts, self._started_at, self._minutes)

    @property
    def savings(self) -> pl.DataFrame:
        """What deduplication, cache and batches saved on the paid replies of this run, as `claudescale.bills.SAVINGS`."""
        counted = self._prepared().keys.drop_nulls().value_counts(name="rows")
        repeats = counted.select("key", duplicates=pl.col("rows").cast(pl.Int64) - 1)
        return bills.savings(self.attempts, duplicates=repeats)

    @property
    def bill(self) -> pl.DataFrame:
        """What was paid for what in this run, as `claudescale.bills.BILL`."""
        return bills.bill(self.attempts)

    @property
    def waste(self) -> pl.DataFrame:
        """What this run paid for or sent without use, as `claudescale.bills.WASTE`."""
        return bills.waste(self.attempts)

    @property
    def summary(self) -> pl.DataFrame:
        """One row of `SUMMARY`."""
        attempts, counts = self.attempts, self._counts()
        sums = attempts.select(
            pl.col("dollars").sum(),
            output=pl.col("output_tokens").sum(),
            input=pl.sum_horizontal(pl.col("^.*input_tokens$")).sum(),
            refused=(pl.col("status") == 429).sum(),  # noqa: PLR2004 - HTTP's own number
        ).row(0, named=True)
        minutes = self._minutes
        row = (
            self.state, *counts, self._reused, attempts.height, sums["refused"], minutes,
            attempts.height / minutes if minutes else 0.0,
            sums["input"], sums["output"], sums["dollars"], self.simulated,
        )  # fmt: skip
        return pl.DataFrame([row], schema=SUMMARY, orient="row")

    @property
    def _minutes(self) -> float:
        return ((self._ended_at or self._clock.seconds()) - self._started_at) / 60

    def _counts(self) -> tuple[int, int, int, int]:
        """Rows of the frame: all, answered, failed, missing."""
        if self._work is None:
            return (self.plan.totals.rows, 0, 0, 0)
        work = self._work
        found = work.keys.to_frame().join(self._with_failures(work), on="key", how="inner")
        failed = found["error"].is_not_null().sum()
        sent = work.keys.len() - work.keys.null_count()
        return (work.keys.len(), found.height - failed, failed, sent - found.height)

    def _prepared(self) -> Work:
        if self._work is None and self._future.done():
            self._outcome()
        if self._work is None:
            msg = "The run is still reading its frame; ask again in a moment, or await run."
            raise ClaudescaleError(msg)
        return self._work

    @property
    def plot(self) -> Plots:
        """Pictures of the run: ``throughput``, ``tokens``, ``latency``, ``spending``, ``savings``, ``progress``."""
        return Plots(self)

    # how it looks

    def _line(self) -> str:
        row = self.summary.row(0, named=True)
        reused = f", {row['reused']:,} reused from the ledger" if row["reused"] else ""
        failed = f", {row['failed']:,} failed" if row["failed"] else ""
        missing = f", {row['missing']:,} missing" if row["missing"] else ""
        simulated = "SIMULATED " if row["simulated"] else ""
        why = f" ({self.stopped_by})" if self.stopped_by else ""
        return (
            f"{simulated}Run {row['state']}{why}: {row['answered']:,} of {row['rows']:,} rows answered{failed}{missing}{reused}; "
            f"{row['requests']:,} calls in {display.duration(row['minutes'])}, {display.dollars(row['dollars'])}."
        )

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> display.Card:
        row = self.summary.row(0, named=True)
        where = self._ledger.path.name if self._ledger.path else "none: replies are kept in memory only"
        estimate = self.plan.options.row(0, named=True)
        return display.Card(
            title=self._line(),
            header=("", "estimated", "measured"),
            rows=(
                ("dollars", display.dollars(estimate["dollars"]), display.dollars(row["dollars"])),
                ("time", display.duration(estimate["minutes"]), display.duration(row["minutes"])),
                (
                    "requests/min",
                    f"limit {self.limits.requests_per_minute:,.0f}",
                    f"{row['requests_per_minute']:,.0f}",
                ),
                (
                    "input tokens",
                    display.tokens(estimate["input_tokens"]),
                    display.tokens(row["input_tokens"]),
                ),
                (
                    "output tokens",
                    display.tokens(estimate["output_tokens"]),
                    display.tokens(row["output_tokens"]),
                ),
                ("refused (429)", "0", f"{row['refused']:,}"),
            ),
            notes=(f"Ledger: {where}. Limits: {self.limits.source}.",),
            next="run.results" if self.state == "finished" else "await run",
        )


_ADVICE = {
    "authentication_error": "The API does not accept the key. Set ANTHROPIC_API_KEY, or cs.connect(api_key=...).",
    "billing_error": "The account cannot be billed. See the Console's billing page.",
    "permission_error": "The key may not use this model or endpoint.",
    "not_found_error": "The API does not know this model (any more). cs.models() lists those that are called today.",
    "enforced_spend_limit_reached": "The tier's monthly spend limit is reached; it ends at 00:00 UTC on the 1st.",
    "contract_spend_limit_reached": "The contract's spend limit is reached.",
    "spend_limit_reached": "The spend limit set in the Console is reached. Raise it there.",
    "invalid_request_error": "The API turns every request down, so nothing more was sent.",
    "connection_error": "The API cannot be reached. Check the network and base_url.",
    "timeout_error": "The API has not answered for minutes.",
}


def _stopped(error: str | None, message: str | None, run: Run) -> str:
    """Return what ended a run, what is kept, and what to do."""
    advice = _ADVICE.get(error or "", "The API cannot go on.")
    said = f" It says: {message[:300]}" if message else ""
    answered = run.summary["answered"][0]
    return f"{advice} ({error}.{said}) {answered:,} rows are answered and kept; the same cell again sends only what is missing."
