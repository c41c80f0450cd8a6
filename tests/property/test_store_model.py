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
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

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
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
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

LeasePair = tuple[str, str]
"""The ids of the same lease in the memory store and in the sqlite store."""


class StoreComparison(RuleBasedStateMachine):
    """Drives both stores; every difference is a failure."""

    tasks = Bundle("tasks")
    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.model: base.Store = MemoryStore(self.clock, WINDOW_US)
        self.real: base.Store = self.open_sqlite()
        self.serial = count(1)
        self.uids: set[bytes] = set()
        self.pairs: dict[str, str] = {}
        """Lease ids of the sqlite store, as those of the memory store."""

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
        target=tasks,
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
    def create(self, plan: list[dict[str, Any]], skew_us: int, lease: bool) -> Any:
        made = []
        for fields in plan:
            if (eta_in_us := fields.pop("eta_in_us", None)) is not None:
                fields["eta_at"] = self.clock.now() + eta_in_us
            serial = next(self.serial)
            made.append(NewTask(uid=make_uid(self.clock.now() + skew_us, serial), body=b"%d" % serial, **fields))
        self.uids.update(task.uid for task in made)
        self.apply(base.Create(made), *([base.Lease(None, 1000, "w1")] if lease else []))
        return multiple(*made)

    @rule(again=st.lists(tasks, min_size=1, max_size=3), queue=queue_ids)
    def create_again(self, again: list[NewTask], queue: str) -> None:
        moved = again[0]._replace(queue=queue)
        self.apply(base.Create(again + again[:1]), base.Create([moved]))

    @rule(number=st.integers(1, 40), queue=queue_ids, target=tasks)
    def create_plain(self, number: int, queue: str) -> Any:
        made = [NewTask(make_uid(self.clock.now(), next(self.serial)), queue, b"plain") for _ in range(number)]
        self.uids.update(task.uid for task in made)
        self.apply(base.Create(made))
        return multiple(*made[:3])

    # --- leases

    @rule(
        target=leases,
        queue=queue_ids,
        limit=st.integers(1, 6),
        worker=st.sampled_from(["w1", "w2"]),
        tag=labels,
        key=labels,
        duration_us=st.none() | st.sampled_from([SECOND_US, HOUR_US]),
    )
    def lease(self, queue: str, limit: int, worker: str, tag: str, key: str, duration_us: int | None) -> Any:
        return self.take(base.Lease((queue,), limit, worker, duration_us, tag, key))

    @rule(target=leases, queues=st.none() | st.just(("b", "nowhere", "a", DEFAULT_QUEUE)))
    def lease_all(self, queues: tuple[str, ...] | None) -> Any:
        return self.take(base.Lease(queues, 1000, "w1"))

    def take(self, operation: base.Lease) -> Any:
        (leased,) = self.apply(operation)
        assert isinstance(leased, base.Leased)
        known = {mine: theirs for theirs, mine in self.pairs.items()}
        return multiple(*((one.lease_id, known[one.lease_id]) for one in leased.tasks))

    @rule(
        taken=st.lists(consumes(leases), min_size=1, max_size=8),
        outcome=outcomes,
        error=errors,
        delay_us=st.none() | spans,
        result=st.sampled_from([b"", b"result"]),
        twice=st.booleans(),
    )
    def settle(self, taken: list[LeasePair], outcome: Outcome, error: Any, delay_us: Any, result: bytes, twice: bool):
        taken = taken + taken[:1] if twice else taken
        self.apply_each(
            *(
                [base.Settle(others=[Settlement(lease_id, outcome, result, error, delay_us) for lease_id in ids])]
                for ids in self.sides(taken, stale=False)
            )
        )

    @rule(taken=st.lists(leases, min_size=1, max_size=8), stale=st.booleans())
    def succeed(self, taken: list[LeasePair], stale: bool) -> None:
        self.apply_each(*([base.Settle(ids)] for ids in self.sides(taken, stale)))

    @rule(taken=st.lists(leases, max_size=4), duration_us=st.none() | st.sampled_from([SECOND_US, HOUR_US]))
    def renew(self, taken: list[LeasePair], duration_us: int | None) -> None:
        self.apply_each(*([base.Renew(ids, duration_us)] for ids in self.sides(taken, stale=True)))

    @rule(taken=st.lists(leases, max_size=4), worker=st.sampled_from(["w1", "w2"]))
    def reconcile(self, taken: list[LeasePair], worker: str) -> None:
        self.apply_each(*([base.Reconcile(worker, ids)] for ids in self.sides(taken, stale=False)))

    def sides(self, taken: Sequence[LeasePair], stale: bool) -> tuple[list[str], list[str]]:
        """Return lease ids as the model and as the real store knows them."""
        unknown = ["no-such-lease"] if stale else []
        return [mine for mine, _ in taken] + unknown, [theirs for _, theirs in taken] + unknown

    # --- by hand

    @rule(
        task=tasks,
        verbs=st.lists(st.sampled_from([base.Cancel, base.Delete, base.Run, base.Retry]), min_size=1, max_size=2),
        by_name=st.booleans(),
    )
    def by_hand(self, task: NewTask, verbs: list[Any], by_name: bool) -> None:
        task_id = task.name if by_name and task.name else names.format_uid(task.uid)
        self.apply(*(verb(task.queue, task_id) for verb in verbs))

    # --- queues

    @rule(queue=queue_ids, policy=queue_policies)
    def create_queue(self, queue: str, policy: QueuePolicy) -> None:
        self.apply(base.CreateQueue(queue, policy))

    @rule(queue=queue_ids, policy=queue_policies)
    def update_queue(self, queue: str, policy: QueuePolicy) -> None:
        self.apply(base.UpdateQueue(queue, policy))

    @rule(queue=queue_ids, paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        self.apply(base.PauseQueue(queue, paused))

    @rule(queue=queue_ids)
    def delete_queue(self, queue: str) -> None:
        self.apply(base.DeleteQueue(queue))

    @rule(queue=queue_ids, age_us=st.none() | spans)
    def purge(self, queue: str, age_us: int | None) -> None:
        self.apply(base.Purge(queue, None if age_us is None else self.clock.now() - age_us))

    # --- time

    @rule(span_us=st.sampled_from([1, 1000, SECOND_US // 2, SECOND_US, 5 * SECOND_US, 31 * SECOND_US, HOUR_US]))
    def time_passes(self, span_us: int) -> None:
        self.clock.advance(span_us)

    @rule(span_us=spans)
    def maintain(self, span_us: int) -> None:
        self.clock.advance(span_us)
        self.apply(base.Maintain())

    @rule()
    def restart(self) -> None:
        self.real.close()
        self.real = self.open_sqlite()

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
        """Return all tasks of a queue in order; each as got by its uid too."""
        listed = self.pages(store, TaskFilter(queue.id))
        for record in listed:
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
