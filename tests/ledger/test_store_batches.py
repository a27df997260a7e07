"""Batches in the ledger: an intent survives every end, and what a batch holds nobody else sends."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_rows import attempt, batch, key, keys, records, sent, some, start

from claudescale.errors import LedgerError
from claudescale.ledger import store as store_module
from claudescale.ledger.liveness import Presence
from claudescale.ledger.store import Store


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
@pytest.mark.parametrize("seed", range(2))
def test_kill_at_any_moment_of_a_batch(path, seed):
    """After SIGKILL a batch is there with all its keys or not at all, and what was confirmed is there."""
    process = start(INTENDER, path)
    assert process.stdout.readline() == "claimed\n"
    time.sleep(random.Random(seed).random() * 0.3)
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


ROWS = 12
NUMBERS = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5, unique=True)


class Kept(RuleBasedStateMachine):
    """One run at a time on one file; a kill is the file as it is on the disk, opened by the next run."""

    @initialize()
    def begin(self):
        """Open a new file."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store_module, "GROUP_SECONDS", 3_600.0)  # written when asked for, not by chance
        self.patch.setattr(Presence, "may_live", lambda self, here: False)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0.ledger"
        self.store = Store(self.path)
        self.answers, self.claimed, self.open, self.mine = {}, set(), {}, set()
        self.written = self.made = self.kills = 0

    def teardown(self):
        """Close what is open."""
        if hasattr(self, "folder"):
            self.store.close()
            self.patch.undo()
            self.folder.cleanup()

    @rule(some=NUMBERS)
    def claim(self, some):
        """Claim rows: those that are neither answered nor in a batch."""
        held = {row for rows in self.open.values() for row in rows}
        free = [each for each in some if each not in self.answers and each not in held]
        assert self.store.claim(keys(some).to_list()) == keys(free).to_list()
        self.claimed |= set(free)

    @rule(some=NUMBERS, final=st.booleans(), many=st.booleans())
    def record(self, some, final, many):
        """Record attempts, one by one or as a frame."""
        self.written += 1
        rows = [attempt(number, reply=f"{self.written}") for number in some]
        if many:
            self.store.extend(records(rows, final=final))
        else:
            for row in rows:
                self.store.record(row, final=final)
        if final:
            self.answers |= dict.fromkeys(some, f"{self.written}")
            self.claimed -= set(some)

    @precondition(lambda self: self.claimed)
    @rule()
    def intend(self):
        """Put what is claimed into a batch."""
        rows, one = sorted(self.claimed), sent(self.made)
        self.store.intend(batch(self.made), keys(rows).to_list())
        self.store.note(one)
        self.open[one.nonce] = rows
        self.mine.add(one.nonce)
        self.made += 1
        self.claimed = set()

    @precondition(lambda self: self.mine)
    @rule(state=st.sampled_from(["collected", "absent", "gone"]))
    def end(self, state):
        """Close a batch that this run follows: what it left open is free."""
        nonce = min(self.mine)
        self.store.note(sent(int(nonce), state=state))
        self.mine.remove(nonce)
        del self.open[nonce]

    @rule(some=NUMBERS)
    def adopt(self, some):
        """Take over the batches of killed runs that hold a row which is wanted."""
        adopted = {each.nonce for each in self.store.adopt(keys(some))}
        left = {nonce: set(rows) for nonce, rows in self.open.items() if nonce not in self.mine}
        assert adopted == {nonce for nonce, rows in left.items() if rows & set(some)}
        self.mine |= adopted

    @rule(killed=st.booleans())
    def again(self, killed):
        """End, without a word or by `close`: the next run has the files as they are on the disk."""
        after = self.path
        if killed:
            self.kills += 1
            after = Path(self.folder.name) / f"{self.kills}.ledger"
            for part in self.path.parent.glob(f"{self.path.name}*"):
                if not part.name.endswith("-shm"):
                    shutil.copy(part, f"{after}{part.name.removeprefix(self.path.name)}")
        self.store.close()
        self.path, self.store = after, Store(after)
        self.claimed, self.mine = set(), set()

    @invariant()
    def holds(self):
        """Answers, batches and the rows in them are those that were recorded; the question writes them."""
        if not hasattr(self, "folder"):
            return
        asked = keys(range(ROWS))
        assert self.store.answered(asked).to_list() == [each in self.answers for each in range(ROWS)]
        replies = dict(self.store.replies(asked).select("key", "reply").rows())
        assert replies == {key(number): reply for number, reply in self.answers.items()}
        assert {each.nonce for each in self.store.batches() if each.state == "in_progress"} == set(self.open)
        for nonce, rows in self.open.items():
            assert set(self.store.held(nonce)) == {key(each) for each in rows if each not in self.answers}


@pytest.mark.slow
def test_what_was_confirmed_is_there():
    """Whatever is claimed, recorded and sent, and however suddenly it ends: what was confirmed is there."""
    run_state_machine_as_test(Kept, settings=settings(max_examples=15, stateful_step_count=25))
