"""A run on a Dask cluster: rows go out in small parts, each a plain run with a fixed share of the limits.

``await plan.run(client, on=dask)`` is the same plan, ledger and result as without ``on``: what the workers
were answered comes back with their parts and stands in the one ledger, which is the driver's.
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
from http.client import OK
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from distributed import Client, Event, KilledWorker

from claudescale import loops
from claudescale.api.answers import Verdict
from claudescale.api.client import has_own_transport
from claudescale.api.prices import UNCACHED
from claudescale.errors import ClaudescaleError, ImpossibleBudget, PlanError, RunStopped
from claudescale.ledger.records import ATTEMPTS, Attempt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.running.job import Job, Row

PART_SECONDS = 10.0
"""API time that a part should take at its share of the limits: so much work is lost with a worker."""
LEAST_ROWS, MOST_ROWS, MOST_BYTES = 20, 500, 1 << 23
"""Of a part. With fewer rows a worker could not tell a wrong request from wrong rows."""
MOST_DEATHS = 5
"""Of workers with the same rows, which may be what kills them."""
_BROKE = Verdict(outcome="stop", error="budget")
_LOST = Verdict(outcome="stop", error="worker_died")
_TEXT = "claudescale_text"
_CLIENT = "api_key", "auth_token", "credentials", "base_url", "timeout", "middleware"


class Part(NamedTuple):
    """What a worker is given. Dask may log its repr, which shows neither rows nor key."""

    run: str
    name: str
    client: bytes
    plan: Plan
    changes: dict[str, Any]
    keys: pl.Series

    def __repr__(self) -> str:
        return f"<Part {self.name}, {self.keys.len()} rows>"


class Outcome(NamedTuple):
    """What came of a part."""

    attempts: pl.DataFrame = ATTEMPTS.to_frame().with_columns(final=pl.lit(value=False))
    limits: Limits | None = None
    owed_seconds: float = 0.0  # of API time, until the share that the part used is full again
    trouble: Verdict | None = None  # why it is not finished


# in a worker


def run_part(part: Part) -> Outcome:
    """Answer the rows of a part. It raises nothing, as Dask logs errors and they may quote a row."""
    try:
        begun, stop = Event(part.name), Event(part.run)
        if begun.is_set():  # Dask's own second try: what it may cost is for the driver to decide
            return Outcome(trouble=_LOST)
        begun.set()
        run = part.plan.replace(**part.changes).start(_client(part.client), ledger=None, progress=False)
        try:
            while run.state in {"starting", "running"} and not stop.wait(timeout=loops.SLICE_SECONDS):
                pass
        finally:
            run.stop()
        return _outcome(run, part)
    except ImpossibleBudget:
        return Outcome(trouble=_BROKE)
    except Exception as error:  # noqa: BLE001 - the driver ends its run with it
        words = str(error) if isinstance(error, ClaudescaleError | OSError) else ""
        return Outcome(trouble=_trouble(f"a worker cannot continue: {type(error).__name__} {words}"))


def _outcome(run: Any, part: Part) -> Outcome:
    try:
        loops.wait(run)
        trouble = _BROKE if run.stopped_by == "budget" else None
    except RunStopped:
        trouble = Verdict(outcome="stop", error=run.stopped_by, message=run.message)
    final = run.job.replies().select("key", "sent_at", final=pl.lit(value=True))
    attempts = run.attempts.join(final, on=["key", "sent_at"], how="left", maintain_order="left")
    attempts = attempts.with_columns(
        pl.col("key").replace_strict(run.job.work.keys, part.keys),  # in a retry the driver's keys are others
        pl.col("final").fill_null(value=False),
    )
    tokens = attempts.select(UNCACHED.sum(), pl.col("output_tokens").sum()).row(0)
    used_seconds = _seconds(run.limits, attempts.height, *tokens) / part.plan.share
    owed_seconds = max(used_seconds - run.minutes * 60, 0.0)
    return Outcome(attempts, run.limits, owed_seconds, trouble)


def _client(settings: bytes) -> AsyncAnthropic:
    import anthropic  # noqa: PLC0415 - slow to import

    given = pickle.loads(settings)  # noqa: S301 - the driver's
    client = anthropic.AsyncAnthropic(**given)
    client.api_key, client.auth_token = given["api_key"], given["auth_token"]  # and none of this machine's
    return client


def _seconds(limits: Limits, *used: float) -> float:
    """Return how long so many requests, input tokens and output tokens take by the limits."""
    return 60 * max(amount / most for amount, most in zip(used, limits.per_minute, strict=True))


def _trouble(words: str) -> Verdict:
    return Verdict(outcome="stop", error="cluster_error", message=words)


def _settle_in() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the driver."""
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# at the driver


def engine(dask: Any, client: AsyncAnthropic, plan: Plan) -> Callable[[Job], Cluster]:
    """Return what makes the `Cluster` of a run; PlanError where the plan cannot run there."""
    if not isinstance(dask, Client) or dask.asynchronous or not dask.nthreads():
        msg = "on= takes the Dask client of a cluster with workers, such as distributed.Client(n_workers=2),"
        raise PlanError(msg + f" and not an asynchronous one; this is a {type(dask).__name__}.")
    if plan.mode != "live":
        msg = f"on= answers rows live, and the plan has mode={plan.mode!r}: a batch needs no cluster."
        raise PlanError(msg)
    settings = {name: getattr(client, name) for name in _CLIENT}
    settings |= {"default_headers": client._custom_headers, "default_query": client._custom_query}  # noqa: SLF001
    sent = b""
    if not has_own_transport(client) and type(client).__name__ == "AsyncAnthropic":
        with suppress(TypeError, AttributeError, pickle.PicklingError):
            sent = pickle.dumps(settings)
    if not sent:
        msg = (
            "on= takes a plain AsyncAnthropic, which each worker makes anew: without an http_client, and with"
        )
        raise PlanError(msg + " credentials and middleware that can be pickled.")
    dask.run(_settle_in)
    return partial(Cluster, dask, sent)


class Cluster:
    """Has rows answered by the workers of a Dask cluster; its face is that of a `Live`.

    A lane for each worker that is there at the start sends one part after another, with a fixed share of the
    limits, of the concurrency and of the budget.
    """

    def __init__(self, dask: Client, client: bytes, job: Job) -> None:
        plan, work = job.plan, job.work
        self.stopped_by: Verdict | None = None
        self._dask, self._client, self._job, self._requests = dask, client, job, work.requests
        self._lanes = lanes = min(len(dask.nthreads()), plan.concurrency or MOST_ROWS)
        self._frame, prompt = work.frame, plan.prompt
        if plan.compiled.prompt.columns is None:  # by an expression, which may look at other rows
            asked = plan.compiled.prompt
            columns = asked.system.columns or () if asked.system is not None else ()
            self._frame = work.frame.select(asked.text.content.alias(_TEXT), *columns)
            prompt = pl.col(_TEXT)
        self._plan = replace(
            plan, frame=self._frame.clear(), prompt=prompt, share=plan.share / lanes,
            concurrency=plan.concurrency and plan.concurrency // lanes, deadline=None, budget=None,
            _kept=None,
        )  # fmt: skip
        self._lane_dollars = math.inf if plan.budget is None else plan.budget / lanes
        tokens = float(work.requests["estimated_tokens"].mean() or 0)  # type: ignore[arg-type]
        row_seconds = _seconds(plan.compiled.limits, 1, tokens, plan.compiled.expected.output_tokens)
        rows = min(int(PART_SECONDS * self._plan.share / row_seconds), MOST_ROWS)
        self._part_rows = max(min(rows, math.ceil(work.requests.height / lanes)), LEAST_ROWS)
        # What a run asks of a pacer; rows that are out count as calls in flight.
        self.pacer = SimpleNamespace(limits=plan.compiled.limits, in_flight=0, window=lanes * self._part_rows)
        self._name = f"claudescale-{secrets.token_hex(8)}"
        self._stopping, self._primed, self._pulling = asyncio.Event(), asyncio.Event(), asyncio.Lock()

    def stop(self) -> None:
        """Send nothing more; what is in flight comes in, as it is paid for."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._telling = asyncio.ensure_future(loops.in_thread(Event(self._name, self._dask).set))

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row has its answer, or the run was stopped (`stopped_by` says why).

        Spends: tokens.
        """
        self._rows = rows
        lanes = [asyncio.ensure_future(self._lane(number)) for number in range(self._lanes)]
        try:
            await asyncio.gather(*lanes)
        finally:
            self.stop()
            await asyncio.gather(self._telling, *lanes, return_exceptions=True)

    async def _lane(self, number: int) -> None:
        """Send part after part, with this lane's share of everything."""
        dollars, deaths, most = self._lane_dollars, 0, self._part_rows
        rows: list[Row] = []
        if number and self._plan.cache:  # one row writes the cache, and the others read it
            await self._primed.wait()
        while most and dollars > 0 and not self._stopping.is_set() and (rows := rows or await self._next()):
            part = rows[:most]
            outcome = await self._sent(part, dollars)
            trouble, answered = outcome.trouble, set(outcome.attempts.filter("final")["key"])
            rows = [row for row in part if trouble and row.key not in answered] + rows[most:]
            dollars -= self._billed(part, outcome)
            deaths = deaths + 1 if trouble == _LOST else 0
            if trouble == _BROKE and not outcome.attempts.height:
                most = len(part) // 2  # so many may be within what is left
            elif deaths == MOST_DEATHS:
                self._end(_trouble(f"{deaths} workers have died with the same {len(part)} rows"))
            elif trouble not in (None, _BROKE, _LOST):
                self._end(trouble)
            self._primed.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._job.clock.real(outcome.owed_seconds))
        if not most or dollars <= 0:
            self.stopped_by = self.stopped_by or _BROKE
        self._primed.set()

    async def _next(self) -> list[Row]:
        part: list[Row] = []
        size, most = 0, self._part_rows if self._primed.is_set() or not self._plan.cache else 1
        async with self._pulling:
            while len(part) < most and size < MOST_BYTES and (row := await anext(self._rows, None)):
                part.append(row)
                size += len(row.body)
        return part

    def _billed(self, part: list[Row], outcome: Outcome) -> float:
        """Return what a part may have cost at most: an answer that was lost may be billed."""
        attempts, worst = outcome.attempts, [row.worst_dollars for row in part]
        lost = attempts.filter(~pl.col("final"), pl.col("status").is_null() | (pl.col("status") == OK)).height
        paid = float(attempts["dollars"].sum()) + lost * max(worst)
        return sum(worst) if outcome.trouble == _LOST else paid

    async def _sent(self, rows: list[Row], dollars: float) -> Outcome:
        """Have a part answered, record what comes back, and end the run where the worker says so."""
        requests = self._requests.filter(pl.col("key").is_in([row.key for row in rows]))
        changes = {"frame": self._frame[requests["row"]], "tier": self.pacer.limits}
        if not math.isinf(dollars):
            changes["budget"] = dollars
        name = f"{self._name}-{secrets.token_hex(4)}"
        part = Part(self._name, name, self._client, self._plan, changes, requests["key"])
        self.pacer.in_flight += len(rows)
        outcome = await self._outcome(part)
        self.pacer.in_flight -= len(rows)
        for row in outcome.attempts.iter_rows(named=True):
            final = row.pop("final")
            self._job.record(Attempt(**{**row, "sent_at": row["sent_at"].timestamp()}), final=final)
        self.pacer.limits = outcome.limits or self.pacer.limits
        return outcome

    async def _outcome(self, part: Part) -> Outcome:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future = self._dask.submit(run_part, part, key=part.name, pure=False)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
            return await loops.in_thread(future.result)
        except KilledWorker:
            return Outcome(trouble=_LOST)
        except (OSError, RuntimeError, concurrent.futures.CancelledError) as error:
            return Outcome(trouble=_trouble(f"the cluster is gone ({type(error).__name__})"))
        finally:
            future.release()

    def _end(self, why: Verdict | None) -> None:
        self.stopped_by = self.stopped_by or why
        self.stop()
