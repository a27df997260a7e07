"""Message batches of one account: created, worked off in simulated time, listed, canceled, read.

Each row is done at a simulated moment of its own. `Batches.work` does those whose moment has come, and
ends the batch in time; whoever calls it does the waiting. Until a batch has ended its counts say only
how many rows it has, as on the API.
"""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pydantic_core

from claudescale.api import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.account import Bucket
from claudescale.simulator.checks import check, found_model
from claudescale.simulator.faults import CREATE_AFTER, CREATE_BEFORE, ROW, ROWS, trouble
from claudescale.simulator.wire import Answer, Problem, instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from claudescale.simulator.desk import Desk
    from claudescale.simulator.tokens import Measured

MAX_BYTES = catalog.BATCH.max_bytes
REFUSED = (*catalog.BATCH.refused_parameters, "fallbacks", "thread")
CUSTOM_ID = re.compile(catalog.BATCH.custom_id_pattern.removeprefix("^").removesuffix("$"))
UNANSWERED = {"create_dropped": "drop", "create_lost": "drop", "create_hang": "hang"}
CANCEL_SECONDS = 20.0  # what is under way may still finish
STRINGS_AND_BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}]', re.DOTALL)
ROW_DEPTH = 3  # in the object, in its list
DAY = 24 * 3600.0
STUCK_SECONDS = 1e12
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
BASE_SECONDS, SECONDS_PER_ROW = 180.0, 0.02
SECONDS_TO_BEGIN = 1.0  # of a reply: only then others can read what it wrote to the cache


@dataclass(slots=True)
class Batch:
    """One batch. A row's request is dropped when it is done, its result when the batch is archived.

    Attributes
    ----------
    mark : bytes
        What its luck is drawn from: the simulator's seed and its number.
    seconds : float
        API seconds from its creation until the last row would be done.
    rows : list of bytes
        The request of each row as JSON, in the order given; empty once it is done.
    moments : array of float
        When each row is done.
    agenda : list of int
        Which rows are not done, the next one last.
    """

    id: str
    mark: bytes
    created_at: float
    seconds: float
    version: str
    betas: str
    rows: list[bytes]
    moments: array[float]
    agenda: list[int]
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

    @property
    def next_at(self) -> float:
        """When there is something to do for it: a row, or its end."""
        return min(self.ends_at, self.moments[self.agenda[-1]] if self.agenda else math.inf)

    def queued(self, now: float) -> int:
        """Return how many requests still wait at `now`."""
        if self.settled_at is not None or now >= self.ends_at:
            return 0
        return math.ceil(len(self.rows) * (1 - (now - self.created_at) / self.seconds))

    def shown(self, now: float, base_url: str = "") -> dict[str, Any]:
        """Return it as the API shows it at `now`."""
        ended, archived = self.settled_at is not None, now >= self.archived_at
        state = "ended" if ended else "in_progress" if self.canceled_at is None else "canceling"
        counts = self.counts if ended else {**dict.fromkeys(COUNTS, 0), "processing": len(self.rows)}
        url = f"{base_url}/v1/messages/batches/{self.id}/results" if ended and not archived else None
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": state,
            "request_counts": dict(counts),
            "created_at": instant(self.created_at),
            "expires_at": instant(self.expires_at),
            "ended_at": instant(self.settled_at),
            "archived_at": instant(self.archived_at if archived else None),
            "cancel_initiated_at": instant(self.canceled_at),
            "results_url": url,
        }

    def close(self, index: int, result: dict[str, Any]) -> None:
        """Write the result of a row, and drop its request."""
        name = pydantic_core.from_json(self.rows[index])["custom_id"]
        self.rows[index] = b""
        self.counts[result["type"]] += 1
        self.lines.append(wire.json_bytes({"custom_id": name, "result": result}) + b"\n")


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

    def submit(
        self, now: float, body: list[bytes] | dict[str, Any], version: str, betas: str = ""
    ) -> Answer | dict[str, Any]:
        """Return the answer to ``POST /v1/messages/batches``, by whatever fault strikes it."""
        attempt = self._desk.faults.attempt(b"create")
        struck = self._desk.struck(CREATE_BEFORE, b"create", attempt, now)
        if struck is None:
            self._desk.check_spending(now, coded=False)
            shown = self.create(now, body, version, betas)
            struck = self._desk.struck(CREATE_AFTER, b"create", attempt, now)
            if struck is None:
                return shown
        if struck in UNANSWERED:
            return Answer(0, {}, b"", fault=UNANSWERED[struck])
        raise trouble(struck)

    def create(
        self, now: float, body: list[bytes] | dict[str, Any], version: str, betas: str = ""
    ) -> dict[str, Any]:
        """Return the new batch as it is shown. Each row's `params` are checked only later."""
        most = self._desk.terms.batch_queue_requests or 0
        rows = body if isinstance(body, list) else requests_of(wire.json_bytes(body))
        if sum(batch.queued(now) for batch in self._batches.values()) + len(rows) > most:
            raise Problem(
                429, f"This batch would exceed your limit of {most:,} requests in the processing queue."
            )
        batch = self._made(now, rows, version, betas)
        self._batches[batch.id] = batch
        return batch.shown(now)

    def _made(self, now: float, rows: list[bytes], version: str, betas: str) -> Batch:
        counts = self._desk.account.counts
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
        moments = array("d", (now + seconds * (1 - own.random()) for _ in rows))
        agenda = sorted(range(len(rows)), key=moments.__getitem__, reverse=True)
        name = self._desk.next_id("msgbatch")
        return Batch(name, mark, now, seconds, version, betas, rows, moments, agenda)

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
        """Return the batches that are still worked off."""
        return [batch for batch in self._batches.values() if batch.settled_at is None]

    def work(self, batch: Batch, now: float) -> Iterator[int]:
        """Do the rows that are due by `now`, and end the batch if it is over.

        It yields after every row so that others get their turn, and may be left there and begun anew.
        """
        while batch.agenda and batch.moments[batch.agenda[-1]] <= min(now, batch.ends_at):
            index = batch.agenda.pop()
            batch.close(index, self._outcome(batch, index))
            yield index
        if now < batch.ends_at or batch.settled_at is not None:
            return
        late = batch.canceled_at is None or batch.ends_at >= batch.expires_at
        while batch.agenda:
            index = batch.agenda.pop()
            batch.close(index, {"type": "expired" if late else "canceled"})
            yield index
        replies.draws(batch.mark, "order").shuffle(batch.lines)
        batch.rows, batch.moments, batch.settled_at = [], array("d"), batch.ends_at

    def _outcome(self, batch: Batch, index: int) -> dict[str, Any]:
        """Return the ``result`` of a row, and bill it if it succeeded."""
        desk, now = self._desk, batch.moments[index]
        params = pydantic_core.from_json(batch.rows[index])["params"]
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
        own = blake2b(batch.mark + f" {index}".encode(), digest_size=16).digest()
        may_read = bool(weighed.prefixes) and replies.draws(own, "hit").random() < _hits(batch, weighed)
        least = model.cache_minimum_tokens
        shares = desk.cache.shares(now, weighed, least, may_read=may_read)
        desk.cache.keep(now, now + SECONDS_TO_BEGIN, weighed, least)
        reply = desk.reply(key, params, model, now)
        shares = shares._replace(input_tokens=shares.input_tokens + reply.found_tokens)
        desk.account.bill(now, model.id, "batch", key, shares, reply)
        return {"type": "succeeded", "message": desk.message(params, model, reply, shares, "batch")}


def requests_of(body: bytes | bytearray) -> list[bytes]:
    """Return the requests of a new batch, each as the bytes it came in."""
    if len(body) > MAX_BYTES:
        raise wire.too_large(MAX_BYTES)
    # Row by row: a large body as one value takes several times its bytes, and the interpreter for seconds.
    frame, rows = _split(body)
    read, most = _read(frame), catalog.BATCH.max_requests
    if not isinstance(read, dict):
        raise Problem(400, "Input should be a valid dictionary")
    for name in read.keys() - {"requests", "workspace_id"}:
        raise Problem(400, f"{name}: Extra inputs are not permitted")
    if not isinstance(read.get("workspace_id", ""), str):
        raise Problem(400, "workspace_id: Input should be a valid string")
    places = read.get("requests")
    if not isinstance(places, list) or not places:
        raise Problem(400, "requests: List should have at least 1 item after validation, not 0")
    if len(places) > most:
        raise Problem(413, f"requests: at most {most} requests fit into a batch, not {len(places)}")
    seen: set[str] = set()
    for index, place in enumerate(places):
        row = _read(rows[index]) if place == {} and index < len(rows) else place
        wrong = next((words for wrong, words in _row_refusals(row, seen) if wrong), None)
        if wrong is not None:
            raise Problem(400, f"requests.{index}{wrong}")
        seen.add(row["custom_id"])
    return rows


def _split(body: bytes | bytearray) -> tuple[bytes, list[bytes]]:
    """Return a body with ``{}`` in the place of everything three levels down, and what stood there."""
    rows, frame, depth, start, end = [], [], 0, 0, 0
    for token in STRINGS_AND_BRACKETS.finditer(body):
        first = body[token.start()]
        if first in b"{[":
            depth += 1
            if depth == ROW_DEPTH:
                start = token.start()
                frame.append(bytes(body[end:start]))
        elif first in b"}]":
            depth -= 1
            if depth == ROW_DEPTH - 1:
                end = token.end()
                frame.append(b"{}")
                rows.append(bytes(body[start:end]))
    return b"".join((*frame, body[end:])), rows


def _read(raw: bytes) -> Any:
    try:
        return pydantic_core.from_json(raw)
    except ValueError as error:
        raise Problem(400, f"The request body is not valid JSON: {error}") from None


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
