"""Batches in the ledger: an intent survives every end, and what a batch holds nobody else sends."""

from __future__ import annotations

import random
import signal
import time
from contextlib import closing

import pytest
from ledger_rows import attempt, batch, keys, sent, some, start

from claudescale.errors import LedgerError
from claudescale.ledger.store import Store


def test_the_life_of_a_batch(anywhere):
    """From the intent to the end: what is noted is read, what it holds is nobody's, what is left is free."""
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


def test_a_killed_process_lets_go(path):
    """After SIGKILL of the process that follows it, a batch is taken over by one living run, only once."""
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
        process.kill()
        process.communicate()
        assert one.claim(some(0, 4)) == some(3, 4)
        assert one.adopt(keys(range(3))) == [batch()]
        assert two.adopt(keys(range(3))) == []
        one.note(sent())
        with pytest.raises(LedgerError, match="does not follow"):
            two.note(sent())
        one.note(sent(state="absent"))
        assert two.claim(some(0, 3)) == some(0, 3)


INTENDER = """
store.claim(t.some(0, 3_000))
print("claimed", flush=True)
for number in range(100):
    keys = t.some(30 * number, 30 * number + 30)
    store.intend(t.batch(number, requests=30), keys)
    store.note(t.sent(number, requests=30))
    store.extend(t.records([t.attempt(0, key=each, batch_id=f"msgbatch_{number}") for each in keys[:20]]))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_kill_at_any_moment_of_a_batch(path):
    """After SIGKILL a batch is there with all its keys or not at all, and what was confirmed is there."""
    process = start(INTENDER, path)
    assert process.stdout.readline() == "claimed\n"
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    confirmed = len(out.split())
    with closing(Store(path)) as store:
        found = store.batches()
        assert confirmed <= len(found) <= confirmed + 1
        assert found[:confirmed] == [sent(number, requests=30) for number in range(confirmed)]
        assert store.claim(some(0, 3_000)) == some(30 * len(found), 3_000)
        assert store.adopt(keys(range(3_000))) == found
        for number, each in enumerate(found):
            recorded = set(store.recorded(each))
            assert recorded in (set(), set(some(30 * number, 30 * number + 20)))
            assert recorded or number == confirmed
            assert recorded | set(store.held(each.nonce)) == set(some(30 * number, 30 * number + 30))
            store.note(each._replace(state="collected"))
        left = store.claim(some(0, 30 * len(found)))
        assert len(left) == 30 * len(found) - store.answered(keys(range(3_000))).sum()
