"""`connect`: the real API where there is a key, the simulator where there is none. It says which."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.api import client as wire
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_RULE = "ANTHROPIC_FEDERATION_RULE_ID"
_OTHERS = ("Bedrock", "Vertex")  # clients of the SDK that speak another wire
_MOST_SHOWN = 200
_simulators: list[Any] = []


def connect(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    simulate: bool | None = None,
    **simulator: Any,
) -> AsyncAnthropic:
    """Return a client of the Claude API, or of a simulator where the SDK finds no key. One line says which.

    It uses the SDK's aiohttp transport (a third of the processor time of the default one). A run works on a
    copy that never retries, as it decides that in one place.

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
        For `claudescale.Simulator`: ``tier``, ``speed``, ``seed``, ``faults``, ... They say what it is like
        if one is started; with a key they change nothing, so that the same cell works with and without.

    Raises
    ------
    PlanError
        The key or the address cannot work, or a profile is broken.
    """
    if simulate:
        return _simulated(simulator)
    client = _found(api_key, base_url)
    if (
        simulate is None
        and base_url is None
        and not _signs_in(client)
        and "ANTHROPIC_BASE_URL" not in os.environ
    ):
        _check_nothing_is_broken()
        return _simulated(simulator)
    check_client(client)
    host = client.base_url.host
    here = f"Calls go to {host}, on this machine." if host in wire.LOOPBACK else ""
    _say((here or f"LIVE: calls to {host} are paid for.") + _by(client))
    return client


def _found(api_key: str | None, base_url: str | None) -> AsyncAnthropic:
    """Return the SDK's client, with whatever credentials it finds."""
    import anthropic  # noqa: PLC0415 - slow to import
    import httpx2  # noqa: PLC0415 - comes with anthropic

    if api_key is not None:
        _check_key("api_key", api_key)
    if base_url is not None and not isinstance(base_url, str | httpx2.URL):
        msg = f"base_url is a {type(base_url).__name__}; it is a str, such as base_url='https://...'."
        raise PlanError(msg)
    try:
        return anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, http_client=wire.transport())
    except httpx2.InvalidURL:
        msg = f"base_url={_shown(base_url)} is no address. Type base_url='https://...'."
        raise PlanError(msg) from None
    except anthropic.AnthropicError as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> PlanError:
    msg = (
        f"The SDK finds credentials that it cannot use: {error} Mend that, use cs.connect(api_key=...), or "
        "cs.connect(simulate=True), which costs nothing."
    )
    return PlanError(msg)


def _check_nothing_is_broken() -> None:
    """Raise where there are credentials that the SDK passes over without a word."""
    import anthropic  # noqa: PLC0415 - slow to import
    from anthropic.lib.credentials import CredentialsFile  # noqa: PLC0415 - slow to import

    if os.environ.get(_RULE):
        msg = (
            f"{_RULE} is set, but it takes ANTHROPIC_ORGANIZATION_ID and ANTHROPIC_IDENTITY_TOKEN (or "
            "ANTHROPIC_IDENTITY_TOKEN_FILE) as well. Set them, or use cs.connect(simulate=True), which costs "
            "nothing."
        )
        raise PlanError(msg)
    try:
        profile = CredentialsFile()
        if profile.config_path.is_file():
            profile.extra_headers()  # reads it
    except (anthropic.AnthropicError, OSError) as error:
        raise _unusable(error) from error


def _signs_in(client: AsyncAnthropic) -> bool:
    """Whether a client has any credentials."""
    sent = {name.lower() for name in client.default_headers}
    found = client.api_key or client.auth_token or client.credentials
    return bool(found or sent & {"x-api-key", "authorization"})


def _by(client: AsyncAnthropic) -> str:
    """Return what a client without a key signs in with."""
    if client.credentials is None:
        return ""
    profile = getattr(client.credentials, "profile", None)
    return f" Signed in by profile {profile!r}." if profile else " Signed in by workload identity."


def check_client(client: object, mode: str = "live") -> None:
    """Raise where a client cannot be used; nothing is sent.

    Spends: nothing.

    Raises
    ------
    PlanError
        It is no `AsyncAnthropic`, has no key, or one that cannot be sent, or an address that cannot be
        reached, or has no batches and `mode` takes them.
    """
    import anthropic  # noqa: PLC0415 - slow to import

    kind = type(client).__name__
    if not isinstance(client, anthropic.AsyncAnthropic):
        other = (
            " Its wire is another one, without Message Batches."
            if any(name in kind for name in _OTHERS)
            else ""
        )
        msg = f"The client is a {kind}; a run needs an AsyncAnthropic.{other} Use client = cs.connect()."
        raise PlanError(msg)
    if mode != "live" and isinstance(client, anthropic.AsyncAnthropicFoundry):
        msg = f"{kind} has no Message Batches, so mode={mode!r} cannot work there. Use mode='live'."
        raise PlanError(msg)
    # A class with ways of its own to sign in says for itself what it lacks.
    if type(client) is anthropic.AsyncAnthropic and not _signs_in(client):
        msg = (
            "The client has no key. Set ANTHROPIC_API_KEY, use cs.connect(api_key=...), or "
            "cs.connect(simulate=True), which costs nothing."
        )
        raise PlanError(msg)
    for name in ("api_key", "auth_token"):
        if (key := getattr(client, name)) is not None:
            _check_key(name, key)
    for name, value in client.default_headers.items():
        if isinstance(value, str) and not (value.isascii() and (value.isprintable() or not value)):
            msg = f"The header {name!r} has a character that cannot be sent, such as a newline. Leave it out."
            raise PlanError(msg)
    _check_address(client)
    _check_patches(client)


def _check_key(name: str, key: object) -> None:
    """Raise what is wrong with a key, never showing it."""
    if not isinstance(key, str):
        msg = f"{name} is a {type(key).__name__}; it is a str."
        raise PlanError(msg)
    if not key.strip():
        flaw = "is empty"
    elif key != key.strip():
        flaw = f"begins or ends with a blank or a newline: {name}=key.strip()"
    elif {key[0], key[-1]} & set("\"'`"):
        flaw = f"stands in quotes: {name}=key.strip('\"')"
    elif not key.isascii() or not key.isprintable() or " " in key:
        flaw = "has a blank, a newline or a character beyond ASCII in it, which no key has. Copy it again"
    else:
        return
    variable = {"api_key": "ANTHROPIC_API_KEY", "auth_token": "ANTHROPIC_AUTH_TOKEN"}[name]
    msg = f"The {name} {flaw}. (It is the argument, or {variable}.)"
    raise PlanError(msg)


def _check_address(client: AsyncAnthropic) -> None:
    """Raise where nothing can be sent to a client's address, never showing a password."""
    url = client.base_url
    if not str(url).strip("/") and type(client).__module__.startswith("anthropic.lib."):
        return  # it finds its address at the first call
    text, hint = _shown(str(url)), "base_url='https://...'"
    if url.scheme not in {"http", "https"}:
        flaw = f"does not begin with https:// (or http://). Type {hint}"
        text = text.replace("'/", "'", 1) if not url.scheme else text
    elif url.userinfo:
        flaw = f"has a user name or password in it. Leave it out, and give the key: {hint}, api_key=..."
    elif not url.host or "%" in url.host or any(letter.isspace() for letter in str(url)):
        flaw = f"has no host, or a blank in it. Type {hint}"
    elif url.query or url.fragment:
        flaw = f"has a ? or a # in it. Use AsyncAnthropic({hint}, default_query=...)"
    else:
        return
    msg = f"base_url={text} {flaw}. (It is the argument, or ANTHROPIC_BASE_URL.)"
    raise PlanError(msg)


def _shown(url: str | None) -> str:
    """Return an address as it can be shown: no password."""
    before, at, after = (url or os.environ.get("ANTHROPIC_BASE_URL", "")).rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return repr((f"{scheme}...@{after}" if at else after)[:_MOST_SHOWN])


def _check_patches(client: AsyncAnthropic) -> None:
    """Warn of what was put in the place of a client's methods: a run's copy works without it."""
    patched = [name for name in vars(client) if inspect.isfunction(getattr(type(client), name, None))]
    if patched:
        msg = (
            f"A run's copy of the client leaves out what stands in the place of {patched[0]}(). "
            "Use AsyncAnthropic(middleware=[...]), or a class of your own."
        )
        warnings.warn(msg, stacklevel=4)


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
