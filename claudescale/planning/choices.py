"""The choices that a plan has: which nothing beats, what another tier gains, and the pictures of them."""
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
_NO_GAIN = 1.1  # less than so many times faster is nothing to pay for
_FELT_SHARE, _FELT_MINUTES, _FELT_SLOW = 0.01, 5 / 60, 0.5
"""What nobody feels: a price higher by less than this part, a time longer by less than this, and a 90th
percentile of a time longer by less than this part."""


def shown(name: str, value: Any) -> Any:
    """Return a parameter's value as columns have it: the one name of a model or tier, limits in short."""
    if name == "model":
        return catalog.model(value).id
    if name == "tier":
        limits = isinstance(value, Limits)
        return f"Limits({', '.join(map(tokens, value.per_minute))})" if limits else catalog.tier(value).name
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def gain_words(gain: float, binding: str) -> str:
    """Return in a few words what a tier gains, or why it gains nothing."""
    words = binding.replace("_", " ")
    if 1 / _NO_GAIN < gain < _NO_GAIN:
        return "gains nothing: " + (f"the run is limited by {words}" if words != "nothing to send" else words)
    times = f"{gain:,.1f} times faster" if gain > 1 else f"{1 / gain:,.1f} times slower"
    return f"is {times}, limited by {words}"


def frontier(options: pl.DataFrame) -> pl.Series:
    """Return which options are on the frontier: no other is as cheap and as fast and better in one.

    Only a difference that can be felt counts. Prices are alike up to 1%. Times are alike up to five seconds
    and where they differ by less than both may vary, from `minutes` to `minutes_p90`; what they may take is
    alike where one is not half as long again as the other. Options that are alike in all are on it together;
    one whose figures are unknown is not.

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
    """Whether it is felt that an option is worse in dollars, usual minutes or slow ones."""
    (dollars, usual, slow), (other_dollars, other_usual, other_slow) = one, other
    alike = max(min(slow - usual, other_slow - other_usual), _FELT_MINUTES)
    return (
        dollars - other_dollars > _FELT_SHARE * min(dollars, other_dollars)
        or usual - other_usual > alike
        or slow - other_slow > max(alike, _FELT_SLOW * min(slow, other_slow))
    )


@dataclass(frozen=True, repr=False)
class PlanPlots(Gallery):
    """The pictures of one plan, each an Altair chart; nothing is sent for it."""

    plan: Plan

    def frontier(self, **lists: Iterable[Any]) -> Picture:
        """Return dollars against time, a point per choice.

        Those that nothing beats in both are joined. The time of a batch is drawn as it is known: from the
        usual hour to the day after which it expires.
        Choices of the same price and time are one point.

        Spends: nothing.

        Parameters
        ----------
        **lists
            As for `Plan.compare`. The default is the plan's model beside the current ones of other lines,
            its tier beside its neighbours, and every mode.
        """
        from claudescale.views import plan_charts

        plan = self.plan
        deadline, budget = plan.deadline, plan.budget
        points = self._points(lists or {"model": self._models(), "tier": self._near()})
        return plan_charts.frontier(points, deadline_minutes=deadline, budget_dollars=budget)

    def minutes(self, tier: Iterable[str | int | Limits] | None = None) -> Picture:
        """Return how long the plan takes on each tier, and what limits it there.

        Spends: nothing.

        Parameters
        ----------
        tier : list of str, int or Limits, optional
            The default is all of the plan's family of tiers with published limits.
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
        """Return what each strategy saves of the plain price, down to the plan's.

        Spends: nothing.

        Parameters
        ----------
        model : str or list of str
            Models to begin with, such as ``"claude-opus-5-5"``: then not to use them is a step too.
        """
        from claudescale.views import plan_charts

        plan, mode = self.plan, self.plan.compiled.likely_mode
        return plan_charts.savings(
            self._saved(model),
            model=plan.compiled.model.id,
            batch_dollars=estimates.option(plan.options, "batch")["dollars"] if mode == "live" else None,
        )

    def concurrency(self, runs: Iterable[Run] | pl.DataFrame = ()) -> Picture:
        """Return requests per minute by calls in flight, and what runs have measured.

        Spends: nothing.

        Parameters
        ----------
        runs : list of Run, or pl.DataFrame
            Live ones of the same plan, each with its own ``concurrency``. Or calls of your own as a frame of
            `concurrency`, `requests_per_minute` (of those not refused) and `refused`.
        """
        from claudescale.views import plan_charts, theme

        plan = self.plan.compiled
        if not plan.totals.requests:
            return theme.nothing(plan_charts.NOTHING)
        if not isinstance(runs, pl.DataFrame):
            runs = pl.DataFrame([_tried(run) for run in runs], schema=_TRIED, orient="row")
        totals, count = plan.totals, plan.totals.requests
        # Limits on tokens are counted in calls of the plan's mean size.
        used = 1.0, totals.uncached_tokens / count, totals.output_tokens / count
        limits = zip(plan.limits.shared(self.plan.share).per_minute, used, BUCKETS, strict=True)
        most, binding = min((limit / size, name) for limit, size, name in limits if size)
        seconds = plan.expected.seconds
        return plan_charts.concurrency(seconds=seconds, requests_per_minute=most, binding=binding, runs=runs)

    def _saved(self, model: str | Iterable[str] = ()) -> pl.DataFrame:
        """Return what each strategy saves as `prices.SAVINGS`, read downward like `Run.savings`."""
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
        """Return the plan's model and the current one of every other line that could take its place."""
        plan = self.plan
        models: dict[str, Any] = {plan.compiled.model.line: plan.model}
        for model in catalog.MODELS.values():
            is_going = catalog.lifecycle(model) in {"deprecated", "retired"}
            if model.line in models or is_going or model.verified_only:
                continue
            with suppress(PlanError):  # no price, no limits, or it cannot do what is asked
                for tier in self._near():
                    _ = plan.replace(model=model.id, tier=tier).options
                models[model.line] = model.id
        return [*models.values()]

    def _tiers(self) -> list[Any]:
        """Return the tiers of the plan's family with published limits, with its own limits before them."""
        own, group = self.plan.tier, self.plan.compiled.model.rate_group
        family = "today" if isinstance(own, Limits) else catalog.tier(own).family
        names: list[Any] = [
            tier.name for tier in catalog.TIERS.values() if tier.family == family and group in tier.limits
        ]
        return [own, *names] if isinstance(own, Limits) else names

    def _near(self) -> list[Any]:
        """Return the plan's tier, the one below it and the one above it."""
        tiers, own = self._tiers(), self.plan.tier
        if isinstance(own, Limits) or (name := shown("tier", own)) not in tiers:
            return [own]
        place = tiers.index(name)
        return tiers[max(place - 1, 0) : place + 2]

    def _gain(self) -> str:
        """Return what the tier above the plan's gains; nothing where there is none."""
        mode: Any = self.plan.compiled.likely_mode
        above = self._near()[-1]
        if above == shown("tier", self.plan.tier) or isinstance(above, Limits):
            return ""
        row = self.plan.compare(tier=[above], mode=[mode]).row(0, named=True)
        return f"The next tier ({above}) {gain_words(row['gain'], row['binding'])}."

    def _points(self, lists: dict[str, Any]) -> pl.DataFrame:
        """Return a row per choice for `plan_charts.frontier`; those that differ in name alone are one row."""
        plan, others = self.plan, [name for name in lists if name not in {"model", "mode"}]
        names = [*(["model"] if "model" in lists else []), "mode", *others]  # as they are told of a point
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
        # A point is named by what others differ in; one that stands for all values of a name, not by that.
        counts = {f"{name}s": options[name].n_unique() for name in varying}
        choice = [
            " ".join("/".join(row[name]) for name, count in counts.items() if len(row[name]) < count)
            for row in points.iter_rows(named=True)
        ]
        return points.with_columns(choice=pl.Series(choice).replace("", None).fill_null(points["mode"]))


def _tried(run: Run) -> tuple[float, float, int]:
    """Return the calls in flight of a run, what a minute got done, and how many were refused."""
    counts, minutes = run.counts, run.minutes or float("inf")
    flight = run.plan.concurrency or float(run.attempts["seconds"].sum()) / 60 / minutes
    return float(flight), (counts.requests - counts.refused) / minutes, counts.refused


def _word(name: str) -> pl.Expr:
    """Return the values of a parameter as short words beside points."""
    words = pl.col(name).cast(pl.String).fill_null("None").str.strip_prefix("claude-").str.head(_LONGEST_WORD)
    return words if name in {"model", "tier", "mode"} else pl.format(f"{name}={{}}", words).alias(name)
