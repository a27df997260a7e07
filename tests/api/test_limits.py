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


@pytest.mark.parametrize("value", [math.inf, math.nan, -1, 0, "300", True, 1e300, Decimal("NaN"), [1]])
@pytest.mark.parametrize("name", ["requests_per_minute", "batch_queue_requests"])
def test_a_limit_that_is_none_is_named(name, value):
    """A limit that no pacer could keep, or that is not a number, gives an error that says what to type."""
    with pytest.raises(PlanError, match=name):
        Limits(**(dict.fromkeys(THREE, 1e6) | {name: value}))
    with pytest.raises(PlanError, match="needs all three limits"):
        Limits(requests_per_minute=300)


@pytest.mark.parametrize("value", [1e-6, 1e12, Decimal("0.5")])
def test_a_plan_with_extreme_limits_is_shown(value):
    """The lowest and the highest valid limits still give a plan that can be displayed."""
    plan = a_plan(reviews(2), tier=limits(*[value] * 3))
    assert repr(plan)
    assert plan.options["minutes"].is_finite().all()


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


ODD = ["Wed, 21 Oct 2026 07:28:00 +999999999999", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
       "Fri, 31 Feb 2026 99:99:99 GMT", "nan", "-inf", "1e400", "9" * 5_000, "-1", "\uff11\uff12", "\u0663",
       "1_000", "", ",", "Fri, 21 Oct 2099 07:28:00 GMT"]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_damaged_headers_read_as_unknown(odd):
    """A header damaged by a proxy counts as unknown and never as a figure of the account."""
    readings = read_headers({"retry-after": odd, **headers(requests_limit=odd, output_tokens_remaining=odd)})
    assert readings == (((None, None),) * 3, None)


def test_headers_beat_the_table():
    """The API's own figures replace the table's, and the object is reused until they change."""
    told = read_headers(headers(requests_limit=4_000))
    first = told.limits(LIMITS)
    assert (first.per_minute, first.source) == ((4_000, 6_000, 600), HEADERS)
    assert told.limits(first) is first
    assert read_headers({"retry-after": "1"}).limits(LIMITS) is LIMITS


# ------------------------------------------------------------------------------------ the rate-limit API


def entry(kind, models=None, *, flat=False, **values):
    """Return a list entry with its type nested as in the SDK or flat as in the documentation."""
    group = {"group_type": kind} if flat else {"group": {"id": "rlg_1", "type": kind}}
    return {**group, "models": models, "limits": [{"type": name, "value": values[name]} for name in values]}


@pytest.mark.parametrize("flat", [False, True])
def test_every_kind_of_group_is_read(flat):
    """The limits of the model's group and of batches are read; of two on the same tokens the smaller wins."""
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


@pytest.mark.parametrize("figure", [0, None])
def test_what_the_api_does_not_tell_stays_as_it_is_known(figure):
    """Nothing is guessed: an answer without the model's limits keeps the known ones and notes why."""
    for entries in ([], [{}], [entry("model_group", [MODEL], **dict.fromkeys(THREE, figure))]):
        found = KNOWN.updated(entries, MODEL)
        assert "has no limits for" in found.note
        assert found.per_minute == START


# -------------------------------------------------------------------------------------- limits of a plan


@pytest.mark.slow
def test_a_plan_learns_what_the_rate_limit_api_tells():
    """All five limits of its model are free of charge and hold until the tier or model changes."""
    with simulator(tier="build", speed=60) as api:
        plan = cs.wait(a_plan(reviews(30), tier="start").learn_limits(api.client()))
        assert api.stats["calls"] == api.stats["billed_rows"] == 0
        piloted = plan.calibrate(finished(plan.head(2), api.client()))
    assert plan.compiled.limits.batch_queue_requests == 300_000
    assert "Limits: the rate-limit API, " in repr(plan)
    for same in (plan, plan.replace(system="Be brief."), plan.head(3), plan.replace(tier="Start"), piloted):
        assert same.compiled.limits.per_minute == BUILD
    assert plan.replace(model="claude-sonnet-5-5").compiled.limits.source == "table of tier 'start'"
    assert plan.replace(tier="scale").replace(tier="start").compiled.limits == plan.compiled.limits


@pytest.mark.slow
def test_a_key_that_may_not_is_no_error():
    """The table stays in force and says so; a pilot against the API adds figures, and no answer adds none."""
    with simulator(tier=(70, 900_000, 90_000), speed=60) as api:
        client = api.client(api_key="sk-ant-api03-ordinary")
        plan = cs.wait(a_plan(reviews(30), tier="start").learn_limits(client))
        piloted = plan.calibrate(finished(plan.head(2), client))
        after = cs.wait(piloted.learn_limits(client))
    assert plan.compiled.limits.per_minute == START
    assert "(this key may not read the account's limits, but a pilot shows them)." in repr(plan)
    assert piloted.compiled.limits.requests_per_minute == 70
    assert (after.compiled.limits, after.compiled.limits.source) == (piloted.compiled.limits, HEADERS)
    with pytest.raises(cs.PlanError, match=r"Could not get the limits from the API \(connection_error\)"):
        cs.wait(plan.learn_limits(client))
