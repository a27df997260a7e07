"""Evidence: intervals hold what they say, and a model below the gate is hardly ever chosen."""

import math
import random
from statistics import NormalDist

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.errors import PlanError
from claudescale.evidence import evidence


def candidates(**scores):
    """Return models with their scores, each dearer than the one before."""
    order = [float(number) for number in range(len(scores))]
    return pl.DataFrame([list(scores), list(scores.values()), order, order[::-1]], schema=evidence.CANDIDATES)


def share(right, rows):
    return [1.0] * right + [0.0] * (rows - right)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (45, 50, 0.7864, 0.9565), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_gives_the_published_intervals(right, rows, low, high):
    """The ends are those of Newcombe's tables, and never outside 0 and 1."""
    assert evidence.wilson(right, rows) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_lies_within_its_interval(case):
    """Whatever was counted, low <= share <= high, and more confidence gives a wider interval."""
    right, rows = case
    narrow, wide = evidence.wilson(right, rows, 0.8), evidence.wilson(right, rows, 0.99)
    assert 0 <= wide.low <= narrow.low <= right / rows <= narrow.high <= wide.high <= 1


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_the_bootstrap_is_seeded_and_near_the_normal_interval(method):
    """Of 400 normal scores both ends are near mean and 1.96 standard errors, the same for the same seed."""
    chance = random.Random(4)
    scores = pl.Series([chance.gauss(3.0, 1.0) for _ in range(400)])
    found = evidence.bootstrap(scores, method=method, seed=1)
    half = NormalDist().inv_cdf(0.975) * scores.std() / math.sqrt(400)
    assert found == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.015)
    assert found == evidence.bootstrap(scores, method=method, seed=1)
    assert found != evidence.bootstrap(scores, method=method, seed=2)


def test_bca_leans_to_the_long_tail():
    """Of skewed scores its ends are shifted to the side of the tail, the plain percentiles' less."""
    chance = random.Random(5)
    scores = pl.Series([chance.expovariate(1.0) for _ in range(60)])
    corrected = evidence.bootstrap(scores)
    plain = evidence.bootstrap(scores, method="percentile")
    assert corrected.low > plain.low
    assert corrected.high > plain.high


def test_equal_scores_are_no_certainty():
    """Thirty times the same number leaves room for worse; thirty perfect rows are a share, by Wilson."""
    low, high = evidence.interval(pl.Series([0.8] * 30))
    assert 0.4 < low < 0.75
    assert 0.81 < high < 1
    assert evidence.interval(pl.Series([1.0] * 30)) == evidence.wilson(30, 30)
    assert math.isnan(evidence.interval(pl.Series([], dtype=pl.Float64)).low)


@given(st.integers(1, 120), st.floats(0.05, 0.95))
def test_the_chance_of_a_share_is_the_binomial_one(rows, gate):
    """It is the exact tail, summed here with whole binomial coefficients; all rows count at 0 right."""
    right = rows // 2
    tail = sum(math.comb(rows, k) * gate**k * (1 - gate) ** (rows - k) for k in range(right, rows + 1))
    assert evidence.chance(pl.Series(share(right, rows)), gate) == pytest.approx(tail)
    assert evidence.chance(pl.Series(share(0, rows)), gate) == pytest.approx(1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.1, 0.9))
def test_chances_are_chances(scores, gate):
    """Never outside 0 and 1, never less for a higher gate, and 1 where scores cannot speak."""
    series = pl.Series(scores)
    lower, higher = evidence.chance(series, gate), evidence.chance(series, min(1.0, gate + 0.1))
    assert 0 <= lower <= higher + 1e-9 <= 1 + 1e-9
    assert evidence.chance(pl.Series([], dtype=pl.Float64), gate) == 1
    assert evidence.chance(pl.Series([-7.0] * 50), -8.0) == 1


def test_holm_is_the_textbook_example():
    """The smallest of four is multiplied by four, the next by three, and none falls below an earlier one."""
    corrected = evidence.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_the_cheapest_that_is_good_enough_is_picked():
    """By dollars the first of the good ones, by minutes the last; the one that is worse, never."""
    table = candidates(bad=share(70, 100), cheap=share(98, 100), dear=share(100, 100))
    found = evidence.pick(table, 0.9)
    assert (found.model, found.rows_more) == ("cheap", None)
    assert "cheapest" in found.reason
    assert evidence.pick(table, 0.9, by="minutes").model == "dear"
    assert found.verdicts.schema == evidence.VERDICTS
    assert found.verdicts["below"].to_list() == [True, False, False]


def test_too_few_rows_are_no_evidence_and_about_how_many_more_is_said():
    """With 20 of 20 right nothing is chosen; the number of rows it asks for is enough if they are right."""
    found = evidence.pick(candidates(one=share(20, 20), other=share(19, 20)), 0.9)
    assert found.model is None
    assert "Not enough evidence" in found.reason
    again = evidence.pick(candidates(one=share(20 + found.rows_more, 20 + found.rows_more)), 0.9)
    assert again.model == "one"
    assert found.rows_more < 40


@pytest.mark.parametrize(("truth", "gate"), [(0.95, 0.9), (0.9, 0.8), (0.8, 0.75)])
def test_the_rows_asked_for_settle_it_four_times_of_five(truth, gate):
    """After a sample that shows just the truth, that many more rows clear the gate about as often as said."""
    chance = random.Random(6)
    first = evidence.pick(candidates(one=share(round(40 * truth), 40)), gate)
    rows = 40 + first.rows_more
    cleared = 0
    for _ in range(400):
        right = sum(chance.random() < truth for _ in range(rows))
        cleared += evidence.pick(candidates(one=share(right, rows)), gate).model is not None
    assert 0.7 < cleared / 400 < 0.95


def test_none_reaches_it_is_said_where_it_is_so():
    """Models that are certainly below are called so, and no rows are asked for."""
    found = evidence.pick(candidates(one=share(50, 100), other=share(60, 100)), 0.9)
    assert (found.model, found.rows_more) == (None, None)
    assert found.reason.startswith("None of 2 models reaches 0.9")
    assert "other scores 0.6 on 100 rows" in found.reason


def test_a_score_at_the_gate_or_no_score_asks_for_no_number_of_rows():
    """Exactly at the gate no sample in reach settles it; without a row there is nothing to say."""
    at = evidence.pick(candidates(one=share(45, 50)), 0.9)
    assert "no sample in reach" in at.reason
    assert at.rows_more is None
    assert "no row has a score" in evidence.pick(candidates(one=[]), 0.9).reason


def test_what_the_others_are_compared_with_is_certain():
    """The model that agrees with itself by definition needs no evidence, and costs the others none."""
    table = candidates(cheap=share(58, 60), strong=share(60, 60))
    found = evidence.pick(table, 0.9, certain="strong")
    assert found.model == "cheap" if found.verdicts["chance"][0] <= 0.05 else found.model == "strong"
    assert found.verdicts["chance"].to_list() == pytest.approx(
        [evidence.chance(pl.Series(share(58, 60)), 0.9), 0.0]
    )


def test_a_number_instead_of_right_or_wrong():
    """Scores from 0 to 1 and on any other scale, also below 0, are chosen by their means."""
    chance = random.Random(7)
    good = [min(1.0, chance.uniform(0.85, 1.05)) for _ in range(100)]
    poor = [each - 0.3 for each in good]
    assert evidence.pick(candidates(poor=poor, good=good), 0.8).model == "good"
    scaled = {"poor": [20 * each for each in poor], "good": [20 * each for each in good]}
    assert evidence.pick(candidates(**scaled), 16).model == "good"
    assert evidence.pick(candidates(**scaled), 16).verdicts["below"].to_list() == [True, False]
    losses = {name: [each - 1 for each in scores] for name, scores in {"poor": poor, "good": good}.items()}
    assert evidence.pick(candidates(**losses), -0.2).model == "good"


@pytest.mark.parametrize(
    "given_wrong",
    [
        {"min_score": "0.9"},
        {"min_score": math.nan},
        {"min_score": True},
        {"min_score": 0.9, "by": "seconds"},
        {"min_score": 0.9, "confidence": 95},
    ],
)
def test_wrong_numbers_are_told(given_wrong):
    """A gate that is no number, an unknown order or a confidence in percent raises at once."""
    with pytest.raises(PlanError, match="="):
        evidence.pick(candidates(one=share(9, 10)), **given_wrong)


def test_nothing_to_choose_from_is_told():
    """An empty table raises; it is not taken for a lack of rows."""
    with pytest.raises(PlanError, match="no scores"):
        evidence.pick(candidates(), 0.9)


@settings(max_examples=15)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.7, 0.9, 0.95]),
    st.integers(10, 150),
    st.integers(1, 6),
    st.booleans(),
)
def test_a_model_below_the_gate_is_chosen_no_more_often_than_said(seed, gate, rows, models, alike):
    """Whatever gate, rows and number of models: of 300 trials just below the gate at most 5% choose one.

    Allowed are three standard deviations of chance above it.
    """
    chance = random.Random(seed)
    wrong = 0
    for _ in range(300):
        luck = [chance.random() for _ in range(rows)]
        several = {}
        for number in range(models):
            own = luck if alike else [chance.random() for _ in range(rows)]
            several[f"m{number}"] = [float(each < gate - 1e-6) for each in own]
        wrong += evidence.pick(candidates(**several), gate).model is not None
    assert wrong / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(("mean", "gate", "scale"), [(0.9, 0.8, 1), (0.8, 0.7, 5), (0.85, 0.75, -1)])
def test_the_rows_asked_for_settle_a_mean_more_often_than_not(mean, gate, scale):
    """Of numbers, too: what the median sample asks for is enough three times of five, if not always."""
    chance = random.Random(9)

    def sample(rows):
        drawn = [chance.betavariate(5 * mean, 5 * (1 - mean)) for _ in range(rows)]
        return [scale * each if scale > 0 else each - 1 for each in drawn]

    aim = scale * gate if scale > 0 else gate - 1
    asked = sorted(evidence.pick(candidates(one=sample(15)), aim).rows_more or 0 for _ in range(61))
    rows = 15 + asked[30]
    cleared = sum(evidence.pick(candidates(one=sample(rows)), aim).model is not None for _ in range(200))
    assert 0.6 < cleared / 200 < 0.99


@pytest.mark.parametrize("worst", [0.0, 1.0])
def test_skewed_numbers_below_the_gate_are_chosen_no_more_often_than_said(worst):
    """Most scores perfect, few bad: 20 rows often look better than they are, and are not believed."""
    chance = random.Random(8)
    top, gate = worst + 1.0, worst + 0.9
    wrong = 0
    for _ in range(500):
        scores = [top if chance.random() > 0.202 else worst + chance.random() for _ in range(20)]
        wrong += evidence.pick(candidates(one=scores), gate).model is not None
    assert wrong / 500 <= 0.05
