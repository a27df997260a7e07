"""`connect`: the real API where there is a key, the simulator where there is none. It says which."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.errors import PlanError
from claudescale.wire import LOOPBACK

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE")
_simulators: list[Any] = []


def connect(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    simulate: bool | None = None,
    **simulator: Any,
) -> AsyncAnthropic:
    """Return a client of the Claude API, or of a simulator where there is no key. One line says which.

    It uses the SDK's aiohttp transport (a third of the processor time of the default one) and never
    retries: a run decides that in one place.

    Spends: nothing.

    Parameters
    ----------
    api_key : str, optional
        The default is ``ANTHROPIC_API_KEY``, or whatever else the SDK finds.
    base_url : str, optional
        The default is ``ANTHROPIC_BASE_URL``, or the API itself.
    simulate : bool, optional
        True starts a simulator even if there is a key; False never does.
    **simulator
        For `claudescale.Simulator`: ``tier``, ``speed``, ``seed``, ``faults``, ... They say what it is like
        if one is started; with a key they change nothing, so that the same cell works with and without.
    """
    import anthropic  # noqa: PLC0415 - slow to import

    # Only whether: a traceback that shows the values of names has no key to show.
    has_key = bool(api_key) or any(os.environ.get(name) for name in _KEYS)
    if simulate is None:
        simulate = not has_key and base_url is None and "ANTHROPIC_BASE_URL" not in os.environ
    if simulate:
        return _simulated(simulator)
    client = anthropic.AsyncAnthropic(
        api_key=api_key, base_url=base_url, max_retries=0, http_client=anthropic.DefaultAioHttpClient()
    )
    check_client(client)
    host = client.base_url.host
    here = host in LOOPBACK
    _say(f"Calls go to {host}, on this machine." if here else f"LIVE: calls to {host} are paid for.")
    return client


def check_client(client: object) -> None:
    """Raise where a client cannot be used; nothing is sent.

    Spends: nothing.

    Raises
    ------
    PlanError
        It is no `AsyncAnthropic`, or it has no key.
    """
    import anthropic  # noqa: PLC0415 - slow to import

    if not isinstance(client, anthropic.AsyncAnthropic):
        kind = type(client).__name__
        msg = f"The client is a {kind}; a run needs an AsyncAnthropic. Use client = cs.connect()."
        raise PlanError(msg)
    sent = {name.lower() for name in client.default_headers}
    if not (
        client.api_key or client.auth_token or client.credentials or sent & {"x-api-key", "authorization"}
    ):
        msg = (
            "The client has no key. Set ANTHROPIC_API_KEY, use cs.connect(api_key=...), or "
            "cs.connect(simulate=True), which costs nothing."
        )
        raise PlanError(msg)


def _simulated(options: dict[str, Any]) -> AsyncAnthropic:
    from claudescale.simulator import Simulator  # noqa: PLC0415 - an edge, started only here

    simulator = Simulator(**options)
    _simulators.append(simulator)
    speed = f", {simulator.clock.speed:g} times real time" if simulator.clock.speed != 1 else ""
    _say(f"SIMULATED: replies are synthetic and cost nothing (tier {simulator.desk.terms.name!r}{speed}).")
    return simulator.client()


def _say(line: str) -> None:
    stream = sys.stdout if loops.in_notebook() else sys.stderr
    stream.write(line + "\n")
