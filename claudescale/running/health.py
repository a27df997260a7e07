"""The health of a run, judged from all answers so far: when it must end, and when rows are to blame."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claudescale.api.answers import Verdict

HOPELESS_ROWS = 40
"""Rows that fail with the same message before any is answered: the request is wrong, not the rows."""
HOPELESS_ROWS_LATER = 320
"""Consecutive rows that fail alike once others are answered; every eighth is from elsewhere in the frame."""
_ALIKE_AT_THE_END = 100
HOPELESS_ANSWERS = 20
"""Consecutive answers that are not a Message and may be billed."""
_DOUBTED = frozenset({401, 403, 404})
"""They reject a key, a permission or a model, but a load balancer may send one by mistake."""
DOUBTS = 5
"""This many consecutive 401s, 403s or 404s over `DOUBT_SECONDS` end a run in which others were answered."""
DOUBT_SECONDS = 5.0
SILENT_SECONDS = 600.0
"""How long an API that has been reached may return nothing but failures."""
UNREACHABLE_SECONDS = 20.0
"""How long an API that was never reached may stay unreachable."""
SILENT_FAILURES = 9
"""Consecutive failures that count as silence; with few calls in flight, fewer may be chance."""
ASLEEP_SECONDS = 7_200.0
"""A longer gap between two failures means that this process was suspended: no call or wait is that long."""
_IDS = re.compile(r"\b(?:req_\w+|[0-9a-f]{8}-[0-9a-f-]{27})\b")  # they differ between equal messages


@dataclass(slots=True)
class Streak:
    """Consecutive bad answers: how many, and since when."""

    count: int = 0
    since: float = 0.0

    def add(self, now: float) -> None:
        """Count one more."""
        self.since = self.since if self.count else now
        self.count += 1

    def end(self) -> None:
        """Reset the count."""
        self.count = 0

    def lasts(self, now: float, *, seconds: float, count: int) -> bool:
        """Whether the streak has at least this many answers over at least this time."""
        return self.count >= count and now - self.since >= seconds


@dataclass(slots=True)
class Health:
    """The verdicts on all rows, taken together.

    Attributes
    ----------
    known_good : bool
        Whether rows of the plan were answered before this run.
    answered : int
        Rows answered in this run.
    """

    known_good: bool = False
    answered: int = 0
    reached: bool = False  # the API has given any answer
    silence: Streak = field(default_factory=Streak)  # nothing but failures
    failed_at: float = 0.0
    doubts: Streak = field(default_factory=Streak)  # a key or a model that has worked is rejected
    words: str = ""  # the API's message for the last rows
    repeats: int = 0  # consecutive rows with that message

    @property
    def is_proven(self) -> bool:
        """Whether a row was answered, which proves that the request works."""
        return self.known_good or self.answered > 0

    @property
    def is_silent(self) -> bool:
        """Whether the latest calls have all failed."""
        return self.silence.count >= SILENT_FAILURES

    @property
    def ends_alike(self) -> bool:
        """Whether so many of the last rows failed alike that the user should know."""
        return self.repeats >= (_ALIKE_AT_THE_END if self.is_proven else HOPELESS_ANSWERS)

    @property
    def blames_rows(self) -> bool:
        """Whether a failed row is itself to blame: others are answered, and not all fail alike."""
        return self.is_proven and self.repeats < HOPELESS_ROWS

    def judged(self, verdict: Verdict, status: int | None, now: float, *, waits: bool) -> Verdict:
        """Return a verdict in the light of all others; its outcome is ``"stop"`` if the run should end."""
        # `waits`: a refusal that asks for a meaningful wait, which is neither an answer nor silence.
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
        """Return the verdict that ends a run; it counts the rows if they failed alike."""
        message = verdict.message
        if verdict.outcome == "failed":
            rows = f"{self.repeats:,} consecutive rows, from all over the frame, got the same answer"
            message = f"{rows}: {message}"
        return replace(verdict, outcome="stop", message=message)

    def _is_doubtful(self, verdict: Verdict, status: int | None, now: float) -> bool:
        """Whether a row is only retried for now: one 401 does not prove a good key wrong."""
        blames = verdict.outcome == "stop" or (verdict.outcome == "failed" and not verdict.final)
        if status not in _DOUBTED or not blames or not self.answered:
            return False
        self.doubts.add(now)
        return not self.doubts.lasts(now, seconds=DOUBT_SECONDS, count=DOUBTS)

    def _repeats_too_often(self, verdict: Verdict, status: int | None) -> bool:
        """Whether the API has given the same error for too many rows."""
        if verdict.outcome != "failed" and not (verdict.unseen and status is not None):
            return False
        words = _IDS.sub("", f"{verdict.error}: {verdict.message}")
        self.repeats = self.repeats + 1 if words == self.words else 1
        self.words = words
        most = HOPELESS_ROWS_LATER if self.is_proven else HOPELESS_ROWS
        return self.repeats >= (HOPELESS_ANSWERS if verdict.unseen else most)

    def _is_silent_too_long(self, verdict: Verdict, now: float) -> bool:
        """Whether calls have done nothing but fail for too long."""
        if verdict.outcome == "failed" or now - self.failed_at > ASLEEP_SECONDS:
            self.silence.end()
        if verdict.outcome == "failed":
            return False
        self.failed_at = now
        self.silence.add(now)
        patience = SILENT_SECONDS if self.reached else UNREACHABLE_SECONDS
        return self.silence.lasts(now, seconds=patience, count=SILENT_FAILURES)
