"""A broker on a memory store that is watched, on a clock that only the test moves."""

import asyncio
import contextlib
import threading

import pytest
import uvloop

from adjourn_service.broker import Broker
from adjourn_service.clock import ManualClock
from adjourn_service.dispatcher import Demand
from adjourn_service.errors import StoreFull
from adjourn_service.model import SECOND_US
from adjourn_service.store.base import Lease, Renew
from adjourn_service.store.memory import MemoryStore
from tests.factories import StoreDriver


class WatchedStore(MemoryStore):
    """A memory store that keeps the batches that it was given, and can be told to fail."""

    def __init__(self, clock):
        self.batches = []
        self.error = None
        """Raised by each apply with a lease in it."""
        super().__init__(clock, idempotency_window_us=600 * SECOND_US)

    def apply(self, operations, now=None, watched=frozenset()):
        if threading.current_thread() is not threading.main_thread():  # Not what the test does itself.
            self.batches.append([each for each in operations if each != TICK])
        if self.error is not None and any(isinstance(each, Lease) for each in operations):
            raise self.error
        return super().apply(operations, now, watched)


class Hands:
    """A worker of the test: what it is given, and what it is told."""

    def __init__(self, broker, worker_id="w1", queues=None, **fields):
        self.broker = broker
        self.leases = []
        self.errors = []
        self.demand = Demand(worker_id, queues, self.leases.extend, self.errors.append, **fields)

    def grant(self, credit):
        self.broker.dispatcher.grant(self.demand, credit)

    @property
    def uids(self):
        return [leased.uid for leased in self.leases]


TICK = Renew(())
"""Changes nothing; not counted as an operation."""


async def settled(broker):
    """Return when all that is under way, and what follows from it at once, is committed."""
    alone = 0
    # What one commit leads to may miss the next, but not the one after that.
    while alone < 3:
        with contextlib.suppress(StoreFull):
            await broker.apply(TICK)
        alone = 0 if broker._store.batches[-1] else alone + 1


def kinds(store):
    """Return the kinds of the operations in each batch."""
    return [[type(each) for each in batch] for batch in store.batches if batch]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def store(clock):
    return WatchedStore(clock)


@pytest.fixture
def driver(store, clock):
    """Builds tasks, and looks at them; what it changes is not seen by the broker."""
    return StoreDriver(store, clock)


@pytest.fixture
async def broker(store, clock):
    made = Broker(store, clock)
    await made.start()
    await settled(made)
    store.batches.clear()
    yield made
    store.error = None
    await made.stop()


def pytest_asyncio_loop_factories(config, item):
    """Run on both loops that the service may run on: they differ in what a timer handle can tell."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
