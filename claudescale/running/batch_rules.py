"""What to do about batches: how much goes into one, what an answer means, when to look again.

Pure functions. `batches` acts on what they decide.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import catalog
from claudescale.api.answers import NO_ENDPOINT, Verdict, dig, read_object, verdict
from claudescale.ledger.records import OPEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from claudescale.api.answers import Answer
    from claudescale.ledger.records import Batch
    from claudescale.prompts.requests import Work

FULL_BYTES = int(catalog.BATCH.max_bytes * 0.95)
"""Bytes of a batch that is full: below the API's limit, which may count differently."""
NONCE_BYTES = 6
CLOCK_SECONDS = 3_600.0
"""By how much the API's clock and this one may differ, where its answers do not tell the time."""
DATE_SECONDS = 120.0
"""The same where they do."""
LOST_SECONDS = 300.0
"""How long after a lost answer the API may still be making the batch."""
FAILED_SECONDS = 60.0
"""The same after an answer that says it failed."""
ALIKE_ROWS = 20
"""So many rows that are refused alike, and none answered: it is the request, not the rows."""
NEARLY_ALL = 0.95
_MOST_ERRORED = 19
"""Rows refused for each that was answered; past it hardly any was."""
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


def fitting(rows: pl.DataFrame, *, requests: int, size_bytes: int, dollars: float) -> int:
    """Return how many of the first rows fit into one batch; the first one does whatever its size.

    `rows` has `bytes` and `worst_dollars` of each request; `dollars` is the most the batch may cost,
    whatever the replies.
    """
    alone = pl.int_range(pl.len()) == 0
    short = alone | ((pl.col("bytes") + _ROW_BYTES).cum_sum() <= size_bytes)
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


def made(answer: Answer) -> str:
    """Decide what became of a batch that was posted.

    It is ``"created"``, ``"absent"`` (surely not made: try again), ``"refused"`` (the limits),
    ``"too_large"``, ``"stop"`` (none can be made) or ``"unknown"``: after anything but a plain yes or no it
    may be there, and is looked for.
    """
    outcome = verdict(answer).outcome
    if answer.status is None:
        return "unknown" if answer.sent else "stop" if outcome == "stop" else "absent"
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return "created" if is_batch(read_object(answer.content)) else "unknown"
    if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return "too_large"
    return {"refused": "refused", "overloaded": "unknown", "again": "unknown"}.get(outcome, "stop")


def is_wrong(answer: Answer, model: str) -> bool:
    """Whether a look at one row tells that no row will do.

    A gateway that has less than the API says so with a 404, as the API does of a model it does not know.
    """
    found = verdict(answer)
    if answer.status == HTTPStatus.NOT_FOUND:
        return model in (found.message or "")
    return is_hopeless(found)


def dry_run(request: bytes) -> tuple[bytes, int]:
    """Return a request with the shortest reply that the API allows, and its length in tokens."""
    fields = json.loads(request)
    longest = fields["max_tokens"] = (dig(int, fields, "thinking", "budget_tokens") or 0) + 1
    return json.dumps(fields).encode(), longest


def trusts(batch: Batch, *, known_good: bool) -> bool:
    """Whether a row that was refused in a batch is to blame for it, as others were answered.

    `known_good`: rows of the plan were answered before this batch.
    """
    if batch.succeeded:
        return batch.errored <= _MOST_ERRORED * batch.succeeded
    return known_good and batch.requests < ALIKE_ROWS


def is_hopeless(found: Verdict) -> bool:
    """Whether asking again would get the same answer."""
    return found.outcome == "stop" or (found.outcome == "failed" and found.final)


def is_batch(shown: dict[str, Any]) -> bool:
    """Whether an answer shows a batch."""
    return isinstance(shown.get("id"), str) and isinstance(shown.get("processing_status"), str)


def is_gone(answer: Answer) -> bool:
    """Whether the API says that there is no such batch, or none any more."""
    return answer.status == HTTPStatus.NOT_FOUND and verdict(answer).error in {"not_found_error", NO_ENDPOINT}


def has_results(shown: dict[str, Any]) -> bool:
    """Whether a batch that has ended still has results to read."""
    return bool(shown.get("results_url")) and not shown.get("archived_at")


def seen(batch: Batch, shown: dict[str, Any]) -> Batch:
    """Return a batch as the API shows it now; what cannot be read stays as it was."""
    counts = {name: dig(int, shown, "request_counts", name) for name in _COUNTS}
    moments = {name: seconds_of(shown.get(name)) for name in _MOMENTS}
    known = {name: value for name, value in (counts | moments).items() if value is not None}
    state = shown["processing_status"]
    state = state if state in OPEN else "in_progress"
    return batch._replace(**{**known, "batch_id": shown["id"], "state": state})


def seconds_of(moment: object) -> float | None:
    """Return an RFC 3339 moment as unix seconds; None where it is none."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# a batch whose answer was lost


def clock_offset(answer: Answer, now: float) -> tuple[float, float]:
    """Return by how many seconds the API's clock is ahead of `now`, and how well that is known."""
    try:
        ahead = parsedate_to_datetime(answer.headers["date"]).timestamp() - now
    except (KeyError, ValueError, OverflowError, OSError, TypeError, IndexError):
        return 0.0, CLOCK_SECONDS
    return (ahead if abs(ahead) > DATE_SECONDS else 0.0), DATE_SECONDS


def window(batch: Batch, until: float, offset: tuple[float, float]) -> tuple[float, float]:
    """Return from when to when, in API time, a batch may have been made whose answer was lost.

    It is wide where this clock is wrong: the intent is in API time only if that was known then. `until` is
    when the API has surely stopped making it, by this clock; `offset` is of `clock_offset`.
    """
    ahead, doubt = offset
    return batch.intended_at + min(ahead, 0.0) - doubt, until + max(ahead, 0.0) + doubt


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


@dataclass(slots=True)
class Streak:
    """Bad answers in a row: how many, and since when."""

    count: int = 0
    since: float = 0.0

    def add(self, now: float) -> None:
        """Count one more."""
        self.since = self.since if self.count else now
        self.count += 1

    def lasts(self, now: float, *, seconds: float, count: int) -> bool:
        """Whether there were so many, over so long a time."""
        return self.count >= count and now - self.since >= seconds


class Expected(NamedTuple):
    """How batches stand, and when the last of them ends."""

    open: int  # batches that are out
    ended: int
    requests: int  # in those that are out
    usual_seconds: float | None  # until it has usually ended; None once that is over
    latest_seconds: float  # until it has expired


def expected_end(batches: Iterable[Batch], now: float) -> Expected | None:
    """Return when the open batches end: as long as others took, else an hour. None where there are none.

    The API tells nothing of a batch before its end.
    """
    made = [batch for batch in batches if batch.state != "absent"]
    waited = [batch for batch in made if batch.ended_at is None and batch.state in OPEN]
    if not waited:
        return None
    took = [batch.ended_at - batch.created_at for batch in made if batch.ended_at and batch.created_at]
    age = now - max(batch.created_at or batch.intended_at for batch in waited)
    usual = (statistics.median(took) if took else USUAL_SECONDS) - age
    return Expected(
        open=len(waited),
        ended=len(made) - len(waited),
        requests=sum(batch.requests for batch in waited),
        usual_seconds=usual if usual > 0 else None,
        latest_seconds=max(catalog.BATCH.expires_hours * 3_600 - age, 0.0),
    )
