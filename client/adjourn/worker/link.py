"""The stream to the service: opened, kept full in both directions, and opened again for as long as the worker lives.

One message settles, renews and grants credit together. Settlements go one message at a time: while one is on its way
and being made durable the next gathers, so messages are few under load and none waits when there is none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, cast

import grpc

from adjourn.v1.lease_service_pb2 import QueueSelector, WorkerHello, WorkRequest
from adjourn.v1.lease_service_pb2_grpc import LeasesStub
from adjourn.worker import pace
from adjourn.worker.held_lease import HeldLease
from adjourn.worker.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from adjourn.v1.lease_service_pb2 import WorkResponse
    from adjourn.worker.ledger import Batch
    from adjourn.worker.outcome import Outcome

    Call: TypeAlias = grpc.aio.StreamStreamCall[WorkRequest, WorkResponse]

logger = logging.getLogger("adjourn.worker")

RECONNECT_SECONDS_MIN: Final = 0.05
RECONNECT_SECONDS_MAX: Final = 2.0
CREDITS_MAX: Final = 10_000
"""Bound of WorkRequest.credits."""
ACKNOWLEDGE_SECONDS_MAX: Final = 30.0
"""A service that has not acknowledged a settlement for so long is cut off: the connection is as good as dead."""
_STABLE_SECONDS: Final = 1.0
"""A stream on which the service has neither spoken nor failed for so long after the hello counts as connected."""
_RENEWALS_PER_LEASE: Final = 3


class LeaseTaker(Protocol):
    """Whoever runs what is leased."""

    @property
    def target(self) -> int:
        """How many leases it wants to have, held or asked for."""

    @property
    def held(self) -> int:
        """How many it has."""

    def accept(self, leases: Sequence[HeldLease]) -> None:
        """Take leases. The end of each comes back through `succeeded`, `settled` or `dropped`."""

    def revoke(self, leases: Iterable[HeldLease]) -> None:
        """Learn that held leases have been taken back."""


class Link:
    """Brings leases to the taker and settlements to the service."""

    def __init__(self, channel: grpc.aio.Channel, target: str, worker_id: str, queues: Sequence[str]) -> None:
        self._stub = LeasesStub(channel)
        self._target = target
        self._worker_id = worker_id
        self._queues = queues
        self._ledger = Ledger()
        self._resend: deque[Batch] = deque()
        self._credits_outstanding = 0
        self._wake = asyncio.Event()
        self._renew_at = math.inf
        self._stable: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._patience = asyncio.timeout(None)
        self._ever_connected = False
        self._connected = False
        self._troubled = False
        self._draining = False
        self._drain_sent = False
        self._drained = asyncio.Event()
        self._all_settled = asyncio.Event()

    # -- what the pool says ------------------------------------------------------------------------------------------

    def succeeded(self, leases: Sequence[HeldLease]) -> None:
        """See SettlementSink."""
        self._ledger.succeed(leases)
        self._wake.set()

    def settled(self, lease: HeldLease, outcome: Outcome) -> None:
        """See SettlementSink."""
        if lease.revoked:
            logger.warning("lease lost, outcome dropped task=%s attempt=%d", lease.name, lease.attempt)
        self._ledger.settle(lease, outcome)
        self._wake.set()

    def dropped(self, leases: Sequence[HeldLease]) -> None:
        """See SettlementSink."""
        self._ledger.forget(leases)
        self._wake.set()

    def target_changed(self) -> None:
        """See SettlementSink."""
        self._wake.set()

    # -- life cycle --------------------------------------------------------------------------------------------------

    async def run(self, taker: LeaseTaker) -> None:
        """Serve the taker until cancelled, through any number of connections."""
        failures = 0
        this = cast("asyncio.Task[None]", asyncio.current_task())
        while True:
            try:
                await self._converse(taker)
                reason = "the service closed the stream"
            except* grpc.aio.AioRpcError as errors:
                reason = _reason(errors)
            except* TimeoutError:
                reason = f"no acknowledgement for {ACKNOWLEDGE_SECONDS_MAX:g} seconds"
            if this.cancelling():
                # A TaskGroup that is cancelled while it ends with an error forgets the former (python/cpython#116720).
                raise asyncio.CancelledError
            failures = 1 if self._connected else failures + 1
            self._note_trouble(reason)
            if self._draining:
                self._drained.set()
            limit = min(RECONNECT_SECONDS_MIN * 2 ** (failures - 1), RECONNECT_SECONDS_MAX)
            await asyncio.sleep(limit * random.uniform(0.5, 1.0))

    async def drain(self) -> None:
        """Ask for no more, and wait until the service has confirmed that no lease is on its way."""
        self._draining = True
        self._wake.set()
        if self._troubled:
            # Without a stream none is; and a later stream, having no credit, brings none.
            self._drained.set()
        await self._drained.wait()

    async def delivered(self) -> None:
        """Wait until the service has acknowledged every settlement."""
        while not self._ledger.settled:
            self._all_settled.clear()
            await self._all_settled.wait()

    # -- one stream --------------------------------------------------------------------------------------------------

    async def _converse(self, taker: LeaseTaker) -> None:
        self._connected = False
        self._credits_outstanding = 0
        self._drain_sent = False
        self._resend.clear()
        call = self._stub.Work()
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(call, taker))
                await self._read(call, taker)
                writer.cancel()
        finally:
            if self._stable is not None:
                self._stable.cancel()
            call.cancel()

    async def _read(self, call: Call, taker: LeaseTaker) -> None:
        async with asyncio.timeout(None) as self._patience:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._note_connected()
                self._hear(cast("WorkResponse", response), taker)

    async def _write(self, call: Call, taker: LeaseTaker) -> None:
        try:
            await call.write(WorkRequest(hello=self._hello()))
            self._stable = asyncio.get_running_loop().call_later(_STABLE_SECONDS, self._note_stable, call)
            self._resend.extend(self._ledger.unacknowledged())
            # Nobody renewed while there was no stream.
            self._renew_within(0.0)
            while True:
                self._wake.clear()
                while (request := self._next_request(taker)) is not None:
                    await call.write(request)
                await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream has ended; whoever reads it learns why.
            return

    def _hello(self) -> WorkerHello:
        return WorkerHello(
            worker_id=self._worker_id,
            queues=[QueueSelector(queue=queue) for queue in self._queues],
            held_lease_ids=self._ledger.lease_ids_claimed(),
        )

    def _next_request(self, taker: LeaseTaker) -> WorkRequest | None:
        """Gather what there is to say; None if it is nothing, or can wait for company."""
        request = self._settling_request()
        useful = request is not None
        if request is None:
            request = WorkRequest()
        if asyncio.get_running_loop().time() >= self._renew_at:
            request.renew_lease_ids.extend(self._ledger.lease_ids_held())
            useful = useful or bool(request.renew_lease_ids)
            self._schedule_renewal()
        if self._draining:
            if not self._drain_sent:
                request.drain = useful = self._drain_sent = True
            return request if useful else None
        target = taker.target
        room = min(target - taker.held - self._credits_outstanding, CREDITS_MAX)
        grant = max(room, 0) if useful else pace.credit_grant(room, target)
        if grant:
            request.credits = grant
            self._credits_outstanding += grant
            useful = True
        return request if useful else None

    def _settling_request(self) -> WorkRequest | None:
        if self._resend:
            batch: Batch | None = self._resend.popleft()
        elif self._ledger.in_flight:
            return None
        else:
            batch = self._ledger.next_batch()
        if batch is None:
            return None
        self._patience.reschedule(asyncio.get_running_loop().time() + ACKNOWLEDGE_SECONDS_MAX)
        return batch.request()

    def _hear(self, response: WorkResponse, taker: LeaseTaker) -> None:
        if response.leases:
            leases = [HeldLease.received(lease) for lease in response.leases]
            self._credits_outstanding = max(self._credits_outstanding - len(leases), 0)
            self._ledger.hold(leases)
            self._renew_within(min(lease.seconds for lease in leases) / _RENEWALS_PER_LEASE)
            taker.accept(leases)
        if response.lost_lease_ids:
            self._revoke(response.lost_lease_ids, "lost", taker)
        if response.cancelled_lease_ids:
            self._revoke(response.cancelled_lease_ids, "cancelled", taker)
        if response.acked_sequence:
            self._ledger.acknowledge(response.acked_sequence)
            if not self._ledger.in_flight:
                self._patience.reschedule(None)
            if self._ledger.settled:
                self._all_settled.set()
            self._wake.set()
        if response.drained:
            self._drained.set()

    def _revoke(self, lease_ids: Iterable[str], how: str, taker: LeaseTaker) -> None:
        # A lease that is not held was settled: the service has that settlement already, or its lease ended meanwhile.
        # Either way there is nothing left to do.
        held = self._ledger.find(lease_ids)
        if held:
            # One line, however many: after a long outage all of them may be lost.
            logger.warning("lease %s task=%s attempt=%d others=%d", how, held[0].name, held[0].attempt, len(held) - 1)
            taker.revoke(held)

    # -- renewals ----------------------------------------------------------------------------------------------------

    def _renew_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if when >= self._renew_at:
            return
        if self._renewal is not None:
            self._renewal.cancel()
        self._renew_at = when
        self._renewal = loop.call_at(when, self._wake.set)

    def _schedule_renewal(self) -> None:
        self._renew_at = math.inf
        shortest = self._ledger.shortest_seconds()
        if shortest is not None:
            self._renew_within(shortest / _RENEWALS_PER_LEASE)

    # -- what is said of the connection ------------------------------------------------------------------------------

    def _note_stable(self, call: Call) -> None:
        if not call.done():
            self._note_connected()

    def _note_connected(self) -> None:
        if self._connected:
            return
        self._connected = True
        if self._troubled or not self._ever_connected:
            logger.info("%s target=%s", "reconnected" if self._ever_connected else "connected", self._target)
        self._ever_connected = True
        self._troubled = False

    def _note_trouble(self, reason: str) -> None:
        if self._troubled:
            return
        self._troubled = True
        if self._ever_connected:
            logger.warning("connection lost, trying on target=%s: %s", self._target, reason)
        else:
            logger.warning(
                "no service at %s, trying on: %s. Start one with `adjourn serve`, or say where it is with --target or "
                "ADJOURN_TARGET",
                self._target,
                reason,
            )


def _reason(errors: ExceptionGroup[grpc.aio.AioRpcError]) -> str:
    error = cast("grpc.aio.AioRpcError", errors.exceptions[0])
    # What gRPC says when a stream breaks under a write; the cause itself is lost.
    if error.details() == "Internal error from Core":
        return "the connection broke"
    return f"{error.code().name}: {error.details()}"
