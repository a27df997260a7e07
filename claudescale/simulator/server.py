"""The HTTP shell around the desk: reads, waits, writes; decides nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from claudescale.simulator.checks import Problem
from claudescale.simulator.desk import Admission, Desk
from claudescale.simulator.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from claudescale.clock import Clock

MAX_BYTES = 256_000_000 + 1_000_000
HANG_CHECK_SECONDS = 0.2


class Shell:
    """Serves one desk on 127.0.0.1.

    Parameters
    ----------
    desk : Desk
        Decides.
    clock : Clock
        Says what time it is on the API, and waits.
    """

    def __init__(self, desk: Desk, clock: Clock) -> None:
        self.desk = desk
        self.clock = clock
        self.url = ""
        self._runner: web.ServerRunner | None = None

    async def start(self, port: int = 0) -> str:
        """Begin to listen on 127.0.0.1, and return the URL."""
        server = web.Server(self._answer, access_log=None, keepalive_timeout=600)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, backlog=4096)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{bound}"
        return self.url

    async def stop(self) -> None:
        """Stop listening and close what is open."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        route = self._routes().get((request.method, request.path))
        if route is None:
            found = Problem(404, "not_found_error", "Not found")
            return await self._send(request, self.desk.refuse(found))
        return await route(request)

    def _routes(self) -> dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]]:
        return {
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("GET", "/simulator"): self._about,
            ("GET", "/simulator/stats"): self._stats,
        }

    async def _about(self, request: web.BaseRequest) -> web.StreamResponse:
        about: dict[str, Any] = {
            "simulator": "claudescale",
            "speed": self.clock.speed,
            "now": self.clock.seconds(),
            "tier": self.desk.terms.name,
            "seed": self.desk.seed,
        }
        return await self._send(request, self.desk.answer(about))

    async def _stats(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._send(request, self.desk.answer(self.desk.account.figures()))

    async def _count_tokens(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await _read(request)
        return await self._send(request, self.desk.count_tokens(self.clock.seconds(), raw, request.headers))

    async def _messages(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await _read(request)
        decision = self.desk.admit(self.clock.seconds(), raw, request.headers)
        if isinstance(decision, Admission):
            decision = await self._reply(decision)
        return await self._send(request, decision)

    async def _reply(self, admission: Admission) -> Answer:
        finished = False
        try:
            await self.clock.sleep(admission.done_at - self.clock.seconds())
            finished = True
            return self.desk.finish(self.clock.seconds(), admission)
        finally:
            if not finished:  # the server stops: the reply was under way all the same
                self.desk.settle(self.clock.seconds(), admission)

    async def _send(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        if answer.fault == "hang":
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(HANG_CHECK_SECONDS)
        if answer.fault in {"drop", "hang"}:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=499)
        headers = {"content-type": "application/json", **answer.headers}
        if answer.fault == "truncated_body":
            response = web.StreamResponse(status=answer.status, headers=headers)
            response.content_length = len(answer.body)
            await response.prepare(request)
            await response.write(answer.body[: len(answer.body) // 2])
            if request.transport is not None:
                request.transport.close()
            return response
        return web.Response(status=answer.status, headers=headers, body=answer.body)


async def _read(request: web.BaseRequest) -> bytes:
    """Return the body, or a little more than any endpoint takes of one that is too long."""
    parts = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size <= MAX_BYTES:
            parts.append(part)
    return b"".join(parts)
