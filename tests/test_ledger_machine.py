"""A ledger under any sequence of claims, records, batches and sudden ends: what was confirmed is there."""

import shutil
import tempfile
from pathlib import Path

import polars as pl
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
from test_ledger import attempt, key, keys

from claudescale.ledger import batchfile, recorder, store
from claudescale.ledger.batchfile import Batch
from claudescale.ledger.ledger import Ledger

ROWS = 12
NUMBERS = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5, unique=True)


class Kept(RuleBasedStateMachine):
    """One run at a time on one file; a kill is the file as it is on the disk, opened by the next run."""

    @initialize()
    def begin(self):
        """Open a new file, whose answers are sealed often."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store, "SEAL_ROWS", 3)
        self.patch.setattr(recorder, "GROUP_SECONDS", 3_600.0)  # written when asked for, not by chance
        self.patch.setattr(store, "may_live", lambda them, here: False)
        self.patch.setattr(batchfile, "may_live", lambda them, here: False)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0.ledger"
        self.ledger = Ledger(self.path)
        self.answers, self.lately = {}, {}
        self.claimed, self.open, self.mine = set(), {}, set()
        self.written = self.made = self.kills = 0
        self.records = self.unwritten = 0

    def teardown(self):
        """Close what is open."""
        if hasattr(self, "folder"):
            self.ledger.close()
            self.patch.undo()
            self.folder.cleanup()

    @property
    def held(self):
        """Rows that an open batch holds."""
        return {row for rows in self.open.values() for row in rows}

    @rule(some=NUMBERS)
    def claim(self, some):
        """Claim rows: those that are neither answered nor in a batch. What was recorded before is written."""
        self.sync()
        free = [each for each in some if each not in self.answers and each not in self.held]
        assert self.ledger.claim(keys(some).to_list()) == keys(free).to_list()
        self.claimed |= set(free)

    @rule(some=NUMBERS, final=st.booleans(), many=st.booleans())
    def record(self, some, final, many):
        """Record attempts; they are confirmed by `sync`, or at once where they are many."""
        for number in some:
            self.written += 1
            self.records += 1
            self.unwritten += 1
            self.ledger.record(attempt(number, reply=str(self.written)), final=final)
            if final:
                self.lately[number] = str(self.written)
        if many:
            self.sync()

    @rule()
    def sync(self):
        """Have all that was recorded confirmed."""
        self.ledger.sync()
        self.answers |= self.lately
        self.claimed -= set(self.lately)
        self.lately, self.unwritten = {}, 0

    @precondition(lambda self: self.claimed - set(self.lately))
    @rule()
    def intend(self):
        """Put what is claimed into a batch."""
        rows = sorted(self.claimed - set(self.lately))
        nonce = f"{self.made:012x}"
        self.made += 1
        batch = Batch(nonce, "api", "model", len(rows), 1.0)
        self.ledger.intend(batch, keys(rows).to_list())
        self.ledger.note(batch._replace(state="in_progress", batch_id=f"b{nonce}"))
        self.open[nonce] = rows
        self.mine.add(nonce)
        self.claimed -= set(rows)
        self.sync()

    @precondition(lambda self: self.mine)
    @rule(state=st.sampled_from(["collected", "absent", "gone"]))
    def end(self, state):
        """Close a batch that this run follows: what it left open is free."""
        nonce = min(self.mine)
        batch = next(each for each in self.ledger.batches() if each.nonce == nonce)
        self.ledger.end_batch(batch._replace(state=state))
        self.mine.remove(nonce)
        del self.open[nonce]
        self.sync()

    @rule(some=NUMBERS)
    def adopt(self, some):
        """Take over the batches of killed runs that hold a row which is wanted."""
        self.sync()
        left = {nonce for nonce in self.open if nonce not in self.mine}
        found = {each.nonce for each in self.ledger.adopt(keys(some))}
        wanted = {nonce for nonce in left if set(self.open[nonce]) & set(some) - set(self.answers)}
        assert wanted <= found <= left
        self.mine |= found

    @rule()
    def kill(self):
        """End without a word: the next run has the files as they are on the disk, and nobody else lives."""
        self.kills += 1
        after = Path(self.folder.name) / f"{self.kills}.ledger"
        for suffix in ("", "-wal"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                shutil.copy(part, after.with_name(after.name + suffix))
        self.ledger.close()
        self.path, self.ledger = after, Ledger(after)
        self.records -= self.unwritten
        self.lately, self.claimed, self.mine, self.unwritten = {}, set(), set(), 0

    @rule()
    def reopen(self):
        """Close and open again: everything is confirmed, nothing is claimed."""
        self.ledger.close()
        self.answers |= self.lately
        self.lately, self.claimed, self.mine, self.unwritten = {}, set(), set(), 0
        self.ledger = Ledger(self.path)

    @invariant()
    def holds(self):
        """Answers, batches and the rows in them are those that were confirmed."""
        if not hasattr(self, "folder"):
            return
        asked = keys(range(ROWS))
        known = self.answers | self.lately
        assert self.ledger.answered(asked).to_list() == [each in known for each in range(ROWS)]
        found = dict(self.ledger.replies(asked).select("key", "reply").rows())
        assert found == {key(number): reply for number, reply in known.items()}
        assert self.ledger.attempts().height == self.records
        open_ = {each.nonce for each in self.ledger.batches(mine=False) if each.state == "in_progress"}
        assert open_ == set(self.open)
        for nonce, rows in self.open.items():
            assert set(self.ledger.held(nonce)) == {key(each) for each in rows if each not in known}
        assert isinstance(self.ledger.attempts(), pl.DataFrame)


def test_what_was_confirmed_is_there():
    """Whatever is claimed, recorded and sent, and however suddenly it ends: what was confirmed is there."""
    run_state_machine_as_test(Kept, settings=settings(max_examples=40, stateful_step_count=25))
