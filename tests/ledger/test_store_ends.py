"""After any kind of exit, confirmed records are there and a dead run's claims are free."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from ledger_rows import batch, keys, output, sent, some, start, together

from claudescale.errors import LedgerError
from claudescale.ledger import records
from claudescale.ledger import store as store_module
from claudescale.ledger.records import Presence
from claudescale.ledger.store import Store

SHARER = """
moment, paid = random.Random(int(sys.argv[2])), 0
print("ready", flush=True)
input()
wanted = t.keys(range(300))
while open_ := wanted.filter(~store.answered(wanted)).to_list():
    mine = store.claim(moment.sample(open_, min(15, len(open_))))
    for key in mine:
        store.record(t.attempt(0, key=key), final=True)
    store.sync()
    paid += len(mine)
    time.sleep(0.002)
print(paid)
"""


@pytest.mark.slow
def test_processes_share_the_work(path):
    """Processes on one new file send every key exactly once, even when one of them is killed midway."""
    processes = [start(SHARER, path, seed) for seed in range(3)]
    together(processes)
    time.sleep(0.05)
    processes[2].kill()
    paid = [process.communicate(timeout=60) for process in processes][:2]
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL], paid
    with closing(Store(path)) as store:
        attempts = store.attempts()
        assert store.answered(keys(range(300))).all()
    assert attempts["key"].n_unique() == attempts.height == 300
    assert sum(int(out) for out, _ in paid) <= 300


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
    assert output(code, path) == ["refused", "refused", "refused", "1"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    with closing(Store(path)) as store:
        assert store.answered(keys([1, 2, 3])).to_list() == [True, False, True]


def elsewhere(path, beat_at):
    """Make all openings of the file those of another computer, with that last heartbeat."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE openings SET boot = 'elsewhere', beat_at = ?", [beat_at])


def test_signs_of_life(monkeypatch, path):
    """A run on another computer keeps its claims while it sends heartbeats, starting with its first claim."""
    monkeypatch.setattr(store_module, "BEAT_SECONDS", 0.01)

    def beat():
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT beat_uptime FROM openings WHERE id = 1").fetchone()[0]

    one = Store(path)
    first = beat()
    time.sleep(0.05)
    assert beat() == first
    one.claim(some(0, 3))
    while beat() == first:
        time.sleep(0.01)
    monkeypatch.setattr(store_module, "BEAT_SECONDS", 3_600)
    time.sleep(0.05)
    with closing(Store(path)) as other:
        elsewhere(path, time.time())
        assert other.claim(some(0, 3)) == []
        elsewhere(path, time.time() - 60)
        assert other.claim(some(0, 3)) == some(0, 3)
    one.close()


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
    monkeypatch.setattr(records, "_born", lambda pid: born)
    assert them.may_live(HERE) is lives
