"""The durable record of every attempt: what was paid for once is never paid for again.

A `Ledger` keeps what this opening recorded as frames in memory, and one thread of its own writes it to
the file it shares with other runs and processes (`ledgerfile`): every 50 ms or 50 rows, forced to the disk.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import sys
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from claudescale import ledgerfile
from claudescale.errors import LedgerError
from claudescale.ledgerfile import ATTEMPTS, GROUP_ROWS, Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ATTEMPTS", "Attempt", "Ledger"]

GROUP_SECONDS = 0.05
BEAT_SECONDS = 10.0
FOLD_ROWS = 5_000  # lines kept before they become a compact frame


_OPEN: set[Ledger] = set()


class Ledger:
    """The record of what was sent and answered, shared by every run that names the same file.

    Parameters
    ----------
    path : str or Path, optional
        The file, made with owner-only permissions where there is none (its folder must exist). None
        keeps the record in memory: it ends with the process.
    run : str, optional
        What this opening writes in the `run` column. The default is a fresh name, sortable by time.

    Raises
    ------
    ForeignLedger
        `path` is a folder or some other file; it is not touched.
    DamagedLedger
        The file was a ledger and cannot be read any more.
    LedgerFull
        There is no room on the disk, or no right to write.

    Notes
    -----
    Safe for threads, and for several processes at once. After a fork the child opens its own.
    """

    def __init__(self, path: str | Path | None, *, run: str | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.run = run or f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"
        self._fresh = run is None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lines: list[str] = []  # this opening's newest attempts, not yet in a frame
        self._frames: list[pl.DataFrame] = []  # the rest of this opening's
        self._queue: list[tuple[bool, str, str]] = []  # what waits for the writer
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._failure: LedgerError | None = None
        self._closed = self._left = False
        self._file: tuple[int, int] | None = None
        self._beat_due: float | None = None  # from the first claim on
        if self.path is not None:
            with ledgerfile.explained(self.path):
                # A plain handle, once closed, drops the locks this process's own connections hold on a file.
                if ledgerfile.identity(self.path) not in {each._file for each in _OPEN}:  # noqa: SLF001
                    ledgerfile.recognise(self.path)
                self._connection, self._opening = ledgerfile.opened(self.path, self.run)
                self._file = ledgerfile.identity(self.path)
            self._thread = threading.Thread(target=self._write, name="claudescale-ledger", daemon=True)
            self._thread.start()
            _OPEN.add(self)

    def __repr__(self) -> str:
        where = "in memory, gone with this process" if self.path is None else repr(str(self.path))
        return f"<Ledger {where}, run {self.run}{', closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, attempt: Attempt, *, final: bool) -> None:
        """Return at once; the attempt is on the disk a moment later, or after `sync`.

        Spends: nothing.

        Parameters
        ----------
        attempt : Attempt
            What came back. Its `run` is taken as this ledger's; half a surrogate pair in a text becomes
            U+FFFD, as neither a file nor a frame can hold it.
        final : bool
            Whether this ends the row: a paid reply, or an error that no retry can mend.

        Raises
        ------
        LedgerFull
            Something could not be written. This attempt too is kept in memory; `sync` tries again.
        """
        self._stay()
        line = ledgerfile.line(attempt, self.run, final=final)
        with self._lock:
            self._lines.append(line)
            if len(self._lines) >= FOLD_ROWS:
                self._fold()
            if self.path is not None:
                self._queue.append((final, attempt.key, line))
                if len(self._queue) in {1, GROUP_ROWS}:
                    self._changed.notify_all()
        failure = self._failure or (self._was_closed() if self._closed else None)
        if failure is not None:
            raise type(failure)(str(failure)) from failure

    def sync(self) -> None:
        """Return when everything recorded so far is on the disk.

        Spends: nothing.

        Raises
        ------
        LedgerFull
            It cannot be written. Nothing is lost from memory: make room and call again, or `export`.
        """
        self._ask(lambda: None)

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Return the keys this run may send now, in the order given; the claim is on the disk.

        Left out are keys with a final answer and keys that another living run has claimed. A claim
        ends with its answer, with `release`, with `close` or with its process: at once for a process of
        this computer, after 30 s without a sign of life for one that cannot be seen from here.

        Spends: nothing.

        Parameters
        ----------
        keys : sequence of str
            A few thousand at a time, so that two runs share the work instead of one waiting for the other.

        Raises
        ------
        LedgerFull
            The claim cannot be written, so nothing may be sent.
        """
        if self.path is None:
            self.sync()
            answered = self.answered(pl.Series(keys, dtype=pl.String))
            return [key for key, known in zip(keys, answered, strict=True) if not known]
        won = self._ask(lambda: ledgerfile.claim(self._connection, self._opening, keys))
        self._beat_due = self._beat_due or time.monotonic() + BEAT_SECONDS
        return [key for key in keys if key in won]

    def release(self, keys: Sequence[str]) -> None:
        """Return when other runs may claim `keys`, which this one claimed and will not send.

        Spends: nothing.
        """
        self._ask(lambda: ledgerfile.release(self._connection, self._opening, keys))

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

    def answered(self, keys: pl.Series) -> pl.Series:
        """Return a Boolean mask of `keys`: which have a final answer, of this run or any other.

        Spends: nothing.
        """
        mine = self._memory()
        known = [mine.get_column("key").filter(mine.get_column("final"))]
        if self.path is not None:
            with ledgerfile.reading(self.path) as connection:
                found = ledgerfile.found(connection, keys.drop_nulls().to_list())
                several = ledgerfile.answered(connection) if found is None else ["\n".join(found).encode()]
                known += [pl.Series("key", lines.decode().split("\n")) for lines in several]
        return keys.is_in(pl.concat(known).implode()).fill_null(value=False).alias("answered")

    def attempts(self, *, run: str | None = None) -> pl.DataFrame:
        """Return every attempt of one run, or of all runs in the file, as `ATTEMPTS`.

        Those of this opening come from memory, on the disk or not: asking for them four times a second
        is cheap.

        Spends: nothing.
        """
        frames = [self._memory()] if run in {None, self.run} else []
        if not (self._fresh and run == self.run):
            others = "opening != :me AND opening IN (SELECT id FROM runs WHERE run = coalesce(:run, run))"
            frames.insert(0, self._stored(others, run=run))
        return pl.concat(frames).drop("final")

    def replies(self, keys: pl.Series) -> pl.DataFrame:
        """Return the final attempt of each of `keys` that has one, as `ATTEMPTS`: one row per key found.

        Where there are several, it is this opening's newest, else the newest in the file.

        Spends: nothing.
        """
        others = self._stored("final AND opening != :me", keys=keys)
        frame = pl.concat([others, self._memory().filter("final")]).drop("final")
        key = frame.get_column("key")
        wanted = key.is_in(keys.implode()) & key.is_last_distinct()
        return frame if wanted.all() else frame.filter(wanted)

    def export(self, path: str | Path) -> Path:
        """Return the Parquet file, for its owner only, to which all attempts were written.

        Spends: nothing.
        """
        target = Path(path).expanduser().absolute()
        frame = self.attempts()
        target.touch(mode=0o600)
        target.chmod(0o600)
        frame.write_parquet(target)
        return target

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
            return pl.concat([ledgerfile.EMPTY, *self._frames])

    def _stored(self, where: str, *, keys: pl.Series | None = None, run: str | None = None) -> pl.DataFrame:
        """Return attempts of the file, with `final`; given `keys`, at least the final ones of those."""
        frames = [ledgerfile.EMPTY]
        if self.path is None:
            return frames[0]
        given: dict[str, Any] = {"me": self._opening, "run": run}
        with ledgerfile.reading(self.path) as connection:
            if keys is not None:
                found = ledgerfile.found(connection, keys.drop_nulls().to_list())
                if found is not None:
                    where += " AND id IN (SELECT value FROM json_each(:ids))"
                    given["ids"] = json.dumps(list(found.values()))
            frames += ledgerfile.records(connection, where, **given)
        return pl.concat(frames, rechunk=True)

    def _fold(self) -> None:
        """Turn the newest lines into a frame; join small frames of like size, so that they stay few."""
        if self._lines:
            self._frames.append(ledgerfile.frame("\n".join(self._lines).encode()))
            self._lines = []
        while len(self._frames) > 1 and self._frames[-2].height <= min(self._frames[-1].height, 50_000):
            self._frames[-2:] = [pl.concat(self._frames[-2:], rechunk=True)]

    def _ask(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns on the writer thread, once all that was recorded before is written."""
        self._stay()
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise self._was_closed()
            self._closed = work == self._leave
            if self.path is None:
                return None
            self._jobs.append((work, future))
            self._changed.notify_all()
        return future.result()

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
            _, self._failure = self._tried(partial(self._commit, group))
            if self._failure is not None:
                with self._lock:
                    self._queue[:0] = group
            for work, future in jobs:
                answer, failure = (None, self._failure) if self._failure else self._tried(work)
                if failure is None:
                    future.set_result(answer)
                else:
                    future.set_exception(failure)

    def _tried(self, work: Callable[[], Any]) -> tuple[Any, LedgerError | None]:
        """Return what `work` returns, and why it could not be done."""
        assert self.path is not None
        if ledgerfile.identity(self.path) != self._file:
            return None, LedgerError(
                f"{self.path} was moved or deleted while in use: put it back, or `export`"
            )
        try:
            with ledgerfile.explained(self.path):
                return work(), None
        except LedgerError as error:
            return None, error
        except Exception as error:  # noqa: BLE001  (a dead writer would be silent; raised by the next)
            return None, LedgerError(f"{self.path}: the writer failed: {error!r}")

    def _commit(self, group: list[tuple[bool, str, str]]) -> None:
        beats = self._beat_due is not None and time.monotonic() >= self._beat_due
        if not group and not beats:
            return
        with ledgerfile.transaction(self._connection):
            ledgerfile.append(self._connection, self._opening, group)
            if beats:
                ledgerfile.beat(self._connection, self._opening)
                self._beat_due = time.monotonic() + BEAT_SECONDS

    def _leave(self) -> None:
        with ledgerfile.transaction(self._connection):
            ledgerfile.end(self._connection, self._opening)
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
