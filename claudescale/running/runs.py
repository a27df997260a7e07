"""Run: the handle of a run under way or ended, its three modes, and what happened as frames.

A run owns no replies: the ledger has them. It owns the rows' keys, which join replies to the frame.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops
from claudescale.api import catalog, prices
from claudescale.api.answers import STOPPING_ERRORS
from claudescale.api.client import check_client, current
from claudescale.errors import FileChanged, LedgerError, PlanError, RunStopped
from claudescale.ledger.records import ATTEMPTS, Batch, columns_of
from claudescale.loops import Handle
from claudescale.pacing.pacer import Pacer
from claudescale.planning import estimates
from claudescale.prompts.retries import last_failures
from claudescale.running import meter, run_views
from claudescale.running.arrivals import Arrivals
from claudescale.running.batches import Batches
from claudescale.running.job import Job
from claudescale.running.live import Live
from claudescale.running.progress import Progress
from claudescale.running.rates import by_minute
from claudescale.running.run_views import Plots
from claudescale.views.card import Shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.views.card import Card


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
"""Columns of `Run.summary`, one row: rows of the frame, then calls, tokens and dollars of this run."""
_MOMENT = pl.Datetime("us", "UTC")
BATCHES = pl.Schema(
    {
        "batch_id": pl.String(),
        "state": pl.String(),
        "requests": pl.Int64(),
        "succeeded": pl.Int64(),
        "errored": pl.Int64(),
        "canceled": pl.Int64(),
        "expired": pl.Int64(),
        "created_at": _MOMENT,
        "ended_at": _MOMENT,
        "minutes": pl.Float64(),
        "results_until": _MOMENT,
        "dollars": pl.Float64(),
        "cache_hit_share": pl.Float64(),
    }
)
"""Columns of `Run.batches`. The counts are 0 until the batch has ended, as the API tells them; `minutes` is
from its creation to its end; `cache_hit_share` is of the tokens that could be read from the cache."""
_SETTLE_SECONDS = 5.0
_BATCH_COLUMNS = (
    "batch_id",
    "dollars",
    "cache_write_5m_input_tokens",
    "cache_write_1h_input_tokens",
    "cache_read_input_tokens",
)


class Run(Shown, Handle):
    """A run under way or ended. ``await`` it for its end; every frame can be read before that.

    `Plan.run` and `Plan.start` make one.

    Attributes
    ----------
    plan : Plan
        What is run.
    path : Path or None
        The ledger; None keeps replies in memory.
    state : str
        ``"starting"``, ``"running"``, ``"finished"``, ``"stopped"``, ``"failed"`` or ``"left"``: ended, while
        batches of it go on at the API.
    stopped_by : str or None
        What ended it early: the API's error type, ``"budget"`` or ``"ledger"``.
    message : str or None
        What the API, or the ledger, said then.
    job : Job
        What this package itself needs to know of a run: rows, keys, ledger, money. Nothing for users.
    home : int
        The thread whose loop does the work.
    """

    def __init__(
        self,
        plan: Plan,
        client: AsyncAnthropic | None,
        *,
        ledger: str | Path | None,
        progress: bool,
        on: Any = None,
    ) -> None:
        client = current() if client is None else client
        check_client(client, plan.mode)
        self.plan = plan
        if ledger is not None and not isinstance(ledger, str | os.PathLike):
            msg = f"ledger={ledger!r}: it is the path of a file, such as ledger='replies.ledger', or None."
            raise PlanError(msg)
        self.path = None if ledger is None else Path(ledger).expanduser().absolute()
        self.state = "starting"
        self.stopped_by: str | None = None
        self.message: str | None = None
        self._shown = progress
        self.job = Job(plan, client, self.path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False
        self._cluster = _on(on, client, plan)
        if loops.in_notebook():
            import ipywidgets  # noqa: F401, PLC0415 - `watch` needs it: imported later it would slow the calls
        self._start(self._go)

    # how it goes

    async def _go(self) -> None:
        """Answer every row that has no answer yet.

        A PlanError says that nothing was sent, a RunStopped that it could not go on.
        """
        progress = Progress(self, shown=self._shown)  # not kept: a run that is over goes with its last name
        job, state = self.job, "failed"
        cause: FileChanged | None = None
        self._loop = asyncio.get_running_loop()
        try:
            await job.open()
            await self._send(progress)
            state = self._end_state()
        except LedgerError as error:
            job.fail(error)
        except FileChanged as error:
            self.stopped_by, self.message, cause = "file_changed", str(error), error
        except asyncio.CancelledError:
            state = "stopped"
            raise
        finally:
            await job.close()
            if job.ledger_error is not None:
                self.stopped_by, self.message, state = "ledger", str(job.ledger_error), "failed"
            if state != "left":  # then nothing was given up
                job.meter.end(self.stopped_by)
            self.state = state
            await progress.close()
            for settled in job.watched:  # what stays of a watcher belongs to the cell that waits for the end
                await loops.in_thread(settled.wait, _SETTLE_SECONDS)
        if state == "failed":
            raise RunStopped(run_views.why(self), self) from job.ledger_error or cause

    async def _send(self, progress: Progress) -> None:
        """Send what is missing in the plan's mode."""
        job, mode = self.job, self.plan.mode
        if job.only_collects:
            mode = "batch"
        if mode == "live":
            self._make_live(job.missing.height)
        job.start()
        self.state = "running"
        progress.start(run_views.before(self))
        if job.asked:  # before there was anything to stop
            return
        try:
            match mode:
                case "live":
                    await self._live(job.missing)
                case "batch":
                    await self._batch()
                case _:
                    await self._hybrid()
        finally:
            if job.batches is not None and job.following is not None:
                job.batches.leave()
                await job.following

    async def _live(self, rows: pl.DataFrame) -> None:
        assert self.job.live is not None
        given = self.job.rows(rows)
        try:
            await self.job.live.answer(given)
        finally:
            await given.aclose()

    async def _batch(self) -> None:
        self.job.batches = Batches(self.job)
        self._pass_on()  # what was asked for before there was anything to ask
        await self.job.batches.answer(self.job.missing["key"])

    async def _hybrid(self) -> None:
        """Send a row live, which tells the limits; the rest by batch; live again what must be in time."""
        job, rows = self.job, self.job.missing
        job.batches = batches = Batches(job)
        self._pass_on()
        await batches.adopt()
        await self._scout(rows.filter(~pl.col("key").is_in(batches.adopted)))
        if job.is_over:
            return
        job.following = asyncio.ensure_future(batches.answer(rows["key"], until=self._latest_switch))
        await loops.either(job.following, batches.freed)
        rest = rows.filter(~await loops.in_thread(job.ledger.answered, rows["key"]))
        if not (job.is_over or rest.is_empty()):
            self._make_live(rest.height)
            await self._live(rest)

    async def _scout(self, free: pl.DataFrame) -> None:
        """Send one row that nobody holds."""
        if not (free.is_empty() or self.job.is_over):
            await self._make_live(1).answer(self.job.first(free))

    def _make_live(self, requests: int) -> Live:
        """Make what sends rows live, at the pace that an earlier one has learned."""
        job, plan = self.job, self.plan
        if self._cluster is not None:
            job.live = self._cluster(job)
            job.pacer = job.live.pacer
            return job.live
        job.pacer = job.pacer or Pacer(
            plan.compiled.limits,
            clock=job.clock,
            share=plan.share,
            concurrency=plan.concurrency,
            output_tokens=min(plan.compiled.expected.output_tokens, float(plan.max_tokens)),
        )
        job.live = Live(job, job.pacer, warm=plan.cache and requests > 1)
        return job.live

    def _latest_switch(self) -> float:
        """Return the API second from which on the rest would not be done live in time."""
        job, plan = self.job, self.plan
        rest, expected, seconds = job.missing, plan.compiled.expected, 0.0
        if rest.height:
            answered = job.meter.requests - job.meter.refused
            output = job.meter.output_tokens / answered if answered else expected.output_tokens
            limits = job.pacer.limits if job.pacer else plan.compiled.limits
            seconds = estimates.live_finish(
                limits.shared(plan.share),
                expected,
                requests=rest.height,
                input_tokens=expected.uncached_tokens(float(rest["estimated_tokens"].sum()), rest.height),
                output_tokens=min(output, float(plan.max_tokens)) * rest.height,
                concurrency=plan.concurrency,
                more=expected.more,
            ).seconds
        deadline = plan.deadline or 0.0
        return job.started_at + (deadline - estimates.CANCEL_MINUTES) * 60 - seconds

    def _end_state(self) -> str:
        job, batches = self.job, self.job.batches
        found = job.live.stopped_by if job.live else None
        if batches is not None:
            found = found or (batches.stopped_by if batches.is_refused else None) or batches.why_stuck
        if found is not None:
            self.stopped_by, self.message = found.error, found.message
            return "stopped" if found.error == "budget" else "failed"
        if batches is not None and batches.waited:
            return "left"
        return "stopped" if job.asked and job.meter.missing else "finished"

    # the handle

    def stop(self) -> None:
        """Send nothing more and cancel batches. What is answered by then is paid for, awaited and kept.

        Returns at once; ``await run`` for the end. Running the plan again sends what is missing. A batch
        whose answer was lost cannot be canceled before it is found: it is left, and the next run finds it.

        Spends: what is in flight.
        """
        self.job.asked = "stop"
        self._tell()

    def leave(self) -> None:
        """Send nothing more and let batches go on at the API: the same cell collects them, also tomorrow.

        An interrupt and the end of the process do this too. Returns at once; ``await run`` for the end.

        Spends: what is in flight; the batches, as they are answered.
        """
        self._leaving = True
        self.job.asked = self.job.asked or "leave"
        self._tell()

    def _tell(self) -> None:
        """Pass on what is asked for, from whatever thread."""
        if self._loop is not None and self.state == "running":
            with suppress(RuntimeError):  # the loop is closed: the run has ended already
                self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        live, batches = self.job.live, self.job.batches
        if live is not None and self.job.asked:
            live.stop()
        if batches is not None and self.job.asked == "stop":
            batches.stop()
        if batches is not None and self._leaving:
            batches.leave()

    async def submitted(self) -> Run:
        """Return this run once the batches are submitted that the queue has room for, or it has ended.

        Spends: nothing by itself.
        """
        while not (self._started.future.done() or self._is_submitted):  # noqa: ASYNC110 - another loop's
            await asyncio.sleep(loops.SLICE_SECONDS)
        return self._outcome() if self._started.future.done() else self

    @property
    def _is_submitted(self) -> bool:
        if self.state != "running":
            return self.state != "starting"
        batches = self.job.batches
        return self.plan.mode == "live" or (batches is not None and batches.submitted.is_set())

    async def __aiter__(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield each row of the frame once, as a dict: `index`, its place from 0, and what `results` has.

        Rows come in the order in which they are answered, those that the ledger had first; at the end of the
        run those without a reply. Leaving the loop early leaves the run going.

        Raises
        ------
        PlanError
            The frame has a column `index`.
        RunStopped
            The run could not go on; every row was given before that.
        """
        while not (self.job.is_open or self._started.future.done()):
            await self._followed(loops.SLICE_SECONDS)
        if not self.job.is_open:
            self._outcome()
        rows = await loops.in_thread(Arrivals, self)
        try:
            while True:
                has_ended = self._started.future.done()
                for row in await loops.in_thread(rows.read):
                    yield row
                if has_ended:
                    break
                await self._followed(loops.SLICE_SECONDS)
            for row in await loops.in_thread(rows.rest):
                yield row
        finally:
            rows.close()
        self._outcome()

    @property
    def kept(self) -> str:
        """What an interrupt leaves, in one sentence. Spends: nothing."""
        return run_views.kept(self)

    # how far it is: cheap, at any time, from any thread

    @property
    def counts(self) -> meter.Meter:
        """Rows, calls, tokens and dollars so far."""
        return self.job.meter

    @property
    def minutes(self) -> float:
        """API minutes since the first call could go."""
        return self.job.minutes

    @property
    def limits(self) -> Limits:
        """The limits in force: the table's, or what the API's answers told."""
        return self.job.pacer.limits if self.job.pacer else self.plan.compiled.limits

    @property
    def summary(self) -> pl.DataFrame:
        """One row of `SUMMARY`. A reply that breaks the `returns` schema counts as answered.

        Spends: nothing.
        """
        counts, minutes = self.counts, self.minutes
        row = (
            self.state, counts.rows, counts.answered, counts.failed, counts.missing, counts.reused,
            counts.requests, counts.refused, minutes, counts.requests / minutes if minutes else 0.0,
            counts.input_tokens, counts.output_tokens, counts.dollars, self.job.simulated,
        )  # fmt: skip
        return pl.DataFrame([row], schema=SUMMARY, orient="row")

    # what happened, as frames

    @property
    def results(self) -> pl.DataFrame:
        r"""The frame, same rows in the same order, with the typed columns, `reply` and `error`.

        `reply` is null where there is none. `error` is null where all went well, ``"not_sent"`` where
        the row has no answer yet, the API's error type where it failed, ``"invalid_reply"`` where a reply
        breaks the `returns` schema. A row with a null in the prompt's columns has neither. A simulator's
        replies are marked by a last column, `simulated`; the API's results have none. Where the frame has a
        column of one of these names, as earlier results do, it is renamed here: `reply_1`.

        Spends: nothing.

        Notes
        -----
        Replies are text that whoever wrote a row may have steered. A spreadsheet that opens a CSV file runs a
        cell that begins with ``=``, ``+``, ``-`` or ``@``. ``write_excel`` writes texts as texts; before
        ``write_csv``: ``pl.col(pl.String).str.replace(r"^([=+@\t\r-])", "'$1")``.
        """
        work = self.job.work
        answers = self.job.replies(("key", "reply", "error"))
        if self.state in {"finished", "stopped", "failed"}:
            given_up = last_failures(self.attempts, answers).select("key", "reply", "error")
            if self.stopped_by in STOPPING_ERRORS:  # the account's trouble, and no word on a row
                given_up = given_up.filter(pl.col("error").ne_missing(self.stopped_by))
            answers = pl.concat([answers, given_up])
        return work.results(answers, simulated=self.job.simulated)

    @property
    def attempts(self) -> pl.DataFrame:
        """Every call of this run: answers, failures, refusals. Schema `claudescale.ledger.records.ATTEMPTS`.

        Spends: nothing.
        """
        if not self.job.is_open:
            return ATTEMPTS.to_frame()
        return self.job.ledger.attempts(run=self.job.ledger.run)

    @property
    def batches(self) -> pl.DataFrame:
        """The batches this run followed, of an earlier run too, as `BATCHES`.

        Spends: nothing.
        """
        if not self.job.is_open:
            return BATCHES.to_frame()
        ledger = self.job.ledger
        return batch_frame(ledger.batches(mine=True), ledger.attempts(columns=_BATCH_COLUMNS))

    @property
    def throughput(self) -> pl.DataFrame:
        """One row per API minute, as `rates.THROUGHPUT`; the last is as long as it has lasted.

        Requests count when sent, tokens when answered.

        Spends: nothing.
        """
        return by_minute(self.attempts, self.job.started_at, self.minutes)

    @property
    def savings(self) -> pl.DataFrame:
        """What deduplication, cache and batches saved on this run's replies, as `prices.SAVINGS`.

        Spends: nothing.
        """
        rows = self.job.work.keys.drop_nulls().value_counts(name="rows")
        repeats = rows.select("key", duplicates=pl.col("rows").cast(pl.Int64) - 1)
        return prices.savings(self.attempts, duplicates=repeats, models=(self.plan.compiled.model,))

    @property
    def bill(self) -> pl.DataFrame:
        """What was paid for what in this run, as `claudescale.api.prices.BILL`.

        Spends: nothing.
        """
        return prices.bill(self.attempts, models=(self.plan.compiled.model,))

    @property
    def waste(self) -> pl.DataFrame:
        """What this run paid for or sent without use, as `claudescale.api.prices.WASTE`.

        Spends: nothing.
        """
        return prices.waste(self.attempts)

    @property
    def plot(self) -> Plots:
        """Pictures: ``throughput``, ``tokens``, ``latency``, ``batches``, ``spending``, and so on."""
        return Plots(self)

    def _card(self) -> Card:
        return run_views.run_card(self)


def batch_frame(batches: Sequence[Batch], attempts: pl.DataFrame) -> pl.DataFrame:
    """Return one row per batch, in the order they were sent.

    Spends: nothing.

    Parameters
    ----------
    batches : sequence of Batch
        From the ledger.
    attempts : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`, with those of these batches.
    """
    read = pl.col("cache_read_input_tokens").sum()
    written = pl.sum_horizontal(pl.col("^cache_write.*$").sum())
    paid = (
        attempts.drop_nulls("batch_id")
        .group_by("batch_id")
        .agg(
            dollars=pl.col("dollars").sum(),
            cache_hit_share=pl.when(read + written > 0).then(read / (read + written)),
        )
    )
    kept = catalog.BATCH.results_days * 86_400
    at = {
        "created_at": pl.col("created_at"),
        "ended_at": pl.col("ended_at"),
        "results_until": pl.col("created_at") + kept,
    }
    return (
        pl.DataFrame(batches, schema=columns_of(Batch), orient="row")
        .join(paid, on="batch_id", how="left", maintain_order="left")
        .with_columns(
            minutes=(pl.col("ended_at") - pl.col("created_at")) / 60,
            **{name: (seconds * 1e6).cast(pl.Int64).cast(_MOMENT) for name, seconds in at.items()},
        )
        .select(*BATCHES)
        .cast(BATCHES)
    )


def _on(on: Any, client: AsyncAnthropic, plan: Plan) -> Callable[[Job], Any] | None:
    """Return what makes a run's engine `on` a cluster; None where there is none."""
    if on is None:
        return None
    try:
        from claudescale import cluster  # noqa: PLC0415 - optional
    except ImportError as error:
        msg = "on= needs Dask, which is not installed: pip install 'claudescale[dask]'"
        raise PlanError(msg) from error
    return cluster.engine(on, client, plan)
