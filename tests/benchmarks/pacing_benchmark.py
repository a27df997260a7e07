"""How close a run comes to the bound that no client can beat, and how often it is refused.

Run: ``python tests/benchmarks/pacing_benchmark.py [tier ...]`` with the package importable. In virtual time
the figures are exact and the same on every machine. The simulator's own token buckets are the judge, once
holding a minute of each limit and once a second of it. Each limit binds in turn, row sizes are mixed, and
each case runs with and without another client that takes 40% of the binding limit. The baseline in the same
run is the usual handwritten code: a semaphore of 50 that obeys ``retry-after``.
"""

import asyncio
import multiprocessing
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from paced import Api, study, workload
from virtual import VirtualLoop

from claudescale.api.limits import Limits
from claudescale.simulator import Buckets

TIERS = ("1", "2", "3", "4", "start")
MINUTES = {"1": 60, "2": 20, "3": 15, "4": 10, "start": 20}
BINDING = ("requests", "input_tokens", "output_tokens")


async def by_hand(limits, calls, bucket_seconds):
    """Return seconds and refusals of the baseline: 50 at a time, each waiting for its retry-after."""
    api, source, refused = Api(limits, bucket_seconds, 0), iter(calls), 0

    async def work():
        nonlocal refused
        for call in source:
            while (answer := await api.answer(call))[0] != 200:
                refused += 1
                await asyncio.sleep(float(answer[1]["retry-after"]))

    await asyncio.gather(*(work() for _ in range(50)))
    return api.loop.time(), refused


def least_seconds(limits, calls, bucket_seconds, other_share):
    """Return the bound that no client can beat: what exceeds the full buckets, at the limits' rate."""
    api = Buckets(*limits.per_minute, bucket_seconds=bucket_seconds, now=0.0)
    buckets = (api.requests, api.input_tokens, api.output_tokens)
    totals = (len(calls), sum(call.input_tokens for call in calls), sum(call.output_tokens for call in calls))
    return max(
        (total - bucket.capacity) / (limit / 60 * (1 - other_share))
        for total, bucket, limit in zip(totals, buckets, limits.per_minute, strict=True)
    )


def run(case):
    tier, binding, bucket_seconds, other_share = case
    limits = Limits.of(tier, "claude-haiku-4-5")
    calls = workload(limits, binding, MINUTES[tier], seed=1)

    def virtual(work):
        loop = VirtualLoop()
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()

    outcome = virtual(study(limits, calls, bucket_seconds=bucket_seconds, other_share=other_share))
    hand = virtual(by_hand(limits, calls, bucket_seconds)) if not other_share else (float("nan"), 0)
    assert outcome.answered == len(calls)
    bound = least_seconds(limits, calls, bucket_seconds, other_share)
    return case, len(calls), outcome.seconds / bound, outcome.refused, hand[0] / bound, hand[1]


def main():
    cases = [
        (tier, binding, seconds, share)
        for tier in (sys.argv[1:] or TIERS)
        for share in (0.0, 0.4)
        for binding in BINDING
        for seconds in (60.0, 1.0)
    ]
    print("tier   binding        bucket  other  rows     makespan / bound  429s    by hand: ratio  429s")
    with multiprocessing.Pool(2) as pool:
        for (tier, binding, seconds, share), rows, ratio, refused, hand, hand_refused in pool.imap(
            run, cases
        ):
            other = f"{hand:14.2f}  {hand_refused:,}" if share == 0 else ""
            figures = f"{rows:7,}  {ratio:16.3f}  {refused:4,}"
            print(f"{tier:6} {binding:14} {seconds:4.0f} s  {share:4.0%}  {figures}  {other}")


if __name__ == "__main__":
    main()
