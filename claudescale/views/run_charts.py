"""Pictures of a run: Polars frames in, charts out that show themselves without a network.

A chart knows column names, never our objects. Everything is aggregated in Polars before Altair sees it:
a million rows make a small picture, and always the same one.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import polars as pl

from claudescale.views import marks
from claudescale.views.marks import BLUE, GREEN, HEIGHT, ORANGE, PALE, PURPLE, SHORT, SKY, VERMILLION, WIDTH
from claudescale.views.theme import GREY, Shown, bundle, specification

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "HEIGHT",
    "WIDTH",
    "Shown",
    "bundle",
    "latency",
    "progress",
    "savings",
    "specification",
    "spending",
    "throughput",
    "tokens",
]

STATES = {"answered": BLUE, "reused from the ledger": SKY, "failed": VERMILLION, "unsent": PURPLE}
STATES["to do"] = PALE
# Which quantile is drawn, from how many answers on, in which colour and dashes, its label on which side.
QUANTILES = {"median": (0.5, 1, ORANGE, [1, 0], "top"), "p90": (0.9, 10, GREEN, [6, 3], "bottom")}
MOST_SIGNS, MOST_POINTS, MOST_FAILURES, MOST_BINS, BINS = 70, 1_500, 200, 60, 24
DWARFED = 15  # a log scale from the slowest in so many medians on
HOVER = {"opacity": 0, "size": 80}  # points nobody sees, for the tooltips of a line


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
        return marks.nothing_sent("Requests per minute")
    import altair as alt

    throughput = marks.finite(throughput).sort("minute")
    slices, unit = marks.slices_of(throughput)
    mean, peak = marks.mean_and_peak(throughput, "requests")
    layers = marks.rate_layers(slices, "requests", limit=requests_per_minute, color=BLUE, unit=unit)
    text = f"{mean:,.0f} requests a minute on average, {peak:,.0f} at the peak"
    text += f", {requests_per_minute:,.0f} allowed" if requests_per_minute else ""
    if refused := slices.select(pl.col("refused").sum()).item():
        text += f"; {marks.counted(refused, 'call')} refused"
        # Signs that would lie upon each other are joined; their size is how many calls they stand for.
        middle = ((pl.col("start") + pl.col("end")) / 2 * pl.col("refused")).sum() / pl.col("refused").sum()
        groups = slices.group_by(bin=pl.int_range(pl.len()) // marks.every(slices, MOST_SIGNS))
        signs = groups.agg(pl.col("refused").sum(), start=middle).filter(pl.col("refused") > 0).sort("start")
        size = alt.Size("refused:Q", legend=None, scale=alt.Scale(range=[30, 110], domainMin=0))
        mark = marks.chart_of(signs).mark_point(shape="triangle-down", filled=True, color=VERMILLION)
        layers.append(mark.encode(x="start:Q", y=alt.value(6), size=size))
        layers += marks.flagged(refused, "refused (429)", WIDTH)
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
        return marks.nothing_sent("Tokens per minute")
    import altair as alt

    throughput = marks.finite(throughput).sort("minute")
    slices, unit = marks.slices_of(throughput)
    said, panels = [], []
    for noun, limit, color, title in (
        ("input tokens", input_tokens_per_minute, BLUE, None),
        ("output tokens", output_tokens_per_minute, ORANGE, unit),
    ):
        mean, _ = marks.mean_and_peak(throughput, noun)
        layers = marks.rate_layers(slices, noun, limit=limit, color=color, unit=title)
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
        return marks.nothing_sent("Seconds per answer")
    import altair as alt

    minutes = (pl.col("sent_at") - pl.col("sent_at").min()).dt.total_microseconds() / 60e6
    scale, unit = marks.time_unit(calls.select(minutes.max()).item())
    calls = calls.sort("sent_at", "seconds").select(
        pl.col("seconds").clip(1e-3), at=minutes * scale, answered=pl.col("error").is_null()
    )
    answers, failures = calls.filter("answered"), calls.filter(~pl.col("answered"))
    y_scale, axis, edges = _seconds(calls)
    every = marks.every(answers, MOST_POINTS)
    tip = [marks.tip("at", unit, ",.2f"), marks.tip("seconds", "Seconds", ",.2f")]
    x = marks.time_axis("at", unit + (f" (one answer in {every:,} drawn)" if every > 1 else ""), 5)
    y = alt.Y("seconds:Q", title="Seconds per answer", scale=y_scale, axis=axis)
    signs = marks.chart_of(failures.gather_every(marks.every(failures, MOST_FAILURES)))
    drawn = marks.chart_of(answers.gather_every(every))
    width, beside_width = 365, 96
    points = [
        drawn.mark_circle(color=BLUE, size=14).encode(x, y, tooltip=tip),
        signs.mark_point(shape="triangle-down", color=VERMILLION, filled=True).encode(x, y, tooltip=tip),
        *marks.flagged(failures.height, "failed or refused", width),
    ]
    beside, said = [_histogram(answers["seconds"], edges, y_scale)], []
    # Equally many answers behind each point of a line: each is equally certain, and there are no gaps.
    bin_of = pl.int_range(pl.len()) * min(MOST_BINS, answers.height // 40) // pl.len()
    bins = answers.group_by(bin=bin_of, maintain_order=True)
    for name, (quantile, least, color, dash, baseline) in QUANTILES.items():
        if answers.height < least:
            continue
        seconds = answers.select(pl.col("seconds").quantile(quantile, "linear")).item()
        said.append(f"{name} {marks.significant(seconds)} s")
        line = marks.chart_of(bins.agg(pl.col("at").median(), pl.col("seconds").quantile(quantile, "linear")))
        line = line.mark_line(color=color, strokeDash=dash, strokeWidth=2.5, point=HOVER)
        points.append(line.encode(x, y, tooltip=tip))
        rule = marks.chart_of().mark_rule(color=color, strokeDash=dash, strokeWidth=2)
        label = marks.note(said[-1], beside_width + 8, marks.at(seconds), baseline=baseline)
        beside += [rule.encode(y=marks.at(seconds)), label]
    text = f"{marks.counted(answers.height, 'answer')}: {', '.join(said)}" if said else "No answers yet"
    text += f"; {marks.counted(failures.height, 'call')} failed or refused" if failures.height else ""
    panels = zip((points, beside), (width, beside_width), strict=True)
    both = [alt.layer(*layers).properties(width=across, height=HEIGHT) for layers, across in panels]
    return Shown(chart=alt.hconcat(*both, spacing=12, title=text), text=text)


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
        return marks.nothing_sent("US dollars")
    import altair as alt

    scale, unit = marks.time_unit(spending.select(pl.col("minute").max()).item())
    spent = marks.finite(spending).sort("minute").with_columns(at=pl.col("minute") * scale)
    every = marks.every(spent, marks.MOST_SLICES)
    spent = spent.reverse().gather_every(every).reverse()  # keeps the last row
    lines = {"dollars": ("paid", BLUE, [1, 0], "top")}
    if "counterfactual_dollars" in spent.columns and spent["counterfactual_dollars"].count():
        lines["counterfactual_dollars"] = ("without savings", ORANGE, [6, 3], "bottom")
    totals = {name: spent.select(pl.col(name).drop_nulls().last()).item() or 0.0 for name in lines}
    top = max(0.0, *totals.values(), estimate_dollars or 0.0, estimate_p90_dollars or 0.0) * 1.12 or 1.0
    y_scale, axis = alt.Scale(domain=[0, top], nice=False), alt.Axis(format=marks.dollar_format(top))
    layers: list[alt.Chart] = []
    if estimate_p10_dollars is not None and estimate_p90_dollars is not None:
        band = marks.chart_of().mark_rect(color=GREY, opacity=0.15)
        layers.append(band.encode(y=marks.at(estimate_p10_dollars), y2=alt.Y2Datum(estimate_p90_dollars)))
    if estimate_dollars is not None:
        layers += marks.limit_line(estimate_dollars, f"estimate {marks.dollars(estimate_dollars)}")
    width = 430
    for name, (label, color, dash, baseline) in lines.items():
        end = marks.at(totals[name])
        line = marks.chart_of(spent.select("at", name))
        line = line.mark_line(color=color, strokeDash=dash, strokeWidth=2.5, point=HOVER)
        y = alt.Y(f"{name}:Q", title="US dollars", scale=y_scale, axis=axis)
        tip = [marks.tip("at", unit, ",.2f"), marks.tip(name, f"US dollars {label}", "$,.4~f")]
        layers += [
            line.encode(marks.time_axis("at", unit), y, tooltip=tip),
            marks.note("", width, end, shape="circle", color=color),
            marks.note(f"{marks.dollars(totals[name])} {label}", width + 8, end, baseline=baseline),
        ]
    text = f"{marks.dollars(totals['dollars'])} paid"
    text += f", {marks.dollars(estimate_dollars)} estimated" if estimate_dollars is not None else ""
    if "counterfactual_dollars" in totals:
        text += f"; {marks.dollars(totals['counterfactual_dollars'])} without deduplication and cache"
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
        return marks.nothing_sent(None, "Rows", 40)
    done = total - sum(rows for state, rows in states.iter_rows() if state == "to do")
    text = f"{done:,} of {marks.counted(total, 'row')} done ({done / total:.1%})"
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
        labels += [marks.note("", x + 5, y, shape="square", color=color_of), marks.note(label, x + 14, y)]
        x += across + 20
    axis = alt.Axis(format=",d", tickCount=min(6, total))
    x_rows = alt.X("start:Q", title="Rows", scale=alt.Scale(domain=[0, total], nice=False), axis=axis)
    color_as_is = alt.Color("color:N", scale=None)
    tip = [marks.word("state"), marks.tip("rows", "Rows", ",d")]
    bar = marks.chart_of(states).mark_bar().encode(x_rows, alt.X2("end:Q"), color_as_is, tooltip=tip)
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
        return marks.nothing_sent(None, "US dollars", 120)
    import altair as alt

    parts = marks.finite(savings).select("part", pl.col("dollars").fill_null(0.0)).rows()
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
        label = f"{sign}{marks.dollars(abs(dollars))}{share}"
        bars.append((part, after, dollars, start, end, level, max(start, end), label, color))
    names = ["part", "after", "dollars", "start", "end", "level", "right", "label", "color"]
    top = max(0.0, *(bar[6] for bar in bars)) * 1.02 or 1.0
    axis = alt.Axis(format=marks.dollar_format(top), tickCount=5)
    y = alt.Y("part:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False))
    tip = [marks.word("part"), marks.tip("dollars", "US dollars", "$,.4~f")]
    base = marks.chart_of(pl.DataFrame(bars, schema=names, orient="row")).encode(y=y)
    x = alt.X("start:Q", title="US dollars", scale=alt.Scale(domain=[0, top], nice=False), axis=axis)
    layers = [
        base.mark_rule(color=GREY, opacity=0.6).encode(alt.X("level:Q"), alt.Y2("after:N")),
        base.mark_bar(size=22).encode(x, alt.X2("end:Q"), alt.Color("color:N", scale=None), tooltip=tip),
        base.mark_text(align="left", dx=6).encode(x="right:Q", text="label:N"),
    ]
    text = f"{marks.dollars(paid)} paid"
    if len(parts) > 1:
        share = f" ({(total - paid) / total:.1%})" if total else ""
        text += f" instead of {marks.dollars(total)}: {marks.dollars(total - paid)} saved{share}"
    chart = alt.layer(*layers).properties(width=340, height=alt.Step(34), title=text)
    return Shown(chart=chart, text=text)


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
    tip = [marks.tip(edge, title, ",.2f") for edge, title in (("low", "From (s)"), ("high", "To (s)"))]
    tip.append(marks.tip("answers", "Answers", ",d"))
    y, y2 = alt.Y("low:Q", scale=scale, axis=None), alt.Y2("high:Q")
    mark = marks.chart_of(bars).mark_rect(color=BLUE, opacity=0.5)
    histogram: alt.Chart = mark.encode(x, alt.X2("answers:Q"), y, y2, tooltip=tip)
    return histogram
