"""Whether the process that claimed something may still be at work.

A process is its id and the moment it began, because ids are used again. Where that cannot be seen (another
container or computer, Windows) the last sign of life decides: by the clock of the boot where the two share
one, as that neither jumps nor counts sleep, else by the time of day.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple

VOID_SECONDS = 30.0


class Presence(NamedTuple):
    """One process at one moment: where it lives and its last sign of life."""

    boot: str  # one start of one kernel
    space: str  # where a process id means one process
    pid: int
    born: str | None
    beat_at: float  # seconds since 1970
    beat_uptime: float  # seconds of the boot's clock

    @classmethod
    def here(cls) -> Presence:
        """Return this process, now."""
        return cls(*_place(), os.getpid(), _born(os.getpid()), time.time(), time.monotonic())

    def may_live(self, here: Presence) -> bool:
        """Return False where it is certain, or after 30 s without a sign taken for certain, that it ended."""
        if (self.boot, self.space) == (here.boot, here.space) and self.born is not None:
            born = _born(self.pid)
            if born is not None:
                return born == self.born
        if self.boot == here.boot:
            return abs(here.beat_uptime - self.beat_uptime) < VOID_SECONDS
        return abs(here.beat_at - self.beat_at) < VOID_SECONDS


@cache
def _place() -> tuple[str, str]:
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    return f"{uuid.getnode():x}", ""


def _born(pid: int) -> str | None:
    """Return when a process of this computer began, "" if it has ended, None where that cannot be told."""
    if sys.platform == "win32":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # it is there, and another user's
    try:
        if sys.platform == "linux":
            # After the name in brackets, which may hold anything: the state, then numbers. Source: proc(5).
            facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            state, *numbers = facts.rpartition(")")[2].split()
            return "" if state in {"Z", "X"} else numbers[18]
        command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
        environment = {"LC_ALL": "C", "TZ": "UTC"}
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return None
    state, _, started = shown.stdout.partition(" ")
    return "" if state.startswith("Z") else started.strip()
