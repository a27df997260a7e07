"""Token buckets: what one group of models may still take, and the headers that say so."""

from __future__ import annotations

import heapq
import math
from datetime import UTC, datetime
from functools import lru_cache

SLACK = 1e-6  # of a token: what rounding of times near 2e9 seconds can cost
KINDS = ("requests", "input-tokens", "output-tokens")


class Bucket:
    """One limit per minute that refills continuously.

    Parameters
    ----------
    per_minute : float
        The limit. It refills at a sixtieth of it each second.
    capacity : float
        The most it holds, and what it holds at the start.
    now : float
        API seconds at the start.
    """

    __slots__ = ("capacity", "level", "per_minute", "per_second", "updated")

    def __init__(self, per_minute: float, capacity: float, now: float) -> None:
        self.per_minute = per_minute
        self.per_second = per_minute / 60
        self.capacity = capacity
        self.level = capacity
        self.updated = now

    def refill(self, now: float) -> float:
        """Level at `now`, in requests or tokens; below zero where more was taken than it held."""
        if now > self.updated:
            self.level = min(self.capacity, self.level + (now - self.updated) * self.per_second)
            self.updated = now
        return self.level

    def wait(self, now: float, need: float) -> float:
        """Seconds from `now` until it holds `need`, or is full if `need` is more than it can hold."""
        missing = min(need, self.capacity) - self.refill(now)
        return missing / self.per_second if missing > SLACK else 0.0


class WritingBucket(Bucket):
    """The limit on output tokens: replies take from it while they are written, each at its own speed."""

    __slots__ = ("changes", "written_per_second")

    def __init__(self, per_minute: float, capacity: float, now: float) -> None:
        super().__init__(per_minute, capacity, now)
        self.changes: list[tuple[float, float]] = []
        self.written_per_second = 0.0

    def refill(self, now: float) -> float:
        """Level at `now`, what was written until then taken."""
        while self.changes and self.changes[0][0] <= now:
            at, change = heapq.heappop(self.changes)
            self._pass(at)
            self.written_per_second += change
        self._pass(now)
        return self.level

    def _pass(self, now: float) -> None:
        if now > self.updated:
            gained = (self.per_second - self.written_per_second) * (now - self.updated)
            self.level = min(self.capacity, self.level + gained)
            self.updated = now

    def write(self, begin: float, end: float, tokens: float) -> None:
        """Take `tokens` evenly from `begin` to `end`, neither of them past."""
        speed = tokens / (end - begin)
        heapq.heappush(self.changes, (begin, speed))
        heapq.heappush(self.changes, (end, -speed))


class Buckets:
    """Admission of one group of models: requests, input tokens and output tokens per minute.

    A call is admitted when each bucket holds what the call needs, or is full where the call needs
    more than a full bucket. Output is not reserved: it is taken while it is produced, so the bucket
    may fall below zero, and admits nothing until it has paid that debt.

    Parameters
    ----------
    requests_per_minute, input_tokens_per_minute, output_tokens_per_minute : float
        The limits.
    bucket_seconds : float
        How many seconds' worth a full bucket holds: 60 is the whole minute, 1 enforces the limit
        by the second. The requests' bucket holds at least one.
    now : float
        API seconds at the start; the buckets start full.
    """

    __slots__ = ("bucket_seconds", "input_tokens", "output_tokens", "requests")

    def __init__(
        self,
        requests_per_minute: float,
        input_tokens_per_minute: float,
        output_tokens_per_minute: float,
        bucket_seconds: float = 60.0,
        now: float = 0.0,
    ) -> None:
        share = bucket_seconds / 60
        self.bucket_seconds = bucket_seconds
        self.requests = Bucket(requests_per_minute, max(requests_per_minute * share, 1.0), now)
        self.input_tokens = Bucket(input_tokens_per_minute, input_tokens_per_minute * share, now)
        self.output_tokens = WritingBucket(output_tokens_per_minute, output_tokens_per_minute * share, now)

    def waits(self, now: float, *, requests: int = 1, input_tokens: float = 0) -> tuple[float, float, float]:
        """Seconds until each of the three buckets would admit the call; all zero if now."""
        return (
            self.requests.wait(now, requests),
            self.input_tokens.wait(now, input_tokens),
            self.output_tokens.wait(now, 10 * SLACK),  # above zero: out of debt
        )

    def admit(self, now: float, *, requests: int = 1, input_tokens: float = 0) -> bool:
        """Whether the call may go now; if so its requests and input tokens are taken."""
        if any(self.waits(now, requests=requests, input_tokens=input_tokens)):
            return False
        self.requests.level -= requests
        self.input_tokens.level -= input_tokens
        return True

    def produce(self, now: float, output_tokens: float, *, begin: float | None = None) -> None:
        """Take the output tokens of a reply: at `now`, or evenly from `begin` until then."""
        if begin is not None and begin < now:
            self.output_tokens.write(begin, now, output_tokens)
            return
        self.output_tokens.refill(now)
        self.output_tokens.level -= output_tokens

    def retry_after(self, now: float, *, requests: int = 1, input_tokens: float = 0) -> int:
        """Whole seconds after which the same call would be admitted if nothing else came; at least 1."""
        waits = self.waits(now, requests=requests, input_tokens=input_tokens)
        buckets = (self.requests, self.input_tokens, self.output_tokens)
        whole = (math.ceil(wait - SLACK / each.per_second) for wait, each in zip(waits, buckets, strict=True))
        return max(1, *whole)

    def headers(self, now: float) -> dict[str, str]:
        """Return the rate-limit headers of an answer given at `now`.

        Token figures are rounded to the nearest thousand, as the API does; a debt shows as 0. The
        `tokens` headers repeat whichever token limit has the smaller part left.

        Notes
        -----
        Source: platform.claude.com, Rate limits, "Response headers" (checked 2026-10-08).
        """
        found = {}
        fullest = 2.0
        tightest: tuple[str, str, str] | None = None
        buckets = (self.requests, self.input_tokens, self.output_tokens)
        for kind, bucket in zip(KINDS, buckets, strict=True):
            level = bucket.refill(now)
            limit = str(round(bucket.per_minute))
            if bucket is self.requests:
                remaining = str(max(0, math.floor(level + SLACK)))
            else:
                remaining = str(max(0, round(level / 1000) * 1000))
            full_at = now + (bucket.capacity - level) / bucket.per_second if bucket.per_second else now
            reset = rfc3339(math.ceil(full_at - SLACK))
            if bucket is not self.requests and level / max(bucket.capacity, 1.0) < fullest:
                fullest = level / max(bucket.capacity, 1.0)
                tightest = (limit, remaining, reset)
            found[f"anthropic-ratelimit-{kind}-limit"] = limit
            found[f"anthropic-ratelimit-{kind}-remaining"] = remaining
            found[f"anthropic-ratelimit-{kind}-reset"] = reset
        if tightest is not None:
            (
                found["anthropic-ratelimit-tokens-limit"],
                found["anthropic-ratelimit-tokens-remaining"],
                found["anthropic-ratelimit-tokens-reset"],
            ) = tightest
        return found


@lru_cache(maxsize=4096)
def rfc3339(seconds: int) -> str:
    """Time of the API in RFC 3339 with whole seconds, such as ``2026-11-22T10:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
