"""Pictures of a plan, before anything is sent: its time per tier, and where its savings come from.

Like `claudescale.views.run_charts` it knows column names, never our objects.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many plans are never drawn

from __future__ import annotations

from typing import Any

import polars as pl

from claudescale.views import card, marks, run_charts
from claudescale.views.frontiercharts import UNTIL, clock_axis, steady
from claudescale.views.marks import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, WIDTH
from claudescale.views.placing import CHARACTER, Scale
from claudescale.views.theme import GREY, Shown

BINDINGS = {"requests": BLUE, "input tokens": ORANGE, "output tokens": GREEN}
BINDINGS |= {"latency": PURPLE, "concurrency": VERMILLION, "queue": SKY}
LINE, BAR, GAP, NARROWEST = 18, 16, 12, 2.0
FAR = 3  # a deadline that many times beyond the slowest tier is named, not drawn


def minutes(tiers: pl.DataFrame, *, own: str, mode: str, deadline_minutes: float | None = None) -> Shown:
    """Return the chart of how long a plan takes on each tier, coloured and labelled by what limits it.

    A bar is solid up to the usual time and pale up to the 90th percentile; of a batch, up to its last moment.

    Spends: nothing.

    Parameters
    ----------
    tiers : pl.DataFrame
        Of `claudescale.planning.choices.tiers`.
    own : str
        The plan's tier.
    mode : str
        How the plan sends.
    deadline_minutes : float or None
        Minutes the run may take, drawn as a labelled line.
    """
    tiers = steady(tiers)
    if tiers.is_empty() or not tiers["minutes"].max():
        return marks.nothing_sent(None, UNTIL, 60)
    import altair as alt

    most = float(max(tiers["minutes_p90"].max(), tiers["minutes"].max()))  # type: ignore[arg-type,type-var]
    drawn = deadline_minutes is not None and deadline_minutes <= most * FAR
    high = max(most, deadline_minutes if drawn and deadline_minutes else 0.0) * 1.02
    above = LINE if deadline_minutes is not None else 0
    scale = Scale(low=0.0, high=high, start=0.0, end=WIDTH, log=False)
    name_width = max(len(name) + 12 * (name == own) for name in tiers["tier"]) * CHARACTER + 10
    rects, words = [], []
    for number, row in enumerate(tiers.iter_rows(named=True)):
        y = above + number * (LINE + BAR + GAP)
        color = BINDINGS.get(row["binding"].replace("_", " "), GREY)
        least = NARROWEST * high / WIDTH
        ends = max(row["minutes"], least), max(row["minutes_p90"], least)
        base = (row["tier"], row["binding"].replace("_", " "), row["note"], color, y + LINE, y + LINE + BAR)
        rects += [(*base, 0.0, ends[0], 1.0), (*base, ends[0], max(ends), 0.35)]
        name = row["tier"] + " (this plan)" * (row["tier"] == own)
        words.append(marks.note(name, 0, y + 8, fontWeight="bold"))
        words.append(marks.note("", name_width + 5, y + 8, shape="square", color=color))
        words.append(marks.note(_told(row, own), name_width + 14, y + 8, limit=WIDTH - name_width))
    height = above + tiers.height * (LINE + BAR + GAP) - GAP + 6
    names = ["tier", "limited by", "note", "color", "y", "y2", "start", "end", "opacity"]
    frame = pl.DataFrame(rects, schema=names, orient="row")
    x = clock_axis("start", scale)
    y_axis = alt.Y("y:Q", scale=alt.Scale(domain=[height, 0], nice=False), axis=None)
    tips = [marks.word(name) for name in names[:3]]
    bars = (
        marks.chart_of(frame)
        .mark_rect()
        .encode(
            x=x,
            x2="end:Q",
            y=y_axis,
            y2="y2:Q",
            tooltip=tips,
            color=alt.Color("color:N", scale=None),
            opacity=alt.Opacity("opacity:Q", scale=None),
        )
    )
    layers = [bars, *words]
    if deadline_minutes is not None:
        label = f"deadline {card.duration(deadline_minutes)}"
        at = scale.pixel(deadline_minutes) if drawn else WIDTH
        label += "" if drawn else " \N{RIGHTWARDS ARROW}"
        align = "right" if at > WIDTH / 2 else "left"
        layers.append(marks.note(label, at - 5 if at > WIDTH / 2 else at + 5, 7, align=align))
        if drawn:
            rule = marks.chart_of().mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY)
            layers.append(rule.encode(x=alt.value(at), y=alt.value(0), y2=alt.value(height)))
    mine = tiers.filter(tier=own)
    said = [f"{name}: {note}" for name, note in tiers.select("tier", "note").iter_rows()]
    title = f"By {mode}" if mode != "live" else "Live"
    if mine.height:
        row = mine.row(0, named=True)
        title += f" on {own}: {_time(row)}, limited by {row['binding'].replace('_', ' ')}"
    chart = alt.layer(*layers).properties(width=WIDTH, height=height, title=title)
    return Shown(chart=chart, text=f"{title}. {'. '.join(said)}")


def _time(row: dict[str, Any]) -> str:
    return card.span(card.duration(row["minutes"]), card.duration(row["minutes_p90"]))


def _told(row: dict[str, Any], own: str) -> str:
    """Return what is written above a tier's bar."""
    words = f"{row['binding'].replace('_', ' ')}, {_time(row)}"
    return words if row["tier"] == own else f"{words}: {row['note'].partition(',')[0].partition(';')[0]}"


def savings(savings: pl.DataFrame, *, model: str, batch_dollars: float | None = None) -> Shown:
    """Return the chart of what a plan would cost plainly, what each strategy saves of it, and what it costs.

    Spends: nothing.

    Parameters
    ----------
    savings : pl.DataFrame
        Of `claudescale.api.prices.SAVINGS`, for a plan.
    model : str
        The plan's model.
    batch_dollars : float or None
        What the plan would cost by batch, if it is not one.
    """
    used = {
        "deduplication": ("identical rows once, not each", "no identical rows"),
        "cache": ("cached, not sent anew", "no cache used"),
        "batch": ("by batch, not live", "no batch used"),
    }
    short = [name.removeprefix("claude-") for name in savings.filter(strategy="model")["counterfactual"]]
    short = [name.removeprefix("the same on ").removeprefix("claude-") for name in short]
    short.append(model.removeprefix("claude-"))
    parts: list[tuple[str, float]] = [(f"{short[0]} live, row by row", savings["dollars_without"][0])]
    changes = iter(zip(short[1:], short, strict=False))
    for strategy, saved in savings.select("strategy", "dollars_saved").iter_rows():
        if strategy == "model":
            new, old = next(changes)
            parts.append((f"{new}, not {old}", saved))
        else:
            parts.append((used[strategy][not saved], saved))
    dollars: float = savings["dollars_with"][-1]
    parts.append(("this plan", dollars))
    schema = {"part": pl.String, "dollars": pl.Float64}
    shown = run_charts.savings(steady(pl.DataFrame(parts, schema=schema, orient="row")))
    text = shown.text.replace(" paid instead of", " instead of")
    if batch_dollars is not None and dollars:
        less = dollars - batch_dollars
        text += f"; by batch {marks.dollars(abs(less))} {'less' if less >= 0 else 'more'}"
    chart: Any = shown.chart
    return Shown(chart=chart.properties(title=text), text=text)
