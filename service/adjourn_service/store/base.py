"""The contract of a store.

A store changes only through `apply`: a batch of operations, all of which become durable in one commit before `apply`
returns. Operations take effect in the order given, so a create may be leased in the same batch. An operation that is
refused (`ServiceError` as its result) changes nothing and does not disturb the others. When `apply` raises, nothing of
the batch was changed, or, where a database's answer was lost, a repeat is safe: creates are idempotent by uid,
settlements by lease.

`apply` and the reads may be called from different threads, each from one thread at a time. `now` is the moment that
the operations see, in microseconds; None means the store's own clock.

What every store keeps to, beyond what each operation says:

- A task is leased by at most one live lease. A lease id is never used twice, also not over restarts.
- Order of leasing within a queue: higher priority, then earlier due moment, then earlier creation.
- An attempt counts when its lease is settled as RETRY, FAILED, CRASHED or SUCCEEDED, or expires; not when it is
  released, reconciled away, or taken back by cancel. The counted attempts that did not succeed are the task's history,
  of which the last MAX_HISTORY are kept.
- While a task is leased for the first time, its first attempt began with that lease; what is stored of it is stored by
  the end of an attempt that counts.
- A uid is remembered for at least the idempotency window after its own time, whether or not its task still exists. A
  create whose uid's time is further than the window from `now` is refused (RequestIdOutOfWindow), so that what is
  remembered can be dropped by age.
- The cost of an operation does not grow with the number of tasks stored.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from adjourn_service.errors import ServiceError
from adjourn_service.model import (
    LeasedTask,
    NewTask,
    Queue,
    QueuePolicy,
    QueueStats,
    Settlement,
    TaskError,
    TaskFilter,
    TaskPage,
    TaskRecord,
    TaskState,
)

MAX_HISTORY: Final = 20
"""Attempts kept with a task: enough to see a pattern, little enough for a row that retries for ever."""

CHORE_LIMIT: Final = 1000
"""Tasks that one step of maintenance or of a purge may move, so that it never holds up a commit for long."""

LEASE_EXPIRED: Final = TaskError(
    "lease expired", "the lease ended without being settled or renewed: its worker died or was cut off"
)
"""What the history of a task says of an attempt whose lease expired."""


class Create(NamedTuple):
    """Create tasks. Result: `Refusals`, by index. Taken: QueueNotFound, TaskExists, TaskNameTombstoned,
    RequestIdOutOfWindow. A uid that is remembered is no refusal and changes nothing."""

    tasks: Sequence[NewTask]


class Lease(NamedTuple):
    """Lease up to `limit` ready tasks. Result: `Leased`.

    `queues` are served in turn, starting from another one each time; None means all that have ready tasks; unknown ones
    are passed over.
    A queue that is paused or at a limit gives nothing, or less. With `tag` or `key`, of which one at most is
    given, only tasks that have it."""

    queues: tuple[str, ...] | None
    limit: int
    worker_id: str
    duration_us: int | None = None
    tag: str = ""
    key: str = ""


class Settle(NamedTuple):
    """End leases. Result: `Lost`. `succeeded` are leases that succeeded without a result to keep.

    SUCCEEDED removes the task, or keeps it with its result for its retention. RETRY and CRASHED make it due after
    its back-off, or a dead letter if its policy says stop. FAILED makes it a dead letter. RELEASED puts it back in
    its place. A dead letter is kept for its queue's dead_letter_retention."""

    succeeded: Sequence[str] = ()
    others: Sequence[Settlement] = ()


class Renew(NamedTuple):
    """Let leases end `duration_us` (None: their queue's lease_duration) from now. Result: `Lost`."""

    lease_ids: Sequence[str]
    duration_us: int | None = None


class Reconcile(NamedTuple):
    """Release the leases of this worker that it does not hold. Result: `Lost`: those in `held` that it has no right to.

    A push that broke off leaves leases of which the worker knows nothing; they are released when it comes back."""

    worker_id: str
    held: Sequence[str]


class Resume(NamedTuple):
    """Let no lease end before its queue's lease_duration from now. Result: None.

    For the start of a service: leases could not be renewed while it was away, which was not their workers' fault."""


class Cancel(NamedTuple):
    """End a task that has not ended. Result: `TaskRecord`. Refused: TaskNotFound, TaskStateRefused."""

    queue: str
    task: str


class Delete(NamedTuple):
    """Remove a task in any state. Result: None. Refused: TaskNotFound."""

    queue: str
    task: str


class Run(NamedTuple):
    """Make a scheduled task ready; a ready one stays so. Result: `TaskRecord`. Refused: TaskNotFound,
    TaskStateRefused."""

    queue: str
    task: str


class Retry(NamedTuple):
    """Make a dead or cancelled task ready with no attempts counted; its history stays. Result: `TaskRecord`.
    Refused: TaskNotFound, TaskStateRefused."""

    queue: str
    task: str


class CreateQueue(NamedTuple):
    """Result: `Queue`. Refused: QueueExists."""

    queue: str
    policy: QueuePolicy


class UpdateQueue(NamedTuple):
    """Replace a queue's policy. Result: `Queue`. Refused: QueueNotFound."""

    queue: str
    policy: QueuePolicy


class PauseQueue(NamedTuple):
    """Pause or resume. Result: `Queue`. Refused: QueueNotFound."""

    queue: str
    paused: bool


class DeleteQueue(NamedTuple):
    """Remove an empty queue and what is remembered of its names. Result: None. Refused: QueueNotFound, QueueNotEmpty,
    QueueProtected."""

    queue: str


class Purge(NamedTuple):
    """Remove up to CHORE_LIMIT tasks of the queue, the oldest first, that were created at or before `created_until_at`
    (None: any). Result: `Purged`, which may need one more step to say that it is done. Refused: QueueNotFound."""

    queue: str
    created_until_at: int | None = None


class Maintain(NamedTuple):
    """One bounded step of what time brings: due tasks become ready, expired leases count an attempt, what is past its
    retention goes, uids and names past their time are forgotten. Result: None; `Applied.next_chore_at` tells when the
    next step is due, which is at once if there is more to do."""


Operation = (
    Create
    | Lease
    | Settle
    | Renew
    | Reconcile
    | Resume
    | Cancel
    | Delete
    | Run
    | Retry
    | CreateQueue
    | UpdateQueue
    | PauseQueue
    | DeleteQueue
    | Purge
    | Maintain
)

Refusals = dict[int, ServiceError]
Lost = list[str]


class Leased(NamedTuple):
    """What a Lease gave. `more_at` is the moment at which a rate limit lets more tasks go; None: no rate limit was in
    the way."""

    tasks: list[LeasedTask]
    more_at: int | None = None


class Purged(NamedTuple):
    """How many tasks a step of a purge removed, and whether it was the last."""

    removed: int
    done: bool


Result = Refusals | Leased | Lost | TaskRecord | Queue | Purged | ServiceError | None


@dataclass(slots=True)
class Applied:
    """What a batch did."""

    results: list[Result]
    """One for each operation, in order."""
    ready: dict[str, int] = field(default_factory=dict)
    """Tasks that workers could lease now, for each queue that the batch touched; a paused queue has none."""
    ended: dict[bytes, TaskState] = field(default_factory=dict)
    """Those of the watched tasks that ended or were deleted; a deleted one is given as CANCELLED. A kept task that is
    removed ended before, and is not here."""
    revoked: list[tuple[str, str]] = field(default_factory=list)
    """Worker and lease of each task that was cancelled, deleted or purged while it was leased."""
    next_chore_at: int | None = None
    """When Maintain is next due; None: nothing waits."""


class Store(Protocol):
    """Where tasks live. The contract is this module's docstring and those of the operations."""

    def apply(
        self, operations: Sequence[Operation], now: int | None = None, watched: Container[bytes] = frozenset()
    ) -> Applied:
        """Apply a batch in one durable commit.

        Raises: StoreFull, StoreUnavailable."""
        ...

    def get_task(self, queue: str, task: str) -> TaskRecord | None:
        """Return the task with this name, or else with this uid (canonical text), with its history; None if there is
        none."""
        ...

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: int | None = None) -> TaskPage:
        """Return up to `limit` tasks after `cursor`, queue by queue, each in the order of creation, without their
        history's tracebacks. A page may be short of `limit` and have a cursor: what it looks at is bounded."""
        ...

    def get_queue(self, queue: str) -> Queue | None:
        """Return the queue, or None."""
        ...

    def list_queues(self) -> list[Queue]:
        """Return all queues in the order of their ids."""
        ...

    def get_stats(self, queue: str) -> QueueStats | None:
        """Return the counters of a queue, or None if there is no such queue."""
        ...

    def close(self) -> None:
        """Release the store. What was applied stays."""
        ...
