"""A run ends, and a row fails, for the right reason: the account's, the request's, the row's own, chance."""
# ruff: noqa: E501 - tables of cases

import asyncio
import itertools
import json
import math
import random

import pytest
from engine import MAX_TOKENS, body, rows, through_script
from hypothesis import given
from hypothesis import strategies as st
from test_live import GOOD, answer

from claudescale.api.answers import STOPPING_ERRORS, Answer, StreamedMessage, verdict, verdict_on_result
from claudescale.api.limits import read_headers
from claudescale.running import health, live
from claudescale.running.job import spread

ALIKE = answer(400, "invalid_request_error", "Output blocked by content filtering policy")
REFUSED = answer(429, "rate_limit_error", "slow down")


@pytest.mark.parametrize("code", sorted(STOPPING_ERRORS - {"account_disabled", "spend_limit_reached"}))
def test_a_trouble_of_the_account_is_no_rows_last_word(code):
    """Live and as the result of a batch's row: the run stops, and the row stays open."""
    kind = code if code.endswith("_error") else "invalid_request_error"
    error = {"type": kind, "message": "Words.", "details": {"error_code": code}}
    told = {"type": "error", "error": error}
    rest = verdict_on_result({"type": "errored", "error": told})
    assert (rest.outcome, rest.final) == ("stop", False) or code == "endpoint_not_found"
    status = {"not_found_error": 404, "endpoint_not_found": 404}.get(code, 400)
    found = verdict(Answer(status, {}, json.dumps(told).encode()))
    assert not found.final or code in {"authentication_error", "billing_error", "permission_error"}


@pytest.mark.parametrize("error", ["authentication_error", "permission_error", "not_found_error"])
def test_one_doubtful_answer_does_not_end_a_run(error):
    """After answers a single 401, 403 or 404 is tried again; the row is answered."""
    status = {"authentication_error": 401, "permission_error": 403, "not_found_error": 404}[error]
    seen = []

    def script(content, number):
        seen.append(content)
        return answer(status, error, "model") if len(seen) == 60 else GOOD

    engine = through_script(script, 200, concurrency=4)
    assert engine.live.stopped_by is None
    assert len(engine.finals) == 200
    assert engine.errors == {None: 200, error: 1}


def test_a_key_that_is_revoked_ends_a_run():
    """After answers nothing but 401: the run ends within seconds, and no row is final by it."""
    seen = []

    def script(content, number):
        seen.append(content)
        return GOOD if len(seen) <= 50 else answer(401, "authentication_error")

    engine = through_script(script, 500, concurrency=10)
    assert engine.live.stopped_by.error == "authentication_error"
    assert len(engine.finals) == 50
    assert engine.seconds < 60


def test_first_rows_that_all_fail_do_not_end_a_run():
    """Rows go in an order that sees all of the frame early: the good ones show that the request is right."""
    bad = {body(number) for number in range(40)}
    some = [rows(240)[place] for place in spread(240)]
    engine = through_script(lambda content, _: ALIKE if content in bad else GOOD, some=some, concurrency=8)
    assert engine.live.stopped_by is None
    assert len(engine.finals) == 240
    assert engine.errors == {None: 200, "invalid_request_error": 40}


def test_rows_that_fail_alike_after_answers_end_a_run_and_stay_open():
    """The account goes wrong in a way nobody knows: the run says so soon, and no row is lost for it."""
    seen = []

    def script(content, number):
        seen.append(content)
        return GOOD if len(seen) <= 60 else ALIKE

    engine = through_script(script, 5_000, concurrency=10)
    assert engine.live.stopped_by.error == "invalid_request_error"
    assert "rows in a row" in engine.live.stopped_by.message
    assert len(engine.finals) == 60
    assert len(engine.attempts) < 60 + health.HOPELESS_ROWS_LATER + 32


@given(st.integers(0, 3_000))
def test_spread_is_an_order(count):
    """Every row is there once; the first 32, and every eighth later, are from all over the frame."""
    order = spread(count, 0.3).to_list()
    assert sorted(order) == list(range(count))
    if count > 1_000:
        for seen in (order[:32], order[39:800:8]):
            gaps = [b - a for a, b in itertools.pairwise([0, *sorted(seen), count])]
            assert max(gaps) < 0.25 * count


@pytest.mark.parametrize("told", ["0", "-5", "0.2", None, "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_refusal_without_a_wait_waits_longer_and_longer(told):
    """Refused for two minutes without a real wait: few calls, and no row is given up."""
    headers = {} if told is None else {"retry-after": told}

    def script(content, number):
        return Answer(429, headers, REFUSED.content) if asyncio.get_running_loop().time() < 120 else GOOD

    engine = through_script(script, 40, seconds=0.05, concurrency=16)
    assert len(engine.finals) == 40
    assert len(engine.attempts) < 40 + 300


headers = st.dictionaries(
    st.sampled_from(
        ["retry-after", "retry-after-ms", "anthropic-ratelimit-requests-limit"]
        + [
            f"anthropic-ratelimit-{name}"
            for name in ("requests-remaining", "tokens-reset", "input-tokens-reset")
        ]
    ),
    st.text(max_size=40)
    | st.sampled_from(
        [
            "nan",
            "inf",
            "-inf",
            "1e999",
            "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
            "٣",
            "9" * 400,
            "Wed, 32 Foo 2026 99:99:99 GMT",
            "2026-13-45T99:00:00Z",
            "0001-01-01T00:00:00+23:59",
            "-1",
            "",
        ]
    ),
)


@given(headers)
def test_no_header_breaks_a_run(given_headers):
    """Whatever a header says: unknown is unknown, and no wait is longer than a day."""
    readings = read_headers(given_headers)
    wait = readings.retry_after_seconds
    assert wait is None or 0 <= wait <= 86_400
    assert readings.requests.limit is None or math.isfinite(readings.requests.limit)


def test_hung_calls_are_given_up_by_what_others_took():
    """One call in a hundred never answers: each costs a minute of API time, and is counted as maybe billed."""
    chance = random.Random(3)
    hangs = {body(number) for number in chance.sample(range(400), 4)}
    engine = through_script(
        lambda content, number: None if content in hangs and number == 1 else GOOD,
        400,
        seconds=0.1,
        max_tokens=MAX_TOKENS,
    )
    assert len(engine.finals) == 400
    assert engine.errors == {None: 400, "timeout_error": 4}
    assert engine.seconds < 3 * live.LEAST_TIMEOUT_SECONDS


EVENTS = [
    {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "model": "x",
     "content": [], "stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "abc"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Gr\u00fc\u00dfe "}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "\U0001f642"}},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "t", "input": {}}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "[1]}"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}},
    {"type": "message_stop"},
]  # fmt: skip


def stream(events):
    """Return events as they are sent."""
    lines = [
        f"event: {each['type']}\r\ndata: {json.dumps(each, ensure_ascii=False)}\r\n\r\n" for each in events
    ]
    return "".join(lines).encode()


@given(st.lists(st.integers(1, 2_000), max_size=8))
def test_a_stream_is_the_message_it_tells_however_it_is_cut_into_pieces(places):
    """Text, thinking, tools and usage are put together from pieces of any size."""
    whole, message = stream(EVENTS), StreamedMessage()
    ends = sorted({min(place, len(whole)) for place in places} | {0, len(whole)})
    for start, end in itertools.pairwise(ends):
        message.feed(whole[start:end])
    found = message.answer({})
    told = json.loads(found.content)
    assert found.status == 200
    assert [block["type"] for block in told["content"]] == ["thinking", "text", "tool_use"]
    assert told["content"][1]["text"] == "Grüße 🙂"
    assert told["content"][2]["input"] == {"a": [1]}
    assert told["usage"] == {"input_tokens": 9, "output_tokens": 40}
    assert told["stop_reason"] == "end_turn"


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_stream_that_breaks_is_a_lost_answer_whose_beginning_is_paid(kept):
    """Its usage so far is known, and the row is tried again."""
    message = StreamedMessage()
    message.feed(stream(EVENTS[:kept]))
    found = message.answer({})
    assert found.partial["usage"]["input_tokens"] == 9
    judged = verdict(found)
    assert (judged.outcome, judged.unseen) == ("overloaded", True)


def test_an_error_in_a_stream_is_that_error():
    """An overload that comes as an event is an overload."""
    message = StreamedMessage()
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    message.feed(stream([*EVENTS[:4], error]))
    found = message.answer({})
    assert found.status == 529
    assert (verdict(found).error, verdict(found).unseen) == ("overloaded_error", True)
    assert found.partial["usage"]["input_tokens"] == 9
