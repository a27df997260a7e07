"""Tally: what a run has done so far, counted as it happens.

Asked four times a second during 100,000 rows, it must not add up all attempts each time.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import polars as pl

from claudescale.api.answers import STOPPING_ERRORS
from claudescale.api.prices import PROMPT

if TYPE_CHECKING:
    from claudescale.ledger.records import Attempt

CANCELED = "canceled"
"""The `error` of a row whose batch was canceled before it was answered: it did not fail."""


class Tally:
    """Rows, calls, tokens and dollars of one run. Written by the run's loop, readable from any thread.

    Parameters
    ----------
    rows : int
        Of the frame, before it is read.
    twice : bool
        A row may be answered more than once, and counts as one.

    Attributes
    ----------
    rows, sent : int
        Rows of the frame, and those of them that have something to send.
    answered, failed : int
        Rows with a reply and no error, and rows with an error no retry can mend. A row that is being
        retried is neither.
    reused : int
        Distinct requests that the ledger answered.
    requests, refused : int
        Calls of this run, and those turned down with a 429.
    input_tokens, output_tokens : int
        Of this run's calls, cached ones included.
    dollars : float
        Paid by this run.
    """

    def __init__(self, rows: int = 0, *, twice: bool = False) -> None:
        self.rows = rows
        self.sent = 0
        self.answered = self.failed = self.reused = 0
        self.requests = self.refused = 0
        self.input_tokens = self.output_tokens = 0
        self.dollars = 0.0
        self._repeats: dict[str, int] = {}
        self._open: dict[str, str | None] = {}  # the last error of rows that were tried
        self._finals: set[str] | None = set() if twice else None

    @property
    def done(self) -> int:
        """Rows that need nothing more."""
        return self.answered + self.failed

    @property
    def missing(self) -> int:
        """Rows that are still to be answered."""
        return self.sent - self.done

    def begin(self, keys: pl.Series) -> None:
        """Take the key of every row of the frame, null where it has nothing to send."""
        counted = keys.drop_nulls().value_counts(name="rows")
        self.rows = keys.len()
        self.sent = self.rows - keys.null_count()
        self._repeats = dict(counted.filter(pl.col("rows") > 1).select("key", "rows").iter_rows())

    def found(self, replies: pl.DataFrame) -> None:
        """Count final attempts that are not this run's: `key` and `error` of each."""
        failed = self._rows(replies.filter(pl.col("error").is_not_null())["key"])
        self.failed += failed
        self.answered += self._rows(replies["key"]) - failed
        self.reused += replies.height
        self._forget(replies["key"])

    def add(self, attempt: Attempt, *, final: bool) -> None:
        """Count one call of this run."""
        self.requests += 1
        self.refused += attempt.status == HTTPStatus.TOO_MANY_REQUESTS
        self.input_tokens += attempt.prompt_tokens
        self.output_tokens += attempt.output_tokens
        self.dollars += attempt.dollars
        if not final:
            self._open[attempt.key] = attempt.error
            return
        self._open.pop(attempt.key, None)
        if self._finals is not None:
            if attempt.key in self._finals:
                return
            self._finals.add(attempt.key)
        self._close(attempt.key, failed=attempt.error is not None)

    def extend(self, attempts: pl.DataFrame, its: pl.DataFrame) -> None:
        """Count many results of batches at once: `ATTEMPTS` and Boolean `final`, each key once.

        `its` are those of the frame's rows; a batch of an earlier run may have others.
        """
        self.requests += attempts.height
        sums = attempts.select(PROMPT.sum().alias("input"), pl.col("output_tokens", "dollars").sum())
        input_tokens, output_tokens, dollars = sums.row(0)
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.dollars += dollars
        final = its.filter("final")
        if self._finals is not None:
            final = final.filter(~pl.col("key").is_in(list(self._finals)))
            self._finals.update(final["key"])
        failed = self._rows(final.filter(pl.col("error").is_not_null())["key"])
        self.failed += failed
        self.answered += self._rows(final["key"]) - failed
        self._forget(final["key"])
        tried = its.filter(~pl.col("final") & (pl.col("error") != CANCELED))
        self._open.update(zip(tried["key"], tried["error"], strict=True))

    def end(self, stopped_by: str | None = None) -> None:
        """Count rows that were tried and given up as failed: nobody tries them any more.

        Those that met the trouble of the account that ended the run did not fail.
        """
        trouble = stopped_by if stopped_by in STOPPING_ERRORS else ""
        for key, error in self._open.items():
            if error != trouble:
                self._close(key, failed=True)
        self._open.clear()

    def _forget(self, keys: pl.Series) -> None:
        for key in keys:
            self._open.pop(key, None)

    def _rows(self, keys: pl.Series) -> int:
        """Return how many rows of the frame the requests with these keys stand for."""
        return sum(self._repeats.get(key, 1) for key in keys) if self._repeats else keys.len()

    def _close(self, key: str, *, failed: bool) -> None:
        rows = self._repeats.get(key, 1)
        if failed:
            self.failed += rows
        else:
            self.answered += rows
