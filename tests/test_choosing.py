"""mode="auto": the cheapest way that meets deadline and budget nine times in ten, or why there is none."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.planning import choices, estimates
from claudescale.planning.choices import mode_of as chosen


def auto(rows=200, **options):
    """Return a plan that takes some minutes live."""
    limits = cs.Limits(
        requests_per_minute=20, input_tokens_per_minute=1_000_000, output_tokens_per_minute=1_000_000
    )
    return a_plan(reviews(rows), mode="auto", tier=limits, **options)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "batch"),
        ({"deadline": 25 * 60}, "batch"),
        ({"deadline": 120}, "hybrid"),
        ({"deadline": 30}, "live"),
        ({"deadline": 12}, "live"),
    ],
)
def test_the_cheapest_that_is_in_time(options, mode):
    """Half the price where there is a day, a hybrid where there are hours, live where there are minutes."""
    assert chosen(auto(**options)) == mode


@given(st.floats(1, 3_000), st.floats(1e-4, 10))
def test_what_is_chosen_meets_both(deadline, budget):
    """Whatever the wishes: what is chosen meets them at the 90th percentile, and nothing cheaper does."""
    plan = auto(deadline=deadline, budget=budget)
    try:
        mode = chosen(plan)
    except cs.PlanError:
        return
    rows = {row["mode"]: row for row in plan.options.iter_rows(named=True)}
    assert rows[mode]["minutes_p90"] <= deadline
    assert rows[mode]["dollars_p90"] <= budget
    for other, row in rows.items():
        fits = row["minutes_p90"] <= deadline and row["dollars_p90"] <= budget
        if other == "hybrid":
            fits = fits and rows["live"]["minutes_p90"] + feasibility.spare_minutes(plan) <= deadline
        assert not fits or row["dollars"] >= rows[mode]["dollars"]


def test_an_impossible_deadline_names_one_that_is_possible():
    """What is refused says what would do, and that does."""
    with pytest.raises(cs.PlanError, match="quickest, live") as refused:
        chosen(auto(deadline=2))
    minutes = float(re.search(r"deadline=(\d+)", str(refused.value))[1])
    assert chosen(auto(deadline=minutes)) == "live"


def test_an_impossible_budget_names_what_is_needed():
    """The cheapest way that is in time is named with its dollars."""
    with pytest.raises(cs.PlanError, match=r"'batch' costs up to \$"):
        chosen(auto(budget=1e-6))


def test_a_plan_shows_and_runs_what_it_chose():
    """The card marks the mode, and the run is one of that mode."""
    plan = auto(rows=3, deadline=30, prompt="Name it: {text}")
    assert "live <-" in repr(plan)
    with simulator(speed=60, batch_seconds=60.0) as api:
        assert finished(plan, api.client()).attempts["mode"].unique().to_list() == ["live"]
        cheap = finished(a_plan(reviews(3), mode="auto"), api.client())
    assert cheap.attempts["mode"].unique().to_list() == ["batch"]
    assert choosing.resolved(cheap.plan) is cheap.plan
