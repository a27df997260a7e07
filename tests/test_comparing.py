"""Which of several options nothing beats."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import MODEL, a_plan, reviews

from claudescale.comparing import frontier
from claudescale.errors import PlanError


def options(*rows):
    return pl.DataFrame(rows, schema={"dollars": pl.Float64, "minutes": pl.Float64}, orient="row")


figure = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 60.0, 1e6]) | st.floats(0, 1e6).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(figure, figure), max_size=30))
def test_the_frontier_is_what_nothing_dominates(rows):
    """By the definition, pair by pair: nothing is as good in both figures and better in one."""
    marked = frontier(options(*rows))
    assert marked.select("dollars", "minutes").rows() == rows
    for (dollars, minutes), found in zip(rows, marked["frontier"], strict=True):
        beaten = any(x <= dollars and y <= minutes and (x, y) != (dollars, minutes) for x, y in rows)
        assert found is not beaten


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
