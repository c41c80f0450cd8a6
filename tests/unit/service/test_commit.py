"""Group commit: what goes together, what fails alone, and how it ends."""

import asyncio
import logging
import threading

import pytest

from adjourn_service.commit import COMMIT_WEIGHT, GroupCommit, resolver
from adjourn_service.errors import ShuttingDown, StoreFull, StoreUnavailable, TaskNotFound
from adjourn_service.store.base import Applied, Create, Purge, Renew

POISON = Purge("poison")


class CommandedStore:
    """Records the batches that it is given and does what it is told with them."""

    def __init__(self):
        self.batches = []
        self.errors = []
        """Raised by the next applies, one each; None lets one pass."""
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def apply(self, operations, now=None, watched=frozenset()):
        self.batches.append(list(operations))
        self.entered.release()
        self.gate.wait()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        if POISON in operations:
            raise RuntimeError("poison")
        return Applied([TaskNotFound("t") if isinstance(each, Purge) else each for each in operations])


@pytest.fixture
def store():
    return CommandedStore()


@pytest.fixture
async def commit(store):
    told = []
    group = GroupCommit(store, told.append, frozenset())
    group.told = told
    group.start()
    yield group
    store.gate.set()
    await group.close()


def submit(commit, operation):
    future = asyncio.get_running_loop().create_future()
    commit.submit(operation, resolver(future))
    return future


def numbered(number):
    return Renew([str(number)])


async def busy(commit, store):
    """Keep the store at work until its gate opens."""
    store.gate.clear()
    first = submit(commit, numbered("busy"))
    await asyncio.to_thread(store.entered.acquire)
    return first


async def test_operations_of_one_turn_of_the_loop_share_a_commit(commit, store):
    operations = [numbered(number) for number in range(5)]
    assert await asyncio.gather(*[submit(commit, each) for each in operations]) == operations
    assert store.batches == [operations]


async def test_operations_that_come_during_a_commit_share_the_next(commit, store):
    first = await busy(commit, store)
    later = []
    for number in range(3):
        later.append(submit(commit, numbered(number)))
        await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(first, *later)
    assert [len(batch) for batch in store.batches] == [1, 3]


async def test_a_commit_carries_no_more_than_its_weight(commit, store):
    first = await busy(commit, store)
    heavy = Create([None] * (COMMIT_WEIGHT - 1))
    later = [submit(commit, each) for each in (heavy, numbered(1), numbered(2))]
    store.gate.set()
    await asyncio.gather(first, *later)
    assert [len(batch) for batch in store.batches] == [1, 2, 1]


async def test_a_refusal_reaches_its_caller_alone(commit):
    refused, taken = submit(commit, Purge("x")), submit(commit, numbered(1))
    with pytest.raises(TaskNotFound):
        await refused
    assert await taken == numbered(1)


async def test_a_poisonous_operation_fails_alone(commit, store, caplog):
    futures = [submit(commit, each) for each in (numbered(1), POISON, numbered(2))]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [results[0], results[2]] == [numbered(1), numbered(2)]
    assert isinstance(results[1], RuntimeError)
    assert [len(batch) for batch in store.batches] == [3, 1, 1, 1]
    assert all(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("error", [StoreFull(), StoreUnavailable("the disk is away")])
async def test_a_store_that_cannot_commit_is_told_to_every_caller_and_asked_again_later(commit, store, error, caplog):
    store.errors = [error]
    futures = [submit(commit, numbered(number)) for number in range(3)]
    assert await asyncio.gather(*futures, return_exceptions=True) == [error] * 3
    assert len(store.batches) == 1
    assert commit.told == []
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.WARNING, None)]
    assert await submit(commit, numbered(4)) == numbered(4)


async def test_what_a_commit_did_is_told_behind_the_results_of_its_operations(store):
    order = []
    commit = GroupCommit(store, lambda applied: order.append("applied"), frozenset())
    commit.start()
    done = asyncio.Event()
    commit.submit(numbered(1), lambda result: order.append("first"))
    commit.submit(numbered(2), lambda result: order.append("second") or done.set())
    await done.wait()
    await commit.close()
    assert order == ["first", "second", "applied"]


async def test_closing_commits_what_was_accepted_and_refuses_the_rest(commit, store):
    first = await busy(commit, store)
    accepted = submit(commit, numbered(1))
    closing = asyncio.ensure_future(commit.close())
    await asyncio.sleep(0)
    late = submit(commit, numbered(2))
    store.gate.set()
    await closing
    with pytest.raises(ShuttingDown):
        await late
    assert [await first, await accepted] == [numbered("busy"), numbered(1)]
    assert store.batches == [[numbered("busy")], [numbered(1)]]


async def test_closing_commits_all_even_if_it_takes_several_commits(commit, store):
    first = await busy(commit, store)
    accepted = [submit(commit, Create([None] * COMMIT_WEIGHT)) for _ in range(3)]
    closing = asyncio.ensure_future(commit.close())
    await asyncio.sleep(0)
    store.gate.set()
    await closing
    await asyncio.gather(first, *accepted)
    assert len(store.batches) == 4


async def test_closing_what_never_started_is_allowed(store):
    await GroupCommit(store, lambda applied: None, frozenset()).close()


async def test_a_caller_that_has_gone_disturbs_nobody(commit, store):
    first = await busy(commit, store)
    gone, stays = submit(commit, Purge("x")), submit(commit, numbered(1))
    gone.cancel()
    store.gate.set()
    assert await stays == numbered(1)
    await first


async def test_a_callback_that_raises_disturbs_nobody(commit, caplog):
    def broken(result):
        raise RuntimeError("callback")

    commit.submit(numbered(1), broken)
    assert await submit(commit, numbered(2)) == numbered(2)
    assert len(commit.told) == 1
    assert any("callback" in str(record.exc_info) for record in caplog.records)
