"""What to do about batches: how much goes into one, what an answer means, when to look again.

Pure functions. `batches` acts on what they decide.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import catalog
from claudescale.api.answers import NO_ENDPOINT, Verdict, dig, read_object, verdict
from claudescale.ledger.records import OPEN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from claudescale.api.answers import Answer
    from claudescale.ledger.records import Batch
    from claudescale.prompts.requests import Work

FULL_BYTES = int(catalog.BATCH.max_bytes * 0.95)
"""Bytes of a batch that is full: below the API's limit, which may count differently."""
NONCE_BYTES = 6
DATE_SECONDS = 120.0
"""By how much the API's clock may differ from what its answers say."""
LOST_SECONDS = 300.0
"""How long after a lost answer the API may still be making the batch."""
ALIKE_ROWS = 20
"""So many rows that are refused alike, and none answered: it is the request, not the rows."""
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


# what goes into one


def fitting(rows: pl.DataFrame, *, requests: int, dollars: float) -> int:
    """Return how many of the first rows fit into one batch; the first one does whatever its size.

    `rows` has `bytes` and `worst_dollars` of each request; `dollars` is the most the batch may cost,
    whatever the replies.
    """
    alone = pl.int_range(pl.len()) == 0
    short = alone | ((pl.col("bytes") + _ROW_BYTES).cum_sum() <= FULL_BYTES)
    fits = short & (pl.col("worst_dollars").cum_sum() <= dollars)
    return int(rows.head(max(requests, 0)).select(fits.sum()).item())


def body_bytes(rows: pl.DataFrame) -> int:
    """Return the size of the batch that `body` makes."""
    return int(rows["bytes"].sum()) + rows.height * _ROW_BYTES - 1 + len(_OPENING + _CLOSING)


def body(rows: pl.DataFrame, work: Work, nonce: str) -> Iterator[bytes]:
    """Yield the body of a batch in parts of some megabytes, rendered as they are asked for."""
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
    """Yield the rows in slices of some megabytes, whatever the sizes of single rows."""
    start = 0
    for length in (rows["bytes"].cum_sum() // _PART_BYTES).rle().struct.field("len"):
        yield rows.slice(start, length)
        start += length


# what an answer means


def made(answer: Answer) -> bool | None:
    """Whether a batch that was posted is there.

    None after anything but a plain yes or no: it may be there, and is looked for.
    """
    if answer.status is None:
        return None if answer.sent else False
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return is_batch(read_object(answer.content)) or None
    return None if verdict(answer).outcome in {"overloaded", "again"} else False


def dry_run(request: bytes) -> tuple[bytes, int]:
    """Return a request with the shortest reply that the API allows, and its length in tokens."""
    fields = json.loads(request)
    longest = fields["max_tokens"] = (dig(int, fields, "thinking", "budget_tokens") or 0) + 1
    return json.dumps(fields).encode(), longest


def trusts(batch: Batch, *, known_good: bool) -> bool:
    """Whether a row that was refused in a batch is to blame for it, as others were answered.

    `known_good`: rows of the plan were answered before this batch.
    """
    refused = batch.errored >= NEARLY_ALL * (batch.errored + batch.succeeded)
    return not refused or (known_good and batch.requests < ALIKE_ROWS)


def refused_alike(
    batch: Batch, refused: Collection[tuple[str, str]], *, is_last: bool
) -> tuple[str, str] | None:
    """Return an error and words if nearly all rows were refused alike: then it is the request, and no row.

    `refused` has the error and the words of each refused row. A small batch proves this only if it `is_last`.
    """
    enough = is_last or batch.requests >= ALIKE_ROWS
    for (error, message), rows in Counter(refused).most_common(1):
        if enough and rows >= NEARLY_ALL * batch.requests:
            count = f"{rows:,} of {batch.requests:,} rows of batch {batch.batch_id}"
            return error, f"{count} were refused alike: {message}"
    return None


def is_hopeless(meaning: Verdict) -> bool:
    """Whether asking again would get the same answer."""
    return meaning.outcome == "stop" or (meaning.outcome == "failed" and meaning.final)


def is_batch(shown: dict[str, Any]) -> bool:
    """Whether an answer shows a batch."""
    return isinstance(shown.get("id"), str) and isinstance(shown.get("processing_status"), str)


def is_gone(answer: Answer) -> bool:
    """Whether the API says that there is no such batch, or none any more."""
    return answer.status == HTTPStatus.NOT_FOUND and verdict(answer).error in {"not_found_error", NO_ENDPOINT}


def has_results(shown: dict[str, Any]) -> bool:
    """Whether a batch that has ended still has results to read."""
    return bool(shown.get("results_url")) and not shown.get("archived_at")


def updated(batch: Batch, shown: dict[str, Any]) -> Batch:
    """Return a batch as the API shows it now; what cannot be read stays as it was."""
    counts = {name: dig(int, shown, "request_counts", name) for name in _COUNTS}
    moments = {name: seconds_of(shown.get(name)) for name in _MOMENTS}
    fields: dict[str, Any] = counts | moments
    readable = {name: value for name, value in fields.items() if value is not None}
    state = shown["processing_status"] if shown["processing_status"] in OPEN else "in_progress"
    return batch._replace(**readable, batch_id=shown["id"], state=state)


def seconds_of(moment: object) -> float | None:
    """Return an RFC 3339 moment as unix seconds; None where it is none."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# a batch whose answer was lost


def window(batch: Batch, until: float, answer: Answer, now: float) -> tuple[float, float]:
    """Return from when to when, in API time, a batch may have been made whose answer was lost.

    `until` is when the API has surely stopped making it, by this clock. An answer's date says how wrong
    this clock is; what is known of the intent may be by a clock that was right.
    """
    try:
        ahead = parsedate_to_datetime(answer.headers["date"]).timestamp() - now
    except (KeyError, ValueError, OverflowError, OSError, TypeError, IndexError):
        ahead = 0.0
    return batch.intended_at + min(ahead, 0.0) - DATE_SECONDS, until + max(ahead, 0.0) + DATE_SECONDS


def may_be(batch: Batch, shown: dict[str, Any], window: tuple[float, float]) -> bool:
    """Whether a batch that the API lists may be the one whose answer was lost: by time and size."""
    created, counts = seconds_of(shown.get("created_at")), dig(dict, shown, "request_counts")
    if not is_batch(shown) or created is None or counts is None:
        return False
    return window[0] <= created <= window[1] and sum(counts.values()) == batch.requests


# when to look again


def poll_seconds(age_seconds: float) -> float:
    """Return how long to wait before looking at batches again: below 400 looks in 24 hours."""
    return min(max(age_seconds * _GROWTH, _SHORTEST_SECONDS), _LONGEST_SECONDS)


class Expected(NamedTuple):
    """How batches stand, and when the last of them ends."""

    open: int  # batches that are out
    ended: int
    requests: int  # in those that are out
    usual_seconds: float | None  # until it has usually ended; None once that is over
    latest_seconds: float  # until it has expired


def expected_end(batches: Iterable[Batch], now: float) -> Expected | None:
    """Return when the open batches end: most within an hour of the last. None where there are none.

    The API tells nothing of a batch before its end.
    """
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
