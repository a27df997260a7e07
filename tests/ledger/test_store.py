"""The store: records are read back exactly, no two living runs hold the same key, and no end loses a row."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import polars as pl
import pytest
from ledger_rows import attempt, batch, expected, key, keys, records, sent, some, start
from polars.testing import assert_frame_equal

from claudescale.errors import LedgerError
from claudescale.ledger import records as records_module
from claudescale.ledger import store as store_module
from claudescale.ledger.records import Presence
from claudescale.ledger.store import Store


def test_attempts_and_replies(anywhere, monkeypatch):
    """Attempts come back exactly and in order; a key's reply is its newest final attempt alone.

    It is the same from blocks of the whole file as by its key. What no file can hold spoils no other row.
    """
    first, failed = attempt(1), attempt(2, reply=None, error="overloaded_error", status=529)
    again = attempt(2, sent_at=1_764_000_009.0, answering_model="m", speed="fast", web_search_requests=3)
    refused = attempt(3, reply=None, error="invalid_request_error", refusal_category="cyber")
    connection = attempt(4, reply="", status=None, error="connection_error", seconds=1, dollars=0)
    unknown = attempt(5, dollars=math.nan)  # from a model without a price
    odd = attempt(
        6,
        message="\0m",
        reply="\0\r\n\",😀\ufeff\\'",
        sent_at=-2e9 - 1e-6,
        input_tokens=1 - 2**63,
        dollars=1e-300,
    )
    for each in (first, failed, again, refused, connection, unknown, odd):
        anywhere.record(each, final=each in {first, again, refused, odd})
    anywhere.extend(records([odd]))
    anywhere.record(odd._replace(message="half an emoji: \ud83d"), final=True)
    mended = odd._replace(message="half an emoji: \ufffd")
    for wrong in ({"input_tokens": 2**63}, {"status": "200"}, {"seconds": math.nan}):
        with pytest.raises(TypeError):
            anywhere.record(attempt(1, **wrong), final=True)
    right = expected([first, failed, again, refused, connection, unknown, odd, odd, mended], anywhere.run)
    asked = pl.Series([key(2), None, key(3), key(4), key(9), key(2)])
    monkeypatch.setattr(store_module, "BLOCK_ROWS", 2)
    for few in (10_000, 0):
        monkeypatch.setattr(store_module, "FEW_KEYS", few)
        for run in (None, anywhere.run):
            assert_frame_equal(anywhere.attempts(run=run), right, check_exact=True)
        assert anywhere.attempts(run="another").is_empty()
        assert_frame_equal(anywhere.replies(asked), expected([again, refused], anywhere.run))
        assert anywhere.answered(asked).to_list() == [True, False, True, False, False, True]


def test_runs_of_one_file(path):
    """Runs see each other's answers, each is read by its name, and each key has one owner among them."""
    with closing(Store(path, "one")) as one, closing(Store(path)) as two:
        assert one._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # a power cut loses no row
        assert one.claim([key(9), key(1)]) == [key(9), key(1)]
        assert two.claim([key(1), key(8), key(9)]) == [key(8)]
        one.record(attempt(1), final=True)
        one.sync()
        two.record(attempt(2), final=True)
        two.record(attempt(1, reply="newer"), final=True)
        two.sync()
        for reader in (one, two):
            assert reader.answered(keys([1, 2, 3])).to_list() == [True, True, False]
            assert_frame_equal(reader.attempts(run="one"), expected([attempt(1)], "one"))
            assert reader.attempts(run=two.run).height == 2
            assert reader.attempts().height == 3
            assert reader.claim([key(1), key(2)]) == []
            assert reader.replies(keys([1])).item(0, "reply") == "newer"
        one.record(attempt(9), final=False)
        one.close()
        assert two.claim([key(9)]) == [key(9)]


@contextmanager
def full(store):
    """Keep the file from growing, like a full disk."""
    with store._lock:
        store._connection.execute("PRAGMA max_page_count = 1")
    yield
    with store._lock:
        store._connection.execute("PRAGMA max_page_count = 100000")


def test_a_temporary_ledger_leaves_nothing(tmp_path, monkeypatch):
    """Without a path no folder shows any file, a full disk loses no row, and reading works after the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    store = Store(None)
    store.extend(records([attempt(number, reply="x" * 1_000) for number in range(5_000)]))
    assert list(tmp_path.iterdir()) == []
    with full(store):
        with pytest.raises(LedgerError, match="free disk space"):
            store.extend(records([attempt(5_000, reply="x" * 100_000)]))
        assert store.attempts().height == 5_001
    store.close()
    assert store.attempts().height == 5_001


def test_threads_write_while_another_reads(path):
    """Records that threads write at once, singly and in frames, are all kept and keep each thread's order."""

    def record(mode):
        for number in range(500):
            store.record(attempt(number, mode=mode), final=True)
        store.extend(records([attempt(number, mode=mode) for number in range(500, 600)]))

    with closing(Store(path)) as store, closing(Store(path)) as reader, ThreadPoolExecutor(3) as threads:
        writing, seen = threads.map(record, "abc"), 0
        while seen < 3 * 600:
            found = reader.attempts(columns=["mode", "input_tokens"])
            assert found.height >= seen
            seen = found.height
            for part in found.partition_by("mode"):
                assert part["input_tokens"].to_list() == list(range(part.height))
        assert list(writing) == [None] * 3


def test_the_life_of_a_batch(anywhere):
    """From intent to end: notes are read back, its rows stay held, and leftover rows are free.

    A batch that cannot be collected is forgotten, which frees its rows.
    """
    anywhere.claim(some(0, 5))
    anywhere.intend(batch(), some(0, 3))
    assert anywhere.batches() == anywhere.batches(mine=True) == [batch()]
    assert anywhere.claim(some(0, 5)) == some(3, 5)
    anywhere.note(sent())
    ended = sent(state="ended", expires_at=2.5, ended_at=3.5, succeeded=1, errored=2, canceled=3, expired=4)
    anywhere.note(ended)
    assert anywhere.batches() == [ended]
    assert sorted(anywhere.held(batch().nonce)) == sorted(some(0, 3))
    anywhere.record(attempt(0, batch_id="msgbatch_0"), final=True)
    anywhere.record(attempt(1, batch_id="msgbatch_0"), final=False)
    assert sorted(anywhere.held(batch().nonce)) == sorted(some(1, 3))
    anywhere.note(ended._replace(state="collected"))
    assert anywhere.batches() == [ended._replace(state="collected")]
    assert anywhere.held(batch().nonce) == []
    assert anywhere.claim(some(0, 5)) == some(1, 5)
    assert anywhere.adopt(keys(range(5))) == []
    anywhere.intend(batch(1), some(1, 5))
    anywhere.note(sent(1))
    with pytest.raises(LedgerError, match=r"no open batch 'b'.*msgbatch_1"):
        anywhere.forget("b")
    assert anywhere.forget("msgbatch_1") == 4
    assert anywhere.batches()[1].state == "gone"
    assert anywhere.claim(some(0, 5)) == some(1, 5)


@contextmanager
def locked(store):
    """Hold the file's lock, like another program."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def moved(store):
    """Move the file aside, and back."""
    aside = store.path.rename(store.path.with_name("aside"))
    yield
    aside.replace(store.path)


@contextmanager
def replaced(store):
    """Put another file in its place, and itself back."""
    with moved(store):
        store.path.write_text("another")
        yield


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (full, "free disk space"),
        (locked, "has it locked"),
        (moved, "moved or deleted"),
        (replaced, "moved or deleted"),
    ],
)
def test_what_cannot_be_written_is_kept_until_it_can(path, monkeypatch, trouble, words):
    """Every write says so, every query still sees all rows, and they are on disk once the cause is gone.

    After the end the store can be read, refuses everything else, and shows even late records.
    """
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    rows = [attempt(0), attempt(1, reply="x" * 100_000), attempt(2, batch_id="b"), attempt(3)]
    late = attempt(4)
    with closing(Store(path)) as store:
        store.record(rows[0], final=True)
        store.claim([key(8)])
        with trouble(store):
            store.record(rows[1], final=True)
            for refused in (
                store.sync,
                lambda: store.extend(records(rows[2:3])),
                lambda: store.record(rows[3], final=True),
                lambda: store.claim([key(9)]),
                lambda: store.intend(batch(), [key(8)]),
                store.close,
            ):
                with pytest.raises(LedgerError, match=words):
                    refused()
            for run in (None, store.run):
                assert_frame_equal(store.attempts(run=run), expected(rows, store.run))
            assert_frame_equal(store.replies(keys(range(5))), expected(rows, store.run))
            assert store.answered(keys(range(5))).sum() == 4
            assert store.batches() == []
        store.intend(batch(), [key(8)])
        assert store.claim([key(8), key(9)]) == [key(9)]
        store.close()
        for refused in (lambda: store.record(late, final=True), lambda: store.claim([key(9)])):
            with pytest.raises(LedgerError, match="open it again"):
                refused()
        assert_frame_equal(store.attempts(), expected([*rows, late], store.run))
    with closing(Store(path)) as again:
        assert_frame_equal(again.attempts(), expected(rows, store.run))


SHARER = """
random.seed(int(sys.argv[2]))
print("ready", flush=True)
input()
wanted = t.keys(range(300))
while open_ := wanted.filter(~store.answered(wanted)).to_list():
    mine = store.claim(random.sample(open_, min(15, len(open_))))
    for key in mine:
        store.record(t.attempt(0, key=key), final=True)
    store.sync()
    time.sleep(0.002)
"""


@pytest.mark.slow
def test_processes_share_the_work(path):
    """Processes on one new file send every key exactly once, even when one of them is killed midway."""
    processes = [start(SHARER, path, seed) for seed in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        print(file=process.stdin, flush=True)
    time.sleep(0.05)
    processes[2].kill()
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL], ended
    with closing(Store(path)) as store:
        attempts = store.attempts()
        assert store.answered(keys(range(300))).all()
    assert attempts["key"].n_unique() == attempts.height == 300


def test_fork_and_leaving_without_close(path):
    """A forked child cannot use its parent's store but may open its own; neither exit leaves a claim."""
    code = """
import warnings; warnings.simplefilter("ignore")
store.record(t.attempt(1), final=True); store.sync()
store.claim([t.key(4)])
if (child := os.fork()) == 0:
    for refused in (store.sync, store.attempts, lambda: store.record(t.attempt(9), final=True)):
        try:
            refused()
        except LedgerError:
            print("refused", flush=True)
    store.close()
    own = Store(Path(sys.argv[1]))
    print(len(own.claim([t.key(1), t.key(2)])), flush=True)
    sys.exit()
os.waitpid(child, 0)
store.record(t.attempt(3), final=True)
"""
    out, errors = start(code, path).communicate(timeout=60)
    assert (out.split(), errors) == (["refused", "refused", "refused", "1"], "")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    with closing(Store(path)) as store:
        assert store.answered(keys([1, 2, 3])).to_list() == [True, False, True]


def test_the_end_of_the_process_says_what_could_not_be_kept(path):
    """If the file cannot be written at exit, standard error says so, and the script still exits normally."""
    process = start("store.record(t.attempt(1), final=True); os.unlink(sys.argv[1])", path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "could not be closed" in errors
    assert not path.exists()


def test_a_killed_process_lets_go(path):
    """After SIGKILL of the process that follows it, exactly one living run takes the batch over."""
    code = """
store.claim(t.some(0, 4))
store.intend(t.batch(), t.some(0, 3))
print("intended", flush=True)
input()
"""
    process = start(code, path)
    assert process.stdout.readline() == "intended\n"
    with closing(Store(path)) as one, closing(Store(path)) as two:
        assert one.adopt(keys(range(3))) == []
        assert two.claim(some(0, 4)) == []
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its end was not noticed
        assert one.claim(some(0, 4)) == some(3, 4)
        process.communicate()
        assert one.adopt(keys(range(3))) == [batch()]
        assert two.adopt(keys(range(3))) == []
        one.note(sent())
        with pytest.raises(LedgerError, match="does not follow"):
            two.note(sent())
        one.note(sent(state="absent"))
        assert two.claim(some(0, 3)) == some(0, 3)


def test_signs_of_life(monkeypatch, path):
    """A run on another computer keeps its claims while it sends heartbeats."""
    monkeypatch.setattr(store_module, "BEAT_SECONDS", 0.01)
    with closing(Store(path)) as far, closing(sqlite3.connect(path, isolation_level=None)) as connection:
        far.claim(some(0, 3))
        connection.execute("UPDATE openings SET boot = 'elsewhere', beat_at = 0")
        while not connection.execute("SELECT beat_at FROM openings").fetchone()[0]:
            time.sleep(0.01)
        with closing(Store(path)) as near:
            assert near.claim(some(0, 3)) == []


HERE = Presence("boot", "space", 100, "77", 5_000.0, 900.0)


@pytest.mark.parametrize(
    ("them", "born", "lives"),
    [
        (HERE, "77", True),
        (HERE, "", False),
        (HERE, "78", False),
        (HERE._replace(beat_uptime=865.0), None, False),
        (HERE._replace(space="container", beat_uptime=875.0, beat_at=9e9), "", True),
        (HERE._replace(boot="other", beat_at=4_975.0, beat_uptime=0.0), "", True),
        (HERE._replace(boot="other", beat_at=4_965.0, beat_uptime=900.0), "77", False),
    ],
)
def test_liveness(monkeypatch, them, born, lives):
    """Id and birth decide where they are visible, the boot's clock on one boot, the time of day elsewhere."""
    monkeypatch.setattr(records_module, "_born", lambda pid: born)
    assert them.may_live(HERE) is lives
