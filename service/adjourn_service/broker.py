"""Between the gRPC handlers and the store: commits in groups, feeds workers, keeps time, wakes those who wait."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar, cast

from adjourn_service.clock import Clock, SystemClock
from adjourn_service.commit import GroupCommit, resolver
from adjourn_service.dispatcher import Dispatcher
from adjourn_service.errors import QueueNotFound, QueueProtected, ServiceError, ShuttingDown, TaskNotFound
from adjourn_service.lifecycle import ENDED
from adjourn_service.model import DEFAULT_QUEUE, Queue, QueueStats, TaskFilter, TaskPage, TaskRecord, TaskState
from adjourn_service.store.base import (
    Applied,
    Create,
    DeleteQueue,
    Maintain,
    Operation,
    Purge,
    Purged,
    Refusals,
    Renew,
    Result,
    Resume,
    Store,
)

UPKEEP_SECONDS: Final = 30.0
"""Longest time between two maintenance steps: what is past its time but in nobody's way goes then."""

T = TypeVar("T")


class Broker:
    """What the service does, without its wire. To be used on one event loop."""

    def __init__(self, store: Store, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._waiters: dict[bytes, list[asyncio.Future[TaskState]]] = {}
        self._workers: dict[str, Callable[[list[str]], None]] = {}
        self._commit = GroupCommit(store, self._applied, self._waiters)
        self._maintenance: asyncio.Handle | None = None
        self._maintenance_at = 0.0
        self._stopping = False
        self.dispatcher = Dispatcher(self._commit, self._clock)

    async def start(self) -> None:
        """Begin to work."""
        self._commit.start()
        await self.apply(Resume())
        self._maintain()

    def interrupt(self) -> None:
        """Let nobody wait for the end of a task any longer: what they wait for raises ShuttingDown."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(ShuttingDown())

    async def stop(self) -> None:
        """Finish what was accepted and refuse what comes later. The store stays open."""
        self._stopping = True
        if self._maintenance is not None:
            self._maintenance.cancel()
        await self._commit.close()

    # --- operations

    def submit(self, operation: Operation, done: Callable[[Result | BaseException], None]) -> None:
        """Apply an operation with the next commit and call `done` with what came of it: for streams."""
        self._commit.submit(operation, done)

    async def apply(self, operation: Operation) -> Result:
        """Apply an operation; it is durable when this returns. Raises: ServiceError if it is refused."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._commit.submit(operation, resolver(future))
        result = await future
        if isinstance(result, ServiceError):
            raise result
        return result

    async def create(self, operation: Create) -> Refusals:
        """Create tasks and, in the same commit, lease them to workers that wait. Returns refusals by index."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._commit.submit(operation, resolver(future))
        self.dispatcher.expect(Counter(task.queue for task in operation.tasks))
        return cast("Refusals", await future)

    # --- reads

    async def get_task(self, queue: str, task: str) -> TaskRecord:
        """Return a task by name or uid. Raises: TaskNotFound, QueueNotFound."""
        record = await self._read(self._store.get_task, queue, task)
        if record is None:
            await self.get_queue(queue)
            raise TaskNotFound(f"queues/{queue}/tasks/{task}")
        return record

    async def list_tasks(self, wanted: TaskFilter, limit: int, cursor: int | None = None) -> TaskPage:
        """Return a page of tasks. Raises: QueueNotFound."""
        if wanted.queue is not None:
            await self.get_queue(wanted.queue)
        return await self._read(self._store.list_tasks, wanted, limit, cursor)

    async def get_queue(self, queue: str) -> Queue:
        """Return a queue. Raises: QueueNotFound."""
        found = await self._read(self._store.get_queue, queue)
        if found is None:
            raise QueueNotFound(queue)
        return found

    async def list_queues(self) -> list[Queue]:
        """Return all queues by id."""
        return await self._read(self._store.list_queues)

    async def get_stats(self, queue: str) -> QueueStats:
        """Return the counters of a queue. Raises: QueueNotFound."""
        stats = await self._read(self._store.get_stats, queue)
        if stats is None:
            raise QueueNotFound(queue)
        return stats

    async def _read(self, read: Callable[..., T], *arguments: object) -> T:
        return await asyncio.to_thread(read, *arguments)

    # --- longer doings

    async def purge(self, queue: str) -> int:
        """Remove all tasks that the queue holds now, step by step. Returns their number. Raises: QueueNotFound."""
        until, removed = self._clock.now(), 0
        while True:
            step = cast("Purged", await self.apply(Purge(queue, until)))
            removed += step.removed
            if step.done:
                return removed

    async def delete_queue(self, queue: str, *, force: bool) -> None:
        """Remove a queue, purged first if forced. Raises: QueueNotFound, QueueNotEmpty, QueueProtected."""
        if force:
            if queue == DEFAULT_QUEUE:
                # The store would say so too, but only after its tasks are gone.
                raise QueueProtected(queue)
            await self.purge(queue)
        await self.apply(DeleteQueue(queue))

    async def wait_task(self, queue: str, task: str, timeout_us: int) -> TaskRecord:
        """Return the task when it has ended or the time is up. Raises: TaskNotFound, QueueNotFound."""
        record = await self.get_task(queue, task)
        if record.state in ENDED:
            return record
        end: asyncio.Future[TaskState] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(record.uid, []).append(end)
        try:
            # A commit that did not know of this waiter may be on its way. After this one, each does.
            await self.apply(Renew(()))
            again = await self._read(self._store.get_task, queue, task)
            if again is None and not end.done():
                raise TaskNotFound(f"queues/{queue}/tasks/{task}")
            if again is not None and again.state in ENDED:
                return again
            try:
                state = await asyncio.wait_for(end, timeout_us / 1e6)
            except TimeoutError:
                return await self.get_task(queue, task)
            kept = await self._read(self._store.get_task, queue, task)
            return kept or replace(record, state=state, ended_at=self._clock.now())
        finally:
            end.cancel()
            waiters = self._waiters[record.uid]
            waiters.remove(end)
            if not waiters:
                del self._waiters[record.uid]

    # --- workers' streams

    def connect(self, worker_id: str, cancelled: Callable[[list[str]], None]) -> None:
        """Have `cancelled` called with the leases of this worker that are taken away from it."""
        self._workers[worker_id] = cancelled

    def disconnect(self, worker_id: str, cancelled: Callable[[list[str]], None]) -> None:
        """Undo `connect`, unless a later stream of the same worker has taken its place."""
        if self._workers.get(worker_id) is cancelled:
            del self._workers[worker_id]

    # --- after each commit

    def _applied(self, applied: Applied) -> None:
        self.dispatcher.wake(applied.ready)
        for worker_id, lease_id in applied.revoked:
            if worker_id in self._workers:
                self._workers[worker_id]([lease_id])
        for uid, state in applied.ended.items():
            for waiter in self._waiters.get(uid, ()):
                if not waiter.done():
                    waiter.set_result(state)
        self._schedule(applied.next_chore_at)

    def _schedule(self, chore_at: int | None) -> None:
        """See to it that maintenance runs at `chore_at` at the latest."""
        if self._stopping:
            return
        wait_seconds = UPKEEP_SECONDS
        if chore_at is not None:
            wait_seconds = min(wait_seconds, max(0, chore_at - self._clock.now()) / 1e6)
        at = asyncio.get_running_loop().time() + wait_seconds
        if self._maintenance is not None:
            # Kept beside the handle, because uvloop's handle of what is due at once cannot tell.
            if self._maintenance_at <= at:
                return
            self._maintenance.cancel()
        self._maintenance_at = at
        self._maintenance = asyncio.get_running_loop().call_at(at, self._maintain)

    def _maintain(self) -> None:
        self._maintenance = None
        self._commit.submit(Maintain(), self._maintained)

    def _maintained(self, result: Result | BaseException) -> None:
        if isinstance(result, BaseException):
            self._schedule(None)
