"""How sure a score is: intervals of shares and means, and how likely scores so high are by luck.

Intervals are what is shown. A choice rests on `chance`, whose error is bounded at every sample size: a
sample of 50 rows is small, and scores near the best possible are skewed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

_NORMAL = NormalDist()
_STAKES = (0.05, 0.15, 0.4, 0.9)
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _MOST_DRAWS = 10_000, 1_000, 5_000_000
_POWER = 0.8
_MOST_ROWS = 1_000_000


class Interval(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


def wilson(right: float, rows: int, confidence: float = 0.95) -> Interval:
    """Return the two-sided interval of a share, by Wilson's method (JASA 22, 1927).

    Spends: nothing.

    Examples
    --------
    >>> low, high = wilson(45, 50)
    >>> f"{low:.3f} to {high:.3f}"
    '0.786 to 0.957'
    """
    if not rows:
        return Interval(0.0, 1.0)
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    share, weight = right / rows, z * z / rows
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / rows + weight / (4 * rows))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(low if right else 0.0, high if right < rows else 1.0)


def student(level: float, freedom: float) -> float:
    """Return a quantile of Student's distribution: what few observations add to the normal one.

    Spends: nothing.

    Notes
    -----
    Cornish and Fisher's expansion, within 1% from 3 degrees of freedom on at 90%. Source: M. Abramowitz and
    I. Stegun, *Handbook of Mathematical Functions* (1964), 26.7.5.

    Examples
    --------
    >>> f"{student(0.9, 4):.2f}, {student(0.9, 49):.2f}, {student(0.9, math.inf):.2f}"
    '1.53, 1.30, 1.28'
    """
    z = _NORMAL.inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def bootstrap(
    scores: pl.Series,
    confidence: float = 0.95,
    *,
    seed: int = 0,
    method: Literal["bca", "percentile"] = "bca",
) -> Interval:
    """Return the two-sided bootstrap interval of a mean.

    Of the difference of two models on the same rows: ``bootstrap(one - other)``.

    Spends: nothing.

    Parameters
    ----------
    scores : pl.Series
        Numbers, at least one, none null.
    seed : int
        The same seed and scores give the same interval.
    method : {"bca", "percentile"}
        BCa corrects for bias and skew (B. Efron, JASA 82, 1987).
    """
    means = _resampled(scores, seed)
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    if method == "bca":
        bias, skew = _bias(means, mean_of(scores)), _acceleration(scores)
        tails = (_level(tails[0], bias, skew), _level(tails[1], bias, skew))
    low, high = (float(means.quantile(tail, "linear") or 0.0) for tail in tails)
    return Interval(low, high)


def interval(scores: pl.Series, confidence: float = 0.95, *, seed: int = 0) -> Interval:
    """Return the two-sided interval of a mean score: Wilson's of a share, else the bootstrap's.

    Where all scores are the same number between 0 and 1, so that resampling says nothing, it is what the
    test of `pick` does not rule out.

    Spends: nothing.
    """
    if scores.is_empty():
        return Interval(math.nan, math.nan)
    if _is_share(scores):
        return wilson(float(scores.sum()), scores.len(), confidence)
    if scores.n_unique() > 1 or not _is_bounded(scores):
        return bootstrap(scores, confidence, seed=seed)
    tail = (1 - confidence) / 2
    return Interval(_lowest(scores, tail), 1 - _lowest(1 - scores, tail))


def chance(scores: pl.Series, gate: float, *, seed: int = 0) -> float:
    """Return at most how likely scores so high are by luck, if the true mean is below `gate`.

    Exact for shares. For other scores whose worst is 0 it is the inverse of what bets on the scores against
    the gate would have won, which holds for every distribution and size. Where scores are negative, and it
    is not known how bad they can be, it is read off the BCa bootstrap: too low with few or skewed scores.

    Spends: nothing.

    Notes
    -----
    The first two hold for a sample without replacement too. Source: I. Waudby-Smith and A. Ramdas,
    *Estimating means of bounded random variables by betting*, JRSS B 86 (2024).

    Examples
    --------
    >>> round(chance(pl.Series([1.0] * 58), 0.95), 3)
    0.051
    """
    if scores.is_empty():
        return 1.0
    if _is_share(scores):
        return _binomial_tail(round(float(scores.sum())), scores.len(), gate)
    if (scores >= 0).all():
        return min(1.0, math.exp(-_winnings(scores, gate))) if gate > 0 else 0.0
    if scores.n_unique() == 1:
        return 1.0  # nothing is known of how far such scores may vary
    means = _resampled(scores, seed)
    bias = _bias(means, mean_of(scores))
    placed = _NORMAL.inv_cdf(_inside(mean_of(means < gate), means.len())) - bias
    return _NORMAL.cdf(placed / (1 + _acceleration(scores) * placed) - bias)


def mean_of(scores: pl.Series) -> float:
    """Return the mean of scores, 0 where there are none."""
    return float(scores.cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]


def mirrored(scores: pl.Series, gate: float) -> tuple[pl.Series, float]:
    """Return scores and gate turned round, to ask how likely scores so low are."""
    return (1 - scores, 1 - gate) if _is_bounded(scores) else (-scores, -gate)


def _is_bounded(scores: pl.Series) -> bool:
    return bool(scores.is_between(0.0, 1.0).all())


def _is_share(scores: pl.Series) -> bool:
    return bool(scores.is_in([0.0, 1.0]).all())


@lru_cache(maxsize=65_536)
def _binomial_tail(right: int, rows: int, share: float) -> float:
    """Return how likely `right` or more of `rows` are right if each is with the chance `share`."""
    if share <= 0 or share >= 1:
        return float(right <= 0 or share >= 1)
    yes, no, whole = math.log(share), math.log1p(-share), math.lgamma(rows + 1)
    logs = (
        whole - math.lgamma(k + 1) - math.lgamma(rows - k + 1) + k * yes + (rows - k) * no
        for k in range(right, rows + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _gains(scores: pl.Series, gate: float, stake: float) -> pl.Series:
    return (1 + stake * (scores / gate - 1)).log()


def _winnings(scores: pl.Series, gate: float) -> float:
    """Return the logarithm of what bets at several stakes make of 1, which gain nothing at the gate."""
    return _together([mean_of(_gains(scores, gate, stake)) * scores.len() for stake in _STAKES])


def _together(logs: list[float]) -> float:
    """Return the logarithm of the mean of what is given by its logarithm."""
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / len(logs))


def _lowest(scores: pl.Series, tail: float) -> float:
    """Return the lowest mean that the bet does not rule out."""
    low, high = 0.0, mean_of(scores)
    for _ in range(40):
        middle = (low + high) / 2
        ruled_out = chance(scores, middle) <= tail
        low, high = (middle, high) if ruled_out else (low, middle)
    return low


def _resampled(scores: pl.Series, seed: int) -> pl.Series:
    """Return the means of many samples of the scores, each as large as they are."""
    rows = scores.len()
    resamples = max(_FEWEST_RESAMPLES, min(_MOST_RESAMPLES, _MOST_DRAWS // rows))
    drawn = scores.cast(pl.Float64).sample(rows * resamples, with_replacement=True, seed=seed)
    return drawn.reshape((resamples, rows)).arr.mean()


def _inside(share: float, of: int) -> float:
    """Return a share that is neither 0 nor 1."""
    return min(max(share, 1 / (of + 1)), of / (of + 1))


def _bias(means: pl.Series, mean: float) -> float:
    lower = mean_of(means < mean) + mean_of(means == mean) / 2
    return _NORMAL.inv_cdf(_inside(lower, means.len()))


def _acceleration(scores: pl.Series) -> float:
    """Return a sixth of the skewness of the mean, as the jackknife has it."""
    away = scores.cast(pl.Float64) - mean_of(scores)
    squares = mean_of(away**2) * away.len()
    return mean_of(away**3) * away.len() / (6 * squares**1.5) if squares else 0.0


def _level(tail: float, bias: float, skew: float) -> float:
    """Return the quantile of the resampled means that is the end of a BCa interval."""
    z = bias + _NORMAL.inv_cdf(tail)
    return _NORMAL.cdf(bias + z / (1 - skew * z))


def rows_more(scores: pl.Series, gate: float, alpha: float) -> int | None:
    """Return how many rows more tell the mean from the gate, four times of five, if they are like these."""
    if scores.is_empty() or mean_of(scores) == gate:
        return None
    if mean_of(scores) < gate:
        scores, gate = mirrored(scores, gate)
    mean, again = mean_of(scores), _NORMAL.inv_cdf(_POWER)
    if _is_share(scores):
        z = _NORMAL.inv_cdf(1 - alpha)
        spread = z * math.sqrt(gate * (1 - gate)) + again * math.sqrt(mean * (1 - mean))
        rows = (spread / (mean - gate)) ** 2 if mean < 1 else math.log(alpha) / math.log(gate)
    elif (scores >= 0).all():
        gains = [_gains(scores, gate, stake) for stake in _STAKES]
        moments = [(mean_of(each), again * _deviation(each)) for each in gains]
        rows = _fewest(
            lambda n: (
                _together([n * mean - math.sqrt(n) * away for mean, away in moments]) >= -math.log(alpha)
            )
        )
    else:
        z = _NORMAL.inv_cdf(1 - alpha)
        rows = ((z + again) * _deviation(scores) / (mean - gate)) ** 2
    more = max(1, math.ceil(min(rows, 2 * _MOST_ROWS)) - scores.len())
    return more if more <= _MOST_ROWS else None


def _deviation(scores: pl.Series) -> float:
    return math.sqrt(max(mean_of(scores**2) - mean_of(scores) ** 2, 0.0))


def _fewest(enough: Callable[[int], bool]) -> int:
    """Return the least number from which on it is enough; more than anyone has where none is."""
    high = 1
    while not enough(high) and high <= _MOST_ROWS:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
