"""The resources used by a process, for benchmarks that print ratios."""

import resource
import time
from pathlib import Path


def used():
    """Return the CPU seconds so far, kernel time and all threads included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def megabytes(what):
    """Return the resident memory now (VmRSS) or at its highest (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{what}:")[1].split()[0]) / 1_024


def measured(work):
    """Return the result of `work`, its CPU and wall seconds, and its highest additional memory in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the highest so far
    memory, cpu, start = megabytes("VmRSS"), used(), time.perf_counter()
    found = work()
    return found, used() - cpu, time.perf_counter() - start, megabytes("VmHWM") - memory
