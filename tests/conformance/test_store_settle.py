"""Ending leases: outcomes, retries, dead letters, retention, and the fence around an attempt."""

from itertools import pairwise

import pytest

from adjourn_service.model import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    Attempt,
    AttemptOutcome,
    Outcome,
    RetryPolicy,
    Settlement,
    StopRule,
    TaskError,
    TaskState,
)
from adjourn_service.store.base import LEASE_EXPIRED, MAX_HISTORY, Lease, Leased, Renew, Settle
from tests.factories import OOPS, StoreDriver

# --- success


def test_a_success_removes_the_task(store: StoreDriver):
    task = store.create()
    assert store.succeed(store.lease_one()) == []
    assert store.record(task) is None
    assert store.stats().succeeded_total == 1
    assert store.applied.ready == {"default": 0}


def test_a_result_is_dropped_where_nothing_is_retained(store: StoreDriver):
    task = store.create()
    assert store.settle(store.lease_one(), Outcome.SUCCEEDED, result=b"42") == []
    assert store.record(task) is None


def test_a_success_is_kept_with_its_result_for_the_queues_retention(store: StoreDriver):
    store.update_queue(result_retention_us=100 * SECOND_US)
    task, plain = store.create_many(2)
    first, second = store.lease()
    store.advance(seconds=1)
    store.settle(first, Outcome.SUCCEEDED, result=b"42")
    assert store.succeed(second) == []
    record = store.must(task)
    assert (record.state, record.result, record.attempts) == (TaskState.SUCCEEDED, b"42", 1)
    assert record.first_attempt_at == store.now - SECOND_US
    assert (record.ended_at, record.expires_at) == (store.now, store.now + 100 * SECOND_US)
    assert (record.worker_id, record.lease_deadline_at) == ("", None)
    assert (store.must(plain).state, store.must(plain).result) == (TaskState.SUCCEEDED, b"")
    assert store.stats().retained == 2
    assert store.applied.next_chore_at == record.expires_at
    store.advance(seconds=100, us=-1)
    store.maintain()
    assert store.state(task) is TaskState.SUCCEEDED
    store.advance(us=1)
    store.maintain()
    assert store.record(task) is None
    assert store.stats().retained == 0
    assert store.stats().succeeded_total == 2


def test_a_tasks_own_retention_replaces_the_queues(store: StoreDriver):
    store.update_queue(result_retention_us=100 * SECOND_US)
    longer, none = store.create(retain_us=HOUR_US), store.create(retain_us=0)
    store.succeed(*store.lease())
    assert store.must(longer).expires_at == store.now + HOUR_US
    assert store.record(none) is None


def test_a_success_after_failures_has_its_history_while_it_is_kept(store: StoreDriver):
    task = store.create(retain_us=HOUR_US)
    store.fail(store.lease_one(), delay_us=0)
    leased = store.lease_one()
    assert leased.attempt == 2
    store.succeed(leased)
    record = store.must(task)
    assert record.attempts == 2
    assert [attempt.outcome for attempt in record.history] == [AttemptOutcome.RETRY]


# --- the fence


def test_stale_lease_cannot_settle_the_next_attempt(store: StoreDriver):
    task = store.create()
    stale = store.lease_one()
    store.advance(seconds=31)
    store.maintain()
    store.advance(seconds=1)
    store.maintain()
    live = store.lease_one(worker_id="worker-2")
    before = (store.must(task), store.stats())
    for outcome in Outcome:
        assert store.settle(stale, outcome, error=OOPS, result=b"stale") == [stale.lease_id]
    assert store.succeed(stale) == [stale.lease_id]
    assert store.renew(stale) == [stale.lease_id]
    assert (store.must(task), store.stats()) == before
    assert store.succeed(live) == []


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_lease_ends_once(store: StoreDriver, outcome: Outcome):
    store.create()
    leased = store.lease_one()
    assert store.settle(leased, outcome) == []
    assert store.settle(leased, outcome) == [leased.lease_id]
    assert store.succeed(leased) == [leased.lease_id]


@pytest.mark.parametrize(
    "lease_id", ["", "x", ".", "1.", ".1", "1.2.3", "-1.5", "9" * 30 + ".1", "1." + "9" * 30, "é", "٣.٣", "\x00"]
)
def test_what_is_no_lease_id_is_a_lost_lease(store: StoreDriver, lease_id: str):
    store.create_many(2)
    good, other = store.lease()
    assert store.settle(lease_id, Outcome.RETRY) == [lease_id]
    assert store.do(Settle([lease_id, good.lease_id]), list) == [lease_id]
    assert store.do(Renew([lease_id, other.lease_id]), list) == [lease_id]
    assert store.reconcile(other._replace(lease_id=lease_id), other) == [lease_id]


def test_the_same_lease_twice_in_one_settle_is_lost_the_second_time(store: StoreDriver):
    store.create_many(3)
    first, second, third = (leased.lease_id for leased in store.lease())
    both = Settle([first, first, second], [Settlement(second, Outcome.RETRY), Settlement(third, Outcome.RELEASED)])
    assert sorted(store.do(both, list)) == sorted([first, second])
    assert store.stats().succeeded_total == 2
    assert store.stats().failed_attempts_total == 0


def test_lost_leases_do_not_disturb_the_others_of_their_batch(store: StoreDriver):
    tasks = store.create_many(4)
    leased = store.lease()
    store.cancel(tasks[1])
    lost = store.do(
        Settle(
            [leased[0].lease_id, leased[1].lease_id],
            [Settlement("gone", Outcome.RETRY), Settlement(leased[2].lease_id, Outcome.FAILED)],
        ),
        list,
    )
    assert sorted(lost) == sorted([leased[1].lease_id, "gone"])
    assert [store.state(task) for task in tasks] == [None, TaskState.CANCELLED, TaskState.DEAD, TaskState.LEASED]


def test_a_settled_task_can_be_leased_again_in_the_same_batch(store: StoreDriver):
    store.create()
    leased = store.lease_one()
    _, offer = store.apply(Settle(others=[Settlement(leased.lease_id, Outcome.RELEASED)]), Lease(None, 1, "worker-2"))
    assert isinstance(offer, Leased)
    assert offer.tasks[0].uid == leased.uid
    assert offer.tasks[0].lease_id != leased.lease_id


# --- release


def test_a_released_task_goes_back_to_its_place_and_counts_nothing(store: StoreDriver):
    tasks = store.create_many(3)
    first = store.lease_one()
    store.advance(seconds=5)
    store.settle(first, Outcome.RELEASED)
    record = store.must(tasks[0])
    assert (record.state, record.attempts, record.history) == (TaskState.READY, 0, ())
    assert (record.first_attempt_at, record.due_at) == (None, record.created_at)
    leased = store.lease()
    assert [one.uid for one in leased] == [task.uid for task in tasks]
    assert leased[0].attempt == 1
    assert store.stats().failed_attempts_total == 0


def test_a_release_between_failures_does_not_shift_the_back_off(store: StoreDriver):
    task = store.create(retry=RetryPolicy(min_backoff_us=10, max_backoff_us=300, max_doublings=3))
    store.fail(store.lease_one())
    store.advance(us=10)
    store.maintain()
    store.settle(store.lease_one(), Outcome.RELEASED)
    assert store.must(task).attempts == 1
    store.fail(store.lease_one())
    assert store.must(task).due_at == store.now + 20


# --- retries


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (RetryPolicy(0, 0, 10 * SECOND_US, 300 * SECOND_US, 3), [10, 20, 40, 80, 160, 240, 300, 300]),
        (RetryPolicy(0, 0, 10 * SECOND_US, 200 * SECOND_US, 0), [10, 20, 30, 40, 50, 60, 70, 80]),
        (RetryPolicy(), [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8]),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_the_waits_between_attempts_are_app_engines(store: StoreDriver, policy, waits, own: bool):
    store.update_queue(retry=RetryPolicy(max_attempts=1) if own else policy)
    task = store.create(retry=policy if own else None)
    for number, seconds in enumerate(waits, 1):
        leased = store.lease_one()
        assert leased.attempt == number
        store.advance(seconds=3)
        store.fail(leased)
        record = store.must(task)
        assert (record.state, record.attempts) == (TaskState.SCHEDULED, number)
        assert record.due_at == store.now + round(seconds * SECOND_US) == store.applied.next_chore_at
        store.advance(us=record.due_at - store.now - 1)
        store.maintain()
        assert store.lease() == []
        store.advance(us=1)
        store.maintain()
        assert store.state(task) is TaskState.READY


def test_a_delay_replaces_the_back_off(store: StoreDriver):
    task = store.create()
    store.fail(store.lease_one(), delay_us=77 * SECOND_US)
    assert store.must(task).due_at == store.now + 77 * SECOND_US


def test_a_retry_without_wait_is_ready_at_once(store: StoreDriver):
    task = store.create()
    store.advance(seconds=2)
    store.fail(store.lease_one(), delay_us=0)
    assert store.state(task) is TaskState.READY
    assert store.must(task).due_at == store.now
    assert store.applied.ready == {"default": 1}


def test_a_retried_task_stands_behind_those_that_were_ready_before(store: StoreDriver):
    first, second = store.create_many(2)
    leased = store.lease_one()
    store.advance(us=1)
    store.fail(leased, delay_us=0)
    assert [one.uid for one in store.lease()] == [second.uid, first.uid]


def test_a_crash_waits_its_back_off_whatever_delay_came_with_it(store: StoreDriver):
    task = store.create()
    killed = TaskError("killed", "signal 9")
    store.settle(store.lease_one(), Outcome.CRASHED, error=killed, delay_us=HOUR_US)
    record = store.must(task)
    assert record.due_at == store.now + SECOND_US // 10
    assert [(attempt.outcome, attempt.error) for attempt in record.history] == [(AttemptOutcome.CRASHED, killed)]


def test_jitter_only_ever_shortens_the_wait(store: StoreDriver):
    policy = RetryPolicy(min_backoff_us=1000 * SECOND_US, max_backoff_us=1000 * SECOND_US, jitter=0.5)
    tasks = store.create_many(30, retry=policy)
    for leased in store.lease():
        store.fail(leased)
    waits = [store.must(task).due_at - store.now for task in tasks]
    assert all(500 * SECOND_US <= wait <= 1000 * SECOND_US for wait in waits)
    assert len(set(waits)) > 1


def test_a_changed_queue_policy_holds_for_the_next_failure(store: StoreDriver):
    task = store.create()
    leased = store.lease_one()
    store.update_queue(min_backoff_us=33 * SECOND_US)
    store.fail(leased)
    assert store.must(task).due_at == store.now + 33 * SECOND_US


# --- giving up


def _fail_until_dead(store: StoreDriver, seconds: float) -> int:
    """Fail the one task every so many seconds until it is dead; returns the number of attempts."""
    for attempts in range(1, 50):
        store.maintain()
        leased = store.lease_one()
        assert leased.attempt == attempts
        store.fail(leased, delay_us=0)
        if not store.stats().ready:
            return attempts
        store.advance(seconds=seconds)
    raise AssertionError("never given up")


@pytest.mark.parametrize(
    ("max_attempts", "max_age_seconds", "stop", "attempts"),
    [
        (3, 0, StopRule.ANY, 3),
        (3, 0, StopRule.ALL, 3),
        (1, 0, StopRule.ANY, 1),
        (0, 35, StopRule.ANY, 5),
        (0, 40, StopRule.ANY, 6),
        (0, 35, StopRule.ALL, 5),
        (3, 35, StopRule.ANY, 3),
        (3, 35, StopRule.ALL, 5),
        (7, 35, StopRule.ANY, 5),
        (7, 35, StopRule.ALL, 7),
    ],
)
def test_a_task_is_given_up_when_its_limits_are_spent(
    store: StoreDriver, max_attempts, max_age_seconds, stop, attempts
):
    task = store.create(
        retry=RetryPolicy(max_attempts=max_attempts, max_age_us=max_age_seconds * SECOND_US, stop=stop),
    )
    store.advance(seconds=1000)  # Waiting for the first attempt is not counted as age.
    assert _fail_until_dead(store, seconds=10) == attempts
    record = store.must(task)
    assert (record.state, record.attempts) == (TaskState.DEAD, attempts)
    assert (record.ended_at, record.expires_at) == (store.now, store.now + 14 * DAY_US)
    assert store.stats().dead == store.stats().dead_total == 1
    assert store.stats().failed_attempts_total == attempts


def test_a_released_first_lease_does_not_start_the_age(store: StoreDriver):
    task = store.create(retry=RetryPolicy(max_attempts=0, max_age_us=5 * SECOND_US))
    store.settle(store.lease_one(), Outcome.RELEASED)
    store.advance(seconds=100)
    store.fail(store.lease_one(), delay_us=0)
    assert store.state(task) is TaskState.READY


def test_the_age_counts_from_the_lease_of_the_first_attempt(store: StoreDriver):
    task = store.create(retry=RetryPolicy(max_attempts=0, max_age_us=5 * SECOND_US))
    leased = store.lease_one(duration_us=HOUR_US)
    store.advance(seconds=5, us=1)
    store.fail(leased)
    assert store.state(task) is TaskState.DEAD


def test_crashes_and_expiries_are_given_up_like_failures(store: StoreDriver):
    task = store.create(retry=RetryPolicy(max_attempts=3, min_backoff_us=0))
    store.settle(store.lease_one(), Outcome.CRASHED)
    for _ in range(2):
        store.lease_one()
        store.advance(seconds=30)
        store.maintain()
    record = store.must(task)
    assert record.state is TaskState.DEAD
    assert [attempt.outcome for attempt in record.history] == [
        AttemptOutcome.CRASHED,
        AttemptOutcome.EXPIRED,
        AttemptOutcome.EXPIRED,
    ]


def test_a_permanent_failure_is_a_dead_letter_at_once(store: StoreDriver):
    task = store.create()
    store.advance(seconds=3)
    leased = store.lease_one(worker_id="worker-7")
    store.advance(seconds=4)
    store.settle(leased, Outcome.FAILED, error=OOPS)
    record = store.must(task)
    assert (record.state, record.attempts, record.ended_at) == (TaskState.DEAD, 1, store.now)
    assert record.history == (
        Attempt(1, "worker-7", store.now - 4 * SECOND_US, store.now, AttemptOutcome.FAILED, OOPS),
    )
    assert (store.stats().dead, store.stats().dead_total, store.stats().failed_attempts_total) == (1, 1, 1)


def test_a_dead_letter_is_kept_for_its_queues_retention(store: StoreDriver):
    store.update_queue(dead_letter_retention_us=60 * SECOND_US)
    task = store.task_in(TaskState.DEAD)
    assert store.applied.next_chore_at == store.now + 60 * SECOND_US
    store.advance(seconds=60, us=-1)
    store.maintain()
    assert store.state(task) is TaskState.DEAD
    store.advance(us=1)
    store.maintain()
    assert store.record(task) is None
    assert (store.stats().dead, store.stats().dead_total) == (0, 1)


def test_a_dead_letter_is_not_kept_where_its_retention_is_zero(store: StoreDriver):
    store.update_queue(dead_letter_retention_us=0)
    task = store.create()
    store.settle(store.lease_one(), Outcome.FAILED, error=OOPS)
    assert store.record(task) is None
    assert (store.stats().dead, store.stats().dead_total) == (0, 1)


# --- history


def test_the_history_says_of_each_failed_attempt_who_when_and_why(store: StoreDriver):
    task = store.create()
    times = []
    for number, error in enumerate([OOPS, None, TaskError("E", "日本語", "🚀")], 1):
        leased = store.lease_one(worker_id=f"worker-{number}")
        store.advance(seconds=number)
        store.fail(leased, error=error, delay_us=0)
        times.append(store.now)
    assert store.must(task).history == tuple(
        Attempt(number, f"worker-{number}", times[number - 1] - number * SECOND_US, times[number - 1],
                AttemptOutcome.RETRY, error)
        for number, error in enumerate([OOPS, None, TaskError("E", "日本語", "🚀")], 1)
    )  # fmt: skip


def test_only_the_last_attempts_are_kept(store: StoreDriver):
    task = store.create(retry=RetryPolicy(max_attempts=0))
    for _ in range(MAX_HISTORY + 5):
        store.fail(store.lease_one(), delay_us=0)
    numbers = [attempt.number for attempt in store.must(task).history]
    assert numbers == list(range(6, MAX_HISTORY + 6))
    assert store.must(task).attempts == MAX_HISTORY + 5


def test_an_expired_lease_counts_an_attempt_and_says_why(store: StoreDriver):
    task = store.create(retry=RetryPolicy(min_backoff_us=10, max_backoff_us=300, max_doublings=3))
    store.lease_one(worker_id="worker-9")
    leased_at = store.now
    assert store.applied.next_chore_at == store.now + 30 * SECOND_US
    store.advance(seconds=30, us=-1)
    store.maintain()
    assert store.state(task) is TaskState.LEASED
    store.advance(us=1)
    store.maintain()
    record = store.must(task)
    assert (record.state, record.attempts) == (TaskState.SCHEDULED, 1)
    assert (record.due_at, record.first_attempt_at) == (store.now + 10, leased_at)
    assert record.history == (Attempt(1, "worker-9", leased_at, store.now, AttemptOutcome.EXPIRED, LEASE_EXPIRED),)
    assert store.stats().failed_attempts_total == 1


def test_attempts_are_numbered_without_gaps_whatever_ends_them(store: StoreDriver):
    task = store.create(retry=RetryPolicy(max_attempts=0, min_backoff_us=0))
    store.fail(store.lease_one())
    store.settle(store.lease_one(), Outcome.RELEASED)
    store.settle(store.lease_one(), Outcome.CRASHED)
    store.lease_one()
    store.reconcile()
    store.lease_one()
    store.advance(seconds=30)
    store.maintain()
    store.settle(store.lease_one(), Outcome.FAILED)
    history = store.must(task).history
    assert [attempt.number for attempt in history] == [1, 2, 3, 4]
    assert all(before.ended_at <= after.leased_at for before, after in pairwise(history))


# --- those who wait


@pytest.mark.parametrize("retention_us", [0, HOUR_US])
def test_the_end_of_a_watched_task_is_told(store: StoreDriver, retention_us: int):
    store.update_queue(
        result_retention_us=retention_us, dead_letter_retention_us=retention_us, retry=RetryPolicy(max_attempts=1)
    )
    tasks = store.create_many(5)
    succeeded, with_result, failed, given_up, released = store.lease()
    unwatched, watched = tasks[0].uid, {task.uid for task in tasks[1:]}
    store.apply(
        Settle(
            [succeeded.lease_id],
            [
                Settlement(with_result.lease_id, Outcome.SUCCEEDED, b"42"),
                Settlement(failed.lease_id, Outcome.FAILED),
                Settlement(given_up.lease_id, Outcome.RETRY),
                Settlement(released.lease_id, Outcome.RELEASED),
            ],
        ),
        watched=watched,
    )
    assert store.applied.ended == {
        tasks[1].uid: TaskState.SUCCEEDED,
        tasks[2].uid: TaskState.DEAD,
        tasks[3].uid: TaskState.DEAD,
    }
    assert unwatched not in store.applied.ended


def test_a_plain_success_that_is_watched_is_told(store: StoreDriver):
    _, second = store.create_many(2)
    store.apply(Settle([leased.lease_id for leased in store.lease()]), watched={second.uid})
    assert store.applied.ended == {second.uid: TaskState.SUCCEEDED}


def test_a_retry_is_no_end(store: StoreDriver):
    task = store.create()
    store.settle(store.lease_one(), Outcome.RETRY, watched={task.uid})
    assert store.applied.ended == {}
