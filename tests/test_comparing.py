"""Which of several options nothing beats."""

from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import MODEL, WIDE_LIMITS, a_plan, finished, reviews, simulator

from claudescale.errors import PlanError
from claudescale.planning import estimates
from claudescale.planning.choices import CACHE_HIT_SHARE, FELT_MINUTES, FELT_SHARE, FELT_SLOW, frontier


def options(*rows):
    return pl.DataFrame(rows, schema={"dollars": pl.Float64, "minutes": pl.Float64}, orient="row")


figure = st.sampled_from([0.0, 0.5, 1.0, 1.005, 2.0, 3.0, 60.0, 1e6]) | st.floats(0, 1e6).map(
    lambda x: round(x, 3)
)


def worse(one, other):
    """Whether an option is felt to be worse than another in dollars, usual minutes or slow ones."""
    (dollars, *times), (other_dollars, *other_times) = one, other
    alike = max(min(times[1] - times[0], other_times[1] - other_times[0]), FELT_MINUTES)
    dearer = dollars - other_dollars > FELT_SHARE * min(dollars, other_dollars)
    slower = times[0] - other_times[0] > alike
    slow = max(alike, FELT_SLOW * min(times[1], other_times[1]))
    return dearer or slower or times[1] - other_times[1] > slow


@given(st.lists(st.tuples(figure, figure, figure), max_size=30))
def test_the_frontier_is_what_nothing_dominates(rows):
    """By the definition, pair by pair: nothing is felt to be as good in all and better in one; never all."""
    rows = [(dollars, minutes, minutes + span) for dollars, minutes, span in rows]
    names = ("dollars", "minutes", "minutes_p90")
    marked = frontier(pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Float64), orient="row"))
    assert marked.select(names).rows() == rows
    for one, found in zip(rows, marked["frontier"], strict=True):
        assert found is not any(worse(one, other) and not worse(other, one) for other in rows)
    assert marked["frontier"].any() or not rows


@pytest.mark.parametrize(
    ("dear", "cheap"),
    [
        ((30.85, 15.0, 15.3), (1.54, 15.0 + 0.19 / 60, 15.3)),  # by 0.19 s
        ((30.85, 0.050, 0.052), (1.54, 0.053, 0.055)),  # both are there at once
        ((12.0, 30.0, 34.0), (11.0, 32.0, 36.0)),  # by less than either may vary
        ((2.0, 60.0, 1440.0), (1.0, 60.0, 1440.0)),  # batches
        ((1.004, 60.0, 61.0), (1.0, 10.0, 10.1)),  # as cheap as one that is far slower
    ],
)
def test_a_difference_that_nobody_feels_buys_nothing(dear, cheap):
    """Time that is won is worth dollars only where it is felt; the dearer option is beaten."""
    names = ("dollars", "minutes", "minutes_p90")
    found = frontier(pl.DataFrame([dear, cheap], schema=names, orient="row"))
    assert found["frontier"].to_list() == [False, True]


def test_a_batch_may_take_a_day_and_is_not_as_quick_as_an_hour():
    """Usual times that are alike are not the whole: what a batch may take counts too."""
    names = ("dollars", "minutes", "minutes_p90")
    rows = [(2.0, 60.0, 61.0), (1.0, 60.0, 1440.0)]
    assert frontier(pl.DataFrame(rows, schema=names, orient="row"))["frontier"].to_list() == [True, True]


def test_models_are_compared_by_what_is_felt():
    """Opus in a few tenths of a second less does not stand beside Haiku at a twentieth of its price."""
    table = a_plan(reviews(40)).compare(model=[MODEL, "claude-opus-5-5"], mode=["live"])
    found = frontier(table.with_columns(minutes=pl.col("minutes") + pl.Series([0.19 / 60, 0.0])))
    assert found.filter("frontier")["model"].to_list() == [MODEL]


def test_unknown_figures_are_not_on_the_frontier_and_rounding_decides_nothing():
    """Null, NaN and infinity beat nothing; 0.1 + 0.2 is as cheap as 0.3."""
    nothing = options((None, 1.0), (float("nan"), 1.0), (1.0, float("inf")), (5.0, 5.0))
    assert frontier(nothing)["frontier"].to_list() == [False, False, False, True]
    assert frontier(options((0.1 + 0.2, 1.0), (0.3, 1.0)))["frontier"].to_list() == [True, True]


def test_the_frontier_of_a_plan_has_its_cheapest_and_its_fastest():
    """Over tiers and modes: a batch is cheapest, live on the higher tier fastest, on the lower beaten."""
    compared = a_plan(reviews(3000)).compare(tier=["start", "scale"])
    marked = frontier(compared).filter("frontier").select("tier", "mode").rows()
    assert marked == [("start", "batch"), ("scale", "live"), ("scale", "batch")]


def test_what_is_to_be_compared_is_a_list():
    """A word alone is refused, with what to type."""
    with pytest.raises(PlanError, match=r"model=\[\.\.\.\]"):
        a_plan(reviews(1)).compare(model=MODEL)


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        (["bath"], "'live', 'batch', 'hybrid'"),
        (["auto"], "leave mode out"),
        (["hybrid"], r"deadline=\[60, 90\]"),
    ],
)
def test_a_mode_that_would_leave_nothing_is_told(modes, words):
    """A misspelt mode, auto, and a hybrid without a deadline: an error, not an empty table."""
    with pytest.raises(PlanError, match=words):
        a_plan(reviews(1)).compare(mode=modes)


def test_choices_can_be_read_in_their_columns():
    """Tiers have one name however they are given, limits of one's own are short, deadlines are minutes."""
    plan = a_plan(reviews(3), tier="start")
    table = plan.compare(tier=[1, "Build", WIDE_LIMITS], mode=["live"])
    assert table["tier"].to_list() == ["tier 1", "build", "Limits(60 k, 100 M, 100 M)"]
    times = plan.compare(deadline=[None, 30, timedelta(hours=2)], mode=["hybrid"])
    assert times["deadline"].to_list() == [30, 120]


SYSTEM = "You read complaints of customers and answer in one word. " * 400


def test_where_the_cache_varies_its_hits_are_told():
    """All but the first live, the middle of the documented range in batches, none where nothing is cached."""
    plan = a_plan(reviews(100), system=SYSTEM)
    table = plan.compare(model=[MODEL, "claude-haiku-4-5"], cache=[False, True], deadline=[90])
    hits = {row[:3]: row[3] for row in table.select("model", "cache", "mode", CACHE_HIT_SHARE).rows()}
    assert hits[MODEL, True, "live"] == 0.99
    assert hits[MODEL, True, "batch"] == estimates.BATCH_HIT_SHARE == 0.64
    assert hits[MODEL, True, "hybrid"] is None
    assert {hits[MODEL, False, mode] for mode in ("live", "batch", "hybrid")} == {0.0}
    short = plan.replace(system="Be brief.").compare(cache=[True])
    assert short[CACHE_HIT_SHARE].to_list() == [0.0, 0.0]
    assert CACHE_HIT_SHARE not in plan.compare(tier=["start"]).columns


def test_combinations_are_what_the_changed_plan_says():
    """Every row is that of `replace` and `options`, though totals are shared between tiers."""
    plan = a_plan(reviews(50), system=SYSTEM)
    lists = {
        "tier": [1, "build"],
        "model": [MODEL, "claude-opus-5-5"],
        "cache": [True, False],
        "share": [0.5, 1.0],
    }
    table = plan.compare(**lists)
    assert table.height == 32
    names = list(lists)
    for row in table.iter_rows(named=True):
        other = plan.replace(**{name: row[name] for name in names})
        assert {name: row[name] for name in estimates.OPTIONS} == pytest.approx(
            estimates.option(other.options, row["mode"])
        )


def test_a_pilot_speaks_for_what_it_was_run_on_and_tells_how_long_other_replies_are():
    """The own model stays calibrated; another's replies are as long, in doubt, and think in addition."""
    with simulator() as api:
        plan = a_plan(reviews(60), system=SYSTEM, max_tokens=1024)
        plan = plan.calibrate(finished(plan.head(20), api.client()))
    models = [MODEL, "claude-sonnet-5-5", "claude-opus-5-5"]
    table = plan.compare(model=models, cache=[False, True], mode=["live"])
    own, cached, sonnet, _, opus, _ = table.iter_rows(named=True)
    assert own["dollars"] == pytest.approx(plan.options["dollars"][0])
    assert own["dollars_p90"] == pytest.approx(plan.options["dollars_p90"][0])
    assert cached["output_tokens"] == own["output_tokens"] == sonnet["output_tokens"]
    assert cached["dollars"] < own["dollars"] / 2
    assert opus["output_tokens"] == pytest.approx(own["output_tokens"] + 60 * 50, abs=1)
    assert sonnet["dollars_p90"] / sonnet["dollars"] > own["dollars_p90"] / own["dollars"]
    brief = plan.compare(model=["claude-sonnet-5-5"], system=["Be brief."], mode=["live"])
    assert brief["output_tokens"][0] == 60 * 195
