"""A run on a Dask cluster: rows go out in small parts, each sent with a fixed share of the limits.

``await plan.run(client, on=dask)`` uses the same plan and ledger and gives the same result as without
``on``: workers return the answers with their parts, and the driver writes them to its ledger, the only one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import multiprocessing
import pickle
import secrets
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import Client, Event, KilledWorker

from claudescale import loops
from claudescale.api.answers import Verdict
from claudescale.api.client import has_own_transport
from claudescale.errors import ClaudescaleError, PlanError
from claudescale.running.job import Job, Purse
from claudescale.running.live import Live

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.ledger.records import Attempt
    from claudescale.planning.plans import Plan
    from claudescale.running.job import Row

PART_SECONDS = 10.0
"""API time that a part should take at its share of the limits: the work lost when a worker dies."""
LEAST_ROWS, MOST_ROWS, MOST_BYTES = 20, 500, 1 << 23
"""The size of a part. With fewer rows a worker could not tell a wrong request from wrong rows."""
MOST_DEATHS = 5
"""How many workers may die with the same rows, which may be the cause."""
_DIED = Verdict(
    outcome="stop", error="worker_died", message=f"{MOST_DEATHS} workers have died with the same rows"
)
_CLIENT = "api_key", "auth_token", "credentials", "base_url", "timeout", "middleware"


class Part(NamedTuple):
    """The task of a worker. Dask may log its repr, which contains neither rows nor the key."""

    run: str
    name: str
    client: dict[str, Any]
    plan: Plan
    limits: Limits
    dollars: float
    warm: bool
    rows: list[Row]

    def __repr__(self) -> str:
        return f"<Part {self.name}, {len(self.rows)} rows>"

    def lost(self) -> Outcome:
        """Return the outcome of a part whose worker died: it may have cost its worst case."""
        return Outcome(dollars=sum(row.worst_dollars for row in self.rows), trouble=_DIED)


class Outcome(NamedTuple):
    """The result of a part."""

    attempts: list[tuple[Attempt, bool]] = []  # noqa: RUF012 - never changed; the bool: is it final
    dollars: float = 0.0  # paid, or possibly paid
    limits: Limits | None = None
    owed_seconds: float = 0.0  # API time until its share of the buckets is full again
    trouble: Verdict | None = None  # why the part is not finished


# in a worker


def run_part(part: Part) -> Outcome:
    """Answer the rows of a part; never raise, because Dask logs errors and they may quote a row."""
    try:
        begun, stop = Event(part.name), Event(part.run)
        if begun.is_set():  # Dask's own retry: the driver decides whether to pay again
            return part.lost()
        begun.set()
        return asyncio.run(_answer(part, stop))
    except Exception as error:  # noqa: BLE001 - the driver stops its run with it
        words = str(error) if isinstance(error, ClaudescaleError | OSError) else ""
        return _trouble(f"a worker cannot continue: {type(error).__name__} {words}")


class PartJob(Job):
    """Collects attempts for the driver, which writes them to its ledger."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.plan, _client(part.client), None)
        self.purse = Purse(part.dollars)
        self.attempts: list[tuple[Attempt, bool]] = []

    def record(self, attempt: Attempt, *, final: bool) -> None:
        """Keep an attempt."""
        self.attempts.append((attempt, final))


async def _answer(part: Part, stop: Event) -> Outcome:
    """Send the rows like any run, with this worker's share of the limits."""
    plan, job = part.plan, PartJob(part)
    try:
        await job.open()
        pacer = job.new_pacer(part.limits)
        live = Live(job, pacer, warm=part.warm)
        heeding = asyncio.ensure_future(_heed(stop, live))
        await live.answer(_each(part.rows))
        heeding.cancel()
    finally:
        await job.close()
    attempts = [attempt for attempt, _ in job.attempts]
    input_tokens = sum(attempt.uncached_tokens for attempt in attempts)
    output_tokens = sum(attempt.output_tokens for attempt in attempts)
    used_seconds = _seconds(pacer.limits, len(attempts), input_tokens, output_tokens) / plan.share
    owed_seconds = max(used_seconds - job.minutes * 60, 0.0)
    return Outcome(job.attempts, job.purse.gone, pacer.limits, owed_seconds, live.stopped_by)


async def _heed(stop: Event, live: Live) -> None:
    """Stop when the driver sets the event."""
    while not await loops.in_thread(stop.is_set):  # noqa: ASYNC110 - another process sets it
        await asyncio.sleep(loops.SLICE_SECONDS)
    live.stop()


async def _each(rows: list[Row]) -> AsyncIterator[Row]:
    for row in rows:
        yield row


def _client(settings: dict[str, Any]) -> AsyncAnthropic:
    import anthropic  # noqa: PLC0415 - slow to import

    client = anthropic.AsyncAnthropic(**settings)
    client.api_key, client.auth_token = settings["api_key"], settings["auth_token"]  # not this machine's
    return client


def _seconds(limits: Limits, *used: float) -> float:
    """Return the seconds that `used` requests, input tokens and output tokens take at the limits."""
    return 60 * max(amount / most for amount, most in zip(used, limits.per_minute, strict=True))


def _trouble(words: str) -> Outcome:
    return Outcome(trouble=Verdict(outcome="stop", error="cluster_error", message=words))


def _settle_in() -> None:
    """Ignore Ctrl-C, which a terminal sends to every process: the driver handles it."""
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# at the driver


def engine(dask: Any, client: AsyncAnthropic, plan: Plan) -> Callable[[Job], Cluster]:
    """Return a function that makes the `Cluster` of a run; raise PlanError if the plan cannot run there."""
    if not isinstance(dask, Client) or dask.asynchronous or not dask.nthreads():
        msg = "on= takes the Dask client of a cluster with workers, such as distributed.Client(n_workers=2),"
        raise PlanError(msg + f" and not an asynchronous one; this is a {type(dask).__name__}.")
    if plan.mode != "live":
        msg = f"on= answers rows live, and the plan has mode={plan.mode!r}: a batch needs no cluster."
        raise PlanError(msg)
    settings = {name: getattr(client, name) for name in _CLIENT}
    settings |= {"default_headers": client._custom_headers, "default_query": client._custom_query}  # noqa: SLF001
    if has_own_transport(client) or type(client).__name__ != "AsyncAnthropic" or not _can_be_sent(settings):
        msg = (
            "on= takes a plain AsyncAnthropic, which each worker makes anew: without an http_client, and with"
        )
        raise PlanError(msg + " credentials and middleware that can be pickled.")
    dask.run(_settle_in)
    return partial(Cluster, dask, settings)


def _can_be_sent(settings: dict[str, Any]) -> bool:
    try:
        return bool(pickle.dumps(settings))
    except (TypeError, AttributeError, pickle.PicklingError):
        return False


class Cluster:
    """Has rows answered by the workers of a Dask cluster; it has the interface of `Live`.

    Each worker present at the start has a lane, which sends one part after another with a fixed share of the
    limits, the concurrency and the budget.
    """

    def __init__(self, dask: Client, client: dict[str, Any], job: Job) -> None:
        plan, requests, expected = job.plan, job.work.requests, job.plan.compiled.expected
        self.stopped_by: Verdict | None = None
        self._dask, self._client, self._job = dask, client, job
        self._lanes = lanes = min(len(dask.nthreads()), plan.concurrency or MOST_ROWS)
        self._plan = replace(
            plan, frame=job.work.frame.clear(), share=plan.share / lanes, deadline=None, budget=None,
            concurrency=plan.concurrency and plan.concurrency // lanes,
            _retry=None,
        )  # fmt: skip
        tokens = float(requests["estimated_tokens"].sum()) / requests.height
        row_seconds = _seconds(plan.compiled.limits, 1, tokens, expected.output_tokens)
        rows = min(int(PART_SECONDS * self._plan.share / row_seconds), MOST_ROWS)
        self._part_rows = max(min(rows, math.ceil(requests.height / lanes)), LEAST_ROWS)
        # What a run reads of a pacer; the rows of pending parts count as calls in flight.
        self.pacer = SimpleNamespace(limits=plan.compiled.limits, in_flight=0, window=lanes * self._part_rows)
        self._name = f"claudescale-{secrets.token_hex(8)}"
        self._stopping, self._pulling = asyncio.Event(), asyncio.Lock()

    def stop(self) -> None:
        """Send nothing more; calls in flight still come in, because they are paid for."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._telling = asyncio.ensure_future(loops.in_thread(Event(self._name, self._dask).set))

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row is answered or the run is stopped (`stopped_by` says why).

        Spends: tokens.
        """
        lanes = [asyncio.ensure_future(self._lane(rows)) for _ in range(self._lanes)]
        try:
            await asyncio.gather(*lanes)
        finally:
            self.stop()
            await asyncio.gather(self._telling, *lanes, return_exceptions=True)

    async def _lane(self, rows: AsyncIterator[Row]) -> None:
        """Send one part after another, with this lane's share of limits, concurrency and budget."""
        dollars = math.inf if self._job.plan.budget is None else self._job.plan.budget / self._lanes
        warm, deaths = self._plan.cache, 0
        part = await self._next(rows)
        while part and not self._stopping.is_set():
            outcome = await self._sent(part, dollars, warm=warm)
            dollars -= outcome.dollars
            deaths = deaths + 1 if outcome.trouble == _DIED else 0
            if outcome.trouble is not None and deaths in {0, MOST_DEATHS}:
                self._end(outcome.trouble)
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._job.clock.real(outcome.owed_seconds))
            if not deaths:
                warm, part = False, await self._next(rows)

    async def _next(self, rows: AsyncIterator[Row]) -> list[Row]:
        part: list[Row] = []
        size = 0
        async with self._pulling:
            while len(part) < self._part_rows and size < MOST_BYTES and (row := await anext(rows, None)):
                part.append(row)
                size += len(row.body)
        return part

    async def _sent(self, rows: list[Row], dollars: float, *, warm: bool) -> Outcome:
        """Have a part answered, and record its attempts."""
        name, limits = f"{self._name}-{secrets.token_hex(4)}", self.pacer.limits
        part = Part(self._name, name, self._client, self._plan, limits, dollars, warm, rows)
        self.pacer.in_flight += len(rows)
        outcome = await self._outcome(part)
        self.pacer.in_flight -= len(rows)
        for attempt, final in outcome.attempts:
            self._job.record(attempt, final=final)
        self.pacer.limits = outcome.limits or limits
        return outcome

    async def _outcome(self, part: Part) -> Outcome:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future = self._dask.submit(run_part, part, key=part.name, pure=False)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
            return await loops.in_thread(future.result)
        except KilledWorker:
            return part.lost()
        except (OSError, RuntimeError, concurrent.futures.CancelledError) as error:
            return _trouble(f"the cluster is gone ({type(error).__name__})")
        finally:
            future.release()

    def _end(self, why: Verdict) -> None:
        """Note why rows are unanswered; a lane that has spent its budget does not stop the others."""
        self.stopped_by = self.stopped_by or why
        if why.error != "budget":
            self.stop()
