"""Replies that may be longer than 21,333 tokens are streamed, and come out as if they had come whole."""

import asyncio
import json
import socket

import canned
import pytest
from running import a_plan, finished, reviews, simulator
from test_wire import Recorder

from claudescale.api.answers import usage_of, verdict
from claudescale.api.client import LONGEST_PLAIN_TOKENS as STREAMED_TOKENS
from claudescale.api.client import Wire
from claudescale.simulator.wire import event

LONG = STREAMED_TOKENS + 1
BODY = b'{"model":"claude-haiku-5-5","max_tokens":30000,"messages":[{"role":"user","content":"x"}]}'
START = {
    "type": "message_start",
    "message": canned.message(
        content=[],
        stop_reason=None,
        usage={"input_tokens": 1_000, "output_tokens": 1, "service_tier": "standard"},
    ),
}
WHOLE = canned.message(
    content=[
        {"type": "thinking", "thinking": "Hm, so.", "signature": "abc"},
        {"type": "text", "text": "Zwölf Gläser", "citations": [{"cited_text": "a"}, {"cited_text": "b"}]},
        {"type": "tool_use", "id": "tu_1", "name": "f", "input": {"a": [1, 2], "b": "c"}},
        {"type": "tool_use", "id": "tu_2", "name": "g", "input": {}},
    ],
    stop_reason="tool_use",
    stop_details=None,
    usage={"input_tokens": 1_000, "output_tokens": 77, "service_tier": "standard"},
)


def events():
    """Return the events of `WHOLE`, with pings, and one of a kind that nobody knows yet."""

    def block(index, start, *deltas):
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}

    yield START
    yield {"type": "ping"}
    yield from block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm, "},
        {"type": "thinking_delta", "thinking": "so."},
        {"type": "signature_delta", "signature": "abc"},
    )
    yield {"type": "of_tomorrow", "index": 9}
    yield from block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Zwölf "},
        {"type": "citations_delta", "citation": {"cited_text": "a"}},
        {"type": "citations_delta", "citation": {"cited_text": "b"}},
        {"type": "text_delta", "text": "Gläser"},
    )
    yield from block(
        2,
        {"type": "tool_use", "id": "tu_1", "name": "f", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"a": [1, '},
        {"type": "input_json_delta", "partial_json": '2], "b": "c"}'},
    )
    yield from block(
        3,
        {"type": "tool_use", "id": "tu_2", "name": "g", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
    )
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None},
        "usage": {"output_tokens": 77, "input_tokens": None},
    }
    yield {"type": "message_stop"}


def stream(some):
    """Return the answer that sends these events and then closes the connection."""
    out = b"".join(map(event, some))
    return 200, {"content-type": "text/event-stream; charset=utf-8", "connection": "close"}, out


def sent(answer):
    """Return what a wire makes of an answer to a long request."""

    async def go(client):
        wire = Wire(client, LONG)
        try:
            return await wire.send(BODY)
        finally:
            await wire.close()

    with canned.served(lambda *_: answer) as client:
        found = asyncio.run(go(client))
        assert json.loads(client.seen[0][1])["stream"] is True
    return found


def test_a_streamed_message_is_the_same_as_a_whole_one():
    """Texts, thinking, citations, tool inputs, usage and the reason to stop come together again."""
    answer = sent(stream(events()))
    assert answer.status == 200
    assert json.loads(answer.content) == WHOLE


@pytest.mark.parametrize("count", [1, 2, 3, 8, 12])
def test_a_stream_that_breaks_is_lost_but_its_input_is_paid(count):
    """The beginning tells the input tokens: they stand in the attempt, and the row is tried again."""
    lost = sent(stream(list(events())[:count]))
    found = verdict(lost)
    assert (found.outcome, found.error, found.final, found.unseen) == (
        "overloaded",
        "connection_error",
        False,
        True,
    )
    assert found.reply is None
    assert usage_of(lost.partial)["input_tokens"] == 1_000


def test_a_stream_without_its_last_event_is_whole():
    """What says why it stopped is complete, and is not paid for twice."""
    assert json.loads(sent(stream(list(events())[:-1])).content) == WHOLE


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("overloaded_error", "overloaded"),
        ("api_error", "overloaded"),
        ("timeout_error", "overloaded"),
        ("rate_limit_error", "refused"),
        ("invalid_request_error", "failed"),
        ("of_tomorrow", "overloaded"),
    ],
)
def test_an_error_in_a_stream_means_what_its_type_says(kind, outcome):
    """As if it had come with a status of its own; what came before it is paid for."""
    lost = sent(stream([*list(events())[:5], canned.error(kind, "Words.")]))
    found = verdict(lost)
    assert (found.outcome, found.error, found.message) == (outcome, kind, "Words.")
    assert usage_of(lost.partial)["input_tokens"] == 1_000
    assert found.unseen


def test_a_gateway_that_does_not_stream_is_understood():
    """A whole Message, or an error with a status, is taken as it is."""
    assert json.loads(sent((200, {}, WHOLE)).content) == WHOLE
    assert sent((529, {}, canned.error("overloaded_error", "Words."))).status == 529
    assert verdict(sent((200, {}, b"<html>data: x</html>"))).error == "invalid_response"


def test_a_run_of_long_replies(monkeypatch):
    """Streams that break cost their input and are sent again; all rows are answered, and the sum is right."""
    seen = []

    def script(_path, _body, _number):
        seen.append(1)
        return stream(list(events())[:5] if len(seen) % 4 == 0 else LONG_ANSWER)

    with canned.served(script) as client:
        run = finished(a_plan(reviews(12), max_tokens=30_000), client)
    cut = run.attempts.filter(error="connection_error")
    assert run.counts.answered == 12
    assert cut.height == len(seen) - 12 > 0
    assert cut["input_tokens"].to_list() == [1_000] * cut.height
    assert (cut["dollars"] > 0).all()
    assert set(run.results["reply"]) == {"Done."}
    assert run.counts.input_tokens == 1_000 * len(seen)


LONG_ANSWER = [
    START,
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Done."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]


def test_a_stream_that_falls_silent_is_given_up(monkeypatch):
    """Without an event for long it is lost: nobody waits for the whole time that a reply may take."""
    monkeypatch.setattr("claudescale.api.client._IDLE_SECONDS", 0.5)

    async def go():
        async def silent(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event(START))
            await writer.drain()
            await reader.read()  # until the other side has had enough
            writer.close()
            closed.set()

        closed = asyncio.Event()
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        wire = Wire(canned.cs.connect(api_key=canned.KEY, base_url=f"http://127.0.0.1:{port}"), LONG)
        try:
            async with asyncio.timeout(20):
                return await wire.send(BODY)
        finally:
            await wire.close()
            await closed.wait()
            server.close()

    lost = asyncio.run(go())
    found = verdict(lost)
    assert (found.error, found.unseen) == ("timeout_error", True)
    assert usage_of(lost.partial)["input_tokens"] == 1_000


@pytest.mark.parametrize("max_tokens", [1_000, 30_000])
def test_the_simulator_streams_the_same_reply(tmp_path, max_tokens):
    """The key of a row does not change with streaming, and what is paid is what the simulator bills."""
    with simulator(seed=3, speed=100) as api:
        plan = a_plan(reviews(20), max_tokens=max_tokens)
        run = finished(plan, api.client(), ledger=tmp_path / "a.ledger")
        assert run.counts.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
        calls = api.stats["calls"]
        again = finished(plan, api.client(), ledger=tmp_path / "a.ledger")
        assert api.stats["calls"] == calls
    assert run.results["error"].null_count() == 20
    assert again.results.equals(run.results)


def test_a_traced_long_call_streams_too():
    """Where OpenTelemetry records, the call goes by the method that it knows, and gives the same Message."""
    recorder = Recorder()

    async def go(client):
        traced = client.copy(open_telemetry={"tracer_provider": recorder})
        wire = Wire(traced, LONG)
        assert wire._traced
        try:
            return await wire.send(BODY)
        finally:
            await wire.close()

    with canned.served(lambda *_: stream(events())) as client:
        answer = asyncio.run(go(client))
        assert json.loads(client.seen[0][1])["stream"] is True
    assert json.loads(answer.content) == WHOLE
    (span,) = [span for span in recorder.spans if span.name == "anthropic.messages.create"]
    assert span.ended


def test_connections_are_kept_alive_and_long_headers_read():
    """The transport has the SDK's TCP keep-alive, and a gateway's header of 100 KB costs no paid answer."""
    options = []

    async def go(client):
        wire = Wire(client)
        try:
            answer = await wire.send(BODY)
            session = wire._client._client._transport.client
            for connections in session.connector._conns.values():
                for protocol, _ in connections:
                    made = protocol.transport.get_extra_info("socket")
                    options.append(made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            return answer
        finally:
            await wire.close()

    with canned.served(lambda *_: (200, {"content-security-policy": "x" * 100_000}, WHOLE)) as client:
        answer = asyncio.run(go(client))
    assert answer.status == 200
    assert options
    assert all(options)
