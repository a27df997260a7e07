"""Where the network work runs: one background event loop, the handle of what goes on there, and `wait`.

The kernel's own loop is never patched and never blocked: widgets stay alive, other cells stay usable.
In plain async code the work runs on the caller's loop instead. The choice is made here alone.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import math
import os
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

P = ParamSpec("P")
T = TypeVar("T")

SLICE_SECONDS = 0.1
"""A thread or a loop that waits hears an interrupt only when it wakes, so it wakes this often."""
EXIT_SECONDS = 60.0
"""How long the end of the process waits for what is in flight: it is paid for."""
_KEPT = "Interrupted. The answers so far are kept."
_BLOCKED = "This blocks the event loop that does the work: use await instead, as in await run."
_INTERRUPTED_STATUS = 130  # what a shell knows an interrupted program by

_opening = threading.Lock()
_opened: list[Background] = []
# Work under way, and what leaves it with the process; what runs on the caller's loop ends with that.
_jobs: dict[concurrent.futures.Future[None], Handle | None] = {}
_in_a_hurry = threading.Event()
_torn: list[str] = []  # what is kept of work whose loop was ended under it


# interrupts, shown in one line


def show_as(error: BaseException, line: str) -> None:
    """Have one line shown and no traceback, in a notebook and where this or a later error ends a script."""
    error.claudescale_line = line  # type: ignore[attr-defined]
    error._render_traceback_ = lambda: [f"■ {line}"]  # type: ignore[attr-defined]
    _hook_up()


def line_of(error: BaseException | None) -> str:
    """Return the line that an error, or what it came from, is to be shown as."""
    while error is not None:
        if line := getattr(error, "claudescale_line", ""):
            return str(line)
        error = error.__cause__ or error.__context__
    return ""


def _hook_up() -> None:
    """Have an interrupt of ours shown in one line where it ends a script, and all else as before."""
    before: Any = sys.excepthook
    if hasattr(before, "claudescale"):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        # A second interrupt comes out of the loop by itself, whatever was said of the first.
        line = (line_of(error) or "".join(_torn[-1:])) if issubclass(kind, KeyboardInterrupt) else ""
        if not line:
            before(kind, error, trace)
            return
        sys.stderr.write(f"\n{line}\n")
        if not hasattr(sys, "ps1"):  # a prompt goes on
            raise SystemExit(_INTERRUPTED_STATUS)

    hook.claudescale = True  # type: ignore[attr-defined]
    sys.excepthook = hook


# the background loop


class Background(NamedTuple):
    """An event loop in a thread of its own."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


def background() -> Background:
    """Return the one background loop, started at the first call and ended with the process.

    Spends: nothing.
    """
    with _opening:
        if not _opened:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_turn, args=(loop,), name="claudescale", daemon=True)
            thread.start()
            _opened.append(Background(loop, thread))
        return _opened[0]


def is_background(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop is the background one, on which no client was used before."""
    return any(loop is opened.loop for opened in _opened)


def _report(loop: asyncio.AbstractEventLoop, found: dict[str, Any]) -> None:
    """Show what nobody asked for as asyncio does, but no interrupt: it is told in one sentence elsewhere."""
    if not isinstance(found.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(found)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Turn the loop until it is stopped, then let every task end."""
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_report)
    try:
        while True:
            # Polars raises an interrupt in whatever thread is collecting, and asyncio lets it out of the
            # loop: it ends that task and not the loop.
            with suppress(KeyboardInterrupt):
                loop.run_forever()
                break
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _end() -> None:
    """Stop all work at the end of the process, let what is in flight come in, then end the loop."""
    for loop, thread in _opened:
        jobs = {future: handle for future, handle in list(_jobs.items()) if handle is not None}
        for handle in jobs.values():
            handle.leave()
        with suppress(KeyboardInterrupt):  # whoever interrupts again waits for no answer any more
            concurrent.futures.wait(jobs, timeout=0 if _in_a_hurry.is_set() else EXIT_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        with suppress(KeyboardInterrupt):
            thread.join(EXIT_SECONDS)
    _opened.clear()


def start(
    work: Coroutine[Any, Any, None], handle: Handle | None = None
) -> tuple[concurrent.futures.Future[None], int]:
    """Start a coroutine on the caller's loop if it may be used, else in the background.

    Returns at once its end, and the thread that does the work. At the end of the process `handle` leaves it.
    """
    loop, thread = running(), threading.current_thread()
    at_exit = loop is None or _in_kernel()
    if loop is None or at_exit:
        loop, thread = background()
        atexit.unregister(_end)  # the last one registered is the first one called: before ledgers close
        atexit.register(_end)
    future = asyncio.run_coroutine_threadsafe(work, loop)
    _jobs[future] = handle if at_exit else None  # a loop alone would let its tasks be collected
    future.add_done_callback(_jobs.pop)
    return future, thread.ident or 0


# where this is


def running() -> asyncio.AbstractEventLoop | None:
    """Return this thread's running loop, if there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _in_kernel() -> bool:
    """Whether this thread's loop is a Jupyter kernel's."""
    return threading.current_thread() is threading.main_thread() and in_notebook()


def in_notebook() -> bool:
    """Whether output goes to a notebook's cell.

    Spends: nothing.
    """
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython  # noqa: PLC0415 - there only in a kernel

    return hasattr(get_ipython(), "kernel")


async def in_thread(work: Callable[..., T], *given: Any) -> T:
    """Return what `work` returns, from a thread: the loop goes on.

    Unlike asyncio's own, these threads still work while the process ends, when paid replies come in.
    """
    from anyio import to_thread  # noqa: PLC0415 - not needed to plan

    return await to_thread.run_sync(work, *given)


async def either(task: asyncio.Future[None], event: asyncio.Event) -> None:
    """Return when the task has ended, raising its error, or the event has come."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if task.done():
        task.result()


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
        After what is waited for was cancelled; a run keeps what is in flight.
    RuntimeError
        This thread's own loop would have to do the work it waits for.
    """
    if nested:
        return _wait_nested(awaitable)
    home, thread = background()
    mine = threading.get_ident()
    if mine == thread.ident or (running() is not None and mine == getattr(awaitable, "home", None)):
        raise RuntimeError(_BLOCKED)

    ended = threading.Event()
    lines: list[str] = []

    async def waited() -> T:
        try:
            return await awaitable
        except asyncio.CancelledError as cancelled:
            lines.append(line_of(cancelled))
            raise
        finally:
            ended.set()  # a future that is cancelled is done before its work is

    future = asyncio.run_coroutine_threadsafe(waited(), home)
    try:
        while not ended.wait(SLICE_SECONDS):
            pass
    except KeyboardInterrupt:
        future.cancel()
        try:
            ended.wait(EXIT_SECONDS)
        except KeyboardInterrupt:  # again: what is in flight is not waited for
            _in_a_hurry.set()
        line = "".join(lines) or _KEPT
        interrupted = KeyboardInterrupt(line)
        show_as(interrupted, line)
        raise interrupted from None
    return future.result()


def _wait_nested(awaitable: Awaitable[T]) -> T:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import nest_asyncio  # noqa: PLC0415 - the only place of it

        loop = running() or asyncio.new_event_loop()
        nest_asyncio.apply(loop)
        return loop.run_until_complete(asyncio.ensure_future(awaitable, loop=loop))


class Handle(ABC):
    """Work that has been started. ``await`` it for its end; an interrupt leaves it and waits for what is out.

    Attributes
    ----------
    home : int
        The thread whose loop does the work.
    """

    home: int

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def done() -> None:
            try:
                await work
            except (asyncio.CancelledError, KeyboardInterrupt):
                _torn.append(self.kept)
                raise

        _hook_up()
        self._ended, self.home = start(done(), self)

    @abstractmethod
    def leave(self) -> None:
        """Send nothing more. Spends: what is in flight."""

    @property
    @abstractmethod
    def kept(self) -> str:
        """What an interrupt leaves, in one sentence."""

    def __await__(self) -> Generator[Any, None, Self]:
        return self._wait().__await__()

    async def _wait(self) -> Self:
        await self._followed()
        return self._outcome()

    async def _followed(self, seconds: float = math.inf) -> None:
        """Wait so long for the end; an interrupt leaves the work and waits for what is out."""
        try:
            await self._sleep(seconds)
        except asyncio.CancelledError as cancelled:
            self.leave()
            await self._sleep(EXIT_SECONDS)
            show_as(cancelled, self.kept)
            raise

    async def _sleep(self, seconds: float) -> None:
        """Wait for the end in short sleeps: a kernel's interrupt is heard only when its loop wakes."""
        until = time.monotonic() + seconds
        while not self._ended.done() and time.monotonic() < until:  # noqa: ASYNC110 - see above
            await asyncio.sleep(SLICE_SECONDS)

    def _outcome(self) -> Self:
        if not self._ended.cancelled():
            self._ended.result()
        return self


class Awaited(Coroutine[Any, Any, T]):
    """A coroutine that is awaited like any other; whatever else is asked of it says that it has to be.

    Parameters
    ----------
    coroutine : coroutine
        What it stands for.
    line : str
        What to type.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], line: str) -> None:
        self._coroutine = coroutine
        self._line = line

    def __await__(self) -> Generator[Any, None, T]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """Go on. Spends: what the coroutine does."""
        return self._coroutine.send(value)

    def throw(self, *raised: Any) -> Any:
        """Go on with an exception. Spends: what the coroutine does."""
        return self._coroutine.throw(*raised)

    def close(self) -> None:
        """Give it up. Spends: nothing."""
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        msg = f"Nothing was sent: await is missing. Type {self._line}; it has .{name}, if anything has."
        raise AttributeError(msg)

    def __repr__(self) -> str:
        return f"Nothing was sent: await is missing. Type {self._line}"


def awaited(
    line: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Return what makes an ``async def`` say, where it is not awaited, that `line` is what to type."""

    def wrap(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        def call(*positional: P.args, **named: P.kwargs) -> Awaited[T]:
            return Awaited(function(*positional, **named), line)

        return call

    return wrap


def _forget() -> None:
    """Open a new loop in a forked child: a fork takes no threads along."""
    _opened.clear()
    _jobs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
