"""What this process may take: free memory and CPUs, as the machine and every cgroup above the process allow."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> tuple[int, str]:
    """Bytes this process can still take, and what sets the limit: the machine or a cgroup."""
    limits = [(_field("/proc/meminfo", "MemAvailable:") * 1024 or 1 << 62, "free memory of the machine")]
    for folder in _cgroups("memory"):
        for most, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            cap = _read(folder / most)
            if cap.isdigit():
                # pages of files that nobody uses count as used, but go when memory is asked for
                taken = int(_read(folder / used) or 0) - _field(folder / "memory.stat", cache)
                limits.append((max(0, int(cap) - max(0, taken)), "memory limit of the cgroup"))
    return min(limits)


def resident_memory() -> int:
    """Bytes of this process that lie in memory; 0 where the system does not say."""
    return 1024 * _field("/proc/self/status", "VmRSS:")


def cpu_quota() -> float | None:
    """CPUs that the cgroups grant, the least of all above this process; None without a quota."""
    quotas = []
    for folder in _cgroups("cpu"):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _cgroups(controller: str) -> list[Path]:
    """The folders of this process's cgroup and of all above it, for version 2 and version 1."""
    folders = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
    return folders or [CGROUPS, CGROUPS / controller]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _field(path, key: str) -> int:
    """The number behind `key` in a file of lines "key number"; 0 if it is not there."""
    for line in _read(Path(path)).splitlines():
        words = line.split()
        if words and words[0] == key:
            return int(words[1])
    return 0


def affinity() -> list[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
