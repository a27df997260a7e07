"""The HTTP shell around the desk: reads, waits, writes; decides nothing."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from aiohttp import web

from claudescale import catalog
from claudescale.simulator import listings, streams
from claudescale.simulator.checks import Problem, version_problem
from claudescale.simulator.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from claudescale.clock import Clock
    from claudescale.simulator.batches import Batch, Batches
    from claudescale.simulator.desk import Admission, Desk

MAX_BYTES = catalog.BATCH.max_bytes + 1  # one more than any endpoint takes: enough to know it is too long
HANG_CHECK_SECONDS = 0.2
TURN_ROWS = 20  # of a batch, before other calls get their turn
RESULT_LINES = 500  # of a batch, written at once
SETTLE_WAIT_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 600.0
SHUTDOWN_SECONDS = 0.1


class Shell:
    """Serves one desk on 127.0.0.1.

    Parameters
    ----------
    desk : Desk
        Decides calls to the Messages API.
    batches : Batches
        Decides calls to the Message Batches API.
    clock : Clock
        Says what time it is on the API, and waits.
    """

    def __init__(self, desk: Desk, batches: Batches, clock: Clock) -> None:
        self.desk = desk
        self.batches = batches
        self.clock = clock
        self.url = ""
        self._runner: web.ServerRunner | None = None
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._routes: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("GET", "/v1/organizations/rate_limits"): self._rate_limits,
            ("GET", "/simulator"): self._about,
            ("GET", "/simulator/stats"): self._stats,
        }

    async def start(self, port: int = 0) -> str:
        """Begin to listen on 127.0.0.1, and return the URL."""
        server = web.Server(self._answer, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, backlog=4096)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        """Stop listening and close what is open."""
        for task in self._settling.values():
            task.cancel()
        await asyncio.gather(*self._settling.values(), return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        route = self._routes.get((request.method, request.path))
        if route is not None:
            return await route(request)
        if request.path.startswith("/v1/messages/batches"):
            return await self._batch(request)
        if request.method == "GET" and request.path.startswith("/v1/models"):
            return await self._models(request)
        found = Problem(404, "not_found_error", "Not found")
        return await self._send(request, self.desk.refuse(found))

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

    async def _rate_limits(self, request: web.BaseRequest) -> web.StreamResponse:
        now = self.clock.seconds()
        return await self._look_up(
            request, lambda: listings.rate_limits(self.desk.terms, now, _query(request))
        )

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        now = self.clock.seconds()
        name = request.path.removeprefix("/v1/models").strip("/")
        if name:
            return await self._look_up(request, lambda: listings.one_model(now, name))
        return await self._look_up(request, lambda: listings.models_page(now, _query(request)))

    async def _look_up(
        self, request: web.BaseRequest, look: Callable[[], dict[str, Any] | Problem]
    ) -> web.StreamResponse:
        refused = self.desk.unauthorized(request.headers)
        return await self._send(request, refused or self._value(look()))

    def _value(self, found: dict[str, Any] | Problem) -> Answer:
        return self.desk.refuse(found) if isinstance(found, Problem) else self.desk.answer(found)

    async def _messages(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await _read(request)
        decision = self.desk.admit(self.clock.seconds(), raw, request.headers)
        if isinstance(decision, Answer):
            return await self._send(request, decision)
        if decision.body.get("stream"):
            return await self._stream(request, decision)
        return await self._send(request, await self._reply(decision))

    async def _reply(self, admission: Admission) -> Answer:
        finished = False
        try:
            await self.clock.sleep(admission.done_at - self.clock.seconds())
            finished = True
            return self.desk.finish(self.clock.seconds(), admission)
        finally:
            if not finished:  # the server stops: the reply was under way all the same
                self.desk.settle(self.clock.seconds(), admission)

    async def _stream(self, request: web.BaseRequest, admission: Admission) -> web.StreamResponse:
        """Send a reply as events, each at its moment. A broken one ends after half of them."""
        try:
            await self.clock.sleep(admission.begins_at - self.clock.seconds())
            headers = self.desk.headers(self.clock.seconds(), admission)
            response = web.StreamResponse(headers=self._headers("text/event-stream", headers))
            await response.prepare(request)
            parts = list(streams.events(admission))
            keep = len(parts) if admission.fault is None else len(parts) // 2
            for due_at, part in parts[:keep]:
                if due_at > self.clock.seconds():
                    await self.clock.sleep(due_at - self.clock.seconds())
                await response.write(part)
            if admission.fault is None:
                await response.write_eof()
            else:
                self.desk.account.faults[admission.fault] += 1
                _cut_off(request)
        except ConnectionError:  # the client has gone; what was produced is billed
            return web.Response(status=499)
        finally:
            self.desk.settle(self.clock.seconds(), admission)
        return response

    async def _batch(self, request: web.BaseRequest) -> web.StreamResponse:
        refused = self.desk.unauthorized(request.headers) or self.batches.limited(self.clock.seconds())
        if refused is not None:
            return await self._send(request, refused)
        await self._settle_due()
        polls = request.method == "GET" and not request.path.endswith("/results")
        failed = self.batches.poll_failed(self.clock.seconds()) if polls else None
        if failed is not None:
            return await self._send(request, failed)
        parts = [part for part in request.path.removeprefix("/v1/messages/batches").split("/") if part]
        if not parts:
            return await self._send(request, await self._all_batches(request))
        batch = self.batches.find(parts[0])
        if isinstance(batch, Problem):
            return await self._send(request, self.desk.refuse(batch))
        if parts[1:] == ["results"] and request.method == "GET":
            return await self._results(request, batch)
        return await self._send(request, self._value(self._one_batch(request.method, parts[1:], batch)))

    async def _all_batches(self, request: web.BaseRequest) -> Answer:
        now = self.clock.seconds()
        if request.method == "GET":
            return self._value(self.batches.page(now, _query(request), self.url))
        raw = await _read(request)
        body = await asyncio.to_thread(self.desk.read, raw, catalog.BATCH.max_bytes)
        if isinstance(body, Answer):
            return body
        wrong = version_problem(request.headers)
        if wrong is not None:
            return self.desk.refuse(wrong)
        version = request.headers["anthropic-version"]
        return self.batches.submit(self.clock.seconds(), body, version)

    def _one_batch(self, method: str, rest: list[str], batch: Batch) -> dict[str, Any] | Problem:
        now = self.clock.seconds()
        if (method, rest) == ("GET", []):
            return self.batches.show(batch, now, self.url)
        if (method, rest) == ("POST", ["cancel"]):
            return self.batches.cancel(now, batch) or self.batches.show(batch, now, self.url)
        if (method, rest) == ("DELETE", []):
            return self.batches.delete(batch)
        return Problem(404, "not_found_error", "Not found")

    async def _results(self, request: web.BaseRequest, batch: Batch) -> web.StreamResponse:
        lines = self.batches.results(self.clock.seconds(), batch)
        if isinstance(lines, Problem):
            return await self._send(request, self.desk.refuse(lines))
        cut = self.batches.results_cut(self.clock.seconds(), batch)
        headers = self._headers("application/x-jsonl", self.desk.answer({}).headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        whole = len(lines) // 2 if cut else len(lines)
        for start in range(0, whole, RESULT_LINES):
            await response.write(b"".join(lines[start : min(whole, start + RESULT_LINES)]))
        if cut:
            await response.write(lines[whole][: len(lines[whole]) // 2])
            _cut_off(request)
        else:
            await response.write_eof()
        return response

    async def _settle_due(self) -> None:
        """Work off the batches whose time has come; one that takes long goes on in the background."""
        for batch in self.batches.due(self.clock.seconds()):
            if batch.id not in self._settling:
                self._settling[batch.id] = asyncio.ensure_future(self._settle(batch))
        if self._settling:
            await asyncio.wait(self._settling.values(), timeout=SETTLE_WAIT_SECONDS)
        for name in [name for name, task in self._settling.items() if task.done()]:
            self._settling.pop(name).result()

    async def _settle(self, batch: Batch) -> None:
        for done in self.batches.settle(batch):
            if done % TURN_ROWS == 0:
                await asyncio.sleep(0)

    def _headers(self, kind: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of an answer that begins now, with the date in API time."""
        return {"content-type": kind, "date": _date(int(self.clock.seconds())), **headers}

    async def _send(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        if answer.fault == "hang":
            while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(HANG_CHECK_SECONDS)
        if answer.fault in {"drop", "hang"}:
            _cut_off(request)
            return web.Response(status=499)
        headers = self._headers("application/json", answer.headers)
        if answer.fault == "truncated_body":
            response = web.StreamResponse(status=answer.status, headers=headers)
            response.content_length = len(answer.body)
            await response.prepare(request)
            await response.write(answer.body[: len(answer.body) // 2])
            _cut_off(request)
            return response
        return web.Response(status=answer.status, headers=headers, body=answer.body)


@lru_cache(maxsize=64)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def _cut_off(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()


def _query(request: web.BaseRequest) -> dict[str, list[str]]:
    return parse_qs(request.rel_url.raw_query_string)


async def _read(request: web.BaseRequest) -> bytes:
    """Return the body, or the beginning of one that is too long for every endpoint."""
    parts = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size <= MAX_BYTES:
            parts.append(part)
        elif size - len(part) <= MAX_BYTES:
            parts.append(part[: MAX_BYTES - size])
    return b"".join(parts)
