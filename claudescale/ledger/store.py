"""The ledger's file: what its tables are, what is asked of them, and what is wrong when one cannot.

::

    runs     one row per opening of the file: which process, and its last sign of life
    records  one row per attempt, only ever appended; `line` is the attempt as one line of CSV, because
             joining and parsing lines reads a million attempts in a third of the time that columns take,
             and other threads run meanwhile
    answers  key -> its newest final record, merged in key order once enough have come: an index over
             random keys would cost four times the record itself. `sealed` says up to which record
    claims   keys that an opening may be sending now, or, below zero, that a batch holds (`batchfile`)
    batches  one row per batch that was meant to be sent, and the opening that follows it
    csv      a view for people: ``sqlite3 reviews.ledger "select * from csv" > attempts.csv``

SQLite's write-ahead log makes a group of rows whole or absent, whenever the process or the machine stops.
"""
# ruff: noqa: S608  (every statement is put together from this module's own constants)

from __future__ import annotations

import errno
import json
import mmap
import os
import secrets
import shlex
import sqlite3
from array import array
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull
from claudescale.ledger.liveness import Presence, may_live
from claudescale.ledger.records import ATTEMPTS, Attempt

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

BUSY_SECONDS = 30.0  # how long to wait for another process that is writing
GROUP_ROWS = 50
SEAL_ROWS = 4_000
LINES_AT_ONCE = 10_000
LOOKED_UP_COST = 4  # processor time of one record looked up, in records read one after the other

EMPTY = pl.Schema({**ATTEMPTS, "final": pl.Boolean()}).to_frame()
_ADDED = tuple(Attempt._field_defaults)
LINE = (*(name for name in EMPTY.columns if name not in _ADDED), *_ADDED)
"""The columns of a line. What version 3 added stands last, so that shorter lines are still read."""
_LINE = pl.Schema(
    {**{name: EMPTY.schema[name] for name in LINE}, "sent_at": pl.Int64()}
)  # microseconds since 1970
_MISSING = [
    pl.col(name).fill_null(value) for name, value in Attempt._field_defaults.items() if value is not None
]

_APPLICATION, _VERSION, _MAGIC = int.from_bytes(b"cldl"), 3, b"SQLite format 3\0"
_BATCHES = """
CREATE TABLE batches (id INTEGER PRIMARY KEY, opening INTEGER NOT NULL REFERENCES runs,
    after INTEGER NOT NULL, nonce TEXT NOT NULL, api TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, intended_at REAL NOT NULL, state TEXT NOT NULL, batch_id TEXT, created_at REAL,
    expires_at REAL, ended_at REAL, succeeded INTEGER NOT NULL, errored INTEGER NOT NULL,
    canceled INTEGER NOT NULL, expired INTEGER NOT NULL)"""
_CSV = f"CREATE VIEW csv AS SELECT '{','.join(LINE)}' AS line UNION ALL SELECT line FROM records"
_TABLES = f"""
CREATE TABLE runs (id INTEGER PRIMARY KEY, run TEXT NOT NULL, closed INTEGER NOT NULL DEFAULT 0,
    boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT,
    beat_at REAL NOT NULL, beat_uptime REAL NOT NULL);
CREATE TABLE records (id INTEGER PRIMARY KEY, opening INTEGER NOT NULL REFERENCES runs,
    final INTEGER NOT NULL, key TEXT NOT NULL, line TEXT NOT NULL);
CREATE TABLE answers (key TEXT PRIMARY KEY, record INTEGER NOT NULL REFERENCES records) WITHOUT ROWID;
CREATE TABLE sealed (upto INTEGER NOT NULL);
INSERT INTO sealed VALUES (0);
CREATE TABLE claims (key TEXT PRIMARY KEY, opening INTEGER NOT NULL) WITHOUT ROWID;{_BATCHES};
{_CSV};
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION}"""
_FROM_2 = f"""DROP VIEW csv;
{_CSV};
PRAGMA user_version = {_VERSION}"""
# A process of version 1 that has the file open goes on beside this: its statements mean the same after it.
_FROM_1 = f"""{_BATCHES};
CREATE TABLE kept AS SELECT * FROM claims;
DROP TABLE claims;
CREATE TABLE claims (key TEXT PRIMARY KEY, opening INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO claims SELECT * FROM kept;
DROP TABLE kept;
{_FROM_2}"""
_LOCKS = (
    "SQLITE_IOERR_LOCK",
    "SQLITE_IOERR_RDLOCK",
    "SQLITE_IOERR_UNLOCK",
    "SQLITE_IOERR_CHECKRESERVEDLOCK",
    "SQLITE_IOERR_SHM",
    "SQLITE_PROTOCOL",
)
"""What SQLite says where a file cannot be locked, or its memory not be shared."""
_MAKING = {0: _TABLES, 1: _FROM_1, 2: _FROM_2}
_TAIL = "SELECT key, id FROM records WHERE final AND id > (SELECT upto FROM sealed)"
# Sorted once: what is then merged and deleted in the order of keys meets every page once.
_SEAL = (
    f"CREATE TEMP TABLE fresh AS {_TAIL} ORDER BY key, id",
    "INSERT OR REPLACE INTO answers SELECT * FROM fresh",
    "DELETE FROM claims WHERE key IN (SELECT key FROM fresh)",
    "DROP TABLE fresh",
)
_GIVEN = "IN (SELECT value FROM json_each(:keys))"
_FOUND = f"""SELECT key, record FROM answers WHERE key {_GIVEN}
    UNION ALL SELECT key, id FROM ({_TAIL}) WHERE key {_GIVEN}"""


def line(attempt: Attempt, run: str, *, final: bool) -> str:
    """Return an attempt as CSV with every text quoted: an empty field is null, an empty text is not."""
    key, _, mode, batch_id, model, sent_at, seconds, status, error, message = attempt[:10]
    request_id, stop_reason, reply, *tokens = attempt[10:19]
    answering, geo, speed, searches, category = attempt[21:]
    # An array refuses here what 64 bits cannot hold, and what is no number.
    numbers = (round(sent_at * 1e6), status or 0, searches, *tokens)
    microseconds, status_number, searches, *tokens = array("q", numbers)
    names = map(_often, (run, mode, batch_id, model))
    result = (_often(error), _quoted(message), _quoted(request_id), _often(stop_reason), _quoted(reply))
    moment = (str(microseconds), str(seconds + 0.0), "" if status is None else str(status_number))
    ends = (str(attempt.dollars + 0.0), str(attempt.simulated), str(final))
    said = (_often(answering), _often(geo), _often(speed), str(searches), _often(category))
    text = ",".join((_quoted(key), *names, *moment, *result, *map(str, tokens), *ends, *said))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _quoted(text: str | None) -> str:
    return "" if text is None else '"' + text.replace('"', '""') + '"'


_often = lru_cache(maxsize=1_000)(_quoted)


def frame(lines: bytes) -> pl.DataFrame:
    """Return lines as `ATTEMPTS` and `final`."""
    read = pl.read_csv(lines, has_header=False, schema=_LINE, missing_columns="insert")
    return read.with_columns(read.get_column("sent_at").cast(ATTEMPTS["sent_at"]), *_MISSING).select(
        EMPTY.columns
    )


def opened(path: Path | None, run: str) -> tuple[sqlite3.Connection, int]:
    """Return the connection that writes the ledger at `path`, made if need be, and this opening's id.

    Without a path it is a file in memory.
    """
    if path is not None:
        _check_locks(path)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = _connect(path)
    try:
        with transaction(connection):
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            for statement in _MAKING.get(version, "").split(";"):
                connection.execute(statement)
            marks = ", ".join("?" * len(Presence._fields))
            insert = f"INSERT INTO runs (run, {', '.join(Presence._fields)}) VALUES (?, {marks})"
            opening = connection.execute(insert, [run, *Presence.here()]).lastrowid
        connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise
    assert opening is not None
    return connection, opening


def _check_locks(path: Path) -> None:
    """Refuse a file system without the locks and the shared memory that SQLite needs: it would wait for long.

    A file of its own is tried: closing the ledger here would drop the locks that this process has on it.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    tried = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        file = os.open(tried, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError:  # the ledger itself will tell
        return
    try:
        os.truncate(file, mmap.PAGESIZE)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mmap.mmap(file, mmap.PAGESIZE).close()
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.EACCES, errno.ENOSPC, errno.EDQUOT}:
            raise LedgerError(_unfit(path, error.strerror or str(error))) from error
    finally:
        os.close(file)
        tried.unlink()


def _unfit(path: Path, why: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 - it never raises
    local = "/var/tmp" if path.is_relative_to(home) else home  # noqa: S108 - it is only named
    return (
        f"{path}: that folder's file system cannot hold a ledger, as it does not lock files ({why}). It may "
        f"be a network drive. Name a file on a local disk: ledger={os.path.join(local, path.name)!r}"  # noqa: PTH118
    )


def recognise(path: Path) -> None:
    """Refuse what is no ledger, without touching it."""
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent}: make it with Path({str(path.parent)!r}).mkdir(parents=True)"
        raise LedgerError(msg)
    if not path.exists():
        return
    if not path.is_file():
        msg = f"{path} is a folder or a device: name a file, ledger={str(path / 'replies.ledger')!r}"
        raise ForeignLedger(msg)
    with path.open("rb") as file:
        head = file.read(100)
    version, application = int.from_bytes(head[60:64]), int.from_bytes(head[68:72])
    if head and application != _APPLICATION:
        msg = f"{path} is not a ledger and was not touched: name a file of its own, ledger='replies.ledger'"
        raise ForeignLedger(msg)
    if head and not head.startswith(_MAGIC):
        raise DamagedLedger(_damage(path, "its head is overwritten"))
    if version > _VERSION:
        msg = (
            f"{path} was written by a newer claudescale (file version {version}, not {_VERSION}): upgrade it"
        )
        raise ForeignLedger(msg)


def identity(path: Path) -> tuple[int, int] | None:
    """Return which file `path` is now, None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise our errors for SQLite's, the system's and the reader's: what is wrong, and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_BUSY"):
            msg = f"{path}: another program keeps it locked. End that program, then run this again"
            raise LedgerError(msg) from error
        if name.startswith(_LOCKS):
            raise LedgerError(_unfit(path, name)) from error
        full = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
        if isinstance(error, OSError) or name.startswith(full):
            msg = f"{path} cannot be used ({error}): make room, or get the right to write, and try again"
            raise LedgerFull(msg) from error
        raise DamagedLedger(_damage(path, str(error))) from error


def _damage(path: Path, why: str) -> str:
    saved = path.with_suffix(".recovered")
    return (
        f"{path} was a ledger and is damaged ({why}). Save what can be read, with the program of"
        f" sqlite.org, and go on with ledger={str(saved)!r}:\n"
        f"    sqlite3 {shlex.quote(str(path))} .recover | sqlite3 {shlex.quote(str(saved))}"
    )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing, and on the disk before it returns."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection that sees one moment of the file, whatever is written meanwhile."""
    if not path.exists():
        msg = f"{path} is gone, and with it what was paid for. Put it back, or the rows are paid for again."
        raise LedgerError(msg)
    with explained(path), closing(_connect(path)) as connection:
        connection.execute("BEGIN")
        yield connection


def append(
    connection: sqlite3.Connection, opening: int, group: Sequence[tuple[int, str, str]], *, bulk: bool = False
) -> None:
    """Write attempts (final, key, line); in bulk, what can wait for the last of them waits."""
    for start in range(0, len(group), GROUP_ROWS):
        # One statement for many rows: after each, a thread waits for the interpreter.
        rows = group[start : start + GROUP_ROWS]
        marks = ", ".join([f"({opening:d}, ?, ?, ?)"] * len(rows))
        insert = f"INSERT INTO records (opening, final, key, line) VALUES {marks}"
        connection.execute(insert, [value for row in rows for value in row])
    upto = connection.execute("SELECT upto FROM sealed").fetchone()[0]
    last = connection.execute("SELECT max(id) FROM records").fetchone()[0] or 0
    # Enough to touch most pages of `answers` only once each.
    enough = 10 * SEAL_ROWS + upto // 5 if bulk else SEAL_ROWS + upto // 40
    if last - upto >= enough:
        for statement in _SEAL:
            connection.execute(statement)
        connection.execute("UPDATE sealed SET upto = ?", [last])


def beat(connection: sqlite3.Connection, opening: int) -> None:
    """Give a sign of life."""
    *_, beat_at, beat_uptime = Presence.here()
    update = "UPDATE runs SET beat_at = ?, beat_uptime = ? WHERE id = ?"
    connection.execute(update, [beat_at, beat_uptime, opening])


def claim(connection: sqlite3.Connection, opening: int, keys: Collection[str]) -> set[str]:
    """Return which of `keys` this opening holds now: not answered, not held by one that may live."""
    with transaction(connection):
        return _claim(connection, opening, keys)


def _claim(connection: sqlite3.Connection, opening: int, keys: Collection[str]) -> set[str]:
    here = Presence.here()
    others = f"SELECT id, {', '.join(Presence._fields)} FROM runs WHERE NOT closed AND id != ?"
    for other, *presence in connection.execute(others, [opening]).fetchall():
        if not may_live(Presence(*presence), here):
            end(connection, other)
    found = connection.execute(_FOUND, {"keys": json.dumps(list(keys))})
    free = set(keys).difference(key for key, _ in found)
    given = {"opening": opening, "keys": json.dumps(sorted(free))}
    connection.execute("INSERT OR IGNORE INTO claims SELECT value, :opening FROM json_each(:keys)", given)
    won = connection.execute(f"SELECT key FROM claims WHERE opening = :opening AND key {_GIVEN}", given)
    return {key for (key,) in won}


def release(connection: sqlite3.Connection, opening: int, keys: Collection[str]) -> None:
    """Give up claims."""
    given = {"opening": opening, "keys": json.dumps(list(keys))}
    connection.execute(f"DELETE FROM claims WHERE opening = :opening AND key {_GIVEN}", given)


def end(connection: sqlite3.Connection, opening: int) -> None:
    """Give up all claims of an opening that is over."""
    connection.execute("DELETE FROM claims WHERE opening = ?", [opening])
    connection.execute("UPDATE runs SET closed = 1 WHERE id = ?", [opening])


def found(connection: sqlite3.Connection, keys: Collection[str]) -> dict[str, int] | None:
    """Return the final records of `keys` by looking each up; None where reading all of the file is faster."""
    if len(keys) * LOOKED_UP_COST > connection.execute("SELECT upto FROM sealed").fetchone()[0] + SEAL_ROWS:
        return None
    return dict(connection.execute(_FOUND, {"keys": json.dumps(list(keys))}).fetchall())


def answered(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield all keys with a final answer, a line each."""
    yield from _joined(connection, "SELECT key AS at, key AS line FROM answers", "")
    yield from _joined(connection, f"SELECT id AS at, key AS line FROM ({_TAIL})", 0)


def records(connection: sqlite3.Connection, where: str, **given: object) -> Iterator[pl.DataFrame]:
    """Yield attempts in the order of writing, as `ATTEMPTS` and `final`."""
    source = f"SELECT id AS at, line FROM records WHERE {where}"
    for lines in _joined(connection, source, 0, **given):
        try:
            yield frame(lines)
        except pl.exceptions.PolarsError as error:
            raise sqlite3.DatabaseError(str(error)) from error


def picked(
    connection: sqlite3.Connection, where: str, ids: Collection[int], **given: object
) -> Iterator[pl.DataFrame]:
    """Yield those of the attempts that have one of `ids`, in the order of writing."""
    where += " AND id IN (SELECT value FROM json_each(:ids))"
    ordered = sorted(ids)
    for start in range(0, len(ordered), LINES_AT_ONCE):  # SQLite reads all of a list for each statement
        yield from records(connection, where, ids=json.dumps(ordered[start : start + LINES_AT_ONCE]), **given)


def _joined(connection: sqlite3.Connection, source: str, after: Any, **given: object) -> Iterator[bytes]:
    """Yield the lines of `source` in the order of its column `at`, many joined by SQLite at a time."""
    statement = f"""SELECT max(at), CAST(group_concat(line, char(10)) AS BLOB)
        FROM (SELECT * FROM ({source}) WHERE at > :after ORDER BY at LIMIT :rows)"""
    rows = LINES_AT_ONCE
    while True:
        try:
            found = connection.execute(statement, {**given, "after": after, "rows": rows}).fetchone()
        except sqlite3.DataError:  # above the longest text SQLite makes, 1 GB
            if rows == 1:
                raise
            rows = max(rows // 10, 1)
        else:
            after, lines = found
            if lines is None:
                return
            yield lines


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(
        ":memory:"
        if path is None
        else f"{path.as_uri()}?mode=rw",  # makes no file: one that was deleted stays deleted
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16000")  # 16 MB
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()  # a damaged file, or one that may not be read, says so only here
        raise
    return connection
