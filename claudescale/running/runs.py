"""Run: the handle of a run under way or ended, its three modes, and what happened as frames.

A run owns no replies: the ledger has them. It owns the rows' keys, which join replies to the frame.
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
from claudescale.pacing.pacer import Pacer
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
_CACHED = ("cache_read_input_tokens", "cache_write_5m_input_tokens", "cache_write_1h_input_tokens")


class Run(Shown):
    """A run under way or ended. ``await`` it for its end; every frame can be read before that.

    `Plan.run` and `Plan.start` make one. An interrupt leaves it, and waits for what is in flight.

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
    home : asyncio.AbstractEventLoop
        The loop that does the work.
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
        self._ended, self.home = loops.start(self._go(shown=progress), self)

    # how it goes

    async def _go(self, *, shown: bool) -> None:
        """Answer every row that has no answer yet.

        A PlanError says that nothing was sent, a RunStopped that it could not go on.
        """
        progress = Progress(self, shown=shown)  # not kept: a run that is over goes with its last name
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
            if state != "left":  # then nothing was given up
                job.meter.end(self.stopped_by)
            self.state = state
            progress.close()
        if state == "failed":
            raise RunStopped(run_views.why(self), self) from job.failure

    async def _send(self) -> None:
        """Send what is missing in the plan's mode."""
        job, batches = self.job, self.job.batches
        if job.asked:  # before there was anything to stop
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
        """Send a row live, which tells the limits; the rest by batch; live again what must be in time."""
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
        """Send rows live, at the pace that earlier ones have learned."""
        job, plan = self.job, self.plan
        if job.is_over or rows.is_empty():
            return
        if self._cluster is not None:
            job.live = self._cluster(job)
            job.pacer = job.live.pacer
        else:
            job.pacer = job.pacer or Pacer(
                plan.compiled.limits,
                clock=job.clock,
                share=plan.share,
                concurrency=plan.concurrency,
                output_tokens=min(plan.compiled.expected.output_tokens, float(plan.max_tokens)),
            )
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
        """Send nothing more and cancel batches. What is answered by then is paid for, awaited and kept.

        Returns at once; ``await run`` for the end. Running the plan again sends what is missing. A batch
        whose answer was lost cannot be canceled before it is found: it is left, and the next run finds it.

        Spends: what is in flight.
        """
        self._ask("stop")

    def leave(self) -> None:
        """Send nothing more and let batches continue at the API: the same cell collects them, even tomorrow.

        An interrupt and the end of the process do this too. Returns at once; ``await run`` for the end.

        Spends: what is in flight; the batches, as they are answered.
        """
        self._ask("leave")

    def _ask(self, end: str) -> None:
        """Pass on what is asked for, from whatever thread."""
        self.job.asked = end
        if self.state == "running":
            with suppress(RuntimeError):  # the loop is closed: the run has ended already
                self.home.call_soon_threadsafe(self.job.hear)

    def __await__(self) -> Generator[Any, None, Self]:
        yield from self._wait().__await__()
        return self._outcome()

    async def _wait(self, seconds: float = math.inf) -> None:
        """Wait so long for the end; an interrupt leaves the run and waits for what is in flight."""
        try:
            await self._sleep(seconds)
        except asyncio.CancelledError as cancelled:
            self.leave()
            await self._sleep(loops.EXIT_SECONDS)
            loops.show_as(cancelled, self.kept)
            raise

    async def _sleep(self, seconds: float) -> None:
        """Wait for the end in short sleeps: a kernel's interrupt is heard only when its loop wakes."""
        while not self._ended.done() and seconds > 0:
            await asyncio.sleep(loops.SLICE_SECONDS)
            seconds -= loops.SLICE_SECONDS

    def _outcome(self) -> Self:
        """Return this run, which has ended, or raise what it ended with."""
        for settle in self.job.watched:
            settle()
        if not self._ended.cancelled():
            self._ended.result()
        return self

    async def submitted(self) -> Self:
        """Return this run once the batches are submitted that the queue has room for, or it has ended.

        Spends: nothing by itself.
        """
        while not self._ended.done():
            if self.state == "running" and (self.plan.mode == "live" or self.job.batches.submitted.is_set()):
                return self
            await self._wait(loops.SLICE_SECONDS)
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
        job = self.job
        while not (job.is_open or self._ended.done()):
            await self._wait(loops.SLICE_SECONDS)
        if not job.is_open:
            self._outcome()
        if INDEX in job.work.frame.columns:
            refuse(f"The frame has a column {INDEX!r}, where async for says which row it is: rename yours.")
        rows = job.work.keys.alias("key").to_frame().with_row_index(INDEX)
        unseen = dict(rows.group_by("key", maintain_order=True).agg(INDEX).iter_rows())  # places by key
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
        """Return the rows that requests with these keys have answered, and take them out of `unseen`."""
        new = [key for key in dict.fromkeys(keys) if key in unseen]
        places = pl.Series(INDEX, [place for key in new for place in unseen.pop(key)], dtype=pl.UInt32)
        replies = self.job.replies(("key", "reply", "error"), of=pl.Series("key", new, dtype=pl.String))
        rows = self.job.work.results(replies, places, simulated=self.job.simulated)
        return rows.select(places, pl.all()).to_dicts()

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
        """One row per API minute, as `meter.THROUGHPUT`; the last is as long as it has lasted.

        Requests count when sent, tokens when answered.

        Spends: nothing.
        """
        return self.counts.by_minute(self.minutes)

    @property
    def savings(self) -> pl.DataFrame:
        """What deduplication, cache and batches saved on this run's replies, as `prices.SAVINGS`.

        Spends: nothing.
        """
        duplicates, models = self.counts.duplicates, (self.plan.compiled.model,)
        return prices.savings(self.attempts, duplicates=duplicates, models=models)

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
        from claudescale.running.plots import Plots  # noqa: PLC0415 - Altair is slow to import

        return Plots(self)

    def _card(self) -> Card:
        return run_views.run_card(self)


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
        or the plan has `samples`, with which a row of the input is several. Or what is left of the budget
        is less than the next slice costs; the files of those before it stand.
    RunStopped
        A slice was not finished; the files of those before it stand.
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
    target.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing goes on meanwhile
    left, written = plan.budget, []
    for start in range(0, max(frame.select(pl.len()).collect().item(), 1), rows):
        run = await plan.replace(frame=frame.slice(start, rows), budget=left).run(client, **given)
        if run.state != "finished":
            msg = f"rows from {start:,} on are not finished ({run.stopped_by or run.state}): run it again"
            raise RunStopped(msg, run)
        if left is not None:
            left = max(left - run.counts.dollars, 1e-9)  # of nothing left a slice may still be reused
        written.append(target / f"part-{start // rows:06}.parquet")
        unfinished = written[-1].with_suffix(".writing")  # a part is whole or not there
        await loops.in_thread(run.results.with_row_index(ROW, start).write_parquet, unfinished)
        unfinished.replace(written[-1])
        del run
        gc.collect()  # a run and what follows it hold each other; what Polars keeps there makes none due
    for path in set(target.glob(_PARTS)) - set(written):  # noqa: ASYNC240 - the same
        path.unlink()
    return pl.scan_parquet(target / _PARTS)
