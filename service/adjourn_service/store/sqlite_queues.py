"""The queues of a SQLite store, in memory with their counters, and written through."""

from collections.abc import Iterable
from dataclasses import replace

import apsw

from adjourn_service.errors import QueueExists, QueueNotEmpty, QueueNotFound, QueueProtected
from adjourn_service.limiter import TokenBucket
from adjourn_service.model import DEFAULT_QUEUE, Queue, QueuePolicy, QueueStats
from adjourn_service.store.policies import dump_queue_policy, load_queue_policy
from adjourn_service.store.sqlite_file import seq_range


class QueueState:
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


class QueueTable:
    """Every queue by id, as the tables say after the statements run so far.

    Raises: QueueNotFound where a queue is asked for that there is not."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.load()

    def load(self) -> None:
        """Read everything anew: at the start, and after a transaction that failed."""
        self.by_name: dict[str, QueueState] = {}
        self.by_id: dict[int, QueueState] = {}
        rows = self._db.execute(
            "SELECT queue_id, id, policy, paused, created_at, updated_at, scheduled, ready, leased, dead, retained,"
            " created_total, succeeded_total, failed_attempts_total, dead_total, tokens, tokens_at"
            " FROM queue JOIN queue_stats USING (queue_id)"
        )
        for queue_id, name, policy, paused, created_at, updated_at, *counters, tokens, tokens_at in rows:
            queue = Queue(name, load_queue_policy(policy), bool(paused), created_at, updated_at)
            bucket = None if tokens is None else TokenBucket(tokens, tokens_at)
            self._add(QueueState(queue_id, queue, QueueStats(*counters), bucket))

    def get(self, name: str) -> QueueState:
        """Return a queue."""
        state = self.by_name.get(name)
        if state is None:
            raise QueueNotFound(name)
        return state

    def create(self, name: str, policy: QueuePolicy, now: int) -> QueueState:
        """Make a queue. Raises: QueueExists."""
        if name in self.by_name:
            raise QueueExists(name)
        self._db.execute(
            "INSERT INTO queue (id, policy, paused, created_at, updated_at) VALUES (?, ?, 0, ?, ?)",
            (name, dump_queue_policy(policy), now, now),
        )
        queue_id = self._db.last_insert_rowid()
        self._db.execute("INSERT INTO queue_stats VALUES (?, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL)", (queue_id,))
        state = QueueState(queue_id, Queue(name, policy, False, now, now), QueueStats(), None)
        self._add(state)
        return state

    def set_policy(self, state: QueueState, policy: QueuePolicy, now: int) -> None:
        """Give a queue another policy."""
        self._change(state, replace(state.queue, policy=policy, updated_at=now))

    def set_paused(self, state: QueueState, paused: bool, now: int) -> None:
        """Pause or resume a queue."""
        if state.queue.paused != paused:
            self._change(state, replace(state.queue, paused=paused, updated_at=now))

    def delete(self, state: QueueState) -> None:
        """Remove an empty queue with its tombstones. Raises: QueueProtected, QueueNotEmpty."""
        if state.queue.id == DEFAULT_QUEUE:
            raise QueueProtected(state.queue.id)
        stats = state.stats
        if stats.scheduled or stats.ready or stats.leased or stats.dead or stats.retained:
            raise QueueNotEmpty(state.queue.id)
        for table in ("queue", "queue_stats", "task_name"):
            self._db.execute(f"DELETE FROM {table} WHERE queue_id = ?", (state.queue_id,))
        del self.by_name[state.queue.id], self.by_id[state.queue_id]

    def write_stats(self, states: Iterable[QueueState]) -> None:
        """Write the counters of queues to their rows."""
        for state in states:
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

    def _add(self, state: QueueState) -> None:
        self.by_name[state.queue.id] = state
        self.by_id[state.queue_id] = state

    def _change(self, state: QueueState, queue: Queue) -> None:
        self._db.execute(
            "UPDATE queue SET policy = ?, paused = ?, updated_at = ? WHERE queue_id = ?",
            (dump_queue_policy(queue.policy), queue.paused, queue.updated_at, state.queue_id),
        )
        state.replace(queue)
