"""How many rows a cascade passes on, and what it therefore costs next to each of its models alone.

Pure arithmetic over plans and runs; nothing is sent.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.errors import PlanError
from claudescale.evidence.intervals import Interval, wilson
from claudescale.planning import choices, estimates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from claudescale.planning.estimates import Totals
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run

CASCADE = "cascade"
CONFIDENCE = 0.95
"""Of the intervals of the shares that go on."""

_NUMBER = pl.Float64()
OPTIONS = pl.Schema(
    dict.fromkeys(("way", "mode"), pl.String())
    | dict.fromkeys(("dollars_low", "dollars", "dollars_high"), _NUMBER)
    | dict.fromkeys(("minutes_low", "minutes", "minutes_high"), _NUMBER)
    | {"break_even": _NUMBER}
)
"""Columns of `Cascade.options`, a row for each way and mode.

A way is the cascade, or every row on one of its models. Low is as few rows going on as may be, high is as
many as may be, at the 90th percentile of tokens and of time; what is between is null while the share that
goes on is not known. `break_even` is the share going on from the first model at which the cascade is as dear
as every row on the last one; null where it is never cheaper. From later models goes on what a pilot measured
of them; before a pilot, the same share as from the first."""

BILL = pl.Schema(
    {"way": pl.String(), "rows": pl.Int64(), "dollars": _NUMBER, "share": _NUMBER}
    | {"estimated": pl.Boolean(), "basis": pl.String()}
)
"""Columns of `CascadeRun.bill`: the cascade, then every row on each of its models. `dollars` are those of the
replies, also where an earlier run paid for them; `share` is that of every row on the last model."""

CURVE = pl.Schema({"share": _NUMBER, "dollars": _NUMBER})
"""Columns of `curve`."""

_BISECTIONS = 60
_CURVE_POINTS = 101


class Passing(NamedTuple):
    """How many distinct requests a model was asked, and how many of them went on.

    `weight` is what a request that reaches the model costs there, for one of all the rows.
    """

    asked: int = 0
    went_on: int = 0
    weight: float = 1.0

    @property
    def share(self) -> float | None:
        """The share that goes on; None where none was asked."""
        return self.went_on / self.asked if self.asked else None

    @property
    def interval(self) -> Interval:
        """The interval of that share, at `CONFIDENCE`; from nothing to everything where none was asked."""
        return wilson(self.went_on, self.asked, CONFIDENCE)


def reaching(passings: Sequence[Passing], share: Callable[[Passing], float | None]) -> list[float | None]:
    """Return what part of all requests reaches each model; None where that is not known.

    Examples
    --------
    >>> reaching([Passing(100, 20), Passing(20, 5), Passing(5, 5)], lambda each: each.share)
    [1.0, 0.2, 0.05]
    """
    parts: list[float | None] = [1.0]
    for passing in passings[:-1]:
        found, before = share(passing), parts[-1]
        parts.append(0.0 if before == 0 else None if before is None or found is None else before * found)
    return parts


# ------------------------------------------------------------------------------------- before it is run


def options(plans: Sequence[Plan], passings: Sequence[Passing]) -> pl.DataFrame:
    """Return what a cascade takes in each mode, and every row on each of its models, as `OPTIONS`."""
    rows = []
    for mode in plans[0].options["mode"]:
        rows.append(_cascade(plans, passings, mode))
        for plan in plans:
            takes = estimates.option(plan.options, mode)
            rows.append(
                {"way": all_on(plan), "mode": mode}
                | {f"{name}_low": takes[name] for name in ("dollars", "minutes")}
                | {name: takes[name] for name in ("dollars", "minutes")}
                | {f"{name}_high": takes[f"{name}_p90"] for name in ("dollars", "minutes")}
            )
    return pl.DataFrame(rows, schema=OPTIONS)


def all_on(plan: Plan) -> str:
    """Return the name of the way that has every row on one model."""
    return f"all on {plan.facts.id}"


def _cascade(plans: Sequence[Plan], passings: Sequence[Passing], mode: str) -> dict[str, Any]:
    weights = [passing.weight for passing in passings]
    low = reaching(passings, lambda each: each.interval.low)
    usual = reaching(passings, lambda each: each.share)
    high = reaching(passings, lambda each: each.interval.high)
    each = _weighed(plans, passings, mode)
    last = estimates.option(plans[-1].options, mode)["dollars"]
    return {
        "way": CASCADE,
        "mode": mode,
        "dollars_low": _sum(plans, low, weights, mode, "dollars"),
        "dollars": _sum(plans, usual, weights, mode, "dollars"),
        "dollars_high": _sum(plans, high, weights, mode, "dollars_p90"),
        "minutes_low": _sum(plans, low, weights, mode, "minutes"),
        "minutes": _sum(plans, usual, weights, mode, "minutes"),
        "minutes_high": _sum(plans, high, weights, mode, "minutes_p90"),
        "break_even": even_share(each, last, _later(passings)),
    }


def _weighed(plans: Sequence[Plan], passings: Sequence[Passing], mode: str) -> list[float]:
    """Return the dollars of each model, if every row reached it and were as long as those that do."""
    pairs = zip(plans, passings, strict=True)
    return [float(takes(plan, mode, 1.0, each.weight)["dollars"]) for plan, each in pairs]


def curve(plans: Sequence[Plan], passings: Sequence[Passing], mode: str) -> pl.DataFrame:
    """Return a cascade's dollars by the share that goes on from its first model, as `CURVE`."""
    each = _weighed(plans, passings, mode)
    points = [number / (_CURVE_POINTS - 1) for number in range(_CURVE_POINTS)]
    later = _later(passings)
    return pl.DataFrame([(share, _cost(each, share, later)) for share in points], schema=CURVE, orient="row")


def budget_share(
    plans: Sequence[Plan], passings: Sequence[Passing], mode: str, budget: float
) -> float | None:
    """Return up to which share going on from the first model a budget is enough; None if never."""
    return even_share(_weighed(plans, passings, mode), budget, _later(passings))


def _later(passings: Sequence[Passing]) -> list[float | None]:
    """Return the shares going on from the models after the first, None where a pilot has not told them."""
    return [passing.share for passing in passings[1:-1]]


def _cost(dollars: Sequence[float], share: float, later: Sequence[float | None]) -> float:
    """Return what a cascade costs by the share going on from its first model, from later ones if known."""
    first, *others = dollars
    cost, part = first, share
    for each, on in zip_longest(others, later):
        cost += each * part
        part *= share if on is None else on
    return cost


def _sum(
    plans: Sequence[Plan], parts: Sequence[float | None], weights: Sequence[float], mode: str, name: str
) -> float | None:
    """Return what all steps take together, one after another; None where a part is not known."""
    if None in parts:
        return None
    found = [
        takes(plan, mode, part or 0.0, weight)[name]
        for plan, part, weight in zip(plans, parts, weights, strict=True)
    ]
    deadline = choices.minutes_of(plans[0].deadline) if mode == "hybrid" else None
    whole = float(sum(found))
    return min(whole, deadline) if deadline is not None and name.startswith("minutes") else whole


def takes(plan: Plan, mode: str, part: float, weight: float = 1.0) -> dict[str, Any]:
    """Return what part of a plan's requests takes in a mode, as a row of `estimates.OPTIONS`.

    Parameters
    ----------
    part : float
        Of the requests.
    weight : float
        How dear one of them is, for one of all.
    """
    totals = plan.totals
    amounts = ("input_tokens", "cache_read_tokens", "output_tokens", "live_dollars", "batch_dollars")
    scaled = {name: getattr(totals, name) * part * weight for name in amounts}
    of_part = totals._replace(**scaled, requests=math.ceil(totals.requests * part))
    limits = plan.limits.shared(plan.share)
    deadline = choices.minutes_of(plan.deadline)
    found = estimates.options(of_part, limits, plan.expected, plan.concurrency, deadline)
    return estimates.option(found, mode)


def even_share(dollars: Sequence[float], target: float, later: Sequence[float | None] = ()) -> float | None:
    """Return the share going on from the first model at which a cascade costs `target`; None if it is dearer.

    Parameters
    ----------
    dollars : sequence of float
        Of every row on each model, in the order they are asked.
    later : sequence of float or None
        The shares going on from the models after the first; None is the same as from the first.

    Examples
    --------
    >>> round(even_share([1.0, 4.0], 4.0), 6)
    0.75
    >>> even_share([4.0, 1.0], 1.0) is None
    True
    """
    low, high = 0.0, 1.0
    if _cost(dollars, low, later) >= target:
        return None
    if _cost(dollars, high, later) <= target:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(dollars, middle, later) < target else (low, middle)
    return low


def reserve_minutes(plans: Sequence[Plan], passings: Sequence[Passing], number: int, part: float) -> float:
    """Return the minutes that the models after one need to be surely done live, if many of its rows go on.

    Parameters
    ----------
    number : int
        Of the model that is asked now, counted from 0.
    part : float
        Of all requests, what reaches it.
    """
    minutes = 0.0
    for here, plan in zip(passings[number:], plans[number + 1 :], strict=False):
        part *= here.interval.high
        if part:
            found = takes(plan, "live", part, here.weight)["minutes_p90"]
            minutes += found + estimates.CANCEL_MINUTES
    return minutes


# -------------------------------------------------------------------------------------- after it was run


def learned(whole: Plan, run: Run | None, asked: int, went_on: int) -> tuple[Plan, Passing]:
    """Return a plan over all rows of a pilot, measured, and how many of the pilot's rows went on.

    The plan is as it was where the pilot has no replies of its model. What reaches a model may be longer than
    the rest: its input and its reply are estimated for each row by the row's own length.
    """
    passing = Passing(asked, went_on)
    if run is None:
        return whole, passing
    try:
        measured = whole.calibrate(run)
    except PlanError:
        return whole, passing
    paid = run.replies.filter(pl.col("dollars") > 0)
    each = dollars_as(measured.totals, paid) / max(measured.totals.requests, 1)
    return measured, passing._replace(weight=float(paid["dollars"].sum()) / paid.height / each)


def dollars_as(totals: Totals, replies: pl.DataFrame) -> float:
    """Return the dollars of a plan sent as the replies were: live, by batch, or partly so."""
    part = replies.select((pl.col("mode") == "batch").mean()).item() or 0.0
    return float(part * totals.batch_dollars + (1 - part) * totals.live_dollars)


def bill(wholes: Sequence[Plan], runs: Sequence[Run], *, so_far: str = "") -> pl.DataFrame:
    """Return what a cascade cost next to every row on each of its models, as `BILL`.

    Parameters
    ----------
    wholes : sequence of Plan
        All rows of the cascade on each model.
    runs : sequence of Run
        Of each model that was asked, in their order.
    so_far : str
        What stands behind "paid" where not every row has had its last model.
    """
    paid = [float(run.replies["dollars"].sum()) for run in runs]
    totals = wholes[0].totals
    rows = totals.rows - totals.unsent
    ways: list[tuple[str, float, bool, str]] = [(CASCADE, sum(paid), False, f"paid{so_far}")]
    for number, whole in enumerate(wholes):
        if not number and runs[0].state == "finished":
            ways.append((all_on(whole), paid[0], False, "paid: it was asked about every row"))
        else:
            run = runs[number] if number < len(runs) else None
            ways.append((all_on(whole), *_estimated(whole, run, runs[0])))
    last = ways[-1][1]
    table = [(way, rows, dollars, dollars / last if last else None, *rest) for way, dollars, *rest in ways]
    return pl.DataFrame(table, schema=BILL, orient="row")


def _estimated(whole: Plan, run: Run | None, first: Run) -> tuple[float, bool, str]:
    """Return what every row on a model would have cost, that this is an estimate, and what it rests on."""
    basis = f"estimated from a pilot's {whole.expected.calls:,} replies"
    if not whole.expected.calls:
        basis = "guessed from characters: no row has reached it"
    if run is not None:
        with suppress(PlanError):  # it has no replies to learn from
            whole = whole.calibrate(run)
            calls = whole.expected.calls
            replies = "one reply" if calls == 1 else f"{calls:,} replies"
            basis = f"estimated from its {replies} and each row's length"
    return dollars_as(whole.totals, first.replies), True, basis
