"""Rate limits: tables, the API's headers, its rate-limit endpoint, and how a plan learns them."""

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime

import pytest
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.api.limits import HEADERS, Limits, differs, read_headers
from claudescale.errors import PlanError

THREE = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
START, BUILD = (1_000, 2_000_000, 400_000), (5_000, 5_000_000, 1_000_000)


def limits(*per_minute, **more):
    """Return user-defined limits."""
    return Limits(**dict(zip(THREE, per_minute, strict=True)), **more)


LIMITS, KNOWN = limits(60, 6_000, 600), Limits.of("start", MODEL)


@pytest.mark.parametrize("value", [math.inf, math.nan, 0, "300", True, Decimal("NaN")])
@pytest.mark.parametrize("name", ["requests_per_minute", "batch_queue_requests"])
def test_a_limit_that_is_none_is_named(name, value):
    """A limit that no pacer could keep, or that is not a number, gives an error that says what to type."""
    with pytest.raises(PlanError, match=name):
        Limits(**(dict.fromkeys(THREE, 1e6) | {name: value}))
    with pytest.raises(PlanError, match="needs all three limits"):
        Limits(requests_per_minute=300)


def test_limits_are_shared_and_say_where_they_come_from():
    """Sharing halves each limit; the source, its date and the reason for falling back to it are shown."""
    assert LIMITS.shared(0.5).per_minute == (30, 3_000, 300)
    assert repr(LIMITS).endswith("600 output tokens a minute, given by you)")
    known = limits(60, 6_000, 600, source="a table", checked=date(2026, 5, 27), note="no better")
    assert known.provenance == "a table, checked 2026-05-27 (no better)"
    words = differs(Limits.of("build", MODEL), LIMITS, catalog.model(MODEL))
    assert words.endswith("and 600 as your Limits have: those are the limits of tier='build'.")


# --------------------------------------------------------------------------------------------- headers


def headers(**figures):
    """Return the headers of an answer: `requests_limit=60`."""
    return {f"anthropic-ratelimit-{name.replace('_', '-')}": str(value) for name, value in figures.items()}


def test_every_header_is_read():
    """Limit and remaining of all three buckets are read, and the retry delay in both of its forms."""
    names = ("requests", "input_tokens", "output_tokens")
    given = {f"{name}_{what}": figure for name in names for what, figure in (("limit", 9), ("remaining", 4))}
    readings = read_headers({**headers(**given), "retry-after": "7"})
    assert (readings.buckets, readings.retry_after_seconds) == (((9, 4),) * 3, 7)
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 0 < read_headers({"retry-after": soon}).retry_after_seconds <= 3_600
    assert read_headers({"retry-after": "Sun, 22 Nov 2020 10:00:00 GMT"}).retry_after_seconds == 0


@pytest.mark.parametrize("odd", ["Wed, 21 Oct 2026 07:28:00 +999999999999", "nan", "9" * 5_000, "", "\u0663"])
def test_damaged_headers_read_as_unknown(odd):
    """A header damaged by a proxy counts as unknown and never as a figure of the account."""
    readings = read_headers({"retry-after": odd, **headers(requests_limit=odd, output_tokens_remaining=odd)})
    assert readings == (((None, None),) * 3, None)


# ------------------------------------------------------------------------------------ the rate-limit API


def entry(kind, models=None, *, flat=False, **values):
    """Return a list entry with its type nested as in the SDK or flat as in the documentation."""
    group = {"group_type": kind} if flat else {"group": {"id": "rlg_1", "type": kind}}
    return {**group, "models": models, "limits": [{"type": name, "value": values[name]} for name in values]}


@pytest.mark.parametrize("flat", [False, True])
def test_every_kind_of_group_is_read(flat):
    """The limits of the model's group and of batches are read; of two on the same tokens the smaller wins.

    Nothing is guessed: an answer without the model's limits keeps the known ones and notes why.
    """
    items = [
        entry("model_group", [MODEL], flat=flat, input_tokens_per_minute_cache_aware=30_000),
        entry("model_group", [MODEL], flat=flat, **dict(zip(THREE, (50, 40_000, 8_000), strict=True))),
        entry("model_group", ["claude-opus-5-5"], flat=flat, **dict.fromkeys(THREE, 1)),
        entry("batch", flat=flat, enqueued_batch_requests=100_000, requests_per_minute=60),
        entry("files", flat=flat, requests_per_minute=7),
    ]
    own = KNOWN.updated(items, MODEL)
    assert own.per_minute == (50, 30_000, 8_000)
    assert (own.batch_queue_requests, own.batch_requests_per_minute) == (100_000, 60)
    assert KNOWN.updated(items[1:2], MODEL).batch_queue_requests == KNOWN.batch_queue_requests
    for entries in ([{}], items[2:], [entry("model_group", [MODEL], flat=flat, **dict.fromkeys(THREE))]):
        found = KNOWN.updated(entries, MODEL)
        assert "has no limits for" in found.note
        assert found.per_minute == START


# -------------------------------------------------------------------------------------- limits of a plan


@pytest.mark.slow
def test_a_plan_learns_the_limits_of_the_account():
    """The rate-limit API's are free, and hold until tier or model change.

    A key that may not read them leaves the table in force, until a pilot sees headers. No answer is an error.
    """
    with simulator(tier="build", speed=60) as api:
        client, plan = api.client(api_key="sk-ant-api03-ordinary"), a_plan(reviews(30), tier="start")
        told, kept = (cs.wait(plan.learn_limits(one)) for one in (api.client(), client))
        assert api.stats["calls"] == 0
        piloted = kept.calibrate(finished(kept.head(2), client))
        after = cs.wait(piloted.learn_limits(client))
    assert told.compiled.limits.batch_queue_requests == 300_000
    assert "Limits: the rate-limit API, " in repr(told)
    for same in (told.replace(system="Be brief."), told.head(3), told.replace(tier="Start"), piloted):
        assert same.compiled.limits.per_minute == BUILD
    assert told.replace(model="claude-sonnet-5-5").compiled.limits.source == "table of tier 'start'"
    assert told.replace(tier="scale").replace(tier="start").compiled.limits == told.compiled.limits
    assert kept.compiled.limits.per_minute == START
    assert "(this key may not read the account's limits, but a pilot shows them)." in repr(kept)
    assert (after.compiled.limits, after.compiled.limits.source) == (piloted.compiled.limits, HEADERS)
    with pytest.raises(cs.PlanError, match="Could not get the limits from the API"):
        cs.wait(plan.learn_limits(client))
