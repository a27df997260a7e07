"""When each call may be sent: three token buckets, reserve then settle, cool-downs, adaptive concurrency.

The pacer keeps its own estimate of the API's buckets and sends a call only when every bucket has room
for it. Three things keep the estimate accurate: the usage of each call, the remaining amounts in the
headers of each answer, and a margin as large as the uncertainty. The pacer never touches the network.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from claudescale.api.limits import BUCKETS, Readings, read_headers

if TYPE_CHECKING:
    from claudescale.api.answers import Verdict
    from claudescale.api.limits import Limits
    from claudescale.clock import Clock

_LOG = logging.getLogger("claudescale.pacing")
_UNUSED = 0.0, 0.0, 0.0
_WAITS = ["a pause to end", "replies to be written"]
_WAITS += [f"room for {name.replace('_', ' ')}" for name in BUCKETS]
RATE_MARGIN = 0.99
"""The fraction of a limit that a run uses: estimated levels then lag behind the API's and never lead."""
_BURST_SECONDS = 1.0
"""Assumed capacity at the start, as seconds of refill: the API may enforce a minute's limit by the second."""
_TRANSIT_SECONDS = 0.1
"""Longest transit of a request to the API: a header may not count calls sent more recently."""
_WAY_REAL_SECONDS = 0.02
"""Real seconds that an answer usually spends in transit."""
_JITTER_SECONDS = 0.015
"""Real seconds by which two calls may arrive closer together than they were sent."""
_INSTANT_SECONDS = 1e-6
"""Shorter waits are rounding errors of the clock."""
_FIRST_DEVIATION = 0.2
"""Relative standard deviation of an estimate of input tokens before the first answer."""
_FIRST_HOLD_SECONDS = 1.0
"""First pause after a 429 that names a shorter one or none; it doubles with each further refusal."""
_LONGEST_HOLD_SECONDS = 60.0
_DEVIATIONS = 3.0
"""Standard deviations that a level keeps as its safety margin."""
_ROUNDING = (0.0, 500.0, 500.0)
"""How far a ``remaining`` header may be from the true level of each bucket."""
_OPEN_MARGIN = 0.3
"""The fraction of the output bucket that must be left before the next call goes."""
_STALE_SECONDS = 0.25
"""Assumed age of the latest header that shows what other users take."""
_OTHERS_SECONDS = 10.0
"""Seconds over which an unexplained loss becomes an estimated rate of other users."""
_MOST_OTHERS = 0.9
"""The largest fraction of a limit that is attributed to other users."""
_LATEST_WEIGHT = 0.05
"""Weight of the latest call in `Bucket.mean_use`."""
_BLAMED_SHARE = 0.01
"""The fraction of the limit added to other users' output for each refusal that only they explain."""
_FORGETTING_SECONDS = 60.0
"""Time constant with which estimates of other users' consumption decay."""
FIRST_CONCURRENCY, MOST_CONCURRENCY = 16, 1_000
"""Default number of calls in flight at the start of a run, and at most."""
_FEWER = 0.75
"""The fraction of a window that remains after a cut."""
_REGAINED = 0.25
"""Growth of a window per success after a cut, up to its size before the cut."""
_FADING = 0.02
"""The fraction by which `Window.borne` shrinks with each failure at or below it."""
_NO_CHANCE = 3
"""Failures above `Window.borne`, with no success between them, before a cut: fewer may be chance."""


# the buckets: pure arithmetic


@dataclass(slots=True)
class Bucket:
    """The pacer's estimate of one token bucket of the API.

    `level` may be negative: a call larger than the bucket goes when the bucket is full, and overdraws
    it. Calls in flight may use more than was reserved for them. `own_margin` allows for that: only the
    level above it is available. Once the bucket must have been full, the use of earlier calls no longer
    matters and the level is certain again: `fills` counts these moments.

    Attributes
    ----------
    rate, others_rate : float
        Refill per second, and how much of it other users of the account seem to take.
    capacity, level : float
        The most that the bucket holds, and its level at the time `at`.
    slop_seconds : float
        Seconds of refill allowed above the capacity: waiting for a full bucket takes that much longer.
    variance : float
        Variance of the total use of the calls in flight.
    mean_use : float
        Mean use of one of the latest calls.
    """

    rate: float
    capacity: float
    slop_seconds: float
    at: float
    level: float = field(init=False)
    variance: float = 0.0
    fills: int = 0
    others_rate: float = 0.0
    mean_use: float = 1.0

    def __post_init__(self) -> None:
        self.level = self.full

    @property
    def full(self) -> float:
        """The highest level: the capacity, and the refill of `slop_seconds`."""
        return self.capacity + self.rate * self.slop_seconds

    @property
    def own_margin(self) -> float:
        """Three standard deviations of the use of the calls in flight."""
        return _DEVIATIONS * math.sqrt(self.variance)

    @property
    def others_margin(self) -> float:
        """Three standard deviations of what other users may have taken since the latest header."""
        # Their calls come at random, so the variance of their number is its mean.
        return _DEVIATIONS * math.sqrt(self.others_rate * _STALE_SECONDS * self.mean_use)

    def refill(self, now: float) -> None:
        """Advance the bucket to the time `now`."""
        seconds = now - self.at
        self.level += (self.rate - self.others_rate) * seconds
        self.others_rate *= math.exp(-seconds / _FORGETTING_SECONDS)
        self.at = now
        if self.level >= (full := self.full) and self.level >= full + self.own_margin:
            self.level = full
            self.variance = 0.0
            self.fills += 1

    def seconds_until(self, need: float) -> float:
        """Return the seconds until `need`, or a full bucket, is certain to be available."""
        wanted = min(need + self.others_margin, self.capacity) + self.rate * self.slop_seconds
        return max(wanted + self.own_margin - self.level, 0.0) / (self.rate - self.others_rate)

    def take(self, amount: float, deviation: float) -> Taken:
        """Reserve `amount`, which has the standard deviation `deviation`."""
        self.level = min(self.level, self.full) - amount
        self.variance += deviation**2
        self.mean_use += (amount - self.mean_use) * _LATEST_WEIGHT
        return Taken(amount, deviation, self.fills)

    def settle(self, taken: Taken, amount: float) -> None:
        """Replace a reservation by the amount that was used."""
        if taken.fills == self.fills:
            self.level += taken.amount - amount
            self.variance = max(self.variance - taken.deviation**2, 0.0)

    def rescale(self, rate: float) -> None:
        """Set a new rate; the capacity keeps its seconds of refill, and others their share of the rate."""
        self.others_rate *= rate / self.rate
        self.capacity = max(self.capacity * rate / self.rate, min(self.capacity, 1.0))
        self.rate = rate

    def correct(self, low: float, high: float, uncounted: float) -> None:
        """Move the level between a header's bounds, of which `uncounted` may already be used."""
        if high < self.level - self.rate * self.slop_seconds:
            self._move(high)
        elif low - uncounted > self.level:
            self.capacity = max(self.capacity, low)
            self._move(low - uncounted)

    def _move(self, level: float) -> None:
        """Set the level; a loss that recurs is attributed to other users."""
        others_rate = self.others_rate + (self.level - level) / _OTHERS_SECONDS
        self.others_rate = min(max(others_rate, 0.0), _MOST_OTHERS * self.rate)
        self.level = level


class Taken(NamedTuple):
    """One call's reservation in one bucket."""

    amount: float
    deviation: float
    fills: int


@dataclass(slots=True)
class Production:
    """The output bucket as the API sees it at this moment: it admits calls unless it is overdrawn.

    The API charges output tokens as they are written. A `Bucket` charges them when a call is sent, so that
    no more is reserved than a minute allows. But calls sent long ago may write all at once, and then the
    API refuses even a call that writes nothing. A call therefore waits for both.

    Attributes
    ----------
    bucket : Bucket
        The output bucket of the pacer; rate and capacity are read from it.
    level : float
        Tokens left at the API at the time `at`.
    calls : int
        Calls in flight. Each is assumed to write at the mean `speed` of earlier calls.
    others_rate : float
        Output tokens per second of other users. A lower level does not show them, as replies may be longer
        than expected. Only a refusal that the calls in flight do not explain does.
    """

    bucket: Bucket
    at: float
    level: float = field(init=False)
    speed: Average = field(init=False)
    calls: int = 0
    others_rate: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.bucket.capacity
        self.speed = Average(0.0, 0.0)

    @property
    def net_rate(self) -> float:
        """Change of the level per second."""
        return self.bucket.rate - self.others_rate - self.calls * self.speed.mean

    def refill(self, now: float) -> None:
        """Advance the level to the time `now`."""
        seconds = now - self.at
        self.level = min(self.level + self.net_rate * seconds, self.bucket.capacity)
        self.others_rate *= math.exp(-seconds / _FORGETTING_SECONDS)
        self.at = now

    def seconds_until_open(self) -> float:
        """Return the seconds until enough of the bucket is left; infinite if an answer has to end first."""
        missing = self.bucket.capacity * _OPEN_MARGIN - self.level
        if missing <= 0:
            return 0.0
        return missing / self.net_rate if self.net_rate > 0 else math.inf

    def rescale(self, rate: float) -> None:
        """Prepare for a new rate of the bucket; others keep their share of it."""
        self.others_rate *= rate / self.bucket.rate

    def correct(self, remaining: float) -> None:
        """Correct the level by a header; zero may stand for any negative level."""
        low = remaining - _ROUNDING[2] if remaining else -math.inf
        self.level = min(max(self.level, low), remaining + _ROUNDING[2], self.bucket.capacity)

    def refused(self) -> None:
        """Take note that the API's bucket is overdrawn, and attribute more output to other users."""
        self.level = min(self.level, 0.0)
        others_rate = self.others_rate + _BLAMED_SHARE * self.bucket.rate
        self.others_rate = min(others_rate, _MOST_OTHERS * self.bucket.rate)

    def end(self, now: float, seconds: float, tokens: float) -> None:
        """Settle a call that was in flight for `seconds` and has written `tokens`."""
        self.refill(now)
        self.level -= tokens - self.speed.mean * seconds
        self.calls -= 1
        if tokens and seconds > 0:
            self.speed.add(tokens / seconds)


@dataclass(slots=True)
class Average:
    """Running mean and standard deviation; the initial mean counts as one observation."""

    mean: float
    count: float = 1.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Add one observation (Welford's recurrence)."""
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of one observation."""
        return math.sqrt(self.squares / self.count)


# the window: adaptive concurrency


@dataclass(slots=True)
class Window:
    """The number of calls that may be in flight, learned from answers and failures: the API publishes none.

    The window grows while the API answers. When calls fail, it matters which. If calls sent with many others
    in flight fail, and calls sent with few are answered, there are too many at once. If calls fail at random,
    because other users overload the API or it has an outage, fewer at once would fail as often.
    Times are seconds of the API. The nth call is the one that brings the number in flight to n.

    Attributes
    ----------
    most : int
        The largest size.
    size, before : float
        The size now, and the size that answers had confirmed before the last cut.
    borne : float
        The largest n of an nth call that was answered recently.
    slow_start : bool
        Whether the window has not been cut yet.
    beyond : int
        Failures of calls with a larger n since one of those was answered.
    cut_at : float
        Time of the last cut. A call sent earlier does not show whether that cut was enough.
    answered_since : bool
        Whether a call sent after the last cut was answered.
    """

    most: int
    size: float = 0.0
    before: float = 0.0
    borne: float = 0.0
    slow_start: bool = True
    beyond: int = 0
    cut_at: float = -math.inf
    answered_since: bool = True

    def __post_init__(self) -> None:
        self.size = float(min(FIRST_CONCURRENCY, self.most))

    @property
    def calls(self) -> int:
        """The size as a whole number of calls, at least 1."""
        return max(int(self.size), 1)

    def succeeded(self, nth: int, sent: float, in_flight: int) -> None:
        """Learn from an answered call that was sent at `sent` as the nth; `in_flight` calls remain.

        The window grows by one for each success at first, later by one for each round of successes. After
        a cut it returns to the size before it within a round or two.
        """
        if sent > self.cut_at:
            self.answered_since = True
            if nth > self.borne:
                self.borne, self.beyond = float(nth), 0
        if in_flight + 1 >= self.size / 2:
            more = _REGAINED if self.size < self.before else 1.0 / self.size
            self.size = min(self.size + (1.0 if self.slow_start else more), self.most)

    def failed(self, nth: int, sent: float, now: float, in_flight: int) -> None:
        """Learn from a failed call; cut the window if enough failures show that fewer calls would help."""
        if nth <= self.borne:
            self.borne *= 1 - _FADING
        elif sent > self.cut_at:
            self.beyond += 1
            unanswered = in_flight - self.borne  # these may yet be answered: then it was chance
            if self.answered_since and self.beyond >= max(_NO_CHANCE, unanswered):
                self.cut(sent, now, in_flight, self.borne)

    def cut(self, sent: float, now: float, in_flight: int, borne: float = 0.0) -> None:
        """Cut the window to three quarters of the calls in flight, but not below `borne`."""
        if sent > self.cut_at:
            at_once = self.size if in_flight + 1 >= self.size / 2 else in_flight + 1.0
            self.before = self.borne or at_once
            self.size = min(self.size, max(_FEWER * at_once, borne, 1.0))
            self.slow_start, self.answered_since, self.cut_at = False, False, now
            _LOG.debug("the window is cut to %d calls in flight", self.calls)


# the pacer


@dataclass(slots=True)
class Permit:
    """The right to send one call, as the nth in flight, and its reservations."""

    sent: float
    nth: int
    estimate: float
    taken: tuple[Taken, Taken, Taken]


Kind: TypeAlias = Literal["answered", "refused", "too_fast", "overloaded", "failed"]
_KINDS: dict[str, Kind] = {"answered": "answered", "refused": "refused", "overloaded": "overloaded"}


class Outcome(NamedTuple):
    """The result of a call, for the pacer.

    Attributes
    ----------
    kind : str
        ``"answered"``; ``"refused"``, a 429; ``"too_fast"``, a 429 because calls increased too fast;
        ``"overloaded"``, a 5xx or a lost connection; ``"failed"``, anything else.
    readings : Readings
        Limits and levels in the headers.
    input_tokens, output_tokens : float
        Uncached input and all output of an answer.
    typical : bool
        Whether its input tokens help to estimate those of other calls.
    """

    kind: Kind
    readings: Readings = read_headers({})
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    typical: bool = True


def kind_of(verdict: Verdict, status: int | None) -> Kind:
    """Return the kind of an outcome: any 429 pauses all calls, even one that must not be retried."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "too_fast" if verdict.error == "ramp_limit_exceeded" else "refused"
    return _KINDS.get(verdict.outcome, "failed")


class Pacer:
    """Lets calls go as fast as the limits allow, first come, first served.

    Every permit from `acquire` is handed back to `settle` exactly once.

    Spends: nothing.

    Parameters
    ----------
    limits : Limits
        Limits of the model's rate group; the headers of every answer correct them.
    clock : Clock
        API time.
    share : float
        The fraction of the limits to use.
    concurrency : int, optional
        Maximum calls in flight. By default the pacer learns how many the API sustains.
    output_tokens : float
        Expected output tokens of a call before the first answer.
    seed : int
        Seeds the jitter after a refusal.
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
        self._way_seconds = _WAY_REAL_SECONDS * clock.speed
        self._transit_seconds = max(_TRANSIT_SECONDS, self._way_seconds)
        slop = _JITTER_SECONDS * clock.speed
        now = clock.seconds()
        self._buckets = tuple(
            Bucket(rate=rate, capacity=max(rate * _BURST_SECONDS, floor), slop_seconds=slop, at=now)
            for rate, floor in zip(self._rates(), (1.0, 0.0, 0.0), strict=True)
        )
        for bucket in self._buckets:
            if bucket.capacity > 1:
                # Half full at first: calls bunch up most while connections are being opened.
                bucket.level -= bucket.capacity / 2
        self._production = Production(self._buckets[2], at=now)
        self._ratio = Average(1.0, squares=_FIRST_DEVIATION**2)
        self._output = Average(output_tokens)
        self._reserved_output = 0.0
        self._recent: deque[Permit] = deque()  # sent just now: headers may not count them yet
        self._held_until = self._refused_at = -math.inf
        self._refusals = 0  # in a row, each of a call sent after the one before
        self._window = Window(concurrency or MOST_CONCURRENCY)
        self.move()

    def move(self) -> None:
        """Make calls wait on the running event loop from now on.

        Spends: nothing.
        """
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    # for runs and their charts

    @property
    def window(self) -> int:
        """Maximum calls in flight at this moment."""
        return self._window.calls

    @property
    def expected_output_tokens(self) -> float:
        """Mean output tokens of a call, from the answers so far."""
        return self._output.mean

    # before a call

    async def acquire(self, input_tokens: float) -> Permit:
        """Wait for a turn and for room in every bucket, then reserve what the call needs.

        `input_tokens` is the estimate of uncached input.

        Spends: nothing.
        """
        async with self._turn:
            logged = ""
            while True:
                seconds, reason = self._seconds_until(input_tokens)
                if seconds <= _INSTANT_SECONDS:
                    return self._take(input_tokens)
                if reason != logged:
                    _LOG.debug("a call waits for %s", reason)
                    logged = reason
                await self._pause(seconds)

    def _seconds_until(self, estimate: float) -> tuple[float, str]:
        """Return the seconds until a call may go, and the reason; infinite while the window is full."""
        if self.in_flight >= self.window:
            return math.inf, "a place in flight"
        now = self._clock.seconds()
        self._production.refill(now)
        waits = [self._held_until - now, self._production.seconds_until_open()]
        margin = _DEVIATIONS * self._ratio.deviation * estimate
        needs = (1.0, estimate * self._ratio.mean + margin, self._output.mean)
        for bucket, need in zip(self._buckets, needs, strict=True):
            bucket.refill(now)
            waits.append(bucket.seconds_until(need))
        longest = max(waits)
        return longest, _WAITS[waits.index(longest)]

    async def _pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or until a call is settled."""
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
        self.in_flight += 1
        permit = Permit(self._clock.seconds(), self.in_flight, estimate, taken)
        self._reserved_output += taken[2].amount
        self._production.calls += 1
        self._recent.append(permit)
        return permit

    # after a call

    def settle(self, permit: Permit, outcome: Outcome) -> None:
        """Take back a permit, once, with the outcome of its call, and learn from the headers of the answer.

        Spends: nothing.
        """
        answered = outcome.kind == "answered"
        self._hand_back(permit, (1.0, outcome.input_tokens, outcome.output_tokens) if answered else _UNUSED)
        if answered:
            self._refusals = 0
            if outcome.typical and permit.estimate:
                self._ratio.add(outcome.input_tokens / permit.estimate)
            self._output.add(outcome.output_tokens)
            self._window.succeeded(permit.nth, permit.sent, self.in_flight)
        self._learn_limits(outcome.readings)
        self._learn_levels(outcome.readings)
        if outcome.kind in {"refused", "too_fast"}:
            self._refuse(permit, outcome)
        elif outcome.kind == "overloaded":
            # A single failure does not show how many calls the API sustains.
            self._window.failed(permit.nth, permit.sent, self._clock.seconds(), self.in_flight)
            self._hold(outcome.readings.retry_after_seconds or 0.0, "overloaded")

    def _refuse(self, permit: Permit, outcome: Outcome) -> None:
        """Pause all calls until ``retry-after`` has passed, or back off exponentially if there is none."""
        requests, input_tokens, output_tokens = (bucket.remaining for bucket in outcome.readings.buckets)
        if output_tokens == 0 and requests and input_tokens:
            self._production.refused()
        if outcome.kind == "too_fast":
            self._window.cut(permit.sent, self._clock.seconds(), self.in_flight)
        if permit.sent > self._refused_at:
            self._refusals += 1
            self._refused_at = self._clock.seconds()
        # The count is 0 after an answer if this call was sent before the last refusal.
        usual = min(_FIRST_HOLD_SECONDS * 2.0 ** max(self._refusals - 1, 0), _LONGEST_HOLD_SECONDS)
        seconds = outcome.readings.retry_after_seconds or 0.0
        self._hold(seconds if seconds >= _FIRST_HOLD_SECONDS else usual, "refused")

    def _hold(self, seconds: float, why: str) -> None:
        """Pause all calls for `seconds` plus jitter, so that clients do not all return at once."""
        if seconds:
            _LOG.debug("%s: sending pauses for %.1f s", why, seconds)
        until = self._clock.seconds() + seconds * self._random.uniform(1.0, 1.1)
        self._held_until = max(self._held_until, until)

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
        """Return the refill per second of each bucket that this run may use."""
        return tuple(limit / 60 * RATE_MARGIN for limit in self.limits.shared(self._share).per_minute)

    def _learn_limits(self, readings: Readings) -> None:
        """Adopt the limits in the headers of an answer."""
        before, self.limits = self.limits, readings.limits(self.limits)
        if self.limits is not before:
            self._production.rescale(self._rates()[2])  # before its bucket, whose old rate it needs
            for bucket, rate in zip(self._buckets, self._rates(), strict=True):
                bucket.rescale(rate)

    def _learn_levels(self, readings: Readings) -> None:
        """Correct the levels of the buckets by the headers of an answer."""
        now, output = self._clock.seconds(), self._buckets[2]
        headers = zip(self._buckets, readings.buckets, self._uncounted(now), _ROUNDING, strict=True)
        for bucket, reading, uncounted, rounding in headers:
            if (left := reading.remaining) is not None:
                bucket.refill(now)
                # Zero may stand for any negative level, and a header counts the whole account, not a share.
                low = left - rounding if left and self._share == 1 else -math.inf
                # The level already includes the refill while the answer was in transit.
                high = left + max(rounding, 1.0) + bucket.rate * self._way_seconds
                # Output is never lowered: a loss may be replies longer than expected, and not other users.
                bucket.correct(low, math.inf if bucket is output else high, uncounted)
                if bucket is output:  # after its bucket, whose capacity may have grown
                    self._production.correct(left)
        output.others_rate = self._production.others_rate

    def _uncounted(self, now: float) -> tuple[float, float, float]:
        """Return the use of each bucket that the API's figures may not include yet."""
        while self._recent and self._recent[0].sent < now - self._transit_seconds:
            self._recent.popleft()
        input_tokens = sum(permit.taken[1].amount for permit in self._recent)
        return float(len(self._recent)), input_tokens, self._reserved_output
