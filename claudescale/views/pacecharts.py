"""Pictures of the pace: how full the token buckets were, and what more calls in flight gain.

Like `claudescale.views.run_charts` it knows column names, never our objects.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

import math

import polars as pl

from claudescale.views import marks
from claudescale.views.marks import BLUE, GREEN, HEIGHT, ORANGE, VERMILLION, WIDTH
from claudescale.views.theme import GREY, Shown

COLORS = {"requests": BLUE, "input_tokens": ORANGE, "output_tokens": GREEN}
PANEL, MOST_BINS = 84, 240


def buckets(levels: pl.DataFrame) -> Shown:
    """Return the chart of how full each token bucket was over a run: the one at the bottom set the pace.

    Of the calls of a short time the lowest level is drawn.

    Spends: nothing.

    Parameters
    ----------
    levels : pl.DataFrame
        `bucket`, `minute`, `level` and `capacity`, as of `claudescale.views.levels.LEVELS`.
    """
    levels = marks.finite(levels).drop_nulls()
    if levels.is_empty():
        return marks.nothing_sent("Level of the bucket")
    import altair as alt

    most = levels.select(pl.col("minute").max()).item()
    scale, unit = marks.time_unit(most)
    width = most / MOST_BINS or 1.0
    share = pl.col("level") / pl.col("capacity")
    binned = (
        levels.with_columns(share=share, at=((pl.col("minute") / width).floor() * width) * scale)
        .group_by("bucket", "at")
        .agg(pl.col("share", "level").min(), pl.col("capacity").first())
        .sort("at")
    )
    panels, said = [], []
    names = levels["bucket"].unique(maintain_order=True).to_list()
    for name in names:
        part = binned.filter(bucket=name)
        if part["at"][0]:
            part = pl.concat([part.head(1).with_columns(at=0.0, share=1.0, level="capacity"), part])
        capacity, lowest = part["capacity"][0], part.select(pl.col("share").min()).item()
        words = name.replace("_", " ")
        said.append(f"{words} {max(lowest, 0.0):.0%}" + (" (in debt)" if lowest < 0 else ""))
        title = unit if name == names[-1] else None
        low = min(lowest, 0.0)
        axis = alt.Axis(format=".0%", values=[0, 0.5, 1])
        y = alt.Y(
            "share:Q",
            title=f"{words.capitalize()}: a full bucket holds {marks.significant(capacity)}",
            scale=alt.Scale(domain=[low, 1.0], nice=False),
            axis=axis,
            stack=None,
        )
        color = COLORS.get(name, GREY)
        area = marks.chart_of(part.select("at", "share")).mark_area(
            interpolate="step-after", color=color, fillOpacity=0.3, line={"color": color, "strokeWidth": 1.5}
        )
        tips = [marks.tip("at", unit, ",.2f"), marks.tip("level", "Level", ",.1f")]
        hover = marks.chart_of(part).mark_point(opacity=0, size=60)
        x = marks.time_axis("at", title)
        layers = [area.encode(x, y), hover.encode(x, y, tooltip=tips)]
        panels.append(alt.layer(*layers).properties(width=WIDTH, height=PANEL))
    text = "Lowest level of each bucket: " + ", ".join(said)
    return Shown(chart=alt.vconcat(*panels, spacing=30, title=text), text=text)


def concurrency(
    expected: pl.DataFrame,
    *,
    requests_per_minute: float,
    binding: str,
    needed: float,
    measured: pl.DataFrame | None = None,
) -> Shown:
    """Return the chart of requests per minute by calls in flight: a slope by Little's law, then the limit.

    Spends: nothing.

    Parameters
    ----------
    expected : pl.DataFrame
        `concurrency` and `requests_per_minute`, as of `claudescale.views.inflight.CONCURRENCY`.
    requests_per_minute : float
        The most that the limits allow.
    binding : str
        The limit that it is.
    needed : float
        Calls in flight that reach it.
    measured : pl.DataFrame, optional
        The same columns, `run` (a name) and `refused` (calls turned away with 429), a row per run.
    """
    import altair as alt

    top = requests_per_minute
    points = None
    if measured is not None and measured.height:
        points = marks.finite(measured).sort("concurrency")
        top = max(top, points.select(pl.col("requests_per_minute").max()).item())
    top *= 1.2
    low, high = expected.select(low=pl.col("concurrency").min(), high=pl.col("concurrency").max()).row(0)
    ticks = [2**power for power in range(20) if low <= 2**power <= high]
    x = alt.X(
        "concurrency:Q",
        title="Calls in flight",
        scale=alt.Scale(type="log", base=2, domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, format=",d"),
    )
    y_axis = alt.Axis(labelExpr=marks.SHORT) if top > marks.LONG_NUMBERS else alt.Axis(format=",~f")
    scale = alt.Scale(domain=[0, top], nice=False)
    y = alt.Y("requests_per_minute:Q", title="Requests per minute", scale=scale, axis=y_axis)
    line = marks.chart_of(expected).mark_line(color=BLUE, strokeWidth=2).encode(x, y)
    name = f"the limit of {binding.replace('_', ' ')}: {requests_per_minute:,.0f} requests/min"
    layers = [line, *marks.limit_line(requests_per_minute, name)]
    if low < needed < high:
        rule = marks.chart_of(pl.DataFrame({"concurrency": [needed]}))
        layers.append(rule.mark_rule(color=GREY, strokeDash=[2, 3]).encode(x))
        words = rule.mark_text(
            align="left", baseline="bottom", dx=5, color=GREY, text=f"{math.ceil(needed):,} are enough"
        )
        layers.append(words.encode(x, y=alt.value(HEIGHT - 6)))
    words = "1 call in flight is" if needed <= 1 else f"{math.ceil(needed):,} calls in flight are"
    text = f"{words} enough for {requests_per_minute:,.0f} requests a minute"
    if points is not None:
        tips = [marks.word("run"), marks.tip("concurrency", "Calls in flight", ",d")]
        tips += [
            marks.tip("requests_per_minute", "Requests per minute", ",.0f"),
            marks.tip("refused", "Refused (429)", ",d"),
        ]
        dots = marks.chart_of(points).mark_point(filled=True, size=70, color=VERMILLION, opacity=1)
        layers.append(dots.encode(x, y, tooltip=tips))
        best = points.sort("requests_per_minute").row(-1, named=True)
        text += f"; measured: at most {best['requests_per_minute']:,.0f}, with {best['concurrency']:,.0f}"
    return Shown(chart=alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=text), text=text)
