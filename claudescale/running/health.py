"""Health: whether the answers so far speak of single rows, or of the key, the request or the API."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claudescale.api.answers import Verdict

HOPELESS_ROWS = 40
"""Rows that fail with the same words before any is answered: the request is wrong, not the row."""
HOPELESS_ROWS_LATER = 320
"""The same in a row, once some are answered: every eighth of them is from elsewhere in the frame."""
_ALIKE_AT_THE_END = 100
HOPELESS_ANSWERS = 20
"""Answers in a row that are no Message and may be billed."""
_DOUBTED = frozenset({401, 403, 404})
"""Of a key, a right, a model; but a load balancer may say so by mistake of one that has answered."""
DOUBTS = 5
"""So many 401s, 403s or 404s in a row, `DOUBT_SECONDS` long, end a run in which others were answered."""
DOUBT_SECONDS = 5.0
SILENT_SECONDS = 600.0
"""How long an API that was reached may give nothing but failures."""
UNREACHABLE_SECONDS = 20.0
"""How long an API may not be reached at all."""
FEW_FAILURES = 8
"""In a row: however long they took, they may be chance where few calls go at once."""
ASLEEP_SECONDS = 7_200.0
"""Between two failures: no call and no wait takes so long, so it was this process that stood still."""


_IDS = re.compile(r"\b(?:req_\w+|[0-9a-f]{8}-[0-9a-f-]{27})\b")  # they differ in words that are the same


@dataclass(slots=True)
class Health:
    """What the answers so far say of the run and not of single rows."""

    known_good: bool = False
    answered: int = 0
    reached: bool = False
    failing_since: float | None = None
    failed_at: float = 0.0
    failures: int = 0
    words: str | None = None
    repeats: int = 0
    doubts: int = 0
    doubted_since: float = 0.0
    doubted_at: float = -math.inf

    def judged(self, found: Verdict, status: int | None, sent: float, now: float) -> Verdict:
        """Return a verdict in the light of what was answered: one 401 does not make a good key wrong."""
        said = found.outcome == "stop" or (found.outcome == "failed" and not found.final)
        if status not in _DOUBTED or not said or not self.answered:
            return found
        self.doubted_since = self.doubted_since if self.doubts else now
        if sent >= self.doubted_at:  # else it went before anybody had a doubt
            self.doubts, self.doubted_at = self.doubts + 1, now
        lasting = self.doubts >= DOUBTS and now - self.doubted_since >= DOUBT_SECONDS
        return found if lasting else replace(found, outcome="again")

    def sees(self, found: Verdict, now: float, *, status: int | None, waiting: bool) -> bool:
        """Take one verdict, and return whether the run should end.

        `waiting` is a refusal with a wait that means something: no answer, but no silence either.
        """
        self.reached |= status is not None
        if found.outcome == "answered":
            self.answered += 1
            self.failing_since, self.failures, self.words, self.repeats, self.doubts = None, 0, None, 0, 0
            return False
        if found.outcome == "stop":
            return True
        if waiting:
            self.failing_since, self.failures = None, 0
            return False
        return self._is_hopeless(found, status) or self._is_silent(found, now)

    def _is_hopeless(self, found: Verdict, status: int | None) -> bool:
        """Whether the API says the same of every row."""
        if found.outcome != "failed" and not (found.unseen and status is not None):
            return False
        words = _IDS.sub("", f"{found.error}: {found.message}")
        self.repeats = self.repeats + 1 if words == self.words else 1
        self.words = words
        return self.is_hopeless or (found.unseen and self.repeats >= HOPELESS_ANSWERS)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many rows failed alike that it is the request, or the account, and not they."""
        return self.repeats >= (HOPELESS_ROWS_LATER if self.answered or self.known_good else HOPELESS_ROWS)

    @property
    def ends_alike(self) -> bool:
        """Whether the last rows of a run failed alike, so many that it should be said."""
        known = self.answered or self.known_good
        return self.repeats >= (_ALIKE_AT_THE_END if known else HOPELESS_ANSWERS)

    @property
    def blames_rows(self) -> bool:
        """Whether a row that failed is to blame for it: others are answered, and not all fail alike."""
        return (self.known_good or self.answered > 0) and self.repeats < HOPELESS_ROWS

    def _is_silent(self, found: Verdict, now: float) -> bool:
        """Whether there have been nothing but failures for too long."""
        if found.outcome == "failed":
            self.failing_since, self.failures = None, 0
            return False
        if self.failing_since is None or now - self.failed_at > ASLEEP_SECONDS:
            self.failing_since, self.failures = now, 0
        self.failed_at = now
        self.failures += 1
        patience = SILENT_SECONDS if self.reached else UNREACHABLE_SECONDS
        return self.failures > FEW_FAILURES and now - self.failing_since > patience
