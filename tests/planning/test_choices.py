"""The frames behind a plan's pictures: the frontier of options, and gains from other tiers or strategies."""

import polars as pl
import pytest
from running import WIDE_LIMITS, a_plan, reviews

import claudescale as cs
from claudescale.planning.choices import frontier


@pytest.mark.parametrize(
    ("rows", "on_it"),
    [
        ([(30.85, 15.0, 15.0), (1.54, 15.0 + 0.19 / 60, 15.01)], [False, True]),  # faster by 0.19 s
        ([(12.0, 30.0, 34.0), (11.0, 32.0, 36.0)], [False, True]),  # by less than either may vary
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


def test_the_card_says_what_the_next_tier_gains():
    """It is one line, and absent without a higher tier or when the limits belong to no tier."""
    assert "times faster, limited by requests." in repr(a_plan(reviews(5_000), tier="start"))
    few = repr(a_plan(reviews(20), tier="start"))
    assert "The next tier (build) gains nothing: the run is limited by latency." in few
    for tier in ("scale", WIDE_LIMITS):
        assert "next tier" not in repr(a_plan(reviews(5_000), tier=tier))


def test_other_lines_stand_for_the_model_only_where_they_can_take_its_place():
    """Each is the newest of its line, not retiring, generally available, priced, and able to do the task."""
    models = a_plan(reviews(9), tier=1, model="claude-sonnet-4-6").plot._models()
    lines = cs.models().filter(pl.col("model").is_in(models))
    assert models[0] == "claude-sonnet-4-6"
    assert len(models) == lines["line"].n_unique() == lines.height
    assert not any("mythos" in name for name in models)
