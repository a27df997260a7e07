"""The result lines of a batch as attempts: any bytes in, a frame out.

Lines as the API writes them are read by Polars, by a schema. Any other (an error, a refusal, damaged) is read
by itself with the rules of `answers`. Both give the same row.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import prices
from claudescale.api.answers import (
    CUT,
    WORDS,
    Verdict,
    answer_of,
    is_free,
    read_object,
    stop_reason_of,
    text_of,
    usage_of,
    verdict_on_result,
)
from claudescale.api.catalog import ANSWERED, USAGE
from claudescale.ledger.records import ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from claudescale.api.prices import Price

_MISSING = "The batch has no result for this row. It may have been paid for."
_SAID = (*ANSWERED, "refusal_category")
_COLUMNS = ("key", "error", "message", "request_id", "stop_reason", "reply", *USAGE, *_SAID, "final", "free")
_READ = pl.Schema({name: ATTEMPTS.get(name, pl.Boolean()) for name in _COLUMNS})


_TOKENS = ("input", "cache_creation_input", "cache_read_input", "output")
_USAGE = {f"{name}_tokens": pl.Int64() for name in _TOKENS} | {
    "cache_creation": pl.Struct({"ephemeral_1h_input_tokens": pl.Int64()}),
    "output_tokens_details": pl.Struct({"thinking_tokens": pl.Int64()}),
    "server_tool_use": pl.Struct({"web_search_requests": pl.Int64()}),
    "inference_geo": pl.String(),
    "speed": pl.String(),
}
_MESSAGE = {
    "model": pl.String(),
    "stop_reason": pl.String(),
    "content": pl.List(pl.Struct({"type": pl.String(), "text": pl.String()})),
    "usage": pl.Struct(_USAGE),
}
_RESULT = {"type": pl.String(), "message": pl.Struct(_MESSAGE)}
_LINE = pl.Struct({"custom_id": pl.String(), "result": pl.Struct(_RESULT)})
# What Polars takes for something else: no whole number, no text, or half a surrogate pair.
_DOUBTFUL = (
    r'_(?:tokens|requests)": ?(?:[^0-9n ]|[0-9]+[^0-9,}]|[0-9]{16})'
    r'|"(?:custom_id|type|text|model|stop_reason|inference_geo|speed)": ?[^"n ]'
    r"|\\u[dD][89a-fA-F]"
)


def attempts(
    block: bytes,
    *,
    nonce: str,
    batch_id: str,
    model: str,
    price: Price,
    simulated: bool,
    run: str,
    sent_at: float,
    seconds: float,
    trusted: bool,
) -> pl.DataFrame:
    """Return the attempts that the result lines of a batch tell of; never raises, whatever the bytes.

    Spends: nothing.

    Parameters
    ----------
    block : bytes
        Whole lines in any order; the last newline may be missing.
    nonce : str
        Only lines whose ``custom_id`` ends in ``-{nonce}`` are ours. What stands before it is the key.
    batch_id, model, simulated, run
        What all attempts have in common.
    price : Price
        Of the model in a batch.
    sent_at, seconds : float
        API unix seconds at which the batch was sent, and how long it took.
    trusted : bool
        Whether an error that sending again cannot mend ends its row. False while nothing has been
        answered: then it is hardly the rows.

    Returns
    -------
    pl.DataFrame
        `ATTEMPTS` and Boolean `final`, one row per line, in the order of the lines. A line that cannot
        be read, or is not ours, is left out.
    """
    lines = block.split(b"\n")
    read, left = _by_schema(lines, nonce)
    if left:
        single = _one_by_one(((at, lines[at]) for at in left), nonce=nonce, trusted=trusted)
        read = pl.concat([read, single]).sort("at")
    message = pl.coalesce("message", _unpriced(read["answering_model"], price))
    cost = pl.when("free").then(0.0).otherwise(prices.answers_dollars(price, read))
    same = {"run": run, "mode": "batch", "batch_id": batch_id, "model": model, "seconds": seconds}
    moment = pl.lit(round(sent_at * 1e6), pl.Int64)
    return (
        read.with_columns(message.alias("message"))
        .select(
            *_READ,
            dollars=cost,
            sent_at=moment.cast(ATTEMPTS["sent_at"]),
            status=pl.lit(None, pl.Int64),
            simulated=pl.lit(simulated),
            **{name: pl.lit(value, ATTEMPTS[name]) for name, value in same.items()},
        )
        .select(*ATTEMPTS, "final")
    )


def proves(block: bytes, nonce: str) -> bool | None:
    """Return whether the first readable line is of the batch with this nonce; None if none is readable.

    Spends: nothing.
    """
    for line in _lines(block):
        custom_id = read_object(line).get("custom_id")
        if isinstance(custom_id, str):
            return custom_id.endswith(f"-{nonce}")
    return None


def missing_lines(keys: Iterable[str], nonce: str) -> bytes:
    """Return a line for each key that the results of a batch lack, which says just that."""
    error = {"type": "error", "error": {"type": "result_missing", "message": _MISSING}}
    result = json.dumps({"type": "errored", "error": error})
    return "\n".join(f'{{"custom_id":"{key}-{nonce}","result":{result}}}' for key in keys).encode()


def _by_schema(lines: Sequence[bytes], nonce: str) -> tuple[pl.DataFrame, Sequence[int]]:
    """Return `_READ` and `at` of those lines that are as usual and ours, and which lines are left."""
    texts = pl.Series([line or None for line in lines], dtype=pl.Binary)
    try:
        texts = texts.cast(pl.String)
    except pl.exceptions.ComputeError:
        texts = pl.Series([_decoded(line) for line in lines], dtype=pl.String)
    doubtful = texts.str.contains(_DOUBTFUL).fill_null(value=True)
    usual = texts.set(doubtful, None)
    found = _decode(usual).struct.unnest().unnest("result").unnest("message").with_row_index("at")
    usage, content = pl.col("usage").struct, pl.col("content")
    called = content.list.eval(pl.element().struct.field("type") == "tool_use").list.any()
    answered = (
        (pl.col("type") == "succeeded")
        & content.is_not_null()
        & usage.field("input_tokens").is_not_null()
        & (pl.col("stop_reason") != "refusal").fill_null(value=True)
        & ~called.fill_null(value=False)
    )
    silent = pl.all_horizontal(pl.col(*_MESSAGE).is_null())
    without = pl.when(pl.col("type").is_in(["expired", "canceled"]) & silent).then("type")
    known = (answered | without.is_not_null()).fill_null(value=False)
    read = found.with_columns(without=without, known=known)
    left = (~read["known"]).arg_true().to_list()
    ours = pl.col("known") & pl.col("custom_id").str.ends_with(f"-{nonce}")
    return read.filter(ours).select(*_usual_row(nonce)).select("at", *_READ), left


def _decode(texts: pl.Series) -> pl.Series:
    """Return lines read by schema; one that does not fit it is halved off until it stands alone: null."""
    try:
        found = texts.str.json_decode(_LINE)
    except pl.exceptions.ComputeError:
        found = None
    if found is not None and found.len() == texts.len():
        return found
    if texts.len() == 1:
        return pl.Series([None], dtype=_LINE)
    half = texts.len() // 2
    return _decode(texts[:half]).append(_decode(texts[half:]))


def _usual_row(nonce: str) -> list[pl.Expr]:
    """Return the columns of `_READ` of lines that are as usual."""
    usage = pl.col("usage").struct
    blocks = pl.element().struct
    texts = pl.col("content").list.eval(pl.when(blocks.field("type") == "text").then(blocks.field("text")))
    joined = texts.list.join("")
    reply = pl.when(pl.col("without").is_null() & (joined != "")).then(joined)
    cut = pl.when(pl.col("stop_reason").is_in(CUT)).then("stop_reason")
    silent = pl.when(reply.is_null()).then(pl.lit("empty_reply"))
    error = pl.coalesce("without", cut, silent)

    def count(name: str, inside: str | None = None) -> pl.Expr:
        field = usage.field(name) if inside is None else usage.field(inside).struct.field(name)
        return field.fill_null(0)

    hour = count("ephemeral_1h_input_tokens", "cache_creation")
    written = pl.max_horizontal(count("cache_creation_input_tokens"), hour)
    return [
        pl.col("at"),
        pl.col("custom_id").str.strip_suffix(f"-{nonce}").alias("key"),
        error.alias("error"),
        error.replace_strict(WORDS, default=None, return_dtype=pl.String).alias("message"),
        pl.lit(None, pl.String).alias("request_id"),
        pl.col("stop_reason"),
        reply.alias("reply"),
        count("input_tokens"),
        (written - hour).alias("cache_write_5m_input_tokens"),
        hour.alias("cache_write_1h_input_tokens"),
        count("cache_read_input_tokens"),
        count("output_tokens"),
        count("thinking_tokens", "output_tokens_details"),
        pl.col("model").alias("answering_model"),
        usage.field("inference_geo"),
        usage.field("speed"),
        count("web_search_requests", "server_tool_use"),
        pl.lit(None, pl.String).alias("refusal_category"),
        pl.col("without").is_null().alias("final"),
        pl.lit(value=False).alias("free"),
    ]


def _unpriced(models: pl.Series, price: Price) -> pl.Expr:
    """Return what is said where a model answered whose price is not known, null elsewhere."""
    unknown = [name for name in models.unique().drop_nulls() if not prices.is_priced(price, name)]
    words = {name: prices.unpriced_words(price.model, name) for name in unknown}
    return pl.col("answering_model").replace_strict(words, default=None, return_dtype=pl.String)


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _lines(block: bytes) -> Iterator[bytes]:
    """Yield the lines one by one: who wants the first does not split all."""
    start = 0
    while (end := block.find(b"\n", start)) >= 0:
        yield block[start:end]
        start = end + 1
    yield block[start:]


def _one_by_one(lines: Iterator[tuple[int, bytes]], *, nonce: str, trusted: bool) -> pl.DataFrame:
    """Return `_READ` of the lines that are ours, and `at`: the number of each line."""
    found = ((at, *row) for at, line in lines if (row := _read(line, nonce, trusted=trusted)) is not None)
    return pl.DataFrame(list(found), schema={"at": pl.get_index_type(), **_READ}, orient="row")


def _read(line: bytes, nonce: str, *, trusted: bool) -> tuple[object, ...] | None:
    """Return a row of `_READ`; None where the line is no result of ours."""
    body = read_object(line)
    custom_id = body.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id.endswith(f"-{nonce}"):
        return None
    result = body.get("result")
    result = result if isinstance(result, dict) else {}
    found = verdict_on_result(result)
    message = found.reply or {}
    texts = (
        custom_id[: -len(nonce) - 1],
        found.error,
        found.message,
        _request_id(result, found),
        stop_reason_of(message),
        text_of(message),
    )
    final = found.final and (found.outcome == "answered" or trusted)
    said = (_storable(each) if isinstance(each, str) else each for each in answer_of(message).values())
    return *map(_storable, texts), *usage_of(message).values(), *said, final, is_free(message)


def _request_id(result: dict[str, Any], found: Verdict) -> str | None:
    error = result.get("error")
    name = error.get("request_id") if isinstance(error, dict) and found.outcome != "answered" else None
    return name if isinstance(name, str) else None


def _storable(text: str | None) -> str | None:
    """Return a text with half a surrogate pair as U+FFFD: neither a file nor a frame can hold it."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
