"""The nouns of the service, as plain values.

Moments are integer microseconds since the epoch, UTC, by the store's clock, and end in `_at`; spans are integer
microseconds and end in `_us`. Enumerations have the numbers of the wire API, so that they cross it without a table;
a test holds this.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US

DEFAULT_QUEUE = "default"


class TaskState(IntEnum):
    """Where a task stands; see `lifecycle`."""

    SCHEDULED = 1
    READY = 2
    LEASED = 3
    SUCCEEDED = 4
    DEAD = 5
    CANCELLED = 6


class Outcome(IntEnum):
    """How a worker ends a lease."""

    SUCCEEDED = 1
    RETRY = 2
    FAILED = 3
    RELEASED = 4
    CRASHED = 5


class AttemptOutcome(IntEnum):
    """How an attempt that did not succeed ended, as its history says it."""

    RETRY = 1
    FAILED = 2
    CRASHED = 3
    EXPIRED = 4
    CANCELLED = 5


class StopRule(IntEnum):
    """Which limits of a retry policy must be spent for a task to be given up."""

    ANY = 1
    ALL = 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is followed by another. 0 in `max_attempts` and `max_age_us` means no limit.

    The back-off defaults are App Engine's; `max_attempts` is Cloud Tasks' (App Engine retries for ever)."""

    max_attempts: int = 100
    max_age_us: int = 0
    min_backoff_us: int = SECOND_US // 10
    max_backoff_us: int = HOUR_US
    max_doublings: int = 16
    stop: StopRule = StopRule.ANY
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Limits on handing out leases of a queue; None means unlimited."""

    max_leases_per_second: float | None = None
    max_burst_size: int | None = None
    max_concurrent_leases: int | None = None


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What an operator sets on a queue, every default filled in."""

    retry: RetryPolicy = RetryPolicy()
    rate_limits: RateLimits = RateLimits()
    lease_duration_us: int = 30 * SECOND_US
    result_retention_us: int = 0
    dead_letter_retention_us: int = 14 * DAY_US
    tombstone_ttl_us: int = HOUR_US
    task_deadline_us: int | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as stored. `id` is what stands after `queues/`."""

    id: str
    policy: QueuePolicy
    paused: bool
    created_at: int
    updated_at: int


class NewTask(NamedTuple):
    """A task to create: what the store must understand, and the rest as opaque bytes."""

    uid: bytes
    """UUIDv7, 16 bytes, made by the caller: the identity of the create."""
    queue: str
    body: bytes
    """Handed out with every lease as it came; the store never opens it."""
    name: str | None = None
    eta_at: int | None = None
    """Earliest start. None: `countdown_us` from the moment of the create."""
    countdown_us: int = 0
    priority: int = 0
    tag: str = ""
    key: str = ""
    retain_us: int | None = None
    """How long the result is kept; None: as the queue says."""
    retry: RetryPolicy | None = None
    """Replaces the queue's policy; None: as the queue says."""


class LeasedTask(NamedTuple):
    """A task in a worker's hands."""

    lease_id: str
    queue: str
    uid: bytes
    name: str | None
    attempt: int
    duration_us: int
    keep_result: bool
    body: bytes
    task_deadline_us: int | None = None
    """The queue's limit on a run, for a task that brings none."""


class TaskError(NamedTuple):
    """Why an attempt failed."""

    type: str
    message: str = ""
    traceback: str = ""


class Settlement(NamedTuple):
    """The end of one lease. `delay_us` replaces the policy's back-off of a RETRY."""

    lease_id: str
    outcome: Outcome
    result: bytes = b""
    error: TaskError | None = None
    delay_us: int | None = None


class Attempt(NamedTuple):
    """One attempt that did not succeed, as kept with its task."""

    number: int
    worker_id: str
    leased_at: int
    ended_at: int
    outcome: AttemptOutcome
    error: TaskError | None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as stored, with what has become of it."""

    uid: bytes
    queue: str
    name: str | None
    state: TaskState
    priority: int
    tag: str
    key: str
    body: bytes
    created_at: int
    due_at: int
    attempts: int
    first_attempt_at: int | None = None
    worker_id: str = ""
    lease_deadline_at: int | None = None
    ended_at: int | None = None
    expires_at: int | None = None
    result: bytes = b""
    history: tuple[Attempt, ...] = ()


class TaskPage(NamedTuple):
    """A page of a list. `cursor` is opaque, and None on the last page."""

    tasks: list[TaskRecord]
    cursor: int | None


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """What to list; None and "" mean any."""

    queue: str | None = None
    state: TaskState | None = None
    tag: str = ""
    key: str = ""
    created_from_at: int | None = None
    created_until_at: int | None = None


@dataclass(slots=True)
class QueueStats:
    """The counters of a queue. The first five are levels, the rest only grow."""

    scheduled: int = 0
    ready: int = 0
    leased: int = 0
    dead: int = 0
    retained: int = 0
    created_total: int = 0
    succeeded_total: int = 0
    failed_attempts_total: int = 0
    dead_total: int = 0
    next_ready_at: int | None = None
    """Since when the task that is next in order has been ready. Read from the index, not counted."""
