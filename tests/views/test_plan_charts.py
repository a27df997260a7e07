"""The pictures of a plan: a reader reads off them exactly what the plan says."""

import json
import math

import polars as pl
import pytest
from drawing import check_drawn_whole, rows_of, words_of
from running import a_plan, finished, reviews, simulator

from claudescale.text import dollars, duration
from claudescale.views import plan_charts

TEXTS = pl.concat([reviews(4_000), reviews(1_000)])
HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"


def plan(frame=TEXTS, **options):
    """Return a plan on the first tier."""
    return a_plan(frame, **{"tier": "start", "max_tokens": 1024, **options})


@pytest.mark.slow
def test_every_chart_is_drawn_whole():
    """It is within 640 pixels, no label has a raw float, and nothing is black."""
    own, older = plan(), ["claude-haiku-4-5", "claude-sonnet-5", "claude-opus-5", "claude-opus-4-8"]
    for chart in (
        own.plot.frontier(mode=["live"]),
        own.plot.frontier(model=[HAIKU, SONNET, OPUS, *older], tier=[1, 2, 3, 4, "start"], mode=["live"]),
        own.plot.frontier(max_tokens=[100, 1_000], effort=[None, "low"], mode=["live"]),
        plan(mode="hybrid", deadline=90, budget=20).plot.frontier(),
        plan(deadline=60 * 24 * 300, budget=5_000).plot.frontier(tier=[1, 2], mode=["live"]),
        plan(reviews(6), tier=1, deadline=10_000).plot.minutes(),
        plan(mode="batch").plot.savings(model=[OPUS, SONNET]),
        own.plot.concurrency(),
    ):
        check_drawn_whole(chart.to_dict())


def test_nothing_to_send_is_said():
    """A plan without rows has words in place of a picture."""
    plot = plan(reviews(0)).plot
    charts = plot.frontier, plot.minutes, plot.savings, plot.concurrency
    assert {repr(chart()) for chart in charts} == {plan_charts.NOTHING}


def test_the_points_of_the_frontier_are_the_options_of_the_plan():
    """Figures are those of `compare`; the unbeaten are joined, the plan's own is ringed, wishes are lines."""
    own = plan()
    chart = own.plot.frontier(model=[HAIKU, OPUS], tier=["start", "build"])
    points = {row["choice"]: row for row in rows_of(chart, "choice")}
    live = own.compare(model=[OPUS], tier=["build"], mode=["live"]).row(0, named=True)
    point, figures = points["opus-5-5 live build"], ["dollars", "minutes", "minutes_p90"]
    assert [point[name] for name in figures] == pytest.approx([live[name] for name in figures], rel=1e-4)
    assert (point["binding"], point["time"]) == (live["binding"].replace("_", " "), duration(live["minutes"]))
    for what, names in {
        "frontier": {"haiku-5-5 live build", "haiku-5-5 batch"},
        "below": {"haiku-5-5 live build", "haiku-5-5 batch"},
        "chosen": {"haiku-5-5 live start"},
    }.items():
        assert {name for name, row in points.items() if row[what]} == names
    assert "This plan (ringed), haiku-5-5 live start" in repr(chart)
    assert "haiku-5-5 live build beats it" in repr(chart)
    own = plan(tier="scale", deadline=10, budget=0.5)
    chart = own.plot.frontier(model=[SONNET, OPUS], tier=["start"])  # without the plan's own
    assert {"deadline 10 m 00 s", "budget\\n$0.50"} <= set(words_of(chart))
    assert [row["below"] for row in rows_of(chart, "chosen") if row["chosen"]] == ["haiku-5-5 live scale"]
    assert "nothing beats it" in repr(chart)


def test_minutes_are_bars_with_what_each_tier_gains():
    """The times and limits are those of the tiers, and words above each bar say what it gains."""
    own = plan(deadline=10)
    chart = own.plot.minutes()
    rows = rows_of(chart, "tier")
    options = own.compare(tier=["start", "build", "scale"], mode=["live"])
    assert [row["tier"] for row in rows] == options["tier"].to_list()
    assert [row["minutes"] for row in rows] == pytest.approx(options["minutes"].to_list(), rel=1e-4)
    assert [row["binding"] for row in rows] == options["binding"].str.replace("_", " ").to_list()
    assert rows[0]["words"].startswith("start (this plan): ")
    assert "times faster" in rows[1]["words"]
    assert repr(chart) == f"Live on start: {rows[0]['words'].partition(': ')[2]}, limited by requests"
    assert "deadline 10 m 00 s" in words_of(chart)


def test_savings_go_from_the_plain_price_down_to_the_plan():
    """Each step is named with its counterfactual, and all add up; an unused strategy has no row."""
    own = plan(mode="batch", system="You answer customers in one word. " * 600, cache=True)
    chart = own.plot.savings(model=[OPUS, HAIKU])
    rows = rows_of(chart, "part")
    assert [row["part"] for row in rows] == [
        "opus-5-5 live, row by row", "haiku-5-5, not opus-5-5", "identical rows sent once", "cached",
        "by batch, not live", "this plan",
    ]  # fmt: skip
    plain, price = own.replace(model=OPUS, cache=False).options, own.options.filter(mode="batch")["dollars"]
    assert rows[0]["end"] == pytest.approx(plain["dollars"][0] + plain["dollars_saved"][0], rel=1e-4)
    assert rows[-2]["end"] == pytest.approx(price.item(), rel=1e-4)  # a batch hits the cache less: it is up
    assert repr(chart).startswith(f"{dollars(price.item())} instead of")
    assert "nothing saved; by batch" in repr(plan(reviews(500)).plot.savings())


def test_calls_in_flight_gain_up_to_a_limit_and_runs_are_points_beside_it():
    """The line rises by Little's law up to the limit; a run shows the requests it achieved."""
    own = plan(reviews(3_000))
    enough = 1_000 / 60 * own.compiled.expected.seconds
    steps = rows_of(own.plot.concurrency(), "requests_per_minute")
    assert [row["requests_per_minute"] for row in steps] == [0, 1_000, 1_000]
    assert steps[1]["concurrency"] == pytest.approx(enough, rel=1e-4)
    words = f"{math.ceil(enough)} calls in flight are enough for 1,000 "
    assert repr(own.plot.concurrency()).startswith(words)
    with simulator() as api:
        run = finished(a_plan(reviews(20), concurrency=4), api.client())
    rate = pytest.approx(20 / run.minutes, rel=1e-4)
    points = rows_of(plan(reviews(20)).plot.concurrency([run]), "refused")
    assert points == [{"concurrency": 4, "requests_per_minute": rate, "refused": 0}]
    tried = pl.DataFrame({"concurrency": [8], "requests_per_minute": [470.5], "refused": [3]})
    chart = plan(tier="scale").plot.concurrency(tried)  # its limit is far away, and only named
    assert rows_of(chart, "refused") == tried.to_dicts()
    assert '"domain": [0, 10.0]' in json.dumps(chart.to_dict())
