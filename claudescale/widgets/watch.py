"""Watch: a run, or a limited client, followed on the page while it works, and what stays when it has ended.

A thread of its own reads the figures once a second and replaces what the page shows, so that neither the
kernel nor the run waits for it. Only the text of a run and its buttons are widgets. At the end they give way
to a table, which is saved with the notebook, as the picture is, and needs no kernel.
"""

from __future__ import annotations

import atexit
import contextvars
import html
import math
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast, overload

from claudescale import loops, views
from claudescale.api.limits import BUCKETS
from claudescale.pacing.middleware import limiter_of
from claudescale.text import coarse, dollars, duration, plural, span, time_unit
from claudescale.views.card import Card, Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import polars as pl
    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.pacing.middleware import Limiter
    from claudescale.running.runs import Run

REFRESH_SECONDS, LINE_SECONDS = 1.0, 10.0
"""Between two refreshes of a page, and between two lines where there is none."""
_LOOK_SECONDS = 0.1
ENDED = frozenset({"finished", "stopped", "failed", "left"})
RATES = {"requests": views.BLUE, "input_tokens": views.ORANGE, "output_tokens": views.GREEN}
"""What the live picture shows, in which colour."""
_FAR = 5  # a limit that many times above the rates would press them flat
_STOP = "Send nothing more. What is in flight is paid for and kept; the same plan run again sends the rest."
_LEAVE = "Send nothing more and let the batches continue at the API. The same plan run again collects them."


@overload
def watch(run: Run) -> Watch: ...
@overload
def watch(run: AsyncAnthropic) -> ClientWatch: ...
def watch(run: Run | AsyncAnthropic) -> Watch | ClientWatch:
    """Show how a run goes while it goes on: progress, rates against limits, dollars, latency, errors.

    Returns at once, so other cells can be run meanwhile. When the run has ended, a table and a picture stay
    that are saved with the notebook. Of a run that has ended they are shown at once. Any number of watchers
    may follow a run. Outside a notebook it prints a line every ten seconds.

    Spends: nothing.

    Parameters
    ----------
    run : Run or AsyncAnthropic
        From ``plan.start(client)``: ``await plan.run(client)`` returns only at the end. Or a client from
        `limit`: it is followed until it is closed, and its calls are a frame at ``cs.watch(claude).calls``.

    Raises
    ------
    TypeError
        This is neither.

    Notes
    -----
    A refresh takes about two milliseconds of a thread of its own, however many rows there are.
    """
    if (limiter := limiter_of(run)) is not None:
        return ClientWatch(limiter)
    if hasattr(run, "job"):
        return Watch(cast("Run", run))
    name = type(run).__name__
    if hasattr(run, "with_middleware"):
        msg = f"watch takes a Run, or a client that is limited: claude = cs.limit(client), not this {name}"
    else:
        msg = f"watch takes a Run, not a {name}: run = plan.start(client), then cs.watch(run)"
    raise TypeError(msg)


def prepare() -> None:
    """Import what a watcher takes, before a run's first call: later it would slow the others."""
    import ipywidgets  # noqa: F401, PLC0415 - slow to import


class Watch:
    """A run that is watched; `watch` makes one.

    Attributes
    ----------
    run : Run
        What is watched.
    refreshes : int
        How often it was shown.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.refreshes = 0
        self._closed, self._woken, self._settling = False, threading.Event(), threading.Lock()
        self._stays: list[dict[str, Any]] = []
        if not loops.in_notebook():
            _in_thread(self._print)
            return
        self._cell = _cell()
        if run.state in ENDED:
            for bundle in self._still():
                _display(bundle)
            return
        self._panel = Panel(run, self._woken)
        text = {"text/plain": "Watching a run. Run this cell again to see where it stands."}
        self._handles = [_display(bundle) for bundle in (self._panel.bundle | text, self._picture())]
        run.job.watched.append(self._settle)
        _in_thread(self._follow)

    def close(self) -> None:
        """Follow the run no longer. It continues; a table and a picture stay of how it stood.

        Spends: nothing.
        """
        self._closed = True
        self._woken.set()

    def __repr__(self) -> str:
        return repr(self.run)

    def _ipython_display_(self) -> None:
        """Show nothing where it is shown already: as the last line of the cell that made it."""
        if not loops.in_notebook():
            print(self)  # noqa: T201 - how IPython in a terminal shows it
        elif self._cell != _cell():
            Watch(self.run)

    def _wait(self, seconds: float) -> bool:
        """Return after so long, or when a button was clicked: whether the run is still to be followed."""
        for _ in range(round(seconds / _LOOK_SECONDS)):
            if self._closed or self.run.state in ENDED:
                return False
            if self._woken.wait(_LOOK_SECONDS):
                self._woken.clear()
                break
        return not (self._closed or self.run.state in ENDED)

    # in a notebook

    def _follow(self) -> None:
        watching = True
        while watching:
            # Polars raises the interrupt of another cell in whatever thread is collecting.
            with suppress(KeyboardInterrupt):
                self._panel.show()
                if self.run.plan.mode != "batch":
                    self._handles[1].update(self._picture(), raw=True)
                self.refreshes += 1
                watching = self._wait(REFRESH_SECONDS)
        self._settle()
        self._panel.close()

    def _settle(self) -> None:
        """Show what stays. The cell that waits for the run does so too: nbconvert hears that one alone."""
        with self._settling:
            self._stays = self._stays or [*self._still()]
        for handle, bundle in zip(self._handles, self._stays, strict=True):
            handle.update(bundle, raw=True)

    def _picture(self, *, png: bool = False) -> dict[str, Any]:
        """Return the picture of this moment; none of batches, as the API shows no progress of them."""
        run = self.run
        if run.plan.mode == "batch":
            return {"text/plain": ""}
        return views.bundle(drawn(run, run.limits.shared(run.plan.share)), png=png)

    def _still(self) -> Iterator[dict[str, Any]]:
        """Yield what stays: a table and a picture, as notebooks save them."""
        run = self.run
        yield {"text/html": run._repr_html_(), "text/plain": repr(run)}
        yield self._picture(png=True) if run.plan.mode == "live" else run.plot.batches()._repr_mimebundle_()

    # without a notebook

    def _print(self) -> None:
        """Print a line now and then, and the figures at the end, also that of the process."""
        atexit.register(self._print_last)
        watching = True
        while watching:
            print(headline(self.run), flush=True)  # noqa: T201 - what it is for
            watching = self._wait(LINE_SECONDS)
        self._print_last()

    def _print_last(self) -> None:
        atexit.unregister(self._print_last)
        if not self._closed:
            self._closed = True
            print(repr(self), flush=True)  # noqa: T201 - what it is for


class Panel:
    """The widgets of a run: made once and then only told new values, so nothing loses the focus."""

    def __init__(self, run: Run, woken: threading.Event) -> None:
        import ipywidgets as widgets  # noqa: PLC0415 - slow to import, and many runs are never watched

        def button(name: str, tip: str, act: Callable[[], None]) -> Any:
            layout = widgets.Layout(width="auto", flex="0 0 auto")
            made = widgets.Button(description=name, tooltip=tip, layout=layout)
            made.on_click(lambda _: act())
            made.on_click(lambda _: woken.set())
            return made

        self._run = run
        self._bar = widgets.HTML(layout=widgets.Layout(flex="1 1 0%", min_width="0"))
        self._figures = widgets.HTML()
        self.buttons = {"stop": button("Stop", _STOP, run.stop)}
        if run.plan.mode != "live":
            self.buttons["leave"] = button("Leave", _LEAVE, run.leave)
        row = widgets.Layout(align_items="center", grid_gap="6px")
        self._head = widgets.HBox([self._bar, *self.buttons.values()], layout=row)
        self.box = widgets.VBox([self._head, self._figures], layout=widgets.Layout(max_width="700px"))
        self.show()

    @property
    def bundle(self) -> dict[str, Any]:
        """What displays the widgets."""
        shown: dict[str, Any] = self.box._repr_mimebundle_()
        return shown

    def show(self) -> None:
        """Tell the widgets how the run goes now. What reads the same is not sent again."""
        run, counts = self._run, self._run.counts
        done = f"{counts.done:,} of {plural(counts.sent, 'row')} done"
        self._bar.value = (
            f'<div style="line-height:1.4"><strong>{html.escape(headline(run))}</strong></div>'
            f'<progress value="{counts.done}" max="{max(counts.sent, 1)}" aria-label="{done}" title="{done}" '
            'style="width:100%;height:14px"></progress>'
        )
        self._figures.value = f'<div style="line-height:1.4">{figures(run).html()}</div>'
        for asked, button in self.buttons.items():
            button.disabled = run.job.asked in {"stop", asked}

    def close(self) -> None:
        """Take the widgets off the page, and out of the page's and the kernel's memory."""
        for widget in (*self._head.children, self._head, self._figures, self.box):
            widget.close()


class ClientWatch(Shown):
    """The calls of a limited client; `watch` makes one. As the last line of a cell it follows them there.

    A client never ends: it is followed until this is closed or shown elsewhere, and what it showed last
    stays. Outside a notebook it prints a line every ten seconds in which there were calls.
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
            f"{simulated}{limiter.answered:,} of {plural(limiter.requests, 'call')} answered, "
            f"{len(limiter.under_way):,} in flight, {limiter.waiting:,} waiting, {dollars(limiter.dollars)}."
        )

    def _card(self) -> Card:
        """Return the figures of this moment."""
        groups: dict[str, list[str]] = {}
        for group, _, used, most in self.rates.iter_rows():
            groups.setdefault(group, []).append(f"{used:,.0f} / {most:,.0f}")
        return Card(
            title=self._headline,
            header=["used in the last minute / limit", *(name.replace("_", " ") for name in BUCKETS)],
            rows=[[group, *used] for group, used in groups.items()],
            notes=[f"Errors: {_kinds(self._limiter.errors)}."] if self._limiter.errors else [],
            next="cs.watch(claude).calls",
        )

    def _ipython_display_(self) -> None:
        """Show the figures in this cell, and from now on there only."""
        self._closed.set()
        self._closed = threading.Event()
        handle = _display(self._bundle)
        self._follow(REFRESH_SECONDS, lambda: handle.update(self._bundle, raw=True))

    @property
    def _bundle(self) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def _follow(self, pause_seconds: float, show: Callable[[], object]) -> None:
        """Show the figures where they have changed."""
        closed = self._closed

        def work() -> None:
            before = self._headline
            while not closed.wait(pause_seconds):
                if (line := self._headline) != before:
                    before = line
                    show()

        _in_thread(work)


def _in_thread(work: Callable[[], None]) -> None:
    context = contextvars.copy_context()  # output goes to the cell of this moment
    threading.Thread(target=context.run, args=[work], name="claudescale-watch", daemon=True).start()


def _display(bundle: Mapping[str, Any]) -> Any:
    """Display something in this cell, and return the handle to what is there."""
    from IPython import display  # noqa: PLC0415 - there only in a notebook

    show: Any = display.display
    return show(bundle, raw=True, display_id=True)


def _cell() -> str | None:
    """Return which run of a cell this is."""
    from IPython import get_ipython  # noqa: PLC0415 - there only in a notebook

    execution: str | None = get_ipython().get_parent().get("header", {}).get("msg_id")
    return execution


# in words


def headline(run: Run) -> str:
    """Return the one line of truth about a run under way."""
    counts, job = run.counts, run.job
    simulated = "SIMULATED " * job.simulated
    if run.state == "starting":
        return f"{simulated}Run starting: reading the rows."
    state = {"stop": "stopping", "leave": "leaving"}.get(job.asked, "running")
    left = remaining(run)
    if job.asked:
        in_flight = job.pacer.in_flight if job.pacer else 0
        left = f"waiting for {plural(in_flight, 'call')} in flight" if in_flight else ""
    about = "" if job.estimate is None else f" of about {dollars(job.estimate['dollars'])}"
    done = f"{counts.done:,} of {plural(counts.sent, 'row')} done"
    parts = [done, left, f"{dollars(counts.dollars)}{about}"]
    return f"{simulated}Run {state}: {', '.join(filter(None, parts))}."


def remaining(run: Run) -> str:
    """Return when a run ends, as a span of time."""
    batches, ends = run.job.expected, run.job.ends if run.state == "running" else None
    if batches is not None:
        usual, latest = batches.usual_seconds, coarse(batches.latest_seconds / 60)
        within = "" if usual is None else f"usually within {coarse(usual / 60)} and "
        return f"batches {within}at the latest in {latest}"
    if ends is None:
        return ""
    usual_time = duration(ends.usual_minutes)
    if math.isinf(ends.latest_minutes):
        return f"more than {usual_time} left: nothing was answered in the last minute"
    return f"{span(usual_time, duration(ends.latest_minutes))} left"


def figures(run: Run) -> Card:
    """Return the figures of a run under way as a card."""
    counts, job, live = run.counts, run.job, run.counts.live
    shown = {
        "dollars": dollars(counts.dollars),
        "estimated": "?" if job.estimate is None else dollars(job.estimate["dollars"]),
        "without savings": dollars(counts.plain_dollars),
        "time": duration(run.minutes),
    }
    if job.pacer is not None:
        shown |= {
            "latency p50": _seconds(counts.latency(0.5)),
            "p95": _seconds(counts.latency(0.95)),
            "output tokens/s": f"{live.output_tokens / live.seconds:,.0f}" if live.seconds else "?",
            "in flight / allowed": f"{job.pacer.in_flight:,} / {job.pacer.window:,}",
        }
    notes = [f"Errors: {_kinds(counts.errors)}. Refused (429): {_kinds(counts.refusals)}."]
    batches = job.batches.seen if job.is_open else ()
    if states := Counter(batch.state.replace("_", " ") for batch in batches):
        notes.append(f"Batches: {_kinds(states)}.")
    if job.clock.speed != 1:
        notes.append(f"Times are the simulator's, {job.clock.speed:,g} times as fast as here.")
    return Card(title="", header=[*shown], rows=[[*shown.values()]], notes=notes)


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(counts.copy()).most_common()) or "none"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:,.2g} s" if seconds < 10 else f"{seconds:,.0f} s"  # noqa: PLR2004


# the live picture, written down as Vega-Lite: Altair would take the run's own time


def drawn(run: Run, limits: Limits) -> dict[str, Any]:
    """Return the live picture: whole slices, up to where most of the calls sent are answered.

    A call counts when it was sent but is known when it is answered: the newest slices are not complete.
    """
    minutes, (width_seconds, slices) = run.minutes, run.counts.slices()
    scale, unit = time_unit(minutes)
    known = int((minutes * 60 - (run.counts.latency(0.95) or 0.0)) / width_seconds)
    whole = slices if run.state in ENDED else slices[: max(known, 0)]
    width = width_seconds / 60 * scale
    until = max(len(whole) * width, minutes * scale, 1e-6)
    panels = []
    for (name, color), most in zip(RATES.items(), limits.per_minute, strict=True):
        rates = [getattr(counts, name) * 60 / width_seconds for counts in whole]
        rows = [{"start": n * width, "end": (n + 1) * width, "rate": rate} for n, rate in enumerate(rates)]
        title = unit if name == [*RATES][-1] else None
        panels.append(_panel(name.replace("_", " "), color, rows, most, until=until, title=title))
    words = "Rates per minute against their limits"
    return views.themed({"description": words, "vconcat": panels, "spacing": 30})


def _panel(
    name: str, color: str, rows: list[dict[str, Any]], most: float, *, until: float, title: str | None
) -> dict[str, Any]:
    """Return one rate over time, with its limit."""
    peak = max((row["rate"] for row in rows), default=0.0)
    far = 0 < peak < most / _FAR
    top = 1.25 * (peak if far else max(peak, most))
    labels = "format(datum.value, datum.value < 2e4 ? ',~f' : '.3~s')"
    x: dict[str, Any] = {"field": "start", "type": "quantitative", "title": title}
    x |= {"scale": {"domain": [0, until], "nice": False}, "axis": {"labels": title is not None}}
    y: dict[str, Any] = {"field": "rate", "type": "quantitative", "title": f"{name.capitalize()} per minute"}
    y |= {"scale": {"domain": [0, top], "nice": False}, "axis": {"tickCount": 3, "labelExpr": labels}}
    bars = {"x": x, "x2": {"field": "end"}, "y": y, "y2": {"datum": 0}}
    words = {"text": "\N{UPWARDS ARROW} " * far + f"limit {most:,.0f}/min", "align": "right"}
    layers: list[dict[str, Any]] = [
        {"data": {"values": rows}, "mark": {"type": "rect", "color": color}, "encoding": bars},
        {
            "mark": {"type": "text", "color": views.GREY, "baseline": "bottom", **words},
            "encoding": {"x": {"value": views.WIDTH}, "y": {"value": -9}},
        },
    ]
    if not far:
        layers.append({"mark": {"type": "rule", **views.DASHED}, "encoding": {"y": {"datum": most}}})
    return {"width": views.WIDTH, "height": 70, "data": {"values": [{}]}, "layer": layers}
