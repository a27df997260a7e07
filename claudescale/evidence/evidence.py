"""The cheapest model that is good enough for certain, or what is missing to say so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl

from claudescale.errors import PlanError
from claudescale.evidence.intervals import bootstrap, chance, interval, mean_of, mirrored, rows_more, wilson
from claudescale.prompts.requests import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CANDIDATES",
    "VERDICTS",
    "By",
    "Choice",
    "bootstrap",
    "chance",
    "holm",
    "interval",
    "pick",
    "wilson",
]

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


class Choice(NamedTuple):
    """What `pick` chose, and why.

    `model` is None where none is good enough for certain. `rows_more` is about how many further rows would
    settle it; None where that is settled, or where no sample would do. `verdicts` is as `VERDICTS`.
    """

    model: str | None
    reason: str
    rows_more: int | None
    verdicts: pl.DataFrame


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
    min_score = plain(min_score)
    check_gate(min_score, confidence, by)
    if table.is_empty():
        msg = "There are no scores to choose by."
        raise PlanError(msg)
    alpha = 1 - confidence
    all_scores = dict(zip(table["model"], table["scores"], strict=True))
    chances = {model: chance(scores, min_score, seed=seed) for model, scores in all_scores.items()}
    if certain in chances and mean_of(all_scores[certain]) >= min_score:
        chances[certain] = 0.0
    corrected = holm(chances)
    undecided = sum(each > alpha for each in corrected.values())
    rows = []
    for model, scores in all_scores.items():
        clears = corrected[model] <= alpha
        below = not clears and chance(*mirrored(scores, min_score), seed=seed) <= alpha
        more = None if clears or below else rows_more(scores, min_score, alpha / undecided)
        score = mean_of(scores) if scores.len() else None
        rows.append((model, scores.len(), score, corrected[model], clears, below, more))
    verdicts = pl.DataFrame(rows, schema=VERDICTS, orient="row")
    order = table.sort(by, "minutes" if by == "dollars" else "dollars", nulls_last=True, maintain_order=True)
    cleared = verdicts.filter("clears")["model"].to_list()
    chosen = next((model for model in order["model"] if model in cleared), None)
    reason, open_rows = _said(verdicts, chosen, min_score, f"with {confidence:.0%} confidence", by)
    return Choice(chosen, reason, open_rows, verdicts)


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
