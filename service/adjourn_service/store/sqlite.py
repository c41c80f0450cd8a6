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

import random
import secrets
import threading
from array import array
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

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
from adjourn_service.limiter import TokenBucket, next_token_at, refill
from adjourn_service.model import (
    DEFAULT_QUEUE,
    SECOND_US,
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
from adjourn_service.store import base
from adjourn_service.store.base import CHORE_LIMIT, LEASE_EXPIRED, MAX_HISTORY, Applied
from adjourn_service.store.migrate import migrate_sqlite
from adjourn_service.store.policies import dump_queue_policy, dump_retry, load_queue_policy, load_retry
from adjourn_service.store.sqlite_file import lock, open_writer, refusal, seq_range
from adjourn_service.store.sqlite_reader import SqliteReader, find_seq, read_task

IDEMPOTENCY_WINDOW_US: Final = 600 * SECOND_US

UID_SWEEP: Final = 5000
"""Remembered uids that one maintenance step looks at."""

UID_SWEEP_PAUSE_US: Final = SECOND_US // 50
"""Pause between two such steps, so that forgetting a busy hour does not hold up the present: 250,000 uids a second."""

UID_TICK_US: Final = 1000
"""Resolution of the time in a uid."""

_PLAIN: Final = tuple(NewTask(b"", "", b""))[3:]
"""What a task without any option looks like behind uid, queue and body."""


class _QueueState:
    """A queue in memory: its row, its counters and its token bucket."""

    __slots__ = ("bucket", "first_seq", "policy", "queue", "queue_id", "stats")

    def __init__(self, queue_id: int, queue: Queue, stats: QueueStats, bucket: TokenBucket | None) -> None:
        self.queue_id = queue_id
        self.first_seq, _ = seq_range(queue_id)
        self.stats = stats
        self.bucket = bucket
        self.replace(queue)

    def replace(self, queue: Queue) -> None:
        """Take over a new version of the queue."""
        self.queue = queue
        self.policy: QueuePolicy = queue.policy


class _TaskRow(NamedTuple):
    """A task without its body: what the paths off the happy one work on."""

    seq: int
    uid: bytes
    queue_id: int
    rank: int
    due_at: int
    attempts: int
    history: int
    first_attempt_at: int | None
    name: str | None
    tag: str | None
    key: str | None
    retain_us: int | None
    retry: str | None
    state: int | None


class _LeaseRow(NamedTuple):
    seq: int
    nonce: int
    attempt: int
    leased_at: int
    worker_id: str


_AMONG: Final = "seq IN (SELECT value FROM carray(?1))"
_READY_KEYS: Final = f"SELECT queue_id, rank, due_at, seq FROM task WHERE {_AMONG}"
_LABEL_KEYS: Final = (
    f"SELECT queue_id, 't' || tag, rank, due_at, seq FROM task WHERE {_AMONG} AND tag IS NOT NULL",
    f"SELECT queue_id, 'k' || key, rank, due_at, seq FROM task WHERE {_AMONG} AND key IS NOT NULL",
)
"""Apart, because SQLite would look up a UNION of both by scanning the table that it is compared with."""
_SELECT_TASK: Final = f"SELECT {', '.join(_TaskRow._fields)} FROM task"
_SELECT_LEASE: Final = f"SELECT {', '.join(_LeaseRow._fields)} FROM lease"


def _lease_id(seq: int, nonce: int) -> str:
    return f"{seq}.{nonce}"


def _parse_lease_id(lease_id: str) -> tuple[int, int]:
    """Return the numbers in a lease id; numbers that no lease has if it is none of ours."""
    seq, _, nonce = lease_id.partition(".")
    try:
        numbers = int(seq), int(nonce)
    except ValueError:
        return -1, -1
    return numbers if max(map(abs, numbers)) < 1 << 63 else (-1, -1)


def _numbers(values: Iterable[int]) -> Any:
    """Bind an array of integers, for `carray`."""
    return apsw.carray(array("q", values))


class SqliteStore:
    """The contract of `store.base` on one SQLite file, which it locks against other processes.

    Raises: ConfigError if the file cannot be opened, is no store of ours, or is in use."""

    def __init__(
        self, path: Path, clock: Clock | None = None, idempotency_window_us: int = IDEMPOTENCY_WINDOW_US
    ) -> None:
        self._clock = clock or SystemClock()
        self._window_us = idempotency_window_us
        self._mutex = threading.Lock()
        self._operators: dict[type, Callable[[Any], base.Result]] = {
            base.Create: self._create,
            base.Lease: self._lease,
            base.Settle: self._settle,
            base.Renew: self._renew,
            base.Reconcile: self._reconcile,
            base.Resume: self._resume,
            base.Cancel: self._cancel,
            base.Delete: self._delete,
            base.Run: self._run,
            base.Retry: self._retry,
            base.CreateQueue: self._create_queue,
            base.UpdateQueue: self._update_queue,
            base.PauseQueue: self._pause_queue,
            base.DeleteQueue: self._delete_queue,
            base.Purge: self._purge,
            base.Maintain: self._maintain,
        }
        self._lock_file = lock(path)
        try:
            self._db = open_writer(path)
            migrate_sqlite(self._db)
            self._load()
            self._reader = SqliteReader(path)
        except BaseException:
            self._lock_file.close()
            raise
        # Random, and not the time: a clock that is set back, or a restored backup, must not bring a lease id again.
        self._nonce = secrets.randbits(62)
        self._turn = 0
        self._swept_uid = b""
        if DEFAULT_QUEUE not in self._queues:
            self.apply([base.CreateQueue(DEFAULT_QUEUE, QueuePolicy())])

    def apply(
        self, operations: Sequence[base.Operation], now: int | None = None, watched: Container[bytes] = frozenset()
    ) -> Applied:
        """Apply a batch in one durable commit; see `store.base`."""
        with self._mutex:
            self._now = self._clock.now() if now is None else now
            self._watched = watched
            self._applied = applied = Applied([])
            self._touched: set[_QueueState] = set()
            self._more_to_sweep = False
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for operation in operations:
                    applied.results.append(self._operate(operation))
                self._write_stats()
                applied.next_chore_at = self._next_chore_at()
                self._db.execute("COMMIT")
            except BaseException as error:
                self._roll_back()
                if isinstance(error, apsw.Error):
                    raise refusal(error) from error
                raise
            for state in self._touched:
                applied.ready[state.queue.id] = 0 if state.queue.paused else state.stats.ready
            return applied

    def get_task(self, queue: str, task: str) -> TaskRecord | None:
        """Return the task by name or uid; see `store.base`."""
        return self._reader.get_task(queue, task)

    def list_tasks(self, wanted: TaskFilter, limit: int, cursor: int | None = None) -> TaskPage:
        """Return a page of tasks; see `store.base`."""
        return TaskPage(*self._reader.list_tasks(wanted, limit, cursor))

    def get_queue(self, queue: str) -> Queue | None:
        """Return the queue, or None."""
        state = self._queues.get(queue)
        return None if state is None else state.queue

    def list_queues(self) -> list[Queue]:
        """Return all queues by id."""
        return [state.queue for _, state in sorted(self._queues.copy().items())]

    def get_stats(self, queue: str) -> QueueStats | None:
        """Return the counters of a queue, or None."""
        state = self._queues.get(queue)
        if state is None:
            return None
        return replace(state.stats, next_ready_at=self._reader.next_ready_at(state.queue_id))

    def close(self) -> None:
        """Close the file and give up its lock."""
        with self._mutex:
            self._reader.close()
            self._db.close()
            self._lock_file.close()

    # --- the transaction around the operations

    def _operate(self, operation: base.Operation) -> base.Result:
        try:
            return self._operators[type(operation)](operation)
        except ServiceError as refused:
            return refused

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._load()

    def _load(self) -> None:
        """Read the queues and their counters, at start and after a transaction that failed."""
        self._queues: dict[str, _QueueState] = {}
        self._by_id: dict[int, _QueueState] = {}
        rows = self._db.execute(
            "SELECT queue_id, id, policy, paused, created_at, updated_at, scheduled, ready, leased, dead, retained,"
            " created_total, succeeded_total, failed_attempts_total, dead_total, tokens, tokens_at"
            " FROM queue JOIN queue_stats USING (queue_id)"
        )
        for queue_id, name, policy, paused, created_at, updated_at, *counters, tokens, tokens_at in rows:
            queue = Queue(name, load_queue_policy(policy), bool(paused), created_at, updated_at)
            bucket = None if tokens is None else TokenBucket(tokens, tokens_at)
            self._remember(_QueueState(queue_id, queue, QueueStats(*counters), bucket))

    def _remember(self, state: _QueueState) -> None:
        self._queues[state.queue.id] = state
        self._by_id[state.queue_id] = state

    def _write_stats(self) -> None:
        for state in self._touched:
            stats, bucket = state.stats, state.bucket
            self._db.execute(
                "UPDATE queue_stats SET scheduled = ?, ready = ?, leased = ?, dead = ?, retained = ?,"
                " created_total = ?, succeeded_total = ?, failed_attempts_total = ?, dead_total = ?, tokens = ?,"
                " tokens_at = ? WHERE queue_id = ?",
                (
                    stats.scheduled,
                    stats.ready,
                    stats.leased,
                    stats.dead,
                    stats.retained,
                    stats.created_total,
                    stats.succeeded_total,
                    stats.failed_attempts_total,
                    stats.dead_total,
                    bucket and bucket.tokens,
                    bucket and bucket.at,
                    state.queue_id,
                ),
            )

    def _next_chore_at(self) -> int | None:
        if self._more_to_sweep:
            pause = self._now + UID_SWEEP_PAUSE_US
            self._more_to_sweep = False
        else:
            pause = None
        at: int | None = self._value(
            "SELECT min(at) FROM (SELECT ?1 AS at UNION ALL SELECT min(due_at) FROM scheduled UNION ALL"
            " SELECT min(deadline_at) FROM lease UNION ALL"
            " SELECT min(expires_at) FROM task WHERE expires_at IS NOT NULL)",
            (pause,),
        )
        return at

    def _value(self, sql: str, bindings: tuple[Any, ...] = ()) -> Any:
        row = self._db.execute(sql, bindings).fetchone()
        return row and row[0]

    def _rows(self, sql: str, bindings: tuple[Any, ...]) -> list[Any]:
        return self._db.execute(sql, bindings).fetchall()

    def _change(self, sql: str, bindings: tuple[Any, ...]) -> int:
        """Run a statement and return how many rows it changed."""
        self._db.execute(sql, bindings)
        return self._db.changes()

    def _queue(self, queue: str) -> _QueueState:
        state = self._queues.get(queue)
        if state is None:
            raise QueueNotFound(queue)
        self._touched.add(state)
        return state

    def _queue_by_id(self, queue_id: int) -> _QueueState:
        state = self._by_id[queue_id]
        self._touched.add(state)
        return state

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
            elif task.queue in self._queues:
                refusals[index] = RequestIdOutOfWindow(names.uid_time_us(task.uid) - self._now, self._window_us)
            else:
                refusals[index] = QueueNotFound(task.queue)
        for queue, indices in by_queue.items():
            if queue not in self._queues:
                refusals.update((index, QueueNotFound(queue)) for index in indices)
                continue
            state = self._queue(queue)
            plain: list[NewTask] = []
            for index in indices:
                task = tasks[index]
                if task[3:] == _PLAIN:
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

    def _create_plain(self, state: _QueueState, tasks: list[NewTask]) -> None:
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

    def _create_one(self, state: _QueueState, task: NewTask) -> None:
        """Create a task with options. Raises: TaskExists, TaskNameTombstoned."""
        if self._value("SELECT seq FROM task_uid WHERE uid = ?", (task.uid,)) is not None:
            return
        seq = state.first_seq + state.stats.created_total + 1
        if task.name is not None:
            self._take_name(state, task.name, task.uid, seq)
        due_at = max(self._now, task.eta_at if task.eta_at is not None else self._now + task.countdown_us)
        retry = None if task.retry is None else dump_retry(task.retry)
        row = _TaskRow(
            seq, task.uid, state.queue_id, -task.priority, due_at, 0, 0, None, task.name, task.tag or None,
            task.key or None, task.retain_us, retry, None,
        )  # fmt: skip
        self._db.execute("INSERT INTO task_uid (uid, seq) VALUES (?, ?)", (task.uid, seq))
        self._db.execute(
            f"INSERT INTO task ({', '.join(_TaskRow._fields)}, created_at, body)"
            f" VALUES ({', '.join('?' for _ in row)}, ?, ?)",
            (*row, self._now, task.body),
        )
        state.stats.created_total += 1
        self._place(state, row)

    def _take_name(self, state: _QueueState, name: str, uid: bytes, seq: int) -> None:
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

    # --- where a live task waits

    def _place(self, state: _QueueState, row: _TaskRow) -> None:
        """Put a task that is in no place among the ready or the scheduled ones."""
        if row.due_at > self._now:
            self._db.execute("INSERT INTO scheduled (due_at, seq) VALUES (?, ?)", (row.due_at, row.seq))
            state.stats.scheduled += 1
            return
        self._enter_ready(_numbers([row.seq]))
        state.stats.ready += 1

    def _enter_ready(self, seqs: Any) -> None:
        """Put tasks among the ready ones, as their rows say."""
        self._db.execute(f"INSERT INTO ready (queue_id, rank, due_at, seq) {_READY_KEYS}", (seqs,))
        for keys in _LABEL_KEYS:
            self._db.execute(f"INSERT INTO ready_label (queue_id, label, rank, due_at, seq) {keys}", (seqs,))

    def _take_from_ready(self, state: _QueueState, seqs: Any) -> None:
        """Take tasks out of the ready ones; those that are not among them are passed over."""
        state.stats.ready -= self._change(
            f"DELETE FROM ready WHERE (queue_id, rank, due_at, seq) IN ({_READY_KEYS})", (seqs,)
        )
        for keys in _LABEL_KEYS:
            self._db.execute(f"DELETE FROM ready_label WHERE (queue_id, label, rank, due_at, seq) IN ({keys})", (seqs,))

    def _take_from_everywhere(self, state: _QueueState, seqs: Any) -> None:
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
            self._applied.revoked.append((worker_id, _lease_id(seq, nonce)))
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
                    self._applied.ended[uid] = end

    def _drop_rows(self, seqs: Any) -> None:
        """Remove task rows. What is remembered of their uids stays until its time, or goes here if it has passed."""
        if self._swept_uid:
            self._db.execute(
                "DELETE FROM task_uid WHERE uid IN"
                " (SELECT uid FROM task WHERE seq IN (SELECT value FROM carray(?1)) AND uid <= ?2)",
                (seqs, self._swept_uid),
            )
        self._db.execute("DELETE FROM task WHERE seq IN (SELECT value FROM carray(?))", (seqs,))

    def _remove(self, state: _QueueState, seqs: Any) -> None:
        """Remove tasks of one queue that are in no place, with their history; their names become tombstones."""
        self._db.execute(
            "UPDATE task_name SET seq = NULL, expires_at = ?2 WHERE (queue_id, name) IN"
            " (SELECT queue_id, name FROM task WHERE seq IN (SELECT value FROM carray(?1)) AND name IS NOT NULL)",
            (seqs, self._now + state.policy.tombstone_ttl_us),
        )
        self._db.execute("DELETE FROM attempt WHERE seq IN (SELECT value FROM carray(?))", (seqs,))
        self._drop_rows(seqs)

    # --- leasing

    def _lease(self, operation: base.Lease) -> base.Leased:
        if operation.queues is None:
            states = [state for state in self._queues.values() if state.stats.ready]
        else:
            states = [self._queues[queue] for queue in operation.queues if queue in self._queues]
        leased: list[LeasedTask] = []
        more_at: int | None = None
        self._turn += 1
        start = self._turn % len(states) if states else 0
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

    def _room(self, state: _QueueState, wanted: int) -> tuple[int, int | None]:
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

    def _lease_from(self, state: _QueueState, limit: int, operation: base.Lease) -> list[LeasedTask]:
        where, bindings = "r.queue_id = ?2", (limit, state.queue_id)
        source = "ready"
        for label in _labels(operation.tag, operation.key):
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
        self._touched.add(state)
        seqs = _numbers([row[0] for row in rows])
        if source == "ready" and not self._labelled(state):
            # The rows are the head of the order: cut it off.
            last = rows[-1]
            state.stats.ready -= self._change(
                "DELETE FROM ready WHERE queue_id = ?1 AND (rank, due_at, seq) <= (?2, ?3, ?4)",
                (state.queue_id, last[6], last[7], last[0]),
            )
        else:
            self._take_from_ready(state, seqs)
        self._nonce = nonce = self._nonce + 1
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

    def _labelled(self, state: _QueueState) -> bool:
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

    def _held(self, lease_id: str) -> _LeaseRow | None:
        seq, nonce = _parse_lease_id(lease_id)
        row = self._db.execute(f"{_SELECT_LEASE} WHERE seq = ? AND nonce = ?", (seq, nonce)).fetchone()
        return row and _LeaseRow(*row)

    def _succeed(self, lease_ids: Sequence[str]) -> base.Lost:
        """Settle successes without a result: as a set, but for the few that need more than their rows removed."""
        wanted = {_parse_lease_id(lease_id): lease_id for lease_id in lease_ids}
        settled: list[str] = []
        plain: defaultdict[int, list[int]] = defaultdict(list)
        for seq, nonce, queue_id, special in self._rows(
            "SELECT seq, nonce, queue_id, special FROM lease WHERE seq IN (SELECT value FROM carray(?))",
            (_numbers([seq for seq, _ in wanted]),),
        ):
            lease_id = wanted.get((seq, nonce))
            if lease_id is None:
                continue
            settled.append(lease_id)
            if special or self._by_id[queue_id].policy.result_retention_us:
                lease = self._held(lease_id)
                assert lease is not None
                self._settle_one(lease, Settlement(lease_id, Outcome.SUCCEEDED))
            else:
                plain[queue_id].append(seq)
        for queue_id, gone in plain.items():
            state = self._queue_by_id(queue_id)
            seqs = _numbers(gone)
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

    def _settle_one(self, lease: _LeaseRow, settlement: Settlement) -> None:
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
                self._place(state, row)
            case Outcome.RETRY:
                self._fail(state, row, lease, AttemptOutcome.RETRY, settlement.error, settlement.delay_us)
            case Outcome.CRASHED:
                self._fail(state, row, lease, AttemptOutcome.CRASHED, settlement.error)
            case Outcome.FAILED:
                self._fail(state, row, lease, AttemptOutcome.FAILED, settlement.error)

    def _row(self, seq: int) -> _TaskRow:
        return _TaskRow(*self._rows(f"{_SELECT_TASK} WHERE seq = ?", (seq,))[0])

    def _count_attempt(self, row: _TaskRow, lease: _LeaseRow) -> _TaskRow:
        first_attempt_at = row.first_attempt_at or lease.leased_at
        self._db.execute(
            "UPDATE task SET attempts = ?, first_attempt_at = ? WHERE seq = ?",
            (lease.attempt, first_attempt_at, row.seq),
        )
        return row._replace(attempts=lease.attempt, first_attempt_at=first_attempt_at)

    def _fail(
        self,
        state: _QueueState,
        row: _TaskRow,
        lease: _LeaseRow,
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

    def _make_due(self, state: _QueueState, row: _TaskRow, due_at: int) -> None:
        """Put a task that is in no place where its new due moment belongs."""
        self._db.execute("UPDATE task SET due_at = ? WHERE seq = ?", (due_at, row.seq))
        self._place(state, row._replace(due_at=due_at))

    def _record(self, row: _TaskRow, lease: _LeaseRow, outcome: AttemptOutcome, error: TaskError | None) -> None:
        """Add an attempt to the task's history, of which the last MAX_HISTORY stay."""
        ordinal = self._value("UPDATE task SET history = history + 1 WHERE seq = ? RETURNING history", (row.seq,))
        self._db.execute(
            "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.seq, ordinal, lease.attempt, lease.worker_id, lease.leased_at, self._now, outcome)
            + (error or (None, None, None)),
        )
        self._db.execute("DELETE FROM attempt WHERE seq = ? AND ordinal <= ?", (row.seq, ordinal - MAX_HISTORY))

    def _end(self, state: _QueueState, row: _TaskRow, end: TaskState, retention_us: int, result: bytes = b"") -> None:
        """Keep a task that is in no place for its retention, or remove it."""
        seqs = _numbers([row.seq])
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

    def _renew(self, operation: base.Renew) -> base.Lost:
        if not operation.lease_ids:
            return []
        wanted = {_parse_lease_id(lease_id): lease_id for lease_id in operation.lease_ids}
        by_queue: defaultdict[int, list[int]] = defaultdict(list)
        renewed = set()
        for seq, nonce, queue_id in self._rows(
            "SELECT seq, nonce, queue_id FROM lease WHERE seq IN (SELECT value FROM carray(?))",
            (_numbers([seq for seq, _ in wanted]),),
        ):
            if (seq, nonce) in wanted:
                by_queue[queue_id].append(seq)
                renewed.add(wanted[seq, nonce])
        for queue_id, seqs in by_queue.items():
            duration_us = operation.duration_us or self._by_id[queue_id].policy.lease_duration_us
            self._db.execute(
                "UPDATE lease SET deadline_at = ? WHERE seq IN (SELECT value FROM carray(?))",
                (self._now + duration_us, _numbers(seqs)),
            )
        return [lease_id for lease_id in operation.lease_ids if lease_id not in renewed]

    def _reconcile(self, operation: base.Reconcile) -> base.Lost:
        theirs = {
            _lease_id(lease.seq, lease.nonce): lease
            for lease in map(
                _LeaseRow._make,
                self._rows(f"{_SELECT_LEASE} WHERE worker_id = ?", (operation.worker_id,)),
            )
        }
        held = set(operation.held)
        for lease_id, lease in theirs.items():
            if lease_id not in held:
                self._settle_one(lease, Settlement(lease_id, Outcome.RELEASED))
        return [lease_id for lease_id in operation.held if lease_id not in theirs]

    def _resume(self, _: base.Resume) -> None:
        for state in self._queues.values():
            deadline_at = self._now + state.policy.lease_duration_us
            self._db.execute(
                "UPDATE lease SET deadline_at = ?1 WHERE deadline_at < ?1 AND queue_id = ?2",
                (deadline_at, state.queue_id),
            )

    # --- single tasks, by hand

    def _find(self, queue: str, task: str) -> tuple[_QueueState, _TaskRow]:
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
        lease = self._db.execute(f"{_SELECT_LEASE} WHERE seq = ?", (row.seq,)).fetchone()
        self._take_from_everywhere(state, _numbers([row.seq]))
        if lease is not None:
            self._record(row, _LeaseRow(*lease), AttemptOutcome.CANCELLED, None)
        record = self._read_back(row.seq)
        retention_us = state.policy.dead_letter_retention_us
        self._end(state, row, TaskState.CANCELLED, retention_us)
        if retention_us:
            return self._read_back(row.seq)
        return replace(record, state=TaskState.CANCELLED, ended_at=self._now, expires_at=self._now)

    def _delete(self, operation: base.Delete) -> None:
        state, row = self._find(operation.queue, operation.task)
        seqs = _numbers([row.seq])
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
        self._take_from_everywhere(state, _numbers([row.seq]))
        self._make_due(state, row, self._now)
        return self._read_back(row.seq)

    def _retry(self, operation: base.Retry) -> TaskRecord:
        state, row = self._find(operation.queue, operation.task)
        record = self._read_back(row.seq)
        if record.state not in (TaskState.DEAD, TaskState.CANCELLED):
            raise _refused(state, row, record.state, "retried")
        self._take_from_everywhere(state, _numbers([row.seq]))
        self._db.execute(
            "UPDATE task SET state = NULL, ended_at = NULL, expires_at = NULL, result = NULL, attempts = 0,"
            " first_attempt_at = NULL WHERE seq = ?",
            (row.seq,),
        )
        self._make_due(state, row, self._now)
        return self._read_back(row.seq)

    # --- queues

    def _create_queue(self, operation: base.CreateQueue) -> Queue:
        if operation.queue in self._queues:
            raise QueueExists(operation.queue)
        queue = Queue(operation.queue, operation.policy, False, self._now, self._now)
        self._db.execute(
            "INSERT INTO queue (id, policy, paused, created_at, updated_at) VALUES (?, ?, 0, ?, ?)",
            (queue.id, dump_queue_policy(queue.policy), self._now, self._now),
        )
        queue_id = self._db.last_insert_rowid()
        self._db.execute("INSERT INTO queue_stats VALUES (?, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL)", (queue_id,))
        self._remember(_QueueState(queue_id, queue, QueueStats(), None))
        return queue

    def _change_queue(self, state: _QueueState, queue: Queue) -> Queue:
        self._db.execute(
            "UPDATE queue SET policy = ?, paused = ?, updated_at = ? WHERE queue_id = ?",
            (dump_queue_policy(queue.policy), queue.paused, queue.updated_at, state.queue_id),
        )
        state.replace(queue)
        return queue

    def _update_queue(self, operation: base.UpdateQueue) -> Queue:
        state = self._queue(operation.queue)
        return self._change_queue(state, replace(state.queue, policy=operation.policy, updated_at=self._now))

    def _pause_queue(self, operation: base.PauseQueue) -> Queue:
        state = self._queue(operation.queue)
        if state.queue.paused == operation.paused:
            return state.queue
        return self._change_queue(state, replace(state.queue, paused=operation.paused, updated_at=self._now))

    def _delete_queue(self, operation: base.DeleteQueue) -> None:
        state = self._queue(operation.queue)
        if operation.queue == DEFAULT_QUEUE:
            raise QueueProtected(operation.queue)
        stats = state.stats
        if stats.scheduled or stats.ready or stats.leased or stats.dead or stats.retained:
            raise QueueNotEmpty(operation.queue)
        for table in ("queue", "queue_stats", "task_name"):
            self._db.execute(f"DELETE FROM {table} WHERE queue_id = ?", (state.queue_id,))
        del self._queues[operation.queue], self._by_id[state.queue_id]
        self._touched.discard(state)

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
            seqs = _numbers(purged)
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
        seqs = _numbers([seq for _, seq in due])
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
            f"{_SELECT_LEASE} WHERE deadline_at <= ? ORDER BY deadline_at LIMIT ?", (self._now, CHORE_LIMIT)
        )
        for lease in map(_LeaseRow._make, expired):
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
            state, seqs = self._queue_by_id(queue_id), _numbers(gone)
            self._take_from_everywhere(state, seqs)
            self._remove(state, seqs)

    def _sweep_uids(self) -> None:
        """Forget uids whose own time is past the window and whose task is gone.

        The sweep goes over each uid once: of a task that still lives then, the uid goes with its row."""
        horizon = names.uid_floor(self._now - self._window_us)
        until = self._value(
            "SELECT max(uid) FROM (SELECT uid FROM task_uid WHERE uid > ? AND uid < ? ORDER BY uid LIMIT ?)",
            (self._swept_uid, horizon, UID_SWEEP),
        )
        if until is None:
            return
        looked_at = self._value("SELECT count(*) FROM task_uid WHERE uid > ? AND uid <= ?", (self._swept_uid, until))
        self._db.execute(
            "DELETE FROM task_uid WHERE uid > ? AND uid <= ?"
            " AND NOT EXISTS (SELECT 1 FROM task WHERE task.seq = task_uid.seq)",
            (self._swept_uid, until),
        )
        self._swept_uid = until
        self._more_to_sweep = looked_at == UID_SWEEP


def _labels(tag: str | None, key: str | None) -> list[str]:
    """Return the labels under which a ready task with this tag and key is found."""
    return [prefix + label for prefix, label in (("t", tag), ("k", key)) if label]


def _refused(state: _QueueState, row: _TaskRow, found: TaskState, verb: str) -> TaskStateRefused:
    return TaskStateRefused(names.task_name(state.queue.id, row.name, row.uid), found.name, verb)
