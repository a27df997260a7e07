"""The picture of a run's batches: when each was out, and what came of its requests."""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.views import card, marks
from claudescale.views.marks import BLUE, ORANGE, PURPLE, SKY, VERMILLION, WIDTH
from claudescale.views.theme import GREY, Shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    import altair as alt

PARTS = {"succeeded": BLUE, "errored": VERMILLION, "expired": ORANGE, "canceled": PURPLE}
WORDS = {"in_progress": "in progress", "ended": "being collected", "gone": "results gone"}
# Batches with a line of words each, and those that are drawn at all; heights and widths in pixels.
MOST_TOLD, MOST_DRAWN = 8, 300
TOLD, BAR, GAP, HEIGHT, THINNEST, NARROWEST = 18, 18, 12, 300, 3.0, 3.0
SKEW_SECONDS = 5.0  # by how much the API's clock and this one may differ unnoticed
FAR = 5  # a deadline that many times as far away as the last batch is named, not drawn


class Lane(NamedTuple):
    """One line of the picture: a batch, or all live calls, in seconds since the first of them."""

    name: str
    spans: list[tuple[float, float]]
    parts: dict[str, int]
    requests: int
    state: str = ""


def batches(
    batches: pl.DataFrame,
    *,
    started_at: float,
    now: float,
    deadline_minutes: float | None = None,
    live: pl.DataFrame | None = None,
) -> Shown:
    """Return the chart of when each batch was out and what came of it, and of the calls beside them.

    A bar is cut into shares from its top to its foot. One that is only an outline is open: the API tells
    nothing of a batch before its end.

    Spends: nothing.

    Parameters
    ----------
    batches : pl.DataFrame
        Of `claudescale.running.batchframe.BATCHES`. Those that were never made are not drawn.
    started_at, now : float
        API unix seconds: when the run began, and up to when an open batch is drawn.
    deadline_minutes : float or None
        Minutes the run may take, drawn as a labelled line.
    live : pl.DataFrame or None
        `sent_at`, `seconds` and `error` of live calls.
    """
    calls = _live_lane(live)
    lanes = [*_lanes(batches, now), *([calls] if calls else [])]
    if not lanes:
        return marks.nothing_sent(None, height=40)
    import altair as alt

    ends = [end for lane in lanes for _, end in lane.spans]
    first = min(start for lane in lanes for start, _ in lane.spans)
    adopted = first < started_at - SKEW_SECONDS
    origin = first if adopted else min(started_at, first)
    deadline = None if deadline_minutes is None else started_at + deadline_minutes * 60 - origin
    over = max(max(ends) - origin, 1.0)
    drawn = deadline is not None and deadline <= over * FAR
    until = max(over, deadline if drawn and deadline else 0.0) * 1.02
    scale, unit = marks.time_unit(until / 60)
    top = until / 60 * scale
    rects, words, height = _place(lanes, origin, scale / 60, top, above=22 if deadline is not None else 0)
    axis = alt.X(
        "start:Q",
        title=unit.replace("the start", "the first batch" if adopted else "the start"),
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y("y:Q", scale=alt.Scale(domain=[height, 0], nice=False), axis=None)
    tips = [*map(marks.word, ("batch", "part")), marks.tip("requests", "Requests", ",d")]
    tips += [marks.tip("start", "From", ",.2f"), marks.tip("end", "To", ",.2f")]
    frame = pl.DataFrame(rects, schema=_RECTS, orient="row")
    base = {"x": axis, "x2": alt.X2("end:Q"), "y": y, "y2": alt.Y2("y2:Q"), "tooltip": tips}
    layers: list[alt.Chart] = []
    if (told := frame.filter(pl.col("color").is_not_null())).height:
        color = alt.Color("color:N", scale=None)
        layers.append(marks.chart_of(told).mark_rect().encode(**base, color=color))
    if (outlined := frame.filter(pl.col("color").is_null())).height:
        mark = marks.chart_of(outlined).mark_rect(fill=GREY, fillOpacity=0.12, stroke=GREY, strokeDash=[4, 3])
        layers.append(mark.encode(**base))
    for text, across, up, color_of in words:
        layers.append(
            marks.note("", across, up, shape="square", color=color_of)
            if color_of
            else marks.note(text, across, up)
        )
    if deadline is not None:
        label = f"deadline {card.duration(deadline_minutes or 0.0)}"
        layers += _deadline(deadline / 60 * scale if drawn else None, label, top)
    late = deadline is not None and over > deadline
    several, parts, took = _said(lanes, over, deadline_minutes=deadline_minutes, late=late)
    chart = alt.layer(*layers).properties(width=WIDTH, height=height, title=f"{several}: {took}")
    return Shown(chart=chart, text=f"{several}: {parts}; {took}")


_RECTS = {"batch": pl.String, "part": pl.String, "requests": pl.Int64, "color": pl.String}
_RECTS |= dict.fromkeys(("start", "end", "y", "y2"), pl.Float64)
_Word = tuple[str, float, float, str | None]


def _lanes(batches: pl.DataFrame, now: float) -> list[Lane]:
    """Return a lane per batch that was made, the first one first."""
    made = batches.filter(pl.col("created_at").is_not_null()).sort("created_at", "batch_id")
    seconds = {name: pl.col(name).dt.epoch("us") / 1e6 for name in ("created_at", "ended_at")}
    lanes = []
    for number, row in enumerate(made.with_columns(**seconds).iter_rows(named=True), 1):
        parts = {part: row[part] for part in PARTS if row[part]}
        end = row["ended_at"] if row["ended_at"] is not None else max(now, row["created_at"])
        state = WORDS.get(row["state"], row["state"])
        lanes.append(Lane(f"batch {number}", [(row["created_at"], end)], parts, row["requests"], state))
    return lanes


def _live_lane(live: pl.DataFrame | None) -> Lane | None:
    """Return the lane of the live calls: a bar for each time they went on, without the pauses."""
    if live is None or live.is_empty():
        return None
    sent = pl.col("sent_at").dt.epoch("us") / 1e6
    calls = live.select(
        start=sent, end=sent + pl.col("seconds").fill_null(0.0), good=pl.col("error").is_null()
    )
    calls = calls.sort("start", "end").with_columns(until=pl.col("end").cum_max())
    pause = calls.select(pl.col("until").max() - pl.col("start").min()).item() / 50
    begins = (pl.col("start") - pl.col("until").shift() > pause).fill_null(value=False)
    spans = calls.group_by(begins.cum_sum().alias("span"), maintain_order=True).agg(
        pl.col("start").min(), pl.col("until").max()
    )
    answered = int(calls["good"].sum())
    return Lane("live", spans.select("start", "until").rows(), {"answered": answered}, answered)


def _place(
    lanes: list[Lane], origin: float, scale: float, top: float, *, above: int
) -> tuple[list[tuple[object, ...]], list[_Word], float]:
    """Return the rectangles, the words with their places in pixels, and the height of the picture."""
    rects: list[tuple[object, ...]] = []
    words: list[_Word] = []
    few = len(lanes) <= MOST_TOLD
    y = float(above)
    if not few:
        sums = _summed(lanes)
        waiting = sum(not lane.parts for lane in lanes)
        words += _line("", sums, f"{waiting:,} open" if waiting else "", y + 7)
        y += TOLD + 4
        lanes = lanes[:: -(-len(lanes) // MOST_DRAWN)]
    pitch = TOLD + BAR + GAP if few else HEIGHT / len(lanes)
    bar = BAR if few else pitch * 0.8
    for lane in lanes:
        if few:
            waits = "" if lane.parts else f"{lane.requests:,} {lane.state}"
            words += _line(lane.name, lane.parts, waits, y + 7)
        at = y + TOLD if few else y
        for begun, ended in lane.spans:
            start = (begun - origin) * scale
            end = max((ended - origin) * scale, start + NARROWEST * top / WIDTH)
            for part, count, upper, lower in _shares(lane, bar):
                rects.append((lane.name, part, count, _color(part), start, end, at + upper, at + lower))
        y += pitch
    return rects, words, y


def _line(name: str, parts: dict[str, int], also: str, y: float) -> list[_Word]:
    """Return what is written above a bar: its name, then each part beside a square of its colour."""
    words: list[_Word] = [(name, 0.0, y, None)] if name else []
    x = 52.0 if name else 0.0
    for part, count in parts.items():
        label = f"{count:,} {part}{' live' * (part == 'answered' and not name)}"
        words += [("", x + 5, y, _color(part)), (label, x + 14, y, None)]
        x += 14 + 6 * len(label) + 14
    return [*words, (also, x, y, None)] if also else words


def _shares(lane: Lane, height: float) -> Iterable[tuple[str, int, float, float]]:
    """Return name, count, top and foot of each part; three of a thousand are still seen."""
    if not lane.parts:
        yield lane.state, lane.requests, 0.0, height
        return
    total = sum(lane.parts.values())
    least = min(THINNEST, height / 6)
    heights = {part: max(count / total * height, least) for part, count in lane.parts.items()}
    largest = max(heights, key=heights.__getitem__)
    heights[largest] -= sum(heights.values()) - height
    upper = 0.0
    for part, count in lane.parts.items():
        yield part, count, upper, upper + heights[part]
        upper += heights[part]


def _color(part: str) -> str | None:
    return SKY if part == "answered" else PARTS.get(part)


def _summed(lanes: list[Lane]) -> dict[str, int]:
    sums = {part: sum(lane.parts.get(part, 0) for lane in lanes) for part in (*PARTS, "answered")}
    return {part: count for part, count in sums.items() if count}


def _deadline(at: float | None, label: str, top: float) -> list[alt.Chart]:
    """Return a dashed line with its name beside it, above the bars; only the name where it is far away."""
    import altair as alt

    if at is None:
        return [marks.note(f"{label} \N{RIGHTWARDS ARROW}", WIDTH, 7, align="right")]
    place = alt.XDatum(at, type="quantitative")
    rule = marks.chart_of().mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY).encode(x=place)
    across = at / top * WIDTH
    left = across > WIDTH / 2
    return [rule, marks.note(label, across - 5 if left else across + 5, 7, align="right" if left else "left")]


def _said(
    lanes: list[Lane], over: float, *, deadline_minutes: float | None, late: bool
) -> tuple[str, str, str]:
    """Return how many batches there are, what came of them, and how long they took."""
    made = [lane for lane in lanes if lane.name != "live"]
    waiting = sum(not lane.parts for lane in made)
    parts = [f"{count:,} {part}{' live' * (part == 'answered')}" for part, count in _summed(lanes).items()]
    parts += [f"{waiting:,} of them open" if waiting < len(made) else "open"] if waiting else []
    took = f"{'now after' if waiting else 'done after'} {card.duration(over / 60)}"
    if deadline_minutes is not None:
        how = "deadline" if waiting else "too late for the deadline" if late else "in time for the deadline"
        took += f", {how} {card.duration(deadline_minutes)}"
    return f"{len(made):,} batch{'' if len(made) == 1 else 'es'}", ", ".join(parts), took
