"""A plan's choices: which are on the frontier, what another tier gains, and the pictures of both."""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many plans are never drawn

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.limits import BUCKETS, Limits
from claudescale.errors import PlanError
from claudescale.planning import estimates
from claudescale.text import tokens
from claudescale.views.card import Gallery

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.views.theme import Picture

_TRIED = {"concurrency": pl.Float64, "requests_per_minute": pl.Float64, "refused": pl.Int64}
FIGURES = ("dollars", "dollars_p90", "minutes", "minutes_p90")
_LONGEST_WORD = 24
_NO_GAIN = 1.1  # a smaller speedup is not worth paying for
_FELT_SHARE, _FELT_MINUTES, _FELT_SLOW = 0.01, 5 / 60, 0.5
"""Differences too small to notice: a share of the dollars, a number of minutes, and a share of the minutes at
their 90th percentile."""


def shown(name: str, value: Any) -> Any:
    """Return a parameter's value for a column: the canonical name of a model or tier, limits in short."""
    if name == "model":
        return catalog.model(value).id
    if name == "tier":
        limits = isinstance(value, Limits)
        return f"Limits({', '.join(map(tokens, value.per_minute))})" if limits else catalog.tier(value).name
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def gain_words(gain: float, binding: str) -> str:
    """Return a phrase that says what a tier gains, or why it gains nothing."""
    words = binding.replace("_", " ")
    if 1 / _NO_GAIN < gain < _NO_GAIN:
        return "gains nothing: " + (f"the run is limited by {words}" if words != "nothing to send" else words)
    times = f"{gain:,.1f} times faster" if gain > 1 else f"{1 / gain:,.1f} times slower"
    return f"is {times}, limited by {words}"


def frontier(options: pl.DataFrame) -> pl.Series:
    """Return which options are on the frontier: no other is as cheap and as fast, and better in one.

    Only noticeable differences count. Prices within 1% are equal. Times are equal within five seconds, or
    within the smaller of the two spans from `minutes` to `minutes_p90`. The 90th percentiles are also equal
    if the longer is at most half as long again as the shorter. Options that are equal in all figures are on
    the frontier together. An option with unknown figures is not on it.

    Examples
    --------
    >>> options = pl.DataFrame({"dollars": [1.0, 2.0, 2.0], "minutes": [60.0, 5.0, 90.0]})
    >>> frontier(options.with_columns(minutes_p90="minutes")).to_list()
    [True, True, False]
    """
    figures = options.select(pl.col("dollars", "minutes", "minutes_p90").cast(pl.Float64))
    rows = figures.filter(pl.all_horizontal(pl.all().is_finite())).unique(maintain_order=True).rows()
    best = [row for row in rows if not any(_worse(row, other) and not _worse(other, row) for other in rows)]
    return pl.Series("frontier", [row in set(best) for row in figures.iter_rows()], pl.Boolean)


def _worse(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether an option is noticeably worse in dollars, in usual minutes or in slow ones."""
    (dollars, usual, slow), (other_dollars, other_usual, other_slow) = one, other
    alike = max(min(slow - usual, other_slow - other_usual), _FELT_MINUTES)
    return (
        dollars - other_dollars > _FELT_SHARE * min(dollars, other_dollars)
        or usual - other_usual > alike
        or slow - other_slow > max(alike, _FELT_SLOW * min(slow, other_slow))
    )


@dataclass(frozen=True, repr=False)
class PlanPlots(Gallery):
    """The pictures of one plan, each an Altair chart. Drawing one sends nothing."""

    plan: Plan

    def frontier(self, **lists: Iterable[Any]) -> Picture:
        """Return dollars against time, one point per choice.

        A line joins the choices that no other beats in both. The time of a batch is drawn as a range, from
        the usual hour to the day after which it expires. Choices of the same price and time share a point.

        Spends: nothing.

        Parameters
        ----------
        **lists
            As for `Plan.compare`. The default compares the plan's model with the current models of other
            lines, its tier with the tiers next to it, and every mode.
        """
        from claudescale.views import plan_charts

        plan = self.plan
        deadline, budget = plan.deadline, plan.budget
        points = self._points(lists or {"model": self._models(), "tier": self._near()})
        return plan_charts.frontier(points, deadline_minutes=deadline, budget_dollars=budget)

    def minutes(self, tier: Iterable[str | int | Limits] | None = None) -> Picture:
        """Return how long the plan takes on each tier, and what limits its speed there.

        Spends: nothing.

        Parameters
        ----------
        tier : list of str, int or Limits, optional
            The default is every tier of the plan's family that has published limits.
        """
        from claudescale.views import plan_charts

        plan, own = self.plan, shown("tier", self.plan.tier)
        mode: Any = plan.compiled.likely_mode
        table = plan.compare(tier=self._tiers() if tier is None else tier, mode=[mode])
        notes = [
            gain_words(gain, binding).removeprefix("is ")
            for gain, binding in table.select("gain", "binding").iter_rows()
        ]
        table = table.with_columns(note=pl.Series(notes))
        return plan_charts.minutes(table, own=own, mode=mode, deadline_minutes=plan.deadline)

    def savings(self, model: str | Iterable[str] = ()) -> Picture:
        """Return what each strategy saves, from the plain price down to the plan's.

        Spends: nothing.

        Parameters
        ----------
        model : str or list of str
            Models to start from, such as ``"claude-opus-5-5"``; each adds a step for not using it.
        """
        from claudescale.views import plan_charts

        plan, mode = self.plan, self.plan.compiled.likely_mode
        return plan_charts.savings(
            self._saved(model),
            model=plan.compiled.model.id,
            batch_dollars=estimates.option(plan.options, "batch")["dollars"] if mode == "live" else None,
        )

    def concurrency(self, runs: Iterable[Run] | pl.DataFrame = ()) -> Picture:
        """Return requests per minute by calls in flight, and the measurements of runs.

        Spends: nothing.

        Parameters
        ----------
        runs : list of Run, or pl.DataFrame
            Live runs of the same plan, each with its own ``concurrency``. Or your own measurements as a
            frame of `concurrency`, `requests_per_minute` (without refused requests) and `refused`.
        """
        from claudescale.views import plan_charts, theme

        plan = self.plan.compiled
        if not plan.totals.requests:
            return theme.nothing(plan_charts.NOTHING)
        if not isinstance(runs, pl.DataFrame):
            runs = pl.DataFrame([_tried(run) for run in runs], schema=_TRIED, orient="row")
        totals, count = plan.totals, plan.totals.requests
        # Token limits are expressed in calls of the plan's mean size.
        used = 1.0, totals.uncached_tokens / count, totals.output_tokens / count
        limits = zip(plan.limits.shared(self.plan.share).per_minute, used, BUCKETS, strict=True)
        most, binding = min((limit / size, name) for limit, size, name in limits if size)
        seconds = plan.expected.seconds
        return plan_charts.concurrency(seconds=seconds, requests_per_minute=most, binding=binding, runs=runs)

    def _saved(self, model: str | Iterable[str] = ()) -> pl.DataFrame:
        """Return the savings of each strategy as `prices.SAVINGS`, in the downward order of `Run.savings`."""
        plan, mode = self.plan, self.plan.compiled.likely_mode
        models = [model] if isinstance(model, str) else list(model)
        plain = plan.compare(model=[*models, plan.model], cache=[False], mode=["live"])
        plain = plain.with_columns(alone=pl.col("dollars") + pl.col("dollars_saved"))
        *others, own = plain.iter_rows(named=True)
        others = [row for row in others if row["model"] != own["model"]]
        live, spent = (estimates.option(plan.options, name)["dollars"] for name in ("live", mode))
        steps = [
            *(("model", f"the same on {row['model']}", row["alone"]) for row in others),
            ("deduplication", "every row sent by itself", own["alone"]),
            ("cache", "nothing cached", own["dollars"]),
            ("batch", "everything sent live", live),
        ]
        frame = pl.DataFrame(steps, schema=list(prices.SAVINGS)[:3], orient="row")
        without = pl.col("dollars_without")
        left = without.shift(-1, fill_value=spent)
        frame = frame.with_columns(dollars_with=left, dollars_saved=without - left)
        share = pl.col("dollars_saved") / without.first()
        return frame.with_columns(share=share.fill_nan(0.0)).cast(prices.SAVINGS)

    def _models(self) -> list[Any]:
        """Return the plan's model and the current model of every other line that could replace it."""
        plan = self.plan
        models: dict[str, Any] = {plan.compiled.model.line: plan.model}
        for model in catalog.MODELS.values():
            is_going = catalog.lifecycle(model) in {"deprecated", "retired"}
            if model.line in models or is_going or model.verified_only:
                continue
            with suppress(PlanError):  # no price, no limits, or no support for a parameter
                for tier in self._near():
                    _ = plan.replace(model=model.id, tier=tier).options
                models[model.line] = model.id
        return [*models.values()]

    def _tiers(self) -> list[Any]:
        """Return the tiers of the plan's family with published limits, after its own `Limits` if any."""
        own, group = self.plan.tier, self.plan.compiled.model.rate_group
        family = "today" if isinstance(own, Limits) else catalog.tier(own).family
        names: list[Any] = [
            tier.name for tier in catalog.TIERS.values() if tier.family == family and group in tier.limits
        ]
        return [own, *names] if isinstance(own, Limits) else names

    def _near(self) -> list[Any]:
        """Return the plan's tier and the tiers just below and above it."""
        tiers, own = self._tiers(), self.plan.tier
        if isinstance(own, Limits) or (name := shown("tier", own)) not in tiers:
            return [own]
        place = tiers.index(name)
        return tiers[max(place - 1, 0) : place + 2]

    def _gain(self) -> str:
        """Return a sentence on what the next tier gains, or an empty text if there is none."""
        mode: Any = self.plan.compiled.likely_mode
        above = self._near()[-1]
        if above == shown("tier", self.plan.tier) or isinstance(above, Limits):
            return ""
        row = self.plan.compare(tier=[above], mode=[mode]).row(0, named=True)
        return f"The next tier ({above}) {gain_words(row['gain'], row['binding'])}."

    def _points(self, lists: dict[str, Any]) -> pl.DataFrame:
        """Return one row per point of `plan_charts.frontier`; choices with the same figures share a row."""
        plan, others = self.plan, [name for name in lists if name not in {"model", "mode"}]
        names = [*(["model"] if "model" in lists else []), "mode", *others]  # in the order of a point's label
        own: Any = {name: [getattr(plan, name)] for name in lists} | {"mode": [plan.compiled.likely_mode]}
        options = pl.concat(
            plan.compare(**given).with_columns(*map(_word, names), chosen=pl.lit(is_own))
            for given, is_own in ((lists, False), (own, True))
        )
        varying = [name for name in names if options[name].n_unique() > 1]
        colors = [name for name in varying if name not in {"tier", "mode"}]
        options = options.with_columns(frontier(options), group=colors[0] if colors else pl.lit(""))
        groups = options.partition_by("group", maintain_order=True)
        options = pl.concat(group.with_columns(frontier(group).alias("best")) for group in groups)
        figures = [pl.col(name).round_sig_figs(9) for name in FIGURES]
        points = options.group_by("group", "mode", *figures, maintain_order=True).agg(
            pl.col("binding").first().str.replace_all("_", " "),
            pl.col("frontier", "best").first(),
            pl.col("chosen").any(),
            *(pl.col(name).unique(maintain_order=True).alias(f"{name}s") for name in varying),
            choices=pl.struct(names).n_unique(),
        )
        # A point is labeled by the parameters that vary, except those of which it has every value.
        counts = {f"{name}s": options[name].n_unique() for name in varying}
        choice = [
            " ".join("/".join(row[name]) for name, count in counts.items() if len(row[name]) < count)
            for row in points.iter_rows(named=True)
        ]
        return points.with_columns(choice=pl.Series(choice).replace("", None).fill_null(points["mode"]))


def _tried(run: Run) -> tuple[float, float, int]:
    """Return a run's calls in flight, its requests per minute without refused ones, and the refused ones."""
    counts, minutes = run.counts, run.minutes or float("inf")
    flight = run.plan.concurrency or float(run.attempts["seconds"].sum()) / 60 / minutes
    return float(flight), (counts.requests - counts.refused) / minutes, counts.refused


def _word(name: str) -> pl.Expr:
    """Return the values of a parameter as short labels of points."""
    words = pl.col(name).cast(pl.String).fill_null("None").str.strip_prefix("claude-").str.head(_LONGEST_WORD)
    return words if name in {"model", "tier", "mode"} else pl.format(f"{name}={{}}", words).alias(name)
