"""Batches in the ledger: an intent survives every end, and what a batch holds nobody else sends."""

from __future__ import annotations

import pytest
from test_ledger import ask, attempt, key, keys

from claudescale.batchfile import Batch
from claudescale.errors import LedgerError
from claudescale.ledger import Ledger


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


@pytest.fixture(params=["file", "memory"])
def anywhere(request, tmp_path):
    with Ledger(tmp_path / "a.ledger" if request.param == "file" else None) as ledger:
        yield ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.ledger"


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
