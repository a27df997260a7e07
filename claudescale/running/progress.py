"""The progress of a run as it is shown: one line before it, a tqdm bar told twice a second, and a log."""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from claudescale import loops, text
from claudescale.running.minutes import Minutes
from claudescale.running.run_views import waiting

if TYPE_CHECKING:
    from claudescale.running.runs import Run

REFRESH_SECONDS = 0.5
_SIZE = 90, 24


class Progress:
    """Shows how far a run is; hidden, it shows nothing. The log, where one is asked for, is kept anyway."""

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._shown = shown
        self._bar: Any = None
        self._ticker: asyncio.Task[None] | None = None
        self._minutes = Minutes(run)
        self._log: asyncio.Task[None] | None = None

    def start(self, line: str) -> None:
        """Say what is going to be sent, show the bar and keep it up to date."""
        self._log = asyncio.create_task(self._minutes.follow())
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
            desc="simulated" if self._run.simulated else "claude",
            mininterval=0.0,
        )
        self._ticker = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
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

    async def close(self) -> None:
        """Show the last figures and end the bar."""
        if self._log is not None:
            await _ended(self._log)
            self._minutes.tell()
            self._log = None
        if self._ticker is None:
            return
        await _ended(self._ticker)
        self._show()
        self._bar.close()
        self._ticker = None


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
