"""Judging: exact tests for right or wrong, an approximation for the rest, and no choice below the gate."""

import math
import random
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import claudescale as cs
from claudescale.evidence import judging


def share(right, rows):
    """Return scores with that many right rows."""
    return pl.Series([1.0] * right + [0.0] * (rows - right), dtype=pl.Float64)


def exact_tail(right, rows, gate):
    """Return the binomial tail, summed in exact fractions."""
    p = Fraction(gate)
    return sum(math.comb(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(right, rows + 1))


@settings(max_examples=40)
@given(
    st.integers(1, 100).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from(["0", "1/20", "1/2", "9/10", "99/100", "1"]),
)
def test_the_chance_of_a_share_is_the_binomial_tail(counts, gate):
    """For any count it equals the sum of exact fractions to ten digits."""
    right, rows = counts
    expected = float(exact_tail(right, rows, gate))
    assert judging.tail(right, rows, float(Fraction(gate))) == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_the_tails_of_many_rows_sum_to_one():
    """The two tails of a count omit only the probability of that count itself."""
    above = judging.tail(8_990, 10_000, 0.9)
    assert above + judging.tail(1_011, 10_000, 0.1) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (45, 50), (30, 30)])
def test_clopper_pearson_ends_where_either_tail_is_half_of_what_is_left(right, rows):
    """At each end the exact tail of the observed count is half of 1 - confidence, in exact fractions."""
    low, high = judging.clopper_pearson(right, rows, 0.9)
    half = pytest.approx(0.05, rel=1e-9)
    assert low == 0 if right == 0 else float(exact_tail(right, rows, low)) == half
    assert high == 1 if right == rows else float(1 - exact_tail(right + 1, rows, high)) == half


def test_chances_are_corrected_for_their_number_by_holm():
    """The smallest is tripled, the next doubled, none falls below the one before; the certain choice is 0."""
    counts = {"c": (59, 60), "a": (58, 60), "b": (58, 60)}
    scores = {name: share(*counts[name]) for name in "abc"}
    table = judging.evidence(scores, 0.9, 0.95)
    chances = [
        exact_tail(*count, "9/10") * times for count, times in zip(counts.values(), (3, 2, 2), strict=True)
    ]
    assert table.schema == judging.EVIDENCE
    assert table["choice"].to_list() == list(counts)
    assert table["chance"].to_list() == pytest.approx([float(chance) for chance in chances], rel=1e-9)
    assert table["clears"].to_list() == [float(chance) <= 0.05 for chance in chances]
    assert judging.evidence(scores, 0.9, 0.95, certain="b").row(0)[::3] == ("b", 0.0)


def test_other_scores_are_bootstrapped_near_the_normal_interval():
    """For 400 normal scores both ends are near mean ± 1.96 standard errors, and the seed repeats them."""
    luck = random.Random(4)
    scores = pl.Series([luck.gauss(3.0, 1.0) for _ in range(400)])
    half = 1.96 * scores.std() / 20
    ends = judging.interval(scores, seed=1)
    assert ends == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.02)
    assert ends == judging.interval(scores, seed=1) != judging.interval(scores, seed=2)
    assert judging.chance(scores, 2.5) < 0.01
    assert judging.chance(scores, scores.mean()) == pytest.approx(0.5, abs=0.15)

    for few in (pl.Series([0.8] * 50), scores.head(28)):
        assert (judging.interval(few), judging.chance(few, 0.1)) == ((None, None), 1), "they say nothing"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"one": (50, 100), "other": (60, 100)}, "other scores 0.6 on 100 rows; no choice scores"),
        ({"one": (0, 0)}, "no row has a score"),
    ],
)
def test_why_nothing_clears_is_said(counts, words):
    """The reason gives the nearest choice and its score, and invents no number of rows."""
    reason, more = judging.shortfall({name: share(*count) for name, count in counts.items()}, 0.9, 0.95)
    assert (words in reason, more) == (True, None)


def test_the_rows_asked_for_are_enough_if_they_are_all_right():
    """An all-right sample of the size asked for clears the gate, and one with a row less does not."""
    reason, more = judging.shortfall({"one": share(20, 20)}, 0.9, 0.95)
    assert f"one scores 1 on 20 rows; about {more} rows more would settle it" in reason
    assert judging.tail(20 + more, 20 + more, 0.9) <= 0.05 < judging.tail(19 + more, 19 + more, 0.9)


def test_the_truth_may_stand_in_a_column_that_results_rename():
    """Earlier replies that were found to be right are `reply_1` beside the new ones."""
    frame = pl.DataFrame({"text": ["a", "b"], "reply": ["good", "bad"]})
    plan = cs.plan(frame, "{text}", model="claude-haiku-5-5", returns=pl.Enum(["good", "bad"]))
    results = pl.DataFrame({"text": ["a", "b"], "reply_1": ["good", "bad"], "reply": ["bad", "bad"]})
    assert judging.scoring("reply", plan).values(results).to_list() == [False, True]
