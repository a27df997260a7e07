"""A run on a Dask cluster, as its driver sees it: rows go out in parts, attempts come back.

The scheduler keeps the book of the shared limit. Dask itself sees to workers that die or freeze: it gives
their parts to others, which look first into the ledger of the one that is gone.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import shutil
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from claudescale import loops
from claudescale.api.answers import Verdict
from claudescale.books import LOST_SECONDS, limits_of, terms_of
from claudescale.daskbook import Keeper, on_loop
from claudescale.daskworker import DRIVER, Part, Terms, Told, run_part
from claudescale.running import engines, gathering
from claudescale.running.guards import Purse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anthropic import AsyncAnthropic
    from distributed import Client, Future

    from claudescale.api.client import Api
    from claudescale.api.limits import Limits
    from claudescale.ledger.records import Attempt
    from claudescale.ledger.store import Store
    from claudescale.planning.plans import Plan
    from claudescale.running.live import Live, Row

BEAT_SECONDS = 0.5
MOST_ROWS, MOST_PART_BYTES = 256, 1 << 20
"""Of one part."""
_MOST_PARTS = 32
"""Handed out to one worker at a time; each waits in a thread of its own."""
_MOST_DEATHS = 5
"""Of workers under the same part: then the part may be what kills them."""
_CLOSING_SECONDS = 5.0


@dataclass
class View:
    """What a run may ask of a pacer, as the book told it last."""

    limits: Limits
    expected_output_tokens: float
    in_flight: int = 0
    window: int = 1


class Remote:
    """A `Live` whose rows are answered by the workers of a Dask cluster.

    Spends: tokens.

    Parameters
    ----------
    dask : distributed.Client
        Of the cluster; not an asynchronous one.
    connect : callable, optional
        Makes a worker's client, in the worker.
    folder : Path, optional
        Where workers keep their ledgers; beside the run's own by default.
    client, plan, api, ledger, record, dollars_elsewhere, requests
        As for `engines.live_engine`.
    """

    def __init__(
        self,
        dask: Client,
        connect: Callable[[], AsyncAnthropic] | None,
        folder: Path | None,
        client: AsyncAnthropic,
        plan: Plan,
        *,
        api: Api,
        ledger: Store,
        record: Callable[[Attempt, bool], None],
        dollars_elsewhere: Callable[[], float],
        requests: int,
    ) -> None:
        self._dask = dask
        self._plan = plan
        self._clock = api.clock
        self._ledger = ledger
        self._record = record
        self._temporary = folder is None and ledger.path is None
        if folder is None:
            folder = (
                Path(tempfile.mkdtemp(prefix="claudescale-"))
                if ledger.path is None
                else gathering.workers_of(ledger.path)
            )
        self._folder = folder / ledger.run
        output_tokens = min(plan.expected.output_tokens, float(plan.max_tokens))
        base_url = str(client.base_url)
        self._terms = Terms(
            run=ledger.run,
            book=f"{base_url} {plan.facts.rate_group}",
            api=api.name,
            simulated=api.simulated,
            base_url=base_url,
            lease=terms_of(plan.limits, share=plan.share, output_tokens=output_tokens, clock=api.clock),
            folder=str(self._folder),
            facts=plan.facts,
            max_tokens=plan.max_tokens,
            cache=plan.cache,
            concurrency=plan.concurrency,
            head=plan.compiled.head,
            tail=plan.compiled.tail,
            charges=plan.compiled.charges,
            connect=connect,
        )
        self._around = len(plan.compiled.head.encode()), len(plan.compiled.tail.encode())
        self._worst_dollars = engines.worst_dollars(plan, plan.compiled.charges)
        self._primes = plan.cache and requests > 1
        self.pacer = View(plan.limits, output_tokens)
        self.purse = Purse(plan.budget, dollars_elsewhere)
        self.stopped_by: Verdict | None = None
        self._stopping = False
        self._dirty = False  # whether a worker may have answers that its part did not tell
        self._workers = 0
        self._rows_out = 0
        self._out: set[asyncio.Task[None]] = set()
        self._again: deque[list[Row]] = deque()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    # the face of a Live

    def stop(self) -> None:
        """Send nothing more; what is in flight is awaited, for it is paid for.

        Spends: nothing.
        """
        if not self._stopping:
            self._stopping = True
            self._changed.set()
            self._stop_said = asyncio.ensure_future(self._say_safely())

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row has its answer, or the run was stopped (`stopped_by` says why).

        Spends: tokens.
        """
        await self._open()
        beats = asyncio.create_task(self._beat())
        try:
            await self._hand_out(rows)
            while self._out:
                await self._change()
        finally:
            self.stop()
            beats.cancel()
            for task in self._out:
                task.cancel()
            await asyncio.gather(beats, self._stop_said, *self._out, return_exceptions=True)
        await self._close()
        if self._failure is not None:
            raise self._failure

    # the cluster

    async def _open(self) -> None:
        self._folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        (self._folder / DRIVER).touch()
        await loops.in_thread(self._dask.register_plugin, Keeper())
        await self._say()

    async def _say(self, *, over: bool = False) -> int:
        """Give the book a sign of life, hear how the workers do, and return how many there are."""
        message = {
            "driver": self._terms.run,
            "stop": self._stopping,
            "over": over,
            "terms": self._terms.lease,
        }
        ask = self._dask.scheduler.claudescale_exchange(book=self._terms.book, message=message)
        reply = await on_loop(self._dask.loop.asyncio_loop, ask)
        borrowers: int = reply["borrowers"]
        if over:  # the book may be a new one already
            return borrowers
        self.pacer.limits = limits_of(reply["limits"])
        self.pacer.in_flight, self.pacer.window = reply["in_flight"], reply["window"]
        self.pacer.expected_output_tokens = reply["output_tokens"]
        self._workers = reply["workers"]
        self._changed.set()
        return borrowers

    async def _say_safely(self) -> None:
        with suppress(ConnectionError):  # said again with the next beat
            await self._say()

    async def _beat(self) -> None:
        heard_at = time.monotonic()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._say()
                heard_at = time.monotonic()
            except ConnectionError as error:
                if time.monotonic() - heard_at > LOST_SECONDS:
                    self._give_up(f"Dask's scheduler does not answer any more ({error})")
                    return

    def _give_up(self, why: str) -> None:
        """End the run: nothing more will come from the workers."""
        found = Verdict(outcome="stop", error="cluster_error", message=f"{why}; what was answered is kept")
        self.stopped_by = self.stopped_by or found
        self._dirty = True
        self.stop()
        for task in self._out:
            task.cancel()

    async def _close(self) -> None:
        """See the workers off, and take over what they wrote and did not tell."""
        until = time.monotonic() + _CLOSING_SECONDS
        with suppress(ConnectionError):  # then the folder is left to the next run
            while await self._say(over=True) and time.monotonic() < until:  # noqa: ASYNC110 - far away
                await asyncio.sleep(loops.SLICE_SECONDS / 2)
        if self._dirty:
            await loops.in_thread(gathering.gather, self._ledger, self._folder)
        else:
            shutil.rmtree(self._folder)
        if self._temporary:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
        elif self._ledger.path is not None and not any(self._folder.parent.iterdir()):
            self._folder.parent.rmdir()

    # parts

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _hand_out(self, rows: AsyncIterator[Row]) -> None:
        """Keep the workers supplied until the last row is answered, or the run stops."""
        exhausted = False
        while not self._stopping and not (exhausted and not self._again and not self._out):
            if (exhausted and not self._again) or not self._has_room():
                await self._change()
                continue
            part = self._again.popleft() if self._again else await self._next(rows)
            exhausted |= not part
            while part and not self._stopping:
                some = self._affordable(part)
                if some:
                    self._submit(some)
                    part = part[len(some) :]
                elif self._out:
                    await self._change()
                else:
                    self.stopped_by = self.stopped_by or Verdict(outcome="stop", error="budget")
                    self.stop()
            while self._primes and self._out:
                await self._change()
            self._primes = False

    def _has_room(self) -> bool:
        workers = max(self._workers, 1)
        most = self.pacer.window + 2 * workers * self._part_rows
        return self._rows_out < most and len(self._out) < _MOST_PARTS * workers

    @property
    def _part_rows(self) -> int:
        """What one worker may send in a real second, by the limits."""
        limits, plan = self.pacer.limits.shared(self._plan.share), self._plan
        per_minute = min(
            limits.requests_per_minute,
            limits.output_tokens_per_minute / max(self.pacer.expected_output_tokens, 1),
        )
        share = per_minute / 60 * self._clock.speed / max(self._workers, 1)
        return max(1, min(math.ceil(share), MOST_ROWS, plan.concurrency or MOST_ROWS))

    async def _next(self, rows: AsyncIterator[Row]) -> list[Row]:
        part: list[Row] = []
        size = 0
        most = 1 if self._primes else self._part_rows  # one row writes the cache, and the others find it
        while len(part) < most and size < MOST_PART_BYTES:
            row = await anext(rows, None)
            if row is None:
                break
            part.append(row)
            size += len(row.body)
        return part

    def _affordable(self, part: list[Row]) -> list[Row]:
        """Return its first rows that the budget bears, whatever becomes of them and of those that are out."""
        worst = 0.0
        for count, row in enumerate(part):
            worst += self._worst_dollars(row)
            if not self.purse.affords(worst):
                return part[:count]
        return part

    def _submit(self, rows: list[Row]) -> None:
        worst = sum(map(self._worst_dollars, rows))
        self.purse.reserve(worst)
        self._rows_out += len(rows)
        task = asyncio.create_task(self._follow(rows, worst))
        self._out.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._out.discard(task)
            self._rows_out -= len(rows)
            self.purse.release(worst)
            if not task.cancelled() and (failure := task.exception()) is not None:
                self._failure = self._failure or failure
                self.stop()
            self._changed.set()

        task.add_done_callback(ended)

    async def _follow(self, rows: list[Row], worst: float) -> None:
        """See one part through."""
        before, after = self._around
        part = Part(
            number=secrets.token_hex(8),
            keys=[row.key for row in rows],
            texts=[row.body[before : len(row.body) - after].decode() for row in rows],
            input_tokens=[row.input_tokens for row in rows],
            budget=None if self._plan.budget is None else worst,
        )
        told = await self._told(part)
        if told is None:
            return
        if told.again:  # what the worker that is gone had in flight may be billed
            self._dirty = True
            self.purse.pay(worst)
        self.purse.pay(told.dollars)
        for attempt, final in told.attempts:
            self._record(attempt, final)
        if told.problem:
            self._give_up(told.problem)
        if told.stopped_by is not None:
            self.stopped_by = self.stopped_by or told.stopped_by
            self.stop()
        if told.ended in {"lost", "budget"}:
            done = {attempt.key for attempt, final in told.attempts if final}
            self._again.append([row for row in rows if row.key not in done])

    async def _told(self, part: Part) -> Told | None:
        """Return what came of a part, whatever becomes of its workers; None where the cluster is gone."""
        from distributed import KilledWorker  # noqa: PLC0415 - its place differs between versions

        for _ in range(_MOST_DEATHS):
            future = self._dask.submit(
                run_part,
                self._terms,
                part,
                key=f"claudescale-{part.number}-{secrets.token_hex(2)}",
                pure=False,
            )
            try:
                return await self._result(future)
            except KilledWorker:
                self._dirty = True
            except (OSError, asyncio.CancelledError, RuntimeError) as error:
                if isinstance(error, asyncio.CancelledError) and not future.cancelled():
                    raise
                self._give_up(f"the cluster is gone ({type(error).__name__})")
                return None
            finally:
                future.release()
        self._give_up(f"a part of {len(part.keys)} rows has met the end of its worker again and again")
        return None

    @staticmethod
    async def _result(future: Future[Told]) -> Told:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        await done.wait()
        return await loops.in_thread(future.result)


def engine(*where: Any, wire: object, pacer: object = None, known_good: object = None, **given: Any) -> Live:
    """Return a `Remote`, which has a face like a `Live`: its wires and pacers are the workers'."""
    del wire, pacer, known_good
    return cast("Live", Remote(*where, **given))
