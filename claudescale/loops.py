"""Where network work runs: one background event loop, its end with the process, and `wait`.

The kernel's own loop is never patched and never blocked: widgets stay responsive, other cells usable.
In plain async code the work runs on the caller's loop instead. Only this module makes that choice.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import sys
import threading
import warnings
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from claudescale.running.runs import Run

P = ParamSpec("P")
T = TypeVar("T")

SLICE_SECONDS = 0.1
"""How often a waiting thread or loop wakes: it notices an interrupt only then."""
EXIT_SECONDS = 60.0
"""How long the end of the process waits for calls in flight, which are paid for."""
_KEPT = "Interrupted. The answers so far are kept."
_BLOCKED = "This blocks the event loop that does the work: use await instead, as in await run."
_INTERRUPTED_STATUS = 130  # a shell's status of an interrupted program

# Work under way, and the run to leave at the end of the process; None on a caller's loop, which ends it.
_jobs: dict[concurrent.futures.Future[None], Run | None] = {}
_in_a_hurry = threading.Event()
_lines: list[str] = []  # what interrupted work says it keeps, the latest last


# interrupts, shown in one line


def show_as(error: BaseException, line: str) -> None:
    """Show an error as one line without a traceback, in a notebook and when it ends a script."""
    error._render_traceback_ = lambda: [f"■ {line}"]  # type: ignore[attr-defined]
    _lines.append(line)


@functools.cache
def _hook_up() -> None:
    """Show our interrupts as one line when they end a script, and all else as before."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not (issubclass(kind, KeyboardInterrupt) and _lines):
            before(kind, error, trace)
            return
        sys.stderr.write(f"\n{_lines[-1]}\n")
        if not hasattr(sys, "ps1"):  # an interactive prompt continues
            raise SystemExit(_INTERRUPTED_STATUS)

    sys.excepthook = hook


# the background loop


class Background(NamedTuple):
    """An event loop in a thread of its own."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


@functools.cache
def background() -> Background:
    """Return the only background loop; it starts at the first call and ends with the process.

    Spends: nothing.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_turn, args=(loop,), name="claudescale", daemon=True)
    thread.start()
    return Background(loop, thread)


if hasattr(os, "register_at_fork"):  # a fork does not copy threads
    os.register_at_fork(after_in_child=background.cache_clear)


def is_background(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop is the background one, on which no client was used before."""
    return background.cache_info().currsize > 0 and background().loop is loop


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped, then let every task end."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop()
        while True:
            # Polars raises KeyboardInterrupt in any thread that collects, and asyncio lets it out of
            # `run_forever`: it ends that task, but must not end the loop.
            with suppress(KeyboardInterrupt):
                loop.run_forever()
                break


def _end() -> None:
    """Leave all work at the end of the process, wait for calls in flight, then end the loop."""
    runs = {future: run for future, run in list(_jobs.items()) if run is not None}
    for run in runs.values():
        run.leave()
    loop, thread = background()
    with suppress(KeyboardInterrupt):  # another interrupt ends the wait for answers
        concurrent.futures.wait(runs, timeout=0 if _in_a_hurry.is_set() else EXIT_SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    with suppress(KeyboardInterrupt):
        thread.join(EXIT_SECONDS)
    background.cache_clear()


def start(
    work: Coroutine[Any, Any, None], run: Run | None = None
) -> tuple[concurrent.futures.Future[None], asyncio.AbstractEventLoop]:
    """Start a coroutine on the caller's loop if possible, else on the background loop.

    Returns at once a future of its end, and the loop that runs it. On the background loop, `run` is left at
    the end of the process.
    """

    async def worked() -> None:
        try:
            await work
        except (asyncio.CancelledError, KeyboardInterrupt):
            if run is not None:
                _lines.append(run.kept)
            raise

    _hook_up()
    loop, left_at_exit = _running(), None
    if loop is None or (threading.current_thread() is threading.main_thread() and in_notebook()):
        loop, left_at_exit = background().loop, run
        atexit.unregister(_end)  # the latest registered is called first: before ledgers close
        atexit.register(_end)
    future = asyncio.run_coroutine_threadsafe(worked(), loop)
    _jobs[future] = left_at_exit  # a loop keeps only weak references to its tasks
    future.add_done_callback(_jobs.pop)
    return future, loop


# where this code runs


def _running() -> asyncio.AbstractEventLoop | None:
    """Return this thread's running loop, if there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def in_notebook() -> bool:
    """Whether output goes to a notebook cell.

    Spends: nothing.
    """
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython  # noqa: PLC0415 - not needed outside a kernel

    return hasattr(get_ipython(), "kernel")


async def in_thread(work: Callable[..., T], *given: Any) -> T:
    """Return the result of `work`, run in a thread so that it does not block the loop.

    Unlike asyncio's own, these threads still work while the process ends and paid replies come in.
    """
    from anyio import to_thread  # noqa: PLC0415 - not needed to plan

    return await to_thread.run_sync(work, *given)


def wait(awaitable: Awaitable[T], *, nested: bool = False) -> T:
    """Return the result of `awaitable`, from a script, a callback or a cell without ``await``.

    The work runs on the background loop while this thread waits. Nothing is patched. In a notebook prefer
    ``await``: while a cell is blocked, buttons do not respond.

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
        Raised after the awaitable was canceled; a run keeps the answers to calls in flight.
    RuntimeError
        The work would need this thread's own loop, which the wait blocks.
    """
    if nested:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import nest_asyncio  # noqa: PLC0415 - used only here

            own = _running() or asyncio.new_event_loop()
            nest_asyncio.apply(own)
            return own.run_until_complete(asyncio.ensure_future(awaitable, loop=own))
    loop, running = background().loop, _running()
    if running is not None and running in {loop, getattr(awaitable, "home", None)}:
        raise RuntimeError(_BLOCKED)
    ended, lines_before = threading.Event(), len(_lines)

    async def waited() -> T:
        try:
            return await awaitable
        finally:
            ended.set()  # a canceled future is done before its work is

    future = asyncio.run_coroutine_threadsafe(waited(), loop)
    try:
        while not ended.wait(SLICE_SECONDS):
            pass
    except KeyboardInterrupt:
        future.cancel()
        try:
            ended.wait(EXIT_SECONDS)
        except KeyboardInterrupt:  # a second interrupt: do not wait for calls in flight
            _in_a_hurry.set()
        line = _lines[-1] if len(_lines) > lines_before else _KEPT
        interrupted = KeyboardInterrupt(line)
        show_as(interrupted, line)
        raise interrupted from None
    return future.result()


# a coroutine that was not awaited


class Awaited(Coroutine[Any, Any, T]):
    """A coroutine that is awaited like any other; its repr and its errors say that ``await`` is missing.

    Parameters
    ----------
    coroutine : coroutine
        The coroutine to await.
    line : str
        What to type.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], line: str) -> None:
        self._coroutine = coroutine
        self._line = line

    def __await__(self) -> Generator[Any, None, T]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """Resume the coroutine. Spends: what the coroutine spends."""
        return self._coroutine.send(value)

    def throw(self, *raised: Any) -> Any:
        """Resume the coroutine with an exception. Spends: what the coroutine spends."""
        return self._coroutine.throw(*raised)

    def close(self) -> None:
        """Close the coroutine. Spends: nothing."""
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        msg = f"{self!r}; it has .{name}, if anything has."
        raise AttributeError(msg)

    def __repr__(self) -> str:
        return f"Nothing was sent: await is missing. Type {self._line}"


def awaited(
    line: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Return a decorator: an ``async def`` that was not awaited then says to type `line`."""

    def wrap(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        def call(*positional: P.args, **named: P.kwargs) -> Awaited[T]:
            return Awaited(function(*positional, **named), line)

        return call

    return wrap
