"""The ledger's file: plain columns in SQLite, one writer, claims on rows, batches that outlive their run.

::

    attempts  one row per call, append-only: `sqlite3 x.ledger "select error, dollars from attempts"`
    openings  one row per opening of the file: its process, and its last heartbeat
    claims    keys that an opening may be sending now or, if the number is negative, that a batch holds
    batches   one row per intended batch, and the opening that follows it

A group of rows is complete or absent, whenever the process or the machine stops (write-ahead log, synchronous
FULL). Only Python's own `sqlite3` may open the file in this process: if a second SQLite library closes it,
this one's locks are dropped and committed rows are silently lost (sqlite.org/howtocorrupt.html, 2.2.1).
"""
# ruff: noqa: S608  (every statement is built from this module's own constants)

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import secrets
import shlex
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull
from claudescale.ledger import records
from claudescale.ledger.records import ATTEMPTS, OPEN, RECORDS, Attempt, Batch, Presence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_LOG = logging.getLogger("claudescale.ledger")

BUSY_SECONDS = 30.0  # how long to wait for another process that is writing
GROUP_SECONDS = 0.05  # attempts that arrive within it are written together
BEAT_SECONDS = 10.0
BLOCK_ROWS = 50_000  # read at once
FEW_KEYS = 10_000  # up to this many, keys are looked up one by one

OURS = int.from_bytes(b"cldl"), 4
"""The marks of a ledger: application id and format version."""
_PRESENCE = ", ".join(Presence._fields)
_BATCH = ", ".join(Batch._fields)
_OPEN = f"state IN {OPEN}"
_GIVEN = "IN (SELECT value FROM json_each(:keys))"
_TABLES = f"""
CREATE TABLE openings (id INTEGER PRIMARY KEY, run TEXT NOT NULL, closed INTEGER NOT NULL DEFAULT 0,
    {records.columns_sql(Presence)});
CREATE TABLE attempts (id INTEGER PRIMARY KEY, {records.columns_sql(Attempt)}, final INTEGER NOT NULL);
CREATE INDEX answers ON attempts(key, final) WHERE final;
CREATE TABLE claims (key TEXT PRIMARY KEY, opening INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (id INTEGER PRIMARY KEY, opening INTEGER NOT NULL, {records.columns_sql(Batch)});
PRAGMA application_id = {OURS[0]};
PRAGMA user_version = {OURS[1]}"""


def _values(names: Collection[str]) -> str:
    """Return the columns and as many placeholders, for INSERT."""
    return f"({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


_opened: set[Store] = set()
_opening = threading.Lock()


class Store:
    """One opening of a ledger: it records, claims and follows batches for one run, and reads all runs.

    Without a path it is a temporary file that lasts as long as this object. Safe for threads and processes; a
    forked child opens its own. Attempts that cannot be written stay queued, and every query includes them.
    """

    def __init__(self, path: Path | None, run: str | None = None) -> None:
        self.path = path
        self.run = run or f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"
        self.closed = False
        self._pid = os.getpid()
        self._lock = threading.RLock()  # guards the connection
        self._queue: list[tuple[Any, ...]] = []  # attempts that are not in the file yet
        self._failure: LedgerError | None = None  # why they are not
        self._wake = threading.Event()
        with _opening, explained(path), ExitStack() as stack:  # one at a time, see `marks`
            if path is not None:
                _make(path)
            self._file = _identity(path)
            self._connection = stack.enter_context(closing(connect(path)))
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("PRAGMA user_version").fetchone()[0]:
                    for statement in _TABLES.split(";"):
                        connection.execute(statement)
                insert = f"INSERT INTO openings {_values(['run', *Presence._fields])}"
                self._opening = connection.execute(insert, [self.run, *Presence.here()]).lastrowid or 0
                last = connection.execute("SELECT coalesce(max(id), 0) FROM attempts").fetchone()[0]
                self._before = 0 if run else last
            connection.execute("PRAGMA journal_mode = WAL")
            stack.pop_all()
            _opened.add(self)
        threading.Thread(target=self._write, name="claudescale-ledger", daemon=True).start()

    # record

    def record(self, attempt: Attempt, *, final: bool) -> None:
        """Queue an attempt, which is on disk a moment later; raise the error of an earlier write."""
        self._stay()
        self._queue.append(records.row(attempt, self.run, final=final))
        if not self._wake.is_set():  # setting it takes longer
            self._wake.set()
        if self._failure is not None:
            raise type(self._failure)(str(self._failure)) from self._failure

    def extend(self, attempts: pl.DataFrame) -> None:
        """Return when many attempts, given as `RECORDS`, are on disk; they stay queued if that fails."""
        stored = records.stored(attempts, self.run)
        try:
            with self._writing() as connection:
                for part in stored.partition_by("final", maintain_order=True):
                    _insert(connection, part)
        except LedgerError:
            self._queue.extend(stored.rows())
            raise

    def sync(self) -> None:
        """Return when everything recorded so far is on disk; raise LedgerError if it cannot be written."""
        self._stay()
        if self._queue:  # the commit empties it
            with self._writing():
                pass

    # claims

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Claim unanswered keys that no living run or batch holds; return, in order, those now this run's."""
        # A claim ends with its answer, with `close` or with its process: at once for a process on this
        # computer, after 30 s without a heartbeat for one that cannot be seen from here.
        given = {"opening": self._opening, "keys": json.dumps(list(keys))}
        with self._writing() as connection:
            self._bury(connection)
            connection.execute(
                "INSERT OR IGNORE INTO claims SELECT value, :opening FROM json_each(:keys) AS given"
                " WHERE NOT EXISTS (SELECT 1 FROM attempts WHERE final AND key = given.value)",
                given,
            )
            mine = f"SELECT key FROM claims WHERE opening = :opening AND key {_GIVEN}"
            won = {key for (key,) in connection.execute(mine, given)}
        self._wake.set()  # the heartbeat starts
        return [key for key in keys if key in won]

    def _bury(self, connection: sqlite3.Connection) -> None:
        """Release the claims of processes that have ended."""
        here, others = Presence.here(), f"SELECT id, {_PRESENCE} FROM openings WHERE NOT closed AND id != ?"
        for other, *presence in connection.execute(others, [self._opening]).fetchall():
            if not Presence(*presence).may_live(here):
                _leave(connection, other)

    # batches

    def intend(self, batch: Batch, keys: Sequence[str]) -> None:
        """Record a batch that is about to be sent; it holds `keys`, which this run has claimed."""
        insert = f"INSERT INTO batches {_values(['opening', *Batch._fields])}"
        passed = f"UPDATE claims SET opening = :batch WHERE opening = :me AND key {_GIVEN}"
        with self._writing() as connection:
            number = connection.execute(insert, [self._opening, *batch]).lastrowid or 0
            given = {"batch": -number, "me": self._opening, "keys": json.dumps(list(keys))}
            missing = len(keys) - connection.execute(passed, given).rowcount
            if missing:
                msg = f"{missing:,} of {len(keys):,} keys are not claimed by this run, or given twice"
                raise LedgerError(msg)

    def note(self, batch: Batch) -> None:
        """Update a batch that this run follows; one that is over no longer holds any keys."""
        marks = ", ".join("?" * len(batch))
        update = f"UPDATE batches SET ({_BATCH}) = ({marks}) WHERE nonce = ? AND opening = ?"
        with self._writing() as connection:
            if not connection.execute(update, [*batch, batch.nonce, self._opening]).rowcount:
                msg = f"this run does not follow the batch {batch.batch_id or batch.nonce}, another does"
                raise LedgerError(msg)
            if batch.state not in OPEN:
                held = "(SELECT -id FROM batches WHERE nonce = ?)"
                connection.execute(f"DELETE FROM claims WHERE opening = {held}", [batch.nonce])

    def adopt(self, keys: pl.Series) -> list[Batch]:
        """Take over the open batches with one of `keys` that no living run follows, and return them."""
        others = f"""SELECT id, {_BATCH} FROM batches WHERE {_OPEN} AND opening IN
            (SELECT id FROM openings WHERE closed AND id != ?) ORDER BY id"""
        adopted = []
        with self._writing() as connection:
            self._bury(connection)
            for number, *fields in connection.execute(others, [self._opening]).fetchall():
                held = connection.execute("SELECT key FROM claims WHERE opening = ?", [-number])
                if _series(held).is_in(keys.implode()).any():
                    connection.execute("UPDATE batches SET opening = ? WHERE id = ?", [self._opening, number])
                    adopted.append(Batch(*fields))
        self._wake.set()
        return adopted

    def forget(self, batch_id: str) -> int:
        """Close an open batch that can never be collected, and return how many rows it held."""
        with self._writing() as connection:
            open_ = dict(connection.execute(f"SELECT batch_id, id FROM batches WHERE {_OPEN}").fetchall())
            if batch_id not in open_:
                names = ", ".join(sorted(filter(None, open_))) or "none"
                msg = f"there is no open batch {batch_id!r} in {self.path}. Open are: {names}"
                raise LedgerError(msg)
            gone = "UPDATE batches SET state = 'gone', opening = ? WHERE id = ?"
            connection.execute(gone, [self._opening, open_[batch_id]])
            return connection.execute("DELETE FROM claims WHERE opening = ?", [-open_[batch_id]]).rowcount

    def batches(self, *, mine: bool = False) -> list[Batch]:
        """Return all batches, or those that this run follows or followed, in the order of their intents."""
        select = f"SELECT {_BATCH} FROM batches WHERE opening = ? OR ? ORDER BY id"
        with self._reading() as connection:
            return [Batch(*row) for row in connection.execute(select, [self._opening, not mine])]

    def held(self, nonce: str) -> list[str]:
        """Return the keys that a batch holds and that have no final answer."""
        held = """SELECT key FROM claims WHERE opening = (SELECT -id FROM batches WHERE nonce = :nonce)
            AND NOT EXISTS (SELECT 1 FROM attempts WHERE final AND key = claims.key)"""
        return self._keys(held, {"nonce": nonce}).to_list()

    def recorded(self, batch: Batch) -> pl.Series:
        """Return the keys whose results from this batch are on record."""
        return self._keys("SELECT DISTINCT key FROM attempts WHERE batch_id = :id", {"id": batch.batch_id})

    # records of all runs

    def answered(self, keys: pl.Series) -> pl.Series:
        """Return a Boolean mask of the `keys` that have a final answer."""
        with self._reading() as connection:
            final, given = _final(connection, keys)
            known = _series(connection.execute(f"SELECT key FROM attempts WHERE {final}", given))
        return keys.is_in(known.implode()).fill_null(value=False).alias("answered")

    def _keys(self, query: str, given: dict[str, Any]) -> pl.Series:
        with self._reading() as connection:
            return _series(connection.execute(query, given))

    def replies(self, keys: pl.Series, columns: Collection[str] = tuple(ATTEMPTS)) -> pl.DataFrame:
        """Return the newest final attempt of each of `keys` that has one."""
        with self._reading() as connection:
            final = read(connection, {"key", *columns}, *_final(connection, keys))
        newest = pl.col("key").is_last_distinct() & pl.col("key").is_in(keys.implode())
        return final.filter(newest)

    def attempts(self, *, run: str | None = None, columns: Collection[str] = tuple(ATTEMPTS)) -> pl.DataFrame:
        """Return every attempt of a run, or of all runs, in the order of writing."""
        where = "true" if run is None else "run = :run AND id > :before"
        given = {"run": run, "before": self._before if run == self.run else 0}
        with self._reading() as connection:
            return read(connection, columns, where, given)

    # the end

    def close(self) -> None:
        """Write the queue, release this run's claims and the file; reading still works."""
        if self.closed or os.getpid() != self._pid:
            return
        with self._lock:
            with self._writing() as connection:
                _leave(connection, self._opening)
            self.closed = True
            self._failure = LedgerError(f"{self.path} is closed: open it again with Ledger(path)")
            if self.path is not None:
                self._connection.close()
        self._wake.set()
        _opened.discard(self)

    def _stay(self) -> None:
        if os.getpid() != self._pid:
            msg = "a forked process cannot use its parent's ledger: open it again with Ledger(path)"
            raise LedgerError(msg)

    # the file

    def _write(self) -> None:
        """Write queued attempts in groups, with a heartbeat from the first claim on."""
        self._wake.wait()
        while not self.closed:
            woken = self._wake.wait(BEAT_SECONDS)
            time.sleep(GROUP_SECONDS)
            self._wake.clear()
            if self._queue or not woken:
                with suppress(LedgerError), self._writing():  # `record` raises it
                    pass

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction, which first writes the queued attempts."""
        self._stay()
        with self._lock:
            if self.closed:
                raise LedgerError(str(self._failure))
            group = self._queue[:]
            try:
                if _identity(self.path) != self._file:
                    msg = f"{self.path} was moved or deleted while in use: put it back, or `export`"
                    raise LedgerError(msg)  # noqa: TRY301 - it is stored like every other
                with explained(self.path), self._connection as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(f"INSERT INTO attempts {_values(RECORDS)}", group)
                    given = {"keys": json.dumps([row[0] for row in group if row[-1]])}
                    # A batch keeps its claims until it is over, so that any of its rows leads to it.
                    connection.execute(f"DELETE FROM claims WHERE opening > 0 AND key {_GIVEN}", given)
                    beat = "UPDATE openings SET beat_at = ?, beat_uptime = ? WHERE id = ?"
                    connection.execute(beat, [time.time(), time.monotonic(), self._opening])
                    yield connection
            except LedgerError as error:
                self._failure = error
                _LOG.debug("%d attempts not written: %s", len(group), type(error).__name__)
                raise
            self._failure = None
            del self._queue[: len(group)]
        if group:
            _LOG.debug("%d attempts committed", len(group))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to one snapshot of the file, in which `attempts` includes the queue."""
        self._stay()
        moved = not self.closed and _identity(self.path) != self._file
        with explained(self.path), ExitStack() as stack:
            if self.path is None or moved:  # only the open connection reaches the file
                connection = self._connection
                stack.enter_context(self._lock)
            else:  # a long query does not block writers
                connection = stack.enter_context(closing(connect(self.path)))
            with self._lock:
                if self._queue and not self._failure and not self.closed:
                    with suppress(LedgerError):
                        self.sync()
                connection.execute("BEGIN")
                stack.callback(connection.rollback)
                connection.execute("SELECT 1 FROM openings").fetchone()  # takes the snapshot
                if self._queue:
                    self._show_queue(connection)
            yield connection

    def _show_queue(self, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TEMP TABLE queued AS SELECT * FROM main.attempts LIMIT 0")
        rows = ((2**62 + number, *row) for number, row in enumerate(self._queue))
        connection.executemany(f"INSERT INTO queued {_values(['id', *RECORDS])}", rows)
        both = "SELECT * FROM main.attempts UNION ALL SELECT * FROM queued"
        connection.execute(f"CREATE TEMP VIEW attempts AS {both}")


@atexit.register
def _close_all() -> None:
    for store in list(_opened):
        try:
            store.close()
        except LedgerError as error:
            sys.stderr.write(f"claudescale: a ledger could not be closed: {error}\n")


def _insert(connection: sqlite3.Connection, attempts: pl.DataFrame) -> None:
    """Write many attempts; short values that all of them share stand in the statement, as binding is slow."""
    short = attempts.drop("key", "reply")
    shared = short.select(column.name for column in short if _is_shared(column))
    quoted = [connection.execute("SELECT quote(?)", [value]).fetchone()[0] for value in shared.row(0)]
    values = dict.fromkeys(RECORDS, "?") | dict(zip(shared.columns, quoted, strict=True))
    insert = f"INSERT INTO attempts ({', '.join(values)}) VALUES ({', '.join(values.values())})"
    connection.executemany(insert, attempts.drop(shared.columns).rows())


def _is_shared(column: pl.Series) -> bool:
    """Whether a column has one value, which a statement can hold; a null character would end it there."""
    return column.eq_missing(column.first()).all() and "\0" not in str(column.first())


def read(connection: sqlite3.Connection, columns: Collection[str], where: str, given: Any) -> pl.DataFrame:
    """Return columns of the attempts that meet `where`, in the order of writing."""
    names = [name for name in RECORDS if name in columns]
    expressions = {"sent_at": "CAST(round(sent_at * 1e6) AS INTEGER)"}
    selected = ", ".join(expressions.get(name, name) for name in names)
    cursor = connection.execute(f"SELECT {selected} FROM attempts WHERE {where} ORDER BY id", given)
    frames = [records.frame([], names)]
    while table := cursor.fetchmany(BLOCK_ROWS):
        frames.append(records.frame(table, names))
    return pl.concat(frames)


def _series(cursor: sqlite3.Cursor) -> pl.Series:
    return pl.Series("key", [key for (key,) in cursor], pl.String)


def _final(connection: sqlite3.Connection, keys: pl.Series) -> tuple[str, dict[str, str]]:
    """Return a condition for the final attempts of `keys`, or for all of them if `keys` are many of all."""
    (attempts,) = connection.execute("SELECT max(id) FROM attempts").fetchone()
    if keys.len() > max(FEW_KEYS, (attempts or 0) // 4):
        return "final", {}
    return f"final AND key {_GIVEN}", {"keys": json.dumps(keys.drop_nulls().to_list())}


def _leave(connection: sqlite3.Connection, opening: int) -> None:
    connection.execute("DELETE FROM claims WHERE opening = ?", [opening])
    connection.execute("UPDATE openings SET closed = 1 WHERE id = ?", [opening])


# opening a file, and its errors


def connect(path: Path | None) -> sqlite3.Connection:
    """Return a connection to an existing file; without a path, to a temporary file of its own."""
    if path is not None and not path.exists():
        msg = f"{path} is gone, with everything that was paid for. Put it back, or rows are paid for again."
        raise LedgerError(msg)
    place = f"{path.as_uri()}?mode=rw" if path else ""  # creates no file: a deleted one stays deleted
    options: Any = {"uri": True, "isolation_level": None, "check_same_thread": False}
    connection: sqlite3.Connection = sqlite3.connect(place, timeout=BUSY_SECONDS, **options)
    try:
        connection.execute(f"PRAGMA synchronous = {'FULL' if path else 'OFF'}")
        connection.executescript("PRAGMA cache_size = -16000; PRAGMA temp_store = MEMORY")  # 16 MB
    except BaseException:
        connection.close()  # a damaged or unreadable file raises only here
        raise
    return connection


def _make(path: Path) -> None:
    """Create the file if there is none; refuse one that is not a ledger, without touching it."""
    if not path.parent.is_dir():
        command = f"Path({str(path.parent)!r}).mkdir(parents=True)"
        msg = f"there is no folder {path.parent}: create it with {command}"
        raise LedgerError(msg)
    if path.exists():
        _recognise(path)
    _check_locks(path)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def marks(path: Path) -> tuple[int, int] | None:
    """Return a file's application id and format version; None if it is empty. Needs `_opening` held."""
    # Closing a plain handle drops the locks that this process's own connections hold on the file.
    if _identity(path) in {store._file for store in _opened}:  # noqa: SLF001
        return OURS
    with path.open("rb") as file:
        head = file.read(100)
    return (int.from_bytes(head[68:72]), int.from_bytes(head[60:64])) if head else None


def _recognise(path: Path) -> None:
    if not path.is_file():
        msg = f"{path} is a folder or a device: name a file, ledger={str(path / 'replies.ledger')!r}"
        raise ForeignLedger(msg)
    application, version = marks(path) or OURS
    if application != OURS[0]:
        msg = f"{path} is not a ledger and was not touched: name a file of its own, ledger='replies.ledger'"
        raise ForeignLedger(msg)
    if version != OURS[1]:
        other = f"{path} is a ledger of format {version}, not {OURS[1]}, and was not touched."
        new = "name another file, ledger='new.ledger': its rows are then sent, and paid for, again."
        msg = f"{other} Use the version that wrote it, or {new}"
        raise ForeignLedger(msg)


def opened_to_read(path: Path) -> sqlite3.Connection | None:
    """Return a connection to read a ledger; None if the file is not a ledger."""
    with _opening:
        if (marks(path) or (0, 0))[0] != OURS[0]:
            return None
        _recognise(path)
    return connect(path)


def _check_locks(path: Path) -> None:
    """Refuse a file system without the locks that SQLite needs, as SQLite would wait 30 s for them."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    with tempfile.NamedTemporaryFile(prefix=f"{path.name}.", dir=path.parent) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _unfit(path, error.strerror or str(error)) from error


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return the device and inode of `path` now; None if there is no file."""
    with suppress(FileNotFoundError):
        if path is not None:
            file = path.stat()
            return file.st_dev, file.st_ino
    return None


@contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """Turn errors of SQLite and the system into ours, which say what is wrong and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        file, name = path or Path("temporary.ledger"), getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_BUSY"):
            msg = f"{file}: another program has it locked. End that program, then run this again"
            raise LedgerError(msg) from error
        if re.match("SQLITE_IOERR_.*(LOCK|SHM)|SQLITE_PROTOCOL", name):
            raise _unfit(file, name) from error
        if isinstance(error, OSError) or re.match("SQLITE_(FULL|IOERR|READONLY|CANTOPEN|PERM)", name):
            msg = f"{file} cannot be used ({error}): free disk space or get write permission, and try again"
            raise LedgerFull(msg) from error
        saved = file.with_suffix(".recovered")
        msg = (
            f"{file} was a ledger and is damaged ({error}). Save what can be read, with the program of"
            f" sqlite.org, and continue with ledger={str(saved)!r}:\n"
            f"    sqlite3 {shlex.quote(str(file))} .recover | sqlite3 {shlex.quote(str(saved))}"
        )
        raise DamagedLedger(msg) from error


def _unfit(path: Path, why: str) -> LedgerError:
    home = os.path.expanduser("~")  # noqa: PTH111 - it never raises
    local = Path("/var/tmp" if path.is_relative_to(home) else home, path.name)  # noqa: S108 - it is only named
    return LedgerError(
        f"{path}: that folder's file system cannot hold a ledger, as it does not lock files ({why}). It may "
        f"be a network drive. Name a file on a local disk: ledger={str(local)!r}"
    )
