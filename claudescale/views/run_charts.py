"""Pictures of a run: Polars frames in, Altair charts out.

A chart knows column names, never our objects. Everything is aggregated in Polars before Altair sees it, so
a million rows make a small picture, and always the same one. Times are minutes since the start of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from claudescale import text, views
from claudescale.api.prices import UNCACHED
from claudescale.views import theme
from claudescale.views.theme import chart, finite, highest, limit, nothing, picture, thin, tips

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING = "Nothing was sent."
PARTS = ("succeeded", "errored", "expired", "canceled")
STATES = {"in_progress": "in progress", "ended": "being collected", "gone": "results gone"}
LANES = pl.Schema({"lane": pl.String(), "start": pl.Float64(), "end": pl.Float64(), "words": pl.String()})
LANES["color"] = pl.String()
WORTH = 5e-4  # a saving below this share of the whole is not mentioned
FEWEST_ANSWERS = {"median": 1, "p90": 10}  # a p90 of fewer answers means nothing
MOST_POINTS, MOST_STEPS, MOST_LANES = 1_500, 240, 12


# rates


def throughput(rates: pl.DataFrame, *, requests_per_minute: float | None) -> theme.Picture:
    """Return the chart of requests per minute over time, their limit, and the refused calls.

    Spends: nothing.

    Parameters
    ----------
    rates : pl.DataFrame
        A row per slice of time: `minute` (its left edge), `slice_minutes`, `refused` (calls refused with
        429) and `requests_`, `input_tokens_` and `output_tokens_per_minute`.
    requests_per_minute : float or None
        The limit, drawn as a labeled line; None if it is unknown.
    """
    layers, words = _rate(rates, "requests", requests_per_minute), _pace(rates, requests_per_minute)
    if refused := int(rates["refused"].sum()):
        words += f"; {text.plural(refused, 'call')} refused{theme.SIGN}"
        signs = chart(rates.filter(pl.col("refused") > 0)).mark_point(**theme.FAILED)
        layers.append(signs.encode(x="minute:Q", y=alt.value(6), tooltip=tips(refused=",d")))
    return picture(layers, words)


def tokens(rates: pl.DataFrame, *, limits: Mapping[str, float | None]) -> theme.Down:
    """Return a chart per rate over time, each against its own limit.

    Spends: nothing.

    Parameters
    ----------
    rates : pl.DataFrame
        The frame of `throughput`.
    limits : mapping of str to float or None
        The limit per minute of each rate to draw, such as ``{"input_tokens": 400_000}``.
    """
    panels, means = [], []
    for name, most in limits.items():
        panels.append(_rate(rates, name, most, is_last=name == [*limits][-1]))
        mean = _mean(rates, name)
        share = f" ({text.significant(100 * mean / most, 2)}% of the limit)" if most else ""
        means.append(f"{text.significant(mean)} {name.replace('_', ' ')}{share}")
    return theme.panels(panels, f"On average {' and '.join(means)} a minute")


def _mean(rates: pl.DataFrame, name: str) -> float:
    length = pl.col("slice_minutes")
    rate = pl.col(f"{name}_per_minute").fill_nan(None)
    mean: float = rates.select((rate * length).sum() / length.sum()).item()
    return mean


def _pace(rates: pl.DataFrame, most: float | None) -> str:
    """Return the sentence on requests per minute; a peak that a full bucket allows is called a burst."""
    mean, peak = _mean(rates, "requests"), highest(finite(rates), "requests_per_minute")
    words = f"{mean:,.0f} requests a minute on average, {peak:,.0f} "
    minutes = float(rates["slice_minutes"].sum())
    if most is None or peak <= most or mean * minutes > most * (1 + minutes):  # failed calls take nothing
        return f"{words}at the peak" + (f", {most:,.0f} allowed" if most else "")
    if mean <= most:
        return f"{words}in a burst, {most:,.0f} allowed"
    sent = f"{text.plural(round(mean * minutes), 'request')} in {text.duration(minutes)}"
    return f"{sent}: a burst from a full bucket, which refills at {most:,.0f} a minute"


def _rate(rates: pl.DataFrame, name: str, most: float | None, *, is_last: bool = True) -> list[alt.Chart]:
    """Return the layers of one rate over time, with its limit."""
    rates = finite(rates).with_columns(end=pl.col("minute") + pl.col("slice_minutes"))
    rate, words = f"{name}_per_minute", name.replace("_", " ").capitalize()
    top, far = theme.reach(highest(rates, rate), most)
    x = theme.time_axis("minute", highest(rates, "end"), is_last=is_last)
    y = alt.Y(f"{rate}:Q", title=f"{words} per minute", **theme.axis_to(top, labelExpr=views.NUMBERS))
    tooltip = tips(**{"minute": ",.2f", rate: ",.0f", "refused": ",d"})
    bars = chart(rates).mark_rect(color=views.BUCKETS[name])
    bars = bars.encode(x=x, x2="end:Q", y=y, y2=alt.datum(0), tooltip=tooltip)
    return [bars, *(limit(f"limit\n{most:,.0f}/min", y=most, far=far) if most else [])]


# calls


def latency(attempts: pl.DataFrame) -> theme.Picture:
    """Return the chart of each answer's seconds over time, with the median and the 90th percentile.

    Both are computed from all answers. If there are very many, only every n-th is drawn.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        A row per answer or failure: `sent_at`, `seconds` and `error` (null if answered).
    """
    minutes = (pl.col("sent_at") - pl.col("sent_at").min()).dt.total_microseconds() / 60e6
    calls = attempts.select(pl.col("seconds").clip(1e-3), "error", minute=minutes).sort("minute", "seconds")
    answers = calls.filter(pl.col("error").is_null())
    failures = calls.filter(pl.col("error").is_not_null())
    seconds, title = calls["seconds"], "Seconds per answer"
    axis: dict[str, Any] = {"title": title, "axis": alt.Axis(format=",~f")}
    if seconds.max() > 15 * seconds.median():  # type: ignore[operator]  # the slowest would flatten the others
        axis, _ = theme.log_axis([seconds.min(), seconds.max()], title, views.NUMBERS)  # type: ignore[list-item]
    y = alt.Y("seconds:Q", **axis)
    x = theme.time_axis("minute", highest(calls, "minute"))
    encoded: Any = {"x": x, "y": y, "tooltip": tips(minute=",.2f", seconds=",.2f")}
    layers = [
        chart(thin(answers, MOST_POINTS)).mark_circle(color=views.BLUE, size=14).encode(**encoded),
        chart(thin(failures, 200)).mark_point(**theme.FAILED).encode(**encoded),
    ]
    words = []
    lines: Any = ("median", 0.5, views.ORANGE, "top"), ("p90", 0.9, views.GREEN, "bottom")
    for name, share, color, baseline in lines:
        if answers.height < FEWEST_ANSWERS[name]:
            continue
        value: Any = answers["seconds"].quantile(share, "linear")
        words.append(f"{name} {text.significant(value)} s")
        label = chart().mark_text(text=words[-1], align="left", dx=6, baseline=baseline)
        line = chart().mark_rule(color=color, strokeWidth=2.5).encode(y=alt.datum(value))
        layers += [line, label.encode(x=alt.value("width"), y=alt.datum(value))]
    sentence = f"{text.plural(answers.height, 'answer')}: {', '.join(words)}" if words else "No answers"
    if failures.height:
        sentence += f"; {text.plural(failures.height, 'call')} failed or refused{theme.SIGN}"
    return picture(layers, sentence)


def spending(
    spending: pl.DataFrame,
    *,
    estimate_dollars: float | None = None,
    simulated: bool = False,
) -> theme.Picture:
    """Return the chart of cumulative dollars over time, against the estimate.

    Spends: nothing.

    Parameters
    ----------
    spending : pl.DataFrame
        `minute` and `dollars` (so far).
    estimate_dollars : float or None
        The plan's estimate of the run's cost, drawn as a labeled line.
    simulated : bool
        Whether to mark the chart as simulated.
    """
    steps = thin(spending.sort("minute"), MOST_STEPS)
    paid = steps["dollars"][-1]
    top, far = theme.reach(paid, estimate_dollars)
    y = alt.Y("dollars:Q", title="US dollars", **theme.axis_to(top, labelExpr=theme.DOLLARS))
    area = chart(steps).mark_area(**theme.area(views.BLUE), interpolate="step-after")
    tooltip = tips(minute=",.2f", dollars="$,.4~f")
    layers = [area.encode(x=theme.time_axis("minute", highest(steps, "minute")), y=y, tooltip=tooltip)]
    words = f"{'SIMULATED: ' * simulated}{text.dollars(paid)} paid"
    if estimate_dollars is not None:
        estimate = text.dollars(estimate_dollars)
        layers += limit(f"estimate\n{estimate}", y=estimate_dollars, far=far)
        words += f", {estimate} estimated"
    return picture(layers, words)


def savings(
    parts: pl.DataFrame, *, verb: str = " paid", more: str = "", simulated: bool = False, empty: str = NOTHING
) -> theme.Picture:
    """Return the chart of savings: step by step from the rows' cost without any to the amount paid.

    A step that saved nothing is omitted.

    Spends: nothing.

    Parameters
    ----------
    parts : pl.DataFrame
        `part` and `dollars`, in drawing order: first the rows' cost without any savings, then the savings of
        each part (negative if it cost more than it saved), last the amount paid.
    verb, more : str
        Words of the title after the dollars, and at its end.
    simulated : bool
        Whether to mark the chart as simulated.
    empty : str
        The text of an empty chart.
    """
    (plain, total), *steps, (last, paid) = finite(parts).fill_null(0.0).rows()
    if not total:
        return nothing(empty)
    left, bars = total, [(plain, 0.0, total, views.GREY, text.dollars(total))]
    for part, saved in steps:
        if abs(saved) >= abs(total) * WORTH:
            sign, color = ("\N{MINUS SIGN}", views.GREEN) if saved > 0 else ("+", views.VERMILION)
            label = f"{sign}{text.dollars(abs(saved))} ({abs(saved / total):.1%})"
            bars.append((part, *sorted((left, left - saved)), color, label))
        left -= saved
    bars.append((last, 0.0, paid, views.BLUE, text.dollars(paid)))
    names = ["part", "start", "end", "color", "label"]
    base = chart(pl.DataFrame(bars, schema=names, orient="row")).encode(
        alt.Y("part:N", sort=None, title=None)
    )
    most = max(end for _, _, end, *_ in bars) / 1.05  # the labels are outside the frame
    x = alt.X("start:Q", title="US dollars", **theme.axis_to(most, labelExpr=theme.DOLLARS))
    layers = [
        base.mark_bar(size=22).encode(
            x=x, x2="end:Q", color=alt.Color("color:N", scale=None), tooltip=tips(part="", label="")
        ),
        base.mark_text(align="left", dx=6).encode(x="end:Q", text="label:N"),
    ]
    less = total - paid
    saving = f" instead of {text.dollars(total)}: {text.dollars(less)} saved ({less / total:.1%})"
    words = f"{'SIMULATED: ' * simulated}{text.dollars(paid)}{verb}"
    words += saving if abs(less) >= total * WORTH else ", nothing saved"
    return picture(layers, words + more, width=340, height=alt.Step(34))


# batches


def batches(
    batches: pl.DataFrame,
    live: pl.DataFrame,
    *,
    started_at: float,
    now: float,
    deadline_minutes: float | None = None,
) -> theme.Picture:
    """Return the chart of when each batch was pending and its outcome, together with the live calls.

    Blue has succeeded, orange has rows that errored or expired, gray is open or was canceled.

    Spends: nothing.

    Parameters
    ----------
    batches : pl.DataFrame
        From `Run.batches`. Only created ones are drawn, and every n-th if there are very many.
    live : pl.DataFrame
        `sent_at`, `seconds` and `error` of live calls; every n-th is drawn if there are very many.
    started_at, now : float
        API unix seconds: the start of the run, and the end of an open batch's bar.
    deadline_minutes : float or None
        Minutes the run may take, drawn as a labeled line.
    """
    made = batches.filter(pl.col("created_at").is_not_null()).sort("created_at", "batch_id")
    pending_lanes = _batch_lanes(made, now)
    lanes = pl.concat([pending_lanes, _live_lane(live)])
    minute = (pl.col("start", "end") - started_at) / 60
    lanes = lanes.with_columns(minute.clip(lower_bound=0.0))  # an earlier run's batch was already pending
    over, deadline = highest(lanes, "end"), deadline_minutes or 0.0
    until, far = theme.reach(max(over, 1 / 60), deadline_minutes)
    until *= 1.01
    thinnest = pl.max_horizontal("end", pl.col("start") + until / 200)
    base = chart(lanes.with_columns(end=thinnest)).encode(alt.Y("lane:N", sort=None, axis=None))
    color = alt.Color("color:N", scale=None)
    bars = base.mark_bar(size=16, yOffset=8, clip=True)
    tooltip = tips(lane="", words="", start=",.2f", end=",.2f")
    words = base.transform_filter("datum.words").mark_text(align="left", dy=-9)
    layers = [
        bars.encode(x=theme.time_axis("start", until), x2="end:Q", color=color, tooltip=tooltip),
        words.encode(x=alt.value(0), text="words:N"),
    ]
    pending = made["ended_at"].null_count()
    counts = [(made[part].sum(), part) for part in PARTS]
    counts += [(live["error"].null_count(), "answered live"), (pending, "open")]
    came = ", ".join(f"{count:,} {part}" for count, part in counts if count)
    took = f"{text.duration(over)} so far" if pending else f"done after {text.duration(over)}"
    if deadline:
        label = f"deadline {text.duration(deadline)}"
        layers = [*limit(label, x=deadline, far=far), *layers]
        kept = "" if pending else "too late for the " if over > deadline else "in time for the "
        took += f", {kept}{label}"
    shown = f", {pending_lanes.height} drawn" if pending_lanes.height < made.height else ""
    sentence = f"{text.plural(made.height, 'batch')}{shown}: {came}; {took}"
    return picture(layers, sentence, height=alt.Step(42))


def _batch_lanes(made: pl.DataFrame, now: float) -> pl.DataFrame:
    """Return a lane per created batch, oldest first."""
    made = made.with_columns(pl.col("created_at", "ended_at").dt.epoch("us") / 1e6).with_row_index(
        "number", 1
    )
    lanes = []
    for row in thin(made, MOST_LANES).iter_rows(named=True):
        parts = [f"{row[part]:,} {part}" for part in PARTS if row[part]]
        good = views.BLUE if parts and not row["canceled"] else views.GREY  # a run cancels its own batches
        color = views.ORANGE if row["errored"] or row["expired"] else good
        words = ", ".join(parts) or f"{row['requests']:,} {STATES.get(row['state'], row['state'])}"
        end = max(now, row["created_at"]) if row["ended_at"] is None else row["ended_at"]
        lane = f"batch {row['number']}"
        lanes.append((lane, row["created_at"], end, f"{lane}: {words}", color))
    return pl.DataFrame(lanes, schema=LANES, orient="row")


def _live_lane(live: pl.DataFrame) -> pl.DataFrame:
    """Return the lane of the live calls."""
    start = pl.col("sent_at").dt.epoch("us") / 1e6
    words = pl.lit(f"live: {live['error'].null_count():,} answered")
    return thin(live, MOST_POINTS).select(
        lane=pl.lit("live"),
        start=start,
        end=start + pl.col("seconds"),
        words=pl.when(pl.int_range(pl.len()) == 0).then(words),
        color=pl.lit(views.SKY),
    )


# buckets


def buckets(
    answered: pl.DataFrame, *, limits: Mapping[str, float], started_at: float, bucket_seconds: float = 60.0
) -> theme.Down:
    """Return the chart of each token bucket's level over a run; the emptiest one set the pace.

    A bucket is full at the start and refills at a constant rate up to its capacity. Every answered call
    draws on it: its request and uncached input when it is sent, its output when it has been written. Calls
    of other clients are not included. For each short time slice the lowest level is drawn.

    Spends: nothing.

    Parameters
    ----------
    answered : pl.DataFrame
        Answered live calls of `Run.attempts`; batches have limits of their own.
    limits : mapping of str to float
        The refill per minute: requests, input tokens, output tokens.
    started_at : float
        API unix seconds at which the run started.
    bucket_seconds : float
        Seconds of refill that a full bucket holds. The API's may hold a minute's, or enforce its limits
        by the second (Source: Anthropic, *Rate limits*, checked 2026-10-08).
    """
    sent = (pl.col("sent_at").dt.epoch("us") / 1e6 - started_at) / 60
    written = sent + pl.col("seconds") / 60
    until: float = answered.select(written.max()).item()
    takes = {
        "requests": answered.select(minute=sent, taken=pl.lit(1.0)),
        "input_tokens": answered.select(minute=sent, taken=UNCACHED),
        "output_tokens": answered.select(minute=written, taken="output_tokens"),
    }
    panels, words = [], []
    for name, calls in takes.items():
        capacity = limits[name] / 60 * bucket_seconds
        levels = bucket_levels(calls, per_minute=limits[name], capacity=capacity)
        if name == "requests":  # answered calls had room: network delay explains levels below 0
            levels = levels.with_columns(pl.col("before", "after").clip(0.0))
        slices = levels.group_by((pl.col("minute") * MOST_STEPS // until).alias("slice")).agg(
            pl.col("minute", "before").first(), pl.col("after").min()
        )
        steps = pl.concat(
            [
                pl.DataFrame({"minute": 0.0, "share": 1.0}),
                slices.select("minute", share=pl.concat_list("before", "after")).explode("share"),
            ]
        ).sort("minute", maintain_order=True)
        lowest: float = steps.select(pl.col("share").min()).item()
        noun, is_last = name.replace("_", " "), name == [*takes][-1]
        words.append(f"{noun} {max(lowest, 0.0):.0%}{' (overdrawn)' * (lowest < 0)}")
        y = alt.Y(
            "share:Q",
            title=f"{noun.capitalize()}: a full bucket holds {text.significant(capacity)}",
            scale=alt.Scale(domain=[max(min(lowest, 0.0), -1.0), 1.0], nice=False),
            axis=alt.Axis(format=".0%", values=[0, 0.5, 1]),
            stack=False,
        )
        x = theme.time_axis("minute", until, is_last=is_last)
        area = chart(steps).mark_area(**theme.area(views.BUCKETS[name]), clip=True)
        panels.append([area.encode(x=x, y=y, tooltip=tips(minute=",.2f", share=".0%"))])
    return theme.panels(panels, f"Lowest level of each bucket: {', '.join(words)}")


def bucket_levels(calls: pl.DataFrame, *, per_minute: float, capacity: float) -> pl.DataFrame:
    """Return a bucket's level just before and after each call, as a share of a full one, by `minute`."""
    # Below zero it was overdrawn. `calls` have the `minute` at which each drew on it, and the amount `taken`.
    calls = calls.sort("minute", maintain_order=True).cast(pl.Float64)
    # The amount missing from a full bucket grows with every call, shrinks as time passes and is never below
    # zero. It is therefore a running sum minus that sum's running minimum, without a loop over the calls.
    taken_before = pl.col("taken").cum_sum() - pl.col("taken") - per_minute * pl.col("minute")
    missing = taken_before - taken_before.cum_min()
    return calls.select(
        "minute", before=1 - missing / capacity, after=1 - (missing + pl.col("taken")) / capacity
    )
