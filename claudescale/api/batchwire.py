"""The calls to the batch endpoints, paced to their own limit. They are free; what a batch answers is not."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.api.answers import read_object
from claudescale.pacing.pacer import Turns
from claudescale.running import batch_rules
from claudescale.running.batch_results import proves

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

    import polars as pl

    from claudescale.api.answers import Answer
    from claudescale.api.client import Wire
    from claudescale.clock import Clock
    from claudescale.prompts.requests import Texts

_PATH = "/v1/messages/batches"


class _Enough(Exception):
    """The first lines were read."""


class BatchWire:
    """The endpoints of Message Batches.

    Parameters
    ----------
    wire : Wire
        What sends.
    clock : Clock
        API time.
    requests_per_minute : float
        Calls to all of these endpoints together.
    """

    def __init__(self, wire: Wire, clock: Clock, requests_per_minute: float) -> None:
        self._wire = wire
        self._turns = Turns(clock, requests_per_minute)

    async def check(self, request: bytes) -> Answer:
        """Return what the API says of one request: it counts its tokens, which costs nothing.

        The rows of a batch are looked at only when they are worked off; a mistake would be told hours later.

        Spends: nothing.
        """
        return await self._wire.count_tokens(request)

    async def message(self, request: bytes) -> Answer:
        """Send one request live. Spends: what it costs."""
        return await self._wire.send(request)

    async def create(self, parts: AsyncIterable[bytes], length: int) -> Answer:
        """Post a batch, once.

        Spends: half of what its rows cost live.
        """
        await self._turns.next()
        return await self._wire.call(
            "post", _PATH, body=parts, length=length, seconds=batch_rules.LONGEST_UPLOAD_SECONDS
        )

    async def retrieve(self, batch_id: str) -> Answer:
        """Return the answer that shows one batch. Spends: nothing."""
        await self._turns.next()
        return await self._wire.call("get", f"{_PATH}/{batch_id}")

    async def page(self, limit: int, after_id: str | None = None) -> Answer:
        """Return the answer that shows the newest batches, or those after one. Spends: nothing."""
        await self._turns.next()
        after = f"&after_id={after_id}" if after_id else ""
        return await self._wire.call("get", f"{_PATH}?limit={limit}{after}")

    async def cancel(self, batch_id: str) -> Answer:
        """Ask for the end of a batch; what is under way in it may still be answered and paid for.

        Spends: nothing.
        """
        await self._turns.next()
        return await self._wire.call("post", f"{_PATH}/{batch_id}/cancel")

    async def delete(self, batch_id: str) -> Answer:
        """Delete a batch that has ended, with its results. Spends: nothing."""
        await self._turns.next()
        return await self._wire.call("delete", f"{_PATH}/{batch_id}")

    async def results(self, batch_id: str, take: Callable[[bytes], Awaitable[None]]) -> Answer:
        """Pass the result lines to `take` in blocks; see `Wire.stream`. Spends: nothing."""
        await self._turns.next()
        return await self._wire.stream(f"{_PATH}/{batch_id}/results", take)

    async def proves(self, batch_id: str, nonce: str) -> bool | None:
        """Return whether the results of a batch have this nonce; None where they cannot be read now.

        Spends: nothing.
        """
        proof: list[bool | None] = [None]

        async def take(block: bytes) -> None:
            proof[0] = proves(block, nonce)
            raise _Enough

        with suppress(_Enough):
            await self.results(batch_id, take)
        return proof[0]


def listed(answer: Answer) -> list[dict[str, Any]]:
    """Return the batches that a page shows."""
    found = read_object(answer.content).get("data")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


class Parts:
    """The body of a batch, rendered part by part, in a thread: the loop goes on. Each iteration begins anew.

    Spends: nothing.
    """

    def __init__(self, rows: pl.DataFrame, texts: Texts, nonce: str) -> None:
        self._given = rows, texts, nonce

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rendered = batch_rules.body(*self._given)
        while (part := await loops.in_thread(next, rendered, None)) is not None:
            yield part
