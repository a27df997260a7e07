"""Pictures of a run: Polars frames in, charts out that show themselves without a network.

A chart knows column names, never our objects. Everything is aggregated in Polars before Altair sees it:
a million rows make a small picture, and always the same one. The theme joins when a chart is shown, not
when it is made, so that `Shown.chart` composes with ``|``, ``&`` and ``+`` like any other. The user's own
Altair settings are neither read nor changed.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

import base64
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as columns

if TYPE_CHECKING:
    import altair as alt

# Okabe and Ito's palette: told apart by colour-blind readers, on white and on black.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, PALE, GREY = "#CC79A7", "#56B4E9", "#BBBBBB", "#888888"
STATES = {"answered": BLUE, "reused from the ledger": SKY, "failed": VERMILLION, "unsent": PURPLE}
STATES["to do"] = PALE
# Which quantile is drawn, from how many answers on, in which colour and dashes, its label on which side.
QUANTILES = {"median": (0.5, 1, ORANGE, [1, 0], "top"), "p90": (0.9, 10, GREEN, [6, 3], "bottom")}
WIDTH, HEIGHT = 560, 220
MOST_SLICES, MOST_SIGNS, MOST_POINTS, MOST_FAILURES, MOST_BINS, BINS = 280, 70, 1_500, 200, 60, 24
# From where on: tokens in thousands, dollars without cents, a log scale (in medians). NO_TIME: rounding.
LONG_NUMBERS, WHOLE_DOLLARS, DWARFED, NO_TIME = 20_000, 100, 15, 1e-9
HOVER = {"opacity": 0, "size": 80}  # points nobody sees, for the tooltips of a line
SHORT = "format(datum.value, '.3~s')"  # 400k; given as `format` it would call zero "0k"
# Labels and titles of axes get no colour here: the light or dark theme of the page gives it.
# fmt: off
THEME: dict[str, Any] = {
    "view": {"stroke": None},
    "axis": {
        "gridColor": GREY, "gridOpacity": 0.25, "domainColor": GREY, "tickColor": GREY, "labelPadding": 5,
        "labelFontSize": 11, "labelLimit": 190, "titleFontSize": 12, "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "titlePadding": 8, "labelFlush": False},
    "axisYQuantitative": {  # its title stands level above it, from its left edge
        "domain": False, "ticks": False, "tickCount": 4, "minExtent": 44,
        "titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": -44, "titleY": -9,
    },
    "text": {"color": GREY, "fontSize": 11},
    "title": {
        "anchor": "start", "frame": "bounds", "offset": 12, "limit": 630, "fontSize": 13, "fontWeight": 600,
    },
}
# fmt: on


@dataclass(frozen=True, eq=False, repr=False, slots=True, kw_only=True)
class Shown:
    """A chart that shows itself in a notebook, with no network, in light and in dark.

    To go on from it, change `chart` with Altair and wrap what comes out again:
    ``Shown(chart=shown.chart.properties(width=400), text=shown.text)``.

    Spends: nothing.

    Parameters
    ----------
    chart : altair.TopLevelMixin
        The chart, without a theme: free to be layered and concatenated.
    text : str
        One sentence that says what the picture says; shown where pictures cannot be.
    """

    chart: alt.TopLevelMixin
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself leaves out what was not asked for
        return bundle(self.chart, self.text)


def specification(chart: alt.TopLevelMixin, text: str) -> dict[str, Any]:
    """Return the Vega-Lite specification of `chart` in our theme, described by `text`.

    Spends: nothing.
    """
    datasets: dict[str, Any] = {}
    # As if it were part of a larger chart: so Altair leaves out the user's theme and data transformer.
    inner = chart.to_dict(context={"datasets": datasets, "top_level": False, "pre_transform": False})
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.6.1.json",  # JupyterLab's; warns of others
        "description": text,
        "background": "transparent",
        **inner,
        "config": {**THEME, **inner.get("config", {})},
        "datasets": datasets,
    }


def bundle(chart: alt.TopLevelMixin, text: str) -> dict[str, Any]:
    """Return what a notebook shows and saves of `chart`, by MIME type: Vega-Lite 5, a PNG and `text`.

    JupyterLab and VS Code draw the first and follow the dark theme; GitHub and exported pages show the
    picture, on white because it may stand on any page; a terminal shows the sentence. For a display
    handle: ``handle.update(bundle(...), raw=True)``.

    Spends: nothing.
    """
    import vl_convert

    drawing = specification(chart, text)
    png = vl_convert.vegalite_to_png({**drawing, "background": "white"}, scale=1)
    return {
        "application/vnd.vegalite.v5+json": drawing,
        "image/png": base64.b64encode(png).decode(),
        "text/plain": text,
    }


def throughput(throughput: pl.DataFrame, *, requests_per_minute: float | None) -> Shown:
    """Return the chart of requests per minute over time, their limit, and the calls that were refused.

    Spends: nothing.

    Parameters
    ----------
    throughput : pl.DataFrame
        A row per slice of time: `minute` (since the start, its left edge), `slice_minutes`, `refused` (calls
        turned away with 429) and `requests_`, `input_tokens_` and `output_tokens_per_minute`.
    requests_per_minute : float or None
        The limit, drawn as a labelled line; None where it is not known.
    """
    if throughput.is_empty():
        return _nothing_sent("Requests per minute")
    import altair as alt

    throughput = _finite(throughput).sort("minute")
    slices, unit = _slices(throughput)
    mean, peak = _mean_and_peak(throughput, "requests")
    layers = _rate(slices, "requests", limit=requests_per_minute, color=BLUE, unit=unit)
    text = f"{mean:,.0f} requests a minute on average, {peak:,.0f} at the peak"
    text += f", {requests_per_minute:,.0f} allowed" if requests_per_minute else ""
    if refused := slices.select(pl.col("refused").sum()).item():
        text += f"; {_counted(refused, 'call')} refused"
        # Signs that would lie upon each other are joined; their size is how many calls they stand for.
        middle = ((pl.col("start") + pl.col("end")) / 2 * pl.col("refused")).sum() / pl.col("refused").sum()
        groups = slices.group_by(bin=pl.int_range(pl.len()) // _every(slices, MOST_SIGNS))
        signs = groups.agg(pl.col("refused").sum(), start=middle).filter(pl.col("refused") > 0).sort("start")
        size = alt.Size("refused:Q", legend=None, scale=alt.Scale(range=[30, 110], domainMin=0))
        mark = _chart(signs).mark_point(shape="triangle-down", filled=True, color=VERMILLION)
        layers.append(mark.encode(x="start:Q", y=alt.value(6), size=size))
        layers += _flagged(refused, "refused (429)", WIDTH)
    return Shown(chart=alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=text), text=text)


def tokens(
    throughput: pl.DataFrame, *, input_tokens_per_minute: float | None, output_tokens_per_minute: float | None
) -> Shown:
    """Return the chart of input and output tokens per minute, each against its own limit.

    Spends: nothing.

    Parameters
    ----------
    throughput : pl.DataFrame
        The frame of `throughput`.
    input_tokens_per_minute, output_tokens_per_minute : float or None
        The limits, drawn as labelled lines; None where one is not known.
    """
    if throughput.is_empty():
        return _nothing_sent("Tokens per minute")
    import altair as alt

    throughput = _finite(throughput).sort("minute")
    slices, unit = _slices(throughput)
    said, panels = [], []
    for noun, limit, color, title in (
        ("input tokens", input_tokens_per_minute, BLUE, None),
        ("output tokens", output_tokens_per_minute, ORANGE, unit),
    ):
        mean, _ = _mean_and_peak(throughput, noun)
        layers = _rate(slices, noun, limit=limit, color=color, unit=title)
        said.append(f"{mean:,.0f} {noun}" + (f" ({mean / limit:.0%} of the limit)" if limit else ""))
        panels.append(alt.layer(*layers).properties(width=WIDTH, height=105))
    text = " and ".join(said) + " a minute"
    return Shown(chart=alt.vconcat(*panels, spacing=26, title=text), text=text)


def latency(attempts: pl.DataFrame) -> Shown:
    """Return the chart of the seconds each answer took: over time, and how they are spread.

    The median and the 90th percentile are of all answers; of very many answers, every n-th is drawn.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        A row per answer or failure: `sent_at`, `seconds` and `error` (null where answered).
    """
    calls = attempts.filter(pl.col("seconds").is_finite(), pl.col("sent_at").is_not_null())
    if calls.is_empty():
        return _nothing_sent("Seconds per answer")
    import altair as alt

    minutes = (pl.col("sent_at") - pl.col("sent_at").min()).dt.total_microseconds() / 60e6
    scale, unit = _time_unit(calls.select(minutes.max()).item())
    calls = calls.sort("sent_at", "seconds").select(
        pl.col("seconds").clip(1e-3), at=minutes * scale, answered=pl.col("error").is_null()
    )
    answers, failures = calls.filter("answered"), calls.filter(~pl.col("answered"))
    y_scale, axis, edges = _seconds(calls)
    every = _every(answers, MOST_POINTS)
    tip = [_tip("at", unit, ",.2f"), _tip("seconds", "Seconds", ",.2f")]
    x = _x("at", unit + (f" (one answer in {every:,} drawn)" if every > 1 else ""), 5)
    y = alt.Y("seconds:Q", title="Seconds per answer", scale=y_scale, axis=axis)
    signs = _chart(failures.gather_every(_every(failures, MOST_FAILURES)))
    width, beside_width = 365, 96
    points = [
        _chart(answers.gather_every(every)).mark_circle(color=BLUE, size=14).encode(x, y, tooltip=tip),
        signs.mark_point(shape="triangle-down", color=VERMILLION, filled=True).encode(x, y, tooltip=tip),
        *_flagged(failures.height, "failed or refused", width),
    ]
    beside, said = [_histogram(answers["seconds"], edges, y_scale)], []
    # Equally many answers behind each point of a line: each is equally certain, and there are no gaps.
    bin_of = pl.int_range(pl.len()) * min(MOST_BINS, answers.height // 40) // pl.len()
    bins = answers.group_by(bin=bin_of, maintain_order=True)
    for name, (quantile, least, color, dash, baseline) in QUANTILES.items():
        if answers.height < least:
            continue
        seconds = answers.select(pl.col("seconds").quantile(quantile, "linear")).item()
        said.append(f"{name} {_significant(seconds)} s")
        line = _chart(bins.agg(pl.col("at").median(), pl.col("seconds").quantile(quantile, "linear")))
        line = line.mark_line(color=color, strokeDash=dash, strokeWidth=2.5, point=HOVER)
        points.append(line.encode(x, y, tooltip=tip))
        rule = _chart().mark_rule(color=color, strokeDash=dash, strokeWidth=2).encode(y=_at(seconds))
        beside += [rule, _note(said[-1], beside_width + 8, _at(seconds), baseline=baseline)]
    text = f"{_counted(answers.height, 'answer')}: {', '.join(said)}" if said else "No answers yet"
    text += f"; {_counted(failures.height, 'call')} failed or refused" if failures.height else ""
    panels = zip((points, beside), (width, beside_width), strict=True)
    drawn = [alt.layer(*layers).properties(width=across, height=HEIGHT) for layers, across in panels]
    return Shown(chart=alt.hconcat(*drawn, spacing=12, title=text), text=text)


def spending(
    spending: pl.DataFrame,
    *,
    estimate_dollars: float | None = None,
    estimate_p10_dollars: float | None = None,
    estimate_p90_dollars: float | None = None,
) -> Shown:
    """Return the chart of dollars so far, against the estimate and what the rows would have cost.

    Spends: nothing.

    Parameters
    ----------
    spending : pl.DataFrame
        `minute` (since the start), `dollars` (so far) and `counterfactual_dollars` (so far, for the same
        rows without deduplication and cache; null or missing where not known).
    estimate_dollars : float or None
        What the plan said the run would cost, drawn as a labelled line.
    estimate_p10_dollars, estimate_p90_dollars : float or None
        The range that came with the estimate, drawn as a band.
    """
    if spending.is_empty():
        return _nothing_sent("US dollars")
    import altair as alt

    scale, unit = _time_unit(spending.select(pl.col("minute").max()).item())
    spent = _finite(spending).sort("minute").with_columns(at=pl.col("minute") * scale)
    spent = spent.reverse().gather_every(_every(spent, MOST_SLICES)).reverse()  # keeps the last row
    lines = {"dollars": ("paid", BLUE, [1, 0], "top")}
    if "counterfactual_dollars" in spent.columns and spent["counterfactual_dollars"].count():
        lines["counterfactual_dollars"] = ("without savings", ORANGE, [6, 3], "bottom")
    totals = {name: spent.select(pl.col(name).drop_nulls().last()).item() or 0.0 for name in lines}
    top = max(0.0, *totals.values(), estimate_dollars or 0.0, estimate_p90_dollars or 0.0) * 1.12 or 1.0
    y_scale, axis = alt.Scale(domain=[0, top], nice=False), alt.Axis(format=_dollar_format(top))
    layers: list[alt.Chart] = []
    if estimate_p10_dollars is not None and estimate_p90_dollars is not None:
        band = _chart().mark_rect(color=GREY, opacity=0.15)
        layers.append(band.encode(y=_at(estimate_p10_dollars), y2=alt.Y2Datum(estimate_p90_dollars)))
    if estimate_dollars is not None:
        layers += _limit(estimate_dollars, f"estimate {_dollars(estimate_dollars)}")
    width = 430
    for name, (label, color, dash, baseline) in lines.items():
        line = _chart(spent.select("at", name))
        line = line.mark_line(color=color, strokeDash=dash, strokeWidth=2.5, point=HOVER)
        y = alt.Y(f"{name}:Q", title="US dollars", scale=y_scale, axis=axis)
        tip = [_tip("at", unit, ",.2f"), _tip(name, f"US dollars {label}", "$,.4~f")]
        layers += [
            line.encode(_x("at", unit), y, tooltip=tip),
            _note("", width, _at(totals[name]), shape="circle", color=color),
            _note(f"{_dollars(totals[name])} {label}", width + 8, _at(totals[name]), baseline=baseline),
        ]
    text = f"{_dollars(totals['dollars'])} paid"
    text += f", {_dollars(estimate_dollars)} estimated" if estimate_dollars is not None else ""
    if "counterfactual_dollars" in totals:
        text += f"; {_dollars(totals['counterfactual_dollars'])} without deduplication and cache"
    return Shown(chart=alt.layer(*layers).properties(width=width, height=HEIGHT, title=text), text=text)


def progress(counts: pl.DataFrame) -> Shown:
    """Return the chart of how many rows are answered, and what became of the others: one labelled bar.

    Spends: nothing.

    Parameters
    ----------
    counts : pl.DataFrame
        `state` (answered, reused from the ledger, failed, unsent, to do) and `rows`.
    """
    import altair as alt

    summed = (
        counts.group_by("state", maintain_order=True).agg(pl.col("rows").sum()).filter(pl.col("rows") > 0)
    )
    place = {state: n for n, state in enumerate(STATES)}
    states = summed.sort(pl.col("state").replace_strict(place, default=len(place)), maintain_order=True)
    total: int = states.select(pl.col("rows").sum()).item()
    if not total:
        return _nothing_sent(None, "Rows", 40)
    done = total - sum(rows for state, rows in states.iter_rows() if state == "to do")
    text = f"{done:,} of {_counted(total, 'row')} done ({done / total:.1%})"
    # Three failures in a million rows must be seen: no part is narrower than 3 pixels, at the largest's cost.
    wide = pl.max_horizontal("rows", pl.lit(total * 3 / WIDTH))
    largest = pl.int_range(pl.len()) == pl.col("rows").arg_max()
    wide -= pl.when(largest).then(wide.sum() - total).otherwise(0)
    color = pl.col("state").replace_strict(STATES, default=GREEN)
    states = states.with_columns(start=wide.cum_sum() - wide, end=wide.cum_sum(), color=color)
    labels, x, y = [], 0, 7
    for state, rows, color_of in states.select("state", "rows", "color").iter_rows():
        label = f"{rows:,} {state}"
        across = 14 + 6 * len(label)
        x, y = (0, y + 18) if x + across > WIDTH else (x, y)
        labels += [_note("", x + 5, y, shape="square", color=color_of), _note(label, x + 14, y)]
        x += across + 20
    axis = alt.Axis(format=",d", tickCount=min(6, total))
    x_rows = alt.X("start:Q", title="Rows", scale=alt.Scale(domain=[0, total], nice=False), axis=axis)
    color_as_is, tip = alt.Color("color:N", scale=None), [_word("state"), _tip("rows", "Rows", ",d")]
    bar = _chart(states).mark_bar().encode(x_rows, alt.X2("end:Q"), color_as_is, tooltip=tip)
    bar = bar.encode(y=alt.value(y + 14), y2=alt.value(y + 42))
    said = ", ".join(f"{rows:,} {state}" for state, rows in states.select("state", "rows").iter_rows())
    chart = alt.layer(bar, *labels).properties(width=WIDTH, height=y + 46, title=text)
    return Shown(chart=chart, text=f"{text}: {said}")


def savings(savings: pl.DataFrame) -> Shown:
    """Return the chart of what was saved: step by step from what the rows would have cost to what was paid.

    Spends: nothing.

    Parameters
    ----------
    savings : pl.DataFrame
        `part` and `dollars`, in the order to be drawn: first what the rows would have cost, then what each
        part saved (negative where it cost more than it saved), last what was paid.
    """
    if savings.is_empty():
        return _nothing_sent(None, "US dollars", 120)
    import altair as alt

    parts = _finite(savings).select("part", pl.col("dollars").fill_null(0.0)).rows()
    total, paid = parts[0][1], parts[-1][1]
    bars, level = [], 0.0
    for n, (part, dollars) in enumerate(parts):
        whole = n in (0, len(parts) - 1)
        start, end = (0.0, dollars) if whole else (level - dollars, level)
        level = end if whole else start
        color = (BLUE if n else PALE) if whole else GREEN if dollars >= 0 else VERMILLION
        sign = "" if whole or not dollars else "\N{MINUS SIGN}" if dollars > 0 else "+"
        share = f" ({abs(dollars) / total:.1%})" if total and not whole else ""
        after = parts[min(n + 1, len(parts) - 1)][0]
        label = f"{sign}{_dollars(abs(dollars))}{share}"
        bars.append((part, after, dollars, start, end, level, max(start, end), label, color))
    names = ["part", "after", "dollars", "start", "end", "level", "right", "label", "color"]
    top = max(0.0, *(bar[6] for bar in bars)) * 1.02 or 1.0
    axis = alt.Axis(format=_dollar_format(top), tickCount=5)
    y = alt.Y("part:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False))
    tip = [_word("part"), _tip("dollars", "US dollars", "$,.4~f")]
    base = _chart(pl.DataFrame(bars, schema=names, orient="row")).encode(y=y)
    x = alt.X("start:Q", title="US dollars", scale=alt.Scale(domain=[0, top], nice=False), axis=axis)
    layers = [
        base.mark_rule(color=GREY, opacity=0.6).encode(alt.X("level:Q"), alt.Y2("after:N")),
        base.mark_bar(size=22).encode(x, alt.X2("end:Q"), alt.Color("color:N", scale=None), tooltip=tip),
        base.mark_text(align="left", dx=6).encode(x="right:Q", text="label:N"),
    ]
    text = f"{_dollars(paid)} paid"
    if len(parts) > 1:
        share = f" ({(total - paid) / total:.1%})" if total else ""
        text += f" instead of {_dollars(total)}: {_dollars(total - paid)} saved{share}"
    chart = alt.layer(*layers).properties(width=340, height=alt.Step(34), title=text)
    return Shown(chart=chart, text=text)


def _chart(frame: pl.DataFrame | None = None) -> alt.Chart:
    """Return a chart with the rows of `frame` inside it: no data transformer, so no limit of rows."""
    import altair as alt

    rows: list[dict[str, Any]] = [{}]
    if frame is not None:
        # Polars rounds 0.0 to six significant digits as NaN.
        rows = _finite(frame).with_columns(columns.float().round_sig_figs(6).fill_nan(0.0)).to_dicts()
    return alt.Chart(alt.InlineData(values=rows))


def _finite(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.when(columns.float().is_finite()).then(columns.float()))


def _note(text: str, x: float, y: Any, *, shape: str = "", **mark: Any) -> alt.Chart:
    """Return words (or a shape) at a pixel across, and at a pixel or a value up."""
    import altair as alt

    place = _chart().encode(x=alt.value(x), y=alt.value(y) if isinstance(y, int | float) else y)
    words = {"text": text, "align": "left", "baseline": "middle", **mark}
    sign = {"shape": shape, "filled": True, "size": 80, "opacity": 1, **mark}
    note: alt.Chart = place.mark_point(**sign) if shape else place.mark_text(**words)
    return note


def _at(value: float) -> alt.YDatum:
    import altair as alt

    return alt.YDatum(value, type="quantitative")


def _x(field: str, title: str | None, ticks: int = 6) -> alt.X:
    import altair as alt

    axis = alt.Axis(tickCount=ticks) if title else alt.Axis(labels=False, ticks=False)
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(nice=False, zero=True), axis=axis)


def _tip(field: str, title: str, form: str) -> alt.Tooltip:
    import altair as alt

    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def _word(field: str) -> alt.Tooltip:
    import altair as alt

    return alt.Tooltip(f"{field}:N", title=field.capitalize())


def _limit(value: float, label: str, *, beyond: bool = False) -> list[alt.Chart]:
    """Return a dashed line with its name on it; only the name where the line lies beyond the picture."""
    if beyond:
        return [_note(f"\N{UPWARDS ARROW} {label}", 4, 6)]
    rule = _chart().mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY).encode(y=_at(value))
    return [rule, _note(label, 4, _at(value), dy=-4, baseline="bottom")]


def _flagged(count: int, what: str, width: int) -> list[alt.Chart]:
    """Return, above the right corner, how many calls went wrong and the sign that marks them."""
    label = _note(f"{_counted(count, 'call')} {what}", width - 12, -12, align="right", color=VERMILLION)
    return [label, _note("", width - 4, -13, shape="triangle-down", color=VERMILLION)] if count else []


def _nothing_sent(
    y_title: str | None, x_title: str = "Minutes since the start", height: int = HEIGHT
) -> Shown:
    """Return the axes of a chart that has nothing to show yet, and the words for it."""
    import altair as alt

    text, axis, scale = "nothing sent yet", alt.Axis(labels=False), alt.Scale(domain=[0, 1])
    axes = _chart(pl.DataFrame({"x": [0.0], "y": [0.0]})).mark_point(opacity=0)
    y = alt.Y("y:Q", title=y_title, scale=scale, axis=axis if y_title else None)
    words = _note(text, WIDTH / 2, height / 2, align="center", fontSize=14)
    chart = alt.layer(axes.encode(alt.X("x:Q", title=x_title, scale=scale, axis=axis), y), words)
    return Shown(chart=chart.properties(width=WIDTH, height=height), text=text)


def _slices(throughput: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Return at most `MOST_SLICES` slices (start, end, rates, refused) in a readable unit, and the unit."""
    minute, end = pl.col("minute"), pl.col("minute") + pl.col("slice_minutes").clip(NO_TIME)
    first, last = throughput.select(minute.min(), end.max().alias("end")).row(0)
    scale, unit = _time_unit(last)
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


def _mean_and_peak(throughput: pl.DataFrame, noun: str) -> tuple[float, float]:
    rate, length = pl.col(_column(noun)).fill_null(0.0), pl.col("slice_minutes")
    mean, peak = throughput.select(mean=(rate * length).sum() / length.sum(), peak=rate.max()).row(0)
    return (mean if math.isfinite(mean) else 0.0), peak


def _column(noun: str) -> str:
    return f"{noun.replace(' ', '_')}_per_minute"


def _rate(
    slices: pl.DataFrame, noun: str, *, limit: float | None, color: str, unit: str | None
) -> list[alt.Chart]:
    """Return the layers of one rate over time, drawn in steps, with its limit."""
    import altair as alt

    rate, name = _column(noun), f"{noun.capitalize()} per minute"
    peak = slices.select(pl.col(rate).max()).item()
    beyond = limit is not None and 0 < peak < limit / 5  # a limit far away would press the rate flat
    top = max(peak, 0.0 if beyond else limit or 0.0) * 1.25 or 1.0
    # A slice ends where the next begins; where none begins the rate falls to zero: a pause looks like one.
    paused = (pl.col("start").shift(-1) - pl.col("end") > NO_TIME).fill_null(value=True)
    falls = slices.filter(paused).select(start="end", rate=0.0)
    steps = pl.concat([slices.select("start", rate=rate), falls])
    area = _chart(steps.sort("start", maintain_order=True)).mark_area(
        interpolate="step-after", color=color, fillOpacity=0.3, line={"color": color, "strokeWidth": 1.5}
    )
    axis = alt.Axis(labelExpr=SHORT) if top > LONG_NUMBERS else alt.Axis(format=",~f")
    y = alt.Y("rate:Q", title=name, scale=alt.Scale(domain=[0, top], nice=False), axis=axis)
    tip = [_tip("start", "From", ",.2f"), _tip(rate, name, ",.0f"), _tip("refused", "Refused (429)", ",d")]
    hover = _chart(slices).mark_rect(opacity=0).encode(x="start:Q", x2="end:Q", tooltip=tip)
    limits = _limit(limit, f"limit {limit:,.0f} {noun}/min", beyond=beyond) if limit else []
    return [area.encode(_x("start", unit), y), *limits, hover]


def _seconds(calls: pl.DataFrame) -> tuple[alt.Scale, alt.Axis, list[float]]:
    """Return scale, axis and the histogram's edges; logarithmic where the slowest dwarf the rest."""
    import altair as alt

    seconds = pl.col("seconds")
    low, middle, high = calls.select(low=seconds.min(), middle=seconds.median(), high=seconds.max()).row(0)
    if high < DWARFED * middle:
        edges = [high * 1.08 * n / BINS for n in range(BINS + 1)]
        return alt.Scale(domain=[0, edges[-1]], nice=False), alt.Axis(format=",~f"), edges
    low, high = low / 1.1, high * 1.1
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [tick for power in range(-3, 6) for step in steps if low < (tick := step * 10.0**power) < high]
    axis = alt.Axis(format=",~f", values=ticks, tickCount=30, labelOverlap=False)
    edges = [low * (high / low) ** (n / BINS) for n in range(BINS + 1)]
    return alt.Scale(type="log", domain=[low, high], nice=False), axis, edges


def _histogram(seconds: pl.Series, edges: list[float], scale: alt.Scale) -> alt.Chart:
    """Return how many answers lie between each edge and the next, lying on its side."""
    import altair as alt

    below = [int((seconds < edge).sum()) for edge in edges]
    counts = [after - before for before, after in itertools.pairwise(below)]
    bars = pl.DataFrame({"low": edges[:-1], "high": edges[1:], "none": 0, "answers": counts})
    axis = alt.Axis(values=[0, max(1, *counts)], labelExpr=SHORT)
    x = alt.X("none:Q", title="Answers", scale=alt.Scale(nice=False), axis=axis)
    tip = [_tip("low", "From (s)", ",.2f"), _tip("high", "To (s)", ",.2f"), _tip("answers", "Answers", ",d")]
    y, y2 = alt.Y("low:Q", scale=scale, axis=None), alt.Y2("high:Q")
    mark = _chart(bars).mark_rect(color=BLUE, opacity=0.5)
    histogram: alt.Chart = mark.encode(x, alt.X2("answers:Q"), y, y2, tooltip=tip)
    return histogram


def _time_unit(minutes: float) -> tuple[float, str]:
    """Return by what to multiply minutes, and the title of the axis, so that its numbers are easy to read."""
    for most, scale, unit in ((3, 60.0, "Seconds"), (240, 1.0, "Minutes")):
        if minutes <= most:
            return scale, f"{unit} since the start"
    return 1 / 60, "Hours since the start"


def _every(frame: pl.DataFrame, most: int) -> int:
    return max(1, math.ceil(frame.height / most))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _significant(value: float) -> str:
    """Return three significant digits, without an exponent."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def _dollars(value: float) -> str:
    cents = abs(value) >= 0.1 or not value  # noqa: PLR2004 - below ten cents, cents say too little
    return (
        f"{'-' if value < 0 else ''}${abs(value):,.2f}"
        if cents
        else f"${_significant(value)}".replace("$-", "-$")
    )


def _dollar_format(top: float) -> str:
    decimals = 0 if top >= WHOLE_DOLLARS else 2 if top >= 1 else 2 - math.floor(math.log10(top))
    return f"$,.{decimals}f"
