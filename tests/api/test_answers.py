"""The meaning of one answer: tables of cases, arbitrary bytes, and Messages that arrive as events."""

import json

import pytest
from canned import error, message

from claudescale.api.answers import Answer, StreamedMessage, text_of, usage_of, verdict, verdict_on_result
from claudescale.api.catalog import ERRORS as FACTS
from claudescale.simulator.wire import event, events

HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
NEVER = {"x-should-retry": "false"}
MOVED = {"location": "https://a:b@x.com/v1/messages?k=1"}


def body(kind="invalid_request_error", words="no", code=None):
    """Return the body of an error."""
    return json.dumps(error(kind, words, **({"error_code": code} if code else {}))).encode()


def message_body(text="fine", **changes):
    """Return the body of a Message."""
    return json.dumps(message(text, **changes)).encode()


ODD = b'{"error": {"type": [], "details": {"error_code": {}}}}'
SPENT = "You have reached your API usage limits until 2026-12-01."
WORKSPACE = "You have reached your specified workspace API usage limits."
CAP = body("rate_limit_error", code="enforced_spend_limit_reached")
MISSING = body("not_found_error", "model: x")
ERRORS = [  # status, headers, body, outcome, error, final
    (400, {}, body(), "failed", "invalid_request_error", True),
    (400, {}, body(words=WORKSPACE), "stop", "spend_limit_reached", False),
    (429, {}, body("rate_limit_error", SPENT), "stop", "spend_limit_reached", False),
    (400, {}, body(words="Your credit balance is too low."), "stop", "billing_error", False),
    (400, {}, body(words="This organization has been disabled."), "stop", "account_disabled", False),
    (400, {}, body(code="cmek_key_unreachable"), "overloaded", "cmek_key_unreachable", False),
    (400, {}, HTML, "failed", "http_400", False),
    (401, {}, body("authentication_error"), "stop", "authentication_error", False),
    (402, {}, body("billing_error"), "stop", "billing_error", False),
    (403, {}, HTML, "failed", "http_403", False),
    (404, {}, MISSING, "stop", "not_found_error", False),
    (404, {}, body("not_found_error"), "stop", "endpoint_not_found", False),
    (404, {}, body("not_found_error", code="file_not_found"), "failed", "not_found_error", True),
    (408, {}, body("timeout_error"), "again", "timeout_error", False),
    (413, {}, HTML, "failed", "http_413", False),
    (429, {}, body("rate_limit_error"), "refused", "rate_limit_error", False),
    (429, {}, body("rate_limit_error", code="ramp_limit"), "refused", "ramp_limit", False),
    (429, {}, CAP, "stop", "enforced_spend_limit_reached", False),
    (429, NEVER, body("rate_limit_error"), "stop", "rate_limit_error", False),
    (500, {}, body("api_error"), "overloaded", "api_error", False),
    (502, {}, HTML, "overloaded", "http_502", False),
    (302, {}, b"", "failed", "http_302", False),
    (302, MOVED, b"", "stop", "redirect_error", False),
    (429, {}, ODD, "refused", "http_429", False),
    (999, {}, b"\xff", "overloaded", "http_999", False),
]


@pytest.mark.parametrize(("status", "headers", "content", "outcome", "kind", "final"), ERRORS)
def test_each_error_has_its_one_meaning(status, headers, content, outcome, kind, final):
    """Status, header, type, code and wording decide between retrying, ending the row and ending the run."""
    found = verdict(Answer(status, headers, content))
    assert (found.outcome, found.error, found.final) == (outcome, kind, final)
    assert found.reply is None
    assert not found.unseen
    assert "a:b" not in found.message


def test_a_trouble_of_the_account_is_no_rows_last_word():
    """An account error, live or in a batch, with any status, stops the run and blames no row."""
    for code in FACTS.account_codes:
        result = {"type": "errored", "error": error("invalid_request_error", "no", error_code=code)}
        for found in (verdict(Answer(400, {}, body(code=code))), verdict_on_result(result)):
            assert (found.outcome, found.error, found.final) == ("stop", code, False)


@pytest.mark.parametrize(
    ("failure", "sent", "outcome"),
    [("connection_error", True, "overloaded"), ("timeout_error", False, "overloaded"),
     ("authentication_error", False, "stop"), ("simulator_error", False, "stop")],
)  # fmt: skip
def test_silence_may_be_paid_where_a_request_was_sent(failure, sent, outcome):
    """A request that was sent and got no answer may have been billed; an unsent one cannot have been."""
    found = verdict(Answer(None, {}, b"", failure, sent))
    assert (found.outcome, found.error, found.unseen, found.final) == (outcome, failure, sent, False)


MESSAGES = [  # body, error, unseen
    (message_body(), None, False),
    (message_body(stop_reason="a_reason_of_tomorrow"), None, False),
    *((message_body(stop_reason=reason), reason, False) for reason in ("refusal", "max_tokens", "tool_use")),
    (message_body(content=[{"type": "thinking", "thinking": "hm", "signature": "x"}]), "empty_reply", False),
    (message_body(content=[None, 3, "x", {"type": "text"}]), "empty_reply", False),
    (message_body(content=[{"type": "hologram"}, {"type": "text", "text": "yes"}]), None, False),
    (message_body(content=[{"type": "tool_use", "input": {}}], stop_reason="tool_use"), None, False),
    (message_body(usage=[]), None, True),
    (message_body(usage={"input_tokens": 5, "output_tokens": -1}), None, True),
    (message_body(usage={"input_tokens": "5", "output_tokens": 10**30, "cache_creation": 7}), None, True),
    (message_body(usage={"input_tokens": 0, "output_tokens": 0}), None, False),
]


@pytest.mark.parametrize(("content", "flaw", "unseen"), MESSAGES)
def test_any_message_is_a_paid_answer(content, flaw, unseen):
    """A Message is final and paid, complete or not; without usage its price is unknown."""
    found = verdict(Answer(200, {}, content))
    assert (found.outcome, found.error, found.final, found.unseen) == ("answered", flaw, True, unseen)
    assert found.reply == json.loads(content)
    assert 0 <= min(usage_of(found.reply).values()) <= max(usage_of(found.reply).values()) < 100


DAMAGED = [b"", HTML, message_body()[:60], b"[]", message_body(content="text"), b"\xff\xfe", b"[" * 100_000]
DAMAGED += [b'{"content": ' + b"9" * 5_000 + b"}"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_200_that_is_no_message_is_asked_for_again(content):
    """A 200 that is not a Message may have been billed, and its row is sent again."""
    found = verdict(Answer(200, {}, content))
    assert (found.outcome, found.error) == ("again", "invalid_response")
    assert (found.unseen, found.final) == (True, False)


def test_no_key_stands_in_words():
    """A key that a server echoes is redacted, and an endless message is truncated."""
    found = verdict(Answer(400, {}, body(words="bad key sk-ant-api03-abcdefgh_1234 " + "x" * 9_000)))
    assert found.message.startswith("bad key sk-...")
    assert "abcdefgh" not in found.message
    assert len(found.message) <= 500


def test_the_text_blocks_are_the_reply():
    """The reply is the text blocks in order, whatever other blocks there are, or a tool's input as JSON."""
    texts = [{"type": "text", "text": "a"}, {"type": "hologram"}, {"type": "text", "text": "c"}]
    called = [{"type": "tool_use", "input": {"label": "good"}}]
    odd = [{"type": "text", "text": ["a"]}, {"text": "a"}]
    found = [text_of({"content": content}) for content in (texts, called, odd, "text")]
    assert found == ["ac", '{"label":"good"}', None, None]


# --------------------------------------------------------------------- Messages that arrive as events

WHOLE = message(
    content=[
        {"type": "text", "text": "Zwölf Gläser"},
        {"type": "tool_use", "id": "tu_1", "name": "f", "input": {"a": [1, 2], "b": "c"}},
        {"type": "tool_use", "id": "tu_2", "name": "g", "input": {}},
    ],
    stop_reason="tool_use",
    stop_details=None,
    usage={"input_tokens": 1_000, "output_tokens": 77, "output_tokens_details": {"thinking_tokens": 0}},
)
EVENTS = [part for _, part in events(WHOLE, 0, 1)]


def streamed(content, kind="text/event-stream; charset=utf-8", part_bytes=1 << 20):
    """Return the answer built from a stream that is fed in pieces."""
    made = StreamedMessage()
    for start in range(0, len(content), part_bytes):
        made.feed(content[start : start + part_bytes])
    return made.answer({"content-type": kind})


@pytest.mark.parametrize("part_bytes", [1, 7, 1 << 20])
def test_a_streamed_message_is_the_same_as_a_whole_one(part_bytes):
    """Texts, tool inputs, usage and stop reason survive any split of the stream and unknown event types."""
    parts = [*EVENTS[:3], event({"type": "of_tomorrow", "index": 9}), *EVENTS[3:]]
    assert json.loads(streamed(b"".join(parts), part_bytes=part_bytes).content) == WHOLE


@pytest.mark.parametrize(
    ("more", "outcome"),
    [(None, "overloaded"), ("overloaded_error", "overloaded"), ("rate_limit_error", "refused"),
     ("invalid_request_error", "failed"), ("of_tomorrow", "overloaded")],
)  # fmt: skip
def test_a_stream_that_breaks_is_lost_but_its_input_is_paid(more, outcome):
    """An error event has the meaning of its type, and the attempt records the input from the first event."""
    lost = streamed(b"".join([*EVENTS[:5], event(error(more, "Words.")) if more else b""]))
    found = verdict(lost)
    assert (found.outcome, found.error, found.unseen) == (outcome, more or "connection_error", True)
    assert usage_of(lost.partial)["input_tokens"] == 1_000


def test_a_gateway_that_does_not_stream_is_understood():
    """A whole Message in place of a stream is accepted, and an HTML page is not."""
    for content, outcome in ((json.dumps(WHOLE).encode(), "answered"), (b"<html>data: x</html>", "again")):
        assert verdict(streamed(content, "text/html")).outcome == outcome
