"""`mode="auto"`: the cheapest way that meets deadline and budget nine times in ten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from claudescale.errors import ImpossibleBudget, ImpossibleDeadline
from claudescale.planning import choices, estimates, feasibility
from claudescale.views import card

if TYPE_CHECKING:
    from claudescale.planning.plans import Plan

CONFIDENCE = 0.9
"""With which the deadline and the budget are met: the 90th percentiles of `OPTIONS`."""


def resolved(plan: Plan) -> Plan:
    """Return the plan with a mode of its own instead of ``"auto"``.

    Spends: nothing.

    Raises
    ------
    ImpossibleDeadline, ImpossibleBudget
        No mode will do; the message says the nearest that would.
    """
    return plan if plan.mode != feasibility.AUTO else plan.replace(mode=chosen(plan))


def chosen(plan: Plan) -> str:
    """Return the mode that ``"auto"`` stands for.

    Spends: nothing.
    """
    options = plan.options
    deadline, budget = feasibility.minutes_of(plan.deadline), plan.budget
    if deadline is not None:
        options = _in_time(plan, options, deadline)
    if budget is not None:
        options = _within(options, budget)
    # Of two that cost the same the quicker one.
    return str(choices.frontier(options).filter("frontier").sort("dollars", "minutes_p90")["mode"][0])


def _in_time(plan: Plan, options: pl.DataFrame, deadline: float) -> pl.DataFrame:
    live = estimates.option(options, "live")["minutes_p90"]
    hybrid = pl.col("mode") == "hybrid"
    fits = pl.when(hybrid).then(live + feasibility.spare_minutes(plan) <= deadline)
    found = options.filter(fits.otherwise(pl.col("minutes_p90") <= deadline))
    if found.is_empty():
        msg = (
            f"No mode is surely done within {card.duration(deadline)}: the quickest, live, takes up to "
            f"{card.duration(live)} ({plan.limits.source}). Allow deadline={live + 1:.0f} (minutes), take "
            "a higher tier, or fewer rows: plan.head(n)."
        )
        raise ImpossibleDeadline(msg)
    return found


def _within(options: pl.DataFrame, budget: float) -> pl.DataFrame:
    found = options.filter(pl.col("dollars_p90") <= budget)
    if found.is_empty():
        cheapest = options.sort("dollars_p90").row(0, named=True)
        needed, mode = card.dollars(cheapest["dollars_p90"]), cheapest["mode"]
        msg = (
            f"No mode that is in time surely costs at most {card.dollars(budget)}: {mode!r} costs up to "
            f"{needed}. Allow that as budget, or a later deadline, or calibrate with a pilot, which narrows "
            "the span."
        )
        raise ImpossibleBudget(msg)
    return found
