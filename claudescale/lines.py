"""Many attempts at once as the lines that a ledger keeps: a frame's, just as `ledgerfile.line` makes one."""

from __future__ import annotations

from typing import get_type_hints

import polars as pl

from claudescale.ledgerfile import EMPTY, Attempt

_TYPES = get_type_hints(Attempt) | {"final": bool}
_NEVER_NULL = [name for name, kind in _TYPES.items() if kind in {str, int, float, bool} and name != "run"]
_FLOATS = [name for name, kind in _TYPES.items() if kind is float and name != "sent_at"]


def checked(attempts: pl.DataFrame, run: str) -> pl.DataFrame:
    """Return attempts with `final` as a ledger keeps them, of this run.

    Raises
    ------
    TypeError
        A column is missing, unknown or of another type, or has a null where there is always a value.
    """
    if attempts.schema != EMPTY.schema:
        pairs = zip(EMPTY.schema.items(), [*attempts.schema.items(), *[None] * EMPTY.width], strict=False)
        wrong = next((f"{want} where {got} is" for want, got in pairs if want != got), "a column too many")
        msg = f"these are not ATTEMPTS and `final`: {wrong}. Take frame.select(...).cast(ATTEMPTS)"
        raise TypeError(msg)
    nulls = attempts.select(_NEVER_NULL).null_count()
    if sum(nulls.row(0)):
        names = [column.name for column in nulls if column.item()]
        msg = f"there are nulls in {', '.join(names)}: every attempt has a value there"
        raise TypeError(msg)
    return attempts.with_columns(pl.lit(run).alias("run"), pl.col(_FLOATS) + 0.0)


def lines(attempts: pl.DataFrame) -> pl.Series:
    """Return what `checked` returned as CSV, one text a row."""
    floats = {name: [*map(repr, attempts.get_column(name).to_list())] for name in _FLOATS}
    frame = attempts.with_columns(pl.Series(name, texts, pl.String) for name, texts in floats.items())
    fields = [_field(name) for name in EMPTY.columns]
    return frame.select(line=pl.concat_str(fields, separator=",")).to_series()


def _field(name: str) -> pl.Expr:
    column, kind = pl.col(name), EMPTY.schema[name]
    if name in _FLOATS:
        return column  # as Python writes it: in Polars' own words 1e-05 is 0.00001
    if kind == pl.Boolean:
        return pl.when(column).then(pl.lit("True")).otherwise(pl.lit("False"))
    if kind == pl.String:
        column = pl.concat_str(pl.lit('"'), column.str.replace_all('"', '""', literal=True), pl.lit('"'))
    else:
        column = column.to_physical().cast(pl.String)
    return column.fill_null("")
