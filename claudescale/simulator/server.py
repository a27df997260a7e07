"""The HTTP shell around the desk: reads, waits, writes; decides nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from contextlib import suppress
from email.utils import formatdate
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from claudescale.api import catalog
from claudescale.simulator import batches, wire
from claudescale.simulator.account import listed
from claudescale.simulator.wire import Answer, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from claudescale.clock import Clock
    from claudescale.simulator.account import Admission, Desk
    from claudescale.simulator.batches import Batch, Batches

    Parts = Iterable[tuple[float, bytes]]  # each with the API seconds at which it is due
    Found = Answer | dict[str, Any] | web.StreamResponse

HANG_CHECK_SECONDS = 0.2
# Of work on batches at a stretch. A thread that drops the interpreter's lock more often than its switch
# interval of 0.005 and takes it back at once starves the others.
TURN_SECONDS = 0.01
PAUSE_SECONDS = 0.02  # until the next rows of batches are looked for
CATCH_UP_SECONDS = 0.5
LINES = 100  # of results that are written at once
KEEP_ALIVE_SECONDS = 600.0
SHUTDOWN_SECONDS = 0.1
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
        self.url, self._open = "", False
        self._runner: web.ServerRunner | None = None
        self._worker: asyncio.Task[None] | None = None
        self._routes: list[tuple[re.Pattern[str], Callable[..., Awaitable[Found]]]] = [
            (re.compile("POST /v1/messages"), self._messages),
            (re.compile("POST /v1/messages/count_tokens"), self._count_tokens),
            (re.compile(".* /v1/messages/batches(?:/([^/]*))?(?:/(.*))?"), self._batch),
            (re.compile("GET /v1/models(?:/(.*))?"), self._models),
            (re.compile("GET /v1/organizations/rate_limits"), self._rate_limits),
            (re.compile("GET /(simulator|simulator/stats|class)"), self._about),
        ]

    async def start(self, port: int = 0, host: str = HOST) -> str:
        """Begin to listen, and return the URL."""
        server = web.Server(self._answer, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=4096).start()
        self._open = host not in LOCAL
        self.url = f"http://{HOST if host == EVERYWHERE else host}:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        """Stop listening and close what is open."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: whatever its handler returns is sent, but for what is on its way already."""
        try:
            found = await self._found(request)
        except Problem as problem:
            found = self.desk.refuse(problem)
        except ConnectionError:  # the client has gone half way
            return web.Response(status=499)
        if isinstance(found, web.StreamResponse):
            return found
        return await self._send(request, found if isinstance(found, Answer) else self.desk.answer(found))

    async def _found(self, request: web.BaseRequest) -> Found:
        host = request.headers.get("host", "")
        if not _is_ours(host, to_all=self._open):
            this = "by its number" if self._open else "for this machine, as 127.0.0.1 or localhost"
            raise Problem(403, f"This simulator is {this}, not as {host[:80]!r}.")
        for pattern, handler in self._routes:
            if found := pattern.fullmatch(f"{request.method} {request.path}"):
                return await handler(request, *found.groups(""))
        raise Problem(404)

    # ---------------------------------------------------------------------------------- messages and lists

    async def _messages(self, request: web.BaseRequest) -> Found:
        raw = await _read(request, catalog.MESSAGE.max_bytes)
        decision = self.desk.admit(self.clock.seconds(), raw, request.headers)
        if isinstance(decision, Answer):
            return decision
        if decision.body.get("stream"):
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

    async def _count_tokens(self, request: web.BaseRequest) -> Found:
        raw = await _read(request, catalog.MESSAGE.max_bytes)
        return self.desk.count_tokens(self.clock.seconds(), raw, request.headers)

    async def _models(self, request: web.BaseRequest, name: str) -> Found:
        self.desk.authorize(request.headers)
        now = self.clock.seconds()
        return wire.one_model(now, name) if name else wire.models_page(now, _query(request))

    async def _rate_limits(self, request: web.BaseRequest) -> Found:
        self.desk.authorize(request.headers, admin=True)
        return listed(self.desk.terms, self.clock.seconds(), _query(request))

    async def _about(self, request: web.BaseRequest, what: str) -> Found:
        if what == "simulator/stats":
            return self.desk.account.figures()
        if what == "simulator":
            about = {"simulator": "claudescale", "speed": self.clock.speed, "now": self.clock.seconds()}
            return {**about, "tier": self.desk.terms.name, "seed": self.desk.seed}
        page = board(self.desk, self.clock, f"http://{request.host}")
        return web.Response(text=page, content_type="text/html", headers={"cache-control": "no-store"})

    # ------------------------------------------------------------------------------------------- batches

    async def _batch(self, request: web.BaseRequest, name: str, action: str) -> Found:
        # Whatever the answer: who is still writing does not listen.
        raw = await _read(request, batches.MAX_BYTES)
        self.desk.authorize(request.headers, versioned=True)
        self.batches.limited(self.clock.seconds())
        if request.method == "GET" and action != "results":
            self.batches.poll(self.clock.seconds())
        await self._catch_up()
        now, batch = self.clock.seconds(), self.batches.find(name) if name else None
        match request.method, batch, action:
            case "POST", None, "":
                rows = await asyncio.to_thread(batches.requests_of, raw)  # a large one holds up nobody
                now = self.clock.seconds()
                version, betas = (request.headers.get(f"anthropic-{of}", "") for of in ("version", "beta"))
                try:
                    return self.batches.create(now, rows, version, betas)
                finally:
                    self._begin()
            case "GET", None, "":
                return self.batches.page(now, _query(request), f"http://{request.host}")
            case "GET", batches.Batch(), "":
                return batch.shown(now, f"http://{request.host}")
            case "GET", batches.Batch(), "results":
                return await self._results(request, batch)
            case "POST", batches.Batch(), "cancel":
                self.batches.cancel(now, batch)
                return batch.shown(now)
            case "DELETE", batches.Batch(), "":
                return self.batches.delete(batch)
        raise Problem(405 if action in {"", "cancel", "results"} else 404)

    async def _results(self, request: web.BaseRequest, batch: Batch) -> Found:
        lines = self.batches.results(self.clock.seconds(), batch)
        cut = self.batches.results_cut(self.clock.seconds(), batch)
        if cut:
            last = lines[len(lines) // 2]
            lines = [*lines[: len(lines) // 2], last[: len(last) // 2]]
        parts = ((0.0, b"".join(lines[at : at + LINES])) for at in range(0, len(lines), LINES))
        headers = self.desk.answer({}).headers
        return await self._write(request, "application/x-jsonl", headers, parts, cut=cut)

    def _begin(self) -> None:
        """See to it that batches are worked off in the background."""
        if self._worker is None or self._worker.done():
            if self._worker is not None:
                self._worker.result()
            self._worker = asyncio.ensure_future(self._work())

    async def _catch_up(self) -> None:
        """Let batches end that have reached their end; one with much left to do goes on behind."""
        patience = time.monotonic() + CATCH_UP_SECONDS
        while self._overdue() and time.monotonic() < patience:
            self._begin()
            await asyncio.sleep(TURN_SECONDS)

    def _overdue(self) -> bool:
        return any(self.clock.seconds() >= batch.ends_at for batch in self.batches.unsettled())

    async def _work(self) -> None:
        """Work off the rows of all batches as they are due, in turns after which others are served."""
        while self.batches.unsettled():
            for batch in self.batches.unsettled():
                turn_ends = time.monotonic() + TURN_SECONDS
                for _ in self.batches.work(batch, self.clock.seconds()):
                    if time.monotonic() >= turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + TURN_SECONDS
            await asyncio.sleep(0 if self._overdue() else PAUSE_SECONDS)

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
            while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(HANG_CHECK_SECONDS)
        if answer.fault in {"drop", "hang"}:
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
    now, counts, buckets = clock.seconds(), [], ""
    callers = sorted(desk.account.by_key.items(), key=lambda caller: caller[0][0].lower())
    for _, tally in callers:
        recent = (window.recent(now) for window in (tally.passed, tally.refused, tally.tokens))
        counts.append((*recent, tally.passed.total, tally.refused.total))
    for group, three in desk.groups.items():
        buckets += f"<tr><td>{escape(group)}"
        for bucket in three.named.values():
            left, most = max(0, bucket.refill(now)), bucket.capacity
            buckets += f'<td>{left:,.0f} of {most:,.0f} <meter max="{most:.0f}" value="{left:.0f}"></meter>'
    rows = "".join(_board_row(letters, own) for ((letters, _), _), own in zip(callers, counts, strict=True))
    total = _board_row("All", [sum(column) for column in zip(*counts, strict=True)])
    people = "1 key" if len(callers) == 1 else f"{len(callers)} keys"
    parts = {"people": people, "seconds": f"{60 / clock.speed:.3g}", "url": escape(url)}
    return BOARD.substitute(parts, buckets=buckets, rows=rows, total=total)


def _board_row(name: str, counts: Sequence[float]) -> str:
    """Return a row of the board, with a colour where something passed or was refused."""
    kinds = ("passed", "refused", "tokens", "passed", "refused")
    cells = (f'<td class="{kind * (of > 0)}">{of:,.0f}' for kind, of in zip(kinds, counts, strict=False))
    return f"<tr><td>{escape(name)}{''.join(cells)}</tr>"


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


def _query(request: web.BaseRequest) -> wire.Query:
    return parse_qs(request.rel_url.raw_query_string)


async def _read(request: web.BaseRequest, max_bytes: int) -> bytearray:
    """Return the body, or as much of one that is too long as shows that it is."""
    body = bytearray()
    async for part in request.content.iter_any():
        body += part[: max(0, max_bytes + 1 - len(body))]
    return body
