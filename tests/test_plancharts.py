"""The pictures of a plan: what they say is true, their labels keep apart, and they are seen anywhere."""

from __future__ import annotations

import itertools
import json
import re

import polars as pl
import pytest
import vl_convert
from drawing import labels_of_what_fits
from running import MODEL, WIDE_LIMITS, a_plan, reviews

import claudescale as cs
from claudescale.views import frontiercharts, marks, planplots, run_charts
from claudescale.views.placing import Box
from claudescale.views.planplots import POINTS

TEXTS = pl.concat([reviews(4_000), reviews(1_000)])
MODELS = ["claude-haiku-5-5", "claude-haiku-4-5", "claude-sonnet-5-5", "claude-sonnet-5", "claude-opus-5-5"]
MODELS += ["claude-opus-5", "claude-opus-4-8", "claude-sonnet-4-6"]
LIMITS = cs.Limits(requests_per_minute=50, input_tokens_per_minute=40_000, output_tokens_per_minute=8_000)
SYSTEM = "You read complaints of customers and answer in one word. " * 400


def plan(frame=TEXTS, **options):
    return a_plan(frame, **{"tier": "start", "max_tokens": 1024, **options})


def many(count):
    """Return points in a heap: more of them than there is room for names, all on the frontier."""
    rows = [(f"choice {n}", f"group {n % 9}", "live", "requests") for n in range(count)]
    points = pl.DataFrame(rows, schema=list(POINTS)[:4], orient="row").with_row_index("n")
    return points.select(
        "choice",
        "group",
        "mode",
        "binding",
        dollars=90.0 - pl.col("n"),
        dollars_p90=99.0,
        minutes=10.0 + pl.col("n") / 10,
        minutes_p90=20.0,
        frontier=True,
        best=True,
        chosen=pl.col("n") == count // 2,
        choices=1,
    )


FRONTIERS = {
    "usual": plan().plot.frontier,
    "one": lambda: plan().plot.frontier(mode=["live"]),
    "two": lambda: plan(mode="batch").plot.frontier(mode=["live", "batch"]),
    "twelve": lambda: plan().plot.frontier(model=MODELS[:3], tier=["start", "build"]),
    "forty": lambda: plan().plot.frontier(model=MODELS, tier=[1, 2, 3, 4, "start"], mode=["live"]),
    "not among them": lambda: plan(tier="scale").plot.frontier(model=MODELS[2:4], tier=["start"]),
    "hybrid": plan(mode="hybrid", deadline=90, budget=20).plot.frontier,
    "both far": lambda: plan(deadline=60 * 24 * 300, budget=5_000).plot.frontier(tier=[1, 2], mode=["live"]),
    "both too small": lambda: plan(reviews(500_000), deadline=0.01, budget=0.01).plot.frontier(mode=["live"]),
    "numbered": plan(tier=2, model="claude-opus-5-5", budget=3).plot.frontier,
    "own limits": plan(tier=LIMITS).plot.frontier,
    "values": lambda: plan(system=SYSTEM).plot.frontier(cache=[True, False], max_tokens=[50, 1024]),
    "long values": lambda: plan().plot.frontier(system=[None, SYSTEM, "Be brief."]),
    "concurrency": lambda: plan().plot.frontier(concurrency=[1, 2, 4, 8, 16, 32, None], mode=["live"]),
    "a heap": lambda: frontiercharts.frontier(many(60), deadline_minutes=12, budget_dollars=60),
    "weeks": lambda: plan(reviews(1_000_000)).plot.frontier(tier=[1]),
}
DRAWN = FRONTIERS | {
    "minutes": plan().plot.minutes,
    "minutes, deadline": plan(tier=2, deadline=30).plot.minutes,
    "minutes, deadline far": plan(deadline=6_000).plot.minutes,
    "minutes, batch": plan(mode="batch").plot.minutes,
    "minutes, latency": lambda: plan(reviews(9)).plot.minutes(["start", "scale"]),
    "minutes, own limits": lambda: plan(tier=LIMITS).plot.minutes([LIMITS, 1, "scale"]),
    "minutes, dear": plan(reviews(200_000), model="claude-opus-5-5").plot.minutes,
    "savings": plan().plot.savings,
    "savings, all": lambda: plan(mode="batch", system=SYSTEM, cache=True).plot.savings(MODELS[4]),
    "savings, models": lambda: plan().plot.savings(["claude-opus-5-5", "claude-sonnet-5-5"]),
}


def specification(shown):
    return run_charts.specification(shown.chart, shown.text)


def texts(node):
    """Return every word of a drawing with its place, from Vega's own scene."""
    if isinstance(node, list):
        for each in node:
            yield from texts(each)
    elif isinstance(node, dict):
        if node.get("marktype") == "text" and node.get("role") == "mark":
            yield from node["items"]
        for name, each in node.items():
            if name != "title":
                yield from texts(each)


def words_of(shown):
    """Return the box of each word in the picture, at the width of Arial."""
    found = []
    for item in texts(
        vl_convert.vegalite_to_scenegraph(specification(shown), vl_version="5.8")["scenegraph"]
    ):
        width = 5.6 * len(item["text"])
        left = item["x"] + item.get("dx", 0) - width * {"left": 0, "center": 0.5, "right": 1}[item["align"]]
        found.append((item["text"], Box(left, item["y"] - 5.5, left + width, item["y"] + 5.5)))
    return found


def points_of(shown):
    several = specification(shown)["datasets"].values()
    (found,) = [rows for rows in several if rows and "slow" in rows[0]]
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_every_chart_is_drawn_by_old_and_new_vega_lite_and_fits_the_page(name):
    """No picture is cut off at 640 pixels, nothing is black or a computer's number, and it stays the same."""
    shown = DRAWN[name]()
    drawing = specification(shown)
    labels = labels_of_what_fits(drawing)
    assert [
        label for label in labels if re.search(r"\de[+-]?\d|NaN|null|undefined|_tokens\b(?!=)", label)
    ] == []
    assert "#000" not in json.dumps(drawing).replace("#0072B2", "")
    assert specification(DRAWN[name]()) == drawing
    assert shown.text == drawing["description"]
    assert "nan" not in shown.text


@pytest.mark.parametrize("name", FRONTIERS)
def test_no_label_lies_upon_another(name):
    """With one choice, two, twelve or forty: every word has its place, inside the picture."""
    words = words_of(FRONTIERS[name]())
    crossing = [(a, b) for (a, one), (b, two) in itertools.combinations(words, 2) if one.covers(two)]
    assert crossing == []
    assert [text for text, box in words if box.left < -1 or box.right > marks.WIDTH + 20] == []


@pytest.mark.parametrize("name", FRONTIERS)
def test_the_choice_of_the_plan_is_marked_and_named(name):
    """Whatever is compared, the plan's own choice is among the points, with its name beside it."""
    shown = FRONTIERS[name]()
    (own,) = [point for point in points_of(shown) if point["chosen"]]
    assert own["choice"] in [text for text, _ in words_of(shown)]
    assert "this plan" in [text for text, _ in words_of(shown)]


def test_there_is_a_point_per_choice_and_one_for_those_that_differ_in_name_alone():
    """A batch takes as long on each tier and is drawn once; no choice is lost."""
    compared = plan().compare(model=MODELS[:3], tier=["start", "build"])
    points = planplots.choices(plan(), {"model": MODELS[:3], "tier": ["start", "build"]})
    assert points.schema == POINTS
    assert points["choices"].sum() == compared.height == 12
    assert points.filter(mode="batch")["choice"].to_list() == [
        "haiku-5-5 batch",
        "haiku-4-5 batch",
        "sonnet-5-5 batch",
    ]
    assert points.filter(mode="batch")["choices"].to_list() == [2, 2, 2]
    assert points.filter(mode="live").height == 6
    assert points.filter("chosen")["choice"].to_list() == ["haiku-5-5 live start"]
    assert points.filter("frontier")["choice"].to_list() == ["haiku-5-5 batch", "haiku-5-5 live build"]
    assert points.filter("best").height == 6


def test_the_usual_choices_are_current_models_and_neighbouring_tiers():
    """Without lists the picture has the plan's model beside other lines, and the tiers next to its own."""
    shown = plan(tier=3).plot.frontier()
    names = {point["choice"] for point in points_of(shown)}
    assert {
        "haiku-5-5 live tier 2",
        "haiku-5-5 live tier 3",
        "haiku-5-5 live tier 4",
        "haiku-5-5 batch",
    } <= names
    assert not any("tier 1" in name for name in names)
    assert {name.split("-")[0] for name in names} >= {"haiku", "sonnet", "opus"}


def test_a_batch_is_drawn_as_the_range_that_is_known():
    """From the usual hour to the day after which it expires; the key says so."""
    shown = FRONTIERS["two"]()
    (batch,) = [point for point in points_of(shown) if point["mode"] == "batch"]
    assert (batch["minutes"], batch["minutes_p90"]) == (60, 1440)
    assert (batch["usual"], batch["slow"]) == ("1 h 00 m", "24 h 00 m")
    assert "usual to 90th percentile, of a batch to 24 h" in [text for text, _ in words_of(shown)]


def test_axes_are_logarithmic_where_the_choices_span_much():
    """And linear, from zero, where they do not; the title says which."""
    near = json.dumps(specification(DRAWN["one"]()))
    assert '"log"' not in near
    assert '"domain": [0.0' in near
    assert json.dumps(specification(DRAWN["usual"]())).count('"log"') >= 2
    assert "US dollars, log scale" in json.dumps(specification(DRAWN["usual"]()))


def test_deadline_and_budget_are_lines_in_their_place_or_named_where_they_are_far():
    """A rule with its name; where it would press the choices together, an arrow to where it is."""
    said = [text for text, _ in words_of(DRAWN["hybrid"]())]
    assert {"deadline 1 h 30 m", "budget $20.00"} <= set(said)
    assert json.dumps(specification(DRAWN["hybrid"]())).count("[5, 4]") == 2
    far = DRAWN["both far"]()
    said = [text for text, _ in words_of(far)]
    assert "deadline 7,200 h 00 m \N{RIGHTWARDS ARROW}" in said
    assert "\N{UPWARDS ARROW} budget $5,000" in said
    assert "[5, 4]" not in json.dumps(specification(far))
    said = [text for text, _ in words_of(DRAWN["both too small"]())]
    assert "\N{LEFTWARDS ARROW} deadline 0.6 s" in said
    assert "\N{DOWNWARDS ARROW} budget $0.010" in said


def test_the_sentence_of_the_frontier_names_its_ends_and_where_the_plan_stands():
    """Cheapest, fastest, the plan's own, and what beats it: of its own model where there is such."""
    assert re.fullmatch(
        r"12 choices\. From \$\S+ in 1 h 00 m \(haiku-5-5 batch\) to \$\S+ in .+ \(haiku-5-5 live build\)\. "
        r"This plan, haiku-5-5 live start: \$\S+ in .+; haiku-5-5 live build beats it",
        DRAWN["twelve"]().text,
    )
    dear = plan(model="claude-sonnet-5-5", mode="batch").plot.frontier(model=MODELS[:3])
    assert dear.text.endswith("haiku-5-5 live beats it, nothing of sonnet-5-5 does")
    assert FRONTIERS["two"]().text.endswith("nothing beats it")


def test_nothing_to_send_is_said():
    """A plan without rows has axes and words."""
    empty = plan(reviews(0))
    assert empty.plot.frontier(mode=["live"]).text == empty.plot.minutes().text == "nothing sent"
    assert empty.plot.savings().text.startswith("$0.00")


def test_minutes_are_bars_with_what_limits_each_tier():
    """Colour and word of the binding limit, the usual time solid and the rest of the range pale."""
    shown = plan(tier=2, concurrency=1).plot.minutes([1, 2, "scale"])
    (bars,) = [rows for rows in specification(shown)["datasets"].values() if "limited by" in rows[0]]
    assert {(bar["tier"], bar["limited by"]) for bar in bars} >= {("scale", "concurrency")}
    solid = [bar["end"] for bar in bars if bar["opacity"] == 1]
    slow = plan(tier=2, concurrency=1).compare(tier=[1, 2, "scale"], mode=["live"])["minutes"]
    assert solid == pytest.approx(slow.to_list(), rel=1e-4)
    said = [text for text, _ in words_of(DRAWN["minutes, latency"]())]
    assert any(text.endswith("gains nothing: latency limits it") for text in said)
    assert any(text.startswith("start (this plan)") for text in said)


def test_savings_go_from_the_plain_price_down_to_the_plan():
    """Each step is named with what it is measured against; what is not used saves nothing, and says so."""
    mine = plan()
    shown = mine.plot.savings("claude-opus-5-5")
    (bars,) = [rows for rows in specification(shown)["datasets"].values() if "level" in rows[0]]
    assert [bar["part"] for bar in bars] == [
        "opus-5-5 live, row by row",
        "haiku-5-5, not opus-5-5",
        "identical rows once, not each",
        "no cache used",
        "no batch used",
        "this plan",
    ]
    assert bars[-1]["dollars"] == pytest.approx(mine.options["dollars"][0], rel=1e-4)
    assert sum(bar["dollars"] for bar in bars[1:]) == pytest.approx(bars[0]["dollars"], rel=1e-4)
    assert shown.text.endswith(f"; by batch {marks.dollars(mine.options['dollars'][0] / 2)} less")
    assert "by batch" not in plan(mode="batch").plot.savings().text


def test_a_plan_without_a_second_value_needs_no_key_of_colours():
    """One model, one tier: the points are told apart by mode alone."""
    said = [text for text, _ in words_of(FRONTIERS["two"]())]
    assert sorted(said)[:2] == ["batch", "batch"]
    assert MODEL.removeprefix("claude-") not in said
    assert plan(tier=WIDE_LIMITS).plot.minutes([WIDE_LIMITS]).text.startswith("Live on your limits: ")
