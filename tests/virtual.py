"""An event loop whose clock jumps to the next timer, so that an hour of waiting takes no time."""

import asyncio
import math
import selectors

from claudescale.clock import Clock


class _Selector(selectors.DefaultSelector):
    """Advances the loop's clock instead of sleeping."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, f"nothing is left to happen at {self.now:g} virtual seconds"
        # Late, a step may be too small to change the clock.
        self.now = max(self.now + timeout, math.nextafter(self.now, math.inf))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs timers in order and at once; `time` says when they would have been due."""

    def __init__(self):
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self):
        return self._virtual.now


def run(coroutine):
    """Return the result of a coroutine in virtual time; it may use no threads."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


def clock(speed=1.0, now=1_790_000_000.0):
    """Return a clock of the running virtual loop."""
    return Clock(speed, now, asyncio.get_running_loop().time)
