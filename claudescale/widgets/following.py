"""A run seen below a picker's controls while it goes on, with the widgets of `cs.watch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from claudescale.widgets import watchframe, watchpanel

if TYPE_CHECKING:
    from claudescale.running.runs import Run
    from claudescale.widgets.pickpanel import Panel


class Following:
    """The widgets of one run, told anew by `show`; `end` leaves a table and a picture in their place.

    Both take time to draw: call them in a thread.
    """

    def __init__(self, run: Run, panel: Panel) -> None:
        self._run, self._panel = run, panel
        self._number = 0
        self._widgets = watchpanel.Panel(run.plan.mode, stop=run.stop, leave=run.leave, heard=lambda: None)
        self.show()
        panel.below(self._widgets.box._repr_mimebundle_())

    def show(self) -> None:
        """Tell the widgets how the run goes now."""
        self._number += 1
        run = self._run
        limits = run.limits.shared(run.plan.share)
        pulse = run.pulse
        self._widgets.show(pulse, watchframe.drawn(pulse, *run.counts.slices(), limits, number=self._number))

    def end(self) -> None:
        """Show what the run came to, in place of the widgets."""
        run = self._run
        picture = run.plot.throughput() if run.plan.mode == "live" else run.plot.batches()
        card = {"text/html": run._repr_html_(), "text/plain": repr(run)}
        self._panel.below(card, picture._repr_mimebundle_())
        self._widgets.close()
