"""One account of the simulator: its limits, what remains of them, its bill and its peaks."""

import copy
from datetime import UTC, datetime

import genai_prices
import pytest
from bodies import HAIKU, OLD, OPUS, SEARCH, cached, request, rows_of
from desks import HEADERS, NOW, answered, batches_of, desk, message_of, worked
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.errors import UnknownTier
from claudescale.simulator import Buckets
from claudescale.simulator.wire import Problem


def test_headers_say_limit_remaining_and_time_of_full_refill():
    """All twelve headers are present, tokens in thousands, an overdraft as 0, resets in whole seconds."""
    buckets = Buckets(50, 40_000, 8_000, now=NOW)
    assert buckets.admit(NOW, input_tokens=12_400)
    buckets.produce(NOW, 9_000)
    full = [f"{datetime.fromtimestamp(NOW + wait, UTC):%Y-%m-%dT%H:%M:%SZ}" for wait in (2, 19, 68)]
    expected = {"requests": ("50", "49", full[0]), "input-tokens": ("40000", "28000", full[1])}
    expected["output-tokens"] = expected["tokens"] = ("8000", "0", full[2])
    assert buckets.headers(NOW) == {
        f"anthropic-ratelimit-{name}-{part}": value
        for name, values in expected.items()
        for part, value in zip(("limit", "remaining", "reset"), values, strict=True)
    }


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 9000), st.integers(0, 800)), max_size=40),
    st.sampled_from([1.0, 5.0, 60.0]),
)
@settings(max_examples=30, deadline=None)
def test_no_window_is_ever_over_the_limit_and_retry_after_is_right(calls, bucket_seconds):
    """A window admits a bucket, its refill and one overdraft; a refusal takes nothing, its wait suffices."""
    buckets, capacity = Buckets(60, 6000, 6000, bucket_seconds=bucket_seconds, now=NOW), 100 * bucket_seconds
    now, admitted = NOW, []
    for gap, input_tokens, output_tokens in calls:
        now += gap
        if buckets.admit(now, input_tokens=input_tokens):
            admitted.append((now, input_tokens))
            buckets.produce(now, output_tokens)
        else:
            wait, again = buckets.retry_after(now, input_tokens=input_tokens), copy.deepcopy(buckets)
            assert wait <= 2 or not again.admit(now + wait - 2, input_tokens=input_tokens)
            assert again.admit(now + wait, input_tokens=input_tokens)
    for start, (since, _) in enumerate(admitted):
        for end in range(start, len(admitted)):
            seconds, sizes = admitted[end][0] - since, [size for _, size in admitted[start : end + 1]]
            assert len(sizes) <= max(bucket_seconds, 1) + seconds + 1e-3
            # All but the last, which may overdraw.
            assert sum(sizes[:-1]) <= capacity + seconds * 100 + max(0, *sizes, capacity) - capacity + 1e-3


NINES = {f"{kind}_per_minute": 9 for kind in ("requests", "input_tokens", "output_tokens")}
TIERS = [
    (1, {}, (50, 40_000)),
    ((7, 8_000, 9_000), {}, (7, 8_000)),
    ("start", {"requests_per_minute": 7}, (7, 2_000_000)),
    ("evaluation", NINES, (9, 9)),
]


@pytest.mark.parametrize(("tier", "limits", "expected"), TIERS)
def test_the_limits_are_those_of_the_tier_and_any_can_be_replaced(tier, limits, expected):
    """A name, a number or three numbers give the limits; a keyword replaces one; some need all three."""
    _, headers, _ = answered(desk(tier, **limits), request())
    shown = (headers[f"anthropic-ratelimit-{name}-limit"] for name in ("requests", "input-tokens"))
    assert tuple(map(int, shown)) == expected


WRONG = [
    ({"tier": "start", "request_per_minute": 7}, TypeError, "Did you mean 'requests_per_minute'"),
    ({"requests_per_minute": 0}, ValueError, "must be above 0"),
    ({"tier": "evaluation"}, UnknownTier, "not published"),
    ({"faults": {"overload": 1.0}}, ValueError, "Did you mean 'overloaded'.* Faults: "),
    ({"faults": {529: 1.5}}, ValueError, "from 0 to 1"),
    ({"faults": ["drop"]}, TypeError, "such as faults="),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG)
def test_options_that_cannot_be_say_what_to_type(options, error, words):
    """A misspelled limit or fault, a value that none can have, and a tier without published limits."""
    with pytest.raises(error, match=words):
        desk(**options)


LIMITS = {"1 requests": (1, 1e9, 1e9), "600 input tokens": (1e6, 600, 1e9), "1 output tokens": (1e6, 1e9, 1)}


@pytest.mark.parametrize(("words", "limits"), LIMITS.items())
def test_each_limit_refuses_with_429_and_when_to_come_back(words, limits):
    """The 429 names the limit, and the call succeeds after retry-after."""
    at, body = desk(limits), request("word " * 400)
    message_of(body, at)
    now = NOW + 20  # after the reply, whose output may be overdrawn
    status, headers, error = answered(at, body, now)
    assert (status, error["error"]["type"]) == (429, "rate_limit_error")
    assert f"{words} per minute" in error["error"]["message"]
    name = words.split(maxsplit=1)[1].replace(" ", "_")
    assert at.account.figures()["refused"] == {f"{name}_per_minute": 1}
    message_of(body, at, now + int(headers["retry-after"]))


def test_models_of_one_group_share_their_limits_and_counting_has_its_own():
    """Opus 4.8 and 4.7 draw from one bucket, Haiku from another, token counts from a third."""
    at = desk((1, 1e9, 1e9), count_tokens_per_minute=2)
    models = ("claude-opus-4-8", "claude-opus-4-7", HAIKU)
    assert [answered(at, request(model=name))[0] for name in models] == [200, 429, 200]
    body = b'{"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": "x"}]}'
    assert at.count_tokens(NOW, body, HEADERS) == at.count_tokens(NOW, body, HEADERS) != {}
    with pytest.raises(Problem, match="rate limit of 2 requests") as refused:
        at.count_tokens(NOW, body, HEADERS)
    at.count_tokens(NOW + int(refused.value.headers["retry-after"]), body, HEADERS)


def searches_of(message):
    """Return the number of web searches in a message's usage, or None if it has none."""
    return (message["usage"].get("server_tool_use") or {}).get("web_search_requests")


def dollars_of(message):
    """Return what genai-prices and the price page charge for a message."""
    usage, anthropic = message["usage"], {"provider_id": "anthropic"}
    tokens = genai_prices.extract_usage({**message, "usage": {**usage, "server_tool_use": None}}, **anthropic)
    moment = {"genai_request_timestamp": datetime.fromtimestamp(NOW, UTC)}
    price = genai_prices.calc_price(tokens.usage, model_ref=message["model"], **anthropic, **moment)
    factor = (0.5 if usage["service_tier"] == "batch" else 1.0) * (2.0 if usage["speed"] == "fast" else 1.0)
    factor *= 1.1 if usage["inference_geo"] == "us" else 1.0
    return factor * float(price.total_price) + 0.01 * (searches_of(message) or 0)


PRICED = [(HAIKU, 90_000), (HAIKU, 700_000), (OPUS, 9_000), ("claude-fable-5-1", 90_000)]


def test_the_bill_is_the_list_price_of_each_reply():
    """All steps of the price, both caches, $10 per 1,000 searches, US geography 1.1 times, fast mode 2."""
    at, us = desk(), {"inference_geo": "us"}
    options = [{}, {"tools": [SEARCH]}, us, {"tools": [SEARCH], **us}]
    bodies = [request(f"row {n}", max_tokens=8_000, **options[n % 4]) for n in range(40)]
    late = [result["message"] for result in worked(batches_of(at), rows_of(*bodies)).values()]
    bodies += [request(model=OPUS, speed="fast", inference_geo=geo) for geo in ("us", "global")]
    for model, characters in PRICED:
        text = "x" * characters
        bodies += [request(text, model=model), *(cached("x", text, ttl, model=model) for ttl in ("5m", "1h"))]
    live = [message_of(body, at) for body in bodies]
    figures = at.account.figures()
    assert figures["dollars"] == pytest.approx(sum(map(dollars_of, live + late)), rel=1e-9)
    assert figures["web_searches"] == sum(searches_of(message) or 0 for message in live + late)
    assert {searches_of(message) for message in live[1:40:2]} == {0, 1, 2, 3}
    assert {searches_of(message) for message in live[:40:2]} == {None}
    assert all(message["usage"]["input_tokens"] > 500 * (searches_of(message) or 0) for message in live)
    assert message_of(request(model=OLD), at)["usage"]["inference_geo"] == "not_available"


def test_peaks_and_repeats_show_in_the_servers_own_account():
    """Ten calls in half a second and ten more within the minute show; a row paid twice is not distinct."""
    at = desk()
    moments = [*(0.05 * n for n in range(10)), *(5 + 2 * n for n in range(10)), *(100 + n for n in range(10))]
    for moment in [*moments, moments[-1]]:
        message_of(request(f"row {moment}"), at, NOW + moment)
    figures = at.account.figures()
    assert (figures["peak_requests_per_second"], figures["peak_requests_per_minute"]) == (10, 20)
    assert (figures["billed_rows"], figures["distinct_rows_billed"]) == (31, 30)
