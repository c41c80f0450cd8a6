"""How far to look ahead, from how long tasks take. Arithmetic only.

Looking ahead hides two journeys: that of a task from the main process to a child, and that of a lease from the service.
For tasks of a second neither matters and a task is better kept where any worker can have it; for tasks of microseconds
nothing else matters.
"""

from __future__ import annotations

import math
from typing import Final

WINDOW_SECONDS: Final = 0.002
"""Work in one window of a child: some ten times the hand-over, and short enough to be no wait for anyone."""
WINDOW_TASKS_MAX: Final = 64
"""Beyond this a larger batch makes a hand-over no cheaper per task."""
ALONE_SECONDS: Final = 0.02
"""Tasks longer than this are given one at a time: the hand-over is lost in them."""
SUPPLY_SECONDS: Final = 0.025
"""Work to hold for each child, to cover a round trip to the service with its commit, on a slow disk too."""
STALLED_SECONDS: Final = 0.02
"""A child that has been on one task for so long gives up those behind it to others that have not."""
LOOK_SECONDS: Final = 0.1
"""Between looks after such children while none is free: one that is not stuck may have time soon."""
HOARDED_SECONDS: Final = 0.5
"""When every child has been on its task for so long, what waits goes back to the service, for other workers."""

_ASSUMED_SECONDS: Final = 0.01
_MEMORY_TASKS: Final = 16


class Pace:
    """The mean run time of recent tasks. Starts with a guess that asks for little."""

    def __init__(self) -> None:
        self.seconds = _ASSUMED_SECONDS

    def observe(self, tasks: int, busy_seconds: float) -> None:
        """Take into account that `tasks` (1 or more) took `busy_seconds` together."""
        weight = min(0.5, tasks / _MEMORY_TASKS)
        self.seconds += (max(busy_seconds, 0.0) / tasks - self.seconds) * weight


def child_capacity(task_seconds: float) -> int:
    """Return how many tasks a child may have at once, the running one included.

    Two windows of short tasks, so that it has the second at hand when the first is reported; but one long task alone.

    >>> [child_capacity(seconds) for seconds in (0.00002, 0.0001, 0.001, 0.01, 0.1)]
    [128, 40, 4, 2, 1]
    """
    if task_seconds >= ALONE_SECONDS:
        return 1
    return 2 * max(1, min(WINDOW_TASKS_MAX, int(WINDOW_SECONDS / max(task_seconds, 1e-6))))


def supply(task_seconds: float, children: int, prefetch: int) -> int:
    """Return how many unfinished leases, held or asked for, keep `children` busy; at most `prefetch`.

    >>> [supply(seconds, children=2, prefetch=1024) for seconds in (0.00002, 0.001, 0.01, 0.1, 1, 60)]
    [1024, 52, 7, 3, 2, 2]
    """
    if task_seconds >= HOARDED_SECONDS:
        return min(prefetch, children)
    return min(prefetch, children + math.ceil(children * SUPPLY_SECONDS / max(task_seconds, 1e-6)))


def credit_grant(room: int, target: int) -> int:
    """Return how many credits to grant now in a message of their own: all that there is room for, or none yet.

    A quarter of the supply must have been used up, so that messages are few.

    >>> [credit_grant(room, target=100) for room in (0, 24, 25, 60)]
    [0, 0, 25, 60]
    """
    return room if room > 0 and 4 * room >= target else 0


def share(waiting: int, children: int) -> int:
    """Return how many of `waiting` tasks one of `children` should get, so that each gets as many."""
    return math.ceil(waiting / children)
