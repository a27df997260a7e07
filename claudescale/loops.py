"""Where the network work runs: one background event loop, and the doors to it.

The kernel's own loop is never patched and never blocked: widgets stay alive, other cells stay usable.
In plain async code the work runs on the caller's loop instead. The choice is made here alone.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from anyio.from_thread import BlockingPortal

T = TypeVar("T")

SLICE_SECONDS = 0.1
"""An awaiting cell hears the kernel's interrupt only when its loop wakes, so it wakes this often."""

_opening = threading.Lock()
_portal: list[BlockingPortal] = []


class Interrupted(KeyboardInterrupt):
    """The kernel's interrupt, shown as one line and not as a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def portal() -> BlockingPortal:
    """Return the one background loop, started at the first call and ended with the process.

    Spends: nothing.
    """
    with _opening:
        if not _portal:
            from anyio.from_thread import start_blocking_portal  # noqa: PLC0415 - not needed to plan

            opened = start_blocking_portal("asyncio", name="claudescale")
            _portal.append(opened.__enter__())
            atexit.register(opened.__exit__, None, None, None)
        return _portal[0]


def start(work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
    """Start a coroutine and return at once: on the caller's loop if it is ours to use, else in the background."""
    loop = _running()
    if loop is None or _in_kernel():
        return portal().start_task_soon(work)
    task = loop.create_task(work())
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    task.add_done_callback(lambda done: _copy_result(done, future))
    return future


def _copy_result(done: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
    if done.cancelled():
        future.cancel()
    elif (error := done.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(done.result())


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _in_kernel() -> bool:
    """Whether this thread's loop is a Jupyter kernel's."""
    if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return False
    from IPython import get_ipython  # noqa: PLC0415 - there only in a kernel

    return hasattr(get_ipython(), "kernel")


def in_notebook() -> bool:
    """Whether output goes to a notebook's cell.

    Spends: nothing.
    """
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython  # noqa: PLC0415 - there only in a kernel

    return hasattr(get_ipython(), "kernel")


def wait(awaitable: Awaitable[T], *, nested: bool = False) -> T:
    """Return what `awaitable` gives, from a script, a callback or a cell without ``await``.

    It runs on the background loop, and this thread waits. Nothing is patched. In a notebook prefer
    ``await``: a blocked cell lets no button click through.

    Spends: what `awaitable` spends.

    Parameters
    ----------
    awaitable : awaitable
        Such as ``plan.run(client)`` or a `Run`.
    nested : bool
        Patch the running loop with nest_asyncio and run on it, for code that insists on its own loop.
        Last resort: in a kernel with ipykernel 7.1 or later it loses the cells queued behind this one,
        and it patches the whole process.

    Raises
    ------
    KeyboardInterrupt
        After a run among what is waited for has been told to stop.
    """
    if nested:
        return _wait_nested(awaitable)

    async def waited() -> T:
        return await awaitable

    if (
        _running() is not None
        and not _in_kernel()
        and threading.current_thread().name.startswith("claudescale")
    ):
        msg = "cs.wait blocks, and this is the loop it would wait for: use await here"
        raise RuntimeError(msg)
    future = portal().start_task_soon(waited)
    try:
        while True:
            try:
                return future.result(timeout=0.2)
            except concurrent.futures.TimeoutError:
                if future.done():
                    raise
    except KeyboardInterrupt:
        future.cancel()
        concurrent.futures.wait([future])
        raise


def _wait_nested(awaitable: Awaitable[T]) -> T:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import nest_asyncio  # noqa: PLC0415 - the only place of it

        loop = _running() or asyncio.new_event_loop()
        nest_asyncio.apply(loop)
        return loop.run_until_complete(asyncio.ensure_future(awaitable, loop=loop))
