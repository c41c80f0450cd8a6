"""Matching demands with ready tasks: who asks when, for how much, and what becomes of leases that nobody takes."""

import asyncio

from adjourn_service.dispatcher import LEASE_LIMIT
from adjourn_service.errors import StoreFull
from adjourn_service.model import SECOND_US, TaskState
from adjourn_service.store.base import Create, Lease, Settle
from tests.unit.service.conftest import Hands, kinds, settled


async def parked(broker, *args, credit=10, **fields):
    """Return hands that wait for tasks."""
    hands = Hands(broker, *args, **fields)
    hands.grant(credit)
    await settled(broker)
    broker._store.batches.clear()
    return hands


async def test_a_create_is_leased_in_the_same_commit_to_a_demand_that_waits(broker, store, driver):
    hands = await parked(broker)
    task = driver.new()
    await broker.create(Create([task]))
    assert kinds(store) == [[Create, Lease]]
    assert hands.uids == [task.uid]


async def test_a_create_that_nobody_waits_for_asks_for_nothing(broker, store, driver):
    await parked(broker, queues=("other",))
    await broker.create(Create([driver.new()]))
    await settled(broker)
    assert kinds(store) == [[Create]]


async def test_no_more_demands_are_asked_for_than_there_are_tasks(broker, store, driver):
    first, second, third = [await parked(broker, f"w{number}", credit=2) for number in range(3)]
    await broker.create(Create([driver.new() for _ in range(2)]))
    assert kinds(store) == [[Create, Lease, Lease]]
    assert [len(each.leases) for each in (first, second, third)] == [1, 1, 0]


async def test_tasks_are_shared_among_the_demands_that_wait(broker, driver):
    # One of them could take all, and would run them one after the other.
    hands = [await parked(broker, f"w{number}", credit=1000) for number in range(4)]
    await broker.create(Create([driver.new() for _ in range(10)]))
    await settled(broker)
    assert [len(each.leases) for each in hands] == [3, 3, 2, 2]


async def test_what_a_demand_has_no_credit_for_is_shared_among_the_others(broker, driver):
    hands = [await parked(broker, f"w{number}", credit=credit) for number, credit in enumerate((1, 100, 100))]
    await broker.create(Create([driver.new() for _ in range(9)]))
    await settled(broker)
    assert [len(each.leases) for each in hands] == [1, 4, 4]


async def test_who_has_waited_longest_is_served_first(broker, driver):
    first, second = await parked(broker, "w1", credit=1), await parked(broker, "w2", credit=1)
    tasks = [driver.new() for _ in range(3)]
    await broker.create(Create(tasks[:1]))
    first.grant(1)
    await settled(broker)
    await broker.create(Create(tasks[1:2]))
    await broker.create(Create(tasks[2:]))
    assert (first.uids, second.uids) == ([tasks[0].uid, tasks[2].uid], [tasks[1].uid])


async def test_credit_is_never_exceeded_and_what_is_left_of_it_stays(broker, driver):
    driver.create_many(5)
    hands = Hands(broker)
    hands.grant(3)
    await settled(broker)
    assert len(hands.leases) == 3
    hands.grant(4)
    await settled(broker)
    assert len(hands.leases) == 5
    assert hands.demand.credit == 2


async def test_much_credit_is_asked_for_in_steps_until_there_is_no_more(broker, store, driver):
    driver.create_many(LEASE_LIMIT + 10)
    hands = Hands(broker)
    hands.grant(10 * LEASE_LIMIT)
    await settled(broker)
    assert len(hands.leases) == LEASE_LIMIT + 10
    assert kinds(store)[:2] == [[Lease], [Lease]]


async def test_credit_given_while_asking_is_used(broker, driver):
    driver.create_many(4)
    hands = Hands(broker)
    hands.grant(1)
    hands.grant(3)
    await settled(broker)
    assert len(hands.leases) == 4


async def test_withdrawn_credit_brings_no_more(broker, store, driver):
    hands = await parked(broker)
    broker.dispatcher.withdraw(hands.demand)
    await broker.create(Create([driver.new()]))
    await settled(broker)
    assert (hands.leases, kinds(store)) == ([], [[Create]])


async def test_leases_asked_for_before_a_withdrawal_still_come(broker, driver):
    driver.create_many(2)
    hands = Hands(broker)
    hands.grant(1)
    broker.dispatcher.withdraw(hands.demand)
    await settled(broker)
    assert (len(hands.leases), hands.demand.credit) == (1, 0)


async def test_leases_for_a_demand_that_was_closed_while_asking_are_released_uncounted(broker, driver):
    task = driver.create()
    hands = Hands(broker)
    hands.grant(1)
    broker.dispatcher.close(hands.demand)
    await settled(broker)
    assert hands.leases == []
    record = driver.must(task)
    assert (record.state, record.attempts, record.history) == (TaskState.READY, 0, ())


async def test_what_one_demand_gives_back_goes_to_another(broker, driver):
    task = driver.create()
    leaves, stays = Hands(broker, "w1"), Hands(broker, "w2")
    leaves.grant(1)
    stays.grant(1)
    broker.dispatcher.close(leaves.demand)
    await settled(broker)
    assert stays.uids == [task.uid]


async def test_a_closed_demand_cannot_be_granted(broker, driver):
    driver.create()
    hands = Hands(broker)
    broker.dispatcher.close(hands.demand)
    hands.grant(1)
    await settled(broker)
    assert hands.leases == []


async def test_a_store_that_cannot_be_asked_is_told_to_the_demand_and_to_no_closed_one(broker, store):
    store.error = StoreFull()
    hands, closed = Hands(broker), Hands(broker, "w2")
    hands.grant(1)
    closed.grant(1)
    broker.dispatcher.close(closed.demand)
    await settled(broker)
    assert (hands.errors, closed.errors) == ([store.error], [])


async def test_after_a_failure_the_demand_may_ask_again(broker, store, driver):
    task = driver.create()
    store.error = StoreFull()
    hands = Hands(broker)
    hands.grant(1)
    await settled(broker)
    store.error = None
    hands.grant(0)
    await settled(broker)
    assert hands.uids == [task.uid]


async def test_a_demand_that_finds_nothing_for_its_label_does_not_ask_over_and_over(broker, store, driver):
    driver.create_many(3, tag="other")
    hands = Hands(broker, tag="mine")
    hands.grant(1)
    await settled(broker)
    assert kinds(store) == [[Lease]]
    await broker.create(Create([driver.new(tag="mine")]))
    assert len(hands.leases) == 1


async def test_a_rate_limited_queue_wakes_its_demand_by_itself(broker, store, driver, clock):
    driver.create_queue("q", max_leases_per_second=100, max_burst_size=1)
    driver.create_many(5, "q")
    hands = Hands(broker)
    hands.grant(10)
    for number in range(1, 6):
        while len(hands.leases) < number:  # noqa: ASYNC110 - a timer of the loop, of which nothing else tells.
            await asyncio.sleep(0)
        clock.advance(SECOND_US // 100)
    await settled(broker)
    assert len(hands.leases) == 5


async def test_a_demand_in_the_way_of_a_rate_limit_has_one_alarm(broker, driver):
    driver.create_queue("q", max_leases_per_second=0.01, max_burst_size=1)
    driver.create_many(5, "q")
    hands = await parked(broker)
    assert len(hands.leases) == 1
    for _ in range(3):
        await broker.create(Create([driver.new("q")]))
        await settled(broker)
    assert list(broker.dispatcher._alarms) == [hands.demand]
    broker.dispatcher.close(hands.demand)
    assert not broker.dispatcher._alarms


async def test_a_freed_place_under_a_concurrency_limit_is_filled(broker, driver):
    driver.create_queue("q", max_concurrent_leases=1)
    driver.create_many(2, "q")
    hands = Hands(broker)
    hands.grant(5)
    await settled(broker)
    assert len(hands.leases) == 1
    await broker.apply(Settle([hands.leases[0].lease_id]))
    await settled(broker)
    assert len(hands.leases) == 2


async def test_a_full_concurrency_limit_is_not_asked_over_and_over(broker, store, driver):
    driver.create_queue("q", max_concurrent_leases=1)
    driver.create_many(3, "q")
    hands = Hands(broker)
    hands.grant(5)
    await settled(broker)
    await settled(broker)
    assert sum(kind is Lease for batch in kinds(store) for kind in batch) <= 2
