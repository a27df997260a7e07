"""The ledger: what was recorded is there after any end, and no key is held by two living runs."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull
from claudescale.ledger import ledger as ledger_module
from claudescale.ledger import lines, recorder, store
from claudescale.ledger.ledger import ATTEMPTS, Attempt, Ledger

ROOT = Path(__file__).parents[1]


def key(number):
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def keys(numbers):
    return pl.Series("key", [key(number) for number in numbers], pl.String)


def attempt(number, **changes):
    plain = Attempt(
        key=key(number),
        run="",
        mode="live",
        batch_id=None,
        model="claude-haiku-5-5",
        sent_at=1_764_000_000.25 + number,
        seconds=0.1 + number,
        status=200,
        error=None,
        message=None,
        request_id=f"req_{number}",
        stop_reason="end_turn",
        reply=f'{number}: "quoted",\nand é 😀',
        input_tokens=number,
        cache_write_5m_input_tokens=0,
        cache_write_1h_input_tokens=0,
        cache_read_input_tokens=0,
        output_tokens=7,
        thinking_tokens=0,
        dollars=0.1 * number,
        simulated=False,
    )
    return plain._replace(**changes)


def expected(attempts, run):
    rows = [each._replace(run=run, sent_at=datetime.fromtimestamp(each.sent_at, UTC)) for each in attempts]
    return pl.DataFrame(rows, schema=ATTEMPTS, orient="row")


def ask(code, *arguments, **options):
    """Start Python on `code`, which finds everything above as `t` and reads `sys.argv`."""
    start = "import sys, os, time, random\nimport test_ledger as t\n"
    start += "from claudescale.ledger.ledger import Ledger\n"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", start + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def told(code, *arguments):
    """Return what Python says to `code`, once it has ended well."""
    process = ask(code, *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out.split()


# What is recorded is what is read.


def test_attempts_and_replies(anywhere):
    """Attempts come back in order, exactly; a key's reply is its newest final attempt, and only that."""
    first, failed = attempt(1), attempt(2, reply=None, error="overloaded_error", status=529)
    again, refused = (
        attempt(2, sent_at=1_764_000_009.0),
        attempt(3, reply=None, error="invalid_request_error"),
    )
    connection = attempt(4, reply="", status=None, error="connection_error", seconds=1, dollars=0)
    for each, final in [(first, True), (failed, False), (again, True), (refused, True), (connection, False)]:
        anywhere.record(each, final=final)
    everything = [first, failed, again, refused, connection]
    assert_frame_equal(anywhere.attempts(), expected(everything, anywhere.run))
    assert_frame_equal(anywhere.attempts(run=anywhere.run), expected(everything, anywhere.run))
    assert anywhere.attempts(run="another").is_empty()
    asked = pl.Series([key(2), None, key(3), key(4), key(5), key(2)])
    assert_frame_equal(anywhere.replies(asked), expected([again, refused], anywhere.run))
    assert anywhere.answered(asked).to_list() == [True, False, True, False, False, True]
    anywhere.sync()
    assert_frame_equal(anywhere.replies(asked), expected([again, refused], anywhere.run))
    assert anywhere.answered(asked).to_list() == [True, False, True, False, False, True]


def test_nothing_recorded(anywhere):
    """An empty ledger answers every question with the right shape."""
    assert anywhere.attempts().schema == anywhere.replies(keys([1])).schema == ATTEMPTS
    assert anywhere.replies(keys([])).is_empty()
    assert anywhere.answered(keys([])).to_list() == []
    assert anywhere.answered(keys([1])).dtype == pl.Boolean
    assert anywhere.claim([]) == []


def test_claims_of_one_run(anywhere):
    """A run may claim what is not answered, again and again, in its own order."""
    anywhere.record(attempt(1), final=True)
    anywhere.record(attempt(2), final=False)
    assert anywhere.claim([key(3), key(1), key(2)]) == [key(3), key(2)]
    anywhere.release([key(3)])
    assert anywhere.claim([key(3), key(2)]) == [key(3), key(2)]


def test_after_close(anywhere):
    """A closed ledger is still read, refuses the rest, and keeps even what came too late in memory."""
    anywhere.record(attempt(1), final=True)
    anywhere.close()
    anywhere.close()
    assert anywhere.attempts().height == anywhere.replies(keys([1])).height == 1
    for refused in (
        anywhere.sync,
        lambda: anywhere.claim([key(2)]),
        lambda: anywhere.record(attempt(2), final=True),
    ):
        with pytest.raises(LedgerError, match="open it again"):
            refused()
    assert anywhere.attempts().height == 2


def test_repr(path):
    """A ledger says where it is, and that one without a file ends with the process."""
    with Ledger(path, run="mine") as ledger:
        assert repr(ledger) == f"<Ledger {str(path)!r}, run mine>"
    assert repr(ledger) == f"<Ledger {str(path)!r}, run mine, closed>"
    assert "in memory" in repr(Ledger(None))


texts = st.none() | st.text(
    st.characters(codec=None) | st.sampled_from("\0\r\n\",\ud83d\ude00\ufeff\\'"), max_size=8
)
whole = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False)


def mend(text):
    """Return the text as UTF-8 can hold it."""
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@given(
    rows=st.lists(
        st.tuples(texts, texts, texts, st.none() | whole, whole, whole, numbers, numbers, st.booleans()),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_survives(tmp_path_factory, rows):
    """Every text, number and null reads the same from memory, from the file and after opening it again."""
    attempts = [
        attempt(
            number, reply=reply, message=message, request_id=request, status=status, input_tokens=first,
            thinking_tokens=second, seconds=seconds, dollars=dollars, simulated=simulated,
        )
        for number, (reply, message, request, status, first, second, seconds, dollars, simulated)
        in enumerate(rows)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("any") / "?a#b%20.ledger"
    with Ledger(path) as ledger:
        for each in attempts:
            ledger.record(each, final=True)
        texts = ("message", "request_id", "reply")
        mended = [each._replace(**{name: mend(getattr(each, name)) for name in texts}) for each in attempts]
        right = expected(mended, ledger.run)
        assert_frame_equal(ledger.attempts(), right, check_exact=True)
    with Ledger(path) as again:
        assert_frame_equal(again.attempts(run=ledger.run), right, check_exact=True)
        assert_frame_equal(again.replies(keys(range(len(rows)))), right, check_exact=True)


clean = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\r\n\",\ufeff\\'"), max_size=6)
small = st.floats(-1e-3, 1e-3) | st.floats() | st.sampled_from([-0.0, 1e-4, 9.999999e-5, 1e16, 1e15, 5e-324])
several = st.lists(
    st.fixed_dictionaries(
        dict.fromkeys(("key", "mode", "model"), clean)
        | dict.fromkeys(
            ("batch_id", "error", "message", "request_id", "stop_reason", "reply"), st.none() | clean
        )
        | dict.fromkeys(("input_tokens", "output_tokens", "thinking_tokens"), whole)
        | dict.fromkeys(("seconds", "dollars"), small)
        | {"status": st.none() | whole, "sent_at": st.integers(-(2**51), 2**51), "simulated": st.booleans()}
    ),
    min_size=1,
    max_size=5,
)


@given(rows=several, run=clean, data=st.data())
@settings(max_examples=200, deadline=None)
def test_many_lines_are_the_lines_of_each(rows, run, data):
    """A frame becomes the very lines that its attempts become one by one, and they read as that frame."""
    attempts = [attempt(0, **row | {"sent_at": row["sent_at"] / 1e6}) for row in rows]
    finals = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    frame = pl.DataFrame(attempts, schema=dict(ATTEMPTS) | {"sent_at": pl.Float64}, orient="row")
    moments = pl.Series("sent_at", [round(each.sent_at * 1e6) for each in attempts], pl.Int64)
    frame = frame.with_columns(moments.cast(ATTEMPTS["sent_at"]), pl.Series("final", finals, pl.Boolean))
    kept = lines.checked(frame, run)
    made = lines.lines(kept)
    pairs = zip(attempts, finals, strict=True)
    assert made == [store.line(each, run, final=final) for each, final in pairs]
    assert_frame_equal(store.frame("\n".join(made).encode()), kept, check_exact=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame.drop("final"),
        lambda frame: frame.with_columns(more=1),
        lambda frame: frame.with_columns(pl.col("status").cast(pl.Int32)),
        lambda frame: frame.select(pl.all().reverse(), pl.lit(1).alias("x")),
        lambda frame: frame.with_columns(key=pl.lit(None, pl.String)),
        lambda frame: frame.with_columns(dollars=pl.lit(None, pl.Float64)),
        lambda frame: frame.with_columns(final=pl.lit(None, pl.Boolean)),
    ],
)
def test_many_that_are_no_attempts(anywhere, spoil):
    """A frame of other columns or types, or with a null where a value is needed, spoils no other row."""
    frame = expected([attempt(1)], "").with_columns(final=True)
    with pytest.raises(TypeError, match=r"ATTEMPTS|nulls in"):
        anywhere.extend(spoil(frame))
    anywhere.extend(frame.with_columns(run=pl.lit(None, pl.String)))
    assert_frame_equal(anywhere.attempts(), expected([attempt(1)], anywhere.run))


@pytest.mark.parametrize(
    "wrong", [{"input_tokens": 2**63}, {"status": "200"}, {"reply": b"x"}, {"sent_at": 1e30}]
)
def test_what_no_file_can_hold_is_refused_at_once(anywhere, wrong):
    """A number beyond 64 bits or a value of the wrong type raises for its caller and spoils no other row."""
    with pytest.raises((OverflowError, TypeError)):
        anywhere.record(attempt(1, **wrong), final=True)
    anywhere.record(attempt(2), final=True)
    anywhere.sync()
    assert_frame_equal(anywhere.attempts(), expected([attempt(2)], anywhere.run))


def test_other_runs(path):
    """Runs of one file see each other's answers, and each is read by its name."""
    with Ledger(path, run="one") as one, Ledger(path) as two:
        one.record(attempt(1), final=True)
        two.record(attempt(2), final=True)
        two.record(attempt(1, reply="newer"), final=True)
        one.sync()
        two.sync()
        for reader in (one, two):
            assert reader.answered(keys([1, 2, 3])).to_list() == [True, True, False]
            assert_frame_equal(reader.attempts(run="one"), expected([attempt(1)], "one"))
            assert reader.attempts(run=two.run).height == 2
            assert reader.attempts().height == 3
            assert reader.claim([key(1), key(2)]) == []
    with Ledger(path, run="one") as later:
        later.record(attempt(3), final=True)
        assert later.attempts(run="one").get_column("key").to_list() == [key(1), key(3)]
        assert later.replies(keys([1])).item(0, "reply") == "newer"


def test_many_at_once(anywhere):
    """A frame of attempts is kept as if recorded one by one, after those before and before those after."""
    rows = [attempt(number, reply=None if number % 2 else f"{number}") for number in range(7)]
    frame = expected(rows[1:6], "whoever").with_columns(final=pl.col("input_tokens") != 3)
    anywhere.record(rows[0], final=True)
    anywhere.extend(frame)
    anywhere.record(rows[6], final=True)
    anywhere.extend(frame.clear())
    right = expected(rows, anywhere.run)
    assert_frame_equal(anywhere.attempts(), right)
    assert anywhere.answered(keys(range(7))).to_list() == [number != 3 for number in range(7)]
    anywhere.close()
    if anywhere.path:
        with Ledger(anywhere.path) as again:
            assert_frame_equal(again.attempts(), right)
            assert again.answered(keys(range(7))).to_list() == [number != 3 for number in range(7)]
    with pytest.raises(LedgerError, match="open it again"):
        anywhere.extend(frame)
    assert anywhere.attempts().height == 12


def test_run_names_sort_by_time(path):
    """The names that ledgers give themselves are unique and in the order of opening."""
    names = [Ledger(None).run for _ in range(50)]
    assert len(set(names)) == 50
    assert [name[:23] for name in names] == sorted(name[:23] for name in names)


def test_replies_longer_than_sqlite_can_join(monkeypatch, path):
    """Replies that together exceed SQLite's longest text are read in smaller parts."""
    with Ledger(path) as ledger:
        for number in range(50):
            ledger.record(attempt(number, reply="x" * 1_000), final=True)
    connect = store._connect

    def limited(path):
        connection = connect(path)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 9_000)
        return connection

    with Ledger(path) as ledger:
        monkeypatch.setattr(store, "_connect", limited)
        assert ledger.replies(keys(range(50))).height == 50


def test_frames_stay_few(monkeypatch, anywhere):
    """Asking after every attempt, as a live chart does, leaves few frames however many attempts there are."""
    monkeypatch.setattr(ledger_module, "FOLD_ROWS", 7)
    for number in range(500):
        anywhere.record(attempt(number), final=False)
        if number % 3:
            assert anywhere.attempts(run=anywhere.run).height == number + 1
    assert len(anywhere._frames) <= 10
    assert_frame_equal(
        anywhere.attempts(), expected([attempt(number) for number in range(500)], anywhere.run)
    )


def test_export(path, tmp_path):
    """The export holds all runs' attempts and is its owner's only, even over an open file."""
    with Ledger(path) as one:
        one.record(attempt(1), final=True)
    with Ledger(path) as two:
        two.record(attempt(2), final=True)
        (tmp_path / "all.parquet").touch(mode=0o644)
        written = two.export(str(tmp_path / "all.parquet"))
        assert_frame_equal(pl.read_parquet(written), two.attempts())
        assert two.attempts().height == 2
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_people_can_read_the_file(path):
    """Any SQLite program gets the attempts with their names, as CSV."""
    with Ledger(path) as ledger:
        ledger.record(attempt(1), final=True)
    with closing(sqlite3.connect(path)) as connection:
        header, line = (line for (line,) in connection.execute("SELECT * FROM csv"))
    assert header == ",".join(store.LINE)
    assert {*header.split(",")} == {*ATTEMPTS, "final"}
    assert line.startswith(f'"{key(1)}","{ledger.run}","live",,')


# Claims.


def test_a_key_has_one_owner(path):
    """What one living run has claimed no other may send, until it gives it back, ends or dies."""
    with Ledger(path) as one, Ledger(path) as two:
        assert one.claim([key(1), key(2)]) == [key(1), key(2)]
        assert two.claim([key(2), key(3)]) == [key(3)]
        one.release([key(2), key(3)])
        assert two.claim([key(1), key(2), key(3)]) == [key(2), key(3)]
        one.close()
        assert two.claim([key(1)]) == [key(1)]


def test_claims_of_a_killed_process_are_free_at_once(path):
    """A process that died holds nothing, though it never said goodbye."""
    process = ask(
        "ledger = Ledger(sys.argv[1]); print(len(ledger.claim([t.key(1)])), flush=True); input()", path
    )
    assert process.stdout.readline() == "1\n"
    with Ledger(path) as ledger:
        assert ledger.claim([key(1)]) == []
        process.kill()
        process.communicate()
        assert ledger.claim([key(1)]) == [key(1)]


def test_sealing_ends_claims(monkeypatch, path):
    """Claims that were answered leave the file as it grows."""
    monkeypatch.setattr(store, "SEAL_ROWS", 10)
    with Ledger(path) as ledger:
        ledger.claim(keys(range(30)).to_list())
        for number in range(25):
            ledger.record(attempt(number), final=True)
            ledger.sync()
        assert ledger._ask(lambda: ledger._connection.execute("SELECT count(*) FROM claims").fetchone()) == (
            10,
        )
        assert ledger.answered(keys(range(30))).sum() == 25


def test_sealing_in_bulk_waits(monkeypatch, path):
    """Many attempts are merged into the answers seldom, at the latest when the run closes, and are known."""
    monkeypatch.setattr(store, "SEAL_ROWS", 1_000)

    def sealed():
        with store.reading(path) as connection:
            return connection.execute("SELECT upto FROM sealed").fetchone()[0]

    with Ledger(path) as ledger:
        seals = set()
        for start in range(0, 26_400, 1_200):
            rows = expected([attempt(number) for number in range(start, start + 1_200)], "")
            ledger.extend(rows.with_columns(final=True))
            seals.add(sealed())
        assert len(seals) == 3
        with Ledger(path) as other:
            assert other.answered(keys(range(26_401))).sum() == 26_400
            assert other.claim(keys([0, 26_399, 26_400]).to_list()) == [key(26_400)]
    assert sealed() == 26_400


def test_heartbeat(monkeypatch, path):
    """The writer gives signs of life once something is claimed, and not before."""
    monkeypatch.setattr(recorder, "BEAT_SECONDS", 0.01)
    with Ledger(path) as ledger:

        def beaten():
            with store.reading(path) as connection:
                return connection.execute("SELECT beat_uptime FROM runs").fetchone()[0]

        first = beaten()
        time.sleep(0.1)
        assert beaten() == first
        ledger.claim([key(1)])
        end = time.monotonic() + 30
        while beaten() == first:
            assert time.monotonic() < end
            time.sleep(0.01)


actions = st.lists(
    st.tuples(
        st.sampled_from(["record", "fail", "claim", "release", "reopen"]),
        st.integers(0, 2),
        st.integers(0, 11),
    ),
    max_size=40,
)


@given(actions=actions)
@settings(max_examples=60, deadline=None)
def test_three_runs_agree_with_a_model(tmp_path_factory, actions):
    """Whatever three runs do in whatever order, answers and claims are those of a dict, sealed or not.

    Where several runs answered a key, a run's own newest reply comes before the others' newest.
    """
    path = tmp_path_factory.mktemp("model") / "a.ledger"
    answers, latest, claims, written = {}, {}, {}, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SEAL_ROWS", 3)
        runs = [Ledger(path) for _ in range(3)]
        for action, who, number in actions:
            some = list(range(number, min(number + 4, 12)))
            if action in {"record", "fail"}:
                written += 1
                runs[who].record(attempt(number, reply=str(written)), final=action == "record")
                runs[who].sync()
                if action == "record":
                    answers[number] = latest[runs[who].run, key(number)] = str(written)
            elif action == "claim":
                free = [each for each in some if each not in answers and claims.get(each, who) == who]
                assert runs[who].claim(keys(some).to_list()) == keys(free).to_list()
                claims |= dict.fromkeys(free, who)
            elif action == "release":
                runs[who].release(keys(some).to_list())
                claims = {each: owner for each, owner in claims.items() if owner != who or each not in some}
            else:
                runs[who].close()
                runs[who] = Ledger(path)
                claims = {each: owner for each, owner in claims.items() if owner != who}
            reader = runs[(who + 1) % 3]
            asked = keys(range(12))
            assert reader.answered(asked).to_list() == [each in answers for each in range(12)]
        for reader in runs:
            own = {each: reply for (run, each), reply in latest.items() if run == reader.run}
            found = dict(reader.replies(asked := keys(range(12))).select("key", "reply").rows())
            assert found == {key(number): reply for number, reply in answers.items()} | own
            assert reader.attempts().height == written
            assert set(reader.replies(asked.head(3)).get_column("key")) == {
                key(number) for number in answers if number < 3
            }
        for reader in runs:
            reader.close()


def test_looking_up_and_reading_all_agree(monkeypatch, path):
    """A few keys, looked up, get the same replies as many, for which the whole file is read."""
    monkeypatch.setattr(store, "LINES_AT_ONCE", 64)
    with Ledger(path) as ledger:
        for number in range(9_000):
            ledger.record(attempt(number % 8_500, reply=str(number)), final=number % 7 > 0)
    with Ledger(path) as ledger:
        everything = ledger.replies(keys(range(8_500)))
        few = keys(range(450, 520))
        with store.reading(path) as connection:
            assert store.found(connection, few.to_list()) is not None
            assert store.found(connection, keys(range(8_500)).to_list()) is None
        assert_frame_equal(ledger.replies(few), everything.filter(pl.col("key").is_in(few.implode())))
        known = ledger.answered(keys(range(9_000)))
        assert known.sum() == everything.height
        assert known.to_list()[450:520] == ledger.answered(few).to_list()


# Ends of all kinds.

RECORDER = """
ledger, ceiling = Ledger(sys.argv[1]), 10**9
for number in range(ceiling):
    ledger.record(t.attempt(number), final=True)
    if number % int(sys.argv[2]) == 0:
        ledger.sync()
        print(number, flush=True)
"""


@pytest.mark.parametrize("every", [1, 7, 500])
def test_kill_at_any_moment(path, every):
    """After SIGKILL all that `sync` confirmed is there, in order, nothing else, and the next run goes on."""
    moments = random.Random(every)
    confirmed = 0
    for round_ in range(3):
        path = path.with_name(f"{round_}.ledger")
        process = ask(RECORDER, path, every)
        assert process.stdout.readline() == "0\n"
        time.sleep(moments.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        last = int(([0] + [int(line) for line in out.splitlines() if line])[-1])
        with Ledger(path) as ledger:
            found = ledger.attempts()
            assert found.height > last
            assert_frame_equal(
                found, expected([attempt(number) for number in range(found.height)], found.item(0, "run"))
            )
            assert ledger.answered(keys(range(found.height))).all()
            assert ledger.claim([key(found.height)]) == [key(found.height)]
        confirmed += last
    assert confirmed > 0


SHARER = """
moment, paid = random.Random(int(sys.argv[2])), 0
with Ledger(sys.argv[1]) as ledger:
    print("ready", flush=True)
    input()
    wanted = [t.key(number) for number in range(300)]
    while open_ := [key for key, known in zip(wanted, ledger.answered(t.pl.Series(wanted))) if not known]:
        mine = ledger.claim(moment.sample(open_, min(15, len(open_))))
        for key in mine:
            ledger.record(t.attempt(0, key=key), final=True)
        ledger.sync()
        paid += len(mine)
        time.sleep(0.002)
    print(paid)
"""


def test_processes_share_the_work(path):
    """Three processes on one file send every key once among them, also when a fourth is killed midway."""
    processes = [ask(SHARER, path, seed) for seed in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    time.sleep(0.05)
    processes[3].kill()
    paid = [process.communicate(timeout=60) for process in processes][:3]
    assert [process.returncode for process in processes] == [0, 0, 0, -signal.SIGKILL], paid
    with Ledger(path) as ledger:
        attempts = ledger.attempts()
        assert ledger.answered(keys(range(300))).all()
    assert attempts.get_column("key").n_unique() == attempts.height == 300
    assert sum(int(out) for out, _ in paid) <= 300
    assert sum(int(out) > 0 for out, _ in paid) >= 2


def test_many_processes_make_one_file(path):
    """Processes that open the same new file at the same moment all get it, whole."""
    code = """
print("ready", flush=True)
input()
with Ledger(sys.argv[1]) as ledger:
    ledger.record(t.attempt(int(sys.argv[2])), final=True)
"""
    processes = [ask(code, path, number) for number in range(6)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    with Ledger(path) as ledger:
        assert ledger.answered(keys(range(6))).all()


def test_leaving_without_close(path):
    """A script that ends without closing leaves everything on the disk and nothing claimed."""
    told(
        "ledger = Ledger(sys.argv[1]); ledger.claim([t.key(2)]); ledger.record(t.attempt(1), final=True)",
        path,
    )
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)


def test_fork(path):
    """A forked child is refused the parent's ledger, may open its own, and leaves the parent's alone."""
    code = """
import warnings; warnings.simplefilter("ignore")
ledger = Ledger(sys.argv[1])
ledger.record(t.attempt(1), final=True); ledger.sync()
if (child := os.fork()) == 0:
    for refused in (ledger.sync, ledger.attempts, lambda: ledger.record(t.attempt(9), final=True)):
        try:
            refused()
        except t.LedgerError:
            print("refused", flush=True)
    ledger.close()
    with Ledger(sys.argv[1]) as own:
        print(len(own.claim([t.key(1), t.key(2)])), flush=True)
    sys.exit()
os.waitpid(child, 0)
ledger.record(t.attempt(3), final=True)
ledger.close()
"""
    assert told(code, path) == ["refused", "refused", "refused", "1"]
    with Ledger(path) as ledger:
        assert ledger.answered(keys([1, 2, 3])).to_list() == [True, False, True]


def test_reading_while_writing(path):
    """Another ledger sees whole groups only, ever more of them, and what it sees is right."""
    with Ledger(path) as writer, Ledger(path) as reader:

        def record():
            for number in range(2_000):
                writer.record(attempt(number), final=True)

        thread = threading.Thread(target=record)
        thread.start()
        seen = 0
        while seen < 2_000:
            found = reader.replies(keys(range(2_000)))
            assert found.height >= seen
            assert found.get_column("input_tokens").to_list() == list(range(found.height))
            seen = found.height
        thread.join()


def test_threads(path):
    """Attempts recorded by many threads at once are all kept, each thread's in its order."""
    with Ledger(path) as ledger:

        def record(thread):
            for number in range(200):
                ledger.record(attempt(number, mode=str(thread)), final=True)

        threads = [threading.Thread(target=record, args=(each,)) for each in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Ledger(path) as ledger:
        for (_,), part in ledger.attempts().group_by(["mode"], maintain_order=True):
            assert part.get_column("input_tokens").to_list() == list(range(200))


def test_many_beside_single_ones(path):
    """Attempts that two threads bring, one by one and in frames, are all kept, each thread's in its order."""
    with Ledger(path) as ledger:

        def record():
            for number in range(2_000):
                ledger.record(attempt(number, mode="single"), final=True)

        thread = threading.Thread(target=record)
        thread.start()
        for start in range(2_000, 8_000, 1_500):
            frame = expected([attempt(number, mode="many") for number in range(start, start + 1_500)], "")
            ledger.extend(frame.with_columns(final=True))
        thread.join()
        held = ledger.attempts()
    with Ledger(path) as again:
        found = again.attempts()
        assert_frame_equal(found, held)
        assert found.filter(mode="single").get_column("input_tokens").to_list() == list(range(2_000))
        assert found.filter(mode="many").get_column("input_tokens").to_list() == list(range(2_000, 8_000))
        assert again.answered(keys(range(8_000))).all()


# Files that are no ledgers any more, or never were.


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """Make a ledger and kill its process, so that its write-ahead log is full: 60 groups of 5 rows."""
    path = tmp_path_factory.mktemp("torn") / "a.ledger"
    code = """
t.recorder.GROUP_SECONDS = 1_000
ledger = Ledger(sys.argv[1])
for number in range(300):
    ledger.record(t.attempt(number), final=True)
    if number % 5 == 4:
        ledger.sync()
os.kill(os.getpid(), 9)
"""
    ask(code, path).communicate(timeout=60)
    return path


def whole_groups(log, at):
    """Count the commits that end before byte `at` of a write-ahead log (sqlite.org/walformat.html)."""
    frames = range(32, len(log) - 4_119, 4_120)
    return sum(start + 4_120 <= at and log[start + 4 : start + 8] != bytes(4) for start in frames)


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_log_keeps_what_was_whole(torn, tmp_path, seed):
    """Cut or overwrite the log anywhere: exactly the groups before the damage are there, nothing else."""
    moment = random.Random(seed)
    path = tmp_path / "a.ledger"
    shutil.copy(torn, path)
    content = bytearray(torn.with_name("a.ledger-wal").read_bytes())
    at = moment.randrange(len(content)) if seed else 16
    groups = whole_groups(content, at) if at >= 32 else 0
    if seed % 2:
        del content[at:]
    else:
        content[at : at + 3_000] = moment.randbytes(3_000)
    path.with_name("a.ledger-wal").write_bytes(content)
    with Ledger(path) as ledger:
        found = ledger.attempts()
        assert found.height == 5 * groups
        right = [attempt(number) for number in range(found.height)]
        assert_frame_equal(found, expected(right, found.item(0, "run") if groups else ""))
        ledger.record(attempt(1_000), final=True)
    with Ledger(path) as ledger:
        assert ledger.attempts().height == 5 * groups + 1


@pytest.fixture
def filled(path, monkeypatch):
    monkeypatch.setattr(recorder, "_OPEN", set())  # a damaged one cannot be closed, as the end would tell
    with Ledger(path) as ledger:
        for number in range(2_000):
            ledger.record(attempt(number), final=True)
    return path


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
def test_damage_is_named_and_says_what_to_type(filled, damage):
    """A ledger overwritten or cut says so when it is opened or read, with the way to save the rest."""
    content = bytearray(filled.read_bytes())
    damage(content)
    filled.write_bytes(content)
    with (
        pytest.raises(DamagedLedger, match=r"(?s)is damaged.*sqlite3 .* \.recover"),
        Ledger(filled) as ledger,
    ):
        ledger.replies(keys(range(2_000)))


def can_recover():
    """Whether there is a sqlite3 program, built with what its own .recover needs."""
    program = shutil.which("sqlite3")
    made = program and subprocess.run(
        [program, ":memory:", "CREATE TABLE a (b)", ".recover"], capture_output=True, text=True, check=False
    )
    return bool(made) and "CREATE TABLE" in made.stdout


def break_page(path):
    """Overwrite one page of attempts; return what the ledger says then."""
    content = bytearray(path.read_bytes())
    at = content.index(b"req_700") // 4_096 * 4_096
    content[at : at + 4_096] = random.Random(3).randbytes(4_096)
    path.write_bytes(content)
    with pytest.raises(DamagedLedger) as caught, Ledger(path) as ledger:
        ledger.replies(keys(range(2_000)))
    return str(caught.value)


@pytest.mark.skipif(not can_recover(), reason="no sqlite3 program that can .recover")
def test_recovery_as_advised(filled):
    """The command in the message makes a ledger of what can still be read."""
    subprocess.run(break_page(filled).splitlines()[-1], shell=True, check=True)
    with Ledger(filled.with_suffix(".recovered")) as ledger:
        assert 1_900 < ledger.replies(keys(range(2_000))).height < 2_000


def test_a_ledger_rebuilt_from_its_rows_is_a_ledger(filled):
    """What .recover writes (tables, rows and the two marks, as SQL) is taken for a ledger again."""
    rebuilt = filled.with_suffix(".recovered")
    with closing(sqlite3.connect(filled)) as old, closing(sqlite3.connect(rebuilt)) as new:
        new.executescript("\n".join(old.iterdump()))
        for mark in ("user_version", "application_id"):
            new.execute(f"PRAGMA {mark} = {old.execute(f'PRAGMA {mark}').fetchone()[0]}")
    with Ledger(rebuilt) as ledger:
        assert ledger.replies(keys(range(2_000))).height == 2_000
        assert ledger.claim([key(700)]) == []


def foreign_text(path):
    path.write_text("key,reply\n" * 40)


def foreign_short(path):
    path.write_bytes(b"x")


def foreign_database(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE theirs (x)")


def foreign_newer(path):
    with Ledger(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def foreign_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    "make", [foreign_text, foreign_short, foreign_database, foreign_newer, foreign_folder]
)
def test_foreign_files_stay_untouched(path, make):
    """What is no ledger is refused, and neither it nor its folder changes by a byte."""
    make(path)

    def seen():
        return {each.name: each.is_file() and each.read_bytes() for each in path.parent.iterdir()}

    before = seen()
    with pytest.raises(ForeignLedger, match=str(path)):
        Ledger(path)
    assert seen() == before


def test_missing_folder_and_empty_file(tmp_path):
    """A missing folder is named with what to type; an empty file becomes the ledger."""
    with pytest.raises(LedgerError, match=r"no folder .*mkdir"):
        Ledger(tmp_path / "no" / "a.ledger")
    (tmp_path / "empty").touch()
    with Ledger(str(tmp_path / "empty")) as ledger:
        ledger.record(attempt(1), final=True)
    with Ledger(tmp_path / "empty") as ledger:
        assert ledger.attempts().height == 1


def test_owner_only(path):
    """The file and its companions can be read by their owner only, whatever the umask."""
    before = os.umask(0)
    try:
        with Ledger(path) as ledger:
            ledger.record(attempt(1), final=True)
            ledger.sync()
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["a.ledger", "a.ledger-wal", "a.ledger-shm"], 0o600)


# A disk that takes no more.


def test_full_disk_loses_nothing(path):
    """On a full disk record, claim and sync say so, memory keeps everything, and room mends it all."""
    with Ledger(path) as ledger:
        ledger.record(attempt(0), final=True)
        ledger.sync()
        pages = ledger._ask(lambda: ledger._connection.execute("PRAGMA max_page_count = 40").fetchone())
        for number in itertools.count(1):
            try:
                ledger.record(attempt(number), final=True)
                ledger.sync()
            except LedgerFull:
                break
        with pytest.raises(LedgerFull):
            ledger.record(attempt(number + 1), final=True)
        with pytest.raises(LedgerFull, match="make room"):
            ledger.claim([key(5_000)])
        with pytest.raises(LedgerFull):
            ledger.close()
        right = [attempt(each) for each in range(number + 2)]
        assert_frame_equal(ledger.attempts(), expected(right, ledger.run))
        assert ledger.answered(keys(range(number + 2))).all()
        assert pages == (40,)
        ledger._connection.execute("PRAGMA max_page_count = 100000")
        ledger.sync()
        assert ledger.claim([key(5_000)]) == [key(5_000)]
    with Ledger(path) as again:
        assert_frame_equal(again.attempts(), expected(right, ledger.run))


def test_full_disk_loses_none_of_many(monkeypatch, path):
    """Of many attempts that do not fit, whole transactions are on the disk, all in memory, in their order."""
    monkeypatch.setattr(recorder, "COMMIT_ROWS", 50)
    right = [attempt(each) for each in range(1_002)]
    with Ledger(path) as ledger:
        ledger.record(right[0], final=True)
        ledger.sync()
        ledger._ask(lambda: ledger._connection.execute("PRAGMA max_page_count = 40").fetchone())
        with pytest.raises(LedgerFull, match="make room"):
            ledger.extend(expected(right[1:1_001], "").with_columns(final=True))
        with pytest.raises(LedgerFull):
            ledger.extend(expected(right[1_001:], "").with_columns(final=True))
        assert_frame_equal(ledger.attempts(), expected(right, ledger.run))
        with Ledger(path) as other:
            written = other.attempts()
            assert written.height % 50 == 1
            assert_frame_equal(written, expected(right[: written.height], ledger.run))
        ledger._connection.execute("PRAGMA max_page_count = 100000")
        ledger.sync()
    with Ledger(path) as again:
        assert_frame_equal(again.attempts(), expected(right, ledger.run))


def test_a_file_that_may_not_grow(path):
    """A real write error of the system, in the middle of a group, keeps the groups before it."""
    code = """
import resource
ledger = Ledger(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
number = 0
try:
    while True:
        ledger.record(t.attempt(number), final=True)
        number += 1
        if number % 10 == 0:
            ledger.sync()
            confirmed = number
except t.LedgerFull:
    print(confirmed, ledger.attempts().height, flush=True)
    os._exit(0)
"""
    confirmed, kept = map(int, told(code, path))
    assert kept > confirmed > 100
    with Ledger(path) as ledger:
        found = ledger.attempts()
        assert found.height >= confirmed
        assert_frame_equal(
            found, expected([attempt(each) for each in range(found.height)], found.item(0, "run"))
        )


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
    filled.parent.chmod(0o555)
    try:
        for path in (filled, filled.with_name("new.ledger")):
            with powerless(), pytest.raises(LedgerFull, match="right to write"):
                Ledger(path)
    finally:
        filled.parent.chmod(0o755)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_taken_away(path, replaced):
    """A ledger whose file is moved under it says so, keeps all in memory, and goes on once it is back."""
    with Ledger(path) as ledger:
        ledger.record(attempt(1), final=True)
        ledger.sync()
        path.rename(path.with_name("aside"))
        if replaced:
            path.write_text("another")
        with pytest.raises(LedgerError, match="moved or deleted"):
            ledger.sync()
        with pytest.raises(LedgerError, match="moved or deleted"):
            ledger.record(attempt(3), final=True)
        assert ledger.attempts(run=ledger.run).height == 2
        path.with_name("aside").replace(path)
        ledger.sync()
    with Ledger(path) as ledger:
        assert ledger.answered(keys([1, 3])).all()


def test_a_lock_held_by_another_program(monkeypatch, path):
    """A lock that never ends is named, and what could not be written follows once it does."""
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    with Ledger(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.record(attempt(1), final=True)
        with pytest.raises(LedgerError, match="keeps it locked"):
            ledger.sync()
        other.execute("ROLLBACK")
        ledger.sync()
    with Ledger(path) as ledger:
        assert ledger.attempts().height == 1
