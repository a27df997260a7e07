"""What would be otherwise: on another tier, with another model, without what a plan saves."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.limits import Limits, tiers_with
from claudescale.errors import PlanError
from claudescale.planning import choosing, estimates, feasibility
from claudescale.planning.choices import varied
from claudescale.views import card

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.api.models import Model
    from claudescale.planning.plans import Plan

TIERS = pl.Schema(
    {
        "tier": pl.String(),
        "minutes": pl.Float64(),
        "minutes_p90": pl.Float64(),
        "binding": pl.String(),
        "gain": pl.Float64(),
        "note": pl.String(),
    }
)
"""Columns of `tiers`; `gain` is how many times faster than on the plan's own tier."""

_NO_GAIN = 1.1
"""Less than so many times faster is nothing to pay for."""
_WHY = {
    "latency": "the latency of a call limits it",
    estimates.SPEND_LIMIT: "its monthly spend limit ends it",
    "batch processing": "a batch takes its time",
    "deadline": "a hybrid takes what its deadline leaves",
    "queue": "the batch queue limits it there too",
    "nothing to send": "there is nothing to send",
}


def tiers(plan: Plan, tier: Iterable[str | int | Limits] | None = None) -> pl.DataFrame:
    """Return how long a plan would take on each usage tier, and what that gains for this workload (`TIERS`).

    Times are those of the plan's mode. Nothing is gained where something else than the tier is in the way:
    the latency of a call, `concurrency`, the batch itself. The note says so.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        Any.
    tier : list of str, int or Limits, optional
        The tiers to try. The default is all those of the family of the plan's own (named or numbered) whose
        limits are published.

    Raises
    ------
    UnknownTier
        There is no such tier, or its limits are not published.

    Examples
    --------
    >>> import claudescale as cs
    >>> frame = pl.DataFrame({"text": [f"Review {n}" for n in range(5_000)]})
    >>> plan = cs.plan(frame, "Name the complaint in: {text}", model="claude-haiku-5-5", tier="start")
    >>> tiers(plan)["note"][1]
    '4... times faster, still limited by requests'
    """
    own = _option(plan, plan.tier)
    several = list(family(plan) if tier is None else tier)
    rows: list[tuple[object, ...]] = []
    before: list[tuple[str, float]] = []
    for each in several:
        name, option = tier_name(each), _option(plan, each)
        gain = _gain(own, option)
        if name == tier_name(plan.tier):
            note = f"this plan's tier; {upgrade(plan)}"
        else:
            note = _note(plan, option, own, gain, before)
        note += _spend_limit(each, option["dollars"])
        rows.append((name, option["minutes"], option["minutes_p90"], option["binding"], gain, note))
        before.append((name, option["minutes"]))
    return pl.DataFrame(rows, schema=TIERS, orient="row")


def upgrade(plan: Plan) -> str:
    """Return in a few words what the next tier would gain for this workload, or why it gains nothing.

    Spends: nothing.
    """
    above = higher(plan)
    if above is None:
        return "no higher tier has published limits"
    own = _option(plan, plan.tier)
    other = plan.replace(tier=above)
    option = _option(other, above)
    note = _cheaper(own, option) or _note(plan, option, own, _gain(own, option), [])
    return f"{above}: {note}{_enough(plan.tier, above, option['dollars'])}"


def _gain(own: dict[str, Any], option: dict[str, Any]) -> float:
    """Return how many times faster an option is than the plan's own."""
    return own["minutes"] / option["minutes"] if option["minutes"] else 1.0


def _cheaper(own: dict[str, Any], option: dict[str, Any]) -> str:
    """Return what ``mode="auto"`` saves where another mode is in time there."""
    if option["mode"] == own["mode"] or option["dollars"] >= own["dollars"]:
        return ""
    saved = card.dollars(own["dollars"] - option["dollars"])
    return f"mode={option['mode']!r} is in time there and costs {saved} less"


def _enough(tier: str | int | Limits, above: str, dollars: float) -> str:
    """Return that the next tier's monthly spend limit reaches, where this one's does not."""
    still = _spend_limit(above, dollars)
    if still or not _spend_limit(tier, dollars):
        return still
    return f"; its spend limit is enough, that of {tier_name(tier)} is not"


def family(plan: Plan) -> list[str | Limits]:
    """Return the tiers a plan may be compared on: its own and those of its family with published limits.

    Spends: nothing.
    """
    own = plan.tier
    kind = "today" if isinstance(own, Limits) else catalog.tier(own).family
    group = plan.facts.rate_group
    named = [each.name for each in catalog.TIERS.values() if each.family == kind and group in each.limits]
    return [own, *named] if isinstance(own, Limits) else [*named]


def higher(plan: Plan) -> str | None:
    """Return the name of the tier above a plan's own; None where none is known.

    Its own is the one whose limits it has, whatever was named: the API may have told better.

    Spends: nothing.
    """
    if isinstance(plan.tier, Limits):
        return None
    named, group = catalog.tier(plan.tier), plan.facts.rate_group
    own = catalog.tier(next(iter(tiers_with(plan.limits, plan.facts)), named.name))
    names = [
        each.name for each in catalog.TIERS.values() if each.family == own.family and group in each.limits
    ]
    place = names.index(own.name) + 1
    return names[place] if place < len(names) else None


def tier_name(tier: str | int | Limits) -> str:
    """Return a tier's one name; of limits of one's own, where they come from.

    Spends: nothing.
    """
    if isinstance(tier, Limits):
        return "your limits" if tier.source == "given by you" else tier.source
    return catalog.tier(tier).name


def savings(plan: Plan, model: str | Iterable[str] = ()) -> pl.DataFrame:
    """Return what each strategy of a plan saves, against the same rows without it, as `bills.SAVINGS`.

    Read it downward, like `Run.savings`: the first row begins with every row sent by itself, live, nothing
    cached; the last ends with what the plan costs. A strategy that costs more than it saves says so.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        Any.
    model : str or list of str
        Models to begin with, the dearest first, such as ``"claude-opus-5-5"``: what it saves not to use them
        is then a step too. Of a calibrated plan their replies are taken for as long as in `Plan.compare`.
    """
    names = [model] if isinstance(model, str) else list(model)
    others = [varied(plan, {"model": name}) for name in names]
    uncached = plan.replace(measured=replace(plan.expected, cached_tokens=0.0))
    steps = [
        ("model", f"the same on {other.facts.id}", other.totals.plain_dollars)
        for other in others
        if other.facts.id != plan.facts.id
    ]
    steps += [
        ("deduplication", "every row sent by itself", plan.totals.plain_dollars),
        ("cache", "nothing cached", uncached.totals.live_dollars),
        ("batch", "everything sent live", plan.totals.live_dollars),
    ]
    dollars = [*(each for _, _, each in steps), _option(plan, plan.tier)["dollars"]]
    rows = []
    for (strategy, against, without), left in zip(steps, dollars[1:], strict=True):
        share = (without - left) / dollars[0] if dollars[0] else 0.0
        rows.append((strategy, against, without, left, without - left, share))
    return pl.DataFrame(rows, schema=prices.SAVINGS, orient="row")


def current_models(plan: Plan, tiers: Iterable[str | int | Limits] = ()) -> list[str | Model]:
    """Return a plan's model and the current one of every other line that could take its place.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        Any.
    tiers : list of str, int or Limits
        Where the models' limits have to be published.
    """
    found: dict[str, str | Model] = {plan.facts.line: plan.model if plan.facts.given else plan.facts.id}
    for each in catalog.MODELS.values():
        goes = catalog.lifecycle(each) in {"deprecated", "retired"}  # a legacy one may be all that will do
        if each.line in found or goes or each.verified_only:
            continue
        with suppress(PlanError):  # no price, no limits on one of the tiers, or it cannot do what is asked
            other = plan.replace(model=each.id)
            prices.price(each.id, mode="live"), prices.price(each.id, mode="batch")
            for tier in tiers:
                Limits.of(tier, each.id)
            found[each.line] = other.facts.id
    return list(found.values())


def mode_of(plan: Plan) -> str:
    """Return how a plan sends; of ``"auto"`` what it stands for, or the cheapest mode where none will do.

    Spends: nothing.
    """
    if plan.mode != feasibility.AUTO:
        return plan.mode
    with suppress(PlanError):
        return choosing.chosen(plan)
    return str(plan.options.sort("dollars", "minutes")["mode"][0])


def _option(plan: Plan, tier: str | int | Limits) -> dict[str, Any]:
    """Return the option of a plan's mode on a tier: what it takes and costs is the same on all of them."""
    own = tier_name(tier) == tier_name(plan.tier)
    options = estimates.options(
        plan.totals,
        (plan.limits if own else Limits.of(tier, plan.facts)).shared(plan.share),
        plan.expected,
        plan.concurrency,
        feasibility.minutes_of(plan.deadline),
    )
    return estimates.option(options, mode_of(plan))


def _note(
    plan: Plan,
    option: dict[str, Any],
    own: dict[str, Any],
    gain: float,
    before: list[tuple[str, float]],
) -> str:
    """Return what a tier gains against the plan's own, and against those before it."""
    binding = option["binding"]
    if gain >= _NO_GAIN:
        still = "still limited by" if binding == own["binding"] else "then limited by"
        alike = [name for name, minutes in before if minutes < option["minutes"] * _NO_GAIN]
        as_on = f" as on {alike[0]}" if alike else ""
        return f"{gain:,.1f} times faster{as_on}, {still} {binding_words(binding)}"
    if gain > 1 / _NO_GAIN:
        return f"gains nothing: {_why(plan, binding)}"
    return f"{1 / gain:,.1f} times slower, limited by {binding_words(binding)}"


def _why(plan: Plan, binding: str) -> str:
    if binding == "concurrency":
        return f"concurrency={plan.concurrency} limits it"
    return _WHY.get(binding, f"it allows no more {binding_words(binding)}")


def binding_words(binding: str) -> str:
    """Return what limits a run as words.

    Spends: nothing.
    """
    return binding.replace("_", " ")


def _spend_limit(tier: str | int | Limits, dollars: float) -> str:
    """Return a warning where a tier's monthly spend limit does not reach."""
    limit = None if isinstance(tier, Limits) else catalog.tier(tier).spend_dollars_per_month
    if limit is None or not dollars > limit:
        return ""
    return f"; its ${limit:,.0f} a month are less than this costs"
