"""Plans side by side: the options of every combination of choices, and which of them are worth a look."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog
from claudescale.api.limits import Limits
from claudescale.errors import PlanError
from claudescale.planning import calls, estimates, feasibility
from claudescale.views import card

if TYPE_CHECKING:
    from claudescale.planning.plans import Plan


CACHE_HIT_SHARE = "cache_hit_share"
"""Column of `compare` where ``cache`` is varied: the part of the requests taken to find the cache; null in a
hybrid, which may end either way."""
SAME_TOTALS = {"tier", "mode", "deadline", "budget", "concurrency", "share", "pay_twice", "learned"}
"""What does not change the tokens of a plan, nor what they cost."""
_CARRIED = {"model", "cache"}
"""What may vary such that a pilot's replies still say how long others are."""


def compare(plan: Plan, lists: dict[str, Iterable[Any]]) -> pl.DataFrame:
    """Return the options of a plan for every combination of choices, with a column for each that is named."""
    modes = _modes(_several("mode", lists.pop("mode", feasibility.MODES)))
    tried = {name: _several(name, values) for name, values in lists.items()}
    _ = plan.totals  # read once, for all combinations
    combinations = list(itertools.product(*tried.values()))
    plans = _plans(plan, [dict(zip(tried, values, strict=True)) for values in combinations])
    frames = [each.options for each in plans]
    columns = zip(tried, zip(*combinations, strict=True), strict=True)
    choices = pl.DataFrame([_told(name, values) for name, values in columns])
    heights = pl.Series([frame.height for frame in frames])
    each = choices.select(pl.all().repeat_by(heights).explode())
    if "cache" in tried:
        frames = [_with_hits(other, frame) for other, frame in zip(plans, frames, strict=True)]
    found = pl.concat([each, pl.concat(frames)], how="horizontal").filter(pl.col("mode").is_in(modes))
    if found.is_empty():
        msg = "plan.compare(mode=['hybrid']): a hybrid needs a deadline, such as deadline=[60, 90] (minutes)."
        raise PlanError(msg)
    return found


def _plans(plan: Plan, combinations: list[dict[str, Any]]) -> list[Plan]:
    """Return a plan for each combination; those that send the same share their totals."""
    found, sending = [], {}
    for changes in combinations:
        others = {name: value for name, value in changes.items() if name not in SAME_TOTALS}
        key = tuple(id(value) for value in others.values())
        if key not in sending:
            sending[key] = varied(plan, others)
            _ = sending[key].totals
        found.append(sending[key].replace(**{name: changes[name] for name in changes if name in SAME_TOTALS}))
    return found


def varied(plan: Plan, changes: dict[str, Any]) -> Plan:
    """Return a plan that differs in some choices, on the same evidence as far as that holds.

    A pilot's measurements stay where nothing they depend on is another. Another model's replies count as
    long as the measured ones, plus what it thinks more by default, with the doubt of a guess.
    """
    new = {
        name: value for name, value in changes.items() if not _same(value, getattr(plan, name, None), name)
    }
    other = plan.replace(**new)
    known = plan.measured
    if known is None or other.measured is not None or not set(new) & _CARRIED:
        return other
    if plan.replace(**{name: value for name, value in new.items() if name not in _CARRIED}).measured is None:
        return other
    guess = other.expected
    before = calls.guess(plan.compiled, plan.facts, plan.max_tokens, cache=plan.cache)
    more, times = guess.output_tokens - before.output_tokens, guess.output_tokens / before.output_tokens
    output = known.output_tokens + more if more > 0 else known.output_tokens * times
    told = replace(known, cached_tokens=guess.cached_tokens, output_tokens=output)
    if "model" in new:
        told = replace(told, calls=0, counted=0, requests=0, billed_ratio=1.0)
        told = replace(told, seconds=guess.seconds * output / guess.output_tokens)
    return other.replace(measured=told)


def _with_hits(plan: Plan, options: pl.DataFrame) -> pl.DataFrame:
    """Return options with the part of the requests that are taken to read the cache."""
    requests = plan.totals.requests
    live = (requests - 1) / requests if requests else 0.0
    shares = {"live": live, "batch": min(live, estimates.BATCH_HIT_SHARE)}
    shares = shares if plan.expected.cached_tokens else dict.fromkeys(feasibility.MODES, 0.0)
    hits = pl.col("mode").replace_strict(shares, default=None, return_dtype=pl.Float64)
    return options.with_columns(hits.alias(CACHE_HIT_SHARE))


FELT_SHARE, FELT_MINUTES, FELT_SLOW = 0.01, 5 / 60, 0.5
"""What nobody feels: a price higher by less than this part, a time longer by less than this, and a 90th
percentile of a time longer by less than this part."""


def frontier(options: pl.DataFrame) -> pl.DataFrame:
    """Return the options with a column `frontier`: no other is as cheap and as fast and better in one.

    Only a difference that can be felt counts. Prices are alike up to 1%. Times are alike up to five seconds
    and where they differ by less than both may vary, from `minutes` to `minutes_p90`; what they may take is
    alike where one is not half as long again as the other. Options that are alike in all are on it together;
    one whose figures are unknown is not.

    Parameters
    ----------
    options : pl.DataFrame
        Of `Plan.compare`, or anything else with `dollars`, `minutes` and perhaps `minutes_p90`.

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
    found = distinct.join(on_it, on=[*figures], how="semi")["index"]
    return options.with_columns(frontier=pl.int_range(pl.len(), dtype=pl.UInt32).is_in(found.implode()))


def _several(name: str, values: object) -> list[Any]:
    """Return the values to compare as a list."""
    if isinstance(values, str) or not isinstance(values, Iterable) or not (several := list(values)):
        msg = f"plan.compare({name}={values!r}): give a list of values to try, such as {name}=[...]."
        raise PlanError(msg)
    return several


def _modes(modes: list[Any]) -> list[Any]:
    """Return the modes to compare, which are none but those that send."""
    for mode in modes:
        if mode == feasibility.AUTO:
            msg = (
                "plan.compare(mode=['auto']): auto is the cheapest of these that is in time; leave mode out."
            )
            raise PlanError(msg)
        if mode not in feasibility.MODES:
            msg = f"plan.compare(mode=[{mode!r}]): there is {', '.join(map(repr, feasibility.MODES))}."
            raise PlanError(msg)
    return modes


def _same(value: object, own: object, name: str) -> bool:
    """Whether a value is the plan's own; of what is not simple, whether it is the same object."""
    if name == "model":
        return value == own or (isinstance(own, str) and catalog.model(value).id == catalog.model(own).id)
    simple = str | int | float | None
    return value is own or (isinstance(value, simple) and isinstance(own, simple) and value == own)


def _told(name: str, values: Iterable[object]) -> pl.Series:
    """Return the values as a column: as they are where they are of one simple type, else as text."""
    several = [_shown(name, value) for value in values]
    kinds = {type(value) for value in several}
    if kinds in ({str}, {int}, {bool}) or kinds <= {int, float, type(None)}:
        return pl.Series(name, several, strict=False)
    return pl.Series(name, [value if isinstance(value, str) else repr(value) for value in several])


def _shown(name: str, value: Any) -> Any:
    """Return a value as its column has it: a tier's one name, limits in short, a deadline in minutes."""
    if name == "tier" and isinstance(value, Limits):
        figures = ", ".join(card.tokens(each) for each in value.per_minute)
        return f"Limits({figures})"
    if name == "tier":
        return catalog.tier(value).name
    if name == "model" and not isinstance(value, str):
        return catalog.model(value).id
    return feasibility.minutes_of(value) if name == "deadline" else value
