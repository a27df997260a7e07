"""What one opening of a ledger records: kept as frames in memory, and written by a thread of its own.

The writer thread owns the connection to the file. It writes what is queued in groups, forces them to the
disk, and then does the jobs it was asked for. What it cannot write stays queued, and every frame in memory.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import LedgerError
from claudescale.ledger import store
from claudescale.ledger.store import GROUP_ROWS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

GROUP_SECONDS = 0.05
BEAT_SECONDS = 10.0
BULK_ROWS = 1_000  # from here on, the next such group is thought to come soon
COMMIT_ROWS = 4_000  # in one transaction, so that other processes get their turn


_OPEN: set[Recorder] = set()


class Recorder:
    """One opening of the file at `path` (None: of a file in memory, which keeps batches and claims only)."""

    def __init__(self, path: Path | None, run: str) -> None:
        self.path = path
        self.run = run
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lines: list[str] = []  # this opening's newest attempts, not yet in a frame
        self._frames: list[pl.DataFrame] = []  # the rest of this opening's
        self._queue: list[tuple[int, str, str]] = []  # what waits for the writer
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._failure: LedgerError | None = None
        self._closed = self._left = False
        self._file: tuple[int, int] | None = None
        self._beat_due: float | None = None  # from the first claim on
        if path is None:
            self._connection, self._opening = store.opened(None, run)
            weakref.finalize(self, self._connection.close).atexit = False
            return
        with store.explained(path):
            # A plain handle, once closed, drops the locks this process's own connections hold on a file.
            if store.identity(path) not in {each._file for each in _OPEN}:  # noqa: SLF001
                store.recognise(path)
            self._connection, self._opening = store.opened(path, run)
            self._file = store.identity(path)
        self._thread = threading.Thread(target=self._write, name="claudescale-ledger", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def close(self) -> None:
        """Return when all is on the disk and this run's claims are given up; reading still works.

        Spends: nothing.

        Raises
        ------
        LedgerFull
            Something cannot be written. The ledger stays open: make room and close again.
        """
        if os.getpid() != self._pid or self._closed:
            return
        try:
            self._ask(self._leave)
        except BaseException:
            self._closed = self._left
            raise
        if self.path is not None:
            self._thread.join()
            self._connection.close()
            _OPEN.discard(self)

    def _stay(self) -> None:
        """Refuse to go on in a forked child: the writer, its connection and its locks stayed behind."""
        if os.getpid() != self._pid:
            msg = "a fork does not take its parent's ledger along: open it again with Ledger(path)"
            raise LedgerError(msg)

    def _memory(self) -> pl.DataFrame:
        """Return the attempts of this opening, with `final`."""
        self._stay()
        with self._lock:
            self._fold()
            return pl.concat([store.EMPTY, *self._frames])

    def _fold(self, *more: pl.DataFrame) -> None:
        """Turn the newest lines into a frame; join small frames of like size, so that they stay few."""
        if self._lines:
            self._frames.append(store.frame("\n".join(self._lines).encode()))
            self._lines = []
        self._frames += more
        while len(self._frames) > 1 and self._frames[-2].height <= min(self._frames[-1].height, 50_000):
            self._frames[-2:] = [pl.concat(self._frames[-2:], rechunk=True)]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to all that is written, also when this is closed."""
        self._stay()
        if self.path is None:
            with self._lock:
                yield self._connection
        else:
            with store.reading(self.path) as connection:
                yield connection

    def _ask(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns on the writer thread, once all that was recorded before is written."""
        self._stay()
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise self._was_closed()
            self._closed = work == self._leave
            if self.path is None:
                return work()
            self._jobs.append((work, future))
            self._changed.notify_all()
        return future.result()

    def _begin_beats(self) -> None:
        """Give signs of life from now on: other runs look for them."""
        self._beat_due = self._beat_due or time.monotonic() + BEAT_SECONDS

    def _was_closed(self) -> LedgerError:
        return LedgerError(f"{self!r}: open it again with Ledger(path)")

    # From here on: the writer thread, which owns the connection.

    def _write(self) -> None:
        """Write groups and do jobs, until the job that leaves."""
        while not self._left:
            with self._lock:
                self._changed.wait_for(
                    lambda: self._jobs or (self._queue and not self._failure), BEAT_SECONDS
                )
                if self._queue and not self._jobs:
                    self._changed.wait_for(
                        lambda: self._jobs or len(self._queue) >= GROUP_ROWS, GROUP_SECONDS
                    )
                group, self._queue = self._queue, []
                jobs, self._jobs = self._jobs, []
            bulk = len(group) >= BULK_ROWS
            for start in range(0, len(group) or 1, COMMIT_ROWS):
                part = group[start : start + COMMIT_ROWS]
                _, self._failure = self._tried(partial(self._commit, part, bulk=bulk))
                if self._failure is not None:
                    with self._lock:
                        self._queue[:0] = group[start:]
                    break
            for work, future in jobs:
                answer, failure = (None, self._failure) if self._failure else self._tried(work)
                if failure is None:
                    future.set_result(answer)
                else:
                    future.set_exception(failure)

    def _tried(self, work: Callable[[], Any]) -> tuple[Any, LedgerError | None]:
        """Return what `work` returns, and why it could not be done."""
        assert self.path is not None
        if store.identity(self.path) != self._file:
            return None, LedgerError(
                f"{self.path} was moved or deleted while in use: put it back, or `export`"
            )
        try:
            with store.explained(self.path):
                return work(), None
        except LedgerError as error:
            return None, error
        except Exception as error:  # noqa: BLE001  (a dead writer would be silent; raised by the next)
            return None, LedgerError(f"{self.path}: the writer failed: {error!r}")

    def _commit(self, group: list[tuple[int, str, str]], *, bulk: bool) -> None:
        beats = self._beat_due is not None and time.monotonic() >= self._beat_due
        if not group and not beats:
            return
        with store.transaction(self._connection):
            store.append(self._connection, self._opening, group, bulk=bulk)
            if beats:
                store.beat(self._connection, self._opening)
                self._beat_due = time.monotonic() + BEAT_SECONDS

    def _leave(self) -> None:
        with store.transaction(self._connection):
            store.append(self._connection, self._opening, [])  # seals what came in bulk
            store.end(self._connection, self._opening)
        self._left = True


@atexit.register
def _close_all() -> None:
    for ledger in list(_OPEN):
        try:
            ledger.close()
        except LedgerError as error:
            sys.stderr.write(f"claudescale: {ledger!r} could not be closed: {error}\n")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OPEN.clear)
