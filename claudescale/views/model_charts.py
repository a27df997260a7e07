"""Pictures of models: what a trial's choices score for which price, and what a cascade cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from claudescale.text import dollars
from claudescale.views.theme import BLUE, DOLLARS, ORANGE, chart, limit, nothing, picture, tips

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
    x = alt.X("dollars_per_1000_rows:Q").title("Dollars per 1,000 rows").axis(format=DOLLARS)
    x = x.scale(type="log", padding=60) if log else x.scale(zero=True, padding=60)
    y = alt.Y("score:Q").title("Score and its interval").scale(zero=False, padding=12)
    color = alt.condition("datum.clears", alt.value(BLUE), alt.value(ORANGE))
    hover = tips(
        choice="", rows=",d", score=".3f", score_low=".3f", score_high=".3f", dollars_per_1000_rows="$,.3~r"
    )
    base = chart(known).encode(x, color=color)
    layers = [
        base.mark_rule(strokeWidth=2).encode(alt.Y("score_low:Q"), alt.Y2("score_high:Q")),
        base.mark_circle(size=90, opacity=1).encode(y, tooltip=hover),
        base.mark_text(align="left", dx=9).encode(y, text="choice:N"),
    ]
    mark = "SIMULATED: " if known["simulated"].any() else ""
    best = known.sort("score").row(-1, named=True)
    price = f"{dollars(best['dollars_per_1000_rows'])} per 1,000 rows"
    sentence = f"{best['choice']} scores best, {best['score']:.3g}, for {price}"
    if min_score is not None:
        layers += limit(f"to reach:\n{min_score:g}", y=min_score)
        sentence = f"{known['clears'].sum()} of {known.height} surely reach {min_score:g}; {sentence}"
    return picture(layers, mark + sentence)


def bill(bill: pl.DataFrame, *, simulated: bool = False) -> Picture:
    """Return a bar for what a cascade cost, and one for every row on each of its models; pale is estimated.

    Spends: nothing.

    Parameters
    ----------
    bill : pl.DataFrame
        `CascadeRun.bill`.
    simulated : bool
        Mark it.
    """
    if not bill["dollars"].sum():
        return nothing("Nothing to show: nothing was paid.")
    about = pl.when("estimated").then(pl.lit("about ")).otherwise(pl.lit(""))
    words = about + pl.col("dollars").map_elements(dollars, pl.String)
    base = chart(bill.with_columns(words=words)).encode(
        alt.X("dollars:Q").title("Dollars").axis(format=DOLLARS).scale(padding=40),
        alt.Y("way:N").title(None).sort(None),
    )
    pale = alt.condition("datum.estimated", alt.value(0.4), alt.value(1.0))
    bars = base.mark_bar(color=BLUE).encode(opacity=pale, tooltip=tips(way="", dollars="$,.3~r", share=".0%"))
    label = base.mark_text(align="left", dx=5).encode(text="words:N")
    own, last = bill.row(0, named=True), bill.row(-1, named=True)
    costs = f"{'about ' * last['estimated']}{dollars(last['dollars'])} {last['way']}"
    sentence = f"{'SIMULATED: ' * simulated}{dollars(own['dollars'])} instead of {costs}"
    return picture([bars, label], sentence, height=30 * bill.height)
