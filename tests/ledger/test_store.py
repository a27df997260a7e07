"""The store: records are read back exactly, and no two living runs hold the same key."""

from __future__ import annotations

import math
import threading
from contextlib import closing

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_rows import attempt, batch, expected, key, keys, records, sent, some
from polars.testing import assert_frame_equal

from claudescale.errors import LedgerError
from claudescale.ledger import store as store_module
from claudescale.ledger.store import Store


def test_attempts_and_replies(anywhere):
    """Attempts come back exactly and in order; a key's reply is its newest final attempt alone."""
    first, failed = attempt(1), attempt(2, reply=None, error="overloaded_error", status=529)
    again = attempt(2, sent_at=1_764_000_009.0, answering_model="m", speed="fast", web_search_requests=3)
    refused = attempt(3, reply=None, error="invalid_request_error", refusal_category="cyber")
    connection = attempt(4, reply="", status=None, error="connection_error", seconds=1, dollars=0)
    unknown = attempt(5, dollars=math.nan)  # from a model without a price
    everything = [first, failed, again, refused, connection, unknown]
    for each in everything:
        anywhere.record(each, final=each in {first, again, refused})
    asked = pl.Series([key(2), None, key(3), key(4), key(9), key(2)])
    for _ in range(2):  # before and after it is on disk
        assert_frame_equal(anywhere.attempts(), expected(everything, anywhere.run))
        assert_frame_equal(anywhere.attempts(run=anywhere.run), expected(everything, anywhere.run))
        assert anywhere.attempts(run="another").is_empty()
        assert_frame_equal(anywhere.replies(asked), expected([again, refused], anywhere.run))
        assert anywhere.answered(asked).to_list() == [True, False, True, False, False, True]
        anywhere.sync()


def test_a_few_keys_and_many_get_the_same(monkeypatch, path):
    """A key lookup gives the same replies as reading the whole file in blocks."""
    monkeypatch.setattr(store_module, "BLOCK_ROWS", 64)
    rows = [attempt(number % 400, reply=str(number)) for number in range(500)]
    newest = {row.key: row.reply for row in rows}
    with closing(Store(path)) as store:
        store.extend(records(rows))
        for few in (10_000, 0):
            monkeypatch.setattr(store_module, "FEW_KEYS", few)
            assert dict(store.replies(keys(range(400))).select("key", "reply").rows()) == newest
            assert store.answered(keys([1, 400])).to_list() == [True, False]


def test_after_close(anywhere):
    """A closed store can still be read, refuses everything else, and shows even late records."""
    anywhere.record(attempt(1), final=True)
    anywhere.close()
    anywhere.close()
    for refused in (
        lambda: anywhere.claim([key(2)]),
        lambda: anywhere.record(attempt(2), final=True),
        lambda: anywhere.extend(records([attempt(3)])),
    ):
        with pytest.raises(LedgerError, match="open it again"):
            refused()
    assert_frame_equal(anywhere.attempts(), expected([attempt(1), attempt(2), attempt(3)], anywhere.run))
    assert anywhere.answered(keys([1, 2, 4])).to_list() == [True, True, False]


texts = st.none() | st.text(
    st.characters(codec=None) | st.sampled_from("\0\r\n\",\ud83d\ude00\ufeff\\'"), max_size=8
)
whole = st.integers(1 - 2**63, 2**63 - 1)
numbers = st.floats(allow_nan=False)


def mended(text):
    """Return the text with everything that UTF-8 cannot hold replaced."""
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


ROW = dict.fromkeys(("reply", "message", "request_id", "answering_model"), texts)
ROW |= {"status": st.none() | whole, "input_tokens": whole, "web_search_requests": whole}
ROW |= {"seconds": st.floats(0, 1e9), "dollars": numbers, "simulated": st.booleans()}
ROW |= {"sent_at": st.integers(-(2**51), 2**51).map(lambda number: number / 1e6)}


@given(rows=st.lists(st.fixed_dictionaries(ROW), max_size=6), many=st.booleans())
@settings(max_examples=12)
def test_any_value_survives(tmp_path_factory, rows, many):
    """Every text, number and null reads the same at once and later, recorded one by one or as a frame."""
    texts = ("reply", "message", "request_id", "answering_model")
    clean = [attempt(n, **row | {name: mended(row[name]) for name in texts}) for n, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("any") / "?a#b%20.ledger"
    with closing(Store(path)) as store:
        if many:
            store.extend(records(clean))
        else:
            for number, row in enumerate(rows):
                store.record(attempt(number, **row), final=True)
        right = expected(clean, store.run)
        assert_frame_equal(store.attempts(), right, check_exact=True)
    with closing(Store(path)) as again:
        assert_frame_equal(again.attempts(run=store.run), right, check_exact=True)
        assert_frame_equal(again.replies(keys(range(len(rows)))), right, check_exact=True)


def test_what_no_file_can_hold_is_refused_at_once(anywhere):
    """A number beyond 64 bits or a value of the wrong type raises for its caller and spoils no other row."""
    for wrong in ({"input_tokens": 2**63}, {"status": "200"}, {"seconds": math.nan}):
        with pytest.raises((OverflowError, TypeError)):
            anywhere.record(attempt(1, **wrong), final=True)
    anywhere.record(attempt(2), final=True)
    anywhere.sync()
    assert_frame_equal(anywhere.attempts(), expected([attempt(2)], anywhere.run))


def test_runs_of_one_file(path):
    """Runs see each other's answers, each is read by its name, and each key has one owner among them."""
    with closing(Store(path, "one")) as one, closing(Store(path)) as two:
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


def test_a_commit_reaches_the_disk(anywhere):
    """A power cut loses no paid row: a file is flushed at each commit, one in memory has nothing to lose."""
    (synchronous,) = anywhere._connection.execute("PRAGMA synchronous").fetchone()
    assert synchronous == (2 if anywhere.path else 0)


def test_a_temporary_ledger_leaves_nothing(tmp_path, monkeypatch):
    """Without a path no folder shows any file, and reading works after the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    store = Store(None)
    store.extend(records([attempt(number, reply="x" * 1_000) for number in range(5_000)]))
    assert list(tmp_path.iterdir()) == []
    store.close()
    assert store.attempts().height == 5_000


def test_threads_write_while_another_reads(path):
    """Records that threads write at once, singly and in frames, are all kept and keep each thread's order."""

    def record(store, thread):
        for number in range(500):
            store.record(attempt(number, mode=str(thread)), final=True)
        store.extend(records([attempt(number, mode=str(thread)) for number in range(500, 600)]))

    with closing(Store(path)) as store, closing(Store(path)) as reader:
        threads = [threading.Thread(target=record, args=(store, each)) for each in range(3)]
        for thread in threads:
            thread.start()
        seen = 0
        while seen < 3 * 600:
            found = reader.attempts(columns=["mode", "input_tokens"])
            assert found.height >= seen
            seen = found.height
            for part in found.partition_by("mode"):
                assert part["input_tokens"].to_list() == list(range(part.height))
        for thread in threads:
            thread.join()


def test_the_life_of_a_batch(anywhere):
    """From intent to end: notes are read back, its rows stay held, and leftover rows are free."""
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
