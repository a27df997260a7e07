"""The pictures of a run: which frame goes into which chart."""
# ruff: noqa: PLC0415  # altair is slow to import, and many runs are never drawn

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from claudescale.planning import choices
from claudescale.views.rates import rates

if TYPE_CHECKING:
    from claudescale.running.runs import Run
    from claudescale.views.run_charts import Shown


class Plots:
    """The pictures of one run; each is a `claudescale.views.run_charts.Shown`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def _rates(self) -> pl.DataFrame:
        return rates(self._run.attempts, self._run.started_at, self._run.minutes)

    def throughput(self) -> Shown:
        """Return requests per minute over the run, with the limit drawn. Spends: nothing."""
        from claudescale.views import run_charts

        run = self._run
        return run_charts.throughput(
            self._rates, requests_per_minute=run.limits.requests_per_minute * run.plan.share
        )

    def tokens(self) -> Shown:
        """Return input and output tokens per minute over the run, with their limits. Spends: nothing."""
        from claudescale.views import run_charts

        run = self._run
        limits = run.limits.shared(run.plan.share)
        return run_charts.tokens(
            self._rates,
            input_tokens_per_minute=limits.input_tokens_per_minute,
            output_tokens_per_minute=limits.output_tokens_per_minute,
        )

    def buckets(self, bucket_seconds: float = 60.0) -> Shown:
        """Return how full the three token buckets were. Spends: nothing.

        Parameters
        ----------
        bucket_seconds : float
            How many seconds' refill a full one holds.
        """
        from claudescale.views import pacecharts
        from claudescale.views.levels import levels

        run = self._run
        limits = run.limits.shared(run.plan.share)
        return pacecharts.buckets(levels(run.attempts, limits, run.started_at, bucket_seconds))

    def latency(self) -> Shown:
        """Return the seconds of each answer. Spends: nothing."""
        from claudescale.views import run_charts

        return run_charts.latency(self._run.attempts)

    def spending(self) -> Shown:
        """Return the dollars spent so far over time, against the estimate. Spends: nothing."""
        from claudescale.views import run_charts

        run = self._run
        paid = run.attempts.filter(pl.col("dollars") > 0)
        ended = (pl.col("sent_at").dt.epoch("us") / 1e6 + pl.col("seconds") - run.started_at) / 60
        frame = (
            paid.select(ended.alias("minute"), "dollars")
            .sort("minute")
            .with_columns(pl.col("dollars").cum_sum())
        )
        return run_charts.spending(frame, estimate_dollars=run.estimate["dollars"] if run.estimate else None)

    def savings(self) -> Shown:
        """Return what the rows would have cost plainly, what saved it, what was paid. Spends: nothing."""
        from claudescale.views import run_charts

        saved = self._run.savings
        rows = [
            ("every row live, nothing cached", saved["dollars_without"][0]),
            *saved.select("strategy", "dollars_saved").rows(),
            ("paid", saved["dollars_with"][-1]),
        ]
        return run_charts.savings(
            pl.DataFrame(rows, schema={"part": pl.String, "dollars": pl.Float64}, orient="row")
        )

    def progress(self) -> Shown:
        """Return the rows by state as one bar. Spends: nothing."""
        from claudescale.views import run_charts

        counts = self._run.counts
        states = (
            ("answered", counts.answered),
            ("failed", counts.failed),
            ("to do", counts.missing),
            ("unsent", counts.rows - counts.sent),
        )
        return run_charts.progress(
            pl.DataFrame(states, schema={"state": pl.String, "rows": pl.Int64}, orient="row")
        )

    def batches(self) -> Shown:
        """Return when each batch was out and what came of it, with a hybrid's deadline. Spends: nothing."""
        from claudescale.views import batchcharts

        run = self._run
        hybrid = run.plan.mode == "hybrid"
        return batchcharts.batches(
            run.batches,
            started_at=run.started_at,
            now=run.started_at + run.minutes * 60,
            deadline_minutes=choices.minutes_of(run.plan.deadline) if hybrid else None,
            live=run.attempts.filter(pl.col("batch_id").is_null()) if hybrid else None,
        )
