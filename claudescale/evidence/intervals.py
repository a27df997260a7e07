"""What planning takes of statistics, until it has its own: Wilson's interval and Student's quantile."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

_NORMAL = NormalDist()


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
