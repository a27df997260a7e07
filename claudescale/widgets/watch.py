"""Watch: follow a run or a limited client on the page while it works, and keep its final figures.

A separate thread reads the figures once a second and updates the page, so that neither the kernel nor the
run waits for it. Only the text of a run and its buttons are widgets. At the end a table replaces them. Like
the picture, it is saved with the notebook and needs no kernel.
"""

from __future__ import annotations

import contextvars
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast, overload

import polars as pl

from claudescale import loops, views
from claudescale.api.limits import BUCKETS
from claudescale.pacing.middleware import limiter_of
from claudescale.running.run_views import GOING, kinds, line, run_card
from claudescale.text import dollars, plural
from claudescale.views.card import Card, Shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.pacing.middleware import Limiter
    from claudescale.running.runs import Run

REFRESH_SECONDS, LINE_SECONDS = 1.0, 10.0
"""Seconds between two refreshes of a page, and between two printed lines outside a notebook."""
_LOOK_SECONDS = 0.1
_FAR = 5  # a limit that many times above the rates would flatten them
_TIPS = {
    "stop": "Send nothing more. What is in flight is paid for and kept; the same plan sends the rest.",
    "leave": "Send nothing more and let the batches continue at the API. The same plan collects them.",
}


@overload
def watch(run: Run) -> Watch: ...
@overload
def watch(run: AsyncAnthropic) -> ClientWatch: ...
def watch(run: Run | AsyncAnthropic) -> Watch | ClientWatch:
    """Follow a run while it works: progress, rates against limits, dollars, latency, errors.

    Returns at once, so other cells can run meanwhile. When the run has ended, a table and a picture remain
    and are saved with the notebook. For a run that has already ended they are shown at once. Any number of
    watchers can follow a run. Outside a notebook it prints a line every ten seconds.

    Spends: nothing.

    Parameters
    ----------
    run : Run or AsyncAnthropic
        A run from ``plan.start(client)``, since ``await plan.run(client)`` returns only at the end. Or a
        client from `limit`, which is followed until the watcher is closed; ``cs.watch(claude).calls`` is a
        frame of its calls.

    Raises
    ------
    TypeError
        If the argument is neither.

    Notes
    -----
    A refresh takes about two milliseconds in a separate thread, for any number of rows.
    """
    if (limiter := limiter_of(run)) is not None:
        return ClientWatch(limiter)
    if hasattr(run, "job"):
        return Watch(cast("Run", run))
    msg = (
        f"watch takes a Run (run = plan.start(client), then cs.watch(run)) or a client that is limited"
        f" (claude = cs.limit(client), then cs.watch(claude)), not this {type(run).__name__}"
    )
    raise TypeError(msg)


def prepare() -> None:
    """Import a watcher's dependencies before a run's first call, as a later import would delay its calls."""
    import ipywidgets  # noqa: F401, PLC0415 - slow to import


class Follower(ABC):
    """Shows something at intervals from a separate thread, until it is closed or has ended."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop following. A run continues; its current table and picture remain on the page.

        Spends: nothing.
        """
        self._closed.set()

    def _start(self) -> None:
        context = contextvars.copy_context()  # output goes to the current cell
        work = threading.Thread(
            target=context.run, args=[self._follow], name="claudescale-watch", daemon=True
        )
        work.start()

    @abstractmethod
    def _follow(self) -> None:
        """Show updates until the end."""


class Watch(Follower):
    """A watcher of a run; `watch` makes one.

    Attributes
    ----------
    run : Run
        The watched run.
    refreshes : int
        Number of refreshes so far.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.refreshes = 0
        self._panel: Panel | None = None
        self._handles: list[Any] = []
        self._stays: list[dict[str, Any]] = []
        self._settling = threading.Lock()
        if run.state not in GOING:
            self._settle()
            return
        if loops.in_notebook():
            self._panel = Panel(run)
            text = {"text/plain": "Watching a run. Run this cell again to see where it stands."}
            self._handles = [
                _display(bundle) for bundle in (self._panel.box._repr_mimebundle_() | text, self._picture())
            ]
        run.job.watched.append(self._settle)
        self._start()

    def __repr__(self) -> str:
        return repr(self.run)

    def _ipython_display_(self) -> None:
        """Show nothing, as the cell that made it shows it already."""

    def _follow(self) -> None:
        while self.run.state in GOING and not self._closed.is_set():
            # Polars raises the interrupt of another cell in any thread that is collecting.
            with suppress(KeyboardInterrupt):
                self._refresh()
                self.refreshes += 1
                self._wait(LINE_SECONDS if self._panel is None else REFRESH_SECONDS)
        self._settle()
        if self._panel is not None:
            self._panel.close()

    def _refresh(self) -> None:
        if self._panel is None:
            print(line(self.run), flush=True)  # noqa: T201 - its purpose
            return
        self._panel.show()
        if self.run.plan.mode != "batch":
            self._handles[1].update(self._picture(), raw=True)

    def _wait(self, seconds: float) -> None:
        """Return after that many seconds, or at the end of the run."""
        for _ in range(round(seconds / _LOOK_SECONDS)):
            if self._closed.wait(_LOOK_SECONDS) or self.run.state not in GOING:
                return

    def _settle(self) -> None:
        """Show the final output."""
        # The cell that waits for the run calls this as well, as nbconvert captures that cell alone.
        with self._settling:
            self._stays = self._stays or self._last_shown()
        if self._handles:
            for handle, bundle in zip(self._handles, self._stays, strict=True):
                handle.update(bundle, raw=True)
        elif loops.in_notebook():
            self._handles = [_display(bundle) for bundle in self._stays]

    def _last_shown(self) -> list[dict[str, Any]]:
        """Return the final table and picture; outside a notebook print the table."""
        run = self.run
        table = {"text/html": run._repr_html_(), "text/plain": repr(run)}
        if not loops.in_notebook():
            print(repr(run), flush=True)  # noqa: T201 - its purpose
            return [table]
        if run.plan.mode == "live":
            return [table, self._picture(png=True)]
        return [table, run.plot.batches()._repr_mimebundle_()]

    def _picture(self, *, png: bool = False) -> dict[str, Any]:
        """Return the current picture; batches have none, as the API does not report their progress."""
        run = self.run
        if run.plan.mode == "batch":
            return {"text/plain": ""}
        return views.bundle(drawn(run, run.limits.shared(run.plan.share)), png=png)


class Panel:
    """The widgets of a run: created once and then updated in place, so that none loses the focus."""

    def __init__(self, run: Run) -> None:
        import ipywidgets as widgets  # noqa: PLC0415 - slow to import, and many runs are never watched

        self._run = run
        self._figures, self.buttons = widgets.HTML(), {}
        for name in ["stop"] if run.plan.mode == "live" else ["stop", "leave"]:
            button = widgets.Button(description=name.capitalize(), tooltip=_TIPS[name])
            button.on_click(lambda _, name=name: getattr(run, name)())
            self.buttons[name] = button
        layout = widgets.Layout(max_width="700px")
        self.box = widgets.VBox([self._figures, *self.buttons.values()], layout=layout)
        self.show()

    def show(self) -> None:
        """Update the widgets to the current figures; an unchanged value is not sent again."""
        run, counts = self._run, self._run.counts
        done = f"{counts.done:,} of {plural(counts.sent, 'row')} done"
        self._figures.value = (
            f'<div style="line-height:1.4"><progress value="{counts.done}" max="{max(counts.sent, 1)}" '
            f'aria-label="{done}" title="{done}" style="width:100%;height:14px"></progress>'
            f"{run_card(run).html()}</div>"
        )
        for asked, button in self.buttons.items():
            button.disabled = run.job.asked in {"stop", asked}

    def close(self) -> None:
        """Remove the widgets from the page and from the memory of page and kernel."""
        for widget in (*self.box.children, self.box):
            widget.close()


class ClientWatch(Follower, Shown):
    """A watcher of a limited client's calls; `watch` makes one. As a cell's last line it follows them there.

    A client never ends, so it is followed until the watcher is closed or displayed elsewhere. The last
    figures remain. Outside a notebook it prints a line every ten seconds, if there were calls.
    """

    def __init__(self, limiter: Limiter) -> None:
        super().__init__()
        self._limiter = limiter
        self._handle: Any = None
        if not loops.in_notebook():
            self._start()

    @property
    def calls(self) -> pl.DataFrame:
        """The latest ended calls, one row each: schema `claudescale.pacing.middleware.CALLS`."""
        return self._limiter.calls

    @property
    def rates(self) -> pl.DataFrame:
        """The use of each limit in the last minute: schema `claudescale.pacing.middleware.RATES`."""
        return self._limiter.rates

    @property
    def _headline(self) -> str:
        limiter = self._limiter
        simulated = "SIMULATED " * (limiter.api is not None and limiter.api.simulated)
        return (
            f"{simulated}{limiter.answered:,} of {plural(limiter.requests, 'call')} answered, "
            f"{len(limiter.under_way):,} in flight, {limiter.waiting:,} waiting, {dollars(limiter.dollars)}."
        )

    def _card(self) -> Card:
        """Return the current figures."""
        groups: dict[str, list[str]] = {}
        for group, _, used, most in self.rates.iter_rows():
            groups.setdefault(group, []).append(f"{used:,.0f} / {most:,.0f}")
        return Card(
            title=self._headline,
            header=["used in the last minute / limit", *(name.replace("_", " ") for name in BUCKETS)],
            rows=[[group, *used] for group, used in groups.items()],
            notes=[f"Errors: {kinds(self._limiter.errors)}."] if self._limiter.errors else [],
            next="cs.watch(claude).calls",
        )

    def _ipython_display_(self) -> None:
        """Show the figures in this cell, and from now on only here."""
        self._closed.set()
        self._closed = threading.Event()
        self._handle = _display(self._bundle)
        self._start()

    @property
    def _bundle(self) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def _follow(self) -> None:
        """Show the figures whenever they change."""
        closed, handle, before = self._closed, self._handle, self._headline
        while not closed.wait(REFRESH_SECONDS if handle else LINE_SECONDS):
            if (line := self._headline) == before:
                continue
            before = line
            if handle:
                handle.update(self._bundle, raw=True)
            else:
                print(line, flush=True)  # noqa: T201 - its purpose


def _display(bundle: Mapping[str, Any]) -> Any:
    """Display something in this cell, and return the handle of the display."""
    from IPython import display  # noqa: PLC0415 - available only in a notebook

    show: Any = display.display
    return show(bundle, raw=True, display_id=True)


# the live picture, written directly in Vega-Lite: Altair would take processor time from the run


def drawn(run: Run, limits: Limits) -> dict[str, Any]:
    """Return the live picture of complete slices, up to where most of the sent calls are answered."""
    # A call counts when it was sent but is known only once answered, so the newest slices are incomplete.
    rates = run.counts.rates().with_columns(end=pl.col("minute") + pl.col("slice_minutes"))
    if run.state in GOING:
        known = run.minutes - (run.counts.latency(0.95) or 0.0) / 60
        rates = rates.filter(pl.col("end") <= known)
    panels = [
        _panel(rates, name, most, is_last=name == BUCKETS[-1])
        for name, most in zip(BUCKETS, limits.per_minute, strict=True)
    ]
    drawing = {"data": {"values": rates.to_dicts()}, "vconcat": panels, "spacing": 12}
    return views.themed(drawing, description="Rates per minute against their limits")


def _panel(rates: pl.DataFrame, name: str, limit: float, *, is_last: bool) -> dict[str, Any]:
    """Return one rate over time, with its limit unless that would flatten it."""
    rate = f"{name}_per_minute"
    words = f"{name.replace('_', ' ').capitalize()} per minute, limit {limit:,.0f}"
    time_axis = {"labelExpr": views.CLOCK, "labels": is_last, "ticks": is_last}
    x: dict[str, Any] = {"field": "minute", "type": "quantitative", "axis": time_axis}
    x |= {"title": "Time since the start" if is_last else None, "scale": {"nice": False}}
    y: dict[str, Any] = {"field": rate, "type": "quantitative", "title": None}
    y |= {"axis": {"labelExpr": views.NUMBERS, "tickCount": 3}}
    bars = {"x": x, "x2": {"field": "end"}, "y": y, "y2": {"datum": 0}}
    layers = [{"mark": {"type": "rect", "color": views.BUCKETS[name]}, "encoding": bars}]
    if rates.filter(pl.col(rate) >= limit / _FAR).height:
        layers.append({"mark": {"type": "rule", **views.DASHED}, "encoding": {"y": {"datum": limit}}})
    title = {"text": words, "fontSize": 12, "fontWeight": "normal", "offset": 4}
    return {"width": views.WIDTH, "height": 70, "title": title, "layer": layers}
