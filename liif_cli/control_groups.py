"""The control groups (version 2) that this process is in: a container's, a service's, a batch system's job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

OWN, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def own_groups() -> Iterator[Path]:
    """Their folders, from the own one up; nothing on systems without any."""
    try:
        own = next(line for line in OWN.read_text().splitlines() if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):
        return
    group = GROUPS / own.removeprefix("0::/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(GROUPS):
            return
        yield folder


def processors() -> float | None:
    """How many processors' time they may take, as ``docker --cpus`` says it; None without a limit."""
    limits = []
    for folder in own_groups():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                limits.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # the topmost has none
            continue
    return min(limits, default=None)
