"""Limits learned from the rate-limit API, over HTTP, and what becomes of them in a plan."""

import pytest
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import learning
from claudescale.api.limits import HEADERS

ORDINARY = "sk-ant-api03-ordinary"


def learned(plan, client):
    return cs.wait(plan.learn_limits(client))


def test_a_plan_learns_what_the_rate_limit_api_tells():
    """All six limits of its own model, without a call that costs; the source and its age are shown."""
    with simulator(tier="build", speed=60, count_tokens_per_minute=123) as api:
        plan = learned(a_plan(reviews(30), tier="start"), api.client())
        assert api.stats["calls"] == api.stats["billed_rows"] == 0
    assert plan.limits.per_minute == cs.Limits.of("build", MODEL).per_minute
    assert plan.limits.count_tokens_per_minute == 123
    assert (plan.limits.batch_queue_requests, plan.limits.batch_requests_per_minute) == (300_000, 2_000)
    assert "Limits: the rate-limit API, just now." in repr(plan)


def test_a_key_that_may_not_is_no_error():
    """The table stays in force and says what would tell more; once a pilot told, there is nothing to say."""
    with simulator(tier=(70, 900_000, 90_000), speed=60) as api:
        client = api.client(api_key=ORDINARY)
        plan = learned(a_plan(reviews(30), tier="start"), client)
        again = learned(plan, client)
        piloted = plan.calibrate(finished(plan.head(2), client))
        after = learned(piloted, client)
    assert plan.limits.per_minute == cs.Limits.of("start", MODEL).per_minute
    assert plan.limits == again.limits
    assert plan.limits.source == "table of tier 'start'"
    assert f"checked {plan.limits.checked} ({learning.UNTOLD})." in repr(plan)
    assert piloted.limits.requests_per_minute == 70
    assert after.limits == piloted.limits
    assert after.limits.source == HEADERS


def test_limits_that_were_learned_hold_as_long_as_they_are_the_plans():
    """Another prompt, more rows or a pilot keep them; another tier or model has its table."""
    with simulator(tier="build", speed=60) as api:
        plan = learned(a_plan(reviews(30), tier="start"), api.client())
        piloted = plan.calibrate(finished(plan.head(2), api.client()))
    build = cs.Limits.of("build", MODEL)
    for same in (plan.replace(system="Be brief."), plan.head(3), plan.replace(tier="Start"), piloted):
        assert same.limits.per_minute == build.per_minute
    assert piloted.limits.batch_queue_requests == build.batch_queue_requests
    assert plan.replace(tier="scale").limits.requests_per_minute == 10_000
    other = plan.replace(model="claude-sonnet-5-5")
    assert other.limits.source == "table of tier 'start'"
    assert plan.replace(tier="scale").replace(tier="start").limits == plan.limits


def test_an_api_that_cannot_be_reached_is_an_error():
    """No answer is no statement about the limits; nothing of the key is told."""
    with simulator() as api:
        client = api.client(api_key=ORDINARY)
    with pytest.raises(cs.PlanError, match=r"cannot be asked for its limits \(connection_error\)") as raised:
        learned(a_plan(reviews(3)), client)
    assert ORDINARY not in str(raised.value)


def test_what_the_api_leaves_out_stays_as_it_is_known():
    """An answer without the plan's model changes nothing; one without a queue keeps the table's."""
    plan = a_plan(reviews(3), tier="start")
    assert "tells nothing of" in learning.known_better(plan, []).note
    told = [{"type": name, "value": 9} for name in ("requests_per_minute", "output_tokens_per_minute")]
    told.append({"type": "input_tokens_per_minute_cache_aware", "value": 90})
    items = [{"group": {"type": "model_group"}, "models": [MODEL], "limits": told}]
    limits = learning.known_better(plan, items)
    assert (limits.per_minute, limits.batch_queue_requests) == ((9, 90, 9), 200_000)


def test_a_run_that_asked_nothing_teaches_nothing(tmp_path):
    """A pilot that is all in the ledger met no limits: what was learned before stays."""
    with simulator(tier=(70, 900_000, 90_000), speed=60) as api:
        plan = a_plan(reviews(30), tier="start")
        first = finished(plan.head(2), api.client(), ledger=tmp_path / "l")
        again = finished(plan.head(2), api.client(), ledger=tmp_path / "l")
        known = learned(plan, api.client())
    assert plan.calibrate(first).limits.source == HEADERS
    assert plan.calibrate(again).limits == cs.Limits.of("start", MODEL)
    assert known.calibrate(again).limits == known.limits
    assert known.calibrate(first).limits == first.limits
    assert plan.replace(tier="build").calibrate(first).limits == cs.Limits.of("build", MODEL)
