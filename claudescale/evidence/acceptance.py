"""What a cascade accepts: which replies are good enough, and why the others go on to the next model.

What can be known to be wrong of an ``accept=`` is raised before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import PlanError, UnknownColumn
from claudescale.prompts.requests import one_column

if TYPE_CHECKING:
    from collections.abc import Callable

    from claudescale.planning.plans import Plan

NOT_ACCEPTED = "not_accepted"
"""The error of a row whose reply came through and was not accepted."""
MODEL = "model"
"""The column that says whose reply or error a row shows."""

_WHAT_THERE_IS = (
    "accept= takes an expression over the results that is true where a reply is good enough, such as "
    "pl.col('score') >= 0.8; a function of the results frame that gives a Boolean Series; or None: only "
    "what fails goes on."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Acceptance:
    """Which replies are good enough. `acceptance` makes it.

    Attributes
    ----------
    accept : pl.Expr, callable or None
        As it was given; None accepts whatever did not fail.
    """

    accept: pl.Expr | Callable[[pl.DataFrame], pl.Series] | None

    @property
    def told(self) -> str:
        """What goes on, in words."""
        fails = "what fails (form, refusal, cut off, empty, API error)"
        if self.accept is None:
            return fails
        if isinstance(self.accept, pl.Expr):
            return f"{fails}, and what your expression does not accept"
        return f"{fails}, and what {_name(self.accept)} does not accept"

    def is_same(self, other: Acceptance) -> bool:
        """Whether it accepts by the same expression or function."""
        if isinstance(self.accept, pl.Expr) and isinstance(other.accept, pl.Expr):
            return self.accept.meta.eq(other.accept)
        return self.accept is other.accept

    def of(self, results: pl.DataFrame) -> pl.Series:
        """Return which rows are accepted, Boolean; a null of `accept` is a no.

        Raises
        ------
        ValueError
            The function gave something else than a Boolean for each row.
        """
        if self.accept is None:
            return pl.Series([True]).new_from_index(0, results.height)
        if isinstance(self.accept, pl.Expr):
            found = results.with_columns(self.accept.alias(MODEL))[MODEL]
        else:
            found = _checked(self.accept(results), results.height)
        return found.cast(pl.Boolean).fill_null(value=False)


def acceptance(accept: Any, plan: Plan) -> Acceptance:
    """Return what is accepted of the replies of a plan, checked on frames without a reply.

    Raises
    ------
    UnknownColumn
        `accept` names a column that the results do not have.
    PlanError
        It cannot tell which replies are good enough.
    """
    if accept is None:
        return Acceptance(accept=None)
    schema = pl.Schema({**plan.compiled.results_schema(plan.frame), MODEL: pl.String()})
    if isinstance(accept, pl.Expr):
        _check_expression(accept, schema)
    elif callable(accept):
        _check_function(accept, schema)
    else:
        msg = f"accept={accept!r:.60} cannot be used. {_WHAT_THERE_IS}"
        raise PlanError(msg)
    return Acceptance(accept=accept)


def _check_expression(accept: pl.Expr, schema: pl.Schema) -> None:
    """Raise what is wrong with an expression, found out on no rows and on rows of nulls."""
    found = one_column(accept, schema, "accept=", _WHAT_THERE_IS)
    dtype = found.dtypes[0]
    if dtype != pl.Boolean:
        msg = f"accept= is {dtype}; it has to be Boolean: is a reply good enough? {_WHAT_THERE_IS}"
        raise PlanError(msg)
    if accept.meta.root_names() and (found.height or _height_of_nulls(accept, schema) not in {None, 2}):
        msg = (
            "accept= has to say of every row whether it is accepted, and this expression gives another "
            f"number of values, as mean(), any() or filter() do. {_WHAT_THERE_IS}"
        )
        raise PlanError(msg)


def _height_of_nulls(accept: pl.Expr, schema: pl.Schema) -> int | None:
    """Return how many values the expression gives for two rows; None where it cannot take nulls."""
    try:
        return pl.DataFrame(schema=schema).clear(2).select(accept).height
    except Exception:  # noqa: BLE001 - a function of the user's in it may raise anything; it will get no nulls
        return None


def _check_function(accept: Callable[[pl.DataFrame], object], schema: pl.Schema) -> None:
    """Raise what is wrong with a function, found out on no rows."""
    name = _name(accept)
    try:
        _checked(accept(pl.DataFrame(schema=schema)), 0)
    except pl.exceptions.ColumnNotFoundError as error:
        there_are = f"The results have: {', '.join(schema)}."
        msg = f"accept= is {name}, which names a column that is not there: {error}. {there_are}"
        raise UnknownColumn(msg) from error
    except Exception as error:
        msg = (
            f"accept= is {name}, which is tried on results without a row before anything is sent, and "
            f"there it fails: {type(error).__name__}: {error}. {_WHAT_THERE_IS}"
        )
        raise PlanError(msg) from error


def _name(function: object) -> str:
    name = getattr(function, "__name__", "")
    return name if name.isidentifier() else "your function"  # a lambda has none


def _checked(found: object, rows: int) -> pl.Series:
    if not isinstance(found, pl.Series) or found.len() != rows:
        what = f"{found.len():,} values" if isinstance(found, pl.Series) else f"a {type(found).__name__}"
        msg = f"it gives {what}, and has to give a Boolean Series of {rows:,} values, one for each row"
        raise ValueError(msg)
    if found.dtype not in {pl.Boolean(), pl.Null()}:
        msg = f"it gives {found.dtype}, and has to give Boolean"
        raise ValueError(msg)
    return found
