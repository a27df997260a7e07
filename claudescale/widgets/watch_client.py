"""Watch a limited client: how its calls go, against the limits, while they go on.

A client never ends, so this one is followed until it is closed, or shown elsewhere. It is plain HTML that is
replaced once a second, so what it showed last stays in the notebook and needs no kernel.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.api.limits import BUCKETS
from claudescale.text import dollars
from claudescale.views.card import Card, Shown

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from claudescale.pacing.middleware import Limiter

REFRESH_SECONDS, LINE_SECONDS = 1.0, 10.0
"""Between two refreshes of a page, and between two lines where there is none."""


class ClientWatch(Shown):
    """The calls of a limited client; `watch` makes one. As the last line of a cell it follows them there.

    Outside a notebook it prints a line every ten seconds in which there were calls.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._closed = threading.Event()
        if not loops.in_notebook():
            self._follow(LINE_SECONDS, lambda: print(self._headline, flush=True))  # noqa: T201 - what it is for

    @property
    def calls(self) -> pl.DataFrame:
        """The latest calls that have ended, one row each: schema `claudescale.pacing.middleware.CALLS`."""
        return self._limiter.calls

    @property
    def rates(self) -> pl.DataFrame:
        """What the last minute used of each limit: schema `claudescale.pacing.middleware.RATES`."""
        return self._limiter.rates

    def close(self) -> None:
        """Follow the calls no longer; what is shown stays.

        Spends: nothing.
        """
        self._closed.set()

    @property
    def _headline(self) -> str:
        limiter = self._limiter
        simulated = "SIMULATED " * (limiter.api is not None and limiter.api.simulated)
        return (
            f"{simulated}{limiter.answered:,} of {limiter.requests:,} calls answered, "
            f"{len(limiter.under_way):,} in flight, {limiter.waiting:,} waiting, {dollars(limiter.dollars)}."
        )

    def _card(self) -> Card:
        """Return the figures of this moment."""
        groups: dict[str, list[str]] = {}
        for group, _, used, most in self.rates.iter_rows():
            groups.setdefault(group, []).append(f"{used:,.0f} / {most:,.0f}")
        header = ["used in the last minute / limit", *(name.replace("_", " ") for name in BUCKETS)]
        errors = ", ".join(f"{count:,} {kind}" for kind, count in Counter(self._limiter.errors).most_common())
        return Card(
            title=self._headline,
            header=header,
            rows=[[group, *figures] for group, figures in groups.items()],
            notes=[f"Errors: {errors}."] if errors else [],
            next="cs.watch(claude).calls",
        )

    def _ipython_display_(self) -> None:
        """Show the figures in this cell, and from now on there only."""
        from IPython import display  # noqa: PLC0415 - there only in a notebook

        self._closed.set()
        self._closed = threading.Event()
        show: Any = display.display
        handle = show(self._bundle, raw=True, display_id=True)
        self._follow(REFRESH_SECONDS, lambda: handle.update(self._bundle, raw=True))

    @property
    def _bundle(self) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def _follow(self, pause_seconds: float, show: Callable[[], object]) -> None:
        """Show the figures from a thread of its own, where they have changed."""
        closed = self._closed

        def work() -> None:
            before = self._headline
            while not closed.wait(pause_seconds):
                if (line := self._headline) != before:
                    before = line
                    show()

        context = contextvars.copy_context()  # output goes to the cell of this moment
        threading.Thread(target=context.run, args=[work], name="claudescale-watch", daemon=True).start()
