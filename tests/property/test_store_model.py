"""The sqlite store against the memory store: the same random operations, the same answers, the same tasks.

Each step applies one batch to both stores and then compares everything that can be seen of them. Lease ids differ, so
the machine keeps them in pairs. Time only goes forward, and jitter is off, so that both stores see the same waits.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adjourn_service import names
from adjourn_service.clock import ManualClock
from adjourn_service.errors import ServiceError
from adjourn_service.model import (
    DEFAULT_QUEUE,
    HOUR_US,
    SECOND_US,
    NewTask,
    Outcome,
    Queue,
    QueuePolicy,
    RateLimits,
    RetryPolicy,
    Settlement,
    StopRule,
    TaskError,
    TaskFilter,
    TaskRecord,
    TaskState,
)
from adjourn_service.store import base
from adjourn_service.store.memory import MemoryStore
from adjourn_service.store.sqlite import SqliteStore
from tests.factories import make_uid

WINDOW_US = 60 * SECOND_US

settings.register_profile(
    "store-model",
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow],
)

EXACT_RATE = SECOND_US / 2**20
"""Leases a second, about one, such that the tokens earned in whole microseconds are exact floats however they are added
up: a restart may change the steps in which a bucket fills."""

queue_ids = st.sampled_from([DEFAULT_QUEUE, "a", "b"])
task_names = st.none() | st.sampled_from(["n1", "n2"])
labels = st.sampled_from(["", "", "x", "y"])
spans = st.sampled_from([0, 1, SECOND_US, 5 * SECOND_US, 30 * SECOND_US, WINDOW_US, HOUR_US])
retry_policies = st.builds(
    RetryPolicy,
    max_attempts=st.sampled_from([0, 1, 2, 3]),
    max_age_us=st.sampled_from([0, 0, 10 * SECOND_US]),
    min_backoff_us=st.sampled_from([0, 1, SECOND_US]),
    max_backoff_us=st.sampled_from([SECOND_US, 100 * SECOND_US]),
    max_doublings=st.integers(0, 3),
    stop=st.sampled_from(StopRule),
)
queue_policies = st.builds(
    QueuePolicy,
    retry=retry_policies,
    rate_limits=st.builds(
        RateLimits,
        max_leases_per_second=st.none() | st.sampled_from([EXACT_RATE, 4 * EXACT_RATE, 128 * EXACT_RATE]),
        max_burst_size=st.none() | st.integers(1, 4),
        max_concurrent_leases=st.none() | st.integers(1, 4),
    ),
    lease_duration_us=st.sampled_from([SECOND_US, 30 * SECOND_US]),
    result_retention_us=st.sampled_from([0, 0, SECOND_US, HOUR_US]),
    dead_letter_retention_us=st.sampled_from([0, SECOND_US, HOUR_US]),
    tombstone_ttl_us=st.sampled_from([0, SECOND_US, 30 * SECOND_US]),
)
outcomes = st.sampled_from(Outcome)
errors = st.none() | st.builds(TaskError, st.just("E"), st.text(max_size=3), st.text(max_size=3))

picked = st.lists(st.integers(0, 40), min_size=1, max_size=8)
"""Which of those that are known, counted from the newest."""

LeasePair = tuple[str, str]
"""The ids of the same lease in the memory store and in the sqlite store."""


class StoreComparison(RuleBasedStateMachine):
    """Drives both stores; every difference is a failure."""

    @initialize(policies=st.fixed_dictionaries(dict.fromkeys(("a", "b"), queue_policies)))
    def open(self, policies: dict[str, QueuePolicy]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.model: base.Store = MemoryStore(self.clock, WINDOW_US)
        self.real: base.Store = self.open_sqlite()
        self.serial = count(1)
        self.tasks: list[NewTask] = []
        """What was created, the newest last."""
        self.uids: set[bytes] = set()
        self.leases: list[LeasePair] = []
        """What was leased, the newest last; some of it is still live."""
        self.pairs: dict[str, str] = {}
        """Lease ids of the sqlite store, as those of the memory store."""
        self.apply(*(base.CreateQueue(queue, policy) for queue, policy in policies.items()))
        for queue in (DEFAULT_QUEUE, "a", "b"):
            self.create([{"queue": queue}, {"queue": queue, "tag": "x", "name": "n1", "key": "x"}] * 2, 0, False)

    def open_sqlite(self) -> SqliteStore:
        return SqliteStore(Path(self.folder.name) / "adjourn.db", self.clock, WINDOW_US)

    def teardown(self) -> None:
        self.model.close()
        self.real.close()
        self.folder.cleanup()

    # --- applying a batch to both, and comparing the answers

    def apply(self, *operations: base.Operation) -> list[base.Result]:
        return self.apply_each(operations, operations)

    def apply_each(self, to_model: Sequence[base.Operation], to_real: Sequence[base.Operation]) -> list[base.Result]:
        """Apply the same operations, which name leases as each store does; return what the model answers."""
        model = self.model.apply(to_model, watched=self.uids)
        real = self.real.apply(to_real, watched=self.uids)
        for first, second in zip(model.results, real.results, strict=True):
            if isinstance(first, base.Leased) and isinstance(second, base.Leased):
                self.compare_leased(first, second, exact=not any(_has_label(operation) for operation in to_model))
            else:
                assert self.plain(first) == self.plain(second, translate=True)
        assert model.ended == real.ended
        assert sorted(model.revoked) == sorted((worker, self.pairs[lease_id]) for worker, lease_id in real.revoked)
        assert model.next_chore_at == real.next_chore_at
        for one in (model, real):
            for queue, ready in one.ready.items():
                found, stats = self.model.get_queue(queue), self.model.get_stats(queue)
                assert found is not None
                assert stats is not None
                assert ready == (0 if found.paused else stats.ready)
        return model.results

    def compare_leased(self, model: base.Leased, real: base.Leased, *, exact: bool) -> None:
        # Where several queues give, the stores may begin with different ones: each queue's own order is compared.
        first = sorted(model.tasks, key=lambda leased: leased.queue)
        second = sorted(real.tasks, key=lambda leased: leased.queue)
        for mine, theirs in zip(first, second, strict=True):
            assert theirs.lease_id not in self.pairs, "a lease id was used twice"
            self.pairs[theirs.lease_id] = mine.lease_id
            self.leases.append((mine.lease_id, theirs.lease_id))
        assert [leased._replace(lease_id="") for leased in first] == [leased._replace(lease_id="") for leased in second]
        # Whether a task with the label waits for the tokens is a thing that a store need not find out.
        assert model.more_at == real.more_at or (model.more_at is None and not exact)

    def plain(self, result: base.Result, *, translate: bool = False) -> object:
        """Return a result as something that compares by its content."""
        if isinstance(result, ServiceError):
            return type(result), result.message, result.metadata
        if isinstance(result, dict):
            return {index: self.plain(refusal) for index, refusal in result.items()}
        if isinstance(result, list):
            return sorted(self.pairs.get(lease_id, lease_id) if translate else lease_id for lease_id in result)
        return result

    # --- creating

    @rule(
        plan=st.lists(
            st.fixed_dictionaries(
                {"queue": queue_ids},
                optional={
                    "name": task_names,
                    "priority": st.integers(-1, 1),
                    "tag": labels,
                    "key": labels,
                    "retain_us": st.none() | spans,
                    "retry": st.none() | retry_policies,
                    "countdown_us": spans,
                    "eta_in_us": st.sampled_from([-SECOND_US, 0, SECOND_US]),
                },
            ),
            min_size=1,
            max_size=6,
        ),
        skew_us=st.sampled_from([0, 0, 0, 0, -WINDOW_US, WINDOW_US, -WINDOW_US - 1000, WINDOW_US + 1000]),
        lease=st.booleans(),
    )
    def create(self, plan: list[dict[str, Any]], skew_us: int, lease: bool) -> None:
        made = []
        for planned in plan:
            fields = dict(planned)
            if (eta_in_us := fields.pop("eta_in_us", None)) is not None:
                fields["eta_at"] = self.clock.now() + eta_in_us
            serial = next(self.serial)
            made.append(NewTask(uid=make_uid(self.clock.now() + skew_us, serial), body=b"%d" % serial, **fields))
        self.know(made)
        self.apply(base.Create(made), *([base.Lease(None, 1000, "w1")] if lease else []))

    def know(self, made: list[NewTask]) -> None:
        self.tasks += made
        self.uids.update(task.uid for task in made)

    def pick_tasks(self, picks: list[int]) -> list[NewTask]:
        return [self.tasks[-1 - pick % len(self.tasks)] for pick in picks]

    @precondition(lambda self: self.tasks)
    @rule(picks=picked, queue=queue_ids)
    def create_again(self, picks: list[int], queue: str) -> None:
        again = self.pick_tasks(picks)
        moved = again[0]._replace(queue=queue)
        self.apply(base.Create(again + again[:1]), base.Create([moved]))

    @rule(number=st.integers(1, 8), queue=queue_ids, repeat=st.booleans())
    def create_plain(self, number: int, queue: str, repeat: bool) -> None:
        made = [NewTask(make_uid(self.clock.now(), next(self.serial)), queue, b"plain") for _ in range(number)]
        old = self.tasks[-3:] if repeat else []
        self.know(made)
        self.apply(base.Create([*made[::2], *old, *made]))

    # --- leases

    @rule(
        queue=queue_ids,
        limit=st.integers(1, 6),
        worker=st.sampled_from(["w1", "w2"]),
        label=st.sampled_from([{}, {}, {}, {"tag": "x"}, {"key": "x"}]),
        duration_us=st.none() | st.sampled_from([SECOND_US, HOUR_US]),
    )
    def lease(self, queue: str, limit: int, worker: str, label: dict[str, str], duration_us: int | None) -> None:
        self.apply(base.Lease((queue,), limit, worker, duration_us, **label))

    @rule(queues=st.none() | st.just(("b", "nowhere", "a", DEFAULT_QUEUE)))
    def lease_all(self, queues: tuple[str, ...] | None) -> None:
        self.apply(base.Lease(queues, 1000, "w1"))

    @precondition(lambda self: self.leases)
    @rule(
        picks=picked,
        outcome=outcomes,
        error=errors,
        delay_us=st.none() | spans,
        result=st.sampled_from([b"", b"result"]),
    )
    def settle(self, picks: list[int], outcome: Outcome, error: Any, delay_us: int | None, result: bytes) -> None:
        self.apply_each(
            *(
                [base.Settle(others=[Settlement(lease_id, outcome, result, error, delay_us) for lease_id in ids])]
                for ids in self.pick_leases(picks)
            )
        )

    @precondition(lambda self: self.leases)
    @rule(picks=picked, others=picked, outcome=outcomes)
    def settle_both_ways(self, picks: list[int], others: list[int], outcome: Outcome) -> None:
        self.apply_each(
            *(
                [base.Settle(succeeded, [Settlement(lease_id, outcome) for lease_id in ids])]
                for succeeded, ids in zip(self.pick_leases(picks), self.pick_leases(others), strict=True)
            )
        )

    @precondition(lambda self: self.leases)
    @rule(picks=picked, duration_us=st.none() | st.sampled_from([SECOND_US, HOUR_US]))
    def renew(self, picks: list[int], duration_us: int | None) -> None:
        self.apply_each(*([base.Renew([*ids, "no-such-lease"], duration_us)] for ids in self.pick_leases(picks)))

    @precondition(lambda self: self.leases)
    @rule(picks=picked, worker=st.sampled_from(["w1", "w2"]))
    def reconcile(self, picks: list[int], worker: str) -> None:
        self.apply_each(*([base.Reconcile(worker, [*ids, "no-such-lease"])] for ids in self.pick_leases(picks)))

    def pick_leases(self, picks: list[int]) -> tuple[list[str], list[str]]:
        """Return lease ids as the model and as the real store knows them."""
        pairs = [self.leases[-1 - pick % len(self.leases)] for pick in picks]
        return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]

    # --- by hand

    @precondition(lambda self: self.tasks)
    @rule(
        picks=picked,
        verbs=st.sampled_from(
            [
                [base.Retry],
                [base.Cancel],
                [base.Cancel, base.Retry],
                [base.Run],
                [base.Run, base.Cancel],
                [base.Retry, base.Cancel],
                [base.Delete],
            ]
        ),
        by_name=st.booleans(),
    )
    def by_hand(self, picks: list[int], verbs: list[Any], by_name: bool) -> None:
        self.apply(
            *(
                verb(task.queue, task.name if by_name and task.name else names.format_uid(task.uid))
                for task in self.pick_tasks(picks)
                for verb in verbs
            )
        )

    # --- queues

    @rule(
        queue=queue_ids,
        policy=queue_policies,
        change=st.sampled_from(["update", "update", "pause", "resume", "purge", "purge old", "anew"]),
    )
    def change_queue(self, queue: str, policy: QueuePolicy, change: str) -> None:
        match change:
            case "update":
                self.apply(base.UpdateQueue(queue, policy))
            case "pause" | "resume":
                self.apply(base.PauseQueue(queue, change == "pause"))
            case "purge":
                self.apply(base.Purge(queue))
            case "purge old":
                self.apply(base.Purge(queue, self.clock.now() - SECOND_US))
            case "anew":
                self.apply(base.DeleteQueue(queue), base.CreateQueue(queue, policy))

    # --- time

    @rule(span_us=st.sampled_from([1, 1000, SECOND_US // 2, SECOND_US, 5 * SECOND_US, 31 * SECOND_US, HOUR_US]))
    def time_passes(self, span_us: int) -> None:
        self.clock.advance(span_us)

    @rule(span_us=spans)
    def maintain(self, span_us: int) -> None:
        self.clock.advance(span_us)
        self.apply(base.Maintain())

    @rule(away_us=spans)
    def restart(self, away_us: int) -> None:
        self.real.close()
        self.clock.advance(away_us)
        self.real = self.open_sqlite()
        self.apply(base.Resume())

    # --- what can be seen

    @invariant()
    def both_show_the_same(self) -> None:
        model, real = self.model, self.real
        queues = model.list_queues()
        assert queues == real.list_queues()
        for queue in queues:
            assert queue == real.get_queue(queue.id)
            assert model.get_stats(queue.id) == real.get_stats(queue.id)
            records = self.records(model, queue)
            assert records == self.records(real, queue)
            self.counters_are_exact(queue, records)

    @rule(state=st.none() | st.sampled_from(TaskState), tag=labels, key=labels, queue=st.none() | queue_ids)
    def lists_are_the_same(self, state: TaskState | None, tag: str, key: str, queue: str | None) -> None:
        wanted = TaskFilter(queue, state, tag, key)
        model, real = (
            sorted(self.pages(store, wanted), key=lambda record: record.uid) for store in (self.model, self.real)
        )
        assert model == real

    def pages(self, store: base.Store, wanted: TaskFilter) -> list[TaskRecord]:
        records: list[TaskRecord] = []
        cursor: int | None = None
        while True:
            page, cursor = store.list_tasks(wanted, 7, cursor)
            records += page
            if cursor is None:
                return records

    def records(self, store: base.Store, queue: Queue) -> list[TaskRecord]:
        """Return all tasks of a queue in order, the newest of them as got by their uid too."""
        listed = self.pages(store, TaskFilter(queue.id))
        for record in listed[-3:]:
            got = store.get_task(queue.id, names.format_uid(record.uid))
            assert got is not None
            assert replace(got, history=()) == replace(record, history=())
        return listed

    def counters_are_exact(self, queue: Queue, records: list[TaskRecord]) -> None:
        stats = self.model.get_stats(queue.id)
        assert stats is not None
        states = [record.state for record in records]
        assert stats.scheduled == states.count(TaskState.SCHEDULED)
        assert stats.ready == states.count(TaskState.READY)
        assert stats.leased == states.count(TaskState.LEASED)
        assert stats.dead == states.count(TaskState.DEAD)
        assert stats.retained == states.count(TaskState.SUCCEEDED) + states.count(TaskState.CANCELLED)


def _has_label(operation: base.Operation) -> bool:
    return isinstance(operation, base.Lease) and bool(operation.tag or operation.key)


TestStoreComparison = StoreComparison.TestCase
TestStoreComparison.settings = settings.get_profile("store-model")
