"""What the answers so far say of a run and not of single rows: when it ends, and when rows are to blame."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
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
SILENT_FAILURES = 9
"""In a row: fewer may be chance, however long they took, where few calls go at once."""
ASLEEP_SECONDS = 7_200.0
"""Between two failures: no call and no wait takes so long, so it was this process that stood still."""
_IDS = re.compile(r"\b(?:req_\w+|[0-9a-f]{8}-[0-9a-f-]{27})\b")  # they differ in words that are the same


@dataclass(slots=True)
class Streak:
    """Bad answers in a row: how many, and since when."""

    count: int = 0
    since: float = 0.0

    def add(self, now: float) -> None:
        """Count one more."""
        self.since = self.since if self.count else now
        self.count += 1

    def end(self) -> None:
        """Begin anew."""
        self.count = 0

    def lasts(self, now: float, *, seconds: float, count: int) -> bool:
        """Whether there were so many, over so long a time."""
        return self.count >= count and now - self.since >= seconds


@dataclass(slots=True)
class Health:
    """What the verdicts on all rows say together.

    Attributes
    ----------
    known_good : bool
        Whether rows of the plan were answered before this run.
    answered : int
        Rows that were answered in it.
    """

    known_good: bool = False
    answered: int = 0
    reached: bool = False  # the API, with any answer
    silence: Streak = field(default_factory=Streak)  # nothing but failures
    failed_at: float = 0.0
    doubts: Streak = field(default_factory=Streak)  # of a key or a model that has answered
    words: str = ""  # that the API said of the last rows, and of how many in a row
    repeats: int = 0

    @property
    def is_proven(self) -> bool:
        """Whether a row was answered: then nothing is wrong with all of them."""
        return self.known_good or self.answered > 0

    @property
    def is_silent(self) -> bool:
        """Whether there have been only failures lately."""
        return self.silence.count >= SILENT_FAILURES

    @property
    def ends_alike(self) -> bool:
        """Whether the last rows of a run failed alike, so many that it should be said."""
        return self.repeats >= (_ALIKE_AT_THE_END if self.is_proven else HOPELESS_ANSWERS)

    @property
    def blames_rows(self) -> bool:
        """Whether a row that failed is to blame for it: others are answered, and not all fail alike."""
        return self.is_proven and self.repeats < HOPELESS_ROWS

    def judged(self, verdict: Verdict, status: int | None, now: float, *, waits: bool) -> Verdict:
        """Return a verdict in the light of all others: its outcome is ``"stop"`` where the run should end.

        `waits` is a refusal with a wait that means something: no answer, but no silence either.
        """
        self.reached |= status is not None
        if verdict.outcome == "answered":
            self.answered += 1
            self.silence.end()
            self.doubts.end()
            self.repeats = 0
            return verdict
        if self._is_doubtful(verdict, status, now):
            verdict = replace(verdict, outcome="again")
        if verdict.outcome == "stop":
            return verdict
        if waits:
            self.silence.end()
            return verdict
        is_over = self._repeats_too_often(verdict, status) or self._is_silent_too_long(verdict, now)
        return self.ended(verdict) if is_over else verdict

    def ended(self, verdict: Verdict) -> Verdict:
        """Return the verdict that ends a run; of rows that failed alike it says how many."""
        message = verdict.message
        if verdict.outcome == "failed":
            rows = f"{self.repeats:,} consecutive rows, from all over the frame, got the same answer"
            message = f"{rows}: {message}"
        return replace(verdict, outcome="stop", message=message)

    def _is_doubtful(self, verdict: Verdict, status: int | None, now: float) -> bool:
        """Whether a row may only be tried again: one 401 does not make a good key wrong."""
        blames = verdict.outcome == "stop" or (verdict.outcome == "failed" and not verdict.final)
        if status not in _DOUBTED or not blames or not self.answered:
            return False
        self.doubts.add(now)
        return not self.doubts.lasts(now, seconds=DOUBT_SECONDS, count=DOUBTS)

    def _repeats_too_often(self, verdict: Verdict, status: int | None) -> bool:
        """Whether the API says the same of every row."""
        if verdict.outcome != "failed" and not (verdict.unseen and status is not None):
            return False
        words = _IDS.sub("", f"{verdict.error}: {verdict.message}")
        self.repeats = self.repeats + 1 if words == self.words else 1
        self.words = words
        most = HOPELESS_ROWS_LATER if self.is_proven else HOPELESS_ROWS
        return self.repeats >= (HOPELESS_ANSWERS if verdict.unseen else most)

    def _is_silent_too_long(self, verdict: Verdict, now: float) -> bool:
        """Whether there have been nothing but failures for too long."""
        if verdict.outcome == "failed" or now - self.failed_at > ASLEEP_SECONDS:
            self.silence.end()
        if verdict.outcome == "failed":
            return False
        self.failed_at = now
        self.silence.add(now)
        patience = SILENT_SECONDS if self.reached else UNREACHABLE_SECONDS
        return self.silence.lasts(now, seconds=patience, count=SILENT_FAILURES)
