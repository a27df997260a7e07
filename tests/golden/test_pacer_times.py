"""When the pacer sends calls, in virtual time: twelve workloads, to the millisecond."""

import pytest
import virtual
from golden import check
from paced import Call, study, table, workload

_TIER_2, _LOW = table(1_000, 80_000, 16_000), table(200, 16_000, 3_200)
SCENARIOS = {
    "requests bind, by the second": (_TIER_2, ("requests", 2, 1), {"bucket_seconds": 1.0}),
    "requests bind, by the minute": (_TIER_2, ("requests", 2, 2), {}),
    "input binds, by the second": (_TIER_2, ("input_tokens", 2, 3), {"bucket_seconds": 1.0}),
    "input binds, by the minute": (_TIER_2, ("input_tokens", 2, 4), {}),
    "output binds, by the second": (_TIER_2, ("output_tokens", 2, 5), {"bucket_seconds": 1.0}),
    "output binds, by the minute": (_TIER_2, ("output_tokens", 2, 6), {}),
    "half the share": (_TIER_2, ("requests", 1, 7), {"share": 0.5}),
    "somebody else": (_TIER_2, ("requests", 2, 8), {"other_share": 0.4}),
    "table too high": (_TIER_2, ("requests", 2, 9), {"table": table(5_000, 400_000, 80_000)}),
    "table too low": (_TIER_2, ("requests", 2, 10), {"table": _LOW, "bucket_seconds": 1.0}),
    "three at once": (table(60_000, 1e9, 1e9), None, {"concurrency": 3}),
    "tier 1": (table(50, 40_000, 8_000), ("requests", 3, 11), {"bucket_seconds": 1.0}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_calls_go_when_they_were_recorded_to_go(name):
    """Every call is sent within a millisecond of its recorded time."""
    limits, given, options = SCENARIOS[name]
    calls = [Call(20, 20, 60)] * 200 if given is None else workload(limits, *given)
    outcome = virtual.run(study(limits, calls, **options))
    times = [round(at, 4) for at in outcome.arrivals]
    assert outcome.answered == len(calls)
    kept = times[:: max(len(times) // 200, 1)]
    check(f"pacer {name}", {"refused": outcome.refused, "seconds": round(outcome.seconds, 3), "times": kept})
