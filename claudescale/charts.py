"""Pictures of a run: Polars frames in, charts out that show themselves without a network.

A chart knows column names, never our objects. Everything is aggregated in Polars before Altair sees
it, so that a million rows make a small picture, and always the same one. The theme joins when a chart
is shown, not when it is made: `Shown.chart` stays free of configuration and composes with ``|``, ``&``
and ``+``. The user's own Altair settings are neither read nor changed.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as columns

if TYPE_CHECKING:
    import altair as alt

# Okabe and Ito's palette: told apart by colour-blind readers, on white and on black.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALE, GREY = "#BBBBBB", "#888888"  # reads on white and on black: JupyterLab's dark theme leaves the colour of marks alone
WIDTH, HEIGHT = 560, 220
MOST_SLICES, MOST_POINTS, MOST_BINS = 280, 1_500, 60

# Labels and titles of axes have no colour here: the light or dark theme of the page gives it.
THEME: dict[str, Any] = {
    "view": {"stroke": None},
    "axis": {
        "gridColor": GREY,
        "gridOpacity": 0.25,
        "domainColor": GREY,
        "tickColor": GREY,
        "labelFontSize": 11,
        "labelPadding": 5,
        "labelLimit": 190,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "titlePadding": 8, "labelFlush": False},
    "axisYQuantitative": {
        "domain": False,
        "ticks": False,
        "tickCount": 4,
        "minExtent": 44,
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleX": -44,
        "titleY": -9,
    },
    "text": {"color": GREY, "fontSize": 11},
    "rule": {"color": GREY},
    "title": {"anchor": "start", "frame": "bounds", "fontSize": 13, "fontWeight": 600, "offset": 12},
}
# Name on the picture: which quantile, from how many answers on, and how it is drawn.
SHORT = "format(datum.value, '~s')"  # 400k; as `format=` it would label zero "0k"
QUANTILES = {"median": (0.5, 1, ORANGE, [1, 0], "top"), "p90": (0.9, 10, GREEN, [6, 3], "bottom")}
STATES = {
    "answered": BLUE,
    "reused from the ledger": SKY,
    "failed": VERMILLION,
    "unsent": PURPLE,
    "to do": PALE,
}


@dataclass(frozen=True, eq=False, repr=False, slots=True, kw_only=True)
class Shown:
    """A chart that shows itself in a notebook, with no network, in light and in dark.

    Spends: nothing.

    To go on from it, change `chart` with Altair and wrap what comes out again:
    ``Shown(chart=shown.chart.properties(width=400), text=shown.text)``.

    Parameters
    ----------
    chart
        The Altair chart, without a theme: free to be layered and concatenated.
    text
        One sentence that says what the picture says; shown where pictures cannot be.
    """

    chart: alt.TopLevelMixin
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself filters what it gets
        return bundle(self.chart, self.text)


def specification(chart: alt.TopLevelMixin, text: str) -> dict[str, Any]:
    """Return the Vega-Lite specification of `chart` in our theme, `text` as its description.

    Spends: nothing.
    """
    datasets: dict[str, Any] = {}
    # Altair's own name for "part of a larger chart": it leaves out the user's theme and renderer settings.
    inner = chart.to_dict(context={"datasets": datasets, "top_level": False, "pre_transform": False})
    return {
        # JupyterLab bundles Vega-Lite 5.6.1 and warns of any other version.
        "$schema": "https://vega.github.io/schema/vega-lite/v5.6.1.json",
        "description": text,
        "background": "transparent",
        **inner,
        "config": {**THEME, **inner.get("config", {})},
        "datasets": {**inner.get("datasets", {}), **datasets},
    }


def bundle(chart: alt.TopLevelMixin, text: str) -> dict[str, Any]:
    """Return what a notebook shows and saves of `chart`: Vega-Lite 5, a PNG and `text`.

    One of the three is right everywhere: JupyterLab and VS Code draw the first and follow the dark
    theme, GitHub and exported pages have the picture (on white, because nothing says what page it
    will stand on), a terminal the sentence. For a display handle: ``handle.update(bundle, raw=True)``.

    Spends: nothing.

    Parameters
    ----------
    chart
        Any Altair chart.
    text
        One sentence that says what the picture says.

    Returns
    -------
    dict
        By MIME type.
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
    """Return the chart of requests per minute over time, against the limit.

    Spends: nothing.

    Parameters
    ----------
    throughput
        A row per slice of time: ``minute`` (since the start, left edge), ``slice_minutes``,
        ``requests_per_minute``, ``input_tokens_per_minute``, ``output_tokens_per_minute`` and
        ``refused`` (how many calls the API turned away with 429).
    requests_per_minute
        The limit, drawn as a labelled line; None where it is not known.

    Returns
    -------
    Shown
        The chart, its sentence in `text`.
    """
    title = "Requests per minute"
    if throughput.is_empty():
        return _nothing_sent(title)
    slices, unit = _slices(throughput)
    mean, peak = _mean_and_peak(throughput, "requests_per_minute")
    text = f"{mean:,.0f} requests a minute on average, {peak:,.0f} at the peak"
    text += f", {requests_per_minute:,.0f} allowed" if requests_per_minute else ""
    refused = throughput["refused"].sum()
    text += f"; {_counted(refused, 'call')} refused" if refused else ""
    panel = _rate(slices, "requests", requests_per_minute, BLUE, unit=unit, height=HEIGHT)
    return Shown(chart=panel.properties(title=text), text=text)


def tokens(
    throughput: pl.DataFrame, *, input_tokens_per_minute: float | None, output_tokens_per_minute: float | None
) -> Shown:
    """Return the chart of input and output tokens per minute, each against its own limit.

    Spends: nothing.

    Parameters
    ----------
    throughput
        The frame of `throughput`.
    input_tokens_per_minute, output_tokens_per_minute
        The limits, drawn as labelled lines; None where one is not known.

    Returns
    -------
    Shown
        Two panels over one time axis.
    """
    if throughput.is_empty():
        return _nothing_sent("Tokens per minute")
    import altair as alt

    slices, unit = _slices(throughput)
    limits = {"input tokens": input_tokens_per_minute, "output tokens": output_tokens_per_minute}
    said, panels = [], []
    for (noun, limit), color in zip(limits.items(), (BLUE, ORANGE), strict=True):
        mean, _ = _mean_and_peak(throughput, f"{noun.replace(' ', '_')}_per_minute")
        said.append(f"{mean:,.0f} {noun}" + (f" ({mean / limit:.1%} of the limit)" if limit else ""))
        last = noun == "output tokens"
        panels.append(_rate(slices, noun, limit, color, unit=unit if last else None, height=105))
    text = f"A minute on average: {', '.join(said)}"
    return Shown(chart=alt.vconcat(*panels, spacing=26, title=text), text=text)


def latency(attempts: pl.DataFrame) -> Shown:
    """Return the chart of the seconds each answer took: over time, and how they are spread.

    The median and the 90th percentile are of all answers; of very many, every n-th is drawn.

    Spends: nothing.

    Parameters
    ----------
    attempts
        A row per answer or failure: ``sent_at``, ``seconds`` and ``error`` (null where answered).

    Returns
    -------
    Shown
        Points with lines of the median and the 90th percentile, and a histogram beside them.
    """
    calls = attempts.select("sent_at", "seconds", failed=pl.col("error").is_not_null())
    calls = calls.filter(pl.col("seconds").is_finite()).sort("sent_at", "seconds")
    if calls.is_empty():
        return _nothing_sent("Seconds per answer")
    import altair as alt

    minutes = (pl.col("sent_at") - pl.col("sent_at").min()).dt.total_microseconds() / 60e6
    scale, unit = _time_unit(calls.select(minutes.max()).item())
    calls = calls.select("seconds", "failed", at=minutes * scale)
    answers, failures = calls.filter(~pl.col("failed")), calls.filter("failed")
    seconds = answers["seconds"]
    y_scale, ticks, edges = _seconds_axis(calls["seconds"])
    every = -(-answers.height // MOST_POINTS) or 1
    x_title = unit + (f" (one answer in {every:,} drawn)" if every > 1 else "")
    x = alt.X("at:Q", title=x_title, scale=alt.Scale(nice=False, padding=4), axis=alt.Axis(tickCount=5))
    y = alt.Y("seconds:Q", title="Seconds per answer", scale=y_scale, axis=ticks)
    tip = [_tip("at", unit, ",.2f"), _tip("seconds", "Seconds", ",.2f")]
    width = 370
    over_time = [
        _chart(answers.gather_every(every)).mark_circle(color=BLUE, size=14).encode(x, y, tooltip=tip),
        _chart(failures.gather_every(-(-failures.height // 200) or 1))
        .mark_point(shape="triangle-down", color=VERMILLION, filled=True)
        .encode(x, y, tooltip=tip),
        *_flagged(failures.height, "failed or refused", width),
    ]
    # In each bin the answers from its lower edge up to, not including, the next.
    below = [(seconds < edge).sum() for edge in edges]
    bars = pl.DataFrame({"low": edges[:-1], "high": edges[1:], "none": 0, "answers": pl.Series(below).diff().drop_nulls()})
    beside = [
        _chart(bars)
        .mark_rect(color=BLUE, opacity=0.5)
        .encode(
            x=alt.X("none:Q", title="Answers", axis=alt.Axis(tickCount=2, tickMinStep=1, labelExpr=SHORT)),
            x2="answers:Q",
            y=alt.Y("low:Q", scale=y_scale, axis=None),
            y2="high:Q",
            tooltip=[_tip("low", "From (s)", ",.2f"), _tip("high", "To (s)", ",.2f"), _tip("answers", "Answers", ",")],
        )
    ]
    # Equally many answers behind each point of a line: each is equally certain, and there are no gaps.
    bins = min(MOST_BINS, answers.height // 40)
    binned = answers.group_by(pl.int_range(pl.len()) * bins // pl.len(), maintain_order=True)
    said = []
    for name, (quantile, least, color, dash, baseline) in QUANTILES.items():
        value = seconds.quantile(quantile, "linear")
        if value is None or seconds.len() < least:
            continue
        said.append(f"{name} {_significant(value)} s")
        line = binned.agg(pl.col("at").median(), pl.col("seconds").quantile(quantile, "linear"))
        over_time.append(
            _chart(line).mark_line(color=color, strokeDash=dash, strokeWidth=2.5).encode(x=x, y=y)
        )
        at = alt.Y(datum=value, type="quantitative", scale=y_scale)
        beside += [
            _chart().mark_rule(color=color, strokeDash=dash, strokeWidth=2).encode(y=at),
            _note(said[-1], x=104, y=at, baseline=baseline),
        ]
    text = f"{_counted(answers.height, 'answer')}: {', '.join(said)}" if said else "No answers yet"
    text += f"; {_counted(failures.height, 'call')} failed or refused" if failures.height else ""
    chart = alt.hconcat(
        alt.layer(*over_time).properties(width=width, height=HEIGHT),
        alt.layer(*beside).properties(width=96, height=HEIGHT),
        spacing=12,
        title=text,
    )
    return Shown(chart=chart, text=text)


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
    spending
        ``minute`` (since the start), ``dollars`` (so far) and ``counterfactual_dollars`` (so far, for
        the same rows without deduplication and cache; null or missing where not known).
    estimate_dollars
        What the plan said the run would cost, drawn as a labelled line.
    estimate_p10_dollars, estimate_p90_dollars
        The range that came with the estimate, drawn as a band.

    Returns
    -------
    Shown
        The chart, its sentence in `text`.
    """
    if spending.is_empty():
        return _nothing_sent("US dollars")
    import altair as alt

    scale, unit = _time_unit(spending["minute"].max())
    spent = spending.sort("minute").with_columns(at=pl.col("minute") * scale)
    every = -(-spent.height // MOST_SLICES)
    drawn = spent.reverse().gather_every(every).reverse()  # from the end: the last total is always there
    names = {"dollars": ("paid", BLUE, [1, 0], "top")}
    if "counterfactual_dollars" in spent.columns and spent["counterfactual_dollars"].count():
        names["counterfactual_dollars"] = ("without savings", ORANGE, [6, 3], "bottom")
    totals = {name: spent[name].drop_nulls().last() or 0.0 for name in names}
    top = max(*totals.values(), estimate_dollars or 0, estimate_p90_dollars or 0) * 1.12 or 1.0
    x = alt.X("at:Q", title=unit, scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=6))
    y_scale = alt.Scale(domain=[0, top], nice=False)
    y_axis = alt.Axis(format=_dollar_format(top))
    layers: list[alt.Chart] = []
    if estimate_p10_dollars is not None and estimate_p90_dollars is not None:
        band = pl.DataFrame({"low": [estimate_p10_dollars], "high": [estimate_p90_dollars]})
        tip = [_tip("low", "Estimate, p10", "$,.4~f"), _tip("high", "Estimate, p90", "$,.4~f")]
        layers.append(
            _chart(band).mark_rect(color=GREY, opacity=0.15).encode(alt.Y("low:Q"), alt.Y2("high:Q"), tooltip=tip)
        )
    if estimate_dollars is not None:
        layers += _limit(estimate_dollars, f"estimate {_dollars(estimate_dollars)}")
    width = 430
    for name, (label, color, dash, baseline) in names.items():
        y = alt.Y(f"{name}:Q", title="US dollars", scale=y_scale, axis=y_axis)
        line = _chart(drawn).mark_line(color=color, strokeDash=dash, strokeWidth=2.5)
        layers.append(line.encode(x, y, tooltip=[_tip("at", unit, ",.2f"), _tip(name, "US dollars", "$,.4~f")]))
        end = alt.Y(datum=totals[name], type="quantitative")
        layers.append(_note("", x=width, y=end, kind="circle", color=color))
        layers.append(_note(f"{_dollars(totals[name])} {label}", x=width + 6, y=end, baseline=baseline))
    text = f"{_dollars(totals['dollars'])} paid"
    text += f", {_dollars(estimate_dollars)} estimated" if estimate_dollars is not None else ""
    if "counterfactual_dollars" in totals:
        text += f"; {_dollars(totals['counterfactual_dollars'])} without deduplication and cache"
    return Shown(chart=alt.layer(*layers).properties(width=width, height=HEIGHT, title=text), text=text)


def progress(counts: pl.DataFrame) -> Shown:
    """Return the chart of how many rows are answered, and how many are not: one bar.

    Spends: nothing.

    Parameters
    ----------
    counts
        ``state`` (answered, reused from the ledger, failed, unsent, to do) and ``rows``.

    Returns
    -------
    Shown
        The chart, its sentence in `text`.
    """
    import altair as alt

    given = counts.filter(pl.col("rows") > 0).group_by("state", maintain_order=True).agg(pl.col("rows").sum())
    total = given["rows"].sum()
    if not total:
        return _nothing_sent(None, "Rows", height=40)
    ordered = sorted(given.iter_rows(), key=lambda each: [*STATES, each[0]].index(each[0]))
    to_do = sum(rows for state, rows in ordered if state == "to do")
    text = f"{total - to_do:,} of {_counted(total, 'row')} done ({(total - to_do) / total:.1%})"
    # Three failures in a million rows must be seen: no part is narrower than 3 pixels.
    widths = [max(rows, total * 3 / WIDTH) for _, rows in ordered]
    widths[widths.index(max(widths))] -= sum(widths) - total
    ends = [sum(widths[: n + 1]) for n in range(len(widths))]
    bars = pl.DataFrame(ordered, schema=["state", "rows"], orient="row").with_columns(
        start=pl.Series(ends) - pl.Series(widths),
        end=pl.Series(ends),
        color=pl.Series([STATES.get(state, GREEN) for state, _ in ordered]),
    )
    labels: list[alt.Chart] = []
    x, y = 0, 7
    for state, rows in ordered:
        label = f"{rows:,} {state}"
        if x and x + 14 + 6.5 * len(label) > WIDTH:
            x, y = 0, y + 18
        labels.append(_note("", x=x + 5, y=y, kind="square", color=STATES.get(state, GREEN)))
        labels.append(_note(label, x=x + 14, y=y))
        x += 32 + int(6.5 * len(label))
    bar = _chart(bars).mark_bar()
    bar = bar.encode(
        x=alt.X("start:Q", title="Rows", scale=alt.Scale(domain=[0, total], nice=False), axis=alt.Axis(format=",~f", tickMinStep=1, tickCount=6)),
        x2="end:Q",
        y=alt.value(y + 14),
        y2=alt.value(y + 42),
        color=alt.Color("color:N", scale=None),
        tooltip=[alt.Tooltip("state:N", title="State"), _tip("rows", "Rows", ",")],
    )
    said = ", ".join(f"{rows:,} {state}" for state, rows in ordered)
    chart = alt.layer(bar, *labels).properties(width=WIDTH, height=y + 46, title=text)
    return Shown(chart=chart, text=f"{text}: {said}")


def savings(savings: pl.DataFrame) -> Shown:
    """Return the chart of what was saved: from what the rows would have cost down to what was paid.

    Spends: nothing.

    Parameters
    ----------
    savings
        ``part`` and ``dollars``, in the order to be drawn: first what the rows would have cost, then
        what each part saved (negative where it cost more than it saved), last what was paid.

    Returns
    -------
    Shown
        The chart, its sentence in `text`.
    """
    if savings.is_empty():
        return _nothing_sent(None, "US dollars", height=120)
    import altair as alt

    parts = savings.select("part", pl.col("dollars").fill_null(0.0)).rows()
    total, paid = parts[0][1], parts[-1][1]
    bars, level = [], 0.0
    for n, (part, dollars) in enumerate(parts):
        whole = n in (0, len(parts) - 1)
        start, end = (0.0, dollars) if whole else (level - dollars, level)
        level = end if whole else start
        color = (BLUE if n else PALE) if whole else GREEN if dollars >= 0 else VERMILLION
        sign = "" if whole else "\N{MINUS SIGN}" if dollars >= 0 else "+"
        share = f" ({abs(dollars) / total:.1%})" if total and not whole else ""
        label = f"{sign}{_dollars(abs(dollars))}{share}"
        bars.append((part, dollars, start, end, max(start, end), label, color))
    names = ["part", "dollars", "start", "end", "right", "label", "color"]
    top = max(bar[4] for bar in bars) * 1.02 or 1.0
    axis = alt.Axis(format=_dollar_format(top), tickCount=5)
    base = _chart(pl.DataFrame(bars, schema=names, orient="row")).encode(
        y=alt.Y("part:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False)),
        tooltip=[alt.Tooltip("part:N", title="Part"), _tip("dollars", "US dollars", "$,.4~f")],
    )
    drawn = base.mark_bar(size=22).encode(
        x=alt.X("start:Q", title="US dollars", scale=alt.Scale(domain=[0, top], nice=False), axis=axis),
        x2="end:Q",
        color=alt.Color("color:N", scale=None),
    )
    labels = base.mark_text(align="left", dx=6).encode(x="right:Q", text="label:N")
    text = f"{_dollars(paid)} paid"
    if len(parts) > 1:
        share = f" ({(total - paid) / total:.1%})" if total else ""
        text += f" instead of {_dollars(total)}: {_dollars(total - paid)} saved{share}"
    chart = alt.layer(drawn, labels).properties(width=340, height=alt.Step(34), title=text)
    return Shown(chart=chart, text=text)


def _chart(frame: pl.DataFrame | None = None) -> alt.Chart:
    """Return an unmarked chart with the rows of `frame` inside: no data transformer, so no row limit."""
    import altair as alt

    rows: list[dict[str, Any]] = [{}]
    if frame is not None:
        number = columns.float()
        # Polars rounds 0.0 to six significant digits as NaN.
        shown = pl.when(number.is_finite()).then(number.round_sig_figs(6).fill_nan(0.0))
        rows = frame.with_columns(shown).to_dicts()
    return alt.Chart(alt.InlineData(values=rows))


def _note(text: str, *, x: float, y: Any, kind: str = "", **mark: Any) -> alt.Chart:
    """Return a text (or, with `kind`, a shape) at a pixel, or at a place on the y axis."""
    import altair as alt

    y = y if isinstance(y, alt.Y) else alt.value(y)
    if kind:
        return _chart().mark_point(shape=kind, filled=True, size=80, opacity=1, **mark).encode(x=alt.value(x), y=y)
    defaults = {"align": "left", "baseline": "middle", "lineBreak": "\n"}
    return _chart().mark_text(text=text, **{**defaults, **mark}).encode(x=alt.value(x), y=y)


def _flagged(count: int, what: str, width: int) -> list[alt.Chart]:
    """Return the count of calls that went wrong, with the sign that marks each, above the right corner."""
    if not count:
        return []
    label = _note(f"{_counted(count, 'call')} {what}", x=width - 12, y=-12, align="right", color=VERMILLION)
    return [label, _note("", x=width - 4, y=-13, kind="triangle-down", color=VERMILLION)]


def _limit(value: float, label: str, *, above: bool = False) -> list[alt.Chart]:
    """Return a dashed line at `value` with its name on it; only the name where the line is `above` the picture."""
    import altair as alt

    if above:
        return [_note(f"↑ {label}", x=4, y=6)]
    y = alt.Y(datum=value, type="quantitative")
    rule = _chart().mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY).encode(y=y)
    return [rule, _note(label, x=4, y=y, dy=-4, baseline="bottom")]


def _nothing_sent(y_title: str | None, x_title: str = "Minutes since the start", height: int = HEIGHT) -> Shown:
    """Return the axes of a chart that has nothing to show yet, and the words for it."""
    import altair as alt

    text = "nothing sent yet"
    one = alt.Scale(domain=[0, 1])
    axis = alt.Axis(labels=False)
    axes = _chart(pl.DataFrame({"x": [0.0], "y": [0.0]})).mark_point(opacity=0)
    axes = axes.encode(alt.X("x:Q", title=x_title, scale=one, axis=axis), alt.Y("y:Q", title=y_title, scale=one, axis=axis))
    words = _note(text, x=WIDTH / 2, y=height / 2, align="center", fontSize=14)
    return Shown(chart=alt.layer(axes, words).properties(width=WIDTH, height=height), text=text)


def _slices(throughput: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Return at most `MOST_SLICES` slices of time in a readable unit (start, end, rates, refused), and the unit."""
    first, end = throughput["minute"].min(), (throughput["minute"] + throughput["slice_minutes"]).max()
    scale, unit = _time_unit(end)
    width = (end - first) / MOST_SLICES
    bins = pl.col("minute").rank("ordinal") if throughput.height <= MOST_SLICES else (pl.col("minute") - first) // width
    ends = pl.col("minute") + pl.col("slice_minutes")
    length = ends.max() - pl.col("minute").min()
    rates = (columns.ends_with("_per_minute").fill_null(0.0) * pl.col("slice_minutes")).sum() / length
    sliced = throughput.group_by(bins.alias("bin")).agg(
        rates, start=pl.col("minute").min() * scale, end=ends.max() * scale, refused=pl.col("refused").sum()
    )
    return sliced.sort("start"), unit


def _mean_and_peak(throughput: pl.DataFrame, rate: str) -> tuple[float, float]:
    mean = (pl.col(rate) * pl.col("slice_minutes")).sum() / pl.col("slice_minutes").sum()
    mean, peak = throughput.select(mean.alias("mean"), pl.col(rate).max().alias("peak")).row(0)
    return (mean if mean and math.isfinite(mean) else 0.0), peak or 0.0


def _rate(
    slices: pl.DataFrame, noun: str, limit: float | None, color: str, *, unit: str | None, height: int
) -> alt.LayerChart:
    """Return one panel: a rate in steps, its limit, and the slices in which calls were refused."""
    import altair as alt

    rate = f"{noun.replace(' ', '_')}_per_minute"
    peak = slices[rate].max() or 0.0
    above = bool(limit) and 0 < peak < limit / 5  # a limit far away would press the rate flat
    top = max(peak, 0 if above else limit or 0) * 1.25 or 1.0
    # A slice ends where the next begins, or the rate falls to nothing: a pause is drawn as a pause.
    ended = (pl.col("start").shift(-1) - pl.col("end") > 1e-9).fill_null(value=True)
    ends = slices.filter(ended).select(start="end", rate=pl.lit(0.0))
    steps = pl.concat([slices.select("start", rate=rate), ends]).sort("start", maintain_order=True)
    name = f"{noun.capitalize()} per minute"
    time_axis = alt.Axis(tickCount=6) if unit else alt.Axis(labels=False, ticks=False)
    x = alt.X("start:Q", title=unit, scale=alt.Scale(nice=False), axis=time_axis)
    y_axis = alt.Axis(labelExpr=SHORT) if top > 20_000 else alt.Axis(format=",~f")
    y = alt.Y("rate:Q", title=name, scale=alt.Scale(domain=[0, top], nice=False), axis=y_axis)
    area = _chart(steps).mark_area(
        interpolate="step-after", color=color, fillOpacity=0.25, line={"color": color, "strokeWidth": 1.5}
    )
    tip = [_tip("start", unit or "From", ",.2f"), _tip(rate, name, ",.0f"), _tip("refused", "Refused (429)", ",")]
    hover = _chart(slices).mark_rect(opacity=0).encode(x="start:Q", x2="end:Q", tooltip=tip)
    # Signs that would lie upon each other are joined.
    joined = pl.int_range(pl.len()) // -(-slices.height // 70)
    middle = ((pl.col("start") + pl.col("end")) / 2 * pl.col("refused")).sum() / pl.col("refused").sum()
    refused = slices.group_by(joined).agg(pl.col("refused").sum(), middle=middle).filter(pl.col("refused") > 0).sort("middle")
    signs = _chart(refused).mark_point(shape="triangle-down", filled=True, color=VERMILLION, opacity=0.9)
    size = alt.Size("refused:Q", legend=None, scale=alt.Scale(range=[30, 110], domainMin=0))
    layers = [area.encode(x, y), *(_limit(limit, f"limit {limit:,.0f} {noun}/min", above=above) if limit else [])]
    if not refused.is_empty() and noun == "requests":
        layers.append(signs.encode(x=alt.X("middle:Q"), y=alt.value(6), size=size))
        layers += _flagged(refused["refused"].sum(), "refused (429)", WIDTH)
    return alt.layer(*layers, hover).properties(width=WIDTH, height=height)


def _seconds_axis(seconds: pl.Series) -> tuple[alt.Scale, alt.Axis, list[float]]:
    """Return scale, axis and histogram edges for durations; logarithmic where the slow ones dwarf the rest."""
    import altair as alt

    low, high, middle = max(seconds.min(), 1e-3), max(seconds.max(), 1e-3), seconds.median()
    if high < 15 * middle:
        top = high * 1.08
        scale = alt.Scale(domain=[0, top], nice=False)
        return scale, alt.Axis(format=",~f"), [top * n / 24 for n in range(25)]
    low, high = low / 1.1, high * 1.1
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [step * 10.0**power for power in range(-3, 6) for step in steps]
    axis = alt.Axis(format=",~f", tickCount=30, labelOverlap=False, values=[tick for tick in ticks if low <= tick <= high])
    return alt.Scale(type="log", domain=[low, high], nice=False), axis, [low * (high / low) ** (n / 24) for n in range(25)]


def _time_unit(minutes: float) -> tuple[float, str]:
    """Return what to multiply minutes by, and the title of the axis, so that its numbers are easy to read."""
    if minutes <= 3:  # noqa: PLR2004
        return 60.0, "Seconds since the start"
    return (1.0, "Minutes since the start") if minutes <= 240 else (1 / 60, "Hours since the start")  # noqa: PLR2004


def _tip(field: str, title: str, form: str) -> alt.Tooltip:
    import altair as alt

    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _significant(value: float, digits: int = 3) -> str:
    """Return `value` with that many significant digits and no exponent."""
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def _dollars(value: float) -> str:
    amount = f"{abs(value):,.2f}" if abs(value) >= 0.1 or not value else _significant(abs(value))
    return f"{'-' if value < 0 else ''}${amount}"


def _dollar_format(top: float) -> str:
    return "$,.2f" if top >= 1 else f"$,.{2 - math.floor(math.log10(top))}f"
