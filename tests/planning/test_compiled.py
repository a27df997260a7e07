"""Which way a plan goes: what meets its deadline and budget, and what cannot be met."""

import re

import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.planning import estimates


def auto(rows=200, **given):
    """Return a plan that takes some minutes live."""
    limits = cs.Limits(requests_per_minute=20, input_tokens_per_minute=1e6, output_tokens_per_minute=1e6)
    return a_plan(reviews(rows), **{"mode": "auto", "tier": limits, **given})


@pytest.mark.parametrize(
    ("deadline", "mode"), [(None, "batch"), (25 * 60, "batch"), (120, "hybrid"), (30, "live"), (12, "live")]
)
def test_auto_is_the_cheapest_that_is_in_time(deadline, mode):
    """Half the price where there is a day, a hybrid where there are hours, live where there are minutes."""
    assert auto(deadline=deadline).compiled.resolved() == mode


@pytest.mark.parametrize("deadline", [1, 12, 16, 40, 100, 2_000])
@pytest.mark.parametrize("budget", [0.002, 0.02, 0.1])
def test_what_is_chosen_meets_deadline_and_budget(deadline, budget):
    """It meets them at the 90th percentile, and nothing that is cheaper does."""
    plan = auto(deadline=deadline, budget=budget)
    rows = {row["mode"]: row for row in plan.options.iter_rows(named=True)}
    least = {"live": 0, "batch": 0, "hybrid": rows["live"]["minutes_p90"] + estimates.CANCEL_MINUTES}
    fits = {
        mode: row["dollars"]
        for mode, row in rows.items()
        if max(row["minutes_p90"], least[mode]) <= deadline and row["dollars_p90"] <= budget
    }
    if not fits:
        with pytest.raises(cs.PlanError):
            plan.compiled.resolved()
    else:
        assert fits[plan.compiled.resolved()] == min(fits.values())


def test_what_cannot_be_met_names_what_can():
    """An impossible deadline says one that would do, and that does; a budget, the cheapest way's price."""
    with pytest.raises(cs.errors.ImpossibleDeadline, match="mode='live', the quickest") as refused:
        auto(deadline=2).compiled.resolved()
    minutes = float(re.search(r"deadline=(\d+)", str(refused.value))[1])
    assert auto(deadline=minutes).compiled.resolved() == "live"
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"up to \$0\.\d+ in mode='batch'"):
        auto(budget=1e-6).compiled.resolved()
    with pytest.raises(cs.errors.ImpossibleDeadline, match=r"live, and mode='hybrid' keeps 5 m 00 s"):
        auto(mode="hybrid", deadline=12).compiled.check()
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"about \$.* enough for about \d+ rows"):
        auto(mode="live", budget=0.001).compiled.check()
    assert auto(mode="live", budget=0.001).compiled.check(part=0.01)["dollars"] < 0.001
    assert auto(deadline=0.001).compiled.likely_mode == "batch", "a picture of it can be drawn"
    assert "cannot be run" in repr(auto(deadline=0.001))


def test_a_hybrid_costs_a_batch_where_one_is_in_time_and_live_calls_at_most():
    """Its 90th percentile in minutes is the deadline, in dollars that of live calls."""
    for deadline, like in ((120, "batch"), (30, "live")):
        options = auto(mode="hybrid", deadline=deadline).options
        rows = {row["mode"]: row for row in options.iter_rows(named=True)}
        hybrid = rows["hybrid"]
        assert hybrid["dollars"] == rows[like]["dollars"]
        assert hybrid["dollars_p90"] == rows["live"]["dollars_p90"]
        assert (hybrid["minutes"], hybrid["minutes_p90"]) == (min(60, deadline), deadline)


def test_a_plan_shows_and_runs_what_it_chose():
    """The card marks the mode, and the run is one of that mode."""
    plan = a_plan(reviews(3), mode="auto", deadline=30)
    assert "live <-" in repr(plan)
    with simulator(speed=60) as api:
        run = finished(plan, api.client())
    assert (run.plan.mode, run.attempts["mode"].unique().to_list()) == ("live", ["live"])
