"""The wire to the API: one request, one answer, whatever happens. The SDK never retries here."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
import math
import os
import socket
import ssl
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from claudescale import loops
from claudescale.api.answers import NOT_FOLLOWED, Answer, read_object
from claudescale.api.streamed import StreamedMessage
from claudescale.clock import Clock
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterator

    import httpx2
    from anthropic import AsyncAnthropic

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine: only they are asked whether they are a simulator."""
CALL_SECONDS = 600.0
"""Real seconds in which an endpoint that does not write a reply should have answered."""
LONGEST_TRANSFER_SECONDS = 3_600.0
"""Real seconds that a batch, or its results, may take on their way."""
LONGEST_PLAIN_TOKENS = 21_333
"""Above it a reply may take longer than ten minutes, and connections that are silent so long get lost.

Source: anthropic 2.14.0 _base_client.py, which refuses to ask for more than this without a stream.
"""
_IDLE_SECONDS = 120.0
"""Real seconds between two events of a stream, pings among them, after which it is lost."""
_HEADER_BYTES = 1 << 17
"""Of one line of an answer's head: gateways add long ones, and an answer that cannot be read is paid for."""
_KEEP_ALIVE = {"TCP_KEEPINTVL": 60, "TCP_KEEPCNT": 5, "TCP_KEEPIDLE": 60}
"""As the SDK's default transport has it. Source: anthropic 2.14.0 _base_client.py."""
_STREAMED = {"x-stainless-raw-response": "stream"}  # so the SDK leaves the body unread
_COUNTED = {
    "messages",
    "model",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "cache_control",
}
"""Fields that counting takes. Source: anthropic 2.14.0 types/message_count_tokens_params.py."""
_COUNT_SECONDS = 60.0
_PART_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 23
_CONNECT_SECONDS = 10.0
_SHORTEST_TIMEOUT_SECONDS = 10.0
_MOST_REDIRECTS = 3
_SAME_METHOD = {307, 308}
"""Redirects after which a POST is still one: after others it becomes a GET, without its body."""
_HARMLESS = {"accept", "accept-encoding", "host", "user-agent"}
_SIMULATOR_HEADER = "claudescale-simulator"
_SHORTEST_SECRET = 12
_PROXY_407 = "the proxy wants a user name and password (407): HTTPS_PROXY=http://user:password@host:port"
_homes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # the loop a user's transport is on


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
        Longest reply; very long ones get more than the SDK's ten minutes.
    timeout_seconds : float, optional
        API seconds after which a call is given up, instead of that.

    Raises
    ------
    PlanError
        The user's ``http_client`` is closed, or belongs to another event loop.
    """

    def __init__(
        self, client: AsyncAnthropic, max_tokens: int = 1024, *, timeout_seconds: float | None = None
    ) -> None:
        loopback = client.base_url.host in LOOPBACK
        own = own_transport(client)
        if own is not None:
            _settle(own)
        self._made = transport(here=loopback) if own is None else None
        self._client = _copied(client, own or self._made)
        self._signs_bodies = _signs_bodies(client)
        self._loopback = loopback
        self._simulated = False
        given, self._connect_seconds = _time_out(client)
        self._given_seconds = given
        self._timeout_seconds = timeout_seconds or given or max(600.0, max_tokens * 3600 / 128_000)
        self._streams = streams(max_tokens)
        self._traced = _is_traced(client)
        self._secrets = _secrets(client)

    async def api(self) -> Api:
        """Return which API answers there: one free request, and only to this machine itself.

        Spends: nothing.
        """
        url = self._client.base_url
        port = f":{url.port}" if url.port else ""
        host = url.host or type(self._client).__name__  # Google Cloud's is known at the first call
        name = f"{host}{port}{url.path.rstrip('/')}"
        about = await self._about() if self._loopback else {}
        if about.get("simulator") != "claudescale":
            return Api(name=name, simulated=False, clock=Clock())
        self._simulated = True
        clock = Clock(float(about["speed"]), float(about["now"]))
        self._timeout_seconds = max(clock.real(self._timeout_seconds), _SHORTEST_TIMEOUT_SECONDS)
        if self._given_seconds is not None:
            self._given_seconds = max(clock.real(self._given_seconds), _SHORTEST_TIMEOUT_SECONDS)
        return Api(name=f"simulator seed={about.get('seed')}", simulated=True, clock=clock)

    async def _about(self) -> dict[str, Any]:
        """Return what a simulator says of itself; nothing where there is none."""
        import anthropic  # noqa: PLC0415 - slow to import
        import httpx2  # noqa: PLC0415 - comes with anthropic

        try:
            response = await self._client.get(
                "/simulator", cast_to=httpx2.Response, options={"timeout": _CONNECT_SECONDS}
            )
        except (anthropic.AnthropicError, TypeError):  # TypeError: no key; the first call will say so
            return {}
        return read_object(response.content)

    async def send(self, body: bytes) -> Answer:
        """Return what came back for one body, whatever it is.

        Spends: tokens.
        """
        if self._streams:
            return await self._streamed(body)
        return await self._answered(lambda: self._post(body), self._timeout_seconds)

    async def _streamed(self, body: bytes) -> Answer:
        """Return the whole answer to one body, which comes in events: no connection is silent for long."""
        import httpx2  # noqa: PLC0415 - comes with anthropic

        opened: list[httpx2.Response] = []

        async def open_it() -> httpx2.Response:
            opened.append(await self._post(body))
            return opened[0]

        message = StreamedMessage()
        answer = await self._answered(open_it, self._timeout_seconds)
        try:
            if answer.status != httpx2.codes.OK:
                return answer
            async with asyncio.timeout(None if math.isinf(self._timeout_seconds) else self._timeout_seconds):
                async for part in opened[0].aiter_bytes():
                    message.feed(part)
        except (TimeoutError, httpx2.RequestError) as error:
            failed = _failed(error, self._client.base_url.host)
            return failed._replace(headers=answer.headers, partial=message.so_far)
        finally:
            for response in opened:
                await response.aclose()
        return message.answer(answer.headers)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes] = b"",
        length: int | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Answer:
        """Return what came back from any endpoint, whatever it is.

        Spends: whatever the endpoint does.

        Parameters
        ----------
        method, path : str
            Such as ``"post"`` and ``"/v1/messages/batches"``.
        body : bytes or async iterable of bytes
            JSON; in parts it is sent as it comes, and never held whole.
        length : int, optional
            Bytes of a body that comes in parts.
        seconds : float
            Real seconds after which the call is given up.
        """
        return await self._answered(lambda: self._request(method, path, body, length), seconds)

    async def count_tokens(self, request: bytes) -> Answer:
        """Return what the API says of the input tokens of one request.

        Spends: nothing.
        """
        fields = {name: value for name, value in json.loads(request).items() if name in _COUNTED}
        content = json.dumps(fields).encode()
        return await self.call("post", "/v1/messages/count_tokens", body=content, seconds=_COUNT_SECONDS)

    async def stream(self, path: str, take: Callable[[bytes], Awaitable[None]]) -> Answer:
        """Pass what an endpoint sends to `take`, in blocks of whole lines, and return how it ended.

        Where the answer has no status it broke off: what was taken so far is good.

        Spends: nothing.
        """
        import httpx2  # noqa: PLC0415 - comes with anthropic

        opened: list[httpx2.Response] = []

        async def open_it() -> httpx2.Response:
            opened.append(await self._opened(path))
            return opened[0]

        answer = await self._answered(open_it, CALL_SECONDS)
        try:
            async with asyncio.timeout(LONGEST_TRANSFER_SECONDS):
                if answer.status == httpx2.codes.OK:
                    await _take_lines(opened[0], take)
        except (TimeoutError, httpx2.RequestError) as error:
            return _failed(error, self._client.base_url.host)
        finally:
            for response in opened:
                await response.aclose()
        return answer

    async def _answered(
        self, request: Callable[[], Coroutine[Any, Any, httpx2.Response]], seconds: float
    ) -> Answer:
        """Return what came back, whatever happens."""
        import anthropic  # noqa: PLC0415 - slow to import
        import httpx2  # noqa: PLC0415 - comes with anthropic

        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds + self._connect_seconds):
                response = await request()
        except anthropic.APIStatusError as error:
            response = error.response
        # RequestError: the words of an error break off, which the SDK reads by itself.
        # ValueError, InvalidURL: a header or an address that cannot be sent.
        except (
            anthropic.AnthropicError,
            TimeoutError,
            TypeError,
            ValueError,
            httpx2.RequestError,
            httpx2.InvalidURL,
        ) as error:
            return _failed(error, self._client.base_url.host)
        if response.status_code == httpx2.codes.PROXY_AUTHENTICATION_REQUIRED:
            return Answer(None, {}, b"", "connection_error", sent=False, reason=_PROXY_407)
        # A plain dict, read once: the response's own takes 5 µs for each name that is looked up.
        headers = {
            name.decode("ascii", "replace").lower(): value.decode("latin-1")
            for name, value in response.headers.raw
        }
        if _SIMULATOR_HEADER in headers and not self._simulated:
            return Answer(None, {}, b"", "simulator_error", sent=False)
        content = response.content if response.is_closed else b""
        if response.is_error:  # a gateway's may repeat what it was sent
            for secret in self._secrets:
                content = content.replace(secret, b"...")
        return Answer(response.status_code, headers, content)

    async def _request(
        self, method: str, path: str, body: bytes | AsyncIterable[bytes], length: int | None
    ) -> httpx2.Response:
        import httpx2  # noqa: PLC0415 - comes with anthropic

        headers = {"content-type": "application/json"} if body else {}
        headers |= {} if length is None else {"content-length": str(length)}
        seconds = CALL_SECONDS if length is not None else self._given_seconds or CALL_SECONDS
        timeout = _time_outs(seconds, self._connect_seconds)
        options: Any = {"headers": headers, "timeout": timeout}
        if self._signs_bodies and not isinstance(body, bytes):
            body = b"".join([part async for part in body])
        content: Any = {"content": _Unshown(body) if isinstance(body, bytes) else body} if body else {}
        ask: Any = getattr(self._client, method)
        response: httpx2.Response = await ask(path, cast_to=httpx2.Response, options=options, **content)
        return response

    async def _opened(self, path: str) -> httpx2.Response:
        """Return an answer whose body is not read yet."""
        import httpx2  # noqa: PLC0415 - comes with anthropic

        timeout = httpx2.Timeout(CALL_SECONDS, connect=_CONNECT_SECONDS)
        options: Any = {"headers": {"accept": "application/binary", **_STREAMED}, "timeout": timeout}
        return await self._client.get(path, cast_to=httpx2.Response, options=options)

    async def _post(self, body: bytes) -> httpx2.Response:
        """Post a body as it is; where OpenTelemetry records, by the method whose spans it knows."""
        import httpx2  # noqa: PLC0415 - comes with anthropic

        silent = min(_IDLE_SECONDS, self._timeout_seconds) if self._streams else self._timeout_seconds
        timeout = _time_outs(silent, self._connect_seconds)
        headers = {"content-type": "application/json"}
        if self._streams:
            body = body.rstrip()[:-1] + b',"stream":true}'
            headers |= {"accept": "text/event-stream", **_STREAMED}
        if not self._traced:
            return await self._client.post(
                "/v1/messages",
                content=_Unshown(body),
                cast_to=httpx2.Response,
                options={"headers": headers, "timeout": timeout},
            )
        fields = json.loads(body)
        given = {name: fields.pop(name) for name in ("model", "max_tokens", "messages")}
        raw = await self._client.messages.with_raw_response.create(
            **given, stream=fields.pop("stream", False), extra_body=fields, timeout=timeout
        )
        response: httpx2.Response = raw.http_response
        return response

    async def close(self) -> None:
        """Close the connections that were made here; the client stays as it is, and what it signs in with."""
        if self._made is not None:
            await self._made.aclose()


async def _take_lines(response: httpx2.Response, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Pass the body on in blocks of whole lines. The last line of a body that broke off is left out."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes(_PART_BYTES):
        parts.append(part)
        size += len(part)
        if size < _BLOCK_BYTES:
            continue
        lines, newline, rest = b"".join(parts).rpartition(b"\n")
        if newline:
            await take(lines + newline)
        parts, size = [rest], len(rest) if newline else 0
    if last := b"".join(parts):
        await take(last)


def _failed(error: Exception, host: str) -> Answer:
    """Return the answer that stands for none, with the innermost reason in words."""
    import anthropic  # noqa: PLC0415 - slow to import
    import httpx2  # noqa: PLC0415 - comes with anthropic

    if flaw := _unsendable(error):
        return Answer(None, {}, b"", "unsendable_error", sent=False, reason=flaw)
    if any(isinstance(cause, httpx2.TooManyRedirects) for cause in _chain(error)):
        return Answer(None, {}, b"", "redirect_error", sent=False, reason="it goes round in a circle")
    sent, reason = _was_sent(error), _reason(error, host)
    if isinstance(error, anthropic.APITimeoutError | TimeoutError | httpx2.TimeoutException):
        return Answer(None, {}, b"", "timeout_error", sent=sent, reason=reason)
    if isinstance(error, anthropic.APIConnectionError | anthropic.RetryableError | httpx2.RequestError):
        return Answer(None, {}, b"", "connection_error", sent=sent, reason=reason)
    # The SDK finds no key, or none it can use: an AnthropicError, or a TypeError.
    return Answer(None, {}, b"", "authentication_error", sent=False)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, the innermost last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        # What it came from alone, not what was handled meanwhile: that may be the user's own trouble.
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        elif type(cause).__module__.startswith("httpcore2"):  # it leaves its cause as its context
            cause = cause.__cause__ or cause.__context__
        else:
            cause = cause.__cause__


def _unsendable(error: BaseException) -> str:
    """Return why no try can send it, in words that show no key; nothing where one might."""
    import httpx2  # noqa: PLC0415 - comes with anthropic

    for cause in _chain(error):
        if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
            return "base_url is no address that begins with https:// or http://"
        # The words of these may show the header, and so the key.
        if isinstance(cause, UnicodeError) or (
            isinstance(cause, ValueError | httpx2.LocalProtocolError) and "header" in str(cause).lower()
        ):
            return (
                "a header has a character that cannot be sent, such as a newline: look at the key, the "
                "credentials and default_headers"
            )
    return ""


def _was_sent(error: BaseException) -> bool:
    """Whether a request may have reached the API: not if no connection was made for it."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport
    import httpcore2  # noqa: PLC0415 - comes with httpx2
    import httpx2  # noqa: PLC0415 - comes with anthropic

    # aiohttp's transport calls a lost connection ConnectError as well; httpx2's own does not.
    unsent = (
        httpx2.ConnectTimeout,
        httpx2.PoolTimeout,
        httpx2.ProxyError,
        httpcore2.ConnectError,
        aiohttp.ClientConnectorError,
    )
    return not any(isinstance(cause, unsent) for cause in _chain(error))


def _reason(error: BaseException, host: str) -> str:
    """Return the innermost cause in words; nothing of a key, a password or a text is in them."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport

    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, aiohttp.ClientConnectorError):  # it may be a proxy that was called
            host = f"{cause.host}:{cause.port}"
        if isinstance(cause, aiohttp.ClientProxyConnectionError):
            host = f"the proxy {host}"
    found = next(filter(None, (_words(cause, host) for cause in reversed(causes))), "")
    return found or type(causes[-1]).__name__  # not its own words: they may be anything


def _words(cause: BaseException, host: str) -> str:
    """Return what one cause means; nothing where it means nothing by itself."""
    import httpx2  # noqa: PLC0415 - comes with anthropic

    words = ""
    if isinstance(cause, httpx2.ProxyError):
        words = _PROXY_407 if "407" in str(cause) else "the proxy does not connect"
    elif isinstance(cause, ssl.SSLCertVerificationError):
        why = f"the certificate of {host} is not trusted ({cause.verify_message})"
        words = f"{why}: set SSL_CERT_FILE to a file of the certificates to trust"
    elif isinstance(cause, ssl.SSLError):
        kind = (cause.reason or "TLS").lower().replace("_", " ")
        words = f"{host} does not speak TLS ({kind}): is it http:// instead of https://?"
    elif isinstance(cause, socket.gaierror):
        words = f"the name of {host} cannot be looked up"
    elif isinstance(cause, httpx2.ConnectTimeout):
        words = f"{host} does not take the connection in time"
    elif isinstance(cause, OSError) and cause.errno is not None:
        words = f"{host}: {os.strerror(cause.errno).lower()}"
    return words


def transport(*, here: bool = False) -> httpx2.AsyncClient:
    """Return the SDK's aiohttp transport; `here` uses no proxy, so that nothing leaves this machine."""
    import anthropic  # noqa: PLC0415 - slow to import
    import httpx2  # noqa: PLC0415 - comes with anthropic

    # Without the environment's proxies, but with its certificates.
    options: dict[str, Any] = {"trust_env": False, "verify": httpx2.create_ssl_context()} if here else {}
    hooks = {"response": [_see_redirect]}
    made: Any = anthropic.DefaultAioHttpClient(max_redirects=_MOST_REDIRECTS, event_hooks=hooks, **options)
    parts = (made._transport, *made._mounts.values())  # noqa: SLF001 - there are no public names
    for part in filter(None, parts):
        part.client = functools.partial(_session, part)  # made when it is needed, on the loop that needs it
    made.claudescale = True  # not the user's own: a run may make itself another
    return cast("httpx2.AsyncClient", made)


async def _see_redirect(response: httpx2.Response) -> None:
    """Let a redirect be followed that sends the same request again to the same place, with the key; no other.

    Results of a batch may lie elsewhere: they are fetched there without the key.
    """
    import httpx2  # noqa: PLC0415 - comes with anthropic

    if not response.has_redirect_location:
        return
    request = response.request
    try:
        led = request.url.join(response.headers["location"])
    except httpx2.InvalidURL:
        return
    here = request.url
    secured = led.host == here.host and (here.scheme, led.scheme) == ("http", "https")
    at_home = led.origin == here.origin or secured
    if at_home and (request.method == "GET" or response.status_code in _SAME_METHOD):
        return
    if request.method == "GET" and here.path.endswith("/results"):
        for name in set(request.headers) - _HARMLESS:
            del request.headers[name]
        return
    response.headers[NOT_FOLLOWED] = response.headers["location"]
    del response.headers["location"]


def _session(part: Any) -> Any:
    """Return the session of an aiohttp transport: as its own, but with long headers and TCP keep-alive."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport

    connector = aiohttp.TCPConnector(
        keepalive_timeout=part.limits.keepalive_expiry,
        ssl=part.ssl_context,
        limit=part.limits.max_connections or 0,
        socket_factory=_kept_alive,
    )
    return aiohttp.ClientSession(
        connector=connector, max_line_size=_HEADER_BYTES, max_field_size=_HEADER_BYTES
    )


def _kept_alive(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def streams(max_tokens: int) -> bool:
    """Whether replies of up to so many tokens are streamed."""
    return max_tokens > LONGEST_PLAIN_TOKENS


def own_transport(client: AsyncAnthropic) -> httpx2.AsyncClient | None:
    """Return the ``http_client`` that the user gave a client; None where it has the SDK's, or ours."""
    from anthropic._base_client import AsyncHttpxClientWrapper  # noqa: PLC0415 - the SDK's own kind

    http: httpx2.AsyncClient = client._client  # noqa: SLF001 - there is no public name
    return None if isinstance(http, AsyncHttpxClientWrapper) or hasattr(http, "claudescale") else http


def _settle(http: httpx2.AsyncClient) -> None:
    """Take the user's transport to this loop; PlanError where it is closed or works on another."""
    here, home = asyncio.get_running_loop(), _homes.get(http)
    fresh = "Give the client one of its own for runs: AsyncAnthropic(http_client=...)."
    if http.is_closed:
        msg = f"The client's http_client is closed. {fresh}"
        raise PlanError(msg)
    used = http._state.name != "UNOPENED"  # noqa: SLF001 - there is no public name
    elsewhere = loops.is_background(here) if home is None else home() is not here
    if used and elsewhere:
        msg = f"The client's http_client has been used on another event loop, and works on one only. {fresh}"
        raise PlanError(msg)
    _homes[http] = weakref.ref(here)


def _copied(client: AsyncAnthropic, http: httpx2.AsyncClient | None) -> AsyncAnthropic:
    """Return the client with another transport and no retries; all else of it is kept.

    A class of the user's may have an `__init__` of its own, which the SDK's `copy` would call.
    """
    assert http is not None
    kind = type(client)
    if kind.__module__.partition(".")[0] == "anthropic":
        copied = client.copy(http_client=http, max_retries=0)
        copied._strict_response_validation = client._strict_response_validation  # noqa: SLF001
        return copied
    copied = copy.copy(client)
    kept = vars(copied)
    for name in list(kept):
        theirs = getattr(kind, name, None)
        if isinstance(theirs, functools.cached_property) or inspect.isfunction(theirs):
            del kept[name]  # it knows the original, and would send over its transport
    copied._client, copied.max_retries = http, 0  # noqa: SLF001
    copied._middleware_chain = copied._build_middleware_chain()  # noqa: SLF001 - the one there knows it too
    return copied


def _signs_bodies(client: AsyncAnthropic) -> bool:
    """Whether a client's class looks at requests before they go, as AWS's does: it needs the body whole."""
    import anthropic  # noqa: PLC0415 - slow to import

    hook = type(client)._prepare_request  # noqa: SLF001 - the SDK's hook for a class of one's own
    # Google Cloud's only adds a header.
    known = (anthropic.AsyncAnthropic, anthropic.AsyncAnthropicGoogleCloud)
    return all(hook is not kind._prepare_request for kind in known)  # noqa: SLF001


def _time_out(client: AsyncAnthropic) -> tuple[float | None, float]:
    """Return the seconds after which the user wants a call given up, and those for a connection.

    None where nothing was said; infinite where it is never to be given up.
    """
    import anthropic  # noqa: PLC0415 - slow to import
    import httpx2  # noqa: PLC0415 - comes with anthropic

    given = client.timeout
    if given == anthropic.DEFAULT_TIMEOUT:
        return None, _CONNECT_SECONDS
    if isinstance(given, httpx2.Timeout):
        connect = _CONNECT_SECONDS if given.connect is None else given.connect
        return math.inf if given.read is None else given.read, connect
    return (math.inf, _CONNECT_SECONDS) if given is None else (float(given), min(given, _CONNECT_SECONDS))


def _time_outs(seconds: float, connect_seconds: float) -> httpx2.Timeout:
    """Return the time-outs of one call."""
    import httpx2  # noqa: PLC0415 - comes with anthropic

    return httpx2.Timeout(None if math.isinf(seconds) else seconds, connect=connect_seconds)


def _secrets(client: AsyncAnthropic) -> list[bytes]:
    """Return what a client signs in with, whatever its form. What is too short to be a key is none."""
    sent = {name.lower(): value for name, value in client.default_headers.items() if isinstance(value, str)}
    given = (client.api_key, client.auth_token, sent.get("x-api-key"), sent.get("authorization"))
    bare = {key.removeprefix("Bearer ").strip() for key in given if key}
    return [key.encode() for key in bare if len(key) >= _SHORTEST_SECRET]


def _is_traced(client: AsyncAnthropic) -> bool:
    """Whether the client's calls have spans: its option, and somebody to make them."""
    from opentelemetry import trace  # noqa: PLC0415 - comes with anthropic

    option = client.open_telemetry
    given = option.get("tracer_provider") or trace.get_tracer_provider()
    idle = isinstance(given, trace.NoOpTracerProvider | trace.ProxyTracerProvider)
    return option["traces"]["enabled"] and not idle
