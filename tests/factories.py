"""Builds what tests need: uids, tasks, queues, and a driver that brings a task of any store into any state."""

from collections.abc import Container, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from adjourn_service import names
from adjourn_service.clock import ManualClock
from adjourn_service.errors import ServiceError
from adjourn_service.model import (
    DEFAULT_QUEUE,
    SECOND_US,
    LeasedTask,
    NewTask,
    Outcome,
    Queue,
    QueuePolicy,
    QueueStats,
    RateLimits,
    RetryPolicy,
    Settlement,
    TaskError,
    TaskFilter,
    TaskRecord,
    TaskState,
)
from adjourn_service.store.base import (
    Applied,
    Cancel,
    Create,
    CreateQueue,
    Delete,
    DeleteQueue,
    Lease,
    Leased,
    Maintain,
    Operation,
    PauseQueue,
    Purge,
    Purged,
    Reconcile,
    Renew,
    Result,
    Retry,
    Run,
    Settle,
    Store,
    UpdateQueue,
)

T = TypeVar("T")

_serial = count(1)

OOPS = TaskError("ValueError", "oops", "Traceback (most recent call last):\n  ...\nValueError: oops")


def make_uid(at_us: int, serial: int | None = None) -> bytes:
    """Return a UUIDv7 of this moment; with the same `serial` the same one, else a new one each time."""
    rest = (next(_serial) if serial is None else serial).to_bytes(10, "big")
    return (
        (at_us // 1000).to_bytes(6, "big") + bytes([0x70 | rest[0] & 0x0F, rest[1], 0x80 | rest[2] & 0x3F]) + rest[3:]
    )


def quick_retry(**fields: Any) -> RetryPolicy:
    """Return a policy that waits nothing between attempts, unless the fields say otherwise."""
    return replace(RetryPolicy(min_backoff_us=0), **fields)


def policy(**fields: Any) -> QueuePolicy:
    """Return a queue policy; the fields of RateLimits and of RetryPolicy may be given beside its own."""
    rate_fields = {name: fields.pop(name) for name in RateLimits.__slots__ if name in fields}
    retry_fields = {name: fields.pop(name) for name in RetryPolicy.__slots__ if name in fields}
    return QueuePolicy(
        retry=fields.pop("retry", RetryPolicy(**retry_fields)), rate_limits=RateLimits(**rate_fields), **fields
    )


class StoreDriver:
    """A store and its clock, in verbs of one operation each. A refusal is raised."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.applied = Applied([])
        """What the last batch did."""

    @property
    def now(self) -> int:
        return self.clock.now()

    def advance(self, *, seconds: float = 0, us: int = 0) -> None:
        self.clock.advance(round(seconds * SECOND_US) + us)

    def apply(self, *operations: Operation, watched: Container[bytes] = frozenset()) -> list[Result]:
        self.applied = self.store.apply(operations, watched=watched)
        assert len(self.applied.results) == len(operations)
        return self.applied.results

    def do(self, operation: Operation, wanted: type[T], watched: Container[bytes] = frozenset()) -> T:
        (result,) = self.apply(operation, watched=watched)
        if isinstance(result, ServiceError):
            raise result
        assert isinstance(result, wanted)
        return result

    # --- tasks

    def new(self, queue: str = DEFAULT_QUEUE, **fields: Any) -> NewTask:
        """Return a task that is not created yet."""
        fields.setdefault("uid", make_uid(self.now))
        fields.setdefault("body", b"body")
        return NewTask(queue=queue, **fields)

    def create(self, queue: str = DEFAULT_QUEUE, **fields: Any) -> NewTask:
        task = self.new(queue, **fields)
        self.create_all(task)
        return task

    def create_all(self, *tasks: NewTask) -> None:
        refusals = self.do(Create(tasks), dict)
        for refusal in refusals.values():
            raise refusal

    def create_many(self, number: int, queue: str = DEFAULT_QUEUE, **fields: Any) -> list[NewTask]:
        tasks = [self.new(queue, **fields) for _ in range(number)]
        self.create_all(*tasks)
        return tasks

    def cancel(self, task: NewTask, watched: Container[bytes] = frozenset()) -> TaskRecord:
        return self.do(Cancel(task.queue, task_id(task)), TaskRecord, watched)

    def delete(self, task: NewTask, watched: Container[bytes] = frozenset()) -> None:
        self.do(Delete(task.queue, task_id(task)), type(None), watched)

    def run(self, task: NewTask) -> TaskRecord:
        return self.do(Run(task.queue, task_id(task)), TaskRecord)

    def retry(self, task: NewTask) -> TaskRecord:
        return self.do(Retry(task.queue, task_id(task)), TaskRecord)

    # --- leases

    def offer(self, limit: int = 1000, queues: Sequence[str] | None = None, **fields: Any) -> Leased:
        """Lease, and return the whole answer."""
        fields.setdefault("worker_id", "worker-1")
        return self.do(Lease(None if queues is None else tuple(queues), limit, **fields), Leased)

    def lease(self, limit: int = 1000, queues: Sequence[str] | None = None, **fields: Any) -> list[LeasedTask]:
        return self.offer(limit, queues, **fields).tasks

    def lease_one(self, queue: str = DEFAULT_QUEUE, **fields: Any) -> LeasedTask:
        (leased,) = self.lease(1, [queue], **fields)
        return leased

    def settle(self, leased: LeasedTask | str, outcome: Outcome, **fields: Any) -> list[str]:
        """End one lease; returns it if it was lost."""
        lease_id = leased if isinstance(leased, str) else leased.lease_id
        watched = fields.pop("watched", frozenset())
        return self.do(Settle(others=[Settlement(lease_id, outcome, **fields)]), list, watched)

    def succeed(self, *leased: LeasedTask) -> list[str]:
        return self.do(Settle([one.lease_id for one in leased]), list)

    def fail(self, leased: LeasedTask, **fields: Any) -> None:
        """End a lease as RETRY."""
        fields.setdefault("error", OOPS)
        assert self.settle(leased, Outcome.RETRY, **fields) == []

    def renew(self, *leased: LeasedTask, duration_us: int | None = None) -> list[str]:
        return self.do(Renew([one.lease_id for one in leased], duration_us), list)

    def reconcile(self, *held: LeasedTask, worker_id: str = "worker-1") -> list[str]:
        return self.do(Reconcile(worker_id, [one.lease_id for one in held]), list)

    # --- queues and time

    def create_queue(self, queue: str = "q", **fields: Any) -> Queue:
        return self.do(CreateQueue(queue, policy(**fields)), Queue)

    def update_queue(self, queue: str = DEFAULT_QUEUE, **fields: Any) -> Queue:
        return self.do(UpdateQueue(queue, policy(**fields)), Queue)

    def pause(self, queue: str = DEFAULT_QUEUE) -> Queue:
        return self.do(PauseQueue(queue, True), Queue)

    def resume(self, queue: str = DEFAULT_QUEUE) -> Queue:
        return self.do(PauseQueue(queue, False), Queue)

    def delete_queue(self, queue: str) -> None:
        self.do(DeleteQueue(queue), type(None))

    def purge(self, queue: str = DEFAULT_QUEUE, created_until_at: int | None = None) -> Purged:
        return self.do(Purge(queue, created_until_at), Purged)

    def maintain(self) -> int | None:
        """Take one step of maintenance; returns when the next is due."""
        self.do(Maintain(), type(None))
        return self.applied.next_chore_at

    # --- reads

    def record(self, task: NewTask) -> TaskRecord | None:
        return self.store.get_task(task.queue, names.format_uid(task.uid))

    def must(self, task: NewTask) -> TaskRecord:
        """Return the record of a task that has to be there."""
        record = self.record(task)
        assert record is not None
        return record

    def state(self, task: NewTask) -> TaskState | None:
        """Return the state of a task; None if it is gone."""
        record = self.record(task)
        return None if record is None else record.state

    def stats(self, queue: str = DEFAULT_QUEUE) -> QueueStats:
        stats = self.store.get_stats(queue)
        assert stats is not None
        return stats

    def list(self, limit: int = 1000, **wanted: Any) -> list[TaskRecord]:
        """Return all pages of a list, read `limit` tasks at a time."""
        tasks: list[TaskRecord] = []
        cursor: int | None = None
        while True:
            page, cursor = self.store.list_tasks(TaskFilter(**wanted), limit, cursor)
            assert len(page) <= limit
            tasks += page
            if cursor is None:
                return tasks

    # --- a task in any state

    def task_in(self, state: TaskState, queue: str = DEFAULT_QUEUE, **fields: Any) -> NewTask:
        """Create a task and bring it into a state. The queue must hold no other ready task."""
        if state is TaskState.SUCCEEDED:
            fields.setdefault("retain_us", 3600 * SECOND_US)
        if state is TaskState.SCHEDULED:
            fields.setdefault("countdown_us", 60 * SECOND_US)
        task = self.create(queue, **fields)
        if state in (TaskState.LEASED, TaskState.SUCCEEDED, TaskState.DEAD):
            leased = self.lease_one(queue)
            assert leased.uid == task.uid
            if state is TaskState.SUCCEEDED:
                self.settle(leased, Outcome.SUCCEEDED, result=b"result")
            elif state is TaskState.DEAD:
                self.settle(leased, Outcome.FAILED, error=OOPS)
        elif state is TaskState.CANCELLED:
            self.cancel(task)
        assert self.state(task) is state
        return task


def task_id(task: NewTask) -> str:
    """Return what stands after `tasks/` in the task's name."""
    return task.name or names.format_uid(task.uid)
