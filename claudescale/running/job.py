"""Job: one run as seen by everything that sends rows for it.

It knows the rows and which of them this run sends, keeps every answer in the ledger and in the counts, and
owns the budget. `live` and `batches` decide how rows are sent; `runs` decides which of the two comes first.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import AsyncExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale import loops
from claudescale.api import catalog, prices
from claudescale.api.answers import Answer, Verdict, answer_of, is_free, stop_reason_of, text_of, usage_of
from claudescale.api.client import Wire
from claudescale.clock import Clock
from claudescale.errors import FileChanged, LedgerError, UnknownModel
from claudescale.ledger.records import ATTEMPTS, OPEN, Attempt
from claudescale.ledger.store import Store
from claudescale.pacing.middleware import unlimited
from claudescale.pacing.pacer import Pacer
from claudescale.planning import estimates
from claudescale.running.batches import Batches
from claudescale.running.meter import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.api.client import Api
    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Work
    from claudescale.running.batch_rules import Expected
    from claudescale.running.live import Live

_OVERHEAD_TOKENS = 1_000
"""Tokens that the API may add to a request: the instructions for structured outputs."""
_CLAIM_ROWS = 256
_OTHERS_SECONDS = 1.0  # of real time
_FIRST_ROWS, _EVERY = 32, 8
_ENOUGH_REPLIES = 20  # chosen; in `prediction_benchmark.py` pilots of 20 rows predict well
"""From this many replies on, measurements predict the remaining rows better than the plan."""


class Ends(NamedTuple):
    """API minutes until a run ends: at its limits, and at the last minute's pace if that is slower."""

    usual_minutes: float
    latest_minutes: float  # infinite if nothing was answered in the last minute


class Row(NamedTuple):
    """One request to send: key, body as JSON, uncached input tokens, and dollars in the worst case."""

    key: str
    body: bytes
    input_tokens: float
    worst_dollars: float


class Purse:
    """The budget of a run. The worst case of every request is reserved before it is sent."""

    def __init__(self, budget_dollars: float | None) -> None:
        self.calls = 0
        self.gone = 0.0  # paid, or possibly paid
        self.batches: dict[str, float] = {}  # worst case of each pending batch, by nonce
        self.changed = asyncio.Event()
        self._budget = math.inf if budget_dollars is None else budget_dollars
        self._reserved = 0.0

    @property
    def left(self) -> float:
        """Dollars that are neither spent nor reserved."""
        return self._budget - self.gone - self._reserved - sum(self.batches.values())

    @contextmanager
    def reserved(self, worst_dollars: float) -> Iterator[None]:
        """Reserve the worst case of a call while it is in flight."""
        self.calls += 1
        self._reserved += worst_dollars
        try:
            yield
        finally:
            self.calls -= 1
            self._reserved = self._reserved - worst_dollars if self.calls else 0.0
            self.changed.set()

    def affords(self, worst_dollars: float) -> bool:
        """Whether that much is left; always true without a budget, as for an unknown price."""
        return math.isinf(self._budget) or worst_dollars <= self.left

    def pay(self, dollars: float) -> None:
        """Count dollars that were paid, or may have been."""
        self.gone += dollars


class Job:
    """One run: its plan, rows, ledger, counts and money, shared by everything that sends rows.

    Attributes
    ----------
    plan : Plan
        The plan that is run.
    meter, purse : Meter, Purse
        The counts so far, and the rest of the budget.
    asked : str
        ``"stop"`` or ``"leave"`` once either was asked for, else empty.
    live, pacer : Live, Pacer or None
        The sender of live calls and its pacer, once there are any.
    following : asyncio.Future or None
        The collection of batches alongside live calls.
    failure : LedgerError, FileChanged or None
        Why attempts cannot be recorded, or a row cannot be sent unchanged. Nothing more is sent then.
    is_open : bool
        Whether `open` has set the attributes below.
    ledger, wire, api, batches : Store, Wire, Api, Batches
        The record of replies, the transport, the answering API, and the sender of batches.
    missing : pl.DataFrame
        Requests without an answer at the start, as `requests.REQUESTS`, in the frame's order. In hybrid mode
        without those that batches have answered since.
    estimate : dict or None
        Estimate for the missing requests, as a row of `Plan.options`; None until it is known.
    arrived : list of str
        Keys of requests that have received their final reply since the start, in order of arrival.
    watched : list of callable
        Called at the end, to draw the final state of the run in each widget that watches it.
    started_at : float
        API Unix seconds at which the first call could be sent; 0 until then.
    price, batch_price : Price
        Prices of a live call, and of a row in a batch.
    batches_out : int
        Batches of earlier runs in the ledger that were pending at the start.
    only_collects : bool
        Whether the model is retired, so that the run only collects pending batches.
    """

    ledger: Store
    wire: Wire
    api: Api
    batches: Batches
    missing: pl.DataFrame

    def __init__(self, plan: Plan, client: AsyncAnthropic, path: Path | None) -> None:
        self.plan = plan
        self.client = unlimited(client)  # a run has a pacer of its own
        self.path = path
        self.clock = Clock()
        self.meter = Meter(
            plan.frame.height if isinstance(plan.frame, pl.DataFrame) else 0, model=plan.compiled.model
        )
        self.purse = Purse(plan.budget)
        self.price = prices.price(plan.compiled.model, mode="live")
        self.batch_price = prices.price(plan.compiled.model, mode="batch")
        self.asked = ""
        self.is_open = self.only_collects = False
        self.live: Live | None = None
        self.pacer: Pacer | None = None
        self.following: asyncio.Future[None] | None = None
        self.failure: LedgerError | FileChanged | None = None
        self.estimate: dict[str, Any] | None = None
        self.arrived: list[str] = []
        self.watched: list[Callable[[], None]] = []
        self.batches_out = 0
        self.started_at = self._ended_at = 0.0
        self._work: Work | None = None
        self._resources = AsyncExitStack()

    async def open(self) -> None:
        """Open the ledger, identify the API, read the rows, and check that the plan is feasible.

        Raises
        ------
        PlanError, LedgerError
            Nothing was sent.
        """
        self.wire = Wire(self.client, self.plan.max_tokens)
        self._resources.push_async_callback(self.wire.close)
        self.ledger = await loops.in_thread(Store, self.path)
        self._resources.callback(self.ledger.close)
        self.api = await self.wire.api()
        self.clock = self.api.clock
        await loops.in_thread(self._read)
        self.batches = Batches(self)
        self.is_open = True
        self.started_at = self.meter.started_at = self.clock.seconds()

    def _read(self) -> None:
        plan, retry = self.plan, self.plan.compiled.retry
        if retry is not None:
            retry.check(simulated=self.api.simulated)
        work = plan.compiled.work(self.api.name)
        replied = self.ledger.replies(work.requests["key"], ["error"])
        self.missing = work.requests.join(replied, on="key", how="anti", maintain_order="left")
        self.batches_out = sum(batch.state in OPEN for batch in self.ledger.batches())
        if self.missing.height and (words := self.refusal()) is not None:
            if not self.batches_out:
                raise UnknownModel(words)
            self.only_collects = True
        tokens, all_tokens = (float(rows["estimated_tokens"].sum()) for rows in (self.missing, work.requests))
        self.estimate = plan.compiled.check(
            part=tokens / all_tokens if all_tokens else 0.0,
            requests_part=self.missing.height / max(work.requests.height, 1),
        )
        self.meter.begin(work.keys)
        self.meter.reuse(replied)
        if retry is not None:
            self.meter.reuse(retry.attempts.select("key", "error"))
        self._work = work

    @property
    def work(self) -> Work:
        """The rows; until the run has read them, with keys that match no answer."""
        return self._work or self.plan.compiled.work("not known yet")

    @property
    def simulated(self) -> bool:
        """Whether a simulator gives the replies."""
        return self.is_open and self.api.simulated

    @property
    def expected(self) -> Expected | None:
        """An estimate of when the last batch ends, as the API shows no progress; None if none is pending."""
        return self.batches.expected() if self.is_open else None

    @property
    def ends(self) -> Ends | None:
        """When the live calls end; None if there are none, or if that is not known yet."""
        if self.pacer is None or self.plan.mode == "batch":
            return None
        usual, slow = (self._live_seconds(more) / 60 for more in (1.0, self.plan.compiled.expected.more))
        return Ends(usual, max(slow, self.meter.minutes_at_pace(self._left, self.minutes)))

    def switch_at(self) -> float:
        """Return the API second at which a hybrid run must switch to live calls; infinite in other modes."""
        if self.plan.mode != "hybrid" or self.only_collects:
            return math.inf
        in_time = ((self.plan.deadline or 0.0) - estimates.CANCEL_MINUTES) * 60
        return self.started_at + in_time - self._live_seconds(self.plan.compiled.expected.more)

    @property
    def _left(self) -> int:
        """Requests that may still need a live call."""
        return min(self.meter.open_requests, self.missing.height)

    def _live_seconds(self, more: float) -> float:
        """Return how long the rest takes live, by the arithmetic of plans and measurements so far."""
        plan, meter, expected = self.plan, self.meter, self.plan.compiled.expected
        left = self._left
        estimated = self.missing["estimated_tokens"]
        tokens = float(estimated.tail(left).sum())  # approximately those not sent yet, see `spread`
        sent_tokens = float(estimated.sum()) - tokens
        input_tokens, output_tokens = expected.uncached_tokens(tokens, left), expected.output_tokens
        concurrency = plan.concurrency
        if meter.output_tokens:
            output_tokens = meter.output_tokens / (meter.requests - meter.refused)
        live = meter.live
        if live.answers >= _ENOUGH_REPLIES and sent_tokens > 0:
            input_tokens = tokens * live.input_tokens / sent_tokens
            expected = expected.after(live.answers, live.seconds / live.answers)
            if self.pacer and self.pacer.in_flight >= self.pacer.window:  # the window is the bottleneck
                concurrency = concurrency or self.pacer.window
        return estimates.live_finish(
            self.limits.shared(plan.share),
            expected,
            requests=left,
            input_tokens=input_tokens * more,
            output_tokens=min(output_tokens, float(plan.max_tokens)) * left * more,
            concurrency=concurrency,
        ).seconds

    @property
    def limits(self) -> Limits:
        """The limits in force: those of the table, or those that the API's answers report."""
        return self.pacer.limits if self.pacer else self.plan.compiled.limits

    def new_pacer(self, limits: Limits) -> Pacer:
        """Return a pacer for the live calls of this plan that starts from these limits."""
        plan = self.plan
        return Pacer(
            limits,
            clock=self.clock,
            share=plan.share,
            concurrency=plan.concurrency,
            output_tokens=min(plan.compiled.expected.output_tokens, float(plan.max_tokens)),
        )

    def hear(self) -> None:
        """Pass a request to stop or leave on to the senders, on the loop's thread."""
        if self.live is not None:
            self.live.stop()
        self.batches.woken.set()

    def replies(
        self, columns: Sequence[str] = tuple(ATTEMPTS), *, of: pl.Series | None = None
    ) -> pl.DataFrame:
        """Return the final attempt of every request that has one, from this run or an earlier one."""
        retry, replies = self.plan.compiled.retry, ATTEMPTS.to_frame().select(columns)
        if self.is_open:
            keys = self.work.requests["key"] if of is None else of
            replies = self.ledger.replies(keys, columns).select(columns)
        return replies if retry is None else pl.concat([retry.attempts.select(columns), replies])

    def refusal(self) -> str | None:
        """Return why the model can no longer be called; None if it can."""
        return catalog.refusal(self.plan.compiled.model, self.clock.now())

    async def close(self) -> None:
        """Record the end time, close the transport, and write the queued attempts."""
        # Written on this thread, as there may be no other when the process ends.
        self._ended_at = self.clock.seconds()
        try:
            await self._resources.aclose()
        except LedgerError as error:
            self.fail(error)
        self.live = None

    @property
    def minutes(self) -> float:
        """API minutes since the first call could be sent."""
        if not self.started_at:
            return 0.0
        return ((self._ended_at or self.clock.seconds()) - self.started_at) / 60

    @property
    def known_good(self) -> bool:
        """Whether a row of the plan was answered, which proves that the request works."""
        # The replies that a retry takes over may answer other requests than those it sends.
        return self.plan.compiled.retry is None and self.meter.answered > 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be sent."""
        ended = self.live is not None and self.live.stopped_by is not None
        reasons = self.batches.stopped_by, self.failure
        return bool(self.asked) or ended or any(reason is not None for reason in reasons)

    # rows to send

    async def rows(self, missing: pl.DataFrame) -> AsyncGenerator[Row, None]:
        """Yield each request that this run may send live; wait for those that other runs hold."""
        waiting = missing[spread(missing.height, random.Random(self.ledger.run).random())]  # noqa: S311
        while waiting.height and not self.is_over:
            held = []
            for block in waiting.iter_slices(_CLAIM_ROWS):
                mine = await loops.in_thread(self.claimed, block)
                rendered = self.rendered(mine)
                if self.plan.compiled.prompt.has_files:  # reading them takes time
                    while (row := await loops.in_thread(next, rendered, None)) is not None:
                        yield row
                else:
                    for row in rendered:
                        yield row
                held.append(block.join(mine, on="key", how="anti", maintain_order="left"))
            waiting = pl.concat(held)
            if waiting.height:
                await self._follow()
                waiting = await self.unanswered(waiting)
            if waiting.height:
                await asyncio.sleep(_OTHERS_SECONDS)

    def claimed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Claim rows, and return those that this run may send."""
        return rows.filter(pl.col("key").is_in(self.ledger.claim(rows["key"].to_list())))

    def rendered(self, rows: pl.DataFrame) -> Iterator[Row]:
        """Yield requests as rows for `Live`."""
        cached = self.plan.compiled.prompt.shared_tokens if self.plan.cache else 0.0
        tokens = (rows["estimated_tokens"] - cached).clip(1.0)
        worst = self.with_worst(rows, "live")["worst_dollars"]
        yield from map(Row, rows["key"], self.work.bodies(rows["row"]), tokens, worst)

    async def _follow(self) -> None:
        """Start to collect batches of earlier runs that hold rows of this one, alongside live calls."""
        if self.following is not None:
            if not self.following.done():
                return
            self.following.result()
        self.following = asyncio.ensure_future(self.batches.follow())
        await asyncio.sleep(0)

    async def unanswered(self, held: pl.DataFrame) -> pl.DataFrame:
        """Count the rows that other runs have answered meanwhile, and return the rest."""
        # Waiting for rows of stuck batches is pointless, so these are dropped.
        for nonce in list(self.batches.stuck):
            stuck = await loops.in_thread(self.ledger.held, nonce)
            held = held.filter(~pl.col("key").is_in(stuck))
        replies = await loops.in_thread(self.ledger.replies, held["key"], ["run", "error"])
        theirs = replies.filter(pl.col("run") != self.ledger.run).select("key", "error")
        self.meter.reuse(theirs)
        self.arrived += theirs["key"].to_list()
        return held.join(replies, on="key", how="anti", maintain_order="left")

    # the worst case

    def with_worst(self, requests: pl.DataFrame, mode: str, max_tokens: int | None = None) -> pl.DataFrame:
        """Return requests with `worst_dollars`: the most that each can cost; 0 if its price is unknown."""
        plan, charges = self.plan, self.plan.compiled.prompt.charges
        longest = max_tokens or plan.max_tokens
        price = self.batch_price if mode == "batch" else self.price
        price = prices.answered(price, inference_geo=prices.worst_geography(charges.inference_geo))
        most = prices.most_with_tools(price, plan.compiled.model, longest, charges)
        if most is not None:
            return requests.with_columns(worst_dollars=pl.lit(most))
        time = "1h" if charges.caches or mode == "batch" else "5m"
        prompt = f"cache_write_{time}_input_tokens" if charges.caches or plan.cache else "input_tokens"
        tokens = {prompt: pl.col("most_tokens") + _OVERHEAD_TOKENS, "output_tokens": pl.lit(float(longest))}
        return requests.with_columns(worst_dollars=prices.dollars(price, **tokens).fill_nan(0.0))

    # answers

    @cached_property
    def common(self) -> dict[str, Any]:
        """Columns with the same value in all attempts of this run."""
        return {"run": self.ledger.run, "model": self.plan.compiled.model.id, "simulated": self.api.simulated}

    def attempt(self, key: str, answer: Answer, verdict: Verdict, *, sent: float, seconds: float) -> Attempt:
        """Return the record of one live call."""
        message = verdict.reply or answer.partial  # the received part of a broken answer is billed
        usage: dict[str, Any] = usage_of(message)
        facts = answer_of(message)
        return Attempt(
            key=key,
            mode="live",
            batch_id=None,
            sent_at=sent,
            seconds=seconds,
            status=answer.status,
            error=verdict.error,
            message=verdict.message or prices.unpriced(self.price, facts["answering_model"]),
            request_id=answer.headers.get("request-id"),
            stop_reason=stop_reason_of(verdict.reply or {}),
            reply=text_of(verdict.reply or {}),
            dollars=0.0 if is_free(verdict.reply) else prices.answer_dollars(self.price, usage, facts),
            **usage,
            **facts,
            **self.common,
        )

    def record(self, attempt: Attempt, *, final: bool) -> None:
        """Keep an attempt. A ledger that cannot be written ends the run, but calls in flight are awaited."""
        self.meter.add(attempt, final=final)
        try:
            self.ledger.record(attempt, final=final)
        except LedgerError as error:
            self.fail(error)
        if final:
            self.arrived.append(attempt.key)

    async def record_many(self, attempts: pl.DataFrame) -> None:
        """Keep the results of a batch. If they cannot be written, the run ends; the API still has them."""
        await loops.in_thread(self.ledger.extend, attempts)
        self.purse.pay(float(attempts["dollars"].sum()))
        await loops.in_thread(self._count, attempts)
        self.arrived += attempts.filter("final")["key"].to_list()

    def _count(self, attempts: pl.DataFrame) -> None:
        """Count the results of a batch; one of an earlier run may also hold rows of another frame."""
        ours = attempts
        if self.batches.adopted:
            ours = attempts.join(self.work.requests, on="key", how="semi", maintain_order="left")
        self.meter.extend(attempts, ours)
        if self.plan.mode == "hybrid":  # only there the time that the rest takes live matters
            self.missing = self.missing.join(
                ours.filter("final"), on="key", how="anti", maintain_order="left"
            )

    def fail(self, error: LedgerError | FileChanged) -> None:
        """Send nothing more, for example because replies could not be kept."""
        self.failure = self.failure or error
        if self.live is not None:
            self.live.stop()


def spread(rows: int, phase: float = 0.0) -> pl.Series:
    """Return the order in which rows are sent: as given, but the first 32 and every eighth from all over."""
    # A frame may begin with rows that all fail, or have long stretches of them: others must be tried as well.
    # `phase`, from 0 to 1, selects which. Each multiple of the golden ratio splits the largest gap left.
    steps = pl.int_range(max(rows // _EVERY, _FIRST_ROWS), eager=True) * 0.6180339887498949 + phase
    places = pl.concat([pl.Series([0, max(rows - 1, 0)]), (steps % 1.0 * rows).cast(pl.Int64)])
    far = places.unique(maintain_order=True).head(rows)
    near = pl.repeat(1.0, rows, eager=True).scatter(far, 0.0)
    late = (pl.int_range(far.len(), eager=True) - _FIRST_ROWS + 1) * _EVERY + 0.5
    return (near.cum_sum() * _EVERY / (_EVERY - 1)).scatter(far, late).arg_sort()
