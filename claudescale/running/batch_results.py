"""The result lines of a batch as attempts: any bytes in, a frame out.

Two ways lead to the same rows. `_slowly` reads one line at a time with the rules of `verdicts`, whatever
it is. `_quickly` takes those that one pattern knows to the last character, which are nearly all: there
each name that is looked for stands once and in its place, so that it can be found without parsing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import prices
from claudescale.api.answers import (
    CUT,
    DRY_RUN,
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


def _other_than(words: Iterable[str]) -> str:
    """Return a pattern of all names but `words`: the engine of patterns knows no "not"."""
    tails: dict[str, set[str]] = {}
    for word in filter(None, words):
        tails.setdefault(word[0], set()).add(word[1:])
    first = f"[[A-Za-z0-9_]--[{''.join(sorted(tails))}]]" if tails else "[A-Za-z0-9_]"
    ways = [f"{first}[A-Za-z0-9_]*", *(letter + _other_than(rest) for letter, rest in sorted(tails.items()))]
    return f"(?:{'|'.join(ways)}){'' if '' in words else '?'}"


# Polars' patterns take any text in one pass, without looking ahead or back.
_PLACED = ("content", "stop_reason", "usage", "cache_creation", "output_tokens_details", "type", "text")
_SAYS = ("model", "inference_geo", "speed", "web_search_requests")
_COUNTED = ("input", "cache_creation_input", "cache_read_input", "ephemeral_1h_input", "output", "thinking")
_NAME = f'"{_other_than({*_PLACED, *_SAYS, *(f"{name}_tokens" for name in _COUNTED)})}"'
_HEX = "[0-9A-Fa-f]"
_PAIR = rf"[Dd][89ABab]{_HEX}{{2}}\\u[Dd][C-Fc-f]{_HEX}{{2}}"  # of surrogates; one half alone is no text
_ESCAPE = rf'\\(?:["\\/bfnrt]|u(?:[0-9A-CE-Fa-ce-f]{_HEX}{{3}}|[Dd][0-7]{_HEX}{{2}}|{_PAIR}))'
_STRING = rf'"(?:[^"\\\x00-\x1F]|{_ESCAPE})*"'
_COUNT = "(?:0|[1-9][0-9]{0,14})"
_SIMPLE = f"(?:{_STRING}|-?{_COUNT}(?:[.][0-9]{{1,20}})?|true|false|null)"
_INNER = f'(?:{_NAME}|"type"):{_SIMPLE}'
_FREE = rf"{_NAME}:(?:{_SIMPLE}|\{{(?:{_INNER}(?:,{_INNER})*)?\}}|\[\])"
_TYPED = f'(?:"type":{_STRING}|{_FREE})'
_THINKING = (
    rf'\{{"type":"(?:thinking","thinking":{_STRING},"signature|redacted_thinking","data)":{_STRING}\}}'
)
_TEXT = rf'\{{(?:"citations":null,)?"type":"text","text":{_STRING}(?:,"citations":(?:null|\[\]))?\}}'
_CONTENT = rf'"content":\[(?:(?:{_THINKING},)*(?:{_THINKING}|{_TEXT}))?\]'
_REASON = f'"stop_reason":(?:null|"{_other_than({"refusal"})}")'
_MODEL = '"model":"[A-Za-z0-9._:/@-]+"'
_TOKENS = {name: f'"{name}_tokens":(?:{_COUNT}|null)' for name in (*_COUNTED, "ephemeral_5m_input")}
_CREATION = f"{_TOKENS['ephemeral_5m_input']},{_TOKENS['ephemeral_1h_input']}"
_GEO, _SPEED = (f'"{name}":(?:null|"[a-z_-]+")' for name in ("inference_geo", "speed"))
_NO_SEARCH = r'"server_tool_use":\{"web_(?:search|fetch)_requests":0(?:,"web_(?:search|fetch)_requests":0)?\}'
_USED = f"(?:{_FREE}|{_NO_SEARCH})"
_USAGE = (
    rf'"usage":\{{{_TOKENS["input"]}'
    f"(?:,{_TOKENS['cache_creation_input']})?(?:,{_TOKENS['cache_read_input']})?"
    rf'(?:,"cache_creation":(?:null|\{{{_CREATION}\}}))?,{_TOKENS["output"]}'
    rf'(?:,"output_tokens_details":(?:null|\{{{_TOKENS["thinking"]}\}}))?(?:,{_USED})*'
    rf"(?:,(?:{_GEO}|{_SPEED})(?:,{_USED})*|,{_GEO}(?:,{_USED})*,{_SPEED}(?:,{_USED})*"
    rf"|,{_SPEED}(?:,{_USED})*,{_GEO}(?:,{_USED})*)?\}}"
)
_MESSAGE = (
    rf"\{{(?:{_TYPED},)*(?:{_MODEL},(?:{_TYPED},)*)?{_CONTENT}"
    rf"(?:,{_TYPED})*,{_REASON}(?:,{_TYPED})*,{_USAGE}(?:,{_TYPED})*\}}"
)
_START = r'^\{"custom_id":"[A-Za-z0-9_-]*","result":\{"type":'
_KNOWN = rf'{_START}(?:"succeeded","message":{_MESSAGE}|"expired"|"canceled")\}}\}}$'


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
    read, left = _quickly(lines, nonce)
    if left:
        slow = _slowly(((at, lines[at]) for at in left), nonce=nonce, trusted=trusted)
        read = pl.concat([read, slow]).sort("at")
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


def answered(
    key: str,
    message: dict[str, Any],
    *,
    model: str,
    price: Price,
    simulated: bool,
    run: str,
    request_id: str | None,
    sent_at: float,
    seconds: float,
) -> pl.DataFrame:
    """Return the attempt of a message that only had the API look at a request: as `attempts`, never final."""
    line = {"custom_id": f"{key}-", "result": {"type": "succeeded", "message": message}}
    read = attempts(
        json.dumps(line).encode(),
        nonce="",
        batch_id="",
        model=model,
        price=price,
        simulated=simulated,
        run=run,
        sent_at=sent_at,
        seconds=seconds,
        trusted=False,
    )
    return read.with_columns(
        mode=pl.lit("live"),
        batch_id=pl.lit(None, pl.String),
        status=pl.lit(200, pl.Int64),
        error=pl.lit(DRY_RUN),
        message=pl.lit(WORDS[DRY_RUN]),
        request_id=pl.lit(request_id, pl.String),
        reply=pl.lit(None, pl.String),
        final=pl.lit(value=False),
    )


def missing_lines(keys: Iterable[str], nonce: str) -> bytes:
    """Return a line for each key that the results of a batch lack, which says just that."""
    error = {"type": "error", "error": {"type": "result_missing", "message": _MISSING}}
    result = json.dumps({"type": "errored", "error": error})
    return "\n".join(f'{{"custom_id":"{key}-{nonce}","result":{result}}}' for key in keys).encode()


def _quickly(lines: Sequence[bytes], nonce: str) -> tuple[pl.DataFrame, Sequence[int]]:
    """Return `_READ` and `at` of those lines that are as usual and ours, and which lines are left."""
    raw = pl.Series(lines, dtype=pl.Binary)
    try:
        texts = raw.cast(pl.String)
    except pl.exceptions.ComputeError:
        texts = pl.Series([_decoded(line) for line in lines], dtype=pl.String)
    known = texts.str.contains(_KNOWN).fill_null(value=False)
    left = (~known).arg_true().to_list()
    found = pl.DataFrame({"line": texts}).with_row_index("at").filter(known)
    line = pl.col("line").str
    counts = {
        name: line.extract(f'"{name}_tokens":([0-9]+)').cast(pl.Int64).fill_null(0) for name in _COUNTED
    }
    quoted = line.extract(r'"text":"(?:[^"\\]|\\.)*"', 0).str.strip_prefix('"text":')
    unread = found.select(
        "at",
        custom_id=line.extract(r'^\{"custom_id":"([A-Za-z0-9_-]*)"'),
        without=line.extract(r'"(expired|canceled)"\}\}$'),
        stop_reason=line.extract('"stop_reason":"([A-Za-z0-9_]+)"'),
        answering_model=line.extract('"model":"([^"]+)"'),
        inference_geo=line.extract('"inference_geo":"([^"]+)"'),
        speed=line.extract('"speed":"([^"]+)"'),
        reply=quoted.str.json_decode(pl.String),
        **counts,
    ).filter(pl.col("custom_id").str.ends_with(f"-{nonce}"))
    reply = pl.when(pl.col("reply") != "").then("reply")
    cut = pl.when(pl.col("stop_reason").is_in(CUT)).then("stop_reason")
    silent = pl.when(reply.is_null()).then(pl.lit("empty_reply"))
    error = pl.coalesce("without", cut, silent)
    hour = pl.col("ephemeral_1h_input")
    read = unread.select(
        "at",
        "stop_reason",
        *ANSWERED[:-1],
        key=pl.col("custom_id").str.strip_suffix(f"-{nonce}"),
        error=error,
        message=error.replace_strict(WORDS, default=None, return_dtype=pl.String),
        request_id=pl.lit(None, pl.String),
        reply=reply,
        input_tokens="input",
        cache_write_5m_input_tokens=pl.max_horizontal("cache_creation_input", hour) - hour,
        cache_write_1h_input_tokens=hour,
        cache_read_input_tokens="cache_read_input",
        output_tokens="output",
        thinking_tokens="thinking",
        web_search_requests=pl.lit(0, pl.Int64),
        refusal_category=pl.lit(None, pl.String),
        final=pl.col("without").is_null(),
        free=pl.lit(value=False),
    ).select("at", *_READ)
    return read, left


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


def _slowly(lines: Iterator[tuple[int, bytes]], *, nonce: str, trusted: bool) -> pl.DataFrame:
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
