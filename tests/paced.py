"""A pacer in virtual time against the simulator's own token buckets, for studies of pacing."""

import asyncio
import random
from typing import NamedTuple

from claudescale.api.limits import Limits, read_headers
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
    bound_seconds: float
    refused: int
    answered: int
    arrivals: list

    @property
    def ratio(self):
        """Makespan over the bound that no client can beat."""
        return self.seconds / self.bound_seconds


class Api:
    """The API's side: the simulator's buckets, latencies by length, and network delay each way."""

    def __init__(self, limits, bucket_seconds, seed):
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(seed)
        self.buckets = Buckets(*limits.per_minute, bucket_seconds=bucket_seconds, now=0.0)
        self.arrivals = []

    def admit(self, input_tokens):
        """Whether a call that arrives now is admitted."""
        if not self.buckets.admit(self.loop.time(), input_tokens=input_tokens):
            return False
        self.arrivals.append((self.loop.time(), input_tokens))
        return True

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
        while True:
            await asyncio.sleep(self.random.expovariate(per_second))
            if self.admit(input_tokens):
                self.write(output_tokens)


async def study(  # noqa: C901  # one loop, told in order of events
    limits, calls, *, bucket_seconds=60.0, other_share=0.0, seed=0, table=None, **options
):
    """Run `calls` through a pacer; `table` is the limits it is given, if not the true ones."""
    loop = asyncio.get_running_loop()
    api = Api(limits, bucket_seconds, seed)
    pacer = Pacer(table or limits, clock=Clock(1.0, 0.0, loop.time), **{"output_tokens": 300.0, **options})
    source, workers, done, refused = iter(calls), set(), 0, 0

    def more_workers():
        if len(workers) <= pacer.in_flight < pacer.window:
            workers.add(loop.create_task(work()))

    async def work():
        nonlocal done, refused
        for call in source:
            status = None
            while status != 200:
                permit = await pacer.acquire(call.estimate)
                more_workers()
                status, headers = await api.answer(call)
                readings = read_headers(headers)
                if status == 200:
                    used = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
                    pacer.settle(permit, Came("answered", readings, **used))
                else:
                    refused += 1
                    pacer.settle(permit, Came("refused", readings))
            done += 1

    totals = (len(calls), *(sum(column) for column in list(zip(*calls, strict=True))[1:]))
    each = [total / len(calls) for total in totals]
    rates = [limit / 60 for limit in limits.per_minute]
    other = None
    if other_share:
        per_second = other_share * min(rate / need for rate, need in zip(rates, each, strict=True))
        other = loop.create_task(api.other_user(per_second, *each[1:]))
    more_workers()
    while workers:
        finished, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        workers -= finished
        for task in finished:
            task.result()
    seconds = loop.time()
    if other:
        other.cancel()
    filled = (api.buckets.requests, api.buckets.input_tokens, api.buckets.output_tokens)
    bound = max(
        (total - bucket.capacity) / (rate * (1 - other_share))
        for total, bucket, rate in zip(totals, filled, rates, strict=True)
    )
    assert pacer.in_flight == 0
    return Outcome(seconds, bound, refused, done, api.arrivals)


def workload(limits, binding, minutes, seed):
    """Rows of mixed sizes that take `minutes`, limited by `binding`.

    Input is estimated with a random error of ten percent either way and a constant one of fifteen.
    """
    rng = random.Random(seed)
    requests, input_tokens, output_tokens = limits.per_minute
    input_share, output_share = {
        "requests": (0.4, 0.4), "input_tokens": (2.0, 0.5), "output_tokens": (0.5, 2.0)
    }[binding]  # fmt: skip
    calls = []
    for _ in range(int(requests * minutes / max(1.0, input_share, output_share))):
        real = max(input_tokens / requests * input_share * rng.lognormvariate(-0.18, 0.6), 5.0)
        written = max(output_tokens / requests * output_share * rng.lognormvariate(-0.125, 0.5), 3.0)
        calls.append(
            Call(real * 1.15 * rng.uniform(0.9, 1.1), real, min(written, 4 * output_tokens / requests))
        )
    return calls


def table(requests, input_tokens, output_tokens):
    """User-defined limits."""
    return Limits(
        requests_per_minute=requests,
        input_tokens_per_minute=input_tokens,
        output_tokens_per_minute=output_tokens,
    )
