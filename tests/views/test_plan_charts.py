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
MODELS = [HAIKU, SONNET, OPUS]


def plan(frame=TEXTS, **options):
    """Return a plan on the first tier."""
    return a_plan(frame, **{"tier": "start", "max_tokens": 1024, **options})


def quality(*choices):
    """Return the chart of a trial in which each choice is more expensive and better than the last."""
    tenths = pl.int_range(len(choices), eager=True) / 10
    figures = {"score": 0.5 + tenths, "score_low": 0.4 + tenths, "score_high": 0.6 + tenths}
    trial = pl.DataFrame({"choice": choices, **figures, "dollars_per_1000_rows": 0.1 + tenths / 10})
    return plan_charts.quality(trial.with_columns(rows=40, simulated=True), min_score=0.9)


@pytest.mark.slow
def test_every_chart_is_drawn_whole():
    """It is within 640 pixels, no label has a raw float, and nothing is black."""
    own, models = plan(), [*MODELS, "claude-haiku-4-5", "claude-sonnet-5", "claude-opus-5", "claude-opus-4-8"]
    for chart in (
        own.plot.frontier(mode=["live"]),
        own.plot.frontier(model=models, tier=[1, 2, 3, 4, "start"], mode=["live"]),
        own.plot.frontier(max_tokens=[100, 1_000], effort=[None, "low"], mode=["live"]),
        plan(mode="hybrid", deadline=90, budget=20).plot.frontier(),
        plan(deadline=60 * 24 * 300, budget=5_000).plot.frontier(tier=[1, 2], mode=["live"]),
        plan(reviews(6), tier=1, deadline=10_000).plot.minutes(),
        plan(mode="batch").plot.savings(model=[OPUS, SONNET]),
        own.plot.concurrency(),
        quality(*models),
    ):
        check_drawn_whole(chart.to_dict())


def test_nothing_to_send_is_said():
    """A plan without rows has words in place of a picture."""
    plot = plan(reviews(0)).plot
    charts = plot.frontier, plot.minutes, plot.savings, plot.concurrency
    assert {repr(chart()) for chart in charts} == {plan_charts.NOTHING}


def test_the_points_of_the_frontier_are_the_options_of_the_plan():
    """Their figures are those of `compare`; the unbeaten ones are joined, and the plan's own is ringed."""
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
    chart = plan(tier="scale").plot.frontier(model=[SONNET, OPUS], tier=["start"])  # without the plan's own
    assert [row["below"] for row in rows_of(chart, "chosen") if row["chosen"]] == ["haiku-5-5 live scale"]
    assert "nothing beats it" in repr(chart)


@pytest.mark.parametrize(("options", "labels"), [
    ({"deadline": 10, "budget": 0.5}, ["deadline 10 m 00 s", "budget\\n$0.50"]),
    ({"deadline": 6e5, "budget": 900}, ["deadline 10,000 h 00 m \u2192", "\u2191 budget\\n$900.00"]),
])  # fmt: skip
def test_deadline_and_budget_are_lines_or_only_labels_where_they_are_far(options, labels):
    """Each is a rule with its label, or an arrow where a rule would press the choices together."""
    chart = plan(**options).plot.frontier(tier=["start", "build"], mode=["live"])
    assert [word for word in words_of(chart) if "deadline" in word or "budget" in word] == labels


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
    """Each step is named with its counterfactual; an unused strategy has no row."""
    own = plan(mode="batch")
    chart = own.plot.savings(model=OPUS)
    assert [row["part"] for row in rows_of(chart, "part")] == [
        "opus-5-5 live, row by row", "haiku-5-5, not opus-5-5", "identical rows sent once",
        "by batch, not live", "this plan",
    ]  # fmt: skip
    assert repr(chart).startswith(f"{dollars(own.options.filter(mode='batch')['dollars'].item())} instead of")
    assert "nothing saved; by batch" in repr(plan(reviews(500)).plot.savings())


def test_the_calls_needed_are_where_the_plan_stops_to_gain():
    """The line rises by Little's law up to the limit, where the plan's own limit changes."""
    own = plan(reviews(3_000))
    enough = 1_000 / 60 * own.compiled.expected.seconds
    for calls, binding in ((int(enough * 0.9), "concurrency"), (int(enough * 1.2), "requests")):
        assert own.replace(concurrency=calls).options.filter(mode="live")["binding"].item() == binding
    steps = rows_of(own.plot.concurrency(), "requests_per_minute")
    assert [row["requests_per_minute"] for row in steps] == [0, 1_000, 1_000]
    assert steps[1]["concurrency"] == pytest.approx(enough, rel=1e-4)
    words = f"{math.ceil(enough)} calls in flight are enough for 1,000 "
    assert repr(own.plot.concurrency()).startswith(words)


def test_runs_and_calls_of_ones_own_are_points_of_the_plans_picture():
    """They show calls in flight and the requests achieved; a limit far away is only named."""
    with simulator() as api:
        run = finished(a_plan(reviews(20), concurrency=4), api.client())
    rate = pytest.approx(20 / run.minutes, rel=1e-4)
    points = rows_of(plan(reviews(20)).plot.concurrency([run]), "refused")
    assert points == [{"concurrency": 4, "requests_per_minute": rate, "refused": 0}]
    own = pl.DataFrame({"concurrency": [8], "requests_per_minute": [470.5], "refused": [3]})
    chart = plan(tier="scale").plot.concurrency(own)
    assert rows_of(chart, "refused") == own.to_dicts()
    assert '"domain": [0, 10.0]' in json.dumps(chart.to_dict())
