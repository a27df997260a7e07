"""Message batches of one account: created, worked off in simulated time, listed, canceled, read.

Each row is done at a simulated moment of its own. `Batches.work` does those whose moment has come, and
ends the batch in time; whoever calls it does the waiting. Until a batch has ended its counts say only
how many rows it has, as on the API.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.simulator import replies, rows, wire
from claudescale.simulator.buckets import Bucket, rfc3339
from claudescale.simulator.checks import Problem, invalid
from claudescale.simulator.faults import ACCOUNT, CREATE_AFTER, CREATE_BEFORE, STATUSES
from claudescale.simulator.intake import Intake
from claudescale.simulator.listings import page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from claudescale.simulator.desk import Desk

CANCEL_SECONDS = 20.0  # what is under way may still finish
HOUR = 3600.0
DAY = 24 * HOUR
STUCK_SECONDS = 1e12
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
SECONDS_PER_ROW = 0.02
BASE_SECONDS = 180.0


@dataclass(slots=True, kw_only=True)
class Batch:
    """One batch. A row's request is dropped when it is done, its result when the batch is archived.

    Attributes
    ----------
    number : int
        1 for the simulator's first.
    mark : bytes
        What its luck is drawn from: the simulator's seed and the number.
    seconds : float
        API seconds from its creation until the last row would be done.
    rows : list of bytes
        The request of each row as JSON, in the order given.
    moments : array of float
        When each row is done.
    agenda : list of int
        Which rows are not done, the next one last.
    luck : float
        How well it does with the prompt cache, from 0 to 1.
    """

    id: str
    number: int
    mark: bytes
    created_at: float
    seconds: float
    version: str
    betas: str
    total: int
    rows: list[bytes]
    moments: array[float]
    agenda: list[int]
    luck: float
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

    @property
    def archived_at(self) -> float:
        """When its results are gone."""
        return self.created_at + catalog.BATCH.results_days * DAY

    @property
    def next_at(self) -> float:
        """When there is something to do for it: a row, or its end."""
        return min(self.ends_at, self.moments[self.agenda[-1]] if self.agenda else math.inf)

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

    def submit(self, now: float, body: dict[str, Any] | Intake, version: str, betas: str = "") -> wire.Answer:
        """Return the answer to ``POST /v1/messages/batches``, by whatever fault strikes it."""
        attempt = self._desk.faults.attempt(b"create")
        struck = self._struck(CREATE_BEFORE, b"create", attempt, now)
        if struck is not None:
            return self._failed(struck)
        stopped = self._desk.stopped(now, coded=False)
        if stopped is not None:
            return stopped
        found = self.create(now, body, version, betas)
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
        """Return an error, or no answer at all."""
        broken = {"create_dropped": "drop", "create_lost": "drop", "create_hang": "hang"}.get(kind)
        if broken is not None:
            return wire.Answer(status=0, headers={}, body=b"", fault=broken, kind=kind)
        found = Problem(400, *ACCOUNT[kind]) if kind in ACCOUNT else Problem(500, *STATUSES[500])
        return self._desk.refuse(found)

    def poll_failed(self, now: float) -> wire.Answer | None:
        """Count one retrieve or list, and return the 500 that a fault makes of it."""
        struck = self._struck(("poll_failed",), b"poll", self._desk.faults.attempt(b"poll"), now)
        return None if struck is None else self._failed(struck)

    def results_cut(self, now: float, batch: Batch) -> bool:
        """Count one download of a batch's results, and return whether a fault breaks it off."""
        key = f"results {batch.number}".encode()
        return self._struck(("results_cut",), key, self._desk.faults.attempt(key), now) is not None

    def create(
        self, now: float, body: dict[str, Any] | Intake, version: str, betas: str = ""
    ) -> dict[str, Any] | Problem:
        """Return the new batch, or why it is refused. Each row's `params` are checked only later."""
        if isinstance(body, dict):
            given, body = body, Intake()
            body.feed(wire.json_bytes(given))
        wrong = body.end()
        if wrong is not None:
            return wrong
        total = len(body.rows)
        waiting = sum(batch.queued(now) for batch in self._batches.values())
        most = self._desk.terms.batch_queue_requests
        if waiting + total > most:
            message = f"This batch would exceed your limit of {most:,} requests in the processing queue."
            return Problem(429, "rate_limit_error", message)
        batch = self._made(now, body.rows, version, betas)
        self._batches[batch.id] = batch
        return self.show(batch, now)

    def _made(self, now: float, given: list[bytes], version: str, betas: str) -> Batch:
        name = self._desk.next_id("msgbatch")
        self._desk.account.batches_created += 1
        number = self._desk.account.batches_created
        stuck = self._struck(("batch_stuck",), b"batch", number, now)
        key = blake2b(f"{self._desk.seed} {number}".encode(), digest_size=16).digest()
        seconds = STUCK_SECONDS if stuck else self._duration(key, len(given))
        own = replies.draws(key, "moments")
        # Above 0: a row is done after its batch was made, and those of a stuck one are never done.
        moments = array("d", (now + seconds * (1 - own.random()) for _ in given))
        return Batch(
            id=name,
            number=number,
            mark=key,
            created_at=now,
            seconds=seconds,
            version=version,
            betas=betas,
            total=len(given),
            rows=given,
            moments=moments,
            agenda=sorted(range(len(given)), key=moments.__getitem__, reverse=True),
            luck=replies.draws(key, "cache").random(),
        )

    def _duration(self, key: bytes, total: int) -> float:
        if self._seconds is not None:
            return float(self._seconds(total) if callable(self._seconds) else self._seconds)
        drawn = replies.draws(key, "batch").lognormvariate(0.0, 0.4)
        return (BASE_SECONDS + SECONDS_PER_ROW * total) * drawn

    def show(self, batch: Batch, now: float, base_url: str = "") -> dict[str, Any]:
        """Return a batch as the API shows it at `now`."""
        ended = batch.settled_at is not None
        archived = now >= batch.archived_at
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
            "archived_at": _instant(batch.archived_at if archived else None),
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
        if now >= batch.archived_at:
            batch.lines = []
            return Problem(404, "not_found_error", f"The results of message batch {batch.id} are archived")
        return batch.lines

    def unsettled(self) -> list[Batch]:
        """Return the batches that are still worked off."""
        return [batch for batch in self._batches.values() if batch.settled_at is None]

    def due(self, now: float) -> list[Batch]:
        """Return the batches that have ended by `now` and are not worked off."""
        return [batch for batch in self.unsettled() if now >= batch.ends_at]

    def settle(self, batch: Batch) -> Iterator[int]:
        """Work a batch off to its end; yields after every row."""
        return self.work(batch, batch.ends_at)

    def work(self, batch: Batch, now: float) -> Iterator[int]:
        """Do the rows that are due by `now`, and end the batch if it is over.

        It yields after every row so that others get their turn, and may be left there and begun anew.
        """
        while batch.agenda and batch.moments[batch.agenda[-1]] <= min(now, batch.ends_at):
            index = batch.agenda.pop()
            row = json.loads(batch.rows[index])
            own = rows.mark(batch.mark, index)
            moment = batch.moments[index]
            self._close(
                batch,
                index,
                row["custom_id"],
                rows.outcome(self._desk, row["params"], batch.version, moment, own, batch.luck, batch.betas),
            )
            yield index
        if now < batch.ends_at or batch.settled_at is not None:
            return
        late = batch.canceled_at is None or batch.ends_at >= batch.expires_at
        left = {"type": "expired" if late else "canceled"}
        while batch.agenda:
            index = batch.agenda.pop()
            self._close(batch, index, json.loads(batch.rows[index])["custom_id"], left)
            yield index
        replies.draws(batch.mark, "order").shuffle(batch.lines)
        batch.rows, batch.moments, batch.settled_at = [], array("d"), batch.ends_at

    @staticmethod
    def _close(batch: Batch, index: int, custom_id: str, result: dict[str, Any]) -> None:
        batch.rows[index] = b""
        batch.counts[result["type"]] += 1
        batch.lines.append(wire.json_bytes({"custom_id": custom_id, "result": result}) + b"\n")


def _instant(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    whole = math.floor(seconds)
    return f"{rfc3339(whole)[:-1]}.{int((seconds - whole) * 1e6):06d}Z"
