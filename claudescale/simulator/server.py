"""The HTTP shell around the desk: reads, waits, writes; decides nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from contextlib import suppress
from email.utils import formatdate
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from claudescale.simulator import batches, wire
from claudescale.simulator.account import rate_limits
from claudescale.simulator.wire import Answer, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    from claudescale.clock import Clock
    from claudescale.simulator.batches import Batches
    from claudescale.simulator.desk import Admission, Desk

    Parts = Iterable[tuple[float, bytes]]  # each with the API seconds at which it is due
    Found = Answer | dict[str, Any] | web.StreamResponse

# Of work on batches at a stretch. A thread that drops the interpreter's lock more often than its switch
# interval of 0.005 and takes it back at once starves the others.
TURN_SECONDS = 0.01
PATIENCE_SECONDS = 4.0  # of a call that waits for rows of batches which are due; clients wait ten
LINES = 100  # of results that are written at once
KEEP_ALIVE_SECONDS = 600.0
SHUTDOWN_SECONDS = 0.1
COLUMNS = ("passed", "refused", "tokens", "passed", "refused")
BOARD = Template(Path(__file__).with_name("class.html").read_text("utf-8"))
HOST, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 - on request only
LOCAL = {HOST, "localhost", "::1"}


class Shell:
    """Serves one desk.

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
        self.desk, self.batches, self.clock = desk, batches, clock
        self._open = False

    async def serve(self, host: str, port: int, served: Future[Any]) -> None:
        """Listen until the event is set that `served` gets, with the URL and the loop to set it in."""
        self._open = host not in LOCAL
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
        """Answer a request: whatever its handler returns is sent, but for what is on its way already."""
        try:
            # Whatever the answer: who is still writing does not listen.
            raw = await request.clone(client_max_size=batches.MAX_BYTES).read()
            found = await self._found(request, raw)
        except (Problem, web.HTTPRequestEntityTooLarge) as problem:
            found = self.desk.refuse(problem if isinstance(problem, Problem) else Problem(413))
        except ConnectionError:  # the client has gone half way
            return web.Response(status=499)
        if isinstance(found, web.StreamResponse):
            return found
        return await self._send(request, found if isinstance(found, Answer) else self.desk.answer(found))

    async def _found(self, request: web.BaseRequest, raw: bytes) -> Found:  # noqa: PLR0911 - paths
        host, desk, now = request.headers.get("host", ""), self.desk, self.clock.seconds()
        if not _is_ours(host, to_all=self._open):
            this = "by its number" if self._open else "for this machine, as 127.0.0.1 or localhost"
            raise Problem(403, f"This simulator is {this}, not as {host[:80]!r}.")
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

    async def _messages(self, request: web.BaseRequest, raw: bytes) -> Found:
        decision = self.desk.admit(self.clock.seconds(), raw, request.headers)
        if isinstance(decision, Answer):
            return decision
        if decision.request.body.get("stream"):
            return await self._stream(request, decision)
        try:
            await self.clock.sleep(decision.done_at - self.clock.seconds())
        except asyncio.CancelledError:  # the server stops: the reply was under way all the same
            self.desk.settle(self.clock.seconds(), decision)
            raise
        return self.desk.finish(self.clock.seconds(), decision)

    async def _stream(self, request: web.BaseRequest, admission: Admission) -> web.StreamResponse:
        """Send a reply as events, each at its moment. A broken one ends after half of them."""
        try:
            await self.clock.sleep(admission.begins_at - self.clock.seconds())
            headers = self.desk.headers(self.clock.seconds(), admission)
            parts = [*wire.events(admission.message, admission.begins_at, admission.done_at)]
            cut = admission.fault is not None
            whole = len(parts) // 2 if cut else len(parts)
            return await self._write(request, "text/event-stream", headers, parts[:whole], cut=cut)
        finally:  # also where the client has gone: what was produced is billed
            self.desk.settle(self.clock.seconds(), admission)

    async def _batch(self, request: web.BaseRequest, raw: bytes, name: str = "", action: str = "") -> Found:
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
        """Return what was counted so far, rows of batches that nobody asked for among it."""
        await self._work()
        return self.desk.account.figures()

    async def _work(self) -> None:
        """Work off the rows of batches that are due, in turns after which others are served."""
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
        """Write an answer in parts, each at its moment; a `cut` one breaks off after them."""
        response = web.StreamResponse(headers=self._headers(kind, headers))
        await response.prepare(request)
        for due_at, part in parts:
            if due_at > self.clock.seconds():
                await self.clock.sleep(due_at - self.clock.seconds())
            await response.write(part)
            await asyncio.sleep(0)  # a write waits for nothing where there is room
        if cut:
            _cut_off(request)
        else:
            await response.write_eof()
        return response

    async def _send(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        """Write a whole answer, or what a fault leaves of it."""
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
    """Return the page of a class: whose calls pass and whose are refused; of a key its first letters only."""
    now, people, counts = clock.seconds(), len(desk.account.by_key), list[list[float]]()
    callers = sorted(desk.account.by_key.items(), key=lambda caller: caller[0][0].lower())
    for _, tally in callers:
        recent = [window.recent(now) for window in (tally.passed, tally.refused, tally.tokens)]
        counts.append([*recent, tally.passed.total, tally.refused.total])
    names = [*(letters for (letters, _), _ in callers), "All"]
    rows, buckets = "", ""
    for name, figures in zip(names, [*counts, map(sum, zip(*counts, strict=True))], strict=True):
        cells = (
            f'<td class="{kind * (of > 0)}">{of:,.0f}' for kind, of in zip(COLUMNS, figures, strict=False)
        )
        rows += f"<tr><td>{escape(name)}{''.join(cells)}</tr>"
    for group, three in desk.groups.items():
        buckets += f"<tr><td>{escape(group)}"
        for bucket in three.named.values():
            left, most = max(0, bucket.refill(now)), bucket.capacity
            buckets += f'<td>{left:,.0f} of {most:,.0f} <meter max="{most:.0f}" value="{left:.0f}"></meter>'
    parts = {"people": "1 key" if people == 1 else f"{people} keys", "seconds": f"{60 / clock.speed:.3g}"}
    return BOARD.substitute(parts, url=escape(url), buckets=buckets, rows=rows)


def _is_ours(host: str, *, to_all: bool) -> bool:
    """Return whether a Host header names this machine, by any number where others may call `to_all`.

    A page in a browser may have a name of its own lead here; its requests come with that name.
    """
    with suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        return name in LOCAL or (to_all and bool(ipaddress.ip_address(name)))
    return False


def _cut_off(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()
