"""The file: plain SQL reads it, what is wrong with it is said in words, and a full disk loses nothing."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import shutil
import sqlite3
import stat
import subprocess
from contextlib import closing, contextmanager

import polars as pl
import pytest
from ledger_rows import attempt, batch, expected, key, keys, output, records, sent, some
from polars.testing import assert_frame_equal
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull
from claudescale.ledger import store as store_module
from claudescale.ledger.records import ATTEMPTS
from claudescale.ledger.store import Store

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def filled(path):
    """Make a ledger of 2,000 answers."""
    with closing(Store(path)) as store:
        store.extend(records([attempt(number) for number in range(2_000)]))
    return path


# What a user sees of it.


def test_the_public_ledger(path, tmp_path):
    """It reads and exports what runs wrote, at once and after its close; the export is its owner's only."""
    with closing(Store(path, "one")) as store, cs.Ledger(str(path)) as ledger:
        store.extend(records([attempt(1), attempt(2)]))
        assert_frame_equal(ledger.attempts(), expected([attempt(1), attempt(2)], "one"))
        assert ledger.attempts(run="two").schema == ATTEMPTS
        (tmp_path / "all.parquet").touch(mode=0o644)
        written = ledger.export(str(tmp_path / "all.parquet"))
        assert repr(ledger) == f"<Ledger {str(path)!r}>"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert_frame_equal(pl.read_parquet(written), ledger.attempts())
    assert repr(ledger) == f"<Ledger {str(path)!r}, closed>"


def test_forget(path):
    """The rows of an open batch that cannot be collected are free again; another id is told what is open."""
    with closing(Store(path)) as store, cs.Ledger(path) as ledger:
        store.claim(some(0, 3))
        store.intend(batch(0), some(0, 3))
        store.note(sent(0))
        with pytest.raises(LedgerError, match=r"no open batch 'b'.*msgbatch_0"):
            ledger.forget("b")
        assert ledger.forget("msgbatch_0") == 3
        assert store.batches()[0].state == "gone"
        assert store.claim(some(0, 3)) == some(0, 3)


@pytest.mark.parametrize("wrong", [5, None, b"x"])
def test_a_ledger_is_a_path(wrong):
    """What is no path is told what to type."""
    with pytest.raises(LedgerError, match=r"name a file, such as Ledger\('replies.ledger'\)"):
        cs.Ledger(wrong)


def test_plain_sql_reads_it(path):
    """Any SQLite program, while a run writes too, gets the attempts by their columns' names."""
    with closing(Store(path)) as store:
        store.record(attempt(1), final=True)
        store.extend(records([attempt(2, error="overloaded_error")], final=False))
        with closing(sqlite3.connect(path)) as connection:
            select = "SELECT error, count(*), datetime(min(sent_at), 'unixepoch') FROM attempts GROUP BY 1"
            errors = connection.execute(select).fetchall()
            columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(attempts)")]
    assert errors == [(None, 1, "2025-11-24 16:00:01"), ("overloaded_error", 1, "2025-11-24 16:00:02")]
    assert columns == ["id", *ATTEMPTS, "final"]


def test_owner_only(path):
    """The file and its companions can be read by their owner only, whatever the umask."""
    before = os.umask(0)
    try:
        with closing(Store(path)) as store:
            store.extend(records([attempt(1)]))
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["a.ledger", "a.ledger-wal", "a.ledger-shm"], 0o600)


# Files that are no ledgers any more, or never were.


def damage_head(content):
    content[:16] = bytes(16)


def damage_schema(content):
    content[100:4_096] = random.Random(1).randbytes(3_996)


def damage_pages(content):
    content[8_192:] = random.Random(2).randbytes(len(content) - 8_192)


def damage_text(content):
    at = content.index(b"req_700")
    content[at : at + 3] = b"\xff\xfe\xfd"


def damage_length(content):
    del content[len(content) // 2 :]


@pytest.mark.parametrize("damage", [damage_head, damage_schema, damage_pages, damage_text, damage_length])
def test_damage_is_named_and_says_what_to_type(filled, damage, monkeypatch):
    """A ledger overwritten or cut says so when it is opened or read, with the way to save the rest."""
    monkeypatch.setattr(store_module, "_opened", set())  # a damaged one cannot be closed
    content = bytearray(filled.read_bytes())
    damage(content)
    filled.write_bytes(content)
    with pytest.raises(DamagedLedger, match=r"(?s)is damaged.*sqlite3 .* \.recover"):
        Store(filled).replies(keys(range(2_000)))


def can_recover():
    """Whether there is a sqlite3 program, built with what its own .recover needs."""
    program = shutil.which("sqlite3")
    made = program and subprocess.run(
        [program, ":memory:", "CREATE TABLE a (b)", ".recover"], capture_output=True, text=True, check=False
    )
    return bool(made) and "CREATE TABLE" in made.stdout


@pytest.mark.skipif(not can_recover(), reason="no sqlite3 program that can .recover")
def test_recovery_as_advised(filled):
    """The command in the message makes a ledger of what can still be read."""
    content = bytearray(filled.read_bytes())
    at = content.index(b"req_700") // 4_096 * 4_096
    content[at : at + 4_096] = random.Random(3).randbytes(4_096)
    filled.write_bytes(content)
    with pytest.raises(DamagedLedger) as caught, closing(Store(filled)) as store:
        store.replies(keys(range(2_000)))
    subprocess.run(str(caught.value).splitlines()[-1], shell=True, check=True)
    with closing(Store(filled.with_suffix(".recovered"))) as store:
        assert 1_900 < store.replies(keys(range(2_000))).height < 2_000


def test_a_ledger_rebuilt_from_its_rows_is_a_ledger(filled):
    """What .recover writes (tables, rows and the two marks, as SQL) is taken for a ledger again."""
    rebuilt = filled.with_suffix(".recovered")
    with closing(sqlite3.connect(filled)) as old, closing(sqlite3.connect(rebuilt)) as new:
        new.executescript("\n".join(old.iterdump()))
        for mark in ("user_version", "application_id"):
            new.execute(f"PRAGMA {mark} = {old.execute(f'PRAGMA {mark}').fetchone()[0]}")
    with closing(Store(rebuilt)) as store:
        assert store.replies(keys(range(2_000))).height == 2_000
        assert store.claim([key(700)]) == []


def a_text(path):
    path.write_text("key,reply\n" * 40)


def a_byte(path):
    path.write_bytes(b"x")


def a_database(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE theirs (x)")


def of_format(version):
    def make(path):
        Store(path).close()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_text, "is not a ledger"),
        (a_byte, "is not a ledger"),
        (a_database, "is not a ledger"),
        (lambda path: path.mkdir(), "is a folder"),
        (of_format(3), "is a ledger of format 3 .* reads format 4.*paid for, again"),
        (of_format(99), "is a ledger of format 99"),
    ],
)
def test_foreign_files_stay_untouched(path, make, words):
    """What is no ledger of this format is named and refused; neither it nor its folder changes by a byte."""
    make(path)

    def seen():
        return {each.name: each.is_file() and each.read_bytes() for each in path.parent.iterdir()}

    before = seen()
    with pytest.raises(ForeignLedger, match=f"{path} {words}"):
        cs.Ledger(path)
    assert seen() == before


def test_missing_folder_and_empty_file(tmp_path):
    """A missing folder is named with what to type; an empty file becomes the ledger."""
    with pytest.raises(LedgerError, match=r"no folder .*mkdir"):
        cs.Ledger(tmp_path / "no" / "a.ledger")
    (tmp_path / "empty").touch()
    for height in range(2):
        with closing(Store(tmp_path / "empty")) as store:
            assert store.attempts().height == height
            store.record(attempt(1), final=True)


# A disk that takes no more.


def limit(store, pages):
    """Let the file have that many pages, as a disk does that is full."""
    with store._lock:
        store._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_full_disk_loses_nothing(anywhere):
    """On a full disk record, claim and close say so, every question knows all rows, and room mends it."""
    anywhere.record(attempt(0), final=True)
    anywhere.sync()
    anywhere.claim([key(4_999)])
    limit(anywhere, 40)
    for number in itertools.count(1):
        try:
            anywhere.record(attempt(number), final=True)
            anywhere.sync()
        except LedgerFull:
            break
    with pytest.raises(LedgerFull):
        anywhere.record(attempt(number + 1), final=True)
    for refused in (
        lambda: anywhere.claim([key(5_000)]),
        lambda: anywhere.extend(records([attempt(number + 2, batch_id="b")])),
        anywhere.close,
    ):
        with pytest.raises(LedgerFull, match="make room"):
            refused()
    right = [attempt(each) for each in range(number + 2)] + [attempt(number + 2, batch_id="b")]
    for run in (None, anywhere.run):
        assert_frame_equal(anywhere.attempts(run=run), expected(right, anywhere.run))
    assert_frame_equal(anywhere.replies(keys(range(number + 3))), expected(right, anywhere.run))
    assert anywhere.answered(keys(range(number + 4))).sum() == number + 3
    limit(anywhere, 100_000)
    anywhere.sync()
    assert anywhere.claim([key(5_000)]) == [key(5_000)]
    anywhere.close()
    assert_frame_equal(anywhere.attempts(), expected(right, anywhere.run))


def test_an_intent_that_does_not_fit(path):
    """It is refused and leaves its keys with the run; given room it is taken."""
    with closing(Store(path)) as store:
        store.claim(some(0, 2_000))
        limit(store, store._connection.execute("PRAGMA page_count").fetchone()[0])
        for number in range(1_000):
            try:
                store.intend(batch(number), [key(number)])
            except LedgerFull:
                break
        assert 0 < number < 999
        limit(store, 100_000)
        assert [each.nonce for each in store.batches()] == [batch(each).nonce for each in range(number)]
        assert store.claim(some(0, 2_000)) == some(number, 2_000)
        store.intend(batch(number), [key(number)])
        assert store.held(batch(number).nonce) == [key(number)]


def test_a_file_that_may_not_grow(path):
    """A real write error of the system, in the middle of a group, keeps the groups before it."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for number in range(10**6):
    try:
        store.record(t.attempt(number), final=True)
        if number % 10 == 9:
            store.sync()
            confirmed = number + 1
    except LedgerFull:
        break
print(confirmed, number + 1, store.attempts().height, flush=True)
os._exit(0)
"""
    confirmed, recorded, kept = map(int, output(code, path))
    assert kept == recorded > confirmed >= 50
    with closing(Store(path)) as store:
        assert confirmed <= store.attempts().height <= recorded


@contextmanager
def powerless():
    """Become nobody where this runs as root, for whom no file is read-only."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_no_right_to_write(filled):
    """A file or folder one may not write to is refused with that reason."""
    for folder in filled.parents[:3]:
        folder.chmod(0o755)
    filled.chmod(0o444)
    try:
        for mode, path in ((0o777, filled), (0o555, filled), (0o555, filled.with_name("new.ledger"))):
            filled.parent.chmod(mode)
            with powerless(), pytest.raises(LedgerFull, match="right to write"):
                cs.Ledger(path)
    finally:
        filled.parent.chmod(0o755)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_taken_away(path, replaced):
    """A run whose file is moved under it says so, shows all it had, and goes on once it is back."""
    with closing(Store(path)) as store:
        store.record(attempt(1), final=True)
        store.sync()
        path.rename(path.with_name("aside"))
        if replaced:
            path.write_text("another")
        with pytest.raises(LedgerError, match="moved or deleted"):
            store.sync()
        with pytest.raises(LedgerError, match="moved or deleted"):
            store.record(attempt(3), final=True)
        assert_frame_equal(store.attempts(), expected([attempt(1), attempt(3)], store.run))
        path.with_name("aside").replace(path)
        store.sync()
    with closing(Store(path)) as store:
        assert store.answered(keys([1, 3])).all()


def test_a_file_that_is_gone(path):
    """A closed ledger whose file was deleted says so, and what that means; it makes no new one."""
    store = Store(path)
    store.close()
    path.unlink()
    with pytest.raises(LedgerError, match=r"is gone.*Put it back"):
        store.attempts()
    assert not path.exists()


def test_a_lock_held_by_another_program(monkeypatch, path):
    """A lock that never ends is named, and what could not be written follows once it does."""
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with closing(Store(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.record(attempt(1), final=True)
        with pytest.raises(LedgerError, match="keeps it locked"):
            store.sync()
        assert store.attempts().height == 1
        other.execute("ROLLBACK")
        store.sync()
    with closing(Store(path)) as store:
        assert store.attempts().height == 1


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (fcntl, "lockf", errno.ENOLCK),
        (fcntl, "lockf", errno.EOPNOTSUPP),
        (fcntl, "lockf", errno.EIO),
        (mmap, "mmap", errno.ENODEV),
    ],
)
def test_a_file_system_without_locks(module, name, number, path, monkeypatch):
    """A drive that cannot lock files, or share memory, is named before anything is sent, and left clean."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, fail)
    with simulator() as api:
        with pytest.raises(cs.RunStopped, match="file system cannot hold a ledger") as caught:
            finished(a_plan(reviews(2)), api.client(), ledger=path)
        assert api.stats["calls"] == 0
    words = str(caught.value)
    assert all(
        word in words for word in (str(path), os.strerror(number), "local disk", "a.ledger'", "Nothing")
    )
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["SQLITE_IOERR_LOCK", "SQLITE_IOERR_SHMMAP", "SQLITE_PROTOCOL"])
def test_locks_that_fail_later(name, path):
    """What SQLite itself says of locks has the same words."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = name
    with pytest.raises(LedgerError, match="local disk"), store_module.explained(path):
        raise error
