"""How sure a score is: intervals of shares and means, and the cheapest model that is good enough for certain.

Pure arithmetic on scores. Intervals are what is shown; the choice rests on tests whose error is bounded
at every sample size, because a sample of 50 rows is small and shares near 1 are skewed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl

from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

CANDIDATES = pl.Schema(
    {"model": pl.String(), "scores": pl.List(pl.Float64()), "dollars": pl.Float64(), "minutes": pl.Float64()}
)
"""What `pick` takes of each model: the score of every row (true is 1), and what the model costs and takes."""

VERDICTS = pl.Schema(
    {
        "model": pl.String(),
        "rows": pl.Int64(),
        "score": pl.Float64(),
        "chance": pl.Float64(),
        "clears": pl.Boolean(),
        "below": pl.Boolean(),
        "rows_more": pl.Int64(),
    }
)
"""What `pick` found of each model: `chance` is that of scores so high by luck, were the truth just below the
gate, corrected for the number of models; `rows_more` is null where nothing is open or no sample would do."""

By = Literal["dollars", "minutes"]

_NORMAL = NormalDist()
_STAKES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _MOST_DRAWS = 10_000, 1_000, 5_000_000
_POWER = 0.8
_MOST_ROWS = 1_000_000


class Interval(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


class Choice(NamedTuple):
    """What `pick` chose, and why.

    `model` is None where none is good enough for certain. `rows_more` is about how many further rows would
    settle it; None where that is settled, or where no sample would do. `verdicts` is as `VERDICTS`.
    """

    model: str | None
    reason: str
    rows_more: int | None
    verdicts: pl.DataFrame


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
        bias, skew = _bias(means, _mean(scores)), _acceleration(scores)
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
    bias = _bias(means, _mean(scores))
    placed = _NORMAL.inv_cdf(_inside(_mean(means < gate), means.len())) - bias
    return _NORMAL.cdf(placed / (1 + _acceleration(scores) * placed) - bias)


def pick(
    table: pl.DataFrame,
    min_score: float,
    by: By = "dollars",
    *,
    confidence: float = 0.95,
    certain: str | None = None,
    seed: int = 0,
) -> Choice:
    """Return the cheapest (or fastest) model whose lower bound is not below `min_score`, if there is one.

    The chance that *any* model whose true score is below `min_score` is chosen is at most
    ``1 - confidence``, however many are looked at: the chances are corrected by Holm's method, which asks
    nothing of how the models' scores depend on each other.

    Spends: nothing.

    Parameters
    ----------
    table : pl.DataFrame
        `CANDIDATES`.
    min_score : float
        The gate.
    by : {"dollars", "minutes"}
        What to have least of.
    certain : str, optional
        A model whose score is known, as it is what the others are compared with.

    Raises
    ------
    PlanError
        There is nothing to choose from, or no such `by`.
    """
    check_gate(min_score, confidence, by)
    if table.is_empty():
        msg = "There are no scores to choose by."
        raise PlanError(msg)
    alpha = 1 - confidence
    all_scores = dict(zip(table["model"], table["scores"], strict=True))
    chances = {model: chance(scores, min_score, seed=seed) for model, scores in all_scores.items()}
    if certain in chances and _mean(all_scores[certain]) >= min_score:
        chances[certain] = 0.0
    corrected = holm(chances)
    undecided = sum(each > alpha for each in corrected.values())
    rows = []
    for model, scores in all_scores.items():
        clears = corrected[model] <= alpha
        below = not clears and chance(*_mirrored(scores, min_score), seed=seed) <= alpha
        more = None if clears or below else _rows_more(scores, min_score, alpha / undecided)
        score = _mean(scores) if scores.len() else None
        rows.append((model, scores.len(), score, corrected[model], clears, below, more))
    verdicts = pl.DataFrame(rows, schema=VERDICTS, orient="row")
    order = table.sort(by, "minutes" if by == "dollars" else "dollars", nulls_last=True, maintain_order=True)
    cleared = verdicts.filter("clears")["model"].to_list()
    chosen = next((model for model in order["model"] if model in cleared), None)
    reason, rows_more = _said(verdicts, chosen, min_score, f"with {confidence:.0%} confidence", by)
    return Choice(chosen, reason, rows_more, verdicts)


def check_gate(min_score: Any, confidence: float, by: str) -> None:
    """Raise what is wrong with the numbers of a choice."""
    number = isinstance(min_score, int | float) and not isinstance(min_score, bool)
    if not (number and math.isfinite(min_score)):
        msg = f"min_score={min_score!r}: it is the score to reach, a number such as min_score=0.9."
        raise PlanError(msg)
    check_confidence(confidence)
    if by not in {"dollars", "minutes"}:
        msg = f"by={by!r} is not one of 'dollars' (the cheapest), 'minutes' (the fastest)."
        raise PlanError(msg)


def check_confidence(confidence: object) -> None:
    """Raise where a confidence is none."""
    if not (isinstance(confidence, float) and 0.5 <= confidence < 1):  # noqa: PLR2004 - a coin's toss
        msg = f"confidence={confidence!r}: it is a share from 0.5 to below 1, such as confidence=0.95."
        raise PlanError(msg)


def holm(chances: dict[str, float]) -> dict[str, float]:
    """Return the chances corrected for their number, by Holm's method (Scand. J. Stat. 6, 1979).

    Examples
    --------
    >>> holm({"a": 0.01, "b": 0.04, "c": 0.02})
    {'a': 0.03, 'c': 0.04, 'b': 0.04}
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for number, model in enumerate(sorted(chances, key=chances.__getitem__)):
        largest = max(largest, min(1.0, chances[model] * (len(chances) - number)))
        corrected[model] = largest
    return corrected


def _mean(scores: pl.Series) -> float:
    return float(scores.cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]


def _mirrored(scores: pl.Series, gate: float) -> tuple[pl.Series, float]:
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


def _winnings(scores: pl.Series, gate: float) -> float:
    """Return the logarithm of what equal bets at several stakes make of 1, no chance for gain at the gate."""
    logs = [_mean((1 + stake * (scores / gate - 1)).log()) * scores.len() for stake in _STAKES]
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / len(logs))


def _lowest(scores: pl.Series, tail: float) -> float:
    """Return the lowest mean that the bet does not rule out."""
    low, high = 0.0, _mean(scores)
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
    lower = _mean(means < mean) + _mean(means == mean) / 2
    return _NORMAL.inv_cdf(_inside(lower, means.len()))


def _acceleration(scores: pl.Series) -> float:
    """Return a sixth of the skewness of the mean, as the jackknife has it."""
    away = scores.cast(pl.Float64) - _mean(scores)
    squares = _mean(away**2) * away.len()
    return _mean(away**3) * away.len() / (6 * squares**1.5) if squares else 0.0


def _level(tail: float, bias: float, skew: float) -> float:
    """Return the quantile of the resampled means that is the end of a BCa interval."""
    z = bias + _NORMAL.inv_cdf(tail)
    return _NORMAL.cdf(bias + z / (1 - skew * z))


def _rows_more(scores: pl.Series, gate: float, alpha: float) -> int | None:
    """Return how many rows more tell the mean from the gate, four times of five, if it is what it seems."""
    if scores.is_empty():
        return None
    mean = _mean(scores)
    apart = abs(mean - gate)
    if not apart:
        return None
    if _is_share(scores):
        if not 0 < gate < 1:
            return None
        z, again = _NORMAL.inv_cdf(1 - alpha), _NORMAL.inv_cdf(_POWER)
        spread = z * math.sqrt(gate * (1 - gate)) + again * math.sqrt(mean * (1 - mean))
        rows = (spread / apart) ** 2
        if mean in {0.0, 1.0}:  # then the exact test is simple
            rows = math.log(alpha) / math.log(gate if mean else 1 - gate)
    else:
        variance = float(scores.var() or 0.0)  # type: ignore[arg-type]
        needed = math.log(len(_STAKES) / 2 / alpha)  # the bet; more than any other test asks for
        rows = max(2 * variance * needed / apart**2, scores.len() + 1)
    more = max(1, math.ceil(rows) - scores.len())
    return more if more <= _MOST_ROWS else None


def _said(
    verdicts: pl.DataFrame, chosen: str | None, gate: float, surely: str, by: By
) -> tuple[str, int | None]:
    """Return the reason of a choice, and how many rows more would settle it."""
    count = verdicts.height
    if chosen is not None:
        most = "cheapest" if by == "dollars" else "fastest"
        told = _told(verdicts.row(by_predicate=pl.col("model") == chosen, named=True))
        return f"Of {count} models the {most} whose score is {gate:g} or more, {surely}: {told}.", None
    if not verdicts["rows"].sum():
        return "Not enough evidence: no row has a score.", None
    ranked = verdicts.sort("score", descending=True, nulls_last=True)
    if verdicts["below"].all():
        best = _told(ranked.row(0, named=True))
        return f"None of {count} models reaches {gate:g}, {surely}. The best: {best}.", None
    open_ = ranked.filter(~pl.col("below"))
    above = open_.filter(pl.col("score") > gate)
    nearest = (above if above.height else open_).sort("rows_more", nulls_last=True).row(0, named=True)
    more = nearest["rows_more"]
    settle = (
        "no sample in reach would settle it" if more is None else f"about {more:,} rows more would settle it"
    )
    side = "" if above.height else ", and none scores more so far"
    return f"Not enough evidence for a score of {gate:g}, {surely}: {_told(nearest)}{side}; {settle}.", more


def _told(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['model']} scores {verdict['score'] or 0.0:.3g} on {verdict['rows']:,} rows"
