"""The operations of the SQLite store, applied one after the other in one transaction."""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import apsw

from adjourn_service import names
from adjourn_service.errors import (
    QueueNotFound,
    RequestIdOutOfWindow,
    ServiceError,
    TaskExists,
    TaskNameTombstoned,
    TaskNotFound,
    TaskStateRefused,
)
from adjourn_service.limiter import TokenBucket, next_token_at, refill
from adjourn_service.model import (
    SECOND_US,
    AttemptOutcome,
    LeasedTask,
    NewTask,
    Outcome,
    Queue,
    Settlement,
    TaskRecord,
    TaskState,
)
from adjourn_service.store import base
from adjourn_service.store.base import CHORE_LIMIT, LEASE_EXPIRED
from adjourn_service.store.policies import dump_retry
from adjourn_service.store.sqlite_file import seq_range
from adjourn_service.store.sqlite_places import Marks, Places
from adjourn_service.store.sqlite_queues import QueueState, QueueTable
from adjourn_service.store.sqlite_reader import find_seq, read_task
from adjourn_service.store.sqlite_rows import (
    SELECT_LEASE,
    LeaseRow,
    TaskRow,
    format_lease_id,
    labels,
    numbers,
    parse_lease_id,
)

UID_SWEEP: Final = 5000
"""Remembered uids that one maintenance step looks at."""

UID_SWEEP_PAUSE_US: Final = SECOND_US // 50
"""Pause between two such steps, so that forgetting a busy hour does not hold up the present: 250,000 uids a second."""

UID_TICK_US: Final = 1000
"""Resolution of the time in a uid."""

PLAIN: Final = tuple(NewTask(b"", "", b""))[3:]
"""What a task without any option looks like behind uid, queue and body."""


class Batch(Places):
    """One call of `apply`: its operations, inside a transaction that the store opens and commits."""

    def __init__(
        self,
        db: apsw.Connection,
        queues: QueueTable,
        marks: Marks,
        now: int,
        watched: Container[bytes],
        window_us: int,
    ) -> None:
        super().__init__(db, queues, marks, now, watched)
        self._window_us = window_us
        self._more_to_sweep = False

    def operate(self, operation: base.Operation) -> None:
        """Apply an operation, and add what came of it to the results."""
        try:
            result = self._OPERATIONS[type(operation)](self, operation)
        except ServiceError as refused:
            result = refused
        self.applied.results.append(result)

    def finish(self) -> base.Applied:
        """Write the counters, and return what the batch did. To be called before the commit."""
        self._queues.write_stats(self.touched)
        for state in self.touched:
            self.applied.ready[state.queue.id] = 0 if state.queue.paused else state.stats.ready
        self.applied.next_chore_at = self._value(
            "SELECT min(at) FROM (SELECT ?1 AS at UNION ALL SELECT min(due_at) FROM scheduled UNION ALL"
            " SELECT min(deadline_at) FROM lease UNION ALL"
            " SELECT min(expires_at) FROM task WHERE expires_at IS NOT NULL)",
            (self._now + UID_SWEEP_PAUSE_US if self._more_to_sweep else None,),
        )
        return self.applied

    # --- creating

    def _create(self, operation: base.Create) -> base.Refusals:
        refusals: base.Refusals = {}
        oldest = names.uid_floor(self._now - self._window_us)
        newest = names.uid_floor(self._now + self._window_us + UID_TICK_US)
        by_queue: defaultdict[str, list[int]] = defaultdict(list)
        tasks = operation.tasks
        for index, task in enumerate(tasks):
            if oldest <= task.uid < newest:
                by_queue[task.queue].append(index)
            elif task.queue in self._queues.by_name:
                refusals[index] = RequestIdOutOfWindow(names.uid_time_us(task.uid) - self._now, self._window_us)
            else:
                refusals[index] = QueueNotFound(task.queue)
        for queue, indices in by_queue.items():
            if queue not in self._queues.by_name:
                refusals.update((index, QueueNotFound(queue)) for index in indices)
                continue
            state = self._queue(queue)
            plain: list[NewTask] = []
            for index in indices:
                task = tasks[index]
                if task[3:] == PLAIN:
                    plain.append(task)
                    continue
                if plain:
                    self._create_plain(state, plain)
                    plain = []
                try:
                    self._create_one(state, task)
                except ServiceError as refused:
                    refusals[index] = refused
            if plain:
                self._create_plain(state, plain)
        return refusals

    def _create_plain(self, state: QueueState, tasks: list[NewTask]) -> None:
        """Create tasks without options: ready at once, and known by their uid only."""
        before = state.first_seq + state.stats.created_total
        packed = apsw.carray(tuple([task.uid + task.body for task in tasks]))
        remembered = self._change(
            "INSERT OR IGNORE INTO task_uid (uid, seq) SELECT substr(value, 1, 16), ?2 + rowid FROM carray(?1)",
            (packed, before),
        )
        if remembered < len(tasks):
            # Some were created before, or stand here twice: undo, and create the others.
            self._db.execute(
                "DELETE FROM task_uid WHERE uid IN (SELECT substr(value, 1, 16) FROM carray(?1))"
                " AND seq BETWEEN ?2 + 1 AND ?2 + ?3",
                (packed, before, len(tasks)),
            )
            unique: dict[bytes, NewTask] = {}
            for task in tasks:
                unique.setdefault(task.uid, task)
            uids = apsw.carray(tuple(unique))
            for (uid,) in self._rows("SELECT uid FROM task_uid WHERE uid IN (SELECT value FROM carray(?))", (uids,)):
                del unique[uid]
            if unique:
                self._create_plain(state, list(unique.values()))
            return
        self._db.execute(
            "INSERT INTO task (seq, uid, queue_id, rank, due_at, created_at, body)"
            " SELECT ?2 + rowid, substr(value, 1, 16), ?3, 0, ?4, ?4, substr(value, 17) FROM carray(?1)",
            (packed, before, state.queue_id, self._now),
        )
        self._db.execute(
            "INSERT INTO ready (queue_id, rank, due_at, seq) SELECT ?2, 0, ?3, ?4 + rowid FROM carray(?1)",
            (packed, state.queue_id, self._now, before),
        )
        state.stats.ready += len(tasks)
        state.stats.created_total += len(tasks)

    def _create_one(self, state: QueueState, task: NewTask) -> None:
        """Create a task with options. Raises: TaskExists, TaskNameTombstoned."""
        if self._value("SELECT seq FROM task_uid WHERE uid = ?", (task.uid,)) is not None:
            return
        seq = state.first_seq + state.stats.created_total + 1
        if task.name is not None:
            self._take_name(state, task.name, task.uid, seq)
        due_at = max(self._now, task.eta_at if task.eta_at is not None else self._now + task.countdown_us)
        retry = None if task.retry is None else dump_retry(task.retry)
        row = TaskRow(
            seq, task.uid, state.queue_id, -task.priority, due_at, 0, 0, None, task.name, task.tag or None,
            task.key or None, task.retain_us, retry, None,
        )  # fmt: skip
        self._db.execute("INSERT INTO task_uid (uid, seq) VALUES (?, ?)", (task.uid, seq))
        self._db.execute(
            f"INSERT INTO task ({', '.join(TaskRow._fields)}, created_at, body)"
            f" VALUES ({', '.join('?' for _ in row)}, ?, ?)",
            (*row, self._now, task.body),
        )
        state.stats.created_total += 1
        self._place(state, row)

    def _take_name(self, state: QueueState, name: str, uid: bytes, seq: int) -> None:
        row = self._db.execute(
            "SELECT seq, expires_at FROM task_name WHERE queue_id = ? AND name = ?", (state.queue_id, name)
        ).fetchone()
        if row is not None:
            holder, expires_at = row
            if holder is not None:
                raise TaskExists(names.task_name(state.queue.id, name, uid))
            if expires_at > self._now:
                raise TaskNameTombstoned(names.task_name(state.queue.id, name, uid))
        self._db.execute("INSERT OR REPLACE INTO task_name VALUES (?, ?, ?, NULL)", (state.queue_id, name, seq))

    # --- leasing

    def _lease(self, operation: base.Lease) -> base.Leased:
        if operation.queues is None:
            states = [state for state in self._queues.by_name.values() if state.stats.ready]
        else:
            states = [self._queues.by_name[queue] for queue in operation.queues if queue in self._queues.by_name]
        leased: list[LeasedTask] = []
        more_at: int | None = None
        self._marks.turn += 1
        start = self._marks.turn % len(states) if states else 0
        for state in states[start:] + states[:start]:
            if len(leased) == operation.limit:
                break
            room, refill_at = self._room(state, operation.limit - len(leased))
            given = self._lease_from(state, room, operation) if room > 0 else []
            leased += given
            # Where there were fewer tasks of the label than tokens, it was not the rate that held back more.
            if refill_at is not None and len(given) == room:
                more_at = refill_at if more_at is None else min(more_at, refill_at)
        return base.Leased(leased, more_at)

    def _room(self, state: QueueState, wanted: int) -> tuple[int, int | None]:
        """Return how many leases the queue may give, and when a rate limit lets go of more if it is in the way."""
        limits, stats = state.policy.rate_limits, state.stats
        if state.queue.paused or not stats.ready:
            return 0, None
        room = min(wanted, stats.ready)
        if limits.max_concurrent_leases is not None:
            room = min(room, limits.max_concurrent_leases - stats.leased)
        if limits.max_leases_per_second is None or room <= 0:
            return room, None
        state.bucket = bucket = refill(state.bucket, limits, self._now)
        if bucket.tokens >= room:
            return room, None
        left = TokenBucket(bucket.tokens % 1, self._now)
        return int(bucket.tokens), next_token_at(left, limits)

    def _lease_from(self, state: QueueState, limit: int, operation: base.Lease) -> list[LeasedTask]:
        where, bindings = "r.queue_id = ?2", (limit, state.queue_id)
        source = "ready"
        for label in labels(operation.tag, operation.key):
            source, where = "ready_label", "r.queue_id = ?2 AND r.label = ?3"
            bindings += (label,)  # type: ignore[assignment]
        rows = self._rows(
            "SELECT t.seq, t.uid, t.name, t.attempts, t.retain_us, t.body, r.rank, r.due_at"
            f" FROM {source} r CROSS JOIN task t ON t.seq = r.seq WHERE {where}"
            " ORDER BY r.rank, r.due_at, r.seq LIMIT ?1",
            bindings,
        )
        if not rows:
            return []
        self.touched.add(state)
        seqs = numbers([row[0] for row in rows])
        if source == "ready" and not self._labelled(state):
            # The rows are the head of the order: cut it off.
            last = rows[-1]
            state.stats.ready -= self._change(
                "DELETE FROM ready WHERE queue_id = ?1 AND (rank, due_at, seq) <= (?2, ?3, ?4)",
                (state.queue_id, last[6], last[7], last[0]),
            )
        else:
            self._take_from_ready(state, seqs)
        self._marks.nonce = nonce = self._marks.nonce + 1
        duration_us = operation.duration_us or state.policy.lease_duration_us
        self._db.execute(
            "INSERT INTO lease (seq, nonce, queue_id, attempt, special, deadline_at, leased_at, worker_id)"
            " SELECT seq, ?2, queue_id, attempts + 1, name IS NOT NULL OR retain_us IS NOT NULL OR history > 0,"
            " ?3, ?4, ?5"
            " FROM task WHERE seq IN (SELECT value FROM carray(?1))",
            (seqs, nonce, self._now + duration_us, self._now, operation.worker_id),
        )
        state.stats.leased += len(rows)
        if state.bucket is not None and state.policy.rate_limits.max_leases_per_second is not None:
            state.bucket = TokenBucket(state.bucket.tokens - len(rows), state.bucket.at)
        queue, retention_us = state.queue.id, state.policy.result_retention_us
        task_deadline_us = state.policy.task_deadline_us
        return [
            LeasedTask(
                f"{seq}.{nonce}",
                queue,
                uid,
                name,
                attempts + 1,
                duration_us,
                (retention_us if retain_us is None else retain_us) > 0,
                body,
                task_deadline_us,
            )
            for seq, uid, name, attempts, retain_us, body, _, _ in rows
        ]

    def _labelled(self, state: QueueState) -> bool:
        """Say whether any ready task of the queue has a tag or a key."""
        return self._value("SELECT 1 FROM ready_label WHERE queue_id = ? LIMIT 1", (state.queue_id,)) is not None

    # --- settling

    def _settle(self, operation: base.Settle) -> base.Lost:
        lost = self._succeed(operation.succeeded) if operation.succeeded else []
        for settlement in operation.others:
            lease = self._held(settlement.lease_id)
            if lease is None:
                lost.append(settlement.lease_id)
            else:
                self._settle_one(lease, settlement)
        return lost

    def _held(self, lease_id: str) -> LeaseRow | None:
        seq, nonce = parse_lease_id(lease_id)
        row = self._db.execute(f"{SELECT_LEASE} WHERE seq = ? AND nonce = ?", (seq, nonce)).fetchone()
        return row and LeaseRow(*row)

    def _succeed(self, lease_ids: Sequence[str]) -> base.Lost:
        """Settle successes without a result: as a set, but for the few that need more than their rows removed."""
        wanted = {parse_lease_id(lease_id): lease_id for lease_id in lease_ids}
        settled: list[str] = []
        plain: defaultdict[int, list[int]] = defaultdict(list)
        for seq, nonce, queue_id, special in self._rows(
            "SELECT seq, nonce, queue_id, special FROM lease WHERE seq IN (SELECT value FROM carray(?))",
            (numbers([seq for seq, _ in wanted]),),
        ):
            lease_id = wanted.get((seq, nonce))
            if lease_id is None:
                continue
            settled.append(lease_id)
            if special or self._queues.by_id[queue_id].policy.result_retention_us:
                lease = self._held(lease_id)
                assert lease is not None
                self._settle_one(lease, Settlement(lease_id, Outcome.SUCCEEDED))
            else:
                plain[queue_id].append(seq)
        for queue_id, gone in plain.items():
            state = self._queue_by_id(queue_id)
            seqs = numbers(gone)
            self._note_end(seqs, TaskState.SUCCEEDED)
            self._db.execute("DELETE FROM lease WHERE seq IN (SELECT value FROM carray(?))", (seqs,))
            self._drop_rows(seqs)
            state.stats.leased -= len(gone)
            state.stats.succeeded_total += len(gone)
        if len(settled) == len(lease_ids):
            return []
        once = set(settled)
        lost: base.Lost = []
        for lease_id in lease_ids:
            if lease_id in once:
                once.remove(lease_id)
            else:
                lost.append(lease_id)
        return lost

    def _settle_one(self, lease: LeaseRow, settlement: Settlement) -> None:
        row = self._row(lease.seq)
        state = self._queue_by_id(row.queue_id)
        self._db.execute("DELETE FROM lease WHERE seq = ?", (row.seq,))
        state.stats.leased -= 1
        match settlement.outcome:
            case Outcome.SUCCEEDED:
                state.stats.succeeded_total += 1
                retention_us = state.policy.result_retention_us if row.retain_us is None else row.retain_us
                counted = self._count_attempt(row, lease)
                self._end(state, counted, TaskState.SUCCEEDED, retention_us, settlement.result)
            case Outcome.RELEASED:
                self._make_ready(state, row)
            case Outcome.RETRY:
                self._fail(state, row, lease, AttemptOutcome.RETRY, settlement.error, settlement.delay_us)
            case Outcome.CRASHED:
                self._fail(state, row, lease, AttemptOutcome.CRASHED, settlement.error)
            case Outcome.FAILED:
                self._fail(state, row, lease, AttemptOutcome.FAILED, settlement.error)

    def _renew(self, operation: base.Renew) -> base.Lost:
        if not operation.lease_ids:
            return []
        wanted = {parse_lease_id(lease_id): lease_id for lease_id in operation.lease_ids}
        by_queue: defaultdict[int, list[int]] = defaultdict(list)
        renewed = set()
        for seq, nonce, queue_id in self._rows(
            "SELECT seq, nonce, queue_id FROM lease WHERE seq IN (SELECT value FROM carray(?))",
            (numbers([seq for seq, _ in wanted]),),
        ):
            if (seq, nonce) in wanted:
                by_queue[queue_id].append(seq)
                renewed.add(wanted[seq, nonce])
        for queue_id, seqs in by_queue.items():
            duration_us = operation.duration_us or self._queues.by_id[queue_id].policy.lease_duration_us
            self._db.execute(
                "UPDATE lease SET deadline_at = ? WHERE seq IN (SELECT value FROM carray(?))",
                (self._now + duration_us, numbers(seqs)),
            )
        return [lease_id for lease_id in operation.lease_ids if lease_id not in renewed]

    def _reconcile(self, operation: base.Reconcile) -> base.Lost:
        theirs = {
            format_lease_id(lease.seq, lease.nonce): lease
            for lease in map(
                LeaseRow._make,
                self._rows(f"{SELECT_LEASE} WHERE worker_id = ?", (operation.worker_id,)),
            )
        }
        held = set(operation.held)
        for lease_id, lease in theirs.items():
            if lease_id not in held:
                self._settle_one(lease, Settlement(lease_id, Outcome.RELEASED))
        return [lease_id for lease_id in operation.held if lease_id not in theirs]

    def _resume(self, _: base.Resume) -> None:
        for state in self._queues.by_name.values():
            deadline_at = self._now + state.policy.lease_duration_us
            self._db.execute(
                "UPDATE lease SET deadline_at = ?1 WHERE deadline_at < ?1 AND queue_id = ?2",
                (deadline_at, state.queue_id),
            )

    # --- single tasks, by hand

    def _find(self, queue: str, task: str) -> tuple[QueueState, TaskRow]:
        seq = find_seq(self._db, queue, task)
        if seq is None:
            raise TaskNotFound(f"queues/{queue}/tasks/{task}")
        return self._queue(queue), self._row(seq)

    def _read_back(self, seq: int) -> TaskRecord:
        record = read_task(self._db, seq)
        assert record is not None
        return record

    def _cancel(self, operation: base.Cancel) -> TaskRecord:
        state, row = self._find(operation.queue, operation.task)
        if row.state is not None:
            raise _refused(state, row, TaskState(row.state), "cancelled")
        lease = self._db.execute(f"{SELECT_LEASE} WHERE seq = ?", (row.seq,)).fetchone()
        self._take_from_everywhere(state, numbers([row.seq]))
        if lease is not None:
            self._record(row, LeaseRow(*lease), AttemptOutcome.CANCELLED, None)
        record = self._read_back(row.seq)
        retention_us = state.policy.dead_letter_retention_us
        self._end(state, row, TaskState.CANCELLED, retention_us)
        if retention_us:
            return self._read_back(row.seq)
        return replace(record, state=TaskState.CANCELLED, ended_at=self._now, expires_at=self._now)

    def _delete(self, operation: base.Delete) -> None:
        state, row = self._find(operation.queue, operation.task)
        seqs = numbers([row.seq])
        self._take_from_everywhere(state, seqs)
        self._note_end(seqs, TaskState.CANCELLED)
        self._remove(state, seqs)

    def _run(self, operation: base.Run) -> TaskRecord:
        state, row = self._find(operation.queue, operation.task)
        record = self._read_back(row.seq)
        if record.state is TaskState.READY:
            return record
        if record.state is not TaskState.SCHEDULED:
            raise _refused(state, row, record.state, "run now")
        self._take_from_everywhere(state, numbers([row.seq]))
        self._make_due(state, row, self._now)
        return self._read_back(row.seq)

    def _retry(self, operation: base.Retry) -> TaskRecord:
        state, row = self._find(operation.queue, operation.task)
        record = self._read_back(row.seq)
        if record.state not in (TaskState.DEAD, TaskState.CANCELLED):
            raise _refused(state, row, record.state, "retried")
        self._take_from_everywhere(state, numbers([row.seq]))
        self._db.execute(
            "UPDATE task SET state = NULL, ended_at = NULL, expires_at = NULL, result = NULL, attempts = 0,"
            " first_attempt_at = NULL WHERE seq = ?",
            (row.seq,),
        )
        self._make_due(state, row, self._now)
        return self._read_back(row.seq)

    # --- queues

    def _create_queue(self, operation: base.CreateQueue) -> Queue:
        state = self._queues.create(operation.queue, operation.policy, self._now)
        self.touched.add(state)
        return state.queue

    def _update_queue(self, operation: base.UpdateQueue) -> Queue:
        state = self._queue(operation.queue)
        self._queues.set_policy(state, operation.policy, self._now)
        return state.queue

    def _pause_queue(self, operation: base.PauseQueue) -> Queue:
        state = self._queue(operation.queue)
        self._queues.set_paused(state, operation.paused, self._now)
        return state.queue

    def _delete_queue(self, operation: base.DeleteQueue) -> None:
        state = self._queue(operation.queue)
        self._queues.delete(state)
        self.touched.discard(state)

    def _purge(self, operation: base.Purge) -> base.Purged:
        state = self._queue(operation.queue)
        first, last = seq_range(state.queue_id)
        found = self._rows(
            "SELECT seq, created_at FROM task WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
            (first, last, CHORE_LIMIT),
        )
        until = operation.created_until_at
        purged = [seq for seq, created_at in found if until is None or created_at <= until]
        if purged:
            seqs = numbers(purged)
            self._take_from_everywhere(state, seqs)
            self._note_end(seqs, TaskState.CANCELLED)
            self._remove(state, seqs)
        return base.Purged(len(purged), len(purged) < CHORE_LIMIT)

    # --- what time brings

    def _maintain(self, _: base.Maintain) -> None:
        self._promote()
        self._expire_leases()
        self._expire_kept()
        self._db.execute(
            "DELETE FROM task_name WHERE (queue_id, name) IN"
            " (SELECT queue_id, name FROM task_name WHERE expires_at <= ? LIMIT ?)",
            (self._now, CHORE_LIMIT),
        )
        self._sweep_uids()

    def _promote(self) -> None:
        due = self._rows(
            "SELECT due_at, seq FROM scheduled WHERE due_at <= ? ORDER BY due_at, seq LIMIT ?",
            (self._now, CHORE_LIMIT),
        )
        if not due:
            return
        seqs = numbers([seq for _, seq in due])
        self._db.execute("DELETE FROM scheduled WHERE (due_at, seq) <= (?, ?)", due[-1])
        self._enter_ready(seqs)
        for queue_id, count in self._rows(
            "SELECT queue_id, count(*) FROM task WHERE seq IN (SELECT value FROM carray(?)) GROUP BY queue_id", (seqs,)
        ):
            state = self._queue_by_id(queue_id)
            state.stats.scheduled -= count
            state.stats.ready += count

    def _expire_leases(self) -> None:
        expired = self._rows(
            f"{SELECT_LEASE} WHERE deadline_at <= ? ORDER BY deadline_at LIMIT ?", (self._now, CHORE_LIMIT)
        )
        for lease in map(LeaseRow._make, expired):
            row = self._row(lease.seq)
            state = self._queue_by_id(row.queue_id)
            self._db.execute("DELETE FROM lease WHERE seq = ?", (row.seq,))
            state.stats.leased -= 1
            self._fail(state, row, lease, AttemptOutcome.EXPIRED, LEASE_EXPIRED)

    def _expire_kept(self) -> None:
        by_queue: defaultdict[int, list[int]] = defaultdict(list)
        for seq, queue_id in self._rows(
            "SELECT seq, queue_id FROM task WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (self._now, CHORE_LIMIT)
        ):
            by_queue[queue_id].append(seq)
        for queue_id, gone in by_queue.items():
            state, seqs = self._queue_by_id(queue_id), numbers(gone)
            self._take_from_everywhere(state, seqs)
            self._remove(state, seqs)

    def _sweep_uids(self) -> None:
        """Forget uids whose own time is past the window and whose task is gone.

        The sweep goes over each uid once: of a task that still lives then, the uid goes with its row."""
        horizon = names.uid_floor(self._now - self._window_us)
        until = self._value(
            "SELECT max(uid) FROM (SELECT uid FROM task_uid WHERE uid > ? AND uid < ? ORDER BY uid LIMIT ?)",
            (self._marks.swept_uid, horizon, UID_SWEEP),
        )
        if until is None:
            return
        looked_at = self._value(
            "SELECT count(*) FROM task_uid WHERE uid > ? AND uid <= ?", (self._marks.swept_uid, until)
        )
        self._db.execute(
            "DELETE FROM task_uid WHERE uid > ? AND uid <= ?"
            " AND NOT EXISTS (SELECT 1 FROM task WHERE task.seq = task_uid.seq)",
            (self._marks.swept_uid, until),
        )
        self._marks.swept_uid = until
        self._more_to_sweep = looked_at == UID_SWEEP

    _OPERATIONS: ClassVar[Mapping[type, Callable[[Any, Any], base.Result]]] = {
        base.Create: _create,
        base.Lease: _lease,
        base.Settle: _settle,
        base.Renew: _renew,
        base.Reconcile: _reconcile,
        base.Resume: _resume,
        base.Cancel: _cancel,
        base.Delete: _delete,
        base.Run: _run,
        base.Retry: _retry,
        base.CreateQueue: _create_queue,
        base.UpdateQueue: _update_queue,
        base.PauseQueue: _pause_queue,
        base.DeleteQueue: _delete_queue,
        base.Purge: _purge,
        base.Maintain: _maintain,
    }


def _refused(state: QueueState, row: TaskRow, found: TaskState, verb: str) -> TaskStateRefused:
    return TaskStateRefused(names.task_name(state.queue.id, row.name, row.uid), found.name, verb)
