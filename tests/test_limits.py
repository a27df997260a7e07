"""Limits: tables, headers, the rate-limit API, the closed form of a run's duration."""

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudescale import Simulator
from claudescale.api.limits import HEADERS, Learned, Limits, age, read_headers
from claudescale.errors import PlanError, UnknownTier
from claudescale.planning.estimates import finish

LIMITS = Limits(requests_per_minute=60, input_tokens_per_minute=6_000, output_tokens_per_minute=600)
ANSWERED = {
    f"anthropic-ratelimit-{group}-{what}": value
    for group in ("requests", "tokens", "input-tokens", "output-tokens")
    for what, value in (("limit", "1000"), ("remaining", "900"), ("reset", "2026-11-22T10:00:00Z"))
}


@pytest.mark.parametrize(
    ("tier", "per_minute"),
    [
        ("start", (1_000, 2_000_000, 400_000)),
        ("Build", (5_000, 5_000_000, 1_000_000)),
        (1, (50, 40_000, 8_000)),
        ("tier 4", (4_000, 400_000, 80_000)),
    ],
)
def test_a_tier_has_the_limits_of_its_table(tier, per_minute):
    """Today's names and the numbered tiers give the figures of their tables, and say so."""
    limits = Limits.of(tier, "claude-haiku-5-5")
    assert limits.per_minute == per_minute
    assert "table" in limits.source
    assert limits.checked


def test_a_tier_without_published_limits_says_what_to_type():
    """Evaluation and custom tiers have no figures: the error asks for Limits."""
    with pytest.raises(UnknownTier, match="Limits"):
        Limits.of("custom", "claude-haiku-5-5")


def test_limits_pass_through():
    """A Limits given as tier is used as it is."""
    assert Limits.of(LIMITS, "claude-haiku-5-5") is LIMITS


@pytest.mark.parametrize("value", [0, -1, None, "50", float("nan")])
def test_a_limit_must_be_a_positive_number(value):
    """Zero, negative and missing limits are refused before they can divide anything."""
    with pytest.raises(PlanError, match="requests_per_minute"):
        Limits(requests_per_minute=value, input_tokens_per_minute=1, output_tokens_per_minute=1)


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_is_a_part(share):
    """More than all, or nothing, is no share."""
    with pytest.raises(PlanError, match="share"):
        LIMITS.shared(share)


def test_every_header_is_read():
    """Limit, remaining and reset of all four groups, the time to wait, and headers not known yet."""
    readings = read_headers({**ANSWERED, "retry-after": "7", "anthropic-ratelimit-new-thing-limit": "3"})
    moment = datetime(2026, 11, 22, 10, tzinfo=UTC)
    for reading in (readings.requests, readings.input_tokens, readings.output_tokens, readings.tokens):
        assert reading == (1_000, 900, moment)
    assert readings.retry_after_seconds == 7
    assert readings.others == {"anthropic-ratelimit-new-thing-limit": "3"}


def test_the_time_to_wait_comes_in_three_ways():
    """Milliseconds beat seconds, and a date is read as the seconds until then."""
    assert read_headers({"retry-after-ms": "1500", "retry-after": "9"}).retry_after_seconds == 1.5
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < read_headers({"retry-after": date}).retry_after_seconds <= 90
    assert read_headers({"retry-after": "Sun, 22 Nov 2020 10:00:00 GMT"}).retry_after_seconds == 0


@given(st.dictionaries(st.sampled_from([*ANSWERED, "retry-after"]), st.text(max_size=40)))
def test_damaged_headers_never_raise(headers):
    """Whatever a proxy makes of the headers reads as unknown or as a finite number."""
    readings = read_headers(headers)
    for reading in (*readings.buckets, readings.tokens):
        assert reading.limit is None or 0 <= reading.limit < float("inf")


def test_headers_that_agree_are_noted_once_a_minute():
    """They are the newer evidence; after that the same object comes back, so that nobody has to compare."""
    readings = read_headers({"anthropic-ratelimit-requests-limit": "60"})
    first = readings.limits(LIMITS)
    assert (first.per_minute, first.source) == (LIMITS.per_minute, HEADERS)
    assert readings.limits(first) is first
    stale = replace(first, checked=datetime.now(UTC) - timedelta(minutes=2))
    assert readings.limits(stale).checked > stale.checked
    assert read_headers({"retry-after": "1"}).limits(LIMITS) is LIMITS


def test_headers_that_differ_beat_the_table():
    """What the API says about the account is used, and the source says so."""
    limits = read_headers({"anthropic-ratelimit-requests-limit": "4000"}).limits(LIMITS)
    assert limits.per_minute == (4_000, 6_000, 600)
    assert "headers" in limits.source


@pytest.mark.parametrize(
    ("totals", "latency", "concurrency", "expected"),
    [
        ((0, 0, 0), 3, None, (0, "nothing to send")),
        ((121, 100, 100), 2, None, (122, "requests")),
        ((10, 12_100, 10), 2, None, (122, "input_tokens")),
        ((10, 10, 1_210), 2, None, (122, "output_tokens")),
        ((1, 10, 10), 5, None, (5, "latency")),
        ((10, 10, 10), 60, 2, (300, "concurrency")),
    ],
)
def test_the_slowest_limit_decides(totals, latency, concurrency, expected):
    """Each limit in turn binds, and the time is its closed form plus one latency."""
    found = finish(
        LIMITS,
        **dict(zip(("requests", "input_tokens", "output_tokens"), totals, strict=True)),
        latency_seconds=latency,
        concurrency=concurrency,
    )
    assert (found.seconds, found.binding) == (pytest.approx(expected[0]), expected[1])


def test_the_rate_limit_api_tells_an_accounts_own_limits():
    """Through the real SDK: the figures of the account, the batch queue, and where they come from."""
    with Simulator("start", speed=60, requests_per_minute=1_234) as simulator:

        async def ask():
            async with simulator.client() as client:
                return await Limits.from_api(client, "claude-haiku-5-5")

        limits = asyncio.run(ask())
    assert limits.per_minute == (1_234, 2_000_000, 400_000)
    assert limits.batch_queue_requests == 200_000
    assert (limits.batch_requests_per_minute, limits.count_tokens_per_minute) == (1_000, 2_000)
    assert limits.provenance == "the rate-limit API, just now"


def test_without_a_model_the_smallest_limits_of_any_are_told():
    """Limits that are safe for every model of the account."""
    with Simulator("start", speed=60) as simulator:

        async def ask():
            async with simulator.client() as client:
                return [await Limits.from_api(client, model) for model in (None, "claude-fable-5-1")]

        any_model, fable = asyncio.run(ask())
    assert any_model.per_minute == fable.per_minute == (1_000, 500_000, 100_000)


def test_a_model_the_api_tells_nothing_of_is_an_error():
    """No figures, no guess: the error says what to type."""
    with Simulator("start", speed=60) as simulator:

        async def ask():
            async with simulator.client() as client:
                return await Limits.from_api(client, "claude-none")

        with pytest.raises(UnknownTier, match="Limits"):
            asyncio.run(ask())


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("checked", "words"),
    [
        (None, ""),
        (date(2026, 10, 8), ", checked 2026-10-08"),
        (date(2026, 5, 27), ", checked 2026-05-27"),
        (date(2026, 5, 26), ", checked 2026-05-26 (old: 181 days)"),
        (NOW - timedelta(seconds=59), ", just now"),
        (NOW + timedelta(seconds=59), ", just now"),
        (NOW - timedelta(seconds=61), ", 1 minute ago"),
        (NOW - timedelta(minutes=59, seconds=59), ", 59 minutes ago"),
        (NOW - timedelta(hours=1), ", 1 hour ago"),
        (NOW - timedelta(hours=24), ", 24 hours ago"),
        (NOW - timedelta(hours=25), ", 2026-11-22 (old: 1 day)"),
        (datetime(2026, 11, 20, 12), ", 2026-11-20 (old: 3 days)"),  # noqa: DTZ001 - as a user may give it
    ],
)
def test_how_old_limits_are(checked, words):
    """A day is told for a table, the time since for an answer, and both are called old in the end."""
    assert age(checked, NOW) == words


def test_limits_say_where_they_come_from_and_how_old_they_are():
    """The repr of a table has its day, that of an answer its age, that of one's own figures neither."""
    table = Limits.of("start", "claude-haiku-5-5")
    assert f"table of tier 'start', checked {table.checked}" in repr(table)
    assert repr(read_headers(ANSWERED).limits(table)).endswith(f"{HEADERS}, just now)")
    assert repr(LIMITS).endswith("a minute, given by you)")


def test_what_was_learned_holds_for_the_tier_and_the_models_it_was_learned_for():
    """However the tier is written, and for every model of the group; else the table counts."""
    learned = Learned(LIMITS, "start", "sonnet-4")
    for tier, model, holds in (
        ("Start", "claude-sonnet-4-6", True),
        ("build", "claude-sonnet-4-6", False),
        ("start", "claude-haiku-5-5", False),
        (LIMITS, "claude-sonnet-4-6", False),
    ):
        assert (Limits.of(tier, model, learned) is LIMITS) is (holds or tier is LIMITS)
        assert learned.stands_for(tier, model) is holds
