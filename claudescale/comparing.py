"""Plans side by side: the options of every combination of choices."""

from __future__ import annotations

import itertools
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
