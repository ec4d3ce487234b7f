"""What processes use: CPU seconds and resident memory."""

import os
import time
from pathlib import Path

# clock_getcpuclockid(3): bits of the clock id of a process, for the scheduler's own count.
_CPUCLOCK_SCHED = 2


def busy_cores(seconds: float = 1.0) -> float:
    """How many cores the whole machine uses right now."""

    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / seconds


def busy_seconds() -> float:
    """CPU seconds that the whole machine has used so far, those stolen from it included."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found.extend(sorted(children.get(parent, [])))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far, its threads included.

    From the process's CPU clock: nanoseconds, where /proc/PID/stat counts hundredths of a second.
    """
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def resident_mib(pid: int, *, peak: bool = False) -> float:
    """Resident memory of one process: now, or the most it ever was."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    return 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold spaces: state, ppid, …"""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
