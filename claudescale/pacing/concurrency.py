"""How many calls may be in flight at once: found out from what is answered, as nobody tells it.

As long as the API answers, more go. Where calls fail it matters which: if those fail that went when many
others were in flight, and those are answered that went when few were, the calls are too many. If they fail
by chance, an API that is overloaded by others or has a bad day, fewer at once would fail as often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_CONCURRENCY, MOST_CONCURRENCY = 16, 1_000
"""Calls in flight at the start of a run, and at most, where nothing else is asked for."""
_FEWER = 0.75
"""What is left of a window after a cut."""
_REGAINED = 0.25
"""By how much a success widens a window that was cut, up to where it was."""
_MEMORY = 0.05
"""How much one answer changes what is taken for the share of calls that fail."""
_OVERLOADED = 0.1
"""The share from which on the API is taken to be overloaded: three in a row, or more than one in ten."""
_ENOUGH = 0.25
"""So many answers to each call in flight tell what the API bears: failures come back before answers do."""
_MOSTLY = 0.75
"""The share from which on fewer go at once, whichever they are that fail."""


@dataclass(slots=True)
class Window:
    """Most calls in flight.

    Times are seconds of the API; the nth call in flight is the one with which n are in flight.

    Attributes
    ----------
    most : int
        It never grows beyond.
    size : float
        What it is now.
    borne : float
        What it was, as far as it was borne, before the last cut.
    slow_start : bool
        Whether no limit was met yet.
    trouble : float
        Share of the latest calls that failed.
    judged_at : float
        When it was last asked whether there are too many; what follows are the calls sent since.
    most_in_flight : int
        Most of them at once.
    answered : int
        How many of them were answered.
    answered_of : float
        Of these the one that went as the nth with the largest n.
    failures, failed_of_few : int
        How many of them failed, and how many of these went when clearly fewer were in flight than that.
    """

    most: int
    size: float = 0.0
    borne: float = 0.0
    slow_start: bool = True
    trouble: float = 0.0
    judged_at: float = -math.inf
    most_in_flight: int = 1
    answered: int = 0
    answered_of: float = 0.0
    failures: int = 0
    failed_of_few: int = 0

    def __post_init__(self) -> None:
        self.size = self.size or float(min(FIRST_CONCURRENCY, self.most))

    @property
    def calls(self) -> int:
        """Most calls in flight, as a whole number of at least 1."""
        return max(int(self.size), 1)

    def went(self, nth: int) -> None:
        """Take note that the nth call in flight was sent."""
        self.most_in_flight = max(self.most_in_flight, nth)

    def succeeded(self, nth: int, sent: float, in_flight: int) -> None:
        """Learn from a call that was answered and went at `sent` as the nth; `in_flight` still are.

        One more for each success at first, later one more for each round of successes. What was borne
        before the last cut is tried again within a round or two.
        """
        self.trouble *= 1 - _MEMORY
        if sent > self.judged_at:
            self.answered += 1
            self.answered_of = max(self.answered_of, float(nth))
        if in_flight + 1 >= self.size / 2:
            known = _REGAINED if self.size < self.borne else 1.0 / self.size
            self.size = min(self.size + (1.0 if self.slow_start else known), self.most)

    def failed(self, nth: int, sent: float, now: float, in_flight: int) -> None:
        """Learn from a call that failed; where that adds up, and would help, fewer go from now on."""
        self.trouble += _MEMORY * (1 - self.trouble)
        if sent <= self.judged_at:
            return
        self.failures += 1
        self.failed_of_few += nth < _FEWER * self.answered_of
        judged_before = self.judged_at > -math.inf
        if self.trouble > _OVERLOADED and (self._is_known or not judged_before):
            if self.trouble >= _MOSTLY:
                self._cut(0.0)
            elif not self._is_chance:
                self._cut(self.answered_of)
            self._begin(now, in_flight)

    def grew_too_fast(self, sent: float, now: float, in_flight: int) -> None:
        """Let fewer go: a call was refused because they had become more too fast."""
        if sent > self.judged_at:
            self._cut(0.0)
            self._begin(now, in_flight)

    @property
    def _most(self) -> float:
        """How many really went at once: a window may be wider than the calls need."""
        return min(self.size, float(self.most_in_flight))

    @property
    def _is_known(self) -> bool:
        """Whether enough was answered to tell what the API bears."""
        return self.answered >= max(_ENOUGH * self._most, 1)

    @property
    def _is_chance(self) -> bool:
        """Whether as many are borne as went, or most calls that failed went when fewer were in flight."""
        return self.answered_of >= self._most or 2 * self.failed_of_few >= self.failures

    def _cut(self, borne: float) -> None:
        """Leave three quarters of those that went at once, and no fewer than are borne."""
        self.borne = self.answered_of or self._most
        self.size = min(self.size, max(_FEWER * self._most, borne, 1.0))
        self.slow_start = self.slow_start and not self._is_known

    def _begin(self, now: float, in_flight: int) -> None:
        """Judge calls that go from now on; what is known of those before fades."""
        self.judged_at, self.most_in_flight = now, in_flight
        self.answered, self.failures, self.failed_of_few, self.trouble = 0, 0, 0, 0.0
        self.answered_of *= _FEWER
