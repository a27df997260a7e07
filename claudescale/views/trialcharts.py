"""The picture of a trial: what each model scores, how sure that is, and what it costs."""
# ruff: noqa: PLC0415  # altair takes 2 s to import

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.views import marks
from claudescale.views.marks import BLUE, HEIGHT, ORANGE, WIDTH
from claudescale.views.placing import TALL, Box, place
from claudescale.views.theme import GREY, Shown

if TYPE_CHECKING:
    from collections.abc import Collection

    import altair as alt

X_TITLE, Y_TITLE = "Dollars per 1,000 rows", "Score"
DOT = 5.0  # pixels
LEFT, RIGHT = 3.0, 1.6  # how far a log scale goes on; on the left stands the name of the line
WIDE = 8  # a log scale from so many times the cheapest on


def quality(
    trial: pl.DataFrame,
    *,
    min_score: float | None = None,
    clears: Collection[str] = (),
    confidence: float = 0.95,
) -> Shown:
    """Return the chart of each model's score with its interval against its dollars per 1,000 rows.

    Spends: nothing.

    Parameters
    ----------
    trial : pl.DataFrame
        A row per model: `model`, `rows`, `score`, `score_low`, `score_high`, `dollars_per_1000_rows`,
        `simulated`.
    min_score : float or None
        The score to reach, drawn as a labelled line.
    clears : collection of str
        The models that reach it for certain; where there is a score to reach, the others are orange.
    confidence : float
        Of the intervals.
    """
    known = marks.finite(trial).drop_nulls(["score", "dollars_per_1000_rows"]).sort("dollars_per_1000_rows")
    if known.is_empty():
        return marks.nothing_sent(Y_TITLE, X_TITLE)
    import altair as alt

    low, high = _ends(known, min_score)
    x_scale = _across(known["dollars_per_1000_rows"])
    form = ".0%" if low >= 0 and high <= 1.2 else ",~g"  # noqa: PLR2004 - there is room above 1
    good = pl.lit(value=True) if min_score is None else pl.col("model").is_in(list(clears))
    known = known.with_columns(clears=good)
    drawn = marks.chart_of(known)
    x = alt.X("dollars_per_1000_rows:Q", title=X_TITLE, scale=x_scale, axis=_dollar_axis(known))
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    axis = alt.Axis(format=form, values=[tick for tick in _ticks(low, high) if form != ".0%" or tick <= 1])
    y = alt.Y("score:Q", title=f"{Y_TITLE} ({confidence:.0%} interval)", scale=scale, axis=axis)
    color = alt.condition("datum.clears", alt.value(BLUE), alt.value(ORANGE))
    tips = [
        marks.word("model"),
        marks.tip("rows", "Rows", ",d"),
        *(
            marks.tip(name, title, ".3f")
            for name, title in (("score", "Score"), ("score_low", "Low"), ("score_high", "High"))
        ),
        marks.tip("dollars_per_1000_rows", X_TITLE, "$,.3~r"),
    ]
    layers = [
        drawn.mark_rule(strokeWidth=2).encode(x, alt.Y("score_low:Q"), alt.Y2("score_high:Q"), color=color),
        drawn.mark_circle(size=90, opacity=1).encode(x, y, color=color, tooltip=tips),
        *_labels(known, low, high, min_score),
    ]
    if min_score is not None:
        layers += marks.limit_line(min_score, f"to reach: {min_score:g}")
    mark = "SIMULATED: " if known["simulated"].any() else ""
    title, text = f"{mark}{_told(known.row(0, named=True))} per 1,000 rows", f"{mark}{_said(known)}"
    if min_score is not None:
        reach = f"{known['clears'].sum()} of {known.height} models reach {min_score:g}"
        certain = f"{reach}, {confidence:.0%} confident"
        title, text = f"{mark}{certain}", f"{text}; {certain}"
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)
    return Shown(chart=chart, text=text)


def _ends(known: pl.DataFrame, min_score: float | None) -> tuple[float, float]:
    """Return the ends of the vertical axis: round every interval and the score to reach."""
    ends = [*known["score_low"].drop_nulls(), *known["score_high"].drop_nulls(), *known["score"]]
    ends += [] if min_score is None else [min_score]
    low, high = min(ends), max(ends)
    room = (high - low or 0.2) * 0.12
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two ends, four to eight of them."""
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _across(dollars: pl.Series) -> alt.Scale:
    import altair as alt

    least, most = _span(dollars)
    if least > 0 and most / least >= WIDE:
        return alt.Scale(type="log", domain=[least / LEFT, most * RIGHT], nice=False)
    return alt.Scale(domain=[0, most * 1.15 or 1.0], nice=False)


def _span(dollars: pl.Series) -> tuple[float, float]:
    each = dollars.to_list()
    return min(each), max(each)


def _dollar_axis(known: pl.DataFrame) -> alt.Axis:
    import altair as alt

    least, most = _span(known["dollars_per_1000_rows"])
    if least > 0 and most / least >= WIDE:
        top, bottom = math.ceil(math.log10(most * RIGHT)), math.floor(math.log10(least / LEFT))
        values = [each * 10.0**power for power in range(bottom, top + 1) for each in (1, 2, 5)]
        return alt.Axis(values=values, format="$,.3~r", labelOverlap=True)
    return alt.Axis(tickCount=6, format=marks.dollar_format(most or 1.0))


def _labels(known: pl.DataFrame, low: float, high: float, min_score: float | None) -> list[alt.Chart]:
    """Return the name of each model near its dot, clear of the others, of their intervals and of a line."""
    import altair as alt

    least, most = _span(known["dollars_per_1000_rows"])
    log = least > 0 and most / least >= WIDE

    def across(dollars: float) -> float:
        part = dollars / (most * 1.15 or 1.0)
        if log:
            part = math.log(dollars / least * LEFT) / math.log(most / least * LEFT * RIGHT)
        return part * WIDTH

    def up(score: float) -> float:
        return (high - score) / (high - low) * HEIGHT

    taken = [] if min_score is None else [Box(0.0, up(min_score) - TALL, WIDTH, up(min_score) + 1)]
    points = []
    for row in known.sort("score", descending=True, maintain_order=True).iter_rows(named=True):
        x = across(row["dollars_per_1000_rows"])
        top, bottom = (
            row["score"] if row[name] is None else row[name] for name in ("score_high", "score_low")
        )
        taken.append(Box(x - DOT, up(row["score"]) - DOT, x + DOT, up(row["score"]) + DOT))
        taken.append(Box(x - 1, up(top), x + 1, up(bottom)))
        points.append((row["model"], x, up(row["score"]), True))
    notes = []
    for label in place(points, Box(0.0, 0.0, WIDTH, HEIGHT), taken):
        notes.append(marks.note(label.text, label.x, label.y, align=label.align))
        if label.leads:
            rule = marks.chart_of().mark_rule(color=GREY, strokeWidth=0.7)
            (x, y), (x2, y2) = label.point, (label.x, label.y)
            ends = {"x": alt.value(x), "y": alt.value(y), "x2": alt.value(x2), "y2": alt.value(y2)}
            notes.append(rule.encode(**ends))
    return notes


def _said(known: pl.DataFrame) -> str:
    """Return the scores of the cheapest and of the best in one sentence."""
    best = known.sort("score", descending=True, maintain_order=True).row(0, named=True)
    cheap = known.row(0, named=True)
    several = [cheap] if cheap["model"] == best["model"] else [cheap, best]
    return f"{', '.join(map(_told, several))} per 1,000 rows"


def _told(row: dict[str, Any]) -> str:
    interval = f"{row['score_low']:.2f} to {row['score_high']:.2f}"
    dollars = marks.dollars(row["dollars_per_1000_rows"])
    return f"{row['model']} scores {row['score']:.3g} ({interval}) for {dollars}"
