"""Run: the handle of a run in progress or ended, its three modes, and its history as frames.

A run holds no replies, which are in the ledger. It holds the rows' keys, which join replies to the frame.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import os
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from claudescale import loops
from claudescale.api import catalog, prices
from claudescale.api.answers import STOPPING_ERRORS
from claudescale.api.client import check_client, current
from claudescale.errors import FileChanged, LedgerError, PlanError, RunStopped, refuse
from claudescale.ledger.records import ATTEMPTS, Batch, columns_of
from claudescale.prompts.retry import last_failures
from claudescale.running import meter, run_views
from claudescale.running.job import Job
from claudescale.running.live import Live
from claudescale.running.run_views import Progress
from claudescale.views.card import Shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.running.plots import Plots
    from claudescale.views.card import Card


INDEX = "index"
"""The name of a row's position in the frame, from 0, in the dicts that ``async for`` yields."""
PART_ROWS = 100_000
"""Rows in a slice of `run_parts`."""
ROW = "row"
"""The column of the parts with the position of each row in the input, from 0."""
_PARTS = "part-*.parquet"
_MOMENT = pl.Datetime("us", "UTC")
BATCHES = pl.Schema(
    dict.fromkeys(("batch_id", "state"), pl.String())
    | dict.fromkeys(("requests", "succeeded", "errored", "canceled", "expired"), pl.Int64())
    | {"created_at": _MOMENT, "ended_at": _MOMENT, "minutes": pl.Float64(), "results_until": _MOMENT}
    | {"dollars": pl.Float64(), "cache_hit_share": pl.Float64()}
)
"""Columns of `Run.batches`. The counts are 0 until the batch has ended, as at the API. `minutes` runs from
creation to end. `cache_hit_share` is the share of cacheable tokens that were read from the cache."""
_CACHED = ("cache_read_input_tokens", "cache_write_5m_input_tokens", "cache_write_1h_input_tokens")


class Run(Shown):
    """A run in progress or ended. ``await`` it for its end; every frame can be read before that.

    `Plan.run` and `Plan.start` create one. An interrupt leaves the run, and waits for calls in flight.

    Attributes
    ----------
    plan : Plan
        The plan that is run.
    path : Path or None
        The ledger; None keeps replies in memory.
    state : str
        ``"starting"``, ``"running"``, ``"finished"``, ``"stopped"``, ``"failed"`` or ``"left"``: ended, while
        its batches continue at the API.
    stopped_by : str or None
        What ended it early: the API's error type, ``"budget"`` or ``"ledger"``.
    message : str or None
        The message of the API or the ledger at that point.
    job : Job
        Internal state of the run: rows, keys, ledger, money. Not for users.
    home : asyncio.AbstractEventLoop
        The event loop that does the work.
    """

    def __init__(
        self,
        plan: Plan,
        client: AsyncAnthropic | None,
        *,
        ledger: str | os.PathLike[str] | None,
        progress: bool,
        on: Any = None,
    ) -> None:
        client = current() if client is None else client
        check_client(client, plan.mode)
        self.plan = plan
        if not isinstance(ledger, str | os.PathLike | None):
            refuse(f"ledger={ledger!r}: it is the path of a file, such as 'replies.ledger', or None.")
        self.path = None if ledger is None else Path(ledger).expanduser().absolute()
        self.state = "starting"
        self.stopped_by: str | None = None
        self.message: str | None = None
        self.job = Job(plan, client, self.path)
        self._cluster: Any = None  # creates the sender that answers rows on a cluster
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
        self._ended, self.home = loops.start(self._go(shown=progress), self)

    # the work

    async def _go(self, *, shown: bool) -> None:
        """Answer every row that has no answer yet."""
        # A PlanError means that nothing was sent, a RunStopped that the run could not continue.
        progress = Progress(self, shown=shown)  # a local: an ended run is freed with its last reference
        job, state = self.job, "failed"
        try:
            await job.open()
            self.state = "running"
            progress.start(run_views.before(self))
            await self._send()
            state = self._end_state()
        except (LedgerError, FileChanged) as error:
            job.fail(error)
        except asyncio.CancelledError:
            state = "stopped"
            raise
        finally:
            await job.close()
            if job.failure is not None:
                self.stopped_by = "ledger" if isinstance(job.failure, LedgerError) else "file_changed"
                self.message, state = str(job.failure), "failed"
            if state != "left":  # a run that was left has given up nothing
                job.meter.end(self.stopped_by)
            self.state = state
            progress.close()
        if state == "failed":
            raise RunStopped(run_views.why(self), self) from job.failure

    async def _send(self) -> None:
        """Send the missing rows in the plan's mode."""
        job, batches = self.job, self.job.batches
        if job.asked:  # to stop or leave, before anything was sent
            return
        try:
            if job.only_collects or self.plan.mode == "batch":
                await batches.answer()
            elif self.plan.mode == "live":
                await self._send_live(job.missing)
            else:
                await self._send_hybrid()
        finally:
            if job.following is not None:
                batches.leave()
                await job.following

    async def _send_hybrid(self) -> None:
        """Send one row live to learn the limits, the rest by batch, then live what the deadline requires."""
        job, rows, batches = self.job, self.job.missing, self.job.batches
        await batches.adopt()
        free = rows.filter(~pl.col("key").is_in(batches.adopted)).head(1)
        await self._send_live(await loops.in_thread(job.claimed, free))
        if job.is_over:
            return
        job.following = asyncio.ensure_future(batches.answer())
        await batches.freed.wait()
        if job.following.done():
            job.following.result()
        await self._send_live(rows.filter(~await loops.in_thread(job.ledger.answered, rows["key"])))

    async def _send_live(self, rows: pl.DataFrame) -> None:
        """Send rows live, at the pace learned from earlier calls."""
        job, plan = self.job, self.plan
        if job.is_over or rows.is_empty():
            return
        if self._cluster is not None:
            job.live = self._cluster(job)
            job.pacer = job.live.pacer
        else:
            job.pacer = job.pacer or job.new_pacer(plan.compiled.limits)
            job.live = Live(job, job.pacer, warm=plan.cache and rows.height > 1)
        async with aclosing(job.rows(rows)) as given:
            await job.live.answer(given)

    def _end_state(self) -> str:
        job, batches = self.job, self.job.batches
        live = job.live.stopped_by if job.live else None
        reason = next(filter(None, (live, batches.stopped_by, *batches.stuck.values())), None)
        if reason is not None:
            self.stopped_by, self.message = reason.error, reason.message
            return "stopped" if reason.error == "budget" else "failed"
        if batches.pending:
            return "left"
        return "stopped" if job.asked and job.meter.missing else "finished"

    # the handle

    def stop(self) -> None:
        """Send nothing more and cancel batches. Calls in flight and finished rows are paid for and kept.

        Returns at once; ``await run`` for the end. Running the plan again sends the missing rows. A batch
        whose answer was lost cannot be canceled before it is found: it is left, and the next run finds it.

        Spends: calls in flight, and rows that batches have answered by then.
        """
        self._ask("stop")

    def leave(self) -> None:
        """Send nothing more and let batches continue at the API. The same cell collects them, even tomorrow.

        An interrupt and the end of the process do the same. Returns at once; ``await run`` for the end.

        Spends: calls in flight; the batches, as they are answered.
        """
        self._ask("leave")

    def _ask(self, end: str) -> None:
        """Pass on a request to stop or leave, from any thread."""
        self.job.asked = end
        if self.state == "running":
            with suppress(RuntimeError):  # the loop is closed: the run has ended already
                self.home.call_soon_threadsafe(self.job.hear)

    def __await__(self) -> Generator[Any, None, Self]:
        yield from self._wait().__await__()
        return self._outcome()

    async def _wait(self, seconds: float = math.inf) -> None:
        """Wait up to `seconds` for the end; an interrupt leaves the run and waits for calls in flight."""
        try:
            await self._sleep(seconds)
        except asyncio.CancelledError as cancelled:
            self.leave()
            await self._sleep(loops.EXIT_SECONDS)
            loops.show_as(cancelled, self.kept)
            raise

    async def _sleep(self, seconds: float) -> None:
        """Wait for the end in short sleeps, as a kernel sees an interrupt only when its loop wakes."""
        while not self._ended.done() and seconds > 0:
            await asyncio.sleep(loops.SLICE_SECONDS)
            seconds -= loops.SLICE_SECONDS

    def _outcome(self) -> Self:
        """Return this run, which has ended, or raise the error that ended it."""
        for settle in self.job.watched:
            settle()
        if not self._ended.cancelled():
            self._ended.result()
        return self

    async def submitted(self) -> Self:
        """Return this run once it has submitted the batches that the queue has room for, or has ended.

        Spends: nothing, it only waits.
        """
        while not self._ended.done():
            if self.state == "running" and (self.plan.mode == "live" or self.job.batches.submitted.is_set()):
                return self
            await self._wait(loops.SLICE_SECONDS)
        return self._outcome()

    async def __aiter__(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield each row of the frame once, as a dict: `index`, its position from 0, and what `results` has.

        Rows from the ledger come first, then others in the order of their answers, and at the end of the run
        those without a reply. Leaving the loop early does not stop the run.

        Raises
        ------
        PlanError
            The frame has a column `index`.
        RunStopped
            The run could not continue; every row was yielded before that.
        """
        job = self.job
        while not (job.is_open or self._ended.done()):
            await self._wait(loops.SLICE_SECONDS)
        if not job.is_open:
            self._outcome()
        if INDEX in job.work.frame.columns:
            refuse(f"The frame has a column {INDEX!r}, where async for says which row it is: rename yours.")
        rows = job.work.keys.alias("key").to_frame().with_row_index(INDEX)
        unseen = dict(rows.group_by("key", maintain_order=True).agg(INDEX).iter_rows())  # positions by key
        arrived = len(job.arrived)
        keys = job.replies(("key",))["key"].to_list()
        has_ended = False
        while not has_ended:
            has_ended = self._ended.done()
            keys, arrived = keys + job.arrived[arrived:], len(job.arrived)
            for row in await loops.in_thread(self._answered, keys, unseen) if keys else ():
                yield row
            keys = []
            if not has_ended:
                await self._wait(loops.SLICE_SECONDS)
        results = await loops.in_thread(lambda: self.results)
        for row in results.with_row_index(INDEX)[sorted(itertools.chain(*unseen.values()))].to_dicts():
            yield row
        self._outcome()

    def _answered(self, keys: list[str], unseen: dict[str, list[int]]) -> list[dict[str, Any]]:
        """Return the rows that requests with these keys have answered, and remove them from `unseen`."""
        new = [key for key in dict.fromkeys(keys) if key in unseen]
        places = pl.Series(INDEX, [place for key in new for place in unseen.pop(key)], dtype=pl.UInt32)
        replies = self.job.replies(("key", "reply", "error"), of=pl.Series("key", new, dtype=pl.String))
        rows = self.job.work.results(replies, places, simulated=self.job.simulated)
        return rows.select(places, pl.all()).to_dicts()

    @property
    def kept(self) -> str:
        """What an interrupted run has kept, in one sentence. Spends: nothing."""
        return run_views.kept(self)

    # progress: cheap, at any time, from any thread

    @property
    def counts(self) -> meter.Meter:
        """Rows, calls, tokens and dollars so far."""
        return self.job.meter

    @property
    def minutes(self) -> float:
        """API minutes since the first call could be sent."""
        return self.job.minutes

    @property
    def limits(self) -> Limits:
        """The limits in force: those of the table, or those that the API's answers report."""
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

    # history, as frames

    @property
    def results(self) -> pl.DataFrame:
        r"""The frame, same rows in the same order, with the typed columns, `reply` and `error`.

        `reply` is null if there is none. `error` is null for success, ``"not_sent"`` for a row without an
        answer yet, ``"invalid_reply"`` for a reply that breaks the `returns` schema, and else the API's error
        type. Both are null for a row with a null in the prompt's columns. A simulator's replies are marked by
        a last column, `simulated`, which the API's results do not have. If the frame has a column of one of
        these names, as earlier results do, it is renamed here: `reply_1`.

        Spends: nothing.

        Notes
        -----
        The author of a row may have steered its reply. A spreadsheet that opens a CSV file runs any cell that
        begins with ``=``, ``+``, ``-`` or ``@``. ``write_excel`` writes text as text; before ``write_csv``,
        use ``pl.col(pl.String).str.replace(r"^([=+@\t\r-])", "'$1")``.
        """
        work = self.job.work
        answers = self.job.replies(("key", "reply", "error"))
        if self.state in {"finished", "stopped", "failed"}:
            given_up = last_failures(self.attempts, answers).select("key", "reply", "error")
            if self.stopped_by in STOPPING_ERRORS:  # an error of the account, not of the row
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
        """The batches that this run followed, including those of earlier runs, as `BATCHES`.

        Spends: nothing.
        """
        if not self.job.is_open:
            return BATCHES.to_frame()
        ledger, cached = self.job.ledger, pl.sum_horizontal(_CACHED)
        paid = (
            ledger.attempts(columns=("batch_id", "dollars", *_CACHED))
            .drop_nulls("batch_id")
            .group_by("batch_id")
            .agg(pl.sum("dollars", *_CACHED))
            .with_columns(cache_hit_share=pl.when(cached > 0).then(pl.col(_CACHED[0]) / cached))
        )
        batches = pl.DataFrame(ledger.batches(mine=True), schema=columns_of(Batch), orient="row")
        moments = pl.col("created_at", "ended_at", "results_until")
        return (
            batches.join(paid, on="batch_id", how="left", maintain_order="left")
            .with_columns(
                minutes=(pl.col("ended_at") - pl.col("created_at")) / 60,
                results_until=pl.col("created_at") + catalog.BATCH.results_days * 86_400,
            )
            .with_columns((moments * 1e6).cast(pl.Int64).cast(_MOMENT))
            .select(*BATCHES)
            .cast(BATCHES)
        )

    @property
    def throughput(self) -> pl.DataFrame:
        """One row per API minute, as `meter.THROUGHPUT`; the last one may be shorter.

        Requests count when sent, tokens when answered.

        Spends: nothing.
        """
        return self.counts.by_minute(self.minutes)

    @property
    def savings(self) -> pl.DataFrame:
        """What deduplication, the cache and batches saved on this run's replies, as `prices.SAVINGS`.

        Spends: nothing.
        """
        duplicates, models = self.counts.duplicates, (self.plan.compiled.model,)
        return prices.savings(self.attempts, duplicates=duplicates, models=models)

    @property
    def bill(self) -> pl.DataFrame:
        """The itemised bill of this run, as `claudescale.api.prices.BILL`.

        Spends: nothing.
        """
        return prices.bill(self.attempts, models=(self.plan.compiled.model,))

    @property
    def waste(self) -> pl.DataFrame:
        """What this run sent or paid for without use, as `claudescale.api.prices.WASTE`.

        Spends: nothing.
        """
        return prices.waste(self.attempts)

    @property
    def plot(self) -> Plots:
        """Pictures: ``throughput``, ``tokens``, ``latency``, ``batches``, ``spending``, and so on."""
        from claudescale.running.plots import Plots  # noqa: PLC0415 - Altair is slow to import

        return Plots(self)

    def _card(self) -> Card:
        return run_views.run_card(self)


# inputs larger than memory


async def run_parts(
    plan: Plan,
    folder: str | Path,
    client: AsyncAnthropic | None = None,
    *,
    rows: int = PART_ROWS,
    **given: Any,
) -> pl.LazyFrame:
    """Return the results as a scan of Parquet files, one for each slice of rows, in the order of the input.

    The same call again sends only rows that the ledger lacks, and rewrites the files. Memory holds one slice
    and its replies, never the whole input. Identical rows are sent once, even in different slices.

    Spends: tokens.

    Parameters
    ----------
    plan : Plan
        A plan over ``pl.scan_parquet(...)``, for example. Reading a slice twice must give the same rows. The
        `deadline` applies to each slice, the `budget` to all of them together.
    folder : str or Path
        Folder for the files, ``part-000000.parquet`` first. Other files of such names are removed at the end.
    rows : int
        Rows in a slice.
    client, **given
        As for `Plan.run`: ``ledger``, ``progress``, ``on``.

    Returns
    -------
    pl.LazyFrame
        The columns of `Run.results` after the column `row`. ``.sort("row")`` restores the order of the input
        after a join or a shuffle.

    Raises
    ------
    PlanError
        The prompt is an expression, which might look at other rows than its own; the input has a column
        `row`; the plan has `samples`, which turn one row of the input into several; or the next slice costs
        more than the rest of the budget. In the last case the files of earlier slices remain.
    RunStopped
        A slice was not finished. The files of earlier slices remain.
    """
    frame = plan.frame.lazy()
    if plan.compiled.prompt.columns is None:
        refuse(
            "run_parts needs a prompt with {column} in it: an expression may look at rows of other slices."
        )
    if plan.samples > 1:
        refuse(
            f"run_parts keeps one result for each row, and the plan has samples={plan.samples}: "
            "use plan.replace(samples=1)."
        )
    if ROW in frame.collect_schema():
        refuse(f"The frame has a column {ROW!r}, where run_parts keeps the rows' order: rename yours.")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs meanwhile
    left, written = plan.budget, []
    for start in range(0, max(frame.select(pl.len()).collect().item(), 1), rows):
        run = await plan.replace(frame=frame.slice(start, rows), budget=left).run(client, **given)
        if run.state != "finished":
            msg = f"rows from {start:,} on are not finished ({run.stopped_by or run.state}): run it again"
            raise RunStopped(msg, run)
        if left is not None:
            left = max(left - run.counts.dollars, 1e-9)  # the next slice may need no money
        written.append(target / f"part-{start // rows:06}.parquet")
        unfinished = written[-1].with_suffix(".writing")  # a part is complete or absent
        await loops.in_thread(run.results.with_row_index(ROW, start).write_parquet, unfinished)
        unfinished.replace(written[-1])
        del run
        gc.collect()  # a run is part of a cycle, and memory held by Polars triggers no collection
    for path in set(target.glob(_PARTS)) - set(written):  # noqa: ASYNC240 - as above
        path.unlink()
    return pl.scan_parquet(target / _PARTS)
