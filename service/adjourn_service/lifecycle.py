"""The states of a task and the moves between them.

SCHEDULED -> READY -> LEASED -> SUCCEEDED | DEAD
LEASED -> READY | SCHEDULED          retry, release, expiry
SCHEDULED | READY | LEASED -> CANCELLED
DEAD | CANCELLED -> READY            by hand
"""

from adjourn_service.model import TaskState

_NEXT: dict[TaskState, frozenset[TaskState]] = {
    TaskState.SCHEDULED: frozenset({TaskState.READY, TaskState.CANCELLED}),
    TaskState.READY: frozenset({TaskState.LEASED, TaskState.CANCELLED}),
    TaskState.LEASED: frozenset(
        {TaskState.READY, TaskState.SCHEDULED, TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED}
    ),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.DEAD: frozenset({TaskState.READY}),
    TaskState.CANCELLED: frozenset({TaskState.READY}),
}

ENDED = frozenset({TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED})


def may_become(state: TaskState, to: TaskState) -> bool:
    """Say whether a task in `state` may move to `to`."""
    return to in _NEXT[state]
