"""Drawing what changes often: away from the kernel's thread, the latest only."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from claudescale import loops

if TYPE_CHECKING:
    from collections.abc import Callable

Wanted = TypeVar("Wanted")
Drawn = TypeVar("Drawn")

QUIET_SECONDS = 0.15
"""How long a burst of changes, such as a held arrow key, is let pass before the next drawing."""


class Redrawing(Generic[Wanted, Drawn]):
    """Draws what it is asked for, one thing at a time; what is asked for meanwhile replaces what waits.

    A drawing that is out of date when it is done is not shown: the last one asked for is the last one seen.

    Parameters
    ----------
    draw : callable
        Called in a thread of its own with what is wanted.
    show : callable
        Called with what was drawn.
    failed : callable
        Called with the error where either fails.
    """

    def __init__(
        self,
        draw: Callable[[Wanted], Drawn],
        show: Callable[[Drawn], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._draw, self._show, self._failed = draw, show, failed
        self._lock = threading.Lock()
        self._wanted: list[Wanted] = []
        self._working = False

    def ask(self, wanted: Wanted) -> None:
        """Ask for a drawing and return at once."""
        with self._lock:
            self._wanted[:] = [wanted]
            if self._working:
                return
            self._working = True
        loops.start(self._work, stop=self._wanted.clear)

    @property
    def working(self) -> bool:
        """Whether something is still to be drawn."""
        return self._working

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            with self._lock:
                wanted = self._wanted[:]
                self._wanted.clear()
                if not wanted:
                    self._working = False
                    return
            try:
                drawn = await loops.in_thread(self._draw, wanted[0])
                with self._lock:
                    if not self._wanted:
                        self._show(drawn)
            except Exception as error:  # noqa: BLE001 - nobody awaits this work, so it is told
                self._failed(error)
