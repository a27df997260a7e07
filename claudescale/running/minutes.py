"""One line of log per API minute of a run: rates and dollars, never a text, under the name ``claudescale``.

The standard library keeps it silent until somebody asks for it: ``logging.basicConfig(level="INFO")``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, NamedTuple

from claudescale import text

if TYPE_CHECKING:
    from claudescale.running.runs import Run

LOGGER = logging.getLogger("claudescale")


class Sums(NamedTuple):
    """What a run has done by then."""

    minutes: float = 0.0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    refused: int = 0


class Minutes:
    """Logs a run: a line when an API minute is over, and one for what is left at its end.

    Parameters
    ----------
    run : Run
        Asked once a minute.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told = Sums()

    async def follow(self) -> None:
        """Log until it is canceled."""
        while True:
            over = math.floor(self._told.minutes) + 1.0
            await asyncio.sleep(max(over - self._run.minutes, 0.0) * 60 / self._run.pulse.speed)
            if self._run.minutes >= over:  # a timer may be early by a hair
                self.tell()

    def tell(self) -> None:
        """Log what was done since the last line."""
        counts, before = self._run.counts, self._told
        self._told = Sums(
            self._run.minutes, counts.requests, counts.input_tokens, counts.output_tokens, counts.refused
        )
        if not LOGGER.isEnabledFor(logging.INFO):
            return
        done = f"{counts.done:,} of {counts.sent:,} rows done"
        LOGGER.info("%s, %s so far, %s", line(before, self._told), text.dollars(counts.dollars), done)


def line(before: Sums, now: Sums) -> str:
    """Return what was done between two moments, per minute."""
    per_minute = 1 / max(now.minutes - before.minutes, 1e-9)
    requests, input_tokens, output_tokens = (
        (later - earlier) * per_minute for earlier, later in zip(before[1:4], now[1:4], strict=True)
    )
    return (
        f"minute {now.minutes:.1f}: {requests:,.0f} requests/min, {input_tokens:,.0f} input tokens/min, "
        f"{output_tokens:,.0f} output tokens/min, {now.refused - before.refused:,} refused"
    )
