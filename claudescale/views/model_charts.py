"""Pictures of models: what a trial's choices score for which price, and what a cascade cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from claudescale.text import dollars
from claudescale.views import BLUE, ORANGE, SKY
from claudescale.views.theme import DOLLARS, chart, highest, limit, nothing, picture, tips

if TYPE_CHECKING:
    from claudescale.views.theme import Picture

_NEAR = 8  # from so many times the cheapest on, dollars stand on a log scale


def quality(
    trial: pl.DataFrame, evidence: pl.DataFrame | None = None, min_score: float | None = None
) -> Picture:
    """Return each choice's score, a point with its interval, against its dollars per 1,000 rows.

    Spends: nothing.

    Parameters
    ----------
    trial : pl.DataFrame
        `Trial.table`.
    evidence : pl.DataFrame or None
        `Trial.evidence`: the choices that do not clear the gate are orange.
    min_score : float or None
        The score to reach, drawn as a labelled line.
    """
    known = trial.drop_nulls(["score", "dollars_per_1000_rows"]).sort("dollars_per_1000_rows")
    if known.is_empty():
        return nothing("Nothing to show yet: run the trial first.")
    good = known["choice"] if evidence is None else evidence.filter("clears")["choice"]
    known = known.with_columns(clears=pl.col("choice").is_in(good.implode()))
    low, high = known["dollars_per_1000_rows"][0], known["dollars_per_1000_rows"][-1]
    log = 0 < low * _NEAR < high
    axis = alt.Axis(labelExpr=DOLLARS, labelSeparation=9)
    scale = alt.Scale(type="log", padding=60) if log else alt.Scale(zero=True, padding=60)
    title = "US dollars per 1,000 rows" + ", log scale" * log
    x = alt.X("dollars_per_1000_rows:Q", title=title, axis=axis, scale=scale)
    y = alt.Y("score:Q").title("Score and its interval").scale(zero=False, padding=12)
    color = alt.condition("datum.clears", alt.value(BLUE), alt.value(ORANGE))
    hover = tips(
        choice="", rows=",d", score=".3f", score_low=".3f", score_high=".3f", dollars_per_1000_rows="$,.3~r"
    )
    base = chart(known.with_columns(name=pl.col("choice").str.replace_all("claude-", ""))).encode(
        x, color=color
    )
    layers = [
        base.mark_rule(strokeWidth=2).encode(alt.Y("score_low:Q"), alt.Y2("score_high:Q")),
        base.mark_circle(size=90, opacity=1).encode(y, tooltip=hover),
        base.mark_text(align="left", dx=9).encode(y, text="name:N"),
    ]
    mark = "SIMULATED: " if known["simulated"].any() else ""
    best = known.sort("score", "dollars_per_1000_rows", descending=[True, False]).row(0, named=True)
    price = f"{dollars(best['dollars_per_1000_rows'])} per 1,000 rows"
    sentence = f"{best['choice']} scores best, {best['score']:.3g}, for {price}"
    if min_score is not None:
        layers += limit(f"to reach:\n{min_score:g}", y=min_score)
        sentence = f"{known['clears'].sum()} of {known.height} surely reach {min_score:g}; {sentence}"
    return picture(layers, mark + sentence)


def bill(bill: pl.DataFrame, *, simulated: bool = False) -> Picture:
    """Return a bar for what a cascade cost, and one for every row on each of its models; light is estimated.

    Spends: nothing.

    Parameters
    ----------
    bill : pl.DataFrame
        `CascadeRun.bill`.
    simulated : bool
        Mark it.
    """
    top = highest(bill, "dollars")
    if not top:
        return nothing("Nothing to show: nothing was paid.")
    words = ["about " * way["estimated"] + dollars(way["dollars"]) for way in bill.iter_rows(named=True)]
    base = chart(bill.with_columns(words=pl.Series(words))).encode(
        alt.X("dollars:Q")
        .title("US dollars")
        .axis(labelExpr=DOLLARS, labelSeparation=9)
        .scale(domain=[0, highest(bill, "dollars") * 1.2]),
        alt.Y("way:N").title(None).sort(None),
    )
    color = alt.condition("datum.estimated", alt.value(SKY), alt.value(BLUE))
    bars = base.mark_bar().encode(color=color, tooltip=tips(way="", dollars="$,.3~r", share=".0%"))
    label = base.mark_text(align="left", dx=5).encode(text="words:N")
    sentence = f"{'SIMULATED: ' * simulated}{words[0]} instead of {words[-1]} {bill['way'][-1]}"
    return picture([bars, label], sentence, height=30 * bill.height)
