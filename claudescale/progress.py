"""The progress bar of a run: tqdm in a terminal and in a notebook, told twice a second."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from claudescale import display, loops

if TYPE_CHECKING:
    from claudescale.runs import Run

REFRESH_SECONDS = 0.5


class Progress:
    """Shows how far a run is; hidden, it shows nothing."""

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._shown = shown
        self._bar: Any = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Show the bar and keep it up to date."""
        if not self._shown:
            return
        from tqdm import tqdm  # noqa: PLC0415 - only where it is shown

        # In a notebook the text bar goes to stdout: it stays as it is when the page is saved and opened again.
        self._bar = tqdm(
            total=self._total(),
            unit="row",
            dynamic_ncols=not loops.in_notebook(),
            ncols=90 if loops.in_notebook() else None,
            file=sys.stdout if loops.in_notebook() else sys.stderr,
            desc="simulated" if self._run.simulated else "claude",
            mininterval=0.0,
        )
        self._ticker = asyncio.create_task(self._tick())

    def _total(self) -> int:
        row = self._run.summary.row(0, named=True)
        return int(row["answered"] + row["failed"] + row["missing"])

    async def _tick(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(REFRESH_SECONDS)

    def _show(self) -> None:
        row = self._run.summary.row(0, named=True)
        self._bar.set_postfix_str(
            f"{row['requests_per_minute']:,.0f}/min, {display.dollars(row['dollars'])}", refresh=False
        )
        self._bar.n = row["answered"] + row["failed"]
        self._bar.refresh()

    def close(self) -> None:
        """Show the last figures and end the bar."""
        if self._ticker is not None:
            self._ticker.get_loop().call_soon_threadsafe(self._ticker.cancel)
        if self._bar is not None:
            self._show()
            self._bar.close()
            self._bar = None
