"""What a running task may know of its run. The worker sets it around every call; it follows the call into asyncio."""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """The task that is being run and the attempt at it."""

    name: str
    """Resource name, `queues/{queue}/tasks/{task}`."""
    queue: str
    """Id of the queue, as in `mail`."""
    attempt: int
    """Number of this attempt, from 1."""
    uid: str = ""
    """The task's UUIDv7: the same in every attempt, so it can serve as an idempotency key."""
    callable: str = ""
    """Dotted name of what is called."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Text that the producer sent along."""
    tag: str = ""
    """Label, or empty."""
    key: str = ""
    """Second label, or empty."""
    lease_id: str = ""
    """Proof of the lease of this attempt, new for every attempt."""


_current: ContextVar[TaskContext | None] = ContextVar("adjourn_task", default=None)


def current_task() -> TaskContext | None:
    """Return the task that is running here, or None outside of one."""
    return _current.get()


def enter_task(context: TaskContext) -> Token[TaskContext | None]:
    """Make `context` the current task. For the worker; give the token to `leave_task` after the call."""
    return _current.set(context)


def leave_task(token: Token[TaskContext | None]) -> None:
    """Put back what was current before `enter_task`."""
    _current.reset(token)
