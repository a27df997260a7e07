"""The shared limit at home in a Redis server: for processes that have nothing else in common.

Redis keeps the book as JSON under one key. Who has something to say reads it, does the arithmetic and writes
it back, if nobody else did meanwhile; else once more.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

from redis import asyncio as redis
from redis.exceptions import RedisError, WatchError

from claudescale.books import LOST_SECONDS, Book, terms_of
from claudescale.leases import Borrower, LeasedLive
from claudescale.running import engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anthropic import AsyncAnthropic

    from claudescale.api.client import Api
    from claudescale.books import Message
    from claudescale.planning.plans import Plan
    from claudescale.running.live import Live, Row

_ANSWER_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 0.01


class RedisHome:
    """Carries messages to the book called `name` in a Redis server.

    Parameters
    ----------
    url : str
        Such as ``"redis://localhost:6379/0"``. It may hold a password, so no message shows it.
    name : str
        Which book.
    """

    def __init__(self, url: str, name: str) -> None:
        given = {"socket_timeout": _ANSWER_SECONDS, "socket_connect_timeout": _ANSWER_SECONDS}
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True, **given)
        self._key = f"claudescale:{name}"

    async def exchange(self, message: Message) -> Message:
        """Return the book's answer.

        Raises
        ------
        ConnectionError
            Redis does not answer.
        """
        try:
            while True:
                try:
                    return await self._try(message)
                except WatchError:  # another one wrote
                    await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # noqa: S311 - no secret
        except (RedisError, OSError) as error:
            msg = f"Redis, which keeps the shared limit: {type(error).__name__}"
            raise ConnectionError(msg) from error

    async def _try(self, message: Message) -> Message:
        async with self._redis.pipeline(transaction=True) as pipe:
            await pipe.watch(self._key)
            seconds, microseconds = await pipe.time()
            now = seconds + microseconds / 1e6
            state = await pipe.get(self._key)
            book = Book(message["terms"], now) if state is None else Book.restored(json.loads(state), now)
            if book.idle:
                book = Book(message["terms"], now)
            reply = book.exchange(message, now)
            pipe.multi()
            # Who is silent for longer is lost to the book anyway.
            pipe.set(self._key, json.dumps(book.state()), px=round(2_000 * LOST_SECONDS))
            await pipe.execute()
        return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


class _Alone(LeasedLive):
    """A `Live` that ends its lease with its last row."""

    home: RedisHome
    borrower: Borrower

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row has its answer, or the run was stopped."""
        try:
            await super().answer(rows)
        finally:
            await self.borrower.close()
            await self.home.close()


def engine(
    url: str,
    client: AsyncAnthropic,
    plan: Plan,
    *,
    api: Api,
    requests: int,
    pacer: object = None,
    **given: Any,
) -> Live:
    """Return what sends the rows of a plan from this process, with a limit that all share who name `url`."""
    del pacer  # an earlier one has ended its lease
    home = RedisHome(url, f"{client.base_url} {plan.facts.rate_group}")
    output_tokens = min(plan.expected.output_tokens, float(plan.max_tokens))
    borrower = Borrower(
        home.exchange,
        terms_of(plan.limits, share=plan.share, output_tokens=output_tokens, clock=api.clock),
        clock=api.clock,
        concurrency=plan.concurrency,
    )
    warm = plan.cache and requests > 1
    charges = plan.compiled.charges
    live = engines.sender(plan, api=api, charges=charges, warm=warm, pacer=borrower, make=_Alone, **given)
    assert isinstance(live, _Alone)
    live.home, live.borrower = home, borrower
    return live
