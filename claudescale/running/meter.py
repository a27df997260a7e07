"""Meter: what a run has done so far, counted as it happens, at a cost that does not grow with the rows.

Whoever watches a run asks several times a second; nothing here looks at earlier attempts again.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from http import HTTPStatus
from itertools import zip_longest
from operator import add
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.api import prices
from claudescale.api.answers import STOPPING_ERRORS
from claudescale.planning import estimates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from claudescale.api.catalog import Model
    from claudescale.ledger.records import Attempt
    from claudescale.pacing.pacer import Pacer
    from claudescale.planning.plans import Plan

CANCELED = "canceled"
"""The `error` of a row whose batch was canceled before it was answered: it did not fail."""
MOST_SLICES = 280
"""What a picture has room for: they are joined by twos where a run takes longer."""
ENOUGH_REPLIES = 20
"""From here on the replies so far tell better than the plan what the others take."""
PACE_SECONDS, LEAST_PACE_SECONDS = 60, 10
_LATEST_REPLIES = 1_000  # whose latencies are kept

THROUGHPUT = pl.Schema(
    dict.fromkeys(("minute", "slice_minutes"), pl.Float64())
    | {f"{name}_per_minute": pl.Float64() for name in ("requests", "input_tokens", "output_tokens")}
    | {"refused": pl.Int64()}
)
"""Columns of `Run.throughput`, and of `rates`: slices of API time, rates per minute."""
_SLICE_SECONDS = (1, 2, 5, 10, 15, 30, 60)
_SHOWN_SLICES = 60


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
        self._latencies: deque[float] = deque(maxlen=_LATEST_REPLIES)
        self._slices: list[Slice] = []
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

    @property
    def output_tokens_per_second(self) -> float | None:
        """Of a live call: its output tokens over its latency, on average."""
        return self.reply_output_tokens / self.reply_seconds if self.reply_seconds else None

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
        self._close(replies.select("key", "error").rows())

    def add(self, attempt: Attempt, *, final: bool) -> None:
        """Count one call of this run."""
        refused = attempt.status == HTTPStatus.TOO_MANY_REQUESTS
        with self._lock:
            self.requests += 1
            self.refused += refused
            self.input_tokens += attempt.prompt_tokens
            self.output_tokens += attempt.output_tokens
            self.dollars += attempt.dollars
            self._time(attempt, refused=refused)
            if attempt.error is not None:
                (self.refusals if refused else self.errors)[attempt.error] += 1
            if final:
                self._close([(attempt.key, attempt.error)])
            else:
                self._open[attempt.key] = attempt.error

    def extend(self, attempts: pl.DataFrame, ours: pl.DataFrame) -> None:
        """Count many results of batches at once: `ATTEMPTS` and Boolean `final`, each key once.

        `ours` are those of the frame's rows; a batch of an earlier run may have others.
        """
        more = [self._repeats.get(key, 1) - 1 for key in attempts["key"]]
        duplicates = attempts.select("key", duplicates=pl.Series(more, dtype=pl.Int64))
        models = () if isinstance(self._model, str) else (self._model,)
        saved = prices.savings(attempts.drop("final"), duplicates=duplicates, models=models)
        failed = attempts["error"].drop_nulls().value_counts(name="calls")
        sums = attempts.select(prices.PROMPT.sum().alias("input"), pl.col("output_tokens", "dollars").sum())
        input_tokens, output_tokens, dollars = sums.row(0)
        tried = ours.filter(~pl.col("final") & (pl.col("error") != CANCELED))
        with self._lock:
            self.requests += attempts.height
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self.dollars += dollars
            self.plain_dollars += saved["dollars_without"][0]
            self.errors.update(dict(failed.iter_rows()))
            self._close(ours.filter("final").select("key", "error").rows())
            self._open.update(tried.select("key", "error").rows())

    def end(self, stopped_by: str | None = None) -> None:
        """Count rows that were tried and given up as failed: nobody tries them any more.

        Those that met the trouble of the account that ended the run did not fail.
        """
        trouble = stopped_by if stopped_by in STOPPING_ERRORS else ""
        self._close([tried for tried in self._open.items() if tried[1] != trouble])

    def _close(self, ends: Iterable[tuple[str, str | None]]) -> None:
        """Count the rows that requests stand for which have ended: the key and the last error of each."""
        for key, error in ends:
            self._open.pop(key, None)
            self.open_requests -= 1
            rows = self._repeats.get(key, 1)
            if error is None:
                self.answered += rows
            else:
                self.failed += rows

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
        self._latencies.append(seconds)
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
        number, slices = max(int(seconds / self._width_seconds), 0), self._slices
        while number >= MOST_SLICES:
            pairs = zip_longest(slices[::2], slices[1::2], fillvalue=Slice())
            slices[:] = [Slice(*map(add, *pair)) for pair in pairs]
            self._width_seconds *= 2
            number //= 2
        slices += [Slice()] * (number + 1 - len(slices))
        slices[number] = Slice(*map(add, slices[number], more))

    def latency(self, quantile: float) -> float | None:
        """Return the seconds within which this part of the latest live replies came."""
        with self._lock:
            seconds = sorted(self._latencies)
        return seconds[max(math.ceil(quantile * len(seconds)) - 1, 0)] if seconds else None

    def slices(self) -> tuple[int, list[Slice]]:
        """Return the seconds of a slice, and the slices since the start: at most `MOST_SLICES`."""
        with self._lock:
            return self._width_seconds, self._slices.copy()


# when live calls end


class Ends(NamedTuple):
    """API minutes until a run ends: as the limits allow, or at the last minute's pace where that is slower.

    `latest_minutes` is infinite where nothing was answered in the last minute.
    """

    usual_minutes: float
    latest_minutes: float


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
        expected = expected.after(meter.replies, meter.reply_seconds / meter.replies)
        if pacer.in_flight >= pacer.window:  # it is what holds the run back
            concurrency = concurrency or pacer.window
    usual, slow = (
        estimates.live_finish(
            pacer.limits.shared(plan.share),
            expected,
            requests=left,
            input_tokens=input_tokens * more,
            output_tokens=output_tokens * left * more,
            concurrency=concurrency,
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


# the same from attempts, batches too


def by_minute(attempts: pl.DataFrame, started_at: float, minutes: float) -> pl.DataFrame:
    """Return the same as `rates`, one row per minute. The last is as long as the run has lasted in it."""
    frame = rates(attempts, started_at, minutes, slice_seconds=60)
    lasted = (minutes - pl.col("minute")).clip(upper_bound=1.0)
    length = pl.when(lasted > 0).then(lasted).otherwise(1.0)  # results of batches may be told of later
    return frame.with_columns(pl.col("^.*_per_minute$") / length, slice_minutes=length)


def rates(
    attempts: pl.DataFrame, started_at: float, minutes: float, *, slice_seconds: int | None = None
) -> pl.DataFrame:
    """Return requests and tokens per minute over a run, as `THROUGHPUT`.

    A request counts when it was sent, its tokens when it was answered. A slice is at least a second and at
    most a sixtieth of the run, where `slice_seconds` does not say otherwise.
    """
    usual = (seconds for seconds in _SLICE_SECONDS if minutes * 60 / seconds <= _SHOWN_SLICES)
    width = slice_seconds or next(usual, 60 * max(round(minutes / _SHOWN_SLICES), 1))

    def slice_of(seconds: pl.Expr) -> pl.Expr:
        return (seconds / width).floor().clip(0).cast(pl.Int64).alias("slice")

    sent = pl.col("sent_at").dt.epoch("us") / 1e6 - started_at
    refused = (pl.col("status") == HTTPStatus.TOO_MANY_REQUESTS).cast(pl.Int64)
    # Batches of an earlier run were sent before this one began.
    calls = attempts.filter(sent > -width).select(slice_of(sent), requests=1, refused=refused)
    tokens = {"input_tokens": prices.UNCACHED, "output_tokens": pl.col("output_tokens")}
    answers = attempts.select(slice_of(sent + pl.col("seconds")), **tokens)
    counts = pl.concat([calls, answers], how="diagonal_relaxed").group_by("slice").sum()
    grid = counts.select(slice=pl.int_range(pl.col("slice").max().fill_null(-1) + 1))
    counted = grid.join(counts, on="slice", how="left", maintain_order="left").fill_null(0)
    return counted.select(
        minute=pl.col("slice") * width / 60,
        slice_minutes=pl.lit(width / 60),
        **{f"{name}_per_minute": pl.col(name) * (60 / width) for name in ("requests", *tokens)},
        refused="refused",
    ).cast(THROUGHPUT)
