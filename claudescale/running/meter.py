"""Meter: what a run has done so far, counted as it happens, at a cost that does not grow with the rows.

Whoever watches a run asks several times a second; nothing here looks at earlier attempts again.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import prices
from claudescale.api.answers import STOPPING_ERRORS
from claudescale.planning import estimates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from claudescale.api.catalog import Model
    from claudescale.ledger.records import Attempt, Batch
    from claudescale.pacing.pacer import Pacer
    from claudescale.planning.plans import Plan
    from claudescale.running.batch_rules import Expected
    from claudescale.running.job import Job

CANCELED = "canceled"
"""The `error` of a row whose batch was canceled before it was answered: it did not fail."""
MOST_SLICES = 280
"""What a picture has room for: they are joined by twos where a run takes longer."""
ENOUGH_REPLIES = 20
"""From here on the replies so far tell better than the plan what the others take."""
PACE_SECONDS, LEAST_PACE_SECONDS = 60, 10
_STEP = math.log(1.05)  # latencies are kept as classes, each so much wider than the one before
_SHORTEST_SECONDS = 1e-3


class Slice(NamedTuple):
    """Live calls in one slice of API time: they count when sent, their answers and tokens when answered."""

    requests: int = 0
    refused: int = 0
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Meter:
    """Rows, calls, tokens, dollars, rates and latencies of one run. Written by its threads, read by any.

    Parameters
    ----------
    rows : int
        Of the frame, before it is read.
    model : str or Model
        Whose live price the counterfactual is reckoned by.

    Attributes
    ----------
    rows, sent : int
        Rows of the frame, and those of them that have something to send.
    answered, failed : int
        Rows with a reply and no error, and rows with an error no retry can mend. A row that is being
        retried is neither.
    reused : int
        Distinct requests that the ledger answered.
    open_requests : int
        Distinct requests without a final answer.
    requests, refused : int
        Calls of this run, and those turned down with a 429.
    input_tokens, output_tokens : int
        Of this run's calls, cached ones included.
    dollars, plain_dollars : float
        Paid by this run; and what the rows answered so far would have cost live, each sent by itself,
        nothing cached.
    errors, refusals : Counter of str
        Calls that failed, and those turned down with a 429, by the API's error type.
    replies : int
        Live calls that were answered and paid for, and in `reply_seconds`, `reply_input_tokens` (uncached)
        and `reply_output_tokens` what they took together.
    started_at : float
        API unix seconds of the run's start; slices are counted from it.
    """

    def __init__(self, rows: int = 0, *, model: str | Model = "") -> None:
        self.rows = rows
        self.sent = self.answered = self.failed = self.reused = self.open_requests = 0
        self.requests = self.refused = self.input_tokens = self.output_tokens = 0
        self.dollars = self.plain_dollars = 0.0
        self.errors: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.replies = self.reply_input_tokens = self.reply_output_tokens = 0
        self.reply_seconds = 0.0
        self.started_at = 0.0
        self._model = model
        self._price: prices.Price
        self._repeats: dict[str, int] = {}
        self._open: dict[str, str | None] = {}  # the last error of rows that were tried
        self._latencies: Counter[int] = Counter()
        self._slices: list[list[int]] = []
        self._width_seconds = 1
        self._lock = threading.Lock()  # results of batches are counted beside live calls

    @property
    def done(self) -> int:
        """Rows that need nothing more."""
        return self.answered + self.failed

    @property
    def missing(self) -> int:
        """Rows that are still to be answered."""
        return self.sent - self.done

    # counting

    def begin(self, keys: pl.Series) -> None:
        """Take the key of every row of the frame, null where it has nothing to send."""
        counted = keys.drop_nulls().value_counts(name="rows")
        self.rows = keys.len()
        self.sent = self.rows - keys.null_count()
        self.open_requests = counted.height
        self._repeats = dict(counted.filter(pl.col("rows") > 1).select("key", "rows").iter_rows())
        self._price = prices.price(self._model)

    def found(self, replies: pl.DataFrame) -> None:
        """Count final attempts that are not this run's: `key` and `error` of each."""
        self.reused += replies.height
        self.open_requests -= replies.height
        self._close(replies)

    def add(self, attempt: Attempt, *, final: bool) -> None:
        """Count one call of this run."""
        refused = attempt.status == HTTPStatus.TOO_MANY_REQUESTS
        with self._lock:
            self.requests += 1
            self.refused += refused
            self.input_tokens += attempt.prompt_tokens
            self.output_tokens += attempt.output_tokens
            self.dollars += attempt.dollars
            self.open_requests -= final
            self._time(attempt, refused=refused)
            if attempt.error is not None:
                (self.refusals if refused else self.errors)[attempt.error] += 1
            if not final:
                self._open[attempt.key] = attempt.error
                return
            self._open.pop(attempt.key, None)
            self._end_row(attempt.key, failed=attempt.error is not None)

    def extend(self, attempts: pl.DataFrame, ours: pl.DataFrame) -> None:
        """Count many results of batches at once: `ATTEMPTS` and Boolean `final`, each key once.

        `ours` are those of the frame's rows; a batch of an earlier run may have others.
        """
        duplicates: pl.DataFrame | None = None
        if self._repeats:
            more = [self._repeats.get(key, 1) - 1 for key in attempts["key"]]
            duplicates = attempts.select("key", duplicates=pl.Series(more, dtype=pl.Int64))
        models = () if isinstance(self._model, str) else (self._model,)
        saved = prices.savings(attempts.drop("final"), duplicates=duplicates, models=models)
        failed = attempts["error"].drop_nulls().value_counts(name="calls")
        sums = attempts.select(prices.PROMPT.sum().alias("input"), pl.col("output_tokens", "dollars").sum())
        input_tokens, output_tokens, dollars = sums.row(0)
        final = ours.filter("final")
        tried = ours.filter(~pl.col("final") & (pl.col("error") != CANCELED))
        with self._lock:
            self.requests += attempts.height
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self.dollars += dollars
            self.plain_dollars += saved["dollars_without"][0]
            self.errors.update(dict(failed.iter_rows()))
            self.open_requests -= final.height
            self._close(final)
            self._open.update(zip(tried["key"], tried["error"], strict=True))

    def end(self, stopped_by: str | None = None) -> None:
        """Count rows that were tried and given up as failed: nobody tries them any more.

        Those that met the trouble of the account that ended the run did not fail.
        """
        trouble = stopped_by if stopped_by in STOPPING_ERRORS else ""
        for key, error in self._open.items():
            if error != trouble:
                self._end_row(key, failed=True)
        self._open.clear()

    def _close(self, finals: pl.DataFrame) -> None:
        """Count the rows that final attempts, each of another key, stand for."""
        failed = self._rows(finals.filter(pl.col("error").is_not_null())["key"])
        self.failed += failed
        self.answered += self._rows(finals["key"]) - failed
        for key in finals["key"] if self._open else ():
            self._open.pop(key, None)

    def _rows(self, keys: pl.Series) -> int:
        """Return how many rows of the frame the requests with these keys stand for."""
        return sum(self._repeats.get(key, 1) for key in keys) if self._repeats else keys.len()

    def _end_row(self, key: str, *, failed: bool) -> None:
        rows = self._repeats.get(key, 1)
        if failed:
            self.failed += rows
        else:
            self.answered += rows

    # rates and latencies of live calls

    def _time(self, attempt: Attempt, *, refused: bool) -> None:
        """Count a live call by when it was sent and answered, and what it would have cost by itself."""
        sent, seconds = attempt.sent_at - self.started_at, attempt.seconds
        paid = attempt.dollars != 0  # of an unknown price it is no number
        self._add(sent, Slice(requests=1, refused=int(refused)))
        self._add(sent + seconds, Slice(0, 0, int(paid), attempt.uncached_tokens, attempt.output_tokens))
        if not paid:
            return
        self.replies += 1
        self.reply_input_tokens += attempt.uncached_tokens
        self.reply_output_tokens += attempt.output_tokens
        self.reply_seconds += seconds
        self._latencies[math.floor(math.log(max(seconds, _SHORTEST_SECONDS)) / _STEP)] += 1
        price = prices.answered(
            self._price,
            answering_model=attempt.answering_model,
            inference_geo=attempt.inference_geo,
            speed=attempt.speed,
        )
        plain = price.dollars(
            input_tokens=attempt.prompt_tokens,
            output_tokens=attempt.output_tokens,
            web_search_requests=attempt.web_search_requests,
        )
        self.plain_dollars += plain * (self._repeats.get(attempt.key, 1) if attempt.error is None else 1)

    def _add(self, seconds: float, more: Slice) -> None:
        """Add to the slice that many seconds after the start; join slices where there are too many."""
        number = max(int(seconds / self._width_seconds), 0)
        while number >= MOST_SLICES:
            pairs = zip(self._slices[::2], [*self._slices[1::2], [0] * len(more)], strict=False)
            self._slices = [[*map(sum, zip(*pair, strict=True))] for pair in pairs]
            self._width_seconds *= 2
            number //= 2
        self._slices += [[0] * len(more) for _ in range(len(self._slices), number + 1)]
        self._slices[number][:] = map(sum, zip(self._slices[number], more, strict=True))

    def latency(self, quantile: float) -> float | None:
        """Return the seconds within which this part of the live replies came, to a fortieth."""
        with self._lock:
            classes = sorted(self._latencies.items())
        rank = quantile * sum(count for _, count in classes)
        below = 0
        for number, count in classes:
            below += count
            if below >= rank:
                return math.exp((number + 0.5) * _STEP)
        return None

    def slices(self) -> tuple[int, list[Slice]]:
        """Return the seconds of a slice, and the slices since the start: at most `MOST_SLICES`."""
        with self._lock:
            return self._width_seconds, [Slice(*counts) for counts in self._slices]


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


def read(job: Job, state: str) -> Pulse:
    """Return how a run goes. Its cost does not grow with the rows done."""
    meter, pacer, batches = job.meter, job.pacer, job.batches
    known: dict[str, Any] = {}
    if pacer is not None:
        known = {"in_flight": pacer.in_flight, "most_in_flight": pacer.window}
    if state == "running" and pacer is not None and job.plan.mode != "batch":
        known["ends"] = live_ends(job.plan, pacer, job.missing, meter, job.minutes)
    if batches is not None:
        known["batches"] = batches.seen
        known["expected"] = batches.expected()
    if job.estimate is not None:
        known |= {"simulated": job.api.simulated, "estimate_dollars": job.estimate["dollars"]}
    seconds = meter.reply_seconds
    return Pulse(
        state=state,
        asked=job.asked,
        speed=job.clock.speed,
        started_at=job.started_at,
        minutes=job.minutes,
        rows=meter.sent,
        done=meter.done,
        failed=meter.failed,
        requests=meter.requests,
        dollars=meter.dollars,
        plain_dollars=meter.plain_dollars,
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
        Of `rows.REQUESTS`: what was missing at the start, in the order of sending.
    minutes : float
        API minutes since the start.
    """
    left = min(meter.open_requests, rest.height)
    if left <= 0:
        return Ends(0.0, 0.0)
    estimated = rest["estimated_tokens"]
    tokens = float(estimated.tail(left).sum())
    sent_tokens = float(estimated.sum()) - tokens
    expected = plan.compiled.expected
    input_tokens = expected.uncached_tokens(tokens, left)
    output_tokens = min(expected.output_tokens, float(plan.max_tokens))
    concurrency = plan.concurrency
    if meter.replies >= ENOUGH_REPLIES and sent_tokens > 0:
        input_tokens = tokens * meter.reply_input_tokens / sent_tokens
        output_tokens = meter.reply_output_tokens / meter.replies
        seconds = meter.reply_seconds / meter.replies
        latency = expected.latency._replace(mean=seconds)
        output = expected.output._replace(calls=max(meter.replies, expected.calls))
        expected = replace(expected, latency=latency, output=output)
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
