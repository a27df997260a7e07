"""Run: the handle of a run under way or ended, and what happened as frames.

A run owns no replies: the ledger has them. It owns the rows' keys, which join replies to the frame.
"""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import cluster, loops
from claudescale.api import prices
from claudescale.api.answers import STOPPING_ERRORS, verdict
from claudescale.api.connecting import check_client, connect
from claudescale.errors import LedgerError, PlanError, RunStopped
from claudescale.handles import Handle
from claudescale.ledger.ledger import ATTEMPTS
from claudescale.planning.choices import prepare
from claudescale.prompts.requests import NOT_SENT, last_failures, results
from claudescale.running import pulses
from claudescale.running.batchframe import BATCHES, batch_frame
from claudescale.running.progress import Progress
from claudescale.running.sending import Sending
from claudescale.views import cards
from claudescale.views.plots import Plots
from claudescale.views.rates import by_minute
from claudescale.widgets import watchcharts

if TYPE_CHECKING:

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Work
    from claudescale.running.batch_rules import Expected
    from claudescale.running.meter import Meter


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


class Run(Handle):
    """A run under way or ended. ``await`` it for its end; every frame can be read before that.

    `Plan.run` and `Plan.start` make one.

    Attributes
    ----------
    plan : Plan
        What is run.
    path : Path or None
        The ledger; None keeps replies in memory.
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
        watchable: bool = True,
    ) -> None:
        client = connect() if client is None else client
        check_client(client, plan.mode)
        given = ledger
        self.plan = plan
        if given is not None and not isinstance(given, str | os.PathLike):
            msg = f"ledger={given!r}: it is the path of a file, such as ledger='replies.ledger', or None."
            raise PlanError(msg)
        self.path = None if given is None else Path(given).expanduser().absolute()
        self._shown = progress
        self._failures: dict[str, int] | None = None
        self._sending = Sending(plan, client, self.path, on and cluster.engine(on, client))
        if watchable and plan.mode != "batch" and loops.in_cell():
            watchcharts.prepare()  # in `watch` it would stop the calls of this run for seconds
        self._start(self._go)

    async def _go(self) -> None:
        progress = Progress(self, shown=self._shown)  # not kept: a run that is over goes with its last name
        try:
            await self._sending.go(lambda: progress.start(cards.before(self)))
        except LedgerError as error:
            raise RunStopped(cards.why(self), self) from error
        finally:
            await progress.close()
        if self.state == "failed":
            raise RunStopped(cards.why(self), self)

    # the handle

    def stop(self) -> None:
        """Send nothing more and cancel batches. What is answered by then is paid for, awaited and kept.

        Returns at once; ``await run`` for the end. Running the plan again sends what is missing. A batch
        whose answer was lost cannot be canceled before it is found: it is left, and the next run finds it.

        Spends: what is in flight.
        """
        self._sending.stop()

    def leave(self) -> None:
        """Send nothing more and let batches go on at the API: the same cell collects them, also tomorrow.

        An interrupt and the end of the process do this too. Returns at once; ``await run`` for the end.

        Spends: what is in flight; the batches, as they are answered.
        """
        self._sending.leave()

    async def submitted(self) -> Run:
        """Return this run once the batches are submitted that the queue has room for, or it has ended.

        Spends: nothing by itself.
        """
        while not (self._job.future.done() or self._sending.submitted):  # noqa: ASYNC110 - another loop's
            await asyncio.sleep(loops.SLICE_SECONDS)
        return self._outcome() if self._job.future.done() else self

    async def delete_batches(self) -> int:
        """Return how many of this run's collected batches were deleted at the API, results and all.

        The API keeps them for 29 days by itself; the ledger keeps the replies.

        Spends: nothing.

        Raises
        ------
        RunStopped
            The API would not delete one.
        """
        deleted = 0
        for answer in await self._sending.delete_batches():
            if answer.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:  # deleted already is deleted
                words = verdict(answer).message or "no answer"
                msg = f"{deleted} batches are deleted, and then the API would not delete one: {words}"
                raise RunStopped(msg, self)
            deleted += 1
        return deleted

    def _line(self) -> str:
        return cards.line(self)

    @property
    def kept(self) -> str:
        """What an interrupt leaves, in one sentence. Spends: nothing."""
        return cards.kept(self)

    # how far it is: cheap, at any time, from any thread

    @property
    def state(self) -> str:
        """``"starting"``, ``"running"``, ``"finished"``, ``"stopped"``, ``"failed"``, ``"left"``.

        Left is a run that has ended while batches of it go on at the API.
        """
        return self._sending.state

    @property
    def stopped_by(self) -> str | None:
        """What ended the run early: the API's error type, ``"budget"`` or ``"ledger"``."""
        return self._sending.stopped_by

    @property
    def message(self) -> str | None:
        """What the API, or the ledger, said when it ended the run."""
        return self._sending.message

    @property
    def counts(self) -> Meter:
        """Rows, calls, tokens and dollars so far."""
        return self._sending.tally

    @property
    def pulse(self) -> pulses.Pulse:
        """How it goes right now, at a cost that does not grow with the rows."""
        return pulses.read(self.plan, self._sending)

    @property
    def minutes(self) -> float:
        """API minutes since the first call could go."""
        return self._sending.minutes

    @property
    def started_at(self) -> float:
        """API unix seconds at which the first call could go."""
        return self._sending.started_at

    @property
    def batches_out(self) -> int:
        """Batches of earlier runs in the ledger that were out when this run began."""
        return self._sending.batches_out

    @property
    def expected(self) -> Expected | None:
        """When the last batch ends, as far as that can be told: the API says nothing of its progress."""
        return self._sending.batches.expected() if self._sending.batches else None

    @property
    def estimate(self) -> dict[str, Any] | None:
        """What the rows that were missing should take, as a row of `Plan.options`; None until it is known."""
        return self._sending.estimate

    @property
    def api_name(self) -> str:
        """Host and path of the API that answers; empty until that is known."""
        api = self._sending.api
        return "" if api is None else api.name

    @property
    def simulated(self) -> bool:
        """Whether the replies are a simulator's."""
        api = self._sending.api
        return api is not None and api.simulated

    @property
    def limits(self) -> Limits:
        """The limits in force: the table's, or what the API's answers told."""
        pacer = self._sending.pacer
        return pacer.limits if pacer else self.plan.limits

    @property
    def summary(self) -> pl.DataFrame:
        """One row of `SUMMARY`. A reply that breaks the `returns` schema counts as answered.

        Spends: nothing.
        """
        counts, minutes = self.counts, self.minutes
        row = (
            self.state, counts.rows, counts.answered, counts.failed, counts.missing, counts.reused,
            counts.requests, counts.refused, minutes, counts.requests / minutes if minutes else 0.0,
            counts.input_tokens, counts.output_tokens, counts.dollars, self.simulated,
        )  # fmt: skip
        return pl.DataFrame([row], schema=SUMMARY, orient="row")

    # what happened, as frames

    @property
    def results(self) -> pl.DataFrame:
        r"""The frame, same rows in the same order, with the typed columns, `reply` and `error`.

        `reply` is null where there is none. `error` is null where all went well, ``"not_sent"`` where
        the row has no answer yet, the API's error type where it failed, ``"invalid_reply"`` where a reply
        breaks the `returns` schema. A row with a null in the prompt's columns has neither. A simulator's
        replies are marked by a last column, `simulated`; the API's results have none.

        Spends: nothing.

        Notes
        -----
        Replies are text that whoever wrote a row may have steered. A spreadsheet that opens a CSV file runs a
        cell that begins with ``=``, ``+``, ``-`` or ``@``. ``write_excel`` writes texts as texts; before
        ``write_csv``: ``pl.col(pl.String).str.replace(r"^([=+@\t\r-])", "'$1")``.
        """
        work = self.work
        answers = self._replies(work).select("key", "reply", "error")
        if self._job.future.done() and self.state != "left":
            given_up = last_failures(self.attempts, answers).select("key", "reply", "error")
            if self.stopped_by in STOPPING_ERRORS:  # the account's trouble, and no word on a row
                given_up = given_up.filter(pl.col("error").ne_missing(self.stopped_by))
            answers = pl.concat([answers, given_up])
        return results(work, self.plan.compiled.returns, answers, simulated=self.simulated)

    @property
    def failures(self) -> dict[str, int]:
        """How many rows have which error, once the run has ended; those not sent are not among them.

        Spends: nothing.
        """
        typed = self.plan.compiled.returns is not None
        if not self._job.future.done() or self.state == "left" or not (typed or self.counts.failed):
            return {}
        if self._failures is None:  # the rows of a run that has ended stay as they are
            errors = self.results["error"].drop_nulls()
            counted = errors.filter(errors != NOT_SENT).value_counts(sort=True)
            self._failures = dict(counted.iter_rows())
        return self._failures

    @property
    def replies(self) -> pl.DataFrame:
        """The final attempt of every distinct request that has one, of this run or an earlier one.

        Spends: nothing.
        """
        return self._replies(self.work)

    def _replies(self, work: Work) -> pl.DataFrame:
        ledger, kept = self._sending.ledger, self.plan.kept
        found = ATTEMPTS.to_frame() if ledger is None else ledger.replies(work.requests["key"])
        return found if kept is None else pl.concat([kept.attempts, found])

    @property
    def attempts(self) -> pl.DataFrame:
        """Every call of this run: answers, failures, refusals. Schema `claudescale.ledger.ledger.ATTEMPTS`.

        Spends: nothing.
        """
        ledger = self._sending.ledger
        return ATTEMPTS.to_frame() if ledger is None else ledger.attempts(run=ledger.run)

    @property
    def batches(self) -> pl.DataFrame:
        """The batches this run followed, of an earlier run too, as `claudescale.running.batchframe.BATCHES`.

        Spends: nothing.
        """
        ledger = self._sending.ledger
        return BATCHES.to_frame() if ledger is None else batch_frame(ledger.batches(), ledger.attempts())

    @property
    def sizes(self) -> pl.DataFrame:
        """`key` and `estimated_tokens` of every distinct request, for `Plan.calibrate`.

        Spends: nothing.
        """
        return self.work.requests.select("key", "estimated_tokens")

    @property
    def throughput(self) -> pl.DataFrame:
        """One row per API minute, as `rates.THROUGHPUT`; the last is as long as it has lasted.

        Requests count when sent, tokens when answered.

        Spends: nothing.
        """
        return by_minute(self.attempts, self.started_at, self.minutes)

    @property
    def savings(self) -> pl.DataFrame:
        """What deduplication, cache and batches saved on this run's replies, as `prices.SAVINGS`.

        Spends: nothing.
        """
        rows = self.work.keys.drop_nulls().value_counts(name="rows")
        repeats = rows.select("key", duplicates=pl.col("rows").cast(pl.Int64) - 1)
        return prices.savings(self.attempts, duplicates=repeats, models=(self.plan.facts,))

    @property
    def bill(self) -> pl.DataFrame:
        """What was paid for what in this run, as `claudescale.api.prices.BILL`.

        Spends: nothing.
        """
        return prices.bill(self.attempts, models=(self.plan.facts,))

    @property
    def waste(self) -> pl.DataFrame:
        """What this run paid for or sent without use, as `claudescale.api.prices.WASTE`.

        Spends: nothing.
        """
        return prices.waste(self.attempts)

    @property
    def work(self) -> Work:
        """The rows; before the run has read them, they are read here, with keys that nothing has answered.

        Spends: nothing.
        """
        return self._sending.work or prepare(self.plan, "not known yet")

    @property
    def plot(self) -> Plots:
        """Pictures: ``throughput``, ``tokens``, ``latency``, ``batches``, ``spending``, and so on."""
        return Plots(self)

    def __repr__(self) -> str:
        return cards.run_card(self).text()

    def _repr_html_(self) -> str:
        return cards.run_card(self).html()
