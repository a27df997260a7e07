"""API time: real time, or the faster time of a simulator.

Pacing, ledger, charts and bills all read API time: a simulated minute that passes in one real second
is a minute in every figure.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING

from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable


def elapsed() -> float:
    """Return real seconds since an arbitrary start; they never go back and include the computer's sleep.

    Python's own monotonic clock stops during sleep on Linux and macOS, and the API does not. A run would look
    for a batch from before the sleep at the wrong time, and would act on a deadline too late.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)  # includes sleep on macOS
    return time.monotonic()


class Clock:
    """API time in seconds since 1970, and a sleep in the same seconds.

    Parameters
    ----------
    speed : float
        API seconds per real second; 1 for the real API.
    now : float, optional
        Current API time, in seconds since 1970. The default is the system's time.
    monotonic : callable, optional
        Returns real seconds since an arbitrary start and never goes back. Tests pass their virtual time.
    """

    def __init__(
        self,
        speed: float = 1.0,
        now: float | None = None,
        monotonic: Callable[[], float] = elapsed,
    ) -> None:
        number = isinstance(speed, Real | Decimal) and not isinstance(speed, bool)
        if not number or not 0 < float(speed) < math.inf:
            msg = f"speed must be above 0, not {speed!r}: 1 is real time, 60 passes a minute in a second"
            raise PlanError(msg)
        self.speed = float(speed)
        self._monotonic = monotonic
        self._origin = monotonic()
        self._epoch = time.time() if now is None else now

    def seconds(self) -> float:
        """Return API time in seconds since 1970; it never goes back, even if the system's clock does."""
        return self._epoch + (self._monotonic() - self._origin) * self.speed

    def now(self) -> datetime:
        """Return API time as a UTC datetime."""
        return datetime.fromtimestamp(self.seconds(), UTC)

    def real(self, seconds: float) -> float:
        """Return the real seconds that `seconds` of API time take."""
        return seconds / self.speed

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds` of API time."""
        await asyncio.sleep(self.real(max(seconds, 0.0)))
