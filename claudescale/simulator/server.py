"""The HTTP shell around the desk: reads, waits, writes; decides nothing."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from claudescale.api import catalog
from claudescale.simulator import listings, streams
from claudescale.simulator.checks import Problem, version_problem
from claudescale.simulator.intake import Intake
from claudescale.simulator.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from claudescale.clock import Clock
    from claudescale.simulator.batches import Batch, Batches
    from claudescale.simulator.desk import Admission, Desk

MAX_BYTES = catalog.MESSAGE.max_bytes + 1  # enough to know that a request is too long
BATCHES = "/v1/messages/batches"
HANG_CHECK_SECONDS = 0.2
TURN_ROWS = 5  # of a batch, before other calls get their turn
# A thread that often drops the interpreter's lock and takes it back at once starves the others.
REST_ROWS = 50  # of a batch, before other threads get their turn
REST_SECONDS = 0.001
PAUSE_SECONDS = 0.02  # before its next rows
RESULT_LINES = 500  # of a batch, written at once
CATCH_UP_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 600.0
SHUTDOWN_SECONDS = 0.1
LOCAL = {"127.0.0.1", "localhost", "::1"}


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
        self._working: dict[str, asyncio.Task[None]] = {}
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
        for task in self._working.values():
            task.cancel()
        await asyncio.gather(*self._working.values(), return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        host = request.headers.get("host", "")
        if not _is_local(host):
            words = f"This simulator is for this machine, as 127.0.0.1 or localhost, not as {host[:80]!r}."
            return await self._send(request, self.desk.refuse(Problem(403, "permission_error", words)))
        route = self._routes.get((request.method, request.path))
        if route is not None:
            return await route(request)
        if f"{request.path}/".startswith(f"{BATCHES}/"):
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
            request, lambda: listings.rate_limits(self.desk.terms, now, _query(request)), admin=True
        )

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        now = self.clock.seconds()
        name = request.path.removeprefix("/v1/models").strip("/")
        if name:
            return await self._look_up(request, lambda: listings.one_model(now, name))
        return await self._look_up(request, lambda: listings.models_page(now, _query(request)))

    async def _look_up(
        self, request: web.BaseRequest, look: Callable[[], dict[str, Any] | Problem], *, admin: bool = False
    ) -> web.StreamResponse:
        refused = self.desk.unauthorized(request.headers, admin=admin)
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

    async def _batch(self, request: web.BaseRequest) -> web.StreamResponse:  # noqa: PLR0911 - one a kind
        parts = [part for part in request.path.removeprefix(BATCHES).split("/") if part]
        intake = Intake()
        try:
            if request.method == "POST":  # whatever the answer: who is still writing does not listen
                async for chunk in request.content.iter_any():
                    intake.feed(chunk)
        except ConnectionError:  # the client has gone half way: nothing is created
            return web.Response(status=499)
        refused = self._refused(request, parts)
        if refused is not None:
            return await self._send(request, refused)
        await self._catch_up()
        now = self.clock.seconds()
        if (request.method, parts) == ("POST", []):
            headers = request.headers
            betas = headers.get("anthropic-beta", "")
            answer = self.batches.submit(now, intake, headers["anthropic-version"], betas)
            self._work_off()
            return await self._send(request, answer)
        if (request.method, parts) == ("GET", []):
            page = self.batches.page(now, _query(request), self.url)
            return await self._send(request, self._value(page))
        batch = self.batches.find(parts[0]) if parts else None
        if isinstance(batch, Problem):
            return await self._send(request, self.desk.refuse(batch))
        if batch is not None and (request.method, parts[1:]) == ("GET", ["results"]):
            return await self._results(request, batch)
        return await self._send(request, self._value(self._one_batch(request.method, parts[1:], batch)))

    def _refused(self, request: web.BaseRequest, parts: list[str]) -> Answer | None:
        """Return the refusal of any call to the batch endpoints, for its key, version, rate or a fault."""
        refused = self.desk.unauthorized(request.headers)
        wrong = version_problem(request.headers)
        if refused is None and wrong is not None:
            refused = self.desk.refuse(wrong)
        refused = refused or self.batches.limited(self.clock.seconds())
        if refused is None and request.method == "GET" and parts[1:] != ["results"]:
            refused = self.batches.poll_failed(self.clock.seconds())
        return refused

    def _one_batch(self, method: str, rest: list[str], batch: Batch | None) -> dict[str, Any] | Problem:
        now = self.clock.seconds()
        if rest not in ([], ["cancel"], ["results"]):
            return Problem(404, "not_found_error", "Not found")
        if batch is None:
            return Problem(405, "invalid_request_error", "Method Not Allowed")
        if (method, rest) == ("GET", []):
            return self.batches.show(batch, now, self.url)
        if (method, rest) == ("POST", ["cancel"]):
            refused = self.batches.cancel(now, batch)
            if batch.id in self._working and refused is None:  # it ends sooner than its task thinks
                self._working.pop(batch.id).cancel()
                self._work_off()
            return refused or self.batches.show(batch, now, self.url)
        if (method, rest) == ("DELETE", []):
            return self.batches.delete(batch)
        return Problem(405, "invalid_request_error", "Method Not Allowed")

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

    def _work_off(self) -> None:
        """See to it that every batch that has not ended is worked off in the background."""
        for name in [name for name, task in self._working.items() if task.done()]:
            self._working.pop(name).result()
        for batch in self.batches.unsettled():
            if batch.id not in self._working:
                self._working[batch.id] = asyncio.ensure_future(self._work(batch))

    async def _catch_up(self) -> None:
        """Let batches end that have reached their end; one with much left to do goes on behind."""
        due = {batch.id for batch in self.batches.due(self.clock.seconds())}
        tasks = [task for name, task in self._working.items() if name in due]
        if tasks:
            await asyncio.wait(tasks, timeout=CATCH_UP_SECONDS)
        self._work_off()

    async def _work(self, batch: Batch) -> None:
        while batch.settled_at is None:
            for done, _ in enumerate(self.batches.work(batch, self.clock.seconds())):
                if done % TURN_ROWS == 0:
                    await asyncio.sleep(0 if done % REST_ROWS else REST_SECONDS)
            if batch.settled_at is None:
                wait = self.clock.real(batch.next_at - self.clock.seconds())
                await asyncio.sleep(max(wait, PAUSE_SECONDS))

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


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine.

    A page in a browser may have a name of its own lead to 127.0.0.1; its requests come with that name.
    """
    try:
        return urlsplit(f"//{host}").hostname in LOCAL
    except ValueError:
        return False


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
