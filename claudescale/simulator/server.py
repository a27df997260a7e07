"""The HTTP shell around the desk: it reads, waits and writes, and leaves decisions to the desk."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from aiohttp import web

from claudescale.simulator import batches, wire
from claudescale.simulator.account import rate_limits
from claudescale.simulator.wire import Answer, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    from claudescale.clock import Clock
    from claudescale.simulator.account import Admission, Desk
    from claudescale.simulator.batches import Batches

    Parts = Iterable[tuple[float, bytes]]  # each with the API seconds at which it is due
    Given = Answer | dict[str, Any] | web.StreamResponse

# Longest stretch of work on batches. A thread that releases the interpreter's lock more often than its switch
# interval of 0.005 s, and takes it back at once, starves the others.
TURN_SECONDS = 0.01
PATIENCE_SECONDS = 4.0  # longest wait of a call for due batch rows; clients wait ten
LINES = 100  # of results per write
KEEP_ALIVE_SECONDS = 600.0
SHUTDOWN_SECONDS = 0.1
COLUMNS = ("passed", "refused", "tokens", "passed", "refused")
BOARD = Template(Path(__file__).with_name("class.html").read_text("utf-8"))
HOST, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 - on request only


class Shell:
    """Serves one desk over HTTP.

    Parameters
    ----------
    desk : Desk
        Decides calls to the Messages API.
    batches : Batches
        Decides calls to the Message Batches API.
    clock : Clock
        Gives the time of the API, and waits.
    """

    def __init__(self, desk: Desk, batches: Batches, clock: Clock) -> None:
        self.desk, self.batches, self.clock = desk, batches, clock

    async def serve(self, host: str, port: int, served: Future[Any]) -> None:
        """Give `served` the URL, the event loop and an event, and listen until that event is set."""
        server = web.Server(self._answer, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=4096).start()
        except OSError as error:
            served.set_exception(error)
            return
        over = asyncio.Event()
        url = f"http://{HOST if host == EVERYWHERE else host}:{runner.addresses[0][1]}"
        served.set_result((url, asyncio.get_running_loop(), over))
        await over.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request by sending its handler's answer, unless the handler has sent it already."""
        try:
            # Read the whole body before any answer: a client that is still sending does not read.
            raw = await request.clone(client_max_size=batches.MAX_BYTES).read()
            given = await self._given(request, raw)
        except (Problem, web.HTTPRequestEntityTooLarge) as problem:
            given = self.desk.refuse(problem if isinstance(problem, Problem) else Problem(413))
        except ConnectionError:  # the client disconnected midway
            return web.Response(status=499)
        if isinstance(given, web.StreamResponse):
            return given
        return await self._send(request, given if isinstance(given, Answer) else self.desk.answer(given))

    async def _given(self, request: web.BaseRequest, raw: bytes) -> Given:  # noqa: PLR0911 - paths
        desk, now = self.desk, self.clock.seconds()
        match request.method, *request.path.split("/")[1:]:
            case "POST", "v1", "messages":
                return await self._messages(request, raw)
            case "POST", "v1", "messages", "count_tokens":
                return desk.count_tokens(now, raw, request.headers)
            case _, "v1", "messages", "batches", *rest if len(rest) < 3:  # noqa: PLR2004
                return await self._batch(request, raw, *rest)
            case "GET", "v1", "models", *name:
                desk.authorize(request.headers)
                return wire.one_model(now, name[0]) if name else wire.models_page(now, request.query)
            case "GET", "v1", "organizations", "rate_limits":
                desk.authorize(request.headers, admin=True)
                return rate_limits(desk.terms, now)
            case "GET", "simulator", "stats":
                return await self.stats()
            case "GET", "simulator":
                about = {"simulator": "claudescale", "speed": self.clock.speed, "now": now}
                return {**about, "tier": desk.terms.name, "seed": desk.options.seed}
            case "GET", "class":
                page = board(desk, self.clock, f"http://{request.host}")
                return web.Response(text=page, content_type="text/html")
        raise Problem(404)

    async def _messages(self, request: web.BaseRequest, raw: bytes) -> Given:
        decision = self.desk.admit(self.clock.seconds(), raw, request.headers)
        if isinstance(decision, Answer):
            return decision
        if decision.request.body.get("stream"):
            return await self._stream(request, decision)
        try:
            await self.clock.sleep(decision.done_at - self.clock.seconds())
        except asyncio.CancelledError:  # the server stops, but the reply is still billed
            self.desk.settle(self.clock.seconds(), decision)
            raise
        return self.desk.finish(self.clock.seconds(), decision)

    async def _stream(self, request: web.BaseRequest, admission: Admission) -> web.StreamResponse:
        """Send a reply as events, each when it is due; a fault cuts it off after half of them."""
        try:
            await self.clock.sleep(admission.begins_at - self.clock.seconds())
            headers = self.desk.headers(self.clock.seconds(), admission)
            parts = [*wire.events(admission.message, admission.begins_at, admission.done_at)]
            cut = admission.fault is not None
            whole = len(parts) // 2 if cut else len(parts)
            return await self._write(request, "text/event-stream", headers, parts[:whole], cut=cut)
        finally:  # a reply is billed even if its client has disconnected
            self.desk.settle(self.clock.seconds(), admission)

    async def _batch(self, request: web.BaseRequest, raw: bytes, name: str = "", action: str = "") -> Given:
        self.desk.authorize(request.headers, versioned=True)
        self.batches.called(self.clock.seconds(), polls=request.method == "GET" and action != "results")
        await self._work()
        now, url = self.clock.seconds(), f"http://{request.host}"
        batch = self.batches.find(name) if name else None
        match request.method, batch, action:
            case "POST", None, "":
                return self.batches.create(now, raw, request.headers)
            case "GET", None, "":
                return wire.page(self.batches.shown(now, url), request.query)
            case "GET", batches.Batch(), "":
                return batch.shown(now, url)
            case "GET", batches.Batch(), "results":
                lines, cut = self.batches.results(now, batch)
                parts = ((0.0, b"".join(lines[at : at + LINES])) for at in range(0, len(lines), LINES))
                headers = self.desk.answer({}).headers
                return await self._write(request, "application/x-jsonl", headers, parts, cut=cut)
            case "POST", batches.Batch(), "cancel":
                return self.batches.cancel(now, batch)
            case "DELETE", batches.Batch(), "":
                return self.batches.delete(batch)
        raise Problem(404)

    async def stats(self) -> dict[str, Any]:
        """Return the counts so far, including all batch rows that are due."""
        await self._work()
        return self.desk.account.figures()

    async def _work(self) -> None:
        """Process the batch rows that are due, pausing regularly to serve other calls."""
        begun = turn = time.monotonic()
        for _ in self.batches.work(self.clock.seconds()):
            if time.monotonic() > turn + TURN_SECONDS:
                await asyncio.sleep(0)
                turn = time.monotonic()
            if turn > begun + PATIENCE_SECONDS:
                return

    # ------------------------------------------------------------------------------------------- writing

    def _headers(self, kind: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of an answer that begins now, with the date in API time."""
        return {"content-type": kind, "date": formatdate(int(self.clock.seconds()), usegmt=True), **headers}

    async def _write(
        self, request: web.BaseRequest, kind: str, headers: Mapping[str, str], parts: Parts, *, cut: bool
    ) -> web.StreamResponse:
        """Write an answer in parts, each when it is due; `cut` then closes the connection."""
        response = web.StreamResponse(headers=self._headers(kind, headers))
        await response.prepare(request)
        for due_at, part in parts:
            if due_at > self.clock.seconds():
                await self.clock.sleep(due_at - self.clock.seconds())
            await response.write(part)
            await asyncio.sleep(0)  # a write does not yield while its buffer has room
        if cut:
            _cut_off(request)
        else:
            await response.write_eof()
        return response

    async def _send(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        """Send an answer, whole or as its fault breaks it."""
        if answer.fault == "hang":
            await asyncio.Event().wait()
        if answer.fault == "drop":
            _cut_off(request)
            return web.Response(status=499)
        kind = "application/json"
        if answer.fault == "truncated_body":
            headers = {**answer.headers, "content-length": str(len(answer.body))}
            half = answer.body[: len(answer.body) // 2]
            return await self._write(request, kind, headers, [(0.0, half)], cut=True)
        headers = self._headers(kind, answer.headers)
        return web.Response(status=answer.status, headers=headers, body=answer.body)


def board(desk: Desk, clock: Clock, url: str) -> str:
    """Return the class page: passed and refused calls by key, of which only the first letters are shown."""
    now, people = clock.seconds(), list[tuple[str, list[float]]]()
    for (letters, _), tally in sorted(desk.account.by_key.items(), key=lambda item: item[0][0].lower()):
        recent = [window.recent(now) for window in (tally.passed, tally.refused, tally.tokens)]
        people.append((letters, [*recent, tally.passed.total, tally.refused.total]))
    everybody = [sum(counts[column] for _, counts in people) for column in range(len(COLUMNS))]
    return BOARD.substitute(
        people="1 key" if len(people) == 1 else f"{len(people)} keys",
        seconds=f"{60 / clock.speed:.3g}",
        url=escape(url),
        buckets="".join(
            _row(group, *(_level(bucket.refill(now), bucket.capacity) for bucket in buckets.named.values()))
            for group, buckets in desk.groups.items()
        ),
        rows="".join(
            _row(name, *map(_count, COLUMNS, counts)) for name, counts in [*people, ("All", everybody)]
        ),
    )


def _row(name: str, *cells: str) -> str:
    return f"<tr><td>{escape(name)}{''.join(cells)}</tr>"


def _count(kind: str, count: float) -> str:
    return f'<td class="{kind if count else ""}">{count:,.0f}'


def _level(left: float, most: float) -> str:
    left = max(0, left)
    return f'<td>{left:,.0f} of {most:,.0f} <meter max="{most:.0f}" value="{left:.0f}"></meter>'


def _cut_off(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()
