"""The pictures of a cascade and of its run: which frames go into which chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from claudescale.evidence import passing
from claudescale.planning import choices

if TYPE_CHECKING:
    from claudescale.evidence.cascaderuns import CascadeRun
    from claudescale.evidence.cascades import Cascade
    from claudescale.views.theme import Shown


class CascadePlots:
    """The pictures of a cascade that has not run; each is a `claudescale.views.run_charts.Shown`."""

    def __init__(self, cascade: Cascade) -> None:
        self._cascade = cascade

    def shares(self) -> Shown:
        """Return dollars against the share that goes on, with every row on each model. Spends: nothing."""
        from claudescale.views import cascadecharts  # noqa: PLC0415  # altair is slow to import

        cascade = self._cascade
        mode = choices.resolved(next(iter(cascade.plans.values()))).mode
        ways = cascade.options.filter(mode=mode)[1:]
        first = cascade.passings[0]
        measured = () if first.share is None else (first.interval.low, first.share, first.interval.high)
        curve = passing.curve(cascade.priced, cascade.passings, mode)
        return cascadecharts.shares(curve, ways, measured=measured)


class CascadeRunPlots:
    """The pictures of a cascade's run; each is a `claudescale.views.run_charts.Shown`."""

    def __init__(self, run: CascadeRun) -> None:
        self._run = run

    def bill(self) -> Shown:
        """Return what each model cost, next to every row on each, and the rows accepted. Spends: nothing."""
        from claudescale.views import cascadecharts  # noqa: PLC0415  # altair is slow to import

        run = self._run
        return cascadecharts.bill(run.bill, run.table, simulated=run.simulated)
