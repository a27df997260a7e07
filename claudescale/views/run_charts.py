"""Pictures of a run: Polars frames in, Altair charts out.

A chart knows column names, never our objects. Everything is aggregated in Polars before Altair sees it:
a million rows make a small picture, and always the same one.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from claudescale import text, views
from claudescale.api.limits import BUCKETS
from claudescale.api.prices import UNCACHED
from claudescale.views import theme
from claudescale.views.theme import chart, finite, highest, limit, nothing, picture, thin, tips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLORS = {"requests": views.BLUE, "input_tokens": views.ORANGE, "output_tokens": views.GREEN}
NOTHING = "Nothing was sent."
PARTS = ("succeeded", "errored", "expired", "canceled")
STATES = {"in_progress": "in progress", "ended": "being collected", "gone": "results gone"}
OUTCOMES = {"all succeeded": views.BLUE, "some failed": views.ORANGE, "open": views.GREY, "live": views.SKY}
LANES = pl.Schema({"lane": pl.String(), "start": pl.Float64(), "end": pl.Float64(), "words": pl.String()})
LANES["outcome"] = pl.String()
LEVELS = pl.Schema(
    {"bucket": pl.String(), "minute": pl.Float64(), "level": pl.Float64(), "capacity": pl.Float64()}
)
"""Columns of `levels`: what a bucket holds just after a call took from it."""
KINDS = {"plain": views.GREY, "saved": views.GREEN, "spent more": views.VERMILION, "paid": views.BLUE}
WORTH = 5e-4  # a smaller part of the whole is no saving worth a word
FEW = 5  # so many requests have no pace
SEEN = 0.005  # a smaller part would be called 0%
SKEW_SECONDS = 5.0  # by how much the API's clock and this one may differ unnoticed
MOST_POINTS, MOST_STEPS, MOST_LANES, MOST_LABELS = 1_500, 240, 300, 12


# rates


def throughput(
    rates: pl.DataFrame, *, requests_per_minute: float | None, empty: str = NOTHING
) -> theme.Picture:
    """Return the chart of requests per minute over time, their limit, and the calls that were refused.

    Spends: nothing.

    Parameters
    ----------
    rates : pl.DataFrame
        A row per slice of time: `minute` (since the start, its left edge), `slice_minutes`, `refused` (calls
        turned away with 429) and `requests_`, `input_tokens_` and `output_tokens_per_minute`.
    requests_per_minute : float or None
        The limit, drawn as a labelled line; None where it is not known.
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    if rates.is_empty():
        return nothing(empty)
    rates, unit = _slices(rates)
    layers = _rate(rates, "requests", requests_per_minute, unit)
    words = _pace(rates, requests_per_minute)
    if refused := int(rates["refused"].sum()):
        words += f"; {text.plural(refused, 'call')} refused{theme.SIGN}"
        signs = chart(rates.filter(pl.col("refused") > 0)).mark_point(**theme.FAILED)
        size = alt.Size("refused:Q", legend=None, scale=alt.Scale(range=[30, 110], domainMin=0))
        layers.append(signs.encode(x="middle:Q", y=alt.value(6), size=size, tooltip=tips(refused=",d")))
    return picture(layers, words)


def tokens(
    rates: pl.DataFrame, *, limits: Mapping[str, float | None], empty: str = NOTHING
) -> theme.Down | theme.Picture:
    """Return a chart for each of several rates over time, each against its own limit.

    Spends: nothing.

    Parameters
    ----------
    rates : pl.DataFrame
        The frame of `throughput`.
    limits : mapping of str to float or None
        The limit in a minute of each rate to draw, such as ``{"input_tokens": 400_000}``.
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    if rates.is_empty():
        return nothing(empty)
    rates, unit = _slices(rates)
    panels, means = [], []
    for name, most in limits.items():
        last = name == [*limits][-1]
        layers = _rate(rates, name, most, unit if last else None)
        panels.append(alt.layer(*layers).properties(width=views.WIDTH, height=90))
        mean = _mean(rates, name)
        part = mean / most if most else 0.0
        share = f" ({part:.0%} of the limit)" if part >= SEEN else " (under 1% of the limit)" * bool(most)
        means.append(f"{text.significant(mean)} {name.replace('_', ' ')}{share}")
    sentence = f"On average {' and '.join(means)} a minute"
    return theme.Down(vconcat=panels, spacing=30).properties(**theme.said(sentence))


def _slices(rates: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Return the slices with their start, middle and end in a readable unit, and the unit."""
    end = pl.col("minute") + pl.col("slice_minutes")
    scale, unit = text.time_unit(rates.select(end.max()).item())
    edges = {"start": pl.col("minute") * scale, "end": end * scale}
    slices = finite(rates).fill_null(0).sort("minute").with_columns(**edges)
    return slices.with_columns(middle=(pl.col("start") + pl.col("end")) / 2), unit


def _mean(rates: pl.DataFrame, name: str) -> float:
    length = pl.col("slice_minutes")
    mean: float = rates.select((pl.col(f"{name}_per_minute") * length).sum() / length.sum()).item()
    return mean


def _pace(rates: pl.DataFrame, most: float | None) -> str:
    """Return how many requests a minute went; above the limit it is a burst, from a bucket that was full."""
    mean, peak = _mean(rates, "requests"), highest(rates, "requests_per_minute")
    minutes = float(rates["slice_minutes"].sum())
    if (count := round(mean * minutes)) < FEW:
        words = f"{text.plural(count, 'request')} in {text.duration(minutes)}"
        return words + (f", {most:,.0f} a minute allowed" if most else "")
    words = f"{mean:,.0f} requests a minute on average"
    if most is None or peak <= most:
        return f"{words}, {peak:,.0f} at the peak" + (f", {most:,.0f} allowed" if most else "")
    if mean <= most:
        return f"{words}, {peak:,.0f} in a burst, {most:,.0f} allowed"
    sent = f"{mean * minutes:,.0f} requests in {text.duration(minutes)}"
    return f"{sent}: a burst from a full bucket, which refills at {most:,.0f} a minute"


def _rate(slices: pl.DataFrame, name: str, most: float | None, unit: str | None) -> list[alt.Chart]:
    """Return the layers of one rate over time, with its limit."""
    rate, words = f"{name}_per_minute", name.replace("_", " ")
    peak = highest(slices, rate)
    far = most is not None and 0 < peak < most / 5  # a limit far away would press the rate flat
    top = max(peak, 0.0 if far else most or 0.0)
    scale = alt.Scale(domain=[0, top * 1.05 or 1.0], nice=False)
    y = alt.Y(f"{rate}:Q", title=f"{words.capitalize()} per minute", scale=scale, axis=theme.number_axis(top))
    tooltip = tips(**{"start": ",.2f", "end": ",.2f", rate: ",.0f", "refused": ",d"})
    bars = chart(slices).mark_rect(color=COLORS[name])
    bars = bars.encode(x=theme.time_axis("start", unit), x2="end:Q", y=y, y2=alt.datum(0), tooltip=tooltip)
    return [bars, *(limit(f"limit\n{most:,.0f}/min", y=most, far=far) if most else [])]


# calls


def latency(attempts: pl.DataFrame, *, empty: str = NOTHING) -> theme.Picture:
    """Return the chart of the seconds each answer took over time, with their median and 90th percentile.

    Both are of all answers; of very many answers, every n-th is drawn.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        A row per answer or failure: `sent_at`, `seconds` and `error` (null where answered).
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    calls = attempts.filter(pl.col("seconds").is_finite(), pl.col("sent_at").is_not_null())
    if calls.is_empty():
        return nothing(empty)
    minutes = (pl.col("sent_at") - pl.col("sent_at").min()).dt.total_microseconds() / 60e6
    scale, unit = text.time_unit(calls.select(minutes.max()).item())
    calls = calls.sort("sent_at", "seconds").select(
        pl.col("seconds").clip(1e-3), at=minutes * scale, answered=pl.col("error").is_null()
    )
    answers, failures = calls.filter("answered"), calls.filter(~pl.col("answered"))
    middle: float = calls.select(pl.col("seconds").median()).item()
    dwarfed = highest(calls, "seconds") > 15 * middle  # the slowest would press the others flat
    y_scale = alt.Scale(type="log", nice=False, padding=8) if dwarfed else alt.Scale(zero=True)
    x = theme.time_axis("at", unit, highest(calls, "at") or 1.0)
    y = alt.Y("seconds:Q", title="Seconds per answer", scale=y_scale, axis=alt.Axis(format=",~f"))
    encoded: dict[str, Any] = {"x": x, "y": y, "tooltip": tips(at=",.2f", seconds=",.2f")}
    layers = [
        chart(thin(answers, MOST_POINTS)).mark_circle(color=views.BLUE, size=14).encode(**encoded),
        chart(thin(failures, 200)).mark_point(**theme.FAILED).encode(**encoded),
    ]
    # Equally many answers behind each point of a line: each is equally certain, and there are no gaps.
    bins = pl.int_range(pl.len()) * min(60, answers.height // 40) // pl.len()
    quantiles: list[str] = []
    lines: Any = (("median", 0.5, views.ORANGE, "top"), ("p90", 0.9, views.GREEN, "bottom"))
    for name, share, color, baseline in lines:
        quantile = pl.col("seconds").quantile(share, "linear")
        if answers.height < 10 ** (share > 0.5):  # noqa: PLR2004 - a p90 of fewer says nothing
            continue
        seconds = answers.select(quantile).item()
        quantiles.append(f"{name} {text.significant(seconds)} s")
        line = answers.group_by(bin=bins, maintain_order=True).agg(pl.col("at").median(), quantile)
        layers.append(chart(line).mark_line(color=color, strokeWidth=2.5).encode(x=x, y=y))
        label = chart().mark_text(text=quantiles[-1], align="left", dx=6, baseline=baseline, color=color)
        layers.append(label.encode(x=alt.value("width"), y=alt.datum(seconds)))
    words = f"{text.plural(answers.height, 'answer')}: {', '.join(quantiles)}"
    words = words if quantiles else "No answers"
    if failures.height:
        words += f"; {text.plural(failures.height, 'call')} failed or refused{theme.SIGN}"
    return picture(layers, words)


def spending(
    spending: pl.DataFrame, *, estimate_dollars: float | None = None, empty: str = NOTHING
) -> theme.Picture:
    """Return the chart of dollars so far, against the estimate.

    Spends: nothing.

    Parameters
    ----------
    spending : pl.DataFrame
        `minute` (since the start) and `dollars` (so far).
    estimate_dollars : float or None
        What the plan said the run would cost, drawn as a labelled line.
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    if spending.is_empty():
        return nothing(empty)
    scale, unit = text.time_unit(highest(spending, "minute"))
    steps = thin(spending.sort("minute"), MOST_STEPS).select("dollars", at=pl.col("minute") * scale)
    paid = steps["dollars"][-1]
    far = estimate_dollars is not None and estimate_dollars > 5 * paid
    top = max(paid, 0.0 if far else estimate_dollars or 0.0) * 1.05 or 1.0
    domain = alt.Scale(domain=[0, top], nice=False)
    y = alt.Y("dollars:Q", title="US dollars", scale=domain, axis=alt.Axis(labelExpr=theme.DOLLARS))
    area = chart(steps).mark_area(**theme.steps(views.BLUE))
    layers = [area.encode(x=theme.time_axis("at", unit), y=y, tooltip=tips(at=",.2f", dollars="$,.4~f"))]
    words = f"{text.dollars(paid)} paid"
    if estimate_dollars is not None:
        estimate = text.dollars(estimate_dollars)
        layers += limit(f"estimate\n{estimate}", y=estimate_dollars, far=far)
        words += f", {estimate} estimated"
    return picture(layers, words)


def savings(
    parts: pl.DataFrame, *, paid_words: str = " paid", more: str = "", empty: str = NOTHING
) -> theme.Picture:
    """Return the chart of what was saved: step by step from what the rows would have cost to what was paid.

    A step that saved nothing is left out.

    Spends: nothing.

    Parameters
    ----------
    parts : pl.DataFrame
        `part` and `dollars`, in the order to be drawn: first what the rows would have cost, then what each
        part saved (negative where it cost more than it saved), last what was paid.
    paid_words, more : str
        What the title says after the dollars, and at its end.
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    steps = finite(parts).fill_null(0.0)
    if steps.is_empty() or not steps["dollars"][0]:
        return nothing(empty)
    total, paid = steps["dollars"][0], steps["dollars"][-1]
    row, saved = pl.int_range(pl.len()), pl.col("saved")
    steps = steps.with_columns(saved=pl.when(~row.is_in([0, steps.height - 1])).then("dollars"))
    left = total - saved.fill_null(0.0).cum_sum()
    steps = steps.with_columns(
        start=pl.when(saved.is_null()).then(0.0).otherwise(left + saved.clip(upper_bound=0.0)),
        end=pl.coalesce(left + saved.clip(lower_bound=0.0), "dollars"),
        kind=pl.when(saved >= 0).then(pl.lit("saved")).when(saved < 0).then(pl.lit("spent more"))
        .when(row == 0).then(pl.lit("plain")).otherwise(pl.lit("paid")),
    ).filter(saved.is_null() | (saved.abs() >= abs(total) * WORTH))  # fmt: skip
    labels = [text.dollars(dollars) for dollars in steps["dollars"].abs()]
    for place, saving in enumerate(steps["saved"]):
        if saving is not None:
            sign = "\N{MINUS SIGN}" if saving >= 0 else "+"
            labels[place] = f"{sign}{labels[place]} ({abs(saving / total):.1%})"
    drawn = chart(steps.with_columns(label=pl.Series(labels, dtype=pl.String)))
    y = alt.Y("part:N", sort=None, title=None)
    scale = alt.Scale(domain=[0, highest(steps, "start", "end") or 1.0], nice=False)
    x = alt.X("start:Q", title="US dollars", scale=scale, axis=alt.Axis(labelExpr=theme.DOLLARS))
    color = alt.Color("kind:N", scale=theme.colors(steps["kind"], KINDS), legend=None)
    tooltip = tips(part="", dollars="$,.4~f")
    layers = [
        drawn.mark_bar(size=22).encode(y=y, x=x, x2="end:Q", color=color, tooltip=tooltip),
        drawn.mark_text(align="left", dx=6).encode(y=y, x="end:Q", text="label:N"),
    ]
    less = total - paid
    words = f"{text.dollars(paid)}{paid_words}"
    saving = f" instead of {text.dollars(total)}: {text.dollars(less)} saved ({less / total:.1%})"
    words += saving if abs(less) >= total * WORTH else ", nothing saved"
    return picture(layers, words + more, width=340, height=alt.Step(34))


# batches


def batches(
    batches: pl.DataFrame,
    *,
    started_at: float,
    now: float,
    deadline_minutes: float | None = None,
    live: pl.DataFrame | None = None,
    empty: str = NOTHING,
) -> theme.Picture:
    """Return the chart of when each batch was pending and what came of it, beside the live calls.

    Spends: nothing.

    Parameters
    ----------
    batches : pl.DataFrame
        Of `Run.batches`. Those that were never made are not drawn; of very many, every n-th is.
    started_at, now : float
        API unix seconds: when the run began, and up to when an open batch is drawn.
    deadline_minutes : float or None
        Minutes the run may take, drawn as a labelled line.
    live : pl.DataFrame or None
        `sent_at`, `seconds` and `error` of live calls.
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    lanes = pl.concat([_batch_lanes(batches, now), _live_lanes(live)])
    if lanes.is_empty():
        return nothing(empty)
    first = min(lanes.select(pl.col("start").min()).item(), started_at)
    over = (highest(lanes, "end") - first) / 60
    deadline = None if deadline_minutes is None else deadline_minutes + (started_at - first) / 60
    far = deadline is not None and deadline > over * 5
    until = max(over, 1 / 60, deadline if deadline and not far else 0.0)
    scale, unit = text.time_unit(until)
    if first < started_at - SKEW_SECONDS:  # of an earlier run
        unit = unit.replace("the start", "the first batch")
    at = {name: (pl.col(name) - first) / 60 * scale for name in ("start", "end")}
    thinnest = pl.max_horizontal("end", pl.col("start") + until * scale / 200)
    lanes = lanes.with_columns(**at).with_columns(end=thinnest)
    names = lanes["lane"].unique(maintain_order=True)
    shown = names.gather_every(-(-names.len() // MOST_LANES))
    few = names.len() <= MOST_LABELS
    drawn = chart(lanes.filter(pl.col("lane").is_in(shown.implode())))
    y = alt.Y("lane:N", sort=None, axis=None)
    x = theme.time_axis("start", unit, until * scale * 1.01)
    color = alt.Color("outcome:N", scale=theme.colors(lanes["outcome"], OUTCOMES))
    bar: dict[str, Any] = {"size": 16, "yOffset": 8} if few else {}
    tooltip = tips(lane="", words="", start=",.2f", end=",.2f")
    layers = [drawn.mark_bar(**bar).encode(x=x, x2="end:Q", y=y, color=color, tooltip=tooltip)]
    if few:
        words = drawn.transform_filter("datum.words").mark_text(align="left", dy=-9)
        layers.append(words.encode(x=alt.value(0), y=y, text="words:N"))
    pending = lanes.filter(outcome="open").height
    took = f"{text.duration(over)} so far" if pending else f"done after {text.duration(over)}"
    if deadline is not None and deadline_minutes is not None:
        label = f"deadline {text.duration(deadline_minutes)}"
        layers = [*limit(label, x=deadline * scale, far=far), *layers]
        kept = "" if pending else "too late for the " if over > deadline else "in time for the "
        took += f", {kept}{label}"
    step = 42 if few else max(3.0, views.HEIGHT / shown.len())
    return picture(layers, f"{_outcomes(batches, live, pending)}; {took}", height=alt.Step(step))


def _outcomes(batches: pl.DataFrame, live: pl.DataFrame | None, pending: int) -> str:
    """Return how many batches there are, and what came of their requests and of the live calls."""
    made = batches.filter(pl.col("created_at").is_not_null())
    counts = [(made[part].sum(), part) for part in PARTS]
    counts += [(0 if live is None else live["error"].null_count(), "answered live"), (pending, "open")]
    words = ", ".join(f"{count:,} {part}" for count, part in counts if count)
    return f"{text.plural(made.height, 'batch')}: {words}"


def _batch_lanes(batches: pl.DataFrame, now: float) -> pl.DataFrame:
    """Return a lane for each batch that was made, the first one first."""
    made = batches.filter(pl.col("created_at").is_not_null()).sort("created_at", "batch_id")
    made = made.with_columns(pl.col("created_at", "ended_at").dt.epoch("us") / 1e6)
    lanes = []
    for number, row in enumerate(made.iter_rows(named=True), 1):
        parts = [f"{row[part]:,} {part}" for part in PARTS if row[part]]
        failed = sum(row[part] for part in PARTS[1:])
        outcome = ("some failed" if failed else "all succeeded") if parts else "open"
        words = ", ".join(parts) or f"{row['requests']:,} {STATES.get(row['state'], row['state'])}"
        end = max(now, row["created_at"]) if row["ended_at"] is None else row["ended_at"]
        lanes.append((f"batch {number}", row["created_at"], end, f"batch {number}: {words}", outcome))
    return pl.DataFrame(lanes, schema=LANES, orient="row")


def _live_lanes(live: pl.DataFrame | None) -> pl.DataFrame:
    """Return the lane of the live calls: a bar for each time they went on, without the pauses."""
    if live is None or live.is_empty():
        return LANES.to_frame()
    sent = pl.col("sent_at").dt.epoch("us") / 1e6
    calls = live.select("error", start=sent, end=sent + pl.col("seconds").fill_null(0.0)).sort("start", "end")
    calls = calls.with_columns(until=pl.col("end").cum_max())
    pause = calls.select(pl.col("until").max() - pl.col("start").min()).item() / 50
    begins = (pl.col("start") - pl.col("until").shift() > pause).fill_null(value=False)
    spans = calls.group_by(begins.cum_sum().alias("span"), maintain_order=True).agg(
        pl.col("start").min(), pl.col("until").max().alias("end")
    )
    words = pl.lit(f"live: {calls['error'].null_count():,} answered")
    first = pl.when(pl.int_range(pl.len()) == 0).then(words)
    return spans.select(lane=pl.lit("live"), start="start", end="end", words=first, outcome=pl.lit("live"))


# buckets


def levels(
    attempts: pl.DataFrame, per_minute: Sequence[float], started_at: float, bucket_seconds: float = 60.0
) -> pl.DataFrame:
    """Return the level of each of the three token buckets over a run, as `LEVELS`.

    A bucket is full at the start, refills at a constant rate up to its capacity and is drawn on by every
    call that was answered: by its request and its uncached input when it is sent, by its output when it has
    been written. Nobody else's calls are in it.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        Of `Run.attempts`; those of batches have limits of their own and are left out.
    per_minute : sequence of float
        What refills in a minute: requests, input tokens, output tokens.
    started_at : float
        API unix seconds at which the run started.
    bucket_seconds : float
        How many seconds' refill a full bucket holds. The API's may hold a minute's, or enforce its limits
        by the second (Source: Anthropic, *Rate limits*, checked 2026-10-08).
    """
    sent = pl.col("sent_at").dt.epoch("us") / 1e6 - started_at
    calls = attempts.filter(pl.col("batch_id").is_null(), pl.col("status") == HTTPStatus.OK, sent >= 0)
    takes = (pl.lit(1.0), sent), (UNCACHED, sent), (pl.col("output_tokens"), sent + pl.col("seconds"))
    frames = []
    for name, rate, (taken, at) in zip(BUCKETS, per_minute, takes, strict=True):
        events = calls.select(at=at / 60, taken=taken.cast(pl.Float64)).sort("at", maintain_order=True)
        # What is missing from a full bucket grows with every call, shrinks as time passes and is never below
        # zero. So it is a sum less the lowest that sum ever was: no loop over the calls.
        before = pl.col("taken").cum_sum() - pl.col("taken") - rate * pl.col("at")
        missing = before - before.cum_min() + pl.col("taken")
        capacity = pl.lit(rate / 60 * bucket_seconds)
        frames.append(
            events.select(bucket=pl.lit(name), minute="at", level=capacity - missing, capacity=capacity)
        )
    return pl.concat(frames).cast(LEVELS)


def buckets(
    levels: pl.DataFrame, *, bucket_seconds: float = 60.0, empty: str = NOTHING
) -> theme.Down | theme.Picture:
    """Return the chart of how full each token bucket was over a run: the one at the bottom set the pace.

    Of the calls of a short time the lowest level is drawn; between calls a bucket refills.

    Spends: nothing.

    Parameters
    ----------
    levels : pl.DataFrame
        Of `levels`: `bucket`, `minute`, `level` (below zero where it was overdrawn) and `capacity`.
    bucket_seconds : float
        As for `levels`.
    empty : str
        Why there is nothing to see, where there is nothing.
    """
    if levels.is_empty():
        return nothing(empty)
    most = highest(levels, "minute")
    scale, unit = text.time_unit(most)
    width = most / MOST_STEPS or 1.0
    grid = pl.select(minute=pl.int_range(MOST_STEPS + 1) * width)
    panels, words = [], []
    names = levels["bucket"].unique(maintain_order=True).to_list()
    for name in names:
        calls, noun = levels.filter(bucket=name).sort("minute"), name.replace("_", " ")
        capacity: float = calls["capacity"][0]
        # Requests that were answered had room: below zero is only what calls took from sending to arriving.
        calls = calls.select("minute", level=pl.col("level").clip(0.0 if name == "requests" else None))
        lows = calls.group_by((pl.col("minute") / width).floor() * width).agg(low=pl.col("level").min())
        last = calls.rename({"minute": "sent"})
        refilled = pl.col("level") + (pl.col("minute") - pl.col("sent")) * capacity / bucket_seconds * 60
        steps = grid.join_asof(last, left_on="minute", right_on="sent", coalesce=False)
        steps = steps.with_columns(refilled.fill_null(capacity).clip(upper_bound=capacity).alias("level"))
        steps = steps.join_asof(lows.sort("minute"), on="minute", tolerance=width / 2, strategy="nearest")
        level = pl.min_horizontal("level", "low")
        steps = steps.select(level, at=pl.col("minute") * scale, share=level / capacity)
        lowest: float = steps.select(pl.col("share").min()).item()
        words.append(f"{noun} {max(lowest, 0.0):.0%}{' (overdrawn)' * (lowest < 0)}")
        y = alt.Y(
            "share:Q",
            title=f"{noun.capitalize()}: a full bucket holds {text.significant(capacity)}",
            scale=alt.Scale(domain=[max(min(lowest, 0.0), -1.0), 1.0], nice=False),
            axis=alt.Axis(format=".0%", values=[0, 0.5, 1]),
        )
        x = theme.time_axis("at", unit if name == names[-1] else None)
        area = chart(steps).mark_area(**theme.steps(COLORS[name]), clip=True)
        area = area.encode(x=x, y=y, tooltip=tips(at=",.2f", level=",.1f"))
        panels.append(alt.layer(area).properties(width=views.WIDTH, height=84))
    sentence = f"Lowest level of each bucket: {', '.join(words)}"
    return theme.Down(vconcat=panels, spacing=30).properties(**theme.said(sentence))
