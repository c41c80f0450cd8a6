"""The broker beyond commits and dispatch: waiting for ends, keeping time, telling workers, starting and stopping."""

import asyncio
import os
import threading

import pytest

from adjourn_service import names
from adjourn_service.broker import Broker
from adjourn_service.dispatcher import Demand
from adjourn_service.errors import (
    QueueNotEmpty,
    QueueNotFound,
    QueueProtected,
    ShuttingDown,
    StoreFull,
    StoreUnavailable,
    TaskNotFound,
)
from adjourn_service.model import DEFAULT_QUEUE, SECOND_US, Outcome, Settlement, TaskState
from adjourn_service.store.base import (
    CHORE_LIMIT,
    Cancel,
    Create,
    Delete,
    Lease,
    Leased,
    Maintain,
    Purge,
    Renew,
    Resume,
    Settle,
)
from tests.unit.service.conftest import WatchedStore, kinds, settled

LONG_US = 60 * SECOND_US


def uid_text(task):
    return names.format_uid(task.uid)


async def lease(broker, limit=10):
    result = await broker.apply(Lease(None, limit, "w1"))
    assert isinstance(result, Leased)
    return result.tasks


def wait(broker, task, timeout_us=LONG_US):
    return asyncio.ensure_future(broker.wait_task(task.queue, uid_text(task), timeout_us))


async def begun(broker, store, waiting):
    """Return when the wait has looked twice and now only listens."""
    while not broker._waiters:  # noqa: ASYNC110 - between two threads, with no event of its own.
        await asyncio.sleep(0)
    while store.reads < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await settled(broker)
    assert not waiting.done()


# --- starting and stopping


async def test_the_start_gives_leases_their_time_again_and_looks_for_what_is_due(store, clock):
    broker = Broker(store, clock)
    await broker.start()
    await settled(broker)
    assert kinds(store) == [[Resume], [Maintain]]
    await broker.stop()


async def test_a_lease_that_ended_while_the_service_was_away_is_still_its_worker_s(store, driver, clock):
    task = driver.create()
    (leased,) = driver.lease()
    clock.advance(3600 * SECOND_US)
    broker = Broker(store, clock)
    await broker.start()
    await settled(broker)
    assert driver.state(task) is TaskState.LEASED
    assert await broker.apply(Settle([leased.lease_id])) == []
    await broker.stop()


async def test_after_the_stop_everything_is_refused(store, driver, clock):
    broker = Broker(store, clock)
    await broker.start()
    await broker.stop()
    for call in (broker.apply(Cancel("q", "t")), broker.create(Create([driver.new()])), broker.purge(DEFAULT_QUEUE)):
        with pytest.raises(ShuttingDown):
            await call
    assert broker._maintenance is None or broker._maintenance.cancelled()


async def test_what_was_accepted_before_the_stop_is_committed(store, driver, clock):
    broker = Broker(store, clock)
    await broker.start()
    task = driver.new()
    creating = asyncio.ensure_future(broker.create(Create([task])))
    await asyncio.sleep(0)
    await broker.stop()
    assert await creating == {}
    assert driver.state(task) is TaskState.READY


# --- creating


async def test_the_items_of_a_create_are_refused_one_by_one(broker, driver):
    good, bad = driver.new(), driver.new("nowhere")
    refusals = await broker.create(Create([bad, good]))
    assert {index: type(error) for index, error in refusals.items()} == {0: QueueNotFound}
    assert driver.state(good) is TaskState.READY


@pytest.mark.parametrize("error", [StoreFull(), StoreUnavailable("away")])
async def test_a_store_that_cannot_commit_is_told_and_serves_again_later(broker, store, driver, error):
    store.error = error
    with pytest.raises(type(error)):
        await lease(broker)
    store.error = None
    assert await lease(broker) == []


# --- reading


async def test_what_is_not_there_is_told_apart(broker, driver):
    with pytest.raises(TaskNotFound):
        await broker.get_task(DEFAULT_QUEUE, "none")
    with pytest.raises(QueueNotFound):
        await broker.get_task("nowhere", "none")
    with pytest.raises(QueueNotFound):
        await broker.get_queue("nowhere")
    with pytest.raises(QueueNotFound):
        await broker.get_stats("nowhere")


# --- waiting for the end of a task


@pytest.fixture
def store(clock):
    class Read(WatchedStore):
        reads = 0

        def get_task(self, queue, task):
            if threading.current_thread() is not threading.main_thread():
                self.reads += 1
            return super().get_task(queue, task)

    return Read(clock)


async def test_a_task_that_has_ended_is_answered_at_once(broker, driver):
    task = driver.task_in(TaskState.DEAD)
    assert (await wait(broker, task)).state is TaskState.DEAD


async def test_a_task_that_ends_and_is_kept_is_answered_with_its_result(broker, store, driver):
    task = driver.create(retain_us=LONG_US)
    waiting = wait(broker, task)
    await begun(broker, store, waiting)
    (leased,) = await lease(broker)
    await broker.apply(Settle(others=[Settlement(leased.lease_id, Outcome.SUCCEEDED, result=b"42")]))
    record = await waiting
    assert (record.state, record.result) == (TaskState.SUCCEEDED, b"42")
    assert broker._waiters == {}


async def test_a_task_that_ends_and_is_gone_is_answered_as_it_was_with_its_end(broker, store, driver, clock):
    task = driver.create()
    waiting = wait(broker, task)
    await begun(broker, store, waiting)
    (leased,) = await lease(broker)
    await broker.apply(Settle([leased.lease_id]))
    record = await waiting
    assert (record.uid, record.state, record.ended_at) == (task.uid, TaskState.SUCCEEDED, clock.now())


async def test_a_task_that_is_deleted_during_the_wait_is_answered_as_cancelled(broker, store, driver):
    task = driver.create()
    waiting = wait(broker, task)
    await begun(broker, store, waiting)
    await broker.apply(Delete(task.queue, uid_text(task)))
    assert (await waiting).state is TaskState.CANCELLED


async def test_a_failed_attempt_is_no_end(broker, store, driver):
    task = driver.create()
    waiting = wait(broker, task)
    await begun(broker, store, waiting)
    (leased,) = await lease(broker)
    await broker.apply(Settle(others=[Settlement(leased.lease_id, Outcome.RETRY)]))
    await settled(broker)
    assert not waiting.done()
    await broker.apply(Cancel(task.queue, uid_text(task)))
    assert (await waiting).state is TaskState.CANCELLED


async def test_everybody_who_waits_for_a_task_is_told(broker, store, driver):
    task = driver.create()
    first, second = wait(broker, task), wait(broker, task)
    while store.reads < 4:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await settled(broker)
    await broker.apply(Cancel(task.queue, uid_text(task)))
    assert [record.state for record in await asyncio.gather(first, second)] == [TaskState.CANCELLED] * 2


async def test_a_task_that_does_not_end_in_time_is_answered_as_it_is(broker, driver):
    task = driver.create()
    assert (await wait(broker, task, 0)).state is TaskState.READY
    assert (await wait(broker, task, 1000)).state is TaskState.READY
    assert broker._waiters == {}


async def test_a_task_that_is_not_there_is_not_waited_for(broker, driver):
    with pytest.raises(TaskNotFound):
        await wait(broker, driver.new())


async def test_who_gives_up_waiting_leaves_nothing_behind(broker, store, driver):
    task = driver.create()
    waiting = wait(broker, task)
    await begun(broker, store, waiting)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert broker._waiters == {}


async def test_an_interrupt_ends_every_wait(broker, store, driver):
    waiting = wait(broker, driver.create())
    await begun(broker, store, waiting)
    broker.interrupt()
    with pytest.raises(ShuttingDown):
        await waiting


# --- time


async def test_a_scheduled_task_is_promoted_and_pushed_on_time_without_polling(broker, store, driver, clock):
    pushed = asyncio.get_running_loop().create_future()

    def deliver(tasks):
        if tasks:
            pushed.set_result(tasks)

    demand = Demand("w1", None, deliver, pushed.set_exception)
    broker.dispatcher.grant(demand, 1)
    await settled(broker)
    store.batches.clear()
    task = driver.new(countdown_us=20_000)
    await broker.create(Create([task]))
    await settled(broker)
    clock.advance(20_000)
    (leased,) = await pushed
    assert leased.uid == task.uid
    assert sum(kind is Maintain for batch in kinds(store) for kind in batch) == 1


async def test_an_earlier_moment_brings_maintenance_forward_and_a_later_one_does_not_put_it_off(broker, driver):
    async def due():
        await settled(broker)
        return broker._maintenance_at - asyncio.get_running_loop().time()

    assert 25 < await due() <= 30
    await broker.create(Create([driver.new(countdown_us=10 * SECOND_US)]))
    assert 5 < await due() <= 10
    await broker.create(Create([driver.new(countdown_us=20 * SECOND_US)]))
    assert 5 < await due() <= 10


async def test_commits_that_come_together_may_both_leave_something_due_at_once(broker, store, driver, clock):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    driver.create(countdown_us=1)
    clock.advance(2)
    store.error = RuntimeError("so that each operation of the batch gets a commit of its own")
    lease = Lease(None, 1, "w1")
    for operation in (Renew(()), Renew(()), lease):
        broker.submit(operation, lambda _result: None)
    await asyncio.sleep(0)
    # The loop stands still until the last of them, so that it hears of all commits in one turn.
    while [lease] not in store.batches:
        os.sched_yield()
    store.error = None
    await settled(broker)
    assert errors == []


async def test_a_failed_maintenance_is_tried_again(broker, store):
    broker._maintained(StoreFull())
    assert broker._maintenance is not None


# --- longer doings


async def test_a_purge_removes_what_was_there_in_steps_and_counts_it(broker, store, driver):
    driver.create_many(CHORE_LIMIT + 5)
    assert await broker.purge(DEFAULT_QUEUE) == CHORE_LIMIT + 5
    assert kinds(store) == [[Purge], [Purge]]
    assert driver.list() == []


async def test_a_queue_that_holds_tasks_goes_only_by_force(broker, driver):
    driver.create_queue("q")
    driver.create_many(3, "q")
    with pytest.raises(QueueNotEmpty):
        await broker.delete_queue("q", force=False)
    await broker.delete_queue("q", force=True)
    with pytest.raises(QueueNotFound):
        await broker.get_queue("q")


async def test_the_default_queue_is_not_purged_by_a_forced_delete_that_is_refused(broker, driver):
    task = driver.create()
    with pytest.raises(QueueProtected):
        await broker.delete_queue(DEFAULT_QUEUE, force=True)
    assert driver.state(task) is TaskState.READY


# --- telling workers


async def test_a_worker_is_told_which_of_its_leases_were_taken_away(broker, driver):
    told = []
    broker.connect("w1", told.extend)
    task = driver.create()
    (leased,) = await lease(broker)
    await broker.apply(Cancel(task.queue, uid_text(task)))
    await settled(broker)
    assert told == [leased.lease_id]


async def test_a_disconnect_of_an_earlier_stream_leaves_the_later_connected(broker, driver):
    told, earlier = [], []
    on_earlier, on_later = earlier.extend, told.extend
    broker.connect("w1", on_earlier)
    broker.connect("w1", on_later)
    broker.disconnect("w1", on_earlier)
    task = driver.create()
    await lease(broker)
    await broker.apply(Delete(task.queue, uid_text(task)))
    await settled(broker)
    assert (len(told), earlier) == (1, [])
