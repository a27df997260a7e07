"""Judging: exact tests for right or wrong, an approximation for the rest, and no choice below the gate."""

import math
import random
from fractions import Fraction

import polars as pl
import pytest

from claudescale.evidence import judging


def share(right, rows):
    """Return scores with that many right rows."""
    return pl.Series([1.0] * right + [0.0] * (rows - right), dtype=pl.Float64)


def exact_tail(right, rows, gate):
    """Return the binomial tail, summed in exact integers."""
    part, whole = Fraction(gate).as_integer_ratio()
    terms = (math.comb(rows, k) * part**k * (whole - part) ** (rows - k) for k in range(right, rows + 1))
    return float(Fraction(sum(terms), whole**rows))


@pytest.mark.parametrize("gate", ["0", "1/20", "1/2", "9/10", "99/100", "1"])
def test_the_chance_of_a_share_is_the_binomial_tail(gate):
    """For any count it equals the sum of exact fractions to ten digits."""
    counts = [(right, rows) for rows in (1, 2, 60) for right in range(rows + 1)]
    for right, rows in [*counts, (1_890, 2_000)]:
        tail = judging.tail(right, rows, float(Fraction(gate)))
        assert tail == pytest.approx(exact_tail(right, rows, gate), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (45, 50), (30, 30)])
def test_clopper_pearson_ends_where_either_tail_is_half_of_what_is_left(right, rows):
    """At each end the exact tail of the observed count is half of 1 - confidence, in exact fractions."""
    low, high = judging.clopper_pearson(right, rows, 0.9)
    half = pytest.approx(0.05, rel=1e-9)
    assert low == 0 if right == 0 else exact_tail(right, rows, low) == half
    assert high == 1 if right == rows else 1 - exact_tail(right + 1, rows, high) == half


def test_chances_are_corrected_for_their_number_by_holm():
    """The smallest is tripled, the next doubled, none falls below the one before; the certain choice is 0."""
    scores = {"a": share(58, 60), "b": share(58, 60), "c": share(59, 60)}
    table = judging.evidence(scores, 0.9, 0.95)
    assert table.schema == judging.EVIDENCE
    assert table["choice"].to_list() == ["c", "a", "b"]
    chances = [exact_tail(59, 60, "9/10") * 3, *[exact_tail(58, 60, "9/10") * 2] * 2]
    assert table["chance"].to_list() == pytest.approx(chances, rel=1e-9)
    assert table["clears"].to_list() == [chance <= 0.05 for chance in chances]
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
    assert judging.chance(share(29, 29).append(pl.Series([0.9])), 0.99) > 0.1, "30 rows may miss rare cases"
    for few in (pl.Series([0.8] * 50), scores.head(28)):
        assert (judging.interval(few), judging.chance(few, 0.1)) == ((None, None), 1), "they say nothing"


def test_why_nothing_clears_is_said():
    """The reason gives the nearest choice and its score, and rows that are enough if they are all right."""
    for scores, words in (
        ({"one": share(50, 100), "other": share(60, 100)}, "other scores 0.6 on 100 rows; no choice scores"),
        ({"one": share(0, 0)}, "no row has a score"),
    ):
        reason, more = judging.shortfall(scores, 0.9, 0.95)
        assert (words in reason, more) == (True, None)
    reason, more = judging.shortfall({"one": share(20, 20)}, 0.9, 0.95)
    assert f"one scores 1 on 20 rows; about {more} rows more would settle it" in reason
    assert judging.tail(20 + more, 20 + more, 0.9) <= 0.05 < judging.tail(19 + more, 19 + more, 0.9)
