"""Pictures of a plan, before anything is sent, and of a trial: cost, time and score of each choice.

A chart knows column names, never our objects.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

from claudescale import text, views
from claudescale.views import run_charts, theme
from claudescale.views.theme import axis_to, chart, finite, highest, limit, log_axis, nothing, picture, tips

NOTHING = "There is nothing to send."
UNTIL = "Time until the last row is answered (median and 90th percentile)"
MOST_NAMES = 6


def frontier(
    points: pl.DataFrame, *, deadline_minutes: float | None = None, budget_dollars: float | None = None
) -> theme.Picture:
    """Return the chart of dollars against time: a point per choice, with a line that joins the unbeaten.

    A dashed line joins the choices unbeaten within their color, since price and time do not measure the
    quality of a model's answers. A beaten point has its name only in its tooltip.

    Spends: nothing.

    Parameters
    ----------
    points : pl.DataFrame
        `choice`, `group` (its color), `mode` (its shape), `binding`, `dollars`, `dollars_p90`, `minutes`,
        `minutes_p90`; `frontier` if no choice is as cheap and as fast, `best` if none in its group is;
        `chosen` marks the plan's own, `choices` counts the choices behind a point.
    deadline_minutes, budget_dollars : float or None
        Minutes and dollars that the plan may use, drawn as labeled lines.
    """
    timed = finite(points).drop_nulls(["minutes", "minutes_p90"]).filter(pl.col("minutes") > 0)
    points = timed.filter(pl.col("dollars") > 0)
    if points.is_empty():
        return nothing("What these rows cost is not known." if timed.height else NOTHING)
    points = points.sort("minutes", "dollars", "choice", descending=[False, True, False])
    unbeaten, chosen = pl.col("frontier"), pl.col("chosen")
    named = unbeaten
    if points["frontier"].sum() > MOST_NAMES:  # a long frontier has only its ends and the plan named
        place = unbeaten.cum_sum()
        named &= chosen | (place == 1) | (place == place.max())
    points = points.with_columns(
        time=pl.col("minutes").map_elements(text.duration, pl.String),
        slow=pl.col("minutes_p90").map_elements(text.duration, pl.String),
        above=pl.when(chosen & ~unbeaten).then("choice"),
        below=pl.when(named).then("choice"),
    )
    times, prices = [*points["minutes"], *points["minutes_p90"]], points["dollars"].to_list()
    x, is_late = log_axis(times, UNTIL, views.CLOCK, wish=deadline_minutes, ticks=theme.MOMENTS)
    y, is_rich = log_axis(prices, "US dollars", theme.DOLLARS, wish=budget_dollars)
    cheapest = alt.EncodingSortField("dollars", op="min")
    legends = {name: alt.Legend() if points[name].n_unique() > 1 else None for name in ("group", "mode")}
    color = alt.Color("group:N", sort=cheapest, legend=legends["group"])
    shape = alt.Shape("mode:N", sort=cheapest, legend=legends["mode"])
    base = chart(points).encode(x=alt.X("minutes:Q", **x), y=alt.Y("dollars:Q", **y))
    stairs: dict[str, Any] = {"interpolate": "step-after"}
    dotted: dict[str, Any] = {"strokeDash": [2, 3], "strokeWidth": 1}
    tooltip = tips(choice="", dollars="$,.4~f", dollars_p90="$,.4~f", time="", slow="", binding="")
    layers = [
        base.mark_rule(strokeWidth=2.5, opacity=0.35).encode(x2="minutes_p90:Q", color=color),
        base.transform_filter("datum.best").mark_line(**stairs, **dotted).encode(color=color),
        base.transform_filter("datum.frontier").mark_line(**stairs, color=views.GREY, strokeWidth=1.5),
        base.transform_filter("datum.chosen").mark_point(size=260, color=views.GREY, opacity=1),
        base.mark_point(filled=True, size=75, opacity=1).encode(color=color, shape=shape, tooltip=tooltip),
        # Below the frontier there are no points, so a name there covers none.
        base.transform_filter("datum.below").mark_text(align="left", dx=9, dy=12).encode(text="below:N"),
        base.transform_filter("datum.above").mark_text(align="left", dx=9, dy=-10).encode(text="above:N"),
    ]
    if deadline_minutes is not None:
        layers += limit(f"deadline {text.duration(deadline_minutes)}", x=deadline_minutes, far=is_late)
    if budget_dollars is not None:
        layers += limit(f"budget\n{text.dollars(budget_dollars)}", y=budget_dollars, far=is_rich)
    sentence, more = _frontier_words(points)
    return picture(layers, sentence, more=more, height=300)


def _frontier_words(points: pl.DataFrame) -> tuple[str, str]:
    """Return the sentence about the frontier, and the one that compares the plan with it."""

    def figures(row: dict[str, Any]) -> str:
        return f"{text.dollars(row['dollars'])} in {text.duration(row['minutes'])}"

    best = points.filter("frontier")
    fast, cheap = best.row(0, named=True), best.row(-1, named=True)
    count = points["choices"].sum()
    if count == 1:
        return figures(fast), ""
    sentence = f"From {figures(cheap)} ({cheap['choice']}) to {figures(fast)} ({fast['choice']})"
    if best.height == 1:
        sentence = f"{fast['choice']} is the cheapest and the fastest: {figures(fast)}"
    more = f"{count:,} choices"
    for own in points.filter("chosen").iter_rows(named=True):
        better = best.filter(pl.col("dollars") <= own["dollars"], pl.col("minutes") <= own["minutes"])
        beaten = "nothing beats it" if own["frontier"] else f"{better['choice'][0]} beats it"
        more += f". This plan (ringed), {own['choice']}: {figures(own)}; {beaten}"
    return sentence, more


def minutes(
    tiers: pl.DataFrame, *, own: str, mode: str, deadline_minutes: float | None = None
) -> theme.Picture:
    """Return the chart of how long a plan takes on each tier, colored and labeled by its binding limit.

    A bar is solid up to the usual time and pale up to the 90th percentile, for a batch up to its latest end.

    Spends: nothing.

    Parameters
    ----------
    tiers : pl.DataFrame
        `tier`, `minutes`, `minutes_p90`, `binding`, and `note`: what the tier gains.
    own : str
        The plan's tier.
    mode : str
        The plan's mode.
    deadline_minutes : float or None
        Minutes the run may take, drawn as a labeled line.
    """
    tiers = finite(tiers).with_columns(pl.col("binding").str.replace_all("_", " "))
    most = highest(tiers, "minutes", "minutes_p90")
    if not most:
        return nothing(NOTHING)
    words = [_tier_words(row, own) for row in tiers.iter_rows(named=True)]
    until, far = theme.reach(most, deadline_minutes)
    until *= 1.05
    bars = chart(tiers.with_columns(words=pl.Series(words, dtype=pl.String)))
    bars = bars.encode(y=alt.Y("tier:N", sort=None, axis=None))
    tooltip = tips(tier="", words="", binding="", note="")
    layers = [
        bars.mark_bar(size=16, yOffset=8, opacity=opacity).encode(
            x=theme.time_axis(name, until, UNTIL), color=alt.Color("binding:N", sort=None), tooltip=tooltip
        )
        for name, opacity in (("minutes_p90", 0.35), ("minutes", 1.0))
    ]
    layers.append(bars.mark_text(align="left", dy=-9).encode(x=alt.value(0), text="words:N"))
    if deadline_minutes is not None:
        deadline = limit(f"deadline {text.duration(deadline_minutes)}", x=deadline_minutes, far=far)
        layers = [*deadline, *layers]
    sentence = mode.capitalize()
    for row in tiers.filter(tier=own).iter_rows(named=True):
        sentence += f" on {own}: {_time(row)}, limited by {row['binding']}"
    return picture(layers, sentence, height=alt.Step(42))


def _time(row: dict[str, Any]) -> str:
    return text.span(text.duration(row["minutes"]), text.duration(row["minutes_p90"]))


def _tier_words(row: dict[str, Any], own: str) -> str:
    if row["tier"] == own:
        return f"{own} (this plan): {_time(row)}"
    return f"{row['tier']}: {_time(row)}; {row['note'].partition(';')[0]}"


def savings(savings: pl.DataFrame, *, model: str, batch_dollars: float | None = None) -> theme.Picture:
    """Return the chart of a plan's cost without any strategy, the savings of each, and the plan's cost.

    Spends: nothing.

    Parameters
    ----------
    savings : pl.DataFrame
        `strategy`, `counterfactual`, `dollars_without`, `dollars_with` and `dollars_saved`, for a plan.
    model : str
        The plan's model.
    batch_dollars : float or None
        The plan's cost by batch, if it is not one.
    """
    used = {"deduplication": "identical rows sent once", "cache": "cached", "batch": "by batch, not live"}
    others = savings.filter(strategy="model")["counterfactual"].str.replace("the same on ", "")
    models = [name.removeprefix("claude-") for name in (*others, model)]
    changes = (f"{cheaper}, not {dearer}" for dearer, cheaper in pairwise(models))
    parts = [(f"{models[0]} live, row by row", savings["dollars_without"][0])]
    for strategy, saved in savings.select("strategy", "dollars_saved").iter_rows():
        parts.append((next(changes) if strategy == "model" else used[strategy], saved))
    dollars, more = savings["dollars_with"][-1], ""
    parts.append(("this plan", dollars))
    if batch_dollars is not None and dollars:
        less = dollars - batch_dollars
        more = f"; by batch {text.dollars(abs(less))} {'less' if less >= 0 else 'more'}"
    frame = pl.DataFrame(parts, schema={"part": pl.String, "dollars": pl.Float64}, orient="row")
    return run_charts.savings(frame, verb="", more=more, empty=NOTHING)


def concurrency(
    *, seconds: float, requests_per_minute: float, binding: str, runs: pl.DataFrame
) -> theme.Picture:
    """Return the chart of requests per minute by calls in flight: a slope by Little's law, then the limit.

    Spends: nothing.

    Parameters
    ----------
    seconds : float
        From sending a call to its complete answer.
    requests_per_minute : float
        The most that the limits allow.
    binding : str
        The name of the binding limit.
    runs : pl.DataFrame
        `concurrency`, `requests_per_minute` and `refused` (calls refused with 429).

    Notes
    -----
    Source: J. D. C. Little, "A Proof for the Queuing Formula: L = λW", *Operations Research* 9 (1961).
    """
    needed = requests_per_minute / 60 * seconds
    runs = finite(runs).sort("concurrency")
    tried = highest(runs, "concurrency")
    _, far = theme.reach(tried, needed)
    high = 1.25 * tried if far else max(2 * needed, 16.0, tried)
    bend = {
        "concurrency": [0.0, needed, max(needed, high)],
        "requests_per_minute": [0.0, *[requests_per_minute] * 2],
    }
    top = max(min(requests_per_minute, high * 60 / seconds), highest(runs, "requests_per_minute"))
    x = alt.X("concurrency:Q", title="Calls in flight", scale=alt.Scale(domain=[0, high], nice=False))
    y = alt.Y("requests_per_minute:Q", title="Requests per minute", **axis_to(top, labelExpr=views.NUMBERS))
    tooltip = tips(concurrency=",d", requests_per_minute=",.0f", refused=",d")
    tries = chart(runs).mark_point(filled=True, size=70, color=views.VERMILION, opacity=1)
    most = f"limit of\n{binding.replace('_', ' ')}\n{requests_per_minute:,.0f}/min"
    layers = [
        chart(pl.DataFrame(bend)).mark_line(color=views.BLUE, strokeWidth=2, clip=True).encode(x=x, y=y),
        *limit(most, y=requests_per_minute, far=far),
        tries.encode(x=x, y=y, tooltip=tooltip),
    ]
    enough = math.ceil(needed)
    if enough > 1 and not far:  # at the line's foot: above the frame it would cover the axis title
        words = chart().mark_text(text=f"{enough:,} are enough", align="left", dx=6, dy=-8, color=views.GREY)
        layers += [limit("", x=needed)[0], words.encode(x=alt.datum(needed), y=alt.datum(0))]
    are = "is" if enough <= 1 else "are"
    sentence = f"{text.plural(max(enough, 1), 'call')} in flight {are} enough for {requests_per_minute:,.0f}"
    sentence += " requests a minute"
    for best in runs.sort("requests_per_minute").tail(1).iter_rows(named=True):
        sentence += f"; measured: at most {best['requests_per_minute']:,.0f}, with {best['concurrency']:,.0f}"
    return picture(layers, sentence)


def quality(
    trial: pl.DataFrame, evidence: pl.DataFrame | None = None, min_score: float | None = None
) -> theme.Picture:
    """Return each choice's score, a point with its interval, against its dollars per 1,000 rows.

    Spends: nothing.

    Parameters
    ----------
    trial : pl.DataFrame
        `Trial.table`.
    evidence : pl.DataFrame or None
        `Trial.evidence`: the choices that do not clear the gate are orange.
    min_score : float or None
        The score to reach, drawn as a labeled line.
    """
    price = pl.col("dollars_per_1000_rows")
    scored = trial.drop_nulls("score").filter(price > 0).sort("score", price, descending=[True, False])
    if scored.is_empty():
        return nothing("Nothing to show yet: run the trial first.")
    good = scored["choice"] if evidence is None else evidence.filter("clears")["choice"]
    # Names alternate above and below the intervals, so that neighbors do not touch.
    points = scored.sort(price).with_columns(
        clears=pl.col("choice").is_in(good.implode()),
        name=pl.col("choice").str.replace_all("claude-", ""),
        above=pl.int_range(pl.len()) % 2 == 0,
    )
    x, _ = log_axis(points["dollars_per_1000_rows"].to_list(), "US dollars per 1,000 rows", theme.DOLLARS)
    y = alt.Y("score:Q").title("Score and its interval").scale(zero=False, padding=20)
    y = y.axis(grid=False, domain=True, ticks=True)  # a grid line would strike through a name
    color = alt.condition("datum.clears", alt.value(views.BLUE), alt.value(views.ORANGE))
    hover = tips(
        choice="", rows=",d", score=".3f", score_low=".3f", score_high=".3f", dollars_per_1000_rows="$,.3~r"
    )
    base = chart(points).encode(alt.X("dollars_per_1000_rows:Q", **x))
    names = base.encode(text="name:N")
    layers = [
        base.mark_rule(strokeWidth=2).encode(alt.Y("score_low:Q"), alt.Y2("score_high:Q"), color=color),
        base.mark_circle(size=90, opacity=1).encode(y, color=color, tooltip=hover),
        names.transform_filter("datum.above").mark_text(dy=-12).encode(alt.Y("score_high:Q")),
        names.transform_filter("!datum.above").mark_text(dy=12).encode(alt.Y("score_low:Q")),
    ]
    best = scored.row(0, named=True)
    price_words = f"{text.dollars(best['dollars_per_1000_rows'])} per 1,000 rows"
    sentence = f"{best['choice']} scores best, {best['score']:.3g}, for {price_words}"
    if min_score is not None:
        layers += limit(f"to reach:\n{min_score:g}", y=min_score)
        sentence = f"{points['clears'].sum()} of {points.height} shown to reach {min_score:g}; {sentence}"
    return picture(layers, "SIMULATED: " * points["simulated"].any() + sentence)
