"""How long a live run takes: the closed form of its limits, of which one binds."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from claudescale.api.limits import BUCKETS

if TYPE_CHECKING:
    from claudescale.api.limits import Limits

FIRST_CONCURRENCY, MOST_CONCURRENCY = 16, 1_000
"""Calls in flight at the start of a run, and at most, where nothing else is asked for."""
RATE_MARGIN = 0.99
"""The part of a limit that a run uses: its picture of the limits then runs behind the truth, never ahead."""
_OUTPUT_LEFT = 0.15
"""The part of a full bucket of output tokens that a run leaves in the mean: what is under way draws on it
unseen, so the pacer keeps up to twice as much."""
_ROUND, _FAR, _HALVINGS = 100.0, 1_000.0, 40
_NORMAL = NormalDist()


class Finish(NamedTuple):
    """When the last of a run's rows is answered, and what keeps it from being sooner."""

    seconds: float
    binding: str


def finish(
    limits: Limits,
    *,
    requests: float,
    input_tokens: float,
    output_tokens: float,
    input_deviation: float = 0.0,
    latency_seconds: float,
    latency_deviation: float = 0.0,
    concurrency: float | None = None,
    first_concurrency: float | None = None,
    burst_seconds: float = 1.0,
    stopped_seconds: float = 0.0,
    error_rate: float = 0.0,
    lost_seconds: float = 0.0,
    quantile: float = 0.5,
) -> Finish:
    """Return the closed form of a live run's duration: the slowest bucket, or the latency.

    A token bucket that holds `burst_seconds` worth at the start and refills at a constant rate lets
    a total pass in ``total / rate - burst_seconds``; with the limit on calls in flight it is Little's
    law. Each is a lower bound, and a first-come pacer reaches the largest of them. Then the last calls
    are still under way: the slowest of them is waited for.

    Spends: nothing.

    Parameters
    ----------
    requests, input_tokens, output_tokens : float
        Totals of the run; input tokens without reads from the prompt cache.
    input_deviation : float
        Standard deviation of a request's input tokens.
    latency_seconds, latency_deviation : float
        Of one call, from sending to the whole answer: mean and standard deviation.
    concurrency : float, optional
        Most calls in flight.
    first_concurrency : float, optional
        How many of them at the start, where that doubles with each latency until it is `concurrency`.
    burst_seconds : float
        How much of a minute a bucket holds when full: the API may enforce the minute by the second.
    stopped_seconds : float
        How long nothing is sent in between; a limit that binds refills meanwhile.
    error_rate, lost_seconds : float
        The part of the calls that fail and are sent again, and what each of these loses.
    quantile : float
        Of the slowest of the last calls.
    """
    if not requests:
        return Finish(0.0, "nothing to send")
    totals = (requests, input_tokens, output_tokens)
    alone = [total / (limit / 60) for total, limit in zip(totals, limits.per_minute, strict=True)]
    sending = {name: max(seconds - burst_seconds, 0.0) for name, seconds in zip(BUCKETS, alone, strict=True)}
    slower = "requests" if alone[0] >= alone[1] else "input_tokens"
    sending[slower] = max(
        _together(requests, alone, input_deviation, limits, burst_seconds) - burst_seconds, 0.0
    )
    most = concurrency or math.inf
    if concurrency:
        first = min(first_concurrency or concurrency, concurrency)
        rounds = _rounds(requests, first, concurrency)
        if first_concurrency and burst_seconds > 1:
            # Until an answer has told what the limits hold, calls go as they refill.
            rounds += max(min(requests, first) - requests / max(alone) * latency_seconds, 0.0) / first
        sending["concurrency"] = max(rounds - 1, 0.0) * latency_seconds + stopped_seconds
    others = max(seconds for name, seconds in sending.items() if name != "output_tokens")
    written = alone[2] * (1 - _last(requests, others, latency_seconds, most) / requests)
    if burst_seconds > 1 and written > others + burst_seconds * (1 - _OUTPUT_LEFT):
        sending["output_tokens"] = max(alone[2] - burst_seconds * (1 - _OUTPUT_LEFT), 0.0)
    binding = max(sending, key=lambda name: sending[name])
    seconds = sending[binding]
    if first_concurrency and binding in {"requests", "input_tokens"} and seconds > latency_seconds:
        needed = min(requests / max(alone) * latency_seconds, most)
        seconds += _ramp(first_concurrency, needed) * latency_seconds
    slowest = _slowest(requests, seconds, latency_seconds, latency_deviation, quantile)
    again = error_rate * lost_seconds * requests / max(seconds, latency_seconds) / -math.log(quantile)
    if again > 1:  # some of the last calls fail, and wait before they are sent again
        slowest = max(slowest, latency_seconds + lost_seconds * math.log(again))
    return Finish(seconds + slowest, "latency" if seconds < latency_seconds else binding)


def _ramp(first: float, needed: float) -> float:
    """Return how many latencies are lost while calls in flight double with each, up to those needed."""
    if needed <= first:
        return 0.0
    return math.log2(needed / first) - (1 - first / needed) / math.log(2)


def _slowest(requests: float, sending: float, mean: float, deviation: float, quantile: float) -> float:
    """Return how long after the last call is sent all are answered: a quantile, for lognormal latencies.

    A few long replies are what a run waits for. Calls go evenly, so how many are under way some seconds later
    is told by how far latencies exceed these.
    """
    if not mean or not deviation:
        return mean
    wide = math.sqrt(math.log1p((deviation / mean) ** 2))

    def excess(seconds: float) -> float:
        away = (math.log(mean / seconds) + wide**2 / 2) / wide
        return mean * _NORMAL.cdf(away) - seconds * _NORMAL.cdf(away - wide)

    evenly = max(sending, mean / _ROUND)
    wanted = -math.log(quantile)
    low, high = mean / _FAR, mean * _FAR
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        left = requests / evenly * (excess(middle) - excess(middle + evenly))
        low, high = (middle, high) if left > wanted else (low, middle)
    return high


def _together(
    requests: float, alone: list[float], input_deviation: float, limits: Limits, burst_seconds: float
) -> float:
    """Return the seconds in which requests and their input pass both limits.

    Of calls that fit a full bucket at once, the slower limit holds them up; where they are few, long requests
    wait for tokens and short ones for requests. The mean of the larger of the two is Clark's, of a normal
    distribution. Source: C. E. Clark, *The Greatest of a Finite Set of Random Variables*, OR 9 (1961).
    """
    count = max(burst_seconds * requests / max(alone), 1.0)
    each, tokens = (seconds * count / requests for seconds in alone[:2])
    deviation = math.sqrt(count) * input_deviation / (limits.input_tokens_per_minute / 60)
    if not deviation or count >= requests:
        return max(alone[:2])
    away = (tokens - each) / deviation
    both = each + deviation * (_NORMAL.pdf(away) + away * _NORMAL.cdf(away))
    return both * requests / count


def _last(requests: float, sending_seconds: float, latency_seconds: float, most: float) -> float:
    """Return how many calls are under way when the last one goes: Little's law, over the whole run."""
    found = requests * latency_seconds / (sending_seconds + latency_seconds)
    return min(max(found, 1.0), most, requests)


def _rounds(requests: float, first: float, most: float) -> float:
    """Return after how many latencies all calls are answered, where those in flight double until `most`."""
    doubling = min(requests, most - first)
    return math.ceil(math.log2(doubling / first + 1)) + (requests - doubling) / most
