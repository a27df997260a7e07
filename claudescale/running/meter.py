"""Meter: a tally that also knows rates, latencies and failures, at a cost that does not grow with the rows.

Whoever watches a run asks it several times a second; nothing here looks at earlier attempts again.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.api import prices
from claudescale.running.tallies import Tally
from claudescale.views.marks import MOST_SLICES

if TYPE_CHECKING:
    from claudescale.api.catalog import Model
    from claudescale.ledger.ledger import Attempt

_STEP = math.log(1.05)  # latencies are kept as classes, each so much wider than the one before
_SHORTEST_SECONDS = 1e-3


class Slice(NamedTuple):
    """Live calls in one slice of API time: they count when sent, their answers and tokens when answered."""

    requests: int = 0
    refused: int = 0
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Meter(Tally):
    """A `Tally` of a run that can be watched. Written by the run's threads, readable from any.

    Parameters
    ----------
    rows, twice
        As for `Tally`.
    model : str or Model
        Whose live price the counterfactual is reckoned by.

    Attributes
    ----------
    started_at : float
        API unix seconds of the run's start; slices are counted from it.
    errors, refusals : Counter of str
        Calls that failed, and those turned down with a 429, by the API's error type.
    replies : int
        Live calls that were answered and paid for, and in `reply_seconds`, `reply_input_tokens` (uncached)
        and `reply_output_tokens` what they took together.
    open_requests : int
        Distinct requests without a final answer.
    plain_dollars : float
        What the rows answered so far would have cost live, each sent by itself, nothing cached.
    """

    def __init__(self, rows: int = 0, *, twice: bool = False, model: str | Model = "") -> None:
        super().__init__(rows, twice=twice)
        self.started_at = 0.0
        self.errors: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.replies = self.reply_input_tokens = self.reply_output_tokens = 0
        self.reply_seconds = 0.0
        self.open_requests = 0
        self.plain_dollars = 0.0
        self._model = model
        self._price: prices.Price | None = None
        self._latencies: Counter[int] = Counter()
        self._slices: list[list[int]] = []
        self._width_seconds = 1
        self._lock = threading.Lock()  # results of batches are counted beside live calls

    def begin(self, keys: pl.Series) -> None:
        """Take the key of every row of the frame, null where it has nothing to send."""
        super().begin(keys)
        self.open_requests = keys.drop_nulls().n_unique()
        self._price = prices.price(self._model)

    def found(self, replies: pl.DataFrame) -> None:
        """Count final attempts that are not this run's: `key` and `error` of each."""
        super().found(replies)
        self.open_requests -= replies.height

    def add(self, attempt: Attempt, *, final: bool) -> None:
        """Count one call of this run."""
        super().add(attempt, final=final)
        uncached = attempt.uncached_tokens
        refused = attempt.status == HTTPStatus.TOO_MANY_REQUESTS
        with self._lock:
            self.open_requests -= final
            sent, ended = attempt.sent_at - self.started_at, attempt.seconds
            self._count(sent, Slice(requests=1, refused=int(refused)))
            paid = attempt.dollars != 0  # of an unknown price it is no number
            self._count(sent + ended, Slice(0, 0, int(paid), uncached, attempt.output_tokens))
            if attempt.error is not None:
                (self.refusals if refused else self.errors)[attempt.error] += 1
            if paid:
                self.replies += 1
                self.reply_input_tokens += uncached
                self.reply_output_tokens += attempt.output_tokens
                self.reply_seconds += ended
                self._latencies[math.floor(math.log(max(ended, _SHORTEST_SECONDS)) / _STEP)] += 1
                rows = self._repeats.get(attempt.key, 1) if attempt.error is None else 1
                assert self._price is not None
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
                self.plain_dollars += plain * rows

    def extend(self, attempts: pl.DataFrame, its: pl.DataFrame) -> None:
        """Count many results of batches at once: `ATTEMPTS` and Boolean `final`, each key once."""
        super().extend(attempts, its)
        duplicates: pl.DataFrame | None = None
        if self._repeats:
            more = [self._repeats.get(key, 1) - 1 for key in attempts["key"]]
            duplicates = attempts.select("key", duplicates=pl.Series(more, dtype=pl.Int64))
        models = () if isinstance(self._model, str) else (self._model,)
        saved = prices.savings(attempts.drop("final"), duplicates=duplicates, models=models)
        plain = saved["dollars_without"][0]
        failed = attempts["error"].drop_nulls().value_counts(name="calls")
        with self._lock:
            self.open_requests -= int(its["final"].sum())
            self.errors.update(dict(failed.iter_rows()))
            self.plain_dollars += plain

    def latency(self, quantile: float) -> float | None:
        """Return the seconds within which this part of the live replies came, to a fortieth."""
        with self._lock:
            classes = sorted(self._latencies.items())
        rank = quantile * sum(count for _, count in classes)
        below = 0
        for each, count in classes:
            below += count
            if below >= rank:
                return math.exp((each + 0.5) * _STEP)
        return None

    def slices(self) -> tuple[int, list[Slice]]:
        """Return the seconds of a slice, and the slices since the start: at most `MOST_SLICES`."""
        with self._lock:
            return self._width_seconds, [Slice(*each) for each in self._slices]

    def _count(self, seconds: float, more: Slice) -> None:
        """Add to the slice that many seconds after the start; join slices where there are too many."""
        number = max(int(seconds / self._width_seconds), 0)
        while number >= MOST_SLICES:
            pairs = zip(self._slices[::2], [*self._slices[1::2], [0] * len(more)], strict=False)
            self._slices = [[*map(sum, zip(*pair, strict=True))] for pair in pairs]
            self._width_seconds *= 2
            number //= 2
        self._slices += [[0] * len(more) for _ in range(len(self._slices), number + 1)]
        at = self._slices[number]
        at[:] = map(sum, zip(at, more, strict=True))
