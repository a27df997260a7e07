"""The pacer of one process where many share a limit: it borrows the right to call from a book, in blocks.

Its face is `Pacer`'s, so `Live` is the same. It tells what its calls ask for and what became of those that
ended; the arithmetic is the book's.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.api.limits import read_headers
from claudescale.books import Message, limits_of, permit_in, permit_out, readings_out, tick_seconds
from claudescale.pacing.pacer import Pacer, Permit
from claudescale.running.live import Live

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from claudescale.api.limits import Readings
    from claudescale.clock import Clock

KEEPING_SECONDS = 0.5
"""After so long a borrower with nothing to say gives a sign of life."""
LEASE_SECONDS = 2.0
"""Real seconds after which a right that was lent and not used is void: its borrower stood still."""
PATIENCE_SECONDS = 60.0
"""Real seconds for which a borrower asks a book that does not answer."""
_MOST_WANTS = 500
_AHEAD = 16
_NOTHING_READ = read_headers({})


@dataclass(slots=True)
class Leased(Permit):
    """A permit, and the name it was lent to."""

    borrower: str

    @classmethod
    def of(cls, told: Sequence[Any], borrower: str) -> Leased:
        """Return the permit that a message tells."""
        permit = permit_in(told)
        return cls(permit.sent, permit.nth, permit.estimate, permit.taken, borrower)


class Borrower(Pacer):
    """A pacer whose limits are leased from a book; its face is `Pacer`'s.

    Parameters
    ----------
    exchange : callable
        Carries a message to the book and gives its answer; a ConnectionError says that it could not.
    terms : dict
        As for `Book`.
    clock : Clock
        API time.
    run : str
        Of the driver that it works for; empty where it is its own.
    concurrency : int, optional
        Most calls in flight of the whole run.
    ended : callable, optional
        Told ``"stop"`` when the book says that the run is over, ``"lost"`` when it took this one for dead.
        Without it a lost borrower goes on under a new name.
    """

    def __init__(
        self,
        exchange: Callable[[Message], Awaitable[Message]],
        terms: Mapping[str, Any],
        *,
        clock: Clock,
        run: str = "",
        concurrency: int | None = None,
        ended: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(limits_of(terms["limits"]), clock=clock, output_tokens=terms["output_tokens"])
        self._ask = exchange
        self._terms = terms
        self._run = run
        self._concurrency = concurrency or 0
        self._ended_because = ended
        self._tick_seconds = tick_seconds(clock.speed)
        self._waiting: dict[asyncio.Future[Permit], float] = {}
        self._reports: list[list[Any]] = []
        self._news = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._ahead = _AHEAD
        self._told_output: float = terms["output_tokens"]
        self._rename()

    def _rename(self) -> None:
        self._name, self._number = secrets.token_hex(8), 0
        self._reports = []

    @property
    def window(self) -> int:
        """Calls that may be in flight or wait for the next lease."""
        return self.in_flight + self._ahead

    @property
    def expected_output_tokens(self) -> float:
        """Output tokens of a call, as the book learned them."""
        return self._told_output

    def open(self) -> None:
        """Begin to give signs of life: at the first call at the latest.

        Spends: nothing.
        """
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
            self._ticker.add_done_callback(self._ticked)

    async def close(self) -> None:
        """Hand back everything and say goodbye.

        Spends: nothing.
        """
        if self._ticker is not None:
            await loops.cancel(self._ticker)
            self._ticker = None
            try:
                await self._ask(self._message(bye=True))
            except ConnectionError:
                return  # the book forgets who is silent

    async def acquire(self, input_tokens: float) -> Permit:
        """Wait until the book lends the right to one call.

        Spends: nothing.

        Raises
        ------
        ConnectionError
            The book has not answered for a minute.
        """
        self.open()
        waiter: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = input_tokens
        self._news.set()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.fail(waiter.result(), _NOTHING_READ)
            raise
        finally:
            self._waiting.pop(waiter, None)

    def settle(
        self,
        permit: Permit,
        *,
        input_tokens: float,
        output_tokens: float,
        readings: Readings,
        typical: bool = True,
    ) -> None:
        """Report what the answer really used."""
        used = {"input_tokens": input_tokens, "output_tokens": output_tokens, "typical": typical}
        self._report(permit, "settle", readings, used)

    def refuse(self, permit: Permit, readings: Readings, *, ramp: bool = False) -> None:
        """Report a 429: it holds everybody."""
        self._report(permit, "refuse", readings, {"ramp": ramp})

    def overload(self, permit: Permit, readings: Readings) -> None:
        """Report a 5xx or a lost connection: fewer go at once, everywhere."""
        self._report(permit, "overload", readings, {})

    def fail(self, permit: Permit, readings: Readings) -> None:
        """Hand a permit back; nothing was used."""
        self._report(permit, "fail", readings, {})

    def _report(self, permit: Permit, how: str, readings: Readings, more: dict[str, Any]) -> None:
        self.in_flight -= 1
        if isinstance(permit, Leased) and permit.borrower == self._name:  # else the book has written it off
            self._reports.append([permit_out(permit), how, readings_out(readings), more])
            self._news.set()

    async def _tick(self) -> None:
        """Talk to the book: at once when there is news, but not more often than a tick."""
        loop = asyncio.get_running_loop()
        silent_since: float | None = None
        message: Message | None = None
        while True:
            message = message or await self._next_message()
            asked_at = loop.time()
            try:
                reply = await self._ask(message)
            except ConnectionError as error:
                silent_since = silent_since or asked_at
                if asked_at - silent_since > PATIENCE_SECONDS:
                    self._refuse_all(error)
                    message = None
            else:
                silent_since = message = None
                self._take_reply(reply, void=loop.time() - asked_at > LEASE_SECONDS)
            await asyncio.sleep(self._tick_seconds)

    async def _next_message(self) -> Message:
        if not self._waiting:
            try:
                async with asyncio.timeout(KEEPING_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass  # a sign of life
        self._news.clear()
        return self._message()

    def _message(self, *, bye: bool = False) -> Message:
        self._number += 1
        ended, self._reports = self._reports, []
        self._asked = [] if bye else list(self._waiting)[:_MOST_WANTS]
        return {
            "terms": self._terms,
            "borrower": self._name,
            "run": self._run,
            "number": self._number,
            "most": self._concurrency,
            "ended": ended,
            "wants": [self._waiting[waiter] for waiter in self._asked],
            "bye": bye,
        }

    def _take_reply(self, reply: Message, *, void: bool) -> None:
        self.limits = limits_of(reply["limits"])
        self._told_output = reply["output_tokens"]
        permits = [Leased.of(permit, self._name) for permit in reply["permits"]]
        self._ahead = max(_AHEAD, 2 * len(permits), self._ahead // 2)
        for waiter, permit in zip(self._asked, permits, strict=False):
            self.in_flight += 1
            if void or waiter.done():
                self.fail(permit, _NOTHING_READ)
            else:
                waiter.set_result(permit)
        if reply["lost"]:
            self._rename()
        if (reply["lost"] or reply["stop"]) and self._ended_because is not None:
            self._ended_because("lost" if reply["lost"] else "stop")

    def _ticked(self, ticker: asyncio.Task[None]) -> None:
        """Let nobody wait for a ticker that an error has ended."""
        if not ticker.cancelled() and (error := ticker.exception()) is not None:
            self._ticker = None
            self._refuse_all(error)

    def _refuse_all(self, error: BaseException) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                refused = ConnectionError(f"the shared limit does not answer: {error}")
                refused.__cause__ = error
                waiter.set_exception(refused)


class LeasedLive(Live):
    """A `Live` whose pacer leases: it keeps as many rows waiting as the next lease may take.

    Spends: tokens.
    """

    def _spawn(self) -> None:
        for _ in range(max(self.pacer.window - len(self._workers), 1)):
            super()._spawn()
