"""The widgets of a watched run: progress and buttons, the live picture, figures. They know no run.

They are made once and then only told new values: nothing is displayed anew, so nothing loses the focus.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from claudescale.widgets import watchcharts, watchframe

if TYPE_CHECKING:
    from collections.abc import Callable

    from claudescale.running.meter import Pulse

_STOP = "Send nothing more. What is in flight is awaited and kept; the same plan run again sends the rest."
_STOP_BATCHES = "Send nothing more and cancel the batches. What is answered by then is paid for and kept."
_LEAVE = "Send nothing more and let the batches go on at the API. The same plan run again collects them."
_WIDTH = "700px"
EMBED_SECONDS, LONGEST_EMBED_SECONDS = 0.5, 5.0
"""After a page has made the live picture it needs that long before it can be told anything; and how long to
wait for it to be made, where the kernel is too busy to hear of that."""


class Panel:
    """What is shown of a run while it goes on.

    Parameters
    ----------
    mode : str
        Of the plan. A batch has no rates to draw; one that may have batches can be left.
    stop, leave : callable
        What the buttons do.
    heard : callable
        Called when a page has drawn the newest picture.

    Attributes
    ----------
    box : ipywidgets.VBox
        To be displayed.
    """

    def __init__(
        self,
        mode: str,
        *,
        stop: Callable[[], None],
        leave: Callable[[], None],
        heard: Callable[[], None],
    ) -> None:
        import ipywidgets as widgets  # noqa: PLC0415 - slow, and only where there is a notebook

        self._bar = widgets.HTML(layout=widgets.Layout(flex="1 1 0%", min_width="0"))
        self._figures, self._batches = widgets.HTML(), widgets.HTML()
        tip = _STOP if mode == "live" else _STOP_BATCHES
        self._buttons = {"stop": _button(widgets, "Stop", tip, stop)}
        if mode != "live":
            self._buttons["leave"] = _button(widgets, "Leave", _LEAVE, leave)
        self._chart: Any = None if mode == "batch" else watchcharts.live()
        self._made_at = time.monotonic()
        self._embedded_at: float | None = None
        if self._chart is not None:
            self._chart.params.observe(lambda _: self._hear(heard), "heard")
        head = widgets.HBox(
            [self._bar, *self._buttons.values()], layout=widgets.Layout(align_items="center", grid_gap="6px")
        )
        chart = [self._chart] if self._chart is not None else []
        layout = widgets.Layout(max_width=_WIDTH, overflow="visible")
        self.box = widgets.VBox([head, *chart, self._figures, self._batches], layout=layout)

    @property
    def embedded(self) -> bool:
        """Whether a page has made all that it is going to make."""
        return self._chart is None or self._embedded_at is not None

    @property
    def heard(self) -> int:
        """The number of the picture that a page has drawn last; 0 where none has yet."""
        return self._chart.params.heard or 0 if self._chart is not None else 0

    def _hear(self, heard: Callable[[], None]) -> None:
        if not self._chart.params.heard:  # a page has just made it
            self._embedded_at = time.monotonic()
        else:
            heard()

    def show(self, pulse: Pulse, drawn: dict[str, Any]) -> bool:
        """Tell the widgets how the run goes, and return whether the picture was told, too.

        What reads the same is not sent again.
        """
        self._bar.value = _close_set(watchframe.bar(pulse))
        self._figures.value = _close_set(watchframe.figures(pulse).html())
        card = watchframe.batches(pulse)
        self._batches.value = _close_set(card.html()) if card else ""
        for asked, button in self._buttons.items():
            button.disabled = pulse.asked in {"stop", asked}
        now = time.monotonic()
        ready_at = self._made_at + LONGEST_EMBED_SECONDS
        if self._embedded_at is not None:
            ready_at = self._embedded_at + EMBED_SECONDS
        if self._chart is None or now < ready_at:
            return False
        self._chart.params.state = drawn
        return True

    def close(self) -> None:
        """Take the widgets off the page, and out of the page's and the kernel's memory."""
        chart = [self._chart] if self._chart is not None else []
        for each in (*self.box.children[0].children, *chart, *self.box.children, self.box):
            each.close()


def _close_set(html: str) -> str:
    """Return HTML with lines as close as in a notebook's other output: a widget's are as high as a button."""
    return f'<div style="line-height:1.4">{html}</div>'


def _button(widgets: Any, name: str, tip: str, work: Callable[[], None]) -> Any:
    button = widgets.Button(
        description=name, tooltip=tip, layout=widgets.Layout(width="auto", flex="0 0 auto")
    )
    button.on_click(lambda _: work())
    return button
