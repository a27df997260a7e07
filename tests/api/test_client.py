"""Access to the API: what `connect` finds, what cannot be sent, and one request over HTTP."""

import asyncio
import gc
import re
import socket
from types import SimpleNamespace
from unittest.mock import AsyncMock

import anthropic
import canned
import pytest
from canned import KEY, Canned
from engine import body
from running import MODEL, a_plan, reviews, simulator

import claudescale as cs
from claudescale.api import client as wire
from claudescale.api.answers import usage_of, verdict
from claudescale.api.client import Wire
from claudescale.simulator.wire import event


async def answer_of(client, *, ask=True, **options):
    """Return the answer a wire makes of one body, and the API it reached."""
    opened = Wire(client, **options)
    try:
        api = await opened.api() if ask else None
        return await opened.send(body(1)), api
    finally:
        await opened.close()


# -------------------------------------------------------------------------------------------- connect


FEDERATION = {"ANTHROPIC_FEDERATION_RULE_ID": "fdrl_1", "ANTHROPIC_IDENTITY_TOKEN": "a.b.secret"}
FEDERATION["ANTHROPIC_ORGANIZATION_ID"] = "00000000-0000-0000-0000-000000000000"
KEYS = [{name: "sk-ant-secret"} for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")]


@pytest.mark.parametrize("environment", [*KEYS, FEDERATION, {"ANTHROPIC_PROFILE": "mine"}])
def test_whatever_the_sdk_signs_in_with_is_live(environment, monkeypatch, tmp_path, capsys):
    """A key, token, federation or profile selects the API unless simulate=True, and a line says so."""
    (folder := tmp_path / ".config" / "anthropic" / "configs").mkdir(parents=True)
    if "ANTHROPIC_PROFILE" in environment:
        (folder / "mine.json").write_text('{"authentication": {"type": "user_oauth"}}')
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    client, line = cs.connect(), capsys.readouterr().err
    assert client.base_url.host == "api.anthropic.com"
    assert line.startswith("LIVE: calls to api.anthropic.com are paid for.")
    assert "secret" not in line
    assert client.max_retries == anthropic.DEFAULT_MAX_RETRIES
    assert cs.connect(simulate=True).base_url.host == "127.0.0.1"


def test_without_a_key_it_is_a_simulator(capsys, monkeypatch):
    """Without credentials, a line says so; simulate=False and unusable credentials raise instead."""
    assert cs.connect(speed=20, tier=2).base_url.host == "127.0.0.1"
    assert re.match("SIMULATED: .*20 times real time", capsys.readouterr().err)
    assert cs.connect() is wire.current() is not cs.connect() is wire.current()
    assert capsys.readouterr().err.count("10 times real time") == 2
    with pytest.raises(cs.PlanError, match="ANTHROPIC_API_KEY"):
        cs.connect(simulate=False)
    monkeypatch.setenv("ANTHROPIC_PROFILE", "nobody")
    with pytest.raises(cs.PlanError, match=r"credentials that it cannot use.*nobody"):
        cs.connect()
    monkeypatch.delenv("ANTHROPIC_PROFILE")
    monkeypatch.setenv("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1")
    with pytest.raises(cs.PlanError, match="ANTHROPIC_FEDERATION_RULE_ID is set, but not all that it needs"):
        cs.connect()


@pytest.mark.parametrize("key", [KEY + "\n", "  ", f'"{KEY}"', KEY + "é", "Bearer " + KEY])
def test_a_key_that_cannot_be_sent(key, monkeypatch):
    """Both connect and a run refuse it; the message names the argument and never shows the key."""
    with pytest.raises(cs.PlanError, match="The api_key cannot be sent: it is empty") as caught:
        cs.connect(api_key=key)
    assert "not_a_real_key" not in str(caught.value)
    with pytest.raises(cs.PlanError, match="api_key"):
        a_plan(reviews(1)).start(anthropic.AsyncAnthropic(api_key=key), ledger=None, progress=False)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", key)
    with pytest.raises(cs.PlanError, match="auth_token"):
        cs.connect(simulate=False)


@pytest.mark.parametrize(
    "url", ["localhost:8080", "", "https://a:hunter2@x.com", "https://x.com/?a=1", "https://x:y"]
)
def test_an_address_that_nothing_can_be_sent_to(url, monkeypatch):
    """An unusable address from an argument or the environment is refused before anything is sent."""
    for given, found in (({"base_url": url}, "https://x.com"), ({}, url)):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", found)
        with pytest.raises(cs.PlanError, match=r"is not a usable address\. Write https://") as caught:
            cs.connect(api_key=KEY, **given)
        assert "hunter2" not in str(caught.value)


# ------------------------------------------------------------------------------------ one call over HTTP


def test_which_api_answers_is_known():
    """A simulator is named by its seed, a gateway by its path; an undeclared simulator is an error."""
    with simulator(speed=60, seed=5) as api:
        answer, found = asyncio.run(answer_of(api.client()))
        undeclared, _ = asyncio.run(answer_of(api.client(), ask=False))
    assert verdict(answer).outcome == "answered"
    assert (found.name, found.simulated, found.clock.speed) == ("simulator seed=5", True, 60)
    assert (verdict(undeclared).outcome, verdict(undeclared).error) == ("stop", "simulator_error")
    url = "http://someone:password@gateway.invalid:8080/anthropic/"
    found = asyncio.run(Wire(anthropic.AsyncAnthropic(api_key=KEY, base_url=url)).api())
    assert found.name == "gateway.invalid:8080/anthropic"
    for name in ("a\nb", "\ud800"):  # a gateway's id of a batch, which no URL can hold
        failed = asyncio.run(Wire(anthropic.AsyncAnthropic(api_key=KEY, base_url=url)).ask(name))
        assert verdict(failed).error == "connection_error"


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_a_script_with_a_client_of_connect(caplog):
    """Connections have TCP keep-alive, a gateway's 100 KB header is read, and an exit leaves no warning."""

    async def script(client):
        reply = await client.messages.create(model=MODEL, max_tokens=9, messages=[])
        (connections,) = client._client._transport.client.connector._conns.values()
        made = connections[0][0].transport.get_extra_info("socket")
        return reply.content[0].text, made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    long = {"content-security-policy": "x" * 100_000}
    with Canned(lambda *_: (200, long, canned.message())) as server:
        client = cs.connect(api_key=KEY, base_url=server.url)
        assert asyncio.run(script(client)) == ("ok", 1)
        wire._connected.clear()
        del client
        gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno > 20]


def test_a_free_call_is_patient_in_api_time():
    """A refused request is retried after the requested delay in API time; a plain no is not retried."""
    no = (400, {}, canned.error("invalid_request_error", "No."))
    wait = (429, {"retry-after": "60"}, canned.error("rate_limit_error", "Slow down."))
    answers = [no, (200, {}, {"input_tokens": 7}), wait, wait]

    async def go(client):
        async with Wire(client) as opened:
            opened.clock = SimpleNamespace(sleep=AsyncMock())
            statuses = [(await opened.count_tokens(body(1))).status for _ in range(2)]
            return statuses, [call.args for call in opened.clock.sleep.await_args_list]

    with canned.served(lambda *_: answers.pop()) as client:
        assert asyncio.run(go(client)) == ([200, 400], [(60,), (60,)])


@pytest.mark.slow
def test_a_stream_that_falls_silent_is_given_up(monkeypatch):
    """A long reply's stream is lost after too long without an event, well before its longest time."""
    monkeypatch.setattr(wire, "_IDLE_SECONDS", 0.5)
    begun = event({"type": "message_start", "message": canned.message(content=[], stop_reason=None)})

    async def silent(reader, writer):
        await reader.readuntil(b'"stream":true')
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + begun)
        await reader.read()  # until the other side has received enough
        writer.close()

    async def go():
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await answer_of(cs.connect(api_key=KEY, base_url=url), ask=False, max_tokens=30_000)

    lost, _ = asyncio.run(go())
    assert (verdict(lost).error, verdict(lost).unseen) == ("timeout_error", True)
    assert usage_of(lost.partial)["input_tokens"] == canned.USAGE["input_tokens"]
