"""The pictures of the pace: what they say is true, they are drawn anywhere, and nothing is cut off."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest
from drawing import labels_of_what_fits
from running import a_plan, finished, reviews, simulator

from claudescale.views import inflight, pacecharts, run_charts
from claudescale.views.levels import LEVELS

STEADY = [("requests", n / 60, 10 - n % 3, 16.7) for n in range(600)]
DEEP = [("output_tokens", n / 10, 400.0 - 30 * n, 500.0) for n in range(40)]
FAR = [("input_tokens", 60.0 * n, 2e6 - n, 2e6) for n in range(50)]


def frame(*rows):
    return pl.DataFrame([row for several in rows for row in several], schema=LEVELS, orient="row")


def concurrency(seconds=0.65, most=1_000.0, measured=None):
    several = [1, 2, 4, 8, 16, 32, 64]
    rates = [min(60 * calls / seconds, most) for calls in several]
    return pacecharts.concurrency(
        pl.DataFrame({"concurrency": several, "requests_per_minute": rates}),
        requests_per_minute=most,
        binding="input_tokens",
        needed=most / 60 * seconds,
        measured=measured,
    )


TRIED = pl.DataFrame(
    {"run": ["concurrency=4", "concurrency=64"], "concurrency": [4.0, 64.0]}
    | {"requests_per_minute": [371.0, 1_203.0], "refused": [0, 12]}
)
DRAWN = {
    "one bucket": lambda: pacecharts.buckets(frame(STEADY)),
    "three buckets": lambda: pacecharts.buckets(frame(STEADY, FAR, DEEP)),
    "one call": lambda: pacecharts.buckets(frame([("requests", 0.0, 15.7, 16.7)])),
    "nothing": lambda: pacecharts.buckets(LEVELS.to_frame()),
    "slope and limit": concurrency,
    "with runs": lambda: concurrency(measured=TRIED),
    "one is enough": lambda: concurrency(most=50),
    "a large account": lambda: concurrency(most=400_000, seconds=2.5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_is_drawn_whole(name):
    """Old and new Vega-Lite draw it within 640 pixels, with readable labels and nothing hard black."""
    shown = DRAWN[name]()
    drawing = run_charts.specification(shown.chart, shown.text)
    labels = labels_of_what_fits(drawing)
    assert labels
    assert [label for label in labels if re.search(r"\de[+-]?\d|NaN|null|undefined|None", label)] == []
    assert "#000" not in json.dumps(drawing).replace("#0072B2", "")


def test_the_lowest_level_of_each_bucket_is_said():
    """A debt is no level: it is called one."""
    assert DRAWN["three buckets"]().text == (
        "Lowest level of each bucket: requests 48%, input tokens 100%, output tokens 0% (in debt)"
    )


def test_short_dips_are_not_averaged_away():
    """Of many calls in a short time the lowest level is drawn."""
    dip = [("requests", n / 10_000, 1.0 if n == 5_000 else 16.0, 16.0) for n in range(10_000)]
    shown = pacecharts.buckets(frame(dip))
    rows = run_charts.specification(shown.chart, shown.text)["datasets"]
    rows = next(iter(rows.values()))
    assert len(rows) <= pacecharts.MOST_BINS + 2
    assert min(row["share"] for row in rows) == 1 / 16


def test_what_was_measured_is_said_beside_what_is_needed():
    """The sentence gives the calls needed, and the best of the runs that tried."""
    assert concurrency(measured=TRIED).text == (
        "11 calls in flight are enough for 1,000 requests a minute; measured: at most 1,203, with 64"
    )
    assert DRAWN["one is enough"]().text == "1 call in flight is enough for 50 requests a minute"


def test_a_run_shows_its_buckets_and_a_plan_its_runs():
    """The pictures of a real run: every answered call drew on the buckets, and the runs are points."""
    with simulator() as api:
        plan = a_plan(reviews(30), concurrency=3)
        run = finished(plan, api.client())
    assert "requests" in run.plot.buckets(1).text
    plan = plan.calibrate(run)
    assert f"with {run.plan.concurrency}" in plan.plot.concurrency([run]).text
    assert inflight.needed(plan) == pytest.approx(60_000 / 60 * plan.expected.seconds)
