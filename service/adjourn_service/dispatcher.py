"""Matches waiting workers with ready tasks.

Each worker's wish is a `Demand`. A demand that has credit asks the store for leases; when the store has given all there
is, the demand is parked until a commit leaves ready tasks in one of its queues. The store's counters, which come with
every commit, say so: nothing is polled, and nothing is missed.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Final

from adjourn_service.clock import Clock
from adjourn_service.commit import GroupCommit
from adjourn_service.model import LeasedTask, Outcome, Settlement
from adjourn_service.store.base import Lease, Leased, Result, Settle

LEASE_LIMIT: Final = 512
"""Leases that one ask may bring: enough to amortise a commit, little enough to share a burst among workers."""


class Demand:
    """A worker's wish for leases: from which queues, and for how many it has credit.

    `deliver` takes leases on the event loop; `failed` takes the error when the store could not be asked."""

    def __init__(
        self,
        worker_id: str,
        queues: tuple[str, ...] | None,
        deliver: Callable[[list[LeasedTask]], None],
        failed: Callable[[BaseException], None],
        *,
        tag: str = "",
        key: str = "",
        duration_us: int | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.queues = queues
        self.deliver = deliver
        self.failed = failed
        self.tag = tag
        self.key = key
        self.duration_us = duration_us
        self.credit = 0
        self.asking = False
        self.closed = False

    def wants(self, queue: str) -> bool:
        """Say whether this demand takes tasks of the queue."""
        return self.queues is None or queue in self.queues


class Dispatcher:
    """Turns demands into lease operations. Everything here runs on the event loop."""

    def __init__(self, commit: GroupCommit, clock: Clock) -> None:
        self._commit = commit
        self._clock = clock
        self._parked: dict[Demand, None] = {}
        """In the order in which they were parked: who has waited longest is asked for first."""
        self._alarms: dict[Demand, asyncio.TimerHandle] = {}
        """Of parked demands that a rate limit is in the way of."""

    def grant(self, demand: Demand, credit: int) -> None:
        """Give a demand credit for more leases."""
        demand.credit += credit
        self._ask(demand)

    def withdraw(self, demand: Demand) -> None:
        """Take back all credit of a demand. Leases that it has asked for may still be delivered."""
        demand.credit = 0
        self._unpark(demand)

    def close(self, demand: Demand) -> None:
        """End a demand. Leases that arrive for it after this are released, uncounted."""
        demand.closed = True
        self.withdraw(demand)

    def expect(self, queues: Mapping[str, int]) -> None:
        """Ask for tasks that are about to be created, in the same commit: parked demands, as many as they can feed."""
        if self._parked:
            self.wake(queues)

    def wake(self, ready: Mapping[str, int]) -> None:
        """Let parked demands ask for what is ready, each for its share, longest parked first.

        Shares, and not all that credit allows: a worker that ran short tasks lately has credit for hundreds, and would
        take the few long ones that come next from workers that are free."""
        if not self._parked:
            return
        for queue, count in ready.items():
            wanting = [demand for demand in self._parked if demand.wants(queue)] if count > 0 else []
            left = count
            for waiting, demand in zip(range(len(wanting), 0, -1), wanting, strict=True):
                share = ceil(left / waiting)
                left -= min(share, demand.credit)
                self._ask(demand, share)
                if left <= 0:
                    break

    def release(self, leases: Iterable[str]) -> None:
        """Give leases back that never reached a worker."""
        settlements = [Settlement(lease_id, Outcome.RELEASED) for lease_id in leases]
        if settlements:
            self._commit.submit(Settle(others=settlements), _ignore)

    def _ask(self, demand: Demand, share: int = LEASE_LIMIT) -> None:
        if demand.asking or demand.credit <= 0 or demand.closed:
            return
        self._unpark(demand)
        demand.asking = True
        limit = min(demand.credit, share, LEASE_LIMIT)
        operation = Lease(demand.queues, limit, demand.worker_id, demand.duration_us, demand.tag, demand.key)
        self._commit.submit(operation, lambda result: self._answered(demand, limit, result))

    def _answered(self, demand: Demand, limit: int, result: Result | BaseException) -> None:
        demand.asking = False
        if isinstance(result, BaseException):
            if not demand.closed:
                demand.failed(result)
            return
        assert isinstance(result, Leased)
        if demand.closed:
            self.release(task.lease_id for task in result.tasks)
            return
        # Credit may have been withdrawn while the answer was on its way.
        demand.credit = max(0, demand.credit - len(result.tasks))
        demand.deliver(result.tasks)
        if demand.credit <= 0 or demand.closed:
            return
        if len(result.tasks) == limit:
            self._ask(demand)
            return
        self._parked[demand] = None
        if result.more_at is not None:
            wait_seconds = max(0, result.more_at - self._clock.now()) / 1e6
            self._alarms[demand] = asyncio.get_running_loop().call_later(wait_seconds, self._ask, demand)

    def _unpark(self, demand: Demand) -> None:
        self._parked.pop(demand, None)
        if self._alarms and (alarm := self._alarms.pop(demand, None)) is not None:
            alarm.cancel()


def _ignore(_: object) -> None:
    """A lease that cannot be given back expires by itself."""
