"""Reads of the SQLite store, on a connection of their own, so that they neither wait for a commit nor hold one up."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from adjourn_service import names
from adjourn_service.model import (
    Attempt,
    AttemptOutcome,
    TaskError,
    TaskFilter,
    TaskRecord,
    TaskState,
)
from adjourn_service.store.sqlite_file import open_reader, seq_range

SCAN_LIMIT: Final = 10_000
"""Tasks that one page of a list may look at: a few milliseconds."""

_COLUMNS: Final = """
    task.uid, (SELECT id FROM queue WHERE queue.queue_id = task.queue_id), task.name, task.state, task.rank, task.tag,
    task.key, task.body, task.created_at, task.due_at, task.attempts, task.first_attempt_at, lease.worker_id,
    lease.deadline_at, task.ended_at, task.expires_at, task.result, task.history, task.seq, lease.leased_at,
    EXISTS (SELECT 1 FROM scheduled WHERE scheduled.due_at = task.due_at AND scheduled.seq = task.seq)
"""

_TASK: Final = f"""
    SELECT {_COLUMNS} FROM task
    LEFT JOIN lease ON lease.seq = task.seq
    WHERE task.seq = ?
"""


def find_seq(connection: apsw.Connection, queue: str, task: str) -> int | None:
    """Return the number of the task with this name, or else with this uid; None if there is none in the queue."""
    named = connection.execute(
        "SELECT seq FROM task_name WHERE name = ?2 AND seq IS NOT NULL"
        " AND queue_id = (SELECT queue_id FROM queue WHERE id = ?1)",
        (queue, task),
    ).get
    if named is not None:
        return int(named)
    uid = names.parse_uid(task)
    if uid is None:
        return None
    # What is remembered of a uid outlives its task, so the task itself has to say that it is the one.
    by_uid = connection.execute(
        "SELECT task.seq FROM task_uid JOIN task ON task.seq = task_uid.seq AND task.uid = task_uid.uid"
        " JOIN queue ON queue.queue_id = task.queue_id WHERE task_uid.uid = ? AND queue.id = ?",
        (uid, queue),
    ).get
    return None if by_uid is None else int(by_uid)


def read_task(connection: apsw.Connection, seq: int, *, tracebacks: bool = True) -> TaskRecord | None:
    """Return the task with this number and its history, or None."""
    row = connection.execute(_TASK, (seq,)).fetchone()
    return None if row is None else _record(connection, row, tracebacks=tracebacks)


def _record(connection: apsw.Connection, row: Any, *, tracebacks: bool) -> TaskRecord:
    (uid, queue, name, state, rank, tag, key, body, created_at, due_at, attempts, first_attempt_at, worker_id,
     deadline_at, ended_at, expires_at, result, history, seq, leased_at, scheduled) = row  # fmt: skip
    if state is None:
        leased = worker_id is not None
        state = TaskState.LEASED if leased else TaskState.SCHEDULED if scheduled else TaskState.READY
        first_attempt_at = first_attempt_at or leased_at
    return TaskRecord(
        uid=uid,
        queue=queue,
        name=name,
        state=TaskState(state),
        priority=-rank,
        tag=tag or "",
        key=key or "",
        body=body,
        created_at=created_at,
        due_at=due_at,
        attempts=attempts,
        first_attempt_at=first_attempt_at,
        worker_id=worker_id or "",
        lease_deadline_at=deadline_at,
        ended_at=ended_at,
        expires_at=expires_at,
        result=result or b"",
        history=_history(connection, seq, tracebacks=tracebacks) if history else (),
    )


def _history(connection: apsw.Connection, seq: int, *, tracebacks: bool) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            number,
            worker_id,
            leased_at,
            ended_at,
            AttemptOutcome(outcome),
            None if error_type is None else TaskError(error_type, message, traceback if tracebacks else ""),
        )
        for number, worker_id, leased_at, ended_at, outcome, error_type, message, traceback in connection.execute(
            "SELECT number, worker_id, leased_at, ended_at, outcome, error_type, error_message, error_traceback"
            " FROM attempt WHERE seq = ? ORDER BY ordinal",
            (seq,),
        )
    )


class SqliteReader:
    """The reading half of the store. Safe to call from several threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self._db = open_reader(path)
        self._mutex = threading.Lock()

    def close(self) -> None:
        """Close the connection."""
        with self._mutex:
            self._db.close()

    def get_task(self, queue: str, task: str) -> TaskRecord | None:
        """Return the task by name or uid; see `store.base`."""
        with self._mutex, self._snapshot():
            seq = find_seq(self._db, queue, task)
            return None if seq is None else read_task(self._db, seq)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let every statement of the block see the same commit."""
        with self._db:
            yield

    def next_ready_at(self, queue_id: int) -> int | None:
        """Return since when the head of the queue's ready order has been ready, or None."""
        with self._mutex:
            at: int | None = self._db.execute(
                "SELECT due_at FROM ready WHERE queue_id = ? ORDER BY rank, due_at, seq LIMIT 1", (queue_id,)
            ).get
            return at

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: int | None) -> tuple[list[TaskRecord], int | None]:
        """Return a page of tasks and the cursor of the next; see `store.base`."""
        with self._mutex, self._snapshot():
            if wanted.queue is None:
                first, last = 0, (1 << 63) - 1
            else:
                queue_id = self._db.execute("SELECT queue_id FROM queue WHERE id = ?", (wanted.queue,)).get
                if queue_id is None:
                    return [], None
                first, last = seq_range(queue_id)
            start = first if cursor is None else cursor + 1
            tasks: list[TaskRecord] = []
            for looked_at, row in enumerate(self._candidates(wanted, start, last), 1):
                record = _record(self._db, row, tracebacks=False) if _fits(row, wanted) else None
                if record is not None and wanted.state in (None, record.state):
                    tasks.append(record)
                if len(tasks) == limit or looked_at == SCAN_LIMIT:
                    return tasks, row[18]
            return tasks, None

    def _candidates(self, wanted: TaskFilter, start: int, last: int) -> apsw.Cursor:
        """Read tasks in order from the narrowest index there is for the state."""
        order = "ORDER BY task.seq"
        if wanted.state is TaskState.LEASED:
            source, where = "lease CROSS JOIN task ON task.seq = lease.seq", "lease.seq BETWEEN ?1 AND ?2"
            order = "ORDER BY lease.seq"
        elif wanted.state in (TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED):
            source = "task INDEXED BY task_ended LEFT JOIN lease ON lease.seq = task.seq"
            where = "task.state = ?3 AND task.seq BETWEEN ?1 AND ?2"
        else:
            source, where = "task LEFT JOIN lease ON lease.seq = task.seq", "task.seq BETWEEN ?1 AND ?2"
        bindings: tuple[int, ...] = (start, last)
        if wanted.state is not None and "?3" in where:
            bindings += (wanted.state,)
        return self._db.execute(f"SELECT {_COLUMNS} FROM {source} WHERE {where} {order}", bindings)


def _fits(row: Any, wanted: TaskFilter) -> bool:
    tag, key, created_at = row[5], row[6], row[8]
    return (
        (not wanted.tag or tag == wanted.tag)
        and (not wanted.key or key == wanted.key)
        and (wanted.created_from_at is None or created_at >= wanted.created_from_at)
        and (wanted.created_until_at is None or created_at < wanted.created_until_at)
    )
