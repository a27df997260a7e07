"""How the replies of a trial are scored: by an expression, a function, a truth column, or by agreement.

What can be known to be wrong of a score is raised before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import PlanError
from claudescale.prompts.requests import NOT_SENT, one_column, read, unknown_column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.planning.plans import Plan

Score = pl.Expr | str | None

_SUBJECT = "The score"
_WHAT_THERE_IS = (
    "score= takes an expression over the results such as pl.col('label') == pl.col('truth'), a function of "
    "the results frame, the name of a column with the right answers, or None: agreement with the dearest."
)
_TEXTS = (pl.String, pl.Enum, pl.Categorical)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How to score: `told` is it in words, `truth` the column with the right answers, if there is one."""

    told: str
    truth: str | None
    reference: str | None
    _score: Callable[[pl.DataFrame, pl.DataFrame | None], pl.Series]

    def scores(self, results: Mapping[str, pl.DataFrame], unsent: pl.Series) -> dict[str, pl.Series]:
        """Return the score of each row by model, Float64: true is 1, null where a row cannot be judged.

        A row that failed scores 0 where the score of it is null. Not judged are rows with nothing to send,
        rows that were not sent or were given up, a null on a row that did not fail, and, where models are
        compared with one of them, rows on which that one failed.
        """
        against = results.get(self.reference) if self.reference else None
        if self.reference and against is None:
            return {model: pl.Series([None] * unsent.len(), dtype=pl.Float64) for model in results}
        return {model: self._of(frame, against, unsent) for model, frame in results.items()}

    def _of(self, results: pl.DataFrame, against: pl.DataFrame | None, unsent: pl.Series) -> pl.Series:
        found = self._score(results, against)
        error = results["error"]
        open_ = unsent | (error == NOT_SENT).fill_null(value=False)
        if against is not None:
            open_ |= against["error"].is_not_null()
        number = pl.col("score").cast(pl.Float64)
        failed = pl.when("failed").then(0.0)
        return pl.DataFrame(
            [found.alias("score"), error.is_not_null().alias("failed"), open_.alias("open")]
        ).select(
            score=pl.when(~pl.col("open")).then(pl.when(number.is_finite()).then(number).otherwise(failed))
        )["score"]


def scoring(score: Any, plan: Plan, dearest: str) -> Scoring:
    """Return how to score the results of a plan.

    Raises
    ------
    UnknownColumn
        The score names a column that the results do not have.
    PlanError
        It cannot be a score.
    """
    schema = plan.compiled.results_schema(plan.frame)
    if score is None:
        columns = _comparable(plan)
        return Scoring(
            told=f"by agreement with {dearest}",
            truth=None,
            reference=dearest,
            _score=lambda results, against: _agreement(results, against, columns),
        )
    if isinstance(score, pl.Expr):
        _check(score, schema)
        return Scoring(
            told="by your expression",
            truth=None,
            reference=None,
            _score=lambda results, _: results.with_columns(score.alias("score"))["score"],
        )
    if isinstance(score, str):
        truth = _truth(score, plan, schema)
        return Scoring(
            told=f"by the truth in {score!r}",
            truth=score,
            reference=None,
            _score=lambda results, _: results.select(truth.alias("score"))["score"],
        )
    if callable(score):
        return Scoring(
            told=f"by {getattr(score, '__name__', 'your function')}",
            truth=None,
            reference=None,
            _score=lambda results, _: _called(score, results),
        )
    msg = f"score={score!r:.60} cannot be used. {_WHAT_THERE_IS}"
    raise PlanError(msg)


def _check(score: pl.Expr, schema: pl.Schema) -> None:
    """Raise what is wrong with an expression, found out on no rows."""
    _check_type(one_column(score, schema, _SUBJECT, _WHAT_THERE_IS).dtypes[0])


def _check_type(dtype: pl.DataType) -> None:
    if not (isinstance(dtype, pl.Boolean) or dtype.is_numeric()):
        msg = f"The score is {dtype}; it has to be right or wrong (Boolean), or a number. {_WHAT_THERE_IS}"
        raise PlanError(msg)


def _truth(name: str, plan: Plan, schema: pl.Schema) -> pl.Expr:
    """Return the expression that compares the one typed column, or the reply, with the truth."""
    given = plan.frame.lazy().collect_schema()
    if name not in given:
        if name in schema:
            msg = f"The column {name!r} is what the model replies. Name one with the right answers."
            raise PlanError(msg)
        raise unknown_column(name, given, _SUBJECT)
    typed = list(plan.compiled.returns.columns) if plan.compiled.returns is not None else ["reply"]
    if len(typed) > 1:
        msg = (
            f"The replies have the columns {', '.join(typed)}; say which of them {name!r} is the truth of: "
            f"score=pl.col({typed[0]!r}) == pl.col({name!r})."
        )
        raise PlanError(msg)
    (own,) = typed
    if isinstance(schema[own], _TEXTS) or isinstance(given[name], _TEXTS):
        score = _plain(own) == _plain(name)
        _check_labels(plan, name, schema[own])
    else:
        score = pl.col(own) == pl.col(name)
    _check(score, schema)
    return score


def _check_labels(plan: Plan, name: str, dtype: pl.DataType) -> None:
    """Raise where no right answer is one of the labels that the model may choose from."""
    if not isinstance(dtype, pl.Enum):
        return
    labels = {label.strip().lower() for label in dtype.categories}
    found = read(plan.frame.lazy().select(_plain(name).unique().drop_nulls()))[name]
    if not found.is_empty() and not labels & set(found):
        msg = (
            f"No value of {name!r} is one of the labels of the replies: {', '.join(dtype.categories)}. Name "
            "the column with the right answers, or use score= with an expression."
        )
        raise PlanError(msg)


def _plain(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase()


def _comparable(plan: Plan) -> list[str]:
    """Return the typed columns in which two models can agree: labels, flags, whole numbers, dates."""
    typed = plan.compiled.returns.columns if plan.compiled.returns is not None else pl.Schema()
    loose = [name for name, dtype in typed.items() if _is_loose(dtype)]
    columns = [name for name in typed if name not in loose]
    if not columns:
        what = "free text" if not typed else "texts, lists or fractions, which hardly ever are the same"
        msg = (
            "score=None counts how often a model replies as the dearest one does, and the replies of this "
            f"plan are {what}. Ask for labels, such as returns=pl.Enum(['yes', 'no']). {_WHAT_THERE_IS}"
        )
        raise PlanError(msg)
    return columns


def _is_loose(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String) or dtype.is_float() or dtype.is_decimal() or dtype.is_nested()


def _agreement(results: pl.DataFrame, against: pl.DataFrame | None, columns: list[str]) -> pl.Series:
    assert against is not None
    same = [results[name].eq_missing(against[name]) for name in columns]
    agreed = pl.DataFrame([each.alias(f"{number}") for number, each in enumerate(same)])
    failed = results["error"].is_not_null()
    return agreed.select(score=pl.all_horizontal(pl.all()))["score"] & ~failed


def _called(score: Callable[[pl.DataFrame], object], results: pl.DataFrame) -> pl.Series:
    found = score(results)
    if not isinstance(found, pl.Series) or found.len() != results.height:
        what = f"{found.len()} values" if isinstance(found, pl.Series) else f"a {type(found).__name__}"
        msg = (
            f"The score's function gave {what}; it has to give a Series of {results.height} values, one for "
            "each row. The replies are kept: a trial with another score and the same ledger pays for none."
        )
        raise PlanError(msg)
    _check_type(found.dtype)
    return found
