"""The wire to the Messages API: one request, one answer, whatever happens. The SDK never retries here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claudescale.clock import Clock
from claudescale.verdicts import Answer, read_object

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine: only they are asked whether they are a simulator."""
_CONNECT_SECONDS = 10.0
_SHORTEST_TIMEOUT_SECONDS = 10.0
_SIMULATOR_HEADER = "claudescale-simulator"


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
        import anthropic  # noqa: PLC0415 - slow to import

        try:
            async with asyncio.timeout(self._timeout_seconds + _CONNECT_SECONDS):
                response = await self._post(body)
        except anthropic.APIStatusError as error:
            response = error.response
        except (anthropic.APITimeoutError, TimeoutError) as error:
            return Answer(None, {}, b"", "timeout_error", sent=_was_sent(error))
        except (anthropic.APIConnectionError, anthropic.RetryableError) as error:
            return Answer(None, {}, b"", "connection_error", sent=_was_sent(error))
        except (anthropic.AnthropicError, TypeError):  # the SDK finds no key, or none it can use
            return Answer(None, {}, b"", "authentication_error", sent=False)
        # A plain dict, read once: the response's own takes 5 µs for each name that is looked up.
        headers = {
            name.decode("ascii", "replace").lower(): value.decode("latin-1")
            for name, value in response.headers.raw
        }
        if _SIMULATOR_HEADER in headers and not self._simulated:
            return Answer(None, {}, b"", "simulator_error", sent=False)
        return Answer(response.status_code, headers, response.content)

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


def _is_traced(client: AsyncAnthropic) -> bool:
    """Whether the client's calls have spans: its option, and somebody to make them."""
    from opentelemetry import trace  # noqa: PLC0415 - comes with anthropic

    option = client.open_telemetry
    given = option.get("tracer_provider") or trace.get_tracer_provider()
    idle = isinstance(given, trace.NoOpTracerProvider | trace.ProxyTracerProvider)
    return option["traces"]["enabled"] and not idle
