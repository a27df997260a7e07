"""The pacer's picture of the API's token buckets, and what it learns from the answers. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

DEVIATIONS = 3.0
"""How sure a level must be."""
TOKEN_ROUNDING = 500.0
"""How far a ``remaining`` header of tokens may be from the truth."""
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
        return DEVIATIONS * math.sqrt(self.variance)

    @property
    def unseen(self) -> float:
        """Three deviations of what others may have taken since the last answer told."""
        return DEVIATIONS * math.sqrt(self.others * _STALE_SECONDS * self.typical)

    def refill(self, now: float) -> None:
        """Let the time pass until `now`."""
        seconds = now - self.at
        self.level += (self.rate - self.others) * seconds
        if self.others:
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
        self.others = min(max(self.others, 0.0), _MOST_OTHERS * self.rate)
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
    others: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity
        self.speed = Average(0.0, 0.0)

    @property
    def net(self) -> float:
        """What the level gains in a second."""
        return self.rate - self.others - self.writing * self.speed.mean

    def refill(self, now: float) -> None:
        """Let the time pass until `now`."""
        seconds = now - self.at
        self.level = min(self.level + self.net * seconds, self.capacity)
        self.others *= math.exp(-seconds / _FORGETTING_SECONDS)
        self.at = now

    def seconds_until_open(self) -> float:
        """Seconds until the bucket is out of debt, with a margin; infinite until an answer ends."""
        missing = self.capacity * _OPEN_MARGIN - self.level
        if missing <= 0:
            return 0.0
        return missing / self.net if self.net > 0 else math.inf

    def rescale(self, rate: float) -> None:
        """Take a new rate; others keep their part of it."""
        self.others *= rate / self.rate
        self.rate = rate

    def told(self, capacity: float, remaining: float | None) -> None:
        """Take the level that a header tells; zero may be any debt."""
        self.capacity = capacity
        if remaining is not None:
            low = remaining - TOKEN_ROUNDING if remaining else -math.inf
            self.level = min(max(self.level, low), remaining + TOKEN_ROUNDING, capacity)

    def refused(self) -> None:
        """Notice that the API is in debt where this picture was not: others must be writing too."""
        self.level = min(self.level, 0.0)
        self.others = min(self.others + _BLAMED_SHARE * self.rate, _MOST_OTHERS * self.rate)

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
