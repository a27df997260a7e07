"""The picture of a plan's choices: dollars against time, and which of them nothing beats.

Like `claudescale.views.run_charts` it knows column names, never our objects.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many plans are never drawn

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import polars.selectors as columns

from claudescale.views import card, marks
from claudescale.views.marks import BLUE, GREEN, ORANGE, PALE, PURPLE, SKY, VERMILLION, WIDTH
from claudescale.views.placing import CHARACTER, Box, Scale, flow, place
from claudescale.views.theme import GREY, Shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    import altair as alt

GROUPS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
SHAPES = {"live": "circle", "batch": "square", "hybrid": "diamond"}
HEIGHT, LINE, LONGEST_TITLE = 300, 18, 84
# So many points all have names; of more, those up to this rank: the best of their colour.
FEW, BEST = 12, 2
MOST_TICKS, MOST_DECADES = 7, 300
FAR = 12  # a deadline or a budget that many times beyond the choices is named, not drawn
CLOCK = (
    "datum.value < 0.9999 ? format(datum.value * 60, '.3~f') + ' s' : datum.value < 59.99 ? "
    "format(datum.value, '.3~f') + ' min' : format(datum.value / 60, ',.3~f') + ' h'"
)
MONEY = "format(datum.value, datum.value >= 0.9999 ? '$,.4~f' : datum.value >= 0.00999 ? '$.2f' : '$.7~f')"
MOMENTS = [n / 60 for n in (0.1, 0.5, 1, 5, 15)] + [1, 5, 15, 60, 240, 1440, 7200, 43200]
SPANS = [n / 60 for n in (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30)]
SPANS += [1, 2, 5, 10, 20, 30, 60, 120, 240, 360, 720, 1440, 2880, 7200, 14400]
UNTIL = "Time until the last row is answered"
DASHES: dict[str, Any] = {"strokeDash": [5, 4], "strokeWidth": 1.5, "color": GREY}


class Picture(NamedTuple):
    """The frame of a picture: both scales, and the boxes in it that are taken."""

    x: Scale
    y: Scale
    top: float
    height: float
    taken: list[Box]


def frontier(
    points: pl.DataFrame, *, deadline_minutes: float | None = None, budget_dollars: float | None = None
) -> Shown:
    """Return the chart of dollars against time: a point per choice, joined where nothing beats them.

    Each colour has a fainter line of its own: price and time say nothing of how good a model's answers are.

    Spends: nothing.

    Parameters
    ----------
    points : pl.DataFrame
        `choice`, `group` (its colour), `mode` (its shape), `binding`, `dollars`, `dollars_p90`, `minutes`,
        `minutes_p90`; `frontier` where nothing is as cheap and as fast, `best` where nothing of its group is;
        `chosen` is the plan's own, `choices` how many a point stands for.
    deadline_minutes, budget_dollars : float or None
        What the plan may take and cost, drawn as labelled lines.
    """
    points = steady(points).drop_nulls(["dollars", "minutes", "minutes_p90"])
    in_order = ("minutes", "dollars", pl.col("mode") == "batch", "choice")
    points = points.sort(*in_order, descending=[False, True, False, False])
    if not points.filter(pl.col("minutes") > 0).height:
        return marks.nothing_sent("US dollars", UNTIL)
    import altair as alt

    names = list(dict.fromkeys(points.sort("dollars")["group"].to_list()))
    colors = {name: GROUPS[n] if n < len(GROUPS) else PALE for n, name in enumerate(names)}
    key = _key(points, colors)
    rules = [value for value in (deadline_minutes, budget_dollars) if value is not None]
    top = key[-1][2] + LINE * (0.6 + bool(rules)) + 8
    times = [*points["minutes"].to_list(), *points["minutes_p90"].to_list()]
    costs = points["dollars"].to_list()
    drawn = [
        None if wish is None or not min(values) / FAR <= wish <= max(values) * FAR else wish
        for wish, values in ((deadline_minutes, times), (budget_dollars, costs))
    ]
    wished = [[] if wish is None else [wish] for wish in drawn]
    x = Scale.over([*times, *wished[0]], 0, WIDTH)
    y = Scale.over([*costs, *wished[1]], top + HEIGHT, top, pad=0.09)
    picture = Picture(x, y, top, top + HEIGHT, [])
    points = points.with_columns(color=pl.col("group").replace_strict(colors, return_dtype=pl.String))
    for minutes, most, dollars in points.select("minutes", "minutes_p90", "dollars").rows():
        across, end, up = x.pixel(minutes), x.pixel(most), y.pixel(dollars)
        picture.taken.append(Box(across - 6, up - 6, across + 6, up + 6))
        picture.taken.append(Box(across, up - 2, end, up + 2))
    for _, group in points.filter("best").group_by("group", maintain_order=True):
        picture.taken.extend(_stairs(group, picture))
    picture.taken.extend(_stairs(points.filter("frontier"), picture))
    wishes = _wishes(picture, deadline_minutes, budget_dollars, drawn)
    layers = [*_drawn(points, picture), *wishes, *_labels(points, picture)]
    for sign, words, up, across, color in _signs(key):
        layers.append(
            marks.note("", across, up, shape=sign, **color) if sign else marks.note(words, across, up)
        )
    title, text = _said(points)
    chart = alt.layer(*layers).properties(width=WIDTH, height=picture.height, title=title)
    return Shown(chart=chart, text=text)


def steady(figures: pl.DataFrame) -> pl.DataFrame:
    """Return figures to six digits: sums over a million rows differ in the last ones from time to time."""
    return marks.finite(figures).with_columns(columns.float().round_sig_figs(6).fill_nan(0.0))


def _stairs(points: pl.DataFrame, picture: Picture) -> Iterable[Box]:
    """Return what the line through points covers: right to the next one, then down to it."""
    places = [(picture.x.pixel(x), picture.y.pixel(y)) for x, y in points.select("minutes", "dollars").rows()]
    for (left, upper), (right, lower) in itertools.pairwise(places):
        yield Box(left, upper - 1, right, upper + 1)
        yield Box(right - 1, upper, right + 1, lower)


def _key(points: pl.DataFrame, colors: dict[str, str]) -> list[tuple[Any, float, float]]:
    """Return what colours, shapes and lines mean, each with its place above the picture."""
    several = len(colors) > 1
    items: list[tuple[str, str, dict[str, Any]]] = [
        (name, "square", {"color": color}) for name, color in colors.items() if several and color != PALE
    ]
    items += [("others", "square", {"color": PALE})] * (PALE in colors.values())
    modes = [mode for mode in SHAPES if mode in points["mode"]]
    items += [(mode, SHAPES[mode], {"color": GREY}) for mode in modes]
    longest = points.filter(mode="batch").select(pl.col("minutes_p90").max()).item()
    ranges = "usual to 90th percentile"
    ranges += f", of a batch to {card.coarse(longest)}" if longest is not None else ""
    if points.filter(pl.col("minutes_p90") > pl.col("minutes") * 1.05).height:
        items.append((ranges, "stroke", {"color": GREY, "filled": False, "strokeWidth": 2.5, "size": 120}))
    items.append(("this plan", "circle", {"color": GREY, "filled": False, "strokeWidth": 2, "size": 110}))
    places = flow([text for text, _, _ in items], WIDTH, LINE, sign=16)
    return [(item, *where) for item, where in zip(items, places, strict=True)]


def _signs(key: list[tuple[Any, float, float]]) -> Iterable[tuple[str, str, float, float, dict[str, Any]]]:
    for (text, shape, look), across, up in key:
        yield shape, "", up, across + 6, look
        yield "", text, up, across + 16, {}


def clock_axis(field: str, scale: Scale) -> alt.X:
    """Return a horizontal axis of minutes that says seconds, minutes or hours at each tick."""
    import altair as alt

    if scale.log:
        ticks = scale.ticks(MOMENTS)
    else:
        step = next((step for step in SPANS if scale.high / step <= MOST_TICKS), scale.high / 4)
        ticks = [step * n for n in range(int(scale.high / step) + 1)]
    return alt.X(
        f"{field}:Q",
        title=f"{UNTIL}{', log scale' * scale.log}",
        scale=alt.Scale(
            type="log" if scale.log else "linear", domain=[scale.low, scale.high], nice=False, zero=False
        ),
        axis=alt.Axis(values=ticks, labelExpr=CLOCK, tickCount=len(ticks), labelOverlap=True),
    )


def _dollar_axis(picture: Picture) -> alt.Y:
    """Return the vertical axis: dollars, below what stands above the picture."""
    import altair as alt

    y = picture.y
    steps = (1,) if y.log and y.high / y.low > MOST_DECADES else (1, 2, 5) if y.log else ()
    ticks = y.ticks(n * 10.0**power for power in range(-7, 8) for n in steps)
    several = {"values": ticks, "tickCount": 30, "labelOverlap": False} if y.log else {"tickCount": 5}
    return alt.Y(
        "dollars:Q",
        title=f"US dollars{', log scale' * y.log}",
        scale=alt.Scale(
            type="log" if y.log else "linear",
            domain=[y.low, y.high],
            nice=False,
            zero=False,
            range=[picture.height, picture.top],
        ),
        axis=alt.Axis(labelExpr=MONEY, **several),
    )


def _drawn(points: pl.DataFrame, picture: Picture) -> list[alt.Chart]:
    """Return the points, how long each may take, and the lines through those that nothing beats."""
    import altair as alt

    x, y = clock_axis("minutes", picture.x), _dollar_axis(picture)
    color, shape = alt.Color("color:N", scale=None), alt.Scale(domain=[*SHAPES], range=[*SHAPES.values()])
    times = {"usual": "minutes", "slow": "minutes_p90"}
    points = points.with_columns(
        solid=pl.when("best").then(1.0).otherwise(0.5),
        faint=pl.when("frontier").then(0.5).when("best").then(0.35).otherwise(0.2),
        **{name: pl.col(of).map_elements(card.duration, pl.String) for name, of in times.items()},
    )
    named = {"choice": "Choice", "usual": "Time", "slow": "Time, p90", "binding": "Limited by"}
    tips: list[alt.Tooltip] = [alt.Tooltip(f"{name}:N", title=title) for name, title in named.items()]
    tips[1:1] = [
        marks.tip("dollars", "US dollars", "$,.4~f"),
        marks.tip("dollars_p90", "US dollars, p90", "$,.4~f"),
    ]
    data = marks.chart_of(points).encode(x=x, y=y)
    opacity = alt.Opacity("faint:Q", scale=None)
    layers = [data.mark_rule(strokeWidth=2.5).encode(x2="minutes_p90:Q", color=color, opacity=opacity)]
    lines = points.group_by("group", maintain_order=True) if points["group"].n_unique() > 1 else ()
    for _, group in lines:
        line = marks.chart_of(group.filter("best").select("minutes", "dollars"))
        mark = line.mark_line(
            interpolate="step-after", color=group["color"][0], strokeWidth=1, strokeDash=[2, 3], opacity=0.8
        )
        layers.append(mark.encode(x=x, y=y))
    line = marks.chart_of(points.filter("frontier").select("minutes", "dollars"))
    layers.append(line.mark_line(interpolate="step-after", color=GREY, strokeWidth=1.5).encode(x=x, y=y))
    signs = data.mark_point(filled=True, size=75, strokeWidth=0)
    look: dict[str, Any] = {
        "shape": "circle",
        "size": 260,
        "filled": False,
        "stroke": GREY,
        "strokeWidth": 2,
        "opacity": 1,
    }
    ring = marks.chart_of(points.filter("chosen").select("minutes", "dollars")).mark_point(**look)
    solid = alt.Opacity("solid:Q", scale=None)
    shapes = alt.Shape("mode:N", scale=shape, legend=None)
    return [
        *layers,
        signs.encode(color=color, shape=shapes, opacity=solid, tooltip=tips),
        ring.encode(x=x, y=y),
    ]


def _wishes(
    picture: Picture, deadline: float | None, budget: float | None, drawn: list[float | None]
) -> list[alt.Chart]:
    """Return deadline and budget as lines with their names; only the names where they are far away."""
    import altair as alt

    layers, up = [], picture.top - LINE / 2
    if deadline is not None:
        label = f"deadline {card.duration(deadline)}"
        across = picture.x.pixel(deadline)
        if drawn[0] is None:
            beyond = deadline > picture.x.high
            label = f"{label} \N{RIGHTWARDS ARROW}" if beyond else f"\N{LEFTWARDS ARROW} {label}"
            across = WIDTH + 4 if beyond else 0
        else:
            rule = marks.chart_of().mark_rule(**DASHES)
            place_y = {"y": alt.value(picture.top - LINE + 2), "y2": alt.value(picture.height)}
            layers.append(rule.encode(x=alt.value(across), **place_y))
            picture.taken.append(Box(across - 2, picture.top, across + 2, picture.height))
        left = across > WIDTH / 2
        align = "right" if left else "left"
        shift = 0 if drawn[0] is None else -5 if left else 5
        layers.append(marks.note(label, min(max(across + shift, 0), WIDTH), up, align=align))
        picture.taken.append(Box(0, picture.top - LINE, WIDTH, picture.top - 2))
    if budget is not None:
        layers += _budget(picture, budget, inside=drawn[1] is not None)
    return layers


def _budget(picture: Picture, budget: float, *, inside: bool) -> list[alt.Chart]:
    """Return the line of the budget, its name where it covers no point."""
    import altair as alt

    label = f"budget {card.dollars(budget)}"
    width = CHARACTER * (len(label) + 2)
    if not inside:
        above = budget > picture.y.high
        label = f"{chr(0x2191) if above else chr(0x2193)} {label}"
        up = picture.top + 7 if above else picture.height - 8
        spots = [(0.0, up), (WIDTH - width, up)]
    else:
        at = picture.y.pixel(budget)
        spots = [
            (left, at + down) for down in (-8, 9) for left in (2.0, WIDTH - width, WIDTH / 2 - width / 2)
        ]
    boxes = [Box(left, up - 7, left + width, up + 7) for left, up in spots]
    free = [box for box in boxes if not any(box.covers(other) for other in picture.taken)]
    box = (free or boxes)[0]
    picture.taken.append(box)
    layers = [marks.note(label, box.left + 2, box.top + 7)]
    if inside:
        at = picture.y.pixel(budget)
        picture.taken.append(Box(0, at - 2, WIDTH, at + 2))
        rule = marks.chart_of().mark_rule(**DASHES)
        layers.append(rule.encode(y=alt.value(at), x=alt.value(0), x2=alt.value(WIDTH)))
    return layers


def _labels(points: pl.DataFrame, picture: Picture) -> list[alt.Chart]:
    """Return the names beside the points: the plan's own first, then what nothing beats, then the others.

    Of many points those that are beaten by one of their own colour have no name.
    """
    import altair as alt

    few = points.height <= FEW
    rank = pl.when("chosen").then(0).when("frontier").then(1).when("best").then(2).otherwise(3)
    told = points.with_columns(rank=rank).filter((pl.col("rank") <= BEST) | few)
    # The plan's own, then both ends of the frontier; only these are led to where there are many.
    on_it = pl.col("frontier").cum_sum()
    end = pl.col("frontier") & ((on_it == 1) | (on_it == on_it.max()))
    told = told.with_columns(leads=end | pl.col("chosen") | few).sort(
        "rank", pl.col("leads").not_(), maintain_order=True
    )
    wanted = [
        (row["choice"], picture.x.pixel(row["minutes"]), picture.y.pixel(row["dollars"]), row["leads"])
        for row in told.iter_rows(named=True)
    ]
    layers = []
    for label in place(wanted, Box(0, picture.top, WIDTH + 12, picture.height), picture.taken):
        if label.leads:
            rule = marks.chart_of().mark_rule(color=GREY, strokeWidth=0.7, opacity=0.8)
            (x, y), (x2, y2) = label.point, (label.x, label.y)
            ends = {"x": alt.value(x), "y": alt.value(y), "x2": alt.value(x2), "y2": alt.value(y2)}
            layers.append(rule.encode(**ends))
        layers.append(marks.note(label.text, label.x, label.y, align=label.align))
    return layers


def _said(points: pl.DataFrame) -> tuple[str, str]:
    """Return the title and the sentence: what nothing beats, and how the plan stands to it."""
    best = points.filter("frontier")
    fast, cheap = best.row(0, named=True), best.row(-1, named=True)
    (low, cheapest), (high, fastest) = ((_figures(row), row["choice"]) for row in (cheap, fast))
    count = points["choices"].sum()
    if count == 1:
        return low, low
    if low == high:
        title = text = f"{fastest} is the cheapest and the fastest: {low}"
    else:
        text = f"From {low} ({cheapest}) to {high} ({fastest})"
        title = text if len(text) <= LONGEST_TITLE else f"From {low} to {high}"
    text = f"{count:,} choices. {text}"
    mine = points.filter("chosen")
    if mine.height:
        own = mine.row(0, named=True)
        rivals = best if own["best"] else points.filter("best", group=own["group"])
        better = rivals.filter(pl.col("dollars") <= own["dollars"], pl.col("minutes") <= own["minutes"])
        how = "nothing beats it" if own["frontier"] else f"{better['choice'][0]} beats it"
        text += f". This plan, {own['choice']}: {_figures(own)}; {how}"
        text += f", nothing of {own['group']} does" if own["best"] and not own["frontier"] else ""
    return title, text


def _figures(row: dict[str, Any]) -> str:
    return f"{marks.dollars(row['dollars'])} in {card.duration(row['minutes'])}"
