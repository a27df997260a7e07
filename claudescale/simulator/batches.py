"""Message batches of one account: created, worked off in simulated time, listed, canceled, read.

Rows are worked off when somebody looks (`due`, `settle`), as of the simulated moment each was done.
Until a batch has ended its counts say only how many it has, as on the API.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from claudescale import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.buckets import Bucket, rfc3339
from claudescale.simulator.checks import Problem, found_model, invalid, problem
from claudescale.simulator.faults import CREATE_AFTER, CREATE_BEFORE, ROW, STATUSES
from claudescale.simulator.listings import page
from claudescale.simulator.tokens import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from claudescale.simulator.desk import Desk

CUSTOM_ID = re.compile(catalog.BATCH.custom_id_pattern.removeprefix("^").removesuffix("$"))
CANCEL_SECONDS = 20.0  # what is under way may still finish
HOUR = 3600.0
DAY = 24 * HOUR
STUCK_SECONDS = 1e12
ROWS = tuple(ROW)
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
SECONDS_PER_ROW = 0.02
BASE_SECONDS = 180.0


@dataclass(slots=True, kw_only=True)
class Batch:
    """One batch. Its rows are dropped once their results are written."""

    id: str
    number: int
    created_at: float
    seconds: float
    version: str
    total: int
    rows: list[dict[str, Any]]
    canceled_at: float | None = None
    settled_at: float | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    lines: list[bytes] = field(default_factory=list)

    @property
    def expires_at(self) -> float:
        """When it ends at the latest."""
        return self.created_at + catalog.BATCH.expires_hours * HOUR

    @property
    def ends_at(self) -> float:
        """When it ends as things stand."""
        planned = min(self.created_at + self.seconds, self.expires_at)
        return planned if self.canceled_at is None else min(planned, self.canceled_at + CANCEL_SECONDS)

    def queued(self, now: float) -> int:
        """Return how many requests still wait at `now`."""
        if self.settled_at is not None or now >= self.ends_at:
            return 0
        return math.ceil(self.total * (1 - (now - self.created_at) / self.seconds))


class Batches:
    """The Message Batches API of one desk.

    Parameters
    ----------
    desk : Desk
        Whose limits, cache, bill and faults these batches share.
    now : float
        API seconds at the start.
    seconds : float, callable or None
        How long a batch takes in API seconds, or ``seconds(number of requests)`` giving it. None draws
        it by seed: some minutes for a small one, about half an hour for 100,000 requests.
    """

    def __init__(self, desk: Desk, now: float, seconds: float | Callable[[int], float] | None = None) -> None:
        self._desk = desk
        self._seconds = seconds
        self._batches: dict[str, Batch] = {}
        per_minute = desk.terms.batch_requests_per_minute
        self._calls = Bucket(per_minute, per_minute, now)

    def limited(self, now: float) -> wire.Answer | None:
        """Count one call to any endpoint of batches; return the 429 if there were too many."""
        wait = self._calls.wait(now, 1)
        if not wait:
            self._calls.level -= 1
            return None
        message = (
            f"This request would exceed your rate limit of {self._calls.per_minute:,.0f} batch requests "
        )
        found = Problem(429, "rate_limit_error", message + "per minute.")
        after = {"retry-after": str(max(1, math.ceil(wait)))}
        return self._desk.refuse(found, kind="batch_requests_per_minute", headers=after)

    def submit(self, now: float, body: dict[str, Any], version: str) -> wire.Answer:
        """Return the answer to ``POST /v1/messages/batches``, by whatever fault strikes it."""
        attempt = self._desk.faults.attempt(b"create")
        struck = self._struck(CREATE_BEFORE, b"create", attempt, now)
        if struck is not None:
            return self._failed(struck)
        found = self.create(now, body, version)
        if isinstance(found, Problem):
            return self._desk.refuse(found)
        struck = self._struck(CREATE_AFTER, b"create", attempt, now)
        return self._desk.answer(found) if struck is None else self._failed(struck)

    def _struck(self, kinds: Sequence[str], key: bytes, attempt: int, now: float) -> str | None:
        struck = self._desk.faults.strikes(tuple(kinds), key, attempt, self._desk.elapsed(now))
        if struck is not None:
            self._desk.account.faults[struck] += 1
        return struck

    def _failed(self, kind: str) -> wire.Answer:
        """Return a 500, or no answer at all."""
        if kind in {"create_dropped", "create_lost"}:
            return wire.Answer(status=0, headers={}, body=b"", fault="drop", kind=kind)
        return self._desk.refuse(Problem(500, *STATUSES[500]))

    def poll_failed(self, now: float) -> wire.Answer | None:
        """Count one retrieve or list, and return the 500 that a fault makes of it."""
        struck = self._struck(("poll_failed",), b"poll", self._desk.faults.attempt(b"poll"), now)
        return None if struck is None else self._failed(struck)

    def results_cut(self, now: float, batch: Batch) -> bool:
        """Count one download of a batch's results, and return whether a fault breaks it off."""
        key = f"results {batch.number}".encode()
        return self._struck(("results_cut",), key, self._desk.faults.attempt(key), now) is not None

    def create(self, now: float, body: dict[str, Any], version: str) -> dict[str, Any] | Problem:
        """Return the new batch, or why it is refused. Each row's `params` are checked only later."""
        rows = body.get("requests")
        wrong = _wrong(body, rows)
        if wrong is not None or not isinstance(rows, list):
            return wrong or invalid("requests: Field required")
        waiting = sum(batch.queued(now) for batch in self._batches.values())
        most = self._desk.terms.batch_queue_requests
        if waiting + len(rows) > most:
            message = f"This batch would exceed your limit of {most:,} requests in the processing queue."
            return Problem(429, "rate_limit_error", message)
        name = self._desk.next_id("msgbatch")
        account = self._desk.account
        account.batches_created += 1
        number = account.batches_created
        stuck = self._struck(("batch_stuck",), b"batch", number, now)
        batch = Batch(
            id=name,
            number=number,
            created_at=now,
            seconds=STUCK_SECONDS if stuck else self._duration(name, len(rows)),
            version=version,
            total=len(rows),
            rows=rows,
        )
        self._batches[name] = batch
        return self.show(batch, now)

    def _duration(self, name: str, total: int) -> float:
        if self._seconds is not None:
            return float(self._seconds(total) if callable(self._seconds) else self._seconds)
        key = blake2b(name.encode(), digest_size=16).digest()
        drawn = replies.draws(key, "batch").lognormvariate(0.0, 0.4)
        return (BASE_SECONDS + SECONDS_PER_ROW * total) * drawn

    def show(self, batch: Batch, now: float, base_url: str = "") -> dict[str, Any]:
        """Return a batch as the API shows it at `now`."""
        ended = batch.settled_at is not None
        archived = now >= batch.created_at + catalog.BATCH.results_days * DAY
        state = "ended" if ended else "in_progress" if batch.canceled_at is None else "canceling"
        counts = batch.counts if ended else {**dict.fromkeys(COUNTS, 0), "processing": batch.total}
        url = f"{base_url}/v1/messages/batches/{batch.id}/results" if ended and not archived else None
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": state,
            "request_counts": dict(counts),
            "created_at": _instant(batch.created_at),
            "expires_at": _instant(batch.expires_at),
            "ended_at": _instant(batch.settled_at),
            "archived_at": _instant(batch.created_at + catalog.BATCH.results_days * DAY)
            if archived
            else None,
            "cancel_initiated_at": _instant(batch.canceled_at),
            "results_url": url,
        }

    def find(self, name: str) -> Batch | Problem:
        """Return a batch by its id."""
        found = self._batches.get(name)
        return found or Problem(404, "not_found_error", f"Message batch {name} not found")

    def page(self, now: float, query: Mapping[str, Sequence[str]], base_url: str) -> dict[str, Any] | Problem:
        """Return one page of the batches, newest first."""
        shown = [self.show(batch, now, base_url) for batch in reversed(self._batches.values())]
        return page(shown, query)

    def cancel(self, now: float, batch: Batch) -> Problem | None:
        """Begin to cancel; what is under way may still finish."""
        if batch.settled_at is not None or now >= batch.ends_at:
            return invalid(f"Message batch {batch.id} has already ended and cannot be canceled")
        if batch.canceled_at is None:
            batch.canceled_at = now
        return None

    def delete(self, batch: Batch) -> dict[str, Any] | Problem:
        """Delete a batch that has ended."""
        if batch.settled_at is None:
            return invalid(f"Message batch {batch.id} is still processing: cancel it before deleting it")
        del self._batches[batch.id]
        return {"id": batch.id, "type": "message_batch_deleted"}

    def results(self, now: float, batch: Batch) -> list[bytes] | Problem:
        """Return the lines of a batch's results, in no order."""
        if batch.settled_at is None:
            return invalid(f"Message batch {batch.id} has no results yet: it has not ended")
        if now >= batch.created_at + catalog.BATCH.results_days * DAY:
            return Problem(404, "not_found_error", f"The results of message batch {batch.id} are archived")
        return batch.lines

    def due(self, now: float) -> list[Batch]:
        """Return the batches that have ended by `now` and are not worked off."""
        return [
            batch for batch in self._batches.values() if batch.settled_at is None and now >= batch.ends_at
        ]

    def settle(self, batch: Batch) -> Iterator[int]:
        """Work a batch off, as of its end; yields after every row so that others get their turn."""
        end = batch.ends_at
        marks = [
            blake2b(f"{batch.id}{row['custom_id']}".encode(), digest_size=16).digest() for row in batch.rows
        ]
        moments = [
            batch.created_at + batch.seconds * replies.draws(mark, "moment").random() for mark in marks
        ]
        order = sorted(range(batch.total), key=moments.__getitem__)
        lines = []
        counts = dict.fromkeys(COUNTS, 0)
        for done, index in enumerate(order):
            row = batch.rows[index]
            result = self._result(row["params"], batch, moments[index], end)
            counts[result["type"]] += 1
            lines.append(wire.json_bytes({"custom_id": row["custom_id"], "result": result}) + b"\n")
            yield done
        replies.draws(blake2b(batch.id.encode()).digest(), "order").shuffle(lines)
        batch.lines, batch.counts, batch.rows, batch.settled_at = lines, counts, [], end

    def _result(self, params: dict[str, Any], batch: Batch, moment: float, end: float) -> dict[str, Any]:
        if moment > end:
            return {"type": "expired" if batch.canceled_at is None or end >= batch.expires_at else "canceled"}
        wrong = self._refused(params, batch, moment)
        if wrong is not None:
            return self._errored(wrong)
        model = found_model(params, moment)
        assert not isinstance(model, Problem)  # `_refused` has seen it
        desk = self._desk
        key = replies.digest(desk.seed, params)
        struck = self._struck(ROWS, key, desk.faults.attempt(key), moment)
        if struck is not None:
            error = ROW[struck]
            return {"type": "expired"} if error is None else self._errored(Problem(500, *error))
        measured = measure(params, model)
        shares = desk.cache.shares(moment, measured, model.cache_minimum_tokens)
        desk.cache.keep(moment, moment + 1.0, measured, model.cache_minimum_tokens)
        reply = desk.reply(key, params, model, desk.elapsed(moment))
        desk.account.bill(moment, model.id, "batch", key, shares, reply)
        used = wire.usage(shares, reply, "batch")
        return {"type": "succeeded", "message": wire.message(desk.next_id("msg"), model, reply, used)}

    @staticmethod
    def _refused(params: dict[str, Any], batch: Batch, moment: float) -> Problem | None:
        for name in catalog.BATCH.refused_parameters:
            if params.get(name):
                return invalid(f"{name}: not supported in message batches")
        if params.get("max_tokens") == 0:
            return invalid("max_tokens: 0 is not supported in message batches")
        model = found_model(params, moment)
        if isinstance(model, Problem):
            return model
        wrong = problem(params, model, batch.version)
        tokens = 0 if wrong else measure(params, model).input_tokens
        if tokens > model.context_tokens:
            return invalid(f"prompt is too long: {tokens} tokens > {model.context_tokens} maximum")
        return wrong

    def _errored(self, found: Problem) -> dict[str, Any]:
        body = wire.error_body(found.type, found.message, self._desk.next_id("req"))
        return {"type": "errored", "error": body}


def _wrong(body: dict[str, Any], rows: Any) -> Problem | None:
    """Return why a batch is refused at once."""
    for name in body:
        if name not in {"requests", "workspace_id"}:
            return invalid(f"{name}: Extra inputs are not permitted")
    if not isinstance(rows, list) or not rows:
        return invalid("requests: List should have at least 1 item after validation, not 0")
    if len(rows) > catalog.BATCH.max_requests:
        message = f"requests: at most {catalog.BATCH.max_requests} requests fit into a batch, not {len(rows)}"
        return Problem(413, "request_too_large", message)
    seen: set[str] = set()
    return next((found for index, row in enumerate(rows) if (found := _wrong_row(index, row, seen))), None)


def _wrong_row(index: int, row: Any, seen: set[str]) -> Problem | None:
    where = f"requests.{index}"
    custom_id = row.get("custom_id") if isinstance(row, dict) else None
    if not isinstance(custom_id, str) or not CUSTOM_ID.fullmatch(custom_id):
        return invalid(f"{where}.custom_id: String should match pattern {catalog.BATCH.custom_id_pattern!r}")
    if custom_id in seen:
        return invalid(f"{where}.custom_id: duplicate custom_id {custom_id!r}")
    seen.add(custom_id)
    return None if isinstance(row.get("params"), dict) else invalid(f"{where}.params: Field required")


def _instant(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    whole = math.floor(seconds)
    return f"{rfc3339(whole)[:-1]}.{int((seconds - whole) * 1e6):06d}Z"
