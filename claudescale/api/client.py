"""The connection to the API: `connect`, and a wire that gives one answer per request, whatever happens.

The SDK's retries are off: a run decides on retries in one place.
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

SIMULATED_SPEED = 10.0  # API seconds per real second of a simulator that `connect` starts
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine."""
CALL_SECONDS = 600.0
"""Real seconds within which an endpoint that writes no reply must answer."""
LONGEST_TRANSFER_SECONDS = 3_600.0
"""Real seconds that the transfer of a batch or its results may take."""

_FOREVER_SECONDS = 1e6  # stands for a client without a time-out
_IDLE_SECONDS = 120.0  # real seconds without an event, pings included, after which a stream is lost
_CONNECT_SECONDS = 10.0
_SHORTEST_TIMEOUT_SECONDS = 10.0  # for a simulator, however fast its clock
_HEADER_BYTES = 1 << 17  # gateways add long headers, and an unreadable answer is billed as well
_PART_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 23
_MOST_TRIES, _MOST_UNHEARD = 8, 3  # of a free call: in all, and if no answer comes
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
    """Which API answers. It is part of every row's key, so a simulated reply never passes for a real one."""

    name: str
    simulated: bool
    clock: Clock


class _Unshown(bytes):
    """A body that the SDK's debug log does not show, because it contains the user's text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


class Wire:
    """Sends requests over a copy of a client, bound to the event loop of its first use.

    Spends: tokens.

    Parameters
    ----------
    client : AsyncAnthropic
        Its key, address, headers, hooks, time-out and middleware are used. The SDK's transport is replaced
        by a new one, as it works on one loop only; a user's own ``http_client`` is used as it is.
    max_tokens : int
        The longest reply. Very long replies get more than the SDK's ten minutes and are streamed.

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
        # A subclass that inspects requests, as AWS's does to sign them, needs their whole bodies.
        self.signs_bodies = type(client)._prepare_request is not anthropic.AsyncAnthropic._prepare_request  # noqa: SLF001
        self._simulated, self.clock = False, Clock()

    async def __aenter__(self) -> Self:
        await self.api()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections made here; the client and its credentials stay usable."""
        if self._made is not None:
            await self._made.aclose()

    async def api(self) -> Api:
        """Return which API answers; one free request is sent, and only where a simulator may be running.

        Spends: nothing.
        """
        about: dict[str, Any] = {}
        if is_nearby(self._client.base_url):
            self._simulated = True  # otherwise its answer would be refused as undeclared
            about = read_object((await self.ask("/simulator", seconds=_CONNECT_SECONDS)).content)
        self._simulated = about.get("simulator") == "claudescale"
        if self._simulated:
            self.clock = Clock(float(about["speed"]), float(about["now"]))
            return Api(name=f"simulator seed={about.get('seed')}", simulated=True, clock=self.clock)
        url = self._client.base_url
        host = url.host or type(self._client).__name__  # Google Cloud's is unknown before the first call
        name = f"{host}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"
        return Api(name=name, simulated=False, clock=self.clock)

    async def send(self, body: bytes) -> Answer:
        """Return the API's answer to one Messages request, or why there is none.

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
        """Return the API's answer on the input tokens of one request.

        Spends: nothing.
        """
        taken = inspect.signature(self._client.messages.count_tokens).parameters
        counted = {name: value for name, value in json.loads(request).items() if name in taken}
        return await self.patiently(f"{_MESSAGES}/count_tokens", json.dumps(counted).encode())

    async def patiently(self, path: str, content: bytes | None = None, **query: Any) -> Answer:
        """Return the answer to a free call, retried where that may help, with back-off in API time.

        The SDK's own retries sleep in real seconds, which are hours to a fast simulator.

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
        """Return the answer to a GET of `path`, or to a POST of `content`, which is sent unchanged.

        The body is passed to `take` as it arrives, a batch's results in blocks of whole lines. An answer
        without a status then means that it broke off; what was taken before that is valid. `take` returns
        True to stop.

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
        """Return the answer, or why there is none, and log the call without texts or keys."""
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
        # RequestError: the body of an error breaks off while the SDK reads it.
        # TypeError: there is no key. ValueError, InvalidURL: a gateway gave a batch an id that fits no URL.
        except (anthropic.AnthropicError, httpx2.RequestError, httpx2.InvalidURL,
                TimeoutError, TypeError, ValueError) as error:  # fmt: skip
            if answer is not None and not isinstance(error, TimeoutError | httpx2.RequestError):
                raise  # from `take`
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
            if len(secret) >= _SHORTEST_SECRET:  # a gateway's error may echo the key
                content = content.replace(secret.encode(), b"...")
        return Answer(response.status_code, headers, content)


def plain_headers(response: httpx2.Response) -> dict[str, str]:
    """Return the headers as a dict: each lookup in the response's own headers takes 5 µs."""
    return {name.decode("latin-1").lower(): text.decode("latin-1") for name, text in response.headers.raw}


async def _blocks_of_lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield a body in blocks of whole lines; if it breaks off, the unfinished line is dropped."""
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
    """Whether replies of up to `max_tokens` are streamed: a silent connection is lost after ten minutes."""
    return bool(max_tokens > MESSAGE.nonstreaming_max_tokens)


def listed(answer: Answer) -> list[dict[str, Any]] | None:
    """Return the entries of an answer that is a list, such as one of batches; None where it is no list."""
    entries = dig(list, read_object(answer.content), "data")
    return None if entries is None else [entry for entry in entries if isinstance(entry, dict)]


# --------------------------------------------------------------------------------------- the batch endpoints


class BatchWire:
    """The Message Batches endpoints, paced to their own rate limit; only the rows of a batch are billed.

    Parameters
    ----------
    wire : Wire
        Sends the calls.
    requests_per_minute : float
        Calls to all of these endpoints together.
    """

    def __init__(self, wire: Wire, requests_per_minute: float) -> None:
        self._wire = wire
        self._gap_seconds, self._next_at, self._lock = 60.0 / requests_per_minute, 0.0, asyncio.Lock()

    async def _ask(self, path: str = "", content: Any = None, **options: Any) -> Answer:
        """Return the answer to a call below the batches path, sent when the rate limit has room for it."""
        async with self._lock:
            now = self._wire.clock.seconds()
            await self._wire.clock.sleep(self._next_at - now)
            self._next_at = max(self._next_at, now) + self._gap_seconds
        return await self._wire.ask(_BATCHES + path, content, **options)

    async def create(self, parts: AsyncIterable[bytes], length: int) -> Answer:
        """Create a batch, without retry: it may exist if the answer is lost. Spends: half its rows' price."""
        content = b"".join([part async for part in parts]) if self._wire.signs_bodies else parts
        headers = {"content-length": str(length)}
        return await self._ask(content=content, headers=headers, seconds=LONGEST_TRANSFER_SECONDS)

    async def retrieve(self, batch_id: str) -> Answer:
        """Return the API's answer on the state of a batch."""
        return await self._ask(f"/{batch_id}")

    async def cancel(self, batch_id: str) -> Answer:
        """Ask the API to cancel a batch."""
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
    """A body rendered part by part in a thread, so that the loop keeps running. Iterating starts over.

    `flaw` is the error that ended the rendering; the transport's caller sees only a lost connection.
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
    """Return the rate-limit API's limits for an account and a model, or the known ones if it has none.

    Spends: nothing.

    Raises
    ------
    PlanError
        The API cannot be reached, or fails.
    """
    async with Wire(client) as wire:
        answer = await wire.patiently("/v1/organizations/rate_limits")
    if answer.status == HTTPStatus.OK:
        return known.updated(listed(answer) or [], model)
    if answer.status is not None and verdict(answer).outcome in {"stop", "failed"}:
        return known.updated(None, model)  # the key may not read them
    raise unasked(answer, "limits")


def unasked(answer: Answer, subject: str) -> PlanError:
    """Return the error that says why a free call failed."""
    why = verdict(answer)
    msg = f"Could not get the {subject} from the API ({why.error}): {why.message or 'no reason given'}."
    return PlanError(f"{msg} Nothing was paid.")


# ------------------------------------------------------------------------------- why there is no answer


def no_answer(error: Exception, host: str) -> Answer:
    """Return an `Answer` for a failed call, with the innermost reason in words and never a key."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport
    import anthropic  # noqa: PLC0415 - slow to import
    import httpcore2  # noqa: PLC0415 - comes with httpx2

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ValueError | httpx2.LocalProtocolError) and "header" in str(cause).lower():
            return Answer(None, {}, b"", "unsendable_error", sent=False, reason=WORDS["reason"]["header"])
        if isinstance(cause, aiohttp.ClientConnectorError):  # its host is the proxy's, if any
            host = f"{cause.host}:{cause.port}"
    lost = (anthropic.APIConnectionError, anthropic.RetryableError)
    if isinstance(error, anthropic.AnthropicError | TypeError) and not isinstance(error, lost):
        return Answer(None, {}, b"", "authentication_error", sent=False)  # the SDK finds no usable key
    # No connection was made. aiohttp's transport raises httpx2.ConnectError for a lost one as well.
    unsent = (httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError, httpcore2.ConnectError,
              aiohttp.ClientConnectorError)  # fmt: skip
    sent = not any(isinstance(cause, unsent) for cause in causes)
    late = isinstance(error, anthropic.APITimeoutError | TimeoutError | httpx2.TimeoutException)
    reasons = [words for cause in reversed(causes) if (words := _in_words(cause, host))]
    reasons.append(type(causes[-1]).__name__)  # only the class: its message may contain anything
    return Answer(None, {}, b"", "timeout_error" if late else "connection_error", sent, reasons[0])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the innermost last."""
    while error is not None:
        yield error
        # httpcore2 sets only the context; elsewhere that may be an unrelated error being handled.
        hidden = error.__context__ if type(error).__module__.startswith("httpcore2") else None
        error = error.__cause__ or hidden


def _in_words(cause: BaseException, host: str) -> str | None:
    """Return why there was no connection, in words; None where the cause is of an unknown kind."""
    match cause:
        case httpx2.ProxyError():
            return WORDS["reason"]["proxy"]
        case ssl.SSLCertVerificationError(verify_message=detail):  # aiohttp's own subclass lacks it
            return WORDS["reason"]["certificate"].format(host=host, detail=detail)
        case OSError(errno=int(number)) if number:  # negative for an unknown host name
            words = os.strerror(number) if number > 0 else cause.strerror
            return f"{host}: {getattr(cause, 'reason', None) or str(words).lower()}"
    return None


# --------------------------------------------------------------------------------- transports and copies


def transport() -> httpx2.AsyncClient:
    """Return the SDK's aiohttp transport, which uses no proxy to reach this machine."""
    import anthropic  # noqa: PLC0415 - slow to import

    here = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
    made: Any = anthropic.DefaultAioHttpClient(event_hooks={"response": [_see_redirect]}, mounts=here)
    for part in filter(None, (made._transport, *made._mounts.values())):  # noqa: SLF001 - not public
        part.client = functools.partial(_session, part)  # made when first needed, on the loop that needs it
    made.claudescale = True  # ours, not the user's: a run may replace it
    return cast("httpx2.AsyncClient", made)


def _session(part: Any) -> Any:
    """Return a session like an aiohttp transport's own, but with long headers and TCP keep-alive."""
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
    """Close a session that was left open, as a script may leave it at its end."""
    with suppress(StopIteration, RuntimeError):  # its event loop may be closed already
        session.close().send(None)


# The first finalizer registers weakref's exit hook. A run's own hook, registered later, therefore runs first:
# calls in flight are billed, so their answers must be collected.
weakref.finalize(_close, bool)


def _kept_alive(address: Any) -> socket.socket:
    """Return a socket with the options of the SDK's transport. Source: anthropic 2.14.0 _base_client.py."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5), ("TCP_KEEPIDLE", 60)):
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


async def _see_redirect(response: httpx2.Response) -> None:
    """Allow only redirects that send the same request, with its key, to the same origin."""
    if response.has_redirect_location:
        here = response.request.url
        elsewhere = here.join(response.headers["location"]).origin != here.origin
        if elsewhere or response.status_code not in {307, 308}:  # others turn a POST into a GET
            response.headers[NOT_FOLLOWED] = response.headers.pop("location")


def has_own_transport(client: AsyncAnthropic) -> bool:
    """Whether a client's ``http_client`` is the user's own, neither the SDK's nor ours."""
    from anthropic._base_client import AsyncHttpxClientWrapper  # noqa: PLC0415 - the SDK's own kind

    http = client._client  # noqa: SLF001 - there is no public name
    return not isinstance(http, AsyncHttpxClientWrapper) and not hasattr(http, "claudescale")


def _own_transport(client: AsyncAnthropic) -> httpx2.AsyncClient | None:
    """Return the user's own ``http_client``, checked for this loop; None where the client has none."""
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
    """Return a copy of a client with another transport and no retries, and otherwise the same."""
    # Not with the SDK's `copy`: it calls `__init__`, which a user's subclass may override.
    copied, kind = copy.copy(client), type(client)
    for name in list(vars(copied)):
        if isinstance(getattr(kind, name, None), functools.cached_property):
            del vars(copied)[name]  # it refers to the original and its transport
    copied._client, copied.max_retries = http, 0  # noqa: SLF001
    copied._middleware_chain = copied._build_middleware_chain()  # noqa: SLF001 - the copied one refers to the original
    return copied


# --------------------------------------------------------------------------------------------- the client


_connected: list[AsyncAnthropic] = []  # holds the client that `connect` made last


def connect(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    simulate: bool | None = None,
    **simulator: Any,
) -> AsyncAnthropic:
    """Return a client of the Claude API, or of a simulator where the SDK finds no key, and print which.

    It uses the SDK's aiohttp transport, which takes a third of the processor time of the default one. A run
    works on a copy with the SDK's retries turned off, because the run retries itself.

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
        simulator if one is started. With a key they are ignored, so the same cell works with and without a
        key. The default is ``speed=10``.

    Raises
    ------
    PlanError
        The key, the address, or the credentials that the SDK finds are not usable.
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
        if (name := "ANTHROPIC_FEDERATION_RULE_ID") in os.environ:  # the SDK ignores an incomplete one
            flaw = f"{name} is set, but not all that it needs."
            raise PlanError(WORDS["client"]["credentials"].format(flaw=flaw))
        return _latest(_simulated(simulator))
    check_client(client)
    host, nearby = client.base_url.host, is_nearby(client.base_url)
    _say(f"Calls go to {host}, in this network." if nearby else f"LIVE: calls to {host} are paid for.")
    return _latest(client)


def current() -> AsyncAnthropic:
    """Return the client that `connect` made last; connect if there is none. Spends: nothing."""
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
    """Raise if a client cannot be used; nothing is sent.

    Raises
    ------
    PlanError
        The client is not an `AsyncAnthropic`, its key is missing or cannot be sent, its address is not
        valid, or `mode` needs batches and it has none.
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
    # A subclass with its own way to sign in reports what it lacks.
    if kind is anthropic.AsyncAnthropic and not _signs_in(client):
        raise PlanError(WORDS["client"]["no_key"])
    # Some platforms' clients learn their address only at the first call.
    url, later = str(client.base_url), kind.__module__.startswith("anthropic.lib.")
    if url.strip("/") or not later:
        _check_address(url)


def _check_address(url: str) -> None:
    if not _ADDRESS.fullmatch(str(url)):
        shown = re.sub(r"^(\w+://)?.*@", r"\1...@", str(url))  # hides a password
        raise PlanError(WORDS["client"]["address"].format(url=repr(shown)[:200]))


def is_nearby(url: httpx2.URL) -> bool:
    """Whether an address is this machine, or a private IP address over plain HTTP, as in a classroom."""
    return url.host in LOOPBACK or bool(url.scheme == "http" and _PRIVATE.match(url.host))


def _simulated(options: dict[str, Any]) -> AsyncAnthropic:
    import claudescale  # noqa: PLC0415 - the package loads its simulator lazily

    simulator = claudescale.Simulator(**{"speed": SIMULATED_SPEED, **options})
    speed = f", {simulator.clock.speed:g} times real time" if simulator.clock.speed != 1 else ""
    _say(f"SIMULATED: replies are synthetic and cost nothing (tier {simulator.desk.terms.name!r}{speed}).")
    return simulator.client(http_client=transport())


def _say(line: str) -> None:
    stream = sys.stdout if loops.in_notebook() else sys.stderr
    stream.write(line + "\n")
