"""Leasing: order, labels, turns, limits, and what a lease is."""

import pytest

from adjourn_service.model import HOUR_US, SECOND_US, Outcome, TaskState
from adjourn_service.store.base import Create, Lease, Leased, Maintain, Resume, Settle
from tests.factories import StoreDriver


def test_a_lease_hands_out_the_task_and_takes_it_from_the_others(store: StoreDriver):
    task = store.create(name="n", body=b"call")
    (leased,) = store.lease(worker_id="worker-a")
    assert (leased.queue, leased.uid, leased.name, leased.body) == ("default", task.uid, "n", b"call")
    assert (leased.attempt, leased.duration_us, leased.keep_result) == (1, 30 * SECOND_US, False)
    record = store.must(task)
    assert (record.state, record.worker_id) == (TaskState.LEASED, "worker-a")
    assert record.lease_deadline_at == store.now + 30 * SECOND_US
    assert (record.attempts, record.first_attempt_at) == (0, store.now)
    assert store.lease() == []


def test_a_task_may_be_created_and_leased_in_the_same_batch(store: StoreDriver):
    task = store.new()
    created, leased = store.apply(Create([task]), Lease(None, 10, "worker-1"))
    assert created == {}
    assert isinstance(leased, Leased)
    assert [one.uid for one in leased.tasks] == [task.uid]
    assert store.applied.ready == {"default": 0}


def test_a_task_may_be_created_leased_and_settled_with_another_leased_in_its_place(store: StoreDriver):
    store.update_queue(max_concurrent_leases=1)
    store.create_many(2)
    first = store.lease_one()
    lost, leased = store.apply(Settle([first.lease_id]), Lease(None, 10, "worker-1"))
    assert lost == []
    assert isinstance(leased, Leased)
    assert len(leased.tasks) == 1


def test_leasing_gives_no_more_than_asked_for(store: StoreDriver):
    store.create_many(5)
    assert [len(store.lease(limit)) for limit in (2, 2, 2, 2)] == [2, 2, 1, 0]


def test_order_is_priority_then_due_moment_then_creation(store: StoreDriver):
    store.create(body=b"7", countdown_us=5)
    store.create(body=b"5")
    store.create(body=b"6")
    store.create(body=b"1", priority=2)
    store.create(body=b"3", priority=1, countdown_us=2)
    store.create(body=b"2", priority=1, countdown_us=1)
    store.create(body=b"4", priority=1, countdown_us=2)
    store.create(body=b"8", priority=-1)
    store.advance(us=10)
    store.maintain()
    assert [leased.body for leased in store.lease()] == [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"]


def test_order_is_kept_over_many_small_leases(store: StoreDriver):
    for number in range(30):
        store.create(body=bytes([number]), priority=number % 3, tag="t" if number % 2 else "")
    got = [leased.body[0] for _ in range(10) for leased in store.lease(3)]
    assert got == sorted(range(30), key=lambda number: (-(number % 3), number))


def test_a_scheduled_task_is_leased_in_the_order_of_its_due_moment(store: StoreDriver):
    later = store.create(countdown_us=10)
    store.advance(us=20)
    newer = store.create()
    store.maintain()
    assert [leased.uid for leased in store.lease()] == [later.uid, newer.uid]


def test_a_scheduled_task_waits_for_its_moment_and_for_maintenance(store: StoreDriver):
    task = store.create(countdown_us=SECOND_US)
    store.advance(seconds=1, us=-1)
    store.maintain()
    assert store.lease() == []
    store.advance(us=1)
    assert store.state(task) is TaskState.SCHEDULED
    store.maintain()
    assert [leased.uid for leased in store.lease()] == [task.uid]


# --- tags and keys


def test_a_lease_by_tag_gives_only_tasks_of_that_tag(store: StoreDriver):
    store.create(body=b"1")
    for body, tag in ((b"2", "a"), (b"3", "b"), (b"4", "a")):
        store.create(body=body, tag=tag)
    assert [leased.body for leased in store.lease(tag="a")] == [b"2", b"4"]
    assert [leased.body for leased in store.lease(tag="a")] == []
    assert [leased.body for leased in store.lease()] == [b"1", b"3"]


def test_a_lease_by_key_gives_only_tasks_of_that_key(store: StoreDriver):
    store.create(tag="same")
    wanted = store.create(key="same")
    assert [leased.uid for leased in store.lease(key="same")] == [wanted.uid]


def test_a_lease_by_tag_follows_the_order(store: StoreDriver):
    for number in range(12):
        store.create(body=bytes([number]), tag="ab"[number % 2], priority=number % 3)
    got = [leased.body[0] for _ in range(6) for leased in store.lease(1, tag="a")]
    assert got == sorted(range(0, 12, 2), key=lambda number: (-(number % 3), number))


def test_a_task_that_comes_back_has_its_tag_still(store: StoreDriver):
    task = store.create(tag="a", key="k")
    store.settle(store.lease(tag="a")[0], Outcome.RELEASED)
    store.fail(store.lease(key="k")[0], delay_us=0)
    assert [leased.uid for leased in store.lease(tag="a")] == [task.uid]


def test_a_cancelled_or_deleted_task_is_not_found_by_its_tag(store: StoreDriver):
    store.cancel(store.create(tag="a"))
    store.delete(store.create(tag="a"))
    assert store.lease(tag="a") == []


# --- several queues


def test_queues_are_served_in_turn(store: StoreDriver):
    for queue in ("a", "b", "c"):
        store.create_queue(queue)
        store.create_many(10, queue)
    for asked in (None, ["a", "b", "c"]):
        served = [leased.queue for _ in range(9) for leased in store.lease(1, asked)]
        assert all(sorted(served[start : start + 3]) == ["a", "b", "c"] for start in range(7)), served


def test_a_queue_that_has_less_leaves_the_rest_to_the_next(store: StoreDriver):
    for queue, number in (("a", 1), ("b", 2), ("c", 3)):
        store.create_queue(queue)
        store.create_many(number, queue)
    assert len(store.lease(5, ["a", "b", "c"])) == 5
    assert len(store.lease(5)) == 1


def test_only_the_queues_asked_for_are_served_and_unknown_ones_passed_over(store: StoreDriver):
    store.create_queue("a")
    store.create_many(2, "a")
    store.create_many(2)
    assert [leased.queue for leased in store.lease(10, ["nowhere", "a"])] == ["a", "a"]
    assert store.lease(10, ["nowhere"]) == []
    assert store.lease(10, []) == []
    assert store.stats().ready == 2


# --- pause and limits


def test_a_paused_queue_gives_nothing_and_takes_creates_and_settlements(store: StoreDriver):
    store.create_many(2)
    leased = store.lease_one()
    assert store.pause().paused
    assert store.applied.ready == {"default": 0}
    store.create()
    assert store.applied.ready == {"default": 0}
    assert store.offer() == Leased([], None)
    assert store.succeed(leased) == []
    assert store.stats().ready == 2
    assert not store.resume().paused
    assert store.applied.ready == {"default": 2}
    assert len(store.lease()) == 2


def test_a_paused_queue_does_not_hold_up_the_others(store: StoreDriver):
    store.create_queue("a")
    store.create_many(2, "a")
    store.create_many(2)
    store.pause("a")
    assert [leased.queue for _ in range(4) for leased in store.lease(1)] == ["default", "default"]


def test_no_more_than_max_concurrent_leases_are_out_at_once(store: StoreDriver):
    store.update_queue(max_concurrent_leases=3)
    store.create_many(10)
    first = store.lease(2)
    assert len(first) == 2
    (third,) = store.lease()
    assert store.offer() == Leased([], None)
    store.succeed(first[0])
    store.settle(third, Outcome.RELEASED)
    assert len(store.lease()) == 2
    store.update_queue(max_concurrent_leases=2)
    assert store.lease() == []
    store.update_queue()
    assert len(store.lease()) == 6


def test_expired_and_cancelled_leases_free_their_places(store: StoreDriver):
    store.update_queue(max_concurrent_leases=2, min_backoff_us=SECOND_US)
    tasks = store.create_many(4)
    store.lease(2)
    store.cancel(tasks[0])
    assert len(store.lease()) == 1
    store.advance(seconds=30)
    store.maintain()
    assert len(store.lease()) == 1


def test_a_rate_limit_gives_a_burst_and_then_its_rate_and_says_when(store: StoreDriver):
    store.update_queue(max_leases_per_second=10.0, max_burst_size=5)
    store.create_many(20)
    offer = store.offer()
    assert len(offer.tasks) == 5
    assert offer.more_at == store.now + SECOND_US // 10
    assert store.offer() == Leased([], offer.more_at)
    store.clock.advance(offer.more_at - store.now)
    offer = store.offer()
    assert len(offer.tasks) == 1
    assert offer.more_at == store.now + SECOND_US // 10
    store.advance(seconds=60)
    assert len(store.lease()) == 5


def test_a_rate_limit_that_is_not_in_the_way_names_no_moment(store: StoreDriver):
    store.update_queue(max_leases_per_second=10.0, max_burst_size=5)
    assert store.offer() == Leased([], None)
    store.create_many(3)
    assert store.offer(2).more_at is None
    assert store.offer().more_at is None
    store.create_many(3)
    assert store.offer(2).more_at is None
    store.pause()
    assert store.offer().more_at is None


def test_a_concurrency_limit_below_the_rate_names_no_moment(store: StoreDriver):
    store.update_queue(max_leases_per_second=10.0, max_burst_size=5, max_concurrent_leases=2)
    store.create_many(9)
    offer = store.offer()
    assert (len(offer.tasks), offer.more_at) == (2, None)


def test_a_slow_rate_gives_one_task_at_a_time(store: StoreDriver):
    store.update_queue(max_leases_per_second=0.25)
    store.create_many(3)
    offer = store.offer()
    assert len(offer.tasks) == 1
    assert offer.more_at == store.now + 4 * SECOND_US
    store.advance(seconds=4, us=-1)
    assert store.lease() == []
    store.advance(us=1)
    assert len(store.lease()) == 1


def test_the_earliest_moment_of_several_limited_queues_is_given(store: StoreDriver):
    for queue, rate in (("slow", 1.0), ("fast", 4.0)):
        store.create_queue(queue, max_leases_per_second=rate, max_burst_size=1)
        store.create_many(3, queue)
    offer = store.offer()
    assert len(offer.tasks) == 2
    assert offer.more_at == store.now + SECOND_US // 4


def test_a_rate_limit_set_later_starts_with_a_full_bucket_and_lifted_is_gone(store: StoreDriver):
    store.create_many(9)
    store.lease(2)
    store.update_queue(max_leases_per_second=1.0, max_burst_size=2)
    assert len(store.lease()) == 2
    store.update_queue()
    assert len(store.lease()) == 5


# --- what a lease is


def test_lease_ids_are_never_used_twice(store: StoreDriver):
    store.create_many(3)
    seen: set[str] = set()
    for _ in range(5):
        leased = store.lease()
        seen.update(one.lease_id for one in leased)
        for one in leased:
            store.settle(one, Outcome.RELEASED)
    assert len(seen) == 15


def test_the_duration_is_the_callers_or_else_the_queues(store: StoreDriver):
    store.update_queue(lease_duration_us=7 * SECOND_US)
    mine, theirs = store.create_many(2)
    assert store.lease_one().duration_us == 7 * SECOND_US
    assert store.lease_one(duration_us=2 * SECOND_US).duration_us == 2 * SECOND_US
    assert store.must(mine).lease_deadline_at == store.now + 7 * SECOND_US
    assert store.must(theirs).lease_deadline_at == store.now + 2 * SECOND_US


@pytest.mark.parametrize(
    ("retention_us", "retain_us", "keeps"),
    [(0, None, False), (5, None, True), (5, 0, False), (0, 5, True)],
)
def test_a_lease_says_whether_its_result_will_be_kept(store: StoreDriver, retention_us, retain_us, keeps):
    store.update_queue(result_retention_us=retention_us)
    task = store.create(retain_us=retain_us)
    leased = store.lease_one()
    assert leased.keep_result is keeps
    store.settle(leased, Outcome.SUCCEEDED, result=b"result")
    assert (store.record(task) is not None) is keeps


def test_a_renewed_lease_lives_on_from_now(store: StoreDriver):
    task = store.create()
    leased = store.lease_one()
    store.advance(seconds=29)
    assert store.renew(leased) == []
    assert store.must(task).lease_deadline_at == store.now + 30 * SECOND_US
    store.advance(seconds=20)
    assert store.renew(leased, duration_us=SECOND_US) == []
    assert store.applied.next_chore_at == store.now + SECOND_US
    store.advance(seconds=1, us=-1)
    store.maintain()
    assert store.state(task) is TaskState.LEASED
    store.advance(us=1)
    store.maintain()
    assert store.state(task) is TaskState.SCHEDULED
    assert store.renew(leased) == [leased.lease_id]


def test_a_lease_past_its_deadline_is_valid_until_maintenance_ends_it(store: StoreDriver):
    store.create_many(2)
    first, second = store.lease()
    store.advance(seconds=300)
    assert store.renew(first) == []
    assert store.succeed(second) == []
    store.maintain()
    assert store.succeed(first) == []


def test_renewing_tells_the_lost_ones_and_renews_the_others(store: StoreDriver):
    store.create_many(3)
    first, second, third = store.lease()
    store.succeed(second)
    store.advance(seconds=10)
    unknown = first._replace(lease_id="no-such-lease")
    assert sorted(store.renew(first, second, unknown, third)) == sorted([second.lease_id, "no-such-lease"])
    store.advance(seconds=29)
    store.maintain()
    assert store.stats().leased == 2


def test_a_renew_without_a_duration_takes_the_queues(store: StoreDriver):
    store.create_queue("a", lease_duration_us=5 * SECOND_US)
    store.create_queue("b", lease_duration_us=9 * SECOND_US)
    a, b = store.create("a"), store.create("b")
    leased = store.lease()
    store.advance(seconds=1)
    assert store.renew(*leased) == []
    assert store.must(a).lease_deadline_at == store.now + 5 * SECOND_US
    assert store.must(b).lease_deadline_at == store.now + 9 * SECOND_US


def test_leases_have_their_full_time_again_when_the_service_comes_back(store: StoreDriver):
    store.create_queue("short", lease_duration_us=5 * SECOND_US)
    tasks = [store.create(), store.create("short"), store.create("short")]
    first, second = store.lease_one(), store.lease_one("short")
    longer = store.lease_one("short", duration_us=HOUR_US)
    store.advance(seconds=100)
    store.apply(Resume(), Maintain())
    deadlines = [store.must(task).lease_deadline_at for task in tasks]
    assert deadlines == [store.now + 30 * SECOND_US, store.now + 5 * SECOND_US, store.now - 100 * SECOND_US + HOUR_US]
    assert store.applied.next_chore_at == store.now + 5 * SECOND_US
    assert store.succeed(first, second, longer) == []


# --- reconcile


def test_reconcile_releases_what_the_worker_does_not_hold(store: StoreDriver):
    tasks = store.create_many(3)
    leased = store.lease()
    assert store.reconcile(leased[1]) == []
    assert [store.state(task) for task in tasks] == [TaskState.READY, TaskState.LEASED, TaskState.READY]
    assert store.applied.ready == {"default": 2}
    record = store.must(tasks[0])
    assert (record.attempts, record.history, record.first_attempt_at) == (0, (), None)
    again = store.lease()
    assert [one.attempt for one in again] == [1, 1]
    assert store.succeed(leased[0]) == [leased[0].lease_id]
    assert store.succeed(leased[1], *again) == []


def test_reconcile_tells_which_held_leases_are_lost(store: StoreDriver):
    store.create_many(3)
    mine, gone = store.lease(2, worker_id="worker-1")
    (theirs,) = store.lease(1, worker_id="worker-2")
    store.succeed(gone)
    unknown = mine._replace(lease_id="no-such-lease")
    lost = store.reconcile(mine, gone, theirs, unknown)
    assert sorted(lost) == sorted([gone.lease_id, theirs.lease_id, "no-such-lease"])
    assert store.stats().leased == 2


def test_reconcile_leaves_the_leases_of_other_workers_alone(store: StoreDriver):
    store.create_many(2)
    (theirs,) = store.lease(1, worker_id="worker-2")
    assert store.reconcile(worker_id="worker-1") == []
    assert store.succeed(theirs) == []


def test_a_worker_that_comes_back_empty_handed_gives_everything_back(store: StoreDriver):
    store.create_many(3)
    store.lease()
    assert store.reconcile() == []
    assert (store.stats().ready, store.stats().leased) == (3, 0)
