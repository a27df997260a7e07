"""The frames behind a plan's pictures: the frontier of options, and gains from other tiers or strategies."""

import polars as pl
import pytest
from running import MODEL, WIDE_LIMITS, a_plan, reviews

import claudescale as cs
from claudescale.api import prices
from claudescale.planning.choices import frontier

OPUS, SONNET = "claude-opus-5-5", "claude-sonnet-5-5"
SYSTEM = "You read complaints of customers and answer in one word. " * 400
REPEATED = pl.concat([reviews(50), reviews(30)])


def plan(rows=5_000, **options):
    """Return a plan on the first tier."""
    frame = options.pop("frame", reviews(rows))
    return a_plan(frame, **{"tier": "start", "max_tokens": 1024, **options})


@pytest.mark.parametrize(
    ("rows", "on_it"),
    [
        ([], []),
        ([(1.0, 60.0, 60.0), (2.0, 5.0, 5.0), (2.0, 90.0, 90.0)], [True, True, False]),
        ([(30.85, 15.0, 15.3), (1.54, 15.0 + 0.19 / 60, 15.3)], [False, True]),  # faster by 0.19 s
        ([(12.0, 30.0, 34.0), (11.0, 32.0, 36.0)], [False, True]),  # by less than either may vary
        ([(2.0, 60.0, 1440.0), (1.0, 60.0, 1440.0)], [False, True]),  # batches
        ([(1.004, 60.0, 61.0), (1.0, 10.0, 10.1)], [False, True]),  # as cheap as one that is far slower
        ([(2.0, 60.0, 61.0), (1.0, 60.0, 1440.0)], [True, True]),  # an hour that may become a day is no hour
        ([(None, 1.0, 1.0), (float("nan"), 1.0, 1.0), (5.0, 5.0, 5.0)], [False, False, True]),
        ([(0.1 + 0.2, 1.0, 1.0), (0.3, 1.0, 1.0)], [True, True]),
    ],
)
def test_the_frontier_is_what_nothing_is_felt_to_beat(rows, on_it):
    """No other choice is as cheap and as fast as one on it and noticeably better in either."""
    names = dict.fromkeys(("dollars", "minutes", "minutes_p90"), pl.Float64)
    assert frontier(pl.DataFrame(rows, schema=names, orient="row")).to_list() == on_it


def test_the_points_are_the_choices_and_the_plans_own():
    """Live on the higher tier and the batch are joined; a batch is one point for all tiers."""
    points = plan().plot._points({"tier": ["scale", "start"], "model": [OPUS, MODEL]})
    assert points["choices"].sum() == 8
    assert set(points.filter("frontier")["choice"]) == {"haiku-5-5 live scale", "haiku-5-5 batch"}
    assert points.filter("chosen")["choice"].to_list() == ["haiku-5-5 live start"]


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({}, "times faster, limited by requests."),
        ({"rows": 20}, "The next tier (build) gains nothing: the run is limited by latency."),
        ({"tier": "scale"}, None),
        ({"tier": WIDE_LIMITS}, None),
    ],
)
def test_the_card_says_what_the_next_tier_gains(given, note):
    """It is one line, and absent without a higher tier or when the limits belong to no tier."""
    card = repr(plan(**given))
    assert note in card if note else "next tier" not in card


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_the_savings_of_a_plan_go_from_everything_plain_to_what_it_costs(mode):
    """Every step saves the difference of its ends and begins where the previous one ended."""
    mine = plan(frame=REPEATED, mode=mode, system=SYSTEM, cache=True)
    steps = mine.plot._saved([OPUS, SONNET, MODEL])
    assert steps.schema == prices.SAVINGS
    assert steps["strategy"].to_list() == ["model", "model", "deduplication", "cache", "batch"]
    assert steps["dollars_without"][1:].to_list() == steps["dollars_with"][:-1].to_list()
    assert steps["dollars_saved"].equals(steps["dollars_without"] - steps["dollars_with"])
    assert steps["dollars_with"][-1] == pytest.approx(mine.options.filter(mode=mode)["dollars"].item())
    plain = plan(frame=REPEATED, model=OPUS, system=SYSTEM).options
    assert steps["dollars_without"][0] == pytest.approx(plain["dollars"][0] + plain["dollars_saved"][0])


def test_other_lines_stand_for_the_model_only_where_they_can_take_its_place():
    """Each is the newest of its line, not retiring, generally available, priced, and able to do the task."""
    models = plan(9, model="claude-sonnet-4-6").plot._models()
    lines = cs.models().filter(pl.col("model").is_in(models))
    assert models[0] == "claude-sonnet-4-6"
    assert len(models) == lines["line"].n_unique() == lines.height
    assert not any("mythos" in name for name in models)
