"""The simulator: its desk in virtual time, and the real SDK against it over HTTP."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from random import Random

import anthropic
import genai_prices
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.api import catalog
from claudescale.errors import UnknownTier
from claudescale.simulator import Admission, Batches, Buckets, Desk, Simulator
from claudescale.simulator.checks import check, found_model, schema_problem
from claudescale.simulator.replies import MARK
from claudescale.simulator.wire import Problem

NOW = 1_795_000_000.0  # November 2026
HEADERS = {"authorization": "Bearer simulated", "anthropic-version": "2026-10-21"}
HAIKU = "claude-haiku-5-5"
LETTERS = 'abcdefg .,:\n"\\{}09éß漢🙂'
LONG = "The parcel arrived late and the box was broken. " * 60
SENTIMENT = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative", "neutral"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}


def request(text="The parcel arrived late. The box was broken.", **changes):
    return {
        "model": HAIKU,
        "max_tokens": 500,
        "messages": [{"role": "user", "content": text}],
        **changes,
    }


def structured(schema, text="The parcel arrived late.", **changes):
    return request(text, output_config={"format": {"type": "json_schema", "schema": schema}}, **changes)


def cached(row, prefix=LONG, ttl="5m", **changes):
    control = {"type": "ephemeral", "ttl": ttl}
    return request(row, system=[{"type": "text", "text": prefix, "cache_control": control}], **changes)


def desk(tier=(1e9, 1e12, 1e12), **options):
    return Desk(tier, now=NOW, **options)


def answered(at, body, now=NOW, headers=HEADERS):
    """Admit and finish one call, and return (status, headers, parsed body)."""
    decision = at.admit(now, body, headers)
    answer = at.finish(decision.done_at, decision) if isinstance(decision, Admission) else decision
    return answer.status, answer.headers, json.loads(answer.body)


def text_of(message):
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


# ------------------------------------------------------------------------------------------ buckets


def test_the_bucket_starts_full_and_refills_continuously():
    """Sixty requests a minute: a full minute at once, then exactly one a second."""
    buckets = Buckets(60, 1e9, 1e9, bucket_seconds=60, now=NOW)
    assert sum(buckets.admit(NOW) for _ in range(100)) == 60
    assert not buckets.admit(NOW + 0.9)
    assert buckets.admit(NOW + 1.0)
    assert not buckets.admit(NOW + 1.5)


def test_a_limit_enforced_by_the_second_allows_no_burst():
    """With a bucket of one second, 60 a minute admits one, then one a second."""
    buckets = Buckets(60, 1e9, 1e9, bucket_seconds=1, now=NOW)
    assert [buckets.admit(NOW + at) for at in (0, 0, 0.5, 1.0, 1.0, 2.0)] == [1, 0, 0, 1, 0, 1]


def test_a_call_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt():
    """A call over the whole input limit is admitted by a full bucket, which then owes the rest."""
    buckets = Buckets(1000, 6000, 1e9, bucket_seconds=60, now=NOW)
    assert buckets.admit(NOW, input_tokens=9000)
    assert buckets.retry_after(NOW, input_tokens=100) == 31
    assert not buckets.admit(NOW + 30.9, input_tokens=100)
    assert buckets.admit(NOW + 31.0, input_tokens=100)


def test_output_is_taken_when_produced_and_a_debt_refuses():
    """Output tokens count at the reply's end; below zero nothing is admitted until it is paid."""
    buckets = Buckets(1000, 1e9, 6000, bucket_seconds=60, now=NOW)
    buckets.produce(NOW, 6500)
    assert not buckets.admit(NOW)
    assert buckets.retry_after(NOW) == 6
    assert not buckets.admit(NOW + 5.0)
    assert buckets.admit(NOW + 5.1)


def test_a_refusal_takes_nothing():
    """Refused calls leave each bucket as it was."""
    buckets = Buckets(10, 1000, 1e9, now=NOW)
    assert buckets.admit(NOW, input_tokens=900)
    before = buckets.headers(NOW)
    for _ in range(20):
        assert not buckets.admit(NOW, input_tokens=500)
    assert buckets.headers(NOW) == before


def test_headers_say_limit_remaining_and_time_of_full_refill():
    """All twelve headers are there, tokens in thousands, a debt as 0, resets in whole seconds."""
    buckets = Buckets(50, 40_000, 8_000, now=NOW)
    assert buckets.admit(NOW, input_tokens=12_400)
    buckets.produce(NOW, 9_000)
    headers = {
        name.removeprefix("anthropic-ratelimit-"): value for name, value in buckets.headers(NOW).items()
    }
    full = [datetime.fromtimestamp(NOW + wait, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for wait in (2, 19, 68)]
    assert headers == {
        "requests-limit": "50",
        "requests-remaining": "49",
        "requests-reset": full[0],
        "input-tokens-limit": "40000",
        "input-tokens-remaining": "28000",
        "input-tokens-reset": full[1],
        "output-tokens-limit": "8000",
        "output-tokens-remaining": "0",
        "output-tokens-reset": full[2],
        "tokens-limit": "8000",
        "tokens-remaining": "0",
        "tokens-reset": full[2],
    }


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 3000), st.integers(0, 800)), max_size=80),
    st.sampled_from([1.0, 5.0, 60.0]),
)
@settings(deadline=None)
def test_no_window_is_ever_over_the_limit(calls, bucket_seconds):
    """In any window the admitted input is at most the bucket, its refill and one call's overdraft."""
    buckets = Buckets(60, 6000, 6000, bucket_seconds, now=NOW)
    now, admitted = NOW, []
    for gap, input_tokens, output_tokens in calls:
        now += gap
        if buckets.admit(now, input_tokens=input_tokens):
            admitted.append((now, input_tokens))
            buckets.produce(now, output_tokens)
    capacity = 100 * bucket_seconds
    for start, (since, _) in enumerate(admitted):
        for end in range(start, len(admitted)):
            until = admitted[end][0]
            requests = end - start + 1
            tokens = sum(each for _, each in admitted[start:end])  # all but the last, which may overdraw
            assert requests <= max(bucket_seconds, 1) + (until - since) + 1e-3
            overdraft = max(0, max(each for _, each in admitted[start : end + 1]) - capacity)
            assert tokens <= capacity + (until - since) * 100 + overdraft + 1e-3


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40), st.integers(0, 9000))
@settings(deadline=None)
def test_retry_after_is_enough_and_not_a_second_too_long(sizes, output_tokens):
    """After retry-after the refused call is admitted; two seconds earlier it is not."""
    buckets = Buckets(30, 6000, 6000, bucket_seconds=5, now=NOW)
    buckets.produce(NOW, output_tokens)
    for size in sizes:
        if not buckets.admit(NOW, input_tokens=size):
            wait = buckets.retry_after(NOW, input_tokens=size)
            early = copy.deepcopy(buckets)
            assert wait <= 2 or not early.admit(NOW + wait - 2, input_tokens=size)
            assert buckets.admit(NOW + wait, input_tokens=size)
            return


# --------------------------------------------------------------------------------------------- desk


@pytest.mark.parametrize(
    ("tier", "limits"),
    [
        ("start", (1_000, 2_000_000, 400_000)),
        (1, (50, 40_000, 8_000)),
        ("tier 4", (4_000, 400_000, 80_000)),
        ((7, 8_000, 9_000), (7, 8_000, 9_000)),
    ],
)
def test_the_limits_are_those_of_the_tier(tier, limits):
    """Names, numbers and three numbers of one's own all give their limits in the headers."""
    _, headers, _ = answered(desk(tier), request())
    names = ("requests", "input-tokens", "output-tokens")
    assert tuple(int(headers[f"anthropic-ratelimit-{name}-limit"]) for name in names) == limits


def test_one_limit_of_a_tier_can_be_replaced():
    """A keyword replaces one limit and leaves the tier's others."""
    _, headers, _ = answered(desk("start", requests_per_minute=7), request())
    assert headers["anthropic-ratelimit-requests-limit"] == "7"
    assert headers["anthropic-ratelimit-input-tokens-limit"] == "2000000"
    with pytest.raises(TypeError, match="Did you mean 'requests_per_minute'"):
        desk("start", request_per_minute=7)


def test_a_tier_without_published_limits_needs_ones_own():
    """Evaluation has no published limits: without three of one's own it is refused at once."""
    with pytest.raises(UnknownTier, match="not published"):
        desk("evaluation")
    own = {"requests_per_minute": 5, "input_tokens_per_minute": 10_000, "output_tokens_per_minute": 1_000}
    assert answered(desk("evaluation", **own), request())[1]["anthropic-ratelimit-requests-limit"] == "5"


@pytest.mark.parametrize(
    ("limits", "name", "text"),
    [
        ((1, 1e9, 1e9), "requests_per_minute", "1 requests per minute"),
        ((1e6, 600, 1e9), "input_tokens_per_minute", "600 input tokens per minute"),
        ((1e6, 1e9, 1), "output_tokens_per_minute", "1 output tokens per minute"),
    ],
)
def test_each_limit_refuses_with_429_and_when_to_come_back(limits, name, text):
    """Which limit was hit is told; the call succeeds after retry-after and not before."""
    at = desk(limits)
    body = request("word " * 400)
    assert answered(at, body)[0] == 200
    now = NOW + 20  # after the reply, whose output may be owed
    status, headers, error = answered(at, body, now)
    assert (status, error["error"]["type"]) == (429, "rate_limit_error")
    assert text in error["error"]["message"]
    assert headers["anthropic-ratelimit-requests-limit"]
    assert at.account.figures()["refused"] == {name: 1}
    assert answered(at, body, now + int(headers["retry-after"]))[0] == 200


def test_models_of_one_group_share_their_limits_and_others_do_not():
    """Opus 4.8 and 4.7 draw from one bucket, Haiku from another."""
    at = desk((1, 1e9, 1e9))
    assert answered(at, request(model="claude-opus-4-8"))[0] == 200
    assert answered(at, request(model="claude-opus-4-7"))[0] == 429
    assert answered(at, request(model=HAIKU))[0] == 200


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "claude-none-9"}, 404, "model: claude-none-9"),
        ({"model": "claude-opus-4-1"}, 404, "model: claude-opus-4-1"),
        ({"model": "claude-mythos-5"}, 404, "model: claude-mythos-5"),
        ({"model": None}, 400, "model: Field required"),
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"max_tokens": 128_001}, 400, "128001 > 128000"),
        ({"max_tokens": "many"}, 400, "max_tokens: Input should be a valid integer"),
        ({"temperature": 1.0}, 400, "temperature: Extra inputs are not permitted"),
        ({"top_k": 5}, 400, "top_k: Extra inputs"),
        ({"nonsense": 1}, 400, "nonsense: Extra inputs"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "non-empty content"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            400,
            "Input should be 'user', 'assistant' or 'system'",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, 'must use the "user" role'),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}]},
            400,
            "does not support assistant message prefill",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "thinking.type.enabled"),
        ({"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, 400, "thinking.type.disabled"),
        ({"model": "claude-sonnet-5-5", "thinking": {"type": "disabled"}}, 400, "thinking.type.disabled"),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}},
            400,
            "not supported at effort 'max'",
        ),
        ({"model": "claude-haiku-4-5", "output_config": {"effort": "low"}}, 400, "effort parameter"),
        ({"output_config": {"format": {"type": "json"}}}, 400, "Input should be 'json_schema'"),
        ({"tool_choice": {"type": "any"}, "model": "claude-sonnet-5-5"}, 400, "tool_choice.type"),
        ({"speed": "fast"}, 400, "fast mode is not supported"),
        ({"stop_sequences": "END"}, 400, "stop_sequences"),
        ({"cache_control": {"type": "forever"}}, 400, "cache_control.type"),
        ({"model": "claude-haiku-4-5", "system": "word " * 200_000}, 400, "prompt is too long"),
    ],
)
def test_what_the_api_refuses_is_refused(changes, status, says):
    """A wrong request costs nothing, takes nothing from the limits, and says what is wrong."""
    at = desk("start")
    body = {key: value for key, value in request(**changes).items() if value is not None}
    found, headers, error = answered(at, body)
    assert found == status
    assert says in error["error"]["message"]
    assert ("anthropic-ratelimit-requests-remaining" in headers) == (status == 400 and "model" in body)
    assert error["error"]["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert answered(at, request())[1]["anthropic-ratelimit-requests-remaining"] in {"999", "1000"}
    assert at.account.figures()["billed_rows"] == 1


def test_a_model_is_gone_from_the_moment_it_retires():
    """Sonnet 4.5 answers until 9 AM Pacific of November 30 2026, then it is not found."""
    body = request(model="claude-sonnet-4-5")
    before = datetime(2026, 11, 30, 16, tzinfo=UTC).timestamp()
    assert answered(desk(), body, before)[0] == 200
    assert answered(desk(), body, before + 7200)[0] == 404


def test_the_older_api_version_still_takes_sampling_parameters():
    """On 2023-06-01 a 4.5 model takes temperature, and a newer one only the default."""
    old = {**HEADERS, "anthropic-version": "2023-06-01"}
    assert answered(desk(), request(model="claude-haiku-4-5", temperature=0.2), headers=old)[0] == 200
    assert answered(desk(), request(temperature=1.0), headers=old)[0] == 200
    assert answered(desk(), request(temperature=0.2), headers=old)[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"anthropic-version": "2026-10-21"}, 401),
        ({"x-api-key": "k", "anthropic-version": "2026-10-21"}, 200),
        ({"authorization": "Bearer sk-wrong-key", "anthropic-version": "2026-10-21"}, 401),
        ({"x-api-key": "wrong", "anthropic-version": "2026-10-21"}, 401),
        ({"x-api-key": "k"}, 400),
        ({"x-api-key": "k", "anthropic-version": "1999-01-01"}, 400),
    ],
)
def test_a_call_needs_a_key_and_a_version(headers, status):
    """Both kinds of authorization work, a missing or wrong one is a 401, a missing version a 400."""
    assert answered(desk(), request(), headers=headers)[0] == status


def test_a_body_over_the_limit_is_too_large_and_one_that_is_no_json_is_invalid():
    """413 over 32 MB, 400 for what cannot be read."""
    status, _, error = answered(desk(), b" " * (catalog.MESSAGE.max_bytes + 1))
    assert (status, error["error"]["type"]) == (413, "request_too_large")
    assert answered(desk(), b"{not json")[0] == 400
    assert answered(desk(), b"[1, 2]")[0] == 400


WORDS = st.text("abc {}", max_size=8) | st.sampled_from(["type", "text", "any", "json_schema", "format"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("messages", "system", "max_tokens", "tools", "tool_choice", "thinking", "output_config"),
                *("model", "cache_control", "metadata", "stop_sequences", "stream", "speed", "service_tier"),
            ]
        ),
        JSON,
        max_size=4,
    ),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_json_gets_an_answer(changes, nested):
    """Whatever the fields hold, the desk answers or refuses; it never fails."""
    if nested:
        block = {"type": "text", "text": "x", **changes}
        changes = {"messages": [{"role": "user", "content": [block, *changes.values()]}]}
    status, _, _ = answered(desk(), request(**changes))
    assert status in {200, 400, 404}


WORDS_OF_SCHEMAS = [
    "type",
    "properties",
    "required",
    "items",
    "anyOf",
    "allOf",
    "enum",
    "$ref",
    "$defs",
    "format",
]
ALMOST_SCHEMAS = st.recursive(
    st.sampled_from(["string", "object", "array", "#/$defs/a", "date", True, None, 1, []]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*WORDS_OF_SCHEMAS, "const", "minItems"]), inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(WORDS_OF_SCHEMAS), ALMOST_SCHEMAS, max_size=4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_schema_gets_an_answer(schema, of_a_tool):
    """A schema that is none is refused, as output format and as a tool's input; nothing fails."""
    tool = {"tools": [{"name": "t", "input_schema": schema}], "tool_choice": {"type": "any"}}
    body = request(**tool) if of_a_tool else structured(schema)
    assert answered(desk(), body)[0] in (200, 400)


# ------------------------------------------------------------------------------------------ replies


def test_a_reply_depends_on_the_seed_and_the_body_alone():
    """Neither order, time, tier nor earlier calls change a reply; the seed does."""
    bodies = [
        request(f"Row {number}: the screen froze. It was slow. I like the case.") for number in range(30)
    ]
    one, two, other = desk(seed=3), desk("start", seed=3), desk(seed=4)
    first = [answered(one, body)[2]["content"] for body in bodies]
    second = [
        answered(two, body, NOW + 9e4 + 60 * index)[2]["content"] for index, body in enumerate(bodies[::-1])
    ]
    assert first == second[::-1]
    assert first != [answered(other, body)[2]["content"] for body in bodies]


def test_free_text_says_that_it_is_simulated():
    """Every free-text reply begins with the mark."""
    for model in ("claude-haiku-5-5", "claude-haiku-4-5", "claude-opus-5-5"):
        assert text_of(answered(desk(), request(model=model))[2]).startswith(MARK)


def test_replies_can_be_written_by_the_caller():
    """A callable gives the text, or a JSON value, from the request."""
    at = desk(written=lambda body: {"seen": body["messages"][0]["content"]})
    assert json.loads(text_of(answered(at, request("abc"))[2])) == {"seen": "abc"}


def test_max_tokens_cuts_and_thinking_counts_in_it():
    """With little room the answer is cut or missing, and never more than max_tokens is billed."""
    empty = 0
    for number in range(60):
        body = request(f"Row {number}: " + LONG, max_tokens=12, output_config={"effort": "high"})
        message = answered(desk(), body)[2]
        assert message["stop_reason"] == "max_tokens"
        assert message["usage"]["output_tokens"] <= 12
        empty += text_of(message) == ""
        if text_of(message) == "":
            assert message["content"][0]["type"] == "thinking"
    assert 10 < empty < 60


def test_thinking_can_be_kept_off_where_the_model_allows_it():
    """Haiku 5.5 thinks on some rows by default, and on none with thinking disabled."""
    thought = {}
    for name, changes in {"default": {}, "off": {"thinking": {"type": "disabled"}}}.items():
        messages = [answered(desk(), request(f"Row {number}", **changes))[2] for number in range(60)]
        tokens = [message["usage"]["output_tokens_details"]["thinking_tokens"] for message in messages]
        blocks = [any(block["type"] == "thinking" for block in message["content"]) for message in messages]
        assert blocks == [count > 0 for count in tokens]
        thought[name] = sum(blocks)
    assert 10 < thought["default"] < 50
    assert thought["off"] == 0


def test_zero_max_tokens_warms_the_cache_and_answers_nothing():
    """No content, no output tokens, and the next call reads the prefix."""
    at = desk()
    message = answered(at, cached("a", max_tokens=0))[2]
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == (
        [],
        "max_tokens",
        0,
    )
    assert message["usage"]["cache_creation_input_tokens"] > 512
    assert answered(at, cached("b"), NOW + 60)[2]["usage"]["cache_read_input_tokens"] > 512


def test_a_stop_sequence_ends_the_text():
    """The text ends before it, and the reply names it."""
    body = request(
        "One two three. Four five six.", stop_sequences=["five", "two"], thinking={"type": "disabled"}
    )
    at = desk(written=lambda _: "One two three")
    message = answered(at, body)[2]
    assert (text_of(message), message["stop_reason"], message["stop_sequence"]) == (
        "One ",
        "stop_sequence",
        "two",
    )


def test_a_forced_tool_is_used_with_input_that_fits():
    """tool_choice any gives a tool_use block whose input obeys the schema."""
    tools = [{"name": "rate", "input_schema": SENTIMENT}]
    message = answered(desk(), request(tools=tools, tool_choice={"type": "any"}, max_tokens=4000))[2]
    assert message["stop_reason"] == "tool_use"
    assert message["content"][-1]["name"] == "rate"
    jsonschema.validate(message["content"][-1]["input"], SENTIMENT)


def classified(model, texts, labels, seed=0):
    schema = {**SENTIMENT, "properties": {"sentiment": {"enum": labels}}}
    at = desk(seed=seed)
    bodies = [structured(schema, f"Which is it?\n\n{text}", model=model, max_tokens=8000) for text in texts]
    return [json.loads(text_of(answered(at, body)[2]))["sentiment"] for body in bodies]


def test_classification_looks_plausible_and_better_models_err_less():
    """Labels follow the words of the text; over many rows Opus errs less than Haiku 4.5."""
    good = [f"Order {number}: great quality, I love it." for number in range(150)]
    bad = [f"Order {number}: arrived broken and late, terrible." for number in range(150)]
    truth = ["positive"] * 150 + ["negative"] * 150
    right = {}
    for model in ("claude-haiku-4-5", "claude-haiku-5-5", "claude-opus-5-5"):
        found = classified(model, good + bad, ["negative", "neutral", "positive"])
        right[model] = sum(a == b for a, b in zip(found, truth, strict=True)) / 300
    assert 0.75 < right["claude-haiku-4-5"] < right["claude-opus-5-5"] < 1.0
    assert right["claude-haiku-5-5"] > 0.85


SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["string", "null"]},
        {"enum": ["delivery", "price", None, 3]},
        {"const": "fixed"},
        {"$ref": "#/$defs/Topic"},
        *(
            {"type": "string", "format": name}
            for name in ("date", "date-time", "email", "uuid", "ipv4", "uri")
        ),
    ]
)


def objects(inner):
    def build(properties, required):
        return {
            "type": "object",
            "properties": properties,
            "required": [key for key in properties if key in required],
            "additionalProperties": False,
        }

    keys = st.sampled_from(["name", "rating", "is_late", "email", "tags", "note"])
    return st.builds(build, st.dictionaries(keys, inner, max_size=4), st.sets(keys))


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: (
        objects(inner)
        | st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 1),
        )
        | st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=8,
)


@given(objects(SCHEMAS), st.text(LETTERS, max_size=80))
@settings(max_examples=150, deadline=None)
def test_structured_outputs_obey_any_schema_the_api_takes(schema, text):
    """Objects, arrays, unions, references, enums, formats: the reply always validates."""
    schema = {**schema, "$defs": {"Topic": {"enum": ["price", "delivery", "other"]}}}
    if schema_problem(json.dumps(schema)):
        return  # over the API's own limits
    at = desk()
    status, _, message = answered(at, structured(schema, text + " 4 of 5", max_tokens=100_000))
    assert status == 200
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(json.loads(text_of(message)), schema, format_checker=checker)


def test_a_cut_structured_reply_breaks_its_schema():
    """max_tokens breaks the guarantee, as on the API: the JSON ends in the middle."""
    message = answered(desk(), structured(SENTIMENT, max_tokens=6, thinking={"type": "disabled"}))[2]
    assert message["stop_reason"] == "max_tokens"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text_of(message))


def nested(depth):
    return {"$ref": "#/$defs/A"} if depth == 0 else {"anyOf": [nested(depth - 1), {"type": "null"}]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"additionalProperties": True}, "additionalProperties"),
        ({"properties": {"x": {"type": "integer", "minimum": 0}}}, "'minimum' is not supported"),
        ({"properties": {"x": {"type": "string", "maxLength": 9}}}, "'maxLength' is not supported"),
        ({"properties": {"x": {"type": "array", "items": {}, "minItems": 2}}}, "minItems"),
        ({"properties": {"x": {"$ref": "#/$defs/Missing"}}}, "cannot be resolved"),
        ({"properties": {"x": {"$ref": "#"}}}, "Recursive"),
        ({"properties": {"x": nested(2)}, "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}}, "Recursive"),
        (
            {"properties": {f"x{n}": {"type": "string"} for n in range(25)}, "required": []},
            "too many optional",
        ),
        (
            {
                "properties": {f"x{n}": {"type": ["string", "null"]} for n in range(17)},
                "required": [f"x{n}" for n in range(17)],
            },
            "too many parameters with union types",
        ),
    ],
)
def test_schemas_over_the_limits_are_refused(changes, says):
    """What structured outputs do not take is a 400 that names it."""
    status, _, error = answered(desk(), structured({**SENTIMENT, **changes}))
    assert status == 400
    assert says in error["error"]["message"]


# -------------------------------------------------------------------------------- tokens and caching


@given(st.text(LETTERS, min_size=50, max_size=400))
@settings(deadline=None)
def test_token_counts_are_near_the_estimate(text):
    """A text has its characters' worth of tokens, up to about a tenth more or less."""
    model = catalog.model(HAIKU)
    base = answered(desk(), request("x"))[2]["usage"]["input_tokens"] - 1
    if text.strip():
        found = answered(desk(), request(text))[2]["usage"]["input_tokens"] - base
        expected = len(text) / model.characters_per_token
        assert expected / 1.1 - 1 <= found <= expected / 0.9 + 1


def test_the_older_tokenizer_gives_fewer_tokens():
    """The same text has about a quarter fewer tokens on Haiku 4.5."""
    new = answered(desk(), request(LONG))[2]["usage"]["input_tokens"]
    old = answered(desk(), request(LONG, model="claude-haiku-4-5"))[2]["usage"]["input_tokens"]
    assert 0.68 < old / new < 0.8


def shares(message):
    usage = message["usage"]
    return usage["input_tokens"], usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]


def test_the_first_call_writes_and_later_ones_read_until_the_time_is_up():
    """Write, read (which renews it), read again, and after five idle minutes write again."""
    at = desk()
    first, second, third, late = (
        shares(answered(at, cached(row), NOW + wait)[2])
        for row, wait in (("a", 0), ("b", 250), ("c", 500), ("d", 801))
    )
    assert (first[2], second[1], third[1], late[2]) == (0, 0, 0, 0)
    assert first[1] == second[2] == third[2] == late[1] > 512
    assert first[0] == second[0]


def test_calls_that_start_together_all_write():
    """The entry can be read only after the first reply has begun."""
    at = desk(latency=4.0)
    together = [at.admit(NOW + 0.1 * number, cached(f"row {number}"), HEADERS) for number in range(5)]
    later = at.admit(NOW + 2.1, cached("later"), HEADERS)
    assert [call.shares.cache_read_input_tokens for call in together] == [0] * 5
    assert all(call.shares.cache_write_5m_input_tokens > 512 for call in together)
    assert later.shares.cache_read_input_tokens == together[0].shares.cache_write_5m_input_tokens


def test_a_prefix_below_the_minimum_is_silently_not_cached():
    """The same prefix is cached on Haiku 5.5 and too short for Haiku 4.5."""
    assert shares(answered(desk(), cached("a"))[2])[1] > 0
    input_tokens, written, read = shares(answered(desk(), cached("a", model="claude-haiku-4-5"))[2])
    assert (written, read) == (0, 0)
    assert input_tokens > 512


def test_an_hour_and_another_effort():
    """A 1h entry is billed as such and outlives 5 minutes; another effort does not find it."""
    at = desk()
    message = answered(at, cached("a", ttl="1h"))[2]
    assert message["usage"]["cache_creation"]["ephemeral_1h_input_tokens"] > 512
    assert shares(answered(at, cached("b", ttl="1h"), NOW + 3500)[2])[2] > 512
    other = cached("c", ttl="1h", output_config={"effort": "low"})
    assert shares(answered(at, other, NOW + 3500)[2])[2] == 0


def test_cache_reads_do_not_count_against_the_input_limit():
    """With room for one prefix a minute, many calls that read it are admitted."""
    at = desk((1e6, 1700, 1e9))
    statuses = [answered(at, cached(f"row {number}"), NOW + 10 + number)[0] for number in range(20)]
    assert statuses == [200] * 20
    assert answered(at, cached("x", prefix=LONG + "!"), NOW + 30)[0] == 429


def test_a_conversation_reads_what_earlier_turns_wrote():
    """With automatic caching each longer turn reads the one before."""
    at = desk()
    turns = [{"role": "user", "content": LONG}]
    first = answered(at, request(messages=turns, cache_control={"type": "ephemeral"}))[2]
    turns += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": LONG + "?"}]
    second = answered(at, request(messages=turns, cache_control={"type": "ephemeral"}), NOW + 60)[2]
    assert shares(first)[1] == pytest.approx(shares(second)[2], abs=10)
    assert shares(second)[1] > 512


@given(
    st.sampled_from([HAIKU, "claude-sonnet-4-5", "claude-opus-5-5", "claude-fable-5-1"]),
    st.integers(1, 700_000),
    st.sampled_from([None, "5m", "1h"]),
)
@settings(max_examples=40, deadline=None)
def test_the_bill_is_the_list_price_of_each_reply(model, characters, ttl):
    """Dollars are those of genai-prices for the usage sent, over all steps of the price."""
    if model == "claude-sonnet-4-5":
        characters = min(characters, 600_000)
    body = cached("row", prefix="x" * characters, ttl=ttl or "5m") if ttl else request("x" * characters)
    at = desk()
    message = answered(at, {**body, "model": model, "max_tokens": 4000})[2]
    usage = genai_prices.extract_usage(message, provider_id="anthropic").usage
    price = genai_prices.calc_price(
        usage,
        model_ref=model,
        provider_id="anthropic",
        genai_request_timestamp=datetime.fromtimestamp(NOW, UTC),
    )
    assert at.account.figures()["dollars"] == pytest.approx(float(price.total_price), rel=1e-9)


# ----------------------------------------------------------------------------------- faults and peaks


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 413, 500, 503, 504, 529])
def test_every_status_can_be_made_to_happen(status):
    """A fault of probability 1 strikes each call with its status and takes nothing."""
    at = desk(faults={status: 1.0})
    assert answered(at, request())[0] == status
    assert at.account.figures()["billed_rows"] == 0
    assert at.account.figures()["faults"] == {str(status): 1}


def test_a_fault_strikes_by_seed_by_try_and_within_its_window():
    """The same calls are struck in any order; a retry is drawn anew; outside the window none is."""
    bodies = [request(f"row {number}") for number in range(200)]

    def struck(order, now=NOW + 15):
        at = desk(faults={529: (0.3, 10, 20)}, seed=5)
        found = {
            bodies[index]["messages"][0]["content"]: answered(at, bodies[index], now)[0] for index in order
        }
        return at, {text for text, status in found.items() if status == 529}

    at, forward = struck(range(200))
    _, backward = struck(reversed(range(200)))
    assert forward == backward
    assert 35 < len(forward) < 85
    again = [answered(at, body, NOW + 16)[0] for body in bodies if body["messages"][0]["content"] in forward]
    assert 0 < again.count(529) < len(again)
    assert struck(range(200), NOW + 20)[1] == set()


def test_the_ramp_limit_is_a_429_with_its_code():
    """429 as a fault carries retry-after and ramp_limit_exceeded."""
    status, headers, error = answered(desk(faults={429: 1.0}), request())
    assert (status, headers["retry-after"]) == (429, "5")
    assert error["error"]["details"] == {"error_code": "ramp_limit_exceeded"}


def test_the_spend_cap_ends_everything_without_a_retry_after():
    """Once the dollars are spent every call is refused for good; the workspace's limit is a 400."""
    at = desk(faults={"spend_cap": 1e-9})
    assert answered(at, request())[0] == 200
    status, headers, error = answered(at, request(), NOW + 60)
    assert (status, error["error"]["details"]["error_code"]) == (429, "enforced_spend_limit_reached")
    assert "retry-after" not in headers
    at = desk(faults={"workspace_spend": 0.0})
    status, _, error = answered(at, request())
    assert status == 400
    assert error["error"]["message"].startswith("You have reached your specified workspace API usage limits")
    assert "2026-12-01" in error["error"]["message"]


def test_overload_above_a_number_in_flight():
    """The call beyond the number gets a 529, until one before it is done."""
    at = desk(faults={"overload_above": 2})
    one, two = (at.admit(NOW, request(f"{number}"), HEADERS) for number in range(2))
    assert answered(at, request("3"))[0] == 529
    at.finish(one.done_at, one)
    assert isinstance(at.admit(one.done_at, request("4"), HEADERS), Admission)
    assert isinstance(two, Admission)


@pytest.mark.parametrize(
    ("kind", "stop_reason", "types"),
    [
        ("refusal", "refusal", []),
        ("refusal_midway", "refusal", ["text"]),
        ("empty_content", "end_turn", []),
        ("thinking_only", "max_tokens", ["thinking"]),
        ("cut", "max_tokens", ["text"]),
    ],
)
def test_replies_can_be_spoiled(kind, stop_reason, types):
    """Status 200, billed (but for most refusals), and not what one wanted."""
    at = desk(faults={kind: 1.0})
    status, _, message = answered(at, request(thinking={"type": "disabled"}))
    assert (status, message["stop_reason"]) == (200, stop_reason)
    assert [block["type"] for block in message["content"]] == types
    figures = at.account.figures()
    assert figures["billed_rows"] + figures["free_refusals"] == 1


def test_an_unknown_fault_names_the_nearest():
    """A misspelt kind is refused when the simulator is made."""
    with pytest.raises(ValueError, match="Did you mean 'refusal'"):
        desk(faults={"refusals": 1.0})


def test_peaks_are_those_of_the_worst_window():
    """Ten calls in half a second and ten more within the minute: 10 a second, 20 a minute."""
    at = desk()
    moments = [*(0.05 * number for number in range(10)), *(5 + 2 * number for number in range(10))]
    for moment in [*moments, *(100 + number for number in range(10))]:
        answered(at, request(f"row {moment}"), NOW + moment)
    figures = at.account.figures()
    assert (figures["peak_requests_per_second"], figures["peak_requests_per_minute"]) == (10, 20)
    assert figures["billed_rows"] == figures["distinct_rows_billed"] == 30


def test_a_repeated_request_is_billed_but_not_distinct():
    """Paying twice for one row shows in the server's own account."""
    at = desk()
    for _ in range(3):
        answered(at, request("same"))
    assert (at.account.figures()["billed_rows"], at.account.figures()["distinct_rows_billed"]) == (3, 1)


# ------------------------------------------------------------------------------------------- batches


def batch_of(rows, **changes):
    return {
        "requests": [{"custom_id": f"row-{n}", "params": request(f"row {n}", **changes)} for n in range(rows)]
    }


def settled(batches, now):
    for batch in batches.unsettled():
        for _ in batches.work(batch, now):
            pass


def results_of(batches, name, now):
    lines = [json.loads(line) for line in batches.results(now, batches.find(name))]
    return {line["custom_id"]: line["result"] for line in lines}, [line["custom_id"] for line in lines]


def test_a_batch_shows_no_counts_until_it_has_ended_and_bills_half():
    """All rows count as processing until the end; results are unordered; batch prices hold."""
    at = desk()
    batches = Batches(at, NOW, seconds=600)
    made = batches.create(NOW, batch_of(50), "2026-10-21")
    batch = batches.find(made["id"])
    settled(batches, NOW + 599)
    assert batch.shown(NOW + 599)["request_counts"]["processing"] == 50
    assert batch.shown(NOW + 599)["results_url"] is None
    settled(batches, NOW + 600)
    shown = batch.shown(NOW + 600, "http://host")
    assert (shown["processing_status"], shown["request_counts"]["succeeded"]) == ("ended", 50)
    assert shown["results_url"] == f"http://host/v1/messages/batches/{made['id']}/results"
    found, order = results_of(batches, made["id"], NOW + 601)
    assert set(found) == {f"row-{n}" for n in range(50)}
    assert order != sorted(order, key=lambda name: int(name.removeprefix("row-")))
    live = desk()
    for row in batch_of(50)["requests"]:
        answered(live, row["params"])
    assert at.account.figures()["dollars"] == pytest.approx(live.account.figures()["dollars"] / 2)
    assert at.account.figures()["billed_rows_by_mode"] == {"live": 0, "batch": 50}


def test_a_batch_answers_as_the_live_api_does():
    """The same request has the same reply in both modes."""
    batches = Batches(desk(), NOW, seconds=10)
    made = batches.create(NOW, batch_of(5), "2026-10-21")
    settled(batches, NOW + 10)
    found, _ = results_of(batches, made["id"], NOW + 10)
    for number in range(5):
        live = answered(desk(), request(f"row {number}"))[2]
        assert found[f"row-{number}"]["message"]["content"] == live["content"]


def test_wrong_rows_of_a_batch_fail_alone_and_only_at_the_end():
    """Params are checked asynchronously: create succeeds, the bad rows are errored and not billed."""
    body = batch_of(6)
    body["requests"][1]["params"]["temperature"] = 1.0
    body["requests"][3]["params"]["model"] = "claude-none"
    body["requests"][5]["params"]["stream"] = True
    at = desk()
    batches = Batches(at, NOW, seconds=60)
    made = batches.create(NOW, body, "2026-10-21")
    settled(batches, NOW + 60)
    found, _ = results_of(batches, made["id"], NOW + 60)
    errors = {
        name: result["error"]["error"]["type"]
        for name, result in found.items()
        if result["type"] == "errored"
    }
    assert errors == {
        "row-1": "invalid_request_error",
        "row-3": "not_found_error",
        "row-5": "invalid_request_error",
    }
    assert at.account.figures()["billed_rows"] == 3


def test_a_canceled_batch_keeps_what_succeeded():
    """It is canceling, then ended, with some rows succeeded and the others canceled."""
    batches = Batches(desk(), NOW, seconds=1000)
    made = batches.create(NOW, batch_of(100), "2026-10-21")
    batch = batches.find(made["id"])
    batches.cancel(NOW + 500, batch)
    assert batch.shown(NOW + 501)["processing_status"] == "canceling"
    settled(batches, NOW + 520)
    counts = batch.shown(NOW + 520)["request_counts"]
    assert counts["processing"] == counts["errored"] == counts["expired"] == 0
    assert 30 < counts["succeeded"] < 75
    assert counts["succeeded"] + counts["canceled"] == 100
    with pytest.raises(Problem, match="already ended"):
        batches.cancel(NOW + 521, batch)


def test_what_is_not_done_in_a_day_expires_and_results_go_after_29():
    """Rows beyond 24 hours are expired and unbilled; the results are archived in the end."""
    at = desk()
    batches = Batches(at, NOW, seconds=48 * 3600)
    made = batches.create(NOW, batch_of(100), "2026-10-21")
    settled(batches, NOW + 24 * 3600)
    batch = batches.find(made["id"])
    counts = batch.shown(NOW + 24 * 3600)["request_counts"]
    assert 30 < counts["expired"] < 70
    assert at.account.figures()["billed_rows"] == counts["succeeded"] == 100 - counts["expired"]
    shown = batch.shown(NOW + 29 * 86_400)
    assert shown["archived_at"] is not None
    assert shown["results_url"] is None
    with pytest.raises(Problem, match="archived"):
        batches.results(NOW + 29 * 86_400, batch)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "at least 1 item"),
        ({"requests": [{"custom_id": "a b", "params": {}}]}, 400, "custom_id"),
        ({"requests": [{"custom_id": "a\n", "params": {}}]}, 400, "custom_id"),
        ({"requests": [{"custom_id": "a", "params": {}}] * 2}, 400, "duplicate"),
        ({"requests": [{"custom_id": "a"}]}, 400, "params"),
        ({"requests": [{}] * 100_001}, 413, "100000"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_at_once(body, status, says):
    """Ids, their uniqueness and the size are checked when the batch is created."""
    with pytest.raises(Problem, match=says) as error:
        Batches(desk(), NOW).create(NOW, body, "2026-10-21")
    assert error.value.status == status


def test_the_queue_holds_only_so_many_and_empties_as_rows_are_done():
    """A batch over the queue's limit is a 429; half way through, half of it has left."""
    batches = Batches(desk("start", batch_queue_requests=100), NOW, seconds=1000)
    assert batches.create(NOW, batch_of(80), "2026-10-21")["type"] == "message_batch"
    with pytest.raises(Problem, match="processing queue"):
        batches.create(NOW + 1, batch_of(30), "2026-10-21")
    assert batches.create(NOW + 500, batch_of(30), "2026-10-21")["type"] == "message_batch"


# --------------------------------------------------------------------------------------------- HTTP


@pytest.fixture
def simulator():
    with Simulator("start", speed=200) as made:
        yield made


def strict(simulator, **options):
    return simulator.client(_strict_response_validation=True, **options)


def test_the_sdk_takes_every_message_in_strict_mode(simulator):
    """Plain, thinking, structured, cached, tool use and pre-warming pass the SDK's strict validation."""
    tools = [{"name": "rate", "input_schema": SENTIMENT}]
    bodies = [
        request(),
        request(model="claude-opus-5-5", output_config={"effort": "max"}, max_tokens=9000),
        request(thinking={"type": "adaptive", "display": "summarized"}, max_tokens=9000),
        structured(SENTIMENT),
        cached("a"),
        cached("b", max_tokens=0),
        request(tools=tools, tool_choice={"type": "any"}),
        request(model="claude-opus-5-5", speed="fast", service_tier="standard_only"),
    ]

    async def run():
        async with strict(simulator) as client:
            return [await client.messages.create(**body) for body in bodies]

    messages = asyncio.run(run())
    assert [message.type for message in messages] == ["message"] * len(bodies)
    assert messages[0].model == catalog.model(HAIKU).snapshot
    assert messages[-1].usage.speed == "fast"
    assert simulator.stats["billed_rows"] == len(bodies)


def test_spoiled_replies_pass_strict_mode_too():
    """A refusal and a reply of thinking alone are valid messages."""

    async def run(kind):
        with Simulator(speed=200, faults={kind: 1.0}) as made:
            async with strict(made) as client:
                return await client.messages.create(**request())

    refused = asyncio.run(run("refusal")).stop_details
    assert refused.category in {"general_harms", "cyber", "bio", "frontier_llm"}
    assert asyncio.run(run("thinking_only")).content[0].type == "thinking"


def test_errors_arrive_as_the_sdks_typed_exceptions():
    """Each status is the SDK's class for it, with type, code and request id."""

    async def caught(faults, body=None, **options):
        with Simulator(speed=200, faults=faults) as made:
            async with strict(made, **options) as client:
                with pytest.raises(anthropic.APIError) as error:
                    await client.messages.create(**(body or request()))
                return error.value

    cases = [
        ({429: 1.0}, None, {}, anthropic.RateLimitError, "rate_limit_error", "ramp_limit_exceeded"),
        (
            {"spend_cap": 0.0},
            None,
            {},
            anthropic.RateLimitError,
            "rate_limit_error",
            "enforced_spend_limit_reached",
        ),
        ({529: 1.0}, None, {}, anthropic.InternalServerError, "overloaded_error", None),
        ({500: 1.0}, None, {}, anthropic.InternalServerError, "api_error", None),
        ({402: 1.0}, None, {}, anthropic.APIStatusError, "billing_error", None),
        ({}, request(model="claude-none"), {}, anthropic.NotFoundError, "not_found_error", None),
        (
            {},
            request(max_tokens=999_999),
            {"timeout": 60},
            anthropic.BadRequestError,
            "invalid_request_error",
            None,
        ),
        ({}, None, {"api_key": "sk-wrong"}, anthropic.AuthenticationError, "authentication_error", None),
    ]
    for faults, body, options, kind, name, code in cases:
        error = asyncio.run(caught(faults, body, **options))
        assert isinstance(error, kind)
        assert (error.type, error.error_code) == (name, code)
        assert error.request_id.startswith("req_sim")
        assert error.response.headers["claudescale-simulator"] == "1"


def test_broken_answers_break_as_they_do_on_the_wire():
    """Dropped, hanging, truncated, HTML and non-JSON answers reach the SDK as what they are."""

    async def caught(kind):
        with Simulator(speed=200, faults={kind: 1.0}) as made:
            async with made.client(timeout=1.0, max_retries=0) as client:
                try:
                    message = await client.messages.create(**request())
                except Exception as error:  # noqa: BLE001
                    return error, made.stats["billed_rows"]
                return message, made.stats["billed_rows"]

    for kind, expected, billed in (
        ("drop", anthropic.APIConnectionError, 0),
        ("drop_after", anthropic.APIConnectionError, 1),
        ("hang", anthropic.APITimeoutError, 0),
        ("html_body", anthropic.InternalServerError, 0),
    ):
        error, rows = asyncio.run(caught(kind))
        assert isinstance(error, expected), kind
        assert rows == billed, kind
    for kind in ("truncated_body", "not_json"):
        error, rows = asyncio.run(caught(kind))
        assert isinstance(error, Exception), kind
        assert rows == 1, kind


def test_the_limits_hold_over_http_and_headers_come_with_every_answer():
    """Of many calls at once the minute's worth is admitted; 200s and 429s carry the headers."""

    async def run():
        with Simulator((20, 1e6, 1e6), latency=0.1) as made:
            began = made.clock.seconds()
            async with made.client(max_retries=0) as client:
                calls = [client.messages.with_raw_response.create(**request(f"row {n}")) for n in range(40)]
                found = await asyncio.gather(*calls, return_exceptions=True)
            return found, made.stats, made.clock.seconds() - began

    found, stats, seconds = asyncio.run(run())
    refused = [each for each in found if isinstance(each, anthropic.RateLimitError)]
    assert stats["billed_rows"] == 40 - len(refused)
    assert 20 <= stats["billed_rows"] <= 20 + seconds * 20 / 60 + 1
    assert refused or seconds > 50
    assert stats["refused"] == {"requests_per_minute": len(refused)}
    for each in found:
        headers = each.response.headers if isinstance(each, Exception) else each.headers
        assert headers["anthropic-ratelimit-requests-limit"] == "20"
    assert all(1 <= int(each.response.headers["retry-after"]) <= 3 for each in refused)


def test_latency_is_api_time():
    """At 200 times the speed, a reply of 10 API seconds takes 10 seconds of the simulator's clock."""
    with Simulator(speed=200, latency=10.0) as made:

        async def run():
            async with made.client(max_retries=0) as client:
                before = made.clock.seconds()
                await client.messages.create(**request())
                return made.clock.seconds() - before

        assert asyncio.run(run()) >= 10.0


def test_streaming_gives_the_same_message_as_not_streaming(simulator):
    """The SDK puts the events together to the very message, and the bill is the same."""
    bodies = [
        request(),
        request(thinking={"type": "adaptive", "display": "summarized"}),
        structured(SENTIMENT),
    ]

    async def run(body):
        async with strict(simulator) as client:
            plain = await client.messages.create(**body)
            async with client.messages.stream(**body) as stream:
                streamed = await stream.get_final_message()
        return plain, streamed

    for body in bodies:
        plain, streamed = asyncio.run(run(body))
        assert streamed.to_dict()["content"] == plain.to_dict()["content"]
        assert streamed.stop_reason == plain.stop_reason
        assert streamed.usage.output_tokens == plain.usage.output_tokens
        assert streamed.usage.input_tokens == plain.usage.input_tokens
    assert simulator.stats["billed_rows"] == 6
    assert simulator.stats["in_flight"] == 0


def test_counting_is_free_and_agrees_with_the_bill(simulator):
    """count_tokens gives the very input tokens that the message is billed."""
    body = request(LONG, system="Be brief.")

    async def run():
        async with strict(simulator) as client:
            counted = await client.messages.count_tokens(
                model=HAIKU, messages=body["messages"], system="Be brief."
            )
            return counted.input_tokens, (await client.messages.create(**body)).usage.input_tokens

    counted, billed = asyncio.run(run())
    assert counted == billed
    assert simulator.stats["calls"] == 1


def test_counting_has_a_limit_of_its_own():
    """Beyond its own rate a count is refused, while messages still pass."""
    at = desk("start", count_tokens_per_minute=2)
    body = json.dumps({key: value for key, value in request().items() if key != "max_tokens"}).encode()
    assert [at.count_tokens(NOW, body, HEADERS).status for _ in range(3)] == [200, 200, 429]
    assert at.count_tokens(NOW + 30, body, HEADERS).status == 200
    assert answered(at, request())[0] == 200


def test_models_are_listed_by_lifecycle_and_page(simulator):
    """The SDK pages through the list; retired models show only when asked for."""

    async def run():
        async with strict(simulator) as client:
            default = [model async for model in client.models.list(limit=4)]
            retired = [model async for model in client.models.list(lifecycle=["retired"])]
            one = await client.models.retrieve("claude-haiku-4-5")
            with pytest.raises(anthropic.NotFoundError):
                await client.models.retrieve("claude-none")
            return default, retired, one

    default, retired, one = asyncio.run(run())
    assert {model.lifecycle for model in default} <= {"active", "deprecated"}
    assert len(default) == len({model.id for model in default}) > 10
    assert {model.lifecycle for model in retired} == {"retired"}
    assert (one.line, one.max_input_tokens, one.display_name) == ("haiku", 200_000, "Claude Haiku 4.5")
    assert not one.capabilities.effort.supported


def test_rate_limits_can_be_read(simulator):
    """The admin endpoint gives the tier's limits by group, filtered and paged."""

    async def run():
        async with strict(simulator) as client:
            limits = client.organization.rate_limits
            return (
                [item async for item in limits.list(limit=3)],
                [item async for item in limits.list(model=HAIKU)],
                [item async for item in limits.list(group_type="batch")],
            )

    every, haiku, batch = asyncio.run(run())
    assert len(every) == len({item.id for item in every}) > 5
    values = {limit.type: limit.value for limit in haiku[0].limits}
    assert values["requests_per_minute"] == 1_000
    assert values["input_tokens_per_minute_cache_aware"] == 2_000_000
    assert {limit.type: limit.value for limit in batch[0].limits}["enqueued_batch_requests"] == 200_000


def test_rate_limits_are_for_admin_keys():
    """A key that looks like an ordinary one is turned down there, and nowhere else."""

    async def ask(simulator):
        async with simulator.client(api_key="sk-ant-api03-ordinary") as client:
            assert (await client.models.retrieve(HAIKU)).id == HAIKU
            with pytest.raises(anthropic.PermissionDeniedError, match="Admin API key"):
                await client.organization.rate_limits.list()

    with Simulator(speed=60) as made:
        asyncio.run(ask(made))


def test_the_sdk_takes_a_batch_through_its_life():
    """Create, retrieve, list, results, cancel and delete work in strict mode, with an absolute URL."""

    async def run():
        with Simulator(speed=2000, batch_seconds=lambda rows: 80_000 if rows == 40 else 600) as made:
            async with strict(made) as client:
                batches = client.messages.batches
                first = await batches.create(**batch_of(30))
                second = await batches.create(**batch_of(2))
                third = await batches.create(**batch_of(40))
                with pytest.raises(anthropic.BadRequestError):
                    await batches.delete(third.id)
                canceling = await batches.cancel(third.id)
                while (shown := await batches.retrieve(first.id)).processing_status != "ended":
                    assert shown.request_counts.processing == 30
                    await asyncio.sleep(0.05)
                listed = [batch.id async for batch in batches.list(limit=2)]
                results = [line async for line in await batches.results(first.id)]
                deleted = await batches.delete(first.id)
                with pytest.raises(anthropic.NotFoundError):
                    await batches.retrieve(first.id)
                return first, second, third, canceling, shown, listed, results, deleted, made.url

    first, second, third, canceling, shown, listed, results, deleted, url = asyncio.run(run())
    assert first.processing_status == "in_progress"
    assert canceling.processing_status == "canceling"
    assert shown.results_url.startswith(url)
    assert listed == [third.id, second.id, first.id]
    assert {line.result.type for line in results} == {"succeeded"}
    assert len({line.custom_id for line in results}) == 30
    assert deleted.type == "message_batch_deleted"


def fetch(url, body=None, headers=HEADERS):
    data = None if body is None else json.dumps(body).encode()
    sent = urllib.request.Request(url, data=data, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(sent, timeout=30) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def test_any_client_learns_the_clock_and_unknown_paths_are_404(simulator):
    """Plain HTTP works; GET /simulator says what runs; the mark is on every answer."""
    status, headers, about = fetch(f"{simulator.url}/simulator")
    assert (status, about["simulator"], about["speed"], about["tier"]) == (200, "claudescale", 200, "start")
    assert abs(about["now"] - simulator.clock.seconds()) < 10 * 200
    assert headers["claudescale-simulator"] == "1"
    status, headers, message = fetch(f"{simulator.url}/v1/messages", request())
    assert (status, message["role"], headers["claudescale-simulator"]) == (200, "assistant", "1")
    assert fetch(f"{simulator.url}/v1/nothing")[0] == 404
    assert fetch(f"{simulator.url}/simulator/stats")[2]["billed_rows"] == 1


def test_it_listens_on_this_machine_only_and_closes(simulator):
    """The address is loopback; a closed simulator refuses connections and keeps its stats."""
    assert simulator.url.startswith("http://127.0.0.1:")
    asyncio.run(_one_call(simulator))
    simulator.close()
    simulator.close()
    assert simulator.stats["billed_rows"] == 1
    with pytest.raises(urllib.error.URLError):
        fetch(f"{simulator.url}/simulator")


async def _one_call(simulator):
    async with simulator.client() as client:
        await client.messages.create(**request())


def test_a_port_in_use_is_said_at_once(simulator):
    """A second simulator on the same port raises, and leaves no thread behind."""
    with pytest.raises(OSError, match="address already in use"):
        Simulator(port=int(simulator.url.rpartition(":")[2]))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_serves_and_stops_cleanly(ending):
    """One line says what to export; a signal ends it with status 0 and nothing on stderr."""
    command = [
        sys.executable,
        "-m",
        "claudescale.simulator",
        "--tier",
        "1",
        "--speed",
        "50",
        "--faults",
        "529=1@0-9999",
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    ) as process:
        line = process.stdout.readline()
        url = line.partition("ANTHROPIC_BASE_URL=")[2].split()[0]
        assert "ANTHROPIC_API_KEY=simulated" in line
        assert fetch(f"{url}/simulator")[2]["tier"] == "tier 1"
        assert fetch(f"{url}/v1/messages", request())[0] == 529
        process.send_signal(ending)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")


@given(st.sampled_from(sorted(catalog.MODELS)))
@settings(deadline=None)
def test_bulk_settings_of_the_catalog_are_accepted(name):
    """What the catalog says keeps thinking off, and every effort it lists, is no 400 here."""
    model = catalog.MODELS[name]
    if isinstance(found_model({"model": name}, NOW), catalog.Model):
        off = {"thinking": dict(model.thinking_off)} if model.thinking_off else {}
        assert problem(request(model=name, **off), model) is None
        for effort in model.efforts:
            assert problem(request(model=name, output_config={"effort": effort}), model) is None


def test_bounds_told_in_words_are_obeyed():
    """Where the API has no keyword for a bound it stands in the description, and the replies keep to it."""
    schema = {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "description": "(maximum: 5, minimum: 4)"},
            "part": {"type": "number", "description": "(exclusive maximum: 1, exclusive minimum: 0)"},
            "tag": {"type": "string", "description": "(max length: 4, min length: 2)"},
            "few": {
                "type": "array",
                "items": {"type": "integer"},
                "description": "(max items: 2, min items: 2)",
            },
        },
        "required": ["score", "part", "tag", "few"],
    }
    for seed in range(20):
        text = f"{seed} parcels of 300 were late, {seed * 7} came."
        written = Writer(text, schema, Random(seed), Random(seed), 1.0).value(schema)
        assert 4 <= written["score"] <= 5
        assert 0 < written["part"] < 1
        assert 2 <= len(written["tag"]) <= 4
        assert len(written["few"]) == 2
