"""The shared limit at home on a Dask scheduler: every worker can reach it, and it outlives each of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin

from claudescale.books import Book

if TYPE_CHECKING:
    from claudescale.books import Message

SILENCE_SECONDS = 60.0
"""After so long without a word, a scheduler that keeps its connections counts as out of reach."""


class Keeper(SchedulerPlugin):  # type: ignore[misc]  # distributed is typed as Any where it is not installed
    """Keeps the books on Dask's scheduler: one for each API and group of models."""

    name = "claudescale"
    idempotent = True

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Listen."""
        self._scheduler = scheduler
        scheduler.handlers["claudescale_exchange"] = self.exchange

    async def exchange(self, book: str, message: Message) -> Message:
        """Return a book's answer; a driver is told how many workers there are, too."""
        now = time.monotonic()
        kept = self.books.get(book)
        if kept is None or kept.idle:
            kept = self.books[book] = Book(message["terms"], now)
        reply = kept.exchange(message, now)
        return reply | {"workers": len(self._scheduler.workers)} if "driver" in message else reply


async def on_loop(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    """Return what a coroutine gives on Dask's own loop; what went wrong on its way is a ConnectionError.

    So is a long silence.
    """

    async def waited() -> Any:
        async with asyncio.timeout(SILENCE_SECONDS):
            return await work

    try:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waited(), loop))
    except OSError as error:  # Dask's CommClosedError is one
        raise ConnectionError(str(error) or type(error).__name__) from error
