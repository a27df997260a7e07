"""Batches in the ledger: an intent survives every end, and what a batch holds nobody else sends."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger import ask, attempt, expected, key, keys

from claudescale.errors import LedgerError, LedgerFull
from claudescale.ledger import recorder, store
from claudescale.ledger.batchfile import Batch
from claudescale.ledger.ledger import Ledger


def batch(number=0, **changes):
    plain = Batch(
        nonce=f"{number:012x}",
        api="https://api.anthropic.com",
        model="claude-haiku-5-5",
        requests=3,
        intended_at=1_764_000_000.25 + number,
    )
    return plain._replace(**changes)


def sent(number=0, **changes):
    return batch(number, state="in_progress", batch_id=f"msgbatch_{number}", created_at=1.5)._replace(
        **changes
    )


def some(start, stop):
    return [key(number) for number in range(start, stop)]


def test_the_life_of_a_batch(anywhere):
    """From the intent to the end: what is noted is read, what it holds is nobody's, what is left is free."""
    anywhere.claim(some(0, 5))
    anywhere.intend(batch(), some(0, 3))
    assert anywhere.batches() == anywhere.batches(mine=False) == [batch()]
    assert anywhere.claim(some(0, 5)) == some(3, 5)
    anywhere.release(some(0, 5))
    assert anywhere.claim(some(0, 5)) == some(3, 5)
    anywhere.note(sent())
    ended = sent(state="ended", expires_at=2.5, ended_at=3.5, succeeded=1, errored=2, canceled=3, expired=4)
    anywhere.note(ended)
    assert anywhere.batches() == [ended]
    assert sorted(anywhere.held(batch().nonce)) == sorted(some(0, 3))
    anywhere.record(attempt(0, mode="batch", batch_id="msgbatch_0"), final=True)
    anywhere.record(attempt(1, mode="batch", batch_id="msgbatch_0"), final=False)
    assert sorted(anywhere.held(batch().nonce)) == sorted(some(1, 3))
    anywhere.end_batch(ended._replace(state="collected"))
    assert anywhere.batches() == [ended._replace(state="collected")]
    assert anywhere.held(batch().nonce) == []
    assert anywhere.claim(some(0, 5)) == some(1, 5)
    assert anywhere.adopt(keys(range(5))) == []


def test_what_cannot_be_intended(anywhere):
    """A key that is not claimed, or given twice, or a nonce used before, leaves everything as it was."""
    anywhere.claim(some(0, 3))
    anywhere.intend(batch(), some(0, 1))
    for number, refused in ((1, some(1, 4)), (1, [key(1), key(1)]), (1, some(0, 2)), (0, some(1, 3))):
        with pytest.raises(LedgerError, match=r"not claimed by this run|a fresh one"):
            anywhere.intend(batch(number), refused)
    assert anywhere.batches(mine=False) == [batch()]
    anywhere.intend(batch(1), some(1, 3))
    assert [each.nonce for each in anywhere.batches()] == [batch(0).nonce, batch(1).nonce]


def test_states_have_their_method(anywhere):
    """An end is no note, a note is no end, and neither is there for a batch that this run does not follow."""
    anywhere.claim(some(0, 3))
    anywhere.intend(batch(), some(0, 3))
    for refused in (
        lambda: anywhere.note(sent(state="collected")),
        lambda: anywhere.end_batch(sent(state="ended")),
        lambda: anywhere.intend(batch(1, state="gone"), []),
    ):
        with pytest.raises(LedgerError, match="is none of"):
            refused()
    for refused in (lambda: anywhere.note(sent(7)), lambda: anywhere.end_batch(sent(7, state="absent"))):
        with pytest.raises(LedgerError, match="does not follow"):
            refused()
    assert anywhere.batches() == [batch()]


def test_recorded(anywhere):
    """The keys with a result of one batch are told from those of another batch and of live calls."""
    anywhere.record(attempt(0, batch_id="msgbatch_0"), final=False)
    anywhere.claim(some(0, 3))
    anywhere.intend(batch(), some(0, 3))
    anywhere.record(attempt(1, batch_id="msgbatch_0"), final=True)
    anywhere.record(attempt(1, batch_id="msgbatch_0"), final=True)
    anywhere.record(attempt(2, batch_id="msgbatch_00"), final=True)
    anywhere.record(attempt(2, reply='"msgbatch_0"'), final=True)
    assert set(anywhere.recorded(sent())) == {key(0), key(1)}
    assert anywhere.recorded(batch()).is_empty()
    assert anywhere.recorded(sent(1)).to_list() == []


def test_a_closed_ledger_lets_go(path):
    """A run that ended leaves its open batch to the next run that wants one of its rows, and to no other."""
    with Ledger(path) as one, Ledger(path) as two:
        one.claim(some(0, 6))
        one.intend(batch(0), some(0, 3))
        one.note(sent(0))
        one.intend(batch(1), some(3, 6))
        one.record(attempt(0, mode="batch", batch_id="msgbatch_0"), final=True)
        one.sync()
        assert two.adopt(keys(range(6))) == []
        one.close()
        assert two.claim(some(0, 6)) == []
        assert two.adopt(keys([9])) == []
        assert two.adopt(keys([9, 1])) == [sent(0)]
        assert two.adopt(keys([9, 1])) == []
        assert two.batches() == [sent(0)]
        assert two.batches(mine=False) == [sent(0), batch(1)]
        assert sorted(two.held(batch().nonce)) == sorted(some(1, 3))
        assert two.recorded(sent(0)).to_list() == [key(0)]
        two.end_batch(sent(0, state="collected"))
        assert two.claim(some(0, 6)) == some(1, 3)
        assert one.batches() == [sent(0, state="collected"), batch(1)]


def test_a_killed_process_lets_go(path):
    """After SIGKILL of the process that follows it, a batch is taken over by one living run, only once."""
    code = """
import test_batchfile as b
ledger = Ledger(sys.argv[1])
ledger.claim(b.some(0, 4))
ledger.intend(b.batch(), b.some(0, 3))
print("intended", flush=True)
input()
"""
    process = ask(code, path)
    assert process.stdout.readline() == "intended\n"
    with Ledger(path) as one, Ledger(path) as two:
        assert one.adopt(keys(range(3))) == []
        process.kill()
        process.communicate()
        assert one.claim(some(0, 4)) == some(3, 4)
        assert one.adopt(keys(range(3))) == [batch()]
        assert two.adopt(keys(range(3))) == []
        one.note(sent())
        with pytest.raises(LedgerError, match="does not follow"):
            two.note(sent())
        one.end_batch(sent(state="absent"))
        assert two.claim(some(0, 3)) == some(0, 3)


INTENDER = """
import test_batchfile as b
ledger = Ledger(sys.argv[1])
ledger.claim(b.some(0, 3_000))
print("claimed", flush=True)
for number in range(100):
    keys = b.some(30 * number, 30 * number + 30)
    ledger.intend(b.batch(number, requests=30), keys)
    ledger.note(b.sent(number, requests=30))
    frame = t.expected([t.attempt(0, key=each, batch_id=f"msgbatch_{number}") for each in keys[:20]], "")
    ledger.extend(frame.with_columns(final=True))
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_kill_at_any_moment(path, seed):
    """After SIGKILL a batch is there with all its keys or not at all, and what was confirmed is there."""
    process = ask(INTENDER, path)
    assert process.stdout.readline() == "claimed\n"
    time.sleep(random.Random(seed).random() * 0.3)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    confirmed = len(out.split())
    with Ledger(path) as ledger:
        found = ledger.batches(mine=False)
        assert confirmed <= len(found) <= confirmed + 1
        assert found[:confirmed] == [sent(number, requests=30) for number in range(confirmed)]
        assert ledger.claim(some(0, 3_000)) == some(30 * len(found), 3_000)
        assert ledger.adopt(keys(range(3_000))) == found
        for number, each in enumerate(found):
            recorded = set(ledger.recorded(each))
            assert recorded in (set(), set(some(30 * number, 30 * number + 20)))
            assert recorded or number == confirmed
            assert recorded | set(ledger.held(each.nonce)) == set(some(30 * number, 30 * number + 30))
            ledger.end_batch(each._replace(state="collected"))
        left = ledger.claim(some(0, 30 * len(found)))
        assert len(left) == 30 * len(found) - ledger.answered(keys(range(3_000))).sum()


ADOPTER = """
import test_batchfile as b
with Ledger(sys.argv[1]) as ledger:
    print("ready", flush=True)
    input()
    found = ledger.adopt(t.keys(range(40)))
    print(*(each.nonce for each in found), flush=True)
    input()
"""


def test_processes_share_what_is_left(path):
    """Of three processes that look at the same moment, one takes each batch that a closed run left."""
    with Ledger(path) as ledger:
        ledger.claim(some(0, 40))
        for number in range(4):
            ledger.intend(batch(number), some(10 * number, 10 * number + 10))
    processes = [ask(ADOPTER, path) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [nonce for process in processes for nonce in process.stdout.readline().split()]
    assert sorted(taken) == [batch(number).nonce for number in range(4)]
    for process in processes:
        _, errors = process.communicate("\n", timeout=60)
        assert process.returncode == 0, errors


def elsewhere(path, beat_at):
    """Make all runs of the file those of another computer, with that last sign of life."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET boot = 'elsewhere', beat_at = ?", [beat_at])


def test_signs_of_life(monkeypatch, path):
    """A run that cannot be seen keeps its batch while it gives signs of life, and so does its successor."""
    ledger = Ledger(path)
    ledger.claim(some(0, 3))
    ledger.intend(batch(), some(0, 3))
    monkeypatch.setattr(recorder, "BEAT_SECONDS", 0.01)
    elsewhere(path, time.time())
    with Ledger(path) as other:
        assert other.adopt(keys(range(3))) == []
        elsewhere(path, time.time() - 60)
        with closing(sqlite3.connect(path)) as connection:
            before = connection.execute("SELECT beat_uptime FROM runs WHERE id = 2").fetchone()
            assert other.adopt(keys(range(3))) == [batch()]
            end = time.monotonic() + 30
            while connection.execute("SELECT beat_uptime FROM runs WHERE id = 2").fetchone() == before:
                assert time.monotonic() < end
                time.sleep(0.01)
    ledger.close()


def test_sealing_drops_only_what_is_answered(monkeypatch, path):
    """As the file grows the answered keys leave the batch; the others stay held, and can be taken over."""
    monkeypatch.setattr(store, "SEAL_ROWS", 10)
    with Ledger(path) as ledger:
        ledger.claim(some(0, 40))
        ledger.intend(batch(), some(0, 40))
        for number in range(30):
            ledger.record(attempt(number), final=True)
            ledger.sync()
        with store.reading(path) as connection:
            assert connection.execute("SELECT count(*) FROM claims").fetchone()[0] < 40
        assert sorted(ledger.held(batch().nonce)) == sorted(some(30, 40))
    with Ledger(path) as other:
        assert other.claim(some(0, 40)) == []
        assert other.adopt(keys(range(30, 40))) == [batch()]


def test_full_disk(path):
    """An intent that does not fit is refused and leaves its keys with the run; given room it is taken."""
    with Ledger(path) as ledger:
        ledger.claim(some(0, 2_000))
        pages = ledger._ask(lambda: ledger._connection.execute("PRAGMA page_count").fetchone()[0])
        limit = f"PRAGMA max_page_count = {pages}"
        ledger._ask(lambda: ledger._connection.execute(limit).fetchone())
        for number in range(1_000):
            try:
                ledger.intend(batch(number), [key(number)])
            except LedgerFull:
                break
        assert 0 < number < 999
        assert [each.nonce for each in ledger.batches()] == [batch(each).nonce for each in range(number)]
        assert ledger.claim(some(0, 2_000)) == some(number, 2_000)
        ledger._ask(lambda: ledger._connection.execute("PRAGMA max_page_count = 100000").fetchone())
        ledger.intend(batch(number), [key(number)])
        assert ledger.held(batch(number).nonce) == [key(number)]


def test_after_close(anywhere):
    """A closed ledger still tells of its batches, and refuses to change them."""
    anywhere.claim(some(0, 3))
    anywhere.intend(batch(), some(0, 3))
    anywhere.close()
    assert anywhere.batches() == [batch()]
    assert sorted(anywhere.held(batch().nonce)) == sorted(some(0, 3))
    assert anywhere.recorded(sent()).is_empty()
    for refused in (
        lambda: anywhere.intend(batch(1), []),
        lambda: anywhere.note(sent()),
        lambda: anywhere.end_batch(sent(state="gone")),
        lambda: anywhere.adopt(keys([1])),
    ):
        with pytest.raises(LedgerError, match="open it again"):
            refused()


# What version 1 wrote, as its own code made it: of four claimed keys one was answered and one failed.
VERSION_1 = """
BEGIN;
CREATE TABLE answers (key TEXT PRIMARY KEY, record INTEGER NOT NULL REFERENCES records) WITHOUT ROWID;
CREATE TABLE claims (key TEXT PRIMARY KEY, opening INTEGER NOT NULL REFERENCES runs) WITHOUT ROWID;
INSERT INTO "claims" VALUES('1240a4684403b160e6597a653a88f56c',1);
INSERT INTO "claims" VALUES('4129e2a8044a57ce7635fd6023661cd6',1);
INSERT INTO "claims" VALUES('c3585b60b755fb13e6e65a16d20f1230',1);
INSERT INTO "claims" VALUES('cea3878a334b240469d159ff840b6434',1);
CREATE TABLE records (id INTEGER PRIMARY KEY, opening INTEGER NOT NULL REFERENCES runs,
    final INTEGER NOT NULL, key TEXT NOT NULL, line TEXT NOT NULL);
INSERT INTO "records" VALUES(1,1,1,'1240a4684403b160e6597a653a88f56c',\
'"1240a4684403b160e6597a653a88f56c","old",\
"live",,"claude-haiku-5-5",1764000000250000,0.1,200,,,"req_0","end_turn","0: ""quoted"",
and é 😀",0,0,0,0,7,0,0.0,False,True');
INSERT INTO "records" VALUES(2,1,0,'cea3878a334b240469d159ff840b6434',\
'"cea3878a334b240469d159ff840b6434","old",\
"live",,"claude-haiku-5-5",1764000001250000,1.1,200,,,"req_1","end_turn","1: ""quoted"",
and é 😀",1,0,0,0,7,0,0.1,False,False');
CREATE TABLE runs (id INTEGER PRIMARY KEY, run TEXT NOT NULL, closed INTEGER NOT NULL DEFAULT 0,
    boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT,
    beat_at REAL NOT NULL, beat_uptime REAL NOT NULL);
INSERT INTO "runs" VALUES(1,'old',0,'6fb98132','pid:[1]',22403,'1391156',1.7953969e+09,13912.471403035);
CREATE TABLE sealed (upto INTEGER NOT NULL);
INSERT INTO "sealed" VALUES(0);
CREATE VIEW csv AS SELECT 'key,run,mode,batch_id,model,sent_at,\
seconds,status,error,message,request_id,stop_reason,\
reply,input_tokens,cache_write_5m_input_tokens,cache_write_1h_input_tokens,cache_read_input_tokens,output_tokens,\
thinking_tokens,dollars,simulated,final' AS line UNION ALL SELECT line FROM records;
PRAGMA application_id = 1668047980;
PRAGMA user_version = 1;
COMMIT;
PRAGMA journal_mode = WAL;
"""


def schema(path):
    with closing(sqlite3.connect(path)) as connection:
        named = "SELECT name, replace(sql, '\"', '') FROM sqlite_schema WHERE sql IS NOT NULL"
        return dict(connection.execute(named).fetchall()), connection.execute(
            "PRAGMA user_version"
        ).fetchone()


def test_a_file_of_version_1(path):
    """A file of version 1 keeps its answers and claims, is what a new file is, and takes batches."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
        connection.execute("UPDATE runs SET beat_at = ?", [time.time()])
        connection.commit()
    with Ledger(path) as ledger:
        assert ledger.claim(some(0, 6)) == some(4, 6)
        elsewhere(path, time.time() - 60)
        assert ledger.claim(some(0, 6)) == some(1, 6)
        right = expected([attempt(0), attempt(1)], "old")
        assert ledger.attempts(run="old").equals(right)
        ledger.intend(batch(), some(1, 6))
        assert ledger.batches() == [batch()]
        with Ledger(path.with_name("new.ledger")):
            assert schema(path) == schema(path.with_name("new.ledger"))
    with Ledger(path) as again:
        assert again.adopt(keys([5])) == [batch()]


def test_a_process_of_version_1_beside_this_one(path):
    """What version 1 asks of a file that it has open still means the same: it gets no key of a batch."""
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript(VERSION_1)
        with Ledger(path) as ledger:
            ledger.claim(some(4, 6))
            ledger.intend(batch(), some(4, 6))
            for each in some(0, 7):
                old.execute("INSERT OR IGNORE INTO claims VALUES (?, 1)", [each])
            won = {each for (each,) in old.execute("SELECT key FROM claims WHERE opening = 1")}
            assert won == {*some(0, 4), key(6)}


actions = st.lists(
    st.tuples(
        st.sampled_from(["claim", "intend", "record", "extend", "fail", "end", "adopt", "reopen"]),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(actions=actions)
@settings(max_examples=80, deadline=None)
def test_three_runs_agree_with_a_model(tmp_path_factory, actions):  # noqa: C901, PLR0915  (a branch an action)
    """Whatever three runs do in whatever order, claims, batches and what they hold are those of dicts."""
    path = tmp_path_factory.mktemp("model") / "a.ledger"
    answered, claims, open_, recorded, made = set(), {}, {}, {}, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SEAL_ROWS", 3)
        runs = [Ledger(path) for _ in range(3)]
        names = [0, 1, 2]  # of the openings, in the model
        for action, who, number in actions:
            run, me, few = runs[who], names[who], range(number, min(number + 4, 10))
            mine = [each for each in few if claims.get(each) == me and each not in answered]
            last = max((nonce for nonce, (owner, _) in open_.items() if owner == me), default=None)
            if action == "claim":
                free = [each for each in few if claims.get(each, me) == me and each not in answered]
                assert run.claim(keys(few).to_list()) == keys(free).to_list()
                claims |= dict.fromkeys(free, me)
            elif action == "intend" and mine:
                made += 1
                nonce = f"{made:012x}"
                run.intend(batch(made), keys(mine).to_list())
                open_[nonce] = (me, mine)
                claims |= dict.fromkeys(mine, nonce)
            elif action in {"record", "extend", "fail"} and last and number in open_[last][1]:
                row, final = attempt(number, batch_id=last), action != "fail"
                if action == "extend":
                    run.extend(expected([row], "").with_columns(final=final))
                else:
                    run.record(row, final=final)
                    run.sync()
                recorded.setdefault(last, set()).add(key(number))
                answered |= {number} if final else set()
            elif action == "end" and last:
                run.end_batch(batch(int(last, 16), state="collected"))
                del open_[last]
                claims = {each: owner for each, owner in claims.items() if owner != last}
            elif action == "adopt":
                closed = {nonce for nonce, (owner, _) in open_.items() if owner not in names}
                left = {nonce for nonce in closed if {*open_[nonce][1]} & {*few} - answered}
                found = {each.nonce for each in run.adopt(keys(few))}
                # What only its answered rows make wanted may be taken or not, as those leave in time.
                assert left <= found <= closed
                open_ |= {nonce: (me, open_[nonce][1]) for nonce in found}
            elif action == "reopen":
                run.close()
                runs[who], names[who] = Ledger(path), max(names) + 1
                claims = {each: owner for each, owner in claims.items() if owner != me}
            reader = runs[(who + 1) % 3]
            seen = reader.batches(mine=False)
            assert [each.nonce for each in seen] == [f"{each + 1:012x}" for each in range(made)]
            assert {each.nonce for each in seen if each.state == "intended"} == set(open_)
            for each in seen:
                _, rows = open_.get(each.nonce, (None, []))
                assert set(reader.held(each.nonce)) == {key(row) for row in rows if row not in answered}
                assert set(reader.recorded(each._replace(batch_id=each.nonce))) == recorded.get(
                    each.nonce, set()
                )
        for run in runs:
            run.close()
