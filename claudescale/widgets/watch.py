"""Watch: a run followed on the page while it goes on, and what stays of it when it has ended.

A thread of its own reads the run once a second and tells the widgets what has changed, so that neither the
kernel nor the run waits for it. At the end the widgets give way to a table and a picture that are saved with
the notebook and need no kernel.
"""
# ruff: noqa: PLC0415  # altair and ipywidgets are slow to import, and many runs are never watched

from __future__ import annotations

import atexit
import contextvars
import html
import math
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast, overload

from claudescale import loops
from claudescale.pacing.middleware import limiter_of
from claudescale.text import coarse, dollars, duration, span
from claudescale.views.card import Card
from claudescale.widgets.watch_client import ClientWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import altair as alt
    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.running.runs import Run

REFRESH_SECONDS, UNHEARD_SECONDS = 1.0, 3.0
"""Between two refreshes; and where no page has drawn the last one, as it is busy, closed or was cleared."""
LINE_SECONDS = 10.0
"""Between two lines where there is no notebook."""
LINGER_SECONDS = 2.0
"""From the end on until the widgets are closed: a kernel complains of words for what is closed."""
_LOOK_SECONDS = 0.25
ENDED = frozenset({"finished", "stopped", "failed", "left"})
RATES = {"requests": "#0072B2", "input_tokens": "#0072B2", "output_tokens": "#E69F00"}
"""What the live picture shows, in which colour."""
_GREY = "#888888"  # a mid tone: the page may be light or dark, and the kernel does not know
_SLICES = 280
_FAR = 5  # a limit that many times above the rates would press them flat
_STOP = "Send nothing more. What is in flight is paid for and kept; the same plan run again sends the rest."
_LEAVE = "Send nothing more and let the batches go on at the API. The same plan run again collects them."


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
    if not hasattr(run, "job"):
        name = type(run).__name__
        msg = f"watch takes a Run, not a {name}: run = plan.start(client), then cs.watch(run)"
        if hasattr(run, "with_middleware"):
            msg = (
                f"watch takes a Run, or a client that is limited: claude = cs.limit(client), not this {name}"
            )
        raise TypeError(msg)
    return Watch(cast("Run", run))


class Watch:
    """A run that is watched; `watch` makes one.

    Attributes
    ----------
    run : Run
        What is watched.
    refreshes : int
        How often it was shown.
    busy_seconds : float
        Processor time that took.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.refreshes, self.busy_seconds, self._shown_at = 0, 0.0, -math.inf
        self._closed = False
        self._woken = threading.Event()
        if not loops.in_notebook():
            self._begin(self._print)
            return
        self._cell = _cell()
        if run.state in ENDED:
            for bundle in self._still():
                _display(bundle)
            return
        self._panel = Panel(run, self._woken)
        self._show()
        text = {"text/plain": "Watching a run. Run this cell again to see where it stands."}
        handles = _display(self._panel.box._repr_mimebundle_() | text), _display({"text/plain": ""})
        self._begin(lambda: self._follow(handles))

    def close(self) -> None:
        """Follow the run no longer. It goes on; a table and a picture stay of how it stood.

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

    @property
    def _over(self) -> bool:
        return self._closed or self.run.state in ENDED

    # the thread that follows

    def _begin(self, work: Callable[[], None]) -> None:
        context = contextvars.copy_context()  # output goes to the cell of this moment
        threading.Thread(target=context.run, args=[work], name="claudescale-watch", daemon=True).start()

    def _follow(self, handles: Sequence[Any]) -> None:
        while not self._over:
            # Polars raises the interrupt of another cell in whatever thread is collecting.
            with suppress(KeyboardInterrupt):
                self._wait()
                if not self._over:
                    self._show()
        for handle, bundle in zip(handles, self._still(), strict=True):
            handle.update(bundle, raw=True)
        time.sleep(LINGER_SECONDS)
        if self._panel.is_heard:
            self._panel.close()

    def _wait(self) -> None:
        """Return when it is time to show the run again, or it has ended."""
        while not self._over:
            pause = REFRESH_SECONDS if self._panel.is_heard else UNHEARD_SECONDS
            left = self._shown_at + pause - time.monotonic()
            if left <= 0:
                return
            if self._woken.wait(min(left, _LOOK_SECONDS)):
                self._woken.clear()
                if self.run.job.asked:  # a button: what it did is shown at once
                    return

    def _show(self) -> None:
        begun, self._shown_at = time.thread_time(), time.monotonic()
        self.refreshes += 1
        self._panel.show(self.refreshes)
        self.busy_seconds += time.thread_time() - begun

    def _still(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what stays: a table and a picture, as notebooks save them."""
        run = self.run
        picture = run.plot.throughput() if run.plan.mode == "live" else run.plot.batches()
        return {"text/html": run._repr_html_(), "text/plain": repr(run)}, picture._repr_mimebundle_()

    # without a notebook

    def _print(self) -> None:
        """Print a line now and then, and the figures at the end, also that of the process."""
        atexit.register(self._print_last)
        while not self._over:
            if time.monotonic() >= self._shown_at + LINE_SECONDS:
                self._shown_at = time.monotonic()
                print(headline(self.run), flush=True)  # noqa: T201 - what it is for
            self._woken.wait(_LOOK_SECONDS)
        self._print_last()

    def _print_last(self) -> None:
        atexit.unregister(self._print_last)
        if not self._closed:
            self._closed = True
            print(repr(self), flush=True)  # noqa: T201 - what it is for


class Panel:
    """The widgets of a run: made once and then only told new values, so nothing loses the focus."""

    def __init__(self, run: Run, woken: threading.Event) -> None:
        import ipywidgets as widgets

        self._run, self._woken, self._number = run, woken, 0
        self._bar = widgets.HTML(layout=widgets.Layout(flex="1 1 0%", min_width="0"))
        self._figures = widgets.HTML()
        self._buttons = {"stop": self._button("Stop", _STOP, run.stop)}
        if run.plan.mode != "live":
            self._buttons["leave"] = self._button("Leave", _LEAVE, run.leave)
        self._chart: Any = None if run.plan.mode == "batch" else live_chart()
        row = widgets.Layout(align_items="center", grid_gap="6px")
        head = widgets.HBox([self._bar, *self._buttons.values()], layout=row)
        parts = [head, *([self._chart] if self._chart else []), self._figures]
        self.box = widgets.VBox(parts, layout=widgets.Layout(max_width="700px", overflow="visible"))

    def _button(self, name: str, tip: str, act: Callable[[], None]) -> Any:
        import ipywidgets as widgets

        layout = widgets.Layout(width="auto", flex="0 0 auto")
        button = widgets.Button(description=name, tooltip=tip, layout=layout)
        button.on_click(lambda _: act())
        button.on_click(lambda _: self._woken.set())
        return button

    @property
    def is_heard(self) -> bool:
        """Whether a page has drawn the last picture: it gives the number back."""
        return self._chart is None or self._chart.params.heard == self._number

    def show(self, number: int) -> None:
        """Tell the widgets how the run goes now. What reads the same is not sent again."""
        run, counts = self._run, self._run.counts
        done = f"{counts.done:,} of {counts.sent:,} rows done"
        self._bar.value = (
            f'<div style="line-height:1.4"><strong>{html.escape(headline(run))}</strong></div>'
            f'<progress value="{counts.done}" max="{max(counts.sent, 1)}" aria-label="{done}" title="{done}" '
            'style="width:100%;height:14px"></progress>'
        )
        self._figures.value = f'<div style="line-height:1.4">{figures(run).html()}</div>'
        for asked, button in self._buttons.items():
            button.disabled = run.job.asked in {"stop", asked}
        if self._chart:
            self._number = number
            limits = run.limits.shared(run.plan.share)
            self._chart.params.state = drawn(run, limits, number=number)

    def close(self) -> None:
        """Take the widgets off the page, and out of the page's and the kernel's memory."""
        for widget in (*self.box.children[0].children, *self.box.children, self.box):
            widget.close()


def _display(bundle: dict[str, Any]) -> Any:
    """Display something in this cell, and return the handle to what is there."""
    from IPython import display

    show: Any = display.display
    return show(bundle, raw=True, display_id=True)


def _cell() -> str | None:
    """Return which run of a cell this is."""
    from IPython import get_ipython

    execution: str | None = get_ipython().get_parent().get("header", {}).get("msg_id")
    return execution


# in words


def headline(run: Run) -> str:
    """Return the one line of truth about a run under way."""
    counts, job = run.counts, run.job
    simulated = "SIMULATED " * job.simulated
    if run.state == "starting":
        return f"{simulated}Run starting: the rows are read."
    state = {"stop": "stopping", "leave": "leaving"}.get(job.asked, "running")
    left = remaining(run)
    if job.asked:
        in_flight = job.pacer.in_flight if job.pacer else 0
        left = f"waits for {in_flight:,} calls in flight" if in_flight else ""
    about = "" if job.estimate is None else f" of about {dollars(job.estimate['dollars'])}"
    parts = [f"{counts.done:,} of {counts.sent:,} rows done", left, f"{dollars(counts.dollars)}{about}"]
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
    counts, job, tokens = run.counts, run.job, run.counts.output_tokens_per_second
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
            "output tokens/s": "?" if tokens is None else f"{tokens:,.0f}",
            "in flight / allowed": f"{job.pacer.in_flight:,} / {job.pacer.window:,}",
        }
    notes = [f"Errors: {_kinds(counts.errors)}. Refused (429): {_kinds(counts.refusals)}."]
    if states := Counter(
        batch.state.replace("_", " ") for batch in (job.batches.seen if job.is_open else ())
    ):
        notes.append(f"Batches: {_kinds(states)}.")
    if job.clock.speed != 1:
        notes.append(f"Times are the simulator's, {job.clock.speed:,g} times as fast as here.")
    row = [value.replace(" ", "\N{NO-BREAK SPACE}") for value in shown.values()]
    return Card(title="", header=[*shown], rows=[row], notes=notes)


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(counts.copy()).most_common()) or "none"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:,.2g} s" if seconds < 10 else f"{seconds:,.0f} s"  # noqa: PLR2004


# the live picture: sent once, and then only told new numbers


def drawn(run: Run, limits: Limits, *, number: int) -> dict[str, Any]:
    """Return the state of the live picture: whole slices, up to where most of the calls sent are answered.

    A call counts when it was sent but is known when it is answered: the newest slices are not complete.
    """
    minutes, (width_seconds, slices) = run.minutes, run.counts.slices()
    scale, unit = (60.0, "Seconds") if minutes <= 3 else (1.0, "Minutes")  # noqa: PLR2004
    known = minutes * 60 - (run.counts.latency(0.95) or 0.0)
    shown = slices[: max(int(known / width_seconds), 0)]
    starts = [n * width_seconds / 60 * scale for n in range(len(shown) + 1)]
    state: dict[str, Any] = {"number": number, "starts": starts, "unit": f"{unit} since the start"}
    state["until"] = max(starts[-1], minutes * scale, 1e-6)
    for name, limit in zip(RATES, limits.per_minute, strict=True):
        rates = [getattr(slice_, name) * 60 / width_seconds for slice_ in shown]
        peak = max(rates, default=0.0)
        far = 0 < peak < limit / _FAR
        top = 1.25 * (peak if far else max(peak, limit))
        arrow = "\N{UPWARDS ARROW} " * far
        words = f"{arrow}limit {limit:,.0f} {name.replace('_', ' ')}/min"
        state[name] = {"rates": rates, "top": top, "limit": None if far else limit, "words": words}
    return state


def _panel(name: str, color: str, *, is_last: bool) -> dict[str, Any]:
    """Return one rate over time in steps, with its limit; all its numbers come from ``state``."""
    own = f"state.{name}"
    from_zero: dict[str, Any] = {"domainMin": 0, "nice": False}
    x: dict[str, Any] = {"field": "start", "type": "quantitative", "title": None}
    x["axis"] = {"tickCount": 6, "labels": is_last}
    x["scale"] = {**from_zero, "domainMax": {"expr": "state.until"}}
    title = f"{name.replace('_', ' ').capitalize()} per minute"
    y: dict[str, Any] = {"field": "rate", "type": "quantitative", "title": title}
    y["scale"] = {**from_zero, "domainMax": {"expr": f"{own}.top"}}
    y["axis"] = {"tickCount": 3, "labelExpr": "format(datum.value, datum.value < 2e4 ? ',~f' : '.3~s')"}
    text = {"type": "text", "color": _GREY, "baseline": "bottom"}
    steps = {
        "data": {"sequence": {"start": 0, "stop": _SLICES, "as": "n"}},
        "transform": [
            {"calculate": "state.starts[datum.n]", "as": "start"},
            # A step ends where the next begins.
            {"calculate": f"{own}.rates[min(datum.n, length({own}.rates) - 1)]", "as": "rate"},
            {"filter": "isValid(datum.start) && isValid(datum.rate)"},
        ],
        "mark": {
            "type": "area", "interpolate": "step-after", "color": color, "fillOpacity": 0.3,
            "line": {"color": color, "strokeWidth": 1.5},
        },
        "encoding": {"x": x, "y": y},
    }  # fmt: skip
    limit = {
        "transform": [{"calculate": f"{own}.limit", "as": "limit"}],
        "mark": {"type": "rule", "strokeDash": [5, 4], "color": _GREY},
        "encoding": {"y": {"field": "limit", "type": "quantitative"}},
    }
    words = {
        "transform": [{"calculate": f"{own}.words", "as": "words"}],
        "mark": {**text, "align": "right"},
        "encoding": {"x": {"value": 500}, "y": {"value": -9}, "text": {"field": "words"}},
    }
    unit = {
        "transform": [{"calculate": "state.unit", "as": "unit"}],
        "mark": {**text, "align": "center", "fontSize": 12},
        "encoding": {"x": {"value": 250}, "y": {"value": 112}, "text": {"field": "unit"}},
    }
    layers = [steps, limit, words, *([unit] if is_last else [])]
    return {"width": 500, "height": 70, "data": {"values": [{}]}, "layer": layers}


@lru_cache(maxsize=1)
def _kinds_of_chart() -> tuple[type[alt.JupyterChart], alt.VConcatChart]:
    """Return a JupyterChart that brings its scripts along, and what it shows; Altair takes a second."""
    import altair as alt

    from claudescale.views.theme import THEME

    none = {"rates": [], "top": 1.0, "limit": None, "words": ""}
    state = {"number": 0, "until": 1.0, "unit": "", "starts": [0.0], **dict.fromkeys(RATES, none)}
    panels = [_panel(name, color, is_last=name == "output_tokens") for name, color in RATES.items()]
    axis = {**THEME["axis"], "labelColor": _GREY, "titleColor": _GREY}
    specification: dict[str, Any] = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",  # that of the scripts it brings along
        "description": "Rates per minute against their limits, while the run goes on",
        "background": "transparent",
        "config": {**THEME, "axis": axis},
        "params": [{"name": "state", "value": state}, {"name": "heard", "expr": "state.number"}],
        "vconcat": panels,
        "spacing": 30,
    }

    class OfflineChart(alt.JupyterChart):
        """A JupyterChart that asks no other machine for anything."""

    class Template(alt.VConcatChart):
        """A chart that is a finished specification."""

        def to_dict(self, *_: object, **__: object) -> dict[str, Any]:
            return specification

    if find_spec("vl_convert"):  # without it the scripts come from the network
        OfflineChart.enable_offline()
    template = Template(vconcat=[])
    template.params = [alt.VariableParameter(**param) for param in specification["params"]]
    return OfflineChart, template


def live_chart() -> alt.JupyterChart:
    """Return the live picture, empty: set ``params.state`` to what `drawn` gives."""
    kind, template = _kinds_of_chart()
    return kind(template, embed_options={"actions": False})


_preparing = threading.Lock()


def prepare() -> None:
    """Do before a run's first call, once in a process, what would stop all threads for seconds.

    Imports, scripts and a first PNG: vl-convert holds the interpreter's lock all the while.
    """
    with _preparing:
        _prepared()


@lru_cache(maxsize=1)
def _prepared() -> None:
    import altair as alt
    import ipywidgets  # noqa: F401

    _kinds_of_chart()
    if find_spec("vl_convert"):
        alt.Chart(alt.sequence(2)).mark_point().save(BytesIO(), format="png")
