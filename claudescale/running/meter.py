"""Meter: the progress of a run, counted as it happens, at a cost that does not grow with the rows.

Progress bars and widgets read it several times a second, so nothing here rereads earlier attempts.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from http import HTTPStatus
from operator import add
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.api import prices
from claudescale.api.answers import STOPPING_ERRORS
from claudescale.api.catalog import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.api.catalog import ModelFacts
    from claudescale.ledger.records import Attempt

CANCELED = "canceled"
"""The `error` of a row whose batch was canceled before the row was answered. Such a row has not failed."""
PACE_SECONDS, LEAST_PACE_SECONDS = 60, 10
_MOST_SLICES = 60  # in a chart
_LATEST_REPLIES = 1_000  # whose latencies are kept
_RATES = ("requests", "input_tokens", "output_tokens")

THROUGHPUT = pl.Schema(
    dict.fromkeys(("minute", "slice_minutes", *(f"{name}_per_minute" for name in _RATES)), pl.Float64())
    | {"refused": pl.Int64()}
)
"""Columns of `Run.throughput`, and of `rates`: slices of API time, rates per minute."""


class Slice(NamedTuple):
    """Counts in a slice of API time: calls when sent, answers and uncached tokens when they arrive."""

    requests: int = 0
    refused: int = 0
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


class Meter:
    """Rows, calls, tokens, dollars, rates and latencies of one run. Written by its threads, read by any.

    Parameters
    ----------
    rows : int
        Rows of the frame, before it is read.
    model : str or ModelFacts
        Model whose live price `plain_dollars` is computed with.

    Attributes
    ----------
    rows, sent : int
        Rows of the frame, and those of them that have something to send.
    answered, failed : int
        Rows with a reply and no error, and rows with an error that no retry can fix. A row that is being
        retried is neither.
    reused : int
        Distinct requests that the ledger answered.
    open_requests : int
        Distinct requests without a final answer.
    requests, refused : int
        Calls of this run, and those rejected with a 429.
    input_tokens, output_tokens : int
        Tokens of this run's calls, including cached ones.
    dollars, plain_dollars : float
        Dollars paid by this run, and the cost of the rows answered so far if each had been sent live on its
        own with nothing cached.
    errors, refusals : Counter of str
        Calls that failed, and those rejected with a 429, by the API's error type.
    duplicates : pl.DataFrame
        `key` and `duplicates`: how many additional rows each request answers.
    started_at : float
        API Unix seconds at the start of the run; slices are counted from it.
    """

    def __init__(self, rows: int = 0, *, model: str | ModelFacts = "") -> None:
        self.rows = rows
        self.sent = self.answered = self.failed = self.reused = self.open_requests = 0
        self.requests = self.refused = self.input_tokens = self.output_tokens = 0
        self.dollars = self.plain_dollars = 0.0
        self.errors: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.duplicates = pl.DataFrame(schema={"key": pl.String, "duplicates": pl.Int64})
        self.started_at = 0.0
        self._model = model
        self._price: prices.Price
        self._repeated: dict[str, int] = {}  # how many rows, for requests of several
        self._open: dict[str, str | None] = {}  # last error of requests that were tried
        self._latencies: deque[float] = deque(maxlen=_LATEST_REPLIES)
        self._live: dict[int, Slice] = {}  # by the second since the start
        self._batched: dict[int, Slice] = {}
        self._lock = threading.Lock()  # a thread counts batch results during live calls

    @property
    def done(self) -> int:
        """Rows that are answered or have failed."""
        return self.answered + self.failed

    @property
    def missing(self) -> int:
        """Rows that are still to be answered."""
        return self.sent - self.done

    @property
    def live(self) -> Slice:
        """Totals of all live calls; `answers` and `seconds` count only those that were paid for."""
        with self._lock:
            return Slice(*map(sum, zip(*self._live.values(), strict=True)))

    # counting

    def begin(self, keys: pl.Series) -> None:
        """Set the key of every row of the frame; null if the row has nothing to send."""
        requests = keys.alias("key").drop_nulls().value_counts(name="rows")
        self.rows = keys.len()
        self.sent = self.rows - keys.null_count()
        self.open_requests = requests.height
        self.duplicates = requests.select("key", duplicates=pl.col("rows").cast(pl.Int64) - 1)
        self._repeated = dict(requests.filter(pl.col("rows") > 1).iter_rows())
        self._price = prices.price(self._model)

    def reuse(self, replies: pl.DataFrame) -> None:
        """Count final attempts of other runs, given by `key` and `error`."""
        self.reused += replies.height
        self._close(replies.select("key", "error").rows())

    def add(self, attempt: Attempt, *, final: bool) -> None:
        """Count one live call of this run."""
        is_refused = attempt.status == HTTPStatus.TOO_MANY_REQUESTS
        is_paid = attempt.dollars != 0  # NaN, for an unknown price, counts as paid
        sent = Slice(requests=1, refused=int(is_refused))
        ended = Slice(
            answers=int(is_paid),
            input_tokens=attempt.uncached_tokens,
            output_tokens=attempt.output_tokens,
            seconds=attempt.seconds if is_paid else 0.0,
        )
        second = attempt.sent_at - self.started_at
        with self._lock:
            self.requests += 1
            self.refused += sent.refused
            self.input_tokens += attempt.prompt_tokens
            self.output_tokens += attempt.output_tokens
            self.dollars += attempt.dollars
            _add(self._live, second, sent)
            _add(self._live, second + attempt.seconds, ended)
            if is_paid:
                self._latencies.append(attempt.seconds)
                rows = self._repeated.get(attempt.key, 1) if attempt.error is None else 1
                self.plain_dollars += self._plain_dollars(attempt) * rows
            if attempt.error is not None:
                kinds = self.refusals if is_refused else self.errors
                kinds[attempt.error] += 1
            if final:
                self._close([(attempt.key, attempt.error)])
            else:
                self._open[attempt.key] = attempt.error

    def _plain_dollars(self, attempt: Attempt) -> float:
        """Return what a call would have cost with nothing cached."""
        if attempt.input_tokens == attempt.prompt_tokens:
            return attempt.dollars
        usage = dict.fromkeys(COLUMNS.values(), 0)
        usage |= {"input_tokens": attempt.prompt_tokens, "output_tokens": attempt.output_tokens}
        return prices.answer_dollars(self._price, usage, attempt._asdict())

    def extend(self, attempts: pl.DataFrame, ours: pl.DataFrame) -> None:
        """Count results of one batch, given as `RECORDS` with distinct keys; `ours` belong to the frame."""
        if attempts.is_empty():
            return
        models = () if isinstance(self._model, str) else (self._model,)
        saved = prices.savings(attempts.drop("final"), duplicates=self.duplicates, models=models)
        paid = pl.col("output_tokens", "dollars").sum()
        sums = attempts.select(prices.PROMPT.sum().alias("input"), prices.UNCACHED.sum().alias("new"), paid)
        input_tokens, uncached_tokens, output_tokens, dollars = sums.row(0)
        ended = Slice(input_tokens=uncached_tokens, output_tokens=output_tokens)
        second = attempts["sent_at"][0].timestamp() - self.started_at
        tried = ours.filter(~pl.col("final") & (pl.col("error") != CANCELED))
        with self._lock:
            self.requests += attempts.height
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self.dollars += dollars
            self.plain_dollars += saved["dollars_without"][0]
            self.errors.update(attempts["error"].drop_nulls().to_list())
            if second > -1:  # a batch of an earlier run was sent before this one began
                _add(self._batched, second, Slice(requests=attempts.height))
            _add(self._batched, second + attempts["seconds"][0], ended)
            self._close(ours.filter("final").select("key", "error").rows())
            self._open.update(tried.select("key", "error").rows())

    def end(self, stopped_by: str | None = None) -> None:
        """Count rows that were tried and given up as failed, as they are not retried any more."""
        # Rows that met the account error that ended the run have not failed.
        trouble = stopped_by if stopped_by in STOPPING_ERRORS else ""
        self._close([(key, error) for key, error in self._open.items() if error != trouble])

    def _close(self, ends: Iterable[tuple[str, str | None]]) -> None:
        """Count the rows of requests that have ended, given by key and last error."""
        for key, error in ends:
            self._open.pop(key, None)
            self.open_requests -= 1
            rows = self._repeated.get(key, 1)
            if error is None:
                self.answered += rows
            else:
                self.failed += rows

    # rates and latencies

    def latency(self, quantile: float) -> float | None:
        """Return a quantile of the latest live replies' latency in seconds; None if there are none."""
        with self._lock:
            seconds = sorted(self._latencies)
        return seconds[max(math.ceil(quantile * len(seconds)) - 1, 0)] if seconds else None

    def minutes_at_pace(self, requests: int, minutes: float) -> float:
        """Return how long `requests` take at the last minute's pace; 0 if it is too early to tell."""
        now = int(minutes * 60)
        seconds = min(now, PACE_SECONDS)
        if seconds < LEAST_PACE_SECONDS or not requests:
            return 0.0
        answers = sum(self._live.get(second, Slice()).answers for second in range(now - seconds, now))
        return requests * seconds / 60 / answers if answers else math.inf

    def slices(self, width_seconds: int = 0, *, batches: bool = False) -> tuple[int, list[Slice]]:
        """Return the width in seconds (if not given, that of at most 60 slices) and the slices."""
        with self._lock:
            counted = [*self._live.items(), *(self._batched.items() if batches else ())]
        last = max((second for second, _ in counted), default=-1)
        width = width_seconds or max(math.ceil((last + 1) / _MOST_SLICES), 1)
        slices: dict[int, Slice] = {}
        for second, counts in counted:
            _add(slices, second // width, counts)
        return width, [slices.get(number, Slice()) for number in range(last // width + 1)]

    def rates(self, width_seconds: int = 0, *, batches: bool = False) -> pl.DataFrame:
        """Return requests and tokens per minute in slices of time, as `THROUGHPUT`."""
        width, slices = self.slices(width_seconds, batches=batches)
        frame = pl.DataFrame(slices, Slice._fields, orient="row").with_row_index("number")
        return frame.select(
            minute=pl.col("number") * width / 60,
            slice_minutes=pl.lit(width / 60),
            **{f"{name}_per_minute": pl.col(name) * 60 / width for name in _RATES},
            refused="refused",
        ).cast(THROUGHPUT)

    def by_minute(self, minutes: float) -> pl.DataFrame:
        """Return rates per minute, including batches; the last minute is as long as it has lasted."""
        lasted = (minutes - pl.col("minute")).clip(upper_bound=1.0)
        length = pl.when(lasted > 0).then(lasted).otherwise(1.0)  # batch results may lie beyond the end
        frame = self.rates(60, batches=True)
        return frame.with_columns(pl.col("^.*_per_minute$") / length, slice_minutes=length)


def _add(slices: dict[int, Slice], second: float, more: Slice) -> None:
    """Add counts to the slice that contains this second."""
    number = max(int(second), 0)
    slices[number] = Slice(*map(add, slices.get(number, Slice()), more))
