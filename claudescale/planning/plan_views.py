"""How a plan looks: its card, and the frames that go into its pictures."""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many plans are never drawn

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops, text
from claudescale.api import catalog, limits, prices
from claudescale.api.limits import BUCKETS, Limits
from claudescale.errors import PlanError
from claudescale.planning import choices as comparing
from claudescale.planning import estimates
from claudescale.views.card import Card

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.views.theme import Picture

_SAVED = 5e-5  # dollars, and of the price the part, below which nothing is saved
_FIGURES = ["dollars", "dollars_p90", "minutes", "minutes_p90"]
_LONGEST_WORD = 24


def awaited(call: str) -> str:
    """Return what to type for the result of a call: in a script nothing can be awaited."""
    return f"run = await {call}" if loops.in_notebook() else f"run = cs.wait({call})"


def plan_card(plan: Plan) -> Card:
    """Return what is shown of a plan."""
    try:
        totals, options = plan.totals, plan.options
        chosen = comparing.resolved(plan).mode
    except PlanError as error:
        return Card(title=f"Plan that cannot be run: {error}")
    saved = totals.rows - totals.unsent - totals.requests
    same = f", {saved:,} identical rows sent once" if saved else ""
    null = f", {totals.unsent:,} with a null not sent" if totals.unsent else ""
    mark = pl.col("mode") + pl.when(pl.col("mode") == chosen).then(pl.lit(" ←")).otherwise(pl.lit(""))
    worth = pl.col("dollars_saved").abs() > pl.max_horizontal(
        pl.col("dollars") * _SAVED, pl.lit(_SAVED / 100)
    )
    table = options.select(mark, *_FIGURES, pl.when(worth).then("dollars_saved"), "binding")
    if not table["dollars_saved"].count():
        table = table.drop("dollars_saved")
    calls = plan.expected.calls
    basis = plan.expected.basis + ("" if calls else ": calibrate with a pilot")
    tokens = f"{text.tokens(totals.input_tokens)} input + {text.tokens(totals.output_tokens)} output tokens"
    sources = f"Prices: {prices.price(plan.facts).source}. Limits: {plan.limits.provenance}."
    batch = estimates.option(options, "batch")["minutes_p90"]
    notes = [f"{tokens}, {basis}. {sources}", *_notices(plan), *plan.compiled.notes]
    following = "run = await plan.run(client)"
    if plan.kept is not None:
        following = awaited(f"{plan.kept.typed}.run(client)")
    elif not calls:
        live = "" if chosen == "live" else ".replace(mode='live')"
        following = f"pilot = await plan.sample(50){live}.run(client)"
    return Card.of(
        table,
        title=f"Plan: {totals.rows:,} rows on {plan.facts.id}, {totals.requests:,} requests{same}{null}. "
        "Nothing is sent yet.",
        notes=[*notes, *catalog.notices(plan.facts, batch_minutes=batch)],
        next=following,
    )


def _notices(plan: Plan) -> Iterable[str]:
    """Return what is worth knowing of this plan: what is taken over, assumed, or would be better."""
    if plan.kept is not None and plan.kept.keys.count():
        failed = plan.kept.failed
        yield f"{plan.kept.keys.count() - sum(failed.values()):,} answered rows are taken over at no cost."
        if failed:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
            yield f"Left out, as the same request would fail again: {kinds}."
    if differs := limits.differs(plan.limits, plan.tier, plan.facts):
        yield differs
    # Limits that are no tier's are set by something else than a tier.
    if limits.tiers_with(plan.limits, plan.facts) and comparing.higher(plan):
        yield f"The next tier, {comparing.upgrade(plan)}."
    if plan.expected.cached_tokens:
        low, high = (f"{share:.0%}" for share in catalog.BATCH.cache_hit_shares)
        share = f"{estimates.BATCH_HIT_SHARE:.0%}"
        yield f"In a batch {share} of the requests are taken to find the cache: {low} to {high} are usual."


class PlanPlots:
    """The pictures of one plan, each an Altair chart; nothing is sent for it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def frontier(self, **lists: Iterable[Any]) -> Picture:
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
        from claudescale.views import plan_charts

        plan = self._plan
        return plan_charts.frontier(
            choices(plan, lists or _usual(plan)),
            deadline_minutes=plan.deadline,
            budget_dollars=plan.budget,
        )

    def minutes(self, tier: Iterable[str | int | Limits] | None = None) -> Picture:
        """Return how long the plan takes on each tier in its mode, and what limits it there.

        Spends: nothing.

        Parameters
        ----------
        tier : list of str, int or Limits, optional
            The default is all of the plan's family of tiers with published limits.
        """
        from claudescale.views import plan_charts

        plan = self._plan
        return plan_charts.minutes(
            comparing.tiers(plan, tier),
            own=comparing.tier_name(plan.tier),
            mode=comparing.mode_of(plan),
            deadline_minutes=plan.deadline,
        )

    def savings(self, model: str | Iterable[str] = ()) -> Picture:
        """Return what the rows would cost plainly, what each strategy saves of it, what the plan costs.

        Spends: nothing.

        Parameters
        ----------
        model : str or list of str
            Models to begin with, such as ``"claude-opus-5-5"``: then not to use them is a step too.
        """
        from claudescale.views import plan_charts

        plan = self._plan
        by_batch = estimates.option(plan.options, "batch")["dollars"]
        return plan_charts.savings(
            comparing.savings(plan, model),
            model=plan.facts.id,
            batch_dollars=by_batch if comparing.mode_of(plan) == "live" else None,
        )

    def concurrency(self, runs: Iterable[Run] = ()) -> Picture:
        """Return what a minute gets done by the calls in flight, with the runs that tried it as points.

        Spends: nothing.

        Parameters
        ----------
        runs : list of Run
            Live ones of the same plan, each with its own ``concurrency``.
        """
        from claudescale.views import plan_charts

        most, binding = allowed(self._plan)
        tried = pl.DataFrame([_tried(run) for run in runs], schema=plan_charts.RUNS, orient="row")
        return plan_charts.concurrency(
            seconds=self._plan.expected.seconds, requests_per_minute=most, binding=binding, runs=tried
        )


def allowed(plan: Plan) -> tuple[float, str]:
    """Return the requests per minute that a plan's limits let through, and which limit that is.

    Limits on tokens are counted in calls of the plan's mean size.
    """
    totals, limits = plan.totals, plan.limits.shared(plan.share)
    tokens = totals.input_tokens - totals.cache_read_tokens, totals.output_tokens
    sizes = (1.0, *(each / max(totals.requests, 1) for each in tokens))
    rates = [most / size for most, size in zip(limits.per_minute, sizes, strict=True) if size]
    names = [name for name, size in zip(BUCKETS, sizes, strict=True) if size]
    return min(zip(rates, names, strict=True))


def _tried(run: Run) -> tuple[str, float, float, int]:
    """Return what a run got done, and with how many calls in flight on average."""
    counts, minutes = run.counts, run.minutes
    busy = run.attempts.select(pl.col("seconds").sum()).item() / 60
    flight = run.plan.concurrency or (busy / minutes if minutes else 0.0)
    name, done = f"concurrency={run.plan.concurrency}", counts.requests - counts.refused
    return name, float(flight), done / minutes if minutes else 0.0, counts.refused


def _usual(plan: Plan) -> dict[str, Iterable[Any]]:
    """Return the choices one has before a run: another model, the tier next to this one, another mode."""
    own, several = comparing.tier_name(plan.tier), comparing.family(plan)
    names = [comparing.tier_name(tier) for tier in several]
    place = names.index(own) if own in names else 0
    near: list[Any] = [plan.tier] if isinstance(plan.tier, Limits) else several[max(place - 1, 0) : place + 2]
    return {"model": comparing.current_models(plan, near), "tier": near}


def choices(plan: Plan, lists: dict[str, Iterable[Any]]) -> pl.DataFrame:
    """Return a row per choice of `Plan.compare`, the plan's own among them, for `plan_charts.frontier`.

    Choices that differ in name alone are one row: a batch is the same on every tier.
    """
    tried = {name: [_canonical(name, value) for value in values] for name, values in lists.items()}
    names = [name for name in tried if name != "mode"]
    words = pl.col(names).cast(pl.String).fill_null("None").replace(["true", "false"], ["True", "False"])
    own = {name: [_canonical(name, getattr(plan, name))] for name in names}
    chosen = plan.compare(**own) if own else plan.options
    chosen = chosen.filter(mode=comparing.mode_of(plan)).with_columns(words)
    options = plan.compare(**tried) if names else plan.options.filter(pl.col("mode").is_in(tried["mode"]))
    options, key = options.with_columns(words), [*names, "mode"]
    options = pl.concat([options, chosen.join(options, on=key, how="anti")])
    options = options.join(chosen.select(key, chosen=True), on=key, how="left", maintain_order="left")
    varying = [name for name in names if options[name].n_unique() > 1]
    colored = [name for name in ("model", *varying) if name in varying and name != "tier"][:1]
    parts = options.partition_by(colored) if colored else [options]
    best = pl.concat([comparing.frontier(part).rename({"frontier": "best"}) for part in parts])
    options = comparing.frontier(options).join(
        best.select(*key, "best"), on=key, how="left", maintain_order="left"
    )
    figures = [pl.col(name).round_sig_figs(9) for name in _FIGURES]
    points = options.group_by(*colored, "mode", *figures, maintain_order=True).agg(
        pl.col("binding", "frontier", "best").first(),
        pl.col("chosen").any(),
        *(pl.col(name).unique(maintain_order=True).alias(f"{name}s") for name in varying),
        choices=pl.len(),
    )
    several_modes = options["mode"].n_unique() > 1
    labels, groups = [], []
    for row in points.iter_rows(named=True):
        shown = {name: row[f"{name}s"] for name in varying if len(row[f"{name}s"]) < options[name].n_unique()}
        label = ["/".join(_word(name, value) for value in values) for name, values in shown.items()]
        if several_modes or not label:
            label.insert("model" in varying, row["mode"])
        labels.append(" ".join(label))
        groups.append(" ".join(_word(name, row[name]) for name in colored))
    return points.with_columns(
        pl.col("binding").str.replace_all("_", " "), choice=pl.Series(labels), group=pl.Series(groups)
    )


def _canonical(name: str, value: Any) -> Any:
    """Return a value under its one name, so that the plan's own is found among those given."""
    if name == "model":
        facts = catalog.model(value)
        return value if facts.given else facts.id
    return catalog.tier(value).name if name == "tier" and not isinstance(value, Limits) else value


def _word(name: str, value: str) -> str:
    """Return a value as a short word beside a point."""
    if name == "model":
        return value.removeprefix("claude-")
    short = value if len(value) <= _LONGEST_WORD else value[: _LONGEST_WORD - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return short if name == "tier" else f"{name}={short}"
