"""The chart of batches: each where and as long as it was, its shares by count, the deadline in its place."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from drawing import labels_of_what_fits
from hypothesis import given, settings
from hypothesis import strategies as st

import claudescale as cs
from claudescale.running.runs import BATCHES
from claudescale.views import batchcharts, run_charts

START = datetime(2026, 10, 8, 12, tzinfo=UTC)
STARTED_AT = START.timestamp()
COUNTS = ("succeeded", "errored", "canceled", "expired")


def batch(number, begun=0.0, minutes=None, *, requests=100, state="collected", **counts):
    """Return one row of `BATCHES`, `begun` minutes after the run; without `minutes` it is open."""
    created = None if begun is None else START + timedelta(minutes=begun)
    ended = None if minutes is None else created + timedelta(minutes=minutes)
    row = dict.fromkeys(BATCHES) | dict.fromkeys(COUNTS, 0) | counts
    row |= {"batch_id": f"msgbatch_{number:03d}", "state": state, "requests": requests}
    return row | {"created_at": created, "ended_at": ended, "minutes": minutes}


def frame(*rows):
    return pl.DataFrame(rows, schema=BATCHES)


def live(*minutes, seconds=2.0):
    """Return live calls at these minutes after the start of the run."""
    rows = [(START + timedelta(minutes=minute), seconds, None) for minute in minutes]
    schema = {"sent_at": pl.Datetime("us", "UTC"), "seconds": pl.Float64, "error": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def draw(batches, now_minutes=60.0, **options):
    return batchcharts.batches(batches, started_at=STARTED_AT, now=STARTED_AT + 60 * now_minutes, **options)


TWO = frame(
    batch(1, 0, 20, requests=900, succeeded=850, errored=20, expired=30),
    batch(2, 20.1, 5, requests=30, succeeded=30),
)
STAGES = frame(
    batch(1, 0, 20, succeeded=60, canceled=40),
    batch(2, 1, state="in_progress"),
    batch(3, 2, state="canceling"),
    batch(4, 3, 30, state="ended", succeeded=100),
    batch(5, 4, 30, state="gone"),
    batch(6, None, state="absent"),
)
MANY = [batch(n, n % 50, 20 + n % 7, requests=10_000, succeeded=9_990, expired=10) for n in range(700)]
REST = live(0.0, *(29 + n / 100 for n in range(300)))
DRAWN = {
    "two": lambda: draw(TWO),
    "stages": lambda: draw(STAGES),
    "one, open": lambda: draw(frame(batch(1, state="in_progress")), 0.0),
    "one, a second long": lambda: draw(frame(batch(1, 0, 0.01, succeeded=1))),
    "a day": lambda: draw(frame(batch(1, 0, 1440, expired=100))),
    "taken over": lambda: draw(frame(batch(1, -600, 30, succeeded=100), batch(2, 1, 9, succeeded=9)), 10),
    "the widest words": lambda: draw(
        frame(batch(1, 0, 20, **dict.fromkeys(COUNTS, 25_000), requests=100_000)), deadline_minutes=90
    ),
    "hybrid": lambda: draw(
        frame(batch(1, 0.1, 28, succeeded=60, canceled=240, requests=300)), deadline_minutes=45, live=REST
    ),
    "hybrid, before its batch": lambda: draw(frame(), 1, deadline_minutes=45, live=live(0.0)),
    "deadline far away": lambda: draw(TWO, deadline_minutes=1440),
    "deadline missed": lambda: draw(TWO, deadline_minutes=4, live=REST),
    "dozens": lambda: draw(frame(*MANY[:40], batch(999, 3, state="in_progress"))),
    "hundreds": lambda: draw(frame(*MANY), deadline_minutes=90, live=REST),
}


def specification(shown):
    return run_charts.specification(shown.chart, shown.text)


def rectangles(shown):
    """Return the bars of a chart, share by share."""
    several = specification(shown)["datasets"].values()
    return [row for rows in several for row in rows if "batch" in row]


@pytest.mark.parametrize("name", DRAWN)
def test_every_chart_is_drawn_by_old_and_new_vega_lite_and_fits_the_page(name):
    """Whatever became of the batches, the picture is drawn, fits 640 pixels, and is seen in the dark."""
    shown = DRAWN[name]()
    drawing = specification(shown)
    labels = labels_of_what_fits(drawing)
    assert labels
    assert [label for label in labels if re.search(r"\de[+-]?\d|NaN|null|undefined|None", label)] == []
    assert len(rectangles(shown)) <= 1_500
    assert "#000" not in json.dumps(drawing).replace("#0072B2", "")
    assert specification(DRAWN[name]()) == drawing
    assert shown.text == drawing["description"]


@pytest.mark.parametrize("rows", [frame(), frame(batch(1, None, state="absent"))])
def test_without_a_batch_it_says_that_nothing_was_sent(rows):
    """A live run, and one whose only batch was never made, have no bar to show."""
    assert draw(rows).text == "nothing sent"


def test_a_bar_is_where_and_as_long_as_its_batch_was():
    """Start and end are minutes since the run began; the shares fill the bar's height by count, in order."""
    bars = [bar for bar in rectangles(draw(TWO)) if bar["batch"] == "batch 1"]
    assert [(bar["start"], bar["end"]) for bar in bars] == [(0, 20)] * 3
    assert [bar["part"] for bar in bars] == ["succeeded", "errored", "expired"]
    heights = [bar["y2"] - bar["y"] for bar in bars]
    assert sum(heights) == pytest.approx(batchcharts.BAR)
    assert [bar["y"] for bar in bars[1:]] == pytest.approx([bar["y2"] for bar in bars[:-1]])
    assert min(heights) == pytest.approx(batchcharts.THINNEST)


def test_what_came_of_the_rows_is_written_above_each_bar():
    """Counts stand in words beside their colour, and an open batch says how far the API has told."""
    words = json.dumps(specification(draw(STAGES)))
    told = ("60 succeeded", "40 canceled", "100 in progress", "100 canceling", "100 results gone")
    assert [text for text in told if f'"{text}"' not in words] == []
    assert draw(TWO).text == ("2 batches: 880 succeeded, 20 errored, 30 expired; done after 25 m 06 s")


def test_an_open_batch_is_an_outline_up_to_now():
    """It has no colour, as nothing is known of its rows, and ends where the run stands."""
    shown = draw(STAGES, 45)
    outlined = {bar["batch"]: bar["end"] for bar in rectangles(shown) if bar["color"] is None}
    assert outlined == {"batch 2": 45, "batch 3": 45, "batch 5": 34}
    assert "3 of them open; now after 45 m 00 s" in shown.text
    assert draw(frame(batch(1, state="in_progress")), 7).text == "1 batch: open; now after 7 m 00 s"


def test_the_deadline_is_a_line_in_its_place_or_named_where_it_is_far():
    """The sentence says whether it was met; a deadline a day away does not press the bars flat."""
    shown = DRAWN["hybrid"]()
    assert shown.text == (
        "1 batch: 60 succeeded, 240 canceled, 301 answered live; "
        "done after 32 m 01 s, in time for the deadline 45 m 00 s"
    )
    assert '{"datum": 45.0, "type": "quantitative"}' in json.dumps(specification(shown))
    assert "too late for the deadline 4 m 00 s" in DRAWN["deadline missed"]().text
    far = DRAWN["deadline far away"]()
    assert "deadline 24 h 00 m \N{RIGHTWARDS ARROW}" in json.dumps(specification(far), ensure_ascii=False)
    assert "datum" not in json.dumps(specification(far))


def test_live_calls_have_a_lane_without_their_pauses():
    """The first row of a hybrid run and its rest are two bars of one lane."""
    bars = [bar for bar in rectangles(DRAWN["hybrid"]()) if bar["batch"] == "live"]
    assert [round(bar["start"], 2) for bar in bars] == [0, 29]
    assert bars[1]["end"] == pytest.approx(32.02, abs=0.01)


def test_a_batch_of_an_earlier_run_begins_the_axis():
    """Taken over, it was out before this run: minutes count from the first batch then, and so say they."""
    shown = DRAWN["taken over"]()
    assert "Hours since the first batch" in json.dumps(specification(shown))
    first, second = rectangles(shown)
    assert (first["start"], second["start"]) == pytest.approx((0, 601 / 60), rel=1e-4)


def test_many_batches_keep_every_row_in_the_sum():
    """Of hundreds some are drawn, and all are counted."""
    shown = DRAWN["hundreds"]()
    assert "700 batches: 6,993,000 succeeded, 7,000 expired" in shown.text
    assert len({bar["batch"] for bar in rectangles(shown)}) <= batchcharts.MOST_DRAWN


def test_the_order_of_rows_does_not_matter():
    """The batches of a shuffled frame are drawn in the order they were made."""
    shuffled = STAGES.sample(fraction=1, shuffle=True, seed=3)
    assert specification(draw(shuffled)) == specification(draw(STAGES))


counts = st.fixed_dictionaries(dict.fromkeys(COUNTS, st.integers(0, 10**5)))
minutes = st.floats(0, 3000)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(minutes, st.none() | minutes, counts), max_size=12), st.none() | minutes, minutes)
def test_shares_fill_their_bar_and_stay_in_the_picture(several, deadline, now):
    """Whatever the counts, no share is negative, none leaves its bar, and the whole is JSON."""
    rows = [batch(n, begun, took, **parts) for n, (begun, took, parts) in enumerate(several)]
    shown = draw(frame(*rows), now, deadline_minutes=deadline)
    json.dumps(specification(shown), allow_nan=False)
    height = specification(shown)["height"]
    for bar in rectangles(shown):
        assert bar["start"] < bar["end"]
        assert 0 <= bar["y"] < bar["y2"] <= height + 1e-6


def test_a_run_draws_its_batches_and_a_hybrid_its_deadline():
    """`run.plot.batches()` has the run's own frames, moments and deadline."""
    texts = pl.DataFrame({"text": [f"Text {n}" for n in range(12)]})
    with cs.Simulator(speed=600, batch_seconds=120) as simulator:
        plan = cs.plan(texts, "Shorten: {text}", model="claude-haiku-5-5", mode="hybrid", deadline=60)
        run = cs.wait(plan.run(simulator.client(), ledger=None, progress=False))
        assert run.plot.batches().text.startswith("1 batch: 11 succeeded, 1 answered live; ")
        assert run.plot.batches().text.endswith("in time for the deadline 1 h 00 m")
        by_batch = cs.wait(plan.replace(mode="batch").run(simulator.client(), ledger=None, progress=False))
        assert "deadline" not in by_batch.plot.batches().text
