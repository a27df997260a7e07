"""The wire to the API: one request, one answer, whatever happens. The SDK never retries here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claudescale.clock import Clock
from claudescale.verdicts import Answer, read_object

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine

    import httpx2
    from anthropic import AsyncAnthropic

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine: only they are asked whether they are a simulator."""
CALL_SECONDS = 600.0
"""Real seconds in which an endpoint that does not write a reply should have answered."""
LONGEST_TRANSFER_SECONDS = 3_600.0
"""Real seconds that a batch, or its results, may take on their way."""
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
_SIMULATOR_HEADER = "claudescale-simulator"
_SHORTEST_SECRET = 12


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
        Whose key, address, headers and middleware are used. Its own transport is not: a client works on
        one loop only.
    max_tokens : int
        Longest reply; very long ones get more than the SDK's ten minutes.
    timeout_seconds : float, optional
        API seconds after which a call is given up, instead of that.
    """

    def __init__(
        self, client: AsyncAnthropic, max_tokens: int = 1024, *, timeout_seconds: float | None = None
    ) -> None:
        import anthropic  # noqa: PLC0415 - slow to import

        loopback = client.base_url.host in LOOPBACK
        self._client = client.copy(
            http_client=anthropic.DefaultAioHttpClient(trust_env=not loopback), max_retries=0
        )
        self._loopback = loopback
        self._simulated = False
        self._timeout_seconds = timeout_seconds or max(600.0, max_tokens * 3600 / 128_000)
        self._traced = _is_traced(client)
        self._secrets = _secrets(client)

    async def api(self) -> Api:
        """Return which API answers there: one free request, and only to this machine itself.

        Spends: nothing.
        """
        url = self._client.base_url
        port = f":{url.port}" if url.port else ""
        name = f"{url.host}{port}{url.path.rstrip('/')}"
        about = await self._about() if self._loopback else {}
        if about.get("simulator") != "claudescale":
            return Api(name=name, simulated=False, clock=Clock())
        self._simulated = True
        clock = Clock(float(about["speed"]), float(about["now"]))
        self._timeout_seconds = max(clock.real(self._timeout_seconds), _SHORTEST_TIMEOUT_SECONDS)
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
        return await self._answered(lambda: self._post(body), self._timeout_seconds)

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
            return _failed(error)
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
            async with asyncio.timeout(seconds + _CONNECT_SECONDS):
                response = await request()
        except anthropic.APIStatusError as error:
            response = error.response
        # The last one: the words of an error break off, which the SDK reads by itself.
        except (anthropic.AnthropicError, TimeoutError, TypeError, httpx2.RequestError) as error:
            return _failed(error)
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
        timeout = httpx2.Timeout(CALL_SECONDS, connect=_CONNECT_SECONDS)
        options: Any = {"headers": headers, "timeout": timeout}
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

        timeout = httpx2.Timeout(self._timeout_seconds, connect=_CONNECT_SECONDS)
        if not self._traced:
            headers = {"content-type": "application/json"}
            return await self._client.post(
                "/v1/messages",
                content=_Unshown(body),
                cast_to=httpx2.Response,
                options={"headers": headers, "timeout": timeout},
            )
        fields = json.loads(body)
        raw = await self._client.messages.with_raw_response.create(
            **{name: fields.pop(name) for name in ("model", "max_tokens", "messages")},
            extra_body=fields,
            timeout=timeout,
        )
        response: httpx2.Response = raw.http_response
        return response

    async def close(self) -> None:
        """Close the copy's connections; the client it was made from is untouched."""
        await self._client.close()


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


def _failed(error: Exception) -> Answer:
    """Return the answer that stands for none."""
    import anthropic  # noqa: PLC0415 - slow to import
    import httpx2  # noqa: PLC0415 - comes with anthropic

    if isinstance(error, anthropic.APITimeoutError | TimeoutError | httpx2.TimeoutException):
        return Answer(None, {}, b"", "timeout_error", sent=_was_sent(error))
    if isinstance(error, anthropic.APIConnectionError | anthropic.RetryableError | httpx2.RequestError):
        return Answer(None, {}, b"", "connection_error", sent=_was_sent(error))
    # The SDK finds no key, or none it can use: an AnthropicError, or a TypeError.
    return Answer(None, {}, b"", "authentication_error", sent=False)


def _was_sent(error: BaseException) -> bool:
    """Whether a request may have reached the API: not if no connection was made for it."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport
    import httpx2  # noqa: PLC0415 - comes with anthropic

    unsent = (httpx2.ConnectTimeout, httpx2.PoolTimeout, aiohttp.ClientConnectorError)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, unsent):
            return False
        cause = cause.__cause__
    return True


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
