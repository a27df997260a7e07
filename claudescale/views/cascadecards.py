"""How a cascade looks before and after it has run, as one `Card` each."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from claudescale.api import prices
from claudescale.errors import PlanError
from claudescale.evidence import passing
from claudescale.planning import choices
from claudescale.views import card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from claudescale.evidence.cascaderuns import CascadeRun
    from claudescale.evidence.cascades import Cascade
    from claudescale.planning.plans import Plan

_INVENTED = (
    "The simulator's models differ by invented skills: the shares that go on say nothing of the real ones."
)
_WHY = {
    "not_accepted": "not accepted",
    "invalid_reply": "invalid",
    "refused": "refused",
    "truncated": "cut off",
    "errors": "errors",
}


def cascade_card(cascade: Cascade) -> card.Card:
    """Return what is shown of a cascade."""
    first = next(iter(cascade.plans.values()))
    try:
        mode = choices.resolved(first).mode
        options = cascade.options.filter(mode=mode)
        totals = cascade.priced[0].totals
    except PlanError as error:
        return card.Card(title=f"Cascade that cannot be run: {error}", header=(), rows=())
    rows = list(options.iter_rows(named=True))
    measured = cascade.passings[0].asked > 0
    live = "" if mode == "live" else ".replace(mode='live')"
    return card.Card(
        title=f"Cascade: {totals.rows:,} rows, {' → '.join(cascade.models)}. Nothing is sent yet.",
        header=(mode, "dollars", "time", f"of {rows[-1]['way']}"),
        rows=[_way(row, rows[-1]["dollars"]) for row in rows],
        notes=(
            f"On goes {cascade.acceptance.told}.",
            _shares(cascade) if measured else _unknown(rows[0]),
            *_breaking_even(rows[0], cascade),
            *_budget(first, cascade, mode),
            *_order(cascade.priced, mode),
            *(["Each model's batches may take up to 24 h."] if mode == "batch" else []),
        ),
        next="run = await cascade.run(client)"
        if measured
        else f"pilot = await cascade.sample(50){live}.run(client); cascade = cascade.calibrate(pilot)",
    )


def _way(row: Mapping[str, Any], last: float) -> tuple[str, ...]:
    low, high = card.dollars(row["dollars_low"]), card.dollars(row["dollars_high"])
    shown = card.span(low, high)
    times = card.span(card.duration(row["minutes_low"]), card.duration(row["minutes_high"]))
    if row["way"] == passing.CASCADE and row["dollars"] is not None:
        shown = f"{card.dollars(row['dollars'])} ({shown})"
        times = f"{card.duration(row['minutes'])} ({times})"
    known = row["dollars"] is not None and math.isfinite(row["dollars"]) and math.isfinite(last) and last
    share = f"{row['dollars'] / last:.0%}" if known else ""
    return row["way"], shown, times, share


def _unknown(row: Mapping[str, Any]) -> str:
    low, high = card.dollars(row["dollars_low"]), card.dollars(row["dollars_high"])
    return f"How many rows go on is not known yet: {low} if none does, up to {high} if all do at each model."


def _shares(cascade: Cascade) -> str:
    told = []
    for model, each in zip(cascade.models[:-1], cascade.passings, strict=False):
        if each.share is None:
            told.append(f"from {model} not known")
            continue
        low, high = each.interval
        told.append(
            f"from {model} {each.share:.0%} ({low:.0%} to {high:.0%}; {each.went_on:,} of {each.asked:,})"
        )
    return f"Goes on, as a pilot measured it, with {passing.CONFIDENCE:.0%} intervals: {', '.join(told)}."


def _breaking_even(row: Mapping[str, Any], cascade: Cascade) -> list[str]:
    unknown = [plan.facts.id for plan in cascade.priced if not prices.price(plan.facts).is_known]
    if unknown:
        return [f"Where it breaks even is not known without the prices of {unknown[0]}."]
    last, share = cascade.models[-1], row["break_even"]
    if share is None:
        return [f"It is never cheaper than every row on {last}."]
    at = f"from {cascade.models[0]}" if cascade.passings[0].asked else "from each model"
    return [f"Break-even: as dear as every row on {last} where {share:.0%} of the rows go on {at}."]


def _budget(first: Plan, cascade: Cascade, mode: str) -> list[str]:
    if first.budget is None:
        return []
    share = passing.budget_share(cascade.priced, cascade.passings, mode, first.budget)
    enough = "not enough for the first model" if share is None else f"enough while at most {share:.0%} go on"
    return [f"Budget: {card.dollars(first.budget)} for all models together, {enough}."]


def _order(plans: Sequence[Plan], mode: str) -> list[str]:
    """Return a note where rows go on to a model that is no dearer than the one before."""
    each = [(plan.facts.id, passing.takes(plan, mode, 1.0)["dollars"]) for plan in plans]
    return [
        f"{later} is no dearer than {earlier}, which is asked before it."
        for (earlier, dear), (later, cheap) in pairwise(each)
        if cheap <= dear
    ]


# ---------------------------------------------------------------------------------------------- of a run

_UNDER_WAY = ("starting", "running")


def no_time(deadline: float, kept: float, cascade: Cascade) -> str:
    """Return why no time is left for a model."""
    if not kept:
        return "Nothing is left of the deadline."
    how = "all of them, as no pilot has told how many" if not cascade.passings[0].asked else "by the pilot"
    return (
        f"The deadline is {card.duration(deadline)}, and {card.duration(kept)} of it are kept to send "
        f"live the rows that go on ({how}). Calibrate with a pilot, allow a later deadline, or take a higher "
        "tier."
    )


def step_line(number: int, run: CascadeRun) -> str:
    """Return which model is asked next, and why."""
    of = f"Model {number + 1} of {len(run.cascade.models)}, {run.cascade.models[number]}"
    if not number:
        return f"{of}: every row."
    row = run.table.row(-1, named=True)
    return f"{of}: {row['rows'] - row['accepted']:,} rows that {row['model']} did not settle ({_why(row)})."


def _why(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{row[name]:,} {word}" for name, word in _WHY.items() if row[name])


def line(run: CascadeRun) -> str:
    """Return the one line of truth about a cascade's run."""
    counts = run.steps[0].run.counts
    settled = sum(step.reasons.null_count() for step in run.steps if step.reasons is not None)
    settled -= counts.rows - counts.sent if settled else 0
    by = f" ({run.stopped_by})" if run.stopped_by else ""
    rest = f", {counts.sent - settled:,} not" if run.state != "running" and settled < counts.sent else ""
    now = f", {run.steps[-1].model} is asked now" if run.state == "running" else ""
    return (
        f"{'SIMULATED ' * run.simulated}Cascade {run.state}{by}: {settled:,} of {counts.sent:,} rows accepted"
        f"{rest}{now}; {card.dollars(run.dollars)} paid by this run in {card.duration(run.minutes)}."
    )


def run_card(run: CascadeRun) -> card.Card:
    """Return what is shown of a cascade's run."""
    ended = run.state not in _UNDER_WAY
    rows = [_row(row) for row in run.table.iter_rows(named=True)]
    path = run.steps[0].run.path
    kept = f"Ledger: {path.name}." if path else "Ledger: none, replies are kept in memory only."
    return card.Card(
        title=line(run),
        header=("model", "rows", "accepted", "goes on", "why", "dollars"),
        rows=rows,
        notes=(
            *(_compared(run) if ended else []),
            *([f"{run.message} The same cell again sends only what is missing."] if run.message else []),
            kept,
            *([_INVENTED] if run.simulated else []),
        ),
        next="run.results"
        if run.state == "finished"
        else "run = await cascade.run(client)"
        if ended
        else "await run",
    )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["accepted"] is None:
        return row["model"], f"{row['rows']:,}", "", "", "", card.dollars(row["dollars"])
    share = "" if row["share"] is None else f"{row['share']:.1%}"
    missing = [f"{row['missing']:,} missing"] if row["missing"] else []
    why = ", ".join([*filter(None, [_why(row)]), *missing])
    return (
        row["model"],
        f"{row['rows']:,}",
        f"{row['accepted']:,}",
        share,
        why,
        card.dollars(row["dollars"]),
    )


def _compared(run: CascadeRun) -> list[str]:
    """Return what the cascade cost next to the other ways."""
    own, *others = run.bill.iter_rows(named=True)
    told = [
        f"{card.dollars(own['dollars'])} {'in all' if run.state == 'finished' else 'so far'}; "
        + ", ".join(f"{other['way']} {card.dollars(other['dollars'])}" for other in others)
        + "."
    ]
    last = others[-1]
    if run.state == "finished" and own["share"] is not None:
        told.append(f"That is {own['share']:.0%} of {last['way']}, which is {last['basis']}.")
    return told
