"""How a run looks: its line and card, its progress, what failed and why it ended, the frames of its pictures.

Progress is one line before the run, a tqdm bar, and a log: one line per API minute under the name
``claudescale``, with rates and dollars and never a text. The standard library keeps it silent until somebody
asks for it: ``logging.basicConfig(level="INFO")``.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

import asyncio
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops, text
from claudescale.api import limits
from claudescale.api.limits import BUCKETS
from claudescale.errors import ADVICE, LedgerError
from claudescale.ledger.ledger import ledger_typed
from claudescale.prompts.requests import NOT_SENT
from claudescale.views.card import Card, Gallery

if TYPE_CHECKING:
    from claudescale.running.runs import Run
    from claudescale.views.theme import Down, Picture

LOGGER = logging.getLogger("claudescale")
REFRESH_SECONDS = 0.5
_WIDTH = 90
_MOST_MESSAGE = 300
_WAYS = {"live": "live", "batch": "by batch", "hybrid": "by batch, and live where the deadline requires it,"}
_FAILED = {
    "max_tokens": "cut off at max_tokens={run.plan.max_tokens:,}",
    "refusal": "refused by the model",
    "empty_reply": "without any text in the reply",
    "invalid_reply": "with a reply that breaks returns",
    "invalid_request_error": "rejected as invalid",
}
"""How a row failed, by its error."""
_HOPELESS = {"refusal", "model_context_window_exceeded", "tool_use", "invalid_request_error"}
_HOPELESS |= {"request_too_large"}
"""What the same request would meet again."""
_TOO_SHORT = {"max_tokens", "empty_reply"}
_LONGER = 4
"""How many times `max_tokens` is proposed where it was too small."""


def failures(run: Run) -> tuple[str, str]:
    """Return what failed in a run that has ended, by kind, and the line that helps; empty where nothing."""
    plan = run.plan
    typed = plan.compiled.prompt.returns is not None
    if run.state in {"starting", "running", "left"} or not (typed or run.counts.failed):
        return "", ""
    try:
        errors = run.results["error"].drop_nulls()
    except LedgerError as error:
        return f"The ledger cannot be read: {error}", ""
    rows = dict(errors.filter(errors != NOT_SENT).value_counts(sort=True).iter_rows())
    if not rows:
        return "", ""
    kinds = [f"{count:,} {_FAILED.get(kind, f'with {kind}').format(run=run)}" for kind, count in rows.items()]
    words = f"Failed: {'; '.join(kinds)}."
    if hopeless := sorted(_HOPELESS & set(rows)):
        same = f" Retrying unchanged does not help with {' and '.join(hopeless)}:"
        words += f"{same} change the model, the system prompt or the text."
    if set(rows) <= _HOPELESS or run.state != "finished":
        return words, ""
    longer = min(plan.max_tokens * _LONGER, plan.compiled.model.max_output_tokens)
    more = f", max_tokens={longer}" if _TOO_SHORT & set(rows) and longer > plan.max_tokens else ""
    named = "plan" if plan.compiled.retry is None else "run.plan"
    return words, f"run = await {named}.retry(run{more}).run(client{ledger_typed(run.path)})"


def why(run: Run) -> str:
    """Return what ended a run, what is kept, and what to do."""
    if run.stopped_by == "ledger" and not run.counts.requests:
        return f"Nothing was sent: {run.message}."
    advice = ADVICE.get(run.stopped_by or "", "The API cannot continue.")
    if run.stopped_by == "endpoint_not_found":
        name = run.job.api.name
        advice = f"{name}/v1/messages is answered with 404. Check base_url."
        if name.endswith("/v1"):
            advice = f"There is no {name}/v1/messages: remove /v1 from base_url, as the SDK adds it."
        elif run.plan.mode != "live":
            advice += " A gateway may not offer batches: use mode='live'."
    quoted = f": {run.message[:_MOST_MESSAGE]}" if run.message else ""
    again = "the same cell again sends only what is missing"
    if run.path is None:
        again = "without a ledger they are only in run.results, and the same cell again pays for them again"
    answered = text.plural(run.counts.answered, "row")
    return f"{advice} ({run.stopped_by}{quoted}) {answered} answered and kept; {again}."


def kept(run: Run) -> str:
    """Return what an interrupt leaves of a run, and how to resume it, in one sentence."""
    counts = run.counts
    words = f"Interrupted: {counts.answered:,} of {text.plural(counts.rows, 'row')} answered"
    if run.path is None:
        return f"{words}, but not kept, as there is no ledger; ledger='replies.ledger' keeps them."
    batches = " and collects the batches, which continue at the API" if run.state == "left" else ""
    return f"{words} and kept in {run.path}; the same command sends only what is missing{batches}."


def before(run: Run) -> str:
    """Return what is going to be sent, in one line."""
    counts, option, plan = run.counts, run.job.estimate, run.plan
    about = ""
    if option is not None and counts.missing:
        time = text.span(text.duration(option["minutes"]), text.duration(option["minutes_p90"]))
        about = f": about {text.dollars(option['dollars'])}, {time}"
    simulated = "SIMULATED, nothing is paid. " if run.job.simulated else ""
    out, reused = run.job.batches_out, _reused(run)
    first = f" Collecting {text.plural(out, 'pending batch')} of earlier runs first." if out else ""
    rows = f"{text.plural(counts.missing, 'row')} {_WAYS[plan.mode]} on {plan.compiled.model.id}"
    return f"{simulated}{rows}{f' ({reused})' if reused else ''}{about}.{first}"


def _reused(run: Run) -> str:
    """Return how many replies there were before this run; empty where none."""
    count = run.counts.reused
    where = "in the ledger already" if run.plan.compiled.retry is None else "taken over"
    return f"{text.plural(count, 'request')} {where}" if count else ""


def waiting(run: Run) -> tuple[str, str] | None:
    """Return how many batches have ended, and when the rest will have; None where none is pending."""
    out = run.job.expected
    if out is None:
        return None
    usual = ""
    if out.usual_seconds is not None:
        usual = f"usually within {text.coarse(out.usual_seconds / 60)}, "
    latest = f"at the latest in {text.coarse(out.latest_seconds / 60)}"
    ended = f"{out.ended} of {text.plural(out.open + out.ended, 'batch')} ended"
    return ended, f"the other {text.plural(out.requests, 'request')} {usual}{latest}"


def line(run: Run) -> str:
    """Return the one line of truth about a run."""
    counts = run.counts
    by = f" ({run.stopped_by})" if run.stopped_by else ""
    pending = run.job.expected.requests if run.job.expected else 0
    unsent = counts.open_requests - pending if pending and run.state == "left" else 0
    parts = [
        f"{counts.answered:,} of {text.plural(counts.rows, 'row')} answered",
        f"{counts.failed:,} failed" if counts.failed else "",
        f"{counts.missing:,} missing" if counts.missing and not pending else "",
        f"{text.plural(pending, 'request')} at the API" if pending else "",
        f"{text.plural(unsent, 'request')} not sent" if unsent > 0 else "",
        _reused(run),
    ]
    calls = text.plural(counts.requests, "call" if run.plan.mode == "live" else "request")
    spent = f"{calls} in {text.duration(run.minutes)}, {text.dollars(counts.dollars)}"
    return (
        f"{'SIMULATED ' * run.job.simulated}Run {run.state}{by}: {', '.join(filter(None, parts))}; {spent}."
    )


def run_card(run: Run) -> Card:
    """Return what is shown of a run. It never raises, and is cheap until the run has ended."""
    counts, plan, minutes, estimate = run.counts, run.plan, run.minutes, run.job.estimate
    figures = ("dollars", "minutes", "minutes_p90", "requests_per_minute", "input_tokens", "output_tokens")
    rate = counts.requests / minutes if minutes else 0.0
    measured = {"dollars": counts.dollars, "minutes": minutes, "requests_per_minute": rate}
    measured |= {name: getattr(counts, name) for name in ("input_tokens", "output_tokens", "refused")}
    rows: list[dict[str, Any]] = [{"": "measured", **measured}]
    if estimate is not None:
        rows.insert(0, {"": "estimated"} | {name: estimate.get(name) for name in figures})
    if plan.mode != "batch":
        rows.append({"": "limit", "requests_per_minute": run.limits.requests_per_minute * plan.share})
    table = pl.DataFrame(rows)
    failed, retry = failures(run)
    kept = f"Ledger: {run.path.name}." if run.path else "Ledger: none, so replies are only in memory."
    goes_on = {"left": f"run = await plan.run(client{ledger_typed(run.path)})"}
    goes_on |= dict.fromkeys(("starting", "running"), "run = await run")
    notes = [limits.differs(run.limits, plan.tier, plan.compiled.model), _pending(run), failed]
    notes += [why(run)] if run.stopped_by else []
    return Card.of(
        table.drop("requests_per_minute", "refused") if plan.mode == "batch" else table,
        title=line(run),
        notes=[f"{kept} Limits: {run.limits.provenance}.", *filter(None, notes)],
        next=retry or goes_on.get(run.state, "run.results"),
    )


def _pending(run: Run) -> str:
    """Return what is known of batches that are still open."""
    pending = waiting(run)
    if pending is None:
        return ""
    if run.state == "left":
        return (
            f"{pending[0]} when this run left. The same cell collects the rest, which continues at the API."
        )
    return f"{', '.join(pending)}. The API shows no progress of a batch before its end."


class Progress:
    """Shows how far a run is; hidden, it shows nothing. The log, where one is asked for, is kept anyway."""

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._shown = shown
        self._bar: Any = None
        self._logged = 0.0, 0, 0, 0, 0  # minutes, calls, tokens in and out, refusals by the last line
        self._following: asyncio.Task[None] | None = None

    def start(self, line: str) -> None:
        """Say what is going to be sent, show the bar and keep it up to date."""
        self._following = asyncio.create_task(self._follow())
        if not self._shown:
            return
        from tqdm import tqdm

        # In a notebook the text bar goes to stdout: it stays as it is when the page is saved and reopened.
        notebook, counts = loops.in_notebook(), self._run.counts
        stream = sys.stdout if notebook else sys.stderr
        stream.write(line + "\n")
        self._bar = tqdm(
            total=counts.sent,
            initial=counts.done,
            unit="row",
            ncols=_WIDTH if notebook else None,
            file=stream,
            desc="simulated" if self._run.job.simulated else "claude",
            mininterval=0.0,
        )

    def close(self) -> None:
        """Show and log the last figures, and end the bar."""
        if self._following is None:
            return
        self._following.cancel()
        self._log()
        if self._bar is not None:
            self._show()
            self._bar.close()

    async def _follow(self) -> None:
        """Show the figures twice a second, and log a line when an API minute is over."""
        while True:
            self._show()
            over = math.floor(self._logged[0]) + 1.0
            rest = max(over - self._run.minutes, 0.0) * 60 / self._run.job.clock.speed
            await asyncio.sleep(min(rest, REFRESH_SECONDS))
            if self._run.minutes >= over:
                self._log()

    def _show(self) -> None:
        if self._bar is None:
            return
        counts, minutes = self._run.counts, self._run.minutes
        rate = counts.requests / minutes if minutes else 0.0
        out = waiting(self._run)
        how = f"{rate:,.0f}/min, {text.dollars(counts.dollars)}" if out is None else out[0]
        self._bar.set_postfix_str(how, refresh=False)
        self._bar.n = counts.done
        self._bar.refresh()

    def _log(self) -> None:
        """Log what was done since the last line."""
        counts, before = self._run.counts, self._logged
        now = self._run.minutes, counts.requests, counts.input_tokens, counts.output_tokens, counts.refused
        self._logged = now
        minutes, *done, refused = (later - earlier for later, earlier in zip(now, before, strict=True))
        requests, input_tokens, output_tokens = (f"{count / max(minutes, 1e-9):,.0f}" for count in done)
        LOGGER.info(
            "minute %.1f: %s requests/min, %s input tokens/min, %s output tokens/min, %s refused, %s so far, "
            "%s of %s rows done",
            now[0], requests, input_tokens, output_tokens, f"{refused:,}", text.dollars(counts.dollars),
            f"{counts.done:,}", f"{counts.sent:,}",
        )  # fmt: skip


class Plots(Gallery):
    """The pictures of one run, each an Altair chart."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def throughput(self) -> Picture:
        """Return live requests per minute over the run, with the limit drawn. Spends: nothing."""
        from claudescale.views import run_charts

        limit = self._limits["requests"]
        return run_charts.throughput(self._rates, requests_per_minute=limit, empty=self._no_live)

    def tokens(self) -> Down | Picture:
        """Return input and output tokens per minute of live calls, with their limits. Spends: nothing."""
        from claudescale.views import run_charts

        limits = {name: self._limits[name] for name in BUCKETS[1:]}
        return run_charts.tokens(self._rates, limits=limits, empty=self._no_live)

    def buckets(self, bucket_seconds: float = 60.0) -> Down | Picture:
        """Return how full the three token buckets were. Spends: nothing.

        Parameters
        ----------
        bucket_seconds : float
            How many seconds' refill a full one holds.
        """
        from claudescale.views import run_charts

        run, limits = self._run, [*self._limits.values()]
        levels = run_charts.levels(self._live, limits, run.job.started_at, bucket_seconds)
        return run_charts.buckets(levels, bucket_seconds=bucket_seconds, empty=self._no_live)

    def latency(self) -> Picture:
        """Return the seconds that each live call took. Spends: nothing."""
        from claudescale.views import run_charts

        return run_charts.latency(self._live, empty=self._no_live)

    def spending(self) -> Picture:
        """Return the dollars spent so far over time, against the estimate. Spends: nothing."""
        from claudescale.views import run_charts

        run = self._run
        ended = (pl.col("sent_at").dt.epoch("us") / 1e6 + pl.col("seconds") - run.job.started_at) / 60
        paid = run.attempts.filter(pl.col("dollars") > 0).select("dollars", minute=ended).sort("minute")
        estimate = run.job.estimate["dollars"] if run.job.estimate else None
        if paid.height:  # from the start of the run to its end, or to this moment
            edges = pl.DataFrame({"dollars": [0.0, 0.0], "minute": [0.0, run.minutes]})
            paid = pl.concat([paid, edges]).sort("minute", maintain_order=True)
        so_far = paid.with_columns(pl.col("dollars").cum_sum())
        return run_charts.spending(
            so_far, estimate_dollars=estimate, simulated=run.job.simulated, empty=self._empty
        )

    def savings(self) -> Picture:
        """Return what the rows would have cost plainly, what saved it, what was paid. Spends: nothing."""
        from claudescale.views import run_charts

        savings = self._run.savings
        rows = [
            ("every row live, nothing cached", savings["dollars_without"][0]),
            *savings.select("strategy", "dollars_saved").rows(),
            ("paid", savings["dollars_with"][-1]),
        ]
        parts = pl.DataFrame(rows, schema={"part": pl.String, "dollars": pl.Float64}, orient="row")
        return run_charts.savings(parts, simulated=self._run.job.simulated, empty=self._empty)

    def batches(self) -> Picture:
        """Return when each batch was pending, and what came of it. Spends: nothing."""
        from claudescale.views import run_charts

        run = self._run
        hybrid = run.plan.mode == "hybrid"
        return run_charts.batches(
            run.batches,
            started_at=run.job.started_at,
            now=run.job.started_at + run.minutes * 60,
            deadline_minutes=run.plan.deadline if hybrid else None,
            live=self._live if hybrid else None,
            empty="This run sent no batch: mode='live'." if run.plan.mode == "live" else self._empty,
        )

    @property
    def _live(self) -> pl.DataFrame:
        """The live calls: batches are outside of these limits, and their rows have no pace of their own."""
        return self._run.attempts.filter(pl.col("batch_id").is_null())

    @property
    def _rates(self) -> pl.DataFrame:
        return self._run.counts.rates()

    @property
    def _limits(self) -> dict[str, float]:
        """What live calls may use in a minute."""
        run = self._run
        return dict(zip(BUCKETS, run.limits.shared(run.plan.share).per_minute, strict=True))

    @property
    def _no_live(self) -> str:
        """Why there is nothing to see of live calls."""
        if self._run.plan.mode == "batch":
            return "A batch uses none of the limits per minute: see run.plot.batches()."
        return self._empty

    @property
    def _empty(self) -> str:
        """Why there is nothing to see."""
        counts = self._run.counts
        if self._run.state in {"starting", "running"} and counts.missing:
            return "Nothing has been answered yet."
        if counts.reused and not counts.missing:
            were = "was" if counts.reused == 1 else "were"
            return f"Nothing was sent: {text.plural(counts.reused, 'reply')} {were} in the ledger already."
        return "Nothing was sent."
