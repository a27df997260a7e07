"""The durable record of every attempt: what was paid for once is never paid for again.

One SQLite file, opened by any number of runs and processes at once. Attempts are appended by one
writer thread per ledger in groups (every 50 ms or 50 rows), each group on the disk before it counts.

::

    runs      one row per opening of the file: which process, and when it last gave a sign of life
    kinds     what many attempts have in common: run, mode, batch, model, status, error, stop reason
    records   one row per attempt, append-only, in the order of writing
    answers   key -> its newest final record, merged in sorted order once enough have come, because
              an index over random keys would cost four times the record itself; `sealed` says
              up to which record, the few after it are read directly
    claims    keys that a living run may be sending now
    attempts  a view of all this for people: ``sqlite3 reviews.ledger "select * from attempts"``
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from array import array
from concurrent.futures import Future
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import polars as pl

from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ATTEMPTS = pl.Schema(
    {
        "key": pl.String(),
        "run": pl.String(),
        "mode": pl.String(),
        "batch_id": pl.String(),
        "model": pl.String(),
        "sent_at": pl.Datetime("us", "UTC"),
        "seconds": pl.Float64(),
        "status": pl.Int64(),
        "error": pl.String(),
        "message": pl.String(),
        "request_id": pl.String(),
        "stop_reason": pl.String(),
        "reply": pl.String(),
        "input_tokens": pl.Int64(),
        "cache_write_5m_input_tokens": pl.Int64(),
        "cache_write_1h_input_tokens": pl.Int64(),
        "cache_read_input_tokens": pl.Int64(),
        "output_tokens": pl.Int64(),
        "thinking_tokens": pl.Int64(),
        "dollars": pl.Float64(),
        "simulated": pl.Boolean(),
    }
)
"""One row per answer or failure of the API."""

GROUP_ROWS, GROUP_SECONDS = 50, 0.05
BEAT_SECONDS, VOID_SECONDS = 10.0, 30.0
BUSY_SECONDS = 30.0
FOLD_ROWS = 1_000  # tuples kept before they become a compact frame
CHUNK_ROWS = 2_000  # fetched at a time: small enough for the processor's cache

_APPLICATION, _VERSION = int.from_bytes(b"cldl"), 1
_MAGIC = b"SQLite format 3\0"
_KIND = ("run", "mode", "batch_id", "model", "status", "error", "stop_reason", "simulated")
_RECORD = tuple(name for name in ATTEMPTS if name not in _KIND)
# As stored: times are whole microseconds, truth values 0 and 1.
_STORED = {"sent_at": pl.Int64(), "simulated": pl.Int64(), "final": pl.Int64(), "kind": pl.Int64()}
_MEMORY = pl.Schema({**ATTEMPTS, "final": pl.Boolean()})
_kind_of = itemgetter(*(_MEMORY.names().index(name) for name in _KIND))
_record_of = itemgetter(*(_MEMORY.names().index(name) for name in ("final", *_RECORD)))

_TABLES = f"""
CREATE TABLE runs (id INTEGER PRIMARY KEY, run TEXT NOT NULL, boot TEXT NOT NULL, space TEXT NOT NULL,
  pid INTEGER NOT NULL, born TEXT, beat_at REAL NOT NULL, beat_uptime REAL NOT NULL, closed INTEGER NOT NULL);
CREATE TABLE kinds (id INTEGER PRIMARY KEY, opening INTEGER NOT NULL REFERENCES runs, run TEXT, mode TEXT,
  batch_id TEXT, model TEXT, status INTEGER, error TEXT, stop_reason TEXT, simulated INTEGER);
CREATE TABLE records (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL REFERENCES kinds, final INTEGER NOT NULL,
  key TEXT NOT NULL, sent_at INTEGER, seconds REAL, message TEXT, request_id TEXT, reply TEXT,
  input_tokens INTEGER, cache_write_5m_input_tokens INTEGER, cache_write_1h_input_tokens INTEGER,
  cache_read_input_tokens INTEGER, output_tokens INTEGER, thinking_tokens INTEGER, dollars REAL);
CREATE TABLE answers (key TEXT PRIMARY KEY, record INTEGER NOT NULL REFERENCES records) WITHOUT ROWID;
CREATE TABLE sealed (upto INTEGER NOT NULL);
INSERT INTO sealed VALUES (0);
CREATE TABLE claims (key TEXT PRIMARY KEY, opening INTEGER NOT NULL REFERENCES runs) WITHOUT ROWID;
CREATE VIEW attempts AS SELECT {", ".join(ATTEMPTS).replace("sent_at", "datetime(sent_at / 1000000.0, 'unixepoch') AS sent_at")},
  final FROM records JOIN kinds ON kinds.id = records.kind;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_INSERT = f"INSERT INTO records (kind, final, {', '.join(_RECORD)}) VALUES "
_MARKS = f"(?, ?{', ?' * len(_RECORD)})"
_FORKED = "this ledger belongs to the process that opened it: after a fork, open it again with Ledger(path)"
_TAIL = "SELECT key, id FROM records WHERE final AND id > (SELECT upto FROM sealed)"
_GIVEN = "(SELECT value FROM json_each(:keys))"


class Attempt(NamedTuple):
    """One answer or failure of the API: the columns of `ATTEMPTS`, `sent_at` as API unix seconds."""

    key: str
    run: str
    mode: str
    batch_id: str | None
    model: str
    sent_at: float
    seconds: float
    status: int | None
    error: str | None
    message: str | None
    request_id: str | None
    stop_reason: str | None
    reply: str | None
    input_tokens: int
    cache_write_5m_input_tokens: int
    cache_write_1h_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    thinking_tokens: int
    dollars: float
    simulated: bool


class Ledger:
    """The record of what was sent and answered, shared by every run that names the same file.

    Parameters
    ----------
    path : str or Path, optional
        The file, made with owner-only permissions where there is none (its folder must exist). None
        keeps the record in memory only: it ends with the process.
    run : str, optional
        Name of this run in the `run` column. The default is a fresh one, sortable by time.

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
    Safe for threads, and for several processes at once. After a fork the child must open its own.
    """

    def __init__(self, path: str | Path | None, *, run: str | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.run = run or f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"
        self._fresh = run is None
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: list[tuple[Any, ...]] = []  # waits for the writer
        self._rows: list[tuple[Any, ...]] = []  # the newest of this opening, not yet in a frame
        self._frames: list[pl.DataFrame] = []  # the rest of this opening
        self._runs: set[str] = set()  # the values of `run` recorded by this opening
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._failure: LedgerError | None = None
        self._done: set[str] = set()  # without a file: the keys with a final answer
        self._claiming = self._closed = self._left = False
        if self.path is not None:
            with _explained(self.path):
                self._connection, self._opening = _opened(self.path, self.run)
            self._kinds: dict[tuple[Any, ...], int] = {}
            self._file = _identity(self.path)
            self._beat_due = time.monotonic() + BEAT_SECONDS
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
            What came back. Lone surrogates in its texts become U+FFFD: no file and no frame can hold them.
        final : bool
            Whether this ends the row: a paid reply, or an error that no retry can mend.

        Raises
        ------
        LedgerFull
            An earlier group could not be written. This attempt is kept in memory like those; `sync`
            tries again.
        """
        if os.getpid() != self._pid:
            raise LedgerError(_FORKED)
        values = [_text(value) if isinstance(value, str) else value for value in attempt]
        values[5] = round(attempt.sent_at * 1e6)
        array(
            "q", (values[5], attempt.status or 0, *attempt[13:19])
        )  # beyond 64 bits: refused here, not later
        row = (*values, final)
        with self._changed:
            self._rows.append(row)
            self._runs.add(attempt.run)
            if len(self._rows) >= FOLD_ROWS:
                self._fold()
            if self.path is None:
                if final:
                    self._done.add(attempt.key)
                return
            self._queue.append(row)
            if len(self._queue) in (1, GROUP_ROWS):
                self._changed.notify_all()
        if self._closed or self._failure is not None:
            failure = self._failure or LedgerError(f"{self!r} was closed; open it again with Ledger(...)")
            raise type(failure)(str(failure)) from failure

    def sync(self) -> None:
        """Return when everything recorded so far is on the disk.

        Spends: nothing.

        Raises
        ------
        LedgerFull
            It cannot be written. Nothing is lost from memory: make room and call again, or `export`.
        """
        if self.path is not None:
            self._ask(lambda: None)

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Return the keys this run may send now, in the order given; that it may is on the disk.

        Left out are keys with a final answer and keys that another living run has claimed. A claim
        ends with its answer, with `release`, with `close`, or with its process: at once for one of this
        computer, after 30 s without a sign of life for one that cannot be seen from here.

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
            return [key for key in keys if key not in self._done]
        won = self._ask(partial(self._claim, keys))
        return [key for key in keys if key in won]

    def release(self, keys: Sequence[str]) -> None:
        """Return when other runs may claim `keys`, which this one claimed and will not send.

        Spends: nothing.
        """
        if self.path is not None:
            given = {"keys": json.dumps(list(keys)), "me": self._opening}
            statement = f"DELETE FROM claims WHERE opening = :me AND key IN {_GIVEN}"
            self._ask(lambda: self._connection.execute(statement, given))

    def close(self) -> None:
        """Return when all is on the disk and this run's claims are given up; reading still works.

        Spends: nothing.

        Raises
        ------
        LedgerFull
            Something cannot be written. The ledger stays open: make room and close again.
        """
        if os.getpid() != self._pid:
            return
        with self._changed:
            was_closed, self._closed = self._closed, True
        if was_closed or self.path is None:
            return
        try:
            self._submit(self._leave)
        except BaseException:
            self._closed = False
            raise
        self._thread.join()
        self._connection.close()
        _OPEN.discard(self)

    def answered(self, keys: pl.Series) -> pl.Series:
        """Return a Boolean mask of `keys`: which have a final answer, of this run or any other.

        Spends: nothing.
        """
        mine = self._memory()
        done = mine.get_column("key").filter(mine.get_column("final"))
        if self.path is not None:
            with _reading(self.path) as connection:
                statement = f"SELECT key FROM answers UNION ALL SELECT key FROM ({_TAIL})"
                given = None
                if len(keys) * 8 < _sealed(connection):
                    statement = f"""SELECT key FROM answers WHERE key IN {_GIVEN}
                        UNION ALL SELECT key FROM ({_TAIL}) WHERE key IN {_GIVEN}"""
                    given = json.dumps(keys.drop_nulls().to_list())
                stored = _fetched(
                    connection.execute(statement, {"keys": given}), pl.Schema({"key": pl.String()})
                )
            done = pl.concat([stored.get_column("key"), done])
        return keys.is_in(done.implode()).fill_null(value=False).alias("answered")

    def attempts(self, *, run: str | None = None) -> pl.DataFrame:
        """Return every attempt of one run, or of all runs in the file, as `ATTEMPTS`.

        Those of this ledger come from memory and include what is not yet on the disk: cheap enough to
        ask four times a second.

        Spends: nothing.
        """
        frame = self._memory()
        if run is not None and self._runs - {run}:
            frame = frame.filter(pl.col("run") == run)
        if self.path is not None and not (self._fresh and run == self.run):
            wanted = "opening != :me" + ("" if run is None else " AND run = :run")
            statement = (
                f"SELECT * FROM records WHERE kind IN (SELECT id FROM kinds WHERE {wanted}) ORDER BY id"
            )
            with _reading(self.path) as connection:
                frame = pl.concat([_joined(connection, statement, me=self._opening, run=run), frame])
        return frame.drop("final")

    def replies(self, keys: pl.Series) -> pl.DataFrame:
        """Return the final attempt of each of `keys` that has one, as `ATTEMPTS`: one row per key found.

        Spends: nothing.
        """
        frame = self._memory().filter("final", pl.col("key").is_in(keys.implode()))
        if self.path is not None:
            others = "final AND kind NOT IN (SELECT id FROM kinds WHERE opening = :me)"
            with _reading(self.path) as connection:
                statement = f"SELECT * FROM records WHERE {others} ORDER BY id"
                given = None
                if len(keys) * 8 < _sealed(connection):
                    found = f"""SELECT record FROM answers WHERE key IN {_GIVEN}
                        UNION ALL SELECT id FROM ({_TAIL}) WHERE key IN {_GIVEN}"""
                    statement = f"SELECT * FROM records WHERE id IN ({found}) AND {others} ORDER BY id"
                    given = json.dumps(keys.drop_nulls().to_list())
                frame = pl.concat([_joined(connection, statement, me=self._opening, keys=given), frame])
        wanted = frame.filter(pl.col("key").is_in(keys.implode()))
        return wanted.unique("key", keep="last", maintain_order=True).drop("final")

    def export(self, path: str | Path) -> Path:
        """Return the Parquet file, readable by its owner only, to which all attempts were written.

        Spends: nothing.
        """
        target = Path(path).expanduser().absolute()
        frame = self.attempts()
        with open(target, "wb", opener=partial(os.open, mode=0o600)) as file:  # noqa: PTH123  (needs the opener)
            os.chmod(target, 0o600)  # noqa: PTH101
            frame.write_parquet(file)
        return target

    def _memory(self) -> pl.DataFrame:
        """Return the attempts of this opening, with `final`."""
        if os.getpid() != self._pid:
            raise LedgerError(_FORKED)
        with self._changed:
            self._fold()
            return pl.concat([_MEMORY.to_frame(), *self._frames])

    def _fold(self) -> None:
        """Turn the newest tuples into a frame; join frames of one size, so that they stay few."""
        if self._rows:
            self._frames.append(_frame(self._rows, _MEMORY))
            self._rows = []
        while len(self._frames) > 1 and self._frames[-2].height <= min(self._frames[-1].height, 50_000):
            self._frames[-2:] = [pl.concat(self._frames[-2:], rechunk=True)]

    def _ask(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns on the writer thread, once all that was recorded before is written."""
        if os.getpid() != self._pid:
            raise LedgerError(_FORKED)
        if self._closed:
            msg = f"{self!r} was closed; open it again with Ledger(...)"
            raise LedgerError(msg)
        return self._submit(work)

    def _submit(self, work: Callable[[], Any]) -> Any:
        future: Future[Any] = Future()
        with self._changed:
            self._jobs.append((work, future))
            self._changed.notify_all()
        return future.result()

    # From here on: the writer thread, which owns the connection.

    def _write(self) -> None:
        """Write groups and do jobs until the job that leaves."""
        while not self._left:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._jobs or (self._queue and self._failure is None), BEAT_SECONDS
                )
                if self._queue and not self._jobs:
                    self._changed.wait_for(
                        lambda: self._jobs or len(self._queue) >= GROUP_ROWS, GROUP_SECONDS
                    )
                rows, jobs = self._queue, self._jobs
                self._queue, self._jobs = [], []
            self._failure = self._tried(partial(self._commit, rows))
            if self._failure is not None:
                with self._changed:
                    self._queue[:0] = rows
            for work, future in jobs:
                answer: list[Any] = []
                failure = self._failure or self._tried(lambda work=work, answer=answer: answer.append(work()))
                if failure is None:
                    future.set_result(answer[0])
                else:
                    future.set_exception(failure)

    def _tried(self, work: Callable[[], Any]) -> LedgerError | None:
        """Do `work`; return why it could not be done, for whoever asks next."""
        assert self.path is not None
        try:
            with _explained(self.path):
                if _identity(self.path) != self._file:
                    msg = f"{self.path} was moved, deleted or replaced while it was in use. `export` saves what is in memory."
                    raise LedgerError(msg)
                work()
        except LedgerError as error:
            return error
        except Exception as error:  # noqa: BLE001  (a dead writer would be silent; this one is raised by `record`)
            return LedgerError(f"{self.path}: the writer failed: {error!r}")
        return None

    def _commit(self, rows: list[tuple[Any, ...]]) -> None:
        """Write one group, and what is due with it."""
        beats = self._claiming and time.monotonic() >= self._beat_due
        if not rows and not beats:
            return
        connection, new = self._connection, {}
        with _transaction(connection):
            for kind in {_kind_of(row) for row in rows} - self._kinds.keys():
                marks = ", ".join("?" * (len(_KIND) + 1))
                statement = f"INSERT INTO kinds (opening, {', '.join(_KIND)}) VALUES ({marks})"
                new[kind] = connection.execute(statement, (self._opening, *kind)).lastrowid
            ids = self._kinds | new
            stored = [(ids[_kind_of(row)], *_record_of(row)) for row in rows]
            for group in (stored[start : start + GROUP_ROWS] for start in range(0, len(stored), GROUP_ROWS)):
                connection.execute(_INSERT + ", ".join([_MARKS] * len(group)), [*chain.from_iterable(group)])
            if beats:
                now = _Process.here()
                connection.execute(
                    "UPDATE runs SET beat_at = ?, beat_uptime = ? WHERE id = ?",
                    (now.beat_at, now.beat_uptime, self._opening),
                )
            _seal(connection)
        self._kinds.update(new)
        if beats:
            self._beat_due = time.monotonic() + BEAT_SECONDS

    def _claim(self, keys: Sequence[str]) -> set[str]:
        """Claim what is free of `keys` in one transaction."""
        connection, here = self._connection, _Process.here()
        with _transaction(connection):
            others = connection.execute(
                f"SELECT id, {', '.join(_Process._fields)} FROM runs WHERE NOT closed AND id != ?",
                [self._opening],
            ).fetchall()
            for opening, *process in others:
                if not _lives(_Process(*process), here):
                    connection.execute("DELETE FROM claims WHERE opening = ?", [opening])
                    connection.execute("UPDATE runs SET closed = 1 WHERE id = ?", [opening])
            found = f"""SELECT key FROM answers WHERE key IN {_GIVEN}
                UNION ALL SELECT key FROM ({_TAIL}) WHERE key IN {_GIVEN}"""
            done = {key for (key,) in connection.execute(found, {"keys": json.dumps(list(keys))})}
            given = {"keys": json.dumps([key for key in keys if key not in done]), "me": self._opening}
            connection.execute(
                f"INSERT OR IGNORE INTO claims SELECT value, :me FROM json_each(:keys) ORDER BY value", given
            )
            mine = f"SELECT key FROM claims WHERE opening = :me AND key IN {_GIVEN}"
            won = {key for (key,) in connection.execute(mine, given)}
        self._claiming = True
        return won

    def _leave(self) -> None:
        with _transaction(self._connection):
            self._connection.execute("DELETE FROM claims WHERE opening = ?", [self._opening])
            self._connection.execute("UPDATE runs SET closed = 1 WHERE id = ?", [self._opening])
        self._left = True


_OPEN: set[Ledger] = set()


@atexit.register
def _close_all() -> None:
    failures = []
    for ledger in list(_OPEN):
        try:
            ledger.close()
        except LedgerError as error:
            failures.append(error)
    if failures:
        msg = "replies were paid for and could not be saved"
        raise ExceptionGroup(msg, failures)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OPEN.clear)


class _Process(NamedTuple):
    """Where a run lives and when it last gave a sign of life."""

    boot: str  # one start of one kernel: processes of one boot share the clock of `time.monotonic`
    space: str  # where a process id means one process
    pid: int
    born: str | None
    beat_at: float
    beat_uptime: float

    @classmethod
    def here(cls) -> Self:
        return cls(*_place(), os.getpid(), _born(os.getpid()), time.time(), time.monotonic())


@cache
def _place() -> tuple[str, str]:
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    import uuid  # noqa: PLC0415  (rarely needed)

    return f"{uuid.getnode():x}", ""


def _born(pid: int) -> str | None:
    """Return when a process of this computer began, "" if it has ended, None where that cannot be told."""
    if sys.platform == "win32":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # there, and another user's
    try:
        if sys.platform == "linux":
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else rest[18]
        command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
        listed = subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split(maxsplit=1)
    except OSError:
        return None
    return "" if not listed or listed[0].startswith("Z") else listed[1].strip()


def _lives(them: _Process, here: _Process) -> bool:
    """Decide whether a run may still be sending what it claimed."""
    if (them.boot, them.space) == (here.boot, here.space) and them.born:
        born = _born(them.pid)
        if born is not None:
            return born == them.born
    same_clock = them.boot == here.boot  # which neither jumps nor counts sleep
    age = here.beat_uptime - them.beat_uptime if same_clock else here.beat_at - them.beat_at
    return abs(age) < VOID_SECONDS


def _text(text: str) -> str:
    """Return `text` as UTF-8 can hold it: halves of a pair joined, lone ones replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _frame(rows: Sequence[tuple[Any, ...]], schema: pl.Schema) -> pl.DataFrame:
    """Return rows as a frame, column by column: half the time of ``orient="row"``."""
    return pl.DataFrame(
        [
            pl.Series(name, values, dtype=_STORED.get(name, dtype), strict=True)
            for (name, dtype), values in zip(schema.items(), zip(*rows, strict=True), strict=True)
        ]
    ).cast(dict(schema))


def _fetched(cursor: sqlite3.Cursor, schema: pl.Schema) -> pl.DataFrame:
    frames = [schema.to_frame()]
    while rows := cursor.fetchmany(CHUNK_ROWS):
        frames.append(_frame(rows, schema))
    return pl.concat(frames, rechunk=True)


def _joined(connection: sqlite3.Connection, statement: str, **given: Any) -> pl.DataFrame:
    """Return the records of `statement` with what their kinds say."""
    schema = pl.Schema(
        {
            "id": pl.Int64(),
            "kind": pl.Int64(),
            "final": pl.Boolean(),
            **{name: ATTEMPTS[name] for name in _RECORD},
        }
    )
    records = _fetched(connection.execute(statement, given), schema)
    kinds = connection.execute(f"SELECT id AS kind, {', '.join(_KIND)} FROM kinds")
    frame = _fetched(kinds, pl.Schema({"kind": pl.Int64(), **{name: ATTEMPTS[name] for name in _KIND}}))
    return records.join(frame, on="kind", how="left", maintain_order="left").select(list(_MEMORY))


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection that sees one moment of the file, whatever is written meanwhile."""
    with _explained(path), closing(_connect(path)) as connection:
        connection.execute("BEGIN")
        yield connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _sealed(connection: sqlite3.Connection) -> int:
    upto: int = connection.execute("SELECT upto FROM sealed").fetchone()[0]
    return upto


def _seal(connection: sqlite3.Connection) -> None:
    """Merge the tail into `answers` once it is worth touching most of that tree's pages."""
    upto = _sealed(connection)
    last = connection.execute("SELECT max(id) FROM records").fetchone()[0] or 0
    if last - upto >= 2_000 + upto // 50:
        connection.execute(f"DELETE FROM claims WHERE key IN (SELECT key FROM ({_TAIL}))")
        connection.execute(f"INSERT OR REPLACE INTO answers {_TAIL} ORDER BY key, id")
        connection.execute("UPDATE sealed SET upto = ?", [last])


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _opened(path: Path, run: str) -> tuple[sqlite3.Connection, int]:
    """Return the write connection to the ledger at `path`, made where there is none, and this opening's id."""
    if path.is_dir():
        msg = f"{path} is a folder: name a file in it, ledger={str(path / 'replies.ledger')!r}"
        raise ForeignLedger(msg)
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent}: make it with Path({str(path.parent)!r}).mkdir(parents=True)"
        raise LedgerError(msg)
    # Closing a plain file handle would drop the locks this process's own connections hold on the file.
    if _identity(path) not in {each._file for each in _OPEN}:
        _recognise(path)
    connection = _connect(path)
    try:
        with _transaction(connection):
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
            values = [run, *_Process.here()]
            opening = connection.execute(
                f"INSERT INTO runs VALUES (NULL{', ?' * len(values)}, 0)", values
            ).lastrowid
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
    except BaseException:
        connection.close()
        raise
    assert opening is not None
    return connection, opening


def _patiently(work: Callable[[], Any]) -> None:
    """Do `work`, again where another process is just making the same file."""
    for _ in range(100):
        try:
            work()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY":
                raise
            time.sleep(0.05)
        else:
            return
    work()


def _recognise(path: Path) -> None:
    """Make an empty file where there is none; refuse what is no ledger without touching it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
    with path.open("rb") as file:
        head = file.read(100)
    application, version = int.from_bytes(head[68:72]), int.from_bytes(head[60:64])
    if head and application != _APPLICATION:
        msg = f"{path} is not a ledger and was not touched: name a file of your own, ledger='replies.ledger'"
        raise ForeignLedger(msg)
    if head and not head.startswith(_MAGIC):
        raise DamagedLedger(_damage(path, "its head is overwritten"))
    if version > _VERSION:
        msg = f"{path} was written by a newer claudescale (file version {version}, this one reads {_VERSION}): pip install -U claudescale"
        raise ForeignLedger(msg)


def _damage(path: Path, why: str) -> str:
    return (
        f"{path} was a ledger and is damaged ({why}). Save what can be read with\n"
        f'    sqlite3 "{path}" .recover | sqlite3 "{path.with_suffix(".recovered")}"\n'
        f"and go on with ledger={str(path.with_suffix('.recovered'))!r}; keep the damaged file."
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise our errors for SQLite's and the system's: what is wrong, and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if (
            name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
            or "decode to UTF-8" in str(error)
            or "no such" in str(error)
        ):
            raise DamagedLedger(_damage(path, str(error))) from error
        if name.startswith("SQLITE_BUSY"):
            msg = f"{path}: another program has kept it locked for {BUSY_SECONDS:.0f} s. End it, then run this again."
            raise LedgerError(msg) from error
        if name.startswith(
            ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
        ) or isinstance(error, OSError):
            msg = f"{path} cannot be written ({error}). Make room or get the right to write, then run this again."
            raise LedgerFull(msg) from error
        msg = f"{path} cannot be used: {error}"
        raise LedgerError(msg) from error
