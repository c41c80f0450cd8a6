"""Where the time comes from."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> int:
        """Return microseconds since the epoch, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """Return microseconds since the epoch, UTC."""
        return time.time_ns() // 1000


class ManualClock:
    """A clock that tests move."""

    def __init__(self, at: int = 1_700_000_000_000_000) -> None:
        self._at = at

    def now(self) -> int:
        """Return the moment it was last moved to."""
        return self._at

    def advance(self, us: int) -> None:
        """Move forward, or with a negative number back."""
        self._at += us
