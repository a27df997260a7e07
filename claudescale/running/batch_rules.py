"""Decisions about batches: how much fits into one, what an answer means, when to poll, how to read results.

All functions are pure; `batches` acts on them.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import answers, catalog, prices
from claudescale.api.answers import MOST_TOKENS, NO_ENDPOINT, Verdict, dig, read_object, verdict
from claudescale.api.catalog import ANSWERED, USAGE
from claudescale.ledger.records import ATTEMPTS, OPEN, RECORDS, storable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from claudescale.api.answers import Answer
    from claudescale.api.prices import Price
    from claudescale.ledger.records import Batch
    from claudescale.prompts.requests import Work

FULL_BYTES = int(catalog.BATCH.max_bytes * 0.95)
"""Size of a full batch: below the API's limit, as the API may count bytes differently."""
NONCE_BYTES = 6
DATE_SECONDS = 120.0
"""Largest difference expected between the API's clock and the dates in its answers."""
LOST_SECONDS = 300.0
"""How long the API may still be creating a batch after its answer was lost."""
ALIKE_ROWS = 20
"""If at least this many rows are refused alike and none is answered, the request is wrong, not the rows."""
NEARLY_ALL = 0.95
LONGEST_UPLOAD_SECONDS = 3_600.0
USUAL_SECONDS = 3_600.0
"""Most batches end within an hour. Source: Anthropic, *Batch processing* (checked 2026-08-14)."""
_PART_BYTES = 4_000_000
_COUNTS = ("succeeded", "errored", "canceled", "expired")
_MOMENTS = ("created_at", "expires_at", "ended_at")
_OPENING, _CLOSING, _ID, _PARAMS, _END = '{"requests":[', "]}", '{"custom_id":"', '","params":', "}"
_ROW_BYTES = len(f"{_ID}-{_PARAMS}{_END},") + 32 + 2 * NONCE_BYTES
_SHORTEST_SECONDS, _LONGEST_SECONDS, _GROWTH = 5.0, 300.0, 0.05


# the contents of a batch


def fitting(rows: pl.DataFrame, *, requests: int, dollars: float) -> int:
    """Return how many of the first rows fit into one batch of at most `dollars` in the worst case."""
    # A first row that is larger than a batch goes alone, for the API to refuse.
    alone = pl.int_range(pl.len()) == 0
    short = alone | ((pl.col("bytes") + _ROW_BYTES).cum_sum() <= FULL_BYTES)
    fits = short & (pl.col("worst_dollars").cum_sum() <= dollars)
    return int(rows.head(max(requests, 0)).select(fits.sum()).item())


def body_bytes(rows: pl.DataFrame) -> int:
    """Return how many bytes `body` yields in total."""
    return int(rows["bytes"].sum()) + rows.height * _ROW_BYTES - 1 + len(_OPENING + _CLOSING)


def body(rows: pl.DataFrame, work: Work, nonce: str) -> Iterator[bytes]:
    """Yield the body of a batch in parts of a few megabytes, each rendered on demand."""
    prompt = work.prompt
    before = _OPENING.encode()
    for part in _parts(rows):
        head, key = pl.lit(f"-{nonce}{_PARAMS}{prompt.head}"), part["key"]
        requests = pl.concat_str(
            pl.lit(_ID), key, head, work.messages(part["row"]), pl.lit(f"{prompt.tail}{_END}")
        )
        yield before + b",".join(pl.select(requests.cast(pl.Binary)).to_series().to_list())
        before = b","
    yield _CLOSING.encode()


def _parts(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the rows in slices of a few megabytes; a single row may be larger."""
    start = 0
    for length in (rows["bytes"].cum_sum() // _PART_BYTES).rle().struct.field("len"):
        yield rows.slice(start, length)
        start += length


# the meaning of an answer


def made(answer: Answer) -> bool | None:
    """Whether a posted batch was created; None if the answer leaves that open, so that it is searched for."""
    if answer.status is None:
        return None if answer.sent else False
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return is_batch(read_object(answer.content)) or None
    return None if verdict(answer).outcome in {"overloaded", "again"} else False


def dry_run(request: bytes) -> tuple[bytes, int]:
    """Return the request limited to the shortest reply that the API allows, and that reply's tokens."""
    fields = json.loads(request)
    longest = fields["max_tokens"] = (dig(int, fields, "thinking", "budget_tokens") or 0) + 1
    return json.dumps(fields).encode(), longest


def trusts(batch: Batch, *, known_good: bool) -> bool:
    """Whether refused rows of a batch are themselves to blame, as others were answered in it or before."""
    refused = batch.errored >= NEARLY_ALL * (batch.errored + batch.succeeded)
    return not refused or (known_good and batch.requests < ALIKE_ROWS)


def refused_alike(
    batch: Batch, refused: Collection[tuple[str, str]], *, is_last: bool
) -> tuple[str, str] | None:
    """Return the error and a message if nearly all rows were refused alike: the request is wrong then."""
    # `refused` has the error and message of each refused row. A small batch is proof only if it `is_last`.
    enough = is_last or batch.requests >= ALIKE_ROWS
    for (error, message), rows in Counter(refused).most_common(1):
        if enough and rows >= NEARLY_ALL * batch.requests:
            count = f"{rows:,} of {batch.requests:,} rows of batch {batch.batch_id}"
            return error, f"{count} were refused alike: {message}"
    return None


def is_hopeless(meaning: Verdict) -> bool:
    """Whether a retry would get the same answer."""
    return meaning.outcome == "stop" or (meaning.outcome == "failed" and meaning.final)


def is_batch(shown: dict[str, Any]) -> bool:
    """Whether an answer describes a batch."""
    return isinstance(shown.get("id"), str) and isinstance(shown.get("processing_status"), str)


def is_gone(answer: Answer) -> bool:
    """Whether the API says that the batch does not exist, or no longer exists."""
    return answer.status == HTTPStatus.NOT_FOUND and verdict(answer).error in {"not_found_error", NO_ENDPOINT}


def has_results(shown: dict[str, Any]) -> bool:
    """Whether the results of an ended batch can still be read."""
    return bool(shown.get("results_url")) and not shown.get("archived_at")


def updated(batch: Batch, shown: dict[str, Any]) -> Batch:
    """Return a batch as the API shows it now; unreadable fields keep their values."""
    counts = {name: dig(int, shown, "request_counts", name) for name in _COUNTS}
    moments = {name: seconds_of(shown.get(name)) for name in _MOMENTS}
    fields: dict[str, Any] = counts | moments
    readable = {name: value for name, value in fields.items() if value is not None}
    state = shown["processing_status"] if shown["processing_status"] in OPEN else "in_progress"
    return batch._replace(**readable, batch_id=shown["id"], state=state)


def seconds_of(moment: object) -> float | None:
    """Return an RFC 3339 timestamp as Unix seconds; None if it is not one."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# a batch whose answer was lost


def window(batch: Batch, until: float, answer: Answer, now: float) -> tuple[float, float]:
    """Return the API times between which a batch whose answer was lost may have been created."""
    # From `until` on, by this clock, the API can no longer create it. An answer's date shows how far this
    # clock is off now; it may have been right when the intent was recorded.
    try:
        ahead = parsedate_to_datetime(answer.headers["date"]).timestamp() - now
    except (KeyError, ValueError, OverflowError, OSError, TypeError, IndexError):
        ahead = 0.0
    return batch.intended_at + min(ahead, 0.0) - DATE_SECONDS, until + max(ahead, 0.0) + DATE_SECONDS


def may_be(batch: Batch, shown: dict[str, Any], window: tuple[float, float]) -> bool:
    """Whether a listed batch may be the one whose answer was lost, judged by creation time and size."""
    created, counts = seconds_of(shown.get("created_at")), dig(dict, shown, "request_counts")
    if not is_batch(shown) or created is None or counts is None:
        return False
    return window[0] <= created <= window[1] and sum(counts.values()) == batch.requests


# when to poll


def poll_seconds(age_seconds: float) -> float:
    """Return how long to wait before the next poll: fewer than 400 polls in 24 hours."""
    return min(max(age_seconds * _GROWTH, _SHORTEST_SECONDS), _LONGEST_SECONDS)


class Expected(NamedTuple):
    """The state of a run's batches, and when the last of them ends."""

    open: int  # pending batches
    ended: int
    requests: int  # in pending batches
    usual_seconds: float | None  # until the last one has usually ended; None once that time has passed
    latest_seconds: float  # until the last one expires


def expected_end(batches: Iterable[Batch], now: float) -> Expected | None:
    """Return when the pending batches end, most within an hour of the last; None if there are none."""
    # The API shows no progress of a batch before its end.
    made = [batch for batch in batches if batch.state != "absent"]
    pending = [batch for batch in made if batch.ended_at is None and batch.state in OPEN]
    if not pending:
        return None
    age = now - max(batch.created_at or batch.intended_at for batch in pending)
    return Expected(
        open=len(pending),
        ended=len(made) - len(pending),
        requests=sum(batch.requests for batch in pending),
        usual_seconds=USUAL_SECONDS - age if age < USUAL_SECONDS else None,
        latest_seconds=max(catalog.BATCH.expires_hours * 3_600 - age, 0.0),
    )


# result lines as attempts

# Polars decodes many lines at once. Any line but a complete text reply (an error, a refusal, a tool
# call, damage) is read by the rules of `answers`, like a live answer. Both ways give the same row.

_SLICE_ROWS = 2_000  # decoded at once; with more, each row takes longer
_MISSING = "The batch has no result for this row. It may have been paid for."
_ABSENT = ("error", "message", "request_id", "refusal_category")  # from a complete reply
_COLUMNS = ("key", "stop_reason", "reply", *_ABSENT, *USAGE, *ANSWERED, "final", "free")
_READ = pl.Schema({"line": pl.UInt32()} | {name: ATTEMPTS.get(name, pl.Boolean()) for name in _COLUMNS})
_TEXT, _COUNT = pl.String(), pl.Int64()
_INNER = {
    "cache_creation": pl.Struct({"ephemeral_1h_input_tokens": _COUNT}),
    "output_tokens_details": pl.Struct({"thinking_tokens": _COUNT}),
    "server_tool_use": pl.Struct({"web_search_requests": _COUNT}),
}
_NEEDED = ["input_tokens", "output_tokens"]
_CACHED = ["cache_creation_input_tokens", "cache_read_input_tokens"]
_OPTIONAL = [*_CACHED, *(field.name for struct in _INNER.values() for field in struct.fields)]
_OUTER = dict.fromkeys(_NEEDED + _CACHED, _COUNT) | {"inference_geo": _TEXT, "speed": _TEXT}
_USAGE = pl.Struct({**_OUTER, **_INNER})
_CONTENT = pl.List(pl.Struct({"type": _TEXT, "text": _TEXT}))
_REPLY = pl.Struct({"model": _TEXT, "stop_reason": _TEXT, "content": _CONTENT, "usage": _USAGE})
_LINE = pl.Struct({"custom_id": _TEXT, "result": pl.Struct({"type": _TEXT, "message": _REPLY})})
"""The fields of a reply's line; Polars leaves out all others."""
_DECODED = pl.Schema({"line": pl.UInt32(), "text": _LINE})
# Values that Polars would convert: to text, to a whole number, or half a character to a null character.
_CONVERTED = (
    r'"(text|model|speed|inference_geo)"\s*:\s*[-\dtf]|_(tokens|requests)"\s*:\s*([tf]|-?\d+[.eE])|\\u[dD]'
)


def attempts(block: bytes, batch: Batch, price: Price, *, trusted: bool, **same: Any) -> pl.DataFrame:
    """Return the attempts in the result lines of a batch; never raises, even for arbitrary bytes.

    Parameters
    ----------
    block : bytes
        Whole lines in any order; the last newline may be missing.
    batch : Batch
        Only lines whose ``custom_id`` ends in ``-{nonce}`` belong to it. The part before that is the key.
    price : Price
        Batch price of the model. The price on the day when the batch was created applies.
    trusted : bool
        Whether an error that no retry can fix ends its row. False while nothing has been answered, as the
        rows are then unlikely to be the cause.
    **same
        Columns with the same value in all attempts of a run.

    Returns
    -------
    pl.DataFrame
        `RECORDS`, one row per line, in the order of the lines. Unreadable lines and lines of other batches
        are left out.
    """
    begun = batch.created_at or batch.intended_at
    price = price.at(datetime.fromtimestamp(begun, UTC))
    read = _read(block, f"-{batch.nonce}", trusted=trusted)
    names = read["answering_model"].unique().drop_nulls()
    words = {name: said for name in names if (said := prices.unpriced(price, name))}
    unpriced = pl.col("answering_model").replace_strict(words, default=None, return_dtype=pl.String)
    same |= {"mode": "batch", "status": None, "batch_id": batch.batch_id, "sent_at": round(begun * 1e6)}
    same["seconds"] = (batch.ended_at or begun) - begun
    return read.select(
        *set(_READ) - {"line", "message", "free"},
        message=pl.coalesce("message", unpriced),
        dollars=pl.when("free").then(0.0).otherwise(prices.answers_dollars(price, read)),
        **{name: pl.lit(value).cast(ATTEMPTS[name]) for name, value in same.items()},
    ).select(*RECORDS)


def proves(block: bytes, nonce: str) -> bool | None:
    """Whether the first readable line belongs to the batch with this nonce; None if no line is readable."""
    for line in block.splitlines():
        if (custom_id := dig(str, read_object(line), "custom_id")) is not None:
            return custom_id.endswith(f"-{nonce}")
    return None


def missing_lines(keys: Iterable[str], nonce: str) -> bytes:
    """Return an error line for each key that is missing from the results of a batch."""
    error = {"type": "error", "error": {"type": "result_missing", "message": _MISSING}}
    result = json.dumps({"type": "errored", "error": error})
    return "\n".join(f'{{"custom_id":"{key}-{nonce}","result":{result}}}' for key in keys).encode()


def _read(block: bytes, suffix: str, *, trusted: bool) -> pl.DataFrame:
    """Return `_READ` of the lines that are results of this batch, in their order."""
    try:
        texts = pl.Series("text", block.split(b"\n")).cast(pl.String)
    except pl.exceptions.ComputeError:  # a byte is damaged
        texts = pl.Series("text", block.decode("utf-8", "replace").split("\n"))
    lines = texts.to_frame().with_row_index("line").filter(pl.col("text") != "")
    decoded = pl.concat([_DECODED.to_frame(), *map(_decoded, lines.iter_slices(_SLICE_ROWS))])
    usual = _usual_rows(decoded, suffix)
    others = lines.join(usual, on="line", how="anti", maintain_order="left").rows()
    read = [(line, *row) for line, text in others if (row := _any_row(text, suffix, trusted=trusted))]
    return pl.concat([usual, pl.DataFrame(read, schema=_READ, orient="row")]).sort("line")


def _any_row(line: str, suffix: str, *, trusted: bool) -> tuple[object, ...] | None:
    """Return the row for any line, read by the rules for live answers; None if it is not of this batch."""
    body = read_object(line)
    custom_id, result = dig(str, body, "custom_id"), dig(dict, body, "result") or {}
    if custom_id is None or not custom_id.endswith(suffix):
        return None
    meaning = answers.verdict_on_result(result)
    message, answered = meaning.reply or {}, meaning.outcome == "answered"
    row = answers.usage_of(message) | answers.answer_of(message)
    row |= {
        "key": custom_id.removesuffix(suffix),
        "error": meaning.error,
        "message": meaning.message,
        "request_id": None if answered else dig(str, result, "error", "request_id"),
        "stop_reason": answers.stop_reason_of(message),
        "reply": answers.text_of(message),
        "final": meaning.final and (answered or trusted),
        "free": answers.is_free(message),
    }
    return tuple(storable(row[name]) for name in _COLUMNS)


def _decoded(lines: pl.DataFrame) -> pl.DataFrame:
    """Return lines as `_DECODED`, without those that Polars cannot decode faithfully."""
    plain = lines.filter(~pl.col("text").str.contains(_CONVERTED))
    try:
        return plain.select("line", pl.col("text").str.json_decode(_LINE))
    except pl.exceptions.PolarsError:  # one is damaged
        return _DECODED.to_frame()


def _usual_rows(decoded: pl.DataFrame, suffix: str) -> pl.DataFrame:
    """Return `_READ` of the decoded lines that are complete text replies of this batch."""
    kind, text = pl.element().struct.field("type"), pl.element().struct.field("text")
    read = decoded.unnest("text").unnest("result").unnest("message").unnest("usage").unnest(*_INNER)
    read = read.with_columns(
        pl.col(_OPTIONAL).fill_null(0),
        reply=pl.col("content").list.eval(text.filter(kind == "text")).list.join(""),
        calls_tool=pl.col("content").list.eval(kind == "tool_use").list.any(),
    )
    hour, written = pl.col("ephemeral_1h_input_tokens"), pl.col("cache_creation_input_tokens")
    usual = (
        (pl.col("type") == "succeeded")
        & pl.col("custom_id").str.ends_with(suffix)
        & (pl.col("reply") != "")
        & pl.col("stop_reason").is_in(["end_turn", "stop_sequence"])
        & ~pl.col("calls_tool")
        & pl.all_horizontal(pl.col(_NEEDED + _OPTIONAL).is_between(0, MOST_TOKENS))
        & (hour <= written)
    )
    renamed = {"cache_write_1h_input_tokens": hour, "cache_write_5m_input_tokens": written - hour}
    absent = dict.fromkeys(_ABSENT, pl.lit(None, _TEXT))
    return (
        read.filter(usual)
        .with_columns(key=pl.col("custom_id").str.strip_suffix(suffix), answering_model="model")
        .with_columns(**renamed, **absent, final=pl.lit(value=True), free=pl.lit(value=False))
        .select(*_READ)
    )
