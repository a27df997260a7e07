"""The message batches of one account, processed in simulated time.

Each row is due at its own simulated moment. `Batches.work` processes the rows that are due and ends each
batch on time; its caller does the waiting. Until a batch has ended, its counts only say how many rows it
has, as on the API.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.simulator import wire
from claudescale.simulator.account import Bucket
from claudescale.simulator.faults import CREATE_AFTER, CREATE_BEFORE, ROWS, draws, trouble
from claudescale.simulator.requests import FIELDS, check_fields, named_model
from claudescale.simulator.wire import Answer, Problem, instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from claudescale.simulator.account import Desk
    from claudescale.simulator.requests import Prefix

MAX_BYTES = catalog.BATCH.max_bytes
REFUSED = (*catalog.BATCH.refused_parameters, "fallbacks", "thread")
CUSTOM_ID = re.compile(catalog.BATCH.custom_id_pattern.removeprefix("^").removesuffix("$"))
UNANSWERED = {"create_dropped": "drop", "create_lost": "drop", "create_hang": "hang"}
CANCEL_SECONDS = 20.0  # rows in progress may still finish
DAY = 24 * 3600.0
STUCK_SECONDS = 1e12
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
BASE_SECONDS, SECONDS_PER_ROW = 180.0, 0.02
SECONDS_TO_BEGIN = 1.0  # until a reply begins, and other rows can read its cache entry


class Row(NamedTuple):
    """One pending request: when it will be done, its place in the batch, and its JSON."""

    done_at: float
    place: int
    raw: bytes


@dataclass(slots=True)
class Batch:
    """One message batch.

    Attributes
    ----------
    mark : bytes
        Seeds its draws: a hash of the simulator's seed and the batch's number.
    seconds : float
        API seconds from its creation within which all rows would be done.
    agenda : list of Row
        The pending rows, the next one last.
    lines : list of bytes
        The results, one JSON line per processed row.
    """

    id: str
    mark: bytes
    created_at: float
    expires_at: float
    archived_at: float
    seconds: float
    headers: Mapping[str, str]
    agenda: list[Row]
    canceled_at: float | None = None
    settled_at: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[bytes] = field(default_factory=list)

    @property
    def ends_at(self) -> float:
        """API seconds at which it is due to end."""
        planned = min(self.created_at + self.seconds, self.expires_at)
        return planned if self.canceled_at is None else min(planned, self.canceled_at + CANCEL_SECONDS)

    def shown(self, now: float, base_url: str = "") -> dict[str, Any]:
        """Return the batch as the API shows it at `now`."""
        ended, archived = self.settled_at is not None, now >= self.archived_at
        state = "in_progress" if self.canceled_at is None else "canceling"
        counts: Mapping[str, int] = {"processing": len(self.agenda) + len(self.lines)}
        if ended:
            state, counts = "ended", self.counts
        url = f"{base_url}/v1/messages/batches/{self.id}/results" if ended and not archived else None
        moments = {"created": self.created_at, "expires": self.expires_at, "ended": self.settled_at}
        moments |= {"archived": self.archived_at if archived else None, "cancel_initiated": self.canceled_at}
        shown = {"id": self.id, "type": "message_batch", "processing_status": state, "results_url": url}
        shown |= {f"{name}_at": instant(moment) for name, moment in moments.items()}
        return {**shown, "request_counts": {**dict.fromkeys(COUNTS, 0), **counts}}


class Batches:
    """The Message Batches API of one desk, whose limits, prompt cache, bill and faults it shares."""

    def __init__(self, desk: Desk, now: float) -> None:
        self._desk, self._batches = desk, dict[str, Batch]()
        per_minute = desk.terms.batch_requests_per_minute or 0
        self._calls = Bucket(per_minute, per_minute, now)

    def called(self, now: float, *, polls: bool = False) -> None:
        """Count a call to a batch endpoint, or refuse it by the rate limit or a fault."""
        self._calls.take(now, "batch_requests_per_minute", "batch requests")
        if polls and self._struck("poll_failed", b"poll", now):
            raise Problem(500)

    def _struck(self, kind: str, key: bytes, now: float) -> bool:
        return self._desk.struck((kind,), key, self._desk.faults.attempt(key), now) is not None

    # ------------------------------------------------------------------------------------------- creation

    def create(self, now: float, raw: bytes, headers: Mapping[str, str]) -> Answer | dict[str, Any]:
        """Return the answer to ``POST /v1/messages/batches``; `params` are checked later, row by row."""
        attempt = self._desk.faults.attempt(b"create")
        fault = self._desk.struck(CREATE_BEFORE, b"create", attempt, now)
        if fault is None:
            self._desk.check_spending(now, coded=False)
            batch = self._made(now, requests_of(raw), headers)
            fault = self._desk.struck(CREATE_AFTER, b"create", attempt, now)
            if fault is None:
                return batch.shown(now)
        if fault in UNANSWERED:
            return Answer(0, {}, b"", fault=UNANSWERED[fault])
        raise trouble(fault)

    def _made(self, now: float, rows: list[bytes], headers: Mapping[str, str]) -> Batch:
        desk, most = self._desk, self._desk.terms.batch_queue_requests or 0
        waiting = sum(row.done_at > now for batch in self._batches.values() for row in batch.agenda)
        if waiting + len(rows) > most:
            over = f"This batch would exceed your limit of {most:,} requests in the processing queue."
            raise Problem(429, over)
        desk.account.counts["batches_created"] += 1
        number, seconds = desk.account.counts["batches_created"], desk.options.batch_seconds
        mark = blake2b(f"{desk.options.seed} {number}".encode(), digest_size=16).digest()
        if callable(seconds):
            seconds = seconds(len(rows))
        elif seconds is None:
            pace = draws(mark, "batch").lognormvariate(0.0, 0.4)
            seconds = (BASE_SECONDS + SECONDS_PER_ROW * len(rows)) * pace
        if desk.struck(("batch_stuck",), b"batch", number, now):
            seconds = STUCK_SECONDS
        luck = draws(mark, "moments")
        # Factors above 0: no row is done at creation, and no row of a stuck batch is ever done.
        agenda = [Row(now + seconds * (1 - luck.random()), *row) for row in enumerate(rows)]
        agenda.sort(key=lambda row: row.done_at, reverse=True)
        batch = Batch(
            id=desk.next_id("msgbatch"), mark=mark, seconds=seconds, headers=headers, agenda=agenda,
            created_at=now, expires_at=now + 3600.0 * catalog.BATCH.expires_hours,
            archived_at=now + DAY * catalog.BATCH.results_days,
        )  # fmt: skip
        self._batches[batch.id] = batch
        return batch

    # -------------------------------------------------------------------------------------------- life cycle

    def find(self, name: str) -> Batch:
        """Return a batch by its id."""
        if name not in self._batches:
            raise Problem(404, f"Message batch {name} not found")
        return self._batches[name]

    def shown(self, now: float, base_url: str = "") -> list[dict[str, Any]]:
        """Return all batches, newest first."""
        return [batch.shown(now, base_url) for batch in reversed(self._batches.values())]

    def cancel(self, now: float, batch: Batch) -> dict[str, Any]:
        """Begin to cancel a batch; rows in progress may still finish."""
        if batch.settled_at is not None or now >= batch.ends_at:
            raise Problem(400, f"Message batch {batch.id} has already ended and cannot be canceled")
        batch.canceled_at = batch.canceled_at or now
        return batch.shown(now)

    def delete(self, batch: Batch) -> dict[str, Any]:
        """Delete a batch that has ended."""
        if batch.settled_at is None:
            raise Problem(400, f"Message batch {batch.id} is still processing: cancel it before deleting it")
        del self._batches[batch.id]
        return {"id": batch.id, "type": "message_batch_deleted"}

    def results(self, now: float, batch: Batch) -> tuple[list[bytes], bool]:
        """Return a batch's result lines, in random order, and whether a fault cuts them off."""
        if batch.settled_at is None:
            raise Problem(400, f"Message batch {batch.id} has no results yet: it has not ended")
        if now >= batch.archived_at:
            raise Problem(404, f"The results of message batch {batch.id} are archived")
        if not self._struck("results_cut", batch.mark, now):
            return batch.lines, False
        *whole, last = batch.lines[: len(batch.lines) // 2 + 1]
        return [*whole, last[: len(last) // 2]], True

    def work(self, now: float) -> Iterator[None]:
        """Process the rows that are due by `now`, yielding after each, and end the batches that are over."""
        for batch in [batch for batch in self._batches.values() if batch.settled_at is None]:
            over = now >= batch.ends_at
            while batch.agenda and (over or batch.agenda[-1].done_at <= now):
                row = batch.agenda.pop()
                late = batch.canceled_at is None or batch.ends_at >= batch.expires_at
                request, result = json.loads(row.raw), {"type": "expired" if late else "canceled"}
                if row.done_at <= batch.ends_at:
                    result = self._result(batch, row, request["params"])
                batch.counts[result["type"]] += 1
                line = wire.json_bytes({"custom_id": request["custom_id"], "result": result})
                batch.lines.append(line + b"\n")
                yield  # lets the caller serve others; it may also stop here and start a new iterator later
            if over and batch.settled_at is None:
                draws(batch.mark, "order").shuffle(batch.lines)
                batch.settled_at = batch.ends_at

    def _result(self, batch: Batch, row: Row, params: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a row at the moment it is done, and bill its reply."""
        desk, now = self._desk, row.done_at
        try:
            request = desk.read(params, _model_of(params, now), batch.headers)
            fault = desk.struck(ROWS, request.key, desk.faults.attempt(request.key), now)
            if fault == "batch_expired":
                return {"type": "expired"}
            if fault is not None:
                raise trouble(fault)
            # A row's chance of a prompt cache hit is drawn by its place in the batch.
            mark = blake2b(batch.mark + f" {row.place}".encode(), digest_size=16).digest()
            may_read = draws(mark, "hit").random() < _hits(batch, request.prefixes)
            shares = desk.cache.shares(now, request.prefixes, may_read=may_read)
            reply, message = desk.compose(now, request, shares, "batch")
        except Problem as problem:
            return {"type": "errored", "error": problem.body(desk.next_id("req"))}
        desk.cache.keep(now, now + SECONDS_TO_BEGIN, request.prefixes)
        desk.account.bill(now, request.model.id, "batch", request.key, reply)
        return {"type": "succeeded", "message": message}


def requests_of(raw: bytes) -> list[bytes]:
    """Return the requests of a new batch, each as JSON, which takes less memory than parsed values."""
    body, most, seen = wire.read_object(raw, MAX_BYTES), catalog.BATCH.max_requests, set[str]()
    rows = body.get("requests")
    if isinstance(rows, list) and len(rows) > most:
        raise Problem(413, f"requests: at most {most} requests fit into a batch, not {len(rows)}")
    check_fields("", body, FIELDS["batch"], loose=False)
    if not rows:
        raise Problem(400, "requests: List should have at least 1 item after validation, not 0")
    for place, name in enumerate(row["custom_id"] for row in rows):
        if not CUSTOM_ID.fullmatch(name):
            pattern = catalog.BATCH.custom_id_pattern
            raise Problem(400, f"requests.{place}.custom_id: String should match pattern {pattern!r}")
        if name in seen:
            raise Problem(400, f"requests.{place}.custom_id: duplicate custom_id {name!r}")
        seen.add(name)
    return [wire.json_bytes(row) for row in rows]


def _model_of(params: dict[str, Any], now: float) -> catalog.ModelFacts:
    """Return the model that a row names, or refuse parameters and models that batches do not support."""
    model, refused = named_model(params, now), [name for name in REFUSED if params.get(name)]
    if params.get("max_tokens") == 0:
        refused.append("max_tokens 0")
    if refused:
        raise Problem(400, f"{refused[0]}: not supported in message batches")
    if not model.batch:
        raise Problem(400, f"model: {model.id} is not supported in message batches")
    return model


def _hits(batch: Batch, prefixes: list[Prefix]) -> float:
    """Return the probability that a row hits a cached prefix, higher for a TTL of 1 hour than 5 minutes."""
    fewest, most = map(float, catalog.BATCH.cache_hit_shares)
    luck = draws(batch.mark, "cache").random() / 2
    if any(prefix.ttl == "1h" for prefix in prefixes):
        luck += 0.5
    return fewest + (most - fewest) * luck
