"""An event loop whose clock jumps to the next timer, so that an hour of waiting takes no time."""

import asyncio
import math
import selectors

from claudescale.clock import Clock


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs timers in order and at once; `time` says when they would have been due."""

    def __init__(self):
        selector = self._virtual = selectors.DefaultSelector()
        selector.now, look = 0.0, selector.select

        def select(timeout=None):  # advances the clock instead of sleeping
            ready = look(0)
            if not ready and timeout != 0:
                assert timeout is not None, f"nothing is left to happen at {selector.now:g} virtual seconds"
                # Late, a step may be too small to change the clock.
                selector.now = max(selector.now + timeout, math.nextafter(selector.now, math.inf))
            return ready

        selector.select = select
        super().__init__(selector)

    def time(self):
        return self._virtual.now


def run(coroutine):
    """Return the result of a coroutine in virtual time; it may use no threads."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


def clock(speed=1.0, now=1_790_000_000.0):
    """Return a clock of the running virtual loop."""
    return Clock(speed, now, asyncio.get_running_loop().time)
