"""What a worker of a Dask cluster does with a part of a run's rows: the live engine, and a ledger of its own.

All parts of a run in one process share a client, a pacer that leases from the scheduler's book, and a ledger.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib
import os
import secrets
import signal
import socket
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.api.client import Wire
from claudescale.daskbook import on_loop
from claudescale.errors import ClaudescaleError, PlanError
from claudescale.leases import Borrower, LeasedLive
from claudescale.ledger.ledger import Attempt, Ledger
from claudescale.prompts.requests import NO_CHARGES, Charges
from claudescale.running import engines, gathering
from claudescale.running.guards import Purse, Watch
from claudescale.running.live import Live, Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anthropic import AsyncAnthropic

    from claudescale.api.answers import Verdict
    from claudescale.api.client import Api
    from claudescale.api.facts import Model
    from claudescale.books import Message

DRIVER = "driver"
"""A file in the run's folder, by which a worker knows that it sees the same folder."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Terms:
    """What a worker needs to know of a run: no rows, no key. Its repr says nothing, as Dask logs it.

    Attributes
    ----------
    run, book, api : str
        Names: of the run, of the limit it shares, of the API as it stands in the rows' keys.
    lease : dict
        What a book has to know to be opened.
    folder : str
        Where workers keep their ledgers; all of them and the driver see it.
    head, tail : str
        What stands before and after each row's text in a request.
    charges : claudescale.prompts.requests.Charges
        What a request may cost besides its tokens.
    budget : float or None
        Of one part.
    connect : callable, optional
        Gives the worker's client; the default makes one with the key in the worker's environment.
    """

    run: str
    book: str
    api: str
    simulated: bool
    base_url: str
    lease: dict[str, Any]
    folder: str
    facts: Model
    max_tokens: int
    cache: bool
    concurrency: int | None
    head: str
    tail: str
    charges: Charges = NO_CHARGES
    budget: float | None = None
    connect: Callable[[], AsyncAnthropic] | None = None

    def __repr__(self) -> str:
        return f"<Terms of {self.run}>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Part:
    """Rows that one worker answers. Its repr shows none of them, as Dask logs it."""

    number: str
    keys: list[str]
    texts: list[str]
    input_tokens: list[float]
    budget: float | None

    def __repr__(self) -> str:
        return f"<Part {self.number}, {len(self.keys)} rows>"


@dataclass(kw_only=True, repr=False)
class Told:
    """What came of a part: every attempt and whether it ended its row, all of them on the worker's disk.

    Attributes
    ----------
    ended : str
        ``""`` where every row was seen to; ``"stop"``, ``"lost"`` (the book took the worker for dead) or
        ``"budget"`` where rows may be left.
    dollars : float
        Spent, or maybe billed unseen.
    again : bool
        Whether a worker that is gone had this part before.
    problem : str
        Why the worker could not work.
    """

    attempts: list[tuple[Attempt, bool]] = field(default_factory=list)
    ended: str = ""
    dollars: float = 0.0
    again: bool = False
    stopped_by: Verdict | None = None
    problem: str = ""


class _Counted(Purse):
    """A purse that tells what is gone."""

    gone_dollars = 0.0

    def pay(self, dollars: float) -> None:
        super().pay(dollars)
        self.gone_dollars += dollars


_sessions: dict[str, asyncio.Task[Session]] = {}


def dask_setup(_worker: Any) -> None:
    """Get a worker's process ready; Dask calls this before the worker begins.

    A terminal's or a kernel's interrupt goes to every process: the driver hears it, and lets workers finish.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It takes seconds: not when the first rows are there.
    threading.Thread(target=importlib.import_module, args=("anthropic",), daemon=True).start()
    atexit.register(gc.freeze)  # else a last sweep takes seconds, and Dask kills a worker after four


def run_part(terms: Terms, part: Part) -> Told:
    """Return what came of a part; a Dask task, which never raises: Dask would log what it was given.

    Spends: tokens.
    """
    from distributed import get_worker, secede  # noqa: PLC0415 - optional

    worker = get_worker()
    secede()  # waiting for answers takes no slot
    work = _answered(worker, terms, part)
    return asyncio.run_coroutine_threadsafe(work, loops.background().loop).result()


async def _answered(worker: Any, terms: Terms, part: Part) -> Told:
    told = Told()
    opening = _sessions.get(terms.run)
    if opening is None:
        opening = _sessions[terms.run] = asyncio.create_task(Session.opened(worker, terms))
    try:
        await (await asyncio.shield(opening)).answer(part, told)
    except Exception as error:  # noqa: BLE001 - told to the driver, which ends the run with it
        told.problem = _words(error)
        if opening.done() and opening.exception() is not None:
            _sessions.pop(terms.run, None)
    return told


def _words(error: Exception) -> str:
    """Return what an error says where that is ours or the system's; others may quote a row."""
    said = f": {error}" if isinstance(error, ClaudescaleError | OSError) else ""
    return f"worker {os.getpid()} on {socket.gethostname()}: {type(error).__name__}{said}"


class Session:
    """One run in one worker process."""

    def __init__(self, worker: Any, terms: Terms, wire: Wire, api: Api, ledger: Ledger) -> None:
        self._worker = worker
        self._terms = terms
        self._folder = Path(terms.folder)
        self._wire, self._api, self._ledger = wire, api, ledger
        self._lives: set[Live] = set()
        self._watch = Watch()
        self._ended = ""
        self._idle = asyncio.Event()
        self._pacer = Borrower(
            self._exchange,
            terms.lease,
            clock=api.clock,
            run=terms.run,
            concurrency=terms.concurrency,
            ended=self._end,
        )
        self._pacer.open()

    @classmethod
    async def opened(cls, worker: Any, terms: Terms) -> Session:
        """Return a session that can send; PlanError where this process cannot."""
        folder = Path(terms.folder)
        if not (folder / DRIVER).exists():
            msg = f"does not see the folder {folder}. Name one that every worker and this process see: "
            msg += "on=claudescale.cluster.Dask(client=..., folder=...)"
            raise PlanError(msg)
        wire = Wire(terms.connect() if terms.connect else _client(terms), terms.max_tokens)
        try:
            api = await wire.api()
            if api.name != terms.api:
                msg = f"reaches {api.name!r}, and the run goes to {terms.api!r}"
                raise PlanError(msg)  # noqa: TRY301 - the wire is to be closed then
            path = folder / f"{secrets.token_hex(4)}.ledger"
            ledger = await loops.in_thread(lambda: Ledger(path, run=terms.run))
            await loops.in_thread(ledger.claim, [])  # from now on it gives signs of life
        except BaseException:
            await wire.close()
            raise
        return cls(worker, terms, wire, api, ledger)

    async def _exchange(self, message: Message) -> Message:
        ask = self._worker.scheduler.claudescale_exchange(book=self._terms.book, message=message)
        reply: Message = await on_loop(self._worker.loop.asyncio_loop, ask)
        return reply

    async def answer(self, part: Part, told: Told) -> None:
        """Answer the rows of a part that no worker has answered; what came is on the disk at the end."""
        names = await loops.in_thread(self._mark, part.number)
        if names:
            told.again = True
            await loops.in_thread(self._ledger.sync)  # it may be among them
            told.attempts += await loops.in_thread(gathering.answers, self._folder, names, part.keys)
        done = {attempt.key for attempt, _ in told.attempts}

        def record(attempt: Attempt, final: bool) -> None:  # noqa: FBT001 - as Live calls it
            told.attempts.append((attempt, final))
            self._ledger.record(attempt, final=final)

        live = engines.sender(
            replace(self._terms, budget=part.budget),
            api=self._api,
            wire=self._wire,
            ledger=self._ledger,
            record=record,
            dollars_elsewhere=lambda: 0.0,
            charges=self._terms.charges,
            warm=False,
            pacer=self._pacer,
            make=LeasedLive,
        )
        live.watch = self._watch
        live.purse = purse = _Counted(part.budget)
        self._lives.add(live)
        try:
            if self._ended:
                live.stop()
            await live.answer(self._rows(part, done))
            await loops.in_thread(self._ledger.sync)
        finally:
            self._lives.discard(live)
            told.dollars, told.stopped_by, told.ended = purse.gone_dollars, live.stopped_by, self._ended
            if live.stopped_by is not None and live.stopped_by.error == "budget":
                told.ended, told.stopped_by = "budget", None
            if not self._lives:
                self._idle.set()

    async def _rows(self, part: Part, done: set[str]) -> AsyncIterator[Row]:
        for key, text, tokens in zip(part.keys, part.texts, part.input_tokens, strict=True):
            if key not in done:
                yield Row(key, f"{self._terms.head}{text}{self._terms.tail}".encode(), tokens)

    def _mark(self, number: str) -> list[str]:
        """Return which ledgers may have answers of a part already, and add this one."""
        assert self._ledger.path is not None
        with (self._folder / f"part-{number}").open("a+") as file:
            file.seek(0)
            names = file.read().split()
            file.write(f"{self._ledger.path.name}\n")
        return list(dict.fromkeys(names))

    def _end(self, why: str) -> None:
        """Send nothing more; what is in flight comes in, then all is closed."""
        if self._ended:
            return
        self._ended = why
        del _sessions[self._terms.run]
        for live in self._lives:
            live.stop()
        self._closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        while self._lives:
            self._idle.clear()
            await self._idle.wait()
        await self._wire.close()
        await loops.in_thread(self._ledger.close)
        await self._pacer.close()  # last: the driver may clear the folder when it has heard it


def _client(terms: Terms) -> AsyncAnthropic:
    """Return a client with the key of this process's environment; a simulator needs none."""
    import anthropic  # noqa: PLC0415 - slow to import

    key = "simulated" if terms.simulated else None
    client = anthropic.AsyncAnthropic(api_key=key, base_url=terms.base_url, max_retries=0)
    if not (client.api_key or client.auth_token or client.credentials):
        msg = "has no key: set ANTHROPIC_API_KEY in the workers' environment"
        raise PlanError(msg)
    return client
