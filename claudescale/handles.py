"""Handle: work that goes on in the background, to await, or to block on where there is no ``await``."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from claudescale import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


class Handle(ABC):
    """Work that has been started. ``await`` it for its end; an interrupt leaves it and waits for what is out.

    Attributes
    ----------
    home : int
        The thread whose loop does the work.
    """

    home: int

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._started = loops.start(work, stop=self.leave)
        self.home = self._started.thread

    @abstractmethod
    def leave(self) -> None:
        """Send nothing more. Spends: what is in flight."""

    @abstractmethod
    def _line(self) -> str:
        """Return the one line of truth about it."""

    @property
    def kept(self) -> str:
        """What an interrupt leaves, in one sentence."""
        return f"Interrupted. {self._line()}"

    def __await__(self) -> Generator[Any, None, Self]:
        return self._wait().__await__()

    async def _wait(self) -> Self:
        try:
            await self._ended()
        except asyncio.CancelledError as cancelled:
            self.leave()
            await self._ended(loops.EXIT_SECONDS)
            if loops.in_notebook():  # one line, where IPython would show a traceback
                text = f"■ Interrupted. {self._line()}"
                cancelled._render_traceback_ = lambda: [text]  # type: ignore[attr-defined]
            else:
                loops.show_as(cancelled, self.kept)
            raise
        return self._outcome()

    async def _ended(self, seconds: float = math.inf) -> None:
        """Wait in short sleeps: a kernel's interrupt is heard only when its loop wakes."""
        until = time.monotonic() + seconds
        while not self._started.future.done() and time.monotonic() < until:  # noqa: ASYNC110 - see above
            await asyncio.sleep(loops.SLICE_SECONDS)

    def _outcome(self) -> Self:
        if not self._started.future.cancelled():
            self._started.future.result()
        return self

    def result(self) -> Self:
        """Return this when it has ended, blocking this thread: a door for scripts.

        Spends: nothing by itself.

        Raises
        ------
        RunStopped
            The work could not go on.
        RuntimeError
            This thread's loop has to do the work: use ``await``.
        """
        done = self._started.future.done()
        if not done and threading.get_ident() == self.home:
            msg = "result() blocks the very loop that has to do the work: use await here, as in await run."
            raise RuntimeError(msg)
        try:
            loops.join(self._started.future, self.leave)
        except KeyboardInterrupt:
            if loops.in_notebook():
                text = f"■ Interrupted. {self._line()}"
                raise loops.Interrupted(text) from None
            interrupted = loops.Interrupted(self.kept)
            loops.show_as(interrupted, self.kept)
            raise interrupted from None
        return self._outcome()
