"""Many attempts at once as the lines that a ledger keeps: a frame's, just as `ledgerfile.line` makes one."""

from __future__ import annotations

from typing import get_type_hints

import polars as pl

from claudescale.ledger.records import Attempt
from claudescale.ledger.store import EMPTY, LINE

_TYPES = get_type_hints(Attempt) | {"final": bool}
_NEVER_NULL = [name for name, kind in _TYPES.items() if kind in {str, int, float, bool} and name != "run"]
_FLOATS = [name for name, kind in _TYPES.items() if kind is float and name != "sent_at"]
# Not by adding 0.0, which Polars leaves out.
_ABOVE_MINUS_0 = pl.when(pl.col(_FLOATS) == 0).then(0.0).otherwise(pl.col(_FLOATS)).name.keep()
_PLAIN = 1e-4  # from here on Polars and Python write a number alike


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
    return attempts.with_columns(pl.lit(run).alias("run"), _ABOVE_MINUS_0)


def lines(attempts: pl.DataFrame) -> list[str]:
    """Return what `checked` returned as CSV, one text a row."""
    if attempts.is_empty():
        return []
    frame = attempts.with_columns(_floats(attempts.get_column(name)) for name in _FLOATS)
    nulls = frame.select(LINE).null_count().row(0)
    pieces: list[pl.Expr | str] = []
    for name, missing in zip(LINE, nulls, strict=True):
        pieces += ["," if pieces else "", *_field(name, missing, frame.height)]
    joined = [pl.lit(piece) if isinstance(piece, str) else piece for piece in _merged(pieces)]
    return frame.select(pl.concat_str(joined).alias("line")).to_series().to_list()


def _field(name: str, missing: int, rows: int) -> list[pl.Expr | str]:
    """Return a column's text in pieces, given in how many of how many rows it is null."""
    column, kind = pl.col(name), EMPTY.schema[name]
    if missing == rows:
        return [""]
    if kind == pl.Boolean:
        return [pl.when(column).then(pl.lit("True")).otherwise(pl.lit("False"))]
    if kind == pl.String:
        text = column.str.replace_all('"', '""', literal=True)
        return [pl.format('"{}"', text).fill_null("")] if missing else ['"', text, '"']
    return [column if name in _FLOATS else column.to_physical().cast(pl.String).fill_null("")]


def _floats(column: pl.Series) -> pl.Series:
    """Return numbers as Python writes them: what is 1e-05 there is 0.00001 in Polars' own words."""
    odd = (((column.abs() < _PLAIN) & (column != 0)) | column.is_nan()).arg_true()
    texts = column.cast(pl.String)
    return texts.scatter(odd, [*map(repr, column.gather(odd))]) if len(odd) else texts


def _merged(pieces: list[pl.Expr | str]) -> list[pl.Expr | str]:
    """Return the pieces with neighbouring texts joined: each piece costs."""
    merged: list[pl.Expr | str] = []
    for piece in pieces:
        if merged and isinstance(piece, str) and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
