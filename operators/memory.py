"""How much memory a stored operator may take."""

from __future__ import annotations

import os
from pathlib import Path

UNKNOWN = 8 * 2**30  # assumed where the system does not tell


def default_budget() -> int:
    """A quarter of the memory that this process may use (physical, or its container's limit), in bytes."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = UNKNOWN
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            memory = min(memory, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return memory // 4
