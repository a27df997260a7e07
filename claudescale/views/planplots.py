"""The pictures of a plan: which choices go into which chart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog
from claudescale.api.limits import Limits
from claudescale.planning import choices as comparing
from claudescale.planning import estimates
from claudescale.views import frontiercharts, inflight, pacecharts, plan_charts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.views.theme import Shown

_FIGURES = ("dollars", "dollars_p90", "minutes", "minutes_p90")
POINTS = pl.Schema(
    dict.fromkeys(("choice", "group", "mode", "binding"), pl.String())
    | dict.fromkeys(_FIGURES, pl.Float64())
    | dict.fromkeys(("frontier", "best", "chosen"), pl.Boolean())
    | {"choices": pl.Int64()}
)
"""Columns of `choices`; `group` gives the colour; `best` is what nothing of its group beats."""
LONGEST = 24


class PlanPlots:
    """The pictures of one plan; each is a `theme.Shown`, and nothing is sent for it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def frontier(self, **lists: Iterable[Any]) -> Shown:
        """Return dollars against time, a point per choice; those that nothing beats in both are joined.

        The time of a batch is drawn as it is known: from the usual hour to the day after which it expires.
        Choices of the same price and time are one point.

        Spends: nothing.

        Parameters
        ----------
        **lists
            As for `Plan.compare`. The default is the plan's model beside the current ones of other lines,
            its tier beside its neighbours, and every mode.
        """
        plan = self._plan
        return frontiercharts.frontier(
            choices(plan, lists or _usual(plan)),
            deadline_minutes=comparing.minutes_of(plan.deadline),
            budget_dollars=plan.budget,
        )

    def minutes(self, tier: Iterable[str | int | Limits] | None = None) -> Shown:
        """Return how long the plan takes on each tier in its mode, and what limits it there.

        Spends: nothing.

        Parameters
        ----------
        tier : list of str, int or Limits, optional
            The default is all of the plan's family of tiers with published limits.
        """
        plan = self._plan
        return plan_charts.minutes(
            comparing.tiers(plan, tier),
            own=comparing.tier_name(plan.tier),
            mode=comparing.mode_of(plan),
            deadline_minutes=comparing.minutes_of(plan.deadline),
        )

    def savings(self, model: str | Iterable[str] = ()) -> Shown:
        """Return what the rows would cost plainly, what each strategy saves of it, what the plan costs.

        Spends: nothing.

        Parameters
        ----------
        model : str or list of str
            Models to begin with, such as ``"claude-opus-5-5"``: then not to use them is a step too.
        """
        plan = self._plan
        by_batch = estimates.option(plan.options, "batch")["dollars"]
        return plan_charts.savings(
            comparing.savings(plan, model),
            model=plan.facts.id,
            batch_dollars=by_batch if comparing.mode_of(plan) == "live" else None,
        )

    def concurrency(self, runs: Iterable[Run] = ()) -> Shown:
        """Return what a minute gets done by the calls in flight, with the runs that tried it as points.

        Spends: nothing.

        Parameters
        ----------
        runs : list of Run
            Live ones of the same plan, each with its own ``concurrency``.
        """
        plan = self._plan
        most, binding = inflight.allowed(plan)
        enough = inflight.needed(plan)
        tried = [_tried(run) for run in runs]
        highest = max([2 * enough, 16.0, *(row[1] for row in tried)])
        several = [2.0 ** (step / 8) for step in range(8 * math.ceil(math.log2(highest)) + 1)]
        schema = {
            "run": pl.String,
            "concurrency": pl.Float64,
            "requests_per_minute": pl.Float64,
            "refused": pl.Int64,
        }
        return pacecharts.concurrency(
            inflight.throughput(plan, sorted([*several, enough])),
            requests_per_minute=most,
            binding=binding,
            needed=enough,
            measured=pl.DataFrame(tried, schema=schema, orient="row"),
        )


def _tried(run: Run) -> tuple[str, float, float, int]:
    """Return what a run got done, and with how many calls in flight on average."""
    counts, minutes = run.counts, run.minutes
    busy = run.attempts.select(pl.col("seconds").sum()).item() / 60
    flight = run.plan.concurrency or (busy / minutes if minutes else 0.0)
    name, done = f"concurrency={run.plan.concurrency}", counts.requests - counts.refused
    return name, float(flight), done / minutes if minutes else 0.0, counts.refused


def _usual(plan: Plan) -> dict[str, Iterable[Any]]:
    """Return the choices one has before a run: another model, the tier next to this one, another mode."""
    own = comparing.tier_name(plan.tier)
    several = comparing.family(plan)
    names = [comparing.tier_name(each) for each in several]
    place = names.index(own) if own in names else 0
    near: list[Any] = [plan.tier] if isinstance(plan.tier, Limits) else several[max(place - 1, 0) : place + 2]
    return {"model": comparing.current_models(plan, near), "tier": near}


def choices(plan: Plan, lists: dict[str, Iterable[Any]]) -> pl.DataFrame:
    """Return a row per choice of `Plan.compare` as `POINTS`, the plan's own among them.

    Choices that differ in name alone are one row: a batch is the same on every tier.
    """
    given = {name: list(values) for name, values in lists.items()}
    tried = {name: [_named(name, value) for value in values] for name, values in given.items()}
    names = [name for name in tried if name != "mode"]
    own = {name: [_named(name, getattr(plan, name))] for name in names}
    text = [_text(pl.col(name)) for name in names]
    chosen = (
        (plan.compare(**own) if own else plan.options).filter(mode=comparing.mode_of(plan)).with_columns(text)
    )
    options = plan.compare(**tried) if names else plan.options.filter(pl.col("mode").is_in(tried["mode"]))
    options = options.with_columns(text)
    key = [*names, "mode"]
    options = pl.concat([options, chosen.join(options, on=key, how="anti")])
    varying = [name for name in names if options[name].n_unique() > 1]
    group = next((name for name in ("model", *varying) if name in varying and name != "tier"), None)
    options = comparing.frontier(options)
    alone = [comparing.frontier(part) for part in options.partition_by(group)] if group else [options]
    best = pl.concat([part.select(*key, best="frontier") for part in alone])
    options = options.join(best, on=key, how="left", maintain_order="left")
    several_modes = options["mode"].n_unique() > 1
    own_key = chosen.select(key).row(0)
    points: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in options.iter_rows(named=True):
        figures = tuple(float(f"{row[name]:.9g}") for name in _FIGURES)
        point = points.setdefault(
            (row[group] if group else "", row["mode"], *figures),
            {name: row[name] for name in (*_FIGURES, "mode", "binding", "frontier", "best")}
            | {"several": [], "chosen": False},
        )
        point["group"] = _word(group, row[group]) if group else ""
        point["several"].append(row)
        point["chosen"] |= tuple(row[name] for name in key) == own_key
    for point in points.values():
        words = []
        for name in varying:
            values = list(dict.fromkeys(row[name] for row in point["several"]))
            if len(values) < options[name].n_unique():
                words.append("/".join(_word(name, value) for value in values))
        if several_modes or not words:
            words.insert(1 if "model" in varying else 0, point["mode"])
        point["choice"] = " ".join(words)
        point["choices"] = len(point["several"])
        point["binding"] = point["binding"].replace("_", " ")
    rows = [{name: point[name] for name in POINTS} for point in points.values()]
    return pl.DataFrame(rows, schema=POINTS)


def _text(column: pl.Expr) -> pl.Expr:
    """Return values as Python writes them."""
    text = column.cast(pl.String).fill_null("None")
    return text.replace(["true", "false"], ["True", "False"])


def _named(name: str, value: Any) -> Any:
    """Return a value under its one name, so that the plan's own is found among those given."""
    if name == "model":
        found = catalog.model(value)
        return value if found.given else found.id
    return catalog.tier(value).name if name == "tier" and not isinstance(value, Limits) else value


def _word(name: str, value: str) -> str:
    """Return a value as a short word beside a point."""
    if name == "model":
        return value.removeprefix("claude-")
    value = value if len(value) <= LONGEST else value[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return value if name == "tier" else f"{name}={value}"
