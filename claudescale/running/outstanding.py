"""Batches that are out: find those whose answer was lost, see how they are, collect them, cancel them.

`Outstanding` keeps the ledger's record of each batch true. What to submit is decided in `batches`.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale import loops
from claudescale.api import catalog
from claudescale.api.answers import STOPPING_ERRORS, Verdict, read_object, verdict
from claudescale.api.client import listed
from claudescale.running import batch_rules
from claudescale.running.batch_results import attempts, missing_lines, proves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from claudescale.api.answers import Answer
    from claudescale.api.client import BatchWire
    from claudescale.api.prices import Price
    from claudescale.clock import Clock
    from claudescale.ledger.batchfile import Batch
    from claudescale.ledger.ledger import Ledger

MOST_READS = 3
"""Times that results are read to their end which lack lines."""
MOST_MISSING = 20
MOST_MISSING_SHARE = 0.05
"""Where more lines are missing than both of these it is no slip, and their rows are not sent again."""
MISSED_LOOKS = 5
MISSED_SECONDS = 120.0
"""So often in a row, and for so long, must a batch not be shown, or a key that was good be refused."""
SILENT_SECONDS = 6 * 3_600.0
"""How long the API may not be reached while batches are out: they lose nothing by waiting."""
FEW_LOOKS = 8
"""In vain in a row, however long ago the last good one is: a computer that wakes has no network at first."""
_PAGE = 100
_SEVERAL = 2
_STOPS = pl.col("error").is_in(list(STOPPING_ERRORS))
_REFUSALS = pl.col("error").is_in(["invalid_request_error", "request_too_large"]) & ~pl.col("final")
_UNCLEAR = pl.col("error").is_in(["invalid_response", "result_missing"])


class Refusals(NamedTuple):
    """How many rows of a batch were refused alike, for a reason that another try would meet again.

    Only those that count as no last word, as hardly a row of their batch was answered.
    """

    batch: Batch
    rows: int
    error: str | None
    message: str | None


class Looked(NamedTuple):
    """Keys of requests that have no final answer though their batch is over.

    Attributes
    ----------
    unanswered : list of str
        Their batch was collected: they expired, failed or were canceled.
    unsent : list of str
        Their batch was never made, or ended with its simulator.
    unclear : list of str
        Of the unanswered, those that may have been billed all the same.
    refusals : list of Refusals
        Of each batch that was collected; its rows are not among the unanswered.
    """

    unanswered: list[str]
    unsent: list[str]
    unclear: list[str]
    refusals: list[Refusals]


class Outstanding:
    """The batches that this run follows.

    Parameters
    ----------
    wire : BatchWire
        The endpoints.
    ledger : Ledger
        Whose batches these are.
    clock : Clock
        API time.
    record : callable
        Takes attempts and `final`; returns when they are on the disk.
    price : Price
        Of the model in a batch, on any day: a batch is billed as on the day it was made.
    describe : dict
        The columns of an attempt that are the same for all: run, model, simulated.
    known_good : callable
        Whether a row of the plan has an answer: then a few that are refused are to blame for it themselves.

    Attributes
    ----------
    open : dict
        By nonce, those that are not closed yet.
    stuck : dict
        By nonce, why this run cannot bring in some of those; they go on holding their rows.
    closed : list of Batch
        The others, in the order they were closed.
    stopped_by : Verdict or None
        Why nothing more can be learned, or should be submitted.
    is_silent : bool
        Nothing can be learned any more: the key is not accepted, or the API cannot be reached for hours.
    changed_at : float
        API unix seconds at which one was made or closed last.
    """

    def __init__(
        self,
        *,
        wire: BatchWire,
        ledger: Ledger,
        clock: Clock,
        record: Callable[[pl.DataFrame], Awaitable[None]],
        price: Price,
        describe: Mapping[str, Any],
        known_good: Callable[[], bool] = lambda: False,
    ) -> None:
        self.open: dict[str, Batch] = {}
        self.stuck: dict[str, Verdict] = {}
        self.closed: list[Batch] = []
        self.stopped_by: Verdict | None = None
        self.is_silent = False
        self.changed_at = self._reached_at = clock.seconds()
        self._looks_in_vain = 0
        self._wire = wire
        self._ledger = ledger
        self._clock = clock
        self._record = record
        self._price = price
        self._describe = dict(describe)
        self._lost: dict[str, float] = {}  # until when a batch without an answer may still appear
        self._foreign: dict[str, set[str]] = {}  # by nonce, batches that were looked at and are not this one
        self._known_good = known_good
        self._unsent: list[str] = []
        self._missed: dict[str, tuple[float, int]] = {}  # by nonce, since when and how often it was not shown
        self._accepted = self._readable = False
        self._doubts, self._doubted_at = 0, 0.0
        self._reads: dict[str, int] = {}
        self._refused: dict[str, dict[str, tuple[str, str]]] = {}  # by nonce and key, error and message
        self._unclear: dict[str, list[str]] = {}
        self._canceled: set[str] = set()  # batches whose cancellation is not somebody else's doing now

    @property
    def waited(self) -> list[Batch]:
        """Those that are still to come in."""
        return [batch for nonce, batch in self.open.items() if nonce not in self.stuck]

    @property
    def known(self) -> list[Batch]:
        """Those of them that surely are at the API."""
        return [batch for batch in self.waited if batch.batch_id is not None]

    @property
    def why_stuck(self) -> Verdict | None:
        """What to say of batches that could not be brought in."""
        if not self.stuck:
            return None
        first, *more = self.stuck.values()
        if not more:
            return first
        words = f"this is so of {len(self.stuck)} batches, one of them: {first.message}"
        return Verdict(outcome="stop", error=first.error, message=words)

    async def adopt(self, keys: pl.Series) -> list[Batch]:
        """Take over the batches that hold one of `keys` and that nobody follows any more."""
        found = await loops.in_thread(self._ledger.adopt, keys)
        now = self._clock.seconds()
        for batch in found:
            self.open[batch.nonce] = batch
            self._canceled.add(batch.nonce)
            if batch.batch_id is None:
                sent_by = batch.intended_at + batch_rules.LONGEST_UPLOAD_SECONDS
                self._lost[batch.nonce] = min(now, sent_by) + batch_rules.LOST_SECONDS
        return found

    async def intend(self, batch: Batch, keys: list[str]) -> None:
        """Write down a batch that is about to be posted."""
        await loops.in_thread(self._ledger.intend, batch, keys)
        self.open[batch.nonce] = batch

    async def posted(self, batch: Batch, answer: Answer) -> batch_rules.Made:
        """Write down what became of it; one that may be there is looked for."""
        made = batch_rules.made(answer)
        self.changed_at = self._clock.seconds()
        if made.outcome == "created":
            await self._note(batch_rules.seen(batch, made.shown))
        elif made.outcome == "unknown":
            answered = answer.status is not None
            patience = batch_rules.FAILED_SECONDS if answered else batch_rules.LOST_SECONDS
            self._lost[batch.nonce] = self._clock.seconds() + patience
        else:
            await self._close(batch, "absent")
        return made

    async def look(self) -> Looked:
        """See how every batch is, and collect what has ended."""
        looked = Looked([], [], [], [])
        for batch in list(self.open.values()):
            if batch.batch_id is None:
                looked.unsent.extend(await self._search(batch))
        await self._poll([batch for batch in self.known if batch.state != "ended"])
        for batch in self.known:
            if batch.state == "ended":
                await self._collect(batch, looked)
        looked.unsent.extend(self._unsent)
        self._unsent.clear()
        return looked

    async def cancel(self) -> None:
        """Ask for the end of every batch that is known to be there."""
        for batch in self.known:
            if batch.state == "in_progress":
                if batch.nonce not in self._canceled:
                    self.changed_at = self._clock.seconds()
                    self._canceled.add(batch.nonce)
                answer = await self._wire.cancel(str(batch.batch_id))
                await self._look_at(batch, answer)

    # one that may be there

    async def _search(self, batch: Batch) -> list[str]:
        """Look for a batch whose answer was lost: the nonce in its results proves it."""
        shown = await self._candidates(batch)
        if shown is None:
            return []
        waiting = False
        for each in shown:
            ended = each["processing_status"] == "ended"
            block = await self._wire.first_lines(each["id"]) if ended else None
            ours = proves(block, batch.nonce) if block else None
            if ours:
                del self._lost[batch.nonce]
                await self._note(batch_rules.seen(batch, each))
                return []
            if ours is False or (ended and not batch_rules.has_results(each)):
                self._foreign.setdefault(batch.nonce, set()).add(each["id"])
            else:
                waiting = True
        if waiting or self._clock.seconds() < self._lost[batch.nonce]:
            return []
        return await self._close(batch, "absent")

    async def _candidates(self, batch: Batch) -> list[dict[str, Any]] | None:
        """Return the listed batches that may be this one; None where the list cannot be read now."""
        others = await loops.in_thread(lambda: self._ledger.batches(mine=False))
        known = {each.batch_id for each in others} | self._foreign.get(batch.nonce, set())
        found: list[dict[str, Any]] = []
        after = None
        while True:
            answer = await self._wire.page(_PAGE, after)
            self._hear(answer)
            if answer.status != HTTPStatus.OK:
                return None
            shown, offset = listed(answer), batch_rules.clock_offset(answer, self._clock.seconds())
            until = self._lost[batch.nonce]
            may_be = [each for each in shown if batch_rules.may_be(batch, each, until, offset)]
            found += [each for each in may_be if each["id"] not in known]
            if batch_rules.looked_far_enough(batch, shown, offset) or len(shown) < _PAGE:
                return found
            after = str(shown[-1].get("id"))

    # one that is there

    async def _poll(self, batches: list[Batch]) -> None:
        left = {str(batch.batch_id): batch for batch in batches}
        if len(left) >= _SEVERAL:
            answer = await self._wire.page(min(_PAGE, 2 * len(left)))
            for shown in listed(answer) if answer.status == HTTPStatus.OK else []:
                if batch_rules.is_batch(shown) and shown["id"] in left:
                    await self._see(left.pop(shown["id"]), shown)
        for batch_id, batch in left.items():
            await self._look_at(batch, await self._wire.retrieve(batch_id))

    async def _look_at(self, batch: Batch, answer: Answer) -> None:
        """Take in an answer that shows one batch."""
        self._hear(answer)
        shown = read_object(answer.content)
        if answer.status == HTTPStatus.OK and batch_rules.is_batch(shown):
            await self._see(batch, shown)
        else:
            await self._miss(batch, answer)

    async def _see(self, batch: Batch, shown: dict[str, Any]) -> None:
        self._missed.pop(batch.nonce, None)
        now = batch_rules.seen(batch, shown)
        if now != batch:
            await self._note(now)
        if now.state == "ended" and not batch_rules.has_results(shown):
            await self._lose(now)

    def _hear(self, answer: Answer) -> None:
        """Notice an API that has nothing to say any more, or not to this key."""
        now = self._clock.seconds()
        self._looks_in_vain += 1
        if answer.status is not None and answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._reached_at, self._looks_in_vain = now, 0
        if answer.status == HTTPStatus.OK:
            self._accepted, self._doubts = True, 0
        if answer.status == HTTPStatus.OK or batch_rules.is_gone(answer):
            return
        found = verdict(answer)
        silent = now - self._reached_at > SILENT_SECONDS and self._looks_in_vain > FEW_LOOKS
        if silent or (found.outcome == "stop" and self._is_believed(now)):
            self.is_silent = True
            self.stopped_by = self.stopped_by or found

    def _is_believed(self, now: float) -> bool:
        """Count an answer that the account is in trouble, and return whether to believe it of a good key."""
        self._doubted_at = self._doubted_at if self._doubts else now
        self._doubts += 1
        lasting = self._doubts >= MISSED_LOOKS and now - self._doubted_at >= MISSED_SECONDS
        return lasting or not self._accepted

    async def _miss(self, batch: Batch, answer: Answer) -> None:
        """Count an answer that does not show a batch. One 404 may be another replica's, of a batch just made.

        When it is to be believed the batch stays in the ledger, for another key may see it. A simulator's
        ended with it, and its rows cost nothing.
        """
        now, gone = self._clock.seconds(), batch_rules.is_gone(answer)
        since, looks = self._missed.get(batch.nonce, (now, 0))
        self._missed[batch.nonce] = since, looks + 1
        patience = MISSED_SECONDS if gone else SILENT_SECONDS
        if looks + 1 < MISSED_LOOKS or now - since < patience:
            return
        if gone and self._describe["simulated"]:
            self._unsent += await self._close(batch, "gone")
            return
        if gone:
            words = f"batch {batch.batch_id} is not shown to this key: another workspace's, or deleted"
            words = f"{words}. {_held(batch)}"
            self.stuck[batch.nonce] = Verdict(outcome="stop", error="batch_not_found", message=words)
        else:
            found = verdict(answer)
            words = f"batch {batch.batch_id} could not be seen for hours: {found.message}"
            self.stuck[batch.nonce] = Verdict(outcome="stop", error=found.error, message=words)

    # one that has ended

    async def _collect(self, batch: Batch, looked: Looked) -> None:
        """Bring the results of a batch to the disk, those that are not there yet, and close it."""
        recorded = await loops.in_thread(self._ledger.recorded, batch)
        canceled: list[str] = []

        async def take(block: bytes) -> None:
            nonlocal recorded
            frame = await loops.in_thread(self._read, block, batch, recorded)
            await self._keep(batch, frame)
            recorded = recorded.append(frame["key"])
            self._readable |= frame.height > 0
            canceled.extend(frame.filter(pl.col("error") == "canceled")["key"])

        answer = await self._wire.results(str(batch.batch_id), take)
        self._hear(answer)
        if answer.status != HTTPStatus.OK:
            await self._miss(batch, answer)
            return
        self._missed.pop(batch.nonce, None)
        held = pl.Series(await loops.in_thread(self._ledger.held, batch.nonce), dtype=pl.String)
        missing = held.filter(~held.is_in(recorded.implode())).to_list()
        if missing:
            if not self._gives_up(batch, len(missing)):
                return
            block = missing_lines(missing, batch.nonce)
            await self._keep(batch, await loops.in_thread(self._read, block, batch, recorded))
        if canceled and batch.nonce not in self._canceled:
            words = f"{len(canceled):,} rows of batch {batch.batch_id} were canceled, and not by this run"
            self.stopped_by = self.stopped_by or Verdict(outcome="stop", error="canceled", message=words)
        left = await self._close(batch, "collected")
        refused = self._refused.pop(batch.nonce, {})
        looked.unanswered.extend(key for key in left if key not in refused)
        looked.unclear.extend(self._unclear.pop(batch.nonce, []))
        (why, rows), *_ = [*Counter(refused.values()).most_common(1), ((None, None), 0)]
        looked.refusals.append(Refusals(self.closed[-1], rows, *why))

    async def _keep(self, batch: Batch, frame: pl.DataFrame) -> None:
        """Bring results to the disk, and note what they say of more than their rows."""
        await self._record(frame)
        refused = frame.filter(_REFUSALS).select("key", "error", "message").rows()
        self._refused.setdefault(batch.nonce, {}).update(
            {key: (error, words) for key, error, words in refused}
        )
        self._unclear.setdefault(batch.nonce, []).extend(frame.filter(_UNCLEAR)["key"])
        for error, message in frame.filter(_STOPS).select("error", "message").rows()[:1]:
            self.stopped_by = self.stopped_by or Verdict(outcome="stop", error=error, message=message)

    def _read(self, block: bytes, batch: Batch, recorded: pl.Series) -> pl.DataFrame:
        begun = batch.created_at or batch.intended_at
        frame = attempts(
            block,
            nonce=batch.nonce,
            batch_id=str(batch.batch_id),
            price=self._price.at(datetime.fromtimestamp(begun, UTC)),
            sent_at=begun,
            seconds=(batch.ended_at or begun) - begun,
            trusted=batch_rules.trusts(batch, known_good=self._known_good()),
            **self._describe,
        )
        return frame.unique("key", keep="first", maintain_order=True).filter(
            ~pl.col("key").is_in(recorded.implode())
        )

    def _gives_up(self, batch: Batch, missing: int) -> bool:
        """Whether results that lack lines were read often enough, so that their rows go to another batch."""
        reads = self._reads[batch.nonce] = self._reads.get(batch.nonce, 0) + 1
        if reads < MOST_READS:
            return False
        if self._readable and missing <= max(MOST_MISSING, MOST_MISSING_SHARE * batch.requests):
            return True
        words = f"of batch {batch.batch_id} {missing:,} of {batch.requests:,} results cannot be read"
        words = f"{words}. {_held(batch)}"
        self.stuck[batch.nonce] = Verdict(outcome="stop", error="results_incomplete", message=words)
        return False

    async def _lose(self, batch: Batch) -> None:
        """Close a batch whose results cannot be read any more, and stop: its rows would be paid for again."""
        await self._close(batch, "gone")
        words = (
            f"the results of batch {batch.batch_id} are over {catalog.BATCH.results_days} days old and gone. "
            "What it answered was paid for. Nothing was sent again; the same cell again sends its rows anew"
        )
        self.stopped_by = self.stopped_by or Verdict(outcome="stop", error="results_gone", message=words)

    async def _close(self, batch: Batch, state: str) -> list[str]:
        """Close a batch, and return which of its rows have no final answer."""
        left = await loops.in_thread(self._ledger.held, batch.nonce)
        done = batch._replace(state=state)
        await loops.in_thread(self._ledger.end_batch, done)
        self.open.pop(batch.nonce, None)
        self._lost.pop(batch.nonce, None)
        self.closed.append(done)
        self.changed_at = self._clock.seconds()
        return left

    async def _note(self, batch: Batch) -> None:
        await loops.in_thread(self._ledger.note, batch)
        self.open[batch.nonce] = batch


def _held(batch: Batch) -> str:
    """Return what becomes of the rows of a batch that cannot be brought in."""
    freed = f"cs.Ledger(...).forget({batch.batch_id!r})"
    return f"Its rows stay held, as they may be paid for. After {freed} they are sent, and paid for, again"
