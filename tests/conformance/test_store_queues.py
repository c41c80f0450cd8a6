"""Queues: their policy, their counters, purging, lists, what time brings, and what a restart leaves."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from adjourn_service.errors import QueueExists, QueueNotEmpty, QueueNotFound, QueueProtected, TaskExists
from adjourn_service.model import (
    HOUR_US,
    SECOND_US,
    Outcome,
    Queue,
    QueuePolicy,
    QueueStats,
    RateLimits,
    RetryPolicy,
    StopRule,
    TaskFilter,
    TaskState,
)
from adjourn_service.store.base import (
    CHORE_LIMIT,
    Create,
    CreateQueue,
    DeleteQueue,
    Lease,
    Leased,
    Maintain,
    PauseQueue,
    Purge,
    Settle,
    UpdateQueue,
)
from tests.factories import OOPS, StoreDriver, policy, quick_retry

S = TaskState

EVERYTHING_SET = QueuePolicy(
    retry=RetryPolicy(7, 8, 9, 10, 11, StopRule.ALL, 0.25),
    rate_limits=RateLimits(0.5, 3, 4),
    lease_duration_us=5,
    result_retention_us=6,
    dead_letter_retention_us=7,
    tombstone_ttl_us=8,
    task_deadline_us=9,
)


def test_a_queue_is_kept_as_it_was_made(store: StoreDriver):
    queue = store.do(CreateQueue("Q-1", EVERYTHING_SET), Queue)
    assert queue == Queue("Q-1", EVERYTHING_SET, paused=False, created_at=store.now, updated_at=store.now)
    assert store.store.get_queue("Q-1") == queue
    assert store.stats("Q-1") == QueueStats()


def test_queues_are_listed_by_id(store: StoreDriver):
    for queue in ("b", "a", "Z", "a-1"):
        store.create_queue(queue)
    assert [queue.id for queue in store.store.list_queues()] == ["Z", "a", "a-1", "b", "default"]


def test_an_update_replaces_the_policy_and_notes_when(store: StoreDriver):
    made = store.create_queue()
    store.advance(seconds=1)
    updated = store.do(UpdateQueue("q", EVERYTHING_SET), Queue)
    assert updated == replace(made, policy=EVERYTHING_SET, updated_at=store.now)
    assert store.store.get_queue("q") == updated


def test_pause_and_resume_keep_the_policy(store: StoreDriver):
    made = store.do(CreateQueue("q", EVERYTHING_SET), Queue)
    assert store.pause("q") == replace(made, paused=True)
    assert store.pause("q").paused
    assert store.store.get_queue("q") == replace(made, paused=True)
    assert store.do(UpdateQueue("q", policy()), Queue).paused
    assert store.resume("q").paused is False


def test_a_queue_is_made_once(store: StoreDriver):
    store.create_queue(lease_duration_us=5)
    for queue in ("q", "default"):
        with pytest.raises(QueueExists):
            store.create_queue(queue)
    kept = store.store.get_queue("q")
    assert kept is not None
    assert kept.policy.lease_duration_us == 5


@pytest.mark.parametrize(
    "operation", [UpdateQueue("q", QueuePolicy()), PauseQueue("q", True), DeleteQueue("q"), Purge("q")]
)
def test_an_unknown_queue_is_refused(store: StoreDriver, operation):
    with pytest.raises(QueueNotFound):
        store.do(operation, object)
    assert store.store.get_queue("q") is None
    assert store.store.get_stats("q") is None


@pytest.mark.parametrize("state", list(TaskState), ids=lambda state: state.name)
def test_a_queue_that_holds_a_task_in_any_state_is_not_deleted(store: StoreDriver, state: TaskState):
    store.create_queue()
    task = store.task_in(state, "q")
    with pytest.raises(QueueNotEmpty):
        store.delete_queue("q")
    store.delete(task)
    store.delete_queue("q")
    assert store.store.get_queue("q") is None
    assert store.store.get_stats("q") is None
    assert [queue.id for queue in store.store.list_queues()] == ["default"]


def test_the_default_queue_cannot_be_deleted(store: StoreDriver):
    with pytest.raises(QueueProtected):
        store.delete_queue("default")
    store.create()
    with pytest.raises(QueueProtected):
        store.delete_queue("default")


def test_a_deleted_queue_forgets_its_names_and_starts_anew(store: StoreDriver):
    store.create_queue()
    store.create("q", name="n")
    store.succeed(store.lease_one("q"))
    store.delete_queue("q")
    store.create_queue()
    assert store.stats("q") == QueueStats()
    live = store.create("q", name="n")
    assert store.state(live) is S.READY
    store.advance(us=2 * HOUR_US)
    store.maintain()
    with pytest.raises(TaskExists):
        store.create("q", name="n")


def test_a_queue_made_filled_and_used_in_one_batch(store: StoreDriver):
    task = store.new("q")
    results = store.apply(CreateQueue("q", QueuePolicy()), Create([task]), Lease(("q",), 1, "worker-1"))
    leased = results[2]
    assert isinstance(leased, Leased)
    assert leased.tasks[0].uid == task.uid
    assert store.applied.ready == {"q": 0}


def test_a_queue_deleted_in_the_batch_is_not_among_the_ready_ones(store: StoreDriver):
    store.apply(CreateQueue("q", QueuePolicy()), PauseQueue("q", True), DeleteQueue("q"))
    assert "q" not in store.applied.ready


# --- a batch


def test_an_empty_batch_does_nothing(store: StoreDriver):
    assert store.apply() == []
    assert store.applied.next_chore_at is None


def test_operations_that_are_refused_leave_the_rest_of_the_batch(store: StoreDriver):
    task = store.new()
    results = store.apply(
        DeleteQueue("default"), Create([task]), PauseQueue("nowhere", True), Lease(None, 1, "w"), Create([])
    )
    assert isinstance(results[0], QueueProtected)
    assert isinstance(results[2], QueueNotFound)
    assert results[1] == results[4] == {}
    assert store.state(task) is S.LEASED


def test_the_moment_of_a_batch_can_be_given(store: StoreDriver):
    task = store.new(countdown_us=5)
    at = store.now + 77_000
    store.store.apply([Create([task])], now=at)
    assert (store.must(task).created_at, store.must(task).due_at) == (at, at + 5)


def test_the_number_of_ready_tasks_is_told_for_each_queue_that_was_touched(store: StoreDriver):
    for queue in ("a", "b", "c"):
        store.create_queue(queue)
    store.create_many(2, "a")
    assert store.applied.ready == {"a": 2}
    store.create_all(store.new("a"), store.new("b"), store.new("b", countdown_us=5))
    assert store.applied.ready == {"a": 3, "b": 1}
    store.lease(2, ["a"])
    assert store.applied.ready == {"a": 1}
    store.advance(us=5)
    store.maintain()
    assert store.applied.ready == {"b": 2}
    store.update_queue("a")
    assert store.applied.ready == {"a": 1}
    store.purge("b")
    assert store.applied.ready == {"b": 0}


# --- counters


def test_the_counters_are_exact_through_a_whole_life(store: StoreDriver):
    store.create_queue(retry=quick_retry(max_attempts=2), result_retention_us=HOUR_US)
    expected = QueueStats()

    def check(**changes: Any) -> None:
        nonlocal expected
        expected = replace(expected, **changes)
        assert asdict(store.stats("q")) == asdict(expected)
        listed = [record.state for record in store.list(queue="q")]
        assert listed.count(S.SCHEDULED) == expected.scheduled
        assert listed.count(S.READY) == expected.ready
        assert listed.count(S.LEASED) == expected.leased
        assert listed.count(S.DEAD) == expected.dead
        assert listed.count(S.SUCCEEDED) + listed.count(S.CANCELLED) == expected.retained

    start = store.now
    first, second, third = store.create_many(3, "q")
    check(ready=3, created_total=3, next_ready_at=start)
    fourth = store.create("q", countdown_us=HOUR_US)
    check(scheduled=1, created_total=4)
    leased = store.lease(2, ["q"])
    check(ready=1, leased=2)
    store.settle(leased[0], Outcome.SUCCEEDED, result=b"42")
    check(leased=1, retained=1, succeeded_total=1)
    store.advance(seconds=1)
    store.fail(leased[1])
    check(leased=0, ready=2, failed_attempts_total=1)
    store.cancel(third)
    check(ready=1, retained=2, next_ready_at=store.now)
    store.fail(store.lease_one("q"))
    check(ready=0, dead=1, dead_total=1, failed_attempts_total=2, next_ready_at=None)
    store.retry(second)
    check(ready=1, dead=0, next_ready_at=store.now)
    store.run(fourth)
    check(ready=2, scheduled=0)
    store.lease(2, ["q"])
    check(ready=0, leased=2, next_ready_at=None)
    store.advance(us=HOUR_US)
    store.maintain()
    check(ready=2, leased=0, failed_attempts_total=4, retained=1, next_ready_at=store.now)
    store.delete(third)
    check(retained=0)
    store.purge("q")
    check(ready=0, next_ready_at=None)
    assert store.record(first) is None
    assert store.stats() == QueueStats()


def test_next_ready_is_the_head_of_the_order(store: StoreDriver):
    store.create()
    store.advance(seconds=1)
    store.create(priority=1)
    assert store.stats().next_ready_at == store.now
    store.lease_one()
    assert store.stats().next_ready_at == store.now - SECOND_US


# --- purge


@pytest.mark.parametrize("state", list(TaskState), ids=lambda state: state.name)
def test_a_purge_removes_tasks_in_every_state(store: StoreDriver, state: TaskState):
    store.create_queue()
    kept = store.create("q")
    task = store.task_in(state, name="n")
    worker = store.must(task).worker_id
    assert store.purge() == (1, True)
    assert [who for who, _ in store.applied.revoked] == ([worker] if state is S.LEASED else [])
    assert store.record(task) is None
    assert store.state(kept) is S.READY
    stats = store.stats()
    assert (stats.scheduled, stats.ready, stats.leased, stats.dead, stats.retained) == (0, 0, 0, 0, 0)
    assert store.applied.next_chore_at is None


def test_a_purge_tells_those_who_wait_for_tasks_that_had_not_ended(store: StoreDriver):
    tasks = [store.task_in(state) for state in (S.DEAD, S.CANCELLED, S.SUCCEEDED, S.LEASED, S.SCHEDULED, S.READY)]
    store.apply(Purge("default"), watched={task.uid for task in tasks})
    assert store.applied.ended == {task.uid: S.CANCELLED for task in tasks[3:]}


def test_a_purge_spares_what_was_created_later(store: StoreDriver):
    old = store.create()
    until = store.now
    store.advance(us=1)
    new = store.create()
    assert store.purge(created_until_at=until) == (1, True)
    assert store.record(old) is None
    assert store.state(new) is S.READY


def test_a_purge_goes_in_bounded_steps_from_the_oldest(store: StoreDriver):
    tasks = store.create_many(CHORE_LIMIT + 5)
    first = store.purge()
    assert first == (CHORE_LIMIT, False)
    assert {record.uid for record in store.list()} == {task.uid for task in tasks[-5:]}
    assert store.purge() == (5, True)
    assert store.purge() == (0, True)


# --- what time brings


def test_maintenance_goes_in_bounded_steps_and_is_due_until_it_is_through(store: StoreDriver):
    number = CHORE_LIMIT + CHORE_LIMIT // 2
    store.create_many(number, countdown_us=SECOND_US)
    store.advance(seconds=1)
    next_at = store.maintain()
    assert 0 < store.stats().ready <= CHORE_LIMIT
    assert next_at is not None
    assert next_at <= store.now
    while (next_at := store.maintain()) is not None and next_at <= store.now:
        pass
    assert store.stats().ready == number
    assert next_at is None


def test_the_next_chore_is_the_first_thing_that_time_will_bring(store: StoreDriver):
    start = store.now
    assert store.maintain() is None
    store.create_many(2)
    assert store.maintain() is None
    due = store.create(countdown_us=50 * SECOND_US)
    assert store.applied.next_chore_at == start + 50 * SECOND_US
    lease, _ = store.lease()
    assert store.applied.next_chore_at == start + 30 * SECOND_US
    store.renew(lease, duration_us=HOUR_US)
    assert store.applied.next_chore_at == start + 30 * SECOND_US
    store.reconcile(lease)
    assert store.applied.next_chore_at == start + 50 * SECOND_US
    store.run(due)
    assert store.applied.next_chore_at == start + HOUR_US
    store.settle(lease, Outcome.FAILED, error=OOPS)
    assert store.applied.next_chore_at == start + 14 * 24 * HOUR_US


def test_one_step_of_maintenance_brings_all_that_is_due(store: StoreDriver):
    store.update_queue(retry=quick_retry(), dead_letter_retention_us=SECOND_US, lease_duration_us=SECOND_US)
    cancelled = store.task_in(S.CANCELLED)
    leased = store.task_in(S.LEASED)
    due = store.create(countdown_us=SECOND_US)
    store.advance(seconds=1)
    assert store.maintain() is None
    assert store.record(cancelled) is None
    assert store.state(leased) is store.state(due) is S.READY


def test_maintenance_may_stand_in_a_batch_with_a_lease_of_what_it_made_ready(store: StoreDriver):
    task = store.create(countdown_us=SECOND_US)
    store.advance(seconds=1)
    _, leased = store.apply(Maintain(), Lease(None, 1, "worker-1"))
    assert isinstance(leased, Leased)
    assert [one.uid for one in leased.tasks] == [task.uid]


# --- lists


def test_a_list_goes_through_a_queue_in_the_order_of_creation(store: StoreDriver):
    store.create_queue("q")
    tasks = [store.create("q", priority=number % 3, countdown_us=number % 2) for number in range(10)]
    store.create()
    uids = [task.uid for task in tasks]
    for limit in (1, 3, 10, 1000):
        assert [record.uid for record in store.list(limit, queue="q")] == uids
    for limit in (1, 4, 1000):
        everything = store.list(limit)
        assert [record.uid for record in everything if record.queue == "q"] == uids
        assert len(everything) == 11
    assert store.list(queue="nowhere") == []


def test_a_list_can_be_narrowed_to_a_state_a_tag_a_key_and_a_time(store: StoreDriver):
    start = store.now
    tasks = {}
    for state in (S.DEAD, S.CANCELLED, S.SUCCEEDED, S.LEASED, S.SCHEDULED, S.READY):
        tasks[state] = store.task_in(state, tag=f"t{state % 2}", key=f"k{state % 3}")
        store.advance(seconds=1)
    for state, task in tasks.items():
        for limit in (1, 10):
            assert [record.uid for record in store.list(limit, state=state)] == [task.uid]
            assert [record.uid for record in store.list(limit, state=state, queue="default")] == [task.uid]
        assert store.list(state=state, tag="none") == []
    assert {record.state for record in store.list(tag="t1")} == {S.SCHEDULED, S.LEASED, S.DEAD}
    assert {record.state for record in store.list(key="k0")} == {S.LEASED, S.CANCELLED}
    assert {record.state for record in store.list(tag="t1", key="k0")} == {S.LEASED}
    window = store.list(created_from_at=start + SECOND_US, created_until_at=start + 3 * SECOND_US)
    assert [record.state for record in window] == [S.CANCELLED, S.SUCCEEDED]


def test_a_listed_task_is_as_one_that_is_got_but_for_tracebacks(store: StoreDriver):
    task = store.create(name="n", tag="t", key="k", body=b"body")
    store.fail(store.lease_one())
    (listed,) = store.list()
    got = store.must(task)
    assert got.history[0].error == OOPS
    assert listed.history[0].error == OOPS._replace(traceback="")
    assert replace(listed, history=got.history) == got


def test_a_page_goes_on_where_the_one_before_stopped_whatever_went_between(store: StoreDriver):
    tasks = store.create_many(6)
    page, cursor = store.store.list_tasks(TaskFilter(), 2)
    assert cursor is not None
    store.delete(tasks[1])
    store.delete(tasks[2])
    newer = store.create()
    rest, _ = store.store.list_tasks(TaskFilter(), 10, cursor)
    assert [record.uid for record in page] == [task.uid for task in tasks[:2]]
    assert [record.uid for record in rest] == [task.uid for task in (*tasks[3:], newer)]


# --- a restart


def test_everything_survives_a_restart(store: StoreDriver, reopen):
    store.do(CreateQueue("q", EVERYTHING_SET), Queue)
    store.pause("q")
    store.update_queue(tombstone_ttl_us=HOUR_US, min_backoff_us=HOUR_US)
    for state in (S.DEAD, S.CANCELLED, S.SUCCEEDED, S.SCHEDULED):
        store.task_in(state, name=state.name, tag="t", retry=RetryPolicy(max_attempts=7))
    store.create(name="gone")
    store.succeed(store.lease_one())
    tasks = store.create_many(4, key="k")
    held, retried, _ = store.lease(3)
    store.fail(retried)

    def everything() -> object:
        queues = store.store.list_queues()
        records = [store.store.get_task(record.queue, record.name or "") or record for record in store.list()]
        return queues, [store.stats(queue.id) for queue in queues], records

    before = everything()
    reopen()
    assert everything() == before
    store.create_all(*tasks)
    with pytest.raises(TaskExists):
        store.create(name="DEAD")
    assert everything() == before
    assert store.renew(held) == []
    new = store.lease()
    assert [leased.uid for leased in new] == [tasks[3].uid]
    assert new[0].lease_id != held.lease_id
    assert store.succeed(held, *new) == []
    latest = store.create()
    assert store.list()[-1].uid == latest.uid


def test_a_token_bucket_is_not_refilled_by_a_restart(store: StoreDriver, reopen):
    store.update_queue(max_leases_per_second=1.0, max_burst_size=3)
    store.create_many(9)
    store.lease(2)
    reopen()
    assert len(store.lease()) == 1


def test_lease_ids_are_new_after_a_restart(store: StoreDriver, reopen):
    store.create()
    seen = set()
    for _ in range(4):
        leased = store.lease_one()
        seen.add(leased.lease_id)
        store.settle(leased, Outcome.RELEASED)
        reopen()
    assert len(seen) == 4


def test_a_settled_task_stays_settled_over_a_restart(store: StoreDriver, reopen):
    store.create_many(2)
    leased = store.lease()
    store.apply(Settle([one.lease_id for one in leased]))
    reopen()
    assert store.succeed(*leased) == [one.lease_id for one in leased]
    assert store.list() == []
