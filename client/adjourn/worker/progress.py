"""The page that a child shares with its parent, and which outlives it: how many tasks it has started and ended."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final, NamedTuple

STARTED: Final = 0
ENDED: Final = 1

_SIZE = mmap.PAGESIZE


class Progress(NamedTuple):
    """Both counters of a child. At most one task is between them: the one that is running."""

    started: int
    ended: int


class ProgressPage:
    """Two counters in shared memory, written by one process and read by another, whatever becomes of the writer.

    `counters` is the raw memory, for the child's hot loop: `page.counters[STARTED] = n` is one store of eight bytes, so
    a reader never sees half a number.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _SIZE)
        self.counters = memoryview(self._memory).cast("Q")

    @staticmethod
    def allocate() -> int:
        """Return a descriptor of a new page, all zeros, that no path leads to. The caller closes it."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("adjourn-progress")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _SIZE)
        return fd

    def read(self) -> Progress:
        """Return the counters as they stand."""
        return Progress(self.counters[STARTED], self.counters[ENDED])

    def close(self) -> None:
        """Unmap the page."""
        self.counters.release()
        self._memory.close()
