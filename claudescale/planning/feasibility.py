"""What a plan may not be: wrong values, and wishes that cannot be met. Raised before anything is sent."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog, prices
from claudescale.errors import ImpossibleBudget, ImpossibleDeadline, PlanError
from claudescale.planning import estimates
from claudescale.prompts.requests import plain
from claudescale.views import card

if TYPE_CHECKING:
    from claudescale.planning.plans import Plan

MODES = ("live", "batch", "hybrid")
AUTO = "auto"
"""The cheapest mode that meets deadline and budget; see `choosing`."""
SPARE_MINUTES = 1.0
"""What it keeps back where it does not wait for that, as it may pay twice."""
_FROM = {
    "pandas.DataFrame": "pl.from_pandas(frame)",
    "pyarrow.Table": "pl.from_arrow(frame)",
    "polars.Series": "frame.to_frame()",
    "builtins.list": "pl.DataFrame(frame), or pl.DataFrame({'text': frame}) where it is one of texts",
    "builtins.dict": "pl.DataFrame(frame)",
}
_MOST = 1e15  # no plan has a larger number
_TRUSTED_DOUBT = 0.5
_SCALED = ("minutes", "minutes_p90", "dollars", "dollars_p90", "input_tokens", "output_tokens")
"""What is less when a part of the rows is left; a batch takes its time whatever its size."""


def check_frame(frame: object) -> None:
    """Raise what is wrong with something that is no Polars frame."""
    if isinstance(frame, pl.DataFrame | pl.LazyFrame):
        return
    kind = f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}"
    hint = _FROM.get(kind, "pl.DataFrame({'text': [...]})")
    msg = f"The frame is a {kind}; claudescale works on Polars frames. Use {hint}."
    raise PlanError(msg)


def check_numbers(given: Plan) -> None:
    """Raise what is wrong with a plan's numbers."""
    if not isinstance(given.mode, str) or given.mode not in {*MODES, AUTO}:
        msg = f"mode={given.mode!r} is not one of {', '.join(map(repr, (*MODES, AUTO)))}."
        raise PlanError(msg)
    if not _number(given.share):
        msg = f"share={given.share!r}: it is the part of the limits this run may use, such as share=0.5."
        raise PlanError(msg)
    if not isinstance(given.pay_twice, bool):
        msg = f"pay_twice={given.pay_twice!r}: it is True or False."
        raise PlanError(msg)
    if given.budget is not None and not (_number(given.budget) and given.budget > 0):
        msg = f"budget={given.budget!r}: it is in dollars and above 0, such as budget=5.0."
        raise PlanError(msg)
    whole = isinstance(given.concurrency, int) and not isinstance(given.concurrency, bool)
    if given.concurrency is not None and not (whole and given.concurrency >= 1):
        msg = f"concurrency={given.concurrency!r}: it is the most calls in flight, a whole number from 1 on."
        raise PlanError(msg)
    minutes = minutes_of(given.deadline)
    if minutes is not None and not minutes > 0:
        msg = f"deadline={given.deadline!r}: it is the minutes the run may take, above 0, or a timedelta."
        raise PlanError(msg)
    if given.mode == "hybrid" and minutes is None:
        msg = (
            "mode='hybrid' is a batch until the deadline would be missed, so it needs one: deadline=90 "
            "(minutes). Without a deadline use mode='batch'."
        )
        raise PlanError(msg)


def check_charges(plan: Plan) -> None:
    """Raise what is wrong with a budget where the API runs tools: its worst case has to be known and fit."""
    charges = plan.compiled.charges
    if charges.searches != 0 and prices.price(plan.facts).search is None:
        msg = f"What a web search costs with {plan.facts.id} is not known. Leave the web_search tool out."
        raise PlanError(msg)
    if plan.budget is None:
        return
    if charges.searches is None:
        msg = (
            "a budget needs to know the most searches of a row: give the web_search tool a 'max_uses', "
            "such as 'max_uses': 3."
        )
        raise PlanError(msg)
    geography = prices.worst_geography(charges.inference_geo)
    mode: catalog.Mode = "live" if plan.mode == "live" else "batch"
    price = prices.price(plan.facts, mode=mode, inference_geo=geography)
    most = prices.most_with_tools(price, plan.facts, plan.max_tokens, charges)
    if most is not None and most > plan.budget:
        msg = (
            f"With these tools one row can cost up to {card.dollars(most)} ({charges.turns} turns of the "
            f"model, each with up to {plan.facts.context_tokens:,} input tokens), and the budget is "
            f"{card.dollars(plan.budget)}. No row could be sent. Use a larger budget, a smaller "
            "'max_uses' with 'allowed_callers': ['direct'], or no budget."
        )
        raise ImpossibleBudget(msg)


def check_prices(given: Plan) -> None:
    """Raise where a plan asks for something that takes prices, and its model has none."""
    facts = given.facts
    if not facts.given or facts.given_dollars is not None:
        return
    asked = f"budget={given.budget!r}" if given.budget is not None else f"mode={given.mode!r}"
    if given.budget is not None or given.mode == AUTO:
        msg = (
            f"{asked} needs the prices of {facts.id!r}, dollars per million tokens: "
            f"model=cs.Model({facts.id!r}, input_dollars=..., output_dollars=...)."
        )
        raise PlanError(msg)


def rows_of(n: object, name: str = "n") -> int:
    """Return how many rows are asked for; PlanError where that is no number of rows."""
    rows = plain(n, whole=True)
    if type(rows) is not int or rows < 0:
        msg = f"{name}={n!r}: it is how many rows, a whole number from 0 on, such as int(...)."
        raise PlanError(msg)
    return rows


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST < value < _MOST


def minutes_of(deadline: float | timedelta | datetime | None) -> float | None:
    """Return a deadline in minutes."""
    if isinstance(deadline, timedelta):
        return deadline.total_seconds() / 60
    if deadline is not None and not _number(deadline):
        msg = f"deadline={deadline!r}: give the minutes the run may take, or a timedelta(hours=...)."
        raise PlanError(msg)
    return deadline  # type: ignore[return-value]  # a datetime was refused


def check(plan: Plan, *, part: float = 1.0) -> dict[str, Any]:
    """Return what part of a plan takes in its mode, as a row of `OPTIONS`; raise where that is not allowed.

    Parameters
    ----------
    plan : Plan
        Any.
    part : float
        The part of it that is still to be sent: what the ledger has is paid for.

    Raises
    ------
    RequestTooLarge, ImpossibleDeadline, ImpossibleBudget
        Nothing was sent.
    """
    option = estimates.option(plan.options, plan.mode)
    scaled = _SCALED if plan.mode == "live" else _SCALED[2:]
    option |= {name: option[name] * part for name in scaled}
    minutes, dollars = option["minutes"], option["dollars"]
    deadline = minutes_of(plan.deadline)
    if plan.mode == "hybrid":
        _check_hybrid(plan, part, deadline or 0.0)
    elif deadline is not None and minutes > deadline:
        msg = (
            f"These rows take about {card.duration(minutes)} in mode={plan.mode!r}, bound by "
            f"{option['binding']} ({plan.limits.source}), and the deadline is "
            f"{card.duration(deadline)}. Allow deadline={math.ceil(minutes)} (minutes), a higher tier, or "
            "fewer rows: plan.head(n)."
        )
        raise ImpossibleDeadline(msg)
    if plan.budget is not None and dollars * (1 - min(plan.expected.doubt, _TRUSTED_DOUBT)) > plan.budget:
        rows = int(plan.totals.rows * part * plan.budget / dollars)
        basis = "" if plan.expected.calls else " (their length is guessed: calibrate with a pilot)"
        fewer = f": enough for about {rows:,} rows. Use plan.head({rows}), or a" if rows else ". Use a"
        msg = (
            f"These rows cost about {card.dollars(dollars)}{basis}, and the budget is "
            f"{card.dollars(plan.budget)}{fewer} larger budget."
        )
        raise ImpossibleBudget(msg)
    return option


def spare_minutes(plan: Plan) -> float:
    """Return how long before its deadline a hybrid run should have sent the rest live."""
    return SPARE_MINUTES if plan.pay_twice else estimates.CANCEL_MINUTES


def _check_hybrid(plan: Plan, part: float, deadline: float) -> None:
    """Raise where the deadline leaves no time to send everything live, if the batch comes to nothing."""
    live = estimates.option(plan.options, "live")["minutes_p90"] * part
    spare = spare_minutes(plan)
    needed = live + spare
    if deadline >= needed:
        return
    alone = "mode='live', which is in time, " if live <= deadline else ""
    msg = (
        f"Live these rows take up to {card.duration(live)} ({plan.limits.source}), and a hybrid run keeps "
        f"{card.duration(spare)} for canceling the batch; the deadline is "
        f"{card.duration(deadline)}. Use {alone}deadline={math.ceil(needed)} (minutes) or more, a higher "
        "tier, or fewer rows: plan.head(n)."
    )
    raise ImpossibleDeadline(msg)
