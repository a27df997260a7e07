"""An event loop whose clock jumps to the next timer, so that an hour of waiting takes no time."""

import asyncio
import math
import selectors

from claudescale.clock import Clock

_REAL_SECONDS = 0.05


class Deadlock(Exception):
    """Every task waits for something that nobody will do."""


class _Selector(selectors.DefaultSelector):
    """Instead of sleeping it moves the loop's clock on."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.in_threads = 0

    def select(self, timeout=None):
        if timeout == 0:
            return super().select(0)
        ready = super().select(_REAL_SECONDS if self.in_threads else 0)
        if ready or self.in_threads:  # a thread works in real time: meanwhile the clock stands
            return ready
        if timeout is None:
            msg = f"nothing is left to happen at {self.now:g} virtual seconds"
            raise Deadlock(msg)
        self.now = max(
            self.now + timeout, math.nextafter(self.now, math.inf)
        )  # late, a step may be too small
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs timers in their order and at once; `time` says when they would have been due.

    A deadlock raises `Deadlock` out of `run`. Work in threads (`asyncio.to_thread`) takes no virtual time.
    """

    def __init__(self):
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self):
        return self._virtual.now

    def run_in_executor(self, executor, func, *args):
        future = super().run_in_executor(executor, func, *args)
        self._virtual.in_threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _future):
        self._virtual.in_threads -= 1

    async def shutdown_default_executor(self, timeout=None):  # noqa: ASYNC109 - the loop's own signature
        if self._default_executor is not None:
            self._default_executor.shutdown(wait=True)


def run(coroutine):
    """Return what a coroutine gives, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


def clock(speed=1.0, now=1_790_000_000.0):
    """Return a clock of the running virtual loop."""
    return Clock(speed, now, asyncio.get_running_loop().time)
