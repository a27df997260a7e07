"""The result lines of a batch as attempts: any bytes in, a frame out.

A reply as the API usually writes it is taken apart at once. Any other line (an error, a refusal, a tool call,
damage) is read with the rules of `answers`, as a live answer is. Both give the same row.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import NoneType
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic_core import from_json

from claudescale.api import answers, prices
from claudescale.api.answers import MOST_TOKENS, dig, read_object
from claudescale.api.catalog import ANSWERED, USAGE
from claudescale.ledger.records import ATTEMPTS, RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.api.prices import Price
    from claudescale.ledger.records import Batch

_MISSING = "The batch has no result for this row. It may have been paid for."
_TEXTS = ("key", "error", "message", "request_id", "stop_reason", "reply")
_COLUMNS = (*_TEXTS, *USAGE, *ANSWERED, "refusal_category", "final", "free")
_READ = pl.Schema({name: ATTEMPTS.get(name, pl.Boolean()) for name in _COLUMNS})
_USUAL_ENDS = {"end_turn", "stop_sequence"}
_INNER = (
    ("cache_creation", "ephemeral_1h_input_tokens"),
    ("output_tokens_details", "thinking_tokens"),
    ("server_tool_use", "web_search_requests"),
)


def attempts(block: bytes, batch: Batch, price: Price, *, trusted: bool, **same: Any) -> pl.DataFrame:
    """Return the attempts that the result lines of a batch tell of; never raises, whatever the bytes.

    Parameters
    ----------
    block : bytes
        Whole lines in any order; the last newline may be missing.
    batch : Batch
        Only lines whose ``custom_id`` ends in ``-{nonce}`` are its. What stands before it is the key.
    price : Price
        Of the model in a batch; it is billed as on the day it was made.
    trusted : bool
        Whether an error that sending again cannot mend ends its row. False while nothing has been
        answered: then it is hardly the rows.
    **same
        The columns that all attempts of a run have in common.

    Returns
    -------
    pl.DataFrame
        `RECORDS`, one row per line, in the order of the lines. A line that cannot be read, or is not ours,
        is left out.
    """
    suffix, begun = f"-{batch.nonce}", batch.created_at or batch.intended_at
    price = price.at(datetime.fromtimestamp(begun, UTC))
    lines = [row for line in block.split(b"\n") if (row := _row(line, suffix, trusted=trusted)) is not None]
    columns = zip(*lines, strict=True) if lines else [()] * len(_READ)
    read = pl.DataFrame([pl.Series(*column) for column in zip(_READ, columns, _READ.dtypes(), strict=True)])
    names = read["answering_model"].unique().drop_nulls()
    words = {name: said for name in names if (said := prices.unpriced(price, name))}
    unpriced = pl.col("answering_model").replace_strict(words, default=None, return_dtype=pl.String)
    same |= {"mode": "batch", "status": None, "batch_id": batch.batch_id, "sent_at": round(begun * 1e6)}
    same["seconds"] = (batch.ended_at or begun) - begun
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
    try:
        row = _usual_row(from_json(line, cache_strings="keys"), suffix)
    except (ValueError, KeyError, TypeError, AttributeError):
        row = None
    return row or _any_row(read_object(line), suffix, trusted=trusted)


def _any_row(body: dict[str, Any], suffix: str, *, trusted: bool) -> tuple[object, ...] | None:
    """Return the same of any line, as a live answer is read."""
    custom_id, result = dig(str, body, "custom_id"), dig(dict, body, "result") or {}
    if custom_id is None or not custom_id.endswith(suffix):
        return None
    found = answers.verdict_on_result(result)
    message, answered = found.reply or {}, found.outcome == "answered"
    row = answers.usage_of(message) | answers.answer_of(message)
    row |= {
        "key": custom_id.removesuffix(suffix),
        "error": found.error,
        "message": found.message,
        "request_id": None if answered else dig(str, result, "error", "request_id"),
        "stop_reason": answers.stop_reason_of(message),
        "reply": answers.text_of(message),
        "final": found.final and (answered or trusted),
        "free": answers.is_free(message),
    }
    return tuple(_storable(row[name]) for name in _READ)


def _usual_row(body: dict[str, Any], suffix: str) -> tuple[object, ...] | None:
    """Return the same of a whole reply in text; None, or an error, where anything is unusual."""
    custom_id, result = body["custom_id"], body["result"]
    message = result["message"]
    usage, content, stop_reason = message["usage"], message["content"], message["stop_reason"]
    kinds = [part["type"] for part in content]
    reply = "".join([part["text"] for part in content if part["type"] == "text"])
    hour, thinking, searches = [(usage.get(outer) or {}).get(name) or 0 for outer, name in _INNER]
    written, read = usage.get("cache_creation_input_tokens") or 0, usage.get("cache_read_input_tokens") or 0
    counts = usage["input_tokens"], written, hour, read, usage["output_tokens"], thinking, searches
    names = message["model"], usage.get("inference_geo"), usage.get("speed")
    usual = (
        result["type"] == "succeeded"
        and custom_id.endswith(suffix)
        and reply
        and stop_reason in _USUAL_ENDS
        and "tool_use" not in kinds
        and {*map(type, counts)} == {int}
        and min(counts) >= 0
        and max(counts) <= MOST_TOKENS
        and hour <= written
        and {*map(type, names)} <= {str, NoneType}
    )
    if not usual:
        return None
    tokens = counts[0], written - hour, *counts[2:6]
    key = custom_id.removesuffix(suffix)
    return key, None, None, None, stop_reason, reply, *tokens, *names, searches, None, True, False


def _storable(value: object) -> object:
    """Return a text with half a surrogate pair as U+FFFD: neither a file nor a frame can hold it."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
