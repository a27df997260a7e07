"""The pictures of a run: which of its frames go into which chart, and why a chart is empty.

Altair takes 2 s to import, so this module is imported only when a run is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import polars as pl

from claudescale import text
from claudescale.api.limits import BUCKETS
from claudescale.running.run_views import GOING
from claudescale.views import run_charts
from claudescale.views.card import Gallery
from claudescale.views.theme import nothing

if TYPE_CHECKING:
    from claudescale.running.runs import Run
    from claudescale.views.theme import Down, Picture


@dataclass(frozen=True, repr=False)
class Plots(Gallery):
    """The pictures of one run, each an Altair chart."""

    run: Run

    def throughput(self) -> Picture:
        """Return live requests per minute over the run, with the limit drawn. Spends: nothing."""
        rates = self.run.counts.rates()
        if rates.is_empty():
            return nothing(self._no_live_calls)
        return run_charts.throughput(rates, requests_per_minute=self._limits["requests"])

    def tokens(self) -> Down | Picture:
        """Return input and output tokens per minute of live calls, with their limits. Spends: nothing."""
        rates = self.run.counts.rates()
        if rates.is_empty():
            return nothing(self._no_live_calls)
        return run_charts.tokens(rates, limits={name: self._limits[name] for name in BUCKETS[1:]})

    def buckets(self, bucket_seconds: float = 60.0) -> Down | Picture:
        """Return how full the three token buckets were. Spends: nothing.

        Parameters
        ----------
        bucket_seconds : float
            Seconds of refill that a full bucket holds.
        """
        answered = self._live_calls.filter(pl.col("status") == HTTPStatus.OK)
        if answered.is_empty():
            return nothing(self._no_live_calls)
        started_at, limits = self.run.job.started_at, self._limits
        return run_charts.buckets(
            answered, limits=limits, started_at=started_at, bucket_seconds=bucket_seconds
        )

    def latency(self) -> Picture:
        """Return the seconds that each live call took. Spends: nothing."""
        calls = self._live_calls
        return nothing(self._no_live_calls) if calls.is_empty() else run_charts.latency(calls)

    def spending(self) -> Picture:
        """Return the dollars spent so far over time, against the estimate. Spends: nothing."""
        run, job = self.run, self.run.job
        ended = (pl.col("sent_at").dt.epoch("us") / 1e6 + pl.col("seconds") - job.started_at) / 60
        paid = run.attempts.filter(pl.col("dollars") > 0).select("dollars", minute=ended).sort("minute")
        if paid.is_empty():
            return nothing(self._nothing_sent)
        # From the start of the run to its end, or until now.
        edges = pl.DataFrame({"dollars": [0.0, 0.0], "minute": [0.0, run.minutes]})
        so_far = (
            pl.concat([paid, edges])
            .sort("minute", maintain_order=True)
            .with_columns(pl.col("dollars").cum_sum())
        )
        estimate = job.estimate["dollars"] if job.estimate else None
        return run_charts.spending(so_far, estimate_dollars=estimate, simulated=job.simulated)

    def savings(self) -> Picture:
        """Return the cost without savings, what each strategy saved, and what was paid. Spends: nothing."""
        savings = self.run.savings
        rows = [
            ("every row live, nothing cached", savings["dollars_without"][0]),
            *savings.select("strategy", "dollars_saved").rows(),
            ("paid", savings["dollars_with"][-1]),
        ]
        parts = pl.DataFrame(rows, schema={"part": pl.String, "dollars": pl.Float64}, orient="row")
        return run_charts.savings(parts, simulated=self.run.job.simulated, empty=self._nothing_sent)

    def batches(self) -> Picture:
        """Return when each batch was pending, and what came of it. Spends: nothing."""
        run, batches, live = self.run, self.run.batches, self._live_calls
        if run.plan.mode == "live":
            return nothing("This run sent no batch: mode='live'.")
        if live.is_empty() and batches["created_at"].is_null().all():
            return nothing(self._nothing_sent)
        return run_charts.batches(
            batches,
            live,
            started_at=run.job.started_at,
            now=run.job.started_at + run.minutes * 60,
            deadline_minutes=run.plan.deadline if run.plan.mode == "hybrid" else None,
        )

    @property
    def _live_calls(self) -> pl.DataFrame:
        """The live calls; batches do not count against the limits per minute, and their rows have no pace."""
        return self.run.attempts.filter(pl.col("batch_id").is_null())

    @property
    def _limits(self) -> dict[str, float]:
        """What live calls may use per minute."""
        limits = self.run.limits.shared(self.run.plan.share)
        return dict(zip(BUCKETS, limits.per_minute, strict=True))

    @property
    def _no_live_calls(self) -> str:
        """Why a chart of live calls is empty."""
        if self.run.plan.mode == "batch":
            return "A batch uses none of the limits per minute: see run.plot.batches()."
        return self._nothing_sent

    @property
    def _nothing_sent(self) -> str:
        """Why a chart is empty."""
        counts = self.run.counts
        if self.run.state in GOING and counts.missing:
            return "Nothing has been answered yet."
        if counts.reused and not counts.missing:
            were = "was" if counts.reused == 1 else "were"
            return f"Nothing was sent: {text.plural(counts.reused, 'reply')} {were} in the ledger already."
        return "Nothing was sent."
