"""Message batches of one account: created, worked off in simulated time, listed, canceled, read.

Each row is done at a simulated moment of its own. `Batches.work` does those whose moment has come, and
ends the batch in time; whoever calls it does the waiting. Until a batch has ended its counts say only
how many rows it has, as on the API.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.account import Bucket
from claudescale.simulator.faults import CREATE_AFTER, CREATE_BEFORE, ROW, ROWS, trouble
from claudescale.simulator.requests import check, found_model
from claudescale.simulator.wire import Answer, Problem, instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from claudescale.simulator.account import Desk
    from claudescale.simulator.requests import Measured

MAX_BYTES = catalog.BATCH.max_bytes
REFUSED = (*catalog.BATCH.refused_parameters, "fallbacks", "thread")
CUSTOM_ID = re.compile(catalog.BATCH.custom_id_pattern.removeprefix("^").removesuffix("$"))
UNANSWERED = {"create_dropped": "drop", "create_lost": "drop", "create_hang": "hang"}
CANCEL_SECONDS = 20.0  # what is under way may still finish
DAY = 24 * 3600.0
STUCK_SECONDS = 1e12
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
BASE_SECONDS, SECONDS_PER_ROW = 180.0, 0.02
SECONDS_TO_BEGIN = 1.0  # of a reply: only then others can read what it wrote to the cache


class Row(NamedTuple):
    """One request that is not done: when it will be, its place in the batch, and its JSON."""

    done_at: float
    place: int
    raw: bytes


@dataclass(slots=True)
class Batch:
    """One batch.

    Attributes
    ----------
    mark : bytes
        What its luck is drawn from: the simulator's seed and its number.
    seconds : float
        API seconds from its creation until the last row would be done.
    agenda : list of Row
        The rows that are not done, the next one last.
    lines : list of bytes
        The results, until the batch is archived.
    """

    id: str
    mark: bytes
    created_at: float
    seconds: float
    version: str
    betas: str
    agenda: list[Row]
    canceled_at: float | None = None
    settled_at: float | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    lines: list[bytes] = field(default_factory=list)

    @property
    def expires_at(self) -> float:
        """When it ends at the latest."""
        return self.created_at + float(catalog.BATCH.expires_hours) * 3600.0

    @property
    def ends_at(self) -> float:
        """When it ends as things stand."""
        planned = min(self.created_at + self.seconds, self.expires_at)
        return planned if self.canceled_at is None else min(planned, self.canceled_at + CANCEL_SECONDS)

    @property
    def archived_at(self) -> float:
        """When its results are gone."""
        return self.created_at + float(catalog.BATCH.results_days) * DAY

    def shown(self, now: float, base_url: str = "") -> dict[str, Any]:
        """Return it as the API shows it at `now`."""
        ended, archived = self.settled_at is not None, now >= self.archived_at
        state = "ended" if ended else "in_progress" if self.canceled_at is None else "canceling"
        waiting = {**dict.fromkeys(COUNTS, 0), "processing": len(self.agenda) + len(self.lines)}
        url = f"{base_url}/v1/messages/batches/{self.id}/results" if ended and not archived else None
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": state,
            "request_counts": dict(self.counts) if ended else waiting,
            "created_at": instant(self.created_at),
            "expires_at": instant(self.expires_at),
            "ended_at": instant(self.settled_at),
            "archived_at": instant(self.archived_at if archived else None),
            "cancel_initiated_at": instant(self.canceled_at),
            "results_url": url,
        }


class Batches:
    """The Message Batches API of one desk, whose limits, cache, bill and faults these batches share.

    Parameters
    ----------
    now : float
        API seconds at the start.
    seconds : float, callable or None
        How long a batch takes in API seconds, or ``seconds(number of requests)`` giving it. None draws
        it by seed: some minutes for a small one, about half an hour for 100,000 requests.
    """

    def __init__(self, desk: Desk, now: float, seconds: float | Callable[[int], float] | None = None) -> None:
        self._desk, self._seconds = desk, seconds
        self._batches: dict[str, Batch] = {}
        per_minute = desk.terms.batch_requests_per_minute or 0
        self._calls = Bucket(per_minute, per_minute, now)

    def limited(self, now: float) -> None:
        """Count one call to any endpoint of batches, and refuse it if there were too many."""
        self._desk.limit(self._calls, now, "batch_requests_per_minute", "batch requests")

    # ------------------------------------------------------------------------------------------- creation

    def create(
        self, now: float, body: list[bytes] | dict[str, Any], version: str, betas: str = ""
    ) -> Answer | dict[str, Any]:
        """Return the answer to ``POST /v1/messages/batches``. Each row's `params` are checked only later."""
        attempt = self._desk.faults.attempt(b"create")
        struck = self._desk.struck(CREATE_BEFORE, b"create", attempt, now)
        if struck is None:
            self._desk.check_spending(now, coded=False)
            batch = self._made(now, body if isinstance(body, list) else requests_of(body), version, betas)
            struck = self._desk.struck(CREATE_AFTER, b"create", attempt, now)
            if struck is None:
                return batch.shown(now)
        if struck in UNANSWERED:
            return Answer(0, {}, b"", fault=UNANSWERED[struck])
        raise trouble(struck)

    def _made(self, now: float, rows: list[bytes], version: str, betas: str) -> Batch:
        most, counts = self._desk.terms.batch_queue_requests or 0, self._desk.account.counts
        waiting = sum(row.done_at > now for batch in self._batches.values() for row in batch.agenda)
        if waiting + len(rows) > most:
            over = f"This batch would exceed your limit of {most:,} requests in the processing queue."
            raise Problem(429, over)
        counts["batches_created"] += 1
        number = counts["batches_created"]
        mark = blake2b(f"{self._desk.seed} {number}".encode(), digest_size=16).digest()
        luck = replies.draws(mark, "batch").lognormvariate(0.0, 0.4)
        seconds = (BASE_SECONDS + SECONDS_PER_ROW * len(rows)) * luck
        if self._seconds is not None:
            seconds = float(self._seconds(len(rows)) if callable(self._seconds) else self._seconds)
        if self._desk.struck(("batch_stuck",), b"batch", number, now):
            seconds = STUCK_SECONDS
        own = replies.draws(mark, "moments")
        # Above 0: a row is done after its batch was made, and those of a stuck one are never done.
        agenda = [Row(now + seconds * (1 - own.random()), *row) for row in enumerate(rows)]
        agenda.sort(key=lambda row: row.done_at, reverse=True)
        batch = Batch(self._desk.next_id("msgbatch"), mark, now, seconds, version, betas, agenda)
        self._batches[batch.id] = batch
        return batch

    # --------------------------------------------------------------------------------------------- its life

    def poll(self, now: float) -> None:
        """Count one retrieve or list, and refuse it where a fault strikes."""
        if self._desk.struck(("poll_failed",), b"poll", self._desk.faults.attempt(b"poll"), now):
            raise Problem(500)

    def find(self, name: str) -> Batch:
        """Return a batch by its id."""
        if name not in self._batches:
            raise Problem(404, f"Message batch {name} not found")
        return self._batches[name]

    def page(self, now: float, query: wire.Query, base_url: str) -> dict[str, Any]:
        """Return one page of the batches, newest first."""
        return wire.page([batch.shown(now, base_url) for batch in reversed(self._batches.values())], query)

    def cancel(self, now: float, batch: Batch) -> None:
        """Begin to cancel; what is under way may still finish."""
        if batch.settled_at is not None or now >= batch.ends_at:
            raise Problem(400, f"Message batch {batch.id} has already ended and cannot be canceled")
        batch.canceled_at = batch.canceled_at or now

    def delete(self, batch: Batch) -> dict[str, Any]:
        """Delete a batch that has ended."""
        if batch.settled_at is None:
            raise Problem(400, f"Message batch {batch.id} is still processing: cancel it before deleting it")
        del self._batches[batch.id]
        return {"id": batch.id, "type": "message_batch_deleted"}

    def results(self, now: float, batch: Batch) -> list[bytes]:
        """Return the lines of a batch's results, in no order."""
        if batch.settled_at is None:
            raise Problem(400, f"Message batch {batch.id} has no results yet: it has not ended")
        if now >= batch.archived_at:
            batch.lines = []
            raise Problem(404, f"The results of message batch {batch.id} are archived")
        return batch.lines

    def results_cut(self, now: float, batch: Batch) -> bool:
        """Count one download of a batch's results, and return whether a fault breaks it off."""
        attempt = self._desk.faults.attempt(batch.mark)
        return self._desk.struck(("results_cut",), batch.mark, attempt, now) is not None

    def unsettled(self) -> list[Batch]:
        """Return the batches that have not ended."""
        return [batch for batch in self._batches.values() if batch.settled_at is None]

    def work(self, batch: Batch, now: float) -> Iterator[Row]:
        """Decide the rows that are due by `now`, and end the batch if it is over.

        It yields after every row so that others get their turn, and may be left there and begun anew.
        """
        over = now >= batch.ends_at
        late = batch.canceled_at is None or batch.ends_at >= batch.expires_at
        while batch.agenda and (over or batch.agenda[-1].done_at <= now):
            row = batch.agenda.pop()
            request, result = json.loads(row.raw), {"type": "expired" if late else "canceled"}
            if row.done_at <= batch.ends_at:
                result = self._result(batch, row, request["params"])
            batch.counts[result["type"]] += 1
            batch.lines.append(wire.json_bytes({"custom_id": request["custom_id"], "result": result}) + b"\n")
            yield row
        if over and batch.settled_at is None:
            replies.draws(batch.mark, "order").shuffle(batch.lines)
            batch.settled_at = batch.ends_at

    def _result(self, batch: Batch, row: Row, params: dict[str, Any]) -> dict[str, Any]:
        """Return how a row ends, at its moment, and bill its reply."""
        desk, now = self._desk, row.done_at
        try:
            model = found_model(params, now)
            _check(params, model, batch)
            key = replies.digest(desk.seed, params)
            struck = desk.struck(ROWS, key, desk.faults.attempt(key), now)
            if struck == "batch_expired":
                return {"type": "expired"}
            if struck is not None:
                raise trouble(struck, ROW.get(struck, 400))
            weighed = desk.weighed(params, model)
        except Problem as problem:
            return {"type": "errored", "error": problem.body(desk.next_id("req"))}
        # The luck of a row with the cache is drawn from its place.
        own = blake2b(batch.mark + f" {row.place}".encode(), digest_size=16).digest()
        may_read = bool(weighed.prefixes) and replies.draws(own, "hit").random() < _hits(batch, weighed)
        least = model.cache_minimum_tokens
        shares = desk.cache.shares(now, weighed, least, may_read=may_read)
        desk.cache.keep(now, now + SECONDS_TO_BEGIN, weighed, least)
        reply, shares, message = desk.compose(now, key, params, model, shares, "batch")
        desk.account.bill(now, model.id, "batch", key, shares, reply)
        return {"type": "succeeded", "message": message}


def requests_of(body: bytes | bytearray | dict[str, Any]) -> list[bytes]:
    """Return the requests of a new batch, each as JSON of its own, which takes less room than its value."""
    if not isinstance(body, dict):
        body = wire.read_object(body, MAX_BYTES)
    for name in body.keys() - {"requests", "workspace_id"}:
        raise Problem(400, f"{name}: Extra inputs are not permitted")
    if not isinstance(body.get("workspace_id", ""), str):
        raise Problem(400, "workspace_id: Input should be a valid string")
    rows, most = body.get("requests"), catalog.BATCH.max_requests
    if not isinstance(rows, list) or not rows:
        raise Problem(400, "requests: List should have at least 1 item after validation, not 0")
    if len(rows) > most:
        raise Problem(413, f"requests: at most {most} requests fit into a batch, not {len(rows)}")
    seen: set[str] = set()
    for place, row in enumerate(rows):
        wrong = next((words for wrong, words in _row_refusals(row, seen) if wrong), None)
        if wrong is not None:
            raise Problem(400, f"requests.{place}{wrong}")
        seen.add(row["custom_id"])
    return [wire.json_bytes(row) for row in rows]


def _row_refusals(row: Any, seen: set[str]) -> Iterator[tuple[bool, str]]:
    """Yield what may be wrong with one request of a batch, and the words for it."""
    yield not isinstance(row, dict), ": Input should be a valid dictionary"
    custom_id, pattern = row.get("custom_id"), catalog.BATCH.custom_id_pattern
    right = isinstance(custom_id, str) and CUSTOM_ID.fullmatch(custom_id) is not None
    yield not right, f".custom_id: String should match pattern {pattern!r}"
    yield custom_id in seen, f".custom_id: duplicate custom_id {custom_id!r}"
    yield not isinstance(row.get("params"), dict), ".params: Field required"
    for name in row.keys() - {"custom_id", "params"}:
        yield True, f".{name}: Extra inputs are not permitted"


def _check(params: dict[str, Any], model: catalog.Model, batch: Batch) -> None:
    """Refuse what batches alone refuse of a request, and what the Messages API does."""
    never = next((name for name in REFUSED if params.get(name)), None)
    if never is not None or params.get("max_tokens") == 0:
        raise Problem(400, f"{never or 'max_tokens 0'}: not supported in message batches")
    if not model.batch:
        raise Problem(400, f"model: {model.id} is not supported in message batches")
    check(params, model, batch.version, batch.betas)


def _hits(batch: Batch, measured: Measured) -> float:
    """Return how likely a row finds a prefix that the cache holds: better with an hour than 5 minutes."""
    fewest, most = map(float, catalog.BATCH.cache_hit_shares)
    hour = any(prefix.ttl == "1h" for prefix in measured.prefixes)
    luck = replies.draws(batch.mark, "cache").random() + hour
    return fewest + (most - fewest) * luck / 2
