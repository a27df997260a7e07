"""Watch: a run followed on the page while it goes on, and what stays of it when it has ended.

A thread of its own reads the run twice a second and tells the widgets what has changed, so that neither the
kernel nor the run waits for it. At the end the widgets give way to a table and a picture that are saved with
the notebook and need no kernel.
"""

from __future__ import annotations

import atexit
import contextvars
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale import loops
from claudescale.running import run_views
from claudescale.running.runs import Run
from claudescale.widgets import watchcharts, watchframe
from claudescale.widgets.watchframe import ENDED
from claudescale.widgets.watchpanel import Panel

if TYPE_CHECKING:
    from collections.abc import Callable

    from claudescale.running.pulses import Pulse
    from claudescale.views.card import Card
    from claudescale.views.theme import Down, Picture

REFRESHES_PER_SECOND, MOST_REFRESHES_PER_SECOND = 2.0, 4.0
LINE_SECONDS = 10.0
"""Between two lines where there is no notebook."""
LINGER_SECONDS = 2.0
"""From the end on until the widgets are closed. Where a page may still tell something they are left open: a
kernel complains of words for what is closed."""
_LOOK_SECONDS = 0.5
_PLACEHOLDER = "Watching a run. Run this cell again to see where it stands."


class Cell(NamedTuple):
    """Where output goes: a cell of a notebook, and which run of that cell."""

    name: str | None
    execution: str | None


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def watch(run: Run, *, refreshes_per_second: float = REFRESHES_PER_SECOND) -> Watch:
    """Show how a run goes while it goes on: progress, rates against limits, dollars, latency, errors.

    Returns at once, so other cells can be run meanwhile. When the run has ended, a table and a picture stay
    that are saved with the notebook. Of a run that has ended they are shown at once. Any number of watchers
    may follow a run. Outside a notebook it prints a line every ten seconds.

    Spends: nothing.

    Parameters
    ----------
    run : Run
        From ``plan.start(client)``: ``await plan.run(client)`` returns only at the end.
    refreshes_per_second : float
        Above 0 and at most 4. Fewer while the page is busy, and while nobody looks.

    Raises
    ------
    TypeError
        This is no run.
    ValueError
        That many refreshes are no sense.

    Notes
    -----
    A refresh takes about two milliseconds of a thread of its own, however many rows there are.
    """
    if not isinstance(run, Run):
        msg = f"watch takes a Run, not a {type(run).__name__}: run = plan.start(client), then cs.watch(run)"
        raise TypeError(msg)
    if not 0 < refreshes_per_second <= MOST_REFRESHES_PER_SECOND:
        most = f"{MOST_REFRESHES_PER_SECOND:g}"
        msg = f"refreshes_per_second={refreshes_per_second!r}: it is above 0 and at most {most}"
        raise ValueError(msg)
    return Watch(run, 1 / refreshes_per_second)


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

    def __init__(self, run: Run, every_seconds: float = 1 / REFRESHES_PER_SECOND) -> None:
        self.run = run
        self.refreshes = 0
        self.busy_seconds = 0.0
        self._every_seconds = every_seconds
        self._closed = self._dropped = False
        self._woken = threading.Event()
        self._shown_at = -float("inf")
        self._unheard_since: float | None = None
        self._panel: Panel | None = None
        self._cell = Cell(None, None)
        if not loops.in_notebook():
            self._begin(self._print)
            return
        self._cell = _cell()
        for other in list(_watches):
            if other.replaced_by(self._cell):
                other.drop()
        _watches.add(self)
        if run.state in ENDED:
            for each in self._still():
                _display(each)
            return
        self._panel = Panel(run.plan.mode, stop=self._stop, leave=self._leave, heard=self._heard)
        self._show()
        handles = [
            _display(self._panel.box, text=_PLACEHOLDER),
            _display({"text/html": "", "text/plain": ""}),
        ]
        self._begin(lambda: self._follow(handles))

    def close(self) -> None:
        """Follow the run no longer. It goes on; a table and a picture stay of how it stood.

        Spends: nothing.
        """
        self._closed = True
        self._woken.set()

    def drop(self) -> None:
        """Follow the run no longer, and leave nothing on the page.

        Spends: nothing.
        """
        self._dropped = True
        self.close()

    def replaced_by(self, cell: Cell) -> bool:
        """Whether what this shows has given way to what a cell that was run again shows."""
        return cell.name is not None and cell.name == self._cell.name and cell != self._cell

    def __repr__(self) -> str:
        return self._card().text()

    def _ipython_display_(self) -> None:
        """Show nothing where it is shown already: as the last line of the cell that made it."""
        if not loops.in_notebook():
            print(self)  # noqa: T201 - how IPython in a terminal shows it
        elif self._cell != _cell():
            Watch(self.run, self._every_seconds)

    # the buttons, and what comes back from the page: on the kernel's thread

    def _stop(self) -> None:
        self.run.stop()
        self._at_once()

    def _leave(self) -> None:
        self.run.leave()
        self._at_once()

    def _at_once(self) -> None:
        self._shown_at = -float("inf")
        self._woken.set()

    def _heard(self) -> None:
        if self._panel is not None and self._panel.heard == self.refreshes:
            self._unheard_since = None
            self._woken.set()

    # the thread that follows

    def _begin(self, work: Callable[[], None]) -> None:
        context = contextvars.copy_context()  # output goes to the cell of this moment
        threading.Thread(target=context.run, args=[work], name="claudescale-watch", daemon=True).start()

    def _follow(self, handles: list[Any]) -> None:
        assert self._panel is not None
        while True:
            # Polars raises the interrupt of another cell in whatever thread is collecting.
            with suppress(KeyboardInterrupt):
                self._wait()
                if self._dropped:
                    break
                if self._closed or self.run.state in ENDED:
                    for handle, each in zip(handles, self._still(), strict=True):
                        handle.update(each, raw=True)
                    break
                self._show()
        time.sleep(LINGER_SECONDS)
        if self._unheard_since is None and self._panel.embedded:
            self._panel.close()

    def _wait(self) -> None:
        """Return when it is time to show the run again, or it has ended."""
        while not self._closed and self.run.state not in ENDED:
            now = time.monotonic()
            unheard = 0.0 if self._unheard_since is None else now - self._unheard_since
            left = self._shown_at + watchframe.pause_seconds(unheard, self._every_seconds) - now
            if left <= 0:
                return
            self._woken.wait(min(left, _LOOK_SECONDS))
            self._woken.clear()

    def _show(self) -> None:
        """Tell the widgets how the run goes now."""
        assert self._panel is not None
        begun = time.thread_time()
        self.refreshes += 1
        self._shown_at = time.monotonic()
        pulse = self.run.pulse
        limits = self.run.limits.shared(self.run.plan.share)
        slices = self.run.counts.slices()
        drawn = watchframe.drawn(pulse, *slices, limits, number=self.refreshes)
        first = self._unheard_since is None
        if first:  # before it is told: the answer comes on another thread
            self._unheard_since = self._shown_at
        if not self._panel.show(pulse, drawn) and first:
            self._unheard_since = None
        self.busy_seconds += time.thread_time() - begun

    def _card(self) -> Card:
        run = self.run
        card = watchframe.figures(
            run.pulse, title=run_views.line(run), following=run_views.run_card(run).next
        )
        return replace(card, notes=[*card.notes, *([run_views.why(run)] if run.stopped_by else [])])

    def _still(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what stays: a table and a picture, as notebooks save them."""
        pulse = self.run.pulse
        told = [card for card in (self._card(), watchframe.batches(pulse)) if card is not None]
        table = {"text/html": "".join(card.html() for card in told), "text/plain": told[0].text()}
        return table, self._picture(pulse)._repr_mimebundle_()

    def _picture(self, pulse: Pulse) -> Picture | Down:
        run = self.run
        if run.plan.mode != "live":
            return run.plot.batches()
        limits = run.limits.shared(run.plan.share)
        return watchcharts.still(watchframe.rates(*run.counts.slices(), pulse.minutes), limits)

    # without a notebook

    def _print(self) -> None:
        """Print a line now and then, and the figures at the end, also that of the process."""
        atexit.register(self._print_last)
        while not self._closed and self.run.state not in ENDED:
            if time.monotonic() >= self._shown_at + LINE_SECONDS:
                self._shown_at = time.monotonic()
                print(watchframe.headline(self.run.pulse), flush=True)  # noqa: T201 - what it is for
            self._woken.wait(_LOOK_SECONDS)
        self._print_last()

    def _print_last(self) -> None:
        atexit.unregister(self._print_last)
        if not self._closed:
            self._closed = True
            print(repr(self), flush=True)  # noqa: T201 - what it is for


def _display(shown: Any, *, text: str = "") -> Any:
    """Display something in this cell, and return the handle to what is there."""
    from IPython import display  # noqa: PLC0415 - there only in a kernel

    bundle = shown if isinstance(shown, dict) else {**shown._repr_mimebundle_(), "text/plain": text}
    show: Any = display.display
    return show(bundle, raw=True, display_id=True)


def _cell() -> Cell:
    """Return which cell runs now."""
    from IPython import get_ipython  # noqa: PLC0415 - there only in a kernel

    parent = get_ipython().get_parent()
    return Cell(parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id"))
