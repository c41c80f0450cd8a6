"""The store of the tests and of `memory:`: plain Python values, gone with the process.

It is the shortest correct reading of the contract in `store.base`, and so the model that the other stores are compared
with. Every operation looks first and changes afterwards, which makes a refusal change nothing. What waits for a moment
or for its turn stands in an `_Order`; nothing else is kept in order, and nothing is ever scanned on the way of a task.
"""

import random
import secrets
import threading
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, NamedTuple, assert_never

from adjourn_service import names
from adjourn_service.clock import Clock, SystemClock
from adjourn_service.errors import (
    QueueExists,
    QueueNotEmpty,
    QueueNotFound,
    QueueProtected,
    RequestIdOutOfWindow,
    ServiceError,
    TaskExists,
    TaskNameTombstoned,
    TaskNotFound,
    TaskStateRefused,
)
from adjourn_service.lifecycle import ENDED, may_become
from adjourn_service.limiter import TokenBucket, next_token_at, refill
from adjourn_service.model import (
    DEFAULT_QUEUE,
    SECOND_US,
    Attempt,
    AttemptOutcome,
    LeasedTask,
    NewTask,
    Outcome,
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
from adjourn_service.retry import backoff_us, gives_up
from adjourn_service.store.base import (
    CHORE_LIMIT,
    LEASE_EXPIRED,
    MAX_HISTORY,
    Applied,
    Cancel,
    Create,
    CreateQueue,
    Delete,
    DeleteQueue,
    Lease,
    Leased,
    Lost,
    Maintain,
    Operation,
    PauseQueue,
    Purge,
    Purged,
    Reconcile,
    Refusals,
    Renew,
    Result,
    Resume,
    Retry,
    Run,
    Settle,
    UpdateQueue,
)

IDEMPOTENCY_WINDOW_US: Final = 600 * SECOND_US

UID_TICK_US: Final = 1000
"""What the time in a UUIDv7 is counted in."""

_SEQS_OF_QUEUE: Final = 1 << 40
"""Numbers set apart for the tasks of each queue, more than a process can give."""

_Key = tuple[int, ...]

_FAILURES: Final = {
    Outcome.RETRY: AttemptOutcome.RETRY,
    Outcome.FAILED: AttemptOutcome.FAILED,
    Outcome.CRASHED: AttemptOutcome.CRASHED,
}


class _Order:
    """Numbers, each with a key, smallest key first and then smallest number.

    A heap whose outdated entries are passed over when they come up, and swept out when they are the most of it."""

    def __init__(self) -> None:
        self._keys: dict[int, _Key] = {}
        self._heap: list[tuple[_Key, int]] = []

    def __bool__(self) -> bool:
        return bool(self._keys)

    def put(self, number: int, key: _Key) -> None:
        """Add the number, or give it another key."""
        self._keys[number] = key
        heappush(self._heap, (key, number))
        if len(self._heap) > 2 * len(self._keys) + 16:
            self._heap = [(key, number) for number, key in self._keys.items()]
            heapify(self._heap)

    def drop(self, number: int) -> None:
        """Remove the number, if it is there."""
        self._keys.pop(number, None)

    def first(self) -> tuple[_Key, int] | None:
        """Return key and number of the first, or None."""
        while self._heap and self._keys.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0] if self._heap else None

    def until(self, key: _Key) -> Iterator[int]:
        """Give the first number again and again, as long as its key is not above `key`: the caller moves it on."""
        while (head := self.first()) is not None and head[0] <= key:
            yield head[1]


class _Label(NamedTuple):
    """What a lease may ask for; "" means any."""

    tag: str
    key: str


_ANY: Final = _Label("", "")


@dataclass(slots=True)
class _HeldLease:
    lease_id: str
    worker_id: str
    leased_at: int
    deadline_at: int


@dataclass(slots=True, eq=False)
class _Task:
    """A task that is live or kept. `seq` is unique, and within the queue in the order of creation."""

    seq: int
    new: NewTask
    queue: "_Queue"
    created_at: int
    due_at: int
    state: TaskState
    attempts: int = 0
    first_attempt_at: int | None = None
    lease: _HeldLease | None = None
    ended_at: int | None = None
    expires_at: int | None = None
    result: bytes = b""
    history: deque[Attempt] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))

    @property
    def resource_name(self) -> str:
        return names.task_name(self.new.queue, self.new.name, self.new.uid)

    @property
    def held(self) -> _HeldLease:
        """The lease of a task that is leased."""
        assert self.lease is not None
        return self.lease

    @property
    def retention_us(self) -> int:
        """How long the task is kept when it succeeds."""
        return self.queue.policy.result_retention_us if self.new.retain_us is None else self.new.retain_us

    @property
    def labels(self) -> set[_Label]:
        return {_Label(tag, key) for tag in ("", self.new.tag) for key in ("", self.new.key)}

    def record(self, *, tracebacks: bool = True) -> TaskRecord:
        history = tuple(self.history)
        if not tracebacks:
            history = tuple(
                attempt._replace(error=attempt.error and attempt.error._replace(traceback="")) for attempt in history
            )
        lease, new = self.lease, self.new
        return TaskRecord(
            uid=new.uid,
            queue=new.queue,
            name=new.name,
            state=self.state,
            priority=new.priority,
            tag=new.tag,
            key=new.key,
            body=new.body,
            created_at=self.created_at,
            due_at=self.due_at,
            attempts=self.attempts,
            first_attempt_at=lease.leased_at if lease and self.first_attempt_at is None else self.first_attempt_at,
            worker_id=lease.worker_id if lease else "",
            lease_deadline_at=lease.deadline_at if lease else None,
            ended_at=self.ended_at,
            expires_at=self.expires_at,
            result=self.result,
            history=history,
        )


@dataclass(slots=True, eq=False)
class _Queue:
    """A queue with its tasks, in the order of their creation, and its counters."""

    number: int
    queue: Queue
    tasks: dict[int, _Task] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    """The moment at which each name that was used becomes free."""
    ready: dict[_Label, _Order] = field(default_factory=lambda: defaultdict(_Order))
    levels: Counter[TaskState] = field(default_factory=Counter)
    bucket: TokenBucket | None = None
    created_total: int = 0
    succeeded_total: int = 0
    failed_attempts_total: int = 0
    dead_total: int = 0

    @property
    def policy(self) -> QueuePolicy:
        return self.queue.policy

    def first_ready(self, label: _Label = _ANY) -> tuple[_Key, int] | None:
        order = self.ready.get(label)
        return order.first() if order is not None else None

    def stats(self) -> QueueStats:
        head = self.first_ready()
        return QueueStats(
            scheduled=self.levels[TaskState.SCHEDULED],
            ready=self.levels[TaskState.READY],
            leased=self.levels[TaskState.LEASED],
            dead=self.levels[TaskState.DEAD],
            retained=self.levels[TaskState.SUCCEEDED] + self.levels[TaskState.CANCELLED],
            created_total=self.created_total,
            succeeded_total=self.succeeded_total,
            failed_attempts_total=self.failed_attempts_total,
            dead_total=self.dead_total,
            next_ready_at=None if head is None else self.tasks[head[1]].due_at,
        )


class MemoryStore:
    """The contract of `store.base` in memory."""

    def __init__(self, clock: Clock | None = None, idempotency_window_us: int = IDEMPOTENCY_WINDOW_US) -> None:
        self._clock = clock or SystemClock()
        self._window_us = idempotency_window_us
        self._mutex = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._tasks: dict[int, _Task] = {}
        self._queues_made = 0
        self._uids: dict[bytes, int] = {}
        self._uids_by_age: list[bytes] = []
        self._tombstones_by_age: list[tuple[int, str, str]] = []
        self._leases: dict[str, _Task] = {}
        self._leases_of: dict[str, dict[str, _Task]] = defaultdict(dict)
        # A worker may come back with a lease of the process before: the ids of the two must differ.
        self._lease_prefix = secrets.token_hex(8)
        self._leases_given = 0
        self._turn = 0
        self._timers = {state: _Order() for state in TaskState if state is not TaskState.READY}
        """What each task of a state waits for: its due moment, its lease's deadline, the end of its retention."""
        self.apply([CreateQueue(DEFAULT_QUEUE, QueuePolicy())])

    # --- the Store interface

    def apply(
        self, operations: Sequence[Operation], now: int | None = None, watched: Container[bytes] = frozenset()
    ) -> Applied:
        """Apply a batch; see `store.base`."""
        with self._mutex:
            self._now = self._clock.now() if now is None else now
            self._watched = watched
            self._touched = set[str]()
            self._applied = applied = Applied([])
            applied.results.extend(self._operate(operation) for operation in operations)
            for queue_id in sorted(self._touched):
                if (queue := self._queues.get(queue_id)) is not None:
                    applied.ready[queue_id] = 0 if queue.queue.paused else queue.levels[TaskState.READY]
            heads = [order.first() for order in self._timers.values()]
            applied.next_chore_at = min((head[0][0] for head in heads if head), default=None)
            return applied

    def get_task(self, queue: str, task: str) -> TaskRecord | None:
        """Return the task by name or uid; see `store.base`."""
        with self._mutex:
            found = self._find(queue, task)
            return None if found is None else found.record()

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: int | None = None) -> TaskPage:
        """Return a page of tasks; see `store.base`."""
        with self._mutex:
            if wanted.queue is None:
                tasks = self._tasks
            else:
                tasks = self._queues[wanted.queue].tasks if wanted.queue in self._queues else {}
            seqs = sorted(tasks)
            first = 0 if cursor is None else bisect_right(seqs, cursor)
            page: list[TaskRecord] = []
            for seq in islice(seqs, first, None):
                if _fits(tasks[seq], wanted):
                    page.append(tasks[seq].record(tracebacks=False))
                    if len(page) == limit:
                        return TaskPage(page, seq)
            return TaskPage(page, None)

    def get_queue(self, queue: str) -> Queue | None:
        """Return the queue, or None."""
        with self._mutex:
            return self._queues[queue].queue if queue in self._queues else None

    def list_queues(self) -> list[Queue]:
        """Return all queues by id."""
        with self._mutex:
            return [queue.queue for _, queue in sorted(self._queues.items())]

    def get_stats(self, queue: str) -> QueueStats | None:
        """Return the counters of a queue, or None."""
        with self._mutex:
            return self._queues[queue].stats() if queue in self._queues else None

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    # --- operations

    def _operate(self, operation: Operation) -> Result:
        try:
            match operation:
                case Create():
                    return self._create(operation)
                case Lease():
                    return self._lease(operation)
                case Settle():
                    return self._settle(operation)
                case Renew():
                    return self._renew(operation)
                case Reconcile():
                    return self._reconcile(operation)
                case Resume():
                    self._resume()
                case Cancel():
                    return self._cancel(operation)
                case Delete():
                    self._drop(self._task(operation.queue, operation.task))
                case Run():
                    return self._run(operation)
                case Retry():
                    return self._retry(operation)
                case CreateQueue():
                    return self._create_queue(operation)
                case UpdateQueue():
                    return self._change_queue(operation.queue, policy=operation.policy)
                case PauseQueue():
                    return self._change_queue(operation.queue, paused=operation.paused)
                case DeleteQueue():
                    self._delete_queue(operation)
                case Purge():
                    return self._purge(operation)
                case Maintain():
                    self._maintain()
                case _:
                    assert_never(operation)
        except ServiceError as refusal:
            return refusal
        return None

    def _create(self, operation: Create) -> Refusals:
        refusals: Refusals = {}
        for index, new in enumerate(operation.tasks):
            try:
                self._create_one(new)
            except ServiceError as refusal:
                refusals[index] = refusal
        return refusals

    def _create_one(self, new: NewTask) -> None:
        queue = self._queue(new.queue)
        skew_us = names.uid_time_us(new.uid) - self._now
        # A uid tells its time in milliseconds, cut off: what may have lain in the window is in it.
        if not -self._window_us - UID_TICK_US < skew_us <= self._window_us:
            raise RequestIdOutOfWindow(skew_us, self._window_us)
        if new.uid in self._uids:
            return
        if new.name is not None:
            if new.name in queue.names:
                raise TaskExists(names.task_name(new.queue, new.name, new.uid))
            if queue.tombstones.get(new.name, self._now) > self._now:
                raise TaskNameTombstoned(names.task_name(new.queue, new.name, new.uid))

        due_at = max(self._now, self._now + new.countdown_us if new.eta_at is None else new.eta_at)
        state = TaskState.READY if due_at <= self._now else TaskState.SCHEDULED
        queue.created_total += 1
        task = _Task(queue.number * _SEQS_OF_QUEUE + queue.created_total, new, queue, self._now, due_at, state)
        self._tasks[task.seq] = queue.tasks[task.seq] = task
        self._uids[new.uid] = task.seq
        heappush(self._uids_by_age, new.uid)
        if new.name is not None:
            queue.names[new.name] = task.seq
            queue.tombstones.pop(new.name, None)
        self._enter(task)

    def _lease(self, operation: Lease) -> Leased:
        if operation.queues is None:
            queues = [queue for queue in self._queues.values() if queue.levels[TaskState.READY]]
        else:
            queues = [self._queues[queue_id] for queue_id in operation.queues if queue_id in self._queues]
        start = self._turn % len(queues) if queues else 0
        self._turn += 1
        leased: list[LeasedTask] = []
        more_at: list[int] = []
        for queue in queues[start:] + queues[:start]:
            room = operation.limit - len(leased)
            if room <= 0:
                break
            given = self._lease_from(queue, operation, room)
            leased += given.tasks
            if given.more_at is not None:
                more_at.append(given.more_at)
        return Leased(leased, min(more_at, default=None))

    def _lease_from(self, queue: _Queue, operation: Lease, room: int) -> Leased:
        """Lease up to `room` tasks of one queue, as its policy allows."""
        label = _Label(operation.tag, operation.key)
        limits = queue.policy.rate_limits
        room = 0 if queue.queue.paused else min(room, queue.levels[TaskState.READY])
        if limits.max_concurrent_leases is not None:
            room = min(room, limits.max_concurrent_leases - queue.levels[TaskState.LEASED])
        affordable = room
        if limits.max_leases_per_second is not None and room > 0:
            queue.bucket = refill(queue.bucket, limits, self._now)
            affordable = min(room, int(queue.bucket.tokens))

        given: list[LeasedTask] = []
        while len(given) < affordable and (head := queue.first_ready(label)) is not None:
            given.append(self._lease_one(self._tasks[head[1]], operation))

        more_at = None
        if limits.max_leases_per_second is not None and queue.bucket is not None:
            queue.bucket = queue.bucket._replace(tokens=queue.bucket.tokens - len(given))
            if affordable < room and queue.first_ready(label) is not None:
                more_at = next_token_at(queue.bucket, limits)
        return Leased(given, more_at)

    def _lease_one(self, task: _Task, operation: Lease) -> LeasedTask:
        duration_us = task.queue.policy.lease_duration_us if operation.duration_us is None else operation.duration_us
        self._leases_given += 1
        lease_id = f"{self._lease_prefix}.{self._leases_given}"
        task.lease = _HeldLease(lease_id, operation.worker_id, self._now, self._now + duration_us)
        self._become(task, TaskState.LEASED)
        new = task.new
        return LeasedTask(
            lease_id, new.queue, new.uid, new.name, task.attempts + 1, duration_us, task.retention_us > 0, new.body
        )

    def _settle(self, operation: Settle) -> Lost:
        ends = [*(Settlement(lease_id, Outcome.SUCCEEDED) for lease_id in operation.succeeded), *operation.others]
        return [end.lease_id for end in ends if not self._settle_one(end)]

    def _settle_one(self, end: Settlement) -> bool:
        """End one lease; says whether it was live."""
        task = self._leases.get(end.lease_id)
        if task is None:
            return False
        match end.outcome:
            case Outcome.SUCCEEDED:
                self._count_attempt(task)
                task.result = end.result
                task.queue.succeeded_total += 1
                self._end(task, TaskState.SUCCEEDED, task.retention_us)
            case Outcome.RELEASED:
                self._become(task, TaskState.READY)
            case Outcome.RETRY:
                self._fail(task, AttemptOutcome.RETRY, end.error, end.delay_us)
            case Outcome.FAILED | Outcome.CRASHED:
                self._fail(task, _FAILURES[end.outcome], end.error)
            case _:
                assert_never(end.outcome)
        return True

    def _renew(self, operation: Renew) -> Lost:
        lost: Lost = []
        for lease_id in operation.lease_ids:
            if (task := self._leases.get(lease_id)) is None:
                lost.append(lease_id)
                continue
            duration_us = operation.duration_us
            if duration_us is None:
                duration_us = task.queue.policy.lease_duration_us
            task.held.deadline_at = self._now + duration_us
            self._timers[TaskState.LEASED].put(task.seq, (task.held.deadline_at,))
        return lost

    def _reconcile(self, operation: Reconcile) -> Lost:
        known = self._leases_of.get(operation.worker_id, {})
        lost = [lease_id for lease_id in operation.held if lease_id not in known]
        held = set(operation.held)
        for lease_id, task in list(known.items()):
            if lease_id not in held:
                self._become(task, TaskState.READY)
        return lost

    def _resume(self) -> None:
        for task in self._leases.values():
            deadline_at = self._now + task.queue.policy.lease_duration_us
            if task.held.deadline_at < deadline_at:
                task.held.deadline_at = deadline_at
                self._timers[TaskState.LEASED].put(task.seq, (deadline_at,))

    def _cancel(self, operation: Cancel) -> TaskRecord:
        task = self._task(operation.queue, operation.task)
        if not may_become(task.state, TaskState.CANCELLED):
            raise TaskStateRefused(task.resource_name, task.state.name, "cancelled")
        if task.lease is not None:
            self._revoke(task.lease)
            self._write_history(task, task.attempts + 1, AttemptOutcome.CANCELLED)
        self._end(task, TaskState.CANCELLED, task.queue.policy.dead_letter_retention_us)
        return task.record()

    def _run(self, operation: Run) -> TaskRecord:
        task = self._task(operation.queue, operation.task)
        if task.state is TaskState.SCHEDULED:
            task.due_at = self._now
            self._become(task, TaskState.READY)
        elif task.state is not TaskState.READY:
            raise TaskStateRefused(task.resource_name, task.state.name, "run now")
        return task.record()

    def _retry(self, operation: Retry) -> TaskRecord:
        task = self._task(operation.queue, operation.task)
        if task.state not in (TaskState.DEAD, TaskState.CANCELLED):
            raise TaskStateRefused(task.resource_name, task.state.name, "retried")
        task.attempts, task.first_attempt_at, task.due_at = 0, None, self._now
        task.ended_at = task.expires_at = None
        self._become(task, TaskState.READY)
        return task.record()

    def _create_queue(self, operation: CreateQueue) -> Queue:
        if operation.queue in self._queues:
            raise QueueExists(operation.queue)
        queue = Queue(operation.queue, operation.policy, paused=False, created_at=self._now, updated_at=self._now)
        self._queues_made += 1
        self._queues[queue.id] = _Queue(self._queues_made, queue)
        self._touched.add(queue.id)
        return queue

    def _change_queue(self, queue_id: str, *, policy: QueuePolicy | None = None, paused: bool | None = None) -> Queue:
        found = self._queue(queue_id)
        self._touched.add(queue_id)
        if paused == found.queue.paused:
            return found.queue
        found.queue = replace(
            found.queue,
            policy=found.policy if policy is None else policy,
            paused=found.queue.paused if paused is None else paused,
            updated_at=self._now,
        )
        return found.queue

    def _delete_queue(self, operation: DeleteQueue) -> None:
        queue = self._queue(operation.queue)
        if operation.queue == DEFAULT_QUEUE:
            raise QueueProtected(operation.queue)
        if queue.tasks:
            raise QueueNotEmpty(operation.queue)
        del self._queues[operation.queue]

    def _purge(self, operation: Purge) -> Purged:
        queue, until_at = self._queue(operation.queue), operation.created_until_at
        self._touched.add(operation.queue)
        old = (task for task in queue.tasks.values() if until_at is None or task.created_at <= until_at)
        step = list(islice(old, CHORE_LIMIT + 1))
        for task in step[:CHORE_LIMIT]:
            self._drop(task)
        return Purged(min(len(step), CHORE_LIMIT), done=len(step) <= CHORE_LIMIT)

    # --- what time brings

    def _maintain(self) -> None:
        due = (self._now,)
        for seq in islice(self._timers[TaskState.SCHEDULED].until(due), CHORE_LIMIT):
            self._become(self._tasks[seq], TaskState.READY)
        for seq in islice(self._timers[TaskState.LEASED].until(due), CHORE_LIMIT):
            self._fail(self._tasks[seq], AttemptOutcome.EXPIRED, LEASE_EXPIRED)
        for state in (TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED):
            for seq in islice(self._timers[state].until(due), CHORE_LIMIT):
                self._remove(self._tasks[seq])
        self._forget()

    def _forget(self) -> None:
        """Drop uids that no create can repeat any more, and tombstones past their time."""
        floor = names.uid_floor(self._now - self._window_us)
        while self._uids_by_age and self._uids_by_age[0] < floor:
            uid = heappop(self._uids_by_age)
            if self._uids.get(uid) not in self._tasks:
                self._uids.pop(uid, None)
        while self._tombstones_by_age and self._tombstones_by_age[0][0] <= self._now:
            expires_at, queue_id, name = heappop(self._tombstones_by_age)
            queue = self._queues.get(queue_id)
            if queue is not None and queue.tombstones.get(name) == expires_at:
                del queue.tombstones[name]

    # --- the moves of a task

    def _become(self, task: _Task, state: TaskState) -> None:
        """Move a task to another state; what that state stands on (due_at, lease, expires_at) is set before."""
        assert may_become(task.state, state), f"{task.state.name} -> {state.name}"
        self._leave(task)
        task.state = state
        self._enter(task)

    def _enter(self, task: _Task) -> None:
        queue = task.queue
        self._touched.add(queue.queue.id)
        queue.levels[task.state] += 1
        match task.state:
            case TaskState.READY:
                for label in task.labels:
                    queue.ready[label].put(task.seq, (-task.new.priority, task.due_at))
            case TaskState.SCHEDULED:
                self._timers[task.state].put(task.seq, (task.due_at,))
            case TaskState.LEASED:
                self._leases[task.held.lease_id] = task
                self._leases_of[task.held.worker_id][task.held.lease_id] = task
                self._timers[task.state].put(task.seq, (task.held.deadline_at,))
            case TaskState.SUCCEEDED | TaskState.DEAD | TaskState.CANCELLED:
                assert task.expires_at is not None
                self._timers[task.state].put(task.seq, (task.expires_at,))

    def _leave(self, task: _Task) -> None:
        queue = task.queue
        self._touched.add(queue.queue.id)
        queue.levels[task.state] -= 1
        if task.state is TaskState.READY:
            for label in task.labels:
                queue.ready[label].drop(task.seq)
                if not queue.ready[label]:
                    del queue.ready[label]
            return
        self._timers[task.state].drop(task.seq)
        if task.state is TaskState.LEASED:
            lease, task.lease = task.held, None
            del self._leases[lease.lease_id]
            of_worker = self._leases_of[lease.worker_id]
            del of_worker[lease.lease_id]
            if not of_worker:
                del self._leases_of[lease.worker_id]

    def _count_attempt(self, task: _Task) -> None:
        task.attempts += 1
        if task.first_attempt_at is None:
            task.first_attempt_at = task.held.leased_at

    def _write_history(self, task: _Task, number: int, outcome: AttemptOutcome, error: TaskError | None = None) -> None:
        lease = task.held
        task.history.append(Attempt(number, lease.worker_id, lease.leased_at, self._now, outcome, error))

    def _fail(self, task: _Task, outcome: AttemptOutcome, error: TaskError | None, delay_us: int | None = None) -> None:
        """Count a leased task's attempt as failed; then it waits for the next one, or is a dead letter."""
        self._count_attempt(task)
        self._write_history(task, task.attempts, outcome, error)
        queue = task.queue
        queue.failed_attempts_total += 1
        policy = task.new.retry or queue.policy.retry
        assert task.first_attempt_at is not None
        if outcome is AttemptOutcome.FAILED or gives_up(policy, task.attempts, self._now - task.first_attempt_at):
            queue.dead_total += 1
            self._end(task, TaskState.DEAD, queue.policy.dead_letter_retention_us)
            return
        if delay_us is None:
            delay_us = backoff_us(task.attempts, policy, random.random())
        task.due_at = self._now + delay_us
        self._become(task, TaskState.READY if task.due_at <= self._now else TaskState.SCHEDULED)

    def _end(self, task: _Task, state: TaskState, retention_us: int) -> None:
        """Move a task to its last state, and keep it there for its retention, which may be 0."""
        assert state in ENDED
        task.ended_at, task.expires_at = self._now, self._now + retention_us
        self._become(task, state)
        if task.new.uid in self._watched:
            self._applied.ended[task.new.uid] = state
        if retention_us <= 0:
            self._remove(task)

    def _drop(self, task: _Task) -> None:
        """Remove a task in any state, by somebody's wish."""
        if task.lease is not None:
            self._revoke(task.lease)
        if task.state not in ENDED and task.new.uid in self._watched:
            self._applied.ended[task.new.uid] = TaskState.CANCELLED
        self._remove(task)

    def _revoke(self, lease: _HeldLease) -> None:
        self._applied.revoked.append((lease.worker_id, lease.lease_id))

    def _remove(self, task: _Task) -> None:
        """Take a task out of the store; its uid and its name are remembered."""
        new, queue = task.new, task.queue
        self._leave(task)
        del self._tasks[task.seq], queue.tasks[task.seq]
        if new.uid < names.uid_floor(self._now - self._window_us):
            del self._uids[new.uid]
        if new.name is not None:
            del queue.names[new.name]
            free_at = self._now + queue.policy.tombstone_ttl_us
            if free_at > self._now:
                queue.tombstones[new.name] = free_at
                heappush(self._tombstones_by_age, (free_at, new.queue, new.name))

    # --- finding

    def _queue(self, queue_id: str) -> _Queue:
        if queue_id not in self._queues:
            raise QueueNotFound(queue_id)
        return self._queues[queue_id]

    def _find(self, queue_id: str, task_id: str) -> _Task | None:
        queue = self._queues.get(queue_id)
        if queue is None:
            return None
        seq = queue.names.get(task_id)
        if seq is None and (uid := names.parse_uid(task_id)) is not None:
            seq = self._uids.get(uid)
        # What is remembered of a uid may belong to another queue, or outlive its task.
        return None if seq is None else queue.tasks.get(seq)

    def _task(self, queue_id: str, task_id: str) -> _Task:
        task = self._find(queue_id, task_id)
        if task is None:
            raise TaskNotFound(f"queues/{queue_id}/tasks/{task_id}")
        return task


def _fits(task: _Task, wanted: TaskFilter) -> bool:
    return (
        wanted.state in (None, task.state)
        and wanted.tag in ("", task.new.tag)
        and wanted.key in ("", task.new.key)
        and (wanted.created_from_at is None or task.created_at >= wanted.created_from_at)
        and (wanted.created_until_at is None or task.created_at < wanted.created_until_at)
    )
