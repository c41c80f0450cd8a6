"""What the operations of the SQLite store are made of: where a task is, and how it fails, ends and goes."""

import random
from collections.abc import Container
from typing import Any

import apsw

from adjourn_service.model import AttemptOutcome, TaskError, TaskState
from adjourn_service.retry import backoff_us, gives_up
from adjourn_service.store.base import MAX_HISTORY, Applied
from adjourn_service.store.policies import load_retry
from adjourn_service.store.sqlite_queues import QueueState, QueueTable
from adjourn_service.store.sqlite_rows import (
    LABEL_KEYS,
    READY_KEYS,
    SELECT_TASK,
    LeaseRow,
    TaskRow,
    format_lease_id,
    numbers,
)


class Marks:
    """What the store remembers from one batch to the next, apart from its tables."""

    def __init__(self, nonce: int) -> None:
        self.nonce = nonce
        """Of the last lease given."""
        self.turn = 0
        """Moves on with every lease operation, and with it the queue that is served first."""
        self.swept_uid = b""
        """Uids up to this one are remembered only for tasks that still exist."""


class Places:
    """A transaction on the tables of tasks. `touched` are the queues whose counters it changed."""

    def __init__(
        self, db: apsw.Connection, queues: QueueTable, marks: Marks, now: int, watched: Container[bytes]
    ) -> None:
        self._db = db
        self._queues = queues
        self._marks = marks
        self._now = now
        self._watched = watched
        self.applied = Applied([])
        self.touched: set[QueueState] = set()

    # --- short forms

    def _value(self, sql: str, bindings: tuple[Any, ...] = ()) -> Any:
        row = self._db.execute(sql, bindings).fetchone()
        return row and row[0]

    def _rows(self, sql: str, bindings: tuple[Any, ...]) -> list[Any]:
        return self._db.execute(sql, bindings).fetchall()

    def _change(self, sql: str, bindings: tuple[Any, ...]) -> int:
        """Run a statement and return how many rows it changed."""
        self._db.execute(sql, bindings)
        return self._db.changes()

    def _queue(self, name: str) -> QueueState:
        """Return a queue that is to be changed. Raises: QueueNotFound."""
        state = self._queues.get(name)
        self.touched.add(state)
        return state

    def _queue_by_id(self, queue_id: int) -> QueueState:
        state = self._queues.by_id[queue_id]
        self.touched.add(state)
        return state

    # --- where a live task waits

    def _place(self, state: QueueState, row: TaskRow) -> None:
        """Put a task that is in no place among the ready or the scheduled ones."""
        if row.due_at > self._now:
            self._db.execute("INSERT INTO scheduled (due_at, seq) VALUES (?, ?)", (row.due_at, row.seq))
            state.stats.scheduled += 1
        else:
            self._make_ready(state, row)

    def _make_ready(self, state: QueueState, row: TaskRow) -> None:
        self._enter_ready(numbers([row.seq]))
        state.stats.ready += 1

    def _enter_ready(self, seqs: Any) -> None:
        """Put tasks among the ready ones, as their rows say."""
        self._db.execute(f"INSERT INTO ready (queue_id, rank, due_at, seq) {READY_KEYS}", (seqs,))
        for keys in LABEL_KEYS:
            self._db.execute(f"INSERT INTO ready_label (queue_id, label, rank, due_at, seq) {keys}", (seqs,))

    def _take_from_ready(self, state: QueueState, seqs: Any) -> None:
        """Take tasks out of the ready ones; those that are not among them are passed over."""
        state.stats.ready -= self._change(
            f"DELETE FROM ready WHERE (queue_id, rank, due_at, seq) IN ({READY_KEYS})", (seqs,)
        )
        for keys in LABEL_KEYS:
            self._db.execute(f"DELETE FROM ready_label WHERE (queue_id, label, rank, due_at, seq) IN ({keys})", (seqs,))

    def _take_from_everywhere(self, state: QueueState, seqs: Any) -> None:
        """Take tasks of one queue out of wherever they are, leases included, so that they can end or be removed."""
        self._take_from_ready(state, seqs)
        state.stats.scheduled -= self._change(
            "DELETE FROM scheduled WHERE (due_at, seq) IN"
            " (SELECT due_at, seq FROM task WHERE seq IN (SELECT value FROM carray(?)))",
            (seqs,),
        )
        for seq, nonce, worker_id in self._rows(
            "SELECT seq, nonce, worker_id FROM lease WHERE seq IN (SELECT value FROM carray(?))", (seqs,)
        ):
            self.applied.revoked.append((worker_id, format_lease_id(seq, nonce)))
        state.stats.leased -= self._change("DELETE FROM lease WHERE seq IN (SELECT value FROM carray(?))", (seqs,))
        for kept, count in self._rows(
            "SELECT state, count(*) FROM task WHERE seq IN (SELECT value FROM carray(?)) AND state IS NOT NULL"
            " GROUP BY state",
            (seqs,),
        ):
            if kept == TaskState.DEAD:
                state.stats.dead -= count
            else:
                state.stats.retained -= count

    # --- removing

    def _note_end(self, seqs: Any, end: TaskState) -> None:
        """Tell those who wait for these tasks that they have ended. One that is kept has ended before."""
        if self._watched:
            for (uid,) in self._rows(
                "SELECT uid FROM task WHERE seq IN (SELECT value FROM carray(?)) AND state IS NULL", (seqs,)
            ):
                if uid in self._watched:
                    self.applied.ended[uid] = end

    def _drop_rows(self, seqs: Any) -> None:
        """Remove task rows. What is remembered of their uids stays until its time, or goes here if it has passed."""
        if self._marks.swept_uid:
            self._db.execute(
                "DELETE FROM task_uid WHERE uid IN"
                " (SELECT uid FROM task WHERE seq IN (SELECT value FROM carray(?1)) AND uid <= ?2)",
                (seqs, self._marks.swept_uid),
            )
        self._db.execute("DELETE FROM task WHERE seq IN (SELECT value FROM carray(?))", (seqs,))

    def _remove(self, state: QueueState, seqs: Any) -> None:
        """Remove tasks of one queue that are in no place, with their history; their names become tombstones."""
        self._db.execute(
            "UPDATE task_name SET seq = NULL, expires_at = ?2 WHERE (queue_id, name) IN"
            " (SELECT queue_id, name FROM task WHERE seq IN (SELECT value FROM carray(?1)) AND name IS NOT NULL)",
            (seqs, self._now + state.policy.tombstone_ttl_us),
        )
        self._db.execute("DELETE FROM attempt WHERE seq IN (SELECT value FROM carray(?))", (seqs,))
        self._drop_rows(seqs)

    # --- failing and ending

    def _row(self, seq: int) -> TaskRow:
        return TaskRow(*self._rows(f"{SELECT_TASK} WHERE seq = ?", (seq,))[0])

    def _count_attempt(self, row: TaskRow, lease: LeaseRow) -> TaskRow:
        first_attempt_at = row.first_attempt_at or lease.leased_at
        self._db.execute(
            "UPDATE task SET attempts = ?, first_attempt_at = ? WHERE seq = ?",
            (lease.attempt, first_attempt_at, row.seq),
        )
        return row._replace(attempts=lease.attempt, first_attempt_at=first_attempt_at)

    def _fail(
        self,
        state: QueueState,
        row: TaskRow,
        lease: LeaseRow,
        outcome: AttemptOutcome,
        error: TaskError | None,
        delay_us: int | None = None,
    ) -> None:
        """Count a failed attempt whose lease is gone already, and make the task due again or a dead letter."""
        row = self._count_attempt(row, lease)
        self._record(row, lease, outcome, error)
        state.stats.failed_attempts_total += 1
        policy = load_retry(row.retry) if row.retry else state.policy.retry
        age_us = self._now - (row.first_attempt_at or self._now)
        if outcome is AttemptOutcome.FAILED or gives_up(policy, row.attempts, age_us):
            state.stats.dead_total += 1
            self._end(state, row, TaskState.DEAD, state.policy.dead_letter_retention_us)
            return
        wait_us = backoff_us(row.attempts, policy, random.random()) if delay_us is None else delay_us
        self._make_due(state, row, self._now + wait_us)

    def _make_due(self, state: QueueState, row: TaskRow, due_at: int) -> None:
        """Put a task that is in no place where its new due moment belongs."""
        self._db.execute("UPDATE task SET due_at = ? WHERE seq = ?", (due_at, row.seq))
        self._place(state, row._replace(due_at=due_at))

    def _record(self, row: TaskRow, lease: LeaseRow, outcome: AttemptOutcome, error: TaskError | None) -> None:
        """Add an attempt to the task's history, of which the last MAX_HISTORY stay."""
        ordinal = self._value("UPDATE task SET history = history + 1 WHERE seq = ? RETURNING history", (row.seq,))
        self._db.execute(
            "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.seq, ordinal, lease.attempt, lease.worker_id, lease.leased_at, self._now, outcome)
            + (error or (None, None, None)),
        )
        self._db.execute("DELETE FROM attempt WHERE seq = ? AND ordinal <= ?", (row.seq, ordinal - MAX_HISTORY))

    def _end(self, state: QueueState, row: TaskRow, end: TaskState, retention_us: int, result: bytes = b"") -> None:
        """Keep a task that is in no place for its retention, or remove it."""
        seqs = numbers([row.seq])
        self._note_end(seqs, end)
        if not retention_us:
            self._remove(state, seqs)
            return
        self._db.execute(
            "UPDATE task SET state = ?, ended_at = ?, expires_at = ?, result = ? WHERE seq = ?",
            (end, self._now, self._now + retention_us, result or None, row.seq),
        )
        if end is TaskState.DEAD:
            state.stats.dead += 1
        else:
            state.stats.retained += 1
