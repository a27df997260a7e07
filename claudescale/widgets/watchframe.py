"""What a watcher shows, from one reading of a run: words, figures, and the numbers of the live chart.

Pure functions: a `Pulse` and its slices in, text out. How often to show it is decided here, too.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog
from claudescale.views import card, marks
from claudescale.views.rates import THROUGHPUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from claudescale.api.limits import Limits
    from claudescale.ledger.records import Batch
    from claudescale.running.meter import Slice
    from claudescale.running.pulses import Pulse

ENDED = frozenset({"finished", "stopped", "failed", "left"})
UNHEARD_SECONDS, LONG_UNHEARD_SECONDS = 2.0, 60.0
"""After which a picture that no page has confirmed is followed by another; and from when on hardly any."""
RARE_SECONDS = 5.0
MOST_BATCHES = 8
RATES = ("requests", "input_tokens", "output_tokens")
_WORDS = {"in_progress": "in progress", "ended": "being collected", "gone": "results gone"}
_FAR = 5  # a limit that many times above the rates would press them flat
_HEADROOM = 1.25


def pause_seconds(unheard_seconds: float, every_seconds: float) -> float:
    """Return how long to wait after a picture, or until it is confirmed if that comes first.

    A page confirms what it has drawn. Where none does, the kernel may be busy with a cell, so that it cannot
    hear; or the output was cleared, or the page closed, and nobody looks.

    Parameters
    ----------
    unheard_seconds : float
        How long the oldest picture has been waiting to be confirmed; 0 where all are.
    every_seconds : float
        How long where all goes well.
    """
    if not unheard_seconds:
        return every_seconds
    rare = RARE_SECONDS if unheard_seconds >= LONG_UNHEARD_SECONDS else UNHEARD_SECONDS
    return max(rare, every_seconds)


def headline(pulse: Pulse) -> str:
    """Return the one line of truth about a run under way."""
    simulated = "SIMULATED " * pulse.simulated
    if pulse.state == "starting":
        return f"{simulated}Run starting: the rows are read."
    calls = f"for {_counted(pulse.in_flight, 'call')} in flight" if pulse.in_flight else ""
    canceled = f"for {_counted(_open(pulse), 'batch', 'es')} to be canceled" if _open(pulse) else ""
    state = {"stop": "stopping", "leave": "leaving"}.get(pulse.asked, "running")
    waits = [each for each in (calls, canceled if pulse.asked == "stop" else "") if each]
    left = (f"waits {' and '.join(waits)}" if waits else "") if pulse.asked else remaining(pulse)
    done = f"{pulse.done:,} of {pulse.rows:,} rows done"
    about = "" if pulse.estimate_dollars is None else f" of about {card.dollars(pulse.estimate_dollars)}"
    parts = [done, *([left] if left else []), f"{card.dollars(pulse.dollars)}{about}"]
    return f"{simulated}Run {state}: {', '.join(parts)}."


def remaining(pulse: Pulse) -> str:
    """Return when a run ends, as a span of time."""
    out = pulse.expected
    if out is not None:
        usual = ""
        if out.usual_seconds is not None:
            usual = f"usually within {card.coarse(out.usual_seconds / 60)} and "
        return f"batches {usual}at the latest in {card.coarse(out.latest_seconds / 60)}"
    if pulse.ends is None:
        return ""
    usual_text = card.duration(pulse.ends.usual_minutes)
    if math.isinf(pulse.ends.latest_minutes):
        return f"more than {usual_text} left: nothing was answered in the last minute"
    return f"{card.span(usual_text, card.duration(pulse.ends.latest_minutes))} left"


def bar(pulse: Pulse) -> str:
    """Return the progress as HTML that is read out, too."""
    percent = 100 * pulse.done / pulse.rows if pulse.rows else 0.0
    told = f"{pulse.done:,} of {pulse.rows:,} rows done, {percent:.1f}%"
    return (
        f"<div><strong>{html.escape(headline(pulse))}</strong></div>"
        f'<progress value="{pulse.done}" max="{max(pulse.rows, 1)}" aria-label="{told}" title="{told}" '
        f'style="width:100%;height:14px">{told}</progress>'
    )


def figures(pulse: Pulse, *, title: str = "", following: str = "") -> card.Card:
    """Return the figures of a run as a card."""
    header, row = zip(*((name, _unbroken(value)) for name, value in _figures(pulse).items()), strict=True)
    notes = []
    if pulse.requests or pulse.batches:
        notes = [f"Errors: {_kinds(pulse.errors)}. Refused (429): {_kinds(pulse.refusals)}."]
    if pulse.speed != 1 and pulse.state not in ENDED:
        notes.append(f"Times are the simulator's, {pulse.speed:,g} times as fast as here.")
    return card.Card(title=title, header=header, rows=[row], notes=notes, next=following)


def _figures(pulse: Pulse) -> dict[str, str]:
    estimate, plain = pulse.estimate_dollars, pulse.plain_dollars
    shown = {
        "dollars": card.dollars(pulse.dollars),
        "estimated": "?" if estimate is None else card.dollars(estimate),
        "without savings": card.dollars(plain),
        "time": card.duration(pulse.minutes),
    }
    if pulse.most_in_flight or pulse.median_seconds is not None:
        speed = pulse.output_tokens_per_second
        shown |= {
            "latency p50": _seconds(pulse.median_seconds),
            "p95": _seconds(pulse.slow_seconds),
            "output tokens/s": "?" if speed is None else f"{speed:,.0f}",
        }
        if pulse.state not in ENDED:
            shown["in flight / allowed"] = f"{pulse.in_flight:,} / {pulse.most_in_flight:,}"
    return shown


def batches(pulse: Pulse) -> card.Card | None:
    """Return the batches of a run as a card, the newest last; None where there are none."""
    made = [batch for batch in pulse.batches if batch.state != "absent"]
    if not made:
        return None
    rows = [_batch(number, batch, pulse) for number, batch in enumerate(made, 1)]
    told = f"{len(rows) - MOST_BATCHES:,} earlier batches are not shown" if len(rows) > MOST_BATCHES else ""
    header = ("batch", "state", "requests", "out since", "usually within", "at the latest in")
    return card.Card(title="", header=header, rows=rows[-MOST_BATCHES:], notes=[told] * bool(told))


def _batch(number: int, batch: Batch, pulse: Pulse) -> tuple[str, ...]:
    begun_at = batch.created_at or batch.intended_at
    age = (batch.ended_at or pulse_now(pulse)) - begun_at
    out = pulse.expected if batch.ended_at is None else None
    usual, latest = "", ""
    if out is not None:
        usual = card.coarse(out.usual_seconds / 60) if out.usual_seconds is not None else "overdue"
        latest = card.coarse(max(catalog.BATCH.expires_hours * 60 - age / 60, 0.0))
    state = _WORDS.get(batch.state, batch.state)
    since = card.duration(age / 60)
    return tuple(map(_unbroken, (f"batch {number}", state, f"{batch.requests:,}", since, usual, latest)))


def pulse_now(pulse: Pulse) -> float:
    """Return the API unix seconds of a reading."""
    return pulse.started_at + pulse.minutes * 60


def rates(width_seconds: int, slices: Sequence[Slice], minutes: float) -> pl.DataFrame:
    """Return slices as `THROUGHPUT`. The last one is as long as it has lasted."""
    columns: dict[str, Any] = {name: [getattr(each, name) for each in slices] for name in RATES}
    frame = pl.DataFrame(columns | {"refused": [each.refused for each in slices]})
    start = pl.int_range(pl.len()) * (width_seconds / 60)
    lasted = (minutes - pl.col("minute")).clip(upper_bound=width_seconds / 60)
    length = pl.when(lasted > 0).then(lasted).otherwise(width_seconds / 60)
    per_minute = {f"{name}_per_minute": pl.col(name) / pl.col("slice_minutes") for name in RATES}
    made = frame.with_columns(minute=start).with_columns(slice_minutes=length).with_columns(**per_minute)
    return made.select(*THROUGHPUT).cast(THROUGHPUT)


def drawn(
    pulse: Pulse, width_seconds: int, slices: Sequence[Slice], limits: Limits, *, number: int
) -> dict[str, Any]:
    """Return what the live chart draws: whole slices, up to where most of the calls sent are answered.

    A call counts when it was sent but is known when it is answered: the newest slices are not complete.

    Parameters
    ----------
    limits : Limits
        As far as the run may use them.
    number : int
        Of this picture; the page gives it back.
    """
    scale, unit = marks.time_unit(pulse.minutes)
    known = pulse.minutes * 60 - (pulse.slow_seconds or 0.0)
    shown = slices[: max(int(known / width_seconds), 0)]
    ends = [each * width_seconds / 60 * scale for each in range(len(shown) + 1)]
    per_minute = 60 / width_seconds
    panels = {
        name: _panel(name, [getattr(each, name) * per_minute for each in shown], limit)
        for name, limit in zip(RATES, limits.per_minute, strict=True)
    }
    until = max(ends[-1], pulse.minutes * scale, 1e-6)
    return {"number": number, "until": until, "unit": unit, "starts": ends, **panels}


def _panel(name: str, rates: list[float], limit: float) -> dict[str, Any]:
    peak = max(rates, default=0.0)
    far = 0 < peak < limit / _FAR
    words = f"limit {limit:,.0f} {name.replace('_', ' ')}/min"
    top = max(peak, 0.0 if far else limit) * _HEADROOM
    said = f"\N{UPWARDS ARROW} {words}" if far else words
    return {"rates": rates, "top": top, "limit": top if far else limit, "far": far, "words": said}


def _open(pulse: Pulse) -> int:
    return pulse.expected.open if pulse.expected else 0


def _kinds(counts: Mapping[str, int]) -> str:
    told = [f"{count:,} {kind}" for kind, count in sorted(counts.items(), key=lambda each: -each[1])]
    return ", ".join(told) or "none"


def _counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:,.2g} s" if seconds < 10 else f"{seconds:,.0f} s"  # noqa: PLR2004
