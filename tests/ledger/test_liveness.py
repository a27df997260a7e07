"""Whether a claim's process may still live: never wrong about the living, quick about the dead."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from claudescale.ledger import records
from claudescale.ledger.records import Presence

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
    """Id and birth decide where they can be seen, the boot's clock on one boot, the time of day elsewhere."""
    monkeypatch.setattr(records, "_born", lambda pid: born)
    assert them.may_live(HERE) is lives


def test_this_process_lives_and_an_ended_one_does_not():
    """A process that was killed is dead at once, even while its parent has not taken note of it."""
    here = Presence.here()
    assert here.may_live(here)
    assert not here._replace(born="1").may_live(here)  # an id used again
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    there = here._replace(pid=child.pid, born=records._born(child.pid))
    assert there.born
    assert there.may_live(here)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not there.may_live(here)
    child.communicate()
    assert not there.may_live(here)
