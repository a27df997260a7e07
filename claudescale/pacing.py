"""Who may go now: three token buckets, reserve then settle, cool-downs, adaptive concurrency.

The pacer keeps its own picture of the API's buckets and sends a call only when every bucket would
take it. Three things hold the picture to the truth: what each call really used, what the headers of
each answer say is left, and a slack as large as the picture is unsure. It knows nothing of the wire.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from claudescale.clock import Clock
    from claudescale.limits import Limits, Readings

_RATE_MARGIN = 0.99
"""The part of a limit that is used: the picture then runs behind the truth, never ahead."""
_BURST_SECONDS = 1.0
"""What a bucket is taken to hold at the start: the API may enforce the minute by the second."""
_TRANSIT_SECONDS = 0.1
"""Longest way of a request or an answer: what was sent since may be missing from a header."""
_JITTER_SECONDS = 0.015
"""Real seconds by which two calls may arrive closer together than they were sent."""
_DEVIATIONS = 3.0
_INSTANT_SECONDS = 1e-6
"""Shorter waits are rounding errors of the clock."""
_ROUNDING = (0.0, 500.0, 500.0)
"""How far a ``remaining`` header may be from the truth."""
_OPEN_MARGIN = 0.3
"""The part of the output bucket that is left when the next call goes."""
_STALE_SECONDS = 0.25
"""How long ago the last answer may have told what others take."""
_OTHERS_SECONDS = 10.0
"""Over how long a steady loss is taken for the use of others."""
_FIRST_DEVIATION = 0.2
"""Of an estimate of input tokens, relative, until answers teach better."""
_FIRST_CONCURRENCY = 16
_MOST_CONCURRENCY = 1_000


@dataclass(slots=True)
class Bucket:
    """One token bucket as the pacer believes the API to hold it.

    `level` may be negative: a call larger than the bucket is let through when the bucket is full,
    and leaves a debt. What calls in flight may take more than was set aside for them is the doubt:
    a level is trusted only as far as it stands above it. A bucket that has surely been full since
    is certain again, whatever those calls took: `fills` counts these moments.
    """

    rate: float
    capacity: float
    slop_seconds: float
    at: float
    level: float = field(init=False)
    variance: float = 0.0
    fills: int = 0
    others: float = 0.0
    typical: float = 1.0

    def __post_init__(self) -> None:
        self.level = self.full

    @property
    def full(self) -> float:
        """The highest level: the capacity, and what refills while two calls may run into each other."""
        return self.capacity + self.rate * self.slop_seconds

    @property
    def doubt(self) -> float:
        """Three deviations of what is not settled."""
        return _DEVIATIONS * math.sqrt(self.variance)

    @property
    def unseen(self) -> float:
        """Three deviations of what others may have taken since the last answer told."""
        return _DEVIATIONS * math.sqrt(self.others * _STALE_SECONDS * self.typical)

    def refill(self, now: float) -> None:
        """Let the time pass until `now`."""
        self.level += (self.rate - self.others) * (now - self.at)
        self.at = now
        if self.level >= self.full + self.doubt:
            self.level = self.full
            self.variance = 0.0
            self.fills += 1

    def seconds_until(self, need: float) -> float:
        """Seconds until `need`, or a full bucket, is surely there."""
        wanted = min(need + self.unseen, self.capacity) + self.rate * self.slop_seconds + self.doubt
        return max(wanted - self.level, 0.0) / (self.rate - self.others)

    def take(self, amount: float, deviation: float) -> Taken:
        """Set `amount` aside, not known better than to `deviation`."""
        self.level = min(self.level, self.full) - amount
        self.variance += deviation**2
        self.typical += (amount - self.typical) * 0.05
        return Taken(amount, deviation, self.fills)

    def settle(self, taken: Taken, amount: float) -> None:
        """Replace what was set aside by what was really used."""
        if taken.fills == self.fills:
            self.level += taken.amount - amount
            self.variance = max(self.variance - taken.deviation**2, 0.0)

    def rescale(self, rate: float) -> None:
        """Take a new rate; the capacity keeps its seconds."""
        self.capacity = max(self.capacity * rate / self.rate, min(self.capacity, 1.0))
        self.rate = rate

    def told(self, low: float, high: float, uncounted: float) -> None:
        """Move the level into what a header allows: between `low` and `high`, some of it not counted yet."""
        if high < self.level - self.rate * self.slop_seconds:
            self._move(high)
        elif low - uncounted > self.level:
            self.capacity = max(self.capacity, low)
            self._move(low - uncounted)

    def _move(self, level: float) -> None:
        """Take the level told; what is missing again and again, others must be taking."""
        self.others += (self.level - level) / _OTHERS_SECONDS
        self.others = min(max(self.others, 0.0), 0.9 * self.rate)
        self.level = level


class Taken(NamedTuple):
    """What was set aside in one bucket for one call."""

    amount: float
    deviation: float
    fills: int


@dataclass(slots=True)
class Production:
    """The output bucket as the API sees it: charged while answers are written, open while not in debt.

    Each call in flight is taken to write at the mean speed of those before it.
    """

    rate: float
    capacity: float
    at: float
    level: float = field(init=False)
    speed: Average = field(init=False)
    writing: int = 0

    def __post_init__(self) -> None:
        self.level = self.capacity
        self.speed = Average(0.0, 0.0)

    @property
    def net(self) -> float:
        """What the level gains in a second."""
        return self.rate - self.writing * self.speed.mean

    def refill(self, now: float) -> None:
        """Let the time pass until `now`."""
        self.level = min(self.level + self.net * (now - self.at), self.capacity)
        self.at = now

    def seconds_until_open(self) -> float:
        """Seconds until the bucket is out of debt, with a margin; infinite until an answer ends."""
        missing = self.capacity * _OPEN_MARGIN - self.level
        if missing <= 0:
            return 0.0
        return missing / self.net if self.net > 0 else math.inf

    def told(self, capacity: float, remaining: float | None) -> None:
        """Take the level that a header tells; zero may be any debt."""
        self.capacity = capacity
        if remaining is not None:
            rounding = _ROUNDING[2]
            low = remaining - rounding if remaining else -math.inf
            self.level = min(max(self.level, low), remaining + rounding, capacity)

    def end(self, now: float, seconds: float, tokens: float) -> None:
        """One call that was in flight for `seconds` has written `tokens`."""
        self.refill(now)
        self.level -= tokens - self.speed.mean * seconds
        self.writing -= 1
        if tokens and seconds > 0:
            self.speed.add(tokens / seconds)


@dataclass(slots=True)
class Average:
    """Mean and standard deviation of what came so far; `first` counts as one observation."""

    mean: float
    count: float = 1.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one more observation (Welford's recurrence)."""
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of one observation."""
        return math.sqrt(self.squares / self.count)


@dataclass(slots=True)
class Permit:
    """The right to send one call, and what was set aside for it."""

    sent: float
    estimate: float
    taken: tuple[Taken, Taken, Taken]


class Pacer:
    """Lets calls go as fast as the limits allow, first come first served.

    Every permit that `acquire` gives is handed back exactly once: to `settle` after an answer, to
    `refuse` after a 429, to `overload` after a 5xx, to `fail` after anything else.

    Spends: nothing.

    Parameters
    ----------
    limits : Limits
        Of the model's group; corrected by the headers of every answer.
    clock : Clock
        API time.
    share : float
        The part of the limits to use.
    concurrency : int, optional
        Most calls in flight. Without it the pacer finds out how many the API bears.
    output_tokens : float
        Expected output tokens of a call, until answers teach better.
    seed : int
        Of the jitter after a refusal.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Clock,
        share: float = 1.0,
        concurrency: int | None = None,
        output_tokens: float = 256.0,
        seed: int = 0,
    ) -> None:
        self.limits = limits
        self.in_flight = 0
        self._share = share
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        slop = _JITTER_SECONDS * clock.speed
        now = clock.seconds()
        rates = self._rates()
        self._buckets = tuple(
            Bucket(rate=rate, capacity=max(rate * _BURST_SECONDS, floor), slop_seconds=slop, at=now)
            for rate, floor in zip(rates, (1.0, 0.0, 0.0), strict=True)
        )
        self._production = Production(rate=rates[2], capacity=rates[2] * _BURST_SECONDS, at=now)
        self._ratio = Average(1.0, squares=_FIRST_DEVIATION**2)
        self._output = Average(output_tokens)
        self._reserved_output = 0.0
        self._recent: deque[Permit] = deque()
        self._held_until = -math.inf
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._most = concurrency or _MOST_CONCURRENCY
        self._window = float(min(_FIRST_CONCURRENCY, self._most))
        self._slow_start = True
        self._cut_at = -math.inf

    # what a run and its charts may ask

    @property
    def window(self) -> int:
        """Most calls in flight right now."""
        return max(int(self._window), 1)

    @property
    def expected_output_tokens(self) -> float:
        """Output tokens of a call, learned from the answers so far."""
        return self._output.mean

    # before a call

    async def acquire(self, input_tokens: float) -> Permit:
        """Wait for your turn and for every bucket, then set the call's needs aside.

        `input_tokens` is the estimate of the uncached ones.
        """
        async with self._turn:
            while (seconds := self._seconds_until(input_tokens)) > _INSTANT_SECONDS:
                await self._pause(seconds)
            return self._take(input_tokens)

    def _seconds_until(self, estimate: float) -> float:
        """Seconds until a call may go; infinite while as many are in flight as may be."""
        if self.in_flight >= self.window:
            return math.inf
        now = self._clock.seconds()
        self._production.refill(now)
        wait = max(self._held_until - now, self._production.seconds_until_open())
        doubt = _DEVIATIONS * self._ratio.deviation * estimate
        needs = (1.0, estimate * self._ratio.mean + doubt, self._output.mean)
        for bucket, need in zip(self._buckets, needs, strict=True):
            bucket.refill(now)
            wait = max(wait, bucket.seconds_until(need))
        return wait

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake when an answer changes the picture."""
        self._changed.clear()
        try:
            async with asyncio.timeout(None if seconds == math.inf else self._clock.real(seconds)):
                await self._changed.wait()
        except TimeoutError:
            return

    def _take(self, estimate: float) -> Permit:
        requests, input_tokens, output_tokens = self._buckets
        taken = (
            requests.take(1.0, 0.0),
            input_tokens.take(estimate * self._ratio.mean, estimate * self._ratio.deviation),
            output_tokens.take(self._output.mean, 0.0),
        )
        permit = Permit(self._clock.seconds(), estimate, taken)
        self._reserved_output += taken[2].amount
        self._production.writing += 1
        self._recent.append(permit)
        self.in_flight += 1
        return permit

    # after a call

    def settle(
        self, permit: Permit, *, input_tokens: float, output_tokens: float, readings: Readings
    ) -> None:
        """Replace what was set aside by what the answer really used (uncached input, all output)."""
        self._hand_back(permit, (1.0, input_tokens, output_tokens))
        if permit.estimate:
            self._ratio.add(input_tokens / permit.estimate)
        self._output.add(output_tokens)
        self._learn(readings)
        self._grow()

    def refuse(self, permit: Permit, readings: Readings) -> None:
        """After a 429: nothing was used, and nobody goes before ``retry-after`` has passed."""
        self._hand_back(permit, (0.0, 0.0, 0.0))
        self._learn(readings)
        now = self._clock.seconds()
        seconds = readings.retry_after_seconds
        if seconds is None:
            seconds = 1.0
        self._held_until = max(self._held_until, now + seconds * self._random.uniform(1.0, 1.1))

    def overload(self, permit: Permit, readings: Readings) -> None:
        """After a 5xx or a lost connection: nothing was used as far as is known, and fewer go at once."""
        self._hand_back(permit, (0.0, 0.0, 0.0))
        self._learn(readings)
        self._cut(permit)
        if readings.retry_after_seconds is not None:
            self._held_until = max(self._held_until, self._clock.seconds() + readings.retry_after_seconds)

    def fail(self, permit: Permit, readings: Readings) -> None:
        """After any other failure: nothing was used."""
        self._hand_back(permit, (0.0, 0.0, 0.0))
        self._learn(readings)

    def _hand_back(self, permit: Permit, used: tuple[float, float, float]) -> None:
        now = self._clock.seconds()
        self.in_flight -= 1
        self._reserved_output -= permit.taken[2].amount
        self._production.end(now, now - permit.sent, used[2])
        for bucket, taken, amount in zip(self._buckets, permit.taken, used, strict=True):
            bucket.settle(taken, amount)
        self._changed.set()

    # what the API says

    def _rates(self) -> tuple[float, ...]:
        """What each bucket refills in a second, as far as this run may use it."""
        return tuple(limit / 60 * _RATE_MARGIN for limit in self.limits.shared(self._share).per_minute)

    def _learn(self, readings: Readings) -> None:
        """Correct limits and levels by the headers of an answer."""
        limits = readings.limits(self.limits)
        if limits is not self.limits:
            self.limits = limits
            for bucket, rate in zip(self._buckets, self._rates(), strict=True):
                bucket.rescale(rate)
            self._production.rate = self._buckets[2].rate
        now = self._clock.seconds()
        told = zip(self._buckets, readings.buckets, self._uncounted(now), _ROUNDING, strict=True)
        for bucket, reading, uncounted, rounding in told:
            if reading.remaining is not None:
                bucket.refill(now)
                low = reading.remaining - rounding if reading.remaining else -math.inf
                high = math.inf if bucket is self._buckets[2] else reading.remaining + max(rounding, 1.0)
                bucket.told(low, high, uncounted)
        self._production.told(self._buckets[2].capacity, readings.output_tokens.remaining)

    def _uncounted(self, now: float) -> tuple[float, float, float]:
        """What was taken from each bucket here and may not be in the API's figures yet."""
        while self._recent and self._recent[0].sent < now - _TRANSIT_SECONDS:
            self._recent.popleft()
        return (
            float(len(self._recent)),
            sum(permit.taken[1].amount for permit in self._recent),
            self._reserved_output,
        )

    # how many at once

    def _grow(self) -> None:
        """One more for each success at first, later one more for each round of successes."""
        if self.in_flight + 1 >= self._window / 2:
            step = 1.0 if self._slow_start else 1.0 / self._window
            self._window = min(self._window + step, self._most)

    def _cut(self, permit: Permit) -> None:
        """Three quarters, once for all the calls that were under way together."""
        if permit.sent <= self._cut_at:
            return
        self._cut_at = self._clock.seconds()
        self._slow_start = False
        self._window = max(min(self._window, self.in_flight + 1.0) * 0.75, 1.0)
