"""What one answer means: tables of cases, properties over any bytes, and Messages that come in events."""

import json

import pytest
from canned import error, message
from hypothesis import example, given, settings
from hypothesis import strategies as st

from claudescale.api.answers import (
    Answer,
    StreamedMessage,
    stop_reason_of,
    text_of,
    usage_of,
    verdict,
    verdict_on_result,
)
from claudescale.api.catalog import ERRORS as CODES
from claudescale.api.catalog import USAGE
from claudescale.simulator.wire import event

OUTCOMES = {"answered", "failed", "refused", "overloaded", "again", "stop"}
SPENT = "You have reached your API usage limits"


def error_body(kind="invalid_request_error", words="no", code=None):
    """Return the bytes of an error."""
    return json.dumps(error(kind, words, **({"error_code": code} if code else {}))).encode()


def message_body(text="fine", **changes):
    """Return the bytes of a Message."""
    return json.dumps(message(text, **changes)).encode()


HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
CAP = "enforced_spend_limit_reached"
CONTRACT = "contract_spend_limit_reached"
RAMP = "ramp_limit_exceeded"
WORKSPACE = (
    "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01."
)
ACCOUNT = "You have reached your specified API usage limits."
BALANCE = "Your credit balance is too low to access the API."
REASONS = ("refusal", "max_tokens", "model_context_window_exceeded", "pause_turn", "tool_use")

# status, headers, body, outcome, error, final
ERRORS = [
    (400, {}, error_body(), "failed", "invalid_request_error", True),
    (400, {}, error_body(words=WORKSPACE), "stop", "spend_limit_reached", False),
    (400, {}, error_body(words=ACCOUNT), "stop", "spend_limit_reached", False),
    (400, {}, error_body(words=BALANCE), "stop", "billing_error", False),
    (400, {"x-should-retry": "true"}, error_body(), "again", "invalid_request_error", False),
    (400, {}, HTML, "failed", "http_400", False),
    (401, {}, error_body("authentication_error"), "stop", "authentication_error", False),
    (402, {}, error_body("billing_error"), "stop", "billing_error", False),
    (403, {}, error_body("permission_error"), "stop", "permission_error", False),
    (403, {}, HTML, "failed", "http_403", False),
    (404, {}, error_body("not_found_error", "model: x"), "stop", "not_found_error", False),
    (404, {}, error_body("not_found_error"), "stop", "endpoint_not_found", False),
    (404, {"x-should-retry": "true"}, error_body("not_found_error"), "again", "not_found_error", False),
    (400, {}, error_body(code="organization_on_hold"), "stop", "organization_on_hold", False),
    (403, {}, error_body(code="cmek_key_network_blocked"), "stop", "cmek_key_network_blocked", False),
    (400, {}, error_body(code="cmek_key_unreachable"), "overloaded", "cmek_key_unreachable", False),
    (400, {}, error_body(words="This organization has been disabled."), "stop", "account_disabled", False),
    (400, {}, error_body(words=f"{SPENT} until 2026-12-01."), "stop", "spend_limit_reached", False),
    (429, {}, error_body("rate_limit_error", f"{SPENT}."), "stop", "spend_limit_reached", False),
    (407, {}, HTML, "failed", "http_407", False),
    (408, {}, error_body("timeout_error"), "again", "timeout_error", False),
    (409, {}, error_body("conflict_error"), "again", "conflict_error", False),
    (409, {"x-should-retry": "false"}, error_body("conflict_error"), "failed", "conflict_error", True),
    (413, {}, error_body("request_too_large"), "failed", "request_too_large", True),
    (413, {}, HTML, "failed", "http_413", False),
    (429, {"retry-after": "3"}, error_body("rate_limit_error"), "refused", "rate_limit_error", False),
    (429, {}, error_body("rate_limit_error", code=RAMP), "refused", RAMP, False),
    (429, {}, error_body("rate_limit_error", code=CAP), "stop", CAP, False),
    (429, {"x-should-retry": "true"}, error_body("rate_limit_error", code=CAP), "stop", CAP, False),
    (429, {}, error_body("rate_limit_error", code=CONTRACT), "stop", CONTRACT, False),
    (429, {"x-should-retry": "false"}, error_body("rate_limit_error"), "stop", "rate_limit_error", False),
    (429, {}, HTML, "refused", "http_429", False),
    (500, {}, error_body("api_error"), "overloaded", "api_error", False),
    (500, {"x-should-retry": "false"}, error_body("api_error"), "failed", "api_error", False),
    (502, {}, HTML, "overloaded", "http_502", False),
    (503, {}, error_body("api_error"), "overloaded", "api_error", False),
    (504, {}, error_body("timeout_error"), "overloaded", "timeout_error", False),
    (529, {}, error_body("overloaded_error"), "overloaded", "overloaded_error", False),
    (302, {}, b"", "failed", "http_302", False),
]  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "body", "outcome", "kind", "final"), ERRORS)
def test_errors(status, headers, body, outcome, kind, final):
    """Each status, with each thing a header or a body can add to it, has its one meaning."""
    found = verdict(Answer(status, headers, body))
    assert (found.outcome, found.error, found.final) == (outcome, kind, final)
    assert found.reply is None
    assert not found.unseen


@pytest.mark.parametrize(
    ("failure", "sent", "outcome", "unseen"),
    [
        ("connection_error", True, "overloaded", True),
        ("connection_error", False, "overloaded", False),
        ("timeout_error", True, "overloaded", True),
        ("authentication_error", False, "stop", False),
        ("simulator_error", False, "stop", False),
    ],
)
def test_silence(failure, sent, outcome, unseen):
    """Where no answer came, a request that was sent may have been billed, and one that was not cannot."""
    found = verdict(Answer(None, {}, b"", failure, sent))
    assert (found.outcome, found.error, found.unseen) == (outcome, failure, unseen)
    assert not found.final


# body, error, unseen
MESSAGES = [
    (message_body(), None, False),
    (message_body(stop_reason=None), None, False),
    (message_body(stop_reason="a_reason_of_tomorrow"), None, False),
    (message_body(stop_reason=7), None, False),
    *((message_body(stop_reason=reason), reason, False) for reason in REASONS),
    (message_body(content=[]), "empty_reply", False),
    (message_body(content=[], stop_reason="max_tokens"), "max_tokens", False),
    (message_body(content=[{"type": "thinking", "thinking": "hm", "signature": "x"}]), "empty_reply", False),
    (message_body(content=[None, 3, "x", {"type": "text"}]), "empty_reply", False),
    (message_body(content=[{"type": "text", "text": None}]), "empty_reply", False),
    (message_body(content=[{"type": "hologram"}, {"type": "text", "text": "yes"}]), None, False),
    (message_body(usage=None), None, True),
    (message_body(usage=[]), None, True),
    (message_body(usage={}), None, True),
    (message_body(usage={"requests": 1, "tokens": 21}), None, True),
    (message_body(usage={"input_tokens": 5}), None, True),
    (message_body(usage={"input_tokens": 5, "output_tokens": -1}), None, True),
    (message_body(usage={"input_tokens": 0, "output_tokens": 0}), None, False),
]  # fmt: skip


@pytest.mark.parametrize(("body", "flaw", "unseen"), MESSAGES)
def test_messages(body, flaw, unseen):
    """Any Message is a paid answer, whole or not; without usage, its price is not seen."""
    found = verdict(Answer(200, {}, body))
    assert (found.outcome, found.error, found.final, found.unseen) == ("answered", flaw, True, unseen)
    assert found.reply == json.loads(body)


NO_MESSAGES = [
    b"",
    HTML,
    message_body()[:60],
    b"upstream said: " + message_body(),
    b"[]",
    b"null",
    b"{}",
    message_body(content=None),
    message_body(content="text"),
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"content": ' + b"9" * 5_000 + b"}",
]


@pytest.mark.parametrize("body", NO_MESSAGES)
def test_no_message(body):
    """A 200 that is no Message was billed, perhaps, is not final, and is asked for again."""
    found = verdict(Answer(200, {}, body))
    assert (found.outcome, found.error) == ("again", "invalid_response")
    assert (found.final, found.unseen) == (False, True)


def test_an_error_under_200():
    """An error envelope under status 200 keeps its type."""
    found = verdict(Answer(200, {}, error_body("overloaded_error")))
    assert (found.outcome, found.error) == ("again", "overloaded_error")


@pytest.mark.parametrize("code", CODES.account_codes)
def test_a_trouble_of_the_account_is_no_rows_last_word(code):
    """Whatever its status, live or in a batch, it stops the run and no row is to blame."""
    found = verdict(Answer(400, {}, error_body(code=code)))
    assert (found.outcome, found.error, found.final) == ("stop", code, False)
    result = {"type": "errored", "error": error("invalid_request_error", "no", error_code=code)}
    assert (verdict_on_result(result).outcome, verdict_on_result(result).error) == ("stop", code)


def test_no_secret_in_words():
    """A key that a server repeats in its words is not passed on, and endless words are cut."""
    found = verdict(
        Answer(400, {}, error_body(words="bad key sk-ant-api03-abcdefgh_12345678 " + "x" * 9_000))
    )
    assert "abcdefgh" not in found.message
    assert found.message.startswith("bad key sk-...")
    assert len(found.message) <= 500


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "hologram"}, {"type": "text", "text": "c"}], "ac"),
        ([{"type": "text", "text": ""}], None),
        ([{"type": "text", "text": ["a"]}], None),
        ([{"text": "a"}], None),
        ("text", None),
        (None, None),
    ],
)  # fmt: skip
def test_text_of(content, text):
    """Only text blocks are the reply, in their order, whatever else stands among them."""
    assert text_of({"content": content}) == text


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 5, "output_tokens": 7}, (5, 0, 0, 0, 7, 0)),
        ({"cache_creation_input_tokens": 30, "cache_read_input_tokens": 4}, (0, 30, 0, 4, 0, 0)),
        (
            {
                "input_tokens": 1,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 9,
                "output_tokens_details": {"thinking_tokens": 6},
            },
            (1, 10, 20, 0, 9, 6),
        ),
        ({"cache_creation": {"ephemeral_1h_input_tokens": 20}}, (0, 0, 20, 0, 0, 0)),
        ({"input_tokens": None, "cache_creation": None, "output_tokens_details": None}, (0,) * 6),
        ({"input_tokens": "5", "output_tokens": True, "cache_read_input_tokens": -3}, (0,) * 6),
        ({"input_tokens": 10**30, "cache_creation": 7, "output_tokens_details": []}, (0,) * 6),
        ({}, (0,) * 6),
        (None, (0,) * 6),
        ("usage", (0,) * 6),
    ],
)  # fmt: skip
def test_usage_of(usage, counts):
    """Token counts come under the ledger's names, cache writes by their lifetime, odd values as none."""
    assert usage_of({"usage": usage}) == dict(zip(USAGE, counts, strict=True))


# -------------------------------------------------------------------------------------- any bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("content", "usage", "stop_reason", "error", "type", "cache_creation", "details"), JSON
    ),
)
BODIES = st.binary(max_size=60) | (JSON | FIELDS).map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(
    st.sampled_from(["x-should-retry", "retry-after", "request-id"]), st.text(max_size=8)
)


@given(status=st.none() | st.integers(100, 999), headers=HEADERS, body=BODIES, sent=st.booleans())
@example(status=429, headers={}, body=b'{"error": {"type": [], "details": {"error_code": {}}}}', sent=True)
def test_any_answer(status, headers, body, sent):
    """Whatever comes back has a meaning: nothing raises, and only a paid answer or a failure is final."""
    found = verdict(Answer(status, headers, body, None if status else "connection_error", sent))
    assert found.outcome in OUTCOMES
    assert (found.reply is not None) == (found.outcome == "answered")
    assert not found.final or found.outcome in {"answered", "failed"}
    counts = usage_of(found.reply)
    assert all(type(count) is int and count >= 0 for count in counts.values())
    assert found.reply is None or isinstance(text_of(found.reply), str | None)
    assert found.reply is None or isinstance(stop_reason_of(found.reply), str | None)
    assert found.outcome == "answered" or isinstance(found.error, str)


# ------------------------------------------------------------------------- Messages that come in events

USED = {"input_tokens": 1_000, "output_tokens": 77, "service_tier": "standard"}
START = {
    "type": "message_start",
    "message": message(content=[], stop_reason=None, usage=USED | {"output_tokens": 1}),
}
WHOLE = message(
    content=[
        {"type": "thinking", "thinking": "Hm, so.", "signature": "abc"},
        {"type": "text", "text": "Zwölf Gläser", "citations": [{"cited_text": "a"}, {"cited_text": "b"}]},
        {"type": "tool_use", "id": "tu_1", "name": "f", "input": {"a": [1, 2], "b": "c"}},
        {"type": "tool_use", "id": "tu_2", "name": "g", "input": {}},
    ],
    stop_reason="tool_use",
    stop_details=None,
    usage=USED,
)


_TEXT, _JSON = "text_delta", "input_json_delta"
_BLOCKS = [  # how each begins, and what is added to it
    (
        {"type": "thinking", "thinking": "", "signature": ""},
        [("thinking_delta", "Hm, "), ("thinking_delta", "so."), ("signature_delta", "abc")],
    ),
    (
        {"type": "text", "text": ""},
        [
            (_TEXT, "Zwölf "),
            ("citations_delta", {"cited_text": "a"}),
            ("citations_delta", {"cited_text": "b"}),
            (_TEXT, "Gläser"),
        ],
    ),
    (
        {"type": "tool_use", "id": "tu_1", "name": "f", "input": {}},
        [(_JSON, '{"a": [1, '), (_JSON, '2], "b": "c"}')],
    ),
    ({"type": "tool_use", "id": "tu_2", "name": "g", "input": {}}, [(_JSON, "")]),
]
_FIELD = {"input_json_delta": "partial_json", "citations_delta": "citation"}


def events():
    """Return the events of `WHOLE`, with a ping, and one of a kind that nobody knows yet."""
    yield from (START, {"type": "ping"})
    for index, (start, added) in enumerate(_BLOCKS):
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for kind, value in added:
            delta = {"type": kind, _FIELD.get(kind, kind.removesuffix("_delta")): value}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield from ({"type": "content_block_stop", "index": index}, {"type": "of_tomorrow", "index": 9})
    delta = {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 77, "input_tokens": None}}
    yield {"type": "message_stop"}


def put_together(some, part_bytes=1 << 20):
    """Return the answer that a stream of these events makes, fed in parts."""
    content, streamed = b"".join(map(event, some)), StreamedMessage()
    for start in range(0, len(content), part_bytes):
        streamed.feed(content[start : start + part_bytes])
    return streamed.answer({"content-type": "text/event-stream; charset=utf-8"})


@pytest.mark.parametrize("part_bytes", [1, 7, 1 << 20])
def test_a_streamed_message_is_the_same_as_a_whole_one(part_bytes):
    """Texts, thinking, citations, tool inputs, usage and the reason to stop come together in any pieces."""
    answer = put_together(events(), part_bytes)
    assert answer.status == 200
    assert json.loads(answer.content) == WHOLE
    assert json.loads(put_together(list(events())[:-1]).content) == WHOLE  # what says why it stopped is whole


@pytest.mark.parametrize("count", [1, 2, 3, 8, 12])
def test_a_stream_that_breaks_is_lost_but_its_input_is_paid(count):
    """The beginning tells the input tokens: they stand in the attempt, and the row is tried again."""
    lost = put_together(list(events())[:count])
    found = verdict(lost)
    assert (found.outcome, found.error) == ("overloaded", "connection_error")
    assert (found.final, found.unseen, found.reply) == (False, True, None)
    assert usage_of(lost.partial)["input_tokens"] == 1_000


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("overloaded_error", "overloaded"),
        ("timeout_error", "overloaded"),
        ("rate_limit_error", "refused"),
        ("invalid_request_error", "failed"),
        ("of_tomorrow", "overloaded"),
    ],
)
def test_an_error_in_a_stream_means_what_its_type_says(kind, outcome):
    """As if it had come with a status of its own; what came before it is paid for."""
    lost = put_together([*list(events())[:5], error(kind, "Words.")])
    found = verdict(lost)
    assert (found.outcome, found.error, found.message) == (outcome, kind, "Words.")
    assert usage_of(lost.partial)["input_tokens"] == 1_000
    assert found.unseen


@settings(max_examples=50)
@given(st.lists(JSON | FIELDS | st.sampled_from(list(events())), max_size=6))
def test_any_stream(some):
    """Whatever the events are, there is an answer, and it has a meaning."""
    content, streamed = (
        b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in some),
        StreamedMessage(),
    )
    streamed.feed(content)
    assert verdict(streamed.answer({})).outcome in OUTCOMES


def test_a_gateway_that_does_not_stream_is_understood():
    """A whole Message is taken as it is, and a page is none."""
    for content, outcome in ((json.dumps(WHOLE).encode(), "answered"), (b"<html>data: x</html>", "again")):
        streamed = StreamedMessage()
        streamed.feed(content)
        assert verdict(streamed.answer({"content-type": "text/html"})).outcome == outcome
