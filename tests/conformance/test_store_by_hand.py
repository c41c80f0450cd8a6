"""Cancel, delete, run and retry, in every state; and the names by which tasks are found."""

import pytest

from adjourn_service import names
from adjourn_service.errors import TaskNotFound, TaskStateRefused
from adjourn_service.model import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    AttemptOutcome,
    Outcome,
    RetryPolicy,
    TaskState,
)
from adjourn_service.store.base import Cancel, Delete, Retry, Run
from tests.factories import StoreDriver

S = TaskState
ALL_STATES = list(TaskState)

VERBS = [("cancel", S.CANCELLED), ("run", S.READY), ("retry", S.READY)]
ALLOWED = {
    "cancel": {S.SCHEDULED, S.READY, S.LEASED},
    "run": {S.SCHEDULED, S.READY},
    "retry": {S.DEAD, S.CANCELLED},
}


@pytest.mark.parametrize("state", ALL_STATES, ids=lambda state: state.name)
@pytest.mark.parametrize(("verb", "becomes"), VERBS, ids=[verb for verb, _ in VERBS])
def test_each_verb_in_each_state(store: StoreDriver, verb: str, becomes: TaskState, state: TaskState):
    task = store.task_in(state, name="n", tag="t")
    before = (store.must(task), store.stats())
    if state in ALLOWED[verb]:
        record = getattr(store, verb)(task)
        assert record.state is becomes
        assert record == store.must(task)
        assert [one.uid for one in store.lease(tag="t")] == ([task.uid] if becomes is S.READY else [])
        return
    with pytest.raises(TaskStateRefused) as refused:
        getattr(store, verb)(task)
    assert refused.value.metadata == {"task": "queues/default/tasks/n", "state": state.name}
    assert (store.must(task), store.stats()) == before


@pytest.mark.parametrize("state", ALL_STATES, ids=lambda state: state.name)
def test_a_task_can_be_deleted_in_each_state(store: StoreDriver, state: TaskState):
    task = store.task_in(state)
    leased = store.must(task).worker_id
    store.delete(task)
    assert store.record(task) is None
    assert [worker for worker, _ in store.applied.revoked] == ([leased] if state is S.LEASED else [])
    assert store.list() == []
    stats = store.stats()
    assert (stats.scheduled, stats.ready, stats.leased, stats.dead, stats.retained) == (0, 0, 0, 0, 0)
    assert store.applied.next_chore_at is None
    assert store.maintain() is None
    assert store.lease() == []


@pytest.mark.parametrize("operation", [Cancel, Delete, Run, Retry])
@pytest.mark.parametrize("by", ["name", "uid", "queue"])
def test_what_is_not_there_is_not_found(store: StoreDriver, operation, by: str):
    task = store.create(name="n")
    gone = store.create(name="gone")
    store.delete(gone)
    store.create_queue("q")
    queue, name = {
        "name": ("default", "gone"),
        "uid": ("default", names.format_uid(gone.uid)),
        "queue": ("nowhere", "n"),
    }[by]
    for where, what in ((queue, name), ("q", "n"), ("q", names.format_uid(task.uid)), ("default", "")):
        with pytest.raises(TaskNotFound) as refused:
            store.do(operation(where, what), object)
        assert refused.value.metadata == {"task": f"queues/{where}/tasks/{what}"}


def test_a_named_task_is_found_by_its_name_and_by_its_uid(store: StoreDriver):
    task = store.create(name="n")
    by_name = store.store.get_task("default", "n")
    assert by_name is not None
    assert by_name == store.store.get_task("default", names.format_uid(task.uid))
    assert store.store.get_task("default", "m") is None
    assert store.store.get_task("nowhere", "n") is None
    assert store.store.get_task("default", names.format_uid(task.uid).upper()) is None


def test_a_name_goes_before_a_uid(store: StoreDriver):
    other = store.create(body=b"other")
    named = store.create(name=names.format_uid(other.uid), body=b"named")
    found = store.store.get_task("default", names.format_uid(other.uid))
    assert found is not None
    assert found.uid == named.uid


# --- cancel


def test_cancelling_a_leased_task_takes_it_from_its_worker(store: StoreDriver):
    task = store.create()
    leased = store.lease_one(worker_id="worker-3")
    store.advance(seconds=2)
    record = store.cancel(task)
    assert store.applied.revoked == [("worker-3", leased.lease_id)]
    assert (record.state, record.attempts, record.worker_id) == (S.CANCELLED, 0, "")
    assert (record.ended_at, record.expires_at) == (store.now, store.now + 14 * DAY_US)
    (attempt,) = record.history
    assert (attempt.number, attempt.worker_id, attempt.outcome) == (1, "worker-3", AttemptOutcome.CANCELLED)
    assert (attempt.leased_at, attempt.ended_at) == (store.now - 2 * SECOND_US, store.now)
    assert store.succeed(leased) == [leased.lease_id]
    assert store.stats().failed_attempts_total == 0


def test_cancelling_a_task_that_nobody_has_revokes_nothing(store: StoreDriver):
    for state in (S.SCHEDULED, S.READY):
        task = store.task_in(state)
        record = store.cancel(task)
        assert store.applied.revoked == []
        assert record.history == ()
    assert store.stats().retained == 2


def test_a_cancelled_task_is_kept_as_long_as_a_dead_letter(store: StoreDriver):
    store.update_queue(dead_letter_retention_us=60 * SECOND_US)
    task = store.task_in(S.CANCELLED)
    assert store.maintain() == store.now + 60 * SECOND_US
    store.advance(seconds=60)
    store.maintain()
    assert store.record(task) is None
    assert store.stats().retained == 0


@pytest.mark.parametrize("state", [S.SCHEDULED, S.READY, S.LEASED])
def test_a_cancelled_task_is_removed_at_once_where_nothing_is_kept(store: StoreDriver, state: TaskState):
    store.update_queue(dead_letter_retention_us=0)
    task = store.task_in(state)
    record = store.cancel(task)
    assert (record.uid, record.state, record.ended_at) == (task.uid, S.CANCELLED, store.now)
    assert len(store.applied.revoked) == (state is S.LEASED)
    assert store.record(task) is None
    assert store.list() == []


def test_a_scheduled_task_that_was_cancelled_never_comes_due(store: StoreDriver):
    task = store.task_in(S.SCHEDULED)
    store.cancel(task)
    store.advance(us=HOUR_US)
    store.maintain()
    assert store.state(task) is S.CANCELLED
    assert store.lease() == []


# --- run


def test_running_a_scheduled_task_makes_it_due_now(store: StoreDriver):
    task = store.task_in(S.SCHEDULED)
    store.advance(seconds=1)
    record = store.run(task)
    assert (record.state, record.due_at) == (S.READY, store.now)
    assert store.applied.ready == {"default": 1}
    assert store.applied.next_chore_at is None


def test_running_a_task_in_back_off_skips_the_wait(store: StoreDriver):
    task = store.create()
    store.fail(store.lease_one(), delay_us=HOUR_US)
    store.run(task)
    assert store.lease_one().attempt == 2


def test_running_a_ready_task_changes_nothing(store: StoreDriver):
    task = store.create()
    before = store.must(task)
    store.advance(seconds=1)
    assert store.run(task) == before == store.must(task)


# --- retry


def test_a_retried_dead_letter_starts_anew_and_keeps_its_history(store: StoreDriver):
    task = store.create(retry=RetryPolicy(max_attempts=2, max_age_us=HOUR_US))
    for _ in range(2):
        store.fail(store.lease_one(), delay_us=0)
    assert store.state(task) is S.DEAD
    store.advance(us=2 * HOUR_US)
    record = store.retry(task)
    assert (record.state, record.attempts, record.first_attempt_at) == (S.READY, 0, None)
    assert (record.due_at, record.ended_at, record.expires_at) == (store.now, None, None)
    assert [attempt.number for attempt in record.history] == [1, 2]
    assert store.applied.next_chore_at is None
    leased = store.lease_one()
    assert leased.attempt == 1
    store.fail(leased)
    record = store.must(task)
    assert record.state is S.SCHEDULED
    assert record.due_at == store.now + SECOND_US // 10
    assert [attempt.number for attempt in record.history] == [1, 2, 1]
    assert (store.stats().dead, store.stats().dead_total) == (0, 1)


def test_a_retried_task_is_not_removed_when_its_retention_would_have_ended(store: StoreDriver):
    task = store.task_in(S.DEAD)
    store.retry(task)
    store.advance(us=15 * DAY_US)
    store.maintain()
    assert store.state(task) is S.READY


def test_a_retried_cancelled_task_runs(store: StoreDriver):
    task = store.task_in(S.CANCELLED)
    store.retry(task)
    store.settle(store.lease_one(), Outcome.SUCCEEDED)
    assert store.record(task) is None
    assert (store.stats().retained, store.stats().created_total, store.stats().succeeded_total) == (0, 1, 1)


# --- those who wait


@pytest.mark.parametrize("state", ALL_STATES, ids=lambda state: state.name)
def test_a_watched_task_that_is_deleted_is_told_as_cancelled_unless_it_had_ended(store: StoreDriver, state):
    task = store.task_in(state)
    store.delete(task, watched={task.uid})
    ended = state in (S.SUCCEEDED, S.DEAD, S.CANCELLED)
    assert store.applied.ended == ({} if ended else {task.uid: S.CANCELLED})


@pytest.mark.parametrize("retention_us", [0, HOUR_US])
def test_a_watched_task_that_is_cancelled_is_told(store: StoreDriver, retention_us: int):
    store.update_queue(dead_letter_retention_us=retention_us)
    for state in (S.SCHEDULED, S.READY, S.LEASED):
        task = store.task_in(state)
        store.cancel(task, watched={task.uid})
        assert store.applied.ended == {task.uid: S.CANCELLED}
