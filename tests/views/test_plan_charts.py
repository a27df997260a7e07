"""The pictures of a plan: a reader reads off them exactly what the plan says."""

from __future__ import annotations

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


def scores(*choices):
    """Return a trial's table in which each choice is slightly more expensive and better than the last."""
    rows = [
        (name, 40, 0.5 + n / 10, 0.4 + n / 10, 0.6 + n / 10, 0.1 + n / 100) for n, name in enumerate(choices)
    ]
    names = ["choice", "rows", "score", "score_low", "score_high", "dollars_per_1000_rows"]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(simulated=True)


@pytest.mark.slow
def test_every_chart_is_drawn_whole():
    """It is within 640 pixels, no label has a raw float, and nothing is black."""
    own, models = plan(), [*MODELS, "claude-haiku-4-5", "claude-sonnet-5", "claude-opus-5", "claude-opus-4-8"]
    for chart in (
        own.plot.frontier(),
        own.plot.frontier(mode=["live"]),
        own.plot.frontier(model=models, tier=[1, 2, 3, 4, "start"], mode=["live"]),
        own.plot.frontier(max_tokens=[100, 1_000], effort=[None, "low"], mode=["live"]),
        plan(mode="hybrid", deadline=90, budget=20).plot.frontier(),
        plan(deadline=60 * 24 * 300, budget=5_000).plot.frontier(tier=[1, 2], mode=["live"]),
        plan(deadline=10).plot.minutes(),
        plan(reviews(6), tier=1, deadline=10_000).plot.minutes(),
        plan(mode="batch").plot.savings(model=[OPUS, SONNET]),
        own.plot.concurrency(),
        plan_charts.quality(scores(*models), min_score=0.9),
    ):
        check_drawn_whole(chart.to_dict())


def test_the_names_of_a_trials_choices_are_grey_and_stand_in_turn_above_and_below():
    """Neighbors never touch; only points and intervals are blue where they clear the gate, or orange."""
    evidence = pl.DataFrame({"choice": MODELS, "clears": [False, True, True]})
    chart = plan_charts.quality(scores(*MODELS), evidence, 0.9)
    assert repr(chart).startswith(f"SIMULATED: 2 of 3 shown to reach 0.9; {OPUS} scores best, 0.7, for $0.12")
    rows = rows_of(chart, "above")
    assert [(row["name"], row["clears"], row["above"]) for row in rows] == [
        ("haiku-5-5", False, True), ("sonnet-5-5", True, False), ("opus-5-5", True, True),
    ]  # fmt: skip
    names = [layer for layer in chart.to_dict()["layer"] if "text" in layer["encoding"]]
    assert [layer["encoding"].get("color") for layer in names] == [None, None]


def test_nothing_to_send_is_said():
    """A plan without rows has words in place of a picture."""
    plot = plan(reviews(0)).plot
    charts = plot.frontier, plot.minutes, plot.savings, plot.concurrency
    assert {repr(chart()) for chart in charts} == {plan_charts.NOTHING}


def test_the_points_of_the_frontier_are_the_options_of_the_plan():
    """Their dollars, minutes and limits are those of `compare`; the unbeaten ones are joined."""
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


def test_the_plan_itself_is_among_the_points():
    """In any comparison the plan's own choice is drawn, ringed and named."""
    chart = plan(tier="scale").plot.frontier(model=[SONNET, OPUS], tier=["start"])
    (own,) = [row for row in rows_of(chart, "chosen") if row["chosen"]]
    assert own["below"] == "haiku-5-5 live scale"
    assert "nothing beats it" in repr(chart)


@pytest.mark.parametrize(("options", "near", "far"), [
    ({"deadline": 10, "budget": 0.5}, ["deadline 10 m 00 s", "budget\\n$0.50"], []),
    ({"deadline": 6e5, "budget": 900}, [], ["deadline 10,000 h 00 m \u2192", "\u2191 budget\\n$900.00"]),
])  # fmt: skip
def test_deadline_and_budget_are_lines_or_only_labels_where_they_are_far(options, near, far):
    """Each is a rule with its label, or an arrow where a rule would press the choices together."""
    chart = plan(**options).plot.frontier(tier=["start", "build"], mode=["live"])
    assert [word for word in words_of(chart) if "deadline" in word or "budget" in word] == near + far


def test_minutes_are_bars_with_what_each_tier_gains():
    """The times and limits are those of the tiers, and words above each bar say what it gains."""
    own = plan(deadline=10)
    chart = own.plot.minutes()
    rows = rows_of(chart, "tier")
    assert [row["tier"] for row in rows] == ["start", "build", "scale"]
    for row in rows:
        option = own.compare(tier=[row["tier"]], mode=["live"]).row(0, named=True)
        assert row["minutes"] == pytest.approx(option["minutes"], rel=1e-4)
        assert row["binding"] == option["binding"].replace("_", " ")
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
    price = own.options.filter(mode="batch")["dollars"].item()
    assert repr(chart).startswith(f"{dollars(price)} instead of $")
    assert "nothing saved; by batch" in repr(plan(reviews(500)).plot.savings())


def test_the_calls_needed_are_where_the_plan_stops_to_gain():
    """The line rises by Little's law up to the limit; runs that tried are points."""
    own = plan(reviews(3_000))
    most = 1_000
    enough = most / 60 * own.compiled.expected.seconds
    fewer, more = (own.replace(concurrency=calls).options for calls in (int(enough * 0.9), int(enough * 1.2)))
    assert fewer.filter(mode="live")["binding"].item() == "concurrency"
    assert more.filter(mode="live")["binding"].item() == "requests"
    steps = [row for row in rows_of(own.plot.concurrency(), "requests_per_minute") if "refused" not in row]
    for step in steps:
        rate = min(step["concurrency"] * 60 / own.compiled.expected.seconds, 1_000)
        assert step["requests_per_minute"] == pytest.approx(rate, rel=1e-4)
    words = f"{math.ceil(enough)} calls in flight are enough for 1,000 "
    assert repr(own.plot.concurrency()).startswith(words)


def test_runs_and_calls_of_ones_own_are_points_of_the_plans_picture():
    """They show calls in flight and the requests achieved; a limit far away is only named."""
    with simulator() as api:
        run = finished(a_plan(reviews(20), concurrency=4), api.client())
    (point,) = rows_of(plan(reviews(20)).plot.concurrency([run]), "refused")
    measured = {
        "concurrency": 4,
        "requests_per_minute": pytest.approx(20 / run.minutes, rel=1e-4),
        "refused": 0,
    }
    assert point == measured
    own = pl.DataFrame({"concurrency": [8], "requests_per_minute": [470.5], "refused": [3]})
    chart = plan(tier="scale").plot.concurrency(own)
    assert rows_of(chart, "refused") == own.to_dicts()
    assert '"domain": [0, 10.0]' in json.dumps(chart.to_dict())
