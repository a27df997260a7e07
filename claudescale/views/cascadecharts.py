"""The pictures of a cascade: its cost next to each model alone, and its price by the share that goes on."""
# ruff: noqa: PLC0415  # altair takes 2 s to import

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from claudescale.views import marks
from claudescale.views.marks import BLUE, GREEN, HEIGHT, ORANGE, PALE, PURPLE, SKY, VERMILLION, WIDTH
from claudescale.views.theme import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import altair as alt

COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
DOLLARS, ROWS, SHARE = "Dollars", "Rows", "Share of the rows that goes on"
BAR, ROOM = 24, 1.32  # pixels of a bar; how far the axis goes beyond the longest, for words
NEAR = 0.08  # of the height: two names would touch
_BARS_WIDTH = WIDTH - 70  # names of models stand beside them
_ESTIMATED = 0.4


def bill(bill: pl.DataFrame, table: pl.DataFrame, *, simulated: bool = False) -> Shown:
    """Return bars of what a cascade cost by model, next to every row on each; below, the rows each accepted.

    Spends: nothing.

    Parameters
    ----------
    bill : pl.DataFrame
        `way`, `dollars`, `share`, `estimated`: the cascade, then every row on each model.
    table : pl.DataFrame
        A row per model that was asked: `model`, `rows`, `accepted`, `dollars`.
    simulated : bool
        Mark it.
    """
    if not bill["dollars"].sum():
        return marks.nothing_sent(None, DOLLARS)
    import altair as alt

    models = [way.removeprefix("all on ") for way in bill["way"][1:]]
    colors = {model: COLORS[number % len(COLORS)] for number, model in enumerate(models)}
    mark = "SIMULATED: " if simulated else ""
    own, last = bill.row(0, named=True), bill.row(-1, named=True)
    about = " about" if last["estimated"] else ""
    costs = f"{last['way']} costs{about} {marks.dollars(last['dollars'])}"
    title = f"{mark}{marks.dollars(own['dollars'])} where {costs}"
    panels = [_dollars(bill, table, models, colors), _rows(table, colors)]
    chart = alt.vconcat(*panels, spacing=22).resolve_scale(
        y="independent", x="independent", color="independent"
    )
    answered = ", ".join(f"{row['model']} {row['accepted'] or 0:,}" for row in table.iter_rows(named=True))
    return Shown(chart=chart.properties(title=title), text=f"{title}; rows accepted: {answered}")


def _dollars(
    bill: pl.DataFrame, table: pl.DataFrame, models: Sequence[str], colors: dict[str, str]
) -> alt.LayerChart | alt.FacetChart:
    """Return the bars of all ways; that of the cascade is one piece per model."""
    import altair as alt

    paid = dict(table.select("model", "dollars").iter_rows())
    pieces, start = [], 0.0
    for model in models:
        end = start + paid.get(model, 0.0)
        pieces.append(_piece(bill["way"][0], model, start, end, colors))
        start = end
    for model, row in zip(models, bill[1:].iter_rows(named=True), strict=True):
        faint = _ESTIMATED if row["estimated"] else 1.0
        pieces.append(_piece(row["way"], model, 0.0, row["dollars"], colors) | {"opacity": faint})
    words = [_words(row) for row in bill.iter_rows(named=True)]
    ends = bill.select("way", "dollars", words=pl.Series(words))
    top = float(bill["dollars"].max() or 1.0)  # type: ignore[arg-type]
    y = alt.Y("way:N", sort=bill["way"].to_list(), title=None)
    axis = alt.Axis(tickCount=6, format=marks.dollar_format(top))
    scale = alt.Scale(domain=[0, top * ROOM], nice=False)
    bars = marks.chart_of(pl.DataFrame(pieces)).mark_bar(height=BAR - 8)
    drawn = bars.encode(
        alt.X("start:Q", title=DOLLARS, axis=axis, scale=scale),
        alt.X2("end:Q"),
        y,
        color=alt.Color("color:N", scale=None),
        opacity=alt.Opacity("opacity:Q", scale=None),
        tooltip=[marks.word("way"), marks.word("model"), marks.tip("dollars", DOLLARS, "$,.4~r")],
    )
    named = marks.chart_of(ends).mark_text(align="left", dx=6).encode(alt.X("dollars:Q"), y, text="words:N")
    return alt.layer(drawn, named).properties(width=_BARS_WIDTH, height=BAR * bill.height)


def _piece(way: str, model: str, start: float, end: float, colors: dict[str, str]) -> dict[str, Any]:
    dollars = end - start
    place = {"way": way, "model": model, "start": start, "end": end}
    return place | {"dollars": dollars, "color": colors[model], "opacity": 1.0}


def _words(row: dict[str, Any]) -> str:
    share = "" if row["share"] is None or row["share"] == 1 else f", {row['share']:.0%}"
    return f"{marks.dollars(row['dollars'])}{share}{' (estimated)' if row['estimated'] else ''}"


def _rows(table: pl.DataFrame, colors: dict[str, str]) -> alt.LayerChart | alt.FacetChart:
    """Return, for each model, the rows it was asked about and those of them it accepted."""
    import altair as alt

    asked = [f"{row['accepted'] or 0:,} of {row['rows']:,} accepted" for row in table.iter_rows(named=True)]
    shown = table.select(
        "model",
        "rows",
        pl.col("accepted").fill_null(0),
        color=pl.col("model").replace_strict(colors),
        words=pl.Series(asked),
    )
    top = float(shown["rows"].max() or 1)  # type: ignore[arg-type]
    y = alt.Y("model:N", sort=shown["model"].to_list(), title=None)
    axis, scale = (
        alt.Axis(tickCount=6, tickMinStep=1, format=",d"),
        alt.Scale(domain=[0, top * ROOM], nice=False),
    )
    drawn = marks.chart_of(shown)
    tips = [marks.word("model"), marks.tip("rows", ROWS, ",d"), marks.tip("accepted", "Accepted", ",d")]
    x = alt.X("rows:Q", title=ROWS, axis=axis, scale=scale)
    layers = [
        drawn.mark_bar(height=BAR - 8, color=PALE, opacity=0.6).encode(x, y, tooltip=tips),
        drawn.mark_bar(height=BAR - 8)
        .encode(alt.X("accepted:Q"), y, color=alt.Color("color:N", scale=None), tooltip=tips),
        drawn.mark_text(align="left", dx=6).encode(alt.X("rows:Q"), y, text="words:N"),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=_BARS_WIDTH, height=BAR * table.height)


def shares(curve: pl.DataFrame, ways: pl.DataFrame, *, measured: Sequence[float] = ()) -> Shown:
    """Return a cascade's dollars against the share of rows that goes on, with each model alone as a line.

    Spends: nothing.

    Parameters
    ----------
    curve : pl.DataFrame
        `share`, `dollars` of the cascade, by the share that goes on from its first model.
    ways : pl.DataFrame
        `way`, `dollars` of every row on each model; the last is what the cascade is compared with.
    measured : sequence of float
        The share going on as a pilot measured it: low, usual, high. None where there was no pilot.
    """
    top = max([0.0, *curve["dollars"], *ways["dollars"]])
    if not top:
        return marks.nothing_sent(DOLLARS, SHARE)
    import altair as alt

    where = "from the first model" if measured else "from each model"
    x = alt.X(
        "share:Q",
        title=f"{SHARE} {where}",
        scale=alt.Scale(domain=[0, 1], nice=False),
        axis=alt.Axis(format=".0%"),
    )
    axis = alt.Axis(format=marks.dollar_format(top))
    y = alt.Y("dollars:Q", title=DOLLARS, axis=axis, scale=alt.Scale(domain=[0, top * 1.08], nice=False))
    tips = [marks.tip("share", "Share", ".0%"), marks.tip("dollars", DOLLARS, "$,.3~r")]
    drawn = marks.chart_of(curve).mark_line(color=BLUE, strokeWidth=2.5)
    layers = [*_band(measured), drawn.encode(x, y, tooltip=tips)]
    layers += _lines(ways, curve["dollars"], top)
    last = ways.row(-1, named=True)
    cheaper = curve.filter(pl.col("dollars") < last["dollars"])["share"].to_list()
    title = f"Never cheaper than {last['way']}"
    if cheaper:
        until = max(cheaper)
        title = f"Cheaper than {last['way']} while at most {until:.0%} of the rows go on"
    if measured:
        title += f"; a pilot measured {measured[1]:.0%}"
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)
    return Shown(chart=chart, text=title)


def _lines(ways: pl.DataFrame, curve: pl.Series, top: float) -> list[alt.Chart]:
    """Return a line for each way, named where neither the cascade's curve nor another name is."""
    layers, taken = [], {"left": -1.0, "right": -1.0}
    for row in ways.sort("dollars").iter_rows(named=True):
        dollars = row["dollars"]
        sides = sorted(taken, key=lambda side: -abs(curve[0 if side == "left" else -1] - dollars))
        side = next(
            (each for each in sides if taken[each] < 0 or dollars - taken[each] > top * NEAR), sides[0]
        )
        taken[side] = dollars
        words = f"{row['way']}: {marks.dollars(dollars)}"
        place = 4 if side == "left" else WIDTH - 4
        layers += [
            marks.limit_line(dollars, "")[0],
            marks.note(words, place, marks.at(dollars), align=side, dy=-4, baseline="bottom"),
        ]
    return layers


def _band(measured: Sequence[float]) -> list[alt.Chart]:
    """Return the interval of the share as a band, and the share itself as a line."""
    if not measured:
        return []
    low, usual, high = measured
    at = marks.chart_of(pl.DataFrame({"share": [low], "high": [high], "usual": [usual]}))
    return [
        at.mark_rect(color=ORANGE, opacity=0.25).encode(x="share:Q", x2="high:Q"),
        at.mark_rule(color=ORANGE, strokeWidth=2).encode(x="usual:Q"),
    ]
