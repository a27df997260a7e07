"""Pulse: how a run goes right now, and when it ends; read several times a second, whatever its size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.planning import estimates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from claudescale.ledger.batchfile import Batch
    from claudescale.pacing.pacer import Pacer
    from claudescale.planning.plans import Plan
    from claudescale.running.batch_rules import Expected
    from claudescale.running.meter import Meter, Slice
    from claudescale.running.sending import Sending

ENOUGH_REPLIES = 20
"""From here on the replies so far tell better than the plan what the others take."""
PACE_SECONDS, LEAST_PACE_SECONDS = 60, 10


class Ends(NamedTuple):
    """API minutes until a run ends: as the limits allow, or at the last minute's pace where that is slower.

    `latest_minutes` is infinite where nothing was answered in the last minute.
    """

    usual_minutes: float
    latest_minutes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """One reading of a run.

    Attributes
    ----------
    state : str
        Of the run.
    asked : str
        ``"stop"`` or ``"leave"`` where that was asked for, else empty.
    simulated : bool
        Whether a simulator answers.
    speed : float
        API seconds that pass in a real one.
    started_at, minutes : float
        API unix seconds of the start, and API minutes since then.
    rows, done, failed : int
        Rows with something to send, and those of them that need nothing more or have failed.
    requests : int
        Calls and results so far.
    dollars, plain_dollars : float
        Paid so far, and what the same rows would have cost live, each by itself, nothing cached.
    estimate_dollars : float or None
        What the missing rows should cost.
    in_flight, most_in_flight : int
        Live calls under way, and how many may be.
    median_seconds, slow_seconds : float or None
        Latency of live calls: median and 95th percentile.
    output_tokens_per_second : float or None
        Of a live call: its output tokens over its latency, on average.
    errors, refusals : mapping of str to int
        Calls that failed, and those turned down with a 429, by the API's error type.
    batches : sequence of Batch
        Those that this run follows.
    expected : Expected or None
        When the batches end.
    ends : Ends or None
        When the live calls end; None where none are to be made, or that is not known yet.
    """

    state: str
    asked: str = ""
    simulated: bool = False
    speed: float = 1.0
    started_at: float = 0.0
    minutes: float = 0.0
    rows: int = 0
    done: int = 0
    failed: int = 0
    requests: int = 0
    dollars: float = 0.0
    plain_dollars: float = 0.0
    estimate_dollars: float | None = None
    in_flight: int = 0
    most_in_flight: int = 0
    median_seconds: float | None = None
    slow_seconds: float | None = None
    output_tokens_per_second: float | None = None
    errors: Mapping[str, int]
    refusals: Mapping[str, int]
    batches: Sequence[Batch] = ()
    expected: Expected | None = None
    ends: Ends | None = None


def read(plan: Plan, sending: Sending) -> Pulse:
    """Return how a run goes. Its cost does not grow with the rows done."""
    meter, pacer, batches = sending.tally, sending.pacer, sending.batches
    known: dict[str, Any] = {}
    if pacer is not None:
        known = {"in_flight": pacer.in_flight, "most_in_flight": pacer.window}
    if sending.state == "running" and pacer is not None and plan.mode != "batch":
        known["ends"] = live_ends(plan, pacer, sending.rest, meter, sending.minutes)
    if batches is not None:
        known["batches"] = [*batches.out.closed, *batches.out.open.values()]
        known["expected"] = batches.expected()
    seconds = meter.reply_seconds
    return Pulse(
        state=sending.state,
        asked=sending.asked,
        simulated=sending.api is not None and sending.api.simulated,
        speed=sending.api.clock.speed if sending.api else 1.0,
        started_at=sending.started_at,
        minutes=sending.minutes,
        rows=meter.sent,
        done=meter.done,
        failed=meter.failed,
        requests=meter.requests,
        dollars=meter.dollars,
        plain_dollars=meter.plain_dollars,
        estimate_dollars=sending.estimate["dollars"] if sending.estimate else None,
        median_seconds=meter.latency(0.5),
        slow_seconds=meter.latency(0.95),
        output_tokens_per_second=meter.reply_output_tokens / seconds if seconds else None,
        errors=dict(meter.errors),
        refusals=dict(meter.refusals),
        **known,
    )


def live_ends(plan: Plan, pacer: Pacer, rest: pl.DataFrame, meter: Meter, minutes: float) -> Ends:
    """Return when the live calls end, by the arithmetic of plans with what was measured so far.

    Parameters
    ----------
    rest : pl.DataFrame
        Of `work.REQUESTS`: what was missing at the start, in the order of sending.
    minutes : float
        API minutes since the start.
    """
    left = min(meter.open_requests, rest.height)
    if left <= 0:
        return Ends(0.0, 0.0)
    estimated = rest["estimated_tokens"]
    tokens = float(estimated.tail(left).sum())
    sent_tokens = float(estimated.sum()) - tokens
    expected = plan.expected
    input_tokens = expected.uncached_tokens(tokens, left)
    output_tokens = min(expected.output_tokens, float(plan.max_tokens))
    concurrency = plan.concurrency
    if meter.replies >= ENOUGH_REPLIES and sent_tokens > 0:
        input_tokens = tokens * meter.reply_input_tokens / sent_tokens
        output_tokens = meter.reply_output_tokens / meter.replies
        seconds = meter.reply_seconds / meter.replies
        latency = expected.latency._replace(mean=seconds)
        expected = replace(expected, latency=latency, calls=max(meter.replies, expected.calls))
        if pacer.in_flight >= pacer.window:  # it is what holds the run back
            concurrency = concurrency or pacer.window
    usual, slow = (
        estimates.live_finish(
            pacer.limits.shared(plan.share),
            expected,
            requests=left,
            input_tokens=input_tokens,
            output_tokens=output_tokens * left,
            concurrency=concurrency,
            more=more,
        ).seconds
        / 60
        for more in (1.0, expected.more)
    )
    rate = pace(*meter.slices(), minutes)
    at_pace = 0.0 if rate is None else left / rate if rate else math.inf
    return Ends(usual, max(slow, at_pace))


def pace(width_seconds: int, slices: Sequence[Slice], minutes: float) -> float | None:
    """Return answers per minute over the last whole slices; None where the run is too young to tell."""
    whole = int(minutes * 60 / width_seconds)
    count = min(max(PACE_SECONDS // width_seconds, 1), whole)
    if count * width_seconds < LEAST_PACE_SECONDS:
        return None
    return sum(each.answers for each in slices[whole - count : whole]) / (count * width_seconds / 60)
