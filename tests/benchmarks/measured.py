"""What a process has used: for benchmarks that print ratios."""

import resource
import time
from pathlib import Path


def used():
    """CPU seconds so far, kernel time and all threads included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def megabytes(what):
    """Resident memory now (VmRSS) or at its highest (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{what}:")[1].split()[0]) / 1_024


def measured(work):
    """Return what `work` gives, its CPU and wall seconds, and the most memory above what there was, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest so far is forgotten
    memory, cpu, start = megabytes("VmRSS"), used(), time.perf_counter()
    found = work()
    return found, used() - cpu, time.perf_counter() - start, megabytes("VmHWM") - memory
