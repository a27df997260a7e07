"""One limit for many processes: a book that lends the right to call, in blocks.

The book is the pacer of a whole organization, asked several times a second by every borrower (`leases`).
What is lent, what calls really used, what headers told and how long a refusal holds everybody: all of it is
`Pacer`'s arithmetic, done once, where the book is kept. Messages are plain JSON: any home can carry them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from claudescale.api.limits import Limits, Reading, Readings
from claudescale.clock import Clock
from claudescale.pacing.buckets import Taken
from claudescale.pacing.pacer import Pacer, Permit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TICK_SECONDS, SHORTEST_TICK_SECONDS = 0.15, 0.03
"""Real seconds between two words of a borrower; shorter where a simulator's time runs faster."""
LOST_SECONDS = 10.0
"""Real seconds of silence after which a borrower, or a driver, is taken for dead."""
_LATE_SECONDS, _LATEST_SECONDS = 0.4, 1.0
"""Real seconds between the loan of a right and its use, usually at most, and at the very most."""
_WAITED_SECONDS = 1.0
"""So long a borrower may get nothing while others do; then it is its turn."""
_PLAIN = ("in_flight", "_reserved_output", "_held_until")
_PICTURE = ("_production", "_ratio", "_output", "_window")

Message = dict[str, Any]


def tick_seconds(speed: float) -> float:
    """Real seconds between two words of a borrower, where API time runs `speed` times as fast."""
    return max(TICK_SECONDS / max(speed, 1.0), SHORTEST_TICK_SECONDS)


class Central(Pacer):
    """The pacer a book keeps: it hears of calls late, and what it lends is used late; it leaves room."""

    def __init__(self, limits: Limits, *, clock: Clock, share: float, output_tokens: float) -> None:
        super().__init__(limits, clock=clock, share=share, output_tokens=output_tokens)
        self._transit_seconds += _LATEST_SECONDS * clock.speed
        self._way_seconds += 2 * TICK_SECONDS * clock.speed
        for bucket in self._buckets:
            bucket.slop_seconds += _LATE_SECONDS * clock.speed
            # Less than what refills between two words of a borrower would be lost to it.
            bucket.capacity = max(bucket.capacity, 2 * bucket.rate * tick_seconds(clock.speed) * clock.speed)

    def lend(self, estimates: Sequence[float]) -> list[Permit]:
        """Return permits for the first of these calls, as many as may go now."""
        lent: list[Permit] = []
        for estimate in estimates:
            if self._seconds_until(estimate) > 0:
                break
            lent.append(self._take(estimate))
        return lent

    def abandon(self, calls: int, output_tokens: float) -> None:
        """Forget calls of a borrower that is gone; what was set aside for them counts as used."""
        self._production.refill(self._clock.seconds())
        self._production.writing -= calls
        self.in_flight -= calls
        self._reserved_output -= output_tokens

    def state(self) -> Message:
        """Return the picture as JSON."""
        return {
            "plain": [getattr(self, name) for name in _PLAIN],
            "picture": [dataclasses.asdict(getattr(self, name)) for name in _PICTURE],
            "buckets": [dataclasses.asdict(bucket) for bucket in self._buckets],
            "recent": [permit_out(permit) for permit in self._recent],
            "limits": [*self.limits.per_minute, self.limits.burst_seconds, self.limits.source],
        }

    def restore(self, state: Message) -> None:
        """Take a picture that `state` gave."""
        for name, value in zip(_PLAIN, state["plain"], strict=True):
            setattr(self, name, value)
        parts = [*(getattr(self, name) for name in _PICTURE), *self._buckets]
        for part, fields in zip(parts, [*state["picture"], *state["buckets"]], strict=True):
            for name, value in fields.items():
                setattr(part, name, _nested(getattr(part, name), value))
        self._recent = deque(map(permit_in, state["recent"]))
        self.limits = limits_of(state["limits"])


def _nested(before: Any, value: Any) -> Any:
    """Return what `dataclasses.asdict` made a dict of, as what it was before."""
    made: Any = type(before)
    return made(**value) if dataclasses.is_dataclass(before) else value


@dataclass(slots=True)
class Party:
    """A borrower, or the driver of a run on a cluster, as the book knows it; seconds are real ones."""

    heard_at: float
    run: str = ""
    number: int = 0
    in_flight: int = 0
    output_tokens: float = 0.0
    empty_since: float = math.inf
    stopping: bool = False
    over: bool = False
    reply: Message = field(default_factory=dict)


class Book:
    """One organization's limit for one group of models, lent in blocks to whoever asks.

    Parameters
    ----------
    terms : dict
        What the first borrower says: ``limits``, ``share``, ``output_tokens``, and ``speed`` and ``now`` of
        the API's clock.
    real_now : float
        Real seconds, from any start that is the same for all calls.
    """

    def __init__(self, terms: Mapping[str, Any], real_now: float) -> None:
        self.borrowers: dict[str, Party] = {}
        self.drivers: dict[str, Party] = {}
        self._terms = dict(terms)
        self._real_now = self._opened_at = real_now
        # The clock counts from zero: the same book may be opened again by another process.
        self._clock = Clock(terms["speed"], terms["now"], lambda: self._real_now - self._opened_at)
        self.pacer = Central(
            limits_of(terms["limits"]),
            clock=self._clock,
            share=terms["share"],
            output_tokens=terms["output_tokens"],
        )

    @property
    def idle(self) -> bool:
        """Whether nobody uses it."""
        return not self.borrowers and not self.drivers

    def exchange(self, message: Message, real_now: float) -> Message:
        """Return the answer to a message of a borrower or a driver; one that came twice does nothing."""
        self._real_now = real_now
        for kept in (self.borrowers, self.drivers):
            for name in [name for name, party in kept.items() if real_now - party.heard_at > LOST_SECONDS]:
                self._lose(kept.pop(name))
        return self._drive(message) if "driver" in message else self._lend(message)

    def _lose(self, party: Party) -> None:
        if party.in_flight:
            self.pacer.abandon(party.in_flight, party.output_tokens)

    def _drive(self, message: Message) -> Message:
        """Hear a run's driver, and tell it how its workers do."""
        name = message["driver"]
        driver = self.drivers.setdefault(name, Party(self._real_now))
        driver.heard_at = self._real_now
        driver.stopping |= message["stop"]
        if message["over"]:
            self.drivers.pop(name)
        its = [party for party in self.borrowers.values() if party.run == name]
        return self._told() | {"in_flight": sum(party.in_flight for party in its), "borrowers": len(its)}

    def _lend(self, message: Message) -> Message:
        name, number = message["borrower"], message["number"]
        party = self.borrowers.get(name)
        if party is None and number > 1:
            return self._told() | {"permits": [], "stop": False, "lost": True}
        party = self.borrowers.setdefault(name, Party(self._real_now, message["run"]))
        party.heard_at = self._real_now
        if number <= party.number:
            return party.reply
        party.number = number
        for ended in message["ended"]:
            self._settle(party, *ended)
        stop = bool(party.run) and (party.run not in self.drivers or self.drivers[party.run].stopping)
        permits = [] if stop else self._lent(party, message)
        party.reply = self._told() | {
            "permits": [permit_out(permit) for permit in permits],
            "stop": stop,
            "lost": False,
        }
        if message["bye"]:
            self._lose(self.borrowers.pop(name))
        return party.reply

    def _lent(self, party: Party, message: Message) -> list[Permit]:
        wants = message["wants"]
        most = message["most"]
        if most:
            wants = wants[: max(most - self._in_flight_of(party), 0)]
        permits = self.pacer.lend(wants) if self._is_turn_of(party) else []
        party.in_flight += len(permits)
        party.output_tokens += sum(permit.taken[2].amount for permit in permits)
        if permits or not wants:
            party.empty_since = math.inf
        else:
            party.empty_since = min(party.empty_since, self._real_now)
        return permits

    def _is_turn_of(self, party: Party) -> bool:
        """Whether nobody else has waited long and longer: a large call would never find its tokens."""
        before = self._real_now - _WAITED_SECONDS
        others = (
            other for other in self.borrowers.values() if other is not party and other.heard_at > before
        )
        first = min((other.empty_since for other in others), default=math.inf)
        return first > before or party.empty_since <= first

    def _in_flight_of(self, party: Party) -> int:
        """Count the calls of the whole run that a borrower works for."""
        if not party.run:
            return party.in_flight
        return sum(other.in_flight for other in self.borrowers.values() if other.run == party.run)

    def _settle(
        self, party: Party, permit: list[Any], how: str, told: list[Any], more: dict[str, Any]
    ) -> None:
        given, readings = permit_in(permit), readings_in(told)
        party.in_flight -= 1
        party.output_tokens -= given.taken[2].amount
        getattr(self.pacer, how)(given, readings=readings, **more)

    def _told(self) -> Message:
        limits = self.pacer.limits
        return {
            "limits": [*limits.per_minute, limits.burst_seconds, limits.source],
            "window": self.pacer.window,
            "output_tokens": self.pacer.expected_output_tokens,
        }

    def state(self) -> Message:
        """Return all of it as JSON."""
        return {
            "terms": self._terms,
            "opened_at": self._opened_at,
            "pacer": self.pacer.state(),
            "borrowers": {name: dataclasses.asdict(party) for name, party in self.borrowers.items()},
        }

    @classmethod
    def restored(cls, state: Message, real_now: float) -> Book:
        """Return the book that `state` was taken of."""
        book = cls(state["terms"], state["opened_at"])
        book._real_now = real_now
        book.pacer.restore(state["pacer"])
        book.borrowers = {name: Party(**fields) for name, fields in state["borrowers"].items()}
        return book


def limits_of(told: Sequence[Any]) -> Limits:
    """Return the limits that a message tells."""
    requests, input_tokens, output_tokens, burst_seconds, source = told
    return Limits(
        requests_per_minute=requests,
        input_tokens_per_minute=input_tokens,
        output_tokens_per_minute=output_tokens,
        burst_seconds=burst_seconds,
        source=source,
    )


def terms_of(limits: Limits, *, share: float, output_tokens: float, clock: Clock) -> dict[str, Any]:
    """Return what a book has to know to be opened."""
    return {
        "limits": [*limits.per_minute, limits.burst_seconds, limits.source],
        "share": share,
        "output_tokens": output_tokens,
        "speed": clock.speed,
        "now": clock.seconds(),
    }


def permit_out(permit: Permit) -> list[Any]:
    """Return a permit as JSON."""
    return [permit.sent, permit.nth, permit.estimate, [list(taken) for taken in permit.taken]]


def permit_in(told: Sequence[Any]) -> Permit:
    """Return the permit that a message tells."""
    sent, nth, estimate, (requests, input_tokens, output_tokens) = told
    return Permit(sent, nth, estimate, (Taken(*requests), Taken(*input_tokens), Taken(*output_tokens)))


def readings_out(readings: Readings) -> list[Any]:
    """Return as JSON what headers told."""
    return [readings.retry_after_seconds, *([each.limit, each.remaining] for each in readings.buckets)]


def readings_in(told: Sequence[Any]) -> Readings:
    """Return the headers that a message tells."""
    retry_after_seconds, *buckets = told
    requests, input_tokens, output_tokens = (Reading(limit, remaining) for limit, remaining in buckets)
    return Readings(
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        retry_after_seconds=retry_after_seconds,
    )
