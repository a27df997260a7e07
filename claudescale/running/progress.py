"""The progress of a run as it is shown: one line before it, a tqdm bar told twice a second, and a log.

The log, one line per API minute under the name ``claudescale``, has rates and dollars and never a text. The
standard library keeps it silent until somebody asks for it: ``logging.basicConfig(level="INFO")``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from claudescale import loops, text
from claudescale.running.run_views import waiting

if TYPE_CHECKING:
    from claudescale.running.runs import Run

LOGGER = logging.getLogger("claudescale")
REFRESH_SECONDS = 0.5
_SIZE = 90, 24


class Progress:
    """Shows how far a run is; hidden, it shows nothing. The log, where one is asked for, is kept anyway."""

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._shown = shown
        self._bar: Any = None
        self._logged = 0.0, 0, 0, 0, 0  # minutes, calls, tokens in and out, refusals by the last line
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, line: str) -> None:
        """Say what is going to be sent, show the bar and keep it up to date."""
        self._tasks = [asyncio.create_task(self._log_minutes())]
        if not self._shown:
            return
        from tqdm import tqdm  # noqa: PLC0415 - only where it is shown

        # In a notebook the text bar goes to stdout: it stays as it is when the page is saved and reopened.
        notebook = loops.in_notebook()
        stream = sys.stdout if notebook else sys.stderr
        stream.write(line + "\n")
        # A terminal may say that it has no columns and no lines; tqdm would then show nothing.
        size = shutil.get_terminal_size(_SIZE)
        counts = self._run.counts
        self._bar = tqdm(
            total=counts.sent,
            initial=counts.done,
            unit="row",
            ncols=_SIZE[0] if notebook else size.columns,
            nrows=size.lines,
            file=stream,
            desc="simulated" if self._run.job.simulated else "claude",
            mininterval=0.0,
        )
        self._tasks.append(asyncio.create_task(self._refresh()))

    async def close(self) -> None:
        """Show and log the last figures, and end the bar."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._tasks:
            self._log()
        if self._bar is not None:
            self._show()
            self._bar.close()

    async def _refresh(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(REFRESH_SECONDS)

    def _show(self) -> None:
        counts, minutes = self._run.counts, self._run.minutes
        rate = counts.requests / minutes if minutes else 0.0
        out = waiting(self._run)
        how = f"{rate:,.0f}/min, {text.dollars(counts.dollars)}" if out is None else out[0]
        self._bar.set_postfix_str(how, refresh=False)
        self._bar.n = counts.done
        self._bar.refresh()

    async def _log_minutes(self) -> None:
        """Log a line when an API minute is over, until it is canceled."""
        while True:
            over = math.floor(self._logged[0]) + 1.0
            await asyncio.sleep(max(over - self._run.minutes, 0.0) * 60 / self._run.job.clock.speed)
            if self._run.minutes >= over:  # a timer may be early by a hair
                self._log()

    def _log(self) -> None:
        """Log what was done since the last line."""
        counts, before = self._run.counts, self._logged
        now = self._run.minutes, counts.requests, counts.input_tokens, counts.output_tokens, counts.refused
        self._logged = now
        minutes, *done, refused = (later - earlier for later, earlier in zip(now, before, strict=True))
        requests, input_tokens, output_tokens = (f"{count / max(minutes, 1e-9):,.0f}" for count in done)
        LOGGER.info(
            "minute %.1f: %s requests/min, %s input tokens/min, %s output tokens/min, %s refused, %s so far, "
            "%s of %s rows done",
            now[0], requests, input_tokens, output_tokens, f"{refused:,}", text.dollars(counts.dollars),
            f"{counts.done:,}", f"{counts.sent:,}",
        )  # fmt: skip
