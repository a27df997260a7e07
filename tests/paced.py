"""A pacer in virtual time against the simulator's own token buckets, for studies of pacing."""

import asyncio
import random
from typing import NamedTuple

from claudescale.api.limits import BUCKETS, Limits, read_headers
from claudescale.clock import Clock
from claudescale.pacing.pacer import Outcome as Came
from claudescale.pacing.pacer import Pacer
from claudescale.simulator import Buckets

WAY_SECONDS = 0.01
"""Longest way of a request to the API, and of an answer back."""


class Call(NamedTuple):
    """One row: its estimates and its actual figures."""

    estimate: float
    input_tokens: float
    output_tokens: float


class Outcome(NamedTuple):
    """The outcome of a study."""

    seconds: float
    refused: int
    answered: int
    arrivals: list  # seconds


class Api:
    """The API's side: the simulator's buckets, latencies by length, and network delay each way."""

    def __init__(self, limits, bucket_seconds, seed):
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(seed)
        self.buckets = Buckets(*limits.per_minute, bucket_seconds=bucket_seconds, now=0.0)
        self.arrivals = []

    def admit(self, input_tokens):
        """Whether a call that arrives now is admitted."""
        admitted = self.buckets.admit(self.loop.time(), input_tokens=input_tokens)
        if admitted:
            self.arrivals.append(self.loop.time())
        return admitted

    def write(self, output_tokens):
        """Seconds that a reply takes: an initial delay, then constant speed."""
        begin = self.loop.time() + 0.6 * self.random.lognormvariate(0, 0.2)
        end = begin + output_tokens / 120 * self.random.lognormvariate(0, 0.2)
        self.buckets.produce(end, output_tokens, begin=begin)
        return end - self.loop.time()

    async def answer(self, call):
        """Status and headers of one call."""
        await asyncio.sleep(WAY_SECONDS * self.random.uniform(0.3, 1))
        now = self.loop.time()
        if not self.admit(call.input_tokens):
            after = self.buckets.retry_after(now, input_tokens=call.input_tokens)
            return 429, {**self.buckets.headers(now), "retry-after": str(after)}
        await asyncio.sleep(self.write(call.output_tokens))
        headers = self.buckets.headers(self.loop.time())
        await asyncio.sleep(WAY_SECONDS * self.random.uniform(0.3, 1))
        return 200, headers

    async def other_user(self, per_second, input_tokens, output_tokens):
        """Another user of the account, who calls at random moments and ignores refusals."""
        while per_second:
            await asyncio.sleep(self.random.expovariate(per_second))
            if self.admit(input_tokens):
                self.write(output_tokens)


async def study(limits, calls, *, bucket_seconds=60.0, other_share=0.0, table=None, **options):
    """Run `calls` through a pacer; `table` is the limits it is given, if not the true ones."""
    loop = asyncio.get_running_loop()
    api = Api(limits, bucket_seconds, 0)
    pacer = Pacer(table or limits, clock=Clock(1.0, 0.0, loop.time), **{"output_tokens": 300.0, **options})
    source, workers, done, refused = iter(calls), [], 0, 0

    def more_workers():
        if len(workers) <= pacer.in_flight < pacer.window:
            workers.append(loop.create_task(work()))

    async def work():
        nonlocal done, refused
        for call in source:
            while True:
                permit = await pacer.acquire(call.estimate)
                more_workers()
                status, headers = await api.answer(call)
                if status == 200:
                    break
                refused += 1
                pacer.settle(permit, Came("refused", read_headers(headers)))
            used = call.input_tokens, call.output_tokens
            pacer.settle(permit, Came("answered", read_headers(headers), *used))
            done += 1

    _, *means = (sum(figures) / len(calls) for figures in zip(*calls, strict=True))
    pairs = zip(limits.per_minute, (1.0, *means), strict=True)
    per_second = other_share * min(limit / 60 / mean for limit, mean in pairs)
    other = loop.create_task(api.other_user(per_second, *means))
    more_workers()
    for worker in workers:  # grows meanwhile
        await worker
    other.cancel()
    assert pacer.in_flight == 0
    return Outcome(loop.time(), refused, done, api.arrivals)


def workload(limits, binding, minutes, seed):
    """Rows of mixed sizes that take `minutes`, limited by `binding`.

    Input is estimated with a random error of ten percent either way and a constant one of fifteen.
    """
    rng = random.Random(seed)
    requests, input_tokens, output_tokens = limits.per_minute
    shares = {"requests": (0.4, 0.4), "input_tokens": (2.0, 0.5), "output_tokens": (0.5, 2.0)}
    input_share, output_share = shares[binding]
    calls = []
    for _ in range(int(requests * minutes / max(1.0, input_share, output_share))):
        real = max(input_tokens / requests * input_share * rng.lognormvariate(-0.18, 0.6), 5.0)
        written = max(output_tokens / requests * output_share * rng.lognormvariate(-0.125, 0.5), 3.0)
        estimate = real * 1.15 * rng.uniform(0.9, 1.1)
        calls.append(Call(estimate, real, min(written, 4 * output_tokens / requests)))
    return calls


def table(*per_minute):
    """User-defined limits."""
    names = (f"{name}_per_minute" for name in BUCKETS)
    return Limits(**dict(zip(names, per_minute, strict=True)))
