"""How a run is shown: its line and card, its progress, what failed and why it ended.

Progress is one line before the run, a tqdm bar, and a log. The log has one line per API minute under the name
``claudescale``, with rows, time left and dollars, but no text of prompts or replies. It stays silent until
``logging.basicConfig(level="INFO")``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops, text
from claudescale.api import limits
from claudescale.api.answers import LASTING
from claudescale.errors import ADVICE, LedgerError
from claudescale.ledger.ledger import ledger_typed
from claudescale.prompts.requests import NOT_SENT
from claudescale.views.card import Card

if TYPE_CHECKING:
    from collections import Counter

    from claudescale.running.runs import Run

GOING = frozenset({"starting", "running"})
"""The states of a run that has not ended."""
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
"""How a row failed, by error."""
_TOO_SHORT = {"max_tokens", "empty_reply"}
_LONGER = 4
"""Factor by which a larger `max_tokens` is proposed if it was too small."""


def failures(run: Run) -> tuple[str, str]:
    """Return what failed in an ended run, by kind, and the code that retries it; empty if nothing failed."""
    plan = run.plan
    typed = plan.compiled.prompt.returns is not None
    if run.state in GOING | {"left"} or not (typed or run.counts.failed):
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
    if hopeless := sorted(LASTING & set(rows)):
        same = f" Retrying unchanged does not help with {' and '.join(hopeless)}:"
        words += f"{same} change the model, the system prompt or the text."
    if set(rows) <= LASTING or run.state != "finished":
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
    """Return one sentence about what an interrupted run has kept and how to resume it."""
    counts = run.counts
    words = f"Interrupted: {counts.answered:,} of {text.plural(counts.rows, 'row')} answered"
    if run.path is None:
        return f"{words}, but not kept, as there is no ledger; ledger='replies.ledger' keeps them."
    batches = " and collects the batches, which continue at the API" if run.state == "left" else ""
    return f"{words} and kept in {run.path}; the same command sends only what is missing{batches}."


def before(run: Run) -> str:
    """Return one line about the rows that will be sent."""
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
    """Return how many replies existed before this run; empty if there were none."""
    count = run.counts.reused
    where = "in the ledger already" if run.plan.compiled.retry is None else "taken over"
    return f"{text.plural(count, 'request')} {where}" if count else ""


def line(run: Run) -> str:
    """Return the state of a run in one line."""
    simulated = "SIMULATED " * run.job.simulated
    if run.state == "starting":
        return f"{simulated}Run starting: reading the rows."
    return f"{simulated}Run {_going(run) if run.state == 'running' else _ended(run)}."


def _going(run: Run) -> str:
    """Return the progress of a run, and the calls that a stop still waits for."""
    counts, job = run.counts, run.job
    state = {"stop": "stopping", "leave": "leaving"}.get(job.asked, "running")
    left = _time_left(run)
    if job.asked:
        in_flight = job.pacer.in_flight if job.pacer else 0
        left = f"waiting for {text.plural(in_flight, 'call')} in flight" if in_flight else ""
    done = f"{counts.done:,} of {text.plural(counts.sent, 'row')} done"
    about = f" of about {text.dollars(job.estimate['dollars'])}" if job.estimate else ""
    return f"{state}: {', '.join(filter(None, [done, left, text.dollars(counts.dollars) + about]))}"


def _ended(run: Run) -> str:
    """Return the outcome of a run that has ended."""
    counts = run.counts
    by = f" ({run.stopped_by})" if run.stopped_by else ""
    pending = run.job.expected.requests if run.job.expected else 0
    unsent = counts.open_requests - pending if pending and run.state == "left" else 0
    empty = counts.rows - counts.sent if run.job.is_open else 0
    file = " or a file that cannot be read" if run.plan.compiled.prompt.has_files else ""
    parts = [
        f"{counts.answered:,} of {text.plural(counts.rows, 'row')} answered",
        f"{empty:,} with a null{file} not sent" if empty else "",
        f"{counts.failed:,} failed" if counts.failed else "",
        f"{counts.missing:,} missing" if counts.missing and not pending else "",
        f"{text.plural(pending, 'request')} at the API" if pending else "",
        f"{text.plural(unsent, 'request')} not sent" if unsent > 0 else "",
        _reused(run),
    ]
    calls = text.plural(counts.requests, "call" if run.plan.mode == "live" else "request")
    spent = f"{calls} in {text.duration(run.minutes)}, {text.dollars(counts.dollars)}"
    return f"{run.state}{by}: {', '.join(filter(None, parts))}; {spent}"


def _time_left(run: Run) -> str:
    """Return the time that is left of a run, as a span; empty if it is not known yet."""
    batches, ends = run.job.expected, run.job.ends
    if batches is not None:
        usual, latest = batches.usual_seconds, text.coarse(batches.latest_seconds / 60)
        within = "" if usual is None else f"usually within {text.coarse(usual / 60)} and "
        return f"batches {within}at the latest in {latest}"
    if ends is None:
        return ""
    usual_time, latest_time = text.duration(ends.usual_minutes), text.duration(ends.latest_minutes)
    if math.isinf(ends.latest_minutes):  # nothing was answered in the last minute
        return f"more than {usual_time} left"
    return f"{text.span(usual_time, latest_time)} left"


def run_card(run: Run) -> Card:
    """Return the card of a run. It never raises, and is cheap until the run has ended."""
    plan, estimate = run.plan, run.job.estimate
    rows: list[dict[str, Any]] = [{"": "measured", **run.summary.row(0, named=True)}]
    if estimate is not None:
        rows.insert(0, {"": "estimated", **estimate})
    names = ["", "dollars", "minutes", "minutes_p90", "requests_per_minute", "input_tokens", "output_tokens"]
    names.append("refused")
    if plan.mode == "batch":
        names = [name for name in names if name not in {"requests_per_minute", "refused"}]
    else:
        rows.append({"": "limit", "requests_per_minute": run.limits.requests_per_minute * plan.share})
    failed, retry = failures(run)
    kept = f"Ledger: {run.path.name}." if run.path else "Ledger: none, so replies are only in memory."
    following = {"left": f"run = await plan.run(client{ledger_typed(run.path)})"}
    following |= dict.fromkeys(GOING, "run = await run")
    notes = [limits.differs(run.limits, plan.tier, plan.compiled.model), _burst(run), _pending(run), failed]
    notes += [why(run)] if run.stopped_by else []
    notes += _under_way(run) if run.state in GOING else []
    return Card.of(
        pl.DataFrame([{name: row.get(name) for name in names} for row in rows]),
        title=line(run),
        notes=[f"{kept} Limits: {run.limits.provenance}.", *filter(None, notes)],
        next=retry or following.get(run.state, "run.results"),
    )


def _under_way(run: Run) -> list[str]:
    """Return the notes that matter only while a run is in progress."""
    counts, pacer, speed = run.counts, run.job.pacer, run.job.clock.speed
    notes = [f"Without savings: {text.dollars(counts.plain_dollars)}."]
    if pacer is not None:
        usual, slow = (text.duration((counts.latency(share) or math.nan) / 60) for share in (0.5, 0.95))
        flight = f"{pacer.in_flight:,} calls in flight, {pacer.window:,} allowed"
        notes.append(f"Latency: {usual} (p95 {slow}), {flight}.")
    notes.append(f"Errors: {kinds(counts.errors)}. Refused (429): {kinds(counts.refusals)}.")
    if speed != 1:
        notes.append(f"Times are the simulator's, {speed:,g} times as fast as here.")
    return notes


def kinds(counts: Counter[str]) -> str:
    """Return the count of each kind, the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.copy().most_common()) or "none"


def _burst(run: Run) -> str:
    """Return why a live run was faster than its limit; empty if it was not, or for another reason."""
    calls, minutes, limit = run.counts.requests, run.minutes, run.limits.requests_per_minute * run.plan.share
    is_burst = 1.05 * limit * minutes < calls <= limit * (1 + minutes)  # less is worth no word
    if run.plan.mode != "live" or not is_burst:
        return ""
    estimate = run.job.estimate if run.state == "finished" else None
    faster = "the limit and the estimate" if estimate and minutes < estimate["minutes"] else "the limit"
    return f"Faster than {faster}: a bucket that is full at the start allows a burst."


def _batches_ended(run: Run) -> str:
    """Return how many batches have ended; empty if none is pending."""
    batches = run.job.expected
    if batches is None:
        return ""
    return f"{batches.ended} of {text.plural(batches.open + batches.ended, 'batch')} ended"


def _pending(run: Run) -> str:
    """Return a note on pending batches; empty if there are none."""
    ended = _batches_ended(run)
    if ended and run.state == "left":
        return f"{ended} when this run left. The same cell collects the rest, which continues at the API."
    return f"{ended}. The API shows no progress of a batch before its end." if ended else ""


class Progress:
    """Shows the progress of a run, unless it is hidden; the log is written in either case."""

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._shown = shown
        self._bar: Any = None
        self._following: asyncio.Task[None] | None = None

    def start(self, line: str) -> None:
        """Write what will be sent, show the bar, and keep it up to date."""
        self._following = asyncio.create_task(self._follow())
        if not self._shown:
            return
        from tqdm import tqdm  # noqa: PLC0415 - many runs show no bar

        # In a notebook the text bar goes to stdout, where it is unchanged after the page is reopened.
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
        """Show the figures twice a second, and log a line after each API minute."""
        logged = 0
        while True:
            self._show()
            await asyncio.sleep(REFRESH_SECONDS)
            if int(self._run.minutes) > logged:
                logged = int(self._run.minutes)
                self._log()

    def _show(self) -> None:
        if self._bar is None:
            return
        counts, minutes = self._run.counts, self._run.minutes
        rate = counts.requests / minutes if minutes else 0.0
        pace = f"{rate:,.0f}/min, {text.dollars(counts.dollars)}"
        self._bar.set_postfix_str(_batches_ended(self._run) or pace, refresh=False)
        self._bar.n = counts.done
        self._bar.refresh()

    def _log(self) -> None:
        LOGGER.info("minute %.1f: %s", self._run.minutes, line(self._run))
