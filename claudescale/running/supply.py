"""Which rows are a run's to send live: claimed a block at a time, those of others waited for."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import polars as pl

from claudescale import loops
from claudescale.errors import LedgerError
from claudescale.running import engines

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from claudescale.ledger.ledger import Ledger
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Work
    from claudescale.running.live import Row

_CLAIM_ROWS = 256
_FIRST_ROWS = 32
_EACH = 8
_OTHERS_SECONDS = 1.0  # real ones


class Supply:
    """Gives rows to a `Live`.

    Parameters
    ----------
    plan, work, ledger
        Of the run.
    unanswered : callable
        Takes rows that others hold, counts those that were answered meanwhile, and gives the rest.
    over : callable
        Whether nothing more is to be sent.
    follow : callable
        Sees to it that batches which hold rows are collected.
    own : callable
        Takes keys, gives those that may be sent although a batch of this run holds them.
    fail : callable
        Takes the error of a ledger that cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        work: Work,
        ledger: Ledger,
        *,
        unanswered: Callable[[pl.DataFrame], Awaitable[pl.DataFrame]],
        over: Callable[[], bool],
        follow: Callable[[], Awaitable[None]],
        own: Callable[[pl.Series], list[str]],
        fail: Callable[[LedgerError], None],
    ) -> None:
        self._plan = plan
        self._work = work
        self._ledger = ledger
        self._unanswered = unanswered
        self._over = over
        self._follow = follow
        self._own = own
        self._fail = fail

    async def rows(self, missing: pl.DataFrame) -> AsyncGenerator[Row, None]:
        """Give each request that is this run's to send; wait for those that others hold."""
        waiting = missing[spread(missing.height, random.Random(self._ledger.run).random())]  # noqa: S311
        while waiting.height:
            held = []
            for block in waiting.iter_slices(_CLAIM_ROWS):
                try:
                    mine = await loops.in_thread(self._claimed, block)
                except LedgerError as error:
                    self._fail(error)
                    return
                for row in engines.rendered(self._plan, self._work.texts, mine):
                    yield row
                held.append(block.join(mine, on="key", how="anti", maintain_order="left"))
            waiting = await self._waited(pl.concat(held))

    async def first(self, free: pl.DataFrame) -> AsyncGenerator[Row, None]:
        """Give the first request, if it is this run's to send."""
        mine = await loops.in_thread(self._claimed, free.head(1))
        for row in engines.rendered(self._plan, self._work.texts, mine):
            yield row

    def _claimed(self, block: pl.DataFrame) -> pl.DataFrame:
        won = self._ledger.claim(block["key"].to_list())
        return block.filter(pl.col("key").is_in(won + self._own(block["key"])))

    async def _waited(self, held: pl.DataFrame) -> pl.DataFrame:
        """Return which rows others hold and have not answered, after a while if there are any."""
        if held.is_empty():
            return held
        await self._follow()
        left = await self._unanswered(held)
        slept = 0.0
        while left.height and slept < _OTHERS_SECONDS:
            if self._over():
                return left.clear()
            await asyncio.sleep(loops.SLICE_SECONDS)
            slept += loops.SLICE_SECONDS
        return left


def spread(rows: int, phase: float = 0.0) -> pl.Series:
    """Return the order in which rows go: as they are, but the first and every eighth from all over them.

    A frame may begin with rows that all fail, or have many side by side: others must be seen beside them.
    `phase`, from 0 to 1, says which.
    """
    places = pl.int_range(rows, dtype=pl.UInt32, eager=True)
    if rows <= _FIRST_ROWS:
        return places
    # Multiples of the golden ratio: each halves the largest gap that is left.
    steps = pl.int_range(max(rows // _EACH, _FIRST_ROWS), eager=True) * 0.6180339887498949 + phase
    scattered = pl.concat([pl.Series([0, rows - 1]), (steps % 1.0 * rows).cast(pl.Int64)]).cast(pl.UInt32)
    far = scattered.unique(maintain_order=True)
    near = places.filter(~places.is_in(far.implode()))
    at, late = pl.int_range(far.len()), pl.int_range(far.len()) - _FIRST_ROWS + 1
    turns = [
        pl.DataFrame({"row": far}).with_columns(
            turn=pl.when(late > 0).then(_FIRST_ROWS + late * _EACH).otherwise(at)
        ),
        pl.DataFrame({"row": near}).with_columns(
            turn=_FIRST_ROWS + 1 + pl.int_range(near.len()) + pl.int_range(near.len()) // (_EACH - 1)
        ),
    ]
    return pl.concat(turns).sort("turn", maintain_order=True)["row"]
