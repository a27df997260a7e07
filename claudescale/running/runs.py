"""Run: the handle of a run under way or ended, its three modes, and what happened as frames.

A run owns no replies: the ledger has them. It owns the rows' keys, which join replies to the frame.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import deque
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from claudescale import loops
from claudescale.api import catalog, prices
from claudescale.api.answers import STOPPING_ERRORS
from claudescale.api.client import check_client, current
from claudescale.errors import FileChanged, LedgerError, PlanError, RunStopped
from claudescale.ledger.records import ATTEMPTS, Batch, columns_of
from claudescale.loops import Handle
from claudescale.pacing.pacer import Pacer
from claudescale.prompts.requests import last_failures
from claudescale.running import meter, run_views
from claudescale.running.job import Job
from claudescale.running.live import Live
from claudescale.running.run_views import Plots, Progress
from claudescale.views.card import Shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.views.card import Card


INDEX = "index"
"""The place of a row in the frame, from 0, in what ``async for`` gives."""
PART_ROWS = 100_000
"""Of a slice of `run_parts`."""
ROW = "row"
"""The column of the parts that says which row of the input it is, from 0."""
_PARTS = "part-*.parquet"
_MOMENT = pl.Datetime("us", "UTC")
BATCHES = pl.Schema(
    dict.fromkeys(("batch_id", "state"), pl.String())
    | dict.fromkeys(("requests", "succeeded", "errored", "canceled", "expired"), pl.Int64())
    | {"created_at": _MOMENT, "ended_at": _MOMENT, "minutes": pl.Float64(), "results_until": _MOMENT}
    | {"dollars": pl.Float64(), "cache_hit_share": pl.Float64()}
)
"""Columns of `Run.batches`. The counts are 0 until the batch has ended, as the API tells them; `minutes` is
from its creation to its end; `cache_hit_share` is of the tokens that could be read from the cache."""
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
        self.row_errors: dict[str, int] | None = None  # how many rows have which, counted once at the end
        self._shown = progress
        self.job = Job(plan, client, self.path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cluster: Any = None  # makes what answers rows elsewhere
        if on is not None:
            try:
                from claudescale import cluster  # noqa: PLC0415 - optional
            except ImportError as error:
                msg = "on= needs Dask, which is not installed: pip install 'claudescale[dask]'"
                raise PlanError(msg) from error
            self._cluster = cluster.engine(on, client, plan)
        if loops.in_notebook():
            from claudescale.widgets import watch  # noqa: PLC0415 - only there

            watch.prepare()
        self._start(self._go())

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
        if state == "failed":
            raise RunStopped(run_views.why(self), self) from job.ledger_error or cause

    async def _send(self, progress: Progress) -> None:
        """Send what is missing in the plan's mode."""
        job, mode = self.job, self.plan.mode
        if job.only_collects:
            mode = "batch"
        if mode == "live":
            live = self._make_live(job.missing.height)
        job.start()
        self.state = "running"
        progress.start(run_views.before(self))
        if job.asked:  # before there was anything to stop
            return
        try:
            match mode:
                case "live":
                    async with aclosing(job.rows(job.missing)) as rows:
                        await live.answer(rows)
                case "batch":
                    await job.batches.answer(job.missing["key"])
                case _:
                    await self._hybrid()
        finally:
            if job.following is not None:
                job.batches.leave()
                await job.following

    async def _hybrid(self) -> None:
        """Send a row live, which tells the limits; the rest by batch; live again what must be in time."""
        job, rows, batches = self.job, self.job.missing, self.job.batches
        await batches.adopt()
        free = rows.filter(~pl.col("key").is_in(batches.adopted)).head(1)
        if not (free.is_empty() or job.is_over):
            await self._make_live(1).answer(job.first(free))
        if job.is_over:
            return
        job.following = asyncio.ensure_future(batches.answer(rows["key"]))
        await loops.either(job.following, batches.freed)
        rest = rows.filter(~await loops.in_thread(job.ledger.answered, rows["key"]))
        if not (job.is_over or rest.is_empty()):
            async with aclosing(job.rows(rest)) as given:
                await self._make_live(rest.height).answer(given)

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

    def _end_state(self) -> str:
        job, batches = self.job, self.job.batches
        found = job.live.stopped_by if job.live else None
        found = found or (batches.stopped_by if batches.is_refused else None) or batches.why_stuck
        if found is not None:
            self.stopped_by, self.message = found.error, found.message
            return "stopped" if found.error == "budget" else "failed"
        if batches.waited:
            return "left"
        return "stopped" if job.asked and job.meter.missing else "finished"

    # the handle

    def stop(self) -> None:
        """Send nothing more and cancel batches. What is answered by then is paid for, awaited and kept.

        Returns at once; ``await run`` for the end. Running the plan again sends what is missing. A batch
        whose answer was lost cannot be canceled before it is found: it is left, and the next run finds it.

        Spends: what is in flight.
        """
        self.job.stopping = True
        self._tell()

    def leave(self) -> None:
        """Send nothing more and let batches continue at the API: the same cell collects them, even tomorrow.

        An interrupt and the end of the process do this too. Returns at once; ``await run`` for the end.

        Spends: what is in flight; the batches, as they are answered.
        """
        self.job.leaving = True
        self._tell()

    def _tell(self) -> None:
        """Pass on what is asked for, from whatever thread."""
        if self._loop is not None and self.state == "running":
            with suppress(RuntimeError):  # the loop is closed: the run has ended already
                self._loop.call_soon_threadsafe(self.job.hear)

    def _outcome(self) -> Self:
        for settle in self.job.watched if self.state not in {"starting", "running"} else ():
            settle()
        return super()._outcome()

    async def submitted(self) -> Run:
        """Return this run once the batches are submitted that the queue has room for, or it has ended.

        Spends: nothing by itself.
        """
        while not self._ended.done():
            if self.state == "running" and (self.plan.mode == "live" or self.job.batches.submitted.is_set()):
                return self
            await asyncio.sleep(loops.SLICE_SECONDS)
        return self._outcome()

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
        while not (self.job.is_open or self._ended.done()):
            await self._followed(loops.SLICE_SECONDS)
        if not self.job.is_open:
            self._outcome()
        work, answered = self.job.work, deque[pl.Series]()
        if INDEX in work.frame.columns:
            msg = f"The frame has a column {INDEX!r}, where async for says which row it is: rename yours."
            raise PlanError(msg)
        left = work.keys.alias("key").to_frame().with_row_index(INDEX)  # rows that were not given yet
        self.job.feeds.append(answered)
        answered.append(self.job.replies(("key",))["key"])
        try:
            has_ended = False
            while not has_ended:
                has_ended = self._ended.done()
                if answered:
                    keys = pl.concat([answered.popleft() for _ in range(len(answered))])
                    left, rows = await loops.in_thread(self._arrived, left, keys)
                    for row in rows:
                        yield row
                if not has_ended:
                    await self._followed(loops.SLICE_SECONDS)
            rest = await loops.in_thread(lambda: self.results[left[INDEX]])
            for place, row in zip(left[INDEX], rest.iter_rows(named=True), strict=True):
                yield {INDEX: place, **row}
        finally:
            self.job.feeds.remove(answered)
        self._outcome()

    def _arrived(self, left: pl.DataFrame, keys: pl.Series) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
        """Return which rows are left, and those that requests with these keys have answered."""
        keys, job = keys.unique(maintain_order=True), self.job
        mine = pl.col("key").is_in(keys.implode()).fill_null(value=False)
        places = keys.to_frame().join(left.filter(mine), on="key", maintain_order="left")[INDEX]
        answers = job.replies(("key", "reply", "error"), of=keys)
        found = job.work.results(answers, places, simulated=job.simulated).iter_rows(named=True)
        return left.filter(~mine), [{INDEX: at, **row} for at, row in zip(places, found, strict=True)]

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
        """The limits in force: the table's, or those that the API's answers report."""
        return self.job.limits

    @property
    def summary(self) -> pl.DataFrame:
        """One row: rows of the frame, then calls, tokens and dollars of this run.

        A reply that breaks the `returns` schema counts as answered.

        Spends: nothing.
        """
        counts, minutes = self.counts, self.minutes
        names = "rows", "answered", "failed", "missing", "reused", "requests", "refused"
        row = {"state": self.state, **{name: getattr(counts, name) for name in names}, "minutes": minutes}
        row["requests_per_minute"] = counts.requests / minutes if minutes else 0.0
        row |= {name: getattr(counts, name) for name in ("input_tokens", "output_tokens", "dollars")}
        return pl.DataFrame([row | {"simulated": self.job.simulated}])

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
        """One row per API minute, as `meter.THROUGHPUT`; the last is as long as it has lasted.

        Requests count when sent, tokens when answered.

        Spends: nothing.
        """
        return meter.by_minute(self.attempts, self.job.started_at, self.minutes)

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


# an input larger than memory


async def run_parts(
    plan: Plan,
    folder: str | Path,
    client: AsyncAnthropic | None = None,
    *,
    rows: int = PART_ROWS,
    **given: Any,
) -> pl.LazyFrame:
    """Return the results as a scan of Parquet files, a file for every so many rows, in the input's order.

    The same call again sends only what the ledger does not have, and writes the files anew. Memory holds one
    slice and its replies, never the whole input; identical rows are sent once, whatever slice they are in.

    Spends: tokens.

    Parameters
    ----------
    plan : Plan
        Over ``pl.scan_parquet(...)``, say: reading a slice of it twice must give the same rows. Its
        `deadline` holds for each slice, its `budget` for all.
    folder : str or Path
        Where the files go, ``part-000000.parquet`` first; others of such names there are removed at the end.
    rows : int
        Of a slice.
    client, **given
        As for `Plan.run`: ``ledger``, ``progress``, ``on``.

    Returns
    -------
    pl.LazyFrame
        What `Run.results` has, and first the column `row`, by which ``.sort("row")`` restores the input's
        order after a join or a shuffle.

    Raises
    ------
    PlanError
        The prompt is an expression, which might look at other rows than its own; there is a column `row`;
        or the plan has `samples`, with which a row of the input is several.
    RunStopped
        A slice was not finished; the files of those before it stand.
    """
    frame = plan.frame.lazy()
    if plan.compiled.prompt.columns is None:
        msg = "run_parts needs a prompt with {column} in it: an expression may look at rows of other slices"
        raise PlanError(msg)
    if plan.samples > 1:
        msg = f"run_parts keeps one result for each row, and the plan has samples={plan.samples}: "
        raise PlanError(msg + "use plan.replace(samples=1), or a plan over a smaller frame with plan.run")
    if ROW in frame.collect_schema():
        msg = f"the frame has a column {ROW!r}, which is where run_parts keeps the rows' order: rename yours"
        raise PlanError(msg)
    target = _made(folder)
    left, written = plan.budget, []
    for start in range(0, max(frame.select(pl.len()).collect().item(), 1), rows):
        run = await plan.replace(frame=frame.slice(start, rows), budget=left).run(client, **given)
        if run.state != "finished":
            msg = f"rows from {start:,} on are not finished ({run.stopped_by or run.state}): run it again"
            raise RunStopped(msg, run)
        if left is not None:
            left = max(left - run.counts.dollars, 0.0)
        written.append(target / f"part-{start // rows:06}.parquet")
        await loops.in_thread(_write, run.results.with_row_index(ROW, start), written[-1])
        del run
        gc.collect()  # a run and what follows it hold each other; what Polars keeps there makes none due
    for path in set(target.glob(_PARTS)) - set(written):
        path.unlink()
    return pl.scan_parquet(target / _PARTS)


def _made(folder: str | Path) -> Path:
    path = Path(folder).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(results: pl.DataFrame, path: Path) -> None:
    """Write a file that is whole or not there."""
    unfinished = path.with_suffix(".writing")
    results.write_parquet(unfinished)
    unfinished.replace(path)
