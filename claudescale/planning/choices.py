"""Plans side by side: every combination of choices, which are worth a look, and what cannot be met."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.limits import Limits, tiers_with
from claudescale.errors import ImpossibleBudget, ImpossibleDeadline, PlanError
from claudescale.planning import estimates
from claudescale.prompts.parameters import plain, refuse
from claudescale.views import card

if TYPE_CHECKING:
    from claudescale.api.models import Model
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Work

MODES = ("live", "batch", "hybrid")
AUTO = "auto"  # the cheapest mode that meets deadline and budget nine times in ten
CACHE_HIT_SHARE = "cache_hit_share"
"""Column of `compare` where ``cache`` is varied: the part of the requests taken to find the cache; null in a
hybrid, which may end either way."""
GAIN = "gain"
"""Column of `compare` where ``tier`` is varied: how many times faster than on the plan's own tier."""
SAME_TOTALS = {"tier", "mode", "deadline", "budget", "concurrency", "share", "learned"}
"""What does not change the tokens of a plan, nor what they cost."""
_CARRIED = {"model", "cache"}  # what may vary such that a pilot's replies still say how long others are
_NO_GAIN = 1.1  # less than so many times faster is nothing to pay for
_MOST = 1e15  # no plan has a larger number
_TRUSTED_DOUBT = 0.5
_SCALED = ("dollars", "dollars_p90", "input_tokens", "output_tokens")  # what is less when a part is left


def is_number(value: object) -> bool:
    """Whether a value is a number that a plan can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST < value < _MOST


def rows_of(n: object, name: str = "n") -> int:
    """Return how many rows are asked for; PlanError where that is no number of rows."""
    rows = plain(n, whole=True)
    if type(rows) is not int or rows < 0:
        refuse(f"{name}={n!r}: it is how many rows, a whole number from 0 on, such as int(...).")
    return rows


def minutes_of(deadline: float | timedelta | datetime | None) -> float | None:
    """Return a deadline in minutes."""
    if isinstance(deadline, timedelta):
        return deadline.total_seconds() / 60
    if deadline is not None and not is_number(deadline):
        refuse(f"deadline={deadline!r}: give the minutes the run may take, or a timedelta(hours=...).")
    return deadline  # type: ignore[return-value]  # a datetime was refused


# ------------------------------------------------------------------------------------------ side by side


def compare(plan: Plan, lists: dict[str, Iterable[Any]]) -> pl.DataFrame:
    """Return the options of a plan for every combination of choices, with a column for each that is named."""
    modes = _modes(_several("mode", lists.pop("mode", MODES)))
    tried = {name: _several(name, values) for name, values in lists.items()}
    _ = plan.totals  # read once, for all combinations
    several = [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]
    sending: dict[tuple[int, ...], Plan] = {}  # those that send the same share their totals
    frames = []
    for changes in several:
        others = {name: value for name, value in changes.items() if name not in SAME_TOTALS}
        same = {name: value for name, value in changes.items() if name in SAME_TOTALS}
        key = tuple(id(value) for value in others.values())
        if key not in sending:
            sending[key] = varied(plan, others)
            _ = sending[key].totals
        other = sending[key].replace(**same)
        options = other.options
        if "tier" in same:
            own = sending[key].replace(**same | {"tier": plan.tier}).options["minutes"]
            gain = (own / options["minutes"]).fill_nan(1.0)  # of no time at all none is faster
            options = options.with_columns(gain.alias(GAIN))
        frames.append(_with_hits(other, options) if "cache" in tried else options)
    columns = [_column(name, [changes[name] for changes in several]) for name in tried]
    heights = pl.Series([frame.height for frame in frames])
    each = pl.DataFrame(columns).select(pl.all().repeat_by(heights).explode())
    table = pl.concat([each, pl.concat(frames)], how="horizontal").filter(pl.col("mode").is_in(modes))
    if table.is_empty():
        refuse(
            "plan.compare(mode=['hybrid']): a hybrid needs a deadline, such as deadline=[60, 90] (minutes)."
        )
    return table


def varied(plan: Plan, changes: dict[str, Any]) -> Plan:
    """Return a plan that differs in some choices, on the same evidence as far as that holds.

    A pilot's measurements stay where nothing they depend on is another. Another model's replies count as
    long as the measured ones, plus what it thinks more by default, with the doubt of a guess.
    """
    own = {name: getattr(plan, name, None) for name in changes}
    new: dict[str, Any] = {
        name: value for name, value in changes.items() if not _same(value, own[name], name)
    }
    other = plan.replace(**new)
    known = plan.measured
    if known is None or other.measured is not None or not set(new) & _CARRIED:
        return other
    if plan.replace(**{name: value for name, value in new.items() if name not in _CARRIED}).measured is None:
        return other
    guess = other.expected
    before = estimates.guess(plan.compiled, plan.max_tokens, cache=plan.cache)
    more, times = guess.output_tokens - before.output_tokens, guess.output_tokens / before.output_tokens
    mean = known.output_tokens + more if more > 0 else known.output_tokens * times
    other_known = replace(known, cached_tokens=guess.cached_tokens, output=known.output._replace(mean=mean))
    if "model" in new:
        latency = known.latency._replace(mean=guess.seconds * mean / guess.output_tokens, slope=0.0)
        other_known = replace(other_known, calls=0, counted=0, requests=0, billed_ratio=1.0, latency=latency)
    return other.replace(measured=other_known)


def _with_hits(plan: Plan, options: pl.DataFrame) -> pl.DataFrame:
    """Return options with the part of the requests that are taken to read the cache."""
    requests = plan.totals.requests
    live = (requests - 1) / requests if requests else 0.0
    shares = {"live": live, "batch": min(live, estimates.BATCH_HIT_SHARE)}
    shares = shares if plan.expected.cached_tokens else dict.fromkeys(MODES, 0.0)
    hits = pl.col("mode").replace_strict(shares, default=None, return_dtype=pl.Float64)
    return options.with_columns(hits.alias(CACHE_HIT_SHARE))


def _several(name: str, values: object) -> list[Any]:
    """Return the values to compare as a list."""
    if isinstance(values, str) or not isinstance(values, Iterable) or not (several := list(values)):
        refuse(f"plan.compare({name}={values!r}): give a list of values to try, such as {name}=[...].")
    return several


def _modes(modes: list[Any]) -> list[Any]:
    """Return the modes to compare, which are none but those that send."""
    for mode in modes:
        if mode == AUTO:
            refuse(
                "plan.compare(mode=['auto']): auto is the cheapest of these that is in time; leave mode out."
            )
        if mode not in MODES:
            refuse(f"plan.compare(mode=[{mode!r}]): there is {', '.join(map(repr, MODES))}.")
    return modes


def _same(value: object, own: object, name: str) -> bool:
    """Whether a value is the plan's own; of what is not simple, whether it is the same object."""
    if name == "model":
        return value == own or (isinstance(own, str) and catalog.model(value).id == catalog.model(own).id)
    simple = str | int | float | None
    return value is own or (isinstance(value, simple) and isinstance(own, simple) and value == own)


def _column(name: str, values: Iterable[object]) -> pl.Series:
    """Return values as a column: as they are where they are of one simple type, else as text."""
    shown = [_shown(name, value) for value in values]
    kinds = {type(value) for value in shown}
    if kinds in ({str}, {int}, {bool}) or kinds <= {int, float, type(None)}:
        return pl.Series(name, shown, strict=False)
    return pl.Series(name, [value if isinstance(value, str) else repr(value) for value in shown])


def _shown(name: str, value: Any) -> Any:
    """Return a value as its column has it: a tier's one name, limits in short, a deadline in minutes."""
    if name == "tier" and isinstance(value, Limits):
        return f"Limits({', '.join(card.tokens(limit) for limit in value.per_minute)})"
    if name == "tier":
        return catalog.tier(value).name
    if name == "model" and not isinstance(value, str):
        return catalog.model(value).id
    return minutes_of(value) if name == "deadline" else value


FELT_SHARE, FELT_MINUTES, FELT_SLOW = 0.01, 5 / 60, 0.5
"""What nobody feels: a price higher by less than this part, a time longer by less than this, and a 90th
percentile of a time longer by less than this part."""


def frontier(options: pl.DataFrame) -> pl.DataFrame:
    """Return the options with a column `frontier`: no other is as cheap and as fast and better in one.

    Only a difference that can be felt counts. Prices are alike up to 1%. Times are alike up to five seconds
    and where they differ by less than both may vary, from `minutes` to `minutes_p90`; what they may take is
    alike where one is not half as long again as the other. Options that are alike in all are on it together;
    one whose figures are unknown is not.

    Examples
    --------
    >>> options = pl.DataFrame({"dollars": [1.0, 2.0, 2.0], "minutes": [60.0, 5.0, 90.0]})
    >>> frontier(options)["frontier"].to_list()
    [True, True, False]
    """
    slow = pl.col("minutes_p90" if "minutes_p90" in options.columns else "minutes").cast(pl.Float64)
    usual = pl.col("minutes").cast(pl.Float64)
    figures = {
        "dollars": pl.col("dollars").cast(pl.Float64),
        "usual": usual,
        "slow": pl.max_horizontal(usual, slow),
    }
    known = pl.all_horizontal(pl.col(*figures).is_finite())
    # Choices that differ in name alone are many: each is held against the others once.
    distinct = options.select(**figures).with_row_index().filter(known)
    one = distinct.unique([*figures], maintain_order=True).drop("index")
    pairs = one.join(one, how="cross", suffix="_other")
    span, other_span = (pl.col(f"slow{of}") - pl.col(f"usual{of}") for of in ("", "_other"))
    minutes = pl.max_horizontal(pl.min_horizontal(span, other_span), FELT_MINUTES)
    dollars = FELT_SHARE * pl.min_horizontal("dollars", "dollars_other")
    slow = pl.max_horizontal(minutes, FELT_SLOW * pl.min_horizontal("slow", "slow_other"))
    felt = {"dollars": dollars, "usual": minutes, "slow": slow}
    more = [pl.col(name) - pl.col(f"{name}_other") > least for name, least in felt.items()]
    less = [pl.col(f"{name}_other") - pl.col(name) > least for name, least in felt.items()]
    beaten = pl.any_horizontal(more) & ~pl.any_horizontal(less)
    on_it = one.join(pairs.filter(beaten).select(*figures), on=[*figures], how="anti")
    best = distinct.join(on_it, on=[*figures], how="semi")["index"]
    return options.with_columns(frontier=pl.int_range(pl.len(), dtype=pl.UInt32).is_in(best.implode()))


# ----------------------------------------------------------------- the way a plan takes, and what cannot be


def mode_of(plan: Plan) -> str:
    """Return how a plan sends; of ``"auto"`` what it stands for, or the cheapest mode where none will do."""
    with suppress(ImpossibleDeadline, ImpossibleBudget):
        return resolved(plan).mode
    return str(plan.options.sort("dollars", "minutes")["mode"][0])


def resolved(plan: Plan) -> Plan:
    """Return the plan with a mode of its own instead of ``"auto"``: the cheapest that meets all wishes."""
    if plan.mode != AUTO:
        return plan
    options, deadline, budget = plan.options, plan.deadline, plan.budget
    if deadline is not None:
        live = estimates.option(options, "live")["minutes_p90"]
        rescued = pl.col("mode").ne("hybrid") | (live + estimates.CANCEL_MINUTES <= deadline)
        options = options.filter(rescued, pl.col("minutes_p90") <= deadline)
        if options.is_empty():
            takes = f"up to {card.duration(live)} in mode='live', the quickest ({plan.limits.source})"
            _refuse_deadline(takes, live, deadline)
    if budget is not None:
        cheapest = options.sort("dollars_p90").row(0, named=True)
        options = options.filter(pl.col("dollars_p90") <= budget)
        if options.is_empty():
            cost = f"up to {card.dollars(cheapest['dollars_p90'])} in mode={cheapest['mode']!r}"
            _refuse_budget(cost, budget, ". Calibrate with a pilot, which narrows the span, or use a")
    best = frontier(options).filter("frontier").sort("dollars", "minutes_p90")  # of two alike the quicker
    mode: Any = best["mode"][0]
    return plan.replace(mode=mode)


def prepare(plan: Plan, api: str) -> Work:
    """Return the rows of a plan with the keys they have at one API; what their lengths tell it, it keeps."""
    work = plan.compiled.work(plan.frame, api, plan.kept)
    vars(plan).setdefault("_sizes", work.sizes)
    return work


def check(plan: Plan, *, part: float = 1.0) -> dict[str, Any]:
    """Return what a plan takes in its mode, as a row of `OPTIONS`; raise where that is not allowed.

    `part` is what is still to be sent: what the ledger has is paid for.
    """
    option = estimates.option(plan.options, plan.mode)
    # A batch takes its time whatever its size.
    scaled = _SCALED if plan.mode != "live" else (*_SCALED, "minutes", "minutes_p90")
    option |= {name: option[name] * part for name in scaled}
    needed, dollars, instead = option["minutes"], option["dollars"], ""
    takes = f"about {card.duration(needed)} in mode={plan.mode!r}, bound by {option['binding']}"
    if plan.mode == "hybrid" and plan.deadline is not None:
        # Everything may have to go live, if the batch comes to nothing.
        live = estimates.option(plan.options, "live")["minutes_p90"] * part
        needed = live + estimates.CANCEL_MINUTES
        cancel = f"{card.duration(estimates.CANCEL_MINUTES)} for canceling the batch"
        takes = f"up to {card.duration(live)} live, and mode='hybrid' keeps {cancel}"
        instead = "mode='live', which is in time, or " if live <= plan.deadline else ""
    if plan.deadline is not None and needed > plan.deadline:
        _refuse_deadline(f"{takes} ({plan.limits.source})", needed, plan.deadline, instead)
    if plan.budget is not None and dollars * (1 - min(plan.expected.doubt, _TRUSTED_DOUBT)) > plan.budget:
        rows = int(plan.totals.rows * part * plan.budget / dollars)
        basis = "" if plan.expected.calls else " (their length is guessed: calibrate with a pilot)"
        fewer = f": enough for about {rows:,} rows. Use plan.head({rows}), or a" if rows else ". Use a"
        _refuse_budget(f"about {card.dollars(dollars)}{basis}", plan.budget, fewer)
    return option


def _refuse_deadline(takes: str, minutes: float, deadline: float, instead: str = "") -> NoReturn:
    msg = (
        f"These rows take {takes}, and the deadline is {card.duration(deadline)}. Allow {instead}"
        f"deadline={math.ceil(minutes)} (minutes), a higher tier, or fewer rows: plan.head(n)."
    )
    raise ImpossibleDeadline(msg)


def _refuse_budget(cost: str, budget: float, instead: str) -> NoReturn:
    msg = f"These rows cost {cost}, and the budget is {card.dollars(budget)}{instead} larger budget."
    raise ImpossibleBudget(msg)


# ----------------------------------------------------------------------------------- what would be otherwise


def family(plan: Plan) -> list[str | Limits]:
    """Return the tiers a plan may be compared on: its own and those of its family with published limits."""
    own, group = plan.tier, plan.facts.rate_group
    kind = "today" if isinstance(own, Limits) else catalog.tier(own).family
    named = [tier.name for tier in catalog.TIERS.values() if tier.family == kind and group in tier.limits]
    return [own, *named] if isinstance(own, Limits) else [*named]


def tier_name(tier: str | int | Limits) -> str:
    """Return a tier's one name; of limits of one's own, where they come from."""
    if isinstance(tier, Limits):
        return "your limits" if tier.source == "given by you" else tier.source
    return catalog.tier(tier).name


def higher(plan: Plan) -> str | None:
    """Return the name of the tier above a plan's own; None where none is known.

    Its own is the one whose limits it has, whatever was named: the API may have told better.
    """
    if isinstance(plan.tier, Limits):
        return None
    named, group = catalog.tier(plan.tier), plan.facts.rate_group
    own = catalog.tier(next(iter(tiers_with(plan.limits, plan.facts)), named.name))
    several = (tier for tier in catalog.TIERS.values() if tier.family == own.family)
    names = [tier.name for tier in several if group in tier.limits]
    place = names.index(own.name) + 1
    return names[place] if place < len(names) else None


def tiers(plan: Plan, tier: Iterable[str | int | Limits] | None = None) -> pl.DataFrame:
    """Return `Plan.compare` of tiers in the plan's mode, with a `note` that says what each of them gains."""
    several: list[Any] = list(family(plan) if tier is None else tier)
    mode: Any = mode_of(plan)
    table = plan.compare(tier=several, mode=[mode])
    own = tier_name(plan.tier)
    names = [tier_name(each) for each in several]
    notes = [
        f"this plan's tier; {upgrade(plan)}" if name == own else _gain_words(gain, binding)
        for name, gain, binding in zip(names, table[GAIN], table["binding"], strict=True)
    ]
    return table.with_columns(tier=pl.Series(names, dtype=pl.String), note=pl.Series(notes, dtype=pl.String))


def _gain_words(gain: float, binding: str) -> str:
    words = binding.replace("_", " ")
    if gain >= _NO_GAIN:
        return f"{gain:,.1f} times faster, limited by {words}"
    if gain > 1 / _NO_GAIN:
        return "gains nothing: " + (f"{words} limits it" if words != "nothing to send" else "nothing to send")
    return f"{1 / gain:,.1f} times slower, limited by {words}"


def upgrade(plan: Plan) -> str:
    """Return in a few words what the next tier would gain for this workload, or why it gains nothing."""
    above = higher(plan)
    if above is None:
        return "no higher tier has published limits"
    other = plan.replace(tier=above)
    own, there = (estimates.option(each.options, mode_of(each)) for each in (plan, other))
    saved = own["dollars"] - there["dollars"]
    note = _gain_words(own["minutes"] / there["minutes"] if there["minutes"] else 1.0, there["binding"])
    if there["mode"] != own["mode"] and saved > 0:
        note = f"mode={there['mode']!r} is in time there and costs {card.dollars(saved)} less"
    limit = other.limits.spend_dollars_per_month
    if limit is not None and there["dollars"] > limit:
        note += f"; its ${limit:,.0f} a month are less than this costs"
    elif own["binding"] == estimates.SPEND_LIMIT:
        note += f"; its spend limit is enough, that of {tier_name(plan.tier)} is not"
    return f"{above}: {note}"


def savings(plan: Plan, model: str | Iterable[str] = ()) -> pl.DataFrame:
    """Return what each strategy of a plan saves, against the same rows without it, as `prices.SAVINGS`.

    Read it downward, like `Run.savings`: the first row begins with every row sent by itself, live, nothing
    cached; the last ends with what the plan costs. A strategy that costs more than it saves says so.
    With `model` it begins with these models, the most expensive first.
    """
    others = [varied(plan, {"model": name}) for name in ([model] if isinstance(model, str) else model)]
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
    dollars = [*(without for *_, without in steps), estimates.option(plan.options, mode_of(plan))["dollars"]]
    rows = []
    for (strategy, against, without), left in zip(steps, dollars[1:], strict=True):
        share = (without - left) / dollars[0] if dollars[0] else 0.0
        rows.append((strategy, against, without, left, without - left, share))
    return pl.DataFrame(rows, schema=prices.SAVINGS, orient="row")


def current_models(plan: Plan, tiers: Iterable[str | int | Limits] = ()) -> list[str | Model]:
    """Return a plan's model and the current one of every other line that could take its place on tiers."""
    lines: dict[str, str | Model] = {plan.facts.line: plan.model if plan.facts.given else plan.facts.id}
    for model in catalog.MODELS.values():
        goes = catalog.lifecycle(model) in {"deprecated", "retired"}  # a legacy one may be all that will do
        if model.line in lines or goes or model.verified_only:
            continue
        with suppress(PlanError):  # no price, no limits on one of the tiers, or it cannot do what is asked
            other = plan.replace(model=model.id)
            prices.price(model.id, mode="live"), prices.price(model.id, mode="batch")
            for tier in tiers:
                Limits.of(tier, model.id)
            lines[model.line] = other.facts.id
    return list(lines.values())
