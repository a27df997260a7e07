"""What can be picked for a plan: the choices, what their labels say, and the line of code of a pick.

Pure: no widget is known here, and nothing is sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog, prices
from claudescale.api.limits import Limits
from claudescale.errors import PlanError, UnknownModel, UnknownTier
from claudescale.planning import choices, estimates
from claudescale.views import card as display
from claudescale.views import cards

if TYPE_CHECKING:
    from claudescale.api.catalog import Model
    from claudescale.planning.plans import Plan

MODES = [
    ("live \N{MIDDLE DOT} now, at the tier's pace", "live"),
    ("batch \N{MIDDLE DOT} half the price, within 24 hours", "batch"),
    ("hybrid \N{MIDDLE DOT} a batch, the rest live in time for the deadline", "hybrid"),
    ("auto \N{MIDDLE DOT} the cheapest that keeps deadline and budget", "auto"),
]
"""The label and the name of every mode."""
_FAMILIES = {"today": "Today", "numbered": "Numbered"}
_NO_DOLLARS = 5e-7  # what is left of sums that are the same
_NEXT_TO = " \N{MIDDLE DOT} "


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """What a plan's picker can choose, each under its one name.

    Attributes
    ----------
    model : str
        The model's id, never a dated one.
    tier : str or Limits
        The tier's name, or the limits of the plan that was given.
    deadline : float or None
        Minutes.
    budget : float or None
        Dollars.
    """

    model: str
    tier: str | Limits
    mode: str
    max_tokens: int
    cache: bool
    deadline: float | None
    budget: float | None


NAMES = tuple(field.name for field in fields(Pick))


def of(plan: Plan) -> Pick:
    """Return what is picked in a plan."""
    return Pick(
        model=plan.facts.id,
        tier=plan.tier if isinstance(plan.tier, Limits) else choices.tier_name(plan.tier),
        mode=plan.mode,
        max_tokens=plan.max_tokens,
        cache=bool(plan.cache),
        deadline=choices.minutes_of(plan.deadline),
        budget=plan.budget,
    )


def changes(given: Plan, pick: Pick) -> dict[str, Any]:
    """Return in what a pick differs from the plan that was given, as `Plan.replace` takes it."""
    own = of(given)
    changed = {name: getattr(pick, name) for name in NAMES if getattr(pick, name) != getattr(own, name)}
    if isinstance(tier := changes_tier(changed), int):
        changed["tier"] = tier
    return changed


def changes_tier(changed: dict[str, Any]) -> Any:
    """Return a changed tier as one writes it: the numbered ones as numbers."""
    tier = changed.get("tier")
    bare = tier.removeprefix("tier ") if isinstance(tier, str) else ""
    return int(bare) if bare.isdigit() else tier


def made(given: Plan, pick: Pick) -> Plan:
    """Return the plan of a pick; the rows are not read again.

    Raises
    ------
    PlanError
        There can be no such plan.
    """
    changed = changes(given, pick)
    return given.replace(**changed) if changed else given


def found_out(plan: Plan) -> dict[str, Any]:
    """Return what is known of a plan's calls by measuring, as `Plan.replace` takes it."""
    return {"measured": plan.measured, "learned": plan.learned}


def code(given: Plan, pick: Pick, *, piloted: bool = False) -> str:
    """Return the one line that makes the plan of a pick from the plan that was given."""
    changed = ", ".join(f"{name}={_literal(value)}" for name, value in changes(given, pick).items())
    line = f"plan.replace({changed})" if changed else "plan"
    line += ".calibrate(picker.pilot)" if piloted else ""
    return line if line == "plan" else f"plan = {line}"


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else repr(value)  # type: ignore[call-overload]


def number(text: str, name: str, unit: str) -> float | None:
    """Return a number as it was typed; None where nothing was.

    Raises
    ------
    PlanError
        It is no number.

    Examples
    --------
    >>> number(" $1,200.50 ", "budget", "dollars")
    1200.5
    """
    bare = text.strip().removeprefix("$").replace(",", "").strip()
    if not bare:
        return None
    try:
        return float(bare)
    except ValueError:
        msg = f"{name}: {text!r} is no number. Type {unit}, such as 90, or nothing for no {name}."
        raise PlanError(msg) from None


def typed(value: float | None) -> str:
    """Return a number as one types it, such that `number` gives the same."""
    return "" if value is None else _literal(value)


# the choices and their labels


def models(given: Plan, pick: Pick) -> list[tuple[str, str]]:
    """Return the label and the id of every model that is not retired; one that will not do is marked."""
    usable = [each for each in catalog.MODELS.values() if catalog.lifecycle(each) != "retired"]
    if given.facts not in usable:  # the user's own, or one that was retired
        usable.insert(0, given.facts)
    return [(_model_label(each, _refusal(given, pick, each)), each.id) for each in usable]


def _model_label(model: Model, refusal: str | None) -> str:
    parts = [model.id, model.line.capitalize()]
    if refusal is not None:
        return _NEXT_TO.join([f"\N{MULTIPLICATION SIGN} {model.id}", *parts[1:], refusal])
    price = prices.price(model).steps[0]
    per_million = [display.dollars(each * 1e6) for each in (price.input, price.output)]
    parts.append(f"{per_million[0]} in / {per_million[1]} out per million tokens")
    stage = catalog.lifecycle(model)
    if stage == "deprecated":
        parts.append("deprecated" + (f", retires {model.retires_on}" if model.retires_on else ""))
    elif stage != "active":
        parts.append(stage)
    if model.verified_only:
        parts.append("verified organizations only")
    return _NEXT_TO.join(parts)


def _refusal(given: Plan, pick: Pick, model: Model) -> str | None:
    """Return in a few words why a model will not do what is picked."""
    other = replace(pick, model=model.id, mode="live", deadline=None, budget=None)
    try:
        made(given, other)
        prices.price(model, mode="live"), prices.price(model, mode="batch")
    except UnknownTier:
        return "limits on this tier not published"
    except UnknownModel:
        return "price not known"
    except PlanError:
        return "will not do this plan"
    return None


def tiers(given: Plan, model: str) -> list[tuple[str, str | Limits]]:
    """Return the label and the name of every tier for a model, today's first; limits of one's own above."""
    group = (given.facts if model == given.facts.id else catalog.model(model)).rate_group
    own: list[tuple[str, str | Limits]] = []
    if isinstance(given.tier, Limits):
        label = choices.tier_name(given.tier).capitalize()
        own.append((f"{label}{_NEXT_TO}{given.tier.requests_per_minute:,.0f} requests/min", given.tier))
    for family, title in _FAMILIES.items():
        for tier in catalog.TIERS.values():
            if tier.family != family:
                continue
            rates = tier.limits.get(group)
            allowed = f"{rates.requests_per_minute:,} requests/min" if rates else "limits not published"
            own.append((_NEXT_TO.join([title, tier.name, allowed]), tier.name))
    return own


def cache_hint(plan: Plan) -> str:
    """Return whether the plan's system prompt can be cached."""
    least = plan.facts.cache_minimum_tokens
    if plan.system is None:
        return "no system prompt to cache"
    if least is None:
        return f"from how many tokens on {plan.facts.id} caches is not known"
    enough = plan.compiled.is_cacheable
    return (
        "long enough to be cached"
        if enough
        else f"too short: {plan.facts.id} caches from {least:,} tokens on"
    )


# what a plan takes, in words


def card(plan: Plan) -> display.Card:
    """Return the figures of a plan: what its mode takes in one line, and the table of all modes.

    Raises
    ------
    PlanError
        The plan cannot be priced, or no mode will do for ``mode="auto"``.
    """
    mode = choices.resolved(plan).mode
    found = estimates.option(plan.options, mode)
    named = mode if plan.mode == mode else f"{plan.mode}, which is {mode}"
    cost = display.span(display.dollars(found["dollars"]), display.dollars(found["dollars_p90"]))
    saved = found["dollars_saved"]
    against = f"saves {display.dollars(saved)} against plain calls"
    if saved < _NO_DOLLARS:
        against = (
            "saves nothing"
            if saved > -_NO_DOLLARS
            else f"costs {display.dollars(-saved)} more than plain calls"
        )
    time = display.span(display.duration(found["minutes"]), display.duration(found["minutes_p90"]))
    binding = found["binding"].replace("_", " ")
    title = f"{named.capitalize()}: {cost}, {time}, limited by {binding}; {against}."
    full = cards.plan_card(plan)
    return replace(full, title=title, notes=(*_wishes(plan, mode), *full.notes), next="")


def _wishes(plan: Plan, mode: str) -> list[str]:
    """Return where a deadline or a budget will not, or may not, be kept."""
    found, told = estimates.option(plan.options, mode), []
    deadline = choices.minutes_of(plan.deadline)
    if deadline is not None:
        minutes, late = found["minutes"], found["minutes_p90"]
        if mode == "hybrid":
            late = estimates.option(plan.options, "live")["minutes_p90"] + estimates.CANCEL_MINUTES
            minutes = late
        told += _kept(minutes, late, deadline, f"the deadline of {display.duration(deadline)}")
    if plan.budget is not None:
        about = f"the budget of {display.dollars(plan.budget)}"
        told += _kept(found["dollars"], found["dollars_p90"], plan.budget, about)
    return told


def _kept(usual: float, most: float, wish: float, named: str) -> list[str]:
    if most <= wish:
        return []
    how = "does not keep" if usual > wish else "may not keep"
    return [f"\N{WARNING SIGN} This plan {how} {named}."]


def dollars(plan: Plan) -> tuple[float, float]:
    """Return what a plan should cost and may cost."""
    found = estimates.option(plan.options, choices.mode_of(plan))
    return found["dollars"], found["dollars_p90"]


def run_label(plan: Plan) -> str:
    """Return what stands on the button that runs a plan."""
    found = estimates.option(plan.options, choices.mode_of(plan))
    time = display.span(display.duration(found["minutes"]), display.duration(found["minutes_p90"]))
    return f"Run: about {display.dollars(found['dollars'])}, {time}"


def pilot(plan: Plan, rows: int) -> Plan:
    """Return the plan of a pilot: sampled rows, live, whenever it is done; nothing is sent."""
    return plan.sample(rows).replace(mode="live", deadline=None)


def pilot_rows(plan: Plan, rows: int) -> int:
    """Return how many rows a pilot of so many has.

    Raises
    ------
    PlanError
        It would have none.
    """
    if rows < 1:
        msg = f"Pilot rows: {rows:,} is no pilot. Take 20 or more."
        raise PlanError(msg)
    return min(rows, plan.totals.rows)


def pilot_dollars(plan: Plan, rows: int) -> float:
    """Return what a pilot of so many rows should cost: its part of the plan, live."""
    live = float(estimates.option(plan.options, "live")["dollars"])
    return live * pilot_rows(plan, rows) / plan.totals.rows if plan.totals.rows else 0.0


def pilot_label(plan: Plan, rows: int) -> str:
    """Return what stands on the button that starts a pilot."""
    about = display.dollars(pilot_dollars(plan, rows))
    return f"Pilot: {pilot_rows(plan, rows):,} rows, about {about}"
