"""The embedded store: one SQLite file, one process.

What makes it fast, and must stay so:

- One connection writes, and one commit, with its one fsync, carries a whole batch (`synchronous=FULL`).
- Statements work on sets. Each step of a statement gives up the GIL and has to win it back from the event loop, so a
  statement for each row is several times slower under load than its SQL costs. Arrays of numbers and of blobs reach
  SQLite as the table-valued function `carray`: one step for any number of rows.
- Every table is read and cut at an edge of its index: the head of `ready`, the left of `scheduled`, of `lease_deadline`
  and of `task_uid`. Nothing is scanned, so nothing grows with the backlog.
- What a success needs of a task is in its narrow `lease` row; the task row is written once and removed once.
"""

import secrets
import threading
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import apsw

from adjourn_service.clock import Clock, SystemClock
from adjourn_service.errors import ConfigError
from adjourn_service.model import (
    DEFAULT_QUEUE,
    SECOND_US,
    Queue,
    QueuePolicy,
    QueueStats,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from adjourn_service.store import base
from adjourn_service.store.migrate import migrate_sqlite
from adjourn_service.store.sqlite_batch import Batch
from adjourn_service.store.sqlite_file import lock, open_writer, refusal
from adjourn_service.store.sqlite_places import Marks
from adjourn_service.store.sqlite_queues import QueueTable
from adjourn_service.store.sqlite_reader import SqliteReader

IDEMPOTENCY_WINDOW_US: Final = 600 * SECOND_US


class SqliteStore:
    """The contract of `store.base` on one SQLite file, which it locks against other processes.

    Raises: ConfigError if the file cannot be opened, is no store of ours, or is in use."""

    def __init__(
        self, path: Path, clock: Clock | None = None, idempotency_window_us: int = IDEMPOTENCY_WINDOW_US
    ) -> None:
        self._clock = clock or SystemClock()
        self._window_us = idempotency_window_us
        self._mutex = threading.Lock()
        # Random, and not the time: a clock that is set back, or a restored backup, must not bring a lease id again.
        self._marks = Marks(secrets.randbits(62))
        with ExitStack() as opened:
            self._lock_file = opened.enter_context(lock(path))
            self._db = open_writer(path)
            opened.callback(self._db.close)
            try:
                migrate_sqlite(self._db)
                self._queues = QueueTable(self._db)
                self._reader = SqliteReader(path)
            except apsw.Error as error:
                raise ConfigError(f"cannot use the store {path}: {error}") from error
            opened.pop_all()
        # What the reads show of the queues: their state after the last commit, never inside one.
        self._shown: dict[str, tuple[int, Queue, QueueStats]] = {}
        self._show()
        if DEFAULT_QUEUE not in self._shown:
            self.apply([base.CreateQueue(DEFAULT_QUEUE, QueuePolicy())])

    def apply(
        self, operations: Sequence[base.Operation], now: int | None = None, watched: Container[bytes] = frozenset()
    ) -> base.Applied:
        """Apply a batch in one durable commit; see `store.base`."""
        with self._mutex:
            now = self._clock.now() if now is None else now
            batch = Batch(self._db, self._queues, self._marks, now, watched, self._window_us)
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for operation in operations:
                    batch.operate(operation)
                applied = batch.finish()
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._queues.load()
                refused = refusal(error) if isinstance(error, apsw.Error) else None
                if refused is None:
                    raise
                raise refused from error
            for state in batch.touched:
                self._shown[state.queue.id] = (state.queue_id, state.queue, replace(state.stats))
            if len(self._shown) != len(self._queues.by_name):
                self._show()
            return applied

    def get_task(self, queue: str, task: str) -> TaskRecord | None:
        """Return the task by name or uid; see `store.base`."""
        return self._reader.get_task(queue, task)

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: int | None = None) -> TaskPage:
        """Return a page of tasks; see `store.base`."""
        return TaskPage(*self._reader.list_tasks(wanted, limit, cursor))

    def get_queue(self, queue: str) -> Queue | None:
        """Return the queue, or None."""
        shown = self._shown.get(queue)
        return None if shown is None else shown[1]

    def list_queues(self) -> list[Queue]:
        """Return all queues by id."""
        return [queue for _, (_, queue, _) in sorted(self._shown.copy().items())]

    def get_stats(self, queue: str) -> QueueStats | None:
        """Return the counters of a queue, or None."""
        shown = self._shown.get(queue)
        if shown is None:
            return None
        queue_id, _, stats = shown
        return replace(stats, next_ready_at=self._reader.next_ready_at(queue_id))

    def close(self) -> None:
        """Close the file and give up its lock."""
        with self._mutex:
            self._reader.close()
            self._db.close()
            self._lock_file.close()

    def _show(self) -> None:
        states = self._queues.by_name.values()
        self._shown = {state.queue.id: (state.queue_id, state.queue, replace(state.stats)) for state in states}
