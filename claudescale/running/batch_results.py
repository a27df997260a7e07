"""The result lines of a batch as attempts: any bytes in, a frame out; read by the rules of live answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import prices
from claudescale.api.answers import (
    answer_of,
    dig,
    is_free,
    read_object,
    stop_reason_of,
    text_of,
    usage_of,
    verdict_on_result,
)
from claudescale.api.catalog import ANSWERED, USAGE
from claudescale.ledger.records import ATTEMPTS, RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.api.prices import Price

_MISSING = "The batch has no result for this row. It may have been paid for."
_TEXTS = ("key", "error", "message", "request_id", "stop_reason", "reply")
_COLUMNS = (*_TEXTS, *USAGE, *ANSWERED, "refusal_category", "final", "free")
_READ = pl.Schema({name: ATTEMPTS.get(name, pl.Boolean()) for name in _COLUMNS})


def attempts(block: bytes, *, nonce: str, price: Price, trusted: bool, **same: Any) -> pl.DataFrame:
    """Return the attempts that the result lines of a batch tell of; never raises, whatever the bytes.

    Parameters
    ----------
    block : bytes
        Whole lines in any order; the last newline may be missing.
    nonce : str
        Only lines whose ``custom_id`` ends in ``-{nonce}`` are ours. What stands before it is the key.
    price : Price
        Of the model in a batch.
    trusted : bool
        Whether an error that sending again cannot mend ends its row. False while nothing has been
        answered: then it is hardly the rows.
    **same
        The columns that all attempts have in common; `sent_at` in API unix seconds.

    Returns
    -------
    pl.DataFrame
        `RECORDS`, one row per line, in the order of the lines. A line that cannot be read, or is not ours,
        is left out.
    """
    suffix = f"-{nonce}"
    lines = [row for line in block.split(b"\n") if (row := _row(line, suffix, trusted=trusted)) is not None]
    columns = zip(*lines, strict=True) if lines else [()] * len(_READ)
    read = pl.DataFrame([pl.Series(*column) for column in zip(_READ, columns, _READ.dtypes(), strict=True)])
    unknown = [
        name for name in read["answering_model"].unique().drop_nulls() if not prices.is_priced(price, name)
    ]
    words = {name: prices.unpriced_words(price.model, name) for name in unknown}
    unpriced = pl.col("answering_model").replace_strict(words, default=None, return_dtype=pl.String)
    same |= {"mode": "batch", "status": None, "sent_at": round(same["sent_at"] * 1e6)}
    return read.select(
        *set(_READ) - {"message", "free"},
        message=pl.coalesce("message", unpriced),
        dollars=pl.when("free").then(0.0).otherwise(prices.answers_dollars(price, read)),
        **{name: pl.lit(value).cast(ATTEMPTS[name]) for name, value in same.items()},
    ).select(*RECORDS)


def proves(block: bytes, nonce: str) -> bool | None:
    """Return whether the first readable line is of the batch with this nonce; None if none is readable."""
    for line in block.splitlines():
        if (custom_id := dig(str, read_object(line), "custom_id")) is not None:
            return custom_id.endswith(f"-{nonce}")
    return None


def missing_lines(keys: Iterable[str], nonce: str) -> bytes:
    """Return a line for each key that the results of a batch lack, which says just that."""
    error = {"type": "error", "error": {"type": "result_missing", "message": _MISSING}}
    result = json.dumps({"type": "errored", "error": error})
    return "\n".join(f'{{"custom_id":"{key}-{nonce}","result":{result}}}' for key in keys).encode()


def _row(line: bytes, suffix: str, *, trusted: bool) -> tuple[object, ...] | None:
    """Return a row of `_READ`; None where the line is no result of ours."""
    body = read_object(line)
    custom_id = dig(str, body, "custom_id")
    if custom_id is None or not custom_id.endswith(suffix):
        return None
    result = dig(dict, body, "result") or {}
    found = verdict_on_result(result)
    message = found.reply or {}
    request_id = dig(str, result, "error", "request_id") if found.outcome != "answered" else None
    names = custom_id.removesuffix(suffix), found.error, found.message, request_id
    texts = *names, stop_reason_of(message), text_of(message)
    counts, facts = usage_of(message).values(), answer_of(message).values()
    final = found.final and (found.outcome == "answered" or trusted)
    return *map(_storable, (*texts, *counts, *facts)), final, is_free(message)


def _storable(value: Any) -> Any:
    """Return a text with half a surrogate pair as U+FFFD: neither a file nor a frame can hold it."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value
