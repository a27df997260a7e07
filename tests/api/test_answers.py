"""The meaning of one answer: tables of cases, arbitrary bytes, and Messages that arrive as events."""

import json

import pytest
from canned import error, message

from claudescale.api import answers
from claudescale.api.answers import Answer, usage_of, verdict
from claudescale.simulator.wire import event, events

HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
NEVER = {"x-should-retry": "false"}
MOVED = {"location": "https://a:hunter2@x.com/v1/messages?k=1"}


def body(kind="invalid_request_error", words="no", code=None):
    """Return the body of an error."""
    return json.dumps(error(kind, words, **({"error_code": code} if code else {}))).encode()


ODD = b'{"error": {"type": [], "details": {"error_code": {}}}}'
SPENT = "You have reached your API usage limits until 2026-12-01."
WORKSPACE = "You have reached your specified workspace API usage limits."
MISSING = body("not_found_error", "model: x")
ECHO = "bad key sk-ant-api03-hunter2_abcdefgh " + "x" * 9_000
DAMAGED = [b"", HTML, b'{"content": "text"}', b"\xff\xfe", b"[" * 100_000]
ERRORS = [  # answer, outcome, error, final
    (Answer(400, {}, body(words=ECHO)), "failed", "invalid_request_error", True),
    (Answer(400, {}, body(words=WORKSPACE)), "stop", "spend_limit_reached", False),
    (Answer(429, {}, body("rate_limit_error", SPENT)), "stop", "spend_limit_reached", False),
    (Answer(400, {}, body(words="Your credit balance is too low.")), "stop", "billing_error", False),
    (Answer(400, {}, body("billing_error")), "stop", "billing_error", False),
    (Answer(400, {}, body(words="This organization has been disabled.")), "stop", "account_disabled", False),
    (Answer(400, {}, body(code="cmek_key_unreachable")), "overloaded", "cmek_key_unreachable", False),
    (Answer(401, {}, body("authentication_error")), "stop", "authentication_error", False),
    (Answer(403, {}, HTML), "failed", "http_403", False),
    (Answer(404, {}, MISSING), "stop", "not_found_error", False),
    (Answer(404, {}, body("not_found_error")), "stop", "endpoint_not_found", False),
    (Answer(404, {}, body("not_found_error", code="file_not_found")), "failed", "not_found_error", True),
    (Answer(408, {}, body("timeout_error")), "again", "timeout_error", False),
    (Answer(429, {}, body("rate_limit_error", code="ramp_limit")), "refused", "ramp_limit", False),
    (Answer(429, NEVER, body("rate_limit_error")), "stop", "rate_limit_error", False),
    (Answer(302, MOVED, b""), "stop", "redirect_error", False),
    (Answer(429, {}, ODD), "refused", "http_429", False),
    (Answer(999, {}, b"\xff"), "overloaded", "http_999", False),
    (Answer(None, {}, b"", "connection_error"), "overloaded", "connection_error", False),
    (Answer(None, {}, b"", "timeout_error", sent=False), "overloaded", "timeout_error", False),
    (Answer(None, {}, b"", "authentication_error", sent=False), "stop", "authentication_error", False),
    *((Answer(200, {}, content), "again", "invalid_response", False) for content in DAMAGED),
]


@pytest.mark.parametrize(("answer", "outcome", "kind", "final"), ERRORS)
def test_each_error_has_its_one_meaning(answer, outcome, kind, final):
    """Status, header, type, code and wording decide; what was sent and got no Message or error may be billed.

    A message is short and shows no key or password.
    """
    found = verdict(answer)
    assert (found.outcome, found.error, found.final, found.reply) == (outcome, kind, final, None)
    assert found.unseen == (answer.status in {None, 200} and answer.sent)
    assert len(found.message) <= 500
    assert "hunter2" not in found.message


def test_a_trouble_of_the_account_is_no_rows_last_word():
    """An account error, live or in a batch, with any status, stops the run and blames no row."""
    for code in answers.ERRORS.account_codes:
        result = {"type": "errored", "error": error("invalid_request_error", "no", error_code=code)}
        for found in (verdict(Answer(400, {}, body(code=code))), answers.verdict_on_result(result)):
            assert (found.outcome, found.error, found.final) == ("stop", code, False)


A, C = ({"type": "text", "text": text} for text in "ac")
CALLED = {"content": [{"type": "tool_use", "input": {"label": "good"}}], "stop_reason": "tool_use"}
MESSAGES = [  # changes to a Message, its text, error, unseen
    ({}, "fine", None, False),
    ({"stop_reason": "a_reason_of_tomorrow"}, "fine", None, False),
    *(({"stop_reason": reason}, "fine", reason, False) for reason in ("refusal", "max_tokens", "tool_use")),
    ({"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]}, None, "empty_reply", False),
    ({"content": [None, 3, "x", {"type": "text", "text": ["a"]}, {"text": "a"}]}, None, "empty_reply", False),
    ({"content": [A, {"type": "hologram"}, C]}, "ac", None, False),
    (CALLED, '{"label":"good"}', None, False),
    ({"usage": []}, "fine", None, True),
    ({"usage": {"input_tokens": 10**30, "output_tokens": -1, "cache_creation": 7}}, "fine", None, True),
    ({"usage": {"input_tokens": 0, "output_tokens": 0}}, "fine", None, False),
]


@pytest.mark.parametrize(("changes", "text", "flaw", "unseen"), MESSAGES)
def test_any_message_is_a_paid_answer(changes, text, flaw, unseen):
    """A Message is final and paid; its text blocks or a tool's input are the reply; its price needs usage."""
    given = message("fine", **changes)
    found = verdict(Answer(200, {}, json.dumps(given).encode()))
    assert (found.outcome, found.error, found.final, found.unseen) == ("answered", flaw, True, unseen)
    assert (found.reply, answers.text_of(found.reply)) == (given, text)
    assert 0 <= min(usage_of(found.reply).values()) <= max(usage_of(found.reply).values()) < 100


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
    made = answers.StreamedMessage()
    for start in range(0, len(content), part_bytes):
        made.feed(content[start : start + part_bytes])
    return made.answer({"content-type": kind})


@pytest.mark.parametrize("part_bytes", [1, 7, 1 << 20])
def test_a_streamed_message_is_the_same_as_a_whole_one(part_bytes):
    """Texts, tool inputs, usage and stop reason survive any split of the stream and unknown event types.

    A gateway that does not stream sends the whole Message.
    """
    parts = [*EVENTS[:3], event({"type": "of_tomorrow", "index": 9}), *EVENTS[3:]]
    assert json.loads(streamed(b"".join(parts), part_bytes=part_bytes).content) == WHOLE
    whole = json.dumps(WHOLE).encode()
    assert streamed(whole, "application/json", part_bytes).content == whole


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
