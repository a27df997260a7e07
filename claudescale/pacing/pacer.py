"""Who may go now: three token buckets, reserve then settle, cool-downs, adaptive concurrency.

The pacer keeps its own picture of the API's buckets and sends a call only when every bucket would
take it. Three things hold the picture to the truth: what each call really used, what the headers of
each answer say is left, and a slack as large as the picture is unsure. It knows nothing of the wire.
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
"""The part of a limit that a run uses: its picture of the limits then runs behind the truth, never ahead."""
_BURST_SECONDS = 1.0
"""What a bucket is taken to hold at the start: the API may enforce the minute by the second."""
_TRANSIT_SECONDS = 0.1
"""Longest way of a request to the API: what was sent since may be missing from a header."""
_WAY_REAL_SECONDS = 0.02
"""Real seconds an answer is usually on its way."""
_JITTER_SECONDS = 0.015
"""Real seconds by which two calls may arrive closer together than they were sent."""
_INSTANT_SECONDS = 1e-6
"""Shorter waits are rounding errors of the clock."""
_FIRST_DEVIATION = 0.2
"""Of an estimate of input tokens, relative, until answers teach better."""
_FIRST_HOLD_SECONDS = 1.0
"""After a 429 that does not say how long, or less than this; twice as long each time it goes on."""
_LONGEST_HOLD_SECONDS = 60.0
_DEVIATIONS = 3.0
"""How sure a level must be."""
_ROUNDING = (0.0, 500.0, 500.0)
"""How far a ``remaining`` header may be from the truth."""
_OPEN_MARGIN = 0.3
"""The part of the output bucket that is left when the next call goes."""
_STALE_SECONDS = 0.25
"""How long ago the last answer may have told what others take."""
_OTHERS_SECONDS = 10.0
"""Over how long a steady loss is taken for the use of others."""
_MOST_OTHERS = 0.9
"""Others are never taken to use more of a limit than this part."""
_TYPICAL_SHARE = 0.05
"""How much one call changes what is taken for a typical one."""
_BLAMED_SHARE = 0.01
"""What others are taken to write more, as part of the limit, for each refusal that only they explain."""
_FORGETTING_SECONDS = 60.0
"""How long that is believed without being told again."""
FIRST_CONCURRENCY, MOST_CONCURRENCY = 16, 1_000
"""Calls in flight at the start of a run, and at most, where nothing else is asked for."""
_FEWER = 0.75
"""What is left of a window after a cut."""
_REGAINED = 0.25
"""By how much a success widens a window that was cut, up to where it was."""
_FADING = 0.02
"""How much of what is taken to be borne is forgotten with each failure of fewer."""
_NO_CHANCE = 3
"""So many calls beyond what is borne fail, and none is answered: fewer may have failed by chance."""


# the buckets: pure arithmetic


@dataclass(slots=True)
class Bucket:
    """One token bucket as the pacer believes the API to hold it.

    `level` may be negative: a call larger than the bucket is let through when the bucket is full,
    and leaves a debt. What calls in flight may take more than was set aside for them is the doubt:
    a level is trusted only as far as it stands above it. A bucket that has surely been full since
    is certain again, whatever those calls took: `fills` counts these moments.

    Attributes
    ----------
    rate, others : float
        What refills in a second, and what other users of the account seem to take of it.
    capacity, level : float
        The most it holds and what it holds at the time `at`.
    slop_seconds : float
        Seconds of refill that may stand above the capacity: waiting for a full bucket waits that much longer.
    variance : float
        Of what the calls in flight will have taken.
    typical : float
        What a call takes.
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
        seconds = now - self.at
        self.level += (self.rate - self.others) * seconds
        self.others *= math.exp(-seconds / _FORGETTING_SECONDS)
        self.at = now
        if self.level >= (full := self.full) and self.level >= full + self.doubt:
            self.level = full
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
        self.typical += (amount - self.typical) * _TYPICAL_SHARE
        return Taken(amount, deviation, self.fills)

    def settle(self, taken: Taken, amount: float) -> None:
        """Replace what was set aside by what was really used."""
        if taken.fills == self.fills:
            self.level += taken.amount - amount
            self.variance = max(self.variance - taken.deviation**2, 0.0)

    def rescale(self, rate: float) -> None:
        """Take a new rate; the capacity keeps its seconds, and others their part of it."""
        self.others *= rate / self.rate
        self.capacity = max(self.capacity * rate / self.rate, min(self.capacity, 1.0))
        self.rate = rate

    def correct(self, low: float, high: float, uncounted: float) -> None:
        """Move the level into what a header allows: between `low` and `high`, some of it not counted yet."""
        if high < self.level - self.rate * self.slop_seconds:
            self._move(high)
        elif low - uncounted > self.level:
            self.capacity = max(self.capacity, low)
            self._move(low - uncounted)

    def _move(self, level: float) -> None:
        """Take the level told; what is missing again and again, others must be taking."""
        self.others += (self.level - level) / _OTHERS_SECONDS
        self.others = min(max(self.others, 0.0), _MOST_OTHERS * self.rate)
        self.level = level


class Taken(NamedTuple):
    """What was set aside in one bucket for one call."""

    amount: float
    deviation: float
    fills: int


@dataclass(slots=True)
class Production:
    """The output bucket as the API sees it at this moment: it lets calls in while it is not overdrawn.

    The API charges output while it is written. A `Bucket` charges it when a call goes, so that no more is
    promised than a minute allows; but calls that were promised long ago may write all at once, and then even
    a call that writes nothing is refused. So a call waits for both.

    Each call in flight is taken to write at the mean speed of those before it. What others write is learned
    here alone: `Pacer` gives it to the bucket.
    """

    bucket: Bucket
    at: float
    level: float = field(init=False)
    speed: Average = field(init=False)
    writing: int = 0
    others: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.bucket.capacity
        self.speed = Average(0.0, 0.0)

    @property
    def net(self) -> float:
        """What the level gains in a second."""
        return self.bucket.rate - self.others - self.writing * self.speed.mean

    def refill(self, now: float) -> None:
        """Let the time pass until `now`."""
        seconds = now - self.at
        self.level = min(self.level + self.net * seconds, self.bucket.capacity)
        self.others *= math.exp(-seconds / _FORGETTING_SECONDS)
        self.at = now

    def seconds_until_open(self) -> float:
        """Seconds until the bucket is out of debt, with a margin; infinite until an answer ends."""
        missing = self.bucket.capacity * _OPEN_MARGIN - self.level
        if missing <= 0:
            return 0.0
        return missing / self.net if self.net > 0 else math.inf

    def rescale(self, rate: float) -> None:
        """Know that the bucket gets a new rate; others keep their part of it."""
        self.others *= rate / self.bucket.rate

    def correct(self, remaining: float) -> None:
        """Take the level that a header tells; zero may be any debt."""
        low = remaining - _ROUNDING[2] if remaining else -math.inf
        self.level = min(max(self.level, low), remaining + _ROUNDING[2], self.bucket.capacity)

    def refused(self) -> None:
        """Notice that the API is in debt where this picture was not: others must be writing too."""
        self.level = min(self.level, 0.0)
        self.others = min(self.others + _BLAMED_SHARE * self.bucket.rate, _MOST_OTHERS * self.bucket.rate)

    def end(self, now: float, seconds: float, tokens: float) -> None:
        """One call that was in flight for `seconds` has written `tokens`."""
        self.refill(now)
        self.level -= tokens - self.speed.mean * seconds
        self.writing -= 1
        if tokens and seconds > 0:
            self.speed.add(tokens / seconds)


@dataclass(slots=True)
class Average:
    """Mean and standard deviation of what came so far; the first mean counts as one observation."""

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


# how many at once


@dataclass(slots=True)
class Window:
    """Most calls in flight at once: found out from what is answered, as nobody tells it.

    As long as the API answers, more go. Where calls fail it matters which: if those fail that went when many
    others were in flight, and those are answered that went when few were, the calls are too many. If they
    fail by chance, an API that is overloaded by others or has a bad day, fewer at once would fail as often.
    Times are seconds of the API; the nth call in flight is the one with which n are in flight.

    Attributes
    ----------
    most : int
        It never grows beyond.
    size, before : float
        What it is now, and what it was, as far as it was borne, before the last cut.
    borne : float
        The largest n of an nth call that was answered lately.
    slow_start : bool
        Whether no limit was met yet.
    beyond : int
        How many calls of a larger n failed since one of them was answered.
    cut_at : float
        When it was last cut. A call that went before says nothing of whether that was enough.
    answered_since : bool
        Whether a call was answered that went after the last cut.
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
        """Most calls in flight, as a whole number of at least 1."""
        return max(int(self.size), 1)

    def succeeded(self, nth: int, sent: float, in_flight: int) -> None:
        """Learn from a call that was answered and went at `sent` as the nth; `in_flight` still are.

        One more for each success at first, later one more for each round of successes. What was borne
        before the last cut is tried again within a round or two.
        """
        if sent > self.cut_at:
            self.answered_since = True
            if nth > self.borne:
                self.borne, self.beyond = float(nth), 0
        if in_flight + 1 >= self.size / 2:
            more = _REGAINED if self.size < self.before else 1.0 / self.size
            self.size = min(self.size + (1.0 if self.slow_start else more), self.most)

    def failed(self, nth: int, sent: float, now: float, in_flight: int) -> None:
        """Learn from a call that failed; where that adds up, and would help, fewer go from now on."""
        if nth <= self.borne:
            self.borne *= 1 - _FADING
        elif sent > self.cut_at:
            self.beyond += 1
            unanswered = in_flight - self.borne  # so many may yet be answered, and show that it was chance
            if self.answered_since and self.beyond >= max(_NO_CHANCE, unanswered):
                self.cut(sent, now, in_flight, self.borne)

    def cut(self, sent: float, now: float, in_flight: int, borne: float = 0.0) -> None:
        """Leave three quarters of those that went at once, and no fewer than are borne."""
        if sent > self.cut_at:
            at_once = self.size if in_flight + 1 >= self.size / 2 else in_flight + 1.0
            self.before = self.borne or at_once
            self.size = min(self.size, max(_FEWER * at_once, borne, 1.0))
            self.slow_start, self.answered_since, self.cut_at = False, False, now
            _LOG.debug("the window is cut to %d calls in flight", self.calls)


# the pacer


@dataclass(slots=True)
class Permit:
    """The right to send one call, as the nth in flight, and what was set aside for it."""

    sent: float
    nth: int
    estimate: float
    taken: tuple[Taken, Taken, Taken]


Kind: TypeAlias = Literal["answered", "refused", "too_fast", "overloaded", "failed"]
_KINDS: dict[str, Kind] = {"answered": "answered", "refused": "refused", "overloaded": "overloaded"}


class Outcome(NamedTuple):
    """What came of a call.

    Attributes
    ----------
    kind : str
        ``"answered"``; ``"refused"``, a 429, or ``"too_fast"``, one that says that calls grew too fast;
        ``"overloaded"``, a 5xx or a lost connection; ``"failed"``, anything else.
    readings : Readings
        What the headers say.
    input_tokens, output_tokens : float
        Of an answer: uncached input, all output.
    typical : bool
        Whether its input tells anything of that of others.
    """

    kind: Kind
    readings: Readings = read_headers({})
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    typical: bool = True


def kind_of(verdict: Verdict, status: int | None) -> Kind:
    """Return what an answer means for the pace: a 429 holds everybody, also where nobody should retry."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "too_fast" if verdict.error == "ramp_limit_exceeded" else "refused"
    return _KINDS.get(verdict.outcome, "failed")


class Pacer:
    """Lets calls go as fast as the limits allow, first come first served.

    Every permit that `acquire` gives is handed back to `settle` exactly once.

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
        self._way_seconds = _WAY_REAL_SECONDS * clock.speed
        self._transit_seconds = max(_TRANSIT_SECONDS, self._way_seconds)
        slop = _JITTER_SECONDS * clock.speed
        now = clock.seconds()
        rates = self._rates()
        self._buckets = tuple(
            Bucket(rate=rate, capacity=max(rate * _BURST_SECONDS, floor), slop_seconds=slop, at=now)
            for rate, floor in zip(rates, (1.0, 0.0, 0.0), strict=True)
        )
        for bucket in self._buckets:
            if bucket.capacity > 1:
                # Half full at first: connections are opened now, and calls run into each other most.
                bucket.level -= bucket.capacity / 2
        self._production = Production(self._buckets[2], at=now)
        self._ratio = Average(1.0, squares=_FIRST_DEVIATION**2)
        self._output = Average(output_tokens)
        self._reserved_output = 0.0
        self._recent: deque[Permit] = deque()  # sent just now: headers may not know of them yet
        self._held_until = self._refused_at = -math.inf
        self._refusals = 0  # in a row, of calls that went after the one before
        self._window = Window(concurrency or MOST_CONCURRENCY)
        self.move()

    def move(self) -> None:
        """Let calls wait on the event loop that runs now, from now on.

        Spends: nothing.
        """
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    # what a run and its charts may ask

    @property
    def window(self) -> int:
        """Most calls in flight right now."""
        return self._window.calls

    @property
    def expected_output_tokens(self) -> float:
        """Output tokens of a call, learned from the answers so far."""
        return self._output.mean

    # before a call

    async def acquire(self, input_tokens: float) -> Permit:
        """Wait for your turn and for every bucket, then set the call's needs aside.

        `input_tokens` is the estimate of the uncached ones.

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
        """Seconds until a call may go, and what for; infinite while as many are in flight as may be."""
        if self.in_flight >= self.window:
            return math.inf, "a place in flight"
        now = self._clock.seconds()
        self._production.refill(now)
        waits = [self._held_until - now, self._production.seconds_until_open()]
        doubt = _DEVIATIONS * self._ratio.deviation * estimate
        needs = (1.0, estimate * self._ratio.mean + doubt, self._output.mean)
        for bucket, need in zip(self._buckets, needs, strict=True):
            bucket.refill(now)
            waits.append(bucket.seconds_until(need))
        longest = max(waits)
        return longest, _WAITS[waits.index(longest)]

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
        self.in_flight += 1
        permit = Permit(self._clock.seconds(), self.in_flight, estimate, taken)
        self._reserved_output += taken[2].amount
        self._production.writing += 1
        self._recent.append(permit)
        return permit

    # after a call

    def settle(self, permit: Permit, outcome: Outcome) -> None:
        """Take a permit back, once, with what came of its call; the headers of the answer teach.

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
        self._learn(outcome.readings)
        if outcome.kind in {"refused", "too_fast"}:
            self._refuse(permit, outcome)
        elif outcome.kind == "overloaded":
            # A single one says nothing of how many calls the API bears.
            self._window.failed(permit.nth, permit.sent, self._clock.seconds(), self.in_flight)
            self._hold(outcome.readings.retry_after_seconds or 0.0, "overloaded")

    def _refuse(self, permit: Permit, outcome: Outcome) -> None:
        """Let nobody go before ``retry-after`` has passed, or longer and longer where it says nothing."""
        requests, input_tokens, output_tokens = (bucket.remaining for bucket in outcome.readings.buckets)
        if output_tokens == 0 and requests and input_tokens:
            self._production.refused()
        if outcome.kind == "too_fast":
            self._window.cut(permit.sent, self._clock.seconds(), self.in_flight)
        if permit.sent > self._refused_at:
            self._refusals += 1
            self._refused_at = self._clock.seconds()
        # Of calls that went before the last answer came, none may be counted.
        usual = min(_FIRST_HOLD_SECONDS * 2.0 ** max(self._refusals - 1, 0), _LONGEST_HOLD_SECONDS)
        seconds = outcome.readings.retry_after_seconds or 0.0
        self._hold(seconds if seconds >= _FIRST_HOLD_SECONDS else usual, "refused")

    def _hold(self, seconds: float, why: str) -> None:
        """Let nobody go for so long, and by chance a little longer: not all clients come back at once."""
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
        """Return what each bucket refills in a second, as far as this run may use it."""
        return tuple(limit / 60 * RATE_MARGIN for limit in self.limits.shared(self._share).per_minute)

    def _learn(self, readings: Readings) -> None:
        """Correct limits and levels by the headers of an answer."""
        limits = readings.limits(self.limits)
        if limits is not self.limits:
            self.limits = limits
            self._production.rescale(self._rates()[2])
            for bucket, rate in zip(self._buckets, self._rates(), strict=True):
                bucket.rescale(rate)
        now = self._clock.seconds()
        remaining = [reading.remaining for reading in readings.buckets]
        corrections = zip(self._buckets, remaining, self._uncounted(now), _ROUNDING, strict=True)
        for bucket, left, uncounted, rounding in corrections:
            if left is not None:
                bucket.refill(now)
                # Zero may be any debt; and what is left of the whole account is not all this run's share.
                low = left - rounding if left and self._share == 1 else -math.inf
                # What refilled while the answer was on its way is in the level already.
                high = left + max(rounding, 1.0) + bucket.rate * self._way_seconds
                is_output = bucket is self._buckets[2]  # how much too much is left of it, `Production` knows
                bucket.correct(low, math.inf if is_output else high, uncounted)
        if remaining[2] is not None:
            self._production.correct(remaining[2])
        self._buckets[2].others = self._production.others

    def _uncounted(self, now: float) -> tuple[float, float, float]:
        """Return what was taken from each bucket here and may not be in the API's figures yet."""
        while self._recent and self._recent[0].sent < now - self._transit_seconds:
            self._recent.popleft()
        input_tokens = sum(permit.taken[1].amount for permit in self._recent)
        return float(len(self._recent)), input_tokens, self._reserved_output
