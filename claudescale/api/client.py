"""The way to the API: `connect`, and a wire of one request, one answer, whatever happens.

The SDK never retries here: a run decides that in one place.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import itertools
import json
import logging
import os
import re
import socket
import ssl
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import httpx2

from claudescale import loops
from claudescale.api.answers import NOT_FOLLOWED, Answer, StreamedMessage, dig, read_object, verdict
from claudescale.api.catalog import MESSAGE, WORDS
from claudescale.api.limits import Limits, read_headers
from claudescale.clock import Clock
from claudescale.errors import ClaudescaleError, PlanError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator

    from anthropic import AsyncAnthropic

    Take: TypeAlias = Callable[[bytes], Awaitable[bool | None]]

SIMULATED_SPEED = 10.0  # of a simulator that `connect` starts: API seconds in a real one
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine."""
CALL_SECONDS = 600.0
"""Real seconds in which an endpoint that does not write a reply should have answered."""
LONGEST_TRANSFER_SECONDS = 3_600.0
"""Real seconds that a batch, or its results, may take on their way."""

_FOREVER_SECONDS = 1e6  # the longest wait of a client that was given none
_IDLE_SECONDS = 120.0  # real ones between two events of a stream, pings among them, after which it is lost
_CONNECT_SECONDS = 10.0
_SHORTEST_TIMEOUT_SECONDS = 10.0  # of a call to a simulator, however fast its time is
_HEADER_BYTES = 1 << 17  # gateways add long headers, and an answer that cannot be read is paid for
_PART_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 23
_MOST_TRIES, _MOST_UNHEARD = 8, 3  # of a free call, and of one that gets no answer at all
_SHORTEST_SECRET = 12
_MESSAGES, _BATCHES = "/v1/messages", "/v1/messages/batches"
_UNREAD = {"x-stainless-raw-response": "stream"}  # so the SDK leaves the body unread
_SIMULATOR_HEADER = "claudescale-simulator"
_numbers = itertools.count(1)
_KEY = re.compile(r"(?![\"'`])[!-~]+(?<![\"'`])")
_ADDRESS = re.compile(r"https?://(\[[\da-fA-F:]+\]|[^/@?#%:\s]+)(:\d{1,5})?(/[^?#\s]*)?")
_PRIVATE = re.compile(r"(10|127|192\.168|172\.(1[6-9]|2\d|3[01]))\.[\d.]+$")
_log = logging.getLogger("claudescale.api")


# ------------------------------------------------------------------------------------------------- the wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Which API answers: part of every row's key, so that a simulated reply is never a real one."""

    name: str
    simulated: bool
    clock: Clock


class _Unshown(bytes):
    """A body that the SDK's debug log does not spell out: it is the user's text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


class Wire:
    """Sends requests over a copy of a client, bound to the loop it is first used on.

    Spends: tokens.

    Parameters
    ----------
    client : AsyncAnthropic
        Whose key, address, headers, hooks, time-out and middleware are used. A transport of the SDK's is
        made anew, as one works on one loop only; an ``http_client`` of the user's is used as it is.
    max_tokens : int
        Longest reply; very long ones get more than the SDK's ten minutes, and are streamed.

    Raises
    ------
    PlanError
        The user's ``http_client`` is closed, or belongs to another event loop.
    """

    def __init__(self, client: AsyncAnthropic, max_tokens: int = 1024) -> None:
        import anthropic  # noqa: PLC0415 - slow to import

        http, self._made = _own_transport(client), None
        if http is None:
            http = self._made = transport()
        self._client = _copied(client, http)
        self._streams = streams(max_tokens)
        given, self._connect_seconds = httpx2.Timeout(client.timeout), _CONNECT_SECONDS
        self._timeout_seconds = max(600.0, reply_seconds(max_tokens))
        if given != anthropic.DEFAULT_TIMEOUT:
            self._timeout_seconds = given.read or _FOREVER_SECONDS
            self._connect_seconds = min(given.connect or _CONNECT_SECONDS, _CONNECT_SECONDS)
        # A class that looks at requests before they go, as AWS's does to sign them, needs their bodies whole.
        self.signs_bodies = type(client)._prepare_request is not anthropic.AsyncAnthropic._prepare_request  # noqa: SLF001
        self._simulated, self.clock = False, Clock()

    async def __aenter__(self) -> Self:
        await self.api()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that were made here; the client stays as it is, and what it signs in with."""
        if self._made is not None:
            await self._made.aclose()

    async def api(self) -> Api:
        """Return which API answers there: one free request, and only where a simulator may be.

        Spends: nothing.
        """
        about: dict[str, Any] = {}
        if is_nearby(self._client.base_url):
            self._simulated = True  # or its answer would be refused as one that is not declared
            about = read_object((await self.ask("/simulator", seconds=_CONNECT_SECONDS)).content)
        self._simulated = about.get("simulator") == "claudescale"
        if self._simulated:
            self.clock = Clock(float(about["speed"]), float(about["now"]))
            return Api(name=f"simulator seed={about.get('seed')}", simulated=True, clock=self.clock)
        url = self._client.base_url
        host = url.host or type(self._client).__name__  # Google Cloud's is known at the first call
        name = f"{host}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"
        return Api(name=name, simulated=False, clock=self.clock)

    async def send(self, body: bytes) -> Answer:
        """Return what came back for one body of the Messages API, whatever it is.

        Spends: tokens.
        """
        least = min(self._timeout_seconds, _SHORTEST_TIMEOUT_SECONDS)
        seconds = max(self.clock.real(self._timeout_seconds), least)
        if not self._streams:
            return await self.ask(_MESSAGES, body, seconds=seconds)
        message, streamed = StreamedMessage(), body.rstrip()[:-1] + b',"stream":true}'

        async def take(part: bytes) -> None:
            message.feed(part)

        answer = await self.ask(_MESSAGES, streamed, seconds=seconds, take=take)
        if answer.status is None:
            return answer._replace(partial=message.so_far)
        return answer if answer.status != HTTPStatus.OK else message.answer(answer.headers)

    async def count_tokens(self, request: bytes) -> Answer:
        """Return what the API says of the input tokens of one request.

        Spends: nothing.
        """
        taken = inspect.signature(self._client.messages.count_tokens).parameters
        counted = {name: value for name, value in json.loads(request).items() if name in taken}
        return await self.patiently(f"{_MESSAGES}/count_tokens", json.dumps(counted).encode())

    async def patiently(self, path: str, content: bytes | None = None, **query: Any) -> Answer:
        """Return what came back for a free call, made again where that may help, in API time.

        The SDK's own retries sleep in real seconds: hours for a simulator whose time is fast.

        Spends: nothing.
        """
        for tries in range(1, _MOST_TRIES + 1):
            answer = await self.ask(path, content, query=query)
            over = answer.status == HTTPStatus.OK or verdict(answer).outcome in {"stop", "failed"}
            if over or tries == _MOST_TRIES or (answer.status is None and tries == _MOST_UNHEARD):
                break
            await self.clock.sleep(read_headers(answer.headers).retry_after_seconds or 0.25 * 2**tries)
        return answer

    async def ask(
        self,
        path: str,
        content: bytes | AsyncIterable[bytes] | None = None,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float | None = None,
        take: Take | None = None,
    ) -> Answer:
        """Return what came back for a path, or for JSON that is posted to it as it is.

        A body is passed to `take` as it comes, a batch's results in blocks of whole lines. Where the answer
        then has no status it broke off: what was taken so far is good. A `take` that returns True has enough.

        Spends: what is posted.
        """
        seconds = seconds or min(CALL_SECONDS, self._timeout_seconds)
        is_streamed = take is not None and path == _MESSAGES
        silent_seconds = min(seconds, _IDLE_SECONDS if is_streamed else CALL_SECONDS)
        options: Any = {
            "params": query or {},
            "headers": (headers or {}) | (_UNREAD if take else {}),
            "timeout": httpx2.Timeout(silent_seconds, connect=self._connect_seconds),
        }
        if content is None:
            request = self._client.get(path, cast_to=httpx2.Response, options=options)
        else:
            posted = _Unshown(content) if isinstance(content, bytes) else content
            options["headers"]["content-type"] = "application/json"
            request = self._client.post(path, content=posted, cast_to=httpx2.Response, options=options)
        return await self._answer(path, request, seconds, take)

    async def _answer(self, path: str, request: Awaitable[Any], seconds: float, take: Take | None) -> Answer:
        """Return what came back, whatever happens, and log it: never a text or a key."""
        import anthropic  # noqa: PLC0415 - slow to import

        number, begun = next(_numbers), time.monotonic()
        _log.debug("%s %d sent", path, number)
        answer, response = None, None
        try:
            async with asyncio.timeout(seconds + self._connect_seconds):
                try:
                    response = await request
                except anthropic.APIStatusError as error:
                    response = error.response
                answer = self._read(response)
                if take is not None and answer.status == HTTPStatus.OK:
                    blocks = response.aiter_bytes() if path == _MESSAGES else _blocks_of_lines(response)
                    async for block in blocks:
                        if await take(block):
                            break
        # RequestError: the words of an error break off, which the SDK reads by itself.
        # TypeError: there is no key. ValueError: a header that cannot be sent. InvalidURL: a redirect.
        except (anthropic.AnthropicError, httpx2.RequestError, httpx2.InvalidURL,
                TimeoutError, TypeError, ValueError) as error:  # fmt: skip
            if answer is not None and not isinstance(error, TimeoutError | httpx2.RequestError):
                raise  # of what takes it
            headers = answer.headers if answer else {}
            answer = no_answer(error, self._client.base_url.host)._replace(headers=headers)
        finally:
            if response is not None:
                await response.aclose()
        outcome, took = answer.failure or "answered", time.monotonic() - begun
        _log.debug("%s %d: %s, status %s, %.3f s", path, number, outcome, answer.status, took)
        return answer

    def _read(self, response: httpx2.Response) -> Answer:
        if response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return Answer(None, {}, b"", "connection_error", sent=False, reason=WORDS["reason"]["proxy"])
        headers = plain_headers(response)
        if _SIMULATOR_HEADER in headers and not self._simulated:
            return Answer(None, {}, b"", "simulator_error", sent=False)
        content = response.content if response.is_closed else b""
        for name in ("authorization", "x-api-key") if response.is_error else ():
            secret = response.request.headers.get(name, "").removeprefix("Bearer ")
            if len(secret) >= _SHORTEST_SECRET:  # a gateway's words may repeat what it was sent
                content = content.replace(secret.encode(), b"...")
        return Answer(response.status_code, headers, content)


def plain_headers(response: httpx2.Response) -> dict[str, str]:
    """Return the headers as a dict: each lookup in the response's own takes 5 µs."""
    return {name.decode("latin-1").lower(): text.decode("latin-1") for name, text in response.headers.raw}


async def _blocks_of_lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield a body in blocks of whole lines. The last line of one that broke off is left out."""
    held = bytearray()
    async for part in response.aiter_bytes(_PART_BYTES):
        held += part
        if len(held) >= _BLOCK_BYTES and (end := held.rfind(b"\n") + 1):
            yield bytes(held[:end])
            del held[:end]
    if held:
        yield bytes(held)


def reply_seconds(max_tokens: int) -> float:
    """Return how long the SDK expects the longest reply to take. Source: anthropic 2.14.0 _base_client.py."""
    return max_tokens * 3600 / 128_000


def streams(max_tokens: int) -> bool:
    """Whether replies of up to so many tokens are streamed: a silent connection gets lost in ten minutes."""
    return bool(max_tokens > MESSAGE.nonstreaming_max_tokens)


def listed(answer: Answer) -> list[dict[str, Any]]:
    """Return the entries of a list that an answer shows, such as batches."""
    entries = dig(list, read_object(answer.content), "data") or []
    return [entry for entry in entries if isinstance(entry, dict)]


# --------------------------------------------------------------------------------------- the batch endpoints


class BatchWire:
    """The endpoints of Message Batches, paced to a limit of their own: free, but for what a batch answers.

    Parameters
    ----------
    wire : Wire
        What sends.
    requests_per_minute : float
        Calls to all of these endpoints together.
    """

    def __init__(self, wire: Wire, requests_per_minute: float) -> None:
        self._wire = wire
        self._gap_seconds, self._next_at, self._lock = 60.0 / requests_per_minute, 0.0, asyncio.Lock()

    async def _ask(self, path: str = "", content: Any = None, **options: Any) -> Answer:
        """Return the answer for a path below that of batches, asked when the limit has room for it."""
        async with self._lock:
            now = self._wire.clock.seconds()
            await self._wire.clock.sleep(self._next_at - now)
            self._next_at = max(self._next_at, now) + self._gap_seconds
        return await self._wire.ask(_BATCHES + path, content, **options)

    async def create(self, parts: AsyncIterable[bytes], length: int) -> Answer:
        """Post a batch, once: its answer may be lost and the batch made. Spends: half its rows' price."""
        content = b"".join([part async for part in parts]) if self._wire.signs_bodies else parts
        headers = {"content-length": str(length)}
        return await self._ask(content=content, headers=headers, seconds=LONGEST_TRANSFER_SECONDS)

    async def retrieve(self, batch_id: str) -> Answer:
        """Return what the API says of a batch."""
        return await self._ask(f"/{batch_id}")

    async def cancel(self, batch_id: str) -> Answer:
        """Ask for the end of a batch."""
        return await self._ask(f"/{batch_id}/cancel", b"")

    async def page(self, **query: Any) -> Answer:
        """Return a page of the account's batches, the newest first."""
        return await self._ask(query=query)

    async def results(self, batch_id: str, take: Take) -> Answer:
        """Pass the result lines to `take` in blocks; see `Wire.ask`."""
        headers = {"accept": "application/binary"}
        return await self._ask(
            f"/{batch_id}/results", headers=headers, seconds=LONGEST_TRANSFER_SECONDS, take=take
        )

    async def first_lines(self, batch_id: str) -> bytes | None:
        """Return the first block of a batch's result lines; None where they cannot be read now."""
        blocks: list[bytes] = []

        async def take(block: bytes) -> bool:
            blocks.append(block)
            return True

        await self.results(batch_id, take)
        return blocks[0] if blocks else None


class RenderedBody:
    """A body that is rendered part by part in a thread, while the loop runs. Iterating begins anew.

    `flaw` is why it could not be rendered to its end: what calls the transport hears of a lost connection.
    """

    def __init__(self, render: Callable[[], Iterator[bytes]]) -> None:
        self.flaw: ClaudescaleError | None = None
        self._render = render

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rendered = self._render()
        try:
            while (part := await loops.in_thread(next, rendered, None)) is not None:
                yield part
        except ClaudescaleError as error:
            self.flaw = error
            raise


async def account_limits(client: AsyncAnthropic, known: Limits, model: str) -> Limits:
    """Return limits as the rate-limit API has them for an account and a model, else as they are known.

    Spends: nothing.

    Raises
    ------
    PlanError
        The API cannot be reached, or fails.
    """
    async with Wire(client) as wire:
        answer = await wire.patiently("/v1/organizations/rate_limits")
    if answer.status == HTTPStatus.OK:
        return known.updated(listed(answer), model)
    if answer.status is not None and verdict(answer).outcome in {"stop", "failed"}:
        return known.updated(None, model)  # the key may not ask
    raise unasked(answer, "limits")


def unasked(answer: Answer, subject: str) -> PlanError:
    """Return the error that says why a free call has no answer."""
    why = verdict(answer)
    msg = f"Could not get the {subject} from the API ({why.error}): {why.message or 'no reason given'}."
    return PlanError(f"{msg} Nothing was paid.")


# ------------------------------------------------------------------------------- why there is no answer


def no_answer(error: Exception, host: str) -> Answer:
    """Return the answer that stands for none, with the innermost reason in words; no key is in them."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport
    import anthropic  # noqa: PLC0415 - slow to import
    import httpcore2  # noqa: PLC0415 - comes with httpx2

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ValueError | httpx2.LocalProtocolError) and "header" in str(cause).lower():
            return Answer(None, {}, b"", "unsendable_error", sent=False, reason=WORDS["reason"]["header"])
        if isinstance(cause, aiohttp.ClientConnectorError):  # of a proxy it is another one
            host = f"{cause.host}:{cause.port}"
    lost = (anthropic.APIConnectionError, anthropic.RetryableError)
    if isinstance(error, anthropic.AnthropicError | TypeError) and not isinstance(error, lost):
        return Answer(None, {}, b"", "authentication_error", sent=False)  # the SDK finds no key it can use
    # No connection was made. aiohttp's transport calls a lost one httpx2.ConnectError as well.
    unsent = (httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError, httpcore2.ConnectError,
              aiohttp.ClientConnectorError)  # fmt: skip
    sent = not any(isinstance(cause, unsent) for cause in causes)
    late = isinstance(error, anthropic.APITimeoutError | TimeoutError | httpx2.TimeoutException)
    reasons = [words for cause in reversed(causes) if (words := _in_words(cause, host))]
    reasons.append(type(causes[-1]).__name__)  # the kind will do: its own words may be anything
    return Answer(None, {}, b"", "timeout_error" if late else "connection_error", sent, reasons[0])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, the innermost last."""
    while error is not None:
        yield error
        # httpcore2 leaves its cause as its context; of others that may be what was handled meanwhile.
        hidden = error.__context__ if type(error).__module__.startswith("httpcore2") else None
        error = error.__cause__ or hidden


def _in_words(cause: BaseException, host: str) -> str | None:
    """Return in words why there was no connection; None where the cause is of no known kind."""
    match cause:
        case httpx2.ProxyError():
            return WORDS["reason"]["proxy"]
        case ssl.SSLCertVerificationError(verify_message=detail):  # of the innermost
            return WORDS["reason"]["certificate"].format(host=host, detail=detail)
        case OSError(errno=int(number)) if number:  # of a name that is not known it is below 0
            words = os.strerror(number) if number > 0 else cause.strerror
            return f"{host}: {getattr(cause, 'reason', None) or str(words).lower()}"
    return None


# --------------------------------------------------------------------------------- transports and copies


def transport() -> httpx2.AsyncClient:
    """Return the SDK's aiohttp transport, which no proxy keeps from this machine."""
    import anthropic  # noqa: PLC0415 - slow to import

    here = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
    made: Any = anthropic.DefaultAioHttpClient(event_hooks={"response": [_see_redirect]}, mounts=here)
    for part in filter(None, (made._transport, *made._mounts.values())):  # noqa: SLF001 - not public
        part.client = functools.partial(_session, part)  # made when it is needed, on the loop that needs it
    made.claudescale = True  # not the user's own: a run may make itself another
    return cast("httpx2.AsyncClient", made)


def _session(part: Any) -> Any:
    """Return the session of an aiohttp transport: as its own, but with long headers and TCP keep-alive."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport

    connector = aiohttp.TCPConnector(
        keepalive_timeout=part.limits.keepalive_expiry,
        ssl=part.ssl_context,
        limit=part.limits.max_connections or 0,
        socket_factory=_kept_alive,
    )
    long: Any = {"max_line_size": _HEADER_BYTES, "max_field_size": _HEADER_BYTES}
    session = aiohttp.ClientSession(connector=connector, **long)
    weakref.finalize(part, _close, session)
    return session


def _close(session: Any) -> None:
    """Close a session that nobody has closed: a script may end without it."""
    with suppress(StopIteration, RuntimeError):  # the loop that it could wait on may be over
        session.close().send(None)


# The first of them registers the end of all. A run registers its own later, which so comes first: what is in
# flight is paid.
weakref.finalize(_close, bool)


def _kept_alive(address: Any) -> socket.socket:
    """Return a socket as the SDK's default transport makes it. Source: anthropic 2.14.0 _base_client.py."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5), ("TCP_KEEPIDLE", 60)):
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


async def _see_redirect(response: httpx2.Response) -> None:
    """Let a redirect be followed that sends the same request to the same place, with the key; no other."""
    if response.has_redirect_location:
        here = response.request.url
        elsewhere = here.join(response.headers["location"]).origin != here.origin
        if elsewhere or response.status_code not in {307, 308}:  # after others a POST becomes a GET
            response.headers[NOT_FOLLOWED] = response.headers.pop("location")


def has_own_transport(client: AsyncAnthropic) -> bool:
    """Whether the user gave a client its ``http_client``: it is neither the SDK's nor ours."""
    from anthropic._base_client import AsyncHttpxClientWrapper  # noqa: PLC0415 - the SDK's own kind

    http = client._client  # noqa: SLF001 - there is no public name
    return not isinstance(http, AsyncHttpxClientWrapper) and not hasattr(http, "claudescale")


def _own_transport(client: AsyncAnthropic) -> httpx2.AsyncClient | None:
    """Return the ``http_client`` that the user gave a client, ready for this loop; None where it has none."""
    if not has_own_transport(client):
        return None
    http: httpx2.AsyncClient = client._client  # noqa: SLF001 - there is no public name
    here, home = asyncio.get_running_loop(), getattr(http, "claudescale_loop", None)
    used = http._state.name != "UNOPENED"  # noqa: SLF001 - there is no public name
    if http.is_closed or (used and (home() is not here if home else loops.is_background(here))):
        raise PlanError(WORDS["client"]["http_client"])
    http.claudescale_loop = weakref.ref(here)  # type: ignore[attr-defined]
    return http


def _copied(client: AsyncAnthropic, http: httpx2.AsyncClient) -> AsyncAnthropic:
    """Return the client with another transport and no retries; all else of it is kept."""
    # Not by the SDK's `copy`: it calls `__init__`, which a class of the user's may have its own of.
    copied, kind = copy.copy(client), type(client)
    for name in list(vars(copied)):
        if isinstance(getattr(kind, name, None), functools.cached_property):
            del vars(copied)[name]  # it knows the original, and would send over its transport
    copied._client, copied.max_retries = http, 0  # noqa: SLF001
    copied._middleware_chain = copied._build_middleware_chain()  # noqa: SLF001 - the one there knows it too
    return copied


# --------------------------------------------------------------------------------------------- the client


_connected: list[AsyncAnthropic] = []  # the one that `connect` made last


def connect(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    simulate: bool | None = None,
    **simulator: Any,
) -> AsyncAnthropic:
    """Return a client of the Claude API, or of a simulator where the SDK finds no key. One line says which.

    It uses the SDK's aiohttp transport, which takes a third of the processor time of the default one. A run
    works on a copy without the SDK's retries, because it retries by itself.

    Spends: nothing.

    Parameters
    ----------
    api_key : str, optional
        The default is what the SDK finds: ``ANTHROPIC_API_KEY``, ``ANTHROPIC_AUTH_TOKEN``, a profile, or
        workload identity.
    base_url : str, optional
        The default is ``ANTHROPIC_BASE_URL``, or the API itself.
    simulate : bool, optional
        True starts a simulator even if there is a key; False never does.
    **simulator
        For `claudescale.Simulator`: ``tier``, ``speed``, ``seed``, ``faults``, ... They configure the
        simulator if one is started. With a key they are ignored, and the same cell works with and without a
        key. The default is ``speed=10``.

    Raises
    ------
    PlanError
        The key, the address, or what the SDK finds to sign in with is not usable.
    """
    import anthropic  # noqa: PLC0415 - slow to import

    if simulate:
        return _latest(_simulated(simulator))
    url = os.environ.get("ANTHROPIC_BASE_URL") if base_url is None else base_url
    if url is not None:
        _check_address(url)
    try:
        client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, http_client=transport())
    except anthropic.AnthropicError as error:
        raise PlanError(WORDS["client"]["credentials"].format(flaw=error)) from error
    if simulate is None and api_key is None and url is None and not _signs_in(client):
        if (
            name := "ANTHROPIC_FEDERATION_RULE_ID"
        ) in os.environ:  # the SDK passes over one that is not whole
            flaw = f"{name} is set, but not all that it needs."
            raise PlanError(WORDS["client"]["credentials"].format(flaw=flaw))
        return _latest(_simulated(simulator))
    check_client(client)
    host, nearby = client.base_url.host, is_nearby(client.base_url)
    _say(f"Calls go to {host}, in this network." if nearby else f"LIVE: calls to {host} are paid for.")
    return _latest(client)


def current() -> AsyncAnthropic:
    """Return the client that `connect` made last; where there is none, connect. Spends: nothing."""
    return _connected[0] if _connected else connect()


def _latest(client: AsyncAnthropic) -> AsyncAnthropic:
    _connected[:] = [client]
    return client


def _signs_in(client: AsyncAnthropic) -> bool:
    """Whether a client has any credentials."""
    sent = {name.lower() for name in client.default_headers}
    return bool(
        client.api_key or client.auth_token or client.credentials or sent & {"x-api-key", "authorization"}
    )


def check_client(client: object, mode: str = "live") -> None:
    """Raise where a client cannot be used; nothing is sent.

    Raises
    ------
    PlanError
        It is no `AsyncAnthropic`, has no key, or one that cannot be sent, or an address that cannot be
        reached, or has no batches and `mode` takes them.
    """
    import anthropic  # noqa: PLC0415 - slow to import

    kind = type(client)
    if not isinstance(client, anthropic.AsyncAnthropic):
        raise PlanError(WORDS["client"]["kind"].format(kind=kind.__name__))
    if mode != "live" and isinstance(client, anthropic.AsyncAnthropicFoundry):
        raise PlanError(WORDS["client"]["no_batches"].format(kind=kind.__name__, mode=mode))
    for name in ("api_key", "auth_token"):
        key: object = getattr(client, name)
        if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise PlanError(WORDS["client"]["key"].format(name=name, variable=name.upper()))
    # A class with ways of its own to sign in says for itself what it lacks.
    if kind is anthropic.AsyncAnthropic and not _signs_in(client):
        raise PlanError(WORDS["client"]["no_key"])
    # Some platforms' clients find their address at the first call.
    url, later = str(client.base_url), kind.__module__.startswith("anthropic.lib.")
    if url.strip("/") or not later:
        _check_address(url)


def _check_address(url: str) -> None:
    if not _ADDRESS.fullmatch(str(url)):
        shown = re.sub(r"^(\w+://)?.*@", r"\1...@", str(url))  # without a password
        raise PlanError(WORDS["client"]["address"].format(url=repr(shown)[:200]))


def is_nearby(url: httpx2.URL) -> bool:
    """Return whether an address is this machine, or an unencrypted number of its network, as a class uses."""
    return url.host in LOOPBACK or bool(url.scheme == "http" and _PRIVATE.match(url.host))


def _simulated(options: dict[str, Any]) -> AsyncAnthropic:
    import claudescale  # noqa: PLC0415 - its lazy door leads to the stand-in, which knows nothing of us

    simulator = claudescale.Simulator(**{"speed": SIMULATED_SPEED, **options})
    speed = f", {simulator.clock.speed:g} times real time" if simulator.clock.speed != 1 else ""
    _say(f"SIMULATED: replies are synthetic and cost nothing (tier {simulator.desk.terms.name!r}{speed}).")
    return simulator.client(http_client=transport())


def _say(line: str) -> None:
    stream = sys.stdout if loops.in_notebook() else sys.stderr
    stream.write(line + "\n")
