"""Arrivals: the rows of a run one by one, in the order in which they are answered."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.running.runs import Run

INDEX = "index"
"""The place of a row in the frame, from 0, in what ``async for`` gives."""


class Arrivals:
    """The rows of a run that nobody was given yet; it costs memory only while somebody asks for them."""

    def __init__(self, run: Run) -> None:
        work = run.job.work
        if INDEX in work.frame.columns:
            msg = f"The frame has a column {INDEX!r}, where async for says which row it is: rename yours."
            raise PlanError(msg)
        self._run = run
        self._order = work.keys.arg_sort()  # to find the rows of a key
        self._sorted = work.keys.gather(self._order)
        self._given = pl.repeat(value=False, n=work.keys.len(), dtype=pl.Boolean, eager=True)
        self._new: deque[pl.Series] = deque()  # keys that got their final reply
        run.job.feeds.append(self._new)
        self._new.append(run.job.replies(("key",))["key"])

    def close(self) -> None:
        """Take no more note of what arrives."""
        self._run.job.feeds.remove(self._new)

    def read(self) -> list[dict[str, Any]]:
        """Return the rows that got their final reply since the last time, in that order."""
        keys = [self._new.popleft() for _ in range(len(self._new))]
        places = pl.Series([each for block in keys for each in self._places(block)], dtype=pl.UInt32)
        places = self._taken(places.unique(maintain_order=True))
        if places.is_empty():
            return []
        job = self._run.job
        asked = job.work.keys.gather(places).drop_nulls().unique()
        answers = job.replies(("key", "reply", "error"), of=asked)
        return _rows(places, job.work.results(answers, places, simulated=job.simulated))

    def rest(self) -> list[dict[str, Any]]:
        """Return, once the run has ended, the rows that have no final reply, in the frame's order."""
        places = self._taken(pl.int_range(self._given.len(), dtype=pl.UInt32, eager=True))
        return _rows(places, self._run.results[places])

    def _places(self, keys: pl.Series) -> Iterator[int]:
        """Yield the rows of the frame that keys stand for."""
        starts, ends = (self._sorted.search_sorted(keys, side) for side in ("left", "right"))
        for first, end in zip(starts, ends, strict=True):
            yield from self._order[first:end]

    def _taken(self, places: pl.Series) -> pl.Series:
        """Return those of the places that were not given yet, and take note of them."""
        places = places.filter(~self._given.gather(places))
        self._given = self._given.scatter(places, values=True)
        return places


def _rows(places: pl.Series, found: pl.DataFrame) -> list[dict[str, Any]]:
    return [{INDEX: place, **row} for place, row in zip(places, found.iter_rows(named=True), strict=True)]
