"""What the pictures are drawn with: palette, words and signs, rates, limits, readable numbers."""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as columns

from claudescale.views.theme import GREY, Shown

if TYPE_CHECKING:
    import altair as alt

# Okabe and Ito's palette: told apart by colour-blind readers, on white and on black.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, PALE = "#CC79A7", "#56B4E9", "#BBBBBB"
WIDTH, HEIGHT = 560, 220
MOST_SLICES = 280
# From where on: tokens in thousands, dollars without cents. NO_TIME: rounding, in minutes.
LONG_NUMBERS, WHOLE_DOLLARS, NO_TIME = 20_000, 100, 1e-9
SHORT = "format(datum.value, '.3~s')"  # 400k; given as `format` it would call zero "0k"


def chart_of(frame: pl.DataFrame | None = None) -> alt.Chart:
    """Return a chart with the rows of `frame` inside it: no data transformer, so no limit of rows."""
    import altair as alt

    rows: list[dict[str, Any]] = [{}]
    if frame is not None:
        # Polars rounds 0.0 to six significant digits as NaN.
        rows = finite(frame).with_columns(columns.float().round_sig_figs(6).fill_nan(0.0)).to_dicts()
    return alt.Chart(alt.InlineData(values=rows))


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with null for NaN and the infinities."""
    return frame.with_columns(pl.when(columns.float().is_finite()).then(columns.float()))


def note(text: str, x: float, y: Any, *, shape: str = "", **mark: Any) -> alt.Chart:
    """Return words (or a shape) at a pixel across, and at a pixel or a value up."""
    import altair as alt

    place = chart_of().encode(x=alt.value(x), y=alt.value(y) if isinstance(y, int | float) else y)
    words = {"text": text, "align": "left", "baseline": "middle", **mark}
    sign = {"shape": shape, "filled": True, "size": 80, "opacity": 1, **mark}
    note: alt.Chart = place.mark_point(**sign) if shape else place.mark_text(**words)
    return note


def at(value: float) -> alt.YDatum:
    """Return a place at a value of the vertical axis."""
    import altair as alt

    return alt.YDatum(value, type="quantitative")


def time_axis(field: str, title: str | None, ticks: int = 6) -> alt.X:
    """Return a horizontal axis that begins at zero; without a title it shows no labels."""
    import altair as alt

    axis = alt.Axis(tickCount=ticks) if title else alt.Axis(labels=False, ticks=False)
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(nice=False, zero=True), axis=axis)


def tip(field: str, title: str, form: str) -> alt.Tooltip:
    """Return the line of a tooltip that shows a number."""
    import altair as alt

    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def word(field: str) -> alt.Tooltip:
    """Return the line of a tooltip that shows a word."""
    import altair as alt

    return alt.Tooltip(f"{field}:N", title=field.capitalize())


def limit_line(value: float, label: str, *, beyond: bool = False) -> list[alt.Chart]:
    """Return a dashed line with its name on it; only the name where the line lies beyond the picture."""
    if beyond:
        return [note(f"\N{UPWARDS ARROW} {label}", 4, 6)]
    rule = chart_of().mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY).encode(y=at(value))
    return [rule, note(label, 4, at(value), dy=-4, baseline="bottom")]


def flagged(count: int, what: str, width: int) -> list[alt.Chart]:
    """Return, above the right corner, how many calls went wrong and the sign that marks them."""
    label = note(f"{counted(count, 'call')} {what}", width - 12, -12, align="right", color=VERMILLION)
    return [label, note("", width - 4, -13, shape="triangle-down", color=VERMILLION)] if count else []


def nothing_sent(
    y_title: str | None, x_title: str = "Minutes since the start", height: int = HEIGHT
) -> Shown:
    """Return the axes of a chart that has nothing to show yet, and the words for it."""
    import altair as alt

    text, axis, scale = "nothing sent", alt.Axis(labels=False), alt.Scale(domain=[0, 1])
    axes = chart_of(pl.DataFrame({"x": [0.0], "y": [0.0]})).mark_point(opacity=0)
    y = alt.Y("y:Q", title=y_title, scale=scale, axis=axis if y_title else None)
    words = note(text, WIDTH / 2, height / 2, align="center", fontSize=14)
    chart = alt.layer(axes.encode(alt.X("x:Q", title=x_title, scale=scale, axis=axis), y), words)
    return Shown(chart=chart.properties(width=WIDTH, height=height), text=text)


def slices_of(throughput: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Return at most `MOST_SLICES` slices (start, end, rates, refused) in a readable unit, and the unit."""
    minute, end = pl.col("minute"), pl.col("minute") + pl.col("slice_minutes").clip(NO_TIME)
    first, last = throughput.select(minute.min(), end.max().alias("end")).row(0)
    scale, unit = time_unit(last)
    one = throughput.height <= MOST_SLICES
    bins = pl.int_range(pl.len()) if one else (minute - first) // ((last - first) / MOST_SLICES)
    volume = columns.ends_with("_per_minute").fill_null(0.0) * pl.col("slice_minutes")
    slices = throughput.group_by(bins.alias("bin")).agg(
        volume.sum() / (end.max() - minute.min()),
        start=minute.min() * scale,
        end=end.max() * scale,
        refused=pl.col("refused").sum(),
    )
    return slices.sort("start"), unit


def mean_and_peak(throughput: pl.DataFrame, noun: str) -> tuple[float, float]:
    """Return the mean over time and the highest of one rate."""
    rate, length = pl.col(rate_column(noun)).fill_null(0.0), pl.col("slice_minutes")
    mean, peak = throughput.select(mean=(rate * length).sum() / length.sum(), peak=rate.max()).row(0)
    return (mean if math.isfinite(mean) else 0.0), peak


def rate_column(noun: str) -> str:
    """Return the name of the column of a rate: ``input_tokens_per_minute`` for "input tokens"."""
    return f"{noun.replace(' ', '_')}_per_minute"


def rate_layers(
    slices: pl.DataFrame, noun: str, *, limit: float | None, color: str, unit: str | None
) -> list[alt.Chart]:
    """Return the layers of one rate over time, drawn in steps, with its limit."""
    import altair as alt

    rate, name = rate_column(noun), f"{noun.capitalize()} per minute"
    peak = slices.select(pl.col(rate).max()).item()
    beyond = limit is not None and 0 < peak < limit / 5  # a limit far away would press the rate flat
    top = max(peak, 0.0 if beyond else limit or 0.0) * 1.25 or 1.0
    # A slice ends where the next begins; where none begins the rate falls to zero: a pause looks like one.
    paused = (pl.col("start").shift(-1) - pl.col("end") > NO_TIME).fill_null(value=True)
    falls = slices.filter(paused).select(start="end", rate=0.0)
    steps = pl.concat([slices.select("start", rate=rate), falls])
    area = chart_of(steps.sort("start", maintain_order=True)).mark_area(
        interpolate="step-after", color=color, fillOpacity=0.3, line={"color": color, "strokeWidth": 1.5}
    )
    axis = alt.Axis(labelExpr=SHORT) if top > LONG_NUMBERS else alt.Axis(format=",~f")
    y = alt.Y("rate:Q", title=name, scale=alt.Scale(domain=[0, top], nice=False), axis=axis)
    tips = [tip("start", "From", ",.2f"), tip(rate, name, ",.0f"), tip("refused", "Refused (429)", ",d")]
    hover = chart_of(slices).mark_rect(opacity=0).encode(x="start:Q", x2="end:Q", tooltip=tips)
    limits = limit_line(limit, f"limit {limit:,.0f} {noun}/min", beyond=beyond) if limit else []
    return [area.encode(time_axis("start", unit), y), *limits, hover]


def time_unit(minutes: float) -> tuple[float, str]:
    """Return by what to multiply minutes, and the title of the axis, so that its numbers are easy to read."""
    for most, scale, unit in ((3, 60.0, "Seconds"), (240, 1.0, "Minutes")):
        if minutes <= most:
            return scale, f"{unit} since the start"
    return 1 / 60, "Hours since the start"


def every(frame: pl.DataFrame, most: int) -> int:
    """Return which n-th rows to draw so that there are at most `most`."""
    return max(1, math.ceil(frame.height / most))


def counted(count: int, noun: str) -> str:
    """Return ``1 call`` or ``2 calls``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def significant(value: float) -> str:
    """Return three significant digits, without an exponent."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def dollars(value: float) -> str:
    """Return dollars with cents, or with three significant digits where they are less than ten cents."""
    if not math.isfinite(value):
        return "?"
    cents = abs(value) >= 0.1 or not value  # noqa: PLR2004 - below ten cents, cents say too little
    return (
        f"{'-' if value < 0 else ''}${abs(value):,.2f}"
        if cents
        else f"${significant(value)}".replace("$-", "-$")
    )


def dollar_format(top: float) -> str:
    """Return the number format of an axis of dollars that ends at `top`."""
    decimals = 0 if top >= WHOLE_DOLLARS else 2 if top >= 1 else 2 - math.floor(math.log10(top))
    return f"$,.{decimals}f"
