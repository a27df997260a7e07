"""Plans side by side: the options of every combination of choices, and which of them are worth a look."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import feasibility
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from claudescale.plans import Plan


def compare(plan: Plan, lists: dict[str, Iterable[Any]]) -> pl.DataFrame:
    """Return the options of a plan for every combination of choices, with a column for each that is named."""
    modes = _several("mode", lists.pop("mode", feasibility.MODES))
    tried = {name: _several(name, values) for name, values in lists.items()}
    _ = plan.totals  # read once, for all combinations
    combinations = list(itertools.product(*tried.values()))
    frames = [plan.replace(**dict(zip(tried, values, strict=True))).options for values in combinations]
    columns = zip(tried, zip(*combinations, strict=True), strict=True)
    choices = pl.DataFrame([_told(name, values) for name, values in columns])
    heights = pl.Series([frame.height for frame in frames])
    each = choices.select(pl.all().repeat_by(heights).explode())
    return pl.concat([each, pl.concat(frames)], how="horizontal").filter(pl.col("mode").is_in(modes))


def frontier(options: pl.DataFrame) -> pl.DataFrame:
    """Return the options with a column `frontier`: no other is as cheap and as fast and better in one.

    Options of the same dollars and minutes are on it together; one whose figures are unknown is not.

    Parameters
    ----------
    options : pl.DataFrame
        Of `Plan.compare`, or anything else with `dollars` and `minutes`.

    Examples
    --------
    >>> options = pl.DataFrame({"dollars": [1.0, 2.0, 2.0], "minutes": [60.0, 5.0, 90.0]})
    >>> frontier(options)["frontier"].to_list()
    [True, True, False]
    """
    alike = options.select(_rounded("dollars"), _rounded("minutes"))
    known = (
        alike.drop_nulls().group_by("dollars").agg(pl.col("minutes").min().alias("fastest")).sort("dollars")
    )
    known = known.with_columns(cheaper=pl.col("fastest").cum_min().shift().fill_null(math.inf))
    best = (pl.col("minutes") == pl.col("fastest")) & (pl.col("minutes") < pl.col("cheaper"))
    found = alike.join(known, on="dollars", how="left", maintain_order="left").select(
        frontier=best.fill_null(value=False)
    )
    return options.with_columns(found["frontier"])


def _rounded(name: str) -> pl.Expr:
    """Return a figure such that what only rounding tells apart is the same."""
    figure = pl.col(name).cast(pl.Float64)
    figure = pl.when(figure.is_finite()).then(figure)
    return pl.when(figure == 0).then(0.0).otherwise(figure.round_sig_figs(9)).alias(name)


def _several(name: str, values: object) -> list[Any]:
    """Return the values to compare as a list."""
    if isinstance(values, str) or not isinstance(values, Iterable) or not (several := list(values)):
        msg = f"plan.compare({name}={values!r}): give a list of values to try, such as {name}=[...]."
        raise PlanError(msg)
    return several


def _told(name: str, values: Iterable[object]) -> pl.Series:
    """Return the values as a column: as they are where they are of one simple type, else as text."""
    several = list(values)
    kinds = {type(value) for value in several}
    if kinds in ({str}, {int}, {bool}) or kinds <= {int, float, type(None)}:
        return pl.Series(name, several, strict=False)
    return pl.Series(name, [value if isinstance(value, str) else repr(value) for value in several])
